"""Losses for regression beyond least squares: their solutions, scales, units and scores."""

import warnings
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    GammaRegressor,
    HuberRegressor,
    PoissonRegressor,
    QuantileRegressor,
    TweedieRegressor,
)
from sklearn.metrics import d2_tweedie_score, mean_pinball_loss, r2_score

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess import PreconditionedSGDRegressor as Regressor
from tests import plans

NOISES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy": lambda rng, n: rng.standard_t(2, size=n),
    "skew": lambda rng, n: rng.exponential(size=n) ** 2,
    "outliers": lambda rng, n: np.where(rng.random(n) < 0.05, 1e3, rng.standard_normal(n)),
}
LOG_LINKS = {
    "poisson": PoissonRegressor(alpha=0, tol=1e-10, solver="newton-cholesky"),
    "gamma": GammaRegressor(alpha=0, tol=1e-10, solver="newton-cholesky"),
    "tweedie": TweedieRegressor(
        power=1.5, alpha=0, link="log", tol=1e-10, solver="newton-cholesky"
    ),
}


@pytest.fixture
def sketched(monkeypatch):
    """Take small data for large: a sketch, and a first estimate from a share of the rows."""
    plans.plan_for(monkeypatch, plans.mini_batches)


def regression(rng, n, noise="heavy", d=4):
    X = rng.standard_normal((n, d))
    return X, X @ np.linspace(1, 2, d) + 3 + NOISES[noise](rng, n)


def positive(rng, n, loss):
    X = 0.5 * rng.standard_normal((n, 3))
    mean = np.exp(X @ [0.5, -1.0, 0.2] + 1)
    draw = {
        "poisson": lambda: rng.poisson(mean),
        "gamma": lambda: rng.gamma(2.0, mean / 2),
        "tweedie": lambda: rng.poisson(mean) * rng.gamma(2.0, 0.5, n),
    }[loss]
    return X, draw().astype(float)


def joint_equations(X, y, model, weight=None, alpha=0.0):
    """Derivatives of Huber's concomitant objective, a row, in coefficients and in the scale."""
    weight = np.ones(len(y)) if weight is None else weight
    z = (y - model.predict(X)) / model.scale_
    psi = np.clip(z, -model.epsilon, model.epsilon) * weight / weight.sum()
    slope = psi @ X - alpha * model.coef_ / model.scale_
    fill = weight @ np.minimum(z**2, model.epsilon**2) / weight.sum() - 1
    return np.append(slope, [psi.sum(), fill])


# --- Huber


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("epsilon", [1.05, 1.35, 3.0])
def test_huber_minimises_the_concomitant_objective(rng, noise, epsilon):
    X, y = regression(rng, 400, noise)
    model = Regressor("huber", epsilon=epsilon, random_state=0).fit(X, y)
    assert_allclose(joint_equations(X, y, model), 0, atol=1e-7)


@pytest.mark.parametrize("noise", ["normal", "skew"])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_huber_is_huber_regressor(rng, noise, alpha):
    X, y = regression(rng, 500, noise)
    model = Regressor("huber", alpha=alpha, penalty_units="raw", random_state=0).fit(X, y)
    peer = HuberRegressor(
        alpha=500 * alpha / model.scale_, tol=1e-9, max_iter=10_000, warm_start=True
    )
    # lbfgs ends where a step gains 2e-9 of the sum; begun anew, where only rounding is left
    with suppress(ValueError):
        for _ in range(10):
            peer.fit(X, y)
    assert_allclose(model.coef_, peer.coef_, rtol=1e-6)
    assert_allclose(model.intercept_, peer.intercept_, rtol=1e-6)
    assert_allclose(model.scale_, peer.scale_, rtol=1e-6)
    assert_allclose(joint_equations(X, y, model, alpha=alpha), 0, atol=1e-7)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    unit=st.floats(-12, 12).map(lambda x: 10.0**x),
    shift=st.floats(-10, 10),
    loss=st.sampled_from(["huber", "quantile"]),
    alpha=st.sampled_from([0.0, 0.1]),
)
def test_units_and_origin_of_targets_do_not_matter(seed, unit, shift, loss, alpha):
    X, y = regression(np.random.default_rng(seed), 200)
    one, other = (
        Regressor(loss, quantile=0.7, alpha=alpha, random_state=0).fit(X, target)
        for target in (y, unit * (y + shift))
    )
    assert_allclose(other.coef_ / unit, one.coef_, rtol=1e-4, atol=1e-4)
    assert_allclose(other.intercept_ / unit, one.intercept_ + shift, rtol=1e-4, atol=1e-4)
    assert_allclose(other.scale_ / unit, one.scale_, rtol=1e-3)


