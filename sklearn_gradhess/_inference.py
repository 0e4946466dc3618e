"""What the Hessian at the minimum tells: degrees of freedom and standard errors."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._preconditioner import whitening

__all__ = ["Inference", "infer"]

Array = npt.NDArray[np.float64]


class Inference(NamedTuple):
    """Statistics of a fit.

    Attributes
    ----------
    df : float
        Effective degrees of freedom of a column of coefficients, ``tr H (H + alpha)^-1``.
    standard_error : ndarray of shape (p,)
        Standard error of the coefficients for a dispersion of one.
    """

    df: float
    standard_error: Array


def infer(root: Array, ridge: Array, n: float, *, has_intercept: bool) -> Inference:
    r"""Degrees of freedom and standard errors, of the Hessian in factor form.

    The gradient at the truth has the covariance ``s^2 H / n``, so that the minimiser of the
    penalised objective has ``s^2 (H + alpha)^-1 H (H + alpha)^-1 / n`` about its mean.

    Parameters
    ----------
    root : ndarray of shape (p, p)
        R with ``R'R = H``, the Hessian without penalty.
    ridge : ndarray of shape (p,)
        Penalty of each coefficient; zero for the intercept.
    n : float
        Number of observations.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    """
    h = int(has_intercept)
    T, _ = whitening(root, has_intercept=has_intercept, alpha=ridge[h:])
    fitted = root @ T  # (H + alpha)^-1 H (H + alpha)^-1 = (T fitted') (T fitted')'
    return Inference(float(np.sum(fitted**2)), np.sqrt(np.sum((T @ fitted.T) ** 2, axis=1) / n))
