"""Rows that a model has never seen, to warm it up and to prove that it may be batched."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastinfer._core import DATATYPES, DTYPES, Signature, Tensor
from fastinfer.runtimes import Arrays

Array = np.ndarray[Any, Any]
Run = Callable[[Arrays], Arrays]

TOLERANCE = 1e-5  # alone and together, absolute and relative: float32 sums may be ordered by the batch
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, never come close to one another
INNER_SIZES = (1, 2, 4, 8, 16, 32, 3)  # tried where an inner dimension is variable
STYLES = ("scattered", "counts", "flags", "zeros")  # kinds of values, until the model takes one


def draw(tensor: Tensor, shape: tuple[int, ...], style: str) -> Array:
    """An array of the tensor's datatype and ``shape`` whose rows differ, unless the style is zeros."""
    count = int(np.prod(shape, dtype=np.int64))
    steps = np.arange(count, dtype=np.float64)
    if style == "scattered":
        values = 4 * ((steps + 1) * GOLDEN % 1) - 2  # scattered over -2 to 2; numpy.random would cost the start 15 ms
    else:
        values = {"counts": steps, "flags": (steps // max(count // max(shape[0], 1), 1)) % 2, "zeros": 0 * steps}[style]
    dtype = DTYPES[DATATYPES.index(tensor.datatype)]
    if tensor.datatype == "BYTES":
        words = [f"{value:.3f}" if style == "scattered" else f"{value:g}" for value in values]
        return np.array(words, dtype=object).reshape(shape)
    if tensor.datatype == "BF16":  # the upper half of a float32
        return (values.astype("float32").view("uint32") >> 16).astype("uint16").reshape(shape)
    if tensor.datatype == "BOOL":
        return (values > 0).reshape(shape)
    if tensor.datatype.startswith(("INT", "UINT")):
        values = np.abs(np.round(values)) % 100
    return values.astype(dtype).reshape(shape)


def candidates(signature: Signature, rows: int) -> Iterator[Arrays]:
    """Inputs of ``rows`` rows to try on a model about which only its signature is known, best first."""
    variable = any(-1 in tensor.shape[1:] for tensor in signature.inputs)
    for style, size in itertools.product(STYLES, INNER_SIZES if variable else (1,)):
        yield {
            tensor.name: draw(tensor, concrete(tensor.shape, rows if signature.batched else 1, size), style)
            for tensor in signature.inputs
        }


def concrete(shape: tuple[int, ...], rows: int, size: int) -> tuple[int, ...]:
    """``shape`` with its variable dimensions filled in: the first by ``rows``, the others by ``size``."""
    return tuple((rows if axis == 0 else size) if dim < 0 else dim for axis, dim in enumerate(shape))


def proves_batching(run: Run, signature: Signature) -> str | None:
    """Why the model must not be batched, or None when three rows answer alone as they do together.

    A symbolic first dimension is no proof: a Softmax over it makes a row's answer depend on its neighbours.
    """
    for tensor in (*signature.inputs, *signature.outputs):
        if not tensor.shape or tensor.shape[0] != -1:
            return f"the first dimension of {tensor.name!r} is fixed"
    last = "no generated rows could be run"
    for inputs in candidates(signature, 3):
        try:
            together = run(inputs)
            alone = [run({name: array[i : i + 1].copy() for name, array in inputs.items()}) for i in range(3)]
        except Exception as error:  # an engine's own; the next values may suit the model
            last = f"generated rows cannot be run: {(str(error).splitlines() or [''])[0][:200]}"
            continue
        return disagreement(together, alone)
    return last


def disagreement(together: Arrays, alone: list[Arrays]) -> str | None:
    for name, whole in together.items():
        if whole.ndim == 0 or whole.shape[0] != len(alone):
            return f"output {name!r} has shape {list(whole.shape)} for {len(alone)} rows"
        for i, single in enumerate(alone):
            if single[name].shape != (1, *whole.shape[1:]):
                return f"output {name!r} has another shape alone than in a batch"
            if not same(single[name], whole[i : i + 1]):
                return f"output {name!r} of a row depends on the rows beside it"
    return None


def same(a: Array, b: Array) -> bool:
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    return bool(np.array_equal(a, b))


def warm_up(run: Run, signature: Signature, sizes: list[int], repeats: int = 3) -> list[tuple[int, int]]:
    """Run generated batches of each size; (rows, nanoseconds) of each run that worked.

    Empty when the model takes none of the generated values, which says nothing about real ones.
    """
    times = []
    for rows in sizes:
        for inputs in candidates(signature, rows):
            try:
                run(inputs)
            except Exception:  # noqa: S112 - an engine's own; the next values may suit the model
                continue
            for _ in range(repeats):
                started = time.perf_counter_ns()
                run(inputs)
                times.append((rows, time.perf_counter_ns() - started))
            break
    return times
