"""The compiled connection by itself: no socket, no loop; the test is the transport, the standard lane and the loop."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import chunked, message, parse_replies

from fastinfer import _core
from fastinfer.errors import CancelledError, FastinferError, QueueFullError, RuntimeFailedError

WIDE = _core.Signature([_core.Tensor("x", "FP32", (-1, -1))], [_core.Tensor("y", "FP32", (-1, -1))])
INFER = "/v2/models/m/infer"
KIB = 1024


class Loop:
    """What a batcher needs of a loop: runs what is due when the test says so."""

    def __init__(self) -> None:
        self.due: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        self.due.append((function, args))

    def turn(self) -> None:
        for _ in range(len(self.due)):
            function, args = self.due.popleft()
            function(*args)

    def settle(self) -> None:
        """All turns that are left: a large batch may leave the next one to another turn."""
        while self.due:
            self.turn()


class Server:
    """One model, y = x, and the lane that leads to it."""

    def __init__(
        self,
        run: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = np.copy,
        signature: _core.Signature = WIDE,
        queue_rows: int = 4096,
        **options: Any,
    ) -> None:
        self.loop = Loop()
        self.sizes: list[int] = []  # of the batches

        def counting(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
            self.sizes.append(len(arrays["x"]))
            return {"y": run(arrays["x"])}

        batcher = _core.Batcher(
            signature, counting, inline_budget_us=1_000_000, queue_rows=queue_rows
        )  # on the loop, whatever it costs
        batcher.attach(
            call_soon=self.loop.call_soon, call_later=None, call_soon_threadsafe=self.loop.call_soon, submit=None
        )
        for rows in (1, 64):
            batcher.seed(rows, 1000)
        self.endpoint = _core.Endpoint("m", "1", signature, batcher)
        self.lane = _core.Lane(b"made-", 64 << 20, **options)
        self.lane.tick(b"date: now\r\n")
        self.lane.open(_core.Routes([(self.endpoint, ["m/versions/1", "m"])]))


class Peer:
    """The protocol and the transport of one connection, and what reached them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.writes: list[bytes] = []
        self.fed: list[bytes] = []  # messages of the standard lane
        self.events: list[str] = []
        self.large: list[_core.Ticket] = []
        self.on_feed: Callable[[], None] = lambda: None
        self.on_write: Callable[[], None] = lambda: None
        self.wire = _core.Connection(self, server.lane)
        self.wire.attach(self)

    def send(self, data: bytes, *cuts: int) -> None:
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self.wire.data_received(data[start:stop])

    def statuses(self) -> list[int]:
        replies, rest = parse_replies(b"".join(self.writes))
        assert rest == b""
        return [reply.status for reply in replies]

    # the protocol
    def feed(self, data: bytes, is_head: bool) -> None:
        if is_head:
            self.fed.append(b"")
        self.fed[-1] += data
        self.on_feed()

    def refuse(self, error: FastinferError) -> None:
        self.events.append(f"refused {error.status}")
        self.wire.lost()

    def failure(self, error: Exception, request_id: bytes, close: bool, ticket: _core.Ticket) -> bytes:
        self.events.append(f"failed {type(error).__name__}")
        return b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"

    def encode_elsewhere(self, ticket: _core.Ticket) -> None:
        self.large.append(ticket)

    def refused(self, *context: Any) -> None: ...

    def left(self, ticket: _core.Ticket, request_id: bytes) -> None:
        self.events.append("left")

    def hold(self, held: bool) -> None:
        self.events.append("hold" if held else "go on")

    # the transport
    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.on_write()

    def close(self) -> None:
        self.events.append("close")

    def abort(self) -> None:
        self.events.append("abort")
        self.wire.lost()


def tensor(columns: int = 1, value: str = "1", rows: int = 1) -> bytes:
    data = ",".join([value] * (rows * columns))
    return f'{{"inputs":[{{"name":"x","shape":[{rows},{columns}],"datatype":"FP32","data":[{data}]}}]}}'.encode()


