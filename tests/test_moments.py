from dataclasses import FrozenInstanceError
from functools import reduce

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sklearn_gradhess._moments import (
    GradientMoments,
    centered_block,
    triangular_factor,
    updated_triangle,
)
from tests.oracles import relative_error, weighted_covariance

EPS = np.finfo(np.float64).eps
centering = pytest.mark.parametrize("centered", [True, False])


@st.composite
def weighted_rows(draw, max_rows=12, max_features=4):
    """Rows, and weights some of which are zero."""
    shape = draw(st.tuples(st.integers(0, max_rows), st.integers(1, max_features)))
    rows = draw(arrays(np.float64, shape, elements=st.floats(-1e3, 1e3)))
    weight = st.sampled_from([0.0, 0.5, 1.0, 3.0]) | st.floats(0.01, 100.0)
    return rows, draw(arrays(np.float64, shape[0], elements=weight))


def moments_of(rows, weights=None, *, centered):
    return GradientMoments.empty(np.shape(rows)[1], centered=centered).update(rows, weights)


def cut(data, rows, weights):
    """Cut rows into parts, empty ones among them."""
    at = data.draw(st.lists(st.integers(0, len(rows)), max_size=5).map(sorted))
    return list(zip(np.split(rows, at), np.split(weights, at), strict=True))


def assert_same_moments(a, b, scale):
    """Equal up to rounding relative to `scale`, the size of a row."""
    size = 1e-13 * max(a.weight, b.weight) * scale**2
    np.testing.assert_allclose(a.factor.T @ a.factor, b.factor.T @ b.factor, rtol=0, atol=size)
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-13 * scale)
    assert a.weight == pytest.approx(b.weight, rel=1e-13)
    assert (a.n_gradients, a.centered) == (b.n_gradients, b.centered)


def size_of(rows):
    return 1e-100 + np.sqrt(rows.shape[1]) * np.max(np.abs(rows), initial=0.0)


# --- update and merge


@centering
@given(sample=weighted_rows())
def test_update_is_the_naive_weighted_covariance(centered, sample):
    rows, weights = sample
    assume(weights.sum() > 0)
    moments = moments_of(rows, weights, centered=centered)
    covariance, mean = weighted_covariance(rows, weights, about_mean=centered)
    scatter = moments.factor.T @ moments.factor / weights.sum()
    scale = size_of(rows)
    np.testing.assert_allclose(scatter, covariance, rtol=0, atol=1e-13 * scale**2)
    np.testing.assert_allclose(moments.mean, mean, rtol=0, atol=1e-13 * scale)
    assert moments.weight == pytest.approx(weights.sum())
    assert moments.n_gradients == np.count_nonzero(weights)


@centering
@given(data=st.data(), sample=weighted_rows())
def test_updates_in_parts_equal_one_update(centered, data, sample):
    rows, weights = sample
    parts = GradientMoments.empty(rows.shape[1], centered=centered)
    for part in cut(data, rows, weights):
        parts = parts.update(*part)
    assert_same_moments(parts, moments_of(rows, weights, centered=centered), size_of(rows))


@centering
@given(data=st.data(), sample=weighted_rows())
def test_merging_in_any_order_and_grouping_equals_one_update(centered, data, sample):
    rows, weights = sample
    forest = [moments_of(*part, centered=centered) for part in cut(data, rows, weights)]
    while len(forest) > 1:  # a random pair at a time: every binary tree can occur
        i = data.draw(st.integers(0, len(forest) - 1))
        a = forest.pop(i)
        j = data.draw(st.integers(0, len(forest) - 1))
        forest[j] = a.merge(forest[j])
    assert_same_moments(forest[0], moments_of(rows, weights, centered=centered), size_of(rows))


@centering
@given(sample=weighted_rows())
def test_no_gradients_are_the_neutral_element_of_merge(centered, sample):
    moments = moments_of(*sample, centered=centered)
    nothing = GradientMoments.empty(len(moments.mean), centered=centered)
    for merged in (moments.merge(nothing), nothing.merge(moments)):
        assert_same_moments(merged, moments, size_of(sample[0]))


