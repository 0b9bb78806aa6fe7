"""Messages that gRPC's core holds, whole or not, count: a server's memory is bounded however many clients send."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import onnx_models
import pytest
from conftest import ServerProcess, starting
from test_grpc import INFER, WAIT, WHOLE, frame, headers, until

grpc = pytest.importorskip("grpc", reason="pip install 'fastinfer[grpc]'")
STREAM_INFER = INFER.replace("ModelInfer", "ModelStreamInfer")
SIZE = 4 << 20  # bytes of a message
CLIENTS = 64
ROOM = 16 << 20  # inflight_bytes
ALLOWED = 5 * ROOM  # growth; all that the clients send is sixteen times the room


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("small")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    with starting(tmp_path_factory) as start:
        yield start(root, "--grpc-port", "0", "--max-body-bytes", str(SIZE), "--inflight-bytes", str(ROOM),
                    "--shutdown-timeout", "0.1s")  # fmt: skip


def memory(server: ServerProcess, name: str = "VmHWM") -> int:
    """Bytes that the process has, or has had at most."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


class Sender:
    """A connection with calls whose messages never come to their end."""

    def __init__(self, port: int) -> None:
        self.wire = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = self.wire.makefile("rb")
        self.window = 65535
        self.windows: dict[int, int] = {}
        self.said: dict[int, bytes] = {}
        self.wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))

    def begin(self, stream: int, path: str, size: int) -> None:
        head = bytearray(headers(path.encode()))
        head[5:9] = stream.to_bytes(4, "big")
        self.windows[stream] = 65535
        self.wire.sendall(bytes(head))
        self.send(stream, b"\0" + size.to_bytes(4, "big"))

    def send(self, stream: int, data: bytes) -> None:
        """Send so much, as the server lets it come, unless it has ended the call."""
        while data and stream not in self.said:
            size = min(16384, len(data), self.window, self.windows[stream])
            if size <= 0:
                self.read()
                continue
            self.window -= size
            self.windows[stream] -= size
            self.wire.sendall(frame(0, 0, stream, data[:size]))
            data = data[size:]

    def read(self) -> None:
        """Take one frame of the server's."""
        head = self.answers.read(9)
        if not head:
            raise ConnectionError
        payload, stream = self.answers.read(int.from_bytes(head[:3], "big")), int.from_bytes(head[5:9], "big")
        if head[3] == 8 and stream == 0:
            self.window += int.from_bytes(payload, "big")
        elif head[3] == 8:
            self.windows[stream] += int.from_bytes(payload, "big")
        elif head[3] == 1:
            self.said[stream] = payload

    def ended(self) -> int:
        """How many calls have been ended; all that the server has said by now is read."""
        self.wire.settimeout(0.02)
        try:
            while True:
                self.read()
        except TimeoutError:
            pass
        except OSError:
            self.said.setdefault(0, b"closed")
        return len(self.said)


@pytest.mark.parametrize(("path", "shape"), [(INFER, CLIENTS * [1]), (STREAM_INFER, [CLIENTS])])
def test_messages_that_are_not_whole_are_bounded(small: ServerProcess, path: str, shape: list[int]) -> None:
    """One byte of each is missing; over connections of their own, and over one connection."""
    before = memory(small)

    def send(calls: int) -> Sender:
        sender = Sender(small.grpc_port)
        try:
            for call in range(calls):
                sender.begin(2 * call + 1, path, SIZE)
                sender.send(2 * call + 1, bytes(SIZE - 1))
        except OSError:
            sender.said.setdefault(0, b"closed")
        return sender

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        senders = list(pool.map(send, shape))
        for sender in senders:
            stack.callback(sender.wire.close)
        until(lambda: sum(sender.ended() for sender in senders) >= CLIENTS - ROOM // SIZE)
        first = [sender.said[1] for sender in senders if 1 in sender.said]  # in full: no table of fields is there yet
        assert all(b"grpc-status\x0214" in each and b"unavailable" in each for each in first)
        assert memory(small) - before < ALLOWED
        with grpc.insecure_channel(f"127.0.0.1:{small.grpc_port}") as channel:
            assert channel.unary_unary(INFER)(WHOLE, timeout=WAIT)
    small.stop()
    assert "Traceback" not in small.log()


def test_whole_messages_are_bounded(small: ServerProcess) -> None:
    """Each answered with an error, and then forgotten, whether or not Python looks for cycles."""
    body = b"\x7a" + varint(SIZE - 64) + bytes(SIZE - 64)  # a field that nobody knows
    before = memory(small)

    async def ask() -> Counter[str]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with AsyncExitStack() as stack:
            calls = []
            for _ in range(CLIENTS):
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{small.grpc_port}", options=options)
                await stack.enter_async_context(channel)
                calls.append(channel.unary_unary(INFER)(body, timeout=WAIT))
            await asyncio.gather(*calls, return_exceptions=True)
            return Counter([(await call.code()).name for call in calls])

    for _ in range(6):
        codes = asyncio.run(ask())
        assert set(codes) <= {"NOT_FOUND", "UNAVAILABLE"}, codes
    with grpc.insecure_channel(f"127.0.0.1:{small.grpc_port}") as channel:
        stream = channel.stream_stream(STREAM_INFER)
        for answer in stream(iter(CLIENTS * [body]), timeout=WAIT):
            assert b"affine" not in answer
    assert memory(small) - before < 2 * CLIENTS * SIZE


def varint(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])
