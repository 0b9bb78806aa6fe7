"""scikit-learn's SplineTransformer."""

from itertools import pairwise
from typing import Any

import numpy as np

from fastinfer.preprocessing.spec import MAX_DEGREE
from fastinfer.preprocessing.tracing import FLOAT32, FLOAT64, Feature, Matrix, Trace, refuse, single


def spline_transformer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    zeros = getattr(transformer, "handle_missing", "error") == "zeros"
    matrix = trace.floats(matrix, path, allow_nan=zeros, numeric=True, infinite=zeros)
    if not 0 <= transformer.degree <= MAX_DEGREE:
        raise refuse(path, f"splines of degree {transformer.degree}")
    extrapolation = transformer.extrapolation
    sparse = transformer.sparse_output
    if sparse and zeros and extrapolation not in ("constant", "linear"):  # it fills with the batch's smallest value
        raise refuse(path, f"handle_missing='zeros' with a sparse output and extrapolation={extrapolation!r} depends "
                           "on the other rows of a batch")
    if sparse and extrapolation == "periodic" and not transformer.degree:
        raise refuse(path, "periodic splines of degree 0 with a sparse output, on which scikit-learn fails")
    dtype = FLOAT32 if matrix.dtype == FLOAT32 and not sparse else FLOAT64
    width = transformer.bsplines_[0].c.shape[1]
    features: list[Feature] = []
    degree = transformer.degree
    for feature, spline in zip(matrix.features, transformer.bsplines_, strict=True):
        ends = {}
        if extrapolation == "constant":
            ends = constant_ends(spline, degree, sparse=sparse)
        elif extrapolation == "linear":
            ends, degree = linear_ends(spline, degree, path)
        names = [f"{feature.name}_sp_{i}" for i in range(width - 1 + bool(transformer.include_bias))]
        if not names:
            continue
        knots = tuple([float(knot) for knot in spline.t])
        if not all(knot <= later for knot, later in pairwise(knots)):
            raise refuse(path, "splines whose knots do not ascend, for scikit-learn's arithmetic has rounded them")
        values = trace.write("spline", path, [feature], names, degree=int(spline.k), knots=knots,
                             extrapolation="edges" if ends else extrapolation, **ends,
                             **({"sparse": True} if sparse else {}), **single(dtype))
        features.extend(Feature(name, value, "number", dtype) for name, value in zip(names, values, strict=True))
    return Matrix(tuple(features), "sparse" if sparse else "array")


def constant_ends(spline: Any, degree: int, *, sparse: bool) -> dict[str, Any]:
    """The first and the last ``degree`` splines keep their values at the ends; the others are 0 there.

    Of degree 0, scikit-learn fails on a value above the range, or (sparse) gives all splines their value at the end.
    """
    ends = range_of(spline, degree)
    low, high = ends["low"], ends["high"]
    ends |= {"reach": degree, "low_values": at(spline, low)}
    if degree:
        ends["high_values"] = at(spline, high)
    elif sparse:
        ends |= {"reach": len(ends["low_values"]), "low_values": (0.0,) * len(ends["low_values"]),
                 "high_values": at(spline, high)}
    return ends


def linear_ends(spline: Any, degree: int, path: str) -> tuple[dict[str, Any], int]:
    """The splines at the ends go on along their slopes; and the degree that scikit-learn takes the next column for.

    Below degree 2 its loop counts the degree up and does not set it back for the next column.
    """
    ends = range_of(spline, degree)
    low, high = ends["low"], ends["high"]
    reach = degree + 1 if degree <= 1 else degree
    if low > high or reach > spline.c.shape[1]:
        raise refuse(path, "linear extrapolation of degree 0 or 1 with so few knots")
    ends |= {"reach": reach, "low_values": at(spline, low), "high_values": at(spline, high),
             "low_slopes": at(spline, low, 1), "high_slopes": at(spline, high, 1)}
    return ends, reach


def range_of(spline: Any, degree: int) -> dict[str, Any]:
    return {"low": float(spline.t[degree]), "high": float(spline.t[-degree - 1])}


def at(spline: Any, x: float, order: int = 0) -> tuple[float, ...]:
    """The splines' values, or slopes, at an end."""
    return tuple([float(value) for value in np.asarray(spline(x, nu=order))])
