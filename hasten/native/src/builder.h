// Makes a plan of a program: reads one operator's fields after the other, checks each, adds steps.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "pack.h"
#include "steps.h"

namespace hasten {

constexpr int64_t MOST_HEAD_DIM = 1024, MOST_PLACES = 1 << 24;

inline std::string text(int64_t n) { return std::to_string(n); }

class Builder {
public:
    Builder(const ProgramSpec& program, const Kernels& kernels, const PackedFile& packed)
        : program_(program), kernels_(kernels), plan_(std::make_unique<Plan>()) {
        if (packed.file >= 0) plan_->weights.read_from(packed.file, packed.bytes);
        plan_->weights.expect(packed_bytes());
        plan_->buffers = program.buffers;
        plan_->output = program.output;
        plan_->answers.push_back(program.output);
    }

    std::unique_ptr<Plan> build() {
        for (number_ = 0; number_ < static_cast<int64_t>(program_.ops.size()); number_++) {
            op_ = &program_.ops[size_t(number_)];
            field_ = 0, serves_ = NONE;
            add_op();
        }
        set_stages();
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
    // The weights of products, packed once; a table of the same numbers reads them there.
    const Matrix& matrix(int64_t number, bool gated) {
        auto [found, fresh] = matrices_.try_emplace({number, gated}, nullptr);
        if (fresh) {
            const TensorSpec& t = program_.tensors[size_t(number)];
            plan_->matrices.push_back(std::make_unique<Matrix>(pack(t, gated, plan_->weights)));
            found->second = plan_->matrices.back().get();
        }
        return *found->second;
    }
    Table table(int64_t number, int64_t width) {
        if (number == NONE) return {};
        const TensorSpec& t = program_.tensors[size_t(number)];
        ensure(t.columns == width && t.rows > 0,
               "table " + text(number) + " of " + text(t.rows) + " x " + text(t.columns), "rows of " + text(width));
        auto [found, fresh] = tables_.try_emplace(number);
        if (fresh && (in_groups(t.kind) || is_product(number))) {
            found->second.rows = t.rows, found->second.width = width;
            found->second.panels = &matrix(number, false);
        } else if (fresh) {
            found->second = pack_table(t, plan_->weights);
        }
        return found->second;
    }

    // Does any operator read this buffer?
    bool is_read(int64_t number) const {
        for (const OpSpec& op : program_.ops) {
            if (op.code == Code::features || op.code == Code::embed) continue;
            if (op.fields[0] == number) return true;
            if (op.code == Code::norm && op.fields[6] == number) return true;
            if (op.code == Code::linear && op.fields[5] == number) return true;
            if (op.code == Code::add && op.fields[1] == number) return true;
        }
        return false;
    }
    // What follows is for this buffer alone, unless somebody reads it.
    void serve(int64_t buffer) {
        if (!is_read(buffer)) serves_ = buffer;
    }

    // What all tensors take when they are packed; a little more rather than less.
    int64_t packed_bytes() const {
        int64_t bytes = 0;
        for (const TensorSpec& t : program_.tensors) {
            const int64_t size = t.rows * t.columns;
            const int64_t bits = t.kind == Kind::floats ? 32 : t.kind == Kind::bf16 ? 16 : t.kind == Kind::int8 ? 8 : 5;
            bytes += size / 8 * (t.kind == Kind::int4 ? 4 : bits);
            bytes += t.rows * (in_groups(t.kind) ? 4 * t.groups() : 8) + 64 * t.columns;
        }
        return bytes + bytes / 32;
    }

    bool is_product(int64_t number) const {
        for (const OpSpec& op : program_.ops) {
            if (op.code == Code::linear && op.fields[2] == number && op.fields[6] == 0) return true;
            if ((op.code == Code::top || op.code == Code::foretell) && op.fields[2] == number) return true;
        }
        return false;
    }

    // What is written to a buffer makes its codes old.
    void writes(int64_t buffer) {
        for (auto& [key, made] : codes_)
            if (plan_->codes[size_t(made.first)].buffer == buffer) made.second = false;
    }

    void add(RowKind kind, std::unique_ptr<Step> step) {
        const bool joins = step->by_rows() && !plan_->sections.empty() && plan_->sections.back().kind == kind &&
                           plan_->sections.back().serves == serves_ && plan_->sections.back().steps.back()->by_rows();
        if (!joins) plan_->sections.push_back({kind, {}, serves_});
        plan_->sections.back().steps.push_back(step.get());
        plan_->steps.push_back(std::move(step));
    }

    Form form_for(Kind kind) const {
        if (kind == Kind::int8) return Form::u8;
        if (in_groups(kind)) return Form::s8;
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

    void set_stages() {
        for (const BufferSpec& b : plan_->buffers)
            if (b.width > plan_->widest) plan_->widest = b.width;
        for (size_t i = 0; i < plan_->sections.size(); i++) {
            const Section& section = plan_->sections[i];
            const bool by_rows = section.steps.front()->either_way();
            const bool joins = by_rows && !plan_->stages.empty() && plan_->stages.back().by_rows &&
                               plan_->stages.back().kind == section.kind;
            if (joins) plan_->stages.back().end = i + 1;
            else plan_->stages.push_back({section.kind, i, i + 1, by_rows});
        }
    }

    void add_op();
    void add_features();
    void add_embed();
    void add_norm();
    void add_linear();
    void add_attention();
    void add_pool();
    void add_simple();
    void add_rotary();
    void add_head_norm();
    void add_cached_attention();
    void add_top();
    void add_foretell();
    float bound(const char* what);
    AttentionTask attention_heads();

    const ProgramSpec& program_;
    const Kernels& kernels_;
    std::unique_ptr<Plan> plan_;
    const OpSpec* op_ = nullptr;
    int64_t number_ = 0, field_ = 0, serves_ = NONE;
    std::map<int64_t, Table> tables_;
    std::map<std::pair<int64_t, bool>, const Matrix*> matrices_;
    std::map<std::pair<std::pair<int64_t, int64_t>, float>, Turns*> turns_;  // ((tensor, places), factor)
    // (buffer, form, group) -> number of codes, and whether they are those of what the buffer holds.
    std::map<std::pair<int64_t, std::pair<int64_t, int64_t>>, std::pair<int64_t, bool>> codes_;
};

}  // namespace hasten
