r"""Adversarial risk of linear predictors: dual norms, and the closed form for Gaussian residuals.

Against an attack of radius r the worst case of an affine predictor is known in closed form. For
Gaussian residuals of variance v^2 it is ``v^2 + 2 c0 r v D + r^2 D^2``, with c0 = sqrt(2/pi) and D
the dual norm of the coefficients (MATH section 5). For residuals whose mean is not zero ``c0 v`` is
the mean of the folded normal law instead, between c0 v and v.
"""

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf

__all__ = [
    "check_n_columns",
    "closed_form",
    "conjugate",
    "dual_norm",
    "folded_normal",
    "gaussian_adversarial_risk",
    "largest",
    "norm_order",
    "vector_norm",
]

Array = npt.NDArray[np.float64]
_C0 = np.sqrt(2 / np.pi)


def dual_norm(
    coef: npt.ArrayLike,
    norm: float | str = 2,
    *,
    scale: npt.ArrayLike | None = None,
    covariance: Any = None,
    n_columns: int | None = None,
) -> float | Array:
    r"""Largest change of ``x @ coef`` that an attack of radius one can make.

    Parameters
    ----------
    coef : array-like of shape (n_features,) or (n_targets, n_features)
        Coefficients, in units of the target per unit of each feature.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack. The ball ``||delta||_p <= 1`` gives ``||coef||_q``, 1/p + 1/q = 1; so
        inf, where each feature moves by at most one, gives the sum of absolute coefficients.
        "mahalanobis" is the ball ``delta' inv(covariance) delta <= 1``.
    scale : array-like of shape (n_features,), default=None
        Budget of each feature, in its units: the ball is ``||delta / scale||_p <= 1``, for
        norm=inf ``|delta_j| <= scale_j``. Zero freezes a feature. Not for "mahalanobis".
    covariance : array-like of shape (n_features, n_features) or fitted estimator, default=None
        For "mahalanobis" only, and needed there: a positive semidefinite matrix, or anything with
        an attribute `covariance_`, such as a `GradientCovarianceEstimator`.
    n_columns : int, default=None
        Most features that the attack may move: those where ``scale |coef|`` is largest. None is
        all. Not for "mahalanobis".

    Returns
    -------
    dual_norm : float or ndarray of shape (n_targets,)
        ``max_delta delta @ coef`` over the unit ball, in units of the target per unit of radius.

    Raises
    ------
    ValueError
        If the norm is below one or unknown, coefficients are not finite, budgets are negative, not
        finite or of another length, `covariance` is missing, not wanted or no covariance, or
        `n_columns` is no positive integer.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> from sklearn_gradhess.metrics import dual_norm
    >>> dual_norm([3.0, -4.0], float("inf"), scale=[1.0, 0.5])
    5.0
    >>> dual_norm([[3.0, -4.0], [1.0, 0.0]], "mahalanobis", covariance=[[1.0, 0.0], [0.0, 4.0]])
    array([8.54400375, 1.        ])
    >>> dual_norm([3.0, -4.0, 1.0], "inf", n_columns=2)
    7.0
    """
    w = np.asarray(coef, dtype=np.float64)
    if w.ndim not in (1, 2) or not w.size or not np.all(np.isfinite(w)):
        raise ValueError(
            "coef must be finite, of shape (n_features,) or (n_targets, n_features); got shape "
            f"{w.shape} with {np.sum(~np.isfinite(w))} NaN or infinite entries. If the fit "
            "diverged, refit with smaller steps."
        )
    p = norm_order(norm)
    mahalanobis = p is None
    if (scale if mahalanobis else covariance) is not None:
        raise ValueError(
            f"{'scale' if mahalanobis else 'covariance'} does not go with norm={norm!r}: scale is "
            "for norm >= 1, covariance for norm='mahalanobis'. Leave it out, or change norm."
        )
    check_n_columns(n_columns, p)
    if p is None:
        dual = _mahalanobis(w, _check_covariance(covariance, w.shape[-1]))
    else:
        with np.errstate(over="ignore"):
            weighed = w if scale is None else w * _check_scale(scale, w.shape[-1])
            dual = vector_norm(largest(weighed, n_columns), conjugate(p))
    return float(dual) if w.ndim == 1 else dual


