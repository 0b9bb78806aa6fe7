"""Where models live: one file, one version's folder, one model's folder, or a repository of models.

    models/credit/model.toml          optional; says which of the versions are loaded
    models/credit/1/model.onnx
    models/credit/1/features.json     optional: the feature program
    models/credit/1/decision.toml     optional: the decision policy of this version, in place of model.toml's
"""

import errno
import fcntl
import os
import re
import signal
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from fastinfer.errors import ConfigurationError, FastinferError, ModelLoadError
from fastinfer.formats import FORMATS, PICKLE, SERVED, format_of, refusal
from fastinfer.options import MODEL_NAME, NAME, RESERVED_MODEL_NAMES, TomlFile, nearest, take_table
from fastinfer.settings import DecisionConfig, ModelConfig

CONFIG = "model.toml"
PROGRAM = "features.json"
DECISION = "decision.toml"
VERSION = re.compile(r"[1-9][0-9]{0,17}")
MOST_FILES = 10_000  # of a version's folder
DEEPEST = 16  # folders within it
GRAIN_NS = 50_000_000  # a file system may give two writes the same time
LAYOUT = "A repository is <name>/<version>/model.onnx, as in models/credit/1/model.onnx."


@dataclass(frozen=True, slots=True)
class Found:
    """One version of a model on disk. With an `error`, the rest may be empty: it is reported and never loaded."""

    name: str
    version: str
    folder: Path
    file: Path | None = None
    kind: str | None = None
    program: Path | None = None
    config: ModelConfig = field(default_factory=ModelConfig)
    error: FastinferError | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """What `find` found: versions by model name, highest version first, and a sentence for whatever is not a model.

    `single` says that the path is one model, not a repository of models.
    """

    found: list[Found]
    stray: list[str] = field(default_factory=list)
    single: bool = True


def find(path: Path, name: str | None = None, *, empty: bool = False) -> Repository:
    """The models under `path`. A model at fault is kept with its error, so that the others can be served.

    Args:
        path: a model file, a version's folder, a model's folder, or a repository of models.
        name: the model's name, where `path` is one model.
        empty: whether a folder may hold no model yet.

    Raises:
        ConfigurationError: no such path, no model in it, or a name for more than one model.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return Repository([_bare(path, name)])
        if not stat.S_ISDIR(mode):
            raise ConfigurationError(f"{path} is neither a file nor a folder.")
        repository = _folder(path, name)
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file or folder.{_neighbour(path)}") from None
    except OSError as error:
        raise ConfigurationError(f"{error.filename or path}: {error.strerror}") from None
    if not repository.found and not empty:
        why = "".join(f" {each}" for each in repository.stray[:1])
        raise ConfigurationError(f"{path} holds no model.{why} {LAYOUT}")
    return repository


def find_model(path: Path, model: str) -> list[Found]:
    """The versions of one model of a repository of models, highest first; none where there is no such model.

    Raises:
        ConfigurationError: the folder cannot be read.
    """
    folder = path / model
    if not MODEL_NAME.fullmatch(model) or model in RESERVED_MODEL_NAMES:
        return []
    try:
        if folder.is_dir() and (_is_model(folder) or _model_files(folder)):
            return _model(folder, model).found
    except OSError as error:
        raise ConfigurationError(f"{error.filename or folder}: {error.strerror}") from None
    return []


def check_name(name: str, source: Path) -> None:
    """Raises ConfigurationError for a name that a URL path cannot carry as it is; `source` is where it comes from."""
    if name in RESERVED_MODEL_NAMES:
        raise ConfigurationError(f"{source} names the model 'stats', which is reserved; rename it, or, where it is "
                                 "served alone, use --name.")
    if not MODEL_NAME.fullmatch(name):
        raise ConfigurationError(f"{source} cannot name a model, which takes {NAME.accepts}; rename it, or, where it "
                                 f"is served alone, use --name, as in --name {suggested(name)}.")


def suggested(name: str) -> str:
    """The nearest name that is allowed."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:128]
    return "model" if not plain or plain in RESERVED_MODEL_NAMES else plain


