import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from sklearn_gradhess import GradientCovarianceEstimator, PreconditionedSGDRegressor
from sklearn_gradhess._failures import ratio_error
from sklearn_gradhess.diagnostics import (
    calibration_report,
    expected_relative_error,
    required_batch_size,
    required_batches,
)
from sklearn_gradhess.exceptions import CalibrationWarning

eigenvalue_lists = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8)


# --- sample-size rules


def meets(rank, k, relative_error):
    return 2 * np.sqrt(rank / k) + rank / k <= relative_error


@pytest.mark.parametrize("relative_error", [0.2, 0.44, 0.5, 1.0, 1.25, 3.0, 8.0])
@pytest.mark.parametrize("rank", [1, 2.5, 7, 20])
def test_required_batches_is_the_smallest_number_that_meets_the_inequality(rank, relative_error):
    brute = next(k for k in range(1, 10_000) if meets(rank, k, relative_error))
    assert required_batches(rank, relative_error) == brute


@given(rank=st.floats(1, 1e4), relative_error=st.floats(1e-4, 10))
def test_required_batches_meets_the_inequality_and_one_batch_less_does_not(rank, relative_error):
    k = required_batches(rank, relative_error)
    assert meets(rank, k, relative_error * (1 + 1e-12))
    assert k == 1 or not meets(rank, k - 1, relative_error * (1 - 1e-12))


@pytest.mark.parametrize("relative_error", [1e-5, 1e-6, 1e-7])
def test_small_errors_are_met_to_rounding(relative_error):
    k = required_batches(20, relative_error)
    assert expected_relative_error(20, k) == pytest.approx(relative_error, rel=1e-13, abs=0)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_required_batches_inverts_the_expected_error(rank):
    k = np.arange(1, 400)
    errors = expected_relative_error(rank, k)
    np.testing.assert_array_equal(required_batches(rank, errors), k)


def test_required_batches_is_about_four_ranks_over_the_squared_error():
    assert required_batches(20, 1e-3) == pytest.approx(4 * 20 / 1e-3**2, rel=2e-3)


@given(eigenvalues=eigenvalue_lists, scale=st.floats(1e-6, 1e6))
def test_eigenvalues_count_by_their_effective_rank_in_any_unit(eigenvalues, scale):
    rank = sum(eigenvalues) / max(eigenvalues)
    error = expected_relative_error(np.array(eigenvalues) * scale, 50)
    assert error == pytest.approx(2 * np.sqrt(rank / 50) + rank / 50, rel=1e-12)


def test_a_number_of_features_stands_for_that_many_equal_eigenvalues():
    assert required_batches(7, 0.3) == required_batches(np.full(7, 1e-5), 0.3)
    assert expected_relative_error(7, 90) == expected_relative_error(np.full(7, 3.0), 90)


@pytest.mark.parametrize("risk", [0.0, 0.3, 4.0, 25.0])
@pytest.mark.parametrize("relative_error", [0.01, 0.1, 0.25, 2.0])
def test_required_batch_size_is_the_smallest_that_keeps_the_nuisance_down(risk, relative_error):
    brute = next(n for n in range(1, 10_000) if 2 * risk / n <= relative_error)
    assert required_batch_size(risk, relative_error) == brute


def test_antithetic_batches_need_one_row():
    assert required_batch_size(1e6, 1e-3, noise="antithetic") == 1


def test_rules_are_vectorised_and_give_plain_numbers_for_numbers():
    errors, risks = np.array([[0.5], [0.1]]), np.array([1.0, 4.0, 9.0])
    batches = required_batches([4.0, 2.0, 1.0], errors)
    sizes = required_batch_size(risks, errors)
    expected = expected_relative_error(
        5, [[10], [20]], batch_size=8, excess_risk=risks, noise="single"
    )
    assert (batches.shape, sizes.shape, expected.shape) == ((2, 1), (2, 3), (2, 3))
    assert batches.dtype == sizes.dtype == np.int64
    for i, e in enumerate(errors[:, 0]):
        assert batches[i, 0] == required_batches([4.0, 2.0, 1.0], e)
        assert sizes[i].tolist() == [required_batch_size(r, e) for r in risks]
    assert sizes[0].tolist() == required_batch_size(risks, 0.5, noise="single").tolist()
    assert required_batch_size(risks, errors, noise="antithetic").tolist() == [[1] * 3] * 2
    assert type(required_batches(5, 0.1)) is type(required_batch_size(5, 0.1)) is int
    assert type(expected_relative_error(5, 10)) is float


