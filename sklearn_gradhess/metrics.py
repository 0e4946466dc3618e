"""What the worst attack does to a prediction: exact metrics, scorers, and estimates."""

from dataclasses import dataclass
from inspect import signature
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sklearn_gradhess._affine import (
    EffectiveCoef,
    check_finite,
    check_on_nonaffine,
    effective_coef,
    linear_scores,
    probe,
    require_affine,
    respond,
)
from sklearn_gradhess._attack import Attack
from sklearn_gradhess._gradient_risk import GradientAdversarialRisk, gradient_adversarial_risk
from sklearn_gradhess._risk import dual_norm, gaussian_adversarial_risk
from sklearn_gradhess._table import Table
from sklearn_gradhess._validation import check_weights

__all__ = [
    "EffectiveCoef",
    "GradientAdversarialRisk",
    "adversarial_accuracy",
    "adversarial_mean_absolute_error",
    "adversarial_mean_squared_error",
    "dual_norm",
    "effective_coef",
    "gaussian_adversarial_risk",
    "gradient_adversarial_risk",
    "make_adversarial_scorer",
]

Array = npt.NDArray[np.float64]


def adversarial_mean_squared_error(
    y_true: Any,
    y_pred: Any,
    *,
    radius: Any,
    dual_norm: Any,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
) -> Any:
    """Compute the mean squared error of an affine predictor under the worst attack on its input.

    ``MSE + 2 r D MAE + r^2 D^2``, the mean over rows of the maximum of ``(y - f(x + delta))^2``
    over all delta of norm at most r, where D is the dual norm of the coefficients: exact for any
    data, no attack is run.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    y_pred : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Predictions at the rows that were not attacked.
    radius : float or array-like
        Radius of the attack, in the units in which `dual_norm` was taken. An array gives a curve.
    dual_norm : float or array-like of shape (n_outputs,)
        Dual norm of the coefficients, see `sklearn_gradhess.metrics.dual_norm`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    multioutput : {"raw_values", "uniform_average"} or array-like of shape (n_outputs,), \
default="uniform_average"
        Every output is attacked on its own; one attack on all together does at most that.

    Returns
    -------
    risk : float or ndarray
        Of the shape of `radius`, with an axis of length n_outputs appended for "raw_values".

    Raises
    ------
    ValueError
        If a radius or dual norm is negative or not finite, or the shapes do not agree.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> from sklearn_gradhess.metrics import adversarial_mean_squared_error
    >>> adversarial_mean_squared_error([0, 1, 2], [0, 2, 1], radius=[0.0, 1.0], dual_norm=3.0)
    array([ 0.66666667, 13.66666667])
    """
    mse, mae = (
        np.atleast_1d(metric(y_true, y_pred, sample_weight=sample_weight, multioutput="raw_values"))
        for metric in (mean_squared_error, mean_absolute_error)
    )
    reach = _reach(radius, dual_norm, len(mse))
    return _averaged(mse + 2 * reach * mae + reach**2, multioutput)


def adversarial_mean_absolute_error(
    y_true: Any,
    y_pred: Any,
    *,
    radius: Any,
    dual_norm: Any,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
) -> Any:
    """Compute the mean absolute error of an affine predictor under the worst attack on its input.

    ``MAE + r D``, D the dual norm of the coefficients: exact for any data, no attack is run.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    y_pred : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Predictions at the rows that were not attacked.
    radius : float or array-like
        Radius of the attack, in the units in which `dual_norm` was taken. An array gives a curve.
    dual_norm : float or array-like of shape (n_outputs,)
        Dual norm of the coefficients, see `sklearn_gradhess.metrics.dual_norm`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    multioutput : {"raw_values", "uniform_average"} or array-like of shape (n_outputs,), \
default="uniform_average"
        As in `adversarial_mean_squared_error`.

    Returns
    -------
    risk : float or ndarray
        Of the shape of `radius`, with an axis of length n_outputs appended for "raw_values".

    Raises
    ------
    ValueError
        If a radius or dual norm is negative or not finite, or the shapes do not agree.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> from sklearn_gradhess.metrics import adversarial_mean_absolute_error
    >>> adversarial_mean_absolute_error([0, 1, 2], [0, 2, 0], radius=0.5, dual_norm=3.0)
    2.5
    """
    mae = np.atleast_1d(
        mean_absolute_error(y_true, y_pred, sample_weight=sample_weight, multioutput="raw_values")
    )
    return _averaged(mae + _reach(radius, dual_norm, len(mae)), multioutput)


