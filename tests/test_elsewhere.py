"""Batches that run in another server: nobody waits past a deadline, and everybody gets their own rows."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from fastinfer._core import Batcher, Endpoint, Signature, Tensor
from fastinfer.errors import BackendError, BackendTimeoutError, FastinferError
from fastinfer.runtimes.triton.pace import KEPT_S, Pace

SIGNATURE = Signature([Tensor("x", "FP32", (-1, 2))], [Tensor("y", "FP32", (-1, 2))])


class World:
    """A batcher whose other server is a coroutine function of these arrays."""

    def __init__(self, answer: Callable[..., Awaitable[Any]], **options: Any) -> None:
        loop = asyncio.get_running_loop()
        self.running = self.most = 0
        self.batches: list[int] = []
        self.told: list[tuple[Any, ...]] = []

        async def run_async(arrays: dict[str, Any], *told: Any) -> Any:
            x = arrays["x"].copy()
            self.batches.append(len(x))
            self.told.append(told)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                return await answer(x)
            finally:
                self.running -= 1

        self.batcher = Batcher(SIGNATURE, None, run_async=run_async, **options)  # type: ignore[arg-type]
        self.batcher.attach(call_soon=loop.call_soon, call_later=loop.call_later, submit=None,  # type: ignore[arg-type]
                            call_soon_threadsafe=loop.call_soon_threadsafe, create_task=loop.create_task)
        self.endpoint = Endpoint("m", "1", SIGNATURE, self.batcher)

    def send(self, x: Any, *, arrival: Any = None, **more: Any) -> tuple[Any, asyncio.Future[Any]]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        array = np.asarray(x, np.float32)
        tensor = {"name": "x", "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}

        def done(ticket: Any) -> None:
            try:
                future.set_result(json.loads(ticket.encode()[0])["outputs"][0]["data"])
            except FastinferError as error:
                future.set_result(error)

        body = json.dumps({"inputs": [tensor], **more}).encode()
        return self.endpoint.submit(0, body, -1, done, arrival), future


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


async def doubled(x: Any) -> Any:
    await asyncio.sleep(0.001)
    return {"y": 2 * x}


@on_a_loop
async def test_so_many_are_in_flight_and_the_others_gather() -> None:
    world = World(doubled, instances=2, max_batch_size=8)
    answers = [world.send([[i, -i]])[1] for i in range(40)]
    assert await asyncio.gather(*answers) == [[2.0 * i, -2.0 * i] for i in range(40)]
    assert world.most == 2
    assert world.batches == [8] * 5
    assert world.batcher.idle


@on_a_loop
async def test_what_goes_with_a_batch() -> None:
    world = World(doubled, run_timeout_ms=10_000)
    now = time.monotonic()
    sent = [world.send([[1, 2]], id="a", parameters={"timeout": 2_000_000, "priority": 3}),
            world.send([[1, 2]], id="b", parameters={"timeout": 4_000_000, "priority": 2}), world.send([[1, 2]])]
    await asyncio.gather(*[future for _, future in sent])
    ((deadline, ids, priority, _),) = world.told
    assert 9 < deadline - now < 11
    assert (sorted(ids), priority) == (["a", "b"], 2)


@on_a_loop
async def test_each_is_answered_at_its_own_deadline_and_the_rest_go_on() -> None:
    gate = asyncio.Event()

    async def slow(x: Any) -> Any:
        await gate.wait()
        return {"y": 2 * x}

    world = World(slow)
    _, patient = world.send([[1, 1]])
    _, hasty = world.send([[2, 2]], parameters={"timeout": 30_000})
    assert isinstance(await hasty, BackendTimeoutError)
    assert not patient.done()
    assert world.batcher.idle is False
    gate.set()
    assert await patient == [2, 2]
    assert world.batcher.idle


@on_a_loop
async def test_a_batch_that_nobody_waits_for_is_given_up_and_the_next_one_runs() -> None:
    cancelled = asyncio.Event()

    async def hung(x: Any) -> Any:
        if x[0, 0] != 7:
            return {"y": 2 * x}
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    world = World(hung, run_timeout_ms=50)
    _, lost = world.send([[7, 7]])
    await asyncio.sleep(0.01)
    _, next_one = world.send([[1, 1]])
    assert isinstance(await lost, BackendTimeoutError)
    assert await next_one == [2, 2]
    await asyncio.wait_for(cancelled.wait(), 5)
    assert not world.batcher.stuck
    assert world.batcher.idle


@pytest.mark.parametrize("wrong", [{"y": np.zeros((1, 2), np.float32)}, {"y": np.zeros((2, 2))}, {}, "none"])
@on_a_loop
async def test_what_is_no_answer_to_a_batch_fails_it_whole(wrong: Any) -> None:
    async def answer(x: Any) -> Any:
        return wrong

    world = World(answer)
    errors = await asyncio.gather(*[world.send([[i, i]])[1] for i in range(2)])
    assert all(isinstance(error, FastinferError) for error in errors), errors
    assert world.batcher.idle


@on_a_loop
async def test_a_fixed_size_is_kept() -> None:
    world = World(doubled, max_batch_size=4, fixed_size=True)
    assert await world.send([[1, 2]])[1] == [2, 4]
    assert await asyncio.gather(*[world.send([[i, i]])[1] for i in range(6)]) == [[2.0 * i] * 2 for i in range(6)]
    assert world.batches == [4, 4, 4]


@pytest.mark.parametrize("seed", range(8))
@on_a_loop
async def test_any_history_ends_with_the_right_answers(seed: int) -> None:
    """Requests of any size, some cancelled, some with deadlines, while the other server is slow, fails or hangs."""
    pick = random.Random(seed)

    async def moody(x: Any) -> Any:
        mood = pick.random()
        if mood < 0.1:
            raise BackendError("broken")
        await asyncio.sleep(60 if mood > 0.95 else pick.choice([0, 0, 0.001, 0.01]))
        return {"y": 2 * x}

    world = World(moody, instances=pick.randint(1, 3), max_batch_size=pick.choice([1, 4, 16]), run_timeout_ms=60)
    waiting = []
    for i in range(150):
        rows = pick.choice([1, 1, 1, 2, 5, 20])
        more = {"parameters": {"timeout": pick.choice([2_000, 20_000])}} if pick.random() < 0.3 else {}
        try:
            ticket, future = world.send(np.full((rows, 2), i), **more)
        except FastinferError:
            continue
        if pick.random() < 0.1:
            asyncio.get_running_loop().call_later(pick.random() / 50, ticket.cancel)
        else:
            waiting.append((i, rows, future))
        if pick.random() < 0.2:
            await asyncio.sleep(pick.choice([0, 0.001, 0.005]))
    right = 0
    for i, rows, future in waiting:
        answer = await asyncio.wait_for(future, 30)
        assert isinstance(answer, FastinferError) or answer == [2.0 * i] * (2 * rows)
        right += not isinstance(answer, FastinferError)
    assert right > 20
    while not world.batcher.idle:
        await asyncio.sleep(0.01)
    assert world.batcher.pending_rows == 0


# ---- how many in flight -------------------------------------------------------------------------------------------
def after_a_while(pace: Pace, seconds: Callable[[int], float], batches: int = 400, waiting: bool = True) -> set[int]:
    """The limits that a pace came to, where a batch takes so long with so many in flight, of 64 clients."""
    now, limits = 1000.0, []
    for _ in range(batches):
        now += seconds(pace.limit)
        limits.append(pace.note(64 // pace.limit, waiting, now))
    return set(limits[-50:])


def test_a_second_batch_in_flight_is_kept_where_it_makes_the_server_faster() -> None:
    travel, compute = 0.004, 0.006  # of any batch
    assert after_a_while(Pace(1, 2), lambda n: max(travel + compute, compute * n) / n * 1.0 if n == 1
                         else compute * 32 / 64) == {2}
    assert after_a_while(Pace(1, 2), lambda n: travel + compute) == {1}  # nothing overlaps: whole batches are better
    assert after_a_while(Pace(1, 2), lambda n: (travel + compute) / n) == {1}  # neither gains: whole batches


def test_without_load_nothing_is_learned_and_a_choice_is_looked_at_again() -> None:
    pace = Pace(1, 2)
    assert after_a_while(pace, lambda n: 0.01, waiting=False) == {2}
    assert after_a_while(pace, lambda n: 0.01) == {1}
    pace.note(32, True, pace.chosen_until + KEPT_S)
    assert after_a_while(pace, lambda n: 0.01 / n / n, batches=8000) <= {1, 2}
    assert after_a_while(Pace(3, 4), lambda n: 0.01, batches=20) == {4}


@on_a_loop
async def test_the_batcher_keeps_to_what_the_pace_says() -> None:
    told: list[tuple[int, bool]] = []

    def pace(rows: int, waiting: bool, now: float) -> int:
        assert abs(now - time.monotonic()) < 10
        told.append((rows, waiting))
        return 3 if len(told) >= 4 else 1

    world = World(doubled, instances=2, max_batch_size=2, pace=pace)
    await asyncio.gather(*[world.send([[i, i]])[1] for i in range(40)])
    assert world.most == 3
    assert told[0] == (2, True)
    assert told[-1][1] is False
