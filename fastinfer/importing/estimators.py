"""Which function writes which estimator. Functions are named, and loaded when a pipeline needs them.

A writer takes ``(graph, estimator, x, path)`` with ``x`` the estimator's float64 matrix and ``path`` its place in the
pipeline, and returns the names of its answers.
"""

from importlib import import_module
from typing import Any

from fastinfer.importing import foreign
from fastinfer.importing.answers import Answer, refuse, single_output
from fastinfer.importing.graph import Graph

_SKLEARN: dict[str, str] = {
    "DecisionTreeClassifier ExtraTreeClassifier": "trees:tree_classifier",
    "DecisionTreeRegressor ExtraTreeRegressor": "trees:tree_regressor",
    "RandomForestClassifier ExtraTreesClassifier": "trees:forest_classifier",
    "RandomForestRegressor ExtraTreesRegressor": "trees:forest_regressor",
    "GradientBoostingClassifier": "boosting:gradient_classifier",
    "GradientBoostingRegressor": "boosting:gradient_regressor",
    "HistGradientBoostingClassifier": "boosting:histogram_classifier",
    "HistGradientBoostingRegressor": "boosting:histogram_regressor",
    "LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV Lars LarsCV LassoLars LassoLarsCV LassoLarsIC"
    " OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV BayesianRidge ARDRegression HuberRegressor"
    " TheilSenRegressor SGDRegressor PassiveAggressiveRegressor LinearSVR QuantileRegressor": "linear:linear_regressor",
    "PoissonRegressor GammaRegressor TweedieRegressor": "linear:generalised_regressor",
    "RANSACRegressor": "linear:ransac_regressor",
    "LogisticRegression LogisticRegressionCV": "linear:logistic_classifier",
    "SGDClassifier": "linear:gradient_descent_classifier",
    "RidgeClassifier RidgeClassifierCV LinearSVC Perceptron PassiveAggressiveClassifier": "linear:linear_classifier",
    "LinearDiscriminantAnalysis": "linear:discriminant_classifier",
    "QuadraticDiscriminantAnalysis": "linear:quadratic_classifier",
    "MLPClassifier": "linear:perceptron_classifier",
    "MLPRegressor": "linear:perceptron_regressor",
    "GaussianNB": "bayes:gaussian",
    "BernoulliNB": "bayes:bernoulli",
    "MultinomialNB": "bayes:multinomial",
    "ComplementNB": "bayes:complement",
    "CategoricalNB": "bayes:categorical",
    "SVC NuSVC": "vectors:vector_classifier",
    "SVR NuSVR": "vectors:vector_regressor",
    "KNeighborsClassifier": "vectors:neighbours_classifier",
    "KNeighborsRegressor": "vectors:neighbours_regressor",
    "IsotonicRegression": "composites:isotonic_regressor",
    "CalibratedClassifierCV": "composites:calibrated",
    "VotingClassifier": "composites:voting_classifier",
    "VotingRegressor": "composites:voting_regressor",
    "StackingClassifier": "composites:stacking_classifier",
    "StackingRegressor": "composites:stacking_regressor",
    "BaggingClassifier": "composites:bagging_classifier",
    "BaggingRegressor": "composites:bagging_regressor",
    "AdaBoostClassifier": "composites:boosted_classifier",
    "AdaBoostRegressor": "composites:boosted_regressor",
    "OneVsRestClassifier": "composites:rest_classifier",
    "OneVsOneClassifier": "composites:pair_classifier",
    "TransformedTargetRegressor": "composites:transformed_target",
    "FixedThresholdClassifier TunedThresholdClassifierCV": "composites:thresholded",
    "FrozenEstimator": "composites:frozen",
    "GridSearchCV RandomizedSearchCV HalvingGridSearchCV HalvingRandomSearchCV": "composites:searched",
    "Pipeline": "composites:pipeline",
    "DummyClassifier": "dummies:dummy_classifier",
    "DummyRegressor": "dummies:dummy_regressor",
}
_XGBOOST = {
    "XGBClassifier": "xgboost:xgboost_classifier",
    "XGBRegressor": "xgboost:xgboost_regressor",
    "XGBRanker": "xgboost:xgboost_regressor",
}
_LIGHTGBM = {"LGBMClassifier": "lightgbm:lightgbm_classifier", "LGBMRegressor": "lightgbm:lightgbm_regressor"}
WRITERS = {("sklearn", name): place for names, place in _SKLEARN.items() for name in names.split()} | {
    (package, name): place
    for package, table in (("lightgbm", _LIGHTGBM), ("xgboost", _XGBOOST))
    for name, place in table.items()
}
_METHODS = ("predict", "predict_proba", "decision_function")


def key(estimator: Any) -> tuple[str, str] | None:
    """The table's key for an estimator, or None. A subclass counts as its parent unless it answers differently."""
    for parent in type(estimator).__mro__:
        found = (parent.__module__.partition(".")[0], parent.__name__)
        if found in WRITERS:
            own = [vars(child) for child in type(estimator).__mro__[: type(estimator).__mro__.index(parent)]]
            return None if any(method in names for names in own for method in _METHODS) else found
    return None


def write(graph: Graph, estimator: Any, x: str, path: str) -> Answer:
    """Write one fitted estimator into ``graph``.

    Raises:
        ImportRefusedError: nothing here writes it, or not with these settings.
    """
    found = key(estimator)
    if found is None and foreign.convertible(estimator):
        single_output(estimator, path)
        return foreign.converted(graph, estimator, x, path)
    if found is None:
        raise refuse(path, f"{type(estimator).__module__}.{type(estimator).__name__} is not supported")
    single_output(estimator, path)
    module, _, function = WRITERS[found].partition(":")
    answer: Answer = getattr(import_module(f"fastinfer.importing.{module}"), function)(graph, estimator, x, path)
    return answer
