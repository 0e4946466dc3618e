"""Factorise a covariance once, then solve and whiten many times.

Whether a direction is singular is judged against the rounding error of the features that make it
up, so a feature in small units is not taken for a constant one and a large offset is not taken for
signal. Singular directions are projected out: every result is that of the pseudo-inverse, and the
object says how many directions it left out.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack, solve_triangular

from sklearn_gradhess._moments import triangular_factor

__all__ = ["Factor", "Preconditioner", "factorize", "gram_roots", "whitening"]

Array = npt.NDArray[np.float64]
Whitening = Literal["zca", "pca", "cholesky"]
_EPS = float(np.finfo(np.float64).eps)
# Reciprocal condition number of a scaled Gram matrix from which its factor is some percent off
_TRUSTED = 1e-13


class Preconditioner:
    """A factorised covariance, made by `factorize`.

    Attributes
    ----------
    root : ndarray of shape (rank, d)
        Upper triangular (trapezoidal when singular) R with ``R'R`` the damped covariance.
    rank : int
        Numerical rank.
    n_clipped : int
        Number of directions left out as singular, d - rank.
    damping : float
        Multiple of the identity that was added to the covariance.
    constant : ndarray of shape (d,)
        Marks the features without variance.
    """

    def __init__(self, root: Array, damping: float, constant: npt.NDArray[np.bool_]) -> None:
        self.root = root
        self.damping = damping
        self.constant = constant
        self.rank = root.shape[0]
        self.n_clipped = root.shape[1] - self.rank

    def __repr__(self) -> str:
        return (
            f"Preconditioner(rank {self.rank} of {self.root.shape[1]}, condition number "
            f"{self.condition_number:.3g}, damping {self.damping:g})"
        )

    @cached_property
    def condition_number(self) -> float:
        """Ratio of the extreme kept eigenvalues, with every feature scaled to unit variance."""
        if not self.rank:
            return 1.0
        s = np.linalg.svd(self.root / _norms(self.root), compute_uv=False)
        return float((s[0] / s[-1]) ** 2)

    @cached_property
    def _svd(self) -> tuple[Array, Array]:
        _, s, vt = np.linalg.svd(self.root, full_matrices=False)
        # Signs as in scikit-learn's PCA: the largest entry of every component is positive
        vt *= np.sign(vt[np.arange(self.rank), np.argmax(np.abs(vt), axis=1)])[:, None]
        return s, vt

    def solve(self, gradients: npt.ArrayLike) -> Array:
        """Multiply gradients by the (pseudo-)inverse covariance.

        Parameters
        ----------
        gradients : array-like of shape (d,) or (n_gradients, d)
            One right-hand side a row.

        Returns
        -------
        directions : ndarray of the shape of `gradients`
            Newton directions.
        """
        g = np.asarray(gradients, dtype=np.float64)
        if self.n_clipped:
            s, vt = self._svd
            return (g @ vt.T / s**2) @ vt
        half = solve_triangular(self.root, g.T, trans="T", check_finite=False)
        return solve_triangular(self.root, half, check_finite=False).T

    def inverse(self) -> Array:
        """Return the (pseudo-)inverse covariance, of shape (d, d) and exactly symmetric."""
        whiten = self.whitening("pca" if self.n_clipped else "cholesky")[0]
        return whiten @ whiten.T

    def whitening(self, method: Whitening = "cholesky") -> tuple[Array, Array]:
        """Return W and its (pseudo-)inverse: the rows of ``X @ W`` have the identity covariance.

        Parameters
        ----------
        method : {"zca", "pca", "cholesky"}, default="cholesky"
            "zca": the symmetric root, whose output stays closest to the input. "pca": principal
            components in the order of decreasing variance, scaled to one. "cholesky": inverse of
            the triangular factor. Directions left out come out as zeros.

        Returns
        -------
        whiten, unwhiten : ndarray of shape (d, d)
        """
        if method == "cholesky" and not self.n_clipped:
            (inverse, _) = lapack.dtrtri(self.root)
            return inverse, self.root
        s, vt = self._svd
        if method == "zca":
            return (vt.T / s) @ vt, (vt.T * s) @ vt
        whiten, unwhiten = vt.T / s, vt * s[:, None]
        if method == "cholesky":  # rotate the components onto the trapezoidal root
            rotation = self.root @ whiten
            whiten, unwhiten = whiten @ rotation.T, self.root
        pad = (0, self.n_clipped)
        return np.pad(whiten, ((0, 0), pad)), np.pad(unwhiten, (pad, (0, 0)))


def factorize(
    factor: Array, *, damping: float = 0.0, rounding: Array | None = None
) -> Preconditioner:
    """Factorise the covariance ``factor'factor + damping I``.

    Parameters
    ----------
    factor : ndarray of shape (m, d)
        Any root of the covariance; upper triangular ones of shape (d, d) are taken as they are.
    damping : float, default=0.0
        Multiple of the identity to add.
    rounding : ndarray of shape (d,), default=None
        Rounding error in each column of the factor. None takes the machine precision times the
        column's norm; larger where a large offset was subtracted before.

    Returns
    -------
    preconditioner : Preconditioner
        Ready to solve and whiten; look at its `n_clipped`.

    Raises
    ------
    ValueError
        If `damping` is negative or the factor is not finite.
    """
    if not damping >= 0:
        raise ValueError(f"damping must be >= 0, got {damping:g}.")
    if not np.all(np.isfinite(factor)):
        raise ValueError("The covariance factor has NaN or infinite entries.")
    d = factor.shape[1]
    if damping:
        factor = np.concatenate([factor, np.sqrt(damping) * np.eye(d)])
    if factor.shape[0] != d or np.any(np.tril(factor, -1)) or np.any(np.diag(factor) < 0):
        factor = _triangular(factor)
        factor = np.pad(factor, ((0, d - len(factor)), (0, 0)))
    norms = _norms(factor)
    noise = np.finfo(np.float64).eps * norms if rounding is None else rounding
    noise = d * noise / norms
    constant = (noise >= 1) | ~factor.any(axis=0)
    # Cheap test first: the condition number in the 1-norm proves full rank when far from the noise.
    # A constant feature's column is rounding error; at unit length it would taint its neighbours
    scaled = np.where(constant, 0.0, factor / norms)
    noise = np.where(constant, 0.0, noise)
    inverse, info = lapack.dtrtri(scaled)
    if not info:
        with np.errstate(over="ignore"):
            condition = np.linalg.norm(scaled, 1) * np.linalg.norm(inverse, 1)
        if condition * 10 * d * noise.max() < 1:
            return Preconditioner(factor, damping, constant)
    filled = scaled[scaled.any(axis=1)]  # few rows fill as many of the factor's
    _, s, vt = np.linalg.svd(filled, full_matrices=False)
    least = d * np.finfo(np.float64).eps * s.max(initial=0.0)
    kept = s > np.maximum(np.sqrt(vt**2 @ noise**2), least)
    if np.count_nonzero(kept) == d:
        return Preconditioner(factor, damping, constant)
    clipped = (s[kept, None] * vt[kept]) * norms
    return Preconditioner(_triangular(clipped), damping, constant)


def _cutoff(d: int, precision: float) -> float:
    """Return what rounding can make of nothing: standard deviation over root mean square.

    512 eps covers what is left of a constant feature beside an intercept. Features are rounded in
    their own precision, independently, which sums over d of them to sqrt(d).
    """
    return max(max(512, d) * _EPS, 4 * np.sqrt(d) * precision)


def whitening(
    factor: Array, *, has_intercept: bool, alpha: Array | float = 0.0, precision: float = _EPS
) -> tuple[Array, int]:
    """Return T with T T' a generalised inverse of factor'factor plus a ridge on the features.

    The intercept, the first coordinate, is eliminated before singular directions are looked for:
    so they are directions of the centred features. The solution without them leaves the intercept
    alone, and has the least norm with every coefficient per standard deviation of its feature.

    Parameters
    ----------
    factor : ndarray of shape (p, p)
        Upper triangular, built up from blocks of rows.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    alpha : float or ndarray of shape (d,), default=0.0
        Ridge on each feature.
    precision : float, default=machine epsilon
        Rounding error of the features, relative.

    Returns
    -------
    T : ndarray of shape (p, p)
        Zero columns stand for singular directions.
    n_clipped : int
        Number of singular directions.
    """
    h = int(has_intercept)
    d = factor.shape[1] - h
    centered = factor[h:, h:]
    # factorize multiplies by d
    rounding = _cutoff(d, precision) / max(d, 1) * _norms(factor)[h:]
    if np.any(alpha):
        centered = triangular_factor(
            np.vstack([centered, np.diag(np.sqrt(np.broadcast_to(alpha, d)))])
        )
    preconditioner = factorize(centered, rounding=rounding)
    clipped = preconditioner.n_clipped
    if clipped:
        norms = np.where(preconditioner.constant, np.inf, _norms(centered))
        _, singular, vt = np.linalg.svd(preconditioner.root / norms, full_matrices=False)
        inner = np.pad((vt.T / singular) / norms[:, None], ((0, 0), (0, clipped)))
    else:
        inner = preconditioner.whitening()[0]
    if not h:
        return inner, clipped
    if not factor[0, 0] > 0:
        return _with_intercept(inner, 0.0, np.zeros(d)), clipped + 1
    return _with_intercept(inner, 1 / factor[0, 0], factor[0, 1:] / factor[0, 0]), clipped


def gram_roots(
    gram: Array,
    shift: Array,
    *,
    has_intercept: bool,
    alpha: Array | float = 0.0,
    precision: float = _EPS,
) -> tuple[Array, Array, float, int] | None:
    """Return T and R of a Gram matrix of rows (1, x - shift), ``T T' = (R'R + alpha)^-1``.

    By the Cholesky factor of the matrix scaled to unit diagonal: fast, but the condition number is
    squared. None where so little is left that rounding would decide: no rank is judged here.

    Parameters
    ----------
    gram : ndarray of shape (p, p)
        Symmetric.
    shift : ndarray of shape (d,)
        What was subtracted from the features; zero without an intercept.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    alpha : float or ndarray of shape (d,), default=0.0
        Ridge on each feature.
    precision : float, default=machine epsilon
        Rounding error of the features, relative.

    Returns
    -------
    T : ndarray of shape (p, p)
        Inverse root in the coordinates of (1, x).
    R : ndarray of shape (p, p)
        Upper triangular root of the matrix without the ridge, in the same coordinates.
    condition : float
        Reciprocal condition number of the scaled matrix.
    n_constant : int
        Features that are constant to the digits they have, and left out: no rank is in doubt there.
    """
    h = int(has_intercept)
    centered, mean, total = gram, shift, 1.0
    if h:
        total = float(gram[0, 0])
        if not total > 0:
            return None
        first = gram[0, 1:] / total
        centered = gram[1:, 1:] - np.outer(gram[0, 1:], first)
        mean = shift + first
    variance = centered.diagonal()
    diagonal = variance + alpha
    scale = np.sqrt(np.maximum(diagonal, 0.0))
    spread = _cutoff(len(scale), precision) * np.sqrt(np.maximum(variance, 0) + total * mean**2)
    kept = scale > spread
    if not kept.all():
        # A sum of zero tells a feature that is zero from one whose squares vanish
        known = spread > 0
        if h:
            known |= (gram[0, 1:] == 0) & (shift == 0) & (variance == 0)
        if np.all(kept | known) and np.isfinite(spread).all():
            return _without(gram, shift, kept, mean, total, has_intercept, alpha, precision)
    if not (np.all(scale > 0) and np.isfinite(scale).all()):
        return None
    correlation = centered / scale / scale[:, None]
    penalised = np.any(alpha)
    if penalised:
        correlation.flat[:: len(scale) + 1] = diagonal / scale / scale
    noise = np.max(spread / scale, initial=0.0)
    inverse = _inverse_cholesky(correlation, max(_TRUSTED, (10 * noise) ** 2))
    if inverse is None:
        return None
    T, root, condition = inverse
    root = _root(centered, variance) if penalised else root * scale
    T = T / scale[:, None]
    if not h:
        return T, root, condition, 0
    R = np.zeros((len(root) + 1, len(root) + 1))
    R[0, 0], R[0, 1:], R[1:, 1:] = np.sqrt(total), np.sqrt(total) * mean, root
    return _with_intercept(T, 1 / np.sqrt(total), mean), R, condition, 0


def _without(
    gram: Array,
    shift: Array,
    kept: npt.NDArray[np.bool_],
    mean: Array,
    total: float,
    has_intercept: bool,
    alpha: Array | float,
    precision: float,
) -> tuple[Array, Array, float, int] | None:
    """`gram_roots` of the features kept; the others are constant, and have but a mean."""
    h = int(has_intercept)
    index = np.flatnonzero(np.concatenate([np.ones(h, dtype=bool), kept]))
    block = np.ix_(index, index)
    found: tuple[Array, Array, float, int] | None
    if kept.any():
        found = gram_roots(
            gram[block],
            shift[kept],
            has_intercept=has_intercept,
            alpha=np.broadcast_to(alpha, len(kept))[kept],
            precision=precision,
        )
    else:
        root = np.full((h, h), np.sqrt(total))
        found = 1 / root, root, 1.0, 0
    if found is None:
        return None
    T, R = np.zeros_like(gram, order="C"), np.zeros_like(gram, order="C")
    T[block], R[block] = found[0], found[1]
    if h:
        R[0, 1:][~kept] = np.sqrt(total) * mean[~kept]
    return T, R, found[2], found[3] + int(np.sum(~kept))


def _inverse_cholesky(correlation: Array, least: float) -> tuple[Array, Array, float] | None:
    """Inverse of the Cholesky factor, the factor, and the reciprocal condition number."""
    norm = float(np.abs(correlation).sum(axis=0).max(initial=0.0))
    factor, info = lapack.dpotrf(correlation, clean=1)
    if info:
        return None
    condition = float(lapack.dpocon(factor, norm)[0])
    return (lapack.dtrtri(factor)[0], factor, condition) if condition > least else None


def _root(gram: Array, diagonal: Array) -> Array:
    """Triangular root of a symmetric matrix that may be singular."""
    scale = np.sqrt(diagonal.clip(0))
    scale = np.where(scale > 0, scale, 1.0)
    correlation = gram / scale / scale[:, None]
    found = _inverse_cholesky(correlation, _TRUSTED)
    if found is not None:
        return found[1] * scale
    values, vectors = np.linalg.eigh(correlation)
    values[values < len(values) * _EPS * values[-1]] = 0.0
    return _triangular(np.sqrt(values)[:, None] * vectors.T * scale)


def _with_intercept(inner: Array, first: float, mean: Array) -> Array:
    T = np.zeros((len(inner) + 1, len(inner) + 1))
    T[0, 0], T[0, 1:], T[1:, 1:] = first, -mean @ inner, inner
    return T


@dataclass(frozen=True)
class Factor:
    """Preconditioner P of the columns of W in factor form, exact or sketched.

    Attributes
    ----------
    roots : tuple of ndarray of shape (p, p)
        T with ``T T' = P^-1``, a column of W each, or one that serves all.
    factors : tuple of ndarray of shape (p, p)
        Triangular roots of the Hessians, without penalty.
    n_clipped : int
        Singular directions left out.
    ratio : float
        Coefficients over batches, c in the Marchenko-Pastur law; zero where P is exact.
    batch_size, n_batches : int
        Rows in a batch, and batches.
    coupling : int
        Bound on the eigenvalues of the Hessian against its diagonal blocks. Where columns are
        coupled, a shift of all of them by the same coefficients changes nothing: no step does it.
    """

    roots: tuple[Array, ...]
    factors: tuple[Array, ...]
    n_clipped: int
    ratio: float
    batch_size: int
    n_batches: int
    coupling: int = 1

    def solve(self, gradient: Array) -> Array:
        """P^-1 times the gradient, of shape (p, t)."""
        if len(self.roots) == 1:
            T = self.roots[0]
            return T @ (T.T @ gradient)
        columns = zip(self.roots, gradient.T, strict=True)
        step = np.column_stack([T @ (T.T @ g) for T, g in columns])
        if self.coupling > 1:
            step -= step.mean(axis=1, keepdims=True)
        return step

    def decrement(self, gradient: Array) -> float:
        """Squared Newton decrement, ``g' P^-1 g``."""
        return float(np.sum(gradient * self.solve(gradient)))

    def degrees_of_freedom(self, n_columns: int) -> float:
        """Effective number of coefficients ``tr H (H + alpha)^-1`` of so many columns of W."""
        each = zip(self.roots, self.factors, strict=True)
        total = sum(float(np.sum((R @ T) ** 2)) for T, R in each)
        return total * n_columns / len(self.roots)

    @property
    def ends(self) -> tuple[float, float]:
        """Extreme eigenvalues of P^-1 H by the law: ``(1 - c)/(1 +- sqrt(c))^2``."""
        c = self.ratio
        return (1 - c) / (1 + np.sqrt(c)) ** 2, (1 - c) / (1 - np.sqrt(c)) ** 2

    def scaled_to(self, other: "Factor", ridge: Array) -> "Factor":
        """Scale so that the Hessian of another factor has eigenvalues of mean one in this one."""
        total = 0.0
        for T in self.roots:
            total += sum(float(np.sum((R @ T) ** 2)) for R in other.factors) / len(other.factors)
            total += float(np.sum(ridge * T**2))
        mean = total / max(sum(int(T.any(axis=0).sum()) for T in self.roots), 1)
        return replace(self, roots=tuple(T / np.sqrt(mean) for T in self.roots)) if mean else self


def _triangular(root: Array) -> Array:
    r = np.asarray(np.linalg.qr(root, mode="r"))
    return r * np.where(np.diag(r) < 0, -1.0, 1.0)[:, None]


def _norms(factor: Array) -> Array:
    largest = np.max(np.abs(factor), axis=0)
    largest = np.where(largest > 0, largest, 1.0)
    norms = largest * np.sqrt(np.sum((factor / largest) ** 2, axis=0))
    return np.where(norms > 0, norms, 1.0)
