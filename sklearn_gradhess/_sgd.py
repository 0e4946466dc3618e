"""What regressor and classifier share: from parameters to a problem, and from its solution back."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import compute_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_gradhess._fitted import OneFactor
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._objective import Problem
from sklearn_gradhess._online import OnlineModel
from sklearn_gradhess._sketch import Sketch, fixed_sketch
from sklearn_gradhess._solver import Settings, Solution, solve
from sklearn_gradhess._validation import (
    CALLBACK_FRAMES,
    CallbackSupportMixin,
    Interval,
    StrOptions,
    blas_threads,
    effective_n_threads,
)
from sklearn_gradhess.covariance import GradientCovarianceEstimator
from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.noise import as_generator

__all__ = ["PreconditionedSGD", "class_weighted", "refuse_one_class"]

Array = npt.NDArray[np.float64]
# Steps that noise='single' averages once it has come down to its own noise
_AVERAGED = 10
# and those before them that move the intercept alone
_INTERCEPT_FIRST = 2
# What `fit` tells of itself, and a stream has not
_REPORTS = (
    "history_",
    "n_iter_",
    "n_passes_",
    "learning_rate_",
    "converged_",
    "covariance_estimator_",
)


class PreconditionedSGD(CallbackSupportMixin, BaseEstimator):
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

    _factors: Sequence[Array]

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
        with blas_threads(X.shape[1]):
            if self.noise == "single":
                solution = _solve_single(self, problem, sample_weight, rng, start, monitor)
            else:
                settings = Settings(
                    tol=self.tol,
                    max_iter=self.max_iter,
                    oversampling=self.oversampling,
                    batch_size=None if isinstance(self.batch_size, str) else self.batch_size,
                    learning_rate=None
                    if isinstance(self.learning_rate, str)
                    else self.learning_rate,
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
        rows = np.arange(Y.shape[0]) if sample_weight is None else np.flatnonzero(sample_weight)
        train, test = train_test_split(
            rows,
            test_size=self.validation_fraction,
            random_state=int(rng.integers(2**31)),
            stratify=labels[rows] if isinstance(self, ClassifierMixin) else None,
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
            estimator.fitted_ = replace(estimator.fitted_)  # nothing derived has to stay in memory
        if estimator.n_features_in_ != problem.X.shape[1]:
            raise ValueError(
                f"The preconditioner was fitted on {estimator.n_features_in_} features, X has "
                f"{problem.X.shape[1]}. Pass an estimator fitted on the same features."
            )
        self.covariance_estimator_ = estimator
        return fixed_sketch(
            OneFactor(estimator.fitted_, problem.has_intercept)[0],
            problem,
            ratio=min(problem.p / max(estimator.fitted_.memory.moments.n_gradients, 1), 0.5),
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
        self._n_seen = float(problem.count or problem.n)
        self.__dict__.pop("_online", None)
        factors = solution.sketch.factors  # one a class: the mean of their Hessians
        if isinstance(self.preconditioner, str) and self.noise != "single":
            self.covariance_estimator_ = GradientCovarianceEstimator._from_factor(
                triangular_factor(np.vstack(factors)) / np.sqrt(len(factors)),
                n_batches=solution.sketch.n_batches,
                n_samples=problem.n,
                batch_size=solution.sketch.batch_size,
                has_intercept=problem.has_intercept,
                loss=self.loss,
                epsilon=getattr(self, "epsilon", 1.35),
            )
        self._factors = factors
        if len(factors) == 1:  # kept in the estimator, and nowhere else
            self._factors = OneFactor(
                self.covariance_estimator_.fitted_,
                problem.has_intercept,
                unit_first=self.noise == "single" and problem.has_intercept and problem.quadratic,
            )

    def _warn(self, solution: Solution, problem: Problem, *, stopped: bool) -> None:
        clipped = solution.sketch.n_clipped
        if clipped:
            warnings.warn(
                f"X determines only {problem.p - clipped} of {problem.p} coefficients"
                f"{', intercept included' * problem.has_intercept}: features are constant, linear "
                "combinations of others (such as all levels of a category), or more than the rows. "
                "The solution is the one without the other directions; use alpha > 0 for a ridge "
                "solution.",
                CalibrationWarning,
                stacklevel=5 + CALLBACK_FRAMES,
            )
        last = solution.history[-1]
        if solution.separable:
            warnings.warn(
                f"The classes are separable: at a mean loss of {last['loss']:.3g} every row is on "
                "the side of its class, so that without a penalty there is no solution, and "
                "coefficients grow without end. Pass alpha > 0.",
                ConvergenceWarning,
                stacklevel=5 + CALLBACK_FRAMES,
            )
        elif not solution.converged and not stopped:
            warnings.warn(
                f"Not converged after {self.n_iter_} iterations and {solution.n_passes:.1f} passes "
                f"over X: the decrement is {last['decrement']:.3g}, the target "
                f"{self.tol * last['floor']:.3g}. Increase max_iter or tol"
                + (", or use preconditioner='auto'." if self.preconditioner == "identity" else "."),
                ConvergenceWarning,
                stacklevel=5 + CALLBACK_FRAMES,
            )

    def _stream(self, X: Any, Y: Array, loss: Any, sample_weight: Array | None) -> OnlineModel:
        if self.early_stopping or self.noise == "single":
            which = "early_stopping=True" if self.early_stopping else "noise='single'"
            raise ValueError(
                f"{which} is for fit: partial_fit sees each row once, and the row itself. Set "
                "early_stopping=False and leave noise at its default, or use fit."
            )
        problem = Problem(X, Y, sample_weight, loss, self.alpha, self.fit_intercept)
        model = getattr(self, "_online", None)
        if model is not None and model.W.shape[1] != Y.shape[1]:
            raise ValueError(
                f"y has {Y.shape[1]} targets, but {model.W.shape[1]} were fitted before. Pass the "
                "same targets, or start a new estimator."
            )
        if model is None:
            W = np.zeros((problem.p, Y.shape[1]))
            if hasattr(self, "_factors"):
                W = self._coefficients()
            model = OnlineModel(W)
            if hasattr(self, "_factors"):
                model = model.starting_from(list(self._factors), self._n_seen, problem)
        with blas_threads(X.shape[1]):
            model = model.update(problem)
        if not np.isfinite(model.W).all():
            raise ValueError(
                "The coefficients overflow: features or targets are too large. Rescale X or y."
            )
        for name in _REPORTS:
            self.__dict__.pop(name, None)
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
    weight = sample_weight / sample_weight.max()  # their sum might overflow
    return weight * (len(weight) / weight.sum())


def _count(sample_weight: Array | None) -> float:
    """Observations that weights stand for: their sum, as repetitions, or what that can't be."""
    if sample_weight is None:
        return 0.0
    weight = sample_weight / sample_weight.max()  # their squares might overflow or vanish
    # Kish's effective size, for weights that were scaled to another sum
    return max(float(sample_weight.sum()), float(weight.sum() ** 2 / np.sum(weight**2)))


