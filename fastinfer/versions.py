"""What the registry of models knows of each version: as it serves, as it is to serve, as it lies on the disk."""

import ctypes
import dataclasses
import hashlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fastinfer._core import Batcher
from fastinfer.errors import FastinferError, LoadFailedError, ModelLoadError
from fastinfer.model import Model
from fastinfer.repository import Found, Stamp, being_written, stamp
from fastinfer.runtimes import trust
from fastinfer.settings import ModelConfig, Settings

logger = logging.getLogger("fastinfer.lifecycle")

TRIALS = 3  # loads of a version whose files change meanwhile
WRITTEN_WITHIN = 2.0  # seconds in which a file that is being written may be complete
LOOK_AGAIN = 0.02  # seconds between two looks whether it is


class Version:
    """One version of a model as the registry has it.

    Attributes:
        found: what lies on the disk.
        stamp: of its files, as they were loaded.
        model: the loaded version; None while it is not in memory.
        executor: the threads on which it runs what does not run on the loop, once there is a loop.
        size: bytes that it takes in memory, as far as that is known.
        loaded_ns: monotonic time of its load.
        failed_ns: of its last load, where that has failed; else 0.
    """

    __slots__ = ("executor", "failed_ns", "found", "loaded_ns", "model", "size", "stamp")

    def __init__(self, found: Found, stamp: Stamp, model: Model | None, size: int) -> None:
        self.found = found
        self.stamp = stamp
        self.model = model
        self.executor: ThreadPoolExecutor | None = None
        self.size = size
        self.loaded_ns = time.monotonic_ns()
        self.failed_ns = 0

    @property
    def used_ns(self) -> int:
        """Monotonic time of its last good answer, or of its load."""
        return max(self.loaded_ns, 0 if self.model is None else self.model.endpoint.last_ns)

    @property
    def fingerprint(self) -> str:
        """As `fingerprint`, of what was loaded."""
        return fingerprint(self.found, self.stamp)

    def serves(self, found: Found, now: Stamp) -> bool:
        """Whether this is what a load of ``found`` would give, and it is in order; another server's is asked anew."""
        same = (self.stamp.same(now) and _plain(self.found.config) == _plain(found.config)
                and self.found.file == found.file)
        return same and (self.model is None or (not self.model.batcher.stuck and self.model.closes is None))


def fingerprint(found: Found, stamp: Stamp) -> str:
    """What tells whether two processes have loaded the same."""
    files = [(path, size, modified) for path, _, size, modified, _ in stamp.files]
    return hashlib.sha256(repr((found.file, files, _plain(found.config))).encode()).hexdigest()


def _plain(config: ModelConfig) -> ModelConfig:
    """What a load depends on: the rest holds for all versions of a model."""
    return dataclasses.replace(config, version_policy=ModelConfig().version_policy, aliases={})


@dataclasses.dataclass(slots=True)
class Change:
    """What a load or an unload of one model makes of it, loaded and warm, but not served yet.

    Attributes:
        name: of the model.
        kept: versions that stay as they are, and what the disk says of them now.
        loaded: versions that are new, or take the place of those before.
        failures: versions that did not load, and why.
        aliases: names of versions.
    """

    name: str
    kept: dict[str, tuple[Found, Stamp]] = dataclasses.field(default_factory=dict)
    loaded: dict[str, Version] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def stamps(self) -> dict[str, str]:
        """What tells whether others have loaded, or keep, the same."""
        result = {version: each.fingerprint for version, each in self.loaded.items()}
        return result | {version: fingerprint(each, stamp) for version, (each, stamp) in self.kept.items()}

    @property
    def error(self) -> LoadFailedError | None:
        """What the one who asked for it is told, unless all went well."""
        if not self.failures:
            return None
        reasons = "; ".join(f"version {version}: {reason}" for version, reason in self.failures.items())
        return LoadFailedError(f"failed to load '{self.name}', {reasons}")


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What lies on the disk of one model; equal while nothing changes."""

    versions: tuple[tuple[Found, tuple[Any, ...], str], ...]  # each with its files, and its error

    def is_being_written(self) -> bool:
        """Whether somebody has one of the files open for writing."""
        return any(not error and being_written(found) is not None for found, _, error in self.versions)


Look = Mapping[str, Seen]  # by model


class Leaving(NamedTuple):
    """A version that serves no new requests, and what it takes for those that it has."""

    name: str
    version: str
    asked: "weakref.ref[Model]"  # whom the standard lane's requests hold
    batcher: Batcher
    held: list[Any]  # freed on a thread: it may be much
    close: Callable[[], None] | None
    executor: ThreadPoolExecutor | None

    @property
    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.asked() is None and self.batcher.idle


def seen(found: Iterable[Found]) -> Look:
    """What tells of each model whether it has changed."""
    models: dict[str, list[tuple[Found, tuple[Any, ...], str]]] = {}
    for each in found:
        try:
            files = () if each.error is not None else stamp(each).files
            entry = (dataclasses.replace(each, error=None), files, str(each.error or ""))
        except FastinferError as error:  # a file has gone just now
            entry = (each, (), str(error))
        models.setdefault(each.name, []).append(entry)
    return {name: Seen(tuple(versions)) for name, versions in models.items()}


def aliases_of(found: Iterable[Found]) -> dict[str, str]:
    """Names of versions, as a model's configuration has them."""
    return {alias: str(version) for each in found for alias, version in each.config.aliases.items()}


def load_whole(found: Found, settings: Settings, on_disk: Callable[[str], Iterable[Found]]) -> Version:
    """Load a version of which nothing changes meanwhile; blocks.

    Args:
        on_disk: what lies there of a model, where a load must be tried anew.

    Raises:
        FastinferError: it does not load.
    """
    for _ in range(TRIALS):
        if found.error is not None:
            raise found.error
        measured = settings.memory_budget is not None
        before, resident = stamp(found), resident_bytes() if measured else 0
        wait_until_written(found)
        model = load_found(found, settings)
        if stamp(found).files == before.files:
            grown = resident_bytes() - resident if measured else 0
            return Version(found, before, model, max(before.size, grown))
        # Half of it may be of one state of the files, half of another.
        found = next((each for each in on_disk(found.name) if each.version == found.version), found)
    raise ModelLoadError(f"{found.folder} changes again and again while it is loaded")


def load_found(found: Found, settings: Settings) -> Model:
    """Load what the repository holds; whatever goes wrong is an error of ours that names the file."""
    if found.error is not None:
        raise found.error
    try:
        assert found.file is not None
        if refused := trust.refusal(found.file, settings, found.name):
            raise refused
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


def resident_bytes() -> int:
    """Of this process's memory, as the system has it once what is free has been given back: a load leaves much."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def wait_until_written(found: Found) -> None:
    """Wait a moment for whoever has one of a version's files open for writing.

    Raises:
        ModelLoadError: it takes longer.
    """
    deadline = time.monotonic() + WRITTEN_WITHIN
    while (path := being_written(found)) is not None:
        if time.monotonic() >= deadline:
            raise ModelLoadError(f"{path} is still being written")
        time.sleep(LOOK_AGAIN)
