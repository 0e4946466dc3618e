"""Wide data: leading directions of the Hessian and one variance for the rest, `n_components`."""

import itertools
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator

from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator
from sklearn_gradhess._gradients import batch_sums, choose_batch_size
from sklearn_gradhess._low_rank import (
    LowRankMoments,
    along_components,
    eigenvalues_of,
    leading_rows,
    sketch_size,
)
from sklearn_gradhess.diagnostics import calibration_report
from sklearn_gradhess.linear_model import PreconditionedSGDRegressor
from sklearn_gradhess.metrics import dual_norm
from tests.oracles import batch_gradients

FEW = settings(max_examples=max(1, settings().max_examples // 4))
NOISES = ("antithetic", "single", "none")
MORE = {"single": {"correction": "none"}, "none": {"inherent_variance": 1.0, "correction": "none"}}
CHECKS = list(
    estimator_checks_generator(GradientCovarianceEstimator(n_components=1, correction="none"))
)


def fitted(X, y=None, k=3, **params):
    return GradientCovarianceEstimator(n_components=k, random_state=0, **params).fit(X, y)


def matrix(estimator):
    """The covariance that an estimator stands for."""
    V = estimator.components_
    other = np.eye(V.shape[1]) - V.T @ V
    return (V.T * estimator.eigenvalues_) @ V + estimator.residual_variance_ * other


def spiked(rng, n, p, spikes, offset=3.0):
    """Rows of covariance I plus some directions, and that covariance."""
    V = np.linalg.qr(rng.standard_normal((p, len(spikes))))[0].T
    add = np.sqrt(np.asarray(spikes) - 1.0)
    X = rng.standard_normal((n, p)) + (rng.standard_normal((n, len(spikes))) * add) @ V
    return X + offset, np.eye(p) + (V.T * add**2) @ V


@pytest.fixture
def data(rng):
    X = rng.standard_normal((90, 6)) @ rng.standard_normal((6, 6)) + np.arange(6)
    return X, X[:, 0] + rng.standard_normal(90), rng.uniform(0.5, 2, size=90)


# --- all components are the ordinary estimator


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("assume_centered", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_all_components_are_the_ordinary_estimator(data, noise, assume_centered, batch_size):
    X, y, w = data
    params = {"noise": noise, "assume_centered": assume_centered, "batch_size": batch_size}
    ours, plain = (
        GradientCovarianceEstimator(
            **params, **MORE.get(noise, {}), n_components=k, random_state=0
        ).partial_fit(X, y, w, intercept=y.mean())
        for k in (6, None)
    )
    assert ours.residual_variance_ == 0
    for name in ("location_", "mean_gradient_", "effective_rank_", "n_batches_", "noise_variance_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(plain, name), 1e-7, err_msg=name)
    np.testing.assert_allclose(matrix(ours), plain.covariance_, rtol=1e-7)
    np.testing.assert_allclose(ours.transform(X), plain.transform(X), 1e-7, atol=1e-7)
    np.testing.assert_allclose(ours.mahalanobis(X), plain.mahalanobis(X))
    np.testing.assert_allclose(ours.score(X), plain.score(X))
    g = np.arange(1.0, 8.0)
    np.testing.assert_allclose(ours.newton_step(g), plain.newton_step(g), rtol=1e-7)
    np.testing.assert_allclose(ours.newton_step(g[1:]), plain.newton_step(g[1:]), rtol=1e-7)
    for method in ("pca", "zca"):
        ours.whitening = plain.whitening = method
        np.testing.assert_allclose(ours.transform(X), plain.transform(X), 1e-7, atol=1e-7)
        np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), X)


@pytest.mark.parametrize("loss", ["log_loss", "poisson", "huber", "gamma", "tweedie"])
def test_all_components_of_every_loss(data, loss):
    X, y, w = data
    target = (y > y.mean()).astype(float) if loss == "log_loss" else np.abs(y) + 0.1
    coef = np.full(6, 0.05)
    ours, plain = (
        GradientCovarianceEstimator(loss=loss, n_components=k, random_state=0).fit(
            X, target, w, coef=coef
        )
        for k in (6, None)
    )
    np.testing.assert_allclose(matrix(ours), plain.covariance_, rtol=1e-7)
    np.testing.assert_allclose(ours.location_, plain.location_)
    g = np.arange(1.0, 8.0)
    np.testing.assert_allclose(ours.newton_step(g), plain.newton_step(g), rtol=1e-7)
    assert not hasattr(ours, "score")


@pytest.mark.parametrize("k", [2, 5])
def test_shrinkage_is_that_of_the_matrix(data, k):
    X = data[0]
    ours, plain = fitted(X, k=k, shrinkage=0.3), fitted(X, k=k)
    want = 0.7 * matrix(plain) + 0.3 * np.trace(matrix(plain)) / 6 * np.eye(6)
    np.testing.assert_allclose(matrix(ours), want)
    assert ours.shrinkage_ == 0.3


# --- what theory says


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("p", [300, 1200])
def test_a_spiked_covariance_is_found_as_theory_says(batch_size, p):
    spikes, k, errors = np.array([160.0, 60.0, 25.0]), 3, []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, truth = spiked(rng, 600, p, spikes)
        ours = fitted(X, k=k, batch_size=batch_size)
        V, n_batches = ours.components_, 600 // batch_size
        assert ours.n_batches_ == n_batches
        np.testing.assert_allclose(V @ V.T, np.eye(3), atol=1e-10)
        # Variance of new rows along what was found; 5 standard errors of the sample's variances
        along = np.einsum("ij,jk,ik->i", V, truth, V)
        assert np.all(np.abs(ours.eigenvalues_ / along - 1) < 5 * np.sqrt(2 / n_batches))
        # What is not in the span: the trace is known to sqrt(2 tr(S^2)/k)
        left = (np.trace(truth) - along.sum()) / (p - k)
        spread = np.sqrt(2 * np.sum(truth**2) / n_batches) / (p - k)
        assert abs(ours.residual_variance_ - left) < 5 * spread
        np.testing.assert_allclose(
            ours.effective_rank_, np.trace(truth) / 160, rtol=5 * np.sqrt(2 / n_batches)
        )
        errors.append(np.linalg.norm(matrix(ours) - truth, 2) / 160 / ours.expected_error_)
    assert max(errors) < 1  # the stated one adds up what may not come together
    assert max(errors) > 0.1


def test_what_gradients_show_is_more_than_there_is(rng):
    X, truth = spiked(rng, 300, 900, [60.0, 30.0])
    ours = fitted(X, k=2)
    V = ours.components_
    seen = np.einsum("ij,jk,ik->i", V, np.cov(X.T), V)
    # By the variance of all other directions over the rows, twice: once for the eigenvalue, which
    # is too large, and once for the direction, which is off
    assert np.all(seen - ours.eigenvalues_ > 0.9 * 2 * 898 / 300)
    along = np.einsum("ij,jk,ik->i", V, truth, V)
    assert np.all(seen / along > ours.eigenvalues_ / along)


@pytest.mark.parametrize("k", [2, 20])
def test_without_correction_they_are_the_components_of_the_sample(rng, k):
    X, _ = spiked(rng, 40, 90, [60.0, 20.0])
    ours, theirs = fitted(X, k=k, correction="none", whitening="pca"), PCA(k).fit(X)
    assert ours.correction_ == "none"
    # 40 gradients are cut once to 18 directions for k = 2, and to all of them for k = 20
    close = {"rtol": 1e-7 if k == 20 else 2e-3}
    np.testing.assert_allclose(ours.eigenvalues_ * 40 / 39, theirs.explained_variance_, **close)
    cosines = np.abs(np.sum(ours.components_ * theirs.components_, axis=1))
    np.testing.assert_allclose(cosines, 1.0, **close)
    rest = np.trace(np.cov(X.T)) - theirs.explained_variance_.sum()
    np.testing.assert_allclose(ours.residual_variance_ * 40 / 39, rest / (90 - k), **close)


def test_cuts_cost_little(rng):
    X, _ = spiked(rng, 400, 1000, [100.0, 50.0, 25.0, 12.0])
    ours = fitted(X, k=4, correction="none", batch_size=1)
    Z = X - X.mean(axis=0)
    whole = np.linalg.eigvalsh(Z @ Z.T / 400)[::-1][:4]
    lost = 1 - ours.eigenvalues_ / whole
    assert np.all((lost > -1e-9) & (lost < [0.005, 0.02, 0.05, 0.05]))
    assert sketch_size(4) == 20


def test_noise_alone_has_no_direction(rng):
    ours = fitted(rng.standard_normal((400, 800)), k=3)
    np.testing.assert_allclose(ours.eigenvalues_, ours.residual_variance_, rtol=0.2)
    np.testing.assert_allclose(ours.residual_variance_, 1.0, rtol=5 * np.sqrt(2 / 400 / 800))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_few_directions_in_many_features_are_found_exactly(rng, offset):
    X = rng.standard_normal((150, 3)) @ rng.standard_normal((3, 400)) + offset
    ours, S = fitted(X, k=4), np.cov(X.T, bias=True)
    np.testing.assert_allclose(matrix(ours), S, atol=1e-8 * max(offset, 1e-2) * np.abs(S).max())
    assert ours.n_components_ == 3
    assert ours.residual_variance_ < 1e-9 * np.trace(S)
    g = rng.standard_normal(400)
    want = np.linalg.pinv(S, hermitian=True, rcond=1e-6) @ g
    if not offset:
        np.testing.assert_allclose(ours.newton_step(g), want, atol=1e-8 * np.abs(want).max())
        np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), X, atol=1e-8)
        assert ours.score(X) == -np.inf


