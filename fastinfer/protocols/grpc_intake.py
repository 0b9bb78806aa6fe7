"""What gRPC's core holds of messages that are not whole yet, kept within `inflight_bytes`.

gRPC's core takes a message in as fast as its client sends it, up to `max_body_bytes`, and tells nothing of it before it
is whole: sixty-four clients that stop one byte short of the end would hold four gigabytes. The kernel counts what each
connection has received, though. What a connection's calls hold together is at most that, less the messages that were
whole since; where all of it is over the bound, calls of the connections that hold most are ended. The event loop does
that. It may have no time, of all moments, when large messages come, which it copies: where it does not come to it and
half as much again is held, a thread closes those connections.

Sources: Linux `include/uapi/linux/tcp.h` (`struct tcp_info`); gRPC's `src/core/ext/transport/chttp2/transport/
flow_control.h`, by which a call that nobody waits for holds no more than its initial window.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SOON, LATER = 0.02, 0.2  # seconds between looks while much comes in and while nothing does
SHARE = 50  # a look takes at most one part in so many of the time
PAUSE = 0.05  # seconds between the thread's looks
MUCH = 1 << 20  # bytes that came between two looks
RECEIVED = 128  # where tcp_info has tcpi_bytes_received
FRAME, HEAD = 16384, 9  # of HTTP/2, at its default; the head of a frame
AROUND = 64 + HEAD + 5  # least bytes of a call around its message
trim: Callable[[int], Any] = getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: None)
logger = logging.getLogger("fastinfer.server")
Address = tuple[str, int]


class Receipt:
    """A call that waits for a message to be whole.

    Attributes:
        end: ends the call.
        received: bytes that its connection had received when it began to wait, if that is known, and
        delivered: those of them that had been whole messages.
    """

    __slots__ = ("connection", "delivered", "end", "received")

    def __init__(self, connection: Connection, end: Callable[[], None]) -> None:
        self.connection = connection
        self.end = end
        self.delivered = connection.delivered
        self.received = connection.measure() if connection.descriptor >= 0 else -1


class Connection:
    """A client's connection.

    Attributes:
        waiting: its calls that wait for a message, the one that waits longest first.
        delivered: bytes of its whole messages, and of what has to be around them.
        descriptor: its socket, once that had to be looked for, else -1.
        held: at the last look, see `holds`.
        closed: by us.
    """

    __slots__ = ("closed", "delivered", "descriptor", "held", "peer", "seen", "waiting")

    def __init__(self, peer: Address | None) -> None:
        self.peer = peer
        self.waiting: dict[Receipt, None] = {}
        self.delivered = self.seen = self.held = 0
        self.descriptor = -1
        self.closed = False

    def measure(self) -> int:
        """Bytes received so far; -1 where the socket is another's by now."""
        told = received(self.descriptor, self.peer)
        if told < 0:
            self.descriptor = -1
        return told

    def holds(self, now: int, most: int) -> int:
        """Bytes that its waiting calls hold at most, when it has received `now` and a message has up to `most`."""
        oldest = next(iter(self.waiting), None)
        if oldest is None:
            return 0
        before = oldest.delivered if oldest.received < 0 else oldest.received
        came = now - before - (self.delivered - oldest.delivered)
        return max(0, min(came, len(self.waiting) * most))


