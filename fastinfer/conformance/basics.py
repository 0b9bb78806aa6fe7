"""Health and metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fastinfer.conformance.kit import Checks, SkipError, need
from fastinfer.conformance.models import DTYPES

if TYPE_CHECKING:
    from fastinfer.conformance.server import Server

health, metadata = Checks("health"), Checks("metadata")
NOBODY = "no-such-model-9f3a"


@health.add("live", "GET /v2/health/live answers 200")
def live(server: Server) -> str:
    return f"{server.get('/v2/health/live').ok().status}"


@health.add("ready", "GET /v2/health/ready answers 200")
def ready(server: Server) -> str:
    return f"{server.get('/v2/health/ready').ok().status}"


@health.add("model", "GET /v2/models/M/ready answers 200, with a version too")
def model_ready(server: Server) -> str | None:
    model = server.model()
    server.get(server.path(model, "ready")).ok()
    if model.versions:
        server.get(server.path(model, "ready", model.versions[0])).ok()
    return model.name


@health.add("unknown-model", "a model that there is not is not ready")
def unknown_ready(server: Server) -> str:
    status = server.get(f"/v2/models/{NOBODY}/ready").status
    need(status != 200, f"status {status}")
    return f"{status}"


@health.add("unknown-version", "a version that there is not is not ready")
def unknown_version_ready(server: Server) -> str:
    status = server.get(server.path(server.model(), "ready", "987654")).status
    need(status != 200, f"status {status}")
    return f"{status}"


@metadata.add("server", "GET /v2 names the server, its version and its extensions")
def server_metadata(server: Server) -> str:
    document = server.metadata
    for key in ("name", "version"):
        need(isinstance(document.get(key), str), f"{key} is {document.get(key)!r}")
    extensions = document.get("extensions")
    need(isinstance(extensions, list) and all(isinstance(each, str) for each in extensions), "no list of extensions")
    return f"{document['name']} {document['version']}"


@metadata.add("model", "GET /v2/models/M names platform, versions, inputs and outputs")
def model_metadata(server: Server) -> str:
    for name in server.names:
        document = server.get(f"/v2/models/{quote(name, safe='')}").ok().document()
        need(document.get("name") == name, f"name is {document.get('name')!r}")
        need(isinstance(document.get("platform"), str), "platform is no string")
        versions = document.get("versions", [])
        need(all(isinstance(each, str) for each in versions), f"versions are {versions!r}")
        for end in ("inputs", "outputs"):
            for tensor in document[end]:
                need(isinstance(tensor["name"], str), f"a tensor's name is {tensor['name']!r}")
                need(tensor["datatype"] in DTYPES, f"datatype {tensor['datatype']!r}")
                need(all(isinstance(dim, int) and dim >= -1 for dim in tensor["shape"]), f"shape {tensor['shape']}")
    need(server.names, "no model is ready")
    return f"{len(server.names)} models"


@metadata.add("version", "GET /v2/models/M/versions/V is the metadata of that version")
def version_metadata(server: Server) -> str:
    model = server.model()
    if not model.versions:
        raise SkipError("the metadata name no versions")
    document = server.get(f"/v2/models/{quote(model.name, safe='')}/versions/{model.versions[0]}").ok().document()
    need(document["name"] == model.name, f"name is {document['name']!r}")
    return f"{model.name} {model.versions[0]}"


@metadata.add("unknown-model", "the metadata of a model that there is not are an error")
def unknown_metadata(server: Server) -> str:
    return server.get(f"/v2/models/{NOBODY}").refused()


@metadata.add("unknown-version", "the metadata of a version that there is not are an error")
def unknown_version_metadata(server: Server) -> str:
    return server.get(f"/v2/models/{quote(server.model().name, safe='')}/versions/987654").refused()
