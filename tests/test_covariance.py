"""Exact facts about the estimator; what holds on average is in test_covariance_statistics.py."""

import copy
import pickle
from functools import reduce
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from sklearn.base import clone
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf, ShrunkCovariance
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess import GradientCovarianceEstimator, _gradients
from sklearn_gradhess.covariance import gradient_covariance
from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.noise import draw_target_noise
from tests.oracles import batch_gradients, weighted_covariance

FEW = settings(max_examples=max(1, settings().max_examples // 4))
NOISES = ("antithetic", "single", "none")
far_from_the_optimum = pytest.mark.filterwarnings(
    "ignore:The (mean gradient is as|excess risk):sklearn_gradhess.exceptions.CalibrationWarning"
)
WHITENINGS = ("zca", "pca", "cholesky")
FITTED = (
    "covariance_",
    "precision_",
    "location_",
    "gradient_covariance_",
    "mean_gradient_",
    "mean_intercept_gradient_",
    "excess_risk_",
    "n_batches_",
    "n_samples_seen_",
    "noise_variance_",
    "shrinkage_",
    "effective_rank_",
    "expected_error_",
)


def assert_same(a, b, names=FITTED, rtol=1e-10):
    for name in names:
        x, y = getattr(a, name), getattr(b, name)
        scale = np.max(np.abs(y), initial=0, where=np.isfinite(y))
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.fixture
def data(rng):
    """120 rows of 4 correlated features of different scale and mean, targets and weights."""
    return make_data(rng)


def make_data(rng, n=120):
    X = rng.standard_normal((n, 4)) @ rng.standard_normal((4, 4)) * [1, 10, 0.1, 1] + [0, 5, 1, -2]
    y = X @ np.array([1.0, -0.1, 2, 0.5]) + 0.5 + rng.standard_normal(n)
    return X, y, rng.uniform(0.2, 3, n)


# --- one row a batch: the covariance itself ---------------------------------------------------


@pytest.mark.parametrize("assume_centered", [False, True])
@pytest.mark.parametrize("batch_size", [1, "auto"])
@pytest.mark.parametrize("targets", [True, False])
def test_batch_size_one_is_the_empirical_covariance(data, assume_centered, batch_size, targets):
    X, y, _ = data
    ours = GradientCovarianceEstimator(
        batch_size=batch_size, assume_centered=assume_centered, random_state=0
    ).fit(X, y if targets else None)
    theirs = EmpiricalCovariance(assume_centered=assume_centered).fit(X)
    assert ours.batch_size_ == 1
    assert_same(ours, theirs, ("covariance_", "location_", "precision_"))
    np.testing.assert_allclose(ours.mahalanobis(X), theirs.mahalanobis(X), rtol=1e-10)
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-10)
    for norm in ("frobenius", "spectral"):
        error = ours.error_norm(np.eye(4), norm=norm)
        assert error == pytest.approx(theirs.error_norm(np.eye(4), norm=norm), rel=1e-10)


def test_batch_size_one_is_the_weighted_covariance(data):
    X, _, w = data
    estimator = GradientCovarianceEstimator(batch_size=1, random_state=0)
    estimator.fit(X, sample_weight=w)
    covariance, mean = weighted_covariance(X, w)
    np.testing.assert_allclose(estimator.covariance_, covariance, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(estimator.covariance_, np.cov(X.T, aweights=w, ddof=0), rtol=1e-10)
    np.testing.assert_allclose(estimator.location_, mean, rtol=1e-10)


@pytest.mark.parametrize("targets", [True, False])
def test_whole_weights_are_repetitions_and_zero_weights_absences(data, targets, rng):
    X, y, _ = data
    w = rng.integers(0, 4, len(X))
    y = y if targets else None
    ours = GradientCovarianceEstimator(batch_size=1, random_state=0)
    weighted = clone(ours).fit(X, y, w)
    repeated = clone(ours).fit(np.repeat(X, w, axis=0), None if y is None else np.repeat(y, w))
    names = ("covariance_", "location_", "precision_", "mean_gradient_", "mean_intercept_gradient_")
    assert_same(weighted, repeated, names)


def test_rows_repeated_in_a_batch_make_the_same_gradients_of_half_the_inherent_noise(data):
    X, y, _ = data
    estimator = GradientCovarianceEstimator(
        noise="none", shuffle=False, inherent_variance=2.0, correction="none"
    )
    weighted = clone(estimator).set_params(batch_size=4).fit(X, y, np.full(len(X), 2.0))
    repeated = clone(estimator).set_params(batch_size=8).fit(np.repeat(X, 2, 0), np.repeat(y, 2))
    assert_same(weighted, repeated, ("location_", "gradient_covariance_", "mean_gradient_"))
    # eight residuals, for all that a batch without weights tells; a weight says that they are four
    np.testing.assert_allclose(2 * weighted.covariance_, repeated.covariance_, rtol=1e-10)


@pytest.mark.parametrize("assume_centered", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["log_loss", "poisson", "huber", "gamma", "tweedie"])
def test_batch_size_one_is_the_hessian_with_the_intercept_eliminated(
    data, loss, weighted, assume_centered, rng
):
    X, _, w = data
    w = w if weighted else np.ones(len(X))
    coef, intercept = np.array([0.3, -0.05, 1.0, 0.2]), -0.1
    y = rng.integers(0, 2, len(X)) + (loss == "gamma")
    estimator = GradientCovarianceEstimator(
        batch_size=1, loss=loss, epsilon=0.8, assume_centered=assume_centered, random_state=0
    ).fit(X, y, w if weighted else None, coef=coef, intercept=intercept)
    f = X @ coef + intercept
    p = 1 / (1 + np.exp(-f))
    v = {
        "log_loss": p * (1 - p),
        "poisson": np.exp(f),
        "gamma": y * np.exp(-f),
        "tweedie": 0.5 * np.exp(0.5 * f) + 0.5 * y * np.exp(-0.5 * f),
        "huber": np.abs(f - y) <= 0.8,
    }[loss]
    Z = X if assume_centered else np.column_stack([np.ones(len(X)), X])
    H = Z.T @ (Z * (w * v)[:, None]) / w.sum()
    location = np.zeros(4)
    if not assume_centered:
        location = H[0, 1:] / H[0, 0]
        H = H[1:, 1:] - np.outer(H[0, 1:], H[0, 1:]) / H[0, 0]
    np.testing.assert_allclose(estimator.covariance_, H, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(estimator.location_, location, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["log_loss", "poisson"])
def test_canonical_hessians_do_not_depend_on_the_targets(data, loss, rng):
    X, _, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, loss=loss, random_state=0)
    coef = np.full(4, 0.05)
    with_targets = clone(estimator).fit(X, rng.integers(0, 2, len(X)), coef=coef)
    assert_same(with_targets, clone(estimator).fit(X, coef=coef), ("covariance_", "location_"))


@pytest.mark.parametrize("loss", ["log_loss", "poisson", "huber", "gamma", "tweedie"])
def test_only_the_squared_loss_has_a_likelihood(data, loss):
    estimator = GradientCovarianceEstimator(loss=loss, random_state=0).fit(data[0])
    assert not hasattr(estimator, "score")
    assert not hasattr(estimator, "mahalanobis")


@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_a_large_offset_costs_no_more_than_its_own_rounding(offset, rng):
    X = rng.standard_normal((100, 3))
    shifted = X + offset
    estimator = GradientCovarianceEstimator(batch_size=1, random_state=0).fit(shifted)
    # shifted - offset is exact
    expected = np.cov((shifted - offset).T, ddof=0)
    np.testing.assert_allclose(estimator.covariance_, expected, atol=1e-15 * offset)


# --- batches: naive loops ---------------------------------------------------------------------


def stream_of(seed):
    """The generator that random_state=seed stands for."""
    estimator = GradientCovarianceEstimator(random_state=seed)
    estimator._start(1, has_intercept=False)
    return estimator._rng


def pairs(X, y, batch, *, seed, coef, intercept, w=None, n_redraws=1, distribution="rademacher",
          noise_scale=1.0, inherent=0.0):  # fmt: skip
    """Gradients of each batch and redraw at targets y + xi and y - xi, and the batch weights."""
    n = len(X)
    w = np.ones(n) if w is None else w
    eps = draw_target_noise(
        1, (n, n_redraws), distribution=distribution, random_state=stream_of(seed)
    )
    total, squares = np.bincount(batch, w)[batch], np.bincount(batch, w**2)[batch]
    # a row's inherent noise is one draw, of its whole weight
    xi = eps * np.sqrt((noise_scale * total - inherent * squares / total) / w)[:, None]
    residual = X @ coef + intercept - y
    both = [
        [batch_gradients(X, residual - sign * xi[:, j], batch, w)[0] for j in range(n_redraws)]
        for sign in (1, -1)
    ]
    plus, minus = (np.stack(g, axis=1).reshape(-1, X.shape[1] + 1) for g in both)
    return plus, minus, np.repeat(np.bincount(batch, w), n_redraws)


AT = {"coef": np.array([0.5, 0.1, 1.0, 0.0]), "intercept": 0.3}


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("n_redraws", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [120, 118])  # 118: the last batch is incomplete
def test_antithetic_attributes_are_those_of_the_naive_loop(
    data, n, weighted, n_redraws, distribution
):
    X, y, w = (a[:n] for a in data)
    w = w if weighted else None
    batch = np.arange(n) // 4
    plus, minus, total = pairs(
        X, y, batch, seed=7, w=w, n_redraws=n_redraws, distribution=distribution, **AT
    )
    second, _ = weighted_covariance((minus - plus) / 2, total, about_mean=False)
    estimator = GradientCovarianceEstimator(
        batch_size=4,
        n_redraws=n_redraws,
        noise_distribution=distribution,
        shuffle=False,
        random_state=7,
    ).fit(X, y, w, **AT)
    np.testing.assert_allclose(estimator.gradient_covariance_, second[1:, 1:], rtol=1e-10)
    location = second[0, 1:] / second[0, 0]
    np.testing.assert_allclose(estimator.location_, location, rtol=1e-10)
    np.testing.assert_allclose(
        estimator.covariance_,
        second[1:, 1:] - second[0, 0] * np.outer(location, location),
        rtol=1e-9,
        atol=1e-10,
    )
    mean = np.average((minus + plus) / 2, axis=0, weights=total)
    np.testing.assert_allclose(estimator.mean_gradient_, mean[1:], rtol=1e-10)
    assert estimator.mean_intercept_gradient_ == pytest.approx(mean[0], rel=1e-10)
    assert estimator.n_batches_ == 30
    assert estimator.n_samples_seen_ == n
    assert estimator.noise_variance_ == 4


@pytest.mark.parametrize("n_redraws", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [120, 118])
@pytest.mark.parametrize("inherent", [0.0, 1.5])
def test_single_attributes_are_those_of_the_naive_loop(data, n, weighted, n_redraws, inherent):
    X, y, w = (a[:n] for a in data)
    w = w + 1 if weighted else None
    plus, _, total = pairs(
        X, y, np.arange(n) // 4, seed=7, w=w, n_redraws=n_redraws, inherent=inherent, **AT
    )
    covariance, mean = weighted_covariance(plus, total)
    k = len(plus)
    estimator = GradientCovarianceEstimator(
        batch_size=4,
        noise="single",
        correction="none",
        inherent_variance=inherent,
        n_redraws=n_redraws,
        shuffle=False,
        random_state=7,
    ).partial_fit(X, y, w, **AT)
    np.testing.assert_allclose(
        estimator.gradient_covariance_, covariance[1:, 1:] * k / (k - 1), rtol=1e-10
    )
    np.testing.assert_allclose(estimator.mean_gradient_, mean[1:], rtol=1e-10)
    assert estimator.mean_intercept_gradient_ == pytest.approx(mean[0], rel=1e-10)
    assert estimator.noise_variance_ == 4 - inherent


@pytest.mark.parametrize("assume_centered", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_noise_the_covariance_is_that_of_clean_batch_gradients(
    data, weighted, assume_centered
):
    X, y, w = (a[:118] for a in data)
    w = w if weighted else None
    residual = X @ AT["coef"] + AT["intercept"] - y
    g, total = batch_gradients(X, residual, np.arange(118) // 4, w)
    covariance, mean = weighted_covariance(g, total)
    covariance *= len(g) / (len(g) - 1)
    estimator = GradientCovarianceEstimator(
        batch_size=4, noise="none", assume_centered=assume_centered, shuffle=False
    ).fit(X, y, w, **AT)
    np.testing.assert_allclose(estimator.gradient_covariance_, covariance[1:, 1:], rtol=1e-10)
    np.testing.assert_allclose(estimator.mean_gradient_, mean[1:], rtol=1e-10)
    assert np.isnan(estimator.excess_risk_)
    if assume_centered:
        np.testing.assert_array_equal(estimator.covariance_, estimator.gradient_covariance_)
        assert np.isnan(estimator.mean_intercept_gradient_)


@pytest.mark.parametrize("shuffle", [False, True])
def test_single_noise_tends_to_no_noise(data, shuffle):
    X, y, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, shuffle=shuffle, random_state=3)
    none = clone(estimator).set_params(noise="none", noise_distribution="normal")
    single = clone(estimator).set_params(noise="single", noise_scale=1e-24, correction="none")
    if shuffle:  # the deal comes after the draws of noise
        with mock.patch.object(_gradients, "draw_target_noise", return_value=np.ones((120, 1))):
            single.partial_fit(X, y)
    else:
        single.partial_fit(X, y)
    assert_same(single, none.fit(X, y), ("gradient_covariance_", "mean_gradient_"), rtol=1e-9)


@pytest.mark.parametrize("scale", [0.01, 7.0])
def test_the_noise_scale_is_divided_out(data, scale):
    X, y, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0)
    one = clone(estimator).fit(X, y)
    scaled = clone(estimator).set_params(noise_scale=scale).fit(X, y)
    assert_same(one, scaled, ("covariance_", "location_", "precision_", "excess_risk_"))
    np.testing.assert_allclose(
        scaled.gradient_covariance_, scale * one.gradient_covariance_, rtol=1e-10
    )
    assert scaled.noise_variance_ == 4 * scale


def test_single_noise_scale_is_divided_out_at_the_optimum(data):
    X, _, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, noise="single", random_state=0)
    one = clone(estimator).fit(X)
    scaled = clone(estimator).set_params(noise_scale=5.0).fit(X)
    assert one.correction_ == "gaussian"
    # Rounding of the gradients, times the condition number of the features, about 1e3
    assert scaled.excess_risk_ == pytest.approx(5 * one.excess_risk_, rel=1e-10)
    assert_same(one, scaled, ("covariance_", "location_"))


@far_from_the_optimum
@pytest.mark.parametrize("noise", ["antithetic", "single"])
@pytest.mark.parametrize("assume_centered", [False, True])
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("n_redraws", [1, 2])
def test_gradients_alone_tell_what_the_data_tell(
    data, noise, assume_centered, distribution, n_redraws
):
    X, y, _ = data
    plus, minus, _ = pairs(
        X, y, np.arange(120) // 4, seed=7, distribution=distribution, n_redraws=n_redraws, **AT
    )
    estimator = GradientCovarianceEstimator(
        batch_size=4,
        noise=noise,
        noise_distribution=distribution,
        n_redraws=n_redraws,
        assume_centered=assume_centered,
        shuffle=False,
        random_state=7,
    )
    seen = clone(estimator).partial_fit(X, y, **AT)
    used = slice(int(assume_centered), None)
    told = clone(estimator).partial_fit_gradients(
        plus[:, used],
        minus[:, used] if noise == "antithetic" else None,
        batch_size=4,
        has_intercept=not assume_centered,
    )
    names = set(FITTED) - {"n_batches_", "n_samples_seen_"}
    if noise == "antithetic":  # residuals tell the noise of the mean gradient: MATH 5.1
        names -= {"excess_risk_"}
        if n_redraws > 1:  # redraws of a batch share its rows, and so its error: MATH 2.3
            names -= {"expected_error_"}
    assert_same(told, seen, names, rtol=1e-9)
    assert told.correction_ == seen.correction_
    assert told.n_batches_ == n_redraws * seen.n_batches_


def test_assume_centered_ignores_the_gradient_of_the_intercept(data):
    X, y, _ = data
    plus, minus, _ = pairs(X, y, np.arange(120) // 4, seed=7, **AT)
    estimator = GradientCovarianceEstimator(assume_centered=True)
    with_it = clone(estimator).partial_fit_gradients(plus, minus, batch_size=4, has_intercept=True)
    without = clone(estimator).partial_fit_gradients(plus[:, 1:], minus[:, 1:], batch_size=4)
    assert_same(with_it, without)
    assert with_it.n_features_in_ == 4


def test_without_the_intercept_gradients_give_the_second_moment(data):
    X, y, _ = data
    plus, minus, _ = pairs(X, y, np.arange(120) // 4, seed=7, **AT)
    estimator = GradientCovarianceEstimator()
    estimator.partial_fit_gradients(plus[:, 1:], minus[:, 1:], batch_size=4)
    half = (minus - plus)[:, 1:] / 2
    np.testing.assert_allclose(estimator.covariance_, half.T @ half / 30, rtol=1e-10)
    assert not estimator.location_.any()


def test_chunks_of_gradients_and_of_data_go_together(data):
    X, y, _ = data
    plus, minus, _ = pairs(X, y, np.arange(120) // 4, seed=7, **AT)
    estimator = GradientCovarianceEstimator(batch_size=4, shuffle=False, random_state=7)
    mixed = clone(estimator).partial_fit(X[:60], y[:60], **AT)
    mixed.partial_fit_gradients(plus[15:], minus[15:], batch_size=4, has_intercept=True)
    names = set(FITTED) - {"excess_risk_"}  # from residuals, if all are known
    assert_same(mixed, clone(estimator).fit(X, y, **AT), names)


@pytest.mark.parametrize("per_batch", [False, True])
def test_loss_curvature_scales_the_noise_and_nothing_else(data, per_batch, rng):
    X, y, _ = data
    plus, minus, _ = pairs(X, y, np.arange(120) // 4, seed=7, **AT)
    v = rng.uniform(0.1, 2, 30) if per_batch else 0.4
    scheme = {"batch_size": 4, "has_intercept": True}
    scaled = GradientCovarianceEstimator(loss="log_loss").partial_fit_gradients(
        plus, minus, loss_curvature=v, **scheme
    )
    half, clean = (minus - plus) / 2, (minus + plus) / 2
    half *= np.sqrt(np.broadcast_to(v, 30))[:, None]
    calibrated = GradientCovarianceEstimator(loss="log_loss").partial_fit_gradients(
        clean - half, clean + half, **scheme
    )
    assert_same(scaled, calibrated)
    np.testing.assert_allclose(scaled.mean_gradient_, clean.mean(axis=0)[1:], rtol=1e-10)


def test_loss_curvature_is_exact_where_it_is_constant_in_each_batch(rng):
    X = rng.standard_normal((20, 3)).repeat(4, axis=0) * [1, 2, 3]
    X[1::2] *= -1  # mirrored rows have the same curvature p (1 - p) without an intercept
    coef = np.array([0.5, 0.2, -0.3])
    p = 1 / (1 + np.exp(-X @ coef))
    estimator = GradientCovarianceEstimator(
        batch_size=4, loss="log_loss", assume_centered=True, shuffle=False, random_state=1
    )
    fitted = clone(estimator).fit(X, coef=coef)
    eps = draw_target_noise(4.0, 80, distribution="rademacher", random_state=stream_of(1))
    h = np.array([X[b : b + 4].T @ eps[b : b + 4] / 4 for b in range(0, 80, 4)])
    told = clone(estimator).partial_fit_gradients(
        -h, h, batch_size=4, loss_curvature=(p * (1 - p))[::4]
    )
    assert_same(told, fitted, ("covariance_", "precision_"))


# --- chunks and parts -------------------------------------------------------------------------

SCHEMES = {
    "antithetic": {"noise": "antithetic"},
    "redrawn": {"noise": "antithetic", "n_redraws": 3},
    "normal": {"noise": "antithetic", "noise_distribution": "normal"},
    "centred": {"noise": "antithetic", "assume_centered": True},
    "logistic": {"noise": "antithetic", "loss": "log_loss"},
    "shrunk": {"noise": "antithetic", "shrinkage": "oas"},
    "single": {"noise": "single", "inherent_variance": 1.0},
    "single, redrawn": {"noise": "single", "n_redraws": 2, "noise_distribution": "normal"},
    "none": {"noise": "none", "inherent_variance": 2.0},
}


def stream(scheme, data, cuts, **params):
    X, y, w = data
    if scheme.get("loss") == "log_loss":
        y = 1.0 * (y > 0)
    estimator = GradientCovarianceEstimator(
        **{"batch_size": 4, "shuffle": False, "random_state": 5} | scheme | params
    )
    at = {"coef": np.full(4, 0.05), "intercept": 0.3}
    for part in np.split(np.arange(len(X)), cuts):
        estimator.partial_fit(X[part], y[part], w[part], **at)
    return estimator


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize(
    "cuts",
    [range(12, 120, 12), [1, 2, 3, 4, 5, 50, 51, 90, 119], [7, 20, 21, 64, 65, 66, 70, 99, 117]],
    ids=["whole batches", "tiny chunks", "uneven chunks"],
)
@pytest.mark.parametrize("n", [120, 118])
def test_ten_chunks_are_as_good_as_one_fit(data, scheme, cuts, n):
    data = tuple(a[:n] for a in data)
    assert_same(stream(scheme, data, [c for c in cuts if c < n]), stream(scheme, data, []))


@FEW
@given(cuts=st.sets(st.integers(1, 29), max_size=10), batch_size=st.integers(1, 11))
def test_any_chunks_are_as_good_as_one_fit(cuts, batch_size):
    data = make_data(np.random.default_rng(0), 30)
    chunks = stream(SCHEMES["antithetic"], data, sorted(cuts), batch_size=batch_size)
    assert_same(
        chunks,
        stream(SCHEMES["antithetic"], data, [], batch_size=batch_size),
        set(FITTED) - {"precision_"},  # singular for large batches
    )


def test_chunks_of_single_rows_need_no_order(data):
    cuts = [10, 40, 41, 100]
    params = {"batch_size": 1, "shuffle": True}
    assert_same(stream({}, data, cuts, **params), stream({}, data, [], **params))


@pytest.mark.parametrize("sparse_format", ["csr", "csc"])
def test_sparse_chunks_are_as_good_as_one_dense_fit(data, sparse_format):
    X, y, w = data
    estimator = GradientCovarianceEstimator(batch_size=4, shuffle=False, random_state=5)
    for part in np.split(np.arange(120), [3, 50, 77]):
        estimator.partial_fit(sparse.csr_array(X[part]).asformat(sparse_format), y[part], w[part])
    dense = GradientCovarianceEstimator(batch_size=4, shuffle=False, random_state=5)
    assert_same(estimator, dense.fit(X, y, w))


def test_first_partial_fit_is_fit(data):
    X, y, w = data
    estimator = GradientCovarianceEstimator(batch_size=7, random_state=5)
    assert_same(clone(estimator).partial_fit(X, y, w), clone(estimator).fit(X, y, w), rtol=0)


def test_fit_then_partial_fit_goes_on(data):
    X, y, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, shuffle=False, random_state=5)
    went_on = clone(estimator).fit(X[:50], y[:50]).partial_fit(X[50:], y[50:])
    assert_same(went_on, clone(estimator).fit(X, y))


def test_fit_forgets(data):
    X, y, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=5)
    again = clone(estimator).fit(X[:40, :2]).partial_fit(X[40:50, :2]).fit(X, y)
    assert_same(again, clone(estimator).fit(X, y), rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_rows_short_of_a_batch_wait_and_count(rng, n):
    X = rng.standard_normal((n, 2))
    estimator = GradientCovarianceEstimator(batch_size=4, assume_centered=True, random_state=0)
    estimator.partial_fit(X)
    assert (estimator.n_batches_, estimator.n_samples_seen_) == (1, n)
    eps = draw_target_noise(1, (n, 1), distribution="rademacher", random_state=stream_of(0))
    h = X.T @ eps / np.sqrt(n)  # noise of variance n, mean over n rows
    np.testing.assert_allclose(estimator.covariance_, h @ h.T, atol=1e-13)


def test_coefficients_may_move_from_chunk_to_chunk(data):
    X, y, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, shuffle=False, random_state=5)
    moved = (
        clone(estimator).partial_fit(X[:60], y[:60], coef=AT["coef"]).partial_fit(X[60:], y[60:])
    )
    assert_same(moved, clone(estimator).fit(X, y), ("covariance_", "location_"))
    residual = X @ AT["coef"] * (np.arange(120) < 60) - y
    np.testing.assert_allclose(moved.mean_gradient_, X.T @ residual / 120, rtol=1e-10)


def parts(scheme, n_parts=10, seed=0):
    """Estimators of parts of the data, most of them with an incomplete batch."""
    rng = np.random.default_rng(seed)
    return [
        GradientCovarianceEstimator(**{"batch_size": 4, "random_state": i} | scheme).partial_fit(
            *make_data(rng, 8 + i), coef=np.full(4, 0.05)
        )
        for i in range(n_parts)
    ]


LINEAR_SCHEMES = [name for name in SCHEMES if name != "logistic"]
PARTS = {name: parts(SCHEMES[name]) for name in LINEAR_SCHEMES}
MERGED = {
    name: reduce(lambda a, b: a.merge(b), copy.deepcopy(PARTS[name])) for name in LINEAR_SCHEMES
}


@pytest.mark.parametrize("name", LINEAR_SCHEMES)
@FEW
@given(
    order=st.permutations(range(10)), grouping=st.lists(st.integers(0, 8), min_size=9, max_size=9)
)
def test_ten_parts_merge_alike_in_any_order_and_grouping(name, order, grouping):
    queue = [copy.copy(PARTS[name][i]) for i in order]
    for i in grouping:  # merge neighbours, anywhere in the queue
        i %= len(queue) - 1
        queue[i : i + 2] = [queue[i].merge(queue[i + 1])]
    assert_same(queue[0], MERGED[name], set(FITTED) - {"noise_variance_"})


@far_from_the_optimum
@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_merged_parts_are_all_their_gradients(data, noise):
    X, y, _ = data
    batch = np.arange(60) // 4
    one, two = slice(0, 60), slice(60, None)
    estimator = GradientCovarianceEstimator(batch_size=4, noise=noise, shuffle=False)
    merged = clone(estimator).set_params(random_state=1).partial_fit(X[one], y[one], **AT)
    merged.merge(clone(estimator).set_params(random_state=2).partial_fit(X[two], y[two], **AT))
    told = clone(estimator)
    for seed, part in ((1, one), (2, two)):
        plus, minus, _ = pairs(X[part], y[part], batch, seed=seed, **AT)
        told.partial_fit_gradients(
            plus, minus if noise == "antithetic" else None, batch_size=4, has_intercept=True
        )
    names = set(FITTED) - ({"excess_risk_"} if noise == "antithetic" else set())  # other groups
    assert_same(merged, told, names, rtol=1e-9)


def test_merged_parts_of_single_rows_are_the_covariance_of_all_rows(data):
    X, y, w = data
    estimators = [
        GradientCovarianceEstimator(batch_size=1, random_state=i).fit(X[i::5], y[i::5], w[i::5])
        for i in range(5)
    ]
    merged = reduce(lambda a, b: a.merge(b), estimators)
    np.testing.assert_allclose(merged.covariance_, np.cov(X.T, aweights=w, ddof=0), rtol=1e-10)
    np.testing.assert_allclose(merged.mean_gradient_, -(w * y) @ X / w.sum(), rtol=1e-10)
    assert merged.n_samples_seen_ == 120


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_merged_estimator_goes_on(data, scheme):
    def part(a, b):
        return stream(scheme, tuple(x[a:b] for x in data), [])

    X, y, w = data
    y = 1.0 * (y > 0) if scheme.get("loss") == "log_loss" else y
    rest = {"X": X[80:], "y": y[80:], "sample_weight": w[80:], "coef": np.full(4, 0.1)}
    before = part(0, 40).merge(part(40, 80)).partial_fit(**rest)
    after = part(0, 40).partial_fit(**rest).merge(part(40, 80))
    # a batch falls into another group of clean gradients when another one comes before it
    names = set(FITTED) - ({"excess_risk_"} if scheme["noise"] == "antithetic" else set())
    assert_same(before, after, names)


def test_merging_closes_incomplete_batches_on_both_sides(data):
    X, _, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, shuffle=False, random_state=0)
    merged = clone(estimator).fit(X[:42]).merge(clone(estimator).fit(X[42:83]))
    assert merged.n_batches_ == 11 + 11
    assert merged.n_samples_seen_ == 83
    merged.partial_fit(X[83:86])
    assert merged.n_batches_ == 23


@pytest.mark.parametrize("noise", NOISES)
def test_merging_leaves_the_other_one_alone(data, noise):
    X, y, _ = data
    scheme = {"batch_size": 4, "noise": noise, "inherent_variance": 1.0, "random_state": 0}
    one, other = (
        GradientCovarianceEstimator(**scheme).partial_fit(X[a : a + 42], y[a : a + 42])
        for a in (0, 42)
    )
    before = pickle.dumps(other)
    one.merge(other).partial_fit(X, y)
    assert pickle.dumps(other) == before


def test_merging_with_itself_changes_no_covariance(data):
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0).fit(data[0])
    twice = copy.deepcopy(estimator).merge(estimator)
    assert_same(twice, estimator, ("covariance_", "location_", "precision_"))
    assert twice.n_samples_seen_ == 240


# --- equivariance and invariance --------------------------------------------------------------

MATRICES = arrays(
    np.float64, (3, 3), elements=st.floats(-1, 1, allow_subnormal=False).map(lambda x: round(x, 6))
).map(lambda a: a + 4 * np.eye(3))  # diagonally dominant, so invertible
VECTORS = arrays(
    np.float64, 3, elements=st.floats(-50, 50, allow_subnormal=False).map(lambda x: round(x, 6))
)
SETTINGS = [
    pytest.param({"noise": "antithetic", "shuffle": True}, id="antithetic, dealt"),
    pytest.param({"noise": "antithetic", "shuffle": False}, id="antithetic"),
    pytest.param({"noise": "antithetic", "n_redraws": 2}, id="redrawn"),
    pytest.param({"noise": "single", "shuffle": True}, id="single, corrected"),
    pytest.param({"noise": "single", "correction": "none"}, id="single"),
    pytest.param({"noise": "none", "inherent_variance": 1.0, "correction": "none"}, id="none"),
]


def rows(seed=11, n=62):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3)) @ rng.uniform(-1, 1, (3, 3)) + [1.0, -2, 0]
    return X, X @ [0.1, -0.2, 0.05] + rng.standard_normal(n)


