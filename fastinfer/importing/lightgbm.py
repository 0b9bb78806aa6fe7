"""LightGBM's scikit-learn classes, from the booster's dump: float64 comparisons and sums in the order of the trees."""

from typing import Any

import numpy as np

from fastinfer._core import SPLITS
from fastinfer.errors import ModelLoadError
from fastinfer.importing.answers import Classifier, Regressor, refuse
from fastinfer.importing.graph import Floats, Graph
from fastinfer.importing.groves import Grown
from fastinfer.importing.links import softmax
from fastinfer.importing.trees import Forest, Tree
from fastinfer.runtimes import lightgbm

ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold: a value this small is zero
_EXPONENTIAL = {"poisson", "gamma", "tweedie"}
_IDENTITY = {"regression", "regression_l1", "huber", "fair", "quantile", "mape"}


def _grown(graph: Graph, estimator: Any, x: str) -> Grown | None:
    """The forest of the booster's own file, where it holds one. Of a sparse matrix, tiny values are what they are."""
    try:
        planted = lightgbm.planted(estimator.booster_.model_to_string().encode())
    except ModelLoadError:  # the graph may still do it, or says why not
        return None
    kind = planted.arrays["kind"]
    if x in graph.sparse:
        kind = kind & ~np.uint8(SPLITS["flushed"])
    options = {name: planted.options[name] for name in ("divisor", "link", "slope")}
    return Grown(x, {**planted.arrays, "kind": kind}, options)


