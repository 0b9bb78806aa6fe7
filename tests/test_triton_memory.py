"""Batches that are handed to a real Triton in shared memory: nobody gets another's rows, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_models
from conftest import Start, starting
from test_triton import add as add_model
from test_triton import tensor, wait_for

import fastinfer
from fastinfer._core import DATATYPES, DTYPES, Tensor
from fastinfer.errors import BackendTimeoutError, FastinferError
from fastinfer.runtimes.triton import regions as memory
from fastinfer.runtimes.triton.contract import Contract
from fastinfer.runtimes.triton.exchange import Failed, Question, garbage, refused, unreachable
from fastinfer.runtimes.triton.http import Reader
from fastinfer.runtimes.triton.layout import Placed, Placer, laid_out
from fastinfer.runtimes.triton.regions import PREFIX, Consent, Region, Regions
from fastinfer.runtimes.triton.wire import Answer

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from faulty_proxy import FaultyProxy
from real_triton import RealTriton

X = np.arange(16, dtype=np.float32).reshape(4, 4)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    yield from triton_models.running(tmp_path_factory, "linear", "types", "wide", "alone")


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def add(root: Path, name: str, triton: RealTriton, keys: str = "", protocol: str = "http") -> Path:
    """A model whose batches are handed over in shared memory, however small they are."""
    return add_model(root, name, triton, keys, "shared_memory = true", protocol)


def registered(triton: RealTriton) -> list[str]:
    """Regions of ours that Triton has."""
    with urllib.request.urlopen(f"http://127.0.0.1:{triton.http}/v2/systemsharedmemory/status", timeout=10) as answer:
        return sorted(each["name"] for each in json.loads(answer.read()) if each["name"].startswith(PREFIX))


def files() -> list[str]:
    return sorted(name for name in os.listdir(memory.FOLDER) if name.startswith(PREFIX))


def pool(model: fastinfer.Model) -> Regions:
    """Of a model in process, whose link is the only one."""
    (links,) = model.runtime.links.values()  # type: ignore[attr-defined]
    found: Regions = links[0].regions
    return found


def predict_until_shared(model: fastinfer.Model) -> None:
    def shared() -> bool:
        with contextlib.suppress(BackendTimeoutError):  # on a busy machine, where a test allows little time
            model.predict({"x": X})
        return bool(pool(model).free)

    wait_for(shared)


# ---- with the real Triton -----------------------------------------------------------------------------------------
def test_batches_of_any_size_are_answered_from_shared_memory(triton: RealTriton, protocol: str,
                                                             tmp_path: Path) -> None:
    with Loaded(add(tmp_path, "linear", triton, protocol=protocol)) as model:
        predict_until_shared(model)
        chance = random.Random(5)
        for _ in range(60):
            x = np.array([[chance.uniform(-300, 300) for _ in range(4)] for _ in range(chance.randint(1, 40))],
                         np.float32)
            assert np.array_equal(model.predict({"x": x})["y"], 2 * x + 1)
        assert set(registered(triton)) & {region.name for region in pool(model).free}
    wait_for(lambda: not registered(triton) and not files())


def test_every_datatype_and_texts_beside_it(triton: RealTriton, protocol: str, tmp_path: Path) -> None:
    with Loaded(add(tmp_path, "types", triton, protocol=protocol)) as model:
        chance = np.random.default_rng(3)
        for _ in range(6):
            rows = int(chance.integers(1, 9))
            given: dict[str, Any] = {}
            for kind in triton_models.TYPES:
                if kind == "STRING":
                    given["in_string"] = np.array([[f"{i}", "é" * i] for i in range(rows)], object)
                    continue
                dtype = np.dtype(DTYPES[DATATYPES.index(kind)])
                given["in_" + kind.lower()] = chance.integers(0, 2 if kind == "BOOL" else 100, (rows, 2)).astype(dtype)
            told = model.predict(given)
            for name, array in given.items():
                assert told["out" + name[2:]].tolist() == array.tolist(), name
            time.sleep(0.02)
        assert pool(model).free


def test_shapes_that_are_only_known_from_the_answer_travel(triton: RealTriton, protocol: str, tmp_path: Path) -> None:
    with Loaded(add(tmp_path, "wide", triton, protocol=protocol)) as model:
        for width in (1, 7, 3000, 7, 2):
            x = np.arange(3 * width, dtype=np.float32).reshape(3, width)
            for _ in range(3):
                assert np.array_equal(model.predict({"in": x})["out"], x)
                time.sleep(0.02)
        assert pool(model).free


def test_callers_at_the_same_time_get_their_own_rows_whatever_times_out(triton: RealTriton, protocol: str,
                                                                       tmp_path: Path) -> None:
    """A batch that is past its time here still runs there, and its memory is nobody else's until it has ended."""
    path = add(tmp_path, "linear", triton, "run_timeout_ms = 100", protocol=protocol)
    with Loaded(path) as model:
        predict_until_shared(model)
        late = 0

        def call(caller: int) -> None:
            nonlocal late
            chance = random.Random(caller)
            for i in range(8):
                x = np.full((chance.randint(1, 16), 4), caller * 100 + i, np.float32)
                x[0, 0] = chance.choice([caller, caller, 915])
                try:
                    told = model.predict({"x": x})["y"]
                except BackendTimeoutError:
                    late += 1
                    continue
                assert np.array_equal(told, 2 * x + 1)

        with ThreadPoolExecutor(3) as callers:
            list(callers.map(call, range(3)))
        assert late
        wait_for(lambda: not pool(model).retired)
        predict_until_shared(model)
    wait_for(lambda: not registered(triton) and not files())