FAST = message(INFER, tensor())
STANDARD = message("/v2", None, method="GET")
LARGE = message(INFER, tensor(100_000))
CHUNKED = message("/v2/repository/index", b'{"ready":true}', chunks=[3])


# ---- framing ------------------------------------------------------------------------------------------------------
def converse(pieces: list[bytes], *, eager: bool) -> tuple[list[bytes], bytes, list[str]]:
    """What a connection does with a stream; the standard lane answers at once, or when nothing else happens."""
    server = Server()
    peer = Peer(server)
    answered = 0

    def answer() -> bool:
        nonlocal answered
        whole = [data for data in peer.fed if data in (STANDARD, CHUNKED)]
        if len(whole) == answered:
            return False
        answered += 1
        peer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        peer.wire.answered()
        return True

    for piece in pieces:
        peer.wire.data_received(piece)
        if eager:
            server.loop.turn()
            answer()
    while server.loop.due or answer():
        server.loop.turn()
    return peer.fed, b"".join(peer.writes).replace(b"made-", b""), peer.events


STREAM = FAST + STANDARD + FAST + CHUNKED + b"\r\n" + FAST + FAST + STANDARD + CHUNKED + FAST


def test_a_stream_of_both_lanes_at_every_cut() -> None:
    whole = converse([STREAM], eager=False)
    assert whole[0] == [STANDARD, CHUNKED, STANDARD, CHUNKED]
    statuses = [reply.status for reply in parse_replies(whole[1])[0]]
    assert statuses == [200, 204, 200, 204, 200, 200, 204, 204, 200]
    for eager in (False, True):
        assert converse([bytes([byte]) for byte in STREAM], eager=eager) == whole
        for cut in range(1, len(STREAM)):
            assert converse([STREAM[:cut], STREAM[cut:]], eager=eager) == whole


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12), st.booleans())
def test_a_stream_of_both_lanes_in_any_pieces(cuts: list[int], eager: bool) -> None:
    places = [0, *sorted(set(cuts)), len(STREAM)]
    pieces = [STREAM[start:stop] for start, stop in pairwise(places)]
    assert converse(pieces, eager=eager) == converse([STREAM], eager=False)


def test_a_message_is_handed_over_byte_for_byte() -> None:
    server = Server()
    peer = Peer(server)
    odd = b"\r\n\r\nPOST /%76?q HTTP/1.1\r\nhOST: \ta \r\nTransfer-Encoding: chunked\r\nA:\t\r\n\r\n"
    odd += chunked(b"hello", [2], b";ext=1", b"T: 1\r\n")
    peer.send(odd + STANDARD)
    assert peer.fed == [odd[4:]]
    peer.wire.answered()
    assert peer.fed == [odd[4:], STANDARD]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(
    st.sampled_from([FAST, STANDARD, CHUNKED, FAST[:-5], CHUNKED[:-9]]),
    st.sampled_from([b"\r\n", b"\r", b"\n", b"0\r\n\r\n", b"GET / HT"]),
    st.binary(max_size=30),
), max_size=8), st.lists(st.integers(1, 200), max_size=6))  # fmt: skip
def test_any_bytes_are_framed_or_refused(parts: list[bytes], sizes: list[int]) -> None:
    server = Server()
    peer = Peer(server)
    data = b"".join(parts)
    for size in sizes:
        peer.wire.data_received(data[:size])
        data = data[size:]
        server.loop.turn()
    peer.wire.data_received(data)
    for _ in range(20):
        server.loop.turn()
        peer.wire.answered()
    peer.statuses()
    assert sum(event.startswith("refused") for event in peer.events) <= 1
    peer.wire.lost()


