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
