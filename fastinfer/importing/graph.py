"""An ONNX graph in the making: float64 throughout, since scikit-learn computes in float64.

The graph has one input, the matrix [rows, width] that the feature program makes. Estimators are chains of plain
operators on it and compose: a calibrated stack of forests is one graph. Operators whose result nobody asks for are
dropped at the end, so a writer states everything an estimator can answer and the caller takes what it needs.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from fastinfer.runtimes.onnx import IN_ORDER

OPSET = 18
ML_OPSET = 5  # TreeEnsemble with float64 thresholds, leaves and sums; onnxruntime has it from 1.21 on
IR_VERSION = 10
INPUT = "features"
MOST_FEATURES = 16_384  # columns of a matrix that is served

Floats = NDArray[np.float64]


class Made(NamedTuple):
    """What the feature program makes of a transformer's work: columns, and whether scikit-learn's are sparse."""

    width: int
    sparse: bool


ProgramShape = Callable[[Any, str], Made]  # of a transformer at a path; raises where the program cannot do its work


class Front(NamedTuple):
    """Preprocessing that the feature program does for a pipeline inside the estimator.

    Attributes:
        transformer: fitted, from raw columns to the columns ``start`` to ``start + width`` of the matrix.
        path: its place.
    """

    transformer: Any
    path: str
    start: int
    width: int


class Wide:
    """A matrix that is too wide to be served: only its linear scores are, as the program's last operation.

    Attributes:
        transformer: fitted, from raw columns to the matrix.
        path: its place.
        width: columns of it.
        parts: weights [scores, width] and bias [scores] of every product that was asked for.
    """

    def __init__(self, transformer: Any, path: str, width: int) -> None:
        self.transformer, self.path, self.width = transformer, path, width
        self.parts: list[tuple[Floats, Floats]] = []

    @property
    def scores(self) -> int:
        return sum(len(bias) for _, bias in self.parts)


class Graph:
    """Collects operators; tensors are known by name.

    Attributes:
        features: name of what the fitted object itself takes, as float64: the matrix, where there are no fronts.
        fronts: what the program does before the matrix, where raw columns are not the matrix.
        wides: by name, matrices too wide to be served; their scores are the matrix's last columns.
        sparse: matrices that are sparse in scikit-learn, where zeros are not stored.
        program_shape: what the program would make of a transformer's work, or None where the graph does it all.
        thresholds: (feature, threshold) pairs at which some tree turns, for the proof.
        foreign: whether a part was converted by a library whose operators we have not measured.
        in_order: whether float32 sums must be made in their order, which several threads do not keep.
    """

    def __init__(self, width: int, program_shape: ProgramShape | None = None) -> None:
        self.width = width
        self.features = "features64"
        self.fronts: list[Front] = []
        self.wides: dict[str, Wide] = {}
        self._scores: list[tuple[Wide, str, int, int]] = []
        self.sparse: set[str] = set()
        self.program_shape = program_shape
        self.thresholds: list[tuple[NDArray[np.int64], Floats]] = []
        self.foreign = False
        self.in_order = False
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._singles: dict[str, str] = {}
        self._rounded: dict[str, str] = {}
        self._origins: dict[str, NDArray[np.int64]] = {self.features: np.arange(width)}
        self._count = 0

    # ---- building --------------------------------------------------------------------------------------------------
    def constant(self, value: ArrayLike, dtype: Any = np.float64) -> str:
        """An initializer; float64 unless told otherwise."""
        array = np.asarray(value, dtype)
        if array.dtype.kind in "UO":
            tensor = onnx.TensorProto(name=self._name(), data_type=TensorProto.STRING, dims=array.shape)
            tensor.string_data.extend(str(value).encode() for value in array.ravel())
        else:
            tensor = numpy_helper.from_array(np.asarray(array, order="C"), self._name())
        self._initializers[tensor.name] = tensor
        return str(tensor.name)

    def op(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Append an operator; returns its output's name, or a tuple of names where ``outputs`` is over one."""
        names = [self._name() for _ in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, domain=domain)
        node.attribute.extend(_attribute(name, value) for name, value in attributes.items())
        self._nodes.append(node)
        return names[0] if outputs == 1 else tuple(names)

    def arithmetic(self, kind: str, x: str, y: ArrayLike) -> str:
        """``x <kind> y`` with ``y`` a constant."""
        return str(self.op(kind, x, self.constant(y)))

    def linear(self, x: str, weights: ArrayLike, bias: ArrayLike) -> str:
        """x @ weights + bias, weights [width, targets]."""
        if x in self.wides:
            return self._scored(self.wides[x], np.asarray(weights, np.float64), np.asarray(bias, np.float64).ravel())
        return self.arithmetic("Add", self.op("MatMul", x, self.constant(weights)), bias)

    def columns(self, x: str, indices: ArrayLike) -> str:
        """The columns ``indices`` of ``x``."""
        taken = np.asarray(indices, np.int64)
        name = str(self.op("Gather", x, self.constant(taken, np.int64), axis=1))
        if x in self._origins:
            self._origins[name] = self._origins[x][taken]
        if x in self.sparse:
            self.sparse.add(name)
        return name

    def concat(self, parts: Iterable[str]) -> str:
        """Columns side by side."""
        names = list(parts)
        return names[0] if len(names) == 1 else str(self.op("Concat", *names, axis=1))

    def beside(self, x: str, derived: str) -> str:
        """``x`` with columns of the writer's own behind it; trees on it still turn at the columns of ``x``."""
        name = self.concat([x, derived])
        if x in self._origins:
            self._origins[name] = self._origins[x]
        return name

    def like(self, x: str, changed: str) -> str:
        """Note that ``changed`` holds the columns of ``x``, some values replaced or rounded."""
        if x in self._origins:
            self._origins[changed] = self._origins[x]
        return changed

    def cast(self, x: str, to: int) -> str:
        return str(self.op("Cast", x, to=to))

    def floats(self, x: str) -> str:
        return self.cast(x, TensorProto.DOUBLE)

    def single(self, x: str) -> str:
        """``x`` as float32."""
        if x not in self._singles:
            self._singles[x] = self.like(x, self.cast(x, TensorProto.FLOAT))
        return self._singles[x]

    def round32(self, x: str) -> str:
        """``x`` rounded to float32, as scikit-learn's trees do to their input before they compare it."""
        if x not in self._rounded:
            self._rounded[x] = self.like(x, self.floats(self.single(x)))
        return self._rounded[x]

    def sum(self, x: str) -> str:
        """Sum of the columns, kept as a column."""
        return str(self.op("ReduceSum", x, self.constant([1], np.int64), keepdims=1))

    def argmax(self, x: str) -> str:
        """Index of the first largest column, [rows]."""
        return str(self.op("ArgMax", x, axis=1, keepdims=0, select_last_index=0))

    def index_where(self, condition: str) -> str:
        """1 where the one column of ``condition`` holds, else 0, as [rows] of int64."""
        return str(self.op("Squeeze", self.cast(condition, TensorProto.INT64), self.constant([1], np.int64)))

    def one_hot(self, index: str, count: int) -> str:
        """0/1 columns of an index [rows], float64."""
        column = self.op("Unsqueeze", index, self.constant([1], np.int64))
        return self.floats(self.op("Equal", column, self.constant(np.arange(count)[None, :], np.int64)))

    def complement(self, positive: str) -> str:
        """Two columns, 1 - p and p, of the positive class's probability."""
        return self.concat([self.op("Sub", self.constant([[1.0]]), positive), positive])

    def turns_at(self, x: str, features: NDArray[np.int64], thresholds: Floats) -> None:
        """Note where trees on ``x`` turn, when its columns are columns of the graph's input."""
        if x in self._origins:
            origin = self._origins[x]
            known = features < len(origin)  # the rest are columns that the writer derived
            self.thresholds.append((origin[features[known]], thresholds[known]))

    def width_of(self, x: str) -> int | None:
        """Columns of ``x`` where it is all of the graph's input, as the program makes it; else None."""
        if self.wides or len(self.fronts) > 1 or x != ("front0" if self.fronts else self.features):
            return None
        return self.fronts[0].width if self.fronts else self.width

    def front(self, transformer: Any, made: Made, path: str) -> str:
        """The matrix of a transformer of raw columns, which the program will run."""
        for i, known in enumerate(self.fronts):
            if known.transformer is transformer:
                return f"front{i}"
        start = sum(front.width for front in self.fronts)
        name = f"front{len(self.fronts)}"
        self.fronts.append(Front(transformer, path, start, made.width))
        self._origins[name] = np.arange(start, start + made.width)
        if made.sparse:
            self.sparse.add(name)
        return name

    def wide(self, transformer: Any, made: Made, path: str) -> str:
        """The matrix of a transformer that is too wide to be served; `linear` alone may read it."""
        for name, known in self.wides.items():
            if known.transformer is transformer:
                return name
        name = f"wide{len(self.wides)}"
        self.wides[name] = Wide(transformer, path, made.width)
        return name

    def transformers(self) -> list[Any]:
        """What the program does so far."""
        return [front.transformer for front in self.fronts] + [wide.transformer for wide in self.wides.values()]

    def _scored(self, wide: Wide, weights: Floats, bias: Floats) -> str:
        name = self._name()
        self._scores.append((wide, name, wide.scores, len(bias)))
        wide.parts.append((np.ascontiguousarray(weights.T), bias))
        return name

    def repeat(self, state: str, most: int, step: Callable[[str], tuple[str, str]]) -> str:
        """``state`` after ``step`` was taken again and again: while it says so, ``most`` times at most.

        Args:
            step: writes one turn; from the state's name to those of whether to go on (a bool) and of the next state.
        """
        outside, self._nodes = self._nodes, []
        turn, before, inner = self._name(), self._name(), self._name()
        going, after = step(inner)
        passed = self._name()
        self._nodes.append(helper.make_node("Identity", [after], [passed]))
        body = helper.make_graph(
            self._nodes,
            f"{passed}_turn",
            [helper.make_tensor_value_info(turn, TensorProto.INT64, []),
             helper.make_tensor_value_info(before, TensorProto.BOOL, []),
             helper.make_tensor_value_info(inner, TensorProto.DOUBLE, None)],
            [helper.make_tensor_value_info(going, TensorProto.BOOL, []),
             helper.make_tensor_value_info(passed, TensorProto.DOUBLE, None)],
        )  # fmt: skip
        self._nodes = outside
        return str(self.op("Loop", self.constant(most, np.int64), self.constant(True, np.bool_), state, body=body))

    def misread(self, outputs: list[str]) -> Wide | None:
        """A wide matrix that an answer needs for something else than linear scores."""
        read = {name for node in _live(self._nodes, set(outputs)) for name in _reads(node)}
        return next((wide for name, wide in self.wides.items() if name in read), None)

    def embed(self, model: onnx.ModelProto, x: str) -> list[str]:
        """Another graph of one input, with ``x`` for that input; returns its outputs."""
        prefix = f"{self._name()}/"
        inner = compose.add_prefix(model, prefix).graph
        self._nodes.append(helper.make_node("Identity", [x], [inner.input[0].name]))
        self._nodes.extend(inner.node)
        self._initializers.update({tensor.name: tensor for tensor in inner.initializer})
        return [str(output.name) for output in inner.output]

    # ---- finishing -------------------------------------------------------------------------------------------------
    def model(self, outputs: list[tuple[str, str, int, list[int]]], producer: str) -> tuple[onnx.ModelProto, str]:
        """The finished model and its input's dtype.

        Args:
            outputs: (name, tensor, element type, shape) each.
            producer: text for ``doc_string``.

        The input is declared FP32 where everything rounds it to float32 first, else FP64.
        """
        named = [helper.make_node("Identity", [tensor], [name]) for name, tensor, _, _ in outputs]
        nodes = _live([*self._nodes, *named], {name for name, *_ in outputs})
        whole = "front0" if len(self.fronts) == 1 and not self.wides else self.features
        if self.fronts or self.wides:
            self.width = sum(front.width for front in self.fronts) + sum(wide.scores for wide in self.wides.values())
        if len(self.fronts) > 1 or self.wides:
            nodes = self._slices() + nodes
        readers = [node for node in nodes if whole in node.input]
        rounded = self._singles.get(whole, "")
        single = bool(readers) and all(node.output[0] == rounded for node in readers)
        if single:
            nodes = [node for node in nodes if node not in readers]
            nodes.insert(0, helper.make_node("Identity", [INPUT], [rounded]))
        else:
            nodes.insert(0, helper.make_node("Identity", [INPUT], [whole]))
        used = {name for node in nodes for name in _reads(node)}
        element = TensorProto.FLOAT if single else TensorProto.DOUBLE
        graph = helper.make_graph(
            nodes,
            "fastinfer",
            [helper.make_tensor_value_info(INPUT, element, ["rows", self.width])],
            [helper.make_tensor_value_info(name, kind, ["rows", *shape]) for name, _, kind, shape in outputs],
            [tensor for name, tensor in self._initializers.items() if name in used],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fastinfer")
        model.doc_string = producer
        if self.in_order:
            model.domain = IN_ORDER
        return model, "float32" if single else "float64"

    def reads_raw(self, outputs: list[str]) -> bool:
        """Whether an answer depends on the raw columns themselves, past every front."""
        return any(self.features in node.input for node in _live(self._nodes, set(outputs)))

    def _slices(self) -> list[onnx.NodeProto]:
        nodes = []
        ranges = [(f"front{i}", front.start, front.width) for i, front in enumerate(self.fronts)]
        start = sum(front.width for front in self.fronts)
        for wide in self.wides.values():
            ranges += [(name, start + first, count) for of, name, first, count in self._scores if of is wide]
            start += wide.scores
        for name, first, count in ranges:
            indices = self.constant(np.arange(first, first + count), np.int64)
            nodes.append(helper.make_node("Gather", [self.features, indices], [name], axis=1))
        return nodes

    def _name(self) -> str:
        self._count += 1
        return f"t{self._count}"


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    """helper.make_attribute looks at each element; a forest has millions."""
    if not isinstance(value, np.ndarray):
        return helper.make_attribute(name, value)
    if value.dtype == np.int64:
        attribute = onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS)
        attribute.ints.extend(value.tolist())
        return attribute
    return helper.make_attribute(name, numpy_helper.from_array(value))


def _live(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The operators that the wanted tensors depend on, in order."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted = wanted | _reads(node)
    return kept[::-1]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that an operator takes; those of a loop's turn too, which may come from outside it."""
    inner = {name for attribute in node.attribute for part in attribute.g.node for name in _reads(part)}
    return inner.union(node.input)

