"""Mergeable second moments of batch gradients, in triangular-factor form.

The accumulator never forms a Gram matrix. It keeps the triangular factor R of the weighted rows,
``R'R = sum_b w_b (g_b - mean)(g_b - mean)'``, and stacks: merging is the QR factorisation of one
factor on top of the other, so the result is positive semidefinite by construction, the condition
number is not squared, and no order of updates is better than another (MATH section 4.4).
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack, solve_triangular

__all__ = ["GradientMoments", "centered_block", "remove_nuisance", "triangular_factor"]

Array = npt.NDArray[np.float64]


def triangular_factor(rows: Array) -> Array:
    """Upper triangular R of shape (d, d) with ``R'R = rows'rows`` and no negative diagonal.

    Cholesky factorisation of the Gram matrix runs at the speed of matrix products, but its
    relative error is the machine precision times the squared condition number. So it serves
    where that is below 1e-11, with the columns scaled to unit norm. Up to 1e-4 its inverse makes
    the rows nearly orthonormal, and a second factorisation of those has all digits (Fukaya and
    others 2014, "CholeskyQR2"); LAPACK's QR does the rest.
    """
    k, d = rows.shape
    if k >= 2 * d:
        with np.errstate(over="ignore", invalid="ignore"):
            gram = rows.T @ rows
        scale = np.sqrt(np.diag(gram))
        if np.isfinite(gram).all() and np.all(scale > 1e-145):
            correlation = gram / scale / scale[:, None]
            factor, info = lapack.dpotrf(correlation, clean=1)
            condition = 0.0
            if not info:
                condition = lapack.dpocon(factor, np.linalg.norm(correlation, 1))[0]
            if condition > 2e-5:
                return factor * scale
            if condition > 2e-12:
                inverse = lapack.dtrtri(factor)[0]
                rows = rows @ (inverse / scale[:, None])
                return lapack.dpotrf(rows.T @ rows, clean=1)[0] @ factor * scale
    factor = np.zeros((d, d))
    if k:
        r = np.linalg.qr(rows, mode="r")
        factor[: len(r)] = r
    factor *= np.where(np.diag(factor) < 0, -1.0, 1.0)[:, None]
    return factor


@dataclass(frozen=True)
class GradientMoments:
    """Weighted mean and second moment of the gradients seen so far; a value, never changed.

    Parameters
    ----------
    factor : ndarray of shape (d, d)
        Upper triangular factor of the weighted sum of outer products, about the mean when
        `centered`, about zero otherwise.
    mean : ndarray of shape (d,)
        Weighted mean of the gradients.
    weight : float
        Sum of the weights.
    n_gradients : int
        Number of gradients with a positive weight.
    centered : bool
        Whether the second moment is taken about the mean. Antithetic half differences are known
        to have mean zero, so nothing is to be subtracted from them (MATH section 2.2).
    """

    factor: Array
    mean: Array
    weight: float
    n_gradients: int
    centered: bool

    @classmethod
    def empty(cls, n_features: int, *, centered: bool) -> "GradientMoments":
        """Moments of no gradients: the neutral element of `merge`."""
        return cls(np.zeros((n_features, n_features)), np.zeros(n_features), 0.0, 0, centered)

    def update(
        self, gradients: npt.ArrayLike, weights: npt.ArrayLike | None = None
    ) -> "GradientMoments":
        """Return the moments after these gradients too.

        Parameters
        ----------
        gradients : array-like of shape (n_gradients, d)
            One gradient a row.
        weights : array-like of shape (n_gradients,), default=None
            Weight of each gradient; None gives each the weight one. Rows of weight zero are
            passed over.
        """
        rows = np.asarray(gradients, dtype=np.float64)
        w = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
        if not np.all(w > 0):
            rows, w = rows[w > 0], w[w > 0]
        if not len(rows):
            return self
        total = float(w.sum())
        mean = w @ rows / total
        if self.centered:
            rows = rows - mean
        rows = rows * np.sqrt(w)[:, None]
        block = replace(self, factor=rows, mean=mean, weight=total, n_gradients=len(rows))
        return self._stack(block)

    def merge(self, other: "GradientMoments") -> "GradientMoments":
        """Return the moments of both; associative and commutative up to rounding.

        Raises
        ------
        ValueError
            If the two differ in dimension or in being centred.
        """
        if len(self.mean) != len(other.mean) or self.centered != other.centered:
            raise ValueError(
                f"Cannot merge moments of {len(other.mean)} features (centered="
                f"{other.centered}) into moments of {len(self.mean)} (centered={self.centered})."
            )
        if not other.weight:
            return self
        return self._stack(other)

    def _stack(self, other: "GradientMoments") -> "GradientMoments":
        # `other` may carry any factor of its second moment, square or tall.
        weight = self.weight + other.weight
        rows = [other.factor]
        if self.weight:
            rows.append(self.factor)
            if self.centered:
                # scatter about the joint mean: sqrt(w1 w2 / (w1 + w2)) (mean1 - mean2)
                shift = np.sqrt(self.weight * other.weight / weight)
                rows.append((shift * (self.mean - other.mean))[None])
        return GradientMoments(
            triangular_factor(np.concatenate(rows) if self.weight else other.factor),
            self.mean + (other.weight / weight) * (other.mean - self.mean),
            weight,
            self.n_gradients + other.n_gradients,
            self.centered,
        )

    def covariance_factor(self) -> Array:
        """Upper triangular F with ``F'F`` the covariance of the gradients.

        About an estimated mean the divisor is ``weight (1 - 1/n_gradients)``: for equal weights
        the unbiased k - 1.
        """
        k = self.n_gradients
        divisor = self.weight * ((1 - 1 / k) if self.centered and k > 1 else 1.0)
        return self.factor / np.sqrt(divisor) if self.weight else self.factor

    def covariance(self) -> Array:
        """Covariance of the gradients, of shape (d, d)."""
        factor = self.covariance_factor()
        return factor.T @ factor


def centered_block(factor: Array) -> tuple[Array, Array]:
    """Split off the first coordinate, the intercept's, of a second moment in factor form.

    Parameters
    ----------
    factor : ndarray of shape (d + 1, d + 1)
        Upper triangular, ``factor'factor`` the second moment of rows (1, x), up to a scale.

    Returns
    -------
    location : ndarray of shape (d,)
        Mean of x; zero if the first coordinate was never seen.
    factor : ndarray of shape (d, d)
        Upper triangular factor of the centred second moment: the Schur complement of the first
        coordinate is the trailing block of the triangular factor (MATH section 1).
    """
    if factor[0, 0] == 0:
        return np.zeros(len(factor) - 1), factor[1:, 1:]
    return factor[0, 1:] / factor[0, 0], factor[1:, 1:]


def remove_nuisance(
    moments: GradientMoments,
    *,
    has_intercept: bool,
    total_scale: float,
    total_includes_excess: bool = False,
) -> tuple[Array, float] | None:
    r"""Undo the finite-batch bias of single-noise gradients, for Gaussian features.

    For z = (1, x) with x Gaussian and n rows a batch, ``n Cov(g) = (tau + m^2) Omega +
    Omega u u' Omega - 2 a^2 mu mu'`` with Omega = E[z z'], mu = E[z], u the coefficients' error
    and a = mu'u the mean residual. Since ``mean(g) = Omega u``, subtracting ``mean mean'/n``
    leaves the first and the last term; the last one lives in the intercept's coordinate alone
    once x is centred, so the Schur complement of the intercept is free of it (MATH section 2.1,
    which is the case a = 0).

    Parameters
    ----------
    moments : GradientMoments
        Centred moments of the single-noise gradients, weighted with the rows in each batch.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    total_scale : float
        Total target noise over the batch size, tau/n.
    total_includes_excess : bool, default=False
        Whether `total_scale` is ``(tau + m^2)/n``: so it is when the inherent variance was
        taken from the residuals, whose mean square is s^2 + m^2.

    Returns
    -------
    factor : ndarray of shape (p, p)
        Upper triangular factor of the second moment Omega; with an intercept and a mean residual
        the first row is short by the last term above, the centred block and the location are not.
    excess_risk : float
        m^2, with Hotelling's small-sample bias removed (MATH section 5.1).

    None when the correction is not defined: too few gradients for the dimension, or a mean
    gradient past the saturation point of n/2.
    """
    k, p = moments.n_gradients, len(moments.mean)
    root = moments.covariance_factor()
    if k <= p + 2 or np.any(np.diag(root) == 0):
        return None
    n = moments.weight / k
    # The downdate root'(I - c c') root, with c = root^-T mean / sqrt(n)
    c = solve_triangular(root, moments.mean, trans="T", check_finite=False)
    c /= np.sqrt(n)
    norm2 = float(c @ c)
    # delta/n with the bias of the inverse covariance and of the mean's own noise removed
    delta = (k - p - 2) / (k - 1) * norm2 - p / (k * n)
    if norm2 >= 0.5 or delta >= 0.5:
        return None
    shrink = (1 - np.sqrt(1 - norm2)) / norm2 if norm2 else 0.0
    downdated = triangular_factor(root - shrink * np.outer(c, c @ root))
    q = max(delta, 0.0) / (1 - max(delta, 0.0))  # mean' M^-1 mean / n
    intercept_error2 = 0.0
    if has_intercept:
        intercept_error2 = moments.mean[0] ** 2
        q = max(q - intercept_error2 / (n * downdated[0, 0] ** 2), 0.0)
    if total_includes_excess:
        excess_risk = intercept_error2 + n * q * total_scale
        divisor = total_scale
    else:
        excess_risk = (intercept_error2 + n * q * total_scale) / (1 - q)
        divisor = total_scale + excess_risk / n
    return downdated / np.sqrt(divisor), float(excess_risk)
