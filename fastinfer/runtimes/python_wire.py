"""Between the server and a model's own process: short messages on a socket, arrays in shared memory.

A message is the length of its JSON, 4 bytes little-endian, and the JSON. A tensor is [offset, size, shape] in the
memory of its direction; BYTES elements are a length of 4 bytes and the UTF-8 text, as in the protocol's binary tensors.

Each side checks what the other one says, since a process that is about to crash may say anything. Memory never
shrinks, which the kernel holds the other side to, so that a mapping is never cut off under its reader.
"""

import fcntl
import json
import math
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastinfer._core import DATATYPES, DTYPES, Tensor
from fastinfer.runtimes import Arrays

ALIGNMENT = 64
MAX_MEMORY = 1 << 30  # of one direction
MAX_MESSAGE = 16 << 20
PAGE = mmap.PAGESIZE
POLL = 0.2  # seconds between looks whether the other process lives

Place = tuple[int, int, list[int]]  # offset, size, shape


class BrokenError(Exception):
    """The other side has gone, or says what makes no sense."""


class Memory:
    """Shared memory of one direction: one side writes and lets it grow, the other one follows."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.map: mmap.mmap | None = None

    @classmethod
    def create(cls, name: str) -> "Memory":
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(descriptor)

    def grow(self, size: int) -> mmap.mmap:
        """A mapping of at least so many bytes, the file grown for them.

        Raises:
            MemoryError: more than one direction may have.
        """
        if self.map is None or len(self.map) < size:
            if size > MAX_MEMORY:
                raise MemoryError(f"{size} bytes of tensors; at most {MAX_MEMORY} pass to and from a model's process")
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, -(-size // PAGE) * PAGE)
            self.map = mmap.mmap(self.descriptor, 0)
        return self.map

    def follow(self, size: int) -> mmap.mmap:
        """The mapping, where the other side says that it wrote so many bytes."""
        if size > MAX_MEMORY or size > os.fstat(self.descriptor).st_size:
            raise BrokenError("its memory is smaller than it says")
        return self.grow(max(size, 1))

    def close(self) -> None:
        os.close(self.descriptor)
        self.map = None


class Channel:
    """One end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, message: dict[str, Any], seconds: float | None = None) -> None:
        """Raises TimeoutError and BrokenError as `receive` does."""
        data = json.dumps(message).encode()
        self.end.settimeout(seconds)
        try:
            self.end.sendall(struct.pack("<I", len(data)) + data)
        except TimeoutError:
            raise
        except OSError as error:
            raise BrokenError(str(error)) from None

    def receive(self, seconds: float | None = None, alive: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        """The next message.

        Raises:
            TimeoutError: it did not come within so many seconds.
            BrokenError: the other side has gone.
        """
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        (size,) = struct.unpack("<I", self._exactly(4, deadline, alive))
        if size > MAX_MESSAGE:
            raise BrokenError("its message is too long")
        try:
            message = json.loads(self._exactly(size, deadline, alive))
        except ValueError as error:
            raise BrokenError("its message is not JSON") from error
        if not isinstance(message, dict):
            raise BrokenError("its message is no object")
        return message

    def _exactly(self, count: int, deadline: float, alive: Callable[[], bool]) -> bytes:
        data = b""
        while len(data) < count:
            left = deadline - time.monotonic()
            if not select.select([self.end], [], [], max(0.0, min(left, POLL)))[0]:
                # Something that it has started may hold its end of the socket open.
                if not alive():
                    raise BrokenError("it has ended")
                if left <= 0:
                    raise TimeoutError
                continue
            try:
                piece = self.end.recv(count - len(data))
            except OSError as error:
                raise BrokenError(str(error)) from None
            if not piece:
                raise BrokenError("it has ended")
            data += piece
        return data


def put(memory: Memory, tensors: list[Tensor], arrays: Arrays) -> list[Place]:
    """Write arrays, and say where."""
    blocks: list[Any] = []
    places: list[Place] = []
    end = 0
    for tensor in tensors:
        array = arrays[tensor.name]
        block = packed(array) if tensor.datatype == "BYTES" else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        places.append((end, len(block), list(array.shape)))
        blocks.append(block)
        end = -(-(end + len(block)) // ALIGNMENT) * ALIGNMENT
    mapping = memory.grow(max(end, 1))
    for (start, size, _), block in zip(places, blocks, strict=True):
        mapping[start : start + size] = bytes(block) if isinstance(block, bytes) else block.data
    return places


def take(memory: Memory, tensors: list[Tensor], places: Any) -> Arrays:
    """Copies of the arrays that the other side wrote.

    Raises:
        BrokenError: it says what cannot be.
    """
    if not isinstance(places, list) or len(places) != len(tensors):
        raise BrokenError("it does not say where its tensors are")
    return {tensor.name: taken(memory, tensor, place) for tensor, place in zip(tensors, places, strict=True)}


def taken(memory: Memory, tensor: Tensor, place: Any) -> np.ndarray[Any, Any]:
    try:
        start, size, shape = place
        numbers = [start, size, *shape]
    except (TypeError, ValueError):
        raise BrokenError("it does not say where its tensors are") from None
    if not all(type(each) is int and 0 <= each <= MAX_MEMORY for each in numbers) or len(shape) > 8:
        raise BrokenError("it does not say where its tensors are")
    mapping = memory.follow(start + size)
    count = math.prod(shape)
    if count > MAX_MEMORY:
        raise BrokenError("a tensor's size is not that of its shape")
    if tensor.datatype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = unpacked(mapping[start : start + size], count)
        return array.reshape(shape)
    dtype = np.dtype(DTYPES[DATATYPES.index(tensor.datatype)])
    if count * dtype.itemsize != size:
        raise BrokenError("a tensor's size is not that of its shape")
    return np.frombuffer(mapping, dtype, count, start).reshape(shape).copy()


def packed(array: np.ndarray[Any, Any]) -> bytes:
    """The elements of an array of str, bytes or None; None has a length that no text has."""
    pieces: list[bytes] = []
    for value in array.flat:
        text = value.encode() if isinstance(value, str) else value
        pieces += [struct.pack("<I", 0xFFFF_FFFF)] if text is None else [struct.pack("<I", len(text)), text]
    return b"".join(pieces)


def unpacked(block: bytes, count: int) -> list[str | bytes | None]:
    values: list[str | bytes | None] = []
    start = 0
    for _ in range(count):
        if start + 4 > len(block):
            raise BrokenError("a text ends before it begins")
        (size,) = struct.unpack_from("<I", block, start)
        start += 4
        if size == 0xFFFF_FFFF:
            values.append(None)
            continue
        text = block[start : start + size]
        if len(text) != size:
            raise BrokenError("a text ends before its end")
        start += size
        try:
            values.append(text.decode())
        except UnicodeDecodeError:
            values.append(text)
    return values
