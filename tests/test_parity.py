"""The certificate: `fastinfer check` prints how near the golden rows come, and a tampered program is refused."""

import base64
import copy
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)

from fastinfer.cli import main
from fastinfer.errors import ConfigurationError, FastinferError, ModelLoadError
from fastinfer.importing import import_pipeline
from fastinfer.preprocessing.program import Program

ROWS = 40
SEEDS = range(60)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    numbers = np.random.default_rng(2)
    frame = pd.DataFrame({"age": numbers.normal(40, 12, ROWS), "income": numbers.lognormal(7, 1, ROWS),
                          "job": numbers.choice(["clerk", "smith", "nurse"], ROWS)})
    frame.loc[3, "age"] = np.nan
    return frame


@pytest.fixture(scope="module")
def pipeline(frame: pd.DataFrame) -> Any:
    parts = [("scaled", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["age"]),
             ("log", FunctionTransformer(np.log1p, feature_names_out="one-to-one"), ["income"]),
             ("bins", KBinsDiscretizer(3, quantile_method="linear"), ["income"]),
             ("ranks", QuantileTransformer(n_quantiles=7), ["income"]), ("powers", PowerTransformer(), ["income"]),
             ("job", OneHotEncoder(handle_unknown="ignore"), ["job"])]
    model = make_pipeline(ColumnTransformer(parts), LogisticRegression())
    return model.fit(frame, np.arange(ROWS) % 2)


@pytest.fixture(scope="module")
def document(pipeline: Any, frame: pd.DataFrame) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(Program.from_sklearn(pipeline[:-1], sample=frame).to_json())
    return whole


def load(document: dict[str, Any]) -> Program:
    return Program.from_json(json.dumps(document))


# ---- the report ------------------------------------------------------------------------------------------------
def test_check_prints_the_parity_of_each_feature(pipeline: Any, frame: pd.DataFrame, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    import_pipeline(pipeline, tmp_path / "models/credit/1", sample=frame)
    capsys.readouterr()
    assert main(["check", str(tmp_path / "models")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "golden rows equal" in lines[1]
    assert lines[2].startswith("parity of credit 1 with scikit-learn ")
    assert lines[2].endswith(" golden rows, largest difference in ulps of float64")
    assert lines[3].split() == ["scaled__age", "…", "job__job_smith", "(11", "features)", "0"]
    assert lines[4] == "1 checked, nothing wrong."


def test_check_says_which_features_are_an_ulp_away(document: dict[str, Any], pipeline: Any, frame: pd.DataFrame,
                                                   tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a machine whose logarithm rounds otherwise."""
    folder = tmp_path / "models/credit/1"
    import_pipeline(pipeline, folder, sample=frame)
    features = json.loads((folder / "features.json").read_text())
    change_expected(features, row=5, feature=2, ulps=1)
    (folder / "features.json").write_text(json.dumps(features))
    capsys.readouterr()
    assert main(["check", str(tmp_path / "models")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[3:6]] == ["0", "1", "0"]
    assert lines[4].split() == ["log__income", "1"]
    change_expected(features, row=5, feature=2, ulps=1)
    (folder / "features.json").write_text(json.dumps(features))
    assert main(["check", str(tmp_path / "models")]) == 1
    assert "golden row 5, feature 2 ('log__income'): expected " in capsys.readouterr().out


def test_a_program_without_a_certificate_has_no_parity(document: dict[str, Any]) -> None:
    without = {key: value for key, value in document.items() if key != "certificate"}
    assert load(without).parity() is None
    found = load(document).parity()
    assert found is not None
    assert found.made_by["numpy"] == np.__version__
    assert not found.ulps.any()


def change_expected(document: dict[str, Any], row: int, feature: int, ulps: int) -> None:
    width = len(document["output"]["features"])
    data = bytearray(zlib.decompress(base64.b64decode(document["certificate"]["expected"])))
    values = np.frombuffer(data, np.int64 if document["output"]["dtype"] == "float64" else np.int32)
    values[row * width + feature] += ulps
    document["certificate"]["expected"] = base64.b64encode(zlib.compress(bytes(data))).decode()


# ---- tampering -------------------------------------------------------------------------------------------------
def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, (*at, i))
    else:
        yield at


def held(document: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        document = document[key]
    return document


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_decides_the_numbers_cannot_be_changed(document: dict[str, Any], seed: int) -> None:
    chosen = random.Random(seed)
    able = [at for at in places(document) if at[0] in ("steps", "output") and "path" not in at]
    at = chosen.choice(able)
    old = held(document, at)
    new = chosen.choice([old + 1, -old - 1, float(np.nextafter(old, np.inf)), None, "nan"]
                        if isinstance(old, (int, float)) else [f"{old}x", 5, None, ""])
    changed = copy.deepcopy(document)
    held(changed, at[:-1])[at[-1]] = new
    with pytest.raises((ConfigurationError, ModelLoadError)) as caught:
        load(changed)
    assert caught.value.at


@pytest.mark.parametrize("change", ["mean", "category", "edge", "bytes"])
def test_a_tampered_program_says_row_feature_expected_and_got(document: dict[str, Any], change: str) -> None:
    changed = copy.deepcopy(document)
    steps = {step["op"]: step for step in reversed(changed["steps"])}
    if change == "mean":
        steps["subtract"]["by"][0] = float(np.nextafter(steps["subtract"]["by"][0], np.inf))
    elif change == "category":
        (jobs,) = [step["categories"] for step in changed["steps"] if "smith" in step.get("categories", ())]
        jobs[jobs.index("smith")] = "smyth"
    elif change == "edge":
        steps["bucketize"]["edges"][0] *= 1.01
    else:
        change_expected(changed, row=2, feature=0, ulps=1)
    says = r"golden row \d+, feature \d+ \('.*'\): expected .*, got .* \(age=.*job="
    with pytest.raises(FastinferError, match=says):
        load(changed)
