"""Requests: what is taken, and what every refusal says and where."""

import json
import struct

import numpy as np
import pytest

from fastinfer import errors
from fastinfer._core import Signature, Tensor, decode

TENSOR = Signature([Tensor("x", "FP32", (-1, 4))], [Tensor("y", "FP32", (-1, 1))])
COLUMNS = Signature(
    [
        Tensor("age", "FP64", (-1, 1), True, True),
        Tensor("job", "BYTES", (-1, 1), True, True),
        Tensor("n", "INT64", (-1, 1), False, True),
    ],
    [],
)


def infer(**members):
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **members}
    return {"inputs": [{name: value for name, value in tensor.items() if value is not ...}]}


@pytest.mark.parametrize("data", [[1, 2.5, -3e2, 0.1, 5, 6, 7, 8], [[1, 2.5, -3e2, 0.1], [5, 6, 7, 8]]])
def test_flat_and_nested_data(data):
    decoded = decode(TENSOR, 0, json.dumps(infer(shape=[2, 4], data=data)).encode())
    expected = np.array(data, np.float32).reshape(2, 4)
    assert decoded["rows"] == 2
    np.testing.assert_array_equal(decoded["arrays"]["x"], expected, strict=True)


def test_binary_data():
    head = json.dumps(infer(data=..., parameters={"binary_data_size": 16})).encode()
    decoded = decode(TENSOR, 0, head + struct.pack("<4f", 1, 2, 3, 4), len(head))
    assert decoded["arrays"]["x"].tolist() == [[1, 2, 3, 4]]


def test_records_with_missing_values():
    decoded = decode(COLUMNS, 1, b'{"id":"q","records":[{"age":39,"job":"cl\\u00e9rk","n":3},{"n":4.0,"job":null}]}')
    assert (decoded["id"], decoded["rows"]) == ("q", 2)
    np.testing.assert_array_equal(decoded["arrays"]["age"], [[39.0], [np.nan]])
    assert decoded["arrays"]["job"].tolist() == [["clérk"], [None]]
    assert decoded["arrays"]["n"].tolist() == [[3], [4]]


def test_a_value_out_of_range_is_named():
    with pytest.raises(errors.InvalidValueError, match=r"input 'x', data\[3\]: 1e39 is out of range") as caught:
        decode(TENSOR, 0, b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,1e39]}]}')
    assert caught.value.at == "$.inputs[0].data[3]"


# ---- refusals ----------------------------------------------------------------------------------------------------
MODEL = Signature(
    [Tensor("x", "FP32", (-1, 2)), Tensor("n", "UINT8", (-1, 1))],
    [Tensor("y", "FP32", (-1, 1)), Tensor("half", "FP16", (-1,))],
)
WHOLE = Signature([Tensor("m", "INT64", (1, 2, 2))], [Tensor("y", "FP32", (1,))], batched=False)
FLEXIBLE = Signature([Tensor("s", "FP64", (-1, -1))], [])
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
N = {"name": "n", "shape": [1, 1], "datatype": "UINT8", "data": [7]}
WANTED = [{"name": "y"}]


def request(*inputs, **members):
    return json.dumps({"inputs": list(inputs), "outputs": WANTED, **members}).encode()


def without(tensor, name):
    return {key: value for key, value in tensor.items() if key != name}


