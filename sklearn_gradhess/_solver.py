"""Minimise a regularised empirical risk of rows in memory: start, method and ending."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._conjugate_gradients import (
    ByGains,
    ByLaw,
    Inner,
    InverseHessian,
    Need,
    conjugate_gradients,
)
from sklearn_gradhess._descent import Descent, Ending, Goal, Look, Method, Model, Point, descend
from sklearn_gradhess._diagonal import Diagonal, diagonal_hessian
from sklearn_gradhess._newton import Newton, drifts
from sklearn_gradhess._plan import Plan
from sklearn_gradhess._plan import plan as choose
from sklearn_gradhess._pooled import pooled_hessian
from sklearn_gradhess._preconditioner import Factor
from sklearn_gradhess._rows import Problem, Rows
from sklearn_gradhess._sample_space import SampleSpace, in_sample_space
from sklearn_gradhess._sketch import PROBES, Sketched, hessian_factor, sketch_factor
from sklearn_gradhess._steps import Made, Steps, StepSettings
from sklearn_gradhess._validation import largest_entry

__all__ = [
    "Settings",
    "Solution",
    "approach",
    "descend_by_diagonal",
    "goal_of",
    "part_of",
    "record_of",
    "separated",
    "solve",
]

Array = npt.NDArray[np.float64]
# Share of the tolerance that is asked of small data, where passes cost nothing, and entries of
# data from which on it is asked of no more
_DEEP = 1e-6
_LARGE = 2e6
# Exponent of two of the largest target from which on its squares are not to be trusted
_EXTREME = 400
# Relative change of the curvature up to which a Hessian is left behind for standard errors
_LEFT = 0.04
# Statistical errors that are left of the start, which serves a part of the rows
_COARSE = 0.3
# Preconditioners whose spectrum against the Hessian no law bounds
_LAWLESS = ("diagonal", "pooled")
# Share of an effective number of coefficients to which it is found
_COUNTED = 0.1
# Passes for the variances of the features, the Gram matrix of the rows, and the coefficients
_TO_SAMPLES = 3.5
# And for the diagonal of a Hessian at these
_DIAGONAL = 1.5


@dataclass(frozen=True)
class Settings:
    """Parameters of `solve`, as the estimators document them."""

    plan: Plan
    tol: float = 1e-2
    max_iter: int = 100
    steps: StepSettings = field(default_factory=StepSettings)
    shuffle: bool = True
    n_threads: int = 1
    given: Factor | None = None
    safeguard: bool = True
    on_iteration: Callable[[Array, dict[str, Any]], bool] | None = None
    shows_coef: bool = True  # whether it looks at coefficients, which may be some work to make
    space: SampleSpace | None = None  # the problem in the space of the samples, if it is at hand


class Solution(NamedTuple):
    """Where `solve` ended."""

    W: Array
    factor: InverseHessian
    ending: Ending
    target: float  # decrement that was asked for
    learning_rate: float
    n_passes: float
    history: list[dict[str, Any]]
    dispersion: Any  # mean squared slope over mean curvature, of each column or of all
    degrees: float = np.nan  # effective number of coefficients
    diagonal: Diagonal | None = None  # of the Hessian, where that is all there is of it

    @property
    def converged(self) -> bool:
        """Whether the descent met its goal."""
        return self.ending is Ending.CONVERGED


@dataclass
class _Fit:
    """What the parts of one fit share."""

    problem: Problem
    settings: Settings
    rng: np.random.Generator
    data: Rows = field(init=False)
    factor: InverseHessian | None = None  # the last that was made
    counted: float = np.nan  # effective number of coefficients, once it is known

    def __post_init__(self) -> None:
        self.data = Rows(self.problem)

    @property
    def goal(self) -> Goal:
        """When to stop."""
        return goal_of(self.problem, self.settings)

    def sketched(self, weights: Array | None, target: Array | None = None) -> Sketched:
        """Hessian with these weights of rows, as the plan has it."""
        plan, settings = self.settings.plan, self.settings
        if plan.preconditioner == "exact":
            made = hessian_factor(self.problem, weights, target)
        else:
            made = sketch_factor(
                self.problem,
                weights,
                target,
                n_batches=plan.n_batches,
                rng=self.rng,
                shuffle=settings.shuffle,
                n_threads=settings.n_threads,
            )
        self.data.passes += made.n_passes
        self.factor = made.factor
        return made

    def make(self, weights: Array | None) -> InverseHessian:
        """Return the preconditioner alone."""
        if self.settings.plan.preconditioner == "diagonal":
            return self.diagonal(weights)
        if self.settings.plan.preconditioner == "pooled":
            assert weights is not None
            pooled = pooled_hessian(self.problem, weights)
            self.data.passes += pooled.n_passes
            self.factor = pooled
            return pooled
        return self.sketched(weights).factor

    def diagonal(self, weights: Array | None) -> Diagonal:
        """Diagonal of the Hessian; it bounds the effective number of coefficients, too."""
        problem, data = self.problem, self.data
        found = diagonal_hessian(problem, weights)
        data.passes += 1
        most = min(problem.n, problem.p) * problem.n_columns
        if np.isnan(self.counted):
            data.degrees = min(found.degrees_of_freedom(problem.n_columns), most)
        self.factor = found
        return found

    def count(self, point: Point) -> float:
        """Estimate the effective number of coefficients at a point, and judge by it from here on.

        A noisy gradient h has the Hessian for its covariance, so that its decrement
        ``h' (H + alpha)^-1 h`` is the trace of ``H (H + alpha)^-1`` on the mean (MATH 7.2).
        """
        problem, data, factor = self.problem, self.data, self.factor
        assert factor is not None
        signs = self.rng.choice([-1.0, 1.0], problem.Y.shape)
        noise = problem.loss.target_noise(problem.Y, point.rows.raw, signs)
        if problem.weight is not None:
            noise *= np.sqrt(problem.weight)[:, None]
        gradient = data.sum_of_rows(noise) / np.sqrt(problem.n)
        inner, need = ByGains(_COUNTED), Need(0.0)
        found = conjugate_gradients(
            lambda U: data.product(point, U, Model.CURVATURE),
            factor.solve,
            None,
            gradient,
            noise,
            lambda found: inner.enough(found, need),
            inner.most,
        )
        # What is sure bounds what is estimated
        self.counted = data.degrees = min(inner.told(found).decrement, data.degrees)
        return self.counted

    def stale(self, method: Method, look: Look) -> bool:
        """Whether the Hessian that the fit leaves behind is not near enough to that at its end."""
        if self.factor is None:
            return True
        exact = self.settings.plan.preconditioner == "exact"
        return exact and isinstance(method, Newton) and method.moved(look.point) > _LEFT

    def made(self, stiffness: Array, sketched: Sketched | None = None) -> Made:
        """Preconditioner with probes of leverages, for steps on mini-batches."""
        problem, rng = self.problem, self.rng
        weights = None if problem.loss.quadratic else stiffness
        found = sketched or self.sketched(weights)
        probes = []
        ridge = np.sqrt(problem.ridge)
        for T, mixed in zip(found.factor.roots, found.mixed, strict=False):
            # Directions u with E u u' the inverse of P, made of rows: as equivariant as these
            g = mixed + ridge * rng.standard_normal(mixed.shape)
            probes.append(T @ (T.T @ g) / np.sqrt(PROBES))
        return Made(found.factor, stiffness, probes or self.probes_of(found.factor))

    def probes_of(self, factor: Factor) -> list[Array]:
        """Directions u with E u u' the inverse of P, whatever it was made of."""
        draw = self.rng.standard_normal
        return [T @ draw((T.shape[1], PROBES)) / np.sqrt(PROBES) for T in factor.roots]


