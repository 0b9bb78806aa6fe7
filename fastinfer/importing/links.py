"""Raw scores to probabilities and values: scikit-learn's inverse links."""

from typing import Any

from fastinfer.importing.answers import Classifier, Regressor, refuse
from fastinfer.importing.graph import Graph
from fastinfer.importing.groves import Grown


def softmax(graph: Graph, scores: str) -> str:
    return str(graph.op("Softmax", scores, axis=1))


def normalised(graph: Graph, scores: str, classes: int) -> str:
    """Columns divided by their sum; equal shares where the sum is zero."""
    total = graph.sum(scores)
    empty = graph.op("Equal", total, graph.constant([[0.0]]))
    safe = graph.op("Where", empty, graph.constant([[1.0]]), total)
    return str(graph.op("Where", empty, graph.constant([[1.0 / classes]]), graph.op("Div", scores, safe)))


def value(graph: Graph, raw: str, link: str, path: str, grown: Grown | None = None) -> Regressor:
    """A regressor's value by the name of scikit-learn's link class.

    Args:
        grown: the forest that makes the raw scores, where one does.
    """
    if link == "LogLink":
        return Regressor(str(graph.op("Exp", raw)), grown and grown.answering(link="exponential"))
    if link == "IdentityLink":
        return Regressor(raw, grown)
    raise refuse(path, f"the link {link} is not supported")


def boosted_classes(graph: Graph, raw: str, estimator: Any, grown: Grown, *, tie: bool, path: str) -> Classifier:
    """A boosted classifier's answers.

    Args:
        raw: [rows, 1] for two classes, else [rows, classes].
        grown: the forest that makes the raw scores.
        tie: whether a raw score of exactly zero means the second class.
    """
    classes, link = estimator.classes_, type(estimator._loss.link).__name__
    if link == "MultinomialLogit":
        forest = grown.answering(link="softmax", rule="highest")
        return Classifier(classes, graph.argmax(raw), softmax(graph, raw), raw, forest)
    if link == "HalfLogitLink":
        positive = graph.op("Sigmoid", graph.arithmetic("Mul", raw, 2.0))
    elif link == "LogitLink":
        positive = graph.op("Sigmoid", raw)
    else:
        raise refuse(path, f"the link {link} is not supported")
    above = graph.op("GreaterOrEqual" if tie else "Greater", raw, graph.constant([[0.0]]))
    slope, rule = 2.0 if link == "HalfLogitLink" else 1.0, "from_zero" if tie else "above_zero"
    forest = grown.answering(link="sigmoid", slope=slope, rule=rule)
    return Classifier(classes, graph.index_where(above), graph.complement(str(positive)), raw, forest)

