"""Scale of the residuals, estimated together with the coefficients.

Losses that bend at a multiple of the scale, or are smoothed over a share of it, need it before
they can be minimised, and it needs their minimum. `ScaledLoss.residual_scale` after a solution at a
scale is a map from scales to scales, and the estimate is its fixed point. The solutions in between
start from each other, and cost little; on a logarithmic axis the map is nearly straight and nearly
constant, so that secants find its fixed point in a few steps.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._loss import Loss, ScaledLoss
from sklearn_gradhess._plan import plan
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._solver import Settings, goal_of, part_of, solve

__all__ = ["estimate_scale", "fixed_point", "scale_at"]

Array = npt.NDArray[np.float64]
_MOST = 40  # solutions
_LEAST = 1e-9  # scale over that of the targets, below which residuals are none
_NARROWER = np.log(10)  # of the scale, from one solution to the next
_STEEPEST = 0.8  # slope of the map that a secant may assume


class Scaled(NamedTuple):
    """A loss at its scale, coefficients near its minimum, and the passes that they took."""

    loss: ScaledLoss
    W: Array | None
    n_passes: float


def estimate_scale(
    problem: Problem, settings: Settings, rng: np.random.Generator, start: Array | None = None
) -> tuple[Loss, Array | None, float]:
    """Find the scale that residuals have at the minimum for that scale: see `Scaled`.

    Parameters
    ----------
    problem : Problem
        The objective, of one output; its loss at any scale.
    settings : Settings
        How to solve it. Nobody is told of the solutions on the way.
    rng : Generator
        Source of randomness.
    start : ndarray of shape (p, 1), default=None
        Where to start from.
    """
    if not isinstance(problem.loss, ScaledLoss):
        return problem.loss, start, 0.0
    return _estimated(problem, problem.loss, replace(settings, on_iteration=None), rng, start)


def _estimated(
    problem: Problem,
    loss: ScaledLoss,
    settings: Settings,
    rng: np.random.Generator,
    start: Array | None = None,
) -> Scaled:
    size = scale_at(problem, loss, None)
    loss, W, passes = _first(problem, loss, settings, rng, start, size)
    # The scale has a relative error of one over the root of the observations, or more
    goal = goal_of(problem, settings)
    close = max(np.sqrt(goal.tol * goal.depth / problem.observations), 1e-9)
    before = None
    for _ in range(_MOST):
        solution = solve(replace(problem, loss=loss), settings, rng, W)
        W, passes = solution.W, passes + solution.n_passes + 0.5
        image = max(scale_at(problem, loss, W), _LEAST * size)
        here = np.log([loss.scale, image])
        # A loss that is much narrower than the residuals are tells nothing of the way
        scale = np.exp(max(fixed_point(before, here), here[0] - _NARROWER))
        loss = _at(loss, problem, float(scale))
        if abs(here[1] - here[0]) <= max(close, loss.scale_tolerance):
            break
        before = here
    return _sharpened(Scaled(loss, W, passes), problem, settings, rng, size)


def scale_at(problem: Problem, loss: ScaledLoss, W: Array | None) -> float:
    """Scale of the residuals at W, or without W of the targets about their median; not zero."""
    residual = _residual(problem, W)
    weight = problem.weighted(np.ones(problem.n))
    if W is None and problem.has_intercept:
        order = np.argsort(residual)
        mass = np.cumsum(weight[order])
        residual = residual - residual[order[np.searchsorted(mass, 0.5 * mass[-1])]]
    scale = loss.residual_scale(residual, weight, problem.observations, problem.p)
    if scale > 0 or W is not None:
        return scale
    # Most targets are the same: the mean distance of the others, or the size of all
    for values in (residual, problem.Y[:, 0]):
        unit = np.abs(values).max()
        if unit > 0:
            return float(unit * (weight @ np.abs(values / unit) / weight.sum()))
    return 1.0


def _residual(problem: Problem, W: Array | None) -> Array:
    y = problem.Y[:, 0]
    if W is None:
        return y
    raw = [problem.predict(Z, W)[:, 0] for _, Z in problem.chunks()]
    return y - np.concatenate(raw)


def _at(loss: ScaledLoss, problem: Problem, scale: float) -> ScaledLoss:
    return loss.at_scale(scale, problem.observations, problem.p)


def _first(
    problem: Problem,
    loss: ScaledLoss,
    settings: Settings,
    rng: np.random.Generator,
    start: Array | None,
    size: float,
) -> Scaled:
    """Scale to begin with: of the start, of a share of many rows, or of the targets."""
    share = settings.plan.share
    if start is not None:
        scale = min(scale_at(problem, loss, start), size)
        return Scaled(_at(loss, problem, max(scale, _LEAST * size)), start, 0.5)
    part = None if share == 1 else part_of(problem, share, rng)
    if part is None:
        return Scaled(_at(loss, problem, size), None, 0.0)
    chosen = plan(part.n, part.p, quadratic=False)
    found = _estimated(part, loss, replace(settings, plan=chosen._replace(share=1)), rng)
    return Scaled(_at(found.loss, problem, found.loss.scale), found.W, found.n_passes / share)


def fixed_point(before: Array | None, here: Array) -> float:
    """Where the line through two places and their images meets the diagonal; else the image."""
    if before is None or before[0] == here[0]:
        return float(here[1])
    slope = np.clip((here[1] - before[1]) / (here[0] - before[0]), -_STEEPEST, _STEEPEST)
    return float((here[1] - slope * here[0]) / (1 - slope))


def _sharpened(
    found: Scaled, problem: Problem, settings: Settings, rng: np.random.Generator, size: float
) -> Scaled:
    """Follow a loss to where it is near enough to what it approximates."""
    loss, W, passes = found
    weight = problem.weighted(np.ones(problem.n))
    for _ in range(_MOST):
        residual = _residual(problem, W)
        if np.abs(residual).max() <= 10 * _LEAST * size:
            break
        sharper = loss.sharpened(residual, weight, problem.observations, problem.p)
        if sharper is loss:
            break
        loss = sharper
        solution = solve(replace(problem, loss=loss), settings, rng, W)
        W, passes = solution.W, passes + solution.n_passes + 0.5
    return Scaled(loss, W, passes)
