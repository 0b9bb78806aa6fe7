"""Rows of text against plain twins: Python's csv and json, and the decoder of requests."""

import csv
import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastinfer._core import Encoder, Signature, Task, Tensor, decode, decode_lines, encode, encode_lines, split_rows
from fastinfer.errors import FastinferError, InvalidJsonError, InvalidRecordError

COLUMNS = [Tensor("a", "FP64", (-1, 1), nullable=True, column=True), Tensor("b", "BYTES", (-1, 1), nullable=True,
                                                                            column=True),
           Tensor("n", "INT64", (-1, 1), column=True)]
SIGNATURE = Signature(COLUMNS, [], lenient=True)
STRICT = Signature(COLUMNS, [], ignored=["x", "y"])


def split(text: bytes, delimiter=None, step=None, most=1000):
    """Rows as a reader in pieces of ``step`` bytes finds them, and the line at which each begins."""
    rows, begin, line, size = [], 0, 0, step or max(len(text), 1)
    while begin < len(text):
        piece = text[begin : begin + size]
        cells, used, lines = split_rows(piece, most, begin + size >= len(text), delimiter)
        rows += [(piece[a:b], line + before, fields) for a, b, before, fields in cells.tolist()]
        begin, line = begin + used, line + lines
        size = size if used else size * 2
        if not used and begin + size >= 2 * len(text) + 2:
            break
    return rows


@given(st.lists(st.sampled_from(["a", "bc", '"', '""', ",", "\n", "\r\n", "\r", " ", "é"]), max_size=40),
       st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
@example(["\r"], 1, 1)
@example(['"', "\n", '"', ",", "\n"], 1, 1)
def test_rows_of_csv_are_those_of_pythons_reader(pieces, step, most):
    text = "".join(pieces)
    want = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    rows = split(text.encode(), ",")
    assert split(text.encode(), ",", step, most) == rows
    assert [fields for _, _, fields in rows] == [len(row) for row in want]
    again = [next(csv.reader(io.StringIO(row.decode(), newline=""))) for row, _, _ in rows]
    assert again == want


@given(st.lists(st.sampled_from(["a", "bc", "\n", "\r\n", " ", "\t", "é"]), max_size=40), st.integers(1, 9),
       st.integers(1, 5))
def test_rows_of_lines_are_those_that_are_not_blank(pieces, step, most):
    text = "".join(pieces)
    want = [(line, number) for number, line in enumerate(text.split("\n")) if line.strip(" \t\r")]
    for rows in (split(text.encode()), split(text.encode(), None, step, most)):
        assert [(row.decode(), line) for row, line, _ in rows] == want


def lines_of(lines: list[bytes]):
    text = b"\n".join(lines)
    cells, _, _ = split_rows(text, len(lines) + 1, True)
    return text, cells


VALUES = ["1", "-2.5", "1e3", "null", '"t"', '"\\u00e9"', "true", "[1]", "{}", "01", "1e999", '"\\ud800"', "3.0", ""]
member = st.tuples(st.sampled_from(["a", "b", "n", "x", "y"]), st.sampled_from(VALUES))
record = st.lists(member, max_size=5).map(
    lambda members: "{" + ", ".join(f'"{name}": {value}' for name, value in members) + "}")
line = st.one_of(record, record.map(lambda text: text[:-1]), st.just('{"n": 1}, {"n": 2}'), st.just('{"n": 1}]'),
                 st.just('{"a": [1'), st.just("2]}"), st.just("7"), st.just('{"n":1} {"n":2}'))


@given(st.lists(line, max_size=8))
@settings(max_examples=150, deadline=None)
@example(['{"n": 1, "b": "t"}', "7", '{"n": 2, "x": [1], "a": null}', '{"n": 3.0, "y": {}, "a": 1e3}'])
def test_a_line_is_decoded_as_a_request_with_that_record_alone(lines):
    text, cells = lines_of([each.encode() for each in lines])
    rows, faults = decode_lines(SIGNATURE, text, cells)
    got = rows.arrays()
    wrong = {number for number, _ in faults}
    number = 0
    for i, each in enumerate(lines):
        try:
            if each.count("{") > 1 and not each.count("{}"):
                raise InvalidJsonError("several records")
            if not each.startswith("{") or each in ('{"n": 1}]',):
                raise InvalidRecordError("no record")
            want = decode(STRICT, 1, b'{"records":[' + each.encode() + b"]}")
        except FastinferError:
            # What nothing reads may stand twice in a line.
            assert i in wrong or each.count('"x"') > 1 or each.count('"y"') > 1
        else:
            assert i not in wrong
        if i not in wrong:
            if each.count('"x"') <= 1 and each.count('"y"') <= 1:
                for name, array in want["arrays"].items():
                    assert repr(array[0].tolist()) == repr(got[name][number].tolist())
            number += 1
    assert number == len(lines) - len(faults)


def test_what_is_wrong_with_a_line_is_said_with_its_number():
    text, cells = lines_of([b'{"n":1}', b'{"n":"x"}', b"{}", b'{"n":1', b"[]", b'{"n":1,"a":"\xff"}', b'{"n":2}'])
    rows, faults = decode_lines(SIGNATURE, text, cells)
    assert rows.arrays()["n"].ravel().tolist() == [1, 2]
    assert [(number, error.code, error.at) for number, error in faults] == [
        (1, "invalid_record", "$.records[1].n"), (2, "invalid_record", "$.records[2].n"),
        (3, "invalid_json", None), (4, "invalid_record", "$.records[4]"), (5, "invalid_json", None)]


def test_rows_of_variable_size_have_that_of_the_first():
    signature = Signature([Tensor("x", "FP32", (-1, -1))], [], lenient=True)
    text, cells = lines_of([b'{"y":1}', b'{"x":[1,2]}', b'{"x":[1]}', b'{"x":[3,4],"z":0}'])
    rows, faults = decode_lines(signature, text, cells)
    assert rows.arrays()["x"].tolist() == [[1, 2], [3, 4]]
    assert [number for number, _ in faults] == [0, 2]


def test_lines_outside_their_block_are_refused():
    with pytest.raises(ValueError, match="outside"):
        decode_lines(SIGNATURE, b"{}", np.array([[0, 3, 0, 1]]))


def test_a_line_is_written_as_the_answer_to_its_record():
    outputs = [Tensor("l", "BYTES", (-1,)), Tensor("p", "FP32", (-1, 2))]
    signature = Signature([Tensor("x", "FP32", (-1,))], outputs)
    encoder = Encoder("m", "1", signature, Task("classifier", "l", "p", ("no", 'y"s')))
    arrays = [np.array(["no", "é"], dtype=object), np.array([[0.1, 0.9], [1e-7, np.nan]], dtype=np.float32)]
    answer, _ = encode(encoder, 1, b'{"records":[{"x":1},{"x":2}]}', arrays)
    lines = encode_lines(encoder, arrays, np.array([5, 7]), [b"", b',"id":3'])
    first, second = lines.decode().splitlines()
    assert first.startswith('{"row":5,"label"')
    assert second.startswith('{"row":7,"id":3,"label"')
    bare = first.replace('"row":5,', "") + "," + second.replace('"row":7,"id":3,', "")
    assert f'"predictions":[{bare}]' in answer.decode()
