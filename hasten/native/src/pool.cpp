#include "pool.h"

#include <chrono>
#include <utility>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hasten {
namespace {

// Requests that follow each other this closely wake nobody.
constexpr auto AWAKE = std::chrono::microseconds(300);
constexpr int PATIENCE = 4096;

void breathe() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void pin(int core) {
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    if (core < 0 || core >= CPU_SETSIZE) return;
    CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // refused: the thread runs where it may
#else
    static_cast<void>(core);
#endif
}

// The caller's thread away from a core that another thread is pinned to: both would get half of it. Where it may run
// stays as it was.
void step_aside(const std::vector<int>& cores, int64_t threads) {
#ifdef __linux__
    const int here = sched_getcpu();
    bool taken = false;
    for (size_t t = 1; t < cores.size() && t < static_cast<size_t>(threads); t++) taken = taken || cores[t] == here;
    cpu_set_t before, own;
    if (!taken || here == cores[0] || cores[0] < 0 || cores[0] >= CPU_SETSIZE) return;
    if (pthread_getaffinity_np(pthread_self(), sizeof before, &before) || !CPU_ISSET(cores[0], &before)) return;
    CPU_ZERO(&own);
    CPU_SET(cores[0], &own);
    if (!pthread_setaffinity_np(pthread_self(), sizeof own, &own))
        pthread_setaffinity_np(pthread_self(), sizeof before, &before);
#else
    static_cast<void>(cores), static_cast<void>(threads);
#endif
}

}  // namespace

Pool::Pool(int64_t threads, std::vector<int> cores) : threads_(threads), cores_(std::move(cores)) {
    others_.reserve(static_cast<size_t>(threads));
    try {
        for (int64_t t = 1; t < threads; t++) others_.emplace_back([this, t] { serve(t); });
    } catch (...) {
        ended_.store(true);
        { std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
        for (auto& other : others_) other.join();
        throw;
    }
}

Pool::~Pool() {
    ended_.store(true);
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
    for (auto& other : others_) other.join();
}

void Pool::run(Work work, void* what) {
    if (!cores_.empty()) step_aside(cores_, threads_);
    work_ = work;
    what_ = what;
    calls_.fetch_add(1);
    if (sleeping_.load() > 0) {
        { std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    work(what, 0);
    barrier();
}

void Pool::barrier() {
    if (threads_ == 1) return;
    const uint64_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int tries = 0; phase_.load(std::memory_order_acquire) == phase; tries++) {
        if (tries < PATIENCE) breathe();
        else std::this_thread::yield();  // somebody else may need this core to arrive
    }
}

bool Pool::wait_for_work(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + AWAKE;
    while (calls_.load(std::memory_order_acquire) == seen) {
        if (ended_.load(std::memory_order_relaxed)) return false;
        for (int i = 0; i < 32 && calls_.load(std::memory_order_relaxed) == seen; i++) breathe();
        if (std::chrono::steady_clock::now() < until) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return calls_.load() != seen || ended_.load(); });
        sleeping_.fetch_sub(1);
    }
    return true;
}

void Pool::serve(int64_t thread) {
    if (!cores_.empty()) pin(cores_[static_cast<size_t>(thread) % cores_.size()]);
    uint64_t seen = 0;
    while (wait_for_work(seen)) {
        seen++;
        work_(what_, thread);
        barrier();
    }
}

}  // namespace hasten
