"""Triton over HTTP: tritonclient's bodies on aiohttp's connections."""

import io
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http.aio import InferenceServerClient

from fastinfer.errors import ConfigurationError
from fastinfer.runtimes import Arrays
from fastinfer.runtimes.triton.contract import MOST_INSTANCES, Contract
from fastinfer.runtimes.triton.exchange import (
    Question,
    for_client,
    garbage,
    lost,
    microseconds,
    most_bytes,
    refused,
    taken,
    unreachable,
)
from fastinfer.settings import TritonConfig

JSON_BYTES = 4 << 20  # of metadata and of an error
HEADER_LENGTH = "Inference-Header-Content-Length"
LARGE = 1 << 20  # bytes of a body that aiohttp wants as a file


class HttpLink:
    """A pool of connections to one url, of the running event loop.

    aiohttp keeps them; tritonclient, whose own pool knows neither a bound on an answer nor a time for connecting,
    makes the bodies and reads them.
    """

    def __init__(self, address: str, config: TritonConfig) -> None:
        scheme = "https" if config.secure else "http"
        self.base = f"{scheme}://{address}"
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(note_reuse)
        most = config.connections or (config.in_flight or MOST_INSTANCES + 1) + 2
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=most, ssl=tls(config) if config.secure else True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout),
            headers={"Accept-Encoding": "identity", **config.headers},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[trace],
        )

    async def metadata(self, model: str, version: str) -> Mapping[str, Any]:
        return await self.ask(path(model, version))

    async def configuration(self, model: str, version: str) -> Mapping[str, Any]:
        return await self.ask(f"{path(model, version)}/config")

    async def ask(self, where: str) -> Mapping[str, Any]:
        """A JSON object that Triton has; raises Failed."""
        try:
            async with self.session.get(self.base + where, allow_redirects=False) as response:
                content = await bounded(response, JSON_BYTES)
                answer = json.loads(content) if content else {}
        except aiohttp.ClientConnectorError as error:
            raise unreachable(error.os_error.strerror or error) from None
        except (aiohttp.ClientError, OSError) as error:
            raise lost(type(error).__name__) from None
        except (ValueError, RecursionError) as error:
            raise garbage(error) from None
        if not isinstance(answer, dict):
            raise garbage("JSON that is no object")
        if response.status != 200:
            raise refused(response.status, answer.get("error", ""))
        return answer

    async def ready(self, model: str, version: str) -> bool:
        try:
            async with self.session.get(f"{self.base}{path(model, version)}/ready", allow_redirects=False) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, ValueError):
            return False

    async def infer(self, contract: Contract, question: Question) -> Arrays:
        body, json_size = written(contract, question)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_size)}
        if question.traceparent:
            headers["traceparent"] = question.traceparent
        rows = len(question.inputs[contract.inputs[0].name]) if contract.max_batch_size else 1
        kept = {"reused": False}
        try:
            async with self.session.post(
                f"{self.base}{path(contract.model, contract.version)}/infer",
                data=io.BytesIO(body) if len(body) > LARGE else body,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=kept,
            ) as response:
                kept["reused"] = False  # an answer has begun
                status, fields = response.status, response.headers
                content = await bounded(response, most_bytes(contract, rows) if status == 200 else JSON_BYTES)
        except aiohttp.ClientConnectorError as error:
            raise unreachable(error.os_error.strerror or error) from None
        except (aiohttp.ServerTimeoutError, TimeoutError):
            raise unreachable("no connection came about in time") from None
        except aiohttp.ClientResponseError as error:
            raise garbage(error.message) from None
        except aiohttp.ClientPayloadError:
            raise lost("its answer ends too early") from None
        except (aiohttp.ClientError, OSError):
            # A connection that was kept and whose end was on its way when the batch left has been read by nobody.
            raise lost("the connection was closed", again=kept["reused"]) from None
        except ValueError as error:
            raise garbage(error) from None
        if status != 200:
            raise refused(status, error_of(content))
        try:
            length = fields.get(HEADER_LENGTH)
            result = InferenceServerClient.parse_response_body(content, header_length=length)
        except Exception as error:  # tritonclient's parser believes what it reads
            raise garbage(error) from None
        return taken(contract, rows, lambda name: described(result, name), result.as_numpy)

    async def close(self) -> None:
        await self.session.close()


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


async def bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body of an answer; raises ValueError for one over so many bytes, and gives its connection up."""
    if response.content_length is not None and response.content_length > most:
        response.close()
        raise ValueError(f"an answer of {response.content_length} bytes")
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > most:
            response.close()
            raise ValueError(f"an answer of over {most} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def note_reuse(session: aiohttp.ClientSession, context: Any, parameters: Any) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx["reused"] = True


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
