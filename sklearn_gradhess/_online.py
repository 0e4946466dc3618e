"""Learn from a stream: any chunking of the same rows ends where `fit` on them does.

Two models, both values that are never changed in place. Least squares adds rows up in a triangular
factor, which is exact. Every other convex loss keeps rows: all of them while they are few, then a
weighted sample of the past and the rows that came since. The past is the loss of the sample plus
the linear term that makes the gradient of the two what it was for the rows themselves, where the
stream stood when it was last thinned out (MATH section 10). So nothing is assumed of how far the
coefficients may still move, and where they hardly move, the sample's error hardly matters.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._block_newton import (
    Minimum,
    Objective,
    Point,
    Quadratic,
    minimise,
    whitened,
)
from sklearn_gradhess._kept_rows import KeptRows, join, joined_with, thinned
from sklearn_gradhess._loss import ScaledLoss
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._penalty import Penalty, Spread

__all__ = ["ConvexStream", "LeastSquaresStream", "OnlineModel", "Seen", "start_stream"]

Array = npt.NDArray[np.float64]
_ROWS = 64  # of the past, a coefficient
_LEAST_ROWS = 1024
_DOUBT = 0.1  # statistical errors that the sample may add without a word
_MANY = 10  # rows a coefficient that should have seen two classes
_SCALES = 20  # that are tried for a solution
_CLOSE = 1e-3  # relative error of a scale that is none, times the root of the observations
_GROWTH = 1.25  # of the rows, until a solution that nobody has asked for is found


class Seen(NamedTuple):
    """How much has been seen, in the unit of the first weights."""

    unit: float = 0.0
    n_rows: int = 0
    weight: float = 0.0
    square: float = 0.0  # sum of squared weights

    def plus(self, weight: Array) -> "Seen":
        """Count more rows."""
        return self._replace(
            n_rows=self.n_rows + len(weight),
            weight=self.weight + float(weight.sum()),
            square=self.square + float(weight @ weight),
        )

    @property
    def per_weight(self) -> float:
        """Observations over weight, as in a fit: repetitions, or Kish's effective size."""
        return max(self.unit, self.weight / self.square)


def _dense(rows: KeptRows, piece: slice) -> Array:
    X = rows.X[piece].astype(np.float64)
    return X.toarray() if sparse.issparse(X) else X


