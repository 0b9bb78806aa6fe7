"""What the Python peers share: an onnxruntime session with one thread, and the protocol's answer as a dict."""

import os

import numpy as np
import onnxruntime

PATH = os.environ["BENCH_MODEL"]
NAME = os.environ["BENCH_MODEL_NAME"]
DATATYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}


def session() -> onnxruntime.InferenceSession:
    """One thread, as onnxruntime's page on thread management advises where the server has one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(PATH, options, providers=["CPUExecutionProvider"])


SESSION = session()
INPUT = SESSION.get_inputs()[0].name
OUTPUTS = [output.name for output in SESSION.get_outputs()]
DECLARED = [(output.name, DATATYPES[output.type]) for output in SESSION.get_outputs()]


def run(array: np.ndarray) -> list[np.ndarray]:
    return SESSION.run(OUTPUTS, {INPUT: array})


def decode(request: dict) -> np.ndarray:
    """The one input of an infer request."""
    tensor = request["inputs"][0]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def answer(arrays: list[np.ndarray]) -> dict:
    """The infer response, its data flat."""
    return {
        "model_name": NAME,
        "model_version": "1",
        "outputs": [
            {"name": name, "datatype": datatype, "shape": array.shape, "data": array.ravel().tolist()}
            for (name, datatype), array in zip(DECLARED, arrays, strict=True)
        ],
    }
