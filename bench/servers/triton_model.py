"""onnxruntime in Triton's python backend: the requests of a batch are run together, once."""

import itertools
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options,
                                                    providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        outputs = self.session.run(self.names, {"input": arrays[0] if len(arrays) == 1 else np.concatenate(arrays)})
        starts = [0, *itertools.accumulate(map(len, arrays))]
        return [pb_utils.InferenceResponse([pb_utils.Tensor(name, output[start:stop])
                                            for name, output in zip(self.names, outputs, strict=True)])
                for start, stop in itertools.pairwise(starts)]
