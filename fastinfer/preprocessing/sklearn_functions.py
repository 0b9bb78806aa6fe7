"""The functions that a FunctionTransformer may hold: numpy's and scipy's, by name, with the arguments they take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fastinfer.preprocessing.spec import FUNCTIONS, SCIPY_FUNCTIONS
from fastinfer.preprocessing.tracing import (
    FLOAT32,
    FLOAT64,
    OBJECT,
    Feature,
    Matrix,
    Trace,
    is_nan,
    refuse,
    single,
)


def function(trace: Trace, func: Any, arguments: Mapping[str, Any], matrix: Matrix, path: str) -> Matrix:
    """What the function makes of a matrix."""
    if isinstance(func, partial) and not func.args:
        func, arguments = func.func, {**func.keywords, **arguments}
    name = getattr(func, "__name__", "")
    if matrix.container == "sparse":
        raise refuse(path, f"the function {name!r} of a sparse matrix")
    if matrix.container == "polars":
        raise refuse(path, f"the function {name!r} of a frame of polars")
    refuse_extensions(matrix, name or repr(func), path)
    arguments = {key: value for key, value in arguments.items() if value is not None or func is np.clip}
    if name in FUNCTIONS and getattr(np, name) is func and not arguments:
        return apply_function(trace, func, matrix, path)
    if name in SCIPY_FUNCTIONS and is_of_scipy(func, name) and not arguments:
        return apply_function(trace, func, matrix, path)
    if func is np.clip and arguments.keys() in ({"a_min", "a_max"}, {"min", "max"}, {"min"}, {"max"}):
        low, high = (next((arguments[key] for key in keys if key in arguments), None)
                     for keys in (("a_min", "min"), ("a_max", "max")))
        return clip(trace, low, high, matrix, path)
    if func is np.nan_to_num and arguments.keys() <= {"copy", "nan", "posinf", "neginf"}:
        return nan_to_num(trace, arguments, matrix, path)
    if func in (np.round, np.around) and arguments.keys() <= {"decimals"}:
        return round_to(trace, arguments.get("decimals", 0), matrix, path)
    raise refuse(path, f"the function {name or repr(func)!r} cannot be read; numpy functions of one number without "
                       "arguments can, clip, nan_to_num and round with theirs, and scipy.special's "
                       f"{' and '.join(SCIPY_FUNCTIONS)}: {', '.join(sorted(FUNCTIONS))}")


def is_of_scipy(func: Any, name: str) -> bool:
    from scipy import special

    return getattr(special, name) is func


def refuse_extensions(matrix: Matrix, name: str, path: str) -> None:
    """A function of a frame gets its columns as pandas has them; one that is validated gets float64."""
    for feature in matrix.features:
        if feature.extension:
            raise refuse(path, f"{name} of {feature.name!r}, which is of a nullable dtype of pandas; make it float64, "
                               "or set validate=True")


def floats(trace: Trace, name: str, matrix: Matrix, path: str) -> Matrix:
    """The matrix, where it holds floats or whole numbers that may be computed with as floats."""
    for feature in matrix.features:
        if feature.dtype not in (FLOAT64, FLOAT32) and feature.dtype.kind not in "iu":
            raise refuse(path, f"{name} of an array of dtype {feature.dtype}")
        refuse_integers(feature, name, path)
    return trace.numbers(matrix, path)


def clip(trace: Trace, low: Any, high: Any, matrix: Matrix, path: str) -> Matrix:
    """`numpy.clip`, or of a frame pandas'. With one bound numpy takes a maximum, in which 0.0 is above -0.0."""
    bounds = [bound for bound in (low, high) if bound is not None]
    numbers = all(isinstance(bound, (int, float, np.integer, np.floating)) and not is_nan(bound) for bound in bounds)
    if not numbers or (len(bounds) == 2 and low > high):
        raise refuse(path, f"clip between {low!r} and {high!r}")
    matrix = floats(trace, "clip", matrix, path)
    features: list[Feature] = []
    zero = len(bounds) == 1 and bounds[0] == 0 and matrix.container == "array"
    if zero and math.copysign(1.0, bounds[0]) < 0:
        raise refuse(path, "clip at -0.0")
    for feature in matrix.features:
        refuse_bounds(feature, bounds, matrix, path)
        real = np.float32 if feature.dtype == FLOAT32 else np.float64
        (value,) = trace.write("clip", path, [feature], None, low=-math.inf if low is None else float(real(low)),
                               high=math.inf if high is None else float(real(high)))
        if zero:
            (value,) = trace.write("add", path, [replace(feature, value=value)], by=(0.0,))
        features.append(replace(feature, value=value, unsigned=False))
    return replace(matrix, features=tuple(features))


