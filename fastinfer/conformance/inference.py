"""Inference with JSON, the binary tensor extension, and every datatype that the server's models take."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fastinfer.conformance.kit import Check, Checks, FailError, SkipError, need
from fastinfer.conformance.models import BINARY_ONLY, DTYPES, need_equal, packed, request
from fastinfer.conformance.server import HEADER

if TYPE_CHECKING:
    from fastinfer.conformance.models import Model
    from fastinfer.conformance.server import Server

infer, binary, framing = Checks("infer"), Checks("binary"), Checks("framing")
BINARY = "binary_tensor_data"


@infer.add("json", "a request in JSON is answered with every output, in the form of the protocol")
def plain(server: Server) -> str:
    model = server.model()
    answer = server.infer(model, model.asked)
    outputs = server.outputs(model, answer)
    need(outputs.keys() == {tensor.name for tensor in model.outputs}, f"outputs {sorted(outputs)}")
    need("json" in answer.headers.get("content-type", ""), f"content-type {answer.headers.get('content-type')!r}")
    return model.name


@infer.add("nested", "data may be nested as the shape, or flat")
def nested(server: Server) -> None:
    model = server.model()
    flat = server.outputs(model, server.infer(model, model.asked))
    need_equal(flat, server.outputs(model, server.infer(model, model.asked, nested=True)), "flat and nested data")


@infer.add("version", "a version may be named, and the answer names it")
def version(server: Server) -> str:
    model = server.model()
    if not model.versions:
        raise SkipError("the metadata name no versions")
    body, headers = request(model, model.asked)
    answer = server.ask("POST", server.path(model, version=model.versions[0]), body, headers).ok()
    said = json.loads(answer.body[: int(answer.headers.get(HEADER.lower(), len(answer.body)))])["model_version"]
    need(said == model.versions[0], f"version {model.versions[0]} was asked, {said!r} answers")
    return str(said)


def head_of(server: Server, model: Model, **options: Any) -> dict[str, Any]:
    """The JSON of an answer."""
    answer = server.infer(model, model.asked, **options).ok()
    size = int(answer.headers.get(HEADER.lower(), len(answer.body)))
    return dict(json.loads(answer.body[:size]))


@infer.add("id", "the request's id comes back in the answer, character by character")
def identity(server: Server) -> None:
    model = server.model()
    for text in ("7", 'q "\\ é', "x" * 300):
        said = head_of(server, model, id=text).get("id")
        need(said == text, f"id {text[:20]!r} came back as {said if said is None else said[:20]!r}")


@infer.add("no-id", "an answer to a request without an id has none")
def no_identity(server: Server) -> None:
    said = head_of(server, server.model()).get("id", "")
    need(said == "", f"id {said!r}")


@infer.add("outputs", "only the outputs that are asked for are answered")
def selection(server: Server) -> str:
    model = server.model(outputs=2)
    last = model.outputs[-1]
    asked = [{"name": last.name, "parameters": {"binary_data": last.datatype in BINARY_ONLY}}]
    outputs = server.outputs(model, server.infer(model, model.asked, outputs=asked))
    need(list(outputs) == [last.name], f"outputs {list(outputs)}, {[last.name]} was asked")
    return model.name


@infer.add("rows", "rows of one request are answered as each of them alone")
def rows(server: Server) -> str:
    model = server.model(batched=True)
    if (model.most_rows or 0) < 3:
        raise SkipError(f"model {model.name} takes {model.most_rows} rows")
    one = server.outputs(model, server.infer(model, model.asked))
    three = server.outputs(model, server.infer(model, model.rows(3)))
    for name, array in three.items():
        need(array.shape[:1] == (3,), f"output {name!r} has shape {list(array.shape)} for 3 rows")
    need_equal({name: np.concatenate([array] * 3) for name, array in one.items()}, three, "three rows and one")
    return model.name


@infer.add("inputs-in-any-order", "inputs may stand in any order")
def input_order(server: Server) -> str:
    model = server.model(inputs=2)
    forth = server.outputs(model, server.infer(model, model.asked))
    back = server.outputs(model, server.infer(model, dict(reversed(model.asked.items()))))
    need_equal(forth, back, "inputs in their order and reversed")
    return model.name


@infer.add("members-in-any-order", "members of objects may stand in any order")
def member_order(server: Server) -> None:
    model = server.model()
    body, headers = request(model, model.asked, id="7")
    if headers:
        raise SkipError(f"model {model.name} takes binary data only")
    document = json.loads(body)
    turned = {key: document[key] for key in reversed(document)}
    turned["inputs"] = [{key: each[key] for key in reversed(each)} for each in document["inputs"]]
    answer = server.ask("POST", server.path(model), turned)
    need_equal(server.outputs(model, server.infer(model, model.asked)), server.outputs(model, answer), "orders")


@infer.add("parameters", "parameters that mean nothing to the server are passed over")
def parameters(server: Server) -> None:
    model = server.model()
    head_of(server, model, parameters={"mine": "text", "number": 7, "yes": True})


@infer.add("schedule-policy", "the parameters priority and timeout are taken")
def schedule(server: Server) -> None:
    server.offers("schedule_policy")
    head_of(server, server.model(), parameters={"priority": 1, "timeout": 10_000_000})


# ---- the connection ------------------------------------------------------------------------------------------------
@framing.add("keep-alive", "a connection serves one request after the other")
def keep_alive(server: Server) -> None:
    model = server.model()
    body, headers = request(model, model.asked)
    connection = server.connect()
    try:
        for _ in range(3):
            server.outputs(model, server.ask_on(connection, "POST", server.path(model), body, headers))
    finally:
        connection.close()


def raw_request(server: Server, model: Model, *fields: str) -> tuple[bytes, bytes]:
    """A request's head, without its length, and its body."""
    body, headers = request(model, model.asked)
    lines = [f"POST {server.base}{server.path(model)} HTTP/1.1", f"Host: {server.host}:{server.port}"]
    lines += [f"{name}: {value}" for name, value in {**server.headers, **headers}.items()] + list(fields)
    return "\r\n".join(lines).encode(), body


