"""Rows of raw columns, as the program takes them and as the fitted pipeline takes them."""

from typing import Any

import numpy as np

from fastinfer.errors import ConfigurationError
from fastinfer.importing.rows import RawColumn, Values, hints

_KINDS = {"FP64": "number", "INT64": "integer", "BOOL": "boolean", "BYTES": "text"}


class Frames:
    """Turns values into what scikit-learn takes, and a sample into values.

    Attributes:
        columns: what the program reads.
        names: what the pipeline was fitted on, in order; some may be read by nobody.
        container: what it was fitted on: a "frame", an "array", a "series" of text, "records" or "pairs".
    """

    def __init__(self, fitted: Any, columns: Any, names: list[str], container: str, sample: Any | None) -> None:
        self._specs = {column.name: column for column in columns}
        self.container = container
        self._sample = sample
        self.names = names
        known = hints(fitted, names)
        self.columns = [
            RawColumn(
                c.name,
                _KINDS[c.datatype],
                None if _KINDS[c.datatype] == "text" and c.missing == "none" else np.nan,
                tuple(dict.fromkeys([*known[c.name], *c.categories])),
            )
            for c in columns
        ]

    def values(self, frame: Any) -> Values:
        """A frame's columns as the program takes them: plain numbers and text; NaN or None where a value is missing."""
        return {column.name: _plain(frame[column.name], column) for column in self.columns}

    def rows(self, values: Values) -> Any:
        """The rows as the fitted pipeline takes them."""
        import pandas as pd

        count = len(next(iter(values.values())))
        series = {name: self._series(pd, name, values.get(name), count) for name in self.names}
        return self.shaped(pd.DataFrame(series, columns=self.names))

    def shaped(self, frame: Any) -> Any:
        """A frame as what the pipeline was fitted on."""
        if self.container == "frame":
            return frame
        if self.container == "series":
            return frame.iloc[:, 0].to_numpy(object)
        if self.container in ("records", "pairs"):
            records = [{name: value for name, value in row.items() if value is not None and value == value}
                       for row in frame.to_dict("records")]
            return records if self.container == "records" else [list(record.items()) for record in records]
        return frame.to_numpy()

    def _series(self, pd: Any, name: str, values: list[Any] | None, count: int) -> Any:
        dtype = None if self._sample is None else self._sample[name].dtype
        if values is None:  # fitted on, but read by nobody
            first = pd.Series([0.0]) if self._sample is None else self._sample[name].iloc[:1]
            return pd.concat([first] * count, ignore_index=True)
        spec = self._specs[name]
        if _KINDS[spec.datatype] == "text":
            open_ended = dtype is None or isinstance(dtype, pd.CategoricalDtype)  # takes unseen values too
            return pd.Series(values, dtype=object if open_ended else dtype)
        if any(v != v for v in values):
            return pd.Series(values, dtype=np.float64)
        wanted = np.dtype(spec.dtype) if spec.dtype not in ("object", "str") else np.dtype(object)
        if wanted.kind in "iu" and not all(float(v).is_integer() for v in values):
            wanted = np.dtype(np.float64)
        return pd.Series(values, dtype=wanted)


def _plain(series: Any, column: RawColumn) -> list[Any]:
    if column.kind == "number":
        return list(series.astype(np.float64).tolist())
    lost = series.isna().tolist()
    convert: Any = {"text": str, "integer": int, "boolean": bool}[column.kind]
    return [column.missing if gone else convert(value) for value, gone in zip(series.tolist(), lost, strict=True)]


def checked_sample(sample: Any, names: list[str], named: bool) -> Any:
    """The fitted columns of a sample, in order.

    Raises:
        ConfigurationError: columns are missing, or it has no rows.
    """
    import pandas as pd

    if not isinstance(sample, pd.DataFrame):  # polars' and Arrow's frames have a way of their own
        sample = sample.to_pandas() if hasattr(sample, "to_pandas") else pd.DataFrame(sample)
    if not len(sample):
        raise ConfigurationError("the sample has no rows")
    if not named and not set(names) <= set(map(str, sample.columns)):
        if sample.shape[1] < len(names):
            given = sample.shape[1]
            raise ConfigurationError(f"the sample has {given} columns; the pipeline was fitted on {len(names)}")
        sample = sample.iloc[:, : len(names)].set_axis(names, axis=1)
    absent = [name for name in names if name not in sample.columns]
    if absent:
        raise ConfigurationError(f"the sample lacks the column{'s' * (len(absent) > 1)} {', '.join(map(repr, absent))}")
    return sample[names].reset_index(drop=True)
