"""Fast lane against standard lane: the same bytes to two servers of the same models bring the same answers.

The same statuses, header names, values and order, the same body bytes, and the same end of the connection; only the
Date, a request id that the server made, durations and a jittered Retry-After may differ.
"""

from __future__ import annotations

import gzip
import json
import math
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import onnx_models
import pytest
from conftest import ServerProcess, Start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_adversity import REFUSED
from wire import CLOSED, LAST, Reply, chunked, message, parse_replies, received, talk

AFFINE = "/v2/models/affine/infer"
PREDICT = "/v1/models/affine:predict"
ROW = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, -2.5, 3e-3, 4]}
GOOD = json.dumps({"inputs": [ROW]}).encode()
OCTETS = "Content-Type: application/octet-stream"


def lane_of(server: ServerProcess, target: str, body: bytes, *fields: str) -> tuple[int, str | None]:
    seen = talk(server, message(target, body, *fields) + LAST)
    return seen.replies[0].status, seen.replies[0].lane


def counted(server: ServerProcess) -> dict[str, int]:
    """Infer requests answered so far, by lane."""
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    lanes = {"fast": 0, "standard": 0}
    for line in text.splitlines():
        if line.startswith("fastinfer_requests_total{"):
            lane = line.partition('lane="')[2].partition('"')[0]
            lanes[lane] += int(float(line.rpartition(" ")[2]))
    return lanes


def binary(name: str, shape: list[int], blob: bytes, datatype: str = "FP32", **rest: Any) -> tuple[bytes, str]:
    """A body with one binary tensor, and the field that says where it begins."""
    entry = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(blob)}}
    text = json.dumps({"inputs": [entry], **rest}).encode()
    return text + blob, f"Inference-Header-Content-Length: {len(text)}"


