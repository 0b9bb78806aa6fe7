"""LightGBM's text files, read here and run by the core: no LightGBM is needed.

Answers are those of ``Booster.predict`` on an array, bit for bit: values are compared in float64, leaves added up in
float64 in the order of the trees.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer._core import SPLITS
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays, Runtime
from fastinfer.runtimes.forest import Planted, Sets, served, tables
from fastinfer.settings import ModelConfig, Settings

VERSIONS = ("v2", "v3", "v4")
ZERO = 1.0000000180025095e-35  # LightGBM's kZeroThreshold, a float32: a value this small is zero
MOST = 1 << 31
CATEGORICAL, DEFAULT_LEFT, MISSING_ZERO, MISSING_NAN = 1, 2, 4, 8  # bits of a decision_type
PLAIN_TEXT = re.compile(r"[-+0-9.eEinfa ]*")
IDENTITIES = {"regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"}
EXPONENTIALS = {"poisson", "gamma", "tweedie"}


class Answer(NamedTuple):
    """What an objective makes of the sums."""

    link: str
    classes: bool
    slope: float = 1.0


class Tree(NamedTuple):
    """One tree of the file, its splits, then its leaves.

    Attributes:
        left, right: children; those of its leaves follow the splits, -1 is none.
        feature, decision, threshold: of its splits.
        values: of its leaves.
        sets: of its splits on categories, in their order: the words that hold which codes go left.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    decision: NDArray[np.int64]
    threshold: NDArray[np.float64]
    values: NDArray[np.float64]
    sets: list[NDArray[np.uint32]]


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load a model that ``Booster.save_model`` wrote.

    Raises:
        ModelLoadError: it is damaged, or holds what is not supported; the message names it.
    """
    return served(path, planted, "LightGBM model", "lightgbm_txt", nullable=True)


def planted(data: bytes) -> Planted:
    """The forest of a file's bytes, its classes numbered.

    Raises:
        ModelLoadError: why it is none.
    """
    header, blocks = sections(data)
    version = header.get("version", "")
    if version not in VERSIONS:
        raise ModelLoadError(f"its version is {version[:20]!r}; {', '.join(VERSIONS)} are read")
    outputs = count(header, "num_tree_per_iteration")
    if outputs < 1:
        raise ModelLoadError("num_tree_per_iteration is 0")
    width = count(header, "max_feature_idx") + 1
    trees = [tree(block, place) for place, block in enumerate(blocks)]
    trees = trees[: len(trees) // outputs * outputs]
    answer = answered(header.get("objective"), outputs)
    rounds = max(1, len(trees) // outputs)
    options = {
        "width": width,
        "divisor": float(rounds) if "average_output" in header else 0.0,
        "link": answer.link,
        "slope": float(answer.slope),
        "labels": np.arange(max(2, outputs)) if answer.classes else None,
    }
    return Planted(arrays_of(trees, outputs), options, feature_names(header, width))


# ---- the text -----------------------------------------------------------------------------------------------------
def sections(data: bytes) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The header's lines and each tree's, by their keys; a line that has no value stands for itself.

    Raises:
        ModelLoadError: it is cut, or its trees are not as long as it says.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"byte {error.start} is not UTF-8") from None
    text, end, rest = text.partition("\nend of trees")  # behind them are features' names, which may be anything
    if not end:
        raise ModelLoadError("it is cut: 'end of trees' is missing")
    if "\nparameters:" in rest and "\nend of parameters" not in rest:
        raise ModelLoadError("it is cut: 'end of parameters' is missing")
    head, *parts = re.split(r"^Tree=", f"{text}\n", flags=re.MULTILINE)
    header = keyed(head.split("\n"))
    sizes = integers(header.get("tree_sizes", ""), "tree_sizes") if "tree_sizes" in header else None
    if sizes is not None and len(sizes) != len(parts):
        raise ModelLoadError(f"it says that it has {len(sizes)} trees, and has {len(parts)}")
    for place, part in enumerate(parts):
        number, _, _ = part.partition("\n")
        if number.strip() != str(place):
            raise ModelLoadError(f"tree {place} is called {number[:20]!r}")
        if sizes is not None and "\r" not in part and len(part.encode()) + len("Tree=") != sizes[place]:
            raise ModelLoadError(f"tree {place} is not as long as the file says")
    return header, [keyed(part.split("\n")[1:]) for part in parts]


def feature_names(header: dict[str, str], width: int) -> tuple[str, ...]:
    """Those that somebody gave: LightGBM numbers the columns of what has none.

    Raises:
        ModelLoadError: they are not as many as the features.
    """
    names = [name for name in header.get("feature_names", "").split(" ") if name]
    if names and len(names) != width:
        raise ModelLoadError(f"it has {len(names)} names of {width} features")
    numbered = [f"Column_{place}" for place in range(width)]
    return () if names == numbered or len(set(names)) < width else tuple(names)


def keyed(lines: list[str]) -> dict[str, str]:
    split = (line.strip(" \r").partition("=") for line in lines)  # names may have any other character
    return {key: value for key, _, value in split}


def count(table: dict[str, str], key: str) -> int:
    """A whole number that is not negative.

    Raises:
        ModelLoadError: it is missing, or no such number.
    """
    text = table.get(key, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ModelLoadError(f"{key} is {text[:20]!r}, which is no number" if key in table else f"{key} is missing")
    return int(text)


def integers(text: str, key: str) -> NDArray[np.int64]:
    if not re.fullmatch(r"(-?[0-9]{1,18}(?: |$))*", text):
        raise ModelLoadError(f"{key} is not a list of whole numbers")
    return np.array(text.split(), np.int64)


def floats(text: str, key: str) -> NDArray[np.float64]:
    if not PLAIN_TEXT.fullmatch(text):
        raise ModelLoadError(f"{key} is not a list of numbers")
    try:
        return np.array([float(each) for each in text.split()], np.float64)
    except ValueError:
        raise ModelLoadError(f"{key} is not a list of numbers") from None


# ---- its trees ----------------------------------------------------------------------------------------------------
def tree(block: dict[str, str], place: int) -> Tree:
    """
    Raises:
        ModelLoadError: a list is missing or too short, or the tree is of a kind that is not supported.
    """

    def listed(key: str, size: int, read: Any) -> Any:
        values = read(block.get(key, ""), key)
        if len(values) != size:
            raise ModelLoadError(f"tree {place}: {key} has {len(values)} values, not {size}")
        return values

    try:
        if block.get("is_linear", "0") != "0":
            raise ModelLoadError("linear leaves (linear_tree=true) are not supported")
        leaves = count(block, "num_leaves")
        if leaves < 1:
            raise ModelLoadError("it has no leaves")
        splits = leaves - 1
        left, right = (listed(key, splits, integers) for key in ("left_child", "right_child"))
        for children in (left, right):
            if ((children < -leaves) | (children >= splits)).any():
                raise ModelLoadError("it has a child that there is not")
        decision, threshold = listed("decision_type", splits, integers), listed("threshold", splits, floats)
        feature = listed("split_feature", splits, integers)
        if ((feature < 0) | (feature >= MOST)).any():
            raise ModelLoadError("it reads a feature that there is not")
        sets = list(category_sets(block, threshold[decision & CATEGORICAL != 0]))
        left, right = (np.where(side < 0, splits + ~side, side) for side in (left, right))
        return Tree(left, right, feature, decision, threshold, listed("leaf_value", leaves, floats), sets)
    except ModelLoadError as error:
        raise error if str(error).startswith("tree ") else ModelLoadError(f"tree {place}: {error}") from None


def category_sets(block: dict[str, str], places: NDArray[np.float64]) -> Iterator[NDArray[np.uint32]]:
    """The words of each split on categories, whose threshold is the place of its set."""
    if not len(places):
        return
    bounds, words = integers(block.get("cat_boundaries", ""), "cat_boundaries"), integers(
        block.get("cat_threshold", ""), "cat_threshold")
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(words) or (np.diff(bounds) < 0).any() or (
            (words < 0) | (words >= 1 << 32)).any():
        raise ModelLoadError("its sets of categories are damaged")
    for place in places.tolist():
        if not 0 <= place < len(bounds) - 1:
            raise ModelLoadError("it has not as many sets of categories as it uses")
        yield words[bounds[int(place)] : bounds[int(place) + 1]].astype(np.uint32)


def arrays_of(trees: list[Tree], outputs: int) -> Arrays:
    """All trees, node by node: of each its splits, then its leaves."""
    splits = np.array([len(each.left) for each in trees], np.int64)
    sizes = 2 * splits + 1
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    inner = np.repeat(starts[:-1], splits) + np.concatenate([np.arange(each) for each in [*splits, 0]]).astype(np.int64)
    decision, threshold = (joined([getattr(each, name) for each in trees]) for name in ("decision", "threshold"))
    arrays: Arrays = {
        "starts": starts,
        "left": np.full(starts[-1], -1, np.int32),
        "right": np.full(starts[-1], -1, np.int32),
        "feature": np.zeros(starts[-1], np.int32),
        "kind": np.zeros(starts[-1], np.uint8),
        "threshold": np.zeros(starts[-1]),
        "leaves": joined([each.values for each in trees]).astype(np.float64).reshape(-1, 1),
        "target": (np.arange(len(trees)) % outputs).astype(np.int32),
        "start": np.zeros(outputs),
        **tables({}),
    }
    for name in ("left", "right", "feature"):
        arrays[name][inner] = joined([getattr(each, name) for each in trees])
    arrays["kind"][inner] = readings(decision.astype(np.int64), threshold)
    arrays["threshold"][inner] = threshold
    sets = Sets.of([sides(words) for each in trees for words in each.sets])
    return {**arrays, "set_starts": sets.starts, "sets": sets.words}


def joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0)


def readings(decision: NDArray[np.int64], threshold: NDArray[np.float64]) -> NDArray[np.uint8]:
    """How each split reads its feature.

    Where zero is missing, or nothing is, NaN is zero. A number that is as small as zero is zero, which a threshold far
    from zero does not tell apart.
    """
    zero, missing = decision & MISSING_ZERO != 0, decision & (MISSING_ZERO | MISSING_NAN) != 0
    near = (threshold >= -ZERO) & (threshold < ZERO)
    kinds = (
        near * SPLITS["flushed"]
        + (zero | ~missing) * SPLITS["nan_as_zero"]
        + zero * SPLITS["zero_as_missing"]
        + (missing & (decision & DEFAULT_LEFT == 0)) * SPLITS["missing_right"]
    )
    category = SPLITS["code"] | SPLITS["towards_zero"]
    return np.where(decision & CATEGORICAL != 0, category, kinds).astype(np.uint8)


def sides(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Of (missing, unknown, category 0, 1, …), whether it goes right: what is in the set goes left."""
    members = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little").astype(np.bool_)
    return np.concatenate([[True, True], ~members])


# ---- what it answers ----------------------------------------------------------------------------------------------
def answered(objective: str | None, outputs: int) -> Answer:
    """By the objective as the file states it; without one, which is then the user's own, the sums.

    Raises:
        ModelLoadError: one that is not known.
    """
    kind, *options = (objective or "none").split()
    parameters = dict(option.split(":", 1) for option in options if ":" in option)
    slope = floats(parameters.get("sigmoid", "1"), "sigmoid")[0]
    if kind in ("none", "custom") or kind in IDENTITIES:
        return Answer("signed_square" if "sqrt" in options else "identity", False)
    if kind in EXPONENTIALS:
        return Answer("exponential", False)
    if kind == "multiclass" and outputs > 1:
        return Answer("softmax", True)
    if kind == "multiclassova" and outputs > 1:
        return Answer("sigmoid", True, slope)
    if kind == "binary" and outputs == 1:
        return Answer("sigmoid", True, slope)
    if kind in ("cross_entropy", "xentropy") and outputs == 1:
        return Answer("sigmoid", True)
    if kind in ("cross_entropy_lambda", "xentlambda") and outputs == 1:
        return Answer("softplus", False)
    raise ModelLoadError(f"the objective {kind[:40]!r} with {outputs} trees an iteration is not supported")
