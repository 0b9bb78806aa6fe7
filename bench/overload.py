"""What happens at three and at ten times the capacity: how much is still answered in time, how the rest is refused.

    python bench/overload.py                        # fastinfer, Triton, BentoML; the lone client; some eight minutes
    python bench/overload.py --only fastinfer,lone  # parts of it

All serve one model that is slow by this machine's own measure (loadtests/paced_model.py), on one core, to Locust on the
other; each one's capacity C is the highest open-loop rate at which its p99 keeps the bound, and each is overloaded by
multiples of its own. Triton has a queue policy and BentoML a ``max_latency``, both tuned for this model and this bound.
The lone client compares fastinfer with itself, with batching and without, on a fast model.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import environments
import harness
import triton_server
import wrk
from peers import PEERS, SERVERS, interpreter
from process import Cores, Launch, Server, ServerError, free_ports, pinned

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "loadtests"))
import report  # noqa: E402
import targets  # noqa: E402
import verify  # noqa: E402

MODEL = "paced"
RESULTS = harness.BENCH / "overload"
LOCUST = ("locust>=2.40",)
PAGE = RESULTS / "report.html"
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
class Contender:
    """A server in this comparison.

    Attributes:
        peer: whose environment it has; "" is fastinfer.
        multiples: of its capacity that it is driven at.
        note: how it is set up.
    """

    title: str
    peer: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    prepare: Callable[[Launch], None]
    clean: Callable[[Launch], None]
    scenarios: tuple[str, ...]
    note: str = ""


def contenders(setting: Setting) -> dict[str, Contender]:
    slo, batch = setting.slo_ms, setting.max_batch_size
    # Who waited as long as this still makes it with its own batch. A shorter queue (one batch, so that nobody comes
    # too late) was tried and carried less.
    longest = max(1.0, slo - 1.1 * setting.batch_ms)
    queue = max(batch, int(longest / setting.batch_ms * batch))
    triton = TRITON.format(model=MODEL, batch=batch, timeout_us=round(longest * 1000), queue=queue)
    return {
        "fastinfer": Contender(
            "fastinfer", "", ("{python}", "-P", "-m", "fastinfer", "serve", str(setting.repository), "--host",
                              "127.0.0.1", "--port", "{port}", "--log-level", "warning"),
            {}, lambda launch: None, lambda launch: None, ("overload-x3", "overload-x10", "spike"),
            f"slo_ms = {slo:g}, max_batch_size = {batch}, else defaults"),
        "triton": Contender(
            "Triton", "triton", (*triton_server.COMMAND, "--http-thread-count=4"), triton_server.ENVIRON,
            lambda launch: triton_server.write(launch, triton), triton_server.clean, ("overload-x3",),
            f"dynamic batching; queue policy: REJECT after {longest:.0f} ms, at most {queue} waiting; 4 HTTP threads"),
        "bentoml": Contender(
            "BentoML", "bentoml",
            ("{python}", "-m", "bentoml", "serve", "bentoml_overload:Infer", "--working-dir", str(SERVERS), "--host",
             "127.0.0.1", "--port", "{port}", "--api-workers", "1"),
            {"BENTOML_HOME": "{folder}", "BENTOML_DO_NOT_TRACK": "1", "BENCH_SLO_MS": f"{slo:.0f}",
             "BENCH_MAX_BATCH_SIZE": str(batch)},
            lambda launch: None, lambda launch: None, ("overload-x3",),
            f"adaptive batching, max_batch_size = {batch}, max_latency_ms = {slo:.0f}"),
    }


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


def make_model(options: argparse.Namespace, cores: Cores) -> Setting:
    """Calibrated on the server's core."""
    repository = RESULTS / "models"
    shutil.rmtree(repository, ignore_errors=True)
    command = [options.python, str(ROOT / "loadtests" / "paced_model.py"), str(repository), "--rate", str(options.rate),
               "--max-batch-size", str(options.max_batch_size), "--slo-ms", str(options.slo_ms)]
    with pinned(cores.server):
        made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **harness.pass_on(options)})
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
    """The scenarios, and what fastinfer is to reach in them."""
    overload = (targets.Target("overload", "goodput", 0.9), targets.Target("overload", "p99_ms", setting.slo_ms),
                targets.Target("overload", "refusal_p99_ms", 10), targets.Target("overload", "silent", 0),
                targets.Target("overload", "errors", 0), targets.Target("all", "recovery_s", 2))
    spike = tuple(target._replace(users="spike") if target.users == "overload" else target for target in overload)
    shared = {"users": 512, "slo_ms": setting.slo_ms, "warmup": 3.0, "load": 0.5}
    return {
        "overload-x3": targets.Course(seconds=seconds, targets=overload, **shared),  # type: ignore[arg-type]
        "overload-x10": targets.Course(seconds=seconds, targets=overload, **shared),  # type: ignore[arg-type]
        "spike": targets.Course(seconds=seconds, peak=10.0, targets=spike, **shared),  # type: ignore[arg-type]
    }


