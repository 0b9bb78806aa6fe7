"""Who is let in and who is not, on a clock that stands still: predictions, refusals, shares; and what comes of them."""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deadlines import BODY, Peer, lane_to
from wire import message, parse_replies
from world import MS, RAGGED, World, busy, clock

from fastinfer import _core
from fastinfer.errors import (
    DeadlineUnreachableError,
    FairShareError,
    OverloadedError,
    QueueBytesFullError,
    QueueFullError,
)
from fastinfer.protocols.exchange import error_answer

__all__ = ["clock"]  # holds and lets go of the core's clocks around every test
INFER = "/v2/models/m/infer"


def world_of(mean: float, *, per_row: float = 0.0, times: int = 64, **options: Any) -> World:
    """A model whose runs take `mean` + `per_row` * rows milliseconds, as it knows."""
    world = World(**options)
    for _ in range(times):
        for rows in {1, 2, world.batcher.max_batch_size}:
            world.batcher.seed(rows, round((mean + per_row * rows) * MS))
    return world


def refused(world: World, tag: float, rows: int = 1, **options: Any) -> type[OverloadedError] | None:
    try:
        world.send(tag, rows, **options)
    except OverloadedError as error:
        return type(error)
    return None


def fill(world: World, most: int = 1000, **options: Any) -> int:
    """How many requests are let in until one is not."""
    for count in range(most):
        if refused(world, count + 1, **options) is not None:
            return count
    return most


def test_as_many_are_let_in_as_can_make_it() -> None:
    world = world_of(10, slo_ms=56)
    busy(world)  # a run of 10 ms has begun: four batches of four can follow it
    assert fill(world) == 16
    world.finish_run(10 * MS)
    assert fill(world) == 4
    while world.runs:
        world.finish_run(10 * MS)
    assert not world.failures()
    assert (world.counted("late"), world.counted("goodput")) == (0, 21)
    counters = world.endpoint.counters()
    assert counters["refused"] == counters["refused_by"]["deadline"] == 2
    assert counters["admitted"] == 21


def test_the_rest_of_the_running_batch_counts() -> None:
    for passed, room in [(0, 16), (9, 16), (3, 16)]:
        world = world_of(10, slo_ms=56)
        busy(world)
        world.pass_time(passed * MS)
        assert fill(world) == room
    world = world_of(10, slo_ms=50)
    busy(world)
    assert fill(world) == 12
    world.pass_time(6 * MS)
    assert fill(world) == 4


def test_a_refusal_says_when_there_may_be_room() -> None:
    world = world_of(10, slo_ms=56)
    busy(world)
    fill(world)
    with pytest.raises(DeadlineUnreachableError) as refusal:
        world.send(99)
    assert refusal.value.retry_after == pytest.approx(0.0096, abs=1e-4)  # a tenth of the time is kept free
    body, fields = error_answer(refusal.value)
    told = json.loads(body)
    assert told["reason"] == "deadline"
    assert 9 <= told["retry_after_ms"] <= 20  # once to twice as much
    names = dict(fields)
    assert names[b"x-envoy-overloaded"] == b"true"
    assert int(names[b"retry-after"]) >= 1


def test_what_no_run_has_ever_made_in_time_is_refused_even_of_an_idle_model() -> None:
    world = world_of(200)
    assert refused(world, 1, timeout=50_000) is DeadlineUnreachableError
    assert refused(world, 2, timeout=250_000) is None


def test_an_idle_model_is_tried_again_after_a_slow_time() -> None:
    """What is refused teaches nothing: else a model that was slow once would serve nobody for ever."""
    world = world_of(10, slo_ms=56)
    for _ in range(20):
        world.batcher.seed(1, 300 * MS)
    assert refused(world, 1) is None  # the first that is asked of it for a second
    world.turn()
    world.finish_run(250 * MS)  # it is slow
    assert refused(world, 2) is DeadlineUnreachableError
    world.pass_time(1001 * MS)
    for tag in range(3, 30):
        assert refused(world, tag) is None
        world.turn()
        world.finish_run(10 * MS)
    assert not world.failures()


