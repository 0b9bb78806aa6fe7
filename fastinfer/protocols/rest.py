"""The Open Inference Protocol over REST, and `:predict` with records.

Sources: kserve/open-inference-protocol `specification/protocol/inference_rest.md`; Triton `docs/protocol/`. The
error shape, statuses and bounds are this server's own and the same on every path.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING

from fastinfer import __version__
from fastinfer._core import prefers_server_timing
from fastinfer.errors import InvalidBinaryError, NotReadyError
from fastinfer.protocols.exchange import JSON, LARGE, ClientGoneError, Exchange, dump
from fastinfer.protocols.load_report import ASKS, FIELD, load_report

if TYPE_CHECKING:
    from starlette.routing import Route

    from fastinfer._core import Arrival, Ticket
    from fastinfer.model import Model
    from fastinfer.protocols.router import Router

INFER, RECORDS = 0, 1  # the core's KIND_INFER, KIND_RECORDS
WATCH_AFTER = 0.02  # seconds a request runs before anybody looks whether its client is still there
NUMBER = re.compile(rb"[+-]?[0-9]{1,18}")
OCTETS = b"application/octet-stream"
EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters", "schedule_policy",
    "statistics",
)  # fmt: skip


def routes(router: Router) -> list[Route]:
    """R1 to R4, R6 and `:predict`; the infer paths first, because they are asked most."""
    infer, predict = partial(answer_infer, kind=INFER), partial(answer_infer, kind=RECORDS)
    return [
        router.route("/v2/models/{name}/infer", infer, "POST"),
        router.route("/v1/models/{name}:predict", predict, "POST"),
        router.route("/v2/models/{name}/versions/{version}/infer", infer, "POST"),
        router.route("/v1/models/{name}/versions/{version}:predict", predict, "POST"),
        router.route("/v2/health/live", live),
        router.route("/v2/health/ready", ready),
        router.route("/v2", server_metadata),
        router.route("/v2/", server_metadata),
        router.route("/v2/models/{name}/ready", model_ready),
        router.route("/v2/models/{name}/versions/{version}/ready", model_ready),
    ]


def metadata_routes(router: Router) -> list[Route]:
    """R5. They stand after every other route: to them "stats" would be a model."""
    return [
        router.route("/v2/models/{name}", model_metadata),
        router.route("/v2/models/{name}/versions/{version}", model_metadata),
    ]


async def answer_infer(exchange: Exchange, kind: int) -> None:
    """R6: decode, preprocess, batch, run and encode, all in the core."""
    exchange.infer = True
    path = exchange.path
    found = await exchange.service.lookup(path["name"], path.get("version"))
    model = found.model or await exchange.service.bring(found, exchange.arrival().timeout_ns / 1e9)
    exchange.model, exchange.version = model.name, model.version
    arrival = exchange.arrival()
    model.endpoint.gate(kind, exchange.declared, arrival)
    body = await exchange.body()
    header_length = binary_header(exchange.headers, len(body)) if kind == INFER else -1
    ticket = await run(exchange, model, kind, body, header_length, arrival)
    if ticket.large:
        answer, json_size = await exchange.service.on_worker(ticket.encode)
    else:
        answer, json_size = ticket.encode()
    headers = [(b"inference-header-content-length", b"%d" % json_size)] if json_size >= 0 else []
    if exchange.service.settings.server_timing or wants_timing(exchange):
        headers.append((b"server-timing", ticket.server_timing()))
    form = exchange.headers.get(ASKS)
    report = None if form is None else load_report(model, exchange.service.settings, form)
    if report is not None:
        headers.append((FIELD, report))
    await exchange.respond(200, answer, JSON if json_size < 0 else OCTETS, headers)


def wants_timing(exchange: Exchange) -> bool:
    """Whether the client asks for the durations of its request's phases: `Prefer: server-timing` (RFC 7240)."""
    fields = exchange.scope["headers"]
    return any(name == b"prefer" and prefers_server_timing(value) for name, value in fields)


