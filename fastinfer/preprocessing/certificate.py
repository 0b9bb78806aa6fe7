"""Golden rows: rows that take each branch of a program, and the bytes that scikit-learn made of them.

They are made at import and checked whenever the program is loaded, so that a machine, a numpy or an edited file that
gives other numbers is noticed before the first request.
"""

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfer._core import CompiledProgram
from fastinfer.errors import ConfigurationError, FastinferError, ModelLoadError
from fastinfer.preprocessing.conditioning import well_conditioned
from fastinfer.preprocessing.lowering import Precision
from fastinfer.preprocessing.spec import DATETIME, MAX_WIDTH, Column, Place, Spec, Step
from fastinfer.preprocessing.texts import telling_texts
from fastinfer.preprocessing.times import TELLING_DATES
from fastinfer.preprocessing.vectors import Run
from fastinfer.preprocessing.writing import document, plain

MAX_CELLS: Final = 1 << 20  # rows * features that an import is proven on
KEPT_CELLS: Final = 1 << 16  # rows * (columns + features) that are kept for each load, where that is MIN_ROWS or more
MAX_ROWS: Final = 512
MIN_ROWS: Final = 16
MIN_TEXT_ROWS: Final = 48
WIDE_ROWS: Final = 256  # that a wide program is proven on
MAX_VALUES: Final = 400  # tried for each column
MAX_CROSSED: Final = 256  # combinations tried of columns that are crossed
Changes = tuple[tuple[str, float], ...]  # arithmetic on the way from a raw column: the operation and its constant
UNDO: Final[Mapping[str, Any]] = {"subtract": np.add, "add": np.subtract, "multiply": np.divide, "divide": np.multiply}
SINGLE_ULP: Final = 2.0**-23  # of float32, relative
UNKNOWN_TEXT: Final = "\u2047 not a category"


def is_wide(spec: Spec) -> bool:
    """Whether its rows are too wide to be compared as dense ones."""
    return len(spec.output.features) > MAX_WIDTH


def run(compiled: CompiledProgram, spec: Spec, columns: Mapping[str, Any]) -> Any:
    """What the program makes of rows: an array, or a CSR matrix where it is wide."""
    if not is_wide(spec):
        return compiled.transform(dict(columns))
    return csr_matrix(compiled.transform_sparse(dict(columns)), len(spec.output.features))


def csr_matrix(parts: tuple[Any, ...], width: int) -> Any:
    """The parts that the compiled core gives as scipy's matrix.

    Raises:
        ConfigurationError: scipy is not installed.
    """
    values, indices, ends = parts
    if ends[-1] <= np.iinfo(np.int32).max:
        ends = ends.astype(np.int32)
    blank, shape = blank_matrix(), (len(ends) - 1, width)
    matrix: Any = type(blank)
    if "_shape" not in blank.__dict__:
        result = matrix((values, indices, ends), shape=shape)
    else:  # scipy's constructor looks at the arrays again, which takes longer than to make a row of them
        result = matrix.__new__(matrix)
        result.__dict__.update(blank.__dict__, data=values, indices=indices, indptr=ends, _shape=shape)
    result.has_canonical_format = True
    return result


@cache
def blank_matrix() -> Any:
    try:
        from scipy.sparse import csr_matrix as matrix
    except ImportError:
        raise ConfigurationError("a sparse result needs scipy: pip install 'fastinfer[sklearn]'") from None
    return matrix((1, 1))


def difference(expected: npt.NDArray[Any], got: npt.NDArray[Any],
               precision: Sequence[Precision]) -> tuple[int, int] | None:
    """The first cell (row, feature) that differs by more than the feature's precision allows.

    A NaN equals any other NaN: its payload says nothing.
    """
    if hasattr(expected, "indptr"):
        return sparse_difference(expected, got, precision)
    allowed = np.array([0 if feature == "exact" else 1 for feature in precision], dtype=np.uint64)
    same = distances(expected, got) <= allowed
    if expected.dtype == np.float64:
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(expected - got) <= SINGLE_ULP * np.maximum(np.abs(expected), np.abs(got))
        same |= near & np.array([feature == "single" for feature in precision], dtype=bool)
    cells = np.argwhere(~same)
    return (int(cells[0][0]), int(cells[0][1])) if len(cells) else None