def test_nothing_is_refused_for_a_deadline_while_nothing_is_known() -> None:
    world = World(slo_ms=5)
    busy(world)
    assert fill(world, 100) == 100


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    world = world_of(1)
    assert refused(world, 1, timeout=1) is DeadlineUnreachableError
    assert not world.batcher.pending_rows


def test_priorities_go_past_the_queue_in_the_prediction_too() -> None:
    world = world_of(10, slo_ms=56)
    busy(world)
    fill(world)
    assert refused(world, 99, priority=1) is None
    assert refused(world, 98, priority=2) is None
    world.finish_run(10 * MS)
    assert set(world.batches[0]) == {0.5}
    world.drain()
    assert {98, 99} <= set(world.batches[1])


def test_the_short_of_time_pass_the_patient_but_push_none_past_its_deadline() -> None:
    world = world_of(10)
    busy(world)
    for tag in range(1, 41):
        assert refused(world, tag, timeout=200_000) is None  # ten batches
    assert refused(world, 50, timeout=25_000) is None
    tight = world_of(10)
    busy(tight)
    room = fill(tight, timeout=112_000)
    assert room == 36
    assert refused(tight, 50, timeout=25_000) is DeadlineUnreachableError
    assert refused(tight, 51, timeout=25_000, priority=1) is None


def test_a_batch_is_no_longer_than_its_deadlines_allow() -> None:
    """Where each row costs, a full batch would make everybody late."""
    world = world_of(0, per_row=5, max_batch_size=64, slo_ms=100)
    busy(world)
    admitted = fill(world)
    assert admitted >= 9
    world.finish_run(5 * MS)
    while world.runs:
        rows = len(world.runs[0][1][0:1])
        assert rows == 1
        world.finish_run(5 * MS * 9)
    assert max(len(batch) for batch in world.batches) == 9
    assert not world.failures()


def test_where_the_rows_cost_nothing_batches_are_full() -> None:
    world = world_of(40, max_batch_size=64, slo_ms=90)
    busy(world)
    assert fill(world) == 64


def test_few_samples_are_taken_for_less_than_many() -> None:
    rooms = []
    for times in (1, 4, 64):
        world = world_of(10, slo_ms=67, times=times)
        busy(world)
        rooms.append(fill(world))
    assert rooms[0] < rooms[2]
    assert rooms == sorted(rooms)


def test_what_runs_cost_is_shown() -> None:
    world = world_of(10, per_row=1)
    costs = world.endpoint.statistics()["run_cost"]
    assert [cost["batch_size"] for cost in costs] == [1, 2, 4]
    assert costs[2]["mean_ns"] == costs[2]["high_ns"] == 14 * MS
    for i in range(64):
        world.batcher.seed(4, (14 if i % 10 else 30) * MS)
    cost = world.endpoint.statistics()["run_cost"][2]
    assert 14 * MS < cost["mean_ns"] < 20 * MS
    assert cost["high_ns"] == 30 * MS
    for _ in range(64):
        world.batcher.seed(4, 5 * MS)
    assert world.endpoint.statistics()["run_cost"][2]["high_ns"] == 5 * MS


def test_a_queue_is_bounded_in_rows_and_bytes() -> None:
    world = World(queue_rows=10)
    busy(world)
    world.send(1, 8)
    assert refused(world, 2, 3) is QueueFullError
    assert refused(world, 3, 2) is None
    world = World(queue_bytes=1000)
    busy(world)
    world.send(1, 100)
    assert refused(world, 2, 200) is QueueBytesFullError
    assert world.endpoint.counters()["refused_by"]["queue_bytes"] == 1


def test_one_client_has_at_most_half_of_a_queue() -> None:
    world = World(queue_rows=20)
    busy(world)
    for key in (-7, -8):
        world.send(0, key=key)
    assert fill(world, key=-7) == 9
    assert refused(world, 99, key=-7) is FairShareError
    for other in range(4):
        assert refused(world, 50 + other, 2, key=other + 1) is None
    assert refused(world, 59, key=-8) is None
    assert refused(world, 60) is QueueFullError
    assert refused(world, 61, key=-7) is QueueFullError
    assert world.endpoint.counters()["refused_by"]["fair_share"] == 2


