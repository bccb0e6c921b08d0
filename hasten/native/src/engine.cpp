#include "engine.h"

#include <cstring>
#include <utility>

#ifdef __unix__
#include <unistd.h>
#endif

namespace hasten {
namespace {

// Rows that go through a chain of steps together: they stay in the first cache.
constexpr int64_t TOGETHER = 8;
// With so many rows a thread, each takes its own through products too: reading all weights costs less than waiting.
constexpr int64_t MANY_ROWS = 32;
constexpr int64_t CACHED_BYTES = 768 << 10;

// A stride at which rows do not all fall into the same few lines of a cache.
int64_t stride_of(int64_t bytes) {
    const int64_t lines = up_to(bytes < 64 ? 64 : bytes, 64);
    return lines % 512 ? lines : lines + 64;
}

int64_t most_memory() {
#ifdef _SC_PHYS_PAGES
    const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) return pages * page / 4 * 3;
#endif
    return int64_t{1} << 40;
}

}  // namespace

Engine::Engine(const ProgramSpec& program, const Kernels& kernels, const PackedFile& packed, int64_t threads,
               std::vector<int> cores)
    : kernels_(kernels), plan_(make_plan(program, kernels, packed)),
      taken_(std::make_unique<Taken[]>(plan_->sections.size())), pool_(threads, std::move(cores)) {
    make_room(128, 8, 0);
}

void Engine::make_room(int64_t tokens, int64_t sequences, int64_t few_rows) {
    if (tokens <= tokens_ && sequences <= sequences_ && few_rows <= few_rows_) return;
    tokens = up_to(most_of(tokens, tokens_), 64), sequences = up_to(most_of(sequences, sequences_), 8);
    few_rows = up_to(most_of(few_rows, few_rows_), 8);
    const int64_t most = most_memory();
    double bytes = static_cast<double>(plan_->found_floats * few_rows) * 4;
    for (const BufferSpec& b : plan_->buffers)
        bytes += static_cast<double>(stride_of(b.width * 4) * (b.rows == RowKind::token ? tokens : sequences));
    if (bytes * 1.5 > static_cast<double>(most))
        refuse(std::to_string(tokens) + " tokens, which would take " + std::to_string(bytes / 1e6) + " MB",
               "what this host's memory holds", "run smaller batches");
    Store scratch;
    Arena arena;
    for (const BufferSpec& b : plan_->buffers) {
        const int64_t stride = stride_of(b.width * 4), count = b.rows == RowKind::token ? tokens : sequences;
        arena.buffers.push_back({static_cast<float*>(scratch.take(stride * count)), stride / 4, b.width});
    }
    for (const CodesSpec& spec : plan_->codes) {
        const BufferSpec& b = plan_->buffers[size_t(spec.buffer)];
        const int64_t count = b.rows == RowKind::token ? tokens : sequences, whole = spec.groups * spec.group;
        const int64_t columns = up_to(b.width > whole ? b.width : whole, PANEL);
        Codes codes;
        codes.form = spec.form, codes.group = spec.group, codes.groups = spec.groups;
        codes.stride = stride_of(columns * (spec.form == Form::bf16 ? 2 : 1));
        codes.data = scratch.take_of<uint8_t>(codes.stride * count);
        codes.scales = scratch.take_of<float>(count * (spec.groups ? spec.groups : 1));
        codes.zeros = scratch.take_of<int32_t>(count);
        codes.sums = scratch.take_of<int32_t>(count * spec.groups);
        arena.codes.push_back(codes);
    }
    for (const BestSpec& spec : plan_->best) {
        const int64_t count = (spec.rows == RowKind::token ? tokens : sequences) * spec.count;
        std::vector<Best> own;
        for (int64_t p = 0; p < places_of(pool_.threads()); p++)
            own.push_back({scratch.take_of<float>(count), scratch.take_of<int32_t>(count), spec.count});
        arena.best.push_back(own);
    }
    for (const RowKind kind : plan_->said) {
        const int64_t count = kind == RowKind::token ? tokens : sequences;
        std::vector<Said> own;
        for (int64_t p = 0; p < places_of(pool_.threads()); p++)
            own.push_back({scratch.take_of<float>(count), scratch.take_of<float>(count), scratch.take_of<float>(count),
                           scratch.take_of<int32_t>(count)});
        arena.said.push_back(own);
    }
    for (int64_t t = 0; t < pool_.threads(); t++)
        arena.attention.push_back(scratch.take_of<float>(plan_->attention_floats));
    arena.found = scratch.take_of<float>(plan_->found_floats * few_rows);
    scratch_ = std::move(scratch);
    arena_ = std::move(arena);
    tokens_ = tokens, sequences_ = sequences, few_rows_ = few_rows;
    for (auto& step : plan_->steps) step->bind(arena_);
}

