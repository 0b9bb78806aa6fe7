"""A fitted scikit-learn transformer as a spec, for any nesting; what cannot be expressed is refused by its path.

scikit-learn itself is not imported here: everything is read from the fitted objects.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from fastinfer.errors import ImportRefusedError
from fastinfer.preprocessing import (
    sklearn_categories,
    sklearn_distribution,
    sklearn_imputation,
    sklearn_numeric,
    sklearn_rows,
    sklearn_selection,
    sklearn_splines,
    sklearn_text,
)
from fastinfer.preprocessing.evidence import Sampled, columns_of
from fastinfer.preprocessing.spec import MAX_WIDTH, Column, Output, Spec
from fastinfer.preprocessing.tracing import (
    FLOAT64,
    NUL,
    OBJECT,
    Container,
    Feature,
    Matrix,
    Trace,
    constant_in,
    framing,
    is_framed,
    refuse,
    single,
)
from fastinfer.preprocessing.vectors import MAX_FEATURES, Features, Run, column_names, widths_of

Converter = Callable[[Trace, Any, Matrix, str], Matrix]


def convert(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """What a fitted transformer makes of a matrix.

    Raises:
        ImportRefusedError: the transformer, or a setting of it, cannot be expressed; the message begins with `path`.
    """
    if transformer is None or (isinstance(transformer, str) and transformer == "passthrough"):
        return matrix
    name = type(transformer).__name__
    if name == "FrozenEstimator" and type(transformer).__module__.split(".")[0] == "sklearn":
        return convert(trace, transformer.estimator, matrix, f"{path}.estimator")
    converter = CONVERTERS.get(name) if type(transformer).__module__.split(".")[0] == "sklearn" else None
    if name == SCORES:
        converter = sklearn_text.linear_scores
    if converter is None:
        raise refuse(path, f"{name} cannot be imported; known are {', '.join(sorted(CONVERTERS))}")
    if matrix.features and name not in ("Pipeline", "FeatureUnion"):
        check_width(transformer, matrix, path)
    if matrix.container == "series" and name not in TAKES_SERIES:
        raise refuse(path, f"it gets the column {matrix.features[0].name!r} as a vector, not as a frame")
    if name not in ("Pipeline", "FeatureUnion") and sklearn_text.is_vector(matrix):
        converter = vector_converter(name, matrix)
        if converter is None:
            converter, matrix = CONVERTERS[name], sklearn_text.spread(trace, matrix, path)
    try:
        result = converter(trace, transformer, matrix, path)
    except AttributeError as error:
        raise refuse(path, f"{name} is not fitted, or of a scikit-learn that is not known ({error})") from None
    return framed(transformer, result, name, path)


def vector_converter(name: str, matrix: Matrix) -> Converter | None:
    """How a transformer takes vectors as they are; None: it does not.

    In a dense array it computes column by column, in another order than on a sparse matrix.
    """
    if name in sklearn_selection.SELECTORS:
        return sklearn_text.selector
    if name == SCORES:
        return sklearn_text.linear_scores
    return sklearn_text.VECTOR_CONVERTERS.get(name) if matrix.container == "sparse" else None


def check_width(transformer: Any, matrix: Matrix, path: str) -> None:
    fitted = getattr(transformer, "n_features_in_", None)
    if fitted is not None and fitted != matrix.width:
        raise refuse(path, f"fitted on {fitted} columns, and {matrix.width} arrive")


def framed(transformer: Any, result: Matrix, name: str, path: str) -> Matrix:
    """With `set_output` the result is a frame."""
    if result.container != "array" or name == "Pipeline" or not is_framed(transformer):
        return result
    for feature in result.features:
        if feature.none:  # pandas makes NaN of it, or not, as the other rows of the batch have it
            raise refuse(path, f"set_output is on and the column {feature.name!r} may be None")
    if framing(transformer) == "polars" and result.dtype == OBJECT:
        raise refuse(path, "set_output makes a frame of polars of an array of objects")
    return replace(result, container=frame_of(transformer))


def frame_of(transformer: Any) -> Container:
    return "polars" if framing(transformer) == "polars" else "frame"


def hold_frames(fitted: Any, parts: Sequence[Matrix]) -> bool:
    """Whether the parts stand side by side in a frame."""
    return is_framed(fitted) and all(part.container == frame_of(fitted) for part in parts)


def pipeline(trace: Trace, fitted: Any, matrix: Matrix, path: str) -> Matrix:
    for i, (_, step) in enumerate(fitted.steps):
        matrix = convert(trace, step, matrix, f"{path}.steps[{i}]")
    return matrix


def column_parts(fitted: Any) -> Iterator[tuple[str, Any, list[int], bool]]:
    """The parts of a fitted ColumnTransformer that give columns: (name, transformer, positions, as a vector)."""
    for name, transformer, columns in fitted.transformers_:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        indices = [int(i) for i in fitted._transformer_to_input_indices[name]]
        if indices:
            yield name, transformer, indices, bool(np.isscalar(columns))


def column_transformer(trace: Trace, fitted: Any, matrix: Matrix, path: str) -> Matrix:
    weights = fitted.transformer_weights or {}
    parts = []
    for name, transformer, indices, vector in column_parts(fitted):
        inner = f"{path}.transformers[{name!r}]"
        taken = matrix.take(indices)
        part = convert(trace, transformer, replace(taken, container="series") if vector else taken, inner)
        if part.container == "series":
            raise refuse(inner, "it gives a vector, not a matrix")
        part = weighted(trace, without_na(trace, fitted, part, inner), weights.get(name), inner)
        parts.append(prefixed(part, fitted, name))
    frame = frame_of(fitted) if hold_frames(fitted, parts) else None
    return stack(trace, parts, path, sparse=getattr(fitted, "sparse_output_", False), frame=frame)


def without_na(trace: Trace, fitted: Any, part: Matrix, path: str) -> Matrix:
    """A frame's columns that are handed on as they are: scikit-learn refuses a row with pandas.NA there."""
    if framing(fitted) == "polars" and part.container == "frame" and part.dtype == OBJECT:
        raise refuse(path, "set_output makes a frame of polars of one of pandas that holds objects")
    extensions = [feature for feature in part.features if feature.extension]
    if not extensions or is_framed(fitted):
        return part
    trace.write("check", path, [feature for feature in extensions if feature.kind != "integer"], allow="finite")
    return replace(part, features=tuple([replace(feature, extension=False) for feature in part.features]))


