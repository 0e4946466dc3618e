import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn._loss.loss import (
    HalfBinomialLoss,
    HalfGammaLoss,
    HalfPoissonLoss,
    HalfSquaredError,
    HalfTweedieLoss,
    PinballLoss,
)
from sklearn._loss.loss import HuberLoss as SklearnHuber

from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._multinomial import MultinomialLoss
from sklearn_gradhess._scaled_losses import HuberLoss, QuantileLoss

NAMES = ("squared_error", "huber", "quantile", "log_loss", "poisson", "gamma", "tweedie")
LOG_LINKS = ("poisson", "gamma", "tweedie")
METHODS = ("value", "gradient", "curvature")
DTYPES = (np.float32, np.float64)
FAR = (-1e6, -1e3, -50.0, 50.0, 1e3, 1e6)


def targets(name):
    """Targets that the loss accepts, the ends of its range included."""
    if name == "log_loss":
        return st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    low = {"poisson": 0.0, "tweedie": 0.0, "gamma": 1e-3}.get(name, -20.0)
    return st.floats(low, 20.0)


def call(loss, method, y, raw_prediction, dtype=np.float64):
    return getattr(loss, method)(np.array(y, dtype=dtype), np.array(raw_prediction, dtype=dtype))


# --- derivatives


@pytest.mark.parametrize(("method", "derivative"), [METHODS[:2], METHODS[1:]])
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), f=st.floats(-10, 10))
def test_derivative_is_that_of_central_differences(name, method, derivative, data, f):
    y, h, loss = data.draw(targets(name)), 1e-4, make_loss(name)
    if name == "huber":  # no derivative of the gradient where it bends
        assume(abs(abs(f - y) - loss.epsilon) > 2 * h)
    low, high = call(loss, method, [y, y], [f - h, f + h])
    scale = 1 + abs(low) + abs(high) + call(loss, "curvature", [y], [f])[0]
    # truncation h^2/6 of the third derivative, rounding eps/h of the value; every third
    # derivative here is at most the curvature
    tolerance = (h**2 + 10 * np.finfo(float).eps / h) * scale
    assert abs((high - low) / (2 * h) - call(loss, derivative, [y], [f])[0]) < tolerance


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), f=st.floats(-1e6, 1e6))
def test_curvature_is_never_negative(name, data, f):
    assert call(make_loss(name), "curvature", [data.draw(targets(name))], [f])[0] >= 0


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), ends=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)))
def test_gradient_never_falls_as_the_raw_prediction_grows(name, data, ends):
    y = data.draw(targets(name))
    low, high = call(make_loss(name), "gradient", [y, y], sorted(ends))
    assert high >= low - 1e-15


@pytest.mark.parametrize(
    ("name", "y", "raw_prediction"),
    [
        ("squared_error", 3.5, 3.5),
        ("huber", -2.0, -2.0),
        ("poisson", 7.0, np.log(7.0)),
        ("gamma", 7.0, np.log(7.0)),
        ("tweedie", 7.0, np.log(7.0)),
    ],
)
def test_value_and_gradient_vanish_where_the_prediction_meets_the_target(name, y, raw_prediction):
    for method in METHODS[:2]:
        assert abs(call(make_loss(name), method, [y], [raw_prediction])[0]) < 1e-14