def see(X, y=None, **scheme):
    return GradientCovarianceEstimator(**{"batch_size": 4, "random_state": 8} | scheme).partial_fit(
        X, y
    )


def test_the_schemes_above_are_corrected_or_not_as_they_say():
    corrections = [see(*rows(), **param.values[0]).correction_ for param in SETTINGS]
    assert corrections == ["none", "none", "none", "gaussian", "none", "none"]


@pytest.mark.parametrize("scheme", SETTINGS)
@FEW
@given(A=MATRICES)
def test_linear_maps_of_the_features_pass_through(scheme, A):
    X, y = rows()
    before, after = see(X, y, **scheme), see(X @ A, y, **scheme)
    S = A.T @ before.covariance_ @ A
    np.testing.assert_allclose(after.covariance_, S, atol=1e-10 * np.abs(S).max())
    np.testing.assert_allclose(after.location_, before.location_ @ A, atol=1e-8)
    np.testing.assert_allclose(after.mean_gradient_, before.mean_gradient_ @ A, atol=1e-10)
    np.testing.assert_allclose(after.excess_risk_, before.excess_risk_, rtol=1e-8)
    assert after.correction_ == before.correction_


@pytest.mark.parametrize("loss", ["log_loss", "poisson", "huber", "gamma", "tweedie"])
@FEW
@given(A=MATRICES)
def test_linear_maps_with_their_coefficients_pass_through_every_loss(loss, A):
    X, y = rows()
    y, coef = 1.0 * (y > 0) + (loss == "gamma"), np.array([0.3, 0.1, -0.4])
    estimator = GradientCovarianceEstimator(batch_size=4, loss=loss, random_state=8)
    before = clone(estimator).fit(X, y, coef=coef, intercept=0.2)
    after = clone(estimator).fit(X @ A, y, coef=np.linalg.solve(A, coef), intercept=0.2)
    S = A.T @ before.covariance_ @ A
    np.testing.assert_allclose(after.covariance_, S, atol=1e-10 * np.abs(S).max())
    np.testing.assert_allclose(after.location_, before.location_ @ A, atol=1e-8)


