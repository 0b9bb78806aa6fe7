# Numbers of JSON: text to exact values, values to the shortest text.
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <charconv>
    #include <cmath>
    #include <cstdint>

    namespace fastinfer {
    constexpr uint64_t ASCII_ZEROS = 0x3030303030303030, ABOVE_NINE = 0x7676767676767676;
    constexpr uint64_t HIGH_BITS = 0x8080808080808080, LOW_BITS = 0x0101010101010101;
    constexpr uint64_t PAIRS = 0x000000FF000000FF, HUNDREDS = 0x000F424000000064, UNITS = 0x0000271000000001;
    constexpr uint64_t EXACT_INTEGER = uint64_t(1) << 53;    // doubles hold every integer up to it
    constexpr double FLOAT_LIMIT = 0x1.ffffffp+127;          // rounds to infinity as float32, as does all beyond
    constexpr double POWERS[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14,
                                 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    constexpr double SIGNS[] = {1.0, -1.0};                  // a random sign must not cost a wrong guess
    constexpr uint64_t INTEGER_POWERS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};

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
    bint from_text "fastinfer::from_text"(const char* first, const char* last, double* value) noexcept nogil
    char* to_text "fastinfer::to_text"[T](char* first, char* last, T value) noexcept nogil
    char* to_scientific "fastinfer::to_scientific"[T](char* first, char* last, T value) noexcept nogil
    bint is_finite "fastinfer::is_finite"[T](T value) noexcept nogil
    const uint64_t ASCII_ZEROS "fastinfer::ASCII_ZEROS"
    const uint64_t ABOVE_NINE "fastinfer::ABOVE_NINE"
    const uint64_t HIGH_BITS "fastinfer::HIGH_BITS"
    const uint64_t LOW_BITS "fastinfer::LOW_BITS"
    const uint64_t PAIRS "fastinfer::PAIRS"
    const uint64_t HUNDREDS "fastinfer::HUNDREDS"
    const uint64_t UNITS "fastinfer::UNITS"
    const uint64_t EXACT_INTEGER "fastinfer::EXACT_INTEGER"
    const double FLOAT_LIMIT "fastinfer::FLOAT_LIMIT"
    const double* POWERS "fastinfer::POWERS"
    const double* SIGNS "fastinfer::SIGNS"
    const uint64_t* INTEGER_POWERS "fastinfer::INTEGER_POWERS"
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
        chunk <<= 64 - 8 * count
        chunk = chunk * 10 + (chunk >> 8)
        chunk = ((chunk & PAIRS) * HUNDREDS + ((chunk >> 16) & PAIRS) * UNITS) >> 32
        mantissa[0] = mantissa[0] * INTEGER_POWERS[count] + <uint64_t><uint32_t>chunk
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


cdef inline const char* read_double(const char* p, const char* end, double* value) noexcept nogil:
    """Read one JSON number: correctly rounded, as Python's float does.

    Clinger's fast path where the digits and the power of ten are exact in a double, else the standard library.
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
    return p if read_rounded(start, p, exponent + digits, value) else NULL


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


def render_number(double value, bint single):
    """The text that the encoder writes for ``value`` as FP32 (``single``) or FP64. For tests."""
    cdef char[NUMBER_SIZE] out
    cdef char* end = write_real(<char*>out, <float>value) if single else write_real(<char*>out, value)
    return (<bytes>out[:end - <char*>out]).decode("ascii")