def test_a_region_of_a_late_batch_goes_when_triton_has_let_go_of_it(triton: RealTriton, protocol: str,
                                                                    tmp_path: Path) -> None:
    path = add(tmp_path, "linear", triton, "run_timeout_ms = 200", protocol=protocol)
    with Loaded(path) as model:
        predict_until_shared(model)
        (region,) = pool(model).free
        slow = X.copy()
        slow[0, 0] = 980  # 0.8 s
        with pytest.raises(BackendTimeoutError):
            model.predict({"x": slow})
        assert region in pool(model).retired
        assert region.name in files()
        wait_for(lambda: region not in pool(model).retired)
        assert region.name not in registered(triton)
        assert region.name not in files()


@pytest.mark.parametrize("value", [400, 500])
def test_what_triton_refuses_stays_refused(triton: RealTriton, protocol: str, tmp_path: Path, value: int) -> None:
    with Loaded(add(tmp_path, "linear", triton, protocol=protocol)) as model:
        for _ in range(3):
            predict_until_shared(model)
            with pytest.raises(FastinferError, match=f"the first value is {value}"):
                model.predict({"x": [[value, 0, 0, 0]]})
        wait_for(lambda: not pool(model).retired)


def test_a_restarted_triton_is_told_again(triton: RealTriton, tmp_path: Path,
                                          tmp_path_factory: pytest.TempPathFactory) -> None:
    other = RealTriton(tmp_path_factory.mktemp("other"), triton.models)
    with contextlib.ExitStack() as stack:
        stack.callback(other.stop)
        other.start("linear")
        models = [stack.enter_context(Loaded(add(tmp_path / protocol, "linear", other, protocol=protocol)))
                  for protocol in ("http", "grpc")]
        for model in models:
            predict_until_shared(model)
        before = set(files())
        other.stop()
        other.start("linear")
        assert registered(other) == []

        def answers(model: fastinfer.Model) -> bool:
            try:
                return np.array_equal(model.predict({"x": X})["y"], 2 * X + 1)
            except FastinferError:
                return False

        for model in models:
            wait_for(functools.partial(answers, model))
            assert answers(model)  # also those whose memory Triton does not know any more
            predict_until_shared(model)
        wait_for(lambda: set(registered(other)) == set(files()))
        assert len(files()) >= 2
        assert not before & set(files())


def serve(triton: RealTriton, root: Path, protocol: str, start: Start) -> Any:
    server = start(add(root, "linear", triton, protocol=protocol).parent)
    with server.client() as client:
        body = {"inputs": [tensor("x", X)]}
        wait_for(lambda: client.post("/v2/models/linear/infer", json=body).status_code == 200 and registered(triton))
        assert client.post("/v2/models/linear/infer", json=body).json()["outputs"] == [tensor("y", 2 * X + 1)]
    return server


