"""ModelInferRequest and ModelInferResponse as the core reads and writes them, beside protobuf's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer import errors
from fastinfer._core import Encoder, Signature, Tensor, decode, encode, message_target

pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

MESSAGE = 2
FIELDS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
DTYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BF16": "uint16", "BYTES": "object"}
MODEL = Signature(
    [Tensor("x", "FP32", (-1, 2)), Tensor("n", "UINT8", (-1, 1))],
    [Tensor("y", "FP32", (-1, 1)), Tensor("half", "FP16", (-1,))],
)


def identity(datatype: str) -> Signature:
    return Signature([Tensor("x", datatype, (-1, 2))], [Tensor("y", datatype, (-1, 2))])


def values(datatype: str) -> np.ndarray[Any, Any]:
    """[3, 2], with the ends of the datatype's range."""
    if datatype == "BYTES":
        return np.array([["a", "é😀"], ["", "longer text"], ["x" * 300, "0"]], dtype=object)
    dtype = np.dtype(DTYPES.get(datatype, datatype.lower()))
    if datatype == "BOOL":
        return np.array([[True, False], [False, False], [True, True]])
    if dtype.kind == "f":
        return np.array([[0.1, -2.5], [np.inf, 65504], [-0.0, 1e-7]], dtype=dtype)
    info = np.iinfo(dtype)
    return np.array([[info.min, info.max], [0, 1], [100, 7]], dtype=dtype)


def request(datatype: str = "FP32", **members: Any) -> Any:
    message = pb.ModelInferRequest(model_name="m", **members)
    message.inputs.add(name="x", datatype=datatype, shape=[3, 2])
    return message


