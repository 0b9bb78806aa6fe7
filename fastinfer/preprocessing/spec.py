"""features.json as typed values, read strictly: the operator may edit it by hand, so every fault names its place.

A program is a list of steps over named values. The raw columns are the first values; a step reads some (``from``) and
writes new ones (``to``); nothing is written twice. ``docs/reference/features.md`` describes each operation.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fastinfer._core import TIME_PART_NAMES
from fastinfer.errors import ConfigurationError
from fastinfer.preprocessing import vectors
from fastinfer.preprocessing.vectors import Features, Run

VERSION: Final = 2
DATETIME: Final = "datetime"  # the dtype of a column of dates
MAX_WIDTH: Final = 16_384  # features of a dense program
Kind = Literal["number", "integer", "text", "time", "vector"]
KINDS: Final[Mapping[str, Kind]] = {"FP64": "number", "INT64": "integer", "BOOL": "number", "BYTES": "text"}
# A column's dtype as fitted, for each datatype it may travel as.
DTYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "FP64": ("float64", "float32", "object"),
    "INT64": ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "object"),
    "BOOL": ("bool", "object"),
    "BYTES": ("str", "object", DATETIME),
}
# numpy functions of one number, by name. True: rounded exactly by IEEE 754, so equal on every machine.
FUNCTIONS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("absolute", "ceil", "fabs", "floor", "negative", "positive", "reciprocal", "rint", "sign", "sqrt",
                     "square", "trunc"), True),
    **dict.fromkeys(("arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "cbrt", "cos", "cosh", "deg2rad",
                     "degrees", "exp", "exp2", "expm1", "log", "log10", "log1p", "log2", "rad2deg", "radians", "sin",
                     "sinh", "tan", "tanh"), False),
}
SCIPY_FUNCTIONS: Final = ("expit", "logit")  # of scipy.special
MAX_DEGREE: Final = 64  # of a spline
SPECIAL: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True)
class Column:
    """One raw column.

    Attributes:
        name: as records write it.
        datatype: on the wire, FP64, INT64, BOOL or BYTES.
        dtype: in the frame that was fitted; "datetime" where the text is a date, with or without a time.
        nullable: whether the program takes a missing value there.
        missing: what scikit-learn saw as missing text, "nan" or "none".
        categories: known values, for pages and documentation; not read by the program.
        example: a value, for pages and documentation.
        range: smallest and largest number that was seen, likewise.
    """

    name: str
    datatype: str
    dtype: str
    nullable: bool = False
    missing: str = "nan"
    categories: tuple[str | float, ...] = ()
    example: str | float | bool | None = None
    range: tuple[float, float] | None = None

    @property
    def kind(self) -> Kind:
        """What its values are to the steps."""
        return "time" if self.dtype == DATETIME else KINDS[self.datatype]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on named values.

    Attributes:
        op: a key of ``OPERATIONS``.
        sources, targets: names of values.
        parameters: the operation's own fields, as ``OPERATIONS`` declares them.
        path: where it came from in the fitted pipeline.
    """

    op: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """The matrix that the estimator gets.

    Attributes:
        dtype: "float32" or "float64".
        allow: what the estimator takes: "finite", "nan" (missing too) or "any".
        features: pairs of feature name and value name, in order; a vector's columns may stand as one run.
        sparse: scikit-learn gives a sparse matrix, and so does `Program.transform`.
    """

    dtype: str
    allow: str
    features: Features
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole program.

    Attributes:
        ignored: columns that the pipeline was fitted on and does not read.
        task: the members of a `fastinfer._core.Task`, or None.
        certificate: golden rows, or None.
    """

    columns: tuple[Column, ...]
    steps: tuple[Step, ...]
    output: Output
    ignored: tuple[str, ...] = ()
    task: Mapping[str, Any] | None = None
    certificate: Mapping[str, Any] | None = None


class Place:
    """A value of the document and the JSON path that leads to it."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "$") -> None:
        self.value = value
        self.path = path

    def fault(self, message: str) -> ConfigurationError:
        return ConfigurationError(f"{self.path}: {message}", self.path)

    def wrong(self, wanted: str, hint: str = "") -> ConfigurationError:
        try:
            shown = json.dumps(self.value, ensure_ascii=False, default=repr)
        except (TypeError, ValueError, RecursionError):  # of keys that are no text, or a number of too many digits
            shown = f"a {type(self.value).__name__}"
        return self.fault(f"expected {wanted}, got {shown if len(shown) <= 80 else shown[:77] + '...'}.{hint}"
                          .removesuffix("."))

    def items(self) -> "list[Place]":
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Place(value, f"{self.path}[{i}]") for i, value in enumerate(self.value)]

    def members(self, known: Iterable[str], required: Iterable[str]) -> "dict[str, Place]":
        """The members of an object; an unknown or a missing one is a fault."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        known = tuple(known)
        for key in self.value:
            if key not in known:
                raise Place(None, f"{self.path}.{key}").fault(f"unknown member; known are {', '.join(known)}")
        for key in required:
            if key not in self.value:
                raise self.fault(f"the member {key!r} is missing")
        return {key: Place(value, f"{self.path}.{key}") for key, value in self.value.items()}

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise self.wrong("valid Unicode") from None
        return self.value

    def choice(self, *choices: str) -> str:
        if not isinstance(self.value, str) or self.value not in choices:
            raise self.wrong(" or ".join(repr(choice) for choice in choices))
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def integer(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.wrong("an integer")
        return self.value

    def number(self) -> float:
        """A JSON number, or "nan", "inf", "-inf"."""
        if isinstance(self.value, str) and self.value in SPECIAL:
            return SPECIAL[self.value]
        if not isinstance(self.value, (int, float)) or isinstance(self.value, bool):
            raise self.wrong('a number, "nan", "inf" or "-inf"')
        try:
            return float(self.value)
        except OverflowError:
            raise self.wrong("a number within float64") from None

    def numbers(self) -> tuple[float, ...]:
        return tuple([place.number() for place in self.items()])

    def texts(self) -> tuple[str, ...]:
        return tuple([place.text() for place in self.items()])


def read_position(place: Place) -> int | None:
    """A one-hot position; null is a category that leaves all zeros."""
    if place.value is None:
        return None
    position = place.integer()
    if position < 0:
        raise place.wrong("a position from 0 on, or null")
    return position


def read_categories(place: Place) -> tuple[str | int | float, ...]:
    """All strings, all integers or all numbers; which one must suit the value that is encoded."""
    places = place.items()
    if all(isinstance(item.value, str) for item in places):
        return place.texts()
    if all(isinstance(item.value, int) and not isinstance(item.value, bool) for item in places):
        return tuple([item.integer() for item in places])
    return place.numbers()


def read_range(place: Place) -> tuple[float, float]:
    numbers = place.numbers()
    if len(numbers) != 2 or not numbers[0] <= numbers[1]:
        raise place.wrong("the smallest and the largest number")
    return numbers[0], numbers[1]


def read_missing(place: Place) -> str | float | Mapping[str, str]:
    """"nan", "none", "any", a number, or {"text": "?"}."""
    if isinstance(place.value, str) and place.value not in ("inf", "-inf"):
        return place.choice("nan", "none", "any")
    if isinstance(place.value, dict):
        return {"text": place.members(["text"], ["text"])["text"].text()}
    return place.number()


def read_fill(place: Place) -> str | float | None:
    """A string or a number; null fills text with None."""
    return place.value if place.value is None or isinstance(place.value, str) else place.number()


def read_fills(place: Place) -> tuple[str | float | None, ...]:
    return tuple([read_fill(item) for item in place.items()])


def read_unknown_position(place: Place) -> int | str | None:
    return "refuse" if place.value == "refuse" else read_position(place)


def read_unknown_number(place: Place) -> float | str:
    return "refuse" if place.value == "refuse" else place.number()


def read_terms(place: Place) -> tuple[tuple[int, ...], ...]:
    """Products of sources by their positions, in the order of multiplication."""
    return tuple([tuple([factor.integer() for factor in term.items()]) for term in place.items()])


def read_matrix(place: Place) -> tuple[tuple[float, ...], ...]:
    return tuple([row.numbers() for row in place.items()])


def read_dtype(place: Place) -> str:
    return place.choice("float64", "float32")


@dataclass(frozen=True, slots=True)
class Operation:
    """How an operation of features.json is written.

    Attributes:
        kinds: the kinds of value it reads.
        result: the kind it writes; "same" as it read; None where it writes nothing.
        shape: "each" (from and to pair up), "one" (one to one), "many" (one to many), "all" (many to many) or "join"
            (many to one).
        required, optional: its parameters and how each is read.
        vectors: parameters with one entry for each value it reads.
    """

    kinds: tuple[Kind, ...]
    result: Kind | Literal["same"] | None
    shape: Literal["each", "one", "many", "all", "join"]
    required: Mapping[str, Callable[[Place], Any]] = field(default_factory=dict)
    optional: Mapping[str, Callable[[Place], Any]] = field(default_factory=dict)
    vectors: tuple[str, ...] = ()


ARITHMETIC: Final = Operation(
    ("number",), "number", "each", {"by": Place.numbers}, {"dtype": read_dtype}, vectors=("by",)
)
ANALYSIS: Final[Mapping[str, Callable[[Place], Any]]] = {
    "analyzer": vectors.read_analyzer, "ngrams": vectors.read_ngrams, "lowercase": Place.flag,
}
ANALYSIS_OPTIONS: Final[Mapping[str, Callable[[Place], Any]]] = {
    "strip_accents": vectors.read_strip, "token_pattern": vectors.read_pattern, "stop_words": vectors.read_terms,
    "binary": Place.flag, "dtype": read_dtype,
}
HASHING: Final[Mapping[str, Callable[[Place], Any]]] = {
    "features": vectors.read_features, "alternate_sign": Place.flag,
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "cast": Operation(("number", "integer"), "number", "each", {"dtype": read_dtype}),
    "check": Operation(
        ("number", "text", "vector"), None, "each", {"allow": lambda place: place.choice("finite", "nan", "positive")}
    ),
    "impute": Operation(
        ("number", "text"), "same", "each", {"missing": read_missing, "fill": read_fills}, vectors=("fill",)
    ),
    "indicate": Operation(("number", "text"), "number", "each", {"missing": read_missing}),
    "subtract": ARITHMETIC,
    "add": ARITHMETIC,
    "multiply": ARITHMETIC,
    "divide": ARITHMETIC,
    "clip": Operation(("number",), "number", "each", {"low": Place.number, "high": Place.number}),
    "binarize": Operation(("number",), "number", "each", {"threshold": Place.number}),
    "function": Operation(("number",), "number", "each", {"function": Place.text}, {"dtype": read_dtype}),
    "bucketize": Operation(("number",), "number", "one", {"edges": Place.numbers}),
    "date_part": Operation(("time",), "number", "each", {"part": lambda place: place.choice(*TIME_PART_NAMES)}),
    "ordinal": Operation(
        ("number", "integer", "text"), "number", "one",
        {"categories": read_categories, "codes": Place.numbers},
        {"nan": Place.number, "none": Place.number, "unknown": read_unknown_number},
    ),
    "onehot": Operation(
        ("number", "integer", "text"), "number", "many",
        {"categories": read_categories, "positions": lambda place: tuple([read_position(p) for p in place.items()])},
        {"nan": read_position, "none": read_position, "unknown": read_unknown_position},
    ),
    "bucket": Operation(("number", "integer", "text"), "number", "join", {"buckets": vectors.read_features}),
    "embed": Operation(
        ("number", "integer", "text"), "number", "many",
        {"categories": read_categories, "rows": vectors.read_features, "table": Place.text},
        {"nan": read_position, "none": read_position, "unknown": read_unknown_position},
    ),
    "power": Operation(
        ("number",), "number", "each",
        {"method": lambda place: place.choice("box-cox", "yeo-johnson"), "lambdas": Place.numbers},
        {"dtype": read_dtype}, vectors=("lambdas",),
    ),
    "quantile": Operation(
        ("number",), "number", "one",
        {"quantiles": Place.numbers, "distribution": lambda place: place.choice("uniform", "normal")},
        {"dtype": read_dtype},
    ),
    "spline": Operation(
        ("number",), "number", "many",
        {"degree": Place.integer, "knots": Place.numbers,
         "extrapolation": lambda place: place.choice("error", "continue", "periodic", "edges")},
        {"low": Place.number, "high": Place.number, "reach": Place.integer, "low_values": Place.numbers,
         "high_values": Place.numbers, "low_slopes": Place.numbers, "high_slopes": Place.numbers, "sparse": Place.flag,
         "dtype": read_dtype},
    ),
    "normalize": Operation(
        ("number",), "number", "all", {"norm": lambda place: place.choice("l1", "l2", "max")},
        {"sparse": Place.flag, "dtype": read_dtype},
    ),
    "polynomial": Operation(
        ("number",), "number", "all", {"terms": read_terms}, {"sparse": Place.flag, "dtype": read_dtype}
    ),
    "project": Operation(
        ("number",), "number", "all", {"matrix": read_matrix}, {"sparse": Place.flag, "dtype": read_dtype}
    ),
    "count": Operation(("text",), "vector", "one", {**ANALYSIS, "vocabulary": vectors.read_terms}, ANALYSIS_OPTIONS),
    "hash": Operation(("text",), "vector", "one", {**ANALYSIS, **HASHING}, ANALYSIS_OPTIONS),
    "hash_words": Operation(("text",), "vector", "join", HASHING),
    "hash_fields": Operation(("number", "text"), "vector", "join", {"names": Place.texts, **HASHING},
                             {"dtype": read_dtype}),
    "tfidf": Operation(("vector",), "vector", "one", {}, {"sublinear": Place.flag, "idf": Place.numbers,
                                                          "dtype": read_dtype}),
    "norm": Operation(("vector",), "vector", "one", {"norm": lambda place: place.choice("l1", "l2", "max")},
                      {"dtype": read_dtype}),
    "scale": Operation(("vector",), "vector", "one", {"by": vectors.read_scale}, {"dtype": read_dtype}),
    "limit": Operation(("vector",), "vector", "one", {"low": Place.number, "high": Place.number}),
    "pick": Operation(("vector",), "vector", "one", {"positions": vectors.read_positions}),
    "join": Operation(("number", "vector"), "vector", "join"),
    "spread": Operation(("vector",), "number", "many"),
    "dot": Operation(("vector",), "number", "many", {"weights": Place.text, "bias": Place.numbers}),
}


def parse(document: Any) -> Spec:
    """A spec from parsed JSON.

    Raises:
        ConfigurationError: anything that is not as documented; ``at`` is the JSON path.
    """
    root = Place(document)
    if isinstance(document, dict) and "fastinfer" in document:
        version = Place(document["fastinfer"], "$.fastinfer")
        if version.integer() > VERSION:
            raise version.fault(f"written by a newer fastinfer (format {version.value}); this one reads {VERSION}")
        if version.value < 1:
            raise version.wrong(f"a format from 1 to {VERSION}")
    required = ("fastinfer", "columns", "steps", "output")
    members = root.members((*required, "ignored", "task", "certificate"), required)
    columns = tuple([parse_column(place) for place in members["columns"].items()])
    kinds: dict[str, Kind] = {}
    for column, place in zip(columns, members["columns"].items(), strict=True):
        if column.name in kinds:
            raise place.fault(f"the column {column.name!r} stands twice")
        kinds[column.name] = column.kind
    widths: dict[str, int] = {}
    steps = tuple([parse_step(place, kinds, widths) for place in members["steps"].items()])
    task = members.get("task")
    certificate = members.get("certificate")
    return Spec(
        columns,
        steps,
        parse_output(members["output"], kinds, widths, vectors.column_names(steps, widths)),
        members["ignored"].texts() if "ignored" in members else (),
        None if task is None or task.value is None else parse_task(task),
        None if certificate is None else certificate.value,
    )


def parse_column(place: Place) -> Column:
    known = ("name", "datatype", "dtype", "nullable", "missing", "categories", "example", "range")
    members = place.members(known, ("name", "datatype", "dtype"))
    datatype = members["datatype"].choice(*KINDS)
    column = Column(
        column_name(members["name"]),
        datatype,
        members["dtype"].choice(*DTYPES[datatype]),
        members["nullable"].flag() if "nullable" in members else False,
        members["missing"].choice("nan", "none") if "missing" in members else "nan",
        read_categories(members["categories"]) if "categories" in members else (),
        members["example"].value if "example" in members else None,
        read_range(members["range"]) if "range" in members else None,
    )
    if column.nullable and datatype in ("INT64", "BOOL"):
        raise members["nullable"].fault(f"a column of datatype {datatype} cannot be missing")
    if not isinstance(column.example, (str, int, float, type(None))):
        raise members["example"].wrong("a string, a number, true, false or null")
    return column


def column_name(place: Place) -> str:
    if place.text().startswith("\0"):  # the lowering calls values of its own so
        raise place.wrong("a name that does not begin with NUL")
    return place.text()


def parse_step(place: Place, kinds: dict[str, Kind], widths: dict[str, int]) -> Step:
    """Read a step and add the values it writes to ``kinds``, and a vector's columns to ``widths``."""
    if not isinstance(place.value, dict) or "op" not in place.value:
        raise place.wrong('an object with the member "op"')
    op = Place(place.value["op"], f"{place.path}.op").choice(*OPERATIONS)
    operation = OPERATIONS[op]
    writes = ("to",) if operation.result else ()
    required = ("op", "from", *writes, *operation.required)
    members = place.members((*required, *operation.optional, "path"), required)
    sources = members["from"].texts()
    targets = members["to"].texts() if writes else ()
    check_values(members, operation, kinds)
    readers = {**operation.required, **operation.optional}
    parameters: Mapping[str, Any] = {key: read(members[key]) for key, read in readers.items() if key in members}
    for key in operation.vectors:
        if len(parameters[key]) != len(sources):
            raise members[key].fault(f"{len(parameters[key])} entries for {len(sources)} values")
    parameters = checked_parameters(op, members, parameters, kinds)
    if op in vectors.VECTOR_OPERATIONS or operation.kinds == ("vector",):
        parameters = vectors.check_vector_step(op, members, parameters, widths)
    if operation.result == "vector":
        widths[targets[0]] = vectors.vector_width(op, parameters, sources, widths)
        if widths[targets[0]] > vectors.MAX_FEATURES:
            raise members["to"].fault(f"{widths[targets[0]]} columns; a vector has at most {vectors.MAX_FEATURES:,}")
    for target in targets:
        kinds[target] = kinds[sources[0]] if operation.result == "same" else operation.result  # type: ignore[assignment]
    return Step(op, sources, targets, parameters, members["path"].text() if "path" in members else "")


