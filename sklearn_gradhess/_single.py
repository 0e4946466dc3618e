"""Newton steps from noisy gradients alone, as the paper's server takes them.

Every iteration sees one gradient a batch, at target noise of total variance ``noise_scale`` times
the batch size: their mean is the direction, their covariance the curvature. The noise of a mean of
k gradients is k times smaller; steps are averaged once the decrement has come down to it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._descent import Look, Method, Point, Step
from sklearn_gradhess._fitted import OneFactor
from sklearn_gradhess._preconditioner import Factor
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sketch import given_factor
from sklearn_gradhess.covariance import GradientCovarianceEstimator
from sklearn_gradhess.exceptions import CalibrationWarning

__all__ = ["Approach", "InterceptFirst", "Sender", "SingleGradients"]

Array = npt.NDArray[np.float64]
# Steps that are averaged at the noise of the gradients
_AVERAGED = 10
# Growth of the decrement at which steps diverge
_DIVERGED = 1e3


class Sender(NamedTuple):
    """What one round of gradients told: their estimator, and the preconditioner that it makes."""

    estimator: GradientCovarianceEstimator
    factor: Factor


@dataclass
class SingleGradients:
    """Rows that are seen through one noisy gradient a batch: the data side of a descent.

    Attributes
    ----------
    problem : Problem
        The objective, which nobody sees.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights as they were given.
    estimator : callable
        Makes the estimator of a round from a seed.
    rng : Generator
        Source of the noise.
    noise_scale : float
        Total noise over the batch size.
    passes : float
        Visits to rows so far, over their number.
    """

    problem: Problem
    sample_weight: Array | None
    estimator: Callable[[int], GradientCovarianceEstimator]
    rng: np.random.Generator
    noise_scale: float
    passes: float = 0.0

    def at(self, W: Array) -> Point:
        """Curvature, as a preconditioner, and mean gradient: a pass."""
        problem, h = self.problem, int(self.problem.has_intercept)
        seen = self.estimator(int(self.rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)  # far from the optimum at first
            seen.fit(
                problem.X,
                problem.Y[:, 0],
                self.sample_weight,
                coef=W[h:, 0],
                intercept=float(W[0, 0]) if h else 0.0,
            )
        if seen.n_batches_ < 2 * problem.p:
            raise ValueError(
                f"noise='single' has {seen.n_batches_} gradients of batch_size={seen.batch_size_} "
                f"for {problem.p} coefficients, and needs twice as many gradients as coefficients. "
                "Use a smaller batch_size, more rows, or noise='antithetic'."
            )
        root = OneFactor(seen.fitted_, problem.has_intercept)[0]
        if h and problem.loss.quadratic:
            # The feature of ones has second moment one: this calibrates what the nuisance inflates
            root = root / root[0, 0]
        # Gradients are few: undo the bias of the inverse
        factor = given_factor(root, problem, ratio=min(problem.p / seen.n_batches_, 0.5))
        intercept = [seen.mean_intercept_gradient_] if h else []
        gradient = np.append(intercept, seen.mean_gradient_)[:, None] + problem.ridge * W
        self.passes += 1
        floor = self.noise_scale * problem.p / seen.n_batches_
        # Nobody who sees gradients alone knows the objective
        return Point(W, np.nan, gradient, Sender(seen, factor), floor, 0.0, 0.0)


@dataclass(frozen=True)
class Approach:
    """Newton steps, until the decrement is down at the noise of the gradients; then their mean.

    Attributes
    ----------
    data : SingleGradients
        Who is asked.
    averaged : tuple of ndarray
        Coefficients to take the mean of, so far.
    least : Look or None
        The least decrement that was seen.
    """

    data: SingleGradients
    averaged: tuple[Array, ...] = ()
    least: Look | None = None

    def look(self, point: Point) -> tuple[Method, Look]:
        """Tell the decrement by the curvature of the same gradients."""
        decrement = point.rows.factor.decrement(point.gradient)
        last = len(self.averaged) + 1 >= _AVERAGED
        look = Look(point, decrement, 0.0 if last else np.inf)
        if self.least is not None and self.least.decrement < decrement:
            return self, look
        return replace(self, least=look), look

    def step(self, look: Look) -> Step:
        """Step 2/(l + L) for the extreme eigenvalues (1 - c)/(1 +- sqrt(c))^2 of the law."""
        factor, point = look.point.rows.factor, look.point
        c = factor.ratio
        W = point.W - (1 - c) / (1 + c) * factor.solve(point.gradient)
        averaged = self.averaged
        if averaged or look.decrement <= 4 * point.floor:
            averaged = (*averaged, W)
        mean = np.mean(averaged, axis=0) if len(averaged) >= _AVERAGED else W
        return self._step(mean, replace(self, averaged=averaged))

    def _step(self, W: Array, then: Method) -> Step:
        return Step(W, lambda: self.data.at(W), self._kept, then, None)

    def _kept(self, after: Point) -> bool:
        assert self.least is not None
        found = after.rows.factor.decrement(after.gradient)
        return bool(found <= _DIVERGED * self.least.decrement)


@dataclass(frozen=True)
class InterceptFirst(Approach):
    """Steps of the intercept alone: a large mean residual drowns the features' part."""

    left: int = 2

    def step(self, look: Look) -> Step:
        """Step by the intercept's own curvature."""
        W, point = look.point.W.copy(), look.point
        W[0] -= point.gradient[0] * point.rows.factor.roots[0][0, 0] ** 2
        then = replace(self, left=self.left - 1)
        if self.left == 1:
            return self._step(W, Approach(self.data, least=self.least))
        return self._step(W, then)
