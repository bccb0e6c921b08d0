#include "plan.h"

#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "pack.h"
#include "steps.h"

namespace hasten {
namespace {

std::string text(int64_t n) { return std::to_string(n); }

constexpr int64_t MOST_HEAD_DIM = 1024, MOST_PLACES = 1 << 24;

// Reads one operator's fields after the other and checks each; then adds steps.
class Builder {
public:
    Builder(const ProgramSpec& program, const Kernels& kernels)
        : program_(program), kernels_(kernels), plan_(std::make_unique<Plan>()) {
        plan_->buffers = program.buffers;
        plan_->output = program.output;
    }

    std::unique_ptr<Plan> build() {
        for (number_ = 0; number_ < static_cast<int64_t>(program_.ops.size()); number_++) {
            op_ = &program_.ops[size_t(number_)];
            field_ = 0;
            add_op();
        }
        return std::move(plan_);
    }

private:
    [[noreturn]] void wrong(const std::string& got, const std::string& expected) const {
        const std::string kind = text(static_cast<int64_t>(op_->code));
        refuse("operator " + text(number_) + " (kind " + kind + ") with " + got, expected);
    }
    void ensure(bool good, const std::string& got, const std::string& expected) const {
        if (!good) wrong(got, expected);
    }

    int64_t word() { return op_->fields[size_t(field_++)]; }
    int64_t whole(const char* what, int64_t least, int64_t most) {
        const int64_t value = word();
        if (value < least || value > most)
            wrong(std::string(what) + " " + text(value), text(least) + " to " + text(most));
        return value;
    }
    float real(const char* what) {
        const int64_t bits = word();
        double value = 0;
        std::memcpy(&value, &bits, sizeof value);
        ensure(std::isfinite(value) && std::fabs(value) < 1e30, std::string(what) + " not finite", "a finite number");
        return static_cast<float>(value);
    }
    template <class Choice>
    Choice choice(const char* what) {
        return static_cast<Choice>(whole(what, 0, static_cast<int64_t>(Choice::count) - 1));
    }
    int64_t buffers() const { return static_cast<int64_t>(program_.buffers.size()); }
    int64_t tensors() const { return static_cast<int64_t>(program_.tensors.size()); }
    int64_t buffer(const char* what) { return whole(what, 0, buffers() - 1); }
    int64_t buffer_or_none(const char* what) { return whole(what, NONE, buffers() - 1); }
    int64_t tensor(const char* what) { return whole(what, 0, tensors() - 1); }
    int64_t tensor_or_none(const char* what) { return whole(what, NONE, tensors() - 1); }

    const BufferSpec& at(int64_t buffer) const { return program_.buffers[size_t(buffer)]; }
    void ensure_shape(int64_t number, int64_t width, RowKind rows) const {
        const BufferSpec& b = at(number);
        ensure(b.width == width && b.rows == rows, "buffer " + text(number) + " of width " + text(b.width),
               "width " + text(width) + (rows == RowKind::token ? ", a row a token" : ", a row a sequence"));
    }
    void ensure_like(int64_t number, int64_t other) const { ensure_shape(number, at(other).width, at(other).rows); }

    // fp32 [count] of a tensor, packed; null for none.
    const float* vector(int64_t number, int64_t count, bool gated = false) {
        if (number == NONE) return nullptr;
        const TensorSpec& t = program_.tensors[size_t(number)];
        ensure(t.kind == Kind::floats && t.rows * t.columns == count, "tensor " + text(number) + " of " +
               text(t.rows) + " x " + text(t.columns), text(count) + " fp32 numbers");
        return pack_vector(t.values, count, gated, plan_->weights);
    }
    Table table(int64_t number, int64_t width) {
        if (number == NONE) return {};
        const TensorSpec& t = program_.tensors[size_t(number)];
        ensure(t.kind != Kind::int4, "a table of 4-bit numbers", "one of fp32, bf16 or int8");
        ensure(t.columns == width && t.rows > 0,
               "table " + text(number) + " of " + text(t.rows) + " x " + text(t.columns), "rows of " + text(width));
        auto [found, fresh] = tables_.try_emplace(number);
        if (fresh) found->second = pack_table(t, plan_->weights);
        return found->second;
    }

    // What is written to a buffer makes its codes old.
    void writes(int64_t buffer) {
        for (auto& [key, made] : codes_)
            if (plan_->codes[size_t(made.first)].buffer == buffer) made.second = false;
    }

    void add(RowKind kind, std::unique_ptr<Step> step) {
        const bool joins = step->by_rows() && !plan_->sections.empty() && plan_->sections.back().kind == kind &&
                           plan_->sections.back().steps.back()->by_rows();
        if (!joins) plan_->sections.push_back({kind, {}});
        plan_->sections.back().steps.push_back(step.get());
        plan_->steps.push_back(std::move(step));
    }

    Form form_for(Kind kind) const {
        if (kind == Kind::int8) return Form::u8;
        if (kind == Kind::int4) return Form::s8;
        return kind == Kind::bf16 && kernels_.wants_bf16 ? Form::bf16 : Form::plain;
    }

