"""The client: wrk with a generated script, one request at a time on each connection."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from models import FEATURES
from process import ServerError, pinned

ROWS = 512  # one repeated row halves what a tree model costs
SCRIPTS = Path(__file__).resolve().parent.parent / ".bench" / "wrk"
# Bodies lie in a file of their own, since they may be binary.
SCRIPT = """\
local path, lengths, file = %(path)s, {%(lengths)s}, assert(io.open(%(file)s, "rb"))
local headers = {%(headers)s}
local requests, count, index = {}, #lengths, 0

function init(args)
  for i, length in ipairs(lengths) do
    requests[i] = wrk.format("POST", path, headers, file:read(length))
  end
end

function request()
  index = index %% count + 1
  return requests[index]
end
%(pacing)s
function done(summary, latency, rates)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%%d,"duration_us":%%d,"p50_us":%%d,"p99_us":%%d,"connect":%%d,"read":%%d,"write":%%d,' ..
    '"status":%%d,"timeout":%%d}\\n', summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.connect, e.read, e.write, e.status, e.timeout))
end
"""
# A common timetable for all connections: each takes the next free moment. wrk's timers have a grain of 1 ms, so that
# single requests leave up to that late, and the rate over a window is kept. A client that fell more than a second
# behind does not catch up.
PACING = """
local ffi = require("ffi")
ffi.cdef("struct moment { long seconds, nanoseconds; }; int clock_gettime(int, struct moment *);")
local moment, due, interval = ffi.new("struct moment"), math.huge, %(interval)r
function delay()
  ffi.C.clock_gettime(1, moment)
  local now = tonumber(moment.seconds) * 1e3 + tonumber(moment.nanoseconds) / 1e6
  due = due == math.huge and now or math.max(due + interval, now - 1000)
  return math.max(0, math.floor(due - now + 0.5))
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


def body(row: Any) -> bytes:
    """An infer request of one row; each number is the shortest text that gives the float32 back."""
    data = ",".join(str(value) for value in row)
    return (f'{{"inputs":[{{"name":"input","shape":[1,{FEATURES}],"datatype":"FP32","data":[{data}]}}]}}').encode()


def infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def write_script(name: str, path: str, bodies: Sequence[bytes], *, headers: Mapping[str, str] | None = None,
                 rate: float | None = None) -> Path:
    """A wrk script that posts ``bodies`` in turn.

    Args:
        headers: in place of a content type of JSON.
        rate: requests a second over all connections; without it each connection sends when it has its answer.
    """
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    script, data = SCRIPTS / f"{name}.lua", SCRIPTS / f"{name}.bodies"
    data.write_bytes(b"".join(bodies))
    given = headers or {"Content-Type": "application/json"}
    script.write_text(SCRIPT % {
        "path": json.dumps(path), "file": json.dumps(str(data)), "lengths": ",".join(str(len(body)) for body in bodies),
        "headers": ", ".join(f"[{json.dumps(key)}] = {json.dumps(value)}" for key, value in given.items()),
        "pacing": PACING % {"interval": 1000 / rate} if rate else "",
    })
    return script


def infer_script(model: str, *, rate: float | None = None) -> Path:
    """One row of 32 features a request as Open Inference Protocol JSON, 512 different ones in turn."""
    name = f"{model}-{rate:.0f}" if rate else model
    return write_script(name, infer_path(model), [body(row) for row in rows()], rate=rate)


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
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        except subprocess.TimeoutExpired:
            raise ServerError("wrk did not end") from None
    line = next((line for line in finished.stdout.splitlines() if line.startswith("RESULT ")), None)
    if finished.returncode or line is None:
        raise ServerError(f"wrk failed: {finished.stdout}{finished.stderr}")
    seen = json.loads(line.removeprefix("RESULT "))
    failed = sum(seen[kind] for kind in ("connect", "read", "write", "status", "timeout"))
    return Window(seen["requests"], seen["duration_us"] / 1e6, seen["p50_us"], seen["p99_us"], failed)
