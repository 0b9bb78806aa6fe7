"""The user classes that send a model's requests; what they send is prepared before the load begins."""

from __future__ import annotations

import ipaddress
import itertools
import random
import time
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
import payloads
from connection import Answer, Connection, field
from locust import FastHttpUser, tag, task
from locust.exception import ResponseError, StopUser
from schedule import Arrivals

REFUSALS = frozenset((503, 429))  # of a server that says that it cannot, in time

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds that a refused user waits in a closed loop


class InferenceUser(FastHttpUser):
    """Sends the prepared bodies of its kind, one after the other, each user from another one on.

    Attributes:
        kind: its name in tables and targets.
        group: whose arrivals it shares; without arrivals it sends when it was answered.
        bodies: what it sends.
        answer_holds: what an answer of status 200 must hold to count as one.
        arrivals: of all groups, of this process.
        pending: what this process's users have sent and not been answered.
        address: where its connection comes from, where the server is on this host; None leaves it to the system.
        connection: its own.
    """

    abstract = True
    connection_timeout = 5.0
    network_timeout = 30.0
    kind: ClassVar[str] = ""
    group: ClassVar[str] = ""
    answer_holds: ClassVar[bytes] = b'"outputs"'
    bodies: ClassVar[tuple[payloads.Body, ...]] = ()
    arrivals: ClassVar[dict[str, Arrivals]] = {}
    address: ClassVar[str | None] = None
    connection: Connection
    pending: ClassVar[dict[InferenceUser, dict[str, Any]]] = {}

    def on_start(self) -> None:
        if not self.bodies or not self.tasks:
            raise StopUser  # the master chose this class before it could know: not served, or not tagged
        start = random.randrange(len(self.bodies))
        self.queue = itertools.cycle(self.bodies[start:] + self.bodies[:start])
        host = self.host or ""
        source = self.address if is_loopback(urlsplit(host).hostname or "") else None
        self.connection = Connection(host, source=source, headers=self.default_headers,
                                     connect_timeout=self.connection_timeout, network_timeout=self.network_timeout)

    def on_stop(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()

    def turn(self) -> dict[str, Any]:
        """Wait for the time to send; what the recorder is to know of it."""
        context: dict[str, Any] = {"user": self.kind}
        arrivals = InferenceUser.arrivals.get(self.group)
        if self.group:
            context["group"] = self.group
        if arrivals is not None:
            turn = arrivals.wait()
            if turn is None:
                self.idle()
            else:
                context |= turn._asdict()
        return context

    def idle(self) -> None:
        """Nothing is due any more: sleep until the test ends."""
        while True:
            gevent.sleep(60)

    def send(self) -> None:
        """One request, in its turn; an answer that holds no result is a failure whatever its status."""
        context = self.turn()
        body = next(self.queue)
        InferenceUser.pending[self] = context
        answer, failure = None, None
        start_time, started = time.time(), time.perf_counter()
        try:
            answer = self.connection.exchange(self.connection.request(body))
            failure = self.flaw(answer)
        except (OSError, ValueError) as error:
            failure = error
        took = (time.perf_counter() - started) * 1000
        refused = answer is not None and answer.status in REFUSALS
        if answer is not None and refused:
            context["retry_after"] = field(answer.head, b"retry-after") is not None
        self.environment.events.request.fire(
            request_type="POST", name=self.kind, response_time=took, exception=failure, response=None,
            response_length=len(answer.body) if answer is not None else 0, context={**self.context(), **context},
            start_time=start_time, url=body.path)
        InferenceUser.pending.pop(self, None)
        if answer is not None and refused and "due_s" not in context:
            gevent.sleep(pause(field(answer.head, b"retry-after")))

    def flaw(self, answer: Answer) -> Exception | None:
        """What is wrong with an answer."""
        if answer.status != 200:
            return ResponseError(f"status {answer.status}")
        if self.answer_holds not in answer.body:
            return ResponseError(f"status 200, but the answer holds no {self.answer_holds.decode()}")
        return None


def is_loopback(host: str) -> bool:
    """Whether a server is on this host; only then may its clients choose their addresses."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def pause(retry_after: bytes | None) -> float:
    """Seconds that a refused user of a closed loop waits, so that refusals are not all that it measures."""
    try:
        return min(LONGEST_PAUSE, max(SHORTEST_PAUSE, float(retry_after or 0)))
    except ValueError:  # a date
        return LONGEST_PAUSE


class RecordsUser(InferenceUser):
    """Named raw values in, named predictions out: fastinfer's own end point."""

    kind = "records"
    answer_holds = b'"predictions"'

    @tag("records")
    @task
    def predict(self) -> None:
        self.send()


class OipJsonUser(InferenceUser):
    """Open Inference Protocol, tensors as JSON."""

    kind = "oip_json"

    @tag("oip_json")
    @task
    def infer(self) -> None:
        self.send()


class OipBinaryUser(InferenceUser):
    """Open Inference Protocol, tensors as bytes in both directions."""

    kind = "oip_binary"

    @tag("oip_binary")
    @task
    def infer(self) -> None:
        self.send()


ENCODERS = {OipJsonUser: payloads.oip_json, RecordsUser: payloads.records, OipBinaryUser: payloads.oip_binary}
