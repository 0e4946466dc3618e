r"""Adversarial risk from batch gradients alone, with its interval.

Who sees only gradients knows the coefficients, thus D, and needs v^2, the mean square of the
residuals, and a, their mean, which the intercept's gradient tells and which is taken for zero
without (`_risk.closed_form`). v^2 is estimated as below, invariantly under linear maps of the
features.

Notation: k batches of n rows; z is a row, with a leading one if the intercept's gradient is seen,
p its length; Omega = E[z z']; u the error of the coefficients; m^2 = u' Omega u the excess risk;
s^2 the label noise; v^2 = s^2 + m^2 the mean squared error; a = E[z]'u the mean residual.

Antithetic noise. ``h = (g_minus - g_plus)/2`` has second moment Omega, and the clean gradient
``c = (g_plus + g_minus)/2`` has mean Omega u, for any law of z. So with ``S = sum h h'/k``,
``C = cov(c)`` and the Wishart factor f = (k - p - 1)/k of the inverse, ``f (cbar' S^-1 cbar -
tr(S^-1 C)/k)`` estimates m^2; it contains the intercept's error when column 0 is there.

* Without the intercept, Gaussian rows about zero: ``n C = v^2 Omega + Omega u u' Omega``. The
  functionals w with ``w' cbar = 0`` see v^2 alone: ``n/(p-1) f' tr((B'SB)^-1 B'CB)``, B a basis of
  them. The Wishart matrix B'SB has p - 1 dimensions, so f' = (k - p)/k. Heavy tails inflate it.
* With the intercept, any law: c_0 is the mean residual of a batch, so that ``n var(c_0) + mean(c_0)
  ^2`` estimates v^2, with a relative standard error of sqrt(2/k). No Gaussian rows are needed.

Single noise, total variance tau = n. For Gaussian rows ``n cov(g) = T Omega + Omega u u' Omega -
2 a^2 mu mu'``, with T = tau + m^2, mu = E[z] (`_moments.remove_nuisance`). Split m^2 = a^2 + b^2.
The intercept's gradient has mean a and variance ``(T - a^2)/n``. In centred coordinates mu is the
first unit vector; given g_0, what the other coordinates add to ``mean(g)' cov(g)^-1 mean(g)`` is
``Delta = n b^2 rho^2/(T + rho b^2)``, rho = (T - 2 a^2)/(T - a^2). Hotelling's test of additional
information has a noncentral F law in Delta, whose limits give those of ``b^2 = (tau + a^2) Delta/(n
rho^2 - (1 + rho) Delta)``; a has Student's. The two are independent, so distances from estimate to
limit add in squares (Zou and Donner's MOVER). Without an intercept a = 0 and rho = 1: what is left
is tau Delta/(n - 2 Delta), infinite from Delta = n/2 on.

Risk at radius r. With ``q = a^2/v^2`` held, it is an increasing function of v^2, so an interval of
v^2 is mapped. In its place stands that of ``W_a a^2 + W_b (v^2 - a^2)``, which to first order has
the risk's errors: W are the slopes of the risk in a^2 and in v^2 - a^2 over that in v^2 at fixed q,
``(v + r D f)/(v + r D E|e|/v)``, f the slopes of `folded_normal`. Its standard error, over that of
v^2, stretches the interval on the log scale. At r = 0 or a = 0 the weights are one.
"""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr, solve_triangular
from scipy.optimize import brentq
from scipy.special import betainc, gammaln, stdtrit, xlogy

from sklearn_gradhess._risk import closed_form, dual_norm, folded_normal
from sklearn_gradhess.exceptions import CalibrationWarning

__all__ = ["GradientAdversarialRisk", "gradient_adversarial_risk"]

Array = npt.NDArray[np.float64]
_LARGE_CORRECTION = 1.5  # of the saturation of single noise


