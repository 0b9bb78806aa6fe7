"""Bad input through HTTP: each is refused in the one error shape, and the next good request is answered."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ServerProcess, post, read_answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/affine/infer"
PREDICT = "/v1/models/affine:predict"
PEOPLE = "/v1/models/people:predict"
VISITS = "/v1/models/visits:predict"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def still_serving(server: ServerProcess) -> Iterator[None]:
    """After whatever a test did, a good request is answered by the same process."""
    yield
    answer = server.raw(post(INFER, GOOD))
    assert (answer.status, answer.json()["outputs"][0]["shape"]) == (200, [1, 3])
    assert server.process.poll() is None


def tensor(model_input: str = "x", **changes: Any) -> bytes:
    entry = {"name": model_input, "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}
    return json.dumps({"inputs": [{k: v for k, v in entry.items() if v is not None}]}).encode()


def typed(datatype: str, text: str) -> tuple[str, bytes]:
    """An infer request to the identity of a datatype whose first value is this JSON text."""
    body = f'{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"{datatype}","data":[{text},0]}}]}}'
    return f"/v2/models/identity_{datatype.lower()}/infer", body.encode()


def records(text: str) -> bytes:
    return f'{{"records":[{text}]}}'.encode()


REFUSED = {
    "empty body": (INFER, b"", 400),
    "not json": (INFER, b"hello", 400),
    "cut short": (INFER, GOOD[:-3], 400),
    "trailing comma": (INFER, GOOD.replace(b"4]", b"4,]"), 400),
    "trailing bytes": (INFER, GOOD + b"x", 400),
    "two documents": (INFER, GOOD + GOOD, 400),
    "an array": (INFER, b"[]", 400),
    "single quotes": (INFER, GOOD.replace(b'"', b"'"), 400),
    "byte order mark": (INFER, b"\xef\xbb\xbf" + GOOD, 400),
    "utf-16": (INFER, GOOD.decode().encode("utf-16"), 400),
    "invalid utf-8 in a key": (INFER, GOOD.replace(b"name", b"na\xffe"), 400),
    "invalid utf-8 in a value": (
        "/v2/models/words/infer",
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":["\xc3\x28"]}]}',
        400,
    ),
    "lone surrogate": (
        "/v2/models/words/infer",
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":["\\ud800"]}]}',
        400,
    ),
    "control character in a string": (INFER, GOOD.replace(b'"x"', b'"x\n"'), 400),
    "depth of arrays": (INFER, b"[" * 101 + b"]" * 101, 400),
    "depth of data": (INFER, GOOD.replace(b"[1, 2, 3, 4]", b"[" * 200 + b"1" + b"]" * 200), 400),
    "depth that exhausts a stack": (INFER, b'{"a":' * 200_000, 400),
    "NaN": (INFER, GOOD.replace(b"[1,", b"[NaN,"), 400),
    "Infinity": (INFER, GOOD.replace(b"[1,", b"[Infinity,"), 400),
    "-Infinity": (INFER, GOOD.replace(b"[1,", b"[-Infinity,"), 400),
    "null": (INFER, GOOD.replace(b"[1,", b"[null,"), 400),
    "a string for a number": (INFER, GOOD.replace(b"[1,", b'["1",'), 400),
    "a boolean for a number": (INFER, GOOD.replace(b"[1,", b"[true,"), 400),
    "hexadecimal": (INFER, GOOD.replace(b"[1,", b"[0x1,"), 400),
    "leading zero": (INFER, GOOD.replace(b"[1,", b"[01,"), 400),
    "plus sign": (INFER, GOOD.replace(b"[1,", b"[+1,"), 400),
    "300 for UINT8": (*typed("UINT8", "300"), 400),
    "-1 for UINT8": (*typed("UINT8", "-1"), 400),
    "128 for INT8": (*typed("INT8", "128"), 400),
    "65536 for UINT16": (*typed("UINT16", "65536"), 400),
    "2^31 for INT32": (*typed("INT32", "2147483648"), 400),
    "2^32 for UINT32": (*typed("UINT32", "4294967296"), 400),
    "1.5 for INT64": (*typed("INT64", "1.5"), 400),
    "1.0 for INT64": (*typed("INT64", "1.0"), 400),
    "1e3 for INT64": (*typed("INT64", "1e3"), 400),
    "2^63 for INT64": (*typed("INT64", "9223372036854775808"), 400),
    "2^64 for INT64": (*typed("INT64", "18446744073709551616"), 400),
    "2^64 for UINT64": (*typed("UINT64", "18446744073709551616"), 400),
    "1e999 for FP64": (*typed("FP64", "1e999"), 400),
    "1e39 for FP32": (*typed("FP32", "1e39"), 400),
    "1 for BOOL": (*typed("BOOL", "1"), 400),
    "FP16 in JSON": (*typed("FP16", "1.0"), 400),
    "BF16 in JSON": (*typed("BF16", "1.0"), 400),
    "a number for BYTES": (*typed("BYTES", "1"), 400),
    "duplicate key": (INFER, GOOD.replace(b'"name": "x"', b'"name": "x", "name": "x"'), 400),
    "duplicate inputs": (INFER, GOOD[:-1] + b"," + GOOD[1:], 400),
    "wrong shape": (INFER, tensor(shape=[1, 5]), 400),
    "shape without the batch": (INFER, tensor(shape=[4]), 400),
    "shape that disagrees with the data": (INFER, tensor(shape=[2, 4]), 400),
    "negative dimension": (INFER, tensor(shape=[-1, 4]), 400),
    "fractional dimension": (INFER, tensor(shape=[1.5, 4]), 400),
    "shape product overflows": (
        "/v2/models/wide/infer",
        tensor(shape=[2**33, 2**33]),
        400,
    ),
    "shape product overflows 64 bits to 4": (
        "/v2/models/wide/infer",
        tensor(shape=[2**62 + 1, 4]),
        400,
    ),
    "dimension over 64 bits": (INFER, tensor(shape=[2**64, 4]), 400),
    "vast shape, little data": ("/v2/models/wide/infer", tensor(shape=[10**9, 10**6]), 400),
    "ragged data": (INFER, tensor(shape=[2, 4], data=[[1, 2, 3, 4], [1, 2, 3]]), 400),
    "wrong datatype": (INFER, tensor(datatype="FP64"), 400),
    "unknown datatype": (INFER, tensor(datatype="FP31"), 400),
    "no data": (INFER, tensor(data=None), 400),
    "no shape": (INFER, tensor(shape=None), 400),
    "no inputs": (INFER, b"{}", 400),
    "inputs that are no array": (INFER, b'{"inputs":{}}', 400),
    "missing input": ("/v2/models/two/infer", tensor("a", shape=[1, 2], data=[1, 2]), 400),
    "unknown input": (INFER, tensor("y"), 400),
    "duplicate input": (
        INFER,
        json.dumps({"inputs": json.loads(GOOD)["inputs"] * 2}).encode(),
        400,
    ),
    "unknown output": (INFER, GOOD[:-1] + b',"outputs":[{"name":"z"}]}', 400),
    "duplicate output": (INFER, GOOD[:-1] + b',"outputs":[{"name":"y"},{"name":"y"}]}', 400),
    "rows that disagree": (
        "/v2/models/two/infer",
        json.dumps({"inputs": [
            {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
            {"name": "b", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]},
        ]}).encode(),
        400,
    ),
    "id that is no string": (INFER, GOOD[:-1] + b',"id":7}', 400),
    "timeout that is no number": (INFER, GOOD[:-1] + b',"parameters":{"timeout":"soon"}}', 400),
    "negative priority": (INFER, GOOD[:-1] + b',"parameters":{"priority":-1}}', 400),
    "binary size without the header": (INFER, tensor(data=None, parameters={"binary_data_size": 16}), 400),
    "two rows for a fixed batch": (
        "/v2/models/fixed/infer",
        tensor(shape=[4, 3], data=list(range(12))),
        400,
    ),
    "no records": (PREDICT, b"{}", 400),
    "records that are no array": (PREDICT, b'{"records":{}}', 400),
    "a record that is no object": (PREDICT, records("[1,2,3,4]"), 400),
    "a record without a field": (PREDICT, records("{}"), 400),
    "a record with an unknown field": (PREDICT, records('{"x":[1,2,3,4],"z":1}'), 400),
    "a record with a field twice": (PREDICT, records('{"x":[1,2,3,4],"x":[1,2,3,4]}'), 400),
    "a record with too few values": (PREDICT, records('{"x":[1,2,3]}'), 400),
    "a record with too many values": (PREDICT, records('{"x":[1,2,3,4,5]}'), 400),
    "a record with null": (PREDICT, records('{"x":null}'), 400),
    "a record without a required feature": (PEOPLE, records('{"job":"clerk"}'), 400),
    "a required feature that is null": (PEOPLE, records('{"age":null,"job":"clerk"}'), 400),
    "an unknown category": (PEOPLE, records('{"age":30,"job":"king"}'), 400),
    "a number for a category": (PEOPLE, records('{"age":30,"job":1}'), 400),
    "text for a number": (PEOPLE, records('{"age":"30","job":"clerk"}'), 400),
    "a boolean for a feature": (PEOPLE, records('{"age":true,"job":"clerk"}'), 400),
    "a number for a date": (VISITS, records('{"when":20240101}'), 400),
    "a date that is none": (VISITS, records('{"when":"2023-02-29"}'), 400),
    "a required date that is empty": (VISITS, records('{"when":""}'), 400),
    "a required date that is null": (VISITS, records('{"when":null}'), 400),
    "a date past the years": (VISITS, records('{"when":"9999-12-31T23:59:59-01:00"}'), 400),
    "the estimator's own tensor": (
        "/v2/models/people/infer",
        tensor(shape=[1, 4], data=[0, 0, 0, 0]),
        400,
    ),
    "unknown model": ("/v2/models/nobody/infer", GOOD, 404),
    "unknown version": ("/v2/models/affine/versions/9/infer", GOOD, 404),
    "unknown model of records": ("/v1/models/nobody:predict", GOOD, 404),
    "unknown path": ("/v2/models/affine/inferno", GOOD, 404),
    "a run that fails": (
        "/v2/models/picky/infer",
        b'{"inputs":[{"name":"i","shape":[1],"datatype":"INT64","data":[99]}]}',
        500,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_in_the_error_shape(server: ServerProcess, case: str) -> None:
    path, body, status = REFUSED[case]
    answer = server.raw(post(path, body))
    error = answer.json()
    assert answer.status == status, error
    assert answer.headers["content-type"] == "application/json"
    assert set(error) <= {"error", "code", "at"}
    assert error["error"]
    assert error["code"]
    assert "at" not in error or error["at"].startswith("$")


@pytest.mark.parametrize(
    ("body", "offset"),
    [(GOOD[:20] + b"!" + GOOD[20:], 20), (b"{,}", 1), (GOOD.replace(b"[1,", b"[NaN,"), GOOD.find(b"[1,") + 1)],
)
def test_malformed_json_names_the_byte(server: ServerProcess, body: bytes, offset: int) -> None:
    error = server.raw(post(INFER, body)).json()
    assert error["code"] == "invalid_json"
    assert str(offset) in error["error"]


PEOPLE_INFER = "/v2/models/people/infer"


def people(ages: list[Any], jobs: list[Any], *, swapped: bool = False) -> bytes:
    """Columns for the model with a feature program, as tensors."""
    shape = [len(ages), 1] if isinstance(ages[0], list) else [len(ages)]
    columns = [
        {"name": "age", "shape": shape, "datatype": "FP64", "data": ages},
        {"name": "job", "shape": shape, "datatype": "BYTES", "data": jobs},
    ]
    return json.dumps({"inputs": columns[::-1] if swapped else columns}).encode()


@pytest.mark.parametrize(
    ("path", "body", "at"),
    [
        (INFER, tensor(data=[1, 2, "3", 4]), "$.inputs[0].data[2]"),
        (*typed("UINT8", "300"), "$.inputs[0].data[0]"),
        (PREDICT, records('{"x":[1,2,3,4]},{}'), "$.records[1].x"),
        (PEOPLE, records('{"age":1,"job":"clerk"},{"job":"clerk"}'), "$.records[1].age"),
        (PEOPLE, records('{"age":1}'), "$.records[0].job"),
        (PEOPLE, records('{"age":1,"job":"clerk"},{"age":1,"job":"king"}'), "$.records[1].job"),
        (PEOPLE_INFER, people([1, None], ["clerk", "clerk"]), "$.inputs[0].data[1]"),
        (PEOPLE_INFER, people([1, 2], ["clerk", "king"]), "$.inputs[1].data[1]"),
        (PEOPLE_INFER, people([[1], [2]], [["king"], ["clerk"]]), "$.inputs[1].data[0][0]"),
        (PEOPLE_INFER, people([1, 2], ["clerk", "king"], swapped=True), "$.inputs[0].data[1]"),
        (VISITS, records('{"when":"2024-01-01"},{"when":"2024-01-01","seen":"yesterday"}'), "$.records[1].seen"),
        ("/v2/models/visits/infer", json.dumps({"inputs": [
            {"name": "seen", "shape": [2], "datatype": "BYTES", "data": [None, None]},
            {"name": "when", "shape": [2], "datatype": "BYTES", "data": ["2024-01-01", "2024-01-01T"]},
        ]}).encode(), "$.inputs[1].data[1]"),
        (PEOPLE_INFER, people([1] * 200, ["clerk"] * 199 + ["king"]), "$.inputs[1].data[199]"),
    ],
)
def test_the_place_is_named(server: ServerProcess, path: str, body: bytes, at: str) -> None:
    assert server.raw(post(path, body)).json()["at"] == at


# ---- the binary extension -----------------------------------------------------------------------------------------
def binary(size: int = 16, blob: bytes = bytes(16), header: str | None = None) -> bytes:
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [entry]}).encode()
    length = str(len(text)) if header is None else header
    return post(INFER, text + blob, f"Inference-Header-Content-Length: {length}")


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (binary(header="-1"), "inference header size should be in range (0, "),
        (binary(header="99999"), "got: 99999"),
        (binary(header="lots"), "Unable to parse Inference-Header-Content-Length"),
        (binary(header="1_0"), "Unable to parse Inference-Header-Content-Length"),
        (binary(header=""), "Unable to parse Inference-Header-Content-Length"),
        (binary(blob=bytes(8)), "unexpected size for input 'x'"),
        (binary(blob=bytes(20)), "unexpected additional input data for model 'affine'"),
        (binary(size=12, blob=bytes(12)), ""),
        (binary(size=-1), ""),
        (binary(size=2**63 - 1), ""),
        (binary(header="1"), ""),
    ],
)
def test_lying_binary_lengths(server: ServerProcess, request_bytes: bytes, words: str) -> None:
    answer = server.raw(request_bytes)
    assert answer.status == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("payload", [struct.pack("<I", 100) + b"abc", struct.pack("<I", 2**32 - 1), b"\x01\x00", b""])
def test_lying_lengths_of_binary_strings(server: ServerProcess, payload: bytes) -> None:
    entry = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(payload)}}
    text = json.dumps({"inputs": [entry]}).encode()
    request = post("/v2/models/words/infer", text + payload, f"Inference-Header-Content-Length: {len(text)}")
    assert server.raw(request).status == 400


def test_binary_bool_that_is_neither(server: ServerProcess) -> None:
    entry = {"name": "x", "shape": [1, 2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    text = json.dumps({"inputs": [entry]}).encode()
    path = "/v2/models/identity_bool/infer"
    answer = server.raw(post(path, text + b"\x00\x07", f"Inference-Header-Content-Length: {len(text)}"))
    assert answer.status == 400


# ---- bodies -------------------------------------------------------------------------------------------------------
def test_content_length_over_the_limit_is_refused_unread(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {5 * MIB}\r\n\r\n".encode())
        answer = read_answer(connection)
    assert answer.status == 413
    assert answer.json()["code"] == "body_too_large"
    assert answer.headers["connection"] == "close"


def test_the_refusal_of_a_body_reaches_a_client_that_goes_on_sending(server: ServerProcess) -> None:
    body = bytes(6 * MIB)
    with server.connect() as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert read_answer(connection).status == 413


def test_a_chunked_body_over_the_limit_is_refused_while_reading(server: ServerProcess) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with server.connect() as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(70):
            connection.sendall(chunk)
        assert read_answer(connection).status == 413


def test_an_expectation_is_not_met_for_a_body_over_the_limit(server: ServerProcess) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {5 * MIB}\r\n\r\n"
    assert server.raw(head.encode()).status == 413


def deflated(data: bytes, wbits: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return stream.compress(data) + stream.flush()


BOMB = deflated(bytes(50 * MIB), 31)  # 50 KiB


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("br", GOOD, 415, "unsupported_encoding"),
        ("gzip, gzip", gzip.compress(gzip.compress(GOOD), mtime=0), 415, "unsupported_encoding"),
        ("gzip", GOOD, 400, "invalid_compression"),
        ("gzip", b"", 400, "invalid_compression"),
        ("gzip", gzip.compress(GOOD, mtime=0)[:-4], 400, "invalid_compression"),
        ("gzip", gzip.compress(GOOD, mtime=0) + b"tail", 400, "invalid_compression"),
        ("gzip", gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), 400, "invalid_compression"),
        ("deflate", zlib.compress(GOOD) + b"tail", 400, "invalid_compression"),
        ("deflate", zlib.compress(GOOD)[:-1], 400, "invalid_compression"),
        ("deflate", b"\xff\xff\xff", 400, "invalid_compression"),
        ("gzip", BOMB, 413, "body_too_large"),
        ("deflate", zlib.compress(bytes(50 * MIB), 9), 413, "body_too_large"),
        ("gzip", gzip.compress(b"", mtime=0) * 5000, 400, "invalid_compression"),
    ],
)
def test_compressed_bodies(server: ServerProcess, encoding: str, body: bytes, status: int, code: str) -> None:
    answer = server.raw(post(INFER, body, f"Content-Encoding: {encoding}"))
    assert (answer.status, answer.json()["code"]) == (status, code)
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_a_bomb_costs_no_memory(server: ServerProcess) -> None:
    def peak() -> int:
        lines = open(f"/proc/{server.process.pid}/status").read().splitlines()  # noqa: SIM115
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

    server.raw(post(INFER, BOMB, "Content-Encoding: gzip"))
    before = peak()
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([*(stream.compress(bytes(MIB)) for _ in range(400)), stream.flush()])
    assert server.raw(post(INFER, bomb, "Content-Encoding: gzip")).status == 413
    assert peak() - before < 40 * MIB


# ---- heads --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(80), 400),
        (b"POST /v2 HTTP/1.1\r\nHost: t\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: t\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /v2 HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: t\r\nBad Name: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: t\r\nA: b\r\n c: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: t\r\nA: \x00\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: t\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: t\r\nA: " + b"b" * 400_000, 431),
    ],
)
def test_bad_heads_are_answered_and_closed(server: ServerProcess, head: bytes, status: int) -> None:
    with server.connect() as connection:
        connection.sendall(head)
        answer = read_answer(connection)
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert set(answer.json()) == {"error", "code"}
        connection.settimeout(10)
        assert connection.recv(1) == b""


def test_a_bad_head_after_a_good_request_does_not_cost_its_answer(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(post(INFER, GOOD) + b"nonsense\r\n\r\n")
        assert read_answer(connection).status == 200


def test_garbage_in_a_chunked_body(server: ServerProcess) -> None:
    data = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\nhello\r\n".encode()
    assert server.raw(data).status == 400


@pytest.mark.parametrize(
    ("verb", "path", "allow"),
    [
        ("GET", INFER, "POST"),
        ("DELETE", INFER, "POST"),
        ("GET", PREDICT, "POST"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("PUT", "/v2/models/affine", "GET, HEAD"),
        ("GET", "/v2/repository/index", "POST"),
        ("DELETE", "/v2/logging", "GET, HEAD, POST"),
        ("POST", "/metrics", "GET, HEAD"),
    ],
)
def test_a_wrong_verb_is_told_the_right_ones(server: ServerProcess, verb: str, path: str, allow: str) -> None:
    answer = server.raw(f"{verb} {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
    assert (answer.status, answer.headers["allow"], answer.json()["code"]) == (405, allow, "method_not_allowed")


def test_a_failing_request_does_not_touch_those_batched_with_it(server: ServerProcess) -> None:
    def request(index: int) -> bytes:
        entry = {"name": "i", "shape": [1], "datatype": "INT64", "data": [index]}
        return post("/v2/models/picky/infer", json.dumps({"inputs": [entry]}).encode())

    indices = [0, 1, 99, 2, 3] * 4
    connections = [server.connect() for _ in indices]
    for connection, index in zip(connections, indices, strict=True):
        connection.sendall(request(index))
    for connection, index in zip(connections, indices, strict=True):
        with connection:
            answer = read_answer(connection)
        if index == 99:
            assert (answer.status, answer.json()["code"]) == (500, "runtime_failed")
        else:
            assert answer.json()["outputs"][0]["data"] == [10.0 * (index + 1)]


def test_clients_that_leave_at_every_byte(server: ServerProcess) -> None:
    request = post(INFER, GOOD)
    for cut in range(0, len(request), 7):
        connection = server.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        connection.sendall(request[:cut])
        connection.close()


def test_a_client_that_trickles(server: ServerProcess) -> None:
    request = post(INFER, GOOD)
    with server.connect() as connection:
        for start in range(0, len(request), 20):
            connection.sendall(request[start : start + 20])
            time.sleep(0.001)
        assert read_answer(connection).status == 200


shared = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
BODIES = [GOOD, records('{"x":[1,2,3,4]}'), typed("INT64", "7")[1], typed("BYTES", '"a\\u00e9"')[1]]


@shared
@given(st.data())
def test_damaged_bodies_are_answered_or_refused(server: ServerProcess, data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(BODIES)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        stop = min(len(body), start + data.draw(st.integers(0, 3)))
        body[start:stop] = data.draw(st.binary(max_size=3))
    path = data.draw(st.sampled_from([INFER, PREDICT, "/v2/models/identity_int64/infer", "/v2/models/words/infer"]))
    headers = data.draw(st.lists(st.just(f"Inference-Header-Content-Length: {len(body) - 1}"), max_size=1))
    answer = server.raw(post(path, bytes(body), *headers))
    assert answer.status in (200, 400)


@shared
@given(st.binary(min_size=1, max_size=400))
def test_any_bytes_on_a_connection_end_it_or_are_answered(server: ServerProcess, data: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(data + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
