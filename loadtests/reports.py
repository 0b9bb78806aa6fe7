"""What verify.py leaves behind: JUnit XML for CI, a Markdown table, and a page with plots that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from recorder import BIN_SECONDS, Bin, Recording
from targets import Course, Judgement, Line, Verdict, bound_of, conclusion, shown

WIDTH, HEIGHT = 860, 190
# What no XML document may hold, not even escaped: a server's log can have it.
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 14, 28


class Result(NamedTuple):
    """One scenario that was run.

    Attributes:
        capacity: requests a second that its load was a share of.
        problem: why there is nothing to judge, if there is nothing.
    """

    name: str
    course: Course
    capacity: float
    recording: Recording
    judgement: Judgement | None
    problem: str = ""

    @property
    def verdict(self) -> Verdict:
        return Verdict.INVALID if self.judgement is None else self.judgement.verdict

    @property
    def conclusion(self) -> str:
        return f"invalid run: {self.problem}" if self.judgement is None else conclusion(self.judgement)


def overall(results: Sequence[Result]) -> Verdict:
    """A target missed for certain counts, whatever else could not be judged."""
    verdicts = {result.verdict for result in results}
    return next((verdict for verdict in (Verdict.MISSED, Verdict.INVALID) if verdict in verdicts), Verdict.MET)


def write(results: Sequence[Result], folder: Path, title: str) -> None:
    """junit.xml, report.md and report.html."""
    (folder / "report.md").write_text(markdown(results))
    (folder / "report.html").write_text(html(results, title))
    ElementTree.ElementTree(junit(results)).write(folder / "junit.xml", encoding="utf-8", xml_declaration=True)


def junit(results: Sequence[Result]) -> ElementTree.Element:
    """A suite a scenario, a case a target; what could not be judged is an error.

    In the form that Jenkins (its junit-10.xsd), GitLab and the readers of GitHub's actions have in common: counts at
    the suites, the reason both as a message and as the text.
    """
    suites = [(result, list(junit_cases(result))) for result in results]
    root = ElementTree.Element("testsuites", name="load", **counts([case for _, cases in suites for case in cases]))
    for result, cases in suites:
        suite = ElementTree.SubElement(root, "testsuite", name=result.name, time=f"{result.recording.seconds:.1f}",
                                       skipped="0", **counts(cases))
        suite.extend(cases)
    return root


def counts(cases: Sequence[ElementTree.Element]) -> dict[str, str]:
    return {"tests": str(len(cases)), **{f"{kind}s": str(sum(case.find(kind) is not None for case in cases))
                                         for kind in ("failure", "error")}}


def add_reason(case: ElementTree.Element, kind: str, text: str) -> None:
    text = NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
    ElementTree.SubElement(case, kind, message=(text.splitlines() or [""])[0], type=kind).text = text


def junit_cases(result: Result) -> Iterable[ElementTree.Element]:
    reasons = [result.problem] if result.judgement is None else list(result.judgement.reasons)
    for reason in reasons:
        case = ElementTree.Element("testcase", classname=f"load.{result.name}", name="the run counts", time="0")
        add_reason(case, "error", reason)
        yield case
    for line in result.judgement.lines if result.judgement else ():
        case = ElementTree.Element("testcase", classname=f"load.{result.name}",
                                   name=f"{line.target.users} {line.target.name}",
                                   time=f"{result.recording.seconds:.1f}")
        said = f"{shown(line.measured)}, wanted {bound_of(line.target)} {line.target.limit:g}, {line.samples} samples"
        if line.verdict is Verdict.MISSED:
            add_reason(case, "error" if reasons else "failure", said)
        elif line.verdict is Verdict.INVALID:
            add_reason(case, "error", line.note)
        ElementTree.SubElement(case, "system-out").text = f"{said} {line.note}".strip()
        yield case


def markdown(results: Sequence[Result]) -> str:
    lines = ["| scenario | of | target | limit | measured | samples | |", "|---|---|---|---|---|---|---|"]
    for result in results:
        lines += [f"| {result.name} | {line.target.users} | {line.target.name} | {limit(line)} | "
                  f"{shown(line.measured)} | {line.samples} | {line.note or line.verdict.name.lower()} |"
                  for line in (result.judgement.lines if result.judgement else ())]
    concluded = [f"- **{result.name}** (C = {result.capacity:.0f}/s): {listed(result.conclusion)}"
                 for result in results]
    return "\n".join([*lines, "", *concluded, ""])


def listed(text: str) -> str:
    """For a list's item: what follows the first line, a log's end, as it is."""
    first, *rest = text.splitlines() or [""]
    return "\n".join([first, "", "  ````", *(f"  {line}" for line in rest), "  ````"]) if rest else first


def limit(line: Line) -> str:
    return f"{'≥' if bound_of(line.target) == '>=' else '≤'} {line.target.limit:g}"


STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 900px; padding: 0 1rem;
  background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #e6edf3) }
table { border-collapse: collapse } td, th { padding: .2rem .7rem; text-align: left;
  border-bottom: 1px solid light-dark(#d1d9e0, #3d444d) } td.n { text-align: right; font-variant-numeric: tabular-nums }
.met { color: light-dark(#1a7f37, #3fb950) } .missed { color: light-dark(#cf222e, #f85149) }
.invalid { color: light-dark(#9a6700, #d29922) }
svg { width: 100%; height: auto; margin-top: .6rem } svg text { font-size: 12px; fill: currentColor }
.axis { stroke: currentColor; opacity: .25 } .mark { stroke: currentColor; stroke-dasharray: 3 4; opacity: .45 }
.p50 { stroke: #1a7f37 } .p99 { stroke: #0969da } .slo { stroke: #cf222e; stroke-dasharray: 6 4 }
.line { fill: none; stroke-width: 1.7 }
.good { fill: #2da44e } .late { fill: #bf8700 } .refused { fill: #8c959f } .failed { fill: #cf222e }
"""


