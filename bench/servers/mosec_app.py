"""mosec (a Rust front, a Python worker) with its JSON replaced by orjson; BENCH_BATCH rows at most a batch."""

import itertools
import os

import numpy as np
import orjson
from mosec import Server, Worker
from onnx_model import NAME, answer, decode, run

BATCH = int(os.environ.get("BENCH_BATCH", "1"))


class Infer(Worker):
    def deserialize(self, data: bytes) -> dict:
        return orjson.loads(data)

    def serialize(self, data: dict) -> bytes:
        return orjson.dumps(data)

    def forward(self, data: dict | list[dict]) -> dict | list[dict]:
        if BATCH == 1:
            return answer(run(decode(data)))
        arrays = [decode(request) for request in data]
        outputs = run(np.concatenate(arrays))
        starts = np.cumsum([0, *map(len, arrays)])
        return [answer([output[start:stop] for output in outputs])
                for start, stop in itertools.pairwise(starts)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Infer, num=1, max_batch_size=BATCH, max_wait_time=1, route=f"/v2/models/{NAME}/infer")
    server.run()
