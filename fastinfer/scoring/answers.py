"""From a block of a file to the bytes of its answers, and a reason for every row that has none."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastinfer.errors import FastinferError
from fastinfer.runtimes import Arrays
from fastinfer.scoring import columns
from fastinfer.scoring.fields import Fields
from fastinfer.scoring.files import Kind, arrow
from fastinfer.scoring.output import Answers, json_text
from fastinfer.scoring.sources import Block, Lines, Position, Reject

# "record 5, field 'age': …": which row it is stands beside the reason.
BEGINNING = re.compile(r"^(?:record|row) \d+(?:, field '.*?'(?=: ))?(?:: | )")
PLACE = re.compile(r"^\$\.records\[\d+\](?:\.([^.\[]+)|\[(\"(?:[^\"\\]|\\.)*\")\])?")


class Result(NamedTuple):
    """A block's bytes: what is appended to the output and to the rejects, and how many rows each has."""

    after: Position
    data: bytes
    rejects: bytes
    scored: int
    rejected: int


class Made(NamedTuple):
    """The rows of a block that can be made inputs of.

    Attributes:
        rows: which rows of the block they are.
        inputs: the inputs of `count` of them from `start`; raises FastinferError where one is at fault.
        kept: the table of kept columns, or None.
    """

    rows: np.ndarray[Any, Any]
    inputs: Callable[[int, int], Arrays]
    kept: Any


