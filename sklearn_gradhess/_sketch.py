"""Sketch a Hessian: the preconditioner, its step size, and the solution of the sketched problem.

The antithetic Rademacher sketch of the rows, weighted with the root of the curvature, is a
preconditioner P whose P^-1 H has eigenvalues in [1/3, 3] for four batches a coefficient and any H
(MATH section 4.1).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._gradients import BatchSums, RowCoefficients, batch_index, batch_sums
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._objective import Problem
from sklearn_gradhess._preconditioner import whitening

__all__ = ["PROBES", "Sketch", "fixed_sketch", "sketch"]

Array = npt.NDArray[np.float64]
# Multiplications below which the exact Hessian costs nothing to speak of
_EXACT = 2e8
_SPARE = 16  # batches more than coefficients, below which the inverse has no mean to speak of
PROBES = 16  # random directions that estimate leverages, to about a third of their size


@dataclass(frozen=True)
class Sketch:
    """Preconditioners of the columns of W; one serves all where the curvature is the same.

    Attributes
    ----------
    whiten : list of ndarray of shape (p, r)
        T with ``T T'`` the inverse of the debiased sketched Hessian.
    start : ndarray of shape (p, t) or None
        Step to the solution of the sketched problem, if a target was sketched too.
    exact : bool
        Whether every row is a batch, so that the sketch is the Hessian itself.
    ratio : float
        Coefficients over batches, c in the Marchenko-Pastur law.
    probes : list of ndarray of shape (p, PROBES) or None
        Random directions whose predictions estimate leverages.
    n_passes : int
        Passes over the data that it took.
    factors : list of ndarray of shape (p, p)
        Triangular roots of the sketched Hessians, without penalty.
    batch_size, n_batches : int
        Rows in a batch, and batches.
    n_clipped : int
        Singular directions left out.
    curvature_scale : float
        Bound on the eigenvalues of the Hessian against its diagonal blocks: two where the columns
        of W are coupled.
    """

    whiten: list[Array]
    start: Array | None
    exact: bool
    ratio: float
    factors: list[Array]
    batch_size: int
    n_batches: int
    n_clipped: int
    curvature_scale: float = 1.0
    probes: list[Array] | None = None
    n_passes: int = 1

    def newton(self, gradient: Array) -> Array:
        """P^-1 times the gradient."""
        if len(self.whiten) == 1:
            T = self.whiten[0]
            return T @ (T.T @ gradient)
        return np.column_stack(
            [T @ (T.T @ g) for T, g in zip(self.whiten, gradient.T, strict=True)]
        )

    def decrement(self, gradient: Array) -> float:
        """Squared Newton decrement, ``g' P^-1 g``."""
        return float(np.sum(gradient * self.newton(gradient)))

    def scaled_to(self, other: "Sketch", problem: Problem) -> "Sketch":
        """Scale so that the Hessian of another sketch has eigenvalues of mean one in this one."""
        h = problem.has_intercept
        total = 0.0
        for T in self.whiten:
            total += sum(float(np.sum((R @ T) ** 2)) for R in other.factors) / len(other.factors)
            total += problem.alpha * float(np.sum(T[h:] ** 2))
        mean = total / max(sum(T.shape[1] for T in self.whiten), 1)
        return replace(self, whiten=[T / np.sqrt(mean) for T in self.whiten]) if mean else self

    def step_size(self, batch_size: int) -> float:
        """Half the largest mean-square stable step (MATH section 4.2).

        With rows drawn by leverage the effective leverage is at most twice the mean, hence the
        factor two on the noise term.
        """
        c, p = self.ratio, self.whiten[0].shape[0]
        angle = (np.arange(200) + 0.5) * np.pi / 200
        x = 1 + c - 2 * np.sqrt(c) * np.cos(angle)
        density = np.sin(angle) ** 2 / x
        density /= density.sum()
        eigenvalues = self.curvature_scale * (1 - c) / x

        def stable(eta: float) -> bool:
            room = 2 - eta * (1 + 1 / batch_size) * eigenvalues
            return bool(
                np.all(room > 0) and 2 * p * np.sum(density * eta * eigenvalues / room) < batch_size
            )

        low, high = 0.0, 2.0 / eigenvalues.max()
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if stable(middle) else (low, middle)
        return 0.5 * low


def sketch(
    problem: Problem,
    stiffness: Array | None,
    target: Array | None = None,
    *,
    oversampling: float,
    rng: np.random.Generator,
    shuffle: bool = True,
    n_threads: int = 1,
) -> Sketch:
    """Sketch the Hessian, and a least-squares problem with it. One pass; two if it is singular.

    Parameters
    ----------
    problem : Problem
        The objective.
    stiffness : ndarray of shape (n_samples, t) or None
        Curvature assumed of each row; None is one, as for the squared loss.
    target : ndarray of shape (n_samples, t), default=None
        Targets of the least-squares problem whose sketch is solved.
    oversampling : float
        Batches a coefficient.
    rng : Generator
        Source of signs and batches.
    shuffle : bool, default=True
        Deal rows to batches at random.
    n_threads : int, default=1
        Threads.
    """
    n, p = problem.n, problem.p
    wanted = max(oversampling * p, p + _SPARE)
    batch_size = 1 if 2.0 * n * p**2 <= _EXACT else max(1, int(n / wanted))
    exact = batch_size == 1
    v = np.ones((n, 1)) if stiffness is None else stiffness
    root = np.sqrt(problem.weighted(v))
    draw = partial(_draw, problem, root, target, batch_size, rng, n_threads=n_threads)
    factors, mixed, k = draw(shuffle=shuffle)
    inverses = [_whitening(factor[:p, :p], problem) for factor in factors]
    n_passes = 1
    if not exact and any(clipped for _, clipped in inverses):
        # Singular, or the signs of the only rows of a direction have cancelled: hardly ever twice
        more, mixed_too, k_too = draw(shuffle=True)
        pairs = zip(factors, more, strict=True)
        factors = [triangular_factor(np.vstack(pair)) / np.sqrt(2) for pair in pairs]
        mixed = [(m + m2) / np.sqrt(2) for m, m2 in zip(mixed, mixed_too, strict=True)]
        inverses = [_whitening(factor[:p, :p], problem) for factor in factors]
        k, n_passes = k + k_too, 2
    debias = 1.0 if exact else (k - p - 1) / k
    whiten = [np.sqrt(debias) * T for T, _ in inverses]
    start = None
    if target is not None:
        shrink = 0.0 if stiffness is None or exact else p / k
        solved = (_solve(T, f, shrink) for (T, _), f in zip(inverses, factors, strict=True))
        start = np.column_stack(list(solved))
    probes = None
    if not exact:
        probes = [_probes(T, m, problem, rng) for T, m in zip(whiten, mixed, strict=True)]
    return Sketch(
        whiten,
        start,
        exact,
        0.0 if exact else p / k,
        [f[:p, :p] for f in factors],
        batch_size,
        k,
        max(clipped for _, clipped in inverses),
        _coupling(problem),
        probes,
        n_passes,
    )


