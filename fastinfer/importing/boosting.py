"""scikit-learn's gradient boosting, both kinds, from the fitted arrays."""

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer._core import SPLITS
from fastinfer.importing.answers import Classifier, Regressor, refuse
from fastinfer.importing.graph import Floats, Graph
from fastinfer.importing.groves import Grove, Grown, sides_of
from fastinfer.importing.links import boosted_classes, value
from fastinfer.importing.trees import Forest, Tree, constant_tree, plant, tree_arrays


def start(forest: Forest, scores: Floats) -> None:
    """Put the start scores first, where the libraries put them."""
    for column, score in enumerate(scores.reshape(-1).tolist()):
        forest.add(constant_tree(), np.array([score]), np.array([column], np.int64))


# ---- GradientBoostingClassifier, GradientBoostingRegressor --------------------------------------------------------
def gradient_scores(graph: Graph, estimator: Any, x: str, path: str) -> tuple[str, Grown]:
    initial = estimator.init_
    if not (isinstance(initial, str) or type(initial).__name__ in ("DummyClassifier", "DummyRegressor")):
        raise refuse(f"{path}.init", f"a {type(initial).__name__} as the start of boosting is not supported")
    scores = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), np.float32))
    columns = estimator.estimators_.shape[1]
    forest, grove = Forest(), Grove(np.float32, columns, scores)
    start(forest, scores)
    for stage in estimator.estimators_:
        for column, tree in enumerate(stage):
            leaves = estimator.learning_rate * tree.tree_.value[:, 0, 0].astype(np.float64)
            forest.add(tree_arrays(tree), leaves, np.full(len(leaves), column, np.int64))
            everywhere = tree_arrays(tree)._replace(missing_left=np.ones(len(leaves), np.bool_))  # it takes none
            plant(grove, everywhere, leaves[:, None], column)
    return forest.write(graph, graph.round32(x), columns), grove.grown(x)


def gradient_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    raw, grown = gradient_scores(graph, estimator, x, path)
    return boosted_classes(graph, raw, estimator, grown, tie=True, path=path)


def gradient_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    raw, grown = gradient_scores(graph, estimator, x, path)
    return value(graph, raw, type(estimator._loss.link).__name__, path, grown)


# ---- HistGradientBoostingClassifier, HistGradientBoostingRegressor ------------------------------------------------
def histogram_scores(graph: Graph, estimator: Any, x: str, path: str) -> tuple[str, Grown]:
    codes = _Categories(graph, estimator, x, path)
    columns, scores = int(estimator.n_trees_per_iteration_), np.asarray(estimator._baseline_prediction, np.float64)
    forest, grove = Forest(), Grove(np.float64, columns, scores)
    start(forest, scores)
    for stage in estimator._predictors:
        for column, predictor in enumerate(stage):
            tree, leaves = _histogram_tree(predictor, codes)
            forest.add(tree, leaves, np.full(len(leaves), column, np.int64))
            _plant(grove, predictor, codes, column)
    return forest.write(graph, codes.write(), columns), grove.grown(codes.x, codes.tables())


def histogram_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    raw, grown = histogram_scores(graph, estimator, x, path)
    return boosted_classes(graph, raw, estimator, grown, tie=False, path=path)


def histogram_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    raw, grown = histogram_scores(graph, estimator, x, path)
    return value(graph, raw, type(estimator._loss.link).__name__, path, grown)


def _histogram_tree(predictor: Any, codes: "_Categories") -> tuple[Tree, Floats]:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(np.bool_)
    feature = codes.numeric(nodes["feature_idx"].astype(np.int64))
    threshold = nodes["num_threshold"].astype(np.float64)
    missing = nodes["missing_go_to_left"].astype(np.bool_)
    for node in np.flatnonzero(nodes["is_categorical"].astype(np.bool_) & ~leaf).tolist():
        bits = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]
        feature[node] = codes.split(int(nodes["feature_idx"][node]), bits, bool(missing[node]))
        threshold[node], missing[node] = 0.5, False
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    return Tree(left, right, feature, threshold, missing), nodes["value"].astype(np.float64)


def _plant(grove: Grove, predictor: Any, codes: "_Categories", column: int) -> None:
    """Add a tree to the core's forest, its splits on categories as they are."""
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(np.bool_)
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    categorical = nodes["is_categorical"].astype(np.bool_) & ~leaf
    missing = nodes["missing_go_to_left"].astype(np.bool_)
    sides = [
        codes.sides(int(nodes["feature_idx"][node]), predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]],
                    bool(missing[node]))
        for node in np.flatnonzero(categorical).tolist()
    ]
    feature = codes.numeric(nodes["feature_idx"].astype(np.int64))
    threshold = np.where(categorical, 0.0, nodes["num_threshold"].astype(np.float64))
    kind = np.where(categorical, SPLITS["table"], sides_of(missing))
    grove.add(left, right, feature, threshold, kind, nodes["value"].astype(np.float64)[leaf][:, None], column, sides)


