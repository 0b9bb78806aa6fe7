"""The protocol over gRPC."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from fastinfer.conformance.basics import NOBODY
from fastinfer.conformance.kit import Checks, FailError, SkipError, need
from fastinfer.conformance.models import BINARY_ONLY, need_equal, packed, unpacked
from fastinfer.protocols.grpc_messages import message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastinfer.conformance.models import Arrays, Model
    from fastinfer.conformance.server import Server

checks = Checks("grpc")
SERVICE = "/inference.GRPCInferenceService/"
CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@dataclass
class Target:
    """A server's gRPC address, and the same server over HTTP, which says what models there are."""

    address: str
    http: Server
    metadata: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.address)

    def call(self, method: str, **fields: Any) -> Any:
        """The answer to a call.

        Raises:
            FailError: it is an error.
        """
        try:
            return self.answer(method, message(f"{method}Request")(**fields))
        except grpc.RpcError as error:
            raise FailError(f"{method}: {said(error)}") from error

    def answer(self, method: str, request: Any) -> Any:
        reads = message(f"{method}Response").FromString
        path = method if method.startswith("/") else SERVICE + method
        return self.channel.unary_unary(path, response_deserializer=reads)(
            request.SerializeToString(), timeout=self.http.timeout, metadata=self.metadata
        )

    def refused(self, method: str, request: Any, *statuses: str) -> str:
        """What a call is refused with; fails where it is not, or with another status."""
        try:
            self.answer(method, request)
        except grpc.RpcError as error:
            need(error.code().name in statuses, said(error))
            return said(error)
        raise FailError(f"{method} succeeded, an error is expected")

    def infer(self, model: Model, request: Any) -> Arrays:
        try:
            return arrays_of(model, self.answer("ModelInfer", request))
        except grpc.RpcError as error:
            raise FailError(said(error)) from error


