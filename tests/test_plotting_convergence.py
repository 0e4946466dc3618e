"""Convergence: the histories of models as they are, curves of other solvers, what is refused."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess import (
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
)
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.plotting import ConvergenceDisplay
from tests.displays import close_figures, legend  # noqa: F401

pytest.importorskip("matplotlib")

# With the exact Hessian a fit goes beyond the threshold
DATA = make_hessian_regression(60_000, 42, condition_number=1e4, random_state=0)
MODEL = PreconditionedSGDRegressor(preconditioner="sketch", random_state=0).fit(
    DATA.data, DATA.target
)
CLASSIFIER = PreconditionedSGDClassifier(preconditioner="sketch", random_state=0)
CLASSIFIER.fit(DATA.data, DATA.target > 0)
plot = ConvergenceDisplay.from_estimator


@pytest.mark.parametrize("model", [MODEL, CLASSIFIER], ids=["regressor", "classifier"])
@pytest.mark.parametrize("x", ["passes", "seconds", "iterations"])
@pytest.mark.parametrize("y", ["decrement", "loss"])
def test_the_curve_is_the_history(model, x, y):
    display = plot(model, x=x, y=y)
    history = model.history_
    abscissae = range(len(history)) if x == "iterations" else [record[x] for record in history]
    assert_array_equal(display.x[0], list(abscissae))
    assert_array_equal(display.y[0], [record[y] for record in history])
    assert_array_equal(display.line_.get_xdata(), display.x[0])
    assert_array_equal(display.line_.get_ydata(), display.y[0])
    assert display.names == [type(model).__name__]


def test_suboptimality_is_the_loss_above_the_best():
    best = 0.5 * np.mean((DATA.target - DATA.data @ DATA.coef) ** 2) - 0.001
    display = plot(MODEL, y="suboptimality", best_loss=best)
    assert_allclose(display.y[0], [record["loss"] - best for record in MODEL.history_])
    assert plot(MODEL, y="loss").y[0][0] == pytest.approx(display.y[0][0] + best)
    assert display.thresholds == [None]
    own = plot(MODEL, y="suboptimality", best_loss=MODEL.history_[-1]["loss"])
    assert legend(own) == [
        f"PreconditionedSGDRegressor (1 of {len(MODEL.history_)} zero, not shown)"
    ]


def test_the_threshold_is_where_the_solver_stops():
    display = plot(CLASSIFIER)
    (line,) = display.references_
    threshold = CLASSIFIER.tol * CLASSIFIER.history_[-1]["floor"]
    assert_array_equal(line.get_ydata(), [threshold] * 2)
    assert legend(display) == ["PreconditionedSGDClassifier", "stopping threshold (tol)"]
    assert CLASSIFIER.covariance_estimator_.batch_size_ > 1
    assert np.all(display.y[0][:-1] > threshold)
    assert plot(CLASSIFIER, y="loss").references_ == []


def test_single_noise_stops_by_the_count():
    model = PreconditionedSGDRegressor(noise="single", batch_size=100, random_state=0)
    model.fit(DATA.data, DATA.target)
    assert len(model.history_) > 1
    display = plot(model)
    assert display.thresholds == [None]
    assert display.references_ == []
    with pytest.raises(ValueError, match="'ours' knows no loss: with noise='single' it sees grad"):
        plot(model, y="loss", name="ours")


def test_no_threshold_where_nothing_is_left():
    X = DATA.data[:100]
    exact = PreconditionedSGDRegressor(random_state=0, tol=0.0).fit(X, X @ DATA.coef)
    assert plot(exact).references_ == []


def test_several_models_and_a_foreign_solver_beside_them():
    display = ConvergenceDisplay.from_estimators({"ours": MODEL, "classes": CLASSIFIER})
    marked = "stopping threshold (tol), marked as its curve"
    assert legend(display) == ["ours", "classes", marked]
    assert len(display.references_) == 2
    assert display.thresholds[0] == pytest.approx(MODEL.tol * MODEL.history_[-1]["floor"])
    foreign = ConvergenceDisplay(x=[[1, 2, 3]], y=[[1.0, 0.5, 0.0]], names=["theirs"])
    foreign.plot(display.ax_, color="black")
    theirs = "theirs (1 of 3 zero, not shown)"
    assert legend(foreign) == ["ours", "classes", theirs, marked]  # curves first
    assert foreign.line_.get_linestyle() == "-."
    listed = ConvergenceDisplay.from_estimators([MODEL, MODEL], x="iterations")
    assert listed.names == [f"PreconditionedSGDRegressor {i}" for i in (1, 2)]


def test_quantities_are_named_or_are_labels_themselves():
    ax = plot(MODEL).ax_
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert ax.get_xlabel() == "Passes over the data"
    assert ax.get_ylabel() == "Squared Newton decrement"
    assert plot(MODEL, x="seconds", y="loss").ax_.get_xlabel() == "Time (s)"
    data = {"x": [[1, 2]], "y": [[2.0, 1.0]]}
    ax = ConvergenceDisplay(**data, x_quantity="Epochs", y_quantity="Test error").plot().ax_
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Epochs", "Test error")
    ax = ConvergenceDisplay(**data, x_quantity="iterations", y_quantity="suboptimality").plot().ax_
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Rounds", "Loss above its minimum")


def test_thresholds_by_hand():
    display = ConvergenceDisplay(
        x=[[1, 2], [1, 2]], y=[[2.0, 1.0], [3.0, 1.0]], thresholds=[0.5, None]
    ).plot()
    assert [line.get_ydata()[0] for line in display.references_] == [0.5]


def test_small_data_are_one_point():
    X, y = load_diabetes(return_X_y=True)
    assert plot(PreconditionedSGDRegressor(random_state=0).fit(X, y)).line_.get_xdata().size == 1


def test_repr():
    display = ConvergenceDisplay(x=[[1, 2], [1]], y=[[2.0, 1.0], [3.0]], names=["a", "b"])
    assert repr(display) == (
        "<ConvergenceDisplay of decrement against passes: 2 curves (a, b) of 1 to 2 points>"
    )
    display = ConvergenceDisplay(x=[[1, 2]], y=[[2.0, 1.0]], y_quantity="loss")
    assert repr(display) == ("<ConvergenceDisplay of loss against passes: 1 curve of 2 points>")


# --- what is refused


def test_models_without_a_history():
    X, y = load_diabetes(return_X_y=True)
    streamed = PreconditionedSGDRegressor().partial_fit(X, y)
    for model in (streamed, LinearRegression().fit(X, y), GradientCovarianceEstimator().fit(X)):
        kind = type(model).__name__
        message = f"^{kind} has no history_, .*not in partial_fit. For other solv"
        with pytest.raises(TypeError, match=message):
            plot(model)
    with pytest.raises(TypeError, match=r"^'ours', a LinearRegression, has no history_, which"):
        plot(LinearRegression().fit(X, y), name="ours")
    with pytest.raises(
        TypeError, match=r"^Pipeline has no .* pass its last step, pipeline\[-1\]\. "
    ):
        plot(make_pipeline(StandardScaler(), PreconditionedSGDRegressor()).fit(X, y))
    with pytest.raises(NotFittedError):
        plot(PreconditionedSGDRegressor())
    with pytest.raises(TypeError, match=r"estimators must be a dict or a list.*use from_estimator"):
        ConvergenceDisplay.from_estimators(MODEL)


def test_unknown_quantities():
    message = r"x='epochs' must be one of \('passes', 'seconds', 'iterations'\), and y='decrement'"
    with pytest.raises(ValueError, match=message):
        plot(MODEL, x="epochs")
    message = r"y='risk' one of \('decrement', 'loss', 'suboptimality'\)"
    with pytest.raises(ValueError, match=message):
        plot(MODEL, y="risk")


def test_a_best_loss_goes_with_suboptimality():
    with pytest.raises(ValueError, match=r"best_loss=None with y='suboptimality': .* needs the"):
        plot(MODEL, y="suboptimality")
    with pytest.raises(ValueError, match=r"best_loss=0.5 with y='loss': .* no other y takes it"):
        plot(MODEL, y="loss", best_loss=0.5)


@pytest.mark.parametrize(
    ("x", "y"), [([[1, 2]], [[1.0]]), ([1, 2], [2.0, 1.0]), ([], []), ([[1]], [[1.0], [2.0]])]
)
def test_curves_must_be_lists_of_arrays_of_the_same_lengths(x, y):
    shapes = re.escape(str([np.shape(curve) for curve in x]))
    with pytest.raises(ValueError, match=f"x has curves of shapes {shapes}, y of .*: pass two lis"):
        ConvergenceDisplay(x=x, y=y).plot()