def feature_union(trace: Trace, fitted: Any, matrix: Matrix, path: str) -> Matrix:
    weights = fitted.transformer_weights or {}
    parts = []
    for name, transformer in fitted.transformer_list:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        inner = f"{path}.transformer_list[{name!r}]"
        part = convert(trace, transformer, matrix, inner)
        if part.width > 1:  # of one column numpy makes floats, of several objects
            part = without_na(trace, fitted, part, inner)
        part = weighted(trace, part, weights.get(name), inner)
        parts.append(prefixed(part, fitted, name))
    sparse = any(part.container == "sparse" for part in parts)
    frame = frame_of(fitted) if hold_frames(fitted, parts) else None
    return stack(trace, parts, path, sparse=sparse, frame=frame)


def prefixed(part: Matrix, fitted: Any, name: str) -> Matrix:
    """The part's features called as scikit-learn calls them in the whole."""
    if not getattr(fitted, "verbose_feature_names_out", True):
        return part
    features = tuple([replace(feature, name=f"{name}__{feature.name}") for feature in part.features])
    return replace(part, features=features)


def weighted(trace: Trace, matrix: Matrix, weight: float | None, path: str) -> Matrix:
    """`transformer_weights`: a product of the whole part."""
    if weight is None or not matrix.features:
        return matrix
    features: list[Feature | None] = [None] * matrix.width
    for i, feature in enumerate(matrix.features):
        if feature.kind == "vector":
            result = np.result_type(np.empty(0, feature.dtype), weight)
            factor = constant_in(weight, result)
            (value,) = trace.write("scale", path, [feature], by=factor, **single(result))
            features[i] = replace(feature, value=value, dtype=result)
    for dtype in dict.fromkeys(feature.dtype for feature in matrix.features):
        indices = [i for i, feature in enumerate(matrix.features) if feature.dtype == dtype and features[i] is None]
        if not indices:
            continue
        result = OBJECT if dtype == OBJECT else np.result_type(np.empty(0, dtype), weight)
        taken = matrix.take(indices)
        part = replace(taken, container="array").as_array(result)
        if matrix.container in ("frame", "polars"):  # the product is of each column by itself
            part = replace(part, features=tuple([replace(feature, whole=own.whole) for feature, own in
                                                 zip(part.features, taken.features, strict=True)]))
        if result.kind in "iu" and any(feature.kind == "integer" or not feature.unsigned for feature in part.features):
            raise refuse(path, f"a weight of {result}, which may overflow; make the part float64")
        if weight != 1 and isinstance(weight, (int, np.integer)) and any(f.whole != "no" for f in part.features):
            raise refuse(path, f"the weight {weight} of columns that may hold integers, which may overflow and have no "
                               "-0; make it a float, or give a sample of floats")
        if any(feature.none for feature in part.features):
            raise refuse(path, "a weight of an array of objects that may hold None")
        if result == OBJECT and weight < 0:
            raise refuse(path, "a negative weight of an array of objects, whose zeros may be integers, without a sign")
        part = trace.numbers(part, path)
        part = trace.arithmetic("multiply", path, part, constant_in(weight, result))
        if result.kind in "iu":  # no -0 among integers
            part = trace.each("add", path, part, unsigned=True, by=(0.0,) * part.width)
        for i, feature in zip(indices, part.features, strict=True):
            features[i] = feature
    return replace(matrix, features=tuple([feature for feature in features if feature is not None]))


