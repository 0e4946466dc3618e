"""Hessians in factor form: exact, or a sketch by batch gradients of sign noise.

Both are Gram matrices: of all rows, weighted with the root of their curvature, or of their sums
over batches with random signs, the antithetic Rademacher sketch. For k batches and p coefficients
the sketch is a preconditioner P whose P^-1 H has the eigenvalues of a Marchenko-Pastur law,
whatever H (MATH section 4.1). With every row a batch of its own it is the Hessian.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import blas

from sklearn_gradhess._gradients import RowCoefficients, batch_index, batch_sums
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._preconditioner import Factor, gram_roots, whitening
from sklearn_gradhess._rows import Problem

__all__ = ["PROBES", "Sketched", "given_factor", "hessian_factor", "sketch_factor"]

Array = npt.NDArray[np.float64]
PROBES = 16  # random directions that estimate leverages, to about a third of their size
_BUFFER_BYTES = 2**20
_CENTRE = 64  # rows whose mean is subtracted beforehand


class Sketched(NamedTuple):
    """A factor, and what came with it.

    Attributes
    ----------
    factor : Factor
        The preconditioner.
    step : ndarray of shape (p, t) or None
        Solution of the weighted least squares with the targets given.
    mixed : list of ndarray of shape (p, PROBES)
        Random combinations of the rows of a sketch.
    n_passes : int
        Passes over the data that it took.
    """

    factor: Factor
    step: Array | None
    mixed: list[Array]
    n_passes: int


@dataclass(frozen=True)
class _Solved:
    """One column: roots of P^-1 and of the Hessian without penalty, and a step."""

    inverse: Array
    factor: Array
    n_clipped: int
    step: Array | None


def hessian_factor(
    problem: Problem, curvature: Array | None, target: Array | None = None
) -> Sketched:
    """Exact Hessian, and the least squares with its weights: a pass, two where ill conditioned.

    Parameters
    ----------
    problem : Problem
        The objective.
    curvature : ndarray of shape (n_samples, t) or None
        Curvature of each row; None is one.
    target : ndarray of shape (n_samples, t), default=None
        Targets of the least-squares problem.
    """
    shift = _shift(problem)
    columns = _columns(problem, curvature, target)
    n_passes = 1
    solved = [
        _from_gram(gram / problem.n, shift, problem, width)
        for gram, width in zip(_grams(problem, columns, shift), _widths(columns), strict=True)
    ]
    if any(one is None for one in solved):
        # The square of the condition number is beyond double precision: rows, not their squares
        n_passes = 2
        factors = _triangles(problem, columns, shift)
        solved = [
            one or _from_triangle(factor / np.sqrt(problem.n), shift, problem)
            for one, factor in zip(solved, factors, strict=True)
        ]
    found = [one for one in solved if one is not None]
    return Sketched(_factor(problem, found, 0.0, 1, problem.n), _steps(found), [], n_passes)


def sketch_factor(
    problem: Problem,
    curvature: Array | None,
    target: Array | None = None,
    *,
    n_batches: int,
    rng: np.random.Generator,
    shuffle: bool = True,
    n_threads: int = 1,
) -> Sketched:
    """Sketch the Hessian and a least-squares problem: a pass, two if the sketch is singular.

    Parameters
    ----------
    problem : Problem
        The objective.
    curvature : ndarray of shape (n_samples, t) or None
        Curvature of each row; None is one.
    target : ndarray of shape (n_samples, t), default=None
        Targets of the least-squares problem whose sketch is solved. With a curvature the solution
        is shortened by what is noise in it.
    n_batches : int
        Batches to deal the rows to, about.
    rng : Generator
        Source of signs and batches.
    shuffle : bool, default=True
        Deal rows to batches at random.
    n_threads : int, default=1
        Threads.
    """
    shift, p = _shift(problem), problem.p
    columns = _columns(problem, curvature, target)
    batch_size = max(1, problem.n // n_batches)

    def draw(*, shuffle: bool) -> tuple[list[Array], list[Array], int]:
        return _draw(problem, columns, shift, batch_size, rng, shuffle, n_threads)

    triangles, mixed, k = draw(shuffle=shuffle)
    solved = [_from_triangle(triangle, shift, problem) for triangle in triangles]
    n_passes = 1
    if any(one.n_clipped for one in solved):
        # Singular, or the signs of the only rows of a direction have cancelled: hardly ever twice
        more, mixed_too, k_too = draw(shuffle=True)
        pairs = zip(triangles, more, strict=True)
        triangles = [triangular_factor(np.vstack(pair)) / np.sqrt(2) for pair in pairs]
        mixed = [(m + m2) / np.sqrt(2) for m, m2 in zip(mixed, mixed_too, strict=True)]
        solved = [_from_triangle(triangle, shift, problem) for triangle in triangles]
        k, n_passes = k + k_too, 2
    steps = _steps(solved)
    if steps is not None and curvature is not None:
        steps = np.column_stack(
            [
                _shortened(one.step, one.factor, triangle[p:, p:], p / k)
                for one, triangle in zip(solved, triangles, strict=True)
            ]
        )
    return Sketched(_factor(problem, solved, p / k, batch_size, k), steps, mixed, n_passes)


def given_factor(factor: Array, problem: Problem, *, ratio: float) -> Factor:
    """Preconditioner of somebody else's making, in factor form."""
    T, clipped = whitening(factor, has_intercept=problem.has_intercept, alpha=problem.alpha)
    return _factor(problem, [_Solved(T, factor, clipped, None)], ratio, 1, 0)