def _neighbour(path: Path) -> str:
    try:
        return nearest(path.name, (each.name for each in path.absolute().parent.iterdir()))
    except OSError:
        return ""


def _bare(file: Path, name: str | None) -> Found:
    found = Found(name or file.stem, "1", file.parent, file)
    try:
        if file.name == PROGRAM:
            raise ModelLoadError(f"{file} is a feature program; serve the folder in which it lies, {file.parent}.")
        form = format_of(file)
        if refused := refusal(form, file):
            raise refused
        if name is None:
            check_name(file.stem, file)
        # A model.onnx with a features.json beside it is what the import writes: the file alone would be half a model.
        if file.stem != "model":
            return replace(found, kind=form.kind)
        program, config = _beside(file.parent, PROGRAM), _decided(file.parent, found.config)
        return replace(found, kind=form.kind, program=program, config=config)
    except FastinferError as error:
        return replace(found, error=error)


def _folder(path: Path, name: str | None) -> Repository:
    folders = [each for each in _visible(path) if each.is_dir()]
    if any(_is_model(each) for each in folders):
        if name is not None:
            raise ConfigurationError(f"--name {name} is for one model, and {path} is a repository of models.")
        return _repository(path)
    if any(map(_is_version, folders)) or (os.path.lexists(path / CONFIG) and not _model_files(path)):
        return _model(path, name or path.resolve().name)
    if _model_files(path):
        resolved = path.resolve()
        if _is_version(resolved):
            config = _config(resolved.parent)
            return Repository([_version(path, name or resolved.parent.name, resolved.name, config)])
        return Repository([_version(path, name or resolved.name, "1", _config(path))])
    return _repository(path)


def _repository(path: Path) -> Repository:
    result = Repository([], single=False)
    for each in _visible(path):
        if not each.is_dir():
            result.stray.append(_stray_file(each, path))
        elif not _readable(each) and MODEL_NAME.fullmatch(each.name):
            result.found.append(Found(each.name, "", each, error=ConfigurationError(f"{each}: Permission denied")))
        elif _readable(each) and (_is_model(each) or _model_files(each)):
            model = _model(each, each.name)
            result.found.extend(model.found)
            result.stray.extend(model.stray)
        else:
            result.stray.append(f"{each} holds no version folder.")
    return result


def _stray_file(file: Path, path: Path) -> str:
    if _is_model_file(file):
        place = path / suggested(file.stem) / "1" / f"model{file.suffix}"
        return f"{file} is in no version folder; it would be served as {place}."
    return f"{file} is not part of a model."


def _model(path: Path, name: str) -> Repository:
    """The versions of one model that are to be loaded, highest first."""
    config = _config(path)
    if isinstance(config, ModelConfig) and config.triton is not None:
        return _elsewhere(path, name, config)
    if isinstance(config, FastinferError) and not any(map(_is_version, _visible(path))):
        return Repository([Found(name, "", path, error=config)])
    result = Repository([])
    versions: dict[int, Path] = {}
    for each in _visible(path):
        if _is_version(each):
            versions[int(each.name)] = each
        elif each.name != CONFIG:
            result.stray.append(f"{each} is not a version folder, whose name is a number: 1, 2, …")
    for number in _chosen(versions, config):
        if number in versions:
            result.found.append(_version(versions[number], name, str(number), config))
        else:
            missing = ConfigurationError(f"{path / CONFIG} asks for version {number}, and there is no "
                                         f"{path / str(number)}.")
            result.found.append(Found(name, str(number), path / str(number), error=missing))
    if not versions:
        files = _model_files(path)
        wanted = f"move {files[0].name} to {path / '1' / files[0].name}" if files else f"its files go to {path / '1'}"
        missing = ConfigurationError(f"{path} has no version folder; {wanted}.")
        return Repository([Found(name, "", path, error=missing)])
    return result


