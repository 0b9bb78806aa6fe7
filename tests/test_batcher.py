"""The spine and the batcher: what runs together, what is split, who gets which answer and which error."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper
from sklearn.impute import SimpleImputer

from fastinfer import Program
from fastinfer._core import Batcher, Endpoint, Signature, Tensor
from fastinfer.errors import (
    BodyTooLargeError,
    CancelledError,
    FastinferError,
    InvalidShapeError,
    QueueFullError,
    RuntimeFailedError,
    RunTimeoutError,
    ShuttingDownError,
)
from fastinfer.lifecycle import Registry
from fastinfer.model import Model
from fastinfer.settings import Settings

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any] | None = None
) -> Path:
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def doubler(folder: Path, width: int | None = 2) -> Path:
    """y = 2 x."""
    return save(
        folder / "doubler.onnx",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_tensor_value_info("x", FLOAT, ["n", width or "k"])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", width or "k"])],
    )


def table(folder: Path) -> Path:
    """y = TABLE[x]: fails for x outside -10..9."""
    return save(
        folder / "table.onnx",
        [helper.make_node("Gather", ["t", "x"], ["y"], axis=0)],
        [helper.make_tensor_value_info("x", INT64, ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, ["n"])],
        {"t": np.arange(10, dtype=np.float32) * 10},
    )


def slow(folder: Path, steps: int = 40) -> Path:
    """y = x, after a while: nothing times a chain of products that depends on x."""
    size = 200
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["averages", "nothing"], ["m0"]),
        *[helper.make_node("MatMul", [f"m{i}", "averages"], [f"m{i + 1}"]) for i in range(steps)],
        helper.make_node("ReduceMin", [f"m{steps}"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing_again"]),
        helper.make_node("Add", ["x", "nothing_again"], ["y"]),
    ]
    return save(
        folder / "slow.onnx",
        nodes,
        [helper.make_tensor_value_info("x", FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 1])],
        {"averages": np.full((size, size), 1 / size, dtype=np.float32), "zero": np.float32(0)},
    )


def over_the_batch(folder: Path) -> Path:
    """y = softmax of x over the rows: a row's answer depends on its neighbours."""
    return save(
        folder / "leaky.onnx",
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [helper.make_tensor_value_info("x", FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 1])],
    )


@asynccontextmanager
async def serving(path: Path, toml: str = "", **settings: Any) -> AsyncIterator[Model]:
    """The model at ``path``, as a server of this loop has it."""
    folder = path.parent / "models" / path.stem
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(path.read_bytes())
    (folder / "model.toml").write_text(toml)
    registry = Registry(Settings(path=folder.parent, **settings))
    registry.load()
    assert registry.failures == {}
    registry.attach(asyncio.get_running_loop())
    yield registry.get(path.stem)
    registry.close()


