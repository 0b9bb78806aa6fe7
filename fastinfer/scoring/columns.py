"""Blocks as pyarrow tables with the columns that a model reads, and which rows cannot be made such a table of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastinfer.errors import ConfigurationError
from fastinfer.scoring.fields import Field
from fastinfer.scoring.files import arrow
from fastinfer.scoring.sources import Lines

# What pandas.read_csv takes for missing.
MISSING = ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
           "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
PLAIN = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"  # a number that every reader of CSV knows
Faults = dict[int, tuple[str, str]]  # row of the block: field and reason


def check_types(schema: Any, fields: Sequence[Field], place: str) -> None:
    """Raises ConfigurationError for a column of another type than its field: a fault of the file, not of a row."""
    types = arrow().types
    for field in fields:
        found = schema.field(field.name).type
        value = found.value_type if types.is_dictionary(found) else found
        while field.many != 1 and types.is_nested(value) and hasattr(value, "value_type"):
            value = value.value_type
        text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
        number = types.is_integer(value) or types.is_floating(value) or types.is_decimal(value)
        time = types.is_temporal(value)
        wrong = {"BYTES": number or types.is_boolean(value) or (time and not field.time),
                 "BOOL": text or number or time}.get(field.datatype, text or time)
        if wrong or types.is_nested(value):
            takes = {"BYTES": "dates" if field.time else "text", "BOOL": "true and false"}.get(field.datatype,
                                                                                              "numbers")
            raise ConfigurationError(f"{place}: the column {field.name!r} is {found}, and the model takes {takes}.")


def plain(table: Any) -> Any:
    """Decode dictionaries and views of text, which not everybody reads."""
    pyarrow = arrow()
    types = pyarrow.types
    for i, field in enumerate(table.schema):
        kind = field.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_string_view(kind) or types.is_large_string(kind):
            kind = pyarrow.string()
        elif types.is_null(kind):
            kind = pyarrow.float64()
        if kind != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(kind))
    return table


def readable(table: Any, fields: Sequence[Field]) -> Any:
    """The columns of the fields as the model reads them: plain, decimals the nearest float64.

    A column of nothing but nulls has no type: where the model takes text, they are missing texts.
    """
    pyarrow = arrow()
    types = pyarrow.types
    table = table.select([field.name for field in fields])
    for i, field in enumerate(fields):
        if types.is_null(table.schema.field(i).type) and field.datatype == "BYTES":
            table = table.set_column(i, field.name, table.column(i).cast(pyarrow.string()))
    table = plain(table)
    for i, field in enumerate(fields):
        if types.is_decimal(table.schema.field(i).type):  # by its digits: Arrow's own cast rounds twice
            digits = table.column(i).cast(pyarrow.string())
            table = table.set_column(i, field.name, digits.cast(pyarrow.float64()))
    return table


def missing(table: Any, fields: Sequence[Field]) -> Faults:
    """Rows that lack a value which the model does not do without."""
    faults: Faults = {}
    for field in fields:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            for row in np.flatnonzero(column.is_null().to_numpy()).tolist():
                faults.setdefault(row, (field.name, "missing, and the model does not take a missing value"))
    return faults


def csv_rows(lines: Lines, names: Sequence[str]) -> tuple[Lines, Faults]:
    """The rows that have as many fields as the header and are UTF-8, and what is wrong with the others."""
    faults: Faults = {}
    text, cells = lines
    for row in np.flatnonzero(cells[:, 3] != len(names)).tolist():
        faults[row] = ("", f"{cells[row, 3]} fields, the header has {len(names)}")
    try:
        text.decode()
    except UnicodeDecodeError:
        for row, (begin, end) in enumerate(cells[:, :2].tolist()):
            try:
                text[begin:end].decode()
            except UnicodeDecodeError:
                faults.setdefault(row, ("", "not valid UTF-8"))
    if not faults:
        return lines, faults
    good = [row for row in range(len(cells)) if row not in faults]
    return Lines(b"\n".join([text[cells[row, 0] : cells[row, 1]] for row in good]), cells[good]), faults


def read_csv(lines: Lines, names: Sequence[str], types: dict[str, Any], delimiter: str,
             missing: Sequence[str] = MISSING) -> Any:
    """The columns in `types`, of those types.

    Raises:
        pyarrow.ArrowInvalid: a value is not of its column's type.
        ConfigurationError: these are not the rows that were counted.
    """
    pyarrow = arrow()
    from pyarrow import csv

    if not len(lines.cells):
        return pyarrow.table({name: pyarrow.array([], kind) for name, kind in types.items()})
    # A blank line first: a mark of byte order, which is passed by at the very beginning, is a character of the row.
    text = b"\n" + lines.text
    table = csv.read_csv(
        pyarrow.BufferReader(text),
        csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=list(names)),
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=list(missing),
                           strings_can_be_null=bool(missing), true_values=list(TRUE), false_values=list(FALSE)),
    )
    if table.num_rows != len(lines.cells):
        raise ConfigurationError("rows of CSV that two readers cut in two ways; is the file one of another dialect?")
    return table


def csv_table(lines: Lines, names: Sequence[str], fields: Sequence[Field], delimiter: str) -> tuple[Any, Faults]:
    """Rows of CSV as a table; a value that is none of its column's becomes null, and its row a fault."""
    pyarrow = arrow()
    wanted = {field.name: arrow_type(field.datatype) for field in fields}
    faults: Faults = {}
    try:
        table = read_csv(lines, names, wanted, delimiter)
    except pyarrow.ArrowInvalid:
        table = read_csv(lines, names, {name: pyarrow.string() for name in wanted}, delimiter)
        for i, name in enumerate(wanted):
            if wanted[name] != pyarrow.string():
                column, bad = converted(table.column(i), wanted[name])
                table = table.set_column(i, name, column)
                takes = {"bool": "true and false", "double": "numbers"}.get(str(wanted[name]), "whole numbers")
                for row, value in bad.items():
                    faults.setdefault(row, (name, f"the text {value[:80]!r}, and the column takes {takes}"))
    return table, faults


