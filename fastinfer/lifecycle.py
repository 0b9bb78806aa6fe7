"""Loading, readiness and the end of models; which version answers a request."""

import contextvars
import dataclasses
import functools
import gc
import logging
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastinfer import precedence
from fastinfer._core import Endpoint, Lane, Routes
from fastinfer.errors import (
    BackendUnavailableError,
    ConfigurationError,
    FastinferError,
    LoadFailedError,
    ModelLoadError,
    NotReadyError,
    UnknownModelError,
    UnknownVersionError,
)
from fastinfer.model import Model
from fastinfer.probe import resting
from fastinfer.repository import Found, find, find_model, outside, stamp
from fastinfer.settings import Settings
from fastinfer.versions import Change, Leaving, Look, Version, aliases_of, load_found, load_whole, seen

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("fastinfer.lifecycle")

SWITCH_INTERVAL = 0.0001  # seconds a thread beside the loop may keep the interpreter from it
FIRST_LOOK, LAST_LOOK = 0.01, 1.0  # seconds between two looks whether a version that was replaced is still needed
AT = ("@", "%40")  # before an alias in a path
GONE = "other workers serve it, and it is not in the repository any more"


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


def spare_the_loop() -> None:
    """From now on a thread that runs Python beside the loop lets it have the interpreter after a moment."""
    if sys.getswitchinterval() > SWITCH_INTERVAL:
        sys.setswitchinterval(SWITCH_INTERVAL)


