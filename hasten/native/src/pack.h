// Weights into panels of 16 outputs, in the order in which the products read them.
//
// int8: [panel, ceil(k / 4), 16, 4]; int4: [panel, ceil(k / group) group / 8, 16, 4] bytes with inputs 0..3 of eight in
// the lower halves and 4..7 in the upper; int5: of 32 inputs first the fifth bits, a word of 64 for each four, then the
// other four bits as in int4; bf16: [panel, ceil(k / 2), 16, 2]; fp32: [panel, k, 16]. Each [16, ...] is a line of 64
// bytes, and the lines of two panels alternate: a product reads both, and so one stretch of memory from its beginning
// to its end. What fills up is 0, and so is a last panel that makes their number even.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "program.h"

namespace hasten {

// `gated`: the first half of the rows are gates, the second what they let through; their panels alternate.
Matrix pack(const TensorSpec& tensor, bool gated, Store& store);
// fp32 [rows] in the order of the panels of a matrix of so many rows, filled up with zeros.
const float* pack_vector(const uint8_t* values, int64_t rows, bool gated, Store& store);
// A table of rows as it is.
Table pack_table(const TensorSpec& tensor, Store& store);

}  // namespace hasten
