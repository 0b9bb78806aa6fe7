"""For whom a trusted proxy speaks: the client of the access log, the fair share and the application, in both lanes."""

from __future__ import annotations

import functools
import ipaddress
import json
import random
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import onnx_models
import pytest
from conftest import ServerProcess, Start, read_answer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_access_log import accesses
from test_core_http import Peer, Server
from test_server import GOOD, INFER, gauge, wait_for
from wire import LAST, message, talk

from fastinfer import Settings, _core
from fastinfer.errors import ConfigurationError

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32", "unix:")
LANES = pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
Sender = tuple[str, int] | None


@functools.cache
def server_that_trusts(peers: tuple[str, ...]) -> Server:
    return Server(proxies=_core.Proxies(peers))


def sender(lines: list[str], host: str, peers: tuple[str, ...] = TRUSTED) -> Sender:
    """Whom the core takes for the client of a request with these lines of X-Forwarded-For, from the peer `host`."""
    peer = Peer(server_that_trusts(peers))
    peer.wire.attach(peer, host.encode(), host.encode())
    peer.wire.data_received(message("/", None, *(f"X-Forwarded-For: {each}" for each in lines), method="GET"))
    assert peer.fed
    return peer.wire.sender


# ---- the plain twin -----------------------------------------------------------------------------------------------
def address_of(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None:
    port = 0
    if bracket := re.fullmatch(r"\[(.*)\](?::([0-9]{1,18}))?", text):
        text, port = bracket[1], int(bracket[2] or 0)
        if ":" not in text:
            return None
    elif with_port := re.fullmatch(r"([^:]*):([0-9]{1,18})", text):
        text, port = with_port[1], int(with_port[2])
    if port > 65535:
        return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, port


def twin(lines: list[str], host: str, peers: tuple[str, ...]) -> Sender:
    def is_trusted(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return "*" in peers or any(address in ipaddress.ip_network(each) for each in peers if each[-1] not in ":*")

    peer = address_of(host)
    if not (is_trusted(peer[0]) if peer else "unix:" in peers or "*" in peers):
        return None
    known: Sender = None
    hops = [hop for hop in (each.strip(" \t") for each in ",".join(lines[-8:]).split(",")) if hop]
    for hop in reversed(hops[-32:]):
        if hop.startswith("unix:"):
            if "unix:" in peers or "*" in peers:
                continue
            break
        found = address_of(hop)
        if found is None:
            break
        known = str(found[0]), found[1]
        if not is_trusted(found[0]):
            break
    return known


ADDRESSES = [
    "10.0.0.1", "10.255.255.255", "11.0.0.1", "9.255.255.255", "127.0.0.1", "203.0.113.7", "203.0.113.7:4711",
    "10.0.0.1:80", "0.0.0.0", "2001:db8::1", "2001:db9::1", "[2001:db8::1]", "[2001:db8::1]:443", "[2001:db9::1]:65535",
    "::1", "::ffff:10.0.0.1", "::ffff:203.0.113.7", "[::ffff:10.1.2.3]:9", "fe80::1%eth0", "FE80::1", "unix:",
]  # fmt: skip
GARBAGE = [
    "unknown", "_hidden", "-", "", " ", "10.0.0.1.", "10.0.0", "010.0.0.1", "256.1.1.1", "10.0.0.1:", "10.0.0.1:x",
    "10.0.0.1:65536", "10.0.0.1:99999999999999999999", "[10.0.0.1]", "[::1", "::1]", "[::1]x", "[::1]:", "[]", ":",
    "::", "1::2::3", "10.0.0.1 10.0.0.2", '"10.0.0.1"', "localhost", "for=10.0.0.1", "x" * 70, "1:" * 40, "%", "::1%",
    "[%]:1",
]  # fmt: skip
ENTRY = st.one_of(st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES), st.sampled_from(GARBAGE),
                  st.text("0123456789abcdef.:[]%/ ", max_size=50))  # fmt: skip
SPACED = st.tuples(st.sampled_from(["", " ", "\t "]), ENTRY, st.sampled_from(["", " "])).map("".join)
LINE = st.lists(SPACED, max_size=6).map(",".join)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(LINE, max_size=11),
    st.sampled_from(["127.0.0.1", "10.9.8.7", "203.0.113.7", "::1", "2001:db8::9", "::ffff:10.0.0.1", ""]),
    st.sampled_from([TRUSTED, ("127.0.0.1",), ("*",), ("::/0",), ("0.0.0.0/0",), ("10.0.0.0/7",), ("unix:",), ()]),
)
@example(["1.2.3.4, 5.6.7.8"], "127.0.0.1", TRUSTED)
@example(["10.0.0.1," * 40], "127.0.0.1", TRUSTED)
@example([f"10.0.0.{i}" for i in range(11)], "127.0.0.1", TRUSTED)
def test_the_client_is_the_last_address_that_is_not_trusted(
    lines: list[str], host: str, peers: tuple[str, ...]
) -> None:
    assert sender(lines, host, peers) == twin(lines, host, peers)
    client, key = _core.Proxies(peers).client(host.encode(), [line.encode() for line in lines])  # as gRPC asks
    assert client == twin([line.strip(" \t") for line in lines], host, peers)
    if client is not None:
        assert key == _core.Proxies().client(client[0].encode(), [])[1]  # whoever it came through


