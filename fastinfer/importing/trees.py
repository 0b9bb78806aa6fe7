"""Decision trees, forests and gradient boosting, from the fitted arrays, in float64.

scikit-learn's trees round their input to float32 and compare it with float64 thresholds; the histogram ones compare in
float64. Either way the comparison is one of two float64 numbers, which onnxruntime's float64 ``TreeEnsemble`` makes
exactly, and it adds the leaves up in float64 in the order of the trees, as scikit-learn does: so ties fall alike.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer.importing.answers import Classifier, Regressor
from fastinfer.importing.graph import Floats, Graph
from fastinfer.importing.groves import Grove, Grown, sides_of

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Tree(NamedTuple):
    """One tree as parallel arrays over its nodes; node 0 is the root and children come after their parent."""

    left: Ints  # -1 at a leaf
    right: Ints
    feature: Ints
    threshold: Floats  # to the left iff value <= threshold
    missing_left: Flags


class Forest:
    """The attributes of one TreeEnsemble operator, tree by tree."""

    def __init__(self) -> None:
        self._inner: list[tuple[NDArray[Any], ...]] = []
        self._leaves: list[tuple[Floats, Ints]] = []
        self._roots: list[int] = []
        self._inner_count = 0
        self._leaf_count = 0

    def add(self, tree: Tree, weights: Floats, targets: Ints) -> None:
        """Add ``weights[leaf]`` to column ``targets[leaf]``; both are given for every node."""
        leaf = tree.left < 0
        self._roots.append(self._inner_count)
        if leaf[0]:  # a lone leaf is written as a split whose two sides are that leaf
            one = np.array([self._leaf_count], np.int64)
            self._put([0], [0.0], [False], one, [True], one, [True])
        else:
            place = np.where(leaf, np.cumsum(leaf) - 1 + self._leaf_count, np.cumsum(~leaf) - 1 + self._inner_count)
            left, right = tree.left[~leaf], tree.right[~leaf]
            split = (tree.feature[~leaf], tree.threshold[~leaf], tree.missing_left[~leaf])
            self._put(*split, place[left], leaf[left], place[right], leaf[right])
        self._leaves.append((weights[leaf], targets[leaf]))
        self._leaf_count += int(leaf.sum())

    def add_rows(self, tree: Tree, values: Floats) -> None:
        """Add the row ``values[leaf]`` to the columns.

        A leaf of the operator feeds one column. So the tree is written once for the first class of each leaf, once more
        for the second, and so on, without the branches that have nothing left to add.
        """
        present = values != 0
        rank = np.cumsum(present, axis=1) * present
        nodes = np.arange(len(values))
        for r in range(1, max(1, int(rank[tree.left < 0].max())) + 1):
            here = rank == r
            targets = here.argmax(axis=1).astype(np.int64)
            weights = np.where(here.any(axis=1), values[nodes, targets], 0.0)
            self.add(*_pruned(tree, weights, targets))

    def write(self, graph: Graph, x: str, columns: int, dtype: Any = np.float64) -> str:
        """The sums, [rows, columns], of ``dtype`` as ``x`` is: thresholds, leaves and every partial sum are."""
        parts = [np.concatenate(part) for part in zip(*self._inner, strict=True)]
        feature, threshold, missing, true, true_leaf, false, false_leaf = parts
        weights, targets = (np.concatenate(part) for part in zip(*self._leaves, strict=True))
        graph.turns_at(x, feature, threshold)
        name = graph.op(
            "TreeEnsemble",
            x,
            domain="ai.onnx.ml",
            nodes_splits=threshold.astype(dtype),
            nodes_featureids=feature,
            nodes_modes=np.zeros(len(feature), np.uint8),  # BRANCH_LEQ
            nodes_missing_value_tracks_true=missing.astype(np.int64),
            nodes_truenodeids=true,
            nodes_trueleafs=true_leaf.astype(np.int64),
            nodes_falsenodeids=false,
            nodes_falseleafs=false_leaf.astype(np.int64),
            tree_roots=np.array(self._roots, np.int64),
            leaf_weights=weights.astype(dtype),
            leaf_targetids=targets,
            n_targets=columns,
            aggregate_function=1,  # SUM
            post_transform=0,
        )
        return str(name)

    def _put(self, *columns: Any) -> None:
        dtypes = (np.int64, np.float64, np.bool_, np.int64, np.bool_, np.int64, np.bool_)
        self._inner.append(tuple(np.asarray(c, dtype=d) for c, d in zip(columns, dtypes, strict=True)))
        self._inner_count += len(self._inner[-1][0])


def constant_tree() -> Tree:
    """A lone leaf: carries a start value into a sum as its first term, where the library puts it."""
    none = np.array([-1], np.int64)
    return Tree(none, none, none, np.zeros(1), np.zeros(1, np.bool_))


def _pruned(tree: Tree, weights: Floats, targets: Ints) -> tuple[Tree, Floats, Ints]:
    """The tree with every branch that adds nothing cut down to one leaf."""
    left, right = tree.left.tolist(), tree.right.tolist()
    empty = (weights == 0).tolist()
    for node in range(len(left) - 1, -1, -1):
        if left[node] >= 0:
            empty[node] = empty[left[node]] and empty[right[node]]
    order: list[int] = []
    stack = [0]
    while stack:
        node = stack.pop()
        order.append(node)
        if left[node] >= 0 and not empty[node]:
            stack += [right[node], left[node]]
    kept = np.array(order, np.int64)
    place = np.full(len(left), -1, np.int64)
    place[kept] = np.arange(len(kept))
    inner = (tree.left[kept] >= 0) & ~np.array(empty)[kept]
    child = [np.where(inner, place[side[kept]], -1) for side in (tree.left, tree.right)]
    cut = Tree(child[0], child[1], tree.feature[kept], tree.threshold[kept], tree.missing_left[kept])
    return cut, np.where(inner | np.array(empty)[kept], 0.0, weights[kept]), targets[kept]


# ---- scikit-learn's DecisionTree*, ExtraTree*, RandomForest*, ExtraTrees*, GradientBoosting* ----------------------
def tree_arrays(estimator: Any) -> Tree:
    fitted = estimator.tree_
    return Tree(
        fitted.children_left.astype(np.int64),
        fitted.children_right.astype(np.int64),
        fitted.feature.astype(np.int64),
        fitted.threshold.astype(np.float64),
        np.asarray(fitted.missing_go_to_left).astype(np.bool_),
    )


def plant(grove: Grove, tree: Tree, values: Floats, target: int = 0) -> None:
    """Add a tree to the core's forest; ``values`` [nodes, 1 or outputs] are read at its leaves."""
    kind = sides_of(tree.missing_left)
    grove.add(tree.left, tree.right, tree.feature, tree.threshold, kind, values[tree.left < 0], target)


