"""Newton steps by conjugate gradients, whatever the preconditioner, and a line search.

With the factor of the Hessian where it is now no conjugate gradients are needed; with one from
nearby, or a sketch, each product with the Hessian shrinks what is left by what the two differ.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._conjugate_gradients import (
    ByLaw,
    Found,
    Inner,
    InverseHessian,
    Need,
    conjugate_gradients,
)
from sklearn_gradhess._descent import Goal, Look, Method, Model, Point, Step
from sklearn_gradhess._rows import Rows, Trial

__all__ = ["Newton", "drifts"]

Array = npt.NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_MOVED = 0.15  # relative change of the curvature up to which a factor serves
_DRIFTS = 2  # steps that move rows by as much, from which on it is called drifting
_REGULAR = 1e-12  # curvature over its mean that rows have at least


class Way(NamedTuple):
    """A full step that was found, and its end."""

    found: Found
    trial: Trial


@dataclass(frozen=True)
class Newton:
    """Newton steps.

    Attributes
    ----------
    data : Rows
        Who is asked.
    goal : Goal
        When to stop.
    make : callable
        Preconditioner for the rows' weights (None: all one): exact, a sketch or a diagonal.
    model : Model
        Curvature of the rows that steps assume.
    factor : InverseHessian or None
        Preconditioner, which tells decrements too; None is made where it is needed.
    made_of : ndarray of shape (n_samples, t) or None
        Weights of the rows that it was made of; None if they are the same everywhere.
    made_at : Any
        What the rows remembered of the place where it was made.
    given : InverseHessian or None
        Preconditioner of somebody else's making, which may be of any scale: `factor` then tells
        decrements alone.
    inner : Inner
        When conjugate gradients have done enough.
    """

    data: Rows
    goal: Goal
    make: Callable[[Array | None], InverseHessian]
    model: Model = Model.CURVATURE
    factor: InverseHessian | None = None
    made_of: Array | None = None
    made_at: Any = None
    given: InverseHessian | None = None
    inner: Inner = field(default_factory=ByLaw)

    def look(self, point: Point) -> tuple[Method, Look]:
        """Solve for the step; by the stiffness where the curvature cannot be believed."""
        if self.data.problem.loss.quadratic:
            method = self._prepared(point)
            assert method.factor is not None
            decrement = max(method.factor.decrement(point.gradient), point.rounding)
            if self.inner.lawful and decrement <= self.goal.enough(point):
                return method, Look(point, decrement)
            return method, method._looked(point, method._solve(point))
        method, found = self._attempt(point)
        if self.model is Model.CURVATURE:
            if method._believes(point, found):
                return method, method._looked(point, found)
            method, bound = self._assuming(Model.STIFFNESS)._attempt(point)
            return method, method._looked(point, self._larger(point, bound, found))
        if found.decrement > self.goal.enough(point):
            return method, method._looked(point, found)
        # By the bound there is nothing to gain; by the Hessian?
        other, better = self._assuming(Model.CURVATURE)._attempt(point)
        if other._believes(point, better):
            return other, other._looked(point, better)
        return method, method._looked(point, self._larger(point, found, better))

    def _larger(self, point: Point, bound: Found, found: Found) -> Found:
        """By the stiffness nothing is left to gain only if by the curvature there isn't either.

        Directions that have none are not counted: there the gain is of no size.
        """
        nothing = bound.decrement <= self.goal.enough(point)
        if nothing and found.decrement > 2 * point.objective:
            return bound._replace(decrement=found.decrement)
        return bound

    def _attempt(self, point: Point) -> tuple["Newton", Found]:
        """Solve, with a preconditioner made anew where the one at hand is not good enough."""
        method = self._prepared(point)
        found = method._solve(point)
        if method._fresh(point):
            return method, found
        assert method.factor is not None
        by_factor = method.factor.decrement(point.gradient)
        enough = self.goal.enough(point)
        if self.inner.trusts(found, by_factor, method._need(point), enough):
            return method, found
        return self._assuming(self.model)._attempt(point)

    def _fresh(self, point: Point) -> bool:
        """Whether the preconditioner is of the Hessian at this very point."""
        return self.data.problem.loss.quadratic or self.made_at is point.rows

    def _believes(self, point: Point, found: Found) -> bool:
        """Whether there is as much to gain as the curvature says, and no direction without it."""
        factor = self.factor
        assert factor is not None
        if found.decrement > 2 * point.objective + point.slack:
            return False
        if not factor.n_clipped:
            return True
        bound = self.make(self.data.weights(point, Model.STIFFNESS))
        return factor.n_clipped <= bound.n_clipped

    def _assuming(self, model: Model) -> "Newton":
        """By this model, and without a preconditioner of another one."""
        return replace(self, model=model, factor=None, made_of=None, made_at=None)

    def _prepared(self, point: Point) -> "Newton":
        """Have a preconditioner that is near enough."""
        if self.data.problem.loss.quadratic:
            return self if self.factor else replace(self, factor=self.make(None))
        weights = self._weights(point)
        if self.moved(point) <= _MOVED:
            return self
        return replace(self, factor=self.make(weights), made_of=weights, made_at=point.rows)

    def moved(self, point: Point) -> float:
        """Relative change of the rows' weights since the preconditioner was made."""
        if self._fresh(point):
            return 0.0
        if self.made_of is None:
            return np.inf
        weighted = self.data.problem.weighted
        now, then = weighted(self._weights(point)), weighted(self.made_of)
        return float(np.abs(now - then).sum() / max(then.sum(), np.finfo(float).tiny))

    def _weights(self, point: Point) -> Array:
        weights = self.data.weights(point, self.model)
        # Rows without curvature leave the preconditioner regular, as far as its digits go
        mean = self.data.problem.weighted(weights).sum() / weights.size
        return weights + _REGULAR * mean

    def _softened(self, point: Point) -> tuple[float, float]:
        """How much less, and more, curvature rows have than those that made the preconditioner.

        Its eigenvalues against the Hessian change by no more.
        """
        if self.made_of is None or self._fresh(point):
            return 1.0, 1.0
        ratio = self.made_of / self._weights(point)
        return float(ratio.max()), float(1 / ratio.min())

    def _solve(self, point: Point) -> Found:
        """Conjugate gradients, no further than the model holds."""
        factor, need = self.factor, self._need(point)
        assert factor is not None
        found = conjugate_gradients(
            lambda U: self.data.product(point, U, self.model),
            (self.given or factor).solve,
            None if self.given is None else factor.decrement,
            point.gradient,
            point.rows.raw,
            lambda found: self.inner.enough(found, need),
            self.inner.most,
        )
        return self.inner.told(found)

    def _need(self, point: Point) -> Need:
        """Say what conjugate gradients have to find."""
        factor = self.factor
        assert factor is not None
        less, more = self._softened(point)
        law = 1.0
        if self.given is None and self.data.problem.loss.coupling == 1:
            low, high = factor.ends
            law = float(max(1 - low / less, high * more - 1) ** 2)
        dispersion = np.inf
        if not self.data.problem.loss.quadratic:
            dispersion = point.floor / max(self.data.error, 1e-300)
        least = 0.1 * max(self.goal.target(point), point.rounding)
        return Need(least, law, factor.ratio, less, dispersion, self.goal.enough(point))

    def _looked(self, point: Point, found: Found) -> Look:
        """Try the full step, and foresee what it leaves."""
        if not found.products:
            # The first preconditioned residual is the step
            found = found._replace(
                U=found.rest, raw=self.data.trace(found.rest), rest=np.zeros_like(found.rest)
            )
        trial = self.data.along(point, found.U, found.raw, 1.0)
        foreseen = np.inf
        fell = trial.objective <= point.objective + point.slack
        if fell and self.model is Model.CURVATURE and self.given is None:
            left = self.inner.leaves(found, self._need(point))
            curved = self.data.remainder(point, found.raw, trial)
            foreseen = float(np.square(np.sqrt(left) + np.sqrt(curved)))
        return Look(point, found.decrement, foreseen, Way(found, trial))

    def step(self, look: Look) -> Step:
        """Step as far as the objective falls."""
        found, trial = look.way
        point = look.point
        t, trial = self._line_search(point, found, trial)
        W = trial.W
        if look.foreseen <= self.goal.target(point):
            W = W + found.rest
        # After a step that had to be shortened the next one assumes the stiffness
        model = Model.STIFFNESS if t < 0.5 else Model.CURVATURE
        then = self if model is self.model else self._assuming(model)
        then = replace(then, inner=self.inner.after(found.decrement))
        # Where rounding is all a step can gain, no other model gains more
        can_gain = look.decrement > point.slack
        otherwise = None
        if can_gain and not (self.data.problem.loss.quadratic or self.model is Model.STIFFNESS):
            otherwise = self._assuming(Model.STIFFNESS)
        return Step(
            W,
            lambda: self.data.arrive(trial),
            lambda after: point.objective - after.objective > point.slack,
            then,
            otherwise,
        )

    def _line_search(self, point: Point, found: Found, trial: Trial) -> tuple[float, Trial]:
        if self.data.problem.loss.quadratic:
            return 1.0, trial
        slope = float(np.sum(point.gradient * found.U))
        size = self.data.unit + abs(point.objective)
        before = point.objective + 8 * _EPS * size
        t = 1.0
        for _ in range(40):
            if trial.objective <= before + 1e-4 * t * slope:
                break
            t *= 0.5
            trial = self.data.along(point, found.U, found.raw, t)
        return t, trial


def drifts(method: Newton, point: Point) -> bool:
    """Whether Newton steps go on moving some rows by as much, however little there is to gain.

    So they do where the infimum lies at infinity along a direction that some rows alone see: a
    level without a single count, or with one class only. Each step then moves their raw
    predictions by about one, and what is gained is gained there.
    """
    for _ in range(_DRIFTS):
        # With the curvature at this very point: what is seen there has hardly any weight
        newton, look = replace(method, factor=None, made_of=None, made_at=None).look(point)
        raw = look.way.found.raw
        gained = method.data.problem.weighted(look.point.rows.curvature * raw**2)
        if not gained[np.abs(raw) > 0.5].sum() > 0.5 * gained.sum():
            return False
        point = newton.step(look).arrive()
    return True
