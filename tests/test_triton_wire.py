"""Connections to a Triton: TLS, addresses of every kind, and answers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_models

import fastinfer
from fastinfer._core import Tensor
from fastinfer.errors import BackendUnavailableError
from fastinfer.runtimes.triton import exchange, http, wire
from fastinfer.runtimes.triton.contract import Contract

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from faulty_proxy import Listener
from real_triton import RealTriton

X = np.array([[1, 2, 3, 4]], dtype=np.float32)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    yield from triton_models.running(tmp_path_factory, "linear")


class Relay(Listener):
    """Carries bytes to an address of this host, out of TLS where it has a context."""

    def __init__(self, upstream: int, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> None:
        self.host, self.context = host, context
        super().__init__(upstream)

    def listen(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.listener = socket.create_server((self.host, self.port), family=family)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        try:
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            far = socket.create_connection(("127.0.0.1", self.upstream))
        except OSError:
            connection.close()
            return
        self.open |= {connection, far}
        threading.Thread(target=self.carry, args=(far, connection), daemon=True).start()
        self.carry(connection, far)

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                target.sendall(piece)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def load(folder: Path, table: str) -> fastinfer.Model:
    (folder / "linear").mkdir(exist_ok=True)
    (folder / "linear" / "model.toml").write_text(f'runtime = "triton"\n[triton]\n{table}\n')
    return fastinfer.load(folder / "linear")


def answers(folder: Path, table: str) -> bool:
    model = load(folder, table)
    try:
        return bool(model.predict({"x": X})["y"].tolist() == (2 * X + 1).tolist())
    finally:
        model.close()


@pytest.mark.parametrize("protocol", ["https", "grpcs"])
def test_over_tls(triton: RealTriton, tmp_path: Path, protocol: str) -> None:
    trustme = pytest.importorskip("trustme", reason="pip install 'fastinfer[test]'")
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2" if protocol == "grpcs" else "http/1.1"])
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority.issue_cert("client@example.org")
    for name, blob in (("ca.pem", authority.cert_pem), ("other.pem", other.cert_pem),
                       ("client.pem", client.cert_chain_pems[0]), ("client.key", client.private_key_pem)):
        blob.write_to_path(str(tmp_path / name))
    (tmp_path / "linear").mkdir()
    relay = Relay(triton.grpc if protocol == "grpcs" else triton.http, context=context)
    try:
        url = f'url = "{protocol}://localhost:{relay.port}"\nconnect_timeout = 3\n'
        own = 'cert_file = "../client.pem"\nkey_file = "../client.key"\n'
        assert answers(tmp_path, f'{url}{own}ca_file = "../ca.pem"')
        for table in (f'{url}{own}ca_file = "../other.pem"', f'{url}ca_file = "../ca.pem"', f"{url}{own}"):
            with pytest.raises(BackendUnavailableError, match=r"model\.toml: localhost:"):
                load(tmp_path, table)
    finally:
        relay.close()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_addresses_of_every_kind(triton: RealTriton, tmp_path: Path, protocol: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        relay = Relay(triton.http if protocol == "http" else triton.grpc, "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        assert answers(tmp_path, f'url = "{protocol}://[::1]:{relay.port}"')
        assert answers(tmp_path, f'url = "[::1]:{relay.port}"\nprotocol = "{protocol}"')
    finally:
        relay.close()
    assert answers(tmp_path, f'url = "{protocol}://localhost:{triton.http if protocol == "http" else triton.grpc}"')


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_urls_that_are_dead_from_the_start_do_not_matter(triton: RealTriton, tmp_path: Path, protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = unused.getsockname()[1]
    port = triton.http if protocol == "http" else triton.grpc
    urls = [f"{protocol}://127.0.0.1:{dead}", f"{protocol}://127.0.0.1:{port}", f"{protocol}://name.invalid:8000"]
    assert answers(tmp_path, f"url = {json.dumps(urls)}")


HUNG_NAMES = """
import socket, sys, threading, time
import fastinfer
from fastinfer.errors import BackendUnavailableError
socket.getaddrinfo = lambda *_, **__: threading.Event().wait(60)
for _ in range(2):
    try:
        fastinfer.load(sys.argv[1])
    except BackendUnavailableError as error:
        assert "in time" in str(error), error
    else:
        raise AssertionError