# ---- a connection that ends in the middle -------------------------------------------------------------------------
@pytest.mark.parametrize("what", [STANDARD, CHUNKED, message("/v2", bytes(100_000))])
@pytest.mark.parametrize("waits", [False, True])
def test_it_may_be_lost_while_it_hands_over(what: bytes, waits: bool) -> None:
    """With `waits` the message lies in the connection's own memory, which goes with it."""
    server = Server()
    peer = Peer(server)
    peer.on_feed = peer.wire.lost
    peer.send((FAST if waits else b"") + what + FAST * 1000)
    server.loop.turn()
    assert len(peer.fed) == 1
    peer.wire.data_received(FAST)
    peer.wire.answered()
    peer.wire.writable(True)
    assert peer.wire.drain()
    assert len(peer.fed) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_it_may_be_lost_while_it_refuses(waits: bool) -> None:
    server = Server()
    peer = Peer(server)
    peer.send((FAST if waits else b"") + message("/v2", None, "Transfer-Encoding: chunked") + b"x" + FAST * 1000)
    server.loop.turn()
    assert peer.events[-1] == "refused 400"
    assert peer.statuses() == [200] * waits


def test_it_may_be_lost_while_it_writes() -> None:
    server = Server()
    peer, other = Peer(server), Peer(server)
    peer.on_write = peer.wire.lost
    peer.send(FAST * 100)
    other.send(FAST)
    server.loop.turn()
    assert len(peer.writes) == 1
    assert other.statuses() == [200]


def test_a_client_that_leaves_takes_its_requests_with_it() -> None:
    server = Server()
    peer, other = Peer(server), Peer(server)
    peer.send(FAST * 3 + STANDARD)
    other.send(FAST)
    peer.wire.lost()
    server.loop.turn()
    assert (peer.events, peer.writes) == (["left"] * 3, [])
    assert other.statuses() == [200]
    counters = server.endpoint.counters()
    assert (counters["cancelled"], counters["in_flight"], counters["fast"]) == (3, 0, 1)


