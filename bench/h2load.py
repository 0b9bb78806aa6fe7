"""The client for gRPC: h2load of nghttp2, which posts one message over and over, so many at a time.

It sees HTTP's status, not gRPC's: whoever uses it must count the good answers at the server.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
from process import ServerError, pinned
from wrk import Window

FRAME = 5  # bytes before a message: whether it is compressed, and its length
COUNTS = re.compile(r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, "
                    r"(\d+) timeout")


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(FRAME - 1, "big") + message


def drive(port: int, path: str, body: Path, *, connections: int, streams: int, seconds: float, core: int) -> Window:
    """One window of load, from the client's core: ``streams`` calls at a time on each connection.

    Raises:
        ServerError: h2load is missing or failed.
    """
    program = shutil.which("h2load")
    if program is None:
        raise ServerError("h2load is not installed (Debian: apt-get install nghttp2-client)")
    log = body.with_suffix(".log")
    log.unlink(missing_ok=True)
    command = [program, f"-D{seconds:g}", f"-c{connections}", f"-m{streams}", "-t1", f"--log-file={log}",
               "-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}{path}"]
    with pinned(core):
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        except subprocess.TimeoutExpired:
            raise ServerError("h2load did not end") from None
    counts = COUNTS.search(finished.stdout)
    if finished.returncode or counts is None:
        raise ServerError(f"h2load failed: {finished.stdout}{finished.stderr}")
    done, *failed = (int(count) for count in counts.groups())
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    times = [int(line[2]) for line in lines if line[1] == "200"]
    p50, p99 = np.percentile(times, [50, 99]) if times else (0.0, 0.0)
    return Window(done, seconds, float(p50), float(p99), sum(failed))
