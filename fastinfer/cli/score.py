"""`fastinfer score`: files scored by a model in process, with a bar on a terminal and a line at the end."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastinfer.scoring import Progress, Summary, score

EXIT_REJECTS = 1
EXIT_INTERRUPTED = 130


def run_score(model: Path, source: Path, out: Path, *, rejects: Path | None, keep: Sequence[str],
              features: Sequence[str] | None, restart: bool, allow_python_models: bool, trust_pickle: bool) -> int:
    """Score and print a line. Returns 0, 1 if rows were rejected, 130 if a signal ended it.

    Raises:
        ConfigurationError: what `fastinfer.scoring.score` raises.
    """
    with shown(sys.stderr.isatty()) as report:
        summary = score(model, source, out, rejects=rejects, keep=keep, features=features, restart=restart,
                        allow_python_models=allow_python_models, trust_pickle=trust_pickle, report=report)
    print(sentence(summary, out, rejects))
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_REJECTS if summary.rejected else 0


def sentence(summary: Summary, out: Path, rejects: Path | None) -> str:
    rows = summary.scored + summary.rejected
    fresh = rows - summary.resumed
    counts = f"{rows:,} rows in, {summary.scored:,} scored, {summary.rejected:,} rejected"
    if summary.rejected and not summary.interrupted:
        counts += f" (see {rejects or f'{out}.rejects.ndjson'})"
    if summary.resumed:
        counts += f"; {summary.resumed:,} of them before"
    speed = f"{summary.seconds:.1f} s, {fresh / max(summary.seconds, 1e-9):,.0f} rows/s"
    if summary.interrupted:
        return f"interrupted: {counts}, {speed}; the same command goes on from here"
    return f"{out}: {counts}, {speed}"


@contextmanager
def shown(terminal: bool) -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress on a terminal: a bar, rows, rows/s and the time left; elsewhere nothing."""
    try:
        if not terminal:
            raise ImportError
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield lambda progress: None
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rows]}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rows="")

        def report(progress: Progress) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rows = f"{progress.scored + progress.rejected:,} rows"
            if elapsed > 0:
                rows += f", {progress.fresh / elapsed:,.0f} rows/s"
            if progress.rejected:
                rows += f", {progress.rejected:,} rejected"
            bar.update(task, total=None if progress.done is None else 1.0, completed=progress.done or 0.0, rows=rows)

        yield report
