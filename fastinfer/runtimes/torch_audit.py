"""What a `.pt2` file could make PyTorch run besides tensor operations, found before PyTorch reads it.

`torch.export.load` unpickles parts of a file, and evaluates expressions and looks functions up that stand in it as
text. A file passes when all of that is of the kinds that `torch.export.save` writes for a plain model; any other is
loaded only where the operator trusts it.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastinfer.errors import ModelLoadError

OPERATION = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|wrap_with_set_grad_enabled"
    r"|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|pow|getitem|index|not_)"
    r"|math\.(ceil|floor|trunc|sqrt|pow|log|log2|exp)|torch\.sym_\w+|torch\._sym_\w+"
    r"|torch\._functorch\.predispatch\.(lazy_load_decompositions|_(add|remove)_batch_dim|_vmap_(in|de)crement_nesting)")
REFUSED = re.compile(r"torch\.ops\.aten\.(from_file|_from_file|save|_save)\b.*")
PARTS = re.compile(
    r"models/model\.json|data/(weights|constants)/[\w.]+|data/sample_inputs/model\.pt|archive_(format|version)"
    r"|\.data/\w+|byteorder|version|\.format_version|\.storage_alignment|extra/[\w./-]+")
DEVICE = re.compile(rb'"type": ?"(\w+)", ?"index": ?(?:null|\d+)')
SYMBOL = re.compile(r"[a-z]+[0-9]+")
FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "CleanDiv",
    "FloorDiv", "CeilDiv", "Abs", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Equality", "Unequality",
    "StrictGreaterThan", "StrictLessThan", "GreaterThan", "LessThan", "floor", "ceiling", "ToFloat", "TruncToInt",
    "RoundToInt", "FloorToInt", "CeilToInt", "IntTrueDiv", "FloatTrueDiv", "max", "min", "abs", "int", "float",
})
LIBRARY = {"torch": re.compile(r"_?sym_\w+"), "math": re.compile(r"ceil|floor|trunc|sqrt|pow|log|log2|exp|inf|nan")}
METHODS = frozenset({"size", "stride", "dim", "storage_offset"})
NAMES = frozenset({"L", "int_oo", "oo"})
PLAIN = (ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Tuple, ast.List, ast.operator, ast.boolop,
         ast.unaryop, ast.cmpop, ast.Load, ast.Constant)


def check(path: Path, trusted: bool) -> None:
    """Look a file over.

    Raises:
        ModelLoadError: it is damaged, of an older form, or holds what might run code and is not trusted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            roots = {name.partition("/")[0] for name in archive.namelist()}
            if broken is not None:
                raise ModelLoadError(f"{path} is damaged: {broken} is not as it was written.")
            if "models/model.json" not in names or len(names) != len(archive.namelist()) or len(roots) != 1:
                raise ModelLoadError(f"{path} is no program that torch.export.save wrote, or that of an older torch: "
                                     "export the model again.")
            fault = None if trusted else next(faults(archive, names), None)
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, ValueError, TypeError, AttributeError,
            RecursionError) as error:
        raise ModelLoadError(f"{path} is no program of torch.export, or a damaged one: "
                             f"{type(error).__name__}.") from None
    if fault is not None:
        raise ModelLoadError(f"{path} holds {fault}, which may run code when it is loaded; if you trust it, add "
                             "--trust-pickle.")


def faults(archive: zipfile.ZipFile, names: dict[str, str]) -> Iterator[str]:
    """What might run code, in words."""
    for name in names:
        if not PARTS.fullmatch(name):
            yield f"the part {name!r:.100}"
    for what, prefix in (("weights", "weight_"), ("constants", "tensor_")):
        place = names.get(f"data/{what}/model_{what}_config.json")
        entries = {} if place is None else json.loads(archive.read(place))["config"]
        for entry in entries.values():
            if entry.get("use_pickle") is not False or not str(entry["path_name"]).startswith(prefix):
                yield f"pickled {what}"
    for part, name in names.items():  # torch 2.8 has weights and constants in pickles, too
        if part.endswith(".pt") and not is_plain(archive.read(name)):
            yield f"pickled {part.split('/')[-2].replace('_', ' ')}"
    program = json.loads(archive.read(names["models/model.json"]))
    for guard in program.get("guards_code") or []:
        if not is_harmless(guard):
            yield f"the guard {guard!r:.100}"
    yield from faults_of(program)


