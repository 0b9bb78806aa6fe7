"""What a fitted pipeline knows about its raw columns: text, integers, booleans or floats, and how wide.

A sample says it best. Without one, encoders tell by their categories and imputers by the dtype they were fitted on;
a column that nothing tells about is float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastinfer.preprocessing.sklearn_selection import SELECTORS
from fastinfer.preprocessing.spec import Column
from fastinfer.preprocessing.tracing import FLOAT32, is_nan, refuse

Origins = Sequence["Origin | None"] | None  # None: a transformer that is not known gave these columns
SAME_COLUMNS = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "Binarizer", "Normalizer",
                "PowerTransformer", "QuantileTransformer")
SINGLE = ("data_min_", "max_abs_", "center_", "lambdas_", "quantiles_", "components_")  # as the data they saw
MAX_SHOWN = 100  # categories that features.json repeats for documentation


@dataclass(slots=True)
class Evidence:
    """What was seen of one raw column.

    Attributes:
        categories: of encoders that read it.
        direct: whether one of them read it as it came (not through an imputer, which may change its dtype).
        text: whether something fills it with text.
        dtypes: that numeric transformers were fitted on.
        none: whether None counts as missing.
        example: a value it may have, for documentation.
        range: smallest and largest number that a transformer was fitted on, likewise.
    """

    categories: list[Any] = field(default_factory=list)
    dtype: np.dtype[Any] | None = None
    direct: bool = False
    text: bool = False
    single: bool = False
    none: bool = False
    example: Any = None
    range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A column of a matrix that is a raw column still, filled in at most."""

    evidence: Evidence
    direct: bool = True


def observe(transformer: Any, origins: Origins) -> Origins:
    """Walk a fitted transformer and note what it tells about each raw column; the origins of what it gives."""
    if origins is None or transformer is None or isinstance(transformer, str):
        return origins if transformer != "drop" else []
    if type(transformer).__name__ == "FrozenEstimator":
        return observe(transformer.estimator, origins)
    observer = OBSERVERS.get(type(transformer).__name__)
    if observer is not None:
        return observer(transformer, origins)
    note_floats(transformer, origins)
    return [None] * len(origins) if type(transformer).__name__ in SAME_COLUMNS else None


def observe_pipeline(pipeline: Any, origins: Origins) -> Origins:
    for _, step in pipeline.steps:
        origins = observe(step, origins)
    return origins


def observe_columns(transformer: Any, origins: Origins) -> Origins:
    from fastinfer.preprocessing.from_sklearn import column_parts

    parts = [observe(part, [origins[i] for i in indices])
             for _, part, indices, _ in column_parts(transformer)] if origins is not None else []
    return None if any(part is None for part in parts) else [origin for part in parts for origin in part or ()]


def observe_union(union: Any, origins: Origins) -> Origins:
    parts = [observe(part, origins) for _, part in union.transformer_list if not is_drop(part)]
    return None if any(part is None for part in parts) else [origin for part in parts for origin in part or ()]


def observe_selector(transformer: Any, origins: Origins) -> Origins:
    kept = [(origins or [])[int(i)] for i in transformer.get_support(indices=True)]
    return [None if origin is None else Origin(origin.evidence, direct=False) for origin in kept]


def is_drop(transformer: Any) -> bool:
    return isinstance(transformer, str) and transformer == "drop"


def observe_encoder(encoder: Any, origins: Origins) -> Origins:
    for origin, categories in zip(origins or (), encoder.categories_, strict=False):
        if origin is None:
            continue
        origin.evidence.categories.extend(categories)
        if origin.direct:
            origin.evidence.direct = True
            origin.evidence.dtype = categories.dtype
    return None if type(encoder).__name__ != "OrdinalEncoder" else [None] * len(encoder.categories_)


def observe_imputer(imputer: Any, origins: Origins) -> Origins:
    kept: list[Origin | None] = []
    for origin, statistic in zip(origins or (), imputer.statistics_, strict=False):
        if origin is not None:
            origin.evidence.text |= isinstance(statistic, str)
            origin.evidence.single |= imputer._fit_dtype == FLOAT32
            origin.evidence.none |= imputer.missing_values is None
            if not is_nan(statistic):
                origin.evidence.example = statistic
            origin = Origin(origin.evidence, direct=False)
        if imputer.keep_empty_features or not is_nan(statistic):
            kept.append(origin)
    return kept + [None] * (len(imputer.indicator_.features_) if imputer.add_indicator else 0)


