"""Stochastic gradient descent that needs no learning rate and no scaling."""

import time
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_gradhess._losses import MultinomialLoss, make_loss
from sklearn_gradhess._online import OnlineModel
from sklearn_gradhess._solver import Problem, Settings, Sketch, Solution, fixed_sketch, solve
from sklearn_gradhess._validation import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    _fit_context,
    check_weights,
    effective_n_threads,
    refuse_foreign,
    unchanged_on_error,
    with_callbacks,
)
from sklearn_gradhess.covariance import GradientCovarianceEstimator
from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.noise import as_generator

__all__ = ["PreconditionedSGDClassifier", "PreconditionedSGDRegressor"]

Array = npt.NDArray[np.float64]
# Steps that noise='single' averages once it has come down to its own noise
_AVERAGED = 10


class _PreconditionedSGD(CallbackSupportMixin, BaseEstimator):
    """What regressor and classifier share; they say how targets become a problem and back."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "alpha": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "average": ["boolean"],
        "variance_reduction": ["boolean"],
        "noise": [StrOptions({"antithetic", "single"})],
        "noise_scale": [Interval(Real, 0, None, closed="neither")],
        "preconditioner": [StrOptions({"auto", "identity"}), GradientCovarianceEstimator],
        "oversampling": [Interval(Real, 1, None, closed="neither")],
        "shuffle": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state", np.random.Generator],
        "verbose": ["verbose"],
    }

    def _minimise(
        self,
        X: Any,
        Y: Array,
        loss: Any,
        sample_weight: Array | None,
        start: Array | None,
        labels: Any,
    ) -> Self:
        """Minimise, telling callbacks and early stopping of each iteration; store the result."""
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = as_generator(seed).integers(2**63)
        # Data made with the same seed must not share its numbers with the solver
        rng = np.random.default_rng([int(seed), *b"solver"])
        held_out = None
        if self.early_stopping:
            X, Y, sample_weight, labels, held_out = self._hold_out(
                X, Y, loss, sample_weight, labels, rng
            )
        problem = Problem(
            X,
            Y,
            _mean_one(sample_weight),
            loss,
            self.alpha,
            self.fit_intercept,
            _count(sample_weight),
        )
        monitor = _Monitor(self, X, labels, held_out)
        if self.noise == "single":
            solution = _solve_single(self, problem, labels, sample_weight, rng, start, monitor)
        else:
            settings = Settings(
                tol=self.tol,
                max_iter=self.max_iter,
                oversampling=self.oversampling,
                batch_size=None if isinstance(self.batch_size, str) else self.batch_size,
                learning_rate=None if isinstance(self.learning_rate, str) else self.learning_rate,
                average=self.average,
                variance_reduction=self.variance_reduction,
                shuffle=self.shuffle,
                n_threads=effective_n_threads(),
                fixed=self._fixed_preconditioner(problem, sample_weight),
                safeguard=self.preconditioner != "identity" and self.variance_reduction,
                on_iteration=monitor,
            )
            solution = solve(problem, settings, rng, start)
        monitor.close(solution.W)
        self._store_solution(solution, problem)
        self._store(solution.W, X.dtype)
        self._warn(solution, problem, stopped=monitor.stopped)
        return self

    def _hold_out(
        self,
        X: Any,
        Y: Array,
        loss: Any,
        sample_weight: Array | None,
        labels: Any,
        rng: np.random.Generator,
    ) -> tuple[Any, Array, Array | None, Any, Problem]:
        n = Y.shape[0]
        train, test = train_test_split(
            np.arange(n),
            test_size=self.validation_fraction,
            random_state=int(rng.integers(2**31)),
            stratify=labels if isinstance(self, ClassifierMixin) else None,
        )
        train, test = np.sort(train), np.sort(test)
        weights = (None, None)
        if sample_weight is not None:
            weights = sample_weight[train], sample_weight[test]
        held_out = Problem(X[test], Y[test], _mean_one(weights[1]), loss, 0.0, self.fit_intercept)
        return X[train], Y[train], weights[0], labels[train], held_out

    def _fixed_preconditioner(self, problem: Problem, sample_weight: Any) -> Sketch | None:
        given = self.preconditioner
        if isinstance(given, str):
            if given == "auto":
                return None
            mean_square = 0.0  # identity: the trace of the Hessian bounds its eigenvalues
            raw = np.zeros_like(problem.Y)
            for piece, Z in problem.chunks():
                v = problem.weighted(problem.loss.curvature(problem.Y[piece], raw[piece]), piece)
                square = Z.multiply(Z).sum(axis=1) if sparse.issparse(Z) else np.sum(Z**2, axis=1)
                mean_square += float(v.sum(axis=1) @ (np.asarray(square).ravel() + 1.0))
            scale = np.sqrt(problem.n / mean_square) if mean_square else 1.0
            return fixed_sketch(np.eye(problem.p) / scale, problem, ratio=0.0)
        estimator = given
        if not hasattr(estimator, "covariance_"):
            y = problem.Y[:, 0] if problem.Y.shape[1] == 1 else None
            estimator = clone(given).fit(problem.X, y, sample_weight)
        if estimator.n_features_in_ != problem.X.shape[1]:
            raise ValueError(
                f"The preconditioner was fitted on {estimator.n_features_in_} features, X has "
                f"{problem.X.shape[1]}. Pass an estimator fitted on the same features."
            )
        self.covariance_estimator_ = estimator
        return fixed_sketch(
            estimator._hessian_factor(intercept=problem.has_intercept),
            problem,
            ratio=min(problem.p / max(estimator._memory.moments.n_gradients, 1), 0.5),
        )

    def _store(self, W: Array, dtype: Any) -> None:
        for name, value in self._attributes(W, dtype).items():
            setattr(self, name, value)

    def _store_solution(self, solution: Solution, problem: Problem) -> None:
        self.history_ = solution.history
        self.n_iter_ = max(len(solution.history) - 1, 1)
        self.n_passes_ = solution.n_passes
        self.t_ = round(solution.n_passes * problem.n)
        self.learning_rate_ = solution.learning_rate
        self.converged_ = solution.converged
        self._factors = solution.sketch.factors
        self._n_seen = float(problem.n)
        self.__dict__.pop("_online", None)
        if isinstance(self.preconditioner, str) and self.noise != "single":
            self.covariance_estimator_ = GradientCovarianceEstimator._from_factor(
                solution.sketch.factors[0],
                n_batches=solution.sketch.n_batches,
                n_samples=problem.n,
                batch_size=solution.sketch.batch_size,
                has_intercept=problem.has_intercept,
                loss="squared_error" if problem.quadratic else self._loss_name(),
            )

    def _warn(self, solution: Solution, problem: Problem, *, stopped: bool) -> None:
        clipped = solution.sketch.n_clipped
        if clipped:
            warnings.warn(
                f"X determines only {problem.p - clipped} of {problem.p} coefficients: features "
                "are constant, linear combinations of others, or more than the rows. The solution "
                "is the one without the other directions; use alpha > 0 for a ridge solution.",
                CalibrationWarning,
                stacklevel=5,
            )
        if not solution.converged and not stopped:
            last = solution.history[-1]
            warnings.warn(
                f"Not converged after {self.n_iter_} iterations and {solution.n_passes:.1f} passes "
                f"over X: the decrement is {last['decrement']:.3g}, the target "
                f"{self.tol * last['floor']:.3g}. Increase max_iter or tol"
                + (", or use preconditioner='auto'." if self.preconditioner == "identity" else "."),
                ConvergenceWarning,
                stacklevel=5,
            )

    def _stream(self, X: Any, Y: Array, loss: Any, sample_weight: Array | None) -> OnlineModel:
        problem = Problem(X, Y, sample_weight, loss, self.alpha, self.fit_intercept)
        model = getattr(self, "_online", None)
        if model is None:
            W = np.zeros((problem.p, Y.shape[1]))
            if hasattr(self, "_factors"):
                W = self._coefficients()
            model = OnlineModel(W)
            if hasattr(self, "_factors"):
                model = model.starting_from(self._factors, self._n_seen)
        model = model.update(problem)
        if not np.isfinite(model.W).all():
            raise ValueError(
                "The coefficients overflow: features or targets are too large. Rescale X or y."
            )
        return model

    def _coefficients(self) -> Array:
        """Return the coefficients as the solver has them: intercept first, a column an output."""
        W = np.atleast_2d(self.coef_).T.astype(np.float64)
        if self.fit_intercept:
            W = np.vstack([np.atleast_1d(self.intercept_)[None, :], W])
        return W

    def _start_from(self, coef_init: Any, intercept_init: Any, d: int, t: int) -> Array | None:
        """Where the user wants to start, if anywhere."""
        if coef_init is None and intercept_init is None:
            if self.warm_start and hasattr(self, "coef_"):
                W = self._coefficients()
                if W.shape == (d + self.fit_intercept, t):
                    return W
            return None
        W = np.zeros((d + self.fit_intercept, t))
        if coef_init is not None:
            coef = np.asarray(coef_init, dtype=np.float64)
            if coef.size != d * t or not np.isfinite(coef).all():
                raise ValueError(
                    f"coef_init has shape {coef.shape}, but {t} output(s) of {d} features are "
                    "fitted: pass finite coefficients of the shape of coef_."
                )
            W[self.fit_intercept :] = coef.reshape(t, d).T
        if intercept_init is not None and self.fit_intercept:
            intercept = np.asarray(intercept_init, dtype=np.float64).ravel()
            if intercept.size != t or not np.isfinite(intercept).all():
                raise ValueError(
                    f"intercept_init has {intercept.size} values, but there are {t} output(s): "
                    "pass one finite number each."
                )
            W[0] = intercept
        return W

    def _raw_prediction(self, X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(
            self, X, accept_sparse=("csr", "csc"), dtype=[np.float64, np.float32], reset=False
        )
        return X @ self.coef_.T + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _mean_one(sample_weight: Array | None) -> Array | None:
    if sample_weight is None:
        return None
    return sample_weight * (len(sample_weight) / sample_weight.sum())


def _count(sample_weight: Array | None) -> float:
    """Observations that weights stand for: their sum, as repetitions, or what that can't be."""
    if sample_weight is None:
        return 0.0
    total = float(sample_weight.sum())
    # Kish's effective size, for weights that were scaled to another sum
    return max(total, total**2 / float(np.sum(sample_weight**2)))


