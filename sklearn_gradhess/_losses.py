"""Half losses: value, gradient and curvature with respect to the raw prediction.

The convention is scikit-learn's: ``raw_prediction`` is what the linear predictor returns, before
the inverse link, and the squared loss carries the factor one half, so that its Hessian is the data
covariance (MATH section 1). Every method keeps the dtype and is safe at raw predictions far beyond
+-1e3, until their square overflows.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

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

Array = npt.NDArray[Any]  # float32 or float64, kept


class Loss(ABC):
    """What an estimator needs to know of a loss; nobody asks one for its name or its class.

    Attributes
    ----------
    name : str
        As users write it.
    largest_curvature : float
        Least upper bound of `curvature`.
    quadratic : bool
        Whether the second derivative is one everywhere.
    coupling : int
        Bound on the eigenvalues of a row's Hessian over its diagonal: one where the columns of the
        raw prediction are independent, two where they are coupled and a shift of all of them by
        the same number changes nothing.
    likelihood : bool
        Whether the dispersion is known to be one; estimated from the rows elsewhere.
    asymptotic : bool
        Whether the infimum over the raw prediction may lie at infinity, so that some data have no
        minimum without a penalty.
    own_unit : bool
        Whether the loss is in the squared unit of the target; dimensionless otherwise.
    """

    name: ClassVar[str]
    quadratic: ClassVar[bool] = False
    coupling: ClassVar[int] = 1
    likelihood: ClassVar[bool] = False
    asymptotic: ClassVar[bool] = False
    own_unit: ClassVar[bool] = False
    largest_curvature: ClassVar[float] = np.inf

    @abstractmethod
    def check_y(self, y: Array) -> None:
        """Raise ValueError if a target lies outside the loss's range."""

    @abstractmethod
    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Loss of each row."""

    @abstractmethod
    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """First derivative of each row's loss with respect to its raw prediction."""

    @abstractmethod
    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Second derivative of each row's loss with respect to its raw prediction, >= 0."""

    @abstractmethod
    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature that a step of some length meets: what a preconditioner should assume.

        No less than the second derivative. Where a loss is almost straight, a step by its second
        derivative would overshoot to where it is not.
        """

    @abstractmethod
    def link(self, mean: Array) -> Array:
        """Raw prediction that fits a mean target, near enough to start from; finite."""

    def hessian_product(self, y: Array, raw_prediction: Array, direction: Array) -> Array:
        """Row Hessian times a direction in the raw prediction."""
        return self.curvature(y, raw_prediction) * direction

    def target_noise(self, y: Array, raw_prediction: Array, signs: Array) -> Array:
        """Root of each row's Hessian times signs: noise whose covariance is the Hessian."""
        return np.sqrt(self.curvature(y, raw_prediction)) * signs

    def per(self, unit: float) -> "Loss":
        """Return the loss for targets that were divided by a unit."""
        return self

    def constant(self, y: Array) -> Array | float:
        """Part of each row's value that no prediction changes, and that `all` leaves out."""
        return 0.0

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value less its constant, gradient and curvature; a loss may share work between them."""
        return (
            self.value(y, raw_prediction),
            self.gradient(y, raw_prediction),
            self.curvature(y, raw_prediction),
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
    quadratic = True
    own_unit = True
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
    own_unit = True
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

    def per(self, unit: float) -> Loss:
        """Return the loss with `epsilon` in that unit."""
        return HuberLoss(self.epsilon / unit)

    def link(self, mean: Array) -> Array:
        """Identity."""
        return mean


class LogisticLoss(Loss):
    """Binomial log loss with logit link, targets in [0, 1].

    No difference of nearly equal numbers is formed, so the value and both derivatives keep their
    relative accuracy in the tails.
    """

    name = "log_loss"
    likelihood = True
    asymptotic = True
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

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value, gradient and curvature, from one exponential."""
        small = np.exp(-np.abs(raw_prediction))
        value = np.maximum(raw_prediction, 0) - y * raw_prediction + np.log1p(small)
        large = 1 / (1 + small)
        small *= large
        positive = raw_prediction >= 0
        gradient = (1 - y) * np.where(positive, large, small)
        gradient -= y * np.where(positive, small, large)
        return value, gradient, large * small


class PoissonLoss(Loss):
    """Half Poisson deviance with log link, ``exp(f) - y f`` minus its minimum over f.

    The exponential overflows at raw predictions that an optimiser can visit. Past half the
    logarithm of the largest float it is continued by its second-order Taylor polynomial: convex,
    twice continuously differentiable, finite, and a Newton step still finds its way back.
    """

    name = "poisson"
    asymptotic = True

    def check_y(self, y: Array) -> None:
        """Refuse negative targets."""
        if y.min() < 0:
            raise ValueError(
                f"PoissonLoss needs y >= 0, got min(y) = {y.min():g}. For real-valued targets "
                "use loss='squared_error'."
            )
        if y.max() > 1e100:
            raise ValueError(
                f"max(y) = {y.max():g} is beyond what the exponential of the log link can reach "
                "safely, 1e100. Rescale y: another unit changes the intercept alone."
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
        varying = mean * (1 + excess * (1 + 0.5 * excess)) - y * raw_prediction
        return varying + self.constant(y)

    def constant(self, y: Array) -> Array:
        """Minus the least value of what varies."""
        return xlogy(y, y) - y

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
        return np.maximum(self.curvature(y, raw_prediction), secant)

    def link(self, mean: Array) -> Array:
        """Logarithm, bounded."""
        return np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value, gradient and curvature, from one exponential."""
        mean, excess = self._safe_exp(raw_prediction)
        slope = mean
        value = mean - y * raw_prediction
        if excess.any():
            slope = mean * (1 + excess)
            value += mean * excess * (1 + 0.5 * excess)
        return value, slope - y, mean


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
    coupling = 2
    likelihood = True
    asymptotic = True
    largest_curvature = 0.25

    def check_y(self, y: Array) -> None:
        """Accept one-hot rows, which the classifier makes itself."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Negative log likelihood of each row."""
        shifted = raw_prediction - raw_prediction.max(axis=1, keepdims=True)
        return logsumexp(shifted, axis=1) - np.sum(y * shifted, axis=1)

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

    def target_noise(self, y: Array, raw_prediction: Array, signs: Array) -> Array:
        """Root ``diag(sqrt p) - p sqrt(p)'`` of each row's Hessian, times signs."""
        p = softmax(raw_prediction, axis=1)
        scaled = np.sqrt(p) * signs
        return scaled - p * scaled.sum(axis=1, keepdims=True)

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value, gradient and curvature, from one exponential."""
        shifted = raw_prediction - raw_prediction.max(axis=1, keepdims=True)
        p = np.exp(shifted)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        value = np.log(total)[:, 0] - np.sum(y * shifted, axis=1)
        return value, p - y, p * (1 - p)
