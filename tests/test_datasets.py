import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from sklearn.linear_model import LinearRegression

from sklearn_gradhess.datasets import make_hessian_regression

DISTRIBUTIONS = ("gaussian", "rademacher", "student_t", "correlated", "one_hot")
distributions = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
ROTATED = ("gaussian", "student_t", "correlated")


def standardised(made):
    """Rows of mean zero and identity covariance, if the truth is the truth."""
    return np.linalg.solve(np.linalg.cholesky(made.covariance), (made.data - made.location).T).T


@distributions
def test_sample_moments_are_the_true_ones(distribution):
    made = make_hessian_regression(
        60_000, 5, condition_number=30.0, distribution=distribution, random_state=0
    )
    Z = standardised(made)
    products = np.einsum("ni,nj->nij", Z, Z)
    # autocorrelation 0.9 divides the number of rows by (1 + 0.9)/(1 - 0.9) for means and by
    # (1 + 0.81)/(1 - 0.81) for products; six standard errors in each entry
    rows = np.array([len(Z), len(Z)], dtype=float)
    if distribution == "correlated":
        rows /= [19.0, 1.81 / 0.19]
    assert np.all(np.abs(Z.mean(axis=0)) < 6 / np.sqrt(rows[0]))
    error = np.abs(products.mean(axis=0) - np.eye(5))
    assert np.all(error < 6 * products.std(axis=0) / np.sqrt(rows[1]) + 1e-12)


@distributions
def test_target_is_coef_and_intercept_and_noise_of_the_deviation_asked_for(distribution):
    made = make_hessian_regression(20_000, 4, noise=3.0, distribution=distribution, random_state=1)
    residual = (made.target - made.data @ made.coef - made.intercept) / 3.0
    se = 1 / np.sqrt(len(residual))
    assert abs(residual.mean()) < 5 * se
    assert abs(residual.var() - 1) < 5 * np.sqrt(2) * se
    # residuals do not depend on the features: each product has mean zero and variance one
    assert np.all(np.abs(standardised(made).T @ residual) * se**2 < 5 * se)