def goal_of(problem: Problem, settings: Settings) -> Goal:
    """Decrement to stop at: deeper where a pass costs next to nothing."""
    size = problem.n * problem.p / _LARGE
    exact = settings.plan.preconditioner == "exact"
    return Goal(settings.tol, float(np.clip(size**3, _DEEP, 1.0)) if exact else 1.0)


def solve(
    problem: Problem, settings: Settings, rng: np.random.Generator, start: Array | None = None
) -> Solution:
    """Minimise the objective.

    Parameters
    ----------
    problem : Problem
        The objective.
    settings : Settings
        Plan, tolerance and method.
    rng : Generator
        Source of randomness.
    start : ndarray of shape (p, t), default=None
        Where to start; None finds a start of its own.
    """
    if settings.plan.preconditioner == "sample_space":
        return _solve_in_sample_space(problem, settings, rng, start)
    # Steps that diverge are caught and undone
    with np.errstate(over="ignore", invalid="ignore"):
        unit = _unit(problem)
        if unit == 1.0:
            return _solve(_Fit(problem, settings, rng), start)
        told = settings.on_iteration

        def tell(W: Array, record: dict[str, Any]) -> bool:
            record.update({name: record[name] * unit**2 for name in ("loss", "decrement", "floor")})
            return bool(told and told(unit * W, record))

        scaled = replace(problem, Y=problem.Y / unit, loss=problem.loss.per(float(unit)))
        start = None if start is None else start / unit
        found = _solve(_Fit(scaled, replace(settings, on_iteration=tell), rng), start)
        return found._replace(
            W=unit * found.W,
            target=found.target * unit**2,
            dispersion=found.dispersion * unit**2,
        )


