"""From a spec's named values to the flat table of the compiled core.

Every step becomes one operation a value ("atom"). Atoms are emitted output by output, each after what it reads, so that
a column goes through its whole chain while it is in the cache, and few registers are alive at a time; registers are
reused as soon as their value has been read for the last time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import Any, Final, Literal

import numpy as np

from fastinfer._core import TIME_PART_NAMES, CompiledProgram, Instruction, Signature, Tensor
from fastinfer.errors import ConfigurationError
from fastinfer.preprocessing import lowering_vectors
from fastinfer.preprocessing.spec import FUNCTIONS, SCIPY_FUNCTIONS, Column, Kind, Spec, Step
from fastinfer.preprocessing.vectors import Features, Run, widths_of

LOADS: Final = {"FP64": "load_float64", "INT64": "load_int64", "BOOL": "load_bool", "BYTES": "load_text"}
KINDS: Final[Mapping[str, Kind]] = {"load_int64": "integer", "load_time": "time"}  # else: the register
DENSE_L1, DENSE_L2, LARGEST, SPARSE_L1, SPARSE_L2 = range(5)  # how rows.pyx takes a norm
NORMS: Final = {("l1", False): DENSE_L1, ("l2", False): DENSE_L2, ("max", False): LARGEST, ("max", True): LARGEST,
                ("l1", True): SPARSE_L1, ("l2", True): SPARSE_L2}
# scikit-learn's BOUNDS_THRESHOLD, and scipy.stats.norm.ppf of it and of 1 minus it, less one spacing of 1.
NEAR_END: Final = 1e-7
NORMAL_ENDS: Final = (-5.199337582605575, 5.19933758270342)
FLAGS: Final = {"nan": 1, "none": 2, "any": 3}
CODE: Final = "\0code of "  # how the value of a one-hot encoding begins
NO_CODE: Final = -1.0  # a category that leaves all columns of a one-hot encoding at zero
Bank = Literal["number", "text", "vector"]
# How near a value is to scikit-learn's: the same bits on every machine; 1 ulp, behind a function that the machine's
# mathematical library rounds; 1 ulp of float32, behind several of them or a sum whose order the machine chooses.
Precision = Literal["exact", "ulp", "single"]
PRECISIONS: Final[tuple[Precision, ...]] = ("exact", "ulp", "single")
# Kernels that read several registers,
GATHERING: Final = ("row_norm", "divide_values", "multiply_values", "project", "hash_bucket",
                    *lowering_vectors.GATHERING)
SCATTERING: Final = ("project", "spline", "take_row")  # and that write several
OVERWRITING: Final = ("project", *lowering_vectors.GATHERING)  # and that write before they have read all
REFUSING: Final = ("lookup_number", "lookup_integer", "lookup_text", "spline",
                   "count_text", "hash_text", "hash_words")  # and that may refuse a row


class Precisions(Sequence[Precision]):
    """The precision of each feature, kept once for all columns of a vector."""

    def __init__(self, parts: Sequence[Precision], features: Features) -> None:
        self.parts = parts
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.parts[self.features.part_of(index)]

    def __iter__(self) -> Iterator[Precision]:
        sizes = np.diff(self.features.starts).tolist()
        return chain.from_iterable(repeat(part, size) for part, size in zip(self.parts, sizes, strict=True))


@dataclass(slots=True)
class Atom:
    """One operation.

    Attributes:
        reads: values it reads (none: a load, or a constant).
        writes: values it writes (none: a check).
        text: whether it writes text.
        column: raw column that an error names.
    """

    instruction: Instruction
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    column: int
    text: bool = False

    @property
    def bank(self) -> "Bank":
        """Which registers it writes."""
        if self.instruction.kernel in lowering_vectors.WRITING:
            return "vector"
        return "text" if self.text else "number"


@dataclass(slots=True)
class Hot:
    """A value that is one column of a one-hot encoding: 1.0 where `code` (a value) equals `position`."""

    code: str
    position: int


@dataclass(slots=True)
class Program:
    """Atoms by the value they write, checks by the value they read."""

    spec: Spec
    atoms: dict[str, Atom] = field(default_factory=dict)
    checks: dict[str, list[Atom]] = field(default_factory=dict)
    hot: dict[str, Hot] = field(default_factory=dict)
    slices: dict[str, tuple[str, int]] = field(default_factory=dict)  # values that are one column of a vector
    widths: dict[str, int] = field(default_factory=dict)  # of vectors
    precision: dict[str, Precision] = field(default_factory=dict)  # of values that are not exact

    def origin(self, value: str) -> str:
        """The value that is computed: the code of a one-hot column, the vector of a slice."""
        return self.hot[value].code if value in self.hot else self.slices.get(value, (value, 0))[0]

    def column_of(self, value: str) -> int:
        return self.atoms[self.origin(value)].column

    def kind_of(self, value: str) -> Kind:
        if value in self.hot or value in self.slices:
            return "number"
        atom = self.atoms[value]
        return KINDS.get(atom.instruction.kernel, atom.bank)

    def add(self, kernel: str, sources: str | tuple[str, ...], targets: str | tuple[str, ...] | None, *,
            text: bool = False, precision: Precision = "exact", **fields: Any) -> None:
        """An operation. ``precision``: of its result, where what it reads is exact."""
        sources = (sources,) if isinstance(sources, str) else sources
        targets = () if targets is None else (targets,) if isinstance(targets, str) else targets
        column = self.column_of(sources[0])
        atom = Atom(Instruction(kernel, 0, 0, column, **fields), sources, targets, column, text)
        if not targets:
            self.checks.setdefault(sources[0], []).append(atom)
        found = max([precision, *(self.precision.get(source, "exact") for source in sources)], key=PRECISIONS.index)
        for target in targets:
            self.atoms[target] = atom
            if found != "exact":
                self.precision[target] = found

    def constant(self, value: float, target: str, column: int) -> None:
        """A value that no column decides."""
        self.atoms[target] = Atom(Instruction("constant", 0, 0, column, a=value), (), (target,), column)


def signature_of(columns: tuple[Column, ...]) -> Signature:
    """The wire signature: each column [-1, 1], no outputs."""
    return Signature(
        [Tensor(column.name, column.datatype, (-1, 1), column.nullable, column=True) for column in columns], ()
    )


def lower_cast(program: Program, step: Step, i: int) -> None:
    single = step.parameters["dtype"] == "float32"
    source = step.sources[i]
    if program.kind_of(source) == "integer":
        program.add("from_integer", source, step.targets[i], single=single)
    elif single:
        program.add("round_float32", source, step.targets[i])
    else:  # a number is a float64 already: filling NaN with NaN copies it
        program.add("fill_missing", source, step.targets[i], b=np.nan)


def lower_check(program: Program, step: Step, i: int) -> None:
    source, allow = step.sources[i], step.parameters["allow"]
    if program.kind_of(source) == "vector":
        program.add("check_vector", source, None, a=float(allow == "nan"))
        return
    kernel = {"finite": "check_finite", "nan": "check_not_infinite", "positive": "check_positive"}[allow]
    program.add("check_text" if program.kind_of(source) == "text" else kernel, source, None)


def lower_impute(program: Program, step: Step, i: int) -> None:
    missing, fill, source = step.parameters["missing"], step.parameters["fill"][i], step.sources[i]
    if program.kind_of(source) == "text":
        flags, wanted = text_missing(missing)
        program.add("fill_text", source, step.targets[i], text=True, flags=flags, table=(wanted, fill))
    elif missing == "nan" or missing != missing:
        program.add("fill_missing", source, step.targets[i], b=fill)
    else:
        program.add("fill_equal", source, step.targets[i], a=missing, b=fill)


def lower_indicate(program: Program, step: Step, i: int) -> None:
    missing, source = step.parameters["missing"], step.sources[i]
    if program.kind_of(source) == "text":
        flags, wanted = text_missing(missing)
        program.add("is_text", source, step.targets[i], flags=flags, table=(wanted, None))
    elif missing == "nan" or missing != missing:
        program.add("is_missing", source, step.targets[i])
    else:
        program.add("is_equal", source, step.targets[i], a=missing)


def text_missing(missing: str | Mapping[str, str]) -> tuple[int, str | None]:
    return (FLAGS[missing], None) if isinstance(missing, str) else (0, missing["text"])


def lower_arithmetic(program: Program, step: Step, i: int) -> None:
    single = step.parameters.get("dtype") == "float32"
    program.add(step.op, step.sources[i], step.targets[i], a=step.parameters["by"][i], single=single)


def lower_clip(program: Program, step: Step, i: int) -> None:
    program.add("clip", step.sources[i], step.targets[i], a=step.parameters["low"], b=step.parameters["high"])


def lower_binarize(program: Program, step: Step, i: int) -> None:
    program.add("is_above", step.sources[i], step.targets[i], a=step.parameters["threshold"])


def lower_function(program: Program, step: Step, i: int) -> None:
    name = step.parameters["function"]
    single = step.parameters.get("dtype") == "float32"
    if name in SCIPY_FUNCTIONS:
        kernel = {"expit": "logistic", "logit": "log_odds"}[name]
        program.add(kernel, step.sources[i], step.targets[i], single=single, precision="single")
        return
    precision: Precision = "exact" if FUNCTIONS[name] else "ulp"
    program.add("apply_function", step.sources[i], step.targets[i], single=single, table=getattr(np, name),
                precision=precision)


def lower_bucketize(program: Program, step: Step, i: int) -> None:
    program.add("bucketize", step.sources[i], step.targets[i], table=list(step.parameters["edges"]))


def lower_date_part(program: Program, step: Step, i: int) -> None:
    program.add("date_part", step.sources[i], step.targets[i], flags=TIME_PART_NAMES.index(step.parameters["part"]))


def lower_encoding(program: Program, step: Step, target: str, codes: list[float]) -> None:
    """A look-up; a code that the spec does not give is refused (missing values count as unknown then)."""
    def code(key: str) -> float | None:
        if key not in step.parameters or step.parameters[key] == "refuse":
            return None
        return NO_CODE if step.parameters[key] is None else float(step.parameters[key])

    table = (list(step.parameters["categories"]), codes, code("nan"), code("none"), code("unknown"))
    program.add(f"lookup_{program.kind_of(step.sources[0])}", step.sources[0], target, table=table)


def lower_ordinal(program: Program, step: Step, i: int) -> None:
    lower_encoding(program, step, step.targets[0], list(step.parameters["codes"]))


def lower_onehot(program: Program, step: Step, i: int) -> None:
    """The code goes into a value of its own; its columns are made only where something but the output reads them."""
    code = CODE + (step.targets[0] if step.targets else repr(step))
    positions = [NO_CODE if position is None else float(position) for position in step.parameters["positions"]]
    lower_encoding(program, step, code, positions)
    for position, target in enumerate(step.targets):
        program.hot[target] = Hot(code, position)


def lower_power(program: Program, step: Step, i: int) -> None:
    single = step.parameters.get("dtype") == "float32"
    power: float = step.parameters["lambdas"][i]
    if step.parameters["method"] == "box-cox":
        program.add("box_cox", step.sources[i], step.targets[i], a=power, single=single, precision="single")
        return
    tiny = float(np.finfo(np.float32 if single else np.float64).eps)
    below = float(np.float32(2) - np.float32(power)) if single else 2 - power
    program.add("yeo_johnson", step.sources[i], step.targets[i], a=0.0 if abs(power) < tiny else power,
                b=0.0 if abs(below) <= tiny else below, single=single, table=(np.log1p, np.expm1), precision="single")


def lower_quantile(program: Program, step: Step, i: int) -> None:
    single = step.parameters.get("dtype") == "float32"
    normal = step.parameters["distribution"] == "normal"
    quantiles = list(step.parameters["quantiles"])
    references = [float(value) for value in np.linspace(0, 1, len(quantiles))]
    threshold = float(np.float32(NEAR_END)) if single else NEAR_END
    program.add("quantile", step.sources[i], step.targets[i], flags=int(normal), single=single,
                table=(quantiles, references, threshold, *NORMAL_ENDS), precision="single" if normal else "exact")


def lower_spline(program: Program, step: Step, i: int) -> None:
    given = step.parameters
    width = len(given["knots"]) - given["degree"] - 1
    periodic = given["extrapolation"] == "periodic"
    table = {"knots": given["knots"], "degree": given["degree"], "mode": given["extrapolation"],
             "splines": width - given["degree"] if periodic else width,
             **{name: given.get(name) for name in ("low", "high", "reach", "low_values", "high_values", "low_slopes",
                                                   "high_slopes")}}
    single = given.get("dtype") == "float32"
    program.add("spline", step.sources[0], step.targets, table=table, single=single,
                flags=int(given.get("sparse", False)))


def lower_normalize(program: Program, step: Step) -> None:
    norm, sparse = step.parameters["norm"], step.parameters.get("sparse", False)
    single = step.parameters.get("dtype") == "float32"
    tiny = 10 * float(np.finfo(np.float32 if single else np.float64).eps)
    least = float(np.finfo(np.float64).smallest_subnormal) if sparse else tiny  # sparse: only 0 is left as it is
    kind = NORMS[norm, sparse]
    summed = kind == DENSE_L2 or (kind == DENSE_L1 and len(step.sources) >= 8)
    target = f"\0norm of {step.targets[0]}"
    program.add("row_norm", step.sources, target, a=least, flags=kind, single=single,
                precision="single" if summed else "exact")
    for source, divided in zip(step.sources, step.targets, strict=True):
        program.add("divide_values", (source, target), divided, single=single)


def lower_polynomial(program: Program, step: Step) -> None:
    """Products from the first factor to the last; terms that begin alike share what they have in common."""
    single = step.parameters.get("dtype") == "float32"
    sparse = int(step.parameters.get("sparse", False))
    known: dict[tuple[int, ...], str] = {(j,): source for j, source in enumerate(step.sources)}
    for term, target in zip(step.parameters["terms"], step.targets, strict=True):
        if not term:
            program.constant(1.0, target, program.column_of(step.sources[0]))
        elif len(term) == 1:
            program.add("fill_missing", step.sources[term[0]], target, b=np.nan)  # a copy
        else:
            known[term] = target
    for term, target in zip(step.parameters["terms"], step.targets, strict=True):
        for size in range(2, len(term) + 1):
            part = term[:size]
            value = target if size == len(term) else known.setdefault(part, f"\0{part} of {step.targets[0]}")
            if value not in program.atoms:
                program.add("multiply_values", (known[part[:-1]], step.sources[part[-1]]), value, single=single,
                            flags=sparse)


def lower_project(program: Program, step: Step) -> None:
    single = step.parameters.get("dtype") == "float32"
    weights = [weight for row in step.parameters["matrix"] for weight in row]
    program.add("project", step.sources, step.targets, single=single, table=weights,
                precision="exact" if step.parameters.get("sparse", False) else "single")


def lower_bucket(program: Program, step: Step) -> None:
    kinds = [program.kind_of(source) for source in step.sources]
    program.add("hash_bucket", step.sources, step.targets, flags=step.parameters["buckets"], table=kinds)


def lower_embed(program: Program, step: Step) -> None:
    """A category's row of the table is looked up as its code."""
    code = f"\0row of {step.targets[0]}"
    lower_encoding(program, step, code, [float(row) for row in range(len(step.parameters["categories"]))])
    program.add("take_row", code, step.targets, table=step.parameters["table"])