@dataclass(frozen=True, eq=False)
class GradientAdversarialRisk:
    """What `gradient_adversarial_risk` found; print it.

    Attributes
    ----------
    radius : float or ndarray
        Radii of the attack.
    value, low, high : float or ndarray of the shape of `radius`
        Mean squared error under attack, and its limits; `high` may be infinite. The band over an
        array of radii is simultaneous where the mean residual is zero: the interval of one
        variance is behind all of it. Elsewhere the limits are for each radius on its own.
    target, scheme, confidence_level : str, str and float
        What the error is against, "observed" or "clean" targets; the noise scheme of the
        gradients, "antithetic" or "single"; and the nominal coverage of the intervals.
    excess_risk, mean_squared_error, noise_variance : float
        m^2, the intercept's error included where its gradient was seen; v^2 = s^2 + m^2; and s^2,
        as given or as estimated. NaN where unknown.
    excess_risk_interval, mean_squared_error_interval : tuple of (float, float)
        Limits of m^2 and of v^2.
    mean_residual : float
        a, without its sign: estimated where the intercept's gradient was seen, zero otherwise.
    dual_norm, n_batches, batch_size : float, int and int
        Dual norm of the coefficients, taken as exact; number of batches, and rows in each.
    """

    radius: float | Array
    value: float | Array
    low: float | Array
    high: float | Array
    target: str
    scheme: str
    confidence_level: float
    excess_risk: float
    mean_squared_error: float
    noise_variance: float
    excess_risk_interval: tuple[float, float]
    mean_squared_error_interval: tuple[float, float]
    mean_residual: float
    dual_norm: float
    n_batches: int
    batch_size: int

    def __str__(self) -> str:
        r, *curves = map(np.ravel, (self.radius, self.value, self.low, self.high))
        shown = np.linspace(0, len(r) - 1, min(len(r), 7)).round().astype(int)
        rows = [(f"risk at radius {r[i]:.3g}", *(c[i] for c in curves)) for i in shown]
        rows.append(("excess risk m^2", self.excess_risk, *self.excess_risk_interval))
        if not np.isnan(self.mean_squared_error):
            interval = self.mean_squared_error_interval
            rows.append(("mean squared error", self.mean_squared_error, *interval))
        lines = [
            f"Adversarial risk of the {self.target} target from gradients: {self.scheme} noise, "
            f"{self.n_batches} batches of {self.batch_size} rows, "
            f"{100 * self.confidence_level:.4g} % intervals",
            *(f"  {name:<20} {v:<9.4g} [{a:.4g}, {b:.4g}]" for name, v, a, b in rows),
        ]
        for name in ("noise variance", "dual norm"):
            lines.append(f"  {name:<20} {getattr(self, name.replace(' ', '_')):.4g}")
        return "\n".join(lines)


class _Estimate(NamedTuple):
    """Limits of a mean square, and how its error goes with that of a^2, the squared mean residual.

    along is the covariance of the two errors and of_mean the variance of that of a^2, both over the
    variance of the error of the mean square; numbers, or one for each of the limits.
    """

    limits: Array  # value, low, high
    along: Any = 0.0
    of_mean: Any = 0.0


