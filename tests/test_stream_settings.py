"""What may not change half way through a stream of gradients, and what may come in any order."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.exceptions import NotFittedError

from sklearn_gradhess import GradientCovarianceEstimator, PreconditionedSGDRegressor

N, D = 60, 4


@pytest.fixture
def X(rng):  # noqa: N802
    return rng.standard_normal((N, D))


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, {"loss": "huber"}, r"loss='huber', epsilon=1.35, but .* had loss='squared_error'\."),
        ({"loss": "huber"}, {"epsilon": 2.0}, r"epsilon=2, but .* had loss='huber', epsilon=1.35"),
        ({}, {"assume_centered": True}, "assume_centered=True, but .* had assume_centered=False"),
        ({}, {"noise_scale": 1 + 1e-12}, "noise_scale=1.000000000001, but .* noise_scale=1"),
    ],
)
def test_another_hessian_is_not_mixed_in(X, first, then, message):
    y = np.zeros(N)
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0, **first)
    estimator.partial_fit(X, y)
    before = estimator.covariance_
    estimator.set_params(**then)
    with pytest.raises(ValueError, match=f"^.*{message}.*Use fit to start afresh"):
        estimator.partial_fit(X, y)
    g = np.zeros((2, 5, D + 1))
    with pytest.raises(ValueError, match=message):
        estimator.partial_fit_gradients(*g, batch_size=4, has_intercept=True)
    assert_allclose(estimator.covariance_, before)
    estimator.fit(X, y)


@pytest.mark.parametrize("changes", [{"epsilon": 9.0}, {"whitening": "pca"}, {"shuffle": False}])
def test_what_does_not_matter_may_change(X, changes):
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0).partial_fit(X)
    assert estimator.set_params(**changes).partial_fit(X).n_samples_seen_ == 2 * N


@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_the_draws_of_a_waiting_batch_cannot_change(X, noise):
    y = np.zeros(N)
    estimator = GradientCovarianceEstimator(batch_size=7, noise=noise, random_state=0)
    estimator.partial_fit(X, y)  # four rows wait
    estimator.set_params(n_redraws=3)
    message = r"^n_redraws=3, but 4 rows that wait .* have 1 draw\(s\) .* Set n_redraws=1"
    with pytest.raises(ValueError, match=message):
        estimator.partial_fit(X, y)
    estimator.set_params(n_redraws=1).partial_fit(X[:3], y[:3])  # nothing waits any more
    assert estimator.set_params(n_redraws=3).partial_fit(X, y).n_samples_seen_ == 2 * N + 3


def test_draws_that_are_never_made_may_change(X):
    estimator = GradientCovarianceEstimator(batch_size=7, noise="none").partial_fit(X, X[:, 0])
    estimator.set_params(n_redraws=3).partial_fit(X, X[:, 0])
    assert estimator.n_samples_seen_ == 2 * N


@pytest.mark.parametrize("other", [EmpiricalCovariance(), PreconditionedSGDRegressor(), "text"])
def test_merge_refuses_what_is_no_estimator_of_this_class(X, other):
    estimator = GradientCovarianceEstimator().fit(X)
    if hasattr(other, "fit"):
        other.fit(X, X[:, 0])
    kind = type(other).__name__
    with pytest.raises(TypeError, match=f"^merge takes another Gradient.*; got {kind}\\.$"):
        estimator.merge(other)


def test_merge_refuses_what_has_seen_nothing(X):
    with pytest.raises(NotFittedError):
        GradientCovarianceEstimator().fit(X).merge(GradientCovarianceEstimator())


def collinear(rng, dtype):
    """Rows whose third column is the sum of two others, to the rounding of the dtype."""
    X = rng.standard_normal((200, 3)).astype(dtype)
    X[:, 2] = X[:, 0] + X[:, 1]
    return X


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_coarsest_rows_decide_what_is_singular_in_any_order(rng, batch_size):
    parts = [collinear(rng, np.float32), collinear(rng, np.float64)]
    estimators = [
        GradientCovarianceEstimator(batch_size=batch_size, random_state=i).partial_fit(part)
        for i, part in enumerate(parts)
    ]
    a, b = (pickle.loads(pickle.dumps(e)) for e in estimators)
    found = {
        "chunks, float64 last": clone(a).partial_fit(parts[0]).partial_fit(parts[1]),
        "chunks, float32 last": clone(a).partial_fit(parts[1]).partial_fit(parts[0]),
        "merged into float32": a.merge(estimators[1]),
        "merged into float64": b.merge(estimators[0]),
    }
    for name, estimator in found.items():
        assert np.abs(estimator.precision_).max() < 10, name
        assert estimator.precision_.dtype == estimator.covariance_.dtype == np.float32, name


def test_rows_of_one_dtype_keep_it(rng):
    for dtype in (np.float32, np.float64):
        X = collinear(rng, dtype)
        estimator = GradientCovarianceEstimator(random_state=0).partial_fit(X).partial_fit(X)
        assert estimator.covariance_.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 7.3, 1e8 / 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_constant_features_have_an_effective_rank_of_zero(value, batch_size, dtype):
    estimator = GradientCovarianceEstimator(batch_size=batch_size, random_state=0)
    estimator.partial_fit(np.full((40, 3), value, dtype=dtype))
    assert estimator.effective_rank_ == 0.0
    assert np.isnan(estimator.expected_error_)


# --- Mahalanobis distances


def test_distances_are_those_of_the_precision(rng):
    X = rng.standard_normal((200, D)) @ rng.standard_normal((D, D)) + 5
    estimator = GradientCovarianceEstimator(batch_size=1, random_state=0).fit(X)
    ours, theirs = estimator.mahalanobis(X), EmpiricalCovariance().fit(X).mahalanobis(X)
    assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [[0, 0], [0, 1, 0], [2], [2, 0], [2, 2]])
def test_singular_directions_do_not_count(rng, columns, dtype):
    made = np.column_stack([rng.standard_normal((100, 2)), np.full(100, 3.0)]).astype(dtype)
    X = made[:, columns]
    estimator = GradientCovarianceEstimator(batch_size=1, random_state=0).partial_fit(X)
    kept = sorted({column for column in columns if column != 2})
    expected = np.zeros(100)
    if kept:
        expected = EmpiricalCovariance().fit(made[:, kept].astype(float)).mahalanobis(made[:, kept])
    assert_allclose(estimator.mahalanobis(X), expected, rtol=1e-3, atol=1e-5)


def test_the_location_itself_is_at_distance_zero(rng):
    X = rng.standard_normal((50, D))
    X[:, 3] = X[:, :3].sum(axis=1)
    estimator = GradientCovarianceEstimator(random_state=0).partial_fit(X)
    assert_allclose(estimator.mahalanobis(estimator.location_[None]), [0.0], atol=1e-20)
    assert np.all(estimator.mahalanobis(X) >= 0)


def test_distances_of_rows_that_are_not_finite_are_refused(X):
    estimator = GradientCovarianceEstimator(random_state=0).fit(X)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        estimator.mahalanobis(np.full((1, D), np.nan))


# --- the unit of sample weights

UNITS = (1e-300, 1e-200, 1e-30, 1e30, 1e200, 1e300)
SCHEMES = {
    "exact": {},
    "pairs": {"batch_size": 4},
    "redraws": {"batch_size": 4, "n_redraws": 3},
    "single": {"noise": "single", "batch_size": 10, "inherent_variance": 1.0},
    "estimated": {"noise": "single", "batch_size": 10, "inherent_variance": "estimate"},
    "none": {"noise": "none", "batch_size": 10, "inherent_variance": 1.0},
    "shrunk": {"batch_size": 4, "shrinkage": "oas"},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_unit_of_weights_matters(rng, scheme, dtype):
    X = (rng.standard_normal((200, D)) * [1, 10, 0.1, 1]).astype(dtype)
    y, w = 0.1 * rng.standard_normal(200), rng.uniform(0.5, 2, 200)

    def stream(weights):
        estimator = GradientCovarianceEstimator(random_state=0, **SCHEMES[scheme])
        for part in (slice(0, 90), slice(90, 200)):
            estimator.partial_fit(X[part], y[part], weights[part])
        return estimator

    one = stream(w)
    for unit in UNITS:
        other = stream(w * unit)
        for name in ("covariance_", "location_", "mean_gradient_", "excess_risk_", "precision_"):
            expected = getattr(one, name)
            assert_allclose(
                getattr(other, name),
                expected,
                rtol=1e-3 if dtype == np.float32 else 1e-8,
                atol=(1e-4 if dtype == np.float32 else 1e-10) * np.max(np.abs(expected)),
                err_msg=f"{name} at {unit}",
            )


def test_weights_that_vanish_beside_others_count_for_nothing(rng):
    X = rng.standard_normal((200, D))
    w = np.where(np.arange(200) < 100, 1.0, 1e-250)
    estimator = GradientCovarianceEstimator(batch_size=4, shuffle=False, random_state=0)
    assert_allclose(
        estimator.fit(X, sample_weight=w).covariance_,
        clone(estimator).fit(X, sample_weight=np.where(w < 1, 0.0, w)).covariance_,
        rtol=1e-12,
    )


@pytest.mark.parametrize(("first", "then"), [(None, 1e200), (1e200, None), (1e-200, 1.0)])
def test_chunks_of_incomparable_weights_are_refused(X, first, then):
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0)
    estimator.partial_fit(X, sample_weight=first)
    with pytest.raises(ValueError, match=r"^Weights of up to .* come after weights of about "):
        estimator.partial_fit(X, sample_weight=then)
    other = GradientCovarianceEstimator(batch_size=4, random_state=1)
    other.partial_fit(X, sample_weight=then)
    with pytest.raises(ValueError, match="Cannot merge estimators with a unit of sample_weight="):
        estimator.merge(other)


def test_gradients_weigh_one_a_row(X):
    estimator = GradientCovarianceEstimator(batch_size=4, assume_centered=True, random_state=0)
    estimator.partial_fit(X, sample_weight=1e200)
    with pytest.raises(ValueError, match="gradients that are passed in weigh one a row"):
        estimator.partial_fit_gradients(X, -X, batch_size=4)