LOWERINGS: Final[Mapping[str, Callable[[Program, Step, int], None]]] = {
    "cast": lower_cast,
    "check": lower_check,
    "impute": lower_impute,
    "indicate": lower_indicate,
    **dict.fromkeys(("subtract", "add", "multiply", "divide"), lower_arithmetic),
    "clip": lower_clip,
    "binarize": lower_binarize,
    "function": lower_function,
    "bucketize": lower_bucketize,
    "date_part": lower_date_part,
    "ordinal": lower_ordinal,
    "onehot": lower_onehot,
    "power": lower_power,
    "quantile": lower_quantile,
    "spline": lower_spline,
}
WHOLE_LOWERINGS: Final[Mapping[str, Callable[[Program, Step], None]]] = {
    "normalize": lower_normalize,
    "polynomial": lower_polynomial,
    "project": lower_project,
    "bucket": lower_bucket,
    "embed": lower_embed,
    **lowering_vectors.LOWERINGS,
}


def build(spec: Spec) -> Program:
    """Every step as atoms."""
    program = Program(spec, widths=widths_of(spec.steps))
    for i, column in enumerate(spec.columns):
        program.atoms[column.name] = Atom(load(column, i), (), (column.name,), i, column.kind == "text")
    for step in spec.steps:
        for source in step.sources:
            if source in program.hot or source in program.slices:
                materialise(program, source)
        if step.op in WHOLE_LOWERINGS:
            WHOLE_LOWERINGS[step.op](program, step)
            continue
        for i in range(len(step.sources)):
            LOWERINGS[step.op](program, step, i)
    return program


