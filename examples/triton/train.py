"""Trains a network on the credit applications of the demo: features for fastinfer, a network for Triton.

    python examples/triton/train.py --sample .demo/sample.parquet --out .demo/triton

`sample.parquet` is what examples/credit/train.py writes: raw rows with their labels.
"""

import argparse
from pathlib import Path

import joblib
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

LABEL = "status"
TEXT = ["home", "marital", "records", "job"]
SEED = 7


def untrained(numbers: list[str]) -> Pipeline:
    """What fastinfer does, named and fitted, then what Triton does."""
    features = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), numbers),
        ("text", make_pipeline(SimpleImputer(strategy="most_frequent"),
                               OneHotEncoder(handle_unknown="ignore", sparse_output=False)), TEXT),
    ])
    network = MLPClassifier((64, 32), alpha=0.1, early_stopping=True, random_state=SEED)
    return Pipeline([("features", features), ("network", network)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the network of the Triton example.")
    parser.add_argument("--sample", type=Path, required=True, metavar="FILE", help="raw rows with their labels")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for network.joblib")
    options = parser.parse_args()
    frame = pd.read_parquet(options.sample)
    columns = [name for name in frame.columns if name != LABEL]
    train, test = train_test_split(frame, test_size=0.25, stratify=frame[LABEL], random_state=SEED)
    pipeline = untrained([name for name in columns if name not in TEXT]).fit(train[columns], train[LABEL])
    bad = pipeline.predict_proba(test[columns])[:, list(pipeline.classes_).index("bad")]
    options.out.mkdir(parents=True, exist_ok=True)
    joblib.dump(pipeline, options.out / "network.joblib", compress=3)
    auc = roc_auc_score(test[LABEL] == "bad", bad)
    print(f"trained on {len(train):,} applications; held out {len(test):,}: AUC {auc:.3f}")


if __name__ == "__main__":
    main()
