"""Rows for the proof: what the fitted steps know, what is missing or unknown, and both sides of every turn of a tree.

A turn is found twice: at the matrix, where the threshold and its neighbours are written down, and at the raw columns,
by halving the interval of float64 numbers until two neighbours lie on its two sides.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer.errors import FastinferError
from fastinfer.importing.graph import Floats
from fastinfer.preprocessing.sklearn_text import VECTORIZERS
from fastinfer.preprocessing.texts import texts_for

BASE_ROWS = 256  # rows that the others are made from
TURNS = 3000  # turns tried at each of the two places
MISSING = "a missing"  # as a refusal calls the value
UNSEEN_TEXT = "a value that was never seen"
REACH = 1e9  # raw values are looked for between -REACH and REACH
_TOP = np.int64(-(2**63))

Values = dict[str, list[Any]]
Turns = tuple[NDArray[np.int64], Floats]  # feature and threshold, pairwise


class Special(NamedTuple):
    """A row with one value worth a try of its own."""

    column: str
    what: str  # as a refusal calls the value: MISSING, "an unseen", ...
    row: dict[str, Any]


class RawColumn(NamedTuple):
    """A raw column, as far as rows need to know it."""

    name: str
    kind: str  # "number", "integer", "boolean", "text"
    missing: float | None  # what stands for a missing value: NaN, or None in some columns of text
    known: tuple[Any, ...]  # values that the fitted steps speak of


# ---- what the fitted steps know -----------------------------------------------------------------------------------
def hints(fitted: Any, names: list[str]) -> dict[str, list[Any]]:
    """Values of interest by raw column: categories, statistics, mean and spread, edges."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for step, columns in _walk(fitted, names):
        for name, values in zip(columns, _speaks_of(step, len(columns)), strict=False):
            found[name] += [v for v in values if v is not None and v == v]
    return found


def _walk(step: Any, names: list[str]) -> Iterator[tuple[Any, list[str]]]:
    """Fitted leaf steps with the raw columns behind their inputs, as long as they keep columns apart."""
    kind = type(step).__name__
    if kind == "Pipeline":
        for _, inner in step.steps:
            yield from _walk(inner, names)
            if len(names) != getattr(inner, "n_features_in_", len(names)) or _widens(inner, len(names)):
                return
    elif kind == "ColumnTransformer":
        for label, inner, _ in step.transformers_:
            if not isinstance(inner, str):
                yield from _walk(inner, [names[i] for i in step._transformer_to_input_indices.get(label, [])])
    elif kind == "FeatureUnion":
        for _, inner in step.transformer_list:
            yield from _walk(inner, names)
    elif hasattr(step, "calibrated_classifiers_"):
        yield from _walk(step.calibrated_classifiers_[0].estimator, names)
    elif isinstance(getattr(step, "estimators_", None), list):
        for inner in step.estimators_:
            if type(inner).__name__ == "Pipeline":
                yield from _walk(inner, names)
    elif not isinstance(step, str) and step is not None:
        yield step, names


def _widens(step: Any, width: int) -> bool:
    try:
        return len(step.get_feature_names_out()) != width
    except Exception:
        return True


def _speaks_of(step: Any, width: int) -> list[list[Any]]:
    """Values a column, for the columns of one leaf step."""
    values: list[list[Any]] = [[] for _ in range(width)]
    if type(step).__name__ in VECTORIZERS:
        return [texts_for(step)]
    for attribute in ("categories_", "bin_edges_"):
        known_values = getattr(step, attribute, None)
        for i, known in enumerate([] if known_values is None else known_values):
            if i < width:
                values[i] += np.asarray(known).tolist()
    spread = _per_column(step, "scale_", width)
    steps = (0.0, 0.5, 1.0, 2.0, 4.0)
    for attribute in ("statistics_", "mean_", "center_", "data_min_", "data_max_", "max_abs_"):
        for i, center in enumerate(_per_column(step, attribute, width) or []):
            if spread and isinstance(center, int | float):
                values[i] += [center + k * spread[i] * sign for k in steps for sign in (1, -1)]
            else:
                values[i].append(center)
    return values