# --- against scikit-learn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("squared_error", HalfSquaredError()),
        ("huber", SklearnHuber(delta=1.35)),
        ("log_loss", HalfBinomialLoss()),
        ("poisson", HalfPoissonLoss()),
        ("gamma", HalfGammaLoss()),
        ("tweedie", HalfTweedieLoss(power=1.5)),
    ],
)
def test_loss_is_that_of_scikit_learn(name, reference, dtype, rng):
    f = rng.uniform(-15, 15, 500).astype(dtype)
    y = {
        "log_loss": rng.uniform(0, 1, 500),
        "poisson": rng.poisson(3.0, 500),
        "gamma": rng.gamma(2.0, size=500),
        "tweedie": rng.poisson(1.0, 500) * rng.gamma(2.0, size=500),
    }.get(name, f + rng.normal(0, 2, 500))
    y = y.astype(dtype)
    arguments = {"y_true": y, "raw_prediction": f}
    value = reference.loss(**arguments)
    if name in LOG_LINKS:  # scikit-learn leaves out the minimum, which depends on y alone
        value = value + reference.constant_to_optimal_zero(y)
    gradient, curvature = reference.gradient_hessian(**arguments)
    loss, eps = make_loss(name), np.finfo(dtype).eps
    # relative to the largest term of the sums that make up each
    scale = 1 + np.abs(f) * (1 + np.abs(y)) + (1 + y) * np.exp(np.abs(f) * (name in LOG_LINKS))
    for method, expected in zip(METHODS, (value, gradient, curvature), strict=True):
        error = np.abs(getattr(loss, method)(y, f) - expected)
        assert np.max(error / scale) < 16 * eps


# --- far out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_far_raw_predictions_stay_finite_without_a_warning_in_their_dtype(name, method, dtype):
    f, y = np.repeat(FAR, 2), np.tile([0.5 * (name == "gamma"), 1.0], len(FAR))
    with np.errstate(all="raise", under="ignore"):
        result = call(make_loss(name), method, y, f, dtype)
    assert result.dtype == dtype
    assert result.shape == f.shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("f", [1.0, 40.0, 300.0, 700.0, 800.0])
def test_logistic_tails_keep_their_relative_accuracy(f):
    loss, tail = make_loss("log_loss"), np.exp(-f)
    expected = {
        "value": np.log1p(tail),
        "gradient": -tail / (1 + tail),
        "curvature": tail / (1 + tail) ** 2,
    }
    for method, right in expected.items():
        sign = -1 if method == "gradient" else 1
        assert call(loss, method, [1.0], [f])[0] == pytest.approx(right, rel=1e-14, abs=0)
        mirrored = call(loss, method, [0.0], [-f])[0]
        assert mirrored == pytest.approx(sign * right, rel=1e-14, abs=0)


def test_logistic_value_is_linear_on_the_wrong_side():
    for y, f in ((0.0, 1e6), (1.0, -1e6)):
        assert call(make_loss("log_loss"), "value", [y], [f])[0] == 1e6


@given(f=st.floats(-50, 50), y=st.floats(0, 1))
def test_logistic_loss_is_symmetric_in_the_classes(f, y):
    loss = make_loss("log_loss")
    for method, sign in zip(METHODS, (1, -1, 1), strict=True):
        a, b = call(loss, method, [y], [f])[0], call(loss, method, [1 - y], [-f])[0]
        assert a == pytest.approx(sign * b, rel=1e-12, abs=1e-14)


def poisson_cap(dtype):
    return 0.5 * np.log(np.finfo(dtype).max)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_poisson_is_continuous_where_it_is_continued(method, dtype):
    cap = poisson_cap(dtype)
    sides = [np.nextafter(cap, dtype(-np.inf)), np.nextafter(cap, dtype(np.inf))]
    below, above = call(make_loss("poisson"), method, [3.0, 3.0], sides, dtype)
    # two steps of the raw prediction, of relative size eps cap, and the rounding of exp
    assert abs(above / below - 1) < 4 * np.finfo(dtype).eps * cap


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(("method", "derivative"), [METHODS[:2], METHODS[1:]])
def test_poisson_has_the_same_derivatives_on_both_sides_of_the_cap(method, derivative, side):
    loss, cap, h = make_loss("poisson"), poisson_cap(np.float64), 1e-4
    here, there = call(loss, method, [3.0, 3.0], [cap, cap + side * h])
    slope = side * (there - here) / h
    # a one-sided difference is off by h/2 of the next derivative, which is the value itself
    assert slope == pytest.approx(call(loss, derivative, [3.0], [cap])[0], rel=h)


