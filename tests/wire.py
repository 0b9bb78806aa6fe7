"""Bytes on a connection: streams of requests sent in pieces, and every answer that comes back, as it came."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ServerProcess

LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n"  # after it, a server closes
CLOSED, OPEN = "closed", "open"
MADE_ID = re.compile(rb"[0-9a-f]{12}-(f-)?[0-9a-f]+")  # a request id that the server made; "f" on the fast lane
DURATION = rb"(0|[1-9][0-9]*)(\.[0-9]{0,2}[1-9])?"  # milliseconds, to the microsecond
TIMING = re.compile(rb"queue;dur=%s, preprocess;dur=%s, run;dur=%s" % (DURATION, DURATION, DURATION))
RETRY = re.compile(rb'(?<="retry_after_ms":)[0-9]+')
VARIES = {b"date": b"now", b"retry-after": b"soon"}


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def field(self, name: bytes) -> bytes | None:
        """The value of a field, or None; there must not be two."""
        values = [value for key, value in self.fields if key == name]
        assert len(values) <= 1, self
        return values[0] if values else None

    @property
    def lane(self) -> str | None:
        """Which lane made the request id; None where the client did, or none is there."""
        found = MADE_ID.fullmatch(self.field(b"x-request-id") or b"")
        return None if found is None else "fast" if found[1] else "standard"

    def settled(self) -> Reply:
        """Without what no two answers share."""
        fields = []
        body = RETRY.sub(b"soon", self.body)
        for name, value in self.fields:
            made = name == b"x-request-id" and MADE_ID.fullmatch(value)
            timed = name == b"server-timing" and TIMING.fullmatch(value)
            long = name == b"content-length" and body != self.body
            fields.append((name, b"made" if made else b"timed" if timed or long else VARIES.get(name, value)))
        return Reply(self.status, tuple(fields), body)


@dataclass(frozen=True)
class Conversation:
    """What a client saw until the connection's end."""

    replies: tuple[Reply, ...]
    fate: str
    rest: bytes = b""  # what is no whole answer

    @property
    def statuses(self) -> list[int]:
        return [reply.status for reply in self.replies]

    def settled(self) -> Conversation:
        return Conversation(tuple(reply.settled() for reply in self.replies), self.fate, self.rest)


def parse_replies(data: bytes, heads: Iterable[int] = ()) -> tuple[list[Reply], bytes]:
    """The whole answers in `data`, and the bytes after them. `heads`: which are to HEAD requests, by position."""
    replies: list[Reply] = []
    bodiless = set(heads)
    final = 0
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        version, status, _ = line.split(b" ", 2)
        assert version == b"HTTP/1.1", line
        fields = tuple((name, value) for name, _, value in (each.partition(b": ") for each in lines))
        size = int(dict(fields).get(b"content-length", b"0"))
        if final in bodiless or status.startswith(b"1"):
            size = 0
        if len(rest) < size:
            break
        final += not status.startswith(b"1")
        replies.append(Reply(int(status), fields, rest[:size]))
        data = rest[size:]
    return replies, data


def talk(
    server: ServerProcess, data: bytes, cuts: Sequence[int] = (), heads: Iterable[int] = (), pause: float = 0.0
) -> Conversation:
    """Send a stream whose end makes the server close, in pieces, and take all that comes back."""
    received = bytearray()
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(20)
        try:
            for start, stop in pairwise([0, *cuts, len(data)]):
                connection.sendall(data[start:stop])
                if pause:
                    time.sleep(pause)
            fate = CLOSED
        except (BrokenPipeError, ConnectionResetError):
            fate = CLOSED  # it closed before it had read everything, which is its right
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            fate = CLOSED
        except TimeoutError:
            fate = OPEN
    replies, rest = parse_replies(bytes(received), heads)
    return Conversation(tuple(replies), fate, rest)


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = bytearray()
    while piece := connection.recv(1 << 16):
        data += piece
    return bytes(data)


def message(
    target: str,
    body: bytes | None = None,
    *fields: str,
    method: str = "POST",
    version: str = "1.1",
    host: bool = True,
    chunks: Sequence[int] | None = None,
) -> bytes:
    """The bytes of a request; `chunks` are the positions at which its body is cut into chunks."""
    lines = [f"{method} {target} HTTP/{version}", *(["Host: test"] if host else []), *fields]
    if body is None:
        return "\r\n".join([*lines, "", ""]).encode()
    if chunks is None:
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
    return "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode() + chunked(body, chunks)


def chunked(body: bytes, cuts: Sequence[int] = (), extension: bytes = b"", trailers: bytes = b"") -> bytes:
    """A body in the chunked coding."""
    pieces = [body[start:stop] for start, stop in pairwise(sorted({0, *cuts, len(body)}))]
    data = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces if piece)
    return data + b"0\r\n" + trailers + b"\r\n"
