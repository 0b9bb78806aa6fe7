"""Universal Binary JSON as XGBoost writes it: values, and typed arrays as numpy's. Nothing is trusted."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

DEPTH = 64
NUMBERS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
CONSTANTS = {"Z": None, "T": True, "F": False}


class Reader:
    """One document.

    Raises:
        ValueError: it is none; the message names the byte.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def document(self) -> Any:
        value = self.value(self.mark(), 0)
        if self.place != len(self.data):
            raise self.wrong("there is more behind it")
        return value

    def wrong(self, reason: str) -> ValueError:
        return ValueError(f"byte {self.place:,}: {reason}")

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.place:
            raise self.wrong("it ends here, inside of a value")
        self.place += size
        return self.data[self.place - size : self.place]

    def mark(self) -> str:
        return self.take(1).decode("latin-1")

    def peek(self) -> str:
        return self.data[self.place : self.place + 1].decode("latin-1")

    def number(self, mark: str) -> Any:
        dtype = np.dtype(NUMBERS[mark])
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def length(self, mark: str) -> int:
        if mark not in "iUIlL" or mark not in NUMBERS:
            raise self.wrong(f"a length of type {mark!r}")
        return int(self.number(mark))

    def text(self, mark: str) -> str:
        return self.take(self.length(mark)).decode()

    def value(self, mark: str, depth: int) -> Any:
        if depth > DEPTH:
            raise self.wrong(f"nested deeper than {DEPTH}")
        if mark in NUMBERS:
            return self.number(mark)
        if mark in CONSTANTS:
            return CONSTANTS[mark]
        read: dict[str, Callable[[int], Any]] = {"{": self.object, "[": self.array}
        if mark in read:
            return read[mark](depth + 1)
        if mark == "S":
            return self.text(self.mark())
        raise self.wrong(f"a value of type {mark!r}")

    def object(self, depth: int) -> dict[str, Any]:
        found = {}
        while (mark := self.mark()) != "}":
            name = self.text(mark)
            found[name] = self.value(self.mark(), depth)
        return found

    def array(self, depth: int) -> Any:
        kind = None
        if self.peek() == "$":
            self.take(1)
            kind = self.mark()
            if kind not in NUMBERS or self.peek() != "#":
                raise self.wrong(f"an array of type {kind!r}")
        if self.peek() != "#":
            found = []
            while (mark := self.mark()) != "]":
                found.append(self.value(mark, depth))
            return found
        self.take(1)
        count = self.length(self.mark())
        if kind is not None:
            dtype = np.dtype(NUMBERS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype).astype(dtype.newbyteorder("="))
        if not 0 <= count <= len(self.data) - self.place:
            raise self.wrong("an array that is longer than the file")
        return [self.value(self.mark(), depth) for _ in range(count)]


def loads(data: bytes) -> Any:
    """
    Raises:
        ValueError: it is no document.
    """
    try:
        return Reader(data).document()
    except (struct.error, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is damaged: {error}") from None
