"""Strict heads and bodies on both lanes: each fault is told in the error shape, ends the connection, and hides nothing.

The vectors are data: whatever follows a fault on its connection must never be served, or two readers of one stream
(a proxy and this server) could be made to disagree about where a request begins.
"""

from __future__ import annotations

import json

import pytest
from conftest import ServerProcess
from wire import CLOSED, LAST, Conversation, chunked, message, talk

GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/affine/infer"
POST = b"POST /v2/models/affine/infer HTTP/1.1\r\n"
HOST = b"Host: t\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
PLAIN = POST + HOST + LENGTH + b"\r\n" + GOOD
SMUGGLED = b"GET /v2/models/nobody HTTP/1.1\r\nHost: t\r\n\r\n"  # would be answered 404
CODES = {400: "malformed_head", 414: "uri_too_long", 431: "head_too_large", 501: "unsupported"}


def post(*fields: bytes, body: bytes = GOOD) -> bytes:
    return POST + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def padded(size: int) -> bytes:
    """A good request whose head has so many bytes."""
    bare = len(post(LENGTH[:-2], b"A: ", body=b""))
    return post(LENGTH[:-2], b"A: " + b"b" * (size - bare))


def many(count: int, size: int = 1) -> bytes:
    return b"".join(b"a%d: %s\r\n" % (i, b"b" * size) for i in range(count))


