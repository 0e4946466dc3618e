"""Losses of each prediction, and the worst that an attack can make of them.

An attack moves an affine prediction to anywhere in an interval. A loss that falls to its minimum
and then rises is largest at one of the two ends: every loss convex in the raw prediction, and every
such loss after a monotone link (MATH section 5.3).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

__all__ = [
    "RAW_LOSSES",
    "Loss",
    "absolute",
    "gamma_deviance",
    "joint_square",
    "make_pinball",
    "poisson_deviance",
    "raw_loss",
    "squared",
    "worse",
]

Array = npt.NDArray[np.float64]
Loss = Callable[[Array, Array], Array]


def squared(y: Array, prediction: Array) -> Array:
    """Squared error."""
    return np.square(prediction - y)


def absolute(y: Array, prediction: Array) -> Array:
    """Absolute error."""
    return np.abs(prediction - y)


def make_pinball(quantile: float) -> Loss:
    """Pinball loss at a quantile."""

    def pinball(y: Array, prediction: Array) -> Array:
        return np.maximum(quantile * (y - prediction), (quantile - 1) * (y - prediction))

    return pinball


def poisson_deviance(y: Array, prediction: Array) -> Array:
    """Poisson deviance of a positive mean."""
    return np.asarray(2 * (xlogy(y, y / prediction) - y + prediction))


def gamma_deviance(y: Array, prediction: Array) -> Array:
    """Gamma deviance of a positive target and mean."""
    return np.asarray(2 * (np.log(prediction / y) + y / prediction - 1))


def _huber(epsilon: float) -> Loss:
    def huber(y: Array, prediction: Array) -> Array:
        error = np.abs(prediction - y)
        inner = np.minimum(error, epsilon)
        return np.asarray(inner * (error - 0.5 * inner))

    return huber


def _poisson_raw(y: Array, raw: Array) -> Array:
    return np.asarray(2 * (np.exp(raw) - y * raw + xlogy(y, y) - y))


def _gamma_raw(y: Array, raw: Array) -> Array:
    return np.asarray(2 * (raw - np.log(y) + y * np.exp(-raw) - 1))


def _log_loss(y: Array, raw: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, raw) - y * raw)


RAW_LOSSES = (
    "squared_error",
    "absolute_error",
    "quantile",
    "huber",
    "poisson",
    "gamma",
    "log_loss",
)
_ALIASES = {"mse": "squared_error", "mae": "absolute_error"}


def raw_loss(loss: Any, y: Array, *, quantile: float, epsilon: float) -> Loss:
    """Find the loss of a raw prediction by its name, and check that targets are in its range."""
    if callable(loss):
        return loss
    if callable(getattr(loss, "value", None)):
        return loss.value
    name = _ALIASES.get(loss, loss) if isinstance(loss, str) else loss
    if name not in RAW_LOSSES:
        raise ValueError(
            f"loss must be one of {list(RAW_LOSSES)}, a function of y and the raw prediction, or "
            f"an object with such a method value, got {loss!r}."
        )
    low, high = {"poisson": (0.0, np.inf), "gamma": (5e-324, np.inf), "log_loss": (0.0, 1.0)}.get(
        name, (-np.inf, np.inf)
    )
    if not np.all((y >= low) & (y <= high) & np.isfinite(y)):
        bound = "> 0" if name == "gamma" else ">= 0" if name == "poisson" else "in [0, 1]"
        raise ValueError(
            f"y_true must be finite{f' and {bound}' if np.isfinite(low) else ''} for "
            f"loss={loss!r}, got values from {np.min(y):g} to {np.max(y):g}."
        )
    if not (0 <= quantile <= 1 and epsilon > 0):
        raise ValueError(
            f"quantile must lie in [0, 1] and epsilon be positive, got {quantile!r}, {epsilon!r}."
        )
    return {
        "squared_error": squared,
        "absolute_error": absolute,
        "quantile": make_pinball(quantile),
        "huber": _huber(epsilon),
        "poisson": _poisson_raw,
        "gamma": _gamma_raw,
        "log_loss": _log_loss,
    }[name]


def worse(y: Array, low: Array, high: Array, loss: Loss) -> Array:
    """End of the interval from low to high at which the loss is larger, for each prediction."""
    with np.errstate(over="ignore"):
        return np.where(loss(y, low) > loss(y, high), low, high)


def joint_square(error: Array, gram: Array, radius: float) -> Array:
    """Largest ``|error + W delta|^2`` over ``|delta| <= radius``, for each row, from ``W W'``.

    A convex quadratic on a ball. At its maximum ``(t - W'W) delta = W' error`` with t no less than
    the largest eigenvalue, so with eigenpairs (g_k, u_k) of W W' and ``a_k = (u_k'error)^2``

        sum_k g_k a_k / (t - g_k)^2 = radius^2,   maximum = sum_k a_k t^2 / (t - g_k)^2,

    the first of which decreases in t: one equation for each row, solved by bisection.

    Parameters
    ----------
    error : ndarray of shape (n_rows, n_outputs)
        Errors before the attack.
    gram : ndarray of shape (n_outputs, n_outputs) or (n_rows, n_outputs, n_outputs)
        W W', W the coefficients in units in which the attack is a ball.
    radius : float
        Radius of the ball.
    """
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0.0)
    top = values[..., -1:]
    reach = np.broadcast_to(radius * np.sqrt(top), (len(error), 1))
    share = np.broadcast_to(values / np.where(top > 0, top, 1.0), error.shape)
    gap = 1 - share
    a = np.square(np.einsum("...ki,...k->...i", vectors, error))
    # where the error has no part along the strongest direction a hair of it is as good
    a = np.maximum(a, 1e-32 * (a.sum(axis=1, keepdims=True) + reach**2))
    still = reach == 0
    reach, a = np.where(still, 1.0, reach), np.where(still, 1.0, a)
    # m = t / g_1 - 1: the strongest term alone bounds it from below, all of them from above
    low, high = np.sqrt(a[:, -1:]) / reach, np.sqrt(np.sum(share * a, axis=1))[:, None] / reach
    low = np.maximum(low, np.finfo(float).tiny)
    high = np.maximum(low, high)
    for _ in range(64):
        middle = np.sqrt(low) * np.sqrt(high)
        length = np.sum(share * a / (middle + gap) ** 2, axis=1, keepdims=True)
        low, high = (
            np.where(length > reach**2, middle, low),
            np.where(length > reach**2, high, middle),
        )
    m = np.sqrt(low) * np.sqrt(high)
    largest = np.sum(a * ((m + 1) / (m + gap)) ** 2, axis=1)
    return np.where(still[:, 0], np.sum(np.square(error), axis=1), largest)
