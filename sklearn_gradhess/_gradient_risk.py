r"""Adversarial risk from batch gradients alone, with its interval.

Who sees only gradients knows the coefficients, thus D, and needs v^2, the mean square of the
residuals, and a, their mean, which the intercept's gradient tells and which is taken for zero
without (`_risk.closed_form`). `_excess_risk` estimates them, with limits.

Risk at radius r. With ``q = a^2/v^2`` held, it is an increasing function of v^2, so an interval of
v^2 is mapped. In its place stands that of ``W_a a^2 + W_b (v^2 - a^2)``, which to first order has
the risk's errors: W are the slopes of the risk in a^2 and in v^2 - a^2 over that in v^2 at fixed q,
``(v + r D f)/(v + r D E|e|/v)``, f the slopes of `folded_normal`. Its standard error, over that of
v^2, stretches the interval on the log scale. At r = 0 or a = 0 the weights are one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._excess_risk import Estimate, hardly_seen, of_pairs, of_single_noise
from sklearn_gradhess._risk import closed_form, dual_norm, folded_normal
from sklearn_gradhess._scale import noise_seen, swap_intercept

__all__ = ["GradientAdversarialRisk", "gradient_adversarial_risk"]

Array = npt.NDArray[np.float64]
# Batches whose noise of signs may cancel in all of them, at a probability of 1/2 each
_FEW = 22


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
    intercept_position: str = "first",
    gradient_scale: float = 1.0,
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
        Whether one column is the gradient of the intercept. Then features need not be centred, nor
        residuals, the excess risk includes the intercept's error, and the error against y, from
        pairs, needs no assumption on the features, at the price of a relative standard error of
        ``sqrt(2/k)``. It also shows the noise, so that wrong gradients are refused.
    intercept_position : {"first", "last"}, default="first"
        Which column that is; "last" where gradients come from torch's parameters.
    gradient_scale : float, default=1.0
        Factor between the gradients passed and those of the mean half loss: 2 for the mean squared
        error without the half (torch's `MSELoss()`), `batch_size` for a sum of half losses, twice
        that for `MSELoss(reduction="sum")`. Without `has_intercept` nothing can show a wrong one.
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
        are needed); a column, such as a rare level of a category, varies in fewer than four batches
        (it is named); the intercept's gradient shows another noise than that of variance
        `batch_size`, beyond its sampling error (the message names the `gradient_scale` that would
        explain it); an argument is out of range, or the noise variance is neither given nor
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
    elliptical ones of kurtosis 3 kappa inflate it to ``s^2 + kappa m^2``. Where features are zero
    in some batches, they are seen not to be, and the error is not told.

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
    names = getattr(gradients, "columns", None)
    g, w, r = (np.asarray(a, dtype=np.float64) for a in (gradients, coef, radius))
    pair = None if antithetic is None else np.asarray(antithetic, dtype=np.float64)
    _check_numbers(target, batch_size, confidence_level, gradient_scale, intercept_position)
    for name, values in (("radius", r), ("noise_variance", np.array(noise_variance or 0.0))):
        if not np.all((values >= 0) & np.isfinite(values)):
            raise ValueError(f"{name} must be finite and >= 0, got {values!r}.")
    _check_gradients(g, pair, w, has_intercept)
    if pair is None and noise_variance is None and target == "observed":
        raise ValueError(
            "Single-noise gradients do not tell the noise of the observed target. Pass "
            "noise_variance, or antithetic gradients, or use target='clean'."
        )
    _check_seen(g, pair, has_intercept, names, intercept_position)
    first = swap_intercept if has_intercept and intercept_position == "last" else np.asarray
    g, pair = first(g / gradient_scale), None if pair is None else first(pair / gradient_scale)
    dual = float(dual_norm(w, norm, scale=scale, covariance=covariance))
    of_excess, of_mse, a2 = (
        of_single_noise(g, batch_size, has_intercept, confidence_level)
        if pair is None
        else of_pairs(g, pair, batch_size, has_intercept, confidence_level)
    )
    excess, mse = of_excess.limits, of_mse.limits
    if has_intercept:
        _check_noise(g, pair, batch_size, excess, gradient_scale)
    if noise_variance is not None:
        mse = excess + noise_variance
    elif target == "observed" and np.isnan(mse[0]):
        raise ValueError(
            f"{_why_untold(g)} do not tell label noise and excess risk apart. Pass "
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


def _risk_limits(told: Estimate, added: float, a2: float, attack: Array) -> Array:
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


def _why_untold(g: Array) -> str:
    if g.shape[1] == 1:
        return "A single feature's gradients"
    sparse = np.sum(np.any(g == 0, axis=0))
    return f"Gradients of features that are zero in some batches ({sparse} columns), not Gaussian,"


def _check_numbers(target: str, n: float, level: float, scale: float, position: str) -> None:
    if target not in ("observed", "clean"):
        raise ValueError(f"target must be 'observed' or 'clean', got {target!r}.")
    if not 0 < n < np.inf:
        raise ValueError(f"batch_size must be finite and > 0, got {n!r}.")
    if not 0 < level < 1:
        raise ValueError(f"confidence_level must be in (0, 1), got {level!r}.")
    if not 0 < scale < np.inf:
        raise ValueError(f"gradient_scale must be finite and > 0, got {scale!r}.")
    if position not in ("first", "last"):
        raise ValueError(f"intercept_position must be 'first' or 'last', got {position!r}.")


def _check_seen(
    g: Array, pair: Array | None, has_intercept: bool, names: Any, position: str
) -> None:
    """Refuse columns that too few batches tell of; leverage one would leave no error of theirs."""
    is_last = has_intercept and position == "last"
    noise, clean = (g, g) if pair is None else ((pair - g) / 2, (pair + g) / 2)
    if is_last:
        noise, clean = swap_intercept(noise), swap_intercept(clean)
    columns, counts = hardly_seen(noise, clean, has_intercept)
    if not columns:
        return
    told = [(j - 1) % g.shape[1] if is_last else j for j in columns]
    labels = [
        f"{j if names is None else repr(names[j])} (in {count})"
        for j, count in zip(told[:5], counts, strict=False)
    ]
    raise ValueError(
        f"Columns of gradients that vary in too few of the {len(g)} batches to be known: "
        f"{', '.join(labels)}{', ...' if len(columns) > 5 else ''}; four batches are the least. A "
        "rare level of a category does so. Join rare levels, or use more samples or a larger "
        "batch_size; or leave these columns, with their coefficients, out of the gradients if they "
        "hardly matter."
    )


def _check_noise(g: Array, pair: Array | None, n: float, excess: Array, scale: float) -> None:
    """Refuse gradients whose intercept shows another noise than the calibrated one."""
    value, low, high = excess

    def seen_in(column: int) -> Any:
        other = None if pair is None else pair[:, column]
        error = (high - low) / 4
        return noise_seen(
            g[:, column], other, batch_size=n, excess_risk=value, excess_risk_error=error
        )

    seen = seen_in(0)
    if pair is not None and len(g) < _FEW and seen.ratio < 1:
        # signs of an even number of rows may cancel, in all of few batches too
        canceled = (pair[:, 0] == g[:, 0]) & (g[:, 0] != 0)
        if canceled.any():
            return
    if seen.mismatched:
        fact, way_out = seen.explain(n, gradient_scale=scale, other_end=seen_in(-1))
        way_out = way_out or (
            "Noise that is in y already counts towards it: see calibrated_variance."
            if pair is None
            else "Were both gradients of a pair taken on the same batch, with the same noise?"
        )
        raise ValueError(
            f"{fact} {way_out} gradient_scale is the factor between these gradients and those of "
            "the mean half loss."
        )


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
