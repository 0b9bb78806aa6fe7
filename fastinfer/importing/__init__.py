"""Imports a fitted pipeline: features.json and a model that answer as scikit-learn does, proven on rows.

The model is model.npz, trees for the core, where the estimator is one forest, else model.onnx.

scikit-learn, onnx and pandas are loaded when an import runs, never with the package.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ImportReport", "import_pipeline"]


@dataclass(frozen=True)
class ImportReport:
    """What an import made, and how well it agrees.

    Attributes:
        out: the version folder.
        file: name of the model's file in it.
        estimator: name of the fitted estimator's class.
        columns: raw columns that the model takes.
        features: width of the estimator's matrix.
        dtype: of that matrix, "float32" or "float64".
        task: "classifier" or "regressor".
        rows: rows compared with scikit-learn.
        worst: largest difference by output; absolute, and relative for values over 1. Labels: 0.
        notes: what the operator should know.
    """

    out: Path
    file: str
    estimator: str
    columns: int
    features: int
    dtype: str
    task: str
    rows: int
    worst: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        worst = ", ".join(f"{name} {size:.2g}" for name, size in self.worst.items() if name != "label")
        agreed = "labels equal" if "label" in self.worst else ""
        proof = "; ".join(part for part in (agreed, worst and f"worst difference: {worst}") if part)
        lines = [
            f"imported {self.estimator} ({self.task}): {self.columns} columns, {self.features} features, {self.dtype}",
            f"proven on {self.rows:,} rows against scikit-learn: {proof}",
            *self.notes,
            f"wrote {self.out / 'features.json'} and {self.out / self.file}",
        ]
        return "\n".join(lines)


def import_pipeline(
    pipeline_or_path: Any,
    out: Path | str,
    *,
    sample: Any | None = None,
    trust_pickle: bool = False,
    tolerance: float = 1e-6,
) -> ImportReport:
    """Import a fitted scikit-learn pipeline or estimator (or LightGBM's or XGBoost's) as one version of a model.

    Args:
        pipeline_or_path: the fitted object, or the joblib or pickle file that holds it.
        out: the version folder to make, such as ``models/credit/1``; it must be absent or empty.
        sample: rows to prove the import on, a pandas frame or a .parquet or .csv file; it also tells the columns'
            dtypes. More rows are always made from what the fitted steps know.
        trust_pickle: allow loading a pickle, which runs the code in it.
        tolerance: largest difference allowed; absolute, and relative for values over 1.

    Raises:
        ConfigurationError: a file or folder is wrong, or a package is missing.
        ImportRefusedError: the pipeline cannot be expressed, or the proof failed; the message names the step, or shows
            the worst row.
    """
    from fastinfer.importing.version import import_version

    return import_version(
        pipeline_or_path, Path(out), sample=sample, trust_pickle=trust_pickle, tolerance=tolerance
    )
