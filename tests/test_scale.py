"""What the intercept's gradient tells of the scale of gradients, against chi-square and by name."""

import numpy as np
import pytest
from scipy.stats import chi2

from sklearn_gradhess._scale import NoiseSeen, noise_seen, swap_intercept

N = 16
FACTORS = {
    "2": 2.0,
    "batch_size = 16": N,
    "2 batch_size = 32": 2 * N,
    "1/2": 0.5,
    "1/batch_size = 0.0625": 1 / N,
    "1/(2 batch_size) = 0.0312": 0.5 / N,
}


def pair(k, n=N, factor=1.0, seed=0, variance=None):
    """Intercept's gradients of half the mean squared error, times a factor."""
    rng = np.random.default_rng(seed)
    error = rng.standard_normal((k, n)) + 3.0
    xi = rng.standard_normal((k, n)) * np.sqrt(n if variance is None else variance)
    return [factor * (error + sign * xi).mean(axis=1) for sign in (-1, 1)]


@pytest.mark.parametrize("k", [1, 2, 5, 40, 3000])
def test_the_limits_are_those_of_chi_square(k):
    low, high = NoiseSeen(1.0, k).limits
    assert chi2.cdf(k * low, k) <= 3.1e-7
    assert chi2.sf(k * high, k) <= 3.1e-7
    assert not NoiseSeen(1.0, k).mismatched
    assert NoiseSeen(1.01 * high, k).too_large
    assert NoiseSeen(0.99 * low, k).mismatched
    assert not NoiseSeen(0.99 * low, k).too_large


def test_any_number_of_gradients_agrees_to_a_thousandth():
    assert not NoiseSeen(1.0009, 1e12).mismatched
    assert NoiseSeen(1.0011, 1e12).mismatched
    assert NoiseSeen(0.9989, 1e12).mismatched


@pytest.mark.parametrize("seen", [NoiseSeen(np.nan, 10.0), NoiseSeen(5.0, 0.0)])
def test_what_does_not_show_is_no_mismatch(seen):
    assert not seen.mismatched
    assert not seen.too_large


def test_the_ratio_of_pairs_is_the_squared_factor_times_the_noise():
    plus, minus = pair(50, factor=3.0)
    seen = noise_seen(plus, minus, batch_size=N, noise_scale=2.0)
    half = [(b - a) / 2 for a, b in zip(plus, minus, strict=True)]
    assert seen.ratio == pytest.approx(sum(h * h for h in half) / 50 / 2.0, rel=1e-12)
    assert seen.degrees <= 50


def test_the_ratio_of_single_gradients_is_of_noise_and_excess_risk():
    g = pair(50, factor=3.0)[0]
    seen = noise_seen(g, batch_size=N, noise_scale=2.0, excess_risk=5.0, excess_risk_error=1.0)
    shown = N * np.var(g, ddof=1) + g.mean() ** 2
    assert seen.ratio == pytest.approx(shown / (2 * N + 5), rel=1e-12)
    assert seen.degrees <= 2 / (2 / 49 + 1 / (2 * N + 5) ** 2)


@pytest.mark.parametrize("k", [5, 60, 1000])
def test_sound_pairs_are_never_suspected(k):
    assert not any(noise_seen(*pair(k, seed=seed), batch_size=N).mismatched for seed in range(200))


def test_heavy_tails_lower_the_degrees_of_freedom():
    rng = np.random.default_rng(0)
    for seed in range(50):
        xi = np.random.default_rng(seed).standard_t(3, 400) / np.sqrt(3)
        assert not noise_seen(xi, -xi, batch_size=1).mismatched
    normal = rng.standard_normal(400)
    assert (
        noise_seen(xi, -xi, batch_size=1).degrees
        < noise_seen(normal, -normal, batch_size=1).degrees
    )


@pytest.mark.parametrize(("said", "factor"), FACTORS.items())
@pytest.mark.parametrize("seed", range(5))
def test_common_factors_are_named_with_the_argument_that_undoes_them(said, factor, seed):
    seen = noise_seen(*pair(300, factor=factor, seed=seed), batch_size=N)
    assert seen.mismatched
    fact, way_out = seen.explain(N)
    assert fact.endswith(f"not the calibrated 16: {seen.ratio:.3g} times as much.")
    assert way_out.startswith(f"The gradients look {said} times those of the mean half loss, as ")
    assert way_out.endswith(f"would: pass gradient_scale={factor:.6g}.")


@pytest.mark.parametrize("factor", FACTORS.values())
def test_a_gradient_scale_that_should_not_be_there_is_taken_back(factor):
    seen = noise_seen(*pair(300, factor=1 / factor), batch_size=N)
    _, way_out = seen.explain(N, gradient_scale=factor)
    assert way_out.endswith("as those of the mean half loss itself would: pass gradient_scale=1.")


@pytest.mark.parametrize(
    ("variance", "said"), [(1.0, "noise of variance 1"), (N**2, "standard deviation batch_size")]
)
def test_noise_of_another_variance_is_named(variance, said):
    fact, way_out = noise_seen(*pair(400, variance=variance), batch_size=N).explain(N)
    assert "times as much" in fact
    assert said in way_out


def test_what_no_common_factor_explains_is_left_unnamed():
    fact, way_out = NoiseSeen(2.0, 1e4).explain(N, noise_scale=3.0)
    assert "total target noise of 96, not the calibrated 48: 2 times as much" in fact
    assert way_out == ""
    assert NoiseSeen(0.0, 100.0).explain(N)[1] == ""
    assert NoiseSeen(0.0, 100.0).mismatched


def test_two_rows_a_batch_are_first_taken_for_a_missing_half():
    assert "MSELoss" in NoiseSeen(4.0, 1e4).explain(2)[1]
    assert NoiseSeen(4.0, 1e4).explain(1)[1].endswith("gradient_scale=2.")


def test_an_intercept_at_the_other_end_is_named():
    way_out = NoiseSeen(30.0, 100.0).explain(N, other_end=NoiseSeen(1.05, 100.0))[1]
    assert "intercept_position" in way_out
    assert (
        "intercept_position"
        not in NoiseSeen(30.0, 100.0).explain(N, other_end=NoiseSeen(20.0, 100.0))[1]
    )


def test_too_little_to_tell_by_is_nan():
    assert np.isnan(noise_seen([1.0], batch_size=N).ratio)
    assert np.isnan(noise_seen([], [], batch_size=N).ratio)
    assert np.isnan(noise_seen([1.0, 2.0], batch_size=N, excess_risk=np.nan).ratio)


def test_the_last_column_comes_first():
    np.testing.assert_array_equal(swap_intercept(np.array([[1.0, 2.0, 3.0]])), [[3.0, 1.0, 2.0]])
