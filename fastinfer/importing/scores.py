"""Linear scores of a matrix that is too wide to be served: they become the feature program's last operation."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, TransformerMixin

from fastinfer.importing.graph import Wide


class LinearScores(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """``X @ weights.T + bias`` in float64, each sum from the first stored column to the last, as scipy's CSR product.

    Attributes:
        weights: [scores, columns].
        bias: [scores].
    """

    def __init__(self, weights: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        self.weights = weights
        self.bias = bias
        self.n_features_in_ = weights.shape[1]

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, x: Any, y: Any = None) -> Self:
        return self

    def transform(self, x: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.asarray(csr_matrix(x, dtype=np.float64) @ self.weights.T) + self.bias
        return found

    def get_feature_names_out(self, names: Any = None) -> NDArray[np.object_]:
        return np.array([f"score{i}" for i in range(len(self.bias))], dtype=object)


def scored(wide: Wide) -> Any:
    """The pipeline from raw columns to every score that the estimator takes of a wide matrix."""
    from sklearn.pipeline import Pipeline

    weights = np.concatenate([weights for weights, _ in wide.parts])
    bias = np.concatenate([bias for _, bias in wide.parts])
    return Pipeline([*wide.transformer.steps, ("scores", LinearScores(weights, bias))])
