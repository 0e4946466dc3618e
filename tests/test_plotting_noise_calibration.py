"""The V: errors against naive recomputation, where it has its minimum, and what it refuses."""

import re
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import Ridge

from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.diagnostics import expected_relative_error
from sklearn_gradhess.plotting import NoiseCalibrationDisplay
from tests import oracles
from tests.displays import close_figures, corners, legend  # noqa: F401

pytest.importorskip("matplotlib")

N, K, D = 64, 300, 5
DATA = make_hessian_regression(N * K, D, condition_number=5, excess_risk=20.0, random_state=0)
SINGLE = GradientCovarianceEstimator(batch_size=N, noise="single")
PAIRS = GradientCovarianceEstimator(batch_size=N)


def plot(estimator=SINGLE, X=DATA.data, y=DATA.target, **kwargs):
    settings = {"coef": DATA.coef, "covariance": DATA.covariance, "random_state": 0}
    return NoiseCalibrationDisplay.from_estimator(estimator, X, y, **settings | kwargs)


# --- the data against oracles


def test_the_error_is_that_of_the_raw_covariance_of_the_gradients():
    variances = [0.5 * N, N, 3.0 * N]
    estimator = clone(SINGLE).set_params(assume_centered=True)
    display = plot(estimator, variances=variances, n_repeats=3)
    seeds = np.random.default_rng(0).integers(2**31, size=3).tolist()
    for i, v in enumerate(variances):
        errors = []
        for seed in seeds:
            refit = clone(estimator).set_params(noise_scale=v / N, random_state=seed)
            raw = refit.fit(DATA.data, DATA.target, coef=DATA.coef).gradient_covariance_
            errors.append(oracles.relative_error(raw, DATA.covariance))
        assert display.error[i] == pytest.approx(np.mean(errors), rel=1e-10)
        assert display.low[i] == pytest.approx(min(errors), rel=1e-10)
        assert display.high[i] == pytest.approx(max(errors), rel=1e-10)


def test_the_error_is_that_of_a_naive_simulation():
    n, k = 16, 200
    variances = np.array([0.0, 0.25, 1.0, 4.0]) * n
    X, y, rng = DATA.data[: n * k], DATA.target[: n * k], np.random.default_rng(1)
    display = plot(clone(SINGLE).set_params(batch_size=n), X, y, variances=variances, n_repeats=30)
    for v, error in zip(variances, display.error, strict=True):
        errors = []
        for _ in range(30):
            batch = rng.permutation(np.arange(n * k) % k)
            noisy = X @ DATA.coef - y - np.sqrt(v) * rng.standard_normal(n * k)
            gradients, _ = oracles.batch_gradients(X, noisy, batch, has_intercept=False)
            errors.append(oracles.relative_error(np.cov(gradients.T), DATA.covariance))
        assert error == pytest.approx(np.mean(errors), rel=0.12, abs=0.02)  # three standard errors


