"""Linear models, generalised linear models, discriminant analysis and multi-layer perceptrons, in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.importing.answers import Classifier, Regressor, refuse
from fastinfer.importing.graph import Floats, Graph
from fastinfer.importing.links import normalised, softmax, value


def dense(matrix: Any) -> Floats:
    """What an estimator keeps as it was fitted: dense, or sparse (behind a sparse matrix, or after ``sparsify()``)."""
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, np.float64)


def _scores(graph: Graph, estimator: Any, x: str, path: str) -> str:
    """x @ coef_.T + intercept_, [rows, targets]."""
    weights = np.atleast_2d(dense(estimator.coef_))
    return graph.linear(x, weights.T, np.asarray(estimator.intercept_, np.float64).reshape(1, -1))


def linear_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """Everything whose predict is ``x @ coef_ + intercept_``."""
    weights = dense(estimator.coef_)
    if weights.ndim == 2 and weights.shape[0] > 1:
        raise refuse(path, f"{type(estimator).__name__} predicts several targets; import one model a target")
    return Regressor(_scores(graph, estimator, x, path))


def generalised_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    """PoissonRegressor, GammaRegressor, TweedieRegressor."""
    return value(graph, _scores(graph, estimator, x, path), type(estimator._base_loss.link).__name__, path)


def ransac_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    from fastinfer.importing.estimators import write

    answer = write(graph, estimator.estimator_, x, f"{path}.estimator_")
    if not isinstance(answer, Regressor):
        raise refuse(path, "a regressor is expected here")
    return answer


def decided(graph: Graph, classes: NDArray[Any], scores: str, probabilities: str | None) -> Classifier:
    """A linear classifier's label: the sign for two classes, else the largest score."""
    if len(classes) == 2:
        index = graph.index_where(str(graph.op("Greater", scores, graph.constant([[0.0]]))))
    else:
        index = graph.argmax(scores)
    return Classifier(classes, index, probabilities, scores)


def one_vs_rest(graph: Graph, scores: str, classes: int) -> str:
    """Logistic of each score, normalised over the classes."""
    each = str(graph.op("Sigmoid", scores))
    return graph.complement(each) if classes == 2 else normalised(graph, each, classes)


def linear_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """Linear classifiers without probabilities: RidgeClassifier, LinearSVC, Perceptron, ..."""
    return decided(graph, estimator.classes_, _scores(graph, estimator, x, path), None)


def logistic_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """LogisticRegression and LogisticRegressionCV, binary, multinomial and one-vs-rest."""
    scores = _scores(graph, estimator, x, path)
    classes = len(estimator.classes_)
    if classes == 2 and getattr(estimator, "multi_class", None) == "multinomial":
        # Older releases allow a softmax over two classes that share one score.
        probabilities = softmax(graph, graph.concat([str(graph.op("Neg", scores)), scores]))
    elif classes == 2 or _is_one_vs_rest(estimator):
        probabilities = one_vs_rest(graph, scores, classes)
    else:
        probabilities = softmax(graph, scores)
    return decided(graph, estimator.classes_, scores, probabilities)


def _is_one_vs_rest(estimator: Any) -> bool:
    """As LogisticRegression.predict_proba decides in the releases that still have ``multi_class``."""
    chosen = getattr(estimator, "multi_class", "deprecated")
    return chosen == "ovr" or (chosen in ("auto", "deprecated") and estimator.solver == "liblinear")


def gradient_descent_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """SGDClassifier: probabilities for log_loss and modified_huber."""
    scores = _scores(graph, estimator, x, path)
    classes = len(estimator.classes_)
    probabilities = None
    if estimator.loss == "log_loss":
        probabilities = one_vs_rest(graph, scores, classes)
    elif estimator.loss == "modified_huber":
        clipped = graph.op("Clip", scores, graph.constant(-1.0), graph.constant(1.0))
        each = graph.arithmetic("Div", graph.arithmetic("Add", clipped, 1.0), 2.0)
        probabilities = graph.complement(each) if classes == 2 else normalised(graph, each, classes)
    return decided(graph, estimator.classes_, scores, probabilities)


def discriminant_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """LinearDiscriminantAnalysis."""
    scores = _scores(graph, estimator, x, path)
    two = len(estimator.classes_) == 2
    probabilities = graph.complement(str(graph.op("Sigmoid", scores))) if two else softmax(graph, scores)
    return decided(graph, estimator.classes_, scores, probabilities)


def quadratic_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    """QuadraticDiscriminantAnalysis: log posteriors, softmaxed."""
    columns = []
    for i, mean in enumerate(estimator.means_):
        scaled = estimator.rotations_[i] * estimator.scalings_[i] ** -0.5
        rotated = str(graph.op("MatMul", graph.arithmetic("Sub", x, mean[None, :]), graph.constant(scaled)))
        norm = graph.sum(str(graph.op("Mul", rotated, rotated)))
        shifted = graph.arithmetic("Add", norm, np.sum(np.log(estimator.scalings_[i])))
        columns.append(graph.arithmetic("Add", graph.arithmetic("Mul", shifted, -0.5), np.log(estimator.priors_[i])))
    posterior = graph.concat(columns)
    decision = posterior
    if len(columns) == 2:
        decision = str(graph.op("Sub", columns[1], columns[0]))
    return Classifier(estimator.classes_, graph.argmax(posterior), softmax(graph, posterior), decision)


# ---- multi-layer perceptrons --------------------------------------------------------------------------------------
_ACTIVATIONS = {"identity": None, "logistic": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}


def _layers(graph: Graph, estimator: Any, x: str, path: str) -> str:
    last = len(estimator.coefs_) - 1
    for i, (weights, bias) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        x = graph.linear(x, weights, bias[None, :])
        name = estimator.out_activation_ if i == last else estimator.activation
        if name == "softmax":
            x = softmax(graph, x)
        elif name == "exp":
            x = str(graph.op("Exp", x))
        elif name not in _ACTIVATIONS:
            raise refuse(path, f"the activation {name!r} is not supported")
        elif kind := _ACTIVATIONS[name]:
            x = str(graph.op(kind, x))
    return x


def perceptron_regressor(graph: Graph, estimator: Any, x: str, path: str) -> Regressor:
    if estimator.n_outputs_ > 1:
        raise refuse(path, "MLPRegressor predicts several targets; import one model a target")
    return Regressor(_layers(graph, estimator, x, path))


def perceptron_classifier(graph: Graph, estimator: Any, x: str, path: str) -> Classifier:
    if estimator._label_binarizer.y_type_.startswith("multilabel"):
        raise refuse(path, "MLPClassifier predicts several labels at once; import one model a label")
    out = _layers(graph, estimator, x, path)
    if estimator.n_outputs_ == 1:
        index = graph.index_where(str(graph.op("Greater", out, graph.constant([[0.5]]))))
        return Classifier(estimator.classes_, index, graph.complement(out))
    return Classifier(estimator.classes_, graph.argmax(out), out)