def _draw(
    problem: Problem,
    root: Array,
    target: Array | None,
    batch_size: int,
    rng: np.random.Generator,
    *,
    shuffle: bool,
    n_threads: int,
) -> tuple[list[Array], list[Array], int]:
    """Triangular factors of sketched rows and targets, mixtures of rows, and batches: one pass."""
    n, p, exact = problem.n, problem.p, batch_size == 1
    coefficients = np.where(rng.random(n) < 0.5, -1.0, 1.0)[:, None] * root
    batch = batch_index(n, batch_size, 0, rng if shuffle else None)
    sketched = None  # target of each coefficient vector
    if target is not None:
        columns = np.broadcast_to(coefficients, target.shape).T * target.T
        sketched = np.column_stack([np.bincount(batch, c).astype(np.float64) for c in columns])
    k = int(batch.max()) + 1
    # Combinations of the rows, not of coordinates: as equivariant as the rows are
    mix = rng.standard_normal((0 if exact else k, PROBES))
    runs = batch_sums(
        problem.X,
        RowCoefficients(coefficients),
        batch,
        batch_size=batch_size,
        contiguous=exact or not shuffle,
        has_intercept=problem.has_intercept,
        n_threads=n_threads,
    )
    factors, mixed = _accumulate(runs, coefficients.shape[1], p, sketched, mix)
    return [f / np.sqrt(n) for f in factors], [m / np.sqrt(n) for m in mixed], k


def _accumulate(
    runs: Iterable[BatchSums], n_columns: int, p: int, target: Array | None, mix: Array
) -> tuple[list[Array], list[Array]]:
    """Triangular factor of the sketched rows and targets, and random mixtures of the rows."""
    width = 0 if target is None else target.shape[1] // n_columns
    factors = [np.zeros((p + width, p + width)) for _ in range(n_columns)]
    mixed = [np.zeros((p, PROBES)) for _ in range(n_columns)]
    for start, sums, _ in runs:
        for j in range(n_columns):
            rows = sums[:, j]
            if len(mix):
                mixed[j] += rows.T @ mix[start : start + len(rows)]
            if target is not None:
                own = slice(j * width, (j + 1) * width)
                rows = np.column_stack([rows, target[start : start + len(rows), own]])
            factors[j] = triangular_factor(np.vstack([factors[j], rows]))
    return factors, mixed


def _solve(T: Array, factor: Array, ratio: float) -> Array:
    """Solve the sketched least squares; with a ratio of p over k, shrink what is noise.

    The solution has a noise of ``s^2 c / (1 - c)``, whatever the signal m^2; a step that is
    ``m^2 / (m^2 + noise)`` as long is the best one. Both are read off the sketch's own residuals.
    """
    p = len(T)
    R, q, rest = factor[:p, :p], factor[:p, p:], factor[p:, p:]
    step = T @ (T.T @ (R.T @ q))
    if ratio:
        variance = float(np.sum(rest**2)) / (1 - ratio)
        signal = max(float(np.sum((R @ step) ** 2)) - ratio * variance, 0.0)
        step *= signal / (signal + variance * ratio / (1 - ratio)) if signal else 0.0
    return step


def _probes(T: Array, mixed: Array, problem: Problem, rng: np.random.Generator) -> Array:
    """Random directions u with ``E u u'`` the inverse of P, over the root of their number."""
    g = mixed.copy()
    if problem.alpha:
        g[problem.has_intercept :] += np.sqrt(problem.alpha) * rng.standard_normal(
            (problem.p - problem.has_intercept, PROBES)
        )
    return T @ (T.T @ g) / np.sqrt(PROBES)


def fixed_sketch(factor: Array, problem: Problem, *, ratio: float) -> Sketch:
    """Preconditioner of somebody else's making, in factor form; exempt from all refreshing."""
    T, clipped = _whitening(factor, problem)
    whiten = [np.sqrt(1 - ratio) * T]
    return Sketch(whiten, None, False, ratio, [factor], 1, 0, clipped, _coupling(problem))


def _coupling(problem: Problem) -> float:
    """Bound on the eigenvalues of the Hessian against its diagonal blocks, one a column of W."""
    return 2.0 if hasattr(problem.loss, "hessian_product") else 1.0


def _whitening(factor: Array, problem: Problem) -> tuple[Array, int]:
    """T with T T' the (pseudo-)inverse of factor'factor plus the penalty."""
    return whitening(factor, has_intercept=problem.has_intercept, alpha=problem.alpha)
