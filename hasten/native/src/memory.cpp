#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hasten {
namespace {

constexpr int64_t LARGE_PAGE = int64_t{2} << 20, CHUNK = int64_t{8} << 20;

// A finder of faults sees what lies behind a piece only where nothing of ours does.
#ifdef __SANITIZE_ADDRESS__
constexpr bool APART = true;
#else
constexpr bool APART = false;
#endif

}  // namespace

void Store::Free::operator()(uint8_t* p) const {
#ifdef __linux__
    if (mapped) {
        munmap(p, mapped);
        return;
    }
#endif
    std::free(p);
}

Store::Chunk Store::chunk_of(int64_t bytes) {
#ifdef __linux__
    // Fresh pages are zero: nobody need write to them twice.
    if (bytes >= LARGE_PAGE && !APART) {
        const auto size = static_cast<size_t>(bytes);
        void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        madvise(p, size, MADV_HUGEPAGE);
        return Chunk(static_cast<uint8_t*>(p), Free{size});
    }
#endif
    auto* p = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, static_cast<size_t>(bytes));
    return Chunk(p, Free{});
}

void* Store::take(int64_t bytes) {
    bytes = up_to(bytes < 64 ? 64 : bytes, 64);
    if (APART || bytes > left_) {
        // A small store stays small: its first chunk is what was asked for.
        const int64_t least = APART || chunks_.empty() || bytes > CHUNK ? bytes : CHUNK;
        const int64_t size = least >= LARGE_PAGE ? up_to(least, LARGE_PAGE) : least;
        chunks_.push_back(chunk_of(size));
        next_ = chunks_.back().get(), left_ = size;
    }
    uint8_t* piece = next_;
    next_ += bytes, left_ -= bytes;
    return piece;
}

}  // namespace hasten