@pytest.mark.parametrize("when", ["before its run", "while it runs", "when its answer is due", "while it is rendered"])
def test_what_a_client_leaves_behind_is_freed_without_the_collector(when: str) -> None:
    def batches() -> int:
        return sum(type(each).__name__ in ("Batch", "Slot", "Ticket") for each in gc.get_objects())

    def render(peer: Peer) -> None:
        peer.large[0].encode()

    gc.collect()
    gc.disable()
    try:
        before = batches()
        server = Server(lambda x: run(x))
        peer = Peer(server)

        def run(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            if when == "while it runs":
                peer.wire.lost()
            return x.copy()

        peer.send(LARGE)
        if when == "when its answer is due":
            peer.wire.writable(False)
        if when != "before its run":
            server.loop.turn()
        peer.wire.lost()
        server.loop.turn()
        while peer.large:
            thread = threading.Thread(target=render, args=(peer,))
            thread.start()
            thread.join()
            peer.wire.rendered(peer.large.pop(), None, CancelledError("late"))
        server.loop.turn()
        assert batches() == before
    finally:
        gc.enable()


def test_a_connection_that_fails_does_not_cost_the_others_their_answers() -> None:
    server = Server()
    before, broken, after = Peer(server), Peer(server), Peer(server)

    def fail() -> None:
        raise RuntimeError("the transport is broken")

    broken.on_write = fail
    for peer in (before, broken, after):
        peer.send(FAST)
    server.loop.turn()
    assert before.statuses() == after.statuses() == [200]
    assert broken.events == ["abort"]
    before.send(FAST)
    server.loop.turn()
    assert before.statuses() == [200, 200]


def test_an_answer_that_cannot_be_rendered_is_told() -> None:
    def run(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.full((len(x), 1), "\ud800", dtype=object)  # a lone surrogate is no text

    texts = _core.Signature(WIDE.inputs, [_core.Tensor("y", "BYTES", (-1, 1))])
    server = Server(run, texts)
    peer = Peer(server)
    peer.send(FAST + FAST)
    server.loop.turn()
    assert peer.statuses() == [500, 500]
    assert peer.events == ["failed InvalidOutputError"] * 2


def test_an_output_of_another_type_fails_the_run() -> None:
    server = Server(lambda x: x.astype(np.float64))
    peer = Peer(server)
    peer.send(FAST)
    server.loop.turn()
    assert peer.events == ["failed RuntimeFailedError"]


# ---- a client that sends no more ----------------------------------------------------------------------------------
def test_who_waits_behind_his_end_gets_what_he_asked_for() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST * 40 + STANDARD + FAST + CHUNKED)
    assert peer.wire.eof()
    server.loop.turn()
    server.loop.turn()
    assert (peer.fed, peer.events) == ([STANDARD], [])
    peer.wire.answered()
    server.loop.turn()
    assert (peer.fed, peer.events) == ([STANDARD, CHUNKED], [])
    peer.wire.answered()
    assert peer.events == ["close"]
    assert peer.statuses() == [200] * 41


@pytest.mark.parametrize("rest", [FAST[:-1], STANDARD[:-1], CHUNKED[:-1], message("/v2", bytes(9))[:-1], b"\r\n", b"G"])
def test_what_his_end_cuts_off_is_no_request(rest: bytes) -> None:
    server = Server()
    peer = Peer(server)
    peer.send(rest)
    assert not peer.wire.eof()
    behind = Peer(server)
    behind.send(FAST + rest)
    assert behind.wire.eof()
    server.loop.turn()
    assert behind.statuses() == [200]
    assert behind.events == ["close"]


def test_nobody_waits_behind_the_end_of_an_idle_or_lost_connection() -> None:
    server = Server()
    peer = Peer(server)
    assert not peer.wire.eof()
    other = Peer(server)
    other.send(FAST)
    other.wire.lost()
    assert not other.wire.eof()


def test_who_does_not_read_yet_is_not_cut_off_by_his_end() -> None:
    server = Server()
    peer = Peer(server)
    peer.wire.writable(False)
    peer.send(FAST)
    assert peer.wire.eof()
    assert peer.events == []
    peer.wire.writable(True)
    server.loop.turn()
    assert peer.statuses() == [200]
    assert peer.events == ["close"]


# ---- credentials --------------------------------------------------------------------------------------------------
KNOWN = {sha256(b"Bearer secret").digest(): 7, sha256(b"a key").digest(): 9}


def test_who_is_known_is_served_here_under_his_identity() -> None:
    server = Server()
    server.lane.credentials.set(KNOWN)
    peer = Peer(server)
    for field in ("AUTHORIZATION: \tBearer secret ", "X-API-Key: a key", "x-api-key:a key"):
        peer.send(message(INFER, tensor(100_000), field))
        server.loop.turn()
        ticket = peer.large.pop()
        assert ticket.identity == (7 if "secret" in field else 9)
        peer.wire.rendered(ticket, ticket.encode(), None)
    assert (peer.statuses(), peer.fed) == ([200] * 3, [])


def test_who_is_known_once_is_not_taken_for_another() -> None:
    server = Server()
    server.lane.credentials.set(KNOWN)
    peer = Peer(server)
    good = message(INFER, tensor(), "X-API-Key: a key")
    bad = [message(INFER, tensor(), f"X-API-Key: {key}") for key in ("a kez", "a ke", "a key2", "")]
    for each in bad:
        peer.send(good * 2 + each)
        server.loop.turn()
        assert peer.fed.pop() == each
        peer.wire.answered()
    assert peer.statuses() == [200] * 8


@pytest.mark.parametrize("fields", [
    (), ("Authorization: Bearer other",), ("X-API-Key:",), ("Authorization: bearer secret",),
    ("Authorization: Bearer secret", "X-API-Key: a key"), ("X-API-Key: a key", "X-API-Key: a key"),
    ("Authorization: Bearer  secret",), ("X-API-Keys: a key",),
])  # fmt: skip
def test_who_is_not_known_is_for_the_standard_lane(fields: tuple[str, ...]) -> None:
    server = Server()
    server.lane.credentials.set(KNOWN)
    peer = Peer(server)
    request = message(INFER, tensor(), *fields)
    peer.send(request)
    assert peer.fed == [request]


def test_credentials_come_and_go() -> None:
    server = Server()
    peer = Peer(server)
    request = message(INFER, tensor(), "X-API-Key: a key")
    other = {sha256(b"b").digest(): 1}
    for known, fast in (
        ({}, True),
        (other, False),
        (KNOWN, True),
        (KNOWN, True),
        (other, False),
        (KNOWN, True),
        ({}, True),
    ):
        server.lane.credentials.set(known)
        before = len(peer.statuses())
        peer.send(request)
        server.loop.turn()
        assert (len(peer.statuses()) > before) == fast
        if not fast:
            assert peer.fed.pop() == request
            peer.wire.answered()
    for wrong in ({b"short": 1}, {sha256(b"b").digest(): 0}, {sha256(b"b").digest(): "1"}, {"x" * 32: 1}):
        with pytest.raises(ValueError, match="identities by SHA-256"):
            server.lane.credentials.set(wrong)  # type: ignore[arg-type]


# ---- what is counted ----------------------------------------------------------------------------------------------
def test_a_request_that_a_full_queue_refuses_is_counted_once() -> None:
    server = Server(queue_rows=1)
    peer, other = Peer(server), Peer(server)
    peer.send(FAST)
    other.send(FAST)
    assert other.fed == []
    assert other.statuses() == [503]
    assert server.endpoint.counters()["refused"] == 1
    with pytest.raises(QueueFullError):
        server.endpoint.submit(0, tensor(), -1, lambda ticket: None)
    with pytest.raises(QueueFullError):
        server.endpoint.submit_decoded(server.endpoint.decode(0, tensor(), -1), lambda ticket: None)
    assert server.endpoint.counters()["refused"] == 3
    server.loop.turn()
    assert peer.statuses() == [200]


# ---- heads that were read before ----------------------------------------------------------------------------------
def body_of(size: int) -> bytes:
    body = tensor()
    return body + b" " * (size - len(body))


def with_length(length: bytes, body: bytes, *, more: bytes = b"") -> bytes:
    head = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n" + more + b"\r\n"
    return head + body


def test_a_head_that_differs_in_its_length_only_is_served_alike() -> None:
    server = Server()
    peer = Peer(server)
    for size in (100, 120, 999, 1000, 99_999, 100):
        peer.send(with_length(b"%d" % size, body_of(size)) + with_length(b"%05d" % size, body_of(size)))
    peer.send(with_length(b"100", body_of(100)), 60, 170)  # in pieces
    server.loop.turn()
    assert peer.statuses() == [200] * 13
    assert peer.fed == []


@pytest.mark.parametrize(
    "length",
    [b"100x", b"+100", b"1 00", b"", b"0x64", b"100, 100", b"99999999999999999999", b"100\r\nContent-Length: 100",
     b"100\r\nTransfer-Encoding: chunked", b"100\n", b"100\r", b"\x00100", b"100\r\nHost: b", b"100\r\nX: \x01"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("more", [b"", b"Accept: */*\r\n"], ids=["last", "not last"])
def test_a_head_that_was_good_does_not_excuse_the_next(length: bytes, more: bytes) -> None:
    fresh, used = Peer(Server()), Peer(Server())
    for _ in range(3):
        used.send(with_length(b"100", body_of(100), more=more))
        used.server.loop.turn()
    used.writes.clear()
    for peer in (fresh, used):
        peer.send(with_length(length, body_of(100), more=more))
        peer.server.loop.turn()
    assert used.events == fresh.events == ["refused 400"]
    assert used.writes == fresh.writes == []


def test_what_a_head_said_is_remembered_with_it() -> None:
    server = Server()
    for _ in range(2):  # the second time from the first client's head
        peer = Peer(server)
        peer.send(with_length(b"100", body_of(100), more=b"Connection: close\r\nPrefer: server-timing\r\n"))
        server.loop.turn()
        replies, _ = parse_replies(b"".join(peer.writes))
        assert replies[0].field(b"connection") == b"close"
        assert replies[0].field(b"server-timing") is not None
        assert peer.events == ["close"]


def test_a_body_of_no_length_goes_to_the_standard_lane_whatever_came_before() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(with_length(b"100", body_of(100)))
    server.loop.turn()
    peer.send(with_length(b"0", b""))
    assert peer.fed == [with_length(b"0", b"")]


def test_a_bad_body_under_a_known_head_is_told_by_the_standard_lane() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(with_length(b"100", body_of(100)))
    server.loop.turn()
    bad = with_length(b"100", b"{" * 100)
    peer.send(bad)
    assert peer.fed == [bad]


def test_a_known_head_leads_to_what_is_served_now() -> None:
    server, other = Server(), Server(lambda x: x + 1)
    peer = Peer(server)
    for _ in range(2):
        peer.send(FAST)
        server.loop.turn()
    server.lane.open(_core.Routes([(other.endpoint, ["m/versions/1", "m"])]))
    peer.send(FAST)
    server.loop.turn()
    other.loop.turn()
    assert b'"data":[2.0]' in peer.writes[-1]
    server.lane.close()
    peer.send(FAST)
    assert peer.fed == [FAST]


def test_a_known_head_is_anonymous_only_while_everybody_is() -> None:
    server = Server()
    peer = Peer(server)
    for _ in range(2):
        peer.send(FAST)
        server.loop.turn()
    server.lane.credentials.set(KNOWN)
    peer.send(FAST)
    assert peer.fed == [FAST]


def test_many_clients_with_heads_of_their_own_are_served() -> None:
    server = Server()
    peers = [Peer(server) for _ in range(40)]
    for turn in range(3):
        for number, peer in enumerate(peers):
            peer.send(with_length(b"100", body_of(100), more=b"X-Client: %d\r\n" % (number * (turn + 1))))
        server.loop.turn()
    assert all(peer.statuses() == [200] * 3 for peer in peers)


# ---- order --------------------------------------------------------------------------------------------------------
def test_nothing_is_served_after_a_fault() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST + b"nonsense\r\n\r\n" + FAST)
    peer.send(FAST)
    assert peer.events == []  # the answer that is due comes first
    server.loop.turn()
    assert peer.statuses() == [200]
    assert peer.events == ["refused 400"]


def test_nothing_is_served_after_a_request_that_closes() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST + message(INFER, tensor(), "Connection: close") + FAST)
    peer.send(STANDARD)
    server.loop.turn()
    peer.wire.writable(True)
    server.loop.turn()
    replies, _ = parse_replies(b"".join(peer.writes))
    assert [reply.field(b"connection") for reply in replies] == [None, b"close"]
    assert (peer.events, peer.fed) == (["close"], [])


def test_the_last_answer_of_a_server_that_leaves_says_so_and_is_the_last() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST * 40)
    assert not peer.wire.drain()
    server.loop.turn()
    peer.wire.writable(False)
    peer.wire.writable(True)
    server.loop.turn()
    replies, _ = parse_replies(b"".join(peer.writes))
    assert [reply.field(b"connection") for reply in replies] == [None] * 31 + [b"close"]
    assert peer.events == ["close"]


