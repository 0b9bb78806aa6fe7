"""What an option is: the type, bounds and help that its flag, variable, TOML key, reference page and schema share."""

import dataclasses
import itertools
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastinfer.errors import ConfigurationError

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RESERVED_MODEL_NAMES = frozenset({"stats"})
SIZE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
              "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
DURATION_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
MOST_NUMBERS = 100  # of one list
MOST_PEERS = 1000
FIELD_NAME = re.compile(r"[A-Za-z0-9_.*-]{1,64}")
EVERYBODY = ("*", "unix:")
QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


class Kind(NamedTuple):
    """A type of option.

    `take` accepts a value that has a type already (TOML, Python), `read` the text of a flag or of a variable; both
    raise ValueError. `accepts` completes "it takes …".
    """

    label: str
    accepts: str
    take: Callable[[object], Any]
    read: Callable[[str], Any]
    schema: Mapping[str, object]


def take_text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def take_line(value: object) -> str:
    text = take_text(value)
    if not text.isascii() or not text.isprintable():
        raise ValueError
    return text


def take_path(value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ValueError
    return Path(take_text(os.fspath(value)))


def take_model_name(value: object) -> str:
    if not isinstance(value, str) or not MODEL_NAME.fullmatch(value) or value in RESERVED_MODEL_NAMES:
        raise ValueError
    return value


def take_boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def read_boolean(text: str) -> bool:
    try:
        return BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError from None


def take_switch(value: object) -> bool | str:
    return "auto" if value == "auto" else take_boolean(value)


def read_switch(text: str) -> bool | str:
    return "auto" if text.strip().lower() == "auto" else read_boolean(text)


def take_integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError
    return value


def read_integer(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):  # int() also takes "1_000" and other scripts' digits
        raise ValueError
    return int(text)


def read_quantity(text: str, units: Mapping[str, float]) -> float:
    """`64MiB`, `1.5 GB`, `500ms`: a number and a unit of the table."""
    match = QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise ValueError
    return float(match[1]) * units[match[2].lower()]


def read_size(text: str) -> int:
    if text.strip().isascii() and text.strip().isdigit():
        return int(text)
    size = read_quantity(text, SIZE_UNITS)
    if not size.is_integer():
        raise ValueError
    return int(size)


def take_size(value: object) -> int:
    return read_size(value) if isinstance(value, str) else take_integer(value)


def read_duration(text: str) -> float:
    return read_quantity(text, DURATION_UNITS)


def take_duration(value: object) -> float:
    if isinstance(value, str):
        return read_duration(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


def take_names(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError
    names = tuple(take_text(name) for name in value)
    if len(set(names)) != len(names):
        raise ValueError
    return names


def take_field_names(value: object) -> tuple[str, ...]:
    names = take_names(value)
    if len(names) > MOST_NUMBERS or not all(map(FIELD_NAME.fullmatch, names)):
        raise ValueError
    return names


def read_field_names(text: str) -> tuple[str, ...]:
    return take_field_names(read_names(text))


def take_texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError
    return tuple(take_text(each) for each in value)


def read_texts(text: str) -> tuple[str, ...]:
    return take_texts(each.strip() for each in text.split(","))


def take_urls(value: object) -> tuple[str, ...]:
    return take_names((value,) if isinstance(value, str) else value)


def take_class(value: object) -> str:
    """A class as its name is written in answers: `1` and `true` are classes too."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else take_text(value)


def take_number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


def read_number(text: str) -> float:
    return take_number(float(text))


def take_numbers(value: object) -> tuple[float, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError
    numbers = tuple(take_number(each) for each in value)
    if not 0 < len(numbers) <= MOST_NUMBERS or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError
    return numbers


def read_numbers(text: str) -> tuple[float, ...]:
    return take_numbers(read_number(each) for each in text.split(","))


def take_versions(value: object) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError
    versions = tuple(take_integer(each) for each in value)
    if not versions or len(set(versions)) != len(versions) or any(not 0 < each < 10**18 for each in versions):
        raise ValueError
    return versions


def read_versions(text: str) -> tuple[int, ...]:
    return take_versions(read_integer(each) for each in text.split(","))


def read_names(text: str) -> tuple[str, ...]:
    return take_names(name.strip() for name in text.split(","))


def take_peers(value: object) -> tuple[str, ...]:
    """Addresses and networks in their shortest form, "unix:" and "*"."""
    import ipaddress  # costs more than most starts need

    peers = []
    for text in value.split(",") if isinstance(value, str) else take_texts(value):
        peer = text.strip()
        if peer not in EVERYBODY:
            network = ipaddress.ip_network(peer)
            if isinstance(network, ipaddress.IPv6Network):
                mapped = network.network_address.ipv4_mapped
                if mapped is not None and network.prefixlen >= 96:
                    network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
            peer = str(network.network_address if network.num_addresses == 1 else network)
        peers.append(peer)
    if len(peers) > MOST_PEERS:
        raise ValueError
    return tuple(peers)


TEXT = Kind("text", "text that is not empty", take_text, take_text, {"type": "string", "minLength": 1})
LINE = Kind("line", "a line of ASCII text", take_line, take_line, {"type": "string", "minLength": 1})
PATH = Kind("path", "a path", take_path, take_path, {"type": "string", "minLength": 1})
NAME = Kind("name", "letters, digits, '.', '_' and '-', a letter or digit first, at most 128, and not 'stats'",
            take_model_name, take_model_name, {"type": "string", "pattern": f"^{MODEL_NAME.pattern}$"})
BOOLEAN = Kind("boolean", "true or false", take_boolean, read_boolean, {"type": "boolean"})
SWITCH = Kind("switch", 'true, false or "auto"', take_switch, read_switch, {"enum": [True, False, "auto"]})
INTEGER = Kind("integer", "a whole number", take_integer, read_integer, {"type": "integer"})
SIZE = Kind("size", "a number of bytes, such as 1048576 or 64MiB,", take_size, read_size,
            {"type": ["integer", "string"]})
DURATION = Kind("duration", "a number of seconds, such as 30, 2.5 or 500ms,", take_duration, read_duration,
                {"type": ["number", "string"]})
NAMES = Kind("names", "a list of names without repetition", take_names, read_names,
             {"type": "array", "items": {"type": "string", "minLength": 1}, "uniqueItems": True})
FIELD_NAMES = Kind("field names", 'a list of names of header fields, in which * stands for any characters',
                   take_field_names, read_field_names,
                   {"type": "array", "items": {"type": "string", "pattern": f"^{FIELD_NAME.pattern}$"}})
TEXTS = Kind("texts", "a list of texts that are not empty", take_texts, read_texts,
             {"type": "array", "items": {"type": "string", "minLength": 1}})
URLS = Kind("urls", "an address such as 127.0.0.1:8001, or a list of several", take_urls, read_names,
            {"anyOf": [{"type": "string", "minLength": 1}, NAMES.schema]})
VERSIONS = Kind("versions", "a list of whole numbers from 1 on without repetition", take_versions, read_versions,
                {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "uniqueItems": True})
CLASS = Kind("class", "a class: text, a whole number, true or false", take_class, take_text,
             {"type": ["string", "integer", "boolean"]})
NUMBER = Kind("number", "a number", take_number, read_number, {"type": "number"})
PEERS = Kind("addresses", "addresses and networks, such as 127.0.0.1 or 10.0.0.0/8, unix: for a Unix socket, or * for "
             "everybody", take_peers, take_peers,
             {"type": ["array", "string"], "items": {"type": "string", "minLength": 1}})
NUMBERS = Kind("numbers", f"a list of at most {MOST_NUMBERS} numbers, each larger than the one before", take_numbers,
               read_numbers, {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": MOST_NUMBERS})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One declared option. `unset` says in words what a default of None stands for."""

    name: str = ""
    default: Any = None
    kind: Kind
    text: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unset: str | None = None
    flag: bool = True

    @property
    def accepts(self) -> str:
        """Completes "it takes …"."""
        if self.choices:
            return " or ".join(filter(None, [", ".join(self.choices[:-1]), self.choices[-1]]))
        if self.low is not None and self.low == self.high:
            return f"{self.low:g}"
        low, high = (None if bound is None else self.written(bound) for bound in (self.low, self.high))
        bounds = {(True, True): "", (False, True): f" from {low} on", (True, False): f" up to {high}",
                  (False, False): f" from {low} to {high}"}[low is None, high is None]
        return (self.kind.accepts + bounds).rstrip(",")

    def written(self, value: object) -> str:
        """The value as a person would write it: 64MiB, not 67108864."""
        if value is None:
            return self.unset or "none"
        if isinstance(value, bool):
            return str(value).lower()
        if self.kind is SIZE and isinstance(value, int):
            for unit in ("TiB", "GiB", "MiB", "KiB"):
                if value and value % SIZE_UNITS[unit.lower()] == 0:
                    return f"{value // SIZE_UNITS[unit.lower()]}{unit}"
        if isinstance(value, tuple):
            return ", ".join(map(str, value)) or "none"
        return f"{value:.15g}" if isinstance(value, float) else str(value)

    def take(self, value: object, place: str) -> Any:
        """The checked value of something typed (TOML, Python); `place` is what the error calls it."""
        if value is None and self.unset is not None:
            return None
        return self._checked(self.kind.take, value, place)

    def read(self, text: str, place: str) -> Any:
        """The checked value of text (a flag, a variable); `place` is what the error calls it."""
        return self._checked(self.kind.read, text, place)

    def _checked(self, convert: Callable[[Any], Any], value: object, place: str) -> Any:
        try:
            result = convert(value)
            if self.choices and result not in self.choices:
                raise ValueError
            if not (self.low is None or result >= self.low) or not (self.high is None or result <= self.high):
                raise ValueError
        except (ValueError, OverflowError):
            hint = nearest(value, self.choices) if isinstance(value, str) else ""
            raise ConfigurationError(f"{place} is {shown(value)}; it takes {self.accepts}.{hint}") from None
        return result


def option(default: Any, kind: Kind, text: str, *, low: float | None = None, high: float | None = None,
           choices: tuple[str, ...] = (), unset: str | None = None, flag: bool = True) -> Any:
    """A dataclass field that is an option."""
    declared = Option(default=default, kind=kind, text=text, low=low, high=high, choices=choices, unset=unset,
                      flag=flag)
    return dataclasses.field(default=default, metadata={"option": declared})


def options(declaration: Any) -> Iterator[Option]:
    """The options of a dataclass, in the order of their declaration."""
    for field in dataclasses.fields(declaration):
        if "option" in field.metadata:
            yield dataclasses.replace(field.metadata["option"], name=field.name)


def check_fields(instance: Any) -> None:
    """Converts and checks every option of a dataclass instance in place (frozen ones too)."""
    for declared in options(instance):
        value = declared.take(getattr(instance, declared.name), declared.name)
        object.__setattr__(instance, declared.name, value)


def shown(value: object) -> str:
    """A configured value in an error: one short line whatever it is."""
    plain = os.fspath(value) if isinstance(value, Path) else value
    text = str(value).lower() if isinstance(value, bool) else repr(plain)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'port'?` for a misspelt name, else the empty string."""
    import difflib  # only on the way to an error

    lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


class TomlFile:
    """A parsed TOML file that can say on which line a key stands.

    Raises:
        ConfigurationError: the file cannot be read, or is not TOML; names the file, line and column.
    """

    HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
    KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_bytes().decode()
            self.table = tomllib.loads(self.text)
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path}: not UTF-8 at byte {error.start}") from None
        except (ValueError, RecursionError) as error:  # also integers of thousands of digits, lists too deep
            raise ConfigurationError(self._syntax_error(str(error))) from None

    def _syntax_error(self, message: str) -> str:
        where = re.search(r" \(at line (\d+), column (\d+)\)", message)
        if where is None:
            return f"{self.path}:{len(self.text.splitlines()) or 1}: {message.removesuffix(' (at end of document)')}"
        return f"{self.path}:{where[1]}:{where[2]}: {message[: where.start()]}"

    def place(self, *keys: str) -> str:
        """`model.toml:3` for the line of a key given as its path, or of its nearest table; else the file's name."""
        lines = dict(self._keys())
        for length in range(len(keys), 0, -1):
            if keys[:length] in lines:
                return f"{self.path}:{lines[keys[:length]]}"
        return str(self.path)

    def _keys(self) -> Iterator[tuple[tuple[str, ...], int]]:
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := self.HEADER.fullmatch(line):
                table = self._parts(header[1])
                yield table, number
            elif key := self.KEY.match(line):
                parts = table + self._parts(key[1])
                yield from ((parts[:length], number) for length in range(len(table) + 1, len(parts) + 1))

    @staticmethod
    def _parts(dotted: str) -> tuple[str, ...]:
        return tuple(part.strip("\"'") for part in re.findall(r"""[\w-]+|"[^"]*"|'[^']*'""", dotted))


def take_table(declared: Iterable[Option], file: TomlFile, *keys: str, tables: Iterable[str] = ()) -> dict[str, Any]:
    """The checked values of one table of a TOML file; `tables` are its sub-tables, which the caller reads.

    Raises:
        ConfigurationError: an unknown key (names the nearest known one) or a bad value; names file and line.
    """
    known = {each.name: each for each in declared}
    tables = tuple(tables)
    found: Any = file.table
    for key in keys:
        found = found.get(key, {})
    values = {}
    for key, value in found.items():
        place = f"{file.place(*keys, key)}: {'.'.join((*keys, key))}"
        if key in tables:
            if not isinstance(value, dict):
                raise ConfigurationError(f"{place} is {shown(value)}; it takes a table.")
        elif key not in known:
            hint = nearest(key, (*known, *tables)) or f" Known are {', '.join((*known, *tables))}."
            raise ConfigurationError(f"{place} is not a known key.{hint}")
        else:
            values[key] = known[key].take(value, place)
    return values
