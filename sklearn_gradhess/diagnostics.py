"""How many batches an estimate needs, how good one is, and what may be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

__all__ = [
    "CalibrationReport",
    "Failure",
    "calibration_report",
    "expected_relative_error",
    "required_batch_size",
    "required_batches",
]


def _effective_rank(eigenvalues_or_n_features: npt.ArrayLike) -> float:
    values = np.asarray(eigenvalues_or_n_features, dtype=np.float64)
    if values.size == 0 or not np.all(np.isfinite(values)) or values.min() < 0 or not values.any():
        raise ValueError(
            "eigenvalues_or_n_features must be a positive number of features, or nonnegative "
            f"eigenvalues that are not all zero; got {eigenvalues_or_n_features!r}."
        )
    return float(values) if values.ndim == 0 else float(values.sum() / values.max())


def _check_error(relative_error: npt.ArrayLike) -> npt.NDArray[np.float64]:
    error = np.asarray(relative_error, dtype=np.float64)
    if not np.all((error > 0) & np.isfinite(error)):
        raise ValueError(f"relative_error must be finite and > 0, got {relative_error!r}.")
    return error


def _check_risk(excess_risk: npt.ArrayLike) -> npt.NDArray[np.float64]:
    risk = np.asarray(excess_risk, dtype=np.float64)
    if np.any(risk < 0):
        raise ValueError(f"excess_risk must be >= 0, got {excess_risk!r}.")
    return risk


def required_batches(
    eigenvalues_or_n_features: npt.ArrayLike, relative_error: npt.ArrayLike
) -> int | npt.NDArray[np.int64]:
    r"""Batches that antithetic or well-calibrated gradients need for a relative error.

    The smallest k with ``2 sqrt(r/k) + r/k <= relative_error`` in operator norm, where r is the
    effective rank of the Hessian, trace over largest eigenvalue; about ``4 r / relative_error^2``.

    Parameters
    ----------
    eigenvalues_or_n_features : float or array-like of shape (n_features,)
        Eigenvalues of the Hessian, any scale. A single number stands for that many equal ones,
        which is the worst case.
    relative_error : float or array-like
        Error in operator norm over the norm of the Hessian.

    Returns
    -------
    n_batches : int or ndarray of int
        Number of batches, of the shape of `relative_error`.

    Raises
    ------
    ValueError
        If the eigenvalues are negative, empty or all zero, or an error is not positive.

    References
    ----------
    MATH section 2.3. The paper conjectures k = O(d/eps^2) (arXiv 2601.18546).

    Examples
    --------
    >>> from sklearn_gradhess.diagnostics import required_batches
    >>> required_batches(20, [0.5, 0.1])
    array([ 396, 8396])
    """
    rank = _effective_rank(eigenvalues_or_n_features)
    error = _check_error(relative_error)
    # with t = sqrt(r/k) the inequality is (1 + t)^2 <= 1 + eps
    t = error / (1 + np.sqrt(1 + error))
    batches = np.ceil(rank / t**2)
    less = np.maximum(batches - 1, 1)  # rounding may lift the quotient past a whole number
    batches = np.where(2 * np.sqrt(rank / less) + rank / less <= error, less, batches)
    batches = batches.astype(np.int64)
    return int(batches) if batches.ndim == 0 else batches


def required_batch_size(
    excess_risk: npt.ArrayLike, relative_error: npt.ArrayLike, noise: str = "single"
) -> int | npt.NDArray[np.int64]:
    r"""Rows a batch needs so that the nuisance stays below a relative error.

    The smallest n with ``2 excess_risk / n <= relative_error``: a single noisy gradient adds
    ``(m^2 Sigma + Sigma u u' Sigma)/n`` to the covariance, of relative size at most ``2 m^2/n``.
    Antithetic noise has no such term, so one row is enough.

    Parameters
    ----------
    excess_risk : float or array-like
        m^2 at the coefficients where gradients are taken, in units of the calibrated noise.
    relative_error : float or array-like
        Error in operator norm over the norm of the Hessian.
    noise : {"single", "antithetic"}, default="single"
        Noise scheme.

    Returns
    -------
    batch_size : int or ndarray of int
        Rows in a batch.

    Raises
    ------
    ValueError
        If an argument is out of range; for noise="none", which no batch size calibrates.

    References
    ----------
    MATH section 2.3; arXiv 2601.18546: Lemma 4.2 for the nuisance. The paper proves that
    n = O(d^3/eps^2), up to logarithms, is enough, and conjectures n = Omega(R^2/eps), R the
    distance to the optimum.

    Examples
    --------
    >>> from sklearn_gradhess.diagnostics import required_batch_size
    >>> required_batch_size(4.0, 0.1)
    80
    """
    if noise not in ("single", "antithetic"):
        raise ValueError(
            f"noise must be 'single' or 'antithetic', got {noise!r}: without calibrated noise no "
            "batch size is large enough."
        )
    risk = _check_risk(excess_risk)
    if not np.all(np.isfinite(risk)):
        raise ValueError(f"excess_risk must be finite, got {excess_risk!r}.")
    ratio = np.ceil(2 * risk / _check_error(relative_error))
    size = np.maximum(ratio if noise == "single" else np.ones_like(ratio), 1).astype(np.int64)
    return int(size) if size.ndim == 0 else size


def expected_relative_error(
    eigenvalues_or_n_features: npt.ArrayLike,
    n_batches: npt.ArrayLike,
    *,
    batch_size: npt.ArrayLike = np.inf,
    excess_risk: npt.ArrayLike = 0.0,
    noise: str = "antithetic",
) -> float | npt.NDArray[np.float64]:
    r"""Relative error of the estimated Hessian that theory expects.

    ``2 sqrt(r/k) + r/k`` for the sampling, r the effective rank and k the number of batches, and
    for noise="single" ``2 excess_risk / batch_size`` for the nuisance.

    Parameters
    ----------
    eigenvalues_or_n_features : float or array-like of shape (n_features,)
        Eigenvalues of the Hessian, or the number of features for equal ones.
    n_batches : int or array-like
        Number of batches.
    batch_size : int or array-like, default=inf
        Rows in a batch.
    excess_risk : float or array-like, default=0.0
        m^2 at the coefficients where gradients are taken.
    noise : {"antithetic", "single", "none"}, default="antithetic"
        Noise scheme. "none" is not calibrated: its error is unknown, NaN.

    Returns
    -------
    relative_error : float or ndarray
        Error in operator norm over the norm of the Hessian.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    MATH section 2.3.

    Examples
    --------
    >>> from sklearn_gradhess.diagnostics import expected_relative_error
    >>> round(expected_relative_error(20, 8396), 3)
    0.1
    """
    if noise not in ("antithetic", "single", "none"):
        raise ValueError(f"noise must be 'antithetic', 'single' or 'none', got {noise!r}.")
    k = np.asarray(n_batches, dtype=np.float64)
    n = np.asarray(batch_size, dtype=np.float64)
    if np.any(k <= 0) or np.any(n <= 0):
        raise ValueError(
            f"n_batches and batch_size must be > 0, got {n_batches!r}, {batch_size!r}."
        )
    ratio = _effective_rank(eigenvalues_or_n_features) / k
    error = 2 * np.sqrt(ratio) + ratio
    if noise == "single":
        error = error + 2 * _check_risk(excess_risk) / n
    elif noise == "none":
        error = np.full_like(error, np.nan)
    return float(error) if np.ndim(error) == 0 else error


class Failure(NamedTuple):
    """A known failure of the method, found in an estimate.

    Attributes
    ----------
    name : str
        What it is called.
    fact : str
        What was found, with the numbers.
    way_out : str
        Which argument to change.
    visible_in_fit : bool
        Whether `fit` warns of it.
    """

    name: str
    fact: str
    way_out: str
    visible_in_fit: bool = True

    def __str__(self) -> str:
        return f"{self.fact} {self.way_out}"


@dataclass(frozen=True)
class CalibrationReport:
    """What `calibration_report` found; print it.

    Attributes
    ----------
    noise : str
        Noise scheme, and the correction if there is one.
    n_batches, n_features, batch_size : int
        Size of the estimate.
    batches_per_feature : float
        k/d; below one the covariance is singular, and four make a good preconditioner.
    effective_rank : float
        Trace of the covariance over its largest eigenvalue.
    expected_error : float
        Expected relative error in operator norm; NaN if uncalibrated.
    excess_risk : float
        m^2 at the coefficients where the gradients were taken; NaN if unknown, which the text
        explains.
    nuisance_share : float
        m^2/n, which biases single-noise gradients and leaves antithetic ones alone.
    noise_ratio : float
        Total noise that the intercept's gradient shows, over the calibrated one; should be one.
        NaN where it does not show: without intercept, or for another loss than the squared one.
    rank, n_clipped : int
        Numerical rank, and the number of singular directions left out.
    condition_number : float
        Of the covariance, with the features scaled to unit variance.
    failures : tuple of Failure
        Known failures of the method that this estimate shows.
    """

    noise: str
    n_batches: int
    n_features: int
    batch_size: int
    batches_per_feature: float
    effective_rank: float
    expected_error: float
    excess_risk: float
    nuisance_share: float
    noise_ratio: float
    rank: int
    n_clipped: int
    condition_number: float
    failures: tuple[Failure, ...]

    def __str__(self) -> str:
        lines = [
            f"Calibration report: {self.noise}, {self.n_batches} batches of "
            f"{self.batch_size} rows, {self.n_features} features",
            f"  batches per feature    {self.batches_per_feature:.3g}",
            f"  effective rank         {self.effective_rank:.3g}",
            f"  expected error         {self.expected_error:.2%}",
            f"  excess risk m^2        {self._excess_risk()}",
            f"  nuisance m^2/n         {self.nuisance_share:.3g}",
            f"  noise seen/calibrated  {self.noise_ratio:.3g}",
            f"  rank                   {self.rank} of {self.n_features} ({self.n_clipped} clipped)",
            f"  condition number       {self.condition_number:.3g} (features scaled)",
        ]
        lines += [f"  ! {f.name}: {f}" for f in self.failures] or ["  no known failure found"]
        return "\n".join(lines)

    def _excess_risk(self) -> str:
        if not np.isnan(self.excess_risk):
            return f"{self.excess_risk:.3g}"
        scheme = self.noise.partition(" ")[0]
        return {
            "antithetic": "unknown: too few rows or batches for so many features",
            "single": "unknown: too few batches for so many features, or past saturation",
            "none": "unknown: too few batches, past saturation, or not calibrated",
        }[scheme]


def calibration_report(estimator: Any) -> CalibrationReport:
    """Report on a fitted estimator: its numbers, and every known failure that they show.

    Parameters
    ----------
    estimator : GradientCovarianceEstimator
        Fitted estimator.

    Returns
    -------
    report : CalibrationReport
        A readable report; its `failures` are empty when all is well.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If it is another estimator.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_gradhess import GradientCovarianceEstimator
    >>> from sklearn_gradhess.diagnostics import calibration_report
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> estimator = GradientCovarianceEstimator(batch_size=10, random_state=0).fit(X, y)
    >>> print(calibration_report(estimator))
    Calibration report: antithetic noise, 45 batches of 10 rows, 10 features
      batches per feature    4.5
      ...
      rank                   10 of 10 (0 clipped)
      condition number       ... (features scaled)
      no known failure found
    """
    check_is_fitted(estimator)
    if not hasattr(estimator, "_preconditioner"):
        raise TypeError(
            f"calibration_report takes a fitted GradientCovarianceEstimator, got "
            f"{type(estimator).__name__}. Of a fitted model pass its covariance_estimator_."
        )
    preconditioner = estimator._preconditioner
    noise = f"{estimator.noise} noise"
    if estimator.correction_ != "none":
        noise += f", {estimator.correction_} correction"
    return CalibrationReport(
        noise=noise,
        n_batches=estimator.n_batches_,
        n_features=estimator.n_features_in_,
        batch_size=estimator.batch_size_,
        batches_per_feature=estimator.n_batches_ / estimator.n_features_in_,
        effective_rank=estimator.effective_rank_,
        expected_error=estimator.expected_error_,
        excess_risk=estimator.excess_risk_,
        nuisance_share=estimator.excess_risk_ / estimator.batch_size_,
        noise_ratio=_noise_ratio(estimator),
        rank=preconditioner.rank,
        n_clipped=preconditioner.n_clipped,
        condition_number=preconditioner.condition_number,
        failures=tuple(failures(estimator)),
    )


def _noise_ratio(estimator: Any) -> float:
    # A feature of ones has the second moment one: what its gradient varies by is the noise.
    if estimator.loss != "squared_error":
        return np.nan
    return estimator._settled.noise_ratio(estimator.excess_risk_)


def failures(estimator: Any) -> list[Failure]:
    """Find the known failures in a fitted estimator, the gravest first."""
    return [
        f
        for find in (
            _too_few,
            _singular,
            _far_from_optimum,
            _mismatch,
            _uncalibrated,
            _unchecked_correction,
        )
        for f in [find(estimator)]
        if f is not None
    ]


def nuisance(estimator: Any) -> tuple[float, float]:
    """Least and greatest relative size of what m^2 adds to uncorrected single-noise estimates."""
    # Sigma is seen as (tau + m^2)/n Sigma + Sigma u u' Sigma/n, u' Sigma u = m^2 (MATH section 2).
    # A tau that was estimated from residuals includes m^2, and leaves the second term alone.
    least, greatest = estimator._nuisance
    return least, greatest


def _at_least_a_tenth(size: float, estimator: Any) -> bool:
    # Two standard errors below: what is small enough is seldom found to be more
    return bool(size * (1 - 2 * min(estimator._nuisance_error, 1.0)) >= 0.1)


def _rank_bound(estimator: Any) -> int:
    # Redraws and pairs of the same rows lie in the span of these rows
    return min(estimator._settled.moments.n_independent, estimator.n_samples_seen_)


def _too_few(estimator: Any) -> Failure | None:
    d, bound, k = estimator.n_features_in_, _rank_bound(estimator), estimator._n_effective
    if estimator.shrinkage_:
        return None
    name = "too few batches for the dimension"
    way_out = "Use a smaller batch_size, more samples, or shrinkage='oas'."
    what = "batch gradients"
    if bound <= d:
        if bound < estimator._settled.moments.n_gradients:
            what, way_out = "rows", "Use more samples, or shrinkage='oas'."
        fact = f"Only {bound} {what} for {d} features: the covariance has rank at most {bound}."
        return Failure(name, fact, way_out)
    if round(k) < estimator._settled.moments.n_gradients:
        what = "effective batch gradients (weights and redraws counted)"
    if k < 2 * d:
        fact = f"Only {k:.0f} {what} for {d} features: the smallest eigenvalues are mostly noise."
        return Failure(name, fact, way_out, visible_in_fit=False)
    rank = estimator.effective_rank_
    error = expected_relative_error(rank, k) if rank else 0.0
    if error > 0.5:
        return Failure(
            "too few batches for the accuracy",
            f"{k:.0f} {what} at an effective rank of {rank:.3g}: sampling alone is expected "
            f"to put covariance_ {error:.0%} off.",
            "Use a smaller batch_size (1 is exact for the data at hand), more samples, n_redraws, "
            "or shrinkage='oas'.",
            visible_in_fit=False,
        )
    return None


def _singular(estimator: Any) -> Failure | None:
    preconditioner, d = estimator._preconditioner, estimator.n_features_in_
    if not preconditioner.n_clipped or _rank_bound(estimator) <= d:
        return None
    constant = np.flatnonzero(preconditioner.constant).tolist()
    cause = (
        f"Constant features: {constant}."
        if constant
        else "Some features are linear combinations of others."
    )
    return Failure(
        "singular covariance",
        f"The covariance is singular, rank {preconditioner.rank} of {d}. {cause}",
        "Singular directions are left out of precision_ and come out of transform as zeros: drop "
        "such features, or use shrinkage.",
    )


def _far_from_optimum(estimator: Any) -> Failure | None:
    if estimator.noise != "single":
        return None
    n, moments = estimator.batch_size_, estimator._settled.moments
    least, greatest = nuisance(estimator)
    bias = max(greatest, -least)
    ways = (
        "Use noise='antithetic', which has no such bias, a larger batch_size, or coef and "
        "intercept closer to the optimum"
    )
    if estimator.correction_ != "none":
        if estimator._scale_limits[1] < np.inf:
            return None
        return Failure(
            "far from the optimum",
            f"The excess risk, about {estimator.excess_risk_:.3g}, is so far above the batch size "
            f"{n} that single-noise gradients hardly show it, and covariance_ may be of any scale.",
            f"{ways}.",
        )
    if np.isnan(bias):
        if moments.round_means().degrees <= len(moments.mean) + 1 or not moments.mean.any():
            return None  # too few batches to tell
        return Failure(
            "far from the optimum",
            "The mean gradient is as large as single-noise gradients of batch size "
            f"{n} can show: the excess risk is at least of the order of {n}, and covariance_ is "
            "dominated by it.",
            f"{ways}.",
        )
    if not _at_least_a_tenth(bias, estimator):
        return None
    return Failure(
        "far from the optimum",
        f"The excess risk {estimator.excess_risk_:.3g} is not small against the batch size {n}: "
        f"covariance_ is up to {bias:.0%} too {'large' if bias == greatest else 'small'}.",
        f"{ways}, or, for Gaussian features, correction='gaussian'.",
        visible_in_fit=bool(bias > 0.5),
    )


def _unchecked_correction(estimator: Any) -> Failure | None:
    if estimator.correction_ != "gaussian":
        return None
    removed, known = estimator._assumed, estimator._scale_limits[1] < np.inf
    if not (known and _at_least_a_tenth(removed, estimator)):
        return None
    return Failure(
        "correction unchecked",
        f"A nuisance of up to {removed:.0%} of covariance_ was removed by a formula that is "
        "exact for Gaussian features; the gradients do not show whether the features are.",
        "Use noise='antithetic', which needs no correction, a larger batch_size, or coef and "
        "intercept closer to the optimum.",
        visible_in_fit=False,
    )


def _ratio_error(estimator: Any) -> float:
    """Return the standard error of the noise ratio; NaN where it is unknown."""
    memory, k = estimator._settled, estimator._n_effective
    # The mean of k squares of a variable no wilder than a Gaussian has this standard error
    if estimator.noise != "single" or not memory.has_intercept:
        return float(np.sqrt(2 / k))
    # Of T = n Var(g_0) + a^2, as large as it should be, and of the m^2 that is taken off it
    expected = memory.total_scale * (1 + max(estimator._nuisance[0], 0.0))
    variance = min(memory.moments.covariance_factor()[0, 0] ** 2, expected)
    error = np.sqrt(2 / k) * variance
    error += 2 * abs(memory.moments.mean[0]) * np.sqrt(variance / k) / memory.rows
    error /= memory.total_scale
    if not memory.estimates_inherent:
        low, high = estimator._scale_limits
        error += (1 + estimator._nuisance[1]) * max(1 - low, high - 1) / 1.645
    return float(error)


def _mismatch(estimator: Any) -> Failure | None:
    ratio, error = _noise_ratio(estimator), _ratio_error(estimator)
    if not abs(ratio - 1) > max(5 * error, 1e-3):  # a ratio or error that is unknown accuses nobody
        return None
    total = estimator.noise_scale * estimator.batch_size_
    if estimator.noise == "single" and ratio > 1:
        way_out = (
            f"Inherent target noise of about {(ratio - 1) * total:.3g} would explain it: set "
            "inherent_variance, use inherent_variance='estimate', a larger batch_size, or "
            "noise='antithetic', where it cancels."
        )
    else:
        way_out = (
            "Was the noise drawn with variance noise_scale * batch_size, and do both gradients of "
            "a pair belong to the same batch and noise? If the scale was meant, "
            f"set noise_scale={ratio * estimator.noise_scale:.3g}."
        )
    return Failure(
        "scale mismatch",
        f"The intercept's gradient shows a total target noise of {ratio * total:.3g}, not the "
        f"calibrated {total:.3g}: covariance_ is off by the factor {ratio:.3g}.",
        way_out,
        visible_in_fit=not abs(np.log(max(ratio, 1e-300))) <= np.log(1.5),
    )


def _uncalibrated(estimator: Any) -> Failure | None:
    if estimator.noise != "none" or estimator._settled.total_scale > 0:
        return None
    return Failure(
        "uncalibrated noise",
        "noise='none' and no known inherent variance: covariance_ is the covariance of clean "
        "gradients, which vanishes as batches grow and is the Hessian in no unit.",
        "Use noise='antithetic', or pass inherent_variance.",
        visible_in_fit=False,
    )
