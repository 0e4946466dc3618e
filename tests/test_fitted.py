"""Newton steps with the recovered Hessian, against dense normal equations."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.diagnostics import expected_relative_error

X, Y = load_diabetes(return_X_y=True, scaled=False)
Z = np.insert(X, 0, 1.0, axis=1)


def exact(**kwargs):
    """Batches of one row with signs: the Hessian of the data itself."""
    return GradientCovarianceEstimator(batch_size=1, random_state=0, **kwargs)


@pytest.mark.parametrize("weighted", [False, True])
def test_one_step_from_anywhere_is_least_squares(weighted):
    rng = np.random.default_rng(0)
    w = rng.integers(1, 4, len(X)).astype(float) if weighted else np.ones(len(X))
    at = rng.standard_normal(11)
    gradient = Z.T @ (w * (Z @ at - Y)) / w.sum()
    hessian = exact().fit(X, sample_weight=w if weighted else None)
    want = LinearRegression().fit(X, Y, w)
    got = at - hessian.newton_step(gradient)
    np.testing.assert_allclose(got[1:], want.coef_, rtol=1e-6)
    assert got[0] == pytest.approx(want.intercept_)


def test_steps_with_the_hessian_of_a_glm_are_those_of_newton():
    rng = np.random.default_rng(1)
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    augmented, late = np.insert(scaled, 0, 1.0, axis=1), (Y > 140).astype(float)
    at = 0.3 * rng.standard_normal(11)
    p = expit(augmented @ at)
    gradient = augmented.T @ (p - late) / len(X)
    dense = augmented.T @ ((p * (1 - p))[:, None] * augmented) / len(X)
    hessian = exact(loss="log_loss").fit(scaled, late, coef=at[1:], intercept=at[0])
    step = hessian.newton_step(gradient)
    np.testing.assert_allclose(step, np.linalg.solve(dense, gradient), rtol=1e-7)


def test_newton_steps_reach_the_minimum_of_a_glm():
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    augmented, late = np.insert(scaled, 0, 1.0, axis=1), (Y > 140).astype(float)
    at = np.zeros(11)
    for _ in range(8):
        hessian = exact(loss="log_loss").fit(scaled, late, coef=at[1:], intercept=at[0])
        at = at - hessian.newton_step(augmented.T @ (expit(augmented @ at) - late) / len(X))
    want = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(scaled, late)
    np.testing.assert_allclose(at[1:], want.coef_[0], rtol=1e-6)


def test_a_gradient_without_the_intercept_is_that_with_the_intercept_eliminated():
    hessian, g = exact().fit(X), np.random.default_rng(2).standard_normal(10)
    np.testing.assert_allclose(hessian.newton_step(g), hessian.precision_ @ g, rtol=1e-6)
    # An intercept at its optimum, up to what the coefficients move
    whole = np.append(0.0, g)
    np.testing.assert_allclose(hessian.newton_step(whole)[1:], hessian.newton_step(g))


def test_without_an_intercept_the_second_moment_is_inverted():
    hessian, g = exact(assume_centered=True).fit(X), np.random.default_rng(3).standard_normal(11)
    step = hessian.newton_step(g)
    np.testing.assert_allclose(step[1:], np.linalg.solve(X.T @ X / len(X), g[1:]), rtol=1e-6)
    assert step[0] == g[0]  # nothing is known of the means: they are taken for zero


def test_singular_directions_are_left_alone():
    doubled = np.column_stack([X, X[:, 0]])
    with pytest.warns(match="singular"):
        hessian = exact().fit(doubled)
    step = hessian.newton_step(np.insert(doubled, 0, 1.0, axis=1).T @ -Y / len(Y))
    assert step[1] == pytest.approx(step[-1])
    np.testing.assert_allclose(
        -np.insert(doubled, 0, 1.0, axis=1) @ step, LinearRegression().fit(X, Y).predict(X)
    )


@pytest.mark.parametrize("shape", [(9,), (12,), (1, 10)])
def test_a_gradient_of_another_length_is_refused(shape):
    hessian = exact().fit(X)
    match = (
        r"but the Hessian is of 10 features: pass \(10,\), or \(11,\) with the intercept's "
        r"gradient in front\.$"
    )
    with pytest.raises(ValueError, match=match):
        hessian.newton_step(np.zeros(shape))


def test_what_is_no_number_and_what_is_not_fitted_is_refused():
    with pytest.raises(ValueError, match="Input gradient contains NaN"):
        exact().fit(X).newton_step(np.full(10, np.nan))
    with pytest.raises(NotFittedError):
        exact().newton_step(np.zeros(10))


# --- the effective number of gradients


def spread(n_seeds=100, d=40, **cases):
    """Variance of the diagonal of `covariance_` in units of its square, and 2/n_effective."""
    seen, told = [], []
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        rows, parameters = rng.standard_normal((240, d)), dict(cases)
        weights = rng.pareto(3, 240) + 1 if parameters.pop("weighted", False) else None
        y = np.sqrt(parameters.get("inherent_variance", 0.0)) * rng.standard_normal(240)
        hessian = GradientCovarianceEstimator(
            assume_centered=True, random_state=seed, correction="none", **parameters
        ).fit(rows, y, sample_weight=weights)
        seen.append(np.diag(hessian.covariance_))
        told.append(2 / hessian.fitted_.n_effective)
    return np.mean((np.array(seen) - 1) ** 2), np.mean(told)


@pytest.mark.filterwarnings("ignore::sklearn_gradhess.CalibrationWarning")
@pytest.mark.parametrize(
    "case",
    [
        {"batch_size": 1, "n_redraws": 10},
        {"batch_size": 6, "n_redraws": 1},
        {"batch_size": 6, "n_redraws": 10},
        {"batch_size": 60, "n_redraws": 10},
        {"batch_size": 6, "n_redraws": 10, "weighted": True},
        {"batch_size": 1, "weighted": True},
        {"batch_size": 12, "n_redraws": 10, "noise": "single"},
        {"batch_size": 12, "n_redraws": 10, "noise": "single", "inherent_variance": 8.0},
    ],
)
def test_a_variance_of_the_estimate_is_two_over_the_effective_number_of_gradients(case):
    seen, told = spread(**case)
    # 4000 uncorrelated diagonals, each nearly Gaussian: standard error sqrt(2/4000) = 2.2 %. Single
    # noise about its mean, and rows that enter their clean gradient, change it by 1/k and 1/n
    rtol = 5 * np.sqrt(2 / 4000) + (0.1 if "noise" in case else 0.0)
    assert seen == pytest.approx(told, rel=rtol)


def test_the_expected_error_is_that_of_the_effective_number():
    rows = np.random.default_rng(0).standard_normal((80, 20)) * np.geomspace(1, 1e-2, 20)
    once = exact().fit(rows)
    again = exact(n_redraws=10).fit(rows)  # of one row and signs: the same ten times over
    np.testing.assert_allclose(again.covariance_, once.covariance_)
    assert again.expected_error_ == pytest.approx(once.expected_error_)
    heavy = np.where(np.arange(80) < 40, 1.0, 1e-9)  # half of the rows hardly count
    assert exact().fit(rows, sample_weight=heavy).fitted_.n_effective == pytest.approx(40)


@pytest.mark.filterwarnings("ignore::sklearn_gradhess.CalibrationWarning")
def test_the_nuisance_counts_once_where_the_estimated_noise_contains_it():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40_000, 3))
    y = 2 * rows[:, 0] + rng.standard_normal(40_000)
    settings = {"batch_size": 8, "noise": "single", "correction": "none", "random_state": 0}
    for inherent, times in ((1.0, 2), ("estimate", 1)):
        hessian = GradientCovarianceEstimator(inherent_variance=inherent, **settings).fit(rows, y)
        share = hessian.excess_risk_ / 8
        k, rank = hessian.fitted_.n_effective, hessian.effective_rank_
        sampling = expected_relative_error(rank / (1 - np.sqrt(rank / k)) ** 2, k)
        nuisance = hessian.expected_error_ - sampling
        assert nuisance == pytest.approx(times * share, rel=1e-3)
        # five standard errors of the mean of k squares: .2, where the share is .5
        top = 1 + times * 4 / 8
        assert hessian.covariance_[0, 0] == pytest.approx(top, rel=5 * np.sqrt(2 / 5000))


@pytest.mark.filterwarnings("ignore::sklearn_gradhess.CalibrationWarning")
@pytest.mark.parametrize(
    ("noise", "inherent", "coef", "share"),
    [
        ("antithetic", 0.0, 0.0, 0.0),
        ("none", 1.0, 0.0, 1.0),
        ("single", 2.0, 0.0, 0.25),
        ("single", 0.0, 100.0, 1.0),  # past saturation: how far is not known
    ],
)
def test_redraws_share_what_is_not_redrawn(noise, inherent, coef, share):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((32_000, 2))
    hessian = GradientCovarianceEstimator(
        batch_size=8, n_redraws=4, noise=noise, inherent_variance=inherent, random_state=0
    )
    hessian.fit(rows, np.sqrt(inherent) * rng.standard_normal(32_000), coef=[coef, 0.0])
    # a^2 of the correlation of redraws is one, the rest 1/n
    n_redraws = 1 if noise == "none" else 4
    shared = share**2 + (1 - share**2) / 8
    assert hessian.fitted_.n_effective == pytest.approx(
        4000 * n_redraws / (1 + (n_redraws - 1) * shared), rel=0.02
    )
