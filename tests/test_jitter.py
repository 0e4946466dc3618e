"""The option --jitter: what it does to data, and that tests see it."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from sklearn_gradhess import PreconditionedSGDRegressor, _solver
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._rows import Problem
from tests import jitter


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array, sparse.csc_matrix])
def test_floats_move_by_a_few_roundings_alike_in_every_container(rng, container):
    X = rng.standard_normal((200, 3)) * (rng.random((200, 3)) < 0.7)
    moved = jitter.shaken(container(X), 5)
    assert type(moved) is type(container(X))
    dense = moved.toarray() if sparse.issparse(moved) else moved
    assert_array_equal(dense, jitter.shaken(X, 5))
    relative = (dense[X != 0] / X[X != 0] - 1) / jitter.ROUNDING
    # 400 normals of variance one, of 200 independent pairs: five standard errors; rounding adds 0.1
    assert abs(np.mean(relative**2) - 1) < 0.5
    assert not np.array_equal(dense, jitter.shaken(X, 6))


@pytest.mark.parametrize(
    "values", [np.arange(6.0), np.eye(3), np.arange(3), np.float32([0.1, 0.2]), ["a", "b"], None]
)
def test_what_is_exact_everywhere_stays(values):
    assert jitter.shaken(values, 1) is values


def test_the_largest_numbers_stay_finite_and_what_is_not_finite_stays():
    values = np.full(1000, np.finfo(float).max)
    values[:3] = np.nan, np.inf, 0.5
    moved = jitter.shaken(values, 1)
    assert np.isfinite(moved[2:]).all()
    assert_array_equal(moved[:2], values[:2])


def test_rows_are_dealt_together(rng):
    X = np.arange(20.0)[:, None]
    dealt, y, weight, none = jitter.dealt([X, list(range(20)), np.arange(20), None], 3)
    assert none is None
    assert_array_equal(dealt[:, 0], y)
    assert_array_equal(dealt[:, 0], weight)
    assert_array_equal(np.sort(y), np.arange(20))
    assert not np.array_equal(y, np.arange(20))


@pytest.mark.parametrize("arrays", [[np.eye(3), np.arange(2)], [object(), np.arange(2)], [None]])
def test_what_has_no_common_rows_is_handed_on(arrays):
    assert jitter.dealt(arrays, 0) is arrays


def test_methods_see_other_rows_once_and_the_same_each_time(rng):
    seen = []

    class Watched(PreconditionedSGDRegressor):
        def _validate(self, X, y, sample_weight, **keywords):
            seen.append(np.column_stack([X, y, sample_weight]))
            return super()._validate(X, y, sample_weight, **keywords)

    X, y, weight = rng.standard_normal((50, 2)), rng.standard_normal(50), rng.uniform(size=50)
    with pytest.MonkeyPatch.context() as patch:
        jitter.apply(patch, None, 4)
        Watched().fit(X, y, weight)
        Watched().partial_fit(X, sample_weight=weight, y=y)
    given = np.column_stack([X, y, weight])
    assert_array_equal(*seen)
    assert not np.array_equal(seen[0], given)
    order = np.lexsort(given.T)
    assert_allclose(seen[0][np.lexsort(seen[0].T)], given[order], rtol=1e-13)


def test_the_solver_sees_other_rows(rng):
    X, Y = rng.standard_normal((50, 2)), rng.standard_normal((50, 1))
    given = Problem(X, Y, None, make_loss("squared_error"), 0.1, True)
    (seen,) = jitter.jittered_solve(lambda problem, settings: [problem], 2)(given, None)
    assert not np.allclose(seen.X, X)
    assert_allclose(seen.X.T @ seen.Y, X.T @ Y)
    assert (seen.alpha, seen.has_intercept, seen.weight) == (0.1, True, None)


def test_a_module_that_solves_has_its_solver_replaced(monkeypatch):
    class Module:
        solve = staticmethod(_solver.solve)

    jitter.apply(monkeypatch, Module, 1)
    assert Module.solve.__wrapped__ is _solver.solve
