"""Rows of X, and rows like them with other numbers, in whatever container X came."""

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._containers import Container, contain
from sklearn_gradhess._validation import refuse_foreign

__all__ = ["Table", "batch_rows", "batches"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Values in one call of predict: 32 MiB of float64
BATCH_VALUES = 2**22
# How to go on where a selector has left columns out and the names with them
SELECTORS = (
    " RFECV and SequentialFeatureSelector hand over some of the columns, without names: put the "
    "selector into the pipeline, RFE and the like, and search its n_features_to_select with "
    "GridSearchCV, or standardise X beforehand and leave the scale out."
)


def batch_rows(n_columns: int) -> int:
    """Rows that one call of predict may have."""
    return max(1, BATCH_VALUES // n_columns)


def batches(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of rows that hold a bounded number of values."""
    size = batch_rows(n_columns)
    yield from (slice(start, start + size) for start in range(0, n_rows, size))


class Table:
    """Rows of X, and rows like them with other numbers, in whatever container X came."""

    def __init__(self, X: Any) -> None:
        refuse_foreign(X=X)
        self.container: Container = contain(X)
        self.X = self.container.X
        self.n_rows, self.n_columns = self.container.shape
        self.names = self.container.names
        self.is_sparse = sparse.issparse(self.X)
        self.kinds = np.array([_kind(self.container, j) for j in range(self.n_columns)])
        self.numeric: Mask = np.isin(self.kinds, list("bif"))

    @property
    def epsilon(self) -> float:
        """Relative rounding of the coarsest floats in X."""
        return self.container.epsilon

    def label(self, columns: Any) -> str:
        """Name columns, given by position, for a message; the first five of them."""
        columns = np.atleast_1d(columns).tolist()
        labels = [str(j) if self.names is None else repr(self.names[j]) for j in columns[:5]]
        return ", ".join(labels) + (", ..." if len(columns) > 5 else "")

    def native(self, rows: Any) -> Any:
        """Rows of X as they are."""
        return self.container.rows(rows)

    def numbers(self, rows: Any) -> Array:
        """Rows as a dense array of float64, NaN where there is no number."""
        return self.container.numbers(np.arange(self.n_rows)[rows], self.numeric)

    def rebuilt(self, values: Any, sources: Any, movable: Mask) -> Any:
        """Rows with given numbers in the columns that move, the other columns as in `sources`.

        sources has one row of X for each row, or one for each row and column.
        """
        return self.container.rebuilt(values, np.asarray(sources, dtype=np.intp), movable)

    def codes(self, columns: Any) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Find what values some columns take together, and a row of X with each.

        Returns
        -------
        codes : ndarray of shape (n_rows,)
            Of each row; -1 where a value is missing.
        first : ndarray of shape (n_codes,)
            First row that has the code.
        """
        codes, missing = np.zeros(self.n_rows, dtype=np.intp), np.zeros(self.n_rows, dtype=bool)
        for j in np.atleast_1d(columns).tolist():
            column = _factorized(self.container.column(j))
            missing |= column < 0
            codes = np.unique(codes * (column.max() + 2) + column, return_inverse=True)[1]
        codes[missing] = -1
        levels, first, codes = np.unique(codes, return_index=True, return_inverse=True)
        return (codes - 1, first[1:]) if levels[0] < 0 else (codes, first)

    def missing_patterns(self, columns: Mask) -> npt.NDArray[np.intp]:
        """Find which rows miss the same values among these columns: one code a pattern."""
        if not self.has_missing(columns):
            return np.zeros(self.n_rows, dtype=np.intp)
        packed = [
            np.packbits(np.isnan(self.numbers(part)[:, columns]), axis=1)
            for part in batches(self.n_rows, self.n_columns)
        ]
        return np.unique(np.concatenate(packed), axis=0, return_inverse=True)[1].ravel()

    def spread(self, movable: Mask) -> tuple[Array, Array, Mask]:
        """Two values of each column within its range, apart by its scale, and which are made up.

        The outer deciles over at most a thousand rows, or the extremes where these agree. A
        column that is constant has no scale but its own value, or else one.
        """
        if self.is_sparse:
            low, high = (
                np.asarray(extreme.toarray(), dtype=np.float64).ravel()
                for extreme in (self.X.min(axis=0), self.X.max(axis=0))
            )
        else:
            n = min(self.n_rows, int(np.clip(batch_rows(self.n_columns), 32, 1000)))
            sample = self.numbers(np.linspace(0, self.n_rows - 1, n).astype(np.intp))
            missing = np.isnan(sample).all(axis=0)
            sample[:, missing] = 0
            low, high = np.nanquantile(sample, [0.1, 0.9], axis=0)
            same = ~(low < high)
            low[same], high[same] = (
                extreme(sample[:, same], axis=0) for extreme in (np.nanmin, np.nanmax)
            )
        # differences of a few roundings are no scale either
        constant = ~(high - low > 1e-8 * np.maximum(np.abs(low), np.abs(high)))
        size = np.where(low[constant] != 0, np.abs(low[constant]), 1.0)
        low[constant], high[constant] = low[constant] - size, high[constant] + size
        return low, high, constant & movable

    def mask(self, features: Any) -> Mask:
        """Which columns `features` names; all that hold numbers for None."""
        chosen = self.numeric.copy()
        if features is not None:
            chosen = self.chosen(features, "features")
        if np.any(chosen & ~self.numeric):
            raise ValueError(
                f"features names {self.label(np.flatnonzero(chosen & ~self.numeric))}, which holds "
                "no numbers: categories, strings and dates cannot be moved by a small amount. "
                "Leave it out."
            )
        if not chosen.any():
            raise ValueError(
                "No column is left to move: X has no column of numbers, or features names none."
            )
        return chosen

    def chosen(self, columns: Any, name: str) -> Mask:
        """Columns by name, position or mask, as a mask."""
        wanted = np.atleast_1d(np.asarray(columns))
        chosen = np.zeros(self.n_columns, dtype=bool)
        if wanted.dtype.kind in "UO":
            unknown = [one for one in wanted.tolist() if one not in (self.names or ())]
            if unknown:
                known = f"Its columns are {self.label(range(self.n_columns))}."
                raise ValueError(
                    f"{name} names {unknown}, which are not columns of X. "
                    f"{'X is no data frame: pass positions.' if self.names is None else known}"
                )
            return np.isin(np.array(self.names, dtype=object), wanted)
        inside = (wanted >= -self.n_columns) & (wanted < self.n_columns)
        is_mask = wanted.dtype == bool and wanted.shape == (self.n_columns,)
        if wanted.size and (is_mask or (wanted.dtype.kind in "iu" and inside.all())):
            chosen[wanted] = True
            return chosen
        raise ValueError(
            f"{name} must be names, positions or a mask of the {self.n_columns} columns of X, "
            f"got {columns!r}."
        )

    def has_missing(self, columns: Mask) -> bool:
        """Whether a value is missing in some of the columns."""
        if self.is_sparse:
            return bool(np.isnan(self.X.data).any())
        return any(
            np.isnan(self.numbers(part)[:, columns]).any()
            for part in batches(self.n_rows, self.n_columns)
        )

    def by_column(self, values: Any, name: str, default: float = np.nan) -> Array:
        """One float a column of X from a number, an array, or a mapping of names."""
        if hasattr(values, "to_dict") and self.names is not None:
            values = values.to_dict()
        if isinstance(values, dict):
            if self.names is None:
                raise ValueError(
                    f"{name} goes by column names, but X is no data frame. Pass an array."
                    f"{SELECTORS}"
                )
            unknown = [key for key in values if key not in self.names]
            if unknown:
                raise ValueError(
                    f"{name} names {unknown}, which are not columns of X. Its columns are "
                    f"{self.label(range(self.n_columns))}."
                )
            return np.array([values.get(key, default) for key in self.names], dtype=np.float64)
        if isinstance(values, str):
            raise ValueError(
                f"{name}={values!r}, but it must be numbers: the unit of the radius must not "
                "change from fold to fold. Pass X_train.std(axis=0), taken once."
            )
        array = np.asarray(values, dtype=np.float64)
        if array.shape not in ((), (self.n_columns,)):
            raise ValueError(
                f"{name} has shape {array.shape}, but X has {self.n_columns} columns: pass one "
                f"number a column, in their order, or a dict of column names.{SELECTORS}"
            )
        return np.broadcast_to(array, self.n_columns).copy()


def _kind(container: Container, j: int) -> str:
    """Tell what a column holds: "b"ooleans, "i"ntegers, "f"loats, or "O"ther things."""
    kind = container.kind(j)
    if kind in "biuf":
        return "i" if kind == "u" else kind
    if kind != "O":
        return "O"
    # an object column of numbers is one of numbers
    known = [v for v in container.column(j) if v is not None]
    if not all(isinstance(v, Real) for v in known):
        return "O"
    if known and all(isinstance(v, bool | np.bool_) for v in known):
        return "b"
    return "i" if known and all(isinstance(v, Integral) for v in known) else "f"


def _factorized(column: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Give each value of a column a number, -1 where one is missing."""
    if column.dtype.kind in "biufUSmM":
        missing = column != column  # NaN and NaT
        codes = np.unique(column, return_inverse=True)[1].astype(np.intp)
        codes[missing] = -1
        return codes
    known: dict[Any, int] = {}
    return np.array(
        [-1 if _is_missing(v) else known.setdefault(v, len(known)) for v in column], dtype=np.intp
    )


def _is_missing(value: Any) -> bool:
    # NaN, NaT and pandas' NA are not equal to themselves; NA has no truth value either
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return True
