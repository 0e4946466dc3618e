"""What regressor and classifier share: from parameters to a problem, and from its solution back."""

import time
import warnings
from dataclasses import replace
from functools import cache
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_gradhess._auto_penalty import Law, choose_penalty
from sklearn_gradhess._dask import by_block
from sklearn_gradhess._descent import Ending, Goal, Look, descend
from sklearn_gradhess._diagonal_hessian import DiagonalHessian
from sklearn_gradhess._fitted import OneFactor
from sklearn_gradhess._hessian_attributes import HessianAttributes
from sklearn_gradhess._loss import Loss, ScaledLoss
from sklearn_gradhess._memory import allowed, matrices, refuse_many_rows, refuse_wide
from sklearn_gradhess._monitor import Monitor
from sklearn_gradhess._penalty import Penalty, Spread, per_feature
from sklearn_gradhess._plan import plan
from sklearn_gradhess._preconditioner import Factor
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._scale_estimate import estimate_scale
from sklearn_gradhess._single import Approach, InterceptFirst, SingleGradients
from sklearn_gradhess._sketch import given_factor
from sklearn_gradhess._solver import Settings, Solution, record_of, solve
from sklearn_gradhess._steps import StepSettings
from sklearn_gradhess._stream import FitSaw, StreamMixin, fit_saw
from sklearn_gradhess._validation import (
    CALLBACK_FRAMES,
    CallbackSupportMixin,
    Interval,
    StrOptions,
    blas_threads,
    effective_n_threads,
    refuse_cast,
)
from sklearn_gradhess._weights import mean_one, observations
from sklearn_gradhess.covariance import GradientCovarianceEstimator
from sklearn_gradhess.noise import as_generator

__all__ = ["PreconditionedSGD"]

Array = npt.NDArray[np.float64]


