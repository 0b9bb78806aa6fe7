"""The counters that workers share, and what /metrics makes of them."""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastinfer import errors
from fastinfer._core import BOUNDS, STATUSES, Scoreboard
from fastinfer.lifecycle import load
from fastinfer.metrics import Counters, Snapshot, exposition, scoreboard
from fastinfer.model import Model

LABELS = ("model", "version", "status", "lane", "le")
BODY = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.affine(tmp_path_factory.mktemp("affine") / "affine.onnx")


def ask(model: Model, times: int = 1, body: bytes = BODY) -> None:
    """Answer so many requests, one after the other."""

    async def answers() -> None:
        loop = asyncio.get_running_loop()
        model.batcher.attach(
            call_soon=loop.call_soon, call_later=loop.call_later, call_soon_threadsafe=loop.call_soon_threadsafe,
            submit=lambda work, *args: loop.run_in_executor(None, work, *args),
        )  # fmt: skip
        for _ in range(times):
            waiter = loop.create_future()
            ticket = model.endpoint.submit(0, body, -1, waiter.set_result)
            await waiter
            ticket.encode()

    asyncio.run(answers())


def samples(board: Scoreboard) -> dict[tuple[str, ...], float]:
    """What /metrics says: values by name and the labels' values."""
    text, _ = exposition(Snapshot(board), "")
    return {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_rows_are_summed_over_the_workers(file: Path) -> None:
    board = scoreboard(3)
    for worker, times in enumerate((2, 0, 5)):
        counters = Counters(board, worker)
        model = load(file)
        counters.register(model)
        ask(model, times)
        counters.count("affine", "1", 400)
        counters.count("affine", "1", 200)
        counters.count("", "", 404, "fast")
        counters.inflight_bytes += 100
        counters.connections += 2
        counters.tell_loop(30_000_000, 2_000_000)
        counters.tell_loop(0, 1_000_000)
        statistics = model.statistics()
    assert [(name, version) for _, name, version in board.rows()] == [("affine", "1"), ("other", ""), ("", "")]
    assert (statistics["inference_count"], statistics["execution_count"]) == (7, 7)
    assert statistics["inference_stats"]["success"]["count"] == 7
    assert statistics["inference_stats"]["success"]["ns"] > 0
    assert statistics["last_inference"] > 1_600_000_000_000
    (size,) = statistics["batch_stats"]
    assert (size["batch_size"], size["compute_infer"]["count"]) == (1, 7)
    shown = samples(board)
    assert shown["fastinfer_requests_total", "affine", "1", "400", "standard"] == 3
    assert shown["fastinfer_requests_total", "affine", "1", "200", "standard"] == 3
    assert shown["fastinfer_requests_total", "", "", "404", "fast"] == 3
    assert shown["fastinfer_rows_total", "affine", "1"] == 7
    assert shown["fastinfer_total_seconds_count", "affine", "1"] == 7
    assert shown["fastinfer_body_bytes_in_flight",] == 300
    assert shown["fastinfer_connections",] == 6
    assert [shown["fastinfer_loop_lag_seconds_bucket", le] for le in ("5e-05", "0.02", "0.05", "+Inf")] == [3, 3, 6, 6]
    assert shown["fastinfer_loop_lag_seconds_sum",] == pytest.approx(0.09)
    assert shown["fastinfer_loop_wait_seconds_total",] == pytest.approx(0.009)


def test_a_dead_workers_counters_stay_and_its_gauges_go(file: Path) -> None:
    board = scoreboard(2)
    counters = Counters(board, 1)
    model = load(file)
    counters.register(model)
    ask(model, 3)
    model.batcher.attach(call_soon=lambda *_: None, call_later=None, call_soon_threadsafe=None, submit=None)  # type: ignore[arg-type]
    model.endpoint.submit(0, BODY, -1, lambda _: None)
    counters.inflight_bytes, counters.connections = 10, 1
    counters.tell_ready(True)
    counters.tell_loop(1_000, 2_000_000_000)
    board.set_gauge(1, "restarts", 4)
    shown = samples(board)
    assert (shown["fastinfer_requests_in_flight",], shown["fastinfer_queue_rows", "affine", "1"]) == (1, 1)
    assert shown["fastinfer_workers_ready",] == 1
    board.reset_gauges(0)
    assert samples(board)["fastinfer_requests_in_flight",] == 1
    board.reset_gauges(1)
    shown = samples(board)
    gauges = ("requests_in_flight", "body_bytes_in_flight", "connections", "workers_ready")
    assert [shown[f"fastinfer_{name}",] for name in gauges] == [0] * 4
    assert shown["fastinfer_queue_rows", "affine", "1"] == 0
    assert shown["fastinfer_rows_total", "affine", "1"] == 3
    assert shown["fastinfer_worker_restarts_total",] == 4
    assert shown["fastinfer_loop_wait_seconds_total",] == 2
    replacement, again = Counters(board, 1), load(file)
    replacement.register(again)
    ask(again)
    assert again.statistics()["inference_count"] == 4


def test_a_row_is_asked_for_once(file: Path) -> None:
    board, asked = scoreboard(1), []

    def add(name: str, version: str, max_batch_size: int) -> int:
        asked.append((name, version, max_batch_size))
        return board.add(name, version, max_batch_size)

    for _ in range(2):
        Counters(board, 0, add).register(load(file))
    assert asked == [("affine", "1", 64)]


def test_a_full_directory_counts_the_rest_together(file: Path) -> None:
    board = scoreboard(1)
    for i in range(4096):
        assert board.add(f"m{i}", "1", 64) == i
    assert board.add("m7", "1", 64) == 7
    assert board.add("one-more", "1", 64) == Scoreboard.other
    counters, model = Counters(board), load(file)
    counters.register(model)
    ask(model, 2)
    counters.count("affine", "1", 413)
    assert model.statistics()["inference_count"] == 2
    assert model.statistics()["batch_stats"] == []
    shown = samples(board)
    assert shown["fastinfer_rows_total", "other", ""] == 2
    assert shown["fastinfer_requests_total", "other", "", "413", "standard"] == 1
    assert ("fastinfer_rows_total", "affine", "1") not in shown


def test_batch_sizes_have_a_bounded_room(file: Path) -> None:
    board = scoreboard(1)
    for i in range(7):
        board.add(f"large{i}", "1", 65_536)
    assert board.add("too-large", "1", 65_536) == 7
    model = load(file)
    model.endpoint.count_in(board, 0, 7)
    ask(model)
    assert (model.statistics()["execution_count"], model.statistics()["batch_stats"]) == (1, [])
    model.endpoint.count_in(board, 0, board.add("small", "1", 64))
    ask(model)
    assert [entry["batch_size"] for entry in model.statistics()["batch_stats"]] == [1]


@pytest.mark.parametrize(("workers", "seen"), [(1, 0), (2, 1)])
def test_forked_processes_share_what_is_of_several_workers(workers: int, seen: int) -> None:
    """An application that somebody forks counts for each process alone: no cell has two writers."""
    board = scoreboard(workers)
    pid = os.fork()
    if pid == 0:
        board.count(0, Scoreboard.nobody, "standard", 404)
        os._exit(0)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert sum(board.counters(Scoreboard.nobody)["answered"].values()) == seen


def test_names_that_do_not_fit_are_not_cut(file: Path) -> None:
    board = scoreboard(1)
    longest = "m" * 128
    assert board.add(longest, "9" * 18, 1) == 0
    assert board.rows()[0] == (0, longest, "9" * 18)
    assert board.add(longest + "m", "1", 1) == Scoreboard.other
    assert board.find(longest, "9") == board.find(longest[:-1], "9" * 18) == -1


@pytest.mark.parametrize("memory", [bytearray(100), bytes(Scoreboard.size(1)), mmap.mmap(-1, Scoreboard.size(1))])
def test_memory_that_cannot_hold_it(memory: Any) -> None:
    with pytest.raises((ValueError, BufferError)):
        Scoreboard(memory, 2 if isinstance(memory, mmap.mmap) else 1)


def test_what_is_not_there(file: Path) -> None:
    board, model = scoreboard(2), load(file)
    for call in (
        lambda: board.gauge(2, "ready"),
        lambda: board.gauge(-1, "ready"),
        lambda: board.counters(4098),
        lambda: board.count(0, -1, "fast", 200),
        lambda: model.endpoint.count_in(board, 2, 0),
        lambda: model.endpoint.count_in(board, 0, 4098),
    ):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(ValueError, match="not in tuple"):
        board.set_gauge(0, "no-such-gauge", 1)


def test_every_status_that_we_answer_has_a_cell() -> None:
    kinds = [errors.FastinferError, *errors.FastinferError.__subclasses__()]
    kinds += [kind for each in kinds for kind in each.__subclasses__()]
    assert {kind.status for kind in kinds} <= set(STATUSES)
    board = scoreboard(1)
    for status in (*STATUSES, 418):
        board.count(0, 0, "standard", status)
    expected = {("standard", status): 1 for status in STATUSES} | {("standard", 0): 2}
    assert board.counters(0)["answered"] == expected


def test_a_histogram_counts_up_to_and_with_its_bounds(file: Path) -> None:
    board, model = scoreboard(1), load(file)
    Counters(board).register(model)
    ask(model, 3)
    counts, total = board.counters(0)["phases"]["total"]
    assert len(counts) == len(BOUNDS) + 1
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert total == model.statistics()["inference_stats"]["success"]["ns"] / 1e9
