"""The script that `fastinfer score` is put beside: pandas, scikit-learn's preprocessing, onnxruntime.

    python bench/score_script.py pipeline.joblib estimator.onnx in.parquet out.parquet

As people write it: the frame at once, the fitted ColumnTransformer, one call of the session with its default threads.
"""

import sys

import joblib
import numpy as np
import onnxruntime
import pandas

pipeline, estimator, source, out = sys.argv[1:]
preprocessing = joblib.load(pipeline)[:-1]
frame = pandas.read_parquet(source)
features = preprocessing.transform(frame)
if hasattr(features, "toarray"):
    features = features.toarray()
session = onnxruntime.InferenceSession(estimator)
label, probabilities = session.run(None, {session.get_inputs()[0].name: features.astype(np.float32)})
answers = pandas.DataFrame({"row": np.arange(len(frame)), "label": label})
for i, name in enumerate(joblib.load(pipeline).classes_):
    answers[f"probabilities.{name}"] = probabilities[:, i]
answers.to_parquet(out, index=False)
