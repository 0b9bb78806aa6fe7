"""XGBoost's own files, .json and .ubj, read here and run by the core: no XGBoost is needed.

Answers are those of ``Booster.predict``, bit for bit: values are float32 and go left where they are less than the
threshold; leaves are added up in float32 in the order of the trees, onto the start score.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfer._core import SPLITS, natural_logs
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import Arrays, Runtime, ubjson
from fastinfer.runtimes.forest import Planted, Sets, served, tables
from fastinfer.settings import ModelConfig, Settings

Singles = NDArray[np.float32]

LOGISTIC = {"binary:logistic", "reg:logistic"}
EXPONENTIAL = {"count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"}  # aft: of float64
IDENTITY = {
    "reg:squarederror", "reg:linear", "reg:squaredlogerror", "reg:absoluteerror", "reg:pseudohubererror",
    "reg:quantileerror", "reg:expectileerror", "binary:logitraw", "rank:pairwise", "rank:ndcg", "rank:map",
}  # fmt: skip
MOST_CATEGORIES = 1 << 24
LEAST = np.float32(1e-6)  # probability to start from, XGBoost's kRtEps


class Tree(NamedTuple):
    """One tree: its nodes, its leaves' values [leaves, values a leaf], and which categories go right."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    kind: NDArray[np.uint8]
    threshold: Singles
    leaves: Singles
    sides: list[NDArray[np.bool_]]


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """Load a model that ``Booster.save_model`` wrote.

    Raises:
        ModelLoadError: it is damaged, or holds what is not supported; the message names it.
    """
    binary = path.suffix.lower() == ".ubj"
    platform = "xgboost_ubj" if binary else "xgboost_json"
    return served(path, lambda data: planted(data, binary), "XGBoost model", platform, nullable=True)


def planted(data: bytes, binary: bool, *, rounds: int = 0, inplace: bool = False) -> Planted:
    """The forest of a file's bytes, its classes numbered.

    Args:
        rounds: iterations that answer; 0 is all, or of a scikit-learn class's file, as many as answer there.
        inplace: as ``Booster.inplace_predict`` adds up the trees of DART, which the scikit-learn classes call.

    Raises:
        ModelLoadError: why it is none.
    """
    try:
        document = ubjson.loads(data) if binary else json.loads(data)
        return _planted(document["learner"], rounds, inplace)
    except ModelLoadError:
        raise
    except KeyError as error:
        raise ModelLoadError(f"it lacks {error.args[0]!r}") from None
    except RecursionError:
        raise ModelLoadError("it is nested too deeply") from None
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise ModelLoadError(f"it is damaged ({(str(error).splitlines() or [''])[0][:200]})") from None


