"""Several server processes under a supervisor, which starts them, replaces the dead and the hung, and ends them.

The supervisor binds what the workers listen on and keeps it open: the connections that wait for a dead worker are
served by its replacement. Workers are forked from the supervisor, which has imported the server but loaded no model
and started no thread, so that a replacement starts with warm modules and runs the same code. The memory in which they
count is shared, and outlives any of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

from fastinfer import logs, sockets
from fastinfer.changes import Changes, Party
from fastinfer.errors import ConfigurationError, NotReadyError
from fastinfer.metrics import Counters, scoreboard
from fastinfer.server import PATIENCE, SIGNALS, Server, announce, leave

if TYPE_CHECKING:
    from fastinfer._core import Scoreboard
    from fastinfer.settings import Settings
    from fastinfer.sockets import Listeners

logger = logging.getLogger("fastinfer.workers")

STABLE = 10.0  # seconds of serving after which a death is no longer one of a row
FIRST_WAIT = 0.5  # seconds before the second replacement in a row; the first comes at once, each next waits doubly
LONGEST_WAIT = 30.0
LONGEST_QUEUE = 1.0  # seconds in which clients wait for a replacement, where another worker could serve them
TRIALS = 3  # starts of a worker that is killed before the server has served at all
SPARE_SLOTS = 1  # of the scoreboard: hung workers that may leave while their replacements serve
LOOK = 1.0  # seconds between looks at the workers' heartbeats
KILL_AFTER = 5.0  # seconds past shutdown_timeout in which a worker may end by itself
USAGE = 2  # exit code of a worker that cannot serve, and of the server then
PR_SET_PDEATHSIG = 1
PREPARED = ("uvloop", "uvicorn.lifespan.on", "fastinfer.app", "fastinfer.pages", "fastinfer.protocols.connection")
HANDLED = (*SIGNALS, signal.SIGCHLD)


def supervise(settings: Settings) -> int:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT.

    Returns:
        0 after a drain in which every admitted request was answered, 1 when any worker cut some off or died.

    Raises:
        ConfigurationError: the address is taken, or no model under the path can be served.
    """
    logs.configure(settings)
    listeners = sockets.bind(settings)
    try:
        return Supervisor(settings, listeners).run()
    finally:
        listeners.release()


class Channel:
    """One end of the socket between the supervisor and a worker: a JSON value a line."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._received = b""

    def send(self, message: dict[str, Any]) -> None:
        self.end.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that the next bytes complete, which may be none; None when the other end is closed.

        Raises:
            BlockingIOError: there are no bytes, and the end does not wait for any.
        """
        try:
            data = self.end.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.end.close()


class Requests:
    """A worker's line to the supervisor, from any thread; what the supervisor says is taken by a thread of its own.

    Attributes:
        party: takes what is said of changes of the models; there once the worker's loop runs.
    """

    def __init__(self, channel: Channel) -> None:
        self.party: Party | None = None
        self._channel = channel
        self._sending, self._asking = threading.Lock(), threading.Lock()
        self._rows: SimpleQueue[int | None] = SimpleQueue()
        threading.Thread(target=self._listen, name="fastinfer-supervisor", daemon=True).start()

    def _listen(self) -> None:
        while (messages := self._channel.receive()) is not None:
            for message in messages:
                if "row" in message:
                    self._rows.put(message["row"])
                elif self.party is not None:
                    self.party.take(message)
        self._rows.put(None)

    def tell(self, **message: Any) -> None:
        # Where the supervisor is gone, this worker soon will be.
        with self._sending, contextlib.suppress(BrokenPipeError):
            self._channel.send(message)

    def add_row(self, name: str, version: str, max_batch_size: int) -> int:
        """A row of the scoreboard for a model version; blocks until the supervisor has made it.

        Raises:
            NotReadyError: there is no supervisor any more.
        """
        with self._asking:
            self.tell(add=[name, version, max_batch_size])
            row = self._rows.get()
        if row is None:
            self._rows.put(None)
            raise NotReadyError("the supervisor is gone")
        return row