def binary_header(headers: dict[bytes, bytes], size: int) -> int:
    """Bytes of JSON before the binary tensors, or -1 where the request carries none.

    Raises:
        InvalidBinaryError: not a number, or outside the body; worded as Triton does.
    """
    value = headers.get(b"inference-header-content-length")
    if value is None:
        return -1
    if NUMBER.fullmatch(value.strip()) is None:
        raise InvalidBinaryError("Unable to parse Inference-Header-Content-Length")
    length = int(value)
    if not 0 <= length <= size:
        raise InvalidBinaryError(f"inference header size should be in range (0, {size}), got: {length}")
    return length


async def run(
    exchange: Exchange, model: Model, kind: int, body: bytes, header_length: int, arrival: Arrival
) -> Ticket:
    """Submit, and wait for the result or for the client to leave.

    Raises:
        FastinferError: of the request or of its run.
        ClientGoneError: the client left; its rows will not run, or their result is dropped.
    """
    waiter = asyncio.get_running_loop().create_future()

    def done(_: Ticket) -> None:
        if not waiter.done():
            waiter.set_result(None)

    if len(body) > LARGE or b"content-encoding" in exchange.headers:
        decoded = await exchange.service.on_worker(model.endpoint.decode, kind, body, header_length)
        ticket = model.endpoint.submit_decoded(decoded, done, arrival)
    else:
        ticket = model.endpoint.submit(kind, body, header_length, done, arrival)
    exchange.ticket = ticket
    exchange.rows = ticket.rows
    watch = Watch(exchange, waiter)
    try:
        await waiter
    except (asyncio.CancelledError, ClientGoneError):
        ticket.cancel()
        raise
    finally:
        watch.stop()
    if ticket.error is not None:
        raise ticket.error
    return ticket


class Watch:
    """Looks out for a client that leaves while its request waits. Costs a timer; a task only for the slow ones."""

    __slots__ = ("_receive", "_task", "_timer", "_waiter")

    def __init__(self, exchange: Exchange, waiter: asyncio.Future[None]) -> None:
        self._receive = exchange.receive
        self._waiter = waiter
        self._task: asyncio.Task[None] | None = None
        self._timer = waiter.get_loop().call_later(WATCH_AFTER, self._look)

    def _look(self) -> None:
        self._task = self._waiter.get_loop().create_task(self._wait())

    async def _wait(self) -> None:
        # The body has been read: all that can come is the disconnect.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._waiter.done():
            self._waiter.set_exception(ClientGoneError())

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


async def live(exchange: Exchange) -> None:
    """R1."""
    await exchange.respond(200, b'{"live":true}', JSON)


async def ready(exchange: Exchange) -> None:
    """R2: 200 only when a request would be served; KServe's 503, where Triton says 400."""
    if exchange.service.ready:
        await exchange.respond(200, b'{"ready":true,"live":true}', JSON)
    else:
        await exchange.respond(503, b'{"ready":false,"live":true}', JSON, [(b"retry-after", b"1")])


async def server_metadata(exchange: Exchange) -> None:
    """R4."""
    await exchange.json(200, {"name": "fastinfer", "version": __version__, "extensions": EXTENSIONS})


async def model_ready(exchange: Exchange) -> None:
    """R3."""
    name, version = exchange.path["name"], exchange.path.get("version")
    try:
        await exchange.service.lookup(name, version)
        up = exchange.service.registry.model_ready(name, version)
    except NotReadyError:
        up = False
    if up:
        await exchange.json(200, {"name": name, "ready": True})
    else:
        await exchange.respond(503, dump({"name": name, "ready": False}), JSON, [(b"retry-after", b"1")])


async def model_metadata(exchange: Exchange) -> None:
    """R5."""
    model = await exchange.service.model(exchange.path["name"], exchange.path.get("version"))
    await exchange.json(200, model.metadata(exchange.service.registry.versions(model.name)))
