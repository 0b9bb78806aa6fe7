"""What flows between the steps of a fitted pipeline, as far as scikit-learn's arithmetic depends on it.

A `Matrix` stands for the array or frame that scikit-learn would hold at that point: which values its columns are, and
the dtypes that decide whether it computes in float32 or float64, compares exactly, or refuses. `Trace` writes the
steps of the spec while a pipeline is walked.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastinfer.errors import ImportRefusedError
from fastinfer.preprocessing.spec import Kind, Step

OBJECT = np.dtype(object)
FLOAT64 = np.dtype(np.float64)
FLOAT32 = np.dtype(np.float32)
NUL = "\0"
EXACT = ("onehot", "ordinal", "bucketize")  # operations to which the last digit matters
Container = Literal["frame", "polars", "array", "sparse", "series", "records", "pairs"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a matrix.

    Attributes:
        name: as a frame would call it.
        value: the value of the spec that it is.
        kind: what the value is, whatever the dtype of the array around it.
        dtype: of the frame's column, or of the whole array.
        unsigned: never -0.0, so that going through a sparse matrix leaves its bits alone.
        none: may be None, which an array of objects tells from NaN: text, and numbers among objects.
        names: of a vector's columns; `name` goes before them.
        whole: whether scikit-learn may have held integers where the program has floats, which numpy's functions tell
            apart: "no", "yes", "narrow" (of 8 or 16 bits) or "unknown".
        extension: whether it is of a pandas dtype that has pandas.NA, which scikit-learn makes float64 where it checks
            numbers, and does not take where it does not.
    """

    name: str
    value: str
    kind: Kind
    dtype: np.dtype[Any]
    unsigned: bool = False
    none: bool = False
    whole: str = "no"
    extension: bool = False
    names: Sequence[str] = field(default=(), compare=False)

    @property
    def width(self) -> int:
        """Columns of the matrix that it is."""
        return len(self.names) if self.kind == "vector" else 1

    def column_names(self) -> Sequence[str]:
        return [self.name + name for name in self.names] if self.kind == "vector" else (self.name,)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A frame of pandas or of polars (a dtype a column), a dense array or a sparse one (one dtype); one column by
    itself; mappings, or lists of pairs.
    """

    features: tuple[Feature, ...]
    container: Container

    @property
    def width(self) -> int:
        return sum([feature.width for feature in self.features])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array that numpy makes of it."""
        dtypes = [feature.dtype for feature in self.features]
        if not dtypes:
            return FLOAT64
        if self.container not in ("frame", "polars"):
            return dtypes[0]
        kinds = {dtype.kind for dtype in dtypes}
        if self.container == "polars":
            return OBJECT if "O" in kinds else np.result_type(*dtypes)
        if "O" not in kinds and any(feature.extension for feature in self.features):
            return FLOAT64
        if "O" in kinds or ("b" in kinds and len(kinds) > 1):  # pandas does not make numbers of booleans
            return OBJECT
        return np.result_type(*dtypes)

    def take(self, indices: Iterable[int]) -> "Matrix":
        return replace(self, features=tuple([self.features[i] for i in indices]))

    def known_floats(self) -> "Matrix":
        return replace(self, features=tuple([replace(feature, whole="no") for feature in self.features]))

    def as_array(self, dtype: np.dtype[Any] | None = None) -> "Matrix":
        """The same values in one array."""
        dtype = self.dtype if dtype is None else dtype
        found = {whole_of(feature) if dtype.kind == "f" else feature.whole for feature in self.features}
        whole = "no" if not found or "no" in found else found.pop() if len(found) == 1 else max(found)
        features = tuple([replace(feature, dtype=dtype, whole=whole, extension=False,
                                  none=feature.none and (feature.kind == "text" or dtype == OBJECT))
                          for feature in self.features])
        return Matrix(features, "sparse" if self.container == "sparse" else "array")


def whole_of(feature: Feature) -> str:
    """Its `whole` in an array of floats: integers and booleans make none of integers beside them."""
    if feature.dtype.kind in "iub":
        return "yes" if feature.dtype.itemsize >= 4 else "narrow"
    return feature.whole


def refuse(path: str, reason: str) -> ImportRefusedError:
    return ImportRefusedError(f"{path}: {reason}", path)


