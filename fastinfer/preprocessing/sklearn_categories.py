"""scikit-learn's encoders of categories as look-ups."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastinfer.preprocessing.tracing import FLOAT64, Feature, Matrix, Trace, is_nan, refuse


def encoded_features(trace: Trace, matrix: Matrix, path: str) -> tuple[Feature, ...]:
    """The columns as an encoder checks them: a frame column by column, floats without infinity."""
    if matrix.container == "sparse":
        raise refuse(path, "it gets a sparse matrix, which it does not take")
    if matrix.container != "frame":  # of a frame of polars too it makes one array
        return trace.checked(matrix.as_array(), path, allow_nan=True).features
    floats = [feature for feature in matrix.features if feature.dtype.kind == "f"]
    trace.write("check", path, floats, allow="nan")
    return matrix.features


def lookup(feature: Feature, categories: Iterable[Any], codes: Sequence[Any], path: str) -> dict[str, Any]:
    """The parameters of a look-up: categories that a value of this kind can equal, with their codes.

    A category of another type (text among numbers) equals no value, and is left out; its code stays taken.
    """
    known: list[Any] = []
    kept: list[Any] = []
    found: dict[str, Any] = {}
    for category, code in zip(categories, codes, strict=True):
        if category is None or is_nan(category):
            if category is None and feature.kind != "text":
                raise refuse(path, f"the column {feature.name!r} has None among its numbers")
            found["none" if category is None else "nan"] = code
            continue
        plain = plain_category(category, feature, path)
        if plain is not None:
            known.append(plain)
            kept.append(code)
    if len(set(known)) != len(known):
        raise refuse(path, f"categories of the column {feature.name!r} that are equal")
    return {"categories": tuple(known), "kept": tuple(kept), **found}


def plain_category(category: Any, feature: Feature, path: str) -> str | int | float | None:
    if isinstance(category, str):
        if feature.kind != "text":
            return None
        try:
            category.encode()
        except UnicodeEncodeError:
            raise refuse(path, f"a category of {feature.name!r} is not valid Unicode: {category!r}") from None
        return str(category)
    numbers = (bool, int, float, np.bool_, np.integer, np.floating)
    if not isinstance(category, numbers) or isinstance(category, np.timedelta64):
        raise refuse(path, f"a category of {feature.name!r} is {type(category).__name__}: {category!r}")
    if feature.kind == "text":
        return None
    try:
        finite = math.isfinite(category)
    except OverflowError:
        raise refuse(path, f"a category of {feature.name!r} is a whole number beyond float64") from None
    if not finite:
        raise refuse(path, f"a category of {feature.name!r} is infinite")
    if feature.kind == "integer":
        return int(category) if float(category).is_integer() else None
    if isinstance(category, (int, np.integer)) and int(float(category)) != int(category):
        raise refuse(path, f"the category {category} of {feature.name!r} is not exact as a float64")
    return float(category)


def grouped(encoder: Any, i: int) -> tuple[list[int], int | None]:
    """Each category's index after the infrequent ones were grouped, and the group's (None: no such group)."""
    count = len(encoder.categories_[i])
    mapping = encoder._default_to_infrequent_mappings[i] if getattr(encoder, "_infrequent_enabled", False) else None
    if mapping is None:
        return list(range(count)), None
    indices = [int(index) for index in mapping]
    return indices + list(range(len(indices), count)), max(indices)  # a missing category is kept out of the groups


def one_hot_encoder(trace: Trace, encoder: Any, matrix: Matrix, path: str) -> Matrix:
    return encode_onehot(trace, encoder, matrix, path, np.dtype(encoder.dtype))


def encode_onehot(trace: Trace, encoder: Any, matrix: Matrix, path: str, dtype: np.dtype[Any]) -> Matrix:
    features: list[Feature] = []
    for i, feature in enumerate(encoded_features(trace, matrix, path)):
        categories = encoder.categories_[i]
        indices, group = grouped(encoder, i)
        drops = encoder._drop_idx_after_grouping
        drop = None if drops is None or drops[i] is None else int(drops[i])
        width = max(indices) + 1 - (drop is not None)

        def position(index: int, drop: int | None = drop) -> int | None:
            if index == drop:
                return None
            return index - 1 if drop is not None and index > drop else index

        parameters = lookup(feature, categories, [position(index) for index in indices], path)
        parameters["positions"] = parameters.pop("kept")
        if encoder.handle_unknown != "error":
            takes = encoder.handle_unknown in ("infrequent_if_exist", "warn") and group is not None
            parameters["unknown"] = position(group) if takes and group is not None else None
        names = [f"{feature.name}_{label}" for label in labels(categories, indices, drop, group)]
        if len(names) != width:
            raise refuse(path, f"{width} columns for the categories of {feature.name!r}")
        values = trace.write("onehot", path, [feature], names, **parameters)
        features.extend(Feature(name, value, "number", dtype, unsigned=True)
                        for name, value in zip(names, values, strict=True))
    return Matrix(tuple(features), "sparse" if encoder.sparse_output else "array")


def labels(categories: Sequence[Any], indices: list[int], drop: int | None, group: int | None) -> list[str]:
    """A label for each column; the group of infrequent categories has scikit-learn's, be it of one."""
    found: dict[int, list[str]] = {}
    for category, index in zip(categories, indices, strict=True):
        boxed = group is not None and isinstance(category, np.generic)  # in one array with the group's name
        found.setdefault(index, []).append(str(category.item() if boxed else category))
    return ["infrequent_sklearn" if index == group else names[0] for index, names in sorted(found.items())
            if index != drop]


