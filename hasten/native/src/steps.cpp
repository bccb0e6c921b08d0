#include "steps.h"

#include <cstring>

namespace hasten {
namespace {

std::string text(int64_t n) { return std::to_string(n); }

void check_within(const int32_t* values, int64_t count, int64_t most, const char* what) {
    for (int64_t i = 0; i < count; i++)
        if (values[i] < 0 || values[i] >= most)
            refuse(std::string(what) + " " + text(values[i]) + " at place " + text(i), "0 to " + text(most - 1),
                   "use the tokenizer of this model");
}

void check_length(const Batch& batch, int64_t most) {
    if (batch.longest > most)
        refuse("a sequence of " + text(batch.longest) + " tokens", "at most " + text(most), "cut longer inputs");
}

}  // namespace

void FeaturesStep::accept(const Batch& batch) {
    if (batch.feature_width != rows_.width)
        refuse("features of width " + text(batch.feature_width), "width " + text(rows_.width), "give such rows");
    from_ = batch.features;
}

void FeaturesStep::rows(const Kernels&, int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; row++) {
        float* to = rows_.data + row * rows_.stride;
        if (rows_.width) std::memcpy(to, from_ + row * rows_.width, static_cast<size_t>(rows_.width) * 4);
        for (int64_t k = rows_.width; k < up_to(rows_.width, PANEL); k++) to[k] = 0;
    }
}

void EmbedStep::accept(const Batch& batch) {
    check_within(batch.ids, batch.tokens, task_.words.rows, "token id");
    if (task_.positions.rows) check_length(batch, task_.positions.rows - task_.first_position);
    if (task_.types.rows && batch.types) check_within(batch.types, batch.tokens, task_.types.rows, "token type");
    task_.ids = batch.ids, task_.kinds = batch.types, task_.places = batch.places.data();
}

void NormStep::bind(const Arena& arena) {
    task_.input = arena.buffers[size_t(input_)];
    task_.output = arena.buffers[size_t(output_)];
    if (residual_ != NONE) {
        const Rows& rows = arena.buffers[size_t(residual_)];
        task_.residual = rows.data, task_.residual_stride = rows.stride;
    }
    if (total_ != NONE) {
        const Rows& rows = arena.buffers[size_t(total_)];
        task_.total = rows.data, task_.total_stride = rows.stride;
    }
}

void LinearStep::bind(const Arena& arena) {
    task_.input = arena.buffers[size_t(input_)];
    task_.output = arena.buffers[size_t(output_)];
    if (codes_ != NONE) task_.codes = arena.codes[size_t(codes_)];
    if (residual_ == NONE) return;
    const Rows& rows = arena.buffers[size_t(residual_)];
    task_.residual = rows.data, task_.residual_stride = rows.stride;
}

void AttentionStep::bind(const Arena& arena) {
    task_.input = arena.buffers[size_t(input_)];
    task_.output = arena.buffers[size_t(output_)];
    scratch_ = arena.attention;
}

void AttentionStep::accept(const Batch& batch) {
    task_.starts = batch.starts.data(), task_.sequences = batch.sequences;
}

void PoolStep::share(const Kernels&, int64_t part, int64_t parts) const {
    for (int64_t s = sequences_ * part / parts; s < sequences_ * (part + 1) / parts; s++) pool_one(s);
}

void PoolStep::pool_one(int64_t sequence) const {
    const int64_t first = starts_[sequence], end = starts_[sequence + 1], width = up_to(from_.width, PANEL);
    const int64_t from = kind_ == PoolKind::last ? end - 1 : first;
    float* to = to_.data + sequence * to_.stride;
    std::memcpy(to, from_.data + from * from_.stride, static_cast<size_t>(width) * 4);
    if (kind_ == PoolKind::first || kind_ == PoolKind::last) return;
    for (int64_t row = first + 1; row < end; row++) {
        const float* x = from_.data + row * from_.stride;
        if (kind_ == PoolKind::mean)
            for (int64_t k = 0; k < width; k++) to[k] += x[k];
        else
            for (int64_t k = 0; k < width; k++) to[k] = to[k] > x[k] || to[k] != to[k] ? to[k] : x[k];
    }
    if (kind_ == PoolKind::mean)
        for (int64_t k = 0; k < width; k++) to[k] /= static_cast<float>(end - first);
}

void SimpleStep::bind(const Arena& arena) {
    from_ = arena.buffers[size_t(input_)];
    to_ = arena.buffers[size_t(output_)];
    if (other_ != NONE) with_ = arena.buffers[size_t(other_)];
}

void SimpleStep::rows(const Kernels& k, int64_t begin, int64_t end) const {
    if (code_ == Code::activate) k.activate(from_, to_, act_, begin, end);
    if (code_ == Code::add) k.add(from_, with_, to_, begin, end);
    if (code_ == Code::normalize) k.normalize(from_, to_, eps_, begin, end);
}

void RotaryStep::accept(const Batch& batch) {
    check_length(batch, places_);
    task_.places = batch.places.data();
}

}  // namespace hasten
