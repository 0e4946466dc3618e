"""One pass over X, in batches: sums of weighted rows, which is all that gradients are.

The gradient of any loss over a batch is ``sum_i c_i z_i`` over its rows, with z = (1, x); so is a
noise gradient, with another c. This module forms such sums for several coefficients a row at once.
It reads X once, in storage order, and neither copies nor centres it:

- contiguous batches of a C-ordered array: a batched matrix product over a reshaped view;
- everything else (rows dealt to batches at random, Fortran order, CSR, CSC): the product S X with
  a sparse S that has one column a row of X, whose entries say which sums the row enters.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._losses import Loss, SquaredLoss
from sklearn_gradhess.noise import draw_target_noise

Array = npt.NDArray[np.floating]

__all__ = [
    "BatchSums",
    "RowCoefficients",
    "batch_index",
    "batch_sums",
    "choose_batch_size",
    "derivatives",
    "inherent_noise",
    "round_key",
    "row_coefficients",
]

# Below this many multiplications the batch size of one, which is exact, costs well below a second
_SMALL = 2e9
# The sums of one sweep stay below this share of X, or below this many bytes if that is more.
_SHARE = 1 / 20
_BYTES = 2**24
# Columns of a Fortran-ordered array that are turned into C order at a time: one cache line.
_COLUMNS = 8


class RowCoefficients(NamedTuple):
    """Coefficients of the sums that the rows enter.

    Attributes
    ----------
    per_batch : ndarray of shape (n_samples, m)
        Summed over each batch.
    per_group : ndarray of shape (n_samples,) or None
        Summed over groups of batches; for sums whose single batches nobody needs.
    n_groups : int
        Batch b belongs to group ``b % n_groups``.
    """

    per_batch: Array
    per_group: Array | None = None
    n_groups: int = 0


class BatchSums(NamedTuple):
    """Sums over a run of consecutive batches, starting with batch `start`.

    Attributes
    ----------
    start : int
        Number of the first batch.
    per_batch : ndarray of shape (n_batches, m, p)
        ``sum_i c_ij z_i`` over the rows of each batch, p = d or d + 1.
    per_group : ndarray of shape (n_groups, p)
        The same over each group, as far as its batches are in this run.
    """

    start: int
    per_batch: npt.NDArray[np.float64]
    per_group: npt.NDArray[np.float64]


def batch_index(
    n_samples: int, batch_size: int, offset: int, rng: np.random.Generator | None
) -> npt.NDArray[np.int32]:
    """Assign rows to batches of exactly `batch_size` rows, the first of which has begun.

    Parameters
    ----------
    n_samples : int
        Rows at hand.
    batch_size : int
        Rows in a complete batch.
    offset : int
        Rows that batch 0 has already; the last batch may stay incomplete.
    rng : Generator or None
        Deals the rows at random; None takes them in order.

    Returns
    -------
    batch : ndarray of shape (n_samples,)
        Number of the batch of each row.
    """
    place = np.arange(n_samples, dtype=np.int64)
    if rng is not None and batch_size > 1:
        rng.shuffle(place)
    return ((place + offset) // batch_size).astype(np.int32)


def choose_batch_size(batch_size: int | str, n_samples: int, d: int, *, noise: str) -> int:
    """Settle batch_size="auto"; the reasons are in GradientCovarianceEstimator's docstring."""
    if not isinstance(batch_size, str):
        return int(batch_size)
    if noise != "antithetic":
        return max(1, int(np.sqrt(n_samples / (d + 1))))
    if 2 * n_samples * d**2 <= _SMALL:
        return 1
    return max(1, min(-(-d // 16), n_samples // (4 * (d + 1))))


def derivatives(
    X: Any, y: Array | None, loss: Loss, coef: Array | None, intercept: float
) -> tuple[Array | None, Array | None]:
    """Gradient and curvature of each row's loss; None stands for all zero and all one.

    Parameters
    ----------
    X : ndarray, CSR or CSC of shape (n_samples, d)
        Features.
    y : ndarray of shape (n_samples,) or None
        Targets; None if the prediction is the target.
    loss : Loss
        Loss.
    coef : ndarray of shape (d,) or None
        Coefficients; None is zero.
    intercept : float
        Intercept.
    """
    squared = isinstance(loss, SquaredLoss)
    if y is None and squared:
        return None, None
    raw_prediction: Array = np.full(X.shape[0], intercept)
    if coef is not None:
        raw_prediction += X @ coef.astype(X.dtype)
    if y is None:
        return None, loss.curvature(raw_prediction, raw_prediction)
    loss.check_y(y)
    curvature = None if squared else loss.curvature(y, raw_prediction)
    return loss.gradient(y, raw_prediction), curvature


def inherent_noise(
    inherent_variance: float | str,
    gradient: Array | None,
    curvature: Array | None,
    sample_weight: Array | None,
    *,
    noise: str,
) -> float:
    """Noise in the targets, as a multiple of the curvature; antithetic noise ignores it.

    "estimate" is Pearson's: the mean squared gradient over the mean curvature, for the squared
    loss the mean squared residual.
    """
    if noise == "antithetic" or (isinstance(inherent_variance, str) and gradient is None):
        return 0.0
    if not isinstance(inherent_variance, str):
        return float(inherent_variance)
    assert gradient is not None
    mean_square = np.average(gradient**2, weights=sample_weight)
    mean_curvature = 1.0 if curvature is None else np.average(curvature, weights=sample_weight)
    estimate = float(mean_square / mean_curvature)
    # If this is not finite, neither are the sums, and those are checked.
    return estimate if np.isfinite(estimate) else 0.0


def round_key(coef: Array | None, intercept: float, y: Array | None, d: int) -> bytes:
    """Name the law of clean gradients at these coefficients; empty where they are all zero."""
    if y is None:
        return b""
    at = np.append(np.zeros(d) if coef is None else coef, intercept) + 0.0
    return hashlib.blake2b(at.tobytes(), digest_size=16).digest()


def row_coefficients(
    gradient: Array | None,
    curvature: Array | None,
    sample_weight: Array | None,
    *,
    n_samples: int,
    noise: str,
    n_redraws: int,
    distribution: str,
    n_groups: int,
    rng: np.random.Generator,
) -> RowCoefficients:
    """Coefficients of each row in noise gradients and clean gradient, noise of unit scale.

    With weight w and curvature v a row enters the noise gradient with ``sqrt(w v) eps``, since
    noise of variance proportional to v/w times the weight w is that, and the clean one with
    ``w r``, r the derivative of its loss.
    """
    clean = gradient
    if sample_weight is not None and gradient is not None:
        clean = sample_weight * gradient
    if noise == "none":
        return RowCoefficients((np.zeros(n_samples) if clean is None else clean)[:, None])
    draws = draw_target_noise(
        1.0, (n_samples, n_redraws), distribution=distribution, random_state=rng
    )
    for factor in (sample_weight, curvature):
        if factor is not None:
            draws *= np.sqrt(factor)[:, None]
    if noise == "single":
        return RowCoefficients(
            np.column_stack([draws, np.zeros(n_samples) if clean is None else clean])
        )
    if clean is None:
        return RowCoefficients(draws)
    return RowCoefficients(draws, clean, n_groups)


def batch_sums(
    X: Any,
    coefficients: RowCoefficients,
    batch: npt.NDArray[np.int32],
    *,
    batch_size: int,
    contiguous: bool,
    has_intercept: bool,
    n_threads: int = 1,
) -> Iterator[BatchSums]:
    """Sum the rows of each batch with the given coefficients.

    Parameters
    ----------
    X : ndarray, CSR or CSC of shape (n_samples, d)
        float32 or float64, of any memory order, memory maps included.
    coefficients : RowCoefficients
        What each row is multiplied by.
    batch : ndarray of shape (n_samples,)
        Batch of each row, from `batch_index`.
    batch_size : int
        Rows in a complete batch.
    contiguous : bool
        Whether `batch` is in increasing order.
    has_intercept : bool
        Put the intercept's coordinate, a feature of ones, in front.
    n_threads : int, default=1
        Threads for the product of a sparse S with a dense X.

    Yields
    ------
    sums : BatchSums
        Runs of consecutive batches that together cover all.
    """
    n_batches = int(batch.max()) + 1
    m, n_groups = coefficients.per_batch.shape[1], coefficients.n_groups
    values = coefficients.per_batch
    if coefficients.per_group is not None:
        values = np.column_stack([values, coefficients.per_group])
    values = values.astype(X.dtype, copy=False)
    d = X.shape[1]
    p = d + has_intercept
    x_bytes = (X.nnz if sparse.issparse(X) else X.size) * X.dtype.itemsize
    bytes_per_batch = m * p * (8 + X.dtype.itemsize * n_threads)
    run = max(1, int(max(_SHARE * x_bytes, _BYTES) / bytes_per_batch))
    for start in range(0, n_batches, run):
        k = min(run, n_batches - start)
        rows: slice | npt.NDArray[np.intp]
        if contiguous:
            rows = slice(*np.searchsorted(batch, [start, start + k]))
        elif k == n_batches:
            rows = slice(None)
        else:
            rows = np.flatnonzero((batch >= start) & (batch < start + k))
        # Row r of the result: coefficient j of batch b at r = b m + j, the groups after all those
        where, c = batch[rows], values[rows]
        target = np.empty(c.shape, dtype=np.int32 if c.size < 2**31 else np.int64)
        target[:, :m] = (where - start)[:, None] * m + np.arange(m)
        if n_groups:
            target[:, m] = k * m + where % n_groups
        n_out = k * m + n_groups
        out = np.empty((n_out, p))
        if has_intercept:
            out[:, 0] = np.bincount(target.ravel(), c.ravel(), minlength=n_out)
        if contiguous and batch_size > 1 and isinstance(X, np.ndarray) and X.flags.c_contiguous:
            out[:, has_intercept:] = _reshaped_product(X[rows], c, target, n_out, batch_size, where)
        else:
            out[:, has_intercept:] = _sparse_product(X, rows, c, target, n_out, n_threads)
        yield BatchSums(start, out[: k * m].reshape(k, m, p), out[k * m :])


def _reshaped_product(
    X: Array,
    values: Array,
    target: npt.NDArray[np.integer],
    n_out: int,
    batch_size: int,
    batch: npt.NDArray[np.int32],
) -> Array:
    """Sum contiguous batches of a C-ordered array: one small matrix product a batch."""
    head = int(np.searchsorted(batch, batch[0] + 1)) % batch_size  # of a batch begun before
    k = (len(X) - head) // batch_size
    body = slice(head, head + k * batch_size)
    n_values = values.shape[1]
    out = np.zeros((n_out, X.shape[1]), dtype=X.dtype)
    if k:
        stacked = values[body].reshape(k, batch_size, n_values).swapaxes(1, 2)
        sums = stacked @ X[body].reshape(k, batch_size, -1)
        first = target[body][::batch_size]
        for j in range(n_values):
            if np.all(np.diff(first[:, j]) > 0):
                out[first[:, j]] = sums[:, j]
            else:  # groups: several batches to a sum
                for g in np.unique(first[:, j]):
                    out[g] = sums[first[:, j] == g, j].sum(axis=0)
    for edge in (slice(0, head), slice(body.stop, len(X))):
        if edge.start < edge.stop:
            out += _sparse_product(X, edge, values[edge], target[edge], n_out, 1)
    return out


def _sparse_product(
    X: Any,
    rows: slice | npt.NDArray[np.intp],
    values: Array,
    target: npt.NDArray[np.integer],
    n_out: int,
    n_threads: int,
) -> Array:
    """Add ``values[i, j] X[rows[i]]`` to row ``target[i, j]`` of the result."""
    if isinstance(rows, slice):
        X = X[rows]
        indptr = np.arange(0, target.size + 1, values.shape[1], dtype=target.dtype)
    else:
        indptr = np.zeros(X.shape[0] + 1, dtype=target.dtype)
        indptr[rows + 1] = values.shape[1]
        np.cumsum(indptr, out=indptr)
    scatter = sparse.csc_matrix(
        (values.ravel(), target.ravel(), indptr), shape=(n_out, X.shape[0]), copy=False
    )
    if sparse.issparse(X):
        return (scatter.asformat(X.format) @ X).toarray()
    # SciPy's kernels release the GIL
    if X.size < 2**18:
        n_threads = 1
    with ThreadPoolExecutor(n_threads) as pool:
        if X.flags.c_contiguous:
            cuts = np.linspace(0, X.shape[0], n_threads + 1).astype(int)
            parts = pool.map(
                lambda a, b: scatter[:, a:b] @ X[a:b] if n_threads > 1 else scatter @ X,
                cuts[:-1],
                cuts[1:],
            )
            return reduce(np.add, parts)
        out = np.empty((n_out, X.shape[1]), dtype=X.dtype)

        def columns(j: int) -> None:
            block = slice(j, j + _COLUMNS)
            out[:, block] = scatter @ np.ascontiguousarray(X[:, block])

        list(pool.map(columns, range(0, X.shape[1], _COLUMNS)))
        return out
