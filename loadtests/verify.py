"""Load-test a server and judge it: exit code 0 every target met, 1 a target missed (named), 2 the run says nothing.

    python loadtests/verify.py --model-repository .demo/models --server-python .venv/bin/python
    python loadtests/verify.py --url http://127.0.0.1:8000 --model credit --scenarios open-loop,spike

Every scenario that targets.toml has a table for is run and judged, each in a Locust process of its own, after the
capacity C was measured. With a repository it starts the server on a free loopback port and stops it at the end; the
scenarios for the paced model get a server with that model alone, made for this machine. With two cores or more the
server gets one and the generator another. Recordings, logs, junit.xml, report.md and report.html lie in ``--results``.
Needs nothing but the standard library; Locust lives in the environment of ``--locust-python``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import reports
from recorder import Recording
from targets import (
    SAMPLES_BEYOND,
    Capacity,
    Course,
    Paced,
    Targets,
    TargetsError,
    Verdict,
    judge,
    load,
    table,
)
from usage import Share, Usage, usage

HERE = Path(__file__).resolve().parent
START_TIMEOUT = 60.0
STOP_TIMEOUT = 35.0  # above the server's own time to drain
LOG_LINES = 15
LONGEST_RUN = 3600.0  # of a scenario whose length the targets file leaves to it
WIDE_STEPS = (0.4, 1.1)  # first and last step of the staircase, of what the closed loop carried
FINE_RISES = (0.0125, 0.1)  # of a second one, above what the first one found
STEP_ANSWERED = 0.98  # of what is due in a step of the staircase, else it is past the capacity


class InvalidRunError(Exception):
    """The run cannot be judged; the message says why."""


class Cores(NamedTuple):
    """Which core each side is pinned to; None where there is only one."""

    server: int | None
    generator: int | None

    @classmethod
    def available(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[-1]) if len(cores) > 1 else cls(None, None)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Children started inside inherit the core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """The server under test: ours to start and stop, or somebody's at a URL."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
        self.url = url
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raise InvalidRunError when the process that we started is gone."""
        if self._process is not None and self._process.poll() is not None:
            assert self._log is not None
            raise InvalidRunError(f"the server ended with {self._process.returncode}:\n{tail(self._log)}")

    def usage(self) -> Usage | None:
        """Of the process that we started, if we did."""
        if self._process is None or self._process.poll() is not None:
            return None
        try:
            return usage(self._process.pid)
        except OSError:  # it ended meanwhile
            return None

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5).close()
                return
            time.sleep(0.05)
        raise InvalidRunError(f"{self.url} was not ready within {START_TIMEOUT:g} s"
                              + (f":\n{tail(self._log)}" if self._log else ""))


@contextlib.contextmanager
def started(python: str, repository: str, log: Path, core: int | None, *more: str) -> Iterator[Server]:
    """A fastinfer server on the repository; stopped, and killed if it does not stop, on the way out."""
    port = free_port()
    command = [python, "-P", "-m", "fastinfer", "serve", repository, "--host", "127.0.0.1", "--port", str(port), *more]
    with log.open("wb") as output, pinned(core):
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        server = Server(f"http://127.0.0.1:{port}", process, log)
        server.wait_ready()
        yield server
        server.check()
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Generator:
    """Locust headless, a process a run."""

    def __init__(self, python: str, results: Path, core: int | None, **same: str) -> None:
        """``same`` are options that every run gets; empty ones are left out."""
        self._python = python
        self._results = results
        self._core = core
        self._same = same

    def run(self, label: str, server: Server, scenario: str, **settings: object) -> Recording:
        """One run; Locust's own tables go to a log beside the recording.

        Args:
            label: of the files.
            settings: options of loadtests/locustfile.py; None leaves one to the scenario.

        Raises:
            InvalidRunError: Locust did not start, ended by itself, or the server is gone.
        """
        recording, log = self._results / f"{label}.json", self._results / f"{label}.log"
        recording.unlink(missing_ok=True)
        command = [
            self._python, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--host", server.url, "--headless",
            "--only-summary", "--exit-code-on-error", "0", "--stop-timeout", "0", "--scenario", scenario,
            "--recording", str(recording),
        ]
        for option, value in {**self._same, **settings}.items():
            if value is not None and value != "":
                command += [f"--{option}", str(value)]
        with log.open("wb") as output, pinned(self._core):
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            seconds: Any = settings.get("seconds") or LONGEST_RUN
            status = self._wait(process, server, float(seconds))
        finally:
            stop(process)
        if status or not recording.exists():
            raise InvalidRunError(f"locust ended with {status}:\n{tail(log)}")
        return Recording.load(recording)

    def _wait(self, process: subprocess.Popen[bytes], server: Server, seconds: float) -> int:
        deadline = time.monotonic() + seconds + START_TIMEOUT
        while process.poll() is None:
            server.check()
            if time.monotonic() > deadline:
                raise InvalidRunError(f"locust did not end within {seconds + START_TIMEOUT:g} s")
            time.sleep(0.2)
        return int(process.returncode)


def measure_capacity(generator: Generator, server: Server, loop: Capacity, label: str = "capacity") -> float:
    """C in requests a second, as targets.Capacity has it.

    Raises:
        InvalidRunError: nothing was answered, or the latency is past its bound at the lowest step already.
    """
    recording = generator.run(label, server, "closed-loop", users=loop.users, warmup=loop.warmup, seconds=loop.seconds)
    if not recording.throughput:
        raise InvalidRunError(f"no request was answered while the capacity was measured{reasons(recording)}")
    bound = " (the generator's)" if recording.generator_cpu + recording.generator_waited > 0.9 else ""
    print(f"{label}: {recording.throughput:.0f} requests/s{bound}, {loop.users} users, closed loop, "
          f"{recording.all().latency.count} answers in {recording.seconds:.1f} s", flush=True)
    if not loop.slo_ms:
        return recording.throughput
    top = recording.throughput
    share = climb(generator, server, loop, f"{label}-steps", top, WIDE_STEPS, loop.staircase / 3)
    if not share:
        raise InvalidRunError(f"no rate keeps {loop.slo_ms:g} ms at p99, from {WIDE_STEPS[0] * top:.0f} a second on")
    fine = tuple(share + rise for rise in FINE_RISES)
    found = (climb(generator, server, loop, f"{label}-fine", top, fine, loop.staircase * 2 / 3) or share) * top
    print(f"{label}: C = {found:.0f} requests/s, the highest open-loop rate with p99 within {loop.slo_ms:g} ms",
          flush=True)
    return found


def climb(generator: Generator, server: Server, loop: Capacity, label: str, top: float,
          steps: tuple[float, float], seconds: float) -> float:
    """The highest step of a staircase, as a share of ``top``, that keeps the bound as all but one below it do; else 0.

    One is let pass because a step is short, and what a machine does beside can spoil any.
    """
    recording = generator.run(label, server, "staircase", users=max(256, loop.users), warmup=loop.warmup,
                              load=f"{steps[0]:.4f}", peak=f"{steps[1]:.4f}", seconds=seconds,
                              capacity=f"{top:.3f}")
    return highest([(float(step), keeps(recording, step, loop.slo_ms)) for step in recording.phases])


def highest(steps: Sequence[tuple[float, bool]]) -> float:
    """Of ascending steps and whether each keeps the bound: the last one before a second failed."""
    found, failed = 0.0, 0
    for step, kept in steps:
        failed += not kept
        if failed > 1:
            break
        if kept:
            found = step
    return found


def keeps(recording: Recording, step: str, slo_ms: float) -> bool:
    """Whether what was due in a step of the staircase was answered, in time."""
    series = recording.phases[step]
    return (series.latency.count >= SAMPLES_BEYOND and series.latency.percentile(99) <= slo_ms
            and series.latency.count >= STEP_ANSWERED * series.requests)


def run_course(generator: Generator, server: Server, targets: Targets, name: str, capacity: float) -> reports.Result:
    course = targets.courses[name]
    before, began = server.usage(), time.perf_counter()
    try:
        recording = generator.run(name, server, name, users=course.users, load=course.load, peak=course.peak,
                                  warmup=course.warmup, seconds=course.seconds, capacity=f"{capacity:.3f}")
    except InvalidRunError as error:
        server.check()
        print(f"\n{name}: invalid run: {error}", flush=True)
        return reports.Result(name, course, capacity, Recording(), None, str(error))
    print(f"\n{name}: {recording.all().requests} requests in {recording.seconds:.1f} s, "
          f"{recording.throughput:.0f} answered a second")
    cores = {"generator": Share(recording.generator_cpu, recording.generator_waited)}
    if before and (after := server.usage()):
        cores["server"] = after.since(before, time.perf_counter() - began)
    for side, share in cores.items():
        print(f"{side}: used {share.ran:.0%} of its core, waited for it {share.waited:.0%} of the time")
    if recording.lag.count:
        print(f"schedule: the generator sent {recording.lag.percentile(99):.2f} ms late at p99")
    waited = cores["server"].waited if "server" in cores else 0.0
    judgement = judge(targets.validity, course, recording, capacity, server_waited=waited)
    result = reports.Result(name, course, capacity, recording, judgement)
    print("\n" + table(judgement) + reasons(recording) + f"\n{result.conclusion}", flush=True)
    return result


def reasons(recording: Recording) -> str:
    """The commonest failures, a line each."""
    return "".join(f"\n  {count} x {text}" for text, count in recording.errors.most_common(5))


def chosen(targets: Targets, names: str, *, paced: bool | None = None) -> dict[str, Course]:
    """The scenarios to run, in the order of the targets file.

    Raises:
        TargetsError: one is asked for that has no table there.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(targets.courses)
    for name in wanted:
        if name not in targets.courses:
            raise TargetsError(f"the targets file has no table for {name!r}; it has {', '.join(targets.courses)}")
    return {name: course for name, course in targets.courses.items()
            if name in wanted and paced in (None, course.paced)}


