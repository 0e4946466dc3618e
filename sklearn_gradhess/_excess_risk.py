r"""Excess risk and mean squared error from batch gradients, each with its limits.

Notation: k batches of n rows; z is a row, with a leading one if the intercept's gradient is seen,
p its length; Omega = E[z z']; u the error of the coefficients; m^2 = u' Omega u the excess risk;
s^2 the label noise; v^2 = s^2 + m^2 the mean squared error; a = E[z]'u the mean residual. All
estimates are invariant under linear maps of the features.

Antithetic noise. ``h = (g_minus - g_plus)/2`` has second moment Omega, estimated by ``S = sum h
h'/k``, and the clean gradient ``c = (g_plus + g_minus)/2`` has mean Omega u, for any law of z. Both
come of the same rows: ``c = Omega u + lambda (h h' - Omega) u + w`` with w uncorrelated with ``h h'
u``. lambda is 1 where batches are single rows and noise is of signs (c = h h' u + noise: S^-1 cbar
is least squares on the rows) and 1/n for Gaussian rows. With ``W = cov(w)``

    cbar' S^-1 cbar = (1 - lambda)^2 u' Omega S^-1 Omega u + 2 lambda (1 - lambda) m^2
                      + lambda^2 u' S u + wbar' S^-1 wbar + terms of mean zero.

For Gaussian h, of which S is a Wishart matrix, ``u' Omega S^-1 Omega u`` over m^2 is k over
chi-square of k - p + 1 degrees, of mean ``1 + (p + 1)/(k - p - 1)``; to second order the mean is
``1 + B/k`` for any h, ``B = E|h h'e - e|^2`` where Omega = I and e = u/|u|. So m^2 is ``cbar' S^-1
cbar - tr(S^-1 W)/k`` over ``1 + (1 - lambda)^2 B/(k - p - 1)``. Two things are uncertain, and
distances from estimate to limit add in squares on the log scale (Zou and Donner's MOVER):

* the noise w: given S the squared length of cbar has variance ``b s + c`` at s, so its root is
  nearly normal about the root of s with a constant variance, which has few degrees of freedom;
* S in place of Omega: with X = chi-square over its degrees, ``(1 - lambda)^2/X + 2 lambda
  (1 - lambda) + lambda^2 X`` runs between its extremes over the interval of X.

v^2, without the intercept, for Gaussian rows about zero: ``n C = v^2 Omega + Omega u u' Omega``,
C = cov(c), so that functionals w with ``w' cbar = 0`` see v^2 alone: ``n/d tr((B'SB)^-1 B'CB)``, B
a basis of the d = p - 1 of them, over ``1 + (1 - lambda) (E|B'h|^4/d - 1)/(k - p)``, which for
Gaussian h is ``lambda + (1 - lambda) k/(k - p)``. Features that are zero in some batches only are
not Gaussian: there is no v^2 then. With the intercept, any law: c_0 is the mean residual of a
batch, so that ``n var(c_0) + mean(c_0)^2`` estimates v^2, as a chi-square of about k - 1 degrees.

Fourth moments of few batches say little. Those of the Gaussian law count for as much as 20 batches.

Single noise, total variance tau = n. For Gaussian rows ``n cov(g) = T Omega + Omega u u' Omega -
2 a^2 mu mu'``, with T = tau + m^2, mu = E[z] (`_moments.remove_nuisance`). Split m^2 = a^2 + b^2.
The intercept's gradient has mean a and variance ``(T - a^2)/n``. In centred coordinates mu is the
first unit vector; given g_0, what the other coordinates add to ``mean(g)' cov(g)^-1 mean(g)`` is
``Delta = n b^2 rho^2/(T + rho b^2)``, rho = (T - 2 a^2)/(T - a^2). Hotelling's test of additional
information has a noncentral F law in Delta, whose limits give those of ``b^2 = (tau + a^2) Delta/(n
rho^2 - (1 + rho) Delta)``; a has Student's. The two are independent, so distances from estimate to
limit add in squares (Zou and Donner's MOVER). Without an intercept a = 0 and rho = 1: what is left
is tau Delta/(n - 2 Delta), infinite from Delta = n/2 on.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr, solve_triangular
from scipy.optimize import brentq
from scipy.special import betainc, chdtri, gammaln, stdtrit, xlogy

from sklearn_gradhess.exceptions import CalibrationWarning

__all__ = ["Estimate", "hardly_seen", "of_pairs", "of_single_noise"]

Array = npt.NDArray[np.float64]
_LARGE_CORRECTION = 1.5  # of the saturation of single noise
_ROUNDING = 1e-12
# Batches that must tell of a column: as many as of one feature alone
_MIN_SEEN = 4
# Batches that the fourth moments of the Gaussian law count for
_PRIOR_BATCHES = 20


class Estimate(NamedTuple):
    """Limits of a mean square, and how its error goes with that of a^2, the squared mean residual.

    along is the covariance of the two errors and of_mean the variance of that of a^2, both over the
    variance of the error of the mean square; numbers, or one for each of the limits.
    """

    limits: Array  # value, low, high
    along: Any = 0.0
    of_mean: Any = 0.0


def hardly_seen(noise: Array, clean: Array, has_intercept: bool) -> tuple[list[int], Array]:
    """Find columns that vary in too few batches to be known, and in how many they do.

    A level of a category is zero in the batches that it is not in, noise and all; one that all but
    a few rows have is, in batches of one row, as the intercept in all but a few.
    """
    counts = np.sum(_differs(noise, 0.0) | _differs(clean, 0.0), axis=0)
    if has_intercept and np.all(noise[:, 0] != 0):
        ratio = noise / noise[:, :1]
        varies = np.sum(_differs(ratio, np.median(ratio, axis=0)), axis=0)
        counts = np.where(varies > 0, np.minimum(counts, varies), counts)
    columns = np.flatnonzero((counts > 0) & (counts < min(_MIN_SEEN, len(noise))))
    return columns.tolist(), counts[columns]


def _differs(rows: Array, usual: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(rows - usual) > _ROUNDING * np.abs(rows).max(axis=0))


def _factorize(rows: Array, gradients: Array) -> tuple[Array, Array, Array, Array]:
    """Pivoted QR of the noise: orthonormal rows, factor, and the kept columns with their units.

    Columns that depend on others, such as all levels of a category, tell nothing new: left out.
    """
    k, d = rows.shape
    unit = np.abs(rows).max(axis=0, initial=0.0)
    size = np.abs(gradients).max(axis=0, initial=0.0)
    seen = np.flatnonzero(unit > 1e-13 * size)  # below is rounding error of the difference
    if not len(seen):
        raise ValueError(
            f"The {k} batch gradients differ by no noise at all. Add target noise of variance "
            "batch_size, drawn anew for each row, before taking gradients."
        )
    q, factor, order = qr(rows[:, seen] / unit[seen], mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(factor))
    rounding = max(k, d) * np.finfo(np.float64).eps * np.max(size[seen] / unit[seen])
    rank = int(np.sum(diagonal > rounding * diagonal[0]))
    if k <= rank + 2:
        raise ValueError(
            f"Only {k} batch gradients for {d} coordinates: the inverse covariance needs more "
            f"than {d + 2}. Use a smaller batch_size, or more samples."
        )
    kept = seen[order[:rank]]
    return q[:, :rank], factor[:rank, :rank], kept, unit[kept]


def _check_leverage(q: Array, factor: Array, kept: Any, has_intercept: bool) -> None:
    """Refuse a batch that alone tells of a combination of columns: that leaves no error of its."""
    leverage = np.sum(q**2, axis=1)
    b = int(np.argmax(leverage))
    if leverage[b] > 1 - 1e-9:
        size = np.abs(solve_triangular(factor, q[b]))
        parts = sorted(j - has_intercept for j in kept[size > 1e-6 * size.max()].tolist())
        names = ", ".join("the intercept" if j < 0 else f"feature {j}" for j in parts[:5])
        raise ValueError(
            f"Batch {b} alone tells of a combination of {names}{', ...' * (len(parts) > 5)}, which "
            f"in the other {len(q) - 1} is zero, noise and all: it cannot be known. Use more "
            "samples, or leave one of these columns, with its coefficient, out of the gradients."
        )


def of_pairs(
    g: Array, pair: Array, n: float, has_intercept: bool, level: float
) -> tuple[Estimate, Estimate, float]:
    """m^2, v^2 and a^2 of antithetic pairs, in coordinates where S is the identity."""
    h, c = (pair - g) / 2, (pair + g) / 2
    q, factor, kept, unit = _factorize(h, np.maximum(np.abs(g), np.abs(pair)))
    _check_leverage(q, factor, kept, has_intercept)
    k, p = q.shape
    white_h = np.sqrt(k) * q
    white_c = solve_triangular(factor, np.sqrt(k) * (c[:, kept] / unit).T, trans="T").T
    mean = white_c.mean(axis=0)
    white_c -= mean
    length = np.linalg.norm(mean)
    e = mean / length if length > 0 else np.full(p, p**-0.5)
    shared = white_h * (white_h @ mean)[:, None] - mean
    free_share, share_error = _share(white_c, white_h, shared)
    # of Gaussian rows between Gaussian noise, 1/(n + 2), and noise of signs, 1/n, or so
    share = min(max(_shrunk(free_share, 1 / (n + 1), k), 0.0), 1.0)
    wide = np.hypot(k * share_error, _PRIOR_BATCHES / (n + 1)) / (k + _PRIOR_BATCHES)
    w = white_c - share * shared
    degrees = k - 1 - share * (p - 1)  # at a share of one w is what least squares leaves
    cov = w.T @ w / degrees
    trace, along = np.trace(cov), e @ cov @ e
    # Unbiased tr(cov^2), which is at least tr(cov)^2/p; and, in its degrees, the trace's own error
    square = (k - 1) ** 2 / ((k - 2) * (k + 1)) * (np.sum(cov**2) - trace**2 / (k - 1))
    square = max(square, trace**2 / p) + share * trace**2 / (k - p)
    fourth = _shrunk(np.sum(shared**2) / (k * length**2), p + 1, k) if length > 0 else p + 1
    inverse = 1 + fourth / (k - p - 1)  # mean of u' Omega S^-1 Omega u over m^2
    inflation = 1 + (1 - share) ** 2 * (inverse - 1)
    signal = max(length**2 - trace / k, 0.0)
    z = (white_h @ e) ** 2
    m2 = signal / inflation
    student = _student(min(_degrees(w @ e), degrees), level)
    by_noise = _signal_limits(signal, 4 * along / k, 2 * square / k**2, student) / inflation
    shares = np.clip(share + wide * np.array([-1.0, 0.0, 1.0]), 0.0, 1.0)
    degrees = k - (1 - share) * (p - 1)
    by_metric = inflation / _metric_extremes(z, shares, degrees, inverse, n, level)
    excess = _joined(m2, by_noise, by_metric)
    if not has_intercept:
        is_sparse = bool(np.any((h[:, kept] == 0) & (c[:, kept] == 0)))
        x, rows = (r - np.outer(r @ e, e) for r in (white_c, white_h))
        without = p < 2 or is_sparse
        limits = (
            np.full(3, np.nan)
            if without
            else _mse_of_trace(x, rows, (free_share, share_error), n, level)
        )
        return Estimate(excess), Estimate(limits), 0.0
    mse, a2, of_mean = _mse_of_intercept(c[:, 0], n, level)
    m = np.sqrt(m2)
    own = m * (2 * white_c @ e / np.sqrt(inflation) - m * z)
    stated = (1 - 2 * share) ** 2 * z.var(ddof=1) * m2**2
    stated += 4 * along * m2 / inflation + 2 * square / k / inflation**2
    return _with_mean(excess, own, of_mean, stated), mse, max(a2, 0.0)


def _share(white_c: Array, white_h: Array, shared: Array) -> tuple[float, float]:
    """Estimate lambda, unclipped, with its standard error.

    It is the slope of c in what it may share with the noise; and, as c c' is W on average over the
    noise in the same rows, that of c c' in h h'. Weighted by their precisions.
    """
    unit = np.mean(white_c**2)
    if unit == 0:
        return 0.0, 0.0
    along_c, along_h = np.sum(white_c**2, axis=1), np.sum(white_h**2, axis=1)
    product = np.sum(white_c * white_h, axis=1)
    slope = np.sum(white_c * shared, axis=1) / unit + (product**2 - along_c) / unit / 2
    weight = np.sum(shared**2, axis=1) / unit + (along_h**2 - along_h) / 2
    share = slope.sum() / weight.sum()
    error = np.sqrt(max(np.sum((slope - share * weight) ** 2), weight.sum())) / weight.sum()
    return float(share), float(error)


def _shrunk(measured: Any, expected: Any, k: float) -> Any:
    return (k * measured + _PRIOR_BATCHES * expected) / (k + _PRIOR_BATCHES)


def _signal_limits(signal: float, b: float, c: float, quantile: float) -> Array:
    """Limits of a squared length whose estimate has variance ``b s + c`` at s."""
    if b <= 0:
        return np.array([signal, signal])
    root = np.sqrt(b * signal + c) + np.array([-1.0, 1.0]) * quantile * b / 2
    return np.asarray(np.maximum(np.maximum(root, 0.0) ** 2 - c, 0.0) / b)


def _metric_extremes(
    z: Array, shares: Array, k: float, inverse: float, n: float, level: float
) -> Array:
    """Greatest and least factor of the signal that S in place of Omega may make."""
    # Gaussian noise on single rows has the fourth moment 9; sums of rows go to 3
    variance = z.var(ddof=1)
    variance = max(variance, _shrunk(variance, 2 + 6 / n, len(z)), 2 * (1 - shares[1]))
    degrees = 2 * k / variance
    x = _chi(degrees, level)
    unshared = (1 - shares) ** 2 * inverse * max(1 - 2 / degrees, 0.25)
    with np.errstate(divide="ignore"):
        least = np.clip(np.sqrt(unshared) / shares, *x)
    x = np.concatenate([np.broadcast_to(x[:, None], (2, 3)), [least]])
    f = unshared / x + 2 * shares * (1 - shares) + shares**2 * x
    return np.array([f.max(), f.min()])


def _mse_of_trace(x: Array, w: Array, told: tuple[float, float], n: float, level: float) -> Array:
    """v^2 from the covariance of clean gradients x across their mean, where the noise is w."""
    k, d = len(x), x.shape[1] - 1
    along_c, along_h = np.sum(x**2, axis=1), np.sum(w**2, axis=1)
    unit = along_c.sum() / (k - 1) / d
    # of Gaussian rows; and, with Gaussian noise on single rows, three times that
    fourth = _shrunk(np.mean(along_h**2) / d, (d + 2) * np.array([1, 1 + 2 / n, 1]), k) - 1
    share, share_error = told
    unshared = 1 - np.array([share, max(share - share_error, 0.0), min(share + share_error, 1.0)])
    inflation, most, least = np.maximum(1 + unshared * fourth / (k - d - 1), 0.5)
    if not unit > 0:
        return np.zeros(3)
    share = min(max(share, 0.0), 1.0)
    spread = (along_c / unit - share * along_h).var(ddof=1) / d**2
    spread = max(spread, _shrunk(spread, 2 / d + (2 + 2 / d) / n, k))
    # The trace of an inverse Wishart matrix, in the relative variance of an inverse chi-square
    kurtosis = max(
        (along_h / np.sqrt(np.maximum(1 - along_h / k, 1 / k))).var(ddof=1) / (2 * d), 1.0
    )
    kurtosis = max(kurtosis, _shrunk(kurtosis, 1 + (d + 2) / n, k))
    inverse = 4 + d * (k - d) * max(k - d - 3, 1) / (k - 1) / kurtosis
    of_c = _chi(2 * (k - 1) / spread, level)
    of_h = (1 - share) * (1 - 2 / inverse) / _chi(inverse, level) + share
    factors = inflation / of_h / [max(most, inflation), min(least, inflation)]
    estimate = n * unit / inflation
    return _joined(estimate, estimate / of_c[::-1], factors)


def _mse_of_intercept(c0: Array, n: float, level: float) -> tuple[Estimate, float, Array]:
    """v^2, a^2 and the influences on a^2, from the intercept's gradients."""
    k, mean = len(c0), float(c0.mean())
    centered = c0 - mean
    variance = float(centered.var(ddof=1))
    a2 = mean**2 - variance / k  # less the mean's own noise
    of_mean = 2 * mean * centered
    influence = n * centered**2 + of_mean
    value, spread = n * variance + a2, float(influence.var(ddof=1))
    if not value > 0:
        return Estimate(np.zeros(3)), a2, of_mean
    gaussian = 2 * (n * variance) ** 2 + 4 * max(a2, 0.0) * variance
    # means of n residuals are the nearer to Gaussian, the more they are
    stated = max(spread, _shrunk(spread, gaussian, k / n))
    limits = 1 / _chi(2 * (k - 1) * value**2 / stated, level)
    limits = value * np.array([1.0, limits[1], limits[0]])
    return _with_mean(limits, influence, of_mean, spread), a2, of_mean