@given(excess=st.floats(0, 1e6))
def test_poisson_is_a_parabola_beyond_the_cap(excess):
    loss, cap = make_loss("poisson"), poisson_cap(np.float64)
    top, t = np.exp(cap), (cap + excess) - cap
    polynomial = {"value": 1 + t + t**2 / 2, "gradient": 1 + t, "curvature": 1.0}
    for method, expected in polynomial.items():
        actual = call(loss, method, [3.0], [cap + excess])[0]
        assert actual / top == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", [1e3, 1e6])
def test_one_newton_step_leads_poisson_back_below_the_cap(f, dtype):
    loss = make_loss("poisson")
    gradient, curvature = (call(loss, m, [3.0], [f], dtype)[0] for m in METHODS[1:])
    assert dtype(f) - gradient / curvature < poisson_cap(dtype)


@given(epsilon=st.floats(0.1, 10), residual=st.floats(-30, 30), y=st.floats(-5, 5))
def test_huber_is_its_closed_form(epsilon, residual, y):
    loss, f = HuberLoss(epsilon), y + residual
    r = f - y
    inside = abs(r) <= epsilon
    value = r**2 / 2 if inside else epsilon * (abs(r) - epsilon / 2)
    assert call(loss, "value", [y], [f])[0] == pytest.approx(value, rel=1e-12)
    assert call(loss, "gradient", [y], [f])[0] == (r if inside else np.copysign(epsilon, r))
    assert call(loss, "curvature", [y], [f])[0] == inside


CAPPED = {  # where each exponential is continued, and the sign of the side beyond
    "poisson": (1.0, 1),
    "gamma": (-1.0, -1),
    "tweedie": (2.0, 1),  # of its two the rising one
}


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(("method", "derivative"), [METHODS[:2], METHODS[1:]])
@pytest.mark.parametrize("name", ["gamma", "tweedie"])
def test_other_log_links_have_the_same_derivatives_on_both_sides_of_the_cap(
    name, method, derivative, side
):
    loss, h = make_loss(name), 1e-4
    place = CAPPED[name][0] * poisson_cap(np.float64)
    here, there = call(loss, method, [1.0, 1.0], [place, place + side * h])
    expected = call(loss, derivative, [1.0], [place])[0]
    assert side * (there - here) / h == pytest.approx(expected, rel=h)


@pytest.mark.parametrize("name", LOG_LINKS)
def test_beyond_the_cap_a_newton_step_leads_back(name):
    loss, (place, sign) = make_loss(name), CAPPED[name]
    f = 2 * place * poisson_cap(np.float64)
    gradient, curvature = (call(loss, m, [1.0], [f])[0] for m in METHODS[1:])
    assert gradient / curvature * sign > 0
    # As far as the parabola reaches: within one of the cap, in units of the exponent
    exponent = abs(f - gradient / curvature) / abs(place)
    assert exponent < poisson_cap(np.float64) + 1


@pytest.mark.parametrize(
    ("name", "place"), [*((name, at) for name, (at, _) in CAPPED.items()), ("tweedie", -2.0)]
)
def test_beyond_the_cap_the_value_is_the_integral_of_a_straight_gradient(name, place):
    loss, ends = make_loss(name), place * (poisson_cap(np.float64) + np.array([3.0, 20.0]))
    value, gradient = (call(loss, method, [1.0, 1.0], ends) for method in METHODS[:2])
    trapezoid = gradient.mean() * (ends[1] - ends[0])
    assert value[1] - value[0] == pytest.approx(trapezoid, rel=1e-12)


