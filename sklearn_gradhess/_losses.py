"""Half losses: value, gradient and curvature with respect to the raw prediction.

The convention is scikit-learn's: ``raw_prediction`` is what the linear predictor returns, before
the inverse link, and the squared loss carries the factor one half, so that its Hessian is the data
covariance (MATH section 1). Every method keeps the dtype and is safe at raw predictions far beyond
+-1e3, until their square overflows.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import logit, logsumexp, softmax, xlogy

__all__ = [
    "HuberLoss",
    "LogisticLoss",
    "Loss",
    "MultinomialLoss",
    "PoissonLoss",
    "SquaredLoss",
    "make_loss",
]

Array = npt.NDArray[np.floating]


# Keeps a preconditioner regular where every row of a direction is flat
_STIFF = 1e-9


class Loss(Protocol):
    """What an estimator needs to know of a loss.

    Attributes
    ----------
    name : str
        What users call it.
    largest_curvature : float
        Least upper bound of `curvature`.
    """

    name: str
    largest_curvature: float = np.inf

    def check_y(self, y: Array) -> None:
        """Raise ValueError if a target lies outside the loss's range."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Loss of each row."""

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """First derivative of each row's loss with respect to its raw prediction."""

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Second derivative of each row's loss with respect to its raw prediction, >= 0."""

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature that a step of some length meets: what a preconditioner should assume.

        No less than the second derivative, and positive. Where a loss is almost straight, a step
        by its second derivative would overshoot to where it is not.
        """

    def link(self, mean: Array) -> Array:
        """Raw prediction that fits a mean target, near enough to start from; finite."""

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array, Array]:
        """Value, gradient, curvature and stiffness; a loss may share work between them."""
        return (
            self.value(y, raw_prediction),
            self.gradient(y, raw_prediction),
            self.curvature(y, raw_prediction),
            self.stiffness(y, raw_prediction),
        )


def _probabilities(log_odds: Array) -> tuple[Array, Array]:
    """Probability and its complement, both to full relative accuracy, from one exponential."""
    small = np.exp(-np.abs(log_odds))
    large = 1 / (1 + small)
    small *= large
    positive = log_odds >= 0
    return np.where(positive, large, small), np.where(positive, small, large)


def _logistic_bound(log_odds: Array) -> Array:
    half = np.maximum(0.5 * np.abs(log_odds), 1e-4)  # the limit is 1/4
    return 0.25 * np.tanh(half) / half


class SquaredLoss(Loss):
    """Half squared error, ``(raw_prediction - y)^2 / 2``."""

    name = "squared_error"
    largest_curvature = 1.0

    def check_y(self, y: Array) -> None:
        """Accept every finite target."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Half the squared residual."""
        return 0.5 * np.square(raw_prediction - y)

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Residual, prediction minus target."""
        return raw_prediction - y

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """One."""
        return np.ones_like(raw_prediction)

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """One."""
        return np.ones_like(raw_prediction)

    def link(self, mean: Array) -> Array:
        """Identity."""
        return mean


class HuberLoss(Loss):
    """Huber's loss: half squared within `epsilon` of the target, linear beyond.

    Parameters
    ----------
    epsilon : float, default=1.35
        Where the loss turns linear, in the units of the target.
    """

    name = "huber"
    largest_curvature = 1.0

    def __init__(self, epsilon: float = 1.35) -> None:
        self.epsilon = epsilon

    def check_y(self, y: Array) -> None:
        """Accept every finite target."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Half squared residual, continued by its tangent."""
        residual = np.abs(raw_prediction - y)
        inner = np.minimum(residual, self.epsilon)
        return inner * (residual - 0.5 * inner)

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Residual, clipped to plus or minus `epsilon`."""
        return np.clip(raw_prediction - y, -self.epsilon, self.epsilon)

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """One within `epsilon` of the target, zero beyond."""
        inside = np.abs(raw_prediction - y) <= self.epsilon
        return inside.astype(raw_prediction.dtype)

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Slope over distance, the weight of iteratively reweighted least squares; bounds Huber."""
        return self.epsilon / np.maximum(np.abs(raw_prediction - y), self.epsilon)

    def link(self, mean: Array) -> Array:
        """Identity."""
        return mean


