"""Loading, readiness and the end of models; which version answers a request."""

import contextvars
import functools
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastinfer._core import Endpoint
from fastinfer.errors import (
    ConfigurationError,
    FastinferError,
    ModelLoadError,
    NotReadyError,
    UnknownModelError,
    UnknownVersionError,
)
from fastinfer.model import Model
from fastinfer.repository import Found, find
from fastinfer.settings import Settings

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("fastinfer.lifecycle")

SWITCH_INTERVAL = 0.0005  # seconds a worker thread may keep the interpreter from the loop


def load(path: str | Path, *, version: str | None = None, allow_python_models: bool = False,
         trust_pickle: bool = False) -> Model:
    """Load one model in process: no server, no event loop.

    Args:
        path: a model file, a version's folder, or a model's folder, of which the highest version is taken.
        version: another version of a model's folder.
        allow_python_models, trust_pickle: as the server's settings.

    Raises:
        ConfigurationError: there is no such model, or more than one.
        ModelLoadError: its files do not load.
    """
    settings = Settings(allow_python_models=allow_python_models, trust_pickle=trust_pickle)
    return load_found(find_one(Path(path), version), settings)


def find_one(path: Path, version: str | None = None) -> Found:
    """The one model that `load` loads; raises as it does."""
    found = [each for each in find(path).found if version in (None, each.version)]
    if len({each.name for each in found}) != 1:
        names = ", ".join(sorted({each.name for each in found})) or f"no version {version}"
        raise ConfigurationError(f"{path}: one model is wanted, and this is {names}")
    return found[0]


def load_found(found: Found, settings: Settings) -> Model:
    """Load what the repository holds; whatever goes wrong is an error of ours that names the file."""
    if found.error is not None:
        raise found.error
    try:
        assert found.file is not None
        assert found.kind is not None
        return Model.load(
            found.name,
            found.version,
            found.file,
            kind=found.kind,
            features=found.program,
            config=found.config,
            settings=settings,
        )
    except FastinferError:
        raise
    except Exception as error:  # an engine's own failure must not keep the other models from being served
        logger.debug("loading %s", found.file, exc_info=True)
        raise ModelLoadError(f"{found.file}: {type(error).__name__}: {error}") from error


