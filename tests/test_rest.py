"""The Open Inference Protocol over REST, and records: what a well-behaved client gets."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx_models
import pytest
from conftest import ServerProcess, post, read_answer, starting
from onnx_models import BIAS, WEIGHTS

ROW = [1.0, 2.0, 3.0, 4.0]
INPUT = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}
EXPECTED = (np.float32(ROW) @ WEIGHTS + BIAS).tolist()


def test_health(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True, "live": True}


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(client: httpx.Client, path: str) -> None:
    answer = client.get(path).json()
    assert answer["name"] == "fastinfer"
    assert isinstance(answer["version"], str)
    assert {"binary_tensor_data", "statistics", "model_configuration", "schedule_policy"} <= set(answer["extensions"])


@pytest.mark.parametrize("path", ["", "/versions/2"])
def test_model_metadata(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/v2/models/affine{path}").json()
    assert answer["name"] == "affine"
    assert sorted(answer["versions"]) == ["1", "2"]
    assert answer["platform"]
    assert answer["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    assert all(isinstance(value, str) for value in answer["properties"].values())


@pytest.mark.parametrize("path", ["", "/versions/1"])
def test_model_ready(client: httpx.Client, path: str) -> None:
    assert client.get(f"/v2/models/affine{path}/ready").json() == {"name": "affine", "ready": True}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/nobody",
        "/v2/models/nobody/ready",
        "/v2/models/affine/versions/7",
        "/v2/models/affine/versions/7/ready",
        "/v2/models/nobody/config",
        "/v2/models/nobody/stats",
        "/nowhere",
        "/v2/models",
        "/v2/health/live/",
    ],
)
def test_what_is_not_there(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["code"] in ("not_found", "unknown_model", "unknown_version")


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/metrics", "/openapi.json", "/v2", "/v2/health/live", "/v2/models/affine", "/v2/models/stats"],
)
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("path", "version"),
    [("affine/infer", "2"), ("affine/versions/1/infer", "1"), ("a%66fine/infer", "2")],
)
def test_infer(client: httpx.Client, path: str, version: str) -> None:
    answer = client.post(f"/v2/models/{path}", json={"id": "seven", "inputs": [INPUT]})
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["model_name", "model_version", "id", "outputs"]
    assert (body["model_name"], body["model_version"], body["id"]) == ("affine", version, "seven")
    (output,) = body["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [1, 3])
    assert output["data"] == pytest.approx(EXPECTED, rel=1e-6)


def test_id_is_echoed_only_if_given(client: httpx.Client) -> None:
    assert "id" not in client.post("/v2/models/affine/infer", json={"inputs": [INPUT]}).json()


def test_nested_and_flat_data_are_the_same(client: httpx.Client) -> None:
    flat = {**INPUT, "shape": [2, 4], "data": ROW + ROW}
    nested = {**INPUT, "shape": [2, 4], "data": [ROW, ROW]}
    answers = [client.post("/v2/models/affine/infer", json={"inputs": [tensor]}).content for tensor in (flat, nested)]
    assert answers[0] == answers[1]


def test_requested_outputs_come_in_the_order_asked(client: httpx.Client) -> None:
    inputs = [{"name": name, "shape": [1, 2], "datatype": "FP32", "data": [5, 7]} for name in ("b", "a")]
    wanted = [{"name": "difference"}, {"name": "total"}]
    answer = client.post("/v2/models/two/infer", json={"inputs": inputs, "outputs": wanted}).json()
    assert [(each["name"], each["data"]) for each in answer["outputs"]] == [
        ("difference", [0.0, 0.0]),
        ("total", [10.0, 14.0]),
    ]
    answer = client.post("/v2/models/two/infer", json={"inputs": inputs, "outputs": wanted[:1]}).json()
    assert [each["name"] for each in answer["outputs"]] == ["difference"]


JSON_VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 4294967295],
    "UINT64": [0, 18446744073709551615],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-2147483648, 2147483647],
    "INT64": [-9223372036854775808, 9223372036854775807],
    "FP32": [0.10000000149011612, -1e30],
    "FP64": [0.1, -1e300],
    "BYTES": ["", 'é"\\\n😀'],
}


@pytest.mark.parametrize("datatype", JSON_VALUES)
def test_every_json_datatype_comes_back(client: httpx.Client, datatype: str) -> None:
    values = JSON_VALUES[datatype]
    tensor = {"name": "x", "shape": [1, 2], "datatype": datatype, "data": values}
    answer = client.post(f"/v2/models/identity_{datatype.lower()}/infer", json={"inputs": [tensor]}).json()
    output = answer["outputs"][0]
    assert output["datatype"] == datatype
    if datatype == "FP32":
        assert [np.float32(value) for value in output["data"]] == [np.float32(value) for value in values]
    else:
        assert output["data"] == values


@pytest.mark.parametrize("datatype", sorted(set(onnx_models.ONNX_TYPES) - {"BYTES"}))
def test_every_binary_datatype_comes_back(server: ServerProcess, datatype: str) -> None:
    size = {"BOOL": 1, "8": 1, "16": 2, "32": 4, "64": 8}[datatype.lstrip("UINTFPB") if datatype != "BOOL" else "BOOL"]
    blob = b"\x01\x00" if datatype == "BOOL" else bytes(range(1, 2 * size + 1))
    tensor = {"name": "x", "shape": [1, 2], "datatype": datatype, "parameters": {"binary_data_size": len(blob)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    request = post(
        f"/v2/models/identity_{datatype.lower()}/infer",
        text + blob,
        f"inference-header-CONTENT-length: {len(text)}",
        "Content-Type: application/octet-stream",
    )
    answer = server.raw(request)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(blob)
    assert "data" not in output
    assert answer.body[length:] == blob


def test_one_output_binary_and_one_json(server: ServerProcess) -> None:
    inputs = [{"name": name, "shape": [1, 2], "datatype": "FP32", "data": [5, 7]} for name in ("a", "b")]
    outputs = [{"name": "total", "parameters": {"binary_data": True}}, {"name": "difference"}]
    answer = server.raw(post("/v2/models/two/infer", json.dumps({"inputs": inputs, "outputs": outputs}).encode()))
    length = int(answer.headers["inference-header-content-length"])
    total, difference = json.loads(answer.body[:length])["outputs"]
    assert total["parameters"] == {"binary_data_size": 8}
    assert difference["data"] == [0.0, 0.0]
    assert answer.body[length:] == np.float32([10, 14]).tobytes()


def test_a_raw_binary_request_is_the_one_inputs_bytes(server: ServerProcess) -> None:
    blob = np.float32(ROW).tobytes()
    answer = server.raw(post("/v2/models/affine/infer", blob, "Inference-Header-Content-Length: 0"))
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.body[length:], np.float32).tolist() == pytest.approx(EXPECTED, rel=1e-6)


@pytest.mark.parametrize("path", ["/v1/models/affine:predict", "/v1/models/affine/versions/1:predict"])
def test_records(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={"records": [{"x": ROW}, {"x": [0, 0, 0, 0]}], "id": "a"}).json()
    assert list(answer) == ["model_name", "model_version", "id", "predictions"]
    assert answer["predictions"][0]["y"] == pytest.approx(EXPECTED, rel=1e-6)
    assert answer["predictions"][1]["y"] == BIAS.tolist()


def test_records_of_a_classifier(client: httpx.Client) -> None:
    (prediction,) = client.post("/v1/models/classifier:predict", json={"records": [{"x": ROW}]}).json()["predictions"]
    probabilities = prediction["probabilities"]
    assert sum(probabilities.values()) == pytest.approx(1)
    assert list(probabilities)[prediction["label"]] == max(probabilities, key=lambda name: probabilities[name])


def test_records_of_a_model_that_is_not_batched(client: httpx.Client) -> None:
    record = {"x": [[1, 2, 3], [4, 5, 6]]}
    answer = client.post("/v1/models/fixed:predict", json={"records": [record]}).json()
    assert answer["predictions"] == [{"y": [[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]]}]


def test_records_go_through_the_feature_program(client: httpx.Client) -> None:
    people = [{"age": 30, "job": "clerk"}, {"job": "fixed", "age": 30.0}]
    answer = client.post("/v1/models/people:predict", json={"records": people}).json()
    assert answer["predictions"] == [{"value": 0.0}, {"value": 10.0}]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_raw_columns_are_the_inputs_of_a_model_with_a_program(client: httpx.Client, shape: list[int]) -> None:
    metadata = client.get("/v2/models/people").json()
    assert metadata["inputs"] == [
        {"name": "age", "datatype": "FP64", "shape": [-1, 1]},
        {"name": "job", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    inputs = [
        {"name": "age", "shape": shape, "datatype": "FP64", "data": [30, 30]},
        {"name": "job", "shape": shape, "datatype": "BYTES", "data": ["fixed", "other"]},
    ]
    answer = client.post("/v2/models/people/infer", json={"inputs": inputs}).json()
    assert answer["outputs"][0]["data"] == [10.0, 0.0]


def test_dates_in_records_and_tensors(client: httpx.Client) -> None:
    metadata = client.get("/v2/models/visits").json()
    assert metadata["inputs"][0] == {"name": "when", "datatype": "BYTES", "shape": [-1, 1]}
    assert metadata["properties"]["dates"] == "when,seen"
    dates = ["2024-02-29", "1969-12-31T23:59:59.999999+00:30", "9999-12-31 00:00:00Z"]
    parts = [[2024.0, 2.0, 29.0, 0.0, 0.0], [1969.0, 12.0, 31.0, 23.0, 999999.0], [9999.0, 12.0, 31.0, 0.0, 0.0]]
    visits = [{"when": dates[0]}, {"when": dates[1], "seen": None}, {"seen": "2000-01-01", "when": dates[2]}]
    unseen = [[*row, missing] for row, missing in zip(parts, [1.0, 1.0, 0.0], strict=True)]
    answer = client.post("/v1/models/visits:predict", json={"records": visits}).json()
    assert answer["predictions"] == [{"parts": row} for row in unseen]
    inputs = [
        {"name": "when", "shape": [3, 1], "datatype": "BYTES", "data": [[date] for date in dates]},
        {"name": "seen", "shape": [3], "datatype": "BYTES", "data": ["", None, "2000-01-01"]},
    ]
    answer = client.post("/v2/models/visits/infer", json={"inputs": inputs}).json()
    assert answer["outputs"][0]["data"] == [value for row in unseen for value in row]
    blobs = [b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)
             for texts in (dates, ["", "", "2000-01-01"])]
    head = json.dumps({"inputs": [
        {"name": name, "shape": [3, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
        for name, blob in zip(("when", "seen"), blobs, strict=True)
    ]}).encode()  # fmt: skip
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post("/v2/models/visits/infer", content=head + b"".join(blobs), headers=headers).json()
    assert answer["outputs"][0]["data"] == [value for row in unseen for value in row]


def test_zero_rows(client: httpx.Client) -> None:
    tensor = {**INPUT, "shape": [0, 4], "data": []}
    answer = client.post("/v2/models/affine/infer", json={"inputs": [tensor]}).json()
    assert (answer["outputs"][0]["shape"], answer["outputs"][0]["data"]) == ([0, 3], [])


def test_more_rows_than_a_batch_holds(client: httpx.Client) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    tensor = {**INPUT, "shape": [1000, 4], "data": rows.ravel().tolist()}
    answer = client.post("/v2/models/affine/infer", json={"inputs": [tensor]}).json()
    got = np.array(answer["outputs"][0]["data"], np.float32).reshape(1000, 3)
    np.testing.assert_allclose(got, rows @ WEIGHTS + BIAS, rtol=1e-5, atol=1e-5)


def test_a_large_body_and_a_large_answer(client: httpx.Client) -> None:
    data = np.random.default_rng(0).standard_normal(100_000).tolist()
    tensor = {"name": "x", "shape": [50_000, 2], "datatype": "FP64", "data": data}
    answer = client.post("/v2/models/identity_fp64/infer", json={"inputs": [tensor]})
    assert len(answer.request.content) > 256 * 1024
    assert answer.json()["outputs"][0]["data"] == data


BODY = json.dumps({"inputs": [INPUT]}).encode()


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("identity", BODY),
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("GZIP", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("gzip", gzip.compress(BODY[:10], mtime=0) + gzip.compress(BODY[10:], mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
    ],
)
def test_compressed_bodies(client: httpx.Client, encoding: str, body: bytes) -> None:
    answer = client.post("/v2/models/affine/infer", content=body, headers={"Content-Encoding": encoding})
    assert answer.json()["outputs"][0]["data"] == pytest.approx(EXPECTED, rel=1e-6)


def test_answers_are_not_compressed_unasked(client: httpx.Client) -> None:
    tensor = {**INPUT, "shape": [500, 4], "data": ROW * 500}
    answer = client.post("/v2/models/affine/infer", json={"inputs": [tensor]}, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers


@pytest.fixture(scope="module")
def compressing(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with starting(tmp_path_factory) as start:
        yield start(repository / "affine", "--compress-responses")


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.2, deflate;q=0.7", "deflate"),
        ("*", "gzip"),
        ("br", None),
        ("gzip;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("", None),
        ("gzip;q=lots", None),
    ],
)
@pytest.mark.parametrize("rows", [500, 20_000])
def test_compressed_answers(compressing: ServerProcess, accept: str, encoding: str | None, rows: int) -> None:
    tensor = {**INPUT, "shape": [rows, 4], "data": ROW * rows}
    with compressing.client() as client:
        answer = client.post("/v2/models/affine/infer", json={"inputs": [tensor]}, headers={"Accept-Encoding": accept})
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert len(answer.json()["outputs"][0]["data"]) == 3 * rows


def test_a_chunked_body(client: httpx.Client) -> None:
    def pieces() -> Any:
        for start in range(0, len(BODY), 10):
            yield BODY[start : start + 10]

    answer = client.post("/v2/models/affine/infer", content=pieces())
    assert "transfer-encoding" in answer.request.headers
    assert answer.status_code == 200


def test_expect_100_continue(server: ServerProcess) -> None:
    with server.connect() as connection:
        head, _, body = post("/v2/models/affine/infer", BODY, "Expect: 100-continue").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_answer(connection).status == 200


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    requests = [
        post("/v2/models/affine/infer", json.dumps({"id": str(i), "inputs": [INPUT]}).encode()) for i in range(20)
    ]
    with server.connect() as connection:
        connection.sendall(b"".join(requests))
        stream = connection.makefile("rb")
        for i in range(20):
            length = 0
            while (line := stream.readline().lower()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert json.loads(stream.read(length))["id"] == str(i)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_offer_of_http2_is_ignored(server: ServerProcess, framing: str) -> None:
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"
    if framing == "length":
        request = post("/v2/models/affine/infer", BODY, offer)
    else:
        head = f"POST /v2/models/affine/infer HTTP/1.1\r\nHost: t\r\n{offer}\r\nTransfer-Encoding: chunked\r\n\r\n"
        request = head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(request)
            assert read_answer(connection).status == 200


def test_request_id(client: httpx.Client) -> None:
    for path in ("/v2", "/nowhere"):
        assert client.get(path, headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = [client.get("/v2").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for bad in ("a b", "x" * 129, '"><script>'):
        assert client.get("/v2", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad


def test_schedule_policy_is_accepted(client: httpx.Client) -> None:
    parameters = {"priority": 1, "timeout": 1_000_000, "anything": "else"}
    assert client.post("/v2/models/affine/infer", json={"inputs": [INPUT], "parameters": parameters}).status_code == 200


def test_configuration(client: httpx.Client) -> None:
    for path in ("/v2/models/affine/config", "/v2/models/affine/versions/1/config"):
        answer = client.get(path).json()
        assert answer["name"] == "affine"
        assert answer["max_batch_size"] == 64
        assert answer["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
        assert answer["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}]


def test_statistics_count_rows_and_requests(client: httpx.Client) -> None:
    def counts(path: str) -> tuple[int, int, int]:
        (stats,) = client.get(path).json()["model_stats"]
        return stats["inference_count"], stats["execution_count"], stats["inference_stats"]["success"]["count"]

    path = "/v2/models/wide/versions/1/stats"
    before = counts(path)
    tensor = {"name": "x", "shape": [3, 5], "datatype": "FP32", "data": list(range(15))}
    for _ in range(2):
        client.post("/v2/models/wide/infer", json={"inputs": [tensor]}).raise_for_status()
    after = counts("/v2/models/wide/stats")
    assert [b - a for a, b in zip(before, after, strict=True)] == [6, 2, 2]


def test_statistics_of_all(client: httpx.Client) -> None:
    listed = {(each["name"], each["version"]) for each in client.get("/v2/models/stats").json()["model_stats"]}
    assert {("affine", "1"), ("affine", "2"), ("two", "1")} <= listed
    assert len(client.get("/v2/models/affine/stats").json()["model_stats"]) == 2


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/main/index"])
@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready":true}'])
def test_repository_index(client: httpx.Client, path: str, body: bytes) -> None:
    entries = client.post(path, content=body).json()
    assert {"name": "affine", "version": "2", "state": "READY", "reason": ""} in entries


@pytest.mark.parametrize("body", [b"[]", b'{"ready":1}', b"{", b"[" * 100_000])
def test_repository_index_refuses_what_is_not_its_request(client: httpx.Client, body: bytes) -> None:
    assert client.post("/v2/repository/index", content=body).status_code == 400


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("POST", "/v2/repository/models/affine/load", 503),
        ("POST", "/v2/repository/models/affine/unload", 503),
        ("GET", "/v2/trace/setting", 200),
        ("GET", "/v2/models/affine/trace/setting", 200),
        ("GET", "/v2/models/nobody/trace/setting", 404),
        ("POST", "/v2/trace/setting", 200),
        ("GET", "/v2/logging", 200),
        ("POST", "/v2/logging", 200),
        ("GET", "/v2/systemsharedmemory/status", 200),
        ("GET", "/v2/cudasharedmemory/status", 200),
        ("GET", "/v2/systemsharedmemory/region/a/status", 404),
        ("POST", "/v2/systemsharedmemory/region/a/register", 501),
        ("POST", "/v2/cudasharedmemory/region/a/register", 501),
        ("POST", "/v2/systemsharedmemory/unregister", 200),
        ("POST", "/v2/cudasharedmemory/region/a/unregister", 200),
        ("GET", "/v2/othersharedmemory/status", 404),
    ],
)
def test_what_is_off_answers_as_triton_does(client: httpx.Client, verb: str, path: str, status: int) -> None:
    answer = client.request(verb, path)
    assert answer.status_code == status
    if status == 503:
        assert "explicit model load / unload is not allowed" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("path", "asked", "status"),
    [
        ("/v2/trace/setting", {}, 200),
        ("/v2/trace/setting", {"trace_level": ["OFF"], "trace_rate": None}, 200),
        ("/v2/models/affine/trace/setting", {"trace_count": "-1"}, 200),
        ("/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}, 501),
        ("/v2/trace/setting", {"other": 1}, 501),
        ("/v2/trace/setting", [], 400),
        ("/v2/logging", {"log_error": True, "log_format": "default"}, 200),
        ("/v2/logging", {"log_error": 1}, 501),
        ("/v2/logging", {"log_verbose_level": -1}, 501),
    ],
)
def test_settings_may_be_asked_to_stay_as_they_are(client: httpx.Client, path: str, asked: Any, status: int) -> None:
    answer = client.post(path, json=asked)
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == client.get(path).json()


def test_many_clients_get_their_own_rows(server: ServerProcess) -> None:
    def ask(i: int) -> bool:
        tensor = {"name": "x", "shape": [1, 2], "datatype": "INT64", "data": [i, -i]}
        with server.client() as client:
            answers = [
                client.post("/v2/models/identity_int64/infer", json={"inputs": [tensor]}).json() for _ in range(5)
            ]
        return all(answer["outputs"][0]["data"] == [i, -i] for answer in answers)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


@pytest.mark.parametrize("form", ["text", "JSON", "binary"])
def test_a_load_report_is_given_to_those_who_ask(client: httpx.Client, form: str) -> None:
    inputs = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    plain = client.post("/v2/models/affine/infer", json={"inputs": inputs})
    asked = {"endpoint-load-metrics-format": form}
    answer = client.post("/v2/models/affine/infer", json={"inputs": inputs}, headers=asked)
    assert answer.content == plain.content
    assert "endpoint-load-metrics" not in plain.headers
    report = answer.headers.get("endpoint-load-metrics")
    if form == "text":
        assert re.fullmatch(
            r"TEXT application_utilization=[\d.]+, named_metrics\.queue_rows=\d+, named_metrics\.in_flight=\d+", report
        )
    elif form == "JSON":
        said = json.loads(report.removeprefix("JSON "))
        assert 0 <= said["application_utilization"] <= 1
        assert set(said["named_metrics"]) == {"queue_rows", "in_flight"}
    else:
        assert report is None