@centering
@given(data=st.data(), sample=weighted_rows())
def test_order_of_rows_does_not_matter(centered, data, sample):
    rows, weights = sample
    order = np.array(data.draw(st.permutations(range(len(rows)))), dtype=int)
    assert_same_moments(
        moments_of(rows[order], weights[order], centered=centered),
        moments_of(rows, weights, centered=centered),
        size_of(rows),
    )


@centering
@given(sample=weighted_rows(), times=st.integers(1, 4))
def test_an_integer_weight_is_a_repetition(centered, sample, times):
    rows, _ = sample
    weighted = moments_of(rows, np.full(len(rows), float(times)), centered=centered)
    repeated = moments_of(np.tile(rows, (times, 1)), centered=centered)
    np.testing.assert_allclose(
        weighted.factor.T @ weighted.factor,
        repeated.factor.T @ repeated.factor,
        rtol=0,
        atol=1e-13 * (1 + len(rows)) * times * size_of(rows) ** 2,
    )


@centering
def test_a_gradient_of_weight_zero_leaves_no_trace(centered, rng):
    rows = rng.standard_normal((6, 3))
    rows[2], weights = 1e300, np.array([1.0, 2.0, 0.0, 1.0, 0.5, 3.0])
    seen = weights > 0
    a, b = (
        moments_of(rows[i], weights[i], centered=centered)
        for i in (slice(None), np.flatnonzero(seen))
    )
    np.testing.assert_array_equal(a.factor, b.factor)
    np.testing.assert_array_equal(a.mean, b.mean)


@centering
def test_nothing_to_add_returns_the_moments_themselves(centered, rng):
    moments = moments_of(rng.standard_normal((4, 3)), centered=centered)
    assert moments.update(np.empty((0, 3))) is moments
    assert moments.update(np.ones((2, 3)), np.zeros(2)) is moments
    assert moments.merge(GradientMoments.empty(3, centered=centered)) is moments


@centering
def test_values_never_change(centered, rng):
    rows, weights = rng.standard_normal((9, 3)), rng.uniform(0, 2, 9)
    weights[4] = 0.0
    a, b = moments_of(rows[:5], centered=centered), moments_of(rows[5:], centered=centered)
    for array in (rows, weights, a.factor, a.mean, b.factor, b.mean):
        array.flags.writeable = False
    before = [x.copy() for x in (rows, weights, a.factor, a.mean, b.factor, b.mean)]
    for result in (a.update(rows, weights), a.merge(b)):
        result.factor[:] = result.mean[:] = np.nan  # so no result is a view of its sources
    a.covariance_factor()
    for x, y in zip((rows, weights, a.factor, a.mean, b.factor, b.mean), before, strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(FrozenInstanceError):
        a.weight = 0.0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            GradientMoments.empty(2, centered=True),
            r"moments of 2 features \(centered=True\) into moments of 3 \(centered=True\)",
        ),
        (
            GradientMoments.empty(3, centered=False),
            r"moments of 3 features \(centered=False\) into moments of 3 \(centered=True\)",
        ),
    ],
)
def test_unlike_moments_do_not_merge(other, message):
    with pytest.raises(ValueError, match=f"Cannot merge {message}"):
        GradientMoments.empty(3, centered=True).merge(other)


def test_float32_gradients_are_accumulated_in_float64(rng):
    rows = rng.standard_normal((50, 3)).astype(np.float32) + np.float32(100)
    a, b = (moments_of(x, centered=True) for x in (rows, rows.astype(np.float64)))
    np.testing.assert_array_equal(a.factor, b.factor)
    assert a.factor.dtype == np.float64


# --- covariance


def test_centered_covariance_is_that_of_np_cov(rng):
    rows = rng.standard_normal((30, 4)) + 5
    moments = reduce(
        GradientMoments.update, np.split(rows, 3), GradientMoments.empty(4, centered=True)
    )
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.T), rtol=1e-12, atol=1e-14)


def test_uncentered_covariance_is_the_second_moment(rng):
    rows = rng.standard_normal((30, 4)) + 5
    covariance = moments_of(rows, centered=False).covariance()
    np.testing.assert_allclose(covariance, rows.T @ rows / 30, rtol=1e-12)


def test_the_divisor_does_not_depend_on_the_unit_of_the_weights(rng):
    rows, weights = rng.standard_normal((30, 4)), rng.uniform(0.5, 2, 30)
    a, b = (moments_of(rows, c * weights, centered=True).covariance() for c in (1.0, 64.0))
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    expected = weighted_covariance(rows, weights)[0] * 30 / 29
    np.testing.assert_allclose(a, expected, rtol=1e-12, atol=1e-14)


