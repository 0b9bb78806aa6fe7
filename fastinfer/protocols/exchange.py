"""One request and its answer over ASGI: the body, read within its bounds, and the answer, in one shape."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import os
import random
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from fastinfer._core import Arrival, request_timeout
from fastinfer.errors import (
    BodyTooLargeError,
    FastinferError,
    InvalidJsonError,
    MethodNotAllowedError,
    OverloadedError,
    UnavailableError,
    UnsupportedEncodingError,
)
from fastinfer.protocols.compression import MIN_SIZE, accepted, compress, decompress, encoding_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from fastinfer._core import Connection, Ticket
    from fastinfer.service import Service

LARGE = 256 * 1024  # bytes; more than this is decoded, encoded and compressed on a worker thread
KEPT_BODY = 64 * 1024  # a refused body up to this is read and dropped, and the connection kept
LINGER = 5.0  # seconds in which a client may read the refusal of a body it is still sending
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@,;~-]{1,128}")
JSON = b"application/json"
WIRE = "fastinfer.connection"  # where a scope has the compiled connection, if it came over one of ours
CLIENT_GONE = 499  # nginx's number; it is only counted, there is nobody to send it to
prefix = secrets.token_hex(6)  # of the request ids that this process makes
sequence = itertools.count(1)
logger = logging.getLogger("fastinfer.request")


def _after_fork() -> None:
    global prefix
    prefix = secrets.token_hex(6)


os.register_at_fork(after_in_child=_after_fork)


def next_request_id() -> bytes:
    """The id of a request that brought none."""
    return b"%s-%x" % (prefix.encode(), next(sequence))


class ClientGoneError(Exception):
    """The client closed its side before it had its answer."""


class Exchange:
    """One request and its answer.

    Attributes:
        headers: the request's, by lower-case name; the last where one is repeated.
        request_id: the client's X-Request-ID where it is short and harmless, else one made here.
        status: of the answer; 499 when the client left first.
        size: bytes of its body, as sent.
        infer: whether it is a request to a model, which is counted.
        model, version, rows: what it asked for, as far as that is known.
        ticket: its way through the core, once it is submitted.
        error: what it was answered with, unless it succeeded.
    """

    __slots__ = (
        "_complete", "_held", "error", "headers", "infer", "model", "path", "receive", "request_id", "rows", "scope",
        "send", "service", "size", "started_ns", "status", "ticket", "version",
    )  # fmt: skip
    lane = "standard"

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self.service = service
        self.scope = scope
        self.receive = receive
        self.send = send
        self.started_ns = time.monotonic_ns()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.path: dict[str, str] = scope.get("path_params", {})
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given if REQUEST_ID.fullmatch(given) else next_request_id()
        self.status = self.size = 0
        self.infer = False
        self.error: FastinferError | None = None
        self.model = self.version = ""
        self.rows = 0
        self.ticket: Ticket | None = None
        self._complete = False  # the body has been read to its end
        self._held = 0  # bytes of bodies that this request accounts for

    def arrival(self) -> Arrival:
        """When the request came, and what time its head gives it.

        Raises:
            InvalidParameterError: X-Request-Timeout is no number of seconds.
        """
        timeout_ns = 0
        if b"x-request-timeout" in self.headers:
            fields = self.scope["headers"]
            timeout_ns = request_timeout([value for name, value in fields if name == b"x-request-timeout"])
        wire: Connection | None = self.scope.get(WIRE)
        arrival = Arrival(self.started_ns, timeout_ns) if wire is None else wire.arrived(timeout_ns)
        arrival.trace = self.headers.get(b"traceparent")
        arrival.fields = self.scope["headers"]
        return arrival

    # ---- the body -------------------------------------------------------------------------------------------------
    async def body(self) -> bytes:
        """The whole body, decompressed.

        Raises:
            BodyTooLargeError: over max_body_bytes, by Content-Length, while reading, or decompressed.
            UnsupportedEncodingError: a Content-Encoding other than gzip and deflate.
            UnavailableError: the bodies of all requests in flight are over inflight_bytes.
            ClientGoneError: the client left.
        """
        limit = self.service.settings.max_body_bytes
        encoding = encoding_of(self.headers.get(b"content-encoding", b""))
        if self.declared > limit:
            raise BodyTooLargeError(f"the body is over max_body_bytes ({limit} bytes)")
        body = await self._read(limit)
        if encoding is None:
            return body
        body = await self.service.on_worker(decompress, body, encoding, limit)
        self._hold(len(body))
        return body

    async def json_body(self) -> Any:
        """The body as JSON, for the routes that carry little; None when it is empty.

        Raises:
            InvalidJsonError: it is not JSON.
        """
        body = await self.body()
        if not body.strip():
            return None
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidJsonError(f"the body is not JSON: {error}") from error

    @property
    def declared(self) -> int:
        """Content-Length, which the server has checked; -1 for a chunked body."""
        value = self.headers.get(b"content-length", b"")
        return int(value) if value.isdigit() else -1

    async def _read(self, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while not self._complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            self._complete = not message.get("more_body", False)
            size += len(chunk)
            if size > limit:
                raise BodyTooLargeError(f"the body is over max_body_bytes ({limit} bytes)")
            self._hold(len(chunk))
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _hold(self, size: int) -> None:
        counters = self.service.counters
        if counters.inflight_bytes + size > self.service.settings.inflight_bytes:
            raise UnavailableError("the bodies of the requests in flight are over inflight_bytes")
        counters.inflight_bytes += size
        self._held += size

    # ---- the answer -----------------------------------------------------------------------------------------------
    async def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Send a whole answer."""
        self.status = status
        fields = [(b"content-type", content_type), (b"x-request-id", self.request_id), *(headers or ())]
        if self.service.settings.compress_responses and len(body) >= MIN_SIZE:
            body = await self._compressed(body, fields)
        fields.append((b"content-length", b"%d" % len(body)))
        self.size = 0 if self.scope["method"] == "HEAD" else len(body)
        unread = not self._complete and self._unread()
        if unread and self.scope["http_version"].startswith("1"):
            fields.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        if unread:
            # Closing with unread bytes in the socket would reset it, and the client might never see this answer.
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            await self._drop()
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def json(self, status: int, value: Any) -> None:
        """Answer with `value` as JSON."""
        await self.respond(status, dump(value))

    async def fail(self, error: FastinferError) -> None:
        """Answer with an error: its status, and {"error", "code", "at"}."""
        self.error = error
        body, headers = error_answer(error)
        await self.respond(error.status, body, headers=headers)

    async def _compressed(self, body: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
        fields.append((b"vary", b"Accept-Encoding"))
        encoding = accepted(self.headers.get(b"accept-encoding", b""))
        if encoding is None:
            return body
        fields.append((b"content-encoding", encoding.encode()))
        if len(body) > LARGE:
            return await self.service.on_worker(compress, body, encoding)
        return compress(body, encoding)

    def _unread(self) -> bool:
        """Whether the connection must close after an answer that came before the body's end."""
        if b"transfer-encoding" in self.headers:
            return True
        declared = self.declared
        # Told not to go on (RFC 9110, 10.1.1), a client may send the body or not: what follows is not to be trusted.
        return declared > KEPT_BODY or (declared > 0 and b"expect" in self.headers)

    async def _drop(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def close(self) -> None:
        """Give back what the request held."""
        self.service.counters.inflight_bytes -= self._held
        self._held = 0


def error_answer(error: FastinferError) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body of an error's answer, and the fields that belong to it."""
    body: dict[str, Any] = {"error": str(error), "code": error.code}
    if error.at is not None:
        body["at"] = error.at
    headers = []
    if error.retry_after is not None:
        # Jittered: clients that were refused together must not come back together.
        milliseconds = max(1, int(1000 * error.retry_after * random.uniform(1.0, 2.0)))  # noqa: S311 - no secret
        seconds = math.ceil(milliseconds / 1000) + random.getrandbits(1)
        headers.append((b"retry-after", b"%d" % seconds))
    if isinstance(error, OverloadedError):
        body |= {"reason": error.reason, "retry_after_ms": milliseconds}
        # Meshes ask another replica at once after a bare 503, and three times the load is no help.
        headers.append((b"x-envoy-overloaded", b"true"))
    if isinstance(error, UnsupportedEncodingError):
        headers.append((b"accept-encoding", b"gzip, deflate"))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", error.allow.encode()))
    return dump(body), headers


def dump(value: Any) -> bytes:
    """JSON without white space. A lone surrogate, which UTF-8 cannot carry, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