def test_one_client_alone_has_nearly_all_of_a_queue() -> None:
    world = World(queue_rows=64)
    world.send(0, key=-7)
    world.turn()
    assert fill(world, key=-7) == 62
    assert refused(world, 98, key=-8) is None
    assert refused(world, 99, key=-7) is FairShareError


def test_who_is_nobody_in_particular_may_fill_a_queue() -> None:
    world = World(queue_rows=20)
    busy(world)
    assert fill(world) == 20


def test_one_client_has_at_most_half_of_the_time() -> None:
    world = world_of(10, slo_ms=100)
    world.send(0, key=-8)
    world.turn()
    assert fill(world, key=-7) == 16
    assert refused(world, 98, key=-7) is FairShareError
    assert fill(world, key=-8) == 16


def test_one_client_alone_has_nearly_all_of_the_time() -> None:
    world = world_of(10, slo_ms=100)
    busy(world)
    assert fill(world, key=-7) == 31
    assert refused(world, 98, key=-8) is None  # who comes finds room
    assert not world.told
    assert refused(world, 99, key=-7) is FairShareError


class Simulation:
    """Poisson arrivals, of clients by their weights, at a model whose runs vary.

    Attributes:
        world: after the last answer.
        times: milliseconds from arrival to answer of the requests that were answered, by client.
        sent: how many each client sent.
    """

    def __init__(
        self, rate: float, seconds: float, clients: dict[int, float], *, slo: int, size: int = 8, base: float = 10.0,
        per_row: float = 1.0, slow_from: float = 1e9, seed: int = 0,
    ) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self.world = world_of(base, per_row=per_row, slo_ms=slo, max_batch_size=size, times=3)
        self.base, self.per_row = base, per_row
        self.slow_from = self.world.now + slow_from * 1e9
        self.times: dict[int, list[float]] = {key: [] for key in clients}
        self.sent = dict.fromkeys(clients, 0)
        self.began: dict[float, tuple[int, int]] = {}
        at, end = self.world.now, self.world.now + round(seconds * 1e9)
        self.events = []
        while at < end:
            at += round(self.rng.expovariate(rate) * 1e9)
            self.events.append((at, False))
        keys, weights = list(clients), list(clients.values())
        while self.events:
            at, is_run = heapq.heappop(self.events)
            self.world.pass_time(at - self.world.now)
            if is_run:
                work, args = self.world.runs.popleft()
                work(*args)
            else:
                self.arrive(self.rng.choices(keys, weights)[0])
            self.turn()

    def arrive(self, key: int) -> None:
        tag = float(sum(self.sent.values()) + 1)
        self.sent[key] += 1
        self.began[tag] = (self.world.now, key)
        refused(self.world, tag, key=key)

    def turn(self) -> None:
        running, pending = len(self.world.runs), self.world.batcher.pending_rows
        self.world.turn()
        if len(self.world.runs) > running:
            rows = max(pending - self.world.batcher.pending_rows, 1)
            took = (self.base + self.per_row * rows) * self.rng.choice([0.95, 1.0, 1.0, 1.05, 1.1])
            if self.world.now > self.slow_from:
                took *= 2
            heapq.heappush(self.events, (self.world.now + round(took * MS), True))
        for tag, what in self.world.told:
            if not isinstance(what, Exception):
                self.answered(tag)
        self.world.told.clear()

    def answered(self, tag: float) -> None:
        began, key = self.began[tag]
        self.times[key].append((self.world.now - began) / MS)

    @property
    def all_times(self) -> list[float]:
        return sorted(time for times in self.times.values() for time in times)


def p99(times: list[float]) -> float:
    return times[int(0.99 * len(times))]


