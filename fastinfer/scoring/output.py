"""Answers as columns: what they are called, and their bytes in each format that is written.

A block's bytes follow from its rows alone, and all of them one behind the other are the partial file: text as it will
stand, or, for Parquet, a stream of Arrow record batches that `whole` turns into the file at the end.
"""

import gzip
import io
import json
import os
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastinfer._core import DATATYPES, DTYPES, Encoder, Signature, Tensor, encode_lines
from fastinfer.errors import ConfigurationError, RuntimeFailedError
from fastinfer.model import Model
from fastinfer.runtimes import Arrays
from fastinfer.scoring.files import Kind, arrow

ROW = "row"
GROUP_ROWS = 128 << 10  # of Parquet


class Member(NamedTuple):
    """Part of a prediction, as ``:predict`` names it.

    Attributes:
        key: its name.
        tensor: the output that it is.
        classes: names of its columns, or none.
    """

    key: str
    tensor: Tensor
    classes: tuple[str, ...] = ()

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one row's; () for a single value."""
        shape = self.tensor.shape[1:]
        return () if shape == (1,) and not self.classes else shape


def members_of(model: Model) -> list[Member]:
    """What a prediction of the model has, in order."""
    tensors = {tensor.name: tensor for tensor in model.signature.outputs}
    task = model.task
    if task is None:
        return [Member(name, tensor) for name, tensor in tensors.items()]
    beside = [Member(name, tensors[name]) for name in model.beside]
    if task.kind == "regressor":
        return [Member("value", tensors[str(task.value)]), *beside]
    members = [Member("label", tensors[str(task.label)])]
    if task.probabilities is not None:
        members.append(Member("probabilities", tensors[task.probabilities], tuple(task.classes)))
    return [*members, *beside]


