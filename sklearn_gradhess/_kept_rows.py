"""Rows that a stream keeps: those that wait, and a sample of those that went before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["KeptRows", "join", "joined_with", "thinned"]

Array = npt.NDArray[np.float64]
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class KeptRows:
    """Rows with targets and weights; a value, never changed in place.

    Attributes
    ----------
    X : ndarray or CSR of shape (n, d)
        Features, in the precision they came in.
    Y : ndarray of shape (n, t)
        Targets.
    weight : ndarray of shape (n,)
        Weights, positive.
    share : ndarray of shape (n,)
        Probability with which each row was kept: it stands for ``1/share`` rows.
    """

    X: Any
    Y: Array
    weight: Array
    share: Array

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def total(self) -> Array:
        """Weight of the rows that each row stands for."""
        return self.weight / self.share

    def at(self, index: Any) -> "KeptRows":
        """Take some of the rows."""
        return KeptRows(self.X[index], self.Y[index], self.weight[index], self.share[index])

    def pieces(self, least: int = 64) -> Iterator[slice]:
        """Yield slices of rows that, as dense float64, stay in cache if `least` rows do."""
        step = max(least, _PIECE_BYTES // (8 * max(self.X.shape[1], 1)))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))


def join(parts: Sequence[KeptRows]) -> KeptRows:
    """Put rows one under the other; dense and sparse ones together are sparse."""
    if len(parts) == 1:
        return parts[0]
    if any(sparse.issparse(part.X) for part in parts):
        X = sparse.vstack([sparse.csr_array(part.X) for part in parts], format="csr")
    else:
        X = np.concatenate([part.X for part in parts])
    return KeptRows(
        X,
        np.concatenate([part.Y for part in parts]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.share for part in parts]),
    )


def joined_with(waiting: tuple[KeptRows, ...], rows: KeptRows) -> tuple[KeptRows, ...]:
    """Append rows; runs double, so that single rows are copied a logarithmic number of times."""
    while waiting and len(waiting[-1]) <= len(rows):
        rows, waiting = join([waiting[-1], rows]), waiting[:-1]
    return (*waiting, rows)


def thinned(rows: KeptRows, importance: Array, size: int, rng: np.random.Generator) -> KeptRows:
    """Keep so many rows, the important ones surely, unbiased for every sum over rows.

    A row stays with probability ``min(1, importance / threshold)`` and stands for the inverse as
    many from then on. The draw is systematic, hence spread evenly over the order of the rows.

    Parameters
    ----------
    rows : KeptRows
        Rows.
    importance : ndarray of shape (n,)
        Positive, for the weight that each row stands for.
    size : int
        Rows to keep.
    rng : Generator
        Source of the draw.

    References
    ----------
    Cohen, Duffield, Kaplan, Lund, Thorup (2011). Efficient stream sampling for variance-optimal
    estimation of subset sums.
    """
    if len(rows) <= size:
        return rows
    largest_first = np.sort(importance)[::-1]
    rest = np.cumsum(largest_first[::-1])[::-1]  # sum of this one and all smaller
    sure = np.arange(size)
    # The first number of sure rows after which the next one is no more than the threshold
    threshold = rest[:size] / (size - sure)
    n_sure = int(np.argmax(largest_first[:size] <= threshold))
    probability = np.minimum(importance / threshold[n_sure], 1.0)
    steps = np.floor(np.cumsum(probability) + rng.random())
    kept = np.flatnonzero((np.diff(steps, prepend=0.0) > 0) | (probability == 1))
    chosen = rows.at(kept)
    return replace(chosen, share=chosen.share * probability[kept])
