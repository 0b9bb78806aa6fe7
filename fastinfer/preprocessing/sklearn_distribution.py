"""scikit-learn's transformers of a column's distribution: PowerTransformer and QuantileTransformer."""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from fastinfer.preprocessing.sklearn_numeric import standard_scaler
from fastinfer.preprocessing.tracing import Matrix, Trace, refuse, single

STORING: Final = ("hash", "hash_words", "hash_fields", "quantile")  # may give zeros that a sparse matrix stores


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
        return sparse_quantiles(trace, transformer, matrix, path)
    return quantiles(trace, transformer, trace.floats(matrix, path, allow_nan=True), path)


def sparse_quantiles(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """What is stored is mapped, and what is not stays zero. Without `ignore_implicit_zeros` a negative value fails."""
    if any(step.op in STORING or (step.op == "spline" and step.parameters.get("sparse"))
           or (step.op == "multiply" and 0.0 in step.parameters["by"]) for step in trace.steps):
        raise refuse(path, "it gets a sparse matrix that stores zeros, which it maps apart from others")
    matrix = trace.floats(matrix, path, allow_nan=True, sparse=True)
    if not transformer.ignore_implicit_zeros:
        filled = trace.each("impute", path, matrix, missing="nan", fill=(1.0,) * matrix.width)
        signs = trace.each("binarize", path, filled, threshold=-float(np.finfo(np.float64).smallest_subnormal))
        trace.write("check", path, signs.features, allow="positive")
    mapped = quantiles(trace, transformer, matrix, path)
    zeros = trace.each("indicate", path, matrix, missing=0.0)
    ones = trace.arithmetic("multiply", path, zeros, -1.0)
    stored = trace.arithmetic("add", path, ones, 1.0)
    features = []
    for feature, one in zip(mapped.features, stored.features, strict=True):
        (value,) = trace.write("polynomial", path, [feature, one], [feature.name], terms=((0, 1),), sparse=True,
                               **single(matrix.dtype))
        features.append(replace(feature, value=value, unsigned=False))
    return replace(matrix, features=tuple(features))


def quantiles(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """Each column's numbers as where they stand among its quantiles."""
    count = len(transformer.references_)
    if not np.array_equal(transformer.references_, np.linspace(0, 1, count)):
        raise refuse(path, "its references are not evenly spaced")
    features = []
    for feature, column in zip(matrix.features, np.transpose(transformer.quantiles_), strict=True):
        if not np.isfinite(column).all() or np.any(np.diff(column) < 0):
            raise refuse(path, f"the quantiles of {feature.name!r} do not ascend")
        (value,) = trace.write("quantile", path, [feature], distribution=transformer.output_distribution,
                               quantiles=tuple([float(value) for value in column]), **single(matrix.dtype))
        features.append(replace(feature, value=value, unsigned=False))
    return replace(matrix, features=tuple(features))