def check_values(members: Mapping[str, Place], operation: Operation, kinds: Mapping[str, Kind]) -> None:
    """What a step reads exists and is of a kind it takes; what it writes is new."""
    sources = members["from"].items()
    several = operation.shape in ("each", "all", "join")
    if not sources or (not several and len(sources) != 1):
        raise members["from"].wrong("one value or more" if several else "one value")
    first = kinds.get(sources[0].value)
    for source in sources:
        if source.value not in kinds:
            raise source.fault(f"no column and no earlier step is called {source.value!r}")
        if kinds[source.value] not in operation.kinds or (operation.result == "same" and kinds[source.value] != first):
            raise source.fault(f"{source.value!r} is {kinds[source.value]}, "
                               f"and the operation takes {' or '.join(operation.kinds)}")
    if operation.result is None:
        return
    targets = members["to"].items()
    wanted = {"each": len(sources), "one": 1, "join": 1}.get(operation.shape, len(targets))
    if len(targets) != wanted:
        raise members["to"].fault(f"{len(targets)} values for {wanted}")
    seen: set[str] = set()
    for target in targets:
        if target.text() in kinds or target.value in seen:
            raise target.fault(f"{target.value!r} exists already")
        if target.value.startswith("\0"):
            raise target.wrong("a name that does not begin with NUL")
        seen.add(target.value)