def sparse_difference(expected: Any, got: Any, precision: Sequence[Precision]) -> tuple[int, int] | None:
    """As `difference` of CSR matrices: what is stored must be stored alike."""
    rows = [np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) for matrix in (expected, got)]
    count = min(expected.nnz, got.nnz)
    apart = (rows[0][:count] != rows[1][:count]) | (expected.indices[:count] != got.indices[:count])
    if apart.any() or expected.nnz != got.nnz:
        first = int(np.argmax(apart)) if apart.any() else count
        longer = 0 if expected.nnz > first else 1
        return int(rows[longer][first]), int((expected, got)[longer].indices[first])
    found = difference(expected.data[None, :], got.data[None, :], [precision[i] for i in expected.indices.tolist()])
    return None if found is None else (int(rows[0][found[1]]), int(expected.indices[found[1]]))


def ordinals(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Each float's place in the order of all floats of its width, -0.0 just below 0.0: one step is one ulp."""
    bits: npt.NDArray[Any] = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    placed: npt.NDArray[np.uint64] = np.where(bits & top, np.invert(bits), bits | top).astype(np.uint64)
    return placed


def spec_hash(spec: Spec) -> str:
    """SHA-256 of everything that decides the numbers; examples, paths and the task may change."""
    whole = document(replace(spec, certificate=None))
    columns = [{key: column[key] for key in ("name", "datatype", "dtype", "nullable", "missing") if key in column}
               for column in whole["columns"]]
    steps = [{key: value for key, value in step.items() if key != "path"} for step in whole["steps"]]
    kept = {"columns": columns, "steps": steps, "output": whole["output"]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def make(spec: Spec, rows: Mapping[str, Sequence[Any]], expected: Any, versions: Mapping[str, str]) -> dict[str, Any]:
    """A certificate, as JSON values: the first rows, as many as are worth a load's time."""
    runs = any(isinstance(part, Run) for part in spec.output.features.parts)
    least = MIN_TEXT_ROWS if runs else MIN_ROWS  # mostly zeros, which take no room
    count = max(least, KEPT_CELLS // (len(spec.columns) + len(spec.output.features)))
    rows = {name: values[:count] for name, values in rows.items()}
    expected = expected[:count]
    packed: Any = deflated(expected) if not is_wide(spec) else {
        "ends": deflated(expected.indptr.astype(np.int64)), "columns": deflated(expected.indices.astype(np.int32)),
        "values": deflated(expected.data),
    }
    cells = {
        column.name: [None if is_missing(value) else value for value in rows[column.name]]
        if column.datatype == "BYTES" else plain(list(rows[column.name])) for column in spec.columns
    }
    return {"made_by": dict(versions), "spec": spec_hash(spec), "rows": cells, "expected": packed}


def deflated(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def check(compiled: CompiledProgram, spec: Spec, precision: Sequence[Precision]) -> None:
    """Run the golden rows.

    Raises:
        ConfigurationError: the certificate itself is not as documented.
        ModelLoadError: a row comes out otherwise; names row, feature, expected and got.
    """
    members = Place(spec.certificate, "$.certificate").members(
        ("made_by", "spec", "rows", "expected"), ("spec", "rows", "expected")
    )
    columns = golden_columns(members["rows"], spec.columns)
    expected = unpacked(members["expected"], len(next(iter(columns.values()))), spec)
    try:
        got = run(compiled, spec, columns)
    except FastinferError as error:
        raise ModelLoadError(f"the certificate's rows are refused: {error}", "$.certificate.rows") from None
    found = difference(expected, got, precision)
    if found is not None:
        row, feature = found
        raise ModelLoadError(
            f"golden row {row}, feature {feature} ({spec.output.features[feature][0]!r}): expected "
            f"{expected[found]}, got {got[found]} ({shown_row(columns, row)})", "$.certificate.expected"
        )
    if members["spec"].text() != spec_hash(spec):
        raise ModelLoadError("the program was changed after its certificate was made; import it again, or remove the "
                             "certificate to vouch for the change yourself", "$.certificate.spec")


class Parity(NamedTuple):
    """How near a program comes to its certificate on this machine.

    Attributes:
        rows: how many golden rows there are.
        made_by: the versions of what made them.
        ulps: array [features]: by how many floats of the output's dtype the worst row is away; NaN is no distance.
    """

    rows: int
    made_by: Mapping[str, str]
    ulps: npt.NDArray[np.uint64]


def parity(compiled: CompiledProgram, spec: Spec) -> Parity | None:
    """The parity of a program that was loaded; None: it has no certificate."""
    if spec.certificate is None:
        return None
    columns = golden_columns(Place(spec.certificate["rows"], "$.certificate.rows"), spec.columns)
    rows = len(next(iter(columns.values())))
    expected = unpacked(Place(spec.certificate["expected"], "$.certificate.expected"), rows, spec)
    got = run(compiled, spec, columns)
    ulps = np.zeros(len(spec.output.features), dtype=np.uint64)
    if is_wide(spec):  # what is stored is stored alike
        np.maximum.at(ulps, expected.indices, distances(expected.data, got.data))
    else:
        ulps = distances(expected, got).max(axis=0)
    return Parity(rows, spec.certificate.get("made_by", {}), ulps)


def distances(expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """How many floats lie between two of the same place."""
    ordered = [ordinals(array) for array in (expected, got)]
    apart: npt.NDArray[np.uint64] = np.maximum(*ordered) - np.minimum(*ordered)
    return np.where(np.isnan(expected) & np.isnan(got), np.uint64(0), apart)


def shown_row(columns: Mapping[str, Any], row: int) -> str:
    cells = {name: columns[name][row] for name in list(columns)[:8]}
    shown = ", ".join(f"{name}={cell.item() if isinstance(cell, np.generic) else cell!r}"
                      for name, cell in cells.items())
    return shown + (", …" if len(columns) > 8 else "")


def golden_columns(place: Place, columns: Sequence[Column]) -> dict[str, Any]:
    names = [column.name for column in columns]
    members = place.members(names, names)
    found: dict[str, Any] = {}
    for column in columns:
        cells = members[column.name].items()
        if column.datatype == "BYTES":
            found[column.name] = [missing_text(column) if cell.value is None else cell.text() for cell in cells]
        elif column.datatype == "FP64":
            found[column.name] = np.array([cell.number() for cell in cells], dtype=np.float64)
        elif column.datatype == "BOOL":
            found[column.name] = np.array([cell.flag() for cell in cells], dtype=bool)
        else:
            found[column.name] = np.array([integer_cell(cell) for cell in cells], dtype=np.int64)
        if len(found[column.name]) != len(next(iter(found.values()))):
            raise members[column.name].fault("has not as many rows as the other columns")
    if not len(next(iter(found.values()))):
        raise place.fault("has no rows")
    return found


def integer_cell(cell: Place) -> int:
    value = cell.integer()
    if not -(2**63) <= value < 2**63:
        raise cell.wrong("an integer of 64 bits")
    return value


def missing_text(column: Column) -> float | None:
    return None if column.missing == "none" else math.nan


def unpacked(place: Place, rows: int, spec: Spec) -> Any:
    dtype = np.dtype(spec.output.dtype).newbyteorder("<")
    width = len(spec.output.features)
    if not is_wide(spec):
        what = f"{rows} rows of {width} features"
        return inflated(place, dtype, rows * width, what).astype(spec.output.dtype).reshape(rows, -1)
    members = place.members(("ends", "columns", "values"), ("ends", "columns", "values"))
    ends = inflated(members["ends"], np.dtype("<i8"), rows + 1).astype(np.int64)
    if ends[0] != 0 or np.any(np.diff(ends) < 0) or ends[-1] > rows * width:
        raise members["ends"].fault("does not say where the rows end")
    columns = inflated(members["columns"], np.dtype("<i4"), int(ends[-1])).astype(np.int32)
    if np.any((columns < 0) | (columns >= width)):
        raise members["columns"].fault("a column lies outside the program")
    values = inflated(members["values"], dtype, int(ends[-1])).astype(spec.output.dtype)
    return csr_matrix((values, columns, ends), width)


def inflated(place: Place, dtype: np.dtype[Any], count: int, what: str = "") -> npt.NDArray[Any]:
    size = count * dtype.itemsize
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(place.text(), validate=True), size + 1)
    except (ValueError, zlib.error):
        raise place.fault("is not base64 of deflated bytes") from None
    if len(data) != size:
        raise place.fault(f"holds {len(data)} bytes for {what or f'{count} values of {dtype.itemsize} bytes'}")
    return np.frombuffer(data, dtype)


def candidates(spec: Spec) -> dict[str, list[Any]]:
    """Values of each column that take each branch: missing, unknown, extremes, categories, edges and neighbours."""
    origin = origins(spec.steps, [column.name for column in spec.columns])
    found: dict[str, dict[Any, Any]] = {column.name: {} for column in spec.columns}
    kinds = {column.name: column for column in spec.columns}
    for step in spec.steps:
        for i, source in enumerate(step.sources):
            if source not in origin:
                continue
            name, changes = origin[source]
            for value in telling(step, i, kinds[name], changes):
                found[name].setdefault(repr(value), value)
    return {name: basics(kinds[name]) + spread(list(values.values())) for name, values in found.items()}


def spread(values: list[Any]) -> list[Any]:
    """At most MAX_VALUES of them, evenly."""
    if len(values) <= MAX_VALUES:
        return values
    return [values[i * len(values) // MAX_VALUES] for i in range(MAX_VALUES)]


def origins(steps: Sequence[Step], columns: Sequence[str]) -> dict[str, tuple[str, Changes]]:
    """Values that come from a raw column alone (filled, rounded, shifted and scaled at most): which, and how."""
    found: dict[str, tuple[str, Changes]] = {name: (name, ()) for name in columns}
    for step in steps:
        if step.op not in ("impute", "cast", *UNDO):
            continue
        for i, (source, target) in enumerate(zip(step.sources, step.targets, strict=True)):
            if source in found:
                name, changes = found[source]
                change = ((step.op, float(step.parameters["by"][i])),) if step.op in UNDO else ()
                found[target] = name, changes + change
    return found


def undone(value: float, changes: Changes) -> float:
    """The raw value, within rounding."""
    with np.errstate(all="ignore"):
        for op, by in reversed(changes):
            value = float(UNDO[op](np.float64(value), by))
    return value


def basics(column: Column) -> list[Any]:
    if column.datatype == "BOOL":
        return [True, False]
    if column.datatype == "INT64":
        least, most = bounds(column)
        return [column.example or 0, *[value for value in (0, -1, 2**31, 2**53 + 1, least, most)
                                       if least <= value <= most]]
    if column.dtype == DATETIME:
        return [column.example or TELLING_DATES[0], missing_text(column), *TELLING_DATES]
    if column.datatype == "BYTES":
        return [column.example or "", missing_text(column), "", UNKNOWN_TEXT]
    example = float(column.example) if isinstance(column.example, (int, float)) else 0.0
    return [example, math.nan, 0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, math.pi * 1e3, 16777217.0, 1e300, 5e-324, math.inf,
            -math.inf]


def bounds(column: Column) -> tuple[int, int]:
    """The smallest and the largest integer of the dtype that was fitted, as far as it travels."""
    held = np.iinfo(column.dtype if column.dtype != "object" else np.int64)
    return int(held.min), min(int(held.max), 2**63 - 1)


def telling(step: Step, i: int, column: Column, changes: Changes = ()) -> list[Any]:
    """The values of a raw column at which a step's result changes, through its source number ``i``."""
    parameters = step.parameters
    if column.datatype == "BOOL":
        return []
    if step.op in ("count", "hash"):
        return list(telling_texts(step))
    if step.op in ("ordinal", "onehot", "embed"):
        convert = {"BYTES": str, "FP64": float, "INT64": int}[column.datatype]
        return [convert(category) for category in parameters["categories"] if column.datatype != "INT64"
                or int(category) == category]
    if column.datatype == "BYTES":
        missing = parameters.get("missing")
        return [missing["text"]] if isinstance(missing, Mapping) else []
    numbers = {"bucketize": parameters.get("edges"), "binarize": [parameters.get("threshold")],
               "subtract": parameters.get("by", ())[i : i + 1], "indicate": [parameters.get("missing")],
               "impute": [parameters.get("missing"), *parameters.get("fill", ())[i : i + 1]],
               "clip": [parameters.get("low"), parameters.get("high")], "quantile": parameters.get("quantiles"),
               "spline": halfway(parameters.get("knots", ())), "power": [0.0, 1.0, 0.25, -0.25]}.get(step.op)
    found = [undone(float(value), changes) for value in numbers or () if isinstance(value, (int, float))]
    found = [value for value in found if math.isfinite(value)]
    if column.datatype == "INT64":
        least, most = bounds(column)
        return [int(value) for value in found if value.is_integer() and least <= int(value) <= most]
    return [near for value in found
            for near in (value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf))]


def halfway(numbers: Sequence[float]) -> list[float]:
    """The numbers, and one between each pair of neighbours."""
    return [*numbers, *[(first + second) / 2 for first, second in pairwise(numbers)]]


def golden_rows(compiled: CompiledProgram, spec: Spec) -> tuple[dict[str, list[Any]], dict[str, bool]]:
    """Rows that the program takes, and for each column whether it takes a missing value.

    Row i has each column's value number i + (the column's number), so that columns vary against one another; what
    the program refuses is replaced by a value of the column that it takes.

    Raises:
        ConfigurationError: the program takes none of a column's values.
    """
    tried = candidates(spec)
    names = list(tried)
    accepted = accepted_values(compiled, spec, tried)
    for name in names:
        if not accepted[name]:
            raise ConfigurationError(f"the program takes no value of the column {name!r} that could be thought of")
    longest = max(len(values) for values in accepted.values())
    cells = WIDE_ROWS if is_wide(spec) else max(1, MAX_CELLS // len(spec.output.features))
    count = min(longest, MAX_ROWS, cells)
    rows = {name: [accepted[name][(i + shift) % len(accepted[name])] for i in range(count)]
            for shift, name in enumerate(names)}
    for i, together in enumerate(crossed(spec, accepted)[: max(0, cells - count)]):
        for name in names:
            rows[name].append(together.get(name, accepted[name][i % len(accepted[name])]))
    count = len(rows[names[0]])
    refused = {row for row, _ in compiled.refusals(as_columns(rows, spec))}
    rows = {name: [value for i, value in enumerate(values) if i not in refused] for name, values in rows.items()}
    if len(refused) == count:
        raise ConfigurationError("the program takes no row that could be thought of")
    telling_rows = well_conditioned(spec, as_columns(rows, spec))
    if not telling_rows.any():
        raise ConfigurationError("the terms of a matrix product cancel out in every row that could be thought of: "
                                 "what is left depends on the order in which BLAS adds them; ask for fewer components")
    rows = {name: [value for value, tells in zip(values, telling_rows, strict=True) if tells]
            for name, values in rows.items()}
    nullable = {column.name: column.datatype in ("FP64", "BYTES") and any(map(is_missing, accepted[column.name]))
                for column in spec.columns}
    return rows, nullable


def crossed(spec: Spec, accepted: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Values of columns whose codes are taken together: combinations, which no column's values tell by themselves."""
    encoded = {step.targets[0]: step.sources[0] for step in spec.steps if step.op == "ordinal"}
    found = []
    for step in spec.steps:
        names = [encoded.get(source, "") for source in step.sources]
        if step.op == "project" and all(name in accepted for name in names):
            sizes = [len(accepted[name]) for name in names]
            count = min(math.prod(sizes), MAX_CROSSED)
            for i in range(count):
                places = np.unravel_index(i * math.prod(sizes) // count, sizes)
                found.append({name: accepted[name][place] for name, place in zip(names, places, strict=True)})
    return found


def accepted_values(compiled: CompiledProgram, spec: Spec, tried: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The candidates that the program does not refuse, whatever the other columns hold."""
    longest = max(len(values) for values in tried.values())
    chosen = {name: [values[i % len(values)] for i in range(longest)] for name, values in tried.items()}
    refused = {(row, column) for row, column in compiled.refusals(as_columns(chosen, spec))}
    return {
        name: [value for i, value in enumerate(values) if (i, position) not in refused]
        for position, (name, values) in enumerate(tried.items())
    }


def as_columns(rows: Mapping[str, Sequence[Any]], spec: Spec) -> dict[str, Any]:
    dtypes = {"FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_}
    return {column.name: rows[column.name] if column.datatype == "BYTES"
            else np.array(rows[column.name], dtype=dtypes[column.datatype]) for column in spec.columns}
