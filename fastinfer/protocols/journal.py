"""What is logged and counted of each request."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastinfer._core import AccessLog
    from fastinfer.errors import FastinferError
    from fastinfer.protocols.exchange import Exchange
    from fastinfer.protocols.grpc_calls import Call

MAX_TEXT = 4096  # characters of an error's text, which may have a name that a client made up
BEHIND = (502, 503, 504)  # of what is behind this server, or of too much before it: they come as often as requests do
PER_SECOND = 10  # records of one kind of refusal; an overload must not become a flood of its own log
logger = logging.getLogger("fastinfer.request")
access_logger = logging.getLogger("fastinfer.access")


class Journal:
    """Writes a record for every error, and one for every request where `access_log` is on.

    The server's own errors are always written; a client's, refusals, and those of a server behind this one up to ten a
    second of each kind.

    Attributes:
        access: where the server keeps its access log, off the way of requests; without one (in somebody else's
            application) access records go to `logging`.
    """

    def __init__(self, *, access_log: bool) -> None:
        self.access_log = access_log
        self.access: AccessLog | None = None
        self._second = 0
        self._written: dict[str, int] = {}
        self._omitted: dict[str, int] = {}

    def close(self, exchange: Exchange | Call) -> None:
        """The exchange is over: count it, and write what there is to write."""
        if exchange.infer:
            exchange.service.counters.count(exchange.model, exchange.version, exchange.status, exchange.lane)
        if exchange.error is not None and self.is_written(exchange.error):
            self.write(exchange.error, _fields(exchange))
        if self.access is not None:
            self._note(self.access, exchange)
        elif self.access_log:
            access_logger.info("answered", extra={"fields": _access_fields(exchange)})

    def is_written(self, error: FastinferError) -> bool:
        """Whether an error that a client was told gets a record; asked once for each."""
        return (error.status >= 500 and error.status not in BEHIND) or self._may_write(error.code)

    def write(self, error: FastinferError, fields: dict[str, Any]) -> None:
        """Write an error's record."""
        level = logging.ERROR if error.status >= 500 and error.status != 503 else logging.WARNING
        logger.log(level, str(error)[:MAX_TEXT], extra={"fields": fields | {"code": error.code}})

    def _may_write(self, kind: str) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._report()
            self._second = second
            self._written = {}
        count = self._written[kind] = self._written.get(kind, 0) + 1
        return count <= PER_SECOND

    def omit(self, kind: str, count: int) -> None:
        """So many errors of a kind were told to clients and came to no record."""
        self._omitted[kind] = self._omitted.get(kind, 0) + count

    def _report(self) -> None:
        omitted, self._omitted = self._omitted, {}
        for kind in {**self._written, **omitted}:
            count = max(0, self._written.get(kind, 0) - PER_SECOND) + omitted.get(kind, 0)
            if count:
                logger.warning("%d more errors of the kind %s were not logged", count, kind)

    def _note(self, access: AccessLog, exchange: Exchange | Call) -> None:
        access.record(
            exchange.status,
            exchange.size,
            request_id=exchange.request_id,
            client=address(exchange.scope.get("client")).encode(),
            method=exchange.scope["method"].encode(),
            path=_path(exchange),
            model=exchange.model.encode(),
            version=exchange.version.encode(),
            code=exchange.error.code.encode() if exchange.error is not None else b"",
            ticket=exchange.ticket,
            total_ns=time.monotonic_ns() - exchange.started_ns,
        )


def address(client: tuple[str, int] | None) -> str:
    """A client as host:port, or host where the port is not known; empty on a Unix socket."""
    if client is None:
        return ""
    host, port = client
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _path(exchange: Exchange | Call) -> bytes:
    """As the client wrote it, without its query; not every ASGI server tells."""
    raw: bytes = exchange.scope.get("raw_path") or exchange.scope["path"].encode("utf-8", "backslashreplace")
    return raw.partition(b"?")[0]


def _access_fields(exchange: Exchange | Call) -> dict[str, Any]:
    """What the compiled access log writes, as fields of a record."""
    fields: dict[str, Any] = {
        "request_id": exchange.request_id.decode(),
        "client": address(exchange.scope.get("client")),
        "method": exchange.scope["method"],
        "path": _path(exchange).decode("latin-1"),
        "model": exchange.model,
        "version": exchange.version,
        "code": exchange.error.code if exchange.error is not None else "",
    }
    fields = {name: text for name, text in fields.items() if text}
    if exchange.ticket is not None:
        fields["rows"] = exchange.ticket.rows
    return fields | {"status": exchange.status, "bytes": exchange.size} | _durations(exchange)


def _fields(exchange: Exchange | Call) -> dict[str, Any]:
    """Who asked for what, the status, and the milliseconds of each phase."""
    fields: dict[str, Any] = {"request_id": exchange.request_id.decode()}
    if exchange.model:
        fields |= {"model": exchange.model, "version": exchange.version, "rows": exchange.rows}
    else:
        fields |= {"method": exchange.scope["method"], "path": exchange.scope["path"]}
    return fields | {"status": exchange.status} | _durations(exchange)


def _durations(exchange: Exchange | Call) -> dict[str, float]:
    ticket = exchange.ticket
    fields = {"total_ms": round((time.monotonic_ns() - exchange.started_ns) / 1e6, 3)}
    if ticket is None:
        return fields
    return {
        "queue_ms": round(ticket.queue_ns / 1e6, 3),
        "preprocess_ms": round(ticket.preprocess_ns / 1e6, 3),
        "run_ms": round(ticket.run_ns / 1e6, 3),
    } | fields
