"""Answers: JSON, the binary extension, predictions."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer import errors
from fastinfer._core import DATATYPES, DTYPES, Encoder, Signature, Task, Tensor, encode

SIGNATURE = Signature(
    [Tensor("x", "FP32", (-1, 4))],
    [Tensor("label", "BYTES", (-1,)), Tensor("probabilities", "FP32", (-1, 2)), Tensor("value", "INT64", (-1, 1))],
)
OUTPUTS = [
    np.array(["a€", "b\n"], dtype=object),
    np.array([[0.1, 0.9], [np.nan, 1]], dtype=np.float32),
    np.array([[1], [-5]]),
]
INFER = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
RECORDS = {"records": [{"x": [1, 2, 3, 4]}]}


def body(request, **members):
    return json.dumps({**request, **members}).encode()


def test_infer_answers_all_outputs_flat_in_order():
    answer, header = encode(Encoder("m", "1", SIGNATURE), 0, body(INFER, id="é"), OUTPUTS)
    assert header == -1
    assert answer.decode().startswith('{"model_name":"m","model_version":"1","id":"\\u00e9","outputs":[')
    assert json.loads(answer) == {
        "model_name": "m",
        "model_version": "1",
        "id": "é",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["a€", "b\n"]},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 0.9, None, 1.0]},
            {"name": "value", "datatype": "INT64", "shape": [2, 1], "data": [1, -5]},
        ],
    }


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_the_bytes_of_an_answer_of_any_number_of_outputs(count):
    signature = Signature(SIGNATURE.inputs, [Tensor(f'y"{k}', "FP32", (-1, 1)) for k in range(count)])
    arrays = [np.array([[k + 0.5]], np.float32) for k in range(count)]
    written = ",".join(f'{{"name":"y\\"{k}","datatype":"FP32","shape":[1,1],"data":[{k}.5]}}' for k in range(count))
    encoder = Encoder("é", "2", signature)
    for request, told in ((body(INFER), ""), (body(INFER, id="a"), ',"id":"a"')):
        answer = f'{{"model_name":"é","model_version":"2"{told},"outputs":[{written}]}}'
        assert encode(encoder, 0, request, arrays) == (answer.encode(), -1)
    last = f'y"{count - 1}'
    answer, _ = encode(encoder, 0, body(INFER, outputs=[{"name": last}]), arrays)
    assert json.loads(answer)["outputs"][0]["name"] == last
    answer, _ = encode(encoder, 1, body(RECORDS), arrays)
    assert json.loads(answer)["predictions"] == [{f'y"{k}': k + 0.5 for k in range(count)}]


def test_requested_outputs_in_their_order_and_form():
    wanted = [{"name": "value"}, {"name": "label", "parameters": {"binary_data": True}}]
    answer, header = encode(Encoder("m", "1", SIGNATURE), 0, body(INFER, outputs=wanted), OUTPUTS)
    assert json.loads(answer[:header])["outputs"] == [
        {"name": "value", "datatype": "INT64", "shape": [2, 1], "data": [1, -5]},
        {"name": "label", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 14}},
    ]
    assert answer[header:] == b"\x04\0\0\0a\xe2\x82\xac\x02\0\0\0b\n"


def test_a_range_of_rows():
    parameters = {"binary_data_output": True}
    answer, header = encode(Encoder("m", "1", SIGNATURE), 0, body(INFER, parameters=parameters), OUTPUTS, 1, 1)
    shapes = [output["shape"] for output in json.loads(answer[:header])["outputs"]]
    assert shapes == [[1], [1, 2], [1, 1]]
    assert answer[header:] == b"\x02\0\0\0b\n" + OUTPUTS[1][1:].tobytes() + OUTPUTS[2][1:].tobytes()


def test_predictions_of_a_classifier():
    task = Task("classifier", "label", "probabilities", ("bad", 'go"od'))
    answer, header = encode(Encoder("m", "1", SIGNATURE, task), 1, body(RECORDS), OUTPUTS)
    assert header == -1
    assert json.loads(answer)["predictions"] == [
        {"label": "a€", "probabilities": {"bad": 0.1, 'go"od': 0.9}},
        {"label": "b\n", "probabilities": {"bad": None, 'go"od': 1.0}},
    ]


def test_predictions_of_a_regressor_and_without_a_task():
    answer, _ = encode(Encoder("m", "1", SIGNATURE, Task("regressor", value="value")), 1, body(RECORDS), OUTPUTS)
    assert json.loads(answer)["predictions"] == [{"value": 1}, {"value": -5}]
    answer, _ = encode(Encoder("m", "1", SIGNATURE), 1, body(RECORDS), OUTPUTS, 1, 1)
    assert json.loads(answer)["predictions"] == [{"label": "b\n", "probabilities": [None, 1.0], "value": -5}]


def test_a_task_that_names_no_output_is_refused():
    with pytest.raises(errors.ConfigurationError, match="'score' is not among the model's outputs"):
        Encoder("m", "1", SIGNATURE, Task("regressor", value="score"))


# ---- every datatype ----------------------------------------------------------------------------------------------
ROWS = Signature([Tensor("x", "FP32", (-1, 1))], [])
ONE = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0]}]}


def elements(datatype, dtype):
    if datatype == "BYTES":
        return st.text(st.characters(codec="utf-8"), max_size=6)
    if datatype == "BOOL":
        return st.booleans()
    if datatype.startswith("FP"):
        return st.floats(width=8 * np.dtype(dtype).itemsize)
    bounds = np.iinfo(dtype)
    return st.integers(int(bounds.min), int(bounds.max))


@st.composite
def outputs(draw):
    """An output of any datatype and its array, of 1 to 3 dimensions."""
    datatype, dtype = draw(st.sampled_from(list(zip(DATATYPES, DTYPES, strict=True))))
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    count = int(np.prod(shape))
    values = draw(st.lists(elements(datatype, dtype), min_size=count, max_size=count))
    array = np.empty(count, dtype)
    array[:] = values
    return Tensor("y", datatype, (-1,) * len(shape)), array.reshape(shape)


def blob(array):
    """The binary extension's bytes."""
    if array.dtype != object:
        return array.tobytes()
    texts = [text.encode() for text in array.reshape(-1)]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def plain(value):
    """A value as JSON has it: what JSON does not have is null."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(value, dtype):
    """Numbers of an answer at the output's own type."""
    if isinstance(value, list):
        return [read(item, dtype) for item in value]
    return value if value is None or dtype.hasobject else np.dtype(dtype).type(value).item()


