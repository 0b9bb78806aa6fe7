"""bench/overload.py: what its table says of what was measured, and of what was not."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import batching  # noqa: E402
import overload  # noqa: E402
import reports  # noqa: E402
import targets  # noqa: E402
from recorder import Bin, Histogram, Recording, Series, bucket  # noqa: E402

SETTING = overload.Setting(Path("nowhere"), 200.0, 16, 70.0)


def histogram_of(value: float, count: int) -> Histogram:
    histogram = Histogram()
    for _ in range(count):
        histogram.add(value)
    return histogram


def result(name: str, *, goodput: float = 1.0, took: float = 150.0, refusal: float = 5.0, silent: int = 0,
           lag: float = 1.0, capacity: float = 200.0) -> reports.Result:
    """A run of ten seconds in which so much of the capacity was answered."""
    course = overload.courses(SETTING, 60.0)[name]
    phase = "spike" if name == "spike" else "overload"
    series = Series(histogram_of(took, round(goodput * capacity * 10)), 0, histogram_of(refusal, 5000), silent)
    bins = {number: Bin(Counter({bucket(100): 25})) for number in range(40, 56)}
    recording = Recording(14.0, series={"oip_json": series}, lag=histogram_of(lag, 100), phases={phase: series},
                          phase_seconds={phase: 10.0, "after": 4.0}, marks={phase: 0.0, "after": 10.0}, timeline=bins)
    return reports.Result(name, course, capacity, recording,
                         targets.judge(targets.Validity(), course, recording, capacity))


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> overload.Found:
    monkeypatch.setattr(overload, "RESULTS", tmp_path)
    options = argparse.Namespace(limit=470.0, rate=230.0, max_batch_size=16, slo_ms=200.0, seconds=60.0)
    found = overload.Found(options, ["--seconds", "60"])
    found.notes = dict.fromkeys(("fastinfer", "triton", "bentoml"), "a note")
    found.results = {"fastinfer": [result("overload-x3", goodput=1.05), result("overload-x10"), result("spike")],
                     "triton": [result("overload-x3", goodput=0.7)], "bentoml": [result("overload-x3", goodput=0.5)]}
    found.counted = {overload.OVERDUE: 0.0, "fastinfer_batches_total": 1000.0}
    found.lone = batching.Compared(("with", "without"), (95.0, 96.0), (30.0, 30.0), (9e3, 9e3), 0.99, 1.0, 7)
    return found


def verdicts(found: overload.Found) -> dict[str, str]:
    return {line.measure: line.verdict for line in overload.table(found) if line.verdict}


def test_every_target_has_its_line_and_the_document_can_be_read(found: overload.Found) -> None:
    assert set(verdicts(found).values()) == {"met"}
    lines = {line.measure: line for line in overload.table(found)}
    assert lines["goodput at 10 C"].measured == "1.00 C"
    assert lines["goodput at 3 C, ours over the better of theirs"].measured == "1.50× (triton)"
    assert lines["lone client's p50 with batching over without"].measured == "0.990× (95 / 96 µs)"
    assert "bentoml at 3 C (600/s): refusals' p99" in lines
    found.save()
    document = json.loads((overload.RESULTS / "results.json").read_text())
    assert [line["verdict"] for line in document["targets"][:9]] == ["met"] * 9
    assert document["contenders"]["triton"][0]["capacity"] == 200.0
    assert (overload.RESULTS / "report.html").exists()


@pytest.mark.parametrize(("name", "changed", "measure"), [
    ("overload-x10", {"goodput": 0.89}, "goodput at 10 C"),
    ("overload-x10", {"took": 201.0}, "p99 of the admitted at 10 C"),
    ("overload-x10", {"refusal": 11.0}, "refusals at 10 C: p99"),
    ("overload-x10", {"silent": 1}, "refusals at 10 C without Retry-After"),
    ("overload-x3", {"goodput": 0.9}, "goodput at 3 C, ours over the better of theirs"),
])
def test_a_target_that_was_missed_is_named(found: overload.Found, name: str, changed: dict[str, Any],
                                           measure: str) -> None:
    found.results["fastinfer"] = [result(name, **changed) if each.name == name else each
                                  for each in found.results["fastinfer"]]
    assert verdicts(found)[measure] == "missed"


def test_what_a_busy_machine_spoiled_is_neither_met_nor_missed(found: overload.Found) -> None:
    found.results["fastinfer"][1] = result("overload-x10", lag=30.0)
    found.results["triton"] = [result("overload-x3", lag=30.0)]
    told = verdicts(found)
    assert told["goodput at 10 C"].startswith("invalid: the generator sent 30.0 ms late")
    assert told["goodput at 3 C, ours over the better of theirs"] == "invalid: the run of triton"
    assert told["recovery after the spike ends"] == "met"


def test_what_was_not_measured_is_not_met(found: overload.Found) -> None:
    found.results = {"fastinfer": found.results["fastinfer"][:1], "triton": found.results["triton"]}
    found.counted, found.lone = {}, None
    told = verdicts(found)
    assert told.pop("goodput at 3 C, ours over the better of theirs") == "unmeasured: bentoml"
    assert set(told.values()) == {"unmeasured"}
    found.save()
    assert overload.finite({"nan": math.nan, "list": [1.0, math.inf]}) == {"nan": None, "list": [1.0, None]}


def test_nothing_is_begun_that_would_pass_the_limit(found: overload.Found) -> None:
    assert found.has_time_for(460)
    assert not found.has_time_for(480)
    found.began -= 200
    assert not found.has_time_for(300)


def test_the_metrics_are_read_by_name_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self) -> bytes:
            return (b'fastinfer_overdue_batches_total{model="paced",version="1"} 0.0\n'
                    b'fastinfer_refused_total{model="paced",reason="deadline",version="1"} 7.0\n'
                    b'fastinfer_late_total{model="paced",version="1"} 2.0\nfastinfer_ready 1.0\n')

    monkeypatch.setattr(overload.urllib.request, "urlopen", lambda *_, **__: Answer())
    assert overload.metrics(1) == {overload.OVERDUE: 0.0, "fastinfer_refused_total deadline": 7.0,
                                   "fastinfer_late_total": 2.0}
