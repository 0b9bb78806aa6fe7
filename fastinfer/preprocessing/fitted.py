"""What scikit-learn's transformers learn from data, by the same operations of numpy in the same order, without it.

Each function gives an object with the attributes that scikit-learn's fitted transformer has, as far as the import reads
them. A matrix [rows, columns] lies in memory as scikit-learn would hold it, since the order of a sum depends on that.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastinfer.errors import ConfigurationError
from fastinfer.preprocessing.plans import Stage

Array = npt.NDArray[Any]
CONSTANT_EDGES: Final = (-np.inf, np.inf)
NUMBERS: Final = (bool, int, float, np.number, np.bool_)


@dataclass(frozen=True, slots=True)
class Categories:
    """The values of one column.

    Attributes:
        values: the different ones, ascending, a missing one last: scikit-learn's `categories_`.
        counts: how often each is there.
        codes: which of them each row has.
    """

    values: Array
    counts: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]


def fault(stage: Stage, message: str) -> ConfigurationError:
    return ConfigurationError(f"{stage.path} ({stage.op}): {message}", stage.path)


def needed(module: str, stage: Stage) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise fault(stage, "needs scipy: pip install scipy") from None


# ---- numbers -----------------------------------------------------------------------------------------------------
def accumulated(operation: Any, x: Array) -> Any:
    """A sum down the columns, of float32 in float64."""
    return operation(x, axis=0, dtype=np.float64) if x.dtype.itemsize < 8 else operation(x, axis=0)


def is_constant(variance: Any, mean: Any, count: Any) -> Array:
    eps = np.finfo(np.float64).eps
    return np.asarray(variance <= count * eps * variance + (count * mean * eps) ** 2)


def without_zeros(scale: Array, constant: Array | None = None) -> Array:
    """Scales by which no value becomes infinite."""
    constant = scale < 10 * np.finfo(scale.dtype).eps if constant is None else constant
    return np.where(constant, scale.dtype.type(1), scale)


def standard(stage: Stage, x: Array) -> SimpleNamespace:
    """`StandardScaler`: the two-pass variance of Chan, Golub and LeVeque."""
    options = {"with_mean": True, "with_std": True, **stage.options}
    missing = np.isnan(x)
    operation = np.nansum if missing.any() else np.sum
    total = accumulated(operation, x)
    count = len(x) - accumulated(operation, missing.astype(x.dtype))
    mean = (np.float64(0) + total) / count
    apart = x - total / count
    correction = accumulated(operation, apart)
    apart **= 2
    variance = (accumulated(operation, apart) - correction**2 / count) / count
    scale = without_zeros(np.sqrt(variance), is_constant(variance, mean, count))
    return SimpleNamespace(**options, mean_=mean, scale_=scale, casts_mean_first=True)


def min_max(stage: Stage, x: Array) -> SimpleNamespace:
    options = {"feature_range": (0.0, 1.0), "clip": False, **stage.options}
    low, high = (np.asarray(bound, x.dtype) for bound in options["feature_range"])
    if low >= high:
        raise fault(stage, "the feature_range is empty")
    least, most = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    scale = (high - low) / without_zeros(most - least)
    return SimpleNamespace(**options, scale_=scale, min_=low - least * scale)


def max_abs(stage: Stage, x: Array) -> SimpleNamespace:
    return SimpleNamespace(scale_=without_zeros(np.nanmax(np.abs(x), axis=0)), clip=False)


def robust(stage: Stage, x: Array) -> SimpleNamespace:
    options = {"with_centering": True, "with_scaling": True, "quantile_range": (25.0, 75.0), "unit_variance": False,
               **stage.options}
    low, high = options["quantile_range"]
    quantiles: Any = np.transpose([np.nanpercentile(column, (low, high)) for column in x.T])
    scale = without_zeros(quantiles[1] - quantiles[0])
    if options["unit_variance"]:
        normal = needed("scipy.stats", stage).norm
        scale = scale / (normal.ppf(high / 100.0) - normal.ppf(low / 100.0))
    return SimpleNamespace(**options, center_=np.nanmedian(x, axis=0), scale_=scale)


def power(stage: Stage, x: Array) -> SimpleNamespace:
    """`PowerTransformer`: scipy finds the lambdas."""
    options = {"method": "yeo-johnson", "standardize": True, **stage.options}
    stats = needed("scipy.stats", stage)
    special = needed("scipy.special", stage)
    if options["method"] == "box-cox" and np.nanmin(x) <= 0:
        raise fault(stage, "box-cox takes numbers above 0")
    constant = is_constant(np.var(x, axis=0, dtype=np.float64), np.mean(x, axis=0, dtype=np.float64), len(x))
    x = np.array(x)
    lambdas = np.empty(x.shape[1], dtype=x.dtype)
    for i in range(x.shape[1]):
        present = x[:, i][~np.isnan(x[:, i])]
        if options["method"] == "yeo-johnson" and constant[i]:
            lambdas[i] = 1.0
            continue
        try:
            lambdas[i] = (stats.boxcox if options["method"] == "box-cox" else stats.yeojohnson)(present, lmbda=None)[1]
        except (ValueError, RuntimeError) as error:
            raise fault(stage, str(error)) from None
        with np.errstate(invalid="ignore"):
            x[:, i] = (special.boxcox if options["method"] == "box-cox" else stats.yeojohnson)(x[:, i], lambdas[i])
    scaler = None
    if options["standardize"]:
        scaler = standard(Stage("standard", {}, stage.path), x)
        x = (x - scaler.mean_.astype(x.dtype)) / scaler.scale_.astype(x.dtype)
    return SimpleNamespace(**options, lambdas_=lambdas, _scaler=scaler, transformed=x)


def normalized(x: Array, norm: str) -> Array:
    """`Normalizer`: rows divided by their norm."""
    size = np.abs(x)
    if norm == "l2":
        norms = np.sqrt(np.einsum("ij,ij->i", x, x))
    else:
        norms = size.sum(axis=1) if norm == "l1" else size.max(axis=1)
    return np.asarray(x / without_zeros(norms)[:, np.newaxis])


def quantile(stage: Stage, x: Array) -> SimpleNamespace:
    options = {"n_quantiles": 1000, "output_distribution": "uniform", "subsample": 10_000, "random_state": 0,
               **stage.options}
    if options["n_quantiles"] > options["subsample"]:
        raise fault(stage, f"{options['n_quantiles']} quantiles of a subsample of {options['subsample']} rows")
    references = np.linspace(0, 1, max(1, min(options["n_quantiles"], len(x))), endpoint=True)
    if options["subsample"] < len(x):
        rows = np.arange(len(x))
        np.random.RandomState(options["random_state"]).shuffle(rows)
        x = x[rows[: options["subsample"]]]
    return SimpleNamespace(**options, references_=references, quantiles_=np.nanpercentile(x, references * 100, axis=0))


def bins(stage: Stage, x: Array) -> SimpleNamespace:
    """`KBinsDiscretizer` of the strategies "quantile" and "uniform"; with ``edges`` those are the inner ones."""
    options = {"n_bins": 5, "strategy": "quantile", "encode": "onehot", **stage.options}
    edges: list[Array] = []
    for column in x.T:
        if "edges" in options:
            edges.append(np.array([-np.inf, *options["edges"], np.inf]))
        elif column.min() == column.max():
            edges.append(np.array(CONSTANT_EDGES))
        elif options["strategy"] == "uniform":
            edges.append(np.linspace(column.min(), column.max(), options["n_bins"] + 1))
        else:
            levels = np.linspace(0, 100, options["n_bins"] + 1)
            found = np.asarray(np.percentile(column, levels, method="averaged_inverted_cdf"), dtype=np.float64)
            edges.append(found[np.ediff1d(found, to_begin=np.inf) > 1e-8])
            if len(edges[-1]) == 1 and options["encode"] == "onehot":
                raise fault(stage, f"column {len(edges) - 1} of the entry has values so close that no bin is left")
    encoder = encoder_of([np.arange(len(each) - 1, dtype=np.float64) for each in edges], x.dtype)
    return SimpleNamespace(bin_edges_=edges, dtype=None, encode=options["encode"], _encoder=encoder)


# ---- missing values ----------------------------------------------------------------------------------------------
def imputer(stage: Stage, x: Array) -> SimpleNamespace:
    """`SimpleImputer`, and its indicator of the columns in which something is missing."""
    options = {"strategy": "most_frequent" if x.dtype == object else "mean", "fill_value": None,
               "add_indicator": False, **stage.options}
    missing = missing_of(x)
    empty = np.flatnonzero(missing.all(axis=0))
    if len(empty) and options["strategy"] != "constant":
        raise fault(stage, f"column {int(empty[0])} of the entry has no value to learn from")
    return SimpleNamespace(
        **options, missing_values=np.nan, keep_empty_features=True, statistics_=statistics(stage, options, x, missing),
        indicator_=indicator(stage, x, of=np.flatnonzero(missing.any(axis=0))), _fit_dtype=x.dtype, _fill_dtype=x.dtype)


def statistics(stage: Stage, options: Mapping[str, Any], x: Array, missing: Array) -> Array:
    strategy, text = options["strategy"], x.dtype == object
    if strategy == "constant":
        fill = options["fill_value"]
        fill = ("missing_value" if text else 0.0) if fill is None else fill
        if isinstance(fill, str) != text:
            raise fault(stage, f"the fill_value {fill!r} in columns of {'text' if text else 'numbers'}")
        return np.full(x.shape[1], fill, dtype=x.dtype)
    if text and strategy != "most_frequent":
        raise fault(stage, f"text has no {strategy}; its strategies are 'most_frequent' and 'constant'")
    if strategy == "most_frequent":
        return np.array([most_frequent(x[~missing[:, i], i]) for i in range(x.shape[1])],
                        dtype=object if text else np.float64)
    masked = np.ma.masked_array(x, mask=missing)
    return np.ma.getdata((np.ma.mean if strategy == "mean" else np.ma.median)(masked, axis=0))


def most_frequent(column: Array) -> Any:
    """The smallest of the most frequent values."""
    if column.dtype == object:
        counts = Counter(column.tolist())
        most = max(counts.values())
        return min(value for value, count in counts.items() if count == most)
    values, frequencies = np.unique(column, return_counts=True)
    return values[np.argmax(frequencies)]


def indicator(stage: Stage, x: Array, of: Any = None) -> SimpleNamespace:
    """`MissingIndicator` of all columns, or of some."""
    features = np.arange(x.shape[1]) if of is None else of
    return SimpleNamespace(features_=features, missing_values=np.nan, features="all", error_on_new=False, sparse=False)


def missing_of(x: Array) -> npt.NDArray[np.bool_]:
    if x.dtype != object:
        return np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, dtype=bool)
    return np.asarray(x != x)  # NaN is what is missing in text


# ---- categories --------------------------------------------------------------------------------------------------
def categories_of(column: Array) -> Categories:
    """The values of a column of numbers, booleans, or text with NaN where it is missing."""
    if column.dtype != object:
        values, codes, counts = np.unique(column, return_inverse=True, return_counts=True)
        return Categories(values, counts, codes.reshape(-1))
    missing = missing_of(column)
    known = sorted(set(column[~missing].tolist()))
    places = {value: i for i, value in enumerate(known)}
    codes = np.array([places.get(value, len(known)) for value in column.tolist()], dtype=np.int64)
    values = np.array([*known, *([np.nan] if missing.any() else [])], dtype=object)
    return Categories(values, np.bincount(codes, minlength=len(values)), codes)


def encoder_of(categories: Sequence[Array], dtype: Any = np.float64) -> SimpleNamespace:
    """A `OneHotEncoder` of so many categories that refuses others."""
    return SimpleNamespace(categories_=list(categories), _infrequent_enabled=False, _drop_idx_after_grouping=None,
                           handle_unknown="error", sparse_output=False, dtype=dtype)


def infrequent(options: Mapping[str, Any], counts: Array, rows: int) -> Array | None:
    """Which categories are so rare that they are grouped; None: none."""
    least = options.get("min_frequency")
    rare = counts < (least * rows if isinstance(least, float) else least or 0)
    most = options.get("max_categories")
    if most is not None and most < counts.size - rare.sum() + 1:
        rare[np.argsort(counts, kind="mergesort")[: len(counts) - (most - 1)]] = True
    found = np.flatnonzero(rare)
    return found if found.size else None


def grouping(options: Mapping[str, Any], counts: Array, rows: int) -> Array | None:
    """Each category's index once the infrequent ones are one group, the last."""
    rare = infrequent(options, counts, rows)
    if rare is None:
        return None
    mapping = np.empty(len(counts), dtype=np.int64)
    mapping[rare] = len(counts) - rare.size
    mapping[np.setdiff1d(np.arange(len(counts)), rare)] = np.arange(len(counts) - rare.size)
    return mapping