def _checked_radius(radius: Any) -> Array:
    radii = np.asarray(radius, dtype=np.float64)
    if not np.all((radii >= 0) & np.isfinite(radii)):
        raise ValueError(f"radius must be finite and >= 0, got {radius!r}.")
    return radii


def _reach(radius: Any, dual: Any, n_outputs: int) -> Array:
    """Largest change of each prediction, of shape (*radius.shape, n_outputs)."""
    duals = np.asarray(dual, dtype=np.float64)
    known = np.all((duals >= 0) & np.isfinite(duals))
    if not known or duals.shape not in ((), (1,), (n_outputs,)):
        raise ValueError(
            f"dual_norm must be finite and >= 0, one number or one for each of the {n_outputs} "
            f"outputs, got {dual!r}."
        )
    return _checked_radius(radius)[..., None] * np.broadcast_to(duals, n_outputs)


def _averaged(risk: Array, multioutput: Any) -> Any:
    if isinstance(multioutput, str) and multioutput == "raw_values":
        return risk
    weights = None
    if not isinstance(multioutput, str) or multioutput != "uniform_average":
        weights = np.asarray(multioutput)
        if weights.dtype.kind not in "fiu" or weights.shape != risk.shape[-1:]:
            raise ValueError(
                "multioutput must be 'raw_values', 'uniform_average' or one weight for each of "
                f"the {risk.shape[-1]} outputs, got {multioutput!r}."
            )
    average = np.average(risk, weights=weights, axis=-1)
    return float(average) if average.ndim == 0 else average


def adversarial_accuracy(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    radius: Any,
    norm: Any = 2,
    scale: Any = None,
    covariance: Any = None,
    features: Any = None,
    bounds: Any = None,
    on_nonaffine: str = "raise",
    sample_weight: Any = None,
) -> Any:
    """Compute the share of rows that a linear classifier gets right whatever the attack.

    A row counts if ``f_y - f_j > r ||w_y - w_j||_*`` for every other class j: exact, binary and
    multiclass. Ties count as wrong, so at radius zero this is the accuracy, but for rows on a
    decision boundary.

    Parameters
    ----------
    estimator : object
        Fitted classifier, or pipeline, whose `decision_function` is affine in X.
    X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
        Rows, in raw units.
    y : array-like of shape (n_samples,)
        Labels.
    radius : float or array-like
        Radius of the attack, in the units of X, or as a multiple of `scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack.
    scale : float, dict, or array-like of shape (n_features,), default=None
        Budget of each column, by position or by name; zero freezes it.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        Covariance of the Mahalanobis norm, see `make_adversarial_scorer`.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take, for norm=inf.
    on_nonaffine : {"raise", "linearize"}, default="raise"
        What to do if the decision function is not affine.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.

    Returns
    -------
    accuracy : float or ndarray
        Share of robust rows, of the shape of `radius`.

    Raises
    ------
    ValueError
        If the classifier has no decision function that is affine and decides what it predicts, or
        the attack does not fit X.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_gradhess.metrics import adversarial_accuracy
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> adversarial_accuracy(model, X, y, radius=[0, 0.1, 0.5]).round(3)
    array([0.973, 0.94 , 0.72 ])
    """
    attack = Attack(norm, scale, features, bounds, covariance, "scale")
    return _robust_share(estimator, X, y, radius, attack, on_nonaffine, sample_weight)


def _robust_share(
    estimator: Any, X: Any, y: Any, radius: Any, attack: Attack, on_nonaffine: str, weights: Any
) -> Any:
    radii, found = _checked_radius(radius), attack.on(Table(X))
    score, coef, classes = linear_scores(estimator, X, found.table, found.mask, on_nonaffine)
    y = column_or_1d(y)
    check_consistent_length(score, y)
    weights = check_weights(weights, score)
    robust = np.zeros((radii.size, len(y)), dtype=bool)
    for k, label in enumerate(classes):
        rows = np.flatnonzero(y == label)
        margin = score[rows, k, None] - np.delete(score[rows], k, axis=1)
        rivals = coef[k] - np.delete(coef, k, axis=0)
        for i, r in enumerate(radii.flat if len(rows) else ()):
            robust[i, rows] = np.all(margin + found.changes(rivals, r, rows)[0] > 0, axis=1)
    accuracy = np.average(robust, axis=1, weights=weights).reshape(radii.shape)
    return float(accuracy) if radii.ndim == 0 else accuracy


