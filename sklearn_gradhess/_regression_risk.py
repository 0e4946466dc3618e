"""Risk of regressors under attack: each metric as scikit-learn defines it, of the worst ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    mean_absolute_error,
    mean_gamma_deviance,
    mean_pinball_loss,
    mean_poisson_deviance,
    mean_squared_error,
    r2_score,
    root_mean_squared_error,
)

from sklearn_gradhess._attack_on_table import AttackOnTable
from sklearn_gradhess._linear import LinearResponse, linear_predictions
from sklearn_gradhess._link import IDENTITY
from sklearn_gradhess._options import (
    AdversarialRisk,
    Options,
    by_search,
    curve,
    kind_of,
    responses_of,
)
from sklearn_gradhess._probe import check_finite, respond
from sklearn_gradhess._validation import check_weights
from sklearn_gradhess._worst import (
    Loss,
    absolute,
    gamma_deviance,
    joint_square,
    make_pinball,
    poisson_deviance,
    squared,
    worse,
)

__all__ = ["regression_risk"]

Array = npt.NDArray[np.float64]


class _Regression(NamedTuple):
    """A loss that falls to its minimum and then rises, and its mean as scikit-learn has it."""

    loss: Loss
    mean: Callable[..., Any]
    positive: bool = False  # whether predictions must be


def _regression(options: Options) -> _Regression:
    def pinball(y: Array, worst: Array, **kwargs: Any) -> Any:
        return mean_pinball_loss(y, worst, alpha=options.quantile, **kwargs)

    return {
        "mse": _Regression(squared, mean_squared_error),
        "rmse": _Regression(squared, root_mean_squared_error),
        "mae": _Regression(absolute, mean_absolute_error),
        "r2": _Regression(squared, r2_score),
        "quantile": _Regression(make_pinball(options.quantile), pinball),
        "poisson": _Regression(poisson_deviance, mean_poisson_deviance, positive=True),
        "gamma": _Regression(gamma_deviance, mean_gamma_deviance, positive=True),
    }[options.metric]


def regression_risk(
    estimator: Any, attack: AttackOnTable, y: Any, radii: Array, weights: Any, options: Options
) -> AdversarialRisk:
    """Risk of a regressor, or its R2, at each of the radii."""
    metric, most = _regression(options), float(radii.max(initial=0.0))
    weights = check_weights(weights, np.empty((attack.table.n_rows, 1)))
    found = linear_predictions(estimator, attack, options.link, options.on_nonaffine, most)
    if found is None:
        return _searched_regression(estimator, attack, y, radii, weights, options)
    y_pred = found.link.inverse(found.raw)
    y = np.asarray(y)
    if metric.positive and not np.all(y_pred > 0):
        raise ValueError(_not_positive(estimator, options, y_pred, "at rows of X"))
    metric.mean(y, y_pred[:, 0] if found.is_vector else y_pred, sample_weight=weights)  # checks y
    y = y.astype(np.float64).reshape(y_pred.shape)
    if options.multioutput == "joint":
        return _joint(found, attack, y, radii, weights, options)

    def at(radius: float) -> Any:
        low, high = found.ends(attack, radius)
        if metric.positive and not np.all(low > 0):
            raise ValueError(
                _not_positive(estimator, options, low, f"under a radius of {radius:g}")
            )
        if not np.all(np.isfinite(high)):
            raise ValueError(
                f"A radius of {radius:g} takes predictions of {type(estimator).__name__} behind "
                f"the link {found.link.name!r} beyond all floats. Is it in the units of X? Lower "
                "it, or give feature_scale."
            )
        return metric.mean(y, worse(y, low, high, metric.loss), sample_weight=weights)

    several = y.shape[1] > 1 and options.multioutput != "joint"
    kind = kind_of(found, "upper bound" if several and options.metric != "r2" else "exact")
    if several and options.metric == "r2":
        kind = kind_of(found, "lower bound")
    return AdversarialRisk(curve(radii, at), kind, found.link.name if found.is_affine else None)


def _not_positive(estimator: Any, options: Options, low: Array, where: str) -> str:
    n = int(np.sum(np.any(low <= 0, axis=1)))
    return (
        f"metric={options.metric!r} needs positive predictions, but {where} "
        f"{type(estimator).__name__} has {n} of {len(low)} at zero or below, the least of them "
        f"{low.min():.3g}. Use a model with a log link, such as PoissonRegressor, a smaller "
        "radius, or another metric."
    )


def _joint(
    found: LinearResponse,
    attack: AttackOnTable,
    y: Array,
    radii: Array,
    weights: Any,
    options: Options,
) -> AdversarialRisk:
    """One attack on all outputs at once: the mean over outputs of squared errors, exactly."""
    round_ball = attack.order in (2.0, None) and not attack.is_box and not attack.groups
    if options.metric not in ("mse", "r2") or not round_ball or attack.n_columns is not None:
        raise ValueError(
            "multioutput='joint' has a closed form for metric='mse' or 'r2' under norm=2 or "
            "'mahalanobis' alone, without n_columns and categories. Use 'uniform_average', in "
            "which every output is attacked on its own: no less than the risk of one attack on all."
        )
    if found.link is not IDENTITY:
        raise ValueError(
            f"multioutput='joint' needs affine predictions, but these are affine behind the link "
            f"{found.link.name!r}. Use 'uniform_average'."
        )
    importance = np.full(y.shape[1], 1.0 / y.shape[1])
    if options.metric == "r2":
        centred = y - np.average(y, axis=0, weights=weights)
        variance = np.average(np.square(centred), axis=0, weights=weights)
        if not np.all(variance > 0):
            raise ValueError("multioutput='joint' with metric='r2' needs outputs that vary.")
        importance = importance / variance
    root = np.sqrt(importance)
    gram = attack.gram(found.coef) * root * root[:, None]
    error = (found.raw - y) * root

    def at(radius: float) -> float:
        risk = float(np.average(joint_square(error, gram, radius), weights=weights))
        return 1 - risk if options.metric == "r2" else risk

    return AdversarialRisk(
        curve(radii, at), kind_of(found), found.link.name if found.is_affine else None
    )


def _searched_regression(
    estimator: Any, attack: AttackOnTable, y: Any, radii: Array, weights: Any, options: Options
) -> AdversarialRisk:
    metric = _regression(options)
    plain = check_finite(estimator, respond(estimator, attack.table.X, "predict"), "predict")
    y = np.asarray(y)
    metric.mean(y, plain, sample_weight=weights)  # checks y
    y = y.astype(np.float64).reshape(len(plain), -1)
    unit = np.ones(y.shape[1])
    if options.metric == "r2":
        unit = np.maximum(np.var(y, axis=0), np.finfo(float).tiny)

    def loss(response: Array, rows: Any) -> Array:
        values = metric.loss(y[rows], response) / unit
        return np.asarray(np.where(np.isnan(values), np.inf, values).sum(axis=1))

    responses = responses_of(estimator, "predict")

    def at(radius: float) -> Any:
        worst = options.search(responses, attack, radius, loss).response
        if metric.positive and not np.all(worst > 0):
            raise ValueError(_not_positive(estimator, options, worst, f"under radius {radius:g}"))
        return metric.mean(y, worst, sample_weight=weights)

    return by_search(radii, at, options)