class Answers:
    """Turns the answers to some rows into bytes.

    Args:
        kept: the columns of the input that go along: their Arrow types by name.

    Raises:
        ConfigurationError: an output that cannot be written, or two columns of one name.
    """

    def __init__(self, model: Model, kind: Kind, kept: Mapping[str, Any]) -> None:
        if kind.compression not in (None, "gzip"):
            raise ConfigurationError(f"--out: {kind.compression} is read, not written; write .gz")
        self.kind = kind
        self.kept = dict(kept)
        self.members = members_of(model)
        rows = [each._replace(shape=(-1, *each.shape[1:])) for each in model.signature.outputs]
        self.outputs = [each.name for each in rows]
        self.encoder = Encoder(model.name, model.version, Signature([], rows), model.task, model.beside)
        for member in self.members:
            if member.tensor.datatype == "BF16" or (member.tensor.datatype == "FP16" and kind.form == "ndjson"):
                raise ConfigurationError(f"the output {member.tensor.name!r} is {member.tensor.datatype}, which "
                                         f"{kind.form} does not hold")
        names = [ROW, *self.kept, *(name for member in self.members for name in self._names(member))]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"--keep: the output has a column {name!r} of its own"
                                         if name in self.kept else f"the model has two outputs called {name!r}")
        for name, held in self.kept.items():
            if not is_written(held, kind):
                raise ConfigurationError(f"--keep names {name!r}, which is {held}; {kind.form} does not hold that")
        self.schema: Any = None if kind.form == "ndjson" else self._schema()

    def _names(self, member: Member) -> list[str]:
        if self.kind.form == "ndjson" or not member.classes:
            return [member.key]
        return [f"{member.key}.{name}" for name in member.classes]

    def _schema(self) -> Any:
        pyarrow = arrow()
        fields = [pyarrow.field(ROW, pyarrow.int64()), *(pyarrow.field(*each) for each in self.kept.items())]
        for member in self.members:
            for name in self._names(member):
                value = pyarrow.string() if member.tensor.datatype == "BYTES" else pyarrow.from_numpy_dtype(
                    np.dtype(DTYPES[DATATYPES.index(member.tensor.datatype)]))
                for size in reversed(() if member.classes else member.row):
                    value = pyarrow.list_(value, size)
                fields.append(pyarrow.field(name, value))
        return pyarrow.schema(fields)

    # -- bytes -----------------------------------------------------------------------------------------------------
    def head(self) -> bytes:
        """What the partial file begins with."""
        if self.kind.form == "parquet":
            return bytes(self.schema.serialize())
        return self._packed(self._csv(self.schema.empty_table(), header=True)) if self.kind.form == "csv" else b""

    def rows(self, numbers: np.ndarray[Any, Any], kept: Any, outputs: Arrays) -> bytes:
        """Some rows.

        Args:
            numbers: int64 [rows].
            kept: a table of the kept columns, or None without any.
            outputs: the model's, rows first.

        Raises:
            RuntimeFailedError, InvalidOutputError: an output that is not as the model declares, or no UTF-8.
        """
        if self.kind.form == "ndjson":
            extras = None if kept is None else json_members(kept)
            arrays = [np.ascontiguousarray(outputs[name]) for name in self.outputs]
            return self._packed(encode_lines(self.encoder, arrays, numbers, extras))
        pyarrow = arrow()
        columns = [pyarrow.array(numbers)] + ([] if kept is None else kept.columns)
        for member in self.members:
            columns += self._columns(member, outputs[member.tensor.name])
        table = pyarrow.table(columns, schema=self.schema)
        if self.kind.form == "csv":
            return self._packed(self._csv(table))
        return b"".join([bytes(batch.serialize()) for batch in table.combine_chunks().to_batches()])

    def _columns(self, member: Member, array: np.ndarray[Any, Any]) -> list[Any]:
        pyarrow = arrow()
        shape = (len(array), *member.row)
        if len(array.shape) > len(shape) and array.size == len(array):
            array = array.reshape(shape)
        if array.ndim != len(shape) or any(w not in (-1, h) for w, h in zip(shape, array.shape, strict=True)) or (
                member.classes and array.shape[1] != len(member.classes)):
            raise RuntimeFailedError(f"the model's output {member.tensor.name!r} has shape {list(array.shape)}")
        if member.classes:
            return [pyarrow.array(np.ascontiguousarray(array[:, i])) for i in range(len(member.classes))]
        flat = array.ravel()
        if member.tensor.datatype == "BYTES":
            if any(not isinstance(each, str) for each in flat):
                raise RuntimeFailedError(f"the model's output {member.tensor.name!r} is not UTF-8")
            values = pyarrow.array(flat, pyarrow.string())
        else:
            values = pyarrow.array(np.ascontiguousarray(flat))
        for axis in range(array.ndim - 1, 0, -1):
            size, count = array.shape[axis], int(np.prod(array.shape[:axis]))
            values = pyarrow.FixedSizeListArray.from_arrays(values, size) if member.row[axis - 1] >= 0 else \
                pyarrow.ListArray.from_arrays(pyarrow.array(np.arange(count + 1, dtype=np.int32) * size), values)
        return [values]

    def _csv(self, table: Any, header: bool = False) -> bytes:
        pyarrow = arrow()
        from pyarrow import csv

        for i, field in enumerate(table.schema):
            kind = field.type
            if pyarrow.types.is_nested(kind):
                texts = [json.dumps(row, ensure_ascii=False, default=str) for row in table.column(i).to_pylist()]
                if pyarrow.types.is_floating(inner(kind)):
                    texts = [listed(row) for row in table.column(i).cast(textual(kind)).to_pylist()]
                table = table.set_column(i, field.name, pyarrow.array(texts, pyarrow.string()))
            elif pyarrow.types.is_float16(kind):
                table = table.set_column(i, field.name, table.column(i).cast(pyarrow.float32()))
            elif pyarrow.types.is_decimal(kind):
                table = table.set_column(i, field.name, table.column(i).cast(pyarrow.string()))
        sink = io.BytesIO()
        csv.write_csv(table, sink, csv.WriteOptions(include_header=header, delimiter=self.kind.delimiter))
        return sink.getvalue()

    def _packed(self, text: bytes) -> bytes:
        """Compressed by itself: files of gzip may be put one behind the other."""
        return gzip.compress(text, 6, mtime=0) if self.kind.compression and text else text

    # -- the whole -------------------------------------------------------------------------------------------------
    def whole(self, partial: Path, finished: Path) -> Path:
        """The file that goes into OUT's place: the partial one, or Parquet made of it at `finished`."""
        if self.kind.form != "parquet":
            return partial
        pyarrow = arrow()
        from pyarrow import parquet

        try:
            with pyarrow.memory_map(str(partial)) as source, pyarrow.ipc.open_stream(source) as stream, \
                    parquet.ParquetWriter(str(finished), self.schema, use_dictionary=self._repeated(),
                                          compression="snappy") as writer:
                waiting: list[Any] = []
                rows = 0
                for batch in stream:
                    waiting.append(batch)
                    rows += batch.num_rows
                    while rows >= GROUP_ROWS:
                        table = pyarrow.Table.from_batches(waiting, self.schema)
                        writer.write_table(table.slice(0, GROUP_ROWS), GROUP_ROWS)
                        waiting = table.slice(GROUP_ROWS).to_batches()
                        rows -= GROUP_ROWS
                if rows:
                    writer.write_table(pyarrow.Table.from_batches(waiting, self.schema), GROUP_ROWS)
        except (OSError, pyarrow.ArrowException) as error:
            raise ConfigurationError(f"{finished}: {getattr(error, 'strerror', None) or error}") from None
        with finished.open("rb") as file:
            os.fdatasync(file.fileno())
        return finished

    def _repeated(self) -> list[str]:
        """Columns whose values repeat: Parquet writes those as a dictionary."""
        types = arrow().types
        return [field.name for field in self.schema if types.is_string(field.type) or types.is_dictionary(field.type)]


