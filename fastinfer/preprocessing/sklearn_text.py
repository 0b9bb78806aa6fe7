"""scikit-learn's text vectorizers and hashers as steps over vectors, and what else takes a vector as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from fastinfer.preprocessing.patterns import PatternError, parse_pattern
from fastinfer.preprocessing.spec import MAX_WIDTH
from fastinfer.preprocessing.tracing import FLOAT32, FLOAT64, OBJECT, Feature, Matrix, Trace, is_framed, refuse, single
from fastinfer.preprocessing.vectors import MAX_NGRAM, Numbered

VECTORIZERS: Final = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")
FLOATS: Final = (FLOAT64, FLOAT32)
COUNTED: Final = tuple([np.dtype(name) for name in ("float64", "float32", "int64", "int32", "uint64", "uint32")])


# ---- what cuts text ----------------------------------------------------------------------------------------------
def document(vectorizer: Any, matrix: Matrix, path: str) -> Feature:
    """The one column of text that a vectorizer reads."""
    if matrix.container != "series":
        raise refuse(path, f"{type(vectorizer).__name__} reads one column as a vector; give the column by its name "
                           "alone, not in a list")
    feature = matrix.features[0]
    if feature.kind != "text":
        raise refuse(path, f"the column {feature.name!r} is not text")
    return feature


def analysis(vectorizer: Any, path: str) -> dict[str, Any]:
    """How the vectorizer cuts text, as members of a step."""
    if vectorizer.input != "content":
        raise refuse(path, f"input={vectorizer.input!r} reads files; only 'content' is served")
    for name in ("preprocessor", "tokenizer", "analyzer", "strip_accents"):
        if callable(getattr(vectorizer, name)):
            raise refuse(path, f"{name} is a function of your own, which cannot be read; use the vectorizer's settings")
    shortest, longest = (int(n) for n in vectorizer.ngram_range)
    if not 1 <= shortest <= longest <= MAX_NGRAM:
        raise refuse(path, f"ngram_range={vectorizer.ngram_range!r}; n-grams have 1 to {MAX_NGRAM} parts")
    found: dict[str, Any] = {"analyzer": str(vectorizer.analyzer), "ngrams": (shortest, longest),
                             "lowercase": bool(vectorizer.lowercase)}
    if vectorizer.strip_accents:
        found["strip_accents"] = str(vectorizer.strip_accents)
    if vectorizer.analyzer == "word":
        found["token_pattern"] = token_pattern(vectorizer, path)
        words = valid_terms(vectorizer.get_stop_words() or (), path)
        if words:
            found["stop_words"] = tuple(sorted(words))
    if vectorizer.binary:
        found["binary"] = True
    return found


def token_pattern(vectorizer: Any, path: str) -> str:
    pattern = vectorizer.token_pattern
    try:
        parse_pattern(pattern)
    except (PatternError, TypeError) as error:
        raise refuse(path, f"token_pattern {pattern!r} cannot be followed exactly: {error}") from None
    return str(pattern)


def valid_terms(terms: Any, path: str) -> set[str]:
    """The strings among them that a text can hold."""
    found = set()
    for term in terms:
        if isinstance(term, str):
            try:
                term.encode()
            except UnicodeEncodeError:
                continue  # a lone surrogate: no valid text has it
            found.add(str(term))
    return found


def vocabulary(vectorizer: Any, path: str) -> tuple[str, ...]:
    """The terms, in the order of their columns."""
    if not hasattr(vectorizer, "vocabulary_"):
        vectorizer._validate_vocabulary()  # a vocabulary that was given needs no fit
    places: Mapping[Any, Any] = vectorizer.vocabulary_
    terms: list[Any] = [None] * len(places)
    for term, place in places.items():
        if not isinstance(term, str) or len(valid_terms((term,), path)) != 1:
            raise refuse(path, f"the term {term!r} of the vocabulary is not valid text")
        if not 0 <= place < len(terms) or terms[int(place)] is not None:
            raise refuse(path, f"the vocabulary's column {place} does not stand for one term")
        terms[int(place)] = str(term)
    if not terms:
        raise refuse(path, "the vocabulary is empty")
    return tuple(terms)


def counted_dtype(vectorizer: Any, path: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(vectorizer.dtype)
    if dtype not in COUNTED:
        raise refuse(path, f"counts of dtype {dtype}; int64, int32, float64 and float32 are imported")
    return dtype


def vector(name: str, value: str, dtype: np.dtype[Any], names: Sequence[str]) -> Feature:
    return Feature(name, value, "vector", dtype, unsigned=True, names=names)


def count_vectorizer(trace: Trace, vectorizer: Any, matrix: Matrix, path: str) -> Matrix:
    feature = document(vectorizer, matrix, path)
    dtype, terms = counted_dtype(vectorizer, path), vocabulary(vectorizer, path)
    (value,) = trace.write("count", path, [feature], **analysis(vectorizer, path), vocabulary=terms, **single(dtype))
    return Matrix((vector("", value, dtype, terms),), "sparse")


def tfidf_vectorizer(trace: Trace, vectorizer: Any, matrix: Matrix, path: str) -> Matrix:
    return tfidf_transformer(trace, vectorizer._tfidf, count_vectorizer(trace, vectorizer, matrix, path), path)


def hashing_vectorizer(trace: Trace, vectorizer: Any, matrix: Matrix, path: str) -> Matrix:
    feature = document(vectorizer, matrix, path)
    dtype, count = counted_dtype(vectorizer, path), int(vectorizer.n_features)
    (value,) = trace.write("hash", path, [feature], **analysis(vectorizer, path), features=count,
                           alternate_sign=bool(vectorizer.alternate_sign), **single(dtype))
    result = Matrix((vector("", value, dtype, Numbered(count)),), "sparse")
    return result if vectorizer.norm is None else normalized(trace, result, vectorizer.norm, path)


def feature_hasher(trace: Trace, hasher: Any, matrix: Matrix, path: str) -> Matrix:
    """An array of text ("string"), or fields ("dict", "pair"): numbers under their names, text as `name=text`."""
    dtype, count = counted_dtype(hasher, path), int(hasher.n_features)
    settings = {"features": count, "alternate_sign": bool(hasher.alternate_sign)}
    if hasher.input_type == "string":
        if matrix.container != "array" or any(feature.kind != "text" for feature in matrix.features):
            raise refuse(path, "input_type='string' is imported for an array of text, a row a sample")
        (value,) = trace.write("hash_words", path, matrix.features, [""], **settings)
    elif (hasher.input_type, matrix.container) in (("dict", "records"), ("pair", "pairs")):
        if dtype.kind != "f":
            raise refuse(path, f"values of dtype {dtype}; float64 and float32 are imported")
        (value,) = trace.write("hash_fields", path, matrix.features, [""], **settings, **single(dtype),
                               names=tuple([feature.name for feature in matrix.features]))
    else:
        raise refuse(path, f"input_type={hasher.input_type!r} of what it gets here cannot be imported")
    return Matrix((vector("", value, dtype, Numbered(count)),), "sparse")


# ---- what takes vectors as they are ------------------------------------------------------------------------------
def joined(trace: Trace, matrix: Matrix, path: str) -> Matrix:
    """The matrix as one vector; an operation on whole rows needs it so."""
    if len(matrix.features) == 1 and matrix.features[0].kind == "vector":
        return matrix
    (value,) = trace.write("join", path, matrix.features, ["row"])
    names: Sequence[str] = Numbered(matrix.width)
    if matrix.width <= MAX_WIDTH:
        names = [name for feature in matrix.features for name in feature.column_names()]
    return Matrix((vector("", value, matrix.dtype, names),), "sparse")


def as_floats(trace: Trace, matrix: Matrix, path: str) -> Matrix:
    """`check_array(X, accept_sparse="csr", dtype=[float64, float32])`, as one vector."""
    dtype = matrix.dtype if matrix.dtype in FLOATS else FLOAT64
    matrix = trace.numbers(matrix.as_array(dtype), path)
    doubtful = [feature for feature in matrix.features if not is_finite(trace, feature.value)]
    trace.checked(replace(matrix, features=tuple(doubtful)), path, allow_nan=False)
    return joined(trace, matrix, path)


def is_finite(trace: Trace, value: str) -> bool:
    """Whether a value is finite, whatever the text: counts, their tf-idf, and rows of norm 1 are."""
    step = next((step for step in trace.steps if value in step.targets), None)
    if step is None or step.op not in ("count", "hash", "hash_words", "norm", "tfidf", "pick"):
        return False
    if not np.isfinite(step.parameters.get("idf", ())).all():
        return False
    if step.parameters.get("sublinear"):  # a hash's sums may be zero or negative
        return is_counted(trace, step.sources[0])
    return step.op not in ("tfidf", "pick") or is_finite(trace, step.sources[0])


def is_counted(trace: Trace, value: str) -> bool:
    return any(step.op == "count" and value in step.targets for step in trace.steps)


def changed(trace: Trace, op: str, path: str, matrix: Matrix, **parameters: Any) -> Matrix:
    """The vector of a matrix after an operation."""
    (feature,) = matrix.features
    (value,) = trace.write(op, path, [feature], [feature.value.split("@")[0]], **parameters, **single(matrix.dtype))
    return replace(matrix, container="sparse", features=(replace(feature, value=value),))


def normalized(trace: Trace, matrix: Matrix, norm: str, path: str) -> Matrix:
    """`normalize(X, norm)` of a sparse matrix."""
    matrix = as_floats(trace, matrix, path)
    return changed(trace, "norm", path, matrix, norm=str(norm))


def normalizer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    return normalized(trace, matrix, transformer.norm, path)


def tfidf_transformer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    if matrix.container in ("frame", "polars") or matrix.dtype == OBJECT:
        matrix = matrix.as_array(FLOAT64 if matrix.dtype == OBJECT else None)
    matrix = as_floats(trace, matrix, path)
    idf = getattr(transformer, "idf_", None)
    weights: dict[str, Any] = {} if idf is None else {"idf": tuple([float(weight) for weight in idf])}
    if transformer.sublinear_tf:
        weights["sublinear"] = True
    if weights:
        matrix = changed(trace, "tfidf", path, matrix, **weights)
    return matrix if transformer.norm is None else normalized(trace, matrix, transformer.norm, path)


def scaled(trace: Trace, matrix: Matrix, scale: Any, path: str) -> Matrix:
    """`inplace_column_scale`: a product with the reciprocal."""
    if scale is None:
        return matrix
    matrix = joined(trace, matrix, path)
    by = tuple([float(factor) for factor in 1.0 / np.asarray(scale)])
    return changed(trace, "scale", path, matrix, by=by)


def scaler(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """StandardScaler, MaxAbsScaler and RobustScaler, none of which shifts a sparse matrix."""
    if getattr(transformer, "with_mean", False) or getattr(transformer, "with_centering", False):
        raise refuse(path, f"{type(transformer).__name__} would shift a sparse matrix")
    dtype = matrix.dtype if matrix.dtype in FLOATS else FLOAT64
    matrix = trace.checked(trace.numbers(matrix.as_array(dtype), path), path, allow_nan=True)
    divides = getattr(transformer, "with_std", True) and getattr(transformer, "with_scaling", True)
    matrix = scaled(trace, matrix, transformer.scale_ if divides else None, path)
    if not getattr(transformer, "clip", False):
        return matrix
    matrix = joined(trace, matrix, path)
    (value,) = trace.write("limit", path, matrix.features, [matrix.features[0].value.split("@")[0]], low=-1.0, high=1.0)
    return replace(matrix, features=(replace(matrix.features[0], value=value),))


def selector(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """The columns that a selector keeps, of each vector those that are its own."""
    from fastinfer.preprocessing.sklearn_selection import allows_nan

    if is_framed(transformer):
        raise refuse(path, "set_output makes frames of a sparse matrix")
    if not allows_nan(transformer):
        matrix = trace.checked(trace.numbers(matrix, path), path, allow_nan=False)
    support = np.asarray(transformer.get_support())
    features: list[Feature] = []
    start = 0
    for feature in matrix.features:
        kept = np.flatnonzero(support[start : start + feature.width])
        start += feature.width
        if feature.kind != "vector" or len(kept) in (0, feature.width):
            features.extend([feature] if len(kept) else [])
            continue
        names = feature.names
        (value,) = trace.write("pick", path, [feature], positions=tuple(kept.tolist()))
        features.append(replace(feature, value=value, names=[names[i] for i in kept.tolist()]))
    return replace(matrix, features=tuple(features))


def truncated_svd(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    components = np.asarray(transformer.components_)
    matrix = as_floats(trace, matrix, path)
    if components.dtype != FLOAT64 or matrix.dtype != FLOAT64:
        raise refuse(path, "TruncatedSVD of float32 text; vectorize to float64")
    return dot(trace, matrix, path, components, np.zeros(len(components)), "truncatedsvd")


def linear_scores(trace: Trace, scores: Any, matrix: Matrix, path: str) -> Matrix:
    """What the import puts behind a matrix that is too wide to be served, see fastinfer/importing/scores.py."""
    matrix = as_floats(trace, matrix, path)
    return dot(trace, matrix, path, scores.weights, scores.bias, "score")


def dot(trace: Trace, matrix: Matrix, path: str, weights: Any, bias: Any, name: str) -> Matrix:
    """`X @ weights.T + bias`, each sum in scipy's order."""
    matrix = joined(trace, matrix, path)
    names = [f"{name}{i}" for i in range(len(weights))]
    values = trace.write("dot", path, matrix.features, names, weights=np.asarray(weights, np.float64),
                         bias=tuple([float(number) for number in bias]))
    return Matrix(tuple([Feature(name, value, "number", FLOAT64) for name, value in zip(names, values, strict=True)]),
                  "array")


def spread(trace: Trace, matrix: Matrix, path: str) -> Matrix:
    """Each column of the vectors as a number of its own, for what computes column by column."""
    if matrix.width > MAX_WIDTH:
        raise refuse(path, f"{matrix.width:,} columns come here; past {MAX_WIDTH:,}, a linear estimator must follow")
    features: list[Feature] = []
    for feature in matrix.features:
        if feature.kind != "vector":
            features.append(feature)
            continue
        names = list(feature.column_names())
        values = trace.write("spread", path, [feature], names)
        features.extend([Feature(name, value, "number", feature.dtype, unsigned=True)
                         for name, value in zip(names, values, strict=True)])
    return replace(matrix, features=tuple(features))


def is_vector(matrix: Matrix) -> bool:
    return any(feature.kind == "vector" for feature in matrix.features)


# Transformers by how they take a matrix that has vectors; all others get numbers.
VECTOR_CONVERTERS: Final[Mapping[str, Any]] = {
    "TfidfTransformer": tfidf_transformer,
    "Normalizer": normalizer,
    **dict.fromkeys(("StandardScaler", "MaxAbsScaler", "RobustScaler"), scaler),
    "TruncatedSVD": truncated_svd,
}