def grouped_encoder(stage: Stage, columns: Sequence[Categories], *, apart: bool) -> SimpleNamespace:
    """The groups of infrequent categories; with ``apart`` a missing value is never in one."""
    found = encoder_of([column.values for column in columns])
    if "min_frequency" not in stage.options and "max_categories" not in stage.options:
        return found
    found._infrequent_enabled = True
    found._default_to_infrequent_mappings = []
    for column in columns:
        counts = column.counts[:-1] if apart and has_missing(column) else column.counts
        found._default_to_infrequent_mappings.append(grouping(stage.options, counts, len(column.codes)))
    return found


def has_missing(column: Categories) -> bool:
    last = column.values[-1]
    return isinstance(last, (float, np.floating)) and bool(np.isnan(last))


def one_hot(stage: Stage, columns: Sequence[Categories]) -> SimpleNamespace:
    found = grouped_encoder(stage, columns, apart=False)
    found.handle_unknown = stage.options.get("handle_unknown", "error")
    drop = stage.options.get("drop")
    if drop is not None:
        mappings = getattr(found, "_default_to_infrequent_mappings", [None] * len(columns))
        widths = [len(column.values) if mapping is None else int(mapping.max()) + 1
                  for column, mapping in zip(columns, mappings, strict=True)]
        found._drop_idx_after_grouping = [0 if drop == "first" or width == 2 else None for width in widths]
    return found