def ordinal_encoder(trace: Trace, encoder: Any, matrix: Matrix, path: str) -> Matrix:
    dtype = np.dtype(encoder.dtype)
    if dtype.kind not in "fiu" or dtype == np.float16:
        raise refuse(path, f"codes of dtype {dtype}")
    features: list[Feature] = []
    for i, feature in enumerate(encoded_features(trace, matrix, path)):
        categories = encoder.categories_[i]
        codes = [stored(index, dtype, path) for index in grouped(encoder, i)[0]]
        if is_nan(categories[-1]):
            codes[-1] = stored(encoder.encoded_missing_value, dtype, path)
        parameters = lookup(feature, categories, codes, path)
        parameters["codes"] = parameters.pop("kept")
        if encoder.handle_unknown == "use_encoded_value":
            parameters["unknown"] = stored(encoder.unknown_value, dtype, path)
        (value,) = trace.write("ordinal", path, [feature], **parameters)
        features.append(Feature(feature.name, value, "number", dtype))
    return Matrix(tuple(features), "array")


def target_encoder(trace: Trace, encoder: Any, matrix: Matrix, path: str) -> Matrix:
    """A category's mean target, or one for each class; unknown categories get the overall mean."""
    means = [float(mean) for mean in np.atleast_1d(encoder.target_mean_)]
    features: list[Feature] = []
    for i, feature in enumerate(encoded_features(trace, matrix, path)):
        for j, mean in enumerate(means):
            codes = [float(code) for code in encoder.encodings_[i * len(means) + j]]
            parameters = lookup(feature, encoder.categories_[i], codes, path)
            parameters["codes"] = parameters.pop("kept")
            name = feature.name if len(means) == 1 else f"{feature.name}_{encoder.classes_[j]}"
            (value,) = trace.write("ordinal", path, [feature], [name], unknown=mean, **parameters)
            features.append(Feature(name, value, "number", FLOAT64))
    return Matrix(tuple(features), "array")


def stored(code: Any, dtype: np.dtype[Any], path: str) -> float:
    """A code as the encoder's output array holds it."""
    try:
        value = float(np.full(1, code, dtype)[0])
    except (OverflowError, ValueError):
        raise refuse(path, f"the code {code!r} does not fit {dtype}") from None
    if dtype.kind in "iu" and value != code:
        raise refuse(path, f"the code {code!r} does not fit {dtype}")
    return value