def _raw(graph: Graph, estimator: Any, x: str, path: str) -> tuple[str, list[str]]:
    """Raw scores [rows, trees an iteration], and the objective with its parameters."""
    booster = estimator.booster_
    if booster.pandas_categorical:
        raise refuse(path, "LightGBM encoded pandas categories itself; encode them in a step of the pipeline")
    dump = booster.dump_model()
    objective = str(dump.get("objective", "")).split()
    if not objective or objective[0] == "none":
        raise refuse(path, "a custom objective of LightGBM is not supported")
    columns = int(dump["num_tree_per_iteration"])
    splits = _Splits(graph, x, int(dump["max_feature_idx"]) + 1)
    forest = Forest()
    for i, info in enumerate(dump["tree_info"]):
        tree, leaves = _tree(info["tree_structure"], splits, f"{path}.tree[{i}]")
        forest.add(tree, leaves, np.full(len(leaves), i % columns, np.int64))
    raw = forest.write(graph, splits.write(), columns)
    if dump.get("average_output"):
        raw = graph.arithmetic("Div", raw, float(max(1, len(dump["tree_info"]) // columns)))
    return raw, objective


def lightgbm_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    raw, objective = _raw(graph, estimator, x, path)
    kind, slope = objective[0], _parameter(objective, "sigmoid", 1.0)
    if kind == "multiclass":
        probabilities = softmax(graph, raw)
    elif kind == "binary":
        probabilities = graph.complement(str(graph.op("Sigmoid", graph.arithmetic("Mul", raw, slope))))
    elif kind == "multiclassova":
        probabilities = str(graph.op("Sigmoid", graph.arithmetic("Mul", raw, slope)))
    elif kind in ("cross_entropy", "xentropy"):
        probabilities = graph.complement(str(graph.op("Sigmoid", raw)))
    else:
        raise refuse(path, f"the objective {kind!r} is not supported")
    grown = _grown(graph, estimator, x)
    return Classifier(estimator.classes_, graph.argmax(probabilities), probabilities, forest=grown)


def lightgbm_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    raw, objective = _raw(graph, estimator, x, path)
    kind = objective[0]
    if kind in _EXPONENTIAL:
        return Regressor(str(graph.op("Exp", raw)), _grown(graph, estimator, x))
    if kind not in _IDENTITY:
        raise refuse(path, f"the objective {kind!r} is not supported")
    if "sqrt" in objective[1:]:
        raw = str(graph.op("Mul", graph.op("Sign", raw), graph.op("Mul", raw, raw)))
    return Regressor(raw, _grown(graph, estimator, x))


def _parameter(objective: list[str], name: str, default: float) -> float:
    found = [text.partition(":")[2] for text in objective[1:] if text.startswith(f"{name}:")]
    return float(found[0]) if found else default


def _tree(root: dict[str, Any], splits: "_Splits", path: str) -> tuple[Tree, Floats]:
    left, right, feature, threshold, missing, value = [], [], [], [], [], []
    queue = [root]
    for node in queue:  # grows while it is read: breadth first
        leaf = "split_feature" not in node
        left.append(-1 if leaf else len(queue))
        right.append(-1 if leaf else len(queue) + 1)
        column, turn, lost = (0, 0.0, False) if leaf else splits.of(node)
        feature.append(column)
        threshold.append(turn)
        missing.append(lost)
        value.append(float(node["leaf_value"]) if leaf else 0.0)
        if leaf:
            if node.get("leaf_coeff"):
                raise refuse(path, "linear leaves (linear_tree=True) are not supported")
        else:
            queue += [node["left_child"], node["right_child"]]
    arrays = (np.array(left, np.int64), np.array(right, np.int64), np.array(feature, np.int64))
    return Tree(*arrays, np.array(threshold), np.array(missing, np.bool_)), np.array(value)


class _Splits:
    """Splits as (column, threshold, missing goes left); those on categories get a column of their own."""

    def __init__(self, graph: Graph, x: str, width: int) -> None:
        self._graph, self._x, self._width = graph, x, width
        self._zero_missing = np.zeros(width, np.bool_)
        self._near_zero = False
        self._sets: dict[int, list[tuple[set[int], int]]] = {}
        self._count = 0

    def of(self, node: dict[str, Any]) -> tuple[int, float, bool]:
        feature = int(node["split_feature"])
        if node["decision_type"] == "==":
            members = {int(v) for v in str(node["threshold"]).split("||")}
            self._sets.setdefault(feature, []).append((members, self._count))
            self._count += 1
            return self._width + self._count - 1, 0.5, False
        threshold = float(node["threshold"])
        self._near_zero |= abs(threshold) <= ZERO
        kind = node["missing_type"]
        if kind == "None":  # a missing value is read as zero
            return feature, threshold, threshold >= 0.0
        self._zero_missing[feature] |= kind == "Zero"
        return feature, threshold, bool(node["default_left"])

    def write(self) -> str:
        """The features as LightGBM reads them, the category splits' columns behind them: 0 goes left, 1 right."""
        graph, x = self._graph, self._x
        tiny = graph.op("LessOrEqual", graph.op("Abs", x), graph.constant(ZERO))
        read = x
        if self._near_zero and x not in graph.sparse:  # of a sparse matrix it takes what is stored as it is
            read = graph.like(x, str(graph.op("Where", tiny, graph.constant(0.0), read)))
        if self._zero_missing.any():
            lost = graph.op("And", tiny, graph.constant(self._zero_missing[None, :], np.bool_))
            read = graph.like(x, str(graph.op("Where", lost, graph.constant(np.nan), read)))
        if not self._count:
            return read
        parts, order = [], []
        for feature, sets in self._sets.items():
            value = graph.columns(x, [feature])
            whole = graph.op("Mul", graph.op("Sign", value), graph.op("Floor", graph.op("Abs", value)))
            codes = sorted(set().union(*(members for members, _ in sets)))
            found = graph.floats(str(graph.op("Equal", whole, graph.constant(np.array(codes, np.float64)[None, :]))))
            table = np.array([[-float(code in members) for members, _ in sets] for code in codes])
            parts.append(graph.arithmetic("Add", str(graph.op("MatMul", found, graph.constant(table))), 1.0))
            order += [place for _, place in sets]
        return graph.beside(read, graph.columns(graph.concat(parts), np.argsort(order)))