"""


def test_a_name_server_that_does_not_answer_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(
        'runtime = "triton"\n[triton]\nurl = "triton.example:8000"\nconnect_timeout = 0.1\n')
    subprocess.run([sys.executable, "-P", "-c", HUNG_NAMES, str(tmp_path)], check=True, timeout=45)


# ---- answers that are none ----------------------------------------------------------------------------------------
CONTRACT = Contract("m", "1", "python", (Tensor("x", "FP32", (-1, 4)),), (
    Tensor("y", "FP32", (-1, 4)), Tensor("text", "BYTES", (-1, 1)), Tensor("flag", "BOOL", (-1, 2)),
    Tensor("half", "FP16", (-1, -1))), 16, False, 1, 0)
STRANGE: list[Any] = [None, True, -1, 0, 2**63, 2**70, 1e300, "", [], {}, "FP32", [2, 4], [2.0, 4], ["2", 4], [-1, 4],
                      float("nan"), [2, 4, 0]]
STATUSES = [*["200 OK"] * 8, "101 Switching Protocols", "100 Continue", "204 No Content", "400 Bad", "500 x", "999 y"]


class Transport:
    def __init__(self) -> None:
        self.closed = False

    def writelines(self, message: list[bytes]) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


def spoilt(chance: random.Random, said: Any) -> None:
    """Something in JSON replaced or removed."""
    while isinstance(said, (dict, list)) and said:
        where = chance.choice(list(said) if isinstance(said, dict) else range(len(said)))
        if chance.random() < 0.4 or not isinstance(said[where], (dict, list)):
            if chance.random() < 0.3:
                del said[where]
            else:
                said[where] = chance.choice(STRANGE)
            return
        said = said[where]


def some_answer(chance: random.Random) -> bytes:
    """Right, or wrong in one way or several."""
    blobs = [np.arange(8, dtype=np.float32).tobytes(), struct.pack("<I3sI", 3, b"abc", 0)[:11], bytes([1, 0, 2, 255]),
             bytes(12)]
    shapes = [[2, 4], [2, 1], [2, 2], [2, 3]]
    said = {"outputs": [
        {"name": each.name, "datatype": each.datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
        for each, shape, blob in zip(CONTRACT.outputs, shapes, blobs, strict=True)]}
    wrong = chance.choice(["", "json", "text", "size", "length", "head", "bytes", "twice"])
    if wrong == "json":
        spoilt(chance, said)
    text, blob = json.dumps(said).encode(), b"".join(blobs)
    if wrong == "text":
        text = chance.choice([b"null", b"[]", b"{", b'"a"', b"1e999", b"[" * 20_000, b'{"outputs":{}}'])
    if wrong == "size":
        blob = chance.choice([blob[:-1], blob + b"x", b""])
    length = chance.choice(["-1", "0", "x", "", "9" * 400, "+5"]) if wrong == "length" else str(len(text))
    status = chance.choice(STATUSES) if wrong == "head" else "200 OK"
    upgrade = "Connection: upgrade\r\nUpgrade: h2c\r\n" if wrong == "head" and chance.random() < 0.3 else ""
    answer = bytearray(f"HTTP/1.1 {status}\r\nInference-Header-Content-Length: {length}\r\n{upgrade}Content-Length: "
                       f"{len(text) + len(blob)}\r\n\r\n".encode() + text + blob)
    for _ in range(chance.choice([1, 3]) if wrong == "bytes" else 0):
        at = chance.randrange(len(answer))
        answer[at:at + chance.choice([0, 1, 9])] = chance.randbytes(chance.randrange(4))
    return bytes(answer) * (2 if wrong == "twice" else 1)


def test_any_answer_is_one_or_a_failure() -> None:
    assert asyncio.run(right_ones(1500)) > 100


async def right_ones(count: int) -> int:
    """How many of some answers are what they should be; those that are not fail."""
    right = 0
    for seed in range(count):
        chance = random.Random(seed)
        transport, connection = Transport(), wire.Connection(asyncio.get_running_loop())
        connection.connection_made(transport)
        waiter = connection.ask([], chance.choice([100, 1 << 20]))
        answer = some_answer(chance)
        while answer and not transport.closed:
            size = chance.choice([1, 50, 1 << 20])
            connection.data_received(answer[:size])
            answer = answer[size:]
        connection.connection_lost(None)
        try:
            got = await waiter
            if got.status != 200:
                raise exchange.refused(got.status, http.error_of(got.body))
            try:
                reader = http.Reader(got, None)
            except Exception as error:
                raise exchange.garbage(error) from None
            outputs = exchange.taken(CONTRACT, 2, reader.described, reader.array)
        except exchange.Failed:
            continue
        right += 1
        assert {name: (array.dtype.kind, array.shape[0]) for name, array in outputs.items()} == {
            "y": ("f", 2), "text": ("O", 2), "flag": ("b", 2), "half": ("f", 2)}
        assert outputs["flag"].view(np.uint8).max() <= 1
    return right