@dataclass(slots=True)
class Trace:
    """The steps written so far, and the names that are taken.

    Attributes:
        rounded: values whose last digits depend on BLAS.
    """

    steps: list[Step] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    serial: int = 0
    rounded: set[str] = field(default_factory=set)

    def names(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """New value names: the wanted one and the step's number."""
        self.serial += 1
        names = []
        for name in wanted:
            fresh = f"{name.lstrip(NUL)}@{self.serial}"  # with NUL begin those that the lowering makes
            while fresh in self.taken:
                fresh += "'"
            self.taken.add(fresh)
            names.append(fresh)
        return tuple(names)

    def write(self, op: str, path: str, sources: Sequence[Feature], wanted: Iterable[str] | None = None,
              **parameters: Any) -> tuple[str, ...]:
        """Add a step; returns the values that it writes."""
        if not sources:
            return ()
        wanted = [feature.name for feature in sources] if wanted is None else wanted
        targets = self.names(wanted) if op != "check" else ()
        product = op == "project" and not parameters.get("sparse")
        if product or any(feature.value in self.rounded for feature in sources):
            if op in EXACT:
                raise refuse(path, "it tells apart the last digits of a product of matrices, which depend on BLAS")
            self.rounded.update(targets)
        self.steps.append(Step(op, tuple([feature.value for feature in sources]), targets, parameters, path))
        return targets

    def each(self, op: str, path: str, matrix: Matrix, unsigned: bool = False, **parameters: Any) -> Matrix:
        """Apply an operation to every column of numbers."""
        values = self.write(op, path, matrix.features, **parameters)
        return replace(matrix, features=tuple([
            replace(feature, value=value, kind="number", unsigned=unsigned)
            for feature, value in zip(matrix.features, values, strict=True)
        ]))

    def arithmetic(self, op: str, path: str, matrix: Matrix, by: npt.ArrayLike) -> Matrix:
        """One of the four operations with a constant a column, in the matrix's dtype."""
        constants = [float(value) for value in np.broadcast_to(np.asarray(by), matrix.width)]
        return self.each(op, path, matrix, by=tuple(constants), **single(matrix.dtype))

    def numbers(self, matrix: Matrix, path: str) -> Matrix:
        """The same with every column a number: integers become floats of the matrix's dtype."""
        for feature in matrix.features:
            if feature.kind == "text":
                raise refuse(path, f"the column {feature.name!r} holds text where numbers are computed")
        integers = [feature for feature in matrix.features if feature.kind == "integer"]
        dtype = "float32" if matrix.dtype == FLOAT32 else "float64"
        values = dict(zip(integers, self.write("cast", path, integers, dtype=dtype), strict=True))
        return replace(matrix, features=tuple([
            replace(feature, value=values[feature], kind="number", unsigned=True) if feature in values else feature
            for feature in matrix.features
        ]))

    def checked(self, matrix: Matrix, path: str, *, allow_nan: bool) -> Matrix:
        """scikit-learn's check of an array of floats: no infinity and, unless allowed, no missing value."""
        if matrix.dtype.kind == "f":
            self.write("check", path, matrix.features, allow="nan" if allow_nan else "finite")
        elif matrix.dtype == OBJECT and not allow_nan:
            self.refuse_nan(matrix, path)
        return matrix

    def refuse_nan(self, matrix: Matrix, path: str) -> None:
        """scikit-learn's check of an array of objects: no NaN; infinities and None pass."""
        texts = [feature for feature in matrix.features if feature.kind == "text"]
        self.write("check", path, texts, allow="finite")
        for feature in matrix.features:
            if feature.kind == "number" and not feature.unsigned:
                raise refuse(path, f"the column {feature.name!r} holds numbers in an array of objects, "
                                   "which is checked for NaN but not for infinity")

    def floats(self, matrix: Matrix, path: str, *, allow_nan: bool, sparse: bool = False,
               numeric: bool = False, infinite: bool = False) -> Matrix:
        """scikit-learn's `check_array(X, dtype=FLOAT_DTYPES)`, or with ``numeric`` its `dtype="numeric"`.

        With ``infinite`` it is not checked at all.
        """
        if matrix.container == "sparse" and not sparse:
            raise refuse(path, "it gets a sparse matrix, which it does not take")
        dtype = check_dtype(matrix)
        if dtype == np.float16:
            raise refuse(path, "it computes in float16")
        if matrix.container == "polars" and not numeric:  # whose dtype it does not see
            dtype = FLOAT64
        if dtype == OBJECT or (not numeric and dtype not in (FLOAT64, FLOAT32)):
            dtype = FLOAT64
        matrix = self.numbers(matrix.as_array(dtype), path)
        matrix = matrix if infinite else self.checked(matrix, path, allow_nan=allow_nan)
        return matrix if numeric else matrix.known_floats()


def check_dtype(matrix: Matrix) -> np.dtype[Any]:
    """The dtype that `check_array` sees before it converts: booleans of a frame count as numbers there."""
    if matrix.container == "frame" and matrix.features and all(f.dtype.kind in "fiub" for f in matrix.features):
        if any(feature.extension for feature in matrix.features):
            return FLOAT64
        return np.result_type(*[feature.dtype for feature in matrix.features])
    return matrix.dtype


def single(dtype: np.dtype[Any]) -> dict[str, Any]:
    """The parameter that makes an operation round to float32, where it does."""
    return {"dtype": "float32"} if dtype == FLOAT32 else {}


def constant_in(value: Any, dtype: np.dtype[Any]) -> float:
    """A constant as numpy sees it beside an array of ``dtype``: Python numbers take the array's float type."""
    if dtype == FLOAT32 and isinstance(value, (int, float)) and not isinstance(value, np.generic):
        return float(np.float32(value))
    return float(value)


def is_nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def framing(transformer: Any) -> str:
    """What `set_output` makes of what the transformer gives: "default", "pandas" or "polars"."""
    from sklearn import get_config

    wanted = getattr(transformer, "_sklearn_output_config", {}).get("transform")
    return str(wanted or get_config()["transform_output"])


def is_framed(transformer: Any) -> bool:
    """Whether `set_output` makes frames of what the transformer gives."""
    return framing(transformer) != "default"
