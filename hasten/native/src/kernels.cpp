// One instruction set's kernels: compiled once for each, with its flags and HASTEN_ISA naming it.
//
// Nothing here may be an inline function of the standard library: the linker would keep one copy for all, perhaps the
// one that this processor cannot run.
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#else
#include <cstring>
#ifdef HASTEN_ISA_NEON
#include <arm_neon.h>
#endif
#endif

#define HASTEN_TABLE_OF(isa) kernels_##isa
#define HASTEN_TABLE(isa) HASTEN_TABLE_OF(isa)
#define HASTEN_TEXT_OF(isa) #isa
#define HASTEN_TEXT(isa) HASTEN_TEXT_OF(isa)

namespace hasten {
namespace {

#if defined(__AVX512F__)
#include "simd_avx512.h"
constexpr int64_t MAX_ROWS = 12, MAX_PANELS = 2, ATTEND_ROWS = 6;
#elif defined(__AVX2__)
#include "simd_avx2.h"
constexpr int64_t MAX_ROWS = 4, MAX_PANELS = 1, ATTEND_ROWS = 2;
#else
#include "simd_portable.h"
constexpr int64_t MAX_ROWS = 4, MAX_PANELS = 1, ATTEND_ROWS = 2;
#endif

// clang-format off: each uses those before it
#include "unroll.h"
#include "math.h"
#include "encode.h"
#include "products.h"
#include "linear.h"
#include "numbers.h"
#include "rows.h"
#include "cache.h"
#include "softmax.h"
#include "reading.h"
#include "attention.h"

#ifdef __AVX512BF16__
constexpr bool WANTS_BF16 = true;
#else
constexpr bool WANTS_BF16 = false;
#endif

}  // namespace

extern const Kernels HASTEN_TABLE(HASTEN_ISA);
const Kernels HASTEN_TABLE(HASTEN_ISA) = {
    HASTEN_TEXT(HASTEN_ISA), WANTS_BF16, linear, norm, encode_rows, embed, attention, gather, activate, add, normalize,
    rotary, head_norm, keep, top, foretell,
};

}  // namespace hasten