def raw(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    texts = [text.encode() for text in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


@pytest.mark.parametrize("datatype", [*FIELDS, "FP16", "BF16"])
def test_raw_contents(datatype: str) -> None:
    array = values(datatype)
    message = request(datatype, raw_input_contents=[raw(array)])
    decoded = decode(identity(datatype), MESSAGE, message.SerializeToString())
    assert decoded["rows"] == 3
    np.testing.assert_array_equal(decoded["arrays"]["x"], array)


@pytest.mark.parametrize("datatype", FIELDS)
def test_typed_contents(datatype: str) -> None:
    array = values(datatype)
    message = request(datatype)
    flat = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
    getattr(message.inputs[0].contents, FIELDS[datatype]).extend(flat)
    body = message.SerializeToString()
    np.testing.assert_array_equal(decode(identity(datatype), MESSAGE, body)["arrays"]["x"], array, strict=True)
    # Split over two messages, which protobuf merges, and not packed, which it takes too.
    first, second = pb.InferTensorContents(), pb.InferTensorContents()
    getattr(first, FIELDS[datatype]).extend(flat[:1])
    getattr(second, FIELDS[datatype]).extend(flat[1:])
    head = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[3, 2]).SerializeToString()
    tensor = head + field(5, first.SerializeToString()) + field(5, second.SerializeToString())
    merged = decode(identity(datatype), MESSAGE, field(5, tensor))
    np.testing.assert_array_equal(merged["arrays"]["x"], array, strict=True)


def field(number: int, data: bytes) -> bytes:
    size, head = len(data), bytearray([number << 3 | 2])
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + data


def test_values_that_are_not_packed() -> None:
    contents = b"".join(b"\x10" + bytes([each]) for each in (1, 2, 3, 4, 5, 6))
    tensor = field(1, b"x") + field(2, b"INT32") + b"\x18\x03\x18\x02" + field(5, contents)
    decoded = decode(identity("INT32"), MESSAGE, field(5, tensor))
    assert decoded["arrays"]["x"].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_what_else_a_request_says() -> None:
    message = request(id="é-7", raw_input_contents=[bytes(24)])
    message.parameters["timeout"].int64_param = 1500
    message.parameters["priority"].uint64_param = 2
    message.parameters["mine"].string_param = "passed over"
    message.parameters["sequence_id"].int64_param = 3
    message.outputs.add(name="y")
    decoded = decode(identity("FP32"), MESSAGE, message.SerializeToString())
    assert (decoded["id"], decoded["timeout_us"], decoded["priority"]) == ("é-7", 1500, 2)
    assert decoded["outputs"] == [("y", True)]


def good() -> Any:
    message = pb.ModelInferRequest(raw_input_contents=[bytes(16), bytes(2)])
    message.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    message.inputs.add(name="n", datatype="UINT8", shape=[2, 1])
    return message


def spoilt(change: Any) -> bytes:
    message = good()
    change(message)
    return bytes(message.SerializeToString())


def typed(datatype: str, name: str, values: list[Any]) -> bytes:
    message = request(datatype)
    getattr(message.inputs[0].contents, name).extend(values)
    return bytes(message.SerializeToString())


def parameter(message: Any, name: str, kind: str, value: Any) -> None:
    setattr(message.parameters[name], kind, value)


@pytest.mark.parametrize(
    ("change", "error", "says", "at"),
    [
        (lambda m: (m.inputs.pop(), m.raw_input_contents.pop()), errors.InvalidInputError, "input 'n' is missing",
         None),
        (lambda m: m.raw_input_contents.pop(), errors.InvalidBinaryError, "has 1 elements for 2 inputs", None),
        (lambda m: m.raw_input_contents.append(b""), errors.InvalidBinaryError, "has 3 elements for 2", None),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1), errors.InvalidBinaryError,
         "contents field must not be specified when using raw_input_contents for 'x'", "$.inputs[0]"),
        (lambda m: setattr(m.inputs[1], "name", "q"), errors.InvalidInputError, "input 'q'.* takes 'x', 'n'",
         "$.inputs[1]"),
        (lambda m: setattr(m.inputs[1], "name", "x"), errors.InvalidInputError, "'x' is given twice", "$.inputs[1]"),
        (lambda m: m.inputs[1].ClearField("name"), errors.InvalidInputError, "lacks its 'name'", "$.inputs[1]"),
        (lambda m: setattr(m.inputs[0], "datatype", "FLOAT"), errors.InvalidInputError, "must be one of BOOL",
         "$.inputs[0]"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP64"), errors.InvalidInputError, "takes datatype FP32",
         "$.inputs[0]"),
        (lambda m: m.inputs[0].shape.__setitem__(0, -1), errors.InvalidShapeError, "must not be negative",
         "$.inputs[0].shape"),
        (lambda m: m.inputs[0].shape.__setitem__(1, 3), errors.InvalidShapeError, r"takes shape \[-1, 2\]",
         "$.inputs[0].shape"),
        (lambda m: m.inputs[0].shape.__setitem__(0, 1 << 62), errors.InvalidShapeError, "larger than any body",
         "$.inputs[0].shape"),
        (lambda m: m.inputs[0].shape.__setitem__(0, 3), errors.InvalidBinaryError, "takes 24 bytes, got 16",
         "$.inputs[0]"),
        (lambda m: (m.inputs[0].shape.__setitem__(0, 1), m.raw_input_contents.__setitem__(0, bytes(8))),
         errors.InvalidShapeError, "input 'n' has 2 rows, input 'x' has 1", "$.inputs[1].shape"),
        (lambda m: m.outputs.add(name="z"), errors.InvalidOutputError, "inference output 'z'", "$.outputs[0]"),
        (lambda m: (m.outputs.add(name="y"), m.outputs.add(name="y")), errors.InvalidOutputError,
         "'y' is requested twice", "$.outputs[1]"),
        (lambda m: parameter(m, "timeout", "string_param", "1"), errors.InvalidParameterError, "'timeout' must be",
         "$.parameters"),
        (lambda m: parameter(m, "priority", "int64_param", -1), errors.InvalidParameterError, "'priority' must be",
         "$.parameters"),
        (lambda m: parameter(m, "triton_mine", "string_param", "s"), errors.InvalidParameterError,
         "'triton_mine': names that begin with 'triton_' are reserved", "$.parameters"),
        (lambda m: parameter(m.outputs.add(name="y"), "classification", "int64_param", 0),
         errors.InvalidParameterError, "must be an integer above 0", "$.outputs[0].parameters"),
        (lambda m: parameter(m.outputs.add(name="y"), "classification", "string_param", "2"),
         errors.InvalidParameterError, "must be an integer above 0", "$.outputs[0].parameters"),
        (lambda m: parameter(m.outputs.add(name="half"), "classification", "int64_param", 1),
         errors.InvalidOutputError, "class result not available for output 'half'", "$.outputs[0]"),
        (lambda m: parameter(m.inputs[0], "shared_memory_region", "string_param", "s"), errors.InvalidParameterError,
         "'shared_memory_region' is not supported", r"$.inputs[0].parameters"),
    ],
)  # fmt: skip
def test_refusals(change: Any, error: type[errors.FastinferError], says: str, at: str | None) -> None:
    with pytest.raises(error, match=says) as caught:
        decode(MODEL, MESSAGE, spoilt(change))
    assert caught.value.at == at


