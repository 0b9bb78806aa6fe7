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
from itertools import accumulate
from traceback import clear_frames
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from fastinfer.errors import (
    ConfigurationError,
    FastinferError,
    InvalidMessageError,
    ShuttingDownError,
    UnavailableError,
)
from fastinfer.protocols.exchange import CLIENT_GONE
from fastinfer.protocols.grpc_calls import Call, Gathering, Peers, fields_of
from fastinfer.protocols.grpc_intake import Intake
from fastinfer.protocols.grpc_messages import message
from fastinfer.protocols.grpc_methods import METHODS, health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastinfer.protocols.grpc_calls import Context, Fields
    from fastinfer.protocols.grpc_intake import Receipt
    from fastinfer.protocols.journal import Journal
    from fastinfer.service import Service

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM_INFER = SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer"
HEALTH = "/grpc.health.v1.Health/"
ACCEPTORS = {INFER: 16, STREAM_INFER: 4}  # calls that may wait to be accepted without a turn of the loop between them
MOST_CALLS = 32_768  # that are open at a time; an idle stream takes some 25 KB
KEEPALIVE = 75  # seconds after which a silent client with open calls has to say that it is still there
WINDOW = 32  # requests of one stream that are under way at a time
LOOK = 0.1  # seconds between looks at the health that a client watches
MAX_DETAILS, MAX_PLACE = 4096, 1024  # bytes of an error's text and of its place: a status travels in header fields
IN_PLACE = "$.[]\"'_-/: "  # what stands in one as it is
logger = logging.getLogger("fastinfer.request")


