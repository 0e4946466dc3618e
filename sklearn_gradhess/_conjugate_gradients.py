"""Conjugate gradients with a preconditioner, and when they have done enough.

Where the preconditioner is near the Hessian (exact, or a sketch whose law is known) the residual
tells how much is left. Where it is not (a diagonal) the residual may be small along directions that
have most to gain: there the gains themselves tell.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ByGains", "ByLaw", "Found", "Inner", "InverseHessian", "Need", "conjugate_gradients"]

Array = npt.NDArray[np.float64]
_FORCING = 1e-2  # share of a decrement that may be left where the next step is made elsewhere
_AGREE = 4.0  # factor up to which a preconditioner and conjugate gradients agree on a decrement
# Shares of what was gained that may be left: far out, and as fast as the descent converges
_LOOSE, _TIGHT = 0.5, 0.02


class InverseHessian(Protocol):
    """What a descent needs of a preconditioner P.

    Attributes
    ----------
    n_clipped : int
        Singular directions, which `solve` leaves alone.
    ratio : float
        Coefficients over batches of a sketch; zero for others.
    factors : tuple of ndarray of shape (p, p)
        Triangular roots of the Hessian, if P is made of any.
    batch_size, n_batches : int
        Rows in a batch of a sketch, and batches.
    """

    @property
    def n_clipped(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    @property
    def factors(self) -> tuple[Array, ...]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def n_batches(self) -> int: ...

    @property
    def ends(self) -> tuple[float, float]:
        """Extreme eigenvalues of P^-1 H; zero and infinity where nothing is known."""

    def solve(self, gradient: Array) -> Array:
        """P^-1 times the gradient, of shape (p, t)."""

    def decrement(self, gradient: Array) -> float:
        """``g' P^-1 g``."""


class Found(NamedTuple):
    """What conjugate gradients found of ``H U = -gradient``.

    Attributes
    ----------
    U, raw : ndarray of shape (p, t) and (n_samples, t)
        Step, and its raw predictions.
    rest : ndarray of shape (p, t)
        Preconditioned residual: what would be added next.
    decrement : float
        ``gradient' H^-1 gradient``, as far as it was found.
    left : float
        Of it, what the step leaves.
    products : int
        Products with the Hessian.
    shrank : float
        Share of the residual's decrement that the last of them left.
    first : float
        Decrement by the preconditioner.
    last : float
        Gain of the last product.
    """

    U: Array
    raw: Array
    rest: Array
    decrement: float
    left: float
    products: int = 0
    shrank: float = 1.0
    first: float = 0.0
    last: float = 0.0


class Need(NamedTuple):
    """What a descent needs to be found.

    Attributes
    ----------
    least : float
        Decrement that may be left in any case.
    law : float
        Share of a decrement that one step by the preconditioner leaves, at most.
    ratio : float
        Of the preconditioner.
    softened : float
        How much less curvature rows may have than those that made the preconditioner.
    dispersion : float
        Decrement from which on the quadratic model is a poor one; infinite if it is exact.
    enough : float
        Decrement below which there is nothing to gain.
    """

    least: float
    law: float = np.inf
    ratio: float = 0.0
    softened: float = 1.0
    dispersion: float = np.inf
    enough: float = 0.0


class Inner(Protocol):
    """When conjugate gradients have done enough, and what they have then found."""

    @property
    def most(self) -> int:
        """Most products with the Hessian."""

    @property
    def lawful(self) -> bool:
        """Whether the preconditioner tells decrements."""

    def enough(self, found: Found, need: Need) -> bool:
        """Whether to stop here."""

    def told(self, found: Found) -> Found:
        """Return what was found, in the light of how the search ended."""

    def leaves(self, found: Found, need: Need) -> float:
        """Decrement that the step leaves, by its model."""

    def trusts(self, found: Found, by_preconditioner: float, need: Need, enough: float) -> bool:
        """Whether the preconditioner, made elsewhere, serves here."""

    def after(self, decrement: float) -> "Inner":
        """Return who judges the next step."""


