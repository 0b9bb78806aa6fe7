"""The server process: sockets, the event loop, signals, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

from fastinfer import __version__, _core, logs, sockets
from fastinfer.errors import ConfigurationError
from fastinfer.protocols.exchange import PREFIX

if TYPE_CHECKING:
    from fastinfer.app import Application
    from fastinfer.protocols.connection import Connection
    from fastinfer.settings import Settings
    from fastinfer.sockets import Listeners

logger = logging.getLogger("fastinfer.server")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESERVED_FILES = 0.2  # of the open-file limit, for models, logs and the process itself
POLL = 0.01  # seconds between looks at the connections that a drain waits for


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        0 after a drain in which every admitted request was answered, 1 when `shutdown_timeout` cut some off.

    Raises:
        ConfigurationError: the address is taken, or no model under the path can be served.
    """
    import uvloop

    logs.configure(settings)
    listeners = sockets.bind(settings)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        server = Server(settings, listeners)
        clean = loop.run_until_complete(server.serve())
    finally:
        listeners.release()
    if not clean or not server.app.service.idle:
        # A thread still loads or runs a model: the interpreter would wait for it, or pull the ground from under it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0 if clean else 1)
    loop.close()
    return 0


class Server:
    """One worker: uvicorn's protocol and lifespan under signals, time-outs and a drain of our own."""

    def __init__(self, settings: Settings, listeners: Listeners) -> None:
        from uvicorn.config import Config
        from uvicorn.server import ServerState

        from fastinfer.app import Application
        from fastinfer.lifecycle import Registry

        self.settings = settings
        self.listeners = listeners
        self.app: Application = Application(Registry(settings), settings, wait=False)
        self.state = ServerState()
        self.access = logs.access_writer(settings)
        access = self.app.journal.access = None if self.access is None else self.access.log
        self.lane = _core.Lane(
            PREFIX.encode() + b"-f-", settings.max_body_bytes, server_timing=settings.server_timing, access=access
        )
        self.stop = asyncio.Event()
        self.config = Config(
            self.app, loop="none", http="httptools", ws="none", lifespan="on", interface="asgi3", log_config=None,
            access_log=False, proxy_headers=False, server_header=False,
        )  # fmt: skip

    async def serve(self) -> bool:
        """Listen, load, answer, drain. Returns whether every admitted request was answered.

        Raises:
            ConfigurationError: no model can be served.
        """
        self.config.load()
        lifespan = self.config.lifespan_class(self.config)
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        await lifespan.startup()
        if lifespan.should_exit:
            raise ConfigurationError("the application did not start; the log says why.")
        self._tick()
        servers = await self._listen()
        ticking = loop.create_task(self._every_second())
        announcing = loop.create_task(self._announce())
        try:
            await self._until_stopped(announcing)
            return await self._drain(servers)
        finally:
            for task in (ticking, announcing):
                task.cancel()
            await lifespan.shutdown()
            if self.access is not None:
                self.access.close()

    async def _listen(self) -> list[asyncio.Server]:
        from fastinfer.protocols.connection import Connection, Limits

        loop = asyncio.get_running_loop()
        settings = self.settings
        limits = Limits(settings.max_connections or allowed_connections(), settings.head_timeout, settings.idle_timeout)

        def connection() -> Connection:
            return Connection(self.app.service, self.app.journal, self.lane, limits, self.config, self.state, loop)

        return [
            await (
                loop.create_unix_server(connection, sock=each, backlog=sockets.BACKLOG)
                if settings.uds is not None
                else loop.create_server(connection, sock=each, backlog=sockets.BACKLOG)
            )
            for each in self.listeners.sockets
        ]

    def _on_signal(self) -> None:
        # The next signal does what it does by default: end the process, now.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self.stop.set()

    async def _until_stopped(self, announcing: asyncio.Task[None]) -> None:
        """Wait for the signal; a load that leaves nothing to serve ends the wait with its error."""
        stopped = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait([stopped, announcing], return_when=asyncio.FIRST_COMPLETED)
            if announcing.done():
                announcing.result()
            await stopped
        finally:
            stopped.cancel()

    async def _announce(self) -> None:
        """Say what is served, once it is.

        Raises:
            ConfigurationError: nothing is.
        """
        service = self.app.service
        await service.loaded()
        if not service.registry.models() and service.registry.failures:
            raise ConfigurationError(next(iter(service.registry.failures.values())))
        settings = self.settings
        if settings.fast_lane and not settings.compress_responses:
            self.lane.open(service.registry.endpoints())
        announce(settings, self.app, self.listeners.url)

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._tick()

    def _tick(self) -> None:
        """Renew the Date field, and look for connections that are too slow."""
        date = formatdate(usegmt=True).encode()
        self.state.default_headers = [(b"date", date)]
        self.lane.tick(b"date: " + date + b"\r\n")
        now = time.monotonic()
        for connection in list(self._connections()):
            connection.sweep(now)

    def _connections(self) -> set[Connection]:
        return self.state.connections  # type: ignore[return-value]  # uvicorn's set, of our class

    async def _drain(self, servers: list[asyncio.Server]) -> bool:
        """Readiness off, accept for `drain_delay`, then close and finish what was admitted."""
        logger.info("draining")
        self.app.service.draining = True
        deadline = time.monotonic() + self.settings.shutdown_timeout
        await asyncio.sleep(min(self.settings.drain_delay, self.settings.shutdown_timeout))
        for server in servers:
            server.close()
        self.lane.close()
        for connection in list(self._connections()):
            connection.shutdown()
        while self.state.connections or self.state.tasks:
            if time.monotonic() >= deadline:
                logger.error("%d requests were cut off by shutdown_timeout", len(self.state.tasks))
                for task in list(self.state.tasks):
                    task.cancel()
                return False
            await asyncio.sleep(POLL)
        logger.info("drained")
        return True


def allowed_connections() -> int:
    """80% of the open-file limit, which is raised to what the system allows first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, int(min(soft, 1 << 20) * (1 - RESERVED_FILES)))


def announce(settings: Settings, app: Application, base: str) -> None:
    """Print what is served, where, and a curl that answers; as a log record where the log was asked to be JSON."""
    from fastinfer.pages import curl

    registry = app.service.registry
    models = registry.models()
    socket_path = None if settings.uds is None else str(settings.uds)
    where = base if socket_path is None else f"unix socket {socket_path}"
    command = curl(models[0], base, socket=socket_path) if models else ""
    if settings.log_format == "json":
        served = [{"model": model.name, "version": model.version, "platform": model.platform} for model in models]
        logger.info("serving", extra={"fields": {"url": where, "models": served, "try": command}})
        return
    lines = [f"fastinfer {__version__} at {where}"]
    for model in models:
        inputs = ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in model.signature.inputs[:6])
        more = len(model.signature.inputs) - 6
        lines.append(f"  {model.name} version {model.version}: {inputs}{f', {more} more' if more > 0 else ''}")
    for (name, version), reason in registry.failures.items():
        lines.append(f"  {name} version {version} is not served: {reason}")
    if command:
        lines += ["Try:", f"  {command}"]
    with contextlib.suppress(OSError):  # nobody may be reading
        print("\n".join(lines), flush=True)