def gradient_adversarial_risk(
    gradients: npt.ArrayLike,
    antithetic: npt.ArrayLike | None = None,
    *,
    coef: npt.ArrayLike,
    batch_size: int,
    radius: npt.ArrayLike,
    norm: float | str = 2,
    target: str = "observed",
    noise_variance: float | None = None,
    confidence_level: float = 0.95,
    has_intercept: bool = False,
    scale: npt.ArrayLike | None = None,
    covariance: Any = None,
) -> GradientAdversarialRisk:
    r"""Mean squared error under attack with its interval, from batch gradients alone.

    The gradients are those of the half mean squared error over k batches, all at the same
    coefficients, with calibrated noise added to the targets.

    Parameters
    ----------
    gradients : array-like of shape (n_batches, n_features) or (n_batches, n_features + 1)
        Mean gradient of each batch at targets y + xi, where xi has variance `batch_size`; without
        `antithetic` the noise that is in y already counts towards it (`calibrated_variance`).
    antithetic : array-like of the shape of `gradients`, default=None
        Gradients of the same batches at targets y - xi. Without them features must be Gaussian.
    coef : array-like of shape (n_features,)
        Coefficients where the gradients were taken, without the intercept.
    batch_size : int
        Rows in each batch.
    radius : float or array-like
        Radius of the attack; an array gives the whole curve.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack, see `dual_norm`.
    target : {"observed", "clean"}, default="observed"
        "observed": the error against y, its noise included. "clean": against ``x @ w0``.
    noise_variance : float, default=None
        s^2, variance of the noise in y, in squared units of the target. None estimates it from
        pairs; single-noise gradients do not tell it, and target="observed" needs it.
    confidence_level : float, default=0.95
        Nominal coverage of the intervals.
    has_intercept : bool, default=False
        Whether column 0 is the gradient of the intercept. Then features need not be centred, nor
        residuals, the excess risk includes the intercept's error, and the error against y, from
        pairs, needs no assumption on the features, at the price of a relative standard error of
        ``sqrt(2/k)``.
    scale, covariance : array-like, default=None
        See `dual_norm`; taken as exact.

    Returns
    -------
    result : GradientAdversarialRisk
        `value`, `low` and `high`, of the shape of `radius`, and what they come from.

    Raises
    ------
    ValueError
        If gradients are not finite, carry no noise, or are too few (three more than their columns
        are needed), an argument is out of range, or the noise variance is neither given nor
        identifiable.

    Warns
    -----
    CalibrationWarning
        If the excess risk is of the order of the batch size, where single-noise gradients
        saturate. Past that `high`, and later `value`, is infinite.

    Notes
    -----
    At radius > 0 residuals are taken for Gaussian, of the mean a that the intercept's gradient
    tells; without `has_intercept` of mean zero, which gives too little where it is not: their mean
    absolute value is ``sqrt(2/pi) v`` at a = 0, and goes up to v at ``abs(a) = v``.

    Pairs without `has_intercept`: the error against y takes features for Gaussian about zero;
    elliptical ones of kurtosis 3 kappa inflate it to ``s^2 + kappa m^2``.

    References
    ----------
    MATH sections 5 and 5.1; arXiv 2601.18546, Lemma 4.2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_gradhess.metrics import gradient_adversarial_risk
    >>> rng, n = np.random.default_rng(0), 32
    >>> X, noise = rng.normal(size=(400, n, 2)), np.sqrt(n) * rng.normal(size=(400, n))
    >>> residual = X @ [1.0, 0.0] + rng.normal(size=(400, n))
    >>> pair = [np.einsum("bij,bi->bj", X, residual + xi) / n for xi in (-noise, noise)]
    >>> print(gradient_adversarial_risk(*pair, coef=[2.0, 0.0], batch_size=n, radius=0.1))
    Adversarial risk of the observed target from gradients: antithetic noise,
    400 batches of 32 rows, 95 % intervals
      risk at radius 0.1 ...
    """
    g, w, r = (np.asarray(a, dtype=np.float64) for a in (gradients, coef, radius))
    pair = None if antithetic is None else np.asarray(antithetic, dtype=np.float64)
    _check_gradients(g, pair, w, has_intercept)
    if target not in ("observed", "clean"):
        raise ValueError(f"target must be 'observed' or 'clean', got {target!r}.")
    if not 0 < batch_size < np.inf:
        raise ValueError(f"batch_size must be finite and > 0, got {batch_size!r}.")
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must be in (0, 1), got {confidence_level!r}.")
    for name, values in (("radius", r), ("noise_variance", np.array(noise_variance or 0.0))):
        if not np.all((values >= 0) & np.isfinite(values)):
            raise ValueError(f"{name} must be finite and >= 0, got {values!r}.")
    if pair is None and noise_variance is None and target == "observed":
        raise ValueError(
            "Single-noise gradients do not tell the noise of the observed target. Pass "
            "noise_variance, or antithetic gradients, or use target='clean'."
        )
    dual = float(dual_norm(w, norm, scale=scale, covariance=covariance))
    of_excess, of_mse, a2 = (
        _single_noise(g, batch_size, has_intercept, confidence_level)
        if pair is None
        else _antithetic(g, pair, batch_size, has_intercept, confidence_level)
    )
    excess, mse = of_excess.limits, of_mse.limits
    if noise_variance is not None:
        mse = excess + noise_variance
    elif target == "observed" and np.isnan(mse[0]):
        raise ValueError(
            "A single feature's gradients do not tell label noise and excess risk apart. Pass "
            "noise_variance, or the intercept's gradient too, with has_intercept=True."
        )
    told, added = of_mse, 0.0
    if target == "clean" or noise_variance is not None:
        told, added = of_excess, 0.0 if target == "clean" else float(noise_variance or 0.0)
    curves = _risk_limits(told, added, a2, r[..., None] * dual)
    value, low, high = (float(c) if r.ndim == 0 else c for c in np.moveaxis(curves, -1, 0))
    return GradientAdversarialRisk(
        radius=float(r) if r.ndim == 0 else r,
        value=value,
        low=low,
        high=high,
        target=target,
        scheme="single" if pair is None else "antithetic",
        confidence_level=confidence_level,
        excess_risk=float(excess[0]),
        excess_risk_interval=(float(excess[1]), float(excess[2])),
        noise_variance=float(
            np.maximum(mse[0] - excess[0], 0.0) if noise_variance is None else noise_variance
        ),
        mean_squared_error=float(mse[0]),
        mean_squared_error_interval=(float(mse[1]), float(mse[2])),
        mean_residual=float(np.sqrt(a2)),
        dual_norm=dual,
        n_batches=len(g),
        batch_size=batch_size,
    )


