"""What `Program.fit` is asked for: TOML or a dict as typed values, read strictly; every fault names its place.

`docs/guide/features.md` describes it. A plan is a list of entries; an entry sends some columns through some transforms.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from fastinfer._core import TIME_PART_NAMES
from fastinfer.errors import ConfigurationError
from fastinfer.options import nearest
from fastinfer.preprocessing.patterns import PatternError, parse_pattern
from fastinfer.preprocessing.spec import FUNCTIONS, MAX_WIDTH, SCIPY_FUNCTIONS, Place, read_dtype
from fastinfer.preprocessing.vectors import ANALYZERS, MAX_FEATURES

Reader = Callable[[Place], Any]
# The period of each part that comes round again, for cycles.
PERIODS: Final[Mapping[str, float]] = {
    "quarter": 4.0, "month": 12.0, "week": 53.0, "day": 31.0, "day_of_year": 366.0, "weekday": 7.0, "hour": 24.0,
    "minute": 60.0, "second": 60.0, "microsecond": 1e6, "second_of_day": 86400.0,
}
ROOT: Final = "spec"


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform by the options it has.

    Attributes:
        takes: the kinds of column it takes: "number", "category" (any but dates), "text", "date".
        options: how each is read.
        required: those that must be given.
        target: it learns from y.
    """

    takes: str
    options: Mapping[str, Reader] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    target: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """One transform of an entry.

    Attributes:
        op: a key of `TRANSFORMS`, or the name of a function.
        options: those that are given.
        path: its place, for messages.
    """

    op: str
    options: Mapping[str, Any]
    path: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Columns and what becomes of them; ``name``, where there is one, goes before the features' names."""

    columns: tuple[str, ...]
    stages: tuple[Stage, ...]
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is asked for; ``sparse``: the result is a sparse matrix (None: where it is wide)."""

    entries: tuple[Entry, ...]
    dtype: str
    allow: str
    sparse: bool | None


# ---- readers -----------------------------------------------------------------------------------------------------
def choice(*choices: str) -> Reader:
    def read(place: Place) -> str:
        if not isinstance(place.value, str) or place.value not in choices:
            hint = nearest(place.value, choices) if isinstance(place.value, str) else ""
            raise place.wrong(f"{' or '.join(repr(each) for each in choices)}", hint)
        return place.value

    return read


def within(low: float, high: float, *, whole: bool = True) -> Reader:
    def read(place: Place) -> Any:
        value = place.integer() if whole else place.number()
        if not low <= value <= high:
            raise place.wrong(f"a number from {low:,} to {high:,}")
        return value

    return read


def pair(read: Reader) -> Reader:
    """Two values, of which the first is not above the second."""
    def both(place: Place) -> tuple[Any, Any]:
        items = place.items()
        if len(items) != 2:
            raise place.wrong("two values")
        low, high = read(items[0]), read(items[1])
        if low > high:
            raise place.wrong("two ascending values")
        return low, high

    return both


def either(first: Reader, word: str) -> Reader:
    """What ``first`` reads, or the word itself."""
    return lambda place: word if isinstance(place.value, str) and place.value == word else first(place)


def read_fill(place: Place) -> str | float:
    return place.text() if isinstance(place.value, str) and place.value != "nan" else place.number()


def read_frequency(place: Place) -> int | float:
    """A count, or a share below 1."""
    if isinstance(place.value, float):
        if not 0 < place.value < 1:
            raise place.wrong("a count, or a share between 0 and 1")
        return place.value
    return int(within(1, 2**53)(place))


def read_edges(place: Place) -> tuple[float, ...]:
    numbers = place.numbers()
    if not numbers or any(low >= high for low, high in pairwise(numbers)):
        raise place.wrong("numbers that ascend")
    return numbers


def read_parts(place: Place) -> tuple[str, ...]:
    items = place.items() if isinstance(place.value, list) else [place]
    return tuple([choice(*TIME_PART_NAMES)(item) for item in items])


def read_cycles(place: Place) -> tuple[str, ...]:
    items = place.items() if isinstance(place.value, list) else [place]
    return tuple([choice(*PERIODS)(item) for item in items])


def read_pattern(place: Place) -> str:
    try:
        parse_pattern(place.text())
    except PatternError as error:
        raise place.fault(str(error)) from None
    return place.text()


def read_vectors(place: Place) -> dict[str, tuple[float, ...]]:
    """A list of numbers for each category, all of one length."""
    if not isinstance(place.value, dict) or not place.value:
        raise place.wrong("a table with a list of numbers for each category")
    found = {str(key): Place(row, f"{place.path}.{key}").numbers() for key, row in place.value.items()}
    first = next(iter(found.values()))
    for key, row in found.items():
        if len(row) != len(first) or not row:
            wanted = f"{max(len(first), 1)} numbers, as the first category has"
            raise Place(list(row), f"{place.path}.{key}").wrong(wanted)
    return found


def read_positive(place: Place) -> float:
    number = place.number()
    if not 0 < number < float("inf"):
        raise place.wrong("a number above 0")
    return number


GROUPING: Final[Mapping[str, Reader]] = {"min_frequency": read_frequency, "max_categories": within(1, 2**31)}
TRANSFORMS: Final[Mapping[str, Transform]] = {
    "impute": Transform("category", {
        "strategy": choice("mean", "median", "most_frequent", "constant"), "fill_value": read_fill,
        "add_indicator": Place.flag,
    }),
    "indicate": Transform("category"),
    "standard": Transform("number", {"with_mean": Place.flag, "with_std": Place.flag}),
    "minmax": Transform("number", {"feature_range": pair(Place.number), "clip": Place.flag}),
    "maxabs": Transform("number"),
    "robust": Transform("number", {
        "with_centering": Place.flag, "with_scaling": Place.flag,
        "quantile_range": pair(within(0, 100, whole=False)), "unit_variance": Place.flag,
    }),
    "normalize": Transform("number", {"norm": choice("l1", "l2", "max")}),
    "clip": Transform("number", {"low": Place.number, "high": Place.number}),
    "binarize": Transform("number", {"threshold": Place.number}),
    "bucketize": Transform("number", {
        "edges": read_edges, "n_bins": within(2, MAX_WIDTH), "strategy": choice("quantile", "uniform"),
        "encode": choice("onehot", "ordinal"),
    }),
    "power": Transform("number", {"method": choice("yeo-johnson", "box-cox"), "standardize": Place.flag}),
    "quantile": Transform("number", {
        "n_quantiles": within(1, 10**6), "output_distribution": choice("uniform", "normal"),
        "subsample": within(1, 2**53), "random_state": within(0, 2**32 - 1),
    }),
    "polynomial": Transform("number", {
        "degree": within(0, 32), "interaction_only": Place.flag, "include_bias": Place.flag,
    }),
    "onehot": Transform("category", {
        "drop": choice("first", "if_binary"), "handle_unknown": choice("error", "ignore", "infrequent_if_exist"),
        **GROUPING,
    }),
    "ordinal": Transform("category", {
        "unknown_value": Place.number, "encoded_missing_value": Place.number, **GROUPING,
    }),
    "frequency": Transform("category", {"normalize": Place.flag, "unknown_value": Place.number}),
    "target": Transform("category", {
        "smooth": either(within(0, float("inf"), whole=False), "auto"),
        "target_type": choice("auto", "continuous", "binary", "multiclass"),
    }, target=True),
    "cross": Transform("category"),
    "hash": Transform("category", {
        "n_buckets": within(1, MAX_FEATURES), "cross": Place.flag, "encode": choice("onehot", "ordinal"),
    }, required=("n_buckets",)),
    "embed": Transform("category", {
        "vectors": read_vectors, "unknown": Place.numbers, "missing": Place.numbers,
    }, required=("vectors",)),
    "date_parts": Transform("date", {"parts": read_parts}, required=("parts",)),
    "cycle": Transform("date", {"part": read_cycles, "period": read_positive}, required=("part",)),
    "hash_text": Transform("text", {
        "n_features": within(1, MAX_FEATURES), "analyzer": choice(*ANALYZERS), "ngram_range": pair(within(1, 1000)),
        "lowercase": Place.flag, "strip_accents": choice("ascii", "unicode"), "token_pattern": read_pattern,
        "stop_words": Place.texts, "binary": Place.flag, "norm": choice("l1", "l2", "none"),
        "alternate_sign": Place.flag,
    }),
}
FUNCTION: Final = Transform("number")  # whatever function is called by its name


# ---- the plan ----------------------------------------------------------------------------------------------------
def read_plan(spec: str | Path | Mapping[str, Any]) -> Plan:
    """A plan of TOML (as text, or the path of a file) or of a dict.

    Raises:
        ConfigurationError: not as documented; the message names the place, and the nearest known name.
    """
    root = Place(loaded(spec), ROOT)
    given = members(root, ("features", "dtype", "allow", "sparse"), ("features",))
    entries = tuple([read_entry(place) for place in given["features"].items()])
    if not entries:
        raise given["features"].fault("no entry, so no feature")
    return Plan(
        entries,
        read_dtype(given["dtype"]) if "dtype" in given else "float64",
        choice("finite", "nan", "any")(given["allow"]) if "allow" in given else "any",
        given["sparse"].flag() if "sparse" in given else None,
    )


def loaded(spec: str | Path | Mapping[str, Any]) -> Any:
    """A dict as it is; TOML parsed. Text of one line without ``=`` is the path of a file."""
    if isinstance(spec, Mapping):
        return plain(spec)
    if not isinstance(spec, (str, Path)):
        raise ConfigurationError(f"{ROOT}: expected TOML, the path of a file, or a dict, got a {type(spec).__name__}")
    named = isinstance(spec, Path) or ("\n" not in spec and "=" not in spec)
    where = f"{spec}" if named else ROOT
    try:
        return tomllib.loads(Path(spec).read_bytes().decode() if named else str(spec))
    except OSError as error:
        raise ConfigurationError(f"{where}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{where}: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where}: not TOML: {error}") from None


def plain(value: Any) -> Any:
    """Tuples, and numpy's arrays and scalars, as what TOML has."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(value.tolist()) if hasattr(value, "dtype") and hasattr(value, "tolist") else value


