"""The methods of `inference.GRPCInferenceService` that carry little: each takes a message and returns what fills one.

Where a part is off, the answer is the one that Triton gives when it is off there; `triton.py` has the same for HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastinfer import __version__
from fastinfer.errors import NotFoundError, NotReadyError, UnsupportedError
from fastinfer.protocols.rest import EXTENSIONS
from fastinfer.protocols.triton import TRACE, changes, log_settings

if TYPE_CHECKING:
    from fastinfer.service import Service

    Fields = dict[str, Any]

SERVING, NOT_SERVING = 1, 2


def health(service: Service, name: str) -> int | None:
    """A status of grpc.health.v1 for the server ("" or the service's name); None for what is not known."""
    if name not in ("", "inference.GRPCInferenceService"):
        return None
    return SERVING if service.ready else NOT_SERVING


async def server_live(service: Service, asked: Any) -> Fields:
    return {"live": True}


async def server_ready(service: Service, asked: Any) -> Fields:
    return {"ready": service.ready}


async def model_ready(service: Service, asked: Any) -> Fields:
    """False for a model that there is not, as Triton has it."""
    try:
        await service.lookup(asked.name, asked.version or None)
        return {"ready": service.registry.model_ready(asked.name, asked.version or None)}
    except (NotFoundError, NotReadyError):
        return {"ready": False}


async def server_metadata(service: Service, asked: Any) -> Fields:
    return {"name": "fastinfer", "version": __version__, "extensions": list(EXTENSIONS)}


async def model_metadata(service: Service, asked: Any) -> Fields:
    model = await service.model(asked.name, asked.version or None)
    return model.metadata(service.registry.versions(model.name))


async def model_config(service: Service, asked: Any) -> Fields:
    model = await service.model(asked.name, asked.version or None)
    return {"config": model.configuration()}


async def model_statistics(service: Service, asked: Any) -> Fields:
    """Of one version, of each loaded one of a model, or of everything."""
    if not asked.name:
        await service.prepare()
        return {"model_stats": [each.statistics() for each in service.registry.models()]}
    found = await service.lookup(asked.name, asked.version or None)
    models = [each for each in service.registry.models() if each.name == found.found.name]
    if asked.version or "@" in asked.name:
        models = [] if found.model is None else [found.model]
    return {"model_stats": [each.statistics() for each in models]}


async def repository_index(service: Service, asked: Any) -> Fields:
    return {"models": await service.index(asked.ready)}


async def load(service: Service, asked: Any) -> Fields:
    await service.load_model(asked.model_name, parameters(asked))
    return {}


async def unload(service: Service, asked: Any) -> Fields:
    await service.unload_model(asked.model_name, parameters(asked))
    return {}


def parameters(asked: Any) -> Fields:
    """The parameters of a load or unload."""
    if asked.repository_name:
        raise UnsupportedError("'repository_name' specification is not supported")  # in Triton's words
    return {key: given(value) for key, value in asked.parameters.items()}


def given(value: Any) -> Any:
    """What a message of one of several fields has; None where it has none."""
    kind = value.WhichOneof("choice")
    return None if kind is None else getattr(value, kind)


async def memory_status(service: Service, asked: Any) -> Fields:
    """No region is ever registered."""
    if asked.name:
        kind = "system" if asked.DESCRIPTOR.name.startswith("System") else "cuda"
        raise NotFoundError(f"Unable to find {kind} shared memory region: '{asked.name}'")
    return {}


async def memory_register(service: Service, asked: Any) -> Fields:
    raise UnsupportedError("shared memory is not supported")


async def memory_unregister(service: Service, asked: Any) -> Fields:
    """Nothing to forget, which is no error: clients clean up before they start."""
    return {}


async def trace_setting(service: Service, asked: Any) -> Fields:
    if asked.model_name:
        await service.lookup(asked.model_name, None)
    values = {name: value if isinstance(value, list) else [value] for name, value in TRACE.items()}
    if changes({name: list(value.value) or None for name, value in asked.settings.items()}, values):
        raise UnsupportedError("tracing is not supported")
    return {"settings": {name: {"value": value} for name, value in values.items()}}


async def log_setting(service: Service, asked: Any) -> Fields:
    settings = log_settings(service)
    if changes({name: given(value) for name, value in asked.settings.items()}, settings):
        raise UnsupportedError("log settings cannot be changed while the server runs")
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    return {"settings": {name: {kinds[type(value)]: value} for name, value in settings.items()}}


METHODS = {
    name: (f"{name}Request", f"{name}Response", method)
    for name, method in {
        "ServerLive": server_live,
        "ServerReady": server_ready,
        "ModelReady": model_ready,
        "ServerMetadata": server_metadata,
        "ModelMetadata": model_metadata,
        "ModelConfig": model_config,
        "ModelStatistics": model_statistics,
        "RepositoryIndex": repository_index,
        "RepositoryModelLoad": load,
        "RepositoryModelUnload": unload,
        "SystemSharedMemoryStatus": memory_status,
        "SystemSharedMemoryRegister": memory_register,
        "SystemSharedMemoryUnregister": memory_unregister,
        "CudaSharedMemoryStatus": memory_status,
        "CudaSharedMemoryRegister": memory_register,
        "CudaSharedMemoryUnregister": memory_unregister,
        "TraceSetting": trace_setting,
        "LogSettings": log_setting,
    }.items()
}
