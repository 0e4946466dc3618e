"""What is asked of the container of X: columns, rows, and rows like them with other numbers."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["Container", "contain"]

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


class Container(Protocol):
    """Rows and columns of X."""

    X: Any
    shape: tuple[int, int]
    names: list[Any] | None
    epsilon: float

    def kind(self, j: int) -> str:
        """Kind of NumPy's dtype of a column, "O" for objects and "?" for what NumPy has not."""

    def column(self, j: int) -> npt.NDArray[Any]:
        """One column of X."""

    def rows(self, rows: Any) -> Any:
        """Rows of X, in their container."""

    def numbers(self, rows: Rows, numeric: Mask) -> Array:
        """Rows of X as a dense array of float64, NaN where there is no number."""

    def rebuilt(self, values: Any, sources: Rows, movable: Mask) -> Any:
        """Rows with given numbers in the columns that move, the others as in rows of X."""


def contain(X: Any) -> Container:
    """Find the container of X; ValueError if it has no rows and columns of its own."""
    if sparse.issparse(X):
        container: Container = _Sparse(X)
    elif hasattr(X, "iloc") and hasattr(X, "columns"):
        container = _Pandas(X)
    elif hasattr(type(X), "columns") or "columns" in getattr(X, "__dict__", ()):
        # asked of the type, for a lazy frame works at the question
        container = _OtherFrame(X)
    else:
        container = _Array(X)
    return container


def _source(sources: Rows, j: int) -> Rows:
    return sources if sources.ndim == 1 else sources[:, j]


def _coarsest(dtypes: Any) -> float:
    floats = [d for d in dtypes if isinstance(d, np.dtype) and d.kind == "f"]
    return float(max((np.finfo(d).eps for d in floats), default=np.finfo(np.float64).eps))