def csv_kept(lines: Lines, names: Sequence[str], kept: Sequence[str], delimiter: str) -> Any:
    """Columns as the text that they are: NA is a country."""
    return read_csv(lines, names, {name: arrow().string() for name in kept}, delimiter, ())


def arrow_type(datatype: str) -> Any:
    pyarrow = arrow()
    if datatype == "BYTES":
        return pyarrow.string()
    if datatype == "BOOL":
        return pyarrow.bool_()
    if datatype == "UINT64":
        return pyarrow.uint64()
    return pyarrow.int64() if "INT" in datatype else pyarrow.float64()


def converted(column: Any, kind: Any) -> tuple[Any, dict[int, str]]:
    """Text as values of a type, null where it is none, and those texts by row."""
    pyarrow = arrow()
    from pyarrow import compute

    text = compute.utf8_trim_whitespace(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0))
    likely = compute.fill_null(compute.match_substring_regex(text, PLAIN), False)
    if kind == pyarrow.bool_():
        likely = compute.and_(likely, False)
    values: list[Any] | None = None
    try:
        cast = compute.if_else(likely, text, None).cast(kind)
    except pyarrow.ArrowInvalid:  # out of range
        cast, likely = pyarrow.nulls(len(text), kind), pyarrow.array(np.zeros(len(text), bool))
    bad: dict[int, str] = {}
    for row in np.flatnonzero(~likely.to_numpy(zero_copy_only=False)).tolist():
        given = text[row].as_py()
        if given is None:
            continue
        if values is None:
            values = cast.to_pylist()
        value = single(given, kind)
        if value is None:
            bad[row] = given
        else:
            values[row] = value
    return (cast if values is None else pyarrow.array(values, kind)), bad


def single(text: str, kind: Any) -> Any:
    """One text as a value of the type, None where it is none."""
    pyarrow = arrow()
    if kind == pyarrow.bool_():
        return True if text in TRUE else False if text in FALSE else None
    try:
        value = pyarrow.scalar(text).cast(pyarrow.float64()).as_py()
        if kind == pyarrow.float64():
            return value
        try:
            return pyarrow.scalar(text).cast(kind).as_py()
        except pyarrow.ArrowInvalid:  # 3.0 is a whole number
            return int(value) if value.is_integer() and abs(value) <= 2**53 else None
    except pyarrow.ArrowInvalid:
        return None