def test_a_server_that_ends_leaves_nothing_and_one_that_is_killed_is_cleaned_up_after(
    triton: RealTriton, protocol: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with starting(tmp_path_factory) as start:
        killed = serve(triton, tmp_path, protocol, start)
        killed.process.send_signal(signal.SIGKILL)
        killed.wait(30)
        left = set(files())
        assert left
        assert set(registered(triton)) == left
        server = serve(triton, tmp_path, protocol, start)
        wait_for(lambda: not left & set(registered(triton)))
        assert not left & set(files())
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert not registered(triton)
    assert not files()


def test_a_triton_that_takes_none_gets_tensors(triton: RealTriton, tmp_path: Path,
                                               caplog: pytest.LogCaptureFixture) -> None:
    proxy = FaultyProxy(triton.http)
    proxy.no_memory = True
    try:
        path = add(tmp_path, "linear", triton)
        text = (path / "model.toml").read_text().replace(str(triton.http), str(proxy.port))
        (path / "model.toml").write_text(text)
        with Loaded(path) as model:
            for _ in range(5):
                assert np.array_equal(model.predict({"x": X})["y"], 2 * X + 1)
                assert b"shared_memory" not in proxy.asked
                time.sleep(0.02)
            wait_for(lambda: not pool(model).all)
            assert caplog.text.count("does not share memory") == 1
            assert "Unable to open shared memory region" in caplog.text
    finally:
        proxy.close()


def test_it_can_be_left_off(triton: RealTriton, protocol: str, tmp_path: Path,
                            caplog: pytest.LogCaptureFixture) -> None:
    path = add_model(tmp_path, "linear", triton, table="shared_memory = false", protocol=protocol)
    with Loaded(path) as model:
        for _ in range(4):
            assert np.array_equal(model.predict({"x": X})["y"], 2 * X + 1)
        assert not pool(model).all
        assert "memory" not in caplog.text


# ---- with a Triton that does as it is told ------------------------------------------------------------------------
class Loaded:
    def __init__(self, path: Path) -> None:
        self.model = fastinfer.load(path)

    def __enter__(self) -> fastinfer.Model:
        return self.model

    def __exit__(self, *_: object) -> None:
        self.model.close()


class Registrar:
    """A Triton of one process: names that it has, and those that it still uses."""

    def __init__(self, version: str = "2.51.0") -> None:
        self.version = version
        self.names: set[str] = set()
        self.used: set[str] = set()
        self.failure: Failed | None = None

    async def server(self) -> dict[str, Any]:
        return {"name": "triton", "version": self.version}

    async def register(self, name: str, size: int) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        assert name not in self.names
        assert (memory.FOLDER / name).stat().st_size == size
        self.names.add(name)

    async def unregister(self, name: str) -> None:
        await asyncio.sleep(0)
        if name in self.used:
            raise refused(500, "Cannot unregister shared memory region, it is currently in use.")
        self.names.discard(name)

    async def registered(self) -> set[str]:
        return set(self.names)


CONTRACT = Contract("m", "1", "python", (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),), 16, False, 1,
                    0)


class World:
    def __init__(self, registrar: Registrar | None = None, wanted: bool | str = True) -> None:
        self.registrar = registrar or Registrar()
        self.consent = Consent("127.0.0.1:8000", wanted)
        self.regions = Regions(self.registrar, self.consent, 5)
        self.placer = Placer(self.regions)
        self.placed: list[Region | None] = []

    async def answer(self, contract: Contract, question: Question, placed: Placed | None) -> dict[str, Any]:
        """As Triton answers: from the region, into the region."""
        self.placed.append(None if placed is None else placed.region)
        x = question.inputs["x"]
        await asyncio.sleep(0)
        if placed is None:
            return {"y": 2 * x}
        inside, outside = placed.layout.inputs["x"], placed.layout.outputs["y"]
        given = np.frombuffer(placed.region.memory, np.float32, x.size, inside.offset).reshape(x.shape)
        placed.region.put(outside.offset, np.ascontiguousarray(2 * given))
        return {"y": placed.region.get(outside.offset, x.shape, np.dtype(np.float32), outside.size)}

    async def infer(self, x: Any, answer: Callable[..., Any] | None = None) -> Any:
        return (await self.placer.infer(CONTRACT, Question({"x": x}), answer or self.answer))["y"]

    async def warm(self, x: Any = X) -> None:
        while not self.regions.free:
            await self.infer(x)
            await asyncio.sleep(0.001)


def on_a_loop(test: Callable[..., Any]) -> Callable[..., None]:
    def run(*args: Any) -> None:
        async def bounded() -> None:
            before = files()
            async with asyncio.timeout(60):
                await test(*args)
            assert files() == before

        asyncio.run(bounded())

    run.__name__ = test.__name__
    return run


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


@on_a_loop
async def test_as_many_regions_as_batches_at_the_same_time() -> None:
    world = World()
    for _ in range(8):
        arrays = [np.full((3, 4), i, np.float32) for i in range(5)]
        told = await asyncio.gather(*[world.infer(x) for x in arrays])
        assert all(np.array_equal(y, 2 * x) for x, y in zip(arrays, told, strict=True))
        await asyncio.sleep(0.02)
    assert 2 <= len(world.regions.free) <= 5
    assert not world.regions.busy
    await world.regions.close()
    assert not world.registrar.names


