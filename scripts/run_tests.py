"""Runs the whole suite on the installed build; ``--build debug`` first builds one with checks beside it.

``--uvicorn`` runs the connection's tests on the oldest and the newest uvicorn that pyproject.toml admits, each
installed into a folder of its own; the one that is installed already is left to the suite.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDS = ROOT / "build"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
CONNECTION_TESTS = ["tests/test_lanes.py", "tests/test_heads.py", "tests/test_connection.py"]


def build_core(kind: str) -> Path:
    """Install fastinfer as built by ``FASTINFER_BUILD=kind`` into a folder of its own."""
    target = BUILDS / kind
    shutil.rmtree(target, ignore_errors=True)
    environment = {**os.environ, "FASTINFER_BUILD": kind, "FASTINFER_WERROR": "1"}
    command = [*PIP, "--no-build-isolation", "--target", str(target), str(ROOT)]
    subprocess.run(command, check=True, env=environment)
    return target


def uvicorns() -> list[str]:
    """The oldest and the newest version of uvicorn that pyproject.toml admits, but for the installed one."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    admitted = next(each for each in dependencies if each.startswith("uvicorn"))
    oldest = admitted.partition(">=")[2].partition(",")[0]
    installed = importlib.metadata.version("uvicorn")
    found = []
    for wanted in (f"uvicorn=={oldest}", admitted):
        command = [*PIP, "--dry-run", "--ignore-installed", "--report", "-", wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"NOT TESTED on {wanted}: the package registry does not answer\n{done.stderr.strip()}")
            continue
        version = json.loads(done.stdout)["install"][0]["metadata"]["version"]
        if version == installed or version in found:
            print(f"{wanted} is uvicorn {version}, which is tested already")
        else:
            found.append(version)
    return found


def install_uvicorn(version: str) -> Path:
    """Install a uvicorn into a folder of its own."""
    target = BUILDS / f"uvicorn-{version}"
    if not target.exists():
        subprocess.run([*PIP, "--target", str(target), f"uvicorn=={version}"], check=True)
    return target


def run_pytest(arguments: list[str], first: Path | None = None) -> int:
    """Run the tests; what is installed in ``first`` goes before the environment's own."""
    environment = dict(os.environ)
    if first is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(first), environment.get("PYTHONPATH")]))
    workers = str(len(os.sched_getaffinity(0)))
    command = [str(Path(sys.executable).with_name("pytest")), "-n", workers, "--dist", "loadfile", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", choices=["release", "debug"], default="release")
    parser.add_argument("--uvicorn", action="store_true")
    options, pytest_arguments = parser.parse_known_args()
    if options.uvicorn:
        return max((run_pytest(CONNECTION_TESTS, install_uvicorn(each)) for each in uvicorns()), default=0)
    return run_pytest(pytest_arguments, None if options.build == "release" else build_core(options.build))


if __name__ == "__main__":
    sys.exit(main())