HEADS = {
    # the request line
    "http/0.9": (b"GET /v2\r\n\r\n", 400),
    "http/0.9, its line alone": (b"GET /v2\r\n", 400),
    "http/1.2": (POST.replace(b"1.1", b"1.2") + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "http/2.0": (POST.replace(b"1.1", b"2.0") + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "http/1.10": (POST.replace(b"1.1", b"1.10") + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "lower-case http": (POST.replace(b"HTTP", b"http") + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "another protocol": (POST.replace(b"HTTP", b"SIP") + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "the http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(80), 400),
    "two spaces": (PLAIN.replace(b"POST ", b"POST  "), 400),
    "two spaces before the version": (PLAIN.replace(b" HTTP", b"  HTTP", 1), 400),
    "a tab": (PLAIN.replace(b"POST ", b"POST\t"), 400),
    "a space at the line's end": (PLAIN.replace(b"1.1\r\n", b"1.1 \r\n", 1), 400),
    "a space before the line": (b" " + PLAIN, 400),
    "a space in the target": (PLAIN.replace(b"/infer", b"/in fer", 1), 400),
    "no target": (PLAIN.replace(b" /v2/models/affine/infer", b"", 1), 400),
    "no method": (PLAIN.replace(b"POST", b"", 1), 400),
    "a method that is no token": (PLAIN.replace(b"POST", b"P(ST", 1), 400),
    "a control character in the target": (PLAIN.replace(b"/infer", b"/in\x01fer", 1), 400),
    "DEL in the target": (PLAIN.replace(b"/infer", b"/in\x7ffer", 1), 400),
    "NUL in the target": (PLAIN.replace(b"/infer", b"/in\0fer", 1), 400),
    "a tunnel": (b"CONNECT example.com:80 HTTP/1.1\r\nHost: t\r\n\r\n", 400),
    "a URL of 8 KiB and one": (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414),
    "a URL of 100 KiB": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414),
    "a URL without an end": (b"GET /" + b"a" * 40_000, 414),
    "five empty lines": (b"\r\n" * 5 + PLAIN, 400),
    "an empty line of LF": (b"\n" + PLAIN, 400),
    "an empty line of CR": (b"\r" + PLAIN, 400),
    # Host
    "no Host": (POST + LENGTH + b"\r\n" + GOOD, 400),
    "two Hosts": (POST + HOST + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "two Hosts in another case": (POST + HOST + b"HOST: u\r\n" + LENGTH + b"\r\n" + GOOD, 400),
    "two Hosts in http/1.0": (POST.replace(b"1.1", b"1.0") + HOST + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "a Host with a space": (PLAIN.replace(b"Host: t", b"Host: t u"), 400),
    "a Host with a path": (PLAIN.replace(b"Host: t", b"Host: t/u"), 400),
    "a Host with a user": (PLAIN.replace(b"Host: t", b"Host: u@t"), 400),
    "a Host in UTF-8": (PLAIN.replace(b"Host: t", b"Host: \xc3\xa4"), 400),
    # fields
    "white space before the colon": (post(LENGTH[:-2], b"A : b"), 400),
    "a tab before the colon": (post(LENGTH[:-2], b"A\t: b"), 400),
    "Content-Length before the space": (post(b"Content-Length : %d" % len(GOOD)), 400),
    "an empty name": (post(LENGTH[:-2], b": b"), 400),
    "no colon": (post(LENGTH[:-2], b"A"), 400),
    "a name in brackets": (post(LENGTH[:-2], b"[A]: b"), 400),
    "a name in UTF-8": (post(LENGTH[:-2], b"\xc3\xa4: b"), 400),
    "a name with NUL": (post(LENGTH[:-2], b"A\0: b"), 400),
    "a folded line": (post(LENGTH[:-2], b"A: b\r\n c"), 400),
    "a line folded by a tab": (post(LENGTH[:-2], b"A: b\r\n\tc: d"), 400),
    "a folded first line": (POST + b" " + HOST + LENGTH + b"\r\n" + GOOD, 400),
    "NUL in a value": (post(LENGTH[:-2], b"A: \0"), 400),
    "an escape in a value": (post(LENGTH[:-2], b"A: \x1b[31m"), 400),
    "DEL in a value": (post(LENGTH[:-2], b"A: \x7f"), 400),
    "a bare CR in a value": (post(LENGTH[:-2], b"A: b\rc: d"), 400),
    "a bare LF in a value": (post(LENGTH[:-2], b"A: b\nc: d"), 400),
    "lines of LF": (PLAIN.replace(b"\r\n", b"\n"), 400),
    "lines of CR": (b"GET / HTTP/1.1\rHost: t\r\r\r\n\r\n", 400),
    "the last line of LF": (POST + HOST + LENGTH + b"\n" + GOOD, 400),
    "LF CR": (PLAIN.replace(b"\r\n", b"\n\r"), 400),
    "101 fields": (POST + HOST + LENGTH + many(99) + b"\r\n" + GOOD, 431),
    "10,000 fields": (POST + HOST + LENGTH + many(10_000) + b"\r\n" + GOOD, 431),
    "a head of 32 KiB and one": (padded(32 * 1024 + 1), 431),
    "a field without an end": (POST + HOST + b"A: " + b"b" * 400_000, 431),
    "fields without an end": (POST + HOST + many(90, 1000), 431),
}
LENGTHS = {
    "twice": (post(LENGTH[:-2], LENGTH[:-2]), 400),
    "twice, and different": (post(LENGTH[:-2], b"Content-Length: 0"), 400),
    "a list": (post(b"Content-Length: %d, %d" % (len(GOOD), len(GOOD))), 400),
    "a plus": (post(b"Content-Length: +%d" % len(GOOD)), 400),
    "a minus": (post(b"Content-Length: -%d" % len(GOOD)), 400),
    "hexadecimal": (post(b"Content-Length: 0x%x" % len(GOOD)), 400),
    "a fraction": (post(b"Content-Length: %d.0" % len(GOOD)), 400),
    "an exponent": (post(b"Content-Length: 1e2"), 400),
    "a space within": (post(b"Content-Length: 1 0"), 400),
    "an underscore": (post(b"Content-Length: 1_0"), 400),
    "quotes": (post(b'Content-Length: "%d"' % len(GOOD)), 400),
    "empty": (post(b"Content-Length:"), 400),
    "white space": (post(b"Content-Length: \t "), 400),
    "2^64": (post(b"Content-Length: 18446744073709551616"), 400),
    "2^64 and the length": (post(b"Content-Length: %d" % (2**64 + len(GOOD))), 400),
    "100 digits": (post(b"Content-Length: " + b"9" * 100), 400),
    "Arabic digits": (post(b"Content-Length: \xd9\xa1\xd9\xa2"), 400),
}
CODINGS = {
    "in http/1.0": (POST.replace(b"1.1", b"1.0") + HOST + CHUNKED + b"\r\n" + chunked(GOOD), 400),
    "gzip": (post(b"Transfer-Encoding: gzip", body=b""), 501),
    "gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked", body=chunked(GOOD)), 501),
    "chunked, gzip": (post(b"Transfer-Encoding: chunked, gzip", body=chunked(GOOD)), 501),
    "identity": (post(b"Transfer-Encoding: identity", LENGTH[:-2]), 501),
    "empty": (post(b"Transfer-Encoding:", body=chunked(GOOD)), 501),
}
# One reader goes by Content-Length, the other by Transfer-Encoding, or does not see it: the rest is a request to one.
ZERO = b"0\r\n\r\n"
SMUGGLING = {
    "CL.TE": post(b"Content-Length: %d" % len(ZERO + SMUGGLED), b"Transfer-Encoding: chunked", body=ZERO),
    "CL.TE in the other order": post(b"Transfer-Encoding: chunked", b"Content-Length: 6", body=ZERO + b"G"),
    "TE.CL": post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"5c\r\n" + SMUGGLED + ZERO),
    "CL.0": post(b"Content-Length: 0", b"Content-Length: 44", body=b""),
    "TE twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=ZERO),
    "TE.TE, cow": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: cow", body=ZERO),
    "TE.TE, identity": post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=ZERO),
    "xchunked": post(b"Transfer-Encoding: xchunked", body=ZERO),
    "chunkedx": post(b"Transfer-Encoding: chunkedx", body=ZERO),
    "quoted": post(b'Transfer-Encoding: "chunked"', body=ZERO),
    "a comma": post(b"Transfer-Encoding: chunked,", body=ZERO),
    "a comma before": post(b"Transfer-Encoding: ,chunked", body=ZERO),
    "a parameter": post(b"Transfer-Encoding: chunked;q=1", body=ZERO),
    "a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=ZERO),
    "a form feed": post(b"Transfer-Encoding:\x0cchunked", body=ZERO),
    "NUL": post(b"Transfer-Encoding: chunked\0", body=ZERO),
    "0xFF": post(b"Transfer-Encoding: \xffchunked", body=ZERO),
    "a space before the colon": post(b"Transfer-Encoding : chunked", body=ZERO),
    "a folded value": post(b"Transfer-Encoding:\r\n chunked", body=ZERO),
    "a name behind a bare CR": post(b"A: b\rTransfer-Encoding: chunked", body=ZERO),
    "a name behind a bare LF": post(b"A: b\nTransfer-Encoding: chunked", body=ZERO),
    "a name behind a space": post(b" Transfer-Encoding: chunked", body=ZERO),
    "a name behind NUL": post(b"\0Transfer-Encoding: chunked", body=ZERO),
    "CL in the name": post(b"Content-Length\xa0: 44", LENGTH[:-2]),
}
CHUNKS = {
    "no size": b"\r\nhello\r\n" + ZERO,
    "words": b"zzz\r\nhello\r\n" + ZERO,
    "a minus": b"-5\r\nhello\r\n" + ZERO,
    "a plus": b"+5\r\nhello\r\n" + ZERO,
    "0x": b"0x5\r\nhello\r\n" + ZERO,
    "a space before": b" 5\r\nhello\r\n" + ZERO,
    "a space behind": b"5 \r\nhello\r\n" + ZERO,
    "a tab behind": b"5\t\r\nhello\r\n" + ZERO,
    "2^64": b"10000000000000000\r\nhello\r\n" + ZERO,
    "2^64 and 5": b"10000000000000005\r\nhello\r\n" + ZERO,
    "2^63": b"8000000000000000\r\nhello\r\n" + ZERO,
    "zeros without an end": b"0" * 4000 + b"5\r\nhello\r\n" + ZERO,
    "LF behind the size": b"5\nhello\r\n" + ZERO,
    "CR behind the size": b"5\rhello\r\n" + ZERO,
    "LF behind the data": b"5\r\nhello\n" + ZERO,
    "CR behind the data": b"5\r\nhello\r" + ZERO,
    "nothing behind the data": b"5\r\nhello" + ZERO,
    "more data than its size": b"5\r\nhello you\r\n" + ZERO,
    "less data than its size": b"6\r\nhello\r\n" + ZERO,
    "LF in an extension": b"5;a\nb\r\nhello\r\n" + ZERO,
    "NUL in an extension": b"5;a\0b\r\nhello\r\n" + ZERO,
    "20 KiB of extension": b"5;" + b"a" * 20_000 + b"\r\nhello\r\n" + ZERO,
    "20 KiB of extensions": b"1;aaaaaaaaaaaaaaa\r\na\r\n" * 1300 + ZERO,
    "an extension without an end": b"5;" + b"a" * 100_000,
    "10 KiB of trailers": b"0\r\n" + b"A: " + b"b" * 10_000 + b"\r\n\r\n",
    "10,000 trailers": b"0\r\n" + many(10_000) + b"\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "a trailer without a colon": b"0\r\nA\r\n\r\n",
    "a trailer without a name": b"0\r\n: b\r\n\r\n",
    "a space before a trailer's colon": b"0\r\nA : b\r\n\r\n",
    "NUL in a trailer": b"0\r\nA: \0\r\n\r\n",
    "LF behind a trailer": b"0\r\nA: b\n\r\n",
    "LF at the end": b"0\r\n\n",
    "CR at the end": b"0\r\n\r\r",
}


@pytest.fixture(scope="module", params=["fast", "standard"])
def either(request: pytest.FixtureRequest, server: ServerProcess, standard_server: ServerProcess) -> ServerProcess:
    """Each lane in turn."""
    return server if request.param == "fast" else standard_server


def check_refusal(seen: Conversation, status: int) -> None:
    """One answer, in the error shape, that says that the connection closes; and then it does."""
    assert seen.statuses == [status], seen
    assert (seen.fate, seen.rest) == (CLOSED, b"")
    (reply,) = seen.replies
    assert reply.field(b"connection") == b"close"
    assert reply.field(b"content-type") == b"application/json"
    error = json.loads(reply.body)
    assert set(error) == {"error", "code"}
    assert error["code"] == CODES[status]


@pytest.mark.parametrize("case", HEADS)
def test_heads(either: ServerProcess, case: str) -> None:
    data, status = HEADS[case]
    check_refusal(talk(either, data + SMUGGLED + LAST), status)


@pytest.mark.parametrize("case", LENGTHS)
def test_content_lengths(either: ServerProcess, case: str) -> None:
    data, status = LENGTHS[case]
    check_refusal(talk(either, data + SMUGGLED + LAST), status)


@pytest.mark.parametrize("case", CODINGS)
def test_transfer_codings(either: ServerProcess, case: str) -> None:
    data, status = CODINGS[case]
    check_refusal(talk(either, data + SMUGGLED + LAST), status)


@pytest.mark.parametrize("case", SMUGGLING)
def test_smuggling(either: ServerProcess, case: str) -> None:
    seen = talk(either, SMUGGLING[case] + SMUGGLED + LAST)
    check_refusal(seen, seen.statuses[0])
    assert seen.statuses[0] in (400, 501)


@pytest.mark.parametrize("case", CHUNKS)
def test_chunks(either: ServerProcess, case: str) -> None:
    check_refusal(talk(either, post(CHUNKED[:-2], body=CHUNKS[case]) + SMUGGLED + LAST), 400)


def test_too_many_chunks(either: ServerProcess) -> None:
    check_refusal(talk(either, post(CHUNKED[:-2], body=b"1\r\n{\r\n" * (1 << 20) + ZERO) + LAST), 400)


@pytest.mark.parametrize("cut", [1, 7])
@pytest.mark.parametrize("case", ["a bare CR in a value", "a folded line", "five empty lines", "two Hosts", "LF CR"])
def test_faults_that_arrive_in_pieces(either: ServerProcess, case: str, cut: int) -> None:
    data, status = HEADS[case]
    check_refusal(talk(either, data + SMUGGLED, range(cut, len(data), cut)), status)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + PLAIN + b"nonsense\r\n\r\n",
        PLAIN + PLAIN + post(b"Content-Length: 1", b"Content-Length: 2"),
        PLAIN + message("/v2") + post(b"Transfer-Encoding: cow"),
        PLAIN + message("/v2") + post(CHUNKED[:-2], body=b"5 \r\n"),
    ],
)
def test_answers_that_are_due_come_before_a_fault_s(either: ServerProcess, data: bytes) -> None:
    seen = talk(either, data + SMUGGLED + PLAIN + LAST)
    assert seen.statuses in ([200, 200, 400], [200, 405, 501], [200, 405, 400])
    assert (seen.fate, seen.rest) == (CLOSED, b"")
    assert [reply.field(b"connection") for reply in seen.replies] == [None, None, b"close"]


