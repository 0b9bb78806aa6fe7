"""The real Triton server as a peer: the binary of the nvidia-pytriton wheel, onnxruntime in its python backend's stub.

No wheel has Triton's own onnxruntime backend, so the model runs in a stub process, to which requests travel through
shared memory; the report says so. The stub takes the first ``python3`` on the path (it ignores PYTHONPATH), and needs
numpy < 2: with a newer one outputs have no bytes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import environments
from environments import VENVS
from process import Launch

HOME = VENVS / "triton"
SERVER = HOME / "unpacked" / "pytriton" / "tritonserver"
REQUIREMENTS = ("numpy<2", "onnxruntime")
PROGRAM = ("nvidia-pytriton==0.7.0",)
REGION = "bench_triton_{port}_"
COMMAND = (
    str(SERVER / "bin" / "tritonserver"), "--model-repository={folder}/models", "--backend-directory={folder}/backends",
    "--http-address=127.0.0.1", "--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
    "--http-thread-count=1", "--exit-timeout-secs=2", "--log-info=false", "--log-warning=false",
    f"--backend-config=python,shm-region-prefix-name={REGION}",
)
ENVIRON = {
    "PATH": f"{HOME / 'bin'}:/usr/bin:/bin",
    "LD_LIBRARY_PATH": f"{HOME / 'unpacked' / 'nvidia_pytriton.libs'}:{{folder}}/lib",
}
CONFIGURATION = """\
name: "{model}"
backend: "python"
max_batch_size: 64
input [{{ name: "input", data_type: TYPE_FP32, dims: [32] }}]
output [
  {{ name: "label", data_type: TYPE_INT64, dims: [1], reshape: {{ shape: [] }} }},
  {{ name: "probabilities", data_type: TYPE_FP32, dims: [2] }}
]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
"""


def prepare(launch: Launch, delay_us: int | None) -> None:
    """As :func:`write`, for the models of models.py.

    Args:
        delay_us: the batcher's longest wait; None for no batcher.
    """
    batching = "" if delay_us is None else f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
    write(launch, CONFIGURATION.format(model=launch.model) + batching)


def write(launch: Launch, configuration: str) -> None:
    """The model repository, the python backend with the stub of this Python beside it, and libpython.

    Args:
        configuration: of the model, in Triton's text form.
    """
    model = launch.folder / "models" / launch.model
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(configuration)
    shutil.copyfile(Path(__file__).resolve().parent / "servers" / "triton_model.py", model / "1" / "model.py")
    version = "{}.{}".format(*sys.version_info[:2])
    backend = launch.folder / "backends" / "python"
    shutil.copytree(SERVER / "backends" / "python", backend)
    shutil.copyfile(SERVER / "python_backend_stubs" / version / "triton_python_backend_stub",
                    backend / "triton_python_backend_stub")
    for program in (SERVER / "bin" / "tritonserver", backend / "triton_python_backend_stub"):
        program.chmod(0o755)
    (launch.folder / "lib").symlink_to(library_folder())


def library_folder() -> str:
    """Where the libpython of the stub's interpreter lies."""
    code = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    python = HOME / "bin" / "python"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def clean(launch: Launch) -> None:
    """A killed server leaves its shared memory."""
    for region in Path("/dev/shm").glob(REGION.format(port=launch.port) + "*"):
        region.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        environments.ensure("triton", REQUIREMENTS, environments.base_python(), unpacked=PROGRAM)
    except environments.InstallError as error:
        sys.exit(f"the real Triton cannot be installed: {error}")