def _elsewhere(path: Path, name: str, config: ModelConfig) -> Repository:
    """A model that another server runs: its version is told there, and a folder of one is only for what runs here."""
    assert config.triton is not None
    result = Repository([])
    folders = [each for each in _visible(path) if _is_version(each)]
    for folder in sorted(folders, key=lambda each: int(each.name), reverse=True) or [path]:
        version = folder.name if folders else str(config.triton.version or "")
        found = Found(name, version, folder, path / CONFIG, config.runtime)
        try:
            check_name(name, path)
            if folders and config.triton.version not in (None, int(version)):
                raise ConfigurationError(f"{path / CONFIG} names version {config.triton.version}, and {folder} is of "
                                         "another.")
            there = replace(config.triton, version=int(version)) if folders else config.triton
            program = _beside(folder, PROGRAM)
            found = replace(found, program=program, config=_decided(folder, replace(config, triton=there)))
        except FastinferError as error:
            found = replace(found, error=error)
        result.found.append(found)
    return result


def _chosen(versions: Iterable[int], config: ModelConfig | FastinferError) -> list[int]:
    """Highest first: those of the policy, and those that an alias names."""
    if isinstance(config, FastinferError):
        return sorted(versions, reverse=True)
    return sorted({*config.version_policy.chosen(versions), *config.aliases.values()}, reverse=True)


def _version(folder: Path, name: str, version: str, config: ModelConfig | FastinferError) -> Found:
    found = Found(name, version, folder)
    try:
        if isinstance(config, FastinferError):
            raise config
        found = replace(found, config=config)
        check_name(name, folder if not _is_version(folder) else folder.parent)
        if _is_version(folder) and os.path.lexists(folder / CONFIG):
            raise ConfigurationError(f"{folder / CONFIG} belongs to the model, not to a version: "
                                     f"move it to {folder.parent / CONFIG}.")
        found = replace(found, config=_decided(folder, config))
        file = _model_file(folder, config)
        form = format_of(file)
        program = _beside(folder, PROGRAM)
        return replace(found, file=file, kind=form.kind, program=program, error=refusal(form, file))
    except FastinferError as error:
        return replace(found, error=error)
    except OSError as error:
        return replace(found, error=ModelLoadError(f"{error.filename}: {error.strerror}"))


def _beside(folder: Path, name: str) -> Path | None:
    """The file of that name, where there is one.

    Raises:
        ConfigurationError: it is none. Without what it was to say, the model would answer something else.
    """
    path = folder / name
    if path.is_file():
        return path
    if os.path.lexists(path):
        what = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "not a file"
        raise ConfigurationError(f"{path} is {what}.")
    return None


def _config(folder: Path) -> ModelConfig | FastinferError:
    try:
        path = _beside(folder, CONFIG)
        return ModelConfig() if path is None else ModelConfig.read(path)
    except FastinferError as error:
        return error


def _decided(folder: Path, config: ModelConfig) -> ModelConfig:
    """What model.toml says, with the version's own policy where it has one."""
    path = _beside(folder, DECISION)
    if path is None:
        return config
    file = TomlFile(path)
    take_table((), file, tables=["decision"])
    if "decision" not in file.table:
        raise ConfigurationError(f"{path} has no table [decision].")
    return replace(config, decision=DecisionConfig.read(file))


def _model_file(folder: Path, config: ModelConfig) -> Path:
    """The one model file of a version's folder; what else lies there (weights, notes) is its own business."""
    files = [each for each in _model_files(folder)
             if config.runtime is None or FORMATS[each.suffix.lower()].kind == config.runtime]
    files = [each for each in files if FORMATS[each.suffix.lower()].kind in SERVED] or files
    files = [each for each in files if FORMATS[each.suffix.lower()] is not PICKLE] or files  # what others are made from
    named = [each for each in files if each.stem == "model"] or files
    if not named:
        wanted = "model.onnx" if config.runtime is None else f"model file for runtime = {config.runtime!r}"
        raise ModelLoadError(f"{folder} has no {wanted}.")
    if len(named) > 1:
        kinds = {FORMATS[each.suffix.lower()].kind for each in named}
        way = (f"say which in {CONFIG}, as in runtime = \"{FORMATS[named[0].suffix.lower()].kind}\"" if len(kinds) > 1
               else f"call one of them model{named[0].suffix}")
        raise ModelLoadError(f"{folder} has several models, {', '.join(each.name for each in named)}; "
                             f"keep one, or {way}.")
    return named[0]


