"""RFC 8259, case by case. The cases are data: a text, or bytes in hexadecimal where it is not one."""

import json
from pathlib import Path

import pytest
import reference

from fastinfer._core import Signature, Tensor, decode
from fastinfer.errors import InvalidJsonError, InvalidRequestError

FOLDER = Path(__file__).parent / "json_conformance"
SIGNATURE = Signature([Tensor("t", "BYTES", (-1, 1), True, True)], [])


def cases(name):
    return [pytest.param(bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode(), id=case["name"])
            for case in json.loads((FOLDER / name).read_text())]


def ignored(text):
    """A body in which the text stands where nobody wants its value."""
    return b'{"records":[],"extra":' + text + b"}"


@pytest.mark.parametrize("text", cases("accepted.json"))
def test_accepted(text):
    reference.parse_json(ignored(text))
    assert decode(SIGNATURE, 1, ignored(text))["rows"] == 0


@pytest.mark.parametrize("text", cases("refused.json"))
def test_refused(text):
    with pytest.raises(reference.Refused):
        reference.parse_json(ignored(text))
    with pytest.raises(InvalidJsonError, match=r"^invalid JSON at byte \d+: "):
        decode(SIGNATURE, 1, ignored(text))


@pytest.mark.parametrize("text", [*cases("refused.json"), *cases("accepted.json")])
def test_as_the_whole_body_and_where_values_are_read(text):
    bodies = [(1, text), (0, text), (1, b'{"records":[{"t":' + text + b"}]}"), (1, b'{"records":' + text + b"}"),
              (0, b'{"inputs":[{"name":"t","shape":[1],"datatype":"BYTES","data":' + text + b"}]}")]
    for kind, body in bodies:
        try:
            expected = reference.decode(SIGNATURE, kind, body)["arrays"]["t"].tolist()
        except reference.Refused:
            with pytest.raises(InvalidRequestError):
                decode(SIGNATURE, kind, body)
        else:
            assert decode(SIGNATURE, kind, body)["arrays"]["t"].tolist() == expected


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        (b"[1,]", 25, "a JSON value is expected"),
        (b'{"a":1,}', 29, "a member's name in quotes is expected"),
        (b'{"a":1,"b":2,"a":3}', 35, "the name 'a' stands twice in one object"),
        (b"[1 2]", 25, "',' or ']' is expected"),
        (b"[1}", 24, "',' or ']' is expected"),
        (b'{"a" 1}', 27, "':' is expected"),
        (b"[01]", 23, "not a JSON number"),
        (b"[NaN]", 23, "NaN and Infinity are not JSON"),
        (b'["\\x"]', 24, "not a JSON escape"),
        (b'["\\ud800"]', 24, "a lone surrogate is not a character"),
        (b'["ab\xffc"]', 26, "not valid UTF-8"),
        (b'["a\nb"]', 25, "a control character in a string must be escaped"),
        (b"[" * 100, 121, "arrays and objects may be nested 100 deep"),
    ],
)
def test_the_message_names_the_byte(text, offset, message):
    with pytest.raises(InvalidJsonError) as caught:
        decode(SIGNATURE, 1, ignored(text))
    assert str(caught.value) == f"invalid JSON at byte {offset}: {message}"


def test_a_syntax_fault_goes_before_any_other():
    with pytest.raises(InvalidJsonError, match="at byte 44"):
        decode(SIGNATURE, 1, b'{"records":[{"t":5},{"unknown":1}],"extra":[}]}')


def test_members_are_bounded():
    body = ignored(b"{" + b",".join(b'"%d":0' % k for k in range((1 << 20) + 1)) + b"}")
    with pytest.raises(InvalidJsonError, match="at most 1048576 members"):
        decode(SIGNATURE, 1, body)
