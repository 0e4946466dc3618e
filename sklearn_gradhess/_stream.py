"""What `partial_fit` does to an estimator: go on with its stream, from its fit if there was one."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from sklearn_gradhess._auto_penalty import Law
from sklearn_gradhess._block_newton import Quadratic
from sklearn_gradhess._diagonal_stream import DiagonalStream
from sklearn_gradhess._kept_rows import KeptRows
from sklearn_gradhess._memory import allowed
from sklearn_gradhess._online import (
    ConvexStream,
    LeastSquaresStream,
    OnlineModel,
    Seen,
    start_stream,
)
from sklearn_gradhess._penalty import Penalty, Spread, per_feature
from sklearn_gradhess._plan import streams_by_diagonal
from sklearn_gradhess._preconditioner import factorize
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._squares import Squares
from sklearn_gradhess._validation import blas_threads, refuse_cast

__all__ = ["FitSaw", "StreamMixin", "fit_saw", "stream_classes"]

Array = npt.NDArray[np.float64]
AnyStream = OnlineModel | DiagonalStream
_CONSTANT = 1e-14  # deviation over mean of a feature that is constant but for rounding
_LARGEST = 1e152  # whose square is a float, and the sum of many
# What `fit` tells of itself, and a stream has not
_REPORTS = (
    "history_",
    "n_iter_",
    "n_passes_",
    "learning_rate_",
    "converged_",
    "n_rounds_",
    "preconditioner_",
    "_n_clipped",
    "alpha_",
    "_estimator",
    "_sketched",
    "_ridge",
    "_dispersion",
    "_degrees",
)
# and what the stream has taken over
_FIT = ("_factors", "_fit_saw", "_diagonal")


class FitSaw(NamedTuple):
    """What `fit` was told, how many rows it has seen, and the diagonal if that is all it left."""

    loss: Any
    has_intercept: bool
    n_targets: int
    ridge: Array
    seen: Seen
    spread: Spread
    law: Law
    targets: Any = 0.0  # their weighted sum, where they are classes
    squares: Squares | None = None


class _Solution:
    """Fitted attribute of an estimator: stored, or the solution of its stream, found when asked.

    Without a `__set__` it steps back where the instance has the attribute itself, as after `fit`.
    A stream stores none while its solution is still to be found; reading finds it, and changes
    nothing.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if "_online" not in vars(instance):
            raise AttributeError(
                f"{type(instance).__name__!r} object has no attribute {self.name!r}"
            )
        return instance._solution()[self.name]


