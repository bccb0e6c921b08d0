// The operators of decoders.
#include <algorithm>

#include "builder.h"

namespace hasten {

void Turns::reach(int64_t places) {
    if (places <= made) return;
    const int64_t half = static_cast<int64_t>(frequencies.size());
    const int64_t wanted = std::max(2 * made, up_to(places, 256)), count = std::min(wanted, most);
    cosines.resize(size_t(count * half)), sines.resize(size_t(count * half));
    for (int64_t i = made * half; i < count * half; i++) {
        // The angle is rounded to fp32, as the models round it; its cosine is exact to fp32.
        const float angle = static_cast<float>(i / half) * frequencies[size_t(i % half)];
        cosines[size_t(i)] = static_cast<float>(std::cos(static_cast<double>(angle))) * factor;
        sines[size_t(i)] = static_cast<float>(std::sin(static_cast<double>(angle))) * factor;
    }
    made = count;
}

void Builder::add_rotary() {
    RotaryTask task;
    const int64_t input = buffer("input"), heads = whole("heads", 1, MOST_HEAD_DIM);
    task.heads = heads + whole("heads of keys", 0, MOST_HEAD_DIM);
    task.head_dim = whole("head's width", 2, MOST_HEAD_DIM);
    const int64_t number = tensor("frequencies"), places = whole("places", 1, MOST_PLACES);
    const float factor = real("factor");
    ensure_shape(input, at(input).width, RowKind::token);
    ensure(task.heads * task.head_dim <= at(input).width, "heads wider than their buffer", "a wider buffer");
    const TensorSpec& t = program_.tensors[size_t(number)];
    task.half = t.rows * t.columns;
    ensure(t.kind == Kind::floats && task.half > 0 && 2 * task.half <= task.head_dim,
           text(task.half) + " frequencies", "fp32, at most half a head's width");
    auto [found, fresh] = turns_.try_emplace({{number, places}, factor}, nullptr);
    if (fresh) {
        plan_->turns.push_back(std::make_unique<Turns>());
        Turns& turns = *plan_->turns.back();
        turns.most = places, turns.factor = factor, turns.frequencies.resize(size_t(task.half));
        std::memcpy(turns.frequencies.data(), t.values, size_t(task.half) * 4);
        found->second = &turns;
    }
    add(RowKind::token, std::make_unique<RotaryStep>(input, *found->second, task));
    writes(input);
}

void Builder::add_head_norm() {
    HeadNormTask task;
    const int64_t input = buffer("input");
    task.first = whole("first head", 0, MOST_HEAD_DIM);
    task.heads = whole("heads", 0, MOST_HEAD_DIM);
    task.head_dim = whole("head's width", 1, MOST_HEAD_DIM);
    const int64_t weight = tensor("weight");
    task.eps = real("eps");
    task.kind = choice<NormKind>("norm");
    const int64_t width = (task.first + task.heads) * task.head_dim;
    ensure(width <= at(input).width, "heads wider than their buffer", "a wider one");
    task.weight = vector(weight, task.head_dim);
    add(at(input).rows, std::make_unique<HeadNormStep>(input, task));
    writes(input);
}

void Builder::add_cached_attention() {
    const int64_t input = buffer("input"), output = buffer("output"), layer = whole("layer", 0, 4095);
    AttentionTask task = attention_heads();
    task.causal = true;
    task.window = whole("window", 0, MOST_PLACES);
    task.cap = bound("bound of the scores");
    task.bf16 = whole("bf16", 0, 1) == 1;
    ensure_shape(input, (task.heads + 2 * task.kv_heads) * task.head_dim, RowKind::token);
    ensure_shape(output, task.heads * task.head_dim, RowKind::token);
    ensure(input != output, "its input as output", "two buffers");
    plan_->wants_caches = true;
    plan_->found_floats = most_of(plan_->found_floats, found_floats(task.heads, up_to(task.head_dim, PANEL)));
    add(RowKind::token, std::make_unique<KeepStep>(input, layer, task));
    auto attention = std::make_unique<AttentionStep>(input, output, layer, task);
    auto gather = std::make_unique<GatherStep>(*attention);
    add(RowKind::token, std::move(attention));
    add(RowKind::token, std::move(gather));
    writes(output);
}

void Builder::add_top() {
    const int64_t input = buffer("input"), output = buffer("output"), weight = tensor("weight");
    const TensorSpec& w = program_.tensors[size_t(weight)];
    const int64_t bias = tensor_or_none("bias"), count = whole("count", 1, w.rows < 1024 ? w.rows : 1024);
    const RowKind rows = at(input).rows;
    ensure(w.columns == at(input).width, "weight of " + text(w.columns) + " inputs", "a buffer of that width");
    ensure_shape(output, 2 * count, rows);
    ensure(input != output, "its input as output", "two buffers");
    LinearTask task;
    task.bias = vector(bias, w.rows);
    const int64_t codes = codes_for(input, w), best = static_cast<int64_t>(plan_->best.size());
    plan_->best.push_back({rows, count});
    const Matrix& packed = matrix(weight, false);
    plan_->answers.push_back(output);
    serve(output);
    add(rows, std::make_unique<TopStep>(input, codes, best, rows, packed, task));
    add(rows, std::make_unique<MergeStep>(output, best));
    writes(output);
}

void Builder::add_foretell() {
    const int64_t input = buffer("input"), output = buffer("output"), weight = tensor("weight");
    const TensorSpec& w = program_.tensors[size_t(weight)];
    const int64_t bias = tensor_or_none("bias");
    ensure(w.rows > 0 && w.columns == at(input).width, "weight of " + text(w.rows) + " x " + text(w.columns),
           "outputs, and a buffer of as many inputs");
    ensure_shape(input, w.columns, RowKind::token);
    ensure_shape(output, 2, RowKind::token);
    ensure(input != output, "its input as output", "two buffers");
    LinearTask task;
    task.cap = bound("bound of the outputs");
    task.bias = vector(bias, w.rows);
    const int64_t codes = codes_for(input, w), said = static_cast<int64_t>(plan_->said.size());
    plan_->said.push_back(RowKind::token);
    plan_->wants_ids = true;
    add(RowKind::token, std::make_unique<ForetellStep>(input, codes, said, matrix(weight, false), task));
    add(RowKind::token, std::make_unique<TellStep>(output, said));
    writes(output);
}

}  // namespace hasten
