"""Descend by rounds of questions, whoever answers them: rows elsewhere, or gradients alone.

A round is one question to everybody, and one merged answer. At a place the answer is the objective,
the gradient and a fresh sketch of the Hessian; a step by a sketch of p coefficients and k batches
leaves about p/k of the decrement, and what the curvature changed (MATH section 8). Where the
Hessian is the same everywhere one sketch serves, and conjugate gradients ask for products.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sklearn_gradhess import _blocks
from sklearn_gradhess._blocks import Answer, Encoding
from sklearn_gradhess._conjugate_gradients import Found, conjugate_gradients
from sklearn_gradhess._descent import Goal, Look, Method, Model, Point, Step
from sklearn_gradhess._losses import Loss
from sklearn_gradhess._preconditioner import Factor
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sketch import triangles_factor

__all__ = ["Ask", "Asked", "Blocks", "Rounds", "Told", "drifts_on", "sketch_batches"]

Array = npt.NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_SLACK = 1e-13  # digits of an objective that summing the rows leaves
_LEFT = 4.0  # times coefficients over batches: share of a decrement that a step by a sketch leaves
_KURTOSIS = 3.0  # E x^4 of a Gaussian
_LIKE = 2.0  # dispersion of all rows over that of a sample
_COUPLED = 4.0  # decrement over what a preconditioner that knows each class by itself sees of it
_FORCING = 0.1  # share of a decrement that may be left where the next step is made elsewhere
_BLIND = 1e-4  # share of a decrement to go for where nobody knows the loss
_PLAIN = 0.01  # decrement over the dispersion read off gradients, in which its excess is nothing
_SHORTER = 0.5 ** np.arange(1.0, 31.0)
_DRIFTS = 2  # steps that move rows by as much, from which on it is called drifting


class Told(NamedTuple):
    """What is remembered of a place: sums over rows, and the Hessian by one of its models."""

    model: Model
    factor: Factor
    sums: Answer


class Ask(Protocol):
    """Who carries a question to all blocks, and brings back the merged answer."""

    rounds: int
    bytes: int
    passes: float

    def __call__(self, question: Any, **arguments: Any) -> Answer:
        """Ask: one round."""


class Asked(Protocol):
    """What a descent by rounds asks of data, wherever they are.

    Attributes
    ----------
    problem : Problem
        Stands for all rows, and has none: loss, penalty, and what counts them.
    """

    problem: Problem

    def at(self, W: Array, model: Model, direction: Array | None = None) -> Point:
        """Look at a place, to which a direction led; its `rows` are `Told`."""

    def product(self, point: Point, U: Array, model: Model) -> Array:
        """Hessian of a model times a direction."""

    def fell(self, point: Point, after: Point) -> bool:
        """Whether a step made progress."""

    def shortened(self, point: Point, U: Array) -> float:
        """Length at which a step that was too long makes progress."""


def sketch_batches(p: int, oversampling: float | None) -> int:
    """Batches of a sketch, all blocks together."""
    return int(max((oversampling or 40) * p, p + 16))


@dataclass
class Blocks:
    """Blocks of rows, wherever they are: the data side of a descent by rounds.

    Attributes
    ----------
    ask : Ask
        Who carries the questions.
    encoding : Encoding
        How stored rows become a problem.
    problem : Problem
        Stands for all rows.
    weight : float
        Sum of their weights.
    unit : float
        Size of a loss that rounding is judged against.
    batch_size : int
        Rows in a batch of a sketch; one: exact Hessians.
    rng : Generator
        Source of seeds.
    """

    ask: Ask
    encoding: Encoding
    problem: Problem
    weight: float
    unit: float
    batch_size: int
    rng: np.random.Generator
    singular: int = field(default=0, init=False)  # directions known to be

    def of_loss(self, loss: Loss) -> "Blocks":
        """Ask about another loss of the same rows."""
        problem = replace(self.problem, loss=loss)
        return replace(self, encoding=replace(self.encoding, loss=loss), problem=problem)

    def at(self, W: Array, model: Model, direction: Array | None = None) -> Point:
        """Gradient, objective and a fresh sketch: a round."""
        return self._told(W, model, self._sketched(W, model, direction=direction))

    def as_told(self, W: Array, null: Array, dispersion: float) -> Point | None:
        """Look at what a sample told to be the minimum, if all rows are like the sample: a round.

        They are not where one raw prediction for all rows is better, or where the dispersion is
        much larger: a goal that is a share of the dispersion would be met at once.
        """
        answer = self._sketched(W, Model.CURVATURE, null=null)
        better = answer["value"] / self.weight + self.problem.penalty(W) <= (
            answer["null"] / self.weight
        )
        like = answer["slope2"] <= _LIKE * dispersion * answer["curvature"]
        return self._told(W, Model.CURVATURE, answer) if better and like else None

    def _told(self, W: Array, model: Model, answer: Answer) -> Point:
        factor = self._factor(answer)
        if self.batch_size > 1 and factor.n_clipped > self.singular:
            # Singular, or the signs of the only rows of a direction have cancelled
            more = self._sketched(W, model)
            both = _blocks.merge([{k: a[k] for k in ("shift", "factors")} for a in (answer, more)])
            assert both is not None
            both["factors"] = both["factors"] / np.sqrt(2)
            answer |= both
            answer["batches"] += more["batches"]
            factor = self._factor(answer)
            self.singular = factor.n_clipped
        return self._point(W, model, factor, answer)

    def _sketched(self, W: Array, model: Model, **more: Array | None) -> Answer:
        self.ask.passes += 1
        return self.ask(
            _blocks.at,
            encoding=self.encoding,
            W=W,
            model=model,
            batch_size=self.batch_size,
            seed=int(self.rng.integers(2**63)),
            **more,
        )

    def _factor(self, answer: Answer) -> Factor:
        k = answer["batches"]
        return triangles_factor(
            self.problem,
            answer["shift"],
            answer["factors"] / np.sqrt(self.weight),
            ratio=min(self.problem.p / k, 0.5) if self.batch_size > 1 else 0.0,
            batch_size=self.batch_size,
            n_batches=k,
        ).factor

    def _point(self, W: Array, model: Model, factor: Factor, sums: Answer) -> Point:
        problem, total = self.problem, self.weight
        gradient = sums["gradient"] / total + problem.ridge * W
        objective = sums["value"] / total + problem.penalty(W)
        dispersion = 1.0
        if not problem.loss.likelihood:
            v = sums["curvature"] or sums["stiffness"]
            dispersion = sums["slope2"] / v if v else 0.0
        least = self.unit if problem.loss.own_unit else 1.0
        size = (sums["size"] + least * sums["curvature"]) / total
        slack = _SLACK * (self.unit + abs(objective))
        told = Told(model, factor, sums | {"weight": total})
        floor = dispersion * counted_error(problem)
        return Point(W, objective, gradient, told, floor, (64 * _EPS) ** 2 * size, slack)

    def product(self, point: Point, U: Array, model: Model) -> Array:
        """Hessian of a model times a direction: a round."""
        self.ask.passes += 1
        answer = self.ask(_blocks.product, encoding=self.encoding, W=point.W, U=U, model=model)
        return answer["product"] / self.weight + self.problem.ridge * U

    def fell(self, point: Point, after: Point) -> bool:
        """Whether the objective fell."""
        return point.objective - after.objective > point.slack

    def shortened(self, point: Point, U: Array) -> float:
        """Armijo's rule at lengths of powers of one half: a round."""
        self.ask.passes += 1
        answer = self.ask(_blocks.losses, encoding=self.encoding, W=point.W, U=U, steps=_SHORTER)
        penalty = np.array([self.problem.penalty(point.W + s * U) for s in _SHORTER])
        values = answer["losses"] / self.weight + penalty
        slope = float(np.sum(point.gradient * U))
        good = np.flatnonzero(values <= point.objective + 1e-4 * _SHORTER * slope)
        return float(_SHORTER[good[0]]) if len(good) else 0.0