@pytest.mark.parametrize(("base", "per_row", "size", "slo"), [
    (10.0, 1.0, 8, 100), (3.5, 0.0, 1, 50), (0.0, 3.5, 64, 100), (30.0, 0.1, 64, 100),
])  # fmt: skip
def test_at_ten_times_capacity_what_is_let_in_is_in_time_and_the_model_stays_busy(
    base: float, per_row: float, size: int, slo: int
) -> None:
    capacity = 1000 / (base / size + per_row) / 1.02  # rows a second of full batches
    if per_row == 3.5:
        capacity = 1000 / 3.5 / 1.02
    overload = Simulation(10 * capacity, 4, {-1: 1.0}, slo=slo, base=base, per_row=per_row, size=size)
    world = overload.world
    assert p99(overload.all_times) <= slo
    assert world.counted("expired") <= 0.001 * world.counted("admitted")
    assert world.counted("goodput") >= 0.90 * capacity * 4
    assert world.counted("late") <= 0.01 * world.counted("admitted")
    light = Simulation(0.5 * capacity, 4, {-1: 1.0}, slo=slo, base=base, per_row=per_row, size=size)
    assert light.world.counted("refused") <= 0.01 * light.sent[-1]


class Mixture(Simulation):
    """Ten times what the model carries, in part of the highest priority, in part of those who have half of the time.

    Attributes:
        let_in, in_time: requests, and how many of them were answered by their deadline, by kind.
    """

    def __init__(self, urgent: float, hasty: float) -> None:
        self.shares = {"urgent": urgent, "hasty": hasty, "plain": 1 - urgent - hasty}
        self.let_in = Counter[str]()
        self.in_time = Counter[str]()
        self.due: dict[float, tuple[str, int]] = {}
        super().__init__(4350, 8, {-1: 1.0}, slo=100)

    def arrive(self, key: int) -> None:
        tag = float(len(self.due) + 1)
        kind = self.rng.choices(list(self.shares), list(self.shares.values()))[0]
        limit = 50_000 if kind == "hasty" else 100_000
        self.due[tag] = kind, self.world.now + limit * 1000
        self.let_in[kind] += refused(self.world, tag, timeout=limit, priority=1 if kind == "urgent" else 0) is None

    def answered(self, tag: float) -> None:
        kind, due = self.due[tag]
        self.in_time[kind] += self.world.now <= due


@pytest.mark.parametrize(("urgent", "hasty", "least"), [
    (0.03, 0.0, 0.97), (0.06, 0.0, 0.92), (0.0, 0.1, 0.99), (0.0, 0.02, 0.99), (0.03, 0.05, 0.97),
])  # fmt: skip
def test_what_is_let_in_makes_it_though_others_pass_that_come_later(urgent: float, hasty: float, least: float) -> None:
    """The most urgent that comes by then is not known, only how much of it there was of late."""
    mixture = Mixture(urgent, hasty)
    for kind, count in mixture.let_in.items():
        assert mixture.in_time[kind] >= (least if kind == "plain" else 0.99) * count, kind
    assert mixture.let_in["plain"] > 100
    assert mixture.let_in.total() >= 0.8 * 435 * 8


def test_a_machine_that_becomes_slower_makes_nobody_late_for_long() -> None:
    overload = Simulation(3000, 6, {-1: 1.0}, slo=100, slow_from=3.0)
    world = overload.world
    assert world.counted("late") + world.counted("expired") <= 0.04 * world.counted("admitted")
    assert world.counted("goodput") >= 0.85 * (3 * 435 + 3 * 217)


def test_a_greedy_client_does_not_push_another_out() -> None:
    neighbours = Simulation(4000, 8, {-1: 0.99, -2: 0.01}, slo=120)
    assert neighbours.sent[-2] > 250
    assert len(neighbours.times[-2]) >= 0.999 * neighbours.sent[-2]
    assert p99(sorted(neighbours.times[-2])) <= 120
    assert len(neighbours.times[-1]) + len(neighbours.times[-2]) >= 0.85 * 8 * 435


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 1, 2, 6]), st.integers(0, 120), st.integers(0, 3)), max_size=20),
    st.integers(1, 5), st.sampled_from([1, 2, 5]), st.integers(0, 30), st.integers(1, 100), st.integers(1, 100),
)  # fmt: skip
def test_more_time_never_turns_a_request_away(
    queue: list[tuple[int, int, int]], rows: int, instances: int, elapsed: int, one: int, other: int
) -> None:
    answers = []
    for timeout in sorted([one, other]):
        world = world_of(8, per_row=1, instances=instances)
        busy(world)
        for tag, (size, time, priority) in enumerate(queue):
            refused(world, tag + 1, size, timeout=time * 1000, priority=priority)
        world.pass_time(elapsed * MS)
        answers.append(refused(world, 99, rows, timeout=timeout * 1000))
    if answers[0] is None and not any(time for _, time, _ in queue):
        assert answers[1] is None