@pytest.mark.parametrize("loss", ["huber", "quantile"])
def test_units_of_features_do_not_matter(rng, loss):
    X, y = regression(rng, 300)
    units, shift = np.array([1e-6, 1.0, 1e3, 1e6]), np.array([0.0, 1.0, 1e3, -1e6])
    one = Regressor(loss, random_state=0).fit(X, y)
    other = Regressor(loss, random_state=0).fit(units * X + shift, y)
    assert_allclose(other.coef_ * units, one.coef_, rtol=1e-5)
    assert_allclose(other.scale_, one.scale_, rtol=1e-5)


@pytest.mark.parametrize("loss", ["huber", "quantile"])
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_array])
def test_weights_are_repetitions(rng, loss, convert):
    X, y = regression(rng, 800)
    times = rng.integers(0, 4, 800)
    weighted = Regressor(loss, random_state=0).fit(convert(X), y, times)
    X, y = np.repeat(X, times, axis=0), np.repeat(y, times)
    repeated = Regressor(loss, random_state=0).fit(X, y)
    assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6)
    assert_allclose(weighted.scale_, repeated.scale_, rtol=1e-6)


def test_huber_without_an_intercept(rng):
    X, y = regression(rng, 300)
    model = Regressor("huber", fit_intercept=False, random_state=0).fit(X, y)
    found = joint_equations(X, y, model)
    assert_allclose(np.delete(found, -2), 0, atol=1e-7)
    assert model.intercept_ == 0


@pytest.mark.parametrize("loss", ["huber", "quantile"])
def test_a_sketch_ends_within_the_statistical_error(sketched, rng, loss):
    X, y = regression(rng, 6000)
    model = Regressor(loss, random_state=0).fit(X, y)
    exact = Regressor(loss, preconditioner="exact", tol=1e-8, random_state=0).fit(X, y)
    assert model.preconditioner_ == "sketch"
    assert_allclose(model.coef_, exact.coef_, atol=0.3 * exact.scale_ / np.sqrt(6000))
    assert_allclose(model.scale_, exact.scale_, rtol=0.3 / np.sqrt(6000) + 1e-3)


def test_many_rows_begin_with_a_share_of_them(rng):
    X, y = regression(rng, 30_000, "skew")
    model = Regressor("huber", tol=1e-4, random_state=0).fit(X, y)
    assert_allclose(joint_equations(X, y, model), 0, atol=1e-4)
    w = np.zeros(30_000)
    w[:300] = 1  # of which the share may have few
    assert_allclose(
        joint_equations(X, y, Regressor("huber", random_state=0).fit(X, y, w), w), 0, atol=1e-3
    )


def test_a_warm_start_needs_fewer_passes_and_ends_there(rng):
    X, y = regression(rng, 2000)
    model = Regressor("huber", warm_start=True, random_state=0).fit(X, y)
    coef, scale, passes = model.coef_.copy(), model.scale_, model.n_passes_
    model.fit(X, y)
    assert model.n_passes_ < passes
    assert_allclose(model.coef_, coef, rtol=1e-6)
    assert_allclose(model.scale_, scale, rtol=1e-6)


@pytest.mark.parametrize("loss", ["huber", "quantile"])
@pytest.mark.parametrize("level", [0.0, 1e-200, 5.0, 1e200])
def test_constant_targets_are_their_constant(rng, loss, level):
    X = rng.standard_normal((50, 3))
    model = Regressor(loss, random_state=0).fit(X, np.full(50, level))
    assert_allclose(model.predict(X), level, rtol=1e-8, atol=1e-8 * (level == 0))


@pytest.mark.parametrize("loss", ["huber", "quantile"])
def test_targets_without_noise_are_fitted(rng, loss):
    X = rng.standard_normal((200, 3))
    y = X @ [1.0, -2.0, 3.0] + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = Regressor(loss, random_state=0).fit(X, y)
    assert_allclose(model.predict(X), y, rtol=1e-6, atol=1e-6)
    assert model.scale_ < 1e-6