class PreconditionedSGD(HessianAttributes, StreamMixin, CallbackSupportMixin, BaseEstimator):
    """What regressor and classifier share; they say how targets become a problem and back."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "alpha": [Interval(Real, 0, None, closed="left"), "array-like"],
        "penalty_units": [StrOptions({"std", "raw"})],
        "fit_intercept": ["boolean"],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "average": ["boolean"],
        "variance_reduction": ["boolean"],
        "noise": [StrOptions({"antithetic", "single"})],
        "noise_scale": [Interval(Real, 0, None, closed="neither")],
        "preconditioner": [
            StrOptions({"auto", "exact", "sketch", "diagonal", "sample_space", "identity"}),
            GradientCovarianceEstimator,
        ],
        "oversampling": [Interval(Real, 1, None, closed="neither"), StrOptions({"auto"})],
        "shuffle": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state", np.random.Generator],
        "verbose": ["verbose"],
    }

    alpha_: Any

    @classmethod
    @cache
    def _get_param_names(cls) -> list[str]:
        # Asked for at every fit and clone, and read off the signature every time
        return super()._get_param_names()

    def _refuse_unfit(self, X: Any, Y: Array) -> None:
        """Raise ValueError where features are too many for matrices of the Hessian's size."""
        refuse_wide(
            X.shape[1],
            # Targets share their curvature
            n_outputs=Y.shape[1] if isinstance(self, ClassifierMixin) else 1,
            instead=(
                "Use preconditioner='diagonal' and no setting of mini-batch steps, which needs no "
                "such matrix; or take fewer features, by sklearn.decomposition.TruncatedSVD or "
                "sklearn.feature_selection."
            ),
        )

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
        rng = self._generator()
        held_out = None
        if self.early_stopping:
            X, Y, sample_weight, labels, held_out = self._hold_out(
                X, Y, loss, sample_weight, labels, rng
            )
        problem, self._fit_saw, width = self._problem(X, Y, loss, sample_weight)
        with blas_threads(X.shape[1]):
            if self.noise == "single":
                monitor = Monitor(self, self._attributes, X, labels, held_out)
                solution = self._solve_single(problem, sample_weight, rng, start, monitor)
            else:
                settings = self._settings(problem, sample_weight)
                loss, start, n_passes = estimate_scale(problem, settings, rng, start)
                problem = replace(problem, loss=loss)
                if width:
                    chosen = choose_penalty(problem, settings, rng, width)
                    problem = replace(problem, alpha=chosen.multiple * problem.alpha)
                    self.alpha_ = chosen.multiple * self.alpha_
                    law = self._fit_saw.law.choosing(np.log(chosen.multiple) / width)
                    self._fit_saw = self._fit_saw._replace(law=law)
                    settings, n_passes = chosen.settings, n_passes + chosen.n_passes
                    start = chosen.start if start is None else start
                self._fit_saw = self._fit_saw._replace(loss=loss, ridge=problem.ridge[:, 0])
                held_out = held_out and replace(held_out, loss=loss)
                monitor = Monitor(self, self._attributes, X, labels, held_out)
                settings = replace(settings, on_iteration=monitor, shows_coef=monitor.sees_coef)
                solution = solve(problem, settings, rng, start)
                solution = solution._replace(n_passes=solution.n_passes + n_passes)
                if solution.diagonal is not None:
                    squares = solution.diagonal.squares
                    self._fit_saw = self._fit_saw._replace(squares=squares)
            monitor.close(solution.W)
            self._store_solution(solution, problem)
        self._store(solution.W, X.dtype)
        self._warn(solution, problem)
        return self

    def _generator(self) -> np.random.Generator:
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = as_generator(seed).integers(2**63)
        # Data made with the same seed must not share its numbers with the solver
        return np.random.default_rng([int(seed), *b"solver"])

    def _problem(
        self, X: Any, Y: Array, loss: Any, sample_weight: Array | None
    ) -> tuple[Problem, FitSaw, float]:
        """Return the objective, what a stream will ask of its rows, and how wide they are.

        Where that is more than nothing the penalty is the least that may be chosen.
        """
        penalty = Penalty(per_feature(self.alpha, X.shape[1]), self.penalty_units)
        weight, unit = np.ones(Y.shape[0]), 1.0
        if sample_weight is not None:
            unit = float(sample_weight.max())  # their sum might overflow
            weight = sample_weight / unit
        spread = Spread.empty(X.shape[1])
        # A stream that goes on from here may be penalised per deviation, even if this fit is not
        told = self.noise == "single" or (loss.quadratic and self.fit_intercept)  # by the Hessian
        if (penalty.present and penalty.units == "std") or not told:
            spread = _spread(X, weight)
        total = float(weight.sum())
        self.alpha_, width = penalty.of_mean(total * unit), 0.0
        law = Law()
        if penalty.automatic and self.noise != "single":
            law = law.plus(X, weight, spread.mean)
            ratio, width = law.of(spread, observations(sample_weight) or len(weight))
        if width:
            self.alpha_ = self.alpha_ * ratio**width
            penalty = Penalty(self.alpha_, "std")
        problem = Problem(
            X,
            Y,
            mean_one(sample_weight),
            loss,
            penalty.ridge(total, spread, unit) / total if penalty.present else 0.0,
            bool(self.fit_intercept),
            observations(sample_weight),
        )
        return problem, fit_saw(problem, weight, unit, spread, law), width

    def _settings(self, problem: Problem, sample_weight: Any) -> Settings:
        """Parameters of the estimator as the solver takes them."""
        steps = StepSettings(
            None if isinstance(self.batch_size, str) else self.batch_size,
            None if isinstance(self.learning_rate, str) else self.learning_rate,
            self.average,
            self.variance_reduction,
        )
        plain = isinstance(self.preconditioner, str) and self.preconditioner == "identity"
        wanted = "auto"
        if isinstance(self.preconditioner, str) and not plain:
            wanted = self.preconditioner
        stepwise = plain or steps != StepSettings()
        if stepwise and wanted in ("diagonal", "sample_space"):
            raise ValueError(
                f"preconditioner={wanted!r} goes by Newton steps on all rows, but batch_size, "
                "learning_rate, average or variance_reduction ask for mini-batch steps. Leave them "
                "at their defaults, or use preconditioner='sketch'."
            )
        columns = 1 if problem.loss.quadratic else problem.Y.shape[1]
        chosen = plan(
            problem.n,
            problem.p,
            density=problem.X.nnz / max(np.prod(problem.X.shape), 1)
            if sparse.issparse(problem.X)
            else 1.0,
            n_columns=columns,
            quadratic=problem.loss.quadratic,
            preconditioner=wanted,
            oversampling=None if isinstance(self.oversampling, str) else self.oversampling,
            steps=stepwise,
            coupled=problem.loss.coupling > 1,
            square=not isinstance(self.preconditioner, str),
            spanned=not (np.any(problem.alpha) and problem.unbounded),
            memory=allowed(matrices(problem.p, columns)),
        )
        if chosen.preconditioner in ("exact", "sketch", "pooled"):
            self._refuse_unfit(problem.X, problem.Y)
        if chosen.preconditioner == "sample_space":
            refuse_many_rows(problem.n, n_outputs=columns)
        if self.verbose:
            print(f"plan: {chosen}")
        self.preconditioner_ = chosen.preconditioner
        if plain or not isinstance(self.preconditioner, str):
            self.preconditioner_ = "identity" if plain else "estimator"
        return Settings(
            chosen,
            tol=self.tol,
            max_iter=self.max_iter,
            steps=steps,
            shuffle=self.shuffle,
            n_threads=effective_n_threads(),
            given=self._given(problem, sample_weight),
            safeguard=not plain and self.variance_reduction,
        )

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
        classes = labels[rows] if isinstance(self, ClassifierMixin) else None
        _refuse_hold_out(len(rows), classes, self.validation_fraction)
        train, test = train_test_split(
            rows,
            test_size=self.validation_fraction,
            random_state=int(rng.integers(2**31)),
            stratify=classes,
        )
        if classes is not None and len(np.unique(labels[train])) < len(np.unique(classes)):
            missing = np.setdiff1d(classes, labels[train]).tolist()
            raise ValueError(
                f"early_stopping=True with validation_fraction={self.validation_fraction:g} leaves "
                f"no row of the classes {missing} to learn from. Decrease validation_fraction, or "
                "set early_stopping=False."
            )
        train, test = np.sort(train), np.sort(test)
        weights = (None, None)
        if sample_weight is not None:
            weights = sample_weight[train], sample_weight[test]
        held_out = Problem(
            X[test], Y[test], mean_one(weights[1]), loss, 0.0, bool(self.fit_intercept)
        )
        return X[train], Y[train], weights[0], labels[train], held_out

    def _given(self, problem: Problem, sample_weight: Any) -> Factor | None:
        """Return the preconditioner that the user gave, if any."""
        given = self.preconditioner
        if isinstance(given, str):
            if given != "identity":
                return None
            return given_factor(np.eye(problem.p) * _root_of_trace(problem), problem, ratio=0.0)
        estimator = given
        if getattr(estimator, "n_components", None) is not None:
            raise ValueError(
                f"The preconditioner has n_components={estimator.n_components}, and a fit takes "
                "one of all directions. Use preconditioner='diagonal' for wide data, or an "
                "estimator with n_components=None."
            )
        if not hasattr(estimator, "covariance_"):
            y = problem.Y[:, 0] if problem.Y.shape[1] == 1 else None
            estimator = clone(given).fit(problem.X, y, sample_weight)
            estimator.fitted_ = replace(estimator.fitted_)  # nothing derived has to stay in memory
        if estimator.n_features_in_ != problem.X.shape[1]:
            raise ValueError(
                f"The preconditioner was fitted on {estimator.n_features_in_} features, X has "
                f"{problem.X.shape[1]}. Pass an estimator fitted on the same features."
            )
        self._estimator = estimator
        return given_factor(
            OneFactor(estimator.fitted_, problem.has_intercept)[0],
            problem,
            ratio=min(problem.p / max(estimator.fitted_.memory.moments.n_gradients, 1), 0.5),
        )

    def _solve_single(
        self,
        problem: Problem,
        sample_weight: Array | None,
        rng: np.random.Generator,
        start: Array | None,
        monitor: Monitor,
    ) -> Solution:
        """Minimise by what one noisy gradient a batch tells."""
        self._refuse_unfit(problem.X, problem.Y)
        if problem.Y.shape[1] != 1:
            raise ValueError(
                f"noise='single' sees one gradient a batch, but there are {problem.Y.shape[1]} "
                "outputs or classes. Fit one model an output, or use noise='antithetic'."
            )
        if isinstance(problem.loss, ScaledLoss) or problem.loss.calibration is None:
            raise ValueError(
                f"noise='single' sees gradients, and loss={problem.loss.name!r} needs the scale of "
                "the residuals, which they do not tell. Use another loss, or noise='antithetic'."
            )
        calibration = problem.loss.calibration

        def estimator(seed: int) -> GradientCovarianceEstimator:
            return GradientCovarianceEstimator(
                batch_size=self.batch_size,
                noise="single",
                noise_scale=self.noise_scale,
                **calibration,
                assume_centered=not problem.has_intercept,
                shuffle=self.shuffle,
                random_state=seed,
            )

        data = SingleGradients(problem, sample_weight, estimator, rng, self.noise_scale)
        method = InterceptFirst(data) if problem.has_intercept else Approach(data)
        clock = time.perf_counter()
        history: list[dict[str, Any]] = []

        def watch(look: Look) -> bool:
            history.append(record_of(look, data.passes, clock))
            return monitor(look.point.W, history[-1])

        point = data.at(np.zeros((problem.p, 1)) if start is None else start)
        W, _, look, ending = descend(method, point, Goal(0.0), self.max_iter - 1, watch)
        seen = look.point.rows
        self._estimator, self.preconditioner_ = seen.estimator, "single"
        return Solution(W, seen.factor, ending, 4 * point.floor, 1.0, data.passes, history, np.nan)

    def _store(self, W: Array, dtype: Any) -> None:
        refuse_cast(W[int(self.fit_intercept) :], dtype)
        for name, value in self._attributes(W, dtype).items():
            setattr(self, name, value)

    def _store_solution(self, solution: Solution, problem: Problem) -> None:
        self.history_ = solution.history
        self.n_iter_ = max(len(solution.history) - 1, 1)
        self.n_passes_ = solution.n_passes
        self.t_ = round(solution.n_passes * problem.n)
        self.learning_rate_ = solution.learning_rate
        self.converged_ = solution.converged
        factor = solution.factor
        self._factors = list(factor.factors)
        self.__dict__.pop("_diagonal", None)
        if solution.diagonal is not None:
            self._diagonal = DiagonalHessian.of(solution.diagonal, self.preconditioner_)
        if self.noise == "single":  # kept in the estimator, and nowhere else
            self._estimator.fitted_ = replace(self._estimator.fitted_)
            unit_first = problem.has_intercept and problem.loss.quadratic
            self._factors = OneFactor(
                self._estimator.fitted_, problem.has_intercept, unit_first=unit_first
            )
        self._sketched = (factor.n_batches, factor.batch_size, problem.n)
        self._degrees = solution.degrees
        self._ridge = problem.ridge[:, 0]
        self._independent = float(problem.independent)
        self._dispersion = solution.dispersion
        self._n_clipped = factor.n_clipped
        self._keep_loss(problem.loss, problem.loss.fitted)
        gone = ["_online", "n_rounds_"]
        if self.preconditioner_ not in ("estimator", "single"):
            gone.append("_estimator")
        for name in gone:
            self.__dict__.pop(name, None)

    def _keep_loss(self, loss: Loss, fitted: dict[str, float]) -> None:
        for name in getattr(self, "_loss", loss).fitted:
            self.__dict__.pop(name, None)
        self._loss = loss
        self.__dict__.update(fitted)

    def _warn(self, solution: Solution, problem: Problem) -> None:
        last = solution.history[-1]
        said = {
            Ending.SEPARABLE: f"The classes are separable: at a mean loss of {last['loss']:.3g} "
            "every row is on the side of its class, so that without a penalty there is no "
            "solution, and coefficients grow without end. Pass alpha > 0.",
            Ending.UNBOUNDED: "Some coefficients have no finite value: every step moves some rows' "
            "predictions by as much as the one before, though next to nothing is gained. A level "
            "of a category, or a combination of features, has no count but zero, or one class "
            "only. Pass alpha > 0, or drop it.",
            Ending.STALLED: self._unconverged(solution),
            Ending.EXHAUSTED: self._unconverged(solution),
        }
        if solution.ending in said:
            warnings.warn(said[solution.ending], ConvergenceWarning, stacklevel=5 + CALLBACK_FRAMES)

    def _unconverged(self, solution: Solution) -> str:
        plain = isinstance(self.preconditioner, str) and self.preconditioner == "identity"
        return (
            f"Not converged after {self.n_iter_} iterations and {solution.n_passes:.1f} passes "
            f"over X: the decrement is {solution.history[-1]['decrement']:.3g}, the target "
            f"{solution.target:.3g}. Increase max_iter or tol"
            + (", or use preconditioner='auto'." if plain else ".")
        )

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
                if W.shape == (d + bool(self.fit_intercept), t):
                    return W
            return None
        h = int(self.fit_intercept)
        W = np.zeros((d + h, t))
        if coef_init is not None:
            coef = np.asarray(coef_init, dtype=np.float64)
            if coef.size != d * t or not np.isfinite(coef).all():
                raise ValueError(
                    f"coef_init has shape {coef.shape}, but {t} output(s) of {d} features are "
                    "fitted: pass finite coefficients of the shape of coef_."
                )
            W[h:] = coef.reshape(t, d).T
        if intercept_init is not None and h:
            intercept = np.asarray(intercept_init, dtype=np.float64).ravel()
            if intercept.size != t or not np.isfinite(intercept).all():
                raise ValueError(
                    f"intercept_init has {intercept.size} values, but there are {t} output(s): "
                    "pass one finite number each."
                )
            W[0] = intercept
        return W

    @by_block
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


