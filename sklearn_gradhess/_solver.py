"""Minimise a regularised empirical risk with a sketched Hessian as preconditioner.

Sketch once, then step: the antithetic Rademacher sketch of the rows, weighted with the root of the
curvature, is a preconditioner P whose P^-1 H has eigenvalues in [1/3, 3] for four rows a
coefficient and any H (MATH section 4.1). Two methods use it:

- variance-reduced steps on small batches, whose rows are drawn in proportion to their leverage
  ``v x' P^-1 x`` plus its mean. Whatever the data, no drawn row then has more than twice the mean
  leverage after reweighting, so one step size serves all, and rare levels and outliers need no
  special treatment;
- Newton steps solved by preconditioned conjugate gradients with exact Hessian products and a line
  search: for data that are small against the number of coefficients, and where the first method
  fails to halve the decrement.

Both see the data through passes in chunks; every map is affine equivariant.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._gradients import RowCoefficients, batch_index, batch_sums
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._preconditioner import factorize

__all__ = ["Problem", "Settings", "Sketch", "Solution", "fixed_sketch", "solve"]

Array = npt.NDArray[np.float64]
_CHUNK_BYTES = 2**21
_PROBES = 16  # random directions that estimate leverages, to about a third of their size
_EXACT = 2e8  # multiplications below which the exact Hessian costs nothing to speak of
_MOVED = 0.5  # relative change of the curvature that asks for a new sketch
_FAST = 20.0  # factor by which one round of steps should shrink the decrement
_STEPS = 40  # variance-reduced steps between two full gradients


class Evaluation(NamedTuple):
    """What one pass over the data tells of the coefficients W."""

    raw: Array  # raw predictions, (n_samples, t)
    gradient: Array  # of the objective, (p, t)
    objective: float
    leverage: Array | None  # estimates of v x' P^-1 x, (n_samples,), if probes were given


@dataclass(frozen=True)
class Problem:
    """A regularised empirical risk, ``mean(weight * loss) + alpha/2 ||coef||^2``.

    Attributes
    ----------
    X : ndarray, CSR or CSC of shape (n_samples, d)
        Features.
    Y : ndarray of shape (n_samples, t)
        Targets.
    weight : ndarray of shape (n_samples,) or None
        Sample weights with mean one.
    loss : Loss
        Elementwise, or `MultinomialLoss`.
    alpha : float
        Ridge penalty.
    has_intercept : bool
        Whether the first row of the coefficients W, of shape (p, t), is the intercept.
    count : float
        Number of observations that the rows stand for; zero takes the number of rows.
    """

    X: Any
    Y: Array
    weight: Array | None
    loss: Any
    alpha: float
    has_intercept: bool
    count: float = 0.0

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.Y.shape[0]

    @property
    def p(self) -> int:
        """Number of coefficients, the intercept included."""
        return self.X.shape[1] + self.has_intercept

    @property
    def quadratic(self) -> bool:
        """Whether the Hessian is the same everywhere."""
        return self.loss.name == "squared_error"

    def rows(self, index: Any) -> Any:
        """Take rows as float64, dense or CSR."""
        return self.X[index].astype(np.float64, copy=False)

    def chunks(self) -> Iterator[tuple[slice, Any]]:
        """Yield all rows, a piece at a time that stays in cache."""
        width = self.X.nnz / self.n if sparse.issparse(self.X) else self.X.shape[1]
        step = max(256, int(_CHUNK_BYTES / (8 * max(width, 1))))
        for start in range(0, self.n, step):
            piece = slice(start, min(start + step, self.n))
            yield piece, self.rows(piece)

    def predict(self, Z: Any, W: Array) -> Array:
        """Raw predictions of rows."""
        h = self.has_intercept
        raw = Z @ W[h:]
        if h:
            raw += W[0]
        return raw

    def adjoint(self, Z: Any, residual: Array) -> Array:
        """Sum of rows, each times its residual: of shape (p, t)."""
        out = np.empty((self.p, residual.shape[1]))
        h = self.has_intercept
        out[h:] = Z.T @ residual
        if h:
            out[0] = residual.sum(axis=0)
        return out

    def weighted(self, values: Array, piece: Any = slice(None)) -> Array:
        """Values of rows times their weights."""
        if self.weight is None:
            return values
        w = self.weight[piece]
        return values * (w[:, None] if values.ndim == 2 else w)

    def penalty_gradient(self, W: Array) -> Array:
        """Gradient of the penalty, which leaves the intercept alone."""
        out = self.alpha * W
        if self.has_intercept:
            out[0] = 0.0
        return out

    def penalty(self, W: Array) -> float:
        """Value of the penalty."""
        return 0.5 * self.alpha * float(np.sum(W[self.has_intercept :] ** 2))

    def mean_loss(self, raw: Array) -> float:
        """Weighted mean loss at raw predictions."""
        value = self.loss.value(self.Y, raw)
        if value.ndim == 2:
            value = value.sum(axis=1)
        return float(self.weighted(value).sum() / self.n)

    def evaluate(self, W: Array, probes: list[Array] | None = None) -> Evaluation:
        """Raw predictions, gradient, objective and, with probes T G, leverages: one pass."""
        raw = np.empty_like(self.Y)
        gradient = np.zeros((self.p, self.Y.shape[1]))
        leverage = None if probes is None else np.zeros(self.n)
        for piece, Z in self.chunks():
            raw[piece] = self.predict(Z, W)
            residual = self.weighted(self.loss.gradient(self.Y[piece], raw[piece]), piece)
            gradient += self.adjoint(Z, residual)
            if probes is not None and leverage is not None:
                v = self.stiffness(raw[piece], piece)
                for j, probe in enumerate(probes):
                    square = np.sum(self.predict(Z, probe) ** 2, axis=1)
                    leverage[piece] += self.weighted(v[:, j] * square, piece)
        gradient = gradient / self.n + self.penalty_gradient(W)
        return Evaluation(raw, gradient, self.mean_loss(raw) + self.penalty(W), leverage)

    def hessian_product(
        self, raw: Array, U: Array, stiffness: Array | None = None
    ) -> tuple[Array, Array]:
        """Return H U, or that with another curvature, and the raw predictions of U: one pass."""
        raw_u = np.empty_like(raw)
        out = np.zeros_like(U)
        for piece, Z in self.chunks():
            raw_u[piece] = self.predict(Z, U)
            if stiffness is None:
                rows = self.row_hessian(raw[piece], raw_u[piece], piece)
            else:
                rows = stiffness[piece] * raw_u[piece]
            out += self.adjoint(Z, self.weighted(rows, piece))
        return out / self.n + self.penalty_gradient(U), raw_u

    def stiffness(self, raw: Array, piece: Any = slice(None)) -> Array:
        """Curvature that a preconditioner should assume of each row.

        The second derivative, but no less than the slope over the distance to where the row's own
        loss is minimal: a badly fitted row has a large gradient where the logistic, Poisson or
        Huber loss is almost straight, and a step by its second derivative would overshoot.
        """
        y = self.Y[piece]
        distance = 1.0 + np.abs(raw - self.loss.link(y))
        secant = np.abs(self.loss.gradient(y, raw)) / distance
        return np.maximum(self.loss.curvature(y, raw), secant)

    def row_hessian(self, raw: Array, direction: Array, piece: Any) -> Array:
        """Second derivative of each row's loss, times a direction in its raw predictions."""
        y = self.Y[piece]
        if hasattr(self.loss, "hessian_product"):
            return self.loss.hessian_product(y, raw, direction)
        return self.loss.curvature(y, raw) * direction


