"""LitServe as its documentation has it: a LitAPI with decode, predict and encode; the answer rendered by orjson."""

import os
import sys

import litserve
import orjson
from fastapi import Request, Response

NAME = os.environ["BENCH_MODEL_NAME"]


class Infer(litserve.LitAPI):
    def setup(self, device):
        import onnx_model

        self.model = onnx_model

    def decode_request(self, request: Request):
        return self.model.decode(request)

    def predict(self, x):
        return self.model.run(x)

    def encode_response(self, output) -> Response:
        return Response(orjson.dumps(self.model.answer(output)), media_type="application/json")


if __name__ == "__main__":
    server = litserve.LitServer(Infer(api_path=f"/v2/models/{NAME}/infer"), accelerator="cpu", workers_per_device=1,
                                fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False,
               log_level="warning", access_log=False)
