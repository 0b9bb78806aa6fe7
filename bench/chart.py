"""The picture: CPU time a request by server, as bars, in SVG written by hand.

It brings its own background, light or dark as the reader's system is, so that the text can be read on a page of either
theme. The figures are in the description too, for those who do not see the bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 900
NAME = 230  # where the bars begin
FULL = 400  # length of the longest
HEIGHT, GAP = 22, 10
TOP = 54
FONT = "font-family='-apple-system,Segoe UI,Helvetica,Arial,sans-serif'"
EDGE = 20
STYLE = """\
<style>
.page { fill: #ffffff; stroke: #d1d9e0 } .text { fill: #1f2328 }
.own { fill: #1a7f37 } .peer { fill: #8c959f } .limit { fill: none; stroke: #9a6700; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; stroke: #3d444d } .text { fill: #e6edf3 }
.own { fill: #3fb950 } .peer { fill: #6e7681 } .limit { stroke: #d29922 }
}
</style>"""


@dataclass(frozen=True)
class Bar:
    """One server. ``kind`` is "own", "peer" or "limit"; ``rate`` in requests a second, ``cpu`` in microseconds."""

    name: str
    cpu: float
    rate: float
    kind: str

    @property
    def label(self) -> str:
        return f"{self.cpu:,.1f} µs · {self.rate:,.0f} requests/s"


def svg(bars: Sequence[Bar], heading: str, caption: Sequence[str]) -> str:
    """The picture as text.

    Args:
        bars: at least one, in the order shown.
        caption: lines below: what was measured, on what, how.
    """
    longest = max(bar.cpu for bar in bars)
    height = TOP + len(bars) * (HEIGHT + GAP) + 18 * len(caption) + EDGE
    spoken = "; ".join(f"{bar.name}: {bar.label}" for bar in bars)
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' "
        "role='img' aria-labelledby='title description'>",
        f"<title id='title'>{escape(heading)}</title>",
        f"<desc id='description'>{escape(spoken)}. {escape(' '.join(caption))}</desc>",
        STYLE,
        f"<rect class='page' x='0.5' y='0.5' width='{WIDTH - 1}' height='{height - 1}' rx='8'/>",
        text(EDGE, 32, heading, size=17, weight=600),
    ]
    for index, bar in enumerate(bars):
        y = TOP + index * (HEIGHT + GAP)
        length = max(2.0, bar.cpu / longest * FULL)
        lines += [
            text(NAME - 12, y + 16, bar.name, anchor="end", weight=600 if bar.kind == "own" else 400),
            f"<rect class='{bar.kind}' x='{NAME}' y='{y}' width='{length:.1f}' height='{HEIGHT}' rx='3'/>",
            text(NAME + length + 8, y + 16, bar.label, weight=600 if bar.kind == "own" else 400),
        ]
    base = TOP + len(bars) * (HEIGHT + GAP) + 16
    lines += [text(EDGE, base + 18 * index, line, size=12) for index, line in enumerate(caption)]
    return "\n".join([*lines, "</svg>", ""])


def text(x: float, y: float, content: str, *, size: int = 14, anchor: str = "start", weight: int = 400) -> str:
    return (f"<text class='text' x='{x:.1f}' y='{y}' {FONT} font-size='{size}' font-weight='{weight}' "
            f"text-anchor='{anchor}'>{escape(content)}</text>")
