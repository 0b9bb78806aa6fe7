"""The load tests' own parts: what the recorder measures, what a targets file means, what verify.py concludes."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime import InferenceSession

import fastinfer

ROOT = Path(__file__).resolve().parent.parent
LOADTESTS = ROOT / "loadtests"
PACKAGE = Path(fastinfer.__file__).resolve().parent.parent
# Locust has an environment of its own (`make test` makes it); a developer may have all in one.
LOCUST = next((str(path) for path in (ROOT / ".venv-load" / "bin" / "python",) if path.exists()), sys.executable)
sys.path.insert(0, str(LOADTESTS))

import payloads  # noqa: E402
import reports  # noqa: E402
import targets  # noqa: E402
import verify as verify_module  # noqa: E402
from recorder import Bin, Histogram, Recorder, Recording, Series, bucket  # noqa: E402
from schedule import Arrivals, Clock, Phase, Timetable  # noqa: E402
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


WARM = [Phase("warm-up", 0.05, measured=False), Phase("run")]


def test_the_recorder_leaves_out_the_start_the_warm_up_and_the_stop() -> None:
    stage = environment()
    recorder = Recorder(stage)
    recorder.timetables = {"": Timetable(WARM)}
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
    assert {number: piece.requests for number, piece in recorder.recording.timeline.items()} == {0: 2}


def test_a_request_belongs_to_the_phase_in_which_it_was_due() -> None:
    stage = environment()
    recorder = Recorder(stage)
    clock = Clock()
    recorder.timetables = {
        "": Timetable([Phase("warm-up", 1.0, 9.0, measured=False), Phase("before", 1.0, 9.0), Phase("after", 1.0, 9.0)],
                      clock),
        "greedy": Timetable([Phase("quiet", 1.0, 0.0, measured=False), Phase("greedy", 2.0, 90.0)], clock),
    }
    clock.begin()
    stage.events.test_start.fire(environment=stage)
    for due, took, more in [(0.5, 1.0, {}), (1.5, 2.0, {}), (2.5, 3.0, {}), (1.9, 4.0, {}), (3.5, 5.0, {}),
                            (1.5, 6.0, {"group": "greedy"}), (0.5, 7.0, {"group": "greedy"})]:
        stage.events.request.fire(**request("records", took, due_s=due, overdue_ms=0.0, lag_ms=0.0, **more))
    phases = {name: series.latency.to_dict()["counts"] for name, series in recorder.recording.phases.items()}
    assert phases == {"before": {"200": 1, "400": 1}, "after": {"300": 1}, "greedy": {"600": 1}}
    assert recorder.recording.marks == {"warm-up": 0.0, "before": 1.0, "after": 2.0}


def test_a_refusal_is_no_answer_and_no_error() -> None:
    stage = environment()
    recorder = Recorder(stage)
    stage.events.test_start.fire(environment=stage)
    stage.events.spawning_complete.fire(user_count=1)
    for name in ("yes", "yes", ""):
        stage.events.request.fire(**request("oip_json", 2.0, ValueError("503"), retry_after=bool(name)))
    stage.events.request.fire(**request("oip_json", 3.0))
    stage.events.test_stopping.fire(environment=stage)
    copied = Recording.from_dict(json.loads(json.dumps(recorder.recording.to_dict())))
    assert copied == recorder.recording or copied.to_dict() == recorder.recording.to_dict()
    series = copied.all()
    assert (series.latency.count, series.refusals.count, series.silent, series.failures) == (1, 3, 1, 0)
    assert not copied.errors


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
    arrivals = Arrivals(steady(1000.0), slept.append, seed=1)
    turns = [arrivals.wait() for _ in range(2000)]
    assert sum(slept) / len(slept) > 0.1  # nobody really sleeps here, so the schedule runs ahead
    assert all(turn is not None and turn.lag_ms <= 0.1 for turn in turns[1:])
    timetable = steady(1000.0)
    timetable.clock.begin()
    late = Arrivals(timetable, slept.append, seed=1)
    time.sleep(0.05)
    turn = late.wait()
    assert turn is not None
    assert turn.overdue_ms > 30
    assert turn.lag_ms < 10


def steady(rate: float) -> Timetable:
    return Timetable([Phase("steady", rate=rate)])


def due_times(timetable: Timetable, *, share: float = 1.0, seed: int = 2) -> list[float]:
    arrivals = Arrivals(timetable, lambda _: None, share=share, seed=seed)
    return [turn.due_s for turn in iter(arrivals.wait, None)]


def test_the_schedule_is_a_poisson_process() -> None:
    due = np.array(due_times(Timetable([Phase("steady", 50.0, 100.0)])))
    assert len(due) == pytest.approx(5000, rel=0.05)
    gaps = np.diff(due)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as the exponential distribution has it
    assert (gaps >= 0).all()
    halves = [len(due_times(Timetable([Phase("steady", 50.0, 100.0)]), share=0.5, seed=seed)) for seed in (3, 4)]
    assert sum(halves) == pytest.approx(5000, rel=0.05)


def test_the_schedule_follows_steps_pauses_and_slopes() -> None:
    phases = [Phase("quiet", 10.0, 50.0), Phase("none", 5.0, 0.0), Phase("flood", 10.0, 500.0),
              Phase("climb", 20.0, 0.0, 200.0), Phase("fall", 20.0, 200.0, 0.0)]
    counts, edges = np.histogram(due_times(Timetable(phases)), bins=[0, 10, 15, 25, 35, 45, 55, 65])
    expected = np.array([500, 0, 5000, 500, 1500, 1500, 500])
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all(), counts
    assert edges[-1] == sum(phase.seconds for phase in phases)


def test_a_user_keeps_its_turn_while_others_take_theirs() -> None:
    nested: list[Any] = []

    def sleep(_: float) -> None:
        if nested.count(None) < 5:
            nested.append(None)
            nested.append(arrivals.wait())

    arrivals = Arrivals(steady(1.0), sleep, seed=1)
    first = arrivals.wait()
    assert first is not None
    due = [first.due_s, *(turn.due_s for turn in nested if turn is not None)]
    assert len(set(due)) == 6
    assert first.due_s == min(due)


def test_the_end_of_the_schedule_is_said_once_to_each_user() -> None:
    ended: list[int] = []
    slept: list[float] = []
    arrivals = Arrivals(Timetable([Phase("short", 9.0, 1.0)]), slept.append, over=lambda: ended.append(1), seed=1)
    while arrivals.wait() is not None:
        assert not ended
    assert arrivals.wait() is None
    assert len(ended) == 2
    assert slept[-2:] == pytest.approx([9, 9], abs=0.5)  # until the end, whenever the turns were drawn


def recording(times: list[float], *, failures: int = 0, seconds: float = 1.0, **other: Any) -> Recording:
    return Recording(seconds, series={"records": Series(histogram_of(times), failures)}, **other)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "targets.toml"
    path.write_text(text)
    return path


def judged(tmp_path: Path, text: str, measured: Recording, capacity: float | None = 2000.0) -> targets.Judgement:
    wanted = targets.load(written(tmp_path, text))
    return targets.judge(wanted.validity, wanted.courses.get("open-loop", targets.Course()), measured, capacity)


ALL = "[open-loop.targets.all]\n"


@pytest.mark.parametrize(("text", "verdict", "named"), [
    (ALL + "p50_ms = 3\np99_ms = 3\nfailures = 0\nthroughput = 0.5", Verdict.MET, "met"),
    (ALL + "p50_ms = 1", Verdict.MISSED, "all p50_ms is 2.00, the limit is 1"),
    (ALL + "throughput = 0.51", Verdict.MISSED, "all throughput"),
    (ALL + "p99.9_ms = 3", Verdict.INVALID, "too few samples, 10000 are needed"),
    (ALL + "p99.9_ms = 3\np50_ms = 1", Verdict.MISSED, "p50_ms"),
    ("[open-loop.targets.oip_json]\np50_ms = 9", Verdict.INVALID, "oip_json p50_ms"),
    ("[open-loop.targets.oip_json]\nfailures = 0", Verdict.INVALID, "oip_json failures"),
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
    course = wanted.courses["open-loop"]
    server = targets.judge(wanted.validity, course, recording([2.0] * 100), 1.0, server_waited=share)
    generator = targets.judge(wanted.validity, course, recording([2.0] * 100, generator_waited=share), 1.0)
    assert server.verdict == generator.verdict == expected
    assert ("others had the server's core" in targets.conclusion(server)) == (expected is Verdict.INVALID)


def spiked(timeline: dict[int, tuple[int, int, int]], **series: Series) -> Recording:
    """With an ``after`` from the second second on; (in time, late, refused) by quarter of a second."""
    bins = {number: Bin(Counter({bucket(100): good, bucket(30_000): late}), refused)
            for number, (good, late, refused) in timeline.items()}
    return Recording(4.0, phases=dict(series), phase_seconds={"spike": 2.0, "after": 2.0},
                     marks={"spike": 0.0, "after": 2.0}, timeline=bins)


@pytest.mark.parametrize(("timeline", "recovery"), [
    ({7: (0, 10, 90), 8: (100, 0, 0), 9: (100, 0, 0)}, 0.0),
    ({8: (0, 10, 90), 9: (100, 0, 0)}, 0.25),
    ({8: (100, 0, 0), 9: (100, 0, 0), 10: (89, 11, 0), 11: (90, 10, 0)}, 0.75),
    ({8: (0, 10, 0), 15: (0, 0, 1)}, 2.0),
])
def test_recovery_is_the_end_of_the_last_bad_quarter_of_a_second(
        tmp_path: Path, timeline: dict[int, tuple[int, int, int]], recovery: float) -> None:
    text = "[spike]\nslo_ms = 200\ntargets.all.recovery_s = 0.5"
    course = targets.load(written(tmp_path, text)).courses["spike"]
    line = targets.judge(targets.Validity(), course, spiked(timeline), 100.0).lines[0]
    assert line.measured == recovery
    assert line.verdict == (Verdict.MET if recovery <= 0.5 else Verdict.MISSED)


def test_goodput_counts_what_is_in_time_as_a_share_of_the_capacity_and_refusals_are_judged_apart(
        tmp_path: Path) -> None:
    text = ("[overload-x10]\nslo_ms = 200\ntargets.overload = { goodput = 0.9, refusal_p99_ms = 10, silent = 0, "
            "errors = 0, refused = 0.5, p50_ms = 150 }")
    course = targets.load(written(tmp_path, text)).courses["overload-x10"]
    series = Series(histogram_of([100.0] * 900 + [300.0] * 50), 0, histogram_of([4.0] * 1000), 1)
    measured = Recording(10.0, phases={"overload": series}, phase_seconds={"overload": 10.0})
    lines = {line.target.name: line for line in targets.judge(targets.Validity(), course, measured, 100.0).lines}
    assert {name: round(line.measured, 4) for name, line in lines.items()} == {
        "goodput": 0.9, "refusal_p99_ms": 4.0, "silent": 0.001, "errors": 0.0, "refused": 0.5128, "p50_ms": 100.16}
    missed = {name for name, line in lines.items() if line.verdict is Verdict.MISSED}
    assert missed == {"silent", "refused"}


def test_the_schedules_lag_may_be_a_tenth_of_the_slo(tmp_path: Path) -> None:
    measured = recording([2.0] * 100, lag=histogram_of([6.0] * 100))
    verdicts = [targets.judge(targets.Validity(), targets.Course(slo_ms=slo), measured, None).verdict
                for slo in (None, 100.0, 50.0)]
    assert verdicts == [Verdict.MET, Verdict.MET, Verdict.INVALID]


def test_a_run_without_requests_is_invalid(tmp_path: Path) -> None:
    assert judged(tmp_path, "", Recording(1.0)).verdict == Verdict.INVALID


def test_without_a_capacity_the_throughput_is_said_to_be_unjudged(tmp_path: Path) -> None:
    judgement = judged(tmp_path, ALL + "throughput = 0.9", recording([2.0] * 100), capacity=None)
    assert judgement.verdict == Verdict.MET
    assert "not judged" in targets.table(judgement)


@pytest.mark.parametrize(("text", "says"), [
    ("[open-loop]\nsecond = 3", "'open-loop.second'; did you mean 'seconds'?"),
    ("[open-lop]\nseconds = 3", "did you mean 'open-loop'?"),
    (ALL + "p50 = 3", "did you mean 'p50_ms'?"),
    ("[open-loop.targets.recods]\np50_ms = 3", "did you mean 'records'?"),
    ("[open-loop.targets.records]\nthroughput = 3", "unknown key 'open-loop.targets.records.throughput'"),
    (ALL + "p50_ms = 'fast'", "must be a number"),
    (ALL + "p50_ms = -1", "must be a number"),
    ("[capacity]\nusers = 1.5", "must be a whole number"),
    ("[capacity]\nusers = 0", "must be a whole number"),
    ("capacity = 3", "must be a table"),
    ("[capacity", "targets.toml"),
    ("[spike]\ntargets.spke.p50_ms = 3", "did you mean 'spike'?"),
    ("[spike]\ntargets.spike.goodput = 0.9", "spike.slo_ms is needed"),
    ("[spike]\npaced = 1", "spike.paced must be true or false"),
    ("[spike]\ntargets.spike = 3", "spike.targets.spike must be a table"),
])
def test_a_targets_file_with_a_fault_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(targets.TargetsError) as caught:
        targets.load(written(tmp_path, text))
    assert says in str(caught.value)


def test_the_shipped_targets_are_sound_and_judge_every_user_class_and_scenario() -> None:
    shipped = targets.load(LOADTESTS / "targets.toml")
    assert set(shipped.courses) == set(targets.GROUPS)
    steady = shipped.courses["open-loop"]
    assert {target.users for target in steady.targets} == set(targets.USERS)
    assert steady.seconds is not None
    assert steady.load is not None
    answers = steady.seconds * steady.load * 300  # on a machine where the pair carries 300 a second
    assert answers >= 10 / (1 - 0.99)
    assert next(t.limit for t in steady.targets if t.name == "throughput") < steady.load


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


def test_reports_hold_any_text_of_a_server_and_can_be_read() -> None:
    """Jenkins, GitLab and the actions of GitHub read the counts at the suites, and a reason's message and text."""
    said = "the server ended with 1:\n\x1b[31mboom\x1b[0m \x00 \ud83d <b> | & \U0001f4a5"
    course = targets.Course(targets=(targets.Target("all", "p50_ms", 1), targets.Target("all", "failures", 0),
                                     targets.Target("records", "p99_ms", 5)))
    measured = recording([2.0] * 100)
    results = [reports.Result("spike", targets.Course(), 10.0, Recording(), None, said),
               reports.Result("ramp", course, 10.0, measured, targets.judge(targets.Validity(), course, measured, 1.0))]
    root = ElementTree.fromstring(ElementTree.tostring(reports.junit(results), encoding="utf-8"))
    assert {key: root.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "4", "failures": "1", "errors": "2"}
    for suite in root:
        assert set(suite.keys()) == {"name", "time", "tests", "failures", "errors", "skipped"}
        assert len(suite) == int(suite.get("tests", 0))
        for case in suite:
            assert set(case.keys()) == {"classname", "name", "time"}
            assert {reason.tag for reason in case} <= {"error", "failure", "system-out"}
            for reason in case.findall("error") + case.findall("failure"):
                assert (reason.text or "").startswith(reason.get("message", "-"))
    missed = root.find("testsuite[@name='ramp']/testcase[@name='all p50_ms']/failure")
    assert missed is not None
    assert missed.text == "2.00, wanted <= 1, 100 samples"
    assert "boom" in (root.findtext("testsuite/testcase/error") or "")
    text = reports.markdown(results)
    assert [line.count("|") for line in text.splitlines()[:5]] == [8] * 5
    assert "\n  ````\n" in text
    assert "&lt;b&gt;" in reports.html(results, "<title>")