def checked_fills(place: Place, kind: Kind) -> tuple[str | float | None, ...]:
    """Text that reads "nan" is text in a column of text, and a number in one of numbers."""
    if kind == "number":
        return place.numbers()
    return tuple([None if item.value is None else item.text() for item in place.items()])


def checked_parameters(
    op: str, members: Mapping[str, Place], parameters: Mapping[str, Any], kinds: Mapping[str, Kind]
) -> Mapping[str, Any]:
    """The parameters, where they are right in what their types alone do not say.

    Raises:
        ConfigurationError: they are not.
    """
    kind = kinds[members["from"].value[0]]
    if op == "bucketize":
        edges = parameters["edges"]
        if any(math.isnan(edge) for edge in edges) or list(edges) != sorted(edges):
            raise members["edges"].fault("the edges must ascend")
    elif op in ("impute", "indicate"):
        check_missing(members, parameters, kind)
        return {**parameters, "fill": checked_fills(members["fill"], kind)} if op == "impute" else parameters
    elif op == "check" and kind == "text" and parameters["allow"] != "finite":
        raise members["allow"].fault('for text, only "finite" (no NaN) can be checked')
    elif op in ("ordinal", "onehot"):
        check_encoding(members, parameters, kind, parameters["codes" if op == "ordinal" else "positions"])
        check_positions(op, members, parameters)
    elif op == "embed":
        rows, width = parameters["rows"], len(members["to"].items())
        check_encoding(members, parameters, kind, parameters["categories"])
        used = [len(parameters["categories"]) - 1, *(parameters.get(key) for key in ("nan", "none", "unknown"))]
        if not width or any(isinstance(row, int) and row >= rows for row in used):
            raise members["rows"].fault(f"a category, or what is missing or unknown, has no row among {rows}")
        for key in ("nan", "none", "unknown"):
            if key in members and parameters[key] is None:
                raise members[key].wrong("a row")
        return {**parameters, "table": vectors.unpacked(members["table"], (rows, width))}
    elif op == "function":
        members["function"].choice(*FUNCTIONS, *SCIPY_FUNCTIONS)
    elif op == "quantile":
        check_ascending(members["quantiles"])
    elif op == "spline":
        check_spline(members, parameters)
    elif op in ("normalize", "polynomial", "project"):
        check_whole(op, members, parameters)
    return parameters


