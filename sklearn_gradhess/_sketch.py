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
from sklearn_gradhess._moments import triangular_factor, updated_triangle
from sklearn_gradhess._preconditioner import Factor, gram_roots, whitening
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._validation import largest_entry

__all__ = [
    "PROBES",
    "Sketched",
    "given_factor",
    "hessian_factor",
    "sketch_factor",
    "triangles",
    "triangles_factor",
]

Array = npt.NDArray[np.float64]
PROBES = 16  # random directions that estimate leverages, to about a third of their size
_BUFFER_BYTES = 2**20
_ROUNDING = 64 * float(np.finfo(np.float64).eps)
_TALL = 5  # rows a column, from which on a Gram matrix is worth a try


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
    rest : ndarray of shape (t,)
        Mean squared residuals of the least squares, and twice the penalty.
    error : float
        Bound on the squared Newton decrement that rounding leaves of the step.
    """

    factor: Factor
    step: Array | None
    mixed: list[Array]
    n_passes: int
    rest: Any = 0.0
    error: float = np.inf


@dataclass(frozen=True)
class _Solved:
    """One column: roots of P^-1 and of the Hessian without penalty, and a step."""

    inverse: Array
    factor: Array
    n_clipped: int
    step: Array | None
    rest: Any = 0.0  # sums of squares of the least squares' residuals, over the rows
    error: float = np.inf  # bound on the decrement that rounding leaves of the step


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
    shift = problem.shift
    columns = _columns(problem, curvature, target)
    solved = [gram.solved(problem, shift) for gram in _accumulated(problem, columns, shift, _Gram)]
    n_passes = 1
    if any(one is None for one in solved):
        # The square of the condition number is beyond double precision: rows, not their squares
        triangles = _accumulated(problem, columns, shift, _Triangle)
        solved = [triangle.solved(problem, shift) for triangle in triangles]
        n_passes = 2
    found = [one for one in solved if one is not None]
    factor = _factor(problem, found, 0.0, 1, problem.n)
    error = sum(one.error for one in found)
    return Sketched(factor, _steps(found), [], n_passes, found[0].rest, error)


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
    shift, p = problem.shift, problem.p
    columns = _columns(problem, curvature, target)
    batch_size = max(1, problem.n // n_batches)

    def take(deal: _Deal) -> tuple[list[_Triangle], list[Array]]:
        return _take(problem, columns, shift, deal, n_threads)

    deal = _deal(problem.n, batch_size, rng, shuffle=shuffle)
    made, mixed = take(deal)
    solved = [one.solved(problem, shift) for one in made]
    n_passes, k = 1, deal.n_batches
    if any(one.n_clipped for one in solved):
        # Singular, or the signs of the only rows of a direction have cancelled: hardly ever twice
        another = _deal(problem.n, batch_size, rng, shuffle=True)
        more, mixed_too = take(another)
        made = [one.merge(other, problem) for one, other in zip(made, more, strict=True)]
        mixed = [(m + m2) / np.sqrt(2) for m, m2 in zip(mixed, mixed_too, strict=True)]
        solved = [one.solved(problem, shift) for one in made]
        k, n_passes = k + another.n_batches, 2
    steps = _steps(solved)
    if steps is not None and curvature is not None:
        steps = np.column_stack([_shortened(one, p / k) for one in solved])
    return Sketched(_factor(problem, solved, p / k, batch_size, k), steps, mixed, n_passes)


def given_factor(factor: Array, problem: Problem, *, ratio: float) -> Factor:
    """Preconditioner of somebody else's making, in factor form."""
    T, clipped = whitening(factor, has_intercept=problem.has_intercept, alpha=problem.alpha)
    return _factor(problem, [_Solved(T, factor, clipped, None)], ratio, 1, 0)