@centering
@given(sample=weighted_rows())
def test_factor_is_upper_triangular_and_the_covariance_symmetric_and_psd(centered, sample):
    moments = moments_of(*sample, centered=centered)
    covariance = moments.covariance()
    assert not np.tril(moments.factor, -1).any()
    assert np.all(np.diag(moments.factor) >= 0)
    np.testing.assert_array_equal(covariance, covariance.T)
    largest = np.abs(covariance).max()
    assert np.linalg.eigvalsh(covariance).min() >= -1e-14 * len(covariance) * largest


@pytest.mark.parametrize(("k", "centered"), [(0, True), (0, False), (1, True)])
def test_no_spread_seen_gives_a_zero_covariance(k, centered):
    moments = moments_of(np.full((k, 2), 3.0), centered=centered)
    np.testing.assert_array_equal(moments.covariance(), np.zeros((2, 2)))


# --- numerics


def spectrum(rng, n, singular_values):
    """Matrix of n rows of these singular values, up to rounding of the largest."""
    d = len(singular_values)
    left, right = (np.linalg.qr(rng.standard_normal((m, d)))[0] for m in (n, d))
    return left * singular_values @ right.T


def test_small_singular_values_survive_a_condition_number_of_1e12(rng):
    truth = np.geomspace(1, 1e-12, 7)
    rows = spectrum(rng, 280, truth)
    moments = [moments_of(part, centered=False) for part in np.split(rows, 4)]
    ours = np.linalg.svd(reduce(GradientMoments.merge, moments).factor, compute_uv=False)
    # backward error of a few QR factorisations, absolute: eps over the smallest value
    assert np.max(np.abs(ours / truth - 1)) < 20 * EPS * 1e12
    gram = np.sqrt(np.abs(np.linalg.eigvalsh(rows.T @ rows)[::-1]))
    assert np.abs(gram / truth - 1)[-1] > 1


@pytest.mark.parametrize("condition", np.geomspace(1, 1e12, 13))
def test_either_route_of_the_factor_is_accurate_to_1e11_or_to_eps_times_the_condition(
    condition, rng
):
    truth = np.geomspace(1, 1 / condition, 5)
    ours = np.linalg.svd(triangular_factor(spectrum(rng, 60, truth)), compute_uv=False)
    assert np.max(np.abs(ours / truth - 1)) < max(1e-11, 20 * EPS * condition)


@pytest.mark.parametrize("units", [1e-12, 1e12])
def test_units_of_a_column_do_not_touch_the_accuracy_of_the_others(units, rng):
    rows, unit = rng.standard_normal((60, 4)), np.array([1.0, units, 1.0, units])
    np.testing.assert_allclose(
        triangular_factor(rows * unit), triangular_factor(rows) * unit, rtol=1e-12
    )


@pytest.mark.parametrize("n_parts", [1, 10])
def test_centering_is_exact_at_offsets_of_1e8_standard_deviations(n_parts, rng):
    offset = 1e8 * np.array([1.0, -1.0, 1.0])
    X = offset + rng.standard_normal((1000, 3)) @ [[1.0, 0.5, 0], [0, 1.0, 0.2], [0, 0, 1.0]]
    rows = np.column_stack([np.ones(1000), X])
    moments = [moments_of(part, centered=False) for part in np.array_split(rows, n_parts)]
    location, factor = centered_block(reduce(GradientMoments.merge, moments).covariance_factor())
    deviation = X - offset  # exact: the two are within a factor of two
    truth = np.cov(deviation.T, ddof=0)
    # backward error eps of columns 1e8 times as long as what is left of them
    assert relative_error(factor.T @ factor, truth) < 100 * 1e8 * EPS
    np.testing.assert_allclose(location - offset, deviation.mean(0), rtol=0, atol=100e8 * EPS)
    gram = rows.T @ rows / 1000
    gram_covariance = gram[1:, 1:] - np.outer(gram[0, 1:], gram[0, 1:])
    assert relative_error(gram_covariance, truth) > 0.1


