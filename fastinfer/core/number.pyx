# Numbers of JSON: text to exact values, values to the shortest text.
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

# Most numbers of a tensor are plain decimals, -?digits(.digits)?, of at most 19 digits. Those are read 16 bytes at a
# time without a loop and nearly without branches: a mask of the bytes that are no digits tells where the point and
# the end are, and the last 16 digits become an integer in a few multiplications. The vector way is SSE2, which every
# x86-64 has; its portable twin works on 64-bit words and is tested beside it.
cdef extern from *:
    """
    #include <cassert>
    #include <charconv>
    #include <cmath>
    #include <cstdint>
    #include <cstring>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #define FASTINFER_VECTOR 1
    #else
    #define FASTINFER_VECTOR 0
    #endif

    namespace fastinfer {
    constexpr uint64_t ASCII_ZEROS = 0x3030303030303030, ABOVE_NINE = 0x7676767676767676;
    constexpr uint64_t HIGH_BITS = 0x8080808080808080, LOW_BITS = 0x0101010101010101;
    constexpr uint64_t PAIRS = 0x000000FF000000FF, HUNDREDS = 0x000F424000000064, UNITS = 0x0000271000000001;
    constexpr uint64_t GATHER = 0x0102040810204080;          // moves bits 0, 8, 16, ... into the top byte
    constexpr uint64_t EXACT_INTEGER = uint64_t(1) << 53;    // doubles hold every integer up to it
    constexpr uint64_t TEN_16 = 10000000000000000;
    constexpr double FLOAT_LIMIT = 0x1.ffffffp+127;          // rounds to infinity as float32, as does all beyond
    constexpr double POWERS[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14,
                                 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    constexpr double SIGNS[] = {1.0, -1.0};                  // a random sign must not cost a wrong guess
    constexpr uint64_t INTEGER_POWERS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
    constexpr int EXACT_FIVE = 27;                           // 5**27 is the largest power of five in 64 bits

    struct Tables {
        uint64_t fives[EXACT_FIVE + 1];
        unsigned char last[32];        // 16 bytes at last + n: the last n are ones
        unsigned char digits[32];      // 16 bytes at digits + n: the last n keep the value of an ASCII digit
        double scales[20][2];          // 10**n and its negative
        constexpr Tables() : fives(), last(), digits(), scales() {
            uint64_t five = 1;
            double ten = 1;
            for (int n = 0; n <= EXACT_FIVE; n++) {
                fives[n] = five;
                five *= 5;
            }
            for (int n = 16; n < 32; n++) {
                last[n] = 0xFF;
                digits[n] = 0x0F;
            }
            for (int n = 0; n < 20; n++, ten *= 10) {
                scales[n][0] = ten;
                scales[n][1] = -ten;
            }
        }
    };
    alignas(64) constexpr Tables TABLES;

    static inline uint64_t load_word(const void* p) {
        uint64_t word;
        std::memcpy(&word, p, 8);
        return word;
    }
    static inline uint64_t first_bit(uint64_t mask) { return uint32_t(__builtin_ctzll(mask)); }

    // The value of eight digits, given as bytes of 0 to 9, the first one lowest.
    static inline uint64_t eight_digits(uint64_t digits) {
        digits = digits * 10 + (digits >> 8);
        return uint32_t(((digits & PAIRS) * HUNDREDS + ((digits >> 16) & PAIRS) * UNITS) >> 32);
    }

    // A bit for each of the 16 bytes at p that is not a digit.
    template <bool VECTOR> static inline uint64_t other_bytes(const char* p) {
    #if FASTINFER_VECTOR
        if constexpr (VECTOR) {
            __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
            __m128i value = _mm_sub_epi8(text, _mm_set1_epi8('0'));
            return uint32_t(_mm_movemask_epi8(_mm_adds_epu8(value, _mm_set1_epi8(0x76))));
        }
    #endif
        uint64_t mask = 0;
        for (int half = 0; half < 16; half += 8) {
            uint64_t value = load_word(p + half) ^ ASCII_ZEROS;
            uint64_t other = (((value & ~HIGH_BITS) + ABOVE_NINE) | value) & HIGH_BITS;
            mask |= (((other >> 7) * GATHER) >> 56) << half;
        }
        return mask;
    }

    // The last `count` (at most 16) digits before `end` as an integer, where a point stands before the last
    // `fraction` of them (POINT), or none does. Reads 17 bytes before `end`.
    template <bool VECTOR, bool POINT>
    static inline uint64_t last_digits(const char* end, uint64_t fraction, uint64_t count) {
        assert(fraction <= 16 && count <= 16);
    #if FASTINFER_VECTOR
        if constexpr (VECTOR) {
            auto load = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
            __m128i text = load(end - 16);
            if (POINT) {  // the digits before the point move up by one place, over it
                __m128i behind = load(TABLES.last + fraction);
                text = _mm_or_si128(_mm_and_si128(text, behind), _mm_andnot_si128(behind, load(end - 17)));
            }
            text = _mm_and_si128(text, load(TABLES.digits + count));
            __m128i tens = _mm_set1_epi16(10 * 256 + 1);
            asm("" : "+x"(tens));  // one multiplication: the compiler would make five instructions of it
            __m128i pairs = _mm_srli_epi16(_mm_mullo_epi16(text, tens), 8);
            __m128i fours = _mm_madd_epi16(pairs, _mm_set1_epi32(1 << 16 | 100));
            __m128i eights = _mm_madd_epi16(_mm_packs_epi32(fours, fours), _mm_set1_epi32(1 << 16 | 10000));
            uint64_t both = uint64_t(_mm_cvtsi128_si64(eights));
            return (both & 0xFFFFFFFF) * 100000000 + (both >> 32);
        }
    #endif
        uint64_t high = load_word(end - 16), low = load_word(end - 8);
        if (POINT) {
            uint64_t high_behind = load_word(TABLES.last + fraction);
            uint64_t low_behind = load_word(TABLES.last + fraction + 8);
            high = (high & high_behind) | (load_word(end - 17) & ~high_behind);
            low = (low & low_behind) | (load_word(end - 9) & ~low_behind);
        }
        high &= load_word(TABLES.digits + count);
        low &= load_word(TABLES.digits + 8 + count);
        return eight_digits(high) * 100000000 + eight_digits(low);
    }

    static inline double power_of_two(int exponent) {
        uint64_t bits = uint64_t(1023 + exponent) << 52;
        double value;
        std::memcpy(&value, &bits, 8);
        return value;
    }

    // mantissa / 10**power, correctly rounded, for powers up to EXACT_FIVE: a long division in integers, whose
    // remainder decides what lies between two doubles.
    static inline double divide_exactly(uint64_t mantissa, int power) {
        assert(mantissa > 0 && power >= 0 && power <= EXACT_FIVE);
        __extension__ typedef unsigned __int128 wide;
        uint64_t divisor = TABLES.fives[power];
        int up = __builtin_clzll(mantissa), down = __builtin_clzll(divisor);
        divisor <<= down;
        wide dividend = wide(mantissa << up) << 63;
        uint64_t quotient = uint64_t(dividend / divisor);       // 62 bits at least
        quotient |= wide(quotient) * divisor != dividend;       // far below the last bit of a double
        return double(int64_t(quotient >> 1 | (quotient & 1))) * power_of_two(down - up - power - 62);
    }

    // mantissa * 10**power, correctly rounded, for powers up to EXACT_FIVE.
    static inline double multiply_exactly(uint64_t mantissa, int power) {
        assert(power >= 0 && power <= EXACT_FIVE);
        __extension__ typedef unsigned __int128 wide;
        return double(wide(mantissa) * TABLES.fives[power]) * power_of_two(power);
    }

    // mantissa / 10**power for powers up to 19, correctly rounded to double and then to T.
    template <typename T> static inline T divide(uint64_t mantissa, uint64_t power, uint64_t negative) {
        double value = double(mantissa) / TABLES.scales[power][negative];
        // Two roundings are off by less than one part in 2**50: harmless unless a float32 turns within that distance.
        if (sizeof(T) == sizeof(float) && T(value * (1 - 0x1p-50)) == T(value * (1 + 0x1p-50))) return T(value);
        if (mantissa <= EXACT_INTEGER) return T(value);
        return T(divide_exactly(mantissa, int(power)) * SIGNS[negative]);
    }

    // Whether the digits at p may begin a number: there is one, and no zero before another.
    static inline bool begins_number(const char* p) {
        uint16_t two;
        std::memcpy(&two, p, 2);
        return uint32_t(__builtin_bswap16(two ^ 0x3030)) - 10 < 0x0A00 - 10;
    }

    constexpr int PLAIN_BEFORE = 17, PLAIN_AFTER = 17;   // bytes that are there: what it reads, and one behind it

    // As read_plain_as, of the numbers that do not end within 16 bytes.
    template <bool VECTOR, typename T> static const char* read_long_plain(const char* p, const char* end, T* out) {
        if (end - p < 33) return nullptr;
        uint64_t negative = *p == '-';
        uint64_t others = (other_bytes<VECTOR>(p) | other_bytes<VECTOR>(p + 16) << 16) - negative;
        if (others == 0 || !begins_number(p + negative)) return nullptr;
        const char* stop = p + first_bit(others);
        if (*stop != '.') {
            uint64_t count = uint64_t(stop - p) - negative, above = count > 16 ? count - 16 : 0;
            if (count > 19) return nullptr;
            uint64_t mantissa = last_digits<VECTOR, false>(stop, 0, count - above)
                + last_digits<VECTOR, false>(stop - 16, 0, above) * TEN_16;
            *out = divide<T>(mantissa, 0, negative);
            return stop;
        }
        others &= others - 1;
        if (others == 0) return nullptr;
        const char* last = p + first_bit(others);
        uint64_t fraction = uint64_t(last - stop) - 1, count = uint64_t(last - p) - negative - 1;
        if (fraction == 0 || count > 19) return nullptr;
        uint64_t near = fraction < 16 ? fraction : 16, above = count > 16 ? count - 16 : 0;
        uint64_t mantissa = last_digits<VECTOR, true>(last, near, count - above)
            + last_digits<VECTOR, true>(last - 16, fraction - near, above) * TEN_16;
        *out = divide<T>(mantissa, fraction, negative);
        return last;
    }

    // Read the number at p if it is a plain decimal: past it, else NULL. PLAIN_BEFORE bytes before p and PLAIN_AFTER
    // from p on are there; so is the byte behind the one that follows the number. An exponent may follow: then what
    // was read is not the number.
    template <bool VECTOR, typename T>
    static inline const char* read_plain_as(const char* p, const char* end, T* out) {
        assert(end - p >= PLAIN_AFTER);
        uint64_t negative = *p == '-';
        uint64_t others = other_bytes<VECTOR>(p) - negative;
        if (__builtin_expect(others == 0, 0)) return read_long_plain<VECTOR>(p, end, out);
        const char* stop = p + first_bit(others);
        if (__builtin_expect(!begins_number(p + negative), 0)) return nullptr;
        if (*stop != '.') {
            uint64_t count = uint64_t(stop - p) - negative;
            *out = T(double(int64_t(last_digits<VECTOR, false>(stop, 0, count))) * SIGNS[negative]);
            return stop;
        }
        others &= others - 1;
        if (__builtin_expect(others == 0, 0)) return read_long_plain<VECTOR>(p, end, out);
        const char* last = p + first_bit(others);
        uint64_t fraction = uint64_t(last - stop) - 1;
        if (__builtin_expect(fraction == 0, 0)) return nullptr;
        uint64_t mantissa = last_digits<VECTOR, true>(last, fraction, uint64_t(last - p) - negative - 1);
        *out = T(double(int64_t(mantissa)) / TABLES.scales[fraction][negative]);  // both are exact: 14 digits at most
        return last;
    }
    // As read_plain_as, of an integer of at most 15 digits; what stands behind it is the caller's to check.
    static inline const char* read_plain_integer(const char* p, uint64_t* magnitude, uint64_t* negative) {
        *negative = *p == '-';
        uint64_t others = other_bytes<FASTINFER_VECTOR>(p) - *negative;
        if (others == 0 || !begins_number(p + *negative)) return nullptr;
        const char* stop = p + first_bit(others);
        *magnitude = last_digits<FASTINFER_VECTOR, false>(stop, 0, uint64_t(stop - p) - *negative);
        return stop;
    }
    template <typename T> static inline const char* read_plain(const char* p, const char* end, T* out) {
        return read_plain_as<FASTINFER_VECTOR>(p, end, out);
    }
    template <typename T> static inline const char* read_plain_portably(const char* p, const char* end, T* out) {
        return read_plain_as<false>(p, end, out);
    }

    // ---- float32 to text: the values that answers mostly have ----

    // The high 32 bits of a product of 96 bits, the last one set where anything but zeros stands below.
    static inline uint32_t multiply_to_odd(uint64_t power, uint32_t value) {
        __extension__ typedef unsigned __int128 wide;
        wide product = wide(power) * value;
        return uint32_t(product >> 64) | (uint32_t(uint64_t(product) >> 32) > 1);
    }

    // digits * 10**power is the shortest decimal that reads back as the float32 fraction * 2**exponent, and of those
    // the nearest; it may end in zeros. Source: Raffaello Giulietti, "The Schubfach way to render doubles", 2020, for
    // 24 bits. Within [2**-14, 2**24) its powers of ten are exact in 64 bits, so there is no table of long ones.
    static inline uint32_t shortest_digits(uint32_t fraction, int exponent, int* power) {
        assert(fraction >> 23 == 1 && exponent >= -37 && exponent <= 0);
        bool odd = fraction & 1, near = fraction == 1u << 23;     // near: the neighbour below is half as far
        *power = (exponent * 1262611 - (near ? 524031 : 0)) >> 22;
        uint64_t ten = TABLES.fives[-*power] << -*power;
        int shift = exponent + ((-*power * 1741647) >> 19) + 1;
        ten <<= __builtin_clzll(ten);
        uint32_t lower = multiply_to_odd(ten, (4 * fraction - 2 + near) << shift) + odd;
        uint32_t middle = multiply_to_odd(ten, (4 * fraction) << shift);
        uint32_t upper = multiply_to_odd(ten, (4 * fraction + 2) << shift) - odd;
        uint32_t ones = middle / 4, tens = ones / 10;
        bool below = lower <= 40 * tens, above = 40 * tens + 40 <= upper;
        if (below != above) {
            ++*power;
            return tens + above;
        }
        below = lower <= 4 * ones;
        above = 4 * ones + 4 <= upper;
        if (below != above) return ones + above;
        return ones + (middle > 4 * ones + 2 || (middle == 4 * ones + 2 && (ones & 1)));
    }

    // Eight digits as bytes of 0 to 9, the first one lowest.
    static inline uint64_t spread_digits(uint32_t value) {
        uint64_t fours = value / 10000 | uint64_t(value % 10000) << 32;
        uint64_t hundreds = (fours * 10486 >> 20) & 0x0000007F0000007F;
        uint64_t pairs = ((fours - 100 * hundreds) << 16) + hundreds;
        uint64_t tens = (pairs * 103 >> 10) & 0x000F000F000F000F;
        return ((pairs - 10 * tens) << 8) + tens;
    }

    // Write digits * 10**power with a point: past it, or NULL where an exponent may be shorter, or more than seven
    // digits stand before the point. Up to 24 bytes are touched.
    static inline char* write_fixed(char* out, uint32_t digits, int power) {
        uint32_t ninth = 0;
        if (digits >= 100000000) {
            ninth = digits % 10;
            digits /= 10;
            power++;
        }
        uint64_t spread = spread_digits(digits);
        int zeros = __builtin_ctzll(spread) >> 3;                // before the first digit that is not 0
        int count = ninth ? 9 : 8 - zeros - (__builtin_clzll(spread) >> 3);
        int whole = 8 - zeros + power;                           // digits before the point
        uint64_t text = (spread >> 8 * zeros) | ASCII_ZEROS;
        if (whole > 7 || whole < -3 || (whole == -3 && count == 1)) return nullptr;
        if (whole <= 0) {
            std::memcpy(out, "0.000000", 8);
            out += 2 - whole;
            std::memcpy(out, &text, 8);
            out[8] = char('0' + ninth);
            return out + count;
        }
        std::memcpy(out, &text, 8);
        out[whole] = '.';
        text = text >> 8 * whole | ASCII_ZEROS;
        std::memcpy(out + whole + 1, &text, 8);
        out[9] = char('0' + ninth);
        return out + (count > whole ? count : whole + 1) + 1;    // .0 where nothing else stands behind the point
    }

    // Write a float32 as std::to_chars does, with a point: past it, or NULL for what is rare.
    static inline char* write_common_float(char* out, float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        uint32_t fraction = (bits & 0x7FFFFF) | 1u << 23;
        int exponent = int(bits >> 23 & 0xFF) - 150, power;
        *out = '-';
        out += bits >> 31;
        if (exponent < -37 || exponent > 0) {
            if (bits << 1) return nullptr;
            std::memcpy(out, "0.0", 3);
            return out + 3;
        }
        if (exponent > -24 && !(fraction & ((1u << -exponent) - 1))) {
            uint32_t whole = fraction >> -exponent;
            return whole < 100000 ? write_fixed(out, whole, 0) : nullptr;
        }
        uint32_t digits = shortest_digits(fraction, exponent, &power);
        return write_fixed(out, digits, power);
    }

    // The correctly rounded double of a text that is a JSON number; false when beyond the range of a double.
    static inline bool from_text(const char* first, const char* last, double* value) {
        return std::from_chars(first, last, *value).ec == std::errc();
    }
    template <typename T> static inline char* to_text(char* first, char* last, T value) {
        return std::to_chars(first, last, value).ptr;
    }
    template <typename T> static inline char* to_scientific(char* first, char* last, T value) {
        return std::to_chars(first, last, value, std::chars_format::scientific).ptr;
    }
    template <typename T> static inline bool is_finite(T value) { return std::isfinite(value); }
    }
    """
    const char* read_plain "fastinfer::read_plain"[T](const char* p, const char* end, T* out) noexcept nogil
    const char* read_plain_portably "fastinfer::read_plain_portably"[T](const char* p, const char* end,
                                                                        T* out) noexcept nogil
    const char* read_plain_integer "fastinfer::read_plain_integer"(const char* p, uint64_t* magnitude,
                                                                   uint64_t* negative) noexcept nogil
    double divide_exactly "fastinfer::divide_exactly"(uint64_t mantissa, int power) noexcept nogil
    double multiply_exactly "fastinfer::multiply_exactly"(uint64_t mantissa, int power) noexcept nogil
    char* write_common_float "fastinfer::write_common_float"(char* out, float value) noexcept nogil
    bint from_text "fastinfer::from_text"(const char* first, const char* last, double* value) noexcept nogil
    char* to_text "fastinfer::to_text"[T](char* first, char* last, T value) noexcept nogil
    char* to_scientific "fastinfer::to_scientific"[T](char* first, char* last, T value) noexcept nogil
    bint is_finite "fastinfer::is_finite"[T](T value) noexcept nogil
    const uint64_t ASCII_ZEROS "fastinfer::ASCII_ZEROS"
    const uint64_t ABOVE_NINE "fastinfer::ABOVE_NINE"
    uint64_t eight_digits "fastinfer::eight_digits"(uint64_t digits) noexcept nogil
    const uint64_t HIGH_BITS "fastinfer::HIGH_BITS"
    const uint64_t LOW_BITS "fastinfer::LOW_BITS"
    const uint64_t EXACT_INTEGER "fastinfer::EXACT_INTEGER"
    const double FLOAT_LIMIT "fastinfer::FLOAT_LIMIT"
    const double* POWERS "fastinfer::POWERS"
    const double* SIGNS "fastinfer::SIGNS"
    const uint64_t* INTEGER_POWERS "fastinfer::INTEGER_POWERS"
    const int EXACT_FIVE "fastinfer::EXACT_FIVE"
    const int PLAIN_BEFORE "fastinfer::PLAIN_BEFORE"
    const int PLAIN_AFTER "fastinfer::PLAIN_AFTER"
    int trailing_zeros "__builtin_ctzll"(uint64_t value) noexcept nogil

