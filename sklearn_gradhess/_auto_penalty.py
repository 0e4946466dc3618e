"""The penalty of wide data: more for features of few rows, and as much as held-out rows say.

A unit of penalty on each of p standardised features lets the log odds of a row vary by p: of no
matter where p is small or rows are many, and no prior at all for a hundred thousand words
(MATH section 7.7).
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._penalty import Spread
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sample_space import in_sample_space
from sklearn_gradhess._solver import Settings, approach
from sklearn_gradhess._steps import StepSettings

__all__ = [
    "HELD_OUT",
    "Chosen",
    "Law",
    "choose_penalty",
    "concentration",
    "least_place",
    "mean_deviation",
    "wideness",
]

Array = npt.NDArray[np.float64]
_NARROW = 1_000  # features up to which, and rows a feature from which on, the default is plain
_ROWS_A_FEATURE = 10
_COMMON = 2.0  # concentration of a Laplacian feature
_DECADE = 10  # and factor beyond each within which the choice sets in
_STRIDE, _STEPS = 4.0, 5  # of the penalties that are tried: from 4^5 down to one
HELD_OUT = 5  # one row of so many of each class
_TELLING = 2_000  # last rows of smaller classes that a stream's penalty goes by
_TOL = 1e-3  # statistical errors to which each is fitted: half-fitted ones predict otherwise


def wideness(n_features: int, n_samples: float, concentrated: float = 1.0) -> float:
    """How far the penalty is chosen by the rows: between zero, where it is 1/n, and one.

    Up to 1,000 features, or from ten rows a feature on (the rule of thumb of Peduzzi et al. 1996),
    the log odds are not left to themselves. Within a decade of both the choice sets in. Of rare
    features only so many rows count as inform on them, by their median `concentration`, of which
    two is still that of common ones.

    Examples
    --------
    >>> from sklearn_gradhess._auto_penalty import wideness
    >>> wideness(30, 20), wideness(5_000, 50_000), wideness(20_000, 500)
    (0.0, 0.0, 1.0)
    """
    informing = n_samples / max(concentrated / _COMMON, 1.0)
    beyond = min(n_features / _NARROW, _ROWS_A_FEATURE * n_features / informing)
    return float(np.clip(np.log(max(beyond, 1.0)) / np.log(_DECADE), 0.0, 1.0))


def mean_deviation(X: Any, weight: Array, mean: Array) -> Array:
    """Sum the weighted distances of each feature from its mean."""
    if sparse.issparse(X):
        X, d, total = X.tocsr(), len(mean), float(weight.sum())
        w = np.repeat(weight, np.diff(X.indptr))
        stored = np.bincount(X.indices, w * np.abs(X.data - mean[X.indices]), d)
        return stored + (total - np.bincount(X.indices, w, d)) * np.abs(mean)
    deviation, step = np.zeros_like(mean), max(64, 2**17 // max(len(mean), 1))
    for start in range(0, len(weight), step):
        piece = slice(start, start + step)
        deviation += weight[piece] @ np.abs(X[piece] - mean)
    return deviation


def concentration(variance: Array, deviation: Array) -> Array:
    """Variance over squared mean deviation of each feature, inverse to the rows that inform on it.

    It is one where all rows deviate by as much, pi/2 for Gaussians (Geary 1935), and 1/(4 f (1-f))
    for an indicator of frequency f. With it in the penalty per standard deviation an indicator is
    penalised as much whatever its frequency; and neither units nor shifts matter.
    """
    scale = np.square(deviation)
    varies = (variance > 0) & (scale > 0)
    ratio = np.divide(variance, scale, out=np.ones_like(scale), where=varies)
    return np.maximum(ratio, 1.0)


class Law(NamedTuple):
    """The automatic penalty of rows of which more may come; a value, never changed.

    Attributes
    ----------
    log_multiple : float
        Logarithm of the multiple of the penalty where `wideness` is one.
    n_told : float
        Rows that have judged it, those of the largest class excepted; no more than are remembered.
    weight : float
        Sum of the weights of the rows in `deviation`.
    deviation : ndarray of shape (d,)
        Weighted sum of the distances of each feature from the mean of its block.
    """

    log_multiple: float = 0.0
    n_told: float = 0.0
    weight: float = 0.0
    deviation: Any = 0.0

    def plus(self, X: Any, weight: Array, mean: Array) -> "Law":
        """Return that of another block of rows too, which have this mean."""
        if not wideness(len(mean), 1):  # of few features nothing else matters
            return self
        return self._replace(
            weight=self.weight + float(weight.sum()),
            deviation=self.deviation + mean_deviation(X, weight, mean),
        )

    def choosing(self, log_multiple: float, n_told: float = _TELLING) -> "Law":
        """Return that after so many rows were predicted best with this multiple."""
        total = self.n_told + n_told
        share = n_told / total if self.n_told else 1.0
        chosen = float(np.clip(log_multiple, 0.0, _STEPS * np.log(_STRIDE)))
        return self._replace(
            log_multiple=self.log_multiple + share * (chosen - self.log_multiple),
            n_told=min(total, _TELLING),
        )

    def of(self, spread: Spread, n_samples: float) -> tuple[Array, float]:
        """Return the `concentration` of each feature, and the `wideness` of the rows."""
        varies = spread.variance > 0
        if not self.weight or not varies.any():
            return np.ones_like(spread.mean), 0.0
        ratio = concentration(spread.variance, self.deviation / self.weight)
        middle = float(np.median(ratio[varies]))
        return ratio, wideness(int(np.count_nonzero(varies)), n_samples, middle)

    def factor(self, spread: Spread, n_samples: float) -> Array:
        """Return the factor of each penalty, as chosen so far."""
        ratio, width = self.of(spread, n_samples)
        return (np.exp(self.log_multiple) * ratio) ** width


class Chosen(NamedTuple):
    """What rows held out chose.

    Attributes
    ----------
    multiple : float
        Of the penalty, one at least.
    settings : Settings
        For the fit with it.
    start : ndarray of shape (p, t) or None
        Where to start it.
    n_passes : float
        Passes over X that the choice took.
    """

    multiple: float
    settings: Settings
    start: Array | None = None
    n_passes: float = 0.0


def choose_penalty(
    problem: Problem, settings: Settings, rng: np.random.Generator, width: float
) -> Chosen:
    """Choose the multiple of the penalty that predicts rows best which were held out.

    Each fit starts from that with the next larger penalty, the first, which is cheap, from the null
    model; they end where the loss on these rows rises.

    Parameters
    ----------
    problem : Problem
        The objective.
    settings : Settings
        Of the fit to come.
    rng : Generator
        Source of sketches.
    width : float
        `wideness`: penalties up to ``1024**width`` times that of the problem are tried.
    """
    n_passes = 0.0
    if settings.plan.preconditioner == "sample_space":
        space = in_sample_space(problem)
        settings, problem = replace(settings, space=space), space.problem
    train, test = _split(problem)
    if not len(test):
        return Chosen(1.0, settings)
    part, held_out = problem.of_rows(train), problem.of_rows(test)
    preconditioner = "exact" if settings.space else settings.plan.preconditioner
    inner = replace(
        settings,
        plan=settings.plan._replace(
            preconditioner=preconditioner,
            method="newton",
            n_batches=min(settings.plan.n_batches, part.n),
            share=1,
        ),
        tol=_TOL,
        max_iter=20,
        steps=StepSettings(),
        given=None,
        on_iteration=None,
        space=None,
    )
    # A prior does not depend on the number of rows; its share of the mean loss does
    alpha = np.asarray(part.alpha) * (problem.n / part.n)
    exponents = width * np.arange(_STEPS, -1, -1.0)
    losses: list[float] = []
    W, start = None, None
    for exponent in exponents:
        W, passes = approach(replace(part, alpha=alpha * _STRIDE**exponent), inner, rng, W)
        assert W is not None  # penalised, it is no infinity
        n_passes += passes * part.n / problem.n
        losses.append(held_out.mean_loss(held_out.predict(held_out.X, W)))
        if losses[-1] > min(losses):
            break
        start = W
    multiple = float(_STRIDE ** least_place(exponents[: len(losses)], np.array(losses)))
    if settings.space is not None:
        small = replace(problem, alpha=problem.alpha * multiple)
        space = replace(settings.space, problem=small)
        return Chosen(multiple, replace(settings, space=space), None, 0.0)
    return Chosen(multiple, settings, start, n_passes)


def _split(problem: Problem) -> tuple[Array, Array]:
    """Rows to learn from, and one of five of each class to judge by: the same in each fit."""
    rows = np.flatnonzero(problem.weighted(np.ones(problem.n)))
    Y = problem.Y[rows]
    labels = Y[:, 0] if Y.shape[1] == 1 else Y.argmax(axis=1)
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(rows), dtype=np.intp)
    rank[order] = np.arange(len(rows)) - np.repeat(first, counts)
    chosen = rank % HELD_OUT == HELD_OUT - 1
    return rows[~chosen], rows[chosen]


def least_place(x: Array, y: Array) -> float:
    """Place of the least value; of the parabola through its neighbours, if it has two."""
    best = int(np.argmin(y))
    if best in (0, len(y) - 1):
        return float(x[best])
    step = x[best] - x[best - 1]
    left, middle, right = y[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return float(x[best] + 0.5 * step * (left - right) / bend) if bend > 0 else float(x[best])
