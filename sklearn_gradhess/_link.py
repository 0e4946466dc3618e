"""Links: what makes a prediction affine in X, and how well it is known after rounding.

A prediction near the end of its range tells little about the raw prediction behind it: with a
probability of 1 - 1e-12 the log odds are known to four digits. So every link hands out the error
that one rounding of the prediction makes in the raw prediction; where it is too large, predictions
are compared in place of raw predictions.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

__all__ = ["IDENTITY", "LINKS", "Link"]

Array = npt.NDArray[np.float64]

# Raw predictions beyond which the exponential nears the ends of double precision
_FAR = 650.0


class Link(Protocol):
    """From predictions of shape (n_rows, n_outputs) to raw predictions, and back."""

    name: str

    def is_defined(self, response: Array) -> bool:
        """Whether these predictions lie in the range of the inverse link."""

    def raw(self, response: Array) -> Array:
        """Raw predictions; infinite at the ends of the range."""

    def error(self, response: Array) -> Array:
        """Error of the raw prediction for a relative error of one in the prediction."""

    def inverse(self, raw: Array) -> Array:
        """Predictions from raw predictions."""

    def gap(self, raw: Array, response: Array) -> Array:
        """Difference from the inverse, in a unit in which 1e-6 is little, for large errors."""


class _Identity(Link):
    name = "identity"

    def is_defined(self, response: Array) -> bool:
        return True

    def raw(self, response: Array) -> Array:
        return response

    def error(self, response: Array) -> Array:
        return np.zeros_like(response)  # rounding is judged by the terms that predict adds up

    def inverse(self, raw: Array) -> Array:
        return raw

    def gap(self, raw: Array, response: Array) -> Array:
        return np.full_like(raw, np.inf)


class _Log(Link):
    """Logarithm of the prediction plus an offset."""

    def __init__(self, name: str, offset: float) -> None:
        self.name, self.offset = name, offset

    def is_defined(self, response: Array) -> bool:
        return bool(np.all(response > -self.offset))

    def raw(self, response: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log1p(response) if self.offset else np.log(response))

    def error(self, response: Array) -> Array:
        with np.errstate(all="ignore"):
            error = 1 + np.abs(self.raw(response)) + np.abs(response) / (response + self.offset)
        return np.where((response > -self.offset) & np.isfinite(response), error, np.inf)

    def inverse(self, raw: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(np.expm1(raw) if self.offset else np.exp(raw))

    def gap(self, raw: Array, response: Array) -> Array:
        low = -_FAR if self.offset == 0 else -15.0
        beyond = ((raw > _FAR) & (response > 1)) | ((raw < low) & (response < 1))
        return np.where(beyond, 0.0, np.inf)


class _Logit(Link):
    """Log odds: of a probability, of the second class, or each class's log less their mean."""

    name = "logit"

    def is_defined(self, response: Array) -> bool:
        inside = np.all((response >= 0) & (response <= 1))
        return bool(inside and np.any((response > 0) & (response < 1)))

    def raw(self, response: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            if response.shape[1] == 1:
                return np.asarray(np.log(response) - np.log1p(-response))
            logs = np.log(response)
            if response.shape[1] == 2:
                return np.asarray(logs[:, 1:] - logs[:, :1])
            return np.asarray(logs - logs.mean(axis=1, keepdims=True))

    def error(self, response: Array) -> Array:
        # 1 - p is rounded as 1 is
        with np.errstate(divide="ignore"):
            least = np.minimum(response, 1 - response).min(axis=1, keepdims=True)
            error = 1 / np.maximum(least, 0.0)
        return np.repeat(error, 1 if response.shape[1] <= 2 else response.shape[1], axis=1)

    def inverse(self, raw: Array) -> Array:
        return np.asarray(expit(raw) if raw.shape[1] == 1 else softmax(raw, axis=1))

    def gap(self, raw: Array, response: Array) -> Array:
        known = response[:, 1:] if response.shape[1] == 2 else response
        gap = np.abs(self.inverse(raw) - known)
        return np.where(np.isnan(gap), np.inf, gap)


IDENTITY = _Identity()
LINKS: dict[str, Link] = {
    link.name: link for link in (IDENTITY, _Log("log", 0.0), _Log("log1p", 1.0), _Logit())
}