BAD_REQUESTS = [
    (b"5", errors.InvalidInputError, "the body must be a JSON object", None),
    (b"{}", errors.InvalidInputError, "the body lacks 'inputs'", None),
    (b'{"inputs":{}}', errors.InvalidInputError, "'inputs' must be an array", None),
    (request(5, N), errors.InvalidInputError, "an input must be an object", "$.inputs[0]"),
    (request(N), errors.InvalidInputError, "input 'x' is missing for model 'm'; it takes 'x', 'n'", None),
    (request(X, N, {**X, "name": "z"}), errors.InvalidInputError,
     "unexpected inference input 'z' for model 'm'; it takes 'x', 'n'", "$.inputs[2]"),
    (request(X, N, X), errors.InvalidInputError, "input 'x' is given twice", "$.inputs[2]"),
    (request(without(X, "name"), N), errors.InvalidInputError, "an input lacks its 'name'", "$.inputs[0]"),
    (request({**X, "name": 5}, N), errors.InvalidInputError, "an input's 'name' must be a string", "$.inputs[0]"),
    (request(N, without(X, "datatype")), errors.InvalidInputError, "input 'x' lacks its 'datatype'", "$.inputs[1]"),
    (request(N, {**X, "datatype": "FP64"}), errors.InvalidInputError,
     "input 'x' takes datatype FP32, the request has FP64", "$.inputs[1]"),
    (request({**X, "datatype": "float"}, N), errors.InvalidInputError, "'datatype' must be one of BOOL, UINT8, *",
     "$.inputs[0]"),
    (request(without(X, "data"), N), errors.InvalidInputError,
     "input 'x' has neither 'data' nor 'binary_data_size'", "$.inputs[0]"),
    (request({**X, "data": "1,2"}, N), errors.InvalidInputError, "'data' must be an array", "$.inputs[0]"),
    (request(X, N, id=7), errors.InvalidInputError, "'id' must be a string", "$.id"),
    # shapes
    (request(without(X, "shape"), N), errors.InvalidShapeError, "input 'x' lacks its 'shape'", "$.inputs[0].shape"),
    (request({**X, "shape": [1, 3]}, N), errors.InvalidShapeError,
     "input 'x' takes shape [-1, 2], the request has [1, 3]", "$.inputs[0].shape"),
    (request({**X, "shape": [2]}, N), errors.InvalidShapeError,
     "input 'x' takes shape [-1, 2], the request has [2]", "$.inputs[0].shape"),
    (request({**X, "shape": [-1, 2]}, N), errors.InvalidShapeError, "a dimension must not be negative",
     "$.inputs[0].shape"),
    (request({**X, "shape": [1.0, 2]}, N), errors.InvalidShapeError, "'shape' must be an array of integers",
     "$.inputs[0].shape"),
    (request({**X, "shape": "1,2"}, N), errors.InvalidShapeError, "'shape' must be an array of integers",
     "$.inputs[0].shape"),
    (request({**X, "shape": [2**62, 2]}, N), errors.InvalidShapeError, "the shape is larger than any body",
     "$.inputs[0].shape"),
    (request({**X, "shape": [2**64, 2]}, N), errors.InvalidShapeError, "the shape is larger than any body",
     "$.inputs[0].shape"),
    (request({**X, "shape": [10**9, 2]}, N), errors.InvalidShapeError,
     "input 'x': data has 2 values, shape [1000000000, 2] takes 2000000000", "$.inputs[0].data"),
    (request({**X, "shape": [2, 2], "data": [1, 2, 3, 4]}, N), errors.InvalidShapeError,
     "input 'n' has 1 rows, input 'x' has 2", "$.inputs[1].shape"),
    (request({**X, "data": [1, 2, 3]}, N), errors.InvalidShapeError,
     "input 'x': data has 3 values, shape [1, 2] takes 2", "$.inputs[0].data"),
    (request({**X, "data": []}, N), errors.InvalidShapeError,
     "input 'x': data has 0 values, shape [1, 2] takes 2", "$.inputs[0].data"),
    (request({**X, "data": [[1, 2], [3, 4]]}, N), errors.InvalidShapeError,
     "input 'x': data has more elements than shape [1, 2] takes", "$.inputs[0].data"),
    (request({**X, "data": [[1, 2, 3]]}, N), errors.InvalidShapeError,
     "input 'x': data[0] has more elements than shape [1, 2] takes", "$.inputs[0].data[0]"),
    (request({**X, "shape": [2, 2], "data": [[1, 2], 3]}, {**N, "shape": [2, 1], "data": [7, 8]}),
     errors.InvalidShapeError, "input 'x': data must be flat, or nested as shape [2, 2]", "$.inputs[0].data[1]"),
    # values
    (request({**X, "data": [1, "2"]}, N), errors.InvalidValueError,
     'input \'x\', data[1]: FP32 takes a number, got "2"', "$.inputs[0].data[1]"),
    (request({**X, "data": [[1, None]]}, N), errors.InvalidValueError,
     "input 'x', data[0][1]: FP32 takes a number, got null", "$.inputs[0].data[0][1]"),
    (request({**X, "data": [1, [2]]}, N), errors.InvalidValueError,
     "input 'x', data[1]: FP32 takes a number, got an array", "$.inputs[0].data[1]"),
    (request(X, {**N, "data": [300]}), errors.InvalidValueError, "input 'n', data[0]: 300 is out of range for UINT8",
     "$.inputs[1].data[0]"),
    (request(X, {**N, "data": [-1]}), errors.InvalidValueError, "input 'n', data[0]: -1 is out of range for UINT8",
     "$.inputs[1].data[0]"),
    (request(X, {**N, "data": [1.5]}), errors.InvalidValueError,
     "input 'n', data[0]: UINT8 takes integers without point or exponent, got 1.5", "$.inputs[1].data[0]"),
    (request(X, {**N, "data": [True]}), errors.InvalidValueError,
     "input 'n', data[0]: UINT8 takes a number, got true", "$.inputs[1].data[0]"),
    # outputs
    (request(X, N, outputs={}), errors.InvalidOutputError, "'outputs' must be an array", None),
    (request(X, N, outputs=["y"]), errors.InvalidOutputError, "a requested output must be an object", "$.outputs[0]"),
    (request(X, N, outputs=[{}]), errors.InvalidOutputError, "a requested output lacks its 'name'", "$.outputs[0]"),
    (request(X, N, outputs=[{"name": "z"}]), errors.InvalidOutputError,
     "unexpected inference output 'z' for model 'm'; it gives 'y', 'half'", "$.outputs[0]"),
    (request(X, N, outputs=WANTED * 2), errors.InvalidOutputError, "output 'y' is requested twice", "$.outputs[1]"),
    (request(X, N, outputs=[{"name": "half"}]), errors.InvalidOutputError,
     "output 'half': JSON does not carry FP16; ask for it with the parameter 'binary_data': true", "$.outputs[0]"),
    # parameters
    (request(X, N, parameters=[]), errors.InvalidParameterError, "'parameters' must be an object", "$.parameters"),
    (request(X, N, parameters={"timeout": "5"}), errors.InvalidParameterError,
     "parameter 'timeout' must be an integer of 64 bits", "$.parameters"),
    (request(X, N, parameters={"priority": -1}), errors.InvalidParameterError,
     "parameter 'priority' must be an integer of 64 bits and not negative", "$.parameters"),
    (request(X, N, parameters={"binary_data_output": 1}), errors.InvalidParameterError,
     "parameter 'binary_data_output' must be true or false", "$.parameters"),
    (request(X, N, parameters={"a": [1]}), errors.InvalidParameterError,
     "parameter 'a' must be a string, a number or a boolean", "$.parameters"),
    (request(X, N, parameters={f"p{k}": k for k in range(65)}), errors.InvalidParameterError,
     "at most 64 parameters are taken", "$.parameters"),
    (request(X, N, parameters={"triton_mine": 4}), errors.InvalidParameterError,
     "parameter 'triton_mine': names that begin with 'triton_' are reserved", "$.parameters"),
    (request({**X, "parameters": {"shared_memory_region": "r"}}, N), errors.InvalidParameterError,
     "parameter 'shared_memory_region' is not supported", "$.inputs[0].parameters"),
    (request(X, N, outputs=[{"name": "y", "parameters": {"classification": -1}}]), errors.InvalidParameterError,
     "parameter 'classification' must be an integer of 64 bits and not negative", "$.outputs[0].parameters"),
    (request(X, N, outputs=[{"name": "half", "parameters": {"classification": 3}}]), errors.InvalidOutputError,
     "class result not available for output 'half': its datatype FP16 has no order", "$.outputs[0]"),
    (request({**without(X, "data"), "parameters": {"binary_data_size": 8}}, N), errors.InvalidBinaryError,
     "input 'x' has 'binary_data_size', but the request lacks Inference-Header-Content-Length", "$.inputs[0]"),
]


