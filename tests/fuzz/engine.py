"""One target under libFuzzer: `engine.py TARGET [libFuzzer's arguments]`, as run.py starts it."""

from __future__ import annotations

import ctypes
import importlib
import sys

import atheris

from fuzz.targets import TARGETS


def watch_the_core() -> None:
    """Connect what coverage.c counts in the core with the libFuzzer inside atheris."""
    coverage = ctypes.CDLL(None)  # preloaded
    fuzzer = ctypes.CDLL(importlib.import_module("atheris.core_with_libfuzzer").__file__)

    def address(name: str) -> ctypes.c_void_p:
        return ctypes.cast(getattr(fuzzer, f"__sanitizer_cov_{name}"), ctypes.c_void_p)

    coverage.coverage_start(address("8bit_counters_init"))
    for i, size in enumerate((1, 2, 4, 8)):
        coverage.coverage_compare(i, address(f"trace_cmp{size}"), address(f"trace_const_cmp{size}"))
    coverage.coverage_switch(address("trace_switch"))


def main() -> None:
    target = TARGETS[sys.argv[1]]
    watch_the_core()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target, enable_python_coverage=False)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