def test_a_request_at_fault_waits_for_its_turn_in_the_standard_lane() -> None:
    server = Server()
    peer = Peer(server)
    bad = message(INFER, b"{")
    peer.send(FAST + bad + FAST)
    assert peer.fed == []
    server.loop.turn()
    assert peer.fed == [bad]
    assert peer.statuses() == [200]
    peer.wire.answered()
    server.loop.turn()
    assert peer.statuses() == [200, 200]


# ---- bounds -------------------------------------------------------------------------------------------------------
def test_32_requests_are_in_flight() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST * 100)
    assert server.endpoint.counters()["in_flight"] == 32
    server.loop.turn()
    assert server.sizes == [32, 32, 32, 4]
    assert len(peer.statuses()) == 100
    assert len(peer.writes) == 4


def test_reading_stops_while_much_waits_behind_answers() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST * 40)
    assert peer.events == []
    peer.send(FAST * 1000)
    assert peer.events == ["hold"]
    server.loop.settle()
    assert peer.events == ["hold", "go on"]
    assert len(peer.statuses()) == 1040


def test_a_body_for_the_standard_lane_does_not_pile_up_behind_a_fast_answer() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST + message("/v2", None, "Transfer-Encoding: chunked"))
    for _ in range(2):
        peer.send(b"8000\r\n" + bytes(0x8000) + b"\r\n")
    assert peer.events == ["hold"]
    server.loop.turn()
    assert peer.events == ["hold", "go on"]
    assert len(peer.fed[0]) > 64 * KIB


