"""An inference over gRPC on its way through the spine, and what of its metadata counts.

grpc.aio hands over one call after the other, each some turns of the loop behind the one before, so that a model would
run for each alone. Calls that come close together are therefore gathered, and submitted together.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from fastinfer._core import Arrival, Proxies, message_target, prefers_server_timing, request_timeout
from fastinfer.errors import UnavailableError
from fastinfer.protocols.exchange import LARGE, REQUEST_ID, next_request_id
from fastinfer.protocols.load_report import ASKS, FIELD, load_report

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    import grpc.aio

    from fastinfer._core import Ticket
    from fastinfer.errors import FastinferError
    from fastinfer.model import Model
    from fastinfer.service import Service

    Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
    Fields: TypeAlias = dict[str, list[bytes]]
    Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

MESSAGE = 2  # the core's KIND_MESSAGE
# Metadata that counts, as the header field of the same name does over HTTP.
TIMEOUT, TRACE, ID, PREFER = "x-request-timeout", "traceparent", "x-request-id", "prefer"
REPORT, FORWARDED = ASKS.decode(), "x-forwarded-for"
COUNTS = frozenset((TIMEOUT, TRACE, ID, PREFER, REPORT, FORWARDED))
MOST_SEEN = 4096  # peers that are remembered
MOST_GATHERED = 32  # calls
GATHERING_NS = 2_000_000  # longest time that one waits for others
QUIET_TURNS = 8  # of the loop, without another call, after which none is waited for
LONE = 4  # calls in a row that came alone, after which none waits for others
SELDOM = 32  # of those that then come, the one with which it is tried again whether others come


class Peer(NamedTuple):
    """Who asks: his address, where it is known, and a number for his host, as over HTTP: whose share his requests
    count to."""

    address: tuple[str, int] | None
    key: int


class Peers:
    """Who asks, by what gRPC calls a peer, and by what peers that are trusted say of those they speak for.

    Args:
        trusted: as of the option `forwarded_allow_ips`.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        self.proxies = Proxies(trusted)
        self.seen: dict[tuple[str, tuple[bytes, ...]], Peer] = {}

    def of(self, text: str, lines: Iterable[bytes] = ()) -> Peer:
        """`text` is as `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`, `unix:`; `lines` are those of x-forwarded-for."""
        known = text, tuple(lines)
        peer = self.seen.get(known)
        if peer is None:
            if len(self.seen) >= MOST_SEEN:
                self.seen.clear()
            peer = self.seen[known] = self.read(*known)
        return peer

    def read(self, text: str, lines: tuple[bytes, ...]) -> Peer:
        kind, _, rest = text.partition(":")
        if kind == "unix":
            return Peer(*self.proxies.client(b"", list(lines)))
        host, _, port = unquote(rest).rpartition(":")
        if kind not in ("ipv4", "ipv6") or not port.isdigit():
            return Peer(None, 0)
        host = host.strip("[]")
        told, key = self.proxies.client(host.encode(), list(lines))
        return Peer(told or (host, int(port)), key)


def fields_of(metadata: Metadata) -> Fields:
    """What counts of a call's metadata, by name."""
    fields: Fields = {}
    for name, value in metadata:
        if name in COUNTS:
            fields.setdefault(name, []).append(value if isinstance(value, bytes) else value.encode("utf-8", "replace"))
    return fields


