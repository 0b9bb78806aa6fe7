"""A model that Triton runs: one batch is one request."""

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import numpy as np

from fastinfer._core import DATATYPES, DTYPES, Engine
from fastinfer.errors import (
    BackendTimeoutError,
    BackendUnavailableError,
    InvalidShapeError,
    ModelLoadError,
)
from fastinfer.runtimes import Arrays, RemoteRuntime
from fastinfer.runtimes.triton.contract import Contract
from fastinfer.runtimes.triton.exchange import Failed, Link, Question
from fastinfer.runtimes.triton.forwarding import Fields, Forwarding
from fastinfer.runtimes.triton.pace import Pace
from fastinfer.runtimes.triton.regions import Consent
from fastinfer.runtimes.triton.targets import Target, shortest
from fastinfer.settings import ModelConfig, TritonConfig

logger = logging.getLogger("fastinfer.triton")
T = TypeVar("T")
LOAD_TIME = 10.0  # seconds in which Triton describes its model
GRAIN = 0.005  # of a loop's timers
MOST_ID = 256  # characters of the ids of a batch's requests
MISSING = 404  # the status where the model is not there
REREAD = 10  # questions for readiness, in whose time all that is known of a model is asked for
DOUBTFUL = (400, MISSING)  # statuses by which Triton may mean that it has another model now
SHORT = 1.0  # seconds; a batch that was given less says nothing about its server when it is not answered


