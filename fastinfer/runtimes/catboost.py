"""CatBoost: `.cbm` files, answered by the library's own predict, on worker threads.

Raw columns are the inputs where the model has categorical or text features, or names of its own.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from fastinfer._core import Engine, Tensor
from fastinfer.errors import InvalidValueError, ModelLoadError
from fastinfer.runtimes import Arrays, Runtime, needed, trial
from fastinfer.runtimes.answers import classifier, other, shaped
from fastinfer.runtimes.python_code import described
from fastinfer.settings import ModelConfig, Settings

MAGIC = b"CBM1"
WIDE = "features"
GOLDEN = 0.6180339887498949


class CatboostRuntime:
    """One model of CatBoost."""

    platform = "catboost_cbm"
    inline = False

    def __init__(self, path: Path, threads: int) -> None:
        self.catboost = needed("catboost", path, "catboost")
        self.path = path
        self.threads = threads
        self.native: Engine | None = None
        self.classes: dict[str, tuple[str, ...]] = {}
        self.booster = self.open(path)
        self.names = [str(name) for name in self.booster.feature_names_]
        texts = {*self.booster.get_cat_feature_indices(), *self.booster.get_text_feature_indices()}
        self.texts = [place in texts for place in range(len(self.names))]
        if self.booster.get_embedding_feature_indices():
            raise ModelLoadError(f"{path} has embedding features, which are not served: use a Python class.")
        self.wide = not texts and self.names == [str(place) for place in range(len(self.names))]
        self.inputs = self.declared(nullable=False)
        self.outputs = self.described()
        self.inputs = self.declared(nullable=self.takes_missing())

    def open(self, path: Path) -> Any:
        """The model, in the class whose predict its objective has.

        Raises:
            ModelLoadError: it is damaged.
        """
        try:
            booster = self.catboost.CatBoost()
            booster.load_model(str(path))
            self.classifies = len(booster.classes_) > 0
            kind = self.catboost.CatBoostClassifier if self.classifies else self.catboost.CatBoostRegressor
            booster = kind()
            booster.load_model(str(path))
        except Exception as error:
            raise ModelLoadError(f"{path}: CatBoost cannot load it: {described(error)}") from None
        return booster

    def declared(self, nullable: bool) -> list[Tensor]:
        if self.wide:
            return [Tensor(WIDE, "FP64", (-1, len(self.names)), nullable=nullable)]
        return [Tensor(name, "BYTES" if text else "FP64", (-1, 1), nullable=nullable and not text, column=True)
                for name, text in zip(self.names, self.texts, strict=True)]

    def described(self) -> list[Tensor]:
        """The outputs, by what a row is answered with."""
        try:
            answers = self.answers(self.examples(2))
        except Exception as error:
            raise ModelLoadError(f"{self.path}: CatBoost does not answer a row: {described(error)}") from None
        if not self.classifies:
            return other(answers[0], self.path)
        self.classes["probabilities"] = tuple(str(each) for each in np.asarray(self.booster.classes_).tolist())
        return classifier(answers[0], answers[1], self.path)

    def takes_missing(self) -> bool:
        inputs = self.examples(1)
        try:
            self.answers({name: array if array.dtype == object else np.full_like(array, np.nan)
                          for name, array in inputs.items()})
        except Exception:  # nan_mode of the fit
            return False
        return True

    def examples(self, rows: int) -> Arrays:
        """Rows of numbers and texts; a category that was never seen is a category too."""
        numbers = 4 * ((np.arange(1, 1 + rows * len(self.names)) * GOLDEN) % 1).reshape(rows, len(self.names)) - 2
        if self.wide:
            return {WIDE: numbers}
        words = np.array([[f"text {row}"] for row in range(rows)], dtype=object)
        return {name: words.copy() if text else np.ascontiguousarray(numbers[:, place : place + 1])
                for place, (name, text) in enumerate(zip(self.names, self.texts, strict=True))}

    def answers(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        """Labels and probabilities, or values, as the library gives them; one label a row flat."""
        if self.wide:
            rows: Any = inputs[WIDE]
        else:
            import pandas as pd

            rows = pd.DataFrame({name: inputs[name][:, 0] for name in self.names}, columns=self.names)
        value = np.asarray(self.booster.predict(rows, thread_count=self.threads))
        if not self.classifies:
            return [value]
        label = value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value
        return [label, np.asarray(self.booster.predict_proba(rows, thread_count=self.threads))]

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch.

        Raises:
            InvalidValueError: a value that the model refuses, such as a missing one, as CatBoost says it.
        """
        try:
            answers = self.answers(inputs)
        except self.catboost.CatBoostError as error:
            raise InvalidValueError(f"the model refuses the values: {described(error)}") from error
        return {tensor.name: shaped(tensor, array) for tensor, array in zip(self.outputs, answers, strict=True)}


def attempt(path: Path) -> None:
    """What may crash on a damaged file: loading it, and answering a row."""
    CatboostRuntime(path, 1)


def check_head(path: Path) -> None:
    """Raises ModelLoadError for what cannot be a whole file: its head says how long its largest part is."""
    with path.open("rb") as stream:
        head = stream.read(8)
    if len(head) < 8 or not head.startswith(MAGIC):
        raise ModelLoadError(f"{path} is no CatBoost model, or a damaged one: it does not begin as one.")
    (size,) = struct.unpack("<I", head[4:])
    if path.stat().st_size < 8 + size:
        raise ModelLoadError(f"{path} is damaged: it holds {path.stat().st_size} bytes of at least {8 + size}.")


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load a model of CatBoost.

    Raises:
        ConfigurationError: CatBoost is not installed.
        ModelLoadError: the file is damaged, or has features that are not served.
    """
    check_head(path)
    needed("catboost", path, "catboost")
    trial.check(__name__, path)
    return CatboostRuntime(path, config.catboost.threads)