def _solve_in_sample_space(
    problem: Problem, settings: Settings, rng: np.random.Generator, start: Array | None
) -> Solution:
    """Solve the problem with as many features as rows, by its Hessian."""
    with np.errstate(over="ignore", invalid="ignore"):
        space = settings.space or in_sample_space(problem)
    small, told = space.problem, settings.on_iteration

    def tell(V: Array, record: dict[str, Any]) -> bool:
        return bool(told and told(space.lift(V) if settings.shows_coef else V, record))

    plan = Plan("exact", "newton", small.n, 1)
    inner = replace(settings, plan=plan, on_iteration=tell, space=None)
    found = solve(small, inner, rng, None if start is None else space.lower(start))
    factor = found.factor
    assert isinstance(factor, Factor)
    clipped = factor.n_clipped + problem.p - small.p
    degrees = factor.degrees_of_freedom(small.n_columns)
    W, passes, diagonal = space.refined(found.W), _TO_SAMPLES, space.diagonal
    if not problem.loss.quadratic:
        diagonal = _diagonal_at(problem, W)
        passes += _DIAGONAL
    return found._replace(
        W=W,
        diagonal=diagonal,
        factor=replace(factor, roots=(), factors=(), n_clipped=clipped),
        n_passes=found.n_passes + passes,
        degrees=degrees,
    )


def _diagonal_at(problem: Problem, W: Array) -> Diagonal:
    raw = problem.predict(problem.X, W)
    return diagonal_hessian(problem, problem.loss.curvature(problem.Y, raw))


def _unit(problem: Problem) -> np.float64:
    """Return a power of two to divide targets by whose squares would overflow or vanish."""
    exponent = 0
    if problem.loss.own_unit:
        exponent = int(np.frexp(np.abs(problem.Y).max(initial=0.0))[1]) - 1
    return np.ldexp(np.float64(1.0), exponent if abs(exponent) > _EXTREME else 0)


def _solve(fit: _Fit, start: Array | None) -> Solution:
    """Descend, and say how it ended and what the Hessian there is."""
    problem, settings, data = fit.problem, fit.settings, fit.data
    clock = time.perf_counter()
    history: list[dict[str, Any]] = []

    def watch(look: Look) -> bool:
        history.append(record_of(look, data.passes, clock))
        told = settings.on_iteration
        return bool(told and told(look.point.W, history[-1]))

    found = _descend(fit, start, watch)
    lawless, goal = settings.plan.preconditioner in _LAWLESS, fit.goal
    if lawless and found.ending is Ending.CONVERGED and data.degrees > 0:
        bound, last = data.degrees, found.look.point
        floor = last.floor * fit.count(last) / bound
        reached = min(found.look.decrement, found.look.foreseen)
        left = settings.max_iter + 1 - len(history)
        if reached > goal.enough(last._replace(floor=floor)) and left > 0:
            found = _onward(fit, found.method, data.at(found.W), left, watch)
    W, method, look, ending = found
    suspicious = ending is Ending.CONVERGED and _may_drift(problem, look, told=not lawless)
    drifting = replace(goal, tol=0.0) if lawless else goal
    if suspicious and drifts(_newton(fit, drifting), look.point):
        ending = Ending.UNBOUNDED
    if fit.stale(method, look):
        fit.make(None if problem.loss.quadratic else data.weights(look.point, Model.CURVATURE))
    assert fit.factor is not None
    target, dispersion = goal.promised(look.point), data.dispersion(look.point)
    degrees = data.degrees if lawless else np.nan
    factor, diagonal = fit.factor, None
    if isinstance(factor, Diagonal):
        if not problem.loss.quadratic:  # it is of another place, and of a bound on the curvature
            factor = _diagonal_at(problem, W)
            data.passes += _DIAGONAL
        diagonal = factor
    return Solution(
        W,
        factor,
        ending,
        target,
        data.rate,
        data.passes,
        history,
        dispersion,
        degrees,
        diagonal,
    )