def test_whitened_rows_have_the_identity_covariance(rng):
    X, truth = spiked(rng, 2000, 200, [90.0, 40.0])
    ours = fitted(X, k=2)
    new = rng.multivariate_normal(np.full(200, 3.0), truth, 4000)
    scores = ours.set_params(whitening="pca").transform(new)
    # 5 standard errors of a variance of the rows here, and of those that were fitted
    np.testing.assert_allclose(np.cov(scores.T), np.eye(2), atol=5 * np.sqrt(2 / 2000 + 2 / 4000))
    whole = ours.set_params(whitening="zca").transform(new)
    np.testing.assert_allclose(whole @ ours.components_.T, scores, atol=1e-9)
    np.testing.assert_allclose(np.trace(np.cov(whole.T)) / 200, 1.0, rtol=0.02)


def test_it_is_the_matrix_that_it_stands_for(data):
    X = data[0]
    ours = fitted(X, k=2)
    S, g = matrix(ours), np.arange(1.0, 8.0)
    np.testing.assert_allclose(ours.newton_step(g[1:]), np.linalg.solve(S, g[1:]))
    mean = ours.location_
    whole = np.block([[np.ones((1, 1)), mean[None]], [mean[:, None], S + np.outer(mean, mean)]])
    np.testing.assert_allclose(ours.newton_step(g), np.linalg.solve(whole, g))
    law = multivariate_normal(mean, S)
    np.testing.assert_allclose(ours.score(X), law.logpdf(X).mean())
    Z = X - mean
    distances = np.einsum("ij,ij->i", Z, np.linalg.solve(S, Z.T).T)
    np.testing.assert_allclose(ours.mahalanobis(X), distances)
    np.testing.assert_allclose(np.sum(ours.transform(X) ** 2, axis=1), distances)
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), X)
    ours.whitening = "pca"
    P = ours.components_.T @ ours.components_
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), Z @ P + mean)


