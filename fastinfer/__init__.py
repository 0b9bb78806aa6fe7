"""fastinfer: a low-latency inference server.

The public face; each name is imported when it is first used, so that ``import fastinfer`` costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastinfer import errors as errors
    from fastinfer.app import asgi as asgi
    from fastinfer.lifecycle import load as load
    from fastinfer.model import Model as Model
    from fastinfer.preprocessing.program import Program as Program
    from fastinfer.settings import ModelConfig as ModelConfig
    from fastinfer.settings import Settings as Settings

__version__ = "0.1.0"  # here, not in the package's metadata: reading that costs 40 ms of a start

# onnxruntime's wheels for Linux report to their makers what is run (1.29 and later), unless this says otherwise before
# they are loaded. A server tells nobody what it runs.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "errors": "fastinfer.errors",
    "asgi": "fastinfer.app",
    "load": "fastinfer.lifecycle",
    "Model": "fastinfer.model",
    "Program": "fastinfer.preprocessing.program",
    "ModelConfig": "fastinfer.settings",
    "Settings": "fastinfer.settings",
}

__all__ = ["Model", "ModelConfig", "Program", "Settings", "__version__", "asgi", "errors", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastinfer' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    return module if name == "errors" else getattr(module, name)
