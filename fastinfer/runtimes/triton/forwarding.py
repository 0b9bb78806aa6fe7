"""Header fields of clients' requests that go on to Triton."""

import re
from collections.abc import Collection, Iterable
from fnmatch import translate

from fastinfer.errors import InvalidRequestError

MOST_FIELDS = 32  # of one request
MOST_BYTES = 4096  # of them
MOST_KNOWN = 256  # names that were looked at
# What says something of this connection or this message, and what goes on by other ways.
NEVER = frozenset({
    "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
    "inference-header-content-length", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "traceparent", "transfer-encoding", "upgrade", "user-agent", "x-request-timeout",
})  # fmt: skip
VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
NAME = re.compile(r"[a-z0-9_.-]{1,64}")  # that both HTTP and gRPC take
Fields = tuple[tuple[str, str], ...]


class Forwarding:
    """Chooses the fields that go on.

    Args:
        patterns: of their names, in which * stands for any characters; case does not matter.
        own: names of fields that every request to Triton has already.
    """

    def __init__(self, patterns: Iterable[str], own: Iterable[str]) -> None:
        self.names = re.compile("|".join(map(translate, (each.lower() for each in patterns))))
        self.never: Collection[str] = NEVER | {name.lower() for name in own}
        self.known: dict[bytes, str] = {}  # empty: it does not go on

    def __call__(self, fields: Iterable[tuple[bytes, bytes]]) -> Fields | InvalidRequestError | None:
        """Those of a head, ordered by name; None where there are none, or why they cannot go on."""
        chosen = []
        for given, value in fields:
            name = self.known.get(given)
            if name is None:
                name = self.name_of(given)
            if name:
                text = value.decode("latin-1")
                if not VALUE.fullmatch(text):
                    return InvalidRequestError(f"the header field {name} is not printable ASCII, and cannot go on to "
                                               "the model's server")
                chosen.append((name, text))
        if not chosen:
            return None
        size = sum(len(name) + len(text) for name, text in chosen)
        if len(chosen) > MOST_FIELDS or size > MOST_BYTES:
            return InvalidRequestError(f"the header fields that go on to the model's server are {len(chosen)} of "
                                       f"{size} bytes; at most {MOST_FIELDS} of {MOST_BYTES} do")
        return tuple(sorted(chosen, key=lambda field: field[0]))

    def name_of(self, given: bytes) -> str:
        """A field's name where it goes on, else the empty text."""
        name = given.decode("latin-1").lower()
        goes = (NAME.fullmatch(name) is not None and self.names.fullmatch(name) is not None and name not in self.never
                and not name.startswith("grpc-") and not name.endswith("-bin"))
        found = name if goes else ""
        if len(self.known) < MOST_KNOWN:
            self.known[given] = found
        return found
