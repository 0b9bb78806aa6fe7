"""Load on any Open Inference server: named records, JSON tensors, binary tensors.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless -u 16 -r 16 -t 30s
    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless --scenario spike --capacity 250

Without ``--model`` the server's only model is taken. ``--rate`` makes it an open loop: Poisson arrivals, shared by all
users of a process, latency counted from the moment a request was due. ``--scenario`` takes a course of load from
scenarios/. ``--targets`` judges the run at its end (exit code 0 met, 1 missed, 2 invalid). Tags: ``records``,
``oip_json``, ``oip_binary``.
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gevent
import payloads
import targets
from locust import constant, constant_pacing, events
from locust.contrib.fasthttp import FastHttpSession
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner
from recorder import Recorder
from scenarios import SCENARIOS, Scenario, ScenarioError
from scenarios.noisy_neighbour import GreedyUser
from scenarios.slow_client import SlowUser
from schedule import Arrivals, Clock, Phase, Timetable
from users import ENCODERS, InferenceUser, OipBinaryUser, OipJsonUser, RecordsUser

# Locust takes its user classes from here.
__all__ = ["GreedyUser", "OipBinaryUser", "OipJsonUser", "RecordsUser", "SlowUser"]

log = logging.getLogger("loadtests")


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    group = parser.add_argument_group("Inference")
    group.add_argument("--model", default="", env_var="LOCUST_MODEL",
                       help="Model to load; by default the only one that the server has")
    group.add_argument("--payload", default="", env_var="LOCUST_PAYLOAD",
                       help="NDJSON file of rows (input name to value); by default made from the model's metadata")
    group.add_argument("--rows", type=int, default=1, env_var="LOCUST_ROWS", help="Rows a request")
    group.add_argument("--scenario", default="", choices=["", *SCENARIOS], env_var="LOCUST_SCENARIO",
                       help="A course of load: " + ", ".join(SCENARIOS))
    group.add_argument("--rate", type=float, default=0.0, env_var="LOCUST_RATE",
                       help="Requests a second over all users (open loop); 0 sends as fast as answers come")
    group.add_argument("--capacity", type=float, default=0.0, env_var="LOCUST_CAPACITY",
                       help="Requests a second that a scenario's load and the targets of throughput are shares of")
    group.add_argument("--load", type=float, default=0.0, env_var="LOCUST_LOAD",
                       help="A scenario's load as a share of the capacity")
    group.add_argument("--peak", type=float, default=0.0, env_var="LOCUST_PEAK",
                       help="The same where it is highest")
    group.add_argument("--seconds", type=float, default=0.0, env_var="LOCUST_SECONDS",
                       help="How long a scenario measures")
    group.add_argument("--warmup", type=float, default=0.0, env_var="LOCUST_WARMUP",
                       help="Seconds at the beginning that are left out of the measurement")
    group.add_argument("--window", type=float, default=0.0, env_var="LOCUST_WINDOW",
                       help="End the run so many seconds after the warm-up (--run-time counts from the start)")
    group.add_argument("--targets", default="", env_var="LOCUST_TARGETS", help="Judge the run against this TOML file")
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


def prepare(environment: Any, others: Iterable[type[Any]]) -> list[type[InferenceUser]]:
    """Encode every user class's bodies; the classes that this server and this model can serve.

    Args:
        others: user classes that send what the first of these does.

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
    for user in others:
        if issubclass(user, InferenceUser) and user not in ENCODERS:  # a scenario's own, or an importer's
            user.bodies, user.answer_holds = kept[0].bodies, kept[0].answer_holds
    return kept


def tagged(user: type[InferenceUser], options: Any) -> bool:
    """Whether ``--tags`` and ``--exclude-tags`` leave this class a task."""
    wanted, unwanted = options.tags or (), options.exclude_tags or ()
    return (not wanted or user.kind in wanted) and user.kind not in unwanted


