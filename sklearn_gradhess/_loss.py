"""What a loss is: half losses, their derivatives with respect to the raw prediction, and traits.

The convention is scikit-learn's: ``raw_prediction`` is what the linear predictor returns, before
the inverse link, and the squared loss carries the factor one half, so that its Hessian is the data
covariance (MATH section 1). Every method keeps the dtype and is safe at raw predictions far beyond
+-1e3, until their square overflows.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["Loss", "ScaledLoss", "SquaredLoss"]

Array = npt.NDArray[Any]  # float32 or float64, kept


class Loss(ABC):
    """What an estimator needs to know of a loss; nobody asks one for its name.

    Attributes
    ----------
    name : str
        As users write it.
    largest_curvature : float
        Least upper bound of `curvature`.
    quadratic : bool
        Whether the second derivative is one everywhere.
    coupling : int
        Bound on the eigenvalues of a row's Hessian over its diagonal: one where the columns of the
        raw prediction are independent, two where they are coupled and a shift of all of them by
        the same number changes nothing.
    likelihood : bool
        Whether the dispersion is known to be one; estimated from the rows elsewhere.
    asymptotic : bool
        Whether the infimum over the raw prediction may lie at infinity, so that some data have no
        minimum without a penalty.
    own_unit : bool
        Whether the loss is in the squared unit of the target; dimensionless otherwise.
    power : float or None
        Power of the mean that the variance is proportional to, where the link is the logarithm;
        None for every other link.
    """

    name: ClassVar[str]
    quadratic: ClassVar[bool] = False
    coupling: ClassVar[int] = 1
    likelihood: ClassVar[bool] = False
    asymptotic: ClassVar[bool] = False
    own_unit: ClassVar[bool] = False
    power: float | None = None
    largest_curvature: ClassVar[float] = np.inf

    @abstractmethod
    def check_y(self, y: Array) -> None:
        """Raise ValueError if a target lies outside the loss's range."""

    @abstractmethod
    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Loss of each row."""

    @abstractmethod
    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """First derivative of each row's loss with respect to its raw prediction."""

    @abstractmethod
    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """Second derivative of each row's loss with respect to its raw prediction, >= 0."""

    @abstractmethod
    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """Curvature that a step of some length meets: what a preconditioner should assume.

        No less than the second derivative. Where a loss is almost straight, a step by its second
        derivative would overshoot to where it is not.
        """

    def link(self, mean: Array) -> Array:
        """Raw prediction that fits a mean target, near enough to start from; finite."""
        return mean

    def mean(self, raw_prediction: Array) -> Array:
        """Target that a raw prediction fits, by the inverse of the link."""
        return raw_prediction

    def hessian_product(self, y: Array, raw_prediction: Array, direction: Array) -> Array:
        """Row Hessian times a direction in the raw prediction."""
        return self.curvature(y, raw_prediction) * direction

    def target_noise(self, y: Array, raw_prediction: Array, signs: Array) -> Array:
        """Root of each row's Hessian times signs: noise whose covariance is the Hessian."""
        return np.sqrt(self.curvature(y, raw_prediction)) * signs

    def per(self, unit: float) -> "Loss":
        """Return the loss for targets that were divided by a unit."""
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What the user says of it, by the name of the parameter."""
        return {}

    @property
    def calibration(self) -> dict[str, Any] | None:
        """Parameters of an estimator whose noise is calibrated to it; None if none can be."""
        return {"loss": self.name}

    @property
    def fitted(self) -> dict[str, float]:
        """What an estimator keeps of it, by the name of the attribute."""
        return {}

    def constant(self, y: Array) -> Array | float:
        """Part of each row's value that no prediction changes, and that `all` leaves out."""
        return 0.0

    def all(self, y: Array, raw_prediction: Array) -> tuple[Array, Array, Array]:
        """Value less its constant, gradient and curvature; a loss may share work between them."""
        return (
            self.value(y, raw_prediction),
            self.gradient(y, raw_prediction),
            self.curvature(y, raw_prediction),
        )


class ScaledLoss(Loss):
    """A loss made for residuals of a scale, which is estimated with the coefficients.

    Attributes
    ----------
    scale : float
        Scale of the residuals, in the units of the target.
    scale_tolerance : float
        Relative error of the scale that does no harm.
    """

    own_unit = True
    scale: float
    scale_tolerance: ClassVar[float] = 0.0

    @abstractmethod
    def residual_scale(self, residual: Array, weight: Array, n: float, p: int) -> float:
        """Scale that residuals of n observations have after a fit of p coefficients; or zero."""

    @abstractmethod
    def at_scale(self, scale: float, n: float, p: int) -> "ScaledLoss":
        """Return the loss for residuals of a scale, of n observations and p coefficients."""

    def sharpened(self, residual: Array, weight: Array, n: float, p: int) -> "ScaledLoss":
        """Return a loss nearer to what it approximates, or itself if it is near enough."""
        return self


class SquaredLoss(Loss):
    """Half squared error, ``(raw_prediction - y)^2 / 2``."""

    name = "squared_error"
    quadratic = True
    own_unit = True
    largest_curvature = 1.0

    def check_y(self, y: Array) -> None:
        """Accept every finite target."""

    def value(self, y: Array, raw_prediction: Array) -> Array:
        """Half the squared residual."""
        return 0.5 * np.square(raw_prediction - y)

    def gradient(self, y: Array, raw_prediction: Array) -> Array:
        """Residual, prediction minus target."""
        return raw_prediction - y

    def curvature(self, y: Array, raw_prediction: Array) -> Array:
        """One."""
        return np.ones_like(raw_prediction)

    def stiffness(self, y: Array, raw_prediction: Array) -> Array:
        """One."""
        return np.ones_like(raw_prediction)
