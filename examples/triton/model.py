"""The network in Triton's Python backend. A Triton with the onnxruntime backend needs no such file (README.md)."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options)

    def execute(self, requests):
        answers = []
        for request in requests:
            features = pb_utils.get_input_tensor_by_name(request, "features").as_numpy()
            label, probabilities = self.session.run(["label", "probabilities"], {"features": features})
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("label", np.array(label, dtype=object)),
                pb_utils.Tensor("probabilities", probabilities),
            ]))
        return answers