def test_the_trace_is_exact(data):
    X, _, w = data
    ours = GradientCovarianceEstimator(n_components=2, batch_size=1).fit(X, None, w)
    S = np.cov(X.T, aweights=w, bias=True)
    np.testing.assert_allclose(np.trace(matrix(ours)), np.trace(S))
    np.testing.assert_allclose(ours.location_, np.average(X, weights=w, axis=0))


# --- rows and gradients, in chunks and in parts


@pytest.mark.parametrize("convert", [sparse.csr_array, sparse.csc_matrix, np.asfortranarray])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_every_container_gives_the_same(rng, convert, batch_size):
    X = sparse.random(120, 300, density=0.05, random_state=0).toarray() + 0.0
    params = {"k": 3, "batch_size": batch_size}
    ours, dense = fitted(convert(X), **params), fitted(X, **params)
    np.testing.assert_allclose(matrix(ours), matrix(dense), atol=1e-10)
    np.testing.assert_allclose(ours.transform(convert(X)), dense.transform(X), atol=1e-9)
    np.testing.assert_allclose(ours.mahalanobis(convert(X)), dense.mahalanobis(X))
    np.testing.assert_allclose(ours.score(convert(X)), dense.score(X))


def gradients_of(rng, n_batches, p, n=3, spike=30.0):
    X, _ = spiked(rng, n_batches * n, p, [spike, spike / 2])
    batch = np.repeat(np.arange(n_batches), n)
    noise = np.sqrt(n) * rng.choice([-1.0, 1.0], len(X))
    clean = batch_gradients(X, rng.standard_normal(len(X)), batch)[0]
    half = batch_gradients(X, noise, batch)[0]
    return clean - half, clean + half


