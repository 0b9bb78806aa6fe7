"""Requests that are at fault: each is refused in the protocol's form, and the server goes on."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from fastinfer.conformance.basics import NOBODY
from fastinfer.conformance.inference import answers_still
from fastinfer.conformance.kit import Checks, SkipError, need
from fastinfer.conformance.models import BINARY_ONLY, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastinfer.conformance.models import Model
    from fastinfer.conformance.server import Server

faults = Checks("error")


def json_model(server: Server, **kind: Any) -> Model:
    """A model whose inputs JSON can carry."""
    server.model(**kind)
    for model in server.models:
        if not any(tensor.datatype in BINARY_ONLY for tensor in model.inputs):
            return model
    raise SkipError("every model takes binary data")


def spoilt(server: Server, change: Callable[[Any, Model], Any], model: Model | None = None) -> str:
    """What is answered to a good request's object after a change."""
    model = model or json_model(server)
    document = json.loads(request(model, model.asked)[0])
    changed = copy.deepcopy(document)
    change(changed, model)
    note = server.ask("POST", server.path(model), changed).refused()
    answers_still(server)
    return note


def first(document: Any) -> Any:
    return document["inputs"][0]


@faults.add("unknown-model", "inference by a model that there is not is an error")
def unknown_model(server: Server) -> str:
    return server.ask("POST", f"/v2/models/{NOBODY}/infer", {"inputs": []}).refused()


@faults.add("unknown-version", "inference by a version that there is not is an error")
def unknown_version(server: Server) -> str:
    model = server.model()
    body, headers = request(model, model.asked)
    return server.ask("POST", server.path(model, version="987654"), body, headers).refused()


@faults.add("unknown-path", "a path that there is not is 404")
def unknown_path(server: Server) -> str:
    note = server.get("/v2/no/such/path").refused()
    need(note.startswith("404"), note)
    return note


@faults.add("method", "a verb that a path does not take is 405")
def method(server: Server) -> str:
    answers = server.ask("POST", "/v2/health/live", b""), server.get(server.path(server.model()))
    for answer in answers:
        need(answer.status == 405, f"status {answer.status}")
    return "405"


@faults.add("not-json", "a body that is not JSON is an error")
def not_json(server: Server) -> str:
    model = server.model()
    notes = [server.ask("POST", server.path(model), body).refused() for body in (b"{", b"", b"nonsense", b"\xff\xfe")]
    answers_still(server)
    return notes[0]


@faults.add("not-an-object", "a body that is not an object is an error")
def not_an_object(server: Server) -> str:
    model = server.model()
    notes = [server.ask("POST", server.path(model), body).refused() for body in (b"[]", b"7", b'"text"', b"null")]
    answers_still(server)
    return notes[0]


@faults.add("deep", "JSON nested very deeply is an error")
def deep(server: Server) -> str:
    model = server.model()
    body = b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}"
    note = server.ask("POST", server.path(model), body).refused()
    answers_still(server)
    return note


@faults.add("no-inputs", "a request without inputs is an error")
def no_inputs(server: Server) -> str:
    return spoilt(server, lambda document, model: document.pop("inputs"))


@faults.add("missing-input", "a request that lacks an input is an error")
def missing_input(server: Server) -> str:
    return spoilt(server, lambda document, model: document["inputs"].pop())


@faults.add("unknown-input", "an input that the model does not have is an error")
def unknown_input(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document).update(name="no-such-input"))


@faults.add("nameless-input", "an input without a name is an error")
def nameless_input(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document).pop("name"))


@faults.add("no-shape", "an input without a shape is an error")
def no_shape(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document).pop("shape"))


@faults.add("no-datatype", "an input without a datatype is an error")
def no_datatype(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document).pop("datatype"))


@faults.add("no-data", "an input without data is an error")
def no_data(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document).pop("data"))


