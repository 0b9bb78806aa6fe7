"""Which file is what: the formats that models come in, and what to do with one that is not served as it is."""

import re
from pathlib import Path
from typing import NamedTuple

from fastinfer.errors import ModelLoadError

HEAD_BYTES = 4096


class Format(NamedTuple):
    """A file format of models.

    `mark` is a pattern for the first bytes where the suffix alone says too little. `kind` is the engine that runs it.
    """

    kind: str
    label: str
    mark: bytes | None = None


ONNX = Format("onnx", "an ONNX model")
PYTHON = Format("python", "a Python model", rb"")  # in a folder the one called model.py
PICKLE = Format("sklearn", "a pickle")
FOREST = Format("forest", "a forest that was imported", rb"\APK")
LIGHTGBM = Format("lightgbm", "a LightGBM model", rb"\Atree\r?\n")
XGBOOST_JSON = Format("xgboost", "an XGBoost model", rb'"learner"')
XGBOOST_UBJ = XGBOOST_JSON._replace(mark=None)
CATBOOST = Format("catboost", "a CatBoost model")
TORCH = Format("torch", "a PyTorch program")
WEIGHTS = Format("weights", "a PyTorch file of weights or TorchScript")
SKOPS = Format("sklearn", "a skops file")

FORMATS = {
    ".onnx": ONNX, ".npz": FOREST, ".txt": LIGHTGBM, ".json": XGBOOST_JSON, ".ubj": XGBOOST_UBJ, ".cbm": CATBOOST,
    ".pt": WEIGHTS, ".pt2": TORCH, ".pth": WEIGHTS, ".skops": SKOPS, ".pkl": PICKLE, ".pickle": PICKLE,
    ".joblib": PICKLE, ".py": PYTHON,
}
SERVED = frozenset({
    ONNX.kind,
    FOREST.kind,
    LIGHTGBM.kind,
    PYTHON.kind,
    SKOPS.kind,
    CATBOOST.kind,
    XGBOOST_JSON.kind,
    TORCH.kind,
})


def format_of(file: Path) -> Format:
    """The format of a model file, by its suffix and, where that says too little, its first bytes.

    Raises:
        ModelLoadError: it cannot be read, is empty, is no model, or is a Git LFS pointer to one.
    """
    form = FORMATS.get(file.suffix.lower())
    if form is None:
        raise ModelLoadError(f"{file} is not a model file; fastinfer serves .onnx files and the models of a folder.")
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        raise ModelLoadError(f"{file}: {error.strerror or error}") from None
    if not head:
        raise ModelLoadError(f"{file} is empty.")
    if head.startswith(b"version https://git-lfs"):
        raise ModelLoadError(f"{file} is a Git LFS pointer, not the model itself; run: git lfs pull")
    if form.mark is not None and not re.search(form.mark, head):
        raise ModelLoadError(f"{file} is not {form.label}, which is the only {file.suffix} file that is a model.")
    return form


def refusal(form: Format, file: Path) -> ModelLoadError | None:
    """What to do with a file that is not served as it is; None for one that is."""
    if form.kind in SERVED:
        return None
    return ModelLoadError(f"{file} is {form.label}, which is not served as it is: export the model and save it with "
                          "torch.export.save, as a .pt2 file.")
