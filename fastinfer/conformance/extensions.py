"""Triton's extensions that its clients call, and what they hear where a part is off."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastinfer.conformance.basics import NOBODY
from fastinfer.conformance.kit import Checks, SkipError, need
from fastinfer.conformance.models import BINARY_ONLY
from fastinfer.conformance.server import HEADER

if TYPE_CHECKING:
    from fastinfer.conformance.server import Server

extensions = Checks("extension")
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
MORE = ("cache_hit", "cache_miss")
ORDERED = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64")


def statistics_of(server: Server, path: str) -> list[dict[str, Any]]:
    stats = server.get(path).ok().document()["model_stats"]
    need(isinstance(stats, list), "model_stats is no array")
    for entry in stats:
        for key in ("name", "version"):
            need(isinstance(entry[key], str), f"{key} is {entry[key]!r}")
        for key in ("last_inference", "inference_count", "execution_count"):
            need(isinstance(entry[key], int), f"{key} is {entry[key]!r}")
        for key in DURATIONS:
            need(all(isinstance(entry["inference_stats"][key][part], int) for part in ("count", "ns")), key)
        for batch in entry["batch_stats"]:
            need(isinstance(batch["batch_size"], int), "batch_size is no integer")
            for key in ("compute_input", "compute_infer", "compute_output"):
                need(all(isinstance(batch[key][part], int) for part in ("count", "ns")), f"batch_stats: {key}")
    return list(stats)


@extensions.add("statistics", "statistics have the form of the extension, of all models, of one and of a version")
def statistics(server: Server) -> str:
    server.offers("statistics")
    model = server.model()
    path = f"/v2/models/{quote(model.name, safe='')}"
    every = statistics_of(server, "/v2/models/stats")
    need(model.name in {entry["name"] for entry in every}, f"{model.name} is not among all models")
    need({entry["name"] for entry in statistics_of(server, path + "/stats")} == {model.name}, "another model's")
    if model.versions:
        one = statistics_of(server, f"{path}/versions/{model.versions[0]}/stats")
        need([entry["version"] for entry in one] == [model.versions[0]], "another version's")
    return model.name


@extensions.add("statistics-count", "statistics count requests and rows")
def statistics_count(server: Server) -> str:
    server.offers("statistics")
    model = server.model()

    def counted() -> tuple[int, int, int]:
        entries = statistics_of(server, f"/v2/models/{quote(model.name, safe='')}/stats")
        return (
            sum(entry["inference_stats"]["success"]["count"] for entry in entries),
            sum(entry["inference_count"] for entry in entries),
            sum(entry["execution_count"] for entry in entries),
        )

    before = counted()
    rows = 2 if model.batched and (model.most_rows or 0) >= 2 else 1
    server.infer(model, model.rows(rows) if model.batched else model.asked).ok()
    after = counted()
    need(after[0] > before[0], "the request was not counted as a success")
    need(after[1] >= before[1] + rows, f"{after[1] - before[1]} rows were counted, {rows} were sent")
    need(after[2] > before[2], "the run was not counted")
    return f"{rows} rows"


@extensions.add("statistics-unknown", "the statistics of a model that there is not are an error")
def statistics_unknown(server: Server) -> str:
    server.offers("statistics")
    return server.get(f"/v2/models/{NOBODY}/stats").refused()


@extensions.add("configuration", "a model's configuration names it, its inputs and outputs")
def configuration(server: Server) -> str:
    server.offers("model_configuration")
    model = server.model()
    config = server.get(server.path(model, "config")).ok().document()
    need(config["name"] == model.name, f"name is {config['name']!r}")
    need(isinstance(config["max_batch_size"], int), f"max_batch_size is {config['max_batch_size']!r}")
    for end, tensors in (("input", model.inputs), ("output", model.outputs)):
        for entry, tensor in zip(config[end], tensors, strict=True):
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            need(entry["data_type"] == f"TYPE_{kind}", f"{entry['name']} is {entry['data_type']}")
            shape = list(tensor.shape[1:] if config["max_batch_size"] else tensor.shape)
            dims = [int(dim) for dim in (entry.get("reshape", {}).get("shape") or entry["dims"])]
            need(dims in (shape, entry["dims"]), f"{entry['name']} has dims {dims}, its metadata shape {shape}")
    return model.name


@extensions.add("index", "the repository index lists models, versions and states")
def index(server: Server) -> str:
    server.offers("model_repository")
    entries = server.ask("POST", "/v2/repository/index", {}).ok().json()
    need(isinstance(entries, list), "the index is no array")
    for entry in entries:
        need(isinstance(entry["name"], str), "an entry has no name")
        need(entry.get("state", "") in ("READY", "UNAVAILABLE", "LOADING", "UNLOADING", ""), f"state {entry['state']}")
    return f"{len(entries)} entries"


@extensions.add("index-ready", "the index lists what is ready, where that is asked")
def index_ready(server: Server) -> str:
    server.offers("model_repository")
    entries = server.ask("POST", "/v2/repository/index", {"ready": True}).ok().json()
    need(all(entry.get("state", "READY") == "READY" for entry in entries), "something that is not ready is listed")
    return f"{len(entries)} entries"


@extensions.add("index-empty-body", "the index is given to a request without a body")
def index_empty(server: Server) -> str:
    server.offers("model_repository")
    return f"{len(server.ask('POST', '/v2/repository/index', b'').ok().json())} entries"


@extensions.add("load-unknown", "to load a model that there is not is an error")
def load_unknown(server: Server) -> str:
    server.offers("model_repository")
    return server.ask("POST", f"/v2/repository/models/{NOBODY}/load", {}).refused()


@extensions.add("classification", "classification gives the highest values of an output with their places")
def classification(server: Server) -> str:
    server.offers("classification")
    for model in server.models:
        ordered = [tensor for tensor in model.outputs if tensor.datatype in ORDERED]
        if not ordered or any(tensor.datatype in BINARY_ONLY for tensor in (*model.inputs, *model.outputs)):
            continue
        name = ordered[-1].name
        plain = server.outputs(model, server.infer(model, model.asked))[name]
        rows = plain.shape[0] if model.batched else 1
        values = plain.reshape(rows, -1) if plain.size else plain.reshape(rows, 0)
        if not plain.size:
            continue
        most = min(2, values.shape[1])
        asked = [{"name": name, "parameters": {"classification": 2, "binary_data": False}}]
        (output,) = server.infer(model, model.asked, outputs=asked).ok().document()["outputs"]
        need(output["datatype"] == "BYTES", f"datatype {output['datatype']}")
        need(output["shape"] == ([rows, most] if model.batched else [most]), f"shape {output['shape']}")
        for row, texts in enumerate(zip(*[iter(output["data"])] * most, strict=True)):
            highest = sorted(values[row].tolist(), reverse=True)[:most]
            for text, value in zip(texts, highest, strict=True):
                said, place = text.split(":")[:2]
                need(math.isclose(float(said), value, rel_tol=1e-4, abs_tol=1e-5), f"{text!r} for the value {value}")
                need(math.isclose(values[row][int(place)], value, rel_tol=1e-6, abs_tol=1e-6), f"{text!r}: its place")
        return f"{model.name}: {output['data'][0]}"
    raise SkipError("no model with an output of numbers could be asked")


@extensions.add("load-metrics", "the field endpoint-load-metrics-format changes nothing else of the answer")
def load_metrics(server: Server) -> str:
    model = server.model()
    plain = server.infer(model, model.asked).ok()
    notes = []
    for form in ("text", "json"):
        answer = server.ask_with_header(model, "endpoint-load-metrics-format", form).ok()
        need(json_of(answer) == json_of(plain), "another answer")
        report = answer.headers.get("endpoint-load-metrics")
        if report is not None and form == "json":
            need(isinstance(json.loads(report.removeprefix("JSON ").strip()), dict), f"{report!r} is no JSON")
        notes.append(report or "no report")
    return "; ".join(notes)


def json_of(answer: Any) -> bytes:
    size = answer.headers.get(HEADER.lower())
    return bytes(answer.body if size is None else answer.body[: int(size)])


@extensions.add("system-memory", "the status of system shared memory is a list, and unregistering is no error")
def system_memory(server: Server) -> str:
    return memory(server, "system")


@extensions.add("cuda-memory", "the status of CUDA shared memory is a list, and unregistering is no error")
def cuda_memory(server: Server) -> str:
    return memory(server, "cuda")


def memory(server: Server, kind: str) -> str:
    status = server.get(f"/v2/{kind}sharedmemory/status").ok().json()
    need(isinstance(status, list), f"the status is {status!r}")
    server.ask("POST", f"/v2/{kind}sharedmemory/unregister", b"").ok()
    server.ask("POST", f"/v2/{kind}sharedmemory/region/none/unregister", b"").ok()
    return f"{len(status)} regions"


@extensions.add("memory-unknown", "the status of a region that there is not is an error")
def memory_unknown(server: Server) -> str:
    return server.get("/v2/systemsharedmemory/region/none/status").refused()


@extensions.add("memory-input", "an input in a region that there is not is an error")
def memory_input(server: Server) -> str:
    model = server.model()
    inputs = [
        {"name": tensor.name, "datatype": tensor.datatype, "shape": list(model.asked[tensor.name].shape),
         "parameters": {"shared_memory_region": "none", "shared_memory_byte_size": 16}}
        for tensor in model.inputs
    ]  # fmt: skip
    return server.ask("POST", server.path(model), {"inputs": inputs}).refused()


@extensions.add("trace", "the trace settings can be read")
def trace(server: Server) -> str:
    answer = server.get("/v2/trace/setting")
    if answer.status != 200:
        return answer.refused()
    return f"trace_level {answer.document()['trace_level']}"


@extensions.add("trace-same", "trace settings that are asked to stay as they are are told")
def trace_same(server: Server) -> str:
    return unchanged(server, "/v2/trace/setting", "trace_level")


@extensions.add("logging-same", "log settings that are asked to stay as they are are told")
def logging_same(server: Server) -> str:
    return unchanged(server, "/v2/logging", "log_error")


def unchanged(server: Server, path: str, name: str) -> str:
    plain = server.get(path)
    if plain.status != 200:
        return plain.refused()
    before = plain.document()
    for asked in ({}, {name: before[name]}):
        told = server.ask("POST", path, asked).ok().document()
        need(told[name] == before[name], f"{name} is {told[name]} now")
    return f"{name} {before[name]}"


@extensions.add("logging", "the log settings can be read")
def logging(server: Server) -> str:
    answer = server.get("/v2/logging")
    if answer.status != 200:
        return answer.refused()
    return f"log_error {answer.document()['log_error']}"
