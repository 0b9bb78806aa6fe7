"""MLServer as its documentation has it: a custom runtime that takes and gives numpy arrays."""

import onnx_model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        outputs = onnx_model.run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name, model_version="1",
            outputs=[NumpyCodec.encode_output(name, array)
                     for (name, _), array in zip(onnx_model.DECLARED, outputs, strict=True)])
