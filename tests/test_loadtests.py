"""The load tests' own parts: what the recorder measures, what a targets file means, what verify.py concludes."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastinfer

ROOT = Path(__file__).resolve().parent.parent
LOADTESTS = ROOT / "loadtests"
PACKAGE = Path(fastinfer.__file__).resolve().parent.parent
# Locust has an environment of its own (`make test` makes it); a developer may have all in one.
LOCUST = next((str(path) for path in (ROOT / ".venv-load" / "bin" / "python",) if path.exists()), sys.executable)
sys.path.insert(0, str(LOADTESTS))

import payloads  # noqa: E402
import targets  # noqa: E402
from recorder import Histogram, Recorder, Recording, Series  # noqa: E402
from schedule import Arrivals  # noqa: E402
from targets import Verdict  # noqa: E402

milliseconds = st.floats(0, 150_000, allow_nan=False) | st.floats(0, 12) | st.integers(0, 100).map(float)


def histogram_of(times: list[float]) -> Histogram:
    histogram = Histogram()
    for value in times:
        histogram.add(value)
    return histogram


@settings(deadline=None, max_examples=200)
@given(st.lists(milliseconds, min_size=1, max_size=300), st.floats(0, 100))
def test_percentiles_follow_numpy_within_the_resolution(times: list[float], percent: float) -> None:
    expected = float(np.percentile(times, percent, method="inverted_cdf"))
    measured = histogram_of(times).percentile(percent)
    assert expected <= measured + 1e-9
    assert measured <= expected + max(0.01, expected / 512) + 1e-9


@settings(deadline=None, max_examples=50)
@given(st.lists(milliseconds, max_size=50), st.lists(milliseconds, max_size=50))
def test_merging_equals_recording_all_in_one(left: list[float], right: list[float]) -> None:
    merged = histogram_of(left)
    merged.merge(Histogram.from_dict(json.loads(json.dumps(histogram_of(right).to_dict()))))
    assert merged.to_dict() == histogram_of(left + right).to_dict()
    assert merged.count == len(left) + len(right)


def test_steps_are_ten_microseconds_where_locust_rounds_to_whole_milliseconds() -> None:
    histogram = histogram_of([1.204, 1.216])
    assert histogram.percentile(50) == pytest.approx(1.21)
    assert histogram.percentile(100) == 1.216


def test_an_empty_histogram_has_no_percentile() -> None:
    assert math.isnan(Histogram().percentile(50))


def test_times_past_the_last_bucket_are_still_counted() -> None:
    assert histogram_of([1e9]).percentile(50) >= 167_000


class Hook(list[Callable[..., None]]):
    add_listener = list.append

    def fire(self, **event: Any) -> None:
        for listener in self:
            listener(**event)


HOOKS = ("test_start", "spawning_complete", "test_stopping", "request", "report_to_master", "worker_report")


def environment() -> SimpleNamespace:
    return SimpleNamespace(events=SimpleNamespace(**{name: Hook() for name in HOOKS}))


def request(users: str, response_time: float, exception: Exception | None = None, **context: Any) -> dict[str, Any]:
    return {"request_type": "POST", "name": users, "response_time": response_time, "exception": exception,
            "context": {"user": users, **context}, "response": None, "start_time": 0.0}


def test_the_recorder_leaves_out_the_start_the_warm_up_and_the_stop() -> None:
    stage = environment()
    recorder = Recorder(stage, warmup=0.05)
    stage.events.test_start.fire(environment=stage)
    stage.events.request.fire(**request("records", 1.0))
    stage.events.spawning_complete.fire(user_count=1)
    stage.events.request.fire(**request("records", 2.0))
    time.sleep(0.06)
    stage.events.request.fire(**request("records", 3.0))
    stage.events.test_stopping.fire(environment=stage)
    stage.events.request.fire(**request("records", 4.0))
    assert recorder.recording.all().latency.to_dict()["counts"] == {"300": 1}
    assert 0.005 < recorder.recording.seconds < 5


def test_a_late_request_counts_from_when_it_was_due_and_a_failure_by_its_text() -> None:
    stage = environment()
    recorder = Recorder(stage)
    stage.events.test_start.fire(environment=stage)
    stage.events.spawning_complete.fire(user_count=1)
    stage.events.request.fire(**request("oip_json", 1.0, overdue_ms=4.0, lag_ms=0.5))
    stage.events.request.fire(**request("oip_json", 9.0, ValueError("503")))
    series = recorder.recording.series["oip_json"]
    assert (series.latency.count, series.failures) == (1, 1)
    assert series.latency.largest == 5.0
    assert recorder.recording.lag.largest == 0.5
    assert recorder.recording.errors == {"oip_json: 503": 1}


def test_workers_reports_add_up_at_the_master() -> None:
    worker, master = environment(), environment()
    Recorder(worker)
    total = Recorder(master)
    for stage in (worker, master):
        stage.events.test_start.fire(environment=stage)
        stage.events.spawning_complete.fire(user_count=1)
    for value in (1.0, 2.0, 3.0):
        data: dict[str, Any] = {}
        worker.events.request.fire(**request("records", value))
        worker.events.report_to_master.fire(client_id="one", data=data)
        master.events.worker_report.fire(client_id="one", data=json.loads(json.dumps(data)))
    assert total.recording.series["records"].latency.count == 3
    assert total.recording.seconds > 0


def test_arrivals_keep_their_rate_and_blame_who_was_late() -> None:
    slept: list[float] = []
    arrivals = Arrivals(1000.0, slept.append, seed=1)
    turns = [arrivals.wait() for _ in range(2000)]
    assert sum(slept) / len(slept) > 0.1  # nobody really sleeps here, so the schedule runs ahead
    assert all(turn.lag_ms <= 0.1 for turn in turns[1:])
    late = Arrivals(1000.0, slept.append, seed=1)
    time.sleep(0.05)
    turn = late.wait()
    assert turn.overdue_ms > 30
    assert turn.lag_ms < 10


def test_the_schedule_is_a_poisson_process() -> None:
    clock: list[float] = []
    arrivals = Arrivals(100.0, clock.append, seed=2)
    start = time.perf_counter()
    for _ in range(5000):
        arrivals.wait()
    assert arrivals._due - start == pytest.approx(50, rel=0.05)


def recording(times: list[float], *, failures: int = 0, seconds: float = 1.0, **other: Any) -> Recording:
    return Recording(seconds, series={"records": Series(histogram_of(times), failures)}, **other)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "targets.toml"
    path.write_text(text)
    return path


def judged(tmp_path: Path, text: str, measured: Recording, capacity: float | None = 2000.0) -> targets.Judgement:
    return targets.judge(targets.load(written(tmp_path, text)), measured, capacity)


ALL = "[steady.targets.all]\n"


@pytest.mark.parametrize(("text", "verdict", "named"), [
    (ALL + "p50_ms = 3\np99_ms = 3\nfailures = 0\nthroughput = 0.5", Verdict.MET, "met"),
    (ALL + "p50_ms = 1", Verdict.MISSED, "all p50_ms is 2.00, the limit is 1"),
    (ALL + "throughput = 0.51", Verdict.MISSED, "all throughput"),
    (ALL + "p99.9_ms = 3", Verdict.INVALID, "too few samples, 10000 are needed"),
    (ALL + "p99.9_ms = 3\np50_ms = 1", Verdict.MISSED, "p50_ms"),
    ("[steady.targets.oip_json]\np50_ms = 9", Verdict.INVALID, "oip_json p50_ms"),
    ("[steady.targets.oip_json]\nfailures = 0", Verdict.INVALID, "oip_json failures"),
])
def test_verdicts(tmp_path: Path, text: str, verdict: Verdict, named: str) -> None:
    text = text.replace("p99.9_ms", '"p99.9_ms"')
    judgement = judged(tmp_path, text, recording([2.0] * 1000))
    assert judgement.verdict == verdict
    assert named in targets.conclusion(judgement)
    assert all(line.target.name in targets.table(judgement) for line in judgement.lines)


def test_one_failure_in_a_thousand_misses_a_target_of_none(tmp_path: Path) -> None:
    judgement = judged(tmp_path, ALL + "failures = 0", recording([2.0] * 999, failures=1))
    assert judgement.verdict == Verdict.MISSED
    assert judgement.lines[0].measured == 0.001


@pytest.mark.parametrize("other", [
    {"generator_cpu": 0.95}, {"lag": histogram_of([30.0] * 100)},
])
def test_a_generator_that_measured_itself_makes_the_run_invalid(tmp_path: Path, other: dict[str, Any]) -> None:
    judgement = judged(tmp_path, ALL + "p50_ms = 3", recording([2.0] * 100, **other))
    assert judgement.verdict == Verdict.INVALID
    assert "the generator" in targets.conclusion(judgement)


@pytest.mark.parametrize(("share", "limit", "expected"), [
    (0.2, 3, Verdict.MET), (0.2, 1, Verdict.MISSED), (0.5, 3, Verdict.MET), (0.5, 1, Verdict.INVALID),
])
def test_on_a_machine_that_others_use_a_miss_says_nothing(tmp_path: Path, share: float, limit: int,
                                                          expected: Verdict) -> None:
    wanted = targets.load(written(tmp_path, ALL + f"p50_ms = {limit}"))
    server = targets.judge(wanted, recording([2.0] * 100), 1.0, server_waited=share)
    generator = targets.judge(wanted, recording([2.0] * 100, generator_waited=share), 1.0)
    assert server.verdict == generator.verdict == expected
    assert ("others had the server's core" in targets.conclusion(server)) == (expected is Verdict.INVALID)


def test_a_run_without_requests_is_invalid(tmp_path: Path) -> None:
    assert judged(tmp_path, "", Recording(1.0)).verdict == Verdict.INVALID


def test_without_a_capacity_the_throughput_is_said_to_be_unjudged(tmp_path: Path) -> None:
    judgement = judged(tmp_path, ALL + "throughput = 0.9", recording([2.0] * 100), capacity=None)
    assert judgement.verdict == Verdict.MET
    assert "not judged" in targets.table(judgement)


@pytest.mark.parametrize(("text", "says"), [
    ("[steady]\nsecond = 3", "'steady.second'; did you mean 'seconds'?"),
    ("[stedy]\nseconds = 3", "did you mean 'steady'?"),
    (ALL + "p50 = 3", "did you mean 'p50_ms'?"),
    ("[steady.targets.recods]\np50_ms = 3", "did you mean 'records'?"),
    ("[steady.targets.records]\nthroughput = 3", "unknown key 'steady.targets.records.throughput'"),
    (ALL + "p50_ms = 'fast'", "must be a number"),
    (ALL + "p50_ms = -1", "must be a number"),
    ("[capacity]\nusers = 1.5", "must be a whole number"),
    ("[capacity]\nusers = 0", "must be a whole number"),
    ("capacity = 3", "must be a table"),
    ("[capacity", "targets.toml"),
])
def test_a_targets_file_with_a_fault_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(targets.TargetsError) as caught:
        targets.load(written(tmp_path, text))
    assert says in str(caught.value)


def test_the_shipped_targets_are_sound_and_judge_every_user_class() -> None:
    shipped = targets.load(LOADTESTS / "targets.toml")
    assert {target.users for target in shipped.targets} == set(targets.USERS)
    answers = shipped.steady.seconds * shipped.steady.load * 300  # on a machine where the pair carries 300 a second
    assert answers >= 10 / (1 - 0.99)
    assert next(t.limit for t in shipped.targets if t.name == "throughput") < shipped.steady.load


METADATA = {
    "name": "credit",
    "inputs": [
        {"name": "age", "datatype": "FP64", "shape": [-1, 1]}, {"name": "job", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "years", "datatype": "INT64", "shape": [-1, 1]},
        {"name": "x", "datatype": "FP32", "shape": [-1, 2, 2]},
        {"name": "ok", "datatype": "BOOL", "shape": [-1, 1]},
    ],
}
OPENAPI = {
    "paths": {"/v1/models/credit:predict": {"post": {"requestBody": {"content": {"application/json": {
        "example": {"records": [{"age": 39.0, "job": "clerk", "years": 7, "ok": True}]}}}}}}},
    "components": {"schemas": {"credit-record": {"properties": {
        "age": {"type": "number"}, "job": {"type": "string", "x-known-values": ["clerk", "smith"]}}}}},
}


def test_rows_vary_around_the_example_of_the_server() -> None:
    inputs = payloads.tensors(METADATA)
    rows = payloads.generated_rows(inputs, payloads.hints(METADATA, OPENAPI))
    assert len({json.dumps(row) for row in rows}) == len(rows) >= 512
    assert {row["job"] for row in rows} == {"clerk", "smith"}
    assert all(19 <= row["age"] <= 59 and 3 <= row["years"] <= 7 for row in rows)


@pytest.mark.parametrize("openapi", [None, [], {"paths": 3, "components": {"schemas": []}}, {"paths": {}}])
def test_a_server_that_says_nothing_gets_random_rows(openapi: Any) -> None:
    inputs = payloads.tensors(METADATA)
    rows = payloads.generated_rows(inputs, payloads.hints(METADATA, openapi))
    assert len({row["job"] for row in rows}) > 100
    assert len(rows[0]["x"]) == 4


def test_the_example_may_stand_in_the_properties() -> None:
    named = METADATA | {"properties": {"example": '{"age": 39.0}'}}
    assert payloads.hints(named, None).example == {"age": 39.0}


def test_bodies_hold_the_same_values_in_all_three_forms() -> None:
    inputs = payloads.tensors(METADATA)
    rows = payloads.generated_rows(inputs, payloads.hints(METADATA, OPENAPI), count=3)
    rows[1]["age"] = None
    named = json.loads(payloads.records("credit", inputs, rows).data)
    assert named == {"records": rows}
    plain = payloads.oip_json("credit", inputs, rows)
    assert plain.path == "/v2/models/credit/infer"
    binary = payloads.oip_binary("credit", inputs, rows)
    head = int(binary.headers["Inference-Header-Content-Length"])
    rest = binary.data[head:]
    dtypes = {"FP64": "<f8", "INT64": "<i8", "FP32": "<f4", "BOOL": "?"}
    pairs = zip(json.loads(plain.data)["inputs"], json.loads(binary.data[:head])["inputs"], strict=True)
    for text, packed in pairs:
        assert text["shape"] == packed["shape"]
        size = packed["parameters"]["binary_data_size"]
        blob, rest = rest[:size], rest[size:]
        if text["datatype"] == "BYTES":
            assert blob == b"".join(struct.pack("<I", len(value)) + value.encode() for value in text["data"])
            continue
        values = np.array([math.nan if value is None else value for value in text["data"]], dtypes[text["datatype"]])
        assert blob == values.tobytes()
        assert math.prod(text["shape"]) == len(values)
    assert not rest


@pytest.mark.parametrize("datatype", [*payloads.PACKING, "BF16"])
def test_every_datatype_is_packed_at_its_size(datatype: str) -> None:
    values = [payloads.random_scalar(datatype, random.Random(seed)) for seed in range(5)]
    size = {"BOOL": 1, "BF16": 2}.get(datatype) or int("".join(filter(str.isdigit, datatype))) // 8
    assert len(payloads.packed(datatype, values)) == 5 * size


@pytest.mark.parametrize(("shape", "value", "expected"), [
    ([-1, 3], [1.0, 2.0, 3.0], [1, 3]),
    ([-1, -1], [1.0, 2.0], [1, 2]),
    ([-1, -1, 2], [[1.0, 2.0], [3.0, 4.0]], [1, 2, 2]),
    ([2, 2], [1.0, 2.0, 3.0, 4.0], [2, 2]),
    ([-1], 5.0, [1]),
])
def test_open_dimensions_are_filled_from_the_row(shape: list[int], value: Any, expected: list[int]) -> None:
    inputs = payloads.tensors({"inputs": [{"name": "x", "datatype": "FP32", "shape": shape}]})
    body = json.loads(payloads.oip_json("m", inputs, [{"x": value}]).data)
    assert body["inputs"][0]["shape"] == expected


@pytest.mark.parametrize(("shape", "rows"), [
    ([-1, 3], [{"x": [1.0]}]), ([-1, 3], [{"y": 1.0}]), ([2], [{"x": [1.0, 2.0]}, {"x": [1.0, 2.0]}]),
])
def test_rows_that_do_not_fit_are_refused(shape: list[int], rows: list[dict[str, Any]]) -> None:
    inputs = payloads.tensors({"inputs": [{"name": "x", "datatype": "FP32", "shape": shape}]})
    with pytest.raises(payloads.PayloadError):
        payloads.oip_json("m", inputs, rows)


def test_a_payload_file_names_the_line_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text('{"x": 1}\n\n{"x": 2}\n')
    assert payloads.read_rows(path) == [{"x": 1}, {"x": 2}]
    path.write_text('{"x": 1}\n[2]\n')
    with pytest.raises(payloads.PayloadError, match=":2:"):
        payloads.read_rows(path)


# -- whole runs: real Locust, in processes of its own, since gevent patches the one that it is in --------------------
LAX = "[validity]\ngenerator_cpu = 99\nwaited = 99\nlag_p99_ms = 1e6\n"  # a busy machine must not fail a test
SHORT = "[capacity]\nusers = 4\nwarmup = 0.5\nseconds = 1.5\n[steady]\nusers = 8\nwarmup = 0.5\nseconds = 2.5\n"
EVERY_CLASS = "".join(f"[steady.targets.{users}]\np50_ms = 5000\nfailures = 0\n" for users in targets.USERS)


def environ() -> dict[str, str]:
    """With the source tree on the path, where that is what is tested and not an installed package."""
    paths = [str(PACKAGE)] if PACKAGE == ROOT else []
    joined = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | ({"PYTHONPATH": joined} if joined else {})


def start_verify(tmp_path: Path, text: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(LOADTESTS / "verify.py"), "--targets", str(written(tmp_path, text)),
               "--results", str(tmp_path / "results"), "--locust-python", LOCUST, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ())


def verify(tmp_path: Path, text: str, *options: str) -> tuple[int, str]:
    process = start_verify(tmp_path, text, *options)
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


def wait_for_load(process: subprocess.Popen[str], tmp_path: Path) -> list[int]:
    """The pids of the server and of Locust, once its users send."""
    log = tmp_path / "results" / "capacity.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "All users spawned" in log.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(found) == 2
    return [int(pid) for pid in found]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    onnx_models.affine(tmp_path / "models" / "affine" / "1" / "model.onnx")
    return tmp_path / "models"


class SlowHandler(BaseHTTPRequestHandler):
    """An Open Inference server, barely, that takes 60 ms for an answer and has no records."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    metadata = {"name": "slow", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}  # noqa: RUF012

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        known = {"/v2/models/slow": self.metadata, "/v2/health/ready": {"ready": True}}
        self.answer(200 if self.path in known else 404, known.get(self.path))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v2/models/slow/infer":
            time.sleep(0.06)
            return self.answer(200, {"outputs": []})
        return self.answer(404, {"error": "no such path"})

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def slow_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_keeps_up_meets_its_targets_and_is_stopped(tmp_path: Path, models: Path) -> None:
    text = LAX + SHORT + EVERY_CLASS.replace("failures = 0\n", "failures = 0\nthroughput = 0.1\n", 1)
    code, output = verify(tmp_path, text, "--model-repository", str(models))
    assert code == 0, output
    assert "met: every target" in output
    measured = Recording.load(tmp_path / "results" / "steady.json")
    assert set(measured.series) == {"records", "oip_json", "oip_binary"}
    assert not measured.errors
    assert "drained" in (tmp_path / "results" / "server.log").read_text()