@dataclass(frozen=True)
class ByLaw:
    """The residual's decrement tells what is left: P is near the Hessian."""

    most: int = 50
    lawful: ClassVar[bool] = True

    def enough(self, found: Found, need: Need) -> bool:
        """Whether the last correction, which is free, leaves little enough.

        A step of decrement d leaves of it about the share d over the dispersion, and more is gained
        elsewhere; for least squares the model holds everywhere.
        """
        forcing = 0.0
        if np.isfinite(need.dispersion):
            forcing = min(_FORCING, found.first / max(need.dispersion, 1e-300))
        share = min(need.law, max(found.shrank, 2 * need.ratio))
        nothing = found.left == found.first and found.first * need.softened <= need.enough
        return nothing or found.left * share <= max(need.least, forcing * found.first)

    def told(self, found: Found) -> Found:
        """Return it as it is."""
        return found

    def leaves(self, found: Found, need: Need) -> float:
        """Return what the last correction leaves of the residual's decrement."""
        share = min(need.law, max(found.shrank, 2 * need.ratio))
        return max(found.left, 0.0) * share * need.softened

    def trusts(self, found: Found, by_preconditioner: float, need: Need, enough: float) -> bool:
        """Whether P and conjugate gradients agree.

        What P says of the residual may be too small by as much as rows softened.
        """
        ratio = found.decrement / max(by_preconditioner, 1e-300)
        worst = found.decrement + (need.softened - 1) * found.left
        return 1 / _AGREE < ratio < _AGREE and not found.decrement <= enough < worst

    def after(self, decrement: float) -> "ByLaw":
        """Judge the same way."""
        return self


@dataclass(frozen=True)
class ByGains:
    """The gains tell what is left: nothing is known of P (Nash and Sofer 1990).

    If all products to come gained as much as the last one on the mean of those so far, they would
    gain j times the last after j of them.

    Attributes
    ----------
    share : float
        Of what was gained, what may be left; zero for least squares, which one search minimises.
    previous : float
        Decrement of the step before.
    most : int
        Most products with the Hessian.
    """

    share: float = _LOOSE
    previous: float = np.inf
    most: int = 250
    lawful: ClassVar[bool] = False

    def enough(self, found: Found, need: Need) -> bool:
        """Whether as many products again would gain little."""
        if not found.products:
            return False
        gained = found.decrement - found.left
        return found.products * found.last <= max(need.least, self.share * gained)

    def told(self, found: Found) -> Found:
        """Say what is left by the gains; the preconditioned residual is of no use."""
        left = found.products * found.last
        decrement = found.decrement - found.left + left
        return found._replace(rest=np.zeros_like(found.rest), left=left, decrement=decrement)

    def leaves(self, found: Found, need: Need) -> float:
        """As the gains tell."""
        return found.left

    def trusts(self, found: Found, by_preconditioner: float, need: Need, enough: float) -> bool:
        """Nothing was promised."""
        return True

    def after(self, decrement: float) -> "ByGains":
        """Ask for more where the descent has become fast."""
        if not self.share:
            return self
        share = float(np.clip(decrement / self.previous, _TIGHT, _LOOSE))
        return replace(self, share=share, previous=decrement)


def conjugate_gradients(
    product: Callable[[Array], tuple[Array, Array]],
    precondition: Callable[[Array], Array],
    judge: Callable[[Array], float] | None,
    gradient: Array,
    raw: Array,
    enough: Callable[[Found], bool],
    most: int = 50,
) -> Found:
    """Solve ``H U = -gradient``.

    Parameters
    ----------
    product : callable
        H times a direction, and its raw predictions.
    precondition : callable
        P^-1 times a residual.
    judge : callable or None
        Decrement of a residual, where that by P is of another scale.
    gradient, raw : ndarray
        Gradient, and an array of the shape of raw predictions.
    enough : callable
        Whether to stop.
    most : int, default=50
        Most products.
    """
    residual = -gradient
    z = precondition(residual)
    direction, rho = z, float(np.sum(residual * z))
    first = rho if judge is None else judge(residual)
    found = Found(np.zeros_like(gradient), np.zeros_like(raw), z, first, first, first=first)
    gained = 0.0
    while found.products < most and rho > 0 and not enough(found):
        image, raw_direction = product(direction)
        curvature = float(np.sum(direction * image))
        if not curvature > 0:
            return found._replace(products=found.products + 1)
        step = rho / curvature
        gained += step * rho
        residual = residual - step * image
        z = precondition(residual)
        previous, rho = rho, float(np.sum(residual * z))
        left = rho if judge is None else judge(residual)
        found = Found(
            found.U + step * direction,
            found.raw + step * raw_direction,
            z,
            gained + left,
            left,
            found.products + 1,
            left / found.left,
            first,
            step * previous,
        )
        direction = z + (rho / previous) * direction
    return found
