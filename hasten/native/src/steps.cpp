#include "steps.h"

#include <algorithm>
#include <cmath>
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

// Of two numbers of equal outputs, which is the answer? Below 0: none.
bool precedes(int32_t number, int32_t other) { return other < 0 || (number >= 0 && number < other); }

void check_length(const Batch& batch, int64_t most) {
    if (batch.last_place >= most)
        refuse("a sequence of " + text(batch.last_place + 1) + " tokens", "at most " + text(most), "cut longer inputs");
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
    task_.found = arena.found;
    scratch_ = arena.attention;
}

void AttentionStep::accept(const Batch& batch) {
    task_.starts = batch.starts.data(), task_.sequences = batch.sequences;
    if (layer_ == NONE) return;
    cache_ = cache_of(batch, layer_, task_.kv_heads, task_.head_dim);
    task_.cache = &cache_, task_.few = batch.few.data();
}

Cache cache_of(const Batch& batch, int64_t layer, int64_t kv_heads, int64_t head_dim) {
    const Caches& all = *batch.caches;
    if (layer >= static_cast<int64_t>(all.layers.size()))
        refuse("caches of " + text(int64_t(all.layers.size())) + " layers", "one of layer " + text(layer),
               "give them all");
    const CacheLayer& own = all.layers[size_t(layer)];
    const int64_t rows = all.slots * kv_heads, size = all.kind == Kind::floats ? 4 : all.kind == Kind::bf16 ? 2 : 1;
    const int64_t scales = all.kind == Kind::int8 ? rows * 4 : 0;
    if (own.bytes != rows * head_dim * size || own.scale_bytes != scales)
        refuse("a cache of " + text(own.bytes) + " and " + text(own.scale_bytes) + " bytes",
               text(rows * head_dim * size) + " and " + text(scales), "give [slots, heads, width] for this layer");
    Cache cache;
    cache.kind = all.kind, cache.keys = own.keys, cache.values = own.values;
    cache.key_scales = own.key_scales, cache.value_scales = own.value_scales;
    cache.tables = all.tables, cache.table_width = all.table_width, cache.block_size = all.block_size;
    cache.slots = all.slot_of, cache.places = batch.places.data();
    return cache;
}

void TopStep::bind(const Arena& arena) {
    task_.input = arena.buffers[size_t(input_)];
    if (codes_ != NONE) task_.codes = arena.codes[size_t(codes_)];
    found_ = arena.best[size_t(best_)];
}

void ForetellStep::bind(const Arena& arena) {
    task_.input = arena.buffers[size_t(input_)];
    if (codes_ != NONE) task_.codes = arena.codes[size_t(codes_)];
    found_ = arena.said[size_t(said_)];
}

// The token after each; after the last one of a sequence its first.
void ForetellStep::accept(const Batch& batch) {
    check_within(batch.ids, batch.tokens, task_.weight->n, "token id");
    task_.rows = batch.tokens;
    following_.assign(batch.ids, batch.ids + batch.tokens);
    for (size_t s = 0; s + 1 < batch.starts.size(); s++)
        std::rotate(following_.begin() + batch.starts[s], following_.begin() + batch.starts[s] + 1,
                    following_.begin() + batch.starts[s + 1]);
}

void TellStep::rows(const Kernels&, int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; row++) {
        float top = found_.front().top[row], total = 0, asked = 0;
        int32_t number = found_.front().number[row];
        for (const Said& part : found_)
            if (part.top[row] > top || (part.top[row] == top && part.number[row] < number))
                top = part.top[row], number = part.number[row];
        for (const Said& part : found_)
            total += part.total[row] * std::exp(part.top[row] - top), asked += part.asked[row];
        float* to = to_.data + row * to_.stride;
        to[0] = asked - top - std::log(total), to[1] = static_cast<float>(number);
        for (int64_t k = 2; k < PANEL; k++) to[k] = 0;
    }
}

void MergeStep::rows(const Kernels&, int64_t begin, int64_t end) const {
    const int64_t count = found_.front().count;
    for (int64_t row = begin; row < end; row++) {
        float* to = to_.data + row * to_.stride;
        int64_t taken[places_of(MAX_THREADS)] = {0};
        for (int64_t i = 0; i < count; i++) {
            size_t from = found_.size();
            float most = -__builtin_inff();
            int32_t number = -1;
            for (size_t p = 0; p < found_.size(); p++) {
                if (taken[p] == count) continue;
                const float value = found_[p].values[row * count + taken[p]];
                const int32_t own = found_[p].numbers[row * count + taken[p]];
                if (value > most || (value == most && precedes(own, number))) from = p, most = value, number = own;
            }
            to[i] = most, to[count + i] = static_cast<float>(number), taken[from]++;
        }
        for (int64_t k = 2 * count; k < up_to(2 * count, PANEL); k++) to[k] = 0;
    }
}

void PoolStep::share(const Kernels&, const Share& share, size_t) const {
    const int64_t end = sequences_ * share.to / share.of;
    for (int64_t s = sequences_ * share.from / share.of; s < end; s++) pool_one(s);
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
    check_length(batch, turns_.most);
    turns_.reach(batch.last_place + 1);
    task_.cosines = turns_.cosines.data(), task_.sines = turns_.sines.data();
    task_.places = batch.places.data();
}

}  // namespace hasten