def _check_shape(X: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 2 and 0 not in shape:
        return shape[0], shape[1]
    first = next(iter(X), None) if len(shape) == 1 and shape[0] else None
    if isinstance(first, str | bytes | dict):
        raise ValueError(
            f"X has {shape[0]} {'texts' if isinstance(first, str | bytes) else 'mappings'} and no "
            "columns: an attack moves numbers. Score the steps after the vectorizer on its output: "
            "the estimator model[1:] at the rows model[:1].transform(X), for a pipeline model."
        )
    raise ValueError(
        f"X must have rows and columns, got shape {shape}. Reshape it. RidgeCV and "
        "RidgeClassifierCV hand a scorer their predictions in place of X: pass them cv=5, say, or "
        "use GridSearchCV."
        if len(shape) == 1 and shape[0]
        else f"X must have rows and columns, got shape {shape}. Reshape it."
    )


class _Array(Container):
    """NumPy array, or what becomes one."""

    names = None

    def __init__(self, X: Any) -> None:
        values = np.asarray(X)
        mixed = values.dtype.kind in "US" and not isinstance(X, np.ndarray)
        self.X = np.asarray(X, dtype=object) if mixed else values
        self.shape = _check_shape(self.X.ravel(), self.X.shape)
        self.epsilon = _coarsest([self.X.dtype])

    def kind(self, j: int) -> str:
        return self.X.dtype.kind

    def column(self, j: int) -> npt.NDArray[Any]:
        return np.asarray(self.X[:, j])

    def rows(self, rows: Any) -> Any:
        return self.X[rows]

    def numbers(self, rows: Rows, numeric: Mask) -> Array:
        if self.X.dtype != object and numeric.all():
            return np.asarray(self.X[rows], dtype=np.float64)
        values = np.full((len(rows), self.shape[1]), np.nan)
        values[:, numeric] = self.X[np.ix_(rows, np.flatnonzero(numeric))]
        return values

    def rebuilt(self, values: Any, sources: Rows, movable: Mask) -> Any:
        if movable.all():
            return values.astype(object) if self.X.dtype == object else values
        lent = self.X[sources] if sources.ndim == 1 else np.take_along_axis(self.X, sources, axis=0)
        if self.X.dtype == object:
            values = values.astype(object)
        return np.where(movable, values, lent)


class _Sparse(Container):
    """Sparse array or matrix; absent entries are zero."""

    names = None

    def __init__(self, X: Any) -> None:
        self.shape = _check_shape(None, X.shape)
        self.X = X if X.format in ("csr", "csc") else X.tocsr()
        self.epsilon = _coarsest([X.dtype])

    def kind(self, j: int) -> str:
        return str(self.X.dtype.kind)

    def column(self, j: int) -> npt.NDArray[Any]:
        return np.asarray(self.X[:, [j]].toarray()).ravel()

    def rows(self, rows: Any) -> Any:
        return self.X[rows]

    def numbers(self, rows: Rows, numeric: Mask) -> Array:
        return np.asarray(self.X[rows].toarray(), dtype=np.float64)

    def rebuilt(self, values: Any, sources: Rows, movable: Mask) -> Any:
        kind = sparse.csr_array if isinstance(self.X, sparse.sparray) else sparse.csr_matrix
        if movable.all():
            return self._indexed(kind(values))
        most = sources if sources.ndim == 1 else sources[:, 0]
        lent = self.X[most] @ sparse.diags_array(np.where(movable, 0.0, 1.0))
        rows = sparse.csr_array(sparse.csr_array(values) @ sparse.diags_array(1.0 * movable) + lent)
        if sources.ndim == 2:
            apart = np.flatnonzero(~movable & np.any(sources != most[:, None], axis=0))
            rows = rows.tolil()
            for j in apart.tolist():
                rows[:, [j]] = self.column(j)[sources[:, j], None]
        return self._indexed(kind(rows))

    def _indexed(self, rows: Any) -> Any:
        # as wide as those of X: some estimators take no others
        rows.indices = rows.indices.astype(self.X.indices.dtype, copy=False)
        rows.indptr = rows.indptr.astype(self.X.indptr.dtype, copy=False)
        return rows


class _Pandas(Container):
    """Data frame of pandas."""

    def __init__(self, X: Any) -> None:
        self.X = X
        self.shape = _check_shape(None, X.shape)
        self.names = list(X.columns)
        self.epsilon = _coarsest(X.dtypes)

    def kind(self, j: int) -> str:
        return str(getattr(self.X.iloc[:, j].dtype, "kind", "?"))

    def column(self, j: int) -> npt.NDArray[Any]:
        return np.asarray(self.X.iloc[:, j])

    def rows(self, rows: Any) -> Any:
        return self.X.iloc[rows]

    def numbers(self, rows: Rows, numeric: Mask) -> Array:
        values = np.full((len(rows), self.shape[1]), np.nan)
        numbers = self.X.iloc[rows, np.flatnonzero(numeric)]
        values[:, numeric] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        return values

    def rebuilt(self, values: Any, sources: Rows, movable: Mask) -> Any:
        frame = type(self.X)(values, columns=self.X.columns)
        for j in np.flatnonzero(~movable).tolist():
            frame.isetitem(j, self.X.iloc[_source(sources, j), j].array)
        return frame


class _OtherFrame(Container):
    """Data frame of polars, table of pyarrow, and whatever else narwhals reads in memory."""

    def __init__(self, X: Any) -> None:
        try:
            import narwhals as nw

            frame = nw.from_native(X, eager_only=True)
        except (ImportError, TypeError) as error:
            lazy = hasattr(X, "collect")
            raise TypeError(
                f"X is a {type(X).__qualname__}, but only data frames of pandas and, through "
                "narwhals, of polars and pyarrow can be rebuilt. Pass "
                f"{'X.collect()' if lazy else 'X.to_pandas() or X.to_numpy()'}."
            ) from error
        self.narwhals, self.frame = nw, frame
        self.X = X
        self.shape = _check_shape(None, frame.shape)
        self.names = list(frame.columns)
        has_single = any(dtype == nw.Float32 for dtype in frame.schema.values())
        self.epsilon = _coarsest([np.dtype(np.float32 if has_single else np.float64)])

    def kind(self, j: int) -> str:
        dtype = self.frame[:, j].dtype
        if dtype == self.narwhals.Boolean:
            return "b"
        if dtype == self.narwhals.Object:
            return "O"
        return "i" if dtype.is_integer() else "f" if dtype.is_numeric() else "?"

    def column(self, j: int) -> npt.NDArray[Any]:
        return np.asarray(self.frame[:, j].to_list(), dtype=object)

    def rows(self, rows: Any) -> Any:
        chosen = np.arange(self.shape[0])[rows]
        return self.frame[chosen.tolist(), :].to_native()

    def numbers(self, rows: Rows, numeric: Mask) -> Array:
        values = np.full((len(rows), self.shape[1]), np.nan)
        for j in np.flatnonzero(numeric):
            column = self.frame[:, int(j)][rows.tolist()]
            values[:, j] = column.cast(self.narwhals.Float64).to_numpy()
        return values

    def rebuilt(self, values: Any, sources: Rows, movable: Mask) -> Any:
        nw, backend = self.narwhals, self.frame.implementation
        columns = {}
        for j, name in enumerate(self.frame.columns):
            if movable[j]:
                columns[name] = nw.new_series(name, values[:, j], nw.Float64, backend=backend)
            else:
                columns[name] = self.frame[:, j][_source(sources, j).tolist()]
        return nw.from_dict(columns, backend=backend).to_native()
