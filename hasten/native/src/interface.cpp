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
    batch.starts.assign(1, 0);
    for (int64_t s = 0; s < sequences; s++) {
        if (lengths[s] < 1)
            refuse("a sequence of " + std::to_string(lengths[s]) + " tokens", "at least 1", "leave it out");
        total += lengths[s];
        if (total > MOST_TOKENS)
            refuse("more than " + std::to_string(MOST_TOKENS) + " tokens", "fewer", "run smaller batches");
        batch.starts.push_back(static_cast<int32_t>(total));
    }
    batch.tokens = total, batch.sequences = sequences, batch.last_place = 0;
}

// Each sequence from its beginning.
void count_places(Batch& batch) {
    batch.places.clear();
    for (int64_t s = 0; s < batch.sequences; s++) {
        const int32_t length = batch.starts[size_t(s) + 1] - batch.starts[size_t(s)];
        for (int32_t place = 0; place < length; place++) batch.places.push_back(place);
        batch.last_place = std::max<int64_t>(batch.last_place, length - 1);
    }
}

// Places that the caller gives, rising within a sequence, and the blocks where its keys lie.
void take_places(Batch& batch, const int32_t* places, const Caches& caches) {
    batch.places.assign(places, places + batch.tokens);
    batch.few.assign(size_t(batch.tokens), -1), batch.few_rows = 0;
    const int64_t blocks = caches.slots / caches.block_size;
    for (int64_t s = 0; s < batch.sequences; s++) {
        const int64_t first = batch.starts[size_t(s)], end = batch.starts[size_t(s) + 1];
        for (int64_t t = first; t < end; t++) {
            if (places[t] < 0 || (t > first && places[t] <= places[t - 1]))
                refuse("the position " + std::to_string(places[t]), "rising ones from 0 on", "give each token its own");
            if (caches.slot_of[t] < -1 || caches.slot_of[t] >= caches.slots)
                refuse("the slot " + std::to_string(caches.slot_of[t]), "-1 to " + std::to_string(caches.slots - 1),
                       "give slots of the cache");
        }
        const int64_t last = places[end - 1], needed = last / caches.block_size + 1;
        if (needed > caches.table_width)
            refuse("a table of " + std::to_string(caches.table_width) + " blocks", std::to_string(needed) + " blocks",
                   "give the blocks of all keys");
        for (int64_t b = 0; b < needed; b++) {
            const int32_t block = caches.tables[s * caches.table_width + b];
            if (block < 0 || block >= blocks)
                refuse("block " + std::to_string(block), "0 to " + std::to_string(blocks - 1), "give real blocks");
        }
        batch.last_place = std::max(batch.last_place, last);
        for (int64_t t = first; t < end && end - first <= FEW_ROWS; t++)
            batch.few[size_t(t)] = static_cast<int32_t>(batch.few_rows++);
    }
}

}  // namespace

HASTEN_API const char* hasten_stamp() { return HASTEN_STAMP; }

HASTEN_API const char* hasten_isas() { return isas_here(); }

// `packed`: an open file with weights that `hasten_save` wrote [file, bytes, checksum], a file of -1 for none. `shape`:
// [width of a row of the output, 1 if there is a row a token]. Null: see `message`.
HASTEN_API void* hasten_open(const int64_t* words, int64_t count, const uint64_t* places, const int64_t* sizes,
                             int64_t arrays, const int64_t* packed, const char* isa, int64_t threads,
                             const int32_t* cores, int64_t pinned, int64_t* shape, char* message, int64_t room) {
    Engine* engine = nullptr;
    guarded([&] {
        if (threads < 1 || threads > MAX_THREADS)
            refuse(std::to_string(threads) + " threads", "1 to " + std::to_string(MAX_THREADS), "one a core");
        const Kernels* kernels = kernels_named(isa);
        if (!kernels) refuse(std::string("the instruction set ") + isa, isas_here(), "name one of them");
        std::vector<Array> given;
        for (int64_t i = 0; i < arrays; i++) given.push_back({reinterpret_cast<const uint8_t*>(places[i]), sizes[i]});
        const std::vector<int> pins(cores, cores + pinned);
        const PackedFile kept{static_cast<int>(packed[0]), packed[1], static_cast<uint64_t>(packed[2])};
        engine = new Engine(read_program(words, count, given), *kernels, kept, threads, pins);
        shape[0] = engine->width(), shape[1] = engine->by_token();
    }, message, room);
    return engine;
}

