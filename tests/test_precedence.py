"""Which threads go before which, as the kernel has it; nothing here depends on how fast anything is."""

from __future__ import annotations

import json
import os
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
from conftest import ServerProcess, Start, post, read_answer

from fastinfer import precedence

PYTHON = """
    import os, threading
    import numpy as np

    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    class Model:
        inputs = {"x": ("INT64", (-1, 1))}
        outputs = {"nice": ("INT64", (-1, 2))}

        def __init__(self, folder):
            self.made = nice()

        def predict(self, inputs):
            answer = [self.made, nice()]
            return {"nice": np.array([answer] * len(inputs["x"]), np.int64)}
"""


def niceness(server: ServerProcess) -> dict[int, int]:
    """Of each thread."""
    threads = Path(f"/proc/{server.process.pid}/task")
    return {
        int(each.name): int((each / "stat").read_text().rpartition(")")[2].split()[16]) for each in threads.iterdir()
    }  # fmt: skip


def in_thread(work: Callable[[], Any]) -> Any:
    """What becomes of a thread that ends then."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join()
    return answers[0]


def own() -> int:
    """Niceness of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def server(tmp_path: Path, start_server: Start) -> ServerProcess:
    onnx_models.affine(tmp_path / "m" / "affine" / "1" / "model.onnx")
    (tmp_path / "m" / "affine" / "model.toml").write_text("inline_budget_us = 0\n")
    (tmp_path / "m" / "told" / "1").mkdir(parents=True)
    (tmp_path / "m" / "told" / "1" / "model.py").write_text(textwrap.dedent(PYTHON))
    return start_server(
        tmp_path / "m", "--model-control", "explicit", "--load-model", "affine", "--allow-python-models"
    ).wait_until_ready()


def ask(server: ServerProcess, path: str, document: Any) -> Any:
    with server.connect() as connection:
        connection.sendall(post(path, json.dumps(document).encode()))
        answer = read_answer(connection)
    assert answer.status == 200, answer.body
    return None if not answer.body else answer.json()


def test_only_who_computes_without_the_interpreters_lock_stands_behind_the_loop(server: ServerProcess) -> None:
    loop = server.process.pid
    own_nice = os.getpriority(os.PRIO_PROCESS, 0)
    behind = min(own_nice + precedence.BEHIND, 19)
    rows = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    ask(server, "/v2/models/affine/infer", rows)
    nice = niceness(server)
    assert nice[loop] == own_nice
    assert sum(value == behind for value in nice.values()) == 1  # the run's thread

    ask(server, "/v2/repository/models/told/load", {})
    one = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [1]}]}
    made, runs = ask(server, "/v2/models/told/infer", one)["outputs"][0]["data"]
    assert (made, runs) == (own_nice, own_nice)  # a Python model holds what the loop waits for
    assert server.process.poll() is None


def test_a_thread_goes_behind_once() -> None:
    def twice() -> Any:
        precedence.behind()
        precedence.behind()
        return own()

    before = own()
    assert in_thread(twice) == min(before + precedence.BEHIND, 19)
    assert own() == before


def test_a_policy_that_somebody_chose_stays() -> None:
    def idle() -> Any:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        precedence.behind()
        return os.sched_getscheduler(0), own()

    assert in_thread(idle) == (os.SCHED_IDLE, own())


def test_a_system_that_does_not_allow_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)

    def tried() -> Any:
        precedence.behind()
        return own()

    assert in_thread(tried) == own()


def test_the_wait_for_a_core_only_grows() -> None:
    before = precedence.waited_ns()
    assert before >= 0
    np.ones((64, 64)) @ np.ones((64, 64))
    assert precedence.waited_ns() >= before