// Rows through all steps of a stage, as many at a time as leave what is between the steps in the second cache.
void Engine::compute_rows(const Stage& stage, int64_t begin, int64_t end) const {
    const int64_t fit = CACHED_BYTES / (4 * plan_->widest + 1), most = fit < 12 ? 12 : fit > 96 ? 96 : fit / 12 * 12;
    const int64_t chunks = (end - begin + most - 1) / most;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const int64_t first = begin + (end - begin) * chunk / chunks;
        const int64_t last = begin + (end - begin) * (chunk + 1) / chunks;
        for (size_t i = stage.begin; i < stage.end; i++)
            for (const Step* step : plan_->sections[i].steps)
                if (wanted(plan_->sections[i])) step->rows(kernels_, first, last);
    }
}

// A thread's own pieces first, in one go, and then free ones.
void Engine::share_out(size_t section, int64_t thread) {
    const Step& step = *plan_->sections[section].steps.front();
    const int64_t threads = pool_.threads();
    if (threads == 1 || !step.dealt()) return step.share(kernels_, {thread, thread + 1, threads}, size_t(thread));
    const int64_t all = PIECES * threads, first = PIECES * thread;
    step.share(kernels_, {first, first + OWN_PIECES, all}, size_t(thread));
    std::atomic<int64_t>& taken = taken_[section].pieces;
    for (int64_t n; (n = taken.fetch_add(1, std::memory_order_relaxed)) < FREE_PIECES * threads;) {
        const int64_t piece = n / FREE_PIECES * PIECES + OWN_PIECES + n % FREE_PIECES;
        step.share(kernels_, {piece, piece + 1, all}, size_t(threads + n));
    }
}

void Engine::compute(int64_t thread) {
    const int64_t threads = pool_.threads();
    for (const Stage& stage : plan_->stages) {
        const int64_t rows = batch_.rows(stage.kind);
        const int64_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
        const bool many = stage.by_rows && rows >= MANY_ROWS * threads;
        if (many) compute_rows(stage, begin, end);
        for (size_t i = stage.begin; i < stage.end && !many; i++) {
            const Section& section = plan_->sections[i];
            if (!wanted(section)) continue;
            if (i > stage.begin) pool_.barrier();
            if (!section.steps.front()->by_rows()) {
                share_out(i, thread);
                continue;
            }
            for (int64_t row = begin; row < end; row += TOGETHER)
                for (const Step* step : section.steps)
                    step->rows(kernels_, row, row + TOGETHER < end ? row + TOGETHER : end);
        }
        if (&stage != &plan_->stages.back()) pool_.barrier();
    }
}

const BufferSpec& Engine::answer(int64_t buffer) const {
    for (const int64_t known : plan_->answers)
        if (known == buffer) return plan_->buffers[size_t(buffer)];
    refuse("the buffer " + std::to_string(buffer) + " as an answer", "the program's output or a search's",
           "ask for one of them");
}

void Engine::run(int64_t output, float* result, int64_t room) {
    const Batch& batch = batch_;
    output_ = output;
    const BufferSpec spec = output == NOTHING ? BufferSpec{0, RowKind::sequence} : answer(output);
    if (plan_->wants_ids && !batch.ids) refuse("no token ids", "some", "give the ids of all sequences");
    if (plan_->wants_caches && !batch.caches) refuse("no caches", "those of earlier tokens", "call forward");
    if (plan_->wants_features && !batch.features) refuse("no features", "a row a token", "give fp32 rows");
    const int64_t rows = batch.rows(spec.rows);
    if (room < rows * spec.width) refuse("too little room", std::to_string(rows * spec.width) + " numbers");
    make_room(batch.tokens, batch.sequences, batch.caches ? batch.few_rows : 0);
    for (auto& step : plan_->steps) step->accept(batch);
    for (size_t i = 0; i < plan_->sections.size(); i++) taken_[i].pieces.store(0, std::memory_order_relaxed);
    pool_.run([](void* engine, int64_t thread) { static_cast<Engine*>(engine)->compute(thread); }, this);
    if (!spec.width) return;
    const Rows& made = arena_.buffers[size_t(output)];
    for (int64_t row = 0; row < rows; row++)
        std::memcpy(result + row * made.width, made.data + row * made.stride, size_t(made.width) * 4);
}

}  // namespace hasten
