"""The targets, and what the results say of each: measured, met or missed, or why there is no figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]


class NoFigure(Exception):
    """A target's figure is not there; the message says why."""


@dataclass(frozen=True)
class Figure:
    """What was measured for a target, and what a reader should see beside it."""

    value: float
    detail: str


@dataclass(frozen=True)
class Target:
    """Attributes:
        text: what is measured.
        bound: the target; the figure is to be at least that, or at most that.
        at_least: which of the two.
        figure: reads it out of the results; raises NoFigure.
        unit: printed after figure and bound.
    """

    text: str
    bound: float
    at_least: bool
    figure: Callable[[Results], Figure]
    unit: str = ""

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Outcome:
    """A target's line: ``met`` is None where there is no figure."""

    text: str
    bound: str
    measured: str
    met: bool | None
    detail: str


def row(results: Results, model: str, concurrency: int, server: str) -> Mapping[str, Any]:
    """A server's row of a pairing.

    Raises:
        NoFigure: it was not measured, did not start, or requests failed.
    """
    for found in results.get("pairs", ()):
        if (found["model"], found["concurrency"], found["server"]) == (model, concurrency, server):
            if found["failed"]:
                raise NoFigure(f"{found['failed']} requests of {server} failed")
            return dict(found)
    reasons = [gap["reason"] for gap in results.get("gaps", ()) if (gap["model"], gap["server"]) == (model, server)]
    raise NoFigure(reasons[0] if reasons else f"{server} was not measured")


def own(results: Results, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """fastinfer's row of the same pairing."""
    for other in results["pairs"]:
        if other["server"] == found["versus"] and other["versus"] == found["server"] and all(
                other[key] == found[key] for key in ("model", "concurrency")):
            return dict(other)
    raise NoFigure(f"the other half of {found['server']}'s pairing is missing")


def title(results: Results, server: str) -> str:
    return str(results.get("servers", {}).get(server, {}).get("title", server))


def fastest(results: Results, model: str, concurrency: int) -> Mapping[str, Any]:
    """The row of the peer that costs least CPU time a request there, against fastinfer in its own pairing."""
    settings = results.get("servers", {})
    found = [each for each in results.get("pairs", ())
             if (each["model"], each["concurrency"]) == (model, concurrency) and not each["failed"]
             and each["server"] != "fastinfer" and settings.get(each["server"], {}).get("computes", True)]
    if not found:
        raise NoFigure("no peer was measured")
    return min(found, key=lambda each: each["cpu_ratio"])


def beside(results: Results, found: Mapping[str, Any], value: str, scale: float = 1.0, unit: str = "µs") -> str:
    """Both sides of a pairing in words."""
    ours = own(results, found)
    return ", ".join(f"{title(results, each['server'])} {each[value] * scale:.3g} {unit} at {each['rate']:,.0f}/s"
                     for each in (ours, found))


def limit(model: str) -> Callable[[Results], Figure]:
    def figure(results: Results) -> Figure:
        found = row(results, model, 64, "constant")
        return Figure(found["cpu_ratio"], beside(results, found, "cpu_us"))

    return figure


def against_fastest(concurrency: int) -> Callable[[Results], Figure]:
    def figure(results: Results) -> Figure:
        found = fastest(results, "mlp", concurrency)
        return Figure(found["cpu_ratio"], beside(results, found, "cpu_us"))

    return figure


def against(*servers: str) -> Callable[[Results], Figure]:
    """The best of a peer's settings counts."""

    def figure(results: Results) -> Figure:
        rows, missing = [], []
        for server in servers:
            try:
                rows.append(row(results, "mlp", 64, server))
            except NoFigure as error:
                missing.append(error)
        if not rows:
            raise missing[0]
        found = min(rows, key=lambda each: each["cpu_ratio"])
        return Figure(found["cpu_ratio"], beside(results, found, "cpu_us"))

    return figure


def tail(results: Results) -> Figure:
    found = fastest(results, "mlp", 64)
    return Figure(1 / found["p99_ratio"], beside(results, found, "p99_us", 1e-3, "ms"))


def lone(model: str) -> Callable[[Results], Figure]:
    def figure(results: Results) -> Figure:
        found = row(results, model, 1, "starlette")
        return Figure(1 / found["p50_ratio"], beside(results, found, "p50_us", 1e-3, "ms"))

    return figure


def measured(name: str, side: str = "") -> Callable[[Results], Figure]:
    def figure(results: Results) -> Figure:
        found = results.get("measures", {}).get(name)
        if found is None:
            raise NoFigure("not measured")
        if "reason" in found:
            raise NoFigure(found["reason"])
        return Figure(found["sides"][side] if side else found["value"], found["detail"])

    return figure


TARGETS = (
    Target("fixed answer on uvloop over fastinfer, CPU µs a request at 64, logistic regression", 0.90, True,
           limit("logistic")),
    Target("the same, MLP", 0.80, True, limit("mlp")),
    Target("fastest peer over fastinfer, CPU µs a request at 64, MLP", 3, True, against_fastest(64), "×"),
    Target("the same at 256", 3, True, against_fastest(256), "×"),
    Target("the same at 1", 1.6, True, against_fastest(1), "×"),
    Target("Triton over fastinfer, the same at 64", 6, True, against("triton", "triton-delay"), "×"),
    Target("FastAPI over fastinfer, the same at 64", 12, True, against("fastapi"), "×"),
    Target("p99 at 64 over the fastest peer's, MLP", 0.5, False, tail, "×"),
    Target("p50 at 1 over Starlette + orjson's, logistic regression", 0.60, False, lone("logistic"), "×"),
    Target("the same, MLP", 0.65, False, lone("mlp"), "×"),
    Target("records (20 mixed columns) over tensors of the same model, requests/s", 0.75, True, measured("records")),
    Target("JSON over binary requests (32 features), requests/s", 0.93, True, measured("binary")),
    Target("decode rate of a JSON body of 1,000 rows of 32", 1000, True, measured("decode"), " MB/s"),
    Target("the same over orjson + numpy", 3, True, measured("decode", "ratio"), "×"),
    Target("two workers over one at the same rate, CPU µs a request", 1.15, False, measured("workers"), "×"),
    Target("requests/s of one busy model among 1,000 loaded, over alone", 0.95, True, measured("models")),
    Target("requests/s with 5,000 idle connections over none", 0.95, True, measured("idle")),
    Target("growth of the resident memory", 1, False, measured("memory"), " MiB"),
)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def judged(results: Results) -> list[Outcome]:
    """A line a target, in their order."""
    outcomes = []
    for target in TARGETS:
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:,g}{target.unit}"
        try:
            figure = target.figure(results)
        except NoFigure as error:
            outcomes.append(Outcome(target.text, bound, "–", None, str(error)))
        else:
            outcomes.append(Outcome(target.text, bound, number(figure.value) + target.unit, target.met(figure.value),
                                    figure.detail))
    return outcomes


VERDICTS = {True: "met", False: "missed", None: "not measured"}


def markdown(outcomes: Sequence[Outcome]) -> str:
    lines = ["| measure | target | measured | | beside it |", "|---|---|---|---|---|"]
    lines += [f"| {each.text} | {each.bound} | {each.measured} | {VERDICTS[each.met]} | {cell(each.detail)} |"
              for each in outcomes]
    return "\n".join(lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