def refusal(signature, kind, body, header=-1):
    with pytest.raises(errors.InvalidRequestError) as caught:
        decode(signature, kind, body, header, "m")
    return type(caught.value), str(caught.value), caught.value.at


@pytest.mark.parametrize(("body", "kind", "message", "at"), BAD_REQUESTS)
def test_bad_requests(body, kind, message, at):
    found = refusal(MODEL, 0, body)
    if message.endswith("*"):
        assert found[1].startswith(message[:-1])
        found = (found[0], message, found[2])
    assert found == (kind, message, at)


@pytest.mark.parametrize("value", ["9223372036854775808", "-9223372036854775809", "18446744073709551616", "1e2", "1.0",
                                   "1" + "0" * 60])
def test_integers_are_never_a_silent_float(value):
    signature = Signature([Tensor("n", "INT64", (-1,))], [])
    body = '{"inputs":[{"name":"n","shape":[2],"datatype":"INT64","data":[%s,%s]}]}'
    assert refusal(signature, 0, (body % (0, value)).encode())[2] == "$.inputs[0].data[1]"
    for edge in (2**63 - 1, -(2**63)):
        assert decode(signature, 0, (body % (edge, edge)).encode())["arrays"]["n"].tolist() == [edge, edge]


@pytest.mark.parametrize("value", [2**64 - 1, 0])
def test_the_edges_of_uint64(value):
    signature = Signature([Tensor("n", "UINT64", (-1,))], [])
    body = json.dumps({"inputs": [{"name": "n", "shape": [1], "datatype": "UINT64", "data": [value]}]}).encode()
    assert decode(signature, 0, body)["arrays"]["n"].tolist() == [value]
    assert refusal(signature, 0, body.replace(str(value).encode(), str(2**64).encode()))[0] is errors.InvalidValueError


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3.4028235e38", 3.4028235e38), ("3.4028235677973362e38", 3.4028235e38), ("3.4028235677973366e38", None),
     ("1e39", None), ("-1e39", None), ("1e999", None), ("1e-45", 1e-45), ("7e-46", 0.0), ("1e-400", 0.0)],
)
def test_the_range_of_fp32(value, expected):
    body = f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","data":[{value},0,0,0]}}]}}'.encode()
    if expected is None:
        assert refusal(TENSOR, 0, body)[:2] == (
            errors.InvalidValueError, f"input 'x', data[0]: {value} is out of range for FP32")
    else:
        assert decode(TENSOR, 0, body)["arrays"]["x"][0, 0] == np.float32(expected)