class Servicer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods of both services over one application's models."""

    def __init__(self, service: Service, journal: Journal) -> None:
        self.core = service
        self.journal = journal
        self.closing = asyncio.Event()
        self.changed = asyncio.Event()  # the health has; then there is another one
        self.watching = 0
        self.look: asyncio.Future[None]
        self.gathering = Gathering()
        self.peers = Peers(service.settings.forwarded_allow_ips)
        inflight = service.settings.inflight_bytes
        self.intake = Intake(most_of(service), inflight, lambda: service.counters.inflight_bytes)
        self.handlers = {
            INFER: grpc.unary_unary_rpc_method_handler(self.infer),
            STREAM_INFER: grpc.stream_stream_rpc_method_handler(self.stream_infer),
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
        call = Call(self.core, INFER, context, fields_of(context.invocation_metadata() or ()), self.peers)
        try:
            answer = await self.answered(call, body, context)
        except FastinferError as error:
            await refuse(context, error, call.echoed())
            raise
        if call.told:
            context.set_trailing_metadata(tuple(call.told))
        return answer

    async def answered(self, call: Call, body: bytes, context: Context) -> bytes:
        """The answer, counted and logged, whatever becomes of it.

        Raises:
            FastinferError: what the client is to be told.
        """
        try:
            return await call.answer(body, context.time_remaining(), self.gathering)
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
        fields = fields_of(context.invocation_metadata() or ())
        waiting: deque[asyncio.Task[bytes]] = deque()
        source = aiter(requests)
        reading: asyncio.Future[bytes] | None = None
        receipt: Receipt | None = None
        closing = asyncio.ensure_future(self.closing.wait())
        heavy: asyncio.Future[None] = self.gathering.loop.create_future()
        ended = False

        def end() -> None:
            if not heavy.done():
                heavy.set_result(None)

        try:
            while waiting or not ended:
                if reading is None and not ended and not closing.done() and len(waiting) < WINDOW:
                    receipt = self.intake.begin(context.peer(), end)
                    reading = asyncio.ensure_future(anext(source))
                watched: set[asyncio.Future[Any]] = {heavy, *filter(None, (reading, waiting[0] if waiting else None))}
                if not closing.done():
                    watched.add(closing)
                if reading is None and not waiting:
                    break
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and receipt is not None and reading.done():
                    body = b""
                    try:
                        body = reading.result()
                        waiting.append(asyncio.ensure_future(self.streamed(body, context, fields)))
                    except StopAsyncIteration:
                        ended = True
                    self.intake.done(receipt, len(body))
                    reading = None
                elif heavy.done():
                    await self.heavy(STREAM_INFER, context)
                elif closing.done() and reading is not None:
                    reading.cancel()
                    reading = None
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
            if not ended:
                await refuse(context, ShuttingDownError("the server is shutting down"))
        finally:
            closing.cancel()
            if receipt is not None:
                self.intake.done(receipt, -1)
            if reading is not None:
                reading.cancel()
            for task in waiting:
                task.cancel()

    async def streamed(self, body: bytes, context: Context, fields: Fields) -> bytes:
        """The ModelStreamInferResponse to one request of a stream."""
        call = Call(self.core, STREAM_INFER, context, fields, self.peers)
        try:
            return field(2, await self.answered(call, body, context) + FINAL)
        except FastinferError as error:
            clear_frames(error.__traceback__)  # which hold the message, in a cycle
            return field(1, fitting(str(error), MAX_DETAILS).encode()) + field(2, same_id(body))

    async def full(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """A call that is one too many, of whatever method."""
        await refuse(context, UnavailableError("as many gRPC calls are open as may be"))

    async def heavy(self, path: str, context: Context) -> None:
        """End a call whose message, not whole yet, takes room that there is not."""
        call = Call(self.core, path, context, fields_of(context.invocation_metadata() or ()), self.peers)
        call.infer = path in (INFER, STREAM_INFER)
        error = UnavailableError("the bodies of the requests in flight are over inflight_bytes")
        call.fail(error)
        self.journal.close(call)
        await refuse(context, error, call.echoed())

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
        asked = await asked_health(body, context)
        status = health(self.core, asked)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(f"there is no service {asked!r}", MAX_DETAILS))
        return bytes(message("HealthCheckResponse")(status=status).SerializeToString())

    async def watch(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        asked = await asked_health(body, context)
        told = None
        self.watching += 1
        if self.watching == 1:
            self.look = asyncio.ensure_future(self.look_at_health())
        try:
            while True:
                changed = self.changed
                status = health(self.core, asked)
                status = 3 if status is None else status  # SERVICE_UNKNOWN
                if status != told:
                    yield message("HealthCheckResponse")(status=status).SerializeToString()
                    told = status
                    continue
                if self.closing.is_set():
                    return
                await changed.wait()
        finally:
            self.watching -= 1
            if self.watching == 0:
                self.look.cancel()

    async def look_at_health(self) -> None:
        """Wake all who watch the health when it changes."""
        ready = self.core.ready
        while not self.closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), LOOK)
            if ready != self.core.ready or self.closing.is_set():
                ready = self.core.ready
                changed, self.changed = self.changed, asyncio.Event()
                changed.set()


