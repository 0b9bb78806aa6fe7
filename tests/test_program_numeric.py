"""scikit-learn's numeric transformers with each of their options, row by row: the same bits, the same refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    Normalizer,
    OneHotEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)
from sklearn_pipelines import dense, quietly
from test_program_sklearn import compare
from test_program_transforms import label, options_of

from fastinfer.errors import ImportRefusedError, InvalidRecordError
from fastinfer.preprocessing.certificate import difference
from fastinfer.preprocessing.from_sklearn import CONVERTERS
from fastinfer.preprocessing.program import Program

NAN, INF = np.nan, np.inf
RANDOM = np.random.default_rng(0)
SIGNED = np.round(RANDOM.normal(size=(30, 3)) * [1.0, 30.0, 0.01], 3)
POSITIVE = np.exp(RANDOM.normal(size=(30, 3)) * [1.0, 3.0, 0.1])
EDGES = np.array([
    [0.0, -0.0, 1e-300], [5e-324, 1e300, -1e300], [NAN, 1.0, 2.0], [1.0, NAN, NAN], [NAN, NAN, NAN], [INF, 1.0, 1.0],
    [1.0, -INF, 1.0], [-1e-9, 1e9, 0.3], [-1.0, -2.0, -3.0], [1e-16, 3e-16, -1e-16], [1.5, 0.25, 16777217.0],
    [-5e-324, 0.0, 0.0], [3.0, 77.0, 0.02], [-3.0, -77.0, -0.02], [1 / 3, 0.1, 0.7],
])


def check(transformer: Any, fit: Any, serve: Any, dtype: str = "float64") -> Program:
    fitted = quietly(clone(transformer).fit, fit)
    program: Program = quietly(lambda: Program.from_sklearn(fitted, sample=fit, dtype=dtype))
    compare(fitted, program, [fit[:7], *[serve[i : i + 1] for i in range(len(serve))]], dtype)
    assert list(program.get_feature_names_out()) == list(fitted.get_feature_names_out())
    return program


def served(fit: np.ndarray[Any, Any], dtype: str) -> tuple[Any, Any]:
    """What is fitted and what is served: values of the fit, numbers next to them, others, and edges."""
    with np.errstate(all="ignore"):
        rows = np.concatenate([fit[:6], np.nextafter(fit[:6], INF), fit[:6] * 1.7 + 0.01, EDGES])
        return fit.astype(dtype), rows.astype(dtype)


both = pytest.mark.parametrize("dtype", ["float64", "float32"])


@both
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 33, 300])
def test_normalizer(norm: str, width: int, dtype: str) -> None:
    """A row is summed as numpy sums a contiguous one: in pairs of halves, eight or four lanes at a time."""
    rows = RANDOM.normal(size=(40, width)) * 10.0 ** RANDOM.integers(-3, 4, size=(40, width))
    rows[0], rows[1], rows[2] = 0.0, 1e-17, -1e-9
    check(Normalizer(norm), rows.astype(dtype), rows.astype(dtype), dtype)


@both
@pytest.mark.parametrize("transformer", options_of(PowerTransformer, method=["box-cox", "yeo-johnson"],
                                                   standardize=[True, False]), ids=label)
def test_power_transformer(transformer: Any, dtype: str) -> None:
    fit, serve = served(POSITIVE, dtype)
    check(transformer, fit, serve, dtype)
    if transformer.method == "yeo-johnson":
        fit, serve = served(SIGNED, dtype)
        check(transformer, fit, serve, dtype)


@pytest.mark.parametrize("power", [0.0, 1e-17, 2.0, 2.0 + 1e-15, 1.0, -3.5, 1e-20, 40.0])
@pytest.mark.parametrize("method", ["box-cox", "yeo-johnson"])
def test_powers_at_which_the_formula_changes(method: str, power: float) -> None:
    fitted = quietly(PowerTransformer(method=method, standardize=False).fit, POSITIVE)
    fitted.lambdas_ = np.full(3, power)
    program = Program.from_sklearn(fitted)
    rows = [row[None] for row in np.concatenate([POSITIVE[:5], -POSITIVE[:5], EDGES])]
    compare(fitted, program, rows, "float64")


def test_box_cox_refuses_what_is_not_positive() -> None:
    program = Program.from_sklearn(PowerTransformer("box-cox").fit(POSITIVE))
    assert [column.nullable for column in program.columns] == [True] * 3
    with pytest.raises(InvalidRecordError, match="row 1, field 'x2': outside what the feature program takes"):
        program.transform(np.array([[1.0, 1.0, 1.0], [1.0, NAN, 0.0]]))


@both
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 30])
def test_quantile_transformer(distribution: str, count: int, dtype: str) -> None:
    fit, serve = served(np.round(SIGNED, 1), dtype)  # rounded, so that quantiles repeat
    near = fit[:6] + np.array([1e-8, -1e-8, 1e-7]).astype(dtype)
    check(QuantileTransformer(n_quantiles=count, output_distribution=distribution), fit,
          np.concatenate([serve, near, [fit.min(0), fit.max(0)]]), dtype)


@both
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, (0, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("interaction", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_polynomial_features(degree: Any, interaction: bool, bias: bool, dtype: str) -> None:
    if degree == 0 and not bias:
        return
    fit, serve = served(SIGNED, dtype)
    check(PolynomialFeatures(degree, interaction_only=interaction, include_bias=bias), fit, serve, dtype)


@both
@pytest.mark.parametrize("extrapolation", ["constant", "linear", "continue", "periodic", "error"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("sparse", [True, False])
def test_spline_transformer(extrapolation: str, degree: int, sparse: bool, dtype: str) -> None:
    fit, serve = served(SIGNED, dtype)
    knots = "quantile" if degree % 2 else "uniform"
    transformer = SplineTransformer(n_knots=6, degree=degree, knots=knots, extrapolation=extrapolation,
                                    include_bias=degree != 2, sparse_output=sparse)
    if sparse and extrapolation == "periodic" and not degree:
        with pytest.raises(ImportRefusedError, match="pipeline: periodic splines of degree 0"):
            check(transformer, fit, serve, dtype)
        return
    check(transformer, fit, serve, dtype)


def test_splines_whose_knots_are_rounded_out_of_order_are_refused() -> None:
    low, high = float.fromhex("-0x1.4cc1f26b89e5bp+2"), float.fromhex("0x1.4cc1f26ba4caep+2")
    fit = np.array([[low], [low], [low], [high]])
    transformer = SplineTransformer(n_knots=3, degree=1, knots="quantile", extrapolation="periodic")
    with pytest.raises(ImportRefusedError, match="pipeline: splines whose knots do not ascend"):
        check(transformer, fit, fit)


@pytest.mark.parametrize("extrapolation", ["constant", "linear", "continue", "periodic", "error"])
def test_splines_of_missing_values(extrapolation: str) -> None:
    """Missing values become zeros; nothing is checked then, infinities neither."""
    fit, serve = served(np.where(SIGNED > 25, NAN, SIGNED), "float64")
    transformer = SplineTransformer(extrapolation=extrapolation, handle_missing="zeros")
    program = check(transformer, fit, serve)
    assert all(column.nullable for column in program.columns)
    transformer.set_params(sparse_output=True)
    if extrapolation not in ("constant", "linear"):
        with pytest.raises(ImportRefusedError, match="pipeline: handle_missing='zeros' with a sparse output"):
            check(transformer, fit, serve)
    else:
        check(transformer, fit, serve)


def test_splines_of_given_knots_and_of_a_constant() -> None:
    fit, serve = served(SIGNED, "float64")
    check(SplineTransformer(knots=np.array([[-1.0, -9, -9], [0, 0.5, 0], [7, 1, 9]]), degree=2), fit, serve)
    fit = np.where([True, False, False], 2.5, SIGNED)
    for extrapolation in ("constant", "linear", "continue", "periodic"):
        check(SplineTransformer(extrapolation=extrapolation), fit, serve)


def test_extrapolation_that_fails() -> None:
    program = Program.from_sklearn(SplineTransformer(extrapolation="error").fit([[0.0], [1.0]]))
    assert program.transform(np.array([[0.5]])).shape == (1, 7)
    with pytest.raises(InvalidRecordError, match="row 1, field 'x0': outside"):
        program.transform(np.array([[1.0], [1.0000001]]))


# ---- sparse in between -----------------------------------------------------------------------------------------
CODES = np.concatenate([RANDOM.integers(0, 4, size=(30, 1)), SIGNED[:, :2]], axis=1)
CODES[3, 1:] = 0.0
OTHER_CODES = np.concatenate([CODES[:8], [[9, -0.0, -1e-200], [1, -1e-200, 1e-200], [0, 0, 0], [2, 5e-324, -3.0]]])
AFTER = [
    TruncatedSVD(3), TruncatedSVD(1), PCA(2, svd_solver="arpack", whiten=True),
    *options_of(Normalizer, norm=["l1", "l2", "max"]),
    *options_of(PolynomialFeatures, degree=[2, (2, 3)], interaction_only=[True, False]),
    PolynomialFeatures(4, interaction_only=True),
    make_pipeline(MaxAbsScaler(), PolynomialFeatures(2), TruncatedSVD(3)),
    make_pipeline(StandardScaler(with_mean=False), Normalizer(), PolynomialFeatures(2, include_bias=False)),
    FeatureUnion([("a", Normalizer()), ("b", TruncatedSVD(2)), ("c", "passthrough")]),
]


@pytest.mark.parametrize("after", AFTER, ids=label)
@pytest.mark.parametrize("code", [np.float64, np.float32, np.int64])
def test_sparse_matrices(after: Any, code: Any) -> None:
    """scipy's and scikit-learn's loops over stored values have an order of their own, which is always the same."""
    encoder = OneHotEncoder(handle_unknown="ignore", dtype=code)
    columns = ColumnTransformer([("code", encoder, [0]), ("rest", "passthrough", [1, 2])], sparse_threshold=1.0)
    program = check(make_pipeline(columns, after), CODES, OTHER_CODES)
    assert set(program.precision) == {"exact"}
    check(make_pipeline(ColumnTransformer([("code", encoder, [0])]), after), CODES, OTHER_CODES, "float32")


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_columns_of_a_sparse_matrix(threshold: float) -> None:
    """Stored -0.0 come back as 0.0 from whichever part was sparse."""
    splines = SplineTransformer(n_knots=4, sparse_output=True, extrapolation="continue")
    inner = ColumnTransformer([("scaled", MaxAbsScaler(), [0, 1, 2]), ("products", PolynomialFeatures(2), [2, 3]),
                               ("svd", TruncatedSVD(1), slice(0, 4))], remainder="passthrough",
                              sparse_threshold=threshold)
    outer = ColumnTransformer([("code", OneHotEncoder(handle_unknown="ignore"), [0]), ("splines", splines, [1]),
                               ("rest", "passthrough", [2])], sparse_threshold=1.0)
    check(make_pipeline(outer, inner), CODES, OTHER_CODES)


def test_a_sparse_matrix_that_is_not_taken() -> None:
    splines = SplineTransformer(sparse_output=True)
    fitted = quietly(make_pipeline(splines, QuantileTransformer(n_quantiles=3)).fit, np.abs(CODES[:, :1]))
    with pytest.raises(ImportRefusedError, match=r"^pipeline\.steps\[1\]: it gets a sparse matrix that stores zeros"):
        Program.from_sklearn(fitted)


def test_products_of_sparse_splines_that_may_be_infinite_times_a_stored_zero() -> None:
    for degree, taken in ((2, True), (3, False)):
        splines = SplineTransformer(sparse_output=True)
        fitted = quietly(make_pipeline(splines, PolynomialFeatures(degree)).fit, CODES[:, :1])
        if taken:
            Program.from_sklearn(fitted)
            continue
        with pytest.raises(ImportRefusedError, match=r"^pipeline\.steps\[1\]: it multiplies three columns"):
            Program.from_sklearn(fitted)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_quantiles_of_a_sparse_matrix(distribution: str, ignore: bool, count: int) -> None:
    """What is not stored stays zero; a negative value fails where zeros count."""
    parts = [("one", OneHotEncoder(handle_unknown="ignore"), [0]), ("rest", "passthrough", [1, 2])]
    ranks = QuantileTransformer(n_quantiles=count, output_distribution=distribution, ignore_implicit_zeros=ignore)
    fit = np.column_stack([np.arange(20) % 3, np.maximum(0, np.sin(np.arange(20))), np.arange(20) / 7])
    serve = np.array([[1, 0.0, 1.0], [9, 0.5, 99.0], [2, 5e-324, 1e300], [0, -0.0, np.nan], [1, 0.2, -1e-300]])
    check(make_pipeline(ColumnTransformer(parts, sparse_threshold=1.0), ranks), fit, serve)


# ---- dense matrix products -------------------------------------------------------------------------------------
WIDE = RANDOM.normal(size=(60, 12)) * RANDOM.lognormal(size=12) + 5


@pytest.mark.parametrize("transformer", [
    *options_of(PCA, n_components=[1, 4, 12], whiten=[True, False]), IncrementalPCA(3), TruncatedSVD(1),
    TruncatedSVD(5), make_pipeline(StandardScaler(), PCA(3), StandardScaler()),
    make_pipeline(PolynomialFeatures(2), TruncatedSVD(2), PowerTransformer()),
], ids=label)
@both
def test_projections(transformer: Any, dtype: str) -> None:
    """Sums in an order of BLAS's own: 1 ulp of float32."""
    fitted = quietly(clone(transformer).fit, WIDE)
    program = Program.from_sklearn(fitted, dtype=dtype)
    assert set(program.precision) == {"single"}
    rows = np.concatenate([WIDE, WIDE * 1e6, WIDE[::-1] / 3])
    assert difference(dense(quietly(fitted.transform, rows), dtype), program.transform(rows), program.precision) is None
    assert list(program.get_feature_names_out()) == list(fitted.get_feature_names_out())
    again = Program.from_json(program.to_json())
    np.testing.assert_array_equal(again.transform(rows), program.transform(rows))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_projections_anywhere(data: st.DataObject) -> None:
    """Behind and before other steps, beside others, on random matrices."""
    width = data.draw(st.integers(1, 8))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    fit = random.normal(size=(20, width)) * 10.0 ** random.integers(-3, 4, size=width) + random.normal(size=width)
    before = data.draw(st.lists(st.sampled_from([StandardScaler(), Normalizer(), PolynomialFeatures(2),
                                                 PowerTransformer()]), max_size=2))
    product = data.draw(st.sampled_from([PCA(1, whiten=True), PCA(1), TruncatedSVD(1), IncrementalPCA(1)]))
    after = data.draw(st.lists(st.sampled_from([StandardScaler(), Normalizer("l1"), SplineTransformer()]), max_size=1))
    beside = [("product", make_pipeline(*map(clone, before), product, *map(clone, after))), ("same", "passthrough")]
    fitted = FeatureUnion(beside)
    try:
        quietly(fitted.fit, fit)
    except ValueError:  # one component of one constant column
        return
    dtype = data.draw(st.sampled_from(["float64", "float32"]))
    try:
        program = quietly(lambda: Program.from_sklearn(fitted, dtype=dtype))
    except ImportRefusedError as error:
        if "the component 0 is rounding only" in str(error):
            return
        raise
    rows = random.normal(size=(10, width)) * fit.std(axis=0) + fit.mean(axis=0)
    expected = dense(quietly(fitted.transform, rows), dtype)
    assert difference(expected, program.transform(rows), program.precision) is None