# -- whole runs: real Locust, in processes of its own, since gevent patches the one that it is in --------------------
LAX = "[validity]\ngenerator_cpu = 99\nwaited = 99\nlag_p99_ms = 1e6\n"  # a busy machine must not fail a test
SHORT = ("[capacity]\nusers = 4\nwarmup = 0.5\nseconds = 1.5\n"
         "[open-loop]\nusers = 8\nload = 0.5\nwarmup = 0.5\nseconds = 2.5\n")
EVERY_CLASS = "".join(f"[open-loop.targets.{users}]\np50_ms = 5000\nfailures = 0\n" for users in targets.USERS)


def environ() -> dict[str, str]:
    """With the source tree on the path, where that is what is tested and not an installed package."""
    paths = [str(PACKAGE)] if PACKAGE == ROOT else []
    joined = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | ({"PYTHONPATH": joined} if joined else {})


def start_verify(tmp_path: Path, text: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(LOADTESTS / "verify.py"), "--targets", str(written(tmp_path, text)),
               "--results", str(tmp_path / "results"), "--locust-python", LOCUST, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


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


SCENARIOS = """
[spike]
slo_ms = 30000
load = 0.1
peak = 0.4
users = 32
warmup = 0.5
seconds = 2
targets.all = { errors = 0, silent = 0, recovery_s = 2, throughput = 0.05 }
targets.records = { failures = 0 }
targets.oip_json = { failures = 0 }
targets.oip_binary = { failures = 0 }
targets.spike = { goodput = 0.1, p50_ms = 5000, refusal_p99_ms = 5000 }
targets.after = { failures = 0 }
[noisy-neighbour]
load = 0.1
peak = 0.3
users = 8
warmup = 0.5
seconds = 2
targets.beside = { failures = 0 }
targets.greedy = { failures = 0 }
[slow-client]
load = 0.1
users = 8
warmup = 0.5
seconds = 2.5
targets.beside = { failures = 0 }
targets.slow = { failures = 0 }
"""


def test_a_server_that_keeps_up_meets_its_targets_and_is_stopped(tmp_path: Path, models: Path) -> None:
    names = ["spike", "noisy-neighbour", "slow-client"]
    code, output = verify(tmp_path, LAX + SHORT + SCENARIOS, "--model-repository", str(models), "--scenarios",
                          ",".join(names))
    assert code == 0, output
    assert output.splitlines()[-3:] == [f"{name}: met: every target" for name in names]
    measured = {name: Recording.load(tmp_path / "results" / f"{name}.json") for name in names}
    assert set(measured["spike"].series) == {"records", "oip_json", "oip_binary"}
    assert not any(recording.errors for recording in measured.values())
    phases = measured["spike"].phases
    assert phases["spike"].requests > phases["before"].requests  # as long, and four times as many are due
    assert "drained" in (tmp_path / "results" / "server.log").read_text()
    suites = ElementTree.parse(tmp_path / "results" / "junit.xml").getroot()
    assert [suite.get("name") for suite in suites] == names
    assert sum(int(suite.get("tests", 0)) for suite in suites) == 15
    assert "| spike | all | recovery_s | ≤ 2 |" in (tmp_path / "results" / "report.md").read_text()
    page = (tmp_path / "results" / "report.html").read_text()
    assert page.count("<svg") == 6
    assert not re.search(r"(src|href)=|https?:", page)  # it needs nothing else


def test_a_slow_server_misses_and_the_target_is_named(tmp_path: Path, slow_server: str) -> None:
    text = LAX + SHORT + ALL + "p50_ms = 20\nfailures = 0"
    code, output = verify(tmp_path, text, "--url", slow_server, "--model", "slow")
    assert code == 1, output
    assert "missed: all p50_ms is" in output.splitlines()[-1]


def test_the_stock_command_judges_too(tmp_path: Path, slow_server: str) -> None:
    command = [LOCUST, "-m", "locust", "-f", str(LOADTESTS / "locustfile.py"), "--host", slow_server, "--model",
               "slow", "--headless", "-u", "4", "-r", "4", "-t", "4s", "--tags", "oip_json", "--targets",
               str(written(tmp_path, LAX + "[closed-loop.targets.all]\np50_ms = 5000\n"
                           "[closed-loop.targets.oip_json]\nfailures = 0"))]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert "met: every target" in finished.stdout
    assert "oip_binary" not in finished.stdout


# What servers may answer, the status and the body that it means (None: an error), and whether the connection is kept.
ANSWERS: dict[str, tuple[bytes, tuple[int, bytes] | None, bool]] = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello"), True),
    "field names of any case": (b"HTTP/1.1 503 No\r\nCONTENT-LENGTH:2\r\n\r\nno", (503, b"no"), True),
    "nothing": (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b""), True),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nT: 1\r\n\r\n",
               (200, b"hello"), True),
    "after a continue": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                         (200, b"x"), True),
    "closed after it": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", (200, b"x"), False),
    "up to the end": (b"HTTP/1.1 200 OK\r\n\r\nall of it", (200, b"all of it"), False),
    "an older version": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", (200, b"x"), False),
    "cut short": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", None, False),
    "a cut head": (b"HTTP/1.1 200 OK\r\nContent-Le", None, False),
    "no answer": (b"", None, False),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", None, False),
    "no status": (b"HTTP/1.1 fine\r\nContent-Length: 0\r\n\r\n", None, False),
    "no length": (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", None, False),
}
EXCHANGES = """
import json, sys
from gevent import monkey; monkey.patch_all()
from connection import Connection
from payloads import Body
connection = Connection(sys.argv[1], headers={"X-Of-All": "1"}, network_timeout=5)
told = []
for path in json.loads(sys.argv[2]):
    try:
        answer = connection.exchange(connection.request(Body(path, b"body", {"X-Own": "2"})))
        told.append((answer.status, answer.body.decode()))
    except (OSError, ValueError) as error:
        told.append(None)
print(json.dumps(told))
"""


