"""Load-test a server and judge it: exit code 0 every target met, 1 a target missed (named), 2 the run says nothing.

    python loadtests/verify.py --model-repository .demo/models --server-python .venv/bin/python
    python loadtests/verify.py --url http://127.0.0.1:8000 --model credit

With a repository it starts the server on a free loopback port and stops it at the end; with two cores or more the
server gets one and the generator another. Two runs of Locust follow, each in a process of its own: a closed loop that
measures the capacity, and an open loop at a share of it that is judged against targets.toml. Needs nothing but the
standard library; Locust lives in the environment of ``--locust-python``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recorder import Recording, Usage, usage
from targets import Capacity, Judgement, Steady, Targets, TargetsError, Verdict, conclusion, judge, load, table

HERE = Path(__file__).resolve().parent
START_TIMEOUT = 60.0
STOP_TIMEOUT = 35.0  # above the server's own time to drain
LOG_LINES = 15


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
        return usage(self._process.pid) if self._process is not None and self._process.poll() is None else None

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
def started(options: argparse.Namespace, results: Path, core: int | None) -> Iterator[Server]:
    """A fastinfer server on the repository; stopped, and killed if it does not stop, on the way out."""
    port, log = free_port(), results / "server.log"
    command = [options.server_python, "-P", "-m", "fastinfer", "serve", options.model_repository, "--host", "127.0.0.1",
               "--port", str(port)]
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

    def __init__(self, options: argparse.Namespace, results: Path, core: int | None) -> None:
        self._options = options
        self._results = results
        self._core = core

    def run(self, name: str, server: Server, loop: Capacity | Steady, *extra: str) -> Recording:
        """One run; Locust's own tables go to a log beside the recording.

        Raises:
            InvalidRunError: Locust did not start, ended by itself, or the server is gone.
        """
        recording, log = self._results / f"{name}.json", self._results / f"{name}.log"
        recording.unlink(missing_ok=True)
        command = [
            self._options.locust_python, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--host", server.url,
            "--headless", "--only-summary", "--exit-code-on-error", "0", "--stop-timeout", "0",
            "--users", str(loop.users), "--spawn-rate", str(loop.users), "--warmup", str(loop.warmup),
            "--window", str(loop.seconds), "--recording", str(recording), *extra,
        ]
        for option in ("model", "payload"):
            if value := getattr(self._options, option):
                command += [f"--{option}", value]
        with log.open("wb") as output, pinned(self._core):
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            status = self._wait(process, server, loop.warmup + loop.seconds)
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


def measure_capacity(generator: Generator, server: Server, loop: Capacity) -> float:
    recording = generator.run("capacity", server, loop)
    if not recording.throughput:
        raise InvalidRunError(f"no request was answered while the capacity was measured{reasons(recording)}")
    bound = " (the generator's)" if recording.generator_cpu + recording.generator_waited > 0.9 else ""
    print(f"capacity: {recording.throughput:.0f} requests/s{bound}, {loop.users} users, closed loop, "
          f"{recording.all().latency.count} answers in {recording.seconds:.1f} s")
    return recording.throughput


def judge_steady(generator: Generator, server: Server, targets: Targets, capacity: float) -> Judgement:
    steady = targets.steady
    rate = steady.load * capacity
    before, began = server.usage(), time.perf_counter()
    recording = generator.run("steady", server, steady, "--rate", f"{rate:.3f}")
    print(f"steady: {rate:.0f} requests/s asked, {recording.throughput:.0f} answered")
    cores = {"generator": Usage(recording.generator_cpu, recording.generator_waited)}
    if before and (after := server.usage()):
        cores["server"] = after.share(before, time.perf_counter() - began)
    for name, share in cores.items():
        print(f"{name}: used {share.ran:.0%} of its core, waited for it {share.waited:.0%} of the time")
    print(f"schedule: the generator sent {recording.lag.percentile(99):.2f} ms late at p99\n")
    waited = cores["server"].waited if "server" in cores else 0.0
    judgement = judge(targets, recording, capacity, server_waited=waited)
    print(table(judgement) + reasons(recording) + "\n")
    return judgement


def reasons(recording: Recording) -> str:
    """The commonest failures, a line each."""
    return "".join(f"\n  {count} x {text}" for text, count in recording.errors.most_common(5))


def verify(options: argparse.Namespace) -> Judgement:
    """The whole run.

    Raises:
        TargetsError, InvalidRunError: it cannot be judged.
    """
    targets = load(Path(options.targets))
    results = Path(options.results)
    results.mkdir(parents=True, exist_ok=True)
    cores = Cores.available()
    generator = Generator(options, results, cores.generator)
    with contextlib.ExitStack() as stack:
        server = Server(options.url.rstrip("/")) if options.url else stack.enter_context(
            started(options, results, cores.server))
        if options.url:
            server.wait_ready()
        print(f"server: {server.url}" + ("" if options.url or cores.server is None else
                                         f" on core {cores.server}, generator on core {cores.generator}"))
        capacity = measure_capacity(generator, server, targets.capacity)
        return judge_steady(generator, server, targets, capacity)


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
    parser.add_argument("--results", metavar="PATH", default=str(HERE / "results"), help="recordings and logs")
    return parser


def end_by_signal(number: int, _: Any) -> None:
    raise SystemExit(128 + number)  # so that what was started is stopped on the way out


def main() -> int:
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, end_by_signal)
    try:
        judgement = verify(options)
    except (TargetsError, InvalidRunError, OSError) as error:
        print(f"invalid run: {error}", file=sys.stderr)
        return Verdict.INVALID
    print(conclusion(judgement))
    return judgement.verdict


if __name__ == "__main__":
    sys.exit(main())
