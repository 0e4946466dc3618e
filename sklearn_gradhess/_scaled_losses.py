"""Losses that bend at a multiple of the residuals' scale, or are smoothed over a share of it."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from sklearn_gradhess._deviances import LogisticLoss, probabilities
from sklearn_gradhess._loss import ScaledLoss

__all__ = ["HuberLoss", "QuantileLoss"]

Array = npt.NDArray[Any]  # float32 or float64, kept
# Share of the pinball loss by which a quantile may be missed; or of it and a coefficient a row
_GAP = 1e-3
_GAP_OF_RANK = 0.02


class HuberLoss(ScaledLoss):
    """Huber's loss: half squared within `epsilon` scales of the target, linear beyond.

    Parameters
    ----------
    epsilon : float, default=1.35
        Where the loss turns linear, in units of the scale.
    scale : float, default=1.0
        Scale of the residuals, in the units of the target.
    """

    name = "huber"
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

    def per(self, unit: float) -> ScaledLoss:
        """Return the loss with the scale in that unit."""
        return HuberLoss(self.epsilon, self.scale / unit)

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

    def at_scale(self, scale: float, n: float, p: int) -> ScaledLoss:
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


class QuantileLoss(ScaledLoss):
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

    def per(self, unit: float) -> ScaledLoss:
        """Return the loss with scale and bandwidth in that unit."""
        return QuantileLoss(self.quantile, self.scale / unit, self.bandwidth / unit)

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

    def at_scale(self, scale: float, n: float, p: int) -> ScaledLoss:
        """Return the loss for a scale, with the bandwidth that makes its bias harmless.

        The logistic density's standard deviation is the rule of He et al. (2023),
        ``sqrt(t (1 - t)) ((p + log n) / n)^(2/5)`` for the quantile t, times the scale.
        """
        spread = np.sqrt(self.quantile * (1 - self.quantile))
        share = min((p + np.log(n)) / n, 1.0)
        deviation = spread * share**0.4 * scale
        return QuantileLoss(self.quantile, scale, float(deviation * np.sqrt(3) / np.pi))

    def sharpened(self, residual: Array, weight: Array, n: float, p: int) -> ScaledLoss:
        """Narrow the bandwidth while the pinball loss may be reducible by a share that matters.

        The slopes at a minimum of the smoothed loss are a feasible point of the linear program
        dual to quantile regression, so that its pinball loss is within ``mean(|r| F(-|r| / h))`` of
        the least there is, F the logistic distribution function. That falls like h^2.
        """
        size = np.abs(residual)
        loss = weight @ (np.where(residual > 0, self.quantile, 1 - self.quantile) * size)
        gap = weight @ (size * probabilities(-size / self.bandwidth)[0])
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
