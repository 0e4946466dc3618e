import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn._loss.loss import HalfBinomialLoss, HalfPoissonLoss, HalfSquaredError
from sklearn._loss.loss import HuberLoss as SklearnHuber

from sklearn_gradhess._losses import HuberLoss, MultinomialLoss, make_loss

NAMES = ("squared_error", "huber", "log_loss", "poisson")
METHODS = ("value", "gradient", "curvature")
DTYPES = (np.float32, np.float64)
FAR = (-1e6, -1e3, -50.0, 50.0, 1e3, 1e6)


def targets(name):
    """Targets that the loss accepts, the ends of its range included."""
    if name == "log_loss":
        return st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    return st.floats(0.0 if name == "poisson" else -20.0, 20.0)


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
    [("squared_error", 3.5, 3.5), ("huber", -2.0, -2.0), ("poisson", 7.0, np.log(7.0))],
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
    ],
)
def test_loss_is_that_of_scikit_learn(name, reference, dtype, rng):
    f = rng.uniform(-15, 15, 500).astype(dtype)
    y = {"log_loss": rng.uniform(0, 1, 500), "poisson": rng.poisson(3.0, 500)}.get(
        name, f + rng.normal(0, 2, 500)
    )
    y = y.astype(dtype)
    arguments = {"y_true": y, "raw_prediction": f}
    value = reference.loss(**arguments)
    if name == "poisson":  # scikit-learn leaves out the minimum, which depends on y alone
        value = value + reference.constant_to_optimal_zero(y)
    gradient, curvature = reference.gradient_hessian(**arguments)
    loss, eps = make_loss(name), np.finfo(dtype).eps
    # relative to the largest term of the sums that make up each
    scale = 1 + np.abs(f) * (1 + np.abs(y)) + np.exp(f if name == "poisson" else 0 * f)
    for method, expected in zip(METHODS, (value, gradient, curvature), strict=True):
        error = np.abs(getattr(loss, method)(y, f) - expected)
        assert np.max(error / scale) < 16 * eps


# --- far out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_far_raw_predictions_stay_finite_without_a_warning_in_their_dtype(name, method, dtype):
    f, y = np.repeat(FAR, 2), np.tile([0.0, 1.0], len(FAR))
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


# --- targets and names


@pytest.mark.parametrize(
    ("name", "y"),
    [
        ("squared_error", [-1e300, 0.0, 1e300]),
        ("huber", [-1e300, 0.0, 1e300]),
        ("log_loss", [0.0, 0.5, 1.0]),
        ("poisson", [0.0, 1e100]),
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
    ],
)
def test_targets_out_of_range_are_refused_with_the_way_out(name, y, message):
    with pytest.raises(ValueError, match=message):
        make_loss(name).check_y(np.array(y))


@pytest.mark.parametrize("name", NAMES)
def test_make_loss_returns_the_loss_of_that_name(name):
    assert make_loss(name).name == name


def test_make_loss_hands_epsilon_to_huber():
    assert make_loss("huber", epsilon=2.5).epsilon == 2.5


def test_an_unknown_loss_is_named_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"Unknown loss 'hinge'; known are "
        r"\['huber', 'log_loss', 'poisson', 'squared_error'\]\.",
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