@pytest.mark.parametrize("piece", [1, 65536])
def test_a_users_connection_takes_what_servers_send(piece: int) -> None:
    """Whole or a byte at a time; each is asked for twice, the second time over what is left of the first."""
    names = [name for name in ANSWERS for _ in range(2)]
    asked: list[bytes] = []
    opened = 0

    def serve(listener: socket.socket) -> None:
        nonlocal opened
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened += 1
            with connection:
                kept = True
                while kept:
                    request = b""
                    while not request.endswith(b"\r\n\r\nbody"):
                        got = connection.recv(65536)
                        if not got:
                            break
                        request += got
                    if not request:
                        break
                    asked.append(request)
                    answer, _, kept = ANSWERS[names[len(asked) - 1]]
                    for start in range(0, len(answer), piece):
                        connection.sendall(answer[start:start + piece])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"http://user@127.0.0.1:{listener.getsockname()[1]}/prefix/"
        done = subprocess.run([LOCUST, "-c", EXCHANGES, url, json.dumps([f"/{i}" for i in range(len(names))])],
                              capture_output=True, text=True, cwd=LOADTESTS, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = [ANSWERS[name][1] for name in names]
    assert json.loads(done.stdout) == [each and [each[0], each[1].decode()] for each in expected]
    ended = [not ANSWERS[name][2] for name in names]
    assert opened == 1 + sum(ended[:-1])
    for i, request in enumerate(asked):
        head = request.decode().split("\r\n")
        assert head[0] == f"POST /prefix/{i} HTTP/1.1"
        assert {f"Host: {url.split('@')[1].split('/')[0]}", "X-Of-All: 1", "X-Own: 2", "Content-Length: 4"} <= set(head)


LOCUSTFILE = str(LOADTESTS / "locustfile.py")


def locust(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LOCUST, "-m", "locust", *options], capture_output=True, text=True, timeout=90)


