"""`Program`: the feature program as Python code holds it; the same object in training, in batch and in the server."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from fastinfer._core import CompiledProgram, Signature, Task
from fastinfer.errors import ConfigurationError, ModelLoadError
from fastinfer.preprocessing import certificate
from fastinfer.preprocessing.frames import Layout, columns_from
from fastinfer.preprocessing.lowering import Precisions, compile_spec
from fastinfer.preprocessing.spec import MAX_WIDTH, Column, Place, Spec, parse, parse_task
from fastinfer.preprocessing.writing import document


@final
class Program:
    """Raw columns in, the estimator's matrix out.

    Attributes:
        compiled: what the server runs.
        precision: how near each feature is to scikit-learn's on every machine: "exact" (bit for bit), "ulp" (1 ulp,
            behind log, exp, …) or "single" (1 ulp of float32, behind several of these or a matrix product).

    Raises:
        ConfigurationError: (constructor) the compiled core refuses the spec.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.compiled: CompiledProgram
        self.precision: Precisions
        self.compiled, self.precision = compile_spec(spec)
        hashed = {source for step in spec.steps if step.op == "hash_fields" for source in step.sources}
        absent = [column.name for column in spec.columns if column.name in hashed]
        self.layout = Layout(self.compiled.columns, spec.columns, spec.ignored, absent)

    @classmethod
    def from_sklearn(
        cls,
        fitted: Any,
        *,
        sample: Any = None,
        dtype: str = "float64",
        allow: str = "any",
        path: str = "pipeline",
    ) -> Self:
        """The program of a fitted transformer, proven on rows that take each of its branches.

        Args:
            fitted: a transformer, or a Pipeline of transformers (``pipeline[:-1]``).
            sample: a frame of pandas or polars, or an array, like the one it was fitted on; tells the dtypes of its
                columns. Without one, they are what the fitted steps know, and float64 otherwise.
            dtype: of the output: what the estimator computes in, "float64" or "float32".
            allow: what the estimator refuses: "finite" (missing and infinite values), "nan" (infinite ones), "any".
            path: what the transformer is called in messages.

        Raises:
            ImportRefusedError: what cannot be expressed exactly; the message begins with the step's path.
        """
        from fastinfer.preprocessing.imports import import_sklearn

        return cls(import_sklearn(fitted, sample=sample, dtype=dtype, allow=allow, path=path))

    @classmethod
    def fit(cls, frame: Any, spec: str | Path | Mapping[str, Any], y: Any = None) -> Self:
        """A program of the transforms that ``spec`` names, with what they learn from a frame; without scikit-learn.

        What a transform of scikit-learn's learns is what that learns, bit by bit.

        Args:
            frame: training data: a pandas, polars or Arrow frame, a dict of columns, a list of records, or an array
                [rows, columns], whose columns are called x0, x1, ….
            spec: TOML, as text or as the path of a file, or the dict that it stands for; docs/guide/features.md
                describes it.
            y: the target, for transforms that learn from it: values [rows], or the name of a column of ``frame``.

        Raises:
            ConfigurationError: the spec is not as documented, or does not suit the data; the message names the place,
                and the nearest known name.
        """
        from fastinfer.preprocessing.fitting import fit_plan
        from fastinfer.preprocessing.plans import read_plan

        return cls(fit_plan(read_plan(spec), frame, y))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A program from the text of a features.json; its certificate is checked.

        Raises:
            ConfigurationError: not as documented; ``at`` is the JSON path.
            ModelLoadError: the certificate's rows come out otherwise than it says.
        """
        try:
            parsed = json.loads(text, object_pairs_hook=unique_members)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"not JSON: {error}") from None
        spec = parse(parsed)
        program = cls(spec)
        if spec.certificate is not None:
            certificate.check(program.compiled, spec, program.precision)
        return program

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A program from a features.json, as `from_json`; messages name the file."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except ConfigurationError as error:
            raise type(error)(f"{path}: {error}", error.at) from None
        except OSError as error:
            raise ModelLoadError(f"{path}: {error.strerror}") from None

    def to_json(self) -> str:
        """The text of a features.json: a line for each column, step and feature."""
        return "".join(lines(document(self.spec)))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @property
    def columns(self) -> tuple[Column, ...]:
        """The raw columns, in order."""
        return self.spec.columns

    @property
    def ignored(self) -> tuple[str, ...]:
        """Columns that the pipeline was fitted on and never reads; a record may carry them."""
        return self.spec.ignored

    @property
    def signature(self) -> Signature:
        """The wire signature: each raw column [-1, 1], no outputs."""
        return self.compiled.columns

    @property
    def width(self) -> int:
        return self.compiled.width

    @property
    def dtype(self) -> str:
        return self.compiled.dtype

    @property
    def task(self) -> Task | None:
        """What the model behind answers with; None: outputs by name."""
        return None if self.spec.task is None else Task(**self.spec.task)

    def with_task(self, task: Task | None) -> Self:
        """The same program with another task.

        Raises:
            ConfigurationError: a task that is not as documented.
        """
        checked = None
        if task is not None:
            checked = parse_task(Place({**task._asdict(), "classes": list(task.classes)}, "$.task"))
        return type(self)(replace(self.spec, task=checked))

    def parity(self) -> certificate.Parity | None:
        """How near the golden rows come on this machine to what made them; None: there is no certificate."""
        return certificate.parity(self.compiled, self.spec)

    def get_feature_names_out(self) -> npt.NDArray[np.object_]:
        """The features' names, as scikit-learn gives them."""
        return np.array([name for name, _ in self.spec.output.features], dtype=object)

    def transform(self, data: Any) -> Any:
        """Features of a frame, as scikit-learn's `transform` gives them.

        Args:
            data: a pandas, polars or Arrow frame, a mapping of column name to values, a list of records or of rows, or
                an array [rows, columns]. Columns are found by name; more than the program reads are ignored. A program
                of one column of text also takes a series or a list of texts.

        Returns:
            array [rows, width] of the program's dtype, row-major; a scipy CSR matrix of that shape and dtype where
            scikit-learn gives a sparse one.

        Raises:
            InvalidRecordError: a column or a value is missing, of another type, or refused as scikit-learn refuses it.
            UnknownCategoryError: a category that the pipeline is set to refuse.
        """
        if not self.spec.output.sparse:
            return self.transform_dense(data)
        columns = columns_from(data, self.layout)
        return certificate.csr_matrix(self.compiled.transform_sparse(columns), self.width)

    def transform_dense(self, data: Any) -> npt.NDArray[Any]:
        """As `transform`, always as an array: what the estimator behind the program gets in the server.

        Raises:
            ConfigurationError: the program is too wide for that.
        """
        if self.width > MAX_WIDTH:
            raise ConfigurationError(f"{self.width:,} features are too many for a dense array; {MAX_WIDTH:,} are not")
        return self.compiled.transform(columns_from(data, self.layout))


def lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """JSON with the lists of the first two levels a line an entry."""
    yield "{"
    for i, (key, value) in enumerate(whole.items()):
        yield f"{',' if i else ''}\n  {compact(key)}: "
        if key == "output":
            yield "".join([f'{"," if j else "{"}"{member}": {compact(value[member])}'
                           for j, member in enumerate(key for key in value if key != "features")])
            yield ', "features": '
            value = value["features"]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield "[\n    " + ",\n    ".join([compact(entry) for entry in value]) + "\n  ]"
        else:
            yield compact(value)
        if key == "output":
            yield "}"
    yield "\n}\n"


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the member {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return members