def check_ascending(place: Place) -> None:
    numbers = place.numbers()
    if not numbers or any(math.isnan(number) for number in numbers) or list(numbers) != sorted(numbers):
        raise place.fault("the numbers must ascend")


def check_spline(members: Mapping[str, Place], parameters: Mapping[str, Any]) -> None:
    """Knots for the degree, a basis function for each value (the last may be left out), and both ends of "edges"."""
    degree, knots = parameters["degree"], parameters["knots"]
    if not 0 <= degree <= MAX_DEGREE:
        raise members["degree"].wrong(f"a degree from 0 to {MAX_DEGREE}")
    check_ascending(members["knots"])
    if len(knots) < 2 * degree + 2:
        raise members["knots"].fault(f"{len(knots)} knots for splines of degree {degree}")
    splines = len(knots) - degree - 1 - (degree if parameters["extrapolation"] == "periodic" else 0)
    width = len(members["to"].items())
    if not 0 < width <= splines <= width + 1:
        raise members["to"].fault(f"{width} values for {splines} splines")
    ends = ("low", "high", "reach", "low_values")
    given = (*ends, "high_values", "low_slopes", "high_slopes")
    if parameters["extrapolation"] != "edges":
        for key in given:
            if key in members:
                raise members[key].fault('goes with the extrapolation "edges" only')
        return
    for key in ends:
        if key not in members:
            raise members["extrapolation"].fault(f'"edges" needs the member {key!r}')
    for key in given[3:]:
        if key in members and len(parameters[key]) != splines:
            raise members[key].fault(f"{len(parameters[key])} entries for {splines} splines")
    if ("low_slopes" in members) != ("high_slopes" in members):
        raise members["extrapolation"].fault("the slopes of one end are missing")
    if not 0 <= parameters["reach"] <= splines:
        raise members["reach"].wrong(f"a number from 0 to {splines}")


