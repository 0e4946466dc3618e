"""Adversarial risk against brute force, Monte Carlo, and intervals against their coverage."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.optimize import minimize

from sklearn_gradhess._excess_risk import _noncentral_f_gap
from sklearn_gradhess._gradient_risk import gradient_adversarial_risk
from sklearn_gradhess._risk import (
    closed_form,
    dual_norm,
    folded_normal,
    gaussian_adversarial_risk,
)
from sklearn_gradhess.exceptions import CalibrationWarning

NORMS = (1, 1.5, 2, 3, np.inf)
vectors = arrays(np.float64, 4, elements=st.floats(-1e3, 1e3))
norms = st.one_of(st.just(np.inf), st.floats(1, 50))
budgets = arrays(np.float64, 4, elements=st.floats(0, 10))


def draw_pairs(rng, reps, d, k, n, *, m2, s2, df=None, mean_residual=0.0):
    """Clean and noise gradients, Omega = I, the intercept in column 0; row by row, as defined."""
    x = rng.standard_normal((reps, k, n, d))
    if df is not None:
        x *= np.sqrt((df - 2) / rng.chisquare(df, (reps, k, n, 1)))
    residual = (
        mean_residual + np.sqrt(m2) * x[..., 0] + np.sqrt(s2) * rng.standard_normal((reps, k, n))
    )
    xi = np.sqrt(n) * rng.standard_normal((reps, k, n))
    z = np.concatenate([np.ones((reps, k, n, 1)), x], axis=-1)
    return tuple(np.einsum("rknd,rkn->rkd", z, r) / n for r in (residual, xi))


def estimate(clean, noise, n, *, intercept=False, single=False, **kwargs):
    c, h = (g if intercept else g[:, 1:] for g in (clean, noise))
    pair = () if single else (c + h,)
    arguments = {"coef": np.ones(clean.shape[1] - 1), "radius": 0.0, **kwargs}
    return gradient_adversarial_risk(
        c - h, *pair, batch_size=n, has_intercept=intercept, **arguments
    )


# --- dual_norm


@pytest.mark.parametrize("seed", range(5))
def test_box_and_budgets_equal_the_best_vertex(seed):
    rng = np.random.default_rng(seed)
    w, scale = rng.normal(size=6), rng.uniform(size=6)
    scale[1] = 0.0
    vertices = np.array(list(itertools.product([-1.0, 1.0], repeat=6)))
    assert dual_norm(w, np.inf) == pytest.approx((vertices @ w).max(), rel=1e-12)
    best = (vertices * scale @ w).max()
    assert dual_norm(w, np.inf, scale=scale) == pytest.approx(best, rel=1e-12)
    cross = np.concatenate([np.diag(scale), -np.diag(scale)])
    assert dual_norm(w, 1, scale=scale) == pytest.approx((cross @ w).max(), rel=1e-12)


@pytest.mark.parametrize("p", [1.3, 2, 3, 7])
@pytest.mark.parametrize("budgeted", [False, True])
def test_p_ball_equals_ascent(p, budgeted, rng):
    w = rng.normal(size=5)
    scale = rng.uniform(0.5, 2, size=5) if budgeted else np.ones(5)

    def objective(v):  # any v, drawn back to the sphere
        return -(v * scale @ w) / np.sum(np.abs(v) ** p) ** (1 / p)

    found = -min(
        minimize(objective, start, options={"gtol": 1e-12}).fun
        for start in (np.sign(w), w, w * scale, rng.normal(size=5))
    )
    exact = dual_norm(w, p, scale=scale if budgeted else None)
    assert exact == pytest.approx(found, rel=1e-9)


def test_mahalanobis_ball_equals_ascent(rng):
    w, root = rng.normal(size=5), rng.normal(size=(5, 5))
    sigma, delta = root @ root.T, np.ones(5)
    step = 1 / np.linalg.eigvalsh(sigma)[-1]
    z = root.T @ delta  # delta = root z: the ball is ||z|| <= 1
    for _ in range(20_000):
        z = z + step * root.T @ w
        z /= np.linalg.norm(z)
    assert dual_norm(w, "mahalanobis", covariance=sigma) == pytest.approx(root @ z @ w, rel=1e-9)


def test_mahalanobis_takes_an_estimator_and_singular_and_badly_scaled_matrices():
    class Fitted:
        covariance_ = np.diag([4.0, 0.0])

    assert dual_norm([3.0, 5.0], "mahalanobis", covariance=Fitted()) == 6.0
    unit, correlated = np.array([1e9, 1e-9]), np.array([[1.0, 0.5], [0.5, 1.0]])
    sigma = correlated * np.outer(unit, unit)
    assert dual_norm(1 / unit, "mahalanobis", covariance=sigma) == pytest.approx(np.sqrt(3))


@given(vectors, norms, st.floats(-100, 100))
def test_dual_norm_is_homogeneous(w, p, factor):
    assert dual_norm(factor * w, p) == pytest.approx(abs(factor) * dual_norm(w, p), rel=1e-9)


@given(vectors, vectors, norms, budgets)
def test_dual_norm_satisfies_the_triangle_inequality(v, w, p, scale):
    both = dual_norm(v, p, scale=scale) + dual_norm(w, p, scale=scale)
    assert dual_norm(v + w, p, scale=scale) <= both * (1 + 1e-9) + 1e-300


@given(vectors, st.floats(1.05, 20))
def test_hoelder_holds_and_is_attained(w, p):
    q = p / (p - 1)
    w = np.where(np.abs(w) < 1e-6, 0.0, w)
    if not w.any():
        assert dual_norm(w, p) == 0.0
        return
    ratio = np.abs(w) / np.abs(w).max()
    delta = np.sign(w) * ratio ** (q - 1)
    delta /= np.sum(np.abs(delta) ** p) ** (1 / p)
    assert dual_norm(w, p) == pytest.approx(delta @ w, rel=1e-9)


@pytest.mark.parametrize("p", [1, 1 + 1e-15, 1.0001, 2, 1e16, 1e308, np.inf])
def test_huge_and_tiny_coefficients_do_not_overflow(p):
    for size in (1e300, 1e-300):
        low, high = size, 4 * size  # max and sum of absolute values bound every norm
        assert low <= dual_norm(np.full(4, size), p) <= high * (1 + 1e-12)
    assert dual_norm(np.zeros(4), p) == 0.0
    assert dual_norm([1e300, 1e-300], p, scale=[1e-300, 1e300]) == pytest.approx(
        dual_norm([1.0, 1.0], p)
    )


def test_several_targets_give_an_array_and_one_a_float(rng):
    w = rng.normal(size=(3, 4))
    for p in (*NORMS, "mahalanobis"):
        kwargs = {"covariance": np.eye(4)} if p == "mahalanobis" else {"scale": np.arange(4.0)}
        many = dual_norm(w, p, **kwargs)
        assert many.shape == (3,)
        assert type(dual_norm(w[0], p, **kwargs)) is float
        np.testing.assert_allclose(many, [dual_norm(row, p, **kwargs) for row in w], rtol=1e-14)


class Unfitted:
    def fit(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 0.5}, r"norm must be >= 1, inf or 'mahalanobis', got 0.5"),
        ({"norm": np.nan}, "got nan"),
        ({"norm": "l2"}, "got 'l2'"),
        ({"coef": [np.nan, 1.0]}, r"coef must be finite.*shape \(2,\) with 1 NaN"),
        ({"coef": 1.0}, r"coef must be finite, of shape \(n_features,\)"),
        ({"coef": []}, r"got shape \(0,\)"),
        ({"scale": [1.0]}, r"each of 2 features; got shape \(1,\).*Use 0"),
        ({"scale": [1.0, -1.0]}, "with 1 wrong entries"),
        ({"scale": [np.nan, -1.0]}, "with 2 wrong entries"),
        ({"covariance": np.eye(2)}, "covariance does not go with norm=2.*Leave it out"),
        ({"norm": "mahalanobis"}, "needs a covariance, but none was given"),
        ({"norm": "mahalanobis", "covariance": Unfitted()}, "this Unfitted is not fitted"),
        (
            {"norm": "mahalanobis", "covariance": np.eye(2), "scale": [1.0, 1.0]},
            "scale does not go with norm='mahalanobis'",
        ),
        ({"norm": "mahalanobis", "covariance": np.eye(3)}, r"of shape \(2, 2\), got.*\(3, 3\)"),
        ({"norm": "mahalanobis", "covariance": np.full((2, 2), np.nan)}, "4 NaN"),
        (
            {"norm": "mahalanobis", "covariance": [[1.0, 0.5], [0.0, 1.0]]},
            "not symmetric: entries differ by 0.5",
        ),
        (
            {"norm": "mahalanobis", "covariance": [[1.0, 2.0], [2.0, 1.0]]},
            "not positive semidefinite.*eigenvalue -1.",
        ),
        ({"norm": "mahalanobis", "covariance": -np.eye(2)}, "not positive semidefinite"),
    ],
)
def test_dual_norm_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        dual_norm(**{"coef": [1.0, 2.0], **arguments})


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_symmetry_of_a_covariance_is_asked_for_in_its_own_unit(unit):
    coef, sigma, tilt = [1.0, 2.0], np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[0, 1.0], [0, 0]])
    expected = np.sqrt(unit * (coef @ sigma @ coef))
    rounded = unit * (sigma + 1e-9 * tilt)
    assert dual_norm(coef, "mahalanobis", covariance=rounded) == pytest.approx(expected)
    with pytest.raises(ValueError, match="not symmetric"):
        dual_norm(coef, "mahalanobis", covariance=unit * (sigma + 1e-3 * tilt))


# --- gaussian_adversarial_risk


@pytest.mark.parametrize("norm", [1, 1.5, 2, np.inf, "mahalanobis"])
@pytest.mark.parametrize("noise_variance", [0.0, 2.0])
def test_closed_form_agrees_with_monte_carlo(norm, noise_variance):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    sigma, w, w0 = root @ root.T, rng.normal(size=4), rng.normal(size=4)
    x = rng.normal(size=(200_000, 4)) @ root.T
    error = x @ (w - w0) - np.sqrt(noise_variance) * rng.normal(size=len(x))
    kwargs = {"covariance": sigma} if norm == "mahalanobis" else {}
    dual = dual_norm(w, norm, **kwargs)
    losses = (np.abs(error) + 0.3 * dual) ** 2  # exact worst case of each row
    excess = (w - w0) @ sigma @ (w - w0)
    risk = gaussian_adversarial_risk(excess, dual, 0.3, noise_variance=noise_variance)
    assert abs(losses.mean() - risk) < 3 * losses.std() / np.sqrt(len(x))


def test_noise_goes_inside_the_root():
    r, s2 = np.linspace(0, 10, 1001), np.array([[1.0], [9.0], [1e6]])
    inside = gaussian_adversarial_risk(1.0, np.sqrt(1 + s2), r, noise_variance=s2)
    outside = s2 + gaussian_adversarial_risk(1.0, np.sqrt(1 + s2), r)
    assert np.all(outside <= inside * (1 + 1e-12))
    # the limit at m = 0, r D = s: 2 c0/(2 + 2 c0)
    assert 0.43 < np.max(1 - outside / inside) < 0.444


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e3), st.floats(0, 1e3))
def test_risk_grows_with_radius_and_starts_at_the_variance(excess, noise, dual, radius):
    risk = gaussian_adversarial_risk(excess, dual, [0.0, radius, 2 * radius], noise_variance=noise)
    assert risk[0] == excess + noise
    assert np.all(np.diff(risk) >= 0)


def test_gaussian_risk_broadcasts_and_keeps_infinities():
    assert type(gaussian_adversarial_risk(1, 2, 3)) is float
    assert gaussian_adversarial_risk(np.ones((3, 1)), np.ones(2), 1.0).shape == (3, 2)
    assert gaussian_adversarial_risk(np.inf, 0.0, 0.0) == np.inf


@pytest.mark.parametrize("name", ["excess_risk", "dual_norm", "radius", "noise_variance"])
@pytest.mark.parametrize("bad", [-1.0, np.nan, [1.0, -1.0]])
def test_gaussian_risk_refuses_negative_arguments(name, bad):
    good = {"excess_risk": 1.0, "dual_norm": 1.0, "radius": 1.0, "noise_variance": 1.0}
    with pytest.raises(ValueError, match=f"{name} must be >= 0, got (-1|nan)"):
        gaussian_adversarial_risk(**{**good, name: bad})


@pytest.mark.parametrize("share", [1e-12, 0.01, 0.36, 0.81, 0.99, 1 - 1e-9])
def test_mean_of_the_folded_normal_law(share):
    # v = 2; SciPy's shape is |a| over the standard deviation
    a, deviation = 2 * np.sqrt(share), 2 * np.sqrt(1 - share)
    mean = 2 * folded_normal(share)[0]
    assert mean == pytest.approx(stats.foldnorm(a / deviation, scale=deviation).mean(), rel=1e-9)
    assert closed_form(4.0, 0.5, share) == pytest.approx(4.0 + 2 * 0.5 * mean + 0.25, rel=1e-12)


@pytest.mark.parametrize("share", [1e-4, 0.1, 0.5, 0.9])
def test_slopes_of_the_folded_normal_law(share):
    def mean(a2, variance):
        return np.sqrt(a2 + variance) * folded_normal(a2 / (a2 + variance))[0]

    _, by_variance, by_mean = folded_normal(share)
    step = 1e-6 * share
    rise = mean(share, 1 - share + step) - mean(share, 1 - share - step)
    assert by_variance == pytest.approx(rise / step, rel=1e-4)
    rise = mean(share + step, 1 - share) - mean(share - step, 1 - share)
    assert by_mean == pytest.approx(rise / step, rel=1e-4)


def test_the_folded_normal_law_between_its_ends():
    shares = np.linspace(0, 1, 101)
    mean, by_variance, by_mean = folded_normal(shares)
    assert mean[0] == by_variance[0] == np.sqrt(2 / np.pi)
    assert by_mean[0] == pytest.approx(np.sqrt(2 / np.pi), rel=1e-12)
    assert mean[-1] == by_mean[-1] == 1.0
    assert by_variance[-1] == 0.0
    assert np.all(np.diff(mean) >= -1e-15)
    # estimates of a^2 over those of v^2: |a| goes on
    np.testing.assert_allclose(folded_normal(1.44), (1.2, 0.0, 1 / 1.2), rtol=1e-12)


# --- gradient_adversarial_risk: values


@pytest.mark.parametrize(("intercept", "df"), [(False, None), (True, None), (True, 6)])
def test_antithetic_estimates_are_near_the_truth(intercept, df, rng):
    # relative standard errors: sqrt(2/k) and less, averaged over 20 draws
    clean, noise = draw_pairs(rng, 20, 4, 400, 8, m2=2.0, s2=1.0, df=df)
    found = [estimate(c, h, 8, intercept=intercept) for c, h in zip(clean, noise, strict=True)]
    assert np.mean([f.excess_risk for f in found]) == pytest.approx(2.0, rel=0.08)
    assert np.mean([f.mean_squared_error for f in found]) == pytest.approx(3.0, rel=0.05)
    assert np.mean([f.noise_variance for f in found]) == pytest.approx(1.0, abs=0.25)


def test_heavy_tails_inflate_the_error_without_the_intercept(rng):
    # documented: s^2 + kappa m^2, and kappa = (df - 2)/(df - 4) for the elliptical t
    clean, noise = draw_pairs(rng, 20, 4, 400, 8, m2=2.0, s2=1.0, df=10)
    found = [estimate(c, h, 8).mean_squared_error for c, h in zip(clean, noise, strict=True)]
    assert np.mean(found) == pytest.approx(1.0 + 8 / 6 * 2.0, rel=0.08)


@pytest.mark.parametrize("intercept", [False, True])
def test_single_noise_undoes_the_saturation(intercept, rng):
    clean, noise = draw_pairs(rng, 20, 4, 400, 16, m2=4.0, s2=0.0)
    with pytest.warns(CalibrationWarning):
        found = [
            estimate(c, h, 16, intercept=intercept, single=True, target="clean")
            for c, h in zip(clean, noise, strict=True)
        ]
    # uncorrected it would be 4/(1 + 8/16) = 2.67
    assert np.mean([f.excess_risk for f in found]) == pytest.approx(4.0, rel=0.08)


@pytest.mark.parametrize("single", [False, True])
def test_error_in_the_intercept_counts(single, rng):
    # half of the excess risk is the mean residual's: 1 + x_1
    clean, noise = draw_pairs(rng, 20, 3, 400, 64, m2=1.0, s2=0.0, mean_residual=1.0)
    found = [
        estimate(c, h, 64, intercept=True, single=single, target="clean").excess_risk
        for c, h in zip(clean, noise, strict=True)
    ]
    assert np.mean(found) == pytest.approx(2.0, rel=0.08)


@pytest.mark.parametrize("single", [False, True])
def test_nothing_depends_on_the_units_or_on_columns_that_depend_on_others(single, rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 4, 60, 32, m2=1.0, s2=1.0))
    kwargs = {"single": single, "noise_variance": 1.0 if single else None, "intercept": True}
    base = estimate(clean, noise, 32, **kwargs)
    unit = np.array([1.0, 1e-150, 1e-3, 1e3, 1e150])
    other = estimate(clean * unit, noise * unit, 32, **kwargs)
    mix = np.eye(5) + np.triu(rng.normal(size=(5, 5)), 1)
    mixed = estimate(clean @ mix, noise @ mix, 32, **kwargs)
    wide = np.column_stack([np.eye(5), np.ones(5), np.zeros(5)])  # a sum, and a constant zero
    more = estimate(clean @ wide, noise @ wide, 32, **kwargs)
    for found in (other, mixed, more):
        assert found.excess_risk == pytest.approx(base.excess_risk, rel=1e-8)
        assert found.excess_risk_interval == pytest.approx(base.excess_risk_interval, rel=1e-8)
        assert found.mean_squared_error == pytest.approx(base.mean_squared_error, rel=1e-8)


def test_given_noise_variance_is_taken(rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 100, 16, m2=1.0, s2=2.0))
    free, given_ = estimate(clean, noise, 16), estimate(clean, noise, 16, noise_variance=2.0)
    assert given_.noise_variance == 2.0
    assert given_.excess_risk == free.excess_risk
    assert given_.mean_squared_error == free.excess_risk + 2.0
    low, high = free.excess_risk_interval
    assert (given_.low, given_.high) == pytest.approx((low + 2.0, high + 2.0))
    one = estimate(clean[:, :2], noise[:, :2], 16, target="clean")
    assert np.isnan(one.mean_squared_error)
    assert np.isnan(one.noise_variance)


def test_curve_norm_and_target_go_into_the_closed_form(rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 100, 16, m2=1.0, s2=2.0))
    coef, radii = np.array([3.0, 0.0, -4.0]), np.array([[0.0, 0.1], [0.2, 1.0]])
    sigma = np.diag([1.0, 2.0, 4.0])
    for norm, kwargs in ((2, {}), (np.inf, {"scale": [1.0, 2.0, 0.0]}),
                         ("mahalanobis", {"covariance": sigma})):  # fmt: skip
        for target in ("observed", "clean"):
            curve = estimate(clean, noise, 16, coef=coef, radius=radii, norm=norm, target=target,
                             **kwargs)  # fmt: skip
            dual = dual_norm(coef, norm, **kwargs)
            assert curve.dual_norm == dual
            assert curve.target == target
            name = "excess_risk" if target == "clean" else "mean_squared_error"
            limits = getattr(curve, f"{name}_interval")
            for got, v2 in ((curve.value, getattr(curve, name)), *zip(
                (curve.low, curve.high), limits, strict=True)):  # fmt: skip
                np.testing.assert_allclose(got, gaussian_adversarial_risk(v2, dual, radii))
            assert np.all(curve.low < curve.value)
            assert np.all(curve.value < curve.high)
            at_one = estimate(clean, noise, 16, coef=coef, radius=0.1, norm=norm, target=target,
                              **kwargs)  # fmt: skip
            assert type(at_one.value) is type(at_one.low) is type(at_one.high) is float
            assert at_one.value == curve.value[0, 1]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("target", ["observed", "clean"])
def test_the_mean_residual_goes_into_the_curve(single, target, rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 60, 64, m2=1.0, s2=1.0, mean_residual=2.0))
    radii = np.array([0.0, 0.5, 1e6])
    found = estimate(
        clean, noise, 64, intercept=True, single=single, target=target, radius=radii,
        noise_variance=1.0 if single else None,
    )  # fmt: skip
    mean = (clean - noise if single else clean)[:, 0]
    a2 = mean.mean() ** 2 - mean.var(ddof=1) / 60
    assert found.mean_residual == pytest.approx(np.sqrt(a2), rel=1e-12)
    v2, limits = (
        (found.excess_risk, found.excess_risk_interval)
        if target == "clean"
        else (found.mean_squared_error, found.mean_squared_error_interval)
    )
    deviation, reach = np.sqrt(v2 - a2), radii * found.dual_norm
    mae = stats.foldnorm(np.sqrt(a2) / deviation, scale=deviation).mean()
    np.testing.assert_allclose(found.value, v2 + 2 * reach * mae + reach**2, rtol=1e-12)
    assert (found.low[0], found.high[0]) == pytest.approx(limits)
    assert np.all((found.low < found.value) & (found.value < found.high))


@pytest.mark.parametrize("single", [False, True])
def test_nothing_changes_where_the_mean_residual_is_zero(single, rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 60, 64, m2=1.0, s2=1.0))
    for g in (clean, noise):
        g[:, 0] -= g[:, 0].mean()
    found = estimate(
        clean, noise, 64, intercept=True, single=single, target="clean", radius=[0.0, 0.5]
    )
    assert found.mean_residual == 0.0
    told = (found.excess_risk, *found.excess_risk_interval)
    for curve, m2 in zip((found.value, found.low, found.high), told, strict=True):
        np.testing.assert_array_equal(
            curve, gaussian_adversarial_risk(m2, found.dual_norm, found.radius)
        )


def test_limits_of_the_risk_have_the_errors_of_its_estimate():
    # pairs, the error against y: to first order the log of the risk has the variance of the
    # influences of n var(c_0) and of mean(c_0) through the closed form, here by a difference
    rng = np.random.default_rng(0)
    k, n, radius = 4000, 16, 0.7
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 2, k, n, m2=1.0, s2=0.5, mean_residual=1.5))
    found = estimate(clean, noise, n, intercept=True, radius=radius)
    c = clean[:, 0] - clean[:, 0].mean()
    a, variance = clean[:, 0].mean(), n * c.var(ddof=1)

    def risk(a, variance):
        v2 = variance + a**2
        return closed_form(v2, radius * found.dual_norm, a**2 / v2)

    step = 1e-5
    by_a = (risk(a + step, variance) - risk(a - step, variance)) / (2 * step)
    by_variance = (risk(a, variance + step) - risk(a, variance - step)) / (2 * step)
    error = (by_a * c + by_variance * n * c**2).std(ddof=1) / np.sqrt(k)
    # Student's quantile, and the curvature of order error / risk
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.01)


def test_levels_are_nested_and_the_result_is_frozen_and_readable(rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 100, 16, m2=1.0, s2=2.0))
    for kwargs in ({}, {"single": True, "noise_variance": 2.0}):
        narrow, wide = (estimate(clean, noise, 16, confidence_level=c, **kwargs)
                        for c in (0.5, 0.99))  # fmt: skip
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    with pytest.raises(dataclasses.FrozenInstanceError):
        narrow.value = 1.0
    text = str(estimate(clean, noise, 16, radius=np.linspace(0, 1, 50)))
    assert "observed target from gradients: antithetic noise, 100 batches of 16 rows" in text
    assert text.count("risk at radius") == 7
    for part in ("95 % intervals", "excess risk m^2", "mean squared error", "dual norm"):
        assert part in text
    assert "mean squared error" not in str(
        estimate(clean, noise, 16, single=True, target="clean", confidence_level=0.9)
    )


def test_zero_excess_risk_and_perfect_fit():
    rng = np.random.default_rng(3)
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 50, 8, m2=0.0, s2=1.0))
    found = estimate(clean, noise, 8, target="clean", radius=[0.0, 0.5])
    assert found.excess_risk_interval[0] == found.low[0] == 0.0
    assert 0 < found.excess_risk_interval[1] < 0.2
    perfect = estimate(0 * clean, noise, 8)
    assert (perfect.value, perfect.low, perfect.high, perfect.noise_variance) == (0, 0, 0, 0)


# --- single noise: the law, saturation


@pytest.mark.parametrize(("d1", "d2", "nc"), [(3, 7, 0.0), (10, 90, 5.0), (50, 150, 300.0)])
def test_noncentral_f_law(d1, d2, nc):
    grid = (1 + nc / d1) * np.array([0.5, 1.0, 1.7])
    law = stats.ncf(d1, d2, nc) if nc else stats.f(d1, d2)
    got = [_noncentral_f_gap(nc, f, d1, d2, 0.0) for f in grid]
    np.testing.assert_allclose(got, law.cdf(grid), rtol=2e-4)  # the accuracy of old SciPy


def test_noncentral_f_law_far_out():
    # against simulation, where SciPy's inverse gives up
    rng = np.random.default_rng(0)
    chi = stats.ncx2(20, 40_000.0).rvs(100_000, random_state=rng) / 20
    draws = chi / (rng.chisquare(100, 100_000) / 100)
    for f in np.quantile(draws, [0.025, 0.5, 0.975]):
        assert _noncentral_f_gap(40_000.0, f, 20, 100, np.mean(draws <= f)) == pytest.approx(
            0, abs=0.005
        )


@pytest.mark.parametrize(("m2", "a"), [(400.0, None), (400.0, 1.0), (1.0, 20.0), (400.0, 20.0)])
def test_past_saturation_there_is_no_upper_limit(m2, a, rng):
    law = {"m2": m2, "s2": 0.0, "mean_residual": a or 0.0}
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 100, 8, **law))
    kwargs = {"single": True, "noise_variance": 1.0, "radius": [0.0, 0.1]}
    with pytest.warns(CalibrationWarning, match="size 8 saturate.*without upper limit.*antithetic"):
        found = estimate(clean, noise, 8, intercept=a is not None, **kwargs)
    assert np.all(found.high == np.inf)
    assert 1 < found.excess_risk_interval[0] <= m2 + (a or 0.0) ** 2
    assert found.low[0] == found.excess_risk_interval[0] + 1.0
    assert "inf]" in str(found)


def test_single_noise_is_silent_where_the_correction_is_small(rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 100, 64, m2=1.0, s2=0.0))
    found = estimate(clean, noise, 64, single=True, noise_variance=1.0)
    assert found.scheme == "single"
    assert 0 < found.excess_risk_interval[0] < found.excess_risk < found.excess_risk_interval[1]


def test_an_optimum_has_a_limit_of_zero():
    clean, noise = (g[0] for g in draw_pairs(np.random.default_rng(0), 1, 3, 100, 64, m2=0, s2=0))
    found = estimate(clean, noise, 64, single=True, target="clean")
    assert found.excess_risk_interval[0] == 0.0
    assert found.excess_risk_interval[1] < 10


# --- coverage: the smaller version of benchmarks/risk.py

REPS = 400
# three binomial standard errors on either side of 90 % and 99 %
COVERAGE = 0.90 - 3 * np.sqrt(0.9 * 0.1 / REPS), 0.99 + 3 * np.sqrt(0.99 * 0.01 / REPS)


@pytest.mark.parametrize("m2", [0.1, 4.0])
@pytest.mark.parametrize(("d", "k", "n"), [(4, 40, 16), (10, 40, 4)])
def test_intervals_cover(d, k, n, m2):
    rng = np.random.default_rng([d, int(10 * m2)])
    hits = []
    for _ in range(REPS // 50):
        for c, h in zip(*draw_pairs(rng, 50, d, k, n, m2=m2, s2=1.0), strict=True):
            features, full = estimate(c, h, n), estimate(c, h, n, intercept=True)
            limits = (
                (m2, features.excess_risk_interval),
                (m2, full.excess_risk_interval),
                (m2 + 1.0, features.mean_squared_error_interval),
                (m2 + 1.0, full.mean_squared_error_interval),
            )
            hits.append([low <= truth <= high for truth, (low, high) in limits])
    coverage = np.mean(hits, axis=0)
    assert np.all(coverage >= COVERAGE[0]), coverage
    assert np.all(coverage <= COVERAGE[1]), coverage


@pytest.mark.parametrize("m2", [0.1, 4.0])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_single_noise_intervals_cover(m2, share):
    # share of the excess risk in the intercept, whose gradient is not seen where None
    rng = np.random.default_rng([10 if share is None else int(2 * share), int(10 * m2)])
    intercept = share is not None
    law = {"m2": m2 * (1 - (share or 0)), "mean_residual": np.sqrt(m2 * (share or 0)), "s2": 0.0}
    hits = []
    for _ in range(REPS // 50):
        for c, h in zip(*draw_pairs(rng, 50, 5, 50, 16, **law), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)
                found = estimate(c, h, 16, intercept=intercept, single=True, target="clean")
            low, high = found.excess_risk_interval
            hits.append(low <= m2 <= high)
    assert COVERAGE[0] <= np.mean(hits) <= COVERAGE[1]


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_risks_are_covered_at_any_mean_residual(ratio):
    # of v = 1; the rest of v^2 is half error of the coefficients, half noise
    rng = np.random.default_rng(int(10 * ratio))
    half, radii, k, n = (1 - ratio**2) / 2, np.array([0.0, 0.5, 1.0]), 100, 16
    reach = radii * np.sqrt(3)  # the dual norm of three ones
    truth = {"clean": closed_form(ratio**2 + half, reach, ratio**2 / (ratio**2 + half)),
             "observed": closed_form(1.0, reach, ratio**2)}  # fmt: skip
    law = {"s2": half, "m2": half, "mean_residual": ratio}
    schemes = [("clean", False), ("observed", False), ("clean", True)]
    hits, ratios = [], []
    for _ in range(REPS // 50):
        drawn = draw_pairs(rng, 50, 3, k, n, **law), draw_pairs(rng, 50, 3, k, n, **law | {"s2": 0})
        for pair, plain in zip(*(zip(*d, strict=True) for d in drawn), strict=True):
            found = [
                (estimate(*(plain if single else pair), n, intercept=True, single=single,
                          target=target, radius=radii), truth[target])
                for target, single in schemes
            ]  # fmt: skip
            hits.append([(f.low <= t) & (t <= f.high) for f, t in found])
            ratios.append([f.value / t for f, t in found])
    coverage = np.mean(hits, axis=0)
    assert np.all(coverage >= COVERAGE[0]), coverage
    assert np.all(coverage <= COVERAGE[1]), coverage
    # no bias: four standard errors of the mean, and terms of order 1/k
    error = np.std(ratios, axis=0) / np.sqrt(REPS)
    assert np.all(np.abs(np.mean(ratios, axis=0) - 1) < 4 * error + 1 / k)


@pytest.mark.parametrize("single", [False, True])
def test_risks_at_an_optimum_are_covered(single):
    # m^2 = 0 is the lower end of what there can be: only limits that are too high miss it
    rng = np.random.default_rng(0)
    radii, hits = np.array([0.0, 0.5, 1.0]), []
    truth = closed_form(1.0, radii * np.sqrt(3))
    label_noise = 0.0 if single else 1.0
    for c, h in zip(*draw_pairs(rng, REPS, 3, 60, 8, m2=0.0, s2=label_noise), strict=True):
        found = estimate(c, h, 8, intercept=True, single=single, radius=radii,
                         noise_variance=1.0)  # fmt: skip
        hits.append(found.low <= truth * (1 + 1e-12))
    assert np.min(np.mean(hits, axis=0)) >= COVERAGE[0]


# --- what is refused

GOOD = np.random.default_rng(0).normal(size=(2, 12, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients": GOOD[0, 0]}, r"gradients has shape \(3,\).*row b must be"),
        ({"antithetic": GOOD[1, :6]}, r"\(12, 3\), antithetic \(6, 3\): row b"),
        ({"coef": np.ones(2)}, r"coef has shape \(2,\).*3 columns.*need \(3,\)"),
        ({"has_intercept": True}, r"has_intercept=True need \(2,\).*no entry for the intercept"),
        ({"gradients": np.full((12, 3), np.nan)}, "Gradients of 12 of 12 batches have NaN"),
        ({"antithetic": np.full((12, 3), -np.inf)}, "12 of 12 batches"),
        ({"target": "noisy"}, "target must be 'observed' or 'clean', got 'noisy'"),
        ({"batch_size": 0}, "batch_size must be finite and > 0, got 0"),
        ({"confidence_level": 95}, r"confidence_level must be in \(0, 1\), got 95"),
        ({"radius": -1.0}, "radius must be finite and >= 0"),
        ({"radius": [0.1, np.nan]}, "radius must be finite"),
        ({"noise_variance": -1.0}, "noise_variance must be finite and >= 0"),
        ({"noise_variance": np.nan}, "noise_variance must be finite and >= 0"),
        ({"antithetic": None}, "do not tell the noise.*Pass noise_variance.*target='clean'"),
        ({"antithetic": GOOD[0]}, "12 batch gradients differ by no noise"),
        (
            {"gradients": np.ones((12, 3)), "antithetic": None, "target": "clean"},
            "differ by no noise at all. Add target noise",
        ),
        ({"norm": 0.5}, "norm must be >= 1"),
        (
            {"gradients": GOOD[0, :, :1], "antithetic": GOOD[1, :, :1], "coef": [1.0]},
            "A single feature's gradients do not tell.*has_intercept=True",
        ),
    ],
)
def test_gradient_risk_names_what_is_wrong(arguments, message):
    good = {"gradients": GOOD[0], "antithetic": GOOD[1], "coef": np.ones(3), "batch_size": 4,
            "radius": 0.1}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        gradient_adversarial_risk(**{**good, **arguments})


@pytest.mark.parametrize("scheme", ["antithetic", "single"])
def test_as_many_batches_as_needed_and_not_one_less(scheme):
    def run(k):
        pair = GOOD[1, :k] if scheme == "antithetic" else None
        return gradient_adversarial_risk(
            GOOD[0, :k], pair, coef=np.ones(3), batch_size=10**6, radius=0.1, target="clean"
        )

    assert run(6).n_batches == 6
    for k in (1, 3, 5):
        with pytest.raises(
            ValueError, match=r"Only . batch gradients for 3 .* than 5\. Use a|no n"
        ):
            run(k)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1.0, np.inf, 0.0), 1.0),
        ((1.0, 0.0, np.inf), 1.0),
        ((0.0, 2.0, np.inf), np.inf),
        ((np.inf, 2.0, 0.0), np.inf),
        ((0.0, np.inf, 0.0), 0.0),
        ((1.0, np.inf, 1.0), np.inf),
    ],
)
def test_no_attack_is_none_against_infinite_coefficients_too(arguments, expected):
    assert gaussian_adversarial_risk(*arguments) == expected


@pytest.mark.parametrize("norm", [None, "two", [2], 0.5, np.nan])
def test_unknown_norms_are_told_of(norm):
    with pytest.raises(
        ValueError, match=r"norm must be >= 1, inf or 'mahalanobis', got .*n_columns"
    ):
        dual_norm([1.0, 2.0], norm)


def test_infinity_may_be_spelt():
    assert dual_norm([1.0, -2.0], "inf") == dual_norm([1.0, -2.0], np.inf) == 3.0