@pytest.mark.parametrize(("lines", "found"), [
    (["1.2.3.4"], ("1.2.3.4", 0)),
    (["6.6.6.6, 1.2.3.4"], ("1.2.3.4", 0)),  # the first is the client's own invention
    (["6.6.6.6", "1.2.3.4:99, 10.0.0.1"], ("1.2.3.4", 99)),
    (["6.6.6.6, unknown, 10.0.0.3"], ("10.0.0.3", 0)),
    (["6.6.6.6, unknown"], None),
    (["10.0.0.5, 10.0.0.6"], ("10.0.0.5", 0)),
    (["1.2.3.4, unix:"], ("1.2.3.4", 0)),
    (["[2001:DB9:0::1]:5"], ("2001:db9::1", 5)),
    (["::ffff:1.2.3.4"], ("1.2.3.4", 0)),
    ([" , ,, "], None),
    ([], None),
])  # fmt: skip
def test_examples(lines: list[str], found: Sender) -> None:
    assert sender(lines, "127.0.0.1") == found
    assert sender(lines, "") == found  # over a Unix socket
    assert sender(lines, "9.9.9.9") is None
    assert sender(lines, "127.0.0.1", ()) is None


def test_a_head_of_nothing_but_addresses_is_looked_at_in_part() -> None:
    line = ",".join(f"10.0.{i // 250}.{i % 250}" for i in range(2600))
    assert sender([line], "127.0.0.1") == ("10.0.10.68", 0)  # the 32nd from its end


@pytest.mark.parametrize(("fields", "told"), [
    (["https"], "https"), (["http"], "http"), (["HTTPS"], "https"), (["https", "http"], None), (["https, http"], None),
    (["wss"], None), ([""], None), ([], None),
])  # fmt: skip
def test_the_scheme_is_one_that_a_trusted_proxy_tells(fields: list[str], told: str | None) -> None:
    for host, peers, expected in (("10.0.0.1", TRUSTED, told), ("9.9.9.9", TRUSTED, None), ("10.0.0.1", (), None)):
        peer = Peer(server_that_trusts(peers))
        peer.wire.attach(peer, host.encode(), host.encode())
        peer.wire.data_received(message("/", None, *(f"X-Forwarded-Proto: {each}" for each in fields), method="GET"))
        assert peer.wire.scheme == expected


