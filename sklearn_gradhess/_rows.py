"""The regularised empirical risk of rows in memory, and what passes over them tell."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._descent import Model, Point
from sklearn_gradhess._loss import Loss
from sklearn_gradhess._squares import Squares
from sklearn_gradhess._weights import mean_one

__all__ = ["Problem", "Rows", "Seen", "Trial"]

Array = npt.NDArray[np.float64]
_CHUNK_BYTES = 2**20
_ENTRIES = 16  # stored entries a column of a piece of sparse rows
_EPS = float(np.finfo(np.float64).eps)
_CENTRE = 64  # rows whose mean is subtracted beforehand
# Digits of an objective that summing the rows leaves
_SLACK = 1e-13


class Seen(NamedTuple):
    """What rows remember of a place.

    Attributes
    ----------
    raw : ndarray of shape (n_samples, t)
        Raw predictions.
    slope, curvature : ndarray of shape (n_samples, t)
        Derivatives of each row's loss in them.
    leverage : ndarray of shape (n_samples,) or None
        Estimates of ``v x' P^-1 x``, if they were asked for.
    """

    raw: Array
    slope: Array
    curvature: Array
    leverage: Array | None = None


class Solved(NamedTuple):
    """What is remembered of rows whose normal equations were solved: mean squared residuals."""

    rest: Array


class Trial(NamedTuple):
    """A place whose gradient is not known yet."""

    W: Array
    objective: float
    seen: Seen


@dataclass(frozen=True)
class Problem:
    """A regularised empirical risk, ``mean(weight * loss) + sum_j alpha_j/2 ||coef_j||^2``.

    Attributes
    ----------
    X : ndarray, CSR or CSC of shape (n_samples, d)
        Features.
    Y : ndarray of shape (n_samples, t)
        Targets.
    weight : ndarray of shape (n_samples,) or None
        Sample weights with mean one.
    loss : Loss
        Half loss of the rows.
    alpha : float or ndarray of shape (d,)
        Ridge penalty, of all features or of each.
    has_intercept : bool
        Whether the first row of the coefficients W, of shape (p, t), is the intercept.
    count : float
        Number of observations that the rows stand for; zero takes the number of rows.
    """

    X: Any
    Y: Array
    weight: Array | None
    loss: Loss
    alpha: Any
    has_intercept: bool
    count: float = 0.0

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.Y.shape[0]

    @property
    def p(self) -> int:
        """Number of coefficients, the intercept included."""
        return self.X.shape[1] + int(self.has_intercept)

    @property
    def n_columns(self) -> int:
        """Number of columns of W that are free: all, or one less where a shift changes nothing."""
        return self.Y.shape[1] - (self.loss.coupling > 1)

    @cached_property
    def ridge(self) -> Array:
        """Penalty of each coefficient, of shape (p, 1); zero for the intercept."""
        ridge = np.zeros((self.p, 1))
        ridge[int(self.has_intercept) :, 0] = self.alpha
        return ridge

    @cached_property
    def unbounded(self) -> bool:
        """Whether a feature that varies has no penalty, so that its coefficient may go to infinity.

        Without an intercept a constant moves predictions too, unless it is zero.
        """
        free = np.flatnonzero(self.ridge[int(self.has_intercept) :, 0] == 0)
        if len(free) in (0, self.X.shape[1]):
            return len(free) > 0
        X = self.X[:, free]
        low, high = (X.min(axis=0), X.max(axis=0))
        if sparse.issparse(X):
            low, high = low.toarray(), high.toarray()
        return bool(np.any(low != high) or (not self.has_intercept and np.any(high)))

    @cached_property
    def shift(self) -> Array:
        """Near the mean of the features, so that their offsets cancel in no difference of squares.

        Zero without an intercept.
        """
        if not self.has_intercept:
            return np.zeros(self.X.shape[1])
        rows = self.rows(np.arange(0, self.n, max(self.n // _CENTRE, 1)))
        return np.asarray(rows.mean(axis=0), dtype=np.float64).ravel()

    def of_rows(self, index: Any) -> "Problem":
        """Return the objective of some rows, not all of them without weight."""
        weight = mean_one(None if self.weight is None else self.weight[index])
        return replace(self, X=self.X[index], Y=self.Y[index], weight=weight, count=0.0)

    def rows(self, index: Any) -> Any:
        """Take rows as float64, dense or CSR."""
        return self.X[index].astype(np.float64, copy=False)

    def chunks(self) -> Iterator[tuple[slice, Any]]:
        """Yield all rows, a piece at a time that stays in cache."""
        least = 0.0
        width = self.X.shape[1]
        if sparse.issparse(self.X):
            width = max(self.X.nnz / self.n, 1)
            # Sums over a piece are dense: it has many more entries than there are columns
            least = _ENTRIES * self.X.shape[1] / width
            if self.n <= 2 * least and self.X.dtype == np.float64:
                yield slice(0, self.n), self.X
                return
        step = max(256, int(_CHUNK_BYTES / (8 * max(width, 1))), int(least))
        for start in range(0, self.n, step):
            piece = slice(start, min(start + step, self.n))
            yield piece, self.rows(piece)

    def predict(self, Z: Any, W: Array) -> Array:
        """Raw predictions of rows."""
        h = int(self.has_intercept)
        if W.shape[1] == 2 and not sparse.issparse(Z):  # matrices so narrow are slow to multiply
            raw = np.column_stack([Z @ w for w in W[h:].T])
        else:
            raw = Z @ W[h:]
        if h:
            raw += W[0]
        return raw

    def adjoint(self, Z: Any, residual: Array) -> Array:
        """Sum of rows, each times its residual: of shape (p, t)."""
        out = np.empty((self.p, residual.shape[1]))
        h = int(self.has_intercept)
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

    def penalty(self, W: Array) -> float:
        """Value of the penalty, which leaves the intercept alone."""
        return 0.5 * float(np.sum(self.ridge * W * W))

    def pull(self, W: Array) -> Array:
        """Gradient of the penalty."""
        return self.ridge * W

    def resist(self, U: Array) -> Array:
        """Hessian of the penalty times a direction."""
        return self.ridge * U

    def with_others(self, squares: Squares) -> Squares:
        """Add what the objective knows of rows that are not here: there are none."""
        return squares

    def mean_loss(self, raw: Array) -> float:
        """Weighted mean loss at raw predictions."""
        value = self.loss.value(self.Y, raw)
        return float(self.weighted(value).sum() / self.n)

    @property
    def observations(self) -> float:
        """Number of observations that the rows stand for."""
        return self.count or float(self.n)

    @property
    def independent(self) -> float:
        """Independent residuals, by which a variance is known, in any unit of the weights.

        Where the loss is a likelihood, whose variance is known, a weight counts repetitions.
        """
        if self.loss.likelihood or self.weight is None:
            return self.observations
        return float(np.count_nonzero(self.weight))

    def null_model(self) -> Array:
        """Zero coefficients, and the intercept that fits the mean target."""
        W = np.zeros((self.p, self.Y.shape[1]))
        if self.has_intercept:
            W[0] = self.loss.link(self.weighted(self.Y).mean(axis=0))
        return W


@dataclass
class Rows:
    """Rows in memory, seen in passes, which it counts: the data side of a descent.

    Attributes
    ----------
    problem : Problem
        The objective.
    passes : float
        Visits to rows so far, over their number.
    rate : float
        Length of the last mini-batch steps; zero if there were none.
    degrees : float
        Effective number of coefficients: all of them, unless somebody knows better.
    """

    problem: Problem
    passes: float = 0.0
    rate: float = 0.0
    degrees: float = field(init=False)

    def __post_init__(self) -> None:
        self.degrees = self.problem.p * float(self.problem.n_columns)

    @cached_property
    def unit(self) -> float:
        """Size of a loss that rounding is judged against."""
        problem = self.problem
        if problem.loss.own_unit:
            return 2 * problem.mean_loss(np.zeros_like(problem.Y))
        # One for equal classes, and in the unit of counts
        mean = problem.weighted(problem.Y).mean(axis=0, keepdims=True)
        curvature = problem.loss.curvature(mean, problem.loss.link(mean))
        return 4 * float(curvature.mean())

    @cached_property
    def constant(self) -> float:
        """Part of the mean loss that no prediction changes."""
        problem = self.problem
        constant = np.broadcast_to(problem.loss.constant(problem.Y), problem.Y.shape)
        return float(problem.weighted(constant).sum() / problem.n)

    def at(self, W: Array, probes: list[Array] | None = None) -> Point:
        """Value, gradient and, with probes T G, leverages: a pass."""
        problem = self.problem
        loss, Y = problem.loss, problem.Y
        raw = np.empty_like(Y)
        slope, curvature = np.empty_like(Y), np.broadcast_to(1.0, Y.shape)
        if not loss.quadratic:
            curvature = np.empty_like(Y)
        leverage = None if probes is None else np.zeros(problem.n)
        gradient, total = np.zeros_like(W), 0.0
        for piece, Z in problem.chunks():
            f = raw[piece] = problem.predict(Z, W)
            if loss.quadratic:
                slope[piece] = f - Y[piece]
                value = 0.5 * np.square(slope[piece])
            else:
                value, slope[piece], curvature[piece] = loss.all(Y[piece], f)
            if probes is not None and leverage is not None:
                v = curvature[piece] if loss.quadratic else loss.stiffness(Y[piece], f)
                leverage[piece] = self._leverages(piece, Z, v, probes)
            total += float(problem.weighted(value, piece).sum())
            gradient += problem.adjoint(Z, problem.weighted(slope[piece], piece))
        self.passes += 1
        objective = total / problem.n + self.constant + problem.penalty(W)
        return self._point(W, objective, gradient, Seen(raw, slope, curvature, leverage))

    def of_normal_equations(self, W: Array, rest: Array, error: float) -> Point:
        """Least squares at their solution, as the Gram matrix tells it: no pass.

        Parameters
        ----------
        W : ndarray of shape (p, t)
            Solution.
        rest : ndarray of shape (t,)
            Mean squared residuals, and twice the penalty.
        error : float
            Decrement that rounding leaves of it.
        """
        objective = 0.5 * float(np.sum(rest))
        penalty = np.sum(self.problem.ridge * W * W, axis=0)
        rest = np.maximum(rest - penalty, 0.0)
        floor = float(np.mean(rest)) * self.error
        gradient = np.zeros_like(W)
        return Point(W, objective, gradient, Solved(rest), floor, error, 0.0)

    def trace(self, U: Array) -> Array:
        """Raw predictions of a direction: half a pass."""
        problem = self.problem
        raw = np.empty_like(problem.Y)
        for piece, Z in problem.chunks():
            raw[piece] = problem.predict(Z, U)
        self.passes += 0.5
        return raw

    def product(self, point: Point, U: Array, model: Model) -> tuple[Array, Array]:
        """Hessian of a model times U, and the raw predictions of U: a pass."""
        problem, seen = self.problem, point.rows
        raw_u = np.empty_like(seen.raw)
        out = np.zeros_like(U)
        weights = self.weights(point, model)
        exact = model is Model.CURVATURE and problem.loss.coupling > 1
        for piece, Z in problem.chunks():
            f = raw_u[piece] = problem.predict(Z, U)
            if exact:
                rows = problem.loss.hessian_product(problem.Y[piece], seen.raw[piece], f)
            else:
                rows = weights[piece] * f
            out += problem.adjoint(Z, problem.weighted(rows, piece))
        self.passes += 1
        return out / problem.n + problem.resist(U), raw_u

    def weights(self, point: Point, model: Model) -> Array:
        """Curvature that a model gives each row, (n_samples, t)."""
        problem, seen = self.problem, point.rows
        if problem.loss.quadratic or model is Model.CURVATURE:
            return seen.curvature
        return problem.loss.stiffness(problem.Y, seen.raw)

    def along(self, point: Point, U: Array, raw_u: Array, t: float) -> Trial:
        """Try a step of length t, without a look at X."""
        problem = self.problem
        W, raw = point.W + t * U, point.rows.raw + t * raw_u
        value, slope, curvature = problem.loss.all(problem.Y, raw)
        objective = float(problem.weighted(value).sum() / problem.n) + problem.penalty(W)
        objective += self.constant
        return Trial(W, objective, Seen(raw, slope, curvature))

    def arrive(self, trial: Trial) -> Point:
        """Gradient at a place that was tried: half a pass."""
        gradient = self.sum_of_rows(self.problem.weighted(trial.seen.slope))
        return self._point(trial.W, trial.objective, gradient, trial.seen)

    def sum_of_rows(self, residual: Array) -> Array:
        """Sum of rows, each times its residual: half a pass."""
        problem = self.problem
        total = np.zeros((problem.p, residual.shape[1]))
        for piece, Z in problem.chunks():
            total += problem.adjoint(Z, residual[piece])
        self.passes += 0.5
        return total

    def remainder(self, point: Point, raw_u: Array, trial: Trial) -> float:
        """Bound on the decrement that a full Newton step leaves, beyond its own residual.

        By its model a step of raw predictions r changes the slopes by v r; what they differ from
        that, e, is projected on the rows, which cannot lengthen e/sqrt(v).
        """
        problem, seen = self.problem, point.rows
        if problem.loss.quadratic:
            return 0.0
        error = trial.seen.slope - seen.slope
        if problem.loss.coupling > 1:
            error -= problem.loss.hessian_product(problem.Y, seen.raw, raw_u)
        else:
            error -= seen.curvature * raw_u
        size = np.divide(error, seen.curvature, out=np.zeros_like(error), where=seen.curvature > 0)
        size *= error
        # Where rows have no curvature at all, nothing is known of what they do
        blind = np.any((seen.curvature <= 0) & (error != 0))
        return np.inf if blind else float(problem.weighted(size).sum() / problem.n)

    def leverages(self, point: Point, probes: list[Array]) -> Array:
        """Estimate ``v x' P^-1 x`` of rows: a pass."""
        problem, out = self.problem, np.empty(self.problem.n)
        v = self.weights(point, Model.STIFFNESS)
        for piece, Z in problem.chunks():
            out[piece] = self._leverages(piece, Z, v[piece], probes)
        self.passes += 1
        return out

    def _leverages(self, piece: slice, Z: Any, v: Array, probes: list[Array]) -> Array:
        leverage = np.zeros(Z.shape[0])
        for column, probe in zip(v.T, probes, strict=False):
            image = self.problem.predict(Z, probe)
            leverage += column * np.einsum("ij,ij->i", image, image)
        return self.problem.weighted(leverage, piece)

    def draws(
        self, point: Point, leverage: Array, steps: int, size: int, rng: np.random.Generator
    ) -> Iterator[tuple[Problem, Array]]:
        """Yield rows drawn by leverage plus its mean, weighted to stand for all (MATH 4.2).

        A few rows as a problem of their own, each with the raw predictions at the point.
        """
        problem = self.problem
        probability = leverage + leverage.mean() * problem.weighted(np.ones(problem.n))
        probability = probability / probability.sum()
        cumulative = np.cumsum(probability)
        # Sought in order, which caches like; then each batch's rows are sorted
        u = np.sort(rng.random(steps * size)) * cumulative[-1]
        rows = np.minimum(np.searchsorted(cumulative, u), problem.n - 1)
        for draw in np.sort(rng.permutation(rows).reshape(steps, size), axis=1):
            weight = problem.weighted(1.0 / (problem.n * probability[draw]), draw)
            self.passes += size / problem.n
            drawn = replace(problem, X=problem.rows(draw), Y=problem.Y[draw], weight=weight)
            yield drawn, point.rows.raw[draw]

    def _point(self, W: Array, objective: float, total: Array, seen: Seen) -> Point:
        problem = self.problem
        gradient = total / problem.n + problem.pull(W)
        # Raw predictions of a link are numbers without a unit
        least = self.unit if problem.loss.own_unit else 1.0
        size = problem.weighted(seen.curvature * (seen.raw**2 + least)).sum()
        rounding = float((64 * _EPS) ** 2 * size / problem.n)
        slack = _SLACK * (self.unit + abs(objective))
        return Point(W, objective, gradient, seen, self._floor(seen), rounding, slack)

    def _floor(self, seen: Seen) -> float:
        """Statistical error of the decrement, ``s^2 p t / N`` (MATH section 4.3)."""
        return float(np.mean(self._dispersions(seen))) * self.error

    def dispersion(self, point: Point) -> Array:
        """Mean squared slope over mean curvature, of each column; one for a likelihood."""
        return self._dispersions(point.rows)

    def _dispersions(self, seen: Any) -> Array:
        problem = self.problem
        if isinstance(seen, Solved):
            return seen.rest
        if problem.loss.likelihood:
            return np.ones(1)
        v = problem.weighted(seen.curvature).sum(axis=0)
        if not np.all(v > 0):  # Huber, with every residual beyond epsilon
            v = problem.weighted(problem.loss.stiffness(problem.Y, seen.raw)).sum(axis=0)
        # Squares of slopes would vanish or overflow before their ratio does
        with np.errstate(divide="ignore", invalid="ignore"):
            found = problem.weighted(seen.slope * (seen.slope / v)).sum(axis=0)
        return np.where(v > 0, found, 0.0)

    @property
    def error(self) -> float:
        """Statistical error of the decrement, in units of the dispersion: ``p t / N``."""
        return self.degrees / self.problem.observations
