// Memory that kernels read: aligned, zeroed, in large pages where the system has them and they will be filled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace hasten {

// Pieces are given out one after the other and freed together.
class Store {
public:
    // Zeroed, aligned to 64 bytes. Throws std::bad_alloc.
    void* take(int64_t bytes);

    template <class T>
    T* take_of(int64_t count) {
        return static_cast<T*>(take(count * static_cast<int64_t>(sizeof(T))));
    }

    // About so many bytes will be taken: they get one room, so that nothing is left over between pieces.
    void expect(int64_t bytes);

    // From now on pieces are read from an open file, in the order in which they are taken: `bytes` in all. Throws
    // Refusal where it holds fewer.
    void read_from(int file, int64_t bytes);
    // Do pieces come with their contents? Then nobody fills them.
    bool filled() const { return file_ >= 0; }
    // All pieces into an open file, one after the other. Throws Refusal where it takes no more.
    void write_to(int file) const;
    int64_t bytes() const;
    // Of what the pieces hold; another one for almost every damage.
    uint64_t checksum() const;
    int64_t left_in_file() const { return left_in_file_; }

private:
    struct Piece {
        uint8_t* data;
        int64_t bytes;
    };
    // Mapped memory knows its size, other memory has 0.
    struct Free {
        size_t mapped = 0;
        void operator()(uint8_t* p) const;
    };
    using Chunk = std::unique_ptr<uint8_t, Free>;
    static Chunk chunk_of(int64_t bytes, bool large_pages);
    void fill(const Piece& piece);

    std::vector<Chunk> chunks_;
    uint8_t* next_ = nullptr;
    int64_t left_ = 0;
    std::vector<Piece> pieces_;
    int file_ = -1;
    int64_t left_in_file_ = 0;
};

constexpr int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace hasten
