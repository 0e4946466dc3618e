"""How many batches an estimate needs, how good one is, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess._fitted import Fitted
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._scale import NoiseSeen

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
    if values.ndim > 1:
        raise ValueError(
            "eigenvalues_or_n_features must be a number or one-dimensional, got an array of shape "
            f"{values.shape}. Of a covariance pass its eigenvalues, numpy.linalg.eigvalsh(...)."
        )
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


def _whole(values: npt.NDArray[np.float64], of_what: str) -> Any:
    """Whole numbers as int64, or as the floats that they are where one of them is too large."""
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"More than 1e308 {of_what} are needed, which no number stands for: relative_error is "
            "too small."
        )
    if values.ndim == 0:
        return int(values)
    return values.astype(np.int64) if values.max(initial=0.0) < 2**63 else values


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
        Number of batches, of the shape of `relative_error`; an array of floats if one of them
        exceeds the largest int64.

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
    with np.errstate(over="ignore"):
        batches = np.ceil(rank / t / t)
    less = np.maximum(batches - 1, 1)  # rounding may lift the quotient past a whole number
    batches = np.where(2 * np.sqrt(rank / less) + rank / less <= error, less, batches)
    return _whole(batches, "batches")


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
        Rows in a batch; an array of floats if one of them exceeds the largest int64.

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
    with np.errstate(over="ignore"):
        ratio = np.ceil(2 * risk / _check_error(relative_error))
    return _whole(np.maximum(ratio if noise == "single" else np.ones_like(ratio), 1), "rows")


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
    unchecked : tuple of str
        What might be wrong and cannot be seen.
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
    unchecked: tuple[str, ...] = ()

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
        lines += [f"  ? {what}" for what in self.unchecked]
        sound = "  no known failure found" + " in what can be checked" * bool(self.unchecked)
        lines += [f"  ! {f.name}: {f}" for f in self.failures] or [sound]
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
    ValueError
        If it was fitted with `n_components`, which keeps a part of the spectrum.

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
    fitted = getattr(estimator, "fitted_", None)
    if not isinstance(fitted, Fitted):
        raise TypeError(
            f"calibration_report takes a fitted GradientCovarianceEstimator, got "
            f"{type(estimator).__name__}. Of a fitted model pass its covariance_estimator_."
        )
    if not fitted.whole:
        raise ValueError(
            "calibration_report judges the whole spectrum, and an estimator with n_components "
            "keeps a part of it. Fit with n_components=None on fewer features; fit and "
            "partial_fit_gradients warn of what n_components shows."
        )
    preconditioner = fitted.preconditioner
    noise = f"{fitted.noise} noise"
    if fitted.correction != "none":
        noise += f", {fitted.correction} correction"
    return CalibrationReport(
        noise=noise,
        n_batches=fitted.n_batches,
        n_features=fitted.n_features,
        batch_size=fitted.batch_size,
        batches_per_feature=fitted.n_batches / fitted.n_features,
        effective_rank=fitted.effective_rank,
        expected_error=expected_error(fitted),
        excess_risk=fitted.excess_risk,
        nuisance_share=fitted.excess_risk / fitted.batch_size,
        noise_ratio=_noise_ratio(fitted),
        rank=preconditioner.rank,
        n_clipped=preconditioner.n_clipped,
        condition_number=preconditioner.condition_number,
        failures=tuple(failures(fitted)),
        unchecked=tuple(_unchecked(fitted)),
    )


def _unchecked(fitted: Fitted) -> list[str]:
    """Name what nobody can see in gradients that somebody else took."""
    memory = fitted.settled
    if not memory.n_given or memory.noise == "none":
        return []
    if not memory.has_intercept:
        return ["scale: cannot be checked without the intercept's gradient"]
    if fitted.loss != "squared_error":
        return [
            "scale: cannot be checked for this loss, where the intercept's gradient shows noise "
            "times curvature"
        ]
    return []


def _noise_ratio(fitted: Fitted) -> float:
    # A feature of ones has the second moment one: what its gradient varies by is the noise.
    if fitted.loss != "squared_error":
        return np.nan
    return fitted.settled.noise_ratio(fitted.excess_risk)


def failures(fitted: Fitted) -> list[Failure]:
    """Find the known failures in an estimate, the gravest first."""
    of_scale = _mismatch, _mismatch_of_curvature, _uncalibrated
    of_spectrum: tuple[Callable[[Any], Failure | None], ...]
    of_spectrum = _too_few, _singular, _far_from_optimum
    if not fitted.whole:
        of_spectrum = _too_few_for_components, _far_from_optimum_of_components
    found = (find(fitted) for find in (*of_spectrum, *of_scale, _unchecked_correction))
    return [failure for failure in found if failure is not None]


def expected_error(fitted: Fitted) -> float:
    """Relative error of the covariance in operator norm, as theory expects it."""
    rank, k = fitted.effective_rank, fitted.n_effective
    if not rank:
        return np.nan
    if not fitted.whole:  # the rank is not that of the sample; and what is not told apart is added
        error = float(expected_relative_error(rank, k, noise=fitted.noise))
        return error + fitted.unresolved if fitted.noise == "antithetic" else np.nan
    # Sampling stretches the largest eigenvalue by about (1 + sqrt(r/k))^2, so the rank of the
    # estimate is too small; undone to first order.
    rank /= max(1 - np.sqrt(rank / k), 0.1) ** 2
    error = float(expected_relative_error(rank, k, noise=fitted.noise))
    if fitted.noise == "single":
        least, greatest = fitted.nuisance
        if fitted.correction == "none":
            return error + greatest
        # What is taken off was seen with it, in means of products of Gaussians; and the scale
        # that is left is known up to its limits (MATH section 2.3)
        error *= np.sqrt(1 + 6 / fitted.settled.rows) * (1 + greatest) / (1 + least)
        low, high = fitted.scale_limits
        error += max(1 - low, high - 1) if high < np.inf else np.nan
    return float(error)


def _at_least_a_tenth(size: float, fitted: Fitted) -> bool:
    # Two standard errors below: what is small enough is seldom found to be more
    return bool(size * (1 - 2 * min(fitted.nuisance_error, 1.0)) >= 0.1)


def _rank_bound(fitted: Fitted) -> int:
    # Redraws and pairs of the same rows lie in the span of these rows
    return min(fitted.settled.moments.n_independent, fitted.n_samples)


def _too_few(fitted: Fitted) -> Failure | None:
    d, bound, k = fitted.n_features, _rank_bound(fitted), fitted.n_effective
    if fitted.shrinkage:
        return None
    name = "too few batches for the dimension"
    way_out = "Use a smaller batch_size, more samples, or shrinkage='oas'."
    what = "batch gradients"
    if bound <= d:
        if bound < fitted.settled.moments.n_gradients:
            what, way_out = "rows", "Use more samples, or shrinkage='oas'."
        fact = f"Only {bound} {what} for {d} features: the covariance has rank at most {bound}."
        return Failure(name, fact, way_out)
    if round(k) < fitted.settled.moments.n_gradients:
        what = "effective batch gradients (weights and redraws counted)"
    if k < 2 * d:
        fact = f"Only {k:.0f} {what} for {d} features: the smallest eigenvalues are mostly noise."
        return Failure(name, fact, way_out, visible_in_fit=False)
    rank = fitted.effective_rank
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


def _too_few_for_components(fitted: Any) -> Failure | None:
    bound, wanted = _rank_bound(fitted), fitted.n_components
    if bound > wanted:
        return None
    return Failure(
        "too few batches for the components",
        f"Only {bound} gradients for n_components={wanted}: none of them can be told from noise.",
        "Use a smaller batch_size, more samples, or fewer components.",
    )


def _far_from_optimum_of_components(fitted: Any) -> Failure | None:
    """Bound the nuisance from below (MATH section 15)."""
    if fitted.noise != "single":
        return None
    gradient, n, k = fitted.centred_gradient, fitted.settled.rows, fitted.n_effective
    trace, trace_of_square = fitted.traces
    signal = gradient @ gradient - (trace + 3 * np.sqrt(2 * trace_of_square)) / k
    if not signal > 0:
        return None
    q = signal / fitted.variance_along(gradient / np.linalg.norm(gradient))
    share = 2 * q / (n * (fitted.settled.total_scale or 1.0))
    least = q / max(1 - share, 0.01)
    bias = 2 * least / n
    if not bias > 0.5:
        return None
    return Failure(
        "far from the optimum",
        f"The excess risk is at least {least:.3g}, which is not small against the batch size "
        f"{fitted.batch_size}: eigenvalues_ may be {bias:.0%} too large.",
        "Use noise='antithetic', which has no such bias, a larger batch_size, or coef and "
        "intercept closer to the optimum.",
    )


def _singular(fitted: Fitted) -> Failure | None:
    preconditioner, d = fitted.preconditioner, fitted.n_features
    if not preconditioner.n_clipped or _rank_bound(fitted) <= d:
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


def _far_from_optimum(fitted: Fitted) -> Failure | None:
    if fitted.noise != "single":
        return None
    n, moments = fitted.batch_size, fitted.settled.whole
    least, greatest = fitted.nuisance
    bias = max(greatest, -least)
    ways = (
        "Use noise='antithetic', which has no such bias, a larger batch_size, or coef and "
        "intercept closer to the optimum"
    )
    if fitted.correction != "none":
        if fitted.scale_limits[1] < np.inf:
            return None
        return Failure(
            "far from the optimum",
            f"The excess risk, about {fitted.excess_risk:.3g}, is so far above the batch size "
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
    if not _at_least_a_tenth(bias, fitted):
        return None
    return Failure(
        "far from the optimum",
        f"The excess risk {fitted.excess_risk:.3g} is not small against the batch size {n}: "
        f"covariance_ is up to {bias:.0%} too {'large' if bias == greatest else 'small'}.",
        f"{ways}, or, for Gaussian features, correction='gaussian'.",
        visible_in_fit=bool(bias > 0.5),
    )


def _unchecked_correction(fitted: Fitted) -> Failure | None:
    if fitted.correction != "gaussian":
        return None
    removed, known = fitted.assumed, fitted.scale_limits[1] < np.inf
    if not (known and _at_least_a_tenth(removed, fitted)):
        return None
    return Failure(
        "correction unchecked",
        f"A nuisance of up to {removed:.0%} of covariance_ was removed by a formula that is "
        "exact for Gaussian features; the gradients do not show whether the features are.",
        "Use noise='antithetic', which needs no correction, a larger batch_size, or coef and "
        "intercept closer to the optimum.",
        visible_in_fit=False,
    )


def _ratio_error(fitted: Fitted) -> float:
    """Return the standard error of the noise ratio; NaN where it is unknown."""
    memory, k = fitted.settled, fitted.n_effective
    # The mean of k squares of a variable no wilder than a Gaussian has this standard error
    if fitted.noise != "single" or not memory.has_intercept:
        return float(np.sqrt(2 / k))
    # Of T = n Var(g_0) + a^2, as large as it should be, and of the m^2 that is taken off it
    expected = memory.total_scale * (1 + max(fitted.nuisance[0], 0.0))
    variance = min(memory.moments.intercept_variance(), expected)
    error = np.sqrt(2 / k) * variance
    error += 2 * abs(memory.moments.mean[0]) * np.sqrt(variance / k) / memory.rows
    error /= memory.total_scale
    if not memory.estimates_inherent:
        low, high = fitted.scale_limits
        error += (1 + fitted.nuisance[1]) * max(1 - low, high - 1) / 1.645
    return float(error)


def _noise_seen(fitted: Fitted) -> NoiseSeen:
    # A ratio or an error that is unknown accuses nobody
    ratio, error = _noise_ratio(fitted), _ratio_error(fitted)
    if ratio < 0:  # more excess risk was found than there is variance
        return NoiseSeen(np.nan, 0.0)
    return NoiseSeen(ratio, 2 / error**2 if error else 0.0)


def _mismatch(fitted: Fitted) -> Failure | None:
    seen, memory = _noise_seen(fitted), fitted.settled
    if not seen.mismatched:
        return None
    ratio, total = seen.ratio, fitted.noise_scale * fitted.batch_size
    ways = []
    if memory.n_given:
        end = NoiseSeen(memory.moments.last_variance() / memory.noise_scale, seen.degrees)
        ways.append(
            seen.explain(
                fitted.batch_size,
                noise_scale=memory.noise_scale,
                other_end=end if memory.noise == "antithetic" else None,
            )[1]
        )
    if fitted.noise == "single" and ratio > 1:
        ways.append(
            f"Inherent target noise of about {(ratio - 1) * total:.3g} would explain it: set "
            "inherent_variance, use inherent_variance='estimate', a larger batch_size, or "
            "noise='antithetic', where it cancels."
        )
    else:
        ways.append(
            "Was the noise drawn with variance noise_scale * batch_size, and do both gradients of "
            "a pair belong to the same batch and noise? If the scale was meant, "
            f"set noise_scale={ratio * fitted.noise_scale:.3g}."
        )
    return Failure(
        "scale mismatch",
        f"The intercept's gradient shows a total target noise of {ratio * total:.3g}, not the "
        f"calibrated {total:.3g}: covariance_ is off by the factor {ratio:.3g}.",
        " ".join(way for way in ways if way),
        visible_in_fit=not abs(np.log(max(ratio, 1e-300))) <= np.log(1.5),
    )


def _mismatch_of_curvature(fitted: Fitted) -> Failure | None:
    memory, loss = fitted.settled, make_loss(fitted.loss)
    if fitted.loss == "squared_error" or memory.noise != "antithetic" or not memory.n_given:
        return None
    curvature = memory.noise_ratio(0.0)
    if not NoiseSeen(curvature / loss.largest_curvature, fitted.n_effective).too_large:
        return None
    ratio = curvature / loss.largest_curvature
    return Failure(
        "scale mismatch",
        f"The intercept's gradient shows a mean curvature of {curvature:.3g}, and that of "
        f"loss={loss.name!r} is nowhere above {loss.largest_curvature:g}: covariance_ is at least "
        f"{ratio:.3g} times too large.",
        "Draw the noise with variance batch_size times the curvature, or pass loss_curvature; and "
        "gradient_scale, if these are sums over a batch.",
        visible_in_fit=False,
    )


def _uncalibrated(fitted: Fitted) -> Failure | None:
    if fitted.noise != "none" or fitted.settled.total_scale > 0:
        return None
    return Failure(
        "uncalibrated noise",
        "noise='none' and no known inherent variance: covariance_ is the covariance of clean "
        "gradients, which vanishes as batches grow and is the Hessian in no unit.",
        "Use noise='antithetic', or pass inherent_variance.",
        visible_in_fit=False,
    )
