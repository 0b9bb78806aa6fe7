"""Triton over gRPC: tritonclient's messages, on gRPC's asyncio channel on a server's loop, on threads elsewhere."""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from fastinfer.errors import ConfigurationError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.triton.contract import Contract
from fastinfer.runtimes.triton.exchange import (
    Failed,
    Question,
    dtype_of,
    from_bytes,
    garbage,
    lost,
    microseconds,
    refused,
    taken,
    to_bytes,
    unreachable,
)
from fastinfer.runtimes.triton.forwarding import Fields
from fastinfer.runtimes.triton.layout import Place, Placed, Placer
from fastinfer.runtimes.triton.regions import Consent, Region, Regions
from fastinfer.settings import TritonConfig

MOST_BYTES = 256 << 20  # of an answer
STATUSES = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "INTERNAL": 500, "UNAVAILABLE": 503, "RESOURCE_EXHAUSTED": 503}
NO_CONNECTION = "failed to connect"  # as gRPC's core words it where no byte of a call has left
BROKEN = ("socket closed", "connection reset", "broken pipe", "goaway", "endpoint clos", "transport", "stream removed",
          "recvmsg")


class GrpcLink:
    """The channel to one url.

    gRPC's asyncio channels work on one loop of a process. That is the server's: on another one, `threads`, calls are
    made on threads. Of tritonclient only the messages are used: its clients make several objects for each tensor.
    """

    def __init__(self, address: str, config: TritonConfig, consent: Consent, *, threads: bool) -> None:
        self.threads = threads
        self.timeout = config.connect_timeout
        self.headers = tuple((name.lower(), value) for name, value in config.headers.items())
        self.regions = Regions(self, consent, config.connect_timeout)
        self.placer = Placer(self.regions)
        module = grpc if threads else grpc.aio
        milliseconds = max(1, int(config.connect_timeout * 1000))
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", MOST_BYTES),
            ("grpc.min_reconnect_backoff_ms", milliseconds),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if config.secure:
            credentials = map(content, (config.ca_file, config.key_file, config.cert_file))
            self.channel = module.secure_channel(address, grpc.ssl_channel_credentials(*credentials), options=options)
        else:
            self.channel = module.insecure_channel(address, options=options)
        self.stub = GRPCInferenceServiceStub(self.channel)

    async def call(self, method: str, message: Any, *, within: float, more: Fields = ()) -> Any:
        """What Triton answers in so many seconds, with more metadata; raises Failed, or TimeoutError."""
        function = getattr(self.stub, method)
        told = {"timeout": None if math.isinf(within) else max(within, 0.001), "metadata": (*self.headers, *more)}
        try:
            if self.threads:
                return await asyncio.to_thread(function, message, **told)
            return await function(message, **told)
        except grpc.RpcError as error:
            raise failed(error.code(), error.details() or "") from None

    async def metadata(self, model: str, version: str) -> Mapping[str, Any]:
        return described(await self.call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version),
                                         within=self.timeout))

    async def configuration(self, model: str, version: str) -> Mapping[str, Any]:
        answer = await self.call("ModelConfig", pb.ModelConfigRequest(name=model, version=version), within=self.timeout)
        return described(answer.config)

    async def ready(self, model: str, version: str) -> bool:
        try:
            return bool((await self.call("ModelReady", pb.ModelReadyRequest(name=model, version=version),
                                         within=self.timeout)).ready)
        except (Failed, TimeoutError):
            return False

    async def infer(self, contract: Contract, question: Question) -> Arrays:
        return await self.placer.infer(contract, question, self.exchange)

    async def exchange(self, contract: Contract, question: Question, placed: Placed | None) -> Arrays:
        """One batch, whose tensors travel but for those that were placed."""
        message = pb.ModelInferRequest(model_name=contract.model, model_version=contract.version, id=question.id)
        for tensor in contract.inputs:
            array = question.inputs[tensor.name]
            given = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
            if placed is not None and (place := placed.layout.inputs.get(tensor.name)):
                share(given.parameters, placed.region, place)
            else:
                message.raw_input_contents.append(to_bytes(tensor, array))
        for tensor in contract.outputs:
            wanted = message.outputs.add(name=tensor.name)
            if placed is not None and (place := placed.layout.outputs.get(tensor.name)):
                share(wanted.parameters, placed.region, place)
        if question.priority:
            message.parameters["priority"].uint64_param = question.priority
        if (left := microseconds(question)) is not None:
            message.parameters["timeout"].int64_param = left
        more = joined(question.fields)
        if question.traceparent:
            more = (*more, ("traceparent", question.traceparent))
        rows = len(question.inputs[contract.inputs[0].name]) if contract.max_batch_size else 1
        answer = await self.call("ModelInfer", message, within=question.deadline - time.monotonic(), more=more)
        reader = Reader(answer, placed)
        return taken(contract, rows, reader.described, reader.array)

    # ---- shared memory --------------------------------------------------------------------------------------------
    async def server(self) -> Mapping[str, Any]:
        return described(await self.call("ServerMetadata", pb.ServerMetadataRequest(), within=self.timeout))

    async def register(self, name: str, size: int) -> None:
        message = pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
        await self.call("SystemSharedMemoryRegister", message, within=self.timeout)

    async def unregister(self, name: str) -> None:
        message = pb.SystemSharedMemoryUnregisterRequest(name=name)
        await self.call("SystemSharedMemoryUnregister", message, within=self.timeout)

    async def registered(self) -> set[str]:
        answer = await self.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), within=self.timeout)
        return set(answer.regions)

    async def close(self) -> None:
        await self.regions.close()
        if self.threads:
            await asyncio.to_thread(self.channel.close)
        else:
            await self.channel.close()


