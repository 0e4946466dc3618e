"""Damped Newton's method with exact Hessians, for rows in memory beside a model of others.

The objective is a sum, in the unit of the weights: the losses of the rows, a ridge, a linear term
and a quadratic, which stand for rows that are gone. Directions are found by conjugate gradients
with a factor of the Hessian as preconditioner: one product where it is made at the point itself and
the columns are not coupled, a few where it is older or the classes are coupled.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._kept_rows import KeptRows
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._preconditioner import whitening

__all__ = ["Minimum", "Objective", "Quadratic", "minimise", "whitened"]

Array = npt.NDArray[np.float64]
_ROUNDS = 100
_TOL = 1e-6  # of a statistical error
_LITTLE = 1e-2  # of a statistical error, where steps do not contract
_STEADY = 0.1
_PRODUCTS = 4  # that conjugate gradients may take before the factor is made anew
_DAMPING = 1e-2  # share of the stiffness beside the curvature, at first
_LEAST_DAMPING = 1e-8
_LEAST_RIDGE = 1e-8  # over a feature's sum of squares, where rows are fewer than features


class Quadratic(NamedTuple):
    """``|R w - q|^2 / 2`` for a column w of the coefficients."""

    root: Array  # R, upper triangular of shape (p, p)
    target: Array  # q, of shape (p,)


class Point(NamedTuple):
    """Coefficients, and what a pass over the rows told of them."""

    W: Array
    raw: Array
    value: float
    gradient: Array  # of the whole
    slope: Array  # of the rows and the linear term, without ridge and quadratic
    curvature: Array
    stiffness: Array
    energy: float  # sum of squared gradients of the rows, in their raw predictions
    rounding: float  # decrement that rounding leaves
    worst: float  # largest loss of a row


@dataclass(frozen=True)
class Objective:
    """Losses of rows, ``ridge/2 |coef|^2``, a linear term and quadratics.

    Attributes
    ----------
    rows : KeptRows
        Rows in memory, each for the weight that it stands for.
    loss : Loss
        Elementwise, or `MultinomialLoss`.
    has_intercept : bool
        Whether the first row of the coefficients, of shape (p, t), is the intercept.
    location : ndarray of shape (d,)
        Subtracted from the features; coefficients refer to what is left.
    ridge : ndarray of shape (d,)
        Penalty on each feature's coefficient, for all rows together.
    linear : ndarray of shape (p, t)
        Gradient to add.
    quadratics : tuple of Quadratic
        One a column, or none.
    count : float
        Observations that the weights stand for, over their sum.
    """

    rows: KeptRows
    loss: Any
    has_intercept: bool
    location: Array
    ridge: Array
    linear: Array
    quadratics: tuple[Quadratic, ...] = ()
    count: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Coefficients a column, and columns."""
        return self.rows.X.shape[1] + self.has_intercept, self.rows.Y.shape[1]

    def features(self, piece: slice) -> Any:
        """Rows less the location: dense, or sparse where that is zero."""
        X = self.rows.X[piece].astype(np.float64)
        if not self.location.any():
            return X
        return (X.toarray() if sparse.issparse(X) else X) - self.location

    def predict(self, W: Array) -> Array:
        """Raw predictions, of shape (n, t)."""
        h = self.has_intercept
        raw = np.empty((len(self.rows), W.shape[1]))
        for piece in self.rows.pieces():
            raw[piece] = self.features(piece) @ W[h:]
        return raw + W[0] if h else raw

    def adjoint(self, residual: Array) -> Array:
        """Sum of rows, each times its weight and residual: of shape (p, t)."""
        h = self.has_intercept
        out = np.zeros((self.shape[0], residual.shape[1]))
        residual = residual * self.rows.total[:, None]
        for piece in self.rows.pieces():
            out[h:] += self.features(piece).T @ residual[piece]
        if h:
            out[0] = residual.sum(axis=0)
        return out

    def value(self, W: Array, raw: Array) -> float:
        """Value of the whole, given the raw predictions."""
        loss = self.loss.value(self.rows.Y, raw)
        loss = loss.sum(axis=1) if loss.ndim == 2 else loss
        return float(self.rows.total @ loss) + self._rest(W)

    def _rest(self, W: Array) -> float:
        rest = 0.5 * float(np.sum(self.ridge[:, None] * W[self.has_intercept :] ** 2))
        rest += float(np.sum(self.linear * W))
        for w, (root, target) in zip(W.T, self.quadratics, strict=False):
            rest += 0.5 * float(np.sum((root @ w - target) ** 2))
        return rest

    def _rest_product(self, U: Array) -> Array:
        out = np.zeros_like(U)
        out[self.has_intercept :] = self.ridge[:, None] * U[self.has_intercept :]
        for j, (root, _) in enumerate(self.quadratics):
            out[:, j] += root.T @ (root @ U[:, j])
        return out

    def at(self, W: Array) -> Point:
        """Tell of coefficients what a pass over the rows does."""
        raw, weight = self.predict(W), self.rows.total
        loss, residual, curvature = self.loss.all(self.rows.Y, raw)
        loss = loss + self.loss.constant(self.rows.Y)
        stiffness = self.loss.stiffness(self.rows.Y, raw)
        loss = loss.sum(axis=1) if loss.ndim == 2 else loss
        slope = self.adjoint(residual) + self.linear
        gradient = slope + self._rest_product(W)
        for j, (root, target) in enumerate(self.quadratics):
            gradient[:, j] -= root.T @ target
        size = np.sum(weight @ (curvature * (raw**2 + self.rows.Y**2)))
        return Point(
            W,
            raw,
            float(weight @ loss) + self._rest(W),
            gradient,
            slope,
            curvature,
            stiffness,
            float(np.sum(weight @ residual**2)),
            float((64 * np.finfo(np.float64).eps) ** 2 * size),
            float(loss.max()),
        )

    def floor(self, point: Point, curvature: Array) -> float:
        """Statistical error: coefficients times the dispersion, in the unit of weights."""
        p, t = self.shape
        dispersion = 1.0  # of a likelihood of classes; and where no target tells a unit
        if not self.loss.likelihood and self.rows.Y.any():
            dispersion = point.energy / max(float(np.sum(self.rows.total @ curvature)), 1e-300)
        return dispersion * p * (t - (self.loss.coupling > 1)) / self.count

    def product(self, point: Point, U: Array, damping: float) -> tuple[Array, Array]:
        """Return H U, with a share of the stiffness beside the curvature, and raw predictions."""
        raw_u = self.predict(U)
        if self.loss.coupling > 1:
            rows = self.loss.hessian_product(self.rows.Y, point.raw, raw_u)
            rows += damping * point.stiffness * raw_u
        else:
            rows = (point.curvature + damping * point.stiffness) * raw_u
        return self.adjoint(rows) + self._rest_product(U), raw_u

    def factor(self, curvature: Array) -> Array:
        """Triangular root of the rows' second moment, so weighted; (p, p)."""
        p, h = self.shape[0], self.has_intercept
        root = np.zeros((0, p))
        scale = np.sqrt(curvature * self.rows.total)
        for piece in self.rows.pieces(4 * p):
            Z = self.features(piece)
            Z = Z.toarray() if sparse.issparse(Z) else Z
            Z = np.insert(Z, 0, 1.0, axis=1) if h else Z
            root = triangular_factor(np.concatenate([root, Z * scale[piece, None]]))
        return root

    def preconditioner(self, curvature: Array) -> list[Array]:
        """For each column T, with T T' the inverse of its block of the Hessian."""
        made = []
        for j, v in enumerate(curvature.T):
            root = self.factor(v)
            if self.quadratics:
                root = triangular_factor(np.concatenate([root, self.quadratics[j].root]))
            made.append(whitened(root, self.location, self.ridge, self.has_intercept)[0])
        return made

    def leverages(self, T: Array) -> Array:
        """Squared length of each row, intercept included, times T: of shape (n,)."""
        h = self.has_intercept
        out = np.empty(len(self.rows))
        for piece in self.rows.pieces():
            image = self.features(piece) @ T[h:]
            image = image + T[0] if h else image
            out[piece] = np.einsum("ij,ij->i", image, image)
        return out

    def separated(self, point: Point) -> bool:
        """Whether every row is on the side of its class, and nothing keeps W from growing.

        A row on the wrong side has a loss of log(2) at least, for several classes too.
        """
        return bool(
            self.loss.likelihood
            and not self.quadratics
            and not self.ridge.any()
            and point.worst < np.log(2)
            and self.value(point.W, point.raw) * self.count < np.log(2)
        )

    def null_model(self) -> Array:
        """Zero coefficients, and the intercept that fits the mean target."""
        W = np.zeros(self.shape)
        if self.has_intercept:
            weight = self.rows.total
            W[0] = self.loss.link(weight @ self.rows.Y / weight.sum())
        return W


