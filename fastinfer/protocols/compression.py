"""gzip and deflate of bodies, bounded.

What comes out of a decompressor is held to the same limit as what comes in, chunk by chunk, so that a bomb costs no
more memory than an honest body of that size.
"""

import zlib

from fastinfer.errors import BodyTooLargeError, InvalidCompressionError, UnsupportedEncodingError

CHUNK = 64 * 1024
MAX_MEMBERS = 4096  # of one gzip body; each costs a decompressor's set-up whatever it holds
GZIP, ZLIB, RAW = 31, 15, -15  # zlib's wbits
GZIP_MAGIC = b"\x1f\x8b"
MIN_SIZE = 1024  # a smaller answer gains nothing


def encoding_of(header: bytes) -> str | None:
    """The coding that a Content-Encoding header names, or None for none.

    Raises:
        UnsupportedEncodingError: any other than identity, gzip (x-gzip) and deflate, or several.
    """
    name = header.strip().lower().decode("latin-1")
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip"):
        return "gzip"
    if name == "deflate":
        return "deflate"
    raise UnsupportedEncodingError(f"Content-Encoding {name[:64]!r} is not supported; gzip and deflate are")


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The body of a request as it was before compression.

    Args:
        body: as sent.
        encoding: "gzip" (RFC 1952, several members allowed) or "deflate" (RFC 1950; a raw RFC 1951 stream, which
            some clients send under that name, is taken too).
        limit: most bytes that may come out.

    Raises:
        BodyTooLargeError: more than `limit`.
        InvalidCompressionError: damaged, cut short, or followed by something else.
    """
    try:
        if encoding == "gzip":
            return _inflate(body, GZIP, limit)
        return _inflate(body, ZLIB if _is_zlib(body) else RAW, limit)
    except zlib.error as error:
        raise InvalidCompressionError(f"the body is not valid {encoding}") from error


def _is_zlib(body: bytes) -> bool:
    """Whether the body opens with RFC 1950's two bytes."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def _inflate(body: bytes, wbits: int, limit: int) -> bytes:
    # Fed in chunks: zlib copies what it has not consumed each time it stops.
    view = memoryview(body)
    out: list[bytes] = []
    size = members = position = 0
    while position < len(view) or not members:
        if members and (wbits != GZIP or not body.startswith(GZIP_MAGIC, position)):
            raise InvalidCompressionError("the compressed body is followed by other bytes")
        members += 1
        if members > MAX_MEMBERS:
            raise InvalidCompressionError(f"the compressed body has more than {MAX_MEMBERS} members")
        stream = zlib.decompressobj(wbits)
        pending: bytes | memoryview = b""
        while not stream.eof:
            if not pending:
                pending = view[position : position + CHUNK]
                position += len(pending)
                if not pending:
                    raise InvalidCompressionError("the compressed body is cut short")
            out.append(stream.decompress(pending, limit - size + 1))
            size += len(out[-1])
            if size > limit:
                raise BodyTooLargeError(f"the decompressed body is over max_body_bytes ({limit} bytes)")
            pending = stream.unconsumed_tail
        position -= len(stream.unused_data)
    return b"".join(out)


def accepted(header: bytes) -> str | None:
    """The coding to answer with, by an Accept-Encoding header: gzip, deflate or None."""
    weights: dict[str, float] = {}
    for item in header.decode("latin-1").lower().split(","):
        name, _, parameter = item.partition(";")
        key, _, value = parameter.strip().partition("=")
        try:
            weights[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    choices = [(weights.get(name, weights.get("*", 0.0)), name) for name in ("gzip", "deflate")]
    weight, best = max(choices, key=lambda choice: choice[0])
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def compress(body: bytes, encoding: str) -> bytes:
    """The body of an answer as `encoding`; level 1, because the time is the caller's."""
    stream = zlib.compressobj(1, zlib.DEFLATED, GZIP if encoding == "gzip" else ZLIB)
    return stream.compress(body) + stream.flush()
