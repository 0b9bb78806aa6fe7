"""Trees in the core: sums beside a plain twin's, bit by bit; arrays that are no forest are refused."""

import re

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer._core import LINKS, SPLITS, Forest, narrow_vectors, through_passes
from fastinfer.errors import ModelLoadError

KINDS = [0, 1, 2, 6, 7, 8, 16, 16 + 64, 16 + 8, 32, 32 + 8]
WIDTH = 4
SENTINEL = -7.0


def some_tree(random, size):
    """Children of a random tree of ``size`` splits, its nodes in a random order behind the root."""
    left, right, leaves = [-1], [-1], [0]
    for _ in range(size):
        node = leaves.pop(random.integers(len(leaves)))
        left[node], right[node] = len(left), len(left) + 1
        leaves += [left[node], right[node]]
        left += [-1, -1]
        right += [-1, -1]
    order = np.concatenate([[0], 1 + random.permutation(len(left) - 1)])
    place = np.argsort(order)
    return tuple(np.where(np.array(side)[order] < 0, -1, place[np.array(side)[order]]) for side in (left, right))


def some_arrays(seed, *, trees, splits, outputs, wide, read, add):
    random = np.random.default_rng(seed)
    made = [some_tree(random, int(random.integers(splits + 1))) for _ in range(trees)]
    sizes = [len(left) for left, _ in made]
    left, right = (np.concatenate([tree[i] for tree in made] or [[]]).astype(np.int32) for i in (0, 1))
    count, inner = len(left), left >= 0
    kind = (random.choice(KINDS, count) + 128 * random.integers(0, 2, count)).astype(np.uint8)
    categorical = inner & (kind & 48 != 0)
    sizes_of_sets = random.integers(1, 4, categorical.sum())
    thresholds = random.choice([-1.5, -1e-35, -0.0, 0.0, 1e-36, 0.3, 1.0, 2.0, np.inf, -np.inf, 1e300], count)
    return {
        "starts": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        "left": left,
        "right": right,
        "feature": random.integers(0, WIDTH, count).astype(np.int32),
        "kind": kind,
        "threshold": thresholds.clip(-3e38, 3e38).astype(read) if read == np.float32 else thresholds,
        "leaves": random.normal(size=(count - inner.sum(), outputs if wide else 1)).astype(add),
        "target": random.integers(0, outputs, trees).astype(np.int32),
        "start": random.normal(size=outputs).astype(add),
        "set_starts": np.concatenate([[0], np.cumsum(sizes_of_sets)]).astype(np.int64),
        "sets": random.integers(0, 1 << 32, sizes_of_sets.sum()).astype(np.uint32),
        "table_features": np.arange(WIDTH, dtype=np.int32),
        "table_starts": np.arange(WIDTH + 1, dtype=np.int64) * 3,
        "tables": np.tile([-1.5, 0.0, 2.0], WIDTH),
    }


def some_rows(seed, arrays, count):
    """Values at the thresholds, at their neighbours, and where casts and comparisons turn."""
    random = np.random.default_rng(seed)
    dtype = arrays["threshold"].dtype
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-35, -1e-35, 1.1e-35, SENTINEL, -0.5, -1.0, 1.9, 2.0, 31.0, 62.0, 94.0,
           1e9, 2147483646.0, 4e9, -4e9]
    with np.errstate(over="ignore"):
        near = np.concatenate([arrays["threshold"], *(np.nextafter(arrays["threshold"], dtype.type(end))
                                                      for end in (-np.inf, np.inf)), np.array(odd, dtype)])
    return np.ascontiguousarray(random.choice(near, (count, WIDTH)))


TYPES = [(np.float32, np.float32), (np.float32, np.float64), (np.float64, np.float64)]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30), trees=st.integers(0, 20), splits=st.sampled_from([0, 1, 3, 7, 15, 31, 40, 63]),
       outputs=st.integers(1, 3), wide=st.booleans(), strict=st.booleans(), types=st.sampled_from(TYPES),
       count=st.integers(0, 80), way=st.sampled_from(["wide", "narrow", "passes"]))
