"""What a fitted covariance is used for: whitening, as a transformer, and its inverse."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess._preconditioner import Preconditioner
from sklearn_gradhess._validation import check_X, refuse_foreign, refuse_overflow

__all__ = ["WhiteningMixin"]


class WhiteningMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Transformer that whitens by a factorised covariance.

    The estimator sets `_preconditioner`, `_dtype`, `precision_`, `location_` and `n_features_in_`,
    and has a parameter `whitening`.
    """

    _preconditioner: Preconditioner
    _dtype: np.dtype[Any]
    precision_: npt.NDArray[np.floating] | None
    location_: npt.NDArray[np.floating]
    n_features_in_: int
    whitening: Any

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
        X = check_X(self, X, reset=False)
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
