"""Writes the tables and schemas of docs/reference from the declarations: `python docs/generate.py`.

The prose of a page is written by hand around markers, `<!-- NAME: generated -->` to `<!-- /NAME -->`. A test keeps the
pages current.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from fastinfer import errors
from fastinfer.cli.commands import fastinfer
from fastinfer.engines import COLUMN, CatboostConfig, PythonConfig, SklearnConfig, TorchConfig
from fastinfer.options import MODEL_NAME, Option, options
from fastinfer.settings import (
    DecisionConfig,
    ModelConfig,
    OnnxConfig,
    ScoreConfig,
    Settings,
    TritonConfig,
    VersionPolicy,
    flag,
    variable,
)

REFERENCE = Path(__file__).parent / "reference"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
MARKER = re.compile(r"<!-- ([\w -]+): generated -->\n.*?<!-- /\1 -->", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every file that is generated, wholly or in part, and what it has to hold."""
    pages = {path: MARKER.sub(fill, path.read_text()) for path in sorted(REFERENCE.glob("*.md"))}
    schemas = {"settings.schema.json": settings_schema(), "model.schema.json": model_schema()}
    return pages | {REFERENCE / name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()}


def fill(marker: re.Match[str]) -> str:
    name = marker[1]
    lines = (command_lines(name.removeprefix("command ")) if name.startswith("command ") else TABLES[name]())
    return "\n".join([f"<!-- {name}: generated -->", *lines, f"<!-- /{name} -->"])


# -- tables ------------------------------------------------------------------------------------------------------
def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def default(declared: Option) -> str:
    text = declared.written(declared.default)
    return text if declared.default is None else f"`{text}`"


def settings() -> Iterator[str]:
    return table(("key in the file", "flag", "variable", "takes", "default", "meaning"), (
        (f"`{each.name}`", f"`{flag(each)}`" if each.flag else "PATH", f"`{variable(each)}`", each.accepts.rstrip(","),
         default(each), each.text) for each in options(Settings)))


def keys(declaration: type) -> Callable[[], Iterator[str]]:
    return lambda: table(("key", "takes", "default", "meaning"), (
        (f"`{each.name}`", each.accepts, default(each), each.text) for each in options(declaration)))


def command_lines(name: str) -> Iterator[str]:
    command = fastinfer.commands[name]
    arguments = " ".join(each.human_readable_name for each in command.params if isinstance(each, click.Argument))
    yield from ("```", f"fastinfer {name} [OPTIONS] {arguments}", "```", "", str(command.help).replace("<", "&lt;"), "")
    yield from table(("option", "meaning"), (
        (f"`{' / '.join((*each.opts, *each.secondary_opts))}{' ' + each.metavar if each.metavar else ''}`",
         re.sub(" +", " ", str(each.help)) + " [required]" * each.required)
        for each in command.params if isinstance(each, click.Option)))


def error_classes(operator: bool) -> list[type[errors.FastinferError]]:
    classes = [each for each in vars(errors).values() if inspect.isclass(each)]
    return [each for each in classes
            if issubclass(each, errors.FastinferError) and issubclass(each, errors.ConfigurationError) is operator]


def client_errors() -> Iterator[str]:
    return table(("status", "code", "gRPC status", "when"), (
        (str(each.status), f"`{each.code}`", each.grpc, meaning(each))
        for each in sorted(error_classes(operator=False), key=lambda each: each.status)))


def operator_errors() -> Iterator[str]:
    return table(("class", "code", "when"), (
        (f"`{each.__name__}`", f"`{each.code}`", meaning(each)) for each in error_classes(operator=True)))


def meaning(error: type) -> str:
    """The first paragraph of its docstring."""
    if error is errors.FastinferError:
        return "A fault of the server itself."
    return " ".join((inspect.getdoc(error) or "").split("\n\n")[0].split()).replace("``", "`")


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "settings": settings,
    "model": keys(ModelConfig),
    "onnx": keys(OnnxConfig),
    "triton": keys(TritonConfig),
    "catboost": keys(CatboostConfig),
    "python": keys(PythonConfig),
    "sklearn": keys(SklearnConfig),
    "torch": keys(TorchConfig),
    "decision": keys(DecisionConfig),
    "score": keys(ScoreConfig),
    "version policy": keys(VersionPolicy),
    "client errors": client_errors,
    "operator errors": operator_errors,
}


# -- schemas -----------------------------------------------------------------------------------------------------
def settings_schema() -> dict[str, Any]:
    return {"$schema": DRAFT, "title": "fastinfer.toml", **object_schema(Settings)}


def model_schema() -> dict[str, Any]:
    onnx = object_schema(OnnxConfig)
    onnx["properties"]["provider_options"] = {
        "type": "object",
        "description": "Options of each execution provider, by its name.",
        "additionalProperties": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
    }
    schema = {"$schema": DRAFT, "title": "model.toml", **object_schema(ModelConfig)}
    schema["properties"]["onnx"] = {"description": "How onnxruntime runs the model.", **onnx}
    triton = object_schema(TritonConfig)
    triton["properties"]["headers"] = {
        "type": "object", "description": "Sent with every request.", "additionalProperties": {"type": "string"}}
    schema["properties"]["triton"] = {"description": "The Triton that runs the model.", "required": ["url"], **triton}
    schema["properties"]["catboost"] = {"description": "How CatBoost runs.", **object_schema(CatboostConfig)}
    schema["properties"]["python"] = {"description": "How a Python model is run.", **object_schema(PythonConfig)}
    schema["properties"]["torch"] = {"description": "How PyTorch runs a program.", **object_schema(TorchConfig)}
    sklearn = object_schema(SklearnConfig)
    sklearn["properties"]["columns"] = {
        "type": "object", "description": "Types of columns, by name.",
        "additionalProperties": {"enum": list(COLUMN.choices)}}
    schema["properties"]["sklearn"] = {"description": "How a scikit-learn file is loaded.", **sklearn}
    decision = object_schema(DecisionConfig)
    for name, text, value in (("classes", "Thresholds by class.", "number"), ("names", "Names by class.", "string")):
        decision["properties"][name] = {"type": "object", "description": text, "additionalProperties": {"type": value}}
    decision["properties"]["score"] = {"description": "Points of the judged number.", **object_schema(ScoreConfig)}
    schema["properties"]["decision"] = {"description": "What is decided of the model's number.", **decision}
    policy = object_schema(VersionPolicy)
    schema["properties"]["version_policy"] = {"description": "Which versions are loaded.", "maxProperties": 1, **policy}
    schema["properties"]["aliases"] = {
        "type": "object",
        "description": "Names of versions.",
        "propertyNames": {"pattern": f"^{MODEL_NAME.pattern}$"},
        "additionalProperties": {"type": "integer", "minimum": 1},
    }
    return schema


def object_schema(declaration: type) -> dict[str, Any]:
    properties = {each.name: option_schema(each) for each in options(declaration)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def option_schema(declared: Option) -> dict[str, Any]:
    values: dict[str, Any] = {"enum": list(declared.choices)} if declared.choices else dict(declared.kind.schema)
    extras = {"minimum": declared.low, "maximum": declared.high, "default": declared.default}
    given = {key: value for key, value in extras.items() if value is not None}
    return {"description": declared.text, **values, **given}


if __name__ == "__main__":
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"wrote {path}\n")
