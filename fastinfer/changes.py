"""Changes of the models of several workers: each is made on all of them, or on none.

A worker that is asked for a change asks the supervisor (`Party`). The supervisor has every worker load what is new, and
when all have, has every worker serve it (`Changes`): until then nothing of what is served has changed anywhere.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastinfer.errors import FastinferError, LoadFailedError, NotReadyError, ShuttingDownError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastinfer.service import Service
    from fastinfer.versions import Change

    Message = dict[str, Any]
    Tell = Callable[..., None]

logger = logging.getLogger("fastinfer.changes")
LONGEST_START = 60.0  # seconds in which a change waits for a worker that starts
STARTING = {"code": NotReadyError.code, "error": "a worker is starting; try again later"}
TOLD = {each.code: each for each in (LoadFailedError, NotReadyError, ShuttingDownError, UnavailableError)}


def told(error: BaseException) -> Message:
    """An error as a message has it."""
    if isinstance(error, FastinferError):
        return {"code": error.code, "error": str(error)}
    logger.error("a change of the models failed", exc_info=error)
    return {"code": LoadFailedError.code, "error": "internal error; the server's log has it"}


def as_error(message: Message) -> FastinferError:
    """The error that a message tells of."""
    return TOLD.get(message["code"], LoadFailedError)(message["error"])


@dataclass(slots=True)
class Asked:
    """A change that a worker has asked for."""

    worker: object  # its end of the line
    number: int
    name: str
    unload: bool
    since: float
    waits_for: set[object] = field(default_factory=set)
    serving: bool = False  # the workers have loaded it, and are to serve it
    loaded_at: float = 0.0  # by all workers that served then
    reports: list[Message] = field(default_factory=list)


class Changes:
    """The supervisor's side: one change at a time.

    Attributes:
        served: fingerprints of versions by model, as every worker has them; None until the first one has told.
    """

    def __init__(self) -> None:
        self.served: dict[str, dict[str, str]] | None = None
        self._workers: dict[object, Tell] = {}  # those that serve
        self._starting: set[object] = set()
        self._queue: deque[Asked] = deque()
        self._current: Asked | None = None
        self._numbers = itertools.count(1)
        self._number = 0  # of the current change

    # ---- workers come and go -------------------------------------------------------------------------------------
    def starts(self, worker: object) -> None:
        """A process has been started, to serve what is served now."""
        self._starting.add(worker)

    def serves(self, worker: object, tell: Tell, models: dict[str, dict[str, str]], now: float) -> None:
        """It has loaded that, and takes part in the change that is under way."""
        self._starting.discard(worker)
        self._workers[worker] = tell
        if self.served is None:
            self.served = models
        current = self._current
        if current is not None and not current.serving:
            current.waits_for.add(worker)
            self._tell([worker], prepare=self._number, name=current.name, unload=current.unload)
        self.go_on(now)

    def ends(self, worker: object, now: float) -> None:
        """It has died or left."""
        self._starting.discard(worker)
        self._workers.pop(worker, None)
        self._queue = deque(asked for asked in self._queue if asked.worker != worker)
        current = self._current
        if current is not None and worker in current.waits_for:
            current.waits_for.discard(worker)
            if current.serving:
                self._check_served(current)
            else:
                reason = f"failed to load '{current.name}', a worker died while it loaded it"
                self._give_up(current, {"code": LoadFailedError.code, "error": reason})
        self.go_on(now)

    # ---- one change ----------------------------------------------------------------------------------------------
    def take(self, worker: object, message: Message, now: float) -> None:
        """What a worker says of changes."""
        current = self._current
        if "ask" in message:
            self._queue.append(Asked(worker, message["ask"], message["name"], message["unload"], now))
        elif current is None or message["change"] != self._number or worker not in current.waits_for:
            return  # of a change that was given up
        elif not current.serving:
            current.waits_for.discard(worker)
            self._prepared(current, message, now)
        else:
            current.waits_for.discard(worker)
            self._check_served(current)
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Carry the change that is under way on, and begin the next, when nothing is in its way."""
        current = self._current
        if current is not None and not current.serving and not current.waits_for:
            if not self._starting:  # a worker that starts serves what was served before
                self._commit(current)
            elif now - current.loaded_at >= LONGEST_START:
                self._give_up(current, dict(STARTING))
        while self._current is None and self._queue:
            asked = self._queue[0]
            if self._starting:
                if now - asked.since < LONGEST_START:
                    return
                self._queue.popleft()
                self._answer(asked, dict(STARTING))
                continue
            self._queue.popleft()
            self._current, self._number = asked, next(self._numbers)
            asked.waits_for = set(self._workers)
            self._tell(asked.waits_for, prepare=self._number, name=asked.name, unload=asked.unload)

    def refuse(self) -> None:
        """The server ends: answer whoever waits."""
        message = {"code": ShuttingDownError.code, "error": "the server is shutting down"}
        for asked in self._queue:
            self._answer(asked, message)
        self._queue.clear()
        if self._current is not None and not self._current.serving:
            self._give_up(self._current, message)

    def _prepared(self, current: Asked, report: Message, now: float) -> None:
        if "error" in report:
            self._give_up(current, report)
            return
        current.reports.append(report)
        current.loaded_at = now

    def _commit(self, current: Asked) -> None:
        refused = self._refused(current)
        self._note(current, refused)
        current.serving = True
        current.waits_for = set(self._workers)
        self._tell(current.waits_for, commit=self._number, refused=refused)
        current.reports = [{"refused": refused}]
        self._check_served(current)

    @staticmethod
    def _refused(current: Asked) -> dict[str, str]:
        """Versions that some worker has not, or has otherwise, and why."""
        refused: dict[str, str] = {}
        for report in current.reports:
            refused |= report["failures"]
        for version in {version for report in current.reports for version in report["stamps"]} - refused.keys():
            if len({report["stamps"].get(version) for report in current.reports}) > 1:
                refused[version] = "its files changed while the workers loaded it, one after the other"
        return refused

    def _note(self, current: Asked, refused: dict[str, str]) -> None:
        """What a worker that starts from now on is to serve."""
        served = self.served or {}
        stamps = current.reports[0]["stamps"]
        versions = {version: stamp for version, stamp in stamps.items() if version not in refused}
        if refused:
            versions = {**served.get(current.name, {}), **versions}
        others = {name: mine for name, mine in served.items() if name != current.name}
        self.served = {**others, current.name: versions} if versions else others

    def _check_served(self, current: Asked) -> None:
        if current.waits_for:
            return
        refused = current.reports[0]["refused"]
        reasons = "; ".join(f"version {version}: {reason}" for version, reason in refused.items())
        failure = {"code": LoadFailedError.code, "error": f"failed to load '{current.name}', {reasons}"}
        self._answer(current, failure if refused else None)
        self._current = None

    def _give_up(self, current: Asked, error: Message) -> None:
        self._tell(self._workers, discard=self._number)
        self._answer(current, error)
        self._current = None

    def _answer(self, asked: Asked, error: Message | None) -> None:
        failure = None if error is None else {"code": error["code"], "error": error["error"]}
        self._tell([asked.worker], answer=asked.number, failure=failure)

    def _tell(self, workers: Iterable[object], **message: Any) -> None:
        for worker in list(workers):
            if worker in self._workers:
                self._workers[worker](**message)