def load(column: Column, i: int) -> Instruction:
    if column.kind == "time":
        return Instruction("load_time", i, 0, i, flags=int(column.nullable))
    kernel = "load_float32" if column.dtype == "float32" else LOADS[column.datatype]
    return Instruction(kernel, i, 0, i, flags=FLAGS[column.missing] if column.kind == "text" else 0)


def materialise(program: Program, value: str) -> None:
    """Make a one-hot column, or a column of a vector, a value of its own, once."""
    if value not in program.atoms and value in program.slices:
        vector, position = program.slices[value]
        program.add("vector_column", vector, value, table=position)
    elif value not in program.atoms:
        hot = program.hot[value]
        program.add("is_code", hot.code, value, a=float(hot.position))


@dataclass(slots=True)
class Emission:
    """The order in which atoms run; loads and stores included."""

    program: Program
    order: list[Atom] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    def value(self, name: str) -> None:
        """Emit what makes the value, then the checks on it. Iterative: a chain may be long."""
        stack = [name]
        while stack:
            value = stack[-1]
            atom = self.program.atoms[value]
            waiting = [source for source in atom.reads if source not in self.done]
            if value in self.done or waiting:
                stack.pop() if value in self.done else stack.extend(waiting)
                continue
            stack.pop()
            self.done.update(atom.writes)
            self.order.append(atom)
            for written in atom.writes:
                self.order.extend(self.program.checks.get(written, ()))

    def store(self, kernel: str, value: str, target: int, table: list[int] | None = None) -> None:
        self.value(value)
        column = self.program.column_of(value)
        self.order.append(Atom(Instruction(kernel, 0, target, column, table=table), (value,), (), column))


