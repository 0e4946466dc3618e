"""Losses against scikit-learn's, and the worst of them against fine grids."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import mean_gamma_deviance, mean_pinball_loss, mean_poisson_deviance

from sklearn_gradhess._worst import (
    gamma_deviance,
    joint_square,
    make_pinball,
    poisson_deviance,
    squared,
    worse,
)

RNG = np.random.default_rng(0)
Y, MEAN = RNG.gamma(2.0, size=50), RNG.gamma(2.0, size=50)


def test_losses_are_those_of_scikit_learn():
    zeros = np.where(Y < 1, 0.0, Y)
    assert_allclose(poisson_deviance(zeros, MEAN).mean(), mean_poisson_deviance(zeros, MEAN))
    assert_allclose(gamma_deviance(Y, MEAN).mean(), mean_gamma_deviance(Y, MEAN))
    for q in (0.0, 0.2, 0.5, 1.0):
        assert_allclose(make_pinball(q)(Y, MEAN).mean(), mean_pinball_loss(Y, MEAN, alpha=q))


@pytest.mark.parametrize(
    "loss", [squared, poisson_deviance, gamma_deviance, make_pinball(0.3), make_pinball(0.9)]
)
def test_the_worse_end_is_the_worst_of_the_interval(loss):
    low, high = 0.5 * MEAN, 3 * MEAN
    inside = low + np.linspace(0, 1, 201)[:, None] * (high - low)
    worst = np.max([loss(Y, f) for f in inside], axis=0)
    assert_allclose(loss(Y, worse(Y, low, high, loss)), worst, rtol=1e-12)


def circle(errors, W, radius):
    angle = np.linspace(0, 2 * np.pi, 40_001)
    delta = radius * np.stack([np.cos(angle), np.sin(angle)])
    return np.array([np.max(np.sum(np.square(e[:, None] + W @ delta), axis=0)) for e in errors])


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("radius", [0.0, 0.1, 1.0, 30.0])
def test_one_attack_on_several_outputs_against_a_fine_circle(k, radius):
    rng = np.random.default_rng(k)
    W = rng.normal(size=(k, 2))
    u = np.linalg.svd(W)[0]
    # no error at all, and errors without a part along the strongest direction, or with it alone
    errors = np.vstack([np.zeros(k), u[:, -1], 3 * u[:, 0], rng.normal(size=(5, k))])
    found = joint_square(errors, W @ W.T, radius)
    assert_allclose(found, circle(errors, W, radius), rtol=1e-7)
    by_row = joint_square(errors, np.broadcast_to(W @ W.T, (len(errors), k, k)), radius)
    assert_allclose(by_row, found, rtol=1e-12)


def test_outputs_that_nothing_moves_and_outputs_that_move_alike():
    errors = np.array([[1.0, -2.0], [0.0, 0.0]])
    assert_allclose(joint_square(errors, np.zeros((2, 2)), 3.0), [5.0, 0.0])
    equal = np.eye(2)  # any direction is the strongest
    assert_allclose(joint_square(errors, equal, 1.0), [(np.sqrt(5) + 1) ** 2, 1.0], rtol=1e-12)


def test_sizes_of_any_order():
    W = RNG.normal(size=(3, 2))
    errors = RNG.normal(size=(4, 3))
    plain = joint_square(errors, W @ W.T, 0.5)
    for unit in (1e-120, 1e120):
        scaled = joint_square(unit * errors, unit**2 * (W @ W.T), 0.5)
        assert_allclose(scaled / unit**2, plain, rtol=1e-10)
