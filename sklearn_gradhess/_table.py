"""Rows of X, and rows like them with other numbers, in whatever container X came."""

from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._validation import refuse_foreign

__all__ = ["Table", "batch_rows", "batches"]

Array = npt.NDArray[np.float64]

# Values in one call of predict: 32 MiB of float64
BATCH_VALUES = 2**22


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
        self.is_frame = hasattr(X, "iloc") and hasattr(X, "columns")
        if not self.is_frame and hasattr(X, "columns"):
            raise TypeError(
                f"X is a {type(X).__qualname__}, but only pandas data frames can be rebuilt. Pass "
                "X.to_pandas() or X.to_numpy()."
            )
        if not self.is_frame and not sparse.issparse(X):
            values = np.asarray(X)
            mixed = values.dtype.kind in "US" and not isinstance(X, np.ndarray)
            X = np.asarray(X, dtype=object) if mixed else values
        if X.ndim != 2 or 0 in X.shape:
            raise ValueError(f"X must have rows and columns, got shape {X.shape}. Reshape it.")
        self.X = X.tocsr() if sparse.issparse(X) and X.format not in ("csr", "csc") else X
        self.n_rows, self.n_columns = X.shape
        self.names = list(X.columns) if self.is_frame else None
        self.numeric = self._numeric()

    def _numeric(self) -> npt.NDArray[np.bool_]:
        if not self.is_frame and self.X.dtype != object:
            return np.full(self.n_columns, self.X.dtype.kind in "biuf")
        numeric = np.zeros(self.n_columns, dtype=bool)
        for j in range(self.n_columns):  # an object column of numbers is one of numbers
            column = self.X.iloc[:, j] if self.is_frame else self.X[:, j]
            numeric[j] = getattr(column.dtype, "kind", "O") in "biuf" or (
                column.dtype == object and all(v is None or isinstance(v, Real) for v in column)
            )
        return numeric

    @property
    def epsilon(self) -> float:
        """Relative rounding of the coarsest floats in X."""
        dtypes = self.X.dtypes if self.is_frame else [self.X.dtype]
        floats = [d for d in dtypes if isinstance(d, np.dtype) and d.kind == "f"]
        return float(max((np.finfo(d).eps for d in floats), default=np.finfo(np.float64).eps))

    def label(self, columns: Any) -> str:
        """Name columns, given by position, for a message; the first five of them."""
        columns = np.atleast_1d(columns).tolist()
        labels = [str(j) if self.names is None else repr(self.names[j]) for j in columns[:5]]
        return ", ".join(labels) + (", ..." if len(columns) > 5 else "")

    def native(self, rows: Any) -> Any:
        """Rows of X as they are."""
        return self.X.iloc[rows] if self.is_frame else self.X[rows]

    def numbers(self, rows: Any) -> Array:
        """Rows as a dense array of float64, NaN where there is no number."""
        if not self.is_frame and self.X.dtype.kind in "biuf":
            values = self.X[rows]
            return (values.toarray() if sparse.issparse(values) else values).astype(np.float64)
        chosen = np.arange(self.n_rows)[rows]
        values, columns = np.full((len(chosen), self.n_columns), np.nan), self.numeric
        if self.is_frame:
            numbers = self.X.iloc[chosen, np.flatnonzero(columns)]
            values[:, columns] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        elif columns.any():
            values[:, columns] = self.X[np.ix_(chosen, columns)]
        return values

    def rebuilt(self, values: Any, sources: Any, movable: npt.NDArray[np.bool_]) -> Any:
        """Rows with given numbers in the columns that move, the other columns as in `sources`."""
        if self.is_frame:
            frame = type(self.X)(values, columns=self.X.columns)
            for j in np.flatnonzero(~movable):
                frame.isetitem(j, self.X.iloc[sources, j].array)
            return frame
        if self.X.dtype == object:
            return np.where(movable, values.astype(object), self.X[sources])
        if sparse.issparse(self.X):
            is_array = isinstance(self.X, sparse.sparray)
            return sparse.csr_array(values) if is_array else sparse.csr_matrix(values)
        return values

    def spread(self, movable: npt.NDArray[np.bool_]) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
        """Two values of each column within its range, apart by its scale, and which are made up.

        The outer deciles over at most a thousand rows, or the extremes where these agree. A
        column that is constant has no scale but its own value, or else one.
        """
        if sparse.issparse(self.X):
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

    def mask(self, features: Any) -> npt.NDArray[np.bool_]:
        """Which columns `features` names; all that hold numbers for None."""
        chosen = self.numeric.copy()
        if features is not None:
            chosen[:] = False
            chosen[self._positions(features)] = True
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

    def _positions(self, features: Any) -> Any:
        wanted = np.atleast_1d(np.asarray(features))
        if wanted.dtype.kind in "UO":
            unknown = [name for name in wanted.tolist() if name not in (self.names or ())]
            if unknown:
                known = f"Its columns are {self.label(range(self.n_columns))}."
                raise ValueError(
                    f"features names {unknown}, which are not columns of X. "
                    f"{'X is no data frame: pass positions.' if self.names is None else known}"
                )
            return np.isin(np.array(self.names, dtype=object), wanted)
        inside = (wanted >= -self.n_columns) & (wanted < self.n_columns)
        is_mask = wanted.dtype == bool and wanted.shape == (self.n_columns,)
        if wanted.size and (is_mask or (wanted.dtype.kind in "iu" and inside.all())):
            return wanted
        raise ValueError(
            f"features must be names, positions or a mask of the {self.n_columns} columns of X, "
            f"got {features!r}."
        )

    def has_missing(self, columns: npt.NDArray[np.bool_]) -> bool:
        """Whether a value is missing in some of the columns."""
        if sparse.issparse(self.X):
            return bool(np.isnan(self.X.data).any())
        return any(
            np.isnan(self.numbers(part)[:, columns]).any() for part in batches(*self.X.shape)
        )

    def by_column(self, values: Any, name: str, default: float = np.nan) -> Array:
        """One float a column of X from a number, an array, or a mapping of names."""
        if hasattr(values, "to_dict") and self.names is not None:
            values = values.to_dict()
        if isinstance(values, dict):
            if self.names is None:
                raise ValueError(
                    f"{name} goes by column names, but X is no data frame. Pass an array."
                )
            unknown = [key for key in values if key not in self.names]
            if unknown:
                raise ValueError(f"{name} names {unknown}, which are not columns of X.")
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
                "number a column, in their order, or a dict of column names."
            )
        return np.broadcast_to(array, self.n_columns).copy()