@settings(deadline=None, max_examples=200)
@given(outputs(), st.data())
def test_any_output(output, data):
    tensor, array = output
    start = data.draw(st.integers(0, len(array)))
    rows = data.draw(st.integers(0, len(array) - start))
    part = array[start:start + rows]
    encoder = Encoder("m", "1", Signature(ROWS.inputs, [tensor]))
    answer, header = encode(encoder, 0, body(ONE, parameters={"binary_data_output": True}), [array], start, rows)
    (described,) = json.loads(answer[:header])["outputs"]
    assert described == {"name": "y", "datatype": tensor.datatype, "shape": list(part.shape),
                         "parameters": {"binary_data_size": len(answer) - header}}
    assert answer[header:] == blob(part)
    if tensor.datatype in ("FP16", "BF16"):
        return
    answer, header = encode(encoder, 0, body(ONE), [array], start, rows)
    (described,) = json.loads(answer)["outputs"]
    assert header == -1
    assert described["shape"] == list(part.shape)
    assert read(described["data"], array.dtype) == plain(part.reshape(-1).tolist())
    answer, _ = encode(encoder, 1, b'{"records":[{"x":0}]}', [array], start, rows)
    assert read([row["y"] for row in json.loads(answer)["predictions"]], array.dtype) == plain(part.tolist())