def test_sums_are_those_of_a_plain_walk(seed, trees, splits, outputs, wide, strict, types, count, way):
    read, add = types
    arrays = some_arrays(seed, trees=trees, splits=splits, outputs=outputs, wide=wide, read=read, add=add)
    answers = "FP32" if add == np.float32 else "FP64"
    narrow_vectors(way == "narrow")
    through_passes(way == "passes")
    forest = Forest(arrays, width=WIDTH, strict=strict, sentinel=SENTINEL, answers=answers)
    narrow_vectors(False)
    through_passes(False)
    rows = some_rows(seed, arrays, count)
    got = forest.run({"features": rows})["value"]
    expected = reference.forest_sums(arrays, rows[:20], strict=strict, sentinel=SENTINEL)
    assert got.shape == (count, outputs)
    assert got.dtype == add
    assert got[:20].tobytes() == expected.tobytes()
    for row in range(0, count, 7):  # whatever is beside it
        assert forest.run({"features": rows[row:row + 1].copy()})["value"].tobytes() == got[row].tobytes()


def small(**changes):
    """Two trees, the first with a split on categories under one on a number, and the second a leaf."""
    arrays = {
        "starts": np.array([0, 5, 6]), "left": np.array([1, 3, -1, -1, -1, -1], np.int32),
        "right": np.array([2, 4, -1, -1, -1, -1], np.int32), "feature": np.array([0, 1, 0, 0, 0, 0], np.int32),
        "kind": np.array([0, 16, 0, 0, 0, 0], np.uint8), "threshold": np.array([0.5, 0, 0, 0, 0, 0]),
        "leaves": np.array([[1.0], [2.0], [4.0], [8.0]]), "target": np.array([0, 0], np.int32), "start": np.zeros(1),
        "set_starts": np.array([0, 1]), "sets": np.array([0b1011], np.uint32), "table_features": np.empty(0, np.int32),
        "table_starts": np.array([0]), "tables": np.empty(0),
    }
    return arrays | changes


def test_a_category_goes_by_its_bit_and_a_missing_one_by_the_first():
    rows = np.array([[1.0, 9], [0.0, 0], [0.0, 1], [0.0, 2], [0.0, -1], [0.0, np.nan]])
    assert Forest(small(), width=2).run({"features": rows})["value"].ravel().tolist() == [9, 10, 12, 10, 12, 12]


@pytest.mark.parametrize(("changes", "message"), [
    ({"left": np.array([1, 0, -1, -1, -1, -1], np.int32)}, "tree 0: its nodes are not a tree"),
    ({"left": np.array([1, 5, -1, -1, -1, -1], np.int32)}, "tree 0: its nodes are not a tree"),
    ({"right": np.array([1, 4, -1, -1, -1, -1], np.int32)}, "tree 0: its nodes are not a tree"),
    ({"right": np.array([-9, 4, -1, -1, -1, -1], np.int32)}, "tree 0: its nodes are not a tree"),
    ({"starts": np.array([0, 0, 6])}, "starts does not say where each part begins"),
    ({"starts": np.array([0, 6, 6])}, "starts does not say where each part begins"),
    ({"starts": np.array([0, 9, 6])}, "starts does not say where each part begins"),
    ({"starts": np.empty(0, np.int64)}, "starts does not say where each part begins"),
    ({"starts": np.array([0, 6])}, "target has not a value for each tree"),
    ({"feature": np.array([0, 2, 0, 0, 0, 0], np.int32)}, "a node reads none of the 2 features"),
    ({"feature": np.array([0, -1, 0, 0, 0, 0], np.int32)}, "a node reads none of the 2 features"),
    ({"kind": np.zeros(5, np.uint8)}, "its nodes' arrays are not of one length"),
    ({"kind": np.zeros(6, np.uint8)}, "sets has not a set for each that is used"),
    ({"kind": np.array([0, 32, 0, 0, 0, 0], np.uint8)}, "feature 1 has no table of categories"),
    ({"table_features": np.array([1], np.int32)}, "table_features has not a feature for each table"),
    ({"table_features": np.array([1], np.int32), "table_starts": np.array([0, 2]), "tables": np.array([2.0, 1.0])},
     "the table of feature 1 does not ascend"),
    ({"threshold": np.array([np.nan, 0, 0, 0, 0, 0])}, "tree 0: a threshold or a leaf is not a number"),
    ({"threshold": np.zeros(6, np.float16)}, "threshold is not an array of float32 or float64"),
    ({"leaves": np.array([[1.0], [2.0], [4.0], [np.inf]])}, "tree 1: a threshold or a leaf is not a number"),
    ({"leaves": np.zeros((3, 1))}, "leaves has not the values of each leaf"),
    ({"leaves": np.zeros((4, 2))}, "leaves has not the values of each leaf"),
    ({"leaves": np.zeros(4)}, "leaves is not an array of float32 or float64"),
    ({"leaves": np.zeros((4, 1), np.float32), "start": np.zeros(1, np.float32)},
     "float64 thresholds have float64 leaves"),
    ({"target": np.array([0, 1], np.int32)}, "tree 1: it adds to an output that there is not"),
    ({"target": np.array([0, -1], np.int32)}, "tree 1: it adds to an output that there is not"),
    ({"start": np.zeros(0)}, "start is not one finite number for each"),
    ({"start": np.array([np.nan])}, "start is not one finite number for each"),
    ({"set_starts": np.array([0, 2])}, "set_starts does not say where each part begins"),
    ({"set_starts": np.array([0, 0]), "sets": np.empty(0, np.uint32)}, "set_starts does not say"),
    ({"sets": [1]}, "sets is not an array of uint32"),
    ({"more": np.zeros(1)}, "its arrays are not starts, left"),
])  # fmt: skip
def test_arrays_that_are_no_forest_are_refused(changes, message):
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        Forest(small(**changes), width=2)