def stack(trace: Trace, parts: Sequence[Matrix], path: str, *, sparse: bool,
          frame: Container | None) -> Matrix:
    """`hstack` of the parts: one dtype for all, or sparse, or a frame of that kind."""
    parts = [part for part in parts if part.features]
    if not parts:
        return Matrix((), "array")
    if frame:
        return Matrix(tuple([feature for part in parts for feature in part.features]), frame)
    if sparse:
        parts = [sparsified(trace, part, path) for part in parts]
    else:
        parts = [unsigned(trace, part, path) if part.container == "sparse" else part for part in parts]
    dtypes = [part.dtype for part in parts]
    dtype = OBJECT if OBJECT in dtypes else np.result_type(*dtypes)
    features = tuple([feature for part in parts for feature in part.as_array(dtype).features])
    return Matrix(features, "sparse" if sparse else "array").as_array(dtype)


def sparsified(trace: Trace, part: Matrix, path: str) -> Matrix:
    """A dense part of a sparse matrix: it must be numbers, and its -0.0 are not stored, so they come back as 0.0."""
    if part.container == "sparse":
        return part
    dtype = FLOAT64 if part.dtype == OBJECT else part.dtype
    part = trace.numbers(part.as_array(dtype), path)
    return Matrix(unsigned(trace, part, path).features, "sparse")


def unsigned(trace: Trace, matrix: Matrix, path: str) -> Matrix:
    """-0.0 becomes 0.0, as it does on the way from a sparse matrix to a dense one."""
    signed = [feature for feature in matrix.features if not feature.unsigned and feature.dtype.kind == "f"]
    values = trace.write("add", path, signed, by=(0.0,) * len(signed))
    plus = dict(zip(signed, values, strict=True))
    return replace(matrix, features=tuple([replace(feature, value=plus.get(feature, feature.value), unsigned=True)
                                           for feature in matrix.features]))


