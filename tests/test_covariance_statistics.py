"""What holds on average, with fixed seeds and bounds several standard errors wide."""

import numpy as np
import pytest

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from tests.oracles import relative_error


def wishart_error(covariance, k, n_draws=40, seed=0):
    """Mean relative error of the second moment of k Gaussian draws."""
    rng, root = np.random.default_rng(seed), np.linalg.cholesky(covariance)
    draws = (rng.standard_normal((k, len(root))) @ root.T for _ in range(n_draws))
    return np.mean([relative_error(g.T @ g / k, covariance) for g in draws])


def mean_error(made, **settings):
    """Mean relative error over data sets; `made` makes one from a seed."""
    errors = []
    for seed in range(12):
        data = made(seed)
        estimator = GradientCovarianceEstimator(random_state=1000 + seed, **settings)
        estimator.partial_fit(data.data, data.target)
        errors.append(relative_error(estimator.covariance_, data.covariance))
    return np.mean(errors)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "student_t"])
@pytest.mark.parametrize("excess_risk", [0.0, 40.0])
def test_antithetic_error_is_at_the_wishart_floor_however_far_from_the_optimum(
    distribution, excess_risk
):
    k, n = 400, 16

    def made(seed):
        return make_hessian_regression(
            k * n,
            20,
            distribution=distribution,
            excess_risk=excess_risk,
            noise=3,
            random_state=seed,
        )

    error = mean_error(made, batch_size=n)
    floor = wishart_error(made(0).covariance, k)
    # one error scatters by 25 % at most, so 12 of them by 7 %: 1.2 is three standard errors off
    assert error < 1.2 * floor


def test_the_correction_brings_twelve_floors_down_to_one():
    d, n, k = 20, 32, 2000

    def made(seed):
        return make_hessian_regression(
            k * n, d, condition_number=100, excess_risk=25, noise=0, random_state=seed
        )

    floor = wishart_error(made(0).covariance, k)
    settings = {"batch_size": n, "noise": "single"}
    # the nuisance alone is between m^2/n = 0.78 and 2 m^2/n, by the direction of the error
    assert mean_error(made, correction="none", **settings) > 12 * floor
    assert mean_error(made, correction="gaussian", **settings) < 1.7 * floor


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize(
    ("settings", "weighted", "n"),
    [
        pytest.param({}, False, 60, id="whole batches"),
        pytest.param({}, False, 57, id="incomplete batch"),
        pytest.param({"shuffle": False}, False, 57, id="contiguous"),
        pytest.param({"noise_scale": 3.0}, True, 57, id="weighted"),
        pytest.param({"loss": "log_loss"}, False, 60, id="log_loss"),
        pytest.param({"loss": "poisson"}, True, 57, id="poisson, weighted"),
        pytest.param({"loss": "huber", "epsilon": 0.9}, False, 60, id="huber"),
        pytest.param({"loss": "tweedie", "power": 1.5}, True, 57, id="tweedie, weighted"),
    ],
)
def test_the_antithetic_second_moment_is_unbiased(distribution, settings, weighted, n, rng):
    X, coef = rng.standard_normal((n, 4)) + 0.5, np.array([0.4, -0.6, 0.2, 0.1])
    y, w = rng.integers(0, 2, n), rng.uniform(0.2, 2, n) if weighted else np.ones(n)
    n_redraws = 20_000
    estimator = GradientCovarianceEstimator(
        batch_size=6,
        n_redraws=n_redraws,
        noise_distribution=distribution,
        assume_centered=True,
        random_state=0,
        **settings,
    ).fit(X, y, w if weighted else None, coef=coef)
    f = X @ coef
    v = {
        "squared_error": np.ones(n),
        "log_loss": 1 / (2 + 2 * np.cosh(f)),
        "poisson": np.exp(f),
        "huber": np.abs(f - y) <= 0.9,
        "tweedie": 0.5 * np.exp(0.5 * f) + 0.5 * y * np.exp(-0.5 * f),
    }[estimator.loss]
    H = X.T @ (X * (w * v)[:, None]) / w.sum()
    # one redraw has the variance sum_b (W_b/W)^2 (S_ii S_jj + S_ij^2) at most, S = S_b the second
    # moment of batch b, whose trace over batches W_b/W S_b is H: at most H_ii H_jj + H_ij^2
    variance = (np.outer(np.diag(H), np.diag(H)) + H**2) / n_redraws
    assert np.all(np.abs(estimator.covariance_ - H) < 5 * np.sqrt(variance))


