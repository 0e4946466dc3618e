"""The regularised empirical risk, and what a pass over the data tells of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["Evaluation", "Problem"]

Array = npt.NDArray[np.float64]
_CHUNK_BYTES = 2**20


class Evaluation(NamedTuple):
    """What one pass over the data tells of the coefficients W."""

    raw: Array  # raw predictions, (n_samples, t)
    gradient: Array  # of the objective, (p, t)
    objective: float
    curvature: Array  # second derivative of each row's loss, (n_samples, t); ones if quadratic
    stiffness: Array  # what a preconditioner assumes of it
    leverage: Array | None  # estimates of v x' P^-1 x, (n_samples,), if probes were given


@dataclass(frozen=True)
class Problem:
    """A regularised empirical risk, ``mean(weight * loss) + alpha/2 ||coef||^2``.

    Attributes
    ----------
    X : ndarray, CSR or CSC of shape (n_samples, d)
        Features.
    Y : ndarray of shape (n_samples, t)
        Targets.
    weight : ndarray of shape (n_samples,) or None
        Sample weights with mean one.
    loss : Loss
        Elementwise, or `MultinomialLoss`.
    alpha : float
        Ridge penalty.
    has_intercept : bool
        Whether the first row of the coefficients W, of shape (p, t), is the intercept.
    count : float
        Number of observations that the rows stand for; zero takes the number of rows.
    """

    X: Any
    Y: Array
    weight: Array | None
    loss: Any
    alpha: float
    has_intercept: bool
    count: float = 0.0

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.Y.shape[0]

    @property
    def p(self) -> int:
        """Number of coefficients, the intercept included."""
        return self.X.shape[1] + self.has_intercept

    @property
    def quadratic(self) -> bool:
        """Whether the Hessian is the same everywhere."""
        return self.loss.name == "squared_error"

    def rows(self, index: Any) -> Any:
        """Take rows as float64, dense or CSR."""
        return self.X[index].astype(np.float64, copy=False)

    def chunks(self) -> Iterator[tuple[slice, Any]]:
        """Yield all rows, a piece at a time that stays in cache."""
        width = self.X.nnz / self.n if sparse.issparse(self.X) else self.X.shape[1]
        step = max(256, int(_CHUNK_BYTES / (8 * max(width, 1))))
        for start in range(0, self.n, step):
            piece = slice(start, min(start + step, self.n))
            yield piece, self.rows(piece)

    def predict(self, Z: Any, W: Array) -> Array:
        """Raw predictions of rows."""
        h = self.has_intercept
        raw = Z @ W[h:]
        if h:
            raw += W[0]
        return raw

    def adjoint(self, Z: Any, residual: Array) -> Array:
        """Sum of rows, each times its residual: of shape (p, t)."""
        out = np.empty((self.p, residual.shape[1]))
        h = self.has_intercept
        out[h:] = Z.T @ residual
        if h:
            out[0] = residual.sum(axis=0)
        return out

    def weighted(self, values: Array, piece: Any = slice(None)) -> Array:
        """Values of rows times their weights."""
        if self.weight is None:
            return values
        w = self.weight[piece]
        return values * (w[:, None] if values.ndim == 2 else w)

    def penalty_gradient(self, W: Array) -> Array:
        """Gradient of the penalty, which leaves the intercept alone."""
        out = self.alpha * W
        if self.has_intercept:
            out[0] = 0.0
        return out

    def penalty(self, W: Array) -> float:
        """Value of the penalty."""
        return 0.5 * self.alpha * float(np.sum(W[self.has_intercept :] ** 2))

    def mean_loss(self, raw: Array) -> float:
        """Weighted mean loss at raw predictions."""
        value = self.loss.value(self.Y, raw)
        if value.ndim == 2:
            value = value.sum(axis=1)
        return float(self.weighted(value).sum() / self.n)

    def evaluate(self, W: Array, probes: list[Array] | None = None) -> Evaluation:
        """Raw predictions, gradient, objective and, with probes T G, leverages: one pass."""
        raw = np.empty_like(self.Y)
        curvature = np.broadcast_to(1.0, raw.shape) if self.quadratic else np.empty_like(raw)
        stiffness = curvature if self.quadratic else np.empty_like(raw)
        gradient = np.zeros((self.p, self.Y.shape[1]))
        leverage = None if probes is None else np.zeros(self.n)
        objective = self.penalty(W)
        for piece, Z in self.chunks():
            f = raw[piece] = self.predict(Z, W)
            if self.quadratic:
                slope = f - self.Y[piece]
                value = 0.5 * slope**2
            else:
                value, slope, curvature[piece], stiffness[piece] = self.loss.all(self.Y[piece], f)
            if probes is not None and leverage is not None:
                leverage[piece] = self.leverages(piece, Z, stiffness[piece], probes)
            objective += float(self.weighted(value, piece).sum()) / self.n
            gradient += self.adjoint(Z, self.weighted(slope, piece))
        gradient = gradient / self.n + self.penalty_gradient(W)
        return Evaluation(raw, gradient, objective, curvature, stiffness, leverage)

    def leverages(self, piece: slice, Z: Any, stiffness: Array, probes: list[Array]) -> Array:
        """Estimate ``v x' P^-1 x`` of rows, summed over the columns of W, from probes T G."""
        leverage = np.zeros(Z.shape[0])
        for v, probe in zip(stiffness.T, probes, strict=False):
            image = self.predict(Z, probe)
            leverage += v * np.einsum("ij,ij->i", image, image)
        return self.weighted(leverage, piece)

    def hessian_product(
        self, raw: Array, U: Array, stiffness: Array | None = None
    ) -> tuple[Array, Array]:
        """Return H U, or that with another curvature, and the raw predictions of U: one pass."""
        raw_u = np.empty_like(raw)
        out = np.zeros_like(U)
        for piece, Z in self.chunks():
            f = raw_u[piece] = self.predict(Z, U)
            if stiffness is None:
                rows = self.row_hessian(raw[piece], f, piece)
            else:
                rows = stiffness[piece] * f
            out += self.adjoint(Z, self.weighted(rows, piece))
        return out / self.n + self.penalty_gradient(U), raw_u

    def row_hessian(self, raw: Array, direction: Array, piece: Any) -> Array:
        """Second derivative of each row's loss, times a direction in its raw predictions."""
        y = self.Y[piece]
        if hasattr(self.loss, "hessian_product"):
            return self.loss.hessian_product(y, raw, direction)
        return self.loss.curvature(y, raw) * direction