def devices(path: Path) -> set[str]:
    """Kinds of devices that a file which `check` has passed names."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/models/model.json"))
        return {kind.decode() for kind in DEVICE.findall(archive.read(name))}


def nests(graph: Any) -> bool:
    """Whether it maps over a dimension by what its thread stays in where a step between fails."""
    return any("_functorch" in str(getattr(node.target, "__module__", "")) for node in graph.nodes)


def is_plain(pickled: bytes) -> bool:
    """Whether PyTorch's own restricted unpickler takes it: tensors, numbers, text and lists of such."""
    import torch

    if not pickled:
        return True
    try:
        torch.load(io.BytesIO(pickled), weights_only=True)
    except Exception:
        return False
    return True


def faults_of(value: Any) -> Iterator[str]:
    """Walk a program's JSON."""
    if isinstance(value, list):
        for each in value:
            yield from faults_of(each)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in ("target", "as_operator") and isinstance(inner, str):
            if not OPERATION.fullmatch(inner) or REFUSED.fullmatch(inner):
                yield f"the operation {inner!r:.100}"
        elif key == "expr_str":
            if not is_harmless(inner):
                yield f"the expression {inner!r:.100}"
        elif (key == "as_custom_obj" and inner) or (key == "treespec_namedtuple_fields" and inner):
            yield "objects of classes"
        elif key != "metadata":  # names of modules and places in their source, which are looked up and never called
            yield from faults_of(inner)


def is_harmless(text: Any) -> bool:
    """Whether Python text is arithmetic and comparisons over symbols and sizes alone."""
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    allowed: set[int] = set()  # texts in places where they are names of symbols or inputs
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not is_harmless_call(node):
                return False
            if isinstance(node.func, ast.Name) and node.func.id == "Symbol":
                allowed.add(id(node.args[0]))
        elif isinstance(node, ast.Subscript):
            allowed.add(id(node.slice))
        elif isinstance(node, ast.Attribute) and in_library(node):
            allowed.add(id(node.value))
        elif isinstance(node, ast.Name):
            if id(node) not in allowed and node.id not in FUNCTIONS | NAMES and not SYMBOL.fullmatch(node.id):
                return False
        elif isinstance(node, ast.Attribute):
            if node.attr not in METHODS:
                return False
        elif isinstance(node, ast.keyword):
            if not isinstance(node.value, ast.Constant) or not isinstance(node.value.value, bool):
                return False
        elif not isinstance(node, PLAIN):
            return False
    return all(not isinstance(node.value, str | bytes) or id(node) in allowed
               for node in ast.walk(tree) if isinstance(node, ast.Constant))


def is_of_numbers(node: ast.Call) -> bool:
    return not any(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in node.args)


def in_library(node: ast.Attribute) -> bool:
    """Whether it is one of the functions of numbers that torch writes."""
    known = LIBRARY.get(node.value.id) if isinstance(node.value, ast.Name) else None
    return known is not None and known.fullmatch(node.attr) is not None


def is_harmless_call(node: ast.Call) -> bool:
    if isinstance(node.func, ast.Attribute) and in_library(node.func):
        return is_of_numbers(node)
    if isinstance(node.func, ast.Attribute):
        return not node.args and not node.keywords
    if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
        return False
    if node.func.id != "Symbol":
        return is_of_numbers(node)
    first = node.args[0] if len(node.args) == 1 else None
    return isinstance(first, ast.Constant) and isinstance(first.value, str) and bool(SYMBOL.fullmatch(first.value))
