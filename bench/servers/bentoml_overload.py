"""BentoML as its documentation has it for adaptive batching: a batchable method with a bound on the latency, and one on
the requests that are let in at all.

The tensors of an Open Inference request are the list that BentoML joins to batches; a request has one, of one row.
The model's metadata, which clients ask for first, are answered by a middleware.
"""

import json
import os

import bentoml
import numpy as np
import onnx_model
from pydantic import BaseModel

PATH = f"/v2/models/{onnx_model.NAME}"
WIDTH = 8


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Metadata:
    """Answers GET of the model and of readiness."""

    def __init__(self, app):
        self.app = app
        self.document = json.dumps({
            "name": onnx_model.NAME, "versions": ["1"], "platform": "onnx",
            "inputs": [{"name": onnx_model.INPUT, "datatype": "FP32", "shape": [-1, WIDTH]}],
            "outputs": [{"name": name, "datatype": datatype, "shape": [-1, WIDTH]}
                        for name, datatype in onnx_model.DECLARED],
        }).encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in (PATH, "/v2/health/ready"):
            return await self.app(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": self.document})
        return None


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": int(os.environ["BENCH_MAX_CONCURRENCY"])},
                 logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Infer:
    @bentoml.api(route=f"{PATH}/infer", batchable=True, max_batch_size=int(os.environ["BENCH_MAX_BATCH_SIZE"]),
                 max_latency_ms=int(os.environ["BENCH_MAX_LATENCY_MS"]))
    def infer(self, inputs: list[Tensor]) -> list[dict]:
        rows = np.array([tensor.data for tensor in inputs], np.float32)
        arrays = onnx_model.run(rows)
        return [onnx_model.answer([array[index:index + 1] for array in arrays]) for index in range(len(inputs))]


Infer.add_asgi_middleware(Metadata)
