"""Builds the compiled core.

FASTINFER_BUILD = release (default) | debug | sanitize | fuzz; FASTINFER_WERROR=1: no warnings.
"""

import os
import platform
import re
import sys
from pathlib import Path

import numpy
from setuptools import Extension, setup

# C++17, and never -ffast-math or contracted multiply-adds: preprocessing promises scikit-learn's exact arithmetic.
COMPILE = ["-std=c++17", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter",
           # Cython's own generated code: type slots left zero, a comparison that is constant for some types.
           "-Wno-missing-field-initializers", "-Wno-cast-function-type"]
CHECKED = ["-O1", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS", "-DFASTINFER_DEBUG=1"]
SANITIZED = [*CHECKED, "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
BUILDS = {
    "release": (["-O3", "-DNDEBUG"], []),
    "debug": (CHECKED, []),
    "sanitize": (SANITIZED, ["-fsanitize=address,undefined"]),
    # It tells tests/fuzz/coverage.c where it goes and what it compares.
    "fuzz": ([*SANITIZED, "-fsanitize-coverage=trace-pc,trace-cmp"], ["-fsanitize=address,undefined"]),
}


def refuse_unknown_platform() -> None:
    """One sentence for what has not been tested, instead of a compiler's page of errors."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        here = f"{sys.platform} on {platform.machine()}"
        raise SystemExit(f"fastinfer runs on Linux on x86-64 and arm64; this is {here}.")
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise SystemExit("fastinfer needs CPython 3.11 to 3.14 with the GIL.")
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 28):
        raise SystemExit(f"fastinfer needs glibc 2.28 or newer; this is {version}.")


refuse_unknown_platform()
build = os.environ.get("FASTINFER_BUILD", "release")
if build not in BUILDS:
    raise SystemExit(f"FASTINFER_BUILD is {build!r}; it takes {', '.join(BUILDS)}.")
compile_args, link_args = BUILDS[build]
if os.environ.get("FASTINFER_WERROR"):  # the tests' builds; a user's newer compiler may know new warnings
    compile_args = [*compile_args, "-Werror"]
checked = build != "release"
parts = sorted(str(p) for suffix in ("pyx", "pxd") for p in Path("fastinfer/core").rglob(f"*.{suffix}"))

core = Extension(
    "fastinfer._core",
    ["fastinfer/_core.pyx"],
    language="c++",
    include_dirs=[numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")],
    extra_compile_args=COMPILE + compile_args,
    extra_link_args=link_args,
    depends=["fastinfer/_core.pxd", *parts],
)
setup(
    ext_modules=[core],
    options={
        "build_ext": {  # Cython's, through setuptools: only a command that compiles translates
            "force": True,  # a part's change, or another build kind, must never meet a stale _core.cpp
            "cython_directives": {
                "language_level": 3,
                "boundscheck": checked,
                "wraparound": False,
                "initializedcheck": checked,
                "cdivision": True,
                "embedsignature": False,
                "binding": True,
                "legacy_implicit_noexcept": False,
                "auto_pickle": False,
            },
        }
    },
)
