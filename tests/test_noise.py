import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_gradhess.noise import calibrated_variance, draw_target_noise

DISTRIBUTIONS = ("normal", "rademacher")
positive = st.floats(1e-6, 1e6)


@pytest.fixture
def global_stream():
    state = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


# --- calibrated_variance


@given(n=st.integers(1, 10**9), scale=positive, v=positive)
def test_blind_variance_is_scale_times_batch_size_times_curvature(n, scale, v):
    assert calibrated_variance(n) == n
    assert calibrated_variance(n, noise_scale=scale) == scale * n
    assert calibrated_variance(n, curvature=v) == n * v
    assert calibrated_variance(n, noise_scale=scale, curvature=v) == scale * n * v


@given(n=st.integers(1, 10**6), share=st.floats(0, 1))
def test_injected_and_inherent_variance_sum_to_the_total(n, share):
    inherent = share * n
    total = calibrated_variance(n, inherent_variance=inherent) + inherent
    assert total == pytest.approx(n, rel=1e-15)


def test_inherent_noise_of_exactly_the_total_leaves_nothing_to_inject():
    assert calibrated_variance(8, inherent_variance=16.0, noise_scale=2.0) == 0.0


def test_scalars_give_a_float():
    assert type(calibrated_variance(np.int64(4), curvature=np.array(2.0))) is float


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"curvature": [0.0, 0.25, 1.0]}, [0.0, 2.0, 8.0]),
        ({"inherent_variance": [1.0, 2.0]}, [7.0, 6.0]),
        ({"noise_scale": [[1.0], [2.0]], "curvature": [1.0, 3.0]}, [[8.0, 24.0], [16.0, 48.0]]),
        ({"curvature": [1.0]}, [8.0]),
        ({"curvature": []}, []),
    ],
)
def test_arrays_broadcast(arguments, expected):
    variance = calibrated_variance(8, **arguments)
    assert variance.dtype == np.float64
    np.testing.assert_array_equal(variance, expected)


def test_batch_size_may_be_an_array():
    np.testing.assert_array_equal(calibrated_variance([2, 4], inherent_variance=1.0), [1.0, 3.0])


def test_inherent_noise_above_the_total_is_refused_with_both_numbers_and_the_way_out():
    message = (
        r"inherent target noise has variance 40, more than the calibrated total 32 = "
        r"noise_scale \* batch_size \* curvature.* Increase batch_size or noise_scale; or use "
        r"noise='none', which divides inherent_variance out, or noise='antithetic', where inherent "
        r"noise cancels\."
    )
    with pytest.raises(ValueError, match=message):
        calibrated_variance(16, inherent_variance=40.0, noise_scale=2.0)


def test_the_refusal_names_the_worst_entry_of_an_array():
    with pytest.raises(ValueError, match=r"variance 3, more than the calibrated total 1 ="):
        calibrated_variance(10, inherent_variance=3.0, curvature=[1.0, 0.1, 0.2])


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("batch_size", "> 0"),
        ("inherent_variance", ">= 0"),
        ("noise_scale", "> 0"),
        ("curvature", ">= 0"),
    ],
)
def test_a_value_out_of_range_is_named(name, rule, value):
    for bad in (value, [1.0, value]):
        arguments = {"batch_size": 4, name: bad}
        with pytest.raises(
            ValueError, match=rf"^{name} must be finite and {rule}, got {value:g}\."
        ):
            calibrated_variance(**arguments)


@pytest.mark.parametrize("name", ["batch_size", "noise_scale"])
def test_zero_is_refused_where_it_would_calibrate_nothing(name):
    with pytest.raises(ValueError, match=rf"^{name} must be finite and > 0, got 0\."):
        calibrated_variance(**{"batch_size": 4, name: 0})


# --- draw_target_noise


@pytest.mark.parametrize("variance", [1e-6, 1.0, 64.0])
@pytest.mark.parametrize(("distribution", "fourth"), [("normal", 3.0), ("rademacher", 1.0)])
def test_moments_of_the_draws(distribution, fourth, variance):
    z = draw_target_noise(variance, 200_000, distribution=distribution, random_state=0)
    z /= np.sqrt(variance)
    # Var(z) = 1, Var(z^2) = m4 - 1, and for the normal Var(z^4) = 105 - 9; five standard errors
    se = np.sqrt(1 / len(z))
    assert abs(z.mean()) < 5 * se
    assert abs(np.mean(z**2) - 1) <= 5 * np.sqrt(fourth - 1) * se + 1e-12
    assert abs(np.mean(z**4) - fourth) <= 5 * np.sqrt(96 * (fourth > 1)) * se + 1e-12