def is_written(held: Any, kind: Kind) -> bool:
    """Whether a kept column of that type can be written: no bytes in text, no dictionary inside of something."""
    types = arrow().types
    if types.is_nested(held):
        return all(is_written(held.field(i).type, kind) for i in range(held.num_fields))
    binary = types.is_binary(held) or types.is_large_binary(held) or types.is_binary_view(held)
    if kind.form == "parquet":
        return not types.is_dictionary(held)
    return not binary and not types.is_fixed_size_binary(held)


def inner(kind: Any) -> Any:
    return inner(kind.value_type) if arrow().types.is_nested(kind) and hasattr(kind, "value_type") else kind


def textual(kind: Any) -> Any:
    """The type with text in the place of its floats: the shortest that is read back as the same."""
    pyarrow = arrow()
    if not pyarrow.types.is_nested(kind):
        return pyarrow.string()
    return pyarrow.list_(textual(kind.value_type))


def listed(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) else f"[{','.join(map(listed, value))}]"


def json_members(table: Any) -> list[bytes]:
    """The rows' values as members of JSON objects, with a comma in front of each."""
    keys = [f",{json.dumps(name, ensure_ascii=False)}:" for name in table.column_names]
    columns: Sequence[list[Any]] = [column.to_pylist() for column in table.columns]
    return ["".join([key + json_text(value) for key, value in zip(keys, row, strict=True)]).encode("utf-8", "replace")
            for row in zip(*columns, strict=True)]


def json_text(value: Any) -> str:
    """A value as JSON; NaN and infinities as null, and what JSON does not know as text."""
    if isinstance(value, float) and not np.isfinite(value):
        return "null"
    if isinstance(value, Decimal):
        return f"{value:f}"
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # deeper inside
        return json.dumps(str(value), ensure_ascii=False)