# ---- the option ---------------------------------------------------------------------------------------------------
def test_the_option_takes_addresses_and_networks() -> None:
    given_as = "127.0.0.1, 10.0.0.0/8,2001:DB8:0::/32, ::ffff:192.0.2.0/120, ::1/128, unix:, *"
    taken = ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32", "192.0.2.0/24", "::1", "unix:", "*")
    assert Settings(forwarded_allow_ips=given_as).forwarded_allow_ips == taken  # type: ignore[arg-type]
    assert Settings(forwarded_allow_ips=taken).forwarded_allow_ips == taken
    _core.Proxies(taken)
    assert Settings().forwarded_allow_ips == ()


@pytest.mark.parametrize("bad", ["proxy.example", "10.0.0.1/8", "10.0.0.0/33", "10.0", "", "::1;::2", "::1/129"])
def test_the_option_refuses_what_is_none(bad: str) -> None:
    with pytest.raises(ConfigurationError, match=r"forwarded_allow_ips is .*; it takes addresses and networks"):
        Settings(forwarded_allow_ips=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["x", "1.2.3.4/", "1.2.3.4/-1", "1.2.3.4/33", "1.2.3.4/x", "::1/129", "::1/1000", "no"])
def test_the_core_refuses_what_is_none(bad: str) -> None:
    with pytest.raises(ValueError, match=r"no address|no network"):
        _core.Proxies([bad])


# ---- served -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    onnx_models.affine(root / "affine" / "1" / "model.onnx")
    onnx_models.picky(root / "picky" / "1" / "model.onnx")
    onnx_models.slow(root / "slow" / "1" / "model.onnx")
    (root / "slow" / "model.toml").write_text("inline_budget_us = 0\nqueue_rows = 8\n")
    return root


FAILS = b'{"inputs":[{"name":"i","shape":[1],"datatype":"INT64","data":[99]}]}'


def test_both_lanes_know_the_same_client(models: Path, start_server: Start) -> None:
    stream = [
        message(INFER, GOOD, "X-Forwarded-For: 6.6.6.6, 203.0.113.7"),
        message(INFER, GOOD),  # the proxy's own
        message(INFER, GOOD, "X-Forwarded-For: 203.0.113.8:77", "X-Forwarded-For: 10.0.0.1"),
        message(INFER, GOOD, "X-Forwarded-For: [2001:db9::1]:5"),
        message("/v2/models/picky/infer", FAILS, "X-Forwarded-For: 2001:db9::1"),
        message(INFER, b"{", "X-Forwarded-For: 203.0.113.9"),
        message("/v2", None, "X-Forwarded-For: unknown", method="GET"),
        message(INFER, GOOD),
    ]
    trust = "127.0.0.0/8,10.0.0.0/8"
    expected = ["203.0.113.7", "PEER", "203.0.113.8:77", "[2001:db9::1]:5", "2001:db9::1", "203.0.113.9", "PEER"]
    expected.append("PEER")
    for options, clients in (
        (("--forwarded-allow-ips", trust), expected),
        (("--forwarded-allow-ips", trust, "--no-fast-lane"), expected),
        (("--forwarded-allow-ips", "10.0.0.0/8"), ["PEER"] * len(stream)),  # from nobody who may
        ((), ["PEER"] * len(stream)),
    ):
        server = start_server(models, "--access-log", *options)
        replies = talk(server, b"".join(stream) + LAST).replies
        assert [reply.status for reply in replies] == [200, 200, 200, 200, 500, 400, 200, 200, 200]
        lanes = {reply.lane for reply in replies[:5]}
        assert lanes == {"standard" if "--no-fast-lane" in options else "fast"}
        wait_for(lambda server=server: len(accesses(server)) > len(stream))  # type: ignore[misc]
        seen = [record["client"] for record in accesses(server)[:-1]]
        peer = accesses(server)[-1]["client"]
        assert peer.startswith("127.0.0.1:")
        assert [client.replace(peer, "PEER") for client in seen] == clients