@pytest.mark.parametrize("noise", NOISES)
@FEW
@given(cuts=st.lists(st.integers(0, 70), max_size=6), seed=st.integers(0, 3))
def test_chunks_of_gradients_make_no_difference(noise, cuts, seed):
    plus, minus = gradients_of(np.random.default_rng(seed), 70, 50)
    cuts = [0, *sorted(cuts), 70]
    assert sketch_size(2) < 50  # something is cut
    streams = []
    for bounds in (itertools.pairwise(cuts), [(0, 70)]):
        stream = GradientCovarianceEstimator(n_components=2, noise=noise, **MORE.get(noise, {}))
        for a, b in bounds:
            if a == b:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)  # of a single gradient
                stream.partial_fit_gradients(
                    plus[a:b],
                    minus[a:b] if noise == "antithetic" else None,
                    batch_size=3,
                    has_intercept=True,
                )
        streams.append(stream)
    ours, whole = streams
    np.testing.assert_allclose(matrix(ours), matrix(whole), atol=1e-8)
    np.testing.assert_allclose(ours.location_, whole.location_)


@pytest.mark.parametrize("noise", NOISES)
def test_rows_in_chunks_are_one_fit(rng, noise):
    X, _ = spiked(rng, 200, 60, [40.0])
    params = {"n_components": 1, "batch_size": 4, "shuffle": False, "noise": noise}
    params |= MORE.get(noise, {}) | {"noise_distribution": "normal", "random_state": 0}
    y = X[:, 0] if noise != "antithetic" else None
    ours, whole = (GradientCovarianceEstimator(**params) for _ in range(2))
    for rows in np.array_split(np.arange(200), 9):
        ours.partial_fit(X[rows], None if y is None else y[rows], intercept=3.0)
    whole.partial_fit(X, y, intercept=3.0)
    assert ours.n_batches_ == whole.n_batches_ == 50
    np.testing.assert_allclose(matrix(ours), matrix(whole), atol=1e-8)


@pytest.mark.parametrize("noise", NOISES)
def test_parts_merge(rng, noise):
    plus, minus = gradients_of(rng, 120, 60)
    params = {"n_components": 2, "noise": noise, **MORE.get(noise, {})}

    def see(a, b):
        pair = (plus[a:b], minus[a:b] if noise == "antithetic" else None)
        one = GradientCovarianceEstimator(**params)
        return one.partial_fit_gradients(*pair, batch_size=3, has_intercept=True)

    whole, cuts = see(0, 120), [0, 31, 40, 77, 120]
    parts = [see(a, b) for a, b in itertools.pairwise(cuts)]
    ours = parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))
    assert ours.n_batches_ == 120
    np.testing.assert_allclose(ours.location_, whole.location_)
    np.testing.assert_allclose(np.trace(matrix(ours)), np.trace(matrix(whole)))
    # Up to what is cut: that lowers what is seen along the first directions by little
    np.testing.assert_allclose(ours.eigenvalues_, whole.eigenvalues_, rtol=0.02)
    np.testing.assert_allclose(
        np.abs(np.sum(ours.components_ * whole.components_, axis=1)), 1.0, atol=0.02
    )
    ours.partial_fit_gradients(
        plus[:3], minus[:3] if noise == "antithetic" else None, batch_size=3, has_intercept=True
    )
    assert ours.n_batches_ == 123


def test_merging_and_adding_where_nothing_is_cut_are_exact(rng):
    rows = rng.standard_normal((30, 40))
    empty = LowRankMoments.empty(39, centered=True, has_intercept=True, size=50)
    whole = empty.update(rows)
    joined = empty.update(rows[:11]).merge(empty).merge(empty.update(rows[11:]))
    for moments in (whole, joined):
        Z = rows - rows.mean(axis=0)
        Z = Z[:, 1:] - np.outer(Z[:, 0], Z[:, 0] @ Z[:, 1:] / (Z[:, 0] @ Z[:, 0]))
        np.testing.assert_allclose(moments.rows().T @ moments.rows(), Z.T @ Z, atol=1e-10)
        np.testing.assert_allclose(moments.squares, np.sum(Z**2, axis=0))
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(moments.intercept_variance(), rows[:, 0].var(ddof=1))
        np.testing.assert_allclose(moments.last_variance(), rows[:, -1].var(ddof=1))
    assert len(whole.rows()) == 30


