"""From a spec's named values to the flat table of the compiled core.

Every step becomes one operation a value ("atom"). Atoms are emitted output by output, each after what it reads, so that
a column goes through its whole chain while it is in the cache, and few registers are alive at a time; registers are
reused as soon as their value has been read for the last time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from fastinfer._core import CompiledProgram, Instruction, Signature, Tensor
from fastinfer.errors import ConfigurationError
from fastinfer.preprocessing.spec import FUNCTIONS, KINDS, Column, Spec, Step

LOADS: Final = {"FP64": "load_float64", "INT64": "load_int64", "BOOL": "load_bool", "BYTES": "load_text"}
FLAGS: Final = {"nan": 1, "none": 2, "any": 3}
NO_CODE: Final = -1.0  # a category that leaves all columns of a one-hot encoding at zero


@dataclass(slots=True)
class Atom:
    """One operation on one value.

    Attributes:
        reads: values it reads (none: a load).
        writes: the value it writes, or None (a check).
        text: whether it writes text.
        column: raw column that an error names.
    """

    instruction: Instruction
    reads: tuple[str, ...]
    writes: str | None
    column: int
    text: bool = False


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
    inexact: set[str] = field(default_factory=set)  # values whose bits depend on the machine's libm

    def column_of(self, value: str) -> int:
        return self.atoms[self.hot[value].code if value in self.hot else value].column

    def kind_of(self, value: str) -> str:
        if value in self.hot:
            return "number"
        atom = self.atoms[value]
        return "text" if atom.text else "integer" if atom.instruction.kernel == "load_int64" else "number"

    def add(self, kernel: str, source: str, target: str | None, *, text: bool = False, **fields: Any) -> None:
        column = self.column_of(source)
        atom = Atom(Instruction(kernel, 0, 0, column, **fields), (source,), target, column, text)
        if target is None:
            self.checks.setdefault(source, []).append(atom)
            return
        self.atoms[target] = atom
        rough = kernel == "apply_function" and not FUNCTIONS[fields["table"].__name__]
        if rough or source in self.inexact:
            self.inexact.add(target)


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
    source = step.sources[i]
    kernel = "check_finite" if step.parameters["allow"] == "finite" else "check_not_infinite"
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
    function = getattr(np, step.parameters["function"])
    single = step.parameters.get("dtype") == "float32"
    program.add("apply_function", step.sources[i], step.targets[i], single=single, table=function)


def lower_bucketize(program: Program, step: Step, i: int) -> None:
    program.add("bucketize", step.sources[i], step.targets[i], table=list(step.parameters["edges"]))


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
    code = "\0code of " + (step.targets[0] if step.targets else repr(step))
    positions = [NO_CODE if position is None else float(position) for position in step.parameters["positions"]]
    lower_encoding(program, step, code, positions)
    for position, target in enumerate(step.targets):
        program.hot[target] = Hot(code, position)


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
    "ordinal": lower_ordinal,
    "onehot": lower_onehot,
}


def build(spec: Spec) -> Program:
    """Every step as atoms."""
    program = Program(spec)
    for i, column in enumerate(spec.columns):
        kernel = "load_float32" if column.dtype == "float32" else LOADS[column.datatype]
        flags = FLAGS[column.missing] if column.datatype == "BYTES" else 0
        instruction = Instruction(kernel, i, 0, i, flags=flags)
        program.atoms[column.name] = Atom(instruction, (), column.name, i, KINDS[column.datatype] == "text")
    for step in spec.steps:
        for i, source in enumerate(step.sources):
            if source in program.hot:
                materialise(program, source)
            LOWERINGS[step.op](program, step, i)
    return program


def materialise(program: Program, value: str) -> None:
    """Make a one-hot column a value of its own, once."""
    if value not in program.atoms:
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
            self.done.add(value)
            self.order.append(atom)
            self.order.extend(self.program.checks.get(value, ()))

    def store(self, kernel: str, value: str, target: int, table: list[int] | None = None) -> None:
        self.value(value)
        column = self.program.column_of(value)
        self.order.append(Atom(Instruction(kernel, 0, target, column, table=table), (value,), None, column))


def emit(program: Program) -> list[Atom]:
    """All atoms in running order."""
    output = program.spec.output
    if output.allow != "any":
        for value in dict.fromkeys(value for _, value in output.features if value not in program.hot):
            check_output(program, value)
    emission = Emission(program)
    groups: dict[str, dict[int, int]] = {}
    for target, (_, value) in enumerate(output.features):
        hot = program.hot.get(value)
        if hot is not None and hot.position not in groups.get(hot.code, {}):
            groups.setdefault(hot.code, {})[hot.position] = target
            continue
        if hot is not None:
            materialise(program, value)
        emission.store(f"store_{output.dtype}", value, target)
    for code, columns in groups.items():
        table = [columns.get(position, -1) for position in range(max(columns) + 1)]
        emission.store(f"scatter_{output.dtype}", code, 0, table)
    for value, atom in list(program.atoms.items()):  # what may refuse a row must run, whether or not it is read
        if value in program.checks or atom.instruction.kernel.startswith("lookup_"):
            emission.value(value)
    return emission.order


def check_output(program: Program, value: str) -> None:
    """What the estimator refuses; after the cast, since float32 may overflow."""
    kernel = {"finite": "check_finite", "nan": "check_not_infinite"}[program.spec.output.allow]
    if program.spec.output.dtype == "float32":
        kernel += "_float32"
    program.add(kernel, value, None)


def allocate(order: list[Atom]) -> tuple[list[Instruction], int, int]:
    """Registers for values: (instructions, number registers, text registers)."""
    last = {value: i for i, atom in enumerate(order) for value in atom.reads}
    free: dict[bool, list[int]] = {False: [], True: []}
    used = {False: 0, True: 0}
    register: dict[str, tuple[bool, int]] = {}
    instructions = []
    for i, atom in enumerate(order):
        changes: dict[str, Any] = {}
        if atom.reads:
            changes["source"] = register[atom.reads[0]][1]
        for value in atom.reads:
            if last[value] == i:  # the target may take its place: every kernel reads a row before it writes it
                text, index = register.pop(value)
                free[text].append(index)
        if atom.writes is not None:
            if free[atom.text]:
                index = free[atom.text].pop()
            else:
                index, used[atom.text] = used[atom.text], used[atom.text] + 1
            changes["target"] = index
            if atom.writes in last:
                register[atom.writes] = (atom.text, index)
            else:
                free[atom.text].append(index)
        instructions.append(atom.instruction._replace(**changes))
    return instructions, used[False], used[True]


def compile_spec(spec: Spec) -> tuple[CompiledProgram, tuple[bool, ...]]:
    """The compiled program, and for each output whether its bits are the same on every machine.

    Raises:
        ConfigurationError: the compiled core refuses the program.
    """
    program = build(spec)
    order = emit(program)
    exact = tuple([(program.hot[value].code if value in program.hot else value) not in program.inexact
                   for _, value in spec.output.features])
    instructions, numbers, texts = allocate(order)
    width = len(spec.output.features)
    return CompiledProgram(signature_of(spec.columns), instructions, numbers, texts, width, spec.output.dtype), exact


def with_nullable(spec: Spec, nullable: Mapping[str, bool]) -> Spec:
    """The spec with each column's ``nullable`` as found."""
    unknown = set(nullable) - {column.name for column in spec.columns}
    if unknown:
        raise ConfigurationError(f"no column is called {min(unknown)!r}")
    return replace(spec, columns=tuple([
        replace(column, nullable=nullable.get(column.name, column.nullable)) for column in spec.columns
    ]))
