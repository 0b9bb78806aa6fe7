"""XGBoost's own files: answered bit for bit as `Booster.predict` does, and refused where they are damaged."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

import fastinfer
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes import ubjson
from fastinfer.runtimes.xgboost import planted

RNG = np.random.default_rng(11)
KINDS = ["q"] * 4 + ["c", "c"]
SPECIAL = np.array(
    [0, -0.0, np.nan, -0.5, -1, 0.5, 1.5, 2, 3, 7, 8, 39, 40, 100, 1e9, -3e9, 2**24, 1e-40, -1e-40], np.float32)
DART = {"booster": "dart", "rate_drop": 0.3}
OBJECTIVES: list[tuple[str, dict[str, Any]]] = [
    ("binary:logistic", {}), ("binary:logistic", {"base_score": 0.3}), ("binary:logistic", DART), ("reg:logistic", {}),
    ("binary:logitraw", {}), ("binary:hinge", {}), ("multi:softprob", {"num_class": 3}),
    ("multi:softmax", {"num_class": 3}), ("multi:softprob", {"num_class": 3, **DART}),
    ("reg:squarederror", {}), ("reg:squarederror", {"num_parallel_tree": 4, "subsample": 0.5}),
    ("reg:squarederror", {"tree_method": "exact"}), ("reg:squarederror", {"targets": 2}),
    ("reg:squarederror", {"targets": 2, "multi_strategy": "multi_output_tree"}), ("binary:logistic", {"targets": 2}),
    ("reg:squaredlogerror", {}), ("reg:absoluteerror", {}), ("reg:pseudohubererror", {}),
    ("reg:quantileerror", {"quantile_alpha": [0.3, 0.6]}), ("count:poisson", {}), ("reg:gamma", {}),
    ("reg:tweedie", {}), ("survival:cox", {}), ("survival:aft", {}), ("rank:ndcg", {}), ("rank:pairwise", {}),
]  # fmt: skip


def trained(objective: str, rounds: int = 12, targets: int = 1, **options: Any) -> tuple[xgboost.Booster, Any]:
    """A booster, and the kinds of its columns: numbers, some missing, and two columns of categories."""
    rows = RNG.normal(size=(400, 6)).astype(np.float32)
    rows[:, 4], rows[:, 5] = RNG.integers(0, 40, 400), RNG.integers(0, 4, 400)
    rows[RNG.random(rows.shape) < 0.1] = np.nan
    amount = np.nan_to_num(rows[:, 0]) + np.isin(rows[:, 4], [1, 5, 9, 20]) + RNG.normal(size=400) * 0.3
    if objective.startswith(("multi", "rank")):
        amount = np.clip(np.round(amount), 0, 2)
    elif objective.startswith("binary") or objective == "reg:logistic":
        amount = (amount > 0.3) + 0.0
    elif objective.startswith(("count", "reg:gamma", "reg:tweedie", "reg:squaredlog", "survival")):
        amount = np.exp(amount)
    label: Any = np.stack([amount, amount.max() - amount], axis=1) if targets > 1 else amount
    plain = "multi_strategy" in options or options.get("tree_method") == "exact"
    kinds = None if plain else KINDS
    data = xgboost.DMatrix(rows, None if objective == "survival:aft" else label, feature_types=kinds,
                           enable_categorical=not plain, group=[40] * 10 if objective.startswith("rank") else None)
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", amount)
        data.set_float_info("label_upper_bound", amount)
    settings = {"objective": objective, "max_depth": 4, "max_cat_to_onehot": 3, "nthread": 1, **options}
    return xgboost.train(settings, data, rounds), kinds


def hard_rows(booster: xgboost.Booster) -> np.ndarray:
    """Rows at each threshold and at its neighbours, and with what casts and comparisons may take wrongly."""
    trees = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
    turns = {(feature, np.float32(turn)) for tree in trees.get("gbtree", trees)["model"]["trees"]
             for left, feature, turn in zip(tree["left_children"], tree["split_indices"], tree["split_conditions"],
                                            strict=True) if left >= 0}
    rows = RNG.normal(size=(len(turns), 3, 6)).astype(np.float32)
    for block, (feature, turn) in zip(rows, sorted(turns), strict=True):
        block[:, feature] = [turn, *np.nextafter(turn, np.array([-np.inf, np.inf], np.float32))]
    return np.concatenate([rows.reshape(-1, 6), RNG.choice(SPECIAL, (300, 6)), RNG.normal(size=(3000, 6))], dtype="f4")


@pytest.mark.parametrize(("objective", "options"), OBJECTIVES)
def test_answers_have_the_bits_of_booster_predict(objective: str, options: dict[str, Any]) -> None:
    booster, kinds = trained(objective, **options)
    rows = hard_rows(booster)
    data = xgboost.DMatrix(rows, feature_types=kinds, enable_categorical=kinds is not None)
    expected = booster.predict(data).reshape(len(rows), -1)
    for suffix in ("json", "ubj"):
        answers = planted(bytes(booster.save_raw(suffix)), suffix == "ubj").forest().run({"features": rows})
        got = answers.get("value", answers.get("probabilities"))
        if objective == "multi:softmax":
            got = answers["label"].astype(np.float32)[:, None]
        elif "label" in answers:
            assert (answers["label"] == got.argmax(axis=1)).all()
        if expected.shape[1] == 1 and got.shape[1] == 2:
            assert (got[:, 0] == 1 - expected[:, 0]).all()
            got = np.ascontiguousarray(got[:, 1:])
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_the_file_is_served_as_it_is(suffix: str, tmp_path: Path) -> None:
    booster, kinds = trained("binary:logistic")
    (tmp_path / "models" / "credit" / "1").mkdir(parents=True)
    for path in (tmp_path / f"credit.{suffix}", tmp_path / "models" / "credit" / "1" / f"model.{suffix}"):
        booster.save_model(path)
    rows = RNG.normal(size=(5, 6)).astype(np.float32)
    expected = booster.predict(xgboost.DMatrix(rows, feature_types=kinds, enable_categorical=True))
    for path in (tmp_path / f"credit.{suffix}", tmp_path / "models"):
        model = fastinfer.load(path)
        assert model.predict({"features": rows})["probabilities"][:, 1].tobytes() == expected.tobytes()
        assert (model.platform, model.batch_invariant) == (f"xgboost_{suffix}", True)
        assert model.task is not None
        assert (model.task.kind, model.task.classes) == ("classifier", ("0", "1"))


def test_no_trees_and_a_lone_leaf() -> None:
    data = xgboost.DMatrix(np.zeros((20, 2)), np.full(20, 3.5))
    for rounds in (0, 1):
        booster = xgboost.train({"objective": "reg:squarederror"}, data, rounds)
        forest = planted(bytes(booster.save_raw("ubj")), True).forest()
        value = forest.run({"features": np.zeros((1, 2), np.float32)})["value"]
        assert value.ravel().tolist() == booster.predict(xgboost.DMatrix(np.zeros((1, 2)))).tolist()


def test_a_classifier_that_was_not_fitted_is_refused(tmp_path: Path) -> None:
    data = xgboost.DMatrix(np.zeros((20, 2)), np.arange(20) % 2)
    booster = xgboost.train({"objective": "binary:logistic"}, data, 0)
    booster.save_model(tmp_path / "m.json")
    with pytest.raises(ModelLoadError, match="it has no trees, and was not fitted"):
        fastinfer.load(tmp_path / "m.json")


def test_gblinear_is_refused_by_name(tmp_path: Path) -> None:
    booster = xgboost.train({"booster": "gblinear"}, xgboost.DMatrix(np.zeros((20, 2)), np.arange(20.0)), 2)
    booster.save_model(tmp_path / "m.json")
    with pytest.raises(ModelLoadError, match=r"m\.json: the XGBoost model cannot be read: the booster 'gblinear' is"):
        fastinfer.load(tmp_path / "m.json")


@pytest.mark.parametrize("objective", ["binary:logistic", "reg:logistic", "count:poisson", "reg:tweedie"])
def test_what_the_sums_begin_with_has_the_bits_of_the_library_s(objective: str) -> None:
    data = xgboost.DMatrix(np.zeros((4, 1), np.float32), np.full(4, 0.5))
    scores = [0.48449894, 0.56819231, 1e-7, 9.9e-7, 1e-6, 1e-30, 1 - 1e-6, 1 - 5e-7, 1 - 2e-6, 0.5]
    for score in [*scores, *RNG.random(30).tolist(), *(10 ** -RNG.uniform(0, 8, 10)).tolist()]:
        booster = xgboost.train({"objective": objective, "base_score": score, "nthread": 1}, data, 0)
        start = planted(bytes(booster.save_raw("json")), False).arrays["start"]
        assert start.tobytes() == booster.predict(data, output_margin=True)[:1].tobytes()


@pytest.mark.parametrize("options", [{}, {"booster": "dart", "rate_drop": 0.5}, {"num_parallel_tree": 3}])
def test_a_file_of_a_scikit_learn_class_answers_as_that_class(options: dict[str, Any], tmp_path: Path) -> None:
    """It stops at its best iteration; what `train` made has all, as `Booster.predict` has by default."""
    rows, target = RNG.normal(size=(300, 3)).astype(np.float32), RNG.integers(0, 3, 300)
    fitted = xgboost.XGBClassifier(n_estimators=30, early_stopping_rounds=3, n_jobs=1, **options)
    fitted.fit(rows[:200], target[:200], eval_set=[(rows[200:], target[200:])], verbose=False)
    assert fitted.best_iteration < len(fitted.get_booster().get_dump()) // 3 - 1
    fitted.save_model(tmp_path / "m.ubj")
    answer = fastinfer.load(tmp_path / "m.ubj").predict(rows)
    assert answer["probabilities"].tobytes() == fitted.predict_proba(rows).tobytes()
    fitted.get_booster().save_model(tmp_path / "all.ubj")
    answer = fastinfer.load(tmp_path / "all.ubj").predict(rows)
    assert answer["probabilities"].tobytes() == fitted.get_booster().predict(xgboost.DMatrix(rows)).tobytes()


# ---- damage -------------------------------------------------------------------------------------------------------
SMALL, _ = trained("multi:softprob", 1, num_class=3)
BINARY, TEXT = bytes(SMALL.save_raw("ubj")), bytes(SMALL.save_raw("json"))


@pytest.mark.parametrize(("data", "binary"), [(BINARY, True), (TEXT, False)], ids=["ubj", "json"])
def test_a_cut_file_is_refused_wherever_it_is_cut(data: bytes, binary: bool) -> None:
    for length in range(0, len(data), 23):
        with pytest.raises(ModelLoadError):
            planted(data[:length], binary)


@pytest.mark.parametrize(("data", "binary"), [(BINARY, True), (TEXT, False)], ids=["ubj", "json"])
def test_a_changed_byte_is_refused_or_answers_something(data: bytes, binary: bool) -> None:
    refused = 0
    for place in RNG.integers(0, len(data), 500).tolist():
        changed = bytearray(data)
        changed[place] = int(RNG.integers(256))
        try:
            planted(bytes(changed), binary).forest().run({"features": np.zeros((9, 6), np.float32)})
        except (ModelLoadError, ValueError):  # a width that has changed
            refused += 1
    assert refused > 100


def put(document: Any, path: str, value: Any) -> bytes:
    *parents, last = path.split(".")
    inner = document
    for name in parents:
        inner = inner[int(name) if name.isdigit() else name]
    inner[int(last) if last.isdigit() else last] = value
    return json.dumps(document).encode()


TREE = "learner.gradient_booster.model.trees.0"


@pytest.mark.parametrize(("path", "value", "message"), [
    ("learner.objective.name", "magic", "the objective 'magic' is not supported"),
    ("learner.learner_model_param.num_feature", "2", "a node reads none of the 2 features"),
    ("learner.learner_model_param.num_class", "99999999", "it has 99,999,999 outputs"),
    ("learner.learner_model_param.base_score", "x", "it is damaged"),
    ("learner.learner_model_param.base_score", "[1,2]", "it is damaged"),
    ("learner.gradient_booster.model.tree_info", [0], "its trees are not as many as it says"),
    (f"{TREE}.left_children.0", 99, "tree 0: it has a child that there is not"),
    (f"{TREE}.left_children.0", 0, "tree 0: its nodes are not a tree"),
    (f"{TREE}.right_children", [1], "tree 0: its lists are not of one length"),
    (f"{TREE}.split_conditions.0", "x", "it is damaged"),
    (f"{TREE}.split_indices.0", 1 << 40, "tree 0: it reads a feature that there is not"),
    (f"{TREE}.categories_sizes", [1 << 40], "tree 0: its categories are damaged"),
    (f"{TREE}.split_type.0", 7, "tree 0"),
    (f"{TREE}.left_children", None, "it is damaged"),
    ("learner", {}, "it lacks 'learner_model_param'"),
])  # fmt: skip
def test_what_is_wrong_is_named(path: str, value: Any, message: str) -> None:
    booster, _ = trained("multi:softprob", 1, num_class=3, tree_method="exact")
    document = json.loads(bytes(booster.save_raw("json")))
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        planted(put(document, path, value), False).forest()


@pytest.mark.parametrize("data", [
    b"", b"{", b"{}x", b"[$", b"[$d", b"[$d#L\x7f" + b"\xff" * 7, b"[#L\x7f" + b"\xff" * 7, b"S",
    b"SL" + b"\xff" * 8 + b"x", b"[" * 5000, b"Si\x01\xff", b"{i\x01", b"[$S#i\x01", b"q", b"Sd" + b"\x00" * 4,
])  # fmt: skip
def test_what_is_no_universal_binary_json_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        ubjson.loads(data)


def test_universal_binary_json_has_these_values() -> None:
    data = (b"{i\x01a[i\x01U\xffI\x01\x00l\x00\x01\x00\x00TFZSi\x02hi]"
            b"i\x01b[$i#U\x02\x01\xffi\x01c[#i\x01D?\xf0\x00\x00\x00\x00\x00\x00}")
    found = ubjson.loads(data)
    assert found["a"] == [1, 255, 256, 65536, True, False, None, "hi"]
    assert found["b"].tolist() == [1, -1]
    assert found["c"] == [1.0]