# ---- at the head --------------------------------------------------------------------------------------------------
def request(*fields: str, value: int = 7, pad: int = 0) -> bytes:
    return message(INFER, BODY.replace(b"7", b"%d" % value) + b" " * pad, *fields)


def overloaded() -> tuple[World, Peer]:
    world = world_of(10, slo_ms=25)
    peer = Peer(world, lane_to(world))
    busy(world)
    while refused(world, 1) is None:
        pass
    return world, peer


def test_a_refusal_at_the_head_is_the_answer_that_the_standard_lane_gives() -> None:
    world, peer = overloaded()
    peer.wire.data_received(request("X-Request-ID: mine"))
    with pytest.raises(DeadlineUnreachableError) as refusal:
        world.endpoint.gate(0, len(BODY), peer.wire.arrived(0))
    body, fields = error_answer(refusal.value)
    (reply,), rest = parse_replies(peer.written)
    assert rest == b""
    assert reply.status == 503
    assert [name for name, _ in reply.fields] == [
        b"date", b"content-type", b"x-request-id", *[name for name, _ in fields], b"content-length"]  # fmt: skip
    mine, theirs = json.loads(reply.body), json.loads(body)
    assert list(mine) == list(theirs)
    del mine["retry_after_ms"], theirs["retry_after_ms"]
    assert mine == theirs
    assert reply.field(b"x-request-id") == b"mine"
    counters = world.endpoint.counters()
    assert counters["answered"]["fast", 503] == 1
    assert counters["refused"] == 3


def test_a_refusal_comes_before_the_body_which_is_counted_off() -> None:
    world, peer = overloaded()
    data = request()
    head = data.index(b"\r\n\r\n") + 4
    peer.wire.data_received(data[:head])
    assert [reply.status for reply in parse_replies(peer.written)[0]] == [503]
    assert not peer.wire.idle_since
    assert peer.wire.body_since
    for i in range(head, len(data)):
        peer.wire.data_received(data[i : i + 1])
    assert peer.wire.idle_since
    peer.wire.data_received(data + request(value=8))
    assert [reply.status for reply in parse_replies(peer.written)[0]] == [503] * 3
    assert world.batcher.pending_rows
    assert peer.fed == b""


def test_refusals_keep_their_place_among_answers() -> None:
    world = world_of(10, slo_ms=40)
    peer = Peer(world, lane_to(world))
    busy(world)
    peer.wire.data_received(b"".join(request(value=i) for i in range(100, 180)))
    assert peer.written == b""  # the first waits for its run
    while world.runs:
        world.finish_run(9 * MS)
    replies, rest = parse_replies(peer.written)
    assert rest == b""
    assert len(replies) == 80
    values = [json.loads(reply.body)["outputs"][0]["data"][0] if reply.status == 200 else None for reply in replies]
    assert values[0] == 200
    assert {reply.status for reply in replies} == {200, 503}
    assert all(value in (None, 2 * (100 + i)) for i, value in enumerate(values))


def test_a_large_body_is_refused_by_the_standard_lane_which_closes() -> None:
    world, peer = overloaded()
    peer.wire.data_received(request(pad=70_000))
    assert peer.written == b""
    assert peer.fed
    with pytest.raises(DeadlineUnreachableError):
        world.endpoint.gate(0, 70_000, peer.wire.arrived(0))


def test_a_head_passes_for_as_urgent_as_bodies_were() -> None:
    world, peer = overloaded()
    urgent = message(INFER, BODY[:-1] + b',"parameters":{"priority":1}}')
    for _ in range(64):  # one in so many is looked at
        peer.wire.data_received(urgent)
    assert len(parse_replies(peer.written)[0]) == 63
    peer.wire.data_received(urgent)
    assert len(parse_replies(peer.written)[0]) == 63
    peer.wire.data_received(request())
    assert len(parse_replies(peer.written)[0]) == 63  # in order, behind those that wait
    counters = world.endpoint.counters()
    assert counters["refused_by"]["deadline"] == 65


