"""The Hessian, estimated from the covariance of batch gradients."""

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.covariance import EmpiricalCovariance
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess._accumulation import Accumulation
from sklearn_gradhess._attributes import FittedAttributes
from sklearn_gradhess._dask import LazyTransform
from sklearn_gradhess._dask_covariance import see_blocks
from sklearn_gradhess._validation import (
    Interval,
    StrOptions,
    _fit_context,
    check_gradients,
    is_dask,
    unchanged_on_error,
)

__all__ = ["GradientCovarianceEstimator", "gradient_covariance"]

# Settings that two estimators must share for their gradients to have the same law
_IDENTITY = (
    "noise",
    "noise_scale",
    "inherent_variance",
    "loss",
    "epsilon",
    "power",
    "n_components",
)


def gradient_covariance(
    X: Any,
    y: Any = None,
    *,
    coef: Any = None,
    intercept: float = 0.0,
    batch_size: int | str = "auto",
    noise: str = "antithetic",
    noise_scale: float = 1.0,
    inherent_variance: float | str = 0.0,
    random_state: Any = None,
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Estimate the Hessian of least squares from the covariance of its batch gradients.

    Parameters
    ----------
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Features.
    y : array-like of shape (n_samples,), default=None
        Targets. None stands for targets that the coefficients predict exactly.
    coef : array-like of shape (n_features,), default=None
        Coefficients at which gradients are taken; None is zero.
    intercept : float, default=0.0
        Intercept at which gradients are taken.
    batch_size : int or "auto", default="auto"
        Rows in a batch.
    noise : {"antithetic", "single", "none"}, default="antithetic"
        Noise scheme.
    noise_scale : float, default=1.0
        Total target-noise variance over the batch size.
    inherent_variance : float or "estimate", default=0.0
        Variance of the noise that is in the targets already.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of the noise and of the batches.

    Returns
    -------
    covariance : ndarray of shape (n_features, n_features)
        Estimate of the centred covariance of the features, which is the Hessian of the half mean
        squared error once the intercept is eliminated.
    mean_gradient : ndarray of shape (n_features,)
        Gradient of the half mean squared error with respect to the coefficients.

    See Also
    --------
    GradientCovarianceEstimator : The estimator, where every parameter is explained.

    References
    ----------
    arXiv 2601.18546, Lemma 4.2; MATH sections 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_gradhess.covariance import gradient_covariance
    >>> X = np.random.default_rng(0).standard_normal((40_000, 3)) * [1, 10, 100]
    >>> covariance, _ = gradient_covariance(X, batch_size=4, random_state=0)
    >>> (covariance / np.cov(X.T)).diagonal().round(1)
    array([1., 1., 1.])
    """
    estimator = GradientCovarianceEstimator(
        batch_size=batch_size,
        noise=noise,
        noise_scale=noise_scale,
        inherent_variance=inherent_variance,
        store_precision=False,
        random_state=random_state,
    ).fit(X, y, coef=coef, intercept=intercept)
    return estimator.covariance_, estimator.mean_gradient_


class GradientCovarianceEstimator(
    Accumulation, LazyTransform, FittedAttributes, EmpiricalCovariance
):
    r"""Hessian of a regression, recovered from the covariance of its batch gradients.

    Target noise whose variance equals the batch size n (times the curvature of the loss) makes the
    covariance of batch gradients equal to the Hessian: for the squared loss the covariance of the
    features; exactly with pairs of gradients ("antithetic"), up to a bias of relative size
    ``2 excess_risk / n`` with one gradient a batch ("single"). The gradients may come from data
    given to `fit` or `partial_fit`, or from somebody else, through `partial_fit_gradients`. With
    the features in hand and no need for speed, `sklearn.covariance.EmpiricalCovariance` has no
    noise to average out and is more accurate; `batch_size=1` with the default noise gives its
    result exactly.

    Parameters
    ----------
    batch_size : int or "auto", default="auto"
        Rows in a batch. k = n_samples / batch_size gradients have relative error ``2 sqrt(r/k) +
        r/k``, r the effective rank, so small batches are accurate; each batch costs 2 n_features^2
        multiplications on top of the one pass over X, so large batches are fast. "auto", settled by
        the first chunk: with antithetic noise 1 for small data, where Rademacher noise gives the
        exact (weighted) covariance, else n_features/16, which costs about as much again, but at
        least four gradients a feature, or 64 a direction of the sketch that `n_components` makes,
        if the rows allow. Other schemes have a bias of order
        1/batch_size: ``sqrt(n_samples/n_features)``, as many gradients a feature as rows a batch.
    noise : {"antithetic", "single", "none"}, default="antithetic"
        "antithetic": each batch is seen with targets y + xi and y - xi; half the difference of the
        two gradients has the Hessian as covariance, exactly, for any data, coefficients and label
        noise. "single": one noisy gradient a batch, as in the paper; adds a nuisance of relative
        size up to ``2 excess_risk / (noise_scale * batch_size)``. "none": clean gradients. Without
        `inherent_variance` they are uncalibrated, for comparison only; with it, known or
        estimated, its share of the calibrated variance is divided out, which also works where the
        inherent noise exceeds what single noise may add up to.
    noise_scale : float, default=1.0
        Total noise variance as a multiple of the calibrated one. Divided out of `covariance_`.
    inherent_variance : float or "estimate", default=0.0
        Variance of the noise that is in the targets already, in squared units of y; for losses
        other than the squared one in units of the curvature (a dispersion). "single" injects that
        much less. "estimate" takes the mean squared residual at `coef`, of all chunks so far: it
        contains the excess risk, which the nuisance also contains, so the total stays calibrated.
        Needs data. Antithetic noise needs none of this: inherent noise cancels.
    noise_distribution : {"rademacher", "normal"}, default="rademacher"
        Law of the noise that `fit` draws.
    correction : {"auto", "gaussian", "none"}, default="auto"
        Single noise, or none but a known inherent one: remove the nuisance by a formula that is
        exact for Gaussian features, and wrong for heavy tails or plus-minus-one features. "auto":
        for the squared loss. With `n_components` there is no such formula; "auto" then takes the
        noise of all other directions off `eigenvalues_`, and "none" leaves what the gradients show.
    loss : {"squared_error", "log_loss", "poisson", "gamma", ...}, default="squared_error"
        Loss whose Hessian at `coef` is wanted, "tweedie" and "huber" too; with log link for
        "poisson", "gamma" and "tweedie", and targets in [0, 1] for "log_loss". Noise is calibrated
        to its curvature. Beyond the squared loss, `covariance_` is the Hessian with the intercept
        eliminated, and `location_` the curvature-weighted mean of the features.
    epsilon : float, default=1.35
        Where the Huber loss turns linear, in units of y.
    power : float, default=1.5
        Power of the mean that the variance of "tweedie" is proportional to, between 1 and 2.
    n_redraws : int, default=1
        Draws of noise for each batch. More draws lower the error that the noise adds, not the one
        that the rows have; redrawn gradients are not independent data.
    shuffle : bool, default=True
        Deal rows to batches at random, exactly `batch_size` to each, while X is read in storage
        order. Sorted rows otherwise put a rare level into one batch, and ruin its direction.
        False takes contiguous batches, at the full speed of memory.
    shrinkage : float in [0, 1], "ledoit_wolf", "oas" or None, default=None
        Shrink `covariance_` towards the identity times its mean variance, which means something
        for features in like units only. The names are scikit-learn's rules applied to the
        gradients, which are then kept in memory.
    n_components : int or None, default=None
        For features whose square is beyond memory: keep so many leading directions of the
        gradients, and one variance for all others, in ``O(n_components * n_features)`` memory
        whatever the number of gradients; sparse X stays sparse. `components_`, `eigenvalues_`,
        `residual_variance_`, `location_`, `newton_step`, `transform`, `score` and `mahalanobis` go
        by these; `covariance_` and what else is a matrix of all features is an AttributeError. As
        a multiple of the identity means something in like units only, scale features of different
        ones first. Noise other than "antithetic" takes gradients of one `coef` alone, and is not
        corrected.
    whitening : {"zca", "pca", "cholesky"}, default="zca"
        What `transform` does: the symmetric root, scaled principal components, or the inverse of
        the triangular factor. With `n_components` "pca" makes as many columns, "zca" all, and
        there is no "cholesky".
    assume_centered : bool, default=False
        Skip the intercept: `covariance_` is the second moment about zero.
    store_precision : bool, default=True
        Offer `precision_`, which like `covariance_` is computed when it is first read; False makes
        it None, and `get_precision` is left.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of the noise and of the batches.

    Attributes
    ----------
    covariance_ : ndarray of shape (n_features, n_features)
        Estimate of the Hessian.
    precision_ : ndarray of shape (n_features, n_features)
        Its inverse, by way of the triangular factor; on the range of a singular covariance.
    location_ : ndarray of shape (n_features,)
        Mean of the features as the gradients tell it, up to ``sqrt(variance / n_batches)``; zero
        without an intercept.
    gradient_covariance_ : ndarray of shape (n_features, n_features)
        Covariance of the gradients as they were seen (the half differences, about zero, for the
        antithetic scheme), of uncentred features, nothing divided out: the paper's S_g.
    mean_gradient_ : ndarray of shape (n_features,)
        Mean gradient at `coef`, of uncentred features; of several rounds mixed, if they were taken
        at different coefficients. `newton_step` multiplies it by the inverse Hessian.
    mean_intercept_gradient_ : float
        Mean gradient of the intercept; NaN without one.
    excess_risk_ : float
        m^2 = u' Hessian u, u the error of `coef` and `intercept`: twice the loss to be gained.
        From pairs unbiased, so near the optimum it may be negative. NaN where the gradients are too
        few, saturated or uncalibrated; `calibration_report` says which, without `n_components`.
    correction_ : {"gaussian", "spiked", "none"}
        Correction that was applied; "spiked" is that of `eigenvalues_`.
    batch_size_ : int
        Rows in a batch.
    n_batches_ : int
        Batches seen, an incomplete one included.
    n_samples_seen_ : int
        Rows seen.
    noise_variance_ : float
        Injected noise variance, per unit of curvature, of a complete batch of equal weights.
    components_ : ndarray of shape (n_kept, n_features)
        With `n_components`: leading eigenvectors of the gradients' covariance, a row each.
    eigenvalues_ : ndarray of shape (n_kept,)
        With `n_components`: variance of new rows along them. Less than the gradients show, which
        have noise of all other directions in them; `residual_variance_` where noise alone
        explains what they show (MATH section 15).
    residual_variance_ : float
        With `n_components`: mean variance along all other directions.
    n_components_ : int
        With `n_components`: number of directions kept; fewer where gradients were.
    shrinkage_ : float
        Shrinkage that was applied.
    effective_rank_ : float
        Trace of `covariance_` over its largest eigenvalue.
    expected_error_ : float
        Relative error in operator norm that theory expects of `covariance_`.
    fitted_ : object
        The gradients seen, from which all of this is derived when it is asked for; pickled alone.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if all are strings.

    See Also
    --------
    sklearn.covariance.EmpiricalCovariance : From the features themselves.
    sklearn_gradhess.diagnostics.calibration_report : What may be wrong with an estimate.

    Notes
    -----
    An incomplete last batch gets noise calibrated to its own size and enters with the weight of
    its rows; in `partial_fit` it goes on waiting for the rows to come. A row of weight w counts as
    w rows, of independent target noise but of one residual: noise variance is divided by w,
    gradients are weighted means, and inherent noise goes with w^2. The unit of the weights does not
    matter. What a correction takes for the number of draws is that of distinct rows.

    Everything is estimated from gradients, location included, so `fit` and `partial_fit_gradients`
    agree when they see the same gradients. Directions that are singular are projected out of
    `precision_` and `transform`, with a `CalibrationWarning` from `fit`.

    References
    ----------
    "Information Hidden in Gradients of Regression with Target Noise", arXiv 2601.18546, Lemma 4.2;
    MATH sections 1 to 3.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_gradhess import GradientCovarianceEstimator
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> estimator = GradientCovarianceEstimator(random_state=0).fit(X, y)
    >>> estimator.batch_size_, estimator.n_batches_
    (1, 442)
    >>> estimator.transform(X).std(axis=0).round(2)
    array([1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "noise": [StrOptions({"antithetic", "single", "none"})],
        "noise_scale": [Interval(Real, 0, None, closed="neither")],
        "inherent_variance": [Interval(Real, 0, None, closed="left"), StrOptions({"estimate"})],
        "noise_distribution": [StrOptions({"rademacher", "normal"})],
        "correction": [StrOptions({"auto", "gaussian", "none"})],
        "loss": [StrOptions({"squared_error", "log_loss", "poisson", "gamma", "tweedie", "huber"})],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "power": [Interval(Real, 1, 2, closed="neither")],
        "n_redraws": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "shrinkage": [
            Interval(Real, 0, 1, closed="both"),
            StrOptions({"ledoit_wolf", "oas"}),
            None,
        ],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "whitening": [StrOptions({"zca", "pca", "cholesky"})],
        "assume_centered": ["boolean"],
        "store_precision": ["boolean"],
        "random_state": ["random_state", np.random.Generator],
    }

    def __init__(
        self,
        *,
        batch_size: int | str = "auto",
        noise: str = "antithetic",
        noise_scale: float = 1.0,
        inherent_variance: float | str = 0.0,
        noise_distribution: str = "rademacher",
        correction: str = "auto",
        loss: str = "squared_error",
        epsilon: float = 1.35,
        power: float = 1.5,
        n_redraws: int = 1,
        shuffle: bool = True,
        shrinkage: float | str | None = None,
        n_components: int | None = None,
        whitening: str = "zca",
        assume_centered: bool = False,
        store_precision: bool = True,
        random_state: Any = None,
    ) -> None:
        super().__init__(store_precision=store_precision, assume_centered=assume_centered)
        self.batch_size = batch_size
        self.noise = noise
        self.noise_scale = noise_scale
        self.inherent_variance = inherent_variance
        self.noise_distribution = noise_distribution
        self.correction = correction
        self.loss = loss
        self.epsilon = epsilon
        self.power = power
        self.n_redraws = n_redraws
        self.shuffle = shuffle
        self.shrinkage = shrinkage
        self.n_components = n_components
        self.whitening = whitening
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        coef: Any = None,
        intercept: float = 0.0,
    ) -> Self:
        """Estimate the Hessian from data, forgetting what was seen before.

        Parameters
        ----------
        X : {array-like, sparse matrix, dask collection} of shape (n_samples, n_features)
            Features; float32 and float64 are read as they are, without a copy.
        y : array-like of shape (n_samples,), default=None
            Targets. None stands for targets that `coef` and `intercept` predict exactly. The
            antithetic scheme with the squared loss needs them for `mean_gradient_` and
            `excess_risk_` only; labels that are not numbers, and several targets, count as None.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights, of any unit: how often a row counts. Its residual is one draw.
        coef : array-like of shape (n_features,), default=None
            Coefficients at which gradients are taken; None is zero.
        intercept : float, default=0.0
            Intercept at which gradients are taken.

        Returns
        -------
        self : GradientCovarianceEstimator
            Fitted estimator.

        Raises
        ------
        ValueError
            If the data are not finite or not consistent, a target lies outside the loss's range,
            the batch size exceeds the number of rows, or the inherent noise exceeds the total, by
            more than chance where it is estimated.
        TypeError
            If X or y is a tensor, or y of dask and X is not.
        """
        with unchanged_on_error(self):
            self.__dict__.pop("fitted_", None)
            if is_dask(X):
                see_blocks(self, X, y, sample_weight, coef, intercept)
            else:
                self._see_data(X, y, sample_weight, coef, intercept, whole=True)
            self._warn_of_failures()
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        coef: Any = None,
        intercept: float = 0.0,
    ) -> Self:
        """Go on with another chunk of data; rows of an incomplete batch wait for the next.

        Parameters are those of `fit`; a chunk may have fewer rows than a batch. On error the
        estimator stays as it was.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,), default=None
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.
        coef : array-like of shape (n_features,), default=None
            Coefficients at which gradients are taken, which may move from chunk to chunk. Those of
            single noise, or none, are then centred apart for each, and a waiting batch is closed.
        intercept : float, default=0.0
            Intercept at which gradients are taken.

        Returns
        -------
        self : GradientCovarianceEstimator
            The estimator after all chunks so far.
        """
        with unchanged_on_error(self):
            self._see_data(X, y, sample_weight, coef, intercept, whole=False)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit_gradients(
        self,
        gradients: Any,
        antithetic: Any = None,
        *,
        batch_size: int,
        has_intercept: bool = False,
        intercept_position: str = "first",
        gradient_scale: float = 1.0,
        loss_curvature: Any = None,
    ) -> Self:
        """Go on with gradients alone: no features, no targets.

        Rounds of gradients at different coefficients may go into one estimator: with antithetic
        noise and the squared loss all tell the same Hessian. `mean_gradient_` and `excess_risk_`
        then mix the rounds; take the mean of a round's own gradients for `newton_step`. Gradients
        of single noise have to be of one round: what lies between the means of rounds would be
        taken for covariance.

        Parameters
        ----------
        gradients : array-like of shape (n_batches, n_features) or (n_batches, n_features + 1)
            Gradient of the mean half loss over each batch, at targets y + xi where the variance of
            xi makes the total target noise ``noise_scale * batch_size`` (times the curvature of the
            loss). The gradient must be linear in the target, as it is but for "huber".
        antithetic : array-like of the shape of `gradients`, default=None
            Gradients of the same batches at targets y - xi. Needed for noise="antithetic".
        batch_size : int
            Rows in each batch.
        has_intercept : bool, default=False
            Whether one column is the gradient of the intercept. With it the location of the
            features is recovered, `covariance_` is centred, and the scale of the gradients can be
            checked; without it, `covariance_` is the second moment.
        intercept_position : {"first", "last"}, default="first"
            Where that column is: "last" for the bias of a torch module after its weight.
        gradient_scale : float, default=1.0
            Factor between these gradients and those of the mean half loss, which is divided out: 2
            for torch's ``MSELoss()``, `batch_size` for a sum of half losses, ``2 * batch_size`` for
            ``MSELoss(reduction="sum")``; 1 for means of cross entropies.
        loss_curvature : float or array-like of shape (n_batches,), default=None
            For noise that was drawn without regard to the curvature: mean curvature of the loss
            over each batch, by whose root the noise gradients are multiplied. Exact where the
            curvature is constant within a batch. Antithetic noise only.

        Returns
        -------
        self : GradientCovarianceEstimator
            The estimator after all gradients so far.

        Raises
        ------
        ValueError
            If the gradients are not finite, differ in width from those seen before, or do not come
            as the noise scheme needs them.

        Warns
        -----
        CalibrationWarning
            If all gradients so far are too few for their width, or show in the intercept's column
            another noise than the calibrated one, as a wrong `gradient_scale` makes it; once,
            not again by the calls that follow. `diagnostics.calibration_report` says what is so
            in the end.
        """
        before = getattr(self, "fitted_", None)
        with unchanged_on_error(self):
            self._see_gradients(
                *check_gradients(
                    gradients,
                    antithetic,
                    loss_curvature,
                    noise=self.noise,
                    has_intercept=has_intercept,
                    intercept_position=intercept_position,
                    gradient_scale=gradient_scale,
                ),
                batch_size=batch_size,
                has_intercept=has_intercept,
            )
            self._warn_of_failures(before)
        return self

    def merge(self, other: "GradientCovarianceEstimator") -> Self:
        """Take in what another estimator has seen, as if this one had seen it too.

        Associative and commutative up to rounding. A batch that waits for more rows, on either
        side, is closed as the smaller batch that it is; `excess_risk_`, which compares groups of
        batches, groups them part by part.

        Parameters
        ----------
        other : GradientCovarianceEstimator
            Fitted estimator; it is not changed.

        Returns
        -------
        self : GradientCovarianceEstimator
            The estimator after both.

        Raises
        ------
        ValueError
            If the two differ in features, batch size, noise scheme or scale, loss, or in having
            an intercept.
        TypeError
            If `other` is no GradientCovarianceEstimator.
        """
        check_is_fitted(self)
        if not isinstance(other, GradientCovarianceEstimator):
            raise TypeError(
                "merge takes another GradientCovarianceEstimator, which keeps what it has seen; "
                f"got {type(other).__name__}."
            )
        check_is_fitted(other)
        mine, theirs = self.fitted_.memory, other.fitted_.memory
        for name, a, b in (
            ("n_features_in_", self.n_features_in_, other.n_features_in_),
            ("batch_size_", self.batch_size_, other.batch_size_),
            *((name, getattr(self, name), getattr(other, name)) for name in _IDENTITY),
            ("has_intercept", mine.has_intercept, theirs.has_intercept),
            ("kept gradients", mine.kept is not None, theirs.kept is not None),
            ("a unit of sample_weight", mine.unit, theirs.unit),
        ):
            if a != b:
                raise ValueError(
                    f"Cannot merge estimators with {name}={a!r} and {name}={b!r}: their gradients "
                    "have different laws. Fit both with the same settings, batch_size as a number."
                )
        for memory in (mine, theirs):  # parameters may have been changed since
            memory.check_law(self._law(), self.inherent_variance)
        names = [e.feature_names_in_ for e in (self, other) if hasattr(e, "feature_names_in_")]
        if len(names) == 2 and not np.array_equal(names[0], names[1]):
            raise ValueError("Cannot merge estimators of different feature_names_in_.")
        with unchanged_on_error(self):
            memory = mine.settled().merge(theirs.settled())
            self._conclude(memory)
        return self