def test_large_outputs():
    values = np.random.default_rng(2).normal(size=(300, 20)).astype(np.float32)
    encoder = Encoder("m", "1", Signature(ROWS.inputs, [Tensor("y", "FP32", (-1, 20))]))
    answer, _ = encode(encoder, 0, body(ONE), [values])
    np.testing.assert_array_equal(np.float32(json.loads(answer)["outputs"][0]["data"]), values.reshape(-1))
    answer, _ = encode(encoder, 1, b'{"records":[{"x":0}]}', [values])
    rows = [row["y"] for row in json.loads(answer)["predictions"]]
    np.testing.assert_array_equal(np.float32(rows), values)


@pytest.mark.parametrize(
    ("tensor", "array", "error", "message"),
    [
        (Tensor("y", "BYTES", (-1,)), np.array([b"ok", b"\xff"], object), errors.InvalidOutputError,
         r"element 1 is not UTF-8.*'binary_data': true"),
        (Tensor("y", "BYTES", (-1,)), np.array([5], object), errors.RuntimeFailedError, "no text"),
        (Tensor("y", "BYTES", (-1,)), np.array(["\ud800"], object), errors.InvalidOutputError, "lone surrogate"),
        (Tensor("y", "FP32", (-1,)), np.zeros(2), errors.RuntimeFailedError, "is not the FP32 array"),
        (Tensor("y", "FP64", (-1,)), np.zeros(4)[::2], errors.RuntimeFailedError, "is not the FP64 array"),
        (Tensor("y", "FP64", (-1,)), np.array(1.0), errors.RuntimeFailedError, r"has 0 rows, 1 rows are needed"),
    ],
)
def test_outputs_that_cannot_be_answered(tensor, array, error, message):
    encoder = Encoder("m", "1", Signature(ROWS.inputs, [tensor]))
    with pytest.raises(error, match=message):
        encode(encoder, 0, body(ONE), [array], 0, len(array) if array.ndim else 1)


def test_too_few_rows_are_never_read_past():
    encoder = Encoder("m", "1", Signature(ROWS.inputs, [Tensor("y", "FP32", (-1,))]))
    for start, rows in [(0, 3), (2, 1), (3, 0), (-1, 1), (5, -1)]:
        with pytest.raises(errors.RuntimeFailedError, match="rows are needed"):
            encode(encoder, 0, body(ONE), [np.zeros(2, np.float32)], start, rows)


def test_bytes_that_are_not_utf8_go_out_as_binary():
    encoder = Encoder("m", "1", Signature(ROWS.inputs, [Tensor("y", "BYTES", (-1,))]))
    answer, header = encode(encoder, 0, body(ONE, parameters={"binary_data_output": True}),
                            [np.array([b"\xff\0"], object)])
    assert answer[header:] == b"\x02\0\0\0\xff\0"


def test_half_floats_are_not_answered_to_records():
    encoder = Encoder("m", "1", Signature(ROWS.inputs, [Tensor("y", "FP16", (-1,))]))
    with pytest.raises(errors.InvalidOutputError, match="JSON does not carry FP16"):
        encode(encoder, 1, b'{"records":[{"x":0}]}', [np.zeros(1, np.float16)])


def test_a_model_without_batching_answers_whole_outputs():
    encoder = Encoder("m", "1", Signature([Tensor("x", "FP32", (1,))], [Tensor("y", "INT64", (2, 2))], batched=False))
    array = np.arange(4).reshape(2, 2)
    request = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}).encode()
    assert json.loads(encode(encoder, 0, request, [array])[0])["outputs"][0]["data"] == [0, 1, 2, 3]
    answer, _ = encode(encoder, 1, b'{"records":[{"x":0}]}', [array])
    assert json.loads(answer)["predictions"] == [{"y": [[0, 1], [2, 3]]}]


def test_probabilities_that_do_not_fit_the_classes_fail():
    encoder = Encoder("m", "1", SIGNATURE, Task("classifier", "label", "probabilities", ("a", "b", "c")))
    with pytest.raises(errors.RuntimeFailedError, match="has 2 values a row, 3 expected"):
        encode(encoder, 1, body(RECORDS), OUTPUTS)
