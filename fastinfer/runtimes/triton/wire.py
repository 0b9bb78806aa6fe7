"""Connections to a Triton over HTTP/1.1: kept, bounded, and exact about what was sent and what came back."""

import asyncio
import ssl
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
        try:
            async with asyncio.timeout(self.connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), self.host, self.port, ssl=self.context)
        except TimeoutError:
            raise unreachable("no connection came about in time") from None
        except OSError as error:
            raise unreachable(error.strerror or error) from None
        return connection

    def close(self) -> None:
        for connection in self.kept:
            connection.abort()
        self.kept.clear()
