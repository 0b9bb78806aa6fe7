"""Text in the feature program: what scikit-learn's vectorizers make of random and awkward text, to the last bit."""

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import reference
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Binarizer, StandardScaler
from sklearn_pipelines import quietly

from fastinfer.errors import ConfigurationError, ImportRefusedError, InvalidRecordError
from fastinfer.preprocessing.patterns import PatternError, parse_pattern
from fastinfer.preprocessing.program import Program
from fastinfer.preprocessing.texts import TEXTS

EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
DOCUMENTS = ["The quick brown fox", "the LAZY dog sleeps, the fox does not", "naïve Café ΣΊΣΥΦΟΣ x1 2nd _y", "",
             "a b a", "don't stop-it  now\n", "日本語 text 日本語", "spam spam ham"]
HASHED = {"norm": None, "alternate_sign": False, "n_features": 2**31 - 2}

# ---- text --------------------------------------------------------------------------------------------------------
awkward = st.sampled_from([
    *"aAbB zZ019_.-'#@\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\x00\x7f",
    *"ßẞİıΣσςéÉﬁﷺ①½²٣日한ﾊǅ🙂·ŉ", "\u0301", "\u0307", "\u0345",
    "\u2028", "\u200b", "\u00ad", "\U0001d518", "\U000e0041", "the", "fox", "Fox", "spam",
])
words = st.sampled_from(["the", "fox", "dog", "Spam", "ham", "a", "ΣΑΣ", "x1", "café"])
texts = (st.lists(awkward, max_size=30).map("".join) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
         | st.lists(words, max_size=12).map(" ".join))
PATTERNS = (
    r"(?u)\b\w\w+\b", r"(?u)\b\w+\b", r"\w+", r"\S+", r"[a-z]+", r"[a-zA-Z]{3,}", r"\b[^\W\d]\w+\b", r"[\w']+\b",
    r"\b[\w']+\b", r"\b\w{2,3}\b", r"\w{2,4}", r"[^\s,.;]+", r"#\w+", r"\b\d+\b", r"(?u)\b(\w\w+)\b", r"[\w-]+\b",
    r"\w", r"\W+", r"\b\S{2,}\b", r"[à-ÿa]+", r"[^a]{2}", r"\b[a-f]\w*", r"[Σσς]\w*\b", r"\S{1,3}\b", r"\D+",
)
cuts = st.fixed_dictionaries({
    "analyzer": st.sampled_from(["word", "word", "char", "char_wb"]),
    "lowercase": st.booleans(),
    "strip_accents": st.sampled_from([None, None, "ascii", "unicode"]),
    "stop_words": st.sampled_from([None, None, "english", ["the", "a", "fox", "σας"]]),
    "token_pattern": st.sampled_from(PATTERNS),
    "ngram_range": st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 3), (1, 4), (5, 6)]),
    "binary": st.booleans(),
    "dtype": st.sampled_from([np.float64, np.float32, np.int64]),
})
tfidfs = st.fixed_dictionaries({"norm": st.sampled_from(["l1", "l2", None]), "use_idf": st.booleans(),
                                "smooth_idf": st.booleans(), "sublinear_tf": st.booleans()})


@st.composite
def vectorizers(draw: st.DrawFn) -> Any:
    cut = draw(cuts)
    way = draw(st.sampled_from(["count", "tfidf", "hash", "hash", "both"]))
    if way == "hash":
        hashed = HashingVectorizer(**cut, n_features=draw(st.sampled_from([1, 7, 64, 2**10, 2**20, 2**31 - 2])),
                                   alternate_sign=draw(st.booleans()), norm=draw(st.sampled_from(["l1", "l2", None])))
        weights = TfidfTransformer(**draw(tfidfs))
        plain = draw(st.booleans()) or hashed.n_features > 2**20 or weights.sublinear_tf
        return hashed if plain else make_pipeline(hashed, weights)
    if way == "tfidf":
        return TfidfVectorizer(**cut, **draw(tfidfs))
    limits = draw(st.sampled_from([{}, {"max_features": 5}, {"min_df": 2}, {"max_df": 0.5}]))
    counts = CountVectorizer(**cut, **limits)
    return counts if way == "count" else make_pipeline(counts, TfidfTransformer(**draw(tfidfs)))


def imported(fitted: Any, **options: Any) -> Program:
    return quietly(lambda: Program.from_sklearn(fitted, **options))