def counted_error(problem: Problem) -> float:
    """Statistical error of the decrement, in units of the dispersion."""
    free = problem.Y.shape[1] - (problem.loss.coupling > 1)
    return problem.p * free / problem.observations


@dataclass(frozen=True)
class Rounds:
    """Newton steps by the sketch of each place.

    Attributes
    ----------
    data : Asked
        Who is asked.
    goal : Goal
        When to stop.
    """

    data: Asked
    goal: Goal

    def look(self, point: Point) -> tuple[Method, Look]:
        """Solve for the step; by the stiffness where the curvature cannot be believed."""
        found = self._solve(point)
        if self.data.problem.loss.quadratic:
            # The residual variance is that of the place where the step leads
            floor = point.floor * self._share(point, found)
            return self, self._looked(point._replace(floor=floor), found)
        if point.rows.model is Model.CURVATURE:
            if np.isnan(point.objective) or self._believes(point, found):
                return self, self._looked(point, found)
            bounded = self.data.at(point.W, Model.STIFFNESS)
            bound = self._solve(bounded)
            return self, self._looked(bounded, self._larger(point, bound, found))
        if found.decrement > self.goal.enough(point):
            return self, self._looked(point, found)
        # By the bound there is nothing to gain; by the Hessian?
        curved = self.data.at(point.W, Model.CURVATURE)
        better = self._solve(curved)
        if self._believes(curved, better):
            return self, self._looked(curved, better)
        return self, self._looked(point, self._larger(point, found, better))

    def _share(self, point: Point, found: Found) -> float:
        """Share of the loss, without the penalty, that is left where the step leads."""
        penalty = self.data.problem.penalty
        before = point.objective - penalty(point.W)
        after = point.objective - 0.5 * (found.decrement - found.left)
        after -= penalty(point.W + found.U)
        return max(after / before, 0.0) if before > 0 else 1.0

    def _larger(self, point: Point, bound: Found, found: Found) -> Found:
        """By the stiffness nothing is left to gain only if by the curvature there isn't either."""
        nothing = bound.decrement <= self.goal.enough(point)
        if nothing and found.decrement > 2 * point.objective:
            return bound._replace(decrement=found.decrement)
        return bound

    def _believes(self, point: Point, found: Found) -> bool:
        """Whether there is no more to gain than the objective has."""
        if np.isnan(point.objective):  # nor a statistical error that has a large excess in it
            share = _PLAIN if self.data.problem.loss.quadratic else 1.0
            return found.decrement <= share * point.floor / counted_error(self.data.problem)
        return not found.decrement > 2 * point.objective + point.slack

    def _solve(self, point: Point) -> Found:
        """Conjugate gradients where one sketch serves for long, or is of a part of the Hessian."""
        told, loss = point.rows, self.data.problem.loss
        least = 0.1 * max(self.goal.target(point), point.rounding)
        dispersion = point.floor / counted_error(self.data.problem)

        def enough(found: Found) -> bool:
            first, left, shrank = found.first, found.left, found.shrank
            if loss.quadratic:
                rest = _rest(point, first - left)
                goal = max(rest * least, point.rounding)
                if np.isnan(point.objective):  # how far to go shows where one has arrived
                    goal = max(goal, _BLIND * first)
                return left * self._left(told, shrank) <= goal
            if loss.coupling == 1:
                return True
            forcing = min(_FORCING, first / max(dispersion, 1e-300))
            return _COUPLED * left <= max(least, forcing * first)

        nothing = np.empty((0, 0))  # there are no raw predictions here
        return conjugate_gradients(
            lambda U: (self.data.product(point, U, told.model), nothing),
            told.factor.solve,
            None,
            point.gradient,
            nothing,
            enough,
        )

    def _left(self, told: Told, shrank: float) -> float:
        """Share of a decrement that another preconditioned step leaves."""
        if self.data.problem.loss.coupling > 1:
            return _COUPLED * max(shrank, 2 * told.factor.ratio)
        return min(_LEFT * told.factor.ratio, max(shrank, 2 * told.factor.ratio))

    def _looked(self, point: Point, found: Found) -> Look:
        """Foresee what the step leaves."""
        told, loss = point.rows, self.data.problem.loss
        foreseen = np.inf
        if told.model is Model.CURVATURE and self._believes(point, found):
            foreseen = max(found.left, 0.0) * self._left(told, found.shrank)
            if not loss.quadratic:
                foreseen += self._curved(point) * found.decrement**2
        return Look(point, found.decrement, foreseen, found)

    def _curved(self, point: Point) -> float:
        """Bound what a step leaves as the curvature changes on the way, over its squared decrement.

        A step that moves a row by r, a link's curvature v by no more than its own size, changes
        slopes by ``v r^2/2`` more than foreseen: together ``E v r^4 / 4`` for a decrement of
        ``E v r^2``. Rows of high leverage make the fourth moment large, as the last step told.
        """
        sums = point.rows.sums
        if self.data.problem.loss.own_unit:
            return _KURTOSIS * counted_error(self.data.problem) / max(point.floor, 1e-300)
        total = sums["weight"]
        fourth = _KURTOSIS * total / max(sums["curvature"], 1e-300)
        if sums["gain"] > 0:
            fourth = max(fourth, sums["quartic"] / sums["gain"] * total / sums["gain"])
        return 0.25 * float(fourth)

    def step(self, look: Look) -> Step:
        """Make the full step."""
        found, point = look.way, look.point
        U = found.U
        if not found.products or look.foreseen <= self.goal.target(point):
            U = U + found.rest
        otherwise = None if self.data.problem.loss.quadratic else Shorter(self.data, self.goal)
        return Step(
            point.W + U,
            lambda: self.data.at(point.W + U, Model.CURVATURE, U),
            lambda after: self.data.fell(point, after),
            self,
            otherwise,
        )