@FEW
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_leading_rows_are_the_truncated_decomposition(m, d, size, seed):
    A = np.random.default_rng(seed).standard_normal((m, d)) * np.geomspace(1, 1e-6, d)
    values, rows = leading_rows(A, size)
    _, s, vt = np.linalg.svd(A, full_matrices=False)
    kept = min(size, m, d)
    np.testing.assert_allclose(values, s[:kept], atol=1e-12)
    want = (vt[:kept].T * s[:kept] ** 2) @ vt[:kept]
    np.testing.assert_allclose(rows.T @ rows, want, atol=1e-10)


def test_whole_weights_are_repetitions(rng):
    X, _ = spiked(rng, 60, 100, [40.0])
    w = rng.integers(0, 3, size=60)
    ours = GradientCovarianceEstimator(n_components=2, batch_size=1).fit(X, None, w)
    twice = GradientCovarianceEstimator(n_components=2, batch_size=1).fit(np.repeat(X, w, axis=0))
    np.testing.assert_allclose(ours.location_, twice.location_)
    np.testing.assert_allclose(np.trace(matrix(ours)), np.trace(matrix(twice)), rtol=1e-6)
    np.testing.assert_allclose(np.abs(ours.components_[0] @ twice.components_[0]), 1.0, atol=1e-2)


@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_a_large_offset_costs_no_more_than_its_own_rounding(rng, offset):
    X, _ = spiked(rng, 100, 150, [40.0], offset=0.0)
    shift = offset * rng.standard_normal(150)
    ours, plain = fitted(X + shift), fitted(X)
    np.testing.assert_allclose(matrix(ours), matrix(plain), atol=1e-14 * offset + 1e-9)
    np.testing.assert_allclose(ours.location_ - shift, plain.location_, atol=1e-13 * offset + 1e-9)


def test_dask_collections_are_taken_block_by_block(rng):
    da = pytest.importorskip("dask.array")
    X, truth = spiked(rng, 400, 100, [60.0])
    ours = fitted(da.from_array(X, chunks=(100, 100)), k=1, batch_size=1)
    np.testing.assert_allclose(ours.location_, X.mean(axis=0))
    np.testing.assert_allclose(np.trace(matrix(ours)), np.trace(np.cov(X.T, bias=True)))
    assert abs(ours.eigenvalues_[0] / 60 - 1) < 5 * np.sqrt(2 / 400)
    np.testing.assert_allclose(ours.score(da.from_array(X, chunks=(100, 100))), ours.score(X))
    assert truth.shape == (100, 100)


# --- memory


def test_memory_is_that_of_some_rows(rng):
    n, p, k = 1000, 20_000, 4
    X = sparse.random(n, p, density=5e-4, format="csr", random_state=0)
    tracemalloc.start()
    try:
        ours = fitted(X, k=k, whitening="pca")
        peak = tracemalloc.get_traced_memory()[1]
        scores = ours.transform(X)
    finally:
        tracemalloc.stop()
    rows = sketch_size(k)
    # Rows and copies of them, sums of batches; p x p is 100 times as much
    assert peak < 8 * p * (10 * rows + 20)
    assert scores.shape == (n, k)
    assert len(pickle.dumps(ours)) < 8 * p * (3 * rows + 20)


def test_runs_of_batches_are_no_longer_than_asked(rng):
    from sklearn_gradhess._gradients import RowCoefficients

    X, batch = rng.standard_normal((20, 3)), np.repeat(np.arange(10, dtype=np.int32), 2)
    runs = batch_sums(
        X,
        RowCoefficients(np.ones((20, 1))),
        batch,
        batch_size=2,
        contiguous=True,
        has_intercept=False,
        most=4,
    )
    assert [len(run.per_batch) for run in runs] == [4, 4, 2]