@pytest.mark.parametrize("scheme", SETTINGS)
@FEW
@given(scales=arrays(np.int64, 3, elements=st.integers(-12, 12)))
def test_units_pass_through_without_a_rounding_error_of_another_feature(scheme, scales):
    X, y = rows()
    s = 10.0**scales
    before, after = see(X, y, **scheme), see(X * s, y, **scheme)
    np.testing.assert_allclose(
        after.covariance_ / np.outer(s, s), before.covariance_, rtol=1e-8, atol=1e-11
    )
    np.testing.assert_allclose(
        after.precision_ * np.outer(s, s),
        before.precision_,
        rtol=1e-8,
        atol=1e-9 * np.abs(before.precision_).max(),
    )


@FEW
@given(A=MATRICES)
def test_rotation_leaves_effective_rank_and_distances(A):
    X, y = rows()
    Q, _ = np.linalg.qr(A)
    before, after = see(X, y), see(X @ Q, y)
    assert after.effective_rank_ == pytest.approx(before.effective_rank_)
    np.testing.assert_allclose(after.mahalanobis(X @ Q), before.mahalanobis(X), rtol=1e-8)


@pytest.mark.parametrize("scheme", SETTINGS)
@FEW
@given(shift=VECTORS)
def test_a_shift_moves_the_location_and_nothing_else(scheme, shift):
    X, y = rows()
    before, after = see(X, y, **scheme), see(X + shift, y, **scheme)
    np.testing.assert_allclose(after.covariance_, before.covariance_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(after.location_, before.location_ + shift, atol=1e-9)
    assert after.mean_intercept_gradient_ == pytest.approx(before.mean_intercept_gradient_)
    np.testing.assert_allclose(after.excess_risk_, before.excess_risk_, rtol=1e-6)


@pytest.mark.parametrize("noise", ["antithetic", "single"])
@FEW
@given(seed=st.integers(0, 99))
def test_rows_of_a_batch_may_come_in_any_order_with_their_noise(noise, seed):
    rng = np.random.default_rng(seed)
    X, y = rows()
    eps = rng.standard_normal((len(X), 1))
    order = np.lexsort([rng.random(len(X)), np.arange(len(X)) // 4])
    fits = []
    for at in (slice(None), order):
        with mock.patch.object(_gradients, "draw_target_noise", lambda *_, at=at, **__: eps[at]):
            fits.append(see(X[at], y[at], noise=noise, shuffle=False))
    assert_same(*fits, rtol=1e-9)


@FEW
@given(seed=st.integers(0, 99))
def test_clean_batches_may_come_in_any_order(seed):
    rng = np.random.default_rng(seed)
    X, y = rows(n=60)
    order = rng.permutation(60).reshape(15, 4)[:, ::-1]  # of the rows
    batches = np.arange(60).reshape(15, 4)[rng.permutation(15)]  # of the batches
    batches = np.take_along_axis(batches, np.argsort(order, axis=1), axis=1).ravel()
    scheme = {"noise": "none", "shuffle": False, "inherent_variance": 1.0}
    assert_same(see(X[batches], y[batches], **scheme), see(X, y, **scheme), rtol=1e-9)


@FEW
@given(order=st.permutations(range(20)))
def test_single_rows_may_come_in_any_order(order):
    X, y = rows(n=20)
    before, after = see(X, y, batch_size=1), see(X[order], y[order], batch_size=1)
    names = ("covariance_", "location_", "precision_", "mean_gradient_")
    assert_same(after, before, names)


@pytest.mark.parametrize("scheme", SETTINGS)
@FEW
@given(
    X=arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 5)),
        elements=st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-100 else 0.0),
    ),
    shrinkage=st.sampled_from([None, 0.1]),
)
def test_covariance_and_precision_are_symmetric_and_have_no_negative_direction(
    scheme, X, shrinkage
):
    estimator = see(X, X[:, 0] + 1, shrinkage=shrinkage, **scheme)
    for matrix in (estimator.covariance_, estimator.precision_):
        np.testing.assert_array_equal(matrix, matrix.T)
        eigenvalues = np.linalg.eigvalsh(matrix)
        assert eigenvalues[0] >= -1e-13 * len(matrix) * np.abs(eigenvalues).max()


