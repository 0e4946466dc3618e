"""What the clean gradient adds to the covariance of noisy ones, and how to take it off.

Gradients with a single noise scatter by the noise, which is calibrated, and by the clean gradient
of the rows in a batch, which is not: the nuisance. For Gaussian features it is known up to m^2 and
one direction, which the mean gradient shows (MATH section 2.1). For z = (1, x) of second moment
Omega and mean mu, n rows a batch, total noise tau and errors u of mean square m^2, of which a^2 is
that of the mean residual a = mu'u,

    n Cov(g) = T Omega + Omega u u' Omega - 2 a^2 mu mu' ,     T = tau + m^2 .

The intercept is eliminated first: then an offset of the targets, however large, is no distance that
saturates. With V = n Var(g_0) = T - a^2 and rho = 1 - a^2/V, what is left of the other coordinates
has covariance ``(T Sigma + rho s s')/n`` and mean ``rho s``, s = Sigma b the mean gradient of the
centred features. Rounds at different coefficients have one covariance about their own means, with
means of the a^2, a s and s s' of the rounds in place of one.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._moments import GradientMoments, RoundMeans, triangular_factor
from sklearn_gradhess._preconditioner import Preconditioner, factorize

__all__ = ["Nuisance", "find_nuisance"]

Array = npt.NDArray[np.float64]
_QUANTILE = 1.645  # of the normal law, for nine in ten
_LOST = 4.0  # standard errors within which a number is not told from zero
_PAST = 0.9  # largest eigenvalue of the nuisance, over the covariance; the true one is below 1/2
# Gradients are means of n products of Gaussians: their excess kurtosis is 6/n across the error of
# the coefficients and 12/n along it
_KURTOSIS = 12.0


class Nuisance(NamedTuple):
    """What the clean gradient adds to single-noise gradients, and what is left without it.

    Attributes
    ----------
    factor : ndarray of shape (p, p)
        Upper triangular factor of the second moment Omega, the nuisance removed.
    excess_risk : float
        m^2, small-sample bias removed; over rounds the mean of theirs.
    least, greatest : float
        Relative sizes, over all directions, of what is removed.
    assumed : float
        Size of that part of it which takes the features for Gaussian; the mean residual's own does
        not.
    scale : tuple of (float, float)
        Limits of the true scale over the one that was found, which nine samples in ten keep to;
        the upper one is infinite near saturation.
    error : float
        Relative standard error of what was found.
    """

    factor: Array
    excess_risk: float
    least: float
    greatest: float
    assumed: float
    scale: tuple[float, float]
    error: float


class _Shown(NamedTuple):
    """Gradients of the centred features: covariance root, rounds' means, and the intercept's part.

    residual2 is a^2, inverse_v is 1/V; rounds and noise are the variance of the intercept's mean
    and of the others', in units of their covariances.
    """

    root: Array
    slope: Array
    means: Array
    residuals: Array
    residual2: float
    inverse_v: float
    rounds: float
    noise: float

    def deviation(self, degrees: int, rows: float) -> tuple[float, float]:
        """Return the standard errors of a^2/V and of T/V, T = V + a^2."""
        share = self.residual2 * self.inverse_v
        mean = 2 * np.sqrt(share * self.rounds / rows)
        return float(share * np.sqrt(2 / degrees) + mean), float(np.sqrt(2 / degrees) + mean)


def _eliminate(root: Array, means: RoundMeans, rows: float, *, has_intercept: bool) -> _Shown:
    each, noise = means.rows / np.sqrt(means.spread), means.noise / means.spread
    if not has_intercept:
        d = root.shape[1]
        return _Shown(root, np.zeros(d), each, np.zeros(len(each)), 0.0, 0.0, noise, noise)
    a, variance = each[:, 0], root[0, 0] ** 2
    slope = root[0, 1:] / root[0, 0]
    squares = float(a @ a)
    return _Shown(
        root[1:, 1:],
        slope,
        each[:, 1:] - np.outer(a, slope),
        a,
        max(squares - noise * variance, 0.0),
        1 / (rows * variance),
        noise,
        noise + squares / (means.degrees * variance),
    )


def find_nuisance(
    moments: GradientMoments,
    *,
    has_intercept: bool,
    rows: float,
    total_scale: float,
    includes_excess: bool = False,
    rounding: float | None = None,
) -> Nuisance | None:
    r"""Find the nuisance in the covariance of single-noise gradients, for Gaussian features.

    Parameters
    ----------
    moments : GradientMoments
        Centred moments of the single-noise gradients.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    rows : float
        Independent rows of equal weight in a batch, n.
    total_scale : float
        Total target noise over n: tau/n.
    includes_excess : bool, default=False
        Whether `total_scale` is T/n: so it is when the inherent variance was taken from the
        residuals, whose mean square is s^2 + m^2.
    rounding : float, default=None
        Relative rounding error of a feature, by which singular directions are told.

    Returns
    -------
    nuisance : Nuisance or None
        None where it cannot be told: too few gradients for the dimension, or a mean gradient past
        saturation.
    """
    h, means = int(has_intercept), moments.round_means()
    root = moments.covariance_factor()
    if not means.degrees or (h and root[0, 0] == 0):
        return None
    shown = _eliminate(root, means, rows, has_intercept=has_intercept)
    norms = np.linalg.norm(root[:, h:], axis=0)
    preconditioner = factorize(shown.root, rounding=None if rounding is None else rounding * norms)
    degrees, rank = means.degrees - h, preconditioner.rank
    if degrees <= rank + 1:
        return None
    whiten, unwhiten = preconditioner.whitening("pca" if preconditioner.n_clipped else "cholesky")
    debias = (degrees - rank - 1) / means.degrees  # E[S^-1] = Sigma^-1/debias for a Wishart S

    white = shown.means @ whiten[:, :rank] / np.sqrt(rows)
    square = float(np.sum(white**2))
    # ||rho s||^2/n in these coordinates, less what the noise of the means adds to it
    net = max(debias * square - rank * shown.noise / rows, 0.0)
    rho = 1 - shown.residual2 * shown.inverse_v
    if abs(rho) < _LOST * shown.deviation(means.degrees, rows)[0]:
        return _hidden(shown, preconditioner, means.degrees, total_scale, rows, includes_excess)
    cross = shown.residuals @ white / rho
    axes, r = np.linalg.qr(np.vstack([white, cross]).T)
    r *= np.sqrt(net / (debias * square)) if net else 0.0
    # In these axes, over n and the covariance: the part of a s, and rho s s' in all
    mixed = shown.inverse_v * np.outer(r[:, -1], r[:, -1])
    seen = r[:, :-1] @ r[:, :-1].T + rho * mixed
    values, vectors = np.linalg.eigh(seen)
    if values[-1] >= _PAST:
        return None
    law = _Law(debias * seen, debias * mixed, total_scale, shown.residual2 / rows, includes_excess)
    total = law.total(1.0)
    if not total < np.inf:
        return None
    axes = axes @ vectors
    root = unwhiten[:rank] + (axes * (np.sqrt(1 - values) - 1)) @ (axes.T @ unwhiten[:rank])
    factor = triangular_factor(root) / np.sqrt(total)
    location = shown.slope - (cross @ unwhiten[:rank]) * (shown.inverse_v * rows**0.5)
    largest, smallest = debias * max(values[-1], 0.0), debias * min(values[0], 0.0)
    deviation = np.sqrt(
        (2 + _KURTOSIS / rows) / means.degrees * net**2
        + 4 * net * shown.noise / rows
        + 2 * rank * (shown.noise / rows) ** 2
    )
    error = float(deviation / net) if net else np.inf
    return Nuisance(
        _with_intercept(factor, location, shown, rows * total) if has_intercept else factor,
        float(rows * total * law.distance(1.0) + shown.residual2),
        float(total / total_scale / (1 - smallest) - 1),
        float(total / total_scale / (1 - largest) - 1),
        float(max(total / law.total(0.0) / (1 - largest) - 1, 1 - 1 / (1 - smallest))),
        law.limits(error) if net else (1.0, 1.0),
        error,
    )


class _Law(NamedTuple):
    """The scale T/n as a function of how large the nuisance is, in multiples of what was found."""

    seen: Array
    mixed: Array
    total_scale: float
    residual2: float
    includes_excess: bool

    def distance(self, multiple: float) -> float:
        """b^2/T: the squared length of s in the inverse of T Sigma."""
        left = np.eye(len(self.seen)) - multiple * self.seen
        found = np.trace(np.linalg.solve(left, multiple * (self.seen + self.mixed)))
        if self.includes_excess:  # b^2 is part of a T that is known
            return float(min(found, max(1 - self.residual2 / self.total_scale, 0.0)))
        return float(found)

    def total(self, multiple: float) -> float:
        """T/n, infinite past saturation."""
        if self.includes_excess:
            return self.total_scale
        if multiple * np.linalg.eigvalsh(self.seen)[-1] >= 1:
            return np.inf
        share = self.distance(multiple)
        return (self.total_scale + self.residual2) / (1 - share) if share < 1 else np.inf

    def limits(self, error: float) -> tuple[float, float]:
        """Limits of T over what was found, for a nuisance that is known up to a relative error.

        A sample that is far from saturation by luck states too small an error. So the upper limit
        is wider than the quantile, and there is none where twice as far may be past saturation.
        """
        low, high, beyond = (
            self.total(max(1 + z * _QUANTILE * error, 0.0)) / self.total(1.0)
            for z in (-1, 1.3, 1.6)
        )
        low, high = min(low, high), max(low, high)  # a large offset turns the sign
        return float(low), float(high) if beyond < np.inf else np.inf


def _hidden(
    shown: _Shown,
    preconditioner: Preconditioner,
    degrees: int,
    total_scale: float,
    rows: float,
    includes_excess: bool,
) -> Nuisance:
    """Where rho is zero up to its error: no nuisance but that of T, which the intercept shows."""
    total = total_scale
    if not includes_excess:
        total = (1 / shown.inverse_v + shown.residual2) / rows
    factor = triangular_factor(preconditioner.root) / np.sqrt(total)
    excess_risk = np.nan if includes_excess else max(rows * (total - total_scale), 0.0)
    size = total / total_scale - 1
    error = 0.0
    if not includes_excess:
        error = _QUANTILE * shown.deviation(degrees, rows)[1] / (shown.inverse_v * rows * total)
    return Nuisance(
        _with_intercept(factor, shown.slope, shown, rows * total),
        float(excess_risk),
        size,
        size,
        0.0,
        (float(1 - error), float(1 + error)),
        float(error),
    )


def _with_intercept(factor: Array, location: Array, shown: _Shown, total: float) -> Array:
    # The second moment of the ones is what they show of T: one, if all is as it should be
    first = np.sqrt((1 / shown.inverse_v + shown.residual2) / total)
    d = len(location)
    whole = np.zeros((d + 1, d + 1))
    whole[0, 0], whole[0, 1:], whole[1:, 1:] = first, first * location, factor
    return whole