def same(expected: Any, got: Any, *, dtype: str = "float64") -> None:
    """Rows, columns, stored values and their bits."""
    expected = expected.tocsr().astype(dtype)
    assert got.format == "csr"
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got.indptr, expected.indptr)
    np.testing.assert_array_equal(got.indices, expected.indices)
    bits = f"i{got.dtype.itemsize}"
    np.testing.assert_array_equal(got.data.view(bits), expected.data.view(bits))


def agrees(vectorizer: Any, serve: list[str]) -> None:
    same(vectorizer.transform(serve), imported(vectorizer).transform(serve))


def answers(vectorizer: Any, program: Program, text: str) -> bool:
    """Whether scikit-learn takes a text; what it refuses (a weight that is infinite), the program refuses."""
    try:
        quietly(vectorizer.transform, [text])
    except ValueError:
        with pytest.raises(InvalidRecordError, match="row 0"):
            program.transform([text])
        return False
    return True


@EXAMPLES
@given(st.data())
def test_random_vectorizers(data: st.DataObject) -> None:
    fit = [*DOCUMENTS, *data.draw(st.lists(texts, max_size=5))]
    serve = [*data.draw(st.lists(texts, min_size=1, max_size=6)), *TEXTS[:4]]
    vectorizer = data.draw(vectorizers())
    try:
        quietly(vectorizer.fit, fit)
    except ValueError:  # an empty vocabulary
        assume(False)
    dtype = data.draw(st.sampled_from(["float64", "float32"]))
    program = imported(vectorizer, dtype=dtype)
    serve = [text for text in serve if answers(vectorizer, program, text)]
    assume(serve)
    expected = quietly(vectorizer.transform, serve)
    again = Program.from_json(program.to_json())
    same(expected, again.transform(serve), dtype=dtype)
    for i, text in enumerate(serve):
        same(expected[i : i + 1], program.transform([text]), dtype=dtype)
    if program.width <= 2**14:
        np.testing.assert_array_equal(program.transform_dense(serve), expected.toarray().astype(dtype))


@EXAMPLES
@given(st.data())
def test_the_plain_twin(data: st.DataObject) -> None:
    """Counts and hashes against a few lines of Python that know nothing of scikit-learn."""
    cut = data.draw(cuts)
    cut["dtype"] = np.float64
    vectorizer = data.draw(st.sampled_from([
        CountVectorizer(**cut, vocabulary=["the", "fox", "the fox", "a", " f", "ox ", "σας", "e"]),
        HashingVectorizer(**cut, norm=None, n_features=1000), HashingVectorizer(**cut, norm=None, n_features=2**31 - 2),
    ]))
    program = imported(quietly(vectorizer.fit, DOCUMENTS))
    (step,) = [{**step.parameters, "op": step.op} for step in program.spec.steps if step.op != "check"]
    serve = data.draw(st.lists(texts, min_size=1, max_size=4))
    got = program.transform(serve)
    for i, text in enumerate(serve):
        stored = got[i]
        assert dict(zip(stored.indices.tolist(), stored.data.tolist(), strict=True)) == reference.counted(text, step)


# ---- every character ----------------------------------------------------------------------------------------------
CHARACTERS = ["".join(map(chr, range(page << 8, (page + 1) << 8))) for page in range(0x1100)
              if not 0xD8 <= page <= 0xDF]


@pytest.mark.parametrize("pattern", [r"\w", r"\d", r"\s", r"[^\w\s]"], ids=["word", "digit", "space", "other"])
def test_classes_of_all_characters(pattern: str) -> None:
    agrees(HashingVectorizer(token_pattern=pattern, lowercase=False, **HASHED), CHARACTERS)


@pytest.mark.parametrize("strip", [None, "unicode", "ascii"])
@pytest.mark.parametrize("lowercase", [True, False], ids=["lower", "as-is"])
def test_lower_case_and_accents_of_all_characters(strip: str | None, lowercase: bool) -> None:
    agrees(HashingVectorizer(analyzer="char", strip_accents=strip, lowercase=lowercase, **HASHED), CHARACTERS)


def test_the_last_sigma() -> None:
    """A capital sigma at the end of a word becomes another letter; marks do not count, and there are many of them."""
    marks = [chr(code) for code in range(0x3000)]
    around = ["\n".join([f"a{mark}Σ", f"{mark}Σ", f"aΣ{mark}", f"aΣ{mark}b"]) for mark in marks]
    runs = ["aΣ" + "'" * 5000 + "Σ" + "\u0345" * 5000 + "b", "Σ" * 10_000, "'" * 10_000 + "Σ"]
    agrees(HashingVectorizer(analyzer="char", ngram_range=(1, 3), **HASHED), around + runs)