@given(y=st.floats(1e-3, 20), f=st.floats(-5, 5))
def test_tweedie_lies_between_poisson_and_gamma(y, f):
    for end, power in (("poisson", 1 + 1e-7), ("gamma", 2 - 1e-7)):
        near = make_loss("tweedie", power=power)
        for method in METHODS:
            limit = call(make_loss(end), method, [y], [f])[0]
            # 1e-7 of the logarithms of what is raised to the power, and 1e7 roundings
            assert call(near, method, [y], [f])[0] == pytest.approx(limit, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", LOG_LINKS)
@given(unit=st.floats(1e-3, 1e3), y=st.floats(1e-3, 20), f=st.floats(-5, 5))
def test_another_unit_multiplies_log_link_losses_by_a_power(name, unit, y, f):
    loss = make_loss(name)
    for method in METHODS:
        expected = unit ** (2 - loss.power) * call(loss, method, [y], [f])[0]
        found = call(loss, method, [unit * y], [f + np.log(unit)])[0]
        size = unit ** (2 - loss.power) * (1 + y) * np.exp(5)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * size)


@pytest.mark.parametrize("name", ["squared_error", "huber", "quantile"])
@given(unit=st.floats(1e-3, 1e3), y=st.floats(-20, 20), f=st.floats(-20, 20))
def test_losses_in_their_own_unit_are_homogeneous(name, unit, y, f):
    loss = make_loss(name)
    for method, power in zip(METHODS, (2, 1, 0), strict=True):
        if name == "huber" and abs(abs(f - y) - 1.35) < 1e-9:
            continue
        found = call(loss.per(unit), method, [y / unit], [f / unit])[0] * unit**power
        assert found == pytest.approx(call(loss, method, [y], [f])[0], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["log_loss", *LOG_LINKS])
def test_the_mean_inverts_the_link(name):
    mean = np.array([0.01, 0.3, 0.9])
    assert make_loss(name).mean(make_loss(name).link(mean)) == pytest.approx(mean, rel=1e-12)


# --- the smoothed quantile loss


@pytest.mark.parametrize("quantile", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("bandwidth", [1e-3, 0.5, 4.0])
def test_the_quantile_loss_is_the_pinball_loss_convolved_with_a_logistic_density(
    quantile, bandwidth
):
    loss = QuantileLoss(quantile, 3.0, bandwidth)
    z = np.linspace(-60, 60, 600_001)
    density = 0.25 / np.cosh(z / 2) ** 2
    for residual in (-2.0, -0.1, 0.0, 0.3, 5.0):
        shifted = residual - bandwidth * z
        pinball = np.where(shifted > 0, quantile * shifted, (quantile - 1) * shifted)
        expected = 3.0 * np.sum(pinball * density) * (z[1] - z[0])
        found = call(loss, "value", [1.0 + residual], [1.0])[0]
        # Rectangles: h^2/12 of the jump of the slope at the kink
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(
    quantile=st.floats(0.01, 0.99),
    bandwidth=st.floats(1e-3, 10),
    y=st.floats(-9, 9),
    f=st.floats(-9, 9),
)
def test_the_quantile_loss_is_above_the_pinball_loss_by_no_more_than_it_says(
    quantile, bandwidth, y, f
):
    pinball = PinballLoss(quantile=quantile).loss(
        y_true=np.array([y]), raw_prediction=np.array([f])
    )
    excess = call(QuantileLoss(quantile, 1.0, bandwidth), "value", [y], [f])[0] - pinball[0]
    assert -1e-12 <= excess <= np.log(2) * bandwidth + 1e-12


# --- scales


def naive_huber_scale(residual, weight, epsilon):
    """Largest root by bisection."""
    low, high = 0.0, 2 * np.abs(residual).max()
    for _ in range(200):
        middle = (low + high) / 2
        filled = weight @ np.minimum((residual / middle) ** 2, epsilon**2) > weight.sum()
        low, high = (middle, high) if filled else (low, middle)
    return low


@given(seed=st.integers(0, 2**32 - 1), epsilon=st.floats(1.05, 5), n=st.integers(1, 40))
def test_the_scale_of_huber_solves_its_equation(seed, epsilon, n):
    rng = np.random.default_rng(seed)
    residual, weight = rng.standard_t(2, size=n), rng.uniform(0.1, 2, n)
    scale = HuberLoss(epsilon).residual_scale(residual, weight, len(residual), 1)
    assert scale == pytest.approx(naive_huber_scale(residual, weight, epsilon), rel=1e-9)


@pytest.mark.parametrize("residual", [[0.0, 0.0], [0.0, 0.0, 0.0, 5.0]])
def test_huber_has_no_scale_where_most_residuals_are_zero(residual):
    assert HuberLoss().residual_scale(np.array(residual), np.ones(len(residual)), 4, 1) == 0


@pytest.mark.parametrize("unit", [1e-300, 1e300])
def test_the_scale_of_huber_has_the_unit_of_the_residuals(unit, rng):
    residual, weight = rng.standard_normal(50), np.ones(50)
    scales = [HuberLoss().residual_scale(u * residual, weight, 50, 1) for u in (1.0, unit)]
    assert scales[1] / unit == pytest.approx(scales[0], rel=1e-12)


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.8])
def test_normal_residuals_have_their_standard_deviation_for_a_scale(quantile, rng):
    residual = 3.0 * rng.standard_normal(200_000) + 7
    scale = QuantileLoss(quantile).residual_scale(residual, np.ones(200_000), 2e5, 3)
    # The spacing of two ranks apart by min(t, 1 - t): its relative standard error is below 1 %
    assert scale == pytest.approx(3.0, rel=0.05)


