"""Every noise scheme against what it should find: weights, offsets, rounds, chunks and few rows."""

import copy
from functools import cache, reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_gradhess import GradientCovarianceEstimator, _moments
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.diagnostics import calibration_report
from tests.oracles import batch_gradients, relative_error

FEW = settings(max_examples=max(1, settings().max_examples // 4))
D, BATCH, NOISE, RISK = 4, 20, 2.0, 1.0
SCHEMES = {
    "antithetic": {"noise": "antithetic"},
    "single, known": {"noise": "single", "inherent_variance": NOISE**2},
    "single, estimated": {"noise": "single", "inherent_variance": "estimate"},
    "none, known": {"noise": "none", "inherent_variance": NOISE**2},
    "none, estimated": {"noise": "none", "inherent_variance": "estimate"},
}
WEIGHTS = {
    "ones": lambda rng, n: np.ones(n),
    "twos": lambda rng, n: np.full(n, 2.0),
    "shares": lambda rng, n: np.full(n, 1 / n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "whole": lambda rng, n: rng.integers(0, 4, n).astype(float),
}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@cache
def regression(seed, n_samples=12_000):
    return make_hessian_regression(
        n_samples, D, condition_number=3, noise=NOISE, excess_risk=RISK, random_state=seed
    )


def estimator(scheme, seed=0, **more):
    return GradientCovarianceEstimator(
        **{"batch_size": BATCH, "random_state": seed} | SCHEMES[scheme] | more
    )


def scale(covariance, truth):
    """One where the covariance is the truth, whatever its shape; no direction counts more."""
    return np.trace(np.linalg.solve(truth, covariance)) / len(truth)


def assert_mean(values, truth, *, bias=0.0):
    """The mean of independent values is the truth, within five standard errors."""
    values = np.asarray(values)
    error = 5 * np.std(values, ddof=1) / np.sqrt(len(values)) + bias
    assert abs(values.mean() - truth) < error, f"{values.mean():.4g} +- {error / 5:.2g}"


@each_scheme
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_the_scale_and_the_excess_risk_are_right_whatever_weights_and_offset(
    scheme, weights, offset
):
    found = []
    for seed in range(8):
        made = regression(seed)
        w = WEIGHTS[weights](np.random.default_rng(seed + 99), len(made.data))
        fitted = estimator(scheme, seed).partial_fit(made.data, made.target + offset, w)
        found.append([scale(fitted.covariance_, made.covariance), fitted.excess_risk_])
    scales, risks = np.transpose(found)
    # 1/(k d) is the bias of a ratio of means of k squares
    assert_mean(scales, 1.0, bias=5 * D / (len(made.data) / BATCH))
    assert_mean(risks, RISK + offset**2, bias=0.01)


@each_scheme
def test_whole_weights_have_the_law_of_repeated_rows(scheme):
    weighted, repeated = [], []
    for seed in range(8):
        made = regression(seed)
        w = np.random.default_rng(seed + 99).integers(0, 4, len(made.data))
        X, y = np.repeat(made.data, w, axis=0), np.repeat(made.target, w)
        # dealt at random, the copies of a row hardly ever meet in a batch
        fits = (
            estimator(scheme, seed).partial_fit(made.data, made.target, w),
            estimator(scheme, seed + 50).partial_fit(X, y),
        )
        for fitted, results in zip(fits, (weighted, repeated), strict=True):
            results.append(fitted.covariance_.ravel())
    difference = np.array(weighted) - repeated
    error = np.std(difference, axis=0, ddof=1) / np.sqrt(len(difference))
    assert np.all(np.abs(difference.mean(axis=0)) < 6 * error + 0.01)


@each_scheme
@pytest.mark.parametrize("unit", [2.0**-20, 1 / 3, 64.0])
def test_the_unit_of_the_weights_does_not_matter(scheme, unit):
    made = regression(0, 400)
    w = np.random.default_rng(1).exponential(size=400)
    one, other = (estimator(scheme).fit(made.data, made.target, c * w) for c in (1.0, unit))
    for name in ("covariance_", "location_", "mean_gradient_", "excess_risk_", "noise_variance_"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9)
    assert one.fitted_.n_effective == pytest.approx(other.fitted_.n_effective)
    assert one.expected_error_ == pytest.approx(other.expected_error_, nan_ok=True)


def test_precision_weights_are_right_where_the_inherent_noise_is_estimated():
    found = []
    for seed in range(8):
        made, rng = regression(seed), np.random.default_rng(seed)
        w = rng.uniform(0.2, 3, len(made.data))
        y = made.data @ made.coef + NOISE * rng.standard_normal(len(w)) / np.sqrt(w)
        fitted = estimator("single, estimated", seed).partial_fit(made.data, y, w)
        found.append(scale(fitted.covariance_, made.covariance))
    assert_mean(found, 1.0, bias=0.01)


# --- rounds: coefficients that move


AT = [np.array([0.0, 0.5, 1.0, 0.0]) * c for c in (-1.0, 0.0, 1.0, 2.0)]
centred = pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "antithetic"])


@each_scheme
def test_rounds_at_moving_coefficients_are_as_good_as_one_at_fixed_ones(scheme):
    found, risks, errors = [], [], []
    for seed in range(6):
        made = regression(seed)
        fitted = estimator(scheme, seed)
        for part, coef in zip(np.split(np.arange(len(made.data)), 4), AT, strict=True):
            fitted.partial_fit(made.data[part], made.target[part], coef=made.coef * coef.sum())
        found.append(scale(fitted.covariance_, made.covariance))
        errors.append(relative_error(fitted.covariance_, made.covariance))
        risks.append(fitted.excess_risk_)
        assert [f.name for f in calibration_report(fitted).failures] in (
            [],
            ["correction unchecked"],
        )
    assert_mean(found, 1.0, bias=0.02)
    # the coefficients are -1.5, 0, 1.5 and 3 times the true ones
    away = np.array([2.5, 1, 0.5, 2]) ** 2 * RISK
    expected = np.mean([2.5, 1, -0.5, -2]) ** 2 if scheme == "antithetic" else away.mean()
    assert_mean(risks, expected, bias=0.05)
    if fitted.noise != "none":
        assert max(errors) < 1.2 * fitted.expected_error_


@centred
def test_the_covariance_is_that_within_rounds(scheme):
    made = regression(0, 240)
    params = {"shuffle": False, "correction": "none", "assume_centered": True}
    fitted = estimator(scheme, **params | ({"noise_scale": 1e-12} if "single" in scheme else {}))
    fitted.set_params(inherent_variance=0.0)
    scatter, degrees = 0.0, 0
    for r, part in enumerate(np.split(np.arange(240), 3)):
        coef = np.full(D, float(r * 10))
        fitted.partial_fit(made.data[part], made.target[part], coef=coef)
        residual = made.data[part] @ coef - made.target[part]
        g = batch_gradients(made.data[part], residual, np.arange(80) // BATCH)[0][:, 1:]
        scatter = scatter + (g - g.mean(axis=0)).T @ (g - g.mean(axis=0))
        degrees += len(g) - 1
    np.testing.assert_allclose(fitted.gradient_covariance_, scatter / degrees, rtol=1e-4)


def test_a_batch_is_closed_where_the_coefficients_move():
    made = regression(0, 100)
    fitted = estimator("single, known")
    fitted.partial_fit(made.data[:50], made.target[:50])
    assert fitted.n_batches_ == 3
    fitted.partial_fit(made.data[50:], made.target[50:], coef=np.ones(D))
    assert fitted.n_batches_ == 6
    pairs = estimator("antithetic").partial_fit(made.data[:50], made.target[:50])
    assert pairs.partial_fit(made.data[50:], made.target[50:], coef=np.ones(D)).n_batches_ == 5


def test_rounds_may_be_taken_up_again():
    made = regression(0, 400)
    at = [np.zeros(D), made.coef]
    parts = np.split(np.arange(400), 4)
    order = estimator("single, known", shuffle=False)
    for part, r in zip(parts, (0, 1, 0, 1), strict=True):
        order.partial_fit(made.data[part], made.target[part], coef=at[r])
    assert order._memory.moments.round_means().degrees == 20 - 2


def test_more_rounds_than_are_kept_open_are_closed_and_count(monkeypatch):
    made = regression(0, 1200)

    def seen():
        fitted = estimator("single, known", shuffle=False)
        for r, part in enumerate(np.split(np.arange(1200), 10)):
            fitted.partial_fit(made.data[part], made.target[part], coef=made.coef * r / 4)
        return fitted

    open_ones = seen()
    monkeypatch.setattr(_moments, "MAX_ROUNDS", 3)
    closed = seen()
    assert len(closed._memory.moments.rounds) == 3
    for name in ("covariance_", "location_", "excess_risk_", "gradient_covariance_"):
        np.testing.assert_allclose(getattr(closed, name), getattr(open_ones, name), rtol=1e-9)
    assert closed._memory.moments.closed.degrees == 7 * 5


@pytest.mark.parametrize("noise", ["single", "none"])
def test_another_inherent_variance_is_refused(noise):
    made = regression(0, 100)
    fitted = GradientCovarianceEstimator(batch_size=BATCH, noise=noise, inherent_variance=4.0)
    fitted.partial_fit(made.data, made.target).set_params(inherent_variance=1.0)
    match = r"inherent_variance=1\.0, but 4\.0 was taken off the noise .* Use fit to start afresh\."
    with pytest.raises(ValueError, match=match):
        fitted.partial_fit(made.data, made.target)


# --- chunks and parts


def assert_same(a, b, names=("covariance_", "location_", "mean_gradient_", "excess_risk_")):
    for name in (*names, "noise_variance_", "gradient_covariance_"):
        x, y = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-9 * np.abs(y).max(), err_msg=name)


def chunks(scheme, cuts, *, weighted, moves):
    made = regression(3, 90)
    w = np.random.default_rng(0).exponential(size=90) if weighted else None
    fitted = estimator(scheme, batch_size=4, shuffle=False)
    # a round ends where a batch does, which chunks may cut as they like
    bounds = sorted({*cuts, *([40] if moves else [])})
    for part in np.split(np.arange(90), bounds):
        coef = np.ones(D) if moves and part[0] >= 40 else None
        fitted.partial_fit(
            made.data[part], made.target[part], None if w is None else w[part], coef=coef
        )
    return fitted


@each_scheme
@FEW
@given(cuts=st.sets(st.integers(1, 89), max_size=8), weighted=st.booleans(), moves=st.booleans())
def test_any_chunks_are_as_good_as_one(scheme, cuts, weighted, moves):
    how = {"weighted": weighted, "moves": moves}
    assert_same(chunks(scheme, cuts, **how), chunks(scheme, (), **how))


@cache
def parts(scheme):
    rng = np.random.default_rng(0)
    made = []
    for i in range(6):
        data = regression(i, 30 + i)
        fitted = estimator(scheme, batch_size=4, seed=i)
        w = rng.exponential(size=len(data.data))
        made.append(fitted.partial_fit(data.data, data.target, w, coef=AT[i % 3]))
    return made


@each_scheme
@FEW
@given(
    order=st.permutations(range(6)), grouping=st.lists(st.integers(0, 4), min_size=5, max_size=5)
)
def test_parts_merge_alike_in_any_order_and_grouping(scheme, order, grouping):
    queue = [copy.copy(parts(scheme)[i]) for i in order]
    for i in grouping:
        i %= len(queue) - 1
        queue[i : i + 2] = [queue[i].merge(queue[i + 1])]
    assert_same(queue[0], reduce(lambda a, b: a.merge(b), map(copy.copy, parts(scheme))))


@pytest.mark.parametrize("last", ["five rows", "no targets", "one by one"])
def test_an_estimated_inherent_noise_is_that_of_all_chunks(last):
    made = regression(0)
    fitted = estimator("single, estimated")
    if last == "one by one":
        for i in range(500):  # single squared residuals, many of them above the total
            fitted.partial_fit(made.data[i : i + 1], made.target[i : i + 1])
    else:
        few = slice(-5, None) if last == "five rows" else slice(-240, None)
        fitted.partial_fit(made.data[: few.start], made.target[: few.start])
        fitted.partial_fit(made.data[few], made.target[few] if last == "five rows" else None)
    k = fitted.n_batches_
    # d k squares, and k n squared residuals of variance 5
    error = 5 * np.sqrt(2 / D / k)
    assert scale(fitted.covariance_, made.covariance) == pytest.approx(1, abs=error)
    inherent = NOISE**2 + RISK
    error = 5 * inherent * np.sqrt(2 / BATCH / k)
    share = 0.98 if last == "no targets" else 1.0
    assert fitted.noise_variance_ == pytest.approx(BATCH - share * inherent, abs=error)


@pytest.mark.parametrize("scheme", ["single, known", "single, estimated"])
def test_batches_with_more_inherent_noise_than_the_total_count_with_what_they_have(scheme):
    # batches of single rows, of inherent variance four, at coefficients that move
    found = []
    for seed in range(8):
        made = regression(seed, 2000)
        fitted = estimator(scheme, seed, correction="none")
        for i in range(0, 2000, 50):  # two batches and one of ten rows, at most
            part = slice(i, i + 50)
            coef = made.coef * (1 + i / 1e5)
            fitted.partial_fit(made.data[part], made.target[part], coef=coef)
        found.append(scale(fitted.covariance_, made.covariance))
    assert_mean(found, 1.0, bias=0.02)


# --- singular features


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("extra", ["sum", "zeros", "constant"])
def test_dependent_columns_leave_the_correction_of_the_others_alone(extra, dtype):
    made = regression(0)
    X = made.data.astype(dtype)
    column = {"sum": X[:, 0] - X[:, 1], "zeros": 0 * X[:, 0], "constant": 0 * X[:, 0] + 0.1}[extra]
    plain = estimator("single, known").partial_fit(X, made.target)
    more = estimator("single, known").partial_fit(np.column_stack([X, column]), made.target)
    assert plain.correction_ == more.correction_ == "gaussian"
    assert more.excess_risk_ == pytest.approx(plain.excess_risk_, rel=1e-3)
    np.testing.assert_allclose(more.covariance_[:D, :D], plain.covariance_, rtol=1e-3, atol=1e-4)


# --- the excess risk of few rows


@pytest.mark.parametrize(
    ("n", "d", "distribution", "assume_centered"),
    [
        (30, 8, "gaussian", False),
        (30, 8, "gaussian", True),
        (20, 5, "gaussian", False),
        (100, 8, "gaussian", False),
        (16, 8, "gaussian", False),
        (6, 3, "gaussian", False),
        (30, 8, "student_t", False),
        (16, 8, "student_t", True),
        (30, 8, "rademacher", False),
        (10, 5, "rademacher", True),
    ],
)
def test_excess_risk_of_few_rows_is_unbiased(n, d, distribution, assume_centered):
    found = []
    for seed in range(200):
        made = make_hessian_regression(
            n, d, condition_number=3, noise=2, excess_risk=3, distribution=distribution,
            random_state=seed,
        )  # fmt: skip
        fitted = GradientCovarianceEstimator(random_state=0, assume_centered=assume_centered)
        found.append(fitted.partial_fit(made.data, made.target).excess_risk_)
    assert fitted.batch_size_ == 1
    assert_mean(found, 3.0)


def test_excess_risk_of_foreign_pairs_of_one_row_is_unbiased():
    # no residuals: the leverages of Gaussian rows, which pairs of different rows lack
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        X, u = rng.standard_normal((60, 5)), np.array([1.5, 0, 0, 0, 0])
        clean = (X @ u + rng.standard_normal(60))[:, None] * X
        noise = rng.choice([-1.0, 1.0], 60)[:, None] * X
        found.append(
            GradientCovarianceEstimator(assume_centered=True)
            .partial_fit_gradients(clean - noise, clean + noise, batch_size=1)
            .excess_risk_
        )
    assert_mean(found, 1.5**2)


@pytest.mark.parametrize(("n", "settings"), [(9, {}), (60, {"noise_distribution": "normal"})])
def test_excess_risk_of_too_few_rows_is_unknown_and_said_to_be(n, settings):
    made = make_hessian_regression(n, 8, noise=2, excess_risk=3, random_state=0)
    fitted = GradientCovarianceEstimator(random_state=0, **settings)
    fitted.partial_fit(made.data, made.target)
    assert np.isnan(fitted.excess_risk_)
    assert "excess risk m^2        unknown" in str(calibration_report(fitted))


# --- stated errors of the correction


@pytest.mark.parametrize(
    ("excess_risk", "finite"), [(3.0, 1.0), (40.0, 1.0), (100.0, None), (500.0, 0.1)]
)
def test_the_stated_error_of_a_correction_holds_in_nine_seeds_of_ten(excess_risk, finite):
    stated, off = [], []
    for seed in range(30):
        made = make_hessian_regression(
            20 * 1000, 5, condition_number=3, noise=0, excess_risk=excess_risk, random_state=seed
        )
        fitted = GradientCovarianceEstimator(batch_size=20, noise="single", random_state=seed)
        fitted.partial_fit(made.data, made.target)
        off.append(relative_error(fitted.covariance_, made.covariance))
        stated.append(fitted.expected_error_)
    off, stated = np.array(off), np.array(stated)
    # 30 seeds: five times sqrt(.1 * .9/30) would be all, so the mean share itself
    assert np.mean(off > np.nan_to_num(stated, nan=np.inf)) <= 0.1
    known = np.isfinite(stated).mean()
    assert known == 1 if finite == 1 else finite is None or known <= finite
    if excess_risk == 3.0:  # and says something: the sampling error and no multiple of it
        assert np.median(stated) < 4 * np.median(off)
