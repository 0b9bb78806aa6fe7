"""One import from end to end: load, write program and model, prove, put the folder in place."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastinfer.errors import ConfigurationError
from fastinfer.importing import ImportReport, loading


def import_version(
    source: Any, out: Path, *, sample: Any | None, trust_pickle: bool, tolerance: float
) -> ImportReport:
    """See `fastinfer.importing.import_pipeline`."""
    refuse_existing(out)
    for module in ("sklearn", "onnx", "pandas"):
        loading.needed(module)
    from fastinfer.importing.conversion import convert
    from fastinfer.importing.trial import Trial

    if isinstance(source, str | os.PathLike):
        source = loading.load_pipeline(Path(source), trust_pickle=trust_pickle)
    if isinstance(sample, str | os.PathLike):
        sample = loading.load_sample(Path(sample))
    imported = convert(source, sample)
    trial = Trial(imported, tolerance)
    trial.prove()
    with placed(out) as folder:
        imported.program.save(folder / "features.json")
        name, data = imported.model.file()
        (folder / name).write_bytes(data)
    return ImportReport(
        out=out,
        file=name,
        estimator=imported.estimator,
        columns=len(imported.program.columns),
        features=imported.width,
        dtype=imported.model.dtype,
        task=imported.model.task.kind,
        rows=trial.rows,
        worst=trial.worst,
        notes=trial.notes,
    )


def refuse_existing(out: Path) -> None:
    """A version never changes under a running server: only an absent or empty folder is written."""
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out}: is a file; a version is a folder, such as models/credit/1")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigurationError(f"{out}: exists and is not empty; import into a new version folder")


@contextmanager
def placed(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when everything is written, and vanishes when something fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
        os.rename(folder, out)  # onto an empty folder too; fails on one that another import has filled meanwhile
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
