"""Half losses: value, gradient and curvature with respect to the raw prediction.

The convention is scikit-learn's: ``raw_prediction`` is what the linear predictor returns, before
the inverse link, and the squared loss carries the factor one half, so that its Hessian is the data
covariance (MATH section 1). Every method keeps the dtype and is safe at raw predictions far beyond
+-1e3, until their square overflows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri, xlogy

__all__ = [
    "GammaLoss",
    "HuberLoss",
    "LogisticLoss",
    "Loss",
    "PoissonLoss",
    "QuantileLoss",
    "SquaredLoss",
    "TweedieLoss",
    "logistic_bound",
    "make_loss",
]

Array = npt.NDArray[Any]  # float32 or float64, kept
# Share of the pinball loss by which a quantile may be missed; or of it and a coefficient a row
_GAP = 1e-3
_GAP_OF_RANK = 0.02


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
    power : float or None
        Power of the mean that the variance is proportional to, where the link is the logarithm;
        None for every other link.
    scale : float or None
        Residual scale that the loss is made for, to be estimated with the coefficients; None where
        it takes none.
    scale_tolerance : float
        Relative error of the scale that does no harm.
    """

    name: ClassVar[str]
    quadratic: ClassVar[bool] = False
    coupling: ClassVar[int] = 1
    likelihood: ClassVar[bool] = False
    asymptotic: ClassVar[bool] = False
    own_unit: ClassVar[bool] = False
    power: float | None = None
    scale: float | None = None
    scale_tolerance: ClassVar[float] = 0.0
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

    def mean(self, raw_prediction: Array) -> Array:
        """Target that a raw prediction fits, by the inverse of the link."""
        return raw_prediction

    def hessian_product(self, y: Array, raw_prediction: Array, direction: Array) -> Array:
        """Row Hessian times a direction in the raw prediction."""
        return self.curvature(y, raw_prediction) * direction

    def target_noise(self, y: Array, raw_prediction: Array, signs: Array) -> Array:
        """Root of each row's Hessian times signs: noise whose covariance is the Hessian."""
        return np.sqrt(self.curvature(y, raw_prediction)) * signs

    def per(self, unit: float) -> "Loss":
        """Return the loss for targets that were divided by a unit."""
        return self

    def residual_scale(self, residual: Array, weight: Array, n: float, p: int) -> float:
        """Scale that residuals of n observations have after a fit of p coefficients; or zero."""
        raise NotImplementedError

    def at_scale(self, scale: float, n: float, p: int) -> "Loss":
        """Return the loss for residuals of a scale, of n observations and p coefficients."""
        return self

    def sharpened(self, residual: Array, weight: Array, n: float, p: int) -> "Loss":
        """Return a loss nearer to what it approximates, or itself if it is near enough."""
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What the user says of it, by the name of the parameter."""
        return {}

    @property
    def calibration(self) -> dict[str, Any] | None:
        """Parameters of an estimator whose noise is calibrated to it; None if none can be."""
        return {"loss": self.name}

    @property
    def fitted(self) -> dict[str, float]:
        """What an estimator keeps of it, by the name of the attribute."""
        return {}

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


def logistic_bound(log_odds: Array) -> Array:
    """Curvature of the quadratic that bounds a log loss and touches it at these log odds."""
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
    """Huber's loss: half squared within `epsilon` scales of the target, linear beyond.

    Parameters
    ----------
    epsilon : float, default=1.35
        Where the loss turns linear, in units of the scale.
    scale : float, default=1.0
        Scale of the residuals, in the units of the target.
    """

    name = "huber"
    own_unit = True
    scale: float
    largest_curvature = 1.0

    def __init__(self, epsilon: float = 1.35, scale: float = 1.0) -> None:
        self.epsilon = epsilon
        self.scale = scale
        self.bend = epsilon * scale

    def check_y(self, y: Array) -> None:
        """Accept every finite target."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Half squared residual, continued by its tangent."""
        residual = np.abs(raw_prediction - y)
        inner = np.minimum(residual, self.bend)
        return inner * (residual - 0.5 * inner)

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Residual, clipped to where the loss bends."""
        return np.clip(raw_prediction - y, -self.bend, self.bend)

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """One before the bend, zero beyond."""
        inside = np.abs(raw_prediction - y) <= self.bend
        return inside.astype(raw_prediction.dtype)

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Slope over distance, the weight of iteratively reweighted least squares; bounds Huber."""
        return self.bend / np.maximum(np.abs(raw_prediction - y), self.bend)

    def per(self, unit: float) -> Loss:
        """Return the loss with the scale in that unit."""
        return HuberLoss(self.epsilon, self.scale / unit)

    def link(self, mean: Array) -> Array:
        """Identity."""
        return mean

    def residual_scale(self, residual: Array, weight: Array, n: float, p: int) -> float:
        """Root of ``sum(w min(r^2 / s^2, epsilon^2)) = sum(w)`` in s, Huber's proposal 2.

        There Huber's concomitant objective, ``sum(w (s + s H(r/s)))``, is minimal in s. The
        difference of the two sides is concave in s^2, zero at zero and negative at the mean square,
        from where Newton steps come down to the root, and stop after finitely many.
        """
        unit = np.abs(residual).max(initial=0.0)
        if not unit > 0:
            return 0.0
        square, total = np.square(residual / unit), weight.sum()
        before, after = np.inf, float(weight @ square / total)
        while 0 < after < before:
            inside = square <= self.epsilon**2 * after
            slope = total - self.epsilon**2 * weight[~inside].sum()
            before = after
            after = float(weight[inside] @ square[inside] / slope) if slope > 0 else 0.0
        return float(unit * np.sqrt(after))

    def at_scale(self, scale: float, n: float, p: int) -> Loss:
        """Return the loss that bends at `epsilon` times this scale."""
        return HuberLoss(self.epsilon, scale)

    @property
    def parameters(self) -> dict[str, float]:
        """Where it bends, in scales."""
        return {"epsilon": self.epsilon}

    @property
    def calibration(self) -> dict[str, Any]:
        """Parameters of an estimator, which takes `epsilon` in units of the target."""
        return {"loss": self.name, "epsilon": self.bend}

    @property
    def fitted(self) -> dict[str, float]:
        """Scale."""
        return {"scale_": self.scale}


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