def class_weighted(
    class_weight: Any, classes: Any, y: Any, sample_weight: Array | None
) -> Array | None:
    """Weights of rows times those of their classes; a dict may lack classes, which weigh one."""
    if class_weight is None:
        return sample_weight
    if isinstance(class_weight, dict):  # a chunk of a stream may lack some classes
        labels = classes.tolist()
        unknown = [label for label in class_weight if label not in labels]
        if unknown:
            raise ValueError(
                f"class_weight has weights for {unknown}, which are not among the labels {labels}: "
                "mistyped, or of another type. Change the keys of class_weight."
            )
        each = [float(class_weight.get(label, 1.0)) for label in labels]
        weights = np.array(each)[np.searchsorted(classes, y)]
    else:
        weights = compute_sample_weight(class_weight, y)
    if sample_weight is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # found below
            weights = weights * sample_weight
    bad = ~((weights >= 0) & np.isfinite(weights))
    if bad.any():
        factor = "" if sample_weight is None else ", sample_weight included"
        raise ValueError(
            f"A row of class {y[bad].tolist()[0]!r} has the weight {weights[bad][0]:g}{factor}: "
            f"weights count repetitions, so they must be finite and >= 0. Change class_weight="
            f"{class_weight!r}."
        )
    return weights


def refuse_one_class(y: Any, weights: Array | None) -> None:
    """Raise ValueError unless two labels at least have a positive weight."""
    present = np.unique(y if weights is None else y[weights > 0]).tolist()
    if len(present) < 2:
        raise ValueError(
            f"There is {'only one' if present else 'no'} class with a positive weight, {present} "
            f"of the labels {np.unique(y).tolist()}: a classifier needs at least two. Add rows of "
            "another class, or change class_weight or sample_weight where they are zero."
        )


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


