"""The ridge of each coefficient, for rows of which more may come."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["Penalty", "Spread", "per_feature"]

Array = npt.NDArray[np.float64]


class Spread(NamedTuple):
    """Weighted mean and scatter of each feature of the rows so far; a value, never changed.

    Attributes
    ----------
    weight : float
        Sum of the weights.
    mean, scatter : ndarray of shape (d,)
        Mean, and weighted sum of squared distances from it; NaN where that is not known.
    """

    weight: float
    mean: Array
    scatter: Array

    @classmethod
    def unknown(cls, weight: float, d: int) -> "Spread":
        """Return that of rows which are gone, and of which nobody has told."""
        return cls(weight, np.full(d, np.nan), np.full(d, np.nan))

    @classmethod
    def empty(cls, d: int) -> "Spread":
        """Return that of no rows."""
        return cls(0.0, np.zeros(d), np.zeros(d))

    def plus(self, X: Any, weight: Array) -> "Spread":
        """Return that of more rows too."""
        total = float(weight.sum())
        if not total:
            return self
        # About a row's own value: a constant has no scatter, and an offset cancels beforehand
        if sparse.issparse(X):
            mean, scatter = _of_stored(X.tocsr(), weight, total)
        else:
            near = np.asarray(X[0], dtype=np.float64)
            distance = X - near
            apart = weight @ distance / total
            distance -= apart
            mean, scatter = near + apart, np.einsum("i,ij,ij->j", weight, distance, distance)
        return self.merge(Spread(total, mean, scatter))

    def merge(self, other: "Spread") -> "Spread":
        """Return that of the rows of both."""
        total = self.weight + other.weight
        if not total:
            return self
        apart = other.mean - self.mean
        return Spread(
            total,
            self.mean + (other.weight / total) * apart,
            self.scatter + other.scatter + self.weight * (other.weight / total) * apart**2,
        )

    @property
    def variance(self) -> Array:
        """Variance of each feature."""
        return self.scatter / self.weight if self.weight else np.zeros_like(self.scatter)


def _of_stored(X: Any, weight: Array, total: float) -> tuple[Array, Array]:
    """Weighted mean and scatter of sparse rows, whose other entries are zero."""
    d, w = X.shape[1], np.repeat(weight, np.diff(X.indptr))
    stored = np.bincount(X.indices, w, d)
    zeros = np.maximum(total - stored, 0.0)
    zeros[zeros <= 1e-12 * total] = 0.0
    near = np.zeros(d)
    near[X.indices] = X.data
    apart = np.bincount(X.indices, w * (X.data - near[X.indices]), d) / total
    mean = np.where(zeros == 0, near, near * (stored / total)) + apart
    scatter = np.bincount(X.indices, w * np.square(X.data - mean[X.indices]), d)
    return mean, scatter + zeros * np.square(mean)


class Penalty(NamedTuple):
    """``alpha/2 sum_j unit_j coef_j^2`` beside the mean loss.

    Attributes
    ----------
    alpha : float, ndarray of shape (d,) or "auto"
        Its weight, of all features or of each; "auto" is one over the sum of the weights, a penalty
        of one on the sum.
    units : {"std", "raw"}
        Whether coefficients are penalised per standard deviation of their features.
    """

    alpha: Any = 0.0
    units: str = "std"

    @property
    def present(self) -> bool:
        """Whether there is one."""
        return isinstance(self.alpha, str) or bool(np.any(self.alpha))

    @property
    def automatic(self) -> bool:
        """Whether the rows have a say in it, once they are wide."""
        return isinstance(self.alpha, str) and self.units == "std"

    def of_mean(self, weight: float) -> Any:
        """Weight of the penalty beside the mean loss of rows of this total weight."""
        if isinstance(self.alpha, str):
            return 1 / weight
        return float(self.alpha) if np.ndim(self.alpha) == 0 else self.alpha

    def ridge(self, weight: float, spread: Spread, unit: float = 1.0) -> Array:
        """Ridge of each coefficient beside the sum of losses, weights in this unit."""
        if not self.present:
            return np.zeros_like(spread.mean)
        total = self.of_mean(weight * unit) * weight
        per = spread.variance if self.units == "std" else np.ones_like(spread.mean)
        return total * per


def per_feature(alpha: Any, d: int) -> Any:
    """Copy a penalty of each feature, checked; one of all, or "auto", is what it was.

    Raises
    ------
    ValueError
        If there are not as many as features, or one of them is negative or not finite.
    """
    if isinstance(alpha, str) or np.ndim(alpha) == 0:
        return alpha
    values = np.array(alpha, dtype=np.float64)
    if values.shape != (d,):
        raise ValueError(
            f"alpha has shape {values.shape}, but X has {d} features: pass one penalty for all "
            "of them, or one for each."
        )
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(
            f"alpha has {np.count_nonzero(wrong)} entries that are negative or not finite, such as "
            f"{values[wrong][0]:g}. Pass penalties of zero or more."
        )
    return values