def binary(size, payload, header=None, **members):
    head = json.dumps(infer(data=..., parameters={"binary_data_size": size}, **members)).encode()
    return head + payload, len(head) if header is None else header


@pytest.mark.parametrize(
    ("sent", "message", "at"),
    [
        (binary(16, bytes(12)), "unexpected size for input 'x', expecting 4 additional bytes for model 'm'",
         "$.inputs[0]"),
        (binary(16, bytes(20)), "unexpected additional input data for model 'm'", None),
        (binary(12, bytes(12)),
         "unexpected size for input 'x': shape [1, 4] of FP32 takes 16 bytes, got 12", "$.inputs[0]"),
        (binary(16, bytes(16), 10**6), "inference header size should be in range (0, *, got: 1000000", None),
        ((json.dumps(infer(parameters={"binary_data_size": 16})).encode() + bytes(16), -16),
         "input 'x' has both 'data' and 'binary_data_size'", "$.inputs[0]"),
        ((b"", 0), "unexpected size for input 'x': shape [1, 4] of FP32 takes 16 bytes, got 0", None),
    ],
)
def test_lying_binary_lengths(sent, message, at):
    body, header = sent
    kind, found, place = refusal(TENSOR, 0, body, header if header >= 0 else len(body) + header)
    assert kind is errors.InvalidBinaryError
    start, _, end = message.partition("*")
    assert found.startswith(start)
    assert found.endswith(end)
    assert place == at


