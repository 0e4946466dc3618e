"""Covariance of a Mahalanobis attack: whose columns it is about, and what of it can move."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._table import SELECTORS, Table

__all__ = ["conditional_covariance", "covariance_matrix"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def covariance_matrix(covariance: Any) -> Any:
    """Covariance as an array, if it is one, or the estimator has one."""
    found = getattr(covariance, "covariance_", covariance)
    if found is None or hasattr(found, "fit"):
        return found
    if hasattr(found, "loc") and set(found.index) == set(found.columns):
        found = found.loc[list(found.columns)]
    return np.asarray(found, dtype=np.float64)


def conditional_covariance(covariance: Any, table: Table, mask: Mask) -> Array:
    """Covariance of the columns A under attack, given those that stand still, F."""
    # The ball cut by delta_F = 0 is that of a block of the precision, whose inverse is the
    # Schur complement S_AA - S_AF S_FF^-1 S_FA
    matrix, columns = _by_position(covariance, table, mask)
    unit = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    unit[unit == 0] = 1.0
    # of the correlations, so that no unit decides what is singular
    correlation = matrix / unit / unit[:, None]
    moves = mask[columns]
    order = np.argsort(columns[moves])
    a, f = np.flatnonzero(moves)[order], np.flatnonzero(~moves)
    across = correlation[np.ix_(a, f)]
    still = np.linalg.pinv(correlation[np.ix_(f, f)], rcond=1e-10, hermitian=True)
    left = correlation[np.ix_(a, a)] - across @ still @ across.T
    determined = np.diag(left) < 1e-10
    if len(f):
        left[determined], left[:, determined] = 0.0, 0.0
    return np.asarray(left * unit[a] * unit[a][:, None])


def _by_position(covariance: Any, table: Table, mask: Mask) -> tuple[Array, npt.NDArray[np.intp]]:
    """Covariance as an array, and the column of X that each of its columns is about."""
    found = getattr(covariance, "covariance_", covariance)
    names = getattr(covariance, "feature_names_in_", getattr(found, "columns", None))
    matrix = covariance_matrix(covariance)
    if names is not None and table.names is not None:
        names = list(names)
        unknown = [name for name in names if name not in table.names]
        missing = [table.names[j] for j in np.flatnonzero(mask) if table.names[j] not in names]
        if unknown or missing:
            raise ValueError(
                f"covariance is one of {names}: "
                + (f"{unknown} are not columns of X. " if unknown else "")
                + (f"{missing} are under attack and not among them. " if missing else "")
                + "Pass the covariance of columns of X, or attack others by features."
            )
        return matrix, np.array([table.names.index(name) for name in names], dtype=np.intp)
    for which in (mask, np.ones_like(mask), table.numeric):
        if matrix.shape == (which.sum(), which.sum()):
            return matrix, np.flatnonzero(which)
    raise ValueError(
        f"covariance has shape {matrix.shape}, but X has {table.n_columns} columns, "
        f"{mask.sum()} of them under attack: pass one row and column for each of either.{SELECTORS}"
    )
