"""Which files can be scored and written, told by their suffixes."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from fastinfer.errors import ConfigurationError
from fastinfer.options import nearest

FORMS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}


class Kind(NamedTuple):
    """What a file holds: `parquet`, `csv` (with its delimiter) or `ndjson`, compressed or not."""

    form: str
    delimiter: str = ","
    compression: str | None = None


def arrow() -> Any:
    """The package pyarrow.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise ConfigurationError("scoring files needs pyarrow:\n  pip install 'fastinfer[score]'") from None
    return pyarrow


def kind_of(path: Path, place: str) -> Kind:
    """By the suffix.

    Raises:
        ConfigurationError: a suffix that says nothing; `place` is what the message calls the path.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    form = FORMS.get(suffix)
    if form is None or (compression and form == "parquet"):
        hint = nearest(suffix, FORMS) if suffix else ""
        raise ConfigurationError(f"{place} is {path}; it takes a name that ends in {', '.join(FORMS)}, the last four "
                                 f"also with .gz behind it.{hint}")
    return Kind(form, "\t" if suffix == ".tsv" else ",", compression)


def inputs_at(path: Path) -> tuple[list[Path], Kind]:
    """The files to score, in order, all of one kind: the file, or what a folder holds, by name.

    Raises:
        ConfigurationError: there is none, or they are not of one kind.
    """
    try:
        if not path.is_dir():
            if not path.exists():
                raise ConfigurationError(f"{path}: no such file.{neighbour(path)}")
            return [path], kind_of(path, "IN")
        files = sorted(each for each in path.iterdir() if not each.name.startswith((".", "_")))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    if not files:
        raise ConfigurationError(f"{path} holds no file to score.")
    kinds = {kind_of(each, f"a file of {path}") for each in files}
    if len(kinds) > 1:
        raise ConfigurationError(f"{path} holds files of several kinds: "
                                 f"{', '.join(sorted({''.join(each.suffixes) for each in files}))}.")
    return files, kinds.pop()


def neighbour(path: Path) -> str:
    try:
        return nearest(path.name, os.listdir(path.absolute().parent))
    except OSError:
        return ""
