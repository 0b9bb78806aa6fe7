"""`inference.GRPCInferenceService` and `grpc.health.v1.Health`, on a port of their own.

Inference takes and gives the messages' bytes: the core reads and writes them. Everything else goes through protobuf.
A request's end is where HTTP's is: the same spine, errors, counters and log records.

Sources: kserve/open-inference-protocol `specification/protocol/open_inference_grpc.proto`; triton-inference-server/
server `src/grpc/`; gRPC's `doc/health-checking.md`, and its proposal A6 for `grpc-retry-pushback-ms`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from fastinfer._core import Arrival, message_target
from fastinfer.errors import (
    ConfigurationError,
    FastinferError,
    InvalidMessageError,
    ShuttingDownError,
    UnavailableError,
)
from fastinfer.protocols.exchange import CLIENT_GONE, LARGE, next_request_id
from fastinfer.protocols.grpc_messages import message
from fastinfer.protocols.grpc_methods import METHODS, health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import TypeAlias

    from fastinfer._core import Ticket
    from fastinfer.model import Model
    from fastinfer.protocols.journal import Journal
    from fastinfer.service import Service

    Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MESSAGE = 2  # the core's KIND_MESSAGE
SERVICE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/"
WINDOW = 32  # requests of one stream that are under way at a time
LOOK = 0.1  # seconds between looks at the health that a client watches
MAX_DETAILS = 4096  # characters of an error's message: a status travels in a header
logger = logging.getLogger("fastinfer.request")


class Call:
    """One inference request and what is counted and logged of it, as of an `Exchange`."""

    __slots__ = (
        "_request_id", "error", "infer", "method", "model", "peer", "rows", "service", "size", "started_ns", "status",
        "ticket", "version",
    )  # fmt: skip
    lane = "grpc"

    def __init__(self, service: Service, context: Context, method: str) -> None:
        self.service = service
        self.method = method
        self.peer: str = context.peer()
        self.started_ns = time.monotonic_ns()
        self.infer = True
        self.model = self.version = ""
        self.status = self.size = self.rows = 0
        self.error: FastinferError | None = None
        self.ticket: Ticket | None = None
        self._request_id = b""

    @property
    def request_id(self) -> bytes:
        """Made when it is first asked for."""
        self._request_id = self._request_id or next_request_id()
        return self._request_id

    @property
    def scope(self) -> dict[str, Any]:
        """As the log wants it."""
        return {"method": "POST", "path": self.method, "client": client_of(self.peer)[0]}

    async def answer(self, body: bytes, remaining: float | None) -> bytes:
        """The ModelInferResponse to a ModelInferRequest.

        Args:
            remaining: seconds that the client allows, or None.

        Raises:
            FastinferError: of the request or of its run.
        """
        name, version = message_target(body)
        found = await self.service.lookup(name, version or None)
        model = found.model or await self.service.bring(found, remaining or 0.0)
        self.model, self.version = model.name, model.version
        timeout_ns = 0 if remaining is None else max(1, int(min(remaining, 1e9) * 1e9))
        arrival = Arrival(self.started_ns, timeout_ns, client_of(self.peer)[1])
        model.endpoint.gate(MESSAGE, len(body), arrival)
        counters = self.service.counters
        if counters.inflight_bytes + len(body) > self.service.settings.inflight_bytes:
            raise UnavailableError("the bodies of the requests in flight are over inflight_bytes")
        counters.inflight_bytes += len(body)
        try:
            ticket = await self.run(model, body, arrival)
        finally:
            counters.inflight_bytes -= len(body)
        answer, _ = await self.service.on_worker(ticket.encode) if ticket.large else ticket.encode()
        self.status, self.size = 200, len(answer)
        return answer

    async def run(self, model: Model, body: bytes, arrival: Arrival) -> Ticket:
        """Submit, and wait for the result. A client that leaves cancels this, and its rows do not run."""
        waiter = asyncio.get_running_loop().create_future()

        def done(_: Ticket) -> None:
            if not waiter.done():
                waiter.set_result(None)

        if len(body) > LARGE:
            decoded = await self.service.on_worker(model.endpoint.decode, MESSAGE, body, -1)
            ticket = model.endpoint.submit_decoded(decoded, done, arrival)
        else:
            ticket = model.endpoint.submit(MESSAGE, body, -1, done, arrival)
        self.ticket = ticket
        self.rows = ticket.rows
        try:
            await waiter
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def fail(self, error: FastinferError) -> None:
        """It is answered with an error."""
        self.error = error
        self.status = error.status


class Servicer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods of both services over one application's models."""

    def __init__(self, service: Service, journal: Journal) -> None:
        self.core = service
        self.journal = journal
        self.closing = asyncio.Event()
        self.handlers = {
            SERVICE + "ModelInfer": grpc.unary_unary_rpc_method_handler(self.infer),
            SERVICE + "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self.stream_infer),
            HEALTH + "Check": grpc.unary_unary_rpc_method_handler(self.check),
            HEALTH + "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        for name, (request, response, method) in METHODS.items():
            answer = self.unary(SERVICE + name, request, response, method)
            self.handlers[SERVICE + name] = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self.handlers.get(handler_call_details.method)

    # ---- inference ----------------------------------------------------------------------------------------------
    async def infer(self, body: bytes, context: Context) -> bytes:
        call = Call(self.core, context, SERVICE + "ModelInfer")
        try:
            return await self.answered(call, body, context)
        except FastinferError as error:
            await refuse(context, error)
            raise

    async def answered(self, call: Call, body: bytes, context: Context) -> bytes:
        """The answer, counted and logged, whatever becomes of it.

        Raises:
            FastinferError: what the client is to be told.
        """
        try:
            return await call.answer(body, context.time_remaining())
        except FastinferError as error:
            call.fail(error)
            raise
        except asyncio.CancelledError:
            call.status = CLIENT_GONE
            raise
        except Exception:
            logger.exception("request %s failed", call.request_id.decode())
            internal = FastinferError("internal error; the server's log has it")
            call.fail(internal)
            raise internal from None
        finally:
            self.journal.close(call)

    async def stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Answers in the requests' order; an error is a message of its own, and the stream goes on."""
        waiting: deque[asyncio.Task[bytes]] = deque()
        source = aiter(requests)
        reading: asyncio.Future[bytes] | None = None
        closing = asyncio.ensure_future(self.closing.wait())
        ended = False
        try:
            while waiting or not ended:
                if reading is None and not ended and not closing.done() and len(waiting) < WINDOW:
                    reading = asyncio.ensure_future(anext(source))
                watched: set[asyncio.Future[Any]] = {*filter(None, (reading, waiting[0] if waiting else None))}
                if not closing.done():
                    watched.add(closing)
                if reading is None and not waiting:
                    break
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done():
                    try:
                        waiting.append(asyncio.ensure_future(self.streamed(reading.result(), context)))
                    except StopAsyncIteration:
                        ended = True
                    reading = None
                elif closing.done() and reading is not None:
                    reading.cancel()
                    reading = None
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
            if not ended:
                await refuse(context, ShuttingDownError("the server is shutting down"))
        finally:
            closing.cancel()
            if reading is not None:
                reading.cancel()
            for task in waiting:
                task.cancel()

    async def streamed(self, body: bytes, context: Context) -> bytes:
        """The ModelStreamInferResponse to one request of a stream."""
        call = Call(self.core, context, SERVICE + "ModelStreamInfer")
        try:
            return field(2, await self.answered(call, body, context) + FINAL)
        except FastinferError as error:
            return field(1, str(error).encode("utf-8", "replace")) + field(2, same_id(body))

    # ---- the rest -----------------------------------------------------------------------------------------------
    def unary(self, path: str, request: str, response: str, method: Any) -> Callable[[bytes, Context], Any]:
        """A handler of bytes around a method that takes a message and returns what fills one."""

        async def handler(body: bytes, context: Context) -> bytes:
            try:
                asked = parsed(request, body)
                answer = json_format.ParseDict(
                    await method(self.core, asked), message(response)(), ignore_unknown_fields=True
                )
                return bytes(answer.SerializeToString())
            except FastinferError as error:
                if self.journal.is_written(error):
                    self.journal.write(error, {"method": "POST", "path": path, "status": error.status})
                await refuse(context, error)
                raise
            except Exception:
                if context.done():
                    raise
                logger.exception("%s failed", path)
                await refuse(context, FastinferError("internal error; the server's log has it"))
                raise

        return handler

    async def check(self, body: bytes, context: Context) -> bytes:
        asked: Any = parsed("HealthCheckRequest", body)
        status = health(self.core, asked.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {asked.service!r}")
        return bytes(message("HealthCheckResponse")(status=status).SerializeToString())

    async def watch(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        asked: Any = parsed("HealthCheckRequest", body)
        told = None
        while True:
            status = health(self.core, asked.service)
            status = 3 if status is None else status  # SERVICE_UNKNOWN
            if status != told:
                yield message("HealthCheckResponse")(status=status).SerializeToString()
                told = status
            if self.closing.is_set():
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), LOOK)


class Server:
    """A gRPC server over an application's models, on addresses that the process holds already."""

    def __init__(self, service: Service, journal: Journal, addresses: list[str], connections: int) -> None:
        """`connections`: as many calls may be open at once; the next one is refused."""
        limit = service.settings.max_body_bytes
        self.servicer = Servicer(service, journal)
        self.server = grpc.aio.server(
            handlers=[self.servicer],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", min(limit, (1 << 31) - 1)),
                ("grpc.max_send_message_length", -1),
            ],
            maximum_concurrent_rpcs=connections,
        )
        for address in addresses:
            try:
                self.server.add_insecure_port(address)
            except RuntimeError as error:
                raise ConfigurationError(f"gRPC cannot listen on {address}.") from error

    async def start(self) -> None:
        await self.server.start()

    async def close(self, grace: float) -> bool:
        """Take no new calls and finish those that are open. Returns whether all were, in so many seconds."""
        self.servicer.closing.set()
        started = time.monotonic()
        await self.server.stop(max(grace, 0.0))
        return time.monotonic() - started < max(grace, 0.001)


