"""The classification extension: an output's highest values as texts of value, place and label."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastinfer._core import Encoder, Signature, Task, Tensor, encode

BODY = b'{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":%d,"binary_data":%s}}]}'


def ask(outputs: np.ndarray[Any, Any], datatype: str, most: int, binary: bool = False, **options: Any) -> Any:
    """What an output of so many rows is answered with."""
    signature = Signature([], [Tensor("y", datatype, (-1, *outputs.shape[1:]))])
    encoder = Encoder("m", "1", signature, options.get("task"))
    body = BODY % (most, b"true" if binary else b"false")
    answer, size = encode(encoder, 0, body, [outputs], 0, len(outputs))
    document = json.loads(answer[:size] if binary else answer)
    return document["outputs"][0], answer[size:] if binary else b""


def plain(row: np.ndarray[Any, Any], most: int, labels: tuple[str, ...] = ()) -> list[str]:
    """The same by hand."""
    flat = row.ravel().tolist()
    places = sorted(range(len(flat)), key=lambda k: (flat[k] != flat[k], -flat[k] if flat[k] == flat[k] else 0, k))
    said = [f"{flat[k]:f}" if isinstance(flat[k], float) else str(flat[k]) for k in places[:most]]
    tails = [f":{labels[k]}" if labels else "" for k in places[:most]]
    return [f"{value}:{k}{tail}" for value, k, tail in zip(said, places, tails, strict=False)]


SIZES = ("8", "16", "32", "64")
ARRAYS = st.sampled_from(["float32", "float64", *(f"int{size}" for size in SIZES), *(f"uint{size}" for size in SIZES)])


@settings(max_examples=200, deadline=None)
@given(ARRAYS.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5))),
       st.integers(1, 9))  # fmt: skip
def test_beside_a_plain_sort(array: np.ndarray[Any, Any], most: int) -> None:
    datatype = {"float32": "FP32", "float64": "FP64"}.get(array.dtype.name, array.dtype.name.upper())
    row = array[0].size
    output, _ = ask(array, datatype, most)
    assert (output["datatype"], output["shape"]) == ("BYTES", [len(array), min(most, row)])
    expected = [text.replace("-nan", "nan") for each in array for text in plain(each, most)]
    assert [text.replace("-nan", "nan") for text in output["data"]] == expected


def test_labels_and_binary_data() -> None:
    task = Task("classifier", "y", "y", ("no", 'ye"s', "é"), None)
    array = np.float32([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])
    output, _ = ask(array, "FP32", 2, task=task)
    assert output["data"] == ['0.500000:1:ye"s', "0.250000:0:no", "0.700000:2:é", '0.200000:1:ye"s']
    output, data = ask(array, "FP32", 1, binary=True, task=task)
    texts = [b'0.500000:1:ye"s', "0.700000:2:é".encode()]
    assert data == b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    assert output["parameters"] == {"binary_data_size": len(data)}


def test_the_largest_and_missing_values() -> None:
    array = np.array([[np.nan, 1.7e308, -np.inf, np.inf]])
    output, _ = ask(array, "FP64", 4)
    assert output["data"] == ["inf:3", f"{1.7e308:f}:1", "-inf:2", "nan:0"]


def test_no_rows() -> None:
    output, _ = ask(np.empty((0, 3), np.float32), "FP32", 2)
    assert (output["shape"], output["data"]) == ([0, 2], [])


@pytest.mark.parametrize("lane", ["server", "standard_server"])
def test_a_model_with_known_classes(request: pytest.FixtureRequest, lane: str) -> None:
    server = request.getfixturevalue(lane)
    asked = [{"name": "probabilities", "parameters": {"classification": 1}}, {"name": "label"}]
    inputs = [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [1, 0, 0, 0, 0, 0, 5, 0]}]
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        answer = client.post("/v2/models/classifier/infer", json={"inputs": inputs, "outputs": asked})
        plain = client.post("/v2/models/classifier/infer", json={"inputs": inputs}).json()["outputs"]
    classes, label = answer.json()["outputs"]
    places = np.array(plain[1]["data"]).reshape(2, 3).argmax(1).tolist()
    assert [text.split(":")[1:] for text in classes["data"]] == [[str(k), str(k)] for k in places]
    assert label == plain[0]