def _per_column(step: Any, attribute: str, width: int) -> list[Any] | None:
    value = getattr(step, attribute, None)
    array = np.asarray(value) if isinstance(value, np.ndarray | list) else None
    return array.tolist() if array is not None and array.shape == (width,) else None


# ---- raw rows -----------------------------------------------------------------------------------------------------
def invented(columns: list[RawColumn], rng: np.random.Generator) -> Values:
    """Base rows for an import without a sample: each column drawn from what is known of it."""
    rows: Values = {}
    for column in columns:
        if column.kind == "text":
            choice: list[Any] = [v for v in column.known if isinstance(v, str)] or [UNSEEN_TEXT]
        elif column.kind == "boolean":
            choice = [False, True]
        else:
            numbers = [float(v) for v in column.known if isinstance(v, int | float)] or [-2.0, -1.0, 0.0, 1.0, 2.0]
            choice = [round(v) for v in numbers] if column.kind == "integer" else numbers
        rows[column.name] = [choice[i] for i in rng.integers(len(choice), size=BASE_ROWS)]
    return rows


def specials(columns: list[RawColumn], base: Values, rng: np.random.Generator) -> list[Special]:
    """Rows with one missing or unseen value each, or with one known value."""
    rows = []
    for column in columns:
        wanted: list[tuple[str, Any]] = [(MISSING, column.missing)] if column.kind in ("number", "text") else []
        wanted += [("a known", v) for v in dict.fromkeys(column.known) if _fits(column.kind, v)][:200]
        if column.kind == "text":
            wanted += [("an unseen", UNSEEN_TEXT), ("an empty", "")]
        for what, value in wanted:
            row = row_of(base, int(rng.integers(len(base[column.name]))))
            rows.append(Special(column.name, what, row | {column.name: value}))
    return rows


def _fits(kind: str, value: Any) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "boolean":
        return isinstance(value, bool)
    return isinstance(value, int | float) and (kind == "number" or float(value).is_integer())


def row_of(values: Values, index: int) -> dict[str, Any]:
    return {name: column[index] for name, column in values.items()}


def stacked(rows: Iterable[dict[str, Any]], names: list[str]) -> Values:
    listed = list(rows)
    return {name: [row[name] for row in listed] for name in names}


# ---- turns, at the raw columns ------------------------------------------------------------------------------------
class _Search(NamedTuple):
    """One threshold to be pulled back to one raw column of one row."""

    column: RawColumn
    feature: int
    threshold: float
    row: dict[str, Any]

    def at(self, value: float) -> dict[str, Any]:
        number: Any = round(value) if self.column.kind == "integer" else float(value)
        return self.row | {self.column.name: number}


