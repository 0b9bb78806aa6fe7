"""Any body: the arrays of the plain twin, or an error where the twin refuses; never anything else."""

import json

import numpy as np
import pytest
import reference
import strategies
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastinfer._core import Signature, Tensor, decode
from fastinfer.errors import InvalidRequestError

SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
TENSOR = Signature([Tensor("x", "FP32", (-1, 4))], [Tensor("y", "FP32", (-1, 1))])
COLUMN = Signature([Tensor("age", "FP64", (-1, 1), True, True), Tensor("job", "BYTES", (-1, 1), True, True)], [])


def outcome(decoder, refusal, signature, kind, body, header):
    """What a decoder makes of a body: its answer, or that it refuses."""
    try:
        decoded = decoder(signature, kind, body, header)
    except refusal:
        return None
    arrays = decoded.pop("arrays")
    return decoded, {name: content(array) for name, array in arrays.items()}


def content(array):
    values = array.tolist() if array.dtype == object else array.tobytes()
    return array.shape, array.dtype, values


def same(signature, kind, body, header=-1):
    expected = outcome(reference.decode, reference.Refused, signature, kind, body, header)
    assert outcome(decode, InvalidRequestError, signature, kind, body, header) == expected
    return expected


@SETTINGS
@given(st.data())
def test_infer_requests(data):
    signature = data.draw(strategies.signatures())
    body, header = data.draw(strategies.infer_bodies(signature))
    wanted = [tensor.datatype for tensor in signature.outputs]
    assert same(signature, 0, body, header) or {"FP16", "BF16"} & set(wanted)


@SETTINGS
@given(st.data())
def test_records(data):
    signature = data.draw(strategies.signatures())
    same(signature, 1, data.draw(strategies.record_bodies(signature)))


@SETTINGS
@given(st.data())
def test_mutated_infer_requests(data):
    signature = data.draw(strategies.signatures())
    body, header = data.draw(strategies.infer_bodies(signature))
    header = data.draw(st.sampled_from([header, header, header, header + 1, 0, -1, len(body) + 1]))
    same(signature, 0, data.draw(strategies.mutated(body)), header)


@SETTINGS
@given(st.data())
def test_mutated_records(data):
    signature = data.draw(strategies.signatures())
    same(signature, 1, data.draw(strategies.mutated(data.draw(strategies.record_bodies(signature)))))


@SETTINGS
@given(st.binary(max_size=80), st.integers(0, 1), st.integers(-1, 90))
@example(b"\xef\xbb\xbf{}", 0, -1)
@example(b"", 0, 0)
def test_any_bytes(body, kind, header):
    same(TENSOR, kind, body, header)
    same(COLUMN, kind, body, header)


@SETTINGS
@given(st.text('{}[],:"\\u0123dD89eE+-.tfnrulasbx \n', max_size=60))
def test_almost_json(text):
    same(COLUMN, 1, f'{{"records":[{{"age":{text}}}]}}'.encode())
    same(TENSOR, 0, f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","data":{text}}}]}}'.encode())
    same(COLUMN, 1, f'{{"records":[],"extra":{text}}}'.encode())


@pytest.mark.parametrize("kind", [0, 1])
def test_every_prefix_is_refused(kind):
    body = [
        b'{"id":"a","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1.5,-2e3,3,0.4]}],"parameters":{"a":true}}',
        b'{"records":[{"age":12.5,"job":"cl\\u00e9rk"},{"job":null}],"parameters":{"timeout":12}}',
    ][kind]
    signature = (TENSOR, COLUMN)[kind]
    assert same(signature, kind, body)
    for size in range(len(body)):
        assert same(signature, kind, body[:size]) is None


def test_a_refused_request_leaves_nothing_behind():
    good = b'{"records":[{"age":1,"job":"a"}]}'
    for bad in (b'{"records":[{"age":1,"job":"' + b"x" * 9000 + b'"},{"age":"1"}]}', b'{"records":[{"age"', b""):
        with pytest.raises(InvalidRequestError):
            decode(COLUMN, 1, bad)
        assert decode(COLUMN, 1, good)["arrays"]["job"].tolist() == [["a"]]


def test_large_arrays_are_read_whole():
    values = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    tensor = {"name": "x", "shape": [50, 4], "datatype": "FP32", "data": values.tolist()}
    body = json.dumps({"inputs": [tensor]})
    np.testing.assert_array_equal(decode(TENSOR, 0, body.encode())["arrays"]["x"], values)
