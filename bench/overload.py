"""What happens at three and at ten times the capacity: how much is still answered in time, how the rest is refused.

    python bench/overload.py --seconds 60            # fastinfer, Triton, BentoML, the lone client: seven minutes
    python bench/overload.py --only fastinfer,lone   # parts of it

All serve one model that is slow by this machine's own measure (loadtests/paced_model.py), on one core, to Locust on the
other; each one's capacity C is the highest open-loop rate at which its p99 keeps the bound, and each is overloaded by
multiples of its own. Triton has a queue policy and BentoML a ``max_latency``, both tuned for this model and this bound.
The lone client compares fastinfer with itself, with batching and without, on a fast model.

Exit code 0: every target met; 1: one was missed; 2: something could not be measured, or not believed. What was found is
in .bench/overload after every step: results.json, report.html with plots, recordings and logs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import batching
import compare
import environments
import harness
import triton_server
import wrk
from peers import PEERS, SERVERS, interpreter
from process import Cores, Launch, Server, ServerError, free_ports, pinned

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "loadtests"))
import reports  # noqa: E402
import targets  # noqa: E402
import verify  # noqa: E402
from targets import Verdict  # noqa: E402

MODEL = "paced"
RESULTS = harness.BENCH / "overload"
LOCUST = ("locust>=2.40",)
TOLD = (ServerError, environments.InstallError, verify.InvalidRunError)
OVERDUE = "fastinfer_overdue_batches_total"
LONE_TARGET, OURS_OVER_THEIRS = 1.02, 1.3
START, ENDING = 12.0, 4.0  # seconds, of a server, and that a run of Locust takes beside what it measures
TRITON = """\
name: "{model}"
backend: "python"
max_batch_size: {batch}
input [{{ name: "input", data_type: TYPE_FP32, dims: [8] }}]
output [{{ name: "output", data_type: TYPE_FP32, dims: [8] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
dynamic_batching {{
  max_queue_delay_microseconds: 0
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {timeout_us}
    allow_timeout_override: false
    max_queue_size: {queue}
  }}
}}
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The model that all serve, and the bound that all have to keep."""

    repository: Path
    slo_ms: float
    max_batch_size: int
    batch_ms: float

    @property
    def path(self) -> Path:
        return self.repository / MODEL / "1" / "model.onnx"


@dataclasses.dataclass(frozen=True)
class Contender:
    """A server in this comparison.

    Attributes:
        peer: whose environment it has; "" is fastinfer.
        scenarios: that it is driven through, at multiples of its own capacity.
        note: how it is set up.
    """

    title: str
    peer: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    scenarios: tuple[str, ...]
    note: str
    prepare: Callable[[Launch], None] = lambda launch: None
    clean: Callable[[Launch], None] = lambda launch: None


def contenders(setting: Setting) -> dict[str, Contender]:
    return {contender.title.lower(): contender for contender in (ours(setting), triton(setting), bentoml(setting))}


def ours(setting: Setting) -> Contender:
    return Contender(
        "fastinfer", "", ("{python}", "-P", "-m", "fastinfer", "serve", str(setting.repository), "--host", "127.0.0.1",
                          "--port", "{port}", "--log-level", "warning"),
        {}, ("overload-x3", "overload-x10", "spike"),
        f"slo_ms = {setting.slo_ms:g}, max_batch_size = {setting.max_batch_size}, else defaults")


def triton(setting: Setting) -> Contender:
    """Who waited as long as the policy allows still makes it, behind the batch that is formed already and in its own.

    Without ``max_queue_size``: a full queue refuses without waking the batcher, which then sleeps up to half a second,
    so that with it a third as much was answered.
    """
    longest = max(1.0, setting.slo_ms - 1.6 * setting.batch_ms)
    configuration = TRITON.format(model=MODEL, batch=setting.max_batch_size, timeout_us=round(longest * 1000), queue=0)
    return Contender(
        "Triton", "triton", (*triton_server.COMMAND, "--http-thread-count=4"), triton_server.ENVIRON, ("overload-x3",),
        f"dynamic batching, max_batch_size {setting.max_batch_size}; queue policy: REJECT after {longest:.0f} ms, no "
        "max_queue_size; 4 HTTP threads", lambda launch: triton_server.write(launch, configuration),
        triton_server.clean)


def bentoml(setting: Setting) -> Contender:
    latency, most = round(0.75 * setting.slo_ms), 2 * setting.max_batch_size
    return Contender(
        "BentoML", "bentoml",
        ("{python}", "-m", "bentoml", "serve", "bentoml_overload:Infer", "--working-dir", str(SERVERS), "--host",
         "127.0.0.1", "--port", "{port}", "--api-workers", "1"),
        {"BENTOML_HOME": "{folder}", "BENTOML_DO_NOT_TRACK": "1", "BENCH_MAX_LATENCY_MS": str(latency),
         "BENCH_MAX_BATCH_SIZE": str(setting.max_batch_size), "BENCH_MAX_CONCURRENCY": str(most)}, ("overload-x3",),
        f"adaptive batching, max_batch_size = {setting.max_batch_size}, max_latency_ms = {latency}, "
        f"max_concurrency = {most}")


def make_model(options: argparse.Namespace, cores: Cores) -> Setting:
    """Calibrated on the server's core."""
    repository = RESULTS / "models"
    shutil.rmtree(repository, ignore_errors=True)
    command = [options.python, str(ROOT / "loadtests" / "paced_model.py"), str(repository), "--rate", str(options.rate),
               "--max-batch-size", str(options.max_batch_size), "--slo-ms", str(options.slo_ms)]
    with pinned(cores.server):
        made = subprocess.run(command, capture_output=True, text=True, timeout=120,
                              env={**os.environ, **harness.pass_on(options)})
    if made.returncode:
        raise ServerError(f"the paced model was not made:\n{made.stderr.strip()[-2000:]}")
    print(f"model: {made.stdout.strip()}", flush=True)
    return Setting(repository, options.slo_ms, options.max_batch_size, 1000 * options.max_batch_size / options.rate)


@contextlib.contextmanager
def started(contender: Contender, setting: Setting, options: argparse.Namespace, cores: Cores) -> Iterator[Server]:
    """A contender that answers, and right: the model gives back its input."""
    python = (options.python if not contender.peer
              else interpreter(PEERS[contender.peer], options.python, options.base_python))
    folder = harness.BENCH / "work" / f"overload-{contender.title}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port, spare = free_ports(2)
    launch = Launch(MODEL, setting.path, port, spare, folder, python)
    environ = {"BENCH_MODEL": str(setting.path), "BENCH_MODEL_NAME": MODEL,
               **({} if contender.peer else harness.pass_on(options)),
               **{key: launch.fill(value) for key, value in contender.environ.items()}}
    try:
        contender.prepare(launch)
        server = Server(contender.title, [launch.fill(part) for part in contender.command], port=port,
                        core=cores.server, log=RESULTS / f"{contender.title}.log", environ=environ)
        try:
            server.wait(echoes, interval=0.2)
            yield server
        finally:
            server.stop()
    finally:
        contender.clean(launch)


def echoes(port: int) -> bool:
    row = [float(value) for value in range(8)]
    tensor = {"name": "input", "shape": [1, 8], "datatype": "FP32", "data": row}
    try:
        answer = json.loads(harness.post(port, wrk.infer_path(MODEL), json.dumps({"inputs": [tensor]}).encode()))
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{MODEL}", timeout=5).close()
    except (OSError, ValueError):
        return False
    document = answer[0] if isinstance(answer, list) else answer
    if document["outputs"][0]["data"] != row:
        raise ServerError(f"answers {document} to {row}")
    return True


def courses(setting: Setting, seconds: float) -> dict[str, targets.Course]:
    """The scenarios, and what fastinfer is to reach in them: ten times for so long, the others for a third of it."""
    overload = (targets.Target("overload", "goodput", 0.9), targets.Target("overload", "p99_ms", setting.slo_ms),
                targets.Target("overload", "refusal_p99_ms", 10), targets.Target("overload", "silent", 0),
                targets.Target("overload", "errors", 0), targets.Target("all", "recovery_s", 2))
    spike = tuple(target._replace(users="spike") if target.users == "overload" else target for target in overload)
    shared: dict[str, Any] = {"users": 512, "slo_ms": setting.slo_ms, "warmup": 3.0, "load": 0.5}
    shorter = max(8.0, seconds / 3)
    return {
        "overload-x3": targets.Course(seconds=shorter, targets=overload, **shared),
        "overload-x10": targets.Course(seconds=seconds, targets=overload, **shared),
        "spike": targets.Course(seconds=shorter, peak=10.0, targets=spike, **shared),
    }


class Found:
    """What was measured so far, on disk after every step."""

    def __init__(self, options: argparse.Namespace, asked: Sequence[str]) -> None:
        self.began = time.monotonic()
        self.limit = options.limit
        self.results: dict[str, list[reports.Result]] = {}
        self.notes: dict[str, str] = {}
        self.gaps: dict[str, str] = {}
        self.counted: dict[str, float] = {}
        self.lone: batching.Compared | None = None
        self.circumstances = {
            "command": shlex.join(["python", "bench/overload.py", *asked]), "date": time.strftime("%Y-%m-%d"),
            "machine": compare.machine(), "rows_a_second": options.rate, "max_batch_size": options.max_batch_size,
            "slo_ms": options.slo_ms, "seconds": options.seconds,
        }

    def has_time_for(self, seconds: float) -> bool:
        return time.monotonic() - self.began + seconds <= self.limit

    def save(self) -> None:
        measured = {who: [as_dict(result) for result in found] for who, found in self.results.items()}
        document = {**self.circumstances, "took_s": round(time.monotonic() - self.began), "settings": self.notes,
                    "gaps": self.gaps, "targets": [line._asdict() for line in table(self)], "contenders": measured,
                    "metrics": self.counted, "lone_client": self.lone and self.lone._asdict()}
        partial = RESULTS / "results.partial"
        partial.write_text(json.dumps(finite(document), indent=1, ensure_ascii=False) + "\n")
        partial.replace(RESULTS / "results.json")
        reports.write([result._replace(name=f"{who}: {result.name}") for who, found in self.results.items()
                      for result in found], RESULTS, "Overload")


def finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_dict(result: reports.Result) -> dict[str, Any]:
    recording = result.recording
    lines = result.judgement.lines if result.judgement else ()
    return {"scenario": result.name, "capacity": result.capacity, "requests": recording.all().requests,
            "seconds": recording.seconds, "generator_cpu": recording.generator_cpu,
            "generator_waited": recording.generator_waited, "lag_p99_ms": recording.lag.percentile(99),
            "verdict": result.verdict.name.lower(), "conclusion": result.conclusion,
            "lines": [{"of": line.target.users, "target": line.target.name, "limit": line.target.limit,
                       "measured": line.measured, "samples": line.samples, "verdict": line.verdict.name.lower()}
                      for line in lines]}


def overload(who: str, contender: Contender, setting: Setting, options: argparse.Namespace, cores: Cores,
             found: Found) -> None:
    """Its capacity, and what it does above it."""
    print(f"\n== {contender.title}: {contender.note}", flush=True)
    folder = RESULTS / contender.title
    folder.mkdir(parents=True, exist_ok=True)
    wanted = targets.Targets(courses=courses(setting, options.seconds))
    loop = targets.Capacity(users=setting.max_batch_size * 3 // 2, warmup=2.0, seconds=options.closed,
                            slo_ms=setting.slo_ms, staircase=options.staircase)
    generator = verify.Generator(options.locust_python, folder, cores.client, model=MODEL, tags="oip_json")
    found.notes[who] = contender.note
    with started(contender, setting, options, cores) as server:
        tested = verify.Server(f"http://127.0.0.1:{server.port}", server.process, RESULTS / f"{contender.title}.log")
        capacity = verify.measure_capacity(generator, tested, loop, contender.title)
        for name in contender.scenarios:
            if name not in options.scenarios:
                continue
            course = wanted.courses[name]
            if not found.has_time_for((course.seconds or 0) + (course.warmup or 0) + 2 * ENDING):
                found.gaps[f"{who}, {name}"] = f"no time: --limit is {found.limit:g} s"
                continue
            found.results.setdefault(who, []).append(verify.run_course(generator, tested, wanted, name, capacity))
            if who == "fastinfer":
                found.counted = metrics(server.port)
            found.save()


def metrics(port: int) -> dict[str, float]:
    """What the server counted of its own requests and batches."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    wanted = r"^(fastinfer_(?:admitted|goodput|late|expired|batches|overdue_batches|refused)_total)\{(.*)\} (\S+)$"
    counted: dict[str, float] = {}
    for name, labels, value in re.findall(wanted, text, re.MULTILINE):
        reason = re.search(r'reason="(\w+)"', labels)
        key = f"{name} {reason[1]}" if reason else name
        counted[key] = counted.get(key, 0.0) + float(value)
    return counted


class Line(NamedTuple):
    """One row of the table; ``verdict`` is empty where nothing is asked."""

    measure: str
    target: str
    measured: str
    samples: str
    verdict: str


def line_of(found: Found, who: str, scenario: str, target: str) -> tuple[reports.Result, targets.Line] | None:
    for result in found.results.get(who, ()):
        for line in result.judgement.lines if result.name == scenario and result.judgement else ():
            if line.target.name == target:
                return result, line
    return None


def judged(found: Found, title: str, limit: str, scenario: str, target: str, unit: str) -> Line:
    """A target of fastinfer's, which does not count where the run does not."""
    entry = line_of(found, "fastinfer", scenario, target)
    if entry is None:
        problems = [result.problem for result in found.results.get("fastinfer", ()) if result.name == scenario]
        return Line(title, limit, "-", "", "invalid: " + problems[0].splitlines()[0] if any(problems) else "unmeasured")
    result, line = entry
    verdict = line.verdict.name.lower()
    reasons = result.judgement.reasons if result.judgement else ()
    if reasons:
        verdict = f"invalid: {'; '.join(reasons)}"
    return Line(title, limit, f"{targets.shown(line.measured)}{unit}", str(line.samples), verdict)


def met(measured: float, holds: bool) -> str:
    return "unmeasured" if math.isnan(measured) else "met" if holds else "missed"


def table(found: Found) -> list[Line]:
    lines = [judged(found, *row) for row in (
        ("goodput at 10 C", "≥ 0.90 C", "overload-x10", "goodput", " C"),
        ("p99 of the admitted at 10 C", f"≤ {found.circumstances['slo_ms']:g} ms", "overload-x10", "p99_ms", " ms"),
        ("refusals at 10 C: p99", "≤ 10 ms", "overload-x10", "refusal_p99_ms", " ms"),
        ("refusals at 10 C without Retry-After", "0", "overload-x10", "silent", ""),
        ("failures at 10 C that are no refusals", "0", "overload-x10", "errors", ""),
        ("recovery after the spike ends", "≤ 2 s", "spike", "recovery_s", " s"))]
    overdue = found.counted.get(OVERDUE, math.nan)
    lines += [Line("batches begun with a request past its deadline", "0", targets.shown(overdue),
                   f"{found.counted.get('fastinfer_batches_total', 0):.0f} batches", met(overdue, overdue == 0)),
              beside(found)]
    ratio = found.lone.ratio if found.lone else math.nan
    p50 = f" ({found.lone.p50_us[0]:.0f} / {found.lone.p50_us[1]:.0f} µs)" if found.lone else ""
    lines.append(Line("lone client's p50 with batching over without", f"≤ {LONE_TARGET}×", f"{ratio:.3f}×{p50}",
                      f"{found.lone.rounds} rounds" if found.lone else "", met(ratio, ratio <= LONE_TARGET)))
    return lines + told(found)


def beside(found: Found) -> Line:
    """Each one's goodput at three times its capacity, as a share of it. Both peers have to be there."""
    title, limit = "goodput at 3 C, ours over the better of theirs", f"≥ {OURS_OVER_THEIRS}×"
    good = {who: line for who in found.notes if (line := line_of(found, who, "overload-x3", "goodput"))}
    theirs = {who: line.measured for who, (_, line) in good.items() if who != "fastinfer"}
    if "fastinfer" not in good or not theirs:
        return Line(title, limit, "-", "", "unmeasured")
    best = max(theirs, key=lambda who: theirs[who])
    ratio = good["fastinfer"][1].measured / theirs[best] if theirs[best] else math.inf
    invalid = [who for who, (result, _) in good.items() if result.judgement and result.judgement.faults]
    missing = [who for who in ("triton", "bentoml") if who not in theirs]
    verdict = (f"invalid: the run of {' and '.join(invalid)}" if invalid
               else f"unmeasured: {' and '.join(missing)}" if missing else met(ratio, ratio >= OURS_OVER_THEIRS))
    return Line(title, limit, f"{ratio:.2f}× ({best})", str(good["fastinfer"][1].samples), verdict)


def told(found: Found) -> list[Line]:
    """What nothing is asked of: each one at three times its own capacity."""
    lines = []
    for who in found.notes:
        for target, title, unit in (("goodput", "goodput", " C"), ("p99_ms", "p99 of the admitted", " ms"),
                                    ("refusal_p99_ms", "refusals' p99", " ms")):
            if entry := line_of(found, who, "overload-x3", target):
                result, line = entry
                lines.append(Line(f"{who} at 3 C ({3 * result.capacity:.0f}/s): {title}", "",
                                  f"{targets.shown(line.measured)}{unit}", str(line.samples), ""))
    return lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="fastinfer,triton,bentoml,lone", help="parts, with commas between them")
    parser.add_argument("--scenarios", default="overload-x3,overload-x10,spike",
                        help="of fastinfer's; the others have overload-x3 only")
    parser.add_argument("--seconds", type=float, default=24.0,
                        help="of ten times the capacity, and a third of it of the rest; 60 for figures to publish")
    parser.add_argument("--closed", type=float, default=4.0, help="seconds of the closed loop, near which C is")
    parser.add_argument("--staircase", type=float, default=36.0, help="seconds of the steps on which C is found")
    parser.add_argument("--rate", type=float, default=230.0, help="rows a second of the model in full batches")
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--slo-ms", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=7, help="of the lone client")
    parser.add_argument("--round-seconds", dest="window", type=float, default=2.0)
    parser.add_argument("--limit", type=float, default=470.0,
                        help="seconds after which nothing more is begun (what has to be installed does not count)")
    parser.add_argument("--python", default="", help="an interpreter with fastinfer; else a release wheel is built")
    parser.add_argument("--base-python", default="", help="what the environments stand on")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    options.scenarios = options.scenarios.split(",")
    return options


