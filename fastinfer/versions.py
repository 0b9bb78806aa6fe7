"""What the registry of models knows of each version: as it serves, as it is to serve, as it lies on the disk."""

import dataclasses
import hashlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fastinfer._core import Batcher
from fastinfer.errors import FastinferError, LoadFailedError
from fastinfer.model import Model
from fastinfer.repository import Found, Stamp, being_written, stamp
from fastinfer.settings import ModelConfig


class Version:
    """One version of a model as the registry has it.

    Attributes:
        found: what lies on the disk.
        stamp: of its files, as they were loaded.
        model: the loaded version.
        executor: the threads on which it runs what does not run on the loop, once there is a loop.
    """

    __slots__ = ("executor", "found", "model", "stamp")

    def __init__(self, found: Found, stamp: Stamp, model: Model) -> None:
        self.found = found
        self.stamp = stamp
        self.model = model
        self.executor: ThreadPoolExecutor | None = None

    def serves(self, found: Found, now: Stamp) -> bool:
        """Whether this is what a load of ``found`` would give, and it is in order; another server's is asked anew."""
        return (self.stamp.same(now) and _plain(self.found.config) == _plain(found.config)
                and self.found.file == found.file and not self.model.batcher.stuck and self.model.closes is None)


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
        texts = {version: repr((each.found.file, each.stamp.files)) for version, each in self.loaded.items()}
        texts |= {version: repr((each.file, stamp.files)) for version, (each, stamp) in self.kept.items()}
        return {version: hashlib.sha256(text.encode()).hexdigest() for version, text in texts.items()}

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
        return any(found.error is None and being_written(found) is not None for found, _, _ in self.versions)


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