class StreamMixin:
    """Models of streams for an estimator that tells how coefficients become attributes.

    After `partial_fit` either `coef_` and `intercept_` are stored, as after `fit`, or rows wait and
    the two are found when somebody looks.
    """

    coef_ = _Solution()
    intercept_ = _Solution()

    alpha: Any
    penalty_units: str
    preconditioner: Any
    fit_intercept: bool
    early_stopping: bool
    noise: str
    _factors: Sequence[Array]
    _fit_saw: FitSaw
    alpha_: Any

    @property
    def _begun(self) -> bool:
        """Whether there is a fit or a stream to go on from."""
        return "_online" in vars(self) or "_factors" in vars(self)

    def _solution(self) -> dict[str, Any]:
        model: AnyStream = self._online
        with blas_threads(self.n_features_in_):  # type: ignore[attr-defined]
            W = _finite(model)
        return self._attributes_of(W, self._stream_dtype)

    def _attributes_of(self, W: Array, dtype: Any) -> dict[str, Any]:
        refuse_cast(W[int(self.fit_intercept) :], dtype)
        return self._attributes(W, dtype)  # type: ignore[attr-defined]

    def _learn(self, X: Any, Y: Array, loss: Any, sample_weight: Array | None) -> None:
        """Go on with another chunk of validated rows."""
        if self.early_stopping or self.noise == "single":
            which = "early_stopping=True" if self.early_stopping else "noise='single'"
            raise ValueError(
                f"{which} is for fit: partial_fit sees each row once, and the row itself. Set "
                "early_stopping=False and leave noise at its default, or use fit."
            )
        _refuse_overflow(X, Y)
        weight = np.ones(len(Y)) if sample_weight is None else sample_weight
        if self._begun and not weight.any():
            return
        with blas_threads(X.shape[1]):
            model = self._stream(X, Y, loss, weight)
            kept = _kept(X, Y, weight, model.seen.unit)
            if len(kept):
                penalty = Penalty(per_feature(self.alpha, X.shape[1]), self.penalty_units)
                _refuse_unknown(model, penalty)
                model = model.update(kept, penalty)
            attributes = self._found(model, X.dtype)
        for name in (*_REPORTS, *_FIT, "coef_", "intercept_"):
            vars(self).pop(name, None)
        vars(self).update(attributes)
        self._keep_loss(model.loss, model.fitted)  # type: ignore[attr-defined]
        self._online = model
        self._stream_dtype = X.dtype
        self.t_ = getattr(self, "t_", 0) + len(Y)
        if model.trouble:
            warnings.warn(model.trouble, ConvergenceWarning, stacklevel=4)

    def _found(self, model: AnyStream, dtype: Any) -> dict[str, Any]:
        """Attributes to store: none where the solution is still to be found."""
        if not model.settled:
            return {}
        return self._attributes_of(_finite(model), dtype)

    def _stream(self, X: Any, Y: Array, loss: Any, weight: Array) -> AnyStream:
        """Return the model so far: the stream's, or that of the fit before it, or none yet."""
        (d, t), has_intercept = (X.shape[1], Y.shape[1]), bool(self.fit_intercept)
        model: AnyStream | None = getattr(self, "_online", None)
        if model is not None and model.seen.n_rows:
            _refuse_change(model, loss, has_intercept, t)
            return model
        if "_factors" in vars(self):
            return self._from_fit(X, Y, loss, has_intercept)
        seen = Seen(float(weight.max()) or 1.0)
        if streams_by_diagonal(
            d,
            n_columns=1 if loss.quadratic else t,
            preconditioner=self.preconditioner,
            memory=allowed(),
        ):
            return DiagonalStream.empty(loss, d, t, has_intercept=has_intercept, seen=seen)
        self._refuse_unfit(X, Y)  # type: ignore[attr-defined]
        return start_stream(loss, d, t, has_intercept=has_intercept, unit=seen.unit)

    def _from_fit(self, X: Any, Y: Array, loss: Any, has_intercept: bool) -> AnyStream:
        """Return the model that stands for the solution of `fit` and its Hessian."""
        saw, factors = self._fit_saw, self._factors
        _refuse_change(saw, loss, has_intercept, Y.shape[1])
        loss = saw.loss  # at its scale
        W = self._coefficients()  # type: ignore[attr-defined]
        spread = _spread_of(saw, factors)
        if saw.squares is not None:
            return DiagonalStream.from_fit(
                loss,
                saw.squares.times(saw.seen.weight),
                W,
                has_intercept=has_intercept,
                seen=saw.seen,
                ridge=saw.ridge[int(has_intercept) :] * saw.seen.weight,
                spread=spread,
                law=saw.law,
                targets=saw.targets,
            )
        self._refuse_unfit(X, Y)  # type: ignore[attr-defined]
        quadratics = []
        for j, w in enumerate(W.T):
            root = np.sqrt(saw.seen.weight) * factors[min(j, len(factors) - 1)]
            # Where W is penalised the loss alone has a slope: minus that of the penalty
            slope = -saw.ridge * saw.seen.weight * w
            # R'(R w - q) = slope
            target = root @ (w - factorize(root).solve(slope))
            quadratics.append(Quadratic(root, target))
        if loss.quadratic:
            return LeastSquaresStream.from_fit(
                loss, quadratics, has_intercept=has_intercept, seen=saw.seen, spread=spread
            )
        return ConvexStream.from_fit(
            loss, quadratics, W, has_intercept=has_intercept, seen=saw.seen, spread=spread
        )


def _finite(model: AnyStream) -> Array:
    W = model.coefficients
    if not np.isfinite(W).all():
        raise ValueError(
            "The coefficients overflow: features are too small, or targets too large. Rescale X "
            "or y."
        )
    return W


