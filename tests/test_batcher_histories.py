"""Histories of a batcher: whatever order things happen in, each request is answered once, with its own rows, or not at
all where its client left.

``FASTINFER_HISTORIES=10000`` tries as many; the suite tries some hundreds. The stress test has real threads that take
their time at random; ``FASTINFER_STRESS=100`` makes it as many times as long.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_histories
from world import MS, RAGGED, World

from fastinfer import _core
from fastinfer.errors import (
    DeadlineUnreachableError,
    ExpiredError,
    FairShareError,
    FastinferError,
    NotReadyError,
    OverloadedError,
    RuntimeFailedError,
    RunTimeoutError,
    ShuttingDownError,
)

HISTORIES = int(os.environ.get("FASTINFER_HISTORIES", "200"))
STRESS = int(os.environ.get("FASTINFER_STRESS", "1"))
BATCH = 4
MOST_ROWS = 16  # of a request here
RUN_TIMEOUT_MS = 50


def body(tag: int, rows: int, columns: int, **parameters: Any) -> tuple[bytes, list[float]]:
    """A request in which no value is that of another row, of any request; and what y = 2 x answers."""
    data = [float((tag * MOST_ROWS + row) * 4 + column) for row in range(rows) for column in range(columns)]
    tensor = {"name": "x", "shape": [rows, columns], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode(), [2 * value for value in data]


def tags_of(array: np.ndarray[Any, Any]) -> set[int]:
    return {int(value) // 4 // MOST_ROWS for value in array[:, 0]}


class Watched(World):
    """Knows when each run was begun, and looks at what is in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(RAGGED, max_batch_size=BATCH, run_timeout_ms=RUN_TIMEOUT_MS, **options)
        self.deadlines: dict[int, float] = {}
        self.began = self.now
        self.bad: set[int] = set()  # requests that the model fails on
        self.late_starts: list[int] = []
        self.too_large = False

    def begin_run(self, work: Callable[..., Any], *args: Any) -> None:
        self.runs.append((self.now, work, args))  # type: ignore[arg-type]

    def model(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        tags = tags_of(arrays["x"])
        self.too_large |= len(arrays["x"]) > BATCH
        self.late_starts += [tag for tag in tags if self.deadlines[tag] <= self.began]
        if tags & self.bad:
            raise RuntimeError("no such row")
        return {"y": 2 * arrays["x"]}


class Histories(RuleBasedStateMachine):
    """Submit, cancel, let time pass, let runs come back in any order, late, failed or never."""

    waiting = Bundle("waiting")

    @initialize(instances=st.sampled_from([1, 2, 3]), delay_us=st.sampled_from([0, 3000]),
                slo_ms=st.sampled_from([0, 25]), queue_rows=st.sampled_from([24, 4096]))
    def start(self, instances: int, delay_us: int, slo_ms: int, queue_rows: int) -> None:
        self.slo_ms = slo_ms
        self.world = Watched(instances=instances, max_delay_us=delay_us, slo_ms=slo_ms, queue_rows=queue_rows)
        self.world.batcher.attach(
            call_soon=self.world.call_soon, call_later=self.world.call_later,
            call_soon_threadsafe=self.world.call_soon, submit=self.world.begin_run,
        )  # fmt: skip
        self.expected: dict[int, list[float]] = {}
        self.tickets: dict[int, _core.Ticket] = {}
        self.clients: dict[int, int] = {}
        self.left: set[int] = set()
        self.refused: dict[int, FastinferError] = {}
        self.unlimited: dict[int, tuple[bool, bool]] = {}  # of those: whether it had no deadline, and no client
        self.answers: dict[int, list[Any]] = {}
        self.closed = False

    @rule(target=waiting, rows=st.integers(1, MOST_ROWS), columns=st.integers(1, 2), priority=st.integers(0, 3),
          timeout_ms=st.sampled_from([0, 0, 3, 10, 40]), client=st.integers(0, 2),
          bad=st.sampled_from([False] * 7 + [True]))
    def submit(self, rows: int, columns: int, priority: int, timeout_ms: int, client: int, bad: bool) -> int:
        tag, world = len(self.expected), self.world
        content, self.expected[tag] = body(tag, rows, columns, priority=priority, timeout=timeout_ms * 1000)
        self.clients[tag] = client
        limits = [limit for limit in (timeout_ms, self.slo_ms) if limit]
        world.deadlines[tag] = world.now + min(limits) * MS if limits else float("inf")
        if bad:
            world.bad.add(tag)

        def done(ticket: _core.Ticket) -> None:
            told = self.answers.setdefault(tag, [])
            try:
                told.append(json.loads(ticket.encode()[0])["outputs"][0]["data"])
            except FastinferError as error:
                told.append(error)

        try:
            self.tickets[tag] = world.endpoint.submit(0, content, -1, done, _core.Arrival(world.now, 0, client))
        except (OverloadedError, NotReadyError, ShuttingDownError) as error:
            self.refused[tag] = error
            self.unlimited[tag] = (not limits, not client)
        return tag

    @rule(rows=st.sampled_from([1, 1, 2]), times=st.integers(2, 12), timeout_ms=st.sampled_from([0, 10, 40]))
    def one_client_sends_much(self, rows: int, times: int, timeout_ms: int) -> None:
        for _ in range(times):
            self.submit(rows, 1, 0, timeout_ms, 1, False)

    @rule(tag=consumes(waiting))
    def cancel(self, tag: int) -> None:
        if tag in self.tickets and tag not in self.answers:
            self.tickets[tag].cancel()
            self.left.add(tag)

    @rule()
    def end_of_turn(self) -> None:
        self.world.turn()

    @rule(milliseconds=st.sampled_from([1, 2, 5, 12]))
    def time_passes(self, milliseconds: int) -> None:
        self.world.pass_time(milliseconds * MS)

    @precondition(lambda self: self.world.runs)
    @rule(data=st.data(), took=st.integers(0, 4))
    def a_run_comes_back(self, data: st.DataObject, took: int) -> None:
        self.world.pass_time(took * MS)
        self.finish(data.draw(st.integers(0, len(self.world.runs) - 1)))

    def finish(self, index: int) -> None:
        began, work, args = self.world.runs[index]  # type: ignore[misc]
        del self.world.runs[index]
        self.world.began = began
        work(*args)
        self.world.turn()

    @precondition(lambda self: self.world.runs)
    @rule()
    def a_run_hangs(self) -> None:
        self.world.pass_time((RUN_TIMEOUT_MS + 1) * MS)

    @rule(chance=st.integers(0, 30))
    def close(self, chance: int) -> None:
        if chance == 0:
            self.closed = True
            self.world.batcher.close()

    @invariant()
    def nobody_hears_twice_or_wrongly(self) -> None:
        for tag, told in getattr(self, "answers", {}).items():
            assert len(told) == 1, tag
            assert tag not in self.left | self.refused.keys()
            what = told[0]
            if isinstance(what, RuntimeFailedError):
                assert tag in self.world.bad
            elif isinstance(what, ExpiredError):
                assert self.world.deadlines[tag] <= self.world.now
            elif isinstance(what, FairShareError):  # it gave way
                assert self.clients[tag]
            elif not isinstance(what, RunTimeoutError | NotReadyError | ShuttingDownError):
                assert what == self.expected[tag]
                assert tag not in self.world.bad

    @invariant()
    def nobody_is_refused_for_what_it_has_not(self) -> None:
        for tag, error in getattr(self, "refused", {}).items():
            endless, nobody = self.unlimited[tag]
            assert not (endless and isinstance(error, DeadlineUnreachableError))
            assert not (nobody and isinstance(error, FairShareError))

    @invariant()
    def no_batch_is_too_large_or_begins_too_late(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.late_starts
            assert not self.world.too_large

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            while world.runs or world.due or not world.batcher.idle:
                world.pass_time(5 * MS)
                while world.runs:
                    self.finish(0)
            self.nobody_hears_twice_or_wrongly()
            self.no_batch_is_too_large_or_begins_too_late()
            assert set(self.answers) == set(self.expected) - self.left - self.refused.keys()
            assert world.batcher.idle
            assert not world.batcher.stuck
            assert world.batcher.pending_rows == 0
            assert world.counted("in_flight") == 0
        finally:
            _core.hold_clock(0)


def test_each_request_of_every_history_is_answered_once() -> None:
    run_histories(Histories, settings=settings(max_examples=HISTORIES, stateful_step_count=25, deadline=None))


class Client:
    """Sends from the loop's thread, and keeps what it hears."""

    def __init__(self, endpoint: _core.Endpoint) -> None:
        self.endpoint = endpoint
        self.expected: dict[int, list[float]] = {}
        self.heard: dict[int, Any] = {}
        self.counts: Counter[int] = Counter()
        self.left: set[int] = set()
        self.refused: set[int] = set()

    def send(self, tag: int, source: random.Random) -> _core.Ticket | None:
        content, self.expected[tag] = body(tag, source.choice([1, 1, 1, 2, 5, 16]), source.choice([1, 1, 2]),
                                           priority=source.choice([0, 0, 1, 2]),
                                           timeout=source.choice([0, 0, 2_000, 20_000, 200_000]))

        def done(ticket: _core.Ticket) -> None:
            self.counts[tag] += 1
            try:
                self.heard[tag] = json.loads(ticket.encode()[0])["outputs"][0]["data"]
            except FastinferError as error:
                self.heard[tag] = error

        try:
            return self.endpoint.submit(0, content, -1, done)
        except OverloadedError:
            self.refused.add(tag)
            return None


@pytest.mark.parametrize("instances", [1, 3])
def test_threads_that_take_their_time_at_random_lose_and_mix_nothing(instances: int) -> None:
    source, threads = random.Random(instances), threading.local()
    requests = 1500 * STRESS

    def model(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        if not hasattr(threads, "source"):
            threads.source = random.Random(threading.get_ident())
        time.sleep(threads.source.choice([0, 0, 0.0002, 0.001, 0.004]))
        if any(tag % 97 == 96 for tag in tags_of(arrays["x"])):
            raise RuntimeError("no such row")
        y = 2 * arrays["x"]
        time.sleep(threads.source.choice([0, 0, 0, 0.0005]))
        return {"y": y}

    async def play(pool: ThreadPoolExecutor) -> Client:
        loop = asyncio.get_running_loop()
        batcher = _core.Batcher(RAGGED, model, max_batch_size=BATCH * 4, instances=instances, inline_budget_us=0,
                                queue_rows=512)
        batcher.attach(call_soon=loop.call_soon, call_later=loop.call_later,
                       call_soon_threadsafe=loop.call_soon_threadsafe, submit=pool.submit)
        client = Client(_core.Endpoint("m", "1", RAGGED, batcher))
        open_tickets: dict[int, _core.Ticket] = {}
        for tag in range(requests):
            ticket = client.send(tag, source)
            if ticket is not None:
                open_tickets[tag] = ticket
            if source.random() < 0.1 and open_tickets:
                gone = source.choice(list(open_tickets)[-20:])
                if gone not in client.heard:
                    open_tickets[gone].cancel()
                    client.left.add(gone)
            if source.random() < 0.25:
                await asyncio.sleep(source.choice([0, 0, 0.001, 0.003]))
        while not batcher.idle:
            await asyncio.sleep(0.005)
        assert batcher.pending_rows == 0
        assert client.endpoint.counters()["in_flight"] == 0
        return client

    with ThreadPoolExecutor(instances + 1) as pool:
        client = asyncio.run(play(pool))
    assert set(client.heard) == set(client.expected) - client.left - client.refused
    assert set(client.counts.values()) == {1}
    for tag, what in client.heard.items():
        if isinstance(what, RuntimeFailedError):
            assert tag % 97 == 96
        elif not isinstance(what, ExpiredError):
            assert what == client.expected[tag]
    answered = sum(isinstance(what, list) for what in client.heard.values())
    assert answered > requests // 20
