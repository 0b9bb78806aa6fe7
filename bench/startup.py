"""How fast the server starts, how much memory it takes, and what its imports cost.

    python bench/startup.py .demo/models --python .venv/bin/python

Time runs from just before exec to the first answered infer request, tried every millisecond from another core. The
first start is not counted: it writes the byte code that every later one reads. The request holds values like
those of the model's own example.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from process import Cores, Memory, Server, ServerError, free_port, memory, pinned

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "loadtests"))

import payloads

INTERVAL = 0.001
SHOWN = 15


class Start(NamedTuple):
    seconds: float
    memory: Memory


class Import(NamedTuple):
    """One line of ``-X importtime``, in microseconds."""

    own: int
    cumulative: int
    name: str


class Probe:
    """Sends the first request until one is answered; learns what to send from a server that is up."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.body: payloads.Body | None = None

    def learn(self, port: int) -> None:
        base = f"http://127.0.0.1:{port}"
        if not self.model:
            request = urllib.request.Request(f"{base}/v2/repository/index", b"{}", {"Content-Type": "application/json"})
            self.model = json.loads(urllib.request.urlopen(request, timeout=5).read())[0]["name"]
        metadata = json.loads(urllib.request.urlopen(f"{base}/v2/models/{self.model}", timeout=5).read())
        inputs = payloads.tensors(metadata)
        openapi = json.loads(urllib.request.urlopen(f"{base}/openapi.json", timeout=5).read())
        rows = payloads.generated_rows(inputs, payloads.hints(metadata, openapi), count=1)
        self.body = payloads.oip_json(self.model, inputs, rows)

    def answered(self, port: int) -> bool:
        if self.body is None:
            return ready(port)
        request = urllib.request.Request(f"http://127.0.0.1:{port}{self.body.path}", self.body.data, self.body.headers)
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise ServerError(f"the first request got {error.code}: {error.read()[:300]!r}") from None
            return False
        except OSError:
            return False
        return True


def ready(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
    except OSError:
        return False
    return True


def start(options: argparse.Namespace, probe: Probe, cores: Cores, log: Path, *flags: str) -> Start:
    """Start, wait for the first answer, measure, stop."""
    port = free_port()
    command = [options.python, *flags, "-P", "-m", "fastinfer", "serve", options.path, "--host", "127.0.0.1",
               "--port", str(port)]
    environ = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    with pinned(cores.client):
        began = time.perf_counter()
        server = Server("fastinfer", command, port=port, core=cores.server, log=log, environ=environ)
        try:
            server.wait(probe.answered, interval=INTERVAL)
            seconds = time.perf_counter() - began
            if probe.body is None:
                probe.learn(port)
            return Start(seconds, memory(server.pid))
        finally:
            server.stop()


def imports(log: Path) -> list[Import]:
    """The lines that ``-X importtime`` wrote among the server's own."""
    pattern = re.compile(r"^import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)$", re.MULTILINE)
    return [Import(int(own), int(cumulative), name) for own, cumulative, name in pattern.findall(log.read_text())]


def by_package(found: list[Import]) -> list[tuple[str, int]]:
    """Time of each top-level package's own modules, largest first."""
    total: defaultdict[str, int] = defaultdict(int)
    for entry in found:
        total[entry.name.split(".")[0]] += entry.own
    return sorted(total.items(), key=lambda item: -item[1])


def report(starts: list[Start], found: list[Import]) -> str:
    seconds = [start.seconds for start in starts]
    lines = [f"first answer after exec: median {statistics.median(seconds):.3f} s, best {min(seconds):.3f} s, "
             f"worst {max(seconds):.3f} s of {len(starts)}",
             f"memory after it: RSS {statistics.median(s.memory.rss for s in starts) / 2**20:.1f} MiB, "
             f"PSS {statistics.median(s.memory.pss for s in starts) / 2**20:.1f} MiB (median)",
             f"imports: {sum(entry.own for entry in found) / 1000:.0f} ms in {len(found)} modules, by package "
             "(importtime itself slows them down):"]
    return "\n".join([*lines, *(f"  {own / 1000:7.1f} ms  {name}" for name, own in by_package(found)[:SHOWN])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="model file or repository")
    parser.add_argument("--python", default=sys.executable, help="interpreter with fastinfer (default: this one)")
    parser.add_argument("--model", default="", help="which to ask (default: the first)")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    probe = Probe(options.model)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        try:
            cores = Cores.choose()
            start(options, probe, cores, log)
            starts = [start(options, probe, cores, log) for _ in range(options.runs)]
            start(options, probe, cores, log, "-X", "importtime")
        except ServerError as error:
            print(error, file=sys.stderr)
            return 1
        print(report(starts, imports(log)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