class Test:
    """One process's part in a run: what it sends when, and what it keeps of it."""

    def __init__(self, environment: Any, runner: Any) -> None:
        self.environment = environment
        self.runner = runner
        environment.events.test_stopping.add_listener(self.stopping)  # before the recorder's, which closes the run
        self.recorder = Recorder(environment)
        self.chosen = self.left = list(environment.user_classes)
        names = {user.__name__ for scenario in SCENARIOS.values() for user in scenario.extra_users}
        self.optional = {user.__name__: user for user in environment.user_classes if user.__name__ in names}

    @property
    def options(self) -> Any:
        return self.environment.parsed_options

    def arrange(self) -> None:
        """Offer the scenarios to the command line and to the class picker of the web UI."""
        shapes = {name: scenario() for name, scenario in SCENARIOS.items()}
        given = self.environment.shape_class  # of a scenario's own file, given as another locustfile
        if isinstance(given, Scenario):
            shapes[given.name] = given
        courses = targets.load(Path(self.options.targets)).courses if self.options.targets else {}
        for name, shape in shapes.items():
            shape.configure(courses.get(name), self.options)
            shape.runner = self.runner
        self.environment.available_shape_classes = {**(self.environment.available_shape_classes or {}), **shapes}
        if self.options.scenario:
            self.environment.shape_class = shapes[self.options.scenario]

    @property
    def scenario(self) -> Scenario | None:
        """The one that runs; a worker is told its name by the master."""
        shape = self.environment.shape_class
        if isinstance(shape, Scenario):
            return shape
        if shape is None and self.options.scenario and isinstance(self.runner, WorkerRunner):
            return self.environment.available_shape_classes[self.options.scenario]
        return None

    def begin(self, **_: Any) -> None:
        """Make ready, at each start of a test: the web UI starts several."""
        try:
            scenario = self.scenario
            if not isinstance(self.runner, WorkerRunner):
                self.options.scenario = scenario.name if scenario is not None else ""
            if scenario is not None:
                if isinstance(self.runner, WorkerRunner):  # which did not have the master's options when it was made
                    scenario.configure(None, self.options)
                scenario.check()
            kept = prepare(self.environment, [*self.environment.user_classes, *self.optional.values()])
        except (payloads.PayloadError, ScenarioError) as error:
            abandon(self.environment, str(error))
        if not isinstance(self.runner, WorkerRunner):  # a worker starts what the master says
            if self.environment.user_classes != self.left:  # somebody chose others in the web UI
                self.chosen = list(self.environment.user_classes)
            self.left = [user for user in dict.fromkeys([*self.chosen, *self.optional.values()])
                         if self.takes_part(user, kept, scenario)]
            self.environment.user_classes[:] = self.left
            if not self.environment.user_classes:
                abandon(self.environment, "no user class is left")
        pace = scenario.pace if scenario is not None else 0.0
        InferenceUser.wait_time = constant_pacing(pace) if pace else constant(0)
        InferenceUser.pending.clear()
        clock, share = Clock(), local_share(self.environment, self.runner)
        self.recorder.timetables = {group: Timetable(phases, clock) for group, phases in self.schedules().items()}
        InferenceUser.arrivals = {
            group: Arrivals(timetable, gevent.sleep, share=share, over=None if group else self.recorder.end_schedule)
            for group, timetable in self.recorder.timetables.items() if timetable.open_loop}

    def takes_part(self, user: Any, kept: list[type[InferenceUser]], scenario: Scenario | None) -> bool:
        if user.__name__ in self.optional:
            return scenario is not None and user.__name__ in {extra.__name__ for extra in scenario.extra_users}
        return user not in ENCODERS or (user in kept and tagged(user, self.options))

    def schedules(self) -> dict[str, list[Phase]]:
        if self.scenario is not None:
            return {group: list(phases) for group, phases in self.scenario.schedules().items()}
        rate, window = self.options.rate or None, self.options.window or math.inf
        warmup = [Phase("warm-up", self.options.warmup, rate, measured=False)] if self.options.warmup else []
        return {"": [*warmup, Phase("steady" if rate else "closed", window, rate)]}

    def spawned(self, **_: Any) -> None:
        rest_from_collecting()
        if self.options.window and not isinstance(self.runner, WorkerRunner):
            end = self.runner.stop if self.environment.web_ui is not None else self.runner.quit
            gevent.spawn_later(self.options.warmup + self.options.window, end)

    def stopping(self, **_: Any) -> None:
        for context in InferenceUser.pending.values():
            self.recorder.lost(context)
        InferenceUser.pending.clear()

    def finish(self, **_: Any) -> None:
        if isinstance(self.runner, WorkerRunner):
            return
        if self.options.recording:
            self.recorder.recording.save(Path(self.options.recording))
        if self.options.targets:
            self.environment.process_exit_code = int(judge(self.options, self.recorder))


@events.init.add_listener
def arrange(environment: Any, runner: Any, **_: Any) -> None:
    """Attach the recorder, and make ready at each start of a test."""
    test = Test(environment, runner)
    try:
        test.arrange()
    except targets.TargetsError as error:
        log.error("%s", error)
        raise SystemExit(int(targets.Verdict.INVALID)) from None
    if isinstance(runner, MasterRunner) and environment.host:
        test.begin()  # it shares out the classes before the test's start is announced
    environment.events.test_start.add_listener(test.begin)
    environment.events.spawning_complete.add_listener(test.spawned)
    environment.events.quitting.add_listener(test.finish)


def rest_from_collecting() -> None:
    """Let the collector leave alone what is there to stay, and look through the rest seldom.

    A full pass over what Locust and its users hold took 50 to 140 ms, about once a second at 2,000 requests a second,
    and each was a burst of requests that went out late.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 1000)


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
    wanted = targets.load(Path(options.targets))
    name = options.scenario or ("open-loop" if options.rate else "closed-loop")
    course = wanted.courses.get(name)
    if course is None:
        log.error("%s has no table for the scenario %s", options.targets, name)
        return targets.Verdict.INVALID
    judgement = targets.judge(wanted.validity, course, recorder.recording, options.capacity or None)
    print(targets.table(judgement))
    print(targets.conclusion(judgement))
    return judgement.verdict
