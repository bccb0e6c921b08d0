// The steps of a plan: each holds a kernel's task and the numbers of its buffers.
#pragma once

#include "plan.h"

namespace hasten {

constexpr int64_t NONE = -1;

class FeaturesStep : public Step {
public:
    explicit FeaturesStep(int64_t output) : output_(output) {}
    void bind(const Arena& arena) override { rows_ = arena.buffers[size_t(output_)]; }
    void accept(const Batch& batch) override;
    void rows(const Kernels&, int64_t begin, int64_t end) const override;

private:
    int64_t output_;
    Rows rows_;
    const float* from_ = nullptr;
};

class EmbedStep : public Step {
public:
    EmbedStep(int64_t output, const EmbedTask& task) : output_(output), task_(task) {}
    void bind(const Arena& arena) override { task_.output = arena.buffers[size_t(output_)]; }
    void accept(const Batch& batch) override;
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.embed(task_, begin, end); }

private:
    int64_t output_;
    EmbedTask task_;
};

class NormStep : public Step {
public:
    NormStep(int64_t input, int64_t output, int64_t residual, int64_t total, const NormTask& task)
        : input_(input), output_(output), residual_(residual), total_(total), task_(task) {}
    void bind(const Arena& arena) override;
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.norm(task_, begin, end); }

private:
    int64_t input_, output_, residual_, total_;
    NormTask task_;
};

class EncodeStep : public Step {
public:
    EncodeStep(int64_t buffer, int64_t codes) : buffer_(buffer), codes_(codes) {}
    void bind(const Arena& arena) override {
        from_ = arena.buffers[size_t(buffer_)], to_ = arena.codes[size_t(codes_)];
    }
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.encode(from_, to_, begin, end); }

private:
    int64_t buffer_, codes_;
    Rows from_;
    Codes to_;
};

class LinearStep : public Step {
public:
    // `codes`: the number of the input's codes, or NONE.
    LinearStep(int64_t input, int64_t output, int64_t residual, int64_t codes, RowKind kind, const Matrix& weight,
               const LinearTask& task)
        : input_(input), output_(output), residual_(residual), codes_(codes), kind_(kind), task_(task) {
        task_.weight = &weight;
    }
    void bind(const Arena& arena) override;
    void accept(const Batch& batch) override { task_.rows = batch.rows(kind_); }
    bool by_rows() const override { return false; }
    bool either_way() const override { return true; }
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.linear(task_, begin, end, {0, 1, 1}); }
    bool dealt() const override { return task_.rows <= DEALT_ROWS; }
    void share(const Kernels& k, const Share& share, size_t) const override { k.linear(task_, 0, task_.rows, share); }

private:
    int64_t input_, output_, residual_, codes_;
    RowKind kind_;
    LinearTask task_;
};

// A search: every share finds its best, `MergeStep` the best of those.
class TopStep : public Step {
public:
    TopStep(int64_t input, int64_t codes, int64_t best, RowKind kind, const Matrix& weight, const LinearTask& task)
        : input_(input), codes_(codes), best_(best), kind_(kind), task_(task) {
        task_.weight = &weight;
    }
    void bind(const Arena& arena) override;
    void accept(const Batch& batch) override { task_.rows = batch.rows(kind_); }
    bool by_rows() const override { return false; }
    bool dealt() const override { return true; }
    void share(const Kernels& k, const Share& share, size_t place) const override {
        k.top(task_, found_[place], share);
    }

private:
    int64_t input_, codes_, best_;
    RowKind kind_;
    LinearTask task_;
    std::vector<Best> found_;
};

class MergeStep : public Step {
public:
    MergeStep(int64_t output, int64_t best) : output_(output), best_(best) {}
    void bind(const Arena& arena) override {
        to_ = arena.buffers[size_t(output_)], found_ = arena.best[size_t(best_)];
    }
    void rows(const Kernels&, int64_t begin, int64_t end) const override;

private:
    int64_t output_, best_;
    Rows to_;
    std::vector<Best> found_;
};

class HeadNormStep : public Step {
public:
    HeadNormStep(int64_t input, const HeadNormTask& task) : input_(input), task_(task) {}
    void bind(const Arena& arena) override { task_.input = arena.buffers[size_t(input_)]; }
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.head_norm(task_, begin, end); }

private:
    int64_t input_;
    HeadNormTask task_;
};

// The caller's cache of one layer, as a kernel wants it. Throws Refusal for other sizes.
Cache cache_of(const Batch& batch, int64_t layer, int64_t kv_heads, int64_t head_dim);