@pytest.mark.parametrize("scheme", SETTINGS)
def test_float32_is_float64_up_to_its_rounding(scheme):
    X, y = rows()
    single, double = see(X.astype(np.float32), y, **scheme), see(X, y, **scheme)
    for name in (
        "covariance_",
        "location_",
        "precision_",
        "gradient_covariance_",
        "mean_gradient_",
    ):
        value = getattr(double, name)
        assert getattr(single, name).dtype == np.float32
        assert value.dtype == np.float64
        atol = 1e-4 * np.abs(value).max()
        np.testing.assert_allclose(getattr(single, name), value, atol=atol, err_msg=name)


def test_float32_gradients_give_float32_attributes(rng):
    g = rng.standard_normal((2, 20, 3)).astype(np.float32)
    estimator = GradientCovarianceEstimator().partial_fit_gradients(*g, batch_size=4)
    assert estimator.covariance_.dtype == estimator.location_.dtype == np.float32


@pytest.mark.parametrize("scheme", SETTINGS)
@pytest.mark.parametrize(
    "convert", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix, np.asfortranarray, list]
)
def test_every_container_gives_the_same(scheme, convert):
    X, y = rows()
    X[np.abs(X) < 0.5] = 0
    assert_same(see(convert(X), y, **scheme), see(X, y, **scheme), rtol=1e-9)


