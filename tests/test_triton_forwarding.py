"""Header fields of clients' requests that go on to a real Triton, each with its own rows."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import triton_models
from conftest import ServerProcess, starting
from test_elsewhere import World, on_a_loop
from test_triton import tensor

from fastinfer._core import Arrival
from fastinfer.errors import BackendTimeoutError, InvalidRequestError
from fastinfer.runtimes.triton.forwarding import Forwarding

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from real_triton import RealTriton

PATTERN = "(x-.*|authorization)"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    yield from triton_models.running(tmp_path_factory, "heads", options=(
        f"--http-header-forward-pattern={PATTERN}", f"--grpc-header-forward-pattern={PATTERN}"))


@pytest.fixture(scope="module")
def server(triton: RealTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("repository")
    for protocol, port in (("http", triton.http), ("grpc", triton.grpc)):
        for name, table in ((protocol, 'forward_headers = ["x-user-*", "Authorization", "x-fixed"]'),
                            (f"{protocol}-none", "")):
            (root / name).mkdir()
            text = (f'runtime = "triton"\n[triton]\nurl = "{protocol}://127.0.0.1:{port}"\nmodel = "heads"\n{table}\n'
                    '[triton.headers]\nX-Fixed = "ours"\n')
            (root / name / "model.toml").write_text(text)
    with starting(tmp_path_factory) as start:
        yield start(root, "--grpc-port", "0")


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def ask(client: httpx.Client, model: str, fields: Any, x: Any = None, *, fast: bool = True) -> httpx.Response:
    given = np.ones((1, 4), np.float32) if x is None else x
    body = json.dumps({"inputs": [tensor("x", given)]}).encode()
    headers = [*(fields.items() if isinstance(fields, dict) else fields)]
    if not fast:  # a compressed body is the standard lane's
        body = gzip.compress(body)
        headers.append(("content-encoding", "gzip"))
    return client.post(f"/v2/models/{model}/infer", content=body, headers=headers)


def told(answer: httpx.Response) -> dict[str, Any]:
    """The header fields of the request that Triton saw; those of each row are the same."""
    assert answer.status_code == 200, answer.text
    outputs = {each["name"]: each for each in answer.json()["outputs"]}
    (text,) = set(outputs["told"]["data"])
    return {name.lower(): value for name, value in json.loads(text).items()}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("fast", [True, False])
def test_fields_that_are_named_go_on(client: httpx.Client, protocol: str, fast: bool) -> None:
    fields = {"X-User-Id": "42", "Authorization": "Bearer abc", "x-userid": "no", "x-other": "no", "X-FIXED": "theirs"}
    for _ in range(3):  # the head is a known one from the second time on
        seen = told(ask(client, protocol, fields, fast=fast))
        assert seen == {"x-user-id": "42", "authorization": "Bearer abc", "x-fixed": "ours"}
    assert told(ask(client, protocol, {}, fast=fast)) == {"x-fixed": "ours"}
    assert told(ask(client, protocol + "-none", fields, fast=fast)) == {"x-fixed": "ours"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_metadata_of_a_grpc_call_goes_on(server: ServerProcess, protocol: str) -> None:
    grpc = pytest.importorskip("grpc", reason="pip install 'fastinfer[grpc]'")
    from tritonclient.grpc import service_pb2

    asked = service_pb2.ModelInferRequest(model_name=protocol, raw_input_contents=[bytes(16)])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer",
                                    response_deserializer=service_pb2.ModelInferResponse.FromString)
        for value in ("7", None):
            metadata = [("x-user-id", value), ("x-user-raw-bin", b"\r\n")] if value else None
            answer = infer(asked.SerializeToString(), timeout=30, metadata=metadata)
            index = [each.name for each in answer.outputs].index("told")
            seen = json.loads(answer.raw_output_contents[index][4:])
            seen = {name: text for name, text in seen.items() if name.startswith("x-user")}
            assert seen == ({"x-user-id": "7"} if value else {})


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_requests_at_the_same_time_have_their_own(server: ServerProcess, protocol: str) -> None:
    def call(caller: int) -> None:
        chance = random.Random(caller)
        with server.client() as client:
            for i in range(15):
                user = chance.choice(["a", "b", f"c{caller}", None])
                x = np.full((chance.randint(1, 20), 4), 100 * caller + i, np.float32)
                answer = ask(client, protocol, {"x-user-id": user} if user else {}, x, fast=chance.random() < 0.8)
                assert told(answer).get("x-user-id") == user
                (y,) = (each for each in answer.json()["outputs"] if each["name"] == "y")
                assert y["data"] == (2 * x + 1).ravel().tolist()

    with ThreadPoolExecutor(6) as callers:
        list(callers.map(call, range(6)))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("fields", "message"), [
    ([("x-user-a", "v" * 5000)], "1 of 5008 bytes; at most 32 of 4096"),
    ([(f"x-user-{i}", "v") for i in range(40)], "are 40 of"),
    ([("x-user-a", "caf\xe9".encode("latin-1"))], "x-user-a is not printable ASCII"),
])
def test_what_cannot_go_on_is_refused(client: httpx.Client, protocol: str, fast: bool, fields: Any,
                                      message: str) -> None:
    answer = ask(client, protocol, fields, fast=fast)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert message in answer.json()["error"]
    assert told(ask(client, protocol, {})) == {"x-fixed": "ours"}
    assert ask(client, protocol + "-none", fields, fast=fast).status_code == 200


# ---- the batcher --------------------------------------------------------------------------------------------------
def arrival(fields: Any) -> Arrival:
    found = Arrival(0)
    found.fields = fields
    return found


class Grouping(World):
    """A world in which a request's fields go on as they are."""

    def __init__(self, answer: Any, **options: Any) -> None:
        super().__init__(answer, **options)
        self.batcher.forwards = lambda fields: None if fields is None else next(iter(fields), None)

    def send_with(self, x: Any, field: Any, **more: Any) -> asyncio.Future[Any]:
        return self.send(x, arrival=arrival([] if field is None else [field]), **more)[1]


