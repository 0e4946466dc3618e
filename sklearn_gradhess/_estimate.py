"""From what a noise scheme remembers to the Hessian, and the excess risk that comes with it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._gradient_sums import GradientSums
from sklearn_gradhess._nuisance import find_nuisance
from sklearn_gradhess._preconditioner import factorize

__all__ = ["Estimate", "estimate", "kept_gradients", "noise_ratio"]

Array = npt.NDArray[np.float64]
# Share of the inverse that squares of Gaussian noise may add before its first order is too little
_FIRST_ORDER = 0.2


class Estimate(NamedTuple):
    """The Hessian and what comes with it; every coordinate of the gradient is included.

    Attributes
    ----------
    factor : ndarray of shape (p, p)
        Upper triangular factor of the Hessian.
    gradient_factor : ndarray of shape (p, p)
        Upper triangular factor of the covariance of the gradients as they were seen.
    mean_gradient : ndarray of shape (p,)
    excess_risk : float
        m^2; NaN where the gradients do not tell.
    correction : {"gaussian", "spiked", "none"}
        What was done about the nuisance of single-noise gradients, or about sample eigenvalues.
    nuisance : tuple of (float, float)
        Least and greatest relative size of the nuisance, removed or not; NaN where unknown.
    assumed : float
        Size of that part of it which takes the features for Gaussian.
    scale : tuple of (float, float)
        Limits of the true scale of the Hessian over that of `factor`, as far as the correction
        decides them.
    error : float
        Relative standard error of the nuisance.
    """

    factor: Array
    gradient_factor: Array
    mean_gradient: Array
    excess_risk: float
    correction: str
    nuisance: tuple[float, float] = (0.0, 0.0)
    assumed: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    error: float = 0.0


def estimate(memory: GradientSums, *, correct: bool, rounding: float | None = None) -> Estimate:
    """Estimate the Hessian from a memory that is settled and calibrated.

    Parameters
    ----------
    memory : GradientSums
        What was seen.
    correct : bool
        Remove the nuisance of single-noise gradients, if that is possible.
    rounding : float, default=None
        Relative rounding error of a feature, by which singular directions are told.
    """
    root = memory.whole.covariance_factor()
    if memory.noise == "antithetic":
        factor = root / np.sqrt(memory.noise_scale)
        excess_risk = _clean_excess_risk(memory, factor, rounding)
        return Estimate(factor, root, memory.mean_gradient(), excess_risk, "none")
    mean, total_scale, unknown = memory.mean_gradient(), memory.total_scale, (np.nan, np.nan)
    if not total_scale:
        return Estimate(root, root, mean, np.nan, "none", unknown)
    nuisance = find_nuisance(
        memory.whole,
        has_intercept=memory.has_intercept,
        rows=memory.rows,
        total_scale=total_scale,
        includes_excess=memory.estimates_inherent,
        rounding=rounding,
    )
    as_seen = root / np.sqrt(total_scale)
    if nuisance is None:
        return Estimate(as_seen, root, mean, np.nan, "none", unknown)
    return Estimate(
        nuisance.factor if correct else as_seen,
        root,
        mean,
        nuisance.excess_risk,
        "gaussian" if correct else "none",
        (nuisance.least, nuisance.greatest),
        nuisance.assumed,
        nuisance.scale,
        nuisance.error,
    )


def _clean_excess_risk(memory: GradientSums, factor: Array, rounding: float | None) -> float:
    """m^2 from the mean of the clean gradients in the inverse Hessian (MATH section 5.1)."""
    k, n, weight = memory.moments.n_gradients, memory.rows, memory.clean_weights.sum()
    if weight and not memory.clean_sums.any() and k > len(factor) + 1:
        return 0.0  # as for data without targets; the rank would take a factorisation
    norms = np.linalg.norm(factor, axis=0)
    preconditioner = factorize(factor, rounding=None if rounding is None else rounding * norms)
    rank = preconditioner.rank
    if not weight or k <= rank + (n > 1):
        return np.nan
    # Noise of unit kurtosis shows single rows exactly; pairs of rows in a batch make E[S^-1]
    # that of a Wishart law, squares of the noise add to it what their own variance is
    debias = 1 - (rank + 1) / k * (1 - 1 / n)
    squares = (memory.kurtosis - 1) * (rank + 2) / (k * n)
    rows = float(weight**2 / memory.row_sums[0])
    if squares > _FIRST_ORDER or debias <= 0 or rows <= rank:
        return np.nan
    debias /= 1 + squares
    sums = np.vstack([memory.clean_sums.sum(axis=0), memory.clean_sums])
    lengths = np.einsum("gp,gp->g", sums, preconditioner.solve(sums))
    residual = memory.row_sums[1] / weight
    if np.isfinite(residual):
        # c'S^-1 c = u'Su + s^2 p/N of the rows at hand, and r'r/N = u'Su + s^2
        square = debias * lengths[0] / weight**2
        found = (rows * square - rank * residual) / (rows - rank)
    else:
        # Products of different groups; S has their rows, too: leverages of Gaussian rows
        pairs = weight**2 - np.sum(memory.clean_weights**2)
        if pairs <= 0:
            return np.nan
        found = debias * (lengths[0] - lengths[1:].sum()) / pairs
        found *= (rows - 1) * (rows + 2) / (rows * (rows - rank))
    return float(found)


def noise_ratio(memory: GradientSums, excess_risk: float) -> float:
    """Total target noise that the intercept's gradient shows, over the calibrated total."""
    if not memory.has_intercept or memory.noise == "none" or not memory.moments.weight:
        return np.nan
    shown = memory.moments.intercept_variance()
    if memory.noise == "single":
        # n Cov(g_0) = tau + m^2 - a^2, a = mean(g_0): see find_nuisance
        residual2 = memory.moments.squared_intercept()
        shown += (residual2 - (0.0 if memory.estimates_inherent else excess_risk)) / memory.rows
    return float(shown / memory.total_scale)


def kept_gradients(memory: GradientSums, location: Array) -> Array:
    """Return the gradients of the centred features, about their mean and of equal weight."""
    if memory.kept is None:
        raise ValueError(
            "shrinkage='ledoit_wolf' and 'oas' need the gradients seen before, which were not "
            "kept. Set shrinkage before the first fit, or use fit to start afresh."
        )
    w = np.concatenate([w for _, w, _ in memory.kept])
    parts = [g for g, _, _ in memory.kept]
    if memory.moments.centered:
        rounds = memory.whole.rounds
        parts = [
            g - (rounds[key].mean if key in rounds else w @ g / w.sum())
            for g, w, key in memory.kept
            if len(g)
        ]
    rows = np.concatenate(parts)
    if memory.has_intercept:
        rows = rows[:, 1:] - rows[:, :1] * location
    return rows * np.sqrt(w / w.mean())[:, None]
