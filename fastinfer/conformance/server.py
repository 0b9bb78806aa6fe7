"""The server that is checked, over HTTP: one answer a call, and the bytes of a connection where framing is checked."""

from __future__ import annotations

import io
import json
import socket
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from fastinfer.conformance.kit import FailError, SkipError, need
from fastinfer.conformance.models import Model, Tensor, arrays_of, request
from fastinfer.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastinfer.conformance.models import Arrays

MOST_MODELS = 64  # of a server's that are looked at
HEADER = "Inference-Header-Content-Length"
TALK = 5.0  # seconds for an answer to bytes that a server may never understand


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. `headers` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise FailError(f"status {self.status} with a body that is not JSON: {self.body[:80]!r}") from error

    def document(self) -> dict[str, Any]:
        value = self.json()
        need(isinstance(value, dict), f"the body is {type(value).__name__}, not an object")
        return dict(value)

    def ok(self) -> Answer:
        need(self.status == 200, f"status {self.status}: {self.body[:200]!r}")
        return self

    def refused(self) -> str:
        """An error in the protocol's form: a status of 4xx or 5xx and {"error": text}. Returns both, to be noted."""
        need(400 <= self.status < 600, f"status {self.status}, an error is expected")
        text = self.document().get("error")
        need(isinstance(text, str) and text, f"status {self.status} without an 'error' text: {self.body[:80]!r}")
        return f"{self.status}: {text}"


class Kept(io.BufferedReader):
    """Goes on behind an answer: what was read ahead is of the next one."""

    def close(self) -> None:
        pass


