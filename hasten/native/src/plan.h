// A program made ready to run: packed weights, steps in their order, and where each step finds its rows.
//
// Steps know numbers of buffers; `bind` gives them pointers whenever the scratch memory has grown.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "program.h"

namespace hasten {

// What the caller keeps of earlier tokens: for each layer keys, values and, for int8, their scales.
struct CacheLayer {
    uint8_t *keys = nullptr, *values = nullptr;
    float *key_scales = nullptr, *value_scales = nullptr;
    int64_t bytes = 0, scale_bytes = 0;  // of keys, as many of values
};

struct Caches {
    Kind kind = Kind::floats;
    int64_t slots = 0, block_size = 1, table_width = 0;
    const int32_t *tables = nullptr, *slot_of = nullptr;
    std::vector<CacheLayer> layers;
};

// One call's inputs.
struct Batch {
    const int32_t *ids = nullptr, *types = nullptr;
    const float* features = nullptr;
    int64_t feature_width = 0;
    std::vector<int32_t> starts, places;  // [sequences + 1], [tokens]
    std::vector<int32_t> few;             // [tokens] with caches: the number of a row that reads one as it lies, or -1
    int64_t tokens = 0, sequences = 0, last_place = 0, few_rows = 0;
    const Caches* caches = nullptr;

    int64_t rows(RowKind kind) const { return kind == RowKind::token ? tokens : sequences; }
};

// Scratch memory: buffers, their forms for products, attention's own.
struct Arena {
    std::vector<Rows> buffers;
    std::vector<Codes> codes;
    std::vector<float*> attention;  // one a thread
    float* found = nullptr;         // of single rows' attention; the layers use it in turn
    std::vector<std::vector<Best>> best;  // for each search one a place
    std::vector<std::vector<Said>> said;  // for each softmax one a place
};

// Rows of a buffer in the form for some products. `group` and `groups` only for s8.
struct CodesSpec {
    int64_t buffer = 0;
    Form form = Form::plain;
    int64_t group = 0, groups = 0;
};

// The largest `count` of a product's outputs, a row of a kind each.
struct BestSpec {
    RowKind rows = RowKind::sequence;
    int64_t count = 0;
};

class Step {
public:
    virtual ~Step() = default;
    virtual void bind(const Arena& arena) = 0;
    // Before a batch runs: throws Refusal if its numbers do not fit, and takes its pointers.
    virtual void accept(const Batch&) {}
    // Row by row: a thread that has done some rows may go on with the next such step on them.
    virtual bool by_rows() const { return true; }
    // Steps that need `share` with few rows, and can do `rows` as well.
    virtual bool either_way() const { return by_rows(); }
    virtual void rows(const Kernels&, int64_t, int64_t) const {}
    // Steps that are shared out by their outputs: threads take what is left as they get free. Of steps whose results
    // lie in places either all calls are, or none.
    virtual bool dealt() const { return false; }
    // `place`: of this share's own results, or of the scratch memory.
    virtual void share(const Kernels&, const Share&, size_t) const {}
};

// Of steps that are dealt each thread has so many pieces, the first ones its own. What is left over goes to whoever is
// free: cores differ, and on most hosts somebody else runs on them too.
// With more rows layers' products are not dealt: a piece more costs what it brings.
constexpr int64_t DEALT_ROWS = 4;
constexpr int64_t PIECES = 16, OWN_PIECES = 15, FREE_PIECES = PIECES - OWN_PIECES;
// Results of such a step: one a thread, and one a piece that is free.
constexpr int64_t places_of(int64_t threads) { return threads == 1 ? 1 : threads * (1 + FREE_PIECES); }

// Steps between two barriers: one that is shared out its own way, or several that go row by row.
struct Section {
    RowKind kind = RowKind::token;
    std::vector<Step*> steps;
    int64_t serves = -1;  // the buffer of an answer that nothing else needs: made only when it is asked for
};

// Cosines and sines of the angles `place frequency`, made as far as batches go and kept.
struct Turns {
    std::vector<float> frequencies, cosines, sines;
    int64_t most = 0, made = 0;  // places
    float factor = 1;
    void reach(int64_t places);
};

// Sections one after the other that go row by row with many rows: each thread takes some through all of them, and what
// is between two products stays in its cache.
struct Stage {
    RowKind kind = RowKind::token;
    size_t begin = 0, end = 0;
    bool by_rows = false;
};

struct Plan {
    std::vector<BufferSpec> buffers;
    std::vector<CodesSpec> codes;
    std::vector<BestSpec> best;
    std::vector<RowKind> said;
    std::vector<std::unique_ptr<Turns>> turns;
    std::vector<int64_t> answers;  // buffers that can be asked for
    std::vector<std::unique_ptr<Matrix>> matrices;
    std::vector<std::unique_ptr<Step>> steps;
    std::vector<Section> sections;
    std::vector<Stage> stages;
    int64_t widest = 0;  // of all buffers
    Store weights;
    int64_t output = 0, attention_floats = 0, found_floats = 0;
    bool wants_ids = false, wants_features = false, wants_caches = false;
};

// Packed weights of an earlier time: an open file that holds so many bytes of them.
struct PackedFile {
    int file = -1;
    int64_t bytes = 0;
    uint64_t checksum = 0;
};

// Throws Refusal for operators that do not fit their buffers and tensors, and for packed weights that are others'.
std::unique_ptr<Plan> make_plan(const ProgramSpec& program, const Kernels& kernels, const PackedFile& packed);

}  // namespace hasten
