// One program that runs: its plan, threads and scratch memory. One call at a time.
#pragma once

#include <memory>
#include <vector>

#include "plan.h"
#include "pool.h"

namespace hasten {

class Engine {
public:
    // Throws Refusal.
    Engine(const ProgramSpec& program, const Kernels& kernels, int64_t threads, std::vector<int> cores);

    const char* isa() const { return kernels_.name; }
    int64_t width() const { return plan_->buffers[size_t(plan_->output)].width; }
    bool by_token() const { return plan_->buffers[size_t(plan_->output)].rows == RowKind::token; }
    // Throws Refusal; `result` has room for `room` numbers.
    void run(float* result, int64_t room);
    // What `run` runs: filled before, kept so that nothing is allocated for the next.
    Batch& batch() { return batch_; }
    Caches& caches() { return caches_; }

private:
    void make_room(int64_t tokens, int64_t sequences);
    void compute(int64_t thread);
    void compute_rows(const Stage& stage, int64_t begin, int64_t end) const;

    const Kernels& kernels_;
    std::unique_ptr<Plan> plan_;
    Pool pool_;
    Store scratch_;
    Arena arena_;
    int64_t tokens_ = 0, sequences_ = 0;  // there is room for
    Batch batch_;
    Caches caches_;
};

}  // namespace hasten
