"""The operations of features.json that mix or bend numbers, written by hand, against their plain twins."""

import json
import math
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer.errors import ConfigurationError
from fastinfer.preprocessing.program import Program

QUICK = settings(max_examples=60, deadline=None)
numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
rows = st.integers(1, 12).flatmap(lambda width: st.lists(
    st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=4))


def program(width: int, to: int, **step: Any) -> Program:
    """One step over columns of numbers; each of its results is a feature."""
    names = [f"c{i}" for i in range(width)]
    targets = [f"t{i}" for i in range(to)]
    return Program.from_json(json.dumps({
        "fastinfer": 1,
        "columns": [{"name": name, "datatype": "FP64", "dtype": "float64"} for name in names],
        "steps": [{"from": names, "to": targets, **step}],
        "output": {"dtype": "float64", "allow": "any",
                   "features": [{"name": target, "value": target} for target in targets]},
    }))


def near(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, np.array(expected, dtype=float), rtol=1e-9, atol=1e-12)


@QUICK
@given(rows, st.sampled_from(["l1", "l2", "max"]), st.booleans())
def test_normalize(values: list[list[float]], norm: str, sparse: bool) -> None:
    width = len(values[0])
    got = program(width, width, op="normalize", norm=norm, sparse=sparse).transform(np.array(values))
    near(got, [reference.normalized(row, norm) for row in values])


@QUICK
@given(st.lists(st.floats(1e-3, 1e3), min_size=1), st.sampled_from([0.0, 1.0, 2.0]) | st.floats(-2, 2),
       st.sampled_from(["box-cox", "yeo-johnson"]))
def test_power(values: list[float], power: float, method: str) -> None:
    power = round(power, 2)
    values = values + [-x for x in values] if method == "yeo-johnson" else values
    got = program(1, 1, op="power", method=method, lambdas=[power]).transform(np.array(values)[:, None])
    np.testing.assert_allclose(got[:, 0], [reference.powered(x, method, power) for x in values], rtol=1e-7)


@QUICK
@given(st.lists(st.floats(-9, 9).map(lambda x: round(x, 1)), min_size=2, max_size=9), st.lists(numbers, min_size=1))
def test_quantile(quantiles: list[float], values: list[float]) -> None:
    quantiles, values = sorted(quantiles), values + [x + 1e-3 for x in quantiles] + quantiles[:1] + quantiles[-1:]
    got = program(1, 1, op="quantile", distribution="uniform", quantiles=quantiles).transform(np.array(values)[:, None])
    near(got[:, 0], [reference.stood(x, quantiles) for x in values])
    normal = program(1, 1, op="quantile", distribution="normal", quantiles=quantiles).transform(
        np.array(values)[:, None])
    share = 0.5 * np.vectorize(math.erfc)(-normal[:, 0] / math.sqrt(2))
    np.testing.assert_allclose(share, np.clip([reference.stood(x, quantiles) for x in values], 1e-7, 1 - 1e-7),
                               rtol=1e-6, atol=2e-7)


@QUICK
@given(st.data(), rows)
def test_polynomial(data: st.DataObject, values: list[list[float]]) -> None:
    width = len(values[0])
    terms = data.draw(st.lists(st.lists(st.integers(0, width - 1), max_size=4), min_size=1, max_size=6))
    for sparse in (False, True):
        got = program(width, len(terms), op="polynomial", terms=terms, sparse=sparse).transform(np.array(values))
        near(got, [[reference.multiplied(row, term) for term in terms] for row in values])


@QUICK
@given(st.data(), rows)
def test_project(data: st.DataObject, values: list[list[float]]) -> None:
    width = len(values[0])
    matrix = data.draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=5))
    got = program(width, len(matrix), op="project", matrix=matrix).transform(np.array(values))
    np.testing.assert_allclose(got, [reference.projected(row, matrix) for row in values], rtol=1e-9, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4), st.lists(st.integers(1, 9), min_size=10, max_size=13), st.lists(st.floats(0, 1), min_size=1))
