"""One batch to Triton and back: what is asked, how it is checked, what its failures mean."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from fastinfer._core import DATATYPES, DTYPES, Tensor
from fastinfer.errors import BackendError, BackendRefusedError, BackendUnavailableError, FastinferError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.triton.contract import Contract
from fastinfer.runtimes.triton.forwarding import Fields

ANSWER_HEAD = 1 << 20  # bytes of an answer beside its tensors
LONGEST_WAIT = 3600  # seconds that a client is asked to wait because Triton asks for it
TEXT_BYTES = 64 << 20  # of an answer whose texts or shapes are of any length
KNOWN_DTYPES = {name: np.dtype(dtype) for name, dtype in zip(DATATYPES, DTYPES, strict=True)}
NO_REGION = "Unable to find shared memory region"  # as Triton words it


@dataclass(frozen=True, slots=True)
class Question:
    """A batch and what goes with it."""

    inputs: Arrays
    deadline: float = math.inf  # of the last of its requests, on the clock of time.monotonic
    id: str = ""
    priority: int = 0
    traceparent: str = ""
    fields: Fields = ()  # of its requests' heads


class Failed(Exception):  # noqa: N818 - it is not an error of ours, but how one comes about
    """A batch that was not answered.

    It makes the error that its requests are answered with, and has none: two exceptions that know each other would keep
    the batch, in their frames, until the garbage collector looks.

    Attributes:
        sick: whether the fault is the server's or the network's, and not this batch's.
        again: whether the batch may go out once more.
        status: of HTTP, where the server has answered with an error; else None.
        unseen: whether it is certain that nothing of the batch has reached the server.
        forgotten: whether the server does not know the batch's shared memory.
        retry_after: seconds after which the server asks to be asked again, where it says so.
    """

    def __init__(self, kind: type[FastinferError], why: str, *, sick: bool = True, again: bool = False,
                 status: int | None = None, unseen: bool = False, forgotten: bool = False,
                 retry_after: float | None = None) -> None:
        super().__init__(why)
        self.kind = kind
        self.retry_after = retry_after
        self.sick = sick
        self.again = again
        self.status = status
        self.unseen = unseen
        self.forgotten = forgotten

    def error(self) -> FastinferError:
        """What the batch's requests are answered with."""
        error = self.kind(str(self))
        if self.retry_after is not None:
            error.retry_after = self.retry_after
        return error


class Link(Protocol):
    """A pool of connections to one url, of one event loop."""

    async def metadata(self, model: str, version: str) -> Mapping[str, Any]: ...

    async def configuration(self, model: str, version: str) -> Mapping[str, Any]: ...

    async def ready(self, model: str, version: str) -> bool: ...

    async def infer(self, contract: Contract, question: Question) -> Arrays:
        """Raises Failed."""
        ...

    async def close(self) -> None: ...


def microseconds(question: Question) -> int | None:
    """The time that is left for a batch, as Triton takes it; None where there is no end to it."""
    left = question.deadline - time.monotonic()
    return max(1, int(left * 1e6)) if left < 1e6 else None


def unreachable(why: object) -> Failed:
    """No connection came about: nothing was sent."""
    return Failed(BackendUnavailableError, f"the model's server cannot be reached: {first_line(why)}", again=True,
                  unseen=True)


def lost(why: str, *, again: bool = False) -> Failed:
    """The connection ended before the answer did."""
    return Failed(BackendError, f"the model's server broke off: {why}", again=again)


def garbage(why: object) -> Failed:
    """The answer is none."""
    return Failed(BackendError, f"the model's server gave no answer to what was asked: {first_line(why)}")


def refused(status: int, message: object, wait: bytes | None = None) -> Failed:
    """Triton answered, with an error of this HTTP status, and perhaps with seconds to wait."""
    said = first_line(message)
    forgotten = NO_REGION in str(message)
    if status == 400:
        return Failed(BackendRefusedError, f"the model's server refuses the request: {said}", sick=False, status=status,
                      forgotten=forgotten)
    if status in (404, 503):
        return Failed(BackendUnavailableError, f"the model's server does not take requests: {said}",
                      sick=status == 404, again=status == 404, status=status, forgotten=forgotten,
                      retry_after=min(int(wait), LONGEST_WAIT) if wait and wait.isdigit() and len(wait) < 9 else None)
    return Failed(BackendError, f"the model's server failed with status {status}: {said}", sick=status != 500,
                  status=status)