@pytest.mark.parametrize("variance", [1.0, 4.0, 64.0])
def test_rademacher_is_plus_or_minus_the_standard_deviation(variance):
    noise = draw_target_noise(variance, 1000, distribution="rademacher", random_state=1)
    assert set(noise) == {-np.sqrt(variance), np.sqrt(variance)}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_consecutive_draws_are_uncorrelated(distribution):
    z = draw_target_noise(1.0, 100_000, distribution=distribution, random_state=2)
    for lag in (1, 2, 7):  # a product of two independent draws has variance one
        assert abs(np.mean(z[lag:] * z[:-lag])) < 5 / np.sqrt(len(z) - lag)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_array_of_variances_scales_unit_draws(distribution, rng):
    variance = rng.uniform(0, 9, 50)
    variance[7] = 0.0
    noise = draw_target_noise(variance, distribution=distribution, random_state=3)
    unit = draw_target_noise(1.0, 50, distribution=distribution, random_state=3)
    np.testing.assert_allclose(noise, np.sqrt(variance) * unit, rtol=1e-15)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("variance", "size", "shape"),
    [
        (1.0, None, ()),
        (1.0, 5, (5,)),
        (1.0, (2, 3), (2, 3)),
        (1.0, 0, (0,)),
        ([1.0, 2.0, 3.0], None, (3,)),
        ([1.0, 2.0, 3.0], (4, 3), (4, 3)),
        ([[1.0], [2.0]], (2, 3), (2, 3)),
        ([], None, (0,)),
    ],
)
def test_shape_is_size_or_that_of_the_variance(variance, size, shape, distribution):
    noise = draw_target_noise(variance, size, distribution=distribution, random_state=4)
    assert np.shape(noise) == shape
    assert noise.dtype == np.float64


def test_a_variance_that_does_not_broadcast_to_size_is_refused():
    with pytest.raises(ValueError, match="broadcast"):
        draw_target_noise([1.0, 2.0], 3, random_state=0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("make", [int, np.int64, np.random.RandomState, np.random.default_rng])
def test_equal_random_states_give_equal_draws(make, distribution):
    draws = [
        draw_target_noise(2.0, 20, distribution=distribution, random_state=make(seed))
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])


def test_an_integer_and_its_generator_are_the_same_stream():
    np.testing.assert_array_equal(
        draw_target_noise(1.0, 9, random_state=7),
        draw_target_noise(1.0, 9, random_state=np.random.default_rng(7)),
    )


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
def test_a_stream_that_is_handed_in_moves_on(make):
    stream = make(8)
    first, second = (draw_target_noise(1.0, 20, random_state=stream) for _ in range(2))
    assert np.all(first != second)


@pytest.mark.usefixtures("global_stream")
def test_none_draws_from_the_global_stream_of_numpy():
    draws = []
    for seed in (9, 9, 10):
        np.random.seed(seed)  # noqa: NPY002
        draws.append(draw_target_noise(1.0, 20))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.all(draws[0] != draws[2])
    assert np.all(draw_target_noise(1.0, 20) != draws[2])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_a_stream_of_draws_does_not_depend_on_how_it_is_cut(distribution, sizes):
    stream = np.random.default_rng(11)
    parts = [
        draw_target_noise(3.0, m, distribution=distribution, random_state=stream) for m in sizes
    ]
    whole = draw_target_noise(3.0, sum(sizes), distribution=distribution, random_state=11)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_unknown_distribution_is_named():
    with pytest.raises(
        ValueError, match=r"distribution must be 'normal' or 'rademacher', got 'cauchy'\."
    ):
        draw_target_noise(1.0, distribution="cauchy", random_state=0)


@pytest.mark.parametrize(
    ("variance", "low", "high"),
    [(-1.0, "-1", "-1"), ([4.0, np.inf], "4", "inf"), ([1.0, np.nan], "nan", "nan")],
)
def test_an_impossible_variance_is_refused(variance, low, high):
    message = (
        rf"variance must be finite and >= 0, got a minimum of {low} and a maximum of {high}\. "
        r"See calibrated_variance\."
    )
    with pytest.raises(ValueError, match=message):
        draw_target_noise(variance, random_state=0)


def test_whatever_comes_in_is_reckoned_in_float64():
    third = np.float32(1) / np.float32(3)
    variance = calibrated_variance(np.float32([3]), curvature=np.array([third]))
    assert variance.dtype == np.float64
    assert variance[0] == 3 * float(third)  # and not one, as in float32
    noise = draw_target_noise(np.array([third]), distribution="rademacher", random_state=0)
    assert noise.dtype == np.float64
    assert abs(noise[0]) == np.sqrt(float(third))
