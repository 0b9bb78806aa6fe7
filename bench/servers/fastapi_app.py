"""FastAPI and onnxruntime, as FastAPI's own documentation has it: a model for the body, a dict for the answer."""

from fastapi import FastAPI, Response
from onnx_model import NAME, answer, decode, run
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    inputs: list[Tensor]


app = FastAPI()


@app.post(f"/v2/models/{NAME}/infer")
async def infer(request: InferRequest) -> dict:
    return answer(run(decode(request.model_dump())))


@app.get("/v2/health/ready")
async def ready() -> Response:
    return Response()
