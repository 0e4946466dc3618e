"""Variance-reduced steps on mini-batches, preconditioned by a sketch.

Rows are drawn in proportion to their leverage ``v x' P^-1 x``, as estimated, plus its mean.
Whatever the data, no drawn row then has much more than the mean leverage after reweighting, so one
step size serves all, and rare levels and outliers need no special treatment (MATH section 4.2).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._conjugate_gradients import conjugate_gradients
from sklearn_gradhess._descent import Goal, Look, Method, Model, Point, Step
from sklearn_gradhess._preconditioner import Factor
from sklearn_gradhess._rows import Rows

__all__ = ["StepSettings", "Steps", "step_size"]

Array = npt.NDArray[np.float64]
_MOVED = 0.5  # relative change of the stiffness that asks for a new sketch
_FAST = 20.0  # factor by which one round of steps should shrink the decrement
_AGREE = 4.0  # factor up to which a sketch and conjugate gradients agree on a decrement
_SOFTENED = 2.0  # factor by which steps may be longer where the rows have softened
_STEPS = 40  # between two full gradients
_SAMPLE = 32  # rows a coefficient to check a decrement on; a lone row is drawn 16 times on the mean


class StepSettings(NamedTuple):
    """How mini-batch steps go, as the estimators document it; None settles itself."""

    batch_size: int | None = None
    learning_rate: float | None = None
    average: bool = True
    variance_reduction: bool = True


def step_size(factor: Factor, p: int, batch_size: int) -> float:
    """Half the largest mean-square stable step (MATH section 4.2).

    With rows drawn by leverage the effective leverage is at most twice the mean, hence the factor
    two on the noise term.
    """
    c = factor.ratio
    angle = (np.arange(200) + 0.5) * np.pi / 200
    x = 1 + c - 2 * np.sqrt(c) * np.cos(angle)
    density = np.sin(angle) ** 2 / x
    density /= density.sum()
    eigenvalues = factor.coupling * (1 - c) / x

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


class Made(NamedTuple):
    """A preconditioner, the stiffness of the rows that it was made of, and probes of leverages."""

    factor: Factor
    stiffness: Array
    probes: list[Array]


@dataclass(frozen=True)
class Steps:
    """Rounds of a full gradient and the steps that follow it.

    Attributes
    ----------
    data : Rows
        Who is asked.
    goal : Goal
        When to stop.
    make : callable or None
        Sketch for a stiffness of the rows; None keeps the preconditioner that was given.
    made : Made
        Preconditioner, and what it was made of.
    settings : StepSettings
        How steps go.
    rng : Generator
        Draws rows.
    judge : Factor or None
        Tells decrements, where the preconditioner is of somebody else's making.
    otherwise : Method or None
        Who goes on where a round fails; None: nobody, for comparison.
    leverage : ndarray of shape (n_samples,) or None
        Leverages of the rows, once they are known.
    previous : float
        Decrement before the last round.
    """

    data: Rows
    goal: Goal
    make: Callable[[Array], Made] | None
    made: Made
    settings: StepSettings
    rng: np.random.Generator
    judge: Factor | None = None
    otherwise: Method | None = None
    leverage: Array | None = None
    previous: float = np.inf

    def look(self, point: Point) -> tuple[Method, Look]:
        """Tell the decrement by the sketch; where it may be the last, by the rows' curvature."""
        method: Steps = self
        if self.leverage is None and point.rows.leverage is not None:
            method = replace(self, leverage=point.rows.leverage)
        if method.make is not None and method._stale(point):
            made = method.make(method.data.weights(point, Model.STIFFNESS))
            method = replace(method, made=made, leverage=None)
        rough = method._rough(point)
        foreseen = method._foreseen(rough)
        near = rough <= self.goal.promised(point) or foreseen <= self.goal.target(point)
        if near and not self.data.problem.loss.quadratic:
            method, measured = method._measured(point)
            if measured > max(_AGREE * rough, self.goal.enough(point)) and self.otherwise:
                return self.otherwise.look(point)
            rough, foreseen = measured, method._foreseen(measured)
        return method, Look(point, rough, foreseen)

    def _rough(self, point: Point) -> float:
        """Squared Newton decrement by the sketch.

        The sketch assumes a stiffness of the rows, on the mean that much more than their curvature
        is now; the decrement is that much too small.
        """
        found = (self.judge or self.made.factor).decrement(point.gradient)
        if self.data.problem.loss.quadratic:
            return found
        return found * min(self._softening(point.rows.curvature), 10.0)

    def _softening(self, now: Array) -> float:
        """How much more curvature the sketch assumes on the mean than this."""
        weighted = self.data.problem.weighted
        return float(weighted(self.made.stiffness).sum() / max(weighted(now).sum(), 1e-300))

    def _stale(self, point: Point) -> bool:
        """Whether the sketch should be made anew: far off, or off and slow, and still needed."""
        problem, rough = self.data.problem, self._rough(point)
        if problem.loss.quadratic or rough <= self.goal.target(point):
            return False
        now = problem.weighted(self.data.weights(point, Model.STIFFNESS))
        then = problem.weighted(self.made.stiffness)
        moved = np.abs(now - then).sum() / max(then.sum(), np.finfo(float).tiny)
        return bool(moved > (_MOVED / 5 if rough > self.previous / _FAST else _MOVED))

    def _foreseen(self, now: float) -> float:
        """Decrement after one more round at the rate of the last, with a margin.

        For least squares the decrement is by a sketch and may be three times too small; for other
        losses it has been measured.
        """
        known = self.settings.variance_reduction and self.make is not None
        if not (known and self.leverage is not None and now < self.previous / 4 < np.inf):
            return np.inf
        return now * (now / self.previous) / (0.1 if self.data.problem.loss.quadratic else 0.2)

    def _measured(self, point: Point) -> tuple["Steps", float]:
        """Decrement by the curvature of rows that stand for all.

        Along some direction the rows may have much less curvature than the sketch assumes and than
        they have on the mean, and the decrement by the sketch is that much too small.
        """
        problem, size, method = self.data.problem, _SAMPLE * self.data.problem.p, self
        data, place = self.data, point
        if size < problem.n and self.judge is None:
            method = self._with_leverage(point)
            assert method.leverage is not None
            drawn, raw = next(self.data.draws(point, method.leverage, 1, size, self.rng))
            data = Rows(drawn)
            value = drawn.loss.all(drawn.Y, raw)
            place = point._replace(rows=point.rows._replace(raw=raw, curvature=value[2]))
        target = self.goal.target(point)
        found = conjugate_gradients(
            lambda U: data.product(place, U, Model.CURVATURE),
            (self.judge or self.made.factor).solve,
            None,
            point.gradient,
            place.rows.raw,
            lambda found: found.left <= max(1e-2 * min(target, found.first), 1e-4 * found.first),
        )
        if data is not self.data:
            self.data.passes += found.products * data.problem.n / problem.n
        return method, found.decrement

    def _with_leverage(self, point: Point) -> "Steps":
        if self.leverage is not None:
            return self
        return replace(self, leverage=self.data.leverages(point, self.made.probes))

    def step(self, look: Look) -> Step:
        """Forty steps from a full gradient; the mean of the last two thirds."""
        point, method = look.point, self._with_leverage(look.point)
        assert method.leverage is not None
        settings, factor = self.settings, self.made.factor
        size = settings.batch_size or 4 * self.data.problem.p
        eta = self.data.rate = self._rate(point)
        U = np.zeros_like(point.gradient)
        mean, n_averaged = np.zeros_like(U), 0
        drawn = self.data.draws(point, method.leverage, _STEPS, size, self.rng)
        for step, (batch, raw) in enumerate(drawn):
            change = batch.loss.gradient(batch.Y, raw + batch.predict(batch.X, U))
            direction = batch.ridge * U
            if settings.variance_reduction:
                change = change - batch.loss.gradient(batch.Y, raw)
                direction = direction + point.gradient
            direction = direction + batch.adjoint(batch.X, batch.weighted(change)) / size
            U = U - eta * factor.solve(direction)
            if step >= _STEPS // 3:
                n_averaged += 1
                mean += (U - mean) / n_averaged
        W = point.W + (mean if settings.average else U)
        then = replace(method, previous=look.decrement)
        probes = None if method.leverage is not None else self.made.probes
        return Step(
            W,
            lambda: self.data.at(W, probes),
            lambda after: then._kept(look, after),
            then,
            self.otherwise,
        )

    def _rate(self, point: Point) -> float:
        """Length of a step in the coordinates of the preconditioner."""
        settings, problem = self.settings, self.data.problem
        if settings.learning_rate:
            return settings.learning_rate
        eta = step_size(self.made.factor, problem.p, settings.batch_size or 4 * problem.p)
        if self.make is not None and not problem.loss.quadratic:
            # The sketch may be of another place: as far off as the rows have softened since
            softened = self._softening(self.data.weights(point, Model.STIFFNESS))
            eta *= float(np.clip(softened, 1.0, _SOFTENED))
        return eta

    def _kept(self, look: Look, after: Point) -> bool:
        """Whether the decrement was halved; where nobody else goes on, whether anything fell."""
        gain, slack = look.point.objective - after.objective, look.point.slack
        found = self._rough(after)
        halved = found <= 0.5 * look.decrement and gain >= -slack
        return bool(np.isfinite(found) and (halved or (self.otherwise is None and gain > slack)))
