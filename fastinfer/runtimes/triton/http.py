"""Triton over HTTP: tritonclient's bodies on connections of our own."""

import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from fastinfer.errors import ConfigurationError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.triton.contract import MOST_INSTANCES, Contract
from fastinfer.runtimes.triton.exchange import (
    Failed,
    Question,
    dtype_of,
    from_bytes,
    garbage,
    microseconds,
    most_bytes,
    refused,
    taken,
    to_bytes,
)
from fastinfer.runtimes.triton.layout import Place, Placed, Placer
from fastinfer.runtimes.triton.regions import Consent, Region, Regions
from fastinfer.runtimes.triton.wire import Answer, Pool
from fastinfer.settings import TritonConfig

JSON_BYTES = 4 << 20  # of metadata
STATUS_BYTES = 64 << 20  # of all regions that a Triton has
SHARED = "/v2/systemsharedmemory"
HEADER_LENGTH = b"inference-header-content-length"


class HttpLink:
    """A pool of connections to one url, of the running event loop.

    tritonclient is used for texts only. Its connections know no bound on an answer, no time for connecting, and do not
    tell whether a batch that failed can have run; with its bodies they cost ten times what a batch costs here.
    """

    def __init__(self, address: str, config: TritonConfig, consent: Consent) -> None:
        most = config.connections or (config.in_flight or MOST_INSTANCES + 1) + 2
        self.pool = Pool(address, tls(config) if config.secure else None, most, config.connect_timeout)
        fields = {"Host": address, "Accept-Encoding": "identity", **config.headers}
        self.fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        self.regions = Regions(self, consent, config.connect_timeout)
        self.placer = Placer(self.regions)
        self.writer: Writer | None = None
        self.head = b""  # of its requests

    async def metadata(self, model: str, version: str) -> Mapping[str, Any]:
        return await self.ask(path(model, version))

    async def configuration(self, model: str, version: str) -> Mapping[str, Any]:
        return await self.ask(f"{path(model, version)}/config")

    async def ask(self, where: str) -> Mapping[str, Any]:
        """A JSON object that Triton has; raises Failed."""
        answer = await self.pool.ask([self.opening("GET", where), b"\r\n"], JSON_BYTES)
        if answer.status != 200:
            raise refused(answer.status, error_of(answer.body))
        try:
            said = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise garbage(error) from None
        if not isinstance(said, dict):
            raise garbage("JSON that is no object")
        return said

    async def ready(self, model: str, version: str) -> bool:
        try:
            message = [self.opening("GET", f"{path(model, version)}/ready"), b"\r\n"]
            return (await self.pool.ask(message, JSON_BYTES)).status == 200
        except Failed:
            return False

    async def infer(self, contract: Contract, question: Question) -> Arrays:
        if self.writer is None or self.writer.contract is not contract:
            self.writer = Writer(contract)
            self.head = self.opening("POST", f"{path(contract.model, contract.version)}/infer")
        return await self.placer.infer(contract, question, self.exchange)

    async def exchange(self, contract: Contract, question: Question, placed: Placed | None) -> Arrays:
        """One batch, whose tensors travel but for those that were placed."""
        assert self.writer is not None
        message, blobs = self.writer.write(question, placed)
        head = b"%scontent-type: application/octet-stream\r\n%s: %d\r\ncontent-length: %d\r\n" % (
            self.head, HEADER_LENGTH, len(message), len(message) + sum(map(len, blobs)))
        if question.traceparent:
            head += f"traceparent: {question.traceparent}\r\n".encode()
        if question.fields:
            head += "".join(f"{name}: {value}\r\n" for name, value in question.fields).encode()
        rows = len(question.inputs[contract.inputs[0].name]) if contract.max_batch_size else 1
        answer = await self.pool.ask([head + b"\r\n" + message, *blobs], most_bytes(contract, rows))
        if answer.status != 200:
            raise refused(answer.status, error_of(answer.body), answer.fields.get(b"retry-after"))
        try:
            reader = Reader(answer, placed)
        except Exception as error:  # what a program that is not ours may send has no end
            raise garbage(error) from None
        return taken(contract, rows, reader.described, reader.array)

    # ---- shared memory --------------------------------------------------------------------------------------------
    async def server(self) -> Mapping[str, Any]:
        return await self.ask("/v2")

    async def register(self, name: str, size: int) -> None:
        body = json.dumps({"key": f"/{name}", "offset": 0, "byte_size": size}).encode()
        await self.post(f"{SHARED}/region/{name}/register", body)

    async def unregister(self, name: str) -> None:
        await self.post(f"{SHARED}/region/{name}/unregister", b"{}")

    async def registered(self) -> set[str]:
        answer = await self.pool.ask([self.opening("GET", f"{SHARED}/status"), b"\r\n"], STATUS_BYTES)
        if answer.status != 200:
            raise refused(answer.status, error_of(answer.body))
        try:
            return {str(each["name"]) for each in json.loads(answer.body)}
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise garbage(error) from None

    async def post(self, where: str, body: bytes) -> None:
        head = self.opening("POST", where) + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        answer = await self.pool.ask([head + body], JSON_BYTES)
        if answer.status != 200:
            raise refused(answer.status, error_of(answer.body))

    def opening(self, verb: str, where: str) -> bytes:
        """A message's head but for its own fields and its end."""
        return f"{verb} {where} HTTP/1.1\r\n".encode() + self.fields

    async def close(self) -> None:
        await self.regions.close()
        self.pool.close()