def _risk_limits(told: _Estimate, added: float, a2: float, attack: Array) -> Array:
    """(value, low, high) of the risk where v^2 is what was estimated and a known variance more."""
    limits, value = told.limits, told.limits[0]
    if not (0 < value < np.inf and a2 > 0):
        return closed_form(limits + added, attack)
    share = a2 / (value + added)
    v = np.sqrt(value + added)
    mean, by_variance, by_mean = folded_normal(share)
    w_b, w_a = ((v + attack * slope) / (v + attack * mean) for slope in (by_variance, by_mean))
    gap = w_a - w_b
    stretch = w_b**2 + 2 * w_b * gap * told.along + gap**2 * told.of_mean
    stretch = np.sqrt(np.maximum(stretch, 0.0))
    stretched = np.where(stretch == 1, limits, value * (limits / value) ** stretch)
    shares = np.broadcast_to(share, stretched.shape).copy()
    low = stretched[..., 1]  # a lower limit below a^2 is one of a^2, too
    shares[..., 1] = np.minimum(share, low / (low + added)) if added > 0 else min(share, 1.0)
    return closed_form(stretched + added, attack, shares)


def _check_gradients(g: Array, pair: Array | None, w: Array, has_intercept: bool) -> None:
    if g.ndim != 2 or (pair is not None and pair.shape != g.shape):
        raise ValueError(
            f"gradients has shape {g.shape}{'' if pair is None else f', antithetic {pair.shape}'}: "
            "row b must be the gradient of batch b, and both must have the same shape."
        )
    if w.shape != (g.shape[1] - has_intercept,):
        raise ValueError(
            f"coef has shape {w.shape}, but gradients of {g.shape[1]} columns with "
            f"has_intercept={has_intercept} need ({g.shape[1] - has_intercept},). coef has no "
            "entry for the intercept; column 0 is its gradient where has_intercept=True."
        )
    finite = np.isfinite(g) if pair is None else np.isfinite(g) & np.isfinite(pair)
    bad = int(np.sum(~finite.all(axis=1)))
    if bad:
        raise ValueError(
            f"Gradients of {bad} of {len(g)} batches have NaN or infinite entries. Drop these "
            "batches, or take gradients at coefficients that have not diverged."
        )


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


def _antithetic(
    g: Array, pair: Array, n: float, has_intercept: bool, level: float
) -> tuple[_Estimate, _Estimate, float]:
    """m^2, v^2 and a^2, the first two with intervals by influence functions.

    In coordinates where S is the identity the influence of batch b on m^2 is ``2 m y_b - m^2
    z_b``: ``y_b = e'(c_b - cbar)``, ``z_b = (e'h_b)^2``, e the direction of cbar. The influence of
    S is divided by ``sqrt(1 - leverage)``: without, the variance is low by the factor 1 - p/k (a
    deletion jackknife divides by 1 - leverage, and is high by as much).
    """
    h, c = (pair - g) / 2, (pair + g) / 2
    q, factor, kept, unit = _factorize(h, np.maximum(np.abs(g), np.abs(pair)))
    k, p = q.shape
    white_h = np.sqrt(k) * q
    white_c = solve_triangular(factor, np.sqrt(k) * (c[:, kept] / unit).T, trans="T").T
    mean = white_c.mean(axis=0)
    white_c -= mean
    length = np.linalg.norm(mean)
    e = mean / length if length > 0 else np.full(p, p**-0.5)
    debias = (k - p - 1) / k
    cov = white_c.T @ white_c / (k - 1)
    trace = np.trace(cov)
    m2 = max(debias * (length**2 - trace / k), 0.0)
    m = np.sqrt(m2)

    z = (white_h @ e) ** 2 / np.sqrt(1 - np.sum(q**2, axis=1))
    y = np.sqrt(debias) * white_c @ e
    # y and z share the fluctuation of the features: y = slope z + rest, slope of the order of m
    (var_z, yz), (_, var_y) = np.cov(z, y)
    share = np.clip(yz / (var_z * m), 0.0, 1.0) if m > 0 else 0.0
    # Unbiased tr(cov^2): the variance that is left at m = 0
    square = (k - 1) ** 2 / ((k - 2) * (k + 1)) * (np.sum(cov**2) - trace**2 / (k - 1))
    quantile = _t_quantile(2 * y - m * z, level)
    law = (
        max((1 - 2 * share) ** 2 * var_z / k, 1e-6),
        4 * (var_y - yz**2 / var_z) / k,
        2 * (debias / k) ** 2 * max(square, 0.0),
    )
    excess = _stabilized_interval(m2, law, quantile)
    if not has_intercept:
        return _Estimate(excess), _Estimate(_mse_of_trace(white_c, white_h, e, n, level)), 0.0
    mean_residual = c[:, 0].mean()
    centered = c[:, 0] - mean_residual
    variance = centered.var(ddof=1)
    # n var(c_0) + mean^2, less the mean's own noise
    a2 = mean_residual**2 - variance / k
    of_mean = 2 * mean_residual * centered
    influence = n * centered**2 + of_mean
    mse = _log_interval(n * variance + a2, influence, level)
    stated = k * (law[0] * m2**2 + law[1] * m2 + law[2])
    return (
        _with_mean(excess, m * (2 * y - m * z), of_mean, stated),
        _with_mean(mse, influence, of_mean, float(influence.var(ddof=1))),
        max(float(a2), 0.0),
    )