@dataclass(frozen=True)
class LeastSquaresStream:
    """Triangular factor of the rows (1, x, y), about a location near their mean.

    Attributes
    ----------
    loss : SquaredLoss
        The loss.
    has_intercept : bool
        Whether rows start with a one.
    factor : ndarray of shape (p + t, p + t)
        Upper triangular, of rows less `location`.
    location : ndarray of shape (d + t,)
        Of x and y; zero without an intercept.
    n_targets : int
        Number t of targets.
    seen : Seen
        Rows and weights, those that wait included.
    waiting : tuple of KeptRows
        Rows that are not in the factor yet.
    penalty : Penalty
        Of the coefficients.
    spread : Spread
        Of the features of all rows, those that wait included.
    """

    loss: Any
    has_intercept: bool
    factor: Array
    location: Array
    n_targets: int
    seen: Seen
    waiting: tuple[KeptRows, ...] = ()
    penalty: Penalty = field(default_factory=Penalty)
    spread: Spread = field(default_factory=lambda: Spread.empty(0))

    @classmethod
    def empty(
        cls, loss: Any, d: int, t: int, *, has_intercept: bool, seen: Seen
    ) -> "LeastSquaresStream":
        """Return the model of no rows."""
        size = d + has_intercept + t
        return cls(
            loss,
            has_intercept,
            np.zeros((size, size)),
            np.zeros(d + t),
            t,
            seen,
            spread=Spread.empty(d),
        )

    @classmethod
    def from_fit(
        cls,
        loss: Any,
        quadratics: list[Quadratic],
        *,
        has_intercept: bool,
        seen: Seen,
        spread: Spread,
    ) -> "LeastSquaresStream":
        """Return the model that stands for quadratics, one a target, of one root."""
        root = quadratics[0].root
        t = len(quadratics)
        factor = np.pad(np.column_stack([root, *(q.target for q in quadratics)]), ((0, t), (0, 0)))
        d = len(root) - has_intercept
        return cls(loss, has_intercept, factor, np.zeros(d + t), t, seen, spread=spread)

    def update(self, rows: KeptRows, penalty: Penalty) -> "LeastSquaresStream":
        """Return the model after more rows; few of them wait for others."""
        waiting = joined_with(self.waiting, rows)
        model = replace(
            self,
            seen=self.seen.plus(rows.weight),
            waiting=waiting,
            penalty=penalty,
            spread=self.spread.plus(rows.X, rows.weight),
        )
        n_waiting = sum(len(part) for part in waiting)
        if self.seen.n_rows and n_waiting < len(self.factor) // 2:
            return model
        location, factor = model._with_waiting()
        return replace(model, location=location, factor=factor, waiting=())

    @property
    def settled(self) -> bool:
        """Whether no row waits."""
        return not self.waiting

    @property
    def fitted(self) -> dict[str, float]:
        """What an estimator keeps of the loss: nothing."""
        return {}

    @property
    def trouble(self) -> str:
        """What a user should know of the solution: there is nothing."""
        return ""

    def _with_waiting(self) -> tuple[Array, Array]:
        """Location and factor of all rows."""
        location, factor = self.location, self.factor
        h = int(self.has_intercept)
        for rows in self.waiting:
            for piece in rows.pieces(4 * len(factor)):
                values = np.concatenate([_dense(rows, piece), rows.Y[piece]], axis=1)
                weight = rows.weight[piece]
                root = np.sqrt(weight)[:, None]
                if h:
                    before = factor[0, 0] ** 2
                    mean = location + (factor[0, 1:] / factor[0, 0] if before else 0.0)
                    share = weight / (before + weight.sum())
                    moved = mean + share @ (values - mean)
                    factor = _shifted(factor, moved - location)
                    location = moved
                    values = np.concatenate([root, root * (values - location)], axis=1)
                else:
                    values = root * values
                factor = triangular_factor(np.concatenate([factor, values]))
        return location, factor

    @cached_property
    def coefficients(self) -> Array:
        """Ridge regression on all rows seen."""
        location, factor = self._with_waiting()
        h = int(self.has_intercept)
        p = self._d + h
        root, target = factor[:p, :p], factor[:p, p:]
        ridge = self.penalty.ridge(self.seen.weight, self.spread, self.seen.unit)
        T, _ = whitened(root, location[: self._d], ridge, self.has_intercept)
        T, filled = T[:, T.any(axis=0)], root.any(axis=1)  # few, of few rows
        root, target = root[filled], target[filled]
        # The columns of root T are orthonormal: nothing cancels, as it would in T' root'
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is looked for, and said
            W = T @ ((root @ T).T @ target)
            if h:
                W[0] += location[self._d :] - location[: self._d] @ W[1:]
        return W

    @property
    def _d(self) -> int:
        return len(self.location) - self.n_targets


def _shifted(factor: Array, shift: Array) -> Array:
    """Factor of rows (1, x) after subtracting a shift from x."""
    factor = factor.copy()
    factor[0, 1:] -= factor[0, 0] * shift
    return factor