def test_a_slow_server_misses_and_the_target_is_named(tmp_path: Path, slow_server: str) -> None:
    text = LAX + SHORT + ALL + "p50_ms = 20\nfailures = 0"
    code, output = verify(tmp_path, text, "--url", slow_server, "--model", "slow")
    assert code == 1, output
    assert "missed: all p50_ms is" in output.splitlines()[-1]


def test_the_stock_command_judges_too(tmp_path: Path, slow_server: str) -> None:
    command = [LOCUST, "-m", "locust", "-f", str(LOADTESTS / "locustfile.py"), "--host", slow_server, "--model",
               "slow", "--headless", "-u", "4", "-r", "4", "-t", "4s", "--tags", "oip_json", "--targets",
               str(written(tmp_path, LAX + ALL + "p50_ms = 5000\n[steady.targets.oip_json]\nfailures = 0"))]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert "met: every target" in finished.stdout
    assert "oip_binary" not in finished.stdout


def test_a_server_that_dies_under_load_makes_the_run_invalid(tmp_path: Path, models: Path) -> None:
    process = start_verify(tmp_path, LAX + SHORT + EVERY_CLASS, "--model-repository", str(models))
    server, _ = wait_for_load(process, tmp_path)
    os.kill(server, signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2, output
    assert "the server ended with -9" in output


def test_a_terminated_run_leaves_no_process_behind(tmp_path: Path, models: Path) -> None:
    process = start_verify(tmp_path, LAX + SHORT + EVERY_CLASS, "--model-repository", str(models))
    started = wait_for_load(process, tmp_path)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


@pytest.mark.parametrize(("text", "options", "says"), [
    ("[steady]\nsecnds = 1", (), "did you mean 'seconds'?"),
    (SHORT + EVERY_CLASS, ("--model", "other"), "/v2/models/other: status 404"),
])
def test_a_run_that_says_nothing_is_invalid(tmp_path: Path, models: Path, text: str, options: tuple[str, ...],
                                            says: str) -> None:
    code, output = verify(tmp_path, text, "--model-repository", str(models), *options)
    assert code == 2, output
    assert says in output


def test_a_server_that_does_not_start_is_invalid_and_its_log_is_shown(tmp_path: Path) -> None:
    code, output = verify(tmp_path, SHORT, "--model-repository", str(tmp_path / "nowhere"))
    assert code == 2
    assert "nowhere" in output