class Writer:
    """Writes a contract's requests, as the binary tensor extension and the one of shared memory have them."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.inputs = [(each, f'{{"name":{json.dumps(each.name)},"datatype":"{each.datatype}","shape":')
                       for each in contract.inputs]
        self.outputs = [(each.name, f'{{"name":{json.dumps(each.name)},"parameters":') for each in contract.outputs]

    def write(self, question: Question, placed: Placed | None) -> tuple[bytes, list[bytes]]:
        """A request's JSON, and the tensors that travel behind it."""
        blobs, inputs, outputs = [], [], []
        for tensor, opening in self.inputs:
            array = question.inputs[tensor.name]
            if placed is not None and tensor.name in placed.layout.inputs:
                where = shared(placed.region, placed.layout.inputs[tensor.name])
            else:
                blobs.append(to_bytes(tensor, array))
                where = f'{{"binary_data_size":{len(blobs[-1])}}}'
            inputs.append(f'{opening}{list(array.shape)},"parameters":{where}}}')
        for name, opening in self.outputs:
            if placed is not None and name in placed.layout.outputs:
                where = shared(placed.region, placed.layout.outputs[name])
            else:
                where = '{"binary_data":true}'
            outputs.append(f"{opening}{where}}}")
        parts = [f'"inputs":[{",".join(inputs)}]', f'"outputs":[{",".join(outputs)}]']
        told = {"priority": question.priority or None, "timeout": microseconds(question)}
        if given := [f'"{name}":{value}' for name, value in told.items() if value is not None]:
            parts.append(f'"parameters":{{{",".join(given)}}}')
        if question.id:
            parts.append(f'"id":{json.dumps(question.id)}')
        return f"{{{','.join(parts)}}}".encode(), blobs


def shared(region: Region, place: Place) -> str:
    return (f'{{"shared_memory_region":"{region.name}","shared_memory_offset":{place.offset},'
            f'"shared_memory_byte_size":{place.size}}}')


class Reader:
    """The outputs of an answer with status 200.

    Raises:
        ValueError and others: it is none.
    """

    def __init__(self, answer: Answer, placed: Placed | None) -> None:
        length = answer.fields.get(HEADER_LENGTH)
        size = len(answer.body) if length is None else int(length)
        if not 0 <= size <= len(answer.body):
            raise ValueError(f"{HEADER_LENGTH.decode()}: {size} of {len(answer.body)} bytes")
        self.blob = memoryview(answer.body)[size:]
        self.placed = placed
        self.outputs: dict[str, tuple[str, list[int], int, int]] = {}  # datatype, shape, size, where it begins
        begin = 0
        for output in json.loads(answer.body[:size])["outputs"]:
            name, parameters = output["name"], output.get("parameters") or {}
            if placed is not None and name in placed.layout.outputs:
                if "data" in output or "binary_data_size" in parameters:
                    raise ValueError(f"output {name!r} is not in shared memory")
                self.outputs[name] = (output["datatype"], output["shape"], placed.layout.outputs[name].size, -1)
                continue
            count = parameters.get("binary_data_size", -1)
            if type(count) is not int or not 0 <= count <= len(self.blob) - begin:
                raise ValueError(f"output {name!r} is not binary")
            self.outputs[name] = (output["datatype"], output["shape"], count, begin)
            begin += count
        if begin != len(self.blob):
            raise ValueError(f"{len(self.blob) - begin} bytes too many")

    def described(self, name: str) -> tuple[str, list[int], int] | None:
        """Datatype, shape and bytes of an output."""
        found = self.outputs.get(name)
        return None if found is None else found[:3]

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """An output of a datatype of ours whose bytes are those of its shape."""
        datatype, shape, size, begin = self.outputs[name]
        if begin < 0:
            assert self.placed is not None
            return self.placed.region.get(self.placed.layout.outputs[name].offset, shape, dtype_of(datatype), size)
        # A copy: behind the JSON nothing is aligned, and the core reads aligned arrays.
        return from_bytes(datatype, shape, bytes(self.blob[begin : begin + size]))


def error_of(content: bytes) -> object:
    """What an answer that is an error says."""
    try:
        answer = json.loads(content)
        return answer["error"] if isinstance(answer, dict) and "error" in answer else "it does not say why"
    except (ValueError, RecursionError):
        return "it does not say why"


def path(model: str, version: str) -> str:
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{version}" if version else "")


def tls(config: TritonConfig) -> ssl.SSLContext:
    """Raises ConfigurationError where a file cannot be read."""
    try:
        context = ssl.create_default_context(cafile=None if config.ca_file is None else str(config.ca_file))
        if config.cert_file is not None and config.key_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"triton.ca_file, cert_file or key_file: {error}") from None
    return context
