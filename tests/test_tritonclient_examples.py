"""The examples of Triton's own Python client, as they are published, against this server.

They are src/python/examples of the sources of triton-inference-server/client, which are not ours to pass on:
FASTINFER_TRITON_EXAMPLES names that folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ServerProcess, starting
from onnx import TensorProto, helper
from onnx_models import value, write

pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http,grpc]'")
pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[http,grpc]'")

EXAMPLES = Path(os.environ.get("FASTINFER_TRITON_EXAMPLES") or os.devnull)
pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="git clone https://github.com/triton-inference-server/client and set "
    "FASTINFER_TRITON_EXAMPLES to its src/python/examples")
PATIENCE = 120.0  # seconds; a slow machine under load must not fail a test
GOOD = [
    "grpc_explicit_byte_content_client", "grpc_explicit_int8_content_client", "grpc_explicit_int_content_client",
    "simple_grpc_aio_infer_client", "simple_grpc_async_infer_client", "simple_grpc_custom_args_client",
    "simple_grpc_health_metadata", "simple_grpc_infer_client", "simple_grpc_keepalive_client",
    "simple_grpc_string_infer_client", "simple_http_aio_infer_client", "simple_http_async_infer_client",
    "simple_http_health_metadata", "simple_http_infer_client", "simple_http_string_infer_client",
]  # fmt: skip
# What they say of their own server: its name, and how many models it has.
EDITS = {
    "simple_grpc_health_metadata": ('== "triton"', '== "fastinfer"'),
    "simple_http_health_metadata": ('== "triton"', '== "fastinfer"'),
    "simple_grpc_model_control": ("!= 8:", "!= 4:"),
    "simple_http_model_control": ("!= 7:", "!= 4:"),
}
# What is not offered is said so, as Triton says it where it is off, and the server goes on.
REFUSED = {
    "simple_grpc_model_control": "failed to load 'simple': the parameter 'config' is not taken",
    "simple_http_model_control": "failed to load 'simple': the parameter 'config' is not taken",
    "simple_grpc_shm_client": "shared memory is not supported",
    "simple_http_shm_client": "shared memory is not supported",
    "reuse_infer_objects_client": "shared memory is not supported",
    "simple_grpc_sequence_stream_infer_client": "unknown model",
    "simple_http_sequence_sync_infer_client": "unknown model",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("examples")
    for name, datatype, kind in (("simple", "INT32", TensorProto.INT32), ("simple_int8", "INT8", TensorProto.INT8),
                                 ("simple_string", "BYTES", TensorProto.STRING)):
        casts = [helper.make_node("Cast", [f"INPUT{i}"], [f"number{i}"], to=TensorProto.INT32) for i in (0, 1)]
        sums = [helper.make_node(operation, ["number0", "number1"], [f"sum{i}"])
                for i, operation in enumerate(("Add", "Sub"))]
        back = [helper.make_node("Cast", [f"sum{i}"], [f"OUTPUT{i}"], to=kind) for i in (0, 1)]
        tensors = [[value(f"{side}{i}", datatype, ["n", 16]) for i in (0, 1)] for side in ("INPUT", "OUTPUT")]
        write(root / name / "1" / "model.onnx", casts + sums + back, *tensors)
    same = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    write(root / "simple_identity" / "1" / "model.onnx", [same], [value("INPUT0", "BYTES", ["n", "m"])],
          [value("OUTPUT0", "BYTES", ["n", "m"])])
    with starting(tmp_path_factory) as start:
        yield start(root, "--grpc-port", "0", "--model-control", "explicit", "--load-model", "*")


def run(name: str, server: ServerProcess, folder: Path) -> subprocess.CompletedProcess[str]:
    port = server.grpc_port if "grpc" in name else server.port
    text = (EXAMPLES / f"{name}.py").read_text()
    theirs, ours = EDITS.get(name, ("", ""))
    assert theirs in text
    (folder / "example.py").write_text(text.replace(theirs, ours) if theirs else text)
    return subprocess.run([sys.executable, "example.py", "-u", f"127.0.0.1:{port}"], cwd=folder,
                          env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True,
                          timeout=PATIENCE)


@pytest.mark.parametrize("name", GOOD)
def test_example(name: str, server: ServerProcess, tmp_path: Path) -> None:
    done = run(name, server, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_offered_is_told(name: str, server: ServerProcess, tmp_path: Path) -> None:
    done = run(name, server, tmp_path)
    assert REFUSED[name] in done.stdout + done.stderr
    with server.client() as client:
        assert client.get("/v2/health/ready").status_code == 200