@faults.add("other-datatype", "an input of another datatype than the model's is an error")
def other_datatype(server: Server) -> str:
    def change(document: Any, model: Model) -> None:
        entry = first(document)
        entry["datatype"] = "FP64" if entry["datatype"] != "FP64" else "INT32"
        entry["data"] = [0] * len(entry["data"])

    return spoilt(server, change)


@faults.add("unknown-datatype", "a datatype that there is not is an error")
def unknown_datatype(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document).update(datatype="FLOAT"))


@faults.add("rank", "a shape of another rank than the model's is an error")
def rank(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document)["shape"].extend([1, 1]))


@faults.add("dimension", "a dimension that the model does not take is an error")
def dimension(server: Server) -> str:
    for model in server.models:
        fixed = [tensor for tensor in model.inputs if any(dim > 0 for dim in tensor.shape)]
        if not fixed or any(tensor.datatype in BINARY_ONLY for tensor in model.inputs):
            continue
        at = next(axis for axis, dim in enumerate(fixed[0].shape) if dim > 0)

        def change(document: Any, model: Model, name: str = fixed[0].name, at: int = at) -> None:
            entry = next(each for each in document["inputs"] if each["name"] == name)
            entry["shape"][at] += 1
            entry["data"] = [entry["data"][0]] * (len(entry["data"]) // (entry["shape"][at] - 1) * entry["shape"][at])

        return spoilt(server, change, model)
    raise SkipError("no model with a fixed dimension")


@faults.add("few-data", "fewer values than the shape takes are an error")
def few_data(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document)["data"].pop())


@faults.add("many-data", "more values than the shape takes are an error")
def many_data(server: Server) -> str:
    return spoilt(server, lambda document, model: first(document)["data"].append(first(document)["data"][0]))


@faults.add("negative-dimension", "a negative dimension is an error")
def negative(server: Server) -> str:
    def change(document: Any, model: Model) -> None:
        first(document)["shape"][0] = -1

    return spoilt(server, change)


@faults.add("huge-shape", "a shape larger than any memory is an error")
def huge(server: Server) -> str:
    def change(document: Any, model: Model) -> None:
        first(document)["shape"][0] = 1 << 62

    return spoilt(server, change)


@faults.add("wrong-value", "a value of another type is an error")
def wrong_value(server: Server) -> str:
    def change(document: Any, model: Model) -> None:
        entry = first(document)
        entry["data"][0] = {"an": "object"}

    return spoilt(server, change)


@faults.add("text-for-number", "a text in the place of a number is an error")
def text_for_number(server: Server) -> str:
    for model in server.models:
        if not any(tensor.datatype in ("BYTES", *BINARY_ONLY) for tensor in model.inputs):
            break
    else:
        raise SkipError("no model that takes only numbers")

    def change(document: Any, model: Model) -> None:
        first(document)["data"][0] = "seven"

    return spoilt(server, change, model)


@faults.add("unknown-output", "an output that the model does not have is an error")
def unknown_output(server: Server) -> str:
    return spoilt(server, lambda document, model: document.update(outputs=[{"name": "no-such-output"}]))


@faults.add("timeout-text", "a timeout that is no number is an error")
def timeout_text(server: Server) -> str:
    server.offers("schedule_policy")
    return spoilt(server, lambda document, model: document.update(parameters={"timeout": "soon"}))


@faults.add("encoding", "a Content-Encoding that the server does not know is an error")
def encoding(server: Server) -> str:
    model = server.model()
    body, headers = request(model, model.asked)
    answer = server.ask("POST", server.path(model), body, {**headers, "Content-Encoding": "rot13"})
    need(answer.status >= 400, f"status {answer.status}, an error is expected")
    answers_still(server)
    return str(answer.status)


@faults.add("broken-gzip", "a body that is not what its Content-Encoding says is an error")
def broken_gzip(server: Server) -> str:
    model = server.model()
    body, headers = request(model, model.asked)
    answer = server.ask("POST", server.path(model), body, {**headers, "Content-Encoding": "gzip"})
    need(answer.status >= 400, f"status {answer.status}, an error is expected")
    answers_still(server)
    return str(answer.status)
