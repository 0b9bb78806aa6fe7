"""Runs the suite on what is installed; ``--build debug`` and ``sanitize`` on the core with checks that make built.

``--quick`` runs the part that tells most in under a minute. ``--uvicorn`` runs the connection's tests on the oldest and
the newest uvicorn that pyproject.toml admits, each installed into a folder of its own; the one that is installed
already is left to the suite.
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
# What tells most: the core, both lanes over sockets, the command line, a client.
QUICK = [
    "settings", "cli", "repository", "core_numbers", "core_json", "core_decode", "core_encode", "core_http", "batcher",
    "program", "heads", "rest", "compression", "app", "tritonclient",
]  # fmt: skip
CONNECTION_TESTS = ["tests/test_lanes.py", "tests/test_heads.py", "tests/test_connection.py"]


def compiler() -> str:
    return os.environ.get("CXX") or shutil.which("g++") or "c++"


def sanitizers() -> dict[str, str]:
    """The variables under which Python runs a core that was built with the sanitizers."""
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        paths.append(found.stdout.strip())
        if not Path(paths[-1]).is_absolute():
            raise SystemExit(f"{compiler()} has no {name}: the sanitizers' libraries are a package of their own")
    return {
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it needs until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # else a small object's neighbour is not seen
    }


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


def run_pytest(arguments: list[str], first: Path | None = None, **variables: str) -> int:
    """Run the tests; what is installed in ``first`` goes before the environment's own."""
    environment = os.environ | variables
    if first is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(first), environment.get("PYTHONPATH")]))
    workers = str(len(os.sched_getaffinity(0)))
    command = [str(Path(sys.executable).with_name("pytest")), "-n", workers, "--dist", "loadfile", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", choices=["release", "debug", "sanitize"], default="release")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--uvicorn", action="store_true")
    options, pytest_arguments = parser.parse_known_args()
    if options.uvicorn:
        return max((run_pytest(CONNECTION_TESTS, install_uvicorn(each)) for each in uvicorns()), default=0)
    arguments = [*(f"tests/test_{name}.py" for name in QUICK if options.quick), *pytest_arguments]
    first = None if options.build == "release" else BUILDS / options.build
    return run_pytest(arguments, first, **(sanitizers() if options.build == "sanitize" else {}))


if __name__ == "__main__":
    sys.exit(main())