def members(place: Place, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Place]:
    """The members of a table; an unknown or a missing one is a fault."""
    if not isinstance(place.value, dict):
        raise place.wrong("a table")
    known = tuple(known)
    for key in place.value:
        if key not in known:
            raise Place(None, f"{place.path}.{key}").fault(
                f"unknown.{nearest(str(key), known)} Known are {', '.join(known) or 'none'}")
    for key in required:
        if key not in place.value:
            raise place.fault(f"{key!r} is missing")
    return {key: Place(value, f"{place.path}.{key}") for key, value in place.value.items()}


def read_entry(place: Place) -> Entry:
    given = members(place, ("columns", "steps", "name"), ("columns",))
    columns = given["columns"]
    names = (columns.text(),) if isinstance(columns.value, str) else columns.texts()
    if not names:
        raise columns.fault("no column")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise columns.items()[i].fault(f"the column {name!r} stands twice")
    steps = given["steps"] if "steps" in given else Place([], f"{place.path}.steps")
    items = steps.items() if isinstance(steps.value, list) else [steps]
    stages = tuple([read_stage(item) for item in items])
    return Entry(names, stages, given["name"].text() if "name" in given else "", place.path)


def read_stage(place: Place) -> Stage:
    """A transform's name, or a table with ``op`` and its options."""
    if isinstance(place.value, str):
        op, table = place, Place({}, place.path)
    elif isinstance(place.value, dict) and "op" in place.value:
        op = Place(place.value["op"], f"{place.path}.op")
        table = Place({key: value for key, value in place.value.items() if key != "op"}, place.path)
    else:
        raise place.wrong("the name of a transform, or a table with its name as 'op'")
    transform = find_transform(op)
    given = members(table, transform.options, transform.required)
    return Stage(op.value, {key: transform.options[key](item) for key, item in given.items()}, place.path)


def find_transform(op: Place) -> Transform:
    name = op.text()
    if name in TRANSFORMS:
        return TRANSFORMS[name]
    if name in FUNCTIONS or name in SCIPY_FUNCTIONS:
        return FUNCTION
    known = (*TRANSFORMS, *FUNCTIONS, *SCIPY_FUNCTIONS)
    raise op.fault(f"no transform is called {name!r}.{nearest(name, known)} Known are {', '.join(TRANSFORMS)}, and the "
                   "functions that docs/guide/features.md lists")
