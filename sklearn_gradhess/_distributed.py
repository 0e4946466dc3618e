"""Linear models on dask collections: fit by rounds of questions, and score."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess import _blocks
from sklearn_gradhess._auto_penalty import Law
from sklearn_gradhess._blocks import Answer, Encoding
from sklearn_gradhess._dask import Collection, Engine, check_collection, nameless
from sklearn_gradhess._descent import Ending, Goal, Look, Model, Point, descend
from sklearn_gradhess._loss import Loss, ScaledLoss
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._monitor import Monitor
from sklearn_gradhess._multinomial import MultinomialLoss
from sklearn_gradhess._online import Seen
from sklearn_gradhess._penalty import Penalty, Spread, per_feature
from sklearn_gradhess._plan import plan
from sklearn_gradhess._rounds import Blocks, Rounds, Told, counted_error, drifts_on, sketch_batches
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sample import rows_for_a_scale, sample_size, solution_of_sample
from sklearn_gradhess._scale_estimate import fixed_point
from sklearn_gradhess._scaled_losses import QuantileLoss
from sklearn_gradhess._sketch import triangles_factor
from sklearn_gradhess._solver import Solution, record_of
from sklearn_gradhess._stream import FitSaw
from sklearn_gradhess._validation import is_dask, refuse_foreign
from sklearn_gradhess._weights import balanced, class_weighted, refuse_one_class

__all__ = ["DaskMixin"]

Array = npt.NDArray[np.float64]
# Columns up to which the triangular factor of all rows is no dearer than what a round costs else
_ONE_ROUND = 300
# Raw prediction by which a step moves rows that drift, at least: one, as losses fall exponentially
_DRIFTING = 0.5
_EPS = float(np.finfo(np.float64).eps)
_SCALES = 20  # of residuals, one after the other
_WIDEST = 4.0  # half width of the first grid, in logarithms
_WIDER = 5  # grids, each twice as wide, before the scale is taken for what is beyond them
_FAR = 1e-3  # decrement of a last step, over the dispersion, that may change the latter
_LEAST = 1e-9  # scale over that of the targets, below which residuals are none
_GRID = 65  # places between which the next one is looked for
_COLUMN = "A column-vector y was passed when a 1d array was expected. Pass y[:, 0], or y['name']."
# What mini-batch steps and held-out rows need is not to be had block by block
_FOR_ROWS = {
    "batch_size": "auto",
    "learning_rate": "auto",
    "average": True,
    "variance_reduction": True,
    "noise": "antithetic",
    "early_stopping": False,
}


class _Counts(NamedTuple):
    """What the first round tells: sums of weights and targets over all rows."""

    n: int
    positive: int
    weight: float
    length: float
    target: Array
    square: float

    @property
    def observations(self) -> float:
        """Number of observations that the rows stand for."""
        return float(max(self.weight, (self.weight / self.length) ** 2))

    @property
    def squares(self) -> float:
        """Sum of the squares of the weights."""
        with np.errstate(over="ignore"):
            return float(np.square(self.length))


class _Shape(NamedTuple):
    """What the storing of a solution asks of a problem."""

    n: int
    p: int
    has_intercept: bool
    independent: float
    ridge: Array
    loss: Any


class DaskMixin:
    """Fit and score of the linear models where X is a dask array or data frame.

    What it asks of these models is declared here.
    """

    _vector: bool
    _fit_saw: FitSaw
    _attributes: Callable[[Array, Any], dict[str, Any]]
    _generator: Callable[[], np.random.Generator]
    _make_loss: Callable[[], Loss]
    _refuse_unfit: Callable[[Any, Array], None]
    _start_from: Callable[[Any, Any, int, int], Array | None]
    _store: Callable[[Array, Any], None]
    _store_solution: Callable[[Solution, Any], None]
    _warn: Callable[[Solution, Any], None]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R^2 of the prediction, or the accuracy of a classifier.

        Parameters
        ----------
        X : {array-like, sparse matrix, dask array or data frame} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets or labels; of dask, if X is.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.

        Returns
        -------
        score : float
            The better the fit, the larger; one at most.
        """
        if not is_dask(X):
            refuse_foreign(y=y, sample_weight=sample_weight)
            return super().score(X, y, sample_weight)  # type: ignore[misc]
        return self._score_blocks(X, y, sample_weight, None)

    def _score_blocks(self, X: Any, y: Any, sample_weight: Any, power: float | None) -> float:
        """Score by rounds; `power` is that of the deviance, None for squares."""
        check_is_fitted(self)
        model: Any = self
        engine = Engine(Collection(check_collection(model, X, reset=False), y, sample_weight))
        predict = nameless(self).predict
        if isinstance(self, ClassifierMixin):
            said = engine(_blocks.correct, predict=predict)
            return float(said["correct"] / said["weight"])
        encoding = Encoding(make_loss("squared_error"), False, engine.collection.dtype.name)
        said = engine(_blocks.residuals, encoding=encoding, predict=predict)
        error, scatter = said["error"], said["scatter"]
        if power is not None:
            mean = said["mean"]
            said = engine(
                _blocks.deviances, encoding=encoding, predict=predict, mean=mean, power=power
            )
            error, scatter = said["deviance"], said["null"]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = 1 - error / scatter
        return float(np.where(scatter == 0, error == 0, share).mean())

    def _fit_blocks(
        self, X: Any, y: Any, sample_weight: Any, coef_init: Any, intercept_init: Any
    ) -> Self:
        """Fit to a dask collection."""
        model: Any = self
        _refuse_settings(model)
        X = check_collection(model, X, reset=True)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but y is None.")
        engine = Engine(Collection(X, y, sample_weight))
        name = engine.collection.dtype.name
        fit = _Fit(model, engine, time.perf_counter())
        if isinstance(self, ClassifierMixin):
            if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1:
                warnings.warn(_COLUMN, DataConversionWarning, stacklevel=4)
            encoding, counts = fit.labelled(name)
        else:
            model._vector = getattr(y, "ndim", 1) == 1
            if not model._vector and model.loss != "squared_error":
                raise ValueError(
                    f"y has {y.ndim} dimensions, but loss={model.loss!r} takes one target: pass a "
                    "vector of shape (n_samples,)."
                )
            if isinstance(model._make_loss(), QuantileLoss):
                raise ValueError(
                    "loss='quantile' is smoothed by the spread of the residuals, which needs rows "
                    "in memory, and X is a dask collection. Use another loss, or fit X.compute()."
                )
            encoding, counts = Encoding(model._make_loss(), bool(model.fit_intercept), name), None
        solution, shape = fit.solve(encoding, counts, coef_init, intercept_init)
        model.preconditioner_ = "sketch" if solution.factor.ratio else "exact"
        model._store_solution(solution, shape)
        model.n_rounds_ = engine.rounds
        model._store(solution.W, engine.collection.dtype)
        if fit.unsettled:
            warnings.warn(
                f"The scale of the residuals still changes by {fit.unsettled:.2g} of itself after "
                f"{_SCALES} solutions at a scale: many residuals are near epsilon scales. Increase "
                "tol, or change epsilon.",
                ConvergenceWarning,
                stacklevel=4,
            )
        else:
            model._warn(solution, shape)
        return self