def test_a_write_is_bounded() -> None:
    server = Server()
    peer = Peer(server)
    one = message(INFER, tensor(20_000))
    peer.send(one * 20)
    server.loop.turn()
    assert len(peer.statuses()) == 20
    answer = len(b"".join(peer.writes)) // 20
    assert 1 < len(peer.writes) < 20
    assert max(map(len, peer.writes)) <= 256 * KIB + answer


def test_a_large_answer_is_rendered_elsewhere_and_those_behind_it_wait() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST + LARGE + FAST)
    server.loop.settle()
    assert peer.statuses() == [200]
    (ticket,) = peer.large
    peer.send(FAST)
    server.loop.turn()
    assert len(peer.large) == 1
    peer.wire.rendered(ticket, ticket.encode(), None)
    assert peer.statuses() == [200] * 4
    assert server.endpoint.counters()["fast"] == 4


def test_a_large_answer_that_fails_elsewhere_is_told() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(LARGE + FAST)
    server.loop.settle()
    peer.wire.rendered(peer.large[0], None, RuntimeFailedError("no"))
    assert peer.statuses() == [500, 200]
    assert peer.events == ["failed RuntimeFailedError"]


def test_a_large_answer_whose_client_left_is_dropped() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(LARGE + FAST)
    server.loop.settle()
    peer.wire.lost()
    peer.wire.rendered(peer.large[0], peer.large[0].encode(), None)
    assert peer.writes == []