def test_rows_are_told_by_the_length() -> None:
    world = world_of(10, slo_ms=80)
    lane = lane_to(world)
    peer, other = Peer(world, lane), Peer(world, lane)
    peer.wire.data_received(request())
    world.turn()
    large = json.dumps({"inputs": [
        {"name": "x", "shape": [400, 1], "datatype": "FP32", "data": [7] * 400}]}).encode()  # fmt: skip
    data = message(INFER, large + b" " * 50 * 1024)
    other.wire.data_received(data[:200])
    assert [reply.status for reply in parse_replies(other.written)[0]] == [503]


def test_who_leaves_while_a_refused_body_comes_is_gone() -> None:
    _, peer = overloaded()
    peer.wire.data_received(request()[:-5])
    assert peer.wire.eof() is False
    peer.wire.lost()
    peer.wire.data_received(b"more")


def test_many_connections_that_pipeline_what_is_refused_are_answered_in_order_and_held_within_bounds() -> None:
    world = world_of(10, slo_ms=25)
    lane = lane_to(world)
    busy(world)
    while refused(world, 1) is None:
        pass
    in_flight = world.endpoint.counters()["in_flight"]
    peers = [Peer(world, lane) for _ in range(40)]
    each = 300
    data = b"".join(request(f"X-Request-ID: {i}") for i in range(each))
    step = len(data) // 5 + 1
    for start in range(0, len(data), step):
        for peer in peers:
            peer.wire.data_received(data[start : start + step])
    for peer in peers:
        replies, rest = parse_replies(peer.written)
        assert rest == b""
        assert [int(reply.field(b"x-request-id") or -1) for reply in replies] == list(range(each))
        assert {reply.status for reply in replies} == {503}
        assert all(int(reply.field(b"retry-after") or 0) >= 1 for reply in replies)
        assert peer.wire.idle_since
    assert world.endpoint.counters()["in_flight"] == in_flight
    deaf = Peer(world, lane)
    deaf.wire.writable(False)  # who does not read is not answered, and soon not read either
    deaf.wire.data_received(data + data)
    assert (deaf.written, deaf.holds) == (b"", [True])
    deaf.wire.writable(True)
    assert [reply.status for reply in parse_replies(deaf.written)[0]] == [503] * 2 * each
    assert deaf.holds == [True, False]


class Crowd(World):
    """A model of 16 rows a batch, (rows + 2) * `UNIT` ms a run, under Poisson arrivals on a clock of its own."""

    UNIT, BATCH, SLO_MS, CAPACITY = 3.9, 16, 200, 210

    def __init__(self, slow: list[float]) -> None:
        super().__init__(max_batch_size=self.BATCH, slo_ms=self.SLO_MS)
        self.slow = slow  # how many times as long the first runs take
        self.size = 0
        self.good = self.late = self.refused = 0
        self.modest = 0.0  # the share of arrivals that are another client's
        self.of_modest = [0, 0]  # served in time, and asked
        self.source = random.Random(5)
        for rows in (1, self.BATCH):
            self.batcher.seed(rows, round(self.UNIT * (rows + 2) * MS))

    def turn(self) -> None:
        waiting, running = self.batcher.pending_rows, len(self.runs)
        super().turn()
        if len(self.runs) > running:
            self.size = waiting - self.batcher.pending_rows

    def arrive(self) -> None:
        due = self.now + self.SLO_MS * MS
        is_modest = self.source.random() < self.modest
        self.of_modest[1] += is_modest

        def done(ticket: Any) -> None:
            if ticket.error is None:
                self.good += self.now <= due
                self.late += self.now > due
                self.of_modest[0] += is_modest and self.now <= due

        try:
            self.endpoint.submit(0, BODY, -1, done, _core.Arrival(self.now, 0, 2 if is_modest else 1))
        except OverloadedError:
            self.refused += 1
        self.turn()

    def took(self) -> int:
        """A run in fifty is disturbed."""
        took = self.UNIT * (self.size + 2) * (self.slow.pop() if self.slow else 1 + abs(self.source.gauss(0, 0.02)))
        return round((took + (self.source.uniform(5, 40) if self.source.random() < 0.02 else 0)) * MS)

    def play(self, rate: float, seconds: float) -> None:
        end, ends = self.now + round(seconds * 1e9), 0
        while self.now < end:
            arrives = self.now + round(self.source.expovariate(rate) * 1e9)
            while self.runs:
                ends = ends or self.now + self.took()
                if ends > arrives:
                    break
                self.pass_time(ends - self.now)
                self.finish_run()
                ends = 0
            self.pass_time(arrives - self.now)
            self.arrive()


