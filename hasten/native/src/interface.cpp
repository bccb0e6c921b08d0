// The C interface that shared_library.py calls. No exception crosses it: what went wrong is a message.
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>

#include "engine.h"

#define HASTEN_API extern "C" __attribute__((visibility("default")))

namespace {

using namespace hasten;

constexpr int64_t MOST_TOKENS = 1 << 24;

void write_message(const std::string& words, char* message, int64_t room) {
    if (room <= 0) return;
    const size_t count = std::min(words.size(), static_cast<size_t>(room - 1));
    std::memcpy(message, words.data(), count);
    message[count] = 0;
}

template <class Work>
bool guarded(Work work, char* message, int64_t room) {
    try {
        work();
        return true;
    } catch (const Refusal& refusal) {
        write_message(refusal.words, message, room);
    } catch (const std::bad_alloc&) {
        write_message("too little memory|room for weights and scratch|run smaller batches", message, room);
    } catch (const std::exception& error) {
        write_message(std::string(error.what()) + "|threads and memory|ask for fewer threads", message, room);
    }
    return false;
}

void lay_out(Batch& batch, const int32_t* lengths, int64_t sequences) {
    if (sequences < 1) refuse("no sequences", "at least one", "give the length of each");
    int64_t total = 0;
    for (int64_t s = 0; s < sequences; s++) {
        if (lengths[s] < 1)
            refuse("a sequence of " + std::to_string(lengths[s]) + " tokens", "at least 1", "leave it out");
        total += lengths[s];
        batch.longest = std::max<int64_t>(batch.longest, lengths[s]);
    }
    if (total > MOST_TOKENS)
        refuse(std::to_string(total) + " tokens", std::to_string(MOST_TOKENS) + " at most", "run smaller batches");
    batch.tokens = total, batch.sequences = sequences;
    batch.starts.reserve(static_cast<size_t>(sequences) + 1);
    batch.places.reserve(static_cast<size_t>(total));
    batch.starts.push_back(0);
    for (int64_t s = 0; s < sequences; s++) {
        batch.starts.push_back(batch.starts.back() + lengths[s]);
        for (int32_t place = 0; place < lengths[s]; place++) batch.places.push_back(place);
    }
}

}  // namespace

HASTEN_API const char* hasten_stamp() { return HASTEN_STAMP; }

HASTEN_API const char* hasten_isas() { return isas_here(); }

// `shape`: [width of a row of the output, 1 if there is a row a token]. Null: see `message`.
HASTEN_API void* hasten_open(const int64_t* words, int64_t count, const uint64_t* places, const int64_t* sizes,
                             int64_t arrays, const char* isa, int64_t threads, const int32_t* cores, int64_t pinned,
                             int64_t* shape, char* message, int64_t room) {
    Engine* engine = nullptr;
    guarded([&] {
        if (threads < 1 || threads > MAX_THREADS)
            refuse(std::to_string(threads) + " threads", "1 to " + std::to_string(MAX_THREADS), "one a core");
        const Kernels* kernels = kernels_named(isa);
        if (!kernels) refuse(std::string("the instruction set ") + isa, isas_here(), "name one of them");
        std::vector<Array> given;
        for (int64_t i = 0; i < arrays; i++) given.push_back({reinterpret_cast<const uint8_t*>(places[i]), sizes[i]});
        const std::vector<int> pins(cores, cores + pinned);
        engine = new Engine(read_program(words, count, given), *kernels, threads, pins);
        shape[0] = engine->width(), shape[1] = engine->by_token();
    }, message, room);
    return engine;
}

HASTEN_API const char* hasten_isa_of(const void* engine) { return static_cast<const Engine*>(engine)->isa(); }

// 0, or 1 and a message.
HASTEN_API int32_t hasten_run(void* engine, const int32_t* ids, const int32_t* types, const int32_t* lengths,
                              int64_t sequences, const float* features, int64_t feature_rows, int64_t feature_width,
                              float* result, int64_t size, char* message, int64_t room) {
    return guarded([&] {
        Batch batch;
        batch.ids = ids, batch.types = types, batch.features = features, batch.feature_width = feature_width;
        lay_out(batch, lengths, sequences);
        if (features && (feature_rows != batch.tokens || feature_width < 0))
            refuse(std::to_string(feature_rows) + " rows of features", std::to_string(batch.tokens) + " of them",
                   "give a row a token");
        static_cast<Engine*>(engine)->run(batch, result, size);
    }, message, room) ? 0 : 1;
}

HASTEN_API void hasten_close(void* engine) { delete static_cast<Engine*>(engine); }
