"""One matrix for all classes: the Hessian of their summed curvature, shared out (MATH section 7.4).

A Hessian a class costs as many matrices as there are classes. What classes share is where the rows
lie; the curvature that they have there differs most in its size.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._preconditioner import Factor
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sketch import hessian_factor

__all__ = ["Pooled", "pooled_hessian"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pooled:
    """Preconditioner P of the columns of W: for each its share of one Hessian.

    Attributes
    ----------
    whole : Factor
        Of the Hessian of the summed curvature; the penalty counts as often as there are columns, so
        that it is right for a column with a mean share.
    shares : ndarray of shape (t,)
        Of the summed curvature.
    n_passes : int
        That it took.
    """

    whole: Factor
    shares: Array
    n_passes: int
    # Eigenvalues of P^-1 H are bounded by no law
    ends: ClassVar[tuple[float, float]] = (0.0, np.inf)
    ratio: ClassVar[float] = 0.0
    batch_size: ClassVar[int] = 1

    @property
    def n_clipped(self) -> int:
        """Singular directions, which are left alone."""
        return self.whole.n_clipped

    @property
    def n_batches(self) -> int:
        """Rows."""
        return self.whole.n_batches

    @property
    def factors(self) -> tuple[Array, ...]:
        """Root of the mean Hessian of the columns, which is what the pool tells."""
        return (self.whole.factors[0] / np.sqrt(len(self.shares)),)

    def solve(self, gradient: Array) -> Array:
        """P^-1 times the gradient, of shape (p, t)."""
        step = self.whole.solve(gradient / self.shares)
        return step - step.mean(axis=1, keepdims=True)

    def decrement(self, gradient: Array) -> float:
        """``g' P^-1 g``."""
        return float(np.sum(gradient * self.solve(gradient)))


def pooled_hessian(problem: Problem, curvature: Array) -> Pooled:
    """Make one factor for all columns: a pass, two where ill conditioned.

    Parameters
    ----------
    problem : Problem
        The objective, of coupled columns.
    curvature : ndarray of shape (n_samples, t)
        Curvature of each row.
    """
    t = curvature.shape[1]
    penalised = replace(problem, alpha=t * np.asarray(problem.alpha))
    made = hessian_factor(penalised, curvature.sum(axis=1, keepdims=True))
    total = problem.weighted(curvature).sum(axis=0)
    # A class that has lost all its curvature has a small share, not none
    shares = np.maximum(total / total.sum(), 1e-3 / t)
    return Pooled(replace(made.factor, coupling=1), shares, made.n_passes)
