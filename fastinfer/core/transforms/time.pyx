# Dates and times: text to microseconds since 1970-01-01 in UTC, and what the calendar and the clock say of them.
# The calendar is the Gregorian one, also before its time; there are no leap seconds and no time zones but offsets.
from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t, uint64_t

from fastinfer.errors import ConfigurationError

cdef int64_t NO_TIME = <int64_t>(<uint64_t>1 << 63)     # a missing one, as numpy's NaT
cdef int64_t SECOND = 1000000
cdef int64_t DAY = 86400 * SECOND
cdef int64_t FIRST_TIME = -719162 * DAY                 # 0001-01-01T00:00:00
cdef int64_t PAST_TIME = 2932897 * DAY                  # 10000-01-01T00:00:00
cdef int64_t EXACT_DOUBLE = <int64_t>1 << 53

cdef enum TimePart:
    YEAR, QUARTER, MONTH, WEEK, DAY_OF_MONTH, DAY_OF_YEAR, WEEKDAY, HOUR, MINUTE, SECOND_OF_MINUTE, MICROSECOND
    SECOND_OF_DAY, DAYS, SECONDS, DAYS_IN_MONTH, IS_WEEKEND, IS_MONTH_START, IS_MONTH_END, IS_QUARTER_START
    IS_QUARTER_END, IS_YEAR_START, IS_YEAR_END, IS_LEAP_YEAR
    TIME_PARTS

TIME_PART_NAMES = (
    "year", "quarter", "month", "week", "day", "day_of_year", "weekday", "hour", "minute", "second", "microsecond",
    "second_of_day", "days", "seconds", "days_in_month", "is_weekend", "is_month_start", "is_month_end",
    "is_quarter_start", "is_quarter_end", "is_year_start", "is_year_end", "is_leap_year",
)  # in the order of TimePart

cdef struct Date:
    int32_t year, month, day
    int32_t day_of_year         # from 1
    int32_t weekday             # Monday is 0


# ---- the calendar ------------------------------------------------------------------------------------------------
cdef inline bint is_leap_year(int32_t year) noexcept nogil:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


cdef inline int32_t days_in_month(int32_t year, int32_t month) noexcept nogil:
    if month == 2:
        return 29 if is_leap_year(year) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef inline int64_t days_of(int32_t year, int32_t month, int32_t day) noexcept nogil:
    """Days since 1970-01-01 of a date from year 1 on; years begin in March, so that the leap day is the last.

    Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, days_from_civil
    """
    cdef int64_t shifted = year - (1 if month <= 2 else 0)
    cdef int64_t era = shifted // 400
    cdef int64_t of_era = shifted - era * 400
    cdef int64_t of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


