"""Whether the installed uvicorn has what connection.py reaches into, and what serves where it has not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    from uvicorn.config import Config

FLOW_CONTROL, PROTOCOL = "uvicorn.protocols.http.flow_control", "uvicorn.protocols.http.httptools_impl"
OVERRIDDEN = (
    "connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing", "on_header",
    "on_headers_complete", "on_response_complete", "shutdown", "_unset_keepalive_if_required",
)  # fmt: skip
ABSENT = object()


def faults(config: Config, loop: asyncio.AbstractEventLoop) -> list[str]:
    """The private parts of uvicorn that connection.py uses and that are missing or of another kind, by name.

    They are made and looked at as a connection would find them, so that one that moved or was renamed is seen here, at
    start-up, and not in a client's request.
    """
    try:
        flow_control, protocol = import_module(FLOW_CONTROL), import_module(PROTOCOL)
        state: Any = import_module("uvicorn.server").ServerState()
    except (ImportError, AttributeError) as error:
        return [str(error)]
    found = [
        *_wrong(flow_control, FLOW_CONTROL, FlowControl=type),
        *_wrong(protocol, PROTOCOL, HttpToolsProtocol=type, RequestResponseCycle=type, STATUS_LINE=dict),
        *_wrong(state, "ServerState", connections=set, tasks=set, default_headers=list),
    ]
    if found:
        return found
    found += _wrong(protocol.HttpToolsProtocol, "HttpToolsProtocol", **dict.fromkeys(OVERRIDDEN, Callable))
    found += _wrong(flow_control.FlowControl, "FlowControl", pause_reading=Callable, resume_reading=Callable)
    if not isinstance(protocol.STATUS_LINE.get(200), bytes):
        found.append(f"{PROTOCOL}.STATUS_LINE[200]")
    try:
        flow = flow_control.FlowControl(None)
        whole = protocol.HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=loop)
        cycle = protocol.RequestResponseCycle(
            scope={}, transport=None, flow=flow, logger=None, access_logger=None, access_log=False,
            default_headers=[], message_event=asyncio.Event(), expect_100_continue=False, keep_alive=True,
            on_response=whole.on_response_complete,
        )  # fmt: skip
    except (TypeError, AttributeError) as error:
        return [*found, str(error)]
    return [
        *found,
        *_wrong(flow, "FlowControl", read_paused=bool, _transport=object),
        *_wrong(whole, "HttpToolsProtocol", parser=httptools.HttpRequestParser, connections=set, tasks=set, loop=object,
                server_state=type(state), cycle=type(None), headers=object, flow=object, transport=object,
                client=object),
        *_wrong(cycle, "RequestResponseCycle", disconnected=bool, response_started=bool, response_complete=bool,
                keep_alive=bool, message_event=asyncio.Event),
    ]  # fmt: skip


def _wrong(owner: object, name: str, **kinds: Any) -> list[str]:
    """The attributes of `owner` that are not of these kinds."""
    return [f"{name}.{each}" for each, kind in kinds.items() if not _is(getattr(owner, each, ABSENT), kind)]


def _is(value: object, kind: Any) -> bool:
    return value is not ABSENT and isinstance(value, kind)


def plain(config: Config, idle_timeout: float, connections: int) -> type[asyncio.Protocol]:
    """uvicorn's own protocol, used as uvicorn's server does: its head rules, and as many of our bounds as it has."""
    base: Any = config.http_protocol_class
    config.timeout_keep_alive = max(1, round(idle_timeout))
    config.limit_concurrency = connections

    class Plain(base):  # type: ignore[misc]  # a class that the configuration chose
        leaving = False

        def shutdown(self) -> None:
            self.leaving = True
            super().shutdown()

        def sweep(self, now: float) -> None:
            """It keeps its own time."""

    return Plain