def html(results: Sequence[Result], title: str) -> str:
    parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>",
             "<meta name='viewport' content='width=device-width'>", f"<style>{STYLE}</style>",
             f"<h1>{escape(title)}</h1>"]
    for result in results:
        state = result.verdict.name.lower()
        parts += [f"<h2>{escape(result.name)} <span class='{state}'>{state}</span></h2>",
                  f"<p>{escape(result.conclusion)}<br>C = {result.capacity:.0f} requests/s; "
                  f"{result.recording.all().requests} requests in {result.recording.seconds:.1f} s; the generator used "
                  f"{result.recording.generator_cpu:.0%} of its core and sent "
                  f"{or_none(result.recording.lag.percentile(99))} ms late at p99.</p>"]
        if result.judgement and result.judgement.lines:
            parts.append(html_table(result.judgement.lines))
        if result.recording.timeline:
            parts += [latency_plot(result), rate_plot(result)]
    return "\n".join([*parts, "</html>", ""])


def or_none(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def html_table(lines: Sequence[Line]) -> str:
    rows = "".join(
        f"<tr><td>{escape(line.target.users)}<td>{escape(line.target.name)}<td class='n'>{limit(line)}"
        f"<td class='n'>{shown(line.measured)}<td class='n'>{line.samples}"
        f"<td class='{line.verdict.name.lower()}'>{escape(line.note or line.verdict.name.lower())}" for line in lines)
    return f"<table><tr><th>of<th>target<th>limit<th>measured<th>samples<th>{rows}</table>"


def by_second(recording: Recording) -> dict[int, Bin]:
    """The timeline in steps of a second."""
    seconds: dict[int, Bin] = {}
    for number, piece in recording.timeline.items():
        seconds.setdefault(int(number * BIN_SECONDS), Bin()).merge(piece)
    return dict(sorted(seconds.items()))


class Plot:
    """An SVG with time to the right; ``top`` is the largest value shown."""

    def __init__(self, caption: str, seconds: float, top: float, unit: str) -> None:
        self.seconds, self.top = max(1.0, seconds), top or 1.0
        self.parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'><title>{escape(caption)}</title>"]
        for step in range(5):
            value = self.top * step / 4
            y = self.y(value)
            self.parts += [f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>",
                           f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{value:,.0f}</text>"]
        self.parts.append(f"<text x='{LEFT}' y='{HEIGHT - 4}'>{escape(caption)}, {unit} over {seconds:.0f} s</text>")

    def x(self, second: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * second / self.seconds

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, self.top) / self.top

    def line(self, name: str, points: Sequence[tuple[float, float]]) -> None:
        path = " ".join(f"{self.x(second):.1f},{self.y(value):.1f}" for second, value in points)
        self.parts.append(f"<polyline class='line {name}' points='{path}'/>")

    def bar(self, name: str, second: float, low: float, high: float) -> None:
        width = max(1.0, self.x(1) - self.x(0) - 1)
        self.parts.append(f"<rect class='{name}' x='{self.x(second):.1f}' y='{self.y(high):.1f}' width='{width:.1f}' "
                          f"height='{max(0.0, self.y(low) - self.y(high)):.1f}'/>")

    def marks(self, recording: Recording) -> None:
        for name, second in recording.marks.items():
            x = self.x(second)
            self.parts += [f"<line class='mark' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}'/>",
                           f"<text x='{x + 3:.1f}' y='{TOP + 8}'>{escape(name)}</text>"]

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>"])


def latency_plot(result: Result) -> str:
    """p50 (green) and p99 (blue) of what was answered, by the second in which it was due; the SLO in red."""
    seconds = {second: piece for second, piece in by_second(result.recording).items() if piece.answered}
    lines = {name: [(second + 0.5, piece.percentile(percent)) for second, piece in seconds.items()]
             for name, percent in (("p50", 50), ("p99", 99))}
    top = max([value for points in lines.values() for _, value in points] + [result.course.slo_ms or 0.0])
    plot = Plot("latency of the answered: p50 green, p99 blue", max(seconds, default=0) + 1, top, "ms")
    for name, points in lines.items():
        plot.line(name, points)
    if result.course.slo_ms:
        plot.line("slo", [(0, result.course.slo_ms), (plot.seconds, result.course.slo_ms)])
    plot.marks(result.recording)
    return plot.svg()


def rate_plot(result: Result) -> str:
    """What became of the requests due in each second: in time, late, refused, failed, one upon the other."""
    seconds = by_second(result.recording)
    plot = Plot("requests due: in time green, late yellow, refused grey, failed red", max(seconds, default=0) + 1,
                max(piece.requests for piece in seconds.values()), "a second")
    slo = result.course.slo_ms or math.inf
    for second, piece in seconds.items():
        good, low = piece.answered if math.isinf(slo) else piece.within(slo), 0
        for name, count in (("good", good), ("late", piece.answered - good), ("refused", piece.refused),
                            ("failed", piece.failed)):
            if count:
                plot.bar(name, second, low, low + count)
            low += count
    plot.marks(result.recording)
    return plot.svg()
