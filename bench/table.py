"""The complete table: every target with its figure, and the picture.

    python bench/table.py --publish                  # some 20 minutes, wants an idle machine
    python bench/table.py --only idle,workers        # measure some parts again; the rest stays as it was
    python bench/table.py --render --publish         # measure nothing: write the pages from the results

Parts: "pairs" (fastinfer beside its peers), and those of measures.py. Results are saved as they come; a server that
does not start leaves a gap that is named and stops nothing. Without ``--publish`` they go to .bench/results, with it to
bench/results.json and .md, docs/benchmark.svg, and between the markers of README.md and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import compare
import environments
import harness
import report
from measures import MEASURES
from peers import PEERS
from process import Cores, ServerError
from verdicts import NoFigure

PUBLISHED = report.ROOT / "bench" / "results.json"
# Who is measured where: what the targets need, at what the picture shows, and a look at the other loads.
PLAN: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {
        "constant": (64,), "mosec-batch": (16, 64, 256), "mosec": (1, 64), "starlette": (1, 16, 64, 256),
        "fastapi": (1, 64), "granian": (1, 64), "triton": (1, 16, 64, 256), "triton-delay": (64, 256),
    },
    "logistic": {"constant": (1, 64), "nginx": (64,), "starlette": (1, 64), "mosec-batch": (64,), "triton": (64,)},
    "trees": {"starlette": (64,), "mosec-batch": (64,), "triton": (64,)},
}
ON_REQUEST = (64,)  # for peers that are only measured when they are named
TOLD = (ServerError, environments.InstallError)  # what says itself what happened


class Results:
    """What has been measured so far, on disk after every step."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.found: dict[str, Any] = {} if fresh or not path.exists() else json.loads(path.read_text())
        for key, empty in (("servers", {}), ("pairs", []), ("gaps", []), ("measures", {})):
            self.found.setdefault(key, empty)

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1, ensure_ascii=False) + "\n")
        partial.replace(self.path)

    def forget(self, model: str, name: str) -> None:
        """What an earlier run said of a pairing."""
        self.found["pairs"] = [row for row in self.found["pairs"]
                               if row["model"] != model or name not in (row["server"], row["versus"])]
        self.found["gaps"] = [gap for gap in self.found["gaps"] if (gap["model"], gap["server"]) != (model, name)]


def pairs(options: argparse.Namespace, cores: Cores, results: Results) -> None:
    for model, name, concurrency in planned(options):
        results.forget(model, name)
        try:
            harness.ensure_models([model], options)
            for server in ("fastinfer", name):
                results.found["servers"][server] = compare.setting(server, options)
            for row in compare.pair(model, name, concurrency, options, cores):
                results.found["pairs"].append(asdict(row))
                results.save()
                print(compare.table([row]).split("\n", 1)[1], file=sys.stderr, flush=True)
        except Exception as error:  # whatever a strange server did, the others are measured
            results.found["gaps"].append({"model": model, "server": name, "reason": reason(error)})
            print(f"  ! {name}, {model}: {error}", file=sys.stderr, flush=True)
            results.save()


def planned(options: argparse.Namespace) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    known = {name for peers in PLAN.values() for name in peers}
    for model, peers in PLAN.items():
        asked = peers if options.peers is None else {
            name: peers.get(name, ON_REQUEST if model == "mlp" and name not in known else ()) for name in options.peers}
        yield from ((model, name, concurrency) for name, concurrency in asked.items() if concurrency)


def reason(error: Exception) -> str:
    """In one line: what happened, and the last line of the server's log, which is the likeliest to say why."""
    said = str(error) if isinstance(error, TOLD) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join(dict.fromkeys((lines[0], lines[-1])))


def measure(options: argparse.Namespace, results: Results) -> None:
    """Run the parts that are asked for.

    Raises:
        ServerError, InstallError: fastinfer itself cannot be measured here.
    """
    cores = harness.settle(options)
    began = time.monotonic()
    run = {"command": shlex.join(["python", "bench/table.py", *sys.argv[1:]]), "machine": compare.machine(),
           "date": time.strftime("%Y-%m-%d"), "rounds": options.rounds, "seconds": options.seconds}
    if "command" in results.found:  # parts that are measured again beside what an earlier run found
        results.found.setdefault("again", []).append(run)
    else:
        results.found |= run
    results.found["servers"]["fastinfer"] = compare.setting("fastinfer", options)
    steal = stolen()
    for part in options.only:
        print(f"-- {part}", file=sys.stderr, flush=True)
        if part == "pairs":
            pairs(options, cores, results)
            continue
        try:
            results.found["measures"][part] = MEASURES[part](options, cores).as_dict()
            print(f"{part}: {results.found['measures'][part]['detail']}", file=sys.stderr, flush=True)
        except Exception as error:
            results.found["measures"][part] = {"reason": reason(error)}
            print(f"  ! {part}: {error}", file=sys.stderr, flush=True)
        results.save()
    run["took_s"] = round(time.monotonic() - began)
    run["machine"]["stolen"] = f"{stolen(steal):.2%}"
    results.found["took_s"] = results.found.get("took_s", run["took_s"])
    results.save()


def stolen(since: Sequence[int] = ()) -> Any:
    """The ticks of all cores by kind; with an earlier reading, the share since then that the host took away."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    if not since:
        return ticks
    spent = [now - before for now, before in zip(ticks, since, strict=True)]
    return spent[7] / max(1, sum(spent))


def publish(found: dict[str, Any]) -> None:
    for path, text in report.pages(found).items():
        path.write_text(text)
        print(path.relative_to(report.ROOT))


# -- the command -------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_options(parser, rounds=3, seconds=3)
    parts = ("pairs", *MEASURES)
    parser.add_argument("--only", type=compare.names(parts),
                        help=f"parts to measure, of {','.join(parts)} (default: all)")
    parser.add_argument("--peers", type=compare.names(list(PEERS)), help="of the pairs, only those with these")
    parser.add_argument("--requests", type=int, default=1_000_000, help="for memory (default: a million)")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--publish", action="store_true", help="write the committed results and pages")
    return parser


def main() -> int:
    options = parser().parse_args()
    options.subject = "fastinfer"
    complete = options.only is None and options.peers is None
    options.only = options.only or (["pairs"] if options.peers else ["pairs", *MEASURES])
    path = PUBLISHED if options.publish else harness.BENCH / "results" / "table.json"
    results = Results(path, fresh=complete and not options.render)
    try:
        if not options.render:
            measure(options, results)
    except TOLD as error:
        print(error, file=sys.stderr)
        return 1
    if options.publish:
        try:
            publish(results.found)
        except NoFigure as error:
            print(f"nothing is published: {error}", file=sys.stderr)
            return 1
    else:
        print(report.report(results.found))
    print(results.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