def _class_sums(graph: Graph, trees: list[Any], x: str, classes: int) -> tuple[str, Grown]:
    """The sums in the graph, and the forest whose answer is their mean."""
    forest, grove = Forest(), Grove(np.float32, classes)
    for tree in trees:
        values = tree.tree_.value[:, 0, :classes].astype(np.float64)
        forest.add_rows(tree_arrays(tree), values)
        plant(grove, tree_arrays(tree), values)
    divisor = float(len(trees)) if len(trees) > 1 else 0.0
    return forest.write(graph, graph.round32(x), classes), grove.grown(x, divisor=divisor)


def _value_sums(graph: Graph, trees: list[Any], x: str) -> tuple[str, Grown]:
    forest, grove = Forest(), Grove(np.float32, 1)
    for tree in trees:
        values = tree.tree_.value[:, 0, 0].astype(np.float64)
        forest.add(tree_arrays(tree), values, np.zeros(len(values), np.int64))
        plant(grove, tree_arrays(tree), values[:, None])
    divisor = float(len(trees)) if len(trees) > 1 else 0.0
    return forest.write(graph, graph.round32(x), 1), grove.grown(x, divisor=divisor)


def tree_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """DecisionTreeClassifier, ExtraTreeClassifier."""
    probabilities, grown = _class_sums(graph, [estimator], x, int(estimator.n_classes_))
    return Classifier(estimator.classes_, graph.argmax(probabilities), probabilities, forest=grown)


def tree_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """DecisionTreeRegressor, ExtraTreeRegressor."""
    return Regressor(*_value_sums(graph, [estimator], x))


def forest_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """RandomForestClassifier, ExtraTreesClassifier: the mean of the trees' probabilities."""
    sums, grown = _class_sums(graph, estimator.estimators_, x, int(estimator.n_classes_))
    probabilities = graph.arithmetic("Div", sums, float(len(estimator.estimators_)))
    return Classifier(estimator.classes_, graph.argmax(probabilities), probabilities, forest=grown)


def forest_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """RandomForestRegressor, ExtraTreesRegressor: the mean of the trees' values."""
    sums, grown = _value_sums(graph, estimator.estimators_, x)
    return Regressor(graph.arithmetic("Div", sums, float(len(estimator.estimators_))), grown)