@distributions
def test_without_noise_the_coefficients_are_those_of_least_squares(distribution):
    made = make_hessian_regression(500, 4, noise=0.0, distribution=distribution, random_state=2)
    np.testing.assert_allclose(made.target, made.data @ made.coef + made.intercept, atol=1e-13)
    model = LinearRegression().fit(made.data, made.target)
    np.testing.assert_allclose(model.coef_, made.coef, rtol=1e-8)
    assert model.intercept_ == pytest.approx(made.intercept, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@given(risk=st.floats(1e-6, 1e6), condition=st.floats(1, 1e8), d=st.integers(1, 8))
def test_excess_risk_at_zero_is_exactly_as_asked(distribution, risk, condition, d):
    made = make_hessian_regression(
        3,
        d,
        excess_risk=risk,
        condition_number=condition,
        distribution=distribution,
        random_state=3,
    )
    about_mean = made.coef @ made.covariance @ made.coef
    at_zero = about_mean + (made.location @ made.coef + made.intercept) ** 2
    assert about_mean == pytest.approx(risk, rel=1e-7)
    assert at_zero == pytest.approx(risk, rel=1e-7)


def test_no_excess_risk_gives_coefficients_of_zero():
    made = make_hessian_regression(50, 3, excess_risk=0.0, noise=0.0, random_state=4)
    np.testing.assert_array_equal(made.coef, 0)
    np.testing.assert_array_equal(made.target, 0)


@pytest.mark.parametrize("distribution", [*ROTATED, "rademacher"])
@pytest.mark.parametrize("condition", [1.0, 100.0, 1e8])
def test_eigenvalues_fall_geometrically_from_one_to_the_condition_number(distribution, condition):
    made = make_hessian_regression(
        5, 6, condition_number=condition, distribution=distribution, random_state=5
    )
    values = np.linalg.eigvalsh(made.covariance)[::-1]
    np.testing.assert_allclose(values, np.geomspace(1, 1 / condition, 6), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(made.location, np.zeros(6))


@pytest.mark.parametrize("distribution", ROTATED)
def test_features_are_rotated(distribution):
    made = make_hessian_regression(5, 6, distribution=distribution, random_state=6)
    off_diagonal = made.covariance - np.diag(np.diag(made.covariance))
    assert np.abs(off_diagonal).max() > 0.01


def test_a_single_feature_has_variance_one():
    for distribution in (*ROTATED, "rademacher"):
        made = make_hessian_regression(4, 1, distribution=distribution, random_state=7)
        np.testing.assert_allclose(made.covariance, [[1.0]], rtol=1e-15)


def test_rademacher_features_are_signs_of_falling_scale():
    made = make_hessian_regression(200, 3, distribution="rademacher", random_state=8)
    np.testing.assert_allclose(made.data**2, np.tile([1.0, 0.1, 0.01], (200, 1)), rtol=1e-14)


def test_one_hot_rows_are_indicators_of_levels_in_the_ratio_of_the_condition_number():
    made = make_hessian_regression(
        2000, 4, condition_number=50.0, distribution="one_hot", random_state=9
    )
    assert set(np.unique(made.data)) == {0.0, 1.0}
    assert set(made.data.sum(axis=1)) == {0.0, 1.0}
    frequency = np.append(1 - made.location.sum(), made.location)
    assert frequency.max() / frequency.min() == pytest.approx(50.0)
    p = made.location
    np.testing.assert_allclose(made.covariance, np.diag(p) - np.outer(p, p), rtol=1e-14)


def test_autocorrelation_of_correlated_rows_is_nine_tenths_and_that_of_others_zero():
    for distribution in DISTRIBUTIONS:
        made = make_hessian_regression(40_000, 3, distribution=distribution, random_state=10)
        Z = standardised(made)
        rho = 0.9 if distribution == "correlated" else 0.0
        for lag in (1, 3):
            lagged = np.mean(Z[lag:] * Z[:-lag], axis=0)
            # Bartlett: n times the variance is at most 2 sum_h rho^(2 |h|)
            se = np.sqrt(2 * (1 + rho**2) / (1 - rho**2) / len(Z))
            assert np.all(np.abs(lagged - rho**lag) < 5 * se)


def test_the_first_correlated_row_is_as_large_as_any():
    first = [
        standardised(make_hessian_regression(2, 4, distribution="correlated", random_state=seed))[0]
        for seed in range(500)
    ]
    assert abs(np.var(first) - 1) < 5 * np.sqrt(2 / 2000)  # of 2000 Gaussian squares


def test_student_t_rows_are_elliptical_with_tails_heavier_than_gaussian():
    made = {
        name: standardised(make_hessian_regression(100_000, 4, distribution=name, random_state=11))
        for name in ("gaussian", "student_t")
    }
    gaussian, student = (np.mean(made[name] ** 4) for name in ("gaussian", "student_t"))
    assert abs(gaussian - 3) < 5 * np.sqrt(96 / 400_000)  # Var(z^4) = 96
    assert student > 5  # 9 in the population, approached from below
    # P(|t| > 4) with 5 degrees of freedom; at worst the four entries of a row exceed it together
    share = np.mean(np.abs(made["student_t"]) > 4 * np.sqrt(3 / 5))
    tail = 2 * t.sf(4, 5)
    assert abs(share - tail) < 5 * np.sqrt(tail / 100_000)
    # one scale a row: log squares correlate as trigamma(5/2) to trigamma(5/2) + trigamma(1/2), 0.09
    squares = np.log(made["student_t"] ** 2)
    assert np.corrcoef(squares.T)[0, 1] > 0.05


@distributions
def test_equal_random_states_give_equal_data(distribution):
    makes = [
        make_hessian_regression(30, 3, distribution=distribution, random_state=state)
        for state in (12, 12, np.random.default_rng(12), 13)
    ]
    for name in ("data", "target", "coef", "covariance", "location"):
        for other in makes[1:3]:
            np.testing.assert_array_equal(makes[0][name], other[name])
    assert np.any(makes[0].target != makes[3].target)


def test_a_random_state_instance_moves_on():
    state = np.random.RandomState(14)
    a, b = (make_hessian_regression(30, 3, random_state=state) for _ in range(2))
    assert np.all(a.target != b.target)


@distributions
def test_shapes_and_dtypes(distribution):
    made = make_hessian_regression(7, 3, distribution=distribution, random_state=15)
    shapes = {"data": (7, 3), "target": (7,), "coef": (3,), "covariance": (3, 3), "location": (3,)}
    assert set(made) == {*shapes, "intercept"}
    for name, shape in shapes.items():
        assert made[name].shape == shape
        assert made[name].dtype == np.float64
    assert type(made.intercept) is float


def test_defaults_are_those_of_the_documentation():
    made = make_hessian_regression(random_state=16)
    assert made.data.shape == (1000, 20)
    assert made.coef @ made.covariance @ made.coef == pytest.approx(10.0)
    assert np.linalg.cond(made.covariance) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("name", "low", "values"),
    [
        ("n_samples", 1, (0, -3, np.nan)),
        ("n_features", 1, (0, -1, np.inf)),
        ("condition_number", 1, (0.5, np.nan, np.inf)),
        ("noise", 0, (-1.0, np.nan, np.inf)),
        ("excess_risk", 0, (-1.0, np.nan, np.inf)),
    ],
)
def test_a_number_out_of_range_is_named(name, low, values):
    for value in values:
        message = rf"{name} must be finite and >= {low}, got {value!r}\."
        with pytest.raises(ValueError, match=message):
            make_hessian_regression(**{name: value})


def test_an_unknown_distribution_is_named_with_the_known_ones():
    message = (
        r"distribution must be one of \('gaussian', 'rademacher', 'student_t', 'correlated', "
        r"'one_hot'\), got 'uniform'\."
    )
    with pytest.raises(ValueError, match=message):
        make_hessian_regression(distribution="uniform", random_state=0)


@pytest.mark.parametrize("name", ["n_samples", "n_features"])
@pytest.mark.parametrize("value", [1e3, 2.5, np.float64(20.0)])
def test_a_count_that_is_no_int_is_refused(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be an int, got .*: pass int"):
        make_hessian_regression(**{name: value})


@pytest.mark.parametrize("name", ["n_samples", "condition_number", "noise", "excess_risk"])
def test_what_is_no_number_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} must be an instance of"):
        make_hessian_regression(**{name: "many"})


def test_numpy_integers_count():
    made = make_hessian_regression(np.int32(30), np.uint8(4), random_state=0)
    assert made.data.shape == (30, 4)
