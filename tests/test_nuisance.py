"""The nuisance of single-noise gradients against population moments and samples."""

import numpy as np
import pytest
from scipy.linalg import eigh

from sklearn_gradhess._moments import GradientMoments, centered_block
from sklearn_gradhess._nuisance import find_nuisance
from sklearn_gradhess.diagnostics import expected_relative_error
from tests.oracles import relative_error


def moments_of(rows, weights):
    return GradientMoments.empty(rows.shape[1], centered=True).update(rows, weights)


def population(rng, d, *, has_intercept, n, tau, excess_risk, offset=0.0, k=10**13):
    """Moments of k single-noise gradients with the lemma's covariance, and their truth."""
    root = rng.standard_normal((d, d)) + 2 * np.eye(d)
    omega, mu = root.T @ root, np.zeros(d)
    if has_intercept:
        center = rng.standard_normal(d)
        mu = np.append(1.0, center)
        omega = np.block([[np.zeros((1, d + 1))], [np.zeros((d, 1)), omega]]) + np.outer(mu, mu)
    u = rng.standard_normal(len(omega))
    u *= np.sqrt(excess_risk / (u @ omega @ u))
    if offset:
        u[0] += offset
        excess_risk = u @ omega @ u
    a = mu @ u
    covariance = (tau + excess_risk) * omega + np.outer(omega @ u, omega @ u)
    covariance = (covariance - 2 * a**2 * np.outer(mu, mu)) / n
    factor = np.linalg.cholesky(covariance).T * np.sqrt(n * (k - 1))
    return GradientMoments(factor, omega @ u, n * float(k), k, True), omega, a