def _encoding(preprocessor: Any) -> Any:
    """The estimator's own encoder of categories, as a pipeline that the program can express.

    It makes numbers of the other columns by check_array, which no program knows; a scaler that does nothing is as good.
    """
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    encoder = copy.copy(preprocessor)
    encoder.transformers_ = []
    for name, step, columns in preprocessor.transformers_:
        if name == "numerical" and np.any(columns):
            step = StandardScaler(with_mean=False, with_std=False).fit(np.zeros((1, int(np.sum(columns)))))
        encoder.transformers_.append((name, step, columns))
    return Pipeline([("categories", encoder)])


class _Categories:
    """Splits on categories, each as a column of its own beside the features: 0 goes left, 1 right.

    The histogram estimators encode categories first and put those columns in front; a category that was not seen, and a
    missing one, go where the node's missing values go.
    """

    def __init__(self, graph: Graph, estimator: Any, x: str, path: str) -> None:
        self._graph, self._x = graph, x
        self._width = int(estimator.n_features_in_)
        self._values: list[Floats] = []
        self._tables: dict[int, list[Floats]] = {}
        self._order: dict[int, list[int]] = {}
        self._count = 0
        flags = estimator.is_categorical_
        categorical = np.zeros(self._width, np.bool_) if flags is None else np.asarray(flags, np.bool_)
        self._places = np.concatenate([np.flatnonzero(categorical), np.flatnonzero(~categorical)])
        if flags is None:
            return
        known = estimator._preprocessor.named_transformers_["encoder"].categories_
        if all(values.dtype.kind in "iufb" for values in known):
            self._values = [values.astype(np.float64) for values in known]
        elif x == graph.features and graph.program_shape is not None:
            transformer = _encoding(estimator._preprocessor)
            self._x = graph.front(transformer, graph.program_shape(transformer, path), path)
            self._values = [np.arange(len(values), dtype=np.float64) for values in known]
            self._places = np.arange(self._width)
        else:
            raise refuse(path, "it encodes categories that are text; encode them in a step of the pipeline")

    def numeric(self, feature: Any) -> Any:
        """Columns of the input for the estimator's own numbering."""
        return self._places[feature]

    @property
    def x(self) -> str:
        """The matrix that the trees read."""
        return self._x

    def tables(self) -> dict[int, Floats]:
        """The known values of each feature of categories, by column; a missing one is none of them."""
        known = {int(self._places[i]): values[~np.isnan(values)] for i, values in enumerate(self._values)}
        return {feature: values for feature, values in known.items() if len(values)}

    def sides(self, feature: int, bits: Any, missing_left: bool) -> NDArray[np.bool_]:
        """Of (missing, unknown, category 0, 1, …), whether it goes right: the codes in ``bits`` go left."""
        known = self._values[feature]
        words = np.asarray(bits, np.uint32)
        rights = [not int(words[code // 32]) >> (code % 32) & 1 for code in range(int((~np.isnan(known)).sum()))]
        return np.array([not missing_left, not missing_left, *rights], np.bool_)

    def split(self, feature: int, bits: Any, missing_left: bool) -> int:
        """The column for a split that sends the codes in ``bits`` left."""
        known = self._values[feature]
        words = np.asarray(bits, np.uint32)
        sides = [1.0 - float(int(words[code // 32]) >> (code % 32) & 1) for code in range(len(known))]
        missing = 0.0 if missing_left else 1.0
        for code in np.flatnonzero(np.isnan(known)).tolist():
            sides[code] = missing
        self._tables.setdefault(feature, []).append(np.array([*sides, missing]))
        self._order.setdefault(feature, []).append(self._count)
        self._count += 1
        return self._width + self._count - 1

    def write(self) -> str:
        """The features with the splits' columns behind them."""
        graph = self._graph
        if not self._count:
            return self._x
        parts, order = [], []
        for feature, tables in self._tables.items():
            column = graph.columns(self._x, [int(self._places[feature])])
            found = graph.floats(str(graph.op("Equal", column, graph.constant(self._values[feature][None, :]))))
            unknown = graph.op("Sub", graph.constant([[1.0]]), graph.sum(found))
            both = graph.concat([found, str(unknown)])
            parts.append(str(graph.op("MatMul", both, graph.constant(np.stack(tables, axis=1)))))
            order += self._order[feature]
        sides = graph.columns(graph.concat(parts), np.argsort(order))
        return graph.beside(self._x, sides)
