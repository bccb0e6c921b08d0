#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif
#include <unistd.h>

#include "program.h"

namespace hasten {
namespace {

constexpr const char* REBUILD = "pack them again";
constexpr int64_t LARGE_PAGE = int64_t{2} << 20, CHUNK = int64_t{8} << 20;
// Of a large page that is touched all is taken, and scratch memory of less than this is mostly touched in part.
constexpr int64_t LARGE_SCRATCH = int64_t{32} << 20;

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

Store::Chunk Store::chunk_of(int64_t bytes, bool large_pages) {
#ifdef __linux__
    // Fresh pages are zero: nobody need write to them twice.
    if (bytes >= LARGE_PAGE && !APART) {
        const auto size = static_cast<size_t>(bytes);
        void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        if (large_pages) madvise(p, size, MADV_HUGEPAGE);
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
        chunks_.push_back(chunk_of(size, size >= LARGE_SCRATCH));
        next_ = chunks_.back().get(), left_ = size;
    }
    uint8_t* piece = next_;
    next_ += bytes, left_ -= bytes;
    pieces_.push_back({piece, bytes});
    if (filled()) fill(pieces_.back());
    return piece;
}

void Store::expect(int64_t bytes) {
#ifdef __linux__
    // What nobody writes to costs nothing.
    if (APART || bytes < CHUNK) return;
    const int64_t size = up_to(bytes, LARGE_PAGE);
    chunks_.push_back(chunk_of(size, true));
    next_ = chunks_.back().get(), left_ = size;
#else
    static_cast<void>(bytes);
#endif
}

void Store::read_from(int file, int64_t bytes) { file_ = file, left_in_file_ = bytes; }

void Store::fill(const Piece& piece) {
    if (piece.bytes > left_in_file_) refuse("packed weights that end early", "those of this program", REBUILD);
    left_in_file_ -= piece.bytes;
    for (int64_t done = 0; done < piece.bytes;) {
        const auto some = read(file_, piece.data + done, static_cast<size_t>(piece.bytes - done));
        if (some <= 0) refuse("packed weights that cannot be read", "those of this program", REBUILD);
        done += some;
    }
}

void Store::write_to(int file) const {
    for (const Piece& piece : pieces_) {
        for (int64_t done = 0; done < piece.bytes;) {
            const auto some = write(file, piece.data + done, static_cast<size_t>(piece.bytes - done));
            if (some <= 0) refuse("a file that takes no more", "room for packed weights", "free some space");
            done += some;
        }
    }
}

int64_t Store::bytes() const {
    int64_t all = 0;
    for (const Piece& piece : pieces_) all += piece.bytes;
    return all;
}

uint64_t Store::checksum() const {
    uint64_t lanes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (const Piece& piece : pieces_) {
        for (int64_t at = 0; at < piece.bytes; at += 64) {
            uint64_t words[8];
            std::memcpy(words, piece.data + at, 64);
            for (int i = 0; i < 8; i++) {
                const uint64_t mixed = (lanes[i] ^ words[i]) * 0x9e3779b97f4a7c15u;
                lanes[i] = mixed ^ mixed >> 29;
            }
        }
    }
    uint64_t all = 0;
    for (const uint64_t lane : lanes) all = (all ^ lane) * 0xbf58476d1ce4e5b9u, all ^= all >> 31;
    return all;
}

}  // namespace hasten