def emit(program: Program) -> list[Atom]:
    """All atoms in running order."""
    output = program.spec.output
    if output.allow != "any":
        read = [part.value if isinstance(part, Run) else program.origin(part[1]) for part in output.features.parts]
        for value in dict.fromkeys(value for value in read if not value.startswith(CODE)):
            check_output(program, value)
    emission = Emission(program)
    stores: list[tuple[int, str, str, int, list[int] | None]] = []  # first feature, kernel, value, target, table
    groups: dict[str, dict[int, int]] = {}
    for part, start in zip(output.features.parts, output.features.starts.tolist(), strict=False):
        if isinstance(part, Run):
            stores.append((start, f"store_vector_{output.dtype}", part.value, start, None))
            continue
        value = part[1]
        hot, (vector, position) = program.hot.get(value), program.slices.get(value, ("", -1))
        group, place = (hot.code, hot.position) if hot is not None else (vector, position)
        if place >= 0 and place not in groups.get(group, {}):
            groups.setdefault(group, {})[place] = start
            continue
        if place >= 0:
            materialise(program, value)
        stores.append((start, f"store_{output.dtype}", value, start, None))
    for group, columns in groups.items():
        if group.startswith(CODE):
            table = [columns.get(position, -1) for position in range(max(columns) + 1)]
            stores.append((min(columns.values()), f"scatter_{output.dtype}", group, 0, table))
        else:
            table = [columns.get(position, -1) for position in range(program.widths[group])]
            stores.append((min(columns.values()), f"store_vector_{output.dtype}", group, 0, table))
    for _, kernel, stored, target, where in sorted(stores, key=lambda store: store[0]):  # sparse rows come in order
        emission.store(kernel, stored, target, where)
    for value, atom in list(program.atoms.items()):  # what may refuse a row must run, whether or not it is read
        if value in program.checks or atom.instruction.kernel in REFUSING:
            emission.value(value)
    return emission.order


