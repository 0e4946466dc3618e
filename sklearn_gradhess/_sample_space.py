"""Few rows of many features: the same fit with as many features as rows (MATH section 7.3).

Coefficients that a ridge or the least norm picks are combinations of the rows. With the Gram matrix
of the centred rows ``K = Z D^-1 Z' = U diag(e) U'`` the rows ``U sqrt(e)`` have the same raw
predictions, and the same penalty: whatever solves that problem solves this one, and X is read to
make K and the coefficients at the end, and in between not at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._diagonal import Diagonal, centred_squares
from sklearn_gradhess._rows import Problem

__all__ = ["SampleSpace", "in_sample_space"]

Array = npt.NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_BUFFER_BYTES = 2**24


@dataclass(frozen=True)
class SampleSpace:
    """A problem with as many features as rows at most, and the way back.

    Attributes
    ----------
    problem : Problem
        The small problem.
    X : ndarray or sparse matrix of shape (n_samples, d)
        Rows with a weight.
    mean : ndarray of shape (d,)
        Their mean; zero without an intercept.
    variance : ndarray of shape (d,)
        Their variance.
    inverse : ndarray of shape (d,)
        Of the penalty of each feature, or of its variance; zero for constant features.
    vectors : ndarray of shape (n_samples, r)
        Eigenvectors of the Gram matrix.
    roots : ndarray of shape (r,)
        Roots of its eigenvalues.
    """

    problem: Problem
    X: Any
    mean: Array
    variance: Array
    inverse: Array
    vectors: Array
    roots: Array

    @property
    def diagonal(self) -> Diagonal:
        """Diagonal of the Hessian of least squares."""
        mean, variance = self.mean[:, None], self.variance[:, None]
        h = self.problem.has_intercept
        return Diagonal(mean, np.ones(1), variance, self.inverse[:, None], h)

    def lift(self, V: Array) -> Array:
        """Coefficients of the features."""
        h = int(self.problem.has_intercept)
        return self._with_intercept(V, self._combined(self.vectors @ (V[h:] / self.roots[:, None])))

    def refined(self, V: Array) -> Array:
        """Coefficients of the features, whose raw predictions are right to the last digits.

        The Gram matrix squares the condition number of the rows; one correction undoes that.
        """
        h = int(self.problem.has_intercept)
        vectors, roots = self.vectors, self.roots[:, None]
        rows = vectors @ (V[h:] / roots)
        coef = self._combined(rows)
        missing = vectors @ (V[h:] * roots) - (self.X @ coef - self.mean @ coef)
        rows += vectors @ ((vectors.T @ missing) / roots**2)
        return self._with_intercept(V, self._combined(rows))

    def lower(self, W: Array) -> Array:
        """Coefficients of the small problem with the raw predictions of W."""
        h = int(self.problem.has_intercept)
        offset = self.mean @ W[h:]
        V = self.vectors.T @ (self.X @ W[h:] - offset) / self.roots[:, None]
        return np.vstack([W[:1] + offset, V]) if h else V

    def _combined(self, rows: Array) -> Array:
        total = rows.sum(axis=0)
        return self.inverse[:, None] * (self.X.T @ rows - np.outer(self.mean, total))

    def _with_intercept(self, V: Array, coef: Array) -> Array:
        if not self.problem.has_intercept:
            return coef
        return np.vstack([V[:1] - self.mean @ coef, coef])


def in_sample_space(problem: Problem) -> SampleSpace:
    """Turn to the space of the samples.

    Parameters
    ----------
    problem : Problem
        The objective. With a penalty its least value decides; without one, of all coefficients with
        the same raw predictions those of the least norm, every coefficient per standard deviation
        of its feature, as `whitening` has it.
    """
    if problem.weight is not None and not problem.weight.all():
        rows = np.flatnonzero(problem.weight)
        problem = replace(problem.of_rows(rows), count=problem.observations)
    v = problem.weighted(np.ones((problem.n, 1)))
    mean, variance = (values[:, 0] for values in centred_squares(problem, v))
    alpha = np.broadcast_to(np.asarray(problem.alpha, dtype=np.float64), variance.shape)
    size = float(alpha.max(initial=0.0))
    metric = alpha / size if size else variance
    varies = variance > 0
    if not np.all(metric[varies] > 0):
        raise ValueError(
            f"{np.count_nonzero(metric[varies] == 0)} of {len(varies)} features have no penalty, "
            "and others have: rows do not span their coefficients. Use preconditioner='diagonal'."
        )
    inverse = np.divide(1.0, metric, out=np.zeros_like(metric), where=(metric > 0) & varies)
    values, vectors = np.linalg.eigh(_gram(problem.X, mean, inverse))
    kept = values > max(512, problem.n) * _EPS * values[-1]
    vectors, roots = vectors[:, kept], np.sqrt(values[kept])
    if not len(roots):  # no feature varies: one that tells nothing
        vectors, roots = np.zeros((problem.n, 1)), np.ones(1)
    small = replace(problem, X=vectors * roots, alpha=size)
    return SampleSpace(small, problem.X, mean, variance, inverse, vectors, roots)


def _gram(X: Any, mean: Array, inverse: Array) -> Array:
    """``Z diag(inverse) Z'`` of centred rows Z; X itself is not copied."""
    n = X.shape[0]
    if sparse.issparse(X):
        scaled = X.astype(np.float64).multiply(inverse).tocsr()
        gram = (scaled @ X.T).toarray()
        along = scaled @ mean
        return gram - along[:, None] - along + mean @ (inverse * mean)
    gram = np.zeros((n, n))
    for Z, scale in _columns(X, mean, np.sqrt(inverse)):
        Z *= scale
        gram += Z @ Z.T
    return gram


def _columns(X: Array, mean: Array, scale: Array) -> Iterator[tuple[Array, Array]]:
    """Centred columns, a block at a time."""
    step = max(64, _BUFFER_BYTES // (8 * len(X)))
    for start in range(0, X.shape[1], step):
        block = slice(start, start + step)
        yield X[:, block] - mean[block], scale[block]
