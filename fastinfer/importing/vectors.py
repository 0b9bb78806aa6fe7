"""Support vector machines and nearest neighbours, in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from fastinfer.importing import foreign
from fastinfer.importing.answers import Answer, Classifier, Regressor, refuse
from fastinfer.importing.graph import Floats, Graph
from fastinfer.importing.linear import dense


# ---- libsvm -------------------------------------------------------------------------------------------------------
def _kernel(graph: Graph, estimator: Any, x: str, path: str) -> str:
    """[rows, support vectors]."""
    vectors = estimator.support_vectors_
    if not isinstance(vectors, np.ndarray):
        vectors = vectors.toarray()
    if estimator.kernel == "rbf":
        return str(graph.op("Exp", graph.arithmetic("Mul", squared_distances(graph, x, vectors), -estimator._gamma)))
    dot = str(graph.op("MatMul", x, graph.constant(vectors.T)))
    if estimator.kernel == "linear":
        return dot
    affine = graph.arithmetic("Add", graph.arithmetic("Mul", dot, estimator._gamma), float(estimator.coef0))
    if estimator.kernel == "poly":
        return graph.arithmetic("Pow", affine, float(estimator.degree))
    if estimator.kernel == "sigmoid":
        return str(graph.op("Tanh", affine))
    raise refuse(path, f"the kernel {estimator.kernel!r} is not supported")


def squared_distances(graph: Graph, x: str, points: Floats) -> str:
    """|x - p|² for each point, by |x|² - 2 x·p + |p|², never below zero."""
    cross = graph.op("MatMul", x, graph.constant(-2.0 * points.T))
    own = graph.sum(str(graph.op("Mul", x, x)))
    whole = graph.op("Add", own, graph.arithmetic("Add", str(cross), (points**2).sum(axis=1)[None, :]))
    return str(graph.op("Max", whole, graph.constant(0.0)))


def vector_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """SVR, NuSVR."""
    kernel = _kernel(graph, estimator, x, path)
    return Regressor(graph.linear(kernel, dense(estimator.dual_coef_).T, estimator.intercept_[None, :]))


def vector_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    """SVC, NuSVC: labels by libsvm's votes, with or without probabilities."""
    classes = estimator.classes_
    kernel = _kernel(graph, estimator, x, path)
    if len(classes) == 2:
        decision = graph.linear(kernel, dense(estimator.dual_coef_).T, estimator.intercept_[None, :])
        above = graph.op("GreaterOrEqual", decision, graph.constant([[0.0]]))
        coupled = _probabilities(graph, estimator, str(graph.op("Neg", decision)))
        return Classifier(classes, graph.index_where(str(above)), coupled, decision)
    pairs = graph.linear(kernel, _pairwise(estimator), estimator.intercept_[None, :])
    coupled = _probabilities(graph, estimator, pairs)
    votes, decision = _votes(graph, pairs, len(classes))
    if estimator.decision_function_shape == "ovo":
        return Classifier(classes, graph.argmax(votes), coupled, pairs)
    ties = decision if estimator.break_ties else votes
    return Classifier(classes, graph.argmax(ties), coupled, decision)


LEAST = 1e-7  # that libsvm leaves either class of a pair


