// Memory that kernels read: aligned, zeroed, in large pages where the system has them.
#pragma once

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
    struct Free {
        void operator()(uint8_t* p) const;
    };
    std::vector<std::unique_ptr<uint8_t, Free>> chunks_;
    int64_t used_ = 0, size_ = 0;
};

constexpr int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace hasten
