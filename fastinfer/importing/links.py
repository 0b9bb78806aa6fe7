"""Raw scores to probabilities and values: scikit-learn's inverse links."""

from typing import Any

from fastinfer.importing.answers import Classifier, Regressor, refuse
from fastinfer.importing.graph import Graph


def softmax(graph: Graph, scores: str) -> str:
    return str(graph.op("Softmax", scores, axis=1))


def normalised(graph: Graph, scores: str, classes: int) -> str:
    """Columns divided by their sum; equal shares where the sum is zero."""
    total = graph.sum(scores)
    empty = graph.op("Equal", total, graph.constant([[0.0]]))
    safe = graph.op("Where", empty, graph.constant([[1.0]]), total)
    return str(graph.op("Where", empty, graph.constant([[1.0 / classes]]), graph.op("Div", scores, safe)))


def value(graph: Graph, raw: str, link: str, path: str) -> Regressor:
    """A regressor's value by the name of scikit-learn's link class."""
    if link == "LogLink":
        return Regressor(str(graph.op("Exp", raw)))
    if link == "IdentityLink":
        return Regressor(raw)
    raise refuse(path, f"the link {link} is not supported")


def boosted_classes(graph: Graph, raw: str, estimator: Any, link: str, *, tie: bool, path: str) -> Classifier:
    """A boosted classifier's answers.

    Args:
        raw: [rows, 1] for two classes, else [rows, classes].
        link: name of scikit-learn's link class.
        tie: whether a raw score of exactly zero means the second class.
    """
    classes = estimator.classes_
    if link == "MultinomialLogit":
        return Classifier(classes, graph.argmax(raw), softmax(graph, raw), raw)
    if link == "HalfLogitLink":
        positive = graph.op("Sigmoid", graph.arithmetic("Mul", raw, 2.0))
    elif link == "LogitLink":
        positive = graph.op("Sigmoid", raw)
    else:
        raise refuse(path, f"the link {link} is not supported")
    above = graph.op("GreaterOrEqual" if tie else "Greater", raw, graph.constant([[0.0]]))
    return Classifier(classes, graph.index_where(above), graph.complement(str(positive)), raw)

