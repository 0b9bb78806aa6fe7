"""Numbers of JSON, bit for bit as Python's float has them."""

import json
import math
import re
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastinfer._core import parse_number, parse_plain_number, render_number

GRAMMAR = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
HARD = [
    # halfway between two doubles, and one digit to either side of it
    b"9007199254740993", b"9007199254740992.99999999999999999999", b"9007199254740993.00000000000000000001",
    b"1.7976931348623157e308", b"1.7976931348623158e308", b"4.9406564584124654e-324", b"2.4703282292062328e-324",
    b"2.4703282292062327e-324", b"2.2250738585072011e-308", b"2.2250738585072014e-308", b"1e-400", b"-1e-400",
    b"0e999999999999999999999", b"-0", b"-0.0e-7", b"1e22", b"1e23", b"123456789012345678901234567890",
    b"0.1", b"1" + b"0" * 400 + b"e-400", b"0." + b"0" * 400 + b"1e400", b"0." + b"0" * 400 + b"1e10",
    b"1" + b"0" * 308, b"8." + b"9" * 900, b"12345678", b"1.23456789", b"1.234567891", b"0.12345678901234567",
    b"9999999999999999999", b"99999999999999999999", b"7.2057594037927933e16", b"3.4028235677973366e38",
    b"0.00012345678901234567", b"0.000000000000000000123456789", b"12345678901234567e-27", b"12345678901234567e27",
    b"18446744073709551615e-27", b"9007199254740993e1", b"90071992547409935e-1", b"1234567890123456789e-28",
    b"9223372036854775809", b"0.9007199254740993",
    b"6.02e23", b"1E+5", b"1e-07", b"5e-324", b"179769313486231570000e288",
]


def bits(value):
    return struct.pack("<d", value)


@pytest.mark.parametrize("text", HARD)
def test_hard_numbers(text):
    assert bits(parse_number(text)) == bits(float(text))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_shortest_texts(value):
    assert bits(parse_number(repr(value).encode())) == bits(value)


@given(st.from_regex(GRAMMAR, fullmatch=True))
@example(b"1e309")
@example(b"-1e309")
@example(b"1.7976931348623159e308")
def test_any_number(text):
    expected = float(text)
    value = parse_number(text)
    assert value is None if math.isinf(expected) else bits(value) == bits(expected)


@given(st.integers(0, 2**64), st.integers(-330, 310), st.booleans())
def test_digits_and_exponents(digits, exponent, negative):
    text = f"{'-' if negative else ''}{digits}e{exponent}".encode()
    expected = float(text)
    value = parse_number(text)
    assert value is None if math.isinf(expected) else bits(value) == bits(expected)


@given(st.text("0123456789", min_size=1, max_size=40), st.text("0123456789", max_size=40))
def test_any_number_of_digits(whole, fraction):
    whole = whole.lstrip("0") or "0"
    text = (f"{whole}.{fraction}" if fraction else whole).encode()
    assert bits(parse_number(text)) == bits(float(text))


@given(st.binary(max_size=12) | st.text("0123456789.eE+-", max_size=12).map(str.encode))
def test_only_the_grammar_is_a_number(text):
    if GRAMMAR.fullmatch(text):
        expected = float(text)
        assert math.isinf(expected) == (parse_number(text) is None)
    else:
        assert parse_number(text) is None


# ---- the fast way for plain decimals, as vectors and as words ------------------------------------------------------
PLAIN = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
WAYS = [pytest.param(single, portable, id=f"{'float32' if single else 'float64'}-{'words' if portable else 'vectors'}")
        for single in (True, False) for portable in (True, False)]


def check_plain(text, single, portable, before=b"1234567890.12345,", behind=b"," + b"9" * 32):
    """What the fast way reads is a number's text up to its exponent, with that text's value; else nothing."""
    found = parse_plain_number(before[-17:] + text + behind, 17, single, portable)
    if found is None:
        return False
    value, end = found
    read = text[:end - 17]
    assert PLAIN.fullmatch(read)
    assert text[len(read):len(read) + 1] not in tuple(b"%d" % k for k in range(10))
    expected = float(np.float32(float(read))) if single else float(read)
    assert bits(value) == bits(expected)
    return True


