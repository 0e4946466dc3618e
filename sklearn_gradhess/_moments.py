"""Mergeable second moments of batch gradients, in triangular-factor form.

The accumulator never forms a Gram matrix. It keeps the triangular factor R of the weighted rows,
``R'R = sum_b w_b (g_b - mean)(g_b - mean)'``, and stacks: merging is the QR factorisation of one
factor on top of the other, so the result is positive semidefinite by construction, the condition
number is not squared, and no order of updates is better than another (MATH section 4.4).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

__all__ = [
    "GradientMoments",
    "Round",
    "RoundMeans",
    "centered_block",
    "triangular_factor",
    "updated_triangle",
]

Array = npt.NDArray[np.float64]
# Rounds that may still go on. The oldest beyond these is closed, so that a long stream at moving
# coefficients takes no more memory and time than a short one.
MAX_ROUNDS = 64
_PANEL = 16  # columns that are eliminated together


def triangular_factor(rows: Array) -> Array:
    """Upper triangular R of shape (d, d) with ``R'R = rows'rows`` and no negative diagonal.

    Cholesky factorisation of the Gram matrix runs at the speed of matrix products, but its
    relative error is the machine precision times the squared condition number. So it serves
    where that is below 1e-11, with the columns scaled to unit norm. Up to 1e-4 its inverse makes
    the rows nearly orthonormal, and a second factorisation of those has all digits (Fukaya and
    others 2014, "CholeskyQR2"); LAPACK's QR does the rest.
    """
    k, d = rows.shape
    if k >= 2 * d:
        with np.errstate(over="ignore", invalid="ignore"):
            gram = rows.T @ rows
        scale = np.sqrt(np.diag(gram))
        if np.isfinite(gram).all() and np.all(scale > 1e-145):
            correlation = gram / scale / scale[:, None]
            factor, info = lapack.dpotrf(correlation, clean=1)
            condition = 0.0
            if not info:
                condition = lapack.dpocon(factor, np.linalg.norm(correlation, 1))[0]
            if condition > 2e-5:
                return factor * scale
            if condition > 2e-12:
                inverse = lapack.dtrtri(factor)[0]
                rows = rows @ (inverse / scale[:, None])
                return lapack.dpotrf(rows.T @ rows, clean=1)[0] @ factor * scale
    rows = rows[rows.any(axis=1)]
    if len(rows) >= d:
        return updated_triangle(np.zeros((d, d)), rows)
    factor = np.zeros((d, d))  # of few rows, with as few
    if len(rows):
        r = np.linalg.qr(rows, mode="r")
        factor[: len(r)] = r
    return factor * np.where(np.diag(factor) < 0, -1.0, 1.0)[:, None]


def updated_triangle(factor: Array, rows: Array) -> Array:
    """Triangular factor of rows below a triangular factor, without a look at its zeros.

    Elimination by reflections that touch a row of the factor and the rows: half of the work of a
    QR of the two stacked, a quarter if the rows are triangular too (LAPACK's tpqrt).

    Parameters
    ----------
    factor : ndarray of shape (d, d)
        Upper triangular.
    rows : ndarray of shape (k, d)
        What comes in.

    Returns
    -------
    factor : ndarray of shape (d, d)
        Upper triangular, with no negative diagonal.
    """
    k, d = rows.shape
    if not (k and d):
        return factor
    triangular = d if k == d and not np.tril(rows, -1).any() else 0
    out = np.triu(lapack.dtpqrt(triangular, min(_PANEL, d), factor, rows)[0])
    return out * np.where(np.diag(out) < 0, -1.0, 1.0)[:, None]


class Round(NamedTuple):
    """Gradients of one law, taken at the same coefficients: their mean, weight and number."""

    mean: Array
    weight: float
    n_gradients: int

    @property
    def spread(self) -> float:
        """Weight of the covariance that the scatter about the mean shows."""
        return self.weight * (1 - 1 / self.n_gradients)

    def join(self, other: "Round") -> "Round":
        """Return the round of the gradients of both."""
        weight = self.weight + other.weight
        mean = self.mean + (other.weight / weight) * (other.mean - self.mean)
        return Round(mean, weight, self.n_gradients + other.n_gradients)


class RoundMeans(NamedTuple):
    """What the means of rounds are needed for once no gradient is to come.

    Attributes
    ----------
    rows : ndarray of shape (n_rows, d)
        ``rows'rows`` is the sum of ``spread mean mean'`` over the rounds.
    spread : float
        Sum of their spreads.
    degrees : int
        Degrees of freedom of the scatter: gradients less rounds.
    noise : float
        Sum of ``spread / n_gradients``; over `spread` it is the variance of a mean, in units of
        the covariance.
    """

    rows: Array
    spread: float = 0.0
    degrees: int = 0
    noise: float = 0.0

    def add(self, rounds: list[Round]) -> "RoundMeans":
        """Return the sums over these rounds too; one of a single gradient shows no scatter."""
        rounds = [r for r in rounds if r.n_gradients > 1]
        if not rounds:
            return self
        spread = np.array([r.spread for r in rounds])
        counts = np.array([r.n_gradients for r in rounds])
        rows = np.sqrt(spread)[:, None] * np.array([r.mean for r in rounds])
        return self.join(
            RoundMeans(
                rows, float(spread.sum()), int((counts - 1).sum()), float((spread / counts).sum())
            )
        )

    def join(self, other: "RoundMeans") -> "RoundMeans":
        """Return the sums over the rounds of both."""
        rows = np.concatenate([self.rows, other.rows])
        return RoundMeans(
            rows if len(rows) <= 2 * rows.shape[1] else triangular_factor(rows),
            self.spread + other.spread,
            self.degrees + other.degrees,
            self.noise + other.noise,
        )


@dataclass(frozen=True)
class GradientMoments:
    """Weighted mean and second moment of the gradients seen so far; a value, never changed.

    Parameters
    ----------
    factor : ndarray of shape (d, d)
        Upper triangular factor of the weighted sum of outer products: about the mean of each
        round when `centered`, about zero otherwise.
    mean : ndarray of shape (d,)
        Weighted mean of the gradients.
    weight : float
        Sum of the weights.
    n_gradients : int
        Number of gradients with a positive weight.
    centered : bool
        Whether the second moment is taken about the mean. Antithetic half differences are known
        to have mean zero, so nothing is to be subtracted from them (MATH section 2.2).
    rounds : dict of Round
        By a key of the law that they share, where moments are centred: what lies between the means
        of rounds is no covariance. Given none, all are of one round.
    closed : RoundMeans
        Rounds that nothing is added to any more.
    """

    factor: Array
    mean: Array
    weight: float
    n_gradients: int
    centered: bool
    rounds: dict[bytes, Round] = field(default_factory=dict)
    closed: RoundMeans = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.closed is None:
            object.__setattr__(self, "closed", RoundMeans(np.zeros((0, len(self.mean)))))
        if self.centered and self.weight and not self.rounds and not self.closed.degrees:
            only = Round(self.mean, self.weight, self.n_gradients)
            object.__setattr__(self, "rounds", {b"": only})

    @classmethod
    def empty(cls, n_features: int, *, centered: bool) -> "GradientMoments":
        """Moments of no gradients: the neutral element of `merge`."""
        return cls(np.zeros((n_features, n_features)), np.zeros(n_features), 0.0, 0, centered)

    def update(
        self, gradients: npt.ArrayLike, weights: npt.ArrayLike | None = None, key: bytes = b""
    ) -> "GradientMoments":
        """Return the moments after these gradients too.

        Parameters
        ----------
        gradients : array-like of shape (n_gradients, d)
            One gradient a row.
        weights : array-like of shape (n_gradients,), default=None
            Weight of each gradient; None gives each the weight one. Rows of weight zero are
            passed over.
        key : bytes, default=b""
            Names the round that they belong to.
        """
        rows = np.asarray(gradients, dtype=np.float64)
        w = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
        if not np.all(w > 0):
            rows, w = rows[w > 0], w[w > 0]
        if not len(rows):
            return self
        total = float(w.sum())
        mean = w @ rows / total
        if self.centered:
            rows = rows - mean
        rows = rows * np.sqrt(w)[:, None]
        rounds = {key: Round(mean, total, len(rows))} if self.centered else {}
        block = GradientMoments(rows, mean, total, len(rows), self.centered, rounds)
        return self._stack(block)

    def merge(self, other: "GradientMoments") -> "GradientMoments":
        """Return the moments of both; associative and commutative up to rounding.

        Raises
        ------
        ValueError
            If the two differ in dimension or in being centred.
        """
        if len(self.mean) != len(other.mean) or self.centered != other.centered:
            raise ValueError(
                f"Cannot merge moments of {len(other.mean)} features (centered="
                f"{other.centered}) into moments of {len(self.mean)} (centered={self.centered})."
            )
        if not other.weight:
            return self
        return self._stack(other)

    def _stack(self, other: "GradientMoments") -> "GradientMoments":
        # `other` may carry any factor of its second moment, square or tall.
        weight = self.weight + other.weight
        rows = [other.factor]
        if self.weight:
            rows.append(self.factor)
        rounds, closed = dict(self.rounds), self.closed.join(other.closed)
        for key, theirs in other.rounds.items():
            mine = rounds.get(key)
            if mine:
                # scatter about the joint mean: sqrt(w1 w2 / (w1 + w2)) (mean1 - mean2)
                shift = np.sqrt(mine.weight * theirs.weight / (mine.weight + theirs.weight))
                rows.append((shift * (mine.mean - theirs.mean))[None])
            rounds[key] = mine.join(theirs) if mine else theirs
        if len(rounds) > MAX_ROUNDS:
            oldest = list(rounds)[:-MAX_ROUNDS]
            closed = closed.add([rounds.pop(key) for key in oldest])
        return GradientMoments(
            triangular_factor(np.concatenate(rows) if self.weight else other.factor),
            self.mean + (other.weight / weight) * (other.mean - self.mean),
            weight,
            self.n_gradients + other.n_gradients,
            self.centered,
            rounds,
            closed,
        )

    def round_means(self) -> RoundMeans:
        """Return the sums over all rounds."""
        return self.closed.add(list(self.rounds.values()))

    @property
    def n_independent(self) -> int:
        """Gradients less those that the means of rounds beyond the first cost."""
        if not self.centered or not self.n_gradients:
            return self.n_gradients
        return self.round_means().degrees + 1

    def mapped(self, matrix: Array) -> "GradientMoments":
        """Return the moments of the gradients times a matrix of shape (d, e)."""
        return GradientMoments(
            triangular_factor(self.factor @ matrix),
            self.mean @ matrix,
            self.weight,
            self.n_gradients,
            self.centered,
            {key: r._replace(mean=r.mean @ matrix) for key, r in self.rounds.items()},
            self.closed._replace(rows=self.closed.rows @ matrix),
        )

    def covariance_factor(self) -> Array:
        """Upper triangular F with ``F'F`` the covariance of the gradients.

        About estimated means the divisor is the sum of ``weight (1 - 1/n_gradients)`` over the
        rounds: for equal weights and one round the unbiased k - 1.
        """
        spread = self.round_means().spread if self.centered else 0.0
        divisor = spread or self.weight
        return self.factor / np.sqrt(divisor) if divisor else self.factor

    def sums(self) -> tuple[Array, ...]:
        """Everything that was summed, to be looked at for overflow."""
        return self.factor, self.mean

    def intercept_variance(self) -> float:
        """Variance of the first coordinate, where that is the intercept's."""
        return float(self.covariance_factor()[0, 0] ** 2)

    def last_variance(self) -> float:
        """Variance of the last coordinate."""
        return float(np.sum(self.covariance_factor()[:, -1] ** 2))

    def squared_intercept(self) -> float:
        """Squared mean of the first coordinate, averaged over rounds; NaN without scatter."""
        means = self.round_means()
        return float(np.sum(means.rows[:, 0] ** 2) / means.spread) if means.degrees else np.nan

    def covariance(self) -> Array:
        """Covariance of the gradients, of shape (d, d)."""
        factor = self.covariance_factor()
        return factor.T @ factor


def centered_block(factor: Array) -> tuple[Array, Array]:
    """Split off the first coordinate, the intercept's, of a second moment in factor form.

    Parameters
    ----------
    factor : ndarray of shape (d + 1, d + 1)
        Upper triangular, ``factor'factor`` the second moment of rows (1, x), up to a scale.

    Returns
    -------
    location : ndarray of shape (d,)
        Mean of x; zero if the first coordinate was never seen.
    factor : ndarray of shape (d, d)
        Upper triangular factor of the centred second moment: the Schur complement of the first
        coordinate is the trailing block of the triangular factor (MATH section 1).
    """
    if factor[0, 0] == 0:
        return np.zeros(len(factor) - 1), factor[1:, 1:]
    return factor[0, 1:] / factor[0, 0], factor[1:, 1:]