def triangles(
    problem: Problem,
    curvature: Array | None,
    target: Array | None = None,
    *,
    batch_size: int,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Triangular factors of the rows, or of their sums over batches: what a part tells of a whole.

    Parameters
    ----------
    problem : Problem
        Some of the rows.
    curvature : ndarray of shape (n_samples, t) or None
        Curvature of each row; None is one.
    target : ndarray of shape (n_samples, t), default=None
        Targets of a least-squares problem.
    batch_size : int
        Rows in a batch; one: every row, exactly.
    rng : Generator
        Source of signs and batches.

    Returns
    -------
    shift : ndarray of shape (d,)
        What was subtracted from the features.
    factors : ndarray of shape (t, p + width, p + width)
        R of rows (1, x - shift, q), for each column of W, or one for all.
    """
    shift = problem.shift
    columns = _columns(problem, curvature, target)
    if batch_size == 1:
        made = _accumulated(problem, columns, shift, _Triangle)
    else:
        deal = _deal(problem.n, batch_size, rng, shuffle=True)
        made = _take(problem, columns, shift, deal, 1)[0]
    return shift, np.array([one.factor for one in made])


def triangles_factor(
    problem: Problem, shift: Array, factors: Array, *, ratio: float, batch_size: int, n_batches: int
) -> Sketched:
    """Hessian, and the least squares, of what `triangles` returned of all rows.

    Parameters
    ----------
    problem : Problem
        The objective, of as many rows as the factors are to be divided by.
    shift, factors : ndarray
        From `triangles`.
    ratio : float
        Coefficients over batches; zero where every row was one.
    batch_size, n_batches : int
        Rows in a batch, and batches.
    """
    solved = []
    for factor in factors:
        triangle = _Triangle(problem, len(factor) - problem.p)
        triangle.factor = factor
        solved.append(triangle.solved(problem, shift))
    made = _factor(problem, solved, ratio, batch_size, n_batches)
    return Sketched(made, _steps(solved), [], 1)


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


class _Gram:
    """Gram matrix of rows (1, x - shift, q): fast, but conditions are squared."""

    def __init__(self, problem: Problem, width: int) -> None:
        size = problem.p + width
        self.upper = np.zeros((size, size), order="F")

    def add(self, rows: Array) -> None:
        """Take more rows in."""
        self.upper = blas.dsyrk(1.0, rows.T, beta=1.0, c=self.upper, overwrite_c=1)

    def solved(self, problem: Problem, shift: Array) -> _Solved | None:
        """Solve by Cholesky's factor; None where rounding errors would decide."""
        p, h = problem.p, int(problem.has_intercept)
        upper = self.upper / problem.n  # with zeros below the diagonal
        gram = upper + upper.T
        gram.flat[:: len(gram) + 1] = upper.diagonal()
        found = gram_roots(
            gram[:p, :p],
            shift,
            has_intercept=problem.has_intercept,
            alpha=problem.alpha,
            precision=_precision(problem.X),
        )
        if found is None:
            return None
        inverse, factor, condition, n_constant = found
        right, square = gram[:p, p:], np.diag(gram)[p:].copy()
        if not right.shape[1]:
            return _Solved(inverse, factor, n_constant, None)
        step = np.empty(right.shape)
        inner, centred = inverse[h:, h:], right[h:]
        if h:
            # Normal equations of the centred features, then the intercept
            mean = gram[0, 1:p] / gram[0, 0]
            centred = centred - np.outer(mean, right[0])
            square -= right[0] ** 2 / gram[0, 0]
        step[h:] = inner @ (inner.T @ centred)
        # Of the squared residuals these are what the normal equations leave
        explained = np.sum(centred * step[h:], axis=0)
        rest = np.maximum(square - explained, 0.0)
        # The step is off by the rounding of the Gram matrix, stretched by its condition
        error = (_ROUNDING / condition) ** 2 * explained
        if h:
            step[0] = right[0] / gram[0, 0] - (mean + shift) @ step[1:]
        return _Solved(inverse, factor, n_constant, step, rest, float(error.sum()))


class _Triangle:
    """Triangular factor of rows (1, x - shift, q), without their squares."""

    def __init__(self, problem: Problem, width: int) -> None:
        size = problem.p + width
        self.factor = np.zeros((size, size))

    def add(self, rows: Array) -> None:
        """Take more rows in."""
        if len(rows) >= _TALL * len(self.factor):  # at the speed of matrix products
            self.factor = triangular_factor(np.vstack([self.factor, rows]))
        else:
            self.factor = updated_triangle(self.factor, rows)

    def solved(self, problem: Problem, shift: Array) -> _Solved:
        """Solve, without singular directions."""
        p, h = problem.p, int(problem.has_intercept)
        if not np.isfinite(self.factor).all():
            raise ValueError(
                "Sums over the rows of X overflow float64: its largest entry is "
                f"{largest_entry(problem.X):.3g} in size. Rescale X."
            )
        triangle = self.factor / np.sqrt(problem.n)
        factor = triangle[:p, :p].copy()
        if h:
            factor[0, 1:] += factor[0, 0] * shift
        inverse, clipped = whitening(
            factor,
            has_intercept=problem.has_intercept,
            alpha=problem.alpha,
            precision=_precision(problem.X),
        )
        q, rest = triangle[:p, p:], np.sum(triangle[p:, p:] ** 2, axis=0)
        if not q.shape[1]:
            return _Solved(inverse, factor, clipped, None)
        step = np.empty(q.shape)
        R, inner = triangle[h:p, h:p], inverse[h:, h:]
        step[h:] = inner @ (inner.T @ (R.T @ q[h:]))
        # T T' inverts R'R + alpha up to rounding times its condition: once more, of what that left
        left = R.T @ (q[h:] - R @ step[h:]) - problem.ridge[h:] * step[h:]
        step[h:] += inner @ (inner.T @ left)
        if h:
            total = triangle[0, 0]
            mean, first = (triangle[0, 1:p] / total, q[0] / total) if total else (0 * shift, 0.0)
            step[0] = first - (mean + shift) @ step[1:]
        return _Solved(inverse, factor, clipped, step, rest)

    def merge(self, other: "_Triangle", problem: Problem) -> "_Triangle":
        """Mean of the two second moments."""
        out = _Triangle(problem, len(self.factor) - problem.p)
        out.factor = updated_triangle(self.factor, other.factor) / np.sqrt(2)
        return out


def _accumulated(
    problem: Problem,
    columns: list[tuple[Array | None, Array | None]],
    shift: Array,
    how: type[_Gram] | type[_Triangle],
) -> list[Any]:
    """Take in all rows, a column of W each."""
    made = [how(problem, width) for width in _widths(columns)]
    for j, rows in _weighted_pieces(problem, columns, shift):
        made[j].add(rows)
    return made


def _precision(X: Any) -> float:
    """Return the rounding error of an entry of X, relative."""
    return float(np.finfo(X.dtype).eps)


def _shortened(one: _Solved, ratio: float) -> Array:
    """Shrink what is noise in the solution of a sketched least squares.

    It has a noise of ``s^2 c / (1 - c)``, c the ratio of coefficients to batches, whatever the
    signal m^2; a step that is ``m^2 / (m^2 + noise)`` as long is the best one. Both are read off
    the sketch's own residuals.
    """
    assert one.step is not None
    variance = float(np.sum(one.rest)) / (1 - ratio)
    signal = max(float(np.sum((one.factor @ one.step) ** 2)) - ratio * variance, 0.0)
    return one.step * (signal / (signal + variance * ratio / (1 - ratio)) if signal else 0.0)


class _Deal(NamedTuple):
    """Signs and batches of the rows, and the weights of the batches in random combinations.

    Combinations of the rows, not of coordinates: as equivariant as the rows are.
    """

    signs: Array
    batch: npt.NDArray[np.int32]
    batch_size: int
    n_batches: int
    contiguous: bool
    mix: Array


def _deal(n: int, batch_size: int, rng: np.random.Generator, *, shuffle: bool) -> _Deal:
    signs = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    batch = batch_index(n, batch_size, 0, rng if shuffle else None)
    k = int(batch.max()) + 1
    mix = rng.standard_normal((k, PROBES))
    return _Deal(signs, batch, batch_size, k, not shuffle or batch_size == 1, mix)


def _take(
    problem: Problem,
    columns: list[tuple[Array | None, Array | None]],
    shift: Array,
    deal: _Deal,
    n_threads: int,
) -> tuple[list[_Triangle], list[Array]]:
    """Take in sums over batches of rows and targets; random mixtures of the rows: one pass."""
    p, width, k = problem.p, max(_widths(columns)), deal.n_batches
    roots = [deal.signs if root is None else deal.signs * root for root, _ in columns]
    targets = [
        np.column_stack([np.bincount(deal.batch, root * q, minlength=k) for q in target.T])
        for root, (_, target) in zip(roots, columns, strict=True)
        if target is not None
    ]
    made = [_Triangle(problem, width) for _ in columns]
    mixed = [np.zeros((p, PROBES)) for _ in columns]
    for start, sums, _ in batch_sums(
        problem.X,
        RowCoefficients(np.column_stack(roots)),
        deal.batch,
        batch_size=deal.batch_size,
        contiguous=deal.contiguous,
        has_intercept=problem.has_intercept,
        n_threads=n_threads,
    ):
        for j in range(len(columns)):
            rows = sums[:, j]
            mixed[j] += rows.T @ deal.mix[start : start + len(rows)] / np.sqrt(problem.n)
            if problem.has_intercept:
                rows[:, 1:] -= rows[:, :1] * shift
            if targets:
                rows = np.column_stack([rows, targets[j][start : start + len(rows)]])
            made[j].add(rows)
    return made, mixed
