"""Runs the whole suite on the installed build; ``--build debug`` first builds one with checks beside it."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDS = ROOT / "build"


def build_core(kind: str) -> Path:
    """Install fastinfer as built by ``FASTINFER_BUILD=kind`` into a folder of its own."""
    target = BUILDS / kind
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    environment = {**os.environ, "FASTINFER_BUILD": kind, "FASTINFER_WERROR": "1"}
    subprocess.run([*command, str(target), str(ROOT)], check=True, env=environment)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", choices=["release", "debug"], default="release")
    options, pytest_arguments = parser.parse_known_args()
    environment = dict(os.environ)
    if options.build != "release":
        environment["PYTHONPATH"] = str(build_core(options.build))
    workers = str(len(os.sched_getaffinity(0)))
    command = [str(Path(sys.executable).with_name("pytest")), "-n", workers, "--dist", "loadfile", *pytest_arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
