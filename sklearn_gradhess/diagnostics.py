"""How many batches an estimate needs, how good one is, and what may be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess._failures import (
    Failure,
    expected_error,
    failures,
    intercept_noise_ratio,
    unchecked,
)
from sklearn_gradhess._fitted import Fitted
from sklearn_gradhess._sample_size import (
    expected_relative_error,
    required_batch_size,
    required_batches,
)

__all__ = [
    "CalibrationReport",
    "Failure",
    "calibration_report",
    "expected_relative_error",
    "required_batch_size",
    "required_batches",
]


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
        noise_ratio=intercept_noise_ratio(fitted),
        rank=preconditioner.rank,
        n_clipped=preconditioner.n_clipped,
        condition_number=preconditioner.condition_number,
        failures=tuple(failures(fitted)),
        unchecked=tuple(unchecked(fitted)),
    )
