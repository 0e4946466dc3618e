"""Shared checks, and the one place that imports what scikit-learn keeps private."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import _fit_context
from sklearn.utils import check_array, check_scalar
from sklearn.utils._openmp_helpers import _openmp_effective_n_threads as effective_n_threads
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.parallel import _get_threadpool_controller
from sklearn.utils.validation import _check_sample_weight, assert_all_finite, validate_data

from sklearn_gradhess._scale import swap_intercept

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks

    CALLBACK_FRAMES = 1
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in where scikit-learn has no callbacks."""

    CALLBACK_FRAMES = 0

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


__all__ = [
    "CALLBACK_FRAMES",
    "CallbackSupportMixin",
    "Interval",
    "StrOptions",
    "_fit_context",
    "blas_threads",
    "check_coef",
    "check_features",
    "check_gradients",
    "check_rows",
    "check_target",
    "check_weights",
    "effective_n_threads",
    "is_dask",
    "largest_entry",
    "output_kind",
    "refuse_cast",
    "refuse_foreign",
    "refuse_overflow",
    "unchanged_on_error",
    "with_callbacks",
]


# Collections whose conversion to NumPy would load or move everything without being asked to.
_FOREIGN = {
    "dask": "call .compute() on it, or pass its blocks to partial_fit one at a time; fit takes it "
    "where X is of dask too",
    "torch": "pass .detach().cpu().numpy()",
    "jax": "pass numpy.asarray(...) of it",
    "cupy": "pass .get()",
}


def blas_threads(n_features: int) -> Any:
    """Context in which BLAS has one thread if factorisations of this width gain from no more.

    Below a thousand columns two threads take longer than one, and a hundred times as long where
    another process wants the second core.
    """
    if n_features >= 1000:
        return nullcontext()
    return _get_threadpool_controller().limit(limits=1, user_api="blas")


def is_dask(array: Any) -> bool:
    """Whether an array or data frame is a dask collection; dask itself is not imported."""
    return type(array).__module__.partition(".")[0] in ("dask", "dask_expr")


def output_kind(estimator: Any) -> str:
    """Return what `set_output`, or the configuration, asks `transform` for: "default", ..."""
    return str(_get_output_config("transform", estimator)["dense"])


def refuse_foreign(**arrays: Any) -> None:
    """Raise TypeError for arrays that live elsewhere than in this process's memory."""
    for name, array in arrays.items():
        kind = type(array)
        package = kind.__module__.partition(".")[0].removesuffix("lib").removesuffix("_expr")
        if package in _FOREIGN:
            raise TypeError(
                f"{name} is a {package} {kind.__name__}, but NumPy arrays, SciPy sparse arrays and "
                f"data frames are taken here. Convert {name} first: {_FOREIGN[package]}."
            )


def largest_entry(values: Any) -> float:
    """Largest absolute value, by pieces that stay in cache and without a copy of the whole."""
    if sparse.issparse(values):
        values = values.data[:, None]
    step = max(1, 2**17 // max(values.shape[1], 1))
    pieces = (values[start : start + step] for start in range(0, len(values), step))
    return max((float(max(piece.max(), -piece.min())) for piece in pieces), default=0.0)


def refuse_cast(coef: npt.NDArray[np.float64], dtype: Any) -> None:
    """Raise ValueError where coefficients are beyond the range of the precision of X."""
    limits = np.finfo(dtype)
    largest = np.max(
        np.abs(coef.T, order="C"), axis=1, initial=0.0
    )  # of long rows: ten times faster
    if not np.all(largest <= limits.max):  # NaN included
        raise ValueError(
            f"The coefficients overflow {limits.dtype}: the largest is {largest.max():.3g}, for "
            f"{limits.max:.3g} at most. Pass X as float64, or rescale X or y."
        )
    if np.any((largest > 0) & (largest < limits.tiny)):
        worst = largest[largest > 0].min()
        raise ValueError(
            f"The coefficients vanish in {limits.dtype}: the largest is {worst:.3g}, for "
            f"{limits.tiny:.3g} at least. Pass X as float64, or rescale X or y."
        )


def check_features(estimator: Any, X: Any, *, reset: bool, **kwargs: Any) -> Any:
    """Validate X without reading it: CSR, CSC or dense, float32 or float64, never copied.

    Whether the values are finite is left to `refuse_overflow`, which looks at sums that are
    computed anyway.
    """
    refuse_foreign(X=X)
    with np.errstate(invalid="ignore"):  # sums that overflow in both directions
        X = validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse=("csr", "csc"),
            dtype=[np.float64, np.float32],
            ensure_all_finite=False,
            **kwargs,
        )
    return X if sparse.issparse(X) else np.asarray(X)