def test_the_users_of_a_closed_loop_pause_where_a_load_is_asked_for(tmp_path: Path, slow_server: str) -> None:
    recording = tmp_path / "r.json"
    finished = locust("-f", LOCUSTFILE, "--host", slow_server, "--model", "slow", "--headless", "--scenario",
                      "closed-loop", "--capacity", "40", "--load", "0.5", "-u", "4", "--seconds", "3", "--warmup", "1",
                      "--recording", str(recording))
    assert finished.returncode == 0, finished.stderr
    assert 20 < Recording.load(recording).phases["closed"].requests <= 64  # 60 are asked for


def test_a_scenarios_file_beside_the_locustfile_is_the_load_of_workers_too(tmp_path: Path, slow_server: str) -> None:
    """Two worker processes carry half of the rate each; Locust's own files are written as ever."""
    recording, port = tmp_path / "r.json", str(free_port())
    finished = locust("-f", f"{LOCUSTFILE},{LOADTESTS / 'scenarios' / 'open_loop.py'}", "--host", slow_server,
                      "--model", "slow", "--headless", "--processes", "2", "--rate", "40", "--seconds", "3",
                      "--warmup", "1", "--recording", str(recording), "--csv", str(tmp_path / "out"),
                      "--html", str(tmp_path / "out.html"), "--json-file", str(tmp_path / "out"),
                      "--master-bind-port", port, "--master-port", port)
    assert finished.returncode == 0, finished.stderr
    measured = Recording.load(recording)
    assert 60 < measured.phases["steady"].requests < 180  # 120 are due
    assert measured.seconds == pytest.approx(3, abs=0.2)
    assert {path.name for path in tmp_path.glob("out*")} >= {"out_stats.csv", "out.html", "out.json"}


