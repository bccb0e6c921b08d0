// A few threads that compute together, and a barrier among them.
//
// The caller is thread 0; the others wait for work by spinning a little and then sleep, so that an idle pool costs
// nothing. One call at a time (the caller sees to that).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace hasten {

class Pool {
public:
    using Work = void (*)(void* what, int64_t thread);

    // `cores`: thread i is pinned to cores[i % size]; the caller's thread is not, but leaves the cores of the others.
    // Empty: nobody is pinned.
    Pool(int64_t threads, std::vector<int> cores);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int64_t threads() const { return threads_; }
    // Every thread calls work(what, its number); back when all are done.
    void run(Work work, void* what);
    // Within `run`: waits for all threads.
    void barrier();

private:
    void serve(int64_t thread);
    bool wait_for_work(uint64_t seen);

    const int64_t threads_;
    const std::vector<int> cores_;
    Work work_ = nullptr;
    void* what_ = nullptr;
    alignas(64) std::atomic<uint64_t> calls_{0};
    alignas(64) std::atomic<int64_t> arrived_{0};
    alignas(64) std::atomic<uint64_t> phase_{0};
    alignas(64) std::atomic<int64_t> sleeping_{0};
    std::atomic<bool> ended_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> others_;
};

}  // namespace hasten
