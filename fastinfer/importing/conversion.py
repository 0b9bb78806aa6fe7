"""A fitted object becomes a feature program and an ONNX model that fit together."""

import copy
import itertools
import warnings
from typing import Any, NamedTuple

import numpy as np

from fastinfer.errors import ImportRefusedError
from fastinfer.importing.assembly import EstimatorModel, estimator_model
from fastinfer.importing.frames import Frames, checked_sample
from fastinfer.importing.graph import MOST_FEATURES, Front, Made
from fastinfer.preprocessing.from_sklearn import raw_names as program_names
from fastinfer.preprocessing.imports import text_sample
from fastinfer.preprocessing.program import Program
from fastinfer.preprocessing.sklearn_text import VECTORIZERS
from fastinfer.preprocessing.tracing import Container


class Imported(NamedTuple):
    """An import that is not yet proven.

    Attributes:
        fitted: the object as given.
        inner: what answers the matrix as ``fitted`` answers raw rows, or None where no single part does.
        estimator: name of its last estimator's class.
        width: columns of the matrix.
        allow: what the estimator takes in the matrix: "finite", "nan" or "any".
        frames: makes rows of raw columns.
        sample: as given, its fitted columns only, or None.
    """

    fitted: Any
    inner: Any | None
    estimator: str
    program: Program
    model: EstimatorModel
    width: int
    allow: str
    frames: Frames
    sample: Any | None


def convert(fitted: Any, sample: Any | None) -> Imported:
    """Write program and model.

    Raises:
        ImportRefusedError: something cannot be expressed; the message names it.
    """
    if getattr(fitted, "refit", True) is False:
        raise ImportRefusedError(f"{type(fitted).__name__} was fitted with refit=False and holds no estimator")
    if not hasattr(fitted, "predict"):
        raise ImportRefusedError(
            f"{type(fitted).__name__} does not predict; a fitted estimator, or a pipeline that ends in one, is imported"
        )
    names, container = raw_names(fitted)
    if container == "series" or not names:
        sample, names = text_sample(sample, names, container, "pipeline")
    named = container != "array"
    if sample is not None:
        sample = checked_sample(sample, names, named)

    sparse = False

    def program_shape(transformer: Any, path: str) -> Made:
        nonlocal sparse
        program = Program.from_sklearn(transformer, sample=sample, path=path)
        sparse |= program.spec.output.sparse
        return Made(program.width, program.spec.output.sparse)

    path = "pipeline" if type(fitted).__name__ == "Pipeline" else "estimator"
    model = estimator_model(fitted, len(names), path, program_shape)
    width = sum(front.width for front in model.fronts) or len(names)
    inner = fitted if not model.fronts else stripped(fitted, model.fronts)
    matrices = [front for front in model.fronts if not is_scored(front)]
    readers = behind(fitted, inner, matrices) if matrices or not model.fronts else []
    allow = min([accepts(e, width, sparse) for e in readers] or ["finite"], key=_STRICTEST.index)
    transformer = _joined(model.fronts, names, named)
    program = Program.from_sklearn(transformer, sample=sample, dtype=model.dtype, allow=allow, path=path)
    program = program.with_task(model.task)
    frames = Frames(fitted, program.columns, names, container, sample)
    return Imported(fitted, inner, last_name(fitted), program, model, width, allow, frames, sample)


def is_scored(front: Front) -> bool:
    """Whether a front ends in linear scores of a matrix that was too wide."""
    return type(front.transformer.steps[-1][1]).__name__ == "LinearScores"


def raw_names(fitted: Any) -> tuple[list[str], Container]:
    """The columns that it was fitted on, and in what."""
    found = getattr(fitted, "feature_names_in_", None)
    if found is None and type(fitted).__module__.startswith("lightgbm"):
        unnamed = [f"Column_{i}" for i in range(fitted.n_features_in_)]
        found = None if fitted.feature_name_ == unnamed else fitted.feature_name_
    if found is not None:
        return [str(name) for name in found], "frame"
    count = getattr(fitted, "n_features_in_", None)
    if count is None:
        inside = first_inside(fitted)
        if type(inside).__name__ in (*VECTORIZERS, "FeatureHasher"):
            return program_names(inside, "pipeline")
        if type(fitted).__name__ == "Pipeline":  # it asks its first step, which may be "passthrough"
            return program_names(fitted, "pipeline")
        if type(fitted).__name__ in _INSIDE:
            return raw_names(getattr(fitted, _INSIDE[type(fitted).__name__]))
        raise ImportRefusedError(f"{type(fitted).__name__} is not fitted, or does not tell how many columns it takes")
    return [f"x{i}" for i in range(int(count))], "array"


def first_inside(fitted: Any) -> Any:
    """The first transformer that raw columns meet in an estimator of pipelines."""
    while True:
        steps = getattr(fitted, "steps", None) or getattr(fitted, "transformer_list", None)
        members = getattr(fitted, "calibrated_classifiers_", None) or getattr(fitted, "estimators_", None)
        attribute = _INSIDE.get(type(fitted).__name__, "estimator" if hasattr(fitted, "calibrators") else None)
        if steps:
            fitted = next((step for _, step in steps if not isinstance(step, str) and step is not None), None)
        elif isinstance(members, list) and members:
            fitted = members[0]
        elif attribute is not None:
            fitted = getattr(fitted, attribute)
        else:
            return fitted


