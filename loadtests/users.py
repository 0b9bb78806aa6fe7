"""The user classes that send a model's requests; what they send is prepared before the load begins."""

from __future__ import annotations

import ipaddress
import itertools
import random
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
import gevent.socket
import payloads
from locust import FastHttpUser, tag, task
from locust.exception import StopUser
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
        address: where its connections come from, where the server is on this host; None leaves it to the system.
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
    pending: ClassVar[dict[InferenceUser, dict[str, Any]]] = {}

    def on_start(self) -> None:
        if not self.bodies or not self.tasks:
            raise StopUser  # the master chose this class before it could know: not served, or not tagged
        agent = self.client.client
        agent.cookiejar = None
        agent.valid_response_codes |= REFUSALS  # as an exception one costs the generator half as much again
        start = random.randrange(len(self.bodies))
        self.queue = itertools.cycle(self.bodies[start:] + self.bodies[:start])
        if self.address is not None and is_loopback(urlsplit(self.host or "").hostname or ""):
            self.come_from(self.address)

    def come_from(self, address: str) -> None:
        """Let this user's connections to a server on a loopback address come from another one."""
        pool = self.client.client.clientpool.get_client(self.host)._connection_pool

        def bound(family: int, kind: int, protocol: int) -> Any:
            sock = gevent.socket.socket(family, kind, protocol)
            if family == gevent.socket.AF_INET:
                sock.bind((address, 0))
            return sock

        pool._create_tcp_socket = bound

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
        data: Any = body.data  # bytes; the annotation of post knows only str
        InferenceUser.pending[self] = context
        with self.client.post(body.path, data, headers=body.headers, name=self.kind, context=context,
                              catch_response=True) as response:
            if response.status_code in REFUSALS:
                response.request_meta["context"]["retry_after"] = "retry-after" in response.headers
                response.failure(f"refused with status {response.status_code}")
            elif response.ok and self.answer_holds not in (response.content or b""):
                response.failure(f"status {response.status_code}, but the answer holds no {self.answer_holds.decode()}")
        InferenceUser.pending.pop(self, None)
        if response.status_code in REFUSALS and "due_s" not in context:
            gevent.sleep(pause(response.headers.get("retry-after")))


def is_loopback(host: str) -> bool:
    """Whether a server is on this host; only then may its clients choose their addresses."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def pause(retry_after: str | None) -> float:
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
