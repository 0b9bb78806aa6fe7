"""Answers: JSON, the binary extension, predictions."""

import json

import numpy as np
import pytest

from fastinfer import errors
from fastinfer._core import Encoder, Signature, Task, Tensor, encode

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