def _with_mean(limits: Array, influence: Array, of_mean: Array, variance: float) -> Estimate:
    (_, along), (_, own) = np.cov(influence, of_mean)
    return Estimate(limits, *(np.array([along, own]) / variance if variance > 0 else ()))


def _joined(value: float, limits: Array, factors: Array) -> Array:
    """(value, low, high), where distances to the limits add in squares on the log scale."""
    if not value > 0:
        return np.array([value, 0.0, limits[1]])
    with np.errstate(divide="ignore"):
        away = np.hypot(np.log(limits / value), np.log(factors))
    return value * np.exp([0.0, -away[0], away[1]])


def _chi(degrees: float, level: float) -> Array:
    """Quantiles of chi-square over its degrees of freedom."""
    return np.asarray(chdtri(degrees, np.array([(1 + level) / 2, (1 - level) / 2])) / degrees)


def _degrees(influence: Array) -> float:
    # Satterthwaite: the variance of k numbers of kurtosis K has relative variance (K - 1)/k
    centered = influence - influence.mean()
    variance = np.mean(centered**2)
    excess = np.mean(centered**4) / variance**2 - 1 if variance > 0 else 0.0
    return max(2 * len(influence) / max(excess, 0.1), 1.0)


def _student(degrees: float, level: float) -> float:
    return float(stdtrit(degrees, (1 + level) / 2))