// This step's keys and values into the cache.
class KeepStep : public Step {
public:
    KeepStep(int64_t input, int64_t layer, const AttentionTask& task) : input_(input), layer_(layer), task_(task) {}
    void bind(const Arena& arena) override { task_.input = arena.buffers[size_t(input_)]; }
    void accept(const Batch& batch) override {
        cache_ = cache_of(batch, layer_, task_.kv_heads, task_.head_dim), task_.cache = &cache_;
    }
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.keep(task_, begin, end); }

private:
    int64_t input_, layer_;
    AttentionTask task_;
    Cache cache_;
};

class AttentionStep : public Step {
public:
    // `layer`: of the caller's cache, or NONE.
    AttentionStep(int64_t input, int64_t output, int64_t layer, const AttentionTask& task)
        : input_(input), output_(output), layer_(layer), task_(task) {}
    void bind(const Arena& arena) override;
    void accept(const Batch& batch) override;
    bool by_rows() const override { return false; }
    void share(const Kernels& k, const Share& share, size_t place) const override {
        k.attention(task_, scratch_[place], share);
    }
    const AttentionTask& task() const { return task_; }

private:
    int64_t input_, output_, layer_;
    AttentionTask task_;
    Cache cache_;
    std::vector<float*> scratch_;
};

// What the shares of an attention over a cache found of the same row.
class GatherStep : public Step {
public:
    explicit GatherStep(const AttentionStep& attention) : task_(attention.task()) {}
    void bind(const Arena&) override {}
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.gather(task_, begin, end); }

private:
    const AttentionTask& task_;
};

class PoolStep : public Step {
public:
    PoolStep(int64_t input, int64_t output, PoolKind kind) : input_(input), output_(output), kind_(kind) {}
    void bind(const Arena& arena) override {
        from_ = arena.buffers[size_t(input_)], to_ = arena.buffers[size_t(output_)];
    }
    void accept(const Batch& batch) override { starts_ = batch.starts.data(), sequences_ = batch.sequences; }
    bool by_rows() const override { return false; }
    void share(const Kernels&, const Share& share, size_t) const override;

private:
    void pool_one(int64_t sequence) const;
    int64_t input_, output_;
    PoolKind kind_;
    Rows from_, to_;
    const int32_t* starts_ = nullptr;
    int64_t sequences_ = 0;
};

// Normalize, Activate and Add: of one or two buffers into one.
class SimpleStep : public Step {
public:
    SimpleStep(Code code, int64_t input, int64_t other, int64_t output, Act act, float eps)
        : code_(code), input_(input), other_(other), output_(output), act_(act), eps_(eps) {}
    void bind(const Arena& arena) override;
    void rows(const Kernels& k, int64_t begin, int64_t end) const override;

private:
    Code code_;
    int64_t input_, other_, output_;
    Act act_;
    float eps_;
    Rows from_, with_, to_;
};

class RotaryStep : public Step {
public:
    RotaryStep(int64_t input, Turns& turns, const RotaryTask& task) : input_(input), turns_(turns), task_(task) {}
    void bind(const Arena& arena) override { task_.input = arena.buffers[size_t(input_)]; }
    void accept(const Batch& batch) override;
    void rows(const Kernels& k, int64_t begin, int64_t end) const override { k.rotary(task_, begin, end); }

private:
    int64_t input_;
    Turns& turns_;
    RotaryTask task_;
};

// A softmax over a product's outputs: every share has its own, `TellStep` puts them together.
class ForetellStep : public Step {
public:
    ForetellStep(int64_t input, int64_t codes, int64_t said, const Matrix& weight, const LinearTask& task)
        : input_(input), codes_(codes), said_(said), task_(task) {
        task_.weight = &weight;
    }
    void bind(const Arena& arena) override;
    void accept(const Batch& batch) override;
    bool by_rows() const override { return false; }
    bool dealt() const override { return true; }
    void share(const Kernels& k, const Share& share, size_t place) const override {
        k.foretell(task_, following_.data(), found_[place], share);
    }

private:
    int64_t input_, codes_, said_;
    LinearTask task_;
    std::vector<int32_t> following_;
    std::vector<Said> found_;
};

class TellStep : public Step {
public:
    TellStep(int64_t output, int64_t said) : output_(output), said_(said) {}
    void bind(const Arena& arena) override {
        to_ = arena.buffers[size_t(output_)], found_ = arena.said[size_t(said_)];
    }
    void rows(const Kernels&, int64_t begin, int64_t end) const override;

private:
    int64_t output_, said_;
    Rows to_;
    std::vector<Said> found_;
};

}  // namespace hasten