def check_rows(estimator: Any, X: Any, y: Any, *, reset: bool, **kwargs: Any) -> tuple[Any, Any]:
    """Validate rows with their targets: finite; CSR or dense, float32 or float64."""
    refuse_foreign(X=X, y=y)
    with np.errstate(invalid="ignore"):  # sums that overflow in both directions
        X, y = validate_data(
            estimator,
            X,
            y,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            reset=reset,
            **kwargs,
        )
    return canonical(X), y


def canonical(X: Any) -> Any:
    """Sparse rows with one entry a place, which is squared as it stands; dense ones as they are."""
    if not sparse.issparse(X) or X.has_canonical_format:
        return X
    X = X.copy()
    X.sum_duplicates()
    return X


def refuse_overflow(sums: npt.NDArray[np.floating], X: Any, *, estimator_name: str) -> None:
    """Raise ValueError if sums over rows of X are not finite, and say why."""
    if np.all(np.isfinite(sums)):
        return
    with np.errstate(invalid="ignore"):
        assert_all_finite(X, input_name="X", estimator_name=estimator_name)
    raise ValueError(
        f"The gradients overflow {X.dtype}: they are sums of features, as large as "
        f"{largest_entry(X):.3g}, times residuals. Rescale X or y, or pass float64."
    )


def check_target(y: Any, n_samples: int, *, optional: bool) -> npt.NDArray[np.float64] | None:
    """Validate a vector of real targets, as float64 of shape (n_samples,).

    Where it is `optional`, labels that are not numbers and several targets pass as None: a
    pipeline hands its targets to every step, and not every step has a use for them.
    """
    refuse_foreign(y=y)
    if y is None:
        return None
    if optional:
        values = np.asarray(y)
        if values.dtype.kind == "O":
            with suppress(TypeError, ValueError):
                y = values = values.astype(np.float64)
        if values.dtype.kind in "OSTU" or (values.ndim == 2 and values.shape[1] > 1):
            _check_length(len(values), n_samples)
            return None
    try:
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise ValueError(
            f"y has labels where a gradient needs numbers: {error}. Encode two classes as 0 and 1, "
            "or pass y=None."
        ) from error
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(
            f"y must be a vector, got shape {y.shape}. One gradient belongs to one target: fit one "
            "estimator a column, or pass y=None with noise='antithetic'."
        )
    _check_length(len(y), n_samples)
    return y


def _check_length(n_targets: int, n_samples: int) -> None:
    if n_targets != n_samples:
        raise ValueError(
            f"X and y have inconsistent numbers of samples: {n_samples} rows against {n_targets}."
        )


def check_coef(coef: Any, intercept: Any, n_features: int) -> tuple[Any, float]:
    """Validate the coefficients at which gradients are taken; None stays None, for zero."""
    refuse_foreign(coef=coef, intercept=intercept)
    intercept = np.asarray(intercept, dtype=np.float64)
    if intercept.size != 1 or not np.isfinite(intercept).all():
        raise ValueError(f"intercept must be one finite number, got {intercept}.")
    if coef is None:
        return None, float(intercept.ravel()[0])
    coef = np.asarray(coef, dtype=np.float64)
    if coef.shape != (n_features,) and coef.shape != (1, n_features):
        raise ValueError(
            f"coef has shape {coef.shape}, but X has {n_features} features: pass one coefficient a "
            "feature."
        )
    if not np.isfinite(coef).all():
        raise ValueError("coef has NaN or infinite entries. Did the optimiser diverge?")
    return coef.ravel(), float(intercept.ravel()[0])


def check_weights(
    sample_weight: Any, X: Any, *, allow_zero: bool = False
) -> npt.NDArray[np.float64] | None:
    """Validate sample weights: None, or nonnegative float64 of which one at least is positive.

    With `allow_zero` all may be zero.
    """
    if sample_weight is None:
        return None
    refuse_foreign(sample_weight=sample_weight)
    given = np.asarray(sample_weight)
    if allow_zero and given.dtype.kind in "biuf" and not given.any():
        # scikit-learn refuses zeros; of ones it sees the shape
        return np.zeros_like(_check_sample_weight(given + 1.0, X, dtype=np.float64))
    # A number stands for equal weights; the dtype of X must not decide that of the weights.
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if weights.min() < 0:
        raise ValueError(f"sample_weight must be >= 0, got a minimum of {weights.min():g}.")
    if not weights.any():
        raise ValueError("sample_weight is zero for every row: no row is left to learn from.")
    return weights