def test_redraws_lower_the_error_that_noise_adds(rng):
    X = rng.standard_normal((640, 5))
    exact = X.T @ X / 640
    errors = [
        [
            relative_error(
                GradientCovarianceEstimator(
                    batch_size=16, n_redraws=n_redraws, assume_centered=True, random_state=seed
                )
                .fit(X)
                .covariance_,
                exact,
            )
            for seed in range(20)
        ]
        for n_redraws in (1, 16)
    ]
    # sixteen times the draws, a quarter of the error; two means of 20 scatter by 10 %
    assert np.mean(errors[0]) / np.mean(errors[1]) == pytest.approx(4, rel=0.3)


def test_the_error_of_uncorrected_gradients_is_v_shaped_in_the_total_noise():
    data = make_hessian_regression(
        32 * 3000, 10, condition_number=10, excess_risk=0, noise=0, random_state=0
    )
    scales = np.array([1 / 4, 1 / 2, 1, 2, 4])
    errors = [
        relative_error(
            GradientCovarianceEstimator(
                batch_size=32, noise="single", noise_scale=scale, random_state=0
            )
            .partial_fit(data.data, data.target)
            .gradient_covariance_,
            data.covariance,
        )
        for scale in scales
    ]
    # the covariance is `scale` times the Hessian; sampling adds 2 sqrt(r/k) + r/k of it at most
    r = np.trace(data.covariance) / np.linalg.norm(data.covariance, 2)
    np.testing.assert_array_less(
        np.abs(errors - np.abs(scales - 1)), scales * (2 * np.sqrt(r / 3000) + r / 3000)
    )
    assert np.argmin(errors) == 2


@pytest.mark.parametrize(
    ("settings", "at_optimum", "expected"),
    [
        pytest.param({"correction": "none"}, True, 1 + 4 / 16, id="blind"),
        pytest.param({"correction": "gaussian"}, True, 1 + 4 / 16, id="blind, corrected"),
        pytest.param({"inherent_variance": 4.0}, True, 1, id="known"),
        pytest.param({"inherent_variance": 4.0}, False, 1, id="known, far"),
        pytest.param({"inherent_variance": "estimate"}, True, 1, id="estimated"),
        pytest.param({"inherent_variance": "estimate"}, False, 1, id="estimated, far"),
        pytest.param({"inherent_variance": 4.0, "noise": "none"}, True, 1, id="no injection"),
        pytest.param({"inherent_variance": "estimate", "noise": "none"}, True, 1, id="residuals"),
        pytest.param({"inherent_variance": 1e9, "noise": "antithetic"}, False, 1, id="cancels"),
    ],
)
def test_inherent_noise_scales_the_hessian_unless_it_is_accounted_for(
    settings, at_optimum, expected
):
    d, n, k = 10, 16, 2500
    data = make_hessian_regression(n * k, d, noise=2.0, excess_risk=3.0, random_state=1)
    estimator = GradientCovarianceEstimator(
        **{"batch_size": n, "noise": "single", "random_state": 0} | settings
    ).fit(data.data, data.target, coef=data.coef if at_optimum else None)
    ratio = np.trace(np.linalg.solve(data.covariance, estimator.covariance_)) / d
    # a mean of d k squares of a Gaussian, and the nuisance, known to sqrt(2/k) of its m^2/n
    assert ratio == pytest.approx(expected, rel=5 * (np.sqrt(2 / (d * k)) + 3 / n * np.sqrt(2 / k)))