def of_single_noise(
    g: Array, n: float, has_intercept: bool, level: float
) -> tuple[Estimate, Estimate, float]:
    """m^2 of single noise, by noncentral F limits, no v^2, and a^2."""
    mean = g.mean(axis=0)
    _, factor, kept, unit = _factorize(g - mean, g)
    k, p = len(g), len(kept)
    half = solve_triangular(factor, mean[kept] / unit, trans="T")
    hotelling = (k - 1) * float(half @ half)
    a_squares, rho, known = np.zeros(3), 1.0, 0.0
    if has_intercept:
        variance = g[:, 0].var(ddof=1)
        a, known = abs(mean[0]), mean[0] ** 2 / variance
        margin = stdtrit(k - 1, (1 + level) / 2) * np.sqrt(variance / k)
        limits = max(a - margin, 0.0) ** 2, (a + margin) ** 2
        a_squares = np.array([max(a**2 - variance / k, 0.0), *limits])
        rho = max(1 - a_squares[0] / (n * variance), 0.0)
    d = max(p - has_intercept, 1)
    given = 1 + k / (k - 1) * known
    ratio = (k - p) / d * k / (k - 1) * max(hotelling - known, 0.0) / given
    centre = max(d * ((k - p - 2) / (k - p) * ratio - 1), 0.0)
    tails = (1 + level) / 2, (1 - level) / 2
    added = centre, *(_noncentrality(ratio, d, k - p, tail, k * n) for tail in tails)
    share = np.array(added) * given / k / n
    room = rho**2 - (1 + rho) * share
    b_squares = np.full(3, np.inf)
    np.divide((n + a_squares[0]) * share, room, out=b_squares, where=room > 0)
    b_squares[share == 0] = 0.0
    if np.isinf(b_squares[1]):  # past saturation by the intercept alone: b is unknown
        b_squares[1] = 0.0
    value, low, high = a_squares + b_squares
    share_a = np.zeros(3)  # of the squared distances
    if np.isfinite(value):
        a_away, b_away = np.abs(a_squares - a_squares[0]), np.abs(b_squares - b_squares[0])
        away = np.hypot(a_away, b_away)
        # of two that may be zero the sum may be, although the distances add up to less
        low = max(value - away[1], 0.0) if a_squares[1] + b_squares[1] > 0 else 0.0
        high = value + away[2]
        np.divide(a_away, away, out=share_a, where=(away > 0) & np.isfinite(away))
    if np.isinf(high) or 1 + 2 * value / n > _LARGE_CORRECTION:
        warnings.warn(
            f"Single-noise gradients of batch size {n:g} saturate at an excess risk of this order. "
            f"The estimate {value:.3g} is {1 + 2 * value / n:.3g} times what they show, for "
            f"Gaussian features{', without upper limit' if np.isinf(high) else ''}. Use antithetic "
            "gradients, a larger batch_size, or coefficients closer to the optimum.",
            CalibrationWarning,
            stacklevel=3,
        )
    told = Estimate(np.array([value, low, high]), share_a**2, share_a**2)
    return told, Estimate(np.full(3, np.nan)), float(a_squares[0])


def _noncentrality(f: float, d1: int, d2: int, probability: float, largest: float) -> float:
    # scipy.special.ncfdtrinc is right to four digits only, and ends at 1e4
    law = f, d1, d2, probability
    if _noncentral_f_gap(0.0, *law) <= 0:
        return 0.0
    if _noncentral_f_gap(largest, *law) >= 0:
        return np.inf
    return float(brentq(_noncentral_f_gap, 0.0, largest, args=law, rtol=1e-10))


def _noncentral_f_gap(nc: float, f: float, d1: int, d2: int, probability: float) -> float:
    """Distribution function of the noncentral F law at f, less a probability."""
    # A Poisson mixture of central laws, over the terms that matter
    reach = 9 * np.sqrt(nc / 2 + 1) + 30
    j = np.arange(max(0, np.floor(nc / 2 - reach)), nc / 2 + reach)
    weight = np.exp(xlogy(j, nc / 2) - nc / 2 - gammaln(j + 1))
    return float(weight @ betainc(d1 / 2 + j, d2 / 2, d1 * f / (d1 * f + d2))) - probability
