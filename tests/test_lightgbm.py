"""LightGBM's text files: answered bit for bit as `Booster.predict` does, and refused where they are damaged."""

import re
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

import fastinfer
from fastinfer.errors import ModelLoadError
from fastinfer.runtimes.lightgbm import planted

RNG = np.random.default_rng(5)
SPECIAL = [0.0, -0.0, 1e-36, -1e-36, 1e-35, -1e-35, 1.0000000180025095e-35, 1.1e-35, np.nan, np.inf, -np.inf, -0.5,
           -1.0, 0.5, 1.5, 2.0, 3.0, 7.0, 8.0, 100.0, 1e9, 3e9, -3e9, 1e300]
FEW = {"verbose": -1, "min_data_in_leaf": 5, "num_threads": 1, "min_data_per_group": 1, "cat_smooth": 1,
       "num_leaves": 12}
FOREST = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}
OBJECTIVES: list[tuple[Any, dict[str, Any]]] = [
    ("binary", {}), ("binary", {"sigmoid": 0.7, "zero_as_missing": True}), ("binary", FOREST),
    ("multiclass", {"num_class": 3}), ("multiclass", {"num_class": 3, **FOREST}),
    ("multiclassova", {"num_class": 3, "sigmoid": 1.3}),
    ("regression", {}), ("regression", {"use_missing": False}), ("regression", {"zero_as_missing": True}),
    ("regression", {"reg_sqrt": True}), ("regression", {"boosting": "dart"}), ("regression", FOREST),
    ("regression_l1", {"reg_sqrt": True}), ("quantile", {"reg_sqrt": True}), ("mape", {"reg_sqrt": True}),
    ("huber", {}), ("fair", {}), ("poisson", {}), ("gamma", {}), ("tweedie", {}), ("cross_entropy", {}),
    ("cross_entropy_lambda", {}), ("lambdarank", {}), ("rank_xendcg", {}),
    (lambda scores, data: (scores - data.get_label(), np.ones(len(scores))), {}),
]  # fmt: skip


def trained(objective: Any, rounds: int = 12, **options: Any) -> lightgbm.Booster:
    """On numbers, some of them tiny, some missing, and two columns of categories."""
    rows = RNG.normal(size=(400, 6))
    rows[:, 1] *= 1e-35
    rows[:, 4], rows[:, 5] = RNG.integers(0, 70, 400), RNG.integers(-1, 5, 400)
    rows[RNG.random(rows.shape) < 0.1] = np.nan
    rows[RNG.random(rows.shape) < 0.1] = 0
    amount = np.nan_to_num(rows[:, 0]) + np.isin(rows[:, 4], [1, 5, 9, 40, 66]) + RNG.normal(size=400) * 0.3
    name = objective if isinstance(objective, str) else ""
    if name.startswith(("binary", "cross")):
        amount = amount > 0.2
    elif name.startswith("multi") or "rank" in name:
        amount = np.clip(np.round(amount), 0, 2)
    elif name in ("poisson", "gamma", "tweedie"):
        amount = np.exp(amount)
    groups = [40] * 10 if "rank" in name else None
    data = lightgbm.Dataset(rows, amount, categorical_feature=[4, 5], group=groups)
    return lightgbm.train({**FEW, "objective": objective, **options}, data, rounds)


def hard_rows(booster: lightgbm.Booster) -> np.ndarray:
    """Rows at each threshold and at its neighbours, and with what casts and comparisons may take wrongly."""
    rows = RNG.choice(SPECIAL, (300, 6))
    frame = booster.trees_to_dataframe()
    turns = frame[frame.decision_type == "<="][["split_feature", "threshold"]].drop_duplicates()
    blocks = [rows]
    for name, text in turns.to_numpy()[:200].tolist():
        turn = float(text)
        values = [turn, np.nextafter(turn, -np.inf), np.nextafter(turn, np.inf), np.nan, -0.0, turn * 0.5]
        block = np.tile(RNG.normal(size=6), (len(values), 1))
        block[:, int(name.removeprefix("Column_"))] = values
        blocks.append(block)
    return np.concatenate(blocks)


