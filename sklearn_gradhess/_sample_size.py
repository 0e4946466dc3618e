"""How many batches an estimate needs, how large they must be, and the error to expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["expected_relative_error", "required_batch_size", "required_batches"]


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
