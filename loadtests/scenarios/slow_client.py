"""Slow client: some send their bytes a few at a time and read as slowly. They must be answered, and hold up nobody."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import gevent
from locust import tag, task
from schedule import Phase
from users import InferenceUser

from scenarios.shape import Scenario

PIECES = 8
PAUSE = 0.25  # seconds between two pieces: slower than a phone, faster than any server's limit
READ = 16  # bytes at a time
SLOW_READS = 40  # so many of them with a pause, the rest of a long answer without


class SlowUser(InferenceUser):
    """A connection a request, trickled. The time counted is the server's: from the last byte sent to the first read."""

    kind = "slow"
    group = "slow"
    fixed_count = 16

    @tag("slow")
    @task
    def trickle(self) -> None:
        body = next(self.queue)
        message = self.connection.request(body, Connection="close")
        error: Exception | None = None
        took = 0.0
        answer = b""
        try:
            took, answer = self.exchange(message)
        except OSError as failure:
            error = failure
        if error is None and (b" 200 " not in answer[:16] or self.answer_holds not in answer):
            error = RuntimeError(f"not answered: {answer[:120]!r}")
        self.environment.events.request.fire(
            request_type="POST", name=self.kind, response_time=took, response_length=len(answer), exception=error,
            context={**self.context(), "user": self.kind, "group": self.group}, response=None, start_time=time.time(),
            url=body.path)

    def exchange(self, message: bytes) -> tuple[float, bytes]:
        """Milliseconds from the last byte to the first of the answer, and all of it."""
        size = max(1, -(-len(message) // PIECES))
        with self.connection.open() as sock:
            for start in range(0, len(message), size):
                if start:
                    gevent.sleep(PAUSE)
                sock.sendall(message[start:start + size])
            sent = time.perf_counter()
            answer = sock.recv(READ)
            took = (time.perf_counter() - sent) * 1000
            pieces = [answer]
            while piece := sock.recv(READ if len(pieces) < SLOW_READS else 65536):
                pieces.append(piece)
                gevent.sleep(0.005 if len(pieces) < SLOW_READS else 0)
            return took, b"".join(pieces)


class SlowClient(Scenario):
    """An open loop at ``load``, of which a target may ask as much as without the slow ones, beside sixteen of them.

    Targets may name the phases ``beside``, which has the open loop's requests only, and ``slow``.
    """

    name: ClassVar[str] = "slow-client"
    extra_users = (SlowUser,)
    load = 0.3

    def phases(self) -> Sequence[Phase]:
        rate = self.share(self.load)
        return [Phase("warm-up", self.warmup, rate, measured=False), Phase("beside", self.seconds, rate)]

    def schedules(self) -> Mapping[str, Sequence[Phase]]:
        slow = [Phase("before slow", self.warmup, measured=False), Phase("slow", self.seconds)]
        return {"": self.phases(), SlowUser.group: slow}
