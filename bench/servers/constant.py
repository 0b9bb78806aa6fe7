"""A limit, not a server: a uvloop protocol that answers every read with the same bytes and looks at nothing."""

import asyncio
import os
import sys

import uvloop

NAME = os.environ["BENCH_MODEL_NAME"]
BODY = (b'{"model_name":"%b","model_version":"1","outputs":[{"name":"label","datatype":"INT64","shape":[1],"data":[1]},'
        b'{"name":"probabilities","datatype":"FP32","shape":[1,2],"data":[0.24715018,0.75284982]}]}' % NAME.encode())
ANSWER = (b"HTTP/1.1 200 OK\r\nserver: constant\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
          % len(BODY)) + BODY


class Constant(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write

    def data_received(self, data: bytes) -> None:
        self.write(ANSWER)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", port)
    await server.serve_forever()


uvloop.run(main(int(sys.argv[1])))
