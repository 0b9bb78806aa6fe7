"""What is fuzzed: each target takes any bytes and raises when the core does something that it must not.

The first bytes of an input choose the circumstances, the rest is what a client sends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import reference

from fastinfer import _core
from fastinfer._core import Signature, Tensor
from fastinfer.errors import FastinferError, InvalidRequestError
from fastinfer.preprocessing.program import Program
from fuzz import exchange

MAX_STREAM = 1 << 18  # bytes
HEADER_END = b"\xff\xfe"  # between JSON and binary tensors in an input
OUTPUTS = [Tensor("y", "FP32", (-1, 2)), Tensor("half", "FP16", (-1,))]
TENSORS = [
    Signature([Tensor("x", "FP32", (-1, 4))], OUTPUTS[:1]),
    Signature([Tensor("x", "FP64", (-1, -1, 2))], OUTPUTS),
    Signature([Tensor("a", "INT64", (-1, 1)), Tensor("b", "UINT8", (-1,)), Tensor("c", "BOOL", (-1, 2))], OUTPUTS),
    Signature([Tensor("s", "BYTES", (-1, -1)), Tensor("t", "BYTES", (-1,))], OUTPUTS[:1]),
    Signature([Tensor("x", "INT8", (2, -1)), Tensor("y", "UINT64", ())], OUTPUTS[:1], batched=False),
    Signature([Tensor("h", "FP16", (-1, 2)), Tensor("b", "BF16", (-1, 1))], OUTPUTS),
    Signature([Tensor("age", "FP64", (-1, 1), True, True), Tensor("n", "INT64", (-1, 1), False, True),
               Tensor("job", "BYTES", (-1, 1), True, True), Tensor("on", "BOOL", (-1, 1), False, True)], OUTPUTS[:1]),
    Signature([Tensor("a", "INT16", (-1, 3)), Tensor("b", "UINT16", (-1, 0)), Tensor("c", "INT32", (-1,)),
               Tensor("d", "UINT32", (-1, 1, 2))], OUTPUTS[:1]),
]  # fmt: skip
RECORDS = [
    TENSORS[6],
    TENSORS[0],
    TENSORS[2],
    TENSORS[3],
    TENSORS[4],
    Signature([Tensor("x", "FP32", (-1, -1, 2)), Tensor("s", "BYTES", (-1,))], OUTPUTS[:1]),
    Signature([Tensor("x", "FP64", (-1,)), Tensor("y", "INT8", (1,))], OUTPUTS[:1], batched=False),
]


# ---- decoders ------------------------------------------------------------------------------------------------------
def outcome(
    decoder: Callable[..., dict[str, Any]], refusal: type[Exception], *request: Any, **more: Any
) -> dict[str, Any] | None:
    """What a decoder makes of a request, in comparable form; None where it refuses."""
    try:
        decoded = dict(decoder(*request, **more))
    except refusal:
        return None
    arrays = decoded.pop("arrays")
    return {**decoded, **{f"array {name}": content(array) for name, array in arrays.items()}}


def content(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.shape, array.dtype, array.tolist() if array.dtype == object else array.tobytes()


def same(signature: Signature, kind: int, body: bytes, header: int) -> None:
    """The core decodes as the plain twin does, or both refuse."""
    expected = outcome(reference.decode, reference.Refused, signature, kind, body, header)
    decoded = outcome(_core.decode, InvalidRequestError, signature, kind, body, header)
    assert decoded == expected, f"{decoded} instead of {expected}"


def infer_json(data: bytes) -> None:
    """An Open Inference Protocol request in JSON; the first byte chooses the model."""
    if data:
        same(TENSORS[data[0] % len(TENSORS)], 0, data[1:], -1)


def infer_binary(data: bytes) -> None:
    """The same with binary tensors: the first byte chooses the model, and a header length that is a little wrong."""
    if not data:
        return
    head, _, payload = data[1:].partition(HEADER_END)
    wrong = data[0] >> 4
    header = len(head) + (0 if wrong < 12 else wrong - 14)
    same(TENSORS[data[0] % 16 % len(TENSORS)], 0, head + payload, header)


class ProgramModel:
    """A model with a feature program, y = its features; and the loop that it is submitted on."""

    def __init__(self) -> None:
        self.program = Program.load(Path(__file__).parent / "features.json")
        shape = (-1, self.program.width)
        features = Signature([Tensor("x", "FP32", shape)], [Tensor("y", "FP32", shape)])
        self.due: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        batcher = _core.Batcher(features, lambda arrays: {"y": arrays["x"].copy()}, inline_budget_us=1 << 40)
        batcher.attach(call_soon=self.call_soon, call_later=None, call_soon_threadsafe=self.call_soon, submit=None)
        for rows in (1, 64):
            batcher.seed(rows, 1000)
        inputs = self.program.signature.inputs
        self.signature = Signature(inputs, features.outputs, ignored=self.program.ignored)
        self.endpoint = _core.Endpoint("m", "1", self.signature, batcher, self.program.compiled)

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        self.due.append((function, args))

    def answer(self, submit: Callable[..., Any], *request: Any) -> Any:
        """The answer's document, or what kind of error it is."""
        done: list[_core.Ticket] = []
        try:
            submit(*request, done.append)
            while self.due:
                function, args = self.due.pop(0)
                function(*args)
            (ticket,) = done
            if ticket.error is not None:
                raise ticket.error
            return json.loads(ticket.encode()[0])
        except FastinferError as error:
            return type(error)

    def expected(self, body: bytes) -> Any:
        """What the program gives for the rows that the plain twin reads."""
        decoded = reference.decode(self.signature, 1, body, ignored=self.program.ignored)
        columns = {name: array.reshape(-1).tolist() for name, array in decoded["arrays"].items()}
        try:
            return self.program.transform(columns)
        except FastinferError as error:
            return type(error)


