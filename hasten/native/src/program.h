// A program as it was read: nothing but numbers that have been checked against each other's sizes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace hasten {

// What a caller did wrong: "got|expected|remedy".
struct Refusal {
    std::string words;
};

[[noreturn]] void refuse(const std::string& got, const std::string& expected,
                         const std::string& remedy = "make the program again from the model");

enum class RowKind : int64_t { token, sequence };

struct BufferSpec {
    int64_t width = 0;
    RowKind rows = RowKind::token;
};

struct TensorSpec {
    Kind kind = Kind::floats;
    int64_t rows = 0, columns = 0, group = 0;
    const uint8_t* values = nullptr;  // or codes
    const uint8_t* scales = nullptr;
    const uint8_t* zeros = nullptr;
    const uint8_t* fifths = nullptr;   // of codes of 5 bits the highest
    const uint8_t* offsets = nullptr;
    int64_t groups() const { return group ? (columns + group - 1) / group : 0; }
};

enum class Code : int64_t {
    features = 1, embed, norm, linear, attention, pool, normalize, activate, add, rotary, head_norm,
    cached_attention, top, foretell, end
};

// The words of one operator, read in the order of the fields of its record in program.py.
struct OpSpec {
    Code code = Code::end;
    std::vector<int64_t> fields;
};

struct ProgramSpec {
    std::vector<BufferSpec> buffers;
    std::vector<TensorSpec> tensors;
    std::vector<OpSpec> ops;
    int64_t output = 0;
};

struct Array {
    const uint8_t* data;
    int64_t bytes;
};

// Throws Refusal. The arrays must live as long as the result is used.
ProgramSpec read_program(const int64_t* words, int64_t count, const std::vector<Array>& arrays);

}  // namespace hasten