def descend_by_diagonal(problem: Problem, start: Array | None, tol: float) -> Descent:
    """Descend with the diagonal of the Hessian, and ask nothing more of the minimum.

    Parameters
    ----------
    problem : Problem
        The objective.
    start : ndarray of shape (p, t) or None
        Where to start, if that is better than the null model.
    tol : float
        Share of the statistical error to stop at.
    """
    settings = Settings(Plan("diagonal", "newton", problem.n, 1), tol=tol)
    with np.errstate(over="ignore", invalid="ignore"):
        return _descend(_Fit(problem, settings, np.random.default_rng(0)), start)


def _newton(fit: _Fit, goal: Goal) -> Newton:
    """Newton steps, judged as the preconditioner allows."""
    inner: Inner = ByLaw()
    if fit.settings.plan.preconditioner in _LAWLESS:
        inner = ByGains(0.0 if fit.problem.loss.quadratic else ByGains.share)
    return Newton(fit.data, goal, fit.make, inner=inner)


def _descend(
    fit: _Fit, start: Array | None, watch: Callable[[Look], bool] = lambda look: False
) -> Descent:
    point, method = _begin(fit, fit.goal, start)
    return _onward(fit, method, point, fit.settings.max_iter, watch)


def _onward(
    fit: _Fit, method: Method, point: Point, most: int, watch: Callable[[Look], bool]
) -> Descent:
    found = descend(method, point, fit.goal, most, watch, lambda at: separated(fit.problem, at))
    _refuse_overflow(fit.problem, found.W)
    return found


def _begin(fit: _Fit, goal: Goal, start: Array | None) -> tuple[Point, Method]:
    """Where to start, and who does."""
    problem, settings, data = fit.problem, fit.settings, fit.data
    newton = _newton(fit, goal)
    if settings.given is not None:
        return _begin_given(fit, newton, start)
    if settings.plan.preconditioner == "diagonal":
        return _begin_wide(fit, newton, start)
    if settings.plan.method == "steps":
        return _begin_steps(fit, newton, start)
    if problem.loss.quadratic:
        found = fit.sketched(None, problem.Y)
        assert found.step is not None
        if start is None:
            point = data.of_normal_equations(found.step, found.rest, found.error)
            start = found.step if point.rounding > goal.target(point) else None
        else:
            point = data.at(start)
            start = None
        return data.at(start) if start is not None else point, replace(newton, factor=found.factor)
    if start is None:
        start = _of_a_share(fit)
    return _no_worse_than_null(data, start), newton


def _begin_given(fit: _Fit, newton: Newton, start: Array | None) -> tuple[Point, Method]:
    """With a preconditioner of somebody else's, which may be of another scale."""
    settings, data, problem = fit.settings, fit.data, fit.problem
    assert settings.given is not None
    point = _no_worse_than_null(data, start)
    quadratic = problem.loss.quadratic
    judge = fit.sketched(None if quadratic else data.weights(point, Model.STIFFNESS)).factor
    given = settings.given
    if settings.safeguard:
        given = given.scaled_to(judge, problem.ridge)
    method = replace(newton, given=given)
    if settings.plan.method != "steps":
        return point, method
    stiffness = data.weights(point, Model.STIFFNESS)
    made = Made(given, stiffness, fit.probes_of(given))
    otherwise = method if settings.safeguard else None
    return point, Steps(data, newton.goal, None, made, settings.steps, fit.rng, judge, otherwise)


def _begin_wide(fit: _Fit, newton: Newton, start: Array | None) -> tuple[Point, Method]:
    """At the null model, with the diagonal there."""
    problem = fit.problem
    weights = None
    if not problem.loss.quadratic:
        null = np.broadcast_to(problem.null_model()[0] * problem.has_intercept, problem.Y.shape)
        weights = problem.loss.stiffness(problem.Y, np.array(null))
    factor = fit.diagonal(weights)
    point = _no_worse_than_null(fit.data, start)
    return point, replace(newton, factor=factor, made_of=weights)


