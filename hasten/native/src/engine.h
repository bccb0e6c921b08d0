// One program that runs: its plan, threads and scratch memory. One call at a time.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "plan.h"
#include "pool.h"

namespace hasten {

constexpr int64_t NOTHING = -1;  // no answer is asked for

class Engine {
public:
    // Throws Refusal.
    Engine(const ProgramSpec& program, const Kernels& kernels, const PackedFile& packed, int64_t threads,
           std::vector<int> cores);

    const char* isa() const { return kernels_.name; }
    int64_t width() const { return plan_->buffers[size_t(plan_->output)].width; }
    bool by_token() const { return plan_->buffers[size_t(plan_->output)].rows == RowKind::token; }
    // Throws Refusal for a buffer that is no answer.
    const BufferSpec& answer(int64_t buffer) const;
    // Throws Refusal; `result` has room for `room` numbers of the buffer `output`, or for none with NOTHING.
    void run(int64_t output, float* result, int64_t room);
    int64_t output() const { return plan_->output; }
    const Store& weights() const { return plan_->weights; }
    // What `run` runs: filled before, kept so that nothing is allocated for the next.
    Batch& batch() { return batch_; }
    Caches& caches() { return caches_; }

private:
    void make_room(int64_t tokens, int64_t sequences, int64_t few_rows);
    void compute(int64_t thread);
    void compute_rows(const Stage& stage, int64_t begin, int64_t end) const;
    void share_out(size_t section, int64_t thread);
    bool wanted(const Section& section) const { return section.serves == NOTHING || section.serves == output_; }

    // Free pieces of a section that somebody has taken.
    struct alignas(64) Taken {
        std::atomic<int64_t> pieces{0};
    };

    const Kernels& kernels_;
    std::unique_ptr<Plan> plan_;
    std::unique_ptr<Taken[]> taken_;  // one a section
    Pool pool_;
    Store scratch_;
    Arena arena_;
    int64_t tokens_ = 0, sequences_ = 0, few_rows_ = 0;  // there is room for
    Batch batch_;
    Caches caches_;
    int64_t output_ = NOTHING;  // of this call
};

}  // namespace hasten