@pytest.mark.parametrize(
    ("n", "d", "density", "expected"),
    [
        (100, 1000, 1.0, 1),  # costs nothing
        (100_000, 100_000, 1.0, 9),  # 3/8 of 24 directions
        (100_000, 100_000, 1e-3, 100_000 // (64 * 24)),  # 64 gradients a direction
        (1000, 10_000_000, 1e-3, 1),
    ],
)
def test_batches_of_a_sketch(n, d, density, expected):
    size = choose_batch_size("auto", n, d, noise="antithetic", sketch_size=24, density=density)
    assert size == expected
    assert choose_batch_size("auto", n, d, noise="single", sketch_size=24) == int(np.sqrt(n / 25))


# --- the spiked model


@pytest.mark.parametrize("ratio", [0.1, 1.0, 20.0])
def test_the_spiked_model_is_inverted(ratio):
    rest, value = 0.3, 0.3 * np.array([200.0, 1 + 2 * np.sqrt(ratio)])
    seen = value * (1 + ratio * rest / (value - rest))
    values, variances = along_components(seen, rest, ratio)
    np.testing.assert_allclose(values, value)
    assert np.all((rest < variances) & (variances < values))
    below = rest * (1 + np.sqrt(ratio)) ** 2 * 0.99
    for found in along_components(np.array([below]), rest, ratio):
        assert found == rest


def test_no_rest_no_correction():
    seen = np.array([3.0, 1.0])
    for found in (*along_components(seen, 0.0, 5.0), eigenvalues_of(seen, 4.0, 2, 10)[0]):
        np.testing.assert_array_equal(found, seen)
    values, rest = eigenvalues_of(seen, 4.0, 100, 50)
    np.testing.assert_array_equal(values, seen)
    assert rest == 0
    assert eigenvalues_of(np.zeros(0), 5.0, 10, 3)[1] == 0.5


def test_variances_and_rest_add_up_to_the_trace():
    values, rest = eigenvalues_of(np.array([90.0, 40.0]), 1000.0, 500, 80)
    np.testing.assert_allclose(values.sum() + 498 * rest, 1000.0)


# --- what is not there, and what is refused


def test_matrices_are_not_there(data):
    ours = fitted(data[0], k=2)
    message = r"is a matrix of 6 x 6, 2\.68e-07 GiB, and with n_components=2 .* components_"
    for name in ("covariance_", "precision_", "gradient_covariance_"):
        assert not hasattr(ours, name)
        with pytest.raises(AttributeError, match=f"^{name} {message}"):
            getattr(ours, name)
    with pytest.raises(AttributeError, match=f"^precision_ {message}"):
        ours.get_precision()
    with pytest.raises(AttributeError, match=r"^covariance_ is a matrix"):
        ours.error_norm(np.eye(6))
    assert np.isnan(ours.excess_risk_)
    plain = GradientCovarianceEstimator().fit(data[0])
    for name in ("components_", "eigenvalues_", "residual_variance_", "n_components_"):
        with pytest.raises(AttributeError, match=f"^{name} is there with n_components alone"):
            getattr(plain, name)
        with pytest.raises(NotFittedError):
            getattr(GradientCovarianceEstimator(n_components=2), name)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "partial_fit_gradients"])