def test_the_scale_of_a_quantile_is_that_of_its_neighbourhood(rng):
    residual = rng.exponential(size=100_000)  # dense near zero
    low, high = (
        QuantileLoss(t).residual_scale(residual, np.ones(100_000), 1e5, 3) for t in (0.02, 0.98)
    )
    assert low < 0.1 < 1 < high


@pytest.mark.parametrize("loss", [HuberLoss(), QuantileLoss(0.7)])
def test_scales_take_weights_as_repetitions(loss, rng):
    residual, times = rng.standard_normal(4000), rng.integers(1, 4, 4000)
    n = times.sum()
    weighted = loss.residual_scale(residual, times / times.mean(), n, 1)
    repeated = loss.residual_scale(np.repeat(residual, times), np.ones(n), n, 1)
    assert weighted == pytest.approx(repeated, rel=1e-9)


def test_the_bandwidth_follows_the_rule_and_the_scale():
    loss = QuantileLoss(0.2).at_scale(3.0, 1000, 10)
    rule = np.sqrt(0.2 * 0.8) * ((10 + np.log(1000)) / 1000) ** 0.4
    # The variance of the logistic density is pi^2/3
    assert loss.bandwidth * np.pi / np.sqrt(3) == pytest.approx(3 * rule)
    assert loss.scale == 3.0


# --- targets and names


@pytest.mark.parametrize(
    ("name", "y"),
    [
        ("squared_error", [-1e300, 0.0, 1e300]),
        ("huber", [-1e300, 0.0, 1e300]),
        ("log_loss", [0.0, 0.5, 1.0]),
        ("poisson", [0.0, 1e100]),
        ("quantile", [-1e300, 0.0, 1e300]),
        ("gamma", [1e-300, 1e300]),
        ("tweedie", [0.0, 1e100]),
    ],
)
def test_targets_in_range_are_accepted(name, y):
    assert make_loss(name).check_y(np.array(y)) is None