    // The number of the input's codes for such a weight, made now if they are old; NONE where the input will do.
    int64_t codes_for(int64_t input, const TensorSpec& weight) {
        const CodesSpec spec{input, form_for(weight.kind), weight.group, weight.groups()};
        if (spec.form == Form::plain) return NONE;
        const auto key = std::make_pair(input, std::make_pair(static_cast<int64_t>(spec.form), spec.group));
        auto [found, fresh] = codes_.try_emplace(key, static_cast<int64_t>(plan_->codes.size()), false);
        if (fresh) plan_->codes.push_back(spec);
        if (!found->second.second) add(at(input).rows, std::make_unique<EncodeStep>(input, found->second.first));
        found->second.second = true;
        return found->second.first;
    }

    void add_op() {
        switch (op_->code) {
            case Code::features: return add_features();
            case Code::embed: return add_embed();
            case Code::norm: return add_norm();
            case Code::linear: return add_linear();
            case Code::attention: return add_attention();
            case Code::pool: return add_pool();
            case Code::rotary: return add_rotary();
            default: return add_simple();
        }
    }

    void add_features() {
        const int64_t output = buffer("output");
        ensure_shape(output, at(output).width, RowKind::token);
        plan_->wants_features = true;
        add(RowKind::token, std::make_unique<FeaturesStep>(output));
        writes(output);
    }

    void add_embed() {
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

    void add_norm() {
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

    void add_linear() {
        LinearTask task;
        const int64_t input = buffer("input"), output = buffer("output"), weight = tensor("weight");
        const TensorSpec& w = program_.tensors[size_t(weight)];
        const int64_t bias = tensor_or_none("bias");
        task.act = choice<Act>("activation");
        const int64_t residual = buffer_or_none("residual");
        task.gated = whole("gated", 0, 1) == 1;
        const RowKind rows = at(input).rows;
        ensure(w.columns == at(input).width, "weight of " + text(w.columns) + " inputs", "a buffer of that width");
        ensure(!task.gated || w.rows % 2 == 0, "gates in " + text(w.rows) + " rows", "an even number");
        ensure_shape(output, task.gated ? w.rows / 2 : w.rows, rows);
        ensure(input != output, "its input as output", "two buffers");
        if (residual != NONE) ensure_like(residual, output);
        task.bias = vector(bias, w.rows, task.gated);
        const int64_t codes = codes_for(input, w);
        const Matrix packed = pack(w, task.gated, plan_->weights);
        add(rows, std::make_unique<LinearStep>(input, output, residual, codes, rows, packed, task));
        writes(output);
    }

    void add_attention() {
        AttentionTask task;
        const int64_t input = buffer("input"), output = buffer("output");
        task.heads = whole("heads", 1, MOST_HEAD_DIM);
        task.kv_heads = whole("heads of keys", 1, task.heads);
        task.head_dim = whole("head's width", 1, MOST_HEAD_DIM);
        task.scale = real("scale");
        task.causal = whole("causal", 0, 1) == 1;
        task.window = whole("window", 0, MOST_PLACES);
        ensure(task.heads % task.kv_heads == 0, text(task.heads) + " heads on " + text(task.kv_heads), "a multiple");
        ensure_shape(input, (task.heads + 2 * task.kv_heads) * task.head_dim, RowKind::token);
        ensure_shape(output, task.heads * task.head_dim, RowKind::token);
        ensure(input != output, "its input as output", "two buffers");
        const int64_t floats = attention_scratch(up_to(task.head_dim, PANEL));
        if (floats > plan_->attention_floats) plan_->attention_floats = floats;
        add(RowKind::token, std::make_unique<AttentionStep>(input, output, task));
        writes(output);
    }

    void add_pool() {
        const int64_t input = buffer("input"), output = buffer("output");
        ensure_shape(input, at(input).width, RowKind::token);
        ensure_shape(output, at(input).width, RowKind::sequence);
        add(RowKind::sequence, std::make_unique<PoolStep>(input, output, choice<PoolKind>("pooling")));
        writes(output);
    }

    void add_simple() {
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

    void add_rotary() {
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
        task.cosines = vector(cosines, t.rows * half);
        task.sines = vector(sines, t.rows * half);
        add(RowKind::token, std::make_unique<RotaryStep>(input, t.rows, task));
        writes(input);
    }

    const ProgramSpec& program_;
    const Kernels& kernels_;
    std::unique_ptr<Plan> plan_;
    const OpSpec* op_ = nullptr;
    int64_t number_ = 0, field_ = 0;
    std::map<int64_t, Table> tables_;
    // (buffer, form, group) -> number of codes, and whether they are those of what the buffer holds.
    std::map<std::pair<int64_t, std::pair<int64_t, int64_t>>, std::pair<int64_t, bool>> codes_;
};

}  // namespace

std::unique_ptr<Plan> make_plan(const ProgramSpec& program, const Kernels& kernels) {
    return Builder(program, kernels).build();
}

}  // namespace hasten