def _model_files(folder: Path) -> list[Path]:
    return [each for each in _visible(folder) if _is_model_file(each) and each.is_file()]


def _is_model_file(path: Path) -> bool:
    form = FORMATS.get(path.suffix.lower())
    return form is not None and path.name != PROGRAM and (path.stem == "model" or form.mark is None)


def _is_version(path: Path) -> bool:
    return VERSION.fullmatch(path.name) is not None and path.is_dir()


def _is_model(path: Path) -> bool:
    """A folder with versions in it, or with a model.toml that waits for some."""
    if not _readable(path):
        return False
    if any(map(_is_version, _visible(path))):
        return True
    return os.path.lexists(path / CONFIG) and not _is_version(path)


def _readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, in order of name; hidden entries (.git, Kubernetes' ..data) are nobody's business."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


# ---- what the files are, and whether they stay so ----------------------------------------------------------------
class Stamp(NamedTuple):
    """What tells whether a version's files are the same as before.

    Attributes:
        files: path, inode, size and times of each.
        size: bytes of all of them.
        fresh: whether one was written so shortly before that a change after it could go unnoticed.
    """

    files: tuple[tuple[str, int, int, int, int], ...]
    size: int
    fresh: bool

    def same(self, other: "Stamp") -> bool:
        """Whether nothing has changed since this one was taken."""
        return self.files == other.files and not self.fresh


def stamp(found: Found) -> Stamp:
    """The stamp of a version as it lies there now.

    Raises:
        ModelLoadError: a file is gone, or there are too many.
    """
    now = time.time_ns()
    entries = []
    try:
        for path in files_of(found):
            status = path.stat()
            entries.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except OSError as error:
        raise ModelLoadError(f"{error.filename}: {error.strerror}") from None
    newest = max((max(each[3:]) for each in entries), default=0)
    return Stamp(tuple(entries), sum(each[2] for each in entries), newest > now - GRAIN_NS)


def files_of(found: Found) -> list[Path]:
    """Every file that the version's load may read, in order of name; raises as `stamp` does, or OSError."""
    if found.file is not None and found.file.stem != "model" and not _is_version(found.folder):
        return [found.file]  # one file in a folder of somebody's
    result: list[Path] = []
    folders = [(found.folder, 0)]
    while folders:
        folder, depth = folders.pop()
        for each in _visible(folder):
            if not each.is_dir():
                result.append(each)
            elif each.name != "__pycache__" and depth < DEEPEST and (depth or _is_version(found.folder)):
                folders.append((each, depth + 1))
        if len(result) > MOST_FILES:
            raise ModelLoadError(f"{found.folder} holds over {MOST_FILES} files.")
    return result


def outside(root: Path, found: Found) -> Path | None:
    """The first of a version's files that a symbolic link leads to from outside of `root`, or None.

    Raises:
        ModelLoadError: a folder cannot be read, or holds too many files.
    """
    inside = root.resolve()
    try:
        for path in (found.folder.parent / CONFIG, found.folder, *files_of(found)):
            if path.exists() and not path.resolve().is_relative_to(inside):
                return path
    except OSError as error:
        raise ModelLoadError(f"{error.filename}: {error.strerror}") from None
    return None


def being_written(found: Found) -> Path | None:
    """A file of the version that a process of this machine has open for writing, as far as that can be told."""
    try:
        return next(filter(is_being_written, files_of(found)), None)
    except (OSError, ModelLoadError):  # they have gone just now, or are too many: the stamp says so
        return None


def is_being_written(file: Path) -> bool:
    """The kernel lends out a read lease of a file only while nobody has it open for writing (fcntl(2), F_SETLEASE)."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Who opens it just now makes the kernel send the lender a signal: one that is ignored, not SIGIO, which kills.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN  # else the file is another user's, or its file system lends nothing
    finally:
        os.close(descriptor)
    return False
