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
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._loss import Loss, SquaredLoss
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
# Gradients for each direction of a sketch, if there are so many rows
_A_DIRECTION = 64
# The sums of one sweep stay below this share of X, or below this many bytes if that is more.
_SHARE = 1 / 12
_BYTES = 2**24
# Columns of a Fortran-ordered array that are turned into C order at a time: one cache line.
_COLUMNS = 8
# Neighbours that are dealt as a block: more would not make the pass faster.
_NEIGHBOURS = 64
# Entries of X below which a second thread is not worth its start
_THREADS_FROM = 2**18


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
    n_samples: int,
    batch_size: int,
    offset: int,
    rng: np.random.Generator | None,
    *,
    in_blocks: bool = True,
) -> npt.NDArray[np.int32]:
    """Assign rows to batches of exactly `batch_size` rows, the first of which has begun.

    Rows are dealt in blocks of c neighbours. A block gives one row to each of c consecutive
    batches, turned by a random shift; which batches these are is random too. A pass in storage
    order then adds to sums that lie side by side, where a deal of single rows jumps about.

    Rows of different blocks share a batch about as often as in a uniform deal, rows of one block
    never do: sums with independent signs lose nothing by that. Sums without signs do. Where
    neighbours are alike, consecutive batches are too, and the variance between k batches is known
    as badly as from k/c. Below 16 batches c is one, and the deal uniform.

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
    in_blocks : bool, default=True
        Whether to deal neighbours as a block, or every row for itself.

    Returns
    -------
    batch : ndarray of shape (n_samples,)
        Number of the batch of each row.
    """
    place = np.arange(offset, offset + n_samples, dtype=np.int64)
    batch = (place // batch_size).astype(np.int32)
    if rng is None or batch_size == 1:
        return batch
    first = int(offset > 0)  # of the complete batches
    k = max((offset + n_samples) // batch_size - first, 0)
    c = min(max(isqrt(k) // 2, 1), _NEIGHBOURS) if in_blocks else 1
    n_blocks = k // c * batch_size
    last = first + k // c * c
    # Rows drawn singly fill the batches that are not complete or too few for a block
    others = np.flatnonzero((batch < first) | (batch >= last))
    single = rng.choice(n_samples, len(others), replace=False)
    in_block = np.ones(n_samples, dtype=bool)
    in_block[single] = False
    which = rng.permutation(n_blocks) // batch_size * c + first
    turned = (rng.integers(c, size=n_blocks)[:, None] + np.arange(c)) % c
    dealt = np.empty_like(batch)
    dealt[single] = batch[others]
    dealt[in_block] = (which[:, None] + turned).ravel()
    return dealt


def choose_batch_size(
    batch_size: int | str,
    n_samples: int,
    d: int,
    *,
    noise: str,
    sketch_size: int | None = None,
    density: float = 1.0,
) -> int:
    """Settle batch_size="auto"; the reasons are in GradientCovarianceEstimator's docstring.

    A gradient costs 2 d^2 multiplications, or 12 d q where q directions are kept: that of a pass
    over the stored entries of d/16, or 3/8 q, rows. To have 64 gradients a direction comes first.
    """
    if not isinstance(batch_size, str):
        return int(batch_size)
    if noise != "antithetic":
        return max(1, int(np.sqrt(n_samples / ((sketch_size or d) + 1))))
    if sketch_size is not None:
        if 12 * n_samples * d * sketch_size <= _SMALL:
            return 1
        rows = int(np.ceil(0.375 * sketch_size / max(density, 1e-9)))
        return max(1, min(rows, n_samples // (_A_DIRECTION * sketch_size)))
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
        return None, loss.curvature(loss.mean(raw_prediction), raw_prediction)
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

    "estimate" is the mean squared gradient over the mean curvature, for the squared
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
    most: int | None = None,
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
        Threads for the product of a sparse S with a dense X; they do not change the sums.
    most : int, default=None
        Batches of a run at most.

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
    n_values, h, d = values.shape[1], int(has_intercept), X.shape[1]
    x_bytes = (X.nnz if sparse.issparse(X) else X.size) * X.dtype.itemsize
    bytes_per_batch = n_values * (d + h) * (8 + X.dtype.itemsize)
    run = max(1, int(max(_SHARE * x_bytes, _BYTES) / bytes_per_batch))
    run = min(run, most or run)
    for start in range(0, n_batches, run):
        k = min(run, n_batches - start)
        rows: slice | npt.NDArray[np.intp]
        if contiguous:
            rows = slice(*np.searchsorted(batch, [start, start + k]))
        elif k == n_batches:
            rows = slice(None)
        else:
            rows = np.flatnonzero((batch >= start) & (batch < start + k))
        c, where = values[rows], batch[rows] - np.int32(start)
        # A sum for each group as well would be one more place to add every row to: slower than
        # sums for each batch, which lie beside those that are needed anyway.
        out = np.empty((n_values, k, d + h))
        for j in range(n_values if has_intercept else 0):
            out[j, :, 0] = np.bincount(where, c[:, j], minlength=k)
        if contiguous and batch_size > 1 and isinstance(X, np.ndarray) and X.flags.c_contiguous:
            _reshaped_product(X[rows], c, where, batch_size, out[:, :, h:])
        elif isinstance(X, np.ndarray) and X.flags.c_contiguous:
            _product_in_tiles(X, rows, c, where, out[:, :, h:], n_threads)
        else:
            _sparse_product(X, rows, c, where, out[:, :, h:], n_threads)
        per_group = np.zeros((n_groups, d + h))
        for g in range(n_groups):
            per_group[(start + g) % n_groups] = out[m, g::n_groups].sum(axis=0)
        yield BatchSums(start, out[:m].swapaxes(0, 1), per_group)


def _reshaped_product(
    X: Array,
    values: Array,
    batch: npt.NDArray[np.int32],
    batch_size: int,
    out: npt.NDArray[np.float64],
) -> None:
    """Sum contiguous batches of a C-ordered array: one small matrix product a batch."""
    head = int(np.searchsorted(batch, 1)) % batch_size  # rows of a batch begun before
    k = (len(X) - head) // batch_size
    first, last = int(head > 0), head + k * batch_size
    n_values, _, d = out.shape
    stacked = values[head:last].reshape(k, batch_size, n_values).swapaxes(1, 2)
    out[:, first : first + k] = (stacked @ X[head:last].reshape(k, batch_size, d)).swapaxes(0, 1)
    if head:
        out[:, 0] = values[:head].T @ X[:head]
    if last < len(X):
        out[:, -1] = values[last:].T @ X[last:]


def _product_in_tiles(
    X: Array,
    rows: slice | npt.NDArray[np.intp],
    values: Array,
    batch: npt.NDArray[np.int32],
    out: npt.NDArray[np.float64],
    n_threads: int,
) -> None:
    """`_sparse_product` with a run of batches for each thread, so that no sum has two writers."""
    if n_threads == 1 or X.size < _THREADS_FROM:
        _sparse_product(X, rows, values, batch, out, 1)
        return
    every = np.arange(len(X))[rows]

    def tile(a: int, b: int) -> None:
        own = np.flatnonzero((batch >= a) & (batch < b))
        _sparse_product(X, every[own], values[own], batch[own] - np.int32(a), out[:, a:b], 1)

    cuts = np.linspace(0, out.shape[1], n_threads + 1).astype(int)
    with ThreadPoolExecutor(n_threads) as pool:  # SciPy's kernels release the GIL
        list(pool.map(tile, cuts[:-1], cuts[1:]))


def _sparse_product(
    X: Any,
    rows: slice | npt.NDArray[np.intp],
    values: Array,
    batch: npt.NDArray[np.int32],
    out: npt.NDArray[np.float64],
    n_threads: int,
) -> None:
    """Write the sum of ``values[i, j] X[rows[i]]`` over the rows of batch b to ``out[j, b]``."""
    n_values, k, d = out.shape
    if isinstance(rows, slice):
        X = X[rows]
        indptr = np.arange(len(batch) + 1)
    else:
        indptr = np.zeros(X.shape[0] + 1, dtype=np.int64)
        indptr[rows + 1] = 1
        np.cumsum(indptr, out=indptr)
    # Column i of S adds row i of X to the sums of its batch, which lie side by side
    index = np.int32 if max(values.size, n_values * k) < 2**31 else np.int64
    target = n_values * batch.astype(index)[:, None] + np.arange(n_values, dtype=index)
    scatter = sparse.csc_matrix(
        (values.ravel(), target.ravel(), (n_values * indptr).astype(index)),
        shape=(n_values * k, X.shape[0]),
        copy=False,
    )
    if sparse.issparse(X):
        sums = (scatter.asformat(X.format) @ X).toarray()
        out[:] = sums.reshape(k, n_values, d).swapaxes(0, 1)
    elif X.flags.c_contiguous:
        out[:] = (scatter @ X).reshape(k, n_values, d).swapaxes(0, 1)
    else:

        def columns(j: int) -> None:
            block = slice(j, j + _COLUMNS)
            sums = scatter @ np.ascontiguousarray(X[:, block])
            out[:, :, block] = sums.reshape(k, n_values, -1).swapaxes(0, 1)

        with ThreadPoolExecutor(n_threads if X.size >= _THREADS_FROM else 1) as pool:
            list(pool.map(columns, range(0, d, _COLUMNS)))
