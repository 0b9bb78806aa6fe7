"""XGBoost's scikit-learn classes, from the booster's own JSON: float32 throughout, as XGBoost computes.

A value is rounded to float32 and goes left where it is less than the threshold; leaves are added up in float32 in the
order of the trees, onto the start score. Links are computed in float32 too, but for the exponential, which is rounded
from float64: no library's float32 one is the other's.
"""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from fastinfer._core import SPLITS
from fastinfer.errors import ModelLoadError
from fastinfer.importing.answers import Classifier, Regressor, refuse
from fastinfer.importing.boosting import start
from fastinfer.importing.graph import Floats, Graph
from fastinfer.importing.groves import Grown
from fastinfer.importing.trees import Forest, Tree
from fastinfer.runtimes import xgboost
from fastinfer.runtimes.xgboost import EXPONENTIAL, IDENTITY, LOGISTIC, margins


class _Model(NamedTuple):
    """What a booster's document says of the model as a whole.

    Attributes:
        objective: its name.
        booster: of gradient boosting, as the document holds it.
        margins: start scores, one a column.
        weights: of the trees, one each (DART), or None.
        rounds: iterations that answer.
        missing: the number that stands for a missing value beside NaN.
        width: features.
    """

    objective: str
    booster: dict[str, Any]
    margins: Floats
    weights: NDArray[np.float32] | None
    rounds: int
    missing: float
    width: int


def _model(estimator: Any, path: str) -> _Model:
    learner = json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"]
    parameters = learner["learner_model_param"]
    objective = str(learner["objective"]["name"])
    booster = learner["gradient_booster"]
    weights = None
    if booster["name"] == "dart":
        weights = np.array(booster["weight_drop"], np.float32)
        booster = booster["gbtree"]
    if any(booster["model"].get("cats", {}).get("enc", ())):
        raise refuse(path, "XGBoost encoded the frame's categories itself; encode them in a step of the pipeline, and "
                           "name the columns by feature_types")
    columns = max(int(parameters["num_class"]), int(parameters["num_target"]), 1)
    starts = np.broadcast_to(margins(parameters["base_score"], objective), (columns,)).astype(np.float64)
    try:
        rounds = int(estimator.best_iteration) + 1
    except AttributeError:  # no early stopping: all of them
        rounds = -1
    missing = np.nan if estimator.missing is None else float(estimator.missing)
    return _Model(objective, booster, starts, weights, rounds, missing, int(parameters["num_feature"]))


# ---- raw scores ---------------------------------------------------------------------------------------------------
def _raw(graph: Graph, estimator: Any, x: str, path: str) -> tuple[str, _Model]:
    """Raw scores [rows, columns] of float32."""
    model = _model(estimator, path)
    columns = len(model.margins)
    if not np.isfinite(model.margins).all():
        raise refuse(path, f"base_score gives no finite start under {model.objective!r}")
    if model.booster["name"] == "gblinear":
        return _linear(graph, model, _read(graph, model, x)), model
    if model.booster["name"] != "gbtree":
        raise refuse(path, f"the booster {model.booster['name']!r} is not supported")
    document = model.booster["model"]
    count = len(document["trees"])
    if 0 < model.rounds < len(document["iteration_indptr"]):
        count = int(document["iteration_indptr"][model.rounds])
    splits = _Splits(graph, _read(graph, model, x), model.width)
    forest = Forest()
    start(forest, model.margins)
    for i, (tree, target) in enumerate(zip(document["trees"][:count], document["tree_info"][:count], strict=True)):
        arrays, leaves = _tree(tree, splits)
        if model.weights is not None:  # XGBoost predicts by each tree from the start score, and takes that off again
            base = np.float32(model.margins[target])
            leaves = model.weights[i] * ((base + leaves) - base)
        if leaves.shape[1] == 1:
            forest.add(arrays, leaves[:, 0].astype(np.float64), np.full(len(leaves), target, np.int64))
        else:
            forest.add_rows(arrays, leaves.astype(np.float64))
    graph.in_order = True
    return forest.write(graph, splits.write(), columns, np.float32), model


def _read(graph: Graph, model: _Model, x: str) -> str:
    """The features as XGBoost reads them: float32, NaN where missing.

    What a sparse matrix does not store is missing.
    """
    if x in graph.sparse:
        stored = graph.op("Equal", x, graph.constant(0.0))
        x = graph.like(x, str(graph.op("Where", stored, graph.constant(np.nan), x)))
    read = graph.single(x)
    if np.isnan(model.missing):
        return read
    graph.turns_at(x, np.arange(model.width), np.full(model.width, model.missing))
    lost = graph.op("Equal", read, graph.constant(model.missing, np.float32))
    return graph.like(x, str(graph.op("Where", lost, graph.constant(np.nan, np.float32), read)))