def pulled_back(
    program: Any, columns: list[RawColumn], base: Values, turns: Turns, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Rows on the two sides of trees' turns, one float64 (or integer) apart in one raw column."""
    searches: list[_Search] = []
    low: list[float] = []
    high: list[float] = []
    for column in columns:
        if column.kind in ("number", "integer"):
            for search, (below, above) in _brackets(program, column, base, turns, rng):
                searches.append(search)
                low.append(below)
                high.append(above)
    if not searches:
        return []
    ends = _halved(program, searches, np.array(low), np.array(high))
    return [search.at(value) for values in ends for search, value in zip(searches, values, strict=True)]


def _brackets(
    program: Any, column: RawColumn, base: Values, turns: Turns, rng: np.random.Generator
) -> Iterator[tuple[_Search, tuple[float, float]]]:
    """Thresholds that this column can cross, each with a row to cross it in and a raw value on either side."""
    count = len(base[column.name])
    start = _Search(column, 0, 0.0, row_of(base, int(rng.integers(count))))
    numbers = sorted({float(v) for v in column.known if isinstance(v, int | float)} | {-REACH, 0.0, REACH})
    try:
        matrix = _matrix(program, [start.at(v) for v in numbers])
    except FastinferError:
        return
    features, thresholds = turns
    each = max(8, TURNS // max(1, len(np.unique(features))))
    for feature in np.flatnonzero(np.ptp(matrix, axis=0) > 0).tolist()[:8]:
        first, last = matrix[0, feature], matrix[-1, feature]
        crossed = np.unique(thresholds[features == feature])
        crossed = crossed[(crossed >= min(first, last)) & (crossed < max(first, last))]
        ends = (numbers[0], numbers[-1]) if first < last else (numbers[-1], numbers[0])
        for threshold in rng.permutation(crossed)[:each].tolist():
            yield _Search(column, feature, threshold, row_of(base, int(rng.integers(count)))), ends


def _matrix(program: Any, made: list[dict[str, Any]]) -> Floats:
    return np.asarray(program.transform_dense(stacked(made, list(made[0]))), np.float64)


def _halved(program: Any, searches: list[_Search], low: Floats, high: Floats) -> tuple[list[float], list[float]]:
    """Neighbouring raw values: the feature is at or below its threshold at the first, above at the second."""
    whole = np.array([s.column.kind == "integer" for s in searches])
    below, above = (np.where(whole, np.round(v).astype(np.int64), _keys(v)) for v in (low, high))
    thresholds = np.array([s.threshold for s in searches])
    features = np.array([s.feature for s in searches])
    for _ in range(64):
        middle = (below & above) + ((below ^ above) >> 1)
        if np.all((middle == below) | (middle == above)):
            break
        values = np.where(whole, middle.astype(np.float64), _numbers(middle)).tolist()
        matrix = _matrix(program, [s.at(v) for s, v in zip(searches, values, strict=True)])
        left = matrix[np.arange(len(searches)), features] <= thresholds
        below, above = np.where(left, middle, below), np.where(left, above, middle)
    first, second = (np.where(whole, v.astype(np.float64), _numbers(v)).tolist() for v in (below, above))
    return first, second


def _keys(values: Floats) -> NDArray[np.int64]:
    """float64 numbers as integers in the same order, neighbours one apart."""
    bits = (np.asarray(values, np.float64) + 0.0).view(np.int64)
    return np.where(bits < 0, _TOP - bits, bits)


def _numbers(keys: NDArray[np.int64]) -> Floats:
    return np.where(keys < 0, _TOP - keys, keys).view(np.float64)


def scattered(base: Floats, rng: np.random.Generator) -> Floats:
    """Matrix rows near the base rows and far from them: by a tenth of a column's spread, by ten and a hundred times."""
    spread = np.maximum(base.std(axis=0), 1e-3)
    return np.concatenate([base + rng.normal(size=base.shape) * spread * scale for scale in (0.1, 10.0, 100.0)])


# ---- turns, at the matrix -----------------------------------------------------------------------------------------
def matrix_rows(
    base: Floats, turns: Turns, dtype: str, missing: bool, rng: np.random.Generator
) -> Floats:
    """The base rows; rows with one feature at a threshold, just above and just below; rows with missing values."""
    features, thresholds = turns
    usable = np.abs(thresholds) < 1e300  # LightGBM writes infinity as 1e300
    pairs = np.unique(np.stack([features[usable].astype(np.float64), thresholds[usable]], axis=1), axis=0)
    pairs = rng.permutation(pairs)[:TURNS]
    parts = [base]
    kind = np.dtype(dtype)
    at = pairs[:, 1].astype(kind)
    infinity = kind.type(np.inf)
    for values in (at, np.nextafter(at, infinity), np.nextafter(at, -infinity)):
        rows = base[rng.integers(len(base), size=len(pairs))]
        rows[np.arange(len(rows)), pairs[:, 0].astype(np.int64)] = values
        parts.append(rows)
    if missing:
        width = base.shape[1]
        alone = base[rng.integers(len(base), size=width)]
        alone[np.arange(width), np.arange(width)] = np.nan
        several = base[rng.integers(len(base), size=len(base))]
        several[rng.random(several.shape) < 0.2] = np.nan
        parts += [alone, several, np.full((1, width), np.nan)]
    return np.concatenate(parts)
