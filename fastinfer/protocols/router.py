"""From a handler to an ASGI end point: one place where errors become answers and requests are counted and logged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.routing import Route

from fastinfer.errors import FastinferError, MethodNotAllowedError, NotFoundError
from fastinfer.protocols.exchange import CLIENT_GONE, ClientGoneError, Exchange
from fastinfer.protocols.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from fastinfer.service import Service

    Handler = Callable[[Exchange], Awaitable[None]]

GET = ("GET", "HEAD")
logger = logging.getLogger("fastinfer.request")


class Action:
    """An ASGI end point: runs a handler on an Exchange, and turns what it raises into an answer."""

    def __init__(self, service: Service, journal: Journal, handler: Handler, methods: tuple[str, ...] | None) -> None:
        """`methods`: the verbs it takes; None for any."""
        self.service = service
        self.journal = journal
        self.handler = handler
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self.service, scope, receive, send)
        try:
            if self.methods is not None and scope["method"] not in self.methods:
                raise MethodNotAllowedError(", ".join(self.methods))
            await self.handler(exchange)
        except FastinferError as error:
            await exchange.fail(error)
        except ClientGoneError:
            exchange.status = CLIENT_GONE
        except Exception:
            logger.exception("request %s failed", exchange.request_id.decode())
            if exchange.status:
                raise  # half of an answer is out: the server must cut the connection
            await exchange.fail(FastinferError("internal error; the server's log has it by X-Request-ID"))
        finally:
            exchange.close()
            self.journal.close(exchange)
            if exchange.error is not None:  # a reference cycle, with a model in one of the frames
                exchange.error.__traceback__ = None


class Router:
    """Makes Starlette's routes out of handlers."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.journal = Journal(access_log=service.settings.access_log)

    def route(self, path: str, handler: Handler, *methods: str) -> Route:
        """A route; GET and HEAD unless `methods` says otherwise."""
        return Route(path, Action(self.service, self.journal, handler, methods or GET))

    def default(self) -> ASGIApp:
        """What answers a path that no route takes, whatever its verb."""
        action = Action(self.service, self.journal, not_found, None)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            else:
                await action(scope, receive, send)

        return app


async def not_found(exchange: Exchange) -> None:
    """Every path that no route takes."""
    raise NotFoundError("no such path; GET / lists what is served")
