"""Known failures of the method, as a fitted estimate shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sklearn_gradhess._estimate import noise_ratio
from sklearn_gradhess._fitted import Fitted
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._sample_size import expected_relative_error
from sklearn_gradhess._scale import NoiseSeen

__all__ = [
    "Failure",
    "expected_error",
    "failures",
    "intercept_noise_ratio",
    "ratio_error",
    "unchecked",
]


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


def failures(fitted: Fitted) -> list[Failure]:
    """Find the known failures in an estimate, the gravest first."""
    of_scale = _mismatch, _mismatch_of_curvature, _uncalibrated
    of_spectrum: tuple[Callable[[Any], Failure | None], ...]
    of_spectrum = _too_few, _singular, _far_from_optimum
    if not fitted.whole:
        of_spectrum = _too_few_for_components, _far_from_optimum_of_components
    found = (find(fitted) for find in (*of_spectrum, *of_scale, _unchecked_correction))
    return [failure for failure in found if failure is not None]


def unchecked(fitted: Fitted) -> list[str]:
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


def intercept_noise_ratio(fitted: Fitted) -> float:
    """Total noise that the intercept's gradient shows over the calibrated one; NaN if unseen."""
    # A feature of ones has the second moment one: what its gradient varies by is the noise.
    if fitted.loss != "squared_error":
        return np.nan
    return noise_ratio(fitted.settled, fitted.excess_risk)


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


def _far_from_optimum_of_components(fitted: Any) -> Failure | None:
    """Bound the nuisance from below (MATH section 15)."""
    if fitted.noise != "single":
        return None
    gradient, n, k = fitted.centred_gradient, fitted.settled.rows, fitted.n_effective
    trace, trace_of_square = fitted.traces
    signal = gradient @ gradient - (trace + 3 * np.sqrt(2 * trace_of_square)) / k
    if not (signal > 0 and trace > 0):
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


def ratio_error(fitted: Fitted) -> float:
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
    ratio, error = intercept_noise_ratio(fitted), ratio_error(fitted)
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
    curvature = noise_ratio(memory, 0.0)
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