class Registry:
    """The models of one server, found at ``settings.path``.

    A load runs on any thread, one at a time, and changes nothing that is served: ``prepare``. ``commit``, on the loop's
    thread, puts what was loaded in its place, between two requests. What was there before answers the requests that it
    has, and is freed then.

    Attributes:
        first_look: what lay on the disk when ``find`` looked, with model_control poll.
        loaded: whether ``load`` has gone through everything that was found.
        failures: (name, version) of what did not load when it was tried last, and why.
    """

    def __init__(self, settings: Settings, only: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Nothing happens yet.

        Args:
            only: the versions that ``load`` loads, by model, each with the fingerprint that it must have, or an empty
                one; by default those that the settings say.
        """
        self.settings = settings
        self.only = only
        self.first_look: Look = {}
        self.loaded = False
        self.closed = False
        self.failures: dict[tuple[str, str], str] = {}
        self._single = False  # the path is one model
        self._versions: dict[str, dict[str, Version]] = {}  # highest first; both levels are replaced, never changed
        self._aliases: dict[str, dict[str, str]] = {}
        self._loading: dict[tuple[str, str], Found | None] = {}
        self._absent: set[str] = set()  # models of another server that was not there when they were to be loaded
        self._unready: set[tuple[str, str]] = set()  # what failed at the start, and has not come up since
        self._leaving: list[Leaving] = []
        self._next_look: asyncio.TimerHandle | None = None  # at them
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lane: Lane | None = None
        self._register: Callable[[Model], None] = lambda model: None

    # ---- the start -------------------------------------------------------------------------------------------
    def find(self) -> None:
        """Look up what there is to load.

        Raises:
            ConfigurationError: the path is missing, empty, or no model.
        """
        assert self.settings.path is not None
        repository = find(self.settings.path, self.settings.name, empty=self.settings.model_control != "none")
        for sentence in repository.stray:
            logger.warning(sentence)
        self._single = repository.single and bool(repository.found)
        if self.settings.model_control == "poll" and self.only is None:  # else what was served before is compared
            self.first_look = seen(repository.found)
        self._loading = {(found.name, found.version): self._judged(found) for found in repository.found
                         if self._wanted(found)}
        for name in self._named():
            if name not in {found.name for found in repository.found}:
                self._fail(name, "", f"there is no model {name!r} in {self.settings.path}")
                self._unready.add((name, ""))
                logger.error("there is no model %r in %s", name, self.settings.path)
        for name, version in self._gone(repository.found):
            self._fail(name, version, GONE)
            self._unready.add((name, version))
            logger.error("model %s version %s: %s", name, version, GONE)

    def look(self) -> Look:
        """What lies on the disk now, of every model; blocks.

        Raises:
            ConfigurationError: it cannot be read.
        """
        assert self.settings.path is not None
        repository = find(self.settings.path, self.settings.name, empty=True)
        if repository.found:
            self._single = repository.single
        return seen(repository.found)

    def _named(self) -> list[str]:
        """The models that the settings ask for by name."""
        return [] if self.only is not None else [name for name in self.settings.load_model if name != "*"]

    def _gone(self, found: list[Found]) -> list[tuple[str, str]]:
        """Versions that other workers serve, and that lie there no more."""
        there = {(each.name, each.version) for each in found}
        return [(name, version) for name, versions in (self.only or {}).items() for version, known in versions.items()
                if known and (name, version) not in there and (name, "") not in there]

    def _wanted(self, found: Found) -> bool:
        if self.only is not None:
            return found.name in self.only and found.version in ("", *self.only[found.name])
        names = self.settings.load_model
        return self.settings.model_control != "explicit" or "*" in names or found.name in names

    def _judged(self, found: Found) -> Found:
        """With an error where a call must not make the server read what lies outside of the repository."""
        if self.settings.model_control != "explicit" or found.error is not None:
            return found
        assert self.settings.path is not None
        root = self.settings.path if self.settings.path.is_dir() else self.settings.path.parent
        try:
            path = outside(root, found)
        except ModelLoadError as error:
            return dataclasses.replace(found, error=error)
        if path is None:
            return found
        return dataclasses.replace(found, error=ModelLoadError(f"{path} leads out of the repository {root}."))

    def load(self) -> None:
        """Load and warm everything that was found; blocks. What fails is kept with its reason, the rest is served."""
        if not self._loading and not self.loaded:
            self.find()
        for key, found in list(self._loading.items()):
            assert found is not None
            try:
                self._serve(self._as_others(self._away(found) or self._load(found)))
            except FastinferError as error:
                self._fail(*key, str(error))
                self._unready.add(key)
                self._note_absence(found.name, error)
                logger.error("model %s version %s: %s", *key, error)
            del self._loading[key]
        self.loaded = True

    def _as_others(self, version: Version) -> Version:
        """The version, where other workers serve the same under its number; else one answer would not be as another.

        Raises:
            ModelLoadError: they do not.
        """
        number = version.found.version if version.model is None else version.model.version
        theirs = (self.only or {}).get(version.found.name, {}).get(number)
        if theirs and theirs != version.fingerprint:
            self._leave(version)
            raise ModelLoadError("its files are not those that the other workers have loaded: load it anew")
        return version

    def _fail(self, name: str, version: str, reason: str) -> None:
        self.failures = {**self.failures, (name, version): reason}

    def _load(self, found: Found) -> Version:
        """Load a version of which nothing changes meanwhile; blocks; raises as `load_whole`."""
        if self.loaded and self._loop is not None:
            spare_the_loop()
            with resting():
                version = load_whole(found, self.settings, self._on_disk)
        else:
            version = load_whole(found, self.settings, self._on_disk)
        assert version.model is not None
        self._register(version.model)
        return version

    def _on_disk(self, name: str) -> list[Found]:
        """A model's versions as they lie there now.

        Raises:
            ConfigurationError: the repository cannot be read.
        """
        assert self.settings.path is not None
        if not self._single:
            return [self._judged(found) for found in find_model(self.settings.path, name)]
        return [self._judged(each) for each in find(self.settings.path, self.settings.name).found if each.name == name]

    def _serve(self, version: Version) -> None:
        """Put a version beside those of its model."""
        found, model = version.found, version.model
        if self._loop is not None:
            self._attach_one(version)
        self._aliases = {**self._aliases, found.name: aliases_of([found])}
        number = found.version if model is None else model.version
        self._set(found.name, {**self._versions.get(found.name, {}), number: version})

    def _set(self, name: str, versions: dict[str, Version]) -> None:
        others = {each: table for each, table in self._versions.items() if each != name}
        order = sorted(versions, key=lambda version: int(version) if version.isdigit() else -1, reverse=True)
        self._versions = {**others, name: {each: versions[each] for each in order}} if versions else others

    def on_load(self, register: Callable[[Model], None]) -> None:
        """Call this with every model, from the loading thread, before it is served."""
        self._register = register
        for model in self.models():
            register(model)

    # ---- changes ---------------------------------------------------------------------------------------------
    def prepare(self, name: str, *, unload: bool = False) -> Change:
        """Load what the disk has of a model and is not served yet, and warm it; blocks, on a thread of its own.

        One change at a time: ``commit`` or ``discard`` it before the next.

        Raises:
            LoadFailedError: there is no such model.
        """
        change = Change(name)
        if unload:
            return change
        found = self._on_disk(name)
        if not found:
            raise LoadFailedError(f"failed to load '{name}', failed to poll from model repository")
        served = self._versions.get(name, {})
        self._loading |= {(name, each.version): None for each in found if each.version not in served}
        try:
            for each in found:
                self._prepare_one(change, each, served.get(each.version))
        except BaseException:
            self.discard(change)
            raise
        change.aliases = aliases_of(found)
        return change

    def _prepare_one(self, change: Change, found: Found, served: Version | None) -> None:
        try:
            if found.error is not None:
                raise found.error
            if served is not None and served.serves(found, now := stamp(found)):
                change.kept[found.version] = found, now
                return
            version = self._load(found)
            if self._loop is not None:
                self._attach_one(version)
            assert version.model is not None
            change.loaded[version.model.version] = version  # which another server tells
            self._note_absence(found.name, None)
        except FastinferError as error:
            change.failures[found.version] = str(error)
            self._note_absence(found.name, error)
            if self.failures.get((found.name, found.version)) != str(error):  # said once, however often it is tried
                logger.error("model %s version %s: %s", found.name, found.version, error)
            error.__traceback__ = None  # a reference cycle with this frame, and what serves in it

    def _note_absence(self, name: str, error: FastinferError | None) -> None:
        if isinstance(error, BackendUnavailableError):
            self._absent.add(name)
        else:
            self._absent.discard(name)

    def commit(self, change: Change, refused: Mapping[str, str] | None = None) -> None:
        """Serve what a change has loaded; on the loop's thread, where there is one.

        Where a version has failed, none is taken away: what it was to replace goes on serving.

        Args:
            refused: versions that must not be served, and why: they have failed elsewhere.
        """
        name, served = change.name, self._versions.get(change.name, {})
        change.failures |= refused or {}
        for version in [each for each in change.loaded if each in change.failures]:
            self._leave(change.loaded.pop(version))
        versions = {**(served if change.failures else {version: served[version] for version in change.kept
                                                       if version in served}), **change.loaded}
        for version, (found, _) in change.kept.items():
            if version in served:
                model, said = served[version].model, found.config
                served[version].found = found
                if model is not None:
                    model.config = dataclasses.replace(
                        model.config, version_policy=said.version_policy, aliases=said.aliases)
        before = self._aliases.get(name, {}) if change.failures else {}
        now = {alias: version if version in versions else before.get(alias, version)
               for alias, version in change.aliases.items()}
        self._aliases = {**self._aliases, name: {**before, **now}}
        if not versions:
            del self._aliases[name]
        self._set(name, versions)
        self._forget(name)
        for version, reason in change.failures.items():
            self._fail(name, version, reason)
        self._unready -= {key for key in self._unready if key[0] == name and key not in self.failures}
        self._open()
        for version, record in served.items():
            if versions.get(version) is not record:
                self._leave(record)
        self.make_room(0)

    def discard(self, change: Change) -> None:
        """Let go of what a change has loaded; nothing of what is served changes."""
        self._loading = {key: found for key, found in self._loading.items() if key[0] != change.name}
        for version in change.loaded.values():
            self._leave(version)

    def _forget(self, name: str) -> None:
        """What was to be said of a model before its last change."""
        self._loading = {key: found for key, found in self._loading.items() if key[0] != name}
        self.failures = {key: reason for key, reason in self.failures.items() if key[0] != name}

    def _leave(self, version: Version) -> None:
        """Answer what it has, then free it."""
        model, executor = version.model, version.executor
        version.model = version.executor = None
        if model is None:
            return
        self._leaving.append(Leaving(model.name, model.version, weakref.ref(model), model.batcher,
                                     [model.batcher, model.program], model.closes, executor))
        if self._loop is None or self._loop.is_closed():
            self._leaving.clear()
        else:
            self._loop.call_soon_threadsafe(self._see_off, FIRST_LOOK)

    def _see_off(self, wait: float) -> None:
        """Free those that nobody waits for any more, and look again while there are others."""
        if wait < LAST_LOOK <= 2 * wait and any(each.batcher.idle for each in self._leaving):
            gc.collect()  # what holds it may be a request's error, in a cycle with the frames that it came through
        for each in [each for each in self._leaving if each.done]:
            self._leaving.remove(each)
            each.batcher.detach()
            if each.executor is not None:
                if each.close is not None:
                    each.executor.submit(each.close)
                each.executor.submit(each.held.clear)
                each.executor.shutdown(wait=False)
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if self._leaving and self._loop is not None:
            self._next_look = self._loop.call_later(wait, self._see_off, min(2 * wait, LAST_LOOK))

    # ---- memory ----------------------------------------------------------------------------------------------
    def _away(self, found: Found) -> Version | None:
        """A version as it is without being in memory, where memory_budget leaves no room for it at the start."""
        budget = self.settings.memory_budget
        if budget is None or found.error is not None or found.config.triton is not None:
            return None
        now = stamp(found)
        return Version(found, now, None, now.size) if self.resident + now.size > budget else None

    @property
    def resident(self) -> int:
        """Bytes that the versions in memory take, as far as that is known."""
        return sum(each.size for each in self._all() if each.model is not None)

    def make_room(self, size: int, but: Version | None = None) -> None:
        """Have the least recently used versions leave until so many bytes have room; on the loop's thread."""
        budget = self.settings.memory_budget
        if budget is None or size > budget:
            return
        leaving = []
        resident = self.resident
        for each in sorted(self._all(), key=lambda version: version.used_ns):
            if resident + size <= budget:
                break
            if each.model is not None and each is not but and each.model.closes is None:
                leaving.append(each)
                resident -= each.size
        for each in leaving:
            logger.info("model %s version %s leaves the memory", each.found.name, each.found.version)
            self._leave(each)
        if leaving:
            self._open()

    def bring(self, version: Version) -> Version:
        """Load a version again that has left the memory; blocks, on a thread of its own.

        Raises:
            NotReadyError: it does not load; the index says why.
        """
        budget = self.settings.memory_budget or 0
        name, number = version.found.name, version.found.version
        try:
            if stamp(version.found).size > budget:
                raise ModelLoadError(f"its files are larger than memory_budget, {budget} bytes")
            loaded = self._load(version.found)
            if self._loop is not None:
                self._attach_one(loaded)
        except FastinferError as error:
            version.failed_ns = time.monotonic_ns()
            self._fail(name, number, str(error))
            logger.error("model %s version %s: %s", name, number, error)
            raise self._absence(name, number) from None
        if loaded.stamp.files != version.stamp.files:
            logger.warning("model %s version %s: its files are not those of its load before", name, number)
        return loaded

    def put_back(self, version: Version, loaded: Version) -> None:
        """Serve a version that is in memory again; on the loop's thread."""
        name, number = version.found.name, version.found.version
        if self._versions.get(name, {}).get(number) is not version or version.model is not None:
            self._leave(loaded)  # it has been unloaded, or replaced, meanwhile
            return
        version.found, version.stamp, version.size = loaded.found, loaded.stamp, loaded.size
        version.model, version.executor = loaded.model, loaded.executor
        version.loaded_ns, version.failed_ns = loaded.loaded_ns, 0
        self.failures = {key: reason for key, reason in self.failures.items() if key != (name, number)}
        self.make_room(0, but=version)
        self._open()

    # ---- the loop --------------------------------------------------------------------------------------------
    def attach(self, loop: "asyncio.AbstractEventLoop") -> None:
        """Serve from this loop; models that load later are attached as they come."""
        self._loop = loop
        for versions in list(self._versions.values()):
            for version in versions.values():
                self._attach_one(version)

    def _attach_one(self, version: Version) -> None:
        loop, model = self._loop, version.model
        assert loop is not None
        if model is None:
            return
        context = contextvars.Context()  # one for all, so that no request pays for a copy
        executor = version.executor or ThreadPoolExecutor(
            model.config.instances + 1, f"run-{model.name}",
            None if model.runtime.native is None else precedence.behind)
        version.executor = executor

        def submit(work: Any, *arguments: Any) -> Any:
            spare_the_loop()
            return executor.submit(work, *arguments)

        model.batcher.attach(
            call_soon=functools.partial(loop.call_soon, context=context),
            call_later=functools.partial(loop.call_later, context=context),
            call_soon_threadsafe=functools.partial(loop.call_soon_threadsafe, context=context),
            submit=submit,
            create_task=loop.create_task,
        )

    def open(self, lane: Lane) -> None:
        """Have what is served, now and later, answered by the fast lane too."""
        self._lane = lane
        self._open()

    def _open(self) -> None:
        if self._lane is not None:
            self._lane.open(Routes(self.endpoints()))

    def shut(self) -> None:
        """Leave everything to the standard lane, from now on."""
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    # ---- what there is ---------------------------------------------------------------------------------------
    def get(self, name: str, version: str | None = None) -> Model:
        """The model that answers; raises as `lookup`, and NotReadyError while it is not in memory."""
        model = self.lookup(name, version).model
        if model is None:
            raise NotReadyError(f"model {name!r} is not in memory")
        return model

    def lookup(self, name: str, version: str | None = None) -> Version:
        """The version that answers; without one the highest that there is.

        Args:
            name: of the model, or with an alias: ``credit@champion``.

        Raises:
            UnknownModelError, UnknownVersionError: there is none of that name, or not that version of it.
            NotReadyError: it is loading, or could not be loaded.
        """
        base, at, alias = name.partition("@")
        versions = self._versions.get(base)
        if at:
            version = self._aliased(base, alias, version)
        if versions is not None:
            if version is None:
                return next(iter(versions.values()))
            if version in versions:
                return versions[version]
        raise self._absence(base, version)

    def _aliased(self, name: str, alias: str, version: str | None) -> str | None:
        """The version that an alias stands for; None where there is no such model."""
        known = self._aliases.get(name)
        if known is None:
            return None
        if version is not None:
            raise UnknownVersionError(f"{name}@{alias} is one version already; it is addressed without another")
        if alias not in known:
            raise UnknownVersionError(f"model {name!r} has no alias {alias!r}; it has {', '.join(known) or 'none'}")
        return known[alias]

    def _absence(self, name: str, version: str | None) -> FastinferError:
        keys = [key for key in list(self._loading) if key[0] == name and version in (None, key[1])]
        if keys:
            return NotReadyError(f"model {name!r} is loading")
        if any(key[0] == name and version in (None, key[1]) for key in self.failures):
            return NotReadyError(f"model {name!r} could not be loaded; the repository index says why")
        if name in self._versions:
            return UnknownVersionError(
                f"model {name!r} has no version {version!r}; it has {', '.join(self._versions[name])}"
            )
        return UnknownModelError(f"Request for unknown model: {name!r} is not found")  # in Triton's words: clients look

    def versions(self, name: str) -> list[str]:
        """Loaded versions, highest first."""
        return list(self._versions.get(name, {}))

    def known(self) -> dict[str, dict[str, str]]:
        """The fingerprint of every version that is loaded, and an empty one of each that has failed, by model."""
        result = {name: {number: version.fingerprint for number, version in versions.items()}
                  for name, versions in self._versions.items()}
        for name, version in self.failures:
            result.setdefault(name, {}).setdefault(version, "")
        return result

    def models(self) -> list[Model]:
        """Every version of every model that is in memory."""
        return [each.model for each in self._all() if each.model is not None]

    def _all(self) -> list[Version]:
        return [version for versions in self._versions.values() for version in versions.values()]

    def endpoints(self) -> list[tuple[Endpoint, list[str]]]:
        """The spine of every version in memory, and what it is addressed by in a path."""
        result = []
        for name, versions in self._versions.items():
            aliases = self._aliases.get(name, {})
            for index, (number, version) in enumerate(versions.items()):
                mine = [alias for alias, each in aliases.items() if each == number]
                # Clients that encode a path encode the @ too.
                addresses = [f"{name}/versions/{number}", *(f"{name}{at}{alias}" for alias in mine for at in AT)]
                if version.model is not None:
                    result.append((version.model.endpoint, addresses + [name] * (index == 0)))
        return result

    def model_ready(self, name: str, version: str | None = None) -> bool:
        """Whether requests to it are answered.

        Raises:
            UnknownModelError, UnknownVersionError: there is no such model.
        """
        try:
            found = self.lookup(name, version)
            return not self.closed and (not found.failed_ns if found.model is None else found.model.ready)
        except NotReadyError:
            return False

    @property
    def ready(self) -> bool:
        """Whether the server wants traffic: all models are up, or, without ``strict_readiness``, any is.

        What fails later than at the start leaves the server ready: the versions before it serve.
        """
        if not self.loaded or self.closed:
            return False
        up = [model for model in self.models() if model.ready]
        if self.settings.strict_readiness:
            return not self._unready and len(up) == len(self.models())
        return bool(up) or not self._unready

    @property
    def has_others(self) -> bool:
        """Whether any model runs in another server."""
        return bool(self._absent) or any(model.closes is not None for model in self.models())

    @property
    def absent(self) -> list[str]:
        """Models to load again, for the server that runs them was not there, or has others of the name now."""
        return sorted(self._absent | {model.name for model in self.models() if model.stale})

    @property
    def lost(self) -> list[str]:
        """What has a run that does not end, whether it still serves or is to leave."""
        served = [(each.name, each.version, each.batcher) for each in self.models()]
        leaving = [(each.name, each.version, each.batcher) for each in self._leaving]
        return [f"{name} version {version}" for name, version, batcher in served + leaving if batcher.lost]

    @property
    def idle(self) -> bool:
        """Whether no admitted request waits or runs."""
        return all(model.batcher.idle for model in self.models()) and all(
            each.batcher.idle for each in self._leaving)

    def not_loaded(self) -> list[tuple[str, str]]:
        """Every version that lies on the disk and is not loaded; blocks."""
        assert self.settings.path is not None
        try:
            found = find(self.settings.path, self.settings.name, empty=True).found
        except ConfigurationError:  # it cannot be read
            return []
        return [(each.name, each.version) for each in found if each.version not in self._versions.get(each.name, {})]

    def index(self, ready_only: bool = False, others: Iterable[tuple[str, str]] = ()) -> list[dict[str, str]]:
        """Triton's repository index: name, version, state and, where it failed, the reason.

        A version whose last load failed while the one before serves is READY, with the reason.

        Args:
            others: versions that are told of as unloaded where there is nothing else to tell of them.
        """
        entries = {}
        for name, versions in self._versions.items():
            for number, version in versions.items():
                state = "UNAVAILABLE" if version.model is None and version.failed_ns else "READY"
                reason = "" if version.model is not None else "not in memory: it is loaded when it is asked for"
                entries[name, number] = state, self.failures.get((name, number), reason)
        if not ready_only:
            told = [(key, ("UNAVAILABLE", reason)) for key, reason in self.failures.items()]
            told += [(key, ("LOADING", "")) for key in list(self._loading)]
            told += [((each.name, each.version), ("UNLOADING", "")) for each in list(self._leaving)]
            told += [(key, ("UNAVAILABLE", "unloaded")) for key in others]  # in Triton's word
            for key, each in told:
                entries.setdefault(key, each)
        return [
            {"name": name, "version": version, "state": state, "reason": reason}
            for (name, version), (state, reason) in sorted(entries.items())
        ]

    def close(self) -> None:
        """Refuse what still waits and let the worker threads end; a hung run is not waited for."""
        self.closed = True
        for model in self.models():
            model.batcher.close()
            model.close()
        for versions in self._versions.values():
            for version in versions.values():
                if version.executor is not None:
                    version.executor.shutdown(wait=False, cancel_futures=True)
        for each in self._leaving:
            each.batcher.close()
            if each.executor is not None:
                each.executor.shutdown(wait=False, cancel_futures=True)