@dataclass(frozen=True)
class Minimum:
    """Where the descent ended.

    Attributes
    ----------
    W : ndarray of shape (p, t)
        Coefficients, of the features less the location.
    slope : ndarray of shape (p, t)
        Gradient of rows and linear term there.
    separable : bool
        Whether it ended because there is no minimum.
    converged : bool
        Whether it ended at one, or there is none.
    """

    W: Array
    slope: Array
    separable: bool = False
    converged: bool = True


def whitened(root: Array, location: Array, ridge: Array, has_intercept: bool) -> tuple[Array, int]:
    """`whitening` for features less a location, which tells how far rounding goes.

    A constant feature less its mean is rounding error, to be judged by the feature itself.
    """
    raw = root
    if has_intercept:
        raw = root.copy()
        raw[0, 1:] += root[0, 0] * location
    T, n_clipped = whitening(raw, has_intercept=has_intercept, alpha=ridge)
    if has_intercept and root[0, 0] > 0:
        T[0, 1:] = -(root[0, 1:] / root[0, 0]) @ T[1:, 1:]
    return T, n_clipped


def minimise(objective: Objective, start: Minimum | None = None) -> Minimum:
    """Minimise; where rows are fewer than features, in their span."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        d = objective.rows.X.shape[1]
        gone = objective.quadratics or objective.linear.any()
        if len(objective.rows) < d and not gone:
            return _in_span(objective, start)
        return _descend(objective, start)


def _in_span(objective: Objective, start: Minimum | None) -> Minimum:
    """Minimise over combinations of the rows: all others only add to the norm.

    The norm is that of the ridge, or without one per standard deviation.
    """
    h = objective.has_intercept
    X = objective.features(slice(None))
    X = X.toarray() if sparse.issparse(X) else X
    if objective.ridge.any():
        # A feature that is constant so far has next to no ridge of its own
        least = _LEAST_RIDGE * (objective.rows.total @ X**2)
        unit = 1 / np.sqrt(np.maximum(objective.ridge, least))
        unit[np.isinf(unit)] = 0.0
    else:
        unit = 1 / np.maximum(np.sqrt(np.mean(X**2, axis=0)), 1e-300)
        unit[unit == 1e300] = 0.0
    basis, inner = np.linalg.qr((X * unit).T)
    reduced = replace(
        objective,
        rows=replace(objective.rows, X=inner.T),
        location=np.zeros(len(inner)),
        ridge=np.full(len(inner), float(objective.ridge.any())),
        linear=np.zeros((len(inner) + h, objective.shape[1])),
    )

    def outer(V: Array) -> Array:
        return np.concatenate([V[:h], unit[:, None] * (basis @ V[h:])])

    if start is not None:
        scaled = start.W[h:] / np.where(unit > 0, unit, np.inf)[:, None]
        inside = np.concatenate([start.W[:h], basis.T @ scaled])
        start = replace(start, W=inside)
    found = _descend(reduced, start)
    W = outer(found.W)
    return replace(found, W=W, slope=objective.at(W).slope)


def _start(objective: Objective, start: Minimum | None) -> Point:
    """Choose between where the last descent ended and the null model."""
    null = objective.at(objective.null_model())
    if start is None:
        return null
    last = objective.at(start.W)
    return last if last.value <= null.value else null


def _descend(objective: Objective, start: Minimum | None) -> Minimum:
    point = _start(objective, start)
    made: list[Array] = []
    damping = _DAMPING
    previous = np.inf
    separable = converged = False
    for _ in range(_ROUNDS):
        separable = objective.separated(point)
        if separable or converged:
            break
        fresh = not made
        made = made or objective.preconditioner(point.curvature + damping * point.stiffness)
        U, raw_u, decrement, products = _direction(objective, point, made, damping)
        # By the stiffness, which does not vanish where a loss is straight, the error is less
        floor = objective.floor(point, point.stiffness)
        # Along a recession, such as a class to come, little is left and less comes of every step
        receding = _STEADY * previous < decrement <= _LITTLE * floor
        converged = receding or decrement <= max(_TOL * floor, point.rounding)
        if products > _PRODUCTS or (converged and not fresh):
            made = []  # of another place, it may be blind to where the curvature has fallen
        converged = converged and fresh
        previous = decrement if fresh else previous
        # The last step is taken too
        t = _search(objective, point, U, raw_u)
        if not t:
            converged = fresh and damping >= 1  # a step that bounds the loss gains nothing
            if converged:
                break  # what is left is rounding
            made, damping = [], 1.0
            continue
        damping = max(0.1 * damping, _LEAST_DAMPING) if t == 1 else min(30 * damping, 1.0)
        point = objective.at(_centred(objective, point.W + t * U))
    return Minimum(point.W, point.slope, separable, converged or separable)


def _centred(objective: Objective, W: Array) -> Array:
    """Classes are determined up to what is added to all of them: their sum is zero."""
    return W - W.mean(axis=1, keepdims=True) if objective.loss.coupling > 1 else W


def _direction(
    objective: Objective, point: Point, made: list[Array], damping: float
) -> tuple[Array, Array, float, int]:
    """Solve ``H U = -gradient``; raw predictions of U, ``gradient' H^-1 gradient``, products."""
    U, raw_u = np.zeros_like(point.W), np.zeros_like(point.raw)
    residual, gained = -point.gradient, 0.0

    def solved(residual: Array) -> Array:
        columns = [T @ (T.T @ r) for T, r in zip(made, residual.T, strict=True)]
        return _centred(objective, np.column_stack(columns))

    z = solved(residual)
    direction, rho = z, float(np.sum(residual * z))
    goal, products = 1e-4 * rho, 0
    while rho > goal and products < 50:
        product, raw_direction = objective.product(point, direction, damping)
        products += 1
        curvature = float(np.sum(direction * product))
        if not curvature > 0:
            break
        step = rho / curvature
        gained += step * rho
        U, raw_u = U + step * direction, raw_u + step * raw_direction
        residual = residual - step * product
        z = solved(residual)
        rho, previous = float(np.sum(residual * z)), rho
        direction = z + (rho / previous) * direction
    return U, raw_u, gained, products


def _search(objective: Objective, point: Point, U: Array, raw_u: Array) -> float:
    """Halve the step until it descends; zero where rounding is all that is left."""
    slope = float(np.sum(point.gradient * U))
    slack = 1e-14 * abs(point.value)
    t = 1.0
    for _ in range(50):
        value = objective.value(point.W + t * U, point.raw + t * raw_u)
        if value <= point.value + 1e-4 * t * slope + slack:
            return t
        t *= 0.5
    return 0.0
