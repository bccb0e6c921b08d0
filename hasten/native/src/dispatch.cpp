// Which kernels this build has and this host runs.
#include <cstring>
#include <string>

#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#define HASTEN_X86
#endif

namespace hasten {

#define HASTEN_DECLARE(isa) extern const Kernels kernels_##isa;
#ifdef HASTEN_HAS_AVX512_BF16
HASTEN_DECLARE(avx512_bf16)
#endif
#ifdef HASTEN_HAS_AVX512_VNNI
HASTEN_DECLARE(avx512_vnni)
#endif
#ifdef HASTEN_HAS_AVX512
HASTEN_DECLARE(avx512)
#endif
#ifdef HASTEN_HAS_AVX_VNNI
HASTEN_DECLARE(avx_vnni)
#endif
#ifdef HASTEN_HAS_AVX2
HASTEN_DECLARE(avx2)
#endif
#ifdef HASTEN_HAS_NEON
HASTEN_DECLARE(neon)
#endif
HASTEN_DECLARE(portable)

namespace {

struct Host {
    bool avx2 = false, avx_vnni = false, avx512 = false, vnni = false, bf16 = false;
};

#ifdef HASTEN_X86
bool bit(unsigned word, int place) { return (word >> place) & 1u; }

// The registers that the system saves when it changes threads.
unsigned saved_registers() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

Host look() {
    Host host;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return host;
    const bool fma = bit(c, 12) && bit(c, 29);
    const unsigned saved = saved_registers();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return host;
    host.avx2 = fma && bit(b, 5) && (saved & 6u) == 6u;
    host.avx512 = host.avx2 && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31) && (saved & 0xe6u) == 0xe6u;
    host.vnni = host.avx512 && bit(c, 11);
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return host;
    host.avx_vnni = host.avx2 && bit(a, 4);
    host.bf16 = host.vnni && bit(a, 5);
    return host;
}
#else
Host look() { return {}; }
#endif

struct Choices {
    const Kernels* tables[8] = {};
    int count = 0;
    std::string names;

    Choices() {
        [[maybe_unused]] const Host host = look();
#ifdef HASTEN_HAS_AVX512_BF16
        if (host.bf16) take(kernels_avx512_bf16);
#endif
#ifdef HASTEN_HAS_AVX512_VNNI
        if (host.vnni) take(kernels_avx512_vnni);
#endif
#ifdef HASTEN_HAS_AVX512
        if (host.avx512) take(kernels_avx512);
#endif
#ifdef HASTEN_HAS_AVX_VNNI
        if (host.avx_vnni) take(kernels_avx_vnni);
#endif
#ifdef HASTEN_HAS_AVX2
        if (host.avx2) take(kernels_avx2);
#endif
#ifdef HASTEN_HAS_NEON
        take(kernels_neon);
#endif
        take(kernels_portable);
    }

    void take(const Kernels& table) {
        tables[count++] = &table;
        names += names.empty() ? table.name : std::string(" ") + table.name;
    }
};

const Choices& choices() {
    static const Choices made;
    return made;
}

}  // namespace

const Kernels* kernels_named(const char* name) {
    for (int i = 0; i < choices().count; i++)
        if (!*name || !std::strcmp(choices().tables[i]->name, name)) return choices().tables[i];
    return nullptr;
}

const char* isas_here() { return choices().names.c_str(); }

}  // namespace hasten