def test_at_zero_the_gradients_are_clean():
    X = DATA.data + 3.0
    estimator = clone(SINGLE).set_params(shuffle=False)
    display = plot(estimator, X, variances=[0.0], intercept=-1.0)
    residual = X @ DATA.coef - 1.0 - DATA.target
    gradients, _ = oracles.batch_gradients(X, residual, np.arange(N * K) // N)
    covariance = np.cov(gradients.T)
    # The intercept eliminated
    covariance = covariance[1:, 1:] - np.outer(*[covariance[0, 1:]] * 2) / covariance[0, 0]
    expected = oracles.relative_error(covariance, DATA.covariance)
    assert display.error[0] == pytest.approx(expected, rel=1e-10)
    assert display.low[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("loss", ["squared_error", "log_loss"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("assume_centered", [False, True])
def test_pairs_of_single_rows_are_off_by_their_scale_exactly(loss, weighted, assume_centered, rng):
    X, y = DATA.data[:200] + 2.0, (DATA.target[:200] > 0).astype(float)
    estimator = GradientCovarianceEstimator(
        batch_size=1, loss=loss, assume_centered=assume_centered, noise_scale=7.0
    )
    variances = [0.0, 0.3, 1.0, 2.5]
    weight = rng.integers(1, 4, size=200) if weighted else None
    for rows in (X, sparse.csr_array(X)):
        display = plot(
            estimator, rows, y, variances=variances, covariance=None, sample_weight=weight,
            n_repeats=2,
        )  # fmt: skip
        assert_allclose(display.error, [1.0, 0.7, 0.0, 1.5], atol=1e-12)
        assert_allclose(display.low, display.high, atol=1e-12)


def test_without_covariance_the_truth_is_that_of_the_rows(rng):
    X, weight = DATA.data + np.array([5.0, 0.0, 0.0, 0.0, 1.0]), rng.random(N * K)
    about_zero = {"assume_centered": True}
    for parameters, moment in (
        ({}, np.cov(X.T, aweights=weight, bias=True)),
        (about_zero, np.einsum("n,ni,nj->ij", weight, X, X) / weight.sum()),
    ):
        kwargs = {"variances": [N], "sample_weight": weight, "n_repeats": 1}
        estimator = clone(SINGLE).set_params(**parameters)
        own = plot(estimator, X, covariance=None, **kwargs)
        given = plot(estimator, X, covariance=moment, **kwargs)
        assert own.error[0] == pytest.approx(given.error[0], rel=1e-9)
        assert own.floor == pytest.approx(given.floor, rel=1e-9)


def test_the_v_has_its_minimum_at_the_calibrated_variance():
    display = plot()
    assert_allclose(display.variance[[0, 1, -1]], [0, N / 16, 16 * N])
    assert len(display.variance) == 18
    assert display.batch_size == N
    assert display.variance[np.argmin(display.error)] == N
    assert display.error[0] == pytest.approx(1 - 1 / N, abs=0.02)
    assert display.error[-1] == pytest.approx(15, rel=0.1)
    assert display.error.min() < display.floor
    assert np.all((display.low <= display.error) & (display.error <= display.high))
    assert display.floor == pytest.approx(
        expected_relative_error(np.linalg.eigvalsh(DATA.covariance), K)
    )


def test_far_from_the_optimum_single_noise_moves_the_minimum_and_pairs_do_not():
    far = {"coef": None}  # m^2 = 20, s^2 = 1
    variances = np.arange(0.5, 1.3, 0.05) * N
    single = plot(variances=variances, **far)
    assert single.variance[np.argmin(single.error)] / N == pytest.approx(1 - 21 / N, abs=0.16)
    pairs = plot(PAIRS, variances=variances, **far)
    assert pairs.variance[np.argmin(pairs.error)] / N == pytest.approx(1.0, abs=0.1)
    near = plot(PAIRS, variances=variances)
    assert_allclose(near.error, pairs.error, rtol=1e-9)  # pairs do not see the coefficients


def test_the_same_seeds_make_the_same_curve_and_serve_every_variance():
    one, two = (plot(variances=[N], n_repeats=2) for _ in range(2))
    assert one.error == two.error
    assert one.low < one.high
    both = plot(variances=[0.5 * N, N], n_repeats=2)
    assert both.error[1] == one.error[0]
    assert plot(variances=[N], n_repeats=2, random_state=1).error != one.error
    alone = plot(variances=[N], n_repeats=1)
    assert alone.low is alone.high is None
    assert alone.bands_ == []


def test_several_estimators_have_a_curve_each():
    estimators = {"small": clone(SINGLE).set_params(batch_size=32), "pairs": PAIRS}
    settings = {"coef": DATA.coef, "covariance": DATA.covariance, "random_state": 3}
    display = NoiseCalibrationDisplay.from_estimators(
        estimators, DATA.data, DATA.target, n_repeats=2, **settings
    )
    assert display.variance.shape == display.error.shape == display.low.shape == (2, 18)
    assert_array_equal(display.batch_size, [32, N])
    for i, (name, estimator) in enumerate(estimators.items()):
        alone = plot(estimator, n_repeats=2, random_state=3, name=name)
        assert_array_equal(alone.error, display.error[i])
        assert_array_equal(display.lines_[i].get_xdata(), alone.variance / alone.batch_size)
        assert alone.floor == display.floor[i]
        assert alone.names == [name]
    assert legend(display)[:2] == ["small", "pairs"]
    listed = NoiseCalibrationDisplay.from_estimators(
        [SINGLE], DATA.data, DATA.target, variances=[N], n_repeats=1, **settings
    )
    assert listed.names == ["GradientCovarianceEstimator"]
    assert plot(variances=[N]).names == ["single noise"]


def test_the_estimator_is_left_alone_and_what_mends_it_not_used():
    estimator = clone(SINGLE).set_params(
        noise_scale=3.0, correction="gaussian", shrinkage=0.5, random_state=4
    )
    before = estimator.get_params()
    display = plot(estimator, variances=[0.0, N])
    assert estimator.get_params() == before
    assert not hasattr(estimator, "covariance_")
    assert_array_equal(display.error, plot(variances=[0.0, N]).error)


def test_bad_calibration_is_the_subject_and_no_warning():
    with pytest.warns(CalibrationWarning):
        clone(SINGLE).fit(DATA.data, 200.0 * DATA.target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot(y=200.0 * DATA.target, variances=[0.0, N])


def test_inherent_noise_moves_the_calibrated_variance():
    rng = np.random.default_rng(2)
    y = DATA.data @ DATA.coef + np.sqrt(N / 2) * rng.standard_normal(N * K)
    known = clone(SINGLE).set_params(inherent_variance=N / 2)
    display = plot(known, y=y, variances=np.array([0.25, 0.5, 0.75, 1.0]) * N)
    assert display.inherent_variance == N / 2
    assert display.variance[np.argmin(display.error)] == N / 2
    assert_array_equal(display.references_[0].get_xdata(), [0.5, 0.5])
    assert "calibrated, n less the inherent noise" in legend(display)
    estimated = clone(SINGLE).set_params(inherent_variance="estimate")
    display = plot(estimated, y=y, variances=[N])
    assert display.inherent_variance == pytest.approx(N / 2, rel=0.05)


# --- the picture


def test_reference_lines_ticks_and_labels():
    display = plot(n_repeats=2)
    vertical, horizontal = display.references_
    assert_array_equal(vertical.get_xdata(), [1, 1])
    assert_array_equal(horizontal.get_ydata(), [display.floor] * 2)
    assert legend(display) == [
        "single noise", "range of 2 repeats", "calibrated, n", "expected sampling error"
    ]  # fmt: skip
    ax = display.ax_
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "log")
    assert ax.get_xlabel() == "Injected noise variance / batch size n"
    assert ax.get_ylabel() == "Relative error, operator norm"
    display.figure_.canvas.draw()
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks == ["0", "0.1", "1", "10"]
    assert ax.transData.transform((0.0, 1.0))[0] > ax.transAxes.transform((0.0, 0.0))[0]
    (band,) = display.bands_
    x = display.variance / N
    assert corners(band) >= set(zip(x, display.low, strict=True))
    assert corners(band) >= set(zip(x, display.high, strict=True))


def test_raw_variances_where_there_is_no_batch_size():
    display = NoiseCalibrationDisplay(variance=[16, 32, 64], error=[3.0, 1.0, 2.0]).plot()
    assert display.references_ == []
    assert display.ax_.get_xscale() == "log"
    assert display.ax_.get_xlabel() == "Injected noise variance"
    assert_array_equal(display.line_.get_xdata(), [16, 32, 64])
    display.figure_.canvas.draw()
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["16", "32", "64"]


@pytest.mark.parametrize(
    ("variance", "ticks"),
    [
        ([1.1, 1.2, 1.3], ["1.1", "1.3"]),  # no power of two between
        ([0.9, 1.1], ["0.9", "1.1"]),
        ([0, 3.0], ["0", "3"]),
        ([0.25, 2.0], ["0.25", "0.5", "1", "2"]),
    ],
)
def test_every_axis_has_ticks(variance, ticks):
    display = NoiseCalibrationDisplay(variance=variance, error=np.ones(len(variance))).plot()
    display.figure_.canvas.draw()
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ticks
    low, high = display.ax_.get_xlim()
    assert all(low <= at <= high for at in display.ax_.get_xticks())


def test_zero_alone_needs_no_logarithm():
    display = NoiseCalibrationDisplay(variance=[0.0], error=[1.0], batch_size=4).plot()
    assert display.ax_.get_xscale() == "linear"


def test_axes_that_are_shared_show_the_zero_of_either():
    first = NoiseCalibrationDisplay(variance=[0, 1, 2], error=[1.0, 0.5, 1.0], batch_size=1).plot()
    NoiseCalibrationDisplay(variance=[1, 2], error=[1.0, 2.0], batch_size=1).plot(first.ax_)
    assert first.ax_.get_xscale() == "symlog"
    first.figure_.canvas.draw()
    assert [t.get_text() for t in first.ax_.get_xticklabels()] == ["0", "1", "2"]


def test_curves_of_their_own_batch_sizes_have_lines_of_their_own():
    display = NoiseCalibrationDisplay(
        variance=[8.0, 16.0], error=np.ones((2, 2)), batch_size=[8, 16], floor=[0.1, 0.2],
        inherent_variance=[0.0, 4.0], low=0.5 * np.ones((2, 2)), high=2 * np.ones((2, 2)),
    ).plot()  # fmt: skip
    assert_array_equal([line.get_xdata() for line in display.lines_], [[1, 2], [0.5, 1]])
    xs = [line.get_xdata()[0] for line in display.references_[:2]]
    ys = [line.get_ydata()[0] for line in display.references_[2:]]
    assert (xs, ys) == ([1.0, 0.75], [0.1, 0.2])
    assert legend(display) == [
        "range of the repeats",
        "calibrated, n less the inherent noise, marked as its curve",
        "expected sampling error, marked as its curve",
    ]


def test_an_error_of_zero_is_left_out_and_the_legend_says_so():
    display = NoiseCalibrationDisplay(variance=[1, 2], error=[0.0, 1.0], names=["exact"]).plot()
    assert legend(display) == ["exact (1 of 2 zero, not shown)"]


def test_repr():
    display = NoiseCalibrationDisplay(variance=[0, 8], error=[1, 2], batch_size=8, names=["ours"])
    assert repr(display) == (
        "<NoiseCalibrationDisplay of 1 curve (ours) at 2 variances from 0 to 8, batch size 8>"
    )
    display = NoiseCalibrationDisplay(variance=[0, 8], error=np.ones((2, 2)), batch_size=[8, 4])
    assert repr(display).endswith("of 2 curves at 2 variances from 0 to 8, batch size 4 and 8>")
    display = NoiseCalibrationDisplay(variance=[0, 8], error=[1, 2])
    assert repr(display).endswith("from 0 to 8>")


# --- what is refused


def test_another_estimator():
    for estimator in (Ridge(), None):
        message = f"refits a GradientCovarianceEstimator, got {type(estimator).__name__}.*pass its"
        with pytest.raises(TypeError, match=message):
            plot(estimator)
        with pytest.raises(TypeError, match=message):
            NoiseCalibrationDisplay.from_estimators({"x": estimator}, DATA.data)
    with pytest.raises(TypeError, match="estimators must be a dict or a list"):
        NoiseCalibrationDisplay.from_estimators(SINGLE, DATA.data)


def test_no_noise():
    with pytest.raises(ValueError, match=r"noise='none' injects no noise.*noise='single' or"):
        plot(clone(SINGLE).set_params(noise="none"))


@pytest.mark.parametrize("variances", [[], 1.0, [-1.0, 2.0], [0.0, np.inf], [2.0, 1.0]])
def test_variances_must_increase_from_zero(variances):
    message = re.escape("variances must be one-dimensional, finite, >= 0 and increasing, such as [")
    with pytest.raises(ValueError, match=message):
        plot(variances=variances)


def test_repeats_must_be_a_positive_number():
    with pytest.raises(ValueError, match="n_repeats == 0, must be >= 1"):
        plot(n_repeats=0)
    with pytest.raises(TypeError, match="n_repeats must be an instance of int"):
        plot(n_repeats=2.5)


def test_covariances_that_are_none_of_these_features():
    for covariance, message in (
        (np.eye(4), r"covariance has shape \(4, 4\), but a covariance of shape \(5, 5\) is needed"),
        (np.eye(5)[0], r"covariance has shape \(5,\)"),
        (np.full((5, 5), np.nan), "covariance has 25 NaN or infinite entries"),
        (np.eye(5) + np.eye(5, k=1), "covariance is not symmetric: entries differ by 1 from"),
        (SINGLE, "covariance is a GradientCovarianceEstimator that is not fitted: fit it first"),
        (np.zeros((5, 5)), "The covariance to compare with is zero, so no error is relative to it"),
    ):
        with pytest.raises(ValueError, match=message):
            plot(covariance=covariance, variances=[N])


def test_a_fitted_estimator_may_be_the_truth():
    truth = GradientCovarianceEstimator(batch_size=1).fit(DATA.data)
    own = plot(covariance=None, variances=[N], n_repeats=1)
    assert plot(covariance=truth, variances=[N], n_repeats=1).error == pytest.approx(own.error)
