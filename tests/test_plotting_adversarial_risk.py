"""The display of adversarial risk: it draws what the metrics say, and can be read."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.metrics import (
    adversarial_accuracy,
    adversarial_mean_squared_error,
    dual_norm,
    gradient_adversarial_risk,
    make_adversarial_scorer,
)
from sklearn_gradhess.plotting import AdversarialRiskDisplay
from tests.displays import close_figures, legend  # noqa: F401

matplotlib = pytest.importorskip("matplotlib")

X, Y = load_diabetes(return_X_y=True, scaled=False)
X, Y = X[:120], Y[:120]
STD = X.std(axis=0)
RADII = np.linspace(0.0, 0.4, 9)
MODEL = make_pipeline(StandardScaler(), Ridge()).fit(X, Y)
OTHER = make_pipeline(StandardScaler(), Ridge(100.0)).fit(X, Y)
LINEAR = LinearRegression().fit(X, Y)
POLYNOMIAL = make_pipeline(PolynomialFeatures(2), Ridge()).fit(X, Y)


def pairs(rng, n=16, k=60):
    rows = np.insert(rng.standard_normal((k, n, 3)), 0, 1.0, axis=-1)
    residual = rows @ [0.5, 1.0, 0.0, -1.0] + rng.standard_normal((k, n))
    noise = np.sqrt(n) * rng.standard_normal((k, n))
    return [np.einsum("knd,kn->kd", rows, residual + s * noise) / n for s in (-1, 1)]


# --- from_estimator and from_estimators


@pytest.mark.parametrize("norm", [1, 2, np.inf])
@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_the_curve_is_the_risk(metric, norm):
    settings = {"metric": metric, "feature_scale": STD, "features": [0, 2, 3]}
    display = AdversarialRiskDisplay.from_estimator(
        MODEL, X, Y, radii=RADII, norm=norm, sample_weight=np.arange(len(Y)), **settings
    )
    expected = [
        -make_adversarial_scorer(r, norm, **settings)(MODEL, X, Y, np.arange(len(Y))) for r in RADII
    ]
    assert_allclose(display.value, expected, rtol=1e-12)
    assert_array_equal(display.line_.get_xdata(), RADII)
    assert_array_equal(display.line_.get_ydata(), display.value)


def test_the_curve_is_the_closed_form():
    display = AdversarialRiskDisplay.from_estimator(LINEAR, X, Y)
    assert_array_equal(display.radii, np.linspace(0, 1, 51))
    expected = adversarial_mean_squared_error(
        Y, LINEAR.predict(X), radius=display.radii, dual_norm=dual_norm(LINEAR.coef_)
    )
    assert_allclose(display.value, expected, rtol=1e-9)


def test_bounds_and_missing_budgets_cut_the_curve():
    bounds = X.min(axis=0), X.max(axis=0)
    kwargs = {"radii": RADII, "norm": np.inf, "feature_scale": STD}
    cut = AdversarialRiskDisplay.from_estimator(MODEL, X, Y, bounds=bounds, **kwargs)
    free = AdversarialRiskDisplay.from_estimator(MODEL, X, Y, **kwargs)
    scorer = make_adversarial_scorer(0.4, np.inf, feature_scale=STD, bounds=bounds)
    assert cut.value[-1] == -scorer(MODEL, X, Y)
    assert cut.value[0] == pytest.approx(free.value[0])
    assert np.all(cut.value[1:] < free.value[1:])


def test_accuracy_of_a_classifier():
    iris, species = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(iris, species)
    display = AdversarialRiskDisplay.from_estimator(
        model, iris, species, radii=RADII, metric="accuracy", norm=np.inf
    )
    expected = adversarial_accuracy(model, iris, species, radius=RADII, norm=np.inf)
    assert_array_equal(display.value, expected)
    assert display.ax_.get_ylabel() == "Adversarial accuracy (share of rows)"


def test_covariance_of_the_mahalanobis_ball():
    covariance = np.cov(X.T)
    display = AdversarialRiskDisplay.from_estimator(
        LINEAR, X, Y, radii=RADII, norm="mahalanobis", covariance=covariance
    )
    dual = dual_norm(LINEAR.coef_, "mahalanobis", covariance=covariance)
    expected = adversarial_mean_squared_error(Y, LINEAR.predict(X), radius=RADII, dual_norm=dual)
    assert_allclose(display.value, expected, rtol=1e-9)
    assert display.ax_.get_xlabel() == "Radius of the attack (Mahalanobis distance)"


def test_several_models_have_a_curve_each_and_differ_without_colour():
    models = {f"alpha={a}": Ridge(a).fit(X, Y) for a in range(1, 8)}
    display = AdversarialRiskDisplay.from_estimators(models, X, Y, radii=RADII)
    assert display.value.shape == (7, len(RADII))
    for model, line, value in zip(models.values(), display.lines_, display.value, strict=True):
        alone = AdversarialRiskDisplay.from_estimator(model, X, Y, radii=RADII)
        assert_array_equal(line.get_ydata(), value)
        assert_allclose(value, alone.value, rtol=1e-12)
    styles = {(line.get_linestyle(), line.get_marker()) for line in display.lines_}
    assert len(styles) == 7
    assert legend(display) == list(models)
    assert display.line_ is display.lines_[0]
    assert display.bands_ == []


def test_models_of_a_list_are_called_by_their_classes():
    display = AdversarialRiskDisplay.from_estimators([MODEL, LINEAR, OTHER], X, Y, radii=RADII)
    assert legend(display) == ["Pipeline 1", "LinearRegression", "Pipeline 2"]
    one = AdversarialRiskDisplay.from_estimator(LINEAR, X, Y, radii=RADII)
    assert legend(one) == ["LinearRegression"]
    assert one.value.shape == RADII.shape
    named = AdversarialRiskDisplay.from_estimator(LINEAR, X, Y, radii=RADII, name="ours")
    assert legend(named) == ["ours"]


@pytest.mark.parametrize(
    ("arguments", "xlabel"),
    [
        ({}, r"Radius of the attack, $\ell_{2}$ norm (units of X)"),
        ({"norm": np.inf}, r"Radius of the attack, $\ell_{\infty}$ norm (units of X)"),
        (
            {"norm": 1.5, "feature_scale": STD},
            r"Radius of the attack, $\ell_{1.5}$ norm (multiples of feature_scale)",
        ),
    ],
)
def test_axes_are_labelled_with_units(arguments, xlabel):
    display = AdversarialRiskDisplay.from_estimator(MODEL, X, Y, radii=RADII, **arguments)
    assert display.ax_.get_xlabel() == xlabel
    assert display.ax_.get_ylabel() == "Adversarial mean squared error (squared units of y)"
    absolute = AdversarialRiskDisplay.from_estimator(MODEL, X, Y, radii=RADII, metric="mae")
    assert absolute.ax_.get_ylabel() == "Adversarial mean absolute error (units of y)"
    display.figure_.canvas.draw()  # the mathematics in the labels parses


# --- from_gradients


@pytest.mark.parametrize("target", ["observed", "clean"])
def test_the_band_is_the_interval(target, rng):
    plus, minus = pairs(rng)
    settings = {"coef": np.ones(3), "batch_size": 16, "has_intercept": True, "target": target,
                "norm": np.inf, "scale": [1.0, 2.0, 0.0], "confidence_level": 0.9}  # fmt: skip
    display = AdversarialRiskDisplay.from_gradients(plus, minus, radii=RADII, **settings)
    found = gradient_adversarial_risk(plus, minus, radius=RADII, **settings)
    assert_array_equal(display.line_.get_ydata(), found.value)
    assert_array_equal(display.low, found.low)
    assert_array_equal(display.high, found.high)
    (band,) = display.bands_
    corners = {tuple(vertex) for vertex in band.get_paths()[0].vertices}
    assert corners >= set(zip(RADII, found.low, strict=True))
    assert corners >= set(zip(RADII, found.high, strict=True))
    assert legend(display) == [f"From gradients, {target} target", "90 % interval"]
    assert "multiples of scale" in display.ax_.get_xlabel()


def test_a_band_without_upper_limit_leaves_the_picture(rng):
    noise = 4.0 * rng.standard_normal((100, 16))
    rows = rng.standard_normal((100, 16, 3))
    gradients = np.einsum("knd,kn->kd", rows, 30 * rows[..., 0] + noise) / 16
    with pytest.warns(CalibrationWarning, match="without upper limit"):
        display = AdversarialRiskDisplay.from_gradients(
            gradients, coef=np.ones(3), batch_size=16, target="clean", radii=RADII
        )
    assert np.all(np.isinf(display.high))
    assert legend(display)[-1] == "95 % interval, no upper limit"
    (band,) = display.bands_
    edge = band.get_paths()[0].vertices[:, 1].max()
    assert np.isfinite(edge)
    assert display.ax_.get_ylim()[1] == pytest.approx(edge)
    assert display.ax_.get_ylim()[1] > display.low.max()


# --- plot


def test_plot_draws_data_only_displays_anew():
    value = np.array([[1.0, 2.0], [2.0, 3.0]])
    display = AdversarialRiskDisplay(radii=np.array([0.0, 1.0]), value=value)
    assert display.plot() is display
    assert display.ax_.get_legend() is None
    first = display.figure_
    display.plot(names=["a", "b"])
    assert display.figure_ is not first
    assert legend(display) == ["a", "b"]
    band = AdversarialRiskDisplay(
        radii=np.array([0.0, 1.0]), value=value, low=value - 0.5, high=value + 0.5
    )
    assert len(band.plot().bands_) == 2


def test_displays_share_axes_and_still_differ_without_colour():
    _, ax = matplotlib.pyplot.subplots()
    for model, name in ((MODEL, "one"), (OTHER, "two")):
        display = AdversarialRiskDisplay.from_estimator(model, X, Y, radii=RADII, ax=ax, name=name)
        assert display.ax_ is ax
        assert display.figure_ is ax.figure
    assert len(ax.lines) == 2
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    assert legend(display) == ["one", "two"]


def test_keywords_override_the_style(rng):
    display = AdversarialRiskDisplay.from_gradients(
        *pairs(rng), coef=np.ones(3), batch_size=16, has_intercept=True,
        radii=RADII, names="ours", ls=":", color="black", label="mine",
        band_kwargs={"alpha": 0.7, "label": "band"},
    )  # fmt: skip
    assert display.line_.get_linestyle() == ":"
    assert display.line_.get_color() == "black"
    assert display.bands_[0].get_alpha() == 0.7
    assert legend(display) == ["mine", "band"]


def test_repr_says_what_is_drawn():
    display = AdversarialRiskDisplay.from_estimators(
        {"a": MODEL, "b": OTHER}, X, Y, radii=RADII, metric="mae"
    )
    assert repr(display) == (
        "<AdversarialRiskDisplay of mae: 2 curves (a, b) at 9 radii from 0 to 0.4>"
    )
    one = AdversarialRiskDisplay(radii=np.array([0.0, 2.0]), value=np.array([1.0, 2.0]))
    assert repr(one) == "<AdversarialRiskDisplay of mse: 1 curve at 2 radii from 0 to 2>"


# --- what is refused


@pytest.mark.parametrize(
    "radii", [[], 0.5, [[0.0, 1.0]], [-0.1, 0.5], [0.0, np.nan], [0.0, np.inf], [0.5, 0.1], [1, 1]]
)
def test_radii_must_increase(radii, rng):
    message = r"radii must be one-dimensional, finite, >= 0 and increasing, such as np\.linspace"
    with pytest.raises(ValueError, match=message):
        AdversarialRiskDisplay.from_estimator(MODEL, X, Y, radii=radii)
    with pytest.raises(ValueError, match=message):
        AdversarialRiskDisplay.from_gradients(
            *pairs(rng), coef=np.ones(3), batch_size=16, has_intercept=True, radii=radii
        )


def test_models_must_be_several():
    for one in (MODEL, LINEAR):
        message = f"a list of fitted models, got {type(one).__name__}.*use from_estimator"
        with pytest.raises(TypeError, match=message):
            AdversarialRiskDisplay.from_estimators(one, X, Y)
    for none in ([], {}):
        with pytest.raises(ValueError, match="estimators is empty"):
            AdversarialRiskDisplay.from_estimators(none, X, Y)


def test_the_message_names_the_model():
    with pytest.raises(ValueError, match="Pipeline is not affine") as caught:
        AdversarialRiskDisplay.from_estimators({"fine": MODEL, "cubic": POLYNOMIAL}, X, Y)
    assert caught.value.__notes__ == ["This is about the model 'cubic'."]
    display = AdversarialRiskDisplay.from_estimator(
        POLYNOMIAL, X, Y, radii=RADII, on_nonaffine="linearize"
    )
    assert np.all(np.diff(display.value) > 0)


def test_what_the_scorer_refuses_is_refused():
    with pytest.raises(ValueError, match=r"metric must be one of \['mse', .*\], got 'max'"):
        AdversarialRiskDisplay.from_estimator(MODEL, X, Y, metric="max")
    with pytest.raises(NotFittedError):
        AdversarialRiskDisplay.from_estimator(Ridge(), X, Y)


# --- the constant prediction, what is no closed form, and certified rows


@pytest.mark.parametrize(
    ("metric", "constant"),
    [
        ("mse", Y.var()),
        ("rmse", Y.std()),
        ("mae", np.abs(Y - np.median(Y)).mean()),
        ("r2", 0.0),
    ],
)
def test_a_risk_past_that_of_a_constant_is_remarked(metric, constant):
    kwargs = {"metric": metric, "radii": np.linspace(0, 2, 9), "feature_scale": STD}
    display = AdversarialRiskDisplay.from_estimators({"a": MODEL, "b": OTHER}, X, Y, **kwargs)
    assert display.constant == pytest.approx(constant)
    for worst, value in zip(display.worse_from_, display.value, strict=True):
        past = value < constant if metric == "r2" else value > constant
        assert worst == display.radii[past][0]
    (remark,) = display.ax_.texts
    assert remark.get_text() == "best constant prediction: past it a model is worse than none"
    assert remark.get_position()[1] == pytest.approx(constant)
    # once on axes that displays share
    again = AdversarialRiskDisplay.from_estimator(LINEAR, X, Y, ax=display.ax_, **kwargs)
    assert len(again.ax_.texts) == 1
    assert len(again.ax_.lines) == 3


def test_no_remark_where_models_are_better_than_a_constant():
    display = AdversarialRiskDisplay.from_estimator(
        MODEL, X, Y, radii=np.array([0.0, 0.01]), feature_scale=STD
    )
    assert display.worse_from_ == [np.inf]
    assert not display.ax_.texts


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "roc_auc"])
def test_constants_of_classifiers(metric):
    flowers, species = load_iris(return_X_y=True)
    label, weight = species == 0, np.linspace(1, 2, 150)
    model = LogisticRegression().fit(flowers, label)
    display = AdversarialRiskDisplay.from_estimator(
        model, flowers, label, metric=metric, radii=np.array([0.0, 5.0]), sample_weight=weight
    )
    p = np.average(label, weights=weight)
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    expected = {"accuracy": max(p, 1 - p), "log_loss": entropy, "roc_auc": 0.5}[metric]
    assert display.constant == pytest.approx(expected)
    assert display.worse_from_ == [5.0]


def test_equally_frequent_classes_have_a_constant_accuracy_of_one_of_them():
    flowers, species = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(flowers, species)
    radii = np.array([0.0, 5.0])
    plot = AdversarialRiskDisplay.from_estimator
    display = plot(model, flowers, species, metric="accuracy", radii=radii)
    certified = AdversarialRiskDisplay.from_certified(model, flowers, species, radii=radii)
    for shown in (display, certified):
        assert shown.constant == pytest.approx(1 / 3)
        assert shown.worse_from_ == [5.0]
    assert AdversarialRiskDisplay.from_certified(model, flowers, radii=radii).constant is None


def test_a_searched_curve_says_that_it_is_a_bound():
    display = AdversarialRiskDisplay.from_estimators(
        {"poly": POLYNOMIAL, "affine": MODEL}, X, Y, radii=RADII[:3], on_nonaffine="search",
        max_queries=20, feature_scale=STD,
    )  # fmt: skip
    assert legend(display) == ["poly (lower bound)", "affine"]
    settings = {"on_nonaffine": "search", "max_queries": 20, "feature_scale": STD}
    scorer = make_adversarial_scorer(0.0, **settings)
    assert_allclose(display.value[0], scorer.curve(POLYNOMIAL, X, Y, RADII[:3]))


def test_certified_rows_are_the_accuracy_against_the_radius():
    flowers, species = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(flowers, species)
    display = AdversarialRiskDisplay.from_certified(model, flowers, species, norm=np.inf)
    assert display.ax_.get_ylabel() == "Share of rows that no attack makes wrong"
    assert len(display.radii) == 201
    expected = adversarial_accuracy(
        model, flowers, species, radius=display.radii[1::20], norm=np.inf
    )
    assert_allclose(display.value[1::20], expected)
    assert display.value[-1] < 0.02 < display.value[0] < 1
    several = AdversarialRiskDisplay.from_certified(
        {"a": model, "b": model}, flowers, radii=RADII, feature_scale=[1, 2, 0, 1]
    )
    assert several.ax_.get_ylabel() == "Share of rows whose class no attack changes"
    assert legend(several) == ["a", "b"]
    assert_array_equal(several.value[:, 0], 1.0)
    assert "certified" in repr(several)


def test_what_cannot_be_certified_is_named():
    polynomial = make_pipeline(PolynomialFeatures(2), LogisticRegression(max_iter=1000))
    model = polynomial.fit(X[:, :3] / STD[:3], Y > 120)
    with pytest.raises(ValueError, match="not affine") as caught:
        AdversarialRiskDisplay.from_certified({"poly": model}, X[:, :3] / STD[:3])
    assert "This is about the model 'poly'." in caught.value.__notes__