@framing.add("chunked", "a body may come in chunks")
def chunked(server: Server) -> None:
    model = server.model()
    head, body = raw_request(server, model, "Transfer-Encoding: chunked")
    half = len(body) // 2
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:half], body[half:]))
    (answer,) = server.talk(head + b"\r\n\r\n" + pieces + b"0\r\n\r\n")
    server.outputs(model, answer)


@framing.add("pipelining", "requests sent without waiting are answered in their order")
def pipelining(server: Server) -> None:
    model = server.model()
    head, body = raw_request(server, model)
    whole = head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for answer in server.talk(whole * 3, answers=3):
        server.outputs(model, answer)


@framing.add("gzip", "a request may be compressed with gzip")
def zipped(server: Server) -> None:
    compressed(server, "gzip", gzip.compress)


@framing.add("deflate", "a request may be compressed with deflate")
def deflated(server: Server) -> None:
    compressed(server, "deflate", zlib.compress)


def compressed(server: Server, encoding: str, compress: Any) -> None:
    model = server.model()
    body, headers = request(model, model.asked)
    answer = server.ask("POST", server.path(model), compress(body), {**headers, "Content-Encoding": encoding})
    server.outputs(model, answer)


# ---- binary data ---------------------------------------------------------------------------------------------------
def binary_outputs(model: Model, wanted: bool) -> list[dict[str, Any]]:
    return [{"name": tensor.name, "parameters": {"binary_data": wanted}} for tensor in model.outputs]


def in_json(server: Server) -> Model:
    """A model all of whose tensors JSON can carry."""
    server.offers(BINARY)
    for model in server.models:
        if not any(tensor.datatype in BINARY_ONLY for tensor in (*model.inputs, *model.outputs)):
            return model
    raise SkipError("no model whose tensors JSON can carry")


@binary.add("input", "inputs may be binary data, with the same answer")
def binary_input(server: Server) -> None:
    model = in_json(server)
    by_json = server.outputs(model, server.infer(model, model.asked))
    need_equal(by_json, server.outputs(model, server.infer(model, model.asked, binary=model.asked)), "JSON and binary")


@binary.add("output", "outputs may be binary data, with the same answer")
def binary_output(server: Server) -> None:
    model = in_json(server)
    by_json = server.outputs(model, server.infer(model, model.asked))
    answer = server.infer(model, model.asked, outputs=binary_outputs(model, True)).ok()
    need(HEADER.lower() in answer.headers, f"the answer lacks {HEADER}")
    need_equal(by_json, server.outputs(model, answer), "JSON and binary")


@binary.add("both", "inputs and outputs may be binary data, by the parameter binary_data_output")
def both_binary(server: Server) -> None:
    model = in_json(server)
    by_json = server.outputs(model, server.infer(model, model.asked))
    answer = server.infer(model, model.asked, binary=model.asked, parameters={"binary_data_output": True}).ok()
    need(HEADER.lower() in answer.headers, f"the answer lacks {HEADER}")
    need_equal(by_json, server.outputs(model, answer), "JSON and binary")