def texts(*blobs, size=None, shape=None):
    payload = b"".join(struct.pack("<I", length) + blob for length, blob in blobs)
    head = json.dumps({"inputs": [{"name": "t", "shape": shape or [len(blobs)], "datatype": "BYTES",
                                   "parameters": {"binary_data_size": size or len(payload)}}]}).encode()
    return head + payload, len(head)


@pytest.mark.parametrize(
    ("sent", "kind", "message"),
    [
        (texts((2, b"ab"), (9, b"ab")), errors.InvalidBinaryError, "input 't': element 1 runs past the tensor's bytes"),
        (texts((2**32 - 1, b"ab")), errors.InvalidBinaryError, "input 't': element 0 runs past the tensor's bytes"),
        (texts((1, b"ab")), errors.InvalidBinaryError, "input 't': bytes are left behind the last element"),
        (texts((0, b""), shape=[2]), errors.InvalidBinaryError,
         "unexpected size for input 't': shape [2] of BYTES takes at least 8 bytes, got 4"),
        (texts((1, b"\xff")), errors.InvalidValueError, "input 't', element 0: not valid UTF-8"),
    ],
)
def test_lying_lengths_of_texts(sent, kind, message):
    assert refusal(Signature([Tensor("t", "BYTES", (-1,))], []), 0, *sent)[:2] == (kind, message)


def test_binary_values_that_a_datatype_or_column_does_not_have():
    flags = Signature([Tensor("f", "BOOL", (-1,))], [])
    head = b'{"inputs":[{"name":"f","shape":[3],"datatype":"BOOL","parameters":{"binary_data_size":3}}]}'
    assert decode(flags, 0, head + b"\1\0\1", len(head))["arrays"]["f"].tolist() == [True, False, True]
    assert refusal(flags, 0, head + b"\1\2\1", len(head))[1] == "input 'f', element 1: a BOOL byte must be 0 or 1"
    amount = Signature([Tensor("amount", "FP64", (-1, 1), False, True)], [])
    head = b'{"inputs":[{"name":"amount","shape":[1],"datatype":"FP64","parameters":{"binary_data_size":8}}]}'
    assert "NaN (a missing value) is not taken" in refusal(amount, 0, head + struct.pack("<d", np.nan), len(head))[1]


def test_raw_binary_requests():
    flexible = Signature([Tensor("s", "FP64", (-1, -1))], [])
    assert decode(flexible, 0, bytes(24), 0)["arrays"]["s"].shape == (1, 3)
    assert refusal(flexible, 0, bytes(23), 0)[0] is errors.InvalidBinaryError
    text = Signature([Tensor("t", "BYTES", (-1, 1))], [])
    assert decode(text, 0, "né".encode(), 0)["arrays"]["t"].tolist() == [["né"]]
    assert refusal(MODEL, 0, bytes(8), 0)[1].startswith("a raw binary request needs a model with one input")


