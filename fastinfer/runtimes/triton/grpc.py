"""Triton over gRPC: tritonclient's asyncio client on a server's loop, its other client on threads elsewhere."""

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from fastinfer.errors import ConfigurationError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.triton.contract import Contract
from fastinfer.runtimes.triton.exchange import (
    Failed,
    Question,
    dtype_of,
    for_client,
    garbage,
    lost,
    microseconds,
    refused,
    taken,
    unreachable,
)
from fastinfer.runtimes.triton.forwarding import Fields
from fastinfer.runtimes.triton.layout import Place, Placed, Placer
from fastinfer.runtimes.triton.regions import Consent, Regions
from fastinfer.settings import TritonConfig

MOST_BYTES = 256 << 20  # of an answer
STATUSES = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "INTERNAL": 500, "UNAVAILABLE": 503, "RESOURCE_EXHAUSTED": 503}
NO_CONNECTION = "failed to connect"  # as gRPC's core words it where no byte of a call has left
BROKEN = ("socket closed", "connection reset", "broken pipe", "goaway", "endpoint clos", "transport", "stream removed",
          "recvmsg")


class GrpcLink:
    """The channel to one url.

    gRPC's asyncio client works on one loop of a process. That is the server's: on another one, `threads`, calls are
    made on threads.
    """

    def __init__(self, address: str, config: TritonConfig, consent: Consent, *, threads: bool) -> None:
        module = tritonclient.grpc if threads else tritonclient.grpc.aio
        self.threads = threads
        self.timeout = config.connect_timeout
        self.headers = {name.lower(): value for name, value in config.headers.items()} or None
        self.regions = Regions(self, consent, config.connect_timeout)
        self.placer = Placer(self.regions)
        milliseconds = max(1, int(config.connect_timeout * 1000))
        files = {name: None if path is None else str(path) for name, path in (
            ("root_certificates", config.ca_file), ("private_key", config.key_file),
            ("certificate_chain", config.cert_file))}
        try:
            self.client = module.InferenceServerClient(address, ssl=config.secure, **files, channel_args=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", MOST_BYTES),
                ("grpc.min_reconnect_backoff_ms", milliseconds),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ])
        except OSError as error:
            raise ConfigurationError(f"triton.ca_file, cert_file or key_file: {error}") from None

    async def call(self, method: str, *args: Any, within: float, **more: Any) -> Any:
        """What a method of tritonclient's gives in so many seconds; raises Failed, or TimeoutError."""
        seconds = None if math.isinf(within) else max(within, 0.001)
        function = getattr(self.client, method)
        try:
            if self.threads:
                return await asyncio.to_thread(function, *args, client_timeout=seconds, **more)
            return await function(*args, client_timeout=seconds, **more)
        except InferenceServerException as error:
            raise failed(error) from None

    async def metadata(self, model: str, version: str) -> Mapping[str, Any]:
        return dict(await self.call("get_model_metadata", model, version, within=self.timeout, headers=self.headers,
                                    as_json=True))

    async def configuration(self, model: str, version: str) -> Mapping[str, Any]:
        answer = await self.call("get_model_config", model, version, within=self.timeout, headers=self.headers,
                                 as_json=True)
        return dict(answer.get("config", {}))

    async def ready(self, model: str, version: str) -> bool:
        try:
            return bool(await self.call("is_model_ready", model, version, within=self.timeout, headers=self.headers))
        except (Failed, TimeoutError):
            return False

    async def infer(self, contract: Contract, question: Question) -> Arrays:
        return await self.placer.infer(contract, question, self.exchange)

    async def exchange(self, contract: Contract, question: Question, placed: Placed | None) -> Arrays:
        """One batch, whose tensors travel but for those that were placed."""
        inputs, outputs = [], []
        for tensor in contract.inputs:
            array = question.inputs[tensor.name]
            given = tritonclient.grpc.InferInput(tensor.name, list(array.shape), tensor.datatype)
            if placed is not None and (place := placed.layout.inputs.get(tensor.name)):
                given.set_shared_memory(placed.region.name, place.size, place.offset)
            else:
                given.set_data_from_numpy(for_client(tensor, array))
            inputs.append(given)
        for tensor in contract.outputs:
            wanted = tritonclient.grpc.InferRequestedOutput(tensor.name)
            if placed is not None and (place := placed.layout.outputs.get(tensor.name)):
                wanted.set_shared_memory(placed.region.name, place.size, place.offset)
            outputs.append(wanted)
        rows = len(question.inputs[contract.inputs[0].name]) if contract.max_batch_size else 1
        headers = self.headers
        if question.traceparent:
            headers = {**(headers or {}), "traceparent": question.traceparent}
        if question.fields:
            headers = {**(headers or {}), **joined(question.fields)}
        result = await self.call(
            "infer", contract.model, inputs, contract.version, outputs=outputs,
            request_id=question.id, priority=question.priority, timeout=microseconds(question), headers=headers,
            within=question.deadline - time.monotonic(),
        )
        reader = Reader(result, placed)
        return taken(contract, rows, reader.described, reader.array)

    # ---- shared memory --------------------------------------------------------------------------------------------
    async def server(self) -> Mapping[str, Any]:
        return dict(await self.call("get_server_metadata", within=self.timeout, headers=self.headers, as_json=True))

    async def register(self, name: str, size: int) -> None:
        await self.call("register_system_shared_memory", name, f"/{name}", size, within=self.timeout,
                        headers=self.headers)

    async def unregister(self, name: str) -> None:
        await self.call("unregister_system_shared_memory", name, within=self.timeout, headers=self.headers)

    async def registered(self) -> set[str]:
        answer = await self.call("get_system_shared_memory_status", within=self.timeout, headers=self.headers)
        return set(answer.regions)

    async def close(self) -> None:
        await self.regions.close()
        if self.threads:
            await asyncio.to_thread(self.client.close)
        else:
            await self.client.close()