@pytest.mark.parametrize("options", [
    {"width": 0}, {"width": 1 << 40}, {"link": "probit"}, {"rule": "best"}, {"answers": "FP16"},
    {"labels": np.array(["a"], object)}, {"labels": np.array(["a", 1], object)}, {"labels": np.arange(3)},
])  # fmt: skip
def test_answers_that_there_are_not_are_refused(options):
    with pytest.raises(ModelLoadError):
        Forest(small(), **{"width": 2} | options)


@pytest.mark.parametrize("features", [
    np.zeros((2, 3)), np.zeros(2), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int64), np.zeros((2, 2), ">f8"),
    np.zeros((4, 4))[::2, ::2],
])  # fmt: skip
def test_rows_that_are_not_as_declared_are_refused(features):
    with pytest.raises(ValueError, match="features is not"):
        Forest(small(), width=2).run({"features": features})


def constant(start, **options):
    """What a forest of no trees answers."""
    none = {name: array[:0] for name, array in small().items() if name not in ("starts", "set_starts", "table_starts")}
    one = np.zeros(1, np.int64)
    arrays = {**none, "starts": one, "set_starts": one, "table_starts": one, "start": np.array(start, np.float64)}
    return Forest(arrays, width=2, **options).run({"features": np.zeros((2, 2))})


@pytest.mark.parametrize(("link", "expected"), list(zip(LINKS, [
    [-1.5, 0.5], 1 / (1 + np.exp([3.0, -1.0])), np.exp([-2.0, 0.0]) / (np.exp(-2.0) + 1), np.exp([-1.5, 0.5]),
    np.exp([-1.5, 0.5]),
    [-2.25, 0.25], np.log1p(np.exp([-1.5, 0.5])), [0, 1],
], strict=True)))  # fmt: skip
def test_links(link, expected):
    value = constant([-3.0, 1.0], divisor=2.0, link=link, slope=2.0)["value"]
    np.testing.assert_array_equal(value, np.tile(value[0], (2, 1)))
    np.testing.assert_allclose(value[0], expected, rtol=1e-15)


@pytest.mark.parametrize(("rule", "score", "label"), [
    ("most_probable", 0.0, "no"), ("most_probable", 0.1, "yés"), ("above_zero", 0.0, "no"),
    ("above_zero", 1e-300, "yés"),
    ("from_zero", 0.0, "yés"), ("from_zero", -1e-300, "no"), ("above_half", 0.0, "no"), ("above_half", 1.0, "yés"),
])  # fmt: skip
def test_the_label_of_two_classes(rule, score, label):
    answers = constant([score], link="sigmoid", rule=rule, labels=np.array(["no", "yés"], object), answers="FP32")
    assert answers["label"].tolist() == [label, label]
    assert answers["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1)


@pytest.mark.parametrize(("labels", "label"), [
    (np.array([5, -7, 9]), -7), (np.array(["", "b" * 40, "c"], object), "b" * 40)
])  # fmt: skip
@pytest.mark.parametrize("rule", ["most_probable", "highest"])
def test_the_label_of_several_classes_is_the_first_of_the_highest(labels, label, rule):
    answers = constant([0.5, 2.0, 2.0], link="softmax", rule=rule, labels=labels)
    assert answers["label"].tolist() == [label, label]
    assert answers["probabilities"].shape == (2, 3)


def test_labels_may_be_true_and_false():
    answers = constant([3.0], link="sigmoid", labels=np.array([False, True]))
    assert answers["label"].tolist() == [True, True]


def test_the_kinds_of_splits_are_bits():
    assert sorted(SPLITS.values()) == [1 << bit for bit in range(8)]
