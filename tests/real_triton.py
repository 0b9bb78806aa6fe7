"""The real Triton server, with models for the tests, on free loopback ports.

Installed by `make test`, in an environment of its own (`make real-triton`). Its models are Python, in a
stub of the server's: no wheel has another backend.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import triton_server as installed  # noqa: E402

VERSION = "{}.{}".format(*sys.version_info[:2])
STUB = installed.SERVER / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
START = 60.0  # seconds; a slow machine under load must not fail a test

MODEL = '''\
import json, os, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        def given(name):
            return pb.get_input_tensor_by_name(request, name).as_numpy()
        try:
            outputs = self.outputs(given, request)
        except pb.TritonModelException as error:
            return pb.InferenceResponse([], pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        except ArithmeticError as error:
            return pb.InferenceResponse([], pb.TritonError(str(error)))
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in outputs.items()])

    def outputs(self, given, request):
'''
# y = 2 x + 1, a row at a time; x[0] = 400 is refused, 500 fails, 9xx takes xx hundredths of a second.
LINEAR = '''\
        x = given("x")
        for first in x[:, 0]:
            if first == 400:
                raise pb.TritonModelException("the first value is 400")
            if first == 500:
                raise ArithmeticError("the first value is 500")
            if 900 <= first < 1000:
                time.sleep((first - 900) / 100)
        return {"y": 2 * x + 1}
'''
TOLD = '''\
        return {"id": np.array([[request.request_id()]] * len(given("x")), dtype=object),
                "timeout": np.full((len(given("x")), 1), request.timeout(), dtype=np.int64),
                "rows": np.full((len(given("x")), 1), len(given("x")), dtype=np.int64)}
'''
SAME = '''\
        return {"out" + each["name"][2:]: given(each["name"]) for each in self.config["input"]}
'''
TYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
         "STRING")
BATCHING = "dynamic_batching { max_queue_delay_microseconds: %d }\n"


def config(name: str, inputs: str, outputs: str, most: int = 16, more: str = "") -> str:
    return (f'name: "{name}"\nbackend: "python"\nmax_batch_size: {most}\ninput [{inputs}]\noutput [{outputs}]\n'
            f"instance_group [{{ kind: KIND_CPU, count: 1 }}]\n{more}")


def tensor(name: str, kind: str, dims: str) -> str:
    return f'{{ name: "{name}", data_type: TYPE_{kind}, dims: [{dims}] }}'


def write(folder: Path, name: str, configuration: str, body: str, versions: tuple[int, ...] = (1,)) -> None:
    for version in versions:
        (folder / name / str(version)).mkdir(parents=True)
        (folder / name / str(version) / "model.py").write_text(MODEL + body)
    (folder / name / "config.pbtxt").write_text(configuration)


def repository(folder: Path) -> Path:
    """A repository with every kind of model that the tests ask."""
    x, y = tensor("x", "FP32", "4"), tensor("y", "FP32", "4")
    everything = "version_policy { all { } }\n"
    write(folder, "linear", config("linear", x, y, more=everything), LINEAR, (1, 3))
    told = [tensor("id", "STRING", "1"), tensor("timeout", "INT64", "1"), tensor("rows", "INT64", "1")]
    write(folder, "told", config("told", x, ",".join(told)), TOLD)
    write(folder, "delayed", config("delayed", x, y, more=BATCHING % 500), LINEAR)
    write(folder, "alone", config("alone", tensor("in", "FP32", "-1, 2"), tensor("out", "FP32", "-1, 2"), 0), SAME)
    write(folder, "wide", config("wide", tensor("in", "FP32", "-1"), tensor("out", "FP32", "-1")), SAME)
    ends = [",".join(tensor(f"{end}_{each.lower()}", each, "2") for each in TYPES) for end in ("in", "out")]
    write(folder, "types", config("types", *ends), SAME)
    write(folder, "sequence", config("sequence", x, y, more="sequence_batching { }\n"), LINEAR)
    write(folder, "decoupled", config("decoupled", x, y, more="model_transaction_policy { decoupled: true }\n"), LINEAR)
    return folder


def why_absent() -> str | None:
    """What to install, where the real Triton cannot be started here; else None."""
    if not STUB.exists():
        if (installed.SERVER / "python_backend_stubs").exists():
            return f"the Triton of nvidia-pytriton has no Python backend for {VERSION}"
        return "the real Triton is not installed: make real-triton"
    library = f"libpython{VERSION}.so.1.0"
    if not any((Path(folder) / library).exists() for folder in libraries()):
        return f"Triton's Python backend needs {library}: apt-get install libpython{VERSION}"
    return None


def libraries() -> list[str]:
    """Where Python's own library may lie."""
    return [installed.library_folder(), str(sysconfig.get_config_var("LIBDIR"))]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class RealTriton:
    """One server process; it can be stopped and started again on its ports."""

    def __init__(self, folder: Path, models: Path, *options: str) -> None:
        self.folder, self.models, self.options = folder, models, options
        self.http, self.grpc = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        backend = folder / "backends" / "python"
        shutil.copytree(installed.SERVER / "backends" / "python", backend)
        shutil.copyfile(STUB, backend / STUB.name)
        for program in (installed.SERVER / "bin" / "tritonserver", backend / STUB.name):
            if not os.access(program, os.X_OK):
                program.chmod(0o755)

    def start(self, *models: str, wait: bool = True) -> RealTriton:
        """Start with these models, or with all of the repository."""
        command = [
            str(installed.SERVER / "bin" / "tritonserver"), f"--model-repository={self.models}",
            f"--backend-directory={self.folder / 'backends'}", "--http-address=127.0.0.1", f"--http-port={self.http}",
            "--grpc-address=127.0.0.1", f"--grpc-port={self.grpc}", "--allow-metrics=false",
            "--allow-gpu-metrics=false", "--model-control-mode=explicit",
            *[f"--load-model={name}" for name in models or ("*",)],
            "--http-thread-count=2", "--exit-timeout-secs=2", "--strict-readiness=false", "--exit-on-error=false",
            f"--backend-config=python,shm-region-prefix-name=test_triton_{self.http}_",
            "--backend-config=python,shm-default-byte-size=1048576",
            *self.options,
        ]  # fmt: skip
        paths = [str(installed.HOME / "unpacked" / "nvidia_pytriton.libs"), *libraries()]
        environment = {"PATH": f"{installed.HOME / 'bin'}:/usr/bin:/bin", "LD_LIBRARY_PATH": ":".join(paths),
                       "CUDA_VISIBLE_DEVICES": ""}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START
        while wait and not self.ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return self

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it and its stubs, by default at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            self.process.wait(30)
            self.process = None
        for region in Path("/dev/shm").glob(f"test_triton_{self.http}_*"):
            region.unlink(missing_ok=True)
