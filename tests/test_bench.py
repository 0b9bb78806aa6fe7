"""The benchmark's own parts: what the table says of results, what a failed server leaves, what is left running."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import chart  # noqa: E402
import compare  # noqa: E402
import harness  # noqa: E402
import report  # noqa: E402
import table  # noqa: E402
import verdicts  # noqa: E402
import wrk  # noqa: E402
from process import Cores, Launch, Server, ServerError, cpu_seconds, free_ports, memory  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def pairing(model: str, concurrency: int, server: str, cpu: float, *, own: float = 10.0,
            **changed: Any) -> list[dict[str, Any]]:
    """Both rows of a pairing in which ``server`` takes ``cpu`` microseconds a request, and fastinfer ``own``."""
    ratio = cpu / own
    ours = {"model": model, "concurrency": concurrency, "server": "fastinfer", "versus": server, "rate": 1e6 / own,
            "p50_us": 100.0, "p99_us": 200.0, "cpu_us": own, "failed": 0, "foreign_cpu": 0.01, "cpu_ratio": 1.0,
            "rate_ratio": 1.0, "p50_ratio": 1.0, "p99_ratio": 1.0, "rounds": 3}
    theirs = {**ours, "server": server, "versus": "fastinfer", "rate": 1e6 / cpu, "cpu_us": cpu, "cpu_ratio": ratio,
              "rate_ratio": ratio, "p50_us": 100.0 * ratio, "p99_us": 200.0 * ratio, "p50_ratio": ratio,
              "p99_ratio": ratio, **changed}
    return [ours, theirs]


@pytest.fixture
def found() -> dict[str, Any]:
    servers = {name: {"title": name.title(), "setting": "as is", "computes": name != "constant"}
               for name in ("fastinfer", "constant", "starlette", "mosec", "triton", "triton-delay", "fastapi")}
    servers["fastinfer"]["versions"] = {"python": "3.11.2", "onnxruntime": "1.32.0"}
    return {
        "command": "python bench/table.py", "date": "2026-01-01", "rounds": 3, "seconds": 3, "servers": servers,
        "machine": {"cpu": "a CPU", "cores": "2", "kernel": "6", "system": "a system", "load": "0 0 0"},
        "pairs": [*pairing("logistic", 64, "constant", 9.5), *pairing("mlp", 64, "constant", 7.0),
                  *pairing("mlp", 64, "mosec", 40.0), *pairing("mlp", 64, "triton", 90.0),
                  *pairing("mlp", 64, "triton-delay", 50.0), *pairing("mlp", 1, "starlette", 20.0)],
        "gaps": [{"model": "mlp", "server": "fastapi", "reason": "fastapi ended with 1: its last words"}],
        "measures": {"records": {"value": 0.8, "detail": "records 8/s, tensors 10/s", "sides": {}},
                     "idle": {"reason": "an idle connection was closed"}},
    }


def outcome(found: dict[str, Any], text: str) -> verdicts.Outcome:
    return next(each for each in verdicts.judged(found) if each.text.startswith(text))


def test_a_target_is_met_missed_or_has_no_figure_and_says_why(found: dict[str, Any]) -> None:
    met = outcome(found, "fixed answer on uvloop")
    assert (met.bound, met.measured, met.met) == ("≥ 0.9", "0.95", True)
    assert met.detail == "Fastinfer 10 µs at 100,000/s, Constant 9.5 µs at 105,263/s"
    assert outcome(found, "the same, MLP").met is False
    assert outcome(found, "records").met is True
    assert outcome(found, "FastAPI").detail == "fastapi ended with 1: its last words"
    assert outcome(found, "requests/s with 5,000 idle").detail == "an idle connection was closed"
    assert outcome(found, "two workers").detail == "not measured"
    assert outcome(found, "two workers").met is None
    found["measures"]["decode"] = {"value": 1200.0, "detail": "", "sides": {"rate": 1200.0, "ratio": 2.5}}
    rate, ratio = outcome(found, "decode rate"), outcome(found, "the same over orjson")
    assert (rate.measured, rate.met) == ("1,200 MB/s", True)
    assert (ratio.measured, ratio.met) == ("2.50×", False)
    assert len(verdicts.markdown(verdicts.judged(found)).splitlines()) == len(verdicts.TARGETS) + 2


def test_the_fastest_peer_counts_and_limits_are_no_peers(found: dict[str, Any]) -> None:
    assert outcome(found, "fastest peer").measured == "4.00×"
    assert outcome(found, "p99 at 64").measured == "0.25×"


def test_the_best_setting_of_a_peer_counts(found: dict[str, Any]) -> None:
    assert outcome(found, "Triton").measured == "5.00×"


def test_a_server_whose_requests_failed_wins_and_loses_nothing(found: dict[str, Any]) -> None:
    found["pairs"] = [*pairing("mlp", 64, "mosec", 12.0, failed=3), *pairing("mlp", 64, "triton", 90.0, failed=1)]
    assert outcome(found, "fastest peer").detail == "no peer was measured"
    assert outcome(found, "Triton").detail == "1 requests of triton failed"


def test_the_table_of_servers_goes_by_cost_and_names_its_gaps(found: dict[str, Any]) -> None:
    found["pairs"] += pairing("mlp", 64, "fastapi", 115.0, failed=2)
    lines = [line for line in report.servers_table(found).splitlines() if line.startswith("| mlp | 64 ")]
    assert [line.split(" | ")[2] for line in lines] == ["Constant", "Fastinfer", "Mosec", "Triton-Delay", "Triton",
                                                       "Fastapi"]
    assert "(2 failed)" in lines[-1]
    assert "fastapi ended with 1:" in report.servers_table(found)


def test_the_picture_is_well_formed_and_says_in_words_what_it_shows(found: dict[str, Any]) -> None:
    image = ElementTree.fromstring(report.picture(found))
    assert image.get("role") == "img"
    titles = [image.find(f"{SVG}{tag}") for tag in ("title", "desc")]
    assert [each.get("id") for each in titles if each is not None] == image.get("aria-labelledby", "").split()
    bars = {each.get("class"): float(each.get("width", "")) for each in image.iter(f"{SVG}rect")}
    assert bars["own"] / bars["limit"] == pytest.approx(10 / 7, rel=0.01)
    assert {"own", "peer", "limit", "page"} == set(bars)
    assert titles[1] is not None
    assert "Mosec: 40.0 µs · 25,000 requests/s" in (titles[1].text or "")


def test_a_server_is_named_in_the_picture_whatever_its_name_holds() -> None:
    image = ElementTree.fromstring(chart.svg([chart.Bar("a < b & 'c'", 1.0, 2.0, "own")], "<heading>", ["& caption"]))
    texts = [each.text for each in image.iter(f"{SVG}text")]
    assert {"a < b & 'c'", "<heading>", "& caption"} <= set(texts)


def test_the_sections_of_a_page_are_renewed_between_their_markers(found: dict[str, Any]) -> None:
    page = "before\n<!-- circumstances: generated -->\nold\n<!-- /circumstances -->\nafter\n"
    filled = report.filled(page, report.sections(found))
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("\nafter\n")
    assert report.filled(filled, report.sections(found)) == filled


def test_the_published_pages_are_what_the_results_say() -> None:
    found = json.loads(table.PUBLISHED.read_text()) if table.PUBLISHED.exists() else None
    pages = report.pages(found) if found else {}
    assert [str(path.relative_to(ROOT)) for path, text in pages.items()
            if not path.exists() or path.read_text() != text] == [], "run: python bench/table.py --render --publish"


@pytest.fixture
def options() -> argparse.Namespace:
    options = table.parser().parse_args([])
    options.subject, options.python, options.base_python, options.given = "fastinfer", sys.executable, "", True
    return options


def test_a_peer_that_fails_leaves_a_gap_and_stops_nothing(
    tmp_path: Path, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair(model: str, name: str, concurrency: Any, *rest: Any) -> Iterator[compare.Row]:
        for connections in concurrency:
            for own in pairing(model, connections, name, 20.0):
                yield compare.Row(**own)
            if name == "starlette":
                raise ServerError("starlette ended with 1:\nsome log\nits last words\n")
            if name == "granian":
                raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(compare, "pair", pair)
    monkeypatch.setattr(compare, "setting", lambda name, options: {"title": name, "setting": "", "computes": True})
    monkeypatch.setattr(harness, "ensure_models", lambda names, options: None)
    options.peers = ["starlette", "granian", "litserve"]
    path = tmp_path / "results.json"
    results = table.Results(path, fresh=True)
    table.pairs(options, Cores(0, 1), results)
    saved = json.loads(path.read_text())
    reasons = {gap["server"]: gap["reason"] for gap in saved["gaps"]}
    assert reasons == {"starlette": "starlette ended with 1: its last words",
                       "granian": "ZeroDivisionError: division by zero"}
    assert {gap["model"] for gap in saved["gaps"] if gap["server"] == "starlette"} == set(table.PLAN)
    measured = [(row["model"], row["concurrency"]) for row in saved["pairs"] if row["server"] == "litserve"]
    assert measured == [("mlp", 64)]  # a peer on request
    assert len([row for row in saved["pairs"] if row["server"] == "starlette"]) == len(table.PLAN)  # till it failed

    monkeypatch.setattr(compare, "pair", lambda model, name, concurrency, *rest: (
        compare.Row(**own) for connections in concurrency for own in pairing(model, connections, name, 30.0)))
    options.peers = ["starlette"]
    again = table.Results(path, fresh=False)
    table.pairs(options, Cores(0, 1), again)
    assert {gap["server"] for gap in again.found["gaps"]} == {"granian"}
    assert {row["cpu_us"] for row in again.found["pairs"] if row["server"] == "starlette"} == {30.0}
    assert len([row for row in again.found["pairs"] if row["server"] == "litserve"]) == 1


def test_a_script_posts_bodies_of_any_bytes_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrk, "SCRIPTS", tmp_path)
    bodies = [b'{"a":"]]"}', bytes(range(256)), b""]
    script = wrk.write_script("mine", '/a "path"', bodies, headers={"X-Length": "3"}, rate=500)
    text = script.read_text()
    assert (tmp_path / "mine.bodies").read_bytes() == b"".join(bodies)
    assert "{10,256,0}" in text
    assert '"/a \\"path\\""' in text
    assert '["X-Length"] = "3"' in text
    assert "due + interval" in text
    assert "ffi" not in wrk.write_script("plain", "/", bodies).read_text()


def test_a_body_gives_every_float_back() -> None:
    row = wrk.rows()[3]
    data = json.loads(wrk.body(row))["inputs"][0]["data"]
    assert np.array(data, np.float32).tobytes() == row.tobytes()


PROGRAM = """\
import os, subprocess, sys, time
sink = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(str(sink.pid))
until = time.process_time() + 0.3
while time.process_time() < until:
    pass
