"""Connections to a Triton over HTTP/1.1: kept, bounded, and exact about what was sent and what came back."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import httptools

from fastinfer.runtimes.triton.exchange import garbage, lost, unreachable

MOST_FIELDS = 64 << 10  # bytes of an answer's head


class Answer(NamedTuple):
    """An answer, whole; the names of its fields in lower case."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes


class Connection(asyncio.Protocol):
    """One connection, for one question at a time; httptools calls it back with what it reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.transport: Any = None
        self.waiter: asyncio.Future[Answer] | None = None
        self.parser: Any = None
        self.answers = 0  # so far
        self.keeps = True

    def ask(self, message: Iterable[bytes], most: int) -> "asyncio.Future[Answer]":
        """Send a message; the future is its answer, of at most so many bytes, or Failed."""
        self.waiter = self.loop.create_future()
        self.most = most
        self.begun = False
        self.parser = httptools.HttpResponseParser(self)
        self.transport.writelines(message)
        return self.waiter

    @property
    def usable(self) -> bool:
        return self.keeps and not self.transport.is_closing()

    def abort(self) -> None:
        self.keeps = False
        if self.transport is not None:
            self.transport.abort()

    def fail(self, failed: Exception) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(failed)
        self.abort()

    # ---- asyncio's -----------------------------------------------------------------------------------------------
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.waiter is None or self.waiter.done():
            self.abort()  # nobody asked
            return
        self.begun = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(garbage(f"no HTTP: {error}"))
        except httptools.HttpParserUpgrade:
            self.fail(garbage("it goes over to a protocol that was not asked for"))

    def connection_lost(self, error: Exception | None) -> None:
        self.keeps = False
        if self.waiter is not None and not self.waiter.done():
            # A connection that was kept, and whose end was on its way when the message left, was read by nobody.
            again = self.answers > 0 and not self.begun
            self.waiter.set_exception(lost("its answer ends too early" if self.begun else "the connection was closed",
                                           again=again))
        self.parser = self.waiter = None  # the first knows this connection

    # ---- httptools' ----------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        if self.waiter is not None and self.waiter.done():
            self.keeps = False  # more than was asked for
        self.fields: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.size = self.head = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head += len(name) + len(value)
        if self.head > MOST_FIELDS:
            self.fail(garbage(f"a head of over {MOST_FIELDS} bytes"))
            return
        self.fields[name.lower()] = value

    def on_body(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self.most:
            self.fail(garbage(f"an answer of over {self.most} bytes"))
            return
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200 or self.waiter is None or self.waiter.done():
            return  # 100 Continue and the like come before an answer
        self.answers += 1
        self.keeps = self.keeps and self.parser.should_keep_alive()
        self.waiter.set_result(Answer(status, self.fields, b"".join(self.pieces)))


class Pool:
    """The connections to one host and port, of the running event loop.

    Args:
        address: host:port, an IPv6 host in brackets.
        context: for TLS, or None.
        limit: most connections.
        connect_timeout: seconds.
    """

    def __init__(self, address: str, context: ssl.SSLContext | None, limit: int, connect_timeout: float) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)
        self.context = context
        self.connect_timeout = connect_timeout
        self.free = asyncio.Semaphore(limit)
        self.kept: list[Connection] = []
        self.lookup: asyncio.Future[list[str]] | None = None  # that goes on

    async def ask(self, message: Iterable[bytes], most: int) -> Answer:
        """Send a message on a connection that is free, or on a new one; raises Failed."""
        async with self.free:
            connection = self.take() or await self.connect()
            try:
                answer = await connection.ask(message, most)
            except BaseException:
                connection.abort()
                raise
            if connection.usable:
                self.kept.append(connection)
            else:
                connection.abort()
            return answer

    def take(self) -> Connection | None:
        while self.kept:
            connection = self.kept.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        why = "its name has no address"
        try:
            async with asyncio.timeout(self.connect_timeout):
                for address in await self.addresses():
                    try:
                        _, connection = await loop.create_connection(
                            lambda: Connection(loop), address, self.port, ssl=self.context,
                            server_hostname=None if self.context is None else self.host)
                    except OSError as error:
                        why = error.strerror or str(error)
                    else:
                        return connection
        except TimeoutError:
            raise unreachable("no connection came about in time") from None
        except OSError as error:
            why = error.strerror or str(error)
        raise unreachable(why)

    async def addresses(self) -> list[str]:
        """Those of the host; raises OSError.

        Looked up on a thread that nobody waits for: a name server that does not answer would hold those of the loop,
        and the end of the process. Whoever asks meanwhile waits for the same answer.
        """
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(self.host))]
        if self.lookup is None:
            self.lookup = asyncio.get_running_loop().create_future()
            self.lookup.add_done_callback(self.looked_up)
            threading.Thread(target=look_up, args=(self.host, self.lookup), name="fastinfer-name", daemon=True).start()
        return await asyncio.shield(self.lookup)

    def looked_up(self, lookup: "asyncio.Future[list[str]]") -> None:
        self.lookup = None
        lookup.exception()  # those who asked may have left

    def close(self) -> None:
        for connection in self.kept:
            connection.abort()
        self.kept.clear()


def look_up(host: str, lookup: "asyncio.Future[list[str]]") -> None:
    """Give a future of another thread's loop the addresses of a name, or the error."""
    try:
        found = dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        tell, what = lookup.set_result, list(found)
    except (OSError, UnicodeError) as error:  # the latter for what is no name
        tell, what = lookup.set_exception, OSError(str(error))  # type: ignore[assignment]
    with contextlib.suppress(RuntimeError):  # the loop is closed
        lookup.get_loop().call_soon_threadsafe(tell, what)