def check_gradients(
    gradients: Any,
    antithetic: Any,
    loss_curvature: Any,
    *,
    noise: str,
    has_intercept: bool,
    intercept_position: str = "first",
    gradient_scale: float = 1.0,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None, np.dtype[Any]]:
    """Validate gradients, one batch a row, and bring them into the form that all code takes.

    That is: of the mean half loss, the intercept's in front, noise of n times the curvature.

    Returns
    -------
    gradients : ndarray of shape (n_batches, p)
        float64.
    antithetic : ndarray of shape (n_batches, p) or None
        float64.
    dtype : dtype
        Of the gradients as they were passed, float32 or float64.
    """
    refuse_foreign(gradients=gradients, antithetic=antithetic, loss_curvature=loss_curvature)
    scale, at_the_end = _check_convention(has_intercept, intercept_position, gradient_scale)
    if noise == "antithetic" and antithetic is None:
        raise ValueError(
            "noise='antithetic' needs two gradients a batch: those at targets y + xi and, as "
            "antithetic=, those at y - xi; got only one set. For one noisy gradient a batch use "
            "noise='single'."
        )
    if noise != "antithetic" and antithetic is not None:
        raise ValueError(
            f"antithetic gradients were passed, but noise={noise!r} takes one gradient a batch. "
            "Use noise='antithetic'."
        )
    gradients = check_array(gradients, dtype=[np.float64, np.float32], input_name="gradients")
    dtype = gradients.dtype
    gradients = gradients.astype(np.float64) / scale
    if gradients.shape[1] <= has_intercept:
        raise ValueError(
            "gradients has one column, the intercept's, and no feature. Did you mean "
            "has_intercept=False?"
        )
    if at_the_end:
        gradients = swap_intercept(gradients)
    if antithetic is None:
        if loss_curvature is not None:
            raise ValueError(
                "loss_curvature scales the noise alone, which only noise='antithetic' separates "
                "from the rest of the gradient. Draw the noise with variance batch_size times the "
                "curvature instead."
            )
        return gradients, None, dtype
    antithetic = check_array(antithetic, dtype=np.float64, input_name="antithetic")
    if antithetic.shape != gradients.shape:
        raise ValueError(
            f"antithetic has shape {antithetic.shape}, gradients {gradients.shape}: both must hold "
            "the gradients of the same batches in the same order."
        )
    antithetic = antithetic / scale
    if at_the_end:
        antithetic = swap_intercept(antithetic)
    if loss_curvature is not None:
        v = np.asarray(loss_curvature, dtype=np.float64)
        if v.shape not in ((), (len(gradients),)) or not np.all((v >= 0) & np.isfinite(v)):
            worst = v.min() if v.size else np.nan
            raise ValueError(
                f"loss_curvature must be one finite number >= 0 or one for each of the "
                f"{len(gradients)} batches, got shape {v.shape} and a minimum of {worst:g}."
            )
        half = 0.5 * (antithetic - gradients) * np.sqrt(v).reshape(-1, 1)
        clean = 0.5 * (antithetic + gradients)
        gradients, antithetic = clean - half, clean + half
    return gradients, antithetic, dtype


def _check_convention(
    has_intercept: Any, intercept_position: Any, gradient_scale: Any
) -> tuple[float, bool]:
    """Validate how gradients are written down: their scale, and whether the intercept is last."""
    if not isinstance(has_intercept, bool | np.bool_):
        raise ValueError(f"has_intercept must be True or False, got {has_intercept!r}.")
    if intercept_position not in ("first", "last"):
        raise ValueError(
            f"intercept_position must be 'first' or 'last', got {intercept_position!r}."
        )
    scale = check_scalar(gradient_scale, "gradient_scale", Real)
    if not 0 < scale < np.inf:
        raise ValueError(
            f"gradient_scale must be finite and > 0, got {gradient_scale!r}: the factor between "
            "the gradients and those of the mean half loss, such as 2 for torch's MSELoss."
        )
    return float(scale), bool(has_intercept) and intercept_position == "last"


@contextmanager
def unchanged_on_error(estimator: Any) -> Iterator[None]:
    """Put the estimator back as it was if the block raises.

    Fitted state must be replaced, never changed in place, for this to hold.
    """
    before = vars(estimator).copy()
    # A generator of the caller's is the one thing that is changed in place
    source = getattr(estimator, "random_state", None)
    stream = getattr(source, "bit_generator", getattr(source, "_bit_generator", None))
    state = None if stream is None else stream.state
    try:
        yield
    except BaseException:
        if stream is not None:
            stream.state = state
        # scikit-learn tears callbacks down after this, and needs to know which
        names = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")
        callbacks = {name: vars(estimator)[name] for name in names if name in vars(estimator)}
        vars(estimator).clear()
        vars(estimator).update(before)
        vars(estimator).update(callbacks)
        raise