class Source:
    """A connection as `HTTPResponse` reads it, for one answer after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self.reader = Kept(socket.SocketIO(connection, "r"))

    def makefile(self, mode: str) -> Kept:
        return self.reader


@dataclass
class Server:
    """A server at a URL.

    Attributes:
        url: http:// or https://, with a path where the protocol is served under one.
        wanted: the model to use; else whichever serves a check.
        timeout: seconds for each answer.
    """

    url: str
    wanted: str | None = None
    timeout: float = 30.0
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
        try:
            port = self.parts.port
        except ValueError as error:
            raise ConfigurationError(f"{self.url}: {error}.") from error
        if self.parts.scheme not in ("http", "https") or not self.parts.hostname:
            raise ConfigurationError(f"{self.url}: the URL of a server is http://HOST:PORT.")
        self.host = self.parts.hostname
        self.port = port or {"http": 80, "https": 443}[self.parts.scheme]
        self.base = self.parts.path.rstrip("/")

    def connect(self) -> HTTPConnection:
        kind = HTTPSConnection if self.parts.scheme == "https" else HTTPConnection
        return kind(self.host, self.port, timeout=self.timeout)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own. A body that is not bytes is sent as JSON."""
        connection = self.connect()
        try:
            return self.ask_on(connection, method, path, body, headers)
        finally:
            connection.close()

    def ask_on(
        self, connection: HTTPConnection, method: str, path: str, body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method, self.base + path, data, {**fields, **self.headers, **(headers or {})})
            response = connection.getresponse()
            return answer_of(response)
        except HTTPException as error:
            raise FailError(f"no HTTP answer to {method} {path}: {type(error).__name__} {error}") from error

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def talk(self, data: bytes, answers: int = 1) -> list[Answer]:
        """Send bytes as they are, and read so many answers.

        Raises:
            SkipError: the server is behind TLS.
        """
        if self.parts.scheme == "https":
            raise SkipError("framing is checked without TLS only")
        with socket.create_connection((self.host, self.port), min(self.timeout, TALK)) as connection:
            connection.sendall(data)
            source: Any = Source(connection)
            result = []
            for _ in range(answers):
                response = HTTPResponse(source, method="POST")
                try:
                    response.begin()
                    result.append(answer_of(response))
                except HTTPException as error:
                    raise FailError(f"no HTTP answer: {type(error).__name__} {error}") from error
            return result

    # ---- models -------------------------------------------------------------------------------------------------
    @cached_property
    def metadata(self) -> dict[str, Any]:
        return self.get("/v2").ok().document()

    def offers(self, extension: str) -> None:
        """Skip a check of an extension that the server's metadata does not name."""
        if extension not in self.metadata.get("extensions", []):
            raise SkipError(f"the server does not name the extension {extension}")

    @cached_property
    def names(self) -> list[str]:
        """The models that the server says are ready, or the one that is wanted."""
        if self.wanted is not None:
            return [self.wanted]
        answer = self.ask("POST", "/v2/repository/index", {})
        if answer.status != 200:
            raise SkipError("the server has no repository index; name a model with --model")
        ready = [entry["name"] for entry in answer.json() if entry.get("state") in ("READY", None)]
        return list(dict.fromkeys(ready))[:MOST_MODELS]

    @cached_property
    def models(self) -> list[Model]:
        """Those of the server's models for which a request could be made up that it answers."""
        found = (self.described(name) for name in self.names)
        return [model for model in found if model is not None and self.tried(model)]

    def described(self, name: str) -> Model | None:
        answer = self.get(f"/v2/models/{quote(name, safe='')}")
        if answer.status != 200:
            return None
        metadata = answer.document()
        config = self.get(f"/v2/models/{quote(name, safe='')}/config")
        settings = config.document() if config.status == 200 else {}
        if settings.get("sequence_batching") or settings.get("model_transaction_policy", {}).get("decoupled"):
            return None  # another kind of conversation
        tensors = [
            [Tensor(each["name"], each["datatype"], tuple(each["shape"])) for each in metadata.get(end, [])]
            for end in ("inputs", "outputs")
        ]
        if not tensors[0] or not tensors[1]:
            return None
        versions = [str(each) for each in metadata.get("versions") or []]
        return Model(name, versions, tensors[0], tensors[1], settings.get("max_batch_size"))

    def tried(self, model: Model) -> bool:
        """Look for an input that the model answers, and keep it as its example."""
        for candidate in model.candidates():
            answer = self.infer(model, candidate)
            if answer.status == 200:
                model.example = candidate
                return True
            model.why = answer.body[:200].decode(errors="replace")
        return False

    def model(self, *, batched: bool = False, inputs: int = 0, outputs: int = 0, datatype: str | None = None) -> Model:
        """A model of this kind.

        Raises:
            SkipError: there is none.
        """
        for model in self.models:
            kinds = {tensor.datatype for tensor in model.inputs}
            if (model.batched or not batched) and len(model.inputs) >= inputs and len(model.outputs) >= outputs and (
                datatype is None or datatype in kinds
            ):
                return model
        wanted = ["in batches"] * batched + [f"with {inputs} inputs"] * bool(inputs)
        wanted += [f"with {outputs} outputs"] * bool(outputs) + ([f"that takes {datatype}"] if datatype else [])
        raise SkipError(f"no model {' '.join(wanted)}".strip() + " could be asked")

    def path(self, model: Model, what: str = "infer", version: str | None = None) -> str:
        middle = "" if version is None else f"/versions/{version}"
        return f"/v2/models/{quote(model.name, safe='')}{middle}/{what}"

    def infer(self, model: Model, arrays: Arrays, **options: Any) -> Answer:
        """Ask the model; `options` are those of `models.request`."""
        body, headers = request(model, arrays, **options)
        return self.ask("POST", self.path(model), body, headers)

    def ask_with_header(self, model: Model, name: str, value: str) -> Answer:
        """The model's example, with a field in the request's head."""
        body, headers = request(model, model.asked)
        return self.ask("POST", self.path(model), body, {**headers, name: value})

    def outputs(self, model: Model, answer: Answer) -> Arrays:
        """The arrays of an answer to an inference, whatever their encoding; checks its form."""
        answer.ok()
        size = answer.headers.get(HEADER.lower())
        return arrays_of(model, answer.body, None if size is None else int(size))


def answer_of(response: HTTPResponse) -> Answer:
    body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body)