class Worker:
    """One place of the server, and the process that fills it at the moment.

    Attributes:
        number: of the place.
        slot: of the scoreboard, in which the process counts.
        pid: of the process; 0 where there is none.
        served_at: monotonic time when the process had its models loaded, or None.
        failure: why the process could not serve, as it told.
        deaths: in a row, none of which had served for long.
        due: monotonic time of the next start, where there is no process.
        resting: whether its sockets take no connections until then.
        heartbeat: the last that was seen of it.
        silent: seconds since then, as far as the supervisor was awake itself.
        hangs: whether a run of a model does not end in it; it serves what else it has until its replacement does.
        killed_at: monotonic time of the kill of one that does not leave; None where it is not to leave.
    """

    def __init__(self, number: int) -> None:
        self.number = self.slot = number
        self.pid = 0
        self.channel: Channel | None = None
        self.served_at: float | None = None
        self.failure: str | None = None
        self.deaths = 0
        self.due = 0.0
        self.resting = False
        self.heartbeat = 0
        self.silent = 0.0
        self.hangs = False
        self.killed_at: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until the next start, after a death now."""
        if self.served_at is not None and now - self.served_at >= STABLE:
            self.deaths = 0
        self.deaths += 1
        return 0.0 if self.deaths == 1 else min(FIRST_WAIT * 2.0 ** min(self.deaths - 2, 16), LONGEST_WAIT)


class Supervisor:
    """Starts workers, replaces those that die, and ends them all."""

    def __init__(self, settings: Settings, listeners: Listeners) -> None:
        self.settings = settings
        self.listeners = listeners
        self.board: Scoreboard = scoreboard(settings.workers + SPARE_SLOTS)
        self.workers = [Worker(number) for number in range(settings.workers)]
        self.changes = Changes()
        self.leaving: list[Worker] = []  # hung ones, whose places others have taken
        self.spare_slots = list(range(settings.workers, self.board.workers))
        for slot in self.spare_slots:
            self.board.set_gauge(slot, "spare", 1)
        self.looked = time.monotonic()  # at the heartbeats
        self.description: dict[str, Any] | None = None  # of what is served, from the first worker that serves
        self.announced = False
        self.ending: float | None = None  # monotonic time after which workers that drain are killed
        self.code = 0
        self.fatal: ConfigurationError | None = None
        self._signals: list[int] = []
        self._selector = selectors.PollSelector()  # no epoll: a fork would share it
        self._waker: tuple[socket.socket, socket.socket] = socket.socketpair()

    def run(self) -> int:
        """Until a signal has ended all workers. Returns the exit code.

        Raises:
            ConfigurationError: nothing can be served.
        """
        self._prepare()
        try:
            while self.ending is None or any(worker.pid for worker in self._everybody()):
                now = time.monotonic()
                self._look(now)
                for worker in self.workers:
                    if self.ending is None and not worker.pid and now >= worker.due:
                        self._start(worker)
                if self.ending is not None and now >= self.ending:
                    self._kill()
                    break
                self.changes.go_on(now)
                for key, _ in self._selector.select(self._idle_time()):
                    key.data()
                self._reap()
                self._obey()
        finally:
            self._kill()
        if self.fatal is not None:
            raise self.fatal
        return self.code

    def _prepare(self) -> None:
        """Import what workers need, once for all of them, and take over the signals."""
        for name in PREPARED:
            import_module(name)
        for end in self._waker:
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker[1].fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: self._signals.append(number))
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wake-up is all
        self._selector.register(self._waker[0], selectors.EVENT_READ, self._drain_waker)
        # What exists now is never collected: the collector would write to its pages, and unshare them.
        gc.collect()
        gc.freeze()

    def _drain_waker(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._waker[0].recv(4096):
                pass

    def _everybody(self) -> list[Worker]:
        return [*self.workers, *self.leaving]

    def _idle_time(self) -> float:
        """Seconds until the clock has something to do."""
        due = [worker.due for worker in self.workers if not worker.pid and self.ending is None]
        if self.ending is not None:
            due.append(self.ending)
        return max(0.0, min([self.looked + LOOK, *due]) - time.monotonic())

    # ---- hung workers ---------------------------------------------------------------------------------------------
    def _look(self, now: float) -> None:
        """Kill a worker whose event loop stands still, and one that should have left.

        A worker that loads is let alone. Time counts as far as this process was awake: where all of them are stopped
        and go on later, nobody has hung.
        """
        elapsed = min(now - self.looked, 2 * LOOK)
        if elapsed < LOOK:
            return
        self.looked = now
        for worker in self._everybody():
            if not worker.pid:
                continue
            if worker.killed_at is not None and now >= worker.killed_at:
                logger.error("worker %d (pid %d) does not leave; it is killed", worker.number, worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
                worker.killed_at = None
            beat = self.board.gauge(worker.slot, "heartbeat")
            stands = beat == worker.heartbeat and worker.served_at is not None
            worker.silent = worker.silent + elapsed if stands else 0.0
            worker.heartbeat = beat
            if worker.silent >= self.settings.worker_timeout:
                logger.error(
                    "worker %d (pid %d): its event loop has stood still for %g s; it is killed",
                    worker.number, worker.pid, worker.silent,
                )  # fmt: skip
                os.kill(worker.pid, signal.SIGKILL)
                worker.silent = 0.0

    def _hangs(self, worker: Worker) -> None:
        """A run of a model does not end in a worker: start another, and let this one leave when that one serves."""
        if self.ending is not None or worker.hangs or worker not in self.workers:
            return
        worker.hangs = True
        logger.error("worker %d (pid %d): a run does not end; it is replaced", worker.number, worker.pid)
        if not self.spare_slots:  # as many leave already as may: this one goes first, as if it had died
            self._dismiss(worker)
            return
        successor = Worker(worker.number)
        successor.slot = self.spare_slots.pop()
        self.board.set_gauge(successor.slot, "spare", 0)
        self.board.set_gauge(worker.slot, "spare", 1)
        self.board.set_gauge(worker.slot, "restarts", self.board.gauge(worker.slot, "restarts") + 1)
        self.workers[worker.number] = successor
        self.leaving.append(worker)

    def _dismiss(self, worker: Worker) -> None:
        """Let a worker drain and leave; it is killed if it does not."""
        worker.killed_at = time.monotonic() + self.settings.shutdown_timeout + KILL_AFTER
        os.kill(worker.pid, signal.SIGTERM)

    # ---- starting -------------------------------------------------------------------------------------------------
    def _start(self, worker: Worker) -> None:
        worker.served_at = worker.failure = worker.killed_at = None
        worker.hangs, worker.silent = False, 0.0
        parent = os.getpid()
        with contextlib.suppress(OSError):  # nobody may be reading
            sys.stdout.flush()
        # Blocked until the worker handles them: one that came now would be lost to it.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            if worker.resting:
                self.listeners.resume(worker.number)
                worker.resting = False
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become(worker, parent, Channel(theirs))
        except OSError as error:
            wait = max(worker.wait(time.monotonic()), FIRST_WAIT)
            worker.due = time.monotonic() + wait
            logger.error("worker %d cannot be started: %s; next in %g s", worker.number, error.strerror, wait)
            return
        finally:  # not in the worker, which never comes here
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        theirs.close()
        ours.setblocking(False)
        worker.pid = pid
        worker.channel = Channel(ours)
        self.changes.starts(worker.channel)
        self.board.set_gauge(worker.slot, "pid", pid)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._read(worker))

    def _become(self, worker: Worker, parent: int, channel: Channel) -> NoReturn:
        """Be the worker, in the forked process, to its end."""
        code = 1
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            for number in HANDLED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            self._selector.close()
            for end in self._waker:
                end.close()
            for other in self._everybody():
                if other.channel is not None:
                    other.channel.close()
            self.listeners.close(keep=worker.number)
            code = self._work(worker, Requests(channel))
        except BaseException:
            logger.exception("worker %d failed", worker.number)
        leave(code)

    def _work(self, worker: Worker, requests: Requests) -> int:
        """Serve until SIGTERM. Returns the process's exit code."""
        logs.configure(self.settings, worker.number)
        server = Server(
            self.settings,
            self.listeners.sockets[worker.number],
            self.listeners.url,
            lambda description: requests.tell(
                serving=None if self.announced else description, models=service.registry.known()
            ),
            counters=Counters(self.board, worker.slot, requests.add_row),
            worker=worker.number,
            hung=lambda: requests.tell(hangs=True),
            patience=PATIENCE if self.announced else 0.0,
            grpc=self.listeners.grpc_addresses,
            only=self.changes.served,
        )
        service = server.app.service
        requests.party = Party(service, requests.tell)
        service.remote = requests.party.ask
        service.polls = worker.number == 0
        try:
            return 0 if server.run() else 1
        except ConfigurationError as error:
            requests.tell(failed=str(error))
            return USAGE

    # ---- what workers say -----------------------------------------------------------------------------------------
    def _read(self, worker: Worker) -> None:
        """Take the messages of a worker that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while worker.channel is not None:
                messages = worker.channel.receive()
                if messages is None:
                    self._hang_up(worker)
                    return
                for message in messages:
                    self._take(worker, worker.channel, message)

    def _take(self, worker: Worker, channel: Channel, message: dict[str, Any]) -> None:
        if "add" in message:
            row = self.board.add(*message["add"])
            with contextlib.suppress(OSError):  # it has died meanwhile
                channel.send({"row": row})
        elif "ask" in message or "change" in message:
            self.changes.take(channel, message, time.monotonic())
        elif "hangs" in message:
            self._hangs(worker)
        elif "failed" in message:
            worker.failure = message["failed"]
        elif "serving" in message:
            worker.served_at = time.monotonic()
            self.changes.serves(channel, partial(tell, channel), message["models"], worker.served_at)
            for other in self.leaving:
                if other.number == worker.number and other.pid and other.killed_at is None:
                    self._dismiss(other)
            self.description = self.description or message["serving"]
            self._announce()

    def _hang_up(self, worker: Worker) -> None:
        if worker.channel is not None:
            self._selector.unregister(worker.channel.end)
            worker.channel.close()
            self.changes.ends(worker.channel, time.monotonic())
            worker.channel = None

    def _announce(self) -> None:
        """Say what is served when every worker does."""
        if not self.announced and all(worker.served_at is not None for worker in self.workers):
            self.announced = True
            assert self.description is not None
            announce(self.description, self.settings, self.listeners)

    # ---- deaths ---------------------------------------------------------------------------------------------------
    def _reap(self) -> None:
        """Take the exit codes of the processes that have ended; also of those that only became ours, as init's do."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for worker in self._everybody():
                if worker.pid == pid:
                    self._buried(worker, os.waitstatus_to_exitcode(status))

    def _buried(self, worker: Worker, code: int) -> None:
        pid, worker.pid = worker.pid, 0
        self._read(worker)  # its last words
        self._hang_up(worker)  # something that it has started may hold the other end
        self.board.reset_gauges(worker.slot)
        self.board.set_gauge(worker.slot, "pid", 0)
        if self.ending is not None:
            self.code = self.code or (1 if code else 0)
            return
        if worker in self.leaving:
            self.leaving.remove(worker)
            self.spare_slots.append(worker.slot)
            logger.info("worker %d (pid %d): the process that hung has left", worker.number, pid)
            return
        now = time.monotonic()
        wait = worker.wait(now)
        if not self.announced and (code >= 0 or worker.deaths >= TRIALS):
            self._refuse(worker, pid, code)
            return
        worker.due = now + wait
        self.board.set_gauge(worker.slot, "restarts", self.board.gauge(worker.slot, "restarts") + 1)
        why = worker.failure or fate(code)
        if wait > LONGEST_QUEUE and any(other.served_at is not None for other in self.workers if other.pid):
            worker.resting = True
            self.listeners.rest(worker.number)
        then = "now" if not wait else f"in {wait:g} s, after {worker.deaths} deaths in a row"
        logger.error("worker %d (pid %d): %s; it is replaced %s", worker.number, pid, why, then)

    def _refuse(self, worker: Worker, pid: int, code: int) -> None:
        """A worker ended before the server ever served, by itself or more than once: others would do the same."""
        if worker.failure is not None:
            self.fatal = ConfigurationError(worker.failure)
        else:
            logger.error("worker %d (pid %d): %s before it served; the server ends", worker.number, pid, fate(code))
        self.code = code if code >= 0 else 1
        self.ending = time.monotonic()

    # ---- the end --------------------------------------------------------------------------------------------------
    def _obey(self) -> None:
        """The first signal drains all workers; the next one ends everything now, as its default action does."""
        while self._signals:
            number = self._signals.pop(0)
            if self.ending is None:
                self._drain()
                continue
            self._kill()
            self.listeners.release()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _drain(self) -> None:
        logger.info("draining %d workers", sum(worker.pid > 0 for worker in self._everybody()))
        self.ending = time.monotonic() + self.settings.shutdown_timeout + KILL_AFTER
        self.changes.refuse()
        for worker in self._everybody():
            if worker.pid:
                os.kill(worker.pid, signal.SIGTERM)
        # They go on accepting for drain_delay; then nobody must hold the sockets, or clients would wait in vain.
        self.listeners.close()

    def _kill(self) -> None:
        """End all workers now."""
        self.ending = self.ending or time.monotonic()
        living = [worker for worker in self._everybody() if worker.pid]
        for worker in living:
            os.kill(worker.pid, signal.SIGKILL)
        for worker in living:
            _, status = os.waitpid(worker.pid, 0)
            self._buried(worker, os.waitstatus_to_exitcode(status))


def tell(channel: Channel, **message: Any) -> None:
    """Say something to a worker, which may have died meanwhile."""
    with contextlib.suppress(OSError):
        channel.send(message)


def die_with_parent(parent: int) -> None:
    """Be killed when the supervisor ends, however it does."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before that
        os._exit(1)


def fate(code: int) -> str:
    """How a process ended, by its exit code, which is negative for a signal."""
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