class Server:
    """A gRPC server over an application's models, on addresses that the process holds already."""

    def __init__(self, service: Service, journal: Journal, addresses: list[str], connections: int) -> None:
        """`connections`: as many may be open at once."""
        self.servicer = Servicer(service, journal)
        self.addresses = addresses
        self.options = [
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", most_of(service)),
            # What a call that nobody waits for may hold must not grow with how fast its client is.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_allowed_incoming_connections", connections),
            # By default the core cancels some of those that wait to be accepted from the 1,000th on, without a word.
            ("grpc.server.max_pending_requests", MOST_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", MOST_CALLS),
            ("grpc.keepalive_time_ms", 1000 * KEEPALIVE),
        ]
        self.server = self.listening()
        self.keeping: asyncio.Task[None] | None = None

    def listening(self) -> grpc.aio.Server:
        """
        Raises:
            ConfigurationError: an address is taken.
        """
        server = accepting(self.servicer, self.options, MOST_CALLS)
        for address in self.addresses:
            try:
                self.servicer.intake.ports.add(server.add_insecure_port(address))
            except RuntimeError as error:
                raise ConfigurationError(f"gRPC cannot listen on {address}.") from error
        return server

    async def start(self) -> None:
        await self.server.start()
        self.keeping = asyncio.ensure_future(self.keep())

    async def keep(self) -> None:
        """Serve again where grpc's server ends by itself, as a call whose path is not UTF-8 ends grpc.aio's own."""
        while True:
            with suppress(Exception):  # what ended it
                await self.server.wait_for_termination()
            if self.servicer.closing.is_set():
                return
            logger.error("the gRPC server ended with all its calls; it is started again")
            try:
                self.server = self.listening()
                await self.server.start()
            except Exception:
                logger.exception("the gRPC server cannot be started again")
            await asyncio.sleep(LOOK)

    async def close(self, grace: float) -> bool:
        """Take no new calls and finish those that are open. Returns whether all were, in so many seconds."""
        self.servicer.closing.set()
        started = time.monotonic()
        await self.server.stop(max(grace, 0.0))
        self.servicer.intake.close()
        return time.monotonic() - started < max(grace, 0.001)


def accepting(servicer: Servicer, options: list[tuple[str, Any]], most: int) -> grpc.aio.Server:
    """A server with our own acceptors, or grpc.aio's own where this grpc is not one that those were made for."""
    try:
        from fastinfer.protocols.grpc_acceptors import AcceptingServer, faults

        missing = faults()
        if not missing:
            full = grpc.stream_stream_rpc_method_handler(servicer.full)
            return AcceptingServer(
                servicer.handlers, options, acceptors=ACCEPTORS, most=most, full=full, intake=servicer.intake,
                heavy=servicer.heavy,
            )  # fmt: skip
    except (ImportError, AttributeError, TypeError) as error:
        missing = [str(error)]
    logger.warning(
        "grpcio %s is not one that fastinfer was made for: %s is missing or of another kind. Calls are accepted by "
        "grpc.aio itself, which takes longer, and a call whose path is not UTF-8 ends all others for a moment",
        grpc.__version__,
        ", ".join(missing),
    )
    return grpc.aio.server(handlers=[servicer], options=options, maximum_concurrent_rpcs=most)


def most_of(service: Service) -> int:
    """Bytes of the longest message that is taken."""
    return min(service.settings.max_body_bytes, (1 << 31) - 1)


def parsed(name: str, body: bytes) -> Any:
    """A message of bytes.

    Raises:
        InvalidMessageError: they are none.
    """
    try:
        return message(name).FromString(body)
    except DecodeError as error:
        raise InvalidMessageError(f"the message is not a {name}") from error


async def refuse(context: Context, error: FastinferError, beside: Sequence[tuple[str, str]] = ()) -> None:
    """End a call with an error: its gRPC status, its code and place beside it, and when to come back."""
    trailing = [("fastinfer-code", error.code), *beside]
    if error.at is not None:
        trailing.append(("fastinfer-at", quote(fitting(error.at, MAX_PLACE), safe=IN_PLACE)))
    if error.retry_after is not None:
        # Jittered: clients that were refused together must not come back together.
        milliseconds = max(1, int(1000 * error.retry_after * random.uniform(1.0, 2.0)))  # noqa: S311 - no secret
        trailing.append(("grpc-retry-pushback-ms", str(milliseconds)))
    await context.abort(getattr(grpc.StatusCode, error.grpc), fitting(str(error), MAX_DETAILS), tuple(trailing))


def fitting(text: str, most: int) -> str:
    """So much of a text as takes so many bytes percent-encoded; what UTF-8 cannot carry becomes a question mark."""
    text = text[:most].encode("utf-8", "replace").decode()
    if 3 * len(text) <= most and text.isascii():
        return text
    sizes = accumulate(len(quote(character, safe=IN_PLACE)) for character in text)
    return "".join(character for character, size in zip(text, sizes, strict=True) if size <= most)


async def asked_health(body: bytes, context: Context) -> str:
    """The service that a HealthCheckRequest names."""
    try:
        asked: Any = parsed("HealthCheckRequest", body)
    except InvalidMessageError as error:
        await refuse(context, error)
        raise
    return str(asked.service)


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
