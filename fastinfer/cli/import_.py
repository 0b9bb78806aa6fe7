"""`fastinfer import`: a fitted pipeline becomes a version of a model, proven to answer as the pipeline does."""

from pathlib import Path

from fastinfer.importing import import_pipeline


def run_import(pipeline: Path, out: Path, *, sample: Path | None, trust_pickle: bool) -> int:
    """Import and print what was made and how it was proven. Returns 0.

    Raises:
        ConfigurationError: a file or folder is wrong, or a package is missing.
        ImportRefusedError: the pipeline cannot be imported exactly.
    """
    print(import_pipeline(pipeline, out, sample=sample, trust_pickle=trust_pickle))
    print(f"serve it: fastinfer serve {_served(out)}")
    return 0


def _served(out: Path) -> Path:
    """The repository around ``models/<name>/<version>``, or the version's own folder where there is none."""
    return out.parent.parent if out.name.isdigit() else out
