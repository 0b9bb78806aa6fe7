"""Load on any Open Inference server: named records, JSON tensors, binary tensors.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless -u 16 -r 16 -t 30s

Without ``--model`` the server's only model is taken. ``--rate`` makes it an open loop: Poisson arrivals, shared by all
users of a process, latency counted from the moment a request was due. ``--targets`` judges the run at its end (exit
code 0 met, 1 missed, 2 invalid). Tags: ``records``, ``oip_json``, ``oip_binary``.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
from pathlib import Path
from typing import Any

import gevent
import payloads
import targets
from locust import FastHttpUser, events, tag, task
from locust.contrib.fasthttp import FastHttpSession
from locust.exception import StopTest, StopUser
from locust.runners import MasterRunner, WorkerRunner
from recorder import Recorder
from schedule import Arrivals

log = logging.getLogger("loadtests")


class InferenceUser(FastHttpUser):
    """Sends the prepared bodies of its kind, one after the other, each user from another one on."""

    abstract = True
    connection_timeout = 5.0
    network_timeout = 30.0
    kind = ""
    answer_holds = b'"outputs"'
    bodies: tuple[payloads.Body, ...] = ()
    arrivals: Arrivals | None = None

    def on_start(self) -> None:
        if not self.bodies or not self.tasks:
            raise StopUser  # the master chose this class before it could know: not served, or not tagged
        start = random.randrange(len(self.bodies))
        self.queue = itertools.cycle(self.bodies[start:] + self.bodies[:start])

    def send(self) -> None:
        """One request, in its turn; an answer that holds no result is a failure whatever its status."""
        context: dict[str, Any] = {"user": self.kind}
        if InferenceUser.arrivals is not None:
            context |= InferenceUser.arrivals.wait()._asdict()
        body = next(self.queue)
        data: Any = body.data  # bytes; the annotation of post knows only str
        with self.client.post(body.path, data, headers=body.headers, name=self.kind, context=context,
                              catch_response=True) as response:
            if response.ok and self.answer_holds not in (response.content or b""):
                response.failure(f"status {response.status_code}, but the answer holds no {self.answer_holds.decode()}")


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


ENCODERS = {RecordsUser: payloads.records, OipJsonUser: payloads.oip_json, OipBinaryUser: payloads.oip_binary}


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    group = parser.add_argument_group("Inference")
    group.add_argument("--model", default="", env_var="LOCUST_MODEL",
                       help="Model to load; by default the only one that the server has")
    group.add_argument("--payload", default="", env_var="LOCUST_PAYLOAD",
                       help="NDJSON file of rows (input name to value); by default made from the model's metadata")
    group.add_argument("--rows", type=int, default=1, env_var="LOCUST_ROWS", help="Rows a request")
    group.add_argument("--rate", type=float, default=0.0, env_var="LOCUST_RATE",
                       help="Requests a second over all users (open loop); 0 sends as fast as answers come")
    group.add_argument("--warmup", type=float, default=0.0, env_var="LOCUST_WARMUP",
                       help="Seconds after the last user's start that are left out of the measurement")
    group.add_argument("--window", type=float, default=0.0, env_var="LOCUST_WINDOW",
                       help="End the run so many seconds after the warm-up (--run-time counts from the start)")
    group.add_argument("--targets", default="", env_var="LOCUST_TARGETS", help="Judge the run against this TOML file")
    group.add_argument("--capacity", type=float, default=0.0, env_var="LOCUST_CAPACITY",
                       help="Requests a second that the throughput target is a share of")
    group.add_argument("--recording", default="", env_var="LOCUST_RECORDING",
                       help="Write what was measured to this JSON file")


class Server:
    """The few questions that a load test asks before it begins."""

    def __init__(self, environment: Any, host: str) -> None:
        self._client = FastHttpSession(host, environment.events.request, None, connection_timeout=5.0,
                                       network_timeout=10.0)

    def ask(self, path: str, body: payloads.Body | None = None) -> tuple[int, bytes]:
        """Status and body, without counting as a request of the test; 0 where there is no connection."""
        method, data, headers = ("POST", body.data, body.headers) if body else ("GET", None, {})
        response = self._client._send_request_safe_mode(method, self._client._build_url(path), payload=data,
                                                        headers=dict(headers))
        return response.status_code, response.content or b""

    def document(self, path: str, body: payloads.Body | None = None) -> Any:
        status, content = self.ask(path, body)
        if status != 200:
            raise payloads.PayloadError(f"{path}: {f'status {status}' if status else 'no answer'} {content[:300]!r}")
        try:
            return json.loads(content)
        except ValueError as error:
            raise payloads.PayloadError(f"{path}: {error}") from None

    def openapi(self) -> Any:
        """The server's own description of itself, None where it has none."""
        try:
            return self.document("/openapi.json")
        except payloads.PayloadError:
            return None

    def only_model(self) -> str:
        path = "/v2/repository/index"
        index = self.document(path, payloads.Body(path, b"{}", {"Content-Type": "application/json"}))
        names = sorted({entry["name"] for entry in index if entry.get("state", "READY") == "READY"})
        if len(names) != 1:
            raise payloads.PayloadError(f"choose one with --model: the server has {', '.join(names) or 'none'}")
        return str(names[0])


