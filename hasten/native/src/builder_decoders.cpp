// The operators of decoders.
#include "builder.h"

namespace hasten {

void Builder::add_rotary() {
    RotaryTask task;
    const int64_t input = buffer("input"), heads = whole("heads", 1, MOST_HEAD_DIM);
    task.heads = heads + whole("heads of keys", 0, MOST_HEAD_DIM);
    task.head_dim = whole("head's width", 2, MOST_HEAD_DIM);
    const int64_t half = task.head_dim / 2, cosines = tensor("cosines"), sines = tensor("sines");
    ensure(task.head_dim % 2 == 0, "heads of " + text(task.head_dim), "an even width");
    ensure_shape(input, at(input).width, RowKind::token);
    ensure(task.heads * task.head_dim <= at(input).width, "heads wider than their buffer", "a wider buffer");
    const TensorSpec& t = program_.tensors[size_t(cosines)];
    ensure(t.columns == half && t.rows > 0, "cosines of " + text(t.columns) + " columns", text(half));
    for (const int64_t number : {cosines, sines}) {
        auto [found, fresh] = turns_.try_emplace(number, nullptr);
        const TensorSpec& own = program_.tensors[size_t(number)];
        ensure(own.rows == t.rows && own.columns == half, "sines of another shape", "the cosines' shape");
        if (fresh) found->second = vector(number, t.rows * half);
    }
    task.cosines = turns_[cosines], task.sines = turns_[sines];
    add(RowKind::token, std::make_unique<RotaryStep>(input, t.rows, task));
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
    task.bf16 = whole("bf16", 0, 1) == 1;
    ensure_shape(input, (task.heads + 2 * task.kv_heads) * task.head_dim, RowKind::token);
    ensure_shape(output, task.heads * task.head_dim, RowKind::token);
    ensure(input != output, "its input as output", "two buffers");
    plan_->wants_caches = true;
    add(RowKind::token, std::make_unique<KeepStep>(input, layer, task));
    add(RowKind::token, std::make_unique<AttentionStep>(input, output, layer, task));
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
    add(rows, std::make_unique<TopStep>(input, codes, best, rows, matrix(weight, false), task));
    add(rows, std::make_unique<MergeStep>(output, best));
    writes(output);
}

}  // namespace hasten
