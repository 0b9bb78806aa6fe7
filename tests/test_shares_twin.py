"""Who is let in and who gives way, beside a twin in the plainest words: it looks at everybody for each decision."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from test_admission import world_of
from world import MS, busy, clock

from fastinfer import _core
from fastinfer.errors import FairShareError, OverloadedError

__all__ = ["clock"]  # holds and lets go of the core's clocks around every test

RUN = 10 * MS
NEVER = 1 << 62


@dataclass
class Request:
    rank: int
    deadline: int
    order: int
    client: int
    rows: int
    nbytes: int

    def size(self, in_bytes: bool) -> int:
        return self.nbytes if in_bytes else self.rows


@dataclass
class Plain:
    """What batcher and queue decide while one run goes on, of a model whose runs all take as long."""

    began: int
    batch: int
    queue_rows: int = 4096
    queue_bytes: int = 64 << 20
    waiting: list[Request] = field(default_factory=list)
    last: int = 0
    company: bool = False
    urgent: list[tuple[int, int, int]] = field(default_factory=list)  # let in: when, of which priority, rows

    def takes(self, rows: int, now: int, asked: Request, left: float, caution: float = 3) -> float:
        """Nanoseconds until so many rows have run, and a tenth of the time that the one who comes has.

        Those of higher priorities come as in the last second, or somewhat more, until the last run begins; on average,
        and with no time to spare, where there is no caution.
        """
        rate = sum(count * math.exp((then - now) / 1e9) for then, rank, count in self.urgent if rank < asked.rank) / 1e9
        wait, runs = self.began + RUN - now, -(-rows // self.batch)
        if rate:
            left_of_it = 1 - min(0.98, rate * RUN / self.batch)
            passing = rate * (wait + (runs - 1) * RUN) / left_of_it
            runs = math.ceil((rows + passing + caution * math.sqrt(passing) / left_of_it) / self.batch)
        free = min(0.1 * (asked.deadline - now), 0.25 * left) if asked.deadline != NEVER else 0
        return wait + runs * RUN + (free if caution else 0)

    def held(self, in_bytes: bool = False) -> Counter[int]:
        held = Counter[int]()
        for request in self.waiting:
            held[request.client] += request.size(in_bytes)
        return held

    def level(self, room: int, asked: Request) -> int:
        rows = self.held()
        if asked.client:
            rows[asked.client] += asked.rows
        rows.pop(0, None)  # nobody in particular
        if sum(rows.values()) <= room:
            return room
        return max([n for n in range(1, room + 1) if sum(min(each, n) for each in rows.values()) <= room], default=1)

    def in_turn(self, level: int, asked: Request) -> list[tuple[bool, Request]]:
        """All who wait and the one who comes, in the order of going; whether it is beyond its client's share."""
        before = Counter[int]()
        keyed = []
        for each in sorted([*self.waiting, asked], key=lambda each: (each.rank, each.deadline, each.order)):
            is_excess = each.client != 0 and before[each.client] >= level
            start = before[each.client] if is_excess else 0
            before[each.client] += 0 if each is asked else each.rows  # others keep their turn
            keyed.append((each.rank, each.deadline == NEVER, is_excess, start, each.deadline, each.order, each))
        return [(key[2], key[6]) for key in sorted(keyed, key=lambda key: key[:6])]

    def one_yields(self, asked: Request, among: list[Request], yields: list[Request], least: int,
                   in_bytes: bool) -> bool:
        """Choose the last of the client that has most, more than ``least`` and as much as the one who comes then."""
        held = self.held(in_bytes)
        more, own = asked.size(in_bytes), held[asked.client]
        for each in yields:
            held[each.client] -= each.size(in_bytes)
        may = [
            (held[each.client], place, each) for place, each in enumerate(among)
            if asked.client and each.client and each.client != asked.client and each not in yields
            and each.rank >= asked.rank and held[each.client] > least
            and held[each.client] - each.size(in_bytes) >= more + own
        ]  # fmt: skip
        if may:
            yields.append(max(may, key=lambda each: each[:2])[2])
        return bool(may)

    def judge(self, asked: Request, now: int) -> tuple[str, list[Request]]:
        """Why it is refused, or nothing and who gives way to it."""
        yields: list[Request] = []
        if asked.client and asked.client != self.last:
            self.company |= self.last != 0
            self.last = asked.client
        for in_bytes in (True, False):
            reason = self.judge_room(asked, yields, in_bytes)
            if reason:
                return reason, []
        for in_bytes in (True, False):
            most = self.queue_bytes if in_bytes else self.queue_rows
            most = most // 2 if self.company else most - most // 32
            held = self.held(in_bytes)
            if asked.client and held[asked.client] and held[asked.client] + asked.size(in_bytes) > most:
                return "fair_share", []
        if asked.deadline == NEVER:
            return "", yields
        ahead, own = sum(each.rows for each in self.waiting), self.held()[asked.client]
        left = asked.deadline - now
        assert asked.client
        assert self.company
        if ahead + asked.rows <= self.batch:
            return self.fit_in_at_once(asked, now), []
        furthest = own > 0 and own + asked.rows >= max(self.held().values())
        if furthest and all(self.takes(2 * (rows + asked.rows), now, asked, left) > left for rows in (ahead, own)):
            return "fair_share", []
        return self.fit_in(asked, now, yields)

    def judge_room(self, asked: Request, yields: list[Request], in_bytes: bool) -> str:
        room = self.queue_bytes if in_bytes else self.queue_rows
        least = room // (len(set(self.held()) - {0}) + 1) if in_bytes else self.level(room, asked)
        line = sorted(self.waiting, key=lambda each: (each.rank, each.deadline, each.order))
        while self.waiting and sum(each.size(in_bytes) for each in [*self.waiting, asked] if each not in yields) > room:
            if not self.one_yields(asked, line, yields, least, in_bytes):
                return "queue_bytes" if in_bytes else "queue_rows"
        return ""

    def fit_in_at_once(self, asked: Request, now: int) -> str:
        """Of rows that all go into the next run, unless others pass."""
        line = sorted([*self.waiting, asked], key=lambda each: (each.rank, each.deadline, each.order))
        for at in range(line.index(asked), len(line)):
            each, rows = line[at], sum(before.rows for before in line[:at + 1])
            left = each.deadline - now
            if each.rank != asked.rank or each.deadline == NEVER or self.takes(rows, now, asked, left) <= left:
                continue
            if each is asked or self.takes(rows - asked.rows, now, asked, left, caution=0) <= left:
                return "deadline"
        return ""

    def fit_in(self, asked: Request, now: int, yields: list[Request]) -> tuple[str, list[Request]]:
        level = self.level(self.batch, asked)
        line = self.in_turn(level, asked)
        place = [each for _, each in line].index(asked)
        for at in range(place, len(line)):
            each = line[at][1]
            if each.rank != asked.rank:
                break
            upto = line[:at + 1]
            others = sum(before.rows for _, before in upto if before is not asked)
            left = each.deadline - now
            while each not in yields and each.deadline != NEVER:
                takes = self.takes(sum(before.rows for _, before in upto if before not in yields), now, asked, left)
                without = self.takes(others, now, asked, left)
                if takes <= left or (each is not asked and takes <= without):
                    break
                excess = [before for is_excess, before in upto if is_excess and before is not asked]
                if self.one_yields(asked, excess, yields, level, False):
                    continue
                if each is asked or without <= left:
                    return "deadline", []
                break
        return "", yields


