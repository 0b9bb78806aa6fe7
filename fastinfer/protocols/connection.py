"""uvicorn's httptools protocol with bounds that hold: heads, connections, time-outs, and errors in our shape.

It reaches into uvicorn's private attributes, for which pyproject.toml pins the tested range.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fastinfer.errors import (
    FastinferError,
    HeadTooLargeError,
    MalformedHeadError,
    UnavailableError,
    UnsupportedError,
    UriTooLongError,
)
from fastinfer.protocols.exchange import dump

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

MAX_HEADERS = 100
MAX_HEAD = 32 * 1024
MAX_URL = 8 * 1024
BODY_GRACE = 10.0  # seconds before a body's rate is looked at
BODY_RATE = 1024  # bytes a second
WRITE_STALL = 30.0  # seconds in which a client reads nothing of its answer
LINGER = 2.0  # seconds in which a client may read why it was refused


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings allow a connection."""

    connections: int
    head_timeout: float
    idle_timeout: float


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(
        self, limits: Limits, config: Config, server_state: ServerState, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state={}, _loop=loop)
        self.limits = limits
        self.fault: FastinferError | None = None  # why the connection is being given up
        self.leaving = False  # the server is: the answer under way is the last
        self.quiet_since = time.monotonic()
        self.head_since: float | None = None  # the first byte of a head that is not complete
        self.head_bytes = 0
        self.body_since: float | None = None
        self.body_bytes = 0
        self.stalled_since: float | None = None  # the client reads nothing

    # ---- from the transport ---------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self.connections.discard(self)  # it takes nobody's place while it is told
            self.give_up(UnavailableError(f"over max_connections ({self.limits.connections})"))

    def data_received(self, data: bytes) -> None:
        if self.fault is not None:
            return
        if self.head_since is None and self.body_since is None:
            data = without_upgrade(data)
        elif self.head_since is not None:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD:
                self.give_up(HeadTooLargeError(f"the request's head is over {MAX_HEAD} bytes"))
                return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.give_up(MalformedHeadError("a request to upgrade must arrive with its head in one piece"))
        except httptools.HttpParserError as error:
            self.give_up(self.fault or MalformedHeadError(f"not HTTP/1.1: {error}"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = time.monotonic()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = None

    # ---- from the parser ------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_since = time.monotonic()
        self.head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self.fault = UriTooLongError(f"the request's path is over {MAX_URL} bytes")
            raise self.fault

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self.fault = HeadTooLargeError(f"the request has more than {MAX_HEADERS} header fields")
        elif len(name) + len(value) > MAX_HEAD:
            self.fault = HeadTooLargeError(f"the request's head is over {MAX_HEAD} bytes")
        elif self.headers[-1][0] == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self.fault = UnsupportedError("no Transfer-Encoding other than chunked is supported")
        if self.fault is not None:
            raise self.fault

    def on_headers_complete(self) -> None:
        self.head_since = None
        self.body_since, self.body_bytes = time.monotonic(), 0
        super().on_headers_complete()
        if self.leaving:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.body_since = None
        super().on_message_complete()

    # ---- from the cycle and the server ----------------------------------------------------------------------------
    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the sweep does every time-out
        self.quiet_since = time.monotonic()

    def shutdown(self) -> None:
        """The server leaves: finish what has begun to arrive, then close."""
        self.leaving = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.head_since is None:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Close what has been too slow; such a connection gets no answer."""
        if self.stalled_since is not None and now - self.stalled_since > WRITE_STALL:
            self.transport.abort()
        elif self.head_since is not None:
            if now - self.head_since > self.limits.head_timeout:
                self.transport.close()
        elif self.cycle is None or self.cycle.response_complete:
            if now - self.quiet_since > self.limits.idle_timeout:
                self.transport.close()
        elif self.body_since is not None and not self.flow.read_paused:
            elapsed = now - self.body_since
            if elapsed > BODY_GRACE and self.body_bytes < BODY_RATE * elapsed:
                self.transport.close()

    def give_up(self, error: FastinferError) -> None:
        """Answer an error if the answer's turn has come, and close once the client may have read it."""
        self.fault = error
        in_answer = self.cycle is not None and not self.cycle.response_complete
        if in_answer and self.body_since is None:
            self.cycle.keep_alive = False  # what came before the fault is answered first, then the connection closes
            return
        if in_answer:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if in_answer and self.cycle.response_started:
            self.transport.close()
            return
        self.transport.write(refusal(error, self.server_state.default_headers))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


def refusal(error: FastinferError, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bytes of an answer to what never became a request."""
    body = dump({"error": str(error), "code": error.code})
    fields: list[tuple[bytes, Any]] = [
        *headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if error.retry_after is not None:
        fields.append((b"retry-after", b"1"))
    lines = [name + b": " + value + b"\r\n" for name, value in fields]
    return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body])


def without_upgrade(data: bytes) -> bytes:
    """The first bytes of a message without its Upgrade field.

    Java's clients offer h2c on every first request; the parser would take the body for the other protocol's. We
    speak HTTP/1.1 only, and RFC 9110 (7.8) lets a server ignore the offer.
    """
    if b"pgrade:" not in data[:MAX_HEAD]:
        return data
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return data
    lines = data[:end].split(b"\r\n")
    kept = [line for line in lines if line[:8].lower() != b"upgrade:"]
    return b"\r\n".join(kept) + data[end:]