@pytest.mark.parametrize("n_parts", [1, 10])
def test_a_mean_gradient_of_1e8_standard_deviations_leaves_the_centered_moments_exact(n_parts, rng):
    deviation = rng.standard_normal((1000, 3))
    rows = deviation + 1e8
    deviation = rows - 1e8
    parts = [moments_of(part, centered=True) for part in np.array_split(rows, n_parts)]
    covariance = reduce(GradientMoments.merge, parts).covariance()
    assert relative_error(covariance, np.cov(deviation.T)) < 100 * 1e8 * EPS


# --- triangular_factor


@pytest.mark.parametrize("n_rows", [0, 1, 4, 5, 40])
@pytest.mark.parametrize("triangular", [True, False])
@pytest.mark.parametrize("condition", [1.0, 1e12])
def test_rows_below_a_triangle_are_taken_in(rng, n_rows, triangular, condition):
    scale = np.geomspace(1, condition**-0.5, 5)
    factor = triangular_factor(rng.standard_normal((9, 5)) * scale)
    rows = rng.standard_normal((n_rows, 5)) * scale
    rows = np.triu(rows) if triangular else rows
    found = updated_triangle(factor, rows)
    expected = np.linalg.qr(np.vstack([factor, rows]), mode="r")
    np.testing.assert_allclose(np.abs(found) / scale, np.abs(expected) / scale, atol=1e-12)
    assert (np.diag(found) >= 0).all()
    np.testing.assert_array_equal(found, np.triu(found))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(0, 4), (1, 4), (3, 4), (4, 4), (7, 4), (8, 4), (500, 4), (1, 1), (9, 1)]
)
def test_factor_is_upper_triangular_with_no_negative_diagonal(shape, dtype, rng):
    rows = rng.standard_normal(shape).astype(dtype)
    factor = triangular_factor(rows)
    assert factor.shape == (shape[1], shape[1])
    assert not np.tril(factor, -1).any()
    assert np.all(np.diag(factor) >= 0)
    exact = rows.astype(np.float64).T @ rows.astype(np.float64)
    # both routes are backward stable in R'R, at the precision of the rows
    np.testing.assert_allclose(
        factor.T @ factor, exact, rtol=0, atol=100 * np.finfo(dtype).eps * (1 + np.abs(exact).max())
    )


def test_a_tall_well_conditioned_matrix_needs_no_qr(rng, monkeypatch):
    rows = rng.standard_normal((500, 6)) * np.geomspace(1e-6, 1e6, 6)
    expected = np.abs(np.linalg.qr(rows, mode="r"))
    monkeypatch.delattr(np.linalg, "qr")
    np.testing.assert_allclose(np.abs(triangular_factor(rows)), expected, rtol=1e-10)


@pytest.mark.parametrize("n_rows", [3, 100])
def test_a_column_of_zeros_stays_one(n_rows, rng):
    rows = rng.standard_normal((n_rows, 4))
    rows[:, 2] = 0
    factor = triangular_factor(rows)
    np.testing.assert_array_equal(factor[:, 2], 0)
    np.testing.assert_allclose(factor.T @ factor, rows.T @ rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_rows", [5, 60])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-162, 1e-155, 1e150, 1e155, 1e200, 1e300])
def test_squares_out_of_range_do_not_matter(scale, n_rows, rng):
    rows = rng.standard_normal((n_rows, 4))
    np.testing.assert_allclose(
        triangular_factor(scale * rows) / scale, triangular_factor(rows), rtol=1e-11, atol=1e-13
    )


# --- centered_block


@given(
    rows=arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.floats(-1e3, 1e3),
    )
)
def test_centered_block_holds_the_mean_and_the_scatter_about_it(rows):
    factor = triangular_factor(np.column_stack([np.ones(len(rows)), rows]))
    location, block = centered_block(factor)
    covariance, mean = weighted_covariance(rows)
    scale = 1 + size_of(rows)
    np.testing.assert_allclose(location, mean, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(
        block.T @ block / len(rows), covariance, rtol=0, atol=1e-13 * scale**2
    )


def test_an_intercept_that_was_never_seen_has_location_zero():
    location, block = centered_block(np.zeros((3, 3)))
    np.testing.assert_array_equal(location, np.zeros(2))
    np.testing.assert_array_equal(block, np.zeros((2, 2)))