def _probabilities(graph: Graph, estimator: Any, pairs: str) -> str | None:
    """Probabilities [rows, classes] from the pairs' decisions (positive: the first class), or None if none are fitted.

    Each pair's probability is Platt's sigmoid, and those are coupled by the second method of Wu, Lin and Weng,
    "Probability Estimates for Multi-class Classification by Pairwise Coupling" (2004), which stops early: turn by turn
    as libsvm does, for two classes too, and a row that has stopped stays as it is.
    """
    slopes, offsets = (np.ravel(getattr(estimator, name, ())) for name in ("_probA", "_probB"))
    if not len(slopes):
        return None
    count = len(estimator.classes_)
    scaled = graph.arithmetic("Add", graph.arithmetic("Mul", pairs, slopes[None, :]), offsets[None, :])
    first = graph.op("Clip", graph.op("Sigmoid", graph.op("Neg", scaled)), graph.constant(LEAST),
                     graph.constant(1.0 - LEAST))
    second = graph.op("Sub", graph.constant([[1.0]]), first)
    ranks = [(i, j) for i in range(count) for j in range(i + 1, count)]
    above, below = np.zeros((2, len(ranks), count, count))
    for k, (i, j) in enumerate(ranks):
        above[k, i, j] = below[k, j, i] = 1.0
    shape = graph.constant([-1, count, count], np.int64)
    placed = [graph.op("MatMul", side, graph.constant(places.reshape(len(ranks), -1)))
              for side, places in ((first, above), (second, below))]  # of zeros and one number each: exact
    against = str(graph.op("Reshape", graph.op("Add", *placed), shape))
    turned = str(graph.op("Transpose", against, perm=[0, 2, 1]))
    last = graph.constant([2], np.int64)
    own = str(graph.op("ReduceSum", graph.op("Mul", turned, turned), last, keepdims=0))
    crossed = graph.op("Neg", graph.op("Mul", against, turned))
    spread = graph.arithmetic("Mul", str(graph.op("Unsqueeze", own, last)), np.eye(count)[None])
    matrix = str(graph.op("Add", crossed, spread))
    rows = [str(graph.op("Gather", matrix, graph.constant(t, np.int64), axis=1)) for t in range(count)]
    owns = [graph.columns(own, [t]) for t in range(count)]

    def turn(shares: str) -> tuple[str, str]:
        wide = graph.op("Unsqueeze", shares, graph.constant([1], np.int64))
        slope = str(graph.op("ReduceSum", graph.op("Mul", matrix, wide), last, keepdims=0))
        square = graph.sum(str(graph.op("Mul", shares, slope)))
        errors = graph.op("Abs", graph.op("Sub", slope, square))
        error = graph.op("ReduceMax", errors, graph.constant([1], np.int64), keepdims=1)
        going = str(graph.op("GreaterOrEqual", error, graph.constant([[0.005 / count]])))
        stepped = shares
        for t in range(count):
            at = graph.columns(slope, [t])
            step = str(graph.op("Div", graph.op("Sub", square, at), owns[t]))
            grown = str(graph.op("Add", graph.constant([[1.0]]), step))
            curved = graph.op("Add", graph.op("Mul", step, owns[t]), graph.arithmetic("Mul", at, 2.0))
            square = graph.op("Add", square, graph.op("Mul", step, curved))
            square = str(graph.op("Div", graph.op("Div", square, grown), grown))
            slope = str(graph.op("Div", graph.op("Add", slope, graph.op("Mul", step, rows[t])), grown))
            moved = graph.arithmetic("Mul", step, np.eye(count)[t : t + 1])
            stepped = str(graph.op("Div", graph.op("Add", stepped, moved), grown))
        some = graph.op("ReduceMax", graph.cast(going, TensorProto.INT32), graph.constant([0, 1], np.int64), keepdims=0)
        return graph.cast(str(some), TensorProto.BOOL), str(graph.op("Where", going, stepped, shares))

    start = graph.op("Expand", graph.constant([[1.0 / count]]), graph.op("Shape", own))
    return graph.repeat(str(start), max(100, count), turn)


def _pairwise(estimator: Any) -> Floats:
    """[support vectors, pairs]: libsvm keeps a vector's coefficient against class j in row j, without its own class."""
    coefficients = dense(estimator.dual_coef_)
    ends = np.cumsum(estimator.n_support_)
    span = [slice(end - n, end) for end, n in zip(ends, estimator.n_support_, strict=True)]
    columns = []
    for i in range(len(span)):
        for j in range(i + 1, len(span)):
            column = np.zeros(coefficients.shape[1])
            column[span[i]] = coefficients[j - 1, span[i]]
            column[span[j]] = coefficients[i, span[j]]
            columns.append(column)
    return np.stack(columns, axis=1)


def _votes(graph: Graph, pairs: str, classes: int) -> tuple[str, str]:
    """Votes of the pairs (positive: the first class), and scikit-learn's votes with confidences."""
    first = graph.floats(str(graph.op("Greater", pairs, graph.constant([[0.0]]))))
    below = graph.floats(str(graph.op("Less", pairs, graph.constant([[0.0]]))))
    votes = pair_votes(graph, graph.op("Sub", graph.constant([[1.0]]), first), classes)
    counted = pair_votes(graph, below, classes)
    return votes, graph.op("Add", counted, pair_confidences(graph, graph.op("Neg", pairs), classes))


def _pair_matrix(classes: int, first: float, second: float) -> Floats:
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    matrix = np.zeros((len(pairs), classes))
    for k, (i, j) in enumerate(pairs):
        matrix[k, i], matrix[k, j] = first, second
    return matrix