class _Monitor:
    """Told of every iteration: prints, calls scikit-learn's callbacks, and says when to stop."""

    def __init__(self, estimator: Any, X: Any, y: Any, held_out: Problem | None) -> None:
        self.estimator = estimator
        self.X, self.y = X, y
        self.held_out = held_out
        self.stopped = False
        self.best, self.worse, self.iteration = np.inf, 0, 0
        self.context = None
        if getattr(estimator, "_skl_callbacks", None):
            self.context = estimator._init_callback_context(max_subtasks=estimator.max_iter + 1)
            self.context.call_on_fit_task_begin(estimator=estimator, X=X, y=y)

    def __call__(self, W: Array, record: dict[str, Any]) -> bool:
        estimator = self.estimator
        if estimator.verbose:
            print(
                f"iteration {self.iteration}: loss {record['loss']:.8g}, decrement "
                f"{record['decrement']:.3g} (target {estimator.tol * record['floor']:.3g}), "
                f"{record['passes']:.1f} passes, {record['seconds']:.2f} s"
            )
        self.iteration += 1
        if self.held_out is not None:
            loss = self.held_out.mean_loss(self.held_out.predict(self.held_out.X, W))
            record["validation_loss"] = loss
            self.worse = 0 if loss < self.best else self.worse + 1
            self.best = min(self.best, loss)
            self.stopped = self.worse >= estimator.n_iter_no_change
        if self.context is not None:
            task = self.context.subcontext(task_name="iteration")
            arguments = {
                "estimator": estimator,
                "X": self.X,
                "y": self.y,
                "reconstruction_attributes": estimator._attributes(W, self.X.dtype),
            }
            task.call_on_fit_task_begin(**arguments)
            self.stopped = bool(task.call_on_fit_task_end(**arguments)) or self.stopped
        return self.stopped

    def close(self, W: Array) -> None:
        """End the fit's own task."""
        if self.context is not None:
            self.context.call_on_fit_task_end(
                estimator=self.estimator,
                X=self.X,
                y=self.y,
                reconstruction_attributes=self.estimator._attributes(W, self.X.dtype),
            )


