"""Triton's extensions that its clients call: statistics, configuration, repository; and what is off.

Sources: triton-inference-server/server `docs/protocol/*.md`, `src/http_server.cc`. Where a part is off, the answer is
the one Triton gives when it is off there, so that a client's start-up and clean-up calls go through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastinfer.errors import InvalidRequestError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.routing import Route

    from fastinfer.protocols.exchange import Exchange
    from fastinfer.protocols.router import Router
    from fastinfer.service import Service

TRACE = {
    "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_file": "",
    "trace_mode": "triton",
}  # fmt: skip
LEVELS = {"debug": 0, "info": 0, "warning": 1, "error": 2, "critical": 3}


def routes(router: Router) -> list[Route]:
    """The extensions' routes. They stand before the metadata's, which take any name."""
    model, repository, memory = "/v2/models/{name}", "/v2/repository", "/v2/{kind}sharedmemory"
    versioned = model + "/versions/{version}"
    result = [router.route("/v2/models/stats", all_statistics)]
    for prefix in (model, versioned):
        result.append(router.route(prefix + "/stats", statistics))
        result.append(router.route(prefix + "/config", configuration))
    for prefix in (repository, repository + "/{repository}"):
        result.append(router.route(prefix + "/index", index, "POST"))
        result.append(router.route(prefix + "/models/{name}/load", load, "POST"))
        result.append(router.route(prefix + "/models/{name}/unload", unload, "POST"))
    result += [
        router.route("/v2/trace/setting", trace, "GET", "HEAD", "POST"),
        router.route(model + "/trace/setting", trace, "GET", "HEAD", "POST"),
        router.route("/v2/logging", logging_settings, "GET", "HEAD", "POST"),
    ]
    for prefix in (memory, memory + "/region/{region}"):
        result.append(router.route(prefix + "/status", memory_status))
        result.append(router.route(prefix + "/unregister", memory_unregister, "POST"))
    result.append(router.route(memory + "/region/{region}/register", memory_register, "POST"))
    return result


async def all_statistics(exchange: Exchange) -> None:
    await exchange.service.prepare()
    models = exchange.service.registry.models()
    await exchange.json(200, {"model_stats": [model.statistics() for model in models]})


async def statistics(exchange: Exchange) -> None:
    """Of one version, or of each loaded one where the path names none."""
    service, path = exchange.service, exchange.path
    found = await service.lookup(path["name"], path.get("version"))
    models = [] if found.model is None else [found.model]
    if "version" not in path and "@" not in path["name"]:
        models = [each for each in service.registry.models() if each.name == found.found.name]
    await exchange.json(200, {"model_stats": [each.statistics() for each in models]})


async def configuration(exchange: Exchange) -> None:
    model = await exchange.service.model(exchange.path["name"], exchange.path.get("version"))
    await exchange.json(200, model.configuration())


async def index(exchange: Exchange) -> None:
    """Every model that was found, loaded or not; with {"ready": true} only those that are ready."""
    wanted = await exchange.json_body()
    if wanted is not None and not isinstance(wanted, dict):
        raise InvalidRequestError("the body must be an object", "$")
    only_ready = (wanted or {}).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequestError("ready must be true or false", "$.ready")
    await exchange.json(200, await exchange.service.index(only_ready))


async def load(exchange: Exchange) -> None:
    """200 with nothing in it when the model is loaded, on every worker."""
    await exchange.service.load_model(exchange.path["name"], await parameters(exchange))
    await exchange.respond(200, b"")


async def unload(exchange: Exchange) -> None:
    """200 with nothing in it when no new request gets the model; those that it has are answered."""
    await exchange.service.unload_model(exchange.path["name"], await parameters(exchange))
    await exchange.respond(200, b"")


async def parameters(exchange: Exchange) -> Any:
    """The body's parameters, or None.

    Raises:
        InvalidRequestError: they are none, or a browser sends the request for a page of somebody else's, which must not
            reach what listens on its user's own machine.
    """
    body = await exchange.json_body()
    origin = exchange.headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != exchange.headers.get(b"host"):
        raise InvalidRequestError("a page of another origin may not load or unload models")
    if "repository" in exchange.path:
        raise UnsupportedError("'repository_name' specification is not supported")  # in Triton's words
    if body is None:
        return None
    if not isinstance(body, dict):
        raise InvalidRequestError("the body must be an object", "$")
    return body.get("parameters")


async def trace(exchange: Exchange) -> None:
    if exchange.path.get("name") is not None:
        await exchange.service.lookup(exchange.path["name"], None)
    if changes(await asked_settings(exchange), TRACE):
        raise UnsupportedError("tracing is not supported")
    await exchange.json(200, TRACE)


async def logging_settings(exchange: Exchange) -> None:
    """What log_level and log_format say; they cannot be changed while the server runs."""
    settings = log_settings(exchange.service)
    if changes(await asked_settings(exchange), settings):
        raise UnsupportedError("log settings cannot be changed while the server runs")
    await exchange.json(200, settings)


async def asked_settings(exchange: Exchange) -> dict[str, Any]:
    """The settings that a POST asks for.

    Raises:
        InvalidRequestError: the body is no object.
    """
    asked = await exchange.json_body() if exchange.scope["method"] == "POST" else None
    if asked is not None and not isinstance(asked, dict):
        raise InvalidRequestError("the body must be an object", "$")
    return asked or {}


def changes(asked: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether anything would be another than it is; null asks for what it is by default."""
    return any(value is not None and (name not in settings or value != settings[name] or
                                      isinstance(value, bool) != isinstance(settings[name], bool))
               for name, value in asked.items())  # fmt: skip


def log_settings(service: Service) -> dict[str, bool | int | str]:
    """The log's settings under Triton's names."""
    level = LEVELS[service.settings.log_level]
    return {
        "log_file": "", "log_info": level <= 0, "log_warning": level <= 1, "log_error": level <= 2,
        "log_verbose_level": int(service.settings.log_level == "debug"), "log_format": "default",
    }  # fmt: skip


async def memory_status(exchange: Exchange) -> None:
    """No region is ever registered."""
    _kind(exchange)
    if "region" in exchange.path:
        raise NotFoundError(f"Unable to find {_kind(exchange)} shared memory region: '{exchange.path['region']}'")
    await exchange.json(200, [])


async def memory_unregister(exchange: Exchange) -> None:
    """Nothing to forget, which is no error: clients clean up before they start."""
    _kind(exchange)
    await exchange.body()
    await exchange.respond(200, b"")


async def memory_register(exchange: Exchange) -> None:
    kind = _kind(exchange)
    await exchange.body()
    raise UnsupportedError(f"{kind} shared memory is not supported")


def _kind(exchange: Exchange) -> str:
    kind = exchange.path["kind"]
    if kind not in ("system", "cuda"):
        raise NotFoundError("no such path; GET / lists what is served")
    return kind
