"""Virtual environments of the servers, made by the harness: one for each kind of server, under .bench/venvs.

All of them stand on one base interpreter, and fastinfer's own too: a CPython that was built without profile-guided and
link-time optimisation is slower, and how the interpreter was built is not what is compared.
Debian's own python3 has both, one that pyenv built by default has neither, so /usr/bin/python3 is taken where it is of
the same version as the interpreter that runs the harness.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from process import clean_environment

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".bench" / "venvs"
SYSTEM_PYTHON = "/usr/bin/python3"
SOURCES = ("fastinfer", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in")
BUILT = ("*.so", "*.cpp", "__pycache__", "*.html")  # what a source tree may hold that is no source
ASKED = ("import json, platform, sys, sysconfig, importlib.metadata as m;"
         "print(json.dumps({'version': sys.version, 'tag': sys.implementation.cache_tag,"
         "'build': sysconfig.get_config_var('CONFIG_ARGS') or '',"
         "'packages': {'python': platform.python_version(), **{d.name: d.version for d in m.distributions()}}}))")


class InstallError(Exception):
    """An environment could not be made; the message holds the end of pip's output."""


def ask(python: str | Path) -> dict[str, object]:
    """What an interpreter is and has: version, cache_tag, configure arguments, packages.

    Raises:
        InstallError: it does not run.
    """
    try:
        output = subprocess.run([python, "-c", ASKED], check=True, capture_output=True, text=True,
                                env=clean_environment({})).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise InstallError(f"{python} does not run: {error}") from error
    return dict(json.loads(output))


def base_python() -> str:
    """The interpreter that the environments stand on by default."""
    try:
        same = ask(SYSTEM_PYTHON)["tag"] == sys.implementation.cache_tag
    except InstallError:
        same = False
    return SYSTEM_PYTHON if same else sys.executable


def versions(python: str | Path) -> dict[str, str]:
    """Installed packages of an interpreter, and ``python``."""
    return dict(ask(python)["packages"])  # type: ignore[call-overload]


def pip(python: Path, *arguments: str) -> None:
    """Run this interpreter's pip for another one, which needs none of its own (Debian's venv has none)."""
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=clean_environment({}))
    if finished.returncode:
        raise InstallError("\n".join((finished.stdout + finished.stderr).strip().splitlines()[-8:]))


def ensure(name: str, requirements: tuple[str, ...], base: str, *, unpacked: tuple[str, ...] = (),
           made_of: str = "") -> str:
    """The interpreter of an environment, which is made first where it is missing or was made of something else.

    Args:
        unpacked: packages that are only programs: put without what they depend on in the folder ``unpacked``.
        made_of: what tells one environment from another; by default the requirements.

    Raises:
        InstallError: pip failed; the next call tries again.
    """
    home = VENVS / name
    python, stamp = home / "bin" / "python", home / "made-of.txt"
    wanted = "\n".join([base, made_of or "\n".join(sorted(requirements)), *unpacked])
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    print(f"installing {name}: {', '.join((*requirements, *unpacked))}", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([base, "-m", "venv", "--without-pip", home], check=True, env=clean_environment({}))
    pip(python, *requirements)
    if unpacked:
        pip(python, "--no-deps", "--target", str(home / "unpacked"), *unpacked)
    stamp.write_text(wanted)
    return str(python)


def fastinfer(base: str) -> str:
    """The interpreter of an environment with this source tree installed as users install it: a release wheel, built
    in a clean copy, so that no object of an in-place debug build can get into it.

    Raises:
        InstallError: the base is of another version than this interpreter, or the build failed.
    """
    if ask(base)["tag"] != sys.implementation.cache_tag:
        raise InstallError(f"{base} is not of this interpreter's version ({sys.version.split()[0]})")
    wheels = ROOT / ".bench" / "wheels" / source_hash()
    if not list(wheels.glob("*.whl")):
        print("building fastinfer", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            copy_sources(Path(folder))
            command = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", wheels, folder]
            finished = subprocess.run(command, capture_output=True, text=True,
                                      env=clean_environment({"FASTINFER_BUILD": "release"}))
        if finished.returncode:
            raise InstallError("\n".join((finished.stdout + finished.stderr).strip().splitlines()[-8:]))
    wheel = next(wheels.glob("*.whl"))
    needs = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    # The extras make the models, serve gRPC and go before a Triton, and decoding is held against orjson.
    wanted = (f"fastinfer[sklearn,grpc,triton] @ {wheel.as_uri()}", "orjson")
    python = Path(ensure("fastinfer", wanted, base, made_of=f"orjson grpc triton {needs}"))
    stamp = VENVS / "fastinfer" / "wheel.txt"
    if not stamp.exists() or stamp.read_text() != str(wheel):
        pip(python, "--force-reinstall", "--no-deps", str(wheel))
        stamp.write_text(str(wheel))
    return str(python)


def source_files() -> list[Path]:
    found = [ROOT / name for name in SOURCES if (ROOT / name).is_file()]
    found += [path for path in (ROOT / "fastinfer").rglob("*")
              if path.is_file() and not any(part.match(pattern) for part in (path, *path.parents) for pattern in BUILT)]
    return sorted(found)


def source_hash() -> str:
    """Of all that a wheel is built of."""
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def copy_sources(target: Path) -> None:
    for path in source_files():
        copied = target / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