@pytest.mark.parametrize(("single", "portable"), WAYS)
@given(st.integers(0, 10**19 - 1), st.integers(1, 19), st.integers(0, 18), st.booleans())
def test_every_plain_decimal_is_read_fast(single, portable, value, count, fraction, negative):
    digits = f"{value:019d}"[:count]
    fraction = min(fraction, count - 1)
    whole = digits[:count - fraction].lstrip("0") or "0"
    text = f"{'-' if negative else ''}{whole}{'.' if fraction else ''}{digits[count - fraction:]}".encode()
    assert check_plain(text, single, portable)
    assert check_plain(text, single, portable, before=b"\xff" * 17, behind=b"]" + b"\xff" * 32)
    assert check_plain(text, single, portable, before=b"." * 17, behind=b" " + b"." * 32)


@pytest.mark.parametrize(("single", "portable"), WAYS)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.booleans())
@example(-0.0, False)
@example(16777217.0, True)
def test_floats_are_read_fast(single, portable, value, wide):
    text = repr(value) if wide else render_number(value, True)
    check_plain(text.encode(), single, portable)


@pytest.mark.parametrize(("single", "portable"), WAYS)
@given(st.binary(max_size=24) | st.text("0123456789.eE+-,/:", max_size=24).map(str.encode), st.binary(min_size=17))
def test_only_numbers_are_read_fast(single, portable, text, before):
    check_plain(text, single, portable, before, b"," * 32)


@pytest.mark.parametrize(("single", "portable"), WAYS)
@pytest.mark.parametrize("text", HARD)
def test_hard_numbers_read_fast(text, single, portable):
    check_plain(text, single, portable)


@given(st.integers(0, 2**24 - 2), st.integers(-12, 60), st.integers(-3, 3))
def test_midpoints_of_floats_are_rounded_by_way_of_the_double(mantissa, exponent, offset):
    """Numbers of at most 19 digits beside the middle of two float32, where one rounding differs from two."""
    middle = math.ldexp(2**24 + mantissa + 0.5, exponent - 24)
    precision = max(0, 18 - len(str(int(middle))))
    text = np.format_float_positional(middle, precision=precision, unique=False).rstrip(".")
    if offset:
        text = text[:-1] + str((int(text[-1]) + offset) % 10)
    for portable in (True, False):
        assert check_plain(text.encode(), True, portable) or len(text) > 19


@given(st.floats())
@example(1e16)
@example(-0.0)
@example(5e-324)
@example(1e5)
def test_doubles_print_and_read_back(value):
    text = render_number(value, False)
    if not math.isfinite(value):
        assert text == "null"
        return
    assert bits(json.loads(text)) == bits(value)
    assert set(text) & set(".e")
    assert len(text) <= len(repr(value))


@given(st.floats(width=32))
@example(0.1)
@example(1e10)
def test_floats_print_and_read_back_at_their_own_type(value):
    text = render_number(value, True)
    if not math.isfinite(value):
        assert text == "null"
        return
    assert np.float32(text).tobytes() == np.float32(value).tobytes()
    assert set(text) & set(".e")
    assert len(text) <= len(str(np.float32(value)))


@given(st.floats(width=32))
@example(0.0001)
@example(0.00010001)
@example(99999.0)
@example(100000.0)
@example(8388607.5)
@example(2.0**-14)
def test_the_fast_way_prints_as_the_standard_library(value):
    assert render_number(value, True) == render_number(value, True, True)


def test_floats_of_every_exponent_print_as_the_standard_library_has_them():
    source = np.random.default_rng(11)
    exponents = np.repeat(np.arange(256, dtype=np.uint32), 60)
    fractions = source.integers(0, 1 << 23, exponents.size, dtype=np.uint32)
    fractions[::10] &= np.uint32(0x7F0000)  # short ones
    fractions[::20] = 0
    signs = source.integers(0, 2, exponents.size, dtype=np.uint32)
    for value in (signs << 31 | exponents << 23 | fractions).view(np.float32).tolist():
        assert render_number(value, True) == render_number(value, True, True)