def norm_order(norm: Any) -> float | None:
    """Order p of the norm of an attack, or None for "mahalanobis"; ValueError for anything else."""
    if isinstance(norm, str):
        if norm == "mahalanobis":
            return None
        p = np.inf if norm == "inf" else np.nan
    else:
        try:
            p = float(norm)
        except (TypeError, ValueError):
            p = np.nan
    if not p >= 1:
        raise ValueError(
            f"norm must be >= 1, inf or 'mahalanobis', got {norm!r}. Below one it is no norm: for "
            "an attack on few features use norm=1, or n_columns for at most so many."
        )
    return p


def conjugate(p: float) -> float:
    """Order q of the dual norm, 1/p + 1/q = 1."""
    return np.inf if p == 1 else 1.0 if np.isinf(p) else p / (p - 1)


def check_n_columns(n_columns: Any, p: float | None) -> None:
    """Raise ValueError unless an attack on so many columns has a closed form."""
    if n_columns is None:
        return
    if isinstance(n_columns, bool) or not isinstance(n_columns, Integral) or n_columns < 1:
        raise ValueError(
            f"n_columns must be an integer >= 1 or None, got {n_columns!r}: the most columns that "
            "an attack moves in a row."
        )
    if p is None:
        raise ValueError(
            "n_columns does not go with norm='mahalanobis': which columns to move together is a "
            "search over all subsets. Use norm=2 with a scale for each feature."
        )


def largest(w: Array, n_columns: int | None) -> Array:
    """Entries along the last axis, zero but for the n_columns largest in absolute value."""
    if n_columns is None or n_columns >= w.shape[-1]:
        return w
    few = np.argpartition(-np.abs(w), n_columns - 1, axis=-1)[..., :n_columns]
    kept = np.zeros_like(w)
    np.put_along_axis(kept, few, np.take_along_axis(w, few, axis=-1), axis=-1)
    return kept


def _check_scale(scale: npt.ArrayLike, d: int) -> Array:
    s = np.asarray(scale, dtype=np.float64)
    wrong = int(np.sum(~((s >= 0) & np.isfinite(s))))
    if s.shape != (d,) or wrong:
        raise ValueError(
            f"scale must be finite and >= 0, one budget for each of {d} features; got shape "
            f"{s.shape} with {wrong} wrong entries. Use 0 for a frozen feature."
        )
    return s


def _check_covariance(covariance: Any, d: int) -> Array:
    found = getattr(covariance, "covariance_", covariance)
    if getattr(covariance, "n_components", None) is not None and found is covariance:
        raise ValueError(
            f"norm='mahalanobis' needs a covariance of all directions, and this "
            f"{type(covariance).__name__} has n_components={covariance.n_components}. Fit it with "
            "n_components=None."
        )
    if found is None or hasattr(found, "fit"):
        what = "none was given" if found is None else f"this {type(found).__name__} is not fitted"
        raise ValueError(
            f"norm='mahalanobis' needs a covariance, but {what}. Pass covariance=, a matrix or a "
            "fitted GradientCovarianceEstimator."
        )
    sigma = np.asarray(found, dtype=np.float64)
    if sigma.shape != (d, d) or not np.all(np.isfinite(sigma)):
        raise ValueError(
            f"covariance must be finite and of shape ({d}, {d}), got shape {sigma.shape} with "
            f"{np.sum(~np.isfinite(sigma))} NaN or infinite entries. It must be that of the same "
            "features as coef, without the intercept."
        )
    asymmetry = np.abs(sigma - sigma.T).max()
    if asymmetry > 1e-6 * np.abs(sigma).max():
        raise ValueError(
            f"covariance is not symmetric: entries differ by {asymmetry:.3g} from their mirror "
            "images. Pass (covariance + covariance.T) / 2 if that is what you mean."
        )
    return (sigma + sigma.T) / 2


def vector_norm(w: Array, q: float) -> Array:
    """Norm of order q along the last axis."""
    # With the largest entry taken out, no power overflows, and the largest term is one
    largest = np.abs(w).max(axis=-1)
    if np.isinf(q):
        return np.asarray(largest)
    ratio = np.abs(w) / np.where((largest > 0) & np.isfinite(largest), largest, 1.0)[..., None]
    return np.asarray(largest * np.sum(ratio**q, axis=-1) ** (1 / q))