@dataclass(frozen=True)
class Sketch:
    """Preconditioners of the columns of W; one serves all where the curvature is the same.

    Attributes
    ----------
    whiten : list of ndarray of shape (p, r)
        T with ``T T'`` the inverse of the debiased sketched Hessian.
    start : ndarray of shape (p, t) or None
        Solution of the sketched least-squares problem.
    exact : bool
        Whether every row is a batch, so that the sketch is the Hessian itself.
    ratio : float
        Coefficients over batches, c in the Marchenko-Pastur law.
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
    raw: Array | None,
    *,
    oversampling: float,
    rng: np.random.Generator,
    shuffle: bool = True,
    n_threads: int = 1,
) -> Sketch:
    """Sketch the Hessian at raw predictions; for the squared loss the target too. One pass.

    Parameters
    ----------
    problem : Problem
        The objective.
    raw : ndarray of shape (n_samples, t) or None
        Raw predictions that the curvature is taken at; None for the squared loss.
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
    batch_size = 1 if 2.0 * n * p**2 <= _EXACT else max(1, int(n / (oversampling * p)))
    exact = batch_size == 1
    signs = np.where(rng.random(n) < 0.5, -1.0, 1.0)[:, None]
    if raw is None:
        root = problem.weighted(np.ones(n))[:, None]
    else:
        root = problem.weighted(problem.stiffness(raw))
    coefficients = signs * np.sqrt(root)
    batch = batch_index(n, batch_size, 0, rng if shuffle else None)
    target = None
    if raw is None:
        columns = (coefficients[:, 0] * y for y in problem.Y.T)
        target = np.column_stack([np.bincount(batch, c) for c in columns])
    t = 0 if target is None else target.shape[1]
    factors = [np.zeros((p + t, p + t)) for _ in range(coefficients.shape[1])]
    for start, sums, _ in batch_sums(
        problem.X,
        RowCoefficients(coefficients),
        batch,
        batch_size=batch_size,
        contiguous=batch_size == 1 or not shuffle,
        has_intercept=problem.has_intercept,
        n_threads=n_threads,
    ):
        for j, factor in enumerate(factors):
            rows = sums[:, j]
            if target is not None:
                rows = np.column_stack([rows, target[start : start + len(rows)]])
            factors[j] = triangular_factor(np.vstack([factor, rows]))
    factors = [f / np.sqrt(n) for f in factors]
    k = int(batch.max()) + 1
    debias = 1.0 if exact else (k - p - 1) / k
    whiten, n_clipped = [], 0
    for factor in factors:
        T, clipped = _whitening(factor[:p, :p], problem)
        whiten.append(np.sqrt(debias) * T)
        n_clipped = max(n_clipped, clipped)
    first = factors[0]
    start_w = None
    if target is not None:
        T = whiten[0] / np.sqrt(debias)
        start_w = T @ (T.T @ (first[:p, :p].T @ first[:p, p:]))
    return Sketch(
        whiten,
        start_w,
        exact,
        0.0 if exact else p / k,
        [f[:p, :p] for f in factors],
        batch_size,
        k,
        n_clipped,
        2.0 if hasattr(problem.loss, "hessian_product") else 1.0,
    )