cdef enum:
    NUMBER_SIZE = 32            # bytes that write_real and write_integer may need
    EXACT_POWER = 22            # 10**22 is the largest power of ten that a double holds exactly
    EXACT_DIGITS = 19           # any 19 digits fit an uint64
    MAX_EXPONENT = 1000000      # past it every number is zero or infinite; keeps the sums from overflowing


cdef inline bint is_digit(char c) noexcept nogil:
    return <unsigned char>(c - 48) <= 9


cdef inline const char* read_fraction(const char* p, const char* end, uint64_t* mantissa) noexcept nogil:
    """Shift the digits at ``p`` into ``mantissa``, eight at a time in one register; wraps past 19 digits."""
    cdef uint64_t chunk, stops
    cdef int count
    while end - p >= 8:
        memcpy(&chunk, p, 8)
        chunk ^= ASCII_ZEROS
        # A byte over 9 sets its high bit. A carry reaches only bytes behind the first such byte.
        stops = ((chunk + ABOVE_NINE) | chunk) & HIGH_BITS
        count = trailing_zeros(stops) >> 3 if stops else 8
        if count == 0:
            return p
        mantissa[0] = mantissa[0] * INTEGER_POWERS[count] + eight_digits(chunk << (64 - 8 * count))
        p += count
        if count < 8:
            return p
    while p < end and is_digit(p[0]):
        mantissa[0] = mantissa[0] * 10 + <uint64_t>(p[0] - 48)
        p += 1
    return p