# ---- what is allowed ----------------------------------------------------------------------------------------------
ALLOWED = {
    "four empty lines": b"\r\n" * 4 + PLAIN,
    "names in upper case": POST + HOST.upper() + LENGTH.upper() + b"\r\n" + GOOD,
    "no space behind the colon": POST + (HOST + LENGTH).replace(b": ", b":") + b"\r\n" + GOOD,
    "tabs around values": PLAIN.replace(b"Host: t", b"Host:\t t \t"),
    "a length with leading zeros": post(b"Content-Length: 000%d" % len(GOOD)),
    "an empty Host": PLAIN.replace(b"Host: t", b"Host:"),
    "a Host of IPv6": PLAIN.replace(b"Host: t", b"Host: [::1]:8000"),
    "an empty value": post(LENGTH[:-2], b"A:"),
    "Latin-1 in a value": post(LENGTH[:-2], b"A: \xe4"),
    "100 fields": POST + HOST + LENGTH + many(98) + b"\r\n" + GOOD,
    "32 KiB of head": padded(32 * 1024),
    "chunks": post(CHUNKED[:-2], body=chunked(GOOD, [5, 50])),
    "chunked in upper case": post(CHUNKED[:-2].upper(), body=chunked(GOOD, [5])),
    "sizes in upper case": post(CHUNKED[:-2], body=b"%X\r\n%s\r\n" % (len(GOOD), GOOD) + ZERO),
    "leading zeros of a size": post(CHUNKED[:-2], body=b"000%x\r\n%s\r\n" % (len(GOOD), GOOD) + ZERO),
    "chunk extensions": post(CHUNKED[:-2], body=chunked(GOOD, [5], b";a=b;c")),
    "trailers": post(CHUNKED[:-2], body=chunked(GOOD, [5], trailers=b"A: b\r\nC: d\r\n")),
    "an absolute URL": PLAIN.replace(b"/v2", b"http://t/v2", 1),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_is_allowed(either: ServerProcess, case: str) -> None:
    seen = talk(either, ALLOWED[case] + PLAIN + LAST)
    assert seen.statuses == [200, 200, 200]
    assert seen.replies[0].body == seen.replies[1].body


def test_trailers_do_not_pass_for_fields_of_the_head(either: ServerProcess) -> None:
    trailers = b"X-Request-ID: trailer\r\nContent-Encoding: gzip\r\nInference-Header-Content-Length: 7\r\n"
    data = post(CHUNKED[:-2], b"X-Request-ID: head", body=chunked(GOOD, trailers=trailers))
    for cuts in [(), (len(data) - 40,), range(1, len(data))]:
        seen = talk(either, data + LAST, cuts)
        assert seen.statuses == [200, 200], seen
        assert seen.replies[0].field(b"x-request-id") == b"head"


def test_the_longest_url(either: ServerProcess) -> None:
    path = "/" + "a" * 8191
    assert talk(either, message(path, method="GET") + LAST).statuses == [404, 200]


H2C = "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"


@pytest.mark.parametrize("chunks", [None, [5, 50]])
@pytest.mark.parametrize("fields", [H2C, H2C[::-1], [field.upper() for field in H2C[:2]]])
def test_an_offer_of_h2c_is_ignored(either: ServerProcess, fields: list[str], chunks: list[int] | None) -> None:
    asked = message(INFER, GOOD, *fields, chunks=chunks)
    get = message("/v2", None, *fields, method="GET")
    for data in (asked + PLAIN + asked + get + LAST, get + asked + LAST):
        seen = talk(either, data)
        assert set(seen.statuses) == {200}
        assert len(seen.statuses) == data.count(b" HTTP/1.1\r\n")


def test_an_expectation_is_answered_before_the_body(either: ServerProcess) -> None:
    seen = talk(either, message(INFER, GOOD, "Expect: 100-continue") + LAST)
    assert seen.statuses == [100, 200, 200]