def said(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"


def infer_request(model: Model, arrays: Arrays, *, typed: bool = False, **fields: Any) -> Any:
    """A ModelInferRequest, with its values raw or as typed contents."""
    request: Any = message("ModelInferRequest")(model_name=model.name, **fields)
    for name, array in arrays.items():
        datatype = model.takes(name).datatype
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            values = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
            getattr(tensor.contents, CONTENTS[datatype]).extend(values)
        else:
            request.raw_input_contents.append(packed(array))
    return request


def arrays_of(model: Model, answer: Any) -> Arrays:
    """The outputs of a ModelInferResponse, its form checked."""
    need(answer.model_name == model.name, f"model_name is {answer.model_name!r}")
    raw = list(answer.raw_output_contents)
    need(not raw or len(raw) == len(answer.outputs), f"{len(raw)} raw outputs for {len(answer.outputs)} outputs")
    result: Arrays = {}
    for k, output in enumerate(answer.outputs):
        shape = list(output.shape)
        if raw:
            result[output.name] = unpacked(raw[k], output.datatype, shape)
            continue
        values = list(getattr(output.contents, CONTENTS[output.datatype]))
        need(len(values) == math.prod(shape), f"{len(values)} values for shape {shape}")
        text = values if output.datatype == "BYTES" else None
        data = packed_typed(values, output.datatype) if text is None else packed_texts(text)
        result[output.name] = unpacked(data, output.datatype, shape)
    return result


def packed_texts(texts: Iterable[bytes]) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def packed_typed(values: list[Any], datatype: str) -> bytes:
    import numpy as np

    from fastinfer.conformance.models import DTYPES

    return np.array(values).astype(DTYPES[datatype]).tobytes()


# ---- health and metadata -------------------------------------------------------------------------------------------
@checks.add("live", "ServerLive says that the server is live")
def live(target: Target) -> None:
    need(target.call("ServerLive").live, "not live")


@checks.add("ready", "ServerReady says that the server is ready")
def ready(target: Target) -> None:
    need(target.call("ServerReady").ready, "not ready")


@checks.add("health", "grpc.health.v1 says that the server is serving")
def health(target: Target) -> None:
    reads = message("HealthCheckResponse").FromString
    check = target.channel.unary_unary("/grpc.health.v1.Health/Check", response_deserializer=reads)
    try:
        status = check(b"", timeout=target.http.timeout).status
    except grpc.RpcError as error:
        raise FailError(said(error)) from error
    need(status == 1, f"status {status}")


@checks.add("model-ready", "ModelReady says so of a model, and of a version")
def model_ready(target: Target) -> str:
    model = target.http.model()
    for version in ("", *model.versions[:1]):
        need(target.call("ModelReady", name=model.name, version=version).ready, f"version {version!r} is not ready")
    return model.name


@checks.add("unknown-ready", "a model that there is not is not ready, or not found")
def unknown_ready(target: Target) -> str:
    try:
        answer = target.answer("ModelReady", message("ModelReadyRequest")(name=NOBODY))
    except grpc.RpcError as error:
        need(error.code().name == "NOT_FOUND", said(error))
        return said(error)
    need(not answer.ready, "it is ready")
    return "not ready"


@checks.add("server-metadata", "ServerMetadata says what GET /v2 says")
def server_metadata(target: Target) -> str:
    answer, document = target.call("ServerMetadata"), target.http.metadata
    need(answer.name == document["name"], f"name {answer.name!r}")
    need(set(answer.extensions) == set(document["extensions"]), f"extensions {list(answer.extensions)}")
    return f"{answer.name} {answer.version}"


@checks.add("model-metadata", "ModelMetadata says what GET /v2/models/M says")
def model_metadata(target: Target) -> str:
    for model in target.http.models:
        answer = target.call("ModelMetadata", name=model.name)
        for end, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
            over_grpc = [(each.name, each.datatype, tuple(each.shape)) for each in getattr(answer, end)]
            need(over_grpc == [tuple(tensor) for tensor in tensors], f"{model.name}: {end} {over_grpc}")
    return f"{len(target.http.models)} models"


@checks.add("unknown-metadata", "the metadata of a model that there is not are NOT_FOUND")
def unknown_metadata(target: Target) -> str:
    return target.refused("ModelMetadata", message("ModelMetadataRequest")(name=NOBODY), "NOT_FOUND")


# ---- inference -----------------------------------------------------------------------------------------------------
@checks.add("raw", "raw_input_contents are answered as HTTP answers them, by every model")
def raw(target: Target) -> str:
    for model in target.http.models:
        by_http = target.http.outputs(model, target.http.infer(model, model.asked))
        need_equal(by_http, target.infer(model, infer_request(model, model.asked)), f"{model.name} by HTTP and gRPC")
    return f"{len(target.http.models)} models"


@checks.add("typed", "typed contents are answered as raw ones, by every model")
def typed(target: Target) -> str:
    asked = 0
    for model in target.http.models:
        if any(tensor.datatype in BINARY_ONLY for tensor in model.inputs):
            continue
        plain = target.infer(model, infer_request(model, model.asked))
        need_equal(plain, target.infer(model, infer_request(model, model.asked, typed=True)), f"{model.name}: contents")
        asked += 1
    if not asked:
        raise SkipError("no model whose inputs have typed contents")
    return f"{asked} models"


@checks.add("id", "the request's id comes back in the answer")
def identity(target: Target) -> None:
    model = target.http.model()
    for text in ("7", "é\n", ""):
        answer = target.answer("ModelInfer", infer_request(model, model.asked, id=text))
        need(answer.id == text, f"id {text!r} came back as {answer.id!r}")


@checks.add("version", "a version may be named, and the answer names it")
def version(target: Target) -> str:
    model = target.http.model()
    if not model.versions:
        raise SkipError("the metadata name no versions")
    answer = target.answer("ModelInfer", infer_request(model, model.asked, model_version=model.versions[0]))
    need(answer.model_version == model.versions[0], f"version {answer.model_version!r} answers")
    return str(answer.model_version)


@checks.add("outputs", "only the outputs that are asked for are answered")
def outputs(target: Target) -> str:
    model = target.http.model(outputs=2)
    request = infer_request(model, model.asked)
    request.outputs.add(name=model.outputs[-1].name)
    answered = list(target.infer(model, request))
    need(answered == [model.outputs[-1].name], f"outputs {answered}")
    return model.name


@checks.add("rows", "rows of one request are answered together")
def rows(target: Target) -> str:
    model = target.http.model(batched=True)
    if (model.most_rows or 0) < 3:
        raise SkipError(f"model {model.name} takes {model.most_rows} rows")
    for name, array in target.infer(model, infer_request(model, model.rows(3))).items():
        need(array.shape[:1] == (3,), f"output {name!r} has shape {list(array.shape)} for 3 rows")
    return model.name


@checks.add("parameters", "priority and timeout are taken, and parameters that mean nothing passed over")
def parameters(target: Target) -> None:
    model = target.http.model()
    request = infer_request(model, model.asked)
    request.parameters["timeout"].int64_param = 10_000_000
    request.parameters["priority"].uint64_param = 1
    request.parameters["mine"].string_param = "text"
    target.infer(model, request)


@checks.add("stream", "a stream answers request after request")
def stream(target: Target) -> str:
    model = target.http.model()
    request = infer_request(model, model.asked)
    requests = [infer_request(model, model.asked, id=str(k)).SerializeToString() for k in range(5)]
    answers = streamed(target, requests)
    plain = target.infer(model, request)
    need([answer.infer_response.id for answer in answers] == list("01234"), "ids in another order")
    for answer in answers:
        need(not answer.error_message, answer.error_message)
        need_equal(plain, arrays_of(model, answer.infer_response), "stream and single call")
    return f"{len(answers)} answers"


@checks.add("stream-error", "an error within a stream is a message, and the stream goes on")
def stream_error(target: Target) -> str:
    model = target.http.model()
    good, bad = infer_request(model, model.asked), infer_request(model, model.asked)
    bad.inputs[0].name = "no-such-input"
    answers = streamed(target, [each.SerializeToString() for each in (good, bad, good)])
    need([bool(answer.error_message) for answer in answers] == [False, True, False], "another answer is the error")
    return str(answers[1].error_message)


def streamed(target: Target, requests: list[bytes]) -> list[Any]:
    reads = message("ModelStreamInferResponse").FromString
    call = target.channel.stream_stream(SERVICE + "ModelStreamInfer", response_deserializer=reads)
    try:
        answers = list(call(iter(requests), timeout=target.http.timeout))
    except grpc.RpcError as error:
        raise FailError(said(error)) from error
    need(len(answers) == len(requests), f"{len(answers)} answers to {len(requests)} requests")
    return answers


# ---- faults --------------------------------------------------------------------------------------------------------
def spoilt(target: Target, change: Callable[[Any], Any], *statuses: str, typed: bool = False) -> str:
    """What a good request is refused with after a change."""
    model = target.http.model()
    if typed and any(tensor.datatype in BINARY_ONLY for tensor in model.inputs):
        raise SkipError(f"model {model.name} takes raw contents only")
    request = infer_request(model, model.asked, typed=typed)
    change(request)
    note = target.refused("ModelInfer", request, *(statuses or ("INVALID_ARGUMENT",)))
    target.infer(model, infer_request(model, model.asked))
    return note


@checks.add("unknown-model", "inference by a model that there is not is NOT_FOUND")
def unknown_model(target: Target) -> str:
    return spoilt(target, lambda request: setattr(request, "model_name", NOBODY), "NOT_FOUND")


@checks.add("unknown-version", "inference by a version that there is not is NOT_FOUND")
def unknown_version(target: Target) -> str:
    return spoilt(target, lambda request: setattr(request, "model_version", "987654"), "NOT_FOUND")


@checks.add("no-inputs", "a request without inputs is INVALID_ARGUMENT")
def no_inputs(target: Target) -> str:
    def change(request: Any) -> None:
        del request.inputs[:]
        del request.raw_input_contents[:]

    return spoilt(target, change)


@checks.add("unknown-input", "an input that the model does not have is INVALID_ARGUMENT")
def unknown_input(target: Target) -> str:
    return spoilt(target, lambda request: setattr(request.inputs[0], "name", "no-such-input"))


@checks.add("other-datatype", "an input of another datatype than the model's is INVALID_ARGUMENT")
def other_datatype(target: Target) -> str:
    def change(request: Any) -> None:
        request.inputs[0].datatype = "FP64" if request.inputs[0].datatype != "FP64" else "INT32"

    return spoilt(target, change)


@checks.add("rank", "a shape of another rank than the model's is INVALID_ARGUMENT")
def rank(target: Target) -> str:
    return spoilt(target, lambda request: request.inputs[0].shape.extend([1, 1]))


@checks.add("negative-dimension", "a negative dimension is INVALID_ARGUMENT")
def negative(target: Target) -> str:
    return spoilt(target, lambda request: request.inputs[0].shape.__setitem__(0, -2))


@checks.add("raw-too-short", "raw contents that are cut short are INVALID_ARGUMENT")
def raw_short(target: Target) -> str:
    def change(request: Any) -> None:
        request.raw_input_contents[0] = request.raw_input_contents[0][:-1]

    return spoilt(target, change)


@checks.add("raw-missing", "fewer raw contents than inputs are INVALID_ARGUMENT")
def raw_missing(target: Target) -> str:
    return spoilt(target, lambda request: request.raw_input_contents.pop())


@checks.add("raw-and-typed", "raw and typed contents in one request are INVALID_ARGUMENT")
def raw_and_typed(target: Target) -> str:
    return spoilt(target, lambda request: request.inputs[0].contents.int_contents.append(1))


@checks.add("typed-few", "fewer typed values than the shape takes are INVALID_ARGUMENT")
def typed_few(target: Target) -> str:
    def change(request: Any) -> None:
        tensor = request.inputs[0]
        getattr(tensor.contents, CONTENTS[tensor.datatype]).pop()

    return spoilt(target, change, typed=True)


@checks.add("typed-other", "typed contents of another datatype are INVALID_ARGUMENT")
def typed_other(target: Target) -> str:
    def change(request: Any) -> None:
        tensor = request.inputs[0]
        other = "fp64_contents" if tensor.datatype != "FP64" else "int_contents"
        count = len(getattr(tensor.contents, CONTENTS[tensor.datatype]))
        tensor.ClearField("contents")
        getattr(tensor.contents, other).extend([1] * count)

    return spoilt(target, change, typed=True)


@checks.add("unknown-output", "an output that the model does not have is INVALID_ARGUMENT")
def unknown_output(target: Target) -> str:
    return spoilt(target, lambda request: request.outputs.add(name="no-such-output"))


@checks.add("timeout-text", "a timeout that is a text is INVALID_ARGUMENT")
def timeout_text(target: Target) -> str:
    return spoilt(target, lambda request: setattr(request.parameters["timeout"], "string_param", "soon"))


@checks.add("not-a-message", "bytes that are no message are an error, and the server goes on")
def not_a_message(target: Target) -> str:
    model = target.http.model()
    try:
        target.channel.unary_unary(SERVICE + "ModelInfer")(b"\xff\xff\xff", timeout=target.http.timeout)
    except grpc.RpcError as error:
        target.infer(model, infer_request(model, model.asked))
        return said(error)
    raise FailError("it succeeded")


@checks.add("unknown-method", "a method that there is not is UNIMPLEMENTED")
def unknown_method(target: Target) -> str:
    try:
        target.channel.unary_unary(SERVICE + "NoSuchMethod")(b"", timeout=target.http.timeout)
    except grpc.RpcError as error:
        need(error.code().name == "UNIMPLEMENTED", said(error))
        return said(error)
    raise FailError("it succeeded")


# ---- extensions ----------------------------------------------------------------------------------------------------
@checks.add("statistics", "ModelStatistics of all models, of one and of a version")
def statistics(target: Target) -> str:
    target.http.offers("statistics")
    model = target.http.model()
    need(len(target.call("ModelStatistics").model_stats) > 0, "no model has any")
    entries = target.call("ModelStatistics", name=model.name, version="").model_stats
    need({entry.name for entry in entries} == {model.name}, "another model's")
    need(sum(entry.inference_stats.success.count for entry in entries) > 0, "no request was counted")
    return model.name


@checks.add("configuration", "ModelConfig has the model's inputs and outputs")
def configuration(target: Target) -> str:
    target.http.offers("model_configuration")
    model = target.http.model()
    config = target.call("ModelConfig", name=model.name).config
    need(config.name == model.name, f"name {config.name!r}")
    need([each.name for each in config.input] == [tensor.name for tensor in model.inputs], "other inputs")
    need([each.name for each in config.output] == [tensor.name for tensor in model.outputs], "other outputs")
    return model.name


@checks.add("index", "RepositoryIndex lists models, versions and states; with ready, what is ready")
def index(target: Target) -> str:
    target.http.offers("model_repository")
    entries = target.call("RepositoryIndex").models
    need(target.http.model().name in {entry.name for entry in entries}, "a model that answers is not listed")
    only = target.call("RepositoryIndex", ready=True).models
    need(all(entry.state == "READY" for entry in only), "something that is not ready is listed")
    return f"{len(entries)} entries"


@checks.add("load-unknown", "to load a model that there is not is an error")
def load_unknown(target: Target) -> str:
    target.http.offers("model_repository")
    request = message("RepositoryModelLoadRequest")(model_name=NOBODY)
    return target.refused("RepositoryModelLoad", request, "INTERNAL", "NOT_FOUND", "UNAVAILABLE", "INVALID_ARGUMENT")


@checks.add("classification", "classification gives texts of value and place, as HTTP does")
def classification(target: Target) -> str:
    target.http.offers("classification")
    for model in target.http.models:
        if model.outputs[-1].datatype not in ("FP32", "FP64"):
            continue
        request = infer_request(model, model.asked)
        request.outputs.add(name=model.outputs[-1].name).parameters["classification"].int64_param = 2
        (texts,) = arrays_of(model, target.answer("ModelInfer", request)).values()
        if not texts.size:
            continue
        need(b":" in texts.ravel()[0], f"{texts.ravel()[0]!r}")
        return f"{model.name}: {texts.ravel()[0].decode()}"
    raise SkipError("no model whose last output is a real number could be asked")


@checks.add("classification-none", "classification into no or fewer classes is INVALID_ARGUMENT")
def classification_none(target: Target) -> str:
    target.http.offers("classification")
    note = ""
    name = target.http.model().outputs[0].name
    for count in (0, -1):

        def change(request: Any, count: int = count) -> None:
            request.outputs.add(name=name).parameters["classification"].int64_param = count

        note = spoilt(target, change)
    return note


@checks.add("memory", "the status of shared memory is given, and unregistering is no error")
def memory(target: Target) -> None:
    for kind in ("System", "Cuda"):
        target.call(f"{kind}SharedMemoryStatus")
        target.call(f"{kind}SharedMemoryUnregister")


@checks.add("settings", "the trace and log settings can be read, or are said not to be there")
def settings(target: Target) -> str:
    notes = []
    for method in ("TraceSetting", "LogSettings"):
        try:
            notes.append(f"{method}: {len(target.answer(method, message(f'{method}Request')()).settings)}")
        except grpc.RpcError as error:
            need(error.code().name in ("UNIMPLEMENTED", "UNAVAILABLE"), said(error))
            notes.append(said(error))
    return "; ".join(notes)