CONVERTERS: Final[Mapping[str, Converter]] = {
    "Pipeline": pipeline,
    "ColumnTransformer": column_transformer,
    "FeatureUnion": feature_union,
    "FunctionTransformer": sklearn_numeric.function_transformer,
    "SimpleImputer": sklearn_imputation.simple_imputer,
    "MissingIndicator": sklearn_imputation.missing_indicator,
    "StandardScaler": sklearn_numeric.standard_scaler,
    "MinMaxScaler": sklearn_numeric.min_max_scaler,
    "MaxAbsScaler": sklearn_numeric.max_abs_scaler,
    "RobustScaler": sklearn_numeric.robust_scaler,
    "Binarizer": sklearn_numeric.binarizer,
    "KBinsDiscretizer": sklearn_numeric.k_bins_discretizer,
    "Normalizer": sklearn_rows.normalizer,
    "PolynomialFeatures": sklearn_rows.polynomial_features,
    "SplineTransformer": sklearn_splines.spline_transformer,
    "PowerTransformer": sklearn_distribution.power_transformer,
    "QuantileTransformer": sklearn_distribution.quantile_transformer,
    "PCA": sklearn_rows.pca,
    "IncrementalPCA": sklearn_rows.pca,
    "TruncatedSVD": sklearn_rows.truncated_svd,
    "OneHotEncoder": sklearn_categories.one_hot_encoder,
    "OrdinalEncoder": sklearn_categories.ordinal_encoder,
    "TargetEncoder": sklearn_categories.target_encoder,
    "CountVectorizer": sklearn_text.count_vectorizer,
    "TfidfVectorizer": sklearn_text.tfidf_vectorizer,
    "TfidfTransformer": sklearn_text.tfidf_transformer,
    "HashingVectorizer": sklearn_text.hashing_vectorizer,
    "FeatureHasher": sklearn_text.feature_hasher,
    **dict.fromkeys(sklearn_selection.SELECTORS, sklearn_selection.selector),
}
SCORES: Final = "LinearScores"  # what the import puts behind a matrix that is too wide to be served
TEXT: Final = "text"  # the column of a pipeline that was fitted on a list of texts
TAKES_SERIES: Final = ("Pipeline", "FeatureUnion", *sklearn_text.VECTORIZERS)  # one column by itself


def first_step(transformer: Any) -> Any:
    """The first transformer of a pipeline that does something."""
    while type(transformer).__name__ in ("Pipeline", "FrozenEstimator"):
        transformer = transformer.estimator if type(transformer).__name__ == "FrozenEstimator" else next(
            (step for _, step in transformer.steps if step is not None and not isinstance(step, str)), None)
    return transformer


def raw_names(transformer: Any, path: str) -> tuple[list[str], Container]:
    """The raw columns' names, and what they were fitted in: a frame, or an array (then they are x0, x1, …).

    Vectorizers take a "series" of text, whose column is called `TEXT`; a hasher of fields takes "records", whose names
    only a sample knows.
    """
    first = first_step(transformer)
    while type(first).__name__ == "FeatureUnion":
        first = first_step(next((step for _, step in first.transformer_list if not isinstance(step, str)), None))
    if type(first).__name__ in sklearn_text.VECTORIZERS:
        return [TEXT], "series"
    if type(first).__name__ == "FeatureHasher":
        return [], {"dict": "records", "pair": "pairs"}.get(first.input_type, "array")  # type: ignore[return-value]
    first = first_step(transformer)
    while type(first).__name__ == "FeatureUnion" and not hasattr(first, "n_features_in_"):  # its first is "passthrough"
        first = first_step(next((step for _, step in first.transformer_list if not isinstance(step, str)), None))
    names = getattr(first, "feature_names_in_", None)
    if names is not None:
        return [str(name) for name in names], "frame"
    count = getattr(first, "n_features_in_", None)
    if count is None:
        raise refuse(path, f"{type(first).__name__} does not say how many columns it was fitted on; "
                           "give a sample, or fit the pipeline again")
    return [f"x{i}" for i in range(int(count))], "array"


def trace_sklearn(
    transformer: Any,
    *,
    dtype: str,
    allow: str,
    names: Sequence[str],
    container: Container,
    samples: Mapping[str, Sampled] | None,
    missing: Mapping[str, str],
    path: str,
) -> Spec:
    """The spec of a fitted transformer.

    Args:
        dtype: of the output, "float32" or "float64".
        allow: what the estimator behind it takes, see `Output`.
        names, container: of the raw columns, see `raw_names`.
        samples: each column's type in a sample, or None.
        missing: columns whose missing values are known to be "nan" or "none".
        path: what the transformer is called in messages.

    Raises:
        ImportRefusedError: what cannot be expressed, by its path.
    """
    for name in names:
        if name.startswith(NUL):
            raise refuse(path, f"the column {name!r} begins with NUL; give it another name")
    columns = columns_of(transformer, names, samples, framed=container != "array", missing=missing, path=path)
    trace = Trace(taken=set(names))
    matrix = convert(trace, transformer, raw_matrix(columns, container, samples), path)
    sparse = matrix.container == "sparse"
    most = MAX_FEATURES if sparse else MAX_WIDTH
    if not 0 < matrix.width <= most:
        raise refuse(path, f"it gives {matrix.width:,} features; 1 to {most:,} are served")
    matrix = finished(trace, matrix, dtype, path)
    features = named(transformer, matrix, column_names(trace.steps, widths_of(trace.steps)))
    read = {source for step in trace.steps for source in step.sources} | {feature.value for feature in matrix.features}
    ignored = tuple([column.name for column in columns if column.name not in read])
    if len(ignored) == len(columns):
        raise refuse(path, "it reads no column")
    for column in columns:
        name = column.name
        if column.datatype == "BOOL" and samples and samples[name].missing and name in read:
            raise refuse(path, f"the column {name!r} holds booleans and missing values; make it text or a number")
    return Spec(tuple([column for column in columns if column.name in read]), tuple(trace.steps),
                Output(dtype, allow, features, sparse), ignored)


