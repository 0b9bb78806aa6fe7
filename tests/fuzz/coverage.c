/* Between a core built with FASTINFER_BUILD=fuzz and libFuzzer inside atheris.
 *
 * GCC's -fsanitize-coverage=trace-pc,trace-cmp calls these functions. The first counts each place in the code that is
 * passed, in a table that libFuzzer watches; the others hand on what is compared. The library is preloaded before the
 * address sanitizer's, which has empty functions of the same names, and knows libFuzzer by the addresses that
 * engine.py gives it.
 */
#include <stdint.h>

enum { PLACES = 1 << 16 };

static uint8_t counters[PLACES];

static void ignore(void) {}

typedef void (*Compare)();  /* called with what the caller passed: every call below is a jump */

static Compare compare[4] = {ignore, ignore, ignore, ignore};        /* of 1, 2, 4 and 8 bytes */
static Compare compare_const[4] = {ignore, ignore, ignore, ignore};  /* the first is a constant */
static Compare compare_switch = ignore;

void coverage_start(void (*watch)(uint8_t *, uint8_t *)) { watch(counters, counters + PLACES); }

void coverage_compare(int i, Compare any, Compare with_constant) {
    compare[i] = any;
    compare_const[i] = with_constant;
}

void coverage_switch(Compare function) { compare_switch = function; }

/* How many places have been passed since libFuzzer last cleared the table. */
int coverage_seen(void) {
    int seen = 0;
    for (int i = 0; i < PLACES; i++)
        seen += counters[i] != 0;
    return seen;
}

void __sanitizer_cov_trace_pc(void) {
    const uintptr_t place = (uintptr_t)__builtin_return_address(0);
    counters[(place * UINT64_C(0x9E3779B97F4A7C15)) >> 48]++;
}

/* libFuzzer tells comparisons apart by their return address, so these must be jumps: build with -O2. */
void __sanitizer_cov_trace_cmp1(uint8_t a, uint8_t b) { compare[0](a, b); }
void __sanitizer_cov_trace_cmp2(uint16_t a, uint16_t b) { compare[1](a, b); }
void __sanitizer_cov_trace_cmp4(uint32_t a, uint32_t b) { compare[2](a, b); }
void __sanitizer_cov_trace_cmp8(uint64_t a, uint64_t b) { compare[3](a, b); }
void __sanitizer_cov_trace_const_cmp1(uint8_t a, uint8_t b) { compare_const[0](a, b); }
void __sanitizer_cov_trace_const_cmp2(uint16_t a, uint16_t b) { compare_const[1](a, b); }
void __sanitizer_cov_trace_const_cmp4(uint32_t a, uint32_t b) { compare_const[2](a, b); }
void __sanitizer_cov_trace_const_cmp8(uint64_t a, uint64_t b) { compare_const[3](a, b); }
void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases) { compare_switch(value, cases); }
void __sanitizer_cov_trace_cmpf(float a, float b) { (void)a, (void)b; }
void __sanitizer_cov_trace_cmpd(double a, double b) { (void)a, (void)b; }
