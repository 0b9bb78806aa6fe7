"""Whether a row's answer has the same bits in any batch: proven at load, and made so by runs of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
from world import ROWS as SIGNATURE
from world import World, busy, clock

from fastinfer import _core, load, probe
from fastinfer.errors import FastinferError

__all__ = ["clock"]
Arrays = dict[str, np.ndarray[Any, Any]]


def steady(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * np.float32(1.1)}


def by_size(inputs: Arrays) -> Arrays:
    """The last bit is another one in larger batches, as of a matrix product that is cut another way."""
    y = inputs["x"] * np.float32(1.1)
    return {"y": np.nextafter(y, np.float32(np.inf)) if len(y) > 4 else y}


def by_place(inputs: Arrays) -> Arrays:
    y = inputs["x"] * np.float32(1.1)
    y[3::4] = np.nextafter(y[3::4], np.float32(np.inf))
    return {"y": y}


def test_what_depends_on_the_batch_is_found() -> None:
    assert probe.depends_on_batch(steady, SIGNATURE, 64) is None
    assert probe.depends_on_batch(by_size, SIGNATURE, 64) == "y"
    assert probe.depends_on_batch(by_size, SIGNATURE, 4) is None
    assert probe.depends_on_batch(by_place, SIGNATURE, 64) == "y"
    fixed = probe.in_batches_of(8, by_size)
    assert probe.depends_on_batch(fixed, SIGNATURE, 64) is None
    assert probe.depends_on_batch(probe.in_batches_of(8, by_place), SIGNATURE, 8) == "y"


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 20])
def test_runs_of_one_size_give_each_row_its_answer(rows: int) -> None:
    sizes: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["x"]))
        return {"y": 2 * inputs["x"]}

    x = np.arange(rows, dtype=np.float32).reshape(-1, 1)
    assert probe.in_batches_of(8, run)({"x": x})["y"].tolist() == (2 * x).tolist()
    assert set(sizes) == {8}


def test_the_batcher_fills_its_runs_up() -> None:
    world = World(fixed_size=True, max_batch_size=4)
    busy(world)
    for tag, rows in [(1, 1), (2, 2), (3, 9), (4, 3)]:
        world.send(tag, rows)
    world.drain()
    assert {len(batch) for batch in world.batches} == {4}
    assert not world.failures()
    assert dict(world.told) == {0.5: 1.0, 1: 2.0, 2: 4.0, 3: 6.0, 4: 8.0}
    assert world.endpoint.counters()["rows"] == 16  # those that were asked for


def test_a_bad_row_fails_alone_in_runs_of_one_size() -> None:
    world = World(fixed_size=True, max_batch_size=4)
    busy(world)
    world.fails.add(2.0)
    for tag in (1, 2, 3):
        world.send(tag)
    world.drain()
    assert list(world.failures()) == [2]
    assert world.batcher.idle


def test_the_metadata_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "affine"
    onnx_models.affine(folder / "1" / "model.onnx")
    found = load(folder)
    assert found.properties["batch_invariant"] in ("true", "false")
    (folder / "model.toml").write_text("batch_invariant = true\nmax_batch_size = 16\n")
    made = load(folder)
    assert made.properties["batch_invariant"] == "true"
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    together = made.answer({"x": x})
    for row in range(40):
        alone = made.answer({"x": x[row : row + 1]})
        assert {name: array.tobytes() for name, array in alone.items()} == {
            name: array[row : row + 1].tobytes() for name, array in together.items()}  # fmt: skip


def test_what_cannot_be_made_so_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models" / "affine"
    onnx_models.affine(folder / "1" / "model.onnx")
    (folder / "model.toml").write_text("batch_invariant = true\n")
    monkeypatch.setattr(probe, "depends_on_batch", lambda *arguments: "y")
    with pytest.raises(FastinferError, match="depends on its place"):
        load(folder)


def test_texts_are_filled_up_too() -> None:
    signature = _core.Signature([_core.Tensor("x", "BYTES", (-1, 1))], [_core.Tensor("y", "BYTES", (-1, 1))])
    seen: list[list[str]] = []

    def run(inputs: Arrays) -> Arrays:
        seen.append(inputs["x"][:, 0].tolist())
        return {"y": inputs["x"]}

    due: list[Any] = []
    batcher = _core.Batcher(signature, run, max_batch_size=3, inline_budget_us=1_000_000, fixed_size=True)
    batcher.attach(call_soon=lambda function, *args: due.append((function, args)), call_later=None,
                   call_soon_threadsafe=None, submit=None)  # fmt: skip
    batcher.seed(1, 1000)
    heard: list[bytes] = []
    endpoint = _core.Endpoint("m", "1", signature, batcher)
    body = b'{"inputs":[{"name":"x","shape":[2,1],"datatype":"BYTES","data":["ab","a longer one"]}]}'
    endpoint.submit(0, body, -1, lambda ticket: heard.append(ticket.encode()[0]))
    while due:
        function, args = due.pop(0)
        function(*args)
    assert seen == [["ab", "a longer one", "a longer one"]]
    assert b'"data":["ab","a longer one"]' in heard[0]