cdef const char* read_exponent(const char* p, const char* end, int64_t* exponent) noexcept nogil:
    """Add the exponent at ``p``, behind its ``e``; NULL when there is none."""
    cdef const char* first
    cdef int64_t value = 0
    cdef bint negative = False
    if p < end and (p[0] == c'-' or p[0] == c'+'):
        negative = p[0] == c'-'
        p += 1
    first = p
    while p < end and is_digit(p[0]):
        if value < MAX_EXPONENT:
            value = value * 10 + (p[0] - 48)
        p += 1
    exponent[0] += -value if negative else value
    return p if p > first else NULL


cdef const char* read_double(const char* p, const char* end, double* value) noexcept nogil:
    """Read one JSON number: correctly rounded, as Python's float does.

    Clinger's fast path where the digits and the power of ten are exact in a double, exact integers where they fit
    64 bits, else the standard library.
    Returns the end of the number; NULL when there is none (RFC 8259's grammar) or it is beyond a double's range.
    """
    cdef const char* start = p
    cdef const char* first
    cdef const char* point
    cdef uint64_t mantissa = 0
    cdef int64_t exponent = 0
    cdef int64_t digits
    cdef double result
    cdef bint negative = p < end and p[0] == c'-'
    p += negative
    first = p
    while p < end and is_digit(p[0]):
        mantissa = mantissa * 10 + <uint64_t>(p[0] - 48)
        p += 1
    digits = p - first
    if digits == 0 or (digits > 1 and first[0] == c'0'):
        return NULL
    if p < end and p[0] == c'.':
        point = p + 1
        p = read_fraction(point, end, &mantissa)
        if p == point:
            return NULL
        exponent = point - p
        digits -= exponent
    if p < end and (p[0] | 32) == c'e':
        p = read_exponent(p + 1, end, &exponent)
        if p == NULL:
            return NULL
    if digits <= EXACT_DIGITS and mantissa <= EXACT_INTEGER and -EXACT_POWER <= exponent <= EXACT_POWER:
        result = <double><int64_t>mantissa  # one instruction, where an unsigned one takes a branch
        if exponent < 0:
            result /= POWERS[-exponent]
        else:
            result *= POWERS[exponent]
        value[0] = result * SIGNS[negative]
        return p
    if read_exactly(first, digits, mantissa, exponent, &result):
        value[0] = result * SIGNS[negative]
        return p
    return p if read_rounded(start, p, exponent + digits, value) else NULL