def _see_single(
    estimator: Any,
    problem: Problem,
    sample_weight: Array | None,
    W: Array,
    rng: np.random.Generator,
) -> tuple[GradientCovarianceEstimator, Sketch, Array]:
    """One noisy gradient a batch at W: curvature, as a preconditioner, and mean gradient."""
    seen = GradientCovarianceEstimator(
        batch_size=estimator.batch_size,
        noise="single",
        noise_scale=estimator.noise_scale,
        loss=estimator.loss,
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
    if seen.n_batches_ < 2 * problem.p:
        raise ValueError(
            f"noise='single' has {seen.n_batches_} gradients of batch_size={seen.batch_size_} "
            f"for {problem.p} coefficients, and needs twice as many gradients as coefficients. "
            "Use a smaller batch_size, more rows, or noise='antithetic'."
        )
    factor = seen.fitted_.hessian_factor(intercept=problem.has_intercept)
    if problem.has_intercept and problem.quadratic:
        # The feature of ones has second moment one: this calibrates what the nuisance inflates
        factor = factor / factor[0, 0]
    # Gradients are few: undo the bias of the inverse
    sketched = fixed_sketch(factor, problem, ratio=min(problem.p / seen.n_batches_, 0.5))
    gradient = np.append(
        [seen.mean_intercept_gradient_] if problem.has_intercept else [], seen.mean_gradient_
    )[:, None]
    return seen, sketched, gradient + problem.penalty_gradient(W)


def _solve_single(
    estimator: Any,
    problem: Problem,
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
    best = np.inf, W
    for iteration in range(estimator.max_iter):
        seen, sketched, gradient = _see_single(estimator, problem, sample_weight, W, rng)
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
        if decrement <= best[0]:
            best = decrement, W
        elif not decrement <= 1e3 * best[0]:
            W = best[1]
            break  # diverging: unconverged, and the warning says so
        if problem.has_intercept and iteration < _INTERCEPT_FIRST:
            # A large mean residual would drown the features' part of the gradient
            W = W.copy()
            W[0] -= gradient[0] * sketched.whiten[0][0, 0] ** 2
        else:
            # The step for the extreme eigenvalues (1 - c)/(1 +- sqrt(c))^2 of the law
            c = sketched.ratio
            ends = [(1 - c) / (1 + sign * np.sqrt(c)) ** 2 for sign in (1, -1)]
            W = W - 2 / sum(ends) * sketched.newton(gradient)
        if decrement <= 4 * floor or n_averaged:
            n_averaged += 1
            total += W
            converged = n_averaged >= _AVERAGED
        if converged or stop:
            break
    seen.fitted_ = replace(seen.fitted_)  # nothing derived has to stay in memory
    estimator.covariance_estimator_ = seen
    W = total / n_averaged if n_averaged else W
    return Solution(W, sketched, converged, 1.0, float(len(history)), history=history)