@pytest.mark.parametrize("includes_excess", [False, True])
@pytest.mark.parametrize("excess_risk", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("noise_scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("has_intercept", [False, True])
def test_nuisance_is_removed_exactly_from_population_moments(
    has_intercept, noise_scale, excess_risk, includes_excess, rng
):
    n = 32.0
    tau = noise_scale * n
    moments, omega, a = population(
        rng, 4, has_intercept=has_intercept, n=n, tau=tau, excess_risk=excess_risk
    )
    assert (a != 0) == has_intercept
    factor, estimate, *_ = find_nuisance(
        moments,
        has_intercept=has_intercept,
        rows=n,
        total_scale=(tau + includes_excess * excess_risk) / n,
        includes_excess=includes_excess,
    )
    if has_intercept:  # the mean residual's own term stays in the intercept's row
        location, factor = centered_block(factor)
        np.testing.assert_allclose(location, omega[0, 1:], rtol=1e-10)
        omega = omega[1:, 1:] - np.outer(omega[0, 1:], omega[0, 1:])
    assert relative_error(factor.T @ factor, omega) < 1e-10
    assert estimate == pytest.approx(excess_risk, rel=1e-8)


@pytest.mark.parametrize(
    ("has_intercept", "offset"), [(False, 0.0), (True, 0.0), (True, 3.0), (True, -20.0)]
)
def test_what_is_removed_has_the_sizes_that_are_told(has_intercept, offset, rng):
    n, tau = 32.0, 32.0
    moments, omega, a = population(
        rng, 4, has_intercept=has_intercept, n=n, tau=tau, excess_risk=5.0, offset=offset
    )
    found = find_nuisance(moments, has_intercept=has_intercept, rows=n, total_scale=tau / n)
    covariance = moments.covariance()
    if has_intercept:  # of the features, less what their gradients share with the intercept's
        covariance, omega = (
            m[1:, 1:] - np.outer(m[0, 1:], m[0, 1:]) / m[0, 0] for m in (covariance, omega)
        )
    total = tau + found.excess_risk
    sizes = eigh(n * covariance, total * omega, eigvals_only=True) - 1
    least, greatest = total / tau * (1 + sizes[[0, -1]]) - 1
    np.testing.assert_allclose([found.least, found.greatest], [least, greatest], rtol=1e-6)
    # the mean residual's own a^2 is a part of the scale for any features
    gaussian = max(total / (tau + a**2) * (1 + sizes[-1]) - 1, -sizes[0])
    assert found.assumed == pytest.approx(gaussian, rel=1e-6)


def test_no_excess_risk_leaves_the_covariance_alone(rng):
    rows = rng.standard_normal((50, 3))
    moments = moments_of(rows - rows.mean(0), np.full(50, 8.0))
    moments = GradientMoments(moments.factor, np.zeros(3), 400.0, 50, True)
    factor, excess_risk, *_ = find_nuisance(moments, has_intercept=False, rows=8, total_scale=1.0)
    np.testing.assert_allclose(factor, moments.covariance_factor(), rtol=1e-12, atol=1e-14)
    assert excess_risk == 0.0


def test_sampled_gaussian_batches_are_corrected_to_the_sampling_error(rng):
    d, n, k, excess_risk = 5, 32, 10_000, 25.0
    sigma = np.diag(np.geomspace(1, 0.1, d))
    u = np.ones(d)
    u *= np.sqrt(excess_risk / (u @ sigma @ u))
    X = rng.standard_normal((k, n, d)) * np.sqrt(np.diag(sigma))
    residual = X @ u + np.sqrt(n) * rng.standard_normal((k, n))
    gradients = np.einsum("knd,kn->kd", X, residual) / n
    moments = moments_of(gradients, np.full(k, float(n)))
    factor, estimate, *_ = find_nuisance(moments, has_intercept=False, rows=n, total_scale=1.0)
    floor = expected_relative_error(np.diag(sigma), k)
    assert relative_error(factor.T @ factor, sigma) < 2 * floor
    assert relative_error(moments.covariance(), sigma) > 10 * floor
    # q = mean'Cov^-1 mean has the relative standard error sqrt(2/k + 4/(k q)) <= 3/sqrt(k) here,
    # and m^2/n = q/n / (1 - 2 q/n) magnifies it by 1 + 2 m^2/n
    assert abs(estimate / excess_risk - 1) < 5 * (3 / np.sqrt(k)) * (1 + 2 * excess_risk / n)


def test_excess_risk_has_no_small_sample_bias(rng):
    # n so large that gradients are Gaussian with covariance one and m^2 = |mean|^2
    k, p, n, repeats = 20, 4, 1e6, 1500
    mean = np.array([5.0, 0.0, 0.0, 0.0])
    estimates = [
        find_nuisance(
            moments_of(mean + rng.standard_normal((k, p)), np.full(k, n)),
            has_intercept=False,
            rows=n,
            total_scale=1.0,
        ).excess_risk
        for _ in range(repeats)
    ]
    # five standard errors, and the curvature 2 (m^2 + its variance/m^2)/n of the map from q to m^2
    assert abs(np.mean(estimates) - 25) < 5 * np.std(estimates) / np.sqrt(repeats) + 1e-2


@pytest.mark.parametrize("k", [3, 5, 6])
def test_too_few_gradients_for_the_dimension_are_not_corrected(k, rng):
    moments = moments_of(rng.standard_normal((k, 4)), np.full(k, 16.0))
    assert find_nuisance(moments, has_intercept=False, rows=16, total_scale=1.0) is None


@pytest.mark.parametrize(("share", "defined"), [(0.49, True), (0.51, False), (1e6, False)])
def test_a_mean_gradient_past_saturation_is_not_corrected(share, defined):
    n, k = 16.0, 10**9
    factor = np.eye(2) * np.sqrt(n * (k - 1))  # covariance one: mean'Cov^-1 mean = |mean|^2
    moments = GradientMoments(factor, np.array([np.sqrt(share * n), 0.0]), n * k, k, True)
    corrected = find_nuisance(moments, has_intercept=False, rows=n, total_scale=1.0)
    assert (corrected is not None) is defined


def test_an_excess_risk_that_is_all_in_the_intercept_is_recovered():
    # u = (a, 0): n Cov(g) = (tau + a^2) Omega - a^2 mu mu', mean(g) = a mu
    n, k, tau, a = 16.0, 10**12, 16.0, 2.0
    mu, omega = np.array([1.0, 0.5]), np.array([[1.0, 0.5], [0.5, 2.25]])
    covariance = ((tau + a**2) * omega - a**2 * np.outer(mu, mu)) / n
    factor = np.linalg.cholesky(covariance).T * np.sqrt(n * (k - 1))
    moments = GradientMoments(factor, a * mu, n * k, k, True)
    factor, excess_risk, *_ = find_nuisance(
        moments, has_intercept=True, rows=n, total_scale=tau / n
    )
    location, block = centered_block(factor)
    assert excess_risk == pytest.approx(a**2, rel=1e-9)
    assert location[0] == pytest.approx(0.5, rel=1e-9)
    assert block[0, 0] ** 2 == pytest.approx(2.0, rel=1e-9)