FLOATS = struct.pack("<4f", 1, -2.5, 3e-3, 4)
BINARY_OUTPUT = {"parameters": {"binary_data_output": True}}
BODY, HEADER = binary("x", [1, 4], FLOATS)
NO_NUMBER, NO_NUMBER_HEADER = binary("x", [1, 2], struct.pack("<2d", 0, math.nan), "FP64")
BOTH, BOTH_HEADER = binary("x", [1, 4], FLOATS, **BINARY_OUTPUT)
WORDS, WORDS_HEADER = binary("x", [2, 1], struct.pack("<I2sI", 2, b"ab", 0), "BYTES", **BINARY_OUTPUT)
LATIN, LATIN_HEADER = binary("x", [1, 1], struct.pack("<I", 1) + b"\xe4", "BYTES")
HALF, HALF_HEADER = binary("x", [1, 2], b"abcd", "FP16")
MIXED_TEXT = json.dumps({"inputs": [
    {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
    {"name": "b", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
], "outputs": [{"name": "difference", "parameters": {"binary_data": True}}, {"name": "total"}]}).encode()  # fmt: skip
MIXED, MIXED_HEADER = MIXED_TEXT + struct.pack("<2f", 3, 4), f"Inference-Header-Content-Length: {len(MIXED_TEXT)}"
PEOPLE = b'{"records":[{"age":31.5,"job":"fixed"},{"job":"clerk","age":-2}],"id":"p"}'

# What the fast lane is for: each of these must be answered by it, and by nobody else.
PLAIN: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "json": (AFFINE, GOOD, ()),
    "a version": ("/v2/models/affine/versions/1/infer", GOOD, ()),
    "the other version": ("/v2/models/affine/versions/2/infer", GOOD, ()),
    "an id, outputs and parameters": (
        AFFINE,
        GOOD[:-1] + b',"id":"\\u00e9\\n","outputs":[{"name":"y"}],"parameters":{"priority":0}}',
        (),
    ),
    "binary output": (AFFINE, GOOD[:-1] + b',"parameters":{"binary_data_output":true}}', ()),
    "binary input": (AFFINE, BODY, (HEADER, OCTETS)),
    "binary both ways": (AFFINE, BOTH, (BOTH_HEADER,)),
    "binary strings": ("/v2/models/words/infer", WORDS, (WORDS_HEADER,)),
    "raw": (AFFINE, FLOATS, ("Inference-Header-Content-Length: 0",)),
    "all JSON in a binary request": (AFFINE, GOOD, (f"Inference-Header-Content-Length: {len(GOOD)}",)),
    "binary beside JSON": ("/v2/models/two/infer", MIXED, (MIXED_HEADER,)),
    "records": (PREDICT, b'{"records":[{"x":[1,2,3,4]},{"x":[0,0,0,0]}]}', ()),
    "records of a version": ("/v1/models/affine/versions/1:predict", b'{"records":[{"x":[1,2,3,4]}]}', ()),
    "records through a program": ("/v1/models/people:predict", PEOPLE, ()),
    "fields that the model does not take": (
        "/v1/models/lenient:predict",
        b'{"records":[{"id":[{"a":"}"}],"age":31.5,"Age":"x","job":"fixed","id":null},{"job":"clerk","age":-2,"":{}}]}',
        (),
    ),
    "dates through a program": (
        "/v1/models/visits:predict",
        b'{"records":[{"when":"2024-02-29"},{"when":"0001-01-01T00:00:00.5Z","seen":"9999-12-31 23:59"}]}',
        (),
    ),
    "columns through a program": (
        "/v2/models/people/infer",
        b'{"inputs":[{"name":"job","shape":[1],"datatype":"BYTES","data":["other"]},'
        b'{"name":"age","shape":[1,1],"datatype":"FP64","data":[30]}]}',
        (),
    ),
    "decisions of records": (
        "/v1/models/decided/versions/1:predict",
        b'{"records":[{"x":[0.5,0.25,0.25]},{"x":[0.8,0.2,0]},{"x":[0.3,0.6,0.1]}]}',
        (),
    ),
    "decisions alone": ("/v1/models/decided:predict", b'{"records":[{"x":[0.5,0.25]},{"x":[0,1]},{"x":[1,0]}]}', ()),
    "a decision that is asked for": (
        "/v2/models/decided/infer",
        b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP64","data":[1,0.1,0.5,0.5]}],"outputs":[{"name":"score"},'
        b'{"name":"decision","parameters":{"binary_data":true}}]}',
        (),
    ),
    "decisions of no number": ("/v2/models/decided/infer", NO_NUMBER, (NO_NUMBER_HEADER,)),
    "decisions of more rows than a batch": (
        "/v2/models/decided/versions/1/infer",
        json.dumps({"inputs": [{**ROW, "shape": [200, 3], "data": [i % 7 / 7 for i in range(600)]}]}).encode(),
        (),
    ),
    "decisions of no rows": (
        "/v2/models/decided/versions/1/infer",
        json.dumps({"inputs": [{**ROW, "shape": [0, 3], "data": []}]}).encode(),
        (),
    ),
    "a classifier's records": ("/v1/models/classifier:predict", b'{"records":[{"x":[1,2,3,4]}]}', ()),
    "a fixed batch": (
        "/v2/models/fixed/infer",
        b'{"inputs":[{"name":"x","shape":[2,3],"datatype":"FP32","data":[1,2,3,4,5,6]}]}',
        (),
    ),
    "more rows than a batch": (
        AFFINE,
        json.dumps({"inputs": [{**ROW, "shape": [200, 4], "data": list(range(800))}]}).encode(),
        (),
    ),
    "no rows": (AFFINE, json.dumps({"inputs": [{**ROW, "shape": [0, 4], "data": []}]}).encode(), ()),
    "an answer over 256 KiB": (
        "/v2/models/wide/infer",
        b'{"inputs":[{"name":"x","shape":[1,100000],"datatype":"FP32","data":[' + b"1," * 99_999 + b"1]}]}",
        (),
    ),
    "a binary answer over 256 KiB": (
        "/v2/models/wide/infer",
        b'{"inputs":[{"name":"x","shape":[1,100000],"datatype":"FP32","data":[' + b"1," * 99_999 + b"1]}],"
        b'"parameters":{"binary_data_output":true}}',
        (),
    ),
    "a run that fails": (
        "/v2/models/picky/infer",
        b'{"inputs":[{"name":"i","shape":[1],"datatype":"INT64","data":[99]}]}',
        (),
    ),
    "keep-alive": (AFFINE, GOOD, ("Connection: keep-alive",)),
    "close": (AFFINE, GOOD, ("Connection: close",)),
    "keep-alive and close": (AFFINE, GOOD, ("Connection: keep-alive", "Connection: close")),
    "gzip wished for": (AFFINE, GOOD, ("Accept-Encoding: gzip, deflate, br",)),
    "fields that nobody knows": (AFFINE, GOOD, ("Cookie: a=b", "TE: trailers", "X: \xe4")),
    "durations wished for": (AFFINE, GOOD, ("Prefer: server-timing",)),
    "durations wished for in a list": (AFFINE, BOTH, (BOTH_HEADER, "Prefer: wait=1 , Server-Timing ; a=b,x=y")),
    "durations wished for in a second field": (AFFINE, GOOD, ("prefer: wait=1", "PREFER:\tserver-timing")),
    "durations of records": (PREDICT, b'{"records":[{"x":[1,2,3,4]}]}', ("Prefer: server-timing",)),
    "durations of a run that fails": (
        "/v2/models/picky/infer",
        b'{"inputs":[{"name":"i","shape":[1],"datatype":"INT64","data":[99]}]}',
        ("Prefer: server-timing",),
    ),
    "durations of a large answer": (
        "/v2/models/wide/infer",
        b'{"inputs":[{"name":"x","shape":[1,100000],"datatype":"FP32","data":[' + b"1," * 99_999 + b"1]}]}",
        ("Prefer: server-timing",),
    ),
    "other wishes": (AFFINE, GOOD, ("Prefer: server-timing-not, xserver-timing, server timing,,;", "Prefer:")),
    "credentials, which are not looked at": (AFFINE, GOOD, ("Authorization: Bearer x", "X-API-Key: y")),
    "time enough": (AFFINE, GOOD, ("X-Request-Timeout: 30.5", "x-request-timeout: 60")),
    "time enough, said twice": (AFFINE, GOOD[:-1] + b',"parameters":{"timeout":60000000}}', ("X-Request-Timeout: 0",)),
    "white space behind a length": (AFFINE, GOOD, ()),
    "a tab behind a length": (AFFINE, GOOD, ()),
    "white space around values": (AFFINE, GOOD, ("Connection: \t close \t", "X-Request-ID:\ta \t", "Accept:\t*/*")),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_requests_take_the_fast_lane(server: ServerProcess, standard_server: ServerProcess, case: str) -> None:
    target, body, fields = PLAIN[case]
    data = message(target, body, *fields)
    if "behind a length" in case:
        white = b"\t" if "tab" in case else b" \t "
        data = data.replace(b"%d\r\n\r" % len(body), b"%d%s\r\n\r" % (len(body), white))
    data += LAST
    before = counted(server)
    fast, standard = talk(server, data), talk(standard_server, data)
    assert fast.settled() == standard.settled()
    assert fast.fate == CLOSED
    assert fast.replies[0].lane == (None if "around values" in case else "fast")
    assert standard.replies[0].lane != "fast"
    after = counted(server)
    assert (after["fast"] - before["fast"], after["standard"] - before["standard"]) == (1, 0)
    assert fast.replies[0].status == (500 if "run that fails" in case else 200)
    timed = "durations" in case and fast.replies[0].status == 200
    assert (fast.replies[0].field(b"server-timing") is not None) == timed


def test_without_the_fast_lane_there_is_none(standard_server: ServerProcess) -> None:
    before = counted(standard_server)
    assert lane_of(standard_server, AFFINE, GOOD) == (200, "standard")
    after = counted(standard_server)
    assert (after["fast"], after["standard"] - before["standard"]) == (0, 1)


# What is not provably plain goes to the standard lane, whole; with the status that it has there.
ODD: dict[str, tuple[bytes, int]] = {
    "a query string": (message(AFFINE + "?a=b", GOOD), 200),
    "a percent in the path": (message("/v2/models/%61ffine/infer", GOOD), 200),
    "an absolute URL": (message("http://test" + AFFINE, GOOD), 200),
    "HTTP/1.0": (message(AFFINE, GOOD, version="1.0"), 200),
    "HTTP/1.0 without Host": (message(AFFINE, GOOD, version="1.0", host=False), 200),
    "HTTP/1.0, kept alive": (message(AFFINE, GOOD, "Connection: keep-alive", version="1.0"), 200),
    "white space behind a coding": (message(AFFINE, GOOD, "Content-Encoding: identity \t"), 200),
    "white space behind chunked": (message(AFFINE, GOOD, chunks=[4]).replace(b"chunked", b"chunked "), 200),
    "a tab behind chunked": (message(AFFINE, GOOD, chunks=[4]).replace(b"chunked", b"chunked\t"), 400),
    "chunks": (message(AFFINE, GOOD, chunks=[1, 20]), 200),
    "gzip": (message(AFFINE, gzip.compress(GOOD, mtime=0), "Content-Encoding: gzip"), 200),
    "identity": (message(AFFINE, GOOD, "Content-Encoding: identity"), 200),
    "br": (message(AFFINE, GOOD, "Content-Encoding: br"), 415),
    "an expectation": (message(AFFINE, GOOD, "Expect: 100-continue"), 200),
    "another expectation": (message(AFFINE, GOOD, "Expect: tea"), 200),
    "h2c": (message(AFFINE, GOOD, "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AA"), 200),
    "websocket": (message(AFFINE, GOOD, "Upgrade: websocket", "Connection: Upgrade"), 200),
    "a list of connection options": (message(AFFINE, GOOD, "Connection: keep-alive, TE"), 200),
    "a list that closes": (message(AFFINE, GOOD, "Connection: TE, close"), 200),
    "two request ids": (message(AFFINE, GOOD, "X-Request-ID: a", "X-Request-ID: b"), 200),
    "an empty request id and another": (message(AFFINE, GOOD, "X-Request-ID:", "X-Request-ID: b"), 200),
    "a request id and an empty one": (message(AFFINE, GOOD, "X-Request-ID: a", "X-Request-ID:"), 200),
    "an empty request id": (message(AFFINE, GOOD, "X-Request-ID:"), 200),
    "a request id of 128": (message(AFFINE, GOOD, "X-Request-ID: " + "a" * 128), 200),
    "a request id of 129": (message(AFFINE, GOOD, "X-Request-ID: " + "a" * 129), 200),
    "a request id with a space": (message(AFFINE, GOOD, "X-Request-ID: a b"), 200),
    "a request id in UTF-8": (message(AFFINE, GOOD, "X-Request-ID: é"), 200),
    "a request id in a list": (message(AFFINE, GOOD, "X-Request-ID: a, b"), 200),
    "a long request id and another": (message(AFFINE, GOOD, "X-Request-ID: " + "a" * 129, "X-Request-ID: b"), 200),
    "an odd request id of a request at fault": (message(AFFINE, b"{", "X-Request-ID: a b"), 400),
    "durations of a request at fault": (message(AFFINE, b"{", "Prefer: server-timing"), 400),
    "durations in chunks": (message(AFFINE, GOOD, "Prefer: wait=1", "Prefer: a, server-timing", chunks=[4]), 200),
    "durations of what is no inference": (message("/v2", None, "Prefer: server-timing", method="GET"), 200),
    "a request id with quotes": (message(AFFINE, GOOD, 'X-Request-ID: "a"'), 200),
    "binary lengths twice": (message(AFFINE, BODY, HEADER, HEADER), 200),
    "a binary length with a plus": (message(AFFINE, BODY, HEADER.replace(": ", ": +")), 200),
    "strings that are not UTF-8": (message("/v2/models/words/infer", LATIN, LATIN_HEADER), 400),
    "an output that JSON cannot carry": (message("/v2/models/identity_fp16/infer", HALF, HALF_HEADER), 400),
    "a binary length below 0": (message(AFFINE, BODY, "Inference-Header-Content-Length: -1"), 400),
    "a binary length of words": (message(AFFINE, BODY, "Inference-Header-Content-Length: a"), 400),
    "a binary length past the body": (message(AFFINE, BODY, "Inference-Header-Content-Length: 9999"), 400),
    "an empty binary length": (message(AFFINE, BODY, "Inference-Header-Content-Length:"), 400),
    "a binary length of records": (message(PREDICT, b'{"records":[]}', "Inference-Header-Content-Length: a"), 200),
    "a time that is no number": (message(AFFINE, GOOD, "X-Request-Timeout: 5", "X-Request-Timeout: 5s"), 400),
    "GET": (message(AFFINE, None, method="GET"), 405),
    "GET with a body": (message(AFFINE, GOOD, method="GET"), 405),
    "HEAD": (message(AFFINE, None, method="HEAD"), 405),
    "PUT": (message(AFFINE, GOOD, method="PUT"), 405),
    "an unknown method": (message(AFFINE, GOOD, method="BREW"), 400),
    "a method in lower case": (message(AFFINE, GOOD, method="post"), 400),
    "no body": (message(AFFINE, b""), 400),
    "neither length nor coding": (message(AFFINE, None), 400),
    "no such model": (message("/v2/models/nobody/infer", GOOD), 404),
    "no such version": (message("/v2/models/affine/versions/9/infer", GOOD), 404),
    "a slash too many": (message(AFFINE + "/", GOOD), 404),
    "a path in upper case": (message(AFFINE.upper(), GOOD), 404),
    "a body over 256 KiB": (message(AFFINE, GOOD + b" " * (256 << 10)), 200),
    "a body over the limit": (message(AFFINE, GOOD + b" " * (5 << 20)), 413),
    "an asterisk": (message("*", None, method="OPTIONS"), 404),
    "a target that is no URL": (message("v2", None, method="GET"), 400),
    "a target in UTF-8": (message("/v2/mödels", None, method="GET"), 400),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_requests_are_told_the_same(server: ServerProcess, standard_server: ServerProcess, case: str) -> None:
    request, status = ODD[case]
    heads = [1] if request.startswith(b"HEAD") else []
    data = message(AFFINE, GOOD) + request + message(AFFINE, GOOD) + LAST
    fast, standard = talk(server, data, heads=heads), talk(standard_server, data, heads=heads)
    assert fast.settled() == standard.settled()
    assert fast.fate == CLOSED
    assert fast.rest == b""
    final = [reply for reply in fast.replies if reply.status >= 200]
    assert [reply.status for reply in final][:2] == [200, status]
    assert final[0].lane == "fast"
    if "request id" not in case or case in ("an empty request id", "a request id of 129"):
        assert final[1].lane in ("standard", None)


# What is refused for lack of time is refused by both, and the fast lane does so itself.
HASTY: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "by its head": (AFFINE, GOOD, ("X-Request-Timeout: 0.0000001",)),
    "by its head, records": (PREDICT, b'{"records":[{"x":[1,2,3,4]}]}', ("X-Request-Timeout: 0.0000001",)),
    "by its head, with an id": (AFFINE, GOOD, ("X-Request-Timeout: 0.0000001", "X-Request-ID: mine")),
    "by its head, and closes": (AFFINE, GOOD, ("X-Request-Timeout: 0.0000001", "Connection: close")),
    "by its head, whatever its body is": (AFFINE, b"{", ("X-Request-Timeout: 0.0000001",)),
    "by its head, and its body is large": (AFFINE, GOOD + b" " * 65_536, ("X-Request-Timeout: 0.0000001",)),
    "by its body": (AFFINE, GOOD[:-1] + b',"parameters":{"timeout":1}}', ()),
    "by its body, which is large": (AFFINE, GOOD[:-1] + b',"parameters":{"timeout":1}}' + b" " * 65_536, ()),
}


@pytest.mark.parametrize("case", HASTY)
def test_refusals_are_told_the_same(server: ServerProcess, standard_server: ServerProcess, case: str) -> None:
    target, body, fields = HASTY[case]
    before = counted(server)
    data = message(target, body, *fields) + message(AFFINE, GOOD) + LAST
    fast, standard = talk(server, data), talk(standard_server, data)
    assert fast.settled() == standard.settled()
    closes = "closes" in case or case == "by its head, and its body is large"
    assert fast.statuses == [503] if closes else fast.statuses == [503, 200, 200]
    refusal = json.loads(fast.replies[0].body)
    assert (refusal["code"], refusal["reason"]) == ("deadline_unreachable", "deadline")
    assert fast.replies[0].field(b"x-envoy-overloaded") == b"true"
    after = counted(server)
    lane = "standard" if case == "by its head, and its body is large" else "fast"
    assert after[lane] - before[lane] == (1 if closes else 2)


def test_request_ids_that_a_client_gives_are_echoed_from_the_fast_lane(server: ServerProcess) -> None:
    before = counted(server)
    for name in ("a", "A-b_c.d:e/f+g=h@i,j;k~l0", "z" * 128):
        seen = talk(server, message(AFFINE, GOOD, f"X-Request-ID: {name}") + LAST)
        assert seen.replies[0].field(b"x-request-id") == name.encode()
    assert counted(server)["fast"] == before["fast"] + 3


def test_request_ids_that_are_too_odd_are_replaced(server: ServerProcess) -> None:
    for fields in (["a" * 129], ["a b"], ["é"], [""], ["a", "b c"], ["a", ""], ['"a"']):
        assert lane_of(server, AFFINE, GOOD, *(f"X-Request-ID: {each}" for each in fields)) == (200, "standard")


def test_durations_are_told_of_every_inference_where_the_setting_says_so(
    repository: Path, start_server: Start, server: ServerProcess
) -> None:
    cases = [(AFFINE, GOOD, ()), (AFFINE, BOTH, (BOTH_HEADER,)), (AFFINE, b"{", ()), ("/v2/models/affine", None, ())]
    data = b"".join(
        message(target, body, *fields, method="GET" if body is None else "POST") for target, body, fields in cases
    )
    seen = [talk(start_server(repository, "--server-timing", *more), data + LAST) for more in ((), ("--no-fast-lane",))]
    assert seen[0].settled() == seen[1].settled()
    assert [reply.field(b"server-timing") is not None for reply in seen[0].replies] == [True, True, False, False, False]
    assert [reply.lane for reply in seen[0].replies[:2]] == ["fast", "fast"]
    plain = talk(server, data + LAST)
    assert all(reply.field(b"server-timing") is None for reply in plain.replies)


def durations(reply: Reply) -> dict[str, float]:
    """Milliseconds by phase, as a Server-Timing field has them."""
    value = (reply.field(b"server-timing") or b"").decode()
    return {name: float(text) for name, text in (each.split(";dur=") for each in value.split(", "))}


@pytest.mark.parametrize("options", [(), ("--no-fast-lane",)], ids=["fast", "standard"])
def test_durations_are_those_of_the_phases(tmp_path: Path, start_server: Start, options: tuple[str, ...]) -> None:
    """Of two requests that cannot run together, the second waits as long as the first runs."""
    server = start_server(onnx_models.slow(tmp_path / "slow.onnx"), "--inline-budget-us", "0", *options)
    body = json.dumps({"inputs": [{"name": "steps", "shape": [1], "datatype": "INT64", "data": [300]}]}).encode()
    request = message("/v2/models/slow/infer", body, "Prefer: server-timing")
    began = time.monotonic()
    with server.connect() as first, server.connect() as second:
        first.sendall(request + LAST)
        time.sleep(0.02)
        second.sendall(request + LAST)
        one, two = (durations(parse_replies(received(each))[0][0]) for each in (first, second))
    took = (time.monotonic() - began) * 1000
    for each in (one, two):
        assert list(each) == ["queue", "preprocess", "run"]
        assert each["run"] > 20 * each["preprocess"]
    assert one["queue"] < one["run"]
    assert 0.5 * one["run"] < two["queue"] < took - two["run"]


@pytest.mark.parametrize("fault", [
    "HEAD /v2 HTTP/1.1\r\n\r\n", "HEAD /v2 HTTP/1.1\r\nHost: a\r\nName : v\r\n\r\n", "HEAD /v2 HTTP/3.0\r\n\r\n",
    "HEAD v2 HTTP/1.1\r\nHost: a\r\n\r\n", f"HEAD /{'a' * 9000} HTTP/1.1\r\n\r\n",
    f"HEAD /v2 HTTP/1.1\r\nA: {'a' * 40_000}", "HEAD /v2 HTTP/1.1\r\nHost: a\n",
    "HEAD /v2 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nTransfer-Encoding: gzip\r\n\r\n",
], ids=range(8))  # fmt: skip
def test_the_refusal_of_a_head_has_no_body(server: ServerProcess, standard_server: ServerProcess, fault: str) -> None:
    seen = [talk(each, message(AFFINE, GOOD) + fault.encode()) for each in (server, standard_server)]
    for each in seen:
        assert each.replies[0].status == 200
        head, _, body = each.rest.partition(b"\r\n\r\n")
        assert (head[:10], body) == (b"HTTP/1.1 4" if b"HTTP/1.1 501" not in head else b"HTTP/1.1 5", b"")
        assert b"\r\nconnection: close" in head
    assert len(seen[0].rest) == len(seen[1].rest)


def half_closed(server: ServerProcess, data: bytes) -> list[int]:
    """The statuses of what a client gets that sends no more, until the server closes."""
    with server.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        replies, rest = parse_replies(received(connection))
    assert rest == b""
    return [reply.status for reply in replies]


def test_a_client_that_closes_its_own_side_gets_its_answers(
    server: ServerProcess, standard_server: ServerProcess
) -> None:
    good, odd, bad = message(AFFINE, GOOD), message("/v2", None, method="GET"), message(AFFINE, b"{")
    chunks = message(AFFINE, GOOD, chunks=[3])
    large = PLAIN["an answer over 256 KiB"]
    cases = {
        good: [200], odd: [200], bad: [400], chunks: [200], message(*large[:2]): [200],
        good + odd + good + bad + chunks + good: [200, 200, 200, 400, 200, 200], good * 30: [200] * 30,
        good[:-1]: [], odd[:-1]: [], chunks[:-1]: [], b"": [], b"\r\n": [], b"G": [],
        good + odd[:-1]: [200], odd + good[:-1]: [200], odd + chunks[:-1]: [200], good + b"\r\n": [200],
        good + b"nonsense\r\n\r\n": [200, 400], b"nonsense\r\n\r\n": [400],
    }  # fmt: skip
    for data, statuses in cases.items():
        for each in (server, standard_server):
            assert half_closed(each, data) == statuses


@pytest.mark.parametrize("case", REFUSED)
def test_faults_are_told_the_same(server: ServerProcess, standard_server: ServerProcess, case: str) -> None:
    target, body, status = REFUSED[case]
    data = message(AFFINE, GOOD) + message(target, body) + message(AFFINE, GOOD) + LAST
    fast, standard = talk(server, data), talk(standard_server, data)
    assert fast.settled() == standard.settled()
    assert fast.statuses == [200, status, 200, 200]
    assert fast.replies[0].lane == fast.replies[2].lane == "fast"


def test_a_long_pipeline_of_both_lanes_is_answered_in_order(
    server: ServerProcess, standard_server: ServerProcess
) -> None:
    ids = [f"r{i}" for i in range(200)]
    requests = []
    for i, name in enumerate(ids):
        body = GOOD if i % 7 else b"{"
        target = AFFINE if i % 5 else AFFINE + "?"
        requests.append(message(target, body, f"X-Request-ID: {name}", chunks=[3] if i % 11 == 0 else None))
    data = b"".join(requests) + LAST
    fast, standard = talk(server, data), talk(standard_server, data)
    assert fast.settled() == standard.settled()
    assert [reply.field(b"x-request-id") for reply in fast.replies[:-1]] == [name.encode() for name in ids]
    assert fast.statuses == [200 if i % 7 else 400 for i in range(200)] + [200]


# ---- generated ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Request:
    """A request, whether the fast lane must answer it, and whether its answer has no body."""

    data: bytes
    fast: bool
    head: bool = False


numbers = st.one_of(
    st.integers(-1000, 1000).map(str),
    st.floats(-1e6, 1e6, width=32).map(repr),
    st.sampled_from(["0", "-0", "1e-45", "3.4028235e38", "0.1", "1E+2", "123456789012345678901234567890", "-1.50e-3"]),
)
spaces = st.sampled_from(["", "", "", " ", "\n\t"])
texts = st.text(max_size=6).map(json.dumps)


@st.composite
def json_bodies(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    """JSON of FP32 rows, with what may stand beside them."""
    rows = draw(st.integers(0, 3))
    values = draw(st.lists(numbers, min_size=4 * rows, max_size=4 * rows))
    space = draw(spaces)
    tensor = f'{{"name":{space}"x","shape":[{rows},4],"datatype":"FP32","data":[{("," + space).join(values)}]{space}}}'
    members = [f'"inputs":[{tensor}]']
    if draw(st.booleans()):
        members.append(f'"id":{draw(texts)}')
    members += draw(st.lists(st.sampled_from([
        '"outputs":[{"name":"y"}]', '"outputs":[{"name":"y","parameters":{"binary_data":true}}]',
        '"parameters":{"binary_data_output":true}', '"parameters":{"timeout":100000000,"note":"x"}', '"more":[{}]',
    ]), max_size=2, unique_by=lambda member: member[:6]))  # fmt: skip
    body = "{" + space + f",{space}".join(draw(st.permutations(members))) + "}"
    path = draw(st.sampled_from([AFFINE, "/v2/models/affine/versions/1/infer", "/v2/models/classifier/infer"]))
    if "classifier" in path:
        body = body.replace('"name":"y"', '"name":"label"')
    return path, body.encode(), []


@st.composite
def binary_bodies(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    """Binary tensors in, and binary or JSON out."""
    rest: dict[str, Any] = draw(st.sampled_from([{}, BINARY_OUTPUT, {"id": "b"}]))
    if draw(st.booleans()):
        rows = draw(st.integers(1, 3))
        floats = draw(st.lists(st.floats(width=32), min_size=4 * rows, max_size=4 * rows))
        body, field = binary("x", [rows, 4], struct.pack(f"<{4 * rows}f", *floats), **rest)
        return AFFINE, body, [field]
    words = draw(st.lists(st.text(max_size=5).map(str.encode), min_size=1, max_size=3))
    blob = b"".join(struct.pack("<I", len(word)) + word for word in words)
    body, field = binary("x", [len(words), 1], blob, "BYTES", **rest)
    return "/v2/models/words/infer", body, [field]


@st.composite
def record_bodies(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    """Records, of a model with a feature program and of one without."""
    if draw(st.integers(0, 2)) == 0:
        times = st.datetimes(min_value=datetime(2, 1, 1))
        dates = times.map(str) | st.dates().map(str) | times.map(lambda time: f"{time.isoformat()}+14:00")
        visit = st.fixed_dictionaries({"when": dates}, optional={"seen": st.none() | dates | st.just("")})
        visits = draw(st.lists(visit, min_size=1, max_size=3))
        return "/v1/models/visits:predict", json.dumps({"records": visits}).encode(), []
    if draw(st.booleans()):
        ages, jobs = st.floats(-1e3, 1e3), st.sampled_from(["clerk", "fixed", "other"])
        person = st.fixed_dictionaries({"age": ages, "job": jobs})
        people = draw(st.lists(person, min_size=1, max_size=3))
        return "/v1/models/people:predict", json.dumps({"records": people}).encode(), []
    rows = draw(st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=3))
    model = draw(st.sampled_from(["affine", "affine/versions/2", "classifier"]))
    return f"/v1/models/{model}:predict", json.dumps({"records": [{"x": row} for row in rows]}).encode(), []


good_bodies = st.one_of(json_bodies(), binary_bodies(), record_bodies())
bad_bodies = st.sampled_from([(path, body, []) for path, body, _ in REFUSED.values()])


@st.composite
def damaged_bodies(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    path, good, fields = draw(good_bodies)
    body = bytearray(good)
    start = draw(st.integers(0, len(body)))
    body[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return path, bytes(body), fields


plain_fields = st.sampled_from([
    "Accept: */*", "User-Agent: test", "Accept-Encoding: gzip", "X-Request-ID: mine-1",
    "Connection: keep-alive", "Authorization: Bearer t", "Expires: 0", "Hosts: h", "Prefer: server-timing",
    "Prefer: respond-async,server-timing;x", "Prefer: return=minimal", "Content-Lengths: 5",
    "Content-Type: application/json",
])  # fmt: skip
odd_fields = st.sampled_from([
    "Expect: 100-continue", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "Connection: close", "X-Request-ID:",
    "X-Request-ID: not harmless", "X-Request-ID: " + "l" * 200, "Content-Encoding: identity", "Content-Encoding: br",
    "Inference-Header-Content-Length: 5", "Inference-Header-Content-Length: x", "Transfer-Encoding: gzip",
    "Content-Length: 1", "Host: again", "Name : v", "Expect: tea",
])  # fmt: skip
white = st.sampled_from(["", " ", " ", "\t", "  \t"])


@st.composite
def heads(draw: st.DrawFn, target: str, fields: list[str], method: str = "POST", version: str = "1.1") -> bytes:
    """A head whose fields stand in any order, their names in any case, white space around their values."""
    lines = [f"{method} {target} HTTP/{version}"]
    for field in draw(st.permutations(["Host: test", *fields])):
        name, colon, value = field.partition(":")
        name = draw(st.sampled_from([name, name.lower(), name.upper(), name.swapcase()]))
        behind = draw(white)
        lines.append(name + colon + draw(white) + value.strip() + behind)
    return "\r\n".join([*lines, "", ""]).encode()


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Any request: mostly plain, else one or several things about it are not."""
    target, body, fields = draw(st.one_of(good_bodies, good_bodies, good_bodies, bad_bodies, damaged_bodies()))
    good = (target, body) not in [(path, data) for path, data, _ in REFUSED.values()]
    fields = [*fields, *draw(st.lists(plain_fields, max_size=4, unique_by=lambda field: field.partition(":")[0]))]
    if draw(st.integers(0, 2)):
        head = draw(heads(target, [*fields, f"Content-Length: {len(body)}"]))
        return Request(head + body, good)
    fields += draw(st.lists(odd_fields, max_size=2))
    method = draw(st.sampled_from(["POST", "POST", "POST", "GET", "HEAD", "DELETE"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0"]))
    target = draw(st.sampled_from([target, target, target + "?q=%20", target.replace("o", "%6f"), "/v2", "/nothing"]))
    framing = draw(st.sampled_from(["length", "gzip", "chunks"]))
    if framing == "chunks":
        fields.append("Transfer-Encoding: chunked")
        cuts = draw(st.lists(st.integers(0, len(body)), max_size=3))
        body = chunked(body, cuts, draw(st.sampled_from([b"", b";a=b"])), draw(st.sampled_from([b"", b"A: b\r\n"])))
    else:
        if framing == "gzip":
            body = gzip.compress(body, mtime=0)
            fields.append("Content-Encoding: gzip")
        fields.append(f"Content-Length: {len(body)}")
    return Request(draw(heads(target, fields, method, version)) + body, fast=False, head=method == "HEAD")


@st.composite
def deliveries(draw: st.DrawFn, size: int) -> list[int]:
    """Where a stream is cut into pieces: nowhere, at every byte, or anywhere."""
    way = draw(st.sampled_from(["whole", "whole", "bytes", "pieces", "pieces"]))
    if way == "whole":
        return []
    if way == "bytes" and size <= 4000:
        return list(range(1, size))
    return sorted(draw(st.lists(st.integers(1, size - 1), min_size=1, max_size=8)))


@pytest.fixture(scope="module")
def fast_answers(server: ServerProcess, standard_server: ServerProcess) -> Iterator[list[int]]:
    """How many answers of the generated streams must have come, and came, from the fast lane."""
    before, beside = counted(server), counted(standard_server)
    seen = [0]
    yield seen
    after = counted(server)
    assert seen[0] > 30, "the generated requests hardly met the fast lane"
    assert after["fast"] - before["fast"] >= seen[0]
    assert counted(standard_server)["fast"] == beside["fast"] == 0


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data(), st.lists(requests(), min_size=1, max_size=5))
def test_generated_streams_are_answered_the_same(
    server: ServerProcess, standard_server: ServerProcess, fast_answers: list[int], data: st.DataObject,
    stream: list[Request],
) -> None:  # fmt: skip
    wire = b"".join(request.data for request in stream) + LAST
    bodiless = [i for i, request in enumerate(stream) if request.head]
    cuts = data.draw(deliveries(len(wire)))
    fast = talk(server, wire, cuts, bodiless)
    standard = talk(standard_server, wire, data.draw(st.sampled_from([cuts, []])), bodiless)
    assert fast.settled() == standard.settled()
    assert fast.fate == CLOSED
    assert fast.rest == b""
    assert all(reply.lane != "fast" for reply in standard.replies)
    final = [reply for reply in fast.replies if reply.status >= 200]
    for request, reply in zip(stream, final, strict=False):
        if request.fast and reply.status == 200:
            own = reply.field(b"x-request-id") == b"mine-1"
            assert own or reply.lane == "fast"
            fast_answers[0] += 1


def test_the_parser_of_answers_sees_what_is_there() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\na: b\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 2"
    replies, rest = parse_replies(data)
    assert [(reply.status, reply.body) for reply in replies] == [(100, b""), (200, b"ok")]
    assert replies[1].field(b"a") == b"b"
    assert rest == b"HTTP/1.1 2"


NUMBER, PARAMETER = "X-Request-Timeout takes a number of seconds", "must be an integer of 64 bits"
TIMES: list[tuple[list[str], str, int, str]] = [  # fields, parameters, status, and what the error says
    *[([text], "", 200, "") for text in ("9", "0", "-1", "-0", "00.5", "1\t", "9" * 30, "0.9999999999")],
    *[([text], "", 400, NUMBER) for text in (
        "", "1e400", "1e-3", "nan", "inf", "+1", "1,2", "1 2", ".5", "5.", "1_0", "0x10", "0.5s", "1;q=2")],
    (["0.0000000001"], "", 503, "deadline"),
    (["7", "9"], "", 200, ""), (["-5", "9"], "", 200, ""), (["9", "x"], "", 400, NUMBER), (["", "9"], "", 400, NUMBER),
    *[([], f'"timeout":{text}', 200, "") for text in ("9000000", "0", "-1", "-0", str(2**63 - 1))],
    *[([], f'"priority":{text}', 200, "") for text in ("0", "1", "8", "9", "1000000", str(2**64 - 1))],
    *[([], f'"{name}":{text}', 400, PARAMETER) for name in ("timeout", "priority") for text in (
        '"9000000"', '""', '"x"', "1.5", "1e6", "0.0", "true", str(2**64), "1e400", "-9223372036854775809")],
    *[([], f'"{name}":{text}', 400, "string, a number or a boolean") for name in ("timeout", "priority")
      for text in ("null", "[]", "{}")],
    ([], '"priority":-1', 400, "not negative"),
    ([], '"timeout":1,"timeout":2', 400, "stands twice"),
    (["9"], '"timeout":1', 503, "deadline"),
]  # fmt: skip


def test_times_and_priorities_as_clients_write_them(server: ServerProcess, standard_server: ServerProcess) -> None:
    for fields, parameters, status, says in TIMES:
        body = f'{{"inputs":[{json.dumps(ROW)}],"parameters":{{{parameters}}}}}'.encode()
        data = message(AFFINE, body, *(f"X-Request-Timeout: {text}" for text in fields)) + LAST
        fast, standard = talk(server, data), talk(standard_server, data)
        assert fast.settled() == standard.settled(), (fields, parameters)
        assert fast.replies[0].status == status, (fields, parameters, fast.replies[0])
        assert says in (fast.replies[0].body.decode() if status != 200 else ""), (fields, parameters)
