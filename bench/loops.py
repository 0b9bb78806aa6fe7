"""Loops over the compiled core with no Python call between, for what is timed in nanoseconds."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def compiled(name: str) -> Any:
    """``name``.pyx as a module, compiled against the declarations of the core in this source tree."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    here, folder = Path(__file__).resolve().parent, tempfile.mkdtemp()
    source = Extension(name, [str(here / f"{name}.pyx")], include_dirs=[np.get_include()],
                       extra_compile_args=["-std=c++17"])
    modules = cythonize([source], include_path=[str(here.parent)], build_dir=folder, quiet=True, language_level=3)
    build = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    build.build_lib = build.build_temp = folder
    build.ensure_finalized()
    build.run()
    sys.path.insert(0, folder)
    return importlib.import_module(name)