class _Fit:
    """One fit of a linear model by rounds."""

    def __init__(self, model: Any, engine: Engine, clock: float) -> None:
        self.model, self.engine, self.clock = model, engine, clock
        self.rng = model._generator()
        self.history: list[dict[str, Any]] = []
        self.unsettled = 0.0  # last change of the scale of the residuals, if that did not settle
        alpha = per_feature(model.alpha, engine.collection.X.shape[1])
        self.penalty = Penalty(alpha, model.penalty_units)
        self.spread: Spread | None = None
        self.monitor = Monitor(model, model._attributes, engine.collection.X, None, None)

    def labelled(self, dtype: str) -> tuple[Encoding, _Counts]:
        """Classes and their counts: a round."""
        model = self.model
        asked = self._per_deviation and model.class_weight is None
        features = Encoding(make_loss(model.loss), False, dtype) if asked else None
        said = self.engine(_blocks.labels, features=features)
        self.spread = said.get("spread")
        model.classes_, table = said["labels"], said["table"]
        check_classification_targets(model.classes_)
        with np.errstate(over="ignore"):
            _blocks.refuse_overflow(table[:, 1].sum())
        each: Any = np.ones(len(table))
        if model.class_weight == "balanced":
            each = balanced(table[:, 1] / (table[:, 1].max() or 1.0))
        elif model.class_weight is not None:
            each = class_weighted(model.class_weight, model.classes_, model.classes_, None)
        weight = each * table[:, 1]
        refuse_one_class(model.classes_, weight)
        target = weight[1:] if len(table) == 2 else weight
        rows = int(table[:, 0].sum())
        counts = _Counts(
            rows,
            rows,
            float(weight.sum()),
            _blocks.length(each * table[:, 2]),
            target,
            float(target.sum()),
        )
        loss = make_loss(model.loss) if len(table) == 2 else MultinomialLoss()
        weights = None if model.class_weight is None else each
        encoding = Encoding(loss, bool(model.fit_intercept), dtype, model.classes_, weights)
        return encoding, counts

    def solve(
        self, encoding: Encoding, counts: _Counts | None, coef_init: Any, intercept_init: Any
    ) -> tuple[Solution, _Shape]:
        """Minimise: in one round, where all that is needed is a triangular factor."""
        model, X = self.model, self.engine.collection.X
        d, outputs = X.shape[1], 1 if counts is None else len(counts.target)
        model._refuse_unfit(X, np.empty((0, outputs)))
        if self._per_deviation and self.spread is None:
            self.spread = self.engine(_blocks.spread, encoding=encoding)["spread"]
        one = encoding.loss.quadratic and (
            model.preconditioner == "exact" or (model.preconditioner == "auto" and d <= _ONE_ROUND)
        )
        if one:
            return self._in_one_round(encoding)
        if counts is None:
            said = self.engine(_blocks.totals, encoding=encoding)
            counts = _Counts(**said)
        _refuse_weightless(counts.weight)
        problem = self._stand_in(encoding, len(counts.target), counts)
        chosen = plan(
            counts.n,
            problem.p,
            n_columns=1 if problem.loss.quadratic else len(counts.target),
            quadratic=problem.loss.quadratic,
            preconditioner=model.preconditioner,
            oversampling=self._oversampling,
        )
        size = 1
        n_batches = sketch_batches(problem.p, self._oversampling)
        if chosen.preconditioner != "exact" and 2 * n_batches <= counts.n:
            size = counts.n // n_batches
        data = Blocks(
            self.engine,
            encoding,
            problem,
            counts.weight,
            _unit(problem, counts),
            size,
            self.rng,
        )
        start = model._start_from(coef_init, intercept_init, d, len(counts.target))
        if isinstance(problem.loss, ScaledLoss):
            data, start = self._scaled(data, problem.loss, counts, start)
        solution = self._descend(data, self._begin(data, counts, start))
        if self.unsettled:
            solution = solution._replace(ending=Ending.EXHAUSTED)
        return solution, self._shape(data.problem, counts)

    def _scaled(
        self, data: Blocks, loss: ScaledLoss, counts: _Counts, W: Array | None
    ) -> tuple[Blocks, Array | None]:
        """Find the scale that residuals have at the minimum for that scale, and go near that.

        A sample tells a scale to begin with; solutions and scales of all rows follow each other.
        """
        problem, goal = data.problem, Goal(self.model.tol)
        m = rows_for_a_scale(counts.n, problem.p, self.engine.collection.dtype.itemsize)
        told = self._sampled(data, m / counts.n)
        W = told["start"] if W is None else W
        W = _null_model(problem, counts) if W is None else W
        size = np.sqrt(counts.square / counts.weight) or 1.0
        scale = told["scale"] or size
        # Below a share of what targets scatter by, or of what they are rounded to, there are none
        least = max(_LEAST * (told["size"] or size), _EPS * size)
        close = max(np.sqrt(self.model.tol / problem.observations), 1e-9)
        width, before = _WIDEST, None
        for _ in range(_SCALES):
            data = data.of_loss(loss.at_scale(scale, problem.observations, problem.p))
            method = Rounds(data, goal)
            W = descend(method, data.at(W, Model.CURVATURE), goal, self.model.max_iter).W
            here = np.log([scale, max(self._scale_at(data, W, scale, width), least)])
            scale = max(float(np.exp(fixed_point(before, here))), least)
            moved = abs(here[1] - here[0])
            # Read off between places of a grid it is off by the square of their distance
            if max(moved, (2 * width / (_GRID - 1)) ** 2) <= close:
                break
            before, width = here, float(np.clip(2 * moved, 4 * close, _WIDEST))
        else:
            self.unsettled = float(moved)
        return data.of_loss(loss.at_scale(scale, problem.observations, problem.p)), W

    def _scale_at(self, data: Blocks, W: Array, scale: float, width: float) -> float:
        """Scale of all residuals at W (see `HuberLoss.residual_scale`): a round, or several.

        The root of ``sum(w min(r^2/s^2, epsilon^2)) = sum(w)`` is bracketed on a grid of s, which
        moves on where it lies beyond.
        """
        epsilon = data.problem.loss.parameters["epsilon"]
        for _ in range(_WIDER):
            grid = scale * np.exp(np.linspace(-width, width, _GRID))
            said = self.engine(_blocks.bent, encoding=data.encoding, W=W, bends=epsilon * grid)
            self.engine.passes += 1
            excess = said["inside"] / grid**2 + epsilon**2 * said["beyond"] - data.weight
            falls = np.flatnonzero((excess[:-1] > 0) & (excess[1:] <= 0))
            if len(falls):
                j = falls[-1]
                share = excess[j] / (excess[j] - excess[j + 1])
                return float(grid[j] * (grid[j + 1] / grid[j]) ** share)
            scale, width = float(grid[-1] if excess[-1] > 0 else grid[0]), 2 * width
        return scale

    @property
    def _oversampling(self) -> float | None:
        given = self.model.oversampling
        return None if isinstance(given, str) else given

    def _shape(self, problem: Problem, counts: _Counts) -> _Shape:
        """Shape of the problem; a stream that goes on from here is told what was seen."""
        spread = self.spread or Spread.empty(problem.X.shape[1])
        ridge = problem.ridge
        self.model._fit_saw = FitSaw(
            problem.loss,
            problem.has_intercept,
            problem.Y.shape[1],
            ridge[:, 0],
            Seen(1.0, counts.n, counts.weight, counts.squares),
            spread,
            Law(),
        )
        known = problem.loss.likelihood
        independent = problem.observations if known else float(counts.positive)
        return _Shape(counts.n, problem.p, problem.has_intercept, independent, ridge, problem.loss)

    @property
    def _per_deviation(self) -> bool:
        return self.penalty.present and self.penalty.units == "std"

    def _stand_in(self, encoding: Encoding, t: int, counts: _Counts) -> Problem:
        """Problem of no rows that has the penalty, and counts the rows of others."""
        collection, total = self.engine.collection, counts.weight
        spread = self.spread or Spread.empty(collection.X.shape[1])
        ridge = self.penalty.ridge(total, spread) / total if self.penalty.present else 0.0
        self.model.alpha_ = self.penalty.of_mean(total)
        X = np.zeros((1, collection.X.shape[1]), dtype=collection.dtype)
        return Problem(
            X,
            np.zeros((1, t)),
            None,
            encoding.loss,
            ridge,
            encoding.has_intercept,
            counts.observations,
        )

    def _begin(self, data: Blocks, counts: _Counts, start: Array | None) -> Point:
        """Look at the start given, or at the null model, if that is better; or at a sample's."""
        null = _null_model(data.problem, counts)
        if start is None:
            told = self._of_sample(data, counts)
            if told is not None and told["start"] is not None:
                raw = null[0] if data.problem.has_intercept else 0 * null[0]
                point = data.as_told(told["start"], raw, told["dispersion"])
                if point is not None:
                    return point
            return data.at(null, Model.CURVATURE)
        point, there = (data.at(W, Model.CURVATURE) for W in (null, start))
        return there if there.objective <= point.objective else point

    def _of_sample(self, data: Blocks, counts: _Counts) -> Answer | None:
        """Solve a sample of the rows, if that is worth it: a round."""
        problem, loss = data.problem, data.problem.loss
        if loss.quadratic or isinstance(loss, ScaledLoss) or loss.coupling > 1:
            return None
        events = np.inf
        if loss.asymptotic and not np.any(problem.alpha):
            rarest = counts.target.min()
            if isinstance(self.model, ClassifierMixin):
                rarest = min(rarest, (counts.weight - counts.target).min())
            events = rarest * counts.n / counts.weight
        itemsize = self.engine.collection.dtype.itemsize
        m = sample_size(counts.n, problem.p, itemsize, events)
        if not m:
            return None
        return self._sampled(data, m / counts.n)

    def _sampled(self, data: Blocks, share: float) -> Answer:
        """Solve a share of the rows on a worker: a round."""
        self.engine.passes += share
        seed, own = self.rng.integers(2**63, size=2).tolist()
        alpha = data.problem.alpha
        return self.engine(
            _blocks.sampled,
            encoding=data.encoding,
            share=share,
            seed=seed,
            conclude=partial(solution_of_sample, encoding=data.encoding, alpha=alpha, seed=own),
        )

    def _descend(self, data: Blocks, point: Point) -> Solution:
        model, problem, goal = self.model, data.problem, Goal(self.model.tol)
        W, _, look, ending = descend(
            Rounds(data, goal),
            point,
            goal,
            model.max_iter,
            self._watch,
            lambda at: _separated(problem, at),
        )
        if ending is Ending.CONVERGED and _may_drift(problem, look.point):
            drifted = drifts_on(Rounds(data, goal), look.point)
            if drifted is not None:
                separable = _separated(problem, drifted)
                ending = Ending.SEPARABLE if separable else Ending.UNBOUNDED
        if problem.loss.quadratic:
            self._watch(_arrived(look))
        self.monitor.close(W)
        target = goal.enough(look.point)
        told = look.point
        free = not (problem.loss.quadratic or problem.loss.likelihood)
        far = look.decrement > _FAR * told.floor / counted_error(problem)
        if free and far and ending is Ending.CONVERGED and W is not told.W:
            # What is left is foreseen; dispersion and curvature may have changed on the way
            told = data.at(W, Model.CURVATURE)
        factor = told.rows.factor
        passes, history = self.engine.passes, self.history
        dispersion = np.full(1, told.floor / counted_error(problem))
        if problem.loss.quadratic and problem.Y.shape[1] > 1:  # of all targets together
            dispersion = np.full(problem.Y.shape[1], np.nan)
        return Solution(W, factor, ending, target, 0.0, passes, history, dispersion)

    def _watch(self, look: Look) -> bool:
        record = record_of(look, self.engine.passes, self.clock)
        record |= {"rounds": self.engine.rounds, "bytes": self.engine.bytes}
        self.history.append(record)
        return bool(self.monitor(look.point.W, record))

    def _in_one_round(self, encoding: Encoding) -> tuple[Solution, _Shape]:
        """Least squares by the triangular factor of the rows (1, x, y)."""
        said = self.engine(_blocks.rows_triangle, encoding=encoding)
        self.engine.passes += 1
        total, n = said["weight"], int(said["n"])
        _refuse_weightless(total)
        counts = _Counts(n, int(said["positive"]), total, said["length"], np.zeros(0), 0.0)
        triangle = said["factors"][0] / np.sqrt(total)
        t = len(triangle) - self.engine.collection.X.shape[1] - encoding.has_intercept
        problem = self._stand_in(encoding, t, counts)
        sketched = triangles_factor(
            problem, said["shift"], triangle[None], ratio=0.0, batch_size=1, n_batches=n
        )
        assert sketched.step is not None
        point = _point_of(problem, triangle, said["shift"], sketched.step, sketched.factor)
        look = Look(point, sketched.factor.decrement(point.gradient))
        self._watch(look)
        self.monitor.close(point.W)
        solution = Solution(
            point.W,
            sketched.factor,
            Ending.CONVERGED,
            max(self.model.tol * point.floor, point.rounding),
            0.0,
            self.engine.passes,
            self.history,
            point.rows.sums["rest"],
        )
        return solution, self._shape(problem, counts)


