"""Forests that the core runs: trees as arrays, whatever library made them, and the file that the import writes."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer._core import SPLITS, Engine, Forest, Tensor
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays

Ints = NDArray[np.int32]


class Sets(NamedTuple):
    """Which categories go right, one set a node that splits on them, as the core's forest takes them."""

    starts: NDArray[np.int64]
    words: NDArray[np.uint32]

    @classmethod
    def of(cls, sides: list[NDArray[np.bool_]]) -> "Sets":
        """Of the sides of (missing, unknown, category 0, 1, …): true is right. Beyond the last, unknown's side."""
        words = [packed(each) for each in sides]
        starts = np.concatenate([[0], np.cumsum([len(each) for each in words])]).astype(np.int64)
        return cls(starts, np.concatenate(words) if words else np.empty(0, np.uint32))


def packed(sides: NDArray[np.bool_]) -> NDArray[np.uint32]:
    whole = np.full(-(-len(sides) // 32) * 32, sides[1])
    whole[: len(sides)] = sides
    return np.packbits(whole, bitorder="little").view("<u4").astype(np.uint32)


def no_tables() -> Arrays:
    """The arrays of a forest whose categories are numbers already."""
    return {"table_features": np.empty(0, np.int32), "table_starts": np.zeros(1, np.int64), "tables": np.empty(0)}


class ForestRuntime:
    """Trees in the core.

    Args:
        forest: laid out.
        platform: as the protocol's metadata names it.
    """

    inline = True

    def __init__(self, forest: Forest, platform: str) -> None:
        self.native: Engine | None = forest
        self.platform = platform
        self.inputs = [Tensor(*each) for each in forest.inputs]
        self.outputs = [Tensor(*each) for each in forest.outputs]
        self.classes: dict[str, tuple[str, ...]] = {}
        self.run_forest = forest.run

    def run(self, inputs: Arrays) -> Arrays:
        """Run one batch."""
        return self.run_forest(inputs)


def damaged(path: Any, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{path}: {reason}")


__all__ = ["SPLITS", "ForestRuntime", "Sets", "damaged", "no_tables"]
