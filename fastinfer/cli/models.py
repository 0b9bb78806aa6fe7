"""`fastinfer models`: what a running server serves; have it load or unload a model."""

import contextlib
import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from fastinfer import __version__
from fastinfer.errors import ConfigurationError

ACTIONS = ("load", "unload")
ASK = 30.0  # seconds for an answer
WORK = 3600.0  # for one that comes when a model is loaded
MOST = 64 << 20  # bytes of an answer
LONGEST = 2000  # letters of a line that another server says

Entry = dict[str, str]


def run_models(url: str, action: str | None, name: str | None, *, as_json: bool) -> int:
    """Load or unload, where that is asked for, and print what the server has, or has of that model.

    Returns 0, or 1 when the server refused.

    Raises:
        ConfigurationError: the URL is none, an action lacks its model, or nobody answers there.
    """
    if action is not None and action not in ACTIONS:
        raise ConfigurationError(f"{action!r} is not something to do with a model: {' or '.join(ACTIONS)}.")
    if action is not None and name is None:
        raise ConfigurationError(f"{action} needs the NAME of a model.")
    server = Remote(url)
    if action is not None and name is not None:
        status, answer = server.post(f"/v2/repository/models/{quoted(name)}/{action}", WORK)
        if status != 200:
            sys.stderr.write(f"fastinfer: {url}: {said(status, answer)}\n")
            return 1
    status, answer = server.post("/v2/repository/index", ASK)
    if status != 200:
        sys.stderr.write(f"fastinfer: {url}: {said(status, answer)}\n")
        return 1
    entries = [entry for entry in read_index(answer, url) if name in (None, entry["name"])]
    if as_json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        sys.stdout.writelines(f"{line}\n" for line in table(entries))
    return 0


class Remote:
    """A server by its URL: host:port, or with http:// or https:// and a path under which it is mounted."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self.secure = parts.scheme == "https"
            self.host, self.port, self.prefix = parts.hostname or "", parts.port, parts.path.rstrip("/")
            if parts.scheme not in ("http", "https") or not self.host or parts.query or parts.fragment:
                raise ValueError
        except ValueError:
            raise ConfigurationError(f"{url!r} is not the URL of a server, as in http://127.0.0.1:8000.") from None

    def post(self, path: str, patience: float) -> tuple[int, bytes]:
        """Status and body of the answer to an empty POST.

        Raises:
            ConfigurationError: there is none.
        """
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        try:
            connection = kind(self.host, self.port, timeout=ASK)
            connection.connect()
        except TimeoutError:
            raise ConfigurationError(f"{self.url}: nobody answers within {ASK:g} s.") from None
        except (socket.gaierror, ConnectionRefusedError) as error:
            raise ConfigurationError(f"{self.url}: {error.strerror}; is the server running there?") from None
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: no name that a host can have
            raise ConfigurationError(f"{self.url}: {line(str(error)) or type(error).__name__}") from None
        with contextlib.closing(connection), giving_up(connection.sock, patience) as late:
            try:
                return self._exchange(connection, path)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if late.is_set():
                    raise ConfigurationError(f"{self.url}: no answer within {patience:g} s.") from None
                raise ConfigurationError(f"{self.url}: {line(str(error)) or type(error).__name__}") from None

    def _exchange(self, connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
        target = quote(self.prefix, safe="/%") + path
        connection.request("POST", target, b"", {"User-Agent": f"fastinfer/{__version__}"})
        answer = connection.getresponse()
        body = answer.read(MOST)
        if answer.length:
            raise http.client.HTTPException(f"the answer is cut off, or larger than {MOST >> 20} MiB")
        return answer.status, body


@contextlib.contextmanager
def giving_up(connection: socket.socket, patience: float) -> Iterator[threading.Event]:
    """Cut a connection after so many seconds, however the other side spends them; what is given tells whether it was.

    Yields:
        An event that is set then.
    """
    late = threading.Event()
    connection.settimeout(None)

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(patience, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def quoted(name: str) -> str:
    """A name as a part of a path, whatever bytes it was typed with."""
    return quote(name, safe="", errors="surrogateescape")


def said(status: int, answer: bytes) -> str:
    """The error in an answer, or what else there is to say of it."""
    try:
        error = json.loads(answer)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"answered {status}, and not as a server of models does."
    return line(str(error))


def read_index(answer: bytes, url: str) -> list[Entry]:
    """The entries of a repository index; Triton leaves out what it has nothing to say of.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        entries: Any = json.loads(answer)
        return [{key: str(each.get(key, "")) for key in ("name", "version", "state", "reason")} for each in entries]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ConfigurationError(f"{url}: what is answered is no index of models.") from None


def line(text: str) -> str:
    """Text of another server's as one line that does nothing to a terminal."""
    whole = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[: 2 * LONGEST].split()))
    return whole if len(whole) <= LONGEST else whole[:LONGEST - 1] + "…"


def table(entries: list[Entry]) -> Iterator[str]:
    if not entries:
        yield "No model."
        return
    rows = [("MODEL", "VERSION", "STATE", "REASON")]
    rows += [(line(each["name"]) or "-", line(each["version"]) or "-", line(each["state"]) or "-", line(each["reason"]))
             for each in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        fixed = "  ".join(f"{row[column]:<{widths[column]}}" for column in range(3))
        yield f"{fixed}  {row[3]}".rstrip()
