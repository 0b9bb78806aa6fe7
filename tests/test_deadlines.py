"""Deadlines and priorities, on a clock that stands still until the test moves it: who runs, when, and who does not."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import message, parse_replies
from world import MS, RAGGED, World, busy, clock

from fastinfer import _core
from fastinfer.errors import (
    CancelledError,
    DeadlineUnreachableError,
    ExpiredError,
    FastinferError,
    InvalidParameterError,
    RuntimeFailedError,
)

__all__ = ["clock"]  # holds and lets go of the core's clocks around every test


def test_the_earliest_deadline_goes_first() -> None:
    world = World(max_batch_size=2)
    busy(world)
    for tag, timeout in [(1, 90), (2, 30), (3, 0), (4, 60), (5, 10)]:
        world.send(tag, timeout=timeout * 1000)
    world.drain()
    assert world.batches == [[0.5], [5, 2], [4, 1], [3]]


def test_a_higher_level_goes_first_whatever_its_deadline() -> None:
    world = World(max_batch_size=3)
    busy(world)
    for tag, priority in [(1, 0), (2, 7), (3, 1), (4, 2), (5, 1), (6, 8), (7, 2**64 - 1)]:
        world.send(tag, timeout=(100 - tag) * 1000, priority=priority)
    world.drain()
    assert world.batches == [[0.5], [5, 3, 4], [2, 7, 6], [1]]


def test_requests_without_deadline_or_priority_keep_the_order_of_arrival() -> None:
    world = World()
    busy(world)
    for tag in range(1, 11):
        world.send(tag)
    world.drain()
    assert world.batches == [[0.5], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_rows_of_other_dimensions_do_not_ride_along() -> None:
    world = World(RAGGED)
    busy(world)
    for tag, columns, timeout in [(1, 2, 50), (2, 3, 40), (3, 2, 30), (4, 3, 20), (5, 2, 60)]:
        world.send(tag, columns=columns, timeout=timeout * 1000)
    world.drain()
    assert [sorted(batch) for batch in world.batches] == [[0.5], [2, 4], [1, 3, 5]]
    assert not world.failures()


@pytest.mark.parametrize("split", [1, 3, 9])
def test_what_expires_in_the_queue_does_not_run(split: int) -> None:
    world = World(slo_ms=50)
    busy(world)
    world.send(1, split, timeout=20_000)
    world.send(2)
    world.pass_time(30 * MS)  # told while the run still takes its time
    assert world.failures() == {1: ExpiredError}
    assert world.batcher.pending_rows == 1
    world.finish_run()
    world.drain()
    assert world.batches == [[0.5], [2]]
    assert world.answered == [1, 0.5, 2]
    assert (world.counted("expired"), world.counted("goodput"), world.counted("late")) == (1, 2, 0)
    assert world.batcher.idle


def test_no_batch_starts_with_a_request_past_its_deadline() -> None:
    """Not even where no timer has said so: the loop may have been held."""
    world = World(inline=True)
    world.send(1, timeout=10_000)
    world.send(2, timeout=30_000)
    world.send(3)
    world.set(world.now + 10 * MS)
    world.turn()
    assert world.batches == [[2, 3]]
    assert world.failures() == {1: ExpiredError}
    assert world.counted("overdue_batches") == 0


def test_a_thread_that_starts_so_late_that_a_deadline_has_passed_is_counted() -> None:
    world = World()
    for tag, late in [(1, 1), (2, 11)]:
        world.send(tag, timeout=10_000)
        world.turn()
        world.finish_run(late * MS)  # it begins and ends then
    assert (world.counted("batches"), world.counted("overdue_batches")) == (2, 1)


def test_what_finishes_late_is_answered_and_counted() -> None:
    world = World()
    world.send(1, timeout=10_000)
    world.turn()
    world.finish_run(11 * MS)
    assert world.told == [(1, 2.0)]
    assert (world.counted("late"), world.counted("goodput"), world.counted("admitted")) == (1, 0, 1)


@pytest.mark.parametrize(("slo", "head", "timeout", "least"), [
    (50, 0, 0, 50), (50, 30 * MS, 0, 30), (50, 70 * MS, 0, 50), (50, 30 * MS, 20_000, 20), (50, 30 * MS, 90_000, 30),
    (0, 30 * MS, 0, 30), (0, 0, 20_000, 20), (50, 0, -5, 50), (50, 10**18, 2**62, 50),
])  # fmt: skip
def test_the_smallest_time_counts(slo: int, head: int, timeout: int, least: int) -> None:
    for elapsed, runs in [(least * MS - 1, True), (least * MS, False)]:
        world = World(slo_ms=slo)
        world.send(1, head=head, timeout=timeout)
        world.set(world.now + elapsed)
        world.turn()
        assert bool(world.runs) == runs


@pytest.mark.parametrize("timeout", [0, -1, -(2**63) + 1, 2**63 - 1])
def test_no_timeout_is_no_deadline(timeout: int) -> None:
    world = World()
    world.send(1, timeout=timeout)
    world.set(world.now + 10**17)
    world.turn()
    assert len(world.runs) == 1


@pytest.mark.parametrize(("text", "nanoseconds"), [
    ("2", 2 * 10**9), ("0.25", 250 * MS), ("0", 0), ("-3", 0), ("-0.5", 0), ("0.000000001", 1), ("0.0000000001", 1),
    ("007.5", 7_500 * MS), ("9" * 40, 10**18), ("0.0", 0),
])  # fmt: skip
def test_seconds_are_read_exactly(text: str, nanoseconds: int) -> None:
    assert _core.request_timeout([text.encode()]) == nanoseconds


@pytest.mark.parametrize(
    "text", ["", "soon", "1e3", "1.", ".5", "+1", "--1", "1 s", "1,5", "inf", "nan", "0x1", "1\xb2"]
)
def test_what_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="X-Request-Timeout takes"):
        _core.request_timeout([b"1", text.encode("latin-1")])


def test_the_least_of_several_fields_counts() -> None:
    assert _core.request_timeout([b"3", b"0", b"0.5", b"-1", b"2"]) == 500 * MS


class Peer:
    """The protocol and the transport of a connection."""

    def __init__(self, world: World, lane: _core.Lane) -> None:
        self.written = b""
        self.gone = 0
        self.holds: list[bool] = []
        self.wire = _core.Connection(self, lane)
        self.fed = b""
        self.wire.attach(self)

    def write(self, data: bytes) -> None:
        self.written += data

    def feed(self, data: bytes, is_head: bool) -> None:
        self.fed += data

    def failure(self, error: FastinferError, request_id: bytes, close: bool, ticket: _core.Ticket) -> bytes:
        return b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % error.status

    def hold(self, held: bool) -> None:
        self.holds.append(held)

    def refused(self, *context: Any) -> None: ...

    def left(self, ticket: _core.Ticket, request_id: bytes) -> None:
        self.gone += 1


def lane_to(world: World) -> _core.Lane:
    lane = _core.Lane(b"made-", 64 << 20)
    lane.tick(b"date: now\r\n")
    lane.open(_core.Routes([(world.endpoint, [f"{world.endpoint.name}/versions/1", world.endpoint.name])]))
    return lane


BODY = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[7]}]}'


@pytest.mark.parametrize("cut", [1, 30, 100, 180])
def test_time_counts_from_the_first_byte_on_the_fast_lane(cut: int) -> None:
    world = World()
    lane = lane_to(world)
    peer = Peer(world, lane)
    data = message("/v2/models/m/infer", BODY, "X-Request-Timeout: 0.050", "x-request-timeout: 3")
    peer.wire.data_received(data[:cut])
    world.pass_time(30 * MS)
    peer.wire.data_received(data[cut:])
    world.pass_time(20 * MS - 1)
    assert len(world.runs) == 1
    late = Peer(world, lane)
    late.wire.data_received(data[:cut])
    world.set(world.now + 50 * MS)
    late.wire.data_received(data[cut:])
    world.finish_run()
    world.drain()
    assert [reply.status for reply in parse_replies(peer.written)[0]] == [200]
    assert [reply.status for reply in parse_replies(late.written)[0]] == [503]


def test_a_time_that_is_no_number_goes_to_the_standard_lane() -> None:
    world = World()
    peer = Peer(world, lane_to(world))
    peer.wire.data_received(message("/v2/models/m/infer", BODY, "X-Request-Timeout: soon"))
    assert peer.fed.endswith(BODY)
    assert not world.batcher.pending_rows


def test_a_pipelined_request_keeps_the_time_of_its_read() -> None:
    """What waits behind the standard lane's answer has arrived when it was read, not when its turn came."""
    world = World()
    peer = Peer(world, lane_to(world))
    peer.wire.data_received(message("/v2", None, method="GET"))
    for _ in range(40):  # more reads than are told apart
        peer.wire.data_received(message("/v2/models/m/infer", BODY, "X-Request-Timeout: 0.02"))
        world.set(world.now + 10 * MS)
    peer.wire.answered()
    world.drain()
    statuses = [reply.status for reply in parse_replies(peer.written)[0]]
    assert set(statuses[:20]) == {503}
    assert statuses[-1] == 200