class QuantileLoss(Loss):
    """Pinball loss, convolved with a logistic density; times the scale of the residuals.

    With ``s = (f - y) / bandwidth`` it is the log loss of a class of probability `quantile` at the
    log odds s, whose derivatives, bound and care in the tails serve. It lies above the pinball
    loss, by no more than ``log(2) * bandwidth`` (before the scale). Multiplied by the scale it is
    in squared units of the target, so that a ridge penalty weighs the same in any unit.

    Parameters
    ----------
    quantile : float, default=0.5
        Share of the targets that shall lie below the prediction.
    scale : float, default=1.0
        Scale of the residuals near the quantile.
    bandwidth : float, default=1.0
        Scale of the logistic density, in the units of the target.

    References
    ----------
    Fernandes, Guerre and Horta (2021); He, Pan, Tan and Zhou (2023).
    """

    name = "quantile"
    own_unit = True
    scale: float
    scale_tolerance = 1e-3
    _log_loss = LogisticLoss()

    def __init__(self, quantile: float = 0.5, scale: float = 1.0, bandwidth: float = 1.0) -> None:
        self.quantile = quantile
        self.scale = scale
        self.bandwidth = bandwidth

    def _odds(self, y: Array, raw_prediction: Array) -> tuple[Any, Array]:
        return raw_prediction.dtype.type(self.quantile), (raw_prediction - y) / self.bandwidth

    def check_y(self, y: Array) -> None:
        """Accept every finite target."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Smoothed pinball loss."""
        return self.scale * self.bandwidth * self._log_loss.value(*self._odds(y, raw_prediction))

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Share of the logistic density below the prediction, minus `quantile`."""
        return self.scale * self._log_loss.gradient(*self._odds(y, raw_prediction))

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Logistic density."""
        height = self.scale / self.bandwidth
        return height * self._log_loss.curvature(*self._odds(y, raw_prediction))

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature of the quadratic that bounds the loss everywhere and touches it here."""
        height = self.scale / self.bandwidth
        return height * self._log_loss.stiffness(*self._odds(y, raw_prediction))

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value, gradient and curvature, from one exponential."""
        value, gradient, curvature = self._log_loss.all(*self._odds(y, raw_prediction))
        height = self.scale / self.bandwidth
        return self.scale * self.bandwidth * value, self.scale * gradient, height * curvature

    def per(self, unit: float) -> Loss:
        """Return the loss with scale and bandwidth in that unit."""
        return QuantileLoss(self.quantile, self.scale / unit, self.bandwidth / unit)

    def link(self, mean: Array) -> Array:
        """Identity."""
        return mean

    def residual_scale(self, residual: Array, weight: Array, n: float, p: int) -> float:
        """Width of the residuals' distribution about the quantile, over that of a normal one.

        Between the ranks half as far from the quantile as its nearer end: the quartiles, for the
        median. Where residuals are denser or sparser than elsewhere, that is what tells. The p rows
        that a fit may pass through are not to be taken for a dense place.
        """
        half = max(0.5 * min(self.quantile, 1 - self.quantile), 2 * p / n)
        ends = [self.quantile - half, self.quantile + half]
        ranks = np.clip(ends, min(0.5 / n, 0.25), max(1 - 0.5 / n, 0.75))
        order = np.argsort(residual)
        mass = np.cumsum(weight[order])
        # A rank that is that of a row, up to rounding, lies between it and the next
        sides = ranks * mass[-1] * (1 + np.array([[-1e-9], [1e-9]]))
        rows = np.minimum(np.searchsorted(mass, sides), len(order) - 1)
        low, high = residual[order[rows]].mean(axis=0)
        return float((high - low) / np.diff(ndtri(ranks))[0])

    def at_scale(self, scale: float, n: float, p: int) -> Loss:
        """Return the loss for a scale, with the bandwidth that makes its bias harmless.

        The logistic density's standard deviation is the rule of He et al. (2023),
        ``sqrt(t (1 - t)) ((p + log n) / n)^(2/5)`` for the quantile t, times the scale.
        """
        spread = np.sqrt(self.quantile * (1 - self.quantile))
        share = min((p + np.log(n)) / n, 1.0)
        deviation = spread * share**0.4 * scale
        return QuantileLoss(self.quantile, scale, float(deviation * np.sqrt(3) / np.pi))

    def sharpened(self, residual: Array, weight: Array, n: float, p: int) -> Loss:
        """Narrow the bandwidth while the pinball loss may be reducible by a share that matters.

        The slopes at a minimum of the smoothed loss are a feasible point of the linear program
        dual to quantile regression, so that its pinball loss is within ``mean(|r| F(-|r| / h))`` of
        the least there is, F the logistic distribution function. That falls like h^2.
        """
        size = np.abs(residual)
        loss = weight @ (np.where(residual > 0, self.quantile, 1 - self.quantile) * size)
        gap = weight @ (size * _probabilities(-size / self.bandwidth)[0])
        allowed = max(_GAP, _GAP_OF_RANK * p / n) * loss
        if gap <= allowed:
            return self
        narrower = max(0.7 * np.sqrt(allowed / gap), 0.1) * self.bandwidth
        return QuantileLoss(self.quantile, self.scale, float(narrower))

    @property
    def parameters(self) -> dict[str, float]:
        """Share below."""
        return {"quantile": self.quantile}

    @property
    def calibration(self) -> None:
        """None: of a few rows near the quantile, noise would tell too little."""
        return

    @property
    def fitted(self) -> dict[str, float]:
        """Scale and bandwidth."""
        return {"scale_": self.scale, "bandwidth_": self.bandwidth}


