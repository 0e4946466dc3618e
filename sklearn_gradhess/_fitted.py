"""What the gradients in memory tell: the fitted attributes, and whitening by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import block_diag, eigh
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.covariance import ledoit_wolf_shrinkage, oas
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess._dask import by_block
from sklearn_gradhess._moments import centered_block, triangular_factor
from sklearn_gradhess._preconditioner import factorize
from sklearn_gradhess._schemes import GradientMemory
from sklearn_gradhess._validation import (
    blas_threads,
    check_features,
    refuse_foreign,
    refuse_overflow,
)
from sklearn_gradhess.diagnostics import expected_relative_error, nuisance

__all__ = ["FittedCovarianceMixin"]

Array = npt.NDArray[np.float64]


class FittedCovarianceMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Fitted attributes of a memory of gradients, and the transformer that whitens by them.

    The estimator keeps what is annotated here, and has the parameters of
    `GradientCovarianceEstimator`.
    """

    _memory: GradientMemory
    _factor: Array
    _settled: GradientMemory
    _n_effective: float
    _nuisance: tuple[float, float]
    _scale_limits: tuple[float, float]
    _assumed: float
    _nuisance_error: float
    _rng: np.random.Generator
    _dtype: np.dtype[Any]
    n_features_in_: int
    batch_size_: int
    noise: str
    noise_scale: float
    inherent_variance: float | str
    correction: str
    loss: str
    shrinkage: float | str | None
    whitening: Any
    store_precision: bool

    def _finalize(self) -> None:
        # An overflow is looked for, and said
        with np.errstate(all="ignore"), blas_threads(self.n_features_in_):
            self._store_estimate()

    def _store_estimate(self) -> None:
        memory = self._memory.settled().calibrated()
        # Features are rounded in their own precision; sums of k rows then add sqrt(k) of float64's
        k = memory.moments.n_gradients
        rounding = 16 * np.finfo(self._dtype).eps + 2 * np.sqrt(k) * np.finfo(np.float64).eps
        estimate = memory.estimate(
            correct=self.correction == "gaussian"
            or (self.correction == "auto" and self.loss == "squared_error"),
            rounding=rounding,
        )
        self._factor, self._settled = estimate.factor, memory
        self._nuisance, self._scale_limits = estimate.nuisance, estimate.scale
        self._assumed, self._nuisance_error = estimate.assumed, estimate.error
        first = int(memory.has_intercept)
        factor, location = estimate.factor, np.zeros(self.n_features_in_)
        if first:
            location, factor = centered_block(factor)
        raw_factor = estimate.gradient_factor[:, first:]
        rounding = rounding * np.linalg.norm(estimate.factor[:, first:], axis=0)
        factor = self._shrink(factor, memory, location)
        covariance = (factor.T @ factor).astype(self._dtype)
        if not np.isfinite(covariance).all():
            scale = np.abs(factor).max()
            largest = scale * np.linalg.norm(factor / scale, axis=0).max()
            raise ValueError(
                f"The covariance overflows {self._dtype}: the largest standard deviation of a "
                f"feature is {largest:.3g}. Rescale X"
                + (" or pass float64." if self._dtype == np.float32 else ".")
            )
        self._preconditioner = factorize(factor, rounding=rounding)
        self.covariance_ = covariance
        self.precision_ = (
            self._preconditioner.inverse().astype(self._dtype) if self.store_precision else None
        )
        self.location_ = location.astype(self._dtype)
        self.gradient_covariance_ = (raw_factor.T @ raw_factor).astype(self._dtype)
        self.mean_gradient_ = estimate.mean_gradient[first:].astype(self._dtype)
        self.mean_intercept_gradient_ = float(estimate.mean_gradient[0]) if first else np.nan
        self.excess_risk_ = estimate.excess_risk
        self.correction_ = estimate.correction
        self._n_effective = memory.n_effective(memory.clean_share(estimate.excess_risk))
        self.noise_variance_ = memory.injected_variance(self.batch_size_)
        self.n_batches_ = memory.n_batches
        self.n_samples_seen_ = memory.n_samples

    @classmethod
    def _from_factor(
        cls,
        factor: Array,
        *,
        n_batches: int,
        n_samples: int,
        batch_size: int,
        has_intercept: bool,
        **params: Any,
    ) -> Any:
        """Return the estimator that has seen a sketch of the Hessian, in factor form."""
        make: Any = cls
        estimator = make(batch_size=batch_size, assume_centered=not has_intercept, **params)
        estimator.n_features_in_ = factor.shape[1] - has_intercept
        estimator.batch_size_ = batch_size
        estimator._dtype = np.dtype(np.float64)
        memory = estimator._start(estimator.n_features_in_, has_intercept=has_intercept)
        estimator._memory = memory.with_factor(factor, n_batches=n_batches, n_samples=n_samples)
        estimator._finalize()
        return estimator

    def _hessian_factor(self, *, intercept: bool) -> Array:
        """Triangular root of the Hessian, with the intercept's coordinate in front or without."""
        if self._memory.has_intercept == intercept:
            return self._factor
        if intercept:  # nothing is known of the means: take them for zero
            return block_diag(1.0, self._factor)
        return triangular_factor(self._factor[:, 1:])

    def _shrink(
        self,
        factor: Array,
        memory: GradientMemory,
        location: Array,
    ) -> Array:
        shrinkage = self.shrinkage
        if isinstance(shrinkage, str):
            rows = memory.kept_gradients(location)
            if len(rows) < 2:
                shrinkage = 1.0  # one gradient tells no direction from another
            elif shrinkage == "ledoit_wolf":
                shrinkage = ledoit_wolf_shrinkage(rows, assume_centered=True)
            else:
                shrinkage = oas(rows, assume_centered=True)[1]
        self.shrinkage_ = float(shrinkage or 0.0)
        if not self.shrinkage_:
            return factor
        d = factor.shape[1]
        target = np.sqrt(self.shrinkage_ * np.sum(factor**2) / d)
        return triangular_factor(
            np.vstack([np.sqrt(1 - self.shrinkage_) * factor, target * np.eye(d)])
        )

    @property
    def effective_rank_(self) -> float:
        """Trace of `covariance_` over its largest eigenvalue."""
        check_is_fitted(self)
        covariance = self.covariance_.astype(np.float64)
        d = len(covariance)
        largest = eigh(covariance, eigvals_only=True, subset_by_index=[d - 1, d - 1])[0]
        return float(np.trace(covariance) / largest) if largest > 0 else 0.0

    @property
    def expected_error_(self) -> float:
        """Relative error of `covariance_` in operator norm, as theory expects it.

        Against the population that the rows came from, for Gaussian gradients. Sample weights and
        redraws count by their effective number of gradients (MATH section 2.3), for single noise
        if `inherent_variance` is right; gradients that were passed in as if each had rows of its
        own. Where a nuisance was removed the error of doing so is included, such that nine samples
        in ten of Gaussian features keep to it; NaN too near saturation to say.
        """
        check_is_fitted(self)
        rank, k = self.effective_rank_, self._n_effective
        if not rank:
            return np.nan
        # Sampling stretches the largest eigenvalue by about (1 + sqrt(r/k))^2, so the rank of the
        # estimate is too small; undone to first order.
        rank /= max(1 - np.sqrt(rank / k), 0.1) ** 2
        error = float(expected_relative_error(rank, k, noise=self.noise))
        if self.noise == "single":
            least, greatest = nuisance(self)
            if self.correction_ == "none":
                return error + greatest
            # What is taken off was seen with it, in means of products of Gaussians; and the scale
            # that is left is known up to its limits (MATH section 2.3)
            error *= np.sqrt(1 + 6 / self._settled.rows) * (1 + greatest) / (1 + least)
            low, high = self._scale_limits
            error += max(1 - low, high - 1) if high < np.inf else np.nan
        return float(error)

    def get_precision(self) -> npt.NDArray[np.floating]:
        """Return the precision matrix.

        Returns
        -------
        precision_ : ndarray of shape (n_features, n_features)
            Inverse of `covariance_`; on its range, if it is singular.
        """
        check_is_fitted(self)
        if self.precision_ is not None:
            return self.precision_
        return self._preconditioner.inverse().astype(self._dtype)

    def newton_step(self, gradient: npt.ArrayLike) -> Array:
        """Multiply a gradient by the inverse Hessian: the step to subtract from coefficients.

        Parameters
        ----------
        gradient : array-like of shape (n_features,) or (n_features + 1,)
            Gradient of the loss; with the intercept's in front, if that is fitted too. It may have
            been taken elsewhere than the gradients that the Hessian was learnt from. One of
            n_features entries is taken for that of a model whose intercept is at its optimum; for
            a model without an intercept fit with ``assume_centered=True``.

        Returns
        -------
        step : ndarray of the shape of `gradient`
            Newton step, the intercept's in front. Singular directions are left alone.

        Raises
        ------
        ValueError
            If the gradient is not finite or has another length.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn_gradhess import GradientCovarianceEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> hessian = GradientCovarianceEstimator(random_state=0).fit(X)
        >>> step = hessian.newton_step(-X.T @ y / len(X))  # at zero: one step to least squares
        >>> residual = y - y.mean() + X @ step
        >>> print(f"R2 {1 - residual.var() / y.var():.3f}")
        R2 0.518
        """
        check_is_fitted(self)
        refuse_foreign(gradient=gradient)
        g = check_array(gradient, ensure_2d=False, dtype=np.float64, input_name="gradient")
        d = self.n_features_in_
        if g.ndim != 1 or len(g) not in (d, d + 1):
            raise ValueError(
                f"gradient has the shape {g.shape}, but the Hessian is of {d} features: pass "
                f"({d},), or ({d + 1},) with the intercept's gradient in front."
            )
        if len(g) == d:
            return self._preconditioner.solve(g)
        # The Schur complement of the intercept, whose own curvature is one for the squared loss
        known = self.loss == "squared_error" or not self._memory.has_intercept
        curvature = 1.0 if known else self._factor[0, 0] ** 2
        location = self.location_.astype(np.float64)
        step = self._preconditioner.solve(g[1:] - location * g[0])
        return np.concatenate([[g[0] / curvature - location @ step], step])

    @by_block
    def transform(self, X: Any) -> npt.NDArray[np.floating]:
        """Whiten: subtract `location_` and give the features the identity covariance.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        X_white : ndarray of shape (n_samples, n_features)
            Whitened features. Singular directions come out as zeros.
        """
        check_is_fitted(self)
        X = check_features(self, X, reset=False)
        whiten = self._preconditioner.whitening(self.whitening)[0].astype(X.dtype)
        with np.errstate(all="ignore"):
            if sparse.issparse(X):
                Z = X @ whiten - self.location_.astype(X.dtype) @ whiten
            else:
                Z = (X - self.location_.astype(X.dtype)) @ whiten
        refuse_overflow(Z, X, estimator_name=type(self).__name__)
        return Z

    def inverse_transform(self, X: Any) -> npt.NDArray[np.floating]:
        """Undo `transform`, up to singular directions, which stay at the location.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Whitened features.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
            Features in their own units.

        Raises
        ------
        ValueError
            If X is not finite or has another width than `transform` makes.
        """
        check_is_fitted(self)
        refuse_foreign(X=X)
        X = check_array(X, dtype=[np.float64, np.float32], input_name="X")
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} whitened features, but this estimator makes "
                f"{self.n_features_in_}."
            )
        unwhiten = self._preconditioner.whitening(self.whitening)[1].astype(X.dtype)
        return X @ unwhiten + self.location_.astype(X.dtype)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
