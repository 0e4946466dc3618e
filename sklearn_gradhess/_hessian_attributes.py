"""What the Hessian at the end of a fit tells, as attributes of a linear model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._accumulation import of_factor
from sklearn_gradhess._diagonal_hessian import DiagonalHessian
from sklearn_gradhess._inference import Inference, infer
from sklearn_gradhess._loss import Loss
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._preconditioner import whitening
from sklearn_gradhess.covariance import GradientCovarianceEstimator

__all__ = ["HessianAttributes"]

Array = npt.NDArray[np.float64]


class HessianAttributes:
    """Estimator of the Hessian, rank, degrees of freedom and standard errors.

    They are derived, where they are asked for, from the factors that a fit leaves.
    """

    loss: str
    fit_intercept: bool
    n_features_in_: int
    coef_: Any
    intercept_: Any
    preconditioner_: str
    _loss: Loss
    _factors: Sequence[Array]
    _diagonal: DiagonalHessian
    _estimator: GradientCovarianceEstimator
    _sketched: tuple[int, int, int]
    _ridge: Array
    _independent: float
    _dispersion: Array
    _n_clipped: int
    _degrees: float

    @property
    def covariance_estimator_(self) -> GradientCovarianceEstimator | DiagonalHessian:
        """The preconditioner, as an estimator of the Hessian where it was last made."""
        if "_estimator" in vars(self):
            return self._estimator
        self._refuse_stream("covariance_estimator_")
        if self._loss.calibration is None:
            raise AttributeError(
                f"covariance_estimator_ is not there for loss={self.loss!r}, to which no noise is "
                "calibrated."
            )
        if "_diagonal" in vars(self):
            return self._diagonal
        if not self._factors:
            d = self.n_features_in_
            raise AttributeError(
                f"covariance_estimator_ is a matrix of {d} x {d}, {8 * d**2 / 2**30:.3g} GiB, and "
                f"a fit with preconditioner_={self.preconditioner_!r} makes none. Fit with "
                "preconditioner='exact' or 'sketch', or take fewer features."
            )
        n_batches, batch_size, n_samples = self._sketched
        return of_factor(
            GradientCovarianceEstimator,
            self._root,
            n_batches=n_batches,
            n_samples=n_samples,
            batch_size=batch_size,
            has_intercept=bool(self.fit_intercept),
            **self._loss.calibration,
        )

    def _refuse_stream(self, name: str) -> None:
        if not hasattr(self, "history_"):
            raise AttributeError(f"{name} is there after fit alone.")

    @property
    def _root(self) -> Array:
        """Factor of the Hessian without penalty; of several classes, of the mean of theirs."""
        if len(self._factors) == 1:
            return self._factors[0]
        return triangular_factor(np.vstack(list(self._factors))) / np.sqrt(len(self._factors))

    def _inference(self, name: str) -> Inference:
        self._refuse_stream(name)
        h = bool(self.fit_intercept)
        return infer(self._root, self._ridge, self._independent, has_intercept=h)

    def _standard_errors(self, name: str) -> Array:
        """Compute errors of shape (p, t), with the dispersion on the degrees of freedom left."""
        found, dispersion = self._inference(name), np.atleast_1d(self._dispersion)
        if not self._loss.likelihood:
            free = self._independent - found.df
            dispersion = dispersion * (self._independent / free if free > 0 else np.nan)
        return found.standard_error[:, None] * np.sqrt(dispersion)

    @property
    def rank_(self) -> float:
        """Number of directions of the features that the rows determine."""
        self._refuse_stream("rank_")
        if self.preconditioner_ == "diagonal":
            return np.nan
        clipped = self._n_clipped
        if len(self._factors) and np.any(self._ridge):  # which leaves no direction out
            precision = float(np.finfo(self.coef_.dtype).eps)
            h = bool(self.fit_intercept)
            clipped = whitening(self._root, has_intercept=h, precision=precision)[1]
        return self.n_features_in_ - clipped

    @property
    def df_(self) -> float:
        """Effective degrees of freedom."""
        if np.isfinite(getattr(self, "_degrees", np.nan)):
            return self._degrees
        return self._inference("df_").df * max(len(self._factors) - 1, 1)

    @property
    def coef_standard_error_(self) -> Array:
        """Standard errors of `coef_`, of its shape."""
        if hasattr(self, "_factors") and not len(self._factors):
            return np.full_like(self.coef_, np.nan)
        errors = self._standard_errors("coef_standard_error_")
        return self._like_coef(errors[int(self.fit_intercept) :])

    @property
    def intercept_standard_error_(self) -> Any:
        """Standard errors of `intercept_`, of its shape."""
        if hasattr(self, "_factors") and not len(self._factors):
            return self._like_intercept(np.full(np.size(self.intercept_), np.nan))
        errors = self._standard_errors("intercept_standard_error_")
        return self._like_intercept(errors[0] if self.fit_intercept else 0.0 * errors[0])

    def _like_coef(self, errors: Array) -> Array:
        """Errors of shape (d, t) in the shape of `coef_`; not known where classes are coupled."""
        if len(self._factors) > 1 or self.preconditioner_ == "pooled":
            return np.full(self.coef_.shape, np.nan)
        return np.broadcast_to(errors.T, np.atleast_2d(self.coef_).shape).reshape(self.coef_.shape)

    def _like_intercept(self, errors: Array) -> Any:
        if len(self._factors) > 1 or self.preconditioner_ == "pooled":
            return np.full(np.shape(self.intercept_), np.nan)
        if np.ndim(self.intercept_) == 0:
            return float(errors[0])
        return np.broadcast_to(errors, np.shape(self.intercept_)).copy()
