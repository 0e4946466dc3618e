"""Minimise a regularised empirical risk with a sketched Hessian as preconditioner.

Two methods use the sketch:

- variance-reduced steps on small batches, whose rows are drawn in proportion to their leverage
  ``v x' P^-1 x``, as estimated, plus its mean. Whatever the data, no drawn row then has much more
  than the mean leverage after reweighting, so one step size serves all, and rare levels and
  outliers need no special treatment;
- Newton steps solved by conjugate gradients, preconditioned with a sketch of the Hessian itself,
  with exact Hessian products and a line search: for data that are small against the number of
  coefficients, and where the first method fails to halve the decrement or its sketch is far off.

Both see the data in passes; without a penalty every map is affine equivariant.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._objective import Evaluation, Problem
from sklearn_gradhess._sketch import PROBES, Sketch, sketch

__all__ = ["Settings", "Solution", "solve"]

Array = npt.NDArray[np.float64]
_MOVED = 0.5  # relative change of the curvature that asks for a new sketch
_FAST = 20.0  # factor by which one round of steps should shrink the decrement
_AGREE = 4.0  # factor up to which a sketch and conjugate gradients agree on a decrement
_SOFTENED = 2.0  # factor by which steps may be longer where the rows have softened
_STEPS = 40  # variance-reduced steps between two full gradients
_SAMPLE = 32  # rows a coefficient to check a decrement on; a lone row is drawn 16 times on the mean


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
    separable: bool = False  # without a penalty there is no minimum then
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
    # Steps that diverge are caught and undone
    with np.errstate(over="ignore", invalid="ignore"):
        return _Run(problem, settings, rng).solve(start)


class _Point(NamedTuple):
    """Coefficients, and what a pass over the data told of them."""

    W: Array
    evaluation: Evaluation
    decrement: float
    floor: float
    passes: float  # spent when the evaluation was done
    seconds: float


class _Run:
    """One minimisation: the state that its steps share."""

    def __init__(self, problem: Problem, settings: Settings, rng: np.random.Generator) -> None:
        self.problem = problem
        self.settings = settings
        self.rng = rng
        self.passes = 0.0
        self.sketch: Sketch | None = settings.fixed
        self.judge: Sketch | None = None  # where the steps' sketch is somebody else's
        self.leverage: Array | None = None
        self._sketched_stiffness: Array | None = None
        self.eta = settings.learning_rate or 0.0
        self.ceiling = np.inf  # objective that the start has to beat
        self.careful = False  # whether the mini-batch steps have failed
        self.cautious = False  # whether a Newton step by the second derivative has
        self.by_secant = False  # whether the last step assumed the stiffness instead
        dimensionless = problem.loss.name not in ("squared_error", "huber")
        square = problem.weighted(problem.Y**2).sum() / problem.n
        self.hessian: Sketch | None = None  # of the curvature, for Newton steps
        self.unit = 1.0 if dimensionless else float(square)  # of the loss
        self.clock = time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self._ahead: tuple[Array, Array] | None = None  # Newton step that was found already

    def solve(self, start: Array | None) -> Solution:
        settings = self.settings
        best: _Point | None = None
        converged = stopped = False
        W = self._start(start)
        for iteration in range(settings.max_iter + 1):
            point = self._look(W)
            if best is not None and not self._improved(point, best):
                if self.careful or not settings.safeguard:
                    stopped = self._tell(point)
                    best = point if self._better(point, best) else best
                    secant = self.by_secant or self.problem.quadratic
                    if stopped or secant or not settings.safeguard:
                        # A Newton step with line search gains nothing: what is left is rounding
                        best = self._measured(best, None)
                        slack = self._slack(best) if settings.safeguard else 0.0
                        converged = best.decrement <= max(self._enough(best), slack)
                        break
                    # The second derivative may mislead; that of the bound does not
                    best, self.cautious = self._refreshed(best), True
                    W = self._step(best)
                    continue
                self.careful = True
                if not point.evaluation.objective <= best.evaluation.objective:
                    point = best
            elif self._stale(point):
                point = self._refreshed(point)
            if iteration < settings.max_iter or point.decrement <= self._enough(point):
                point = self._measured(point, best)
            stopped = self._tell(point)
            if self._separated(point):
                best = point
                break
            converged = point.decrement <= self._enough(point)
            last = not stopped and self._last_round_suffices(point, best)
            if last or (converged and not stopped and self._ahead):
                # A fraction of a pass, by steps that have just shown what they do
                converged = True
                point = point._replace(W=self._step(point))
            best = point
            if converged or stopped or iteration == settings.max_iter:
                break
            W = self._step(point)
        assert best is not None
        assert self.sketch is not None
        return Solution(
            best.W,
            self.judge or self.sketch,
            bool(converged),
            self.eta,
            self.passes,
            self._separated(best),
            self.history,
        )

    def _look(self, W: Array) -> _Point:
        """Evaluate; in the first place somewhere that is no worse than the null model."""
        evaluation = self._evaluate(W)
        if not self.history and not evaluation.objective <= self.ceiling:
            W, self.leverage = self._null_model(), None
            evaluation = self._evaluate(W)
        spent = self.passes, time.perf_counter() - self.clock
        return _Point(W, evaluation, self._decrement(evaluation), self._floor(evaluation), *spent)

    def _target(self, point: _Point) -> float:
        """Decrement to stop at; where every pass is cheap, where nothing is left to see."""
        assert self.sketch is not None
        return self.settings.tol * point.floor * (1e-6 if self.sketch.exact else 1.0)

    def _enough(self, point: _Point) -> float:
        """Decrement below which there is nothing to gain: the target, or rounding."""
        return max(self._target(point), self._rounding(point.evaluation))

    def _start(self, start: Array | None) -> Array:
        """Find where to start, with a sketch of the Hessian there if that is known beforehand."""
        problem = self.problem
        W = self._null_model()
        stiffness, target = None, problem.Y
        if not problem.quadratic:
            # At the null model the derivatives need no pass
            raw = np.array(np.broadcast_to(W[0] * problem.has_intercept, problem.Y.shape))
            value, slope, _, stiffness = problem.loss.all(problem.Y, raw)
            self.ceiling = float(problem.weighted(value).sum() / problem.n)
            target = -slope / stiffness
        W = W if start is None else start
        if self.sketch is None and (start is None or problem.quadratic):
            self.sketch = self._make_sketch(stiffness, target)
            if start is None:
                assert self.sketch.start is not None
                return W + self.sketch.start
        return W

    def _null_model(self) -> Array:
        """Zero coefficients, and the intercept that fits the mean target."""
        problem = self.problem
        W = np.zeros((problem.p, problem.Y.shape[1]))
        if problem.has_intercept and not problem.quadratic:
            mean = problem.weighted(problem.Y).mean(axis=0)
            W[0] = problem.loss.link(mean)
        return W

    def _tell(self, point: _Point) -> bool:
        """Record a point, and ask whoever watches whether to stop."""
        self.history.append(
            {
                "loss": point.evaluation.objective,
                "decrement": point.decrement,
                "floor": point.floor,
                "passes": point.passes,
                "seconds": point.seconds,
            }
        )
        watch = self.settings.on_iteration
        return bool(watch and watch(point.W, self.history[-1]))

    def _evaluate(self, W: Array) -> Evaluation:
        """Evaluate, with the leverages if they come for free."""
        probes = None
        if self.sketch is not None and self.leverage is None and not self.sketch.exact:
            probes = self._probes()
        evaluation = self.problem.evaluate(W, probes)
        self.passes += 1
        if evaluation.leverage is not None:
            self.leverage = evaluation.leverage
        if self.sketch is None:
            self.sketch = self._make_sketch(evaluation.stiffness)
        return evaluation

    def _decrement(self, evaluation: Evaluation) -> float:
        """Squared Newton decrement, by a sketch.

        The sketch assumes a stiffness of the rows, on the mean that much more than their curvature
        is now; the decrement is that much too small.
        """
        given = self.settings.fixed
        if given is not None and self.sketch is given and self.judge is None:
            # It may be of another scale, and tell nothing of the Hessian
            self.judge = self._make_sketch(evaluation.stiffness)
            if self.settings.safeguard:
                self.sketch = given.scaled_to(self.judge, self.problem)
        sketched = self.judge or self.sketch
        assert sketched is not None
        decrement = sketched.decrement(evaluation.gradient)
        if not self.problem.quadratic:
            decrement *= min(self._softening(evaluation.curvature), 10.0)
        return decrement

    def _softening(self, curvature: Array) -> float:
        """How much more curvature the sketch assumes on the mean than the rows have now."""
        assert self._sketched_stiffness is not None
        assumed = self.problem.weighted(self._sketched_stiffness).sum()
        return float(assumed / max(self.problem.weighted(curvature).sum(), 1e-300))

    def _refreshed(self, point: _Point) -> _Point:
        """Sketch the Hessian where it is now; the leverages have to be measured anew."""
        self.sketch = self._make_sketch(point.evaluation.stiffness)
        self.judge, self.leverage = None, None
        return point._replace(decrement=self._decrement(point.evaluation))

    def _make_sketch(self, stiffness: Array | None, target: Array | None = None) -> Sketch:
        self._sketched_stiffness = stiffness
        return self._sketch_of(stiffness, target)

    def _sketch_of(self, curvature: Array | None, target: Array | None = None) -> Sketch:
        made = sketch(
            self.problem,
            None if self.problem.quadratic else curvature,
            target,
            oversampling=self.settings.oversampling,
            rng=self.rng,
            shuffle=self.settings.shuffle,
            n_threads=self.settings.n_threads,
        )
        self.passes += made.n_passes
        return made

    def _stale(self, point: _Point) -> bool:
        """Whether the sketch should be made anew: far off, or off and slow, and still needed."""
        problem = self.problem
        if problem.quadratic or self.settings.fixed is not None:
            return False
        if point.decrement <= self._target(point):
            return False
        assert self._sketched_stiffness is not None
        now = problem.weighted(point.evaluation.stiffness)
        then = problem.weighted(self._sketched_stiffness)
        moved = np.abs(now - then).sum() / max(then.sum(), np.finfo(float).tiny)
        slow = bool(self.history) and point.decrement > self.history[-1]["decrement"] / _FAST
        return bool(moved > (_MOVED / 5 if slow else _MOVED))

    def _probes(self) -> list[Array]:
        assert self.sketch is not None
        if self.sketch.probes is not None:
            return self.sketch.probes
        return [
            T @ self.rng.standard_normal((T.shape[1], PROBES)) / np.sqrt(PROBES)
            for T in self.sketch.whiten
        ]

    def _floor(self, evaluation: Evaluation) -> float:
        """Statistical error of the decrement, ``s^2 p t / N`` (MATH section 4.3)."""
        problem, raw = self.problem, evaluation.raw
        free = raw.shape[1] - hasattr(problem.loss, "hessian_product")
        dispersion = 1.0  # what it is for a likelihood; for the others Pearson's estimate
        if problem.loss.name in ("squared_error", "huber"):
            square = problem.weighted(problem.loss.gradient(problem.Y, raw) ** 2).sum()
            v = problem.weighted(evaluation.curvature).sum()
            if not v > 0:  # Huber, with every residual beyond epsilon
                v = problem.weighted(evaluation.stiffness).sum()
            dispersion = square / v if v > 0 else 0.0
        return float(dispersion * problem.p * free / (problem.count or problem.n))

    def _rounding(self, evaluation: Evaluation) -> float:
        """Decrement that rounding errors leave."""
        problem = self.problem
        size = problem.weighted(evaluation.curvature * (evaluation.raw**2 + self.unit)).sum()
        return float((64 * np.finfo(np.float64).eps) ** 2 * size / problem.n)

    def _slack(self, point: _Point) -> float:
        """Difference of objectives that may be rounding."""
        return 1e-13 * (self.unit + abs(point.evaluation.objective))

    def _separated(self, point: _Point) -> bool:
        """Whether every row is on the side of its class, and nothing keeps W from growing.

        A row on the wrong side has a loss of log(2) at least, for several classes too.
        """
        problem = self.problem
        if problem.alpha or problem.loss.name not in ("log_loss", "multinomial"):
            return False
        if not point.evaluation.objective * (problem.count or problem.n) < np.log(2):
            return False
        loss = problem.loss.value(problem.Y, point.evaluation.raw)
        loss = loss.sum(axis=1) if loss.ndim == 2 else loss
        return bool(np.all(loss[problem.weighted(np.ones(problem.n)) > 0] < np.log(2)))

    def _improved(self, point: _Point, best: _Point) -> bool:
        """Whether a step did what its kind should do: halve the decrement, or descend."""
        gain, slack = best.evaluation.objective - point.evaluation.objective, self._slack(best)
        steady = self.careful or not self.settings.safeguard
        halved = point.decrement <= 0.5 * best.decrement and gain >= -slack
        return bool(np.isfinite(point.decrement) and (halved or (steady and gain > slack)))

    def _better(self, point: _Point, best: _Point) -> bool:
        gain, slack = best.evaluation.objective - point.evaluation.objective, self._slack(best)
        return gain > 0 or (gain >= -slack and point.decrement < best.decrement)

    def _measured(self, point: _Point, before: _Point | None) -> _Point:
        """Measure the decrement by the curvature of rows, where a step does or it may be the last.

        Along some direction the rows may have much less curvature than the sketch assumes and than
        they have on the mean, and the decrement by the sketch is that much too small.
        """
        self._ahead = None
        if self.problem.quadratic:
            return point
        if self._newton:
            U, raw_u, gained = self._newton_direction(point)
            if self.cautious and gained <= self._enough(point):
                self.cautious = False  # by a secant there is nothing to gain; by the Hessian?
                U, raw_u, gained = self._newton_direction(point)
            self._ahead = U, raw_u
            if self.judge is not None:
                gained = max(gained, point.decrement)
        elif point.decrement <= self._enough(point) or self._last_round_suffices(point, before):
            sketched = self.judge or self.sketch
            assert sketched is not None
            sample, raw = self._sample(point.evaluation)
            _, _, gained = self._conjugate_gradients(
                sketched, sample, point.evaluation._replace(raw=raw), self._target(point)
            )
            if gained > max(_AGREE * point.decrement, self._enough(point)):
                self.careful = self.settings.safeguard
        else:
            return point
        return point._replace(decrement=gained)

    @property
    def _newton(self) -> bool:
        """Whether Newton steps are taken, not mini-batch steps."""
        assert self.sketch is not None
        return self.settings.safeguard and (self.careful or self.sketch.exact or self._few_rows)

    def _step(self, point: _Point) -> Array:
        assert self.sketch is not None
        problem, settings = self.problem, self.settings
        if self._newton:
            U, raw_u = self._ahead or self._newton_direction(point)[:2]
            self._ahead, self.by_secant = None, self.cautious
            t = self._line_search(point.W, U, raw_u, point.evaluation)
            self.cautious = t < 0.5  # the next step then assumes the curvature of a secant
            return point.W + t * U
        batch_size = settings.batch_size or 4 * problem.p
        if not settings.learning_rate:
            self.eta = self.sketch.step_size(batch_size)
            if not problem.quadratic and settings.fixed is None:
                # The sketch may be of another place: as far off as the rows have softened since
                softened = self._softening(point.evaluation.stiffness)
                self.eta *= float(np.clip(softened, 1.0, _SOFTENED))
        return point.W + self._reduced_steps(point.evaluation, batch_size)

    def _last_round_suffices(self, point: _Point, before: _Point | None) -> bool:
        """Whether one more round of steps ends well below the target, at the rate of the last.

        Then nobody needs the full gradient that would confirm it. At the target it is taken too.
        For least squares the decrement is by a sketch and may be three times too small; for other
        losses it has been measured.
        """
        settings = self.settings
        if before is None or self.leverage is None or settings.fixed is not None:
            return False
        now, target = point.decrement, self._target(point)
        margin = 0.1 if self.problem.quadratic else 0.2
        return bool(
            settings.variance_reduction
            and not self._newton
            and now < before.decrement / 4
            and (now <= target or now * (now / before.decrement) <= margin * target)
        )

    @property
    def _few_rows(self) -> bool:
        batch_size = self.settings.batch_size or 4 * self.problem.p
        return 2 * _STEPS * batch_size > self.problem.n

    def _measure_leverages(self, evaluation: Evaluation) -> Array:
        self.passes += 1
        problem, probes = self.problem, self._probes()
        leverage = np.empty(problem.n)
        for piece, Z in problem.chunks():
            leverage[piece] = problem.leverages(piece, Z, evaluation.stiffness[piece], probes)
        return leverage

    def _probabilities(self, evaluation: Evaluation) -> Array:
        """Draw rows in proportion to their leverage plus its mean (MATH section 4.2)."""
        if self.leverage is None:
            self.leverage = self._measure_leverages(evaluation)
        base = 1.0 if self.problem.weight is None else self.problem.weight
        probability = self.leverage + self.leverage.mean() * base
        return probability / probability.sum()

    def _sample(self, evaluation: Evaluation) -> tuple[Problem, Array]:
        """Rows drawn by leverage, weighted to stand for all, and their raw predictions."""
        problem = self.problem
        size = _SAMPLE * problem.p
        if size >= problem.n:
            return problem, evaluation.raw
        probability = self._probabilities(evaluation)
        draw = self._draw(np.cumsum(probability), 1, size)[0]
        self.passes += size / problem.n
        weight = problem.weighted(1.0 / (problem.n * probability[draw]), draw)
        sample = replace(problem, X=problem.rows(draw), Y=problem.Y[draw], weight=weight)
        return sample, evaluation.raw[draw]

    def _reduced_steps(self, evaluation: Evaluation, batch_size: int) -> Array:
        """Variance-reduced mini-batch steps from a snapshot; the mean of the last two thirds."""
        assert self.sketch is not None
        problem, sketched, settings = self.problem, self.sketch, self.settings
        probability = self._probabilities(evaluation)
        steps = _STEPS
        draws = self._draw(np.cumsum(probability), steps, batch_size)
        U = np.zeros_like(evaluation.gradient)
        mean, n_averaged = np.zeros_like(U), 0
        for step, draw in enumerate(draws):
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

    def _draw(self, cumulative: Array, steps: int, batch_size: int) -> npt.NDArray[np.intp]:
        """Rows of all steps, each step's sorted; sought in order, which caches like."""
        u = np.sort(self.rng.random(steps * batch_size)) * cumulative[-1]
        rows = np.minimum(np.searchsorted(cumulative, u), len(cumulative) - 1)
        return np.sort(self.rng.permutation(rows).reshape(steps, batch_size), axis=1)

    def _newton_direction(self, point: _Point) -> tuple[Array, Array, float]:
        """Newton step, its raw predictions, and the decrement, by conjugate gradients."""
        evaluation, target = point.evaluation, self._target(point)
        assert self.sketch is not None
        if self.problem.quadratic:
            return self._conjugate_gradients(self.sketch, self.problem, evaluation, target)
        if not self.cautious:
            # Against the stiffness some directions are so flat that the residual hides them
            fresh = self.hessian is None
            curvature = evaluation.curvature + 1e-12 * evaluation.stiffness
            self.hessian = made = self.hessian or self._sketch_of(curvature)
            found = self._conjugate_gradients(made, self.problem, evaluation, target)
            ratio = found[2] / max(made.decrement(evaluation.gradient), 1e-300)
            if not 1 / _AGREE < ratio < _AGREE or (found[2] <= self._enough(point) and not fresh):
                self.hessian = None  # made elsewhere, and not good enough any more, or at the end
                if not fresh:
                    return self._newton_direction(point)
            flat = made.n_clipped > self.sketch.n_clipped
            bounded = self.problem.loss.name != "poisson"  # by zero, from below
            if not flat and not (bounded and found[2] > 2 * evaluation.objective):
                return found
            self.cautious = True  # directions without curvature, or a gain of more than there is
        stiffness = evaluation.stiffness
        return self._conjugate_gradients(self.sketch, self.problem, evaluation, target, stiffness)

    def _conjugate_gradients(
        self,
        sketched: Sketch,
        problem: Problem,
        evaluation: Evaluation,
        target: float,
        stiffness: Array | None = None,
    ) -> tuple[Array, Array, float]:
        """Solve ``H U = -gradient``; raw predictions of U; and ``gradient' H^-1 gradient``.

        Until of the decrement by the sketch little is left, against it and the target: a hundredth
        even where it is below the target, as it may be too small by that factor.
        """
        raw, gradient = evaluation.raw, evaluation.gradient
        share = problem.n / self.problem.n
        U, raw_u, gained = np.zeros_like(gradient), np.zeros_like(raw), 0.0
        residual = -gradient
        z = sketched.newton(residual)
        direction, rho = z, float(np.sum(residual * z))
        if problem.quadratic:
            goal = max(0.1 * target, 1e-30 * rho)
        else:
            goal = max(1e-2 * min(target, rho), 1e-4 * rho)
        for _ in range(30):
            if not rho > goal:
                break
            product, raw_direction = problem.hessian_product(raw, direction, stiffness)
            self.passes += share
            curvature = float(np.sum(direction * product))
            if not curvature > 0:
                break
            step = rho / curvature
            gained += step * rho
            U, raw_u = U + step * direction, raw_u + step * raw_direction
            residual = residual - step * product
            z = sketched.newton(residual)
            rho, previous = float(np.sum(residual * z)), rho
            direction = z + (rho / previous) * direction
        return U, raw_u, gained + rho

    def _line_search(self, W: Array, U: Array, raw_u: Array, evaluation: Evaluation) -> float:
        if self.problem.quadratic:
            return 1.0
        slope = float(np.sum(evaluation.gradient * U))
        size = self.unit + abs(evaluation.objective)
        before = evaluation.objective + 8 * np.finfo(float).eps * size
        t = 1.0
        for _ in range(40):
            value = self.problem.mean_loss(evaluation.raw + t * raw_u)
            value += self.problem.penalty(W + t * U)
            if value <= before + 1e-4 * t * slope:
                break
            t *= 0.5
        return t
