"""Files of rows, read in blocks: where a block ends follows from where it begins alone, so that a run can go on."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastinfer._core import split_rows
from fastinfer.errors import ConfigurationError
from fastinfer.scoring.files import Kind, arrow

CHUNK = 4 << 20  # bytes of text in a block at most, where no row is longer
MAX_ROW = 64 << 20  # bytes of text that a row may have
MAX_BLOCK = 32 << 20  # bytes of a block of Parquet, as its metadata has them
READ = 1 << 20


class Position(NamedTuple):
    """A place between two rows.

    Attributes:
        file: which one.
        offset: bytes of its text, decompressed, or rows of the row group.
        group: of Parquet.
        row: rows before it, of all files.
        line: lines before it, of its file.
    """

    file: int = 0
    offset: int = 0
    group: int = 0
    row: int = 0
    line: int = 0


class Reject(NamedTuple):
    """A row that was not scored: its number, from 0 over all files, and the line at which it begins, from 1."""

    row: int
    code: str
    reason: str
    field: str | None = None
    line: int | None = None
    file: int = 0


class Lines(NamedTuple):
    """Rows of text: the text, and [rows, 4] cells of `split_rows`."""

    text: bytes
    cells: np.ndarray[Any, Any]


class Block(NamedTuple):
    """Some rows: a pyarrow RecordBatch, or `Lines`; or one that could not be read, in `reject`."""

    start: Position
    after: Position
    content: Any = None
    reject: Reject | None = None


class Source(Protocol):
    """Files of one kind.

    Attributes:
        names: the columns, in order; empty where each row names its own.
    """

    names: list[str]

    def want(self, names: Sequence[str], block_rows: int) -> None:
        """Read these columns, and so many rows at once at most."""

    def blocks(self, position: Position) -> Iterator[Block]:
        """The blocks from a position on."""
        ...

    def done(self, position: Position) -> float | None:
        """Which share of the input is before the position; None where that is not known."""
        ...


def source_of(files: Sequence[Path], kind: Kind) -> Source:
    """
    Raises:
        ConfigurationError: a file cannot be read, or is not what its name says.
    """
    return Parquet(files) if kind.form == "parquet" else Text(files, kind)


def unreadable(file: Path, error: Exception) -> ConfigurationError:
    message = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConfigurationError(f"{file}: {message[:300]}")


class Parquet:
    """Parquet files with the same columns.

    Attributes:
        schema: of the first.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.wanted: list[str] = []
        self.block_rows = 1
        self.rows = 0
        schemas = []
        for file in files:
            with self._open(file) as parquet:
                schemas.append(parquet.schema_arrow)
                self.rows += parquet.metadata.num_rows
        self.schema = schemas[0]
        self.names: list[str] = list(self.schema.names)
        for file, schema in zip(files, schemas, strict=True):
            if not schema.equals(self.schema):
                raise ConfigurationError(f"{file} has other columns than {files[0]}, or of other types.")

    def want(self, names: Sequence[str], block_rows: int) -> None:
        """Read these columns, and so many rows at once at most."""
        self.wanted = list(names)
        self.block_rows = block_rows

    def _open(self, file: Path) -> Any:
        pyarrow = arrow()
        import pyarrow.parquet as parquet

        try:
            return parquet.ParquetFile(str(file), buffer_size=READ, pre_buffer=False)
        except (OSError, pyarrow.ArrowException) as error:
            raise unreadable(file, error) from None

    def blocks(self, position: Position) -> Iterator[Block]:
        pyarrow = arrow()
        for number in range(position.file, len(self.files)):
            if number > position.file:
                position = Position(number, row=position.row)
            with self._open(self.files[number]) as parquet:
                try:
                    for block in self._file(parquet, position):
                        yield block
                        position = block.after
                except (OSError, pyarrow.ArrowException) as error:
                    raise unreadable(self.files[number], error) from None

    def _file(self, parquet: Any, position: Position) -> Iterator[Block]:
        for group in range(position.group, parquet.num_row_groups):
            if group > position.group:
                position = position._replace(group=group, offset=0)
            skip = position.offset
            for batch in parquet.iter_batches(self._rows(parquet.metadata.row_group(group)), [group], self.wanted):
                if skip:
                    skip -= batch.num_rows
                    continue
                after = position._replace(offset=position.offset + batch.num_rows, row=position.row + batch.num_rows)
                yield Block(position, after, batch)
                position = after

    def _rows(self, group: Any) -> int:
        """Fewer at once where rows are long."""
        size = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns)
                   if group.column(i).path_in_schema.split(".")[0] in self.wanted)
        return max(1, min(self.block_rows, int(MAX_BLOCK * group.num_rows // max(size, 1))))

    def done(self, position: Position) -> float | None:
        return position.row / self.rows if self.rows else 1.0


class Text:
    """CSV with a header, or NDJSON; decompressed while it is read."""

    def __init__(self, files: Sequence[Path], kind: Kind) -> None:
        self.files = files
        self.kind = kind
        self.delimiter = kind.delimiter if kind.form == "csv" else None
        self.block_rows = 1
        self.names: list[str] = []
        for number, file in enumerate(files):
            try:
                self.sizes = [each.stat().st_size for each in files]
                with self._open(file) as stream:
                    names = self._header(Window(stream), file)
            except OSError as error:
                raise unreadable(file, error) from None
            if number and names != self.names:
                raise ConfigurationError(f"{file} has other columns than {files[0]}, or in another order.")
            self.names = names

    def want(self, names: Sequence[str], block_rows: int) -> None:
        self.block_rows = block_rows

    def _open(self, file: Path) -> Any:
        return arrow().input_stream(str(file), compression=self.kind.compression)

    def _header(self, window: "Window", file: Path) -> list[str]:
        """The names of a CSV file's columns, when the window is at its beginning; leaves the window behind them."""
        if window.peek(3)[:3] == b"\xef\xbb\xbf":
            window.drop(3)
        if self.delimiter is None:
            return []
        size = CHUNK
        cells, used, lines = split_rows(window.peek(size), 1, window.ended(size), self.delimiter)
        if not len(cells):
            raise ConfigurationError(f"{file} has no header, or one that is longer than {CHUNK >> 20} MiB.")
        try:
            text = window.peek(size)[cells[0, 0] : cells[0, 1]].decode()
        except UnicodeDecodeError:
            raise ConfigurationError(f"{file}: the header is not UTF-8.") from None
        window.drop(used, lines)
        try:
            return next(csv.reader([text], delimiter=self.delimiter))
        except csv.Error as error:
            raise ConfigurationError(f"{file}: the header cannot be read: {error}") from None

    def first(self) -> dict[str, Any]:
        """The first NDJSON record that is one, among the first lines."""
        try:
            with self._open(self.files[0]) as stream:
                window = Window(stream)
                self._header(window, self.files[0])
                text = window.peek(CHUNK)
        except OSError as error:
            raise unreadable(self.files[0], error) from None
        for line in text.split(b"\n", 64)[:64]:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                return record
        return {}

    def blocks(self, position: Position) -> Iterator[Block]:
        for number in range(position.file, len(self.files)):
            if number > position.file:
                position = Position(number, row=position.row)
            file = self.files[number]
            try:
                with self._open(file) as stream:
                    window = Window(stream)
                    self._header(window, file)
                    if position.offset:
                        window.skip(position.offset, position.line, seek=self.kind.compression is None)
                    else:
                        position = position._replace(offset=window.offset, line=window.line)
                    while (block := self._block(window, position)) is not None:
                        yield block
                        position = block.after
            except OSError as error:
                raise unreadable(file, error) from None

    def _block(self, window: "Window", position: Position) -> Block | None:
        """The next rows; None at the end of the file."""
        size = CHUNK
        while True:
            view = window.peek(size)
            if not view:
                return None
            last = window.ended(size)
            cells, used, lines = split_rows(view, self.block_rows, last, self.delimiter)
            if len(cells) or (last and used == len(view)):
                break
            if used:  # blank lines
                window.drop(used, lines)
                position = self._after(window, position)
                continue
            if last:
                return None
            if size >= MAX_ROW:
                return self._too_long(window, position)
            size *= 2
        text = bytes(view[:used])
        window.drop(used, lines)
        if not len(cells):
            return None
        return Block(position, self._after(window, position, len(cells)), Lines(text, cells))

    def _after(self, window: "Window", position: Position, rows: int = 0) -> Position:
        return position._replace(offset=window.offset, line=window.line, row=position.row + rows)

    def _too_long(self, window: "Window", position: Position) -> Block:
        """Pass a row by up to the next line break, quoted or not."""
        line = window.line
        while view := window.peek(CHUNK):
            end = view.find(b"\n")
            used = len(view) if end < 0 else end + 1
            window.drop(used, int(end >= 0))
            if end >= 0:
                break
        reject = Reject(position.row, "invalid_record", f"longer than {MAX_ROW >> 20} MiB", None, line + 1,
                        position.file)
        return Block(position, self._after(window, position, 1), reject=reject)

    def done(self, position: Position) -> float | None:
        if self.kind.compression:
            return None
        return min(1.0, (sum(self.sizes[: position.file]) + position.offset) / max(sum(self.sizes), 1))


class Window:
    """The bytes of a stream that come next."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.offset = 0
        self.line = 0
        self._buffer = b""
        self._begin = 0
        self._end = False

    def peek(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end."""
        have = len(self._buffer) - self._begin
        if have < size + 1 and not self._end:  # one more, to know whether there is an end
            parts = [self._buffer[self._begin :]]
            while have < size + 1:
                part = self.stream.read(max(READ, size + 1 - have))
                if not part:
                    self._end = True
                    break
                parts.append(part)
                have += len(part)
            self._buffer, self._begin = b"".join(parts), 0
        return self._buffer[self._begin : self._begin + size]

    def ended(self, size: int) -> bool:
        """Whether nothing comes behind what `peek` gave."""
        return self._end and len(self._buffer) - self._begin <= size

    def drop(self, size: int, lines: int = 0) -> None:
        self._begin += size
        self.offset += size
        self.line += lines

    def skip(self, offset: int, line: int, *, seek: bool) -> None:
        """Go on at `offset`, which is in that line."""
        if seek:
            self.stream.seek(offset)
            self._buffer, self._begin, self._end = b"", 0, False
            self.offset = offset
        while self.offset < offset:
            view = self.peek(min(CHUNK, offset - self.offset))
            if not view:
                raise OSError("the file is shorter than it was")
            self.drop(len(view))
        self.line = line
