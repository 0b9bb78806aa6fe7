"""KServe's InferenceRESTClient and Triton's perf_analyzer, unchanged, where they are there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ServerProcess
from onnx_models import BIAS, WEIGHTS

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from environments import VENVS

PATIENCE = 120.0  # seconds; a slow machine under load must not fail a test
KSERVE = VENVS / "kserve" / "bin" / "python"  # an environment of its own: it brings 450 MB
INSTALL_KSERVE = f"python -m venv {KSERVE.parent.parent} && {KSERVE} -m pip install kserve"
INSTALL_PERF_ANALYZER = (
    "no perf_analyzer on the path: pip download --no-deps --only-binary :all: --platform manylinux_2_38_x86_64 "
    "--python-version 3.11 perf-analyzer, unzip it; or FASTINFER_PERF_ANALYZER, a command that runs it")
CLIENT = """
import asyncio, json, sys
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig

async def main(url, rows):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    tensor = InferInput("x", [len(rows), 4], "FP32", data=rows)
    raw = InferInput("x", [len(rows), 4], "FP32")
    import numpy
    raw.set_data_from_numpy(numpy.array(rows, "f4"), binary_data=True)
    found = [await client.is_server_live(url), await client.is_server_ready(url),
             await client.is_model_ready(url, "affine")]
    for each in (tensor, raw):
        answer = await client.infer(url, InferRequest("affine", [each], request_id="7"), model_name="affine")
        found.append([answer.model_name, answer.id, answer.outputs[0].as_numpy().tolist()])
    try:
        await client.infer(url, InferRequest("nobody", [tensor]), model_name="nobody")
    except Exception as error:
        found.append(str(error))
    print(json.dumps(found))

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


@pytest.mark.skipif(not KSERVE.exists(), reason=INSTALL_KSERVE)
def test_kserve_s_rest_client(server: ServerProcess) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    done = subprocess.run([KSERVE, "-P", "-c", CLIENT, server.url, json.dumps(rows.tolist())], capture_output=True,
                          text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    *ready, one, other, error = json.loads(done.stdout.splitlines()[-1])
    assert ready == [True, True, True]
    for name, number, values in (one, other):
        assert (name, number) == ("affine", "7")
        np.testing.assert_allclose(np.reshape(values, (2, 3)), rows @ WEIGHTS + BIAS, rtol=1e-6)
    assert "Request for unknown model: 'nobody' is not found" in error


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer(protocol: str, grpc_server: ServerProcess) -> None:
    command = shlex.split(os.environ.get("FASTINFER_PERF_ANALYZER") or shutil.which("perf_analyzer") or "")
    if not command:
        pytest.skip(INSTALL_PERF_ANALYZER)
    port = grpc_server.grpc_port if protocol == "grpc" else grpc_server.port
    done = subprocess.run(
        [*command, "-m", "affine", "-u", f"127.0.0.1:{port}", "-i", protocol, "-b", "2", "--concurrency-range", "2:2",
         "--measurement-mode", "count_windows", "--measurement-request-count", "100", "--stability-percentage", "999",
         "--max-trials", "10"], capture_output=True, text=True, timeout=PATIENCE)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rates = re.findall(r"Throughput: ([0-9.]+) infer/sec", done.stdout)
    assert rates
    assert float(rates[-1]) > 0
    print(done.stdout)