def test_who_leaves_makes_room_at_once() -> None:
    world = World()
    busy(world)
    tickets = [world.send(tag, rows) for tag, rows in [(1, 3), (2, 9), (3, 1)]]
    assert world.batcher.pending_rows == 13
    tickets[1].cancel()
    assert world.batcher.pending_rows == 4
    world.drain()
    assert world.batches == [[0.5], [1, 1, 1, 3]]
    with pytest.raises(CancelledError):
        tickets[1].encode()


def test_who_leaves_between_the_run_and_the_answer_is_counted_as_cancelled_once() -> None:
    world = World()
    body = b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}'
    gone, answered = (world.endpoint.submit(0, body, -1, lambda _: None, _core.Arrival(world.now)) for _ in range(2))
    world.drain()
    answered.encode()
    for _ in range(2):
        gone.cancel()
        answered.cancel()
    assert world.counted("cancelled") == 1
    assert world.counted("goodput") == 1


def test_what_of_a_pipeline_has_run_and_waits_for_its_turn_is_counted_once_when_the_client_leaves() -> None:
    world = World(instances=2, max_batch_size=1)
    peer = Peer(world, lane_to(world))
    peer.wire.data_received(2 * message("/v2/models/m/infer", BODY))
    world.turn()
    work, args = world.runs.pop()  # the second is done first, and its answer has to wait
    work(*args)
    world.turn()
    assert peer.written == b""
    peer.wire.lost()
    world.drain()
    assert peer.gone == 2
    counts = world.endpoint.counters()
    assert (counts["admitted"], counts["cancelled"], counts["goodput"], counts["in_flight"]) == (2, 2, 0, 0)