# ---- token patterns -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_on_tricky_text(pattern: str) -> None:
    """Text at whose ends a token must give back characters, or must not."""
    agrees(HashingVectorizer(token_pattern=pattern, **HASHED), [
        "a'b''c' 'd", "ab-cd--ef- -g", "x" * 40 + " " + "'" * 40 + "y", "aaa1bbb 2c", "éaé àé", "#tag##two# a#b", "b",
        "abcdefgh", "-a-", "Σσς σΣ", "a a  aa", "''''", "12 3a a4 é5", "", *TEXTS,
    ])


classes = st.sampled_from([r"\w", r"\S", "[a-c]", "[^a]", r"[\w']", "b", r"[\d-]", r"\W", "[]a]", "[^]^-]", "[a-c-]"])
counts = st.sampled_from(["", "+", "*", "{2}", "{1,}", "{0,2}", "{3,4}", "?"])


@given(st.lists(classes, min_size=1, max_size=2), counts, st.booleans(), st.booleans(),
       st.lists(st.text("abc'-1 é]^", max_size=8), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_random_patterns(parts: list[str], count: str, opens: bool, closes: bool, serve: list[str]) -> None:
    pattern = r"\b" * opens + "".join(parts) + count + r"\b" * closes
    if len(parts) == 1 and count in ("*", "?", "{0,2}"):
        with pytest.raises(PatternError, match="empty string"):
            parse_pattern(pattern)
        return
    agrees(HashingVectorizer(token_pattern=pattern, **HASHED), serve)


@pytest.mark.parametrize("pattern", [
    r"\w*", r"\b", "", r"\w+|\d", r"(?<!a)\w+", r"(?i)[a-z]+", r"(?a)\w+", r"\w+?", r"(\w)(\d)", r"\w+-\w+\d", r"^\w+",
    r".+", r"\w+$", r"(\w+)+", r"\B\w+", r"\w++", r"[a-z", r"(?x) \w +", r"[[a]b]", r"\x41+", r"\w{300}", r"(?P<w>\w+)",
    r"\w+\b\w+", r"[a&&b]+",
])
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        parse_pattern(pattern)


@pytest.mark.parametrize("pattern", [r"[\w']+\b", r"\b'[']*\b", r"\S{3,}\b"], ids=["inside", "quotes", "visible"])
def test_no_quadratic_time(pattern: str) -> None:
    """A run that no word boundary ends is looked at once, not once for each of its characters."""
    program = imported(HashingVectorizer(token_pattern=pattern, **HASHED))
    assert program.transform(["'" * 400_000, "' " * 200_000]).nnz == 0


# ---- what is refused, and what is missing -------------------------------------------------------------------------
def own(text: str) -> str:
    return text


@pytest.mark.parametrize(("setting", "value", "message"), [
    ("preprocessor", own, "preprocessor is a function"), ("tokenizer", own, "tokenizer is a function"),
    ("analyzer", own, "analyzer is a function"), ("strip_accents", own, "strip_accents is a function"),
    ("token_pattern", r"\w+|\d", "cannot be followed exactly"), ("input", "filename", "reads files"),
    ("dtype", np.uint8, "counts of dtype uint8"), ("ngram_range", (0, 1), "n-grams have 1 to"),
], ids=["preprocessor", "tokenizer", "analyzer", "accents", "pattern", "files", "dtype", "ngrams"])
@pytest.mark.parametrize("kind", [CountVectorizer, HashingVectorizer])
def test_refusals_name_the_step(kind: Any, setting: str, value: Any, message: str) -> None:
    frame = pd.DataFrame({"body": DOCUMENTS, "n": np.arange(len(DOCUMENTS))})
    transformer = quietly(ColumnTransformer([("text", kind(), "body"), ("n", "passthrough", ["n"])]).fit, frame)
    transformer.named_transformers_["text"].set_params(**{setting: value})
    with pytest.raises(ImportRefusedError, match=rf"^pipeline\.transformers\['text'\]: .*{message}"):
        imported(transformer, sample=frame)


def test_a_column_in_a_list_is_refused() -> None:
    frame = pd.DataFrame({"body": DOCUMENTS[:1]})
    transformer = quietly(ColumnTransformer([("text", CountVectorizer(), ["body"])]).fit, frame)
    with pytest.raises(ImportRefusedError, match="give the column by its name alone, not in a list"):
        imported(transformer)


@pytest.mark.parametrize("analyzer", ["word", "char", "char_wb"])
@pytest.mark.parametrize("missing", [None, np.nan], ids=["none", "nan"])
def test_missing_text_is_an_error_of_the_row(analyzer: str, missing: Any) -> None:
    frame = pd.DataFrame({"body": DOCUMENTS, "n": np.arange(len(DOCUMENTS)) * 1.0})
    transformer = ColumnTransformer([("text", TfidfVectorizer(analyzer=analyzer, lowercase=False), "body"),
                                     ("n", StandardScaler(), ["n"])]).fit(frame)
    program = imported(transformer, sample=frame)
    assert not next(column for column in program.columns if column.name == "body").nullable
    for transform in (program.transform, program.transform_dense):
        with pytest.raises(InvalidRecordError, match="row 1, field 'body': missing") as caught:
            transform({"body": ["fox", missing, "dog"], "n": [1.0, 2.0, 3.0]})
        assert caught.value.at == "$.records[1].body"


def test_a_vocabulary_of_odd_terms() -> None:
    vocabulary = {"the fox": 2, "": 0, "Fox": 1, "two  spaces": 3, "\x00": 4}
    agrees(CountVectorizer(vocabulary=vocabulary, ngram_range=(1, 2)), DOCUMENTS)
    spaced = CountVectorizer(vocabulary={"a b": 0, "a": 1}, ngram_range=(1, 2), token_pattern=r"[^,]+")
    agrees(spaced, ["a,b", "a b", "a b,a,b"])  # one term of two words, or of one with a space
    for wrong in ({"a": 0, 3: 1}, {"a": 0, "\ud800": 1}):
        with pytest.raises(ImportRefusedError, match="is not valid text"):
            imported(CountVectorizer(vocabulary=wrong))


def test_terms_that_begin_with_nul() -> None:
    """Their columns may be taken one by one, and the program is loaded again."""
    texts = ["\0a b", "b\0", "a\0\0"]
    pipeline = make_pipeline(CountVectorizer(analyzer="char"), Binarizer(threshold=1)).fit(texts)
    program = Program.from_json(Program.from_sklearn(pipeline).to_json())
    assert np.array_equal(program.transform(texts).toarray(), pipeline.transform(texts).toarray())


def test_long_text() -> None:
    """Long enough that features are added up several times on the way."""
    text = " ".join(f"word{i % 30_000} Ünïcode{i % 7}" for i in range(100_000))
    for vectorizer in (HashingVectorizer(n_features=2**20), HashingVectorizer(n_features=2**31 - 2, norm="l1"),
                       CountVectorizer(ngram_range=(1, 2)).fit([text[:100_000]]),
                       HashingVectorizer(n_features=50, alternate_sign=True, norm=None)):
        agrees(vectorizer, [text, ""])


# ---- FeatureHasher ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("features", [1, 8, 2**20])
def test_hashing_an_array_of_text(features: int) -> None:
    data = np.array([["a", "b"], ["b", "b"], ["é", ""], ["c" * 30, "a"]], dtype=object)
    hasher = FeatureHasher(n_features=features, input_type="string", dtype=np.float32).fit(data)
    program = imported(hasher, sample=data)
    same(hasher.transform(data), program.transform(data))
    with pytest.raises(InvalidRecordError, match="row 0, field 'x1': missing"):
        program.transform(np.array([["a", None]], dtype=object))


fields = st.fixed_dictionaries({}, optional={
    "age": st.floats(-1e3, 1e3), "job": st.sampled_from(["clerk", "é", "", "a=b"]),
    "member": st.sampled_from([0.0, 1.0]), "höhe": st.floats(allow_nan=False, allow_infinity=False, width=32),
})


@EXAMPLES
@given(st.lists(fields, min_size=1, max_size=8), st.sampled_from([1, 3, 2**10, 2**20]), st.booleans(),
       st.sampled_from([np.float64, np.float32]))
def test_hashing_fields(rows: list[dict[str, Any]], features: int, alternate: bool, dtype: Any) -> None:
    """An absent field, and one that is null, hash to nothing."""
    sample = [{"age": 1.5, "job": "clerk", "höhe": 2.5, "member": 1.0}, {"job": "cook"}]
    hasher = FeatureHasher(n_features=features, alternate_sign=alternate, dtype=dtype)
    program = imported(hasher, sample=sample)
    got = program.transform(rows)
    same(hasher.transform([{name: row[name] for name in sample[0] if name in row} for row in rows]), got)
    nulls = [{name: row.get(name) for name in sample[0]} for row in rows]
    assert (program.transform(nulls) != got).nnz == 0


def test_a_field_that_is_nan_is_refused() -> None:
    """scikit-learn hashes it to NaN; a column has no value for that beside a missing one."""
    rows: list[dict[str, Any]] = [{"age": 3.0, "job": "clerk"}, {"age": 1.0}]
    program = imported(FeatureHasher(n_features=8), sample=rows)
    same(FeatureHasher(n_features=8).transform(rows), program.transform(rows))
    for name in ("age", "job"):
        with pytest.raises(InvalidRecordError, match=f"row 1, field '{name}': NaN, which is not hashed"):
            program.transform([{}, {name: math.nan}])


def test_hashing_without_names_is_refused() -> None:
    with pytest.raises(ImportRefusedError, match="only a sample tells which fields it hashes"):
        imported(FeatureHasher())


@pytest.mark.parametrize("features", [3, 2**20])
def test_hashing_pairs(features: int) -> None:
    """Lists of pairs in Python; in records the names are the fields."""
    rows = [[("age", 1.5), ("job", "clerk")], [("job", ""), ("é", -2.0)], [], [("é", 5e-324), ("age", 0.0)]]
    hasher = FeatureHasher(features, input_type="pair")
    program = imported(hasher, sample=rows)
    for data in (rows, rows[2:3], [tuple(row) for row in rows]):
        same(hasher.transform(data), program.transform(data))
    same(hasher.transform(rows), program.transform([dict(row) for row in rows]))
    with pytest.raises(InvalidRecordError, match="row 1: two fields have one name"):
        program.transform([[], [("age", 1.0), ("age", 2.0)]])
    frame = pd.DataFrame([dict(row) for row in rows])
    same(hasher.transform(rows), imported(hasher, sample=frame).transform(rows))
    with pytest.raises(InvalidRecordError, match="the hasher takes pairs"):
        imported(hasher, sample=np.array([["a"]], dtype=object))


# ---- features.json ------------------------------------------------------------------------------------------------
def edited(program: Program, op: str, changes: dict[str, Any]) -> str:
    document = json.loads(program.to_json())
    document.pop("certificate")
    next(step for step in document["steps"] if step["op"] == op).update(changes)
    return json.dumps(document)


EDITS: list[tuple[str, dict[str, Any], str]] = [
    ("count", {"vocabulary": ["a", "a"]}, r"vocabulary: a term stands twice"),
    ("count", {"vocabulary": []}, r"vocabulary: it has no term"),
    ("count", {"vocabulary": ["a", 1]}, r"vocabulary\[1\]: expected a string"),
    ("count", {"ngrams": [2, 1]}, r"ngrams: expected two numbers from 1 to"),
    ("count", {"token_pattern": "a|b"}, r"token_pattern: "),
    ("count", {"analyzer": "char"}, r'token_pattern: goes with the analyzer "word" only'),
    ("count", {"analyzer": "letters"}, r"analyzer: expected 'word' or 'char'"),
    ("count", {"vocabulary": ["a", "b"]}, r"idf: \d+ numbers for a vector of 2"),
    ("tfidf", {"idf": [1.0]}, r"idf: 1 numbers for a vector of"),
    ("norm", {"norm": "l3"}, r"norm: expected 'l1' or 'l2'"),
    ("norm", {"from": ["text"]}, r"from\[0\]: 'text' is text, and the operation takes vector"),
]


@pytest.mark.parametrize(("op", "changes", "message"), EDITS)
def test_a_fault_is_named_by_its_place(op: str, changes: dict[str, Any], message: str) -> None:
    program = imported(TfidfVectorizer().fit(DOCUMENTS))
    with pytest.raises(ConfigurationError, match=message) as caught:
        Program.from_json(edited(program, op, changes))
    assert re.match(r"\$\.steps\[\d\]", caught.value.at or "")


def test_a_changed_vocabulary_fails_the_certificate() -> None:
    text = imported(TfidfVectorizer().fit(DOCUMENTS)).to_json()
    assert json.loads(text)["certificate"]["made_by"].keys() == {"scikit-learn", "numpy", "unicode"}
    for old, new in (('"brown"', '"brawn"'), ('"lowercase": true', '"lowercase": false')):
        with pytest.raises(ConfigurationError, match="golden row"):
            Program.from_json(text.replace(old, new, 1))


def test_a_large_vocabulary_stands_in_the_file_once() -> None:
    vectorizer = TfidfVectorizer().fit([" ".join(f"word{i}" for i in range(j, 60_000, 50)) for j in range(50)])
    program = imported(vectorizer)
    assert program.width == 60_000
    assert program.to_json().count('"word59999"') == 1
    assert list(program.get_feature_names_out()) == list(vectorizer.get_feature_names_out())
