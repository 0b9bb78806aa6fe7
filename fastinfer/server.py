"""The server process: sockets, the event loop, signals, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NoReturn

from fastinfer import __version__, _core, logs, precedence, sockets
from fastinfer.errors import ConfigurationError
from fastinfer.protocols import exchange

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from fastinfer.app import Application
    from fastinfer.metrics import Counters
    from fastinfer.protocols.connection import Connection
    from fastinfer.protocols.grpc import Server as GrpcServer
    from fastinfer.settings import Settings
    from fastinfer.sockets import Listeners

    Description = dict[str, Any]  # of what is served; JSON can carry it

logger = logging.getLogger("fastinfer.server")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESERVED_FILES = 0.2  # of the open-file limit, for models, logs and the process itself
YOUNG = 10_000  # objects made and not yet freed, at which the garbage collector looks at them
MODELS = "_FASTINFER_MODELS"  # that the program before served
OTHERS = 1.0  # seconds that threads have to end, once all is answered
PATIENCE = 5.0  # seconds in which the clients of a process that had to go wait for its replacement's models
POLL = 0.01  # seconds between looks at the connections that a drain waits for


def run(settings: Settings) -> int:
    """Serve in this process until SIGTERM or SIGINT.

    Returns:
        0 after a drain in which every admitted request was answered, 1 when `shutdown_timeout` cut some off.

    Raises:
        ConfigurationError: the address is taken, or no model under the path can be served.
    """
    logs.configure(settings)
    listeners = sockets.bind(settings)

    def tell(description: Description) -> None:
        announce(description, settings, listeners)

    try:
        patience = PATIENCE if listeners.inherited else 0.0
        server = Server(
            settings, listeners.sockets[0], listeners.url, tell, grpc=listeners.grpc_addresses, patience=patience,
            only=served_before() if listeners.inherited else None,
        )  # fmt: skip
        clean = server.run()
        if server.hangs and not server.signalled:
            known = server.app.service.registry.known()
            anew = {name: dict.fromkeys(versions, "") for name, versions in known.items()}  # nobody else serves them
            begin_anew({**listeners.bequeath(server.heirlooms), MODELS: json.dumps(anew)})
    finally:
        listeners.release()
    if not clean or not server.app.service.idle or foreign_threads():
        leave(0 if clean else 1)
    return 0


def served_before() -> dict[str, dict[str, str]] | None:
    """The versions, by model, that this process served as another program, and is to serve again."""
    known: dict[str, dict[str, str]] | None = json.loads(os.environ.pop(MODELS, "null"))
    return known


def foreign_threads() -> bool:
    """Whether threads that somebody else has started, such as a Python model, go on and would keep the process."""
    deadline = time.monotonic() + OTHERS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return True
    return False


def begin_anew(environment: dict[str, str]) -> NoReturn:
    """Be a new process, of the same number, arguments and sockets: clients that come meanwhile wait in their queues."""
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - itself
    except OSError as error:
        print(f"{sys.executable} cannot be started again: {error.strerror}", file=sys.stderr)
        os._exit(1)


def leave(code: int) -> NoReturn:
    """End this process although a thread may still load or run a model.

    The interpreter's own end would wait for it, or pull the ground from under it.
    """
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


class Server:
    """One worker: uvicorn's protocol and lifespan under signals, time-outs and a drain of our own."""

    def __init__(
        self,
        settings: Settings,
        listeners: list[socket.socket],
        url: str,
        announce: Callable[[Description], None],
        *,
        counters: Counters | None = None,
        worker: int | None = None,
        patience: float = 0.0,
        hung: Callable[[], None] | None = None,
        grpc: Sequence[str] = (),
        only: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Nothing happens yet.

        Args:
            listeners: bound and listening; they are the caller's to close.
            url: where a client on this machine asks.
            announce: told once what is served.
            counters: of this worker; by default its own alone.
            worker: which of several this is, under a supervisor. A second signal then goes on with the drain: a service
                manager and the supervisor may both send one, and it is the supervisor that ends a worker at once.
            only: versions to load, by model, as `Registry` takes them; by default what the settings say.
            hung: called once when a model's run does not end, which only the end of the process can mend. By default
                the server then drains and leaves, as after a signal.
            patience: seconds in which clients wait for the models unanswered, before they are told that they load.
            grpc: addresses of the gRPC service, which the process holds already.
        """
        from uvicorn.config import Config
        from uvicorn.server import ServerState

        from fastinfer.app import Application
        from fastinfer.lifecycle import Registry

        self.settings = settings
        self.listeners = listeners
        self.url = url
        self.announce = announce
        self.worker = worker
        self.patience = patience
        self.hung = hung
        self.hangs = False  # a run of a model does not end
        self.heirlooms: list[socket.socket] = []  # copies of the listeners, for the program that then comes
        self.signalled = False
        self.grpc_addresses = list(grpc)
        self.grpc: GrpcServer | None = None
        self.app: Application = Application(Registry(settings, only), settings, wait=False, counters=counters)
        self.state = ServerState()
        self.access = logs.access_writer(settings, worker)
        access = self.app.journal.access = None if self.access is None else self.access.log
        self.lane = _core.Lane(
            exchange.prefix.encode() + b"-f-",
            settings.max_body_bytes,
            server_timing=settings.server_timing,
            access=access,
            proxies=_core.Proxies(settings.forwarded_allow_ips),
        )
        self.stop = asyncio.Event()
        self.config = Config(
            self.app, loop="none", http="httptools", ws="none", lifespan="on", interface="asgi3", log_config=None,
            access_log=False, proxy_headers=False, server_header=False,
        )  # fmt: skip

    def run(self) -> bool:
        """Serve on an event loop of this thread's until a signal; as `serve`."""
        import uvloop

        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        clean = loop.run_until_complete(self.serve())
        if clean and self.app.service.idle:
            loop.close()
        return clean

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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a supervisor blocks them until here, so that none is lost
        await lifespan.startup()
        if lifespan.should_exit:
            raise ConfigurationError("the application did not start; the log says why.")
        self._tick()
        ticking = loop.create_task(self._every_second())
        announcing = loop.create_task(self._announce())
        try:
            await self._load_first(announcing)
            servers = await self._listen()
            await self._until_stopped(announcing)
            return await self._drain(servers)
        finally:
            for task in (ticking, announcing):
                task.cancel()
            await lifespan.shutdown()
            if self.access is not None:
                self.access.close()

    async def _load_first(self, announcing: asyncio.Task[None]) -> None:
        """Leave the clients in the sockets' queues while the models load, for so long as they may wait there."""
        if self.patience:
            stopped = asyncio.ensure_future(self.stop.wait())
            await asyncio.wait([announcing, stopped], timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()

    def _protocol(self) -> Callable[[], asyncio.Protocol]:
        """Makes connections: ours, or uvicorn's own where this uvicorn is not the one that ours was made for."""
        from fastinfer.protocols import compatibility

        loop = asyncio.get_running_loop()
        settings, config = self.settings, self.config
        allowed = settings.max_connections or allowed_connections()
        faults = compatibility.faults(config, loop)
        if faults:
            from uvicorn import __version__ as version

            logger.warning(
                "uvicorn %s is not one that fastinfer was made for: %s is missing or of another kind. All requests "
                "take the standard lane, and uvicorn's own, laxer rules for heads, time-outs and bounds hold",
                version,
                ", ".join(faults),
            )
            base: Any = compatibility.plain(config, settings.idle_timeout, allowed)
            return lambda: base(config=config, server_state=self.state, app_state={}, _loop=loop)

        from fastinfer.protocols.connection import Connection, Limits

        limits = Limits(allowed, settings.head_timeout, settings.idle_timeout)
        service, journal = self.app.service, self.app.journal
        return lambda: Connection(service, journal, self.lane, limits, config, self.state, loop)

    async def _listen(self) -> list[asyncio.Server]:
        loop = asyncio.get_running_loop()
        settings = self.settings
        connection = self._protocol()
        if self.grpc_addresses:
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core tells stderr of each bad head that clients send
            from fastinfer.protocols.grpc import Server as GrpcServer

            calls = settings.max_connections or allowed_connections()
            self.grpc = GrpcServer(self.app.service, self.app.journal, self.grpc_addresses, calls)
            await self.grpc.start()
        return [
            await (
                loop.create_unix_server(connection, sock=each, backlog=sockets.BACKLOG)
                if settings.uds is not None
                else loop.create_server(connection, sock=each, backlog=sockets.BACKLOG)
            )
            for each in self.listeners
        ]

    def _on_signal(self) -> None:
        self.signalled = True
        if self.worker is None:
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
        service, registry = self.app.service, self.app.service.registry
        await service.loaded()
        # Of several workers it is one that sees to it that all load what is new: it must come up to do so.
        follows = registry.only is not None and self.settings.model_control == "poll" and service.polls
        if not registry.models() and registry.failures and not registry.absent and not follows:
            raise ConfigurationError(next(iter(registry.failures.values())))
        settings = self.settings
        settle()
        service.counters.tell_ready(service.ready)
        if settings.fast_lane and not settings.compress_responses:
            service.registry.open(self.lane)
        self.announce(describe(settings, self.app, self.url))

    async def _every_second(self) -> None:
        waited = precedence.waited_ns()
        while True:
            due = time.monotonic_ns() + 1_000_000_000
            await asyncio.sleep(1.0)
            late, before, waited = time.monotonic_ns() - due, waited, precedence.waited_ns()
            self.app.service.counters.tell_loop(max(late, 0), waited - before)
            self._tick()

    def _tick(self) -> None:
        """Renew the Date field, tell the readiness, and look for connections that are too slow."""
        service = self.app.service
        if not self.hangs:
            self._look_for_hung_runs()
        service.counters.beat()
        service.counters.tell_ready(service.ready)
        date = formatdate(usegmt=True).encode()
        self.state.default_headers = [(b"date", date)]
        self.lane.tick(b"date: " + date + b"\r\n")
        for kind, count in self.lane.untold():
            self.app.journal.omit(kind, count)
        now = time.monotonic()
        for connection in list(self._connections()):
            connection.sweep(now)

    def _look_for_hung_runs(self) -> None:
        """Give the process up when a run does not end: its thread, its memory and its model's lock are lost with it."""
        service = self.app.service
        lost = service.registry.lost
        if not lost:
            return
        self.hangs = service.draining = True  # not ready any more, and the other models answer until it has left
        logger.error("a run of %s does not end; this process is replaced", ", ".join(lost))
        if self.hung is None:
            self.heirlooms = [each.dup() for each in self.listeners]  # before the drain closes them
            self.stop.set()
        else:
            self.hung()

    def _connections(self) -> set[Connection]:
        return self.state.connections  # type: ignore[return-value]  # uvicorn's set, of our class

    async def _drain(self, servers: list[asyncio.Server]) -> bool:
        """Readiness off, accept for `drain_delay`, then close and finish what was admitted."""
        logger.info("draining")
        self.app.service.draining = True
        self.app.service.counters.tell_ready(False)
        deadline = time.monotonic() + self.settings.shutdown_timeout
        await asyncio.sleep(min(self.settings.drain_delay, self.settings.shutdown_timeout))
        for server in servers:
            server.close()
        await asyncio.sleep(0)  # what was accepted in this turn becomes known
        self.app.service.registry.shut()
        grpc = None if self.grpc is None else asyncio.ensure_future(self.grpc.close(deadline - time.monotonic()))
        clean = await self._drain_http(deadline)
        if grpc is not None and not await grpc:
            logger.error("gRPC calls were cut off by shutdown_timeout")
            clean = False
        if clean:
            logger.info("drained")
        return clean

    async def _drain_http(self, deadline: float) -> bool:
        """Finish what was admitted over HTTP until then."""
        while self.state.connections or self.state.tasks:
            # Also of those that were accepted just before, and are known only now.
            for connection in [each for each in self._connections() if not each.leaving]:
                connection.shutdown()
            if time.monotonic() >= deadline:
                logger.error("%d requests were cut off by shutdown_timeout", len(self.state.tasks))
                for task in list(self.state.tasks):
                    task.cancel()
                return False
            await asyncio.sleep(POLL)
        return True


def settle() -> None:
    """Take what start-up has made out of the garbage collector's sight: it stays for as long as the process does.

    Then a full collection looks at what requests left, not at every module and model. The young generation takes more
    objects than by default (700 to 2,000): one turn of the loop may have that many requests in flight, none of them
    garbage, and each turn would end in a collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


def allowed_connections() -> int:
    """80% of the open-file limit, which is raised to what the system allows first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, int(min(soft, 1 << 20) * (1 - RESERVED_FILES)))


def describe(settings: Settings, app: Application, url: str) -> Description:
    """What is served, for people, with a curl that answers."""
    from fastinfer.pages import curl

    registry = app.service.registry
    models = registry.models()
    entries: list[dict[str, str]] = []
    for model in models:
        inputs = ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in model.signature.inputs[:6])
        more = len(model.signature.inputs) - 6
        entries.append({
            "model": model.name, "version": model.version, "platform": model.platform,
            "inputs": f"{inputs}{f', {more} more' if more > 0 else ''}",
        })  # fmt: skip
    return {
        "models": entries,
        "failures": [[name, version, reason] for (name, version), reason in registry.failures.items()],
        "try": curl(models[0], url, socket=None if settings.uds is None else str(settings.uds)) if models else "",
    }


def announce(description: Description, settings: Settings, listeners: Listeners) -> None:
    """Print what is served, and where; as a log record where the log was asked to be JSON."""
    where = listeners.url if settings.uds is None else f"unix socket {settings.uds}"
    grpc = listeners.grpc_addresses
    if settings.log_format == "json":
        served = [{key: each[key] for key in ("model", "version", "platform")} for each in description["models"]]
        fields = {"url": where, "workers": settings.workers, "models": served, "try": description["try"]}
        if grpc:
            fields["grpc"] = grpc
        logger.info("serving", extra={"fields": fields})
        return
    workers = f", {settings.workers} workers" if settings.workers > 1 else ""
    lines = [f"fastinfer {__version__} at {where}{workers}", *(f"  gRPC at {address}" for address in grpc)]
    lines += [f"  {each['model']} version {each['version']}: {each['inputs']}" for each in description["models"]]
    lines += [
        f"  {name} version {version} is not served: {reason}" for name, version, reason in description["failures"]
    ]
    if description["try"]:
        lines += ["Try:", f"  {description['try']}"]
    with contextlib.suppress(OSError):  # nobody may be reading
        print("\n".join(lines), flush=True)