def test_a_client_of_the_standard_lane_leaves_with_its_connection() -> None:
    world = World()
    busy(world)
    peer = Peer(world, lane_to(world))
    body = BODY.replace(b"7", b"9")
    peer.wire.data_received(message("/v2/models/m/infer", body, "Expect: 100-continue"))
    world.endpoint.submit(0, body, -1, lambda ticket: None, peer.wire.arrived(0))
    world.send(1)
    peer.wire.lost()
    assert world.batcher.pending_rows == 1
    world.drain()
    assert world.batches == [[0.5], [1]]
    assert world.counted("cancelled") == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([1, 1, 1, 2, 3, 5, 9]), st.sampled_from([0, 0, 5, 10, 40]),
                  st.sampled_from([0, 0, 0, 1, 2, 7]), st.sampled_from([1, 1, 2])),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("pass"), st.sampled_from([0, 1, 4, 12])),
        st.tuples(st.just("complete"), st.just(0)),
        st.tuples(st.just("fail"), st.integers(0, 20)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=60,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([0, 15]), st.sampled_from([1, 3]), st.booleans(), st.sampled_from([0, 3000]))
def test_every_history_answers_each_request_once(
    steps: list[Any], slo: int, instances: int, inline: bool, delay: int
) -> None:
    world = World(RAGGED, slo_ms=slo, instances=instances, inline=inline, max_delay_us=delay)
    sent: dict[float, _core.Ticket] = {}
    cancelled: set[float] = set()
    turned_away = 0
    for step in steps:
        if step[0] == "send":
            tag = float(len(sent) + turned_away + 1)
            try:
                sent[tag] = world.send(tag, step[1], timeout=step[2] * 1000, priority=step[3], columns=step[4])
            except DeadlineUnreachableError:
                assert step[2] or slo
                turned_away += 1
        elif step[0] == "cancel" and sent:
            tag = sorted(sent)[step[1] % len(sent)]
            if tag not in world.answered:
                sent[tag].cancel()
                cancelled.add(tag)
        elif step[0] == "pass":
            world.pass_time(step[1] * MS)
        elif step[0] == "complete" and world.runs:
            world.finish_run(3 * MS)
        elif step[0] == "fail" and sent:
            world.fails.add(sorted(sent)[step[1] % len(sent)])
        else:
            world.turn()
    world.pass_time(5 * MS)
    world.drain()
    world.pass_time(5 * MS)
    world.drain()
    assert sorted(world.answered) == sorted(set(sent) - cancelled)
    failures = world.failures()
    timed = slo or any(step[0] == "send" and step[2] for step in steps)
    for tag, kind in failures.items():
        assert timed if kind is ExpiredError else kind is RuntimeFailedError and tag in world.fails
    assert world.batcher.idle
    assert world.batcher.pending_rows == 0
    assert world.counted("in_flight") == 0
    assert world.counted("admitted") == len(sent)
    assert all(len(rows) <= 4 for rows in world.batches)


