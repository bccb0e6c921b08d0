#include "program.h"

#include "memory.h"

namespace hasten {

void refuse(const std::string& got, const std::string& expected, const std::string& remedy) {
    throw Refusal{got + "|" + expected + "|" + remedy};
}

namespace {

constexpr int64_t MAGIC = 0x48415354454E, VERSION = 2;
constexpr int64_t MOST_ITEMS = 1 << 20, MOST_ROWS_OF_TENSOR = 1 << 24, MOST_COLUMNS = 1 << 20;
// Sums of 8-bit products stay within 32 bits.
constexpr int64_t MOST_INTEGER_COLUMNS = 65536;
// What brings the codes of a group to where they belong.
constexpr int64_t ZEROS = 1, OFFSETS = 2;
const int64_t FIELDS[] = {0, 1, 6, 8, 8, 10, 3, 3, 3, 3, 7, 7, 10, 5, 5};

std::string text(int64_t n) { return std::to_string(n); }

class Words {
public:
    Words(const int64_t* words, int64_t count) : words_(words), count_(count) {}
    int64_t next() {
        if (place_ >= count_) refuse("a program that ends after word " + text(count_), "more words");
        return words_[place_++];
    }
    int64_t next(const char* what, int64_t least, int64_t most) {
        const int64_t value = next();
        if (value < least || value > most)
            refuse("a program whose " + std::string(what) + " is " + text(value), text(least) + " to " + text(most));
        return value;
    }
    bool done() const { return place_ == count_; }

private:
    const int64_t* words_;
    int64_t count_, place_ = 0;
};

class Arrays {
public:
    explicit Arrays(const std::vector<Array>& arrays) : arrays_(arrays) {}
    const uint8_t* next(int64_t bytes) {
        if (place_ == arrays_.size())
            refuse("a program with " + text(int64_t(arrays_.size())) + " arrays", "more arrays");
        const Array& array = arrays_[place_++];
        if (array.bytes != bytes || (bytes && !array.data))
            refuse("array " + text(int64_t(place_) - 1) + " of " + text(array.bytes) + " bytes",
                   text(bytes) + " bytes");
        return array.data;
    }
    bool done() const { return place_ == arrays_.size(); }

private:
    const std::vector<Array>& arrays_;
    size_t place_ = 0;
};

void check_zeros(const TensorSpec& t) {
    for (int64_t i = 0; t.zeros && i < t.rows * t.groups(); i++)
        if (t.zeros[i] > 15) refuse("a zero point of " + text(t.zeros[i]), "0 to 15");
}

TensorSpec read_tensor(Words& words, Arrays& arrays) {
    TensorSpec t;
    t.kind = static_cast<Kind>(words.next("kind of tensor", 1, 5));
    const bool integers = t.kind == Kind::int8 || in_groups(t.kind);
    t.rows = words.next("tensor's rows", 0, MOST_ROWS_OF_TENSOR);
    const int64_t most = t.kind == Kind::floats ? MOST_ROWS_OF_TENSOR : MOST_COLUMNS;
    t.columns = words.next("tensor's columns", 0, integers ? MOST_INTEGER_COLUMNS : most);
    t.group = words.next("group", 0, MOST_INTEGER_COLUMNS);
    const int64_t shift = words.next("mark of zero points", 0, 2), size = t.rows * t.columns;
    const int64_t unit = t.kind == Kind::int5 ? 32 : 16;
    if (!in_groups(t.kind) && (t.group || shift)) refuse("groups of weights that have none", "0, and no zero points");
    if (in_groups(t.kind) && (t.group < unit || t.group % unit))
        refuse("groups of " + text(t.group), "a multiple of " + text(unit));
    // What would only fill up one wide group is not packed.
    if (in_groups(t.kind) && t.group > t.columns) t.group = up_to(t.columns < 1 ? 1 : t.columns, unit);
    if (t.kind == Kind::int5 && shift == ZEROS) refuse("zero points beside 5 bits", "offsets, or none");
    if (t.kind == Kind::floats) t.values = arrays.next(size * 4);
    if (t.kind == Kind::bf16) t.values = arrays.next(size * 2);
    if (t.kind == Kind::int8) t.values = arrays.next(size), t.scales = arrays.next(t.rows * 4);
    if (!in_groups(t.kind)) return t;
    t.values = arrays.next(t.rows * ((t.columns + 1) / 2));
    if (t.kind == Kind::int5) t.fifths = arrays.next(t.rows * ((t.columns + 7) / 8));
    t.scales = arrays.next(t.rows * t.groups() * 2);
    if (shift == ZEROS) t.zeros = arrays.next(t.rows * t.groups());
    if (shift == OFFSETS) t.offsets = arrays.next(t.rows * t.groups() * 2);
    check_zeros(t);
    return t;
}

}  // namespace

ProgramSpec read_program(const int64_t* data, int64_t count, const std::vector<Array>& given) {
    Words words(data, count);
    Arrays arrays(given);
    ProgramSpec program;
    if (words.next() != MAGIC) refuse("words that do not begin like a program", "a program of hasten");
    if (const int64_t version = words.next(); version != VERSION)
        refuse("a program of version " + text(version), "version " + text(VERSION));
    const int64_t buffers = words.next("count of buffers", 1, MOST_ITEMS);
    const int64_t tensors = words.next("count of tensors", 0, MOST_ITEMS);
    const int64_t ops = words.next("count of operators", 0, MOST_ITEMS);
    program.output = words.next("output", 0, buffers - 1);
    for (int64_t i = 0; i < buffers; i++) {
        BufferSpec buffer;
        buffer.width = words.next("buffer's width", 0, MOST_COLUMNS);
        buffer.rows = static_cast<RowKind>(words.next("buffer's kind of rows", 0, 1));
        program.buffers.push_back(buffer);
    }
    for (int64_t i = 0; i < tensors; i++) program.tensors.push_back(read_tensor(words, arrays));
    for (int64_t i = 0; i < ops; i++) {
        OpSpec op;
        const int64_t code = words.next("operator", 1, static_cast<int64_t>(Code::end) - 1);
        op.code = static_cast<Code>(code);
        const int64_t fields = words.next("count of fields", FIELDS[code], FIELDS[code]);
        for (int64_t f = 0; f < fields; f++) op.fields.push_back(words.next());
        program.ops.push_back(op);
    }
    if (!words.done() || !arrays.done()) refuse("a program with words or arrays behind its end", "nothing there");
    return program;
}

}  // namespace hasten