def first_line(why: object) -> str:
    """What another program said, in one line."""
    lines = str(why).strip().splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[0][:300]) if lines else type(why).__name__


def most_bytes(contract: Contract, rows: int) -> int:
    """The longest answer for so many rows."""
    size = ANSWER_HEAD
    for output in contract.outputs:
        dims = output.shape[1:] if contract.max_batch_size else output.shape
        if output.datatype == "BYTES" or -1 in dims:
            return TEXT_BYTES
        size += (rows if contract.max_batch_size else 1) * math.prod(dims) * itemsize(output)
    return size


def dtype_of(datatype: str) -> np.dtype[Any]:
    return KNOWN_DTYPES[datatype]


def itemsize(tensor: Tensor) -> int:
    return int(dtype_of(tensor.datatype).itemsize)


def to_bytes(tensor: Tensor, array: np.ndarray[Any, Any]) -> bytes:
    """A C-contiguous input as it travels."""
    if tensor.datatype != "BYTES":
        return array.tobytes()
    return bytes(serialize_byte_tensor(array).item()) if array.size else b""


def from_bytes(datatype: str, shape: list[int], blob: bytes) -> np.ndarray[Any, Any]:
    """An output of a datatype of ours as it came; texts as bytes.

    Raises:
        ValueError and others: it is not of the shape.
    """
    if not blob:
        return np.empty(shape, object if datatype == "BYTES" else dtype_of(datatype))
    if datatype == "BYTES":
        texts: np.ndarray[Any, Any] = deserialize_bytes_tensor(blob)
        return texts.reshape(shape)
    return np.frombuffer(blob, dtype_of(datatype)).reshape(shape)


def taken(
    contract: Contract, rows: int, described: Callable[[str], tuple[str, list[int], int] | None],
    array_of: Callable[[str], np.ndarray[Any, Any] | None],
) -> Arrays:
    """The outputs of an answer, as the core takes them.

    Args:
        described: datatype, shape and bytes (-1: not binary) of an output of the answer.
        array_of: the output itself.

    Raises:
        Failed: the answer is not what was asked for.
    """
    outputs = {}
    for want in contract.outputs:
        try:
            found = described(want.name)
            if found is None:
                raise ValueError(f"output {want.name!r} is missing")
            datatype, shape, size = found
            if datatype != want.datatype:
                raise ValueError(f"output {want.name!r} is {datatype}, and the model has {want.datatype}")
            if not fits(shape, want.shape, rows if contract.max_batch_size else None):
                raise ValueError(f"output {want.name!r} has shape {shape} for {rows} rows, and the model has "
                                 f"{list(want.shape)}")
            count = math.prod(shape)
            if datatype != "BYTES" and size != count * itemsize(want):
                raise ValueError(f"output {want.name!r} has {size} bytes for shape {shape}")
            array = array_of(want.name)
            if array is None or array.size != count or list(array.shape) != shape:
                raise ValueError(f"output {want.name!r} is not of its shape {shape}")
            outputs[want.name] = for_core(want, array)
        except Exception as error:  # what a program that is not ours may send has no end
            raise garbage(error) from None
    return outputs


def fits(shape: list[int], declared: tuple[int, ...], rows: int | None) -> bool:
    """Whether an output's shape is as declared; `rows`, where given, is its first dimension."""
    return (len(shape) == len(declared) and all(type(dim) is int and dim >= 0 for dim in shape)
            and all(want in (-1, have) for have, want in zip(shape, declared, strict=True))
            and (rows is None or shape[0] == rows))


def for_core(tensor: Tensor, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An output as the core takes it: of its own dtype, C-contiguous, text as str where it is UTF-8."""
    if tensor.datatype == "BYTES":
        texts = np.empty(array.size, dtype=object)
        for i, value in enumerate(array.ravel()):
            try:
                texts[i] = value.decode()
            except UnicodeDecodeError:
                texts[i] = bytes(value)
        return texts.reshape(array.shape)
    if tensor.datatype == "BF16":
        array = array.view(np.uint16)
    if array.dtype == np.bool_:
        array = array.view(np.uint8) != 0  # any byte may come
    if array.dtype != dtype_of(tensor.datatype):
        raise ValueError(f"output {tensor.name!r} came as {array.dtype}")
    return np.ascontiguousarray(array).reshape(array.shape)
