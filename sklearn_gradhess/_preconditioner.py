"""Factorise a covariance once, then solve and whiten many times.

Whether a direction is singular is judged against the rounding error of the features that make it
up, so a feature in small units is not taken for a constant one and a large offset is not taken for
signal. Singular directions are projected out: every result is that of the pseudo-inverse, and the
object says how many directions it left out.
"""

from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack, solve_triangular

__all__ = ["Preconditioner", "factorize", "whitening"]

Array = npt.NDArray[np.float64]
Whitening = Literal["zca", "pca", "cholesky"]


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
    condition = np.linalg.norm(scaled, 1) * np.linalg.norm(inverse, 1)
    if not info and condition * 10 * d * noise.max() < 1:
        return Preconditioner(factor, damping, constant)
    _, s, vt = np.linalg.svd(scaled)
    kept = s > np.maximum(np.sqrt(vt**2 @ noise**2), d * np.finfo(np.float64).eps * s[0])
    if kept.all():
        return Preconditioner(factor, damping, constant)
    clipped = (s[kept, None] * vt[kept]) * norms
    return Preconditioner(_triangular(clipped), damping, constant)


def whitening(
    factor: Array, *, has_intercept: bool, alpha: Array | float = 0.0
) -> tuple[Array, int]:
    """Return T with T T' the (pseudo-)inverse of factor'factor plus a ridge on the features.

    The intercept, the first coordinate, is eliminated before singular directions are looked for:
    so they are directions of the centred features, and the solution without them is the
    minimum-norm one that leaves the intercept alone.

    Parameters
    ----------
    factor : ndarray of shape (p, p)
        Upper triangular, built up from blocks of rows.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    alpha : float or ndarray of shape (d,), default=0.0
        Ridge on each feature.

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
    # 512 eps of a column's norm covers what is left of a constant feature beside an intercept;
    # factorize multiplies by d, which is more than enough for many.
    rounding = max(512 / max(d, 1), 1.0) * np.finfo(np.float64).eps * _norms(factor)[h:]
    if np.any(alpha):
        centered = np.vstack([centered, np.diag(np.sqrt(np.broadcast_to(alpha, d)))])
    preconditioner = factorize(centered, rounding=rounding)
    method: Whitening = "pca" if preconditioner.n_clipped else "cholesky"
    inner = preconditioner.whitening(method)[0]
    if not h:
        return inner, preconditioner.n_clipped
    T = np.zeros((d + 1, d + 1))
    T[1:, 1:] = inner
    clipped = preconditioner.n_clipped
    if factor[0, 0] > 0:
        T[0, 0] = 1 / factor[0, 0]
        T[0, 1:] = -(factor[0, 1:] / factor[0, 0]) @ inner
    else:
        clipped += 1
    return T, clipped


def _triangular(root: Array) -> Array:
    r = np.asarray(np.linalg.qr(root, mode="r"))
    return r * np.where(np.diag(r) < 0, -1.0, 1.0)[:, None]


def _norms(factor: Array) -> Array:
    largest = np.max(np.abs(factor), axis=0, initial=0.0)
    largest = np.where(largest > 0, largest, 1.0)
    norms = largest * np.sqrt(np.sum((factor / largest) ** 2, axis=0))
    return np.where(norms > 0, norms, 1.0)
