"""The import of a fitted scikit-learn transformer, proven: its golden rows come from scikit-learn itself."""

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastinfer.errors import ConfigurationError
from fastinfer.preprocessing import certificate
from fastinfer.preprocessing.evidence import Sampled, number_range
from fastinfer.preprocessing.frames import is_missing, record_of
from fastinfer.preprocessing.from_sklearn import raw_names, trace_sklearn
from fastinfer.preprocessing.lowering import compile_spec, with_nullable
from fastinfer.preprocessing.spec import Column, Spec
from fastinfer.preprocessing.tracing import refuse

NUMERIC: Final = ("boolean", "Float32", "Float64")


def import_sklearn(fitted: Any, *, sample: Any, dtype: str, allow: str, path: str) -> Spec:
    """The certified spec of a fitted transformer; see `Program.from_sklearn`."""
    names, container = raw_names(fitted, path)
    if container in ("series", "records", "pairs") or not names:
        sample, names = text_sample(sample, names, container, path)
    if container == "frame" and is_polars(sample):
        container = "polars"
    samples, missing = sample_types(sample, names, path)
    spec = trace_sklearn(fitted, dtype=dtype, allow=allow, names=names, container=container, samples=samples,
                         missing=missing, path=path)
    try:
        compiled, precision = compile_spec(spec)
        rows, nullable = certificate.golden_rows(compiled, spec)
    except ConfigurationError as error:
        raise refuse(path, str(error)) from None
    spec = with_nullable(spec, nullable)
    got = certificate.run(compiled, spec, certificate.as_columns(rows, spec))
    extensions = {name: sample.extension for name, sample in (samples or {}).items() if sample.extension}
    expected = transformed(fitted, raw_frame(spec, rows, names, container, extensions), path)
    try:
        with np.errstate(over="ignore"):
            expected = (expected.tocsr() if certificate.is_wide(spec) else dense(expected)).astype(dtype)
    except (TypeError, ValueError) as error:  # as of pandas.NA among objects
        raise refuse(path, f"what scikit-learn gives cannot be made {dtype}: {error}") from None
    if expected.shape != got.shape:
        raise refuse(path, f"scikit-learn gives {expected.shape[1]} features, the program {got.shape[1]}")
    found = certificate.difference(expected, got, precision)
    if found is not None:
        row, feature = found
        shown = certificate.shown_row(rows, row)
        raise refuse(path, f"feature {spec.output.features[feature][0]!r} would be {got[found]} where scikit-learn "
                           f"gives {expected[found]} ({shown})")
    versions = {**{name: version(name) for name in ("scikit-learn", "numpy")}, "unicode": unicodedata.unidata_version}
    return replace(spec, certificate=certificate.make(spec, rows, expected, versions))


def text_sample(sample: Any, names: Sequence[str], container: str, path: str) -> tuple[Any, list[str]]:
    """A sample of texts, or of mappings, as a frame; and its columns' names.

    Raises:
        ImportRefusedError: only a sample can tell the names, and there is none.
    """
    if sample is None and not names:
        raise refuse(path, "only a sample tells which fields it hashes; give one")
    if sample is None:
        return None, list(names)
    import pandas as pd

    if container == "pairs" and not hasattr(sample, "columns"):
        sample = [record_of(row, f"row {i} of the sample") for i, row in enumerate(sample)]
    if container == "array":
        frame = pd.DataFrame(np.asarray(sample, dtype=object))
        return frame.to_numpy(), [f"x{i}" for i in range(frame.shape[1])]
    if container == "series" and not hasattr(sample, "columns"):
        named = getattr(sample, "name", None)
        sample = pd.DataFrame({names[0] if named is None else str(named): pd.Series(sample)})
    frame = pd.DataFrame(sample).rename(columns=str)
    if container == "series" and frame.shape[1] != 1:
        raise refuse(path, f"a sample of {frame.shape[1]} columns for one column of text")
    return frame, list(frame.columns)


def sample_types(sample: Any, names: Sequence[str], path: str) -> tuple[
        Mapping[str, Sampled] | None, Mapping[str, str]]:
    """Each column's type in the sample, and what is missing in columns of objects."""
    if sample is None:
        return None, {}
    if isinstance(sample, np.ndarray):
        if sample.ndim != 2 or sample.shape[1] != len(names):
            raise refuse(path, f"a sample of shape {sample.shape} for {len(names)} columns")
        columns: dict[str, Any] = {name: sample[:, i] for i, name in enumerate(names)}
    elif not hasattr(sample, "columns"):
        raise refuse(path, f"a sample is a frame of pandas or polars, or an array, not a {type(sample).__name__}")
    else:
        absent = [name for name in names if name not in list(sample.columns)]
        if absent:
            raise refuse(path, f"the sample has no column {absent[0]!r}")
        columns = {name: sample[name] for name in names}
    if is_polars(sample):
        samples = {name: sampled_of_polars(values) for name, values in columns.items()}
        return samples, {name: "none" for name, found in samples.items() if found.values == "text"}
    samples = {name: sampled(values) for name, values in columns.items()}
    missing = {name: "none" for name, values in columns.items()
               if samples[name].dtype.kind == "O" and any(value is None for value in values)}
    return samples, missing