@pytest.mark.parametrize(
    ("name", "y", "message"),
    [
        (
            "log_loss",
            [0.0, 2.0],
            r"LogisticLoss needs 0 <= y <= 1, got min\(y\) = 0 and max\(y\) = 2\. Encode the two "
            r"classes as 0 and 1; for real-valued targets use loss='squared_error'\.",
        ),
        ("log_loss", [-1.0, 1.0], r"got min\(y\) = -1 and max\(y\) = 1\. Encode"),
        (
            "poisson",
            [-1.5, 4.0],
            r"PoissonLoss needs y >= 0, got min\(y\) = -1\.5\. For real-valued targets use "
            r"loss='squared_error'\.",
        ),
        (
            "tweedie",
            [-1.5, 4.0],
            r"TweedieLoss needs y >= 0, got min\(y\) = -1\.5\. For real-valued targets use "
            r"loss='squared_error'\.",
        ),
        ("tweedie", [1e200], r"max\(y\) = 1e\+200 is beyond what the exponential of the log link"),
        (
            "gamma",
            [0.0, 4.0],
            r"GammaLoss needs y > 0, got min\(y\) = 0\. For targets that may be zero use "
            r"loss='tweedie' or loss='poisson'\.",
        ),
    ],
)
def test_targets_out_of_range_are_refused_with_the_way_out(name, y, message):
    with pytest.raises(ValueError, match=message):
        make_loss(name).check_y(np.array(y))


@pytest.mark.parametrize("name", NAMES)
def test_make_loss_returns_the_loss_of_that_name(name):
    assert make_loss(name).name == name


def test_make_loss_hands_each_loss_its_parameter():
    assert make_loss("huber", epsilon=2.5).epsilon == 2.5
    assert make_loss("tweedie", power=1.2).power == 1.2
    assert make_loss("quantile", quantile=0.3).quantile == 0.3


def test_an_unknown_loss_is_named_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"Unknown loss 'hinge'; known are "
        r"\['gamma', 'huber', 'log_loss', 'poisson', 'quantile', 'squared_error', 'tweedie'\]\.",
    ):
        make_loss("hinge")


@pytest.mark.parametrize("name", ["squared_error", "huber", "log_loss"])
@given(data=st.data(), f=st.floats(-1e3, 1e3))
def test_no_curvature_exceeds_the_largest_and_one_attains_it(name, data, f):
    loss = make_loss(name)
    y = data.draw(targets(name))
    assert call(loss, "curvature", [y], [f])[0] <= loss.largest_curvature
    assert call(loss, "curvature", [0.0], [0.0])[0] == loss.largest_curvature


def test_poisson_curvature_has_no_bound():
    assert make_loss("poisson").largest_curvature == np.inf


# --- several classes


def softmax_by_hand(raw_prediction):
    return np.array([np.exp(row) / sum(np.exp(row)) for row in raw_prediction])


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_multinomial_hessian_of_a_row_is_that_of_its_probabilities(n_classes, scale, rng):
    loss = MultinomialLoss()
    raw = scale * rng.standard_normal((7, n_classes))
    y = np.eye(n_classes)[rng.integers(0, n_classes, 7)]
    for p, row, one_hot in zip(softmax_by_hand(raw), raw, y, strict=True):
        hessian = np.diag(p) - np.outer(p, p)
        arguments = one_hot[None], row[None]
        np.testing.assert_allclose(loss.curvature(*arguments)[0], np.diag(hessian), rtol=1e-12)
        found = [loss.hessian_product(*arguments, e[None])[0] for e in np.eye(n_classes)]
        np.testing.assert_allclose(found, hessian, rtol=1e-11, atol=1e-15)
        direction = rng.standard_normal(n_classes)
        np.testing.assert_allclose(
            loss.hessian_product(*arguments, direction[None])[0], hessian @ direction, atol=1e-13
        )
        assert np.all(loss.curvature(*arguments) <= loss.largest_curvature + 1e-15)
    # rows do not see each other
    direction = rng.standard_normal(raw.shape)
    together = loss.hessian_product(y, raw, direction)
    apart = [
        loss.hessian_product(*(a[i : i + 1] for a in (y, raw, direction)))[0] for i in range(7)
    ]
    np.testing.assert_allclose(together, apart, rtol=1e-13)
