"""Half deviances of exponential families: binomial with logit link, the others with log link."""

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, xlogy

from sklearn_gradhess._loss import Loss

__all__ = [
    "GammaLoss",
    "LogisticLoss",
    "PoissonLoss",
    "TweedieLoss",
    "logistic_bound",
    "probabilities",
]

Array = npt.NDArray[Any]  # float32 or float64, kept


def probabilities(log_odds: Array) -> tuple[Array, Array]:
    """Probability and its complement, both to full relative accuracy, from one exponential."""
    small = np.exp(-np.abs(log_odds))
    large = 1 / (1 + small)
    small *= large
    positive = log_odds >= 0
    return np.where(positive, large, small), np.where(positive, small, large)


def logistic_bound(log_odds: Array) -> Array:
    """Curvature of the quadratic that bounds a log loss and touches it at these log odds."""
    half = np.maximum(0.5 * np.abs(log_odds), 1e-4)  # the limit is 1/4
    return 0.25 * np.tanh(half) / half


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
        p, q = probabilities(raw_prediction)
        return (1 - y) * p - y * q

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Variance of the class, p (1 - p)."""
        p, q = probabilities(raw_prediction)
        return p * q

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature of the quadratic that bounds the loss everywhere and touches it here.

        The second derivative of a confident row is exponentially small, and grows as fast on the
        way back; the bound of Jaakkola and Jordan (2000), tanh(f/2)/(2f), falls like 1/f.
        """
        return logistic_bound(raw_prediction)

    def link(self, mean: Array) -> Array:
        """Log odds, bounded."""
        return logit(np.clip(mean, 1e-6, 1 - 1e-6))

    def mean(self, raw_prediction: Array) -> Array:
        """Probability."""
        return expit(raw_prediction)

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


class _LogLinkLoss(Loss):
    """Half deviance with log link; the variance is a power of the mean."""

    power: float

    def check_y(self, y: Array) -> None:
        """Refuse negative targets, and those beyond the exponential."""
        if y.min() < 0:
            raise ValueError(
                f"{type(self).__name__} needs y >= 0, got min(y) = {y.min():g}. For real-valued "
                "targets use loss='squared_error'."
            )
        if y.max() > 1e100:
            raise ValueError(
                f"max(y) = {y.max():g} is beyond what the exponential of the log link can reach "
                "safely, 1e100. Rescale y: another unit changes the intercept alone."
            )

    @abstractmethod
    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value less its constant, gradient and curvature, which share their exponentials."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Half deviance: zero where the prediction meets the target."""
        return self.all(y, raw_prediction)[0] + self.constant(y)

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Mean minus target, over the mean to the power less one."""
        return self.all(y, raw_prediction)[1]

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Return the derivative of that in the raw prediction."""
        return self.all(y, raw_prediction)[2]

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature, or the slope over the distance to the row's own minimum if that is larger."""
        _, gradient, curvature = self.all(y, raw_prediction)
        distance = 1 + np.abs(raw_prediction - self.link(y))
        return np.maximum(curvature, np.abs(gradient) / distance)

    def link(self, mean: Array) -> Array:
        """Logarithm, bounded."""
        return np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))

    def mean(self, raw_prediction: Array) -> Array:
        """Exponential."""
        return np.exp(raw_prediction)


def _safe_exp(exponent: Array) -> tuple[Array, Array]:
    """Return exp up to a cap, and how far the exponent lies beyond it.

    The exponential overflows at raw predictions that an optimiser can visit. Past half the
    logarithm of the largest float, ``m``, it is continued by its second-order Taylor polynomial,
    ``m (1 + e + e^2/2)``: convex, twice continuously differentiable, finite, and a Newton step
    still finds its way back.
    """
    cap = 0.5 * np.log(np.finfo(exponent.dtype).max)
    inner = np.minimum(exponent, cap)
    return np.exp(inner), exponent - inner


class PoissonLoss(_LogLinkLoss):
    """Half Poisson deviance with log link, ``exp(f) - y f`` minus its minimum over f."""

    name = "poisson"
    asymptotic = True
    power = 1.0

    def constant(self, y: Array) -> Array:
        """Minus the least value of what varies."""
        return xlogy(y, y) - y

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value less its constant, gradient and curvature, from one exponential."""
        mean, excess = _safe_exp(raw_prediction)
        slope = mean
        value = mean - y * raw_prediction
        if excess.any():
            slope = mean * (1 + excess)
            value += mean * excess * (1 + 0.5 * excess)
        return value, slope - y, mean


class GammaLoss(_LogLinkLoss):
    """Half gamma deviance with log link, ``y exp(-f) + f`` minus its minimum over f.

    In any unit of the target it is the same function of ``log(y) - f``. Every row has a minimum of
    its own, so that there is one for all.
    """

    name = "gamma"
    power = 2.0

    def check_y(self, y: Array) -> None:
        """Refuse targets that are not positive."""
        if not y.min() > 0:
            raise ValueError(
                f"GammaLoss needs y > 0, got min(y) = {y.min():g}. For targets that may be zero "
                "use loss='tweedie' or loss='poisson'."
            )

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value, gradient and curvature, from one exponential."""
        exponent = np.log(y) - raw_prediction
        ratio, excess = _safe_exp(exponent)
        slope = ratio * (1 + excess)
        return slope + ratio * (0.5 * excess**2) - exponent - 1, 1 - slope, ratio


class TweedieLoss(_LogLinkLoss):
    """Half Tweedie deviance with log link: variance proportional to a power of the mean.

    Between one and two it is that of a sum of a Poisson number of gamma variables: zero with a
    positive probability, continuous above. With the mean m it is
    ``m^(2-power)/(2-power) + y m^(1-power)/(power-1)`` minus its minimum over m.

    Parameters
    ----------
    power : float, default=1.5
        Power of the mean, between 1 and 2.
    """

    name = "tweedie"
    asymptotic = True

    def __init__(self, power: float = 1.5) -> None:
        self.power = power

    def constant(self, y: Array) -> Array:
        """Minus the least value of what varies."""
        up, down = 2 - self.power, self.power - 1
        return -(y**up) / (up * down)

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value less its constant, gradient and curvature, from two exponentials."""
        up, down = 2 - self.power, self.power - 1
        rising, over = _safe_exp(up * raw_prediction)
        falling, under = _safe_exp(-down * raw_prediction)
        falling = y * falling
        slope_up, slope_down = rising * (1 + over), falling * (1 + under)
        value = (slope_up + rising * (0.5 * over**2)) / up
        value += (slope_down + falling * (0.5 * under**2)) / down
        return value, slope_up - slope_down, up * rising + down * falling

    @property
    def parameters(self) -> dict[str, float]:
        """Of the mean."""
        return {"power": self.power}

    @property
    def calibration(self) -> dict[str, Any]:
        """Parameters of an estimator."""
        return {"loss": self.name, **self.parameters}
