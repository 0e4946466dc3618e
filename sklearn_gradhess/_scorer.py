"""Scorers of models under attack, for `scoring=` wherever scikit-learn takes one."""

from dataclasses import dataclass, fields
from inspect import signature
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.utils.metadata_routing import MetadataRequest

from sklearn_gradhess._attack import Attack
from sklearn_gradhess._classification_risk import (
    accuracy_under_attack,
    auc_under_attack,
    log_loss_under_attack,
)
from sklearn_gradhess._options import SCORES, AdversarialRisk, Options
from sklearn_gradhess._regression_risk import regression_risk
from sklearn_gradhess._table import Table

__all__ = ["AdversarialScorer", "checked_radius", "make_adversarial_scorer"]

Array = npt.NDArray[np.float64]

_CLASSIFICATION = {
    "accuracy": accuracy_under_attack,
    "roc_auc": auc_under_attack,
    "log_loss": log_loss_under_attack,
}


def checked_radius(radius: Any) -> Array:
    """Radii as an array; ValueError unless all are finite and not negative."""
    radii = np.asarray(radius, dtype=np.float64)
    if not np.all((radii >= 0) & np.isfinite(radii)):
        raise ValueError(f"radius must be finite and >= 0, got {radius!r}.")
    return radii


@dataclass(eq=False, repr=False, kw_only=True)
class AdversarialScorer(Attack):
    """What `make_adversarial_scorer` returns; its arguments are attributes."""

    radius: float
    metric: str = "mse"
    link: str = "auto"
    on_nonaffine: str = "raise"
    quantile: float = 0.5
    multioutput: str = "uniform_average"
    max_queries: int = 200
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.feature_scale, str):
            # any table refuses it; on the data only, a search would turn the error into NaN
            Table(np.zeros((1, 1))).by_column(self.feature_scale, self.scale_name)
        if checked_radius(self.radius).ndim != 0:
            raise ValueError(
                "A scorer returns one number, so radius must be one. For a curve over radii use "
                "adversarial_mean_squared_error or adversarial_accuracy."
            )
        told = {field.name: getattr(self, field.name) for field in fields(Options)}
        self.options = Options(**told)
        is_score = self.metric in SCORES
        bound = ""
        if self.on_nonaffine == "search":
            bound = "_upper_bound" if is_score else "_lower_bound"
        # where scikit-learn labels an axis, as with a function
        self.__name__ = f"{'' if is_score else 'neg_'}adversarial_{self.metric}{bound}"

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Score a fitted estimator: the negative risk, or the score, under attack."""
        value = self.curve(estimator, X, y, self.radius, sample_weight)
        return value if self.metric in SCORES else -value

    def curve(self, estimator: Any, X: Any, y: Any, radius: Any, sample_weight: Any = None) -> Any:
        """Return the risk, or the score, at one radius or at an array of them."""
        return self.explain(estimator, X, y, radius, sample_weight).value

    def explain(
        self, estimator: Any, X: Any, y: Any, radius: Any = None, sample_weight: Any = None
    ) -> AdversarialRisk:
        """Return the risk, what it is of the true one, and the link behind which it was found."""
        radii = checked_radius(self.radius if radius is None else radius)
        measure = _CLASSIFICATION.get(self.metric, regression_risk)
        risk = measure(estimator, self.on(Table(X)), y, radii, sample_weight, self.options)
        return risk._replace(value=float(risk.value)) if radii.ndim == 0 else risk

    def __repr__(self) -> str:
        told = [f"{self.radius:g}"]
        for name, parameter in signature(make_adversarial_scorer).parameters.items():
            value = getattr(self, name)
            is_plain = value is None or isinstance(value, str | float | int)
            if name != "radius" and not (is_plain and value == parameter.default):
                told.append(f"{name}={_short(value)}")
        return f"make_adversarial_scorer({', '.join(told)})"

    def _accept_sample_weight(self) -> bool:
        # what scikit-learn's searches ask of a scorer while metadata routing is off
        return True

    def set_score_request(self, *, sample_weight: bool | str | None) -> Self:
        """Ask for sample weights (True, or the name of other metadata) or refuse them (False)."""
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "This method is only available when metadata routing is enabled. Enable it with "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        self._weight_request = sample_weight
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Tell which metadata the scorer asks for."""
        request = MetadataRequest(owner=repr(self))
        alias = getattr(self, "_weight_request", None)
        request.score.add_request(param="sample_weight", alias=alias)
        return request


