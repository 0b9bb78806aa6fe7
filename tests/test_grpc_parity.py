"""gRPC against HTTP: the same request, right or wrong, has the same outputs, or an error of the same code."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import onnx_models
import pytest
from conftest import ServerProcess

grpc = pytest.importorskip("grpc", reason="pip install 'fastinfer[grpc]'")

from fastinfer.conformance.grpc import CONTENTS, packed_texts  # noqa: E402
from fastinfer.conformance.models import DTYPES  # noqa: E402
from fastinfer.protocols.grpc_messages import message  # noqa: E402

INFER = "/inference.GRPCInferenceService/ModelInfer"
CASES = 400
BINARY_ONLY = ("FP16", "BF16")
MODELS: dict[str, list[tuple[str, str, list[int]]]] = {
    "affine": [("x", "FP32", [4])],
    "two": [("a", "FP32", [2]), ("b", "FP32", [2])],
    "fixed": [("x", "FP32", [3])],
    "words": [("x", "BYTES", [1])],
    **{f"identity_{kind.lower()}": [("x", kind, [2])] for kind in onnx_models.ONNX_TYPES if kind != "BF16"},
}


def values(rng: random.Random, kind: str, count: int) -> list[Any]:
    if kind == "BYTES":
        return [rng.choice([b"", b"a", "é😀".encode(), b"longer text", b"\0"]) for _ in range(count)]
    if kind == "BOOL":
        return [rng.random() < 0.5 for _ in range(count)]
    if kind.startswith("FP"):
        return [rng.choice([0.0, 1.5, -2.25, 1024.0, rng.randrange(-99, 99) / 4]) for _ in range(count)]
    info = np.iinfo(DTYPES[kind])
    return [rng.choice([0, 1, int(info.min), int(info.max), rng.randrange(100)]) for _ in range(count)]


def asked(rng: random.Random) -> dict[str, Any]:
    """A request for any model, in half of the cases spoilt somewhere."""
    model = rng.choice(list(MODELS))
    rows = 2 if model == "fixed" else rng.choice([0, 1, 3])
    inputs = []
    for name, kind, inner in MODELS[model]:
        shape = [rows, *inner]
        inputs.append({"name": name, "kind": kind, "told": kind, "shape": shape,
                       "values": values(rng, kind, int(np.prod(shape)))})
    request: dict[str, Any] = {"model": model, "version": "", "inputs": inputs, "outputs": [], "parameters": {}}
    spoil, one = rng.randrange(24), inputs[-1]
    if spoil == 0:
        one["values"] += values(rng, one["kind"], 1)
    elif spoil == 1:
        one["values"] = one["values"][1:] or values(rng, one["kind"], 1)
    elif spoil == 2:
        one["shape"] = rng.choice([[-1, 4], [1 << 62, 4], [1 << 32, 1 << 32], [], [0], [1 << 40, 0], [1] * 9])
    elif spoil == 3:
        one["name"] = rng.choice(["X", "nobody", "é"])
    elif spoil == 4:
        inputs.append(dict(one))
    elif spoil == 5:
        inputs.pop()
    elif spoil == 6:
        one["told"] = rng.choice(["fp32", "STRING", "FP64", "INT8", "BYTES"])
    elif spoil == 7:
        request["outputs"] = rng.choice([["nobody"], ["y", "y"], ["difference", "total"], ["y"]])
    elif spoil == 8:
        request["parameters"] = rng.choice([{"priority": -1}, {"priority": "1"}, {"timeout": "soon"}, {"timeout": True},
                                            {"own": 1.5, "other": "text"}, {f"p{i}": 1 for i in range(70)}])
    elif spoil == 9:
        request["version"] = rng.choice(["1", "9", "x", "-1"])
    elif spoil == 10:
        request["model"] = "nobody"
    elif spoil == 11:
        one["shape"] = one["shape"][1:]
    return request


def packed(tensor: dict[str, Any]) -> bytes:
    if tensor["kind"] == "BYTES":
        return packed_texts(tensor["values"])
    return np.array(tensor["values"], dtype=DTYPES[tensor["kind"]]).tobytes()


def by_grpc(channel: Any, request: dict[str, Any], raw: bool) -> Any:
    sent: Any = message("ModelInferRequest")(model_name=request["model"], model_version=request["version"])
    for name, value in request["parameters"].items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(sent.parameters[name], kind, value)
    for each in request["inputs"]:
        tensor = sent.inputs.add(name=each["name"], datatype=each["told"], shape=each["shape"])
        if raw:
            sent.raw_input_contents.append(packed(each))
        else:
            getattr(tensor.contents, CONTENTS[each["kind"]]).extend(each["values"])
    for name in request["outputs"]:
        sent.outputs.add(name=name)
    try:
        data = channel.unary_unary(INFER)(sent.SerializeToString(), timeout=30)
    except grpc.RpcError as error:
        return dict(error.trailing_metadata())["fastinfer-code"]
    answer: Any = message("ModelInferResponse").FromString(data)
    outputs = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return [(each.name, each.datatype, list(each.shape), part) for each, part in outputs]


def by_http(client: httpx.Client, request: dict[str, Any], raw: bool) -> Any:
    inputs, blob = [], b""
    for each in request["inputs"]:
        tensor = {"name": each["name"], "datatype": each["told"], "shape": each["shape"]}
        if raw:
            tensor["parameters"] = {"binary_data_size": len(packed(each))}
            blob += packed(each)
        else:
            tensor["data"] = [text.decode() if isinstance(text, bytes) else text for text in each["values"]]
        inputs.append(tensor)
    body = {"inputs": inputs, "parameters": {**request["parameters"], "binary_data_output": True}}
    if request["outputs"]:
        body["outputs"] = [{"name": name} for name in request["outputs"]]
    text = json.dumps(body).encode()
    version = f"/versions/{request['version']}" if request["version"] else ""
    headers = {"Inference-Header-Content-Length": str(len(text))} if raw else {}
    answer = client.post(f"/v2/models/{request['model']}{version}/infer", content=text + blob, headers=headers)
    if answer.status_code != 200:
        return answer.json()["code"]
    size = int(answer.headers["inference-header-content-length"])
    data, outputs = answer.content[size:], []
    for each in json.loads(answer.content[:size])["outputs"]:
        length = each["parameters"]["binary_data_size"]
        outputs.append((each["name"], each["datatype"], each["shape"], data[:length]))
        data = data[length:]
    return outputs


@pytest.fixture(scope="module")
def channel(grpc_server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{grpc_server.grpc_port}") as channel:
        yield channel


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_a_request_has_the_same_answer_over_both(grpc_server: ServerProcess, channel: Any, raw: bool) -> None:
    rng = random.Random(8)
    answered = 0
    with grpc_server.client() as client:
        for _ in range(CASES):
            request = asked(rng)
            if not raw and any(each["kind"] in BINARY_ONLY for each in request["inputs"]):
                continue
            over_grpc, over_http = by_grpc(channel, request, raw), by_http(client, request, raw)
            assert over_grpc == over_http, request
            answered += isinstance(over_grpc, list)
    assert answered > CASES // 4
    assert "Traceback" not in grpc_server.log()
