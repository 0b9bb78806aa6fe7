"""Files scored by a model in process: `fastinfer score`.

A file is read in blocks (`sources`), each becomes the model's inputs (`columns`, `fields`) and its answers bytes
(`answers`, `output`), on a thread a CPU; they are appended in order, and a state tells how far they are good
(`checkpoint`). Memory is that of a few blocks, whatever the file's size.
"""

import hashlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastinfer import __version__
from fastinfer.errors import ConfigurationError
from fastinfer.lifecycle import find_one
from fastinfer.repository import CONFIG, DECISION, Found
from fastinfer.scoring.answers import Result, Scorer
from fastinfer.scoring.checkpoint import Checkpoint, State, beside
from fastinfer.scoring.columns import check_types
from fastinfer.scoring.fields import Fields
from fastinfer.scoring.files import arrow, inputs_at, kind_of
from fastinfer.scoring.output import Answers
from fastinfer.scoring.sources import CHUNK, Parquet, Position, Source, Text, source_of
from fastinfer.settings import Settings
from fastinfer.versions import load_found


class Progress(NamedTuple):
    """How far a run is: rows since its beginning, those of this process, and the share of the input, if known."""

    scored: int
    rejected: int
    fresh: int
    done: float | None


class Summary(NamedTuple):
    """What a run did.

    Attributes:
        scored, rejected: rows.
        resumed: rows that a run before it had done.
        seconds: of this run.
        interrupted: by a signal; the same call goes on.
    """

    scored: int
    rejected: int
    resumed: int
    seconds: float
    interrupted: bool


def score(model: Path, source: Path, out: Path, *, rejects: Path | None = None, keep: Sequence[str] = (),
          features: Sequence[str] | None = None, restart: bool = False,
          allow_python_models: bool = False, trust_pickle: bool = False,
          report: Callable[[Progress], None] = lambda progress: None) -> Summary:
    """Score the rows of files.

    Args:
        model: as `fastinfer.load` takes it.
        source: a Parquet, CSV or NDJSON file, or a folder of such.
        out: the file to write, in the format of its suffix; it appears when it is whole.
        rejects: where the rows go that have no answer, by default beside `out`.
        keep: columns of the input that go along.
        features: the columns of a wide tensor, in order.
        restart: do not go on where a run before this one was interrupted.
        allow_python_models, trust_pickle: as the server's settings.
        report: called after each block.

    Raises:
        ConfigurationError: a path, the model, or a file that cannot be scored as a whole.
    """
    arrow()
    started = time.monotonic()
    out_kind = kind_of(out, "--out")
    rejects = rejects or beside(out, ".rejects.ndjson")
    files, kind = inputs_at(source)
    refuse_overwriting(files, out, rejects)
    from fastinfer.runtimes.onnx import usable_cpus

    threads = usable_cpus()
    found = find_one(model)
    loaded = load_found(found, Settings(workers=threads, allow_python_models=allow_python_models,
                                        trust_pickle=trust_pickle))
    reader = source_of(files, kind)
    first = reader.first() if isinstance(reader, Text) and kind.form == "ndjson" else {}
    fields = Fields(loaded, reader.names, first, keep, features)
    kept = kept_types(reader, keep)
    if isinstance(reader, Parquet):
        check_types(reader.schema, fields.fields, str(files[0]))
    reader.want(list(dict.fromkeys([*fields.names, *keep])), fields.block_rows)
    answers = Answers(loaded, out_kind, kept)
    scorer = Scorer(fields, answers, kind, reader.names, keep, files if len(files) > 1 else ())
    checkpoint = Checkpoint(out, rejects, identity(found, files, out, rejects, fields, keep), restart=restart)
    before = checkpoint.state.scored + checkpoint.state.rejected
    interrupted = False
    if not checkpoint.state.complete:
        interrupted = run(reader, scorer, checkpoint, threads, report)
    state = checkpoint.state
    if not interrupted:
        checkpoint.place(answers.whole(checkpoint.partial, beside(out, ".new")) if checkpoint.partial.exists()
                         else checkpoint.partial)
    return Summary(state.scored, state.rejected, before, time.monotonic() - started, interrupted)