def test_a_long_random_history() -> None:
    """More, and longer, histories than the property test tries."""
    rng = random.Random(7)
    for _ in range(40):
        size, instances = rng.choice([1, 4, 7]), rng.choice([1, 2])
        world = World(RAGGED, slo_ms=rng.choice([0, 20]), max_batch_size=size, instances=instances)
        sent = 0
        for _ in range(250):
            what = rng.random()
            if what < 0.6:
                try:
                    world.send(sent + 1.0, rng.choice([1, 1, 2, 5, 20]), timeout=rng.choice([0, 3000, 30_000]),
                               priority=rng.choice([0, 0, 1, 3]), columns=rng.choice([1, 2]))  # fmt: skip
                    sent += 1
                except DeadlineUnreachableError:
                    pass
            elif what < 0.8:
                world.pass_time(rng.choice([0, MS, 5 * MS]))
            elif world.runs:
                world.finish_run(rng.choice([0, MS]))
        world.drain()
        assert sorted(world.answered) == [float(tag) for tag in range(1, sent + 1)]
        assert world.batcher.idle


def test_a_failed_batch_is_not_run_again_for_who_is_past_its_deadline() -> None:
    world = World()
    world.fails = {2.0}
    for tag, timeout in ((1, 0), (2, 0), (3, 5_000), (4, 0)):
        world.send(tag, timeout=timeout)
    world.turn()
    world.finish_run(6 * MS)  # it fails, and the third has no time left
    world.drain()
    assert world.failures() == {2: RuntimeFailedError, 3: ExpiredError}
    assert sorted(tag for batch in world.batches for tag in batch) == [1, 4]
    assert world.counted("expired") == 1


@pytest.mark.skipif(not _core.CHECKED, reason="rows have tags in a checked build")
@pytest.mark.parametrize("failing", [False, True])
def test_rows_of_another_request_are_noticed_in_a_checked_build(failing: bool) -> None:
    def answers() -> list[Any]:
        world = World()
        world.fails = {3.0} if failing else set()
        for tag in range(4):
            world.send(tag, rows=2 if tag == 1 else 1)
        world.drain()
        return sorted((tag, what) for tag, what in world.told if not isinstance(what, RuntimeFailedError))

    right = answers()
    assert right == [(tag, 2 * tag) for tag in range(3 if failing else 4)]
    _core.mix_answers(True)
    try:
        world = World(max_batch_size=2)
        for tag in range(2):
            world.send(tag)
        with pytest.raises(AssertionError, match="rows that are not its own"):
            world.drain()
    finally:
        _core.mix_answers(False)
    assert answers() == right


@pytest.mark.skipif(_core.CHECKED, reason="a checked build does")
def test_a_released_build_mixes_nothing() -> None:
    with pytest.raises(ValueError, match="only a checked build"):
        _core.mix_answers(True)
