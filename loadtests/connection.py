"""A user's own kept connection. What Locust's HTTP client does beside sending and reading costs the generator more.

HTTP/1.1, whatever the status: no redirects, no cookies, no compression, and like Locust's own client any certificate.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gevent.socket
import gevent.ssl
from payloads import Body

PIECE = 65536  # bytes that are read at once
LONGEST_HEAD = 1 << 20


class Answer(NamedTuple):
    """Attributes:
        head: lower case, from the status line to the last field's line end.
    """

    status: int
    head: bytes
    body: bytes


class Connection:
    """To the server of ``url``; opened when something is sent, and again when the server has closed it meanwhile.

    Args:
        source: the address that it comes from; None leaves it to the system.
        headers: of every request.
        connect_timeout, network_timeout: seconds, to open it and for each piece that is sent or read.
    """

    def __init__(self, url: str, *, source: str | None = None, headers: dict[str, str] | None = None,
                 connect_timeout: float = 5.0, network_timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._name = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._source = source
        self._timeouts = connect_timeout, network_timeout
        self._prefix = parts.path.rstrip("/")
        self._fields = {"Host": parts.netloc.rpartition("@")[2], **(headers or {})}
        self._socket: Any = None
        self._read = b""  # of what is not an answer yet

    def request(self, body: Body, **fields: str) -> bytes:
        """As it goes over the wire."""
        head = {**self._fields, **fields, "Content-Length": str(len(body.data)), **body.headers}
        lines = "".join([f"{name}: {value}\r\n" for name, value in head.items()])
        return f"POST {self._prefix}{body.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body.data

    def open(self) -> Any:
        """A new socket, with TLS where the server has it.

        Raises:
            OSError: no connection came about.
        """
        source = (self._source, 0) if self._source else None
        opened = gevent.socket.create_connection((self._name, self._port), self._timeouts[0], source)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._secure:
            context = gevent.ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, gevent.ssl.CERT_NONE
            opened = context.wrap_socket(opened, server_hostname=self._name)
        opened.settimeout(self._timeouts[1])
        return opened

    def exchange(self, request: bytes) -> Answer:
        """One request and its answer.

        Raises:
            OSError: the connection failed, or ended before the answer did.
            ValueError: what came is not HTTP.
        """
        if self._socket is not None and self._ended():
            self.close()
        if self._socket is None:
            self._socket, self._read = self.open(), b""
        kept = False
        try:
            self._socket.sendall(request)
            answer, kept = self._answer()
        finally:
            if not kept:
                self.close()
        return answer

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ended(self) -> bool:
        """Whether the server has closed it, or said something that nobody asked for."""
        if self._secure:
            return False
        try:
            self._socket._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _answer(self) -> tuple[Answer, bool]:
        """The answer, and whether the connection may be used again."""
        while True:
            head = self._until(b"\r\n\r\n").lower()
            if not head.startswith(b"http/1."):
                raise ValueError(f"not an answer of HTTP: {head[:60]!r}")
            status = int(head[9:12])
            if status >= 200:
                break
        kept = head.startswith(b"http/1.1") and b"\r\nconnection: close" not in head
        length = field(head, b"content-length")
        if length is not None:
            body = self._exactly(int(length))
        elif (field(head, b"transfer-encoding") or b"").endswith(b"chunked"):
            body = self._chunks()
        elif status in (204, 304):
            body = b""
        else:
            body, kept = self._rest(), False
        return Answer(status, head, body), kept

    def _more(self) -> None:
        piece = self._socket.recv(PIECE)
        if not piece:
            raise ConnectionError("the server closed the connection before its answer was complete")
        self._read += piece

    def _until(self, end: bytes) -> bytes:
        """Up to ``end``, which is taken too and left out."""
        at = self._read.find(end)
        while at < 0:
            if len(self._read) > LONGEST_HEAD:
                raise ValueError("a head without an end")
            self._more()
            at = self._read.find(end)
        found, self._read = self._read[:at], self._read[at + len(end):]
        return found

    def _exactly(self, size: int) -> bytes:
        pieces, left = [self._read], size - len(self._read)
        while left > 0:
            self._read = b""
            self._more()
            pieces.append(self._read)
            left -= len(self._read)
        whole = b"".join(pieces)
        self._read = whole[size:]
        return whole[:size]

    def _chunks(self) -> bytes:
        pieces = []
        while size := int(self._until(b"\r\n").partition(b";")[0], 16):
            pieces.append(self._exactly(size))
            self._until(b"\r\n")
        while self._until(b"\r\n"):  # trailers
            pass
        return b"".join(pieces)

    def _rest(self) -> bytes:
        """Up to the end of the connection."""
        pieces = [self._read]
        while piece := self._socket.recv(PIECE):
            pieces.append(piece)
        return b"".join(pieces)


def field(head: bytes, name: bytes) -> bytes | None:
    """The value of a field in a head of lower case."""
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    start = at + len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start:end if end >= 0 else len(head)].strip()
