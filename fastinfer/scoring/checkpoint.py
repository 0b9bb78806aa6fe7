"""What is written, in such an order that a run which ends at any moment goes on where it was.

Beside OUT stand, until it is whole, OUT.partial (the rows so far), REJECTS.partial and OUT.state.json, which says how
far both files are good and which position of the input comes next. It is renamed into place, so that it is always
whole; what the files hold beyond it is cut off when the run goes on.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from fastinfer.errors import ConfigurationError

FORMAT = 1
INTERVAL = 2.0  # seconds of work that may be lost


class State(NamedTuple):
    """How far a run is.

    Attributes:
        position: where the input goes on, as its source writes it; None at the beginning.
        scored, rejected: rows.
        size, rejects_size: bytes of the partial files.
        complete: all rows are in them.
    """

    position: Mapping[str, int] | None = None
    scored: int = 0
    rejected: int = 0
    size: int = 0
    rejects_size: int = 0
    complete: bool = False


class Checkpoint:
    """The files of one run.

    Args:
        out, rejects: where they will stand.
        identity: what the output follows from, by name; a run goes on only where it is the same.
        restart: begin anew whatever is there.

    Raises:
        ConfigurationError: a file cannot be written, another run writes it, or what is there is of other input.
    """

    def __init__(self, out: Path, rejects: Path, identity: Mapping[str, Any], *, restart: bool = False) -> None:
        self.out = out
        self.rejects = rejects
        self.identity = dict(identity)
        self.partial = beside(out, ".partial")
        self.partial_rejects = beside(rejects, ".partial")
        self.file = beside(out, ".state.json")
        if restart:
            self.file.unlink(missing_ok=True)
        self.state = self._read()
        self.resumed = self.state.position is not None
        self._data: IO[bytes] | None = None
        self._rejects: IO[bytes] | None = None
        self._saved = time.monotonic()

    def _read(self) -> State:
        try:
            text = self.file.read_bytes()
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise failed(self.file, error) from None
        try:
            document = json.loads(text)
            state = State(**document["state"])
            identity = dict(document["identity"])
        except (ValueError, TypeError, KeyError):
            raise ConfigurationError(f"{self.file} is not a state that this version wrote; --restart begins anew.") \
                from None
        wanted = json.loads(json.dumps(self.identity))
        changed = [name for name in wanted if identity.get(name) != wanted[name]]
        if changed:
            raise ConfigurationError(f"{self.out} was begun with {' and '.join(changed)} that changed since "
                                     f"({state.scored + state.rejected:,} rows are done); --restart begins anew.")
        return state

    def open(self) -> None:
        """Open the partial files where the state says that they are good."""
        self._data = self._open(self.partial, self.state.size)
        self._rejects = self._open(self.partial_rejects, self.state.rejects_size)

    def _open(self, path: Path, size: int) -> IO[bytes]:
        try:
            file = open(path, "r+b" if size else "a+b")  # noqa: SIM115 - closed by `close`
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(f"{path} is being written by another process.") from None
            if os.fstat(file.fileno()).st_size < size:
                raise ConfigurationError(f"{path} is shorter than {self.file} says; --restart begins anew.")
            file.truncate(size)
            file.seek(size)
        except FileNotFoundError:
            if size:
                raise ConfigurationError(f"{path} is gone, and {self.file} counts on it; --restart begins anew.") \
                    from None
            raise ConfigurationError(f"{path.parent} is no folder to write into.") from None
        except OSError as error:
            raise failed(path, error) from None
        return file

    def append(self, data: bytes, rejects: bytes, state: State) -> None:
        """Write a block's rows; `state` is how far the run is then, its sizes aside."""
        assert self._data is not None
        assert self._rejects is not None
        for path, file, written in ((self.partial, self._data, data), (self.partial_rejects, self._rejects, rejects)):
            try:
                file.write(written)
            except OSError as error:
                raise failed(path, error) from None
        size, rejects_size = self.state.size + len(data), self.state.rejects_size + len(rejects)
        self.state = state._replace(size=size, rejects_size=rejects_size)
        if time.monotonic() - self._saved > INTERVAL:
            self.save()

    def save(self) -> None:
        """Make what was appended last, and say so."""
        for path, file in ((self.partial, self._data), (self.partial_rejects, self._rejects)):
            if file is not None:
                try:
                    file.flush()
                    os.fdatasync(file.fileno())
                except OSError as error:
                    raise failed(path, error) from None
        document = {"fastinfer": FORMAT, "state": self.state._asdict(), "identity": self.identity}
        temporary = beside(self.file, ".new")
        try:
            with temporary.open("w") as new:
                json.dump(document, new)
                new.flush()
                os.fdatasync(new.fileno())
            temporary.replace(self.file)
        except OSError as error:
            raise failed(self.file, error) from None
        self._saved = time.monotonic()

    def complete(self) -> None:
        """All rows are there: what is left is to put the files into place."""
        self.state = self.state._replace(complete=True)
        self.save()
        self.close()

    def place(self, partial: Path) -> None:
        """Put the whole output, the rejects, if there are any, and no state into place; an older file goes."""
        try:
            if partial.exists():  # else a run before this one had come so far
                partial.replace(self.out)
            self.partial.unlink(missing_ok=True)
            if self.state.rejects_size and self.partial_rejects.exists():
                self.partial_rejects.replace(self.rejects)
            elif not self.state.rejects_size:
                self.partial_rejects.unlink(missing_ok=True)
                self.rejects.unlink(missing_ok=True)
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise failed(self.out, error) from None

    def close(self) -> None:
        """Close the files; what is in them beyond the state is cut off by the next run."""
        for path, file in ((self.partial, self._data), (self.partial_rejects, self._rejects)):
            if file is not None:
                try:
                    file.close()
                except OSError as error:
                    raise failed(path, error) from None
        self._data = self._rejects = None


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def failed(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{path}: {error.strerror or error}")