def run(reader: Source, scorer: Scorer, checkpoint: Checkpoint, threads: int,
        report: Callable[[Progress], None]) -> bool:
    """Score what is left; whether a signal ended it before the end. What was done is on disk in any case."""
    checkpoint.open()
    try:
        state = checkpoint.state
        if state.position is None:
            checkpoint.append(scorer.answers.head(), b"", State(position=Position()._asdict()))
        before = state.scored + state.rejected
        position = Position(**(checkpoint.state.position or {}))
        with interruptions() as stopped, ThreadPoolExecutor(threads, "score") as pool:
            for result in ahead(pool, scorer, reader, position, threads + 1, stopped):
                state = checkpoint.state
                state = State(result.after._asdict(), state.scored + result.scored, state.rejected + result.rejected)
                checkpoint.append(result.data, result.rejects, state)
                report(Progress(state.scored, state.rejected, state.scored + state.rejected - before,
                                reader.done(result.after)))
        if stopped:
            checkpoint.save()
            return True
        checkpoint.complete()
        return False
    finally:
        checkpoint.close()


def ahead(pool: ThreadPoolExecutor, scorer: Scorer, reader: Source, position: Position, depth: int,
          stopped: list[int]) -> Iterator[Result]:
    """The results of the blocks from a position on, in order, while so many of them are being scored."""
    blocks = reader.blocks(position)
    waiting: deque[Future[Result]] = deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(scorer.score, block))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
            if stopped:
                return
        while waiting and not stopped:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are put down in the list; a second one does what it always does."""
    stopped: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, stop)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield stopped
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def refuse_overwriting(files: Sequence[Path], out: Path, rejects: Path) -> None:
    if out.is_dir():
        raise ConfigurationError(f"--out is {out}, which is a folder; it takes a file.")
    if rejects.is_dir():
        raise ConfigurationError(f"--rejects is {rejects}, which is a folder; it takes a file.")
    resolved = {each.resolve() for each in files}
    if out.resolve() in resolved or rejects.resolve() in resolved or out.resolve() == rejects.resolve():
        raise ConfigurationError("IN, --out and --rejects are different files.")
    if files[0].parent.resolve() == out.parent.resolve() and len(files) > 1:
        raise ConfigurationError(f"--out is {out}, in the folder whose files are scored; it takes another place.")


def kept_types(reader: Source, keep: Sequence[str]) -> dict[str, Any]:
    """The Arrow types of the kept columns: those of Parquet, text otherwise."""
    pyarrow = arrow()
    for name in keep:
        if reader.names and reader.names.count(name) != 1:
            raise ConfigurationError(f"--keep names {name!r}; the file has "
                                     f"{'it twice' if name in reader.names else ', '.join(reader.names)}.")
    if not isinstance(reader, Parquet):
        return {name: pyarrow.string() for name in keep}
    from fastinfer.scoring.columns import plain

    table = plain(reader.schema.empty_table().select(list(keep)))
    return dict(zip(table.column_names, table.schema.types, strict=True))


def identity(found: Found, files: Sequence[Path], out: Path, rejects: Path, fields: Fields,
             keep: Sequence[str]) -> dict[str, Any]:
    """What the output follows from, by what a person calls it."""
    configured = (found.folder / CONFIG, found.folder.parent / CONFIG, found.folder / DECISION)
    parts = [each for each in (found.file, found.program, *(found.folder.glob("*.data")), *configured)
             if each is not None and each.is_file()]
    return {
        "an input": [[str(each.resolve()), each.stat().st_size, each.stat().st_mtime_ns] for each in files],
        "a model": {each.name: digest(each) for each in parts},
        "options": {"keep": list(keep), "features": fields.names, "rejects": str(rejects.resolve()),
                    "out": str(out.resolve())},
        "a version of fastinfer": [__version__, fields.block_rows, fields.run_rows, CHUNK],
    }


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
