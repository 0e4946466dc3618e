"""Metrics of predictions under the worst attack, and of a classifier: exact, no attack is run."""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.utils.validation import check_consistent_length

from sklearn_gradhess._scorer import AdversarialScorer, checked_radius
from sklearn_gradhess._validation import check_weights
from sklearn_gradhess._worst import Loss, raw_loss

__all__ = [
    "adversarial_accuracy",
    "adversarial_loss",
    "adversarial_mean_absolute_error",
    "adversarial_mean_squared_error",
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


def adversarial_loss(
    y_true: Any,
    raw_prediction: Any,
    *,
    radius: Any,
    dual_norm: Any,
    loss: Any,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
    quantile: float = 0.5,
    epsilon: float = 1.35,
) -> Any:
    """Compute the mean of any convex loss of an affine raw prediction under the worst attack.

    The attack moves the raw prediction f to anywhere in ``[f - r D, f + r D]``, D being the dual
    norm of the coefficients, and a convex loss is largest at an end: the mean over rows of the
    larger of ``loss(y, f - r D)`` and ``loss(y, f + r D)``. Exact for any data.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets; 0 and 1 for "log_loss".
    raw_prediction : array-like of the shape of `y_true`
        Raw predictions at the rows that were not attacked, before the inverse link: the logarithm
        of the mean for "poisson" and "gamma", the log odds for "log_loss".
    radius : float or array-like
        Radius of the attack, in the units in which `dual_norm` was taken. An array gives a curve.
    dual_norm : float or array-like of shape (n_outputs,)
        Dual norm of the coefficients of the raw prediction.
    loss : str, callable or object
        "squared_error" (or "mse"), "absolute_error" (or "mae"), "quantile", "huber", "poisson",
        "gamma" or "log_loss", in the units of scikit-learn's metrics: squared errors are not
        halved, "poisson" and "gamma" are deviances. Or a function ``loss(y, raw_prediction)`` of
        two arrays, or an object with such a method `value`, convex in the raw prediction.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    multioutput : {"raw_values", "uniform_average"} or array-like of shape (n_outputs,), \
default="uniform_average"
        As in `adversarial_mean_squared_error`.
    quantile : float in [0, 1], default=0.5
        For loss="quantile", the pinball loss.
    epsilon : float > 0, default=1.35
        For loss="huber", ``e^2 / 2`` for errors e below epsilon and ``epsilon |e| - epsilon^2 / 2``
        above.

    Returns
    -------
    risk : float or ndarray
        Of the shape of `radius`, with an axis of length n_outputs appended for "raw_values".

    Raises
    ------
    ValueError
        If a radius or dual norm is negative or not finite, the loss is unknown, is not finite or
        returns another shape, targets are outside its range, or the shapes do not agree.

    References
    ----------
    MATH section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_gradhess.metrics import adversarial_loss
    >>> adversarial_loss([0, 1], [-1.0, 2.0], radius=[0.0, 0.5], dual_norm=2.0, loss="log_loss")
    array([0.22009485, 0.50320443])
    >>> def fourth(y, raw):
    ...     return (raw - y) ** 4
    >>> adversarial_loss([0, 1], [1.0, 2.0], radius=1.0, dual_norm=1.0, loss=fourth)
    16.0
    """
    y, raw = (np.asarray(a, dtype=np.float64) for a in (y_true, raw_prediction))
    check_consistent_length(y, raw)
    if raw.ndim not in (1, 2) or raw.size != y.size or not np.isfinite(raw).all():
        raise ValueError(
            f"raw_prediction must be finite and of the shape of y_true, {y.shape}, got shape "
            f"{raw.shape} with {np.sum(~np.isfinite(raw))} NaN or infinite entries."
        )
    y, raw = (a.reshape(len(a), -1) for a in (y, raw))
    weights = check_weights(sample_weight, raw)
    value = raw_loss(loss, y, quantile=quantile, epsilon=epsilon)
    reach = _reach(radius, dual_norm, raw.shape[1])
    risk = np.empty(reach.shape)
    for i in np.ndindex(reach.shape[:-1]):
        ends = [_loss_at(value, y, raw + sign * reach[i]) for sign in (-1, 1)]
        risk[i] = np.average(np.maximum(*ends), axis=0, weights=weights)
    return _averaged(risk, multioutput)


def _loss_at(loss: Loss, y: Array, raw: Array) -> Array:
    with np.errstate(over="ignore"):
        value = np.asarray(loss(y, raw), dtype=np.float64)
    if value.shape != y.shape or np.isnan(value).any():
        raise ValueError(
            f"loss must return one number for each of the {y.shape} targets, got shape "
            f"{value.shape} with {np.isnan(value).sum()} NaN. It is given arrays of two axes."
        )
    return value


def _reach(radius: Any, dual: Any, n_outputs: int) -> Array:
    """Largest change of each prediction, of shape (*radius.shape, n_outputs)."""
    duals = np.asarray(dual, dtype=np.float64)
    known = np.all((duals >= 0) & np.isfinite(duals))
    if not known or duals.shape not in ((), (1,), (n_outputs,)):
        raise ValueError(
            f"dual_norm must be finite and >= 0, one number or one for each of the {n_outputs} "
            f"outputs, got {dual!r}."
        )
    return checked_radius(radius)[..., None] * np.broadcast_to(duals, n_outputs)


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
        if not np.all((weights >= 0) & np.isfinite(weights)) or not weights.any():
            raise ValueError(
                "The weights of outputs in multioutput must be >= 0, finite and not all zero, got "
                f"{multioutput!r}."
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
    n_columns: int | None = None,
    integer: Any = "auto",
    categories: Any = None,
    link: str = "auto",
    max_queries: int = 200,
    random_state: Any = 0,
) -> Any:
    """Compute the share of rows that a linear classifier gets right whatever the attack.

    A row counts if ``f_y - f_j > r ||w_y - w_j||_*`` for every other class j: exact, binary and
    multiclass. Ties count as wrong, so at radius zero this is the accuracy, but for rows on a
    decision boundary.

    Parameters
    ----------
    estimator : object
        Fitted classifier, or pipeline, whose `decision_function` is affine in X, or the log odds
        of its `predict_proba`.
    X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
        Rows, in raw units.
    y : array-like of shape (n_samples,)
        Labels.
    radius : float or array-like
        Radius of the attack, in the units of X, or as a multiple of `scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack.
    scale : float, dict, or array-like of shape (n_features,), default=None
        Budget of each column, by position or by name; zero freezes it, and so does a dict that
        does not name it.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        Covariance of the Mahalanobis norm, see `make_adversarial_scorer`.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take, for norm=inf.
    on_nonaffine : {"raise", "linearize", "search"}, default="raise"
        What to do if the scores are not affine, see `make_adversarial_scorer`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    n_columns : int, default=None
        Most columns that the attack moves in a row. None is all.
    integer : "auto", None, or array-like of str, int or bool, default="auto"
        Columns that move by whole steps, see `make_adversarial_scorer`.
    categories : list or dict, default=None
        Categories that the attack may change, see `make_adversarial_scorer`.
    link : {"auto", "identity", "logit"}, default="auto"
        What is affine: the decision function, or the log odds of `predict_proba`.
    max_queries : int, default=200
        Most predictions that a search spends on each row.
    random_state : int, RandomState instance or None, default=0
        Of a search.

    Returns
    -------
    accuracy : float or ndarray
        Share of robust rows, of the shape of `radius`.

    Raises
    ------
    ValueError
        If the classifier has no scores that are affine and decide what it predicts, labels are of
        another type than it was fitted on, or the attack does not fit X.

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
    scorer = AdversarialScorer(
        radius=0.0,
        norm=norm,
        metric="accuracy",
        feature_scale=scale,
        scale_name="scale",
        features=features,
        bounds=bounds,
        covariance=covariance,
        n_columns=n_columns,
        integer=integer,
        categories=categories,
        link=link,
        on_nonaffine=on_nonaffine,
        max_queries=max_queries,
        random_state=random_state,
    )
    return scorer.curve(estimator, X, y, checked_radius(radius), sample_weight)