def test_a_projection_is_the_same_alone_and_in_a_batch() -> None:
    program = Program.from_sklearn(PCA(4).fit(WIDE))
    alone = np.concatenate([program.transform(row[None]) for row in WIDE])
    np.testing.assert_array_equal(program.transform(np.tile(WIDE, (10, 1))), np.tile(alone, (10, 1)))


def test_a_projection_refuses_what_scikit_learn_refuses() -> None:
    program = Program.from_sklearn(PCA(2).fit(WIDE))
    for value in (NAN, INF):
        row = WIDE[:1].copy()
        row[0, 3] = value
        with pytest.raises(InvalidRecordError, match="row 0, field 'x3'"):
            program.transform(row)


def test_components_of_no_variance_are_refused() -> None:
    """Their values are what rounding leaves, in scikit-learn as here."""
    fit = np.concatenate([WIDE[:, :3], WIDE[:, :3] @ RANDOM.normal(size=(3, 2))], axis=1)
    with pytest.raises(ImportRefusedError, match="pipeline: the component 3 is rounding only"):
        Program.from_sklearn(PCA().fit(fit))
    with pytest.raises(ImportRefusedError, match="pipeline: the component 3 is rounding only"):
        Program.from_sklearn(TruncatedSVD(4, algorithm="arpack").fit(fit))
    assert Program.from_sklearn(PCA(3).fit(fit)).width == 3


