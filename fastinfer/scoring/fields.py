"""What a row of a file must have for a model, and how rows become the model's inputs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastinfer._core import Rows, Signature, Tensor, decode_lines, transform_rows
from fastinfer.errors import ConfigurationError, FastinferError, RuntimeFailedError
from fastinfer.model import Model
from fastinfer.options import nearest
from fastinfer.runtimes import Arrays
from fastinfer.tensors import tensors_from

MIN_ROWS, MAX_ROWS = 64, 16_384
BLOCK_BYTES = 16 << 20  # of a block's tensors
RUN_ROWS = 512  # of one run of a model: onnxruntime's trees take three times as long a row from 2,048 rows on


class Field(NamedTuple):
    """A column that a model reads.

    Attributes:
        datatype: as the protocol names it.
        nullable: whether it may be missing.
        many: values in a row; -1 where that varies.
        time: its text is a date; a column of timestamps will do.
    """

    name: str
    datatype: str
    nullable: bool = False
    many: int = 1
    time: bool = False


class Fields:
    """The columns that a model reads from one input.

    Args:
        features: the columns of a model's one wide input, in order, where they are given.
        columns: what the files have; empty where each row names its own fields, `first` then being one of them.
        kept: columns that are no features.

    Raises:
        ConfigurationError: the model's inputs cannot be made of these columns.
    """

    def __init__(self, model: Model, columns: Sequence[str], first: dict[str, Any], kept: Sequence[str],
                 features: Sequence[str] | None) -> None:
        self.model = model
        self.wide: Tensor | None = None
        for tensor in (*model.inner.inputs, *model.inner.outputs):
            if not tensor.shape or tensor.shape[0] not in (-1, 1):
                raise ConfigurationError(f"model {model.name} takes and gives {list(tensor.shape)} in {tensor.name!r}: "
                                         "only a model that answers row by row scores files.")
        if features is not None and (model.program is not None or not self._takes(len(features))):
            raise ConfigurationError(f"--features names {len(features)} columns; model {model.name} takes "
                                     f"{', '.join(f'{each.name} {list(each.shape)}' for each in self._inputs())}.")
        names = [tensor.name for tensor in self._inputs()]
        given = columns or list(first)
        if features is None and model.signature.features and set(model.signature.features) <= set(given):
            features = model.signature.features
        if features is None and model.program is None and not set(names) <= set(given):
            rest = [name for name in given if name not in kept]
            if self._takes(len(rest)):
                features = rest
            elif len(names) == 1 and names[0] not in given and len(model.inner.inputs[0].shape) == 2:
                raise ConfigurationError(
                    f"model {model.name} takes {model.inner.inputs[0].shape[1]} features, and the file has "
                    f"{len(rest)} other columns than those to keep: name them with --features, in order.")
        if features is not None:
            self.wide = model.inner.inputs[0]
            self.fields = [Field(name, self.wide.datatype, self.wide.nullable) for name in features]
        else:
            times = [] if model.program is None else [each.name for each in model.program.columns
                                                      if each.kind == "time"]
            self.fields = [Field(each.name, each.datatype, each.nullable, int(np.prod(each.shape[1:])),
                                 each.name in times) for each in self._inputs()]
        self.names = [field.name for field in self.fields]
        if columns:
            self._check(columns)
        # On a device the whole block at once: what is copied there and back waits for less.
        self.run_rows = 1 if model.unbatched else MAX_ROWS if model.config.onnx.execution_providers else RUN_ROWS
        self.tensors = [each._replace(shape=(-1, *each.shape[1:])) for each in model.inner.inputs]
        # A record may have whatever else; the batch is made of rows even where the model is not batched.
        self.signature = Signature([self._wire(each) for each in self.fields] if self.wide is not None else
                                   [each._replace(shape=(-1, *each.shape[1:])) for each in self._inputs()], [],
                                   lenient=True)

    def _inputs(self) -> Sequence[Tensor]:
        return self.model.signature.inputs

    def _takes(self, count: int) -> bool:
        inputs = self.model.inner.inputs
        return len(inputs) == 1 and count > 0 and len(inputs[0].shape) == 2 and inputs[0].shape[1] in (-1, count)

    def _wire(self, field: Field) -> Tensor:
        # What the model's own file names may be left out, as over HTTP.
        return Tensor(field.name, field.datatype, (-1,), field.nullable, field.name in self.model.signature.features)

    def _check(self, columns: Sequence[str]) -> None:
        for name in self.names:
            if name not in columns:
                raise ConfigurationError(f"the file has no column {name!r}, which the model takes."
                                         f"{nearest(name, columns)}")
            if list(columns).count(name) > 1:
                raise ConfigurationError(f"the file has the column {name!r} twice.")

    @property
    def block_rows(self) -> int:
        """How many rows are read at once: a fixed number for a model, so that the answers are those of any other run.

        One where each row may be of another shape than the one before it.
        """
        if self.wide is None and any(-1 in tensor.shape[1:] for tensor in self._inputs()):
            return 1
        width = sum(8 * abs(int(np.prod(each.shape[1:]))) for each in self.model.inner.inputs)
        width += sum(8 * abs(field.many) for field in self.fields)
        return max(MIN_ROWS, min(MAX_ROWS, BLOCK_BYTES // max(width, 1)))

    def of_table(self, table: Any) -> Arrays:
        """The model's inputs of a pyarrow Table of exactly these columns."""
        return self.model.inputs(table) if self.model.program is not None else tensors_from(table, self.tensors)

    def decode(self, text: bytes, cells: np.ndarray[Any, Any]) -> tuple[Rows, list[tuple[int, FastinferError]]]:
        """NDJSON lines into rows, and what is wrong with those that are none."""
        return decode_lines(self.signature, text, cells)

    def of_rows(self, rows: Rows, arrays: Arrays | None, start: int, count: int) -> Arrays:
        """The model's inputs of decoded rows, `arrays` being theirs where there is no program."""
        program = self.model.program
        if program is not None:
            return {self.model.runtime.inputs[0].name: transform_rows(program.compiled, rows, start, count)}
        assert arrays is not None
        cut = {name: array[start : start + count] for name, array in arrays.items()}
        if self.wide is None:
            return cut
        return {self.wide.name: np.ascontiguousarray(np.stack([cut[name] for name in self.names], axis=1))}

    def run(self, inputs: Arrays, count: int) -> Arrays:
        """The model's answer to so many rows, rows first: in runs of a few, or one by one where its rows depend on
        each other.

        Raises:
            RuntimeFailedError: it has another number of rows.
        """
        size = self.run_rows
        parts = []
        for start in range(0, count, size):
            rows = min(size, count - start)
            part = self.model.answer({name: array[start : start + rows] for name, array in inputs.items()})
            for name, array in part.items():
                if not array.ndim or len(array) != rows:
                    raise RuntimeFailedError(f"the model's output {name!r} has shape {list(array.shape)} for {rows} "
                                             "rows")
            parts.append(part)
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts])
                                                 for name in parts[0]}