def prepare(environment: Any) -> list[type[InferenceUser]]:
    """Encode every user class's bodies; the classes that this server and this model can serve.

    Raises:
        PayloadError: no server, no such model, rows that do not fit, or no class that gets an answer.
    """
    options = environment.parsed_options
    server = Server(environment, environment.host)
    model = options.model or server.only_model()
    metadata = server.document(payloads.infer_path(model).removesuffix("/infer"))
    inputs = payloads.tensors(metadata)
    rows = (payloads.read_rows(Path(options.payload)) if options.payload
            else payloads.generated_rows(inputs, payloads.hints(metadata, server.openapi())))
    kept, refusals = [], []
    for user, encode in ENCODERS.items():
        try:
            user.bodies = tuple(payloads.bodies(encode, model, inputs, rows, options.rows))
            status, answer = server.ask(user.bodies[0].path, user.bodies[0])
        except payloads.PayloadError as error:
            user.bodies = ()
            refusals.append(f"{user.kind}: {error}")
            continue
        if status == 200:
            kept.append(user)
        else:
            user.bodies = ()
            refusals.append(f"{user.kind}: status {status} {answer[:300].decode(errors='replace')}")
    for refusal in refusals:
        log.warning("left out: %s", refusal)
    if not kept:
        raise payloads.PayloadError("no user class gets an answer; give rows that fit with --payload")
    return kept


def tagged(user: type[InferenceUser], options: Any) -> bool:
    """Whether ``--tags`` and ``--exclude-tags`` leave this class a task."""
    wanted, unwanted = options.tags or (), options.exclude_tags or ()
    return (not wanted or user.kind in wanted) and user.kind not in unwanted


@events.init.add_listener
def arrange(environment: Any, runner: Any, **_: Any) -> None:
    """Attach the recorder, and make ready at each start of a test (the web UI starts several)."""
    options = environment.parsed_options
    recorder = Recorder(environment, warmup=options.warmup)
    chosen = list(environment.user_classes)

    def begin(**_: Any) -> None:
        try:
            kept = prepare(environment)
        except payloads.PayloadError as error:
            abandon(environment, str(error))
        recorder.warmup = options.warmup
        if not isinstance(runner, WorkerRunner):  # a worker starts what the master says
            environment.user_classes[:] = [user for user in chosen
                                           if user not in ENCODERS or (user in kept and tagged(user, options))]
            if not environment.user_classes:
                abandon(environment, "no user class is left")
        share = local_share(environment, runner)
        InferenceUser.arrivals = Arrivals(options.rate * share, gevent.sleep) if options.rate else None

    def spawned(**_: Any) -> None:
        if options.window and not isinstance(runner, WorkerRunner):
            end = runner.stop if environment.web_ui is not None else runner.quit
            gevent.spawn_later(options.warmup + options.window, end)

    if isinstance(runner, MasterRunner) and environment.host:
        begin()  # it shares out the classes before the test's start is announced
    def finish(**_: Any) -> None:
        if isinstance(runner, WorkerRunner):
            return
        if options.recording:
            recorder.recording.save(Path(options.recording))
        if options.targets:
            environment.process_exit_code = int(judge(options, recorder))

    environment.events.test_start.add_listener(begin)
    environment.events.spawning_complete.add_listener(spawned)
    environment.events.quitting.add_listener(finish)


def abandon(environment: Any, reason: str) -> None:
    """End a headless process with exit code 2; leave a web UI alive, its test not started."""
    log.error("%s", reason)
    if environment.web_ui is None:
        raise SystemExit(int(targets.Verdict.INVALID))
    raise StopTest(reason)


def local_share(environment: Any, runner: Any) -> float:
    """This process's part of the rate: the schedule is split evenly between the workers."""
    if not isinstance(runner, WorkerRunner):
        return 1.0
    return 1.0 / max(1, int(environment.parsed_options.expect_workers))


def judge(options: Any, recorder: Recorder) -> targets.Verdict:
    """Print the table of the finished run."""
    try:
        wanted = targets.load(Path(options.targets))
    except targets.TargetsError as error:
        log.error("%s", error)
        return targets.Verdict.INVALID
    judgement = targets.judge(wanted, recorder.recording, options.capacity or None)
    print(targets.table(judgement))
    print(targets.conclusion(judgement))
    return judgement.verdict
