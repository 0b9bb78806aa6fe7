"""Rows at which a matrix product has digits that mean something.

BLAS adds in an order of its own, so two right answers differ by the rounding of the largest terms. Where the terms
cancel, that is more than the result's own last digit: such a row proves nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastinfer.preprocessing.lowering import compile_spec
from fastinfer.preprocessing.spec import Output, Spec, Step
from fastinfer.preprocessing.vectors import Features

WANTED: Final = 2.0**-26  # relative: a quarter of float32's last digit
ROUNDING: Final = 2.0**-52  # of each of the sum's terms


def well_conditioned(spec: Spec, columns: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Which rows suit every product of the program whose order is BLAS's own.

    Args:
        columns: each raw column's values, none of which the program refuses.
    """
    found = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for i, step in enumerate(spec.steps):
        if step.op == "project" and not step.parameters.get("sparse", False):
            values = values_of(replace(spec, steps=spec.steps[:i]), step.sources, columns)
            found &= suits(values, step, offset_after(spec.steps[i + 1 :], step))
    return found


def values_of(spec: Spec, names: Sequence[str], columns: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Values of the program, [rows, names]."""
    output = Output("float64", "any", Features([(name, name) for name in names]))
    compiled, _ = compile_spec(replace(spec, output=output))
    values: npt.NDArray[np.float64] = compiled.transform(dict(columns))
    return values


def offset_after(steps: Sequence[Step], product: Step) -> npt.NDArray[np.float64]:
    """What is taken off the product at once, as a principal component's mean is."""
    for step in steps:
        if step.op == "subtract" and step.sources == product.targets:
            return np.array(step.parameters["by"])
    return np.zeros(len(product.targets))


def suits(values: npt.NDArray[np.float64], step: Step, offset: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    weights = np.array(step.parameters["matrix"]).T
    with np.errstate(all="ignore"):
        result = np.abs(values @ weights - offset)
        terms = np.abs(values) @ np.abs(weights) + np.abs(offset)
        good = np.isfinite(terms) & (terms * (ROUNDING * (len(weights) + 4)) <= WANTED * result)
        return np.asarray(good.all(axis=1), dtype=bool)
