"""The plain twin of the connection's framing: which messages a stream of bytes holds, and how it ends.

Sources: RFC 9110 and RFC 9112, and where fastinfer is stricter, `core/head.pyx`. Regular expressions, never fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,}\]|([!$&'*+\-._~0-9A-Za-z(),;=]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?")
LINE = re.compile(rb"(" + TOKEN + rb") ([^\x00-\x20\x7f#]+) HTTP/1\.([01])")
LONG = re.compile(TOKEN + rb" [^\x00-\x20\x7f#]{8193}")
FIELD = re.compile(rb"(" + TOKEN + rb"):[ \t]*(.*?)[ \t]*", re.DOTALL)
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
MAX_HEAD = 32 * 1024


class Fault(Exception):
    """The stream is refused here, with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class More(Exception):
    """What is there is right so far, and not whole."""


@dataclass(frozen=True)
class Message:
    """Where one lies in the stream, and its parts."""

    start: int
    body_start: int
    end: int
    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


@dataclass(frozen=True)
class Stream:
    """Whole messages; where the next one begins, and its head ends if it has ended; the status that ends the stream."""

    messages: list[Message]
    rest: int
    rest_body: int | None
    fault: int | None


def read_stream(data: bytes) -> Stream:
    """All messages up to the first fault, or to what is not whole."""
    messages: list[Message] = []
    at, body = 0, None
    try:
        while True:
            body = None
            at = skip_empty_lines(data, at)
            end = data.find(b"\r\n\r\n", at) + 4
            if end < 4:
                refuse_early(data[at:])
                break
            method, target, fields, length = read_head(data[at:end])
            body = end
            stop = end_of_chunks(data, end) if length is None else end + length
            if stop > len(data):
                break
            messages.append(Message(at, end, stop, method, target, fields))
            at = stop
    except Fault as fault:
        return Stream(messages, at, body, fault.status)
    except More:
        pass
    return Stream(messages, at, body, None)


def skip_empty_lines(data: bytes, at: int) -> int:
    """Past at most four empty lines."""
    for lines in range(6):
        if data[at : at + 1] not in (b"\r", b"\n"):
            return at
        if data[at : at + 1] == b"\n" or data[at + 1 : at + 2] not in (b"", b"\n") or lines == 4:
            raise Fault(400)
        if at + 1 == len(data):
            raise More
        at += 2
    raise AssertionError


def refuse_early(start: bytes) -> None:
    """A head without its end may be wrong already."""
    line, newline, _ = start.partition(b"\n")
    if newline:
        read_line(line)
    elif b" " in start and len(start) - start.index(b" ") > 8192 + 16:
        raise Fault(414)
    if len(start) > MAX_HEAD:
        raise Fault(431)
    if re.search(rb"(?<!\r)\n|\x00", start):
        raise Fault(400)


def read_line(line: bytes) -> re.Match[bytes]:
    """The request line, with the CR that ends it."""
    if LONG.match(line):
        raise Fault(414)
    found = LINE.fullmatch(line.removesuffix(b"\r"))
    if not found or not line.endswith(b"\r"):
        raise Fault(400)
    return found


def read_head(head: bytes) -> tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...], int | None]:
    """Method, target, fields and the body's length, None where it is chunked."""
    try:
        found, fields, length = read_fields(head)
    except Fault as fault:
        raise Fault(431 if len(head) > MAX_HEAD and fault.status != 414 else fault.status) from None
    if len(head) > MAX_HEAD:
        raise Fault(431)
    return found[1], found[2], tuple(fields), length


def read_fields(head: bytes) -> tuple[re.Match[bytes], list[tuple[bytes, bytes]], int | None]:
    first, _, rest = head.partition(b"\r\n")
    found = read_line(first + b"\r")
    fields: list[tuple[bytes, bytes]] = []
    length, chunked = None, False
    for count, line in enumerate(rest.removesuffix(b"\r\n").split(b"\r\n")[:-1], 1):
        field = FIELD.fullmatch(line)
        if not field or CONTROL.search(line):
            raise Fault(400)
        if count > 100:
            raise Fault(431)
        name, value = field[1].lower(), field[2]
        fields.append((name, value))
        if name == b"host" and not HOST.fullmatch(value):
            raise Fault(400)
        if name == b"content-length":
            if length is not None or not re.fullmatch(rb"[0-9]{1,18}", value):
                raise Fault(400)
            length = int(value)
        if name == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise Fault(501)
            chunked = True
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or (not hosts and found[3] == b"1"):
        raise Fault(400)
    if chunked and (length is not None or found[3] == b"0"):
        raise Fault(400)
    return found, fields, None if chunked else length or 0


SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;([\t\x20-\x7e\x80-\xff]*))?\r\n")
SIZE_PART = re.compile(rb"([0-9A-Fa-f]{1,15}(;([\t\x20-\x7e\x80-\xff]*))?\r?)?")
TRAILER = re.compile(TOKEN[:-1] + rb"([\t\x20-\x7e\x80-\xff]*)\r\n")
TRAILER_PART = re.compile(rb"(" + TOKEN[:-1] + rb"([\t\x20-\x7e\x80-\xff]*))?\r?")


def end_of_chunks(data: bytes, at: int) -> int:
    """Past the trailer section."""
    extensions = 0
    while True:
        found = SIZE.match(data, at)
        part = found or SIZE_PART.fullmatch(data, at)
        if found and found[2] is not None:
            extensions += len(found[2]) + 1
        elif part and not found and part[2]:
            extensions += len(part[3]) + part[0].endswith(b"\r")
        if not part or extensions > 16 * 1024:
            raise Fault(400)
        if not found:
            raise More
        at = found.end()
        size = int(found[1], 16)
        if not size:
            return end_of_trailers(data, at)
        end = data[at + size : at + size + 2]
        if not b"\r\n".startswith(end):
            raise Fault(400)
        if len(end) < 2:
            raise More
        at += size + 2


def end_of_trailers(data: bytes, at: int) -> int:
    read = 0
    while data[at : at + 2] != b"\r\n":
        found = TRAILER.match(data, at)
        part = found or TRAILER_PART.fullmatch(data, at)
        if found:
            read += len(found[1]) + 1
        elif part:
            read += len(part[2] or b"") + (part[0].endswith(b"\r") and len(part[0]) > 1)
        if not part or read > 8 * 1024:
            raise Fault(400)
        if not found:
            raise More
        at = found.end()
    return at + 2