class LogisticLoss(Loss):
    """Binomial log loss with logit link, targets in [0, 1].

    No difference of nearly equal numbers is formed, so the value and both derivatives keep their
    relative accuracy in the tails.
    """

    name = "log_loss"
    largest_curvature = 0.25

    def check_y(self, y: Array) -> None:
        """Refuse targets outside [0, 1]."""
        if y.min() < 0 or y.max() > 1:
            raise ValueError(
                f"LogisticLoss needs 0 <= y <= 1, got min(y) = {y.min():g} and max(y) = "
                f"{y.max():g}. Encode the two classes as 0 and 1; for real-valued targets use "
                "loss='squared_error'."
            )

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Negative log likelihood."""
        # softplus(f) - y f, with the large parts of the two cancelled before they are rounded
        linear = np.maximum(raw_prediction, 0) - y * raw_prediction
        return linear + np.log1p(np.exp(-np.abs(raw_prediction)))

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Probability minus target."""
        p, q = _probabilities(raw_prediction)
        return (1 - y) * p - y * q

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Variance of the class, p (1 - p)."""
        p, q = _probabilities(raw_prediction)
        return p * q

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature of the quadratic that bounds the loss everywhere and touches it here.

        The second derivative of a confident row is exponentially small, and grows as fast on the
        way back; the bound of Jaakkola and Jordan (2000), tanh(f/2)/(2f), falls like 1/f.
        """
        return _logistic_bound(raw_prediction)

    def link(self, mean: Array) -> Array:
        """Log odds, bounded."""
        return logit(np.clip(mean, 1e-6, 1 - 1e-6))

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array, Array]:
        """Value, gradient, curvature and stiffness, from one exponential."""
        distance = np.abs(raw_prediction)
        small = np.exp(-distance)
        value = np.maximum(raw_prediction, 0) - y * raw_prediction + np.log1p(small)
        large = 1 / (1 + small)
        # tanh(f/2) / (2 f), by its limit, a quarter, where the difference loses its digits
        stiffness = np.full_like(distance, 0.25)
        np.divide(0.5 * (1 - small) * large, distance, out=stiffness, where=distance > 1e-4)
        small *= large
        positive = raw_prediction >= 0
        gradient = (1 - y) * np.where(positive, large, small)
        gradient -= y * np.where(positive, small, large)
        return value, gradient, large * small, stiffness


class PoissonLoss(Loss):
    """Half Poisson deviance with log link, ``exp(f) - y f`` minus its minimum over f.

    The exponential overflows at raw predictions that an optimiser can visit. Past half the
    logarithm of the largest float it is continued by its second-order Taylor polynomial: convex,
    twice continuously differentiable, finite, and a Newton step still finds its way back.
    """

    name = "poisson"

    def check_y(self, y: Array) -> None:
        """Refuse negative targets."""
        if y.min() < 0:
            raise ValueError(
                f"PoissonLoss needs y >= 0, got min(y) = {y.min():g}. For real-valued targets "
                "use loss='squared_error'."
            )

    @staticmethod
    def _safe_exp(raw_prediction: Array) -> tuple[Array, Array]:
        # exp up to the cap, and how far the raw prediction lies beyond it
        cap = 0.5 * np.log(np.finfo(raw_prediction.dtype).max)
        inner = np.minimum(raw_prediction, cap)
        return np.exp(inner), raw_prediction - inner

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Half deviance: zero where the prediction meets the target."""
        mean, excess = self._safe_exp(raw_prediction)
        return mean * (1 + excess * (1 + 0.5 * excess)) - y * raw_prediction + xlogy(y, y) - y

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Mean minus target."""
        mean, excess = self._safe_exp(raw_prediction)
        return mean * (1 + excess) - y

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Mean, which for the Poisson distribution is the variance."""
        return self._safe_exp(raw_prediction)[0]

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature, or the slope over the distance to the row's own minimum if that is larger."""
        distance = 1 + np.abs(raw_prediction - self.link(y))
        secant = np.abs(self.gradient(y, raw_prediction)) / distance
        return np.maximum(self.curvature(y, raw_prediction), secant) + _STIFF

    def link(self, mean: Array) -> Array:
        """Logarithm, bounded."""
        return np.log(np.maximum(mean, 1e-6))


def make_loss(name: str, *, epsilon: float = 1.35) -> Loss:
    """Return the loss of this name; `epsilon` belongs to "huber" alone."""
    if name == "huber":
        return HuberLoss(epsilon)
    simple: dict[str, type[SquaredLoss] | type[LogisticLoss] | type[PoissonLoss]] = {
        loss.name: loss for loss in (SquaredLoss, LogisticLoss, PoissonLoss)
    }
    if name not in simple:
        raise ValueError(f"Unknown loss {name!r}; known are {sorted([*simple, 'huber'])}.")
    return simple[name]()


class MultinomialLoss(Loss):
    """Multinomial log loss with symmetric softmax link; targets are one-hot rows.

    Unlike the other losses it couples the columns of the raw prediction: `value` has one entry a
    row, `curvature` is the diagonal of the row's Hessian ``diag(p) - p p'``, and
    `hessian_product` multiplies by the whole of it.
    """

    name = "multinomial"
    largest_curvature = 0.25

    def check_y(self, y: Array) -> None:
        """Accept one-hot rows, which the classifier makes itself."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Negative log likelihood of each row."""
        return logsumexp(raw_prediction, axis=1) - np.sum(y * raw_prediction, axis=1)

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Probabilities minus targets."""
        return softmax(raw_prediction, axis=1) - y

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Diagonal of the Hessian, p (1 - p)."""
        p = softmax(raw_prediction, axis=1)
        return p * (1 - p)

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Bound of each class against the rest, as for two classes."""
        p = softmax(raw_prediction, axis=1)
        return _logistic_bound(logit(np.clip(p, 1e-12, 1 - 1e-12)))

    def link(self, mean: Array) -> Array:
        """Centred logarithms of the class frequencies, bounded."""
        raw = np.log(np.maximum(mean, 1e-6))
        return raw - raw.mean(axis=-1, keepdims=True)

    def hessian_product(self, y: Array, raw_prediction: Array, direction: Array) -> Array:
        """Row Hessian times a direction in the raw prediction."""
        p = softmax(raw_prediction, axis=1)
        return p * (direction - np.sum(p * direction, axis=1, keepdims=True))
