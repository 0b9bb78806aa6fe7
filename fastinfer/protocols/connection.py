"""uvicorn's httptools protocol around a compiled connection, which frames every message and serves the plain ones.

What the compiled connection hands over goes to uvicorn and Starlette, a whole message at a time. The class reaches
into uvicorn's private attributes, for which pyproject.toml pins the tested range.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fastinfer import _core
from fastinfer.errors import FastinferError, MalformedHeadError, UnavailableError
from fastinfer.protocols.exchange import CLIENT_GONE, JSON, WIRE, dump, error_answer
from fastinfer.protocols.journal import address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from fastinfer.protocols.journal import Journal
    from fastinfer.service import Service

BODY_GRACE = 10.0  # seconds before a body's rate is looked at
BODY_RATE = 1024  # bytes a second
WRITE_STALL = 30.0  # seconds in which a client reads nothing of its answer
# Seconds in which a client that has closed its sending side gets what it has asked for. One that left altogether looks
# the same, so that it counts as gone after them, and what it asked for and waits is not run.
HALF_CLOSED = 0.5
LINGER = 2.0  # seconds in which a client may read why it was refused

logger = logging.getLogger("fastinfer.request")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings allow a connection."""

    connections: int
    head_timeout: float
    idle_timeout: float


class Flow(FlowControl):
    """uvicorn's flow control with a second reason to stop reading: the compiled connection's."""

    held = False

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._apply(self.held)

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._apply(self.held)

    def hold(self, held: bool) -> None:
        if held != self.held:
            self.held = held
            self._apply(self.read_paused)

    def _apply(self, otherwise_paused: bool) -> None:
        if otherwise_paused or self._transport.is_closing():
            return  # nothing changes for the transport
        if self.held or self.read_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(
        self,
        service: Service,
        journal: Journal,
        lane: _core.Lane,
        limits: Limits,
        config: Config,
        server_state: ServerState,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state={}, _loop=loop)
        self.service = service
        self.journal = journal
        self.limits = limits
        self.leaving = False  # the server is: the answer under way is the last
        self.unsent = 0  # bytes of answers that the client had not taken at the last sweep
        self.taken_at = 0.0  # when it last took some
        self.wire = _core.Connection(self, lane)
        # uvloop looks this attribute up once: the received bytes go straight into the core.
        self.data_received = self.wire.data_received  # type: ignore[method-assign]

    # ---- from the transport ---------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.wire.attach(transport, self._address(), b"" if self.client is None else self.client[0].encode())
        self.service.counters.connections += 1
        if len(self.connections) > self.limits.connections:
            self.connections.discard(self)  # it takes nobody's place while it is told
            self.wire.lost()
            self.refuse(UnavailableError(f"over max_connections ({self.limits.connections})"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.service.counters.connections -= 1
        self.wire.lost()
        del self.data_received  # a reference cycle

    def eof_received(self) -> bool:  # type: ignore[override]  # what asyncio takes: whether the transport stays open
        """The client has closed its side: it left, or it has sent all that it had to send and waits."""
        waits = self.wire.eof()
        if waits:
            self.loop.call_later(HALF_CLOSED, self.transport.close)
        return waits

    def pause_writing(self) -> None:
        super().pause_writing()
        self.wire.writable(False)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.wire.writable(True)

    # ---- from the compiled connection -----------------------------------------------------------------------------
    def feed(self, data: bytes, is_head: bool) -> None:
        """Bytes of one message for the standard lane: its head, then its body in pieces."""
        try:
            self.parser.feed_data(without_upgrade(data) if is_head else data)
        except httptools.HttpParserUpgrade:
            self.refuse(MalformedHeadError("no other protocol is spoken on this connection"))
        except httptools.HttpParserCallbackError:
            self.refuse(MalformedHeadError("the request's target is not a path or a URL"))
        except httptools.HttpParserError as error:
            self.refuse(MalformedHeadError(f"not HTTP/1.1: {error}"))

    def refuse(self, error: FastinferError) -> None:
        """Answer an error when the answer's turn has come, and close once the client may have read it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        self.wire.lost()
        # What it goes on sending is read and dropped: closing with unread bytes would reset the connection.
        self.flow.hold(False)  # type: ignore[attr-defined]  # ours, set in connection_made
        self.flow.resume_reading()
        told = refusal(error, self.server_state.default_headers, bodiless=self.wire.for_head)
        if self.journal.access is not None:
            size = len(told) - told.index(b"\r\n\r\n") - 4
            self.journal.access.record(error.status, size, client=self._address(), code=error.code.encode())
        self.transport.write(told)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    def failure(self, error: Exception, request_id: bytes, close: bool, ticket: _core.Ticket) -> bytes:
        """The bytes of a fast request's error, as the standard lane would have sent them; it is counted here."""
        if not isinstance(error, FastinferError):
            logger.error("request %s failed", request_id.decode(), exc_info=error)
            error = FastinferError("internal error; the server's log has it by X-Request-ID")
        elif self.journal.is_written(error):
            self.journal.write(error, _fields(ticket, request_id, error))
        body, headers = error_answer(error)
        self._close(ticket, request_id, error.status, len(body), error.code)
        head = [
            *self.server_state.default_headers,
            (b"content-type", JSON),
            (b"x-request-id", request_id),
            *headers,
            (b"content-length", b"%d" % len(body)),
        ]
        return answer(error.status, head, body, close=close)

    def encode_elsewhere(self, ticket: _core.Ticket) -> None:
        """Render a large answer on a worker thread."""
        task = self.loop.create_task(self._encode(ticket))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _encode(self, ticket: _core.Ticket) -> None:
        try:
            rendered = await self.service.on_worker(ticket.encode)
        except Exception as error:  # the client waits for an answer, whatever it is
            self.wire.rendered(ticket, None, error)
        else:
            self.wire.rendered(ticket, rendered, None)

    def refused(self, error: FastinferError, request_id: bytes, ticket: _core.Ticket) -> None:
        """A fast request was refused, and answered and counted; here for the log."""
        if self.journal.is_written(error):
            self.journal.write(error, _fields(ticket, request_id, error))

    def left(self, ticket: _core.Ticket, request_id: bytes) -> None:
        """The client did not wait for a fast answer."""
        self._close(ticket, request_id, CLIENT_GONE, 0, "")

    def _close(self, ticket: _core.Ticket, request_id: bytes, status: int, size: int, code: str) -> None:
        """Count a fast request that has no good answer, and note it in the access log."""
        endpoint = ticket.endpoint
        self.service.counters.count(endpoint.name, endpoint.version, status, "fast")
        if self.journal.access is not None:
            self.journal.access.record(
                status, size, request_id=request_id, client=ticket.client or self._address(), method=b"POST",
                path=ticket.path, model=endpoint.name.encode(), version=endpoint.version.encode(), code=code.encode(),
                ticket=ticket, total_ns=time.monotonic_ns() - ticket.started_ns,
            )  # fmt: skip

    def _address(self) -> bytes:
        return b"" if self.journal.access is None else address(self.client).encode()

    def hold(self, held: bool) -> None:
        """Stop, and go on, reading."""
        self.flow.hold(held)  # type: ignore[attr-defined]  # ours, set in connection_made

    # ---- from the parser, the cycle and the server ----------------------------------------------------------------
    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.rstrip(b" \t"))  # no part of it (RFC 9110, 5.5), and the parser keeps it

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # its clients do not know the answer (RFC 9110, 10.1.1)
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]  # what else is in it is the server's business
        scope[WIRE] = self.wire
        scope["client"] = self.wire.sender or scope["client"]
        scope["scheme"] = self.wire.scheme or scope["scheme"]
        super().on_headers_complete()
        self.headers = []  # trailer fields go here: they must not pass for the head's (RFC 9110, 6.5.1)
        if self.leaving:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        # A trailer field may have told the parser to take nothing more from this connection.
        if not self.parser.should_keep_alive():
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.transport.close()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the sweep does every time-out
        if not self.transport.is_closing():
            self.wire.answered()

    def shutdown(self) -> None:
        """The server leaves: finish what has begun to arrive, then close."""
        self.leaving = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        if self.wire.drain() and not self.wire.head_since:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Close what has been too slow; such a connection gets no answer."""
        wire = self.wire
        if self._stalls(now):
            self.transport.abort()
        elif wire.body_since:
            elapsed = now - wire.body_since / 1e9
            if elapsed > BODY_GRACE and wire.body_bytes < BODY_RATE * elapsed and not self.flow.read_paused:
                self.transport.close()
        elif wire.head_since:
            if now - wire.head_since / 1e9 > self.limits.head_timeout:
                self.transport.close()
        elif wire.idle_since and now - wire.idle_since / 1e9 > self.limits.idle_timeout:
            self.transport.close()

    def _stalls(self, now: float) -> bool:
        """Whether the client has taken nothing of its answers for too long; also where only they keep it open."""
        unsent = self.transport.get_write_buffer_size()
        if self.unsent == 0 or unsent < self.unsent:
            self.taken_at = now
        self.unsent = unsent
        return now - self.taken_at > WRITE_STALL


def _fields(ticket: _core.Ticket, request_id: bytes, error: FastinferError) -> dict[str, Any]:
    """What the log has of a fast request that ended with an error."""
    asked = {"model": ticket.endpoint.name, "version": ticket.endpoint.version, "rows": ticket.rows}
    return {"request_id": request_id.decode(), **asked, "status": error.status}


def answer(status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes, *, close: bool) -> bytes:
    """A whole answer's bytes, as uvicorn would put them."""
    lines = [name + b": " + value + b"\r\n" for name, value in fields]
    return b"".join([STATUS_LINE[status], *lines, b"connection: close\r\n\r\n" if close else b"\r\n", body])


def refusal(error: FastinferError, headers: Iterable[tuple[bytes, bytes]], *, bodiless: bool) -> bytes:
    """The bytes of an answer to what never became a request; without its body where that was to be a HEAD."""
    body = dump({"error": str(error), "code": error.code})
    fields: list[tuple[bytes, Any]] = [
        *headers,
        (b"content-type", JSON),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if error.retry_after is not None:
        fields.append((b"retry-after", b"1"))
    return answer(error.status, fields, b"" if bodiless else body, close=False)


def without_upgrade(head: bytes) -> bytes:
    """A head without its Upgrade field.

    Java's clients offer h2c on every first request; the parser would take the body for the other protocol's. We
    speak HTTP/1.1 only, and RFC 9110 (7.8) lets a server ignore the offer.
    """
    if b"\r\nupgrade:" not in head.lower():
        return head
    return b"\r\n".join(line for line in head.split(b"\r\n") if line[:8].lower() != b"upgrade:")
