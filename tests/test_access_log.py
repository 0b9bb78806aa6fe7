"""The access log: the same line from both lanes, whoever asks for what; bounded, and never in the way."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import onnx_models
import pytest
from conftest import ServerProcess, Start
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_http import FAST, Peer, Server
from test_server import GOOD, INFER, wait_for
from wire import LAST, MADE_ID, message, talk

import fastinfer
from fastinfer import _core, logs

LANES = pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
CLOCK = {"time", "queue_ms", "preprocess_ms", "run_ms", "total_ms"}
Record = dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    onnx_models.picky(root / "picky" / "1" / "model.onnx")
    onnx_models.slow(root / "slow" / "1" / "model.onnx")
    (root / "slow" / "model.toml").write_text("inline_budget_us = 0\n")
    return root


def accesses(server: ServerProcess) -> list[Record]:
    return [record for record in server.records() if record["logger"] == "fastinfer.access"]


def logged(server: ServerProcess, data: bytes, count: int) -> tuple[list[Record], int]:
    """What a stream of requests puts into the log, and the client's port."""
    with server.connect() as connection:
        port = connection.getsockname()[1]
        connection.sendall(data)
        while connection.recv(1 << 16):
            pass
    wait_for(lambda: len(accesses(server)) >= count)
    return accesses(server), port


FAILS = b'{"inputs":[{"name":"i","shape":[1],"datatype":"INT64","data":[99]}]}'
STREAM = [
    message(INFER, GOOD, "X-Request-ID: one"),
    message("/v2/models/affine/versions/1/infer", GOOD, "X-Request-ID: a=b"),
    message("/v1/models/affine:predict", b'{"records":[{"x":[1,2,3,4]},{"x":[1,2,3,4]}]}'),
    message(INFER, b"{", "X-Request-ID: two"),
    message("/v2/models/picky/infer", FAILS),
    message("/v2/models/nobody/infer", GOOD),
    message("/v2", None, method="GET"),
    message("/v2", None, method="HEAD"),
    message("/no%20such?secret=1", None, method="GET"),
    message(INFER, None, method="DELETE"),
    b"NONSENSE\r\n\r\n",
]


def test_both_lanes_write_the_same_lines(models: Path, start_server: Start) -> None:
    seen = []
    for options in ((), ("--no-fast-lane",)):
        records, port = logged(start_server(models, "--access-log", *options), b"".join(STREAM), len(STREAM))
        assert {record.pop("client") for record in records} == {f"127.0.0.1:{port}"}
        for record in records:
            times = {name: record.pop(name) for name in list(record) if name in CLOCK}
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", times.pop("time"))
            assert all(isinstance(value, float) and 0 <= value < 60_000 for value in times.values())
            assert set(times) in ({"total_ms"}, CLOCK - {"time"}, set())
            record["times"] = sorted(times)
            if MADE_ID.fullmatch(record.get("request_id", "").encode()):
                record["request_id"] = "made"
        seen.append(records)
    assert [list(record) for record in seen[0]] == [list(record) for record in seen[1]]  # the order too
    assert seen[0] == seen[1]
    statuses = [record["status"] for record in seen[0]]
    # What is no request is refused as soon as the answer before it is out, and so before its record.
    assert statuses == [200, 200, 200, 400, 500, 404, 200, 200, 404, 400, 405]
    first, third, failed, refused = seen[0][0], seen[0][2], seen[0][4], seen[0][9]
    body = talk(start_server(models), STREAM[0] + LAST).replies[0].body
    assert first == {
        "level": "info", "logger": "fastinfer.access", "message": "answered", "request_id": "one", "method": "POST",
        "path": INFER, "model": "affine", "version": "1", "rows": 1, "status": 200, "bytes": len(body),
        "times": ["preprocess_ms", "queue_ms", "run_ms", "total_ms"],
    }  # fmt: skip
    assert (third["rows"], third["path"]) == (2, "/v1/models/affine:predict")
    assert (failed["code"], failed["rows"]) == ("runtime_failed", 1)
    assert [record.get("code") for record in seen[0][5:8]] == ["unknown_model", None, None]
    assert (seen[0][7]["method"], seen[0][7]["bytes"]) == ("HEAD", 0)
    assert seen[0][8]["path"] == "/no%20such"
    assert refused == {**{name: first[name] for name in ("level", "logger", "message")}, "code": "malformed_head",
                       "status": 400, "bytes": refused["bytes"], "times": []}  # fmt: skip


@LANES
def test_the_fast_lane_serves_all_the_same(models: Path, start_server: Start, lane: str) -> None:
    server = start_server(models, "--access-log", lane)
    answered = talk(server, message(INFER, GOOD) + LAST).replies[0]
    assert answered.lane == ("fast" if lane == "--fast-lane" else "standard")
    wait_for(lambda: len(accesses(server)) == 2)
    assert accesses(server)[0]["request_id"].encode() == answered.field(b"x-request-id")


