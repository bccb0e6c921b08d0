// What a set of kernels takes and gives: plain structures, and one table of functions for each instruction set.
//
// Rows of activations lie `stride` elements apart; the columns between a width and the next multiple of 16 exist and
// hold zeros. Weights lie in panels of 16 outputs (see pack.h). Everything here was checked before: kernels trust it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hasten {

constexpr int64_t PANEL = 16, LINE = 64;
constexpr int64_t MAX_THREADS = 256;

enum class Kind : int64_t { floats = 1, bf16 = 2, int8 = 3, int4 = 4, int5 = 5 };
// Functions that kernels share with the rest are static: of inline ones the linker keeps one for all instruction sets.
static constexpr bool in_groups(Kind kind) { return kind == Kind::int4 || kind == Kind::int5; }
enum class Act : int64_t { none, gelu_erf, gelu_tanh, relu, silu, tanh, count };
enum class NormKind : int64_t { layer, rms, rms_plus_one, count };
enum class PoolKind : int64_t { first, mean, last, max, count };
// How a product wants its input: as it is, 8 bits without or with sign, or bf16.
enum class Form : int64_t { plain, u8, s8, bf16, count };

// Weights [n, k] in panels of 16 outputs; `panels` counts them; one of zeros follows an odd number. A panel has so many
// lines of LINE bytes, and those of two neighbours alternate. With `gated`, gate and up panels do.
struct Matrix {
    Kind kind = Kind::floats;
    int64_t n = 0, k = 0, panels = 0, lines = 0;
    const uint8_t* data = nullptr;
    const float* scales = nullptr;      // int8: [panels * 16]
    const int32_t* sums = nullptr;      // int8: [panels * 16], sums of codes over k
    int64_t group = 0, groups = 0;      // int4 and int5
    const uint16_t* halves = nullptr;   // of groups: fp16 scales [panels, groups, 16]
    const uint8_t* zeros = nullptr;     // int4: [panels, groups, 16] or null
    const uint16_t* offsets = nullptr;  // of groups: fp16 [panels, groups, 16] or null; no zero points then
};

// Where a line of a panel lies: how many lines behind the first of all.
static constexpr int64_t line_place(const Matrix& m, int64_t panel, int64_t line) {
    return (panel / 2 * m.lines + line) * 2 + panel % 2;
}
// Of weights in groups, the line of the inputs k to k + 7. Of 32 inputs of int5 a line of fifth bits comes first.
static constexpr int64_t line_of_fifths(int64_t k) { return k / 32 * 5; }
static constexpr int64_t line_of_codes(Kind kind, int64_t k) {
    return kind == Kind::int5 ? line_of_fifths(k) + 1 + k % 32 / 8 : k / 8;
}

struct Rows {
    float* data = nullptr;
    int64_t stride = 0, width = 0;
};

// Rows in the form that a product wants.
struct Codes {
    uint8_t* data = nullptr;      // u8, s8, or bf16 (two bytes each)
    int64_t stride = 0;           // bytes
    float* scales = nullptr;      // [rows]; s8: [rows, groups]
    int32_t* zeros = nullptr;     // [rows], u8
    int32_t* sums = nullptr;      // [rows, groups], s8
    int64_t group = 0, groups = 0;
    Form form = Form::plain;
};

struct LinearTask {
    const Matrix* weight = nullptr;
    const float* bias = nullptr;  // [panels * 16] or null
    Rows input, output;
    const float* residual = nullptr;  // stride of its own
    int64_t residual_stride = 0;
    Codes codes;
    Act act = Act::none;
    bool gated = false;
    float cap = 0;  // above 0: outputs are cap tanh(output / cap)
    int64_t rows = 0;
};

struct NormTask {
    Rows input, output;
    const float* residual = nullptr;
    int64_t residual_stride = 0;
    float* total = nullptr;
    int64_t total_stride = 0;
    const float* weight = nullptr;  // [width rounded up to 16], or null
    const float* bias = nullptr;
    float eps = 0;
    NormKind kind = NormKind::layer;
};

// A table of V rows: plain, bf16 or int8, row after row; or the panels of a product's weights.
struct Table {
    Kind kind = Kind::floats;
    const uint8_t* data = nullptr;
    const float* scales = nullptr;
    int64_t rows = 0, width = 0;
    const Matrix* panels = nullptr;
};

struct EmbedTask {
    Rows output;
    Table words, positions, types;  // the last two may have no rows
    const int32_t* ids = nullptr;
    const int32_t* places = nullptr;
    const int32_t* kinds = nullptr;  // or null for zeros
    int64_t first_position = 0;
    float scale = 1;
};

// Keys and values of earlier tokens, which the caller owns: slot after slot, [slots, kv_heads, head_dim] each. Token j
// of a sequence lies in slot table[j / block_size] block_size + j % block_size.
struct Cache {
    Kind kind = Kind::floats;  // floats, bf16, or int8 with an fp32 scale [slots, kv_heads]
    uint8_t *keys = nullptr, *values = nullptr;
    float *key_scales = nullptr, *value_scales = nullptr;
    const int32_t* tables = nullptr;  // [sequences, table_width]
    int64_t table_width = 0, block_size = 1;
    const int32_t* slots = nullptr;   // [tokens], where this step's go; -1: nowhere
    const int32_t* places = nullptr;  // [tokens], the last key that a row sees
};