def check_whole(op: str, members: Mapping[str, Place], parameters: Mapping[str, Any]) -> None:
    """As many values as the operation makes of those it reads."""
    sources, targets = len(members["from"].value), len(members["to"].value)
    made = {"normalize": sources, "polynomial": len(parameters.get("terms", ())),
            "project": len(parameters.get("matrix", ()))}[op]
    if targets != made or not targets:
        raise members["to"].fault(f"{targets} values, and the operation makes {made}")
    for i, term in enumerate(parameters.get("terms", ())):
        if any(not 0 <= factor < sources for factor in term):
            raise members["terms"].items()[i].wrong(f"positions from 0 to {sources - 1}")
    for i, row in enumerate(parameters.get("matrix", ())):
        if len(row) != sources:
            raise members["matrix"].items()[i].fault(f"{len(row)} weights for {sources} values")


def check_missing(members: Mapping[str, Place], parameters: Mapping[str, Any], kind: Kind) -> None:
    missing = parameters["missing"]
    if kind == "number" and not (isinstance(missing, float) or missing == "nan"):
        raise members["missing"].wrong('"nan" or a number')
    if kind == "text" and isinstance(missing, float):
        raise members["missing"].wrong('"nan", "none", "any" or {"text": …}')


def check_encoding(members: Mapping[str, Place], parameters: Mapping[str, Any], kind: Kind,
                   results: Sequence[Any]) -> None:
    categories = parameters["categories"]
    if len(results) != len(categories):
        raise members["categories"].fault(f"{len(categories)} categories and {len(results)} results")
    wanted: Any = {"text": str, "integer": int, "number": (int, float)}[kind]
    for i, category in enumerate(categories):
        if not isinstance(category, wanted) or (isinstance(category, float) and math.isnan(category)):
            raise members["categories"].items()[i].wrong(f"a category of kind {kind}")
        if kind == "integer" and not -(2**63) <= category < 2**63:
            raise members["categories"].items()[i].wrong("an integer of 64 bits")
    if len(set(categories)) != len(categories):
        raise members["categories"].fault("a category stands twice")