@pytest.mark.parametrize(
    ("loss", "curvature"),
    [("log_loss", lambda f: 1 / (2 + 2 * np.cosh(f))), ("poisson", np.exp)],
)
def test_noise_calibrated_to_the_curvature_gives_the_hessian_of_a_glm(loss, curvature):
    d, n, k = 10, 16, 1500
    rng = np.random.default_rng(0)
    X, coef = rng.standard_normal((n * k, d)), rng.standard_normal(d) * 0.6 / np.sqrt(d)
    f = X @ coef + 0.5
    y = rng.binomial(1, 1 / (1 + np.exp(-f))) if loss == "log_loss" else rng.poisson(np.exp(f))
    Z = np.column_stack([np.ones(n * k), X])
    H = Z.T @ (Z * curvature(f)[:, None]) / len(Z)
    H = H[1:, 1:] - np.outer(H[0, 1:], H[0, 1:]) / H[0, 0]
    errors = {}
    for name in (loss, "squared_error"):
        estimator = GradientCovarianceEstimator(batch_size=n, loss=name, random_state=0)
        estimator.fit(X, y, coef=coef, intercept=0.5)
        errors[name] = relative_error(estimator.covariance_, H)
        if name == loss:
            # the fourth moment of curvature-weighted rows is above a Gaussian's: allow half more
            assert errors[loss] < 1.5 * estimator.expected_error_
    # variance n gives the covariance of the features, which is not even near
    assert errors["squared_error"] > 0.3
    assert errors["squared_error"] > 3 * errors[loss]


@pytest.mark.parametrize("noise", ["antithetic", "single"])
@pytest.mark.parametrize("intercept_error", [0.0, 1.5])
@pytest.mark.parametrize("inherent_variance", [4.0, "estimate"])
def test_excess_risk_is_that_of_the_coefficients_and_the_intercept(
    noise, intercept_error, inherent_variance
):
    d, n, k = 8, 32, 2000
    data = make_hessian_regression(n * k, d, noise=2.0, excess_risk=5.0, random_state=2)
    X = data.data + 3.0  # features with a mean: the two errors mix
    intercept = data.intercept - 3.0 * data.coef.sum()
    estimator = GradientCovarianceEstimator(
        batch_size=n, noise=noise, inherent_variance=inherent_variance, random_state=0
    ).fit(
        X,
        data.target,
        coef=0.2 * data.coef,
        intercept=intercept + 3.0 * 0.8 * data.coef.sum() + intercept_error,
    )
    truth = 0.64 * 5.0 + intercept_error**2
    # m^2 is a product of mean gradients, of noise s^2 or n, in an inverse of k squares:
    # Var = m^4 (4 (tau + 2 m^2)/(m^2 N) + 2/k)
    tau = 4.0 if noise == "antithetic" else n
    deviation = np.sqrt(4 * (tau + 2 * truth) / (truth * n * k) + 2 / k)
    assert estimator.excess_risk_ == pytest.approx(truth, rel=5 * deviation)
    assert estimator.correction_ == ("gaussian" if noise == "single" else "none")


def test_antithetic_excess_risk_at_the_optimum_is_nothing_but_noise():
    data = make_hessian_regression(30_000, 8, noise=2.0, random_state=2)
    estimator = GradientCovarianceEstimator(batch_size=16, random_state=0)
    estimator.fit(data.data, data.target, coef=data.coef, intercept=data.intercept)
    # products of independent means: deviation sqrt(2 p) s^2/N, p = d + 1
    assert 0 <= estimator.excess_risk_ < 5 * np.sqrt(2 * 9) * 4 / 30_000


@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_location_is_recovered_from_gradients_alone(noise):
    n, k = 16, 2000
    data = make_hessian_regression(n * k, 6, excess_risk=1.0, noise=1.0, random_state=3)
    location = np.array([5.0, -3, 0, 1, 100, 1e4])
    rng = np.random.default_rng(0)
    Z = np.column_stack([np.ones(n * k), data.data + location])
    xi = rng.normal(0, np.sqrt(n), n * k)

    def gradients(sign):
        residual = -(data.target + sign * xi)  # at zero coefficients
        return np.einsum("bi,bip->bp", residual.reshape(k, n), Z.reshape(k, n, -1)) / n

    estimator = GradientCovarianceEstimator(noise=noise).partial_fit_gradients(
        gradients(1),
        gradients(-1) if noise == "antithetic" else None,
        batch_size=n,
        has_intercept=True,
    )
    # regression of the gradients on the intercept's: variance over k
    bound = 5 * np.sqrt(np.diag(data.covariance) / k)
    assert np.all(np.abs(estimator.location_ - location) < bound)
    assert relative_error(estimator.covariance_, data.covariance) < 1.2 * estimator.expected_error_


