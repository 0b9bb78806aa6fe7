"""What others' suites send to HTTP/1.1 servers, as data: each vector's answers, and whether what follows is served.

The files in http_conformance/ hold bytes as Latin-1 text, with the page or the suite that a case is known from
(llhttp's tests, h1spec, the HTTP Garden, PortSwigger's desynchronisation research, "Funky chunks"). A vector that ends
the connection must not let the request behind it through; one that does not must let it through unharmed. Both lanes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ServerProcess
from wire import CLOSED, LAST, talk

FOLLOWING = b"GET /v2/models/nobody HTTP/1.1\r\nHost: t\r\n\r\n"  # is answered 404
VECTORS: dict[str, dict[str, Any]] = {
    f"{file.stem}: {vector['name']}": vector
    for file in sorted((Path(__file__).parent / "http_conformance").glob("*.json"))
    for vector in json.loads(file.read_text())
}


@pytest.fixture(scope="module", params=["fast", "standard"])
def either(request: pytest.FixtureRequest, server: ServerProcess, standard_server: ServerProcess) -> ServerProcess:
    """Each lane in turn."""
    return server if request.param == "fast" else standard_server


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(either: ServerProcess, name: str) -> None:
    vector = VECTORS[name]
    data = vector["send"].encode("latin-1")
    seen = talk(either, data + FOLLOWING + LAST, heads=[0] if data.startswith(b"HEAD ") else [])
    served = {"served": [404, 200], "closed": []}[vector["then"]]
    assert seen.statuses == [*vector["answers"], *served], seen
    assert (seen.fate, seen.rest) == (CLOSED, b"")
    if not served:
        assert seen.replies[-1].field(b"connection") == b"close"


@pytest.mark.parametrize("name", [name for name, vector in VECTORS.items() if vector["then"] == "served"])
def test_what_is_served_is_served_in_pieces_too(either: ServerProcess, name: str) -> None:
    vector = VECTORS[name]
    data = vector["send"].encode("latin-1")
    cuts = sorted({1, len(data) // 3, data.find(b"\r\n\r\n") + 2, len(data) - 1})
    seen = talk(either, data + FOLLOWING + LAST, cuts, heads=[0] if data.startswith(b"HEAD ") else [])
    assert seen.statuses == [*vector["answers"], 404, 200], seen