def check_positions(op: str, members: Mapping[str, Place], parameters: Mapping[str, Any]) -> None:
    if op == "onehot":
        width = len(members["to"].value)
        used = [*parameters["positions"], *(parameters.get(key) for key in ("nan", "none", "unknown"))]
        if any(isinstance(position, int) and position >= width for position in used):
            raise members["positions"].fault(f"a position past the {width} values of `to`")


def parse_output(place: Place, kinds: Mapping[str, Kind], widths: Mapping[str, int],
                 names: Mapping[str, Sequence[str]]) -> Output:
    members = place.members(("dtype", "allow", "features", "sparse"), ("dtype", "allow", "features"))
    features = Features([
        parse_run(item, kinds, widths, names) if isinstance(item.value, dict) and "vector" in item.value
        else parse_feature(item, kinds) for item in members["features"].items()
    ])
    sparse = "sparse" in members and members["sparse"].flag()
    most = vectors.MAX_FEATURES if sparse else MAX_WIDTH
    if not 0 < len(features) <= most:
        raise members["features"].fault(f"{len(features)} features; a program gives 1 to {most:,}")
    return Output(read_dtype(members["dtype"]), members["allow"].choice("finite", "nan", "any"), features, sparse)


def parse_feature(item: Place, kinds: Mapping[str, Kind]) -> tuple[str, str]:
    feature = item.members(("name", "value"), ("name", "value"))
    name, value = feature["name"].text(), feature["value"].text()
    if value not in kinds:
        raise feature["value"].fault(f"no column and no step is called {value!r}")
    if kinds[value] != "number":
        raise feature["value"].fault(f"{value!r} is {kinds[value]}; cast or encode it")
    return name, value