@LANES
def test_a_client_that_left_is_logged(models: Path, start_server: Start, lane: str) -> None:
    server = start_server(models, "--access-log", lane)
    body = b'{"inputs":[{"name":"steps","shape":[1],"datatype":"INT64","data":[3000]}]}'
    with server.connect() as connection:
        connection.sendall(message("/v2/models/slow/infer", body, "X-Request-ID: gone"))
        time.sleep(0.3)
    wait_for(lambda: accesses(server))
    (record,) = accesses(server)
    assert (record["request_id"], record["status"], record["bytes"]) == ("gone", 499, 0)
    assert (record["model"], record["path"]) == ("slow", "/v2/models/slow/infer")


@LANES
def test_text_lines(models: Path, start_server: Start, lane: str) -> None:
    server = start_server(models, "--access-log", "--log-format", "text", lane)
    talk(server, b"".join(STREAM), heads=[7])
    wait_for(lambda: server.log().count("answered") == len(STREAM))
    lines = [line for line in server.log().splitlines() if "answered" in line]
    number = r"\d+\.\d+"
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} INFO    answered request_id=one client=127\.0\.0\.1:\d+ method=POST "
        rf"path={INFER} model=affine version=1 rows=1 status=200 bytes=\d+ queue_ms={number} preprocess_ms={number} "
        rf"run_ms={number} total_ms={number}",
        lines[0],
    )
    assert 'request_id="a=b"' in lines[1]
    assert "code=invalid_json status=400" in lines[3]


@LANES
def test_a_client_cannot_forge_a_record(models: Path, start_server: Start, lane: str) -> None:
    server = start_server(models, "--log-format", "text", "--access-log", lane)
    server.raw(b"GET /%0A12:00:00.000%20WARNING%20forged HTTP/1.1\r\nHost: t\r\n\r\n")
    server.raw(b'GET /"status=200 HTTP/1.1\r\nHost: t\r\n\r\n')
    wait_for(lambda: server.log().count(" answered ") == 2)
    assert not any(line.startswith("12:00:00.000") for line in server.log().splitlines())
    assert r'path="/\"status=200"' in server.log()


@LANES
def test_what_was_answered_is_in_the_log_when_the_server_has_left(models: Path, start_server: Start, lane: str) -> None:
    server = start_server(models, "--access-log", lane)
    seen = talk(server, message(INFER, GOOD) * 500 + LAST)
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0
    assert len(seen.replies) == len(accesses(server)) == 501


def test_an_access_record_is_of_level_info(models: Path, start_server: Start) -> None:
    server = start_server(models, "--access-log", "--log-level", "warning")
    talk(server, message(INFER, GOOD) + message(INFER, b"{") + LAST)
    server.stop()
    assert accesses(server) == []
    assert [record["code"] for record in server.records()] == ["invalid_json"]


def test_an_error_has_its_own_record_beside(models: Path, start_server: Start) -> None:
    server = start_server(models, "--access-log")
    talk(server, message(INFER, b"{", "X-Request-ID: two") + LAST)
    server.stop()
    access, error = ([record for record in server.records() if record.get("request_id") == "two"
                      and record["logger"] == f"fastinfer.{name}"] for name in ("access", "request"))  # fmt: skip
    assert (access[0]["code"], access[0]["level"]) == ("invalid_json", "info")
    assert (error[0]["code"], error[0]["level"]) == ("invalid_json", "warning")


def test_a_unix_socket_has_no_address(models: Path, start_server: Start, tmp_path: Path) -> None:
    server = start_server(models, "--access-log", "--uds", str(tmp_path / "s"), wait=False)
    wait_for(lambda: (tmp_path / "s").exists(), 60)

    def ask() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / "s"))
            connection.sendall(message(INFER, GOOD, "Connection: close"))
            return b" 200 " in connection.recv(1 << 16)

    wait_for(ask, 60)
    wait_for(lambda: any(record["status"] == 200 for record in accesses(server)))
    assert all("client" not in record for record in accesses(server))


def test_in_somebody_else_s_application_records_go_to_logging(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = fastinfer.asgi(models, access_log=True)

    async def ask() -> None:
        transport = httpx.ASGITransport(app=app)
        async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post(INFER, content=GOOD, headers={"X-Request-ID": "one"})
            await client.get("/no%20such?secret")

    with caplog.at_level(logging.INFO, "fastinfer.access"):
        asyncio.run(ask())
    good, bad = [record.fields for record in caplog.records if record.name == "fastinfer.access"]  # type: ignore[attr-defined]
    assert list(good) == [
        "request_id", "client", "method", "path", "model", "version", "rows", "status", "bytes", "queue_ms",
        "preprocess_ms", "run_ms", "total_ms",
    ]  # fmt: skip
    assert (good["request_id"], good["path"], good["rows"], good["status"]) == ("one", INFER, 1, 200)
    assert (bad["path"], bad["code"], bad["status"]) == ("/no%20such", "not_found", 404)


# ---- the ring and its writer --------------------------------------------------------------------------------------
def written(log: _core.AccessLog) -> bytes:
    """What is written of what the log holds, and it is closed."""
    log.close()
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb", buffering=0) as file:
            log.run(file.fileno())

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader, "rb", buffering=0) as file:
        data = file.readall()
    thread.join()
    return data