def test_a_client_that_does_not_read_is_begun_nothing_for() -> None:
    server = Server()
    peer = Peer(server)
    peer.on_write = lambda: peer.wire.writable(False)
    peer.send(LARGE + FAST)
    server.loop.settle()
    peer.wire.writable(False)
    ticket = peer.large.pop()
    peer.send(LARGE + FAST)
    assert server.endpoint.counters()["in_flight"] == 0
    peer.wire.rendered(ticket, ticket.encode(), None)
    assert peer.statuses() == [200, 200]
    for _ in range(3):
        peer.wire.writable(True)
        server.loop.settle()
        for ticket in peer.large:
            peer.wire.rendered(ticket, ticket.encode(), None)
        peer.large.clear()
    assert peer.statuses() == [200] * 4


def test_a_transport_may_say_at_once_that_it_is_full_and_empty_again() -> None:
    server = Server()
    peer = Peer(server)

    def full_and_empty() -> None:
        peer.wire.writable(False)
        peer.wire.writable(True)

    peer.on_write = full_and_empty
    ids = [str(i) for i in range(200)]
    peer.send(b"".join(message(INFER, tensor(20_000), f"X-Request-ID: {name}") for name in ids))
    server.loop.settle()
    replies, _ = parse_replies(b"".join(peer.writes))
    assert [reply.field(b"x-request-id") for reply in replies] == [name.encode() for name in ids]