def _arrived(look: Look) -> Look:
    """Look at where conjugate gradients led, of which all is known without a question."""
    point, found = look.point, look.way
    gained = found.decrement - found.left
    W = point.W + found.U
    return Look(point._replace(W=W, objective=point.objective - gained / 2), found.left)


def _point_of(problem: Problem, triangle: Array, shift: Array, W: Array, factor: Any) -> Point:
    """Look at a place through the factor of rows (1, x - shift, y), divided by their number."""
    p, h = problem.p, int(problem.has_intercept)
    centred = W.copy()
    if h:
        centred[0] += shift @ W[1:]
    residual = triangle[:, :p] @ centred - triangle[:, p:]
    gradient = triangle[:, :p].T @ residual
    if h:
        gradient[1:] += np.outer(shift, gradient[0])
    gradient += problem.ridge * W
    rest = np.sum(residual**2, axis=0)
    square = float(rest.sum())
    floor = square * problem.p / problem.observations
    told = Told(Model.CURVATURE, factor, {"rest": rest})
    return Point(W, square / 2 + problem.penalty(W), gradient, told, floor, 0.0, 0.0)


def _null_model(problem: Problem, counts: _Counts) -> Array:
    W = np.zeros((problem.p, len(counts.target)))
    if problem.has_intercept:
        W[0] = problem.loss.link(counts.target / counts.weight)
    return W