def install(options: argparse.Namespace) -> Cores:
    """Everything that is to be there before the clock runs.

    Raises:
        ServerError, InstallError: Locust's or fastinfer's environment cannot be made; a peer's leaves a gap later.
    """
    cores = harness.settle(options)
    options.locust_python = environments.ensure("locust", LOCUST, options.base_python)
    for name in set(options.only) & {"triton", "bentoml"}:
        with contextlib.suppress(ServerError, environments.InstallError):
            interpreter(PEERS[name], options.python, options.base_python)
    return cores


def measure(options: argparse.Namespace, cores: Cores, found: Found) -> None:
    if set(options.only) - {"lone"}:
        setting = make_model(options, cores)
        least = START + 3 * (2.0 + ENDING) + options.closed + options.staircase
        for who, contender in contenders(setting).items():
            if who not in options.only:
                continue
            try:
                if not found.has_time_for(least):
                    raise verify.InvalidRunError(f"no time: --limit is {found.limit:g} s")
                overload(who, contender, setting, options, cores, found)
            except TOLD as error:
                print(f"{contender.title} is left out: {error}", file=sys.stderr, flush=True)
                found.gaps[who] = str(error)
            found.save()
    if "lone" in options.only:
        try:
            found.lone = batching.lone_client(
                argparse.Namespace(**{**vars(options), "seconds": options.window}), cores)
        except TOLD as error:
            print(f"the lone client is left out: {error}", file=sys.stderr, flush=True)
            found.gaps["lone"] = str(error)


def main() -> int:
    options = parse()
    RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        cores = install(options)
        found = Found(options, sys.argv[1:])
        try:
            measure(options, cores, found)
        finally:
            found.save()
    except TOLD as error:
        print(error, file=sys.stderr)
        return int(Verdict.INVALID)
    print("\n| measure | target | measured | samples | |\n|---|---|---|---|---|")
    for line in table(found):
        print(f"| {' | '.join(line)} |")
    for who, gap in found.gaps.items():
        print(f"{who}: {gap.splitlines()[0]}")
    print(f"took {time.monotonic() - found.began:.0f} s; {RESULTS}/results.json, report.html")
    verdicts = [line.verdict for line in table(found) if line.verdict]
    if "missed" in verdicts:
        return int(Verdict.MISSED)
    return int(Verdict.MET if set(verdicts) == {"met"} else Verdict.INVALID)


if __name__ == "__main__":
    sys.exit(main())