def test_memory_maps_are_read_where_they_lie(tmp_path):
    X, y = rows()
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert_same(see(mapped, y), see(X, y), rtol=0)


# --- whitening --------------------------------------------------------------------------------


def fitted(X, **scheme):
    return GradientCovarianceEstimator(**{"batch_size": 1, "random_state": 0} | scheme).fit(X)


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_whitened_data_have_mean_zero_and_the_identity_covariance(data, whitening):
    X = data[0]
    Z = fitted(X, whitening=whitening).transform(X)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cov(Z.T, ddof=0), np.eye(4), atol=1e-10)


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_inverse_transform_undoes_transform(data, whitening, batch_size, rng):
    estimator = fitted(data[0], whitening=whitening, batch_size=batch_size)
    new = rng.standard_normal((7, 4))
    np.testing.assert_allclose(
        estimator.inverse_transform(estimator.transform(new)), new, atol=1e-10
    )
    np.testing.assert_allclose(
        estimator.transform(estimator.inverse_transform(new)), new, atol=1e-10
    )


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_whitening_squares_to_the_precision_and_lengths_are_distances(data, whitening):
    X = data[0]
    estimator = fitted(X, whitening=whitening, batch_size=8)
    W = estimator.transform(np.eye(4) + estimator.location_)
    np.testing.assert_allclose(W @ W.T, estimator.precision_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        np.sum(estimator.transform(X) ** 2, axis=1), estimator.mahalanobis(X), rtol=1e-9
    )