struct AttentionTask {
    Rows input, output;
    int64_t heads = 0, kv_heads = 0, head_dim = 0;
    float scale = 1;
    bool causal = false;
    int64_t window = 0;
    float cap = 0;  // above 0: scores are cap tanh(score / cap)
    bool bf16 = false;                // scores and sums of products of bf16, where the CPU has them
    const int32_t* starts = nullptr;  // [sequences + 1]
    int64_t sequences = 0;
    const Cache* cache = nullptr;     // null: keys and values are the input's own
    const int32_t* few = nullptr;     // with a cache [tokens]: the number of a row that reads it as it lies, or -1
    float* found = nullptr;           // of each of those `found_floats`
};

// Norms of single heads, in place.
struct HeadNormTask {
    Rows input;
    int64_t first = 0, heads = 0, head_dim = 0;
    const float* weight = nullptr;  // [head_dim rounded up]
    float eps = 0;
    NormKind kind = NormKind::rms;
};

// The largest outputs of a product, in falling order; of equal ones the first.
struct Best {
    float* values = nullptr;  // [rows, count]
    int32_t* numbers = nullptr;
    int64_t count = 0;
};

// What a product's outputs say of one of them, for each row: the largest output and its number, the sum of
// exp(output - largest), and the output that is asked for (0 in parts that do not have it).
struct Said {
    float *top = nullptr, *total = nullptr, *asked = nullptr;
    int32_t* number = nullptr;
};

struct RotaryTask {
    Rows input;
    int64_t heads = 0, head_dim = 0, half = 0;  // of each head the first 2 half are turned
    const float* cosines = nullptr;             // [places, half]
    const float* sines = nullptr;
    const int32_t* places = nullptr;
};

// Keys of a block of attention, and queries that are computed at once, at most.
constexpr int64_t KEYS = 512, MOST_QUERIES = 6;
// Queries of an item of work.
constexpr int64_t QUERIES = 48;
// From so many keys on it takes time to attend to them, and bf16 is multiplied where a task allows it.
constexpr int64_t MANY_KEYS = 64;
// Rows of a sequence that read a cache as it lies, at most; tokens that such a row scores before their softmax; and the
// pieces of what it sees, which several threads may read, at most.
constexpr int64_t FEW_ROWS = 3, TILE = 64, SPANS = 16;
static constexpr int64_t found_floats(int64_t heads, int64_t wide) { return SPANS * heads * (wide + 2); }
static constexpr int64_t most_of(int64_t a, int64_t b) { return a < b ? b : a; }
static constexpr int64_t most_queries(int64_t heads) { return most_of(heads, QUERIES); }
// `scratch` of attention, in floats, for one thread; `wide` is head_dim rounded up to 16.
static constexpr int64_t attention_scratch(int64_t heads, int64_t wide) {
    return 2 * wide * KEYS + MOST_QUERIES * KEYS + (most_queries(heads) + QUERIES) * wide + KEYS;
}

// What lies between two of `of` equal pieces of some work.
struct Share {
    int64_t from, to, of;
};

// Functions over rows work on [begin, end); those with a share do that of it, or of the whole.
struct Kernels {
    const char* name;
    bool wants_bf16;  // bf16 products read bf16 inputs
    void (*linear)(const LinearTask&, int64_t begin, int64_t end, const Share&);
    void (*norm)(const NormTask&, int64_t begin, int64_t end);
    void (*encode)(const Rows&, const Codes&, int64_t begin, int64_t end);
    void (*embed)(const EmbedTask&, int64_t begin, int64_t end);
    void (*attention)(const AttentionTask&, float* scratch, const Share&);
    void (*gather)(const AttentionTask&, int64_t begin, int64_t end);  // what several shares found of a row
    void (*activate)(const Rows& input, const Rows& output, Act act, int64_t begin, int64_t end);
    void (*add)(const Rows& input, const Rows& other, const Rows& output, int64_t begin, int64_t end);
    void (*normalize)(const Rows& input, const Rows& output, float eps, int64_t begin, int64_t end);
    void (*rotary)(const RotaryTask&, int64_t begin, int64_t end);
    void (*head_norm)(const HeadNormTask&, int64_t begin, int64_t end);
    void (*keep)(const AttentionTask&, int64_t begin, int64_t end);  // keys and values into the cache
    void (*top)(const LinearTask&, const Best&, const Share&);  // `Best` of this share
    void (*foretell)(const LinearTask&, const int32_t* asked, const Said&, const Share&);  // `Said` of this share
};

// By name; null where this host or this build has no such instructions. The empty name is the best one.
const Kernels* kernels_named(const char* name);
const char* isas_here();  // best first, separated by spaces

}  // namespace hasten