def whole(column: Column, sampled: np.dtype[Any] | None) -> str:
    """Whether the fitted column held integers though it travels as floats; see `Feature`."""
    if column.datatype != "FP64" or column.dtype == "float32":
        return "no"
    if sampled is None:
        return "unknown"
    return "no" if sampled.kind not in "iu" else "yes" if sampled.itemsize >= 4 else "narrow"


def raw_matrix(columns: Sequence[Column], container: Container, samples: Mapping[str, Sampled] | None) -> Matrix:
    kinds = {"FP64": "number", "BOOL": "number", "INT64": "integer", "BYTES": "text"}
    features = tuple([
        Feature(column.name, column.name, kinds[column.datatype],  # type: ignore[arg-type]
                OBJECT if column.dtype in ("str", "object") else np.dtype(column.dtype),
                unsigned=column.datatype != "FP64",
                none=column.missing == "none" and (column.datatype == "BYTES" or column.dtype == "object"),
                whole=whole(column, None if samples is None else samples[column.name].dtype),
                extension=samples is not None and bool(samples[column.name].extension))
        for column in columns
    ])
    return Matrix(features, container)


def finished(trace: Trace, matrix: Matrix, dtype: str, path: str) -> Matrix:
    """`.astype(dtype)`: integers go straight to it; objects are Python's, and go through float64."""
    integers = [feature for feature in matrix.features if feature.kind == "integer"]
    for feature in matrix.features:
        if feature.kind == "text":
            raise refuse(path, f"the column {feature.name!r} is text still; an encoder must make numbers of it")
    straight = dtype == "float32" and matrix.dtype.kind in "iu"
    values = trace.write("cast", path, integers, **(single(np.dtype(np.float32)) if straight else {"dtype": "float64"}))
    plain = dict(zip(integers, values, strict=True))
    matrix = replace(matrix, features=tuple([
        replace(feature, value=plain.get(feature, feature.value),
                kind="vector" if feature.kind == "vector" else "number") for feature in matrix.features
    ]))
    return unsigned(trace, matrix, path) if matrix.container == "sparse" else matrix


def named(transformer: Any, matrix: Matrix, own: Mapping[str, Sequence[str]]) -> Features:
    """The output's features under scikit-learn's names, or the trace's where scikit-learn has none.

    It has none of a FunctionTransformer without them, and of hashes. ``own``: what the steps call a vector's columns.
    """
    try:
        labels = [str(name) for name in transformer.get_feature_names_out()]
    except (AttributeError, ValueError, ImportRefusedError):
        labels = []
    parts: list[tuple[str, str] | Run] = []
    start = 0
    for feature in matrix.features:
        given = labels[start : start + feature.width] if len(labels) == matrix.width else None
        start += feature.width
        if feature.kind != "vector":
            parts.append((feature.name if given is None else given[0], feature.value))
            continue
        names: Sequence[str] = list(feature.column_names()) if given is None and feature.names != own[feature.value] \
            else given or ()
        if not names or (len(names) == len(own[feature.value])
                         and all(a == feature.name + b for a, b in zip(names, own[feature.value], strict=True))):
            parts.append(Run(feature.name, own[feature.value], feature.value))
        else:
            parts.append(Run("", names, feature.value, named=True))
    return Features(parts)