def _planted(learner: dict[str, Any], rounds: int, inplace: bool) -> Planted:
    parameters, objective = learner["learner_model_param"], str(learner["objective"]["name"])
    booster, weights = learner["gradient_booster"], None
    if booster["name"] == "dart":
        weights = np.asarray(booster["weight_drop"], np.float32)
        booster = booster["gbtree"]
    if booster["name"] != "gbtree":
        raise ModelLoadError(f"the booster {booster['name']!r} is not supported")
    classes = int(parameters["num_class"])
    outputs = max(classes, int(parameters.get("num_target", 1)), 1)
    if outputs > 1 << 16:
        raise ModelLoadError(f"it has {outputs:,} outputs")
    start = np.broadcast_to(margins(str(parameters["base_score"]), objective), (outputs,)).copy()
    if not np.isfinite(start).all():
        raise ModelLoadError(f"base_score gives no finite start under {objective!r}")
    attributes = learner.get("attributes", {})
    if "scikit_learn" in attributes and not rounds:
        rounds, inplace = int(attributes.get("best_iteration", -1)) + 1, True
    model = booster["model"]
    count, targets = len(model["trees"]), np.asarray(model["tree_info"], np.int64)
    if not count and parameters.get("boost_from_average") == "1" and objective in LOGISTIC | EXPONENTIAL:
        raise ModelLoadError("it has no trees, and was not fitted: what it starts from differs by XGBoost's release")
    if rounds > 0:
        ends = model.get("iteration_indptr", range(0, count + 1, trees_a_round(model, outputs)))
        count = int(ends[rounds]) if rounds < len(ends) else count
    if len(targets) != len(model["trees"]) or ((targets < 0) | (targets >= outputs)).any() or (
            weights is not None and len(weights) != len(targets)):
        raise ModelLoadError("its trees are not as many as it says")
    trees = [tree(document, place) for place, document in enumerate(model["trees"][:count])]
    if weights is not None:  # in place, each tree is asked from the start score on, and that is taken off again
        bases = start[targets] if inplace else np.zeros(len(targets), np.float32)
        trees = [each._replace(leaves=weight * ((base + each.leaves) - base)) for each, weight, base in
                 zip(trees, weights, bases, strict=False)]
    width = int(parameters["num_feature"])
    options = {**answered(objective, outputs), "width": width, "strict": True}
    names = tuple(map(str, learner.get("feature_names") or ()))
    if names and len(names) != width:
        raise ModelLoadError(f"it has {len(names)} names of {width} features")
    return Planted(arrays_of(trees, targets[:count], start), options, names if len(set(names)) == width else ())


def trees_a_round(model: dict[str, Any], outputs: int) -> int:
    """Of a file of an XGBoost that did not write where each iteration's trees end."""
    return max(1, int(model["gbtree_model_param"].get("num_parallel_tree", 1)) * outputs)


def margins(text: str, objective: str) -> Singles:
    """The start scores: ``base_score``, a number or a list in JSON, by the inverse of the objective's link."""
    scores = np.atleast_1d(np.array(json.loads(text), np.float32))
    with np.errstate(divide="ignore", invalid="ignore"):
        if objective in LOGISTIC:
            scores = np.clip(scores, LEAST, np.float32(1) - LEAST)
            return -natural_logs(np.float32(1) / scores - np.float32(1))
        if objective in EXPONENTIAL:
            return natural_logs(scores)
    return scores


# ---- its trees ----------------------------------------------------------------------------------------------------
def tree(document: dict[str, Any], place: int) -> Tree:
    """
    Raises:
        ModelLoadError: its lists are not of one length, or hold what is no tree.
    """
    left, right, feature, default = (
        np.asarray(document[name], np.int64)
        for name in ("left_children", "right_children", "split_indices", "default_left")
    )
    conditions = np.asarray(document["split_conditions"], np.float32)
    if any(each.shape != (len(left),) for each in (left, right, feature, default, conditions)):
        raise ModelLoadError(f"tree {place}: its lists are not of one length")
    leaf = left < 0
    if ((left[~leaf] >= len(left)) | (right[~leaf] < 0) | (right[~leaf] >= len(left))).any():
        raise ModelLoadError(f"tree {place}: it has a child that there is not")
    if ((feature[~leaf] < 0) | (feature[~leaf] >= 1 << 31)).any():
        raise ModelLoadError(f"tree {place}: it reads a feature that there is not")
    sets = category_sets(document, len(left), place)
    categorical = np.zeros(len(left), np.bool_)
    categorical[list(sets)] = True
    types = np.asarray(document.get("split_type", categorical)).astype(np.bool_)
    if types.shape != categorical.shape or ((types != categorical) & ~leaf).any():
        raise ModelLoadError(f"tree {place}: its splits on categories have not their categories")
    missing_right = default == 0
    several = int(document["tree_param"].get("size_leaf_vector", "0") or 0)
    leaves = conditions[leaf][:, None]
    if several > 1:
        vectors = np.asarray(document["leaf_weights"], np.float32).reshape(-1, several)
        leaves = vectors[right[leaf]]
    return Tree(
        np.where(leaf, -1, left),
        np.where(leaf, -1, right),
        np.where(leaf, 0, feature),
        np.where(categorical, SPLITS["code"], missing_right * SPLITS["missing_right"]).astype(np.uint8),
        np.where(leaf | categorical, np.float32(0), conditions),
        leaves,
        [sides(codes, bool(missing_right[node])) for node, codes in sorted(sets.items()) if not leaf[node]],
    )


