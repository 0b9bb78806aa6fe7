"""A client that sends at a fixed rate, whatever comes back, and counts from when a request was due.

    python bench/latency.py PORT RATE SECONDS < REQUEST

It prints the latencies in microseconds, and how many answers were not 200, as JSON. On a core of its own, before all
others on it where that is allowed, so that only the server's delays are counted.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from process import ServerError

CONNECTIONS = 16
SETTLES = 0.3  # seconds at the start that do not count
PRIORITY = 50


class Window(NamedTuple):
    """Latencies in microseconds, and the requests that failed."""

    latencies: Any
    failed: int

    def over(self, milliseconds: float) -> float:
        """The share of requests that took longer."""
        return float((self.latencies > milliseconds * 1000).mean())

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, share))


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """As it goes over the wire."""
    return (f"{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n").encode() + body


def drive(port: int, asked: bytes, *, rate: float, seconds: float, core: int) -> Window:
    """One window of load, from the client's core.

    Raises:
        ServerError: the client failed.
    """

    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))

    command = [sys.executable, __file__, str(port), str(rate), str(seconds)]
    finished = subprocess.run(command, input=asked, capture_output=True, preexec_fn=prepare, timeout=seconds + 60)
    if finished.returncode:
        raise ServerError(f"the client failed: {finished.stderr.decode().strip().splitlines()[-1]}")
    told = json.loads(finished.stdout)
    return Window(np.array(told["latencies"]), told["failed"])


def send(port: int, asked: bytes, rate: float, seconds: float) -> tuple[list[int], int]:
    """Latencies in microseconds from the moments that requests were due, and how many failed."""
    gc.disable()
    free = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    for each in free:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting: dict[socket.socket, float] = {}  # since when their request was due
    read: dict[socket.socket, bytes] = dict.fromkeys(free, b"")
    latencies: list[int] = []
    failed = sent = 0
    began = time.perf_counter()
    counts, ends = began + SETTLES, began + SETTLES + seconds
    while (now := time.perf_counter()) < ends:
        due = began + sent / rate
        while due <= now and free:
            connection = free.pop()
            connection.sendall(asked)
            waiting[connection] = due
            sent += 1
            due = began + sent / rate
        pause = max(due - time.perf_counter(), 0.0) if free else 1.0
        for connection in select.select(list(waiting), [], [], pause)[0]:
            data = connection.recv(1 << 16)
            answer = read[connection] + data
            head, _, body = answer.partition(b"\r\n\r\n")
            size = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            if data and len(body) < int(size or 0) + (b"\r\n\r\n" not in answer):
                read[connection] = answer
                continue
            read[connection] = b""
            since = waiting.pop(connection)
            free.append(connection)
            failed += answer[9:12] != b"200"
            if since >= counts:
                latencies.append(int((time.perf_counter() - since) * 1e6))
    return latencies, failed


if __name__ == "__main__":
    found, wrong = send(int(sys.argv[1]), sys.stdin.buffer.read(), float(sys.argv[2]), float(sys.argv[3]))
    print(json.dumps({"latencies": found, "failed": wrong}))
