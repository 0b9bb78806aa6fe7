"""The OpenAPI document of what is served, and the page at /docs that shows it.

The page's script and style are the files of the package swagger-ui-bundle (Swagger UI, Apache-2.0), sent from here:
nothing is asked of another host, and the page's Content-Security-Policy holds it to that.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from fastinfer import __version__
from fastinfer.errors import NotFoundError
from fastinfer.pages import categories, is_date, number_range, one_row, speaks_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastinfer._core import Tensor
    from fastinfer.model import Model

    Schema = dict[str, Any]

ASSETS = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "favicon-32x32.png": b"image/png",
}
SCRIPT = b"""window.addEventListener("load", function () {
  SwaggerUIBundle({url: "docs/openapi.json", dom_id: "#swagger-ui", validatorUrl: null, deepLinking: true,
    tryItOutEnabled: true, defaultModelsExpandDepth: 0, presets: [SwaggerUIBundle.presets.apis]});
});
"""
PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>fastinfer: API</title><link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div><script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script>
</body></html>
"""
# Swagger UI sets styles in elements' attributes.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
INTEGERS = {
    "UINT8": (0, 2**8 - 1), "UINT16": (0, 2**16 - 1), "UINT32": (0, 2**32 - 1), "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1), "INT16": (-(2**15), 2**15 - 1), "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}  # fmt: skip


def asset(name: str) -> tuple[bytes, bytes]:
    """A file of the page: its bytes and its content type.

    Raises:
        NotFoundError: the page has no such file.
    """
    if name == "start.js":
        return SCRIPT, ASSETS["swagger-ui-bundle.js"]
    if name not in ASSETS:
        raise NotFoundError("no such path; GET / lists what is served")
    vendor = resources.files("swagger_ui_bundle") / "vendor"
    folder = next(each for each in vendor.iterdir() if each.name.startswith("swagger-ui"))
    return (folder / name).read_bytes(), ASSETS[name]


def document(models: Iterable[Model], root_path: str, version: str) -> dict[str, Any]:
    """The document, valid under OpenAPI 3.0 and 3.1 alike; infer is left out where JSON cannot carry a model's types.

    Args:
        root_path: prefix under which the application is mounted.
        version: what the document says of itself, "3.0.3" or "3.1.0".
    """
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": ERROR}
    seen: set[str] = set()
    for model in models:
        prefix = "" if model.name not in seen else f"/versions/{model.version}"
        seen.add(model.name)  # the highest version comes first and answers without one
        _describe(paths, schemas, model, prefix)
    return {
        "openapi": version,
        "info": {
            "title": "fastinfer",
            "version": __version__,
            "description": "Records in, predictions out, and the Open Inference Protocol version 2.",
        },
        "servers": [{"url": root_path or "/"}],
        "paths": {**paths, **_server_paths()},
        "components": {"schemas": schemas},
    }


def _describe(paths: dict[str, Any], schemas: dict[str, Any], model: Model, prefix: str) -> None:
    v1, v2 = f"/v1/models/{model.name}{prefix}", f"/v2/models/{model.name}{prefix}"
    if speaks_json(model):
        key = model.name if not prefix else f"{model.name}-{model.version}"
        schemas[f"{key}-record"] = _record(model)
        schemas[f"{key}-prediction"] = _prediction(model)
        example = model.example()
        request, answer = _records_request(key, model.record()), _records_answer(key)
        paths[f"{v1}:predict"] = {"post": _operation(model, f"Predict with {model.name}", request, answer)}
        request, answer = _infer_request(model, example), _infer_answer(model)
        paths[f"{v2}/infer"] = {"post": _operation(model, f"Infer with {model.name}", request, answer)}
    paths[v2] = {"get": _get(model.name, "Inputs and outputs")}
    paths[f"{v2}/ready"] = {"get": _get(model.name, "Readiness")}
    paths[f"{v2}/config"] = {"get": _get(model.name, "Configuration, as Triton writes it")}
    paths[f"{v2}/stats"] = {"get": _get(model.name, "Statistics")}


def _server_paths() -> dict[str, Any]:
    return {
        "/v2": {"get": _get("server", "Name, version and extensions")},
        "/v2/health/live": {"get": _get("server", "Whether the process answers")},
        "/v2/health/ready": {"get": _get("server", "Whether the server wants traffic")},
        "/v2/models/stats": {"get": _get("server", "Statistics of every model")},
        "/v2/repository/index": {"post": _get("server", "Every model, loaded or not")},
    }


def _operation(model: Model, summary: str, body: Schema, answer: Schema) -> dict[str, Any]:
    return {
        "tags": [model.name],
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {"description": "The answer", "content": {"application/json": {"schema": answer}}},
            "default": _ERROR_ANSWER,
        },
    }


def _get(tag: str, summary: str) -> dict[str, Any]:
    answer = {"description": "The answer", "content": {"application/json": {}}}
    return {"tags": [tag], "summary": summary, "responses": {"200": answer, "default": _ERROR_ANSWER}}