def _mahalanobis(w: Array, sigma: Array) -> Array:
    # Eigenvalues of the correlation matrix, so that no feature's unit drowns another's
    deviation = np.sqrt(np.maximum(np.diag(sigma), 0.0))
    unit = np.where(deviation > 0, deviation, 1.0)
    values, vectors = np.linalg.eigh(sigma / unit / unit[:, None])
    if values[0] < -1e-6 * max(values[-1], 1.0):
        raise ValueError(
            f"covariance is not positive semidefinite: the correlation matrix has the eigenvalue "
            f"{values[0]:.3g}. Pass a covariance, not a precision or a difference of covariances."
        )
    return vector_norm((w * unit) @ vectors * np.sqrt(np.maximum(values, 0.0)), 2.0)


def gaussian_adversarial_risk(
    excess_risk: npt.ArrayLike,
    dual_norm: npt.ArrayLike,
    radius: npt.ArrayLike,
    *,
    noise_variance: npt.ArrayLike = 0.0,
) -> float | Array:
    r"""Mean squared error under attack, for Gaussian features and noise: the closed form.

    ``v^2 + 2 sqrt(2/pi) r v D + r^2 D^2`` with ``v^2 = excess_risk + noise_variance``, r the radius
    and D the dual norm. The noise goes inside the root: adding it outside gives up to 44 % less.
    The mean residual is taken for zero; at another one the middle term is up to 25 % larger.

    Parameters
    ----------
    excess_risk : float or array-like
        m^2 = E[(x'(w - w0))^2], w0 the true coefficients, in squared units of the target.
    dual_norm, radius : float or array-like
        Dual norm of the coefficients, see `dual_norm`, and radius of the attack.
    noise_variance : float or array-like, default=0.0
        s^2, variance of the noise in the target. Zero for the clean target ``x @ w0``.

    Returns
    -------
    risk : float or ndarray
        The risk; a float when all arguments are scalars, broadcast otherwise.

    Raises
    ------
    ValueError
        If an argument is negative or NaN.

    References
    ----------
    MATH section 5; for the clean target Scetbon and Dohmatob (2023).

    Examples
    --------
    >>> from sklearn_gradhess.metrics import gaussian_adversarial_risk
    >>> gaussian_adversarial_risk(1.0, 2.0, [0.0, 0.1], noise_variance=3.0).round(3)
    array([4.   , 4.678])
    """
    m2, dual, r, s2 = (
        np.asarray(a, dtype=np.float64) for a in (excess_risk, dual_norm, radius, noise_variance)
    )
    given = {"excess_risk": m2, "dual_norm": dual, "radius": r, "noise_variance": s2}
    for name, value in given.items():
        if not np.all(value >= 0):
            raise ValueError(f"{name} must be >= 0, got {value[~(value >= 0)].flat[0]:g}.")
    risk = closed_form(m2 + s2, _product(r, dual))
    return float(risk) if risk.ndim == 0 else risk


def _product(a: Array, b: Array) -> Array:
    """Zero where one factor is zero, whatever the other: no attack is none against infinity too."""
    a, b = np.broadcast_arrays(a, b)
    return np.multiply(a, b, out=np.zeros(a.shape), where=(a > 0) & (b > 0))


def folded_normal(share: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """E|e|/v of a Gaussian e of mean a, v^2 = E[e^2], where a^2 is this share of v^2; and slopes.

    The slopes are those of E|e| in the variance ``v^2 - a^2`` and in a^2, times 2 v. E|e| is
    homogeneous of degree 1/2 in the two, so it is their mean, weighted by the shares. Estimates may
    give a share over one; there E|e| is continued as |a|, to which all derivatives join.
    """
    q = np.maximum(np.asarray(share, np.float64), 1e-300)
    rest = np.maximum(1 - q, 1e-12)
    t = np.sqrt(q / rest)
    by_variance = _C0 * np.exp(-t * t / 2) / np.sqrt(rest)
    by_mean = erf(t / np.sqrt(2)) / np.sqrt(q)
    return (1 - q) * by_variance + q * by_mean, by_variance, by_mean


def closed_form(
    mean_square: npt.ArrayLike, attack: npt.ArrayLike, share: npt.ArrayLike = 0.0
) -> Array:
    """Risk for a mean square v^2 of the residuals and an attack r D; v^2 may be infinite.

    share is that of the squared mean of the residuals in v^2.
    """
    v2, rd = (np.asarray(a, np.float64) for a in (mean_square, attack))
    cross = _product(np.sqrt(v2), rd)
    return np.asarray(v2 + 2 * folded_normal(share)[0] * cross + rd * rd)
