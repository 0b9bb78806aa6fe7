"""Preprocessing steps inside the estimator, where they take and give matrices of numbers, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastinfer.importing.answers import refuse
from fastinfer.importing.graph import Graph

Step = Callable[[Graph, Any, str, str], str]


def transform(graph: Graph, step: Any, x: str, path: str) -> str:
    """Write one fitted transformer."""
    found = _STEPS.get(type(step).__name__) if type(step).__module__.startswith("sklearn.") else None
    if found is None:
        raise refuse(path, f"{type(step).__name__} inside the estimator is not supported")
    return found(graph, step, x, path)


def knows(step: Any) -> bool:
    """Whether a step can be written here."""
    return step in (None, "passthrough") or (
        type(step).__name__ in _STEPS and type(step).__module__.startswith("sklearn.")
    )


def _standard(graph: Graph, step: Any, x: str, path: str) -> str:
    if step.with_mean:
        x = graph.arithmetic("Sub", x, step.mean_[None, :])
    return graph.arithmetic("Div", x, step.scale_[None, :]) if step.with_std else x


def _min_max(graph: Graph, step: Any, x: str, path: str) -> str:
    x = graph.arithmetic("Add", graph.arithmetic("Mul", x, step.scale_[None, :]), step.min_[None, :])
    if step.clip:
        low, high = step.feature_range
        x = str(graph.op("Clip", x, graph.constant(float(low)), graph.constant(float(high))))
    return x


def _max_abs(graph: Graph, step: Any, x: str, path: str) -> str:
    return graph.arithmetic("Div", x, step.scale_[None, :])


def _robust(graph: Graph, step: Any, x: str, path: str) -> str:
    if step.with_centering:
        x = graph.arithmetic("Sub", x, step.center_[None, :])
    return graph.arithmetic("Div", x, step.scale_[None, :]) if step.with_scaling else x


def _imputer(graph: Graph, step: Any, x: str, path: str) -> str:
    filled = np.asarray(step.statistics_, np.float64)
    if step.add_indicator or np.isnan(filled).any() or not _is_nan(step.missing_values):
        raise refuse(path, "SimpleImputer inside the estimator is supported for NaN, without indicator or empty column")
    return graph.like(x, str(graph.op("Where", graph.op("IsNaN", x), graph.constant(filled[None, :]), x)))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _selector(graph: Graph, step: Any, x: str, path: str) -> str:
    return graph.columns(x, step.get_support(indices=True))


def _principal(graph: Graph, step: Any, x: str, path: str) -> str:
    bias = -(step.mean_.reshape(1, -1) @ step.components_.T)
    x = graph.linear(x, step.components_.T, bias)
    if step.whiten:
        scale = np.sqrt(step.explained_variance_)
        scale[scale < np.finfo(scale.dtype).eps] = np.finfo(scale.dtype).eps
        x = graph.arithmetic("Div", x, scale[None, :])
    return x


def _truncated(graph: Graph, step: Any, x: str, path: str) -> str:
    return str(graph.op("MatMul", x, graph.constant(step.components_.T)))


def _polynomial(graph: Graph, step: Any, x: str, path: str) -> str:
    powers = step.powers_
    columns = []
    for row in powers:
        factors = [graph.columns(x, [i]) for i, power in enumerate(row.tolist()) for _ in range(power)]
        product = factors[0] if factors else _ones(graph, x)
        for factor in factors[1:]:
            product = str(graph.op("Mul", product, factor))
        columns.append(product)
    return graph.concat(columns)


def _ones(graph: Graph, x: str) -> str:
    first = graph.columns(x, [0])
    return graph.floats(str(graph.op("Equal", first, first)))


def _function(graph: Graph, step: Any, x: str, path: str) -> str:
    if step.kw_args:
        raise refuse(path, "FunctionTransformer with kw_args is not supported inside the estimator")
    return function(graph, step.func, x, f"{path}.func")


_STEPS: dict[str, Step] = {
    "StandardScaler": _standard,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": _max_abs,
    "RobustScaler": _robust,
    "SimpleImputer": _imputer,
    "VarianceThreshold": _selector,
    "SelectKBest": _selector,
    "SelectPercentile": _selector,
    "SelectFpr": _selector,
    "SelectFdr": _selector,
    "SelectFwe": _selector,
    "GenericUnivariateSelect": _selector,
    "SelectFromModel": _selector,
    "RFE": _selector,
    "RFECV": _selector,
    "SequentialFeatureSelector": _selector,
    "PCA": _principal,
    "TruncatedSVD": _truncated,
    "PolynomialFeatures": _polynomial,
    "FunctionTransformer": _function,
}

# ---- numpy functions by name, and inverses for transformed targets -------------------------------------------------
_FUNCTIONS = {"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "absolute": "Abs", "negative": "Neg", "tanh": "Tanh"}


def function(graph: Graph, chosen: Any, x: str, path: str) -> str:
    """A numpy function, applied to every value; None is the identity."""
    if chosen is None:
        return x
    name = getattr(chosen, "__name__", "")
    if not isinstance(chosen, np.ufunc) or getattr(np, name, None) is not chosen:
        raise refuse(path, f"{name or chosen!r} is not a numpy function that is known by name")
    if name in _FUNCTIONS:
        return str(graph.op(_FUNCTIONS[name], x))
    if name == "square":
        return str(graph.op("Mul", x, x))
    if name == "expm1":
        # exp(x) - 1 = 2 tanh(x/2) / (1 - tanh(x/2)) keeps its digits near zero
        half = graph.op("Tanh", graph.arithmetic("Mul", x, 0.5))
        small = graph.op("Div", graph.arithmetic("Mul", half, 2.0), graph.op("Sub", graph.constant(1.0), half))
        large = graph.arithmetic("Sub", str(graph.op("Exp", x)), 1.0)
        return str(graph.op("Where", graph.op("Less", graph.op("Abs", x), graph.constant(0.5)), small, large))
    if name == "log1p":
        # Kahan: log(u) * x / (u - 1) with u = 1 + x, exact where u rounds
        up = graph.arithmetic("Add", x, 1.0)
        rest = graph.arithmetic("Sub", up, 1.0)
        none = graph.op("Equal", rest, graph.constant(0.0))
        safe = graph.op("Where", none, graph.constant(1.0), rest)
        scaled = graph.op("Div", graph.op("Mul", graph.op("Log", up), x), safe)
        return str(graph.op("Where", none, x, scaled))
    raise refuse(path, f"numpy.{name} is not supported here")


def inverse(graph: Graph, step: Any, y: str, path: str) -> str:
    """``inverse_transform`` of a scaler fitted on one target."""
    kind = type(step).__name__
    if kind == "StandardScaler":
        y = graph.arithmetic("Mul", y, step.scale_[None, :]) if step.with_std else y
        return graph.arithmetic("Add", y, step.mean_[None, :]) if step.with_mean else y
    if kind == "MinMaxScaler":
        return graph.arithmetic("Div", graph.arithmetic("Sub", y, step.min_[None, :]), step.scale_[None, :])
    if kind == "MaxAbsScaler":
        return graph.arithmetic("Mul", y, step.scale_[None, :])
    if kind == "RobustScaler":
        y = graph.arithmetic("Mul", y, step.scale_[None, :]) if step.with_scaling else y
        return graph.arithmetic("Add", y, step.center_[None, :]) if step.with_centering else y
    raise refuse(path, f"{kind} as the target's transformer is not supported")
