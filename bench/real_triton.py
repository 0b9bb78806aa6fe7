"""The real Triton server as a process on free loopback ports, for tests, for the example and for measurements.

`make real-triton` installs it, in an environment of its own (triton_server.py says how). Its models are Python, in a
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
from collections.abc import Mapping
from pathlib import Path

import triton_server as installed

VERSION = "{}.{}".format(*sys.version_info[:2])
STUB = installed.SERVER / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
START = 60.0  # seconds; a slow machine under load must not fail a test


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

    def __init__(self, folder: Path, models: Path, *options: str, environ: Mapping[str, str] | None = None) -> None:
        """`folder` is for its backends and its log, `models` its repository."""
        self.folder, self.models, self.options = folder, models, options
        self.environ = dict(environ or {})
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
            f"--backend-config=python,shm-region-prefix-name=real_triton_{self.http}_",
            "--backend-config=python,shm-default-byte-size=1048576",
            *self.options,
        ]  # fmt: skip
        paths = [str(installed.HOME / "unpacked" / "nvidia_pytriton.libs"), *libraries()]
        environment = {"PATH": f"{installed.HOME / 'bin'}:/usr/bin:/bin", "LD_LIBRARY_PATH": ":".join(paths),
                       "CUDA_VISIBLE_DEVICES": "", **self.environ}
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
        for region in Path("/dev/shm").glob(f"real_triton_{self.http}_*"):
            region.unlink(missing_ok=True)