def test_expected_error_of_each_scheme():
    arguments = {"batch_size": 16, "excess_risk": 4.0}
    sampling = 2 * np.sqrt(5 / 100) + 5 / 100
    expected = {"antithetic": sampling, "single": sampling + 2 * 4 / 16, "none": np.nan}
    for noise, error in expected.items():
        actual = expected_relative_error(5, 100, noise=noise, **arguments)
        assert actual == pytest.approx(error, rel=1e-15, nan_ok=True)


def test_a_batch_size_of_the_rule_adds_the_error_that_was_asked_for():
    n = required_batch_size(25.0, 0.1)
    single = expected_relative_error(5, 100, batch_size=n, excess_risk=25.0, noise="single")
    assert single - expected_relative_error(5, 100) == pytest.approx(0.1, rel=1e-12)


def test_an_unknown_excess_risk_makes_the_expected_error_unknown():
    assert np.isnan(expected_relative_error(5, 9, batch_size=4, excess_risk=np.nan, noise="single"))


@pytest.mark.parametrize("rule", [required_batches, expected_relative_error])
@pytest.mark.parametrize(
    "values", [0, -1.0, np.nan, np.inf, [], [0.0, 0.0], [1.0, -1e-9], [np.nan, 1]]
)
def test_impossible_eigenvalues_are_refused(rule, values):
    message = (
        r"eigenvalues_or_n_features must be a positive number of features, or nonnegative "
        rf"eigenvalues that are not all zero; got {re.escape(repr(values))}\."
    )
    with pytest.raises(ValueError, match=message):
        rule(values, 1.0)


@pytest.mark.parametrize("rule", [required_batches, required_batch_size])
@pytest.mark.parametrize("error", [0.0, -0.1, np.nan, np.inf, [0.1, 0.0]])
def test_an_impossible_error_is_refused(rule, error):
    message = rf"relative_error must be finite and > 0, got {re.escape(repr(error))}\."
    with pytest.raises(ValueError, match=message):
        rule(3, error)


def test_a_negative_excess_risk_is_refused():
    for call in (
        lambda: required_batch_size(-1.0, 0.1),
        lambda: expected_relative_error(3, 9, excess_risk=-1.0, noise="single"),
    ):
        with pytest.raises(ValueError, match=r"excess_risk must be >= 0, got -1\.0\."):
            call()


@pytest.mark.parametrize("risk", [np.nan, np.inf])
def test_no_batch_size_follows_from_an_unknown_or_infinite_excess_risk(risk):
    with pytest.raises(ValueError, match=f"excess_risk must be .*, got {risk}"):
        required_batch_size(risk, 0.1)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (-1, 1), (1, 0), ([1, 0], 1)])
def test_impossible_counts_are_refused(k, n):
    message = rf"n_batches and batch_size must be > 0, got {re.escape(repr(k))}, {n}\."
    with pytest.raises(ValueError, match=message):
        expected_relative_error(3, k, batch_size=n)


def test_unknown_schemes_are_refused():
    with pytest.raises(
        ValueError,
        match=r"noise must be 'single' or 'antithetic', got 'none': without calibrated noise no "
        r"batch size is large enough\.",
    ):
        required_batch_size(1.0, 0.1, noise="none")
    with pytest.raises(
        ValueError, match=r"noise must be 'antithetic', 'single' or 'none', got 'double'\."
    ):
        expected_relative_error(3, 9, noise="double")


# --- calibration_report


def regression(rng, n_samples=4000, d=4, *, excess_risk=1.0, noise=1.0):
    X = rng.standard_normal((n_samples, d))
    coef = np.full(d, np.sqrt(excess_risk / d))
    return X, X @ coef + noise * rng.standard_normal(n_samples)


def pairs(rng, k, d, *, variance, batch_size=8):
    """Antithetic gradients of k batches, the intercept's first, with this noise variance."""
    Z = np.concatenate([np.ones((k, batch_size, 1)), rng.standard_normal((k, batch_size, d))], 2)
    clean = np.einsum("kbd,kb->kd", Z, rng.standard_normal((k, batch_size))) / batch_size
    xi = np.sqrt(variance) * rng.standard_normal((k, batch_size))
    half = np.einsum("kbd,kb->kd", Z, xi) / batch_size
    return clean - half, clean + half


