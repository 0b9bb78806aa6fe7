"""A fitted estimator becomes one model: its matrix in; label and probabilities, or value, out.

An estimator that is one forest becomes trees for the core, any other an ONNX graph.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from fastinfer._core import Task
from fastinfer.importing.answers import Answer, Classifier, Regressor, refuse
from fastinfer.importing.estimators import write
from fastinfer.importing.graph import MOST_FEATURES, Floats, Front, Graph, ProgramShape
from fastinfer.runtimes.forest import Planted


class EstimatorModel(NamedTuple):
    """The model of an import.

    Input ``features`` [rows, width]; outputs ``label`` [rows] and ``probabilities`` [rows, classes] of FP32, or
    ``value`` [rows, 1] of FP64.

    Attributes:
        forest: the model as trees for the core, where it is one forest; else None.
        proto: else the model as an ONNX graph.
        dtype: the input's, "float32" or "float64".
        task: as features.json holds it.
        labels: the classes as fitted, or None for a regressor.
        features, thresholds: where its trees turn, pairwise.
        foreign: whether a part of it was converted by a library whose operators we have not measured.
        fronts: what the feature program must do to make the matrix; none where the matrix is the raw columns.
    """

    forest: Planted | None
    proto: onnx.ModelProto | None
    dtype: str
    task: Task
    labels: NDArray[Any] | None
    features: NDArray[np.int64]
    thresholds: Floats
    foreign: bool
    fronts: list[Front]

    def file(self) -> tuple[str, bytes]:
        """Its file's name and bytes."""
        if self.forest is not None:
            return "model.npz", self.forest.file()
        assert self.proto is not None
        return "model.onnx", self.proto.SerializeToString()


def estimator_model(
    estimator: Any, width: int, path: str, program_shape: ProgramShape | None = None
) -> EstimatorModel:
    """Write a fitted estimator, or a pipeline that ends in one.

    Args:
        estimator: fitted; scikit-learn's, LightGBM's or XGBoost's.
        width: columns that it takes.
        path: its place, for refusals.
        program_shape: what the feature program makes of a transformer's work, raising ImportRefusedError where it
            cannot do it; without it the graph does all the work.

    Raises:
        ImportRefusedError: it cannot be written exactly; the message names the part.
    """
    graph = Graph(width, program_shape)
    answer = write(graph, estimator, graph.features, path)
    if isinstance(answer, Regressor):
        outputs: list[Any] = [("value", answer.value, TensorProto.DOUBLE, [1])]
        task = Task("regressor", None, None, (), "value")
        labels = None
    else:
        outputs, task, labels = _classifier(graph, answer, path)
    misread = graph.misread([tensor for _, tensor, *_ in outputs])
    if misread is not None:
        raise refuse(misread.path, f"the features are {misread.width:,}; past {MOST_FEATURES:,}, only an estimator "
                                   "that is linear in them can be served")
    if (graph.fronts or graph.wides) and graph.reads_raw([tensor for _, tensor, *_ in outputs]):
        raise refuse(path, "one part of the estimator takes the raw columns and another takes them preprocessed")
    forest = _forest(graph, answer, path)
    proto = None
    if forest is not None:
        dtype = forest.arrays["threshold"].dtype.name
    else:
        proto, dtype = graph.model(outputs, f"{type(estimator).__module__}.{type(estimator).__name__}")
        onnx.checker.check_model(proto)
    turns = graph.thresholds
    features = np.concatenate([f for f, _ in turns]) if turns else np.empty(0, np.int64)
    thresholds = np.concatenate([t for _, t in turns]) if turns else np.empty(0)
    fronts = [*graph.fronts, *scored_fronts(graph)]
    return EstimatorModel(forest, proto, dtype, task, labels, features, thresholds, graph.foreign, fronts)


def _forest(graph: Graph, answer: Answer, path: str) -> Planted | None:
    """The answer as trees for the core, where it is one forest on all that the program makes."""
    width = None if answer.forest is None else graph.width_of(answer.forest.x)
    if answer.forest is None or width is None:
        return None
    labels = None
    if isinstance(answer, Classifier):
        labels, _, names = _labels(answer.classes, path)
        if len(names) != max(2, len(answer.forest.arrays["start"])) or answer.probabilities is None:
            return None
    return answer.forest.planted(width, labels)


def scored_fronts(graph: Graph) -> list[Front]:
    """The fronts that end in linear scores, behind the others."""
    if not graph.wides:
        return []
    from fastinfer.importing.scores import scored

    start = sum(front.width for front in graph.fronts)
    fronts = []
    for wide in graph.wides.values():
        fronts.append(Front(scored(wide), wide.path, start, wide.scores))
        start += wide.scores
    return fronts


def _classifier(graph: Graph, answer: Classifier, path: str) -> tuple[list[Any], Task, NDArray[Any]]:
    labels, element, names = _labels(answer.classes, path)
    table = graph.constant(labels, labels.dtype)
    outputs: list[Any] = [("label", graph.op("Gather", table, answer.place, axis=0), element, [])]
    if answer.probabilities is not None:
        single = graph.cast(answer.probabilities, TensorProto.FLOAT)
        outputs.append(("probabilities", single, TensorProto.FLOAT, [len(names)]))
    task = Task("classifier", "label", "probabilities" if answer.probabilities else None, tuple(names), None)
    return outputs, task, labels


def _labels(classes: NDArray[Any], path: str) -> tuple[NDArray[Any], int, list[str]]:
    """The labels as the model gives them, their element type, and their text."""
    if classes.dtype.kind == "b":
        return classes, TensorProto.BOOL, [str(bool(c)).lower() for c in classes]
    if classes.dtype.kind in "UO" and all(isinstance(c, str) for c in classes.tolist()):
        return classes.astype(object), TensorProto.STRING, [str(c) for c in classes]
    if classes.dtype.kind in "iuf" and np.all(classes == classes.astype(np.int64)):
        whole = classes.astype(np.int64)
        return whole, TensorProto.INT64, [str(c) for c in whole]
    if classes.dtype.kind == "O" and all(isinstance(c, int | np.integer) for c in classes.tolist()):
        whole = classes.astype(np.int64)
        return whole, TensorProto.INT64, [str(c) for c in whole]
    raise refuse(path, f"class labels of dtype {classes.dtype} are not supported; use text, integers or booleans")