BAD_RECORDS = [
    (COLUMNS, '{"id":"a"}', errors.InvalidInputError, "the body lacks 'records'", None),
    (COLUMNS, '{"records":{}}', errors.InvalidRecordError, "'records' must be an array of objects", "$.records"),
    (COLUMNS, '{"records":[{"n":1},5]}', errors.InvalidRecordError, "record 1 is not an object", "$.records[1]"),
    (COLUMNS, '{"records":[{"n":1},{"age":5}]}', errors.InvalidRecordError, "record 1 lacks the field 'n'",
     "$.records[1].n"),
    (COLUMNS, '{"records":[{"n":1,"agee":5}]}', errors.InvalidRecordError,
     "record 0 has the unknown field 'agee', did you mean 'age'?; the model takes 'age', 'job', 'n'", "$.records[0]"),
    (COLUMNS, '{"records":[{"n":1,"age":"39"}]}', errors.InvalidRecordError,
     'record 0, field \'age\': FP64 takes a number, got "39"', "$.records[0].age"),
    (COLUMNS, '{"records":[{"n":1,"job":5}]}', errors.InvalidRecordError,
     "record 0, field 'job': BYTES takes a string, got 5", "$.records[0].job"),
    (COLUMNS, '{"records":[{"n":null}]}', errors.InvalidRecordError,
     "record 0, field 'n': INT64 takes a number, got null", "$.records[0].n"),
    (COLUMNS, '{"records":[{"n":1},{"n":2.5}]}', errors.InvalidRecordError,
     "record 1, field 'n': INT64 takes whole numbers, got 2.5", "$.records[1].n"),
    (COLUMNS, '{"records":[{"n":[1]}]}', errors.InvalidRecordError,
     "record 0, field 'n': INT64 takes a number, got an array", "$.records[0].n"),
    (MODEL, '{"records":[{"x":[1,true],"n":1}]}', errors.InvalidRecordError,
     "record 0, field 'x': FP32 takes a number, got true", "$.records[0].x[1]"),
    (MODEL, '{"records":[{"x":[1,2,3],"n":1}]}', errors.InvalidRecordError,
     "record 0, field 'x' must be an array of shape [2]", "$.records[0].x"),
    (MODEL, '{"records":[{"x":1,"n":1}]}', errors.InvalidRecordError,
     "record 0, field 'x' must be an array of shape [2]", "$.records[0].x"),
    (MODEL, '{"records":[{"x":[1,2],"n":1},{"x":[1,2],"n":256}]}', errors.InvalidRecordError,
     "record 1, field 'n': 256 is out of range for UINT8", "$.records[1].n"),
    (WHOLE, '{"records":[]}', errors.InvalidRecordError, "the model takes one record a request, the body has 0",
     "$.records"),
    (WHOLE, '{"records":[{"m":[[1,2],[3]]}]}', errors.InvalidRecordError,
     "record 0, field 'm' must be an array of shape [2, 2]", "$.records[0].m"),
    (FLEXIBLE, '{"records":[]}', errors.InvalidRecordError,
     "without a record the model's variable dimensions are not known", "$.records"),
    (FLEXIBLE, '{"records":[{"s":[1,2]},{"s":[1]}]}', errors.InvalidRecordError,
     "record 1, field 's' must be an array of shape [2]", "$.records[1].s"),
]


@pytest.mark.parametrize(("signature", "body", "kind", "message", "at"), BAD_RECORDS)
def test_bad_records(signature, body, kind, message, at):
    assert refusal(signature, 1, body.encode()) == (kind, message, at)


def test_records_without_required_fields_claim_no_memory():
    body = '{"records":[{"n":1},' + "{}," * 200_000 + '{"n":1}]}'
    assert refusal(COLUMNS, 1, body.encode())[1:] == ("record 1 lacks the field 'n'", "$.records[1].n")


def test_records_carry_no_binary_tensors():
    assert refusal(COLUMNS, 1, b'{"records":[]}', 5)[0] is errors.InvalidBinaryError


