"""Mergeable second moments of wide gradients: some directions, and the total of all.

With p features and q directions kept, q << p, nothing larger than 3 q x p is made. What is exact in
spite of that, because it takes p numbers only: the location, every feature's variance, hence the
trace. Rows gather until there are q new ones; then the q leading directions of all rows stay, and
what is cut remains in the variances (an incremental singular value decomposition; Levey and
Lindenbaum 2000, Ross and others 2008). MATH section 15.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._moments import triangular_factor

__all__ = ["LowRankMoments", "along_components", "eigenvalues_of", "leading_rows", "sketch_size"]

Array = npt.NDArray[np.float64]
_FEWEST = 16  # directions more than are asked for
_SETTLED = 1e-12
_ROUNDS = 200


def sketch_size(n_components: int) -> int:
    """Directions to keep, so that the last of those asked for does not suffer from the cuts."""
    return n_components + max(n_components, _FEWEST)


@dataclass(frozen=True)
class LowRankMoments:
    """Weighted second moment of the gradients seen so far, up to what was cut; never changed.

    Coordinates that are to be eliminated come first: a one where moments are about the mean, then
    the intercept's. Rows are reflected such that these coordinates are zero in all but the head,
    as in the triangular factor of `GradientMoments`, so offsets cancel in no difference.

    Attributes
    ----------
    size : int
        Directions that a cut keeps.
    centered : bool
        Whether the second moment is taken about the mean.
    has_intercept : bool
        Whether the first coordinate of a gradient is the intercept's.
    head : ndarray of shape (c, c + n_features)
        Upper trapezoidal, c the number of coordinates eliminated, two at most.
    blocks : tuple of ndarray of shape (*, n_features)
        ``sum rows'rows`` is the centred second moment times `weight`, but for what was cut.
    squares : ndarray of shape (n_features,)
        Diagonal of that sum, with nothing cut.
    waiting : int
        Gradients since the last cut.
    weight : float
        Sum of the weights.
    n_gradients : int
        Number of gradients with a positive weight.
    key : bytes or None
        Round that all belong to, where moments are about its mean.
    """

    size: int
    centered: bool
    has_intercept: bool
    head: Array
    blocks: tuple[Array, ...]
    squares: Array
    waiting: int = 0
    weight: float = 0.0
    n_gradients: int = 0
    key: bytes | None = None

    @classmethod
    def empty(
        cls, n_features: int, *, centered: bool, has_intercept: bool, size: int
    ) -> "LowRankMoments":
        """Moments of no gradients: the neutral element of `merge`."""
        c = centered + has_intercept
        return cls(
            size, centered, has_intercept, np.zeros((c, c + n_features)), (), np.zeros(n_features)
        )

    def update(
        self, gradients: npt.ArrayLike, weights: npt.ArrayLike | None = None, key: bytes = b""
    ) -> "LowRankMoments":
        """Return the moments after these gradients too.

        Cuts come after every `size` gradients, wherever chunks begin: so the result does not
        depend on them, up to rounding.

        Parameters
        ----------
        gradients : array-like of shape (n_gradients, p)
            One gradient a row, the intercept's coordinate in front if there is one.
        weights : array-like of shape (n_gradients,), default=None
            Weight of each gradient; None is one. Rows of weight zero are passed over.
        key : bytes, default=b""
            Names the round that they belong to.

        Raises
        ------
        ValueError
            If moments about the mean are to hold gradients of another round.
        """
        rows = np.asarray(gradients, dtype=np.float64)
        w = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
        if not np.all(w > 0):
            rows, w = rows[w > 0], w[w > 0]
        out, start = replace(self, key=self._same_round(key if len(rows) else None)), 0
        while start < len(rows):
            stop = start + self.size - out.waiting
            out = out._add(rows[start:stop], np.sqrt(w[start:stop]))
            start = stop
        return out

    def merge(self, other: "LowRankMoments") -> "LowRankMoments":
        """Return the moments of both: associative and commutative up to rounding and cuts.

        Raises
        ------
        ValueError
            If the two differ in their coordinates, in size, or in the round they belong to.
        """
        mine, theirs = self._layout, other._layout
        if mine != theirs:
            raise ValueError(f"Cannot merge moments of {theirs} into moments of {mine}.")
        head, more = _eliminate(np.vstack([self.head, other.head]), len(self.head))
        waiting = self.waiting + other.waiting
        out = replace(
            self,
            head=head,
            blocks=(*self.blocks, more, *other.blocks),
            squares=self.squares + other.squares + np.sum(more**2, axis=0),
            waiting=waiting,
            weight=self.weight + other.weight,
            n_gradients=self.n_gradients + other.n_gradients,
            key=self._same_round(other.key),
        )
        return out._cut(0 if waiting >= self.size else 2 * self.size)

    @property
    def _layout(self) -> str:
        c, columns = self.head.shape
        return (
            f"{columns - c} features (centered={self.centered}, has_intercept="
            f"{self.has_intercept}, size={self.size})"
        )

    def _same_round(self, key: bytes | None) -> bytes | None:
        if not self.centered or key is None or self.key in (None, key):
            return self.key if key is None else key
        raise ValueError(
            "With n_components, gradients of single noise have to be of one round: at other "
            "coefficients their mean is another, and the means of all rounds are not kept. Use "
            "noise='antithetic', or the same coef and intercept for all chunks."
        )

    def _add(self, rows: Array, roots: Array) -> "LowRankMoments":
        gradients = rows * roots[:, None]
        if self.centered:
            gradients = np.hstack([roots[:, None], gradients])
        head, more = _eliminate(np.vstack([self.head, gradients]), len(self.head))
        waiting = self.waiting + len(rows)
        out = replace(
            self,
            head=head,
            blocks=(*self.blocks, more),
            squares=self.squares + np.sum(more**2, axis=0),
            waiting=waiting,
            weight=self.weight + float(np.sum(roots**2)),
            n_gradients=self.n_gradients + len(rows),
        )
        return out._cut(0) if waiting >= self.size else out

    def _cut(self, most: int) -> "LowRankMoments":
        """Return the moments with the leading rows alone, if there are more than so many."""
        if sum(len(block) for block in self.blocks) <= most:
            return self
        if not np.isfinite(self.squares).all():  # to be refused, see `sums`
            return replace(self, waiting=0)
        return replace(self, blocks=(leading_rows(self.rows(), self.size)[1],), waiting=0)

    def rows(self) -> Array:
        """Root of the sum of outer products, of shape (n_rows, n_features)."""
        return np.concatenate([*self.blocks, np.zeros((0, len(self.squares)))])

    def sums(self) -> tuple[Array, ...]:
        """Everything that was summed, to be looked at for overflow."""
        return self.head, self.squares

    @property
    def divisor(self) -> float:
        """What turns sums into a covariance: for equal weights about a mean, k - 1."""
        spread = self.weight
        if self.centered and self.n_gradients > 1:
            spread *= 1 - 1 / self.n_gradients
        return spread or 1.0

    @property
    def n_independent(self) -> int:
        """Gradients of the round."""
        return self.n_gradients

    @property
    def mean(self) -> Array:
        """Mean gradient, where moments are about it."""
        if not self.centered or not self.weight:
            return np.zeros(self.head.shape[1] - self.centered)
        return self.head[0, 1:] / self.head[0, 0]

    @property
    def location(self) -> Array:
        """What a feature's gradient is of the intercept's: the mean of the feature."""
        c = int(self.centered)
        if not self.has_intercept or not self.head[c, c]:
            return np.zeros(len(self.squares))
        return self.head[c, c + 1 :] / self.head[c, c]

    def intercept_variance(self) -> float:
        """Variance of the intercept's gradient."""
        c = int(self.centered)
        return float(self.head[c, c] ** 2 / self.divisor)

    def last_variance(self) -> float:
        """Second moment of the last coordinate, with nothing eliminated but the mean."""
        c = int(self.centered)
        return float((np.sum(self.head[c:, -1] ** 2) + self.squares[-1]) / self.divisor)

    def squared_intercept(self) -> float:
        """Squared mean of the intercept's gradient; NaN of one gradient, as its variance is."""
        return float(self.mean[0] ** 2) if self.n_gradients > 1 else np.nan