time.sleep(600)
"""


def exists(pid: int) -> bool:
    """Whether it runs: what nobody has waited for yet is gone for us."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_is_measured_and_stopped_with_what_left_its_group(tmp_path: Path) -> None:
    child = tmp_path / "child"
    core = min(os.sched_getaffinity(0))
    server = Server("mine", [sys.executable, "-c", PROGRAM, str(child)], port=0, core=core, log=tmp_path / "log",
                    environ={})
    try:
        server.wait(lambda port: cpu_seconds(server.pid) >= 0.3)
        assert memory(server.pid).rss > 2 * 2**20
        grandchild = int(child.read_text())
        assert os.sched_getaffinity(server.pid) == {core}
        assert exists(grandchild)
    finally:
        server.stop()
    deadline = time.monotonic() + 10
    while exists(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not exists(server.pid)


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    server = Server("mine", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], port=0,
                    core=min(os.sched_getaffinity(0)), log=tmp_path / "log", environ={})
    with pytest.raises(ServerError, match="mine ended with 3:\nthe reason"):
        server.wait(lambda port: False)
    server.stop()


def test_a_peer_starts_in_an_empty_folder_with_its_fields_filled_in(tmp_path: Path) -> None:
    port, spare = free_ports(2)
    assert port != spare
    launch = Launch("mlp", tmp_path / "model.onnx", port, spare, tmp_path, "python")
    assert launch.fill("{model}:{port}:{spare_port}:{path}") == f"mlp:{port}:{spare}:{tmp_path / 'model.onnx'}"


def test_every_peer_says_how_it_is_set_up_and_has_its_application() -> None:
    for name, peer in compare.PEERS.items():
        assert peer.title, name
        assert peer.note, name
        for part in peer.command:
            if part.startswith(str(ROOT / "bench" / "servers")):
                assert Path(part).exists(), name
    assert {name for peers in table.PLAN.values() for name in peers} <= set(compare.PEERS)


def test_the_command_explains_itself() -> None:
    done = subprocess.run([sys.executable, ROOT / "bench" / "table.py", "--help"], capture_output=True, text=True,
                          check=True)
    assert "--publish" in textwrap.dedent(done.stdout)


def test_a_bench_that_is_ended_stops_what_it_started() -> None:
    script = ("import argparse, os, signal, time, harness\n"
              "harness.settle(argparse.Namespace(python='p', base_python='b'))\n"
              "try:\n"
              "    os.kill(os.getpid(), signal.SIGTERM)\n"
              "    time.sleep(60)\n"
              "finally:\n"
              "    print('stopped')\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "bench")})
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "stopped\n"), done.stderr
