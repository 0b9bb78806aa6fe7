"""The client: wrk with a generated script, one infer request of one row at a time on each connection."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from models import FEATURES
from process import ServerError, pinned

ROWS = 512  # one repeated row halves what a tree model costs
SCRIPTS = Path(__file__).resolve().parent.parent / ".bench" / "wrk"
SCRIPT = """\
local path = %(path)s
local bodies = {
%(bodies)s
}
local requests, count, index = {}, #bodies, 0

function init(args)
  local headers = {["Content-Type"] = "application/json"}
  for i, body in ipairs(bodies) do
    requests[i] = wrk.format("POST", path, headers, body)
  end
end

function request()
  index = index %% count + 1
  return requests[index]
end

function done(summary, latency, rates)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%%d,"duration_us":%%d,"p50_us":%%d,"p99_us":%%d,"connect":%%d,"read":%%d,"write":%%d,' ..
    '"status":%%d,"timeout":%%d}\\n', summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.connect, e.read, e.write, e.status, e.timeout))
end
"""


class Window(NamedTuple):
    """What wrk saw: requests answered, seconds, latencies in microseconds, requests that failed."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    failed: int


def rows() -> Any:
    """float32 [512, 32], the same in every run."""
    return np.random.default_rng(7).normal(0, 2, (ROWS, FEATURES)).astype(np.float32)


def body(row: Any) -> str:
    """An infer request of one row; each number is the shortest text that gives the float32 back."""
    data = ",".join(str(value) for value in row)
    return f'{{"inputs":[{{"name":"input","shape":[1,{FEATURES}],"datatype":"FP32","data":[{data}]}}]}}'


def infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def write_script(model: str) -> Path:
    """The wrk script for a model; long brackets keep the JSON as it is."""
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    path = SCRIPTS / f"{model}.lua"
    bodies = ",\n".join(f"[[{body(row)}]]" for row in rows())
    path.write_text(SCRIPT % {"path": json.dumps(infer_path(model)), "bodies": bodies})
    return path


def drive(port: int, script: Path, *, connections: int, seconds: float, core: int) -> Window:
    """One window of load, from the client's core.

    Raises:
        ServerError: wrk is missing or failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise ServerError("wrk is not installed (Debian: apt-get install wrk)")
    command = [wrk, "--latency", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s",
               "-s", str(script), f"http://127.0.0.1:{port}"]
    with pinned(core):
        finished = subprocess.run(command, capture_output=True, text=True)
    line = next((line for line in finished.stdout.splitlines() if line.startswith("RESULT ")), None)
    if finished.returncode or line is None:
        raise ServerError(f"wrk failed: {finished.stdout}{finished.stderr}")
    seen = json.loads(line.removeprefix("RESULT "))
    failed = sum(seen[kind] for kind in ("connect", "read", "write", "status", "timeout"))
    return Window(seen["requests"], seen["duration_us"] / 1e6, seen["p50_us"], seen["p99_us"], failed)
