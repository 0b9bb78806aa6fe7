"""Fitted objects and samples from files. A pickle runs code when it is loaded, so it is loaded only when told to."""

import json
import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from fastinfer.errors import ConfigurationError, ImportRefusedError

EXTRA = "pip install 'fastinfer[sklearn]'"
XGBOOST_CLASSIFIERS = {"binary:logistic", "binary:hinge", "multi:softprob", "multi:softmax"}
_SAVED_BY = re.compile(rb"_sklearn_version.{0,12}?(\d+\.\d+(?:\.\d+|rc\d+|\.dev\d+)*)", re.DOTALL)


def needed(module: str, extra: str = EXTRA) -> Any:
    """A module of the extra, or an error with the line that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"import needs {module.partition('.')[0]}, which is not installed: {extra}") from error


def load_pipeline(path: Path, *, trust_pickle: bool) -> Any:
    """A fitted object from a joblib or pickle file, or from XGBoost's own .json or .ubj, which runs no code.

    Raises:
        ConfigurationError: no such file, not trusted, a package is missing, or not a pickle.
        ImportRefusedError: saved by another release of scikit-learn.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file")
    if path.suffix.lower() in (".json", ".ubj"):
        return load_xgboost(path)
    if not trust_pickle:
        raise ConfigurationError(
            f"{path}: loading a pickle runs the code in it;"
            " add --trust-pickle (trust_pickle=True) if you trust its source"
        )
    sklearn = needed("sklearn")
    joblib = needed("joblib")
    mismatch = import_module("sklearn.exceptions").InconsistentVersionWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", mismatch)
        try:
            return joblib.load(path)
        except mismatch as warning:
            raise _other_version(path, str(warning.original_sklearn_version), sklearn.__version__) from warning
        except ModuleNotFoundError as error:
            saved_by = _saved_by(path)
            if (error.name or "").startswith("sklearn") and saved_by not in (None, sklearn.__version__):
                raise _other_version(path, str(saved_by), sklearn.__version__) from error
            raise ConfigurationError(f"{path}: needs the module {error.name}, which is not installed here") from error
        except Exception as error:
            saved_by = _saved_by(path)
            if saved_by not in (None, sklearn.__version__):
                raise _other_version(path, str(saved_by), sklearn.__version__) from error
            raise ConfigurationError(f"{path}: cannot be loaded as a pickle: {_reason(error)}") from error


def load_xgboost(path: Path) -> Any:
    """A booster as XGBoost saved it, in the class of scikit-learn's interface that answers by its objective.

    Raises:
        ConfigurationError: not such a file, or XGBoost is missing.
    """
    xgboost = needed("xgboost", "pip install 'fastinfer[xgboost]'")
    try:
        booster = xgboost.Booster(model_file=str(path))
        objective = str(json.loads(booster.save_config())["learner"]["objective"]["name"])
        saved = json.loads(booster.attr("scikit_learn") or "{}").get("_estimator_type")
        kind = saved or ("classifier" if objective in XGBOOST_CLASSIFIERS else "regressor")
        wrapper = {"classifier": "XGBClassifier", "ranker": "XGBRanker"}.get(kind, "XGBRegressor")
        fitted = getattr(xgboost, wrapper)()
        fitted.load_model(str(path))
    except Exception as error:
        raise ConfigurationError(f"{path}: XGBoost cannot load it: {_reason(error)}") from error
    return fitted


def _reason(error: Exception) -> str:
    """The first line of an error that says something: XGBoost puts a time and a place of its source before it."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[\d\d:\d\d:\d\d\] \S+: ", "", line)


def _other_version(path: Path, saved_by: str, here: str) -> ImportRefusedError:
    return ImportRefusedError(
        f"{path}: saved by scikit-learn {saved_by}, but scikit-learn {here} is installed here;"
        f" install scikit-learn=={saved_by} for the import, or fit again with {here}"
    )


def _saved_by(path: Path) -> str | None:
    """The version that a pickle names, read from its bytes without running it."""
    found = _SAVED_BY.search(path.read_bytes())
    return found.group(1).decode() if found else None


def load_sample(path: Path) -> Any:
    """A pandas frame from Parquet or CSV.

    Raises:
        ConfigurationError: no such file, another format, or unreadable.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file")
    pandas = needed("pandas")
    readers = {".parquet": pandas.read_parquet, ".pq": pandas.read_parquet, ".csv": pandas.read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(f"{path}: a sample is a .parquet or a .csv file")
    try:
        return reader(path)
    except ImportError as error:
        raise ConfigurationError(f"{path}: Parquet needs pyarrow, which is not installed: {EXTRA}") from error
    except Exception as error:
        raise ConfigurationError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