def test_spline(degree: int, gaps: list[int], places: list[float]) -> None:
    knots = [float(knot) for knot in np.cumsum(gaps)]
    splines = len(knots) - degree - 1
    start, end = knots[degree], knots[splines]
    values = [min(start + place * (end - start), math.nextafter(end, 0)) for place in places]
    expected = [[reference.spline_value(x, knots, degree, i) for i in range(splines)] for x in values]
    for extrapolation in ("error", "continue"):
        got = program(1, splines, op="spline", degree=degree, knots=knots, extrapolation=extrapolation).transform(
            np.array(values)[:, None])
        near(got, expected)
    got = program(1, splines - 1, op="spline", degree=degree, knots=knots, extrapolation="error").transform(
        np.array(values)[:, None])
    near(got, [row[:-1] for row in expected])


def test_spline_with_ends_of_its_own() -> None:
    ends = {"low": 2.0, "high": 4.0, "reach": 1, "low_values": [0.25, 9, 9], "high_values": [9, 9, 0.5]}
    knots = [float(i) for i in range(6)]
    plain = program(1, 3, op="spline", degree=2, knots=knots, extrapolation="edges", **ends)
    near(plain.transform(np.array([[1.0], [5.0], [np.nan]])), [[0.25, 0, 0], [0, 0, 0.5], [0, 0, 0]])
    sloped = program(1, 3, op="spline", degree=2, knots=knots, extrapolation="edges", **ends,
                     low_slopes=[2.0, 0, 0], high_slopes=[0, 0, -1.0])
    near(sloped.transform(np.array([[1.0], [5.0]])), [[-1.75, 0, 0], [0, 0, -0.5]])


@pytest.mark.parametrize(("width", "to", "step", "message"), [
    (2, 3, {"op": "normalize", "norm": "l1"}, r"\$\.steps\[0\]\.to: 3 values, and the operation makes 2"),
    (2, 2, {"op": "normalize", "norm": "l3"}, r"\$\.steps\[0\]\.norm: expected 'l1' or 'l2' or 'max'"),
    (2, 2, {"op": "polynomial", "terms": [[0], [2]]}, r"\$\.steps\[0\]\.terms\[1\]: expected positions from 0 to 1"),
    (2, 1, {"op": "polynomial", "terms": [[0], [1]]}, r"\$\.steps\[0\]\.to: 1 values"),
    (2, 1, {"op": "project", "matrix": [[1.0]]}, r"\$\.steps\[0\]\.matrix\[0\]: 1 weights for 2 values"),
    (1, 1, {"op": "quantile", "quantiles": [], "distribution": "normal"}, r"\.quantiles: the numbers must ascend"),
    (1, 1, {"op": "quantile", "quantiles": [2, 1], "distribution": "normal"}, r"\.quantiles: the numbers must ascend"),
    (1, 2, {"op": "power", "method": "box-cox", "lambdas": [1.0]}, r"\.to: 2 values for 1"),
    (1, 1, {"op": "power", "method": "box-cox", "lambdas": []}, r"\.lambdas: 0 entries for 1 values"),
    (1, 3, {"op": "spline", "degree": 65, "knots": [0, 1], "extrapolation": "error"}, r"a degree from 0 to 64"),
    (1, 3, {"op": "spline", "degree": 1, "knots": [0, 1, 2], "extrapolation": "error"}, "3 knots for splines of"),
    (1, 1, {"op": "spline", "degree": 1, "knots": [0, 1, 2, 3, 4], "extrapolation": "error"}, "1 values for 3 splines"),
    (1, 2, {"op": "spline", "degree": 1, "knots": [0, 1, 2, 3], "extrapolation": "edges"}, "needs the member 'low'"),
    (1, 2, {"op": "spline", "degree": 1, "knots": [0, 1, 2, 3], "extrapolation": "error", "low": 1}, "goes with"),
    (1, 2, {"op": "spline", "degree": 1, "knots": [0, 1, 2, 3], "extrapolation": "edges", "low": 1, "high": 2,
            "reach": 3, "low_values": [1, 2]}, r"\.reach: expected a number from 0 to 2"),
    (1, 2, {"op": "spline", "degree": 1, "knots": [0, 1, 2, 3], "extrapolation": "edges", "low": 1, "high": 2,
            "reach": 1, "low_values": [1, 2, 3]}, r"\.low_values: 3 entries for 2 splines"),
])
def test_a_fault_is_named_by_its_place(width: int, to: int, step: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        program(width, to, **step)
