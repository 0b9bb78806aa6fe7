"""BentoML as its documentation has it: a service with a pydantic input, one worker."""

import bentoml
import onnx_model
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    inputs: list[Tensor]


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Infer:
    @bentoml.api(route=f"/v2/models/{onnx_model.NAME}/infer")
    async def infer(self, request: InferRequest, /) -> dict:
        return onnx_model.answer(onnx_model.run(onnx_model.decode(request.model_dump())))
