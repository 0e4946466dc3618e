"""A linear model of rows that stay where they are: holders send gradients, and nothing else.

A holder of rows is any callable that takes coefficients and answers with its mean gradient there
and, where it is asked to, with pairs of noisy gradients of batches. The server, `fit_holders`,
makes the Hessian of the pairs and steps by it (MATH section 8).

There is no privacy in this: gradients reveal the covariance and the means of the features, which is
what they are for, and a batch of one row reveals the row.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_array, check_scalar

from sklearn_gradhess._accumulation import of_factor
from sklearn_gradhess._descent import Ending, Goal, Look, Model, Point, descend
from sklearn_gradhess._gradients import RowCoefficients, batch_index, batch_sums, derivatives
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._moments import triangular_factor
from sklearn_gradhess._preconditioner import Factor
from sklearn_gradhess._rounds import Rounds, Told, counted_error, sketch_batches
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sketch import triangles_factor
from sklearn_gradhess._validation import blas_threads
from sklearn_gradhess.covariance import GradientCovarianceEstimator
from sklearn_gradhess.noise import as_generator, draw_target_noise

__all__ = ["FederatedFit", "GradientHolder", "RemoteHolder", "fit_holders", "serve"]

Array = npt.NDArray[np.float64]
Answer = dict[str, Any]
Holder = Callable[[Array, int, bool], Answer]
_EPS = float(np.finfo(np.float64).eps)
_REFUSAL = "refusal"  # what stands for an answer where there is none


class GradientHolder:
    """A holder of rows in memory, who hands out gradients.

    Parameters
    ----------
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Features.
    y : array-like of shape (n_samples,)
        Targets; zeros and ones for "log_loss".
    loss : {"squared_error", "log_loss", "poisson", "huber"}, default="squared_error"
        Half loss, with a log link for "poisson".
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    epsilon : float, default=1.35
        Where the Huber loss turns linear.
    min_rows : int, default=2
        Least number of rows in a batch, however many batches are asked for.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of the noise and of the batches.

    Raises
    ------
    ValueError
        If the rows are not finite, or a target lies outside the loss's range.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_gradhess.federated import GradientHolder
    >>> X, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    >>> answer = GradientHolder(X, y, random_state=0)(np.zeros(3), 3)
    >>> answer["gradient"], answer["plus"].shape
    (array([ -2.5       , -18.33333333, -20.83333333]), (3, 3))
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        loss: str = "squared_error",
        fit_intercept: bool = True,
        epsilon: float = 1.35,
        min_rows: int = 2,
        random_state: Any = None,
    ) -> None:
        y = np.asarray(y, dtype=np.float64)
        X = check_array(
            X,
            accept_sparse=("csr", "csc"),
            dtype=(np.float64, np.float32),
            ensure_all_finite=False,  # said below
        )
        values = X.data if hasattr(X, "indptr") else X
        if y.shape != X.shape[:1] or not (np.isfinite(y).all() and np.isfinite(values).all()):
            raise ValueError(
                f"X of shape {X.shape} and y of shape {y.shape} must be finite, and have one "
                "target a row. Drop or impute what is missing."
            )
        self.loss = make_loss(loss, epsilon=epsilon)
        self.loss.check_y(y)
        self.X, self.y, self.min_rows = X, y, min_rows
        self.fit_intercept = fit_intercept
        self._rng = as_generator(random_state)

    def __call__(self, coefficients: Array, n_batches: int = 0, bound: bool = False) -> Answer:
        """Gradient at these coefficients, of all rows and of batches with target noise.

        Parameters
        ----------
        coefficients : ndarray of shape (p,)
            Coefficients, the intercept in front if there is one.
        n_batches : int, default=0
            Batches to deal the rows to, about.
        bound : bool, default=False
            Calibrate the noise to the curvature of the quadratic that bounds the loss, where a step
            of some length is to be made, instead of the second derivative.

        Returns
        -------
        answer : dict
            "rows", their number; "gradient" of shape (p,), of their mean half loss. With batches
            "plus" and "minus" of shape (k, p), the gradients at targets y + xi and y - xi, where
            xi has the variance batch size times curvature; and "sizes" of shape (k,), the rows of
            each batch.
        """
        h, n = int(self.fit_intercept), len(self.y)
        if coefficients.shape != (self.X.shape[1] + h,):
            raise ValueError(
                f"coefficients has the shape {coefficients.shape}, but X has {self.X.shape[1]} "
                f"features, and fit_intercept={self.fit_intercept}. Agree on both with the server."
            )
        at = coefficients[h:], float(coefficients[0]) if h else 0.0
        slope, curvature = derivatives(self.X, self.y, self.loss, *at)
        assert slope is not None
        gradient = np.empty(len(coefficients))
        gradient[h:] = self.X.T @ slope / n
        gradient[:h] = slope.mean()
        answer: Answer = {"rows": n, "gradient": gradient}
        if n_batches:
            if bound:
                curvature = self.loss.stiffness(self.y, self.X @ at[0] + at[1])
            answer |= self._pairs(slope, curvature, max(n // n_batches, self.min_rows))
        return answer

    def _pairs(self, slope: Any, curvature: Any, size: int) -> Answer:
        n = len(self.y)
        size = min(size, n)
        noise = draw_target_noise(1.0, n, distribution="rademacher", random_state=self._rng)
        if curvature is not None:
            noise = noise * np.sqrt(curvature)
        batch = batch_index(n, size, 0, self._rng)
        sums = np.concatenate(
            [
                run.per_batch
                for run in batch_sums(
                    self.X,
                    RowCoefficients(np.column_stack([slope, noise])),
                    batch,
                    batch_size=size,
                    contiguous=size == 1,
                    has_intercept=self.fit_intercept,
                )
            ]
        )
        sizes = np.bincount(batch).astype(np.float64)
        clean, half = sums[:, 0] / sizes[:, None], sums[:, 1] / np.sqrt(sizes)[:, None]
        return {"plus": clean - half, "minus": clean + half, "sizes": sizes}


class FederatedFit(NamedTuple):
    """What the server knows in the end.

    Attributes
    ----------
    coef : ndarray of shape (n_features,)
        Coefficients.
    intercept : float
        Intercept; zero without one.
    converged : bool
        Whether the decrement met `tol`.
    n_rounds : int
        Questions to all holders.
    n_bytes : int
        Numbers that the holders sent, in bytes.
    history : list of dict
        For each look: decrement, floor, rounds, bytes.
    hessian : GradientCovarianceEstimator
        The Hessian where it was last made.
    """

    coef: Array
    intercept: float
    converged: bool
    n_rounds: int
    n_bytes: int
    history: list[dict[str, Any]]
    hessian: GradientCovarianceEstimator


def fit_holders(
    holders: Iterable[Holder],
    n_features: int,
    *,
    loss: str = "squared_error",
    alpha: float = 0.0,
    fit_intercept: bool = True,
    oversampling: float = 40.0,
    tol: float = 1e-2,
    max_iter: int = 30,
    map: Callable[..., Iterable[Answer]] = map,
) -> FederatedFit:
    """Fit a linear model to the rows of all holders, from their gradients alone.

    Parameters
    ----------
    holders : iterable of callable
        Each is called with coefficients of shape (p,), a number of batches and whether to bound
        the curvature, and answers as `GradientHolder` does.
    n_features : int
        Number of features.
    loss : {"squared_error", "log_loss", "poisson", "huber"}, default="squared_error"
        Loss whose gradients are sent.
    alpha : float, default=0.0
        Ridge penalty, which the server adds: ``alpha/2 ||coef||^2`` in units of the features, as
        with ``penalty_units="raw"`` of the estimators.
    fit_intercept : bool, default=True
        Whether the gradients have the intercept's coordinate in front.
    oversampling : float, default=40.0
        Pairs a coefficient that are asked for, of all holders together.
    tol : float, default=1e-2
        Share of the statistical error of the fit that the squared Newton decrement may have.
    max_iter : int, default=30
        Most steps.
    map : callable, default=map
        Asks the holders; that of an executor asks them at the same time.

    Returns
    -------
    fit : FederatedFit
        Coefficients, and how they were come by.

    Raises
    ------
    ValueError
        If a holder's answer is not finite or has another width, or `loss` is unknown; or if the
        gradients are not those of least squares, where `loss` says so; or an option is out of
        range.
    TypeError
        If an option is no number.

    Notes
    -----
    For least squares pairs are asked for where one starts and where one has arrived; in between
    conjugate gradients go by differences of mean gradients, ``H d = g(w + d) - g(w)``; the gradient
    after each step confirms that they were those of least squares. Other losses are asked for pairs
    of each place. Nobody knows the loss: progress is that the slope along a step falls. Classes
    that are separable are not found out.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_gradhess.federated import GradientHolder, fit_holders
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((4000, 2)) * [1, 1000]
    >>> y = X @ [1, 0.001] + rng.standard_normal(4000)
    >>> halves = [GradientHolder(X[i::2], y[i::2], random_state=i) for i in (0, 1)]
    >>> fit = fit_holders(halves, 2)
    >>> (fit.coef * [1, 1000]).round(1), fit.converged
    (array([1., 1.]), True)
    """
    check_scalar(n_features, "n_features", Integral, min_val=1)
    check_scalar(max_iter, "max_iter", Integral, min_val=1)
    check_scalar(alpha, "alpha", Real, min_val=0)
    check_scalar(tol, "tol", Real, min_val=0)
    check_scalar(oversampling, "oversampling", Real, min_val=1)
    made = make_loss(loss)
    p = n_features + fit_intercept
    asked = _Holders(list(holders), made, alpha, bool(fit_intercept), n_features, oversampling, map)
    goal = Goal(tol)
    history: list[dict[str, Any]] = []
    looks: list[Look] = []

    def watch(look: Look) -> bool:
        if made.quadratic and looks and look.point.W is not looks[-1].point.W:
            asked.confirm(looks[-1].point, look.point.gradient, 2 * looks[-1].way.left)
        looks.append(look)
        history.append(
            {
                "decrement": look.decrement,
                "floor": look.point.floor,
                "rounds": asked.rounds,
                "bytes": asked.bytes,
            }
        )
        return False

    with np.errstate(over="ignore", invalid="ignore"), blas_threads(p):
        point = asked.start()
        W, _, look, ending = descend(Rounds(asked, goal), point, goal, max_iter, watch)
        if made.quadratic and ending is Ending.CONVERGED and W is not look.point.W:
            asked.confirm(look.point, asked.gradient(W), 10 * goal.target(look.point))
    factor: Factor = look.point.rows.factor
    hessian = of_factor(
        GradientCovarianceEstimator,
        factor.factors[0],
        n_batches=factor.n_batches,
        n_samples=round(asked.problem.count),
        batch_size=factor.batch_size,
        has_intercept=bool(fit_intercept),
        loss=loss,
    )
    return FederatedFit(
        W[int(fit_intercept) :, 0],
        float(W[0, 0]) if fit_intercept else 0.0,
        ending is Ending.CONVERGED,
        asked.rounds,
        asked.bytes,
        history,
        hessian,
    )


class _Holders:
    """Holders of rows: the data side of a descent by rounds, which knows gradients alone."""

    def __init__(
        self,
        holders: list[Holder],
        loss: Any,
        alpha: float,
        has_intercept: bool,
        d: int,
        oversampling: float,
        map: Callable[..., Iterable[Answer]],
    ) -> None:
        if not holders:
            raise ValueError("There is no holder of rows. Pass one at least.")
        self.holders, self.map = holders, map
        self.problem = Problem(np.zeros((1, d)), np.zeros((1, 1)), None, loss, alpha, has_intercept)
        self.n_batches = -(-sketch_batches(self.problem.p, oversampling) // len(holders))
        self.rounds, self.bytes = 0, 0
        self.size = 0.0  # largest dispersion so far, that of the start: squares of the targets
        self.seen: list[Array] = []  # half differences that tell the same Hessian

    def start(self) -> Point:
        """Null model, where the intercept's gradient at zero tells the mean target."""
        problem = self.problem
        W = np.zeros((problem.p, 1))
        if problem.loss.own_unit:
            return self.at(W, Model.CURVATURE if problem.loss.quadratic else Model.STIFFNESS)
        if problem.has_intercept:
            slope = self._ask(W)[0][0]
            zero = np.zeros(1)
            W[0] = problem.loss.link(problem.loss.gradient(zero, zero) - slope)
        return self.at(W, Model.CURVATURE)

    def _ask(self, W: Array, n_batches: int = 0, bound: bool = False) -> tuple[Array, list[Answer]]:
        """Mean gradient of all rows, penalty included, and the answers: a round."""
        asked = ([argument] * len(self.holders) for argument in (W[:, 0], n_batches, bound))
        answers = list(self.map(_call, self.holders, *asked))
        self.rounds += 1
        p, total, rows = self.problem.p, np.zeros(self.problem.p), 0
        for number, answer in enumerate(answers):
            gradient = np.asarray(answer["gradient"], dtype=np.float64)
            if gradient.shape != (p,) or not np.isfinite(gradient).all():
                raise ValueError(
                    f"Holder {number} sent a gradient of shape {gradient.shape}, where {p} finite "
                    "numbers are asked for. Does it have the same features, and the intercept's "
                    "gradient in front?"
                )
            self.bytes += sum(np.asarray(value).nbytes for value in answer.values())
            total += answer["rows"] * gradient
            rows += int(answer["rows"])
        self._count(rows)
        return total[:, None] / rows + self.problem.ridge * W, answers

    def _count(self, rows: int) -> None:
        if self.problem.count != rows:
            self.problem = replace(self.problem, count=float(rows))

    def at(self, W: Array, model: Model, direction: Array | None = None) -> Point:
        """Mean gradient and pairs: a round."""
        gradient, answers = self._ask(W, self.n_batches, model is Model.STIFFNESS)
        plus, minus = (np.concatenate([a[name] for a in answers]) for name in ("plus", "minus"))
        sizes = np.concatenate([a["sizes"] for a in answers])
        root = np.sqrt(sizes)[:, None]
        half = root * (minus - plus) / 2
        if not self.problem.loss.quadratic:
            self.seen = []
        self.seen.append(half)
        factor = self._factor(np.concatenate(self.seen), float(sizes.sum()))
        # The scatter of the clean gradients is the dispersion times the Hessian
        clean = (plus + minus) / 2 + (self.problem.ridge * W)[:, 0] - gradient[:, 0]
        scatter = factor.decrement((root * clean).T) / max(len(sizes) - 1, 1)
        dispersion = 1.0 if self.problem.loss.likelihood else scatter / self.problem.p
        floor = dispersion * counted_error(self.problem)
        curvature = factor.factors[0][0, 0] ** 2 if self.problem.has_intercept else 0.0
        told = Told(model, factor, {"weight": 1.0, "curvature": curvature, "gain": 0.0})
        self.size = max(self.size, dispersion) if self.problem.loss.quadratic else dispersion
        rounding = (64 * _EPS) ** 2 * self.size
        return Point(W, np.nan, gradient, told, floor, rounding, 0.0)

    def _factor(self, half: Array, rows: float) -> Factor:
        """Hessian of half differences, each times the root of the rows of its batch."""
        p, k, shift = self.problem.p, len(half), np.zeros(self.problem.p - 1)
        if self.problem.has_intercept:
            first = half[:, 0]
            shift = first @ half[:, 1:] / max(float(first @ first), 1e-300)
            half = np.column_stack([first, half[:, 1:] - first[:, None] * shift])
        else:
            shift = np.zeros(p)
        triangle = triangular_factor(half) / np.sqrt(rows * len(self.seen))
        return triangles_factor(
            self.problem,
            shift,
            triangle[None],
            ratio=min(p / k, 0.5),
            batch_size=max(round(rows * len(self.seen) / k), 1),
            n_batches=k,
        ).factor

    def product(self, point: Point, U: Array, model: Model) -> Array:
        """Difference of the mean gradients along a direction: a round."""
        return self.gradient(point.W + U) - point.gradient

    def gradient(self, W: Array) -> Array:
        """Mean gradient alone: a round."""
        return self._ask(W)[0]

    def confirm(self, point: Point, gradient: Array, most: float) -> None:
        """Refuse gradients after a step that leave much more than those of least squares would."""
        found = float(point.rows.factor.decrement(gradient))
        if found > max(most, 10 * point.rounding):
            found, most = (x / max(point.floor, 1e-300) for x in (found, most))
            raise ValueError(
                f"The gradients after a step have a decrement of {found:.3g} statistical errors of "
                f"the fit, where those of least squares have less than {most:.3g}: the holders "
                "have another loss, or other rows than at the start. Pass their loss as loss=."
            )

    def fell(self, point: Point, after: Point) -> bool:
        """Whether the slope along the step fell."""
        return self._flatter(point, after.W - point.W, after.gradient)

    def _flatter(self, point: Point, U: Array, gradient: Array) -> bool:
        return bool(abs(np.sum(gradient * U)) < 0.9 * abs(np.sum(point.gradient * U)))

    def shortened(self, point: Point, U: Array) -> float:
        """Halve a step until the slope along it falls: a round each."""
        length = 1.0
        for _ in range(30):
            length /= 2
            if self._flatter(point, U, self.gradient(point.W + length * U)):
                return length
        return 0.0


def _call(holder: Holder, coefficients: Array, n_batches: int, bound: bool) -> Answer:
    return holder(coefficients, n_batches, bound)


def _pack(arrays: dict[str, Any]) -> bytes:
    """Arrays in NumPy's own format; nothing else can be in it."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpack(data: bytes) -> Answer:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def serve(holder: Holder, connection: Any) -> int:
    """Answer the questions that come over a connection, until it is closed.

    Parameters
    ----------
    holder : callable
        Who answers.
    connection : object
        Has `send_bytes`, `recv_bytes` and `close`, as `multiprocessing.connection.Connection`.
        Nothing but arrays crosses it, in NumPy's format without pickles: no code. What the holder
        refuses with a ValueError is answered with its message; any other error closes it.

    Returns
    -------
    n_answers : int
        Questions that were answered.

    Examples
    --------
    >>> from multiprocessing import Pipe
    >>> from threading import Thread
    >>> import numpy as np
    >>> from sklearn_gradhess.federated import GradientHolder, RemoteHolder, serve
    >>> here, there = Pipe()
    >>> holder = GradientHolder(np.arange(12.0).reshape(6, 2), np.arange(6.0))
    >>> thread = Thread(target=serve, args=(holder, there))
    >>> thread.start()
    >>> RemoteHolder(here)(np.zeros(3))["gradient"].round(1)
    array([ -2.5, -18.3, -20.8])
    >>> here.close()
    >>> thread.join()
    """
    n_answers = 0
    while True:
        try:
            question = _unpack(connection.recv_bytes())
        except EOFError:
            return n_answers
        try:
            answer = holder(
                question["coefficients"], int(question["n_batches"]), bool(question["bound"])
            )
        except ValueError as error:  # who asked can act on it
            answer = {_REFUSAL: np.array(str(error))}
        except BaseException:
            connection.close()
            raise
        connection.send_bytes(_pack(answer))
        n_answers += 1


class RemoteHolder:
    """A holder at the other end of a connection, where `serve` answers.

    Parameters
    ----------
    connection : object
        Has `send_bytes` and `recv_bytes`.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def __call__(self, coefficients: Array, n_batches: int = 0, bound: bool = False) -> Answer:
        """Ask, and wait for the answer.

        Parameters
        ----------
        coefficients : ndarray of shape (p,)
            Coefficients, the intercept in front if there is one.
        n_batches : int, default=0
            Batches to deal the rows to, about.
        bound : bool, default=False
            Whether to calibrate the noise to the curvature of the bound.

        Returns
        -------
        answer : dict
            As that of `GradientHolder`.

        Raises
        ------
        ValueError
            If the holder refuses the question, with its message.
        ConnectionError
            If the holder closed the connection.
        """
        question = {"coefficients": coefficients, "n_batches": n_batches, "bound": bound}
        self.connection.send_bytes(_pack(question))
        try:
            answer = _unpack(self.connection.recv_bytes())
        except EOFError:
            raise ConnectionError(
                "The holder closed the connection without an answer: an error at its side, which "
                "is said there."
            ) from None
        if _REFUSAL in answer:
            raise ValueError(f"The holder at the other end refuses: {answer[_REFUSAL]}")
        return answer