def test_zca_is_the_symmetric_root_of_the_precision(data):
    estimator = fitted(data[0], whitening="zca", batch_size=8)
    W = estimator.transform(np.eye(4) + estimator.location_)
    np.testing.assert_allclose(W, W.T, atol=1e-11 * np.abs(W).max())
    assert np.linalg.eigvalsh(W)[0] > 0


def test_pca_is_that_of_scikit_learn_signs_included(data):
    X = data[0]
    theirs = PCA(whiten=True, svd_solver="full").fit_transform(X)
    n = len(X)  # their variance has the divisor n - 1
    np.testing.assert_allclose(
        fitted(X, whitening="pca").transform(X), theirs * np.sqrt(n / (n - 1)), atol=1e-9
    )


def test_cholesky_is_the_inverse_of_the_triangular_factor(data):
    estimator = fitted(data[0], whitening="cholesky", batch_size=8)
    W = estimator.transform(np.eye(4) + estimator.location_)
    upper = np.linalg.cholesky(estimator.covariance_).T
    np.testing.assert_allclose(W, np.linalg.inv(upper), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_singular_directions_come_out_as_zeros_and_stay_at_the_location(data, whitening):
    X = data[0]
    X = np.column_stack([X, X[:, 0] - 2 * X[:, 1], np.full(len(X), 3.0)])
    with pytest.warns(CalibrationWarning, match=r"rank 4 of 6\. Constant features: \[5\]"):
        estimator = fitted(X, whitening=whitening)
    Z = estimator.transform(X)
    S = np.linalg.svd(Z / np.sqrt(len(X)), compute_uv=False)
    np.testing.assert_allclose(S, [1, 1, 1, 1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(estimator.inverse_transform(Z), X, atol=1e-6)
    off = X + np.array([0, 0, 0, 0, 0, 100.0])  # outside what the training data span
    np.testing.assert_allclose(estimator.transform(off), Z, atol=1e-6)
    if whitening == "zca":
        null = np.array([1, -2, 0, 0, -1, 0]) / np.sqrt(6)
        np.testing.assert_allclose(Z @ null, 0, atol=1e-6)
        np.testing.assert_allclose(Z[:, 5], 0, atol=1e-6)
    else:
        np.testing.assert_array_equal(Z[:, 4:], 0)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@FEW
@given(
    constants=st.lists(st.sampled_from([1.0, 3.0, -7.3, 1e-3, 12345.6]), min_size=1, max_size=3),
    place=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_constant_features_are_left_out_and_no_other(batch_size, dtype, constants, place, seed):
    X, _, _ = make_data(np.random.default_rng(seed))
    X = np.insert(X, [place] * len(constants), constants, axis=1).astype(dtype)
    with pytest.warns(CalibrationWarning, match=f"rank 4 of {X.shape[1]}. Constant features"):
        estimator = fitted(X, batch_size=batch_size)
    constant = slice(place, place + len(constants))
    rest = fitted(np.delete(X, constant, axis=1), batch_size=batch_size)
    Z = estimator.transform(X.astype(np.float64))
    assert np.abs(Z[:, constant]).max() < 1e-3  # float32 knows the mean to 1e-7 of itself
    np.testing.assert_allclose(
        np.delete(Z, constant, axis=1),
        rest.transform(np.delete(X, constant, axis=1).astype(np.float64)),
        atol=1e-3,
    )


def test_precision_of_a_singular_covariance_is_the_pseudo_inverse(data):
    X = data[0] / data[0].std(axis=0)
    X = np.column_stack([X, X[:, 0] - X[:, 1]])
    with pytest.warns(CalibrationWarning, match="rank 4 of 5"):
        estimator = fitted(X)
    expected = np.linalg.pinv(estimator.covariance_, rcond=1e-10, hermitian=True)
    np.testing.assert_allclose(estimator.precision_, expected, atol=1e-8)


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transform_keeps_the_precision_of_its_input(data, whitening, dtype):
    estimator = fitted(data[0], whitening=whitening)
    Z = estimator.transform(data[0].astype(dtype))
    assert Z.dtype == dtype
    assert estimator.inverse_transform(Z).dtype == dtype
    np.testing.assert_allclose(Z, estimator.transform(data[0]), atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("convert", [sparse.csr_array, sparse.csc_matrix])
def test_transform_takes_sparse_features(data, convert):
    estimator = fitted(data[0])
    np.testing.assert_allclose(
        estimator.transform(convert(data[0])), estimator.transform(data[0]), atol=1e-10
    )


def test_get_precision_computes_what_was_not_stored(data):
    stored, lean = fitted(data[0]), fitted(data[0], store_precision=False)
    assert lean.precision_ is None
    np.testing.assert_array_equal(lean.get_precision(), stored.precision_)
    np.testing.assert_array_equal(stored.get_precision(), stored.precision_)
    assert lean.score(data[0]) == stored.score(data[0])


@pytest.mark.parametrize(
    ("shrinkage", "theirs"),
    [
        (0.0, ShrunkCovariance(shrinkage=0.0)),
        (0.3, ShrunkCovariance(shrinkage=0.3)),
        (1.0, ShrunkCovariance(shrinkage=1.0)),
        (1, ShrunkCovariance(shrinkage=1)),
        ("oas", OAS()),
        ("ledoit_wolf", LedoitWolf()),
    ],
)
@pytest.mark.parametrize("assume_centered", [False, True])
@pytest.mark.parametrize("chunks", [1, 3])
def test_shrinkage_is_that_of_scikit_learn(data, shrinkage, theirs, assume_centered, chunks):
    X = data[0] / data[0].std(axis=0)
    ours = GradientCovarianceEstimator(
        batch_size=1, shrinkage=shrinkage, assume_centered=assume_centered, random_state=0
    )
    for part in np.array_split(X, chunks):
        ours.partial_fit(part)
    theirs = clone(theirs).set_params(assume_centered=assume_centered).fit(X)
    assert_same(ours, theirs, ("covariance_", "precision_", "location_"), rtol=1e-9)
    expected = theirs.shrinkage_ if isinstance(shrinkage, str) else shrinkage
    assert ours.shrinkage_ == pytest.approx(expected)


@pytest.mark.parametrize("shrinkage", [0.2, "oas", "ledoit_wolf"])
def test_shrinkage_makes_up_for_too_few_batches(data, shrinkage):
    estimator = fitted(data[0][:12], batch_size=4, shrinkage=shrinkage)
    assert np.linalg.matrix_rank(estimator.covariance_) == 4


# --- the transformer and the containers around it ---------------------------------------------


def test_frames_keep_their_names(data):
    X = pd.DataFrame(data[0], columns=list("abcd"))
    estimator = fitted(X).set_output(transform="pandas")
    assert estimator.feature_names_in_.tolist() == list("abcd")
    names = [f"gradientcovarianceestimator{i}" for i in range(4)]
    assert estimator.get_feature_names_out().tolist() == names
    Z = estimator.transform(X)
    assert isinstance(Z, pd.DataFrame)
    assert Z.columns.tolist() == names
    np.testing.assert_allclose(Z, fitted(data[0]).transform(data[0]), atol=1e-12)


def test_a_pipeline_hands_on_whitened_features_whatever_the_targets_are(data):
    X = data[0]
    labels = np.where(X[:, 0] > 0, "yes", "no")
    pipe = make_pipeline(GradientCovarianceEstimator(random_state=0), PCA())
    np.testing.assert_allclose(
        pipe.fit(X, labels).named_steps["pca"].explained_variance_, 120 / 119
    )


@pytest.mark.parametrize(
    "unusable",
    [
        lambda y: np.where(y > 0, "yes", "no"),
        lambda y: np.where(y > 0, "yes", "no").astype(object),
        lambda y: np.column_stack([y, y]),
        lambda y: pd.DataFrame({"a": y, "b": y}),
        lambda y: pd.Series(np.where(y > 0, "yes", "no"), dtype="category"),
    ],
    ids=["strings", "objects", "several targets", "frame", "categories"],
)
def test_antithetic_noise_needs_no_targets(data, unusable):
    X, y, _ = data
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0)
    assert_same(clone(estimator).fit(X, unusable(y)), clone(estimator).fit(X), rtol=0)


def test_targets_tell_the_mean_gradient_but_not_the_covariance(data):
    X, y, _ = data
    with_targets, without = see(X, y), see(X)
    assert_same(with_targets, without, ("covariance_", "location_", "precision_"), rtol=0)
    assert not without.mean_gradient_.any()
    np.testing.assert_allclose(with_targets.mean_gradient_, -y @ X / 120, rtol=1e-10)


@pytest.mark.parametrize("wrap", [list, pd.Series, lambda y: y[:, None], np.float32])
def test_targets_come_in_any_container(data, wrap):
    X, y, _ = data
    y = np.round(y)
    assert_same(see(X, wrap(y)), see(X, y), rtol=0)


def test_integer_features_are_real_numbers(rng):
    X = rng.integers(-9, 9, (40, 3))
    assert_same(see(X), see(X.astype(np.float64)), rtol=0)
    assert see(X).covariance_.dtype == np.float64


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("convert", [np.ascontiguousarray, np.asfortranarray, sparse.csr_array])
@pytest.mark.parametrize("shuffle", [True, False])
def test_inputs_are_read_only(data, noise, convert, shuffle):
    X, y, w = data
    X, coef = convert(X), np.full(4, 0.1)
    for a in (X.data if sparse.issparse(X) else X, y, w, coef):
        a.flags.writeable = False
    estimator = GradientCovarianceEstimator(
        batch_size=7, noise=noise, shuffle=shuffle, inherent_variance=1.0, random_state=0
    )
    before = [copy.deepcopy(a) for a in (X, y, w, coef)]
    for _ in range(2):  # the second time with rows waiting
        estimator.partial_fit(X, y, w, coef=coef)
    estimator.transform(X)
    for a, b in zip((X, y, w, coef), before, strict=True):
        assert abs(a - b).max() == 0
    assert estimator.n_samples_seen_ == 240


def test_gradients_are_read_only(rng):
    plus, minus, v = *rng.standard_normal((2, 20, 3)), rng.random(20)
    before = [a.copy() for a in (plus, minus, v)]
    for a in (plus, minus, v):
        a.flags.writeable = False
    GradientCovarianceEstimator().partial_fit_gradients(plus, minus, batch_size=4, loss_curvature=v)
    for a, b in zip((plus, minus, v), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("noise", NOISES)
def test_the_function_returns_what_the_estimator_finds(data, noise):
    X, y, _ = data
    scheme = {
        "batch_size": 4,
        "noise": noise,
        "noise_scale": 2.0,
        "inherent_variance": 1.5,
        "random_state": 3,
    }
    at = {"coef": np.array([1.0, -0.1, 2, 0.5]), "intercept": 0.5}
    covariance, mean_gradient = gradient_covariance(X, y, **at, **scheme)
    estimator = GradientCovarianceEstimator(**scheme).fit(X, y, **at)
    np.testing.assert_array_equal(covariance, estimator.covariance_)
    np.testing.assert_array_equal(mean_gradient, estimator.mean_gradient_)


def test_effective_rank_is_the_trace_over_the_largest_eigenvalue(data):
    estimator = fitted(data[0])
    eigenvalues = np.linalg.eigvalsh(estimator.covariance_)
    assert estimator.effective_rank_ == pytest.approx(eigenvalues.sum() / eigenvalues[-1])


# --- randomness and state ---------------------------------------------------------------------


def covariance_of(X, random_state):
    estimator = GradientCovarianceEstimator(batch_size=8, random_state=random_state)
    return estimator.fit(X).covariance_


SEEDED = [np.random.RandomState, np.random.default_rng]


@pytest.mark.parametrize("make_state", [int, *SEEDED])
def test_the_same_seed_gives_the_same_estimate(data, make_state):
    X = data[0]
    first = covariance_of(X, make_state(3))
    np.testing.assert_array_equal(first, covariance_of(X, make_state(3)))
    assert not np.allclose(first, covariance_of(X, make_state(4)))


def test_a_seed_starts_anew_with_every_fit(data):
    estimator = GradientCovarianceEstimator(batch_size=8, random_state=3)
    first = estimator.fit(data[0]).covariance_
    np.testing.assert_array_equal(first, estimator.fit(data[0]).covariance_)


@pytest.mark.parametrize("make_state", SEEDED)
def test_an_instance_is_consumed(data, make_state):
    X, one, other = data[0], make_state(3), make_state(3)
    first, second = covariance_of(X, one), covariance_of(X, one)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, covariance_of(X, other))
    np.testing.assert_array_equal(second, covariance_of(X, other))


def test_none_takes_the_global_state_of_numpy(data):
    X = data[0]
    state = np.random.get_state()  # noqa: NPY002
    try:
        estimates = []
        for seed in (3, 3, 4):
            np.random.seed(seed)  # noqa: NPY002
            estimates += [covariance_of(X, None), covariance_of(X, None)]
    finally:
        np.random.set_state(state)  # noqa: NPY002
    np.testing.assert_array_equal(estimates[:2], estimates[2:4])
    assert not np.allclose(estimates[0], estimates[1])
    assert not np.allclose(estimates[0], estimates[4])


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize(
    "reborn", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy, copy.copy],
    ids=["pickled", "deep copy", "copy"],
)  # fmt: skip
def test_copies_go_on_as_the_original_does(data, scheme, reborn):
    X, y, w = data
    y = 1.0 * (y > 0) if scheme.get("loss") == "log_loss" else y
    original = stream(scheme, tuple(a[:50] for a in data), [])
    other = reborn(original)
    assert_same(other, original, rtol=0)
    before = pickle.dumps(original)
    other.partial_fit(X[50:], y[50:], w[50:])
    assert pickle.dumps(original) == before
    assert_same(other, original.partial_fit(X[50:], y[50:], w[50:]), rtol=0)


def test_a_clone_has_the_parameters_and_has_seen_nothing(data):
    estimator = GradientCovarianceEstimator(batch_size=8, shrinkage=0.1, random_state=0)
    copied = clone(estimator.fit(data[0]))
    assert copied.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        check_is_fitted(copied)


def broken(X, y, w):
    nan = X.copy()
    nan[3, 1] = np.nan
    huge = np.full_like(X, 1e308)
    return {
        "NaN": (nan, y, w),
        "overflow": (huge, y, w),
        "width": (X[:, :3], y, w),
        "no rows": (X[:0], y[:0], w[:0]),
        "length of y": (X, y[:-1], w),
        "NaN in y": (X, np.where(y == y[0], np.nan, y), w),
        "range of y": (X, y - 100, w),
        "negative weight": (X, y, -w),
        "length of weights": (X, y, w[1:]),
        "one dimension": (X[0], y, w),
    }


@pytest.mark.parametrize(
    "scheme", [SCHEMES["antithetic"], SCHEMES["single"]], ids=lambda s: s["noise"]
)
@pytest.mark.parametrize("what", broken(*make_data(np.random.default_rng(0))))
def test_a_failed_partial_fit_leaves_no_trace(data, scheme, what):
    X, y, w = data
    y = np.abs(y)
    estimator, untouched = (
        GradientCovarianceEstimator(batch_size=4, loss="poisson", random_state=0, **scheme)
        for _ in range(2)
    )
    at = {"coef": np.full(4, 0.01)}
    for e in (estimator, untouched):
        e.partial_fit(X[:50], y[:50], w[:50], **at)
    before, frozen = dict(vars(estimator)), pickle.dumps(estimator)
    with pytest.raises(ValueError, match=r"."):
        estimator.partial_fit(*broken(X, y, w)[what], **at)
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is value for name, value in before.items())
    assert pickle.dumps(estimator) == frozen
    assert_same(estimator.partial_fit(X, y, w, **at), untouched.partial_fit(X, y, w, **at), rtol=0)


@pytest.mark.parametrize("what", ["NaN", "length of y", "negative weight", "NaN in y"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_failed_first_call_leaves_the_estimator_unfitted(data, what, method):
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0)
    before = dict(vars(estimator))
    with pytest.raises(ValueError, match=r"."):
        getattr(estimator, method)(*broken(*data)[what])
    assert vars(estimator) == before
    # another width is no contradiction to a call that failed
    assert_same(
        getattr(estimator, method)(data[0][:, :3]),
        GradientCovarianceEstimator(batch_size=4, random_state=0).fit(data[0][:, :3]),
        rtol=0,
    )


def test_a_failed_fit_leaves_the_previous_one(data):
    X, y, w = data
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0).fit(X, y, w)
    before = dict(vars(estimator))
    with pytest.raises(ValueError, match="NaN"):
        estimator.fit(*broken(X, y, w)["NaN"])
    assert all(vars(estimator)[name] is value for name, value in before.items())


@pytest.mark.parametrize("what", ["width", "batch_size", "intercept", "NaN", "antithetic"])
def test_failed_gradients_and_merges_leave_no_trace(rng, what):
    g = rng.standard_normal((2, 20, 4))
    estimator = GradientCovarianceEstimator()
    estimator.partial_fit_gradients(*g, batch_size=4, has_intercept=True)
    before = dict(vars(estimator))
    arguments = {
        "gradients": np.where(g[0] == g[0, 0], np.nan, g[0]) if what == "NaN" else g[0],
        "antithetic": None if what == "antithetic" else g[1],
        "batch_size": 5 if what == "batch_size" else 4,
        "has_intercept": what != "intercept",
    }
    if what == "width":
        arguments |= {"gradients": g[0, :, :3], "antithetic": g[1, :, :3]}
    with pytest.raises(ValueError, match=r"."):
        estimator.partial_fit_gradients(**arguments)
    other = GradientCovarianceEstimator().partial_fit_gradients(*g, batch_size=4)
    with pytest.raises(ValueError, match="Cannot merge"):
        estimator.merge(other)
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is value for name, value in before.items())
