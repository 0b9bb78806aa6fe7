"""Fuzzes the core, built with the sanitizers, under libFuzzer for a while; anything found ends it with 1.

What it learns stays in build/fuzzing/corpus and the next run goes on from there; what it finds goes to
build/fuzzing/findings, and `run.py --target NAME FILE` plays such a file again.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "build" / "fuzzing"
NAMES = ["connection", "infer_json", "infer_binary", "records"]
DICTIONARIES = {"connection": "http.dict"}  # the others speak JSON
MAX_INPUT = 4096  # bytes

sys.path.insert(0, str(ROOT / "scripts"))
from run_tests import compiler, sanitizers  # noqa: E402


def environment(core: Path) -> dict[str, str]:
    """Of a process that runs the core in this folder."""
    library = WORK / "coverage.so"
    WORK.mkdir(parents=True, exist_ok=True)
    command = [
        compiler(),
        "-x",
        "c",
        "-std=c11",
        "-O2",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(HERE / "coverage.c"),
    ]
    subprocess.run(command, check=True)
    variables = sanitizers()
    # Before the sanitizers, which have empty functions of the same names.
    variables["LD_PRELOAD"] = f"{library} {variables['LD_PRELOAD']}"
    variables["ASAN_OPTIONS"] += ":verify_asan_link_order=0"
    return os.environ | variables | {"PYTHONPATH": os.pathsep.join([str(core), str(HERE.parent)])}


def command(name: str, seconds: int, files: list[Path]) -> list[str]:
    """libFuzzer's command line: some time for a target, or files to play again."""
    engine = [sys.executable, str(HERE / "engine.py"), name]
    limits = ["-timeout=60", "-rss_limit_mb=2048", f"-max_len={MAX_INPUT}"]
    if files:
        return [*engine, *limits, *map(str, files)]
    corpus = WORK / "corpus" / name
    findings = WORK / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    dictionary = HERE / DICTIONARIES.get(name, "json.dict")
    options = [f"-dict={dictionary}", f"-artifact_prefix={findings}/{name}-", f"-max_total_time={seconds}"]
    return [*engine, *limits, *options, "-print_final_stats=1", str(corpus), str(HERE / "seeds" / name)]


def fuzz(name: str, seconds: int, variables: dict[str, str]) -> int:
    """Fuzz one target; say what came of it."""
    log = WORK / f"{name}.log"
    began = time.monotonic()
    with log.open("w") as out:
        code = subprocess.run(
            command(name, seconds, []), stdout=out, stderr=subprocess.STDOUT, env=variables
        ).returncode
    lines = log.read_text(errors="replace").splitlines()
    if code:
        print("\n".join(lines[-80:]))
    runs = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
    last = next((line for line in reversed(lines) if " cov: " in line or " ft: " in line), "")
    reached = last[last.find("ft: ") :].split(" lim")[0] if last else ""
    print(f"{name}: {'FAILED' if code else 'no finding'}, {runs} inputs in {time.monotonic() - began:.0f} s; {reached}")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="in all, on every core of this machine")
    parser.add_argument("--target", choices=NAMES, help="only this one")
    parser.add_argument(
        "--core",
        type=Path,
        default=ROOT / "build" / "fuzz",
        help="folder that has the package, built with FASTINFER_WORK=fuzz",
    )
    parser.add_argument("files", nargs="*", type=Path, help="inputs of the target to play again instead")
    options = parser.parse_args()
    names = [options.target] if options.target else NAMES
    if options.files and not options.target:
        parser.error("files are inputs of one --target")
    if find_spec("atheris") is None:
        print("atheris has no wheel for this Python and machine: nothing is fuzzed; the tests play the seeds.")
        return 0
    variables = environment(options.core)
    if options.files:
        return subprocess.run(command(names[0], 0, options.files), env=variables).returncode
    cores = len(os.sched_getaffinity(0))
    share = max(1, options.seconds * min(cores, len(names)) // len(names))
    with ThreadPoolExecutor(cores) as pool:
        codes = list(pool.map(lambda name: fuzz(name, share, variables), names))
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