# ---- records ------------------------------------------------------------------------------------------------------
def _records_request(key: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["records"],
        "properties": {
            "records": {"type": "array", "items": {"$ref": f"#/components/schemas/{key}-record"}},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
        },
    }
    return {"schema": schema, "example": {"records": [example]}}


def _records_answer(key: str) -> Schema:
    return _answer("predictions", {"type": "array", "items": {"$ref": f"#/components/schemas/{key}-prediction"}})


def _answer(member: str, items: Schema) -> Schema:
    text = {"type": "string"}
    return {"type": "object", "properties": {"model_name": text, "model_version": text, "id": text, member: items}}


def _record(model: Model) -> Schema:
    required, properties, example = [], {}, model.example()
    for tensor in model.signature.inputs:
        schema = _value(tensor, _row(model, tensor))
        known = categories(model, tensor.name)
        if known:
            schema["description"] = "Known values: " + ", ".join(map(str, known))
        if is_date(model, tensor.name):
            schema = {"type": "string", "format": "date-time", "description": "An ISO 8601 date, or date and time"}
        seen = number_range(model, tensor.name)
        if seen is not None:
            schema["description"] = f"Seen from {seen[0]:.6g} to {seen[1]:.6g}"
        if tensor.nullable and tensor.column:
            # 3.0 writes null as "nullable", 3.1 as a type: no schema at all is valid as both and takes either.
            schema = {"description": "; ".join(filter(None, [f"{schema['type']}, or null", schema.get("description")]))}
        else:
            required.append(tensor.name)
        if known:
            schema["x-known-values"] = list(known)  # for load generators; the schema allows others
        if seen is not None:
            schema["x-range"] = list(seen)
        schema["example"] = example[tensor.name]
        properties[tensor.name] = schema
    if model.program is not None:
        properties |= {name: {"description": "Not read"} for name in model.program.ignored}
    if model.signature.features:  # in place of the one input
        (whole,) = properties.items()
        required = []
        properties = {whole[0]: whole[1] | {"description": "All of them in a list, in place of the other fields"}}
        missing = {"description": "number, or null, which is missing, as is a field that is not there", "example": 0.5}
        properties |= dict.fromkeys(model.signature.features, missing)
    lenient = model.config.extra_fields == "ignore"
    record: Schema = {"type": "object", "properties": properties, "additionalProperties": lenient}
    return record | ({"required": required} if required else {})


def _prediction(model: Model) -> Schema:
    task = model.task
    number = {"type": "number"}
    if task is None:
        named = {tensor.name: _value(tensor, _row(model, tensor)) for tensor in model.signature.outputs}
        return {"type": "object", "properties": named}
    outputs = model.signature.outputs
    decided = {tensor.name: _scalar(tensor.datatype) for tensor in outputs if tensor.name in model.beside}
    if task.kind == "regressor":
        return {"type": "object", "properties": {"value": number, **decided}}
    properties = {"label": _value(t, ()) for t in model.signature.outputs if t.name == task.label}  # noqa: B035
    if task.probabilities is not None:
        properties["probabilities"] = {"type": "object", "properties": dict.fromkeys(task.classes, number)}
    return {"type": "object", "properties": {**properties, **decided}}


# ---- tensors ------------------------------------------------------------------------------------------------------
def _infer_request(model: Model, example: dict[str, Any]) -> dict[str, Any]:
    inputs = [one_row(model, tensor, example[tensor.name]) for tensor in model.signature.inputs]
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": _tensor([t.name for t in model.signature.inputs])},
            "outputs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        },
    }
    return {"schema": schema, "example": {"inputs": inputs}}


def _infer_answer(model: Model) -> Schema:
    items = _tensor([tensor.name for tensor in model.signature.outputs])
    return _answer("outputs", {"type": "array", "items": items})


def _tensor(names: list[str]) -> Schema:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"type": "string", "enum": names},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"type": "string"},
            "data": {"type": "array", "items": {}},
        },
    }


def _row(model: Model, tensor: Tensor) -> tuple[int, ...]:
    """The shape of a record's value: a row, or the whole tensor where the model is not batched."""
    return tensor.shape[1:] if model.signature.batched else tensor.shape


def _value(tensor: Tensor, row: tuple[int, ...]) -> Schema:
    """A record's value: a scalar for one element a row, else nested arrays."""
    schema = _scalar(tensor.datatype)
    if tensor.nullable and not tensor.column:
        schema = {"description": f"{schema['type']}, or null"}
    for _ in () if row in ((), (1,)) else row:
        schema = {"type": "array", "items": schema}
    return schema


def _scalar(datatype: str) -> Schema:
    if datatype == "BOOL":
        return {"type": "boolean"}
    if datatype == "BYTES":
        return {"type": "string"}
    if datatype in INTEGERS:
        low, high = INTEGERS[datatype]
        return {"type": "integer", "minimum": low, "maximum": high}
    return {"type": "number"}


ERROR: Schema = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong"},
        "code": {"type": "string", "description": "A stable name, for programs"},
        "at": {"type": "string", "description": "JSON path of the culprit, where there is one"},
    },
}
_ERROR_ANSWER = {
    "description": "An error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