def _eliminate(rows: Array, n_columns: int) -> tuple[Array, Array]:
    """Reflect rows such that the first columns are zero in all but as many rows (Householder).

    Returns the head, and the other columns of the other rows.
    """
    for j in range(n_columns):
        x = rows[j:, j].copy()
        largest = np.abs(x).max()
        if not largest > 0:
            continue
        x /= largest
        x[0] += np.copysign(np.linalg.norm(x), x[0])
        rows[j:, j:] -= np.outer(x * (2 / (x @ x)), x @ rows[j:, j:])
        rows[j + 1 :, j] = 0.0
        if rows[j, j] < 0:
            rows[j] = -rows[j]
    return rows[:n_columns].copy(), rows[n_columns:, n_columns:]


def leading_rows(rows: Array, size: int) -> tuple[Array, Array]:
    """Singular values of the rows, and the rows turned onto their first singular directions.

    Turned rows ``U'A`` are as accurate, column by column, as the rows themselves: features in
    large units spoil no others.
    """
    _, values, turn = np.linalg.svd(triangular_factor(rows.T))
    kept = min(size, *rows.shape)
    return values[:kept], turn[:kept] @ rows


def along_components(seen: Array, rest: float, ratio: float) -> tuple[Array, Array]:
    """Return what sample eigenvalues say of the true ones, in the spiked model.

    Parameters
    ----------
    seen : ndarray of shape (k,)
        Largest eigenvalues of the covariance of the gradients.
    rest : float
        Variance in every other direction.
    ratio : float
        Other directions over gradients.

    Returns
    -------
    eigenvalues : ndarray of shape (k,)
        Eigenvalues of which a sample shows these on average; `rest` where noise alone shows as
        much.
    variances : ndarray of shape (k,)
        Variance of new data along the eigenvectors *of the sample*, which are off by an angle.
    """
    if not rest > 0 or not ratio > 0:
        return seen, seen
    t = seen / rest
    half = (t + 1 - ratio) / 2
    stands_out = t > (1 + np.sqrt(ratio)) ** 2
    # seen = value (1 + ratio/(value - 1)) in units of the rest
    value = np.where(stands_out, half + np.sqrt(np.maximum(half**2 - t, 0.0)), 1.0)
    excess = np.where(stands_out, value - 1, 1.0)
    cosine2 = np.where(stands_out, (1 - ratio / excess**2) / (1 + ratio / excess), 0.0)
    return rest * value, rest * (1 + (value - 1) * np.maximum(cosine2, 0.0))


def eigenvalues_of(
    seen: Array, trace: float, n_features: int, n_gradients: float
) -> tuple[Array, float]:
    """Variances along the leading sample eigenvectors, and the mean variance of all the others.

    The trace of a sample covariance is unbiased, so the others have what the leading ones leave of
    it; what the leading ones have depends on the others. The largest solution is taken: where
    gradients are too few to tell noise from signal, all is noise.

    Parameters
    ----------
    seen : ndarray of shape (k,)
        Leading eigenvalues of the sample covariance.
    trace : float
        Its trace.
    n_features : int
        Its size.
    n_gradients : float
        Gradients that it was made of.
    """
    others = n_features - len(seen)
    if not others:
        return seen, 0.0
    rest, ratio = trace / n_features, others / n_gradients
    for _ in range(_ROUNDS):
        before, variances = rest, along_components(seen, rest, ratio)[1]
        out = variances > rest  # the others have the rest, whatever it is
        rest = max((trace - float(variances[out].sum())) / (n_features - out.sum()), 0.0)
        if rest * n_features <= _SETTLED * trace:
            return seen, 0.0
        if abs(rest - before) <= _SETTLED * rest:
            break
    return along_components(seen, rest, ratio)[1], rest