def parse_run(item: Place, kinds: Mapping[str, Kind], widths: Mapping[str, int],
              names: Mapping[str, Sequence[str]]) -> Run:
    """All columns of a vector: called by a prefix and their own names, or by names that are given."""
    run = item.members(("prefix", "names", "vector"), ("vector",))
    value = run["vector"].text()
    if kinds.get(value) != "vector":
        raise run["vector"].fault(f"no step writes a vector that is called {value!r}")
    given = run["names"].texts() if "names" in run else names[value]
    if len(given) != widths[value]:
        raise run["names"].fault(f"{len(given)} names for a vector of {widths[value]}")
    return Run(run["prefix"].text() if "prefix" in run else "", given, value, "names" in run)


def parse_task(place: Place) -> dict[str, Any]:
    """What the model answers with: every member of the task, absent ones None or empty."""
    members = place.members(("kind", "label", "probabilities", "classes", "value"), ("kind",))
    kind = members["kind"].choice("classifier", "regressor")
    needed = "label" if kind == "classifier" else "value"
    if needed not in members:
        raise place.fault(f"the member {needed!r} is missing")

    def text(key: str) -> str | None:
        return None if key not in members or members[key].value is None else members[key].text()

    classes = members["classes"].texts() if "classes" in members else ()
    if text("probabilities") is not None and not classes:
        raise place.fault("probabilities need the names of their classes")
    if len(set(classes)) != len(classes):
        raise members["classes"].fault("a class stands twice")
    return {"kind": kind, "label": text("label"), "probabilities": text("probabilities"), "classes": classes,
            "value": text("value")}
