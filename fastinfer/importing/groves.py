"""Trees for the core: what an estimator that is one forest is written as, in place of an ONNX graph."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer._core import SPLITS
from fastinfer.importing.graph import Floats
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.forest import Planted, Sets, tables


class Grown(NamedTuple):
    """All that an estimator answers, as one forest on the matrix ``x``.

    Attributes:
        x: the matrix, by its name in the graph.
        arrays: of the core's forest.
        options: its other arguments, but for the width, the labels and the answers' type.
    """

    x: str
    arrays: Arrays
    options: dict[str, Any]

    def answering(self, **options: Any) -> "Grown":
        """The same sums, and what is answered of them."""
        return self._replace(options={**self.options, **options})

    def planted(self, width: int, labels: NDArray[Any] | None) -> Planted:
        """For a matrix of so many columns; a classifier answers in FP32, a regressor in FP64."""
        answers = "FP64" if labels is None else "FP32"
        return Planted(self.arrays, {**self.options, "width": width, "labels": labels, "answers": answers})


class Grove:
    """Collects trees, in the order in which their leaves are added up.

    Args:
        dtype: in which values are compared.
        outputs: columns of the sums.
        start: what they begin with.
    """

    def __init__(self, dtype: Any, outputs: int, start: Any = 0.0) -> None:
        self._dtype = dtype
        self._start = np.broadcast_to(np.asarray(start, np.float64).reshape(-1), (outputs,)).copy()
        self._trees: list[tuple[NDArray[Any], ...]] = []
        self._leaves: list[Floats] = []
        self._targets: list[int] = []
        self._sides: list[NDArray[np.bool_]] = []

    def add(
        self,
        left: NDArray[Any],
        right: NDArray[Any],
        feature: NDArray[Any],
        threshold: Floats,
        kind: NDArray[Any],
        leaves: Floats,
        target: int = 0,
        sides: list[NDArray[np.bool_]] | None = None,
    ) -> None:
        """One tree.

        Args:
            left, right, feature, threshold, kind: of its nodes; ``left`` is -1 at a leaf.
            leaves: of its leaves, in the order of the nodes, [leaves, 1 or outputs].
            target: the column that they are added to, where each has one value.
            sides: of its splits on categories, as `Sets.of` takes them.
        """
        inner = left >= 0
        if self._dtype == np.float32:  # values are float32: what is at most the threshold is at most the one below it
            with np.errstate(over="ignore"):
                single = threshold.astype(np.float32)
            threshold = np.where(single > threshold, np.nextafter(single, np.float32(-np.inf)), single)
        columns = (np.where(inner, each, 0) for each in (feature, threshold, kind))
        self._trees.append((np.where(inner, left, -1), np.where(inner, right, -1), *columns))
        self._leaves.append(leaves)
        self._targets.append(target)
        self._sides += sides or []

    def grown(
        self, x: str, values: dict[int, Floats] | None = None, **options: Any
    ) -> Grown:
        """What was added, as a forest on ``x``.

        Args:
            values: of the features whose categories are places among values, those values.
            options: of the core's forest.
        """
        sets = Sets.of(self._sides)
        left, right, feature, threshold, kind = (np.concatenate(parts) for parts in zip(*self._trees, strict=True))
        sizes = [len(tree[0]) for tree in self._trees]
        arrays: Arrays = {
            "starts": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            "left": left.astype(np.int32),
            "right": right.astype(np.int32),
            "feature": feature.astype(np.int32),
            "kind": kind.astype(np.uint8),
            "threshold": threshold.astype(self._dtype),
            "leaves": np.concatenate(self._leaves).astype(np.float64),
            "target": np.array(self._targets, np.int32),
            "start": self._start,
            "set_starts": sets.starts,
            "sets": sets.words,
            **tables(values or {}),
        }
        return Grown(x, arrays, options)


def sides_of(missing_left: Any) -> NDArray[np.uint8]:
    """The kind of a split on numbers, by where a missing value goes."""
    return np.where(missing_left, 0, SPLITS["missing_right"]).astype(np.uint8)
