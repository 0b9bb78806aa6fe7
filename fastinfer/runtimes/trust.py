"""Files that run code when they are loaded: each kind is served only when the operator has said so."""

import shlex
from pathlib import Path

from fastinfer.errors import ModelLoadError
from fastinfer.settings import Settings

PICKLES = frozenset({".pkl", ".pickle", ".joblib"})
CODE = frozenset({".py"})


def refusal(file: Path, settings: Settings, name: str = "NAME") -> ModelLoadError | None:
    """Why a file is not loaded under these settings, in at most two lines; None for one that is.

    Args:
        name: of the model that it would be.
    """
    suffix = file.suffix.lower()
    if suffix in CODE and not settings.allow_python_models:
        return ModelLoadError(f"{file} is Python code, which runs with the server's own rights; if you trust it, add "
                              "--allow-python-models.")
    if suffix in PICKLES and not settings.trust_pickle:
        return ModelLoadError(
            f"{file} is a pickle: loading it runs the code in it. If you trust it, serve it with --trust-pickle, or "
            "import it once, which is faster and safer to serve:\n"
            f"  fastinfer import {shlex.quote(str(file))} --out models/{name}/1 --trust-pickle")
    return None


def check(file: Path, settings: Settings) -> None:
    """Raises ModelLoadError for a file that the operator has not allowed."""
    refused = refusal(file, settings)
    if refused is not None:
        raise refused
