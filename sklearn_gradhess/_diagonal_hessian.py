"""What a fit by the diagonal leaves of the Hessian: means and variances, no matrix."""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.utils import check_array

from sklearn_gradhess._diagonal import Diagonal
from sklearn_gradhess._memory import refuse_dense
from sklearn_gradhess._validation import refuse_foreign

__all__ = ["DiagonalHessian"]

Array = npt.NDArray[np.float64]


class DiagonalHessian:
    """Location and diagonal of a Hessian of many features; `covariance_` is not there.

    Attributes
    ----------
    location_ : ndarray of shape (n_features_in_,)
        Means of the features, weighted with the curvature of the loss; zero without an intercept.
    variance_ : ndarray of shape (n_features_in_,)
        Diagonal of the Hessian with the intercept eliminated, without penalty: for the squared loss
        the variances of the features. Zero for constant features.
    n_features_in_ : int
        Number of features.
    """

    def __init__(
        self, location: Array, variance: Array, curvature: float, preconditioner: str
    ) -> None:
        self.location_ = location
        self.variance_ = variance
        self.n_features_in_ = len(location)
        self._curvature = curvature
        self._preconditioner = preconditioner

    @classmethod
    def of(cls, diagonal: Diagonal, preconditioner: str) -> "DiagonalHessian":
        """Take the mean over the columns, as a matrix of several columns would be."""
        total, mean = diagonal.total, diagonal.mean
        location = mean @ total / total.sum()
        apart = (mean - location[:, None]) ** 2 @ total / len(total)
        variance = diagonal.variance.mean(axis=1) + apart
        return cls(location, variance, float(total.mean()), preconditioner)

    def __repr__(self) -> str:
        return f"DiagonalHessian({self.n_features_in_} features)"

    def newton_step(self, gradient: npt.ArrayLike) -> Array:
        """Multiply a gradient by the inverse of the diagonal, the intercept eliminated.

        Parameters
        ----------
        gradient : array-like of shape (n_features_in_,) or (n_features_in_ + 1,)
            Gradient of the loss; with the intercept's in front, if that is fitted too.

        Returns
        -------
        step : ndarray of the shape of `gradient`
            Step to subtract from the coefficients. Constant features are left alone.

        Raises
        ------
        ValueError
            If the gradient is not finite or has another length.
        """
        refuse_foreign(gradient=gradient)
        g = check_array(gradient, ensure_2d=False, dtype=np.float64, input_name="gradient")
        d = self.n_features_in_
        if g.ndim != 1 or len(g) not in (d, d + 1):
            raise ValueError(
                f"gradient has the shape {g.shape}, but the Hessian is of {d} features: pass "
                f"({d},), or ({d + 1},) with the intercept's gradient in front."
            )
        inverse = self._root_of_inverse() ** 2
        if len(g) == d:
            return g * inverse
        step = (g[1:] - self.location_ * g[0]) * inverse
        return np.concatenate([[g[0] / self._curvature - self.location_ @ step], step])

    def transform(self, X: Any) -> npt.NDArray[np.floating]:
        """Subtract the location, and give each feature the variance one.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features_in_)
            Features.

        Returns
        -------
        X_scaled : ndarray of shape (n_samples, n_features_in_)
            Scaled features, dense; constant ones are zero.

        Raises
        ------
        ValueError
            If X is not finite, has another width, or is sparse and too large to be made dense.
        """
        refuse_foreign(X=X)
        X = check_array(
            X, accept_sparse=("csr", "csc"), dtype=[np.float64, np.float32], input_name="X"
        )
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {X.shape[1]} features, but {self.n_features_in_} were fitted.")
        if sparse.issparse(X):
            refuse_dense(
                *X.shape, instead="Multiply sparse columns by variance_ ** -0.5, uncentred."
            )
            X = X.toarray()
        return (X - self.location_.astype(X.dtype)) * self._root_of_inverse().astype(X.dtype)

    def _root_of_inverse(self) -> Array:
        varies = self.variance_ > 0
        return np.divide(1.0, np.sqrt(self.variance_), out=np.zeros(len(varies)), where=varies)

    def _refuse(self, name: str) -> NoReturn:
        d = self.n_features_in_
        raise AttributeError(
            f"{name} is a matrix of {d} x {d}, {8 * d**2 / 2**30:.3g} GiB, and a fit with "
            f"preconditioner_={self._preconditioner!r} makes none: location_ and variance_ are "
            "there. Fit with preconditioner='exact' or 'sketch', or take the leading directions of "
            "GradientCovarianceEstimator(n_components=...)."
        )

    @property
    def covariance_(self) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("covariance_")

    @property
    def precision_(self) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("precision_")

    @property
    def gradient_covariance_(self) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("gradient_covariance_")

    def get_precision(self) -> NoReturn:
        """Refuse to make a dense matrix."""
        self._refuse("precision_")
