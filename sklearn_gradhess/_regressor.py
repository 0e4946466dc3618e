"""Regression by gradient descent that needs no learning rate and no scaling."""

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.metrics import d2_tweedie_score

from sklearn_gradhess._dask import by_block
from sklearn_gradhess._distributed import DaskMixin
from sklearn_gradhess._loss import Loss
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._sgd import PreconditionedSGD
from sklearn_gradhess._validation import (
    Interval,
    StrOptions,
    _fit_context,
    check_rows,
    check_weights,
    is_dask,
    unchanged_on_error,
    with_callbacks,
)

__all__ = ["PreconditionedSGDRegressor"]

Array = npt.NDArray[np.float64]


class PreconditionedSGDRegressor(DaskMixin, MultiOutputMixin, RegressorMixin, PreconditionedSGD):
    """Linear regression by gradient descent that needs no learning rate and no scaling.

    Takes raw features in any units and converges in as many passes at condition number 1 as at
    1e12. Of use for many rows; for few, `sklearn.linear_model.LinearRegression` is as good.

    Parameters
    ----------
    loss : {"squared_error", "huber", "quantile", "poisson", "gamma", "tweedie"}, \
            default="squared_error"
        Loss. "poisson", "gamma" and "tweedie" are half deviances with a log link; `score` then is
        D^2, as for `sklearn.linear_model.PoissonRegressor`, else R^2. For rates pass counts over
        exposure as y, and the exposure as `sample_weight`. "quantile" is the pinball loss,
        smoothed; "huber" is linear for large residuals. Both are multiplied by `scale_`, so that
        they are in squared units of y. Targets of shape (n_samples, n_targets) for "squared_error".
    alpha : float or array-like of shape (n_features,), default=0.0
        Ridge penalty: the objective is ``mean(loss) + alpha/2 ||coef||^2``, intercept excepted,
        in the units that follow; of all features or of each. Ridge's penalty over the number of
        rows. HuberRegressor's alpha is ``n_samples * alpha / scale_``.
    penalty_units : {"std", "raw"}, default="std"
        What the penalty sees: with "std" the coefficient per standard deviation of its feature,
        so that a fit does not depend on units and equals that on `StandardScaler`'s output; with
        "raw" the coefficient itself, as in scikit-learn's models.
    fit_intercept : bool, default=True
        Whether to fit an intercept.
    epsilon : float, default=1.35
        Where the Huber loss turns linear, in units of `scale_`; greater than 1. 1.35 is 95 % as
        efficient as least squares on normal residuals.
    power : float, default=1.5
        Power of the mean that the variance of "tweedie" is proportional to, between 1 (Poisson)
        and 2 (gamma).
    quantile : float, default=0.5
        Quantile that "quantile" predicts, between 0 and 1.
    batch_size : int or "auto", default="auto"
        Rows in a mini-batch step; "auto" is four times the number of coefficients. With
        noise="single" the rows behind each gradient.
    max_iter : int, default=100
        Most rounds; a round is a full gradient and the steps that follow it.
    tol : float, default=1e-2
        Not a change of the loss: stop when the squared Newton decrement, about twice the loss that
        is still to be gained, is below ``tol * s2 * p / n_samples``, a hundredth of the statistical
        error of the p coefficients; s2 is the residual variance (one for log_loss and poisson).
        More passes change nothing that the data can tell. Small data, where passes cost nothing,
        are fitted further.
    learning_rate : float or "auto", default="auto"
        Step size in the preconditioned coordinates; "auto" follows from the law of the sketch.
    average : bool, default=True
        Average the last two thirds of the steps of a round.
    variance_reduction : bool, default=True
        Step on differences to the full gradient. Without it steps are plain stochastic gradients,
        which come to rest at a distance: for comparison.
    noise : {"antithetic", "single"}, default="antithetic"
        "single": see one noisy gradient a batch and nothing else, for curvature and direction, as
        the paper's server does, which wastes rows. One output; not for "huber" and "quantile",
        whose scale gradients do not tell.
    noise_scale : float, default=1.0
        Total noise over the batch size, for noise="single".
    preconditioner : {"auto", "exact", "sketch", "diagonal", "sample_space", "identity"} or \
GradientCovarianceEstimator, default="auto"
        The Hessian; a sketch of it, for many rows; its diagonal, for many or sparse features; the
        Gram matrix of the rows, for few rows of many features; "auto": what costs least in time and
        memory. "identity": plain steps, for comparison. An estimator is cloned and fitted, or used
        as it is when it is fitted already, from somebody else's gradients perhaps.
    oversampling : float or "auto", default="auto"
        Batches a coefficient in the sketch. More make a better preconditioner at more cost; "auto"
        is 40 (8 from 500 coefficients on) for Newton steps and 4 for mini-batch steps.
    shuffle : bool, default=True
        Deal the rows to the batches of the sketch at random.
    early_stopping : bool, default=False
        Hold out rows, and stop when their loss has not improved for `n_iter_no_change` rounds.
    validation_fraction : float, default=0.1
        Share of the rows to hold out.
    n_iter_no_change : int, default=5
        Rounds without improvement to wait.
    warm_start : bool, default=False
        Start from the coefficients of the last fit.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of the sketch and of the mini-batches.
    verbose : int, default=0
        Print a line a round.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept.
    scale_ : float
        Scale of the residuals, in units of y, estimated together with the coefficients; there for
        "huber" and "quantile" only. For "huber" that of `sklearn.linear_model.HuberRegressor`; for
        "quantile" the width of their distribution about the quantile, over that of a standard
        normal one.
    bandwidth_ : float
        Scale of the logistic density that "quantile" is smoothed with, in units of y.
    n_iter_ : int
        Rounds.
    n_rounds_ : int
        Rounds of questions, after a fit to a dask collection.
    n_passes_ : float
        Passes over X, those for a preconditioner of its own making included.
    t_ : int
        Rows visited.
    learning_rate_ : float
        Step size of the last round of mini-batch steps; zero if there was none.
    history_ : list of dict
        For each round: loss, decrement, floor (the statistical error that `tol` multiplies),
        passes, seconds. For "huber" and "quantile" the rounds after the scale was found.
    alpha_ : float or ndarray of shape (n_features,)
        Penalty that `fit` took.
    converged_ : bool
        Whether the last full gradient met `tol`; or one more round of steps, at the rate of the
        last one, was foreseen to end below it, and was taken (`history_` then ends above);
        or nothing but rounding was left.
    covariance_estimator_ : GradientCovarianceEstimator or DiagonalHessian
        The preconditioner, as an estimator of the Hessian where it was last made; for other losses
        than the squared one, with the curvature that it assumes, which is no less than the second
        derivative. With "identity" a sketch made at the start. Not there for
        "quantile".
        After "diagonal" and "sample_space" it has `location_`, `variance_` (the diagonal of the
        Hessian), `newton_step` and `transform`, and no `covariance_`.
    preconditioner_ : {"exact", "sketch", "pooled", "diagonal", "sample_space", "identity", ...}
        What was used: the Hessian of all rows, a sketch of it, one shared out to the classes, its
        diagonal, the Gram matrix of the rows, none; or "estimator" and "single".
    rank_ : int
        Number of directions of the features that the rows determine; NaN with "diagonal".
    df_ : float
        Effective degrees of freedom, ``tr H (H + alpha)^-1``, the intercept's included.
    coef_standard_error_ : ndarray of the shape of `coef_`
        Standard errors, with the dispersion of the residuals on as many degrees of freedom as
        `df_` leaves of the rows of positive weight. Weights are inverse variances, in any unit:
        where they count repetitions, repeat the rows. As exact as the Hessian: by a sketch of k
        batches they are off by some ``1/sqrt(2 k)``. Zero along directions that the rows do not
        determine; NaN for wide data.
    intercept_standard_error_ : float or ndarray
        Standard error of `intercept_`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if all are strings.

    See Also
    --------
    sklearn.linear_model.SGDRegressor : Plain steps; needs scaled features and a tuned rate.
    sklearn.linear_model.Ridge : Direct and iterative solvers.

    Notes
    -----
    A sketch of the rows, one batch gradient of sign noise a row of it, preconditions every step:
    its spectrum against the true Hessian does not depend on the Hessian (MATH section 4.1).
    Mini-batches draw rows in proportion to their leverage, so rare levels and outliers do no harm.
    Where the rows are few against the coefficients, or mini-batches fail to shrink the decrement,
    Newton steps by preconditioned conjugate gradients with a line search take over.

    `partial_fit` learns from a stream in one pass and ends where `fit` on all rows would: exactly
    for the squared loss, in memory for 1.5 matrices of the size of the Hessian; within a fraction
    of a statistical error for the others, which keep 64 rows a coefficient (1,024 at least) and up
    to a quarter of that besides (MATH section 10). Wide data, and whatever follows a `fit` that
    made no such matrix, it learns by a diagonal model, which is not exact (see the method). Until a
    solution is asked for it may have none stored: `coef_` is found when somebody looks, and `vars`
    does not show it.

    The scale of "huber" and "quantile" is estimated in a stream from the rows that it keeps, and
    after a `fit` it stays; in wide data it is the mean over blocks of rows, of each before it was
    fitted to, and `scale_` is not there before the first block of 1,024 rows, or more if sparse.

    "huber" minimises the objective of `sklearn.linear_model.HuberRegressor`, in which the scale is
    a variable too, so that no unit of y matters. The bandwidth of "quantile" falls with the number
    of rows, and until the pinball loss is within 0.1 % (or 2 % of the coefficients over the rows)
    of the least there is, as the dual problem tells.

    References
    ----------
    MATH sections 4 and 13; arXiv 2601.18546; Owen (2007), "A robust hybrid of lasso and ridge
    regression"; He, Pan, Tan and Zhou (2023), "Smoothed quantile regression with large-scale
    inference".

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_gradhess import PreconditionedSGDRegressor
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> round(PreconditionedSGDRegressor().fit(X, y).score(X, y), 3)
    0.518
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **PreconditionedSGD._parameter_constraints,
        "loss": [StrOptions({"squared_error", "huber", "quantile", "poisson", "gamma", "tweedie"})],
        "epsilon": [Interval(Real, 1, None, closed="neither")],
        "power": [Interval(Real, 1, 2, closed="neither")],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(
        self,
        loss: str = "squared_error",
        *,
        alpha: Any = 0.0,
        penalty_units: str = "std",
        fit_intercept: bool = True,
        epsilon: float = 1.35,
        power: float = 1.5,
        quantile: float = 0.5,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        tol: float = 1e-2,
        learning_rate: float | str = "auto",
        average: bool = True,
        variance_reduction: bool = True,
        noise: str = "antithetic",
        noise_scale: float = 1.0,
        preconditioner: Any = "auto",
        oversampling: float | str = "auto",
        shuffle: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.loss = loss
        self.alpha = alpha
        self.penalty_units = penalty_units
        self.fit_intercept = fit_intercept
        self.epsilon = epsilon
        self.power = power
        self.quantile = quantile
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.learning_rate = learning_rate
        self.average = average
        self.variance_reduction = variance_reduction
        self.noise = noise
        self.noise_scale = noise_scale
        self.preconditioner = preconditioner
        self.oversampling = oversampling
        self.shuffle = shuffle
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        coef_init: Any = None,
        intercept_init: Any = None,
    ) -> Self:
        """Fit to data.

        Parameters
        ----------
        X : {array-like, sparse matrix, dask collection} of shape (n_samples, n_features)
            Features; CSC is converted to CSR, nothing else is copied.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights; two is as good as a repetition.
        coef_init : array-like of the shape of `coef_`, default=None
            Coefficients to start from.
        intercept_init : array-like of the shape of `intercept_`, default=None
            Intercept to start from.

        Returns
        -------
        self : object
            Fitted estimator.

        Raises
        ------
        ValueError
            If the data are not finite or not consistent, or a target is out of range.
        """
        with unchanged_on_error(self):
            if is_dask(X):
                return self._fit_blocks(X, y, sample_weight, coef_init, intercept_init)
            X, Y, sample_weight, self._vector = self._validate(X, y, sample_weight, reset=True)
            start = self._start_from(coef_init, intercept_init, X.shape[1], Y.shape[1])
            return self._minimise(
                X, Y, self._make_loss(), sample_weight, start, Y[:, 0] if self._vector else Y
            )

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from another chunk of a stream, in one pass.

        Ends where `fit` on all rows would, whatever the chunks, within a fraction of a statistical
        error, unless the order of the rows sorts by the target. Beyond 5,000 features, or what
        memory has room for, with preconditioner="diagonal", and after a `fit` that made no matrix
        (`preconditioner_` "diagonal" or "sample_space", which "auto" may choose for more features
        than rows, or than 1,000) it keeps a few numbers a coefficient and forgets how features go
        together once their rows are gone (MATH section 7.6); the first call decides.

        After `fit` it goes on from there. The rows of the fit are their second-order expansion at
        its solution, a sketch of it where `fit` made one: a penalty so changed that coefficients
        move far is felt as far as that goes. What `fit` told of itself is dropped: `history_`,
        `n_iter_`, `n_passes_`, `learning_rate_`, `converged_`, `preconditioner_`, `alpha_`,
        `covariance_estimator_`, and what came of that: `rank_`, `df_` and the standard errors.

        The penalty is that of all rows seen; `alpha` may change, the loss, its parameters
        and `fit_intercept` may not.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights; if all are zero, the chunk changes nothing.

        Returns
        -------
        self : object
            The estimator after all rows so far; as it was, if the chunk raises an error.

        Raises
        ------
        ValueError
            If the chunk is not finite, too large or does not fit those before, a parameter is for
            fit, or one has changed that the rows before were seen with.

        Warns
        -----
        ConvergenceWarning
            If the order of the rows sorts by the target, or the loss has no minimum yet.
        """
        with unchanged_on_error(self):
            first = not self._begun
            X, Y, sample_weight, vector = self._validate(
                X, y, sample_weight, reset=first, allow_zero=True
            )
            if first:
                self._vector = vector
            self._learn(X, Y, self._make_loss(), sample_weight)
        return self

    def _make_loss(self) -> Loss:
        return make_loss(self.loss, epsilon=self.epsilon, power=self.power, quantile=self.quantile)

    def _validate(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool, allow_zero: bool = False
    ) -> tuple[Any, Array, Array | None, bool]:
        X, y = check_rows(
            self, X, y, reset=reset, multi_output=self.loss == "squared_error", y_numeric=True
        )
        Y = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        self._make_loss().check_y(Y)
        return X, Y, check_weights(sample_weight, X, allow_zero=allow_zero), y.ndim == 1

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self.loss == "squared_error"
        tags.target_tags.positive_only = self.loss in ("poisson", "gamma", "tweedie")
        return tags

    def _attributes(self, W: Array, dtype: Any) -> dict[str, Any]:
        h = int(self.fit_intercept)
        coef = W[h:].T.astype(dtype)
        intercept = W[0].astype(dtype) if h else np.zeros(W.shape[1], dtype=dtype)
        if self._vector:
            return {"coef_": coef[0], "intercept_": float(intercept[0])}
        return {"coef_": coef, "intercept_": intercept}

    @by_block
    def predict(self, X: Any) -> npt.NDArray[np.floating]:
        """Predict targets.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predicted targets; the mean, for a log link; the quantile, for "quantile".
        """
        return self._make_loss().mean(self._raw_prediction(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the loss of a constant prediction that is explained.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights.

        Returns
        -------
        score : float
            D^2, the share of the deviance of "poisson", "gamma" and "tweedie"
            (`sklearn.metrics.d2_tweedie_score`); R^2, that of the squares, for other losses.
        """
        power = self._make_loss().power
        if is_dask(X):
            return self._score_blocks(X, y, sample_weight, power)
        if power is None:
            return float(super().score(X, y, sample_weight))
        predicted = self.predict(X)
        # Deviances take no mean that has vanished
        predicted = np.maximum(predicted, np.finfo(predicted.dtype).tiny)
        with np.errstate(over="ignore"):
            return float(d2_tweedie_score(y, predicted, sample_weight=sample_weight, power=power))
