"""Gradients that somebody else took: any scale and place of the intercept, and no silent error."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.diagnostics import calibration_report
from sklearn_gradhess.exceptions import CalibrationWarning

N = 8
FACTORS = (2.0, N, 2 * N, 0.5, 1 / N, 0.5 / N)
HEALTHY = "no known failure found"
PAGE = Path(__file__).parents[1] / "docs" / "user_guide" / "foreign_gradients.rst"


def take(k=1000, d=3, *, seed=0, curvature=1.0, pairs=True, excess=0.0, center=2.0):
    """Gradients of half the mean squared error at y + xi and y - xi, the intercept's in front."""
    rng = np.random.default_rng(seed)
    Z = np.concatenate([np.ones((k, N, 1)), center + rng.standard_normal((k, N, d))], axis=2)
    error = np.sqrt(excess) * (Z[..., 1] - center) + 0.01 * rng.standard_normal((k, N))
    xi = np.sqrt(N * curvature) * rng.standard_normal((k, N))
    signs = (-1, 1) if pairs else (-1,)
    return [np.einsum("kbd,kb->kd", Z, error + s * xi) / N for s in signs]


def send(gradients, *, noise="antithetic", loss="squared_error", has_intercept=True, **arguments):
    return GradientCovarianceEstimator(noise=noise, loss=loss).partial_fit_gradients(
        *gradients, batch_size=N, has_intercept=has_intercept, **arguments
    )


def assert_same(a, b):
    for name in ("covariance_", "location_", "mean_gradient_", "mean_intercept_gradient_"):
        assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("noise", ["antithetic", "single"])
@pytest.mark.parametrize("factor", [*FACTORS, 3.7])
def test_the_scale_is_divided_out(noise, factor):
    gradients = take(pairs=noise == "antithetic")
    scaled = [factor * g for g in gradients]
    assert_same(send(scaled, noise=noise, gradient_scale=factor), send(gradients, noise=noise))


def test_rounds_of_different_scale_go_into_one_estimator():
    one, two = take(seed=1), take(seed=2)
    mixed = send([2 * g for g in one], gradient_scale=2.0)
    mixed.partial_fit_gradients(*two, batch_size=N, has_intercept=True)
    whole = send(one).partial_fit_gradients(*two, batch_size=N, has_intercept=True)
    assert_same(mixed, whole)


@pytest.mark.parametrize("noise", ["antithetic", "single", "none"])
def test_the_intercept_may_be_last(noise):
    gradients = take(pairs=noise == "antithetic")
    last = [np.roll(g, -1, axis=1) for g in gradients]
    assert_same(send(last, noise=noise, intercept_position="last"), send(gradients, noise=noise))


def test_the_place_of_no_intercept_does_not_matter():
    gradients = [g[:, 1:] for g in take()]
    there = send(gradients, has_intercept=False, intercept_position="last")
    assert_same(there, send(gradients, has_intercept=False))


def test_an_intercept_at_the_end_that_was_not_seen_before_is_left_out():
    gradients = take()
    estimator = GradientCovarianceEstimator(assume_centered=True).partial_fit_gradients(
        *[np.roll(g, -1, axis=1) for g in gradients],
        batch_size=N,
        has_intercept=True,
        intercept_position="last",
    )
    assert_same(estimator, send([g[:, 1:] for g in gradients], has_intercept=False))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("seed", range(5))
def test_a_common_factor_is_warned_of_and_named_by_the_report(factor, seed):
    gradients = [factor * g for g in take(300, seed=seed)]
    with pytest.warns(CalibrationWarning, match=rf"pass gradient_scale={factor:.6g}\."):
        estimator = send(gradients)
    (failure,) = calibration_report(estimator).failures
    assert failure.name == "scale mismatch"
    off = float(re.search(r"covariance_ is off by the factor (\S+)\.$", failure.fact)[1])
    assert off == pytest.approx(factor**2, rel=5 * np.sqrt(2 / 300) + 0.005)
    assert f"pass gradient_scale={factor:.6g}." in failure.way_out
    cured = send(gradients, gradient_scale=factor)
    assert calibration_report(cured).failures == ()


@pytest.mark.parametrize("factor", FACTORS)
def test_the_factor_of_single_gradients_is_named_too(factor):
    with pytest.warns(CalibrationWarning, match=rf"pass gradient_scale={factor:.6g}\."):
        send([factor * g for g in take(1000, pairs=False)], noise="single")


def test_an_intercept_at_the_wrong_end_is_named():
    gradients = [np.roll(g, -1, axis=1) for g in take(300, center=5.0)]
    with pytest.warns(CalibrationWarning, match="set intercept_position to the end where"):
        send(gradients)


@pytest.mark.parametrize("k", [20, 300, 3000])
@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_sound_gradients_are_not_suspected(noise, k):
    names = set()
    for seed in range(50):
        estimator = send(take(k, seed=seed, pairs=noise == "antithetic"), noise=noise)
        names |= {failure.name for failure in calibration_report(estimator).failures}
    assert "scale mismatch" not in names


def test_without_the_intercept_the_report_says_that_the_scale_cannot_be_checked():
    report = calibration_report(send([2 * g[:, 1:] for g in take()], has_intercept=False))
    assert report.unchecked == ("scale: cannot be checked without the intercept's gradient",)
    lines = str(report).splitlines()
    assert "  ? scale: cannot be checked without the intercept's gradient" in lines
    assert lines[-1] == f"  {HEALTHY} in what can be checked"


