"""scikit-learn's other estimators, as skl2onnx converts them to float64 operators; the proof decides if that holds."""

import copy
import warnings
from typing import Any

import numpy as np
import onnx

from fastinfer.importing.answers import Answer, Classifier, Regressor, refuse
from fastinfer.importing.graph import OPSET, Graph
from fastinfer.importing.loading import EXTRA

ML_OPSET = 3  # the newest of skl2onnx; the operators it uses mean the same in ours


def convertible(estimator: Any) -> bool:
    """Whether to try: skl2onnx goes by scikit-learn's own classes."""
    return type(estimator).__module__.startswith("sklearn.") and hasattr(estimator, "predict")


def converted(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    """Convert and embed.

    Raises:
        ImportRefusedError: skl2onnx is missing or does not convert this estimator.
    """
    if _targets(estimator, path) != 1:
        raise refuse(path, f"{type(estimator).__name__} predicts several targets; import one model a target")
    graph.foreign = True
    known = np.asarray(getattr(estimator, "classes_", ()))
    coded = known.dtype.kind in "bf" and len(known) > 0
    if coded and "classes_" in vars(estimator):  # labels that the operators do not have: their places stand for them
        estimator = copy.copy(estimator)
        estimator.classes_ = np.arange(len(known))
    model = _model(estimator, path)
    tensors = graph.embed(model, x)
    if not hasattr(estimator, "classes_"):
        if len(tensors) != 1:
            raise refuse(path, f"{type(estimator).__name__} answers with {len(tensors)} tensors")
        column = graph.constant([-1, 1], np.int64)
        return Regressor(str(graph.op("Reshape", graph.floats(tensors[0]), column)))
    labels = np.asarray(estimator.classes_)
    kind = {"i": "keys_int64s", "u": "keys_int64s", "U": "keys_strings", "O": "keys_strings"}.get(labels.dtype.kind)
    if kind is None or not all(isinstance(c, str) == (kind == "keys_strings") for c in labels.tolist()):
        raise refuse(path, f"{type(estimator).__name__} is imported with labels that are text or integers only")
    places = list(range(len(labels)))
    place = graph.op("LabelEncoder", tensors[0], domain="ai.onnx.ml", **{kind: labels.tolist()}, values_int64s=places)
    probabilities = graph.floats(tensors[1]) if hasattr(estimator, "predict_proba") and len(tensors) > 1 else None
    return Classifier(known, str(place), probabilities)


def _targets(estimator: Any, path: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(np.size(estimator.predict(np.zeros((1, int(estimator.n_features_in_))))))
        except Exception as error:
            raise refuse(path, f"{type(estimator).__name__} is not supported (it does not answer a row)") from error


def _model(estimator: Any, path: str) -> onnx.ModelProto:
    name = type(estimator).__name__
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import DoubleTensorType
    except ImportError as error:
        raise refuse(path, f"{name} is not supported without skl2onnx: {EXTRA}") from error
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "classes_") else None
    shape = [("features", DoubleTensorType([None, int(estimator.n_features_in_)]))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: onnx.ModelProto = to_onnx(
                estimator, initial_types=shape, options=options, target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET}
            )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise refuse(path, f"{name} is not supported ({reason})") from error
    strange = {opset.domain for opset in model.opset_import} - {"", "ai.onnx.ml"}
    if strange or model.functions:
        raise refuse(path, f"{name} is not supported (skl2onnx needs operators of {', '.join(strange) or 'its own'})")
    return model