@pytest.mark.parametrize(
    ("body", "error", "says", "at"),
    [
        (typed("FP32", "fp32_contents", [1] * 5), errors.InvalidShapeError, "has 5 values", "$.inputs[0].contents"),
        (typed("FP32", "fp32_contents", [1] * 7), errors.InvalidShapeError, "has 7 values", "$.inputs[0].contents"),
        (typed("FP32", "fp64_contents", [1] * 6), errors.InvalidInputError, "contents of another datatype",
         "$.inputs[0]"),
        (typed("FP32", "fp32_contents", []), errors.InvalidShapeError, "has 0 values", "$.inputs[0].contents"),
        (request().SerializeToString(), errors.InvalidInputError, "neither contents nor raw", "$.inputs[0]"),
        (typed("UINT8", "uint_contents", [1, 2, 256, 4, 5, 6]), errors.InvalidValueError, "256 is out of range",
         "$.inputs[0].contents[2]"),
        (typed("INT8", "int_contents", [-129, 2, 3, 4, 5, 6]), errors.InvalidValueError, "-129 is out of range",
         "$.inputs[0].contents[0]"),
        (typed("BYTES", "bytes_contents", [b"a", b"\xff", b"", b"", b"", b""]), errors.InvalidValueError,
         "not valid UTF-8", "$.inputs[0].contents[1]"),
        (typed("BYTES", "bytes_contents", [b"a"] * 9), errors.InvalidShapeError, "has 7 values",
         "$.inputs[0].contents"),
        (typed("FP16", "fp32_contents", [1] * 6), errors.InvalidInputError, "FP16 has no typed contents",
         "$.inputs[0]"),
    ],
)  # fmt: skip
def test_refused_contents(body: bytes, error: type[errors.FastinferError], says: str, at: str | None) -> None:
    datatype = pb.ModelInferRequest.FromString(body).inputs[0].datatype
    with pytest.raises(error, match=says) as caught:
        decode(identity(datatype), MESSAGE, body)
    assert caught.value.at == at


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x05ab", b"\x07", b"\x0b", b"\x00\x00", b"\x2a\x01\x0a", b"\xff" * 12])
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(errors.InvalidMessageError):
        decode(MODEL, MESSAGE, body)


def test_target() -> None:
    body = pb.ModelInferRequest(model_name="é", model_version="3", id="q").SerializeToString()
    assert message_target(body) == ("é", "3")
    assert message_target(b"") == ("", "")
    for bad in (b"\x0a\x09", b"\x0a\x01\xff"):
        with pytest.raises(errors.InvalidMessageError):
            message_target(bad)


@pytest.mark.parametrize("text", ["model_name", "model_version", "id", "parameter"])
def test_text_that_is_not_utf8_is_refused(text: str) -> None:
    message = pb.ModelInferRequest.FromString(SEEDS[0])
    if text == "parameter":
        message.parameters["note"].string_param = "q?q"
    else:
        setattr(message, text, "q?q")
    body = message.SerializeToString()
    decode(identity("FP32"), MESSAGE, body)
    with pytest.raises(errors.InvalidMessageError):
        decode(identity("FP32"), MESSAGE, body.replace(b"q?q", b"q\xffq"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_are_taken_for_another_request(data: st.DataObject) -> None:
    """Whatever is taken, protobuf takes too and reads the same values; nothing crashes."""
    body = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body)))
        change = data.draw(st.sampled_from(["put", "drop", "set", "cut"]))
        if change == "put":
            body[place:place] = data.draw(st.binary(min_size=1, max_size=3))
        elif change == "drop":
            del body[place : place + 1]
        elif change == "set" and place < len(body):
            body[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del body[place:]
    taken = bytes(body)
    try:
        decoded = decode(identity("FP32"), MESSAGE, taken)
    except errors.FastinferError:
        return
    try:
        message = pb.ModelInferRequest.FromString(taken)
    except DecodeError:
        pytest.fail(f"protobuf refuses {taken!r}")
    (tensor,) = message.inputs
    if message.raw_input_contents:
        expected = np.frombuffer(message.raw_input_contents[0], np.float32)
    else:
        expected = np.array(tensor.contents.fp32_contents, np.float32)
    assert list(decoded["arrays"]["x"].shape) == list(tensor.shape)
    np.testing.assert_array_equal(decoded["arrays"]["x"].ravel(), expected)
    assert decoded["id"] == (message.id or None)


SEEDS = [
    typed("FP32", "fp32_contents", [1, 2, 3, 4, 5, 6]),
    bytes(request(id="q", raw_input_contents=[bytes(range(24))]).SerializeToString()),
]


@pytest.mark.parametrize("datatype", [*FIELDS, "FP16", "BF16"])
def test_answers(datatype: str) -> None:
    array = values(datatype)
    message = request(datatype, raw_input_contents=[raw(array)], id="i\n")
    encoder = Encoder("model é", "3", identity(datatype))
    body, json_size = encode(encoder, MESSAGE, message.SerializeToString(), [array], 1, 2)
    answer = pb.ModelInferResponse.FromString(body)
    assert json_size == -1
    assert (answer.model_name, answer.model_version, answer.id) == ("model é", "3", "i\n")
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, [2, 2])
    assert list(answer.raw_output_contents) == [raw(array[1:])]


def test_an_answer_has_the_outputs_that_were_asked_for() -> None:
    message = good()
    message.outputs.add(name="half")
    message.outputs.add(name="y")
    outputs = [np.float32([[1], [2]]), np.float16([3, 4])]
    body, _ = encode(Encoder("m", "1", MODEL), MESSAGE, message.SerializeToString(), outputs)
    answer = pb.ModelInferResponse.FromString(body)
    assert [output.name for output in answer.outputs] == ["half", "y"]
    assert list(answer.raw_output_contents) == [outputs[1].tobytes(), outputs[0].tobytes()]
    assert answer.id == ""
