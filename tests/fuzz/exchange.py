"""A stream of bytes on a compiled connection, played with the standard lane, the transport and the loop made here.

What is checked, whatever the bytes and however they are cut: each message is answered once and in order, by the fast
lane as the decoder and encoder themselves would, or handed to the standard lane byte for byte; a fault is refused as
the plain twin says, and nothing behind it is served; what waits is bounded; nothing is left in flight.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from wire import parse_replies

from fastinfer import _core
from fastinfer.errors import FastinferError
from fuzz.framing import Message, Stream, read_stream

WIDE = _core.Signature([_core.Tensor("x", "FP32", (-1, -1))], [_core.Tensor("y", "FP32", (-1, -1))])
ENCODER = _core.Encoder("m", "1", WIDE)
STASH = 64 * 1024  # bytes that wait before reading does
FAST_BODY = 256 * 1024
HEAD = 32 * 1024
IN_FLIGHT = 32
PATHS = {f"/v{v}/models/m{version}{call}".encode(): v == 1
         for v, call in ((2, "/infer"), (1, ":predict")) for version in ("", "/versions/1")}  # fmt: skip


class Server:
    """One model, y = x, the lane that leads to it, and a loop that turns when it is told to."""

    def __init__(self) -> None:
        self.due: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        batcher = _core.Batcher(WIDE, lambda arrays: {"y": arrays["x"].copy()}, inline_budget_us=1 << 40)
        batcher.attach(call_soon=self.call_soon, call_later=None, call_soon_threadsafe=self.call_soon, submit=None)
        for rows in (1, 64):
            batcher.seed(rows, 1000)
        self.endpoint = _core.Endpoint("m", "1", WIDE, batcher)
        self.lane = _core.Lane(b"made-", 64 << 20)
        self.lane.tick(b"date: now\r\n")
        self.renew()

    def renew(self) -> None:
        """Forget what was learned from earlier streams."""
        self.lane.open(_core.Routes([(self.endpoint, ["m/versions/1", "m"])]))

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        self.due.append((function, args))

    def turn(self) -> bool:
        """Run what is due; whether anything was."""
        for _ in range(count := len(self.due)):
            function, args = self.due.popleft()
            function(*args)
        return count > 0


class Peer:
    """The protocol and the transport of one connection."""

    def __init__(self, server: Server, data: bytes, expected: Stream, *, early: bool) -> None:
        self.data = data
        self.expected = expected
        self.early = early  # the standard lane answers when it has the head
        self.answered = 0
        self.replied = True  # the message that was handed over last
        self.fed: bytes | None = None
        self.large: list[_core.Ticket] = []
        self.status: int | None = None
        self.closed = self.held = self.gone = self.stalled = self.ended = False
        self.wire = _core.Connection(self, server.lane)
        self.wire.attach(self)

    @property
    def served_to(self) -> int:
        """Where in the stream the next byte lies that nobody has had."""
        messages = self.expected.messages
        start = messages[self.answered].start if self.answered < len(messages) else self.expected.rest
        return start + len(self.fed or b"")

    def due(self) -> bytes:
        """The message whose turn it is; of the last, what there is of it."""
        messages = self.expected.messages
        if self.answered < len(messages):
            return self.data[messages[self.answered].start : messages[self.answered].end]
        return self.data[self.expected.rest :]

    def answer(self) -> bool:
        """Let the standard lane answer the message that it has; whether it did."""
        if self.replied or self.gone or self.answered == len(self.expected.messages):
            return False
        if not self.early and self.fed != self.due():
            return False
        self.replied = True
        self.write(b"HTTP/1.1 299 Handed over\r\ncontent-length: 0\r\n\r\n")
        self.wire.answered()
        return True

    def pump(self, server: Server) -> bool:
        """One turn of everything that is not the client; whether anything happened."""
        moved = server.turn() | self.answer()
        for ticket in self.large:
            self.wire.rendered(ticket, ticket.encode(), None)
        moved |= bool(self.large)
        self.large.clear()
        return moved

    # the protocol
    def feed(self, data: bytes, is_head: bool) -> None:
        assert not self.gone
        if is_head:
            assert self.replied, "a message is handed over before the last is answered"
            assert self.fed is None, "a message is handed over before the last is whole"
            message = self.head_due()
            assert data == self.data[message[0] : message[1]], "not the head whose turn it is"
            self.fed, self.replied = b"", False
        assert self.fed is not None
        self.fed += data
        assert self.due().startswith(self.fed), "bytes were lost or changed"
        self.settle()

    def head_due(self) -> tuple[int, int]:
        if self.answered < len(self.expected.messages):
            message = self.expected.messages[self.answered]
            return message.start, message.body_start
        assert self.expected.rest_body is not None
        return self.expected.rest, self.expected.rest_body

    def settle(self) -> None:
        """A message is done with when it is whole and answered, in whichever order."""
        if self.replied and self.answered < len(self.expected.messages) and self.fed == self.due():
            self.answered += 1
            self.fed = None

    def refuse(self, error: FastinferError) -> None:
        assert self.status is None
        self.status = error.status
        self.wire.lost()
        self.gone = True

    def failure(self, error: Exception, request_id: bytes, close: bool, *context: Any) -> bytes:
        assert isinstance(error, FastinferError), error
        assert error.status == 503, error
        end = b"connection: close\r\n\r\n" if close else b"\r\n"
        return b"HTTP/1.1 503 Refused\r\ncontent-length: 0\r\n" + end

    def encode_elsewhere(self, ticket: _core.Ticket) -> None:
        self.large.append(ticket)

    def refused(self, *context: Any) -> None: ...

    def left(self, *context: Any) -> None:
        assert self.gone

    def hold(self, held: bool) -> None:
        assert held != self.held
        self.held = held

    # the transport
    def write(self, data: bytes) -> None:
        assert not self.gone
        replies, rest = parse_replies(data)
        assert rest == b""
        for reply in replies:
            assert not self.closed, "an answer behind the last"
            if reply.status == 299:
                self.settle()
                continue
            assert self.fed is None, "an answer overtakes another"
            self.check(self.expected.messages[self.answered], reply)
            self.answered += 1

    def check(self, message: Message, reply: Any) -> None:
        """An answer of the fast lane is what decoder and encoder make of the body."""
        records = PATHS[message.target]
        body = self.data[message.body_start : message.end]
        names = message.values(b"x-request-id")
        assert message.method == b"POST"
        self.closed = reply.field(b"connection") == b"close"
        if reply.status == 503:
            return
        assert reply.status == 200
        assert len(names) < 2
        if names:
            assert reply.field(b"x-request-id") == names[0]
        announced = message.values(b"inference-header-content-length")
        header = int(announced[0]) if announced and not records else -1
        array = _core.decode(WIDE, int(records), body, header)["arrays"]["x"]
        wanted, size = _core.encode(ENCODER, int(records), body, [array], header_length=header)
        assert reply.body == wanted
        assert int(reply.field(b"inference-header-content-length") or -1) == size

    def close(self) -> None:
        assert self.closed or self.ended, "closed, and the client was not told"
        self.gone = True

    def abort(self) -> None:
        raise AssertionError("the connection failed")


def play(server: Server, data: bytes, rng: random.Random, pieces: list[bytes], flags: int) -> None:
    """Send the pieces of a stream, with other things happening between them, and check all that comes of it.

    Args:
        flags: 1 the client may stop reading, 2 the server may begin to leave, 4 the client may leave, 8 the standard
            lane answers before it has the body, 16 nothing happens between the pieces, 32 the client closes its side.
    """
    server.renew()
    expected = read_stream(data)
    peer = Peer(server, data, expected, early=bool(flags & 8))
    largest = max([message.end - message.start for message in expected.messages], default=0)
    sent = 0
    draining = False
    for piece in pieces:
        if peer.gone:
            break
        sent += len(piece)
        peer.wire.data_received(piece)
        waiting = sent - peer.served_to
        assert peer.held or waiting <= STASH + HEAD + FAST_BODY + IN_FLIGHT * largest + len(piece), (
            "more than is allowed waits"
        )
        if not flags & 16:
            what = rng.randrange(8)
            if what < 3:
                peer.pump(server)
            elif what == 3 and flags & 1 and not peer.gone:
                peer.stalled = not peer.stalled
                peer.wire.writable(not peer.stalled)
            elif what == 4 and flags & 2:
                draining = True
                peer.wire.drain()
            elif what == 5 and flags & 4:
                peer.gone = True
                peer.wire.lost()
        turns = 0
        while peer.held and not peer.gone:
            if peer.stalled:
                peer.stalled = False
                peer.wire.writable(True)
            moved = peer.pump(server)
            turns += 1
            assert moved or not peer.held, "reading does not go on"
            assert turns < 100_000
    if flags & 32 and not peer.gone:
        peer.ended = True
        if not peer.wire.eof():
            peer.gone = True
            peer.wire.lost()
    if not peer.gone:
        peer.wire.writable(True)
    while peer.pump(server):
        pass
    finish(server, peer, whole=len(pieces) == 1, left=bool(flags & 4) and peer.status is None, draining=draining)


def finish(server: Server, peer: Peer, *, whole: bool, left: bool, draining: bool) -> None:
    """Nothing is owed and nothing is held."""
    expected = peer.expected
    if peer.status is not None:
        assert expected.fault is not None, f"refused with {peer.status}"
        assert peer.status == expected.fault or (not whole and peer.status in (400, 414, 431, 501))
        assert peer.answered == len(expected.messages), "an answer was due before the refusal"
    elif not (peer.gone and left) and not peer.closed:
        assert peer.answered == len(expected.messages), "a message was not answered"
        assert expected.fault is None, f"not refused with {expected.fault}"
        if expected.rest_body is not None and peer.fed is not None:
            assert peer.fed == peer.due(), "bytes of a body wait"
    assert peer.gone or not peer.held
    peer.gone = True
    peer.wire.lost()
    while server.turn():
        pass
    assert server.endpoint.counters()["in_flight"] == 0
    assert server.endpoint.batcher.pending_rows == 0
    assert peer.wire.drain()


def cut(data: bytes, rng: random.Random, how: int) -> list[bytes]:
    """A stream in pieces: whole, byte by byte, or at places that the generator chooses."""
    if how == 0:
        return [data]
    if how == 1:
        step = max(1, len(data) // 1500)
        return [data[at : at + step] for at in range(0, len(data), step)]
    places = sorted({0, *(rng.randrange(1, len(data) + 1) for _ in range(rng.randrange(1, 12))), len(data)})
    return [data[start:stop] for start, stop in pairwise(places)]