@pytest.mark.parametrize("condition_number", [1.0, 1e4])
@pytest.mark.parametrize("k", [100, 1000])
def test_expected_error_bounds_the_mean_error_and_is_of_its_order(condition_number, k):
    errors, expected = [], []
    for seed in range(12):
        data = make_hessian_regression(
            4 * k, 15, condition_number=condition_number, random_state=seed
        )
        estimator = GradientCovarianceEstimator(batch_size=4, random_state=1000 + seed).fit(
            data.data
        )
        errors.append(relative_error(estimator.covariance_, data.covariance))
        expected.append(estimator.expected_error_)
    # 12 errors that scatter by a quarter each
    assert 0.3 * np.mean(expected) < np.mean(errors) < 1.1 * np.mean(expected)


def test_dealing_rows_at_random_makes_sorted_levels_as_good_as_unsorted_ones():
    d, n, k = 20, 32, 500
    data = make_hessian_regression(n * k, d, distribution="one_hot", random_state=100)
    X = data.data
    sorted_X = X[np.argsort(X @ np.arange(1, d + 1), kind="stable")]
    frequency = X.mean(axis=0)

    def error(X, **settings):
        ratios = [
            np.diag(
                GradientCovarianceEstimator(
                    batch_size=n, assume_centered=True, random_state=seed, **settings
                )
                .partial_fit(X)  # fit would warn that sorted levels leave a covariance singular
                .covariance_
            )
            / frequency
            for seed in range(10)
        ]
        return np.sqrt(np.mean((np.array(ratios) - 1) ** 2))

    # the second moment of a level with c_b rows in batch b is sum_b (sum of c_b signs)^2 / N, of
    # relative variance sum_b 2 c_b (c_b - 1)/c^2: 2/k when dealt, 2 n/c when c rows lie together
    dealt, together = np.sqrt(2 / k), np.sqrt(np.mean(2 * n / (n * k * frequency)))
    assert together > 3 * dealt
    # a root mean square of 10 times 20 errors scatters by 1/sqrt(400)
    width = 5 / np.sqrt(2 * 10 * d)
    assert error(X) < (1 + width) * dealt
    assert error(sorted_X) < (1 + width) * dealt
    assert error(sorted_X, shuffle=False) > 0.5 * together


def test_normal_and_rademacher_noise_agree_in_the_mean(rng):
    X = rng.standard_normal((320, 3)) @ rng.standard_normal((3, 3)) + 1
    normal, signs = (
        GradientCovarianceEstimator(
            batch_size=8, n_redraws=4000, noise_distribution=law, random_state=0
        ).fit(X)
        for law in ("normal", "rademacher")
    )
    S = normal.covariance_
    deviation = np.sqrt((np.outer(np.diag(S), np.diag(S)) + S**2) * 2 / (40 * 4000))
    assert np.all(np.abs(S - signs.covariance_) < 5 * deviation)


@pytest.mark.parametrize("distribution", ["one_hot", "rademacher"])
@pytest.mark.parametrize("law", ["rademacher", "normal"])
def test_data_of_the_same_seed_are_independent_of_the_noise(distribution, law):
    # everybody passes random_state=0 twice; the noise must not be the numbers that made the data
    data = make_hessian_regression(16_000, 1, distribution=distribution, random_state=0)
    estimator = GradientCovarianceEstimator(
        batch_size=32, noise_distribution=law, assume_centered=True, random_state=0
    ).fit(data.data)
    # k = 500 squares
    assert estimator.covariance_[0, 0] == pytest.approx(
        np.mean(data.data**2), rel=5 * np.sqrt(2 / 500)
    )