def run_all(generator: Generator, server: Server, targets: Targets, courses: Mapping[str, Course], loop: Capacity,
            label: str = "capacity") -> list[reports.Result]:
    capacity = measure_capacity(generator, server, loop, label)
    return [run_course(generator, server, targets, name, capacity) for name in courses]


def make_paced(options: argparse.Namespace, paced: Paced, results: Path, core: int | None) -> Path:
    """The repository of the paced model, calibrated on the server's core."""
    repository = results / "paced"
    command = [options.server_python, str(HERE / "paced_model.py"), str(repository), "--rate", str(paced.rate),
               "--max-batch-size", str(paced.max_batch_size), "--slo-ms", str(paced.slo_ms)]
    with pinned(core):
        made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise InvalidRunError(f"the paced model was not made:\n{made.stderr.strip()[-2000:]}")
    print(f"paced model: {made.stdout.strip()}", flush=True)
    return repository


def verify(options: argparse.Namespace) -> list[reports.Result]:
    """The whole run.

    Raises:
        TargetsError, InvalidRunError: it cannot be judged.
    """
    targets = load(Path(options.targets))
    results = Path(options.results)
    results.mkdir(parents=True, exist_ok=True)
    cores = Cores.available()
    if options.url:
        server = Server(options.url.rstrip("/"))
        server.wait_ready()
        print(f"server: {server.url}")
        generator = Generator(options.locust_python, results, cores.generator, model=options.model,
                              payload=options.payload)
        return run_all(generator, server, targets, chosen(targets, options.scenarios), targets.capacity)
    found: list[reports.Result] = []
    if plain := chosen(targets, options.scenarios, paced=False):
        generator = Generator(options.locust_python, results, cores.generator, model=options.model,
                              payload=options.payload)
        with started(options.server_python, options.model_repository, results / "server.log", cores.server) as server:
            print(where(server, cores), flush=True)
            found += run_all(generator, server, targets, plain, targets.capacity)
    if slow := chosen(targets, options.scenarios, paced=True):
        generator = Generator(options.locust_python, results, cores.generator)
        repository = make_paced(options, targets.paced, results, cores.server)
        loop = dataclasses.replace(targets.capacity, slo_ms=targets.paced.slo_ms,
                                   users=targets.paced.max_batch_size * 3 // 2)
        with started(options.server_python, str(repository), results / "paced.log", cores.server) as server:
            print(where(server, cores), flush=True)
            found += run_all(generator, server, targets, slow, loop, "paced-capacity")
    return found


def where(server: Server, cores: Cores) -> str:
    pinned_to = f" on core {cores.server}, generator on core {cores.generator}" if cores.server is not None else ""
    return f"server: {server.url}{pinned_to}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--model-repository", metavar="PATH", help="start `fastinfer serve PATH` and test that")
    target.add_argument("--url", help="test a server that is running, of any make that speaks the protocol")
    parser.add_argument("--server-python", metavar="PATH", default=sys.executable,
                        help="interpreter with fastinfer (default: this one)")
    parser.add_argument("--locust-python", metavar="PATH", default=sys.executable,
                        help="interpreter with locust (default: this one)")
    parser.add_argument("--model", default="", help="default: the only one that the server has")
    parser.add_argument("--payload", metavar="NDJSON", default="", help="rows to send, default: made from the metadata")
    parser.add_argument("--targets", metavar="TOML", default=str(HERE / "targets.toml"))
    parser.add_argument("--scenarios", metavar="NAMES", default="",
                        help="some of those in the targets file, with commas between them")
    parser.add_argument("--results", metavar="PATH", default=str(HERE / "results"), help="recordings, logs and reports")
    return parser


def end_by_signal(number: int, _: Any) -> None:
    raise SystemExit(128 + number)  # so that what was started is stopped on the way out


def main() -> int:
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, end_by_signal)
    try:
        results = verify(options)
    except (TargetsError, InvalidRunError, OSError) as error:
        print(f"invalid run: {error}", file=sys.stderr)
        return Verdict.INVALID
    reports.write(results, Path(options.results), "Load test")
    print(f"\nreports: {options.results}/report.html, report.md, junit.xml")
    for result in results:
        print(f"{result.name}: {result.conclusion}")
    return reports.overall(results)


if __name__ == "__main__":
    sys.exit(main())