def _solve_single(
    estimator: Any,
    problem: Problem,
    y: Any,
    sample_weight: Array | None,
    rng: np.random.Generator,
    start: Array | None,
    monitor: _Monitor,
) -> Solution:
    """Newton steps from noisy gradients alone, as the paper's server takes them.

    Every iteration sees one gradient a batch, at target noise of total variance
    `noise_scale` times the batch size: their mean is the direction, their covariance the
    curvature. The noise of a mean of k gradients is k times smaller, and steps are averaged once
    the decrement has come down to it.
    """
    if problem.Y.shape[1] != 1:
        raise ValueError(
            f"noise='single' sees one gradient a batch, but there are {problem.Y.shape[1]} outputs "
            "or classes. Fit one model an output, or use noise='antithetic'."
        )
    W = np.zeros((problem.p, 1)) if start is None else start
    total, n_averaged = np.zeros_like(W), 0
    history: list[dict[str, Any]] = []
    clock = time.perf_counter()
    converged = False
    for iteration in range(estimator.max_iter):
        seen = GradientCovarianceEstimator(
            batch_size=estimator.batch_size,
            noise="single",
            noise_scale=estimator.noise_scale,
            loss=estimator._loss_name(),
            epsilon=getattr(estimator, "epsilon", 1.35),
            assume_centered=not problem.has_intercept,
            shuffle=estimator.shuffle,
            random_state=int(rng.integers(2**31)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)  # far from the optimum at first
            seen.fit(
                problem.X,
                problem.Y[:, 0],
                sample_weight,
                coef=W[problem.has_intercept :, 0],
                intercept=float(W[0, 0]) if problem.has_intercept else 0.0,
            )
        factor = seen._hessian_factor(intercept=problem.has_intercept)
        if problem.has_intercept and problem.quadratic:
            # The feature of ones has second moment one: this calibrates what the nuisance inflates
            factor = factor / factor[0, 0]
        sketched = fixed_sketch(factor, problem, ratio=0.0)
        gradient = np.append(
            [seen.mean_intercept_gradient_] if problem.has_intercept else [], seen.mean_gradient_
        )[:, None] + problem.penalty_gradient(W)
        decrement = sketched.decrement(gradient)
        floor = estimator.noise_scale * problem.p / seen.n_batches_
        record = {
            "loss": np.nan,  # nobody who sees gradients alone knows it
            "decrement": decrement,
            "floor": floor,
            "passes": iteration + 1.0,
            "seconds": time.perf_counter() - clock,
        }
        history.append(record)
        stop = monitor(W, record)
        W = W - sketched.newton(gradient)
        if decrement <= 4 * floor or n_averaged:
            n_averaged += 1
            total += W
            converged = n_averaged >= _AVERAGED
        if converged or stop:
            break
    estimator.covariance_estimator_ = seen
    W = total / n_averaged if n_averaged else W
    return Solution(W, sketched, converged, 1.0, float(len(history)), history)


class PreconditionedSGDRegressor(MultiOutputMixin, RegressorMixin, _PreconditionedSGD):
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_PreconditionedSGD._parameter_constraints,
        "loss": [StrOptions({"squared_error", "huber", "poisson"})],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        loss: str = "squared_error",
        *,
        alpha: float = 0.0,
        fit_intercept: bool = True,
        epsilon: float = 1.35,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        tol: float = 1e-2,
        learning_rate: float | str = "auto",
        average: bool = True,
        variance_reduction: bool = True,
        noise: str = "antithetic",
        noise_scale: float = 1.0,
        preconditioner: Any = "auto",
        oversampling: float = 4.0,
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
        self.fit_intercept = fit_intercept
        self.epsilon = epsilon
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

    def _loss_name(self) -> str:
        return self.loss

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
        """Fit."""
        with unchanged_on_error(self):
            X, Y, sample_weight, self._vector = self._validate(X, y, sample_weight, reset=True)
            start = self._start_from(coef_init, intercept_init, X.shape[1], Y.shape[1])
            return self._minimise(
                X, Y, self._make_loss(), sample_weight, start, Y[:, 0] if self._vector else Y
            )

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from another chunk of a stream."""
        with unchanged_on_error(self):
            first = not hasattr(self, "coef_")
            X, Y, sample_weight, vector = self._validate(X, y, sample_weight, reset=first)
            if first:
                self._vector = vector
                self.t_ = 0
            self._online = self._stream(X, Y, self._make_loss(), sample_weight)
            self._store(self._online.W, X.dtype)
            self.t_ += Y.shape[0]
        return self

    def _make_loss(self) -> Any:
        return make_loss(self.loss, epsilon=self.epsilon)

    def _validate(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[Any, Array, Array | None, bool]:
        refuse_foreign(X=X, y=y)
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            multi_output=self.loss == "squared_error",
            y_numeric=True,
            reset=reset,
        )
        Y = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        self._make_loss().check_y(Y)
        return X, Y, check_weights(sample_weight, X), y.ndim == 1

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self.loss == "squared_error"
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags

    def _attributes(self, W: Array, dtype: Any) -> dict[str, Any]:
        h = self.fit_intercept
        coef = W[h:].T.astype(dtype)
        intercept = W[0].astype(dtype) if h else np.zeros(W.shape[1], dtype=dtype)
        if self._vector:
            return {"coef_": coef[0], "intercept_": float(intercept[0])}
        return {"coef_": coef, "intercept_": intercept}

    def predict(self, X: Any) -> npt.NDArray[np.floating]:
        """Predict targets.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predicted targets; the mean, for the Poisson loss.
        """
        raw = self._raw_prediction(X)
        return np.exp(raw) if self.loss == "poisson" else raw


class PreconditionedSGDClassifier(ClassifierMixin, _PreconditionedSGD):
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_PreconditionedSGD._parameter_constraints,
        "loss": [StrOptions({"log_loss"})],
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        loss: str = "log_loss",
        *,
        alpha: float = 0.0,
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
        oversampling: float = 4.0,
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

    def _loss_name(self) -> str:
        return self.loss

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
        """Fit."""
        with unchanged_on_error(self):
            X, y, sample_weight = self._validate(X, y, sample_weight, reset=True)
            self.classes_ = np.unique(y)
            present = self.classes_ if sample_weight is None else np.unique(y[sample_weight > 0])
            if len(present) < 2:
                raise ValueError(
                    f"y has only one class with a positive weight, {present[0]!r}: a classifier "
                    "needs at least two."
                )
            Y, loss = self._encode(y)
            weights = self._class_weighted(y, sample_weight)
            start = self._start_from(coef_init, intercept_init, X.shape[1], Y.shape[1])
            return self._minimise(X, Y, loss, weights, start, y)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, classes: Any = None
    ) -> Self:
        """Learn from another chunk of a stream."""
        with unchanged_on_error(self):
            first = not hasattr(self, "coef_")
            X, y, sample_weight = self._validate(X, y, sample_weight, reset=first)
            if first:
                if classes is None:
                    raise ValueError("classes must be passed on the first call to partial_fit.")
                self.classes_ = np.unique(classes)
                self.t_ = 0
            elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                raise ValueError(
                    f"classes={np.unique(classes)} is not the same as on the last call to "
                    f"partial_fit, was: {self.classes_}."
                )
            unknown = np.setdiff1d(y, self.classes_)
            if len(unknown):
                raise ValueError(
                    f"y has labels {unknown.tolist()} that are not among classes "
                    f"{self.classes_.tolist()}. Name all classes on the first call."
                )
            if self.class_weight == "balanced":
                raise ValueError(
                    "class_weight='balanced' needs all labels at once. Pass a dict of weights to "
                    "use it with partial_fit."
                )
            Y, loss = self._encode(y)
            weights = self._class_weighted(y, sample_weight)
            self._online = self._stream(X, Y, loss, weights)
            self._store(self._online.W, X.dtype)
            self.t_ += Y.shape[0]
        return self

    def _validate(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[Any, Any, Array | None]:
        refuse_foreign(X=X, y=y)
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], reset=reset
        )
        check_classification_targets(y)
        return X, y, check_weights(sample_weight, X)

    def _encode(self, y: Any) -> tuple[Array, Any]:
        """One column of zeros and ones for two classes, one-hot rows for more."""
        codes = np.searchsorted(self.classes_, y)
        if len(self.classes_) == 2:
            return codes[:, None].astype(np.float64), make_loss(self.loss)
        return np.eye(len(self.classes_))[codes], MultinomialLoss()

    def _class_weighted(self, y: Any, sample_weight: Array | None) -> Array | None:
        if self.class_weight is None:
            return sample_weight
        weights = compute_sample_weight(self.class_weight, y)
        return weights if sample_weight is None else weights * sample_weight

    def _attributes(self, W: Array, dtype: Any) -> dict[str, Any]:
        if W.shape[1] > 1:  # the symmetric parametrisation: columns sum to zero
            W = W - W.mean(axis=1, keepdims=True)
        h = self.fit_intercept
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