def category_sets(document: dict[str, Any], size: int, place: int) -> dict[int, NDArray[np.int64]]:
    """The categories that go right, by node."""
    flat = np.asarray(document.get("categories", ()), np.int64)
    nodes, firsts, sizes = (np.asarray(document.get(f"categories_{name}", ()), np.int64) for name in
                            ("nodes", "segments", "sizes"))
    if not len(nodes) == len(firsts) == len(sizes) == len(np.unique(nodes)) or (
            (nodes < 0) | (nodes >= size) | (firsts < 0) | (sizes < 0) | (firsts + sizes > len(flat))).any() or (
            (flat < 0) | (flat >= MOST_CATEGORIES)).any():
        raise ModelLoadError(f"tree {place}: its categories are damaged")
    parts = zip(nodes.tolist(), firsts.tolist(), sizes.tolist(), strict=True)
    return {node: flat[first : first + count] for node, first, count in parts}


def sides(rights: NDArray[np.int64], missing_right: bool) -> NDArray[np.bool_]:
    """Of (missing, unknown, category 0, 1, …), whether it goes right; an unknown one goes left."""
    found = np.zeros(2 + (int(rights.max()) + 1 if len(rights) else 0), np.bool_)
    found[0] = missing_right
    found[2 + rights] = True
    return found


def arrays_of(trees: list[Tree], targets: NDArray[np.int64], start: Singles) -> Arrays:
    starts = np.concatenate([[0], np.cumsum([len(each.left) for each in trees])]).astype(np.int64)
    sets = Sets.of(each for one in trees for each in one.sides)

    def joined(name: str, dtype: Any) -> NDArray[Any]:
        parts = [getattr(each, name) for each in trees]
        return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)

    return {
        "starts": starts,
        "left": joined("left", np.int32),
        "right": joined("right", np.int32),
        "feature": joined("feature", np.int32),
        "kind": joined("kind", np.uint8),
        "threshold": joined("threshold", np.float32),
        "leaves": joined("leaves", np.float32) if trees else np.empty((0, 1), np.float32),
        "target": targets.astype(np.int32),
        "start": start.astype(np.float32),
        "set_starts": sets.starts,
        "sets": sets.words,
        **tables({}),
    }


# ---- what it answers ----------------------------------------------------------------------------------------------
def answered(objective: str, outputs: int) -> dict[str, Any]:
    """The core's options by the objective: what ``predict`` makes of the sums.

    Raises:
        ModelLoadError: one that is not known.
    """
    plain: dict[str, Any] = {"answers": "FP32", "labels": None}
    if objective in ("multi:softprob", "multi:softmax") and outputs > 1:
        rule = "highest" if objective == "multi:softmax" else "most_probable"
        return {**plain, "link": "softmax", "rule": rule, "labels": np.arange(outputs)}
    if objective in ("binary:logistic", "binary:hinge") and outputs == 1:
        link = "sigmoid" if objective == "binary:logistic" else "step"
        return {**plain, "link": link, "rule": "above_half", "labels": np.arange(2)}
    links = dict.fromkeys(LOGISTIC, "sigmoid") | dict.fromkeys(EXPONENTIAL, "exponential") | dict.fromkeys(IDENTITY, "")
    links |= {"binary:hinge": "step", "survival:aft": "rounded_exponential"}
    if objective not in links:
        raise ModelLoadError(f"the objective {objective[:60]!r} is not supported")
    return {**plain, "link": links[objective] or "identity"}