cdef bint read_exactly(const char* first, int64_t digits, uint64_t mantissa, int64_t exponent,
                       double* value) noexcept nogil:
    """``mantissa * 10**exponent``, where the digits from the first that is not 0 fit 64 bits."""
    while digits > EXACT_DIGITS and (first[0] == c'0' or first[0] == c'.'):
        digits -= first[0] == c'0'
        first += 1
    if digits > EXACT_DIGITS or mantissa == 0 or not -EXACT_FIVE <= exponent <= EXACT_FIVE:
        return False
    if exponent < 0:
        value[0] = divide_exactly(mantissa, <int>-exponent)
    else:
        value[0] = multiply_exactly(mantissa, <int>exponent)
    return True


cdef bint read_rounded(const char* start, const char* end, int64_t magnitude, double* value) noexcept nogil:
    """The general case; ``magnitude`` is the power of ten of the first digit's place plus one.

    The standard library reports numbers too small for a double as it does those too large: they are zero here.
    """
    if from_text(start, end, value):
        return True
    value[0] = -0.0 if start[0] == c'-' else 0.0
    start += start[0] == c'-'
    while start < end and (start[0] == c'0' or start[0] == c'.'):
        magnitude -= start[0] == c'0'
        start += 1
    return magnitude < 0


cdef inline const char* read_integer(const char* p, const char* end, uint64_t* magnitude,
                                     bint* negative) noexcept nogil:
    """Read a JSON number without point and exponent; NULL when there is none or it is beyond 64 bits.

    What stands behind it is the caller's to check.
    """
    cdef const char* first
    cdef uint64_t value = 0
    cdef uint64_t digit
    negative[0] = p < end and p[0] == c'-'
    p += negative[0]
    first = p
    while p < end and is_digit(p[0]):
        digit = <uint64_t>(p[0] - 48)
        if p - first >= EXACT_DIGITS and value > (<uint64_t>0xFFFFFFFFFFFFFFFF - digit) // 10:
            return NULL
        value = value * 10 + digit
        p += 1
    if p == first or (p - first > 1 and first[0] == c'0'):
        return NULL
    magnitude[0] = value
    return p