def _factor(
    problem: Problem, solved: list[_Solved], ratio: float, batch_size: int, n_batches: int
) -> Factor:
    # E[S^-1] = k/(k - p - 1) H^-1 for the sketch S of k batches
    debias = 1.0
    if ratio and n_batches:
        debias = max(n_batches - problem.p - 1, 1) / n_batches
    elif ratio:
        debias = 1 - ratio
    return Factor(
        tuple(np.sqrt(debias) * one.inverse for one in solved),
        tuple(one.factor for one in solved),
        max(one.n_clipped for one in solved),
        ratio,
        batch_size,
        n_batches,
        problem.loss.coupling,
    )


def _steps(solved: list[_Solved]) -> Array | None:
    steps = [one.step for one in solved if one.step is not None]
    return np.column_stack(steps) if steps else None


def _columns(
    problem: Problem, curvature: Array | None, target: Array | None
) -> list[tuple[Array | None, Array | None]]:
    """Roots of the weights of rows, and the targets that they serve, a column of W each.

    One for all columns where rows have no curvature of their own.
    """
    if curvature is None:
        root = None if problem.weight is None else np.sqrt(problem.weight)
        return [(root, target)]
    roots = np.sqrt(problem.weighted(curvature)).T
    targets = [None] * len(roots) if target is None else list(target.T[:, :, None])
    return list(zip(roots, targets, strict=True))


def _widths(columns: list[tuple[Array | None, Array | None]]) -> list[int]:
    return [0 if target is None else target.shape[1] for _, target in columns]


def _shift(problem: Problem) -> Array:
    """Near the mean of the features, so that their offsets cancel in no difference of squares."""
    if not problem.has_intercept:
        return np.zeros(problem.X.shape[1])
    spread = np.linspace(0, problem.n - 1, min(_CENTRE, problem.n)).astype(int)
    rows = problem.rows(spread)
    return np.asarray(rows.mean(axis=0), dtype=np.float64).ravel()