def stream_classes(known: Any, classes: Any, y: Any) -> Any:
    """Return all labels that may come, sorted: those known from before, or named now.

    Raises
    ------
    ValueError
        If no labels are known, others than these are named, or y has another one.
    """
    if known is None:
        if classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        known = np.unique(classes)
    elif classes is not None and not np.array_equal(np.unique(classes), known):
        raise ValueError(
            f"classes={np.unique(classes)} is not the same as on the last call to partial_fit, "
            f"was: {known}."
        )
    unknown = np.setdiff1d(y, known)
    if len(unknown):
        raise ValueError(
            f"y has labels {unknown.tolist()} that are not among classes {known.tolist()}. Name "
            "all classes on the first call."
        )
    return known


def fit_saw(problem: Problem, weight: Array, unit: float, spread: Spread, law: Law) -> FitSaw:
    """Return what a stream needs to know of the rows of a fit, their weights in a unit."""
    return FitSaw(
        problem.loss,
        problem.has_intercept,
        problem.Y.shape[1],
        problem.ridge[:, 0],
        Seen(unit).plus(weight[weight > 0]),
        spread,
        law,
        weight @ problem.Y if problem.loss.likelihood else 0.0,
    )


def _spread_of(saw: FitSaw, factors: Sequence[Array]) -> Spread:
    """Spread of the features of a fit: taken, or as the Hessian of least squares has it."""
    weight = saw.seen.weight
    if saw.spread.weight:
        return saw.spread
    if not (saw.loss.quadratic and saw.has_intercept):
        return Spread.unknown(weight, len(saw.ridge) - saw.has_intercept)
    if saw.squares is not None:
        return Spread(weight, saw.squares.mean[:, 0], weight * saw.squares.scatter[:, 0])
    root = factors[0]
    mean = root[0, 1:] / root[0, 0]
    variance = np.einsum("ij,ij->j", root[1:, 1:], root[1:, 1:])
    variance[variance <= (_CONSTANT * mean) ** 2] = 0.0
    return Spread(weight, mean, weight * variance)


def _kept(X: Any, Y: Array, weight: Array, unit: float) -> KeptRows:
    """Copy the rows that have a weight: the caller may change theirs."""
    largest = float(weight.max(initial=0.0))
    with np.errstate(over="ignore", under="ignore"):
        weight = weight / unit
    if not np.isfinite(weight).all():
        raise ValueError(
            f"sample_weight has {largest:g} after weights of at most {unit:g}: their "
            "ratio overflows. Rescale sample_weight."
        )
    index = np.flatnonzero(weight)
    X = X[index] if not sparse.issparse(X) else sparse.csr_array(X)[index]
    return KeptRows(X, Y[index], weight[index], np.ones(len(index)))


def _refuse_overflow(X: Any, Y: Array) -> None:
    values = X.data if sparse.issparse(X) else X
    for name, array in (("X", values), ("y", Y)):
        largest = float(np.abs(array).max()) if array.size else 0.0
        if largest > _LARGEST:
            raise ValueError(
                f"{name} has an entry of {largest:.3g}, and the sum of squares would overflow: "
                f"features or targets are too large. Rescale {name}."
            )


def _refuse_unknown(model: AnyStream, penalty: Penalty) -> None:
    if penalty.present and penalty.units == "std" and np.isnan(model.spread.mean).any():
        raise ValueError(
            f"alpha={penalty.alpha!r} with penalty_units='std' needs the standard deviations of "
            f"all {model.seen.n_rows} rows so far, and the fit had no such penalty and took none. "
            "Set penalty_units='raw' or alpha=0, or fit with an alpha above zero, however small."
        )


def _refuse_change(model: AnyStream | FitSaw, loss: Any, has_intercept: bool, t: int) -> None:
    """Raise ValueError where a parameter has changed that the rows so far were seen with."""
    then = {"fit_intercept": model.has_intercept, "loss": model.loss.name, **model.loss.parameters}
    now = {"fit_intercept": has_intercept, "loss": loss.name, **loss.parameters}
    for name, value in now.items():
        if name in then and then[name] != value:
            raise ValueError(
                f"{name}={value!r}, but the rows so far were seen with {name}={then[name]!r}: a "
                "stream keeps its model. Set it back, or start a new estimator."
            )
    if model.n_targets != t:
        raise ValueError(
            f"y has {t} targets, but {model.n_targets} were fitted before. Pass the same targets, "
            "or start a new estimator."
        )
