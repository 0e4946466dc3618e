"""What wide gradients tell: leading directions of the Hessian, and its mean along all others.

The estimate is ``V' diag(l) V + r (I - V'V)``, V the leading eigenvectors of the gradients' second
moment, l and r what the spiked model makes of its eigenvalues and of its trace (MATH section 15).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sklearn_gradhess._estimate import Estimate
from sklearn_gradhess._fitted import Fitted, derived
from sklearn_gradhess._low_rank import (
    LowRankMoments,
    along_components,
    eigenvalues_of,
    leading_rows,
    sketch_size,
)
from sklearn_gradhess._memory import refuse_dense

__all__ = ["Components", "check_whitening"]

Array = npt.NDArray[np.float64]
_UNKNOWN = (np.nan, np.nan)


def check_whitening(method: Any) -> None:
    """Raise ValueError for a whitening that some directions do not tell."""
    if method == "cholesky":
        raise ValueError(
            "whitening='cholesky' needs a triangular factor of n_features x n_features, and "
            "n_components makes none. Use whitening='pca' or 'zca'."
        )


class Spectrum(NamedTuple):
    """What is told apart, and what is left.

    Attributes
    ----------
    variances : ndarray of shape (k,)
        Along the leading directions.
    vectors : ndarray of shape (k, n_features)
        These, a row each.
    rest : float
        Mean variance along all others.
    hidden : float
        Variance along the largest of these.
    """

    variances: Array
    vectors: Array
    rest: float
    hidden: float


@dataclass(frozen=True, eq=False)
class Components(Fitted):
    """A memory of wide gradients, and what it tells; a value, never changed.

    Parameters
    ----------
    n_components : int, default=1
        Directions to tell apart from the rest.
    """

    n_components: int = 1
    whole: ClassVar[bool] = False

    def check(self) -> None:
        """Raise ValueError where variances are no numbers."""
        moments = self._moments
        scale = self._scale(self.memory.settled().total_scale, moments)
        self._refuse_overflow(float(np.sqrt(moments.squares.max(initial=0.0) / scale)))
        if not moments.squares.any() and any(block.any() for block in moments.blocks):
            largest = max(float(np.abs(block).max(initial=0.0)) for block in moments.blocks)
            raise ValueError(
                f"The variances vanish in float64: the gradients are {largest:.3g} at most, and "
                "their squares are zero. Rescale X."
            )

    @property
    def width(self) -> int:
        """Rows of the sketch: it is their products that are factorised."""
        return sketch_size(self.n_components)

    @property
    def _moments(self) -> LowRankMoments:
        moments = self.memory.settled().moments
        assert isinstance(moments, LowRankMoments)
        return moments

    def _scale(self, total: float, moments: LowRankMoments) -> float:
        """Return what turns the Hessian into sums of squares."""
        return moments.divisor * (total or 1.0)

    @derived
    def _estimate(self) -> Estimate:
        """Tell the mean gradient; all else would take a matrix, or more gradients than features."""
        nothing = np.zeros((0, self.memory.clean_sums.shape[1]))
        mean, paired = self.settled.mean_gradient(), self.noise == "antithetic"
        nuisance = (0.0, 0.0) if paired else _UNKNOWN
        correction = "none" if self.wanted_correction == "none" else "spiked"
        return Estimate(nothing, nothing, mean, np.nan, correction, nuisance)

    @derived
    def _spectrum(self) -> Spectrum:
        moments = self._moments
        scale = self._scale(self.settled.total_scale, moments)
        rows = leading_rows(moments.rows(), self.n_components + 1)[1]
        _, singular, vectors = np.linalg.svd(rows, full_matrices=False)
        # A feature is rounded by so much, its offset included
        squares = moments.squares + np.sum(moments.head[:, -self.n_features :] ** 2, axis=0)
        noise = self.n_features * self._rounding**2 * squares
        trace = float(moments.squares[moments.squares > noise].sum()) / scale
        kept = singular**2 > np.maximum(vectors**2 @ noise, np.finfo(np.float64).tiny)
        values, vectors = singular[kept] ** 2 / scale, vectors[kept][: self.n_components]
        # Signs as in scikit-learn's PCA: the largest entry of every component is positive
        largest = vectors[np.arange(len(vectors)), np.argmax(np.abs(vectors), axis=1)]
        vectors *= np.sign(largest)[:, None]
        leading, following = values[: self.n_components], values[self.n_components :]
        others, k = self.n_features - len(leading), self.n_effective
        if self.correction == "spiked":
            variances, rest = eigenvalues_of(leading, trace, self.n_features, k)
        else:
            variances = leading
            rest = max(trace - float(leading.sum()), 0.0) / others if others else 0.0
        hidden = max([rest, *along_components(following, rest, others / k)[0].tolist()])
        s, mean = self.shrinkage, trace / self.n_features
        return Spectrum(
            (1 - s) * variances + s * mean,
            vectors,
            float((1 - s) * rest + s * mean),
            (1 - s) * hidden,
        )

    @property
    def components(self) -> npt.NDArray[np.floating]:
        """Leading directions, a row each, of length one."""
        return self._spectrum.vectors.astype(self.memory.dtype, copy=False)

    @property
    def eigenvalues(self) -> Array:
        """Variances along them."""
        return self._spectrum.variances

    @property
    def residual_variance(self) -> float:
        """Variance along every other direction, on the mean."""
        return self._spectrum.rest

    @property
    def unresolved(self) -> float:
        """Largest eigenvalue that is not told apart from the rest, over the largest of all."""
        variances = self._spectrum.variances
        return float(self._spectrum.hidden / variances[0]) if len(variances) else np.nan

    @property
    def shrinkage(self) -> float:
        """Shrinkage towards the mean variance."""
        return float(self.wanted_shrinkage or 0.0)

    @derived
    def location(self) -> npt.NDArray[np.floating]:
        """Mean of the features."""
        return self._narrow(self._moments.location)

    @derived
    def effective_rank(self) -> float:
        """Trace over the largest eigenvalue."""
        variances = self._spectrum.variances
        if not len(variances) or not variances[0] > 0:
            return 0.0
        return self.traces[0] / float(variances[0])

    @property
    def traces(self) -> tuple[float, float]:
        """Sum of all variances, and of their squares."""
        variances, _, rest, _ = self._spectrum
        others = self.n_features - len(variances)
        return (
            float(variances.sum() + rest * others),
            float(np.sum(variances**2) + rest**2 * others),
        )

    @property
    def centred_gradient(self) -> Array:
        """Mean gradient of the centred features."""
        gradient = self.mean_gradient.astype(np.float64)
        if not self.memory.has_intercept:
            return gradient
        return gradient - self.location * self.mean_intercept_gradient

    def variance_along(self, direction: Array) -> float:
        """Variance along a direction of length one."""
        variances, vectors, rest, _ = self._spectrum
        along2 = (vectors @ direction) ** 2
        return float(variances @ along2 + rest * (1 - along2.sum()))

    def _solve(self, gradient: Array) -> Array:
        variances, vectors, rest, _ = self._spectrum
        along = vectors @ gradient
        inverse = np.divide(1.0, variances, out=np.zeros_like(variances), where=variances > 0)
        outside = (gradient - along @ vectors) / rest if rest else 0.0
        return (along * inverse) @ vectors + outside

    def _intercept_curvature(self) -> float:
        return self._moments.intercept_variance() / (self.settled.total_scale or 1.0)

    def n_features_out(self, method: Any) -> int:
        """Columns that `whiten` makes."""
        check_whitening(method)
        return self.n_components if method == "pca" else self.n_features

    def whiten(self, X: Any, method: Any) -> npt.NDArray[np.floating]:
        """Give rows of features the identity covariance."""
        check_whitening(method)
        along, outside = self._powers(-0.5, X.dtype)
        if method == "pca":  # directions that gradients did not have come out as zeros
            return np.pad(self._scores(X) * along, ((0, 0), (0, self.n_components - len(along))))
        vectors, location = self.components.astype(X.dtype), self.location.astype(X.dtype)
        scores = self._scores(X)
        if sparse.issparse(X):
            refuse_dense(
                *X.shape,
                instead="Use whitening='pca', which makes n_components columns.",
            )
            X = X.toarray()
        return (X - location) * outside + (scores * (along - outside)) @ vectors

    def unwhiten(self, Z: npt.NDArray[np.floating], method: Any) -> npt.NDArray[np.floating]:
        """Undo `whiten`, in the span of the components where that is all there is."""
        vectors, location = self.components.astype(Z.dtype), self.location.astype(Z.dtype)
        along, outside = self._powers(0.5, Z.dtype)
        if method == "pca":
            return (Z[:, : len(along)] * along) @ vectors + location
        return Z * outside + ((Z @ vectors.T) * (along - outside)) @ vectors + location

    def _powers(self, power: float, dtype: Any) -> tuple[npt.NDArray[np.floating], Any]:
        """Powers of the eigenvalues, in and out of the span; zero of zero."""
        variances, _, rest, _ = self._spectrum
        values = np.append(variances, rest)
        raised = np.where(values > 0, values, 1.0) ** power * (values > 0)
        raised = raised.astype(dtype)
        return raised[:-1], raised[-1]

    def _scores(self, X: Any) -> npt.NDArray[np.floating]:
        vectors, location = self.components.astype(X.dtype), self.location.astype(X.dtype)
        if sparse.issparse(X):
            return X @ vectors.T - location @ vectors.T
        return (X - location) @ vectors.T

    def squared_distances(self, X: Any) -> Array:
        """Squared Mahalanobis distances of rows to the location."""
        X = X.astype(np.float64)
        along, outside = self._powers(-1.0, np.float64)
        scores, location = self._scores(X), self.location.astype(np.float64)
        if sparse.issparse(X):
            squares = np.asarray(X.multiply(X).sum(axis=1)).ravel()
            squares = squares - 2 * (X @ location) + location @ location
            beyond = np.maximum(squares - np.sum(scores**2, axis=1), 0.0)
        else:
            beyond = np.sum((X - location - scores @ self.components) ** 2, axis=1)
        return scores**2 @ along + outside * beyond

    def log_likelihood(self, mean_squared_distance: float) -> float:
        """Gaussian log-likelihood of a row, on the mean."""
        variances, vectors, rest, _ = self._spectrum
        others = self.n_features - len(vectors)
        with np.errstate(divide="ignore"):
            log_det = np.sum(np.log(variances)) + (others * np.log(rest) if others else 0.0)
        total = mean_squared_distance + log_det + self.n_features * np.log(2 * np.pi)
        return float(-total / 2) if np.isfinite(log_det) else -np.inf

    def _refuse(self, name: str) -> NoReturn:
        d = self.n_features
        raise AttributeError(
            f"{name} is a matrix of {d} x {d}, {8 * d**2 / 2**30:.3g} GiB, and with "
            f"n_components={self.n_components} only so many directions are kept, beside one "
            "variance for all others. Use components_, eigenvalues_, residual_variance_, "
            "newton_step or transform; or fit with n_components=None."
        )

    @property
    def preconditioner(self) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("A factor of covariance_")

    @property
    def covariance(self) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("covariance_")

    @property
    def precision(self) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("precision_")

    @property
    def gradient_covariance(self) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("gradient_covariance_")

    def hessian_factor(self, *, intercept: bool) -> NoReturn:
        """Not there: it is dense."""
        self._refuse("A factor of covariance_")
