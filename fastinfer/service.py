"""What every route of one application shares: the models, how far they are loaded, and the counters."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from fastinfer.errors import ConfigurationError, NotFoundError, NotReadyError
from fastinfer.metrics import Counters

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastinfer.lifecycle import Registry
    from fastinfer.model import Model
    from fastinfer.settings import Settings

logger = logging.getLogger("fastinfer")
T = TypeVar("T")


class Service:
    """Loads the registry off the loop and hands out its models.

    The load may be started by the server (which listens meanwhile and answers 503), by an ASGI lifespan (which waits
    for it), or, in an application mounted where no lifespan reaches it, by the first request (which waits too).
    """

    def __init__(self, registry: Registry, settings: Settings, counters: Counters | None = None) -> None:
        self.registry = registry
        self.settings = settings
        self.counters = counters or Counters()
        registry.on_load(self.counters.register)
        self.draining = False
        self._lock = threading.Lock()
        self._loading: Future[None] | None = None
        self._mounted = False  # no server and no lifespan began the load: requests wait for it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: ThreadPoolExecutor | None = None

    def start(self) -> Future[None]:
        """Begin to load, once; the future is done when every model is loaded or has failed.

        A daemon thread, so that a load that hangs does not keep a process that was told to end.
        """
        with self._lock:
            if self._loading is None:
                self._loading = Future()
                threading.Thread(target=self._load, args=(self._loading,), name="fastinfer-load", daemon=True).start()
            return self._loading

    def _load(self, loading: Future[None]) -> None:
        try:
            self.registry.load()
        except BaseException as error:
            loading.set_exception(error)
        else:
            loading.set_result(None)

    async def loaded(self) -> None:
        """Wait for the load, beginning it when nobody has.

        Raises:
            ConfigurationError: the path cannot be served at all.
        """
        self.attach()
        await asyncio.wrap_future(self.start())

    @property
    def finished(self) -> bool:
        """Whether the load is over and was not refused as a whole."""
        return self._loading is not None and self._loading.done() and self._loading.exception() is None

    @property
    def ready(self) -> bool:
        """What /v2/health/ready answers."""
        return self.finished and not self.draining and self.registry.ready

    @property
    def idle(self) -> bool:
        """Whether no thread loads or runs a model any more."""
        return self._loading is None or (self._loading.done() and self.registry.idle)

    async def model(self, name: str, version: str | None) -> Model:
        """The model that a path names; the highest loaded version where `version` is None.

        Raises:
            NotReadyError: it is loading, or failed to load.
            UnknownModelError, UnknownVersionError: there is none.
        """
        await self.prepare()
        try:
            return self.registry.get(name, version)
        except NotFoundError:
            if self.finished:
                raise
            raise NotReadyError("the models are being loaded") from None

    async def prepare(self) -> None:
        """Ready to look at the registry: load first when no server and no lifespan has begun it.

        Raises:
            NotReadyError: nothing can be loaded.
        """
        self.attach()
        if self.finished or (self._loading is not None and not self._mounted):
            return
        first, self._mounted = self._loading is None, True
        try:
            await self.loaded()
        except ConfigurationError as error:
            # The operator's business: a client learns no more than that there is nothing to ask.
            if first:
                logger.error("%s", error)
            raise NotReadyError("the models could not be loaded") from error

    def attach(self) -> None:
        """Let the models answer on the running loop. Test clients run every request on a loop of its own."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.registry.attach(loop)
            self._loop = loop

    async def on_worker(self, function: Callable[..., T], *args: Any) -> T:
        """Run on a worker thread what would hold the loop."""
        if self._workers is None:
            self._workers = ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0))), "fastinfer-worker")
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *args)

    def close(self) -> None:
        """After the last request."""
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._workers = None
        self.registry.close()
