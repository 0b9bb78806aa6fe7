"""`Program.fit`: a plan and training data become a spec, without scikit-learn.

Each transform learns what scikit-learn's would (`fitted`), and is written down as the import of scikit-learn's does.
What a transform learns from is what the compiled core makes of the rows so far, so that training and serving are one.
"""

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb, prod
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastinfer import __version__
from fastinfer.errors import ConfigurationError, FastinferError
from fastinfer.preprocessing import (
    certificate,
    fitted,
    sklearn_categories,
    sklearn_distribution,
    sklearn_imputation,
    sklearn_numeric,
    sklearn_rows,
    sklearn_text,
)
from fastinfer.preprocessing.evidence import number_range
from fastinfer.preprocessing.fitted import Categories, categories_of, fault
from fastinfer.preprocessing.from_sklearn import finished, named, stack
from fastinfer.preprocessing.lowering import compile_spec, with_nullable
from fastinfer.preprocessing.plans import FUNCTION, PERIODS, TRANSFORMS, Entry, Plan, Stage
from fastinfer.preprocessing.spec import DATETIME, MAX_WIDTH, Column, Output, Spec, Step
from fastinfer.preprocessing.tracing import FLOAT32, FLOAT64, OBJECT, Feature, Matrix, Trace, check_dtype, single
from fastinfer.preprocessing.training import Table, Training, training_column
from fastinfer.preprocessing.vectors import MAX_FEATURES, Features, column_names, widths_of

Array = npt.NDArray[Any]
ENCODERS: Final = ("onehot", "ordinal", "frequency", "target", "cross", "hash", "embed")
TAKES_MISSING: Final = ("standard", "minmax", "maxabs", "robust", "power", "quantile", "clip", "impute", "indicate")
ROW_MAJOR: Final = ("polynomial", "onehot", "ordinal", "target", "frequency")  # of whose results scikit-learn makes so
MAX_SHOWN: Final = 100  # categories that features.json repeats for documentation
TOKENS: Final = r"(?u)\b\w\w+\b"  # scikit-learn's token_pattern


@dataclass(slots=True)
class Fitting:
    """What is known so far.

    Attributes:
        training: the raw columns by name.
        columns: the same as the program will have them.
        known: text that an imputer filled, and numbers that scikit-learn rounds otherwise than the core may, by the
            value that they are in the program.
        seen: categories of raw columns, for documentation.
        crosses: what the codes of crossed categories stand for, by the value that they are in the program.
        row_major: whether the matrix at hand would lie row by row in scikit-learn.
    """

    training: Mapping[str, Training]
    columns: tuple[Column, ...]
    y: Any
    trace: Trace
    rows: int
    known: dict[str, Array] = field(default_factory=dict)
    seen: dict[str, Categories] = field(default_factory=dict)
    crosses: dict[str, Callable[[float], str]] = field(default_factory=dict)
    row_major: bool = False

    def values(self, names: Sequence[str], path: str) -> Array:
        """Values of the program so far, [rows, names], float64.

        Raises:
            ConfigurationError: the program refuses a row; the message names it.
        """
        from fastinfer.preprocessing.program import Program

        output = Output("float64", "any", Features([(name, name) for name in names]))
        steps, needed = needed_steps(self.trace.steps, names, self.known)
        columns = tuple([column for column in self.columns if column.name in needed] + [
            Column(name, "FP64", str(self.known[name].dtype)) if self.known[name].dtype != OBJECT
            else Column(name, "BYTES", "str") for name in self.known if name in needed])
        try:
            data = {column.name: self.known[column.name] if column.name in self.known
                    else self.training[column.name].held for column in columns}
            return Program(Spec(columns, steps, output)).transform_dense(data)
        except ConfigurationError:
            raise
        except FastinferError as error:
            raise ConfigurationError(f"{path}: {error}", path) from None

    def numbers(self, stage: Stage, matrix: Matrix) -> Array:
        """A matrix as scikit-learn's transformers of numbers get it, [rows, columns]: float64, or float32."""
        dtype = check_dtype(matrix)
        x = self.floats(matrix, stage.path)
        x = x.astype(dtype if dtype in (FLOAT64, FLOAT32) else FLOAT64, order="C" if self.row_major else "F")
        for wrong, why in ((np.isinf(x), "is infinite"), (np.isnan(x), "is missing; impute it first")):
            if wrong.any() and not (why != "is infinite" and stage.op in TAKES_MISSING):
                row, column = np.argwhere(wrong)[0]
                raise fault(stage, f"row {row} of {matrix.features[column].name!r} {why}")
        if np.isnan(x).all(axis=0).any():
            empty = matrix.features[int(np.argmax(np.isnan(x).all(axis=0)))]
            raise fault(stage, f"every value of {empty.name!r} is missing")
        return x

    def floats(self, matrix: Matrix, path: str) -> Array:
        """Columns of numbers as float64, [rows, columns]."""
        raw = {name: column.values for name, column in self.training.items()} | self.known
        made = [feature.value for feature in matrix.features if feature.value not in raw]
        found = raw | (dict(zip(made, self.values(made, path).T, strict=True)) if made else {})
        return np.column_stack([found[feature.value].astype(np.float64) for feature in matrix.features])

    def keep(self, matrix: Matrix, x: Array) -> Matrix:
        """What the next transform learns from instead of what the core makes."""
        self.known |= {feature.value: column for feature, column in zip(matrix.features, x.T, strict=True)}
        return matrix

    def column(self, feature: Feature, path: str) -> Array:
        """One column's values: raw ones in their own dtype, text as objects."""
        if feature.value in self.known:
            return self.known[feature.value]
        if feature.value in self.training:
            return self.training[feature.value].values
        return self.values([feature.value], path)[:, 0]

    def categories(self, stage: Stage, matrix: Matrix) -> list[Categories]:
        found = [categories_of(self.column(feature, stage.path)) for feature in matrix.features]
        for feature, categories in zip(matrix.features, found, strict=True):
            if categories.values.dtype.kind == "f" and np.isinf(categories.values).any():
                raise fault(stage, f"{feature.name!r} has an infinite category")
            if feature.value in self.training:
                self.seen.setdefault(feature.value, categories)
        return found