def pair_votes(graph: Graph, second: str, classes: int) -> str:
    """Votes of each class; ``second`` is 1 where a pair's second class wins, else 0."""
    won = graph.op("MatMul", second, graph.constant(_pair_matrix(classes, -1.0, 1.0)))
    return graph.arithmetic("Add", str(won), _pair_matrix(classes, 1.0, 0.0).sum(axis=0)[None, :])


def pair_confidences(graph: Graph, confidences: str, classes: int) -> str:
    """scikit-learn's tie breaker: summed confidences squeezed into (-1/3, 1/3)."""
    total = graph.op("MatMul", confidences, graph.constant(_pair_matrix(classes, -1.0, 1.0)))
    scale = graph.arithmetic("Mul", graph.arithmetic("Add", str(graph.op("Abs", total)), 1.0), 3.0)
    return str(graph.op("Div", total, scale))


# ---- nearest neighbours -------------------------------------------------------------------------------------------
SPARE = 8  # candidates past k, so that rounding in the fast distance loses nobody


def _neighbours(graph: Graph, estimator: Any, x: str) -> tuple[str, str | None]:
    """Indices of the k nearest training rows [rows, k], and their weights or None for equal ones."""
    points = dense(estimator._fit_X)
    k = int(estimator.n_neighbors)
    near = squared_distances(graph, x, points)
    wide = graph.constant([min(k + SPARE, len(points))], np.int64)
    _, candidates = graph.op("TopK", near, wide, outputs=2, axis=1, largest=0, sorted=1)
    apart = graph.op("Sub", graph.op("Unsqueeze", x, graph.constant([1], np.int64)),
                     graph.op("Gather", graph.constant(points), candidates, axis=0))
    squares = graph.op("ReduceSum", graph.op("Mul", apart, apart), graph.constant([2], np.int64), keepdims=0)
    best, places = graph.op("TopK", squares, graph.constant([k], np.int64), outputs=2, axis=1, largest=0, sorted=1)
    chosen = graph.op("GatherElements", candidates, places, axis=1)
    return chosen, _inverse_distances(graph, best) if estimator.weights == "distance" else None


def _inverse_distances(graph: Graph, squares: str) -> str:
    """1 / distance; in a row with a distance of zero, 1 for those and 0 for the others."""
    distance = graph.op("Sqrt", squares)
    zero = graph.op("Equal", distance, graph.constant(0.0))
    hits = graph.floats(zero)
    hit = graph.op("Greater", graph.sum(hits), graph.constant(0.0))
    inverse = graph.op("Div", graph.constant(1.0), graph.op("Where", zero, graph.constant(1.0), distance))
    return str(graph.op("Where", hit, hits, inverse))


def _plain(estimator: Any) -> bool:
    """Whether the writers here do: the euclidean metric and weights by name."""
    return estimator.effective_metric_ == "euclidean" and not callable(estimator.weights)


def neighbours_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    if not _plain(estimator):
        return foreign.converted(graph, estimator, x, path)
    targets: NDArray[Any] = np.asarray(estimator._y, np.float64)
    if targets.ndim > 1 and targets.shape[1] > 1:
        raise refuse(path, "KNeighborsRegressor predicts several targets; import one model a target")
    chosen, weights = _neighbours(graph, estimator, x)
    values = str(graph.op("Gather", graph.constant(targets.ravel()), chosen, axis=0))
    if weights is None:
        return Regressor(graph.arithmetic("Div", graph.sum(values), float(estimator.n_neighbors)))
    return Regressor(str(graph.op("Div", graph.sum(str(graph.op("Mul", values, weights))), graph.sum(weights))))


def neighbours_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    if not _plain(estimator):
        return foreign.converted(graph, estimator, x, path)
    if estimator.outputs_2d_:
        raise refuse(path, "KNeighborsClassifier predicts several targets; import one model a target")
    chosen, weights = _neighbours(graph, estimator, x)
    classes = len(estimator.classes_)
    labels = graph.op("Gather", graph.constant(estimator._y, np.int64), chosen, axis=0)
    wide = graph.op("Unsqueeze", labels, graph.constant([2], np.int64))
    votes = graph.floats(str(graph.op("Equal", wide, graph.constant(np.arange(classes), np.int64))))
    if weights is not None:
        votes = graph.op("Mul", votes, graph.op("Unsqueeze", weights, graph.constant([2], np.int64)))
    counts = str(graph.op("ReduceSum", votes, graph.constant([1], np.int64), keepdims=0))
    return Classifier(estimator.classes_, graph.argmax(counts), str(graph.op("Div", counts, graph.sum(counts))))
