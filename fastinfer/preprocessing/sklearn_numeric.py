"""scikit-learn's numeric transformers as steps of a spec, each with the arithmetic of its own `transform`."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from fastinfer.preprocessing.sklearn_categories import encode_onehot
from fastinfer.preprocessing.sklearn_functions import function
from fastinfer.preprocessing.tracing import FLOAT32, FLOAT64, Matrix, Trace, constant_in, refuse


@cache
def casts_mean_first() -> bool:
    """Whether this scikit-learn rounds a StandardScaler's mean to float32 before it subtracts it from float32.

    Newer versions do; older ones subtract in float64 and round the difference.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_std=False).fit(np.zeros((2, 1)))
    scaler.mean_ = np.array([1e-9 + 2.0**-24])
    rounded_first = np.float32(1.0) - np.float32(scaler.mean_[0])
    return bool(scaler.transform(np.ones((1, 1), np.float32))[0, 0] == rounded_first)


def standard_scaler(trace: Trace, scaler: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=True, sparse=True)
    if matrix.container == "sparse":
        return scale_sparse(trace, matrix, path, scaler.scale_)
    dtype = matrix.dtype if getattr(scaler, "casts_mean_first", None) or casts_mean_first() else FLOAT64
    if scaler.with_mean:
        matrix = trace.arithmetic("subtract", path, matrix, scaler.mean_.astype(dtype))
    if scaler.with_std:
        matrix = trace.arithmetic("divide", path, matrix, scaler.scale_.astype(dtype))
    return matrix


def scale_sparse(trace: Trace, matrix: Matrix, path: str, scale: Any) -> Matrix:
    """`inplace_column_scale`: a product with the reciprocal, not a quotient."""
    if scale is None:
        return matrix
    return trace.arithmetic("multiply", path, matrix, 1.0 / np.asarray(scale))


def min_max_scaler(trace: Trace, scaler: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=True)
    matrix = trace.arithmetic("multiply", path, matrix, scaler.scale_)
    matrix = trace.arithmetic("add", path, matrix, scaler.min_)
    if not scaler.clip:
        return matrix
    low, high = (float(np.asarray(bound, matrix.dtype)) for bound in scaler.feature_range)
    return trace.each("clip", path, matrix, low=low, high=high)


def max_abs_scaler(trace: Trace, scaler: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=True, sparse=True)
    if matrix.container == "sparse":
        matrix = scale_sparse(trace, matrix, path, scaler.scale_)
    else:
        matrix = trace.arithmetic("divide", path, matrix, scaler.scale_)
    return trace.each("clip", path, matrix, low=-1.0, high=1.0) if getattr(scaler, "clip", False) else matrix


def robust_scaler(trace: Trace, scaler: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=True, sparse=True)
    if matrix.container == "sparse":
        return scale_sparse(trace, matrix, path, scaler.scale_ if scaler.with_scaling else None)
    if scaler.with_centering:
        matrix = trace.arithmetic("subtract", path, matrix, scaler.center_)
    return trace.arithmetic("divide", path, matrix, scaler.scale_) if scaler.with_scaling else matrix


def binarizer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=False, sparse=True, numeric=True)
    if matrix.container == "sparse" and transformer.threshold < 0:
        raise refuse(path, "a negative threshold on a sparse matrix")
    threshold = constant_in(transformer.threshold, matrix.dtype)
    return trace.each("binarize", path, matrix, unsigned=True, threshold=threshold)


def k_bins_discretizer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=False)
    dtype = matrix.dtype if transformer.dtype is None else np.dtype(transformer.dtype)
    if dtype != matrix.dtype:
        matrix = cast(trace, matrix, path, dtype)
        matrix = trace.checked(matrix, path, allow_nan=False)
    features = []
    for feature, edges in zip(matrix.features, transformer.bin_edges_, strict=True):
        inner = tuple([float(edge) for edge in edges[1:-1]])
        (value,) = trace.write("bucketize", path, [feature], edges=inner)
        features.append(replace(feature, value=value, unsigned=True))
    matrix = Matrix(tuple(features), "array")
    if transformer.encode == "ordinal":
        return matrix
    return encode_onehot(trace, transformer._encoder, matrix, path, dtype)


def cast(trace: Trace, matrix: Matrix, path: str, dtype: np.dtype[Any]) -> Matrix:
    if dtype == FLOAT32:
        matrix = trace.each("cast", path, matrix, dtype="float32")
    return matrix.as_array(dtype)


def function_transformer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    if transformer.validate:
        if matrix.container == "sparse" and not transformer.accept_sparse:
            raise refuse(path, "it gets a sparse matrix, which it does not take")
        matrix = trace.floats(matrix, path, allow_nan=False, sparse=True, numeric=True)
    if transformer.func is None:
        return matrix
    return function(trace, transformer.func, transformer.kw_args or {}, matrix, path)
