"""Runs that do not come back, and workers whose loop stands still: who is told what, and what is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from conftest import ServerProcess, Start, post, read_answer
from test_batcher import run, send, serving
from test_workers import metric, workers
from world import MS, World, clock

from fastinfer import _core
from fastinfer.errors import NotReadyError, RunTimeoutError

__all__ = ["clock"]
GRACE = 5000 * MS
GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/affine/infer"


def whole(name: str, value: int) -> bytes:
    return json.dumps({"inputs": [{"name": name, "shape": [1], "datatype": "INT64", "data": [value]}]}).encode()


# ---- the batcher --------------------------------------------------------------------------------------------------
def test_a_run_is_told_to_end_and_the_model_is_back_when_it_has() -> None:
    stopped: list[int] = []
    world = World(run_timeout_ms=10, stop=stopped.append)
    world.send(1)
    world.turn()
    world.pass_time(9 * MS)
    assert not world.told
    world.pass_time(2 * MS)
    assert isinstance(world.told[0][1], RunTimeoutError)
    assert stopped == []  # its thread has not begun, so that it finds by itself that nobody waits
    assert world.batcher.stuck
    with pytest.raises(NotReadyError):
        world.send(2)
    world.pass_time(GRACE - 5 * MS)
    assert not world.batcher.lost
    world.finish_run()
    assert not world.batcher.stuck
    world.send(3)
    world.drain()
    assert world.told[-1] == (3, 6)
    world.pass_time(2 * GRACE)
    assert not world.batcher.lost


def test_a_run_that_does_not_end_is_lost_and_its_memory_is_never_used_again() -> None:
    world = World(run_timeout_ms=10, instances=2)
    world.send(1)
    world.turn()
    hung, args = world.runs.popleft()
    world.pass_time(11 * MS)
    assert not world.batcher.stuck  # there is another instance
    world.pass_time(GRACE)
    assert (world.batcher.lost, world.batcher.stuck) == (1, True)
    for tag in range(2, 40):  # the other one serves, and no batch of it is in the memory of the hung one
        world.send(tag)
        world.drain()
        assert world.told[-1] == (tag, 2 * tag)
    hung(*args)  # it wakes up after all: it still has its own rows
    assert world.batches[-1] == [1]
    world.turn()
    assert (world.batcher.lost, world.batcher.stuck) == (0, False)
    assert [tag for tag, _ in world.told].count(1) == 1


def test_a_python_runtime_is_told_on_which_thread_it_hangs() -> None:
    """And one that blocks for good does not keep another instance from answering."""
    blocked, woken = threading.Event(), threading.Event()
    signature = _core.Signature([_core.Tensor("x", "FP32", (-1, 1))], [_core.Tensor("y", "FP32", (-1, 1))])
    threads: list[int] = []
    stopped: list[int] = []

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        if arrays["x"][0, 0] == 13:
            threads.append(threading.get_ident())
            blocked.set()
            woken.wait(60)
        return {"y": 2 * arrays["x"]}

    async def test() -> None:
        loop = asyncio.get_running_loop()
        batcher = _core.Batcher(signature, model, inline_budget_us=0, run_timeout_ms=50, instances=2,
                                stop=stopped.append)  # fmt: skip
        batcher.attach(
            call_soon=loop.call_soon, call_later=loop.call_later, call_soon_threadsafe=loop.call_soon_threadsafe,
            submit=lambda work, *args: threading.Thread(target=work, args=args, daemon=True).start(),
        )  # fmt: skip
        endpoint = _core.Endpoint("m", "1", signature, batcher)

        async def ask(value: float) -> Any:
            future: asyncio.Future[Any] = loop.create_future()
            body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}
            endpoint.submit(0, json.dumps(body).encode(), -1, future.set_result)
            ticket = await future
            return ticket.error or json.loads(ticket.encode()[0])["outputs"][0]["data"][0]

        hung = asyncio.ensure_future(ask(13))
        while not blocked.is_set():
            await asyncio.sleep(0.001)
        assert await ask(2) == 4
        assert isinstance(await hung, RunTimeoutError)
        assert stopped == threads
        assert await ask(3) == 6
        woken.set()
        while not batcher.idle:
            await asyncio.sleep(0.001)

    run(test)


@pytest.mark.parametrize("options", [[], ["[onnx]", "provider_options = {CPUExecutionProvider = {}}"]])
def test_onnxruntime_is_told_to_end_a_run(tmp_path: Path, options: list[str]) -> None:
    """In its C API and in its Python package; the run would take ages."""

    async def test() -> None:
        toml = "\n".join(["run_timeout_ms = 200", "inline_budget_us = 0", *options])
        async with serving(onnx_models.endless(tmp_path / "endless.onnx"), toml) as model:
            assert (model.runtime.native is None) == bool(options)
            body = whole("steps", 1)
            for _ in range(2):
                assert isinstance(await send(model, body)[1], RunTimeoutError)
                while model.batcher.stuck:
                    await asyncio.sleep(0.001)
                assert model.batcher.idle
                assert await send(model, whole("steps", 0))[1] == [0]

    run(test)


@pytest.mark.parametrize("options", [[], ["[onnx]", "provider_options = {CPUExecutionProvider = {}}"]])
def test_a_run_on_the_loop_that_takes_too_long_goes_on_on_a_thread(tmp_path: Path, options: list[str]) -> None:
    """Runs like it were short, so that it was made on the loop; its own would take ages."""

    async def test() -> None:
        toml = "\n".join(["run_timeout_ms = 400", "inline_budget_us = 60000", *options])
        async with serving(onnx_models.endless(tmp_path / "endless.onnx"), toml) as model:
            for _ in range(2):
                for _ in range(20):
                    assert await send(model, whole("steps", 0))[1] == [0]
                assert isinstance(await send(model, whole("steps", 1))[1], RunTimeoutError)
                while model.batcher.stuck:
                    await asyncio.sleep(0.001)
                assert model.batcher.idle

    run(test)


def test_a_long_run_on_the_loop_that_is_told_to_end_is_right_all_the_same(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(onnx_models.slow(tmp_path / "slow.onnx"), "inline_budget_us = 60000") as model:
            for _ in range(20):
                await send(model, whole("steps", 0))[1]
            answers = [send(model, whole("steps", each))[1] for each in (600, 1, 2)]
            assert await asyncio.gather(*answers) == [[600], [1], [2]]

    run(test)


# ---- served -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    for name, write in (("endless", onnx_models.endless), ("hanging", onnx_models.hanging)):
        write(root / name / "1" / "model.onnx")
        (root / name / "model.toml").write_text("run_timeout_ms = 300\ninline_budget_us = 0\n")
    return root


def status(server: ServerProcess, path: str) -> int:
    with server.client() as client:
        return client.get(path).status_code


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


class Asking:
    """Asks a model in turn, each time on a connection of its own, and keeps the statuses."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.statuses: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._over.is_set():
            self.statuses.append(self.server.raw(post(INFER, GOOD)).status)
            time.sleep(0.005)

    def stop(self) -> list[int]:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.statuses


