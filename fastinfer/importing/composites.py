"""Estimators made of estimators: each part is written into the same graph, and the parts' answers are combined."""

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from fastinfer.errors import ImportRefusedError
from fastinfer.importing.answers import Answer, Classifier, Regressor, classifier, refuse, regressor
from fastinfer.importing.estimators import write
from fastinfer.importing.graph import MOST_FEATURES, Graph, Made
from fastinfer.importing.links import normalised, softmax
from fastinfer.importing.vectors import pair_confidences, pair_votes


# ---- one part, or a part chosen -----------------------------------------------------------------------------------
def frozen(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    """FrozenEstimator."""
    return write(graph, estimator.estimator, x, f"{path}.estimator")


def searched(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    """GridSearchCV and its kin: the refitted best estimator."""
    return write(graph, estimator.best_estimator_, x, f"{path}.best_estimator_")


def pipeline(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    """A pipeline. On raw columns the program does its first steps, as many as it can, and the graph the rest."""
    from fastinfer.importing.transformers import transform

    steps = estimator.steps
    start, made = _front(graph, estimator, path) if x == graph.features else (0, None)
    if made is not None:
        make = graph.front if made.width <= MOST_FEATURES else graph.wide
        x = make(_prefix(graph, estimator, start), made, path)
    for name, step in steps[start:-1]:
        if step not in (None, "passthrough"):
            x = transform(graph, step, x, f"{path}[{name!r}]")
    name, last = steps[-1]
    return write(graph, last, x, f"{path}[{name!r}]")


def _front(graph: Graph, estimator: Any, path: str) -> tuple[int, Made | None]:
    """How many of the steps the program does, and what they make: as many as it can, the graph the others."""
    from fastinfer.importing.transformers import knows

    steps = estimator.steps
    refusal: ImportRefusedError | None = None
    if graph.program_shape is None:
        return 0, None
    for count in range(len(steps) - 1, 0, -1):
        try:
            return count, graph.program_shape(estimator[:count], path)
        except ImportRefusedError as error:
            refusal = refusal or error
        if not knows(steps[count - 1][1]):
            raise refusal
    return 0, None


def _prefix(graph: Graph, estimator: Any, start: int) -> Any:
    """``estimator[:start]``, the same object each time it is asked for."""
    steps = [step for _, step in estimator.steps[:start]]
    for transformer in graph.transformers():
        known = [step for _, step in transformer.steps]
        if len(known) == len(steps) and all(a is b for a, b in zip(known, steps, strict=True)):
            return transformer
    return estimator[:start]


def thresholded(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """FixedThresholdClassifier, TunedThresholdClassifierCV."""
    inner = getattr(estimator, "estimator_", estimator.estimator)
    part = classifier(write(graph, inner, x, f"{path}.estimator_"), path)
    chosen = estimator._get_response_method()
    wanted = [chosen] if isinstance(chosen, str) else chosen
    by_probability = next((m for m in wanted if hasattr(inner, m)), None) == "predict_proba"
    if hasattr(estimator, "best_threshold_"):
        label, threshold = estimator._curve_scorer._get_pos_label(), estimator.best_threshold_
    else:
        label, threshold = estimator.pos_label, estimator.threshold
        threshold = (0.5 if by_probability else 0.0) if isinstance(threshold, str) else threshold
    positive = 1 if label is None else int(np.flatnonzero(part.classes == label)[0])
    if by_probability:
        score = graph.columns(_probabilities(part, path), [positive])
    elif part.decision is None:
        raise refuse(path, "the decision function of the inner estimator is not supported")
    else:
        score = part.decision if positive == 1 else str(graph.op("Neg", part.decision))
    above = graph.index_where(str(graph.op("GreaterOrEqual", score, graph.constant([[float(threshold)]]))))
    order = graph.constant([1 - positive, positive], np.int64)
    return part._replace(place=str(graph.op("Gather", order, above)), forest=None)


def transformed_target(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """TransformedTargetRegressor: the inverse of a numpy function or of a scaler."""
    from fastinfer.importing.transformers import function, inverse

    part = regressor(write(graph, estimator.regressor_, x, f"{path}.regressor_"), path)
    transformer = estimator.transformer_
    if type(transformer).__name__ == "FunctionTransformer":
        return Regressor(function(graph, transformer.inverse_func, part.value, f"{path}.inverse_func"))
    return Regressor(inverse(graph, transformer, part.value, f"{path}.transformer_"))


def _probabilities(part: Classifier, path: str) -> str:
    if part.probabilities is None:
        raise refuse(path, "an inner estimator has no probabilities")
    return part.probabilities


# ---- calibration --------------------------------------------------------------------------------------------------
def calibrated(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """CalibratedClassifierCV: the mean over its calibrated classifiers."""
    members = estimator.calibrated_classifiers_
    parts = [_calibrated_member(graph, m, x, f"{path}.calibrated_classifiers_[{i}]") for i, m in enumerate(members)]
    probabilities = graph.arithmetic("Div", _total(graph, parts), float(len(parts)))
    return Classifier(estimator.classes_, graph.argmax(probabilities), probabilities)


def _calibrated_member(graph: Graph, member: Any, x: str, path: str) -> str:
    part = classifier(write(graph, member.estimator, x, f"{path}.estimator"), path)
    classes = len(member.classes)
    by_decision = hasattr(member.estimator, "decision_function")
    scores = part.decision if by_decision else _probabilities(part, path)
    if scores is None:
        raise refuse(path, f"the decision function of {type(member.estimator).__name__} is not supported")
    if member.method == "temperature":
        return _tempered(graph, member.calibrators[0], scores, by_decision, classes)
    if classes == 2:
        positive = scores if by_decision else graph.columns(scores, [1])
        return _capped(graph, graph.complement(_curve(graph, member.calibrators[0], positive, path)))
    places = np.searchsorted(member.classes, member.estimator.classes_)
    columns = [graph.constant([[0.0]])] * classes
    for i, (place, calibrator) in enumerate(zip(places.tolist(), member.calibrators, strict=True)):
        columns[place] = _curve(graph, calibrator, graph.columns(scores, [i]), path)
    if len(places) < classes:  # a class that a fold has not seen: zero, in as many rows
        nothing = graph.arithmetic("Mul", columns[int(places[0])], 0.0)
        columns = [columns[i] if i in places else nothing for i in range(classes)]
    return _capped(graph, normalised(graph, graph.concat(columns), classes))


def _capped(graph: Graph, probabilities: str) -> str:
    """Probabilities that pass 1 by rounding are 1."""
    return str(graph.op("Min", probabilities, graph.constant(1.0)))


def _tempered(graph: Graph, calibrator: Any, scores: str, by_decision: bool, classes: int) -> str:
    if not by_decision:
        scores = str(graph.op("Log", graph.arithmetic("Add", scores, 1e-12)))
    elif classes == 2:
        scores = graph.concat([str(graph.op("Neg", scores)), scores])
    return _capped(graph, softmax(graph, graph.arithmetic("Mul", scores, float(calibrator.beta_))))


def _curve(graph: Graph, calibrator: Any, score: str, path: str) -> str:
    if type(calibrator).__name__ == "_SigmoidCalibration":
        line = graph.arithmetic("Add", graph.arithmetic("Mul", score, calibrator.a_), calibrator.b_)
        return str(graph.op("Sigmoid", graph.op("Neg", line)))
    return interpolated(graph, calibrator, score, path)


def interpolated(graph: Graph, fitted: Any, x: str, path: str) -> str:
    """IsotonicRegression with out_of_bounds="clip", in numpy.interp's order of operations."""
    if fitted.out_of_bounds != "clip":
        raise refuse(path, "IsotonicRegression is imported with out_of_bounds='clip' only")
    knots, heights = (np.asarray(a) for a in (fitted.X_thresholds_, fitted.y_thresholds_))
    if knots.dtype == np.float32:
        x = graph.floats(graph.cast(x, TensorProto.FLOAT))
    knots, heights = knots.astype(np.float64), heights.astype(np.float64)
    if len(heights) == 1:
        return graph.arithmetic("Add", graph.arithmetic("Mul", x, 0.0), heights[0])
    x = str(graph.op("Clip", x, graph.constant(float(fitted.X_min_)), graph.constant(float(fitted.X_max_))))
    one, zero = graph.constant(1, np.int64), graph.constant(0, np.int64)
    reached = graph.cast(str(graph.op("LessOrEqual", graph.constant(knots[None, :]), x)), TensorProto.INT64)
    place = graph.op("Max", graph.op("Sub", graph.sum(reached), one), zero)
    slopes = np.append(np.diff(heights) / np.diff(knots), 0.0)
    slope, start, height = (str(graph.op("Gather", graph.constant(a), place)) for a in (slopes, knots, heights))
    between = graph.op("Add", graph.op("Mul", slope, graph.op("Sub", x, start)), height)
    return str(graph.op("Where", graph.op("Equal", x, start), height, between))


def isotonic_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    return Regressor(interpolated(graph, estimator, x, path))


# ---- averages and votes -------------------------------------------------------------------------------------------
def _total(graph: Graph, parts: list[str]) -> str:
    """The sum of the parts, from the left."""
    return reduce(lambda a, b: str(graph.op("Add", a, b)), parts)


def _weighted(graph: Graph, parts: list[str], weights: Any) -> str:
    """numpy.average of the parts."""
    if weights is None:
        return graph.arithmetic("Div", _total(graph, parts), float(len(parts)))
    scaled = [graph.arithmetic("Mul", p, float(w)) for p, w in zip(parts, weights, strict=True)]
    return graph.arithmetic("Div", _total(graph, scaled), float(np.sum(weights)))


def _members(estimator: Any, path: str) -> list[tuple[Any, str]]:
    return [(e, f"{path}.estimators_[{i}]") for i, e in enumerate(estimator.estimators_)]


def voting_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    parts = [classifier(write(graph, e, x, p), p) for e, p in _members(estimator, path)]
    if estimator.voting == "soft":
        probabilities = _weighted(graph, [_probabilities(p, path) for p in parts], estimator._weights_not_none)
        return Classifier(estimator.classes_, graph.argmax(probabilities), probabilities)
    weights = estimator._weights_not_none or [1.0] * len(parts)
    votes = [
        graph.arithmetic("Mul", _encoded(graph, p, len(estimator.classes_)), float(w))
        for p, w in zip(parts, weights, strict=True)
    ]
    return Classifier(estimator.classes_, graph.argmax(_total(graph, votes)))


def _encoded(graph: Graph, part: Classifier, classes: int) -> str:
    """One-hot votes of a member that was fitted on the codes 0 to classes - 1, perhaps not all of them."""
    codes = graph.op("Gather", graph.constant(part.classes, np.int64), part.place)
    return graph.one_hot(str(codes), classes)


def voting_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    parts = [regressor(write(graph, e, x, p), p).value for e, p in _members(estimator, path)]
    return Regressor(_weighted(graph, parts, estimator._weights_not_none))


# ---- stacking -----------------------------------------------------------------------------------------------------
def _stacked(graph: Graph, estimator: Any, x: str, path: str) -> str:
    kept = [(e, m) for e, m in zip(estimator.estimators_, estimator.stack_method_, strict=True) if e != "drop"]
    two = len(getattr(estimator, "classes_", ())) == 2
    columns = [_stack_columns(graph, e, m, x, two, f"{path}.estimators_[{i}]") for i, (e, m) in enumerate(kept)]
    return graph.concat([*columns, x] if estimator.passthrough else columns)


def _stack_columns(graph: Graph, member: Any, method: str, x: str, two: bool, path: str) -> str:
    """A member's columns of the stack; ``two``: of two classes, the stack drops the first one's probability."""
    part = write(graph, member, x, path)
    if isinstance(part, Regressor):
        return part.value
    if method == "predict_proba":
        probabilities = _probabilities(part, path)
        return graph.columns(probabilities, list(range(1, len(part.classes)))) if two else probabilities
    if method == "decision_function" and part.decision is not None:
        return part.decision
    if method == "predict":
        labels = graph.op("Gather", graph.constant(part.classes), part.place)
        return str(graph.op("Unsqueeze", labels, graph.constant([1], np.int64)))
    raise refuse(path, f"{method} of {type(member).__name__} is not supported")


def stacking_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    last = write(graph, estimator.final_estimator_, _stacked(graph, estimator, x, path), f"{path}.final_estimator_")
    part = classifier(last, path)
    return part._replace(classes=estimator.classes_[np.asarray(part.classes, np.int64)])


def stacking_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    columns = _stacked(graph, estimator, x, path)
    return regressor(write(graph, estimator.final_estimator_, columns, f"{path}.final_estimator_"), path)


# ---- bagging and AdaBoost -----------------------------------------------------------------------------------------
def _bags(graph: Graph, estimator: Any, x: str, path: str) -> list[Answer]:
    parts = []
    for (member, place), features in zip(_members(estimator, path), estimator.estimators_features_, strict=True):
        whole = np.array_equal(features, np.arange(estimator.n_features_in_))
        parts.append(write(graph, member, x if whole else graph.columns(x, features), place))
    return parts


def bagging_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    classes = len(estimator.classes_)
    shares = []
    for answer in _bags(graph, estimator, x, path):
        part = classifier(answer, path)
        if part.probabilities is None:
            shares.append(_encoded(graph, part, classes))
            continue
        spread = np.eye(classes)[np.asarray(part.classes, np.int64)]  # a bag may have missed a class
        whole = len(part.classes) == classes
        own = part.probabilities
        shares.append(own if whole else graph.op("MatMul", own, graph.constant(spread)))
    probabilities = graph.arithmetic("Div", _total(graph, shares), float(len(shares)))
    return Classifier(estimator.classes_, graph.argmax(probabilities), probabilities)


def bagging_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    parts = [regressor(answer, path).value for answer in _bags(graph, estimator, x, path)]
    return Regressor(graph.arithmetic("Div", _total(graph, parts), float(len(parts))))


def boosted_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """AdaBoostClassifier (SAMME): weighted votes, then a softmax."""
    if getattr(estimator, "algorithm", "SAMME") == "SAMME.R":
        raise refuse(path, "AdaBoostClassifier(algorithm='SAMME.R') is not supported; SAMME is")
    classes = len(estimator.classes_)
    weights = estimator.estimator_weights_
    votes = []
    for (member, place), weight in zip(_members(estimator, path), weights.tolist(), strict=False):
        part = classifier(write(graph, member, x, place), place)
        table = np.full((len(part.classes), classes), -1 / (classes - 1) * weight)
        table[np.arange(len(part.classes)), np.searchsorted(estimator.classes_, part.classes)] = weight
        votes.append(str(graph.op("Gather", graph.constant(table), part.place, axis=0)))
    scores = graph.arithmetic("Div", _total(graph, votes), float(weights.sum()))
    if classes > 2:
        probabilities = softmax(graph, graph.arithmetic("Div", scores, float(classes - 1)))
        return Classifier(estimator.classes_, graph.argmax(scores), probabilities, scores)
    decision = graph.op("Add", graph.op("Neg", graph.columns(scores, [0])), graph.columns(scores, [1]))
    halves = graph.arithmetic("Div", graph.concat([graph.op("Neg", decision), decision]), 2.0)
    index = graph.index_where(str(graph.op("Greater", decision, graph.constant([[0.0]]))))
    return Classifier(estimator.classes_, index, softmax(graph, halves), decision)


def boosted_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """AdaBoostRegressor: the weighted median of the members."""
    members = _members(estimator, path)
    values = graph.concat([regressor(write(graph, e, x, p), p).value for e, p in members])
    count = len(members)
    size = graph.constant([count], np.int64)
    ordered, places = graph.op("TopK", values, size, outputs=2, axis=1, largest=0, sorted=1)
    weights = graph.op("Gather", graph.constant(estimator.estimator_weights_[:count]), places)
    running = graph.op("CumSum", weights, graph.constant(1, np.int64))
    half = graph.arithmetic("Mul", graph.columns(running, [count - 1]), 0.5)
    reached = graph.cast(str(graph.op("GreaterOrEqual", running, half)), TensorProto.INT64)
    first = graph.op("ArgMax", reached, axis=1, keepdims=1, select_last_index=0)
    return Regressor(str(graph.op("GatherElements", ordered, first, axis=1)))


# ---- one against the rest, one against one ------------------------------------------------------------------------
def _binary_score(part: Classifier, estimator: Any, graph: Graph, path: str) -> str:
    """scikit-learn's _predict_binary: the decision function, else the second class's probability."""
    if hasattr(estimator, "decision_function"):
        if part.decision is None:
            raise refuse(path, f"the decision function of {type(estimator).__name__} is not supported")
        return part.decision
    return graph.columns(_probabilities(part, path), [1])


def rest_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """OneVsRestClassifier."""
    if estimator.multilabel_:
        raise refuse(path, "OneVsRestClassifier predicts several labels at once; import one model a label")
    members = _members(estimator, path)
    parts = [classifier(write(graph, e, x, p), p) for e, p in members]
    scores = graph.concat([_binary_score(part, e, graph, p) for part, (e, p) in zip(parts, members, strict=True)])
    probabilities = None
    if all(part.probabilities for part in parts):
        each = graph.concat([graph.columns(_probabilities(part, path), [1]) for part in parts])
        probabilities = graph.complement(each) if len(parts) == 1 else _shares(graph, each)
    if len(parts) == 1:
        above = graph.op("Greater", scores, graph.constant([[_middle(estimator)]]))
        return Classifier(estimator.classes_, graph.index_where(str(above)), probabilities, scores)
    return Classifier(estimator.classes_, graph.argmax(scores), probabilities, scores)


def _shares(graph: Graph, each: str) -> str:
    """Normalised, and left at zero where all are zero."""
    total = graph.sum(each)
    empty = graph.op("Equal", total, graph.constant([[0.0]]))
    return str(graph.op("Div", each, graph.op("Where", empty, graph.constant([[1.0]]), total)))


def _middle(estimator: Any) -> float:
    """Where scikit-learn splits a lone binary estimator's score."""
    first = estimator.estimators_[0]
    return 0.0 if hasattr(first, "decision_function") else 0.5


def pair_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """OneVsOneClassifier."""
    classes = len(estimator.classes_)
    members = _members(estimator, path)
    parts = [classifier(write(graph, e, x, p), p) for e, p in members]
    scores = graph.concat([_binary_score(part, e, graph, p) for part, (e, p) in zip(parts, members, strict=True)])
    seconds = graph.concat([_second(graph, part) for part in parts])
    decision = str(graph.op("Add", pair_votes(graph, seconds, classes), pair_confidences(graph, scores, classes)))
    if classes == 2:
        decision = graph.columns(decision, [1])
        above = graph.op("Greater", decision, graph.constant([[_middle(estimator)]]))
        return Classifier(estimator.classes_, graph.index_where(str(above)), None, decision)
    return Classifier(estimator.classes_, graph.argmax(decision), None, decision)


def _second(graph: Graph, part: Classifier) -> str:
    labels: NDArray[Any] = np.asarray(part.classes, np.float64)
    chosen = graph.op("Gather", graph.constant(labels), part.place)
    return str(graph.op("Unsqueeze", chosen, graph.constant([1], np.int64)))