def make_adversarial_scorer(
    radius: float,
    norm: Any = 2,
    *,
    metric: str = "mse",
    feature_scale: Any = None,
    features: Any = None,
    bounds: Any = None,
    covariance: Any = None,
    on_nonaffine: str = "raise",
) -> "_AdversarialScorer":
    r"""Make a scorer of models under attack, for `scoring=` wherever scikit-learn takes one.

    It finds the coefficients of any affine pipeline in raw units (`effective_coef`), and returns
    the negative of the exact risk under the worst attack.

    Parameters
    ----------
    radius : float
        Radius of the attack, in raw units of X, or as a multiple of `feature_scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack: delta / feature_scale has norm at most `radius`.
    metric : {"mse", "mae", "accuracy"}, default="mse"
        Risk, of which the scorer returns the negative; or the accuracy that survives, as it is.
        Several outputs are attacked each on its own, and averaged.
    feature_scale : float, dict, or array-like of shape (n_features,), default=None
        Unit of the radius in each column, by position or by name; zero freezes the column. None
        is the raw unit. It must be numbers: see Notes.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers,
        dummies included; columns of categories, strings and dates never move.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take after the attack: numbers, arrays of shape
        (n_features,), or dicts by name, which leave the other columns without bound. For norm=inf.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        For norm="mahalanobis": covariance of the columns of X, conditioned on those that do not
        move, or of the columns under attack alone; or a fitted estimator that has it.
    on_nonaffine : {"raise", "linearize"}, default="raise"
        What to do with a model that is not affine in these columns. "linearize" scores its
        first-order expansion at the scale of the features: neither an upper nor a lower bound.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, sample_weight=None)``; with metadata routing enabled,
        ``scorer.set_score_request(sample_weight=True)`` asks for weights.
        ``scorer.curve(estimator, X, y, radius)`` is the risk itself, over an array of radii.

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
    return _AdversarialScorer(
        radius=radius,
        norm=norm,
        metric=metric,
        feature_scale=feature_scale,
        features=features,
        bounds=bounds,
        covariance=covariance,
        on_nonaffine=on_nonaffine,
    )


_RISKS = {"mse": adversarial_mean_squared_error, "mae": adversarial_mean_absolute_error}


@dataclass(eq=False, repr=False, kw_only=True)
class _AdversarialScorer(Attack):
    """What `make_adversarial_scorer` returns; its arguments are attributes."""

    radius: float
    metric: str
    on_nonaffine: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.feature_scale, str):
            # any table refuses it; on the data only, a search would turn the error into NaN
            Table(np.zeros((1, 1))).by_column(self.feature_scale, self.scale_name)
        if _checked_radius(self.radius).ndim != 0:
            raise ValueError(
                "A scorer returns one number, so radius must be one. For a curve over radii use "
                "adversarial_mean_squared_error or adversarial_accuracy."
            )
        if self.metric not in ("mse", "mae", "accuracy"):
            raise ValueError(f"metric must be 'mse', 'mae' or 'accuracy', got {self.metric!r}.")
        check_on_nonaffine(self.on_nonaffine)
        # where scikit-learn labels an axis, as with a function
        prefix = "" if self.metric == "accuracy" else "neg_"
        self.__name__ = f"{prefix}adversarial_{self.metric}"

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Score a fitted estimator: the negative risk, or the accuracy, under attack."""
        value = self.curve(estimator, X, y, self.radius, sample_weight)
        return value if self.metric == "accuracy" else -value

    def curve(self, estimator: Any, X: Any, y: Any, radius: Any, sample_weight: Any = None) -> Any:
        """Return the risk, or the accuracy, at one radius or at an array of them."""
        if self.metric == "accuracy":
            return _robust_share(estimator, X, y, radius, self, self.on_nonaffine, sample_weight)
        radii, found, risk = _checked_radius(radius), self.on(Table(X)), _RISKS[self.metric]
        result = probe(estimator, found.table, found.mask)
        require_affine(result, estimator, self.on_nonaffine)
        y_pred = check_finite(estimator, respond(estimator, X, "predict"), "predict")
        if found.is_uniform:
            dual = found.dual(result.coef)
            return risk(y, y_pred, radius=radii, dual_norm=dual, sample_weight=sample_weight)
        mean_absolute_error(y, y_pred, sample_weight=sample_weight)  # checks the targets
        error = (y_pred - np.asarray(y, dtype=np.float64).reshape(y_pred.shape)).reshape(len(y), -1)
        coef, rows, none = np.atleast_2d(result.coef), np.arange(len(error)), np.zeros_like(error)
        values = np.empty(radii.shape)
        for i, r in np.ndenumerate(radii):
            low, high = found.changes(coef, r, rows)
            worst = np.maximum(np.abs(error + low), np.abs(error + high))
            values[i] = risk(none, worst, radius=0.0, dual_norm=0.0, sample_weight=sample_weight)
        return float(values) if radii.ndim == 0 else values

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