def request(x: Any, datatype: str = "FP32", **more: Any) -> bytes:
    array = np.asarray(x)
    tensor = {"name": "x", "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


def send(model: Model, body: bytes) -> tuple[Any, Awaitable[Any]]:
    """Submit; the ticket, and what it ends with: the first output's data, or the error."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(ticket: Any) -> None:
        try:
            future.set_result(json.loads(ticket.encode()[0])["outputs"][0]["data"])
        except FastinferError as error:
            future.set_result(error)

    return model.endpoint.submit(0, body, -1, done), future


def sizes_run(model: Model) -> dict[int, int]:
    return {entry["batch_size"]: entry["compute_infer"]["count"] for entry in model.statistics()["batch_stats"]}


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def test_requests_of_one_turn_run_as_one_batch(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path)) as model:
            before = model.statistics()
            futures = [send(model, request([[i, -i]]))[1] for i in range(40)]
            answers = await asyncio.gather(*futures)
            after = model.statistics()
            assert answers == [[2.0 * i, -2.0 * i] for i in range(40)]
            assert after["execution_count"] - before["execution_count"] == 1
            assert after["inference_count"] - before["inference_count"] == 40
            assert after["inference_stats"]["success"]["count"] == 40
            assert sizes_run(model) == {40: 1}

    run(test)


def test_rows_are_counted_and_not_requests(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path), "max_batch_size = 16") as model:
            rows = [5, 5, 5, 5, 16, 1, 15]
            futures = [send(model, request(np.full((n, 2), n)))[1] for n in rows]
            answers = await asyncio.gather(*futures)
            assert answers == [[2.0 * n] * (2 * n) for n in rows]
            sizes = sizes_run(model)
            assert max(sizes) <= 16
            assert sum(size * count for size, count in sizes.items()) == sum(rows)

    run(test)


@pytest.mark.parametrize("toml", ["", "inline_budget_us = 0"])
@pytest.mark.parametrize("rows", [65, 300, 4000])
def test_a_request_larger_than_a_batch_is_split_and_rejoined(tmp_path: Path, rows: int, toml: str) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path), toml) as model:
            x = np.arange(2 * rows).reshape(rows, 2)
            (small, large, last) = await asyncio.gather(
                send(model, request([[1, 2]]))[1], send(model, request(x))[1], send(model, request([[3, 4]]))[1]
            )
            assert (small, last) == ([2.0, 4.0], [6.0, 8.0])
            assert large == (2.0 * x).ravel().tolist()

    run(test)


@pytest.mark.parametrize("toml", ["", "inline_budget_us = 0"])
def test_only_the_culprit_of_a_failed_batch_gets_the_error(tmp_path: Path, toml: str) -> None:
    async def test() -> None:
        async with serving(table(tmp_path), toml) as model:
            values = [[i % 10] for i in range(30)]
            for culprit in (3, 17, 29):
                values[culprit] = [1000 + culprit]
            values[8] = [1, 99]  # a good row does not save a request with a bad one
            values[11] = [1, 2, 3]
            answers = await asyncio.gather(*[send(model, request(v, "INT64"))[1] for v in values])
            for i, (value, answer) in enumerate(zip(values, answers, strict=True)):
                if i in (3, 8, 17, 29):
                    assert isinstance(answer, RuntimeFailedError), (i, answer)
                else:
                    assert answer == [10.0 * v for v in value]
            assert model.statistics()["inference_stats"]["fail"]["count"] == 4
            assert await send(model, request([4], "INT64"))[1] == [40.0]

    run(test)


def test_a_model_whose_rows_touch_each_other_is_never_batched(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(over_the_batch(tmp_path)) as model:
            assert model.max_batch_size == 0
            assert "depends on the rows beside it" in model.properties["unbatched_reason"]
            answers = await asyncio.gather(*[send(model, request([[float(i)]]))[1] for i in range(5)])
            assert answers == [[1.0]] * 5
            assert await send(model, request([[1.0], [1.0]]))[1] == [0.5, 0.5]

    run(test)


def test_variable_inner_dimensions_go_to_buckets(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path, width=None)) as model:
            shapes = [(1, 3), (2, 5), (1, 3), (3, 1), (2, 5)] * 10 + [(1, k) for k in range(1, 40)]
            arrays = [np.arange(np.prod(shape)).reshape(shape) + i for i, shape in enumerate(shapes)]
            answers = await asyncio.gather(*[send(model, request(array))[1] for array in arrays])
            assert answers == [(2.0 * array).ravel().tolist() for array in arrays]
            assert model.statistics()["execution_count"] < len(shapes)

    run(test)


def test_zero_rows_are_answered_without_a_run(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path)) as model:
            assert await send(model, request(np.empty((0, 2))))[1] == []
            assert model.statistics()["execution_count"] == 0

    run(test)


def test_zero_rows_of_an_unknown_width_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path, width=None)) as model:
            with pytest.raises(InvalidShapeError, match="zero rows"):
                send(model, request(np.empty((0, 2))))

    run(test)


def test_a_full_queue_refuses_and_recovers(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path), "queue_rows = 10") as model:
            futures = [send(model, request(np.zeros((5, 2))))[1] for _ in range(2)]
            with pytest.raises(QueueFullError) as refusal:
                send(model, request([[0, 0]]))
            assert refusal.value.retry_after is not None
            assert await asyncio.gather(*futures) == [[0.0] * 10] * 2
            assert await send(model, request([[1, 1]]))[1] == [2.0, 2.0]
            # one request larger than the whole queue is taken when nothing waits
            assert await send(model, request(np.ones((50, 2))))[1] == [2.0] * 100

    run(test)


def test_the_queue_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path), "queue_bytes = 2000") as model:
            body = request(np.zeros((10, 2)))
            taken = [send(model, body)[1] for _ in range(3)]
            with pytest.raises(QueueFullError):
                send(model, request(np.zeros((200, 2))))
            await asyncio.gather(*taken)

    run(test)


def test_a_cancelled_request_does_not_run_and_its_neighbours_do(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path)) as model:
            pairs = [send(model, request(np.full((1 + i % 3, 2), i))) for i in range(20)]
            for ticket, _ in pairs[::2]:
                ticket.cancel()
            answers = await asyncio.gather(*[future for _, future in pairs[1::2]])
            assert answers == [[2.0 * i] * (2 * (1 + i % 3)) for i in range(1, 20, 2)]
            assert model.statistics()["inference_count"] == sum(1 + i % 3 for i in range(1, 20, 2))
            with pytest.raises(CancelledError):
                pairs[0][0].encode()

    run(test)


def test_a_slow_model_leaves_the_loop_awake(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(slow(tmp_path, steps=400)) as model:
            loop = asyncio.get_running_loop()
            future = send(model, request([[7.0]]))[1]
            turns = 0
            while not future.done():  # type: ignore[attr-defined]
                await asyncio.sleep(0)
                turns += 1
            assert await future == [7.0]
            assert turns > 10, "the loop waited for the model"
            assert loop.is_running()

    run(test)


def test_a_hung_run_is_given_up_and_the_model_recovers(tmp_path: Path) -> None:
    async def test() -> None:
        toml = "run_timeout_ms = 5\nmax_batch_size = 1\nwarmup_rows = 1"
        async with serving(slow(tmp_path, steps=400), toml) as model:
            first, second = send(model, request([[1.0]]))[1], send(model, request([[2.0]]))[1]
            assert isinstance(await first, RunTimeoutError)
            assert isinstance(await second, FastinferError)  # refused: it must not wait for a hung run
            while model.batcher.stuck:
                await asyncio.sleep(0.01)
            assert model.batcher.idle

    run(test)


def test_a_batch_waits_for_company_only_when_told_to(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path), "max_delay_us = 20000\nmax_batch_size = 4") as model:
            first = send(model, request([[1, 1]]))[1]
            await asyncio.sleep(0.002)
            second = send(model, request([[2, 2]]))[1]
            assert await asyncio.gather(first, second) == [[2.0, 2.0], [4.0, 4.0]]
            assert model.statistics()["execution_count"] == 1

    run(test)


def test_closing_answers_what_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(doubler(tmp_path)) as model:
            waiting = send(model, request([[1, 1]]))[1]
            model.batcher.close()
            assert isinstance(await waiting, ShuttingDownError)
            with pytest.raises(ShuttingDownError):
                send(model, request([[1, 1]]))

    run(test)


@pytest.mark.parametrize("toml", ["", "inline_budget_us = 0\ninstances = 3"])
def test_answers_never_mix(tmp_path: Path, toml: str) -> None:
    """Tagged requests of random sizes, some cancelled, over many turns: each gets its own rows, once."""

    async def client(model: Model, seed: int, answered: list[int]) -> None:
        rng = random.Random(seed)
        for i in range(60):
            tag = seed * 1000 + i
            rows = rng.choice([1, 1, 1, 2, 7, 64, 65, 130])
            ticket, future = send(model, request(np.full((rows, 2), tag)))
            if rng.random() < 0.1:
                ticket.cancel()
                continue
            assert await future == [2.0 * tag] * (2 * rows)
            answered.append(tag)

    async def test() -> None:
        async with serving(doubler(tmp_path), toml, queue_rows=1 << 20) as model:
            answered: list[int] = []
            await asyncio.gather(*[client(model, seed, answered) for seed in range(32)])
            assert len(answered) == len(set(answered)) > 1500

    run(test)


def test_records_of_three_bytes_do_not_claim_the_memory_of_whole_ones() -> None:
    """A body of a bounded size must not become tensors without bound."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 1000)), columns=[f"c{i}" for i in range(1000)])
    compiled = Program.from_sklearn(SimpleImputer().fit(frame)).compiled
    outputs = [Tensor("y", "FP64", (-1, 1000))]
    batcher = Batcher(Signature([Tensor("x", "FP64", (-1, 1000))], outputs), lambda inputs: {"y": inputs["x"]})
    endpoint = Endpoint("m", "1", Signature(compiled.columns.inputs, outputs), batcher, compiled)
    endpoint.decode(1, b'{"records":[' + b"{}," * 999 + b"{}]}", -1)
    with pytest.raises(BodyTooLargeError, match="100000 rows"):
        endpoint.decode(1, b'{"records":[' + b"{}," * 99_999 + b"{}]}", -1)