def from_pairs(rng, k, d, *, variance=8.0, noise_scale=1.0):
    return quietly(
        GradientCovarianceEstimator(noise_scale=noise_scale).partial_fit_gradients,
        *pairs(rng, k, d, variance=variance),
        batch_size=8,
        has_intercept=True,
    )


def single(**parameters):
    return GradientCovarianceEstimator(
        noise="single", batch_size=16, noise_distribution="normal", random_state=0, **parameters
    )


def quietly(fit, *data, **arguments):
    """Fit; the warnings of the fit have their own test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return fit(*data, **arguments)


def only_failure(estimator):
    (failure,) = calibration_report(estimator).failures
    return failure


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"noise_scale": 4.0},
        {"noise": "single", "inherent_variance": 1.0, "batch_size": 16},
        {"noise": "single", "inherent_variance": "estimate", "batch_size": 16},
        {"noise": "none", "inherent_variance": 1.0, "batch_size": 16},
        {"shrinkage": "oas", "assume_centered": True},
    ],
)
def test_a_healthy_fit_shows_no_failure(parameters, seed):
    X, y = regression(np.random.default_rng(seed))
    coef = np.full(4, 0.5)  # the optimum, where clean gradients are noise alone
    report = calibration_report(
        GradientCovarianceEstimator(random_state=seed, **parameters).fit(X, y, coef=coef)
    )
    assert report.failures == ()
    assert str(report).endswith("no known failure found")


def test_the_report_holds_the_numbers_of_the_fit(rng):
    X, y = regression(rng)
    estimator = GradientCovarianceEstimator(batch_size=10, random_state=0).fit(X, y)
    report = calibration_report(estimator)
    assert (report.n_batches, report.n_features, report.batch_size) == (400, 4, 10)
    assert report.batches_per_feature == 100
    values = np.linalg.eigvalsh(estimator.covariance_)
    assert report.effective_rank == pytest.approx(values.sum() / values[-1])
    # the effective rank of an estimate is too small, by the stretch of its largest eigenvalue
    rank = report.effective_rank / (1 - np.sqrt(report.effective_rank / 400)) ** 2
    assert report.expected_error == pytest.approx(expected_relative_error(rank, 400))
    assert report.excess_risk == estimator.excess_risk_
    assert report.nuisance_share == pytest.approx(estimator.excess_risk_ / 10)
    assert (report.rank, report.n_clipped) == (4, 0)
    s = np.linalg.eigvalsh(
        estimator.covariance_ / np.sqrt(np.outer(*[np.diag(estimator.covariance_)] * 2))
    )
    assert report.condition_number == pytest.approx(s[-1] / s[0])
    assert abs(report.noise_ratio - 1) < 5 * np.sqrt(2 / 400)  # variance of k Gaussian squares
    lines = str(report).splitlines()
    assert lines[0] == "Calibration report: antithetic noise, 400 batches of 10 rows, 4 features"
    assert "  rank                   4 of 4 (0 clipped)" in lines


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"noise": "single", "batch_size": 64}, "single noise, gaussian correction"),
        ({"noise": "single", "batch_size": 64, "correction": "none"}, "single noise"),
    ],
)
def test_the_report_names_scheme_and_correction(parameters, expected, rng):
    estimator = GradientCovarianceEstimator(random_state=0, **parameters).fit(*regression(rng))
    assert calibration_report(estimator).noise == expected


@pytest.mark.parametrize("parameters", [{"loss": "huber"}, {"assume_centered": True}])
def test_noise_ratio_is_unknown_where_no_intercept_shows_it(parameters, rng):
    estimator = GradientCovarianceEstimator(random_state=0, **parameters).fit(*regression(rng))
    assert np.isnan(calibration_report(estimator).noise_ratio)


def test_an_estimator_that_is_not_fitted_is_refused():
    with pytest.raises(NotFittedError, match="not fitted yet"):
        calibration_report(GradientCovarianceEstimator())


@pytest.mark.parametrize("k", [1, 3, 5])
def test_at_most_one_batch_a_feature_is_reported_as_a_bound_on_the_rank(k, rng):
    failure = only_failure(from_pairs(rng, k, 5))
    assert failure.name == "too few batches for the dimension"
    assert failure.fact == (
        f"Only {k} batch gradients for 5 features: the covariance has rank at most {k}."
    )
    assert failure.way_out == "Use a smaller batch_size, more samples, or shrinkage='oas'."
    assert str(failure) == f"{failure.fact} {failure.way_out}"
    assert failure.visible_in_fit


def test_redraws_add_no_rank_to_few_rows(rng):
    X = rng.standard_normal((30, 64))
    for parameters in ({"batch_size": 1}, {"batch_size": 3, "noise": "single"}):
        estimator = GradientCovarianceEstimator(n_redraws=10, random_state=0, **parameters)
        quietly(estimator.fit, X, X[:, 0])
        failure = calibration_report(estimator).failures[0]
        assert failure.name == "too few batches for the dimension"
        assert failure.fact == "Only 30 rows for 64 features: the covariance has rank at most 30."
        assert failure.way_out == "Use more samples, or shrinkage='oas'."
        assert np.linalg.matrix_rank(estimator.covariance_) <= 30


def test_redraws_and_weights_count_by_what_they_tell(rng):
    # 9 batches of 12 rows, drawn ten times: 90 gradients, as good as 9 * 120/21 = 51.4
    X = rng.standard_normal((108, 30))
    redrawn = GradientCovarianceEstimator(batch_size=12, n_redraws=10, random_state=0).fit(X)
    failure = only_failure(redrawn)
    assert failure.fact == (
        "Only 51 effective batch gradients (weights and redraws counted) for 30 features: the "
        "smallest eigenvalues are mostly noise."
    )
    assert not failure.visible_in_fit
    w = np.where(np.arange(108) < 20, 1.0, 1e-6)  # twenty rows that count
    weighted = GradientCovarianceEstimator(random_state=0).fit(X[:, :4], sample_weight=w)
    failure = only_failure(weighted)
    assert failure.name == "too few batches for the accuracy"
    assert failure.fact.startswith(
        "20 effective batch gradients (weights and redraws counted) at an effective rank of "
    )


@pytest.mark.parametrize("k", [6, 9])
def test_less_than_two_batches_a_feature_are_reported_as_noise(k, rng):
    failure = only_failure(from_pairs(rng, k, 5))
    assert failure.fact == (
        f"Only {k} batch gradients for 5 features: the smallest eigenvalues are mostly noise."
    )
    assert "smaller batch_size, more samples, or shrinkage='oas'" in failure.way_out
    assert not failure.visible_in_fit


def test_two_batches_a_feature_are_too_few_for_accuracy_alone_and_shrinkage_mends_it(rng):
    # two a feature make no singular covariance, but no accurate one either
    assert only_failure(from_pairs(rng, 10, 5)).name == "too few batches for the accuracy"
    gradients, antithetic = pairs(rng, 4, 5, variance=8.0)
    shrunk = GradientCovarianceEstimator(shrinkage=0.5).partial_fit_gradients(
        gradients, antithetic, batch_size=8, has_intercept=True
    )
    assert calibration_report(shrunk).failures == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 / 3])
def test_a_constant_feature_is_the_only_direction_left_out(value, batch_size, dtype, rng):
    X, y = regression(rng)
    X[:, 2] = value
    estimator = GradientCovarianceEstimator(batch_size=batch_size, random_state=0)
    failure = only_failure(quietly(estimator.fit, X.astype(dtype), y))
    assert failure.name == "singular covariance"
    assert failure.fact == ("The covariance is singular, rank 3 of 4. Constant features: [2].")
    assert "left out of precision_" in failure.way_out
    assert "drop such features, or use shrinkage" in failure.way_out


def test_a_linear_combination_is_reported_as_one(rng):
    X, y = regression(rng)
    X[:, 3] = X[:, 0] - 2 * X[:, 1]
    failure = only_failure(quietly(GradientCovarianceEstimator(random_state=0).fit, X, y))
    assert failure.fact == (
        "The covariance is singular, rank 3 of 4. Some features are linear combinations of others."
    )


def test_a_constant_feature_behind_too_few_batches_is_not_blamed(rng):
    X, y = regression(rng, 12)
    X[:, 2] = 0.0
    estimator = GradientCovarianceEstimator(batch_size=4, random_state=0)
    assert only_failure(quietly(estimator.fit, X, y)).name == "too few batches for the dimension"


@pytest.mark.parametrize(("excess_risk", "visible"), [(2.0, False), (16.0, True)])
def test_an_excess_risk_not_small_against_the_batch_is_reported(excess_risk, visible, rng):
    X, y = regression(rng, 80_000, excess_risk=excess_risk, noise=0.0)
    estimator = quietly(single(correction="none").fit, X, y)
    failure = only_failure(estimator)
    assert failure.name == "far from the optimum"
    shown, bias = re.fullmatch(
        r"The excess risk ([\d.]+) is not small against the batch size 16: covariance_ is up to "
        r"(\d+)% too large\.",
        failure.fact,
    ).groups()
    # standard error of m^2: that of mean' S^-1 mean, (2/sqrt(k)) sqrt(q), magnified by 1 + 2 m^2/n
    tolerance = 5 * 2 * np.sqrt(excess_risk / 5000) * (1 + 2 * excess_risk / 16) ** 2
    assert abs(float(shown) - excess_risk) < tolerance
    assert float(bias) / 100 == pytest.approx(2 * estimator.excess_risk_ / 16, abs=0.006)
    for way in ("noise='antithetic'", "larger batch_size", "coef and intercept", "'gaussian'"):
        assert way in failure.way_out
    assert failure.visible_in_fit == visible


@pytest.mark.parametrize("correction", ["none", "gaussian"])
def test_a_nuisance_is_half_as_large_beside_noise_that_was_estimated(correction, rng):
    X, y = regression(rng, 80_000, excess_risk=4.0)
    estimator = single(correction=correction, inherent_variance="estimate").fit(X, y)
    failure = only_failure(estimator)
    (share,) = re.findall(r"up to (\d+)% ", failure.fact)
    # (tau + m^2)/n is calibrated: Sigma u u' Sigma/n alone is left, of size m^2/n
    assert float(share) / 100 == pytest.approx(estimator.excess_risk_ / 16, abs=0.006)
    if correction == "none":
        top = np.linalg.eigvalsh(estimator.covariance_)[-1]
        assert abs(top - 1 - 4 / 16) < (1 + 4 / 16) * expected_relative_error(4, 5000)


@pytest.mark.parametrize("excess_risk", [0.2, 4.0])
def test_a_correction_that_matters_is_reported_as_unchecked(excess_risk, rng):
    X, y = regression(rng, 80_000, excess_risk=excess_risk, noise=0.0)
    estimator = single(correction="gaussian").fit(X, y)  # without a warning
    if excess_risk == 0.2:  # a nuisance of 2.5 %
        assert calibration_report(estimator).failures == ()
        return
    failure = only_failure(estimator)
    assert failure.name == "correction unchecked"
    share = re.fullmatch(
        r"A nuisance of up to (\d+)% of covariance_ was removed by a formula that is exact for "
        r"Gaussian features; the gradients do not show whether the features are\.",
        failure.fact,
    )[1]
    assert float(share) / 100 == pytest.approx(2 * estimator.excess_risk_ / 16, abs=0.006)
    assert failure.way_out == (
        "Use noise='antithetic', which needs no correction, a larger batch_size, or coef and "
        "intercept closer to the optimum."
    )


def test_noise_scale_counts_against_the_nuisance(rng):
    X, y = regression(rng, excess_risk=2.0, noise=0.0)
    estimator = single(correction="none", noise_scale=20.0).fit(X, y)
    assert calibration_report(estimator).failures == ()


def far_gradients(rng, k, d=3):
    return 100 + rng.standard_normal((k, d))


def test_a_mean_gradient_past_saturation_is_reported_without_a_number_for_the_risk(rng):
    estimator = quietly(
        single(correction="none").partial_fit_gradients, far_gradients(rng, 50), batch_size=16
    )
    assert np.isnan(estimator.excess_risk_)
    failure = only_failure(estimator)
    assert failure.name == "far from the optimum"
    assert failure.fact == (
        "The mean gradient is as large as single-noise gradients of batch size 16 can show: the "
        "excess risk is at least of the order of 16, and covariance_ is dominated by it."
    )
    assert failure.way_out == (
        "Use noise='antithetic', which has no such bias, a larger batch_size, or coef and "
        "intercept closer to the optimum."
    )
    assert failure.visible_in_fit


def test_too_few_batches_to_tell_the_distance_are_not_called_far(rng):
    estimator = single(correction="none").partial_fit_gradients(
        far_gradients(rng, 5), batch_size=16
    )
    assert only_failure(estimator).name == "too few batches for the dimension"


@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
@pytest.mark.parametrize(("factor", "visible"), [(0.2, True), (1.35, False), (4.0, True)])
def test_antithetic_noise_of_the_wrong_scale_is_reported_with_the_right_one(
    factor, visible, noise_scale, rng
):
    k = 4000
    estimator = from_pairs(rng, k, 3, variance=8.0 * noise_scale * factor, noise_scale=noise_scale)
    failure = only_failure(estimator)
    assert failure.name == "scale mismatch"
    assert ("gradient_scale=2." in failure.way_out) == (factor == 4.0)
    total, calibrated, ratio = re.fullmatch(
        r"The intercept's gradient shows a total target noise of ([\d.]+), not the calibrated "
        r"([\d.]+): covariance_ is off by the factor ([\d.]+)\.",
        failure.fact,
    ).groups()
    (advice,) = re.findall(r"set noise_scale=([\d.]+)\.$", failure.way_out)
    five_errors = 5 * np.sqrt(2 / k) + 0.005  # of k Gaussian squares, and three digits printed
    assert float(calibrated) == 8 * noise_scale
    assert float(ratio) == pytest.approx(factor, rel=five_errors)
    assert float(total) == pytest.approx(8 * noise_scale * factor, rel=five_errors)
    assert float(advice) == pytest.approx(factor * noise_scale, rel=five_errors)
    assert failure.visible_in_fit == visible
    gradients = pairs(np.random.default_rng(1), k, 3, variance=8.0 * noise_scale * factor)
    cured = GradientCovarianceEstimator(noise_scale=float(advice)).partial_fit_gradients(
        *gradients, batch_size=8, has_intercept=True
    )
    # two independent samples of k squares: sqrt(2) times the standard error
    assert calibration_report(cured).noise_ratio == pytest.approx(1, rel=2 * five_errors)


@pytest.mark.parametrize("correction", ["gaussian", "none"])
def test_inherent_noise_that_was_not_told_is_reported_with_its_variance(correction, rng):
    inherent, k = 6.0, 2500
    X, y = regression(rng, 16 * k, excess_risk=0.0, noise=np.sqrt(inherent))
    failure = only_failure(single(correction=correction).fit(X, y))
    assert failure.name == "scale mismatch"
    total, calibrated = re.findall(r"noise of ([\d.]+), not the calibrated (\d+)", failure.fact)[0]
    (shown,) = re.findall(r"Inherent target noise of about ([\d.]+) would", failure.way_out)
    tolerance = (16 + inherent) * 5 * np.sqrt(2 / k) + 0.05  # of k Gaussian squares, as printed
    assert float(calibrated) == 16
    assert abs(float(total) - 16 - inherent) < tolerance
    assert abs(float(shown) - inherent) < tolerance
    for way in ("set inherent_variance", "'estimate'", "larger batch_size", "noise='antithetic'"):
        assert way in failure.way_out
    cured = single(correction=correction, inherent_variance=inherent).fit(X, y)
    assert calibration_report(cured).failures == ()


def test_inherent_noise_above_the_total_is_reported_too(rng):
    X, y = regression(rng, excess_risk=0.0, noise=10.0)
    (failure,) = calibration_report(quietly(single().fit, X, y)).failures
    assert failure.name == "scale mismatch"
    assert failure.visible_in_fit


def test_antithetic_noise_hides_any_inherent_noise(rng):
    X, y = regression(rng, noise=100.0)
    estimator = GradientCovarianceEstimator(batch_size=16, random_state=0).fit(X, y)
    assert calibration_report(estimator).failures == ()


def test_clean_gradients_are_reported_as_uncalibrated(rng):
    estimator = GradientCovarianceEstimator(noise="none", batch_size=16).fit(*regression(rng))
    report = calibration_report(estimator)
    (failure,) = report.failures
    assert failure.name == "uncalibrated noise"
    assert failure.fact == (
        "noise='none' and no known inherent variance: covariance_ is the covariance of clean "
        "gradients, which vanishes as batches grow and is the Hessian in no unit."
    )
    assert failure.way_out == "Use noise='antithetic', or pass inherent_variance."
    assert not failure.visible_in_fit
    assert np.isnan([report.expected_error, report.excess_risk, report.noise_ratio]).all()
    assert str(report).splitlines()[-1] == f"  ! uncalibrated noise: {failure}"


def test_every_failure_is_listed_the_gravest_first(rng):
    X, y = regression(rng, 96, excess_risk=400.0, noise=0.0)
    estimator = quietly(single(correction="none").fit, np.hstack([X, X[:, :1]]), y)
    report = calibration_report(estimator)
    names = [failure.name for failure in report.failures]
    assert names[:2] == ["too few batches for the dimension", "singular covariance"]
    assert [line[4:].split(":")[0] for line in str(report).splitlines() if "!" in line] == names


@pytest.mark.parametrize(
    ("estimator", "data", "message"),
    [
        (GradientCovarianceEstimator(batch_size=8), {"n_samples": 24}, "Only 3 batch gradients"),
        (single(correction="none"), {"excess_risk": 16.0, "noise": 0.0}, "not small against"),
        (single(), {"noise": 4.0}, "Inherent target noise of about"),
    ],
)
def test_fit_warns_of_what_it_can_see(estimator, data, message, rng):
    with pytest.warns(CalibrationWarning, match=message):
        estimator.fit(*regression(rng, **data))


@pytest.mark.parametrize(
    ("estimator", "data"),
    [
        (GradientCovarianceEstimator(batch_size=8), {"n_samples": 48}),
        (single(correction="none"), {"excess_risk": 2.0, "noise": 0.0}),
        (GradientCovarianceEstimator(noise="none", batch_size=8), {}),
    ],
)
def test_fit_is_silent_about_what_only_the_report_tells(estimator, data, rng):
    estimator.fit(*regression(rng, **data))  # a warning would be an error here
    assert len(calibration_report(estimator).failures) == 1


def test_an_expected_error_above_one_half_is_reported_with_the_number(rng):
    failure = only_failure(from_pairs(rng, 40, 5))
    assert failure.name == "too few batches for the accuracy"
    assert not failure.visible_in_fit
    assert re.search(r"^40 batch gradients at an effective rank of .* \d+% off\.$", failure.fact)
    assert "batch_size" in failure.way_out


def test_the_report_names_what_to_pass_instead_of_a_model(rng):
    X, y = regression(rng)
    model = PreconditionedSGDRegressor().fit(X, y)
    with pytest.raises(TypeError, match=r"got PreconditionedSGDRegressor.*covariance_estimator_"):
        calibration_report(model)
    assert calibration_report(model.covariance_estimator_).n_features == 4


# --- large numbers, and what is no list of eigenvalues


@pytest.mark.parametrize("relative_error", [1e-9, 1e-10, 1e-60])
def test_more_batches_than_an_int64_holds_are_counted_all_the_same(relative_error):
    k = required_batches(20, relative_error)
    assert isinstance(k, int)
    assert k == pytest.approx(4 * 20 / relative_error**2, rel=1e-6)
    several = required_batches(20, [0.5, relative_error])
    np.testing.assert_allclose(several, [396, float(k)], rtol=1e-15)


@pytest.mark.parametrize("excess_risk", [1e18, 1e20, 1e300])
def test_more_rows_than_an_int64_holds_are_counted_all_the_same(excess_risk):
    n = required_batch_size(excess_risk, 0.1)
    assert isinstance(n, int)
    assert n == pytest.approx(20 * excess_risk, rel=1e-15)
    np.testing.assert_allclose(
        required_batch_size([4.0, excess_risk], 0.1), [80, float(n)], rtol=1e-15
    )


def test_what_an_int64_holds_is_an_int64():
    assert required_batches(20, [0.5, 1e-8]).dtype == np.int64
    assert required_batch_size([4.0, 1e17], 0.1).dtype == np.int64


def test_numbers_beyond_all_floats_are_refused():
    with pytest.raises(ValueError, match="More than 1e308 batches are needed"):
        required_batches(20, 1e-200)
    with pytest.raises(ValueError, match="More than 1e308 rows are needed"):
        required_batch_size(1e200, 1e-200)


@pytest.mark.parametrize("rule", [required_batches, expected_relative_error])
@pytest.mark.parametrize("shape", [(3, 3), (1, 5), (2, 2, 2)])
def test_a_matrix_is_not_taken_for_eigenvalues(rule, shape):
    message = r"one-dimensional, got an array of shape .*eigvalsh"
    with pytest.raises(ValueError, match=message):
        rule(np.ones(shape), 10)


# --- what the numbers of the report say, against many samples


def single_reports(n, excess_risk, *, noise_scale=1.0, correction="none", k=400, d=3):
    """Reports on single-noise gradients of Gaussian rows, 60 samples."""
    reports, estimators = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        X, y = regression(rng, n * k, d, excess_risk=excess_risk, noise=0.0)
        estimator = GradientCovarianceEstimator(
            noise="single",
            batch_size=n,
            noise_scale=noise_scale,
            correction=correction,
            noise_distribution="normal",
            random_state=seed,
        )
        quietly(estimator.fit, X, y)
        estimators.append(estimator)
        reports.append(calibration_report(estimator))
    return reports, estimators


@pytest.mark.parametrize("noise_scale", [1.0, 3.0])
@pytest.mark.parametrize("excess_risk", [0.5, 3.0])
def test_the_share_of_the_nuisance_is_what_is_added(excess_risk, noise_scale):
    n = 16
    reports, estimators = single_reports(n, excess_risk, noise_scale=noise_scale)
    shares = np.array([report.nuisance_share for report in reports])
    assert shares.mean() == pytest.approx(excess_risk / n, abs=5 * shares.std() / np.sqrt(60))
    # Sigma is seen as (tau + m^2)/tau Sigma + Sigma u u' Sigma/tau, u the diagonal here
    share = excess_risk / (n * noise_scale)
    u = np.ones(3) / np.sqrt(3)
    seen = [[u @ e.covariance_ @ u, np.trace(e.covariance_) - u @ e.covariance_ @ u]
            for e in estimators]  # fmt: skip
    error = np.std(seen, axis=0) / np.sqrt(60)
    along, across = np.mean(seen, axis=0)
    assert abs(along - 1 - 2 * share) < 5 * error[0]
    assert abs(across - 2 * (1 + share)) < 5 * error[1]
    bounds = np.mean([e.fitted_.nuisance for e in estimators], axis=0)
    assert bounds == pytest.approx([share, 2 * share], rel=0.25)


@pytest.mark.parametrize("excess_risk", [0.0, 1.0, 3.0])
def test_the_error_of_the_noise_ratio_is_its_scatter(excess_risk):
    reports, estimators = single_reports(16, excess_risk)
    ratios = np.array([report.noise_ratio for report in reports])
    stated = np.mean([ratio_error(e.fitted_) for e in estimators])
    # of 60 samples the scatter is known to a tenth; what is stated may be up to twice as wide
    assert ratios.std() * 0.7 < stated < 2.5 * ratios.std() + 1e-12
    assert ratios.mean() == pytest.approx(1, abs=5 * stated / np.sqrt(60))


def test_a_correction_whose_error_has_no_limit_is_called_far(rng):
    # share m^2/(T + m^2) = .48 of a covariance, known to .016; one half is saturation
    X, y = regression(rng, 40_000, excess_risk=200.0, noise=0.0)
    estimator = quietly(single().fit, X, y)
    failure = only_failure(estimator)
    assert failure.name == "far from the optimum"
    assert re.search(
        r"^The excess risk, about \d+, is so far above the batch size 16 that single-noise "
        r"gradients hardly show it, and covariance_ may be of any scale\.$",
        failure.fact,
    )
    assert failure.visible_in_fit
    assert np.isnan(estimator.expected_error_)


def test_an_offset_may_make_an_uncorrected_covariance_too_small(rng):
    X, y = regression(rng, 40_000, excess_risk=4.0, noise=0.0)
    # V = T - a^2 is small against a^2: n Cov = T Sigma + rho s s' with a negative rho
    estimator = single(correction="none", inherent_variance="estimate").partial_fit(
        X, y + 3.5, intercept=0.0
    )
    failure = only_failure(estimator)
    (share,) = re.findall(r"covariance_ is up to (\d+)% too small\.$", failure.fact)
    # T = n = m^2 + a^2 + what is injected; rho = 1 - a^2/(T - a^2)
    total, a2, b2 = 16 + max(0, 16.25 - 16), 3.5**2, 4.0
    rho = 1 - a2 / (total - a2)
    assert float(share) / 100 == pytest.approx(-rho * b2 / total, rel=0.3)


@pytest.mark.parametrize("noise", ["antithetic", "single", "none"])
def test_an_unknown_excess_risk_is_explained(noise, rng):
    estimator = GradientCovarianceEstimator(noise=noise, batch_size=8).partial_fit(
        *regression(rng, 40)
    )
    assert np.isnan(estimator.excess_risk_)
    (line,) = [line for line in str(calibration_report(estimator)).splitlines() if "m^2 " in line]
    assert line.startswith("  excess risk m^2        unknown: too few")