MODEL = ProgramModel()


def records(data: bytes) -> None:
    """Records; the first byte chooses the model. Through a feature program they give what it gives in process."""
    if not data:
        return
    chosen = data[0] % (len(RECORDS) + 1)
    if chosen < len(RECORDS):
        same(RECORDS[chosen], 1, data[1:], -1)
        return
    answer = MODEL.answer(MODEL.endpoint.submit, 1, data[1:], -1)
    elsewhere = MODEL.answer(lambda body, done: MODEL.endpoint.submit_decoded(
        MODEL.endpoint.decode(1, body, -1), done), data[1:])  # fmt: skip
    assert answer == elsewhere, "another answer when it is decoded on a thread"
    try:
        expected = MODEL.expected(data[1:])
    except reference.Refused:
        assert isinstance(answer, type), "answered what is to be refused"
        assert issubclass(answer, InvalidRequestError), answer
        return
    if isinstance(expected, type) or isinstance(answer, type):
        assert answer is expected or getattr(answer, "status", 0) in (413, 503), f"{answer} instead of {expected}"
        return
    (output,) = answer["outputs"] if "outputs" in answer else ({"data": [p["y"] for p in answer["predictions"]]},)
    values = np.array(output["data"], np.float64).astype(np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(values, np.where(np.isfinite(expected), expected, np.nan))


# ---- connections ---------------------------------------------------------------------------------------------------
SERVER = exchange.Server()


def connection(data: bytes) -> None:
    """A stream of requests: how it is cut, what happens meanwhile, how often it is repeated, and its bytes."""
    if len(data) < 4:
        return
    seed, flags, repeated = data[0], data[1], data[2]
    stream = data[3:] * (1 if repeated < 240 else 4 * (repeated - 239))
    stream = stream[:MAX_STREAM]
    rng = random.Random(seed)
    exchange.play(SERVER, stream, rng, exchange.cut(stream, rng, seed), flags)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "connection": connection,
    "infer_json": infer_json,
    "infer_binary": infer_binary,
    "records": records,
}
