"""The real Triton for the tests, and its models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import real_triton
from real_triton import RealTriton

MODEL = '''\
import json, os, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        def given(name):
            return pb.get_input_tensor_by_name(request, name).as_numpy()
        try:
            outputs = self.outputs(given, request)
        except pb.TritonModelException as error:
            return pb.InferenceResponse([], pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        except ArithmeticError as error:
            return pb.InferenceResponse([], pb.TritonError(str(error)))
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in outputs.items()])

    def outputs(self, given, request):
'''
# y = 2 x + 1, a row at a time; x[0] = 400 is refused, 500 fails, 9xx takes xx hundredths of a second.
LINEAR = '''\
        x = given("x")
        for first in x[:, 0]:
            if first == 400:
                raise pb.TritonModelException("the first value is 400")
            if first == 500:
                raise ArithmeticError("the first value is 500")
            if 900 <= first < 1000:
                time.sleep((first - 900) / 100)
        return {"y": 2 * x + 1}
'''
TOLD = '''\
        return {"id": np.array([[request.request_id()]] * len(given("x")), dtype=object),
                "timeout": np.full((len(given("x")), 1), request.timeout(), dtype=np.int64),
                "rows": np.full((len(given("x")), 1), len(given("x")), dtype=np.int64)}
'''
# What Triton makes of the header fields that it lets through, a row at a time.
HEADS = '''\
        return {"told": np.array([[request.parameters()]] * len(given("x")), dtype=object), "y": 2 * given("x") + 1}
'''
SAME = '''\
        return {"out" + each["name"][2:]: given(each["name"]) for each in self.config["input"]}
'''
TYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
         "STRING")
BATCHING = "dynamic_batching { max_queue_delay_microseconds: %d }\n"


def config(name: str, inputs: str, outputs: str, most: int = 16, more: str = "") -> str:
    return (f'name: "{name}"\nbackend: "python"\nmax_batch_size: {most}\ninput [{inputs}]\noutput [{outputs}]\n'
            f"instance_group [{{ kind: KIND_CPU, count: 1 }}]\n{more}")


def tensor(name: str, kind: str, dims: str) -> str:
    return f'{{ name: "{name}", data_type: TYPE_{kind}, dims: [{dims}] }}'


def write(folder: Path, name: str, configuration: str, body: str, versions: tuple[int, ...] = (1,)) -> None:
    for version in versions:
        (folder / name / str(version)).mkdir(parents=True)
        (folder / name / str(version) / "model.py").write_text(MODEL + body)
    (folder / name / "config.pbtxt").write_text(configuration)


def repository(folder: Path) -> Path:
    """A repository with every kind of model that the tests ask."""
    x, y = tensor("x", "FP32", "4"), tensor("y", "FP32", "4")
    everything = "version_policy { all { } }\n"
    write(folder, "linear", config("linear", x, y, more=everything), LINEAR, (1, 3))
    told = [tensor("id", "STRING", "1"), tensor("timeout", "INT64", "1"), tensor("rows", "INT64", "1")]
    write(folder, "told", config("told", x, ",".join(told)), TOLD)
    write(folder, "heads", config("heads", x, tensor("told", "STRING", "1") + "," + y), HEADS)
    write(folder, "delayed", config("delayed", x, y, more=BATCHING % 500), LINEAR)
    write(folder, "alone", config("alone", tensor("in", "FP32", "-1, 2"), tensor("out", "FP32", "-1, 2"), 0), SAME)
    write(folder, "wide", config("wide", tensor("in", "FP32", "-1"), tensor("out", "FP32", "-1")), SAME)
    ends = [",".join(tensor(f"{end}_{each.lower()}", each, "2") for each in TYPES) for end in ("in", "out")]
    write(folder, "types", config("types", *ends), SAME)
    write(folder, "sequence", config("sequence", x, y, more="sequence_batching { }\n"), LINEAR)
    write(folder, "decoupled", config("decoupled", x, y, more="model_transaction_policy { decoupled: true }\n"), LINEAR)
    return folder


def running(factory: pytest.TempPathFactory, *models: str, options: tuple[str, ...] = ()) -> Iterator[RealTriton]:
    """A server of these models, or of all, for a fixture; skips where Triton is not installed."""
    if absent := real_triton.why_absent():
        pytest.skip(absent)
    folder = factory.mktemp("triton")
    server = RealTriton(folder, repository(folder / "models"), *options)
    try:
        yield server.start(*models)
    finally:
        server.stop()
