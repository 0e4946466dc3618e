"""The attributes of a fitted estimator, and the transformer that whitens by them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess._components import Components
from sklearn_gradhess._dask import by_block
from sklearn_gradhess._dask_covariance import log_likelihood_by_block
from sklearn_gradhess._failures import expected_error
from sklearn_gradhess._fitted import Fitted
from sklearn_gradhess._validation import check_features, is_dask, refuse_foreign, refuse_overflow

__all__ = ["FittedAttributes"]

Array = npt.NDArray[np.float64]


def _covariance_of_features(estimator: Any) -> bool:
    if estimator.loss != "squared_error":
        raise AttributeError(
            f"With loss={estimator.loss!r} the Hessian is no covariance of the features: score and "
            "mahalanobis need loss='squared_error'."
        )
    return True


class FittedAttributes(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """What an estimator hands on from its `fitted_`, and the transformer that whitens by it."""

    fitted_: Fitted
    n_features_in_: int
    whitening: Any
    store_precision: bool

    @property
    def covariance_(self) -> npt.NDArray[np.floating]:
        """Estimate of the Hessian."""
        check_is_fitted(self)
        return self.fitted_.covariance

    @property
    def precision_(self) -> npt.NDArray[np.floating] | None:
        """Inverse of `covariance_`, on its range; None with ``store_precision=False``."""
        check_is_fitted(self)
        return self.fitted_.precision if self.store_precision else None

    @property
    def location_(self) -> npt.NDArray[np.floating]:
        """Mean of the features."""
        check_is_fitted(self)
        return self.fitted_.location

    @property
    def gradient_covariance_(self) -> npt.NDArray[np.floating]:
        """Covariance of the gradients as they were seen."""
        check_is_fitted(self)
        return self.fitted_.gradient_covariance

    @property
    def mean_gradient_(self) -> npt.NDArray[np.floating]:
        """Mean gradient of the coefficients."""
        check_is_fitted(self)
        return self.fitted_.mean_gradient

    @property
    def mean_intercept_gradient_(self) -> float:
        """Mean gradient of the intercept; NaN without one."""
        check_is_fitted(self)
        return self.fitted_.mean_intercept_gradient

    @property
    def excess_risk_(self) -> float:
        """Twice the loss to be gained, m^2."""
        check_is_fitted(self)
        return self.fitted_.excess_risk

    @property
    def correction_(self) -> str:
        """Correction that was applied."""
        check_is_fitted(self)
        return self.fitted_.correction

    @property
    def shrinkage_(self) -> float:
        """Shrinkage that was applied."""
        check_is_fitted(self)
        return self.fitted_.shrinkage

    @property
    def noise_variance_(self) -> float:
        """Injected noise variance, per unit of curvature, of a complete batch."""
        check_is_fitted(self)
        return self.fitted_.settled.injected_variance(self.fitted_.batch_size)

    @property
    def n_batches_(self) -> int:
        """Batches seen, an incomplete one included."""
        check_is_fitted(self)
        return self.fitted_.n_batches

    @property
    def n_samples_seen_(self) -> int:
        """Rows seen."""
        check_is_fitted(self)
        return self.fitted_.n_samples

    @property
    def effective_rank_(self) -> float:
        """Trace of `covariance_` over its largest eigenvalue."""
        check_is_fitted(self)
        return self.fitted_.effective_rank

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
        return expected_error(self.fitted_)

    @property
    def components_(self) -> npt.NDArray[np.floating]:
        """Leading directions."""
        return self._components("components_").components

    @property
    def eigenvalues_(self) -> Array:
        """Variances along them."""
        return self._components("eigenvalues_").eigenvalues

    @property
    def residual_variance_(self) -> float:
        """Mean variance along all other directions."""
        return self._components("residual_variance_").residual_variance

    @property
    def n_components_(self) -> int:
        """Number of directions kept."""
        return len(self._components("n_components_").eigenvalues)

    def _components(self, name: str) -> Components:
        check_is_fitted(self)
        if not isinstance(self.fitted_, Components):
            raise AttributeError(
                f"{name} is there with n_components alone: without it all directions are in "
                "covariance_."
            )
        return self.fitted_

    def get_precision(self) -> npt.NDArray[np.floating]:
        """Return the precision matrix.

        Returns
        -------
        precision_ : ndarray of shape (n_features, n_features)
            Inverse of `covariance_`; on its range, if it is singular.
        """
        check_is_fitted(self)
        return self.fitted_.precision

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
        return self.fitted_.newton_step(g)

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
        with np.errstate(all="ignore"):
            Z = self.fitted_.whiten(X, self.whitening)
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
        if X.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {X.shape[1]} whitened features, but this estimator makes "
                f"{self._n_features_out}."
            )
        return self.fitted_.unwhiten(X, self.whitening)

    @available_if(_covariance_of_features)
    def score(self, X_test: Any, y: Any = None) -> float:
        """Return the Gaussian log-likelihood of `X_test`, as EmpiricalCovariance does.

        Parameters
        ----------
        X_test : array-like of shape (n_samples, n_features)
            Test data.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        score : float
            Mean log-likelihood of a row, under `location_` and `covariance_`.
        """
        check_is_fitted(self)
        if isinstance(self.fitted_, Components):
            return self.fitted_.log_likelihood(float(self.mahalanobis(X_test).mean()))
        if is_dask(X_test):
            return log_likelihood_by_block(self, X_test)
        base: Any = super()
        return float(base.score(X_test, y))

    @available_if(_covariance_of_features)
    @by_block
    def mahalanobis(self, X: Any) -> npt.NDArray[np.floating]:
        """Return the squared Mahalanobis distances of rows to `location_`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        distances : ndarray of shape (n_samples,)
            Squared distances. Directions in which `covariance_` is singular do not count.
        """
        check_is_fitted(self)
        X = check_features(self, X, reset=False)
        with np.errstate(all="ignore"):
            distances = self.fitted_.squared_distances(X)
        refuse_overflow(distances, X, estimator_name=type(self).__name__)
        return distances

    @property
    def _n_features_out(self) -> int:
        return self.fitted_.n_features_out(self.whitening)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