def _unit(problem: Problem, counts: _Counts) -> float:
    """Size of a loss: as `_rows.Rows` has it."""
    if problem.loss.own_unit:
        return float(counts.square / counts.weight)
    mean = (counts.target / counts.weight)[None]
    return 4 * float(problem.loss.curvature(mean, problem.loss.link(mean)).mean())


def _separated(problem: Problem, point: Point) -> bool:
    loss = problem.loss
    if not (loss.likelihood and loss.asymptotic) or np.any(problem.alpha):
        return False
    few = point.objective * problem.observations < np.log(2)
    return bool(few and point.rows.sums["worst"] < np.log(2))


def _may_drift(problem: Problem, point: Point) -> bool:
    """Whether the last step moved some row far, or nobody knows."""
    sums = point.rows.sums
    if not problem.loss.asymptotic or np.any(problem.alpha):
        return False
    return sums["farthest"] > _DRIFTING or not sums["gain"]


def _refuse_weightless(weight: float) -> None:
    _blocks.refuse_overflow(weight)
    if not weight > 0:
        raise ValueError("sample_weight is zero for every row: no row is left to learn from.")


def _refuse_settings(model: Any) -> None:
    """Raise ValueError for what needs rows at hand."""
    for name, default in _FOR_ROWS.items():
        value = getattr(model, name)
        if value != default:
            raise ValueError(
                f"{name}={value!r} needs rows in memory, and X is a dask collection. Set "
                f"{name}={default!r}, or fit X.compute()."
            )
    if not isinstance(model.preconditioner, str) or model.preconditioner not in (
        "auto",
        "exact",
        "sketch",
    ):
        raise ValueError(
            "On dask collections the preconditioner is made of the rows themselves, but "
            f"preconditioner={model.preconditioner!r}. Set preconditioner='auto', or fit "
            "X.compute()."
        )