class Scorer:
    """Scores blocks; on any thread.

    Args:
        fields: what the model reads.
        kind: of the input.
        names: the input's columns.
        kept: those that go along.
        files: of the input, as a reject names them; none where there is one only.
    """

    def __init__(self, fields: Fields, answers: Answers, kind: Kind, names: Sequence[str], kept: Sequence[str],
                 files: Sequence[Path] = ()) -> None:
        self.fields = fields
        self.answers = answers
        self.kind = kind
        self.names = list(names)
        self.kept = list(kept)
        self.files = [each.name for each in files]

    def score(self, block: Block) -> Result:
        """Score a block; every row of it is in the result, as an answer or as a reject."""
        if block.reject is not None:
            return Result(block.after, b"", self._lines([block.reject]), 0, 1)
        rejects: list[Reject] = []
        made = self._made(block, rejects)
        parts = list(self._run(block, made, 0, len(made.rows), rejects))
        data, scored = b"", 0
        if parts:
            rows = np.concatenate([np.arange(start, start + count) for start, count, _ in parts])
            scored = len(rows)
            outputs = {name: np.concatenate([part[name] for _, _, part in parts]) if len(parts) > 1
                       else parts[0][2][name] for name in parts[0][2]}
            kept = made.kept if made.kept is None or scored == len(made.rows) else made.kept.take(rows)
            data = self.answers.rows(block.start.row + made.rows[rows], kept, outputs)
        rejects.sort()
        return Result(block.after, data, self._lines(rejects), scored, len(rejects))

    # -- rows --------------------------------------------------------------------------------------------------------
    def _made(self, block: Block, rejects: list[Reject]) -> Made:
        if self.kind.form == "ndjson":
            return self._made_of_lines(block, rejects)
        if self.kind.form == "csv":
            count = len(block.content.cells)
            lines, faults = columns.csv_rows(block.content, self.names)
            rows = np.array([row for row in range(count) if row not in faults], dtype=np.int64)
            table, unread = columns.csv_table(lines, self.names, self.fields.fields, self.kind.delimiter)
            kept = columns.csv_kept(lines, self.names, self.kept, self.kind.delimiter) if self.kept else None
        else:
            table = arrow().Table.from_batches([block.content])
            kept = columns.plain(table.select(self.kept)) if self.kept else None
            table = columns.readable(table, self.fields.fields)
            rows, faults, unread = np.arange(table.num_rows), {}, {}
        lost = columns.missing(table, self.fields.fields)
        bad = {**lost, **unread}
        faults |= {int(rows[row]): fault for row, fault in bad.items()}
        for row, (name, why) in faults.items():
            rejects.append(self._reject(block, row, "invalid_record", why, name or None))
        if bad:
            good = np.array([row for row in range(len(rows)) if row not in bad], dtype=np.int64)
            table, rows = table.take(good), rows[good]
            kept = None if kept is None else kept.take(good)
        needed = table.select(self.fields.names)
        return Made(rows, lambda start, count: self.fields.of_table(needed.slice(start, count)), kept)

    def _made_of_lines(self, block: Block, rejects: list[Reject]) -> Made:
        lines: Lines = block.content
        numbers = np.arange(len(lines.cells))
        decoded, faults = self.fields.decode(lines.text, lines.cells)
        wrong = {row: self._fault(block, row, error) for row, error in faults}
        parsed = {row: parsed_line(lines.text[begin:end]) for row, (begin, end) in enumerate(
            lines.cells[:, :2].tolist()) if row not in wrong} if self.kept else {}
        unread = [row for row, record in parsed.items() if record is None]
        if unread:  # the model would take them, and what is to be kept is lost
            why = "a number of more digits than are read, or nested too deep"
            wrong |= {row: self._reject(block, row, "invalid_json", why, None) for row in unread}
            numbers = np.array([row for row in numbers.tolist() if row not in wrong], dtype=np.int64)
            decoded, _ = self.fields.decode(lines.text, lines.cells[numbers])
        rejects.extend(wrong.values())
        rows = np.array([row for row in numbers.tolist() if row not in wrong], dtype=np.int64)
        arrays = decoded.arrays() if self.fields.model.program is None else None
        kept = None
        if self.kept:
            records = [parsed[row] or {} for row in rows.tolist()]
            kept = arrow().table({
                name: arrow().array([as_text(record.get(name)) for record in records], arrow().string())
                for name in self.kept}) if self.answers.kind.form != "ndjson" else Listed(self.kept, records)
        return Made(rows, lambda start, count: self.fields.of_rows(decoded, arrays, start, count), kept)

    def _run(self, block: Block, made: Made, start: int, count: int,
             rejects: list[Reject]) -> Iterator[tuple[int, int, Arrays]]:
        """Answers to those of so many rows that have one: (start, count, outputs), halving what fails."""
        if not count:
            return
        try:
            yield start, count, self.fields.run(made.inputs(start, count), count)
        except FastinferError as error:
            fault = error
        except Exception as error:  # an engine's own
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            fault = FastinferError(f"the model failed on this row: {first[:200]}")
        else:
            return
        if count == 1:
            rejects.append(self._fault(block, int(made.rows[start]), fault))
            return
        half = count // 2
        yield from self._run(block, made, start, half, rejects)
        yield from self._run(block, made, start + half, count - half, rejects)

    # -- rejects -----------------------------------------------------------------------------------------------------
    def _fault(self, block: Block, row: int, error: FastinferError) -> Reject:
        code = error.code if error.code != "internal" else "runtime_failed"
        place = PLACE.match(error.at or "")
        name = None
        if place is not None and (place[1] or place[2]):
            name = place[1] or json.loads(place[2])
        return self._reject(block, row, code, BEGINNING.sub("", str(error), count=1), name)

    def _reject(self, block: Block, row: int, code: str, reason: str, field: str | None) -> Reject:
        line = None
        if isinstance(block.content, Lines):
            line = block.start.line + int(block.content.cells[row, 2]) + 1
        return Reject(block.start.row + row, code, reason, field, line, block.start.file)

    def _lines(self, rejects: list[Reject]) -> bytes:
        lines = []
        for each in rejects:
            told: dict[str, Any] = {"row": each.row}
            if self.files:
                told["file"] = self.files[each.file]
            if each.line is not None:
                told["line"] = each.line
            if each.field is not None:
                told["field"] = each.field
            lines.append(json.dumps(told | {"code": each.code, "reason": each.reason}, ensure_ascii=False))
        return "".join([f"{line}\n" for line in lines]).encode("utf-8", "replace")


class Listed:
    """Kept values of NDJSON that goes to NDJSON: whatever they are, they stay it."""

    def __init__(self, names: list[str], records: list[dict[str, Any]]) -> None:
        self.column_names = names
        self.records = records

    def take(self, rows: np.ndarray[Any, Any]) -> "Listed":
        return Listed(self.column_names, [self.records[row] for row in rows.tolist()])

    @property
    def columns(self) -> list["Values"]:
        return [Values([record.get(name) for record in self.records]) for name in self.column_names]


class Values(list[Any]):
    def to_pylist(self) -> list[Any]:
        return list(self)


def parsed_line(line: bytes) -> dict[str, Any] | None:
    """A line that is a record, as Python reads it; None where it does not."""
    try:
        record: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record


def as_text(value: Any) -> str | None:
    """A JSON value in a column of text; half of a surrogate pair is no character."""
    if value is None:
        return None
    return (value if isinstance(value, str) else json_text(value)).encode("utf-8", "replace").decode()