def test_a_matrix_beyond_memory_is_refused_with_the_way_out(method):
    X, estimator = np.zeros((2, 2_000_000), dtype=np.float32), GradientCovarianceEstimator()
    X[0, 0] = 1.0
    arguments = {"antithetic": -X, "batch_size": 1} if method.endswith("gradients") else {}
    with pytest.raises(ValueError, match=r"takes 2\.98e\+04 GiB, .*Set n_components to"):
        getattr(estimator, method)(X, **arguments)
    assert vars(estimator) == estimator.get_params()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_components": 7}, r"^n_components=7 exceeds n_features=6\. Use fewer"),
        ({"shrinkage": "oas"}, r"^shrinkage='oas' needs all gradients, .* Use a number"),
        ({"whitening": "cholesky"}, r"^whitening='cholesky' needs a triangular .* Use whitening="),
        (
            {"noise": "single", "correction": "gaussian"},
            r"^correction='gaussian' needs the inverse",
        ),
        (
            {"noise": "single", "inherent_variance": "estimate"},
            r"^inherent_variance='estimate' keeps",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(data, params, message):
    estimator = GradientCovarianceEstimator(**{"n_components": 2, **params})
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(*data[:2])
    assert vars(estimator) == estimator.get_params()


def test_settings_may_not_change_under_way(data):
    ours = fitted(data[0], k=2)
    with pytest.raises(ValueError, match=r"^n_components=3, but the gradients .* n_components=2"):
        clone(ours).set_params(n_components=2).fit(data[0]).set_params(n_components=3).partial_fit(
            data[0]
        )
    with pytest.raises(
        ValueError, match=r"^Cannot merge estimators with n_components=2 and n_comp"
    ):
        ours.merge(fitted(data[0], k=3))
    with pytest.raises(ValueError, match=r"^shrinkage='oas' needs all gradients"):
        fitted(data[0], k=2).set_params(shrinkage="oas").partial_fit(data[0])
    ours.whitening = "cholesky"
    for call in (ours.transform, ours.inverse_transform):
        with pytest.raises(ValueError, match=r"^whitening='cholesky' needs a triangular factor"):
            call(data[0])


def test_single_noise_is_of_one_round(data):
    X, y, _ = data
    ours = GradientCovarianceEstimator(n_components=2, noise="single", batch_size=30)
    ours.partial_fit(X, y, intercept=y.mean())
    before = vars(ours).copy()
    with pytest.raises(ValueError, match=r"^With n_components, gradients of single noise have to"):
        ours.partial_fit(X, y, coef=np.ones(6))
    assert vars(ours) == before
    other = clone(ours).partial_fit(X, y, coef=np.ones(6))
    with pytest.raises(ValueError, match=r"^With n_components, gradients of single noise have to"):
        ours.merge(other)
    pairs = GradientCovarianceEstimator(n_components=2, random_state=0)
    pairs.partial_fit(X, y).partial_fit(X, y, coef=np.ones(6))  # pairs may be of any
    assert pairs.n_samples_seen_ == 180


def test_moments_of_other_coordinates_do_not_merge():
    one, other = (
        LowRankMoments.empty(5, centered=c, has_intercept=True, size=4) for c in (True, False)
    )
    with pytest.raises(ValueError, match=r"^Cannot merge moments of 5 features \(centered=False"):
        one.merge(other)


def test_numbers_beyond_their_range_are_refused(rng):
    X = rng.standard_normal((30, 50))
    with pytest.raises(ValueError, match=r"^The gradients overflow float64"):
        fitted(X * 1e200)
    with pytest.raises(ValueError, match=r"^The variances vanish in float64: the gradients are"):
        fitted(X * 1e-200)
    with pytest.raises(ValueError, match=r"^The covariance overflows float32"):
        fitted((X * 1e25).astype(np.float32))
    for bad in (np.nan, np.inf):
        Y = X.copy()
        Y[3, 4] = bad
        with pytest.raises(ValueError, match=r"^Input X contains"):
            fitted(Y)


def test_a_dense_result_beyond_memory_is_refused(rng, monkeypatch):
    X = sparse.random(20, 50, density=0.2, format="csr", random_state=0)
    ours = fitted(X, k=2)
    monkeypatch.setattr("sklearn_gradhess._memory.allowed", lambda: 1000.0)
    with pytest.raises(ValueError, match=r"^The result is dense: .* 20 x 50 .* whitening='pca'"):
        ours.transform(X)
    assert ours.set_params(whitening="pca").transform(X).shape == (20, 2)


def test_who_needs_all_components_says_so(data):
    X, y, _ = data
    ours = fitted(X, y, k=2)
    with pytest.raises(ValueError, match=r"^calibration_report judges the whole spectrum"):
        calibration_report(ours)
    with pytest.raises(ValueError, match=r"^norm='mahalanobis' needs a covariance of all direct"):
        dual_norm(np.ones(6), norm="mahalanobis", covariance=ours)
    for given_estimator in (ours, clone(ours)):
        model = PreconditionedSGDRegressor(preconditioner=given_estimator)
        with pytest.raises(ValueError, match=r"^The preconditioner has n_components=2, and a fit"):
            model.fit(X, y)


def test_displays_say_that_they_need_all_components(data):
    pytest.importorskip("matplotlib")
    from sklearn_gradhess.plotting import HessianSpectrumDisplay, NoiseCalibrationDisplay

    X, y, _ = data
    ours = fitted(X, y, k=2)
    with pytest.raises(ValueError, match=r"has n_components=2, and a spectrum is of all"):
        HessianSpectrumDisplay.from_estimators({"ours": ours})
    plain = GradientCovarianceEstimator(random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"^relative_to is a .* with n_components=2, and a cov"):
        HessianSpectrumDisplay.from_estimators({"plain": plain}, relative_to=ours)
    with pytest.raises(ValueError, match=r"^NoiseCalibrationDisplay compares whole covariances"):
        NoiseCalibrationDisplay.from_estimator(ours, X, y)


@pytest.mark.parametrize("whitening", ["pca", "zca"])
@pytest.mark.parametrize("value", [0.0, 3.1, 1e8 / 3])
@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_constant_features_tell_nothing(value, whitening, noise):
    X = np.full((10, 50), value)
    ours = fitted(X, X[:, 0] + 1, k=2, whitening=whitening, noise=noise, batch_size=2)
    assert ours.n_components_ == ours.residual_variance_ == ours.effective_rank_ == 0
    assert np.isnan(ours.expected_error_)
    np.testing.assert_array_equal(
        ours.transform(X), np.zeros((10, 2 if whitening == "pca" else 50))
    )
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), X)
    np.testing.assert_array_equal(ours.newton_step(np.ones(50)), np.zeros(50))
    np.testing.assert_array_equal(ours.mahalanobis(X), np.zeros(10))


