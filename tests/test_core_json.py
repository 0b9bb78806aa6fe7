"""RFC 8259, case by case. The cases are data: a text, or bytes in hexadecimal where it is not one."""

import json
from pathlib import Path

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from fastinfer._core import Signature, Tensor, compare_blocks, decode
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


# ---- where a bulky array ends ------------------------------------------------------------------------------------
@given(st.binary(min_size=64, max_size=64) | st.text('"\\[]{}0123456789.,e ', min_size=64, max_size=64).map(str.encode),
       st.sampled_from([b'"', b"\\", b"{", b"}"]))
def test_blocks_are_seen_alike_as_vectors_and_as_words(block, wanted):
    fold = 32 if wanted in b"{}" else 0
    agree, mask, structure = compare_blocks(block, wanted[0], fold)
    assert agree
    assert mask == sum(1 << k for k, byte in enumerate(block) if byte | fold == wanted[0])
    assert structure == any(byte == 34 or byte >= 0x5B for byte in block)


@given(st.lists(st.text(st.sampled_from('ab\\"[]{}\u00e9 ,'), max_size=70), max_size=6), st.integers(0, 70))
def test_brackets_in_strings_do_not_end_an_array(texts, shift):
    """Quotes and backslashes wherever they fall in a block, and over its end."""
    text = json.dumps([[text] for text in texts], ensure_ascii=False)
    members = {"name": "t", "shape": [len(texts), 1], "datatype": "BYTES"}
    head = json.dumps(members)[:-1]
    body = f'{{"inputs":[{head},{" " * shift}"data":{text}}}]}}'.encode()
    assert decode(SIGNATURE, 0, body)["arrays"]["t"].tolist() == [[text] for text in texts]
    records = f'{{{" " * shift}"records":{json.dumps([{"t": text} for text in texts])}}}'.encode()
    assert decode(SIGNATURE, 1, records)["arrays"]["t"].tolist() == [[text] for text in texts]