@on_a_loop
async def test_only_those_with_the_same_fields_go_in_one_request() -> None:
    async def doubled(x: Any) -> Any:
        await asyncio.sleep(random.random() / 500)
        return {"y": 2 * x}

    world, chance = Grouping(doubled, max_batch_size=8, instances=2), random.Random(3)
    for _ in range(60):
        sent = []
        for _ in range(chance.randint(1, 9)):
            x = [[chance.randint(0, 999), 0] for _ in range(chance.randint(1, 5))]
            field = chance.choice([None, "a", "b", f"c{chance.randint(0, 9)}"])
            sent.append((x, world.send_with(x, field, id=str(field))))
        for x, answer in sent:
            assert await answer == (2 * np.array(x)).ravel().tolist()
        for _, ids, _, _, *fields in world.told:
            assert set(ids) == {str(fields[0] if fields else None)}
        assert max(world.batches) <= 8
        world.told.clear()
    assert world.batcher.idle


@on_a_loop
async def test_what_fails_one_of_them_is_not_the_others_fault() -> None:
    async def some(x: Any) -> Any:
        if x[0, 0] == 13:
            raise OSError("of no luck")
        return {"y": 2 * x}

    world = Grouping(some)
    sent = [world.send_with([[i, 0]], f"c{i}") for i in range(11, 15)]
    sent.append(world.send_with([[1, 0]], InvalidRequestError("too long")))
    answers = await asyncio.gather(*sent)
    assert [each if isinstance(each, list) else str(each) for each in answers] == [
        [22, 0], [24, 0], "the model failed on this request: of no luck", [28, 0], "too long"]
    assert world.batcher.idle


@on_a_loop
async def test_a_batch_of_several_requests_is_given_up_whole() -> None:
    async def hung(x: Any) -> Any:
        await asyncio.sleep(60)

    world = Grouping(hung, run_timeout_ms=50)
    answers = await asyncio.gather(*[world.send_with([[i, 0]], f"c{i}") for i in range(3)])
    assert all(isinstance(each, BackendTimeoutError) for each in answers)
    await asyncio.sleep(0.01)
    assert world.running == 0
    assert world.batcher.idle


# ---- which fields -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("patterns", "name", "goes"), [
    (["x-user"], "x-user", True), (["X-User"], "x-user", True), (["x-user"], "x-user-id", False),
    (["x-*"], "x-", True), (["x-*"], "ax-b", False), (["*"], "cookie", True), (["*"], "host", False),
    (["*"], "content-length", False), (["*"], "grpc-timeout", False), (["*"], "a-bin", False), (["*"], "te", False),
    (["*"], "traceparent", False), (["*"], "x-own", False), (["a.c"], "abc", False), (["a*b*c"], "axxbyyc", True),
    (["a*b*c"], "acb", False), (["a", "b"], "b", True), (["*"], "x" * 65, False), (["*"], "x y", False),
])
def test_names(patterns: list[str], name: str, goes: bool) -> None:
    found = Forwarding(patterns, ["X-Own"])([(name.encode(), b"v")])
    assert found == (((name, "v"),) if goes else None)


def test_the_same_fields_in_another_order_are_the_same() -> None:
    forwarding = Forwarding(["*"], [])
    first = forwarding([(b"b", b"1"), (b"a", b"2"), (b"b", b"3")])
    assert first == forwarding([(b"a", b"2"), (b"b", b"1"), (b"b", b"3")])
    assert first != forwarding([(b"a", b"2"), (b"b", b"3"), (b"b", b"1")])


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"\0", "é".encode(), b" a", b"\x7f"])
def test_no_value_that_could_be_more_than_a_value(value: bytes) -> None:
    assert isinstance(Forwarding(["a"], [])([(b"a", value)]), InvalidRequestError)


def test_names_that_were_seen_are_bounded() -> None:
    forwarding = Forwarding(["x*"], [])
    for i in range(1000):
        assert forwarding([(f"x{i}".encode(), b"")]) == ((f"x{i}", ""),)
    assert len(forwarding.known) <= 256
