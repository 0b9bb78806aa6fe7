"""Sparse rows in features.json ("vectors"): how their steps are read and checked, how wide they are, what their columns
are called.

The compiled core keeps a vector as one value, however wide, so that a vocabulary stands in the file once.
"""

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from fastinfer.preprocessing.patterns import PatternError, parse_pattern

if TYPE_CHECKING:
    from fastinfer.preprocessing.spec import Place, Step

MAX_FEATURES: Final = 2**31 - 1
MAX_NGRAM: Final = 1000
VECTOR_OPERATIONS: Final = ("count", "hash", "hash_words", "hash_fields", "tfidf", "norm", "scale", "limit", "pick",
                            "join")  # that write a vector
ANALYZERS: Final = ("word", "char", "char_wb")


class Numbered(Sequence[str]):
    """"0", "1", …: the names of columns that have none."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        found = range(self.size)[index]
        return str(found) if isinstance(found, int) else [str(i) for i in found]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbered) and other.size == self.size

    def __hash__(self) -> int:
        return hash(self.size)


class Run:
    """All columns of a vector, as features.

    Attributes:
        prefix: of the features' names.
        names: of the columns.
        value: the vector.
        named: the names are not the vector's own, so the file gives them.
    """

    __slots__ = ("named", "names", "prefix", "value")

    def __init__(self, prefix: str, names: Sequence[str], value: str, named: bool = False) -> None:
        self.prefix, self.names, self.value, self.named = prefix, names, value, named

    def __len__(self) -> int:
        return len(self.names)

    def feature(self, i: int) -> tuple[str, str]:
        return self.prefix + self.names[i], f"{self.value}[{i}]"

    def document(self) -> dict[str, Any]:
        names = {"names": list(self.names)} if self.named else {}
        return {**({"prefix": self.prefix} if self.prefix else {}), **names, "vector": self.value}


class Features(Sequence[tuple[str, str]]):
    """The output's features as pairs of name and value; a vector's columns are made when they are asked for.

    Attributes:
        parts: pairs, and runs of a vector's columns.
    """

    def __init__(self, parts: Iterable[tuple[str, str] | Run]) -> None:
        self.parts = tuple(parts)
        sizes = [len(part) if isinstance(part, Run) else 1 for part in self.parts]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found = self.part_of(index)
        part, place = self.parts[found], index + len(self) if index < 0 else index
        return part.feature(place - int(self.starts[found])) if isinstance(part, Run) else part

    def part_of(self, index: int) -> int:
        """Which part holds the feature of that number."""
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return int(np.searchsorted(self.starts, place, side="right")) - 1

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for part in self.parts:
            if isinstance(part, Run):
                yield from map(part.feature, range(len(part)))
            else:
                yield part


def read_analyzer(place: "Place") -> str:
    return place.choice(*ANALYZERS)


def read_ngrams(place: "Place") -> tuple[int, int]:
    items = place.items()
    if len(items) != 2 or not 1 <= items[0].integer() <= items[1].integer() <= MAX_NGRAM:
        raise place.wrong(f"two numbers from 1 to {MAX_NGRAM}, ascending")
    return items[0].integer(), items[1].integer()


def read_strip(place: "Place") -> str:
    return place.choice("ascii", "unicode")


def read_pattern(place: "Place") -> str:
    try:
        parse_pattern(place.text())
    except PatternError as error:
        raise place.fault(str(error)) from None
    return place.text()


def read_features(place: "Place") -> int:
    if not 1 <= place.integer() <= MAX_FEATURES:
        raise place.wrong(f"a number from 1 to {MAX_FEATURES:,}")
    return place.integer()


def read_terms(place: "Place") -> tuple[str, ...]:
    """Different strings; of a long list only a faulty item is looked at by itself."""
    value = place.value
    if isinstance(value, list) and all(type(item) is str for item in value):
        try:
            "".join(value).encode()
        except UnicodeEncodeError:
            place.texts()
        terms = tuple(value)
    else:
        terms = place.texts()
    if len(set(terms)) != len(terms):
        raise place.fault("a term stands twice")
    return terms


def read_positions(place: "Place") -> tuple[int, ...]:
    positions = tuple([item.integer() for item in place.items()])
    if any(low >= high for low, high in zip((-1, *positions), positions, strict=False)):
        raise place.wrong("positions from 0 on, ascending")
    return positions


def read_scale(place: "Place") -> float | tuple[float, ...]:
    return place.numbers() if isinstance(place.value, list) else place.number()


def packed(array: npt.NDArray[Any]) -> str:
    """Float64 numbers as base64 of deflated little-endian bytes."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array, "<f8").tobytes(), 6)).decode()


