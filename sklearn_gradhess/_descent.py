"""Descend to a minimum: what is known at a point, a step and what it promises, and the loop.

Data answer questions about places; a method looks at a point, makes a step and says who goes on;
`descend` alone decides when to stop. Nothing here knows rows: they may be in memory, or with
somebody who sends gradients only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Descent", "Ending", "Goal", "Look", "Method", "Model", "Point", "Step", "descend"]

Array = npt.NDArray[np.float64]


class Model(Enum):
    """Which curvature a quadratic model of the objective gives the rows."""

    CURVATURE = "the second derivative"
    STIFFNESS = "what a step of some length meets"


class Ending(Enum):
    """Why a descent ended."""

    CONVERGED = "the decrement met the goal, or nothing but rounding is left"
    STALLED = "no method makes progress"
    SEPARABLE = "every row is on the side of its class"
    UNBOUNDED = "the infimum lies at infinity in some direction"
    STOPPED = "whoever watches said so"
    EXHAUSTED = "no iterations are left"


class Point(NamedTuple):
    """Coefficients W, and what the data told of them.

    Attributes
    ----------
    W : ndarray of shape (p, t)
        Coefficients.
    objective : float
        Value there; NaN where nobody knows it.
    gradient : ndarray of shape (p, t)
        Gradient of the objective.
    rows : Any
        What the data remember of the place; nobody else looks into it.
    floor : float
        Statistical error of the squared Newton decrement (MATH section 4.3).
    rounding : float
        Decrement that rounding errors leave.
    slack : float
        Difference of objectives that may be rounding.
    """

    W: Array
    objective: float
    gradient: Array
    rows: Any
    floor: float
    rounding: float
    slack: float


class Look(NamedTuple):
    """A point through the eyes of a method.

    Attributes
    ----------
    point : Point
        The point.
    decrement : float
        Squared Newton decrement, about twice what is still to be gained.
    foreseen : float
        Decrement that the next step leaves, where that is known beforehand.
    way : Any
        What the method found on the way, for its own step.
    """

    point: Point
    decrement: float
    foreseen: float = np.inf
    way: Any = None


class Step(NamedTuple):
    """A step, and who goes on.

    Attributes
    ----------
    W : ndarray of shape (p, t)
        Where it leads.
    arrive : callable
        Asks the data about that place.
    kept : callable
        Tells whether the point that was reached is what was promised.
    then, otherwise : Method, Method or None
        Who goes on if it was, and if not; None: nobody can do better.
    """

    W: Array
    arrive: Callable[[], Point]
    kept: Callable[[Point], bool]
    then: "Method"
    otherwise: "Method | None"


class Method(Protocol):
    """A way to descend, with all it needs to know as values."""

    def look(self, point: Point) -> "tuple[Method, Look]":
        """Look at a point; the method returned remembers what it learnt of it."""

    def step(self, look: Look) -> Step:
        """Step from there."""


@dataclass(frozen=True)
class Goal:
    """When to stop.

    Attributes
    ----------
    tol : float
        Share of the statistical error that the decrement may have.
    depth : float
        What multiplies it where passes cost next to nothing.
    """

    tol: float
    depth: float = 1.0

    def target(self, point: Point) -> float:
        """Decrement to stop at."""
        return self.tol * self.depth * point.floor

    def enough(self, point: Point) -> float:
        """Decrement below which there is nothing to gain: the target, or rounding."""
        return max(self.target(point), point.rounding)

    def promised(self, point: Point) -> float:
        """Decrement at which it has converged, though more might be gained for next to nothing."""
        return max(self.tol * point.floor, point.rounding)


class Descent(NamedTuple):
    """Where a descent ended: coefficients, the method that came to them, what it saw, and why."""

    W: Array
    method: Method
    look: Look
    ending: Ending


def descend(
    method: Method,
    point: Point,
    goal: Goal,
    max_iter: int,
    watch: Callable[[Look], bool] = lambda look: False,
    separable: Callable[[Point], bool] = lambda point: False,
) -> Descent:
    """Look, stop or step; whoever breaks a promise hands over to the next method.

    Parameters
    ----------
    method : Method
        Who begins.
    point : Point
        Where.
    goal : Goal
        When to stop.
    max_iter : int
        Most steps.
    watch : callable
        Told of every look; returns whether to stop.
    separable : callable
        Tells whether a point shows that there is no minimum.
    """
    method, look = method.look(point)
    left = max_iter
    while True:
        point = look.point
        stop = watch(look)
        if separable(point):
            return Descent(point.W, method, look, Ending.SEPARABLE)
        if stop:
            return Descent(point.W, method, look, Ending.STOPPED)
        if look.foreseen <= goal.target(point):
            return Descent(method.step(look).W, method, look, Ending.CONVERGED)
        if look.decrement <= goal.enough(point):
            return Descent(point.W, method, look, Ending.CONVERGED)
        if not left:
            good = look.decrement <= goal.promised(point)
            return Descent(point.W, method, look, Ending.CONVERGED if good else Ending.EXHAUSTED)
        left -= 1
        step = method.step(look)
        after = step.arrive()
        if step.kept(after):
            method, look = step.then.look(after)
            continue
        best = after if after.objective <= point.objective else point
        if step.otherwise is None:
            # What is left is rounding, or the wrong method
            method, look = step.then.look(best)
            watch(look)
            good = look.decrement <= max(goal.promised(best), best.slack)
            return Descent(best.W, method, look, Ending.CONVERGED if good else Ending.STALLED)
        method, look = step.otherwise.look(best)
