"""Data as they might be on another processor: `pytest --jitter SEED`.

Kernels of linear algebra differ between processors in the order in which they add, which moves
results in their last digits. So do the digits of data that were themselves computed, and another
order of rows. Under the option every call of `fit`, `partial_fit` and the solver's `solve` from a
test sees its rows in another order and its floats multiplied by ``1 + 1e-15 z``, z normal, each
seed another draw: a test that passes under a dozen seeds hangs on no digit that a processor
decides. Arrays of whole numbers (counts, labels, dummies) are exact on every processor, and float32
has no such digits: their values stay.

The draws depend on the seed and the shape alone, so two fits of the same rows see the same data. A
test whose subject is the order of rows or equality of bits says so with
``@pytest.mark.unjittered("reason")``.
"""

import dataclasses
import functools
import inspect
import threading

import numpy as np
from scipy import sparse
from sklearn.utils import _safe_indexing

from sklearn_gradhess import (
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
    _solver,
)

ROUNDING = 1e-15
ESTIMATORS = (GradientCovarianceEstimator, PreconditionedSGDClassifier, PreconditionedSGDRegressor)
ROWS = ("X", "y", "sample_weight")
_inside = threading.local()  # calls within calls have jittered data already


def shaken(values, seed):
    """Multiply an array by ``1 + 1e-15 z``, with z the same for dense and sparse."""
    if not (isinstance(values, np.ndarray) or sparse.issparse(values)) or values.ndim > 2:
        return values
    entries = values.tocoo() if sparse.issparse(values) else None
    given = values if entries is None else entries.data
    if given.dtype != np.float64 or np.array_equal(given, np.rint(given)):
        return values
    n_rows, n_columns = (*values.shape, 1)[:2]
    u, v = np.random.default_rng([seed, n_rows]).standard_normal((2, n_rows))
    angle = np.random.default_rng([seed, 0, n_columns]).uniform(0, 2 * np.pi, n_columns)
    if entries is not None:
        rows, columns = entries.row, entries.col
    else:
        rows, columns = np.indices((n_rows, n_columns)).reshape(2, *values.shape)
    z = u[rows] * np.cos(angle[columns]) + v[rows] * np.sin(angle[columns])
    with np.errstate(all="ignore"):
        moved = given * (1 + ROUNDING * z)
    moved = np.where(np.isfinite(moved), moved, given)
    if entries is None:
        return moved
    return type(values)((moved, (entries.row, entries.col)), shape=values.shape)


def dealt(arrays, seed):
    """Shake arrays, and deal the rows that they share in another order."""
    rows = [not (a is None or np.isscalar(a)) for a in arrays]
    lengths = {_length(a) for a, given in zip(arrays, rows, strict=True) if given}
    if len(lengths) != 1 or None in lengths:
        return arrays  # to be refused, or containers of another kind
    order = np.random.default_rng([seed, *lengths]).permutation(lengths.pop())
    return [
        _safe_indexing(shaken(a, seed), order) if given else a
        for a, given in zip(arrays, rows, strict=True)
    ]


def _length(array):
    """Return the number of rows of what has an order of them that can be changed, else None."""
    if isinstance(array, np.ndarray) or hasattr(array, "iloc"):
        return array.shape[0] if array.ndim else None
    if sparse.issparse(array):
        return array.shape[0] if array.format in ("csr", "csc") else None
    return len(array) if isinstance(array, list) else None


def jittered_method(method, seed):
    """Return a method that sees other rows than it is given."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        if getattr(_inside, "a_call", False):
            return method(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        names = [name for name in ROWS if name in bound.arguments]
        rows = dealt([bound.arguments[name] for name in names], seed)
        bound.arguments.update(zip(names, rows, strict=True))
        _inside.a_call = True
        try:
            return method(*bound.args, **bound.kwargs)
        finally:
            _inside.a_call = False

    return wrapper


def jittered_solve(solve, seed):
    """Return a `solve` that sees another problem than it is given."""

    @functools.wraps(solve)
    def wrapper(problem, *args, **kwargs):
        X, Y, weight = dealt([problem.X, problem.Y, problem.weight], seed)
        return solve(dataclasses.replace(problem, X=X, Y=Y, weight=weight), *args, **kwargs)

    return wrapper


def apply(patch, module, seed):
    """Jitter what the tests of a module call."""
    for cls in ESTIMATORS:
        for name in ("fit", "partial_fit"):
            patch.setattr(cls, name, jittered_method(vars(cls)[name], seed))
    if getattr(module, "solve", None) is _solver.solve:
        patch.setattr(module, "solve", jittered_solve(_solver.solve, seed))