def overload(contender: Contender, setting: Setting, options: argparse.Namespace,
             cores: Cores) -> list[report.Result]:
    """Its capacity, and what it does above it."""
    print(f"\n== {contender.title}: {contender.note}", flush=True)
    results = RESULTS / contender.title
    results.mkdir(parents=True, exist_ok=True)
    wanted = targets.Targets(courses=courses(setting, options.seconds))
    loop = targets.Capacity(users=setting.max_batch_size * 3 // 2, seconds=6.0, slo_ms=setting.slo_ms, staircase=24.0)
    generator = verify.Generator(options.locust_python, results, cores.client, model=MODEL, tags="oip_json")
    with started(contender, setting, options, cores) as server:
        tested = verify.Server(f"http://127.0.0.1:{server.port}", server.process, RESULTS / f"{contender.title}.log")
        capacity = verify.measure_capacity(generator, tested, loop, contender.title)
        return [verify.run_course(generator, tested, wanted, name, capacity)
                for name in contender.scenarios if name in options.scenarios]


def lone_client(options: argparse.Namespace, cores: Cores) -> tuple[float, float, float]:
    """p50 in µs of one client with batching and without, and the median of the rounds' ratios."""
    harness.ensure_models(["mlp"], options)
    path = harness.models.model_path("mlp")
    sizes = {"with batching": 64, "without": 0}
    script = wrk.infer_script("mlp")
    with contextlib.ExitStack() as stack:
        sides = []
        for name, size in sizes.items():
            folder = RESULTS / f"lone-{size}" / "mlp"
            (folder / "1").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / "1" / "model.onnx")
            (folder / "model.toml").write_text(f"max_batch_size = {size}\n")
            server = stack.enter_context(harness.serving(f"lone-{size}", [str(folder.parent)], options, cores))
            sides.append(harness.Side(name, server, script))
        found = harness.rounds(sides, 1, options, cores)
    p50 = {name: statistics.median(measured[name].p50_us for measured in found) for name in sizes}
    ratio = statistics.median(measured["with batching"].p50_us / measured["without"].p50_us for measured in found)
    return p50["with batching"], p50["without"], ratio


def line_of(results: Mapping[str, list[report.Result]], who: str, scenario: str, target: str) -> targets.Line | None:
    for result in results.get(who, ()):
        for line in result.judgement.lines if result.name == scenario and result.judgement else ():
            if line.target.name == target:
                return line
    return None


def rows(results: Mapping[str, list[report.Result]], lone: tuple[float, float, float] | None) -> list[Sequence[str]]:
    """The table: measure, target, measured, samples."""
    found: list[Sequence[str]] = []
    asked = [("goodput at 10 C", "overload-x10", "goodput", "≥ 0.90 C", " C"),
             ("goodput at 3 C", "overload-x3", "goodput", "≥ 0.90 C", " C"),
             ("p99 of the admitted at 10 C", "overload-x10", "p99_ms", "≤ slo_ms", " ms"),
             ("refusals at 10 C: p99", "overload-x10", "refusal_p99_ms", "≤ 10 ms", " ms"),
             ("refusals at 10 C without Retry-After", "overload-x10", "silent", "0", ""),
             ("recovery after the spike ends", "spike", "recovery_s", "≤ 2 s", " s")]
    for title, scenario, target, limit, unit in asked:
        line = line_of(results, "fastinfer", scenario, target)
        if line is not None:
            found.append((title, limit, f"{targets.shown(line.measured)}{unit}", str(line.samples)))
    good = {who: line for who in results if (line := line_of(results, who, "overload-x3", "goodput"))}
    for who, line in good.items():
        found.append((f"{who}: goodput at 3 × its own C ({results[who][0].capacity:.0f}/s)", "",
                      f"{targets.shown(line.measured)} C", str(line.samples)))
    others = [line.measured for who, line in good.items() if who != "fastinfer"]
    if others and "fastinfer" in good:
        ratio = good["fastinfer"].measured / max(others) if max(others) else float("inf")
        found.append(("ours over the better of theirs", "≥ 1.3×", f"{ratio:.2f}×", ""))
    if lone is not None:
        found.append(("lone client's p50 with batching over without", "≤ 1.02×",
                      f"{lone[2]:.3f}× ({lone[0]:.0f} / {lone[1]:.0f} µs)", ""))
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="fastinfer,triton,bentoml,lone", help="parts, with commas between them")
    parser.add_argument("--scenarios", default="overload-x3,overload-x10,spike",
                        help="of fastinfer's; the others have overload-x3 only")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each overload; 60 for figures to publish")
    parser.add_argument("--rate", type=float, default=260.0, help="rows a second of the model in full batches")
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--slo-ms", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=7, help="of the lone client")
    parser.add_argument("--round-seconds", dest="window", type=float, default=2.0)
    parser.add_argument("--python", default="", help="an interpreter with fastinfer; else a release wheel is built")
    parser.add_argument("--base-python", default="", help="what the environments stand on")
    options = parser.parse_args(arguments)
    options.given = bool(options.python)
    options.base_python = options.base_python or environments.base_python()
    options.python = options.python or environments.fastinfer(options.base_python)
    options.locust_python = environments.ensure("locust", LOCUST, options.base_python)
    options.only = options.only.split(",")
    options.scenarios = options.scenarios.split(",")
    return options


def main() -> int:
    options = parse()
    cores = Cores.choose()
    RESULTS.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[report.Result]] = {}
    if set(options.only) - {"lone"}:
        setting = make_model(options, cores)
        for name, contender in contenders(setting).items():
            if name not in options.only:
                continue
            try:
                results[name] = overload(contender, setting, options, cores)
            except (ServerError, environments.InstallError, verify.InvalidRunError) as error:
                print(f"{contender.title} is left out: {error}", file=sys.stderr, flush=True)
    lone = None
    if "lone" in options.only:
        lone = lone_client(argparse.Namespace(**{**vars(options), "seconds": options.window}), cores)
    named = [result._replace(name=f"{who}: {result.name}") for who, found in results.items() for result in found]
    report.write(named, RESULTS, "Overload")
    print("\n| measure | target | measured | samples |\n|---|---|---|---|")
    for row in rows(results, lone):
        print(f"| {' | '.join(row)} |")
    for result in named:
        print(f"{result.name}: {result.conclusion}")
    print(f"plots: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
