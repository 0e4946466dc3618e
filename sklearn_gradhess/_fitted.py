"""What gradients tell: the Hessian and all that follows from it, derived when it is asked for.

A memory of gradients is one triangular factor and a few vectors. Covariance, precision, whitening
are functions of it; they are computed once, and not pickled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import block_diag, eigh
from sklearn.covariance import ledoit_wolf_shrinkage, oas

from sklearn_gradhess._estimate import Estimate, estimate, kept_gradients
from sklearn_gradhess._moments import centered_block, triangular_factor
from sklearn_gradhess._preconditioner import Preconditioner, factorize
from sklearn_gradhess._schemes import GradientMemory
from sklearn_gradhess._validation import blas_threads

__all__ = ["Fitted", "OneFactor", "derived"]

Array = npt.NDArray[np.float64]
T = TypeVar("T")


def derived(compute: Callable[[Any], T]) -> "cached_property[T]":
    """Property that is computed at most once; what is not finite was refused before, or is said."""

    @wraps(compute)
    def quietly(self: "Fitted") -> T:
        with np.errstate(all="ignore"), blas_threads(self.width):
            return compute(self)

    return cached_property(quietly)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A memory of gradients, and what it tells; a value, never changed.

    Everything is in float64 but `covariance`, `precision`, `location`, `gradient_covariance` and
    `mean_gradient`, which have the dtype of the features that were seen, if it holds them.

    Parameters
    ----------
    memory : GradientMemory
        The gradients.
    batch_size : int
        Rows in a complete batch.
    loss : str
        Loss whose Hessian it is.
    wanted_correction : {"auto", "gaussian", "none"}
        What to do about the nuisance of single noise.
    wanted_shrinkage : float, "ledoit_wolf", "oas" or None
        Shrinkage of the covariance.
    """

    memory: GradientMemory
    batch_size: int
    loss: str = "squared_error"
    wanted_correction: str = "auto"
    wanted_shrinkage: float | str | None = None
    whole: ClassVar[bool] = True  # all directions are known

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self) -> None:
        """Raise ValueError where there is no covariance; looks at the norms of columns alone."""
        memory = self.memory.settled().calibrated()
        if isinstance(self.wanted_shrinkage, str):
            kept_gradients(memory, np.zeros(self.n_features))
        with np.errstate(all="ignore"):
            factor = memory.whole.covariance_factor() / np.sqrt(memory.total_scale or 1.0)
            if memory.has_intercept:
                factor = centered_block(factor)[1]
            scale = np.abs(factor).max(initial=0.0) or 1.0
            self._refuse_overflow(scale * np.linalg.norm(factor / scale, axis=0).max())

    def _refuse_overflow(self, largest: float) -> None:
        dtype = self.memory.dtype
        if float(largest) <= float(np.sqrt(np.finfo(dtype).max)):
            return
        raise ValueError(
            f"The covariance overflows {dtype}: the largest standard deviation of a "
            f"feature is {largest:.3g}. Rescale X"
            + (" or pass float64." if dtype == np.float32 else ".")
        )

    @property
    def noise(self) -> str:
        """Noise scheme."""
        return self.memory.noise

    @property
    def noise_scale(self) -> float:
        """Total noise variance as a multiple of the calibrated one."""
        return self.memory.noise_scale

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.memory.clean_sums.shape[1] - self.memory.has_intercept

    @property
    def width(self) -> int:
        """Columns of the matrices that are factorised."""
        return self.n_features

    @derived
    def settled(self) -> GradientMemory:
        """Count the batch that waits for more rows, and calibrate the noise."""
        return self.memory.settled().calibrated()

    @property
    def n_batches(self) -> int:
        """Batches seen, an incomplete one included."""
        return self.settled.n_batches

    @property
    def n_samples(self) -> int:
        """Rows seen."""
        return self.settled.n_samples

    @property
    def _rounding(self) -> float:
        # Features are rounded in their own precision; sums of k rows then add sqrt(k) of float64's
        k = self.settled.moments.n_gradients
        eps = np.finfo(np.float64).eps
        return float(16 * np.finfo(self.memory.dtype).eps + 2 * np.sqrt(k) * eps)

    @derived
    def _estimate(self) -> Estimate:
        return estimate(
            self.settled,
            correct=self.wanted_correction == "gaussian"
            or (self.wanted_correction == "auto" and self.loss == "squared_error"),
            rounding=self._rounding,
        )

    @derived
    def _centered(self) -> tuple[Array, Array]:
        """Location of the features and root of their covariance, before shrinkage."""
        if self.memory.has_intercept:
            return centered_block(self._estimate.factor)
        return np.zeros(self.n_features), self._estimate.factor

    @derived
    def _shrunk(self) -> tuple[float, Array]:
        """Shrinkage, and the root of the shrunken covariance."""
        shrinkage, (location, factor) = self.wanted_shrinkage, self._centered
        if isinstance(shrinkage, str):
            rows = kept_gradients(self.settled, location)
            if len(rows) < 2:
                shrinkage = 1.0  # one gradient tells no direction from another
            elif shrinkage == "ledoit_wolf":
                shrinkage = ledoit_wolf_shrinkage(rows, assume_centered=True)
            else:
                shrinkage = oas(rows, assume_centered=True)[1]
        shrinkage = float(shrinkage or 0.0)
        if not shrinkage:
            return 0.0, factor
        d = factor.shape[1]
        target = np.sqrt(shrinkage * np.sum(factor**2) / d)
        stacked = np.vstack([np.sqrt(1 - shrinkage) * factor, target * np.eye(d)])
        return shrinkage, triangular_factor(stacked)

    @property
    def shrinkage(self) -> float:
        """Shrinkage that was applied."""
        return self._shrunk[0]

    @property
    def excess_risk(self) -> float:
        """m^2; NaN where the gradients do not tell."""
        return self._estimate.excess_risk

    @property
    def correction(self) -> str:
        """Correction that was applied, "gaussian" or "none"."""
        return self._estimate.correction

    @property
    def nuisance(self) -> tuple[float, float]:
        """Least and greatest relative size of the nuisance of single noise, removed or not."""
        return self._estimate.nuisance

    @property
    def scale_limits(self) -> tuple[float, float]:
        """Limits of the true scale over that of the covariance, as the correction decides them."""
        return self._estimate.scale

    @property
    def assumed(self) -> float:
        """Share of the nuisance that rests on Gaussian features."""
        return self._estimate.assumed

    @property
    def nuisance_error(self) -> float:
        """Relative standard error of the nuisance."""
        return self._estimate.error

    @derived
    def preconditioner(self) -> Preconditioner:
        """Factorise the covariance; singular directions are left out."""
        first = int(self.memory.has_intercept)
        norms = np.linalg.norm(self._estimate.factor[:, first:], axis=0)
        return factorize(self._shrunk[1], rounding=self._rounding * norms)

    @derived
    def covariance(self) -> npt.NDArray[np.floating]:
        """Hessian with the intercept eliminated, of shape (n_features, n_features)."""
        return self._narrow(_square(self._shrunk[1]))

    @derived
    def precision(self) -> npt.NDArray[np.floating]:
        """Inverse of `covariance`, on its range."""
        return self._narrow(self.preconditioner.inverse())

    @derived
    def location(self) -> npt.NDArray[np.floating]:
        """Mean of the features."""
        return self._narrow(self._centered[0])

    @derived
    def gradient_covariance(self) -> npt.NDArray[np.floating]:
        """Covariance of the gradients as they were seen, without the intercept's."""
        return self._narrow(_square(self._estimate.gradient_factor[:, self.memory.has_intercept :]))

    @derived
    def mean_gradient(self) -> npt.NDArray[np.floating]:
        """Mean gradient of the coefficients."""
        return self._narrow(self._estimate.mean_gradient[self.memory.has_intercept :])

    @property
    def mean_intercept_gradient(self) -> float:
        """Mean gradient of the intercept, NaN without one."""
        return float(self._estimate.mean_gradient[0]) if self.memory.has_intercept else np.nan

    @derived
    def effective_rank(self) -> float:
        """Trace of the covariance over its largest eigenvalue; zero if that is rounding error."""
        if not self.preconditioner.rank:
            return 0.0
        covariance = _square(self._shrunk[1])
        d = len(covariance)
        largest = eigh(covariance, eigvals_only=True, subset_by_index=[d - 1, d - 1])[0]
        return float(np.trace(covariance) / largest) if largest > 0 else 0.0

    @property
    def unresolved(self) -> float:
        """Largest eigenvalue that is not told apart from the rest, over the largest of all."""
        return 0.0

    @property
    def n_effective(self) -> float:
        """Independent gradients of equal weight whose covariance would be as accurate."""
        return self.settled.n_effective(self.settled.clean_share(self.excess_risk))

    def hessian_factor(self, *, intercept: bool) -> Array:
        """Triangular root of the Hessian, with the intercept's coordinate in front or without."""
        factor = self._estimate.factor
        if self.memory.has_intercept == intercept:
            return factor
        if intercept:  # nothing is known of the means: take them for zero
            return block_diag(1.0, factor)
        return triangular_factor(factor[:, 1:])

    def newton_step(self, gradient: Array) -> Array:
        """Inverse Hessian times a gradient, the intercept's in front if its gradient is there."""
        if len(gradient) == self.n_features:
            return self._solve(gradient)
        # The Schur complement of the intercept, whose own curvature is one for the squared loss
        known = self.loss == "squared_error" or not self.memory.has_intercept
        curvature = 1.0 if known else self._intercept_curvature()
        location = self.location.astype(np.float64)
        step = self._solve(gradient[1:] - location * gradient[0])
        return np.concatenate([[gradient[0] / curvature - location @ step], step])

    def _solve(self, gradient: Array) -> Array:
        return self.preconditioner.solve(gradient)

    def _intercept_curvature(self) -> float:
        return float(self._estimate.factor[0, 0] ** 2)

    def n_features_out(self, method: Any) -> int:
        """Columns that `whiten` makes."""
        return self.n_features

    def whiten(self, X: Any, method: Any) -> npt.NDArray[np.floating]:
        """Give rows of features the identity covariance."""
        whiten = self.preconditioner.whitening(method)[0].astype(X.dtype)
        location = self.location.astype(X.dtype)
        return X @ whiten - location @ whiten if sparse.issparse(X) else (X - location) @ whiten

    def unwhiten(self, Z: npt.NDArray[np.floating], method: Any) -> npt.NDArray[np.floating]:
        """Undo `whiten`."""
        unwhiten = self.preconditioner.whitening(method)[1].astype(Z.dtype)
        return Z @ unwhiten + self.location.astype(Z.dtype)

    def squared_distances(self, X: Any) -> Array:
        """Squared Mahalanobis distances of rows to the location."""
        rows = (X.toarray() if sparse.issparse(X) else X).astype(np.float64) - self.location
        whitened = rows @ self.preconditioner.whitening("cholesky")[0]
        return np.einsum("ij,ij->i", whitened, whitened)

    def _narrow(self, values: Array) -> npt.NDArray[np.floating]:
        """Round to the dtype of the features, unless their scale is beyond its range."""
        limits = np.finfo(self.memory.dtype)
        sizes = np.abs(np.diag(values) if values.ndim == 2 else values)
        held = (sizes <= limits.max) & ((sizes >= limits.tiny) | (values.ndim == 1))
        return values.astype(self.memory.dtype) if np.all(held | (sizes == 0)) else values


@dataclass(frozen=True, eq=False)
class OneFactor(Sequence[Array]):
    """List of one triangular root of a Hessian, which `fitted` keeps already.

    Parameters
    ----------
    fitted : Fitted
        What the Hessian is kept in.
    intercept : bool
        Whether the intercept's coordinate is in front.
    unit_first : bool, default=False
        Scale to a curvature of one in the first coordinate.
    """

    fitted: Fitted
    intercept: bool
    unit_first: bool = False

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        factor = replace(self.fitted).hessian_factor(intercept=self.intercept)
        return [factor / factor[0, 0] if self.unit_first else factor][index]


def _square(root: Array) -> Array:
    return root.T @ root