@dataclass(frozen=True)
class ConvexStream:
    """Rows of a stream under a convex loss: those that wait, and a sample of the past.

    Memory is for ``max(64 p, 1024)`` rows of the past and a quarter of that which wait.

    Attributes
    ----------
    loss : Loss
        Elementwise, or `MultinomialLoss`.
    has_intercept : bool
        Whether the first row of coefficients is the intercept.
    location : ndarray of shape (d,)
        What coefficients, `linear` and `quadratics` refer to: features are less that.
    linear : ndarray of shape (p, t)
        Gradient of the past less that of the sample, at `anchor`.
    anchor : ndarray of shape (p, t)
        Coefficients when rows last went to the sample.
    seen : Seen
        Rows and weights, those that wait included.
    quadratics : tuple of Quadratic
        Model of the rows of a fit that went before.
    past : KeptRows or None
        Sample of the past.
    waiting : tuple of KeptRows
        Rows since.
    last : Minimum or None
        Where the stream stood `n_solved` rows in.
    n_solved : int
        Rows then.
    separable : bool
        Whether all rows so far are known to be on the side of their class, of two at least.
    one_class : bool
        Whether there has been but one class so far, in many rows.
    doubt : float
        Variance that the sample has added to the solution, in statistical errors.
    penalty : Penalty
        Of the coefficients.
    spread : Spread
        Of the features of all rows, those that wait included.
    law : Law or None
        Of the automatic penalty that a fit before has chosen.
    """

    loss: Any
    has_intercept: bool
    location: Array
    linear: Array
    anchor: Array
    seen: Seen
    quadratics: tuple[Quadratic, ...] = ()
    past: KeptRows | None = None
    waiting: tuple[KeptRows, ...] = ()
    last: Minimum | None = None
    n_solved: int = 0
    separable: bool = False
    one_class: bool = False
    doubt: float = 0.0
    penalty: Penalty = field(default_factory=Penalty)
    spread: Spread = field(default_factory=lambda: Spread.empty(0))
    law: Any = None

    @classmethod
    def empty(cls, loss: Any, d: int, t: int, *, has_intercept: bool, seen: Seen) -> "ConvexStream":
        """Return the model of no rows."""
        zero = np.zeros((d + has_intercept, t))
        spread = Spread.empty(d)
        return cls(loss, has_intercept, np.zeros(d), zero, zero, seen, spread=spread)

    @classmethod
    def from_fit(
        cls,
        loss: Any,
        quadratics: list[Quadratic],
        W: Array,
        *,
        has_intercept: bool,
        seen: Seen,
        spread: Spread,
        law: Any,
    ) -> "ConvexStream":
        """Return the model that stands for a fit which ended at W."""
        model = cls.empty(
            loss, len(W) - has_intercept, W.shape[1], has_intercept=has_intercept, seen=seen
        )
        last = Minimum(W, np.zeros_like(W))
        return replace(
            model,
            quadratics=tuple(quadratics),
            last=last,
            n_solved=seen.n_rows,
            spread=spread,
            law=law if law.weight else None,
        )

    @property
    def n_targets(self) -> int:
        """Columns of the raw prediction."""
        return self.linear.shape[1]

    @property
    def fitted(self) -> dict[str, float]:
        """What an estimator keeps of the loss."""
        return dict(self.loss.fitted)

    @property
    def capacity(self) -> int:
        """Rows of the past to keep."""
        return max(_ROWS * len(self.linear), _LEAST_ROWS)

    @property
    def settled(self) -> bool:
        """Whether no row has come since the last solution."""
        return self.n_solved == self.seen.n_rows

    def update(self, rows: KeptRows, penalty: Penalty) -> "ConvexStream":
        """Return the model after more rows; few of them wait for others."""
        spread, law = self.spread.plus(rows.X, rows.weight), self.law
        if law is not None and penalty.automatic:
            law = law.plus(rows.X, rows.weight, spread.mean)
        model = replace(
            self,
            seen=self.seen.plus(rows.weight),
            waiting=joined_with(self.waiting, rows),
            penalty=penalty,
            spread=spread,
            law=law,
        )
        n_waiting = sum(len(part) for part in model.waiting)
        full = n_waiting >= max(self.capacity // 4, _LEAST_ROWS)
        n_rows = model.seen.n_rows
        if not full and n_rows < _GROWTH * self.n_solved:
            return replace(
                model,
                separable=self.separable and self._separates(rows),
                one_class=self.one_class and model._uniform,
            )
        model = model._recentred()
        model, found = model._solved()
        uniform = model._uniform
        model = replace(
            model,
            last=found,
            n_solved=n_rows,
            separable=found.separable and not uniform,
            one_class=uniform and self.loss.likelihood and n_rows >= _MANY * len(self.linear),
        )
        return model._absorbed(found) if full else model

    @property
    def _uniform(self) -> bool:
        """Whether every row in memory has the same target."""
        parts = [*([] if self.past is None else [self.past]), *self.waiting]
        return not any((part.Y - parts[0].Y[0]).any() for part in parts)

    @property
    def trouble(self) -> str:
        """What a user should know of the last solution."""
        n_rows = self.seen.n_rows
        if self.separable:
            return (
                f"The classes are separable: of the {n_rows} rows so far every one is on the side "
                "of its class, so that without a penalty there is no solution yet, and "
                "coefficients grow without end. Pass alpha > 0, or go on with more rows."
            )
        if self.one_class:
            return (
                f"All of the {n_rows} rows so far are of one class: the order of the rows sorts by "
                "the target, which costs accuracy. Shuffle the rows, or use fit."
            )
        if self.doubt > _DOUBT:
            return (
                "The order of the rows sorts by the target (or the loss is almost straight, such "
                "as 'huber' with a small epsilon): the solution moved so far that the sample kept "
                f"of {n_rows} rows adds {self.doubt:.1f} statistical errors to it at least. "
                "Shuffle the rows, or use fit."
            )
        if self.last is not None and not self.last.converged:
            return (
                f"No finite minimum was found for the {n_rows} rows so far: the loss is too flat, "
                "or has none, such as that of a Poisson model without a single count. Pass "
                "alpha > 0, or go on with more rows."
            )
        return ""

    def _separates(self, rows: KeptRows) -> bool:
        """Whether the last solution puts rows on the side of their class."""
        assert self.last is not None
        objective = self._objective(rows)
        return objective.at(self.last.W).worst < np.log(2)

    @cached_property
    def solution(self) -> Minimum:
        """The minimum for all rows seen, and what is known of it."""
        if self.settled:
            return self.last or Minimum(self.anchor, self.linear)  # of no rows: zero
        return self._solved()[1]

    def _solved(self) -> tuple["ConvexStream", Minimum]:
        """Minimise, at the scale that the residuals of the minimum have, if the loss has one."""
        model = self
        if isinstance(self.loss, ScaledLoss) and not (self.n_solved or self.quadratics):
            model = model._at_scale_of(np.zeros_like(self.linear))
        found = minimise(model._objective(), model.last)
        # Of the rows of a fit nothing is kept that would tell their scale: it stays
        if not isinstance(self.loss, ScaledLoss) or self.quadratics:
            return model, found
        for _ in range(_SCALES):
            after = model._at_scale_of(found.W)
            if abs(np.log(after.loss.scale / model.loss.scale)) <= _CLOSE / np.sqrt(self._count):
                break
            model, found = after, minimise(after._objective(), found)
        return model, found

    @property
    def _count(self) -> float:
        """Observations seen."""
        return self.seen.weight * self.seen.per_weight

    def _at_scale_of(self, W: Array) -> "ConvexStream":
        """Return the model with the loss for the residuals of W."""
        objective, p = self._objective(), len(W)
        residual = (objective.rows.Y - objective.predict(W))[:, 0]
        if not W.any():
            residual = residual - np.median(residual)
        weight = objective.rows.total * (len(residual) / objective.rows.total.sum())
        scale = self.loss.residual_scale(residual, weight, self._count, p)
        size = np.abs(objective.rows.Y).mean() or 1.0
        loss = self.loss.at_scale(max(scale, 1e-9 * size), self._count, p)
        return replace(self, loss=loss)

    @property
    def coefficients(self) -> Array:
        """Coefficients of shape (p, t), the intercept first."""
        W = self.solution.W
        if self.has_intercept:
            W = W.copy()
            W[0] -= self.location @ W[1:]
        return W

    def _rows(self) -> KeptRows:
        return join([*([] if self.past is None else [self.past]), *self.waiting])

    def _objective(self, rows: KeptRows | None = None) -> Objective:
        return Objective(
            self._rows() if rows is None else rows,
            self.loss,
            self.has_intercept,
            self.location,
            self._ridge,
            self.linear,
            self.quadratics,
            self.seen.per_weight,
        )

    @property
    def _ridge(self) -> Array:
        ridge = self.penalty.ridge(self.seen.weight, self.spread, self.seen.unit)
        if self.law is not None and self.penalty.automatic:
            ridge = ridge * self.law.factor(self.spread, self._count)
        return ridge

    def _recentred(self) -> "ConvexStream":
        """Return the same model with the features less their mean, where that costs nothing."""
        if not self.has_intercept:
            return self
        rows = self._rows()
        location = np.zeros_like(self.location)
        if not sparse.issparse(rows.X):
            share = rows.total / rows.total.sum()
            first = rows.X[0].astype(np.float64)
            location = first + sum(
                share[piece] @ (rows.X[piece].astype(np.float64) - first) for piece in rows.pieces()
            )
        shift = location - self.location

        def moved(W: Array) -> Array:  # raw predictions stay
            return np.concatenate([W[:1] + shift @ W[1:], W[1:]])

        linear = self.linear.copy()
        linear[1:] -= shift[:, None] * linear[0]
        last = self.last and replace(self.last, W=moved(self.last.W))
        return replace(
            self,
            location=location,
            linear=linear,
            anchor=moved(self.anchor),
            quadratics=tuple(q._replace(root=_shifted(q.root, shift)) for q in self.quadratics),
            last=last,
        )

    def _absorbed(self, found: Minimum) -> "ConvexStream":
        """Return the model after the rows that wait have gone to the past."""
        rows = self._rows()
        objective = self._objective(rows)
        point = objective.at(found.W)
        kept = thinned(
            rows,
            _importance(objective, point),
            self.capacity,
            np.random.default_rng([self.seen.n_rows, *b"stream"]),
        )
        # Separated rows have less of a gradient than one on the wrong side: none, lest a sample's
        # error in it lead away without end
        linear = np.zeros_like(self.linear) if found.separable else self.linear
        if kept is not rows and not found.separable:
            sampled = replace(objective, rows=kept, linear=np.zeros_like(self.linear))
            linear = found.slope - sampled.at(found.W).slope
        return replace(
            self,
            past=kept,
            waiting=(),
            linear=linear,
            anchor=found.W,
            doubt=self._doubt(objective, point),
        )

    def _doubt(self, objective: Objective, point: Point) -> float:
        """Add the variance of what the sample says of the gradient between two places.

        Against that of the gradient of all rows, which for a likelihood of classes is the Hessian.
        """
        past = self.past
        if past is None or not (past.share < 1).any():
            return self.doubt
        own = point.curvature
        if not self.loss.likelihood:
            own = self.loss.gradient(objective.rows.Y, point.raw) ** 2
        sampled = self._objective(past)
        change = self.loss.gradient(past.Y, sampled.predict(point.W))
        change -= self.loss.gradient(past.Y, sampled.predict(self.anchor))
        variance = past.total**2 * (1 - past.share)
        added = sum(
            float((variance * c**2) @ sampled.leverages(_whitened(objective, v)))
            for c, v in zip(change.T, own.T, strict=True)
        )
        p, t = point.W.shape
        before = self.seen.weight - sum(float(part.weight.sum()) for part in self.waiting)
        share = added * self.seen.per_weight / (p * (t - (self.loss.coupling > 1)))
        return self.doubt * before / self.seen.weight + share


OnlineModel = LeastSquaresStream | ConvexStream


def start_stream(loss: Any, d: int, t: int, *, has_intercept: bool, unit: float) -> OnlineModel:
    """Return the model of no rows."""
    kind = LeastSquaresStream if loss.quadratic else ConvexStream
    return kind.empty(loss, d, t, has_intercept=has_intercept, seen=Seen(unit))


def _whitened(objective: Objective, v: Array) -> Array:
    """T, with T T' the inverse of the rows' second moment, so weighted."""
    free = np.zeros(len(objective.location))
    root = objective.factor(v)
    return whitened(root, objective.location, free, objective.has_intercept)[0]


def _importance(objective: Objective, point: Point) -> Array:
    """Leverage of rows, by their second moment and by their stiffness, and their weight."""
    total = objective.rows.total
    importance = len(point.W) * total / total.sum()
    importance += total * objective.leverages(_whitened(objective, np.ones(len(total))))
    for v in point.stiffness.T:
        if not (largest := v.max()) > 0:
            continue
        v = v / largest  # where every count was zero so far it is a number next to none
        importance += total * v * objective.leverages(_whitened(objective, v))
    return importance