def needed_steps(steps: Sequence[Step], names: Sequence[str],
                 known: Collection[str]) -> tuple[tuple[Step, ...], set[str]]:
    """The steps that some values come from, back to those that are known, and all values that these read."""
    needed = set(names)
    kept = []
    for step in reversed(steps):
        made = needed.intersection(step.targets).difference(known)
        if made or (not step.targets and needed.issuperset(step.sources)):
            needed.update(step.sources)
            kept.append(step)
    return tuple(kept[::-1]), needed


# ---- transforms --------------------------------------------------------------------------------------------------
Convert = Callable[[Fitting, Stage, Matrix], Matrix]


def of_numbers(learn: Callable[[Stage, Array], Any], convert: Any) -> Convert:
    def step(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
        learned = learn(stage, fitting.numbers(stage, matrix))
        result: Matrix = convert(fitting.trace, learned, matrix, stage.path)
        return result

    return step


def of_categories(learn: Callable[[Stage, Sequence[Categories]], Any], convert: Any) -> Convert:
    def step(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
        learned = learn(stage, fitting.categories(stage, matrix))
        result: Matrix = convert(fitting.trace, learned, matrix, stage.path)
        return result

    return step


def one_hot(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    categories = fitting.categories(stage, matrix)
    result = sklearn_categories.one_hot_encoder(fitting.trace, fitted.one_hot(stage, categories), matrix, stage.path)
    names: dict[str, str] = {}
    for feature, column in zip(matrix.features, categories, strict=True):
        if feature.value in fitting.crosses:  # called by what was crossed, not by its code
            names |= {f"{feature.name}_{code}": f"{feature.name}_{fitting.crosses[feature.value](code)}"
                      for code in column.values}
    return replace(result, features=tuple([replace(each, name=names.get(each.name, each.name))
                                           for each in result.features]))


def cross(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    """Each combination of categories as one: a number whose digits are their codes; NaN where one is not known."""
    if matrix.width < 2:
        raise fault(stage, "takes two columns or more")
    encoded = sklearn_categories.encoded_features(fitting.trace, matrix, stage.path)
    categories = fitting.categories(stage, matrix)
    sizes = [len(column.values) for column in categories]
    if prod(sizes) >= 2**53:
        raise fault(stage, f"{prod(sizes):,} combinations are too many")
    codes = []
    for feature, column in zip(encoded, categories, strict=True):
        parameters = sklearn_categories.lookup(feature, column.values, list(map(float, range(len(column.values)))),
                                               stage.path)
        parameters["codes"] = parameters.pop("kept")
        codes += written(fitting.trace.write("ordinal", stage.path, [feature], unknown=np.nan, **parameters),
                         [feature.name])
    name = "_x_".join([feature.name for feature in matrix.features])
    weights = tuple([float(prod(sizes[i + 1 :])) for i in range(len(sizes))])
    (value,) = fitting.trace.write("project", stage.path, codes, [name], matrix=(weights,), sparse=True)

    def label(code: float) -> str:
        parts = np.unravel_index(int(code), sizes)
        return "_x_".join([str(column.values[part]) for column, part in zip(categories, parts, strict=True)])

    fitting.crosses[value] = label
    return Matrix((Feature(name, value, "number", FLOAT64, unsigned=True),), "array")


def hash_values(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    """Categories into one of so many buckets, seen before or not; with ``cross`` those of all columns together."""
    buckets, groups = stage.options["n_buckets"], [[feature] for feature in matrix.features]
    if stage.options.get("cross", False):
        groups = [list(matrix.features)]
    names = ["_x_".join([feature.name for feature in group]) for group in groups]
    values = [fitting.trace.write("bucket", stage.path, group, [name], buckets=buckets)[0]
              for group, name in zip(groups, names, strict=True)]
    result = Matrix(tuple([replace(feature, unsigned=True) for feature in written(values, names)]), "array")
    if stage.options.get("encode", "onehot") == "ordinal":
        return result
    if buckets * len(groups) > MAX_WIDTH:
        raise fault(stage, f"{buckets * len(groups):,} features; {MAX_WIDTH:,} are served")
    encoder = fitted.encoder_of([np.arange(buckets, dtype=np.float64)] * len(groups))
    result = sklearn_categories.encode_onehot(fitting.trace, encoder, result, stage.path, FLOAT64)
    return replace(result, features=tuple([replace(each, name=each.name.removesuffix(".0"))
                                           for each in result.features]))


def embed(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    """The vector of each category."""
    vectors = stage.options["vectors"]
    width = len(next(iter(vectors.values())))
    features: list[Feature] = []
    for feature in sklearn_categories.encoded_features(fitting.trace, matrix, stage.path):
        categories = tuple([category_of(stage, feature, key) for key in vectors])
        if len(set(categories)) != len(categories):
            raise fault(stage, f"two of the vectors are of one category of {feature.name!r}")
        table, parameters = list(vectors.values()), {}
        for option, key in (("unknown", "unknown"), ("missing", "nan")):
            if option in stage.options:
                if len(stage.options[option]) != width:
                    raise fault(stage, f"{option} has {len(stage.options[option])} numbers, and the vectors {width}")
                parameters[key] = len(table)
                table.append(stage.options[option])
        names = [f"{feature.name}_{i}" for i in range(width)]
        features += written(fitting.trace.write("embed", stage.path, [feature], names, categories=categories,
                                                rows=len(table), table=np.array(table), **parameters), names)
    return Matrix(tuple(features), "array")


def category_of(stage: Stage, feature: Feature, key: str) -> str | int | float:
    """A table's key as the column has it."""
    try:
        return key if feature.kind == "text" else int(key) if feature.kind == "integer" else float(key)
    except ValueError:
        raise fault(stage, f"{feature.name!r} holds numbers, and one of the vectors is of {key!r}") from None


def target(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    learned = fitted.target(stage, fitting.categories(stage, matrix), fitting.y)
    return sklearn_categories.target_encoder(fitting.trace, learned, matrix, stage.path)


def frequency(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    """How often a category was in the training data, as a share or a count."""
    features = []
    share = stage.options.get("normalize", True)
    encoded = sklearn_categories.encoded_features(fitting.trace, matrix, stage.path)
    for feature, column in zip(encoded, fitting.categories(stage, matrix), strict=True):
        codes = [float(count / fitting.rows if share else count) for count in column.counts]
        parameters = sklearn_categories.lookup(feature, column.values, codes, stage.path)
        parameters["codes"] = parameters.pop("kept")
        (value,) = fitting.trace.write("ordinal", stage.path, [feature],
                                       unknown=stage.options.get("unknown_value", 0.0), **parameters)
        features.append(Feature(feature.name, value, "number", FLOAT64))
    return Matrix(tuple(features), "array")


def impute(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    if {feature.kind for feature in matrix.features} == {"text"}:
        x = np.column_stack([fitting.column(feature, stage.path) for feature in matrix.features])
    else:
        refuse_text(stage, matrix)
        x = fitting.numbers(stage, matrix)
    learned = fitted.imputer(stage, x)
    result = sklearn_imputation.simple_imputer(fitting.trace, learned, matrix, stage.path)
    if learned.add_indicator:  # numpy lays out what scikit-learn puts side by side
        beside = np.hstack((x, fitted.missing_of(x)[:, learned.indicator_.features_]))
        fitting.row_major = not beside.flags.f_contiguous
    if x.dtype == object:
        for i, feature in enumerate(result.features[: x.shape[1]]):
            fitting.known[feature.value] = np.where(x[:, i] != x[:, i], learned.statistics_[i], x[:, i])
    return result


def indicate(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    return sklearn_imputation.missing_indicator(fitting.trace, fitted.indicator(stage, np.empty((0, matrix.width))),
                                                matrix, stage.path)


def clip(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    low, high = (stage.options.get(name, default) for name, default in (("low", -np.inf), ("high", np.inf)))
    if not low <= high or not stage.options:
        raise fault(stage, "needs low, high or both, and low is not above high")

    def clipped(part: Matrix) -> Matrix:
        real = part.dtype.type
        return fitting.trace.each("clip", stage.path, part, low=float(real(low)), high=float(real(high)))

    return by_dtype(fitting, stage, matrix, clipped)


def apply_function(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    return by_dtype(fitting, stage, matrix, lambda part: fitting.trace.each(
        "function", stage.path, part, function=stage.op, **single(part.dtype)))


def by_dtype(fitting: Fitting, stage: Stage, matrix: Matrix, convert: Callable[[Matrix], Matrix]) -> Matrix:
    """Numbers column by column, as numpy's functions take a frame's: float32 as such, all others as float64."""
    features = list(matrix.features)
    for dtype in (FLOAT32, FLOAT64):
        of_it = [i for i, feature in enumerate(matrix.features) if (feature.dtype == FLOAT32) == (dtype == FLOAT32)]
        part = Matrix(tuple([matrix.features[i] for i in of_it]), "array").as_array(dtype)
        for i, feature in zip(of_it, convert(fitting.trace.numbers(part, stage.path)).features, strict=True):
            features[i] = feature
    return replace(matrix, features=tuple(features))


def normalize(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    learned = SimpleNamespace(norm=stage.options.get("norm", "l2"))
    x = fitted.normalized(fitting.numbers(stage, matrix), learned.norm)
    return fitting.keep(sklearn_rows.normalizer(fitting.trace, learned, matrix, stage.path), x)


def power(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    learned = fitted.power(stage, fitting.numbers(stage, matrix))
    result = sklearn_distribution.power_transformer(fitting.trace, learned, matrix, stage.path)
    return fitting.keep(result, learned.transformed)


def binarize(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    learned = SimpleNamespace(threshold=stage.options.get("threshold", 0.0))
    return sklearn_numeric.binarizer(fitting.trace, learned, matrix, stage.path)


def polynomial(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    options = {"degree": 2, "interaction_only": False, "include_bias": True, **stage.options}
    width, degree = matrix.width, options["degree"]
    count = comb(width + degree, degree)
    if options["interaction_only"]:
        count = sum(comb(width, factors) for factors in range(degree + 1))
    count -= not options["include_bias"]
    if not 0 < count <= MAX_WIDTH:
        raise fault(stage, f"{count:,} features; 1 to {MAX_WIDTH:,} are made")
    learned = SimpleNamespace(**options, n_output_features_=count, _min_degree=0, _max_degree=degree)
    return sklearn_rows.polynomial_features(fitting.trace, learned, matrix, stage.path)


def date_parts(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    features: list[Feature] = []
    for part in stage.options["parts"]:
        names = [f"{feature.name}_{part}" for feature in matrix.features]
        features += written(fitting.trace.write("date_part", stage.path, matrix.features, names, part=part), names)
    return Matrix(tuple(features), "array")


def cycle(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    """Sine and cosine of 2π · part / period."""
    features: list[Feature] = []
    for part in stage.options["part"]:
        period = stage.options.get("period", PERIODS[part])
        names = [f"{feature.name}_{part}" for feature in matrix.features]
        angles = Matrix(tuple(written(fitting.trace.write("date_part", stage.path, matrix.features, names, part=part),
                                      names)), "array")
        angles = fitting.trace.arithmetic("divide", stage.path, angles, period)
        angles = fitting.trace.arithmetic("multiply", stage.path, angles, 2 * np.pi)
        waves = [fitting.trace.each("function", stage.path, angles, function=wave).features for wave in ("sin", "cos")]
        features += [replace(feature, name=f"{feature.name}_{wave}")
                     for both in zip(*waves, strict=True) for feature, wave in zip(both, ("sin", "cos"), strict=True)]
    return Matrix(tuple(features), "array")


def written(values: Sequence[str], names: Sequence[str]) -> list[Feature]:
    return [Feature(name, value, "number", FLOAT64) for name, value in zip(names, values, strict=True)]


def hash_text(fitting: Fitting, stage: Stage, matrix: Matrix) -> Matrix:
    """`HashingVectorizer`, of each column by itself."""
    options = {"n_features": 2**20, "analyzer": "word", "ngram_range": (1, 1), "lowercase": True, "strip_accents": None,
               "token_pattern": TOKENS, "stop_words": (), "binary": False, "norm": "l2", "alternate_sign": True,
               **stage.options}
    if options["analyzer"] != "word":
        for name in ("token_pattern", "stop_words"):
            if name in stage.options:
                raise fault(stage, f"{name} goes with the analyzer 'word' only")
    words = options.pop("stop_words")
    learned = SimpleNamespace(**options, input="content", preprocessor=None, tokenizer=None, dtype=np.float64,
                              get_stop_words=lambda: words)
    learned.norm = None if options["norm"] == "none" else options["norm"]
    features: list[Feature] = []
    for feature in matrix.features:
        lost = fitted.missing_of(fitting.column(feature, stage.path))
        if lost.any():
            raise fault(stage, f"row {int(np.argmax(lost))} of {feature.name!r} is missing; impute it first")
        part = sklearn_text.hashing_vectorizer(fitting.trace, learned, Matrix((feature,), "series"), stage.path)
        features += [replace(each, name=f"{feature.name}_") for each in part.features]
    return Matrix(tuple(features), "sparse")


STEPS: Final[Mapping[str, Convert]] = {
    "impute": impute,
    "indicate": indicate,
    "standard": of_numbers(fitted.standard, sklearn_numeric.standard_scaler),
    "minmax": of_numbers(fitted.min_max, sklearn_numeric.min_max_scaler),
    "maxabs": of_numbers(fitted.max_abs, sklearn_numeric.max_abs_scaler),
    "robust": of_numbers(fitted.robust, sklearn_numeric.robust_scaler),
    "normalize": normalize,
    "clip": clip,
    "binarize": binarize,
    "bucketize": of_numbers(fitted.bins, sklearn_numeric.k_bins_discretizer),
    "power": power,
    "quantile": of_numbers(fitted.quantile, sklearn_distribution.quantile_transformer),
    "polynomial": polynomial,
    "onehot": one_hot,
    "ordinal": of_categories(fitted.ordinal, sklearn_categories.ordinal_encoder),
    "frequency": frequency,
    "target": target,
    "cross": cross,
    "hash": hash_values,
    "embed": embed,
    "date_parts": date_parts,
    "cycle": cycle,
    "hash_text": hash_text,
}


def refuse_text(stage: Stage, matrix: Matrix) -> None:
    for feature in matrix.features:
        if feature.kind == "text":
            raise fault(stage, f"{feature.name!r} is text beside numbers; give it an entry of its own")


def check_kinds(stage: Stage, matrix: Matrix) -> None:
    """What a transform gets is what it takes."""
    takes = TRANSFORMS.get(stage.op, FUNCTION).takes
    allowed = {"number": ("number", "integer"), "category": ("number", "integer", "text"), "text": ("text",),
               "date": ("time",)}[takes]
    words = {"time": "a date; take its date_parts or a cycle", "vector": "hashed text, of which nothing more is made",
             "text": "text; encode it", "number": "numbers", "integer": "numbers"}
    for feature in matrix.features:
        if feature.kind not in allowed:
            wanted = {"number": "numbers", "category": "categories or numbers", "text": "text", "date": "dates"}[takes]
            raise fault(stage, f"takes {wanted}, and {feature.name!r} is {words[feature.kind]}")


# ---- columns -----------------------------------------------------------------------------------------------------
def read_columns(plan: Plan, table: Table) -> dict[str, Training]:
    """The columns that the plan reads, in its order."""
    found: dict[str, Training] = {}
    dated: dict[str, bool] = {}
    for entry in plan.entries:
        dates = bool(entry.stages) and TRANSFORMS.get(entry.stages[0].op, FUNCTION).takes == "date"
        for name in entry.columns:
            if name not in found:
                found[name] = training_column(table.held(name, f"{entry.path}.columns"), name, entry.path, dates=dates)
            if dated.setdefault(name, dates) != dates and found[name].values.dtype == object:
                raise ConfigurationError(f"{entry.path}: the column {name!r} is a date in one entry and text in "
                                         "another", entry.path)
    return found


def raw_columns(plan: Plan, training: Mapping[str, Training]) -> tuple[Column, ...]:
    """Every raw column as the wire will have it: whole numbers are integers where they are categories as they come."""
    encoded = [entry for entry in plan.entries if entry.stages and entry.stages[0].op in ENCODERS]
    direct = {name for entry in encoded for name in entry.columns}
    columns = []
    for name, column in training.items():
        if column.holds == "date":
            columns.append(Column(name, "BYTES", DATETIME))
        elif column.holds == "text":
            columns.append(Column(name, "BYTES", "str"))
        elif column.holds == "bool":
            columns.append(Column(name, "BOOL", "bool"))
        elif column.holds == "integer" and name in direct:
            columns.append(Column(name, "INT64", str(column.values.dtype)))
        else:
            columns.append(Column(name, "FP64", "float32" if column.values.dtype == FLOAT32 else "float64"))
    return tuple(columns)


def raw_feature(column: Column) -> Feature:
    dtype = OBJECT if column.datatype == "BYTES" else np.dtype(column.dtype)
    return Feature(column.name, column.name, column.kind, dtype, unsigned=column.datatype != "FP64")


def documented(fitting: Fitting, column: Column) -> Column:
    """The column with the categories that encoders saw, and a value that it may have."""
    categories = fitting.seen.get(column.name)
    known: list[Any] = []
    if categories is not None and column.datatype != "BOOL":
        known = [value for value in categories.values.tolist() if value == value][:MAX_SHOWN]
    training = fitting.training[column.name]
    numbers = training.holds in ("number", "integer") and not known
    return replace(column, categories=tuple(known), example=example(training, column, known),
                   range=number_range(training.values) if numbers else None)


def example(training: Training, column: Column, known: Sequence[Any]) -> Any:
    if column.kind == "time":
        return "2024-02-29T12:30:00Z"
    if column.datatype == "BOOL":
        return True
    if known:
        return known[0]
    if column.datatype == "BYTES":
        return "some text"
    present = training.values[~np.isnan(training.values.astype(np.float64))]
    middle = float(np.sort(present)[len(present) // 2]) if len(present) else 0.0
    return (int(middle) if column.datatype == "INT64" else middle) if np.isfinite(middle) else 0.0


# ---- all ---------------------------------------------------------------------------------------------------------
def fit_entry(fitting: Fitting, entry: Entry, matrix: Matrix) -> Matrix:
    fitting.row_major = False
    for stage in entry.stages:
        if not matrix.features:
            raise fault(stage, "no feature is left of those before it")
        check_kinds(stage, matrix)
        step = STEPS.get(stage.op, apply_function)
        with np.errstate(all="ignore"):
            matrix = step(fitting, stage, matrix)
        fitting.row_major |= stage.op in ROW_MAJOR or (
            stage.op == "bucketize" and stage.options.get("encode") != "ordinal")
    for feature in matrix.features:
        if feature.kind in ("text", "time"):
            what = "text" if feature.kind == "text" else "a date"
            raise ConfigurationError(f"{entry.path}: {feature.name!r} is {what} still; end its steps with an encoder",
                                     entry.path)
    prefix = f"{entry.name}__" if entry.name else ""
    return replace(matrix, features=tuple([replace(each, name=prefix + each.name) for each in matrix.features]))


def fit_plan(plan: Plan, data: Any, y: Any = None) -> Spec:
    """The spec of a plan, fitted to training data.

    Args:
        data: what `Table` takes.
        y: the target, [rows], or the name of its column.

    Raises:
        ConfigurationError: the plan does not suit the data; the message names the place.
    """
    table = Table(data)
    training = read_columns(plan, table)
    columns = raw_columns(plan, training)
    rows = {name: len(column.held) for name, column in training.items()}
    if len(set(rows.values())) != 1 or not min(rows.values()):
        raise ConfigurationError(f"the columns have {', '.join(str(each) for each in sorted(set(rows.values())))} rows")
    if isinstance(y, str):
        y = table.held(y, "y")
    fitting = Fitting(training, columns, y, Trace(taken=set(training)), next(iter(rows.values())))
    raw = {column.name: raw_feature(column) for column in columns}
    parts = [(entry, fit_entry(fitting, entry, Matrix(tuple([raw[name] for name in entry.columns]), "frame")))
             for entry in plan.entries]
    refuse_twins(parts)
    width = sum(part.width for _, part in parts)
    sparse = plan.sparse if plan.sparse is not None else width > MAX_WIDTH
    if not 0 < width <= (MAX_FEATURES if sparse else MAX_WIDTH):
        raise ConfigurationError(f"spec: {width:,} features; a dense program gives 1 to {MAX_WIDTH:,}, and one with "
                                 f"sparse = true up to {MAX_FEATURES:,}", "spec")
    matrix = stack(fitting.trace, [part for _, part in parts], "spec", sparse=sparse, frame=None)
    matrix = finished(fitting.trace, matrix, plan.dtype, "spec")
    steps = tuple(fitting.trace.steps)
    output = Output(plan.dtype, plan.allow, named(None, matrix, column_names(steps, widths_of(steps))), sparse)
    spec = Spec(tuple([documented(fitting, column) for column in columns]), steps, output,
                tuple([name for name in table.names if name not in training]) if table.array else ())
    check_rows(fitting, spec)
    return certified(spec)


def refuse_twins(parts: Sequence[tuple[Entry, Matrix]]) -> None:
    """Two features of one name: a name for one of the entries tells them apart."""
    seen: dict[str, Entry] = {}
    for entry, matrix in parts:
        for feature in matrix.features:
            first = seen.setdefault(feature.name, entry)
            if first is not entry:
                raise ConfigurationError(f"{entry.path}: {first.path} has a feature {feature.name!r} too; give one of "
                                         "them a name, which goes before its features", entry.path)


def check_rows(fitting: Fitting, spec: Spec) -> None:
    """The program takes every row that it learned from.

    Raises:
        ConfigurationError: it refuses one; the message names row and field.
    """
    from fastinfer.preprocessing.program import Program

    try:
        data = {column.name: fitting.training[column.name].held for column in spec.columns}
        Program(spec).transform(data)
    except FastinferError as error:
        raise ConfigurationError(f"spec: the program refuses a row that it learned from: {error}", "spec") from None


def certified(spec: Spec) -> Spec:
    """The spec with golden rows, and what the program makes of them here; elsewhere it must make the same of them."""
    compiled, _ = compile_spec(spec)
    rows, nullable = certificate.golden_rows(compiled, spec)
    spec = with_nullable(spec, nullable)
    expected = certificate.run(compiled, spec, certificate.as_columns(rows, spec))
    versions = {"fastinfer": __version__, "numpy": np.__version__, "unicode": unicodedata.unidata_version}
    return replace(spec, certificate=certificate.make(spec, rows, expected, versions))