ctypedef fused real_t:
    float
    double


cdef inline char* write_real(char* out, real_t value) noexcept nogil:
    """The shortest text that reads back as ``value`` at its own type; ``null`` for NaN and infinities.

    ``out`` has room for NUMBER_SIZE bytes. Returns the end of the text.
    """
    cdef char* end
    if real_t is float:
        end = write_common_float(out, value)
        if end != NULL:
            return end
    return write_any_real(out, value)


cdef char* write_any_real(char* out, real_t value) noexcept nogil:
    """As ``write_real``, by the standard library."""
    cdef char* end
    cdef char* p
    cdef char[NUMBER_SIZE] other
    cdef Py_ssize_t size
    if not is_finite(value):
        memcpy(out, b"null", 4)
        return out + 4
    end = to_text(out, out + NUMBER_SIZE - 2, value)
    p = out
    while p < end:
        if p[0] == c'.' or p[0] == c'e':
            return end
        p += 1
    if end - out > 6:  # digits only: 100089700352.0 is longer than 1.000897e+11
        size = to_scientific(<char*>other, <char*>other + NUMBER_SIZE, value) - <char*>other
        if size < end + 2 - out:
            memcpy(out, <char*>other, size)
            return out + size
    memcpy(end, b".0", 2)
    return end + 2