def content(path: Path | None) -> bytes | None:
    """Of a file for TLS, where one is named."""
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"triton.ca_file, cert_file or key_file: {error}") from None


def described(message: Any) -> Mapping[str, Any]:
    """A message as the protocol's JSON; its 64-bit numbers are texts."""
    return dict(MessageToDict(message, preserving_proto_field_name=True))


def share(parameters: Any, region: Region, place: Place) -> None:
    """Say in a tensor's parameters where it lies."""
    parameters["shared_memory_region"].string_param = region.name
    parameters["shared_memory_byte_size"].int64_param = place.size
    if place.offset:
        parameters["shared_memory_offset"].int64_param = place.offset


def joined(fields: Fields) -> Fields:
    """Fields as metadata, those of one name in one."""
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(value)
    return tuple((name, ", ".join(each)) for name, each in values.items())


class Reader:
    """The outputs of an answer."""

    def __init__(self, answer: Any, placed: Placed | None) -> None:
        self.placed = placed
        blobs: Iterable[bytes] = answer.raw_output_contents
        self.blobs = list(blobs)
        self.outputs = {output.name: (i, output) for i, output in enumerate(answer.outputs)}

    def described(self, name: str) -> tuple[str, list[int], int] | None:
        """Datatype, shape and bytes of an output."""
        if name not in self.outputs:
            return None
        i, output = self.outputs[name]
        size = len(self.blobs[i]) if i < len(self.blobs) else 0
        if place := self.place(name):
            if size:
                raise ValueError(f"output {name!r} is not in shared memory")
            size = place.size
        return output.datatype, list(output.shape), size

    def place(self, name: str) -> Place | None:
        return None if self.placed is None else self.placed.layout.outputs.get(name)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """An output of a datatype of ours whose bytes are those of its shape."""
        i, output = self.outputs[name]
        place = self.place(name)
        if self.placed is None or place is None:
            return from_bytes(output.datatype, list(output.shape), self.blobs[i] if i < len(self.blobs) else b"")
        return self.placed.region.get(place.offset, output.shape, dtype_of(output.datatype), place.size)


def failed(code: grpc.StatusCode, said: str) -> Failed:
    """What a status of gRPC means here; raises TimeoutError where it is that."""
    status = code.name
    if status == "UNAVAILABLE" and NO_CONNECTION in said.lower():
        return unreachable("no connection came about")
    if status == "DEADLINE_EXCEEDED":
        raise TimeoutError
    if status == "CANCELLED" or (status == "UNAVAILABLE" and any(word in said.lower() for word in BROKEN)):
        return lost("the connection was closed")
    if status in STATUSES:
        return refused(STATUSES[status], said)
    return garbage(f"{status}: {said}")
