"""Batches of rows: what they weigh, how much noise they had, and the one that waits for more."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Batches", "PendingBatch"]

Array = npt.NDArray[np.float64]


class PendingBatch(NamedTuple):
    """A batch that waits for more rows: sums, and what `Batches` has of it."""

    sums: Array
    total: float
    rows: int
    squares: float
    residual: float
    curvature: float


class Batches(NamedTuple):
    """Batches with their rows' weights: sum, number, sum of squares; noise that they had.

    residual is the sum of ``(w r)^2`` and curvature that of ``w v``, of rows whose inherent noise
    is to be estimated.
    """

    total: Any
    rows: Any
    squares: Any
    residual: Any
    curvature: Any

    def part(self, index: Any) -> "Batches":
        """Return some of the batches."""
        return Batches(*(column[index] for column in self))

    @classmethod
    def of(
        cls,
        batch: npt.NDArray[np.int32],
        weights: Array | None,
        residual: npt.NDArray[np.floating] | None,
        curvature: npt.NDArray[np.floating] | None,
        *,
        estimated: bool,
    ) -> "Batches":
        """Count rows by the batch of each; `estimated` is whether their inherent noise is."""
        rows = np.bincount(batch)
        total, squares = rows.astype(np.float64), rows.astype(np.float64)
        if weights is not None:
            total = np.bincount(batch, weights).astype(np.float64)
            squares = np.bincount(batch, weights**2).astype(np.float64)
        noise = np.zeros((2, len(rows)))
        if estimated:
            w = np.ones(len(batch)) if weights is None else weights
            noise[1] = total if curvature is None else np.bincount(batch, w * curvature)
            if residual is not None:
                noise[0] = np.bincount(batch, (w * residual) ** 2)
        return cls(total, rows, squares, *noise)

    @property
    def shares(self) -> Array:
        """Sum of squared weights over the square of their sum: one over the rows, if equal."""
        return np.asarray(self.squares / self.total**2)

    def redrawn_squares(self, n_redraws: int) -> Array:
        """Squared weights of batches and their redraws, see `GradientSums.n_effective`."""
        squares = np.sum(self.total**2)
        rows = squares + (n_redraws - 1) * np.sum(self.squares)
        return n_redraws * np.array([rows, n_redraws * squares])
