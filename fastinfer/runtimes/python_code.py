"""A user's `class Model`: its file imported, the class made, what it declares and what it answers checked.

The same in the server's own process and in a process of the model's own.
"""

import itertools
import os
import sys
import threading
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastinfer._core import DATATYPES, DTYPES, Tensor
from fastinfer.errors import InvalidRequestError, ModelLoadError, RuntimeFailedError
from fastinfer.runtimes import Arrays

MAX_RANK = 8
CONTRACT = "inputs and outputs are {name: (datatype, shape)}, as in {'x': ('FP32', (-1, 4))}"

_numbers = itertools.count(1)
_importing = threading.Lock()  # sys.path and sys.modules belong to all models


class Code:
    """One object of a user's class.

    Attributes:
        inputs, outputs: as it declares them.
        module: the name of its file's module in ``sys.modules``.
    """

    def __init__(self, path: Path, patience: float) -> None:
        """Import the file and make the object.

        Raises:
            ModelLoadError: it has an error, or no such class, or does not say what it takes and gives.
        """
        self.path = path
        self.module = f"fastinfer_model_{next(_numbers)}"
        made = instantiate(path, self.module, patience)
        self.predict = getattr(made, "predict", None)
        if not callable(self.predict):
            raise ModelLoadError(f"{path}: class Model has no method predict(self, inputs).")
        self.inputs = declared(made, "inputs", path)
        self.outputs = declared(made, "outputs", path)

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch on copies, since the class may keep or change what it is given, and give the same array twice.

        Raises:
            InvalidRequestError: as the class raised it.
            RuntimeFailedError: any other exception, or an answer that is not as declared.
        """
        copies = {name: np.array(array) for name, array in inputs.items()}
        try:
            outputs = self.predict(copies)  # type: ignore[misc]  # checked to be callable
        except InvalidRequestError:
            raise
        except BaseException as error:  # sys.exit too: it ends the request, not the server
            raise failed(error) from error
        return checked(outputs, self.outputs)


def instantiate(path: Path, module: str, patience: float) -> Any:
    """An object of the file's class Model, made with the folder that the file lies in."""
    folder = str(path.parent.absolute())
    code = compiled(path)
    namespace = types.ModuleType(module)
    namespace.__file__ = str(path)
    if not _importing.acquire(timeout=patience):
        raise ModelLoadError(f"{path}: another Python model is still being imported.")
    before = set(sys.modules)
    sys.modules[module] = namespace
    sys.path.insert(0, folder)
    try:
        exec(code, namespace.__dict__)  # noqa: S102 - it is what the operator has allowed
    except BaseException as error:
        sys.modules.pop(module, None)
        raise ModelLoadError(f"{place(error, path)}: {described(error)}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        # Modules of the model's own folder: another version has its own of the same name.
        for name in set(sys.modules) - before - {module}:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(folder + os.sep):
                del sys.modules[name]
        _importing.release()
    kind = namespace.__dict__.get("Model")
    if not isinstance(kind, type):
        raise ModelLoadError(f"{path} has no class Model.")
    try:
        return kind(Path(folder))
    except BaseException as error:
        raise ModelLoadError(f"{place(error, path)}: {described(error)} (making Model(folder))") from error


def compiled(path: Path) -> types.CodeType:
    try:
        return compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ModelLoadError(f"{path}:{error.lineno or 1}: {error.msg}.") from None
    except (ValueError, OSError, RecursionError, MemoryError) as error:  # a NUL byte, an unreadable file, deep nesting
        raise ModelLoadError(f"{path}: {error}.") from None


def place(error: BaseException, path: Path) -> str:
    """File and line of the innermost frame in the model's own file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def described(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def failed(error: BaseException) -> RuntimeFailedError:
    """The error for an exception of the class's own: its name for the client, its traceback for the log."""
    failure = RuntimeFailedError(f"the model failed on this request: its predict raised {type(error).__name__}")
    failure.detail = "".join(traceback.format_exception(error))[-20_000:].rstrip()
    return failure


def refused(message: str) -> RuntimeFailedError:
    """The error for an answer that is not as declared; the operator is told as well."""
    failure = RuntimeFailedError(message)
    failure.detail = message
    return failure


# -- what it declares --------------------------------------------------------------------------------------------
def declared(made: Any, what: str, path: Path) -> list[Tensor]:
    """The object's inputs or outputs.

    Raises:
        ModelLoadError: they are missing or of another form.
    """
    table = getattr(made, what, None)
    if not isinstance(table, Mapping) or not table:
        raise ModelLoadError(f"{path}: class Model does not say its {what}; {CONTRACT}.")
    return [declared_tensor(name, value, f"{path}: {what}[{name!r}]") for name, value in table.items()]


def declared_tensor(name: Any, value: Any, where: str) -> Tensor:
    if not isinstance(name, str) or not name:
        raise ModelLoadError(f"{where}: a name is text that is not empty; {CONTRACT}.")
    if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[1], tuple | list):
        raise ModelLoadError(f"{where} is {value!r:.100}; {CONTRACT}.")
    datatype, shape = value
    if datatype not in DATATYPES:
        raise ModelLoadError(f"{where}: {datatype!r:.100} is not a datatype; they are {', '.join(DATATYPES)}.")
    if len(shape) > MAX_RANK:
        raise ModelLoadError(f"{where} has {len(shape)} dimensions; at most {MAX_RANK} are served.")
    for dim in shape:
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < -1:
            raise ModelLoadError(f"{where}: {dim!r:.100} is not a dimension; a variable one is -1.")
    return Tensor(name, datatype, tuple(int(dim) for dim in shape))


