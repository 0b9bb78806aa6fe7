"""The load tests' own parts: what the recorder measures, what a targets file means, what verify.py concludes."""

from __future__ import annotations

import json
import math
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LOADTESTS = Path(__file__).resolve().parent.parent / "loadtests"
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
    {"generator_cpu": 0.95}, {"generator_cpu": 0.5, "generator_waited": 0.45}, {"lag": histogram_of([30.0] * 100)},
])
def test_a_generator_that_measured_itself_makes_the_run_invalid(tmp_path: Path, other: dict[str, Any]) -> None:
    judgement = judged(tmp_path, ALL + "p50_ms = 3", recording([2.0] * 100, **other))
    assert judgement.verdict == Verdict.INVALID
    assert "the generator" in targets.conclusion(judgement)


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
    "properties": {"example": '{"age": 39.0, "job": "clerk", "years": 7, "ok": true}'},
}


def test_rows_vary_around_the_example_of_the_server() -> None:
    inputs = payloads.tensors(METADATA)
    rows = payloads.generated_rows(inputs, payloads.example(METADATA))
    assert len({json.dumps(row) for row in rows}) == len(rows) >= 512
    assert {row["job"] for row in rows} == {"clerk"}
    assert all(19 <= row["age"] <= 59 and 3 <= row["years"] <= 7 for row in rows)


def test_bodies_hold_the_same_values_in_all_three_forms() -> None:
    inputs = payloads.tensors(METADATA)
    rows = payloads.generated_rows(inputs, payloads.example(METADATA), count=3)
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