class _LogLinkLoss(Loss):
    """Half deviance with log link; the variance is a power of the mean."""

    power: float

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

    def check_y(self, y: Array) -> None:
        """Refuse negative targets."""
        if y.min() < 0:
            raise ValueError(
                f"PoissonLoss needs y >= 0, got min(y) = {y.min():g}. For real-valued targets "
                "use loss='squared_error'."
            )
        _refuse_beyond_exponential(y)

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

    def check_y(self, y: Array) -> None:
        """Refuse negative targets."""
        if y.min() < 0:
            raise ValueError(
                f"TweedieLoss needs y >= 0, got min(y) = {y.min():g}. For real-valued targets "
                "use loss='squared_error'."
            )
        _refuse_beyond_exponential(y)

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


def _refuse_beyond_exponential(y: Array) -> None:
    if y.max() > 1e100:
        raise ValueError(
            f"max(y) = {y.max():g} is beyond what the exponential of the log link can reach "
            "safely, 1e100. Rescale y: another unit changes the intercept alone."
        )


def make_loss(
    name: str, *, epsilon: float = 1.35, power: float = 1.5, quantile: float = 0.5
) -> Loss:
    """Return the loss of this name; `epsilon` belongs to "huber", and so on."""
    makers: dict[str, Callable[[], Loss]] = {
        "gamma": GammaLoss,
        "huber": lambda: HuberLoss(epsilon),
        "log_loss": LogisticLoss,
        "poisson": PoissonLoss,
        "quantile": lambda: QuantileLoss(quantile),
        "squared_error": SquaredLoss,
        "tweedie": lambda: TweedieLoss(power),
    }
    if name not in makers:
        raise ValueError(f"Unknown loss {name!r}; known are {sorted(makers)}.")
    return makers[name]()