cdef inline void date_of(int64_t days, Date* date) noexcept nogil:
    """The date so many days after 1970-01-01, from year 1 on: `civil_from_days` of the same."""
    cdef int64_t shifted = days + 719468
    cdef int64_t era = shifted // 146097
    cdef int64_t of_era = shifted - era * 146097
    cdef int64_t year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    cdef int64_t of_year = of_era - (365 * year + year // 4 - year // 100)
    cdef int64_t month = (5 * of_year + 2) // 153
    date.day = <int32_t>(of_year - (153 * month + 2) // 5 + 1)
    date.month = <int32_t>(month + 3 if month < 10 else month - 9)
    date.year = <int32_t>(year + era * 400 + (1 if date.month <= 2 else 0))
    date.weekday = <int32_t>((shifted + 2) % 7)
    date.day_of_year = <int32_t>(days - days_of(date.year, 1, 1) + 1)


cdef inline int32_t week_of(const Date* date) noexcept nogil:
    """The week of ISO 8601: it belongs to the year that has its Thursday."""
    cdef int32_t thursday = date.day_of_year + 3 - date.weekday
    cdef int32_t days = 366 if is_leap_year(date.year) else 365
    if thursday < 1:
        thursday += 366 if is_leap_year(date.year - 1) else 365
    elif thursday > days:
        thursday -= days
    return (thursday - 1) // 7 + 1


cdef double seconds_of(int64_t time) noexcept nogil:
    """The double nearest to so many microseconds in seconds; of two, the even one, as Python's division has it."""
    cdef bint negative = time < 0
    cdef int64_t size = -time if negative else time
    cdef int64_t whole, product, found, rest
    cdef int bits = 52
    cdef double value
    if size < EXACT_DOUBLE:
        return <double>time / 1e6
    whole = size // SECOND              # below 2**38, so that what follows fits into 64 bits
    product = whole
    while product > 1:
        product >>= 1
        bits -= 1
    product = (size - whole * SECOND) << bits   # a double has so many bits behind the point there
    found = product // SECOND
    rest = 2 * (product - found * SECOND)
    if rest > SECOND or (rest == SECOND and found & 1):
        found += 1
    value = <double>whole + <double>found / <double>(<int64_t>1 << bits)
    return -value if negative else value


# ---- text --------------------------------------------------------------------------------------------------------
cdef inline int32_t read_digits(const char** at, const char* end, int count) noexcept nogil:
    """A number of exactly so many digits, or -1."""
    cdef const char* p = at[0]
    cdef int32_t value = 0
    cdef int i
    if end - p < count:
        return -1
    for i in range(count):
        if p[i] < c'0' or p[i] > c'9':
            return -1
        value = 10 * value + (p[i] - c'0')
    at[0] = p + count
    return value


cdef inline int32_t read_number(const char** at, const char* end, char before, int32_t limit) noexcept nogil:
    """A sign and a number of two digits below ``limit``, or -1."""
    cdef int32_t value
    if at[0] >= end or at[0][0] != before:
        return -1
    at[0] += 1
    value = read_digits(at, end, 2)
    return value if value < limit else -1


cdef int read_time(const char* p, const char* end, int64_t* out) noexcept nogil:
    """A date, or a date and a time, as `docs/reference/features.md` describes; 0, or the reason that it is none."""
    cdef int32_t year = read_digits(&p, end, 4)
    cdef int32_t month = read_number(&p, end, c'-', 13)
    cdef int32_t day = read_number(&p, end, c'-', 32)
    cdef int32_t hour, minute, second = 0
    cdef int64_t fraction = 0, unit = SECOND, offset = 0
    cdef bint east
    if year < 1 or month < 1 or day < 1 or day > days_in_month(year, month):
        return SAYS_TIME
    out[0] = days_of(year, month, day) * DAY
    if p == end:
        return 0
    if p[0] != c'T' and p[0] != c't' and p[0] != c' ':
        return SAYS_TIME
    hour = read_number(&p, end, p[0], 24)
    minute = read_number(&p, end, c':', 60)
    if hour < 0 or minute < 0:
        return SAYS_TIME
    if p < end and p[0] == c':':
        second = read_number(&p, end, c':', 60)
        if second < 0:
            return SAYS_TIME
        if p < end and p[0] == c'.':
            p += 1
            if p == end or p[0] < c'0' or p[0] > c'9':
                return SAYS_TIME
            while p < end and c'0' <= p[0] <= c'9':    # what is below a microsecond is cut off
                unit //= 10
                fraction += unit * (p[0] - c'0')
                p += 1
    out[0] += (hour * 3600 + minute * 60 + second) * SECOND + fraction
    if p == end:
        return 0
    if p[0] == c'Z' or p[0] == c'z':
        return 0 if p + 1 == end else SAYS_TIME
    east = p[0] == c'+'
    hour = read_number(&p, end, c'+' if east else c'-', 24)
    minute = read_number(&p, end, c':', 60)
    if hour < 0 or minute < 0 or p != end:
        return SAYS_TIME
    offset = (hour * 3600 + minute * 60) * SECOND
    out[0] += -offset if east else offset
    return 0 if FIRST_TIME <= out[0] < PAST_TIME else SAYS_YEAR


# ---- kernels -----------------------------------------------------------------------------------------------------
cdef bint load_time(const Operation* operation, const Block* block) noexcept nogil:
    """Spans to microseconds. With `flags` an empty text is a missing value."""
    cdef const Span* spans = <const Span*>block.slabs[operation.source].data + block.row
    cdef int64_t* target = <int64_t*>numbers_of(block, operation.target)
    cdef const char* text
    cdef int reason
    cdef Py_ssize_t i
    for i in range(block.rows):
        if spans[i].length == TIME_BYTES:
            target[i] = <int64_t>spans[i].offset
        elif spans[i].length == MISSING_BYTES or (spans[i].length == 0 and operation.flags):
            target[i] = NO_TIME
        else:
            text = text_at(block, &spans[i])
            reason = read_time(text, text + spans[i].length, &target[i])
            if reason:
                return spoiled(operation, block, BAD_RECORD, reason, i)
    return True


cdef bint date_part(const Operation* operation, const Block* block) noexcept nogil:
    """One part of each time; NaN of a missing one. `flags`: which."""
    cdef const int64_t* source = <const int64_t*>numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = NAN if source[i] == NO_TIME else part_of(source[i], <TimePart>operation.flags)
    return True


cdef double part_of(int64_t time, TimePart part) noexcept nogil:
    cdef int64_t days = time // DAY
    cdef int64_t rest = time - days * DAY
    cdef Date date
    if rest < 0:
        days -= 1
        rest += DAY
    if part == DAYS:
        return <double>days
    if part == SECONDS:
        return seconds_of(time)
    if part == SECOND_OF_DAY:
        return <double>rest / 1e6
    if part == HOUR:
        return <double>(rest // (3600 * SECOND))
    if part == MINUTE:
        return <double>(rest // (60 * SECOND) % 60)
    if part == SECOND_OF_MINUTE:
        return <double>(rest // SECOND % 60)
    if part == MICROSECOND:
        return <double>(rest % SECOND)
    date_of(days, &date)
    return calendar_part(&date, part)


cdef double calendar_part(const Date* date, TimePart part) noexcept nogil:
    cdef bint first = date.day == 1
    cdef bint last = date.day == days_in_month(date.year, date.month)
    if part == YEAR:
        return date.year
    if part == QUARTER:
        return (date.month + 2) // 3
    if part == MONTH:
        return date.month
    if part == WEEK:
        return week_of(date)
    if part == DAY_OF_MONTH:
        return date.day
    if part == DAY_OF_YEAR:
        return date.day_of_year
    if part == WEEKDAY:
        return date.weekday
    if part == DAYS_IN_MONTH:
        return days_in_month(date.year, date.month)
    if part == IS_WEEKEND:
        return date.weekday >= 5
    if part == IS_MONTH_START:
        return first
    if part == IS_MONTH_END:
        return last
    if part == IS_QUARTER_START:
        return first and date.month % 3 == 1
    if part == IS_QUARTER_END:
        return last and date.month % 3 == 0
    if part == IS_YEAR_START:
        return first and date.month == 1
    if part == IS_YEAR_END:
        return last and date.month == 12
    return is_leap_year(date.year)


cdef int compile_part(Operation* operation) except -1:
    if operation.flags >= <uint32_t>TIME_PARTS:
        raise ConfigurationError(f"a date has no part number {operation.flags}")
    return 0