# --- warnings


def test_too_few_gradients_are_said(rng):
    with pytest.warns(CalibrationWarning, match=r"^Only 4 gradients for n_components=5"):
        ours = fitted(rng.standard_normal((4, 50)), k=5, batch_size=1)
    assert ours.n_components_ <= 4
    Z = ours.set_params(whitening="pca").transform(np.ones((1, 50)))
    assert Z.shape == (1, 5)
    assert not Z[:, ours.n_components_ :].any()
    assert ours.inverse_transform(Z).shape == (1, 50)


def test_a_wrong_scale_is_seen(rng):
    plus, minus = gradients_of(rng, 200, 60)
    with pytest.warns(CalibrationWarning, match=r"The gradients look 2 times .*gradient_scale=2"):
        GradientCovarianceEstimator(n_components=2).partial_fit_gradients(
            2 * plus, 2 * minus, batch_size=3, has_intercept=True
        )
    with pytest.warns(CalibrationWarning, match=r"column at the other end shows the calibrated"):
        GradientCovarianceEstimator(n_components=2).partial_fit_gradients(
            np.roll(plus, -1, axis=1), np.roll(minus, -1, axis=1), batch_size=3, has_intercept=True
        )


def test_single_noise_far_from_the_optimum_is_said(rng):
    X, truth = spiked(rng, 400, 60, [40.0], offset=0.0)
    y = X @ np.linalg.eigh(truth)[1][:, -1]
    with pytest.warns(CalibrationWarning, match=r"^The excess risk is at least .* batch size 2: "):
        ours = fitted(X, y, k=1, noise="single", batch_size=2)
    assert np.isnan(ours.expected_error_)
    assert ours.correction_ == "spiked"


# --- a citizen of scikit-learn


# Weights are repetitions to all but the correction, which takes repeated rows for rows
@pytest.mark.parametrize(
    ("estimator", "check"), CHECKS, ids=[check.func.__name__ for _, check in CHECKS]
)
@pytest.mark.filterwarnings("ignore::sklearn_gradhess.exceptions.CalibrationWarning")
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("whitening", "columns"), [("pca", 2), ("zca", 6)])
def test_names_and_frames(data, whitening, columns):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(data[0], columns=list("abcdef"))
    ours = fitted(X, k=2, whitening=whitening).set_output(transform="pandas")
    names = [f"gradientcovarianceestimator{i}" for i in range(columns)]
    assert list(ours.get_feature_names_out()) == names
    assert list(ours.transform(X).columns) == names
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.transform(X), ours.transform(X))
    with pytest.raises(
        ValueError, match=rf"^X has 3 whitened features, but .* makes\s+{columns}\."
    ):
        ours.inverse_transform(np.zeros((2, 3)))


def test_the_seed_decides(rng):
    X, _ = spiked(rng, 200, 80, [40.0])
    ours, same, other = (
        GradientCovarianceEstimator(n_components=2, batch_size=5, random_state=seed).fit(X)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(ours.components_, same.components_)
    assert not np.allclose(ours.components_, other.components_)


def test_float32_is_float64_up_to_its_rounding(rng):
    X, _ = spiked(rng, 100, 80, [40.0])
    small, large = fitted(X.astype(np.float32)), fitted(X)
    assert small.components_.dtype == small.location_.dtype == np.float32
    assert small.transform(X.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(matrix(small), matrix(large), atol=1e-3)