@binary.add("output-wins", "an output's own binary_data wins over binary_data_output")
def output_wins(server: Server) -> None:
    model = in_json(server)
    options: dict[str, Any] = {"parameters": {"binary_data_output": True}, "outputs": binary_outputs(model, False)}
    answer = server.infer(model, model.asked, **options).ok()
    need(HEADER.lower() not in answer.headers, "the outputs came as binary data")
    server.outputs(model, answer)


@binary.add("mixed", "JSON and binary inputs may be mixed")
def mixed(server: Server) -> None:
    server.offers(BINARY)
    model = server.model(inputs=2)
    always = [tensor.name for tensor in model.inputs if tensor.datatype in BINARY_ONLY]
    names = [name for name in model.asked if name not in always]
    if len(names) < 2:
        raise SkipError(f"model {model.name} takes binary data only")
    by_json = server.outputs(model, server.infer(model, model.asked))
    half = server.infer(model, model.asked, binary=[*always, *names[::2]])
    need_equal(by_json, server.outputs(model, half), "JSON and mixed inputs")


@binary.add("raw", "the bytes of the one input alone are a request of a model with one input")
def raw_binary(server: Server) -> str:
    server.offers(BINARY)
    for model in server.models:
        if len(model.inputs) == 1 and model.inputs[0].shape.count(-1) <= 1 and model.inputs[0].datatype != "BYTES":
            break
    else:
        raise SkipError("no model with one input of a known shape")
    data = packed(next(iter(model.asked.values())))
    headers = {HEADER: "0", "Content-Type": "application/octet-stream"}
    answer = server.ask("POST", server.path(model), data, headers)
    need_equal(server.outputs(model, server.infer(model, model.asked)), server.outputs(model, answer), "JSON and raw")
    return model.name


def binary_fault(server: Server, change: Any) -> str:
    """What is answered to a binary request whose body and headers were changed."""
    server.offers(BINARY)
    model = server.model()
    body, headers = request(model, model.asked, binary=model.asked)
    return server.ask("POST", server.path(model), *change(body, dict(headers))).refused()


@binary.add("too-short", "binary data that are cut short are an error")
def too_short(server: Server) -> str:
    return binary_fault(server, lambda body, headers: (body[:-1], headers))


@binary.add("too-long", "bytes behind the last tensor are an error")
def too_long(server: Server) -> str:
    return binary_fault(server, lambda body, headers: (body + b"0", headers))


@binary.add("header-beyond", "a header length beyond the body is an error")
def header_beyond(server: Server) -> str:
    return binary_fault(server, lambda body, headers: (body, {**headers, HEADER: str(len(body) + 1)}))


@binary.add("header-negative", "a negative header length is an error")
def header_negative(server: Server) -> str:
    return binary_fault(server, lambda body, headers: (body, {**headers, HEADER: "-1"}))


@binary.add("header-text", "a header length that is no number is an error")
def header_text(server: Server) -> str:
    return binary_fault(server, lambda body, headers: (body, {**headers, HEADER: "x"}))


@binary.add("no-header", "binary_data_size without the header is an error")
def no_header(server: Server) -> str:
    def change(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        return body[: int(headers[HEADER])], {}

    return binary_fault(server, change)


# ---- datatypes -----------------------------------------------------------------------------------------------------
def datatype_checks() -> list[Check]:
    """Two checks a datatype: as JSON, where it has it, and as binary data."""
    result = []
    for datatype in DTYPES:
        if datatype not in BINARY_ONLY:
            says = f"{datatype} is taken and given in JSON"
            result.append(Check(f"datatype.{datatype}.json", says, lambda server, of=datatype: by_json(server, of)))
        says = f"{datatype} is taken and given as binary data"
        result.append(Check(f"datatype.{datatype}.binary", says, lambda server, of=datatype: by_bytes(server, of)))
    return result


def by_json(server: Server, datatype: str) -> str:
    model = server.model(datatype=datatype)
    server.outputs(model, server.infer(model, model.asked))
    return model.name


def by_bytes(server: Server, datatype: str) -> str:
    server.offers(BINARY)
    model = server.model(datatype=datatype)
    first = server.infer(model, model.asked, binary=model.asked, outputs=binary_outputs(model, True))
    need_equal(server.outputs(model, server.infer(model, model.asked)), server.outputs(model, first), "encodings")
    return model.name


def answers_still(server: Server) -> None:
    """A server that has been sent nonsense goes on."""
    model = server.model()
    answer = server.infer(model, model.asked)
    if answer.status != 200:
        raise FailError(f"status {answer.status} for a request that was answered before")
