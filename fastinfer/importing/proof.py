"""The proof: the written model and scikit-learn answer the same rows, and the answers agree."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fastinfer._core import Task
from fastinfer.errors import ImportRefusedError
from fastinfer.importing.assembly import EstimatorModel

CHUNK = 4096
ALONE = 16  # rows that are also run alone
TIE = 1e-12  # probabilities this close are equal

Arrays = dict[str, NDArray[Any]]


class Difference(NamedTuple):
    """The worst row of one output."""

    output: str
    size: float
    row: int
    expected: Any
    got: Any


Answers = Callable[[NDArray[Any]], Arrays]


def opened(model: EstimatorModel) -> Answers:
    """The model as the server would open it: a function from the matrix to the answers."""
    if model.forest is None:
        return partial(run, session(model), dtype=model.dtype)
    forest = model.forest.forest()
    return lambda matrix: forest.run({"features": np.ascontiguousarray(matrix, model.dtype)})


def session(model: EstimatorModel) -> onnxruntime.InferenceSession:
    """onnxruntime's session of the written graph."""
    assert model.proto is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own
        raise ImportRefusedError(f"onnxruntime does not load the written model: {_line(error)}") from error


def run(opened: onnxruntime.InferenceSession, matrix: NDArray[Any], dtype: str) -> Arrays:
    names = [output.name for output in opened.get_outputs()]
    try:
        found = opened.run(names, {"features": np.ascontiguousarray(matrix, dtype)})
    except Exception as error:  # onnxruntime's own
        raise ImportRefusedError(f"the written model fails on rows that are answered: {_line(error)}") from error
    return dict(zip(names, found, strict=True))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def expected(estimator: Any, rows: Any, task: Task) -> Arrays:
    """scikit-learn's answers, by output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task.kind == "regressor":
            return {"value": np.asarray(estimator.predict(rows), np.float64).reshape(-1, 1)}
        answers = {"label": np.asarray(estimator.predict(rows)).ravel()}
        if task.probabilities:
            answers["probabilities"] = np.asarray(estimator.predict_proba(rows), np.float64)
        return answers


def differences(wanted: Arrays, got: Arrays) -> list[Difference]:
    """The worst row of each output.

    A label's difference is 0 or infinite; a value's is relative where its size is over 1.
    """
    found = []
    for name, values in wanted.items():
        if not len(values):
            continue
        if name == "label":
            apart = np.where(values == got[name], 0.0, np.inf)
        else:
            apart = _apart(values, got[name].astype(np.float64)).max(axis=1)
        row = int(np.argmax(apart))
        found.append(Difference(name, float(apart[row]), row, values[row], got[name][row]))
    return found


def _apart(values: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(values - others) / np.maximum(1.0, np.abs(values))
    same = (values == others) | (np.isnan(values) & np.isnan(others))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def tied(wanted: Arrays, got: Arrays, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows whose labels differ while scikit-learn finds the two equally probable, but for the last bits.

    There the last bit of a sum decides, and scikit-learn itself may answer otherwise when the row is in another batch.
    """
    differ = wanted["label"] != got["label"]
    if "probabilities" not in wanted or not differ.any():
        return np.zeros(len(differ), np.bool_)
    places = {label: i for i, label in enumerate(labels.tolist())}
    ties = np.zeros(len(differ), np.bool_)
    for row in np.flatnonzero(differ).tolist():
        chosen = wanted["probabilities"][row]
        first, second = (chosen[places[answers["label"].tolist()[row]]] for answers in (wanted, got))
        ties[row] = abs(first - second) <= TIE
    return ties


class Proof:
    """Keeps the worst difference of each output, and refuses the first one past the tolerance."""

    def __init__(self, model: EstimatorModel, tolerance: float) -> None:
        self.answers = opened(model)
        self.model = model
        self.tolerance = tolerance
        self.worst: dict[str, float] = {}
        self.rows = 0
        self.ties = 0

    def check(self, estimator: Any, rows: Any, matrix: NDArray[Any], shown: Any) -> None:
        """Compare ``estimator`` on ``rows`` with the model on ``matrix``.

        Args:
            rows: what the estimator takes; sliceable by rows.
            shown: function from a row's index to what a refusal shows of it.
        """
        for start in range(0, len(matrix), CHUNK):
            end = min(start + CHUNK, len(matrix))
            part = rows.iloc[start:end] if hasattr(rows, "iloc") else rows[start:end]
            got = self.answers(matrix[start:end])
            wanted = expected(estimator, part, self.model.task)
            if "label" in wanted:
                ties = tied(wanted, got, estimator.classes_)
                self.ties += int(ties.sum())
                got["label"] = np.where(ties, wanted["label"], got["label"])
            self._judge(differences(wanted, got), start, shown)
            self.rows += end - start
        self._alone(matrix, shown)

    def _alone(self, matrix: NDArray[Any], shown: Any) -> None:
        """A row's answer must not depend on the rows beside it."""
        together = self.answers(matrix[:ALONE])
        for row in range(min(ALONE, len(matrix))):
            alone = self.answers(matrix[row : row + 1])
            beside = {name: values[row : row + 1] for name, values in together.items()}
            for name, size, _, wanted, got in differences(alone, beside):
                if size > self.tolerance:
                    raise ImportRefusedError(
                        f"the model's {name} for a row depends on the rows beside it:"
                        f" {plain(wanted)} alone, {plain(got)} in a batch, on row {shown(row)}"
                    )

    def _judge(self, found: list[Difference], start: int, shown: Any) -> None:
        for name, size, row, wanted, got in found:
            self.worst[name] = max(size, self.worst.get(name, 0.0))
            if size > self.tolerance:
                by = "" if name == "label" else f", a difference of {size:.3g} where {self.tolerance:g} is allowed"
                raise ImportRefusedError(
                    f"the imported model does not answer as scikit-learn does: {name} is {plain(got)},"
                    f" expected {plain(wanted)}{by}, on row {shown(start + row)}"
                )


def plain(value: Any) -> str:
    """A value or a row as JSON text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """NaN as null, so that a row can be sent again as it is shown."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and value != value else value
