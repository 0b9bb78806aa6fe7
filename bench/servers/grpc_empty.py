"""A limit: grpc.aio with a handler that looks at nothing and gives ready bytes.

    python grpc_empty.py PORT ANSWER [uvloop]       # ANSWER: a file that holds the bytes
"""

import asyncio
import sys
from pathlib import Path

import grpc
import grpc.aio


async def serve(port: str, answer: bytes) -> None:
    async def infer(body, context):
        return answer

    handler = grpc.unary_unary_rpc_method_handler(infer)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details):
            return handler if details.method == "/inference.GRPCInferenceService/ModelInfer" else None

    server = grpc.aio.server(handlers=[Handlers()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    port, path, *loop = sys.argv[1:]
    if loop == ["uvloop"]:
        import uvloop

        run = uvloop.run
    else:
        run = asyncio.run
    run(serve(port, Path(path).read_bytes()))