def _linear(graph: Graph, model: _Model, x: str) -> str:
    """gblinear: the bias, then one feature after another by its weight, in float32."""
    weights = np.array(model.booster["model"]["weights"], np.float32).reshape(-1, len(model.margins))
    bias = weights[-1] + np.float32(model.margins[0])  # XGBoost gives them all the first start score
    present = str(graph.op("Where", graph.op("IsNaN", x), graph.constant(0.0, np.float32), x))
    columns = []
    for start_score, column in zip(bias, weights[:-1].T, strict=True):
        terms = str(graph.op("Mul", present, graph.constant(column[None, :], np.float32)))
        first = graph.op("Add", graph.op("Mul", graph.columns(terms, [0]), graph.constant(0.0, np.float32)),
                         graph.constant(start_score, np.float32))
        sums = str(graph.op("CumSum", graph.concat([str(first), terms]), graph.constant(1, np.int64)))
        columns.append(graph.columns(sums, [model.width]))
    return graph.concat(columns)


def _tree(document: dict[str, Any], splits: "_Splits") -> tuple[Tree, NDArray[np.float32]]:
    """A tree, breadth first, and its leaves' values [nodes, values a leaf]."""
    lefts, rights = document["left_children"], document["right_children"]
    features, lost = document["split_indices"], document["default_left"]
    conditions = np.array(document["split_conditions"], np.float32)
    several = int(document["tree_param"]["size_leaf_vector"])
    vectors = np.array(document["leaf_weights"], np.float32).reshape(-1, several) if several > 1 else None
    sets = _sets(document)
    thresholds = np.nextafter(conditions, np.float32(-np.inf))  # less than t: at most its neighbour below
    left, right, feature, threshold, missing = [], [], [], [], []
    value: list[Any] = []
    queue = [0]
    for node in queue:  # grows while it is read
        leaf = lefts[node] < 0
        left.append(-1 if leaf else len(queue))
        right.append(-1 if leaf else len(queue) + 1)
        column, turn = (features[node], float(thresholds[node]))
        if node in sets:
            column, turn = splits.of(features[node], sets[node]), 0.5
        feature.append(0 if leaf else column)
        threshold.append(0.0 if leaf else turn)
        missing.append(not leaf and bool(lost[node]))
        if vectors is None:
            value.append([conditions[node] if leaf else 0.0])
        else:
            value.append(vectors[rights[node]] if leaf else np.zeros(several))
        if not leaf:
            queue += [lefts[node], rights[node]]
    arrays = (np.array(left, np.int64), np.array(right, np.int64), np.array(feature, np.int64))
    tree = Tree(*arrays, np.array(threshold), np.array(missing, np.bool_))
    return tree, np.array(value, np.float32).reshape(len(queue), several)


def _sets(document: dict[str, Any]) -> dict[int, set[int]]:
    """The categories that go right, by node."""
    flat = document["categories"]
    parts = zip(document["categories_nodes"], document["categories_segments"], document["categories_sizes"],
                strict=True)
    return {int(node): {int(code) for code in flat[first : first + size]} for node, first, size in parts}


class _Splits:
    """Splits on categories, each as a column of its own beside the features: 0 goes left, 1 right."""

    def __init__(self, graph: Graph, x: str, width: int) -> None:
        self._graph, self._x, self._width = graph, x, width
        self._sets: dict[int, list[tuple[set[int], int]]] = {}
        self._count = 0

    def of(self, feature: int, rights: set[int]) -> int:
        """The column for a split that sends the categories in ``rights`` right, and all others left."""
        self._sets.setdefault(int(feature), []).append((rights, self._count))
        self._count += 1
        return self._width + self._count - 1

    def write(self) -> str:
        """The features with the splits' columns behind them; a value's category is its whole part."""
        graph = self._graph
        if not self._count:
            return self._x
        parts, order = [], []
        for feature, sets in self._sets.items():
            column = graph.columns(self._x, [feature])
            codes = sorted(set().union(*(rights for rights, _ in sets)))
            known = graph.constant(np.array(codes, np.float32)[None, :], np.float32)
            found = graph.cast(str(graph.op("Equal", graph.op("Floor", column), known)), TensorProto.FLOAT)
            table = np.array([[float(code in rights) for rights, _ in sets] for code in codes])
            sides = graph.op("MatMul", found, graph.constant(table, np.float32))
            lost = graph.constant(np.nan, np.float32)
            parts.append(str(graph.op("Where", graph.op("IsNaN", column), lost, sides)))
            order += [place for _, place in sets]
        return graph.beside(self._x, graph.columns(graph.concat(parts), np.argsort(order)))


