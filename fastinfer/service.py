"""What every route of one application shares: the models, how far they are loaded, and the counters."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastinfer import precedence
from fastinfer.errors import (
    ConfigurationError,
    FastinferError,
    InvalidParameterError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    ShuttingDownError,
    UnavailableError,
)
from fastinfer.metrics import Counters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from fastinfer.lifecycle import Registry
    from fastinfer.model import Model
    from fastinfer.settings import Settings
    from fastinfer.versions import Version

logger = logging.getLogger("fastinfer")
LONGEST_LOAD = 60.0  # seconds in which a request waits for a model to be in memory
DAY_MS = 86_400_000  # the longest slo_ms
FAILED_FOR_NS = 5_000_000_000  # after which a load that failed is tried again for the next request
MOST_CHANGES = 256  # that wait for each other
FIRST_LOOK, LAST_LOOK = 0.5, 8.0  # seconds between two looks for models that another server runs
T = TypeVar("T")


class Service:
    """Loads the registry off the loop and hands out its models.

    The load may be started by the server (which listens meanwhile and answers 503), by an ASGI lifespan (which waits
    for it), or, in an application mounted where no lifespan reaches it, by the first request (which waits too).

    Attributes:
        loop: on which the models answer.
        remote: changes a model on all workers; None where there is one process.
        polls: whether this process looks for changes of the repository, with model_control poll.
    """

    def __init__(self, registry: Registry, settings: Settings, counters: Counters | None = None) -> None:
        self.registry = registry
        self.settings = settings
        self.counters = counters or Counters()
        registry.on_load(self.counters.register)
        self.draining = False
        self._lock = threading.Lock()
        self._loading: Future[None] | None = None
        self._finished = False  # what its lock is asked for only until it is so
        self._mounted = False  # no server and no lifespan began the load: requests wait for it
        self.loop: asyncio.AbstractEventLoop | None = None
        self._workers: ThreadPoolExecutor | None = None
        self.remote: Callable[[str, bool], Awaitable[None]] | None = None
        self.polls = True
        self._looking: threading.Thread | None = None
        self._changing = asyncio.Lock()
        self._bringing: dict[Version, asyncio.Task[Model]] = {}
        self._changes: set[asyncio.Task[None]] = set()

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
            self._look_after_others()

    def _look_after_others(self) -> None:
        """Where models run in other servers, see to it that they are loaded when those come up."""
        if self.registry.has_others and self._looking is None:
            self._looking = threading.Thread(target=self._look_for_absent, name="fastinfer-absent", daemon=True)
            self._looking.start()

    def _look_for_absent(self) -> None:
        wait = FIRST_LOOK
        while not self.draining and not self.registry.closed:
            time.sleep(wait)
            absent = self.registry.absent
            wait = min(2 * wait, LAST_LOOK) if absent else FIRST_LOOK
            for name in absent:
                if self.loop is None or self.loop.is_closed():
                    break
                try:
                    asyncio.run_coroutine_threadsafe(self.change(name), self.loop).result()
                except FastinferError as error:
                    logger.debug("model %s is not loaded yet: %s", name, error)

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
        if not self._finished and self._loading is not None and self._loading.done():
            self._finished = self._loading.exception() is None
        return self._finished

    @property
    def ready(self) -> bool:
        """What /v2/health/ready answers."""
        return self.finished and not self.draining and self.registry.ready

    @property
    def idle(self) -> bool:
        """Whether no thread loads or runs a model any more."""
        if self._changes or self._bringing:
            return False
        return self._loading is None or (self._loading.done() and self.registry.idle)

    async def model(self, name: str, version: str | None) -> Model:
        """The model that a path names, loaded where it is not in memory.

        Args:
            version: the highest that there is where it is None.

        Raises:
            NotReadyError: it is loading, or failed to load.
            UnknownModelError, UnknownVersionError: there is none.
        """
        found = await self.lookup(name, version)
        return found.model or await self.bring(found)

    def at_hand(self, name: str, version: str | None) -> Model | None:
        """The model that a path names where nothing is waited for, else None; raises as `model`. On the loop."""
        return self.registry.lookup(name, version).model if self.finished and self.loop is not None else None

    async def lookup(self, name: str, version: str | None) -> Version:
        """What there is of the model that a path names, in memory or not; raises as `model`."""
        await self.prepare()
        try:
            return self.registry.lookup(name, version)
        except NotFoundError:
            if self.finished:
                raise
            raise NotReadyError("the models are being loaded") from None

    async def bring(self, version: Version, within: float = 0.0) -> Model:
        """Have a version in memory again; whoever asks for it meanwhile waits for the same load.

        Args:
            within: seconds that its client gives; 0: nothing in particular.

        Raises:
            NotReadyError: it does not load, or takes longer than the client, the model's slo_ms or the server allow.
        """
        if version.failed_ns and time.monotonic_ns() - version.failed_ns < FAILED_FOR_NS:
            raise NotReadyError(f"model {version.found.name!r} could not be loaded; the repository index says why")
        task = self._bringing.get(version)
        if task is None:
            task = self._bringing[version] = asyncio.get_running_loop().create_task(self._bring_one(version))
            task.add_done_callback(partial(self._brought, version))
        longest = min(within or LONGEST_LOAD, (version.found.config.slo_ms or DAY_MS) / 1000, LONGEST_LOAD)
        try:
            return await asyncio.wait_for(asyncio.shield(task), longest)
        except TimeoutError:
            raise NotReadyError(f"model {version.found.name!r} is loading") from None

    def _brought(self, version: Version, task: asyncio.Task[Model]) -> None:
        self._bringing.pop(version, None)
        if not task.cancelled():
            task.exception()  # everybody may have gone meanwhile

    async def _bring_one(self, version: Version) -> Model:
        await self._started()
        async with self._changing:
            if self.draining:
                raise ShuttingDownError("the server is shutting down")
            if version.model is not None:
                return version.model
            self.registry.make_room(version.size)
            loaded = await in_thread(partial(self.registry.bring, version))
            model = loaded.model
            assert model is not None
            self.registry.put_back(version, loaded)
        return model

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

    # ---- models that come and go -----------------------------------------------------------------------------
    async def load_model(self, name: str, parameters: Any = None) -> None:
        """Load what the repository has of a model now; what has not changed since it was loaded stays as it is.

        Args:
            parameters: of Triton's extension. They may not put anything in the place of what is on the disk.

        Raises:
            UnavailableError: without model_control explicit, or too many calls wait.
            InvalidRequestError: a parameter that is not taken.
            LoadFailedError: it does not load; what was served before still is.
            ShuttingDownError: the server leaves.
        """
        self._check_control()
        for key in checked(parameters):
            if key == "config" or key.startswith("file:"):
                raise InvalidParameterError(
                    f"failed to load {name!r}: the parameter {key!r} is not taken, a model is loaded as the repository "
                    "has it",
                    f"$.parameters.{key}",
                )
            raise InvalidParameterError(f"{key!r} is not a known parameter", f"$.parameters.{key}")
        await self.change(name)

    async def unload_model(self, name: str, parameters: Any = None) -> None:
        """Serve none of a model's versions any more. Nothing depends on another model, so that unload_dependents, which
        is taken, changes nothing. A model that is not loaded stays so.

        Raises: as `load_model`.
        """
        self._check_control()
        for key, value in checked(parameters).items():
            if key != "unload_dependents":
                raise InvalidParameterError(f"{key!r} is not a known parameter", f"$.parameters.{key}")
            if not isinstance(value, bool):
                raise InvalidParameterError("unload_dependents must be true or false", f"$.parameters.{key}")
        await self.change(name, unload=True)

    async def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """Triton's repository index; with model_control explicit, also of what is not loaded.

        Raises:
            NotReadyError: nothing can be loaded.
        """
        await self.prepare()
        explicit = self.settings.model_control == "explicit" and not ready_only
        others = await in_thread(self.registry.not_loaded) if explicit else ()
        return self.registry.index(ready_only, others)

    def _check_control(self) -> None:
        if self.settings.model_control != "explicit":  # in Triton's words, and with its status
            raise UnavailableError("explicit model load / unload is not allowed if polling is enabled")

    async def _started(self) -> None:
        """Wait until the load of the start, which is on a thread of its own, is through."""
        if self._loading is not None and not self._loading.done():
            await asyncio.wait([asyncio.wrap_future(self._loading)])

    async def change(self, name: str, *, unload: bool = False) -> None:
        """Bring one model to what the disk has of it, or unload it; one change at a time.

        It is carried through even if the one who asked for it leaves.
        """
        await self.prepare()
        if len(self._changes) >= MOST_CHANGES:
            raise UnavailableError(f"{MOST_CHANGES} loads and unloads wait already")
        task = asyncio.get_running_loop().create_task(self._change(name, unload))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _change(self, name: str, unload: bool) -> None:
        await self._started()
        if self.remote is not None:
            if self.draining:
                raise ShuttingDownError("the server is shutting down")
            await self.remote(name, unload)
            return
        async with self._changing:
            if self.draining:
                raise ShuttingDownError("the server is shutting down")
            change = await in_thread(partial(self.registry.prepare, name, unload=unload))
            if self.draining:
                self.registry.discard(change)
                raise ShuttingDownError("the server is shutting down")
            self.registry.commit(change)
        self._look_after_others()
        error = change.error
        if error is not None:
            raise error

    def attach(self) -> None:
        """Let the models answer on the running loop. Test clients run every request on a loop of its own."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.registry.attach(loop)
            self.loop = loop

    async def on_worker(self, function: Callable[..., T], *args: Any) -> T:
        """Run on a worker thread what would hold the loop."""
        if self._workers is None:
            threads = min(4, len(os.sched_getaffinity(0)))
            self._workers = ThreadPoolExecutor(threads, "fastinfer-worker", precedence.behind)
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *args)

    def close(self) -> None:
        """After the last request."""
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._workers = None
        self.registry.close()


def checked(parameters: Any) -> Mapping[str, Any]:
    """The parameters of a load or an unload.

    Raises:
        InvalidRequestError: not an object.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError("parameters must be an object", "$.parameters")
    return parameters


async def in_thread(function: Callable[[], T]) -> T:
    """Run on a thread of its own what may take long; one that hangs does not keep the process that was told to end."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # whoever waits may leave, and then its result is nobody's

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="fastinfer-load", daemon=True).start()
    return await asyncio.wrap_future(done)