def _short(value: Any) -> str:
    """Print a value on one line, and arrays by their shape."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if hasattr(value, "shape") and np.ndim(value) > 0:
        return f"<array of shape {value.shape}>"
    return " ".join(repr(value).split())


def make_adversarial_scorer(
    radius: float,
    norm: Any = 2,
    *,
    metric: str = "mse",
    feature_scale: Any = None,
    features: Any = None,
    bounds: Any = None,
    covariance: Any = None,
    n_columns: int | None = None,
    integer: Any = "auto",
    categories: Any = None,
    link: str = "auto",
    on_nonaffine: str = "raise",
    quantile: float = 0.5,
    multioutput: str = "uniform_average",
    max_queries: int = 200,
    random_state: Any = 0,
) -> AdversarialScorer:
    r"""Make a scorer of models under attack, for `scoring=` wherever scikit-learn takes one.

    It finds the coefficients of any model that is affine, or affine behind a link, in raw units
    (`effective_coef`), and returns the negative of the exact risk under the worst attack, or the
    score that survives it.

    Parameters
    ----------
    radius : float
        Radius of the attack, in raw units of X, or as a multiple of `feature_scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack: delta / feature_scale has norm at most `radius`.
    metric : str, default="mse"
        "mse", "rmse", "mae", "r2", "quantile" (`mean_pinball_loss` at `quantile`), "poisson" or
        "gamma" (mean deviances) of a regressor; "log_loss", "accuracy" or "roc_auc" (two classes)
        of a classifier: each as scikit-learn defines it. "r2", "accuracy" and "roc_auc" come back
        as they are, the others with a minus.
    feature_scale : float, dict, or array-like of shape (n_features,), default=None
        Unit of the radius in each column, by position or by name; zero freezes the column, and so
        does a dict that does not name it. None is the raw unit. It must be numbers: see Notes.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers,
        dummies included; columns of categories, strings and dates never move.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take after the attack: numbers, arrays of shape
        (n_features,), or dicts by name, which leave the other columns without bound. For norm=inf.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        For norm="mahalanobis": covariance of the columns of X, conditioned on those that do not
        move, or of the columns under attack alone; or a fitted estimator that has it. With names
        (a data frame, an estimator with `feature_names_in_`) it is matched to X by these.
    n_columns : int, default=None
        Most columns, categories included, that the attack moves in a row. None is all.
    integer : "auto", None, or array-like of str, int or bool, default="auto"
        Columns that move by whole steps, for norm=inf; booleans flip where their budget is one
        step. "auto" is those of an integer or boolean dtype. Under other norms, and for None, they
        move as floats, which is no less than the risk.
    categories : list or dict, default=None
        Categories that the attack may change to another of their levels in X, at any radius above
        zero: columns by name or position, lists of columns for one-hot groups, or the start of
        their names ("color" for "color_red" and "color_blue"). A dict gives groups names of their
        own; a `feature_scale` by these names makes a change cost one step of the budget.
    link : {"auto", "identity", "log", "log1p", "logit"}, default="auto"
        What is affine: for regressors the prediction, its logarithm, or that of one more; for
        classifiers the decision function ("identity") or the log odds of `predict_proba`. "auto"
        tries them in turn. `explain` tells which it was.
    on_nonaffine : {"raise", "linearize", "search"}, default="raise"
        What to do with a model that is not affine in these columns. "linearize" scores its
        first-order expansion at the scale of the features: neither an upper nor a lower bound.
        "search" looks for the worst row by predictions alone: a lower bound of the risk, and an
        upper bound of a score. A model that is affine has its exact risk all the same.
    quantile : float in [0, 1], default=0.5
        For metric="quantile".
    multioutput : {"uniform_average", "joint"}, default="uniform_average"
        With several outputs, attack each on its own and average, which is no less than the risk of
        one attack on all; or "joint", that one attack, exactly, for "mse" and "r2" under norm=2 and
        "mahalanobis".
    max_queries : int, default=200
        Most predictions that a search spends on each row.
    random_state : int, RandomState instance or None, default=0
        Of a search.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, sample_weight=None)``; with metadata routing enabled,
        ``scorer.set_score_request(sample_weight=True)`` asks for weights.
        ``scorer.curve(estimator, X, y, radius)`` is the risk itself, over an array of radii, and
        ``scorer.explain(estimator, X, y)`` an `AdversarialRisk`, which says whether it is exact.

    Raises
    ------
    ValueError
        If the attack is not well defined, or `feature_scale` is a string; by the scorer, if the
        model is not affine, predictions are NaN, columns do not fit, or bounds exclude the data.

    Notes
    -----
    The unit of the radius must be fixed before models are compared: the same ridge model has
    coefficients of norm 14.7 in raw units and 63.5 per standard deviation, as the example shows. A
    scale taken anew from every fold would attack every model by another amount.

    Every row of X and some attacked rows are compared with the affine map that was found, as are
    the labels of a classifier near where they change: what passes is affine on this X.

    RFECV and SequentialFeatureSelector hand over some of the columns of X as an array, so that
    names and a scale for all of them do not fit. Put the selector into a pipeline (RFE,
    SelectKBest, SequentialFeatureSelector itself) and search its parameter with this scorer; or
    standardise X beforehand, and leave the scale out.

    A missing value does not move: where the model imputes it, the risk of the other columns is
    returned, exactly. norm="mahalanobis" refuses missing values.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_gradhess.metrics import dual_norm, make_adversarial_scorer
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> coef = Ridge(100).fit(X, y).coef_
    >>> round(dual_norm(coef), 1), round(dual_norm(coef, scale=X.std(axis=0)), 1)
    (14.7, 63.5)
    >>> scorer = make_adversarial_scorer(0.5, feature_scale=X.std(axis=0))
    >>> scorer
    make_adversarial_scorer(0.5, feature_scale=<array of shape (10,)>)
    >>> grid = {"alpha": [1, 10, 100, 1000]}
    >>> GridSearchCV(Ridge(), grid).fit(X, y).best_params_
    {'alpha': 1}
    >>> GridSearchCV(Ridge(), grid, scoring=scorer).fit(X, y).best_params_
    {'alpha': 10}
    """
    return AdversarialScorer(
        radius=radius,
        norm=norm,
        metric=metric,
        feature_scale=feature_scale,
        features=features,
        bounds=bounds,
        covariance=covariance,
        n_columns=n_columns,
        integer=integer,
        categories=categories,
        link=link,
        on_nonaffine=on_nonaffine,
        quantile=quantile,
        multioutput=multioutput,
        max_queries=max_queries,
        random_state=random_state,
    )