@pytest.mark.parametrize(("objective", "options"), OBJECTIVES)
def test_answers_have_the_bits_of_booster_predict(objective: Any, options: dict[str, Any]) -> None:
    booster = lightgbm.Booster(model_str=trained(objective, **options).model_to_string())
    rows = hard_rows(booster)
    expected = booster.predict(rows).reshape(len(rows), -1)
    answers = planted(booster.model_to_string().encode()).forest().run({"features": rows})
    got = answers.get("value", answers.get("probabilities"))
    if "label" in answers:
        assert (answers["label"] == got.argmax(axis=1)).all()
    if expected.shape[1] == 1 and got.shape[1] == 2:
        assert (got[:, 0] == 1 - expected[:, 0]).all()
        got = np.ascontiguousarray(got[:, 1:])
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("rounds", [0, 1])
def test_few_trees_and_lone_leaves(rounds: int) -> None:
    data = lightgbm.Dataset(np.zeros((50, 2)), np.full(50, 3.5))
    booster = lightgbm.Booster({**FEW, "objective": "regression", "min_data_in_leaf": 1}, data)
    for _ in range(rounds):
        booster.update()
    rows = np.array([[1.0, np.nan]])
    value = planted(booster.model_to_string().encode()).forest().run({"features": rows})["value"]
    assert value.tolist() == [booster.predict(rows).tolist()]


def test_early_stopped_and_cut_models_keep_the_trees_that_are_saved() -> None:
    booster = trained("multiclass", num_class=3)
    rows = RNG.normal(size=(20, 6))
    text = booster.model_to_string(num_iteration=5)
    expected = booster.predict(rows, num_iteration=5)
    assert planted(text.encode()).forest().run({"features": rows})["probabilities"].tobytes() == expected.tobytes()


def test_categories_of_a_frame_are_codes_and_line_ends_may_be_of_windows() -> None:
    import pandas as pd

    words = pd.Categorical(RNG.choice(["a", "b", "c"], 300))
    frame = pd.DataFrame({"word": words, "number": RNG.normal(size=300)})
    data = lightgbm.Dataset(frame, (words.codes == 1) + 0.0, categorical_feature="auto")
    booster = lightgbm.train({**FEW, "objective": "regression"}, data, 5)
    rows = np.column_stack([words.codes, frame["number"]]).astype(float)
    text = booster.model_to_string()
    for each in (text, text.replace("\n", "\r\n")):
        value = planted(each.encode()).forest().run({"features": rows})["value"]
        assert value.tobytes() == booster.predict(frame).tobytes()


def test_the_file_is_served_as_it_is(tmp_path: Path) -> None:
    booster = trained("binary")
    booster.save_model(tmp_path / "credit.txt")
    (tmp_path / "models" / "credit" / "1").mkdir(parents=True)
    booster.save_model(tmp_path / "models" / "credit" / "1" / "model.txt")
    (tmp_path / "models" / "credit" / "1" / "notes.txt").write_text("not a model")
    rows = RNG.normal(size=(5, 6))
    for path in (tmp_path / "credit.txt", tmp_path / "models"):
        model = fastinfer.load(path)
        answers = model.predict({"features": rows})
        assert answers["probabilities"][:, 1].tobytes() == booster.predict(rows).tobytes()
        assert (model.platform, model.batch_invariant, model.unbatched) == ("lightgbm_txt", True, None)
        assert model.task is not None
        assert (model.task.kind, model.task.classes) == ("classifier", ("0", "1"))


