"""Files that were cut on their way: refused with a reason, in index and log, while the version before serves."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pickle
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx_models
import pandas as pd
import pytest
import skops.io
import xgboost
from conftest import Start
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import fastinfer
from fastinfer.errors import ModelLoadError
from fastinfer.preprocessing.program import Program
from fastinfer.runtimes import trial

RNG = np.random.default_rng(7)
ROWS = RNG.normal(size=(100, 4))
GOOD = ROWS[:, 0] > 0


def models(root: Path) -> dict[str, Path]:
    """A good model of each kind, by name: its file, or what lies beside it and is damaged in its place."""
    light = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(ROWS, GOOD), 3)
    extreme = xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(ROWS, GOOD), 3)
    linear = LogisticRegression().fit(ROWS, GOOD)
    files = {name: root / name / "1" / f"model.{ending}" for name, ending in (
        ("light", "txt"), ("extreme", "json"), ("binary", "ubj"), ("skops", "skops"), ("pickle", "pkl"),
        ("onnx", "onnx"))}
    for path in files.values():
        path.parent.mkdir(parents=True)
    light.save_model(files["light"])
    extreme.save_model(files["extreme"])
    extreme.save_model(files["binary"])
    skops.io.dump(linear, files["skops"])
    files["pickle"].write_bytes(pickle.dumps(RandomForestClassifier(3).fit(ROWS, GOOD)))
    onnx_models.affine(files["onnx"])
    if importlib.util.find_spec("catboost"):
        import catboost

        files["cat"] = root / "cat" / "1" / "model.cbm"
        files["cat"].parent.mkdir(parents=True)
        few: dict[str, Any] = {"iterations": 3, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
        catboost.CatBoostRegressor(**few).fit(ROWS, ROWS[:, 0]).save_model(str(files["cat"]))
    onnx_models.affine(root / "program" / "1" / "model.onnx")
    files["program"] = root / "program" / "1" / "features.json"
    steps = StandardScaler().fit(pd.DataFrame(ROWS, columns=list("abcd")))
    Program.from_sklearn(steps, dtype="float32").save(files["program"])
    return files


def test_the_version_before_goes_on_serving(tmp_path: Path, start_server: Start) -> None:
    files = models(tmp_path)
    onnx_models.affine(tmp_path / "settings" / "1" / "model.onnx")
    server = start_server(tmp_path, "--model-control", "explicit", "--load-model", "*", "--trust-pickle")
    for path in files.values():
        second = path.parent.parent / "2"
        shutil.copytree(path.parent, second)
        whole = path.read_bytes()
        (second / path.name).write_bytes(whole[: len(whole) // 3])
    (tmp_path / "settings" / "model.toml").write_text("max_batch_size = 6\n[onn")
    with server.client() as client:
        for name in [*files, "settings"]:
            answer = client.post(f"/v2/repository/models/{name}/load", timeout=120)
            assert answer.status_code == 500, (name, answer.text)
            assert answer.json()["code"] == "load_failed"
            culprit = files[name].name if name in files else "model.toml"
            assert culprit in answer.json()["error"], name
            assert "Traceback" not in answer.text
            assert client.get(f"/v2/models/{name}/ready").status_code == 200
            assert client.get(f"/v2/models/{name}").json()["versions"] == ["1"]
        index = {(each["name"], each["version"]): each for each in client.post("/v2/repository/index").json()}
        for name, path in files.items():
            assert index[name, "1"]["state"] == "READY"
            assert index[name, "2"]["state"] == "UNAVAILABLE"
            assert path.name in index[name, "2"]["reason"], name
            assert f"{name}/2/{path.name}" in server.log()
        assert client.get("/v2/health/live").status_code == 200
    assert server.stop() == 0
    assert "Traceback" not in server.log()


class Crash:
    def __reduce__(self) -> Any:
        return ctypes.string_at, (8,)


def test_a_pickle_that_crashes_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Crash()))
    with pytest.raises(ModelLoadError, match=r"m\.pkl is damaged: loading it crashes its library \(SIGSEGV\)"):
        fastinfer.load(tmp_path / "m.pkl", trust_pickle=True)


class Call:
    """A pickle of it calls the function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(("call", "message"), [
    (Call(os._exit, 0), r"loading it ends the process \(code 0\)"),
    (Call(sys.exit, 3), "it cannot be loaded: SystemExit: 3"),
    (Call(bytes, 1 << 50), "loading it takes more memory than there is"),
    (Call(exec, "while True: pass"), r"loading it takes longer than \d s of a CPU's time"),
    (Call(time.sleep, 1000), r"loading it takes longer than \d s\."),
    (Call(os.system, "sleep 1000 & sleep 1000"), r"loading it takes longer than \d s\."),
], ids=["exit", "raise", "memory", "busy", "asleep", "children"])
def test_a_pickle_that_does_not_come_back_is_refused(tmp_path: Path, monkeypatch, call: Call, message: str) -> None:
    monkeypatch.setattr(trial, "BUSY", 2)
    monkeypatch.setattr(trial, "PATIENCE", 1.0 if "sleep" in str(call.call) else 100.0)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(call))
    with pytest.raises(ModelLoadError, match=rf"m\.pkl: {message}"):
        fastinfer.load(tmp_path / "m.pkl", trust_pickle=True)
