"""Where a fit by rounds starts: at the solution of a sample of the rows, found in a single task.

All steps but the last few are made where they cost next to nothing. With m of n rows the start is
about n/m statistical errors away, near enough for Newton steps to converge (MATH section 8).
Rows are drawn in every block, so that sorted data are served; they go to one worker, and what comes
back are coefficients.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._blocks import Answer, Block, Encoding
from sklearn_gradhess._descent import Ending
from sklearn_gradhess._loss import ScaledLoss
from sklearn_gradhess._plan import plan
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._scale_estimate import estimate_scale, scale_at
from sklearn_gradhess._solver import Settings, solve

__all__ = ["rows_for_a_scale", "sample_size", "solution_of_sample"]

Array = npt.NDArray[np.float64]
_ROWS = 64  # of the sample, a coefficient
_FEWEST = 16  # and where those would take too much memory
_BYTES = 2**26  # that they may take
_SHARE = 4  # all rows over those of a sample that is worth a round
_EVENTS = 8  # rows of the rarest class, or counts, that a coefficient needs
_COARSE = 0.3  # statistical errors of the sample that are left


def sample_size(n: int, p: int, itemsize: int, events: float) -> int:
    """Rows to draw; zero where a sample is not worth it, or may have no solution.

    Parameters
    ----------
    n, p : int
        Rows and coefficients.
    itemsize : int
        Bytes of an entry of X.
    events : float
        Rows of the rarest class, or the sum of counts, that all rows have.
    """
    most = _BYTES // (itemsize * p)
    m = min(_ROWS * p, most)
    if m < _FEWEST * p or n < _SHARE * m or events * m < _EVENTS * p * n:
        return 0
    return int(m)


def rows_for_a_scale(n: int, p: int, itemsize: int) -> int:
    """Rows to draw where the scale of the residuals is to be estimated from them."""
    return int(min(n, max(_BYTES // (itemsize * p), _FEWEST), 4 * _ROWS * p))


def solution_of_sample(said: Answer, encoding: Encoding, alpha: Any, seed: int) -> Answer:
    """Where the sample's objective has its minimum, if it has one; scale and dispersion there.

    "size" is the scale of the targets themselves.

    Parameters
    ----------
    said : dict
        "rows": X, y and weights of each block's share.
    encoding : Encoding
        How they become a problem.
    alpha : float or ndarray of shape (d,)
        Penalty, for a mean loss.
    seed : int
        Source of randomness.
    """
    several: list[Any] = []
    for values in zip(*said["rows"], strict=True):
        if values[0] is None:
            several.append(None)
        elif sparse.issparse(values[0]):
            several.append(sparse.vstack(values, format="csr"))
        else:
            several.append(np.concatenate([np.asarray(one) for one in values]))
    problem = encoding.problem(Block(0, *several))
    if problem.weight is not None:
        if not problem.weight.any():
            return {"start": None, "scale": None, "size": None, "dispersion": np.inf}
        problem = replace(problem, weight=problem.weight / problem.weight.mean())
    problem = replace(problem, alpha=alpha)
    coupled = problem.loss.coupling > 1
    columns = problem.Y.shape[1]
    chosen = plan(problem.n, problem.p, n_columns=columns, quadratic=False, coupled=coupled)
    settings = Settings(chosen._replace(share=1), tol=_COARSE, max_iter=30)
    rng = np.random.default_rng(seed)
    size = None
    if isinstance(problem.loss, ScaledLoss):
        size = scale_at(problem, problem.loss, None)
    loss, start, _ = estimate_scale(problem, settings, rng)
    problem = replace(problem, loss=loss)
    found = solve(problem, settings, rng, start)
    good = found.ending is Ending.CONVERGED and np.isfinite(found.W).all()
    return {
        "start": found.W if good else None,
        "scale": loss.scale if isinstance(loss, ScaledLoss) else None,
        "size": size,
        "dispersion": _dispersion(problem, found.W),
    }


def _dispersion(problem: Problem, W: Array) -> float:
    """Mean squared slope over mean curvature."""
    square = curved = 0.0
    for piece, Z in problem.chunks():
        _, slope, curvature = problem.loss.all(problem.Y[piece], problem.predict(Z, W))
        square += float(problem.weighted(slope**2, piece).sum())
        curved += float(problem.weighted(curvature, piece).sum())
    return square / curved if curved else np.inf
