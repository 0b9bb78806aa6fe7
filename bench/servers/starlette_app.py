"""Starlette with orjson and onnxruntime: what a careful team writes by hand. Run by uvicorn and by granian."""

import orjson
from onnx_model import DECLARED, INPUT, NAME, SESSION, answer, decode, run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def infer(request: Request) -> Response:
    outputs = run(decode(orjson.loads(await request.body())))
    return Response(orjson.dumps(answer(outputs)), media_type="application/json")


async def metadata(request: Request) -> Response:
    """Enough for a load generator to build its rows."""
    outputs = [{"name": name, "datatype": datatype, "shape": [-1, *output.shape[1:]]}
               for (name, datatype), output in zip(DECLARED, SESSION.get_outputs(), strict=True)]
    inputs = [{"name": INPUT, "datatype": "FP32", "shape": [-1, *SESSION.get_inputs()[0].shape[1:]]}]
    return Response(orjson.dumps({"name": NAME, "versions": ["1"], "inputs": inputs, "outputs": outputs}),
                    media_type="application/json")


async def ready(request: Request) -> Response:
    return Response()


app = Starlette(routes=[
    Route(f"/v2/models/{NAME}/infer", infer, methods=["POST"]),
    Route(f"/v2/models/{NAME}", metadata),
    Route("/v2/health/ready", ready),
])