@dataclass(frozen=True)
class Shorter(Rounds):
    """A step of which the full length was too long; the next one assumes the stiffness."""

    def step(self, look: Look) -> Step:
        """Ask how far it goes, and step there."""
        found, point = look.way, look.point
        U = found.U if found.products else found.U + found.rest
        t = self.data.shortened(point, U)
        model = Model.STIFFNESS if t < 0.5 else Model.CURVATURE
        return Step(
            point.W + t * U,
            lambda: self.data.at(point.W + t * U, model, t * U),
            lambda after: self.data.fell(point, after),
            Rounds(self.data, self.goal),
            None,
        )


def _rest(point: Point, gained: float) -> float:
    """Share of the loss of least squares that is left where a decrement has been gained."""
    return max(1 - 0.5 * gained / point.objective, 0.0) if point.objective > 0 else 1.0


def drifts_on(method: Rounds, point: Point) -> Point | None:
    """Where to steps drift that go on moving some rows by as much, however little there is to gain.

    None, if they do not. See `_newton.drifts`; what moved is told of the place that a step led to.
    """
    for _ in range(_DRIFTS):
        _, look = method.look(point)
        point = method.step(look).arrive()
        if not _moved_far(point.rows.sums):
            return None
    return point


def _moved_far(sums: Answer) -> bool:
    return bool(sums["far_gain"] > 0.5 * sums["gain"])