def fixed_sketch(factor: Array, problem: Problem, *, ratio: float) -> Sketch:
    """Preconditioner of somebody else's making, in factor form; exempt from all refreshing."""
    T, clipped = _whitening(factor, problem)
    return Sketch([np.sqrt(1 - ratio) * T], None, False, ratio, [factor], 1, 0, clipped)


def _whitening(factor: Array, problem: Problem) -> tuple[Array, int]:
    """T with T T' the (pseudo-)inverse of factor'factor plus the penalty."""
    if problem.alpha:
        penalty = np.sqrt(problem.alpha) * np.eye(problem.p)[problem.has_intercept :]
        factor = triangular_factor(np.vstack([factor, penalty]))
    preconditioner = factorize(factor)
    method = "pca" if preconditioner.n_clipped else "cholesky"
    return preconditioner.whitening(method)[0], preconditioner.n_clipped  # type: ignore[arg-type]


@dataclass
class Settings:
    """Parameters of `solve`, as the estimators document them."""

    tol: float = 1e-2
    max_iter: int = 100
    oversampling: float = 4.0
    batch_size: int | None = None
    learning_rate: float | None = None
    average: bool = True
    variance_reduction: bool = True
    shuffle: bool = True
    n_threads: int = 1
    fixed: Sketch | None = None
    safeguard: bool = True
    on_iteration: Callable[[Array, dict[str, Any]], bool] | None = None


@dataclass
class Solution:
    """Where `solve` ended."""

    W: Array
    sketch: Sketch
    converged: bool
    learning_rate: float
    n_passes: float
    history: list[dict[str, Any]] = field(default_factory=list)


