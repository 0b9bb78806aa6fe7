"""examples/triton: features here, the network in the real Triton, and the answers of the pipeline that was trained."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import joblib
import pandas as pd
import pytest
from conftest import PACKAGE

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import real_triton

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / ".demo" / "sample.parquet"


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"there is no {SAMPLE.relative_to(ROOT)}: make ready")
def test_the_example_answers_as_its_pipeline_does(tmp_path: Path) -> None:
    if absent := real_triton.why_absent():
        pytest.skip(absent)
    search = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "triton" / "serve.py"), "--sample", str(SAMPLE), "--port", "0",
         "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": search},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("  curl "):
                break
        url = re.search(r"fastinfer \S+ at (\S+)", "".join(said))
        assert url is not None, said
        pipeline = joblib.load(tmp_path / "out" / "network.joblib")
        frame = pd.read_parquet(SAMPLE).drop(columns="status").sample(200, random_state=1)
        records = [{name: value for name, value in row.items() if value == value and value is not None}
                   for row in frame.to_dict("records")]
        answer = httpx.post(f"{url[1]}/v1/models/credit:predict", json={"records": records}, timeout=30)
        assert answer.status_code == 200, answer.text
        predictions = answer.json()["predictions"]
        expected = pipeline.predict_proba(frame)
        for prediction, row, label in zip(predictions, expected, pipeline.predict(frame), strict=True):
            assert prediction["label"] == label
            assert [prediction["probabilities"][each] for each in pipeline.classes_] == pytest.approx(row, abs=1e-6)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