def unpacked(place: "Place", shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """What `packed` made of an array of that shape."""
    size = shape[0] * shape[1] * 8
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(place.text(), validate=True), size + 1)
    except (ValueError, zlib.error):
        raise place.fault("is not base64 of deflated bytes") from None
    if len(data) != size:
        raise place.fault(f"holds {len(data)} bytes, and {shape[0]} rows of {shape[1]} numbers have {size}")
    return np.frombuffer(data, "<f8").astype(np.float64).reshape(shape)


# ---- checks that need the other members ---------------------------------------------------------------------------
def check_vector_step(op: str, members: Mapping[str, "Place"], parameters: Mapping[str, Any],
                      widths: Mapping[str, int]) -> Mapping[str, Any]:
    """The parameters, where they suit the widths of what the step reads.

    Raises:
        ConfigurationError: they do not.
    """
    sources = [place.value for place in members["from"].items()]
    width = widths.get(sources[0], 1)
    if op in ("count", "hash"):
        check_analysis(members, parameters)
    elif op == "tfidf" and len(parameters.get("idf", ())) not in (0, width):
        raise members["idf"].fault(f"{len(parameters['idf'])} numbers for a vector of {width}")
    elif op == "scale" and isinstance(parameters["by"], tuple) and len(parameters["by"]) != width:
        raise members["by"].fault(f"{len(parameters['by'])} numbers for a vector of {width}")
    elif op == "pick" and (not parameters["positions"] or parameters["positions"][-1] >= width):
        raise members["positions"].fault(f"the positions must lie within a vector of {width}")
    elif op == "spread" and len(members["to"].items()) != width:
        raise members["to"].fault(f"{len(members['to'].items())} values for a vector of {width}")
    elif op == "dot":
        targets = len(members["to"].items())
        if len(parameters["bias"]) != targets:
            raise members["bias"].fault(f"{len(parameters['bias'])} numbers for {targets} values")
        return {**parameters, "weights": unpacked(members["weights"], (targets, width))}
    elif op == "hash_fields" and len(parameters["names"]) != len(sources):
        raise members["names"].fault(f"{len(parameters['names'])} names for {len(sources)} values")
    return parameters


def check_analysis(members: Mapping[str, "Place"], parameters: Mapping[str, Any]) -> None:
    for key in ("token_pattern", "stop_words"):
        if key in members and parameters["analyzer"] != "word":
            raise members[key].fault("goes with the analyzer \"word\" only")
    if parameters["analyzer"] == "word" and "token_pattern" not in members:
        raise members["analyzer"].fault('"word" needs the member \'token_pattern\'')
    if "vocabulary" in members and not parameters["vocabulary"]:
        raise members["vocabulary"].fault("it has no term")


def vector_width(op: str, parameters: Mapping[str, Any], sources: Sequence[str], widths: Mapping[str, int]) -> int:
    """Columns of the vector that a step writes; a number counts as one column."""
    if op == "count":
        return len(parameters["vocabulary"])
    if op in ("hash", "hash_words", "hash_fields"):
        return int(parameters["features"])
    if op == "pick":
        return len(parameters["positions"])
    return sum(widths.get(source, 1) for source in sources)


def widths_of(steps: Sequence["Step"]) -> dict[str, int]:
    """Columns of each vector that the steps write."""
    widths: dict[str, int] = {}
    for step in steps:
        if step.op in VECTOR_OPERATIONS:
            widths[step.targets[0]] = vector_width(step.op, step.parameters, step.sources, widths)
    return widths


def column_names(steps: Sequence["Step"], widths: Mapping[str, int]) -> dict[str, Sequence[str]]:
    """What the columns of each vector are called: its terms, or their numbers."""
    found: dict[str, Sequence[str]] = {}
    for step in steps:
        if step.op == "count":
            found[step.targets[0]] = step.parameters["vocabulary"]
        elif step.op in ("tfidf", "norm", "scale", "limit"):
            found[step.targets[0]] = found[step.sources[0]]
        elif step.op == "pick":
            names = found[step.sources[0]]
            found[step.targets[0]] = [names[i] for i in step.parameters["positions"]]
        elif step.targets and step.targets[0] in widths:
            found[step.targets[0]] = Numbered(widths[step.targets[0]])
    return found