def refuse_bounds(feature: Feature, bounds: Sequence[Any], matrix: Matrix, path: str) -> None:
    """Bounds that give the column another dtype, which in pandas even depends on the values."""
    for bound in bounds:
        same = isinstance(bound, int) if feature.dtype.kind in "iu" else (
            np.result_type(feature.dtype, bound) == feature.dtype)
        exact = feature.dtype != FLOAT32 or float(np.float32(bound)) == float(bound)
        if not same or (matrix.container == "frame" and not exact):
            raise refuse(path, f"clip of the {feature.dtype} in {feature.name!r} at {bound!r}, of another type")


def nan_to_num(trace: Trace, arguments: Mapping[str, Any], matrix: Matrix, path: str) -> Matrix:
    """`numpy.nan_to_num`, which makes an array of a frame."""
    matrix = floats(trace, "nan_to_num", matrix.as_array(), path)
    if matrix.dtype.kind != "f":
        return matrix
    widest = float(np.finfo(matrix.dtype).max)
    fills = {math.inf: arguments.get("posinf", widest), -math.inf: arguments.get("neginf", -widest),
             math.nan: arguments.get("nan", 0.0)}
    for missing, fill in fills.items():
        if not isinstance(fill, (int, float, np.integer, np.floating)) or not math.isfinite(matrix.dtype.type(fill)):
            raise refuse(path, f"nan_to_num with {fill!r}")
        value = float(matrix.dtype.type(fill))
        matrix = trace.each("impute", path, matrix, missing="nan" if is_nan(missing) else missing,
                            fill=(value,) * matrix.width)
    return matrix


def round_to(trace: Trace, decimals: Any, matrix: Matrix, path: str) -> Matrix:
    """`numpy.round`: times a power of ten, to the nearest integer, and back."""
    if not isinstance(decimals, (int, np.integer)) or abs(int(decimals)) > 300:
        raise refuse(path, f"round to {decimals!r} decimals")
    for feature in matrix.features:
        if feature.whole != "no" or feature.dtype not in (FLOAT64, FLOAT32):
            raise refuse(path, f"round of {feature.name!r}, which may hold integers; cast them to float64 before")
    features: list[Any] = list(matrix.features)
    scale = 10.0 ** abs(int(decimals))
    before, after = ("multiply", "divide") if decimals >= 0 else ("divide", "multiply")
    for dtype in dict.fromkeys(feature.dtype for feature in matrix.features):
        indices = [i for i, feature in enumerate(matrix.features) if feature.dtype == dtype]
        part = Matrix(tuple([matrix.features[i] for i in indices]), "array")
        if decimals:
            part = trace.arithmetic(before, path, part, dtype.type(scale))
        part = trace.each("function", path, part, function="rint", **single(dtype))
        if decimals:
            part = trace.arithmetic(after, path, part, dtype.type(scale))
        for i, feature in zip(indices, part.features, strict=True):
            features[i] = feature
    return replace(matrix, features=tuple(features))


def apply_function(trace: Trace, ufunc: Any, matrix: Matrix, path: str) -> Matrix:
    """A function of one number on an array, or column by column on a frame."""
    name = ufunc.__name__
    results = {}
    for feature in matrix.features:
        refuse_integers(feature, name, path)
        if feature.dtype not in results:
            results[feature.dtype] = result_dtype(ufunc, feature.dtype, path)
    features: list[Any] = list(matrix.features)
    for dtype, result in results.items():
        indices = [i for i, feature in enumerate(matrix.features) if feature.dtype == dtype]
        part = trace.numbers(Matrix(tuple([matrix.features[i] for i in indices]), "array"), path)
        done = trace.each("function", path, part, function=name, **single(result))
        for i, feature in zip(indices, done.features, strict=True):
            features[i] = replace(feature, dtype=result)
    return replace(matrix, features=tuple(features))


def refuse_integers(feature: Feature, name: str, path: str) -> None:
    """Functions that give other numbers for integers than for the same floats."""
    if feature.whole == "narrow" or (feature.whole == "yes"
                                       and name in ("negative", "reciprocal", "square")):  # no -0 among integers
        raise refuse(path, f"{name} of the integers in {feature.name!r}; cast them to float64 before")
    if feature.whole == "unknown" and name in ("negative", "reciprocal"):
        raise refuse(path, f"{name} of {feature.name!r} depends on whether it holds integers; give a sample")


def result_dtype(ufunc: Any, dtype: np.dtype[Any], path: str) -> np.dtype[Any]:
    """The dtype a function computes and answers in; only float64 and float32 are followed."""
    if dtype == OBJECT or dtype.kind not in "fiu":
        raise refuse(path, f"{ufunc.__name__} of an array of dtype {dtype}")
    result: np.dtype[Any] = np.dtype(ufunc.resolve_dtypes((dtype, None))[-1])
    if result not in (FLOAT64, FLOAT32):
        raise refuse(path, f"{ufunc.__name__} of {dtype} gives {result}; cast to float before")
    return result
