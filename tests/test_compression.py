"""Bodies' compression by itself: whatever bytes come, an answer within the limit or an error of ours."""

from __future__ import annotations

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer.errors import BodyTooLargeError, InvalidCompressionError
from fastinfer.protocols.compression import CHUNK, compress, decompress

LIMIT = 4 * CHUNK
texts = st.binary(max_size=300) | st.integers(0, LIMIT).map(bytes)
encodings = st.sampled_from(["gzip", "deflate"])


@settings(deadline=None)
@given(texts, encodings)
def test_there_and_back(text: bytes, encoding: str) -> None:
    assert decompress(compress(text, encoding), encoding, LIMIT) == text


@settings(deadline=None)
@given(st.lists(texts, max_size=5))
def test_members_are_joined(texts: list[bytes]) -> None:
    whole = b"".join(texts)
    body = b"".join(map(gzip.compress, texts))
    if not texts:
        with pytest.raises(InvalidCompressionError):
            decompress(body, "gzip", LIMIT)
    elif len(whole) > LIMIT:
        with pytest.raises(BodyTooLargeError):
            decompress(body, "gzip", LIMIT)
    else:
        assert decompress(body, "gzip", LIMIT) == whole


@settings(deadline=None)
@given(st.binary(max_size=200), encodings)
def test_any_bytes(body: bytes, encoding: str) -> None:
    with contextlib.suppress(InvalidCompressionError, BodyTooLargeError):
        assert len(decompress(body, encoding, 100)) <= 100


@settings(deadline=None)
@given(texts, encodings, st.data())
def test_a_damaged_body_is_never_taken_for_another(text: bytes, encoding: str, data: st.DataObject) -> None:
    body = bytearray(compress(text, encoding))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(InvalidCompressionError, BodyTooLargeError):
        # gzip's head holds a time and a system that change nothing; both formats end with a checksum of the text.
        assert decompress(bytes(body), encoding, LIMIT) == text


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_limit_is_exact(encoding: str, over: int) -> None:
    body = compress(bytes(LIMIT + over), encoding)
    if over:
        with pytest.raises(BodyTooLargeError, match="max_body_bytes"):
            decompress(body, encoding, LIMIT)
    else:
        assert len(decompress(body, encoding, LIMIT)) == LIMIT


def test_a_zlib_stream_is_told_from_a_raw_one() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = stream.compress(b"text") + stream.flush()
    assert decompress(raw, "deflate", LIMIT) == decompress(zlib.compress(b"text"), "deflate", LIMIT) == b"text"