texts = st.binary(max_size=300)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(texts, texts, st.integers(0, 2**62)), min_size=1, max_size=40))
def test_any_bytes_make_one_line_each(entries: list[tuple[bytes, bytes, int]]) -> None:
    """JSON that reads back, and text that splits into its fields again."""
    for text in (False, True):
        log = _core.AccessLog(text)
        for path, method, size in entries:
            log.record(200, size, path=path, method=method, total_ns=size)
        lines = written(log).decode("ascii").split("\n")
        assert lines.pop() == ""
        assert len(lines) == len(entries)
        for line, (path, method, size) in zip(lines, entries, strict=True):
            kept = {"method": method[:16].decode("latin-1"), "path": path[:256].decode("latin-1")}
            expected = {name: value for name, value in kept.items() if value} | {"status": 200, "bytes": size}
            if text:
                assert line.isprintable()
                pairs = re.findall(r' (\w+)=("(?:[^"\\]|\\.)*"|[^ "]*)', line)
                found = {name: json.loads(value) if value[:1] == '"' else value for name, value in pairs}
                found |= {name: int(found[name]) for name in ("status", "bytes")}
                found.pop("total_ms")
            else:
                found = json.loads(line)
                assert found.pop("total_ms") == pytest.approx(size / 1e6, abs=1e-3)
                found = {name: found[name] for name in list(found)[4:]}
            assert found == expected


def test_a_record_looks_as_logging_would_have_it() -> None:
    fields = {"request_id": "a=b", "client": "[::1]:80", "path": "/\x01 é", "status": 404, "bytes": 0}
    logs_record = logging.LogRecord("fastinfer.access", logging.INFO, "", 0, "answered", None, None)
    logs_record.fields = fields
    for text in (False, True):
        log = _core.AccessLog(text)
        log.record(404, 0, request_id=b"a=b", client=b"[::1]:80", path="/\x01 é".encode("latin-1"))
        line = written(log).decode()[:-1]
        expected = (logs.TextFormatter() if text else logs.JsonFormatter()).format(logs_record)
        stamp = 12 if text else 35
        assert line[stamp:] == expected[stamp:]


def test_what_does_not_fit_is_dropped_and_told() -> None:
    for text in (False, True):
        log = _core.AccessLog(text, 16)
        for i in range(100):
            log.record(200, i)
        lines = written(log).decode().splitlines()
        assert len(lines) == 17
        if text:
            assert lines[-1].endswith(" WARNING requests were not logged: the log is read too slowly dropped=84")
        else:
            assert [json.loads(line)["bytes"] for line in lines[:16]] == list(range(16))
            last = json.loads(lines[-1])
            assert (last["level"], last["dropped"]) == ("warning", 84)


def test_records_that_come_while_it_writes_are_all_there_or_counted() -> None:
    log = _core.AccessLog(False, 64)
    reader, writer = os.pipe()
    thread = threading.Thread(target=log.run, args=(writer,))
    data = bytearray()

    def read() -> None:
        while piece := os.read(reader, 1 << 12):
            data.extend(piece)

    reading = threading.Thread(target=read)
    thread.start()
    reading.start()
    for i in range(20_000):
        log.record(200, i, request_id=b"%d" % i)
        if i % 50 == 0:
            time.sleep(0.001)
    log.close()
    thread.join(10)
    os.close(writer)
    reading.join(10)
    os.close(reader)
    records = [json.loads(line) for line in bytes(data).splitlines()]
    numbers = [record["bytes"] for record in records if "bytes" in record]
    dropped = sum(record.get("dropped", 0) for record in records)
    assert numbers == sorted(set(numbers))
    assert all(record["request_id"] == str(record["bytes"]) for record in records if "bytes" in record)
    assert len(numbers) + dropped == 20_000
    assert numbers


def test_nobody_who_does_not_read_the_log_holds_the_loop() -> None:
    """The pipe is full and stays so; requests are answered, memory does not grow, and the end comes."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    log = _core.AccessLog(False, 256)
    server = Server(access=log)
    peer = Peer(server)
    thread = threading.Thread(target=log.run, args=(writer,), daemon=True)
    thread.start()
    try:
        for _ in range(2000):
            peer.send(FAST)
            server.loop.turn()
        assert peer.statuses() == [200] * 2000
    finally:
        log.close()
        thread.join(5)
        assert not thread.is_alive()
        os.close(reader)
        os.close(writer)


def test_a_file_that_cannot_be_written_harms_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = _core.AccessLog(False)
    log.record(200, 1)
    log.close()
    log.run(writer)
    os.close(writer)