def _pieces(problem: Problem, shift: Array, width: int) -> Iterator[tuple[slice, Array]]:
    """Rows (1, x - shift) with room for a target, in a buffer that is used again."""
    h, p = int(problem.has_intercept), problem.p
    step = max(1024, p, _BUFFER_BYTES // (8 * p))
    buffer = np.empty((min(step, problem.n), p + width))
    for start in range(0, problem.n, step):
        piece = slice(start, min(start + step, problem.n))
        rows = problem.X[piece]
        out = buffer[: piece.stop - start]
        out[:, :h] = 1.0
        dense = rows.toarray() if sparse.issparse(rows) else rows
        np.subtract(dense, shift, out=out[:, h:p])
        yield piece, out


def _weighted_pieces(
    problem: Problem, columns: list[tuple[Array | None, Array | None]], shift: Array
) -> Iterator[tuple[int, Array]]:
    """For each piece and column the rows ``sqrt(w v) (1, x - shift, q)``; valid until the next."""
    p, width = problem.p, max(_widths(columns))
    several = np.empty((0, p + width))
    for piece, base in _pieces(problem, shift, width):
        if len(columns) > 1 and len(several) < len(base):
            several = np.empty_like(base)
        for j, (root, target) in enumerate(columns):
            rows = base
            if target is not None:
                rows[:, p:] = target[piece]
            if root is not None:
                rows = several[: len(base)] if len(columns) > 1 else base
                np.multiply(base, root[piece, None], out=rows)
            yield j, rows


def _grams(
    problem: Problem, columns: list[tuple[Array | None, Array | None]], shift: Array
) -> list[Array]:
    """Upper triangles of the Gram matrices of weighted rows."""
    size = problem.p + max(_widths(columns))
    grams = [np.zeros((size, size), order="F") for _ in columns]
    for j, rows in _weighted_pieces(problem, columns, shift):
        grams[j] = blas.dsyrk(1.0, rows.T, beta=1.0, c=grams[j], overwrite_c=1)
    return grams


def _triangles(
    problem: Problem, columns: list[tuple[Array | None, Array | None]], shift: Array
) -> list[Array]:
    """Triangular factors of weighted rows, without their squares."""
    size = problem.p + max(_widths(columns))
    factors = [np.zeros((size, size)) for _ in columns]
    for j, rows in _weighted_pieces(problem, columns, shift):
        factors[j] = triangular_factor(np.vstack([factors[j], rows]))
    return factors


def _from_gram(gram: Array, shift: Array, problem: Problem, width: int) -> _Solved | None:
    """Solve by Cholesky's factor; None where rounding errors would decide."""
    p, h = problem.p, int(problem.has_intercept)
    found = gram_roots(
        gram[:p, :p],
        shift,
        has_intercept=problem.has_intercept,
        alpha=problem.alpha,
        precision=_precision(problem.X),
    )
    if found is None:
        return None
    inverse, factor = found
    if not width:
        return _Solved(inverse, factor, 0, None)
    right = gram[:p, p:]
    step = np.empty((p, width))
    if h:
        # Normal equations of the centred features, then the intercept
        mean = gram[0, 1:p] / gram[0, 0]
        inner = inverse[1:, 1:]
        step[1:] = inner @ (inner.T @ (right[1:] - np.outer(mean, right[0])))
        step[0] = right[0] / gram[0, 0] - (mean + shift) @ step[1:]
    else:
        step[:] = inverse @ (inverse.T @ right)
    return _Solved(inverse, factor, 0, step)


def _from_triangle(triangle: Array, shift: Array, problem: Problem) -> _Solved:
    """Solve by the triangular factor of rows (1, x - shift, q)."""
    p, h = problem.p, int(problem.has_intercept)
    factor = triangle[:p, :p].copy()
    if h:
        factor[0, 1:] += factor[0, 0] * shift
    inverse, clipped = whitening(
        factor,
        has_intercept=problem.has_intercept,
        alpha=problem.alpha,
        precision=_precision(problem.X),
    )
    if triangle.shape[1] == p:
        return _Solved(inverse, factor, clipped, None)
    centred = triangle[h:p, h:p]
    q = triangle[:p, p:]
    step = np.empty((p, q.shape[1]))
    inner = inverse[h:, h:]
    step[h:] = inner @ (inner.T @ (centred.T @ q[h:]))
    if h:
        mean = triangle[0, 1:p] / triangle[0, 0] if triangle[0, 0] else np.zeros(p - 1)
        step[0] = (q[0] / triangle[0, 0] if triangle[0, 0] else 0.0) - (mean + shift) @ step[1:]
    return _Solved(inverse, factor, clipped, step)


def _precision(X: Any) -> float:
    """Return the rounding error of an entry of X, relative."""
    return float(np.finfo(X.dtype).eps)


def _shortened(step: Array | None, factor: Array, rest: Array, ratio: float) -> Array:
    """Shrink what is noise in the solution of a sketched least squares.

    It has a noise of ``s^2 c / (1 - c)``, c the ratio of coefficients to batches, whatever the
    signal m^2; a step that is ``m^2 / (m^2 + noise)`` as long is the best one. Both are read off
    the sketch's own residuals.
    """
    assert step is not None
    variance = float(np.sum(rest**2)) / (1 - ratio)
    signal = max(float(np.sum((factor @ step) ** 2)) - ratio * variance, 0.0)
    return step * (signal / (signal + variance * ratio / (1 - ratio)) if signal else 0.0)


def _draw(
    problem: Problem,
    columns: list[tuple[Array | None, Array | None]],
    shift: Array,
    batch_size: int,
    rng: np.random.Generator,
    shuffle: bool,
    n_threads: int,
) -> tuple[list[Array], list[Array], int]:
    """Triangular factors of sketched rows and targets, mixtures of rows, and batches: one pass."""
    n, p, width = problem.n, problem.p, max(_widths(columns))
    signs = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    roots = [signs if root is None else signs * root for root, _ in columns]
    batch = batch_index(n, batch_size, 0, rng if shuffle else None)
    k = int(batch.max()) + 1
    targets = None
    if width:
        targets = [
            np.column_stack([np.bincount(batch, root * q, minlength=k) for q in target.T])
            for root, (_, target) in zip(roots, columns, strict=True)
            if target is not None
        ]
    # Combinations of the rows, not of coordinates: as equivariant as the rows are
    mix = rng.standard_normal((k, PROBES))
    triangles = [np.zeros((p + width, p + width)) for _ in columns]
    mixed = [np.zeros((p, PROBES)) for _ in columns]
    for start, sums, _ in batch_sums(
        problem.X,
        RowCoefficients(np.column_stack(roots)),
        batch,
        batch_size=batch_size,
        contiguous=not shuffle or batch_size == 1,
        has_intercept=problem.has_intercept,
        n_threads=n_threads,
    ):
        for j in range(len(columns)):
            rows = sums[:, j]
            mixed[j] += rows.T @ mix[start : start + len(rows)] / np.sqrt(n)
            if problem.has_intercept:
                rows[:, 1:] -= rows[:, :1] * shift
            if targets is not None:
                rows = np.column_stack([rows, targets[j][start : start + len(rows)]])
            triangles[j] = triangular_factor(np.vstack([triangles[j], rows]))
    return [f / np.sqrt(n) for f in triangles], mixed, k