@on_a_loop
async def test_a_region_is_not_used_again_while_it_may_be_in_use() -> None:
    """Batches are given up, fail and are answered by chance, beside a Triton that goes on with what was given up."""
    world, chance = World(), random.Random(7)
    running: set[Region] = set()

    async def answer(contract: Contract, question: Question, placed: Placed | None) -> dict[str, Any]:
        kind = chance.choice(["good", "good", "late", "lost", "unseen"])
        if placed is not None:
            assert placed.region not in running, "a batch was laid over another"
            if kind in ("late", "lost"):
                running.add(placed.region)
                world.registrar.used.add(placed.region.name)
        if kind == "late":
            await asyncio.sleep(60)
        if kind == "lost":
            raise garbage("nothing")
        if kind == "unseen":
            raise unreachable("nobody there")
        return await world.answer(contract, question, placed)

    async def one(i: int) -> None:
        x = np.full((chance.randint(1, 16), 4), i, np.float32)
        try:
            async with asyncio.timeout(chance.choice([0.001, 0.02])):
                assert np.array_equal(await world.infer(x, answer), 2 * x)
        except (TimeoutError, Failed):
            pass
        given_up = [region for region in running if region in world.regions.retired]
        if given_up and chance.random() < 0.3:
            region = chance.choice(given_up)
            running.discard(region)
            world.registrar.used.discard(region.name)

    for start in range(0, 600, 6):
        await asyncio.gather(*[one(start + i) for i in range(6)])
    world.registrar.used.clear()
    running.clear()
    await until(lambda: not world.regions.retired)
    await world.regions.close()
    assert not world.registrar.names


@on_a_loop
async def test_regions_are_bounded_in_bytes_and_number() -> None:
    world = World()

    async def lost(contract: Contract, question: Question, placed: Placed | None) -> Any:
        if placed is not None:
            world.registrar.used.add(placed.region.name)
            raise garbage("nothing")
        return {"y": None}

    most, memory.MOST_BYTES = memory.MOST_BYTES, 5 * 4096
    try:
        for _ in range(30):
            with contextlib.suppress(Failed):
                await world.infer(X, lost)
            await asyncio.sleep(0.003)
            assert sum(region.size for region in world.regions.all) <= 5 * 4096
        assert len(world.regions.retired) == 5
        world.registrar.used.clear()
        await until(lambda: not world.regions.retired)
        await world.warm()
        big = np.zeros((2, 4), np.float32).repeat(300, axis=0)
        while len(world.regions.free) != 1 or world.regions.free[0].size < 2 * big.nbytes:
            await world.infer(big)  # small ones make room
            await asyncio.sleep(0.002)
    finally:
        memory.MOST_BYTES = most
    await world.regions.close()


@pytest.mark.parametrize("version", ["2.50.0", "1", "2", None, ""])
def test_a_triton_that_does_not_count_uses_is_not_given_any(version: Any, caplog: pytest.LogCaptureFixture) -> None:
    @on_a_loop
    async def test() -> None:
        world = World(Registrar(version))
        for _ in range(5):
            await world.infer(X)
            await asyncio.sleep(0.005)
        assert world.placed == [None] * 5
        assert caplog.text.count("does not share memory") == 1

    test()


@on_a_loop
async def test_what_fails_for_the_moment_is_tried_again() -> None:
    world = World()
    world.registrar.failure = unreachable("nobody")
    again, memory.AGAIN_S = memory.AGAIN_S, 0.01
    try:
        for _ in range(3):
            await world.infer(X)
            await asyncio.sleep(0.02)
        assert world.placed == [None] * 3
        assert world.consent.given is None
        world.registrar.failure = None
        await world.warm()
        await world.infer(X)
        assert world.placed[-1] is not None
    finally:
        memory.AGAIN_S = again
    await world.regions.close()


@on_a_loop
async def test_an_output_that_was_not_written_is_nobody_s_answer() -> None:
    world = World()
    await world.warm()
    await world.infer(X)  # which leaves its outputs there

    async def forgets(contract: Contract, question: Question, placed: Placed | None) -> dict[str, Any]:
        assert placed is not None
        place = placed.layout.outputs["y"]
        return {"y": placed.region.get(place.offset, (4, 4), np.dtype(np.float32), place.size)}

    with pytest.raises(ValueError, match="not written"):
        await world.infer(X, forgets)
    await world.regions.close()


