"""Estimators that answer the same for every row."""

from typing import Any

import numpy as np

from fastinfer.importing.answers import Classifier, Regressor, refuse
from fastinfer.importing.graph import Floats, Graph


def _everywhere(graph: Graph, x: str, row: Floats) -> str:
    """``row`` once a row of ``x``, whatever ``x`` holds."""
    rows = graph.op("Slice", graph.op("Shape", x), graph.constant([0], np.int64), graph.constant([1], np.int64))
    shape = graph.op("Concat", rows, graph.constant([len(row)], np.int64), axis=0)
    return str(graph.op("Expand", graph.constant(row[None, :]), shape))


def dummy_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    if estimator.strategy in ("stratified", "uniform"):
        raise refuse(path, f"DummyClassifier(strategy={estimator.strategy!r}) draws its answers at random")
    row = np.asarray(estimator.predict_proba(np.zeros((1, 1))), np.float64)[0]
    label = int(np.flatnonzero(estimator.classes_ == estimator.predict(np.zeros((1, 1)))[0])[0])
    votes = _everywhere(graph, x, np.eye(len(row))[label])
    return Classifier(estimator.classes_, graph.argmax(votes), _everywhere(graph, x, row))


def dummy_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    return Regressor(_everywhere(graph, x, np.asarray(estimator.predict(np.zeros((1, 1))), np.float64).reshape(1)))
