"""What a fitted object weighs: one triangular factor, from which the rest is derived when asked."""

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess import (
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
)
from sklearn_gradhess._fitted import OneFactor
from sklearn_gradhess.diagnostics import calibration_report

D = 120
MOST = 1.6  # p x p matrices of doubles
DERIVED = (
    "covariance_",
    "precision_",
    "location_",
    "gradient_covariance_",
    "mean_gradient_",
    "mean_intercept_gradient_",
    "excess_risk_",
    "effective_rank_",
    "expected_error_",
    "shrinkage_",
    "correction_",
    "noise_variance_",
    "n_batches_",
    "n_samples_seen_",
)
REGRESSORS = {
    "many rows": {},
    "huber": {"loss": "huber"},
    "no intercept": {"fit_intercept": False},
    "identity": {"preconditioner": "identity", "tol": 10.0},
    "single": {"noise": "single", "max_iter": 200},
    "given": {"preconditioner": GradientCovarianceEstimator(random_state=0)},
}


def rows(n, d=D):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d)) + 1.0
    return X, X[:, 0] + rng.standard_normal(n)


def matrices_in_memory(value, seen=None):
    """Bytes of all arrays within, each counted once, over those of a p x p matrix of doubles."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return 0.0
    seen[id(value)] = value
    if isinstance(value, np.ndarray):
        if value.base is not None:
            return matrices_in_memory(value.base, seen)
        return value.nbytes / (8 * D**2)
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    else:
        parts = vars(value).values() if hasattr(value, "__dict__") else ()
    return sum(matrices_in_memory(part, seen) for part in parts)


def matrices_pickled(value):
    return len(pickle.dumps(value)) / (8 * D**2)


@pytest.mark.parametrize(
    ("name", "n"),
    [*((name, 12_000) for name in REGRESSORS), ("many rows", 900), ("huber", 900), ("given", 900)],
)
def test_a_regressor_keeps_one_factor(name, n):
    model = PreconditionedSGDRegressor(random_state=0, **REGRESSORS[name]).fit(*rows(n))
    most = MOST + ("preconditioner" in REGRESSORS[name] and name == "given")  # and what was given
    assert matrices_pickled(model) < most
    assert matrices_in_memory(model) < most


def test_two_classes_are_no_heavier():
    X, y = rows(3000)
    model = PreconditionedSGDClassifier(random_state=0).fit(X, y > y.mean())
    assert matrices_pickled(model) < MOST
    assert matrices_in_memory(model) < MOST


@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_what_was_derived_is_not_pickled(noise):
    estimator = GradientCovarianceEstimator(noise=noise, batch_size=4, random_state=0)
    estimator.partial_fit(*rows(2000))
    untouched = matrices_pickled(estimator)
    for name in DERIVED:
        getattr(estimator, name)
    calibration_report(estimator)
    estimator.transform(rows(3)[0])
    assert matrices_pickled(estimator) == untouched < MOST


@pytest.mark.parametrize("shrinkage", [None, 0.2, "oas"])
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "copy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copies_tell_the_same(shrinkage, how, dtype):
    X, y = rows(400, 5)
    estimator = GradientCovarianceEstimator(shrinkage=shrinkage, batch_size=3, random_state=0)
    estimator.fit(X.astype(dtype), y)
    again = {
        "pickle": lambda e: pickle.loads(pickle.dumps(e)),
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
    }[how](estimator)
    for name in DERIVED:
        assert_array_equal(getattr(again, name), getattr(estimator, name), err_msg=name)
    assert_array_equal(again.transform(X), estimator.transform(X))
    again.partial_fit(X, y)
    assert (again.n_samples_seen_, estimator.n_samples_seen_) == (800, 400)


def test_an_attribute_that_was_read_is_not_computed_again():
    estimator = GradientCovarianceEstimator(random_state=0).fit(*rows(300, 4))
    for name in ("covariance_", "precision_", "location_", "gradient_covariance_"):
        assert getattr(estimator, name) is getattr(estimator, name)
    before = dict(vars(estimator))
    estimator.transform(rows(3, 4)[0])
    assert all(vars(estimator)[name] is value for name, value in before.items())


def test_no_attribute_is_there_before_fit():
    estimator = GradientCovarianceEstimator()
    assert not [name for name in DERIVED if hasattr(estimator, name)]
    check_is_fitted(estimator.fit(*rows(100, 3)))
    assert all(hasattr(estimator, name) for name in DERIVED)
    assert not [name for name in DERIVED if hasattr(clone(estimator), name)]


def test_store_precision_hides_the_attribute_and_not_the_matrix():
    X, _ = rows(300, 4)
    estimator = GradientCovarianceEstimator(store_precision=False, random_state=0).fit(X)
    assert estimator.precision_ is None
    assert_allclose(estimator.get_precision(), np.linalg.inv(estimator.covariance_), rtol=1e-8)


def test_features_of_the_smallest_units_have_numbers_in_float32():
    X = rows(400, 4)[0].astype(np.float32)
    whole = GradientCovarianceEstimator(random_state=0).fit(X.astype(np.float64))
    for unit in (1e-20, 1e-25, 1e-30):
        small = GradientCovarianceEstimator(random_state=0).fit(X * np.float32(unit))
        assert_allclose(small.covariance_ / unit**2, whole.covariance_, rtol=1e-4, atol=1e-5)
        assert_allclose(small.precision_ * unit**2, whole.precision_, rtol=1e-3, atol=1e-4)
        assert_allclose(small.effective_rank_, whole.effective_rank_, rtol=1e-4)


@pytest.mark.parametrize("intercept", [False, True])
def test_a_list_of_one_factor_is_that_of_the_hessian(intercept):
    estimator = GradientCovarianceEstimator(random_state=0).fit(*rows(300, 4))
    factors = OneFactor(estimator.fitted_, intercept)
    assert len(factors) == 1
    (factor,) = factors
    assert_array_equal(factor, estimator.fitted_.hessian_factor(intercept=intercept))
    assert_array_equal(factors[-1], factor)
    with pytest.raises(IndexError):
        factors[1]
    (scaled,) = OneFactor(estimator.fitted_, intercept, unit_first=True)
    assert_allclose(scaled, factor / factor[0, 0], rtol=1e-15)
