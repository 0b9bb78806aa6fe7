"""What a written estimator answers, as names of tensors in the graph, and the refusal of one that cannot be written."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer.errors import ImportRefusedError
from fastinfer.importing.groves import Grown


class Classifier(NamedTuple):
    """A classifier's answers.

    Attributes:
        classes: the labels as fitted, in the order of the columns.
        place: [rows] of int64, the place of the predicted label in ``classes``.
        probabilities: [rows, classes] of float64, or None where the estimator has no ``predict_proba``.
        decision: ``decision_function``: [rows, 1] for two classes, else [rows, classes]; None where it has none.
        forest: all of it as trees for the core, where the estimator is one forest.
    """

    classes: NDArray[Any]
    place: str
    probabilities: str | None = None
    decision: str | None = None
    forest: Grown | None = None


class Regressor(NamedTuple):
    """A regressor's answer: ``value`` is [rows, 1] of float64; ``forest`` as a classifier's."""

    value: str
    forest: Grown | None = None


Answer = Classifier | Regressor


def refuse(path: str, reason: str) -> ImportRefusedError:
    """The error for the part of the pipeline at ``path``."""
    return ImportRefusedError(f"{path}: {reason}")


def classifier(answer: Answer, path: str) -> Classifier:
    if not isinstance(answer, Classifier):
        raise refuse(path, "a classifier is expected here")
    return answer


def regressor(answer: Answer, path: str) -> Regressor:
    if not isinstance(answer, Regressor):
        raise refuse(path, "a regressor is expected here")
    return answer


def single_output(estimator: Any, path: str) -> None:
    """Refuse an estimator that predicts several targets."""
    outputs = getattr(estimator, "n_outputs_", 1)
    classes = getattr(estimator, "classes_", None)
    if (isinstance(outputs, int | np.integer) and outputs > 1 and _several(estimator)) or isinstance(classes, list):
        raise refuse(path, f"{type(estimator).__name__} predicts several targets; import one model a target")


def _several(estimator: Any) -> bool:
    """n_outputs_ of an MLPClassifier counts its classes, everybody else's counts targets."""
    return type(estimator).__name__ != "MLPClassifier"