class Party:
    """A worker's side: asks for changes, and takes part in those of all."""

    def __init__(self, service: Service, tell: Tell) -> None:
        self._service = service
        self._tell = tell
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._loading = threading.Lock()
        self._number = 0  # of the change that is under way
        self._change: Change | None = None

    async def ask(self, name: str, unload: bool) -> None:
        """Have all workers load or unload a model.

        Raises:
            FastinferError: it was not done; all serve what they served before.
        """
        number = next(self._numbers)
        done = self._asked[number] = asyncio.get_running_loop().create_future()
        self._tell(ask=number, name=name, unload=unload)
        await done

    def take(self, message: Message) -> None:
        """What the supervisor says; on the thread that listens to it."""
        self._on_loop(self._take, message)

    def _take(self, message: Message) -> None:
        if "prepare" in message:
            self._number = message["prepare"]
            threading.Thread(target=self._prepare, args=(message,), name="fastinfer-load", daemon=True).start()
        elif "commit" in message:
            change, self._change = self._change, None
            if change is not None and message["commit"] == self._number:
                self._service.registry.commit(change, message["refused"])
            self._tell(change=message["commit"])
        elif "discard" in message:
            change, self._change = self._change, None
            self._number = 0
            if change is not None:
                self._service.registry.discard(change)
        elif "answer" in message:
            done = self._asked.pop(message["answer"])
            if done.cancelled():
                return
            if message["failure"] is None:
                done.set_result(None)
            else:
                done.set_exception(as_error(message["failure"]))

    def _prepare(self, message: Message) -> None:
        """Load, on a thread of its own."""
        number = message["prepare"]
        try:
            with self._loading:  # one that was given up may not be through
                if self._service.draining:
                    raise ShuttingDownError("the server is shutting down")
                change = self._service.registry.prepare(message["name"], unload=message["unload"])
        except BaseException as error:
            self._tell(change=number, **told(error))
        else:
            self._on_loop(self._ready, number, change)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._service.loop is not None:
            self._service.loop.call_soon_threadsafe(function, *arguments)

    def _ready(self, number: int, change: Change) -> None:
        if number != self._number:
            self._service.registry.discard(change)
            return
        self._change = change
        self._tell(change=number, failures=change.failures, stamps=change.stamps)
