"""A decision policy meets its model: names become places, and what does not fit is refused by its key."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from fastinfer._core import Policy, Signature, Task, Tensor
from fastinfer.options import nearest
from fastinfer.settings import DecisionConfig, DecisionError

JUDGED = ("FP32", "FP64")


def bound(config: DecisionConfig, inner: Signature, task: Task | None) -> Policy:
    """The policy, compiled for a model.

    Args:
        inner: the runtime's signature.
        task: what its outputs mean, or None.

    Raises:
        DecisionError: it names what the model does not have, or leaves out what the model needs.
    """
    tensor = judged(config, inner, task)
    probable = task is not None and tensor.name == task.probabilities
    classes = class_names(tensor, task if probable else None)
    column = judged_column(config, classes)
    every = config.decides and not config.thresholds
    if probable:
        check_probabilities(config)
    check_classes(config, classes, every)
    kept = [] if config.only else [each.name for each in inner.outputs]
    check_names(config, kept)
    score = config.score
    infinity = float("inf")
    return Policy(
        inner,
        kept=kept,
        source=tensor.name,
        column=column,
        decision=config.name if config.decides else "",
        thresholds=config.thresholds or (),
        classes=[config.classes.get(each, float("nan")) for each in classes or ()] if every else (),
        labels=labels(config, classes or (), column, every) if config.decides else (),
        score=None if score is None else (
            score.name, score.scale == "log_odds", score.factor, score.offset,
            -1 if score.decimals is None else score.decimals,
            -infinity if score.low is None else score.low, infinity if score.high is None else score.high,
        ),
    )


def fingerprint(config: DecisionConfig) -> str:
    """SHA-256 of all that decides: the same for the same policy, wherever it is written."""
    values = {key: value for key, value in _plain(config).items() if key != "source"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return dict(value) if hasattr(value, "keys") else value


def judged(config: DecisionConfig, inner: Signature, task: Task | None) -> Tensor:
    """The output that is judged."""
    names = [each.name for each in inner.outputs]
    name = config.output
    if name is None and task is not None:
        name = task.value if task.kind == "regressor" else task.probabilities
        if name is None:
            raise DecisionError((), "judges probabilities, and this classifier has none")
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise DecisionError(("output",), f"is not given: which of {_listed(names)} is judged?")
    if name not in names:
        raise DecisionError(("output",), f"is {name!r}, and the model's outputs are {_listed(names)}"
                            f"{_hint(name, names)}")
    tensor = inner.outputs[names.index(name)]
    if tensor.datatype not in JUDGED or len(tensor.shape) not in (1, 2):
        raise DecisionError(("output",), f"is {name!r}, {tensor.datatype} of shape {list(tensor.shape)}; judged is "
                            "FP32 or FP64 of shape [rows] or [rows, columns]")
    return tensor


def class_names(tensor: Tensor, task: Task | None) -> tuple[str, ...] | None:
    """What the columns are called: the classes, else their numbers; None where there is no telling how many."""
    if task is not None and task.classes:
        return tuple(task.classes)
    if len(tensor.shape) == 1:
        return ("0",)
    return tuple(map(str, range(tensor.shape[1]))) if tensor.shape[1] > 0 else None


def judged_column(config: DecisionConfig, classes: tuple[str, ...] | None) -> int:
    """The column whose number thresholds and score judge; -1 where nothing does."""
    positive = config.positive
    if not config.thresholds and config.score is None:
        if positive is not None:
            raise DecisionError(("positive",), "is for thresholds and the score, and there are none")
        return -1
    if positive is None:
        if classes is not None and len(classes) == 1:
            return 0
        raise DecisionError(("positive",), "is not given: the probability of which class is judged?"
                            + (f" They are {_listed(classes)}" if classes else ""))
    if classes is None and positive.isascii() and positive.isdigit() and len(positive) < 6:
        return int(positive)
    if positive not in (classes or ()):
        raise DecisionError(("positive",), f"is {positive!r}, and the classes are {_listed(classes or ())}"
                            f"{_hint(positive, classes or ())}")
    return (classes or ()).index(positive)


def check_probabilities(config: DecisionConfig) -> None:
    for threshold in config.thresholds or ():
        if not 0 <= threshold <= 1:
            raise DecisionError(("thresholds",), f"hold {threshold:g}, and a probability lies between 0 and 1")
    for name, threshold in config.classes.items():
        if not 0 <= threshold <= 1:
            raise DecisionError(("classes", name), f"is {threshold:g}, and a probability lies between 0 and 1")


def check_classes(config: DecisionConfig, classes: tuple[str, ...] | None, every: bool) -> None:
    """Names of classes are classes; where all are compared, there are at least two."""
    known = classes or ()
    for table, given in (("classes", config.classes), ("names", config.names)):
        for name in given:
            if name not in known:
                raise DecisionError((table, name), f"names no class; they are {_listed(known)}{_hint(name, known)}")
    if not every:
        return
    if len(known) < 2:
        raise DecisionError(("classes",) if config.classes else ("names",), "compares classes, and the judged output "
                            "has one column: it takes thresholds")
    whole = set(known) == set(config.classes)
    if whole and config.otherwise is None:
        raise DecisionError(("otherwise",), "is not given: every class has a threshold, so say what is decided where "
                            "none is reached")
    if not whole and config.otherwise is not None:
        free = next(each for each in known if each not in config.classes)
        raise DecisionError(("otherwise",), f"is never decided: class {free!r} has no threshold, and is taken then")


def check_names(config: DecisionConfig, kept: Sequence[str]) -> None:
    if config.decides and config.name in kept:
        raise DecisionError(("name",), f"is {config.name!r}, and the model has an output of that name; give another")
    if config.score is not None and config.score.name in kept:
        raise DecisionError(("score", "name"), f"is {config.score.name!r}, and the model has an output of that name; "
                            "give another")


def labels(config: DecisionConfig, classes: tuple[str, ...], column: int, every: bool) -> list[str]:
    """The labels in the places in which the compiled policy looks for them."""
    named = [config.names.get(each, each) for each in classes]
    missing = config.missing or ""
    if every:
        return [*named, config.otherwise or "", missing]
    if config.labels is not None:
        return [*config.labels, missing]
    if len(config.thresholds or ()) == 1 and len(classes) == 2:
        return [named[1 - column], named[column], missing]
    raise DecisionError(("labels",), f"are not given: {len(config.thresholds or ()) + 1} bands need names")


def _listed(names: Iterable[str]) -> str:
    shown = [repr(each) for each in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "") or "not known"


def _hint(name: str, known: Iterable[str]) -> str:
    hint = nearest(name, known)
    return f".{hint.removesuffix('?')}?" if hint else ""
