"""Where models live: one file, one version's folder, one model's folder, or a repository of models.

    models/credit/model.toml          optional
    models/credit/1/model.onnx
    models/credit/1/features.json     optional: the feature program
    models/credit/1/decision.toml     optional: the decision policy of this version, in place of model.toml's
"""

import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastinfer.errors import ConfigurationError, FastinferError, ModelLoadError
from fastinfer.formats import FORMATS, PICKLE, SERVED, format_of, refusal
from fastinfer.options import MODEL_NAME, NAME, RESERVED_MODEL_NAMES, TomlFile, nearest, take_table
from fastinfer.settings import DecisionConfig, ModelConfig

CONFIG = "model.toml"
PROGRAM = "features.json"
DECISION = "decision.toml"
VERSION = re.compile(r"[1-9][0-9]{0,17}")
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
    """What `find` found: versions by model name, highest version first, and a sentence for whatever is not a model."""

    found: list[Found]
    stray: list[str] = field(default_factory=list)


def find(path: Path, name: str | None = None) -> Repository:
    """The models under `path`. A model at fault is kept with its error, so that the others can be served.

    Args:
        path: a model file, a version's folder, a model's folder, or a repository of models.
        name: the model's name, where `path` is one model.

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
    if not repository.found:
        why = "".join(f" {each}" for each in repository.stray[:1])
        raise ConfigurationError(f"{path} holds no model.{why} {LAYOUT}")
    return repository


def check_name(name: str, source: str) -> None:
    """Raises ConfigurationError for a name that a URL path cannot carry as it is; `source` is where it comes from."""
    if name in RESERVED_MODEL_NAMES:
        raise ConfigurationError(f"{source} names the model 'stats', which is reserved; choose another, or use --name.")
    if not MODEL_NAME.fullmatch(name):
        raise ConfigurationError(f"{source} cannot name a model, which takes {NAME.accepts}; "
                                 f"choose another with --name, as in --name {suggested(name)}.")


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
        if refused := refusal(form, file, suggested(found.name)):
            raise refused
        if name is None:
            check_name(file.stem, str(file))
        # A model.onnx with a features.json beside it is what the import writes: the file alone would be half a model.
        if file.stem != "model":
            return replace(found, kind=form.kind)
        program = file.parent / PROGRAM if (file.parent / PROGRAM).is_file() else None
        return replace(found, kind=form.kind, program=program, config=_decided(file.parent, found.config))
    except FastinferError as error:
        return replace(found, error=error)


def _folder(path: Path, name: str | None) -> Repository:
    folders = [each for each in _visible(path) if each.is_dir()]
    if any(_is_model(each) for each in folders):
        if name is not None:
            raise ConfigurationError(f"--name {name} is for one model, and {path} is a repository of models.")
        return _repository(path)
    if any(map(_is_version, folders)) or ((path / CONFIG).exists() and not _model_files(path)):
        return _model(path, name or path.resolve().name)
    if _model_files(path):
        resolved = path.resolve()
        if _is_version(resolved):
            config = _config(resolved.parent)
            return Repository([_version(path, name or resolved.parent.name, resolved.name, config)])
        return Repository([_version(path, name or resolved.name, "1", _config(path))])
    return _repository(path)


def _repository(path: Path) -> Repository:
    result = Repository([])
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
    """All versions of one model, highest first."""
    config = _config(path)
    if isinstance(config, ModelConfig) and config.triton is not None:
        return _elsewhere(path, name, config)
    if isinstance(config, FastinferError) and not any(map(_is_version, _visible(path))):
        return Repository([Found(name, "", path, error=config)])
    result = Repository([])
    versions = []
    for each in _visible(path):
        if _is_version(each):
            versions.append(each)
        elif each.name != CONFIG:
            result.stray.append(f"{each} is not a version folder, whose name is a number: 1, 2, …")
    for each in sorted(versions, key=lambda folder: int(folder.name), reverse=True):
        result.found.append(_version(each, name, each.name, config))
    if not versions:
        files = _model_files(path)
        wanted = f"move {files[0].name} to {path / '1' / files[0].name}" if files else f"its files go to {path / '1'}"
        result.stray.clear()
        result.found.append(Found(name, "", path, error=ConfigurationError(f"{path} has no version folder; {wanted}.")))
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
            check_name(name, str(path))
            if folders and config.triton.version not in (None, int(version)):
                raise ConfigurationError(f"{path / CONFIG} names version {config.triton.version}, and {folder} is of "
                                         "another.")
            there = replace(config.triton, version=int(version)) if folders else config.triton
            program = folder / PROGRAM if (folder / PROGRAM).is_file() else None
            found = replace(found, program=program, config=_decided(folder, replace(config, triton=there)))
        except FastinferError as error:
            found = replace(found, error=error)
        result.found.append(found)
    return result


def _version(folder: Path, name: str, version: str, config: ModelConfig | FastinferError) -> Found:
    found = Found(name, version, folder)
    try:
        if isinstance(config, FastinferError):
            raise config
        found = replace(found, config=config)
        check_name(name, str(folder if not _is_version(folder) else folder.parent))
        if _is_version(folder) and (folder / CONFIG).exists():
            raise ConfigurationError(f"{folder / CONFIG} belongs to the model, not to a version: "
                                     f"move it to {folder.parent / CONFIG}.")
        found = replace(found, config=_decided(folder, config))
        file = _model_file(folder, config)
        form = format_of(file)
        program = folder / PROGRAM if (folder / PROGRAM).is_file() else None
        return replace(found, file=file, kind=form.kind, program=program, error=refusal(form, file, suggested(name)))
    except FastinferError as error:
        return replace(found, error=error)
    except OSError as error:
        return replace(found, error=ModelLoadError(f"{error.filename}: {error.strerror}"))


def _config(folder: Path) -> ModelConfig | FastinferError:
    try:
        return ModelConfig.read(folder / CONFIG) if (folder / CONFIG).exists() else ModelConfig()
    except FastinferError as error:
        return error


def _decided(folder: Path, config: ModelConfig) -> ModelConfig:
    """What model.toml says, with the version's own policy where it has one."""
    path = folder / DECISION
    if not path.is_file():
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
    return (path / CONFIG).exists() and not _is_version(path)


def _readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, in order of name; hidden entries (.git, Kubernetes' ..data) are nobody's business."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))