@pytest.mark.parametrize(("times", "slow"), [(3, []), (10, [2, 2, 3])])
def test_what_is_let_in_of_many_times_too_much_makes_it_and_is_as_much_as_ever(times: int, slow: list[float]) -> None:
    """Though runs vary, and though the first ones under the load took much longer than any after them."""
    crowd = Crowd(slow)
    crowd.play(times * crowd.CAPACITY, 8)  # in which it learns how much runs vary
    crowd.good = crowd.late = 0
    crowd.play(times * crowd.CAPACITY, 30)
    assert crowd.good >= 0.97 * crowd.CAPACITY * 30
    assert crowd.late <= 0.01 * (crowd.good + crowd.late)


def test_below_the_capacity_nearly_nobody_is_refused_and_nobody_late() -> None:
    crowd = Crowd([])
    crowd.play(0.85 * crowd.CAPACITY, 10)
    assert crowd.refused <= 0.03 * crowd.good
    assert crowd.late == 0


def test_a_run_that_takes_half_as_long_again_makes_nobody_late_behind_it() -> None:
    """As the first one of a flood does, whose connections are made on its core; nothing has come late before."""
    world = world_of(10, slo_ms=56)
    busy(world)
    assert fill(world) == 16
    world.finish_run(15 * MS)
    while world.runs:
        world.finish_run(10 * MS)
    assert (world.counted("late"), world.counted("goodput")) == (0, 17)


def test_after_a_batch_that_came_late_the_next_are_to_be_early() -> None:
    world = world_of(10, slo_ms=57)
    busy(world)
    assert fill(world) == 16
    world.finish_run(21 * MS)
    for _ in range(4):
        world.finish_run(10 * MS)  # the last one 4 ms late
    assert (world.counted("late"), world.counted("goodput")) == (4, 13)
    busy(world)
    assert fill(world) == 12
    while world.runs:
        world.finish_run(10 * MS)
    for _ in range(1000):
        world.send(1)
        world.turn()
        world.finish_run(10 * MS)
    busy(world)
    assert fill(world) == 16


def test_who_asks_modestly_beside_one_that_asks_for_ten_times_too_much_is_hardly_ever_refused() -> None:
    crowd = Crowd([2, 2, 3])
    crowd.play(0.2 * crowd.CAPACITY, 2)
    crowd.modest = 0.02
    crowd.play(10 * crowd.CAPACITY, 10)
    served, asked = crowd.of_modest
    assert asked > 300
    assert served >= 0.97 * asked


def test_a_model_that_seemed_far_too_slow_at_its_warm_up_is_tried_now_and_then() -> None:
    world = World(max_batch_size=8, slo_ms=20)
    for rows in (1, 8):
        world.batcher.seed(rows, 100 * MS)  # and takes one
    let_in = 0
    for tag in range(300):
        if refused(world, tag) is None:
            let_in += 1
            world.turn()
            world.finish_run(1 * MS)
        world.pass_time(100 * MS)
    assert let_in > 150
    assert world.counted("late") == 0


def test_a_wide_row_is_not_taken_for_many_rows() -> None:
    """Where rows have no fixed size, how many there are is not told by the length."""
    world = World(RAGGED)
    for i in range(20):
        world.send(i, head=1000 * MS)
        world.turn()
        world.finish_run(MS)
    for i in range(20, 24):
        world.send(i)
        world.turn()
    assert world.counted("in_flight") == 4
    world.endpoint.gate(0, 1_000_000, _core.Arrival(world.now, 100_000 * MS, 0))  # it would be 10,000 such rows
