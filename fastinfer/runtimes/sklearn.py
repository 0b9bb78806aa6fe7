"""scikit-learn: a fitted estimator or pipeline as skops saved it, or as a pickle where the operator trusts it.

The estimator's own `predict` and `predict_proba` are run, on worker threads.
"""

import contextlib
import json
import logging
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastinfer._core import Engine, Tensor
from fastinfer.errors import InvalidValueError, ModelLoadError
from fastinfer.runtimes import Arrays, Runtime, needed, trial, trust
from fastinfer.runtimes.answers import classifier, other, shaped
from fastinfer.runtimes.python_code import described
from fastinfer.runtimes.sklearn_columns import Columns
from fastinfer.settings import ModelConfig, Settings

HARMLESS = ("numpy.dtype",)  # types that skops would have listed, and that run nothing
MOST_COLUMNS = 256  # that are tried one by one with a missing value

logger = logging.getLogger("fastinfer.sklearn")


class SklearnRuntime:
    """One fitted estimator."""

    inline = False

    def __init__(self, fitted: Any, path: Path, config: ModelConfig) -> None:
        self.fitted = fitted
        self.path = path
        self.platform = "sklearn_skops" if path.suffix.lower() == ".skops" else "sklearn_pickle"
        self.native: Engine | None = None
        self.columns = Columns(fitted, config.sklearn.columns, str(path))
        self.classes: dict[str, tuple[str, ...]] = {}
        self.examples = self.columns.examples
        self.outputs: list[Tensor] = []
        self.outputs = self.describe()
        self.columns.nullable = self.takes_missing()
        self.inputs = self.columns.inputs

    def describe(self) -> list[Tensor]:
        """What a row that the fitted steps know is answered with.

        Raises:
            ModelLoadError: it has no `predict`, none of the rows is answered, or the answer is no array of one type.
        """
        if not hasattr(self.fitted, "predict"):
            raise ModelLoadError(f"{self.path}: {type(self.fitted).__name__} has no predict.")
        try:
            label, *probabilities = self.answers(self.columns.rows(self.examples(2)))
        except Exception as error:
            raise ModelLoadError(f"{self.path}: {type(self.fitted).__name__} does not answer a row of its own columns: "
                                 f"{described(error)}. Where the fit does not tell a column's type, [sklearn.columns] "
                                 "in model.toml does, as in job = \"BYTES\".") from error
        classes = getattr(self.fitted, "classes_", None)
        if classes is None:
            return other(label, self.path)
        if probabilities:
            self.classes["probabilities"] = tuple(str(each) for each in np.asarray(classes).tolist())
        return classifier(label, probabilities[0] if probabilities else None, self.path)

    def answers(self, rows: Any) -> list[np.ndarray[Any, Any]]:
        """What the estimator answers: labels or values, and probabilities where it has them."""
        result = [np.asarray(self.fitted.predict(rows))]
        classes = getattr(self.fitted, "classes_", None)
        if isinstance(classes, np.ndarray) and hasattr(self.fitted, "predict_proba"):
            result.append(np.asarray(self.fitted.predict_proba(rows)))
        return result

    def takes_missing(self) -> list[bool]:
        """Which columns may be missing: where the estimator answers a row that lacks the value."""
        whole = self.examples(1)
        if self.columns.container == "matrix":
            (matrix,) = whole.values()
            return [self.takes({name: np.full_like(matrix, np.nan) for name in whole})] * len(self.columns.columns)
        gone = {column.name: np.array([[np.nan]] if column.datatype == "FP64" else [[None]],
                                      dtype=np.float64 if column.datatype == "FP64" else object)
                for column in self.columns.columns if column.datatype in ("FP64", "BYTES")}
        if gone and self.takes(whole | gone):
            return [column.name in gone for column in self.columns.columns]
        few = len(gone) <= MOST_COLUMNS
        return [few and column.name in gone and self.takes(whole | {column.name: gone[column.name]})
                for column in self.columns.columns]

    def takes(self, inputs: Arrays) -> bool:
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            self.answers(self.columns.rows(inputs))
            return True
        return False

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch.

        Raises:
            InvalidValueError: a value that a step refuses, such as an unknown category, as scikit-learn says it.
        """
        try:
            answers = self.answers(self.columns.rows(inputs))
        except ValueError as error:
            raise InvalidValueError(f"the model refuses the values: {described(error)}") from error
        return {tensor.name: shaped(tensor, array) for tensor, array in zip(self.outputs, answers, strict=True)}


# -- files -------------------------------------------------------------------------------------------------------
def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load a fitted estimator.

    Raises:
        ConfigurationError: scikit-learn or skops is not installed.
        ModelLoadError: the file is damaged, holds types that the operator has not listed, is not trusted, or was saved
            by another release of scikit-learn.
    """
    trust.check(path, settings)
    pickled = path.suffix.lower() in trust.PICKLES
    needed("sklearn", path, "sklearn")
    needed("joblib" if pickled else "skops.io", path, "sklearn" if pickled else "skops")
    if pickled:
        trial.check(__name__, path)  # a byte that changed may crash the interpreter, or lead trees in a circle
    else:
        check_archive(path)
    return opened(path, config)


def attempt(path: Path) -> None:
    """What a damaged pickle may crash."""
    opened(path, ModelConfig())


def opened(path: Path, config: ModelConfig) -> SklearnRuntime:
    """The estimator in a file that may be loaded; raises as `load`."""
    pickled = path.suffix.lower() in trust.PICKLES
    mismatch = import_module("sklearn.exceptions").InconsistentVersionWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", mismatch)
        try:
            fitted = import_module("joblib").load(path) if pickled else from_skops(path, config)
        except ModelLoadError:
            raise
        except mismatch as warning:
            saved = warning.original_sklearn_version
            installed = import_module("sklearn").__version__
            raise ModelLoadError(f"{path}: saved by scikit-learn {saved}, and scikit-learn {installed} is installed "
                                 f"here: install scikit-learn=={saved}, or fit again.") from None
        except BaseException as error:
            raise ModelLoadError(f"{path}: it cannot be loaded: {described(error)}") from error
        try:
            return SklearnRuntime(fitted, path, config)
        except ModelLoadError:
            raise
        except Exception as error:  # of attributes that are not as the fit makes them
            raise ModelLoadError(f"{path}: what it holds is no fitted estimator, or damaged: {described(error)}"
                                 ) from error


def check_archive(path: Path) -> None:
    """Refuse a skops file that was cut or changed on its way.

    Raises:
        ModelLoadError: it is not the archive that was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            schema = json.loads(archive.read("schema.json"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelLoadError(f"{path} is no skops file, or a damaged one: {described(error)}") from None
    if broken is not None or not isinstance(schema, dict):
        raise ModelLoadError(f"{path} is damaged: {broken or 'schema.json'} is not as it was written.")


def from_skops(path: Path, config: ModelConfig) -> Any:
    """Raises ModelLoadError for types that neither skops nor the operator trusts."""
    io = import_module("skops.io")
    trusted = {*config.sklearn.trusted, *HARMLESS}
    unknown = [name for name in io.get_untrusted_types(file=path) if name not in trusted]
    if unknown:
        raise ModelLoadError(f"{path} holds types that are not trusted: {', '.join(unknown[:20])}. If you know them, "
                             f"list them in model.toml: [sklearn] trusted = {json.dumps(unknown[:20])}.")
    return io.load(path, trusted=sorted(trusted))