class Registry:
    """The models of one server, found at ``settings.path``.

    Attributes:
        loaded: whether ``load`` has gone through everything that was found.
        failures: (name, version) of what did not load, and why.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loaded = False
        self.closed = False
        self.failures: dict[tuple[str, str], str] = {}
        self._models: dict[str, dict[str, Model]] = {}  # versions highest first
        self._loading: dict[tuple[str, str], Found] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._executors: list[ThreadPoolExecutor] = []
        self._register: Callable[[Model], None] = lambda model: None

    def find(self) -> None:
        """Look up what there is to load.

        Raises:
            ConfigurationError: the path is missing, empty, or no model.
        """
        assert self.settings.path is not None
        repository = find(self.settings.path, self.settings.name)
        for sentence in repository.stray:
            logger.warning(sentence)
        self._loading = {(found.name, found.version): found for found in repository.found}

    def load(self) -> None:
        """Load and warm everything that was found; blocks. What fails is kept with its reason, the rest is served."""
        if not self._loading and not self.loaded:
            self.find()
        for key, found in list(self._loading.items()):
            try:
                self._publish(load_found(found, self.settings))
            except FastinferError as error:
                self.failures[key] = str(error)
                logger.error("model %s version %s: %s", *key, error)
            del self._loading[key]
        self.loaded = True

    def on_load(self, register: Callable[[Model], None]) -> None:
        """Call this with every model, from the loading thread, before it is served."""
        self._register = register
        for model in self.models():
            register(model)

    def _publish(self, model: Model) -> None:
        self._register(model)
        if self._loop is not None:
            self._attach_one(model)
        versions = {**self._models.get(model.name, {}), model.version: model}
        order = sorted(versions, key=lambda version: int(version) if version.isdigit() else -1, reverse=True)
        self._models[model.name] = {version: versions[version] for version in order}

    def attach(self, loop: "asyncio.AbstractEventLoop") -> None:
        """Serve from this loop; models that load later are attached as they come."""
        self._loop = loop
        for model in self.models():
            self._attach_one(model)

    def _attach_one(self, model: Model) -> None:
        loop = self._loop
        assert loop is not None
        context = contextvars.Context()  # one for all, so that no request pays for a copy
        executor = ThreadPoolExecutor(model.config.instances + 1, thread_name_prefix=f"run-{model.name}")
        self._executors.append(executor)

        def submit(work: Any, *arguments: Any) -> Any:
            if sys.getswitchinterval() > SWITCH_INTERVAL:
                sys.setswitchinterval(SWITCH_INTERVAL)
            return executor.submit(work, *arguments)

        model.batcher.attach(
            call_soon=functools.partial(loop.call_soon, context=context),
            call_later=functools.partial(loop.call_later, context=context),
            call_soon_threadsafe=functools.partial(loop.call_soon_threadsafe, context=context),
            submit=submit,
        )

    def get(self, name: str, version: str | None = None) -> Model:
        """The model that answers; without a version the highest loaded one.

        Raises:
            UnknownModelError, UnknownVersionError: there is none of that name, or not that version of it.
            NotReadyError: it is loading, or could not be loaded.
        """
        versions = self._models.get(name)
        if versions is not None:
            if version is None:
                return next(iter(versions.values()))
            if version in versions:
                return versions[version]
        raise self._absence(name, version)

    def _absence(self, name: str, version: str | None) -> FastinferError:
        mine = {key: reason for key, reason in self.failures.items() if key[0] == name}
        loading = [key for key in self._loading if key[0] == name]
        if version is not None:
            mine = {key: reason for key, reason in mine.items() if key[1] == version}
            loading = [key for key in loading if key[1] == version]
        if loading:
            return NotReadyError(f"model {name!r} is loading")
        if mine:
            return NotReadyError(f"model {name!r} could not be loaded; the repository index says why")
        if name in self._models:
            return UnknownVersionError(
                f"model {name!r} has no version {version!r}; it has {', '.join(self._models[name])}"
            )
        return UnknownModelError(f"there is no model {name!r}")

    def versions(self, name: str) -> list[str]:
        """Loaded versions, highest first."""
        return list(self._models.get(name, {}))

    def models(self) -> list[Model]:
        """Every loaded version of every model."""
        return [model for versions in list(self._models.values()) for model in versions.values()]

    def endpoints(self) -> list[tuple[Endpoint, bool]]:
        """Every loaded version's spine, and whether it answers requests that name no version."""
        return [
            (model.endpoint, version == next(iter(versions)))
            for versions in list(self._models.values())
            for version, model in versions.items()
        ]

    def model_ready(self, name: str, version: str | None = None) -> bool:
        """Whether requests to it are answered.

        Raises:
            UnknownModelError, UnknownVersionError: there is no such model.
        """
        try:
            return not self.closed and not self.get(name, version).batcher.stuck
        except NotReadyError:
            return False

    @property
    def ready(self) -> bool:
        """Whether the server wants traffic: all models are up, or, without ``strict_readiness``, any is."""
        if not self.loaded or self.closed:
            return False
        up = [model for model in self.models() if not model.batcher.stuck]
        if self.settings.strict_readiness:
            return not self.failures and len(up) == len(self.models())
        return bool(up)

    @property
    def idle(self) -> bool:
        """Whether no admitted request waits or runs."""
        return all(model.batcher.idle for model in self.models())

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """Triton's repository index: name, version, state and, where it failed, the reason."""
        entries = [
            {"name": model.name, "version": model.version, "state": "READY", "reason": ""} for model in self.models()
        ]
        if not ready_only:
            entries += [{"name": n, "version": v, "state": "LOADING", "reason": ""} for n, v in self._loading]
            entries += [
                {"name": n, "version": v, "state": "UNAVAILABLE", "reason": reason}
                for (n, v), reason in self.failures.items()
            ]
        return sorted(entries, key=lambda entry: (entry["name"], entry["version"]))

    def close(self) -> None:
        """Refuse what still waits and let the worker threads end; a hung run is not waited for."""
        self.closed = True
        for model in self.models():
            model.batcher.close()
            model.close()
        for executor in self._executors:
            executor.shutdown(wait=False, cancel_futures=True)
