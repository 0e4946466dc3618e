"""Classification by gradient descent that needs no learning rate and no scaling."""

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from sklearn_gradhess._dask import by_block
from sklearn_gradhess._distributed import DaskMixin
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._multinomial import MultinomialLoss
from sklearn_gradhess._sgd import PreconditionedSGD
from sklearn_gradhess._stream import stream_classes
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
from sklearn_gradhess._weights import class_weighted, refuse_one_class

__all__ = ["PreconditionedSGDClassifier"]

Array = npt.NDArray[np.float64]


class PreconditionedSGDClassifier(DaskMixin, ClassifierMixin, PreconditionedSGD):
    """Logistic regression by gradient descent that needs no learning rate and no scaling.

    Two classes, or more with scikit-learn's symmetric parametrisation. Without a penalty, separable
    classes have no finite solution; then the descent ends where the loss tells nothing more.

    Parameters
    ----------
    loss : {"log_loss"}, default="log_loss"
        Loss.
    alpha : float, array-like of shape (n_features,) or "auto", default="auto"
        Ridge penalty: the objective is ``mean(loss) + alpha/2 ||coef||^2``, intercept excepted,
        in the units that follow; of all features or of each; zero is no penalty. "auto" is one
        over the sum of the weights, LogisticRegression's ``C=1`` on standardised features. Of more
        than 1,000 features that vary, and fewer than ten rows for each, `fit` chooses more, with
        "std": rare features are penalised as frequent ones, and rows that are held out choose how
        much, from one over the sum of the weights to some thousand times that (MATH section 7.7);
        `alpha_` tells, an array then. `partial_fit` beyond 5,000 features chooses alike, without
        an `alpha_`; after such a `fit` it goes on with what that chose. A repeated row may be both
        learned from and held out; give it a weight instead.
    penalty_units : {"std", "raw"}, default="std"
        What the penalty sees: with "std" the coefficient per standard deviation of its feature,
        so that a fit does not depend on units and equals that on `StandardScaler`'s output; with
        "raw" the coefficient itself, as in scikit-learn's models.
    fit_intercept : bool, default=True
        Whether to fit an intercept.
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
        the paper's server does, which wastes rows. One output, at most two classes.
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
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, nonnegative; those that a dict lacks weigh one. "balanced" is
        inverse to their frequencies, sample weights counted. A key that is no label is refused.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of the sketch and of the mini-batches.
    verbose : int, default=0
        Print a line a round.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        Coefficients.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercept.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
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
        passes, seconds.
    alpha_ : float or ndarray of shape (n_features,)
        Penalty that `fit` took, in the units of `alpha`; an array where "auto" chose it.
    converged_ : bool
        Whether the last full gradient met `tol`; or one more round of steps, at the rate of the
        last one, was foreseen to end below it, and was taken (`history_` then ends above);
        or nothing but rounding was left.
    covariance_estimator_ : GradientCovarianceEstimator or DiagonalHessian
        The preconditioner, as an estimator of the Hessian where it was last made, with the bound
        (see References) for the curvature. With "identity" a sketch made at the start. Of three
        classes or more, the mean over classes of the Hessian's diagonal blocks.
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
        Standard errors; weights count repetitions. As exact as the Hessian: by a sketch of k
        batches they are off by some ``1/sqrt(2 k)``. Zero along directions that the rows do not
        determine; NaN for three classes or more, and wide data.
    intercept_standard_error_ : float or ndarray
        Standard error of `intercept_`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if all are strings.

    See Also
    --------
    sklearn.linear_model.LogisticRegression : Other solvers; penalises by default.

    Notes
    -----
    The method is that of `PreconditionedSGDRegressor`, `partial_fit` included.

    References
    ----------
    MATH section 4; Jaakkola and Jordan (2000) for the bound that the preconditioner takes as the
    curvature of confident rows.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_gradhess import PreconditionedSGDClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> round(PreconditionedSGDClassifier().fit(X, y).score(X, y), 2)
    0.99
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **PreconditionedSGD._parameter_constraints,
        "loss": [StrOptions({"log_loss"})],
        "alpha": [Interval(Real, 0, None, closed="left"), "array-like", StrOptions({"auto"})],
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        loss: str = "log_loss",
        *,
        alpha: Any = "auto",
        penalty_units: str = "std",
        fit_intercept: bool = True,
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
        class_weight: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.loss = loss
        self.alpha = alpha
        self.penalty_units = penalty_units
        self.fit_intercept = fit_intercept
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
        self.class_weight = class_weight
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
        y : array-like of shape (n_samples,)
            Labels.
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
            If the data are not finite or not consistent, a weight is negative or not finite, or
            fewer than two classes have a positive weight.
        """
        with unchanged_on_error(self):
            if is_dask(X):
                return self._fit_blocks(X, y, sample_weight, coef_init, intercept_init)
            X, y, sample_weight = self._validate(X, y, sample_weight, reset=True)
            self.classes_ = np.unique(y)
            weights = class_weighted(self.class_weight, self.classes_, y, sample_weight)
            refuse_one_class(y, weights)
            Y, loss = self._encode(y)
            start = self._start_from(coef_init, intercept_init, X.shape[1], Y.shape[1])
            return self._minimise(X, Y, loss, weights, start, y)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, classes: Any = None
    ) -> Self:
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

        The penalty is that of all rows seen, for "auto" one over their weight, or, where it
        keeps a few numbers a coefficient, what `fit` takes of them (MATH section 7.7); what a `fit`
        before it has chosen goes on; `alpha` may
        change, the loss, its parameters and `fit_intercept` may not.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights; if all are zero, the chunk changes nothing.
        classes : array-like of shape (n_classes,), default=None
            All labels that will come; needed on the first call.

        Returns
        -------
        self : object
            The estimator after all rows so far; as it was, if the chunk raises an error.

        Raises
        ------
        ValueError
            If the chunk is not finite, too large or does not fit those before, a parameter is for
            fit, one has changed that the rows before were seen with, or a class weight is refused.

        Warns
        -----
        ConvergenceWarning
            If the rows so far are separable or of one class, or their order sorts by the target.
        """
        with unchanged_on_error(self):
            first = not self._begun
            X, y, sample_weight = self._validate(X, y, sample_weight, reset=first, allow_zero=True)
            self.classes_ = stream_classes(getattr(self, "classes_", None), classes, y)
            if self.class_weight == "balanced":
                raise ValueError(
                    "class_weight='balanced' needs all labels at once. Pass a dict of weights to "
                    "use it with partial_fit."
                )
            each = class_weighted(self.class_weight, self.classes_, self.classes_, None)
            refuse_one_class(self.classes_, each)
            Y, loss = self._encode(y)
            weights = class_weighted(self.class_weight, self.classes_, y, sample_weight)
            self._learn(X, Y, loss, weights)
        return self

    def _validate(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool, allow_zero: bool = False
    ) -> tuple[Any, Any, Array | None]:
        X, y = check_rows(self, X, y, reset=reset)
        check_classification_targets(y)
        return X, y, check_weights(sample_weight, X, allow_zero=allow_zero)

    def _encode(self, y: Any) -> tuple[Array, Any]:
        """One column of zeros and ones for two classes, one-hot rows for more."""
        codes = np.searchsorted(self.classes_, y)
        if len(self.classes_) == 2:
            return codes[:, None].astype(np.float64), make_loss(self.loss)
        return np.eye(len(self.classes_))[codes], MultinomialLoss()

    def _attributes(self, W: Array, dtype: Any) -> dict[str, Any]:
        if W.shape[1] > 1:  # the symmetric parametrisation: columns sum to zero
            W = W - np.einsum("ij->i", W)[:, None] / W.shape[1]
        h = int(self.fit_intercept)
        intercept = W[0] if h else np.zeros(W.shape[1])
        return {"coef_": W[h:].T.astype(dtype), "intercept_": intercept.astype(dtype)}

    def decision_function(self, X: Any) -> npt.NDArray[np.floating]:
        """Raw predictions.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            For two classes the log odds of the second one.
        """
        raw = self._raw_prediction(X)
        return raw[:, 0] if raw.shape[1] == 1 else raw

    @by_block
    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Predict class labels.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            The most probable class of each row.
        """
        raw = self.decision_function(X)
        best = (raw > 0).astype(np.intp) if raw.ndim == 1 else raw.argmax(axis=1)
        return self.classes_[best]

    @by_block
    def predict_proba(self, X: Any) -> npt.NDArray[np.floating]:
        """Probabilities of the classes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        raw = self.decision_function(X)
        if raw.ndim == 1:
            return np.column_stack([expit(-raw), expit(raw)])
        return softmax(raw, axis=1)

    @by_block
    def predict_log_proba(self, X: Any) -> npt.NDArray[np.floating]:
        """Logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        raw = self.decision_function(X)
        if raw.ndim == 1:
            return np.column_stack([log_expit(-raw), log_expit(raw)])
        return log_softmax(raw, axis=1)