# -- what it answers -------------------------------------------------------------------------------------------
def checked(outputs: Any, tensors: list[Tensor]) -> Arrays:
    """Arrays of the caller's own, each as declared.

    Raises:
        RuntimeFailedError: they are not as declared.
    """
    if not isinstance(outputs, Mapping):
        raise refused(f"the model answered {type(outputs).__name__}, not a dict of arrays by output name")
    names = [tensor.name for tensor in tensors]
    for name in names:
        if name not in outputs:
            raise refused(f"the model did not answer its output {name!r}")
    for name in outputs:
        if name not in names:
            raise refused(f"the model answered {name!r:.100}, which is none of its outputs {', '.join(names)}")
    return {tensor.name: checked_array(tensor, outputs[tensor.name]) for tensor in tensors}


def checked_array(tensor: Tensor, array: Any) -> np.ndarray[Any, Any]:
    what = f"the model's output {tensor.name!r}"
    if not isinstance(array, np.ndarray):
        raise refused(f"{what} is a {type(array).__name__}, not a numpy array")
    if isinstance(array, np.ma.MaskedArray):
        raise refused(f"{what} is a masked array; say what stands for a masked value, as with array.filled(nan)")
    fits = array.ndim == len(tensor.shape) and all(
        want in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=True))
    if not fits:
        raise refused(f"{what} has shape {list(array.shape)}; {list(tensor.shape)} is declared")
    dtype = np.dtype(DTYPES[DATATYPES.index(tensor.datatype)])
    if tensor.datatype == "BYTES":
        return checked_texts(what, array)
    if array.dtype.newbyteorder("=") != dtype:
        raise refused(f"{what} is {array.dtype}; {tensor.datatype} is declared, which is {dtype}")
    return np.array(array, dtype=dtype, order="C")


def checked_texts(what: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.kind not in "OUS":
        raise refused(f"{what} is {array.dtype}; BYTES is declared, which is an array of str or bytes")
    texts = np.array(array, dtype=object, order="C")
    for value in texts.flat:
        if not isinstance(value, str | bytes):
            raise refused(f"{what} holds a {type(value).__name__}; BYTES is declared, which is str or bytes")
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise refused(f"{what} holds a text that is not Unicode: {value!r:.100}") from None
    return texts
