"""A batcher's loop, worker threads and clock, in a test's hands: nothing happens until the test says so."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastinfer import _core
from fastinfer.errors import FastinferError

MS = 1_000_000
ROWS = _core.Signature([_core.Tensor("x", "FP32", (-1, 1))], [_core.Tensor("y", "FP32", (-1, 1))])
RAGGED = _core.Signature([_core.Tensor("x", "FP32", (-1, -1))], [_core.Tensor("y", "FP32", (-1, -1))])


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """A loop, its worker threads and the time, all in the test's hands; one model, y = 2 x."""

    def __init__(self, signature: _core.Signature = ROWS, *, inline: bool = False, **options: Any) -> None:
        self.now = 1_000_000_000_000
        self.due: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.timers: list[tuple[int, Timer, Callable[..., Any], tuple[Any, ...]]] = []
        self.runs: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()  # begun and not finished
        self.batches: list[list[float]] = []  # the first column of each, in the order of running
        self.fails: set[float] = set()  # rows that the model fails on
        options.setdefault("max_batch_size", 4)
        options["inline_budget_us"] = 1_000_000 if inline else 0
        self.batcher = _core.Batcher(signature, self.model, **options)
        self.batcher.attach(
            call_soon=self.call_soon, call_later=self.call_later, call_soon_threadsafe=self.call_soon,
            submit=lambda work, *args: self.runs.append((work, args)),
        )  # fmt: skip
        if inline:
            for rows in (1, options["max_batch_size"]):
                self.batcher.seed(rows, 1000)
        self.endpoint = _core.Endpoint("m", "1", signature, self.batcher)
        self.told: list[tuple[Any, Any]] = []  # (tag, first value, or the error) in the order of being answered
        _core.hold_clock(self.now)

    def model(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        rows = arrays["x"][:, 0].tolist()
        if self.fails & set(rows):
            raise RuntimeError("no such row")
        self.batches.append(rows)
        return {"y": 2 * arrays["x"]}

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        self.due.append((function, args))

    def call_later(self, delay: float, function: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer()
        self.timers.append((self.now + round(delay * 1e9), timer, function, args))
        return timer

    def turn(self) -> None:
        while self.due:
            function, args = self.due.popleft()
            function(*args)

    def pass_time(self, nanoseconds: int) -> None:
        """Let time pass, and what falls due in it happen."""
        until = self.now + nanoseconds
        self.turn()
        while True:
            ready = [each for each in self.timers if not each[1].cancelled and each[0] <= until]
            if not ready:
                break
            first = min(ready, key=lambda each: each[0])
            self.timers.remove(first)
            self.set(max(self.now, first[0]))
            first[2](*first[3])
            self.turn()
        self.set(until)

    def set(self, now: int) -> None:
        self.now = now
        _core.hold_clock(now)

    def finish_run(self, took: int = 0) -> None:
        """The run that was begun first comes back."""
        self.pass_time(took)
        work, args = self.runs.popleft()
        work(*args)
        self.turn()

    def drain(self) -> None:
        self.turn()
        while self.runs:
            self.finish_run()

    def send(
        self, tag: float, rows: int = 1, *, columns: int = 1, head: int = 0, key: int = 0, **parameters: Any
    ) -> _core.Ticket:
        """Submit rows that all hold `tag`, of a client `key`; `head` is what X-Request-Timeout allows, in ns."""
        data = [tag] * (rows * columns)
        tensor = {"name": "x", "shape": [rows, columns], "datatype": "FP32", "data": data}
        body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()

        def done(ticket: _core.Ticket) -> None:
            try:
                output = json.loads(ticket.encode()[0])["outputs"][0]
            except FastinferError as error:
                self.told.append((tag, error))
            else:
                assert output["shape"] == [rows, columns]
                assert set(output["data"]) <= {2 * tag}
                self.told.append((tag, output["data"][0]))

        return self.endpoint.submit(0, body, -1, done, _core.Arrival(self.now, head, key))

    @property
    def answered(self) -> list[Any]:
        return [tag for tag, _ in self.told]

    def failures(self) -> dict[Any, type[Exception]]:
        return {tag: type(what) for tag, what in self.told if isinstance(what, Exception)}

    def counted(self, key: str) -> int:
        return int(self.endpoint.counters()[key])


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    yield
    _core.hold_clock(0)


def busy(world: World) -> None:
    """A batch of others runs."""
    world.send(0.5)
    world.turn()
    assert len(world.runs) == 1