def ordinal(stage: Stage, columns: Sequence[Categories]) -> SimpleNamespace:
    found = grouped_encoder(stage, columns, apart=True)
    unknown = stage.options.get("unknown_value")
    found.encoded_missing_value = stage.options.get("encoded_missing_value", np.nan)
    found.unknown_value = unknown
    found.handle_unknown = "error" if unknown is None else "use_encoded_value"
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be predicted.

    Attributes:
        values: array [rows] of numbers: the target, or the number of its class.
        classes: of a classification, else None.
    """

    values: Array
    classes: Array | None


def target_of(stage: Stage, y: Any, rows: int) -> Target:
    """The target as `TargetEncoder` takes it: two values or more whole ones are classes."""
    if y is None:
        raise fault(stage, "learns from the target; give y, an array or the name of a column")
    values = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y)
    if values.dtype == object and all(isinstance(value, NUMBERS) for value in values.tolist()):
        values = np.array(values.tolist())
    if values.ndim != 1 or len(values) != rows:
        raise fault(stage, f"y has shape {values.shape}, and there are {rows} rows")
    text = values.dtype.kind in "OUS"
    lost = [value is None or value != value or type(value).__name__ == "NAType" for value in values.tolist()]
    if any(lost):
        raise fault(stage, f"y is missing in row {lost.index(True)}")
    if not text and values.dtype.kind not in "biuf":
        raise fault(stage, f"y is of dtype {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise fault(stage, "y is infinite")
    kind = stage.options.get("target_type", "auto")
    if kind == "auto":
        fractions = values.dtype.kind == "f" and bool((values != np.floor(values)).any())
        kind = "continuous" if fractions else "binary" if len(set(values.tolist())) <= 2 else "multiclass"
    if kind == "continuous":
        if text:
            raise fault(stage, "y is text, and a continuous target is numbers")
        return Target(values, None)
    classes = np.array(sorted(set(values.tolist())), dtype=object if text else values.dtype)
    if kind == "binary" and len(classes) != 2:
        raise fault(stage, f"a binary target has two classes, and y has {len(classes)}")
    places = {value: i for i, value in enumerate(classes.tolist())}
    return Target(np.array([places[value] for value in values.tolist()], dtype=np.int64), classes)


def target(stage: Stage, columns: Sequence[Categories], y: Any) -> SimpleNamespace:
    """`TargetEncoder` of all rows: what its `fit` learns; its `fit_transform` encodes a row by the others."""
    goal = target_of(stage, y, len(columns[0].codes))
    one = goal.classes is None or len(goal.classes) <= 2
    targets = [goal.values]
    if goal.classes is not None and not one:
        targets = [(goal.values == i).astype(np.int64) for i in range(len(goal.classes))]
    means = [np.mean(values) for values in targets]
    smooth = stage.options.get("smooth", "auto")
    encodings = [encoded(column, values, mean, smooth) for column in columns
                 for values, mean in zip(targets, means, strict=True)]
    return SimpleNamespace(categories_=[column.values for column in columns], encodings_=encodings,
                           classes_=goal.classes, target_mean_=means[0] if one else np.array(means))


def encoded(column: Categories, y: Array, mean: Any, smooth: float | str) -> Array:
    """What each category becomes: the mean of its rows, drawn to that of all."""
    count = len(column.values)
    numbers = y.astype(np.float64)
    if smooth != "auto":
        sums = np.full(count, float(smooth) * float(mean))
        np.add.at(sums, column.codes, numbers)
        return np.asarray(sums / (column.counts + float(smooth)))
    variance = float(np.var(y))
    means = np.bincount(column.codes, weights=numbers, minlength=count) / column.counts
    apart = numbers - means[column.codes]
    spread = np.bincount(column.codes, weights=apart * apart, minlength=count)
    with np.errstate(all="ignore"):
        share = variance * column.counts / (variance * column.counts + spread / column.counts)
        found: Array = np.where(np.isnan(share), float(mean), share * means + (1 - share) * float(mean))
    return found
