"""How clients share a queue: who goes first, who gives way, and what becomes of a modest one beside a greedy one."""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_admission import fill, refused, request, world_of
from test_deadlines import BODY, Peer, lane_to
from wire import parse_replies
from world import MS, World, busy, clock

from fastinfer import _core
from fastinfer.errors import (
    DeadlineUnreachableError,
    FairShareError,
    InvalidRequestError,
    OverloadedError,
    QueueBytesFullError,
    QueueFullError,
)
from fastinfer.protocols.exchange import error_answer

__all__ = ["clock"]  # holds and lets go of the core's clocks around every test


def test_who_has_most_of_a_full_queue_gives_way_to_one_that_has_nothing() -> None:
    world = World(queue_rows=20)
    busy(world)
    for key in (-7, -8):
        for tag in range(10):
            world.send(-key + tag / 16, key=key)
    assert refused(world, 60, key=-9) is None
    assert world.failures() == {8 + 9 / 16: FairShareError}
    assert refused(world, 61, 2, key=-9) is None
    assert world.failures().keys() == {8 + 9 / 16, 7 + 9 / 16, 8 + 8 / 16}
    assert refused(world, 62, 20, key=-9) is QueueFullError
    assert world.batcher.pending_rows == 20
    world.drain()
    assert len(world.told) == 23
    assert world.endpoint.counters()["refused_by"]["fair_share"] == 3


