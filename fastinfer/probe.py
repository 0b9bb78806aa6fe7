"""Rows that a model has never seen, to warm it up and to prove that it may be batched."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastinfer._core import DATATYPES, DTYPES, Signature, Tensor
from fastinfer.runtimes import Arrays

Array = np.ndarray[Any, Any]
Run = Callable[[Arrays], Arrays]
Examples = Callable[[int], Arrays]

TOLERANCE = 1e-5  # alone and together, absolute and relative: float32 sums may be ordered by the batch
SLOW = 0.02  # seconds; a model whose run takes longer is not run over and over at load
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, never come close to one another
INNER_SIZES = (1, 2, 4, 8, 16, 32, 3)  # tried where an inner dimension is variable
SHORTEST_REST, LONGEST_REST = 0.0005, 0.005  # seconds between two runs beside a loop that serves
STYLES = ("scattered", "counts", "flags", "zeros")  # kinds of values, until the model takes one


_thread = threading.local()


@contextmanager
def resting() -> Iterator[None]:
    """Within it this thread lets the others have the interpreter and the core after each run of a model.

    A thread that computes without a break may have both for milliseconds, and the requests wait that are served
    meanwhile.
    """
    _thread.rests = True
    try:
        yield
    finally:
        _thread.rests = False


def rest(seconds: float) -> None:
    """After a run that took so long."""
    if getattr(_thread, "rests", False):
        time.sleep(min(max(seconds, SHORTEST_REST), LONGEST_REST))


def with_rests(run: Run) -> Run:
    def run_and_rest(inputs: Arrays) -> Arrays:
        started = time.perf_counter()
        outputs = run(inputs)
        rest(time.perf_counter() - started)
        return outputs

    return run_and_rest


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


def candidates(signature: Signature, rows: int, examples: Examples | None = None) -> Iterator[Arrays]:
    """Inputs of ``rows`` rows to try on a model, best first: of what is known of it, then of its signature alone."""
    if examples is not None:
        yield examples(rows if signature.batched else 1)
    variable = any(-1 in tensor.shape[1:] for tensor in signature.inputs)
    for style, size in itertools.product(STYLES, INNER_SIZES if variable else (1,)):
        yield {
            tensor.name: draw(tensor, concrete(tensor.shape, rows if signature.batched else 1, size), style)
            for tensor in signature.inputs
        }


def concrete(shape: tuple[int, ...], rows: int, size: int) -> tuple[int, ...]:
    """``shape`` with its variable dimensions filled in: the first by ``rows``, the others by ``size``."""
    return tuple((rows if axis == 0 else size) if dim < 0 else dim for axis, dim in enumerate(shape))


def proves_batching(run: Run, signature: Signature, examples: Examples | None = None) -> str | None:
    """Why the model must not be batched, or None when three rows answer alone as they do together.

    A symbolic first dimension is no proof: a Softmax over it makes a row's answer depend on its neighbours.
    """
    for tensor in (*signature.inputs, *signature.outputs):
        if not tensor.shape or tensor.shape[0] != -1:
            return f"the first dimension of {tensor.name!r} is fixed"
    run = with_rests(run)
    last = "no generated rows could be run"
    for inputs in candidates(signature, 3, examples):
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


def depends_on_batch(run: Run, signature: Signature, largest: int,
                     examples: Examples | None = None) -> str | None:
    """The output whose bits of a row depend on the batch that it runs in, or None where none does.

    Rows are compared alone, in batches of several sizes up to `largest`, and at several places in them. A slow model is
    tried in the largest batch only.
    """
    run = with_rests(run)
    for inputs in candidates(signature, largest, examples):
        try:
            started = time.perf_counter()
            run(inputs)
            slow = time.perf_counter() - started > SLOW
            alone: dict[int, Arrays] = {}
            for size in [largest] if slow else sorted({min(size, largest) for size in (2, 3, 5, 8, 17, 64, largest)}):
                for step in (1, -1):  # the other way round, each row has another place, and other neighbours
                    batch = {name: np.ascontiguousarray(array[:size][::step]) for name, array in inputs.items()}
                    together = run(batch)
                    for row in {0, size // 2, size - 1}:
                        place = row if step == 1 else size - 1 - row
                        if row not in alone:
                            alone[row] = run({name: array[row : row + 1].copy() for name, array in inputs.items()})
                        for name, outputs in together.items():
                            if not identical(outputs[place : place + 1], alone[row][name]):
                                return name
        except Exception:  # noqa: S112 - an engine's own; the next values may suit the model
            continue
        return None
    return None


def identical(a: Array, b: Array) -> bool:
    return a.tolist() == b.tolist() if a.dtype.kind == "O" else a.tobytes() == b.tobytes()


def in_batches_of(size: int, run: Run) -> Run:
    """As `run`, which is only ever asked for so many rows: the last one is repeated where there are fewer."""

    def filled(inputs: Arrays, start: int, count: int) -> Arrays:
        parts = {name: array[start : start + count] for name, array in inputs.items()}
        if count == size:
            return run(parts)
        missing = size - count
        whole = {name: np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) for name, part in parts.items()}
        return {name: output[:count] for name, output in run(whole).items()}

    def run_in_batches(inputs: Arrays) -> Arrays:
        rows = len(next(iter(inputs.values())))
        if rows == 0:
            return run(inputs)
        answers = [filled(inputs, start, min(size, rows - start)) for start in range(0, rows, size)]
        return answers[0] if len(answers) == 1 else {
            name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}  # fmt: skip

    return run_in_batches


def warm_up(run: Run, signature: Signature, sizes: list[int], repeats: int = 3,
            examples: Examples | None = None) -> list[tuple[int, int]]:
    """Run generated batches of each size; (rows, nanoseconds) of each run that worked.

    Empty when the model takes none of the generated values, which says nothing about real ones.
    """
    times = []
    for rows in sizes:
        for inputs in candidates(signature, rows, examples):
            try:
                run(inputs)
            except Exception:  # noqa: S112 - an engine's own; the next values may suit the model
                continue
            for _ in range(repeats):
                started = time.perf_counter_ns()
                run(inputs)
                times.append((rows, time.perf_counter_ns() - started))
                rest(times[-1][1] / 1e9)
            break
    return times