def ask(url: str, form: dict[str, str] | None = None) -> str:
    """An answer's text; empty while nobody answers."""
    data = urllib.parse.urlencode(form).encode() if form else None
    try:
        with urllib.request.urlopen(url, data, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def start_locust(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen([LOCUST, "-m", "locust", "-f", LOCUSTFILE, *options], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def test_the_web_ui_shows_itself_and_starts_and_stops_a_test(slow_server: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    process = start_locust("--host", slow_server, "--model", "slow", "--web-host", "127.0.0.1", "--web-port",
                           url.rpartition(":")[2])
    try:
        wait_for(lambda: "<title>Locust</title>" in ask(url), process)
        assert "noisy-neighbour" in ask(url)  # our own options and scenarios are there
        started = json.loads(ask(f"{url}/swarm", {"user_count": "2", "spawn_rate": "2", "host": slow_server}))
        assert started["success"]
        wait_for(lambda: sum(entry["num_requests"] for entry in json.loads(ask(f"{url}/stats/requests"))["stats"]) > 9,
                 process)
        shown = json.loads(ask(f"{url}/stats/requests"))
        assert {entry["name"] for entry in shown["stats"]} == {"oip_json", "oip_binary", "Aggregated"}
        assert shown["fail_ratio"] == 0
        assert json.loads(ask(f"{url}/stop", {"": ""}) or ask(f"{url}/stop"))["success"]  # older ones by GET
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_master_shares_a_run_out_to_its_workers(tmp_path: Path, slow_server: str) -> None:
    recording, port = tmp_path / "r.json", str(free_port())
    master = start_locust("--host", slow_server, "--model", "slow", "--headless", "--master", "--expect-workers", "2",
                          "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "-u", "4", "-r", "4", "-t",
                          "3s", "--tags", "oip_json", "--recording", str(recording))
    workers = [start_locust("--worker", "--master-host", "127.0.0.1", "--master-port", port) for _ in range(2)]
    said = [process.communicate(timeout=90)[0] for process in (master, *workers)]
    assert [process.returncode for process in (master, *workers)] == [0, 0, 0], said
    measured = Recording.load(recording)
    assert set(measured.series) == {"oip_json"}
    assert measured.all().latency.count > 4
    assert not measured.errors


@pytest.mark.parametrize(("options", "says"), [
    (("--scenario", "spike"), "spike needs --capacity"),
    (("--scenario", "open-loop"), "open-loop needs --rate"),
    (("--scenario", "spkie"), "invalid choice: 'spkie'"),
])
def test_a_scenario_that_lacks_something_says_so(slow_server: str, options: tuple[str, ...], says: str) -> None:
    finished = locust("-f", LOCUSTFILE, "--host", slow_server, "--model", "slow", "--headless", *options)
    assert finished.returncode == 2
    assert says in finished.stderr


def test_every_scenario_can_be_imported_and_has_the_phases_that_targets_name() -> None:
    code = """if True:
        import json
        from scenarios import SCENARIOS
        found = {}
        for name, scenario in SCENARIOS.items():
            shape = scenario()
            shape.capacity = 100.0
            groups = [phase for phases in shape.schedules().values() for phase in phases]
            assert len({sum(phase.seconds for phase in phases) for phases in shape.schedules().values()}) == 1, name
            found[name] = [phase.name for phase in groups if phase.measured]
        print(json.dumps(found))"""
    done = subprocess.run([LOCUST, "-c", code], capture_output=True, text=True, cwd=LOADTESTS, timeout=60)
    assert done.returncode == 0, done.stderr
    phases = json.loads(done.stdout)
    phases.pop("staircase")  # finds the capacity, and is not judged
    assert {name: set(known) for name, known in phases.items()} == {
        name: set(groups) for name, groups in targets.GROUPS.items()}


@pytest.mark.parametrize(("kept", "found"), [
    ("", 0.0), ("n", 0.0), ("yyyy", 4.0), ("yynn", 2.0), ("nyyy", 4.0), ("ynyy", 4.0), ("ynyn", 3.0), ("nnyy", 0.0),
])
def test_the_capacity_is_the_last_step_before_a_second_one_fails(kept: str, found: float) -> None:
    steps = [(float(number), answer == "y") for number, answer in enumerate(kept, 1)]
    assert verify_module.highest(steps) == found


def test_the_paced_model_gives_back_its_input_and_takes_its_time(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(LOADTESTS / "paced_model.py"), str(tmp_path), "--rate", "2000",
                           "--max-batch-size", "8", "--slo-ms", "50"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    session = InferenceSession(tmp_path / "paced" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    rows = np.arange(24, dtype=np.float32).reshape(3, 8)
    assert (session.run(None, {"input": rows})[0] == rows).all()


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
    ("[open-loop]\nsecnds = 1", (), "did you mean 'seconds'?"),
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