def observe_vectorizer(vectorizer: Any, origins: Origins) -> Origins:
    for origin in origins or ():
        if origin is not None:
            origin.evidence.text = True
            origin.evidence.example = text_example(vectorizer)
    return None


def text_example(vectorizer: Any) -> str:
    terms = getattr(vectorizer, "vocabulary_", None) if getattr(vectorizer, "analyzer", "") == "word" else None
    return " ".join(sorted([str(term) for term in terms or ("some", "text")])[:5])


def observe_hasher(hasher: Any, origins: Origins) -> Origins:
    return observe_vectorizer(hasher, origins) if hasher.input_type == "string" else None


def observe_function(transformer: Any, origins: Origins) -> Origins:
    return origins if transformer.func is None else [None] * len(origins or ())


def note_floats(transformer: Any, origins: Origins) -> None:
    """A scaler whose own arrays are float32 was fitted on float32."""
    arrays = [getattr(transformer, name, None) for name in SINGLE]
    example = next((getattr(transformer, name) for name in ("mean_", "center_", "data_min_")
                    if getattr(transformer, name, None) is not None), None)
    for i, origin in enumerate(origins or ()):
        if origin is None:
            continue
        origin.evidence.single |= any(getattr(array, "dtype", None) == FLOAT32 for array in arrays)
        if origin.evidence.example is None and example is not None and len(example) > i:
            origin.evidence.example = float(example[i])
        if origin.evidence.range is None:
            origin.evidence.range = fitted_range(transformer, i)


def fitted_range(transformer: Any, column: int) -> tuple[float, float] | None:
    """The smallest and the largest number of a column, as far as a scaler keeps them."""
    low, high = (getattr(transformer, name, None) for name in ("data_min_", "data_max_"))
    if low is None or high is None or column >= len(low):
        return None
    return number_range((low[column], high[column]))


