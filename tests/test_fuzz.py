"""The fuzz targets on their seeds, and that they notice what they are there to notice.

`make fuzz` runs them on what libFuzzer makes of the seeds. An input that was found once becomes a seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzz import exchange, framing, targets

FUZZ = Path(__file__).parent / "fuzz"
SEEDS = sorted(path for path in (FUZZ / "seeds").rglob("*") if path.is_file())


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_seeds(path: Path) -> None:
    targets.TARGETS[path.parent.name](path.read_bytes())


def test_each_target_has_seeds() -> None:
    assert {path.parent.name for path in SEEDS} == set(targets.TARGETS)


class Forgetful(exchange.Peer):
    """Loses a byte of each message of the standard lane."""

    def feed(self, data: bytes, is_head: bool) -> None:
        super().feed(data if is_head else data[1:], is_head)


class Swapping(exchange.Peer):
    """Gives a fast answer to the next request."""

    def check(self, message: Any, reply: Any) -> None:
        super().check(self.expected.messages[(self.answered + 1) % len(self.expected.messages)], reply)


class Lenient(exchange.Peer):
    """Takes a fault for the end."""

    def refuse(self, error: Exception) -> None:
        self.gone = True
        self.wire.lost()


class Deaf(exchange.Peer):
    """Never gives the standard lane's answer."""

    def answer(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("peer", "seed"),
    [(Forgetful, "both"), (Swapping, "both"), (Lenient, "both-lengths"), (Deaf, "both")],
)
def test_a_wrong_connection_is_noticed(peer: type, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "Peer", peer)
    monkeypatch.setattr(targets, "SERVER", exchange.Server())
    with pytest.raises(AssertionError):
        targets.connection((FUZZ / "seeds" / "connection" / seed).read_bytes())


@pytest.mark.parametrize(
    ("target", "seed"), [("infer_json", "2-integers"), ("infer_binary", "2-mixed"), ("records", "0-columns")]
)
def test_a_wrong_decoder_is_noticed(target: str, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*request: Any, **more: Any) -> dict[str, Any]:
        return {**right(*request, **more), "priority": 7}

    right = targets.reference.decode
    monkeypatch.setattr(targets.reference, "decode", decode)
    with pytest.raises(AssertionError):
        targets.TARGETS[target]((FUZZ / "seeds" / target / seed).read_bytes())


def test_the_twin_reads_a_stream() -> None:
    chunked = b"POST /a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nT: 1\r\n\r\n"
    plain = b"PUT /b HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nab"
    stream = framing.read_stream(b"\r\n" + chunked + plain + b"GET /c HTTP/1.1\r\nA : b\r\n\r\n")
    assert [message.target for message in stream.messages] == [b"/a", b"/b"]
    assert [message.end - message.start for message in stream.messages] == [len(chunked), len(plain)]
    assert stream.fault == 400
    assert framing.read_stream(chunked[:-1]).messages == []
    assert framing.read_stream(chunked[:-1]).fault is None