def parse_number(bytes text not None):
    """The double that the decoder reads from a JSON number, or None where it refuses. For tests."""
    cdef const char* start = text
    cdef const char* end = start + len(text)
    cdef double value = 0
    return value if read_double(start, end, &value) == end else None


def parse_plain_number(bytes text not None, Py_ssize_t begin, bint single, bint portable):
    """The number at ``begin`` as the decoder's fast way reads it, as float32 (``single``) or float64. For tests.

    Returns:
        (value, offset of its end), or None where that way does not take it.
    """
    cdef const char* start = text
    cdef const char* end = start + len(text)
    cdef const char* p = start + begin
    cdef float narrow = 0
    cdef double wide = 0
    if begin < PLAIN_BEFORE or end - p < PLAIN_AFTER:
        raise ValueError("too close to an end of the text")
    if single:
        p = read_plain_portably(p, end, &narrow) if portable else read_plain(p, end, &narrow)
    else:
        p = read_plain_portably(p, end, &wide) if portable else read_plain(p, end, &wide)
    return (narrow if single else wide, p - start) if p != NULL else None


def render_number(double value, bint single, bint plainly=False):
    """The text that the encoder writes for ``value`` as FP32 (``single``) or FP64. For tests.

    ``plainly``: as the standard library has it, without the fast way.
    """
    cdef char[NUMBER_SIZE] out
    cdef char* end
    if plainly:
        end = write_any_real(<char*>out, <float>value) if single else write_any_real(<char*>out, value)
    else:
        end = write_real(<char*>out, <float>value) if single else write_real(<char*>out, value)
    return (<bytes>out[:end - <char*>out]).decode("ascii")