class Intake:
    """The calls that wait for a message, of all connections.

    Args:
        most: bytes that a message may have.
        limit: bytes that all messages may have together.
        whole: bytes that those have that are whole, now.

    Attributes:
        ports: those that the server listens on.
    """

    def __init__(self, most: int, limit: int, whole: Callable[[], int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.most = most
        self.limit = limit
        self.whole = whole
        self.ports: set[int] = set()
        self.connections: dict[str, Connection] = {}
        self.kept = 1024  # connections after which those that are gone are looked for
        self.next: asyncio.TimerHandle | None = None
        self.scanned = 0.0  # when the sockets may be looked through again
        self.busy = threading.Event()  # calls wait
        self.through = 0  # bytes that came through since memory was given back
        self.guard: threading.Thread | None = None

    def begin(self, peer: str, end: Callable[[], None]) -> Receipt:
        """A call waits for a message.

        Args:
            peer: as gRPC tells it, such as `ipv4:127.0.0.1:5000`.
        """
        connection = self.connections.get(peer)
        if connection is None:
            if len(self.connections) >= self.kept:
                self.forget()
            connection = self.connections[peer] = Connection(address(peer))
        receipt = Receipt(connection, end)
        connection.waiting[receipt] = None
        if self.next is None or self.next.when() > self.loop.time() + SOON:
            self.look_in(SOON)
        return receipt

    def done(self, receipt: Receipt, size: int) -> None:
        """A message came whole, or, with a size of -1, will not come any more."""
        connection = receipt.connection
        connection.waiting.pop(receipt, None)
        if size >= 0:
            self.through += size
            connection.delivered += size + AROUND + HEAD * (size // FRAME)

    def look_in(self, seconds: float) -> None:
        if self.next is not None:
            self.next.cancel()
        self.next = self.loop.call_later(seconds, self.look)

    def look(self) -> None:
        """Measure what is held, and end what is too much."""
        self.next = None
        began = time.monotonic()
        waiting = [each for each in self.connections.values() if each.waiting]
        if not waiting:
            self.busy.clear()
            return
        if self.guard is None:
            self.guard = threading.Thread(target=self.watch, name="fastinfer-grpc-intake", daemon=True)
            self.guard.start()
        self.busy.set()
        if any(each.descriptor < 0 for each in waiting) and began >= self.scanned:
            self.find(waiting)
        came = held = 0
        for each in waiting:
            if each.descriptor >= 0:
                now = each.measure()
                if now >= 0:
                    came += now - each.seen
                    each.seen = now
                    each.held = each.holds(now, self.most)
                    held += each.held
        if held:
            self.shed(waiting, held + self.whole() - self.limit)
        took = time.monotonic() - began
        self.look_in(max(SOON if came >= MUCH else LATER, SHARE * took))

    def shed(self, waiting: list[Connection], over: int) -> None:
        """End calls of the connections that hold most, until what is held is so much less.

        Of a connection's calls the one that waits longest stays longest: some come to an end then.
        """
        while over > 0:
            heaviest = max(waiting, key=lambda each: each.held)
            if heaviest.held <= 0:
                return
            receipt = next(reversed(heaviest.waiting))
            del heaviest.waiting[receipt]
            receipt.end()
            held = min(heaviest.held, len(heaviest.waiting) * self.most)
            over -= heaviest.held - held
            heaviest.held = held

    def watch(self) -> None:
        """The thread: close the connections that hold most, where the loop has not ended their calls."""
        while True:
            self.busy.wait()
            began = time.monotonic()
            holding = []
            for each in list(self.connections.values()):
                if each.waiting and not each.closed:
                    now = received(each.descriptor, each.peer)
                    if now >= 0:
                        holding.append((each.holds(now, self.most), each))
            holding.sort(key=lambda one: one[0])
            held = self.whole() + sum(size for size, _ in holding)
            if 2 * held > 3 * self.limit:
                while held > self.limit and holding:
                    size, heaviest = holding.pop()
                    held -= size
                    heaviest.closed = True
                    with suppress(OSError), borrowed(heaviest.descriptor) as lent:
                        lent.shutdown(socket.SHUT_RDWR)
                    logger.warning("a gRPC connection was closed: its messages have no room in inflight_bytes")
            if self.through > self.limit // 4:
                self.through = 0
                trim(0)  # glibc keeps what messages took, in pieces, and gives none of it to the next whole one
            time.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))

    def find(self, connections: Iterable[Connection]) -> None:
        """Look for the sockets of these."""
        began = time.monotonic()
        sockets = open_sockets(self.ports)
        for each in connections:
            each.descriptor = -1 if each.peer is None else sockets.get(each.peer, -1)
        now = time.monotonic()
        self.scanned = now + SHARE * (now - began)

    def forget(self) -> None:
        """Drop the connections that are gone."""
        self.find(self.connections.values())
        self.connections = {
            peer: each for peer, each in self.connections.items() if each.waiting or each.descriptor >= 0
        }
        self.kept = 2 * len(self.connections) + 1024

    def close(self) -> None:
        self.busy.clear()
        if self.next is not None:
            self.next.cancel()


def address(peer: str) -> Address | None:
    """Host and port of a peer in gRPC's words; None for what is none."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    return (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None


def open_sockets(ports: set[int]) -> dict[Address, int]:
    """The descriptors of this process that are connections to these ports, by who the others are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), borrowed(int(name)) as lent:
            peer = place(lent.getpeername())
            own = place(lent.getsockname())
            if peer is not None and own is not None and own[1] in ports:
                found[peer] = int(name)
    return found


def received(descriptor: int, peer: Address | None) -> int:
    """Bytes that a connection to a peer has received; -1 where the descriptor is none, or cannot tell."""
    with suppress(OSError, ValueError), borrowed(descriptor) as lent:
        if place(lent.getpeername()) == peer:
            told = lent.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED + 8)
            if len(told) == RECEIVED + 8:
                return int(struct.unpack_from("=Q", told, RECEIVED)[0])
    return -1


@contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket object around a descriptor that stays another's.

    Raises:
        OSError: it is no socket.
    """
    lent = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield lent
    finally:
        lent.detach()


def place(told: Any) -> Address | None:
    """Host and port of a socket's address, with IPv4 as itself; None for one of another family."""
    if isinstance(told, tuple) and len(told) in (2, 4) and isinstance(told[0], str):
        return told[0].removeprefix("::ffff:"), told[1]
    return None
