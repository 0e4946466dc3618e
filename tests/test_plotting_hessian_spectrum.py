"""Spectra: against dense eigenvalues, with bands that hold, and what is refused."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import eigvals
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from sklearn_gradhess import GradientCovarianceEstimator, PreconditionedSGDRegressor
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.plotting import HessianSpectrumDisplay
from tests.displays import close_figures, corners, legend  # noqa: F401

pytest.importorskip("matplotlib")

N, K, D = 8, 80, 20
DATA = make_hessian_regression(N * K, D, condition_number=1e6, excess_risk=2.0, random_state=0)
FITTED = GradientCovarianceEstimator(batch_size=N, random_state=0).fit(DATA.data)
C = D / K
EDGES = (1 - np.sqrt(C)) ** 2, (1 + np.sqrt(C)) ** 2
LAW = (1 - C) / EDGES[1], (1 - C) / EDGES[0]
plot = HessianSpectrumDisplay.from_estimator


def descending(matrix):
    return np.linalg.eigvalsh(matrix)[::-1]


# --- the data against oracles


def test_the_curve_is_the_eigenvalues_of_the_estimate_and_of_the_truth():
    display = plot(FITTED, covariance=DATA.covariance)
    for values, matrix, line in zip(
        display.eigenvalues, (FITTED.covariance_, DATA.covariance), display.lines_, strict=True
    ):
        assert_allclose(values, descending(matrix), rtol=1e-9)
        assert_array_equal(line.get_xdata(), np.arange(1, D + 1))
        assert_array_equal(line.get_ydata(), values)
    assert legend(display) == [
        "GradientCovarianceEstimator", "Given covariance", "expected from the number of gradients"
    ]  # fmt: skip
    assert plot(FITTED, name="ours").names == ["ours"]


def test_the_band_is_the_law_of_marchenko_and_pastur():
    display = plot(FITTED, covariance=DATA.covariance)
    values = descending(FITTED.covariance_)
    assert_allclose(display.low[0], values / EDGES[1], rtol=1e-9)
    assert_allclose(display.high[0], values / EDGES[0], rtol=1e-9)
    assert display.low[1] is display.high[1] is None
    (band,) = display.bands_
    index = np.arange(1, D + 1)
    assert corners(band) >= set(zip(index, display.low[0], strict=True))
    assert corners(band) >= set(zip(index, display.high[0], strict=True))


@pytest.mark.filterwarnings("ignore::sklearn_gradhess.CalibrationWarning")
@pytest.mark.parametrize("noise", ["antithetic", "single"])
@pytest.mark.parametrize("correction", ["auto", "none"])
def test_the_band_holds_the_truth(noise, correction, rng):
    inside, ax = [], plot(FITTED).ax_
    for seed in range(40):
        X = rng.standard_normal((N * K, D)) @ np.linalg.cholesky(DATA.covariance).T
        y = X @ DATA.coef + rng.standard_normal(N * K)
        estimator = GradientCovarianceEstimator(
            batch_size=N, noise=noise, inherent_variance=1.0, correction=correction,
            assume_centered=True, random_state=seed,
        ).fit(X, y)  # fmt: skip
        display = plot(estimator, ax=ax)
        truth = descending(DATA.covariance)
        inside.append((display.low[0] <= truth) & (truth <= display.high[0]))
    # The worst case over all truths: eigenvalues that lie apart keep a distance from its edges
    assert np.mean(inside) > 0.99
    assert np.mean(np.all(inside, axis=1)) > 0.9


def test_the_worst_case_of_the_band_is_a_truth_of_equal_eigenvalues(rng):
    inside, ax = [], plot(FITTED).ax_
    for seed in range(40):
        X = rng.standard_normal((N * K, D))
        display = plot(GradientCovarianceEstimator(batch_size=N, random_state=seed).fit(X), ax=ax)
        inside.append((display.low[0] <= 1) & (display.high[0] >= 1))
    assert 0.95 < np.mean(inside) < 1  # the outermost step over its edges now and then
    assert np.all(np.array(inside)[:, 1:-1])


def test_nuisance_of_single_noise_widens_the_band():
    estimator = GradientCovarianceEstimator(
        batch_size=N, noise="single", correction="none", noise_scale=2.0, random_state=0
    ).fit(DATA.data, DATA.target)
    share = estimator.excess_risk_ / (2 * N)
    assert share > 0
    display, values = plot(estimator), descending(estimator.covariance_)
    # an intercept that is off by a little widens it once, coefficients twice
    assert_allclose(display.low[0], values / EDGES[1] / (1 + 2 * share), rtol=1e-3)
    assert_allclose(display.high[0], values / EDGES[0] / (1 + share), rtol=1e-3)


@pytest.mark.filterwarnings("ignore::sklearn_gradhess.CalibrationWarning")
@pytest.mark.parametrize("inherent", [1.0, "estimate"])
def test_the_band_holds_the_truth_under_a_large_nuisance(inherent):
    # m^2 = n/2 and so many gradients that the nuisance is nearly all that the band is made of
    d, k, m2 = 5, 20_000, 4.0
    inside, ax = [], plot(FITTED).ax_
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((N * k, d))
        y = np.sqrt(m2) * X[:, 0] + rng.standard_normal(N * k)
        estimator = GradientCovarianceEstimator(
            batch_size=N, noise="single", inherent_variance=inherent, correction="none",
            assume_centered=True, random_state=seed,
        ).fit(X, y)  # fmt: skip
        display = plot(estimator, ax=ax)
        inside.append((display.low[0] <= 1) & (display.high[0] >= 1))
        # (1 + m^2/n) Sigma + Sigma u u' Sigma/n; an estimate from residuals has the first in tau.
        # Off by the Marchenko-Pastur edges at most, with c = d/k
        start = 1.0 if inherent == "estimate" else 1 + m2 / N
        seen = descending(estimator.covariance_)
        assert_allclose(seen, start + np.array([m2 / N, 0, 0, 0, 0]), rtol=3 * np.sqrt(d / k))
    # Equal eigenvalues, the worst case: the outermost step over its edges now and then
    assert np.mean(inside) > 0.85
    assert np.all(np.array(inside)[:, 1:-1])


@pytest.mark.parametrize("weighted", [False, True])
def test_the_band_counts_redraws_and_weights_by_what_they_tell(weighted):
    inside, ax = [], plot(FITTED).ax_
    for seed in range(40):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((N * K, D))
        w = rng.pareto(3, N * K) + 1 if weighted else None
        estimator = GradientCovarianceEstimator(
            batch_size=N, n_redraws=10, assume_centered=True, random_state=seed
        ).fit(X, sample_weight=w)
        display = plot(estimator, ax=ax)
        inside.append((display.low[0] <= 1) & (display.high[0] >= 1))
    # Were all redraws counted as independent gradients, .78 and .74 would be inside
    assert 0.95 < np.mean(inside) < 1


@pytest.mark.filterwarnings("ignore::sklearn_gradhess.CalibrationWarning")
@pytest.mark.parametrize(
    "parameters",
    [
        {"noise": "none"},
        {"shrinkage": 0.1},
        {"batch_size": 31},  # d + 1 gradients
        {"noise": "single", "correction": "none", "batch_size": 2},
    ],
)
def test_no_band_where_theory_has_none(parameters):
    estimator = GradientCovarianceEstimator(**{"batch_size": N} | parameters, random_state=0)
    estimator.fit(DATA.data, DATA.target, coef=np.full(D, 30.0))
    for display in (plot(estimator), plot(estimator, relative_to=DATA.covariance)):
        assert display.bands_ == display.references_ == []
    assert plot(LedoitWolf().fit(DATA.data)).low == [None]


def test_the_relative_spectrum_is_that_of_the_debiased_preconditioner():
    display = plot(FITTED, relative_to=DATA.covariance)
    product = (K - D - 1) / K * np.linalg.solve(FITTED.covariance_, DATA.covariance)
    assert_allclose(display.eigenvalues[0], np.sort(eigvals(product).real)[::-1], rtol=1e-6)
    assert_allclose(display.limits, [LAW])
    ys = [line.get_ydata()[0] for line in display.references_]
    assert_allclose(ys, LAW)
    assert display.bands_ == []
    assert display.low is None
    assert legend(display)[-1] == "limits, inverse Marchenko-Pastur law"
    assert display.ax_.get_ylabel() == r"Eigenvalue of $P^{-1}\Sigma$"
    assert 0.7 * LAW[0] < display.eigenvalues[0].min() < display.eigenvalues[0].max() < 1.4 * LAW[1]


def test_the_relative_spectrum_does_not_depend_on_units():
    unit = np.geomspace(1e-8, 1e8, D)
    scaled = GradientCovarianceEstimator(batch_size=N, random_state=0).fit(DATA.data * unit)
    truth = DATA.covariance * np.outer(unit, unit)
    assert_allclose(
        plot(scaled, relative_to=truth).eigenvalues[0],
        plot(FITTED, relative_to=DATA.covariance).eigenvalues[0],
        rtol=1e-5,
    )


def test_another_estimator_is_drawn_plainly():
    empirical = EmpiricalCovariance().fit(DATA.data)
    display = plot(empirical, relative_to=FITTED)
    inverse = np.linalg.solve(empirical.covariance_, FITTED.covariance_)
    assert_allclose(display.eigenvalues[0], np.sort(eigvals(inverse).real)[::-1], rtol=1e-6)
    assert display.limits == [None]
    assert plot(empirical, covariance=FITTED).low == [None, None]


def test_several_estimators_and_those_of_models():
    model = PreconditionedSGDRegressor(random_state=0).fit(DATA.data, DATA.target)
    estimators = {"ours": FITTED, "model's": model.covariance_estimator_}
    display = HessianSpectrumDisplay.from_estimators(estimators, covariance=DATA.covariance)
    assert display.names == ["ours", "model's", "Given covariance"]
    assert len(display.bands_) == 2
    k = model.covariance_estimator_.n_batches_
    edges = (1 - np.sqrt(D / k)) ** 2
    assert_allclose(display.high[1], display.eigenvalues[1] / edges)
    relative = HessianSpectrumDisplay.from_estimators(
        [FITTED, FITTED], covariance=DATA.covariance, relative_to=DATA.covariance
    )
    assert_allclose(relative.eigenvalues[2], 1.0, rtol=1e-7)
    assert relative.limits[2] is None
    assert relative.names[:2] == [f"GradientCovarianceEstimator {i}" for i in (1, 2)]


def test_matrices_by_name():
    given = {"small": np.diag([1.0, 4.0]), "large": np.diag([1.0, 2.0, 3.0])}
    display = HessianSpectrumDisplay.from_covariances(given, marker="x")
    assert_array_equal(display.eigenvalues[0], [4, 1])
    assert_array_equal(display.eigenvalues[1], [3, 2, 1])
    assert legend(display) == ["small", "large"]
    assert display.line_.get_marker() == "x"
    assert display.bands_ == []
    relative = HessianSpectrumDisplay.from_covariances(
        {"P": [[1.0, 0.0], [0.0, 4.0]]}, relative_to=np.eye(2)
    )
    assert_array_equal(relative.eigenvalues, [[1.0, 0.25]])


# --- the picture


def test_axes():
    display = plot(FITTED)
    ax = display.ax_
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert ax.get_xlabel() == "Index, in decreasing order"
    assert ax.get_ylabel() == "Eigenvalue of the Hessian"
    few = HessianSpectrumDisplay(eigenvalues=[[3.0, 2.0, 1.0]]).plot()
    few.figure_.canvas.draw()
    assert all(tick == round(tick) for tick in few.ax_.get_xticks())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_zero_up_to_rounding_is_left_out(dtype, rng):
    factor = rng.standard_normal((3, 8)).astype(dtype)
    display = HessianSpectrumDisplay.from_covariances({"rank 3": factor.T @ factor})
    assert_array_equal(display.eigenvalues[0][3:], 0.0)
    assert legend(display) == ["rank 3 (5 of 8 zero, not shown)"]
    assert_array_equal(np.isnan(display.line_.get_ydata()), [False] * 3 + [True] * 5)
    # The inverse of a singular preconditioner
    display = HessianSpectrumDisplay.from_covariances(
        {"rank 3": factor.T @ factor}, relative_to=np.eye(8)
    )
    assert_array_equal(np.isinf(display.eigenvalues[0]), [True] * 5 + [False] * 3)
    assert legend(display) == ["rank 3 (5 of 8 infinite, not shown)"]
    assert np.all(np.diff(display.eigenvalues[0][5:]) < 0)


def test_negative_eigenvalues_are_left_out():
    indefinite = np.diag([2.0, 1.0, 0.0, -1.0])
    display = HessianSpectrumDisplay.from_covariances({"H": indefinite})
    assert legend(display) == ["H (2 of 4 negative or zero, not shown)"]
    assert_array_equal(display.line_.get_ydata(), [2, 1, np.nan, np.nan])
    display = HessianSpectrumDisplay.from_covariances({"P": indefinite}, relative_to=np.eye(4))
    assert_array_equal(display.eigenvalues, [[np.inf, 1, 0.5, -1]])
    assert legend(display) == ["P (2 of 4 infinite or negative, not shown)"]


def test_a_band_ends_where_its_curve_does():
    values = np.array([4.0, 2.0, 0.0, np.nan])
    display = HessianSpectrumDisplay(eigenvalues=[values], low=[values / 2], high=[values * 2])
    (band,) = display.plot().bands_
    assert {x for x, _ in corners(band)} == {1, 2}
    assert legend(display)[0] == "2 of 4 NaN or zero, not shown"


def test_a_band_without_upper_limit_leaves_the_picture():
    values = np.array([[4.0, 2.0]])
    display = HessianSpectrumDisplay(eigenvalues=values, low=values / 2, high=values * np.inf)
    assert display.plot().ax_.get_ylim()[1] == pytest.approx(8.0)
    assert legend(display) == ["expected from the number of gradients, no upper limit"]


def test_repr():
    assert repr(plot(FITTED, name="ours")).startswith(
        "<HessianSpectrumDisplay of 1 curve (ours): 20 eigenvalues from "
    )
    two = HessianSpectrumDisplay(eigenvalues=[[3.0, 1.0], [2.0, 1.0, 0.5]])
    assert repr(two) == "<HessianSpectrumDisplay of 2 curves: 2 or 3 eigenvalues from 0.5 to 3>"


# --- what is refused


def test_estimators_without_a_covariance():
    with pytest.raises(NotFittedError):
        plot(GradientCovarianceEstimator())
    model = Ridge().fit(DATA.data, DATA.target)
    message = "^Ridge has no covariance_.*of a fitted model its covariance_estimator_.$"
    with pytest.raises(TypeError, match=message):
        plot(model)
    message = r"^'ours', a Pipeline, has no .* Of a Pipeline pass its last step, pipeline\[-1\]\.$"
    with pytest.raises(TypeError, match=message):
        plot(make_pipeline(model).fit(DATA.data, DATA.target), name="ours")
    with pytest.raises(TypeError, match=r"estimators must be a dict or a list.*use from_estimator"):
        HessianSpectrumDisplay.from_estimators(FITTED)
    with pytest.raises(ValueError, match="estimators is empty"):
        HessianSpectrumDisplay.from_estimators([])


def test_matrices_without_a_name():
    message = re.escape('covariances must be a dict of matrices by name, got ndarray. Pass {"name"')
    with pytest.raises(TypeError, match=message):
        HessianSpectrumDisplay.from_covariances(np.eye(2))
    with pytest.raises(ValueError, match=re.escape('covariances is empty. Pass {"name": matrix}.')):
        HessianSpectrumDisplay.from_covariances({})


def test_matrices_that_are_no_covariance():
    for matrix, message in (
        (np.ones((2, 3)), r"'H' has shape \(2, 3\), but .* \(n_features, n_features\) is needed"),
        (np.ones((0, 0)), r"'H' has shape \(0, 0\)"),
        ([[1.0, np.nan], [0.0, 1.0]], "'H' has 1 NaN or infinite entries. Did the fit overflow"),
        ([[1.0, 0.5], [0.0, 1.0]], "'H' is not symmetric: entries differ by 0.5 from their"),
    ):
        with pytest.raises(ValueError, match=message):
            HessianSpectrumDisplay.from_covariances({"H": matrix})


def test_matrices_of_other_features():
    message = r"covariance has shape \(2, 2\), but a covariance of shape \(20, 20\) is needed"
    with pytest.raises(ValueError, match=message):
        plot(FITTED, covariance=np.eye(2))
    message = r"'ours' has shape \(20, 20\), but a covariance of shape \(2, 2\) is needed"
    with pytest.raises(ValueError, match=message):
        plot(FITTED, relative_to=np.eye(2), name="ours")


@pytest.mark.parametrize("truth", [np.diag([1.0, 0.0]), np.ones((2, 2)), np.diag([1.0, -1.0])])
def test_a_singular_truth(truth):
    message = "relative_to is not positive definite: scaled to .* Leave out features"
    with pytest.raises(ValueError, match=message):
        HessianSpectrumDisplay.from_covariances({"P": np.eye(2)}, relative_to=truth)


def test_one_curve_is_a_list_of_one():
    display = HessianSpectrumDisplay(eigenvalues=[4.0, 2.0, 1.0])
    message = re.escape(
        "eigenvalues has curves of shapes [(), (), ()]: pass a list of one-dimensional arrays, "
        "[values] for one curve."
    )
    for use in (display.plot, display.__repr__):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match=r"eigenvalues has curves of shapes \[\]: pass a list"):
        HessianSpectrumDisplay(eigenvalues=[]).plot()


def test_an_estimator_by_the_name_of_the_truth():
    message = (
        "An estimator is called 'Given covariance', as is the matrix in covariance=. Give the "
        "estimator another name."
    )
    with pytest.raises(ValueError, match=message):
        plot(FITTED, covariance=DATA.covariance, name="Given covariance")
    assert legend(plot(FITTED, name="Given covariance"))[0] == "Given covariance"


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_named_columns_are_matched_by_name(library):
    frames = pytest.importorskip(library)
    names = [f"x{j}" for j in range(4)]
    rng = np.random.default_rng(0)
    matrix = np.cov(rng.standard_normal((50, 4)) * [1, 10, 100, 1000], rowvar=False)

    def frame(order):
        values = matrix[np.ix_(order, order)]
        return frames.DataFrame(dict(zip(np.array(names)[order].tolist(), values.T, strict=True)))

    shuffled = frame([2, 0, 3, 1])
    of = HessianSpectrumDisplay.from_covariances
    display = of({"a": frame([0, 1, 2, 3])}, relative_to=shuffled)
    assert_allclose(display.eigenvalues[0], 1)
    assert_allclose(of({"a": matrix}, relative_to=matrix).eigenvalues[0], 1)
    other = frames.DataFrame({"y": [1.0, 0.0], "x0": [0.0, 1.0]})
    with pytest.raises(ValueError, match=r"'a' is a covariance of the columns \['y', 'x0'\], but"):
        of({"a": other}, relative_to=frames.DataFrame({"x0": [1.0, 0.0], "x1": [0.0, 1.0]}))