def joined(fields: Fields) -> dict[str, str]:
    """Fields as tritonclient takes them, those of one name in one."""
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(value)
    return {name: ", ".join(each) for name, each in values.items()}


class Reader:
    """The outputs of an answer."""

    def __init__(self, result: Any, placed: Placed | None) -> None:
        self.result = result
        self.answer = result.get_response()
        self.placed = placed

    def described(self, name: str) -> tuple[str, list[int], int] | None:
        """Datatype, shape and bytes of an output."""
        for i, output in enumerate(self.answer.outputs):
            if output.name == name:
                size = len(self.answer.raw_output_contents[i]) if i < len(self.answer.raw_output_contents) else 0
                if place := self.place(name):
                    if size:
                        raise ValueError(f"output {name!r} is not in shared memory")
                    size = place.size
                return output.datatype, list(output.shape), size
        return None

    def place(self, name: str) -> Place | None:
        return None if self.placed is None else self.placed.layout.outputs.get(name)

    def array(self, name: str) -> np.ndarray[Any, Any] | None:
        """An output of a datatype of ours whose bytes are those of its shape."""
        place = self.place(name)
        if self.placed is None or place is None:
            found: np.ndarray[Any, Any] | None = self.result.as_numpy(name)
            return found
        output = next(each for each in self.answer.outputs if each.name == name)
        return self.placed.region.get(place.offset, output.shape, dtype_of(output.datatype), place.size)


def failed(error: InferenceServerException) -> Failed:
    """What a status of gRPC means here."""
    status = str(error.status()).removeprefix("StatusCode.")
    said = error.message() or ""
    if status == "UNAVAILABLE" and NO_CONNECTION in said.lower():
        return unreachable("no connection came about")
    if status == "DEADLINE_EXCEEDED":
        raise TimeoutError
    if status == "CANCELLED" or (status == "UNAVAILABLE" and any(word in said.lower() for word in BROKEN)):
        return lost("the connection was closed")
    if status in STATUSES:
        return refused(STATUSES[status], said)
    return garbage(f"{status}: {said}")