def test_with_the_intercept_nothing_is_left_unchecked():
    report = calibration_report(send(take()))
    assert report.unchecked == ()
    assert str(report).splitlines()[-1] == f"  {HEALTHY}"


@pytest.mark.parametrize("loss", ["log_loss", "huber", "poisson"])
def test_the_scale_of_other_losses_is_called_unchecked(loss):
    report = calibration_report(send(take(curvature=0.2), loss=loss))
    assert report.failures == ()
    (said,) = report.unchecked
    assert said.startswith("scale: cannot be checked for this loss")


def test_data_of_our_own_leave_nothing_unchecked(rng):
    X = rng.standard_normal((400, 3))
    estimator = GradientCovarianceEstimator(assume_centered=True, random_state=0)
    assert calibration_report(estimator.fit(X)).unchecked == ()


def test_what_was_given_counts_through_a_merge(rng):
    ours = GradientCovarianceEstimator(batch_size=N, assume_centered=True, random_state=0)
    ours.fit(rng.standard_normal((400, 3)))
    theirs = GradientCovarianceEstimator(batch_size=N, assume_centered=True)
    theirs.partial_fit_gradients(*[g[:, 1:] for g in take()], batch_size=N)
    assert len(calibration_report(ours.merge(theirs)).unchecked) == 1


@pytest.mark.parametrize(("loss", "most"), [("log_loss", 0.25), ("huber", 1.0)])
def test_more_curvature_than_a_loss_has_is_reported(loss, most):
    healthy = send(take(curvature=0.9 * most), loss=loss)
    assert calibration_report(healthy).failures == ()
    (failure,) = calibration_report(send(take(curvature=4 * most), loss=loss)).failures
    assert failure.name == "scale mismatch"
    assert "or pass loss_curvature; and gradient_scale" in failure.way_out
    found = re.search(r"mean curvature of ([\d.]+), .* at least ([\d.]+) times", failure.fact)
    shown, at_least = found.groups()
    assert float(shown) == pytest.approx(4 * most, rel=5 * np.sqrt(2 / 1000))
    assert float(at_least) == pytest.approx(4, rel=5 * np.sqrt(2 / 1000))


@pytest.mark.parametrize("noise", ["antithetic", "single"])
@pytest.mark.parametrize("has_intercept", [True, False])
def test_few_gradients_for_many_features_warn_as_fit_does(noise, has_intercept):
    gradients = [g[:, not has_intercept :] for g in take(5, 12, pairs=noise == "antithetic")]
    message = "Only 5 batch gradients for 12 features: the covariance has rank at most 5"
    with pytest.warns(CalibrationWarning, match=message):
        send(gradients, noise=noise, has_intercept=has_intercept)


def test_the_warning_points_to_the_caller():
    with pytest.warns(CalibrationWarning) as caught:
        GradientCovarianceEstimator().partial_fit_gradients(*take(2), batch_size=N)
    assert caught[0].filename == __file__


def test_gradients_one_by_one_warn_once():
    (first, *plus), (second, *minus) = take(20)
    with pytest.warns(CalibrationWarning, match="Only 1 batch gradient"):
        estimator = send((first[None], second[None]))
    for pair in zip(plus, minus, strict=True):  # warnings are errors
        estimator.partial_fit_gradients(*(g[None] for g in pair), batch_size=N, has_intercept=True)


def test_enough_gradients_in_later_rounds_end_the_warning():
    with pytest.warns(CalibrationWarning, match="Only 3 batch gradients"):
        estimator = send(take(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.partial_fit_gradients(*take(100, seed=1), batch_size=N, has_intercept=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"gradient_scale": 0.0}, ValueError, "must be finite and > 0, got 0.0: the factor"),
        ({"gradient_scale": -2}, ValueError, "must be finite and > 0, got -2"),
        ({"gradient_scale": np.inf}, ValueError, "must be finite and > 0, got inf"),
        ({"gradient_scale": np.nan}, ValueError, "must be finite and > 0, got nan"),
        ({"gradient_scale": "mean"}, TypeError, "gradient_scale must be an instance of"),
        ({"intercept_position": "end"}, ValueError, "must be 'first' or 'last', got 'end'"),
        ({"intercept_position": 0}, ValueError, "must be 'first' or 'last', got 0"),
        ({"has_intercept": "no"}, ValueError, "has_intercept must be True or False, got 'no'"),
        ({"has_intercept": 1}, ValueError, "has_intercept must be True or False, got 1"),
    ],
)
def test_misspelt_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        send(take(20), **changes)


def test_numpy_booleans_are_booleans():
    assert_same(send(take(50), has_intercept=np.bool_(True)), send(take(50)))


def test_the_recipe_for_torch_runs_as_it_stands():
    torch = pytest.importorskip("torch")
    (code,) = re.findall(r"code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text("utf-8"))
    made = {}
    exec(re.sub(r"(?m)^   ", "", code), made)
    estimator, X = made["estimator"], made["X"].numpy().astype(np.float64)
    assert calibration_report(estimator).failures == ()
    error = np.diag(estimator.covariance_) / X.var(axis=0) - 1
    assert np.abs(error).max() < 5 * np.sqrt(2 / 2000)  # of 2000 Gaussian squares
    assert torch.is_tensor(made["y"])
