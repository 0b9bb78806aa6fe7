"""Sparse rows: CSR where scikit-learn gives it, what works on whole rows of text, matrices too wide to be served."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Start
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, VarianceThreshold, chi2
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import ComplementNB, MultinomialNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    MaxAbsScaler,
    Normalizer,
    OneHotEncoder,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn_pipelines import dense, quietly

import fastinfer
from fastinfer.errors import ConfigurationError, ImportRefusedError, ModelLoadError
from fastinfer.importing import import_pipeline
from fastinfer.preprocessing.program import Program

EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
RNG = np.random.default_rng(7)
WORDS = ["the", "quick", "Brown", "fox", "lazy", "DOG", "naïve", "ΣΑΣ", "x1", "don't", "free", "money", "spam"]
BODIES = [" ".join(RNG.choice(WORDS, RNG.integers(0, 12))) for _ in range(120)]
FRAME = pd.DataFrame({
    "body": BODIES, "title": BODIES[::-1], "age": np.where(RNG.random(120) < 0.2, np.nan, RNG.normal(size=120)),
    "job": RNG.choice(["clerk", "cook", "Ärztin"], 120),
})
SPAM = np.array(["spam" if "free" in body or "money" in body else "ham" for body in BODIES])


def imported(fitted: Any, **options: Any) -> Program:
    return quietly(lambda: Program.from_sklearn(fitted, **options))


def stored(matrix: Any) -> list[Any]:
    return [matrix.shape, matrix.indptr.tolist(), matrix.indices.tolist(), matrix.data.tolist()]


# ---- CSR where scikit-learn gives it ------------------------------------------------------------------------------
vectorizers = st.sampled_from([
    CountVectorizer(), TfidfVectorizer(), TfidfVectorizer(sublinear_tf=True),
    CountVectorizer(binary=True, dtype=np.float32),
    TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), dtype=np.float32), HashingVectorizer(n_features=32),
    HashingVectorizer(n_features=5, norm=None, ngram_range=(1, 2)),
])
after_text = st.sampled_from([
    [], [], [TfidfTransformer()], [TfidfTransformer(norm="l1")], [Normalizer("l1")], [Normalizer("max")],
    [MaxAbsScaler()],  [StandardScaler(with_mean=False)], [SelectKBest(k=3)], [VarianceThreshold()], [Binarizer()],
    [SelectKBest(k=5), TfidfTransformer()], [MaxAbsScaler(), Normalizer()], [TruncatedSVD(2)],
])


@st.composite
def text_parts(draw: st.DrawFn, depth: int = 0) -> Any:
    if depth == 0 and draw(st.integers(0, 2)) == 0:
        parts = [(f"u{i}", draw(text_parts(1))) for i in range(draw(st.integers(1, 3)))]
        weights = {"u0": draw(st.sampled_from([0.3, 2, -1.5]))} if draw(st.booleans()) else None
        return make_pipeline(FeatureUnion(parts, transformer_weights=weights), *draw(after_text))
    return make_pipeline(draw(vectorizers), *draw(after_text))


@EXAMPLES
@given(st.data())
def test_frames_with_text(data: st.DataObject) -> None:
    parts: list[Any] = [("body", data.draw(text_parts()), data.draw(st.sampled_from(["body", 0])))]
    if data.draw(st.booleans()):
        parts.append(("title", data.draw(text_parts()), "title"))
    if data.draw(st.booleans()):
        parts.append(("age", make_pipeline(SimpleImputer(), StandardScaler()), ["age"]))
    if data.draw(st.booleans()):
        parts.append(("job", OneHotEncoder(sparse_output=data.draw(st.booleans()), handle_unknown="ignore"), ["job"]))
    whole: Any = ColumnTransformer(data.draw(st.permutations(parts)), transformer_weights={"body": data.draw(
        st.sampled_from([1.0, 0.25]))}, sparse_threshold=data.draw(st.sampled_from([0.0, 0.3, 1.0])))
    whole = make_pipeline(whole, *data.draw(st.sampled_from([[], [], [MaxAbsScaler()], [Normalizer()]])))
    try:
        quietly(whole.fit, FRAME, np.arange(120) % 2)
    except ValueError:
        assume(False)
    dtype = data.draw(st.sampled_from(["float64", "float32"]))
    try:
        program = imported(whole, sample=FRAME, dtype=dtype)
    except ImportRefusedError as refusal:
        message = str(refusal)
        assume("computes in" not in message and "float32 text" not in message and "would shift" not in message
               and "infinity" not in message)
        raise
    rows = FRAME.iloc[[3, 1, 4, 15, 92]]
    expected, got = quietly(whole.transform, rows), program.transform(rows)
    exact = all(level == "exact" for level in program.precision)
    assert hasattr(expected, "tocsr") == hasattr(got, "tocsr")
    if exact:
        np.testing.assert_array_equal(dense(expected, dtype), dense(got, dtype))
    else:
        np.testing.assert_allclose(dense(got, dtype), dense(expected, dtype), rtol=2.0**-22, atol=1e-12)
    if exact and hasattr(expected, "tocsr"):
        assert stored(got) == stored(expected.tocsr().astype(dtype))
    np.testing.assert_array_equal(program.transform_dense(rows), dense(got, dtype))
    if not any(isinstance(step, HashingVectorizer) for step in walk(whole)):
        assert list(program.get_feature_names_out()) == list(whole.get_feature_names_out())
    again = Program.from_json(program.to_json())
    np.testing.assert_array_equal(again.transform_dense(rows), program.transform_dense(rows))


def walk(step: Any) -> Any:
    yield step
    for attribute in ("steps", "transformer_list", "transformers"):
        for part in getattr(step, attribute, ()):
            yield from walk(part[1])


def test_zeros_that_scikit_learn_stores() -> None:
    """Two words that fall into one column with opposite signs: a stored zero, and a one where binary."""
    for binary in (False, True):
        hashing = HashingVectorizer(n_features=1, norm=None, binary=binary)
        serve = ["a b c d e f g h" * 3, "free money", "", *WORDS]
        expected = hashing.transform([*serve, *[f"{a} {b}" for a in WORDS for b in WORDS]])
        got = imported(hashing).transform([*serve, *[f"{a} {b}" for a in WORDS for b in WORDS]])
        assert stored(got) == stored(expected)
        assert (expected.data == 0).any() != binary


def test_one_hot_gives_csr_and_a_dense_matrix_for_serving() -> None:
    encoder = OneHotEncoder().fit(FRAME[["job"]])
    program = imported(encoder, sample=FRAME[["job"]])
    assert stored(program.transform(FRAME[["job"]])) == stored(encoder.transform(FRAME[["job"]]))
    assert program.transform_dense(FRAME[["job"]]).shape == (120, 3)
    assert program.transform(FRAME[["job"]][:0]).shape == (0, 3)
    assert json.loads(program.to_json())["output"]["sparse"] is True


# ---- a list of texts ------------------------------------------------------------------------------------------------
def test_every_holder_of_one_column() -> None:
    vectorizer = TfidfVectorizer().fit(BODIES)
    program = imported(vectorizer)
    assert [column.name for column in program.columns] == ["text"]
    expected = stored(program.transform(BODIES))
    for data in (pd.Series(BODIES), np.array(BODIES, dtype=object), np.array(BODIES), {"text": BODIES}, tuple(BODIES),
                 pd.DataFrame({"text": BODIES}), [{"text": body} for body in BODIES]):
        assert stored(program.transform(data)) == expected
    named = imported(vectorizer, sample=pd.Series(BODIES, name="body"))
    assert [column.name for column in named.columns] == ["body"]


# ---- wide ---------------------------------------------------------------------------------------------------------
def test_a_wide_program_gives_csr_only(tmp_path: Path) -> None:
    hashing = HashingVectorizer()
    program = imported(hashing)
    assert stored(program.transform(BODIES)) == stored(hashing.transform(BODIES))
    assert len(program.to_json()) < 5000
    with pytest.raises(ConfigurationError, match="1,048,576 features are too many for a dense array"):
        program.transform_dense(BODIES)
    document = json.loads(program.to_json())
    values = document["certificate"]["expected"]["values"]
    document["certificate"]["expected"]["values"] = values[:-4] + "AAA="
    with pytest.raises(ConfigurationError, match=r"\$\.certificate\.expected|golden row"):
        Program.from_json(json.dumps(document))
    document["output"]["sparse"] = False
    with pytest.raises(ConfigurationError, match="1048576 features; a program gives 1 to 16,384"):
        Program.from_json(json.dumps(document))


def mixed(vectorizer: Any) -> ColumnTransformer:
    return ColumnTransformer([("text", vectorizer, "body"), ("job", OneHotEncoder(handle_unknown="ignore"), ["job"]),
                              ("age", make_pipeline(SimpleImputer(), StandardScaler()), ["age"])])


WIDE = 2**18
ESTIMATORS: dict[str, Any] = {
    "sgd": make_pipeline(HashingVectorizer(n_features=WIDE), SGDClassifier(loss="log_loss", random_state=0)),
    "default": make_pipeline(HashingVectorizer(ngram_range=(1, 2)), LinearSVC()),
    "mixed": make_pipeline(mixed(HashingVectorizer(n_features=WIDE)), LogisticRegression()),
    "tfidf": make_pipeline(HashingVectorizer(n_features=2**16, alternate_sign=False, norm=None),
                           TfidfTransformer(sublinear_tf=True), MultinomialNB()),
    "complement": make_pipeline(HashingVectorizer(n_features=2**15, alternate_sign=False), ComplementNB()),
    "scaled": make_pipeline(HashingVectorizer(n_features=2**15), MaxAbsScaler(), LogisticRegression()),
    "calibrated": make_pipeline(HashingVectorizer(n_features=2**16), CalibratedClassifierCV(LinearSVC(), cv=3)),
    "calibrated-pipeline": CalibratedClassifierCV(make_pipeline(HashingVectorizer(n_features=2**16), LinearSVC()),
                                                  cv=3),
    "searched": GridSearchCV(make_pipeline(HashingVectorizer(n_features=2**15), LogisticRegression()),
                             {"logisticregression__C": [1.0, 10.0]}, cv=3),
    "voting": VotingClassifier([
        ("wide", make_pipeline(HashingVectorizer(n_features=2**15), LogisticRegression())),
        ("narrow", make_pipeline(TfidfVectorizer(), LogisticRegression())),
        ("trees", make_pipeline(CountVectorizer(), RandomForestClassifier(5, random_state=0))),
    ], voting="soft"),
    "svd": make_pipeline(HashingVectorizer(n_features=2**15), TruncatedSVD(4, random_state=0),
                         RandomForestClassifier(5, random_state=0)),
    "best": make_pipeline(HashingVectorizer(n_features=2**15, alternate_sign=False), SelectKBest(chi2, k=8),
                          RandomForestClassifier(5, random_state=0)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_linear_estimators_end_the_program(name: str, tmp_path: Path) -> None:
    framed = name == "mixed"
    rows = FRAME if framed else BODIES
    estimator = quietly(ESTIMATORS[name].fit, rows, SPAM)
    report = quietly(lambda: import_pipeline(estimator, tmp_path / "m" / "1", sample=FRAME if framed else None))
    assert report.features < 200
    model = fastinfer.load(tmp_path / "m")
    got = model.predict(rows)
    np.testing.assert_array_equal(got["label"].ravel(), estimator.predict(rows))
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(got["probabilities"], estimator.predict_proba(rows), atol=1e-6)
    ops = [step["op"] for step in json.loads((tmp_path / "m" / "1" / "features.json").read_text())["steps"]]
    assert ("dot" in ops) == (name != "best")


def test_a_wide_regressor(tmp_path: Path) -> None:
    pipeline = make_pipeline(mixed(HashingVectorizer(n_features=WIDE, ngram_range=(1, 2))), Ridge())
    pipeline.fit(FRAME, RNG.normal(size=120))
    import_pipeline(pipeline, tmp_path / "m" / "1", sample=FRAME)
    got = fastinfer.load(tmp_path / "m").predict(FRAME)["value"]
    np.testing.assert_allclose(got.ravel(), pipeline.predict(FRAME), rtol=1e-12)


def test_other_estimators_of_a_wide_matrix_are_refused(tmp_path: Path) -> None:
    estimator = make_pipeline(HashingVectorizer(n_features=2**15), RandomForestClassifier(2)).fit(BODIES, SPAM)
    with pytest.raises(ImportRefusedError, match=r"32,768; past 16,384, only an estimator that is linear in them"):
        quietly(lambda: import_pipeline(estimator, tmp_path / "m" / "1"))
    assert not (tmp_path / "m" / "1").exists()


def test_a_wide_program_before_another_model_does_not_load(tmp_path: Path) -> None:
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(BODIES, SPAM)
    import_pipeline(pipeline, tmp_path / "m" / "1")
    imported(HashingVectorizer()).save(tmp_path / "m" / "1" / "features.json")
    with pytest.raises(ModelLoadError, match="1,048,576 features; at most 16,384 are served"):
        fastinfer.load(tmp_path / "m")


def test_the_sum_is_scipys(tmp_path: Path) -> None:
    """The scores to the last bit: every product, in the order of the columns."""
    weights = RNG.normal(size=2**15) * 10.0 ** RNG.integers(-8, 8, 2**15)
    estimator = make_pipeline(HashingVectorizer(n_features=2**15), SGDClassifier().fit(np.eye(2), [0, 1]))
    last = estimator.steps[-1][1]
    last.coef_, last.intercept_, last.n_features_in_ = weights[None, :], np.array([0.125]), 2**15
    import_pipeline(estimator, tmp_path / "m" / "1")
    got = fastinfer.load(tmp_path / "m").transform(BODIES)
    matrix = csr_matrix(estimator[:-1].transform(BODIES))
    np.testing.assert_array_equal(got, matrix @ weights[:, None] + 0.125)


# ---- from end to end ----------------------------------------------------------------------------------------------
def test_text_is_served(tmp_path: Path, start_server: Start) -> None:
    """Records and BYTES tensors, in JSON and binary, answer as scikit-learn does; a missing text is the row's error."""
    pipeline = make_pipeline(mixed(TfidfVectorizer(ngram_range=(1, 2))), LogisticRegression()).fit(FRAME, SPAM)
    import_pipeline(pipeline, tmp_path / "models" / "spam" / "1", sample=FRAME)
    rows = pd.DataFrame({"body": ["FREE money ΣΑΣ", "", "x" * 1000], "job": ["cook", "?", "clerk"],
                         "age": [1.0, 2.0, 3.0]})
    expected = pipeline.predict_proba(rows)
    with start_server(tmp_path / "models").client() as client:
        answer = client.post("/v1/models/spam:predict", json={"records": rows.to_dict("records")}).json()
        for row, prediction in zip(expected, answer["predictions"], strict=True):
            assert [prediction["probabilities"][name] for name in ("ham", "spam")] == pytest.approx(row, abs=1e-6)
        texts = [text.encode() for text in rows["body"]]
        packed = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        inputs = [{"name": "body", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(packed)}},
                  {"name": "job", "datatype": "BYTES", "shape": [3, 1], "data": rows["job"].tolist()},
                  {"name": "age", "datatype": "FP64", "shape": [3, 1], "data": rows["age"].tolist()}]
        head = json.dumps({"inputs": inputs, "outputs": [{"name": "probabilities"}]}).encode()
        infer = client.post("/v2/models/spam/infer", content=head + packed,
                            headers={"Inference-Header-Content-Length": str(len(head))}).json()
        np.testing.assert_allclose(np.reshape(infer["outputs"][0]["data"], (3, 2)), expected, atol=1e-6)
        records = [{"body": "fox", "job": "cook", "age": 1}, {"body": None, "job": "cook", "age": 1}]
        refused = client.post("/v1/models/spam:predict", json={"records": records})
        assert refused.status_code == 400
        assert "records[1]" in refused.json()["at"]
