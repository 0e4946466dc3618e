"""The diagonal of the Hessian as preconditioner: nothing of the size of its square is made.

The intercept is eliminated first, so it is the diagonal of the centred features' Hessian, and a
shift of a feature changes nothing; nor does its unit (MATH section 7.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._rows import Problem
from sklearn_gradhess._squares import Squares

__all__ = ["Diagonal", "centred_squares", "diagonal_hessian", "hessian_squares"]

Array = npt.NDArray[np.float64]
# Share of a feature's mean square that its variance has at least, if it is no rounding error
_CONSTANT = 1e-12
_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Diagonal:
    """Preconditioner P of the columns of W: intercept eliminated, then a number a feature.

    Attributes
    ----------
    mean : ndarray of shape (d, c)
        Means of the features, weighted with curvature; c is t, or one that serves all columns.
    total : ndarray of shape (c,)
        Mean curvature.
    variance : ndarray of shape (d, c)
        Diagonal of the centred Hessian of the rows, without penalty.
    inverse : ndarray of shape (d, c)
        Inverse of it with the penalty, and what else the objective has; zero for constant features
        without one, which are left alone.
    has_intercept : bool
        Whether the first row of W is the intercept.
    coupling : int
        As of the loss: where columns are coupled no step shifts all of them by the same.
    """

    mean: Array
    total: Array
    variance: Array
    inverse: Array
    has_intercept: bool
    coupling: int = 1
    # It tells no rank, no law bounds the eigenvalues of P^-1 H, and it has no factor
    ends: ClassVar[tuple[float, float]] = (0.0, np.inf)
    ratio: ClassVar[float] = 0.0
    n_clipped: ClassVar[int] = 0
    factors: ClassVar[tuple[Array, ...]] = ()
    batch_size: ClassVar[int] = 1
    n_batches: ClassVar[int] = 0

    @property
    def squares(self) -> Squares:
        """What it is made of, without penalty."""
        return Squares(self.total, self.mean, self.variance)

    def solve(self, gradient: Array) -> Array:
        """P^-1 times the gradient, of shape (p, t)."""
        h = int(self.has_intercept)
        step = np.empty_like(gradient)
        step[h:] = gradient[h:]
        if h:
            step[h:] -= self.mean * gradient[0]
        step[h:] *= self.inverse
        if h:
            step[0] = gradient[0] / self.total - np.einsum("ij,ij->j", self.mean, step[1:])
        if self.coupling > 1:
            step -= np.einsum("ij->i", step)[:, None] / step.shape[1]
        return step

    def decrement(self, gradient: Array) -> float:
        """``g' P^-1 g``."""
        return float(np.sum(gradient * self.solve(gradient)))

    def degrees_of_freedom(self, n_columns: int) -> float:
        """Bound on the effective number of coefficients, ``tr H (H + alpha)^-1``.

        The function is concave, and eigenvalues majorise the diagonal (Schur and Horn).
        """
        share = float(np.sum(self.variance * self.inverse))
        columns = n_columns / self.inverse.shape[1]
        return columns * share + n_columns * self.has_intercept


def diagonal_hessian(problem: Problem, curvature: Array | None) -> Diagonal:
    """Take the diagonal of the Hessian: a pass.

    Parameters
    ----------
    problem : Problem
        The objective.
    curvature : ndarray of shape (n_samples, t) or None
        Curvature of each row; None is one.
    """
    own = hessian_squares(problem, curvature)
    whole, h = problem.with_others(own), int(problem.has_intercept)
    total = np.maximum(whole.total, np.finfo(np.float64).tiny)
    scale = whole.scatter + problem.ridge[h:]
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return Diagonal(
        whole.mean, total, own.scatter, inverse, problem.has_intercept, problem.loss.coupling
    )


def hessian_squares(problem: Problem, curvature: Array | None) -> Squares:
    """Diagonal of the Hessian of the mean loss of the rows, the intercept eliminated: a pass.

    Parameters
    ----------
    problem : Problem
        The objective.
    curvature : ndarray of shape (n_samples, c) or None
        Curvature of each row; None is one.
    """
    v = problem.weighted(np.ones((problem.n, 1)) if curvature is None else curvature)
    return Squares(v.sum(axis=0) / problem.n, *centred_squares(problem, v))


def centred_squares(problem: Problem, v: Array) -> tuple[Array, Array]:
    """Means of the features with weights v, and their centred squares ``sum v x^2 / n``.

    Without an intercept nothing is centred. Zero stands for a variance that is rounding.
    """
    d, total = problem.X.shape[1], v.sum(axis=0)
    first, second = np.zeros((d, v.shape[1])), np.zeros((d, v.shape[1]))
    shift = np.zeros(d)
    if problem.has_intercept and not sparse.issparse(problem.X):
        # Near the mean, so that offsets cancel in no difference of squares
        some = problem.rows(np.arange(0, problem.n, max(problem.n // 64, 1)))
        shift = some.mean(axis=0)
    for piece, Z, squared in _squares(problem, shift):
        first += Z.T @ v[piece]
        second += squared.T @ v[piece]
    second /= problem.n
    if not problem.has_intercept:
        return np.zeros_like(first), second
    first = np.divide(first, total, out=np.zeros_like(first), where=total > 0)
    mean, rough = first + shift[:, None], second + shift[:, None] ** 2 * (total / problem.n)
    second -= first**2 * (total / problem.n)
    second[second <= _CONSTANT**2 * rough] = 0.0
    if sparse.issparse(problem.X):
        second[second <= _CONSTANT * rough] = 0.0
    return mean, second


def _squares(problem: Problem, shift: Array) -> Iterator[tuple[slice, Any, Any]]:
    """Rows near their mean, and their squares."""
    for piece, rows in problem.chunks():
        if sparse.issparse(rows):
            yield piece, rows, type(rows)((rows.data**2, rows.indices, rows.indptr), rows.shape)
        else:
            # Few enough rows at a time that what is made of them is memory used again
            step = max(16, _BUFFER_BYTES // (8 * len(shift)))
            for start in range(piece.start, piece.stop, step):
                some = slice(start, min(start + step, piece.stop))
                Z = rows[start - piece.start : some.stop - piece.start] - shift
                yield some, Z, Z**2