class Call:
    """One inference request and what is counted and logged of it, as of an `Exchange`.

    Attributes:
        fields: what counts of the call's metadata.
        told: trailing metadata of a good answer.
    """

    __slots__ = (
        "_request_id", "arrival", "body", "endpoint", "error", "fields", "infer", "metadata", "method", "model",
        "peer", "rows", "service", "size", "started_ns", "status", "ticket", "told", "version", "waiter",
    )  # fmt: skip
    lane = "grpc"

    def __init__(self, service: Service, method: str, context: Context, fields: Fields, peers: Peers) -> None:
        self.started_ns = time.monotonic_ns()
        self.metadata = context.invocation_metadata  # all of it
        self.service = service
        self.method = method
        self.peer = peers.of(context.peer(), fields.get(FORWARDED, ()))
        self.fields = fields
        self.told: list[tuple[str, str]] = []
        self.infer = True
        self.model = self.version = ""
        self.status = self.size = self.rows = 0
        self.error: FastinferError | None = None
        self.ticket: Ticket | None = None
        self._request_id = b""

    @property
    def request_id(self) -> bytes:
        """The client's x-request-id where it is short and harmless, else one made when it is first asked for."""
        if not self._request_id:
            given = self.fields.get(ID, [b""])[-1]
            self._request_id = given if REQUEST_ID.fullmatch(given) else next_request_id()
        return self._request_id

    @property
    def scope(self) -> dict[str, Any]:
        """As the log wants it."""
        return {"method": "POST", "path": self.method, "client": self.peer.address}

    async def answer(self, body: bytes, remaining: float | None, gathering: Gathering) -> bytes:
        """The ModelInferResponse to a ModelInferRequest.

        A client that leaves cancels this, and its rows do not run.

        Args:
            remaining: seconds that the client allows, or None.

        Raises:
            FastinferError: of the request or of its run.
        """
        service, counters = self.service, self.service.counters
        if counters.inflight_bytes + len(body) > service.settings.inflight_bytes:
            raise UnavailableError("the bodies of the requests in flight are over inflight_bytes")
        counters.inflight_bytes += len(body)
        try:
            model, ticket = await self.result(body, remaining, gathering)
        finally:
            counters.inflight_bytes -= len(body)
        answer, _ = await service.on_worker(ticket.encode) if ticket.large else ticket.encode()
        self.status, self.size = 200, len(answer)
        if self.fields or service.settings.server_timing:
            self.tell(model, ticket)
        return answer

    async def result(self, body: bytes, remaining: float | None, gathering: Gathering) -> tuple[Model, Ticket]:
        """The model that is asked, and what came of it."""
        service = self.service
        timeout_ns = 0 if remaining is None else max(1, int(min(remaining, 1e9) * 1e9))
        if TIMEOUT in self.fields:
            told = request_timeout(self.fields[TIMEOUT])
            timeout_ns = min(told or timeout_ns, timeout_ns or told)
        name, version = message_target(body)
        model = service.at_hand(name, version or None)
        if model is None:
            found = await service.lookup(name, version or None)
            model = found.model or await service.bring(found, timeout_ns / 1e9)
        self.model, self.version = model.name, model.version
        arrival = Arrival(self.started_ns, timeout_ns, self.peer.key)
        if TRACE in self.fields:
            arrival.trace = self.fields[TRACE][-1]
        if model.batcher.forwards is not None:
            arrival.fields = [(key.encode(), value if isinstance(value, bytes) else value.encode())
                              for key, value in self.metadata() or ()]
        model.endpoint.gate(MESSAGE, len(body), arrival)
        return model, await self.run(model, body, arrival, gathering)

    async def run(self, model: Model, body: bytes, arrival: Arrival, gathering: Gathering) -> Ticket:
        """Submit, and wait for the result."""
        self.waiter = gathering.loop.create_future()
        try:
            if len(body) > LARGE:
                decoded = await self.service.on_worker(model.endpoint.decode, MESSAGE, body, -1)
                self.ticket = model.endpoint.submit_decoded(decoded, self.done, arrival)
            else:
                self.endpoint, self.body, self.arrival = model.endpoint, body, arrival
                gathering.join(self)
            await self.waiter
        except asyncio.CancelledError:
            if self.ticket is not None:
                self.ticket.cancel()
            raise
        ticket = self.ticket
        assert ticket is not None
        self.rows = ticket.rows
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def submit(self) -> None:
        """Hand the request over to its model, unless its client has left meanwhile."""
        if self.waiter.done():
            return
        try:
            self.ticket = self.endpoint.submit(MESSAGE, self.body, -1, self.done, self.arrival)
        except Exception as error:
            self.waiter.set_exception(error)

    def done(self, _: Ticket) -> None:
        if not self.waiter.done():
            self.waiter.set_result(None)

    def tell(self, model: Model, ticket: Ticket) -> None:
        """Put beside the answer what the metadata asks for."""
        self.told += self.echoed()
        if self.service.settings.server_timing or any(map(prefers_server_timing, self.fields.get(PREFER, ()))):
            self.told.append(("server-timing", ticket.server_timing().decode()))
        form = self.fields.get(REPORT)
        report = None if form is None else load_report(model, self.service.settings, form[-1])
        if report is not None:
            self.told.append((FIELD.decode(), report.decode()))

    def echoed(self) -> list[tuple[str, str]]:
        """The request's id, where the client gave one."""
        return [(ID, self.request_id.decode())] if ID in self.fields else []

    def fail(self, error: FastinferError) -> None:
        """It is answered with an error."""
        self.error = error
        self.status = error.status


class Gathering:
    """Calls that come close together, submitted together, so that one run of the model answers them.

    A call waits until no other has come for some turns of the loop, never longer than GATHERING_NS. Where calls come
    alone all the same they are submitted at once, and only now and then one waits to see whether that still holds.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: list[Call] = []
        self.alone = 0  # calls that came alone since the last with company
        self.seen = 0
        self.quiet = 0
        self.until_ns = 0

    def join(self, call: Call) -> None:
        """Submit a call, now or with others; a refusal is its waiter's exception."""
        if self.alone >= LONE and self.alone % SELDOM:
            self.alone += 1
            call.submit()
            return
        self.calls.append(call)
        if len(self.calls) == 1:
            self.seen = 1
            self.quiet = 0
            self.until_ns = call.started_ns + GATHERING_NS
            self.loop.call_soon(self.turn)

    def turn(self) -> None:
        """Once a turn of the loop while calls are gathered."""
        count = len(self.calls)
        self.quiet = 0 if count > self.seen else self.quiet + 1
        self.seen = count
        if count < MOST_GATHERED and self.quiet < QUIET_TURNS and time.monotonic_ns() < self.until_ns:
            self.loop.call_soon(self.turn)
            return
        self.alone = 0 if count > 1 else self.alone + 1
        calls, self.calls = self.calls, []
        for call in calls:
            call.submit()
