#include "plan.h"

#include "builder.h"

namespace hasten {

std::unique_ptr<Plan> make_plan(const ProgramSpec& program, const Kernels& kernels, const PackedFile& packed) {
    auto plan = Builder(program, kernels, packed).build();
    const Store& weights = plan->weights;
    if (weights.filled() && (weights.left_in_file() != 0 || weights.checksum() != packed.checksum))
        refuse("packed weights that are damaged", "those of this program", "pack them again");
    return plan;
}

void Builder::add_op() {
    switch (op_->code) {
        case Code::features: return add_features();
        case Code::embed: return add_embed();
        case Code::norm: return add_norm();
        case Code::linear: return add_linear();
        case Code::attention: return add_attention();
        case Code::pool: return add_pool();
        case Code::rotary: return add_rotary();
        case Code::head_norm: return add_head_norm();
        case Code::cached_attention: return add_cached_attention();
        case Code::top: return add_top();
        case Code::foretell: return add_foretell();
        default: return add_simple();
    }
}

void Builder::add_features() {
    const int64_t output = buffer("output");
    ensure_shape(output, at(output).width, RowKind::token);
    plan_->wants_features = true;
    add(RowKind::token, std::make_unique<FeaturesStep>(output));
    writes(output);
}

void Builder::add_embed() {
    EmbedTask task;
    const int64_t output = buffer("output"), width = at(output).width;
    ensure_shape(output, width, RowKind::token);
    task.words = table(tensor("words"), width);
    task.positions = table(tensor_or_none("positions"), width);
    task.types = table(tensor_or_none("types"), width);
    task.first_position = whole("first position", 0, MOST_PLACES);
    task.scale = real("scale");
    plan_->wants_ids = true;
    add(RowKind::token, std::make_unique<EmbedStep>(output, task));
    writes(output);
}

void Builder::add_norm() {
    NormTask task;
    const int64_t input = buffer("input"), output = buffer("output"), width = at(input).width;
    task.weight = vector(tensor_or_none("weight"), width);
    task.bias = vector(tensor_or_none("bias"), width);
    task.eps = real("eps");
    task.kind = choice<NormKind>("norm");
    const int64_t residual = buffer_or_none("residual"), total = buffer_or_none("total");
    for (const int64_t other : {output, residual, total})
        if (other != NONE) ensure_like(other, input);
    ensure(total == NONE || total != output, "total in its output's buffer", "two buffers");
    add(at(input).rows, std::make_unique<NormStep>(input, output, residual, total, task));
    writes(output);
    if (total != NONE) writes(total);
}

void Builder::add_linear() {
    LinearTask task;
    const int64_t input = buffer("input"), output = buffer("output"), weight = tensor("weight");
    const TensorSpec& w = program_.tensors[size_t(weight)];
    const int64_t bias = tensor_or_none("bias");
    task.act = choice<Act>("activation");
    const int64_t residual = buffer_or_none("residual");
    task.gated = whole("gated", 0, 1) == 1;
    task.cap = bound("bound of the outputs");
    const RowKind rows = at(input).rows;
    ensure(w.columns == at(input).width, "weight of " + text(w.columns) + " inputs", "a buffer of that width");
    ensure(!task.gated || w.rows % 2 == 0, "gates in " + text(w.rows) + " rows", "an even number");
    ensure_shape(output, task.gated ? w.rows / 2 : w.rows, rows);
    ensure(input != output, "its input as output", "two buffers");
    if (residual != NONE) ensure_like(residual, output);
    task.bias = vector(bias, w.rows, task.gated);
    const int64_t codes = codes_for(input, w);
    const Matrix& packed = matrix(weight, task.gated);
    serve(output);
    add(rows, std::make_unique<LinearStep>(input, output, residual, codes, rows, packed, task));
    writes(output);
}

float Builder::bound(const char* what) {
    const float value = real(what);
    ensure(value >= 0, std::string(what) + " below 0", "0 for none, or more");
    return value;
}

AttentionTask Builder::attention_heads() {
    AttentionTask task;
    task.heads = whole("heads", 1, MOST_HEAD_DIM);
    task.kv_heads = whole("heads of keys", 1, task.heads);
    task.head_dim = whole("head's width", 1, MOST_HEAD_DIM);
    task.scale = real("scale");
    ensure(task.heads % task.kv_heads == 0, text(task.heads) + " heads on " + text(task.kv_heads), "a multiple");
    const int64_t floats = attention_scratch(task.heads, up_to(task.head_dim, PANEL));
    plan_->attention_floats = most_of(plan_->attention_floats, floats);
    return task;
}

void Builder::add_attention() {
    const int64_t input = buffer("input"), output = buffer("output");
    AttentionTask task = attention_heads();
    task.causal = whole("causal", 0, 1) == 1;
    task.window = whole("window", 0, MOST_PLACES);
    task.cap = bound("bound of the scores");
    task.bf16 = whole("bf16", 0, 1) == 1;
    ensure_shape(input, (task.heads + 2 * task.kv_heads) * task.head_dim, RowKind::token);
    ensure_shape(output, task.heads * task.head_dim, RowKind::token);
    ensure(input != output, "its input as output", "two buffers");
    add(RowKind::token, std::make_unique<AttentionStep>(input, output, NONE, task));
    writes(output);
}

void Builder::add_pool() {
    const int64_t input = buffer("input"), output = buffer("output");
    ensure_shape(input, at(input).width, RowKind::token);
    ensure_shape(output, at(input).width, RowKind::sequence);
    add(RowKind::sequence, std::make_unique<PoolStep>(input, output, choice<PoolKind>("pooling")));
    writes(output);
}

void Builder::add_simple() {
    const int64_t input = buffer("input");
    int64_t other = NONE;
    if (op_->code == Code::add) other = buffer("other");
    const int64_t output = buffer("output");
    ensure_like(output, input);
    if (other != NONE) ensure_like(other, input);
    const Act act = op_->code == Code::activate ? choice<Act>("activation") : Act::none;
    const float eps = op_->code == Code::normalize ? real("eps") : 0;
    add(at(input).rows, std::make_unique<SimpleStep>(op_->code, input, other, output, act, eps));
    writes(output);
}

}  // namespace hasten