def test_a_model_that_hangs_costs_nobody_else_an_answer(models: Path, start_server: Start) -> None:
    one = start_server(models, "--model-control", "explicit", "--load-model", "affine")
    two = start_server(models, "--workers", "2")
    for name in ("endless", "hanging"):  # which are there again when the process is another program
        assert one.raw(post(f"/v2/repository/models/{name}/load", b"")).status == 200
    processes = workers(two)
    asking = [Asking(one), Asking(two)]
    hung: list[int] = []
    for server in (one, two):
        assert server.raw(post("/v2/models/endless/infer", whole("steps", 9))).status == 504
        wait_for(lambda server=server: status(server, "/v2/models/endless/ready") == 200)  # type: ignore[misc]
        with server.connect() as connection:  # one worker is asked all along
            connection.sendall(post("/v2/models/hanging/infer", whole("size", 1200)))
            answer = read_answer(connection)
            assert (answer.status, answer.json()["code"]) == (504, "run_timeout")
            seen = {}
            for path in ("/v2/models/hanging", "/v2/models/affine", "/v2/health"):
                connection.sendall(f"GET {path}/ready HTTP/1.1\r\nHost: t\r\n\r\n".encode())
                seen[path] = read_answer(connection, "GET").status
            assert seen == {"/v2/models/hanging": 503, "/v2/models/affine": 200, "/v2/health": 503}
            connection.sendall(post("/v2/models/hanging/infer", whole("size", 1)))
            assert read_answer(connection).status == 503
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n")
            assert read_answer(connection, "GET").status == 200
    # One process becomes a new program, of the same number; with several, the worker is replaced while it still serves.
    wait_for(lambda: one.log().count("does not end; this process is replaced") == 1)
    wait_for(lambda: sum(line.startswith("fastinfer ") for line in one.out) == 2)
    wait_for(lambda: "the process that hung has left" in two.log())
    for server in (one, two):
        wait_for(lambda server=server: status(server, "/v2/models/hanging/ready") == 200)  # type: ignore[misc]
    for each in asking:
        statuses = each.stop()
        assert len(statuses) > 20
        assert set(statuses) == {200}
    hung = workers(two)
    assert len(hung) == 2
    assert len(set(hung) & set(processes)) == 1
    assert one.process.poll() is None
    assert metric(two, "fastinfer_worker_restarts_total") == 1
    assert metric(two, "fastinfer_ready") == 1
    assert metric(two, "fastinfer_workers_ready") == 2
    assert [server.stop() for server in (one, two)] == [0, 0]


def test_a_run_on_the_loop_of_the_only_process_does_not_keep_the_others_from_their_answers(
    tmp_path: Path, start_server: Start
) -> None:
    onnx_models.affine(tmp_path / "affine" / "1" / "model.onnx")
    onnx_models.endless(tmp_path / "endless" / "1" / "model.onnx")
    (tmp_path / "endless" / "model.toml").write_text("run_timeout_ms = 1000\ninline_budget_us = 60000\n")
    server = start_server(tmp_path)
    with server.connect() as connection:
        connection.sendall(post("/v2/models/endless/infer", whole("steps", 9)))
        time.sleep(0.1)
        assert server.raw(post(INFER, GOOD)).status == 200
        assert status(server, "/v2/health/live") == 200
        assert read_answer(connection).status == 504
    wait_for(lambda: status(server, "/v2/models/endless/ready") == 200)
    assert server.raw(post("/v2/models/endless/infer", whole("steps", 0))).status == 200


def test_a_worker_whose_loop_stands_still_is_replaced(models: Path, start_server: Start) -> None:
    """And none of a server that was stopped as a whole, and goes on later."""
    server, stopped = (start_server(models, "--workers", "2", "--worker-timeout", "2s") for _ in range(2))
    before, everybody = workers(server), [stopped.process.pid, *workers(stopped)]
    os.kill(before[0], signal.SIGSTOP)
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: "its event loop has stood still" in server.log())
    wait_for(lambda: len(workers(server)) == 2 and before[0] not in workers(server))
    wait_for(lambda: metric(server, "fastinfer_workers_ready") == 2)
    assert before[1] in workers(server)
    time.sleep(1.2)  # it has looked
    assert workers(stopped) == everybody[1:]
    assert "stood still" not in stopped.log()
    assert server.stop() == 0