def _spread(X: Any, weight: Array) -> Spread:
    spread, entries, size = Spread.empty(X.shape[1]), max(X.shape[1], 1), 2**17
    if sparse.issparse(X):  # each piece has a cost of all features, too
        entries, size = X.nnz // len(weight) + 1, max(size, 4 * X.shape[1])
    step = max(256, size // entries)
    with np.errstate(over="ignore", invalid="ignore"):  # sums that overflow are refused later
        for start in range(0, len(weight), step):
            piece = slice(start, start + step)
            spread = spread.plus(X[piece], weight[piece])
    return spread


def _root_of_trace(problem: Problem) -> float:
    """Root of the trace of the Hessian at zero, which bounds its eigenvalues."""
    total = 0.0
    raw = np.zeros_like(problem.Y)
    for piece, Z in problem.chunks():
        v = problem.weighted(problem.loss.curvature(problem.Y[piece], raw[piece]), piece)
        square = Z.multiply(Z).sum(axis=1) if sparse.issparse(Z) else np.sum(Z**2, axis=1)
        total += float(v.sum(axis=1) @ (np.asarray(square).ravel() + 1.0))
    return float(np.sqrt(total / problem.n)) or 1.0


def _refuse_hold_out(n_rows: int, classes: Any, fraction: float) -> None:
    """Raise ValueError unless rows can be held out, and some of each class on either side."""
    n_test = int(np.ceil(fraction * n_rows))
    said = (
        f"early_stopping=True holds out {n_test} of {n_rows} rows with a weight, "
        f"validation_fraction={fraction:g} of them"
    )
    if classes is None:
        if n_test >= n_rows:
            raise ValueError(
                f"{said}, and leaves none to learn from. Decrease validation_fraction, add rows, "
                "or set early_stopping=False."
            )
        return
    names, counts = np.unique(classes, return_counts=True)
    single = names[counts < 2].tolist()
    if single:
        raise ValueError(
            f"{said}, of each class its share, but the classes {single} have one row each: it "
            "cannot be both held out and learned from. Add rows of them, or set "
            "early_stopping=False, which needs no validation_fraction."
        )
    if n_test < len(names):
        enough = np.ceil(100 * len(names) / n_rows) / 100
        raise ValueError(
            f"{said}, fewer than the {len(names)} classes. Increase validation_fraction to "
            f"{enough:.2f} or more, or set early_stopping=False."
        )
    if n_rows - n_test < len(names):
        raise ValueError(
            f"{said}, and leaves {n_rows - n_test} to learn {len(names)} classes from. Decrease "
            "validation_fraction, or set early_stopping=False."
        )