# ---- damage -------------------------------------------------------------------------------------------------------
SMALL = trained("binary", 3).model_to_string()


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    end = SMALL.index("end of trees") + len("end of trees")
    for length in range(0, end, 7):
        with pytest.raises(ModelLoadError):
            planted(SMALL[:length].encode())
    path = tmp_path / "cut.txt"
    path.write_text(SMALL[: end // 2])
    with pytest.raises(ModelLoadError, match=r"cut\.txt: the LightGBM model cannot be read: it is cut: "):
        fastinfer.load(path)


def test_a_changed_byte_is_refused_or_answers_something() -> None:
    data = SMALL.encode()
    end = data.index(b"end of trees")
    rows = np.zeros((9, 6))
    refused = 0
    for place in RNG.integers(0, end, 2500).tolist():
        changed = bytearray(data)
        changed[place] = int(RNG.integers(256))
        try:
            planted(bytes(changed)).forest().run({"features": np.zeros((9, 6))})
        except (ModelLoadError, ValueError):  # a width that has changed
            refused += 1
    assert refused > 500
    assert rows.sum() == 0


@pytest.mark.parametrize(("pattern", "text", "message"), [
    ("version=v4", "version=v5", "its version is 'v5'; v2, v3, v4 are read"),
    ("max_feature_idx=5", "max_feature_idx=3", "it has 6 names of 4 features"),
    (r"feature_names=.*|max_feature_idx=5", "max_feature_idx=3", "a node reads none of the 4 features"),
    ("max_feature_idx=5", "max_feature_idx=-1", "max_feature_idx is '-1', which is no number"),
    ("max_feature_idx=5\n", "", "max_feature_idx is missing"),
    ("num_tree_per_iteration=1", "num_tree_per_iteration=0", "num_tree_per_iteration is 0"),
    ("objective=binary", "objective=magic", "the objective 'magic' with 1 trees an iteration is not supported"),
    (r"tree_sizes=\d+ ", "tree_sizes=", "it says that it has 2 trees, and has 3"),
    (r"tree_sizes=\d+ ", "tree_sizes=7 ", "tree 0 is not as long as the file says"),
    (r"(?m)^tree_sizes=.*\n|num_leaves=12$", "", "tree 0: num_leaves is missing"),
    (r"(?m)^tree_sizes=.*\n|left_child=\S+ ", "left_child=", "tree 0: left_child has 10 values, not 11"),
    (r"(?m)^tree_sizes=.*\n|left_child=\S+ ", "left_child=50 ", "tree 0: it has a child that there is not"),
    (r"(?m)^tree_sizes=.*\n|left_child=\S+ ", "left_child=0 ", "tree 0: its nodes are not a tree"),
    (r"(?m)^tree_sizes=.*\n|is_linear=0", "is_linear=1", r"tree 0: linear leaves (linear_tree=true) are not supported"),
    (r"(?m)^tree_sizes=.*\n|cat_boundaries=0", "cat_boundaries=1", "its sets of categories are damaged"),
    (r"(?m)^tree_sizes=.*\n|leaf_value=\S+", "leaf_value=1_0", "tree 0: leaf_value is not a list of numbers"),
    (r"(?m)^tree_sizes=.*\n|leaf_value=\S+", "leaf_value=nan", "tree 0: a threshold or a leaf is not a number"),
    ("Tree=1", "Tree=7", "tree 1 is called '7'"),
])  # fmt: skip
def test_what_is_wrong_is_named(pattern: str, text: str, message: str) -> None:
    changed = re.sub(pattern, lambda found: "" if found[0].startswith("tree_sizes") and "|" in pattern else text, SMALL)
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        planted(changed.encode()).forest()


def test_linear_trees_are_refused() -> None:
    booster = lightgbm.train({**FEW, "objective": "regression", "linear_tree": True},
                             lightgbm.Dataset(RNG.normal(size=(200, 2)), RNG.normal(size=200)), 2)
    with pytest.raises(ModelLoadError, match="linear leaves"):
        planted(booster.model_to_string().encode())


# ---- missing values in JSON -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("option", [(), ("--no-fast-lane",)])
def test_null_is_a_missing_value(tmp_path: Path, start_server: Any, option: tuple[str, ...]) -> None:
    booster = trained("regression")
    booster.save_model(tmp_path / "prices.txt")
    server = start_server(tmp_path / "prices.txt", *option)
    rows = RNG.normal(size=(40, 6))
    rows[RNG.random(rows.shape) < 0.3] = np.nan
    expected = booster.predict(rows).tolist()
    listed = [[None if np.isnan(each) else each for each in row] for row in rows.tolist()]
    with server.client() as client:
        for data in (listed, [each for row in listed for each in row]):
            tensor = {"name": "features", "shape": [40, 6], "datatype": "FP64", "data": data}
            answer = client.post("/v2/models/prices/infer", json={"inputs": [tensor]})
            assert answer.json()["outputs"][0]["data"] == expected
        answer = client.post("/v1/models/prices:predict", json={"records": [{"features": row} for row in listed]})
        assert [each["value"] for each in answer.json()["predictions"]] == expected
        configuration = client.get("/v2/models/prices/config").json()
        assert configuration["default_model_filename"] == "prices.txt"


@pytest.mark.parametrize("option", [(), ("--no-fast-lane",)])
def test_a_record_has_a_whole_row(tmp_path: Path, start_server: Any, option: tuple[str, ...]) -> None:
    """What is not sent must not be what another client sent."""
    trained("regression", 1).save_model(tmp_path / "prices.txt")
    bad: list[list[dict[str, Any]]] = [
        [{"features": [1.5] * 6}, {}], [{}] * 5, [{"features": None}], [{"features": [None] * 5}],
        [{"features": [None] * 5 + ["NaN"]}],
    ]  # fmt: skip
    with start_server(tmp_path / "prices.txt", *option).client() as client:
        for records in bad:
            answer = client.post("/v1/models/prices:predict", json={"records": records})
            assert answer.status_code == 400
            assert "features" in answer.json()["error"]
