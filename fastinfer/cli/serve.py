"""`fastinfer serve`: settings, an early no to what cannot be served, then the server."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastinfer.errors import ConfigurationError
from fastinfer.repository import Repository, find
from fastinfer.settings import Settings, resolve

# onnxruntime's execution providers on a device that takes whole batches from one process.
ON_A_DEVICE = ("CUDA", "Tensorrt", "NvTensorRT", "ROCM", "MIGraphX", "WebGpu", "CANN")


def run_serve(flags: Mapping[str, Any], config: Path | None) -> int:
    """Serve until told to stop. Returns the exit code.

    Raises:
        ConfigurationError: a setting is wrong, or there is nothing that could be served.
    """
    settings = resolve(flags, config=config)
    if settings.load_model and settings.model_control != "explicit":
        raise ConfigurationError("--load-model is for --model-control explicit; otherwise every model is loaded.")
    repository = found(settings, "serve")
    if settings.model_control == "none":
        refuse_what_cannot_be_served(repository, settings)
    if settings.grpc_port is not None:
        refuse_grpc_without_its_packages()
    if settings.workers > 1:
        refuse_to_share_a_device(repository, settings.workers)
    # After the refusals: it brings uvicorn.
    if settings.workers > 1:
        from fastinfer.workers import supervise as run
    else:
        from fastinfer.server import run
    return run(settings)


def refuse_grpc_without_its_packages() -> None:
    """Raises where what gRPC needs is not installed; it is looked for, not imported: a fork must come before that."""
    missing = [name for name in ("grpc", "google.protobuf") if not installed(name)]
    if missing:
        raise ConfigurationError(f"--grpc-port needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}, "
                                 "which the extra `grpc` brings: pip install 'fastinfer[grpc]'.")


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that holds it
        return False


def refuse_to_share_a_device(repository: Repository, workers: int) -> None:
    """Raises where several workers would load a model onto one device: a context each, and fragments of its batches."""
    for each in repository.found:
        if each.kind == "torch" and each.config.torch.device == "cuda":
            raise ConfigurationError(f"model {each.name} runs on a GPU, and {workers} workers would share it; it is "
                                     "served by one: --workers 1.")
        for provider in each.config.onnx.providers:
            if provider.startswith(ON_A_DEVICE):
                raise ConfigurationError(f"model {each.name} runs on {provider}, and {workers} workers would share the "
                                         "device; it is served by one: --workers 1.")


def found(settings: Settings, command: str) -> Repository:
    """What lies under the settings' path.

    Raises:
        ConfigurationError: no path is given, or no model is there.
    """
    if settings.path is None:
        raise ConfigurationError(f"{command} needs a PATH: a model file, a model's folder, or a repository of models.")
    return find(settings.path, settings.name, empty=settings.model_control != "none")


def refuse_what_cannot_be_served(repository: Repository, settings: Settings) -> None:
    """Raises the first model's error when every model has one: a server without any model helps nobody."""
    from fastinfer.runtimes import trust  # it brings numpy

    refusals = [each.error or (each.file and trust.refusal(each.file, settings, each.name))
                for each in repository.found]
    errors = [each for each in refusals if each is not None]
    if len(errors) == len(repository.found):
        more = f" ({len(errors) - 1} more: see fastinfer check)" if len(errors) > 1 else ""
        raise ConfigurationError(f"{errors[0]}{more}")
