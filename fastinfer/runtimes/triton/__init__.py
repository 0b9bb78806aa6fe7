"""Triton Inference Server as a runtime: features and batches are made here, the model runs there.

Loaded for `runtime = "triton"` only; needs tritonclient, the extra `triton`.
"""

import importlib.util
from pathlib import Path

from fastinfer.errors import ConfigurationError
from fastinfer.runtimes import Runtime
from fastinfer.settings import ModelConfig, Settings


def load(path: Path, config: ModelConfig, settings: Settings) -> Runtime:
    """The model that a model.toml describes.

    Args:
        path: the model.toml.

    Raises:
        ConfigurationError: tritonclient is not installed, or there are several workers.
        BackendUnavailableError: Triton does not answer, or does not have the model ready.
        ModelLoadError: the model cannot be served from here.
    """
    assert config.triton is not None
    if settings.workers > 1:
        raise ConfigurationError(f"{path}: a model on Triton is served by one worker, so that its batches are whole, "
                                 f"not {settings.workers} fragments; start with --workers 1")
    for module in ("tritonclient", "grpc" if config.triton.transport == "grpc" else "geventhttpclient"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(f"{path}: runtime = 'triton' needs {module}: pip install 'fastinfer[triton]'")
    from fastinfer.runtimes.triton.runtime import TritonRuntime

    return TritonRuntime(config.triton.model or path.resolve().parent.name, config, str(path))
