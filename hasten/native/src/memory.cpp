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
}

void Store::Free::operator()(uint8_t* p) const { std::free(p); }

void* Store::take(int64_t bytes) {
    bytes = up_to(bytes < 64 ? 64 : bytes, 64);
    if (used_ + bytes > size_) {
        // A small store stays small: the first chunk is what was asked for.
        const int64_t least = chunks_.empty() ? bytes : bytes > CHUNK ? bytes : CHUNK;
        const int64_t page = least >= LARGE_PAGE ? LARGE_PAGE : 4096, size = up_to(least, page);
        auto* p = static_cast<uint8_t*>(std::aligned_alloc(static_cast<size_t>(page), static_cast<size_t>(size)));
        if (!p) throw std::bad_alloc();
        chunks_.emplace_back(p);
#ifdef __linux__
        if (page == LARGE_PAGE) madvise(p, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
        used_ = 0, size_ = size;
    }
    uint8_t* piece = chunks_.back().get() + used_;
    used_ += bytes;
    std::memset(piece, 0, static_cast<size_t>(bytes));
    return piece;
}

}  // namespace hasten
