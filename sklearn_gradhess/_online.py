"""Learn from a stream: one pass, memory for a few triangular factors.

Every row leaves a quadratic model of its loss, ``v (raw - q)^2 / 2`` with the curvature v and the
working response ``q = raw - gradient / v`` at the coefficients of its time. The models add up in
the triangular factor of the rows ``sqrt(v) (z, q)``, and the coefficients are the minimiser of the
sum. For the squared loss the models are exact, and so is the result: least squares on all rows
seen, after every chunk. For other losses the models of the first rows, made at poor coefficients,
are dropped once they are an eighth of the whole.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._preconditioner import factorize, whitening
from sklearn_gradhess._rows import Problem

__all__ = ["OnlineModel"]

Array = npt.NDArray[np.float64]
# Curvature below which a row tells nothing of where its loss is minimal
_FLAT = 1e-6
_REFITS = 4
_FIRST_REFITS = 50  # of the first chunk, which starts from nothing


@dataclass(frozen=True)
class _Block:
    """Models of a run of rows: for each column of W the factor of its rows, of shape (p+1, p+1)."""

    factors: tuple[Array, ...]
    n_rows: float

    def add(self, rows: list[Array], n_rows: float) -> "_Block":
        factors = tuple(
            triangular_factor(np.vstack([f, r])) for f, r in zip(self.factors, rows, strict=True)
        )
        return _Block(factors, self.n_rows + n_rows)


@dataclass(frozen=True)
class OnlineModel:
    """The quadratic models of a stream, and their minimiser; a value, never changed in place.

    Attributes
    ----------
    W : ndarray of shape (p, t)
        Coefficients.
    blocks : tuple
        Models of consecutive runs of rows, each about as long as all before it.
    n_clipped : int
        Directions that the rows seen do not determine.
    """

    W: Array
    blocks: tuple[_Block, ...] = ()
    n_clipped: int = 0

    @property
    def n_rows(self) -> float:
        """Weight of the rows that the models stand for."""
        return sum(block.n_rows for block in self.blocks)

    def starting_from(self, factors: list[Array], n_rows: float, problem: Problem) -> "OnlineModel":
        """Return the model that stands for a solution W and its Hessian, over so many rows."""
        root = np.sqrt(n_rows)
        # Where W is penalised the loss alone has a slope: minus that of the penalty
        slope = problem.penalty_gradient(self.W)
        whole = tuple(
            root * triangular_factor(np.column_stack([f, f @ w + f @ factorize(f).solve(g)]))
            for f, w, g in zip(_one_a_column(factors, self.W), self.W.T, slope.T, strict=True)
        )
        return replace(self, blocks=(_Block(whole, n_rows),))

    def update(self, chunk: Problem) -> "OnlineModel":
        """Return the model after another chunk, whose weights are not normalised."""
        n_rows = float(chunk.n if chunk.weight is None else chunk.weight.sum())
        if not n_rows:
            return self
        kept, last = self._rotated(n_rows, quadratic=chunk.quadratic)
        Z = chunk.rows(slice(None))
        Z = Z.toarray() if hasattr(Z, "toarray") else Z
        if chunk.has_intercept:
            Z = np.column_stack([np.ones(len(Z)), Z])
        W, clipped = self.W, 0
        if not self.blocks and not chunk.quadratic and chunk.has_intercept and not W.any():
            W = W.copy()
            W[0] = chunk.loss.link(chunk.weighted(chunk.Y).sum(axis=0) / n_rows)
        refits = _REFITS if self.blocks else _FIRST_REFITS
        for _ in range(1 if chunk.quadratic else refits):
            block = last.add(_models(chunk, Z, W), n_rows)
            before, (W, clipped) = W, _minimiser((*kept, block), chunk)
            if np.allclose(W, before, rtol=1e-6):
                break
        return replace(self, W=W, blocks=(*kept, block), n_clipped=clipped)

    def _rotated(self, n_rows: float, *, quadratic: bool) -> tuple[tuple[_Block, ...], _Block]:
        """Blocks that stay as they are, and the one that the next rows go to."""
        p, t = self.W.shape
        empty = _Block(tuple(np.zeros((p + 1, p + 1)) for _ in range(t)), 0.0)
        if quadratic:
            return self.blocks[:-1], self.blocks[-1] if self.blocks else empty
        blocks = self.blocks
        if blocks and 8 * blocks[0].n_rows < self.n_rows + n_rows and len(blocks) > 1:
            blocks = blocks[1:]
        if not blocks or blocks[-1].n_rows >= sum(b.n_rows for b in blocks[:-1]):
            return blocks, empty
        return blocks[:-1], blocks[-1]


def _one_a_column(factors: list[Array], W: Array) -> list[Array]:
    return list(factors) if len(factors) > 1 else list(factors) * W.shape[1]


def _models(chunk: Problem, Z: Array, W: Array) -> list[Array]:
    """Rows ``sqrt(w v) (z, q)`` for each column of W."""
    raw = Z @ W
    gradient = chunk.loss.gradient(chunk.Y, raw)
    if chunk.loss.name in ("huber", "poisson"):
        # Their second derivative may vanish or explode over a step; the secant does not
        curvature = chunk.loss.stiffness(chunk.Y, raw)
    else:
        curvature = np.maximum(chunk.loss.curvature(chunk.Y, raw), _FLAT)
    if chunk.loss.coupling > 1:
        curvature = 2 * curvature  # bounds the Hessian, whose columns are coupled
    response = raw - gradient / curvature
    root = np.sqrt(chunk.weighted(curvature))
    return [
        root[:, j, None] * np.column_stack([Z, response[:, j]]) for j in range(response.shape[1])
    ]


def _minimiser(blocks: tuple[_Block, ...], chunk: Problem) -> tuple[Array, int]:
    """Minimise the sum of the models, plus the penalty times the rows."""
    p, n_rows = chunk.p, sum(block.n_rows for block in blocks)
    columns, clipped = [], 0
    for j in range(len(blocks[0].factors)):
        rows = [block.factors[j] for block in blocks]
        ridge = np.full(p, chunk.alpha * n_rows)
        if not chunk.quadratic:
            # One row's worth of ridge, in the units of each feature: early rows may be separable
            square = sum(np.sum(r[:, :p] ** 2, axis=0) for r in rows)
            ridge += square / n_rows
        factor = triangular_factor(np.vstack(rows))
        h = chunk.has_intercept
        T, n_clipped = whitening(factor[:p, :p], has_intercept=h, alpha=ridge[h:])
        columns.append(T @ (T.T @ (factor[:p, :p].T @ factor[:p, p])))
        clipped = max(clipped, n_clipped)
    return np.column_stack(columns), clipped
