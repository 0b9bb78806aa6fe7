"""The raw columns of a fitted scikit-learn estimator, as far as its fitted steps tell: names, types, known values."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastinfer._core import Tensor
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays

WIDE = "features"  # the one input of what was fitted on an array of numbers
TEXT = "text"  # the one input of what was fitted on a list of texts
VECTORIZERS = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")
ENCODED = {"O": "BYTES", "U": "BYTES", "i": "INT64", "u": "INT64", "b": "BOOL"}


class Column(NamedTuple):
    """One raw column.

    Attributes:
        datatype: FP64, INT64, BOOL or BYTES.
        known: values that an encoder was fitted on; empty where none tells.
        missing: what stands for a missing text.
    """

    name: str
    datatype: str
    known: tuple[Any, ...] = ()
    missing: Any = np.nan


class Columns:
    """How inputs become what an estimator was fitted on.

    Attributes:
        container: "frame", "array" of mixed columns, "matrix" of numbers, or "texts".
        columns: in the order of the fit.
        inputs: as the model declares them.
    """

    def __init__(self, fitted: Any, given: Mapping[str, str], source: str) -> None:
        """Look at the fitted steps; `given` is what the operator says of columns, by name.

        Raises:
            ModelLoadError: it takes what is no column, or `given` names a column that it does not have.
        """
        names, self.container = raw_names(fitted, source)
        told = dict(leaf_columns(fitted, names))
        self.columns = [told.get(name, Column(name, "FP64")) for name in names]
        for name, datatype in given.items():
            if name not in names:
                raise ModelLoadError(f"{source}: [sklearn.columns] names {name!r}; the columns are {listed(names)}.")
            place = names.index(name)
            self.columns[place] = self.columns[place]._replace(datatype=datatype)
        if self.container == "array" and all(column.datatype == "FP64" for column in self.columns):
            self.container = "matrix"
        self.nullable = [False] * len(self.columns)

    @property
    def inputs(self) -> list[Tensor]:
        if self.container == "matrix":
            return [Tensor(WIDE, "FP64", (-1, len(self.columns)), nullable=all(self.nullable))]
        return [Tensor(column.name, column.datatype, (-1, 1), nullable=nullable, column=True)
                for column, nullable in zip(self.columns, self.nullable, strict=True)]

    def rows(self, inputs: Arrays) -> Any:
        """The inputs as what the estimator was fitted on."""
        if self.container == "matrix":
            return inputs[WIDE]
        values = {column.name: self._values(column, inputs[column.name]) for column in self.columns}
        if self.container == "texts":
            return values[self.columns[0].name]
        if self.container == "array":
            return np.stack([each.astype(object) for each in values.values()], axis=1)
        import pandas as pd

        return pd.DataFrame(values, columns=list(values))

    @staticmethod
    def _values(column: Column, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        flat = array[:, 0]
        if column.datatype == "BYTES" and column.missing is not None:
            flat = flat.copy()
            flat[[value is None for value in flat]] = column.missing
        return flat

    def examples(self, rows: int) -> Arrays:
        """Inputs that the estimator most likely takes: values that its encoders know, and numbers."""
        steps = np.arange(rows * len(self.columns), dtype=np.float64).reshape(rows, len(self.columns))
        numbers = 4 * ((steps + 1) * 0.6180339887498949 % 1) - 2
        if self.container == "matrix":
            return {WIDE: numbers}
        result = {}
        for place, column in enumerate(self.columns):
            chosen = [column.known[(row + place) % len(column.known)] if column.known else None for row in range(rows)]
            dtype: Any = {"FP64": np.float64, "INT64": np.int64, "BOOL": bool, "BYTES": object}[column.datatype]
            if column.known:
                array = np.array(chosen, dtype=dtype)
            elif column.datatype == "BYTES":
                array = np.array([f"text {row}" for row in range(rows)], dtype=object)
            else:
                array = numbers[:, place] if dtype is np.float64 else np.abs(np.round(numbers[:, place])).astype(dtype)
            result[column.name] = np.ascontiguousarray(array.reshape(rows, 1))
        return result


def raw_names(fitted: Any, source: str) -> tuple[list[str], str]:
    """What the columns are called, and what they were fitted in."""
    first = first_step(fitted)
    while type(first).__name__ == "FeatureUnion":
        first = first_step(next((step for _, step in first.transformer_list if not isinstance(step, str)), None))
    if type(first).__name__ in VECTORIZERS:
        return [TEXT], "texts"
    if type(first).__name__ in ("FeatureHasher", "DictVectorizer"):
        raise ModelLoadError(f"{source}: {type(first).__name__} takes dicts, and not columns: use a Python class.")
    for step in (fitted, first_step(fitted)):
        names = getattr(step, "feature_names_in_", None)
        if names is not None:
            return [str(name) for name in names], "frame"
    for step in (fitted, first_step(fitted)):
        count = getattr(step, "n_features_in_", None)
        if count is not None:
            return [f"x{i}" for i in range(int(count))], "array"
    raise ModelLoadError(f"{source}: {type(fitted).__name__} does not say how many columns it was fitted on.")


def first_step(fitted: Any) -> Any:
    """The first step of a pipeline, or of one within it."""
    while type(fitted).__name__ in ("Pipeline", "FrozenEstimator"):
        fitted = fitted.estimator if type(fitted).__name__ == "FrozenEstimator" else next(
            (step for _, step in fitted.steps if step is not None and not isinstance(step, str)), None)
    return fitted


def leaf_columns(step: Any, names: list[str]) -> Iterator[tuple[str, Column]]:
    """What the steps that see raw columns know of them; a later one says more than an earlier one."""
    kind = type(step).__name__
    if kind == "Pipeline":
        for _, inner in step.steps:
            yield from leaf_columns(inner, names)
            if not keeps_columns(inner, len(names)):
                return
    elif kind == "ColumnTransformer":
        for label, inner, _ in step.transformers_:
            places = step._transformer_to_input_indices.get(label, [])
            if not isinstance(inner, str):
                yield from leaf_columns(inner, [names[place] for place in places])
    elif kind == "FeatureUnion":
        for _, inner in step.transformer_list:
            yield from leaf_columns(inner, names)
    elif kind in VECTORIZERS:
        yield from ((name, Column(name, "BYTES")) for name in names[:1])
    elif step is not None and not isinstance(step, str):
        wrapped: list[Any] = [getattr(step, each, None) for each in ("estimator_", "estimator", "best_estimator_")]
        wrapped += [each.estimator for each in getattr(step, "calibrated_classifiers_", [])[:1]]
        members = getattr(step, "estimators_", None)
        wrapped += list(members)[:1] if isinstance(members, list | tuple) else []
        for inner in wrapped:
            if hasattr(inner, "n_features_in_") and inner.n_features_in_ == len(names):
                yield from leaf_columns(inner, names)
        yield from encoded_columns(step, names)


def encoded_columns(step: Any, names: list[str]) -> Iterator[tuple[str, Column]]:
    """Columns that an encoder or an imputer of texts was fitted on."""
    categories = getattr(step, "categories_", None)
    if isinstance(categories, list) and len(categories) == len(names):
        for name, known in zip(names, categories, strict=True):
            yield name, categorical(name, np.asarray(known))
        return
    statistics = getattr(step, "statistics_", None)
    if isinstance(statistics, np.ndarray) and statistics.dtype == object and len(statistics) == len(names):
        for name, value in zip(names, statistics, strict=True):
            if isinstance(value, str):
                yield name, Column(name, "BYTES", (value,))


def categorical(name: str, known: np.ndarray[Any, Any]) -> Column:
    values = [value for value in known.tolist() if value is not None and value == value]
    kind = known.dtype.kind
    if kind == "O" and values and not all(isinstance(value, str) for value in values):
        kind = np.array(values).dtype.kind if not any(isinstance(value, str) for value in values) else "O"
        kind = kind if len(values) == len(known) else "f"  # a missing one among numbers: they are floats
    datatype = ENCODED.get(kind, "FP64")
    missing = None if any(value is None for value in known.tolist()) else np.nan
    texts = tuple(value for value in values if isinstance(value, str)) if datatype == "BYTES" else tuple(values)
    return Column(name, datatype, texts, missing)


def keeps_columns(step: Any, width: int) -> bool:
    """Whether what comes out of a step is still column by column what went in."""
    if type(step).__name__ not in ("SimpleImputer", "FunctionTransformer", "OrdinalEncoder", "StandardScaler"):
        return False
    try:
        return len(step.get_feature_names_out()) == width
    except Exception:  # one that does not say
        return bool(getattr(step, "n_features_in_", width) == width)


def listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
