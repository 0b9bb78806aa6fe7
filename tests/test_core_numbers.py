"""Numbers of JSON, bit for bit as Python's float has them."""

import json
import math
import re
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastinfer._core import parse_number, render_number

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


@given(st.integers(1, 40), st.integers(0, 40), st.data())
def test_any_number_of_digits(before, after, data):
    digits = st.integers(0, 9).map(str)
    whole = "".join(data.draw(st.lists(digits, min_size=before, max_size=before))).lstrip("0") or "0"
    fraction = "".join(data.draw(st.lists(digits, min_size=after, max_size=after)))
    text = (f"{whole}.{fraction}" if fraction else whole).encode()
    assert bits(parse_number(text)) == bits(float(text))


@given(st.binary(max_size=12) | st.text("0123456789.eE+-", max_size=12).map(str.encode))
def test_only_the_grammar_is_a_number(text):
    if GRAMMAR.fullmatch(text):
        expected = float(text)
        assert math.isinf(expected) == (parse_number(text) is None)
    else:
        assert parse_number(text) is None


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
