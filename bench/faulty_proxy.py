"""A proxy before a Triton that does to answers what networks and broken servers do."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

PATIENCE = 30.0  # seconds that a connection may take for anything
NO_MEMORY = b'{"error":"Unable to open shared memory region: \'/x\'"}'
FULL = 4  # connections that fill a listener of no backlog
STEP = 0.05  # seconds between two bytes of a slow answer


class Call(NamedTuple):
    """One question for an inference, with its answer as Triton gave it, and the connection that waits for it."""

    connection: socket.socket
    answer: bytes


def edited(change: Callable[[dict[str, Any]], None], blob: Callable[[bytes], bytes] = bytes) -> Callable[[Call], bool]:
    """Another answer of the same form: with its JSON changed, or its tensors' bytes."""

    def send(call: Call) -> bool:
        head, _, body = call.answer.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(fields[b"Inference-Header-Content-Length"])
        said = json.loads(body[:size])
        change(said)
        text, rest = json.dumps(said).encode(), blob(body[size:])
        call.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
                                b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
                                % (len(text), len(text) + len(rest)) + text + rest)
        return True

    return send


def saying(status: str, body: bytes, *fields: str) -> Callable[[Call], bool]:
    """An answer that Triton did not give."""

    def send(call: Call) -> bool:
        head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""])
        call.connection.sendall(head.encode() + body)
        return True

    return send


def reset(call: Call) -> bool:
    call.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def closed(call: Call) -> bool:
    return False


def hung(call: Call) -> bool:
    call.connection.settimeout(PATIENCE)
    call.connection.recv(1)  # until the other side gives up
    return False


def trickled(call: Call) -> bool:
    for i in range(len(call.answer)):
        call.connection.sendall(call.answer[i:i + 1])
        time.sleep(STEP)
    return True


def late(call: Call) -> bool:
    time.sleep(2)
    call.connection.sendall(call.answer)
    return True


def truncated(call: Call) -> bool:
    call.connection.sendall(call.answer[:-5])
    return False


def noise(call: Call) -> bool:
    call.connection.sendall(bytes(range(256)) * 20)
    return False


def endless(call: Call) -> bool:
    call.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        call.connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def not_kept(call: Call) -> bool:
    """As Triton answers, and then the connection ends although nobody said so."""
    call.connection.sendall(call.answer)
    return False


def renamed(said: dict[str, Any]) -> None:
    said["outputs"][0]["name"] = "z"


def retyped(said: dict[str, Any]) -> None:
    said["outputs"][0]["datatype"] = "FP64"


def reshaped(said: dict[str, Any]) -> None:
    said["outputs"][0]["shape"][0] += 1


def turned(said: dict[str, Any]) -> None:
    said["outputs"][0]["shape"].reverse()


def emptied(said: dict[str, Any]) -> None:
    said["outputs"] = []


def odd_size(said: dict[str, Any]) -> None:
    said["outputs"][0]["parameters"]["binary_data_size"] = 1 << 62


def kept(said: dict[str, Any]) -> None:
    pass


# What is done, and the statuses with which a request may be answered meanwhile.
FAULTS: dict[str, tuple[Callable[[Call], bool] | str, set[int]]] = {
    "no connection": ("refused", {503}),
    "no connection, and no refusal": ("full", {503, 504}),
    "connection reset": (reset, {502, 503}),
    "connection closed": (closed, {502, 503}),
    "no answer": (hung, {504, 503}),
    "no answer, not even to readiness": ("dead", {504, 503}),
    "answer after 2 s": (late, {504, 503}),
    "answer a byte at a time": (trickled, {504, 503}),
    "status 500": (saying("500 Internal Server Error", b'{"error": "it broke"}'), {502}),
    "status 503": (saying("503 Service Unavailable", b'{"error": "busy"}', "Retry-After: 7"), {503}),
    "model gone: status 404": (saying("404 Not Found", b'{"error": "unknown model"}'), {503}),
    "status 302": (saying("302 Found", b"", "Location: /elsewhere"), {502, 503}),
    "no HTTP": (noise, {502, 503}),
    "a page in place of the answer": (saying("200 OK", b"<html></html>"), {502, 503}),
    "JSON that is no answer": (saying("200 OK", b"[]"), {502, 503}),
    "answer cut short": (truncated, {502, 503}),
    "tensor cut short": (edited(kept, lambda blob: blob[:-4]), {502, 503}),
    "answer without end": (endless, {502, 503}),
    "output of another name": (edited(renamed), {502, 503}),
    "output of another type": (edited(retyped), {502, 503}),
    "more rows than asked": (edited(reshaped), {502, 503}),
    "output of another shape": (edited(turned), {502, 503}),
    "no outputs": (edited(emptied), {502, 503}),
    "output of 4 EiB": (edited(odd_size), {502, 503}),
    "connection closed after each answer": (not_kept, {200}),
}