def test_a_queue_that_is_full_of_bytes_is_shared_likewise() -> None:
    def size(tag: int, rows: int = 1) -> int:
        tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [tag] * rows}
        return len(json.dumps({"inputs": [tensor], "parameters": {}}))

    world = World(queue_bytes=20 * size(100))
    busy(world)
    for tag in range(100, 110):
        for key in (-7, -8):
            world.send(tag - 100 * key, key=key)
    assert refused(world, 100, key=-7) is QueueBytesFullError
    assert refused(world, 100) is QueueBytesFullError  # nobody in particular has no share
    assert not world.told
    assert refused(world, 101, key=-9) is None
    assert world.failures() == {909: FairShareError}
    assert refused(world, 102, 30, key=-9) is None
    more = world.failures()
    assert all(tag // 100 in (8, 9) for tag in more)
    kept = [sum(size(tag) for tag in range(n, n + 10) if tag not in more) for n in (800, 900)]
    assert min(kept) >= size(101) + size(102, 30)
    assert refused(world, 103, 200, key=-10) is QueueBytesFullError
    assert world.failures() == more
    world.drain()
    assert len(world.told) == 23
    assert world.endpoint.counters()["in_flight"] == 0


def behind_a_greedy_one(**options: Any) -> World:
    """Four batches of four can follow what runs; one client has all the room that there is for one."""
    world = world_of(10, slo_ms=56, **options)
    world.send(0.5, key=-7)
    world.turn()
    assert fill(world, key=-7) == 15
    return world


def test_who_asks_modestly_goes_before_what_one_client_has_beyond_its_share() -> None:
    world = behind_a_greedy_one()
    assert refused(world, 98, key=-8) is None
    assert not world.told
    world.finish_run(10 * MS)
    world.drain()
    assert world.batches[1] == [1, 2, 3, 98]
    assert sorted(world.answered) == [0.5, *range(1, 16), 98]
    assert not world.failures()


def test_clients_take_turns_where_a_run_has_no_room_for_all_of_them() -> None:
    world = World(max_batch_size=1)
    busy(world)
    for tag in range(1, 6):
        world.send(tag, key=-7)
    world.send(50, key=-8)
    for _ in range(3):
        world.finish_run(MS)
    assert world.batches == [[0.5], [1], [50]]  # and 2 has begun
    world.send(51, key=-8)
    world.send(52, key=-8)
    world.send(60, key=-9)
    while world.runs:
        world.finish_run(MS)
    assert world.batches[3:] == [[2], [51], [60], [3], [52], [4], [5]]
    assert not world.failures()


def test_many_who_come_and_go_do_not_keep_one_out_who_has_had_its_share() -> None:
    world = World(max_batch_size=1)
    busy(world)
    for tag in range(1, 4):
        world.send(tag, key=-7)
    for i in range(60):  # always one who has had nothing
        world.send(100 + i, key=-100 - i)
        world.finish_run(MS)
    assert {1, 2, 3} <= set(world.answered)


def test_of_two_and_none_they_make_one_and_one_and_then_nobody_gives_way() -> None:
    world = world_of(10, slo_ms=58, max_batch_size=1)
    world.send(0.5, key=-7)
    world.turn()
    for tag, key in [(1, -8), (2, -8), (3, -7), (4, -7)]:
        assert refused(world, tag, key=key) is None
    assert refused(world, 5, key=-9) is None
    assert world.failures() == {4: FairShareError}
    assert refused(world, 6, key=-10) is None
    assert world.failures().keys() == {4, 3}  # whose client has had one already
    assert refused(world, 7, key=-11) is None
    assert world.failures().keys() == {4, 3, 2}
    assert refused(world, 8, key=-12) is DeadlineUnreachableError
    while world.runs:
        world.finish_run(10 * MS)
    assert sorted(world.answered) == [0.5, 1, 2, 3, 4, 5, 6, 7]
    assert world.counted("late") == 0


def test_where_there_is_no_time_for_all_the_last_of_the_one_that_has_most_give_way() -> None:
    world = behind_a_greedy_one()
    for i in range(8):
        assert refused(world, 50 + i, key=-8) is None
    assert world.failures() == dict.fromkeys(range(15, 8, -1), FairShareError)
    assert refused(world, 59, key=-8) is FairShareError  # now both have as much
    assert refused(world, 60, key=-9) is None
    assert len(world.told) == 8
    assert refused(world, 61) is DeadlineUnreachableError  # nobody in particular has no share
    world.finish_run(10 * MS)
    while world.runs:
        world.finish_run(10 * MS)
    assert (world.counted("late"), world.counted("goodput")) == (0, 17)
    assert len(world.told) == len(set(world.answered)) == 25
    counters = world.endpoint.counters()
    assert counters["refused_by"]["fair_share"] == 9
    assert counters["in_flight"] == 0


def test_who_gives_way_is_told_when_to_come_again() -> None:
    world = behind_a_greedy_one()
    for i in range(3):
        world.send(50 + i, key=-8)
    tag, error = world.told[0]
    assert tag == 15
    assert isinstance(error, FairShareError)
    assert error.retry_after == pytest.approx(0.010, abs=1e-4)
    assert json.loads(error_answer(error)[0])["reason"] == "fair_share"


def test_nobody_gives_way_to_one_that_is_not_let_in() -> None:
    world = behind_a_greedy_one()
    world.send(50, key=-8)
    waiting = world.batcher.pending_rows
    for _ in range(9):
        world.endpoint.gate(0, len(BODY), _core.Arrival(world.now, 0, -8))
        with pytest.raises(InvalidRequestError):
            world.endpoint.submit(0, BODY.replace(b"7", b'"seven"'), -1, print, _core.Arrival(world.now, 0, -8))
    assert world.batcher.pending_rows == waiting
    assert not world.told
    world.send(51, key=-8)
    assert world.failures() == {15: FairShareError}


def test_a_client_with_one_large_request_keeps_it() -> None:
    world = world_of(10, slo_ms=56)
    world.send(0.5, key=-7)
    world.turn()
    assert refused(world, 1, 15, key=-7) is None
    assert refused(world, 2, key=-8) is None
    assert refused(world, 3, key=-8) is DeadlineUnreachableError
    world.drain()
    assert not world.failures()


def test_priorities_come_before_shares() -> None:
    world = world_of(10)
    world.send(0.5, key=-7)
    world.turn()
    assert fill(world, key=-7, priority=1, timeout=60_000) == 15
    assert refused(world, 98, key=-8, timeout=68_000) is None
    assert refused(world, 99, key=-8, timeout=68_000) is DeadlineUnreachableError
    world.drain()
    assert world.batches[4][-1] == 98


def test_who_gives_way_on_the_fast_lane_has_its_answer_in_its_place() -> None:
    world = world_of(10, slo_ms=35)
    lane = lane_to(world)
    peers = [Peer(world, lane), Peer(world, lane)]
    for peer, host in zip(peers, (b"10.0.0.1", b"10.0.0.2"), strict=True):
        peer.wire.attach(peer, host, host)
    for i in range(11):
        peers[0].wire.data_received(request(value=i))
    world.turn()
    assert world.batcher.pending_rows == 7
    for i in range(3):
        peers[1].wire.data_received(request(value=20 + i))
    assert peers[0].written == peers[1].written == b""
    while world.runs:
        world.finish_run(10 * MS)
    for peer, good in zip(peers, ([*range(9)], [20, 21, 22]), strict=True):
        replies, rest = parse_replies(peer.written)
        assert rest == b""
        values = [json.loads(reply.body)["outputs"][0]["data"][0] / 2 for reply in replies if reply.status == 200]
        assert values == good
        for reply in replies[len(good):]:
            assert (reply.status, json.loads(reply.body)["reason"]) == (503, "fair_share")
            assert int(reply.field(b"retry-after") or 0) >= 1
        assert len(replies) == (11 if peer is peers[0] else 3)
    counters = world.endpoint.counters()
    assert counters["answered"]["fast", 503] == 2
    assert (counters["in_flight"], counters["refused_by"]["fair_share"]) == (0, 2)


# ---- in what order ------------------------------------------------------------------------------------------------
class Entry(NamedTuple):
    rank: int
    order: int
    client: int
    rows: int


class Turns:
    """Who runs next, in the plainest words: fair queueing by a virtual time, in which each client has its place."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.virtual = self.stood = 0
        self.served: dict[int, int] = {}
        self.waiting: list[Entry] = []

    def arrive(self, entry: Entry) -> None:
        if all(each.client != entry.client for each in self.waiting):
            self.served[entry.client] = max(self.served.get(entry.client, 0), self.virtual - self.room)
        self.waiting.append(entry)

    def level(self, ends: dict[int, int]) -> int:
        """How far all can be served for whom there is room."""
        upto = min(self.served[client] for client in ends)
        left = self.room - sum(end - self.served[client] for client, end in ends.items())
        if left >= 0:  # beside those who are nobody in particular
            return max(ends.values()) + left
        while sum(max(min(end, upto + 1) - self.served[client], 0) for client, end in ends.items()) <= self.room:
            upto += 1
        return upto

    def next_run(self) -> list[int]:
        """The numbers of those that run next."""
        rows = sum(entry.rows for entry in self.waiting)
        place, keyed = dict(self.served), []
        for entry in sorted(self.waiting):
            keyed.append((entry, place.get(entry.client, 0)))
            place[entry.client] = place.get(entry.client, 0) + entry.rows
        ends = {entry.client: place[entry.client] for entry in self.waiting if entry.client}  # 0: nobody in particular
        virtual, level = self.virtual, rows + max(place.values())
        if ends and rows <= self.room:
            virtual = max(virtual + self.room, *ends.values())
        elif ends:
            virtual = max(virtual, self.level(ends))
            if len(ends) > 1:
                level = max(self.level(ends), min(self.served[client] for client in ends) + 1)
        order = [(each.rank, at if each.client and at >= level else 0, each.order, each) for each, at in keyed]
        chosen: list[Entry] = []
        for *_, entry in sorted(order):
            if sum(each.rows for each in chosen) + entry.rows > self.room:
                break
            chosen.append(entry)
            self.served[entry.client] = self.served.get(entry.client, 0) + entry.rows
        self.waiting = [entry for entry in self.waiting if entry not in chosen]
        self.stood += sum(entry.rows for entry in chosen)
        if virtual == self.virtual and self.stood > 4 * len({entry.client for entry in self.waiting} - {0}):
            virtual += 1
        self.stood = self.stood if virtual == self.virtual else 0
        self.virtual = virtual
        return sorted(entry.order for entry in chosen)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(
    st.none(), st.tuples(st.sampled_from([1, 1, 1, 2, 3, 4]), st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 2])),
), min_size=4, max_size=40))  # fmt: skip
def test_each_run_has_of_every_client_what_is_fair(steps: list[tuple[int, int, int] | None]) -> None:
    """Beside a plain twin: requests of several clients, and runs that come back (None)."""
    world = World()
    busy(world)
    turns = Turns(room=4)
    turns.arrive(Entry(7, 0, 0, 1))
    begun: list[list[float]] = [[0.5]]
    turns.next_run()
    for order, step in enumerate([*steps, *[None] * 50], 1):
        if step is not None:
            rows, client, priority = step
            world.send(order, rows, key=-client, priority=priority)
            turns.arrive(Entry(priority - 1 if priority else 7, order, client, rows))
            world.turn()
        elif world.runs:
            world.finish_run(MS)
        if turns.waiting and len(begun) == len(world.batches):
            begun.append(turns.next_run())
    assert [sorted(set(batch)) for batch in world.batches] == begun
    assert not world.failures()
    assert world.batcher.idle


# ---- beside a greedy client ---------------------------------------------------------------------------------------
GREEDY = -1


class Load(NamedTuple):
    """What one client sends: requests a second as a Poisson process, or so many at once at random times."""

    client: int
    rate: float
    burst: int = 1


class Street(World):
    """A model under several clients' load, on a clock of its own; one run in fifty is disturbed.

    Attributes:
        counts: by client, how many were asked, good (answered in time), late, refused at once, and gave way.
    """

    def __init__(self, model: tuple[float, float, int, int], seed: int) -> None:
        self.base, self.per_row, batch, self.slo_ms = model
        super().__init__(max_batch_size=batch, slo_ms=self.slo_ms)
        self.source = random.Random(seed)
        self.counts: dict[int, Counter[str]] = {}
        self.ends = 0
        self.capacity = 1000 * batch / (self.base + self.per_row * batch) / 1.02
        for rows in (1, batch):
            self.batcher.seed(rows, round((self.base + self.per_row * rows) * MS))

    def turn(self) -> None:
        waiting, running = self.batcher.pending_rows, len(self.runs)
        super().turn()
        if len(self.runs) > running:
            usual = self.base + self.per_row * (waiting - self.batcher.pending_rows)
            took = usual * (1 + abs(self.source.gauss(0, 0.02)))
            if self.source.random() < 0.02:
                took += usual * self.source.uniform(0.1, 0.5)
            self.ends = self.now + round(took * MS)

    def until(self, time: int) -> None:
        while self.runs and self.ends <= time:
            self.pass_time(self.ends - self.now)
            self.finish_run()
        self.pass_time(time - self.now)

    def ask(self, client: int) -> None:
        count = self.counts.setdefault(client, Counter())
        count["asked"] += 1
        arrival = _core.Arrival(self.now, 0, client)
        due = self.now + self.slo_ms * MS

        def done(ticket: Any) -> None:
            if ticket.error is None:
                count["good" if self.now <= due else "late"] += 1
            else:
                count["gave way" if isinstance(ticket.error, FairShareError) else "expired"] += 1

        try:
            self.endpoint.gate(0, len(BODY), arrival)
            self.endpoint.submit(0, BODY, -1, done, arrival)
        except OverloadedError:
            count["refused"] += 1
        self.turn()

    def play(self, loads: list[Load], seconds: float) -> None:
        self.counts.clear()
        end = self.now + round(seconds * 1e9)
        due = [(self.now + self.pause(load), i) for i, load in enumerate(loads)]
        heapq.heapify(due)
        while due[0][0] < end:
            at, i = heapq.heappop(due)
            self.until(at)
            for _ in range(loads[i].burst):
                self.ask(loads[i].client)
            heapq.heappush(due, (at + self.pause(loads[i]), i))
        self.until(self.now + 1_000 * MS)

    def pause(self, load: Load) -> int:
        return round(self.source.expovariate(load.rate / load.burst) * 1e9)


SLOW, PACED, QUICK, SINGLE = (7.8, 3.9, 16, 200), (69.6, 0.0, 16, 200), (5.0, 0.0, 2, 40), (5.0, 0.0, 1, 50)
ONE, TWO, TEN = [(-2, 0.1)], [(-2, 0.1), (-3, 0.3)], [(-2 - i, 0.04) for i in range(10)]


@pytest.mark.parametrize(("model", "modest", "times", "burst", "seconds", "least"), [
    (SLOW, ONE, 10, 1, 15, 0.999), (SLOW, ONE, 3, 1, 30, 0.999), (SLOW, TEN, 10, 1, 10, 0.995),
    (SLOW, ONE, 3, 400, 30, 0.999), (SLOW, TWO, 10, 1, 10, 0.999), (PACED, [(-2, 0.02)], 10, 1, 15, 0.999),
    (PACED, TEN, 3, 1, 20, 0.999), (PACED, TWO, 10, 1, 10, 0.999), (QUICK, ONE, 10, 1, 8, 0.999),
    (QUICK, TEN, 10, 1, 8, 0.999), (QUICK, TWO, 1, 1, 8, 0.999), (SINGLE, ONE, 10, 1, 10, 0.999),
    (SINGLE, TEN, 3, 1, 10, 0.999), (SINGLE, TEN, 3, 100, 20, 0.997), (SINGLE, TWO, 10, 1, 10, 0.998),
])  # fmt: skip
def test_a_greedy_client_does_not_push_modest_ones_out_nor_the_goodput_down(
    model: tuple[float, float, int, int], modest: list[tuple[int, float]], times: int, burst: int, seconds: int,
    least: float,
) -> None:  # fmt: skip
    street = Street(model, seed=7)
    loads = [Load(client, share * street.capacity) for client, share in modest]
    street.play([*loads, Load(GREEDY, times * street.capacity, burst)], 2)  # in which it learns how much runs vary
    street.play([*loads, Load(GREEDY, times * street.capacity, burst)], seconds)
    greedy = street.counts.pop(GREEDY)
    of_modest = sum(street.counts.values(), Counter[str]())
    total = greedy + of_modest
    assert of_modest["asked"] > 50
    assert of_modest["good"] >= least * of_modest["asked"], of_modest
    assert burst > 1 or total["good"] >= 0.95 * street.capacity * seconds, total
    assert total["late"] <= 0.015 * total["good"], total
    assert not total["expired"]


@pytest.mark.parametrize("model", [SLOW, PACED, QUICK, SINGLE])
def test_two_greedy_clients_do_not_push_a_modest_one_out_either(model: tuple[float, float, int, int]) -> None:
    street = Street(model, seed=7)
    loads = [Load(-2, 0.05 * street.capacity), Load(-1, 5 * street.capacity), Load(-3, 5 * street.capacity)]
    street.play(loads, 2)
    street.play(loads, 8)
    count = street.counts[-2]
    assert count["good"] >= 0.999 * count["asked"], count
    shares = [street.counts[key]["good"] for key in (-1, -3)]
    assert max(shares) < 1.02 * min(shares)
    total = sum(street.counts.values(), Counter[str]())
    assert total["late"] <= 0.02 * total["good"], total


@pytest.mark.parametrize("model", [SLOW, PACED, QUICK, SINGLE])
def test_a_client_that_is_greedy_now_and_then_does_not_push_a_steady_one_out(
    model: tuple[float, float, int, int]
) -> None:
    street = Street(model, seed=7)
    steady, greedy = Load(-2, 0.2 * street.capacity), Load(GREEDY, 10 * street.capacity)
    total = Counter[str]()
    for _ in range(10):
        for loads in ([steady], [steady, greedy]):
            street.play(loads, 0.5)
            total += street.counts[-2]
    assert total["good"] >= 0.995 * total["asked"], total


@pytest.mark.parametrize(("model", "least"), [(SLOW, 0.995), (PACED, 0.98), (QUICK, 0.999), (SINGLE, 0.999)])
def test_of_two_who_ask_for_more_than_there_is_the_modest_one_has_what_it_asks_for(
    model: tuple[float, float, int, int], least: float
) -> None:
    street = Street(model, seed=7)
    loads = [Load(-2, 0.3 * street.capacity), Load(GREEDY, 0.9 * street.capacity)]
    street.play(loads, 2)
    street.play(loads, 10)
    assert street.counts[-2]["good"] >= least * street.counts[-2]["asked"], street.counts