def check_output(program: Program, value: str) -> None:
    """What the estimator refuses; after the cast, since float32 may overflow."""
    if program.kind_of(value) == "vector":
        program.add("check_vector", value, None, a=float(program.spec.output.allow == "nan"),
                    single=program.spec.output.dtype == "float32")
        return
    kernel = {"finite": "check_finite", "nan": "check_not_infinite"}[program.spec.output.allow]
    if program.spec.output.dtype == "float32":
        kernel += "_float32"
    program.add(kernel, value, None)


def allocate(order: list[Atom]) -> tuple[list[Instruction], dict[Bank, int]]:
    """Registers for values: (instructions, how many registers of each bank)."""
    last = {value: i for i, atom in enumerate(order) for value in atom.reads}
    free: dict[Bank, list[int]] = {"number": [], "text": [], "vector": []}
    used: dict[Bank, int] = {"number": 0, "text": 0, "vector": 0}
    register: dict[str, tuple[Bank, int]] = {}

    def release(atom: Atom, i: int) -> None:
        for value in dict.fromkeys(atom.reads):
            if last[value] == i:
                bank, index = register.pop(value)
                free[bank].append(index)

    def take(bank: Bank) -> int:
        if free[bank]:
            return free[bank].pop()
        used[bank] += 1
        return used[bank] - 1

    instructions = []
    for i, atom in enumerate(order):
        kernel = atom.instruction.kernel
        reads = [register[value][1] for value in atom.reads]
        changes: dict[str, Any] = {}
        if kernel in GATHERING:
            changes["sources"] = tuple(reads)
        elif reads:
            changes["source"] = reads[0]
        if kernel not in OVERWRITING:
            release(atom, i)  # the target may take a source's place: the kernel reads a row before it writes it
        writes = [take(atom.bank) for _ in atom.writes]
        if kernel in OVERWRITING:
            release(atom, i)
        if kernel in SCATTERING:
            changes["targets"] = tuple(writes)
        elif writes:
            changes["target"] = writes[0]
        for value, index in zip(atom.writes, writes, strict=True):
            if value in last:
                register[value] = (atom.bank, index)
            else:
                free[atom.bank].append(index)
        instructions.append(atom.instruction._replace(**changes))
    return instructions, used


def compile_spec(spec: Spec) -> tuple[CompiledProgram, Precisions]:
    """The compiled program, and each output's precision.

    Raises:
        ConfigurationError: the compiled core refuses the program.
    """
    program = build(spec)
    order = emit(program)
    features = spec.output.features
    values = [part.value if isinstance(part, Run) else part[1] for part in features.parts]
    precision = Precisions([program.precision.get(program.origin(value), "exact") for value in values], features)
    instructions, used = allocate(order)
    width = len(spec.output.features)
    compiled = CompiledProgram(signature_of(spec.columns), instructions, used["number"], used["text"], width,
                               spec.output.dtype, used["vector"])
    return compiled, precision


def with_nullable(spec: Spec, nullable: Mapping[str, bool]) -> Spec:
    """The spec with each column's ``nullable`` as found."""
    unknown = set(nullable) - {column.name for column in spec.columns}
    if unknown:
        raise ConfigurationError(f"no column is called {min(unknown)!r}")
    return replace(spec, columns=tuple([
        replace(column, nullable=nullable.get(column.name, column.nullable)) for column in spec.columns
    ]))
