"""What an attack may do to a table: which columns move, by how much, and what that changes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._risk import dual_norm
from sklearn_gradhess._table import Table, batches

__all__ = ["Attack", "AttackOnTable"]

Array = npt.NDArray[np.float64]


@dataclass(eq=False, repr=False)
class Attack:
    """What an attack may do, before it is known to what data."""

    norm: Any
    feature_scale: Any
    features: Any
    bounds: Any
    covariance: Any
    scale_name: str = "feature_scale"

    def __post_init__(self) -> None:
        matrix = getattr(self.covariance, "covariance_", self.covariance)
        d = len(matrix) if np.ndim(matrix) == 2 else 1
        dual_norm(np.zeros(d), self.norm, covariance=self.covariance)  # raises what is wrong
        if matrix is not None and self.feature_scale is not None:
            raise ValueError(
                f"The covariance fixes the unit of the radius, so {self.scale_name} has no place "
                "beside it. Pass one of them."
            )
        if self.bounds is not None:
            if self.norm != np.inf:
                raise ValueError(
                    f"bounds cut a box exactly, so they need norm=inf, got norm={self.norm!r}."
                )
            if len(self.bounds) != 2:
                raise ValueError(f"bounds must be (lowest, highest), got {self.bounds!r}.")

    def on(self, table: Table) -> "AttackOnTable":
        """Settle which columns move and by how much."""
        mask, scale = table.mask(self.features), None
        if self.feature_scale is not None:
            scale = table.by_column(self.feature_scale, self.scale_name)
            bad = mask & ~((scale >= 0) & np.isfinite(scale))
            if bad.any():
                raise ValueError(
                    f"{self.scale_name} must be finite and >= 0 for every column under attack, but "
                    f"is missing, negative or infinite for {table.label(np.flatnonzero(bad))}."
                )
            mask &= scale > 0
            if not mask.any():
                raise ValueError(
                    f"{self.scale_name} is zero for every column under attack: nothing can move. "
                    "Give one of them a positive scale, or attack others by features."
                )
        bounds = None
        if self.bounds is not None:
            bounds = tuple(
                table.by_column(value, "bounds", default)
                for value, default in zip(self.bounds, (-np.inf, np.inf), strict=True)
            )
            if not np.all(bounds[0][mask] <= bounds[1][mask]):
                raise ValueError(f"bounds are empty: a lowest value exceeds the highest: {bounds}.")
        covariance = None if self.covariance is None else self._conditional(table, mask)
        uniform = bounds is None and not table.has_missing(mask)
        return AttackOnTable(table, mask, self.norm, scale, bounds, covariance, uniform)

    def _conditional(self, table: Table, mask: npt.NDArray[np.bool_]) -> Array:
        """Covariance of the columns A under attack, given those that stand still, F."""
        # The ball cut by delta_F = 0 is that of a block of the precision, whose inverse is the
        # Schur complement S_AA - S_AF S_FF^-1 S_FA
        matrix = np.asarray(getattr(self.covariance, "covariance_", self.covariance), dtype=float)
        k, d = int(mask.sum()), table.n_columns
        if matrix.shape == (k, k):
            return matrix
        if matrix.shape != (d, d):
            raise ValueError(
                f"covariance has shape {matrix.shape}, but X has {d} columns, {k} of them under "
                "attack: pass one row and column for each of either."
            )
        still = np.linalg.pinv(matrix[np.ix_(~mask, ~mask)], hermitian=True)
        across = matrix[np.ix_(mask, ~mask)]
        return matrix[np.ix_(mask, mask)] - across @ still @ across.T


class AttackOnTable(NamedTuple):
    """What an attack may do to the rows of a table."""

    table: Table
    mask: npt.NDArray[np.bool_]
    norm: Any
    scale: Array | None
    bounds: tuple[Array, ...] | None
    covariance: Array | None
    uniform: bool  # the same to every row: no bounds cut it, no value is missing

    def dual(self, coef: Array) -> Any:
        """Dual norm of coefficients of shape (n_features,) or (n_outputs, n_features)."""
        scale = None if self.scale is None else self.scale[self.mask]
        return dual_norm(coef[..., self.mask], self.norm, scale=scale, covariance=self.covariance)

    def changes(self, coef: Array, radius: float, rows: Any) -> tuple[Array, Array]:
        """Least and greatest change of each output at each row: shape (n_rows, n_outputs)."""
        if self.uniform:
            high = np.broadcast_to(radius * self.dual(coef), (len(rows), len(coef)))
            return -high, high
        cut = self._missing if self.bounds is None else self._boxed
        parts = [cut(coef, radius, rows[part]) for part in batches(len(rows), coef.shape[1])]
        low, high = (np.concatenate(part) for part in zip(*parts, strict=True))
        return low, high

    def _missing(self, coef: Array, radius: float, rows: Any) -> tuple[Array, Array]:
        # What is missing cannot be moved: the dual norm leaves it out, row by row
        if self.covariance is not None:
            raise ValueError(
                "X has missing values in columns under attack, for which norm='mahalanobis' has no "
                "closed form here. Impute them, or leave these columns out of features."
            )
        present = ~np.isnan(self.table.numbers(rows))
        high = radius * np.column_stack([self.dual(np.where(present, w, 0.0)) for w in coef])
        return -high, high

    def _boxed(self, coef: Array, radius: float, rows: Any) -> tuple[Array, Array]:
        # Each column goes on its own to one end of its interval: max delta.w = b.w+ - a.w-
        x, (lowest, highest) = self.table.numbers(rows), self.bounds or ()
        outside = self.mask & np.any((x < lowest) | (x > highest), axis=0)
        if outside.any():
            raise ValueError(
                "bounds exclude values that are in X, in the columns "
                f"{self.table.label(np.flatnonzero(outside))}. Widen them, or leave these columns "
                "out of features."
            )
        budget = radius * (np.ones(len(self.mask)) if self.scale is None else self.scale)
        room = self.mask & ~np.isnan(x)
        with np.errstate(invalid="ignore"):
            a = np.where(room, np.maximum(-budget, lowest - x), 0.0)
            b = np.where(room, np.minimum(budget, highest - x), 0.0)
        up, down = np.maximum(coef, 0).T, np.maximum(-coef, 0).T
        return a @ up - b @ down, b @ up - a @ down