class TritonRuntime(RemoteRuntime):
    """A model of one or several Tritons, which are asked on a thread with an event loop of its own."""

    def __init__(self, model: str, config: ModelConfig, place: str) -> None:
        """Ask Triton what the model is.

        Raises:
            BackendUnavailableError: nobody answers, or the model is not ready there.
            ModelLoadError: the model cannot be served from here.
        """
        assert config.triton is not None
        self.config: TritonConfig = config.triton
        self.asked = model, config, place
        self.stale = False
        self.timeout = (config.run_timeout_ms or 30_000) / 1000
        self.targets = [Target(address) for address in self.config.addresses]
        self.consents = [Consent(address, self.config.shared_memory) for address in self.config.addresses]
        self.links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[Link]] = weakref.WeakKeyDictionary()
        self.keeper = Keeper()
        self.end = weakref.finalize(self, self.keeper.stop)
        try:
            self.contract = self.keeper.do(self.describe(), LOAD_TIME)
        except BaseException:
            self.close()
            raise
        self.version = self.contract.version
        self.platform = self.contract.platform
        self.max_batch_size = self.contract.max_batch_size
        self.mixes = self.contract.mixes
        fixed = self.config.in_flight
        pace = Pace(*((self.contract.instances + more) * len(self.targets) for more in (0, 1)))
        self.pace = pace.note if fixed is None else None
        self.in_flight = pace.limit if fixed is None else fixed * len(self.targets)
        if self.config.forward_headers:
            self.forwards = Forwarding(self.config.forward_headers, self.config.headers)
        self.inputs = list(self.contract.inputs)
        self.outputs = list(self.contract.outputs)
        self.classes: dict[str, tuple[str, ...]] = {}
        self.native: Engine | None = None
        self.keeper.start(watch(weakref.ref(self)))

    @property
    def ready(self) -> bool:
        return any(not target.open for target in self.targets)

    async def part(self) -> None:
        for link in self.links.pop(asyncio.get_running_loop(), []):
            await link.close()

    def close(self) -> None:
        for loop in list(self.links):
            if loop.is_running() and loop is not self.keeper.loop:
                asyncio.run_coroutine_threadsafe(self.part(), loop)
        self.end()

    def run(self, inputs: Arrays) -> Arrays:
        rows = len(next(iter(inputs.values())))
        if not self.max_batch_size or 0 < rows <= self.max_batch_size:
            return self.run_once(inputs)
        if rows == 0:
            return self.run_nothing()
        parts = [
            self.run_once({name: np.ascontiguousarray(array[start : start + self.max_batch_size])
                           for name, array in inputs.items()})
            for start in range(0, rows, self.max_batch_size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_once(self, inputs: Arrays) -> Arrays:
        question = Question(inputs, time.monotonic() + self.timeout)
        return self.keeper.do(self.send(question), self.timeout + SHORT)

    async def run_async(self, inputs: Arrays, deadline: float, ids: list[str], priority: int, trace: str,
                        fields: Fields = ()) -> Arrays:
        return await self.send(Question(inputs, deadline, ",".join(ids)[:MOST_ID], priority, trace, fields))

    def run_nothing(self) -> Arrays:
        empty = {}
        for output in self.outputs:
            if -1 in output.shape[1:]:
                raise InvalidShapeError(f"zero rows: the shape {list(output.shape)} of output {output.name!r} is only "
                                        "known after a run")
            empty[output.name] = np.empty((0, *output.shape[1:]), DTYPES[DATATYPES.index(output.datatype)])
        return empty

    async def send(self, question: Question) -> Arrays:
        """Have a batch run by whoever has the least to do.

        A batch that certainly reached nobody goes out once more: where no connection came about, and where one that
        was kept was closed as the batch left. After a time-out, or with a connection that ended otherwise, it may have
        run, and may be why: it does not.

        Raises:
            BackendUnavailableError, BackendError, BackendTimeoutError, BackendRefusedError: it has no answer.
        """
        links = self.links_here()
        tried: list[Target] = []
        while True:
            target = shortest(self.targets, tried)
            tried.append(target)
            started = time.monotonic()
            target.in_flight += 1
            try:
                async with asyncio.timeout(max(question.deadline - started, 0.0)):
                    outputs = await links[self.targets.index(target)].infer(self.contract, question)
            except (TimeoutError, asyncio.CancelledError) as error:
                now = time.monotonic()
                if now - started >= SHORT and now >= question.deadline - GRAIN:
                    target.failed("it did not answer in time")
                if isinstance(error, asyncio.CancelledError):
                    raise
                raise BackendTimeoutError("the model's server did not answer in time") from None
            except Failed as failed:
                logger.info("Triton at %s: %s", target.address, failed)
                if failed.sick:
                    target.failed(failed, at_once=failed.status == MISSING)
                else:
                    target.answered()
                target.doubted |= failed.status in DOUBTFUL
                if not failed.again or len(tried) > 1:
                    raise failed.error() from None
            else:
                target.answered()
                return outputs
            finally:
                target.in_flight -= 1

    def links_here(self) -> list[Link]:
        """The connections of the running loop."""
        loop = asyncio.get_running_loop()
        links = self.links.get(loop)
        if links is None:
            own = loop is self.keeper.loop
            links = self.links[loop] = [link_to(consent, self.config, own) for consent in self.consents]
            if loop is self.keeper.loop:
                self.keeper.links = links
        return links

    async def describe(self) -> Contract:
        """What the first Triton that answers says of the model; all others must say the same."""
        place = self.asked[2]
        contract, refusal = None, None
        for link, target in zip(self.links_here(), self.targets, strict=True):
            try:
                async with asyncio.timeout(LOAD_TIME / len(self.targets)):
                    found = await self.look(link)
            except (Failed, BackendUnavailableError, TimeoutError) as error:
                why = "it does not answer" if isinstance(error, TimeoutError) else error
                refusal = BackendUnavailableError(f"{place}: {target.address}: {why}")
                target.failed(why, at_once=True)
                continue
            if contract is not None and found != contract:
                raise ModelLoadError(f"{place}: the models at {self.targets[0].address} and {target.address} differ")
            contract = found
            target.doubted = False
        if contract is None:
            assert refusal is not None
            raise refusal
        contract.advise(self.asked[1], place)
        return contract

    async def look(self, link: Link, version: str = "") -> Contract:
        """What a Triton says of the model, of the version to serve where none is given.

        Raises:
            Failed, BackendUnavailableError: it does not answer, or the model is not ready there.
            ModelLoadError: the model cannot be served from here.
        """
        model, _, place = self.asked
        version = version or str(self.config.version or "")
        metadata = await link.metadata(model, version)
        version = version or highest(metadata)
        if not await link.ready(model, version):
            raise BackendUnavailableError(f"model {model!r} is not ready in Triton")
        configuration = await link.configuration(model, version)
        return Contract.read({**metadata, "versions": [version]}, configuration, place)

    async def recheck(self, target: Target, link: Link) -> bool:
        """Whether a url still, or again, has the model that is served; where it has another one, that is noted."""
        try:
            try:
                found = await self.look(link, self.contract.version)
            except (Failed, BackendUnavailableError):
                if self.config.version is not None:
                    raise
                found = await self.look(link)  # that version may have made way for another one
        except (Failed, BackendUnavailableError):
            return False
        except ModelLoadError as error:
            self.note_stale(target, error)
            return False
        target.doubted = False
        if found == self.contract:
            return True
        self.note_stale(target, f"version {found.version} is another model" if found.version == self.version else
                        f"version {self.version} has made way for version {found.version}")
        return False

    def note_stale(self, target: Target, why: object) -> None:
        if not self.stale:
            logger.warning("Triton at %s has another model now, which is to be loaded: %s", target.address, why)
        self.stale = True
        target.failed("it has another model now", at_once=True)


def highest(metadata: Mapping[str, Any]) -> str:
    """The highest of the versions that Triton serves; empty where it tells none."""
    told = metadata.get("versions")
    return max(filter(str.isdigit, map(str, told if isinstance(told, list) else [])), key=int, default="")


def link_to(consent: Consent, config: TritonConfig, own: bool) -> Link:
    """To the url of the consent; `own` is for a loop of ours in place of a server's."""
    if config.transport == "grpc":
        from fastinfer.runtimes.triton.grpc import GrpcLink

        return GrpcLink(consent.address, config, consent, threads=own)
    from fastinfer.runtimes.triton.http import HttpLink

    return HttpLink(consent.address, config, consent)


async def watch(runtime: "weakref.ref[TritonRuntime]") -> None:
    """Look after each target while nothing else tells how it is, until the runtime is gone."""
    owner = runtime()
    if owner is not None:
        pairs = list(zip(owner.targets, owner.links_here(), strict=True))
        config = owner.config
        del owner
        async with asyncio.TaskGroup() as group:
            for target, link in pairs:
                group.create_task(watch_one(runtime, target, link, config))


async def watch_one(runtime: "weakref.ref[TritonRuntime]", target: Target, link: Link, config: TritonConfig) -> None:
    """Ask for readiness, and for all that is known of the model now and then and where it may be another one by now."""
    looked_at = time.monotonic()
    while True:
        await asyncio.sleep(target.pause() if target.open else config.probe_interval)
        now = time.monotonic()
        quiet = target.answered_at < now - config.probe_interval
        whole = target.open or target.doubted or now - looked_at >= REREAD * config.probe_interval
        owner = runtime() if quiet or whole else None
        if owner is None:
            if runtime() is None:
                return
            continue
        well = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(config.connect_timeout):
                if whole:
                    looked_at = now
                    well = await owner.recheck(target, link)
                else:
                    well = await link.ready(owner.contract.model, owner.contract.version)
        del owner
        if well:
            target.woke()
        elif not target.open and target.answered_at < now - config.probe_interval:  # nor was a batch answered meanwhile
            target.failed("the model is not ready there", at_once=True)


class Keeper:
    """A thread with an event loop, for what is asked of Triton outside a server's loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.links: list[Link] = []  # to close at its end
        self.thread = threading.Thread(target=self.keep, name="fastinfer-triton", daemon=True)
        self.thread.start()

    def keep(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        ends = [link.close() for link in self.links]
        self.loop.run_until_complete(asyncio.gather(*tasks, *ends, return_exceptions=True))
        self.loop.close()

    def do(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """The result of a coroutine that runs there; TimeoutError of ours after so many seconds."""
        if self.loop.is_closed() or not self.thread.is_alive():
            work.close()
            raise BackendUnavailableError("the model is closed")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise BackendTimeoutError("the model's server did not answer in time") from None
        finally:
            del future  # it has the error, whose frames have this one

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        """End the thread; not waited for."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