def _begin_steps(fit: _Fit, newton: Newton, start: Array | None) -> tuple[Point, Method]:
    """At the solution of a sketch, of least squares or of a model at the null model."""
    settings, data, problem = fit.settings, fit.data, fit.problem
    null, ceiling = problem.null_model(), np.inf
    stiffness, weights, target = np.broadcast_to(1.0, problem.Y.shape), None, problem.Y
    if problem.loss.quadratic:
        null = np.zeros_like(null)
    else:
        # At the null model the derivatives need no pass
        raw = np.array(np.broadcast_to(null[0] * problem.has_intercept, problem.Y.shape))
        ceiling = problem.mean_loss(raw)
        stiffness = weights = problem.loss.stiffness(problem.Y, raw)
        target = -problem.loss.gradient(problem.Y, raw) / stiffness
    sketched = fit.sketched(weights, target)
    assert sketched.step is not None
    made = fit.made(stiffness, sketched)
    probes = None if sketched.factor.ratio == 0 else made.probes
    point = data.at(null + sketched.step if start is None else start, probes)
    if not point.objective <= ceiling:
        point = data.at(null, probes)
    otherwise = newton if settings.safeguard else None
    steps = Steps(data, newton.goal, fit.made, made, settings.steps, fit.rng, None, otherwise)
    return point, steps


def _no_worse_than_null(data: Rows, start: Array | None) -> Point:
    """Look at the start, if it is no worse than the null model, else at that."""
    problem = data.problem
    null = problem.null_model()
    if start is not None:
        point = data.at(start)
        raw = np.array(np.broadcast_to(null[0] * problem.has_intercept, problem.Y.shape))
        if point.objective <= problem.mean_loss(raw) + problem.penalty(null):
            return point
    point = data.at(null)
    _refuse_overflow(problem, point.gradient)
    return point


def _refuse_overflow(problem: Problem, values: Array) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            "Sums over the rows of X overflow float64: its largest entry is "
            f"{largest_entry(problem.X):.3g} in size. Rescale X."
        )


def _of_a_share(fit: _Fit) -> Array | None:
    """Coefficients of a share of the rows: many steps at little cost, some errors away."""
    problem, share = fit.problem, fit.settings.plan.share
    part = None if share == 1 else part_of(problem, share, fit.rng)
    if part is None:
        return None
    settings = replace(
        fit.settings,
        plan=choose(part.n, problem.p, quadratic=False),
        tol=_COARSE,
        max_iter=20,
        on_iteration=None,
    )
    W, passes = approach(part, settings, fit.rng)
    fit.data.passes += passes / share
    return W


def approach(
    problem: Problem, settings: Settings, rng: np.random.Generator, start: Array | None = None
) -> tuple[Array | None, float]:
    """Descend and leave nothing behind: coefficients, None where separable, and passes."""
    fit = _Fit(problem, settings, rng)
    with np.errstate(over="ignore", invalid="ignore"):
        found = _descend(fit, start)
    return None if found.ending is Ending.SEPARABLE else found.W, fit.data.passes


def part_of(problem: Problem, share: int, rng: np.random.Generator) -> Problem | None:
    """Draw one of so many rows; None if all that are drawn weigh nothing."""
    # One of each run of rows, so that sorted rows are all served
    runs = np.arange(0, problem.n - share + 1, share)
    rows = runs + rng.integers(share, size=len(runs))
    if problem.weight is not None and not problem.weight[rows].any():
        return None
    return problem.of_rows(rows)


def record_of(look: Look, passes: float, clock: float) -> dict[str, Any]:
    """Return what `history_` keeps of a look."""
    return {
        "loss": look.point.objective,
        "decrement": look.decrement,
        "floor": look.point.floor,
        "passes": passes,
        "seconds": time.perf_counter() - clock,
    }


def separated(problem: Problem, point: Point) -> bool:
    """Whether every row is on the side of its class, and nothing keeps W from growing.

    A row on the wrong side has a loss of log(2) at least, for several classes too.
    """
    loss = problem.loss
    if not (loss.likelihood and loss.asymptotic and problem.unbounded):
        return False
    if not point.objective * problem.observations < np.log(2):
        return False
    value = loss.value(problem.Y, point.rows.raw)
    value = value.sum(axis=1) if value.ndim == 2 else value
    return bool(np.all(value[problem.weighted(np.ones(problem.n)) > 0] < np.log(2)))


def _may_drift(problem: Problem, look: Look, *, told: bool) -> bool:
    """Whether a step that was small in what it gained moved some row far, or has not told."""
    if not (problem.loss.asymptotic and problem.unbounded):
        return False
    # Steps on mini-batches know no raw predictions of theirs
    return not told or look.way is None or bool(np.abs(look.way.found.raw).max() > 0.1)