@pytest.mark.parametrize("data", [[[[1, 2], [3, 4]]], [[1, 2], [3, 4]], [1, 2, 3, 4]])
def test_a_model_without_batching_takes_one_record(data):
    decoded = decode(WHOLE, 1, json.dumps({"records": [{"m": data}]}).encode())
    assert decoded["arrays"]["m"].tolist() == [[[1, 2], [3, 4]]]


def test_zero_rows():
    decoded = decode(MODEL, 0, request({**X, "shape": [0, 2], "data": []}, {**N, "shape": [0, 1], "data": []}))
    assert decoded["rows"] == 0
    assert decoded["arrays"]["x"].shape == (0, 2)
    assert decode(COLUMNS, 1, b'{"records":[]}')["arrays"]["age"].shape == (0, 1)


def test_rows_that_hold_nothing_are_bounded():
    hollow = {"name": "s", "shape": [4096, 0], "datatype": "FP64", "data": []}
    assert decode(FLEXIBLE, 0, json.dumps({"inputs": [hollow]}).encode())["rows"] == 4096
    hollow["shape"] = [4097, 0]
    assert "at most 4096 rows may be empty" in refusal(FLEXIBLE, 0, json.dumps({"inputs": [hollow]}).encode())[1]


def test_columns_take_one_dimension_or_two_and_null_for_missing():
    tensors = [
        {"name": "age", "shape": [2], "datatype": "FP64", "data": [1.5, None]},
        {"name": "job", "shape": [2, 1], "datatype": "BYTES", "data": [[None], [""]]},
        {"name": "n", "shape": [2, 1], "datatype": "INT64", "data": [3, 4]},
    ]
    arrays = decode(COLUMNS, 0, json.dumps({"inputs": tensors}).encode())["arrays"]
    np.testing.assert_array_equal(arrays["age"], [[1.5], [np.nan]])
    assert arrays["job"].tolist() == [[None], [""]]


def test_values_of_every_datatype_that_json_carries():
    for datatype, value in [("BOOL", True), ("UINT16", 65535), ("UINT32", 2**32 - 1), ("INT8", -128), ("INT16", -32768),
                            ("INT32", -(2**31)), ("FP64", 0.1), ("BYTES", "\0é\U0001f600")]:
        signature = Signature([Tensor("v", datatype, (-1,))], [])
        body = json.dumps({"inputs": [{"name": "v", "shape": [1], "datatype": datatype, "data": [value]}]}).encode()
        assert decode(signature, 0, body)["arrays"]["v"].tolist() == [value]


def test_half_floats_are_binary_only():
    signature = Signature([Tensor("h", "FP16", (-1,))], [])
    body = b'{"inputs":[{"name":"h","shape":[1],"datatype":"FP16","data":[1]}]}'
    assert refusal(signature, 0, body)[1] == (
        "input 'h': JSON does not carry FP16; send it as binary data ('binary_data_size')")


IGNORING = Signature(COLUMNS.inputs, [], ignored=["customer", "né"])


def test_fields_that_nothing_reads_are_passed_over_in_any_place():
    records = '[{"customer":{"a":[1]},"n":1},{"n":2,"n\\u00e9":null,"age":3,"customer":"x"},{"age":4,"n":3}]'
    decoded = decode(IGNORING, 1, f'{{"records":{records}}}'.encode())
    assert decoded["arrays"]["n"].tolist() == [[1], [2], [3]]
    np.testing.assert_array_equal(decoded["arrays"]["age"], [[np.nan], [3.0], [4.0]])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"n":1,"customer":1,"customer":1}', "twice"),
        ('{"n":1,"customer":[1,]}', "JSON"),
        ('{"n":1,"client":1}', "unknown field"),
        ('{"customer":1}', "'n'"),
    ],
)
def test_fields_that_nothing_reads_are_json_all_the_same(record, message):
    with pytest.raises(errors.InvalidRequestError, match=message):
        decode(IGNORING, 1, f'{{"records":[{record}]}}'.encode())