// The packed weights into an open file; `packed`: [bytes, checksum]. 0, or 1 and a message.
HASTEN_API int32_t hasten_save(const void* engine, int32_t file, int64_t* packed, char* message, int64_t room) {
    return guarded([&] {
        const Store& weights = static_cast<const Engine*>(engine)->weights();
        packed[0] = weights.bytes(), packed[1] = static_cast<int64_t>(weights.checksum());
        weights.write_to(file);
    }, message, room) ? 0 : 1;
}

HASTEN_API const char* hasten_isa_of(const void* engine) { return static_cast<const Engine*>(engine)->isa(); }

// 0, or 1 and a message.
HASTEN_API int32_t hasten_run(void* engine, const int32_t* ids, const int32_t* types, const int32_t* lengths,
                              int64_t sequences, const float* features, int64_t feature_rows, int64_t feature_width,
                              float* result, int64_t size, char* message, int64_t room) {
    return guarded([&] {
        Engine& own = *static_cast<Engine*>(engine);
        Batch& batch = own.batch();
        batch.ids = ids, batch.types = types, batch.features = features, batch.feature_width = feature_width;
        batch.caches = nullptr;
        lay_out(batch, lengths, sequences);
        count_places(batch);
        if (features && (feature_rows != batch.tokens || feature_width < 0))
            refuse(std::to_string(feature_rows) + " rows of features", std::to_string(batch.tokens) + " of them",
                   "give a row a token");
        own.run(own.output(), result, size);
    }, message, room) ? 0 : 1;
}

// 0, or 1 and a message. `shape`: as in hasten_open, of the buffer `output`.
HASTEN_API int32_t hasten_answer(const void* engine, int64_t output, int64_t* shape, char* message, int64_t room) {
    return guarded([&] {
        const BufferSpec& found = static_cast<const Engine*>(engine)->answer(output);
        shape[0] = found.width, shape[1] = found.rows == RowKind::token;
    }, message, room) ? 0 : 1;
}

// `output`: the buffer that is asked for, -1 for none. `shape`: [kind, slots, block size, table width, layers];
// `places` and `sizes`: keys, values and their scales of each layer, of as many bytes. All other arrays have the
// lengths that those before them make.
HASTEN_API int32_t hasten_forward(void* engine, const int32_t* ids, const int32_t* positions, const int32_t* slots,
                                  const int32_t* lengths, int64_t sequences, const int32_t* tables,
                                  const int64_t* shape, const uint64_t* places, const int64_t* sizes, int64_t output,
                                  float* result, int64_t size, char* message, int64_t room) {
    return guarded([&] {
        Engine& own = *static_cast<Engine*>(engine);
        Batch& batch = own.batch();
        Caches& caches = own.caches();
        if (shape[0] < 1 || shape[0] > 3 || shape[1] < 1 || shape[1] > INT32_MAX || shape[2] < 1 || shape[3] < 0)
            refuse("a cache of another shape", "fp32, bf16 or int8 in blocks of slots", "make one for this engine");
        caches.kind = static_cast<Kind>(shape[0]), caches.slots = shape[1], caches.block_size = shape[2];
        caches.table_width = shape[3], caches.tables = tables, caches.slot_of = slots;
        caches.layers.clear();
        for (int64_t i = 0; i < shape[4]; i++) {
            const uint64_t* p = places + i * 4;
            const int64_t* bytes = sizes + i * 4;
            if (bytes[0] != bytes[1] || bytes[2] != bytes[3])
                refuse("keys and values of other sizes", "as many of both", "make a cache for this engine");
            const auto at = [&](int n) { return reinterpret_cast<uint8_t*>(p[n]); };
            const auto scales = [&](int n) { return reinterpret_cast<float*>(p[n]); };
            caches.layers.push_back({at(0), at(1), scales(2), scales(3), bytes[0], bytes[2]});
        }
        batch.ids = ids, batch.types = nullptr, batch.features = nullptr, batch.feature_width = 0;
        batch.caches = &caches;
        lay_out(batch, lengths, sequences);
        take_places(batch, positions, caches);
        own.run(output, result, size);
    }, message, room) ? 0 : 1;
}

HASTEN_API void hasten_close(void* engine) { delete static_cast<Engine*>(engine); }
