"""scikit-learn's transformers that mix the columns of a row: norms, products and projections."""

from itertools import chain, combinations, combinations_with_replacement
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastinfer.preprocessing.spec import MAX_WIDTH
from fastinfer.preprocessing.tracing import FLOAT32, FLOAT64, Feature, Matrix, Trace, refuse, single

NOISE: Final = 2.0**-23  # beside its terms: scikit-learn finds nothing as the root of float64's rounding, 2**-26 or so


def sparse_flag(matrix: Matrix) -> dict[str, Any]:
    return {"sparse": True} if matrix.container == "sparse" else {}


def normalizer(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=False, sparse=True)
    return trace.each("normalize", path, matrix, norm=transformer.norm, **sparse_flag(matrix), **single(matrix.dtype))


def polynomial_features(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """Products of columns: of a dense row from the last factor to the first, of a sparse one from the first on."""
    if matrix.container == "sparse" and transformer._max_degree > 2 and any(
            step.op == "spline" and step.parameters.get("sparse") for step in trace.steps):
        raise refuse(path, "it multiplies three columns of sparse splines, which store zeros: where two of them are so "
                           "large that their product is infinite, a third one makes it NaN")
    matrix = trace.floats(matrix, path, allow_nan=False, sparse=True)
    if transformer.n_output_features_ > MAX_WIDTH:
        raise refuse(path, f"it gives {transformer.n_output_features_:,} features; at most {MAX_WIDTH:,} are served")
    choose = combinations if transformer.interaction_only else combinations_with_replacement
    degrees = range(max(1, transformer._min_degree), transformer._max_degree + 1)
    terms = list(chain.from_iterable(choose(range(matrix.width), degree) for degree in degrees))
    if transformer.include_bias:
        terms.insert(0, ())
    if not terms:
        return Matrix((), matrix.container)
    names = [term_name(term, matrix) for term in terms]
    ordered = terms if matrix.container == "sparse" else [term[::-1] for term in terms]
    values = trace.write("polynomial", path, matrix.features, names, terms=tuple(ordered), **sparse_flag(matrix),
                         **single(matrix.dtype))
    return Matrix(tuple([Feature(name, value, "number", matrix.dtype)
                         for name, value in zip(names, values, strict=True)]), matrix.container)


def term_name(term: tuple[int, ...], matrix: Matrix) -> str:
    powers = {index: term.count(index) for index in term}
    names = [matrix.features[index].name + (f"^{power}" if power > 1 else "") for index, power in powers.items()]
    return " ".join(names) or "1"


def pca(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """The projection first, then less the projected mean."""
    matrix = trace.floats(matrix, path, allow_nan=False, sparse=True)
    if type(transformer).__name__ == "IncrementalPCA":  # makes a sparse matrix dense
        matrix = Matrix(matrix.features, "array")
    components = np.asarray(transformer.components_)
    if matrix.container != "sparse":
        deviations = np.sqrt(transformer.explained_variance_)
        terms = np.abs(np.ravel(transformer.mean_)) @ np.abs(components.T)
        refuse_noise(deviations, np.maximum(deviations.max(), terms), path)
    offset = np.reshape(np.asarray(transformer.mean_), (1, -1)) @ components.T
    matrix = project(trace, transformer, matrix, path)
    matrix = trace.arithmetic("subtract", path, matrix, offset[0])
    if not transformer.whiten:
        return matrix
    scale = np.sqrt(transformer.explained_variance_)
    return trace.arithmetic("divide", path, matrix, np.maximum(scale, np.finfo(scale.dtype).eps))


def truncated_svd(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    matrix = trace.floats(matrix, path, allow_nan=False, sparse=True, numeric=True)
    if matrix.container != "sparse":
        sizes = np.asarray(transformer.singular_values_)
        refuse_noise(sizes, np.full(len(sizes), sizes.max()), path)
    return project(trace, transformer, matrix, path)


def refuse_noise(sizes: npt.NDArray[Any], terms: npt.NDArray[Any], path: str) -> None:
    """Components that the data does not fill: what they give is what BLAS's rounding of the terms leaves."""
    for i, (size, term) in enumerate(zip(sizes, terms, strict=True)):
        if not size > NOISE * term:
            raise refuse(path, f"the component {i} is rounding only, whose digits depend on BLAS; fit it with "
                               f"n_components={i}" + (" or less" if i > 1 else ""))


def project(trace: Trace, transformer: Any, matrix: Matrix, path: str) -> Matrix:
    """The product with the components: of a sparse matrix in scipy's order, of a dense one in whatever BLAS has."""
    components = np.asarray(transformer.components_)
    dtype = np.result_type(matrix.dtype, components.dtype)
    if dtype not in (FLOAT64, FLOAT32):
        raise refuse(path, f"it computes in {dtype}")
    if dtype == FLOAT32 and matrix.container != "sparse":
        raise refuse(path, "a product of dense float32 matrices, of which each BLAS (and one row alone, and many "
                           "together) gives other digits; fit it on float64")
    names = [f"{type(transformer).__name__.lower()}{i}" for i in range(len(components))]
    rows = tuple([tuple([float(weight) for weight in row]) for row in components])
    values = trace.write("project", path, matrix.features, names, matrix=rows, **sparse_flag(matrix), **single(dtype))
    return Matrix(tuple([Feature(name, value, "number", dtype)
                         for name, value in zip(names, values, strict=True)]), "array")
