"""What is written of the results: the table of targets, that of servers, the picture, the sections of the pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import chart
import verdicts

ROOT = Path(__file__).resolve().parent.parent
NAMED = ("python", "onnxruntime", "uvloop", "uvicorn", "numpy")  # of the versions, what stands beside the picture
MARKER = re.compile(r"<!-- ([\w -]+): generated -->\n.*?<!-- /\1 -->", re.DOTALL)


def beside(found: dict[str, Any], model: str, concurrency: int) -> list[dict[str, Any]]:
    """fastinfer and every other server there, quickest first; fastinfer by its median over all of its pairings."""
    rows = [row for row in found["pairs"] if (row["model"], row["concurrency"]) == (model, concurrency)]
    own = [row for row in rows if row["server"] == "fastinfer"]
    middle = [{**sorted(own, key=lambda row: row["cpu_us"])[len(own) // 2], "cpu_ratio": 1.0}] if own else []
    return sorted([*middle, *(row for row in rows if row["server"] != "fastinfer")], key=lambda row: row["cpu_us"])


def servers_table(found: dict[str, Any]) -> str:
    lines = ["| model | connections | server | requests/s | p50 ms | p99 ms | CPU µs a request | over fastinfer's |",
             "|---|---|---|---|---|---|---|---|"]
    for model, concurrency in dict.fromkeys(sorted((row["model"], row["concurrency"]) for row in found["pairs"])):
        lines += [server_line(found, row) for row in beside(found, model, concurrency)]
    lines += [f"| {gap['model']} | | {verdicts.title(found, gap['server'])} | "
              f"{verdicts.cell(gap['reason'])} | | | | |" for gap in found["gaps"]]
    return "\n".join(lines)


def server_line(found: dict[str, Any], row: dict[str, Any]) -> str:
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    return (f"| {row['model']} | {row['concurrency']} | {verdicts.title(found, row['server'])} | "
            f"{row['rate']:,.0f}{failed} | {row['p50_us'] / 1000:.3f} | {row['p99_us'] / 1000:.3f} | "
            f"{row['cpu_us']:.1f} | {row['cpu_ratio']:.2f} |")


def settings_list(found: dict[str, Any]) -> str:
    return "\n".join(f"- **{server['title']}**: {server['setting']}"
                     + ("; " + " ".join(f"{name} {version}" for name, version in server["versions"].items())
                        if "versions" in server else "")
                     for server in found["servers"].values())


def circumstances(found: dict[str, Any]) -> str:
    machine, versions = found["machine"], found["servers"]["fastinfer"].get("versions", {})
    took = f", {found['took_s'] / 60:.0f} minutes" if "took_s" in found else ""
    return (f"{found['date']}: {machine['cores']} virtual cores of {machine['cpu']}, {machine['system']}, Linux "
            f"{machine['kernel']}, "
            + ", ".join(f"{name} {versions[name]}" for name in NAMED if name in versions)
            + f"; {found['rounds']} rounds of {found['seconds']} s{took}. Load before: {machine['load']}; time that "
            f"the host took away: {machine.get('stolen', 'unknown')}{foreign(found)}. `{found['command']}`"
            + "".join(f", and again `{run['command']}` on {run['date']}" for run in found.get("again", ())))


def foreign(found: dict[str, Any]) -> str:
    """How busy others kept the server's core: the first thing to know of a figure."""
    shares = sorted(row["foreign_cpu"] for row in found["pairs"])
    if not shares:
        return ""
    middle, most = shares[len(shares) // 2], shares[-1]
    return f"; share of the server's core that others used: {middle:.0%} in the middle, at most {most:.0%}"


def picture(found: dict[str, Any]) -> str:
    """CPU time a request at 64 connections, MLP.

    Raises:
        NoFigure: nothing was measured there.
    """
    rows = beside(found, "mlp", 64)
    if not rows:
        raise verdicts.NoFigure("nothing was measured with the MLP at 64 connections")
    bars = [chart.Bar(verdicts.title(found, row["server"]), row["cpu_us"], row["rate"], kind(found, row["server"]))
            for row in rows]
    machine, versions = found["machine"], found["servers"]["fastinfer"].get("versions", {})
    heading = "CPU time of the server a request: MLP, one row of 32 features as JSON, 64 connections"
    return chart.svg(bars, heading, [
        "Shorter is better. One process on one core, client on the other, one onnxruntime thread. Near the limit",
        "requests/s measure the client. Dashed: a limit, a fixed answer without HTTP parsing or a model.",
        f"{found['date']}, {machine['cores']} virtual cores of {machine['cpu']}, {machine['system']}, Python "
        f"{versions.get('python', '?')}, onnxruntime {versions.get('onnxruntime', '?')}.", found["command"],
    ])


def kind(found: dict[str, Any], server: str) -> str:
    """How the picture shows a server."""
    if server == "fastinfer":
        return "own"
    return "peer" if found["servers"][server]["computes"] else "limit"


def report(found: dict[str, Any]) -> str:
    return (f"# Results\n\nWritten by `bench/table.py`; how it is measured stands in [NOTES.md](NOTES.md).\n\n"
            f"{circumstances(found)}\n\n{verdicts.markdown(verdicts.judged(found))}\n\n{servers_table(found)}\n\n"
            f"{settings_list(found)}\n")


def summary(found: dict[str, Any]) -> str:
    """The picture, with its figures for those who do not see it, and how it came about."""
    outcomes = verdicts.judged(found)
    met, missed, absent = (sum(each.met is verdict for each in outcomes) for verdict in (True, False, None))
    told = f"Of {len(outcomes)} targets {met} are met and {missed} missed"
    told += f"; {absent} have no figure." if absent else "."
    return f"{drawing(found, 'docs/benchmark.svg')}\n\n{circumstances(found)}. {told}"


def drawing(found: dict[str, Any], path: str) -> str:
    """The picture in a page, its figures in the text that stands for it."""
    bars = "; ".join(f"{verdicts.title(found, row['server'])} {row['cpu_us']:.1f} µs"
                     for row in beside(found, "mlp", 64))
    return f"![CPU time a request by server: {bars}]({path})"


def sections(found: dict[str, Any]) -> dict[str, str]:
    """What stands between the markers of the pages."""
    return {"benchmark": summary(found), "picture": drawing(found, "benchmark.svg"),
            "circumstances": circumstances(found), "targets": verdicts.markdown(verdicts.judged(found)),
            "servers": servers_table(found), "settings": settings_list(found)}


def filled(text: str, parts: dict[str, str]) -> str:
    """A page with what its markers enclose renewed."""

    def fill(marker: re.Match[str]) -> str:
        return f"<!-- {marker[1]}: generated -->\n{parts[marker[1]]}\n<!-- /{marker[1]} -->"

    return MARKER.sub(fill, text)


def pages(found: dict[str, Any]) -> dict[Path, str]:
    """Every published file beside the results, and what it has to hold.

    Raises:
        NoFigure: there is nothing to draw.
    """
    parts = sections(found)
    written = {path: filled(path.read_text(), parts) for path in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")}
    return written | {ROOT / "bench" / "results.md": report(found), ROOT / "docs" / "benchmark.svg": picture(found)}
