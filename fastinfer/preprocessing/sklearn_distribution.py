"""scikit-learn's transformers of a column's distribution: PowerTransformer and QuantileTransformer."""

from dataclasses import replace
from typing import Any

import numpy as np

from fastinfer.preprocessing.sklearn_numeric import standard_scaler
from fastinfer.preprocessing.tracing import Matrix, Trace, refuse, single


def power_transformer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=True)
    if transformer.method == "box-cox":
        trace.write("check", path, matrix.features, allow="positive")
    lambdas = np.asarray(transformer.lambdas_)
    if not np.isfinite(lambdas).all():
        raise refuse(path, "a lambda that is not finite")
    result = np.result_type(matrix.dtype, lambdas.dtype)
    if result != matrix.dtype:
        raise refuse(path, f"it was fitted on {lambdas.dtype} and gets {matrix.dtype}")
    powers = tuple([float(value) for value in lambdas])
    matrix = trace.each("power", path, matrix, method=transformer.method, lambdas=powers, **single(result))
    return standard_scaler(trace, transformer._scaler, matrix, path) if transformer.standardize else matrix


def quantile_transformer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    if matrix.container == "sparse":
        raise refuse(path, "it gets a sparse matrix, of which it maps stored zeros and others apart")
    matrix = trace.floats(matrix, path, allow_nan=True)
    count = len(transformer.references_)
    if not np.array_equal(transformer.references_, np.linspace(0, 1, count)):
        raise refuse(path, "its references are not evenly spaced")
    features = []
    for feature, quantiles in zip(matrix.features, np.transpose(transformer.quantiles_), strict=True):
        if not np.isfinite(quantiles).all() or np.any(np.diff(quantiles) < 0):
            raise refuse(path, f"the quantiles of {feature.name!r} do not ascend")
        (value,) = trace.write("quantile", path, [feature], distribution=transformer.output_distribution,
                               quantiles=tuple([float(value) for value in quantiles]), **single(matrix.dtype))
        features.append(replace(feature, value=value, unsigned=False))
    return replace(matrix, features=tuple(features))
