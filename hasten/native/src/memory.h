// Memory that kernels read: aligned, zeroed, in large pages where the system has them.
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

private:
    // Mapped memory knows its size, other memory has 0.
    struct Free {
        size_t mapped = 0;
        void operator()(uint8_t* p) const;
    };
    using Chunk = std::unique_ptr<uint8_t, Free>;
    static Chunk chunk_of(int64_t bytes);

    std::vector<Chunk> chunks_;
    uint8_t* next_ = nullptr;
    int64_t left_ = 0;
};

constexpr int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace hasten
