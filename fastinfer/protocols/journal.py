"""What is logged and counted of each request."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastinfer.protocols.exchange import Exchange

PER_SECOND = 10  # records of one kind of refusal; an overload must not become a flood of its own log
logger = logging.getLogger("fastinfer.request")


class Journal:
    """Writes one record a request where `access_log` is on, else one an error.

    The server's own errors are always written, a client's and refusals up to ten a second of each kind.
    """

    def __init__(self, *, access_log: bool) -> None:
        self.access_log = access_log
        self._second = 0
        self._written: dict[str, int] = {}

    def close(self, exchange: Exchange) -> None:
        """The exchange is over: count it, and write what there is to write."""
        if exchange.infer:
            exchange.service.counters.count(exchange.model, exchange.version, exchange.status)
        error = exchange.error
        if error is None:
            if self.access_log:
                logger.info("answered", extra={"fields": _fields(exchange)})
        elif error.status >= 500 and error.status != 503:
            logger.error(str(error), extra={"fields": _fields(exchange) | {"code": error.code}})
        elif self.access_log or self._may_write(error.code):
            logger.warning(str(error), extra={"fields": _fields(exchange) | {"code": error.code}})

    def _may_write(self, kind: str) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._report()
            self._second = second
            self._written = {}
        count = self._written[kind] = self._written.get(kind, 0) + 1
        return count <= PER_SECOND

    def _report(self) -> None:
        for kind, count in self._written.items():
            if count > PER_SECOND:
                logger.warning("%d more errors of the kind %s were not logged", count - PER_SECOND, kind)


def _fields(exchange: Exchange) -> dict[str, Any]:
    """Who asked for what, the status, and the milliseconds of each phase."""
    fields: dict[str, Any] = {"request_id": exchange.request_id.decode()}
    if exchange.model:
        fields |= {"model": exchange.model, "version": exchange.version, "rows": exchange.rows}
    else:
        fields |= {"method": exchange.scope["method"], "path": exchange.scope["path"]}
    fields["status"] = exchange.status
    ticket = exchange.ticket
    if ticket is not None:
        fields |= {
            "queue_ms": round(ticket.queue_ns / 1e6, 3),
            "preprocess_ms": round(ticket.preprocess_ns / 1e6, 3),
            "run_ms": round(ticket.run_ns / 1e6, 3),
        }
    return fields | {"total_ms": round((time.monotonic_ns() - exchange.started_ns) / 1e6, 3)}