def test_half_the_targets_without_noise_have_no_scale(rng):
    X = rng.standard_normal((400, 4))
    y = X @ [1, 2, 3, 4] + rng.standard_normal(400) * (np.arange(400) % 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = Regressor("huber", random_state=0).fit(X, y)
    assert model.scale_ < 1e-6
    assert_allclose(model.coef_, [1, 2, 3, 4], rtol=1e-6)


def test_early_stopping_judges_at_the_scale_of_the_fit(rng):
    X, y = regression(rng, 2000)
    model = Regressor("huber", early_stopping=True, random_state=0).fit(1e3 * X, 1e3 * y)
    # The held-out loss, in squared units of y, is about that of the fit
    assert_allclose(model.history_[-1]["validation_loss"], model.history_[-1]["loss"], rtol=1.0 / 2)


# --- quantiles


@pytest.mark.parametrize(
    ("noise", "quantile"), [("normal", 0.5), ("skew", 0.02), ("skew", 0.9), ("heavy", 0.9)]
)
def test_the_pinball_loss_is_that_of_the_linear_program(rng, noise, quantile):
    X, y = regression(rng, 4000, noise, d=10)
    model = Regressor("quantile", quantile=quantile, random_state=0).fit(X, y)
    peer = QuantileRegressor(quantile=quantile, alpha=0).fit(X, y)
    ours, least = (mean_pinball_loss(y, m.predict(X), alpha=quantile) for m in (model, peer))
    assert model.converged_
    assert least * (1 - 1e-9) <= ours <= 1.002 * least
    # Slopes of the smoothed loss add up to zero: the share below is the quantile, but for rows
    # within a few bandwidths
    near = np.mean(np.abs(y - model.predict(X)) < 5 * model.bandwidth_)
    assert abs(np.mean(y < model.predict(X)) - quantile) <= near


@pytest.mark.parametrize("kind", ["zeros", "counts", "few rows", "weights"])
def test_ties_few_rows_and_weights_do_no_harm_to_quantiles(rng, kind):
    n = 40 if kind == "few rows" else 1000
    X, y = regression(rng, n)
    w = rng.exponential(size=n) if kind == "weights" else np.ones(n)
    if kind == "zeros":
        y = np.where(rng.random(n) < 0.6, 0, rng.exponential(size=n))
    if kind == "counts":
        y = rng.poisson(np.exp(X[:, 0] / 2)).astype(float)
    model = Regressor("quantile", random_state=0).fit(X, y, w)
    peer = QuantileRegressor(alpha=0).fit(X, y, w)
    ours, least = (mean_pinball_loss(y, m.predict(X), sample_weight=w) for m in (model, peer))
    assert ours <= (1 + max(1e-3, 0.02 * 5 / n)) * least + 1e-12


def test_bandwidths_fall_with_the_rows(rng):
    X, y = regression(rng, 40_000, "normal")
    many, few = (Regressor("quantile", random_state=0).fit(X[:n], y[:n]) for n in (40_000, 400))
    assert 0 < many.bandwidth_ < few.bandwidth_ < few.scale_
    # Of normal residuals that is their standard deviation
    assert_allclose(many.scale_, 1.0, rtol=0.05)


# --- log links


@pytest.mark.parametrize("loss", LOG_LINKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_log_links_are_those_of_scikit_learn(rng, loss, weighted):
    X, y = positive(rng, 600, loss)
    w = rng.uniform(0.5, 2, 600) if weighted else None
    model = Regressor(loss, random_state=0).fit(X, y, w)
    peer = LOG_LINKS[loss].fit(X, y, w)
    assert_allclose(model.coef_, peer.coef_, atol=1e-5)
    assert_allclose(model.intercept_, peer.intercept_, atol=1e-5)
    assert_allclose(model.predict(X), peer.predict(X), rtol=1e-4)
    assert_allclose(model.score(X, y, w), peer.score(X, y, w), rtol=1e-6)


@pytest.mark.parametrize("loss", ["gamma", "tweedie"])
def test_steps_on_mini_batches_reach_the_minimum_of_log_links(sketched, rng, loss):
    X, y = positive(rng, 6000, loss)
    model = Regressor(loss, random_state=0).fit(X, y)
    peer = LOG_LINKS[loss].fit(X, y)
    assert model.converged_
    assert d2_tweedie_score(y, peer.predict(X), power=model._loss.power) - model.score(X, y) < 1e-4


@pytest.mark.parametrize("power", [1.01, 1.3, 1.99])
def test_tweedie_takes_powers_near_both_ends(rng, power):
    X, y = positive(rng, 500, "tweedie")
    params = {"power": power, "alpha": 0.01, "penalty_units": "raw"}
    model = Regressor("tweedie", **params, random_state=0).fit(X, y)
    peer = TweedieRegressor(
        power=power, alpha=0.01, link="log", tol=1e-9, solver="newton-cholesky"
    ).fit(X, y)
    assert_allclose(model.coef_, peer.coef_, atol=1e-5)


def test_rates_are_counts_over_exposure_with_the_exposure_for_weights(rng):
    X = rng.standard_normal((5000, 3))
    exposure = rng.uniform(0.1, 3, 5000)
    counts = rng.poisson(exposure * np.exp(X @ [0.3, -0.2, 0.1] - 1))
    model = Regressor("poisson", random_state=0).fit(X, counts / exposure, exposure)
    # The score equations of Poisson counts with log(exposure) for an offset
    residual = exposure * model.predict(X) - counts
    assert_allclose(residual @ X / counts.sum(), 0, atol=1e-4)
    assert abs(residual.sum() / counts.sum()) < 1e-4


@pytest.mark.parametrize("loss", ["squared_error", "huber", "quantile"])
def test_other_scores_are_those_of_squares(rng, loss):
    X, y = regression(rng, 200)
    model = Regressor(loss, random_state=0).fit(X, y)
    assert_allclose(model.score(X, y), r2_score(y, model.predict(X)))


def test_a_mean_that_has_vanished_has_a_score(rng):
    X, y = positive(rng, 50, "poisson")
    model = Regressor("poisson", random_state=0).fit(X, y)
    model.intercept_ = -800.0
    assert model.score(X, y) < 0


# --- what estimators keep and refuse


def test_scales_are_kept_for_losses_that_have_one(rng):
    X, y = regression(rng, 100)
    model = Regressor("quantile", random_state=0).fit(X, y)
    assert {"scale_", "bandwidth_"} <= set(vars(model))
    model.set_params(loss="huber").fit(X, y)
    assert "scale_" in vars(model)
    assert "bandwidth_" not in vars(model)
    model.set_params(loss="squared_error").fit(X, y)
    assert "scale_" not in vars(model)


@pytest.mark.parametrize("loss", ["huber", "quantile"])
def test_gradients_alone_tell_no_scale(rng, loss):
    with pytest.raises(ValueError, match=rf"and loss='{loss}' needs the scale of the residuals"):
        Regressor(loss, noise="single").fit(*regression(rng, 100))


@pytest.mark.parametrize("loss", ["gamma", "tweedie"])
def test_gradients_alone_tell_log_links(rng, loss):
    X, y = positive(rng, 4000, loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Regressor(loss, noise="single", max_iter=20, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.9 * LOG_LINKS[loss].fit(X, y).score(X, y)


def test_no_noise_is_calibrated_to_quantiles(rng):
    model = Regressor("quantile", random_state=0).fit(*regression(rng, 100))
    assert not hasattr(model, "covariance_estimator_")
    with pytest.raises(AttributeError, match="not there for loss='quantile', to which no noise"):
        model.covariance_estimator_  # noqa: B018


def test_the_estimator_of_tweedie_keeps_its_power(rng):
    X, y = positive(rng, 100, "tweedie")
    estimator = Regressor("tweedie", power=1.7, random_state=0).fit(X, y).covariance_estimator_
    same = GradientCovarianceEstimator(batch_size=1, loss="tweedie", power=1.7, random_state=0)
    assert estimator.merge(same.fit(X, y)).n_samples_seen_ == 200


# --- streams


@pytest.mark.parametrize("loss", ["huber", "quantile", "gamma", "tweedie"])
def test_a_stream_ends_near_the_fit(rng, loss):
    if loss in LOG_LINKS:
        X, y = positive(rng, 10_000, loss)
        y = y + 0.01 * (loss == "gamma")
    else:
        X, y = regression(rng, 10_000)
    model = Regressor(loss)
    for piece in np.split(np.arange(10_000), 20):
        model.partial_fit(X[piece], y[piece])
    fit = Regressor(loss, random_state=0).fit(X, y)
    if loss in LOG_LINKS:
        assert_allclose(model.score(X, y), fit.score(X, y), atol=2e-3)
        return
    # Of the sample of rows that is kept, 1,024 at least
    assert_allclose(model.scale_, fit.scale_, rtol=3 / np.sqrt(1024))
    assert_allclose(model.coef_, fit.coef_, atol=fit.scale_ / np.sqrt(10_000))


def test_a_stream_keeps_the_scale_of_a_fit(rng):
    X, y = regression(rng, 3000)
    model = Regressor("huber", random_state=0).fit(X[:2000], y[:2000])
    before = model.scale_
    model.partial_fit(X[2000:], y[2000:])
    assert model.scale_ == before
    fit = Regressor("huber", random_state=0).fit(X, y)
    assert_allclose(model.coef_, fit.coef_, atol=fit.scale_ / np.sqrt(3000))


@pytest.mark.parametrize("loss", ["huber", "quantile"])
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_a_stream_do_not_matter(rng, loss, unit):
    X, y = regression(rng, 3000)
    one, other = Regressor(loss), Regressor(loss)
    for piece in np.split(np.arange(3000), 3):
        one.partial_fit(X[piece], y[piece])
        other.partial_fit(X[piece], unit * y[piece])
    assert_allclose(other.coef_ / unit, one.coef_, rtol=1e-3, atol=1e-3)
    assert_allclose(other.scale_ / unit, one.scale_, rtol=1e-3)
