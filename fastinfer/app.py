"""The ASGI application: alone under a server, or mounted in somebody else's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from fastinfer.errors import ConfigurationError
from fastinfer.lifecycle import Registry
from fastinfer.protocols import rest, triton
from fastinfer.protocols.router import Router
from fastinfer.service import Service
from fastinfer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from fastinfer.metrics import Counters
    from fastinfer.protocols.exchange import Exchange

NO_SNIFFING = (b"x-content-type-options", b"nosniff")


class Application(Starlette):
    """Every route of the server, over one registry.

    Attributes:
        service: the models and the counters.
        journal: what is logged of requests.
    """

    def __init__(
        self, registry: Registry, settings: Settings, *, wait: bool = True, counters: Counters | None = None
    ) -> None:
        """`wait`: whether the lifespan's start-up ends only when the models are loaded; `counters`: else its own."""
        self.service = Service(registry, settings, counters)
        self.wait = wait
        router = Router(self.service)
        self.journal = router.journal
        pages = [
            router.route("/", index),
            router.route("/docs", docs),
            router.route("/docs/{file}", docs_file),
            router.route("/openapi.json", openapi_document),
            router.route("/metrics", metrics),
        ]
        routes = [*rest.routes(router), *triton.routes(router), *rest.metadata_routes(router), *pages]
        super().__init__(routes=routes, lifespan=self.lifespan)
        self.router.redirect_slashes = False
        self.router.default = router.default()

    def build_middleware_stack(self) -> ASGIApp:
        """The router itself, unless somebody has added middleware: each route turns its errors into answers."""
        return super().build_middleware_stack() if self.user_middleware else self.router

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Load before the first request, and close after the last.

        A mounted application gets no lifespan from the one above it, and then loads on its first request. To load at
        start-up, give this to the one above: `Starlette(lifespan=models.lifespan)`.
        """
        self.service.attach()
        if self.wait:
            await self.service.loaded()
        else:
            self.service.start()
        polling = asyncio.create_task(self.poll())
        try:
            yield
        finally:
            polling.cancel()
            for model in self.service.registry.models():
                await model.part()
            self.service.close()

    async def poll(self) -> None:
        """Follow the repository, where that is asked for and this process is the one to do it."""
        if self.service.settings.model_control == "poll" and self.service.polls:
            from fastinfer.polling import Poller

            await Poller(self.service).run()


def application(source: Registry | Path | str, settings: Settings | None = None, *, wait: bool = True) -> Application:
    """The application over a registry, or over the models at a path."""
    if isinstance(source, Registry):
        return Application(source, settings or source.settings, wait=wait)
    return asgi(source, settings=settings, wait=wait)


def asgi(path: Path | str, *, settings: Settings | None = None, wait: bool = True, **options: Any) -> Application:
    """The models at `path` as an ASGI application, for any ASGI server and for mounting:

        models = fastinfer.asgi("models/")
        app = FastAPI(lifespan=models.lifespan)
        app.mount("/models", models)

    Args:
        path: a model file or a repository.
        settings: or one by one as `options`, by the names in docs/reference/settings.md.
        wait: whether the lifespan waits for the models.

    Raises:
        ConfigurationError: an option is unknown or wrong.
    """
    if settings is None:
        try:
            settings = Settings(path=Path(path), **options)
        except TypeError as error:
            raise ConfigurationError(str(error).partition("__init__() ")[2] or str(error)) from error
    return Application(Registry(settings), settings, wait=wait)


# The pages' modules are imported when somebody asks for one: start-up is counted in milliseconds.
async def index(exchange: Exchange) -> None:
    """GET /."""
    from fastinfer import pages

    await exchange.service.prepare()
    body = pages.index(exchange.service, pages.base_url(exchange.scope))
    await exchange.respond(200, body, pages.HTML, [(b"content-security-policy", pages.policy()), NO_SNIFFING])


async def docs(exchange: Exchange) -> None:
    """GET /docs."""
    from fastinfer import openapi, pages

    headers = [(b"content-security-policy", openapi.POLICY), NO_SNIFFING]
    await exchange.respond(200, openapi.PAGE, pages.HTML, headers)


async def docs_file(exchange: Exchange) -> None:
    """What the page of /docs loads."""
    from fastinfer import openapi

    name = exchange.path["file"]
    if name == "openapi.json":
        # swagger-ui-bundle's Swagger UI 4 shows 3.0 only; the document is written to be valid as either.
        await _openapi(exchange, "3.0.3")
        return
    body, content_type = await exchange.service.on_worker(openapi.asset, name)
    await exchange.respond(200, body, content_type, [(b"cache-control", b"max-age=3600"), NO_SNIFFING])


async def openapi_document(exchange: Exchange) -> None:
    """GET /openapi.json."""
    await _openapi(exchange, "3.1.0")


async def _openapi(exchange: Exchange, version: str) -> None:
    from fastinfer import openapi

    await exchange.service.prepare()
    root = exchange.scope.get("root_path", "")
    await exchange.json(200, openapi.document(exchange.service.registry.models(), root, version))


async def metrics(exchange: Exchange) -> None:
    """GET /metrics."""
    from fastinfer.metrics import Snapshot, exposition

    service = exchange.service
    await service.prepare()
    service.counters.tell_ready(service.ready)
    snapshot = Snapshot(service.counters.board)
    accept = exchange.headers.get(b"accept", b"").decode("latin-1")
    body, content_type = exposition(snapshot, accept)
    await exchange.respond(200, body, content_type.encode())