CLIENTS = st.sampled_from([1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8])
STEP = st.tuples(CLIENTS, st.sampled_from([1, 1, 1, 1, 2, 3]), st.sampled_from([0, 0, 0, 0, 1]),
                 st.sampled_from([0, 0, 0, 1, 2]), st.integers(1, 4), st.integers(0, 30))


def compare(plain: Plain, world: Any, steps: list[tuple[int, ...]], timeouts: list[int]) -> None:
    told: list[tuple[int, Any]] = []
    order = 0
    tickets: dict[int, Any] = {}
    plain.began, plain.last, plain.company = world.now, -2, True
    for key in (-1, -2):  # there is company
        world.endpoint.gate(0, 1, _core.Arrival(world.now, 10**18, key))
    for client, size, priority, timeout, times, choice in steps:
        rows = min(size, plain.batch)  # a larger one is in pieces, which go to where there is room
        for _ in range(times):
            order += 1
            limit = timeouts[timeout]
            body = json.dumps({
                "inputs": [{"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [order] * rows}],
                "parameters": {"priority": priority, "timeout": limit // 1000},
            }).encode()  # fmt: skip
            asked = Request(priority - 1 if priority else 7, world.now + limit if limit else NEVER, order, -client,
                            rows, len(body))
            reason, yields = plain.judge(asked, world.now)

            def done(ticket: Any, order: int = order) -> None:
                told.append((order, ticket.error))

            told.clear()
            refused = ""
            try:
                tickets[order] = world.endpoint.submit(0, body, -1, done, _core.Arrival(world.now, 0, -client))
            except OverloadedError as error:
                refused = error.reason
            else:
                plain.waiting.append(asked)
                plain.urgent += [(world.now, asked.rank, rows)] if asked.rank < 7 else []
            assert refused == reason
            world.turn()
            assert {number for number, _ in told} == {each.order for each in yields}
            assert all(isinstance(error, FairShareError) for _, error in told)
            plain.waiting = [each for each in plain.waiting if each not in yields]
        if choice == 0 and plain.waiting:
            gone = plain.waiting.pop(len(plain.waiting) // 2)
            tickets[gone.order].cancel()
        elif choice == 1:
            world.pass_time(RUN // 64)
    assert world.batcher.pending_rows == sum(each.rows for each in plain.waiting)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=30), st.sampled_from([1, 2, 4, 7]), st.integers(2, 6), st.booleans())
def test_what_there_is_no_time_for_is_refused_or_gives_way_as_plainly_thought(
    steps: list[tuple[int, ...]], batch: int, runs: int, alike: bool
) -> None:
    world = world_of(10, max_batch_size=batch)
    busy(world)
    limits = [runs * RUN + RUN // 2] * 3 if alike else [runs * RUN + RUN // 2, 3 * RUN, 6 * RUN]
    compare(Plain(world.now, batch), world, steps, limits)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=30), st.integers(6, 30), st.booleans())
def test_what_there_is_no_room_for_is_refused_or_gives_way_as_plainly_thought(
    steps: list[tuple[int, ...]], room: int, in_bytes: bool
) -> None:
    options = {"queue_bytes": room * 100} if in_bytes else {"queue_rows": room}
    world = world_of(10, **options)
    busy(world)
    compare(Plain(world.now, 4, **options), world, steps, [0, 0, 0])