@on_a_loop
async def test_no_room_is_no_fault() -> None:
    world = World()

    def full(file: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    fallocate, os.posix_fallocate = os.posix_fallocate, full
    try:
        for _ in range(5):
            assert np.array_equal(await world.infer(X), 2 * X)
            await asyncio.sleep(0.005)
        assert world.placed == [None] * 5
    finally:
        os.posix_fallocate = fallocate
    await world.regions.close()


@on_a_loop
async def test_small_batches_are_not_worth_it() -> None:
    world, large = World(wanted="auto"), np.ones((2100, 4), np.float32)
    await world.warm(large)
    await world.infer(X)
    await world.infer(large)
    assert world.placed[-2] is None
    assert world.placed[-1] is not None
    await world.regions.close()


@on_a_loop
async def test_what_nobody_uses_goes() -> None:
    world = World()
    idle, memory.IDLE_S = memory.IDLE_S, 0.0
    longest, memory.LONGEST_S = memory.LONGEST_S, 0.01
    try:
        await world.warm()
        await until(lambda: not world.regions.all)
        assert not world.registrar.names
        await until(lambda: world.regions.tender is None)
    finally:
        memory.IDLE_S, memory.LONGEST_S = idle, longest


@pytest.mark.parametrize(("address", "here"), [
    ("127.0.0.1:8000", True), ("localhost:8000", True), ("[::1]:8000", True), ("127.9.9.9:1", True),
    ("10.0.0.1:8000", False), ("triton:8000", False), ("[2001:db8::1]:8000", False), ("localhost.example.com:1", False),
])
def test_where_it_is_tried(address: str, here: bool) -> None:
    assert (Consent(address, "auto").given is None) is here
    assert Consent(address, True).given is None
    assert Consent(address, False).given is False


def test_layouts_do_not_overlap() -> None:
    chance = random.Random(11)
    kinds = ["FP32", "FP64", "INT8", "BOOL", "BYTES", "BF16", "FP16"]
    for _ in range(300):
        def some(letter: str) -> tuple[Tensor, ...]:
            return tuple(Tensor(f"{letter}{i}", chance.choice(kinds), (-1, *chance.choices([0, 1, 3, 70, -1], k=2)))
                         for i in range(chance.randint(1, 4)))

        contract = Contract("m", "1", "p", some("x"), some("y"), 16, False, 1, 0)
        rows = chance.randint(1, 20)
        shapes = tuple((rows, *[dim if dim >= 0 else chance.randint(0, 9) for dim in each.shape[1:]])
                       for each in contract.inputs)
        layout = laid_out(contract, shapes)
        if layout is None:
            continue
        spans = sorted((place.offset, place.offset + place.size)
                       for place in [*layout.inputs.values(), *layout.outputs.values()])
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
        assert all(begin % 64 == 0 and begin < end <= layout.size for begin, end in spans)
        assert not {each.name for each in (*contract.inputs, *contract.outputs) if each.datatype == "BYTES"} & {
            *layout.inputs, *layout.outputs}


def test_what_was_left_behind_is_told_from_what_is_in_use() -> None:
    region = Region(4096)
    assert not memory.left_behind(region.name)
    assert memory.left_behind(PREFIX + "0" * 32)
    orphan = memory.FOLDER / (PREFIX + "f" * 32)
    orphan.write_bytes(b"1234")
    assert memory.left_behind(orphan.name)
    assert not orphan.exists()
    holders = threading.active_count()
    name = region.name
    region.drop()
    assert name not in files()
    assert threading.active_count() == holders
    assert not memory.is_ours(PREFIX + "../../etc/passwd")


def test_the_setting_takes_true_false_and_auto(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.toml").write_text('runtime = "triton"\n[triton]\nurl = "a:1"\nshared_memory = "yes"\n')
    with pytest.raises(FastinferError, match=r'model.toml:4.*true, false or "auto"'):
        fastinfer.load(tmp_path / "m")


def test_outputs_that_travelled_are_aligned() -> None:
    for more in range(9):  # the JSON before them is of any length
        head = json.dumps({"id": "x" * more, "outputs": [{"name": "y", "datatype": "FP64", "shape": [2, 1],
                                                           "parameters": {"binary_data_size": 16}}]}).encode()
        fields = {b"inference-header-content-length": str(len(head)).encode()}
        array = Reader(Answer(200, fields, head + np.array([1.5, -2]).tobytes()), None).array("y")
        assert array.flags.aligned
        assert array.tolist() == [[1.5], [-2]]
