"""Triton over HTTP: tritonclient's bodies on connections of our own."""

import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from fastinfer.errors import ConfigurationError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.triton.contract import MOST_INSTANCES, Contract
from fastinfer.runtimes.triton.exchange import (
    Failed,
    Question,
    for_client,
    garbage,
    microseconds,
    most_bytes,
    refused,
    taken,
)
from fastinfer.runtimes.triton.wire import Pool
from fastinfer.settings import TritonConfig

JSON_BYTES = 4 << 20  # of metadata and of an error
HEADER_LENGTH = b"inference-header-content-length"


class HttpLink:
    """A pool of connections to one url, of the running event loop.

    tritonclient makes the bodies and reads them. Its connections are not used: they know no bound on an answer, no time
    for connecting, and do not tell whether a batch that failed can have run; they cost five times the rest of a batch.
    """

    def __init__(self, address: str, config: TritonConfig) -> None:
        most = config.connections or (config.in_flight or MOST_INSTANCES + 1) + 2
        self.pool = Pool(address, tls(config) if config.secure else None, most, config.connect_timeout)
        fields = {"Host": address, "Accept-Encoding": "identity", **config.headers}
        self.fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        self.asked: tuple[str, str] = ("", "")  # of the infer head that follows
        self.head = b""

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
        if self.asked != (contract.model, contract.version):
            self.asked = (contract.model, contract.version)
            self.head = self.opening("POST", f"{path(*self.asked)}/infer")
        body, json_size = written(contract, question)
        head = b"%scontent-type: application/octet-stream\r\n%s: %d\r\ncontent-length: %d\r\n" % (
            self.head, HEADER_LENGTH, json_size, len(body))
        if question.traceparent:
            head += f"traceparent: {question.traceparent}\r\n".encode()
        rows = len(question.inputs[contract.inputs[0].name]) if contract.max_batch_size else 1
        answer = await self.pool.ask([head + b"\r\n", body], max(most_bytes(contract, rows), JSON_BYTES))
        if answer.status != 200:
            raise refused(answer.status, error_of(answer.body))
        try:
            length = answer.fields.get(HEADER_LENGTH)
            result = InferenceServerClient.parse_response_body(
                answer.body, header_length=None if length is None else length.decode())
        except Exception as error:  # tritonclient's parser believes what it reads
            raise garbage(error) from None
        return taken(contract, rows, lambda name: described(result, name), result.as_numpy)

    def opening(self, verb: str, where: str) -> bytes:
        """A message's head but for its own fields and its end."""
        return f"{verb} {where} HTTP/1.1\r\n".encode() + self.fields

    async def close(self) -> None:
        self.pool.close()


def written(contract: Contract, question: Question) -> tuple[bytes, int]:
    """A request's body, and the bytes of its JSON."""
    inputs = []
    for tensor in contract.inputs:
        array = question.inputs[tensor.name]
        each = InferInput(tensor.name, list(array.shape), tensor.datatype)
        inputs.append(each.set_data_from_numpy(for_client(tensor, array)))
    body, json_size = InferenceServerClient.generate_request_body(
        inputs,
        outputs=[InferRequestedOutput(tensor.name, binary_data=True) for tensor in contract.outputs],
        request_id=question.id,
        priority=question.priority,
        timeout=microseconds(question),
    )
    return body, json_size if json_size is not None else len(body)


def described(result: InferResult, name: str) -> tuple[str, list[int], int] | None:
    """Datatype, shape and bytes of an output; -1 where it is not binary."""
    for output in result.get_response()["outputs"]:
        if output["name"] == name:
            size = (output.get("parameters") or {}).get("binary_data_size", -1)
            if type(size) is not int or size < 0:
                raise ValueError(f"output {name!r} is not binary")
            return output["datatype"], output["shape"], size
    return None


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
