"""Newton steps with the recovered Hessian, against dense normal equations."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression

from sklearn_gradhess import GradientCovarianceEstimator

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
