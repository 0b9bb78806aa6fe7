"""Naive Bayes, in float64."""

from typing import Any

import numpy as np

from fastinfer.importing.answers import Classifier, refuse
from fastinfer.importing.graph import Graph
from fastinfer.importing.links import softmax


def _classifier(graph: Graph, estimator: Any, joint: str) -> Classifier:
    """Labels by the largest joint log likelihood; exp(jll - logsumexp(jll)) is its softmax."""
    return Classifier(estimator.classes_, graph.argmax(joint), softmax(graph, joint))


def gaussian(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    columns = []
    for prior, mean, variance in zip(estimator.class_prior_, estimator.theta_, estimator.var_, strict=True):
        apart = graph.arithmetic("Sub", x, mean[None, :])
        squares = graph.arithmetic("Div", str(graph.op("Mul", apart, apart)), variance[None, :])
        start = np.log(prior) - 0.5 * np.sum(np.log(2.0 * np.pi * variance))
        columns.append(graph.arithmetic("Add", graph.arithmetic("Mul", graph.sum(squares), -0.5), start))
    return _classifier(graph, estimator, graph.concat(columns))


def bernoulli(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    if estimator.binarize is not None:
        x = graph.floats(str(graph.op("Greater", x, graph.constant(float(estimator.binarize)))))
    absent = np.log(1 - np.exp(estimator.feature_log_prob_))
    bias = estimator.class_log_prior_ + absent.sum(axis=1)
    return _classifier(graph, estimator, graph.linear(x, (estimator.feature_log_prob_ - absent).T, bias[None, :]))


def multinomial(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    joint = graph.linear(x, estimator.feature_log_prob_.T, estimator.class_log_prior_[None, :])
    return _classifier(graph, estimator, joint)


def complement(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    alone = len(estimator.classes_) == 1
    bias = estimator.class_log_prior_ if alone else np.zeros(len(estimator.classes_))
    return _classifier(graph, estimator, graph.linear(x, estimator.feature_log_prob_.T, bias[None, :]))


def categorical(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """Columns hold codes, cast to integers as scikit-learn casts them; one out of range fails there as here."""
    joint = None
    codes = graph.op("Cast", x, to=7)
    for feature, logs in enumerate(estimator.feature_log_prob_):
        if not np.isfinite(logs).all():
            raise refuse(path, f"CategoricalNB holds an infinite logarithm for column {feature}")
        row = graph.op("Squeeze", graph.columns(codes, [feature]), graph.constant([1], np.int64))
        part = graph.op("Gather", graph.constant(np.ascontiguousarray(logs.T)), row, axis=0)
        joint = part if joint is None else graph.op("Add", joint, part)
    return _classifier(graph, estimator, graph.arithmetic("Add", str(joint), estimator.class_log_prior_[None, :]))
