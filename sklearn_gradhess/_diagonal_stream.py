"""Learn from a stream of wide data in O(p t) memory: a diagonal model of the rows that are gone.

Rows wait until they have as many entries as there are features. Then their loss and the model of
those before them are minimised together, on the features that have entries, and they join the
model: with the second derivatives where the descent ended, of each coefficient by itself after the
intercept is eliminated (diagonal Laplace, MATH section 7.6).
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._auto_penalty import HELD_OUT, Law, choose_penalty, least_place
from sklearn_gradhess._descent import Descent, Ending
from sklearn_gradhess._diagonal import hessian_squares
from sklearn_gradhess._kept_rows import KeptRows, join, joined_with
from sklearn_gradhess._loss import ScaledLoss
from sklearn_gradhess._online import Seen
from sklearn_gradhess._penalty import Penalty, Spread
from sklearn_gradhess._plan import Plan
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._solver import Settings, descend_by_diagonal
from sklearn_gradhess._squares import Squares

__all__ = ["DiagonalStream"]

Array = npt.NDArray[np.float64]
_ENTRIES = 0.25  # a feature, that rows have before they join the model
_ROWS = 1024  # and their number: within a block correlations are seen
_TOL = 1e-2  # statistical errors that a block's minimum may be missed by
_SCALES = 20  # that are tried for a solution
_CLOSE = 1e-3  # relative error of a scale that is none, times the root of the observations
_LEAST = 1e-3  # scale over the size of the targets, below which rows were fitted too well to tell
_NOTHING = 1e7  # decrement over the rounding of the objective: a millionth of its unit
_NEAR = np.log(2) * np.arange(-3, 4)  # steps of a logarithm of the penalty
_UNLIKELY = -np.log(1e-9)


@dataclass(frozen=True)
class Block(Problem):
    r"""Rows beside a quadratic model of others, per weight of the rows, which is the penalty.

    For D the distance from `anchor`, where the others and the ridge are at their minimum, it is

        ``total/2 (D_0 + mean' D)^2 + sum_j (scatter_j + ridge_j)/2 D_j^2``

    with `total`, `mean` and `scatter` of the others.
    """

    others: Squares = field(kw_only=True)
    anchor: Array = field(kw_only=True)

    def penalty(self, W: Array) -> float:
        """Value of the model."""
        D = W - self.anchor
        return 0.5 * float(np.sum(D * self._resist(D)))

    def pull(self, W: Array) -> Array:
        """Gradient of the model."""
        return self.resist(W - self.anchor)

    def resist(self, U: Array) -> Array:
        """Hessian of the model times a direction."""
        out = self._resist(U)
        # A shift of all classes by the same changes no loss, and no step makes one
        if self.loss.coupling > 1:
            out -= np.einsum("ij->i", out)[:, None] / out.shape[1]
        return out

    def _resist(self, U: Array) -> Array:
        h, others = int(self.has_intercept), self.others
        out = np.empty_like(U)
        out[h:] = (others.scatter + self.ridge[h:]) * U[h:]
        if h:
            out[0] = others.total * (U[0] + np.einsum("ij,ij->j", others.mean, U[1:]))
            out[1:] += others.mean * out[0]
        return out

    def null_model(self) -> Array:
        """Where classes are shifted together as at the anchor: no step shifts them so."""
        W = super().null_model()
        if self.loss.coupling > 1:
            W += self.anchor.mean(axis=1, keepdims=True)
        return W

    def with_others(self, squares: Squares) -> Squares:
        """Add those of the others."""
        return self.others.plus(squares)


class _Scale(NamedTuple):
    """Mean scale of the residuals of so many observations."""

    value: float = 0.0
    observations: float = 0.0

    def plus(self, value: float, observations: float) -> "_Scale":
        total = self.observations + observations
        return _Scale(self.value + (observations / total) * (value - self.value), total)


class _Solved(NamedTuple):
    """Coefficients with the rows that wait, and how they were found."""

    W: Array
    ridge: Array
    spread: Spread
    law: Law
    rows: KeptRows
    features: Any  # that have entries
    block: Block
    scale: _Scale
    found: Descent


@dataclass(frozen=True)
class DiagonalStream:
    """Coefficients, a diagonal model of the rows that are gone, and those that wait.

    Attributes
    ----------
    loss : Loss
        Elementwise, or `MultinomialLoss`.
    has_intercept : bool
        Whether the first row of the coefficients is the intercept.
    seen : Seen
        Rows and weights, those that wait included.
    W : ndarray of shape (p, t)
        Where the model stands: its minimum, beside the ridge.
    past : Squares
        Diagonal of its Hessian; one column where all targets share their curvature.
    ridge : ndarray of shape (d,)
        Penalty of each coefficient, for all rows of the model together.
    spread : Spread
        Of the features of the rows of the model.
    penalty : Penalty
        Of the coefficients.
    waiting : tuple of KeptRows
        Rows that are not in the model yet.
    scale : _Scale
        Of the residuals, if the loss has one.
    targets : ndarray of shape (t,)
        Sum of the targets in the model.
    separable : bool
        Whether every row so far was on the side of its class when it joined the model.
    trouble : str
        What a user should know of the solution.
    law : Law
        Of the automatic penalty.
    """

    loss: Any
    has_intercept: bool
    seen: Seen
    W: Array
    past: Squares
    ridge: Array
    spread: Spread
    penalty: Penalty = field(default_factory=Penalty)
    waiting: tuple[KeptRows, ...] = ()
    scale: _Scale = field(default_factory=lambda: _Scale())
    targets: Any = 0.0
    separable: bool = True
    trouble: str = ""
    law: Law = field(default_factory=Law)

    @classmethod
    def empty(
        cls, loss: Any, d: int, t: int, *, has_intercept: bool, seen: Seen
    ) -> "DiagonalStream":
        """Return the model of no rows."""
        W = np.zeros((d + has_intercept, t))
        past = Squares.empty(d, 1 if loss.quadratic else t)
        return cls(loss, has_intercept, seen, W, past, np.zeros(d), Spread.empty(d))

    @classmethod
    def from_fit(
        cls,
        loss: Any,
        squares: Squares,
        W: Array,
        *,
        has_intercept: bool,
        seen: Seen,
        ridge: Array,
        spread: Spread,
        law: Law,
        targets: Array,
    ) -> "DiagonalStream":
        """Return the model that stands for a fit which ended at W with this diagonal."""
        scale = _Scale(
            loss.scale if isinstance(loss, ScaledLoss) else 0.0, seen.weight * seen.per_weight
        )
        return cls(
            loss,
            has_intercept,
            seen,
            W,
            squares,
            ridge,
            spread,
            scale=scale,
            targets=targets,
            separable=False,
            law=law,
        )

    @property
    def n_targets(self) -> int:
        """Columns of the raw prediction."""
        return self.W.shape[1]

    @property
    def settled(self) -> bool:
        """Whether no row waits."""
        return not self.waiting

    @property
    def fitted(self) -> dict[str, float]:
        """What an estimator keeps of the loss: no scale before residuals have told one."""
        return self.loss.fitted if self.scale.observations else {}

    @property
    def coefficients(self) -> Array:
        """Coefficients of shape (p, t), the intercept first."""
        return self._solved.W if self.waiting else self.W

    def update(self, rows: KeptRows, penalty: Penalty) -> "DiagonalStream":
        """Return the model after more rows; few of them wait for others."""
        model = replace(
            self,
            seen=self.seen.plus(rows.weight),
            waiting=joined_with(self.waiting, rows),
            penalty=penalty,
        )
        entries = sum(
            part.X.nnz if sparse.issparse(part.X) else part.X.size for part in model.waiting
        )
        few = sum(len(part) for part in model.waiting) < _ROWS
        return model if few or entries < _ENTRIES * len(self.W) else model._absorbed()

    @cached_property
    def _solved(self) -> "_Solved":
        """Minimise the loss of the rows that wait and the model together."""
        rows, h = join(self.waiting), int(self.has_intercept)
        own = Spread.empty(rows.X.shape[1]).plus(rows.X, rows.weight)
        spread, weight = self.spread.merge(own), own.weight
        ridge = self.penalty.ridge(self.seen.weight, spread, self.seen.unit)
        features, X = _with_entries(rows.X)
        problem = Problem(
            X,
            rows.Y,
            rows.weight * (len(rows) / weight),
            self.loss,
            ridge[features] / weight,
            self.has_intercept,
            weight * self.seen.per_weight,
        )
        law = self.law
        if self.penalty.automatic:
            law = law.plus(rows.X, rows.weight, own.mean)
            law, factor = self._automatic(law, spread, features, problem)
            ridge = factor * ridge
        model = self._under(ridge)
        places = np.concatenate([np.arange(h), h + features])
        block = Block(
            problem.X,
            problem.Y,
            problem.weight,
            problem.loss,
            ridge[features] / weight,
            problem.has_intercept,
            problem.count,
            others=model.past.at(features).times(1 / weight),
            anchor=model.W[places],
        )
        block, scale, found = model._minimised(block)
        W = model.W.copy()
        W[places] = found.W
        return _Solved(W, model.ridge, spread, law, rows, features, block, scale, found)

    def _absorbed(self) -> "DiagonalStream":
        """Return the model with the rows that wait in it."""
        W, ridge, spread, law, rows, features, block, scale, found = self._solved
        curvature = None
        if not self.loss.quadratic:
            curvature = block.loss.curvature(rows.Y, block.predict(block.X, found.W))
        own = hessian_squares(block, curvature).times(float(rows.weight.sum()))
        separable = found.ending is Ending.SEPARABLE and self.separable
        return replace(
            self,
            loss=block.loss,
            W=W,
            past=self.past.plus_at(features, own),
            ridge=ridge,
            spread=spread,
            law=law,
            waiting=(),
            scale=scale,
            targets=self.targets + rows.weight @ rows.Y,
            separable=separable,
            trouble=self._trouble(rows, found, separable=separable),
        )

    def _automatic(
        self, law: Law, spread: Spread, features: Any, problem: Problem
    ) -> tuple[Law, Any]:
        """Return the law, which rows choose once it matters, and the factor of each penalty."""
        ratio, width = law.of(spread, self.seen.weight * self.seen.per_weight)
        if not width:
            return law, 1.0
        n_told = _n_told(problem.Y)
        if n_told and law.n_told:
            law = law.choosing(self._predicted_best(law, width, features, problem), n_told)
        elif n_told:
            least = replace(problem, alpha=problem.alpha * ratio[features] ** width)
            settings = Settings(Plan("diagonal", "newton", problem.n, 1))
            chosen = choose_penalty(least, settings, np.random.default_rng(0), width)
            law = law.choosing(np.log(chosen.multiple) / width, n_told / HELD_OUT)
        return law, (np.exp(law.log_multiple) * ratio) ** width

    def _predicted_best(self, law: Law, width: float, features: Any, problem: Problem) -> float:
        """Logarithm of the multiple with which the model predicts rows best it has not seen.

        It is near the last one: the model moves along the derivative of `_under`, and a prior whose
        standard deviation is the reach of that keeps rows from choosing by rounding.
        """
        h, ridge = int(self.has_intercept), self.ridge[:, None]
        after = self.past.scatter + ridge
        along = np.empty_like(self.W)
        along[h:] = np.divide(-width * ridge, after, out=np.zeros_like(after), where=after > 0)
        along[h:] *= self.W[h:]
        if h:
            along[0] = -np.einsum("ij,ij->j", self.past.mean, along[1:])
        places = np.concatenate([np.arange(h), h + features])
        raw, slope = (problem.predict(problem.X, W[places]) for W in (self.W, along))
        losses = np.array([problem.mean_loss(raw + step * slope) for step in _NEAR])
        doubt = np.square(_NEAR / _NEAR[-1]) / (2 * problem.observations)
        return law.log_multiple + least_place(_NEAR, losses + doubt)

    def _under(self, ridge: Array) -> "DiagonalStream":
        """Return the model under another ridge: its minimum in closed form."""
        if np.array_equal(ridge, self.ridge):
            return self
        h = int(self.has_intercept)
        before = self.past.scatter + self.ridge[:, None]
        after = self.past.scatter + ridge[:, None]
        ratio = np.divide(before, after, out=np.zeros_like(after), where=after > 0)
        W = self.W.copy()
        W[h:] *= ratio
        if h:  # raw predictions at the mean stay
            W[0] += np.einsum("ij,ij->j", self.past.mean, self.W[1:] - W[1:])
        return replace(self, W=W, ridge=ridge)

    def _minimised(self, block: Block) -> tuple[Block, _Scale, Descent]:
        """Minimise, at the scale that the residuals of the minimum have, if the loss has one."""
        start = block.anchor if self.past.total.any() or block.anchor.any() else None
        scale = self.scale
        if not isinstance(self.loss, ScaledLoss):
            return block, scale, descend_by_diagonal(block, start, _TOL)
        block, scale = self._at_scale_of(block, self.loss, start)
        if start is not None:  # residuals of rows that nothing was fitted to are honest ones
            return block, scale, descend_by_diagonal(block, start, _TOL)
        for _ in range(_SCALES):
            found = descend_by_diagonal(block, start, _TOL)
            start = found.W
            before = scale.value
            after, scale = self._at_scale_of(block, self.loss, start)
            if abs(np.log(scale.value / before)) <= _CLOSE / np.sqrt(scale.observations):
                break
            block = after
        return block, scale, found

    def _at_scale_of(self, block: Block, loss: ScaledLoss, W: Array | None) -> tuple[Block, _Scale]:
        """Return the block with the loss for the residuals of W, and of those before."""
        residual = block.Y[:, 0]
        residual = residual - (
            np.median(residual) if W is None else block.predict(block.X, W)[:, 0]
        )
        weight = block.weighted(np.ones(block.n))
        own = loss.residual_scale(residual, weight, block.observations, block.p)
        size = np.abs(block.Y).mean() or 1.0
        scale = self.scale.plus(max(own, _LEAST * size), block.observations)
        made = loss.at_scale(scale.value, scale.observations, len(self.W))
        return replace(block, loss=made), scale

    def _trouble(self, rows: KeptRows, found: Descent, *, separable: bool) -> str:
        n_rows = self.seen.n_rows
        if separable:
            return (
                f"The classes are separable: of the {n_rows} rows so far every one is on the side "
                "of its class, so that without a penalty there is no solution yet, and "
                "coefficients grow without end. Pass alpha > 0, or go on with more rows."
            )
        if self.loss.likelihood and self._sorts(rows):
            return (
                f"The last {len(rows)} of {n_rows} rows are of one class: the order of the rows "
                "sorts by the target, which costs accuracy. Shuffle the rows, or use fit."
            )
        left = found.look.decrement > _NOTHING * found.look.point.slack
        if left and found.ending in (Ending.STALLED, Ending.EXHAUSTED):
            return (
                f"No finite minimum was found for the {n_rows} rows so far: the loss is too flat, "
                "or has none, such as that of a Poisson model without a single count. Pass "
                "alpha > 0, or go on with more rows."
            )
        return ""

    def _sorts(self, rows: KeptRows) -> bool:
        """Whether rows have one target, as by chance they would not."""
        target = rows.Y[0]
        if len(rows) < _ROWS or (target != rows.Y).any():
            return False
        before = self.seen.weight - float(rows.weight.sum())
        if not self.past.total.any():
            return True
        others = float(np.abs(self.targets / before - target).max())
        return len(rows) * others > _UNLIKELY


def _n_told(Y: Array) -> int:
    """Rows that are not of the largest class."""
    counts = Y.sum(axis=0)
    largest = max(counts.max(), len(Y) - counts.max() if Y.shape[1] == 1 else 0.0)
    return int(len(Y) - largest)


def _with_entries(X: Any) -> tuple[Any, Any]:
    """Features that have entries, and the rows as far as these go."""
    if not sparse.issparse(X):
        return np.arange(X.shape[1]), X
    there = np.zeros(X.shape[1], dtype=bool)
    there[X.indices] = True
    place = (np.cumsum(there) - 1).astype(X.indices.dtype)
    features = np.flatnonzero(there)
    narrow = sparse.csr_array((X.data, place[X.indices], X.indptr), (X.shape[0], len(features)))
    return features, narrow