# ---- clocks -------------------------------------------------------------------------------------------------------
def ago(nanoseconds: int) -> float:
    return time.monotonic() - nanoseconds / 1e9


def test_a_head_s_clock_runs_from_its_first_byte() -> None:
    peer = Peer(Server())
    assert peer.wire.head_since == 0
    assert ago(peer.wire.idle_since) < 0.1
    peer.send(b"GET")
    began = peer.wire.head_since
    assert ago(began) < 0.1
    peer.send(b" / HTTP")
    assert peer.wire.head_since == began
    assert peer.wire.idle_since == 0
    peer.send(b"/1.1\r\nHost: t\r\n\r\n")
    assert peer.wire.head_since == 0
    assert peer.wire.idle_since == 0  # an answer is due
    peer.wire.answered()
    assert ago(peer.wire.idle_since) < 0.1


@pytest.mark.parametrize("behind", [b"GET / HTTP", STANDARD, CHUNKED[:-20], FAST[:-10], message(INFER, b"{")])
def test_no_clock_runs_against_a_client_whose_answer_is_due(behind: bytes) -> None:
    server = Server()
    peer = Peer(server)
    peer.send(FAST + behind)
    assert (peer.wire.head_since, peer.wire.body_since, peer.wire.idle_since) == (0, 0, 0)


def test_the_clocks_of_what_waited_start_when_it_is_looked_at() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(STANDARD + CHUNKED[:-20])
    time.sleep(0.2)
    peer.wire.answered()
    assert len(peer.fed) == 2
    assert ago(peer.wire.body_since) < 0.1
    peer.send(CHUNKED[-20:] + b"GET /")
    time.sleep(0.2)
    peer.wire.answered()
    assert peer.wire.body_since == 0
    assert ago(peer.wire.head_since) < 0.1


def test_a_body_s_clock_and_bytes() -> None:
    for request in (message(INFER, tensor(1000)), message("/v2", bytes(2000))):
        peer = Peer(Server())
        head = request.index(b"\r\n\r\n") + 4
        peer.send(request[: head + 100])
        assert ago(peer.wire.body_since) < 0.1
        assert peer.wire.body_bytes == 100
        peer.send(request[head + 100 : head + 300])
        assert peer.wire.body_bytes == 300
        peer.send(request[head + 300 :])
        assert peer.wire.body_since == 0


def test_idle_counts_from_the_end_of_a_body_that_was_answered_before() -> None:
    peer = Peer(Server())
    request = message("/v2", bytes(100))
    peer.send(request[:-10])
    peer.wire.answered()
    assert peer.wire.idle_since == 0
    time.sleep(0.2)
    peer.send(request[-10:])
    assert ago(peer.wire.idle_since) < 0.1


def test_a_client_that_does_not_read_is_not_idle() -> None:
    peer = Peer(Server())
    peer.wire.writable(False)
    assert peer.wire.idle_since == 0
    peer.wire.writable(True)
    assert peer.wire.idle_since > 0


def test_the_answer_s_bytes() -> None:
    server = Server()
    peer = Peer(server)
    peer.send(message(INFER, tensor(2), "X-Request-ID: mine") + message(INFER, tensor(2)))
    server.loop.turn()
    output = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}
    answer = {"model_name": "m", "model_version": "1", "outputs": [output]}
    body = json.dumps(answer, separators=(",", ":")).encode()
    lines = "HTTP/1.1 200 OK", "date: now", "content-type: application/json", "x-request-id: %s", "content-length: %d"
    head = "\r\n".join([*lines, "", ""]).encode()
    assert b"".join(peer.writes) == b"".join(head % (name, len(body)) + body for name in (b"mine", b"made-1"))
