"""Steps that make, change or read vectors as operations of the compiled core; see vectors.pyx and text.pyx."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastinfer.preprocessing.patterns import parse_pattern
from fastinfer.preprocessing.spec import Step

if TYPE_CHECKING:
    from fastinfer.preprocessing.lowering import Program

SUBLINEAR: Final = 1
NORMS: Final = {"l1": 1, "l2": 2, "max": 3}
WRITING: Final = ("count_text", "hash_text", "hash_words", "hash_fields", "join_vectors", "weigh_vector",
                  "normalize_vector", "scale_vector", "clip_vector", "pick_vector")
GATHERING: Final = ("join_vectors", "hash_words", "hash_fields")  # kernels that read several registers


def is_single(step: Step) -> bool:
    return bool(step.parameters.get("dtype") == "float32")


def analysis(step: Step) -> dict[str, Any]:
    """What the compiled core needs to know to cut text."""
    given = step.parameters
    pattern = given.get("token_pattern")
    return {
        **{key: given[key] for key in ("analyzer", "ngrams", "lowercase")},
        "strip_accents": given.get("strip_accents"),
        "pattern": None if pattern is None else parse_pattern(pattern),
        "stop_words": given.get("stop_words", ()),
        "binary": given.get("binary", False),
        "vocabulary": given.get("vocabulary"),
        "features": given.get("features"),
        "alternate_sign": given.get("alternate_sign"),
    }


def lower_text(program: "Program", step: Step) -> None:
    program.add(f"{step.op}_text", step.sources, step.targets, single=is_single(step), table=analysis(step))


def lower_hasher(program: "Program", step: Step) -> None:
    names = step.parameters.get("names", (None,) * len(step.sources))
    fields = [(program.kind_of(source) == "text", program.column_of(source), name)
              for source, name in zip(step.sources, names, strict=True)]
    table = {"fields": fields, **{key: step.parameters[key] for key in ("features", "alternate_sign")}}
    program.add(step.op, step.sources, step.targets, single=is_single(step), table=table)


def lower_tfidf(program: "Program", step: Step) -> None:
    sublinear = step.parameters.get("sublinear", False)
    idf = step.parameters.get("idf")
    program.add("weigh_vector", step.sources, step.targets, single=is_single(step), flags=SUBLINEAR * sublinear,
                table=None if idf is None else np.array(idf), precision="single" if sublinear else "exact")


def lower_norm(program: "Program", step: Step) -> None:
    program.add("normalize_vector", step.sources, step.targets, single=is_single(step),
                flags=NORMS[step.parameters["norm"]])


def lower_scale(program: "Program", step: Step) -> None:
    by = step.parameters["by"]
    table = np.array(by) if isinstance(by, tuple) else None
    program.add("scale_vector", step.sources, step.targets, single=is_single(step), a=0.0 if table is not None else by,
                table=table)


def lower_limit(program: "Program", step: Step) -> None:
    program.add("clip_vector", step.sources, step.targets, a=step.parameters["low"], b=step.parameters["high"])


def lower_pick(program: "Program", step: Step) -> None:
    program.add("pick_vector", step.sources, step.targets, table=list(step.parameters["positions"]))


def lower_join(program: "Program", step: Step) -> None:
    program.add("join_vectors", step.sources, step.targets,
                table=[program.kind_of(source) == "vector" for source in step.sources])


def lower_spread(program: "Program", step: Step) -> None:
    """The columns become values of their own only where something but the output reads them."""
    for position, target in enumerate(step.targets):
        program.slices[target] = (step.sources[0], position)


def lower_dot(program: "Program", step: Step) -> None:
    for target, weights, bias in zip(step.targets, step.parameters["weights"], step.parameters["bias"], strict=True):
        program.add("dot_vector", step.sources, target, a=bias, table=weights)


LOWERINGS: Final[Mapping[str, Callable[["Program", Step], None]]] = {
    "count": lower_text,
    "hash": lower_text,
    "hash_words": lower_hasher,
    "hash_fields": lower_hasher,
    "tfidf": lower_tfidf,
    "norm": lower_norm,
    "scale": lower_scale,
    "limit": lower_limit,
    "pick": lower_pick,
    "join": lower_join,
    "spread": lower_spread,
    "dot": lower_dot,
}