def solve(
    problem: Problem, settings: Settings, rng: np.random.Generator, start: Array | None = None
) -> Solution:
    """Minimise the objective.

    Parameters
    ----------
    problem : Problem
        The objective.
    settings : Settings
        Tolerance and method.
    rng : Generator
        Source of randomness.
    start : ndarray of shape (p, t), default=None
        Where to start; None finds a start of its own.
    """
    return _Run(problem, settings, rng).solve(start)


class _Run:
    """One minimisation: the state that its steps share."""

    def __init__(self, problem: Problem, settings: Settings, rng: np.random.Generator) -> None:
        self.problem = problem
        self.settings = settings
        self.rng = rng
        self.passes = 0.0
        self.sketch: Sketch | None = settings.fixed
        self.leverage: Array | None = None
        self.eta = settings.learning_rate or 0.0
        self.cautious = False
        self.history: list[dict[str, Any]] = []

    def solve(self, start: Array | None) -> Solution:
        clock = time.perf_counter()
        problem, settings = self.problem, self.settings
        W = self._start(start)
        best: tuple[Array, Evaluation, float] | None = None
        careful = False  # whether the mini-batch steps have failed
        converged = False
        for iteration in range(settings.max_iter + 1):
            evaluation = self._evaluate(W)
            assert self.sketch is not None
            decrement = self.sketch.decrement(evaluation.gradient)
            floor = self._floor(evaluation.raw)
            self.history.append(
                {
                    "loss": evaluation.objective,
                    "decrement": decrement,
                    "floor": floor,
                    "passes": self.passes,
                    "seconds": time.perf_counter() - clock,
                }
            )
            if best is not None and not self._improved(evaluation, decrement, best, careful):
                if careful or not settings.safeguard:
                    # A Newton step with line search gains nothing: what is left is rounding
                    converged = min(decrement, best[2]) <= settings.tol * floor
                    if evaluation.objective < best[1].objective:
                        best = (W, evaluation, decrement)
                    break
                careful = True
                if not evaluation.objective <= best[1].objective:
                    W, evaluation, decrement = best
            best = (W, evaluation, decrement)
            # Where every pass is cheap, go on until nothing is left to see
            target = settings.tol * floor * (1e-6 if self.sketch.exact else 1.0)
            converged = decrement <= max(target, self._rounding(evaluation.raw))
            stop = settings.on_iteration and settings.on_iteration(W, self.history[-1])
            if converged or stop or iteration == settings.max_iter:
                if converged and self._can_polish(careful):
                    # The same linear map once more, a fraction of a pass, for two digits
                    step = self._step(W, evaluation, decrement, target, careful)
                    best = (step, evaluation, decrement)
                break
            W = self._step(W, evaluation, decrement, target, careful)
        assert best is not None
        assert self.sketch is not None
        return Solution(best[0], self.sketch, bool(converged), self.eta, self.passes, self.history)

    def _start(self, start: Array | None) -> Array:
        """Where to start, with a sketch of the Hessian there if that is known beforehand."""
        W = self._null_model() if start is None else start
        if self.sketch is None and (start is None or self.problem.quadratic):
            # At the null model the curvature needs no pass
            raw = None
            if not self.problem.quadratic:
                raw = np.broadcast_to(
                    W[0] if self.problem.has_intercept else 0.0, self.problem.Y.shape
                )
                raw = np.array(raw)
            self.sketch = self._make_sketch(raw)
            if start is None and self.sketch.start is not None:
                return self.sketch.start
        return W

    def _null_model(self) -> Array:
        """Zero coefficients, and the intercept that fits the mean target."""
        problem = self.problem
        W = np.zeros((problem.p, problem.Y.shape[1]))
        if problem.has_intercept and not problem.quadratic:
            mean = problem.weighted(problem.Y).mean(axis=0)
            W[0] = problem.loss.link(mean)
        return W

    def _evaluate(self, W: Array) -> Evaluation:
        """Evaluate, with the leverages if they come for free, and refresh a stale sketch."""
        problem = self.problem
        probes = None
        if self.sketch is not None and self.leverage is None and not self.sketch.exact:
            probes = self._probes()
        evaluation = problem.evaluate(W, probes)
        self.passes += 1
        if evaluation.leverage is not None:
            self.leverage = evaluation.leverage
        if self.sketch is None or (
            self.settings.fixed is None and self._curvature_moved(evaluation)
        ):
            then = self._curvature if self.leverage is not None else None
            self.sketch = self._make_sketch(evaluation.raw)
            if then is not None and self.leverage is not None:
                # Near enough: a leverage changes with its row's curvature, and P by less
                self.leverage = self.leverage * self._curvature.sum(axis=1) / then.sum(axis=1)
        return evaluation

    def _make_sketch(self, raw: Array | None) -> Sketch:
        self.passes += 1
        if raw is not None:
            self._curvature = self.problem.stiffness(raw)
        return sketch(
            self.problem,
            raw,
            oversampling=self.settings.oversampling,
            rng=self.rng,
            shuffle=self.settings.shuffle,
            n_threads=self.settings.n_threads,
        )

    def _curvature_moved(self, evaluation: Evaluation) -> bool:
        """Whether the sketch is stale: far off, or off and slow."""
        problem = self.problem
        if problem.quadratic or self.sketch is None:
            return False
        now = problem.weighted(problem.stiffness(evaluation.raw))
        then = problem.weighted(self._curvature)
        moved = np.abs(now - then).sum() / max(then.sum(), np.finfo(float).tiny)
        if not self.history:
            return bool(moved > _MOVED)
        slow = self.sketch.decrement(evaluation.gradient) > self.history[-1]["decrement"] / _FAST
        return bool(moved > (_MOVED if not slow else _MOVED / 5))

    def _probes(self) -> list[Array]:
        assert self.sketch is not None
        return [
            T @ self.rng.standard_normal((T.shape[1], _PROBES)) / np.sqrt(_PROBES)
            for T in self.sketch.whiten
        ]

    def _floor(self, raw: Array) -> float:
        """Statistical error of the decrement, ``s^2 p t / N`` (MATH section 4.3)."""
        problem = self.problem
        free = raw.shape[1] - hasattr(problem.loss, "hessian_product")
        dispersion = 1.0  # what it is for a likelihood; for the others Pearson's estimate
        if problem.loss.name in ("squared_error", "huber"):
            square = problem.weighted(problem.loss.gradient(problem.Y, raw) ** 2).sum()
            v = problem.weighted(problem.loss.curvature(problem.Y, raw)).sum()
            dispersion = square / v if v > 0 else 0.0
        return float(dispersion * problem.p * free / (problem.count or problem.n))

    def _rounding(self, raw: Array) -> float:
        """Decrement that rounding errors leave."""
        problem = self.problem
        v = problem.loss.curvature(problem.Y, raw)
        size = problem.weighted(v * (raw**2 + 1.0)).sum() / problem.n
        return float((64 * np.finfo(np.float64).eps) ** 2 * size)

    def _improved(
        self,
        evaluation: Evaluation,
        decrement: float,
        best: tuple[Array, Evaluation, float],
        careful: bool,
    ) -> bool:
        """Whether a step did what its kind should do: halve the decrement, or descend."""
        slack = 1e-13 * (1 + abs(best[1].objective))
        gain = best[1].objective - evaluation.objective
        halved = decrement <= 0.5 * best[2] and gain >= -slack
        return bool(np.isfinite(decrement) and (halved or (careful and gain > slack)))

    def _step(
        self, W: Array, evaluation: Evaluation, decrement: float, target: float, careful: bool
    ) -> Array:
        assert self.sketch is not None
        problem, settings = self.problem, self.settings
        batch_size = settings.batch_size or 4 * problem.p
        if settings.safeguard and (careful or self.sketch.exact or self._few_rows):
            return self._newton_step(W, evaluation, decrement, target)
        if self.leverage is None:
            self.leverage = self._measure_leverages(evaluation.raw)
        if not settings.learning_rate:
            self.eta = self.sketch.step_size(batch_size)
        return W + self._reduced_steps(evaluation, batch_size)

    def _can_polish(self, careful: bool) -> bool:
        settings = self.settings
        return (
            self.problem.quadratic
            and len(self.history) > 1
            and self.leverage is not None
            and settings.fixed is None
            and settings.variance_reduction
            and not (careful or self._few_rows)
        )

    @property
    def _few_rows(self) -> bool:
        batch_size = self.settings.batch_size or 4 * self.problem.p
        return 2 * _STEPS * batch_size > self.problem.n

    def _measure_leverages(self, raw: Array) -> Array:
        self.passes += 1
        problem, probes = self.problem, self._probes()
        leverage = np.zeros(problem.n)
        for piece, Z in problem.chunks():
            v = problem.weighted(problem.stiffness(raw[piece], piece), piece)
            for j, probe in enumerate(probes):
                leverage[piece] += v[:, j] * np.sum(problem.predict(Z, probe) ** 2, axis=1)
        return leverage

    def _reduced_steps(self, evaluation: Evaluation, batch_size: int) -> Array:
        """Variance-reduced mini-batch steps from a snapshot; the mean of the last two thirds."""
        assert self.sketch is not None
        assert self.leverage is not None
        problem, sketched, settings = self.problem, self.sketch, self.settings
        base = np.ones(problem.n) if problem.weight is None else problem.weight
        probability = self.leverage + self.leverage.mean() * base
        probability /= probability.sum()
        cumulative = np.cumsum(probability)
        steps = _STEPS
        U = np.zeros_like(evaluation.gradient)
        mean, n_averaged = np.zeros_like(U), 0
        for step in range(steps):
            draw = np.searchsorted(cumulative, self.rng.random(batch_size) * cumulative[-1])
            draw = np.sort(np.minimum(draw, problem.n - 1))
            scale = problem.weighted(np.ones(batch_size), draw)
            scale /= batch_size * problem.n * probability[draw]
            Z = problem.rows(draw)
            y, raw = problem.Y[draw], evaluation.raw[draw]
            change = problem.loss.gradient(y, raw + problem.predict(Z, U))
            if settings.variance_reduction:
                change = change - problem.loss.gradient(y, raw)
                direction = evaluation.gradient + problem.penalty_gradient(U)
            else:
                direction = problem.penalty_gradient(U)
            direction = direction + problem.adjoint(Z, scale[:, None] * change)
            U = U - self.eta * sketched.newton(direction)
            if step >= steps // 3:
                n_averaged += 1
                mean += (U - mean) / n_averaged
        self.passes += steps * batch_size / problem.n
        return mean if settings.average else U

    def _newton_step(
        self, W: Array, evaluation: Evaluation, decrement: float, target: float
    ) -> Array:
        """Newton step by preconditioned conjugate gradients, then a line search."""
        assert self.sketch is not None
        problem, sketched = self.problem, self.sketch
        stiffness = problem.stiffness(evaluation.raw) if self.cautious else None
        goal = max(0.1 * target, 1e-30 * decrement if problem.quadratic else 1e-4 * decrement)
        U, raw_u = np.zeros_like(W), np.zeros_like(evaluation.raw)
        residual = -evaluation.gradient
        z = sketched.newton(residual)
        direction, rho = z, float(np.sum(residual * z))
        for _ in range(30):
            if not rho > goal:
                break
            product, raw_direction = problem.hessian_product(evaluation.raw, direction, stiffness)
            self.passes += 1
            curvature = float(np.sum(direction * product))
            if not curvature > 0:
                break
            step = rho / curvature
            U, raw_u = U + step * direction, raw_u + step * raw_direction
            residual = residual - step * product
            z = sketched.newton(residual)
            rho, previous = float(np.sum(residual * z)), rho
            direction = z + (rho / previous) * direction
        t = self._line_search(W, U, raw_u, evaluation)
        self.cautious = t < 0.5  # the next step then assumes the curvature of a secant
        return W + t * U

    def _line_search(self, W: Array, U: Array, raw_u: Array, evaluation: Evaluation) -> float:
        if self.problem.quadratic:
            return 1.0
        slope = float(np.sum(evaluation.gradient * U))
        t = 1.0
        for _ in range(40):
            value = self.problem.mean_loss(evaluation.raw + t * raw_u)
            value += self.problem.penalty(W + t * U)
            if value <= evaluation.objective + 1e-4 * t * slope:
                break
            t *= 0.5
        return t