def _joined(fronts: list[Front], names: list[str], named: bool) -> Any:
    """One transformer for the whole matrix."""
    from sklearn.pipeline import FeatureUnion
    from sklearn.preprocessing import FunctionTransformer

    if len(fronts) > 1:
        return FeatureUnion([(f"part{i}", front.transformer) for i, front in enumerate(fronts)])
    if fronts:
        return fronts[0].transformer
    if len(names) > MOST_FEATURES:
        raise ImportRefusedError(f"the estimator takes {len(names)} columns; at most {MOST_FEATURES} are served")
    identity = FunctionTransformer(feature_names_out="one-to-one")
    row = np.zeros((1, len(names)))
    if named:
        import pandas as pd

        return identity.fit(pd.DataFrame(row, columns=names))
    return identity.fit(row)


# ---- the part behind the program ----------------------------------------------------------------------------------
_INSIDE = {  # where a class keeps the one estimator that it asks
    "FrozenEstimator": "estimator",
    "TransformedTargetRegressor": "regressor_",
    "FixedThresholdClassifier": "estimator_",
    "TunedThresholdClassifierCV": "estimator_",
    **dict.fromkeys(("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV"),
                    "best_estimator_"),
}
_TAKES_ANYTHING = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_STRICTEST = ("finite", "nan", "any")


def stripped(fitted: Any, fronts: list[Front]) -> Any | None:
    """``fitted`` without the preprocessing that the program does, where one part of it does all of that."""
    if len(fronts) != 1:
        return None
    if type(fitted).__name__ == "Pipeline":
        steps = [step for _, step in fronts[0].transformer.steps]
        own = [step for _, step in fitted.steps]
        if all(a is b for a, b in itertools.zip_longest(steps, own[: len(steps)])):
            rest = fitted[len(steps) :]
            return rest.steps[0][1] if len(rest.steps) == 1 else rest
        return None
    members = getattr(fitted, "calibrated_classifiers_", None)
    if members is not None:
        rests = [stripped(member.estimator, fronts) for member in members]
        return None if None in rests else _with(fitted, "calibrated_classifiers_", [
            _with(member, "estimator", rest) for member, rest in zip(members, rests, strict=True)
        ])
    attribute = _INSIDE.get(type(fitted).__name__)
    rest = None if attribute is None else stripped(getattr(fitted, attribute), fronts)
    return None if attribute is None or rest is None else _with(fitted, attribute, rest)


def _with(fitted: Any, attribute: str, value: Any) -> Any:
    """A shallow copy with one attribute replaced."""
    shallow = copy.copy(fitted)
    setattr(shallow, attribute, value)
    return shallow


def behind(fitted: Any, inner: Any | None, fronts: list[Front]) -> list[Any]:
    """The estimators that read the matrix."""
    if inner is not None:
        return [inner]
    found: list[Any] = []
    _collect(fitted, {id(front.transformer.steps[0][1]): len(front.transformer.steps) for front in fronts}, found)
    return found or [fitted]


def _collect(fitted: Any, lengths: dict[int, int], found: list[Any]) -> None:
    if type(fitted).__name__ == "Pipeline" and id(fitted.steps[0][1]) in lengths:
        rest = fitted[lengths[id(fitted.steps[0][1])] :]
        found.append(rest.steps[0][1] if len(rest.steps) == 1 else rest)
        return
    if type(fitted).__name__ in _TAKES_ANYTHING:
        found.append(fitted)
        return
    attribute = _INSIDE.get(type(fitted).__name__)
    if attribute is not None:
        _collect(getattr(fitted, attribute), lengths, found)
    for member in getattr(fitted, "calibrated_classifiers_", ()):
        _collect(member.estimator, lengths, found)
    for member in getattr(fitted, "estimators_", ()):
        _collect(member, lengths, found)


def accepts(estimator: Any, width: int, sparse: bool) -> str:
    """What an estimator takes in its matrix, found by asking it; scikit-learn's forests take NaN in dense ones only."""
    if type(estimator).__name__ in _TAKES_ANYTHING:
        return "any"
    width = int(getattr(estimator, "n_features_in_", width))
    if not _answers(estimator, _row(np.nan, width, sparse)):
        return "finite"
    return "any" if _answers(estimator, _row(np.inf, width, sparse)) else "nan"


def _row(value: float, width: int, sparse: bool) -> Any:
    dense = np.full((1, width), value)
    if not sparse:
        return dense
    from scipy.sparse import csr_matrix

    return csr_matrix(dense)


def _answers(estimator: Any, row: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            estimator.predict(row)
        except Exception:
            return False
    return True


def last_name(fitted: Any) -> str:
    """The class that a person would name the model by."""
    while type(fitted).__name__ == "Pipeline":
        fitted = fitted.steps[-1][1]
    return type(fitted).__name__