def test_dense_float32_products_are_refused() -> None:
    for transformer in (PCA(2), TruncatedSVD(2)):
        fitted = transformer.fit(WIDE.astype("float32"))
        with pytest.raises(ImportRefusedError, match="pipeline: a product of dense float32 matrices"):
            Program.from_sklearn(fitted, sample=WIDE.astype("float32"))


def test_the_tolerance_is_one_ulp_of_float32() -> None:
    """Of float64 results too; and other features keep theirs."""
    expected = np.array([[1.0, 1.0, 1.0]])
    for off, precision, found in [(1e-7, "single", None), (2e-7, "single", (0, 1)), (2.3e-16, "ulp", None),
                                  (5e-16, "ulp", (0, 1)), (2.3e-16, "exact", (0, 1))]:
        got = expected + np.array([0.0, off, 0.0])
        assert difference(expected, got, ("exact", precision, "exact")) == found


def test_the_manual_names_each_transformer() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "transforms.md").read_text()
    assert [name for name in CONVERTERS if f"`{name}`" not in page] == []


def test_too_wide() -> None:
    fitted = PolynomialFeatures(3).fit(np.zeros((2, 60)))
    with pytest.raises(ImportRefusedError, match="pipeline: it gives 39,711 features"):
        Program.from_sklearn(fitted)


# ---- golden rows -----------------------------------------------------------------------------------------------
def test_golden_rows_take_the_branches_behind_scaling() -> None:
    """Each interval of the knots and both sides of the range, through the scaler before it."""
    pipeline = make_pipeline(StandardScaler(), SplineTransformer(n_knots=8)).fit(SIGNED[:, 1:2])
    program = Program.from_sklearn(pipeline)
    assert program.spec.certificate is not None
    rows = np.array(program.spec.certificate["rows"]["x0"], dtype=float)
    knots = np.linspace(SIGNED[:, 1].min(), SIGNED[:, 1].max(), 8)
    assert {np.searchsorted(knots, row) for row in rows} == set(range(9))


def test_golden_rows_take_the_quantiles() -> None:
    program = Program.from_sklearn(QuantileTransformer(n_quantiles=10).fit(SIGNED))
    assert program.spec.certificate is not None
    rows = set(program.spec.certificate["rows"]["x1"])
    assert set(np.percentile(SIGNED[:, 1], [0, 100])) < rows