def parsed(name: str, body: bytes) -> Any:
    """A message of bytes.

    Raises:
        InvalidMessageError: they are none.
    """
    try:
        return message(name).FromString(body)
    except DecodeError as error:
        raise InvalidMessageError(f"the message is not a {name}") from error


async def refuse(context: Context, error: FastinferError) -> None:
    """End a call with an error: its gRPC status, its code and place beside it, and when to come back."""
    trailing = [("fastinfer-code", error.code)]
    if error.at is not None:
        trailing.append(("fastinfer-at", quote(error.at, safe="$.[]\"'_-/: ")))
    if error.retry_after is not None:
        # Jittered: clients that were refused together must not come back together.
        milliseconds = max(1, int(1000 * error.retry_after * random.uniform(1.0, 2.0)))  # noqa: S311 - no secret
        trailing.append(("grpc-retry-pushback-ms", str(milliseconds)))
    await context.abort(getattr(grpc.StatusCode, error.grpc), str(error)[:MAX_DETAILS], tuple(trailing))


def field(number: int, data: bytes) -> bytes:
    """A field of bytes in protobuf's wire format."""
    head = bytearray((number << 3 | 2,))
    size = len(data)
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + data


# A parameter of a stream's answers, as Triton has it: there is one answer to each request.
FINAL = field(4, field(1, b"triton_final_response") + field(2, b"\x08\x01"))


def same_id(body: bytes) -> bytes:
    """The request's id as a field of an answer, so that a client knows which request of its stream has failed."""
    try:
        name: str = message("ModelInferRequest").FromString(body).id
    except DecodeError:
        return b""
    return field(3, name.encode()) if name else b""


@lru_cache(maxsize=4096)
def client_of(peer: str) -> tuple[tuple[str, int] | None, int]:
    """A client's address, and a number for its host, as of its HTTP connections: whose share its requests count to."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None, 0
    host = host.strip("[]")
    return (host, int(port)), -abs(hash(host)) or -1
