"""scikit-learn's SimpleImputer and MissingIndicator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastinfer.preprocessing.tracing import OBJECT, Feature, Matrix, Trace, check_dtype, constant_in, is_nan, refuse


def is_pandas_na(value: Any) -> bool:
    return type(value).__name__ == "NAType"


def missing_parameter(value: Any, matrix: Matrix, kind: str, path: str) -> str | float | Mapping[str, str] | None:
    """What counts as missing in a column of this kind; None: nothing there can equal it."""
    if is_pandas_na(value):
        return "any" if kind == "text" else "nan"
    if is_nan(value):
        return "nan" if kind != "integer" else None
    if value is None:
        return "none" if kind == "text" else None
    if isinstance(value, str):
        return {"text": value} if kind == "text" else None
    if not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        raise refuse(path, f"missing_values of {type(value).__name__}")
    return constant_in(value, matrix.dtype) if kind != "text" else None


def imputer_input(trace: Trace, imputer: Any, matrix: Matrix, path: str) -> Matrix:
    """The array that SimpleImputer works on."""
    allow_nan = is_pandas_na(imputer.missing_values) or is_nan(imputer.missing_values)
    fitted_object = imputer._fit_dtype.kind == "O"
    if fitted_object or imputer.strategy in ("most_frequent", "constant"):
        refuse_na(trace, imputer.missing_values, matrix, path)
        dtype = OBJECT if fitted_object else None
        if matrix.container == "frame" and not fitted_object and matrix.dtype == OBJECT:
            dtype = frame_dtype(matrix)
        matrix = matrix.as_array(dtype)
        if matrix.dtype.kind not in "iufO":
            raise refuse(path, f"it gets an array of dtype {matrix.dtype}")
        matrix = matrix if matrix.dtype == OBJECT else trace.numbers(matrix, path)
        refuse_none(matrix, path)
        return trace.checked(matrix, path, allow_nan=allow_nan)
    return trace.floats(matrix, path, allow_nan=allow_nan, sparse=True)


def refuse_na(trace: Trace, missing: Any, matrix: Matrix, path: str) -> None:
    """In an array of objects pandas.NA can be compared with nothing: scikit-learn fails on the row."""
    if matrix.dtype == OBJECT and not is_pandas_na(missing):
        trace.write("check", path, [feature for feature in matrix.features if feature.extension], allow="finite")


def refuse_none(matrix: Matrix, path: str) -> None:
    """Among objects None is not NaN, and numbers do not tell them apart here."""
    for feature in matrix.features:
        if feature.none and feature.kind == "number":
            raise refuse(path, f"the column {feature.name!r} has None among its numbers, in an array of objects, which "
                               "scikit-learn tells from NaN; make it float64")


def frame_dtype(matrix: Matrix) -> np.dtype[Any] | None:
    """Booleans beside numbers become numbers in `check_array`, though pandas alone would make objects of them."""
    return check_dtype(matrix) if all(feature.dtype.kind in "biuf" for feature in matrix.features) else None


def simple_imputer(trace: Trace, imputer: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = imputer_input(trace, imputer, matrix, path)
    statistics = imputer.statistics_
    kept = [i for i, statistic in enumerate(statistics) if imputer.keep_empty_features or not is_nan(statistic)]
    filled = dict(zip(kept, matrix.take(kept).features, strict=True))
    for kind in ("number", "text"):
        group = [i for i in kept if matrix.features[i].kind == kind]
        missing = missing_parameter(imputer.missing_values, matrix, kind, path)
        if missing is None:
            continue
        fills = tuple([filling(imputer, statistics[i], matrix, matrix.features[i], path) for i in group])
        values = trace.write("impute", path, [matrix.features[i] for i in group], missing=missing, fill=fills)
        for i, value, fill in zip(group, values, fills, strict=True):
            none = fill is None or (matrix.features[i].none and missing not in ("none", "any"))
            filled[i] = replace(matrix.features[i], value=value, unsigned=False, none=none)
    result = replace(matrix, features=tuple([filled[i] for i in kept]))
    if not imputer.add_indicator:
        return result
    marks = indicators(trace, imputer.indicator_, matrix, path, matrix.dtype)
    return replace(result, features=result.features + marks)


def filling(imputer: Any, statistic: Any, matrix: Matrix, feature: Feature, path: str) -> Any:
    """The statistic as it lands in the array: cast to the fitted dtype, then to the array's."""
    value = np.array([statistic], dtype=object).astype(imputer._fill_dtype).astype(matrix.dtype)[0]
    if feature.kind == "text" and (value is None or isinstance(value, str)):
        return value
    if feature.kind == "text" or not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)) or (
            isinstance(value, np.timedelta64)):
        raise refuse(path, f"{feature.kind} of the column {feature.name!r} is filled with {value!r}")
    return float(value)


def indicators(trace: Trace, indicator: Any, matrix: Matrix, path: str,
               dtype: np.dtype[Any]) -> tuple[Feature, ...]:
    """A column of zeros and ones for each column that the indicator was fitted to mark."""
    features = []
    for i in indicator.features_:
        feature = matrix.features[i]
        missing = missing_parameter(indicator.missing_values, matrix, feature.kind, path)
        if missing is None or feature.kind == "integer":
            raise refuse(path, f"nothing in {feature.name!r} can be missing there")
        name = f"missingindicator_{feature.name}"
        (value,) = trace.write("indicate", path, [feature], [name], missing=missing)
        features.append(Feature(name, value, "number", dtype, unsigned=True))
    return tuple(features)


def missing_indicator(trace: Trace, indicator: Any, matrix: Matrix, path: str) -> Matrix:
    if matrix.container == "sparse":
        raise refuse(path, "it gets a sparse matrix")
    value = indicator.missing_values
    refuse_na(trace, value, matrix, path)
    matrix = matrix.as_array(frame_dtype(matrix) if matrix.container == "frame" else None)
    if matrix.dtype.kind not in "iufO":
        raise refuse(path, f"it gets an array of dtype {matrix.dtype}")
    matrix = matrix if matrix.dtype == OBJECT else trace.numbers(matrix, path)
    refuse_none(matrix, path)
    matrix = trace.checked(matrix, path, allow_nan=is_nan(value))
    marks = indicators(trace, indicator, matrix, path, np.dtype(bool))
    if indicator.features == "missing-only" and indicator.error_on_new:
        marked = {int(i) for i in indicator.features_}
        refuse_new(trace, [f for i, f in enumerate(matrix.features) if i not in marked], matrix, value, path)
    return Matrix(marks, "sparse" if indicator.sparse is True else "array")


def refuse_new(trace: Trace, features: Sequence[Feature], matrix: Matrix, value: Any, path: str) -> None:
    """A missing value where none was at fit fails the row."""
    checked = []
    for feature in features:
        missing = missing_parameter(value, matrix, feature.kind, path)
        if missing is None:
            continue
        if missing != "nan" or (feature.kind == "number" and matrix.dtype == OBJECT):
            raise refuse(path, f"error_on_new with missing_values={value!r}")
        checked.append(feature)
    trace.write("check", path, [f for f in checked if f.kind == "number"], allow="finite")
    trace.write("check", path, [f for f in checked if f.kind == "text"], allow="finite")
