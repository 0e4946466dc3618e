"""The log loss of several classes, which couples the columns of the raw prediction."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit, logsumexp, softmax

from sklearn_gradhess._deviances import logistic_bound
from sklearn_gradhess._loss import Loss

__all__ = ["MultinomialLoss"]

Array = npt.NDArray[Any]


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

    @property
    def calibration(self) -> dict[str, Any]:
        """Of each class against the rest."""
        return {"loss": "log_loss"}

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
        return logistic_bound(logit(np.clip(p, 1e-12, 1 - 1e-12)))

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