# ---- answers ------------------------------------------------------------------------------------------------------
def _exponential(graph: Graph, x: str) -> str:
    return graph.cast(str(graph.op("Exp", graph.floats(x))), TensorProto.FLOAT)


def _sigmoid(graph: Graph, x: str) -> str:
    """1 / (exp(-x) + 1), in float32."""
    one = graph.constant(1.0, np.float32)
    most = graph.constant(np.float32(88.7), np.float32)
    opposite = str(graph.op("Min", graph.op("Neg", x), most))
    return str(graph.op("Div", one, graph.op("Add", _exponential(graph, opposite), one)))


def _softmax(graph: Graph, x: str) -> str:
    """Exponentials by their sum, which is rounded from float64."""
    top = graph.op("ReduceMax", x, graph.constant([1], np.int64), keepdims=1)
    powers = _exponential(graph, str(graph.op("Sub", x, top)))
    total = graph.cast(graph.sum(graph.floats(powers)), TensorProto.FLOAT)
    return str(graph.op("Div", powers, total))


def _grown(graph: Graph, estimator: Any, x: str, model: _Model) -> Grown | None:
    """The forest of the booster's own file, where it holds one; what a sparse matrix does not store is missing."""
    sentinel = 0.0 if x in graph.sparse else model.missing
    if x in graph.sparse and not np.isnan(model.missing) and model.missing != 0:
        return None
    document = bytes(estimator.get_booster().save_raw("json"))
    try:
        planted = xgboost.planted(document, False, rounds=model.rounds, inplace=True)
    except ModelLoadError:  # the graph may still do it
        return None
    kind = planted.arrays["kind"]
    if not np.isnan(sentinel):
        kind = kind | np.uint8(SPLITS["sentinel"])
    options = {name: value for name, value in planted.options.items() if name not in ("labels", "answers", "width")}
    return Grown(x, {**planted.arrays, "kind": kind}, {**options, "sentinel": float(sentinel)})


def xgboost_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """XGBClassifier, XGBRFClassifier."""
    raw, model = _raw(graph, estimator, x, path)
    classes, columns = estimator.classes_, len(model.margins)
    if model.objective in ("multi:softprob", "multi:softmax") and columns == len(classes) > 2:
        probabilities = _softmax(graph, raw)
        chosen = raw if model.objective == "multi:softmax" else probabilities
        grown = _grown(graph, estimator, x, model)
        return Classifier(classes, graph.argmax(chosen), graph.floats(probabilities), forest=grown)
    if columns > 1:
        raise refuse(path, f"XGBClassifier with the objective {model.objective!r} for {columns} columns of answers and "
                           f"{len(classes)} classes is not supported; import one model a target")
    if model.objective in LOGISTIC:
        positive = _sigmoid(graph, raw)
    elif model.objective == "binary:hinge":
        above = graph.op("Greater", raw, graph.constant(0.0, np.float32))
        positive = graph.cast(str(above), TensorProto.FLOAT)
    else:
        raise refuse(path, f"the objective {model.objective!r} is not supported in an XGBClassifier")
    place = graph.index_where(str(graph.op("Greater", positive, graph.constant(0.5, np.float32))))
    grown = _grown(graph, estimator, x, model)
    return Classifier(classes, place, graph.complement(graph.floats(positive)), forest=grown)


def xgboost_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """XGBRegressor, XGBRFRegressor, XGBRanker."""
    raw, model = _raw(graph, estimator, x, path)
    if len(model.margins) > 1:
        raise refuse(path, f"{type(estimator).__name__} predicts several targets; import one model a target")
    if model.objective in LOGISTIC:
        raw = _sigmoid(graph, raw)
    elif model.objective in EXPONENTIAL:
        raw = _exponential(graph, raw)
    elif model.objective == "binary:hinge":
        raw = graph.cast(str(graph.op("Greater", raw, graph.constant(0.0, np.float32))), TensorProto.FLOAT)
    elif model.objective not in IDENTITY:
        raise refuse(path, f"the objective {model.objective!r} is not supported")
    return Regressor(graph.floats(raw), _grown(graph, estimator, x, model))
