"""What an attack may do to a table: which columns move, and by how much."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._attack_on_table import AttackOnTable
from sklearn_gradhess._categories import Category, find_categories
from sklearn_gradhess._mahalanobis import conditional_covariance, covariance_matrix
from sklearn_gradhess._risk import check_n_columns, dual_norm, norm_order
from sklearn_gradhess._table import Table

__all__ = ["Attack"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(eq=False, repr=False)
class Attack:
    """What an attack may do, before it is known to what data."""

    norm: Any
    feature_scale: Any
    features: Any
    bounds: Any
    covariance: Any
    scale_name: str = "feature_scale"
    n_columns: Any = None
    integer: Any = "auto"
    categories: Any = None

    def __post_init__(self) -> None:
        order, matrix = norm_order(self.norm), covariance_matrix(self.covariance)
        d = len(matrix) if np.ndim(matrix) == 2 else 1
        dual_norm(np.zeros(d), self.norm, covariance=matrix)  # raises what is wrong
        check_n_columns(self.n_columns, order)
        if matrix is not None and self.feature_scale is not None:
            raise ValueError(
                f"The covariance fixes the unit of the radius, so {self.scale_name} has no place "
                "beside it. Pass one of them."
            )
        if self.bounds is not None:
            if order != np.inf:
                raise ValueError(
                    f"bounds cut a box exactly, so they need norm=inf, got norm={self.norm!r}."
                )
            if len(self.bounds) != 2:
                raise ValueError(f"bounds must be (lowest, highest), got {self.bounds!r}.")
        if isinstance(self.integer, str) and self.integer != "auto":
            raise ValueError(
                f"integer must be 'auto', None or a list of columns, got {self.integer!r}."
            )
        if self.integer is not None and not isinstance(self.integer, str) and order != np.inf:
            raise ValueError(
                "Columns that move by whole steps have a closed form in a box only, so integer "
                f"needs norm=inf, got norm={self.norm!r}. Leave it out: they move as floats then, "
                "which is no less than the risk."
            )

    def on(self, table: Table) -> AttackOnTable:
        """Settle which columns move and by how much."""
        groups = find_categories(self.categories, table)
        levelled = np.zeros(table.n_columns, dtype=bool)
        for group in groups:
            levelled[group.columns] = True
        scale, groups = self._scale(table, groups)
        mask = self._mask(table, levelled, scale, bool(groups))
        bounds = None
        if self.bounds is not None:
            bounds = tuple(
                table.by_column(value, "bounds", default)
                for value, default in zip(self.bounds, (-np.inf, np.inf), strict=True)
            )
            if not np.all(bounds[0][mask] <= bounds[1][mask]):
                raise ValueError(f"bounds are empty: a lowest value exceeds the highest: {bounds}.")
        covariance = None
        if self.covariance is not None:
            covariance = conditional_covariance(self.covariance, table, mask)
        return AttackOnTable(
            table=table,
            mask=mask,
            order=norm_order(self.norm),
            scale=scale,
            bounds=bounds,
            covariance=covariance,
            n_columns=self.n_columns,
            whole=self._whole(table) & mask,
            groups=groups,
            has_missing=table.has_missing(mask),
        )

    def _scale(
        self, table: Table, groups: tuple[Category, ...]
    ) -> tuple[Array | None, tuple[Category, ...]]:
        """Budget of each column, and the categories with theirs."""
        if self.feature_scale is None:
            return None, groups
        given = self.feature_scale
        if hasattr(given, "to_dict") and table.names is not None:
            given = given.to_dict()
        if not isinstance(given, dict):
            return table.by_column(given, self.scale_name), groups
        named = {group.name: given[group.name] for group in groups if group.name in given}
        budgeted = tuple(
            group._replace(budget=float(named.get(group.name, np.inf))) for group in groups
        )
        rest = {key: value for key, value in given.items() if key not in named}
        # whom a budget does not name has none
        return table.by_column(rest, self.scale_name, 0.0), budgeted

    def _mask(self, table: Table, levelled: Mask, scale: Array | None, can_be_empty: bool) -> Mask:
        """Columns of numbers that move."""
        if self.features is None and can_be_empty:
            mask = table.numeric & ~levelled
        else:
            mask = table.mask(self.features) & ~levelled
        if scale is None:
            return mask
        bad = mask & ~((scale >= 0) & np.isfinite(scale))
        if bad.any():
            raise ValueError(
                f"{self.scale_name} must be finite and >= 0 for every column under attack, but "
                f"is missing, negative or infinite for {table.label(np.flatnonzero(bad))}."
            )
        mask &= scale > 0
        if not mask.any() and not can_be_empty:
            raise ValueError(
                f"{self.scale_name} is zero for every column under attack: nothing can move. "
                "Give one of them a positive scale, or attack others by features."
            )
        return mask

    def _whole(self, table: Table) -> Mask:
        """Columns that move by whole steps."""
        if self.integer is None or norm_order(self.norm) != np.inf:
            return np.zeros(table.n_columns, dtype=bool)
        if isinstance(self.integer, str):
            return np.isin(table.kinds, ["b", "i"])
        return table.chosen(self.integer, "integer")