def sampled(values: Any) -> Sampled:
    """A column's dtype and, where that is object, what its values are."""
    extension = nullable_dtype(values.dtype)
    dtype = np.dtype(values.dtype.numpy_dtype) if extension in NUMERIC else numpy_dtype(values)
    if dtype.kind not in "OfUS" and not extension:
        return Sampled(dtype, range=number_range(values) if dtype.kind in "iu" else None)
    array = np.asarray(values, dtype=object)
    present = [value for value in array if not is_missing(value)]
    missing = len(present) < len(array)
    if dtype.kind != "O":
        return Sampled(dtype, "", missing, extension, number_range(present) if dtype.kind in "iuf" else None)
    if present and all(isinstance(value, (bool, np.bool_)) for value in present):
        return Sampled(dtype, "bool", missing, extension)
    if present and all(isinstance(value, (bool, int, float, np.bool_, np.number)) for value in present):
        return Sampled(dtype, "number", missing, extension, number_range(present))
    return Sampled(dtype, "text", missing, extension)


def is_polars(sample: Any) -> bool:
    return type(sample).__module__.partition(".")[0] == "polars"


def sampled_of_polars(values: Any) -> Sampled:
    """A series of polars: what `to_numpy` makes of it. Text is objects, and None where it is missing."""
    array = values.to_numpy()
    missing = values.null_count() > 0
    if array.dtype.kind != "O":
        return Sampled(array.dtype, "", False, "", number_range(array) if array.dtype.kind in "iuf" else None)
    booleans = str(values.dtype) == "Boolean"
    return Sampled(array.dtype, "bool" if booleans else "text", missing)


def nullable_dtype(dtype: Any) -> str:
    """The dtype of pandas with pandas.NA that stands for this one in golden rows, whose whole numbers have fractions;
    "": this one has none.
    """
    if type(getattr(dtype, "na_value", None)).__name__ != "NAType":
        return ""
    plain = np.dtype(getattr(dtype, "numpy_dtype", object))
    if plain.kind not in "biuf":
        return "string" if "string" in str(dtype) else ""
    return "boolean" if plain.kind == "b" else "Float32" if plain == np.float32 else "Float64"


def numpy_dtype(values: Any) -> np.dtype[Any]:
    """The dtype of a column; pandas' strings and categories of strings count as text."""
    dtype = values.dtype
    if isinstance(dtype, np.dtype):
        return dtype
    if "string" in type(dtype).__name__.lower():
        return np.dtype(np.str_)
    inner = getattr(dtype, "categories", None)
    array = np.asarray(values if inner is None else inner)
    if array.dtype.kind == "O" and any(isinstance(value, str) for value in array):
        return np.dtype(np.str_) if inner is None else np.dtype(object)
    return array.dtype


def raw_frame(spec: Spec, rows: Mapping[str, Sequence[Any]], names: Sequence[str], container: str,
              extensions: Mapping[str, str]) -> Any:
    """The golden rows as what the transformer was fitted on: a frame, one array, a list of texts, or mappings."""
    columns = {column.name: raw_column(column, rows[column.name]) for column in spec.columns}
    count = len(next(iter(columns.values())))
    for name in spec.ignored:
        columns[name] = np.zeros(count)
    if container == "series":
        return list(columns[names[0]])
    if container in ("records", "pairs"):
        records = [{name: values[i] for name, values in columns.items() if not is_missing(values[i])}
                   for i in range(count)]
        return records if container == "records" else [list(record.items()) for record in records]
    if container == "frame":
        import pandas as pd

        # A bare array of objects would become a column of strings, and its None NaN.
        return pd.DataFrame({name: pd.Series(list(columns[name]), dtype=extensions[name]) if name in extensions
                             else pd.Series(columns[name], dtype=columns[name].dtype) for name in names})
    if container == "polars":
        import polars

        return polars.DataFrame({name: values.tolist() if values.dtype == object else values
                                 for name, values in ((name, np.asarray(columns[name])) for name in names)})
    dtypes = {column.dtype for column in spec.columns}
    dtype = np.dtype(object) if dtypes & {"object", "str"} else np.result_type(*[np.dtype(name) for name in dtypes])
    array = np.empty((count, len(names)), dtype=dtype)
    for i, name in enumerate(names):
        array[:, i] = columns[name]
    return array


def raw_column(column: Column, values: Sequence[Any]) -> Any:
    if column.dtype == "str":
        import pandas as pd

        return pd.array(list(values), dtype="str") if hasattr(pd, "StringDtype") else np.array(values, dtype=object)
    if column.dtype != "object":
        return np.array(values, dtype=np.float64 if column.datatype == "FP64" else None).astype(column.dtype)
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def transformed(fitted: Any, frame: Any, path: str) -> Any:
    """What scikit-learn makes of the rows: an array, a frame, or a sparse matrix."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return fitted.transform(frame)
        except Exception as error:  # whatever a transformer raises: the import cannot be proven then
            raise refuse(path, f"scikit-learn refuses rows that the program takes: {error}") from error


def dense(result: Any) -> npt.NDArray[Any]:
    return np.asarray(result.toarray() if hasattr(result, "toarray") else result)