def number_range(values: Any) -> tuple[float, float] | None:
    """The smallest and the largest of a column's finite numbers."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except OverflowError:  # whole numbers beyond float64
        return None
    finite = numbers[np.isfinite(numbers)]
    return (float(finite.min()), float(finite.max())) if len(finite) else None


OBSERVERS = {
    "Pipeline": observe_pipeline,
    "ColumnTransformer": observe_columns,
    "FeatureUnion": observe_union,
    "OneHotEncoder": observe_encoder,
    "OrdinalEncoder": observe_encoder,
    "TargetEncoder": observe_encoder,
    "SimpleImputer": observe_imputer,
    "FunctionTransformer": observe_function,
    **dict.fromkeys(("CountVectorizer", "TfidfVectorizer", "HashingVectorizer"), observe_vectorizer),
    "FeatureHasher": observe_hasher,
    **dict.fromkeys(SELECTORS, observe_selector),
}


@dataclass(frozen=True, slots=True)
class Sampled:
    """A column of a sample.

    Attributes:
        dtype: as an array of numpy has it.
        values: where that is object, what they are: "text", "number" or "bool".
        missing: whether some are.
        extension: a dtype of pandas with pandas.NA that stands for its own, or "".
        range: smallest and largest of its numbers.
    """

    dtype: np.dtype[Any]
    values: str = ""
    missing: bool = False
    extension: str = ""
    range: tuple[float, float] | None = None


def classify(name: str, evidence: Evidence, sample: Sampled | None, path: str) -> tuple[str, str]:
    """(datatype, dtype) of a column."""
    dtype = None if sample is None else sample.dtype
    present = [value for value in evidence.categories if value is not None and not is_nan(value)]
    if dtype is not None and dtype.kind in "US":
        return "BYTES", "str"
    texts = evidence.text or any(isinstance(value, str) for value in present)
    if texts if dtype is None else sample.values == "text":  # type: ignore[union-attr]
        return "BYTES", "object"
    if dtype is not None and dtype.kind == "b":
        return "BOOL", "bool"
    holder = dtype if dtype is not None else evidence.dtype if evidence.direct else None
    boxed = holder is not None and holder.kind == "O"
    if present and all(isinstance(value, (bool, np.bool_)) for value in present):
        if len(present) != len(evidence.categories):
            raise refuse(path, f"the column {name!r} holds booleans and missing values; make it text or a number")
        return "BOOL", "object" if boxed else "bool"
    integral = present and len(present) == len(evidence.categories) and all(is_integer(value) for value in present)
    if evidence.direct and integral and holder is not None and holder.kind in "iuO":
        return "INT64", "object" if boxed else str(holder)
    if boxed and sample is not None and sample.values == "bool":
        return "BOOL", "object"
    if boxed:
        return "FP64", "object"
    if dtype is not None and dtype not in (FLOAT32, np.dtype(np.float64)) and dtype.kind not in "iu":
        raise refuse(path, f"the column {name!r} is of dtype {dtype}; make it text, a number or a boolean")
    # Integers that are only computed with travel as floats: a later row may be missing, or not whole.
    single = dtype == FLOAT32 if dtype is not None else evidence.single
    return "FP64", "float32" if single else "float64"


def is_integer(value: Any) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))
    return whole and -(2**63) <= int(value) < 2**63


def columns_of(transformer: Any, names: Sequence[str], samples: Mapping[str, Sampled] | None, *,
               framed: bool, missing: Mapping[str, str], path: str) -> tuple[Column, ...]:
    """Every raw column as the wire will have it."""
    evidence = [Evidence() for _ in names]
    observe(transformer, [Origin(item) for item in evidence])
    kinds = [classify(name, item, samples[name] if samples else None, path)
             for name, item in zip(names, evidence, strict=True)]
    refuse_narrow(samples or {}, path)
    if not framed:
        kinds = one_array(kinds, names, path)
    return tuple([
        Column(name, datatype, dtype, missing="nan" if dtype == "str" else missing.get(name, missing_of(item)),
               categories=shown_categories(item, datatype), example=example_of(item, datatype),
               range=range_of(item, datatype, samples[name] if samples else None))
        for name, item, (datatype, dtype) in zip(names, evidence, kinds, strict=True)
    ])


def refuse_narrow(samples: Mapping[str, Sampled], path: str) -> None:
    """Integers of 8 or 16 bits beside float32 make float32; as the float64 they travel as, they would not."""
    narrow = [name for name, sample in samples.items() if sample.dtype.kind in "iu" and sample.dtype.itemsize < 4]
    if narrow and any(sample.dtype == FLOAT32 for sample in samples.values()):
        raise refuse(path, f"the column {narrow[0]!r} is {samples[narrow[0]].dtype}, beside columns of float32; "
                           "make it float32 too")


def one_array(kinds: list[tuple[str, str]], names: Sequence[str], path: str) -> list[tuple[str, str]]:
    """Columns of one numpy array share a dtype: object as soon as one of them holds text."""
    dtypes = {dtype for _, dtype in kinds}
    if "object" in dtypes or "str" in dtypes:
        return [(datatype, "object") for datatype, _ in kinds]
    if {datatype for datatype, _ in kinds} == {"BOOL"}:
        return kinds
    if "float32" in dtypes and dtypes <= {"float32"}:
        return kinds
    if {datatype for datatype, _ in kinds} == {"INT64"} and len(dtypes) == 1:
        return kinds
    widest = str(np.result_type(*[np.dtype(dtype) for dtype in dtypes]))
    return [("FP64", widest) for _ in names]


def missing_of(evidence: Evidence) -> str:
    values = evidence.categories
    none = evidence.none or any(value is None for value in values)
    return "none" if none else "nan"


def shown_categories(evidence: Evidence, datatype: str) -> tuple[Any, ...]:
    whole = (int, np.integer)
    wanted: Any = {"BYTES": str, "INT64": whole, "FP64": (*whole, float, np.floating)}.get(datatype)
    if wanted is None:
        return ()
    found = dict.fromkeys(value for value in evidence.categories
                          if isinstance(value, wanted) and not isinstance(value, np.timedelta64) and not is_nan(value))
    convert: Any = {"BYTES": str, "INT64": int, "FP64": float}[datatype]
    try:
        return tuple([convert(value) for value in list(found)[:MAX_SHOWN]])
    except OverflowError:  # whole numbers beyond float64
        return ()


def range_of(evidence: Evidence, datatype: str, sample: Sampled | None) -> tuple[float, float] | None:
    if datatype not in ("FP64", "INT64") or shown_categories(evidence, datatype):
        return None
    return evidence.range if sample is None or sample.range is None else sample.range


def example_of(evidence: Evidence, datatype: str) -> str | float | bool | None:
    shown = shown_categories(evidence, datatype)
    if datatype == "BOOL":
        return True
    if shown:
        return shown[0]  # type: ignore[no-any-return]
    example = evidence.example
    if datatype == "BYTES":
        return str(example) if isinstance(example, str) else "text"
    if isinstance(example, (int, float, np.number)) and np.isfinite(example):
        return int(example) if datatype == "INT64" else float(example)
    return 0 if datatype == "INT64" else 0.0

