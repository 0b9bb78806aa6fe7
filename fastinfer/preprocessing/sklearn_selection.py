"""scikit-learn's feature selectors: a check of every column (or of none), then the columns that they keep."""

from dataclasses import replace
from typing import Any, Final

from fastinfer.preprocessing.sklearn_imputation import frame_dtype
from fastinfer.preprocessing.tracing import OBJECT, Matrix, Trace, is_framed

SELECTORS: Final = ("GenericUnivariateSelect", "RFE", "RFECV", "SelectFdr", "SelectFpr", "SelectFromModel", "SelectFwe",
                    "SelectKBest", "SelectPercentile", "SequentialFeatureSelector", "VarianceThreshold")


def allows_nan(transformer: Any) -> bool:
    try:
        from sklearn.utils import get_tags
    except ImportError:  # scikit-learn before 1.6
        return bool(transformer._get_tags()["allow_nan"])
    return bool(get_tags(transformer).input_tags.allow_nan)


def selector(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    kept = [int(i) for i in transformer.get_support(indices=True)]
    if matrix.container == "frame" and is_framed(transformer):  # a frame that stays one is not checked
        return matrix.take(kept)
    matrix = matrix.as_array(frame_dtype(matrix) if matrix.container == "frame" else None)
    if matrix.dtype != OBJECT:
        matrix = trace.numbers(matrix, path)
    if not allows_nan(transformer):  # otherwise it does not look for infinity either
        matrix = trace.checked(matrix, path, allow_nan=False)
    return replace(matrix, features=matrix.take(kept).features)
