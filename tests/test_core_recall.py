"""A body that is like the one before it but for its array is not scanned again: nobody can tell but by the time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_core_http import WIDE, Server

from fastinfer import _core
from fastinfer.errors import FastinferError

TEXTS = _core.Signature([_core.Tensor("x", "BYTES", (-1, -1))], [_core.Tensor("y", "BYTES", (-1, -1))])
FRAMES = [
    (b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"%b","data":', b"}]}"),
    (b'{"inputs":[{"name":"x","data":', b',"datatype":"%b","shape":[1,3]}]}'),
    (b' { "outputs":[{"name":"y"}], "inputs" : [ {"name":"x","shape":[1,3],"datatype":"%b","data": ', b" } ] }\n"),
    (b'{"parameters":{"timeout":1000000},"inputs":[{"name":"x","shape":[1,3],"datatype":"%b","data":', b"}]}"),
    (b'{"inputs":[{"name":"x","shape":[0,3],"datatype":"%b","data":', b'}],"parameters":{"priority":3}}'),
    (b'{"id":"a","inputs":[{"name":"x","shape":[3,1],"datatype":"%b","data":', b"}]}"),
]
NUMBERS = [b"[1,2,3]", b"[-0.5, 1e-3,2.25 ]", b"[[1,2,3]]", b"[ 1,\n2 ,3]", b"[[1],[2],[3]]", b"[]"]
STRINGS = [b'["a","b","c"]', b'[["","]","\\""]]', b'["\\u00e9","[","{"]', b"[]"]
FAULTS = [
    b"[1,2]", b"[1,2,3,4]", b"[1,2,3", b"1,2,3]", b"[1,2,3],", b"[1,2,3]]", b"[[1,2,3]", b"[1,,3]",
    b"[1,2,NaN]", b"[1,2,1e39]", b"[1,2,null]", b'[1,2,"3"]', b"[1,2,3]}]}", b'[1,2,3],"data":[4,5,6]',
    b'[1],"shape":[1,1],"data":[2]', b"[[1,2],[3]]", b'[1,2,3],"parameters":{"binary_data_size":4}',
    b'[1,2,3],"more":{}', b"[1,2,3] ", b"[01,2,3]", b"{}", b"", b'["a","b"]', b'["a","b","\xff"]',
    b'["a","b","c"', b'["a","b","c\\"]', b'["a","b",3]', b'["a","b","c"],"parameters":{"k":[]}',
]  # fmt: skip


def outcome(server: Server, body: bytes) -> Any:
    """The answer, or all that an error tells."""
    done: list[_core.Ticket] = []
    try:
        server.endpoint.submit(0, body, -1, done.append)
        server.loop.settle()
        return done[0].encode()
    except FastinferError as error:
        return type(error), error.args, error.at, error.status


def with_byte(body: bytes, at: int, byte: int) -> bytes:
    at %= len(body)
    return body[:at] + bytes([byte]) + body[at + 1 :]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bool, list[bytes]]:
    is_text = draw(st.booleans())
    datatype = b"BYTES" if is_text else b"FP32"
    arrays = st.sampled_from(STRINGS if is_text else NUMBERS)
    begin, end = (part.replace(b"%b", datatype) for part in draw(st.sampled_from(FRAMES)))
    bodies = []
    for _ in range(draw(st.integers(2, 6))):
        body = begin + draw(arrays | arrays | st.sampled_from(FAULTS)) + end
        if draw(st.integers(0, 3)) == 0:
            body = with_byte(body, draw(st.integers(0, 1000)), draw(st.sampled_from(b'[]{}",:0 \\x\xff\x00')))
        bodies.append(body)
    return is_text, bodies


@given(streams())
@example((False, [FRAMES[0][0].replace(b"%b", b"FP32") + array + FRAMES[0][1] for array in (NUMBERS[0], *FAULTS)]))
@settings(max_examples=400, deadline=None)
def test_a_body_like_the_one_before_is_answered_as_if_it_were_the_first(stream: tuple[bool, list[bytes]]) -> None:
    is_text, bodies = stream
    signature = TEXTS if is_text else WIDE
    server = Server(signature=signature)
    for body in bodies:
        assert outcome(server, body) == outcome(Server(signature=signature), body)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_behind_a_good_request_is_told_as_ever_and_harms_no_other(fault: bytes) -> None:
    begin, end = (part.replace(b"%b", b"FP32") for part in FRAMES[0])
    good = begin + NUMBERS[0] + end
    server = Server()
    answer = outcome(server, good)
    assert outcome(server, begin + fault + end) == outcome(Server(), begin + fault + end)
    assert outcome(server, good) == answer