def test_grpc_s_metadata_tell_the_client_as_header_fields_do(models: Path, start_server: Start) -> None:
    grpc = pytest.importorskip("grpc", reason="pip install 'fastinfer[grpc]'")
    pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="affine", raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message = request.SerializeToString()
    # Of several lines gRPC's core keeps the last, the trusted proxy's own.
    told = [("6.6.6.6, 203.0.113.7",), (), ("6.6.6.6", "203.0.113.8:77, 10.0.0.1"), ("[2001:db9::1]:5",), ("unknown",)]
    expected = ["203.0.113.7", "PEER", "203.0.113.8:77", "[2001:db9::1]:5", "PEER"]
    for trust, clients in (("127.0.0.0/8,10.0.0.0/8", expected), ("10.0.0.0/8", ["PEER"] * len(told))):
        server = start_server(models, "--access-log", "--grpc-port", "0", "--forwarded-allow-ips", trust)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            for path in ("ModelInfer", "ModelStreamInfer"):
                for lines in told:
                    metadata = [("x-forwarded-for", line) for line in lines]
                    name = f"/inference.GRPCInferenceService/{path}"
                    if path == "ModelInfer":
                        assert channel.unary_unary(name)(message, timeout=30, metadata=metadata)
                    else:
                        assert list(channel.stream_stream(name)(iter([message]), timeout=30, metadata=metadata))
        wait_for(lambda server=server: len(accesses(server)) == 2 * len(told))  # type: ignore[misc]
        seen = [record["client"] for record in accesses(server)]
        peers = [client for client in seen if client.startswith("127.0.0.1:")]
        assert [("PEER" if client in peers else client) for client in seen] == clients * 2


def test_pages_tell_the_client_s_scheme(models: Path, start_server: Start) -> None:
    fields = {"X-Forwarded-Proto": "https", "Host": "models.example"}
    for trust, scheme in (("127.0.0.1", "https"), ("10.0.0.1", "http")):
        server = start_server(models, "--forwarded-allow-ips", trust)
        page = httpx.get(f"{server.url}/", headers=fields, trust_env=False).text
        assert f"{scheme}://models.example/v" in page


def test_over_a_unix_socket(models: Path, start_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "fastinfer.sock"
    server = start_server(models, "--uds", str(path), "--access-log", "--forwarded-allow-ips", "unix:")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(message(INFER, GOOD, "X-Forwarded-For: 203.0.113.7") + LAST)
        while connection.recv(1 << 16):
            pass
    wait_for(lambda: len(accesses(server)) == 2)
    assert [record.get("client") for record in accesses(server)] == ["203.0.113.7", None]


def ask(server: ServerProcess, client: str, steps: int) -> socket.socket:
    """A connection on which a request to the slow model waits for its answer."""
    connection = server.connect()
    tensor: dict[str, Any] = {"name": "steps", "shape": [1], "datatype": "INT64", "data": [steps]}
    body = json.dumps({"inputs": [tensor]}).encode()
    connection.sendall(message("/v2/models/slow/infer", body, f"X-Forwarded-For: {client}"))
    return connection


@LANES
def test_clients_behind_one_proxy_share_fairly(models: Path, start_server: Start, lane: str) -> None:
    server = start_server(models, "--forwarded-allow-ips", "127.0.0.1", lane)

    def pending() -> int:
        return gauge(server, 'fastinfer_queue_rows{model="slow",version="1"}')

    connections = [ask(server, "203.0.113.1", 30_000)]
    wait_for(lambda: gauge(server, "fastinfer_requests_in_flight") == 1 and not pending())  # it runs
    connections += [ask(server, "203.0.113.1", 1) for _ in range(4)]
    wait_for(lambda: pending() == 4)
    connections.append(ask(server, "203.0.113.2", 1))  # company, from whose arrival on half is the most
    wait_for(lambda: pending() == 5)
    refused = ask(server, "203.0.113.1", 1)
    answer = read_answer(refused)
    assert (answer.status, answer.json()["reason"]) == (503, "fair_share")
    refused.close()
    connections.append(ask(server, f"203.0.113.{random.randrange(3, 250)}", 1))
    wait_for(lambda: pending() == 6)
    for connection in connections:  # without clients the server need not wait for the run
        connection.close()