class Listener:
    """Listens on a free port of the loopback, and keeps it; each connection has a thread, which runs `serve`."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault: str | None = None
        self.listener: socket.socket | None = None
        self.waiting: list[socket.socket] = []  # connections that nobody takes, where the listener is full of them
        self.port = 0
        self.open: set[socket.socket] = set()
        self.listen()

    def listen(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def listens(self, yes: bool) -> None:
        """Whether connections are taken from now on."""
        if not yes or self.waiting:
            self.close()
        if yes and self.listener is None:
            self.listen()

    def fill(self) -> None:
        """Listen, and leave connections without an answer, as a network does that drops what is sent."""
        self.close()
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=0)
        for _ in range(FULL):
            self.waiting.append(socket.socket())
            self.waiting[-1].setblocking(False)
            self.waiting[-1].connect_ex(self.listener.getsockname())

    def drop(self) -> None:
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self.listener is not None:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        while self.waiting:
            self.waiting.pop().close()
        self.drop()

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


class FaultyProxy(Listener):
    """`fault` is one of FAULTS, or None for none.

    Attributes:
        calls: for inference, so far.
        asked: the last of them.
        no_memory: whether shared memory is refused, as by a Triton on another host.
    """

    def __init__(self, upstream: int) -> None:
        self.calls = 0
        self.asked = b""
        self.no_memory = False
        super().__init__(upstream)

    def set(self, fault: str | None) -> None:
        """From now on; connections that were kept end."""
        self.fault = fault
        self.listens(self.does != "refused")
        if self.does == "full":
            self.fill()
        if fault is not None:
            self.drop()

    @property
    def does(self) -> Callable[[Call], bool] | str | None:
        return None if self.fault is None else FAULTS[self.fault][0]

    def serve(self, connection: socket.socket) -> None:
        self.open.add(connection)
        connection.settimeout(PATIENCE)
        try:
            with connection:
                while (asked := message(connection)) is not None and self.answer(connection, asked):
                    pass
        except OSError:
            pass
        finally:
            self.open.discard(connection)

    def answer(self, connection: socket.socket, asked: bytes) -> bool:
        """Whether the connection is kept."""
        infers = asked.split(b" ", 2)[1].endswith(b"/infer")
        self.calls += infers
        if infers:
            self.asked = asked
        if self.no_memory and asked.split(b" ", 2)[1].endswith(b"/register"):
            connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: %d\r\n\r\n%s"
                               % (len(NO_MEMORY), NO_MEMORY))
            return True
        does = self.does
        if does == "dead":
            return hung(Call(connection, b""))
        with socket.create_connection(("127.0.0.1", self.upstream), timeout=PATIENCE) as upstream:
            upstream.sendall(asked)
            answer = message(upstream) or b""
        if not infers or not callable(does):
            connection.sendall(answer)
            return True
        return does(Call(connection, answer))


def message(connection: socket.socket) -> bytes | None:
    """The next message with a Content-Length; None at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            return None
        data += piece
    head = data.split(b"\r\n\r\n", 1)[0]
    fields = [line.split(b":") for line in head.lower().split(b"\r\n")[1:]]
    length = next((int(value) for name, value, *_ in fields if name == b"content-length"), 0)
    while len(data) < len(head) + 4 + length:
        piece = connection.recv(1 << 16)
        if not piece:
            return None
        data += piece
    return data


# What is done to bytes, whatever the protocol, and the statuses.
BROKEN: dict[str, set[int]] = {
    "no connection": {503},
    "connections reset": {502, 503},
    "connections that answer nothing": {504, 503},
    "connections that stall": {504, 503},
    "noise in place of answers": {502, 503},
}


class BrokenWire(Listener):
    """Carries bytes, whatever they are; `fault` is one of BROKEN, or None for none."""

    def set(self, fault: str | None) -> None:
        self.fault = fault
        self.listens(fault != "no connection")
        if fault != "connections that stall":
            self.drop()

    def serve(self, connection: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self.upstream), timeout=PATIENCE)
        except OSError:
            connection.close()
            return
        threading.Thread(target=self.carry, args=(far, connection, True), daemon=True).start()
        self.carry(connection, far, False)

    def carry(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        self.open.add(source)
        try:
            while piece := source.recv(1 << 16):
                if self.fault == "connections reset":
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                if self.fault in ("connections that answer nothing", "connections that stall"):
                    continue
                if self.fault == "noise in place of answers" and answers:
                    piece = bytes(reversed(piece))
                target.sendall(piece)
        except OSError:
            pass
        finally:
            self.open.discard(source)
            for each in (source, target):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            source.close()