def _with_mean(limits: Array, influence: Array, of_mean: Array, variance: float) -> _Estimate:
    (_, along), (_, own) = np.cov(influence, of_mean)
    return _Estimate(limits, *(np.array([along, own]) / variance if variance > 0 else ()))


def _stabilized_interval(m2: float, law: tuple[float, float, float], quantile: float) -> Array:
    """(value, low, high) where the estimate of m^2 has variance ``A m^4 + B m^2 + C``.

    ``t(s) = log(2 sqrt(A V(s)) + 2 A s + B)``, V(s) the variance at s, has the constant standard
    deviation sqrt(A): the log scale for large s, linear near zero, where the log breaks down.
    """
    a, b, c = law
    at_zero = 2 * np.sqrt(a * c) + b
    here = 2 * np.sqrt(a * (a * m2 * m2 + b * m2 + c)) + 2 * a * m2 + b
    if here <= 0:
        return np.zeros(3)
    with np.errstate(over="ignore", invalid="ignore"):
        t = np.maximum(here * np.exp(np.array([-1.0, 1.0]) * quantile * np.sqrt(a)), at_zero)
        low, high = np.where(t > at_zero, ((t - b) ** 2 - 4 * a * c) / (4 * a * t), 0.0)
    return np.array([m2, max(low, 0.0), high if np.isfinite(high) else np.inf])


def _mse_of_trace(white_c: Array, white_h: Array, e: Array, n: float, level: float) -> Array:
    """v^2 from the clean gradients' covariance across their mean; see the module's docstring."""
    k, p = white_c.shape
    if p < 2:
        return np.full(3, np.nan)
    x, w = (rows - np.outer(rows @ e, e) for rows in (white_c, white_h))
    cov = x.T @ x / (k - 1)
    gain = n / (p - 1) * (k - p) / k
    along_c, along_h = np.sum(x**2, axis=1), np.sum(w @ cov * w, axis=1)
    leverage = np.sum(w**2, axis=1) / k
    estimate = gain * np.trace(cov)
    # Delete-one values, exactly, by Sherman and Morrison: their mean tells the bias of order n_b/k
    # that comes of both halves sharing the features of a batch, and of h not being Gaussian
    shared = (k - 1) * along_h - k / (k - 1) * np.sum(x * w, axis=1) ** 2
    left = (k - 1) * np.trace(cov) - k / (k - 1) * along_c + shared / (k * (1 - leverage))
    deleted = n / (p - 1) * (k - 1 - p) / k * left / (k - 2)
    unbiased = k * estimate - (k - 1) * deleted.mean()
    influence = gain * (along_c - along_h / np.sqrt(1 - leverage))
    return _log_interval(np.clip(unbiased, estimate / 2, 2 * estimate), influence, level)


def _log_interval(estimate: float, influence: Array, level: float) -> Array:
    if not estimate > 0:
        return np.zeros(3)
    error = influence.std(ddof=1) / np.sqrt(len(influence)) / estimate
    with np.errstate(over="ignore"):
        return estimate * np.exp(_t_quantile(influence, level) * error * np.array([0.0, -1.0, 1.0]))


def _t_quantile(influence: Array, level: float) -> float:
    # Satterthwaite: the variance of k numbers of kurtosis K has relative variance (K - 1)/k
    centered = influence - influence.mean()
    variance = np.mean(centered**2)
    excess = np.mean(centered**4) / variance**2 - 1 if variance > 0 else 0.0
    degrees = 2 * len(influence) / max(excess, 0.1)
    return float(stdtrit(max(degrees, 1.0), (1 + level) / 2))


def _single_noise(
    g: Array, n: float, has_intercept: bool, level: float
) -> tuple[_Estimate, _Estimate, float]:
    """m^2, by noncentral F limits, no v^2, and a^2; names as in the module's docstring."""
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
    told = _Estimate(np.array([value, low, high]), share_a**2, share_a**2)
    return told, _Estimate(np.full(3, np.nan)), float(a_squares[0])


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
