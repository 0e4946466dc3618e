"""Exact metrics against attacks that are run."""

import itertools
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris, make_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.metrics import accuracy_score, mean_absolute_error, mean_squared_error
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, LinearSVC

from sklearn_gradhess import metrics
from sklearn_gradhess.metrics import (
    adversarial_accuracy,
    adversarial_mean_absolute_error,
    adversarial_mean_squared_error,
    dual_norm,
    make_adversarial_scorer,
)

N, D = 40, 4
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, D)) @ _RNG.standard_normal((D, D)) * [1, 10, 0.1, 2] + [0, 5, 1, -3]
Y = X @ [1.0, -0.2, 8.0, 0.5] + _RNG.standard_normal(N)
WEIGHTS = _RNG.integers(0, 4, N)
SCALE = np.array([0.5, 3.0, 0.0, 1.0])
COVARIANCE = np.cov(X.T)
MODEL = LinearRegression().fit(X, Y)
W = MODEL.coef_
IRIS, SPECIES = load_iris(return_X_y=True)
TWO_CLASSES = make_classification(120, 5, n_informative=3, n_redundant=0, random_state=0)
METRICS = {
    "mse": (adversarial_mean_squared_error, mean_squared_error, np.square),
    "mae": (adversarial_mean_absolute_error, mean_absolute_error, np.abs),
}
CLASSIFIERS = {
    "multinomial": LogisticRegression(max_iter=5000),
    "scaled": make_pipeline(StandardScaler(), LogisticRegression()),
    "ridge": RidgeClassifier(),
    "lda": LinearDiscriminantAnalysis(),
    "one against rest": OneVsRestClassifier(LinearSVC(random_state=0)),
    "sgd": make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
}


def each(table):
    return pytest.mark.parametrize("name", table)


def vertices(lowest, highest):
    """All corners of a box, one a row."""
    return np.array(list(itertools.product(*zip(lowest, highest, strict=True))))


def ascended_error(root, radius, start, steps=50):
    """Absolute errors after projected ascent on (y - f(x + delta))^2, |root^-1 delta| <= radius."""
    ball = np.full((N, D), start) * radius / np.sqrt(D)
    for _ in range(steps):
        residual = MODEL.predict(X + ball @ root.T) - Y
        ball = ball + 10 * radius * residual[:, None] * (W @ root) / np.abs(residual).max()
        ball *= np.minimum(1, radius / np.linalg.norm(ball, axis=1))[:, None]
    return np.abs(Y - MODEL.predict(X + ball @ root.T))


@each(METRICS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("radius", [0.0, 0.3, 4.0])
def test_boxes_against_all_their_vertices(name, weights, radius):
    metric, _, loss = METRICS[name]
    corners = vertices(-SCALE, SCALE) * radius
    worst = np.max([loss(Y - MODEL.predict(X + delta)) for delta in corners], axis=0)
    found = metric(
        Y,
        MODEL.predict(X),
        radius=radius,
        dual_norm=dual_norm(W, np.inf, scale=SCALE),
        sample_weight=weights,
    )
    assert isinstance(found, float)
    assert_allclose(found, np.average(worst, weights=weights), rtol=1e-9)


@each(METRICS)
@pytest.mark.parametrize("norm", [2, "mahalanobis"])
@pytest.mark.parametrize("radius", [0.3, 4.0])
def test_ellipsoids_against_ascent(name, norm, radius):
    metric, _, loss = METRICS[name]
    covariance = COVARIANCE if norm == "mahalanobis" else None
    root = np.eye(D) if covariance is None else np.linalg.cholesky(covariance)
    dual = dual_norm(W, norm, covariance=covariance)
    found = metric(Y, MODEL.predict(X), radius=radius, dual_norm=dual)
    worst = np.maximum(*(ascended_error(root, radius, start) for start in (1, -1)))
    assert_allclose(found, loss(worst).mean(), rtol=1e-9)


@each(METRICS)
def test_no_random_attack_is_worse(name):
    metric, _, loss = METRICS[name]
    found = metric(Y, MODEL.predict(X), radius=0.5, dual_norm=dual_norm(W, 3))
    for delta in np.random.default_rng(1).standard_normal((200, N, D)):
        delta *= 0.5 / np.linalg.norm(delta, ord=3, axis=1, keepdims=True)
        assert loss(Y - MODEL.predict(X + delta)).mean() <= found


@each(METRICS)
def test_radius_zero_is_the_plain_metric(name):
    metric, plain, _ = METRICS[name]
    prediction = MODEL.predict(X)
    assert metric(Y, prediction, radius=0, dual_norm=7.0) == plain(Y, prediction)


@each(METRICS)
def test_a_curve_is_its_points(name):
    metric = METRICS[name][0]
    radii = np.linspace(0, 3, 6).reshape(2, 3)
    prediction = MODEL.predict(X)
    curve = metric(Y, prediction, radius=radii, dual_norm=2.0)
    assert curve.shape == radii.shape
    points = [metric(Y, prediction, radius=r, dual_norm=2.0) for r in radii.flat]
    assert_allclose(curve.ravel(), points, rtol=1e-14)


@each(METRICS)
def test_weights_are_repetitions(name):
    metric = METRICS[name][0]
    prediction = MODEL.predict(X)
    weighted = metric(Y, prediction, radius=0.7, dual_norm=2.0, sample_weight=WEIGHTS)
    repeated = metric(
        np.repeat(Y, WEIGHTS), np.repeat(prediction, WEIGHTS), radius=0.7, dual_norm=2.0
    )
    assert_allclose(weighted, repeated, rtol=1e-13)


@each(METRICS)
def test_several_outputs(name):
    metric = METRICS[name][0]
    truth, prediction = np.column_stack([Y, -Y]), np.column_stack([MODEL.predict(X), 0 * Y])
    settings = {"radius": [0.5, 1.0], "dual_norm": [2.0, 3.0]}
    raw = metric(truth, prediction, multioutput="raw_values", **settings)
    each = [
        metric(truth[:, j], prediction[:, j], radius=[0.5, 1.0], dual_norm=[2.0, 3.0][j])
        for j in (0, 1)
    ]
    assert_allclose(raw, np.transpose(each))
    assert_allclose(metric(truth, prediction, **settings), raw.mean(axis=1))
    weighted = metric(truth, prediction, multioutput=[1, 3], **settings)
    assert_allclose(weighted, raw @ [0.25, 0.75])
    one = metric(Y, prediction[:, 0], radius=1, dual_norm=2.0, multioutput="raw_values")
    assert one.shape == (1,)


@each(METRICS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": -0.1}, "radius must be finite and >= 0, got -0.1"),
        ({"radius": [0.1, np.nan]}, "radius must be finite and >= 0"),
        ({"radius": np.inf}, "radius must be finite and >= 0, got inf"),
        ({"dual_norm": -1.0}, "dual_norm must be finite and >= 0.*got -1.0"),
        ({"dual_norm": [1.0, 2.0]}, "one number or one for each of the 1 outputs"),
        ({"multioutput": "variance_weighted"}, "multioutput must be 'raw_values', 'uniform_av"),
        ({"multioutput": [1, 2]}, "one weight for each of the 1 outputs, got [1, 2]"),
        ({"y_pred": np.full(N, np.nan)}, "Input contains NaN"),
        ({"y_pred": Y[1:]}, "inconsistent numbers of samples"),
    ],
)
def test_bad_input_of_the_regression_metrics(name, settings, message):
    arguments = {"y_true": Y, "y_pred": Y, "radius": 1.0, "dual_norm": 1.0} | settings
    with pytest.raises(ValueError, match=".*".join(map(re.escape, message.split(".*")))):
        METRICS[name][0](arguments.pop("y_true"), arguments.pop("y_pred"), **arguments)


def linear_classifier(name, data):
    features, labels = data
    return CLASSIFIERS[name].fit(features, labels), features, labels


def margins(model, features, labels):
    """Margin of the right class over each other one: shape (n, n_classes), inf at the right one."""
    score = model.decision_function(features)
    if score.ndim == 1:
        score = np.column_stack([-score / 2, score / 2])
    index = np.searchsorted(model.classes_, labels)
    margin = np.take_along_axis(score, index[:, None], axis=1) - score
    np.put_along_axis(margin, index[:, None], np.inf, axis=1)
    return margin


def slopes(model, d):
    """Coefficients of the decision function in raw space, by unit steps from zero."""
    zero = model.decision_function(np.zeros((1, d)))
    coef = model.decision_function(np.eye(d)) - zero
    return np.column_stack([-coef / 2, coef / 2]) if coef.ndim == 1 else coef


@pytest.mark.parametrize("data", [(IRIS, SPECIES), TWO_CLASSES], ids=["three", "two"])
@each(CLASSIFIERS)
def test_at_radius_zero_it_is_the_accuracy(name, data):
    model, features, labels = linear_classifier(name, data)
    plain = accuracy_score(labels, model.predict(features))
    assert adversarial_accuracy(model, features, labels, radius=0) == plain


@pytest.mark.parametrize("data", [(IRIS, SPECIES), TWO_CLASSES], ids=["three", "two"])
@each(CLASSIFIERS)
@pytest.mark.parametrize("norm", [2, "mahalanobis"])
def test_attacks_flip_the_rows_that_are_not_robust_and_no_other(name, data, norm):
    model, features, labels = linear_classifier(name, data)
    covariance = np.cov(features.T) if norm == "mahalanobis" else None
    root = np.eye(features.shape[1]) if covariance is None else np.linalg.cholesky(covariance)
    radius, index = 0.4, np.searchsorted(model.classes_, labels)
    coef = slopes(model, features.shape[1])
    flipped = model.predict(features) != labels
    for rival in range(len(model.classes_)):
        # the linear problem's solution, a hair beyond the ball; where the rival is the truth, none
        slope = (coef[:, rival][:, None] - coef[:, index]).T @ root
        length = np.linalg.norm(slope, axis=1, keepdims=True)
        delta = (slope / np.where(length > 0, length, 1)) @ root.T
        attacked = features + radius * (1 + 1e-9) * delta
        flipped |= model.predict(attacked) != labels
    accuracy = adversarial_accuracy(
        model, features, labels, radius=radius, norm=norm, covariance=covariance
    )
    assert accuracy == np.mean(~flipped)
    assert 0 < accuracy < 1


@each(CLASSIFIERS)
def test_projected_ascent_flips_no_robust_row(name):
    model, features, labels = linear_classifier(name, (IRIS, SPECIES))
    coef, index = slopes(model, 4), SPECIES
    radius, rng = 0.3, np.random.default_rng(0)
    delta = rng.standard_normal(features.shape) * 0.1
    fooled = model.predict(features) != labels
    for _ in range(100):
        rival = np.argmin(margins(model, features + delta, labels), axis=1)
        slope = (coef[:, rival] - coef[:, index]).T
        delta = delta + 0.05 * slope / np.linalg.norm(slope, axis=1, keepdims=True)
        delta *= np.minimum(1, radius / np.linalg.norm(delta, axis=1))[:, None]
        fooled |= model.predict(features + delta) != labels
    accuracy = adversarial_accuracy(model, features, labels, radius=radius)
    assert accuracy <= np.mean(~fooled) <= accuracy + 0.02


def test_budgets_and_bounds_against_vertices():
    clipped = np.clip(IRIS, *np.quantile(IRIS, [0.2, 0.8], axis=0))
    model, features, labels = linear_classifier("multinomial", (clipped, SPECIES))
    scale, radius = np.array([1.0, 0.5, 0.0, 2.0]), 0.4
    lowest, highest = features.min(axis=0), features.max(axis=0)
    robust = {False: model.predict(features) == labels, True: model.predict(features) == labels}
    for i, x in enumerate(features):
        for cut in robust:
            low, high = x - radius * scale, x + radius * scale
            if cut:
                low, high = np.maximum(low, lowest), np.minimum(high, highest)
            robust[cut][i] &= np.all(model.predict(vertices(low, high)) == labels[i])
    for cut, bounds in ((False, None), (True, (lowest, highest))):
        found = adversarial_accuracy(
            model, features, labels, radius=radius, norm=np.inf, scale=scale, bounds=bounds
        )
        assert found == robust[cut].mean()
    assert robust[True].mean() > robust[False].mean()


def test_accuracy_takes_a_curve_weights_strings_and_unknown_labels():
    names = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
    model = LogisticRegression(max_iter=5000).fit(IRIS, names)
    radii = [0.0, 0.2, 0.8]
    weights = np.random.default_rng(0).integers(0, 3, len(IRIS))
    curve = adversarial_accuracy(model, IRIS, names, radius=radii, sample_weight=weights)
    for radius, value in zip(radii, curve, strict=True):
        repeated = adversarial_accuracy(
            model, np.repeat(IRIS, weights, axis=0), np.repeat(names, weights), radius=radius
        )
        assert_allclose(value, repeated, rtol=1e-13)
    assert np.all(np.diff(curve) < 0)
    other = np.where(names == "setosa", "other", names)
    assert adversarial_accuracy(model, IRIS, other, radius=0) == accuracy_score(
        other, model.predict(IRIS)
    )


def test_ties_are_not_robust():
    model = LogisticRegression()
    model.classes_, model.n_features_in_ = np.array([0, 1]), 1
    model.coef_, model.intercept_ = np.array([[1.0]]), np.array([0.0])
    line = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
    labels = [0, 0, 0, 1, 1]
    assert adversarial_accuracy(model, line, labels, radius=0) == 0.8
    assert adversarial_accuracy(model, line, labels, radius=1) == 0.4


def pairs():
    # three columns for three classes, but they are votes between pairs
    return SVC(kernel="linear", decision_function_shape="ovo").fit(IRIS, SPECIES)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (KNeighborsClassifier().fit(IRIS, SPECIES), "has no decision function.*LogisticRegr"),
        (RandomForestClassifier(5).fit(IRIS, SPECIES), "has no decision function.*LinearSVC"),
        (GradientBoostingClassifier(n_estimators=3).fit(IRIS, SPECIES), "is not affine"),
        (SVC().fit(IRIS, SPECIES), "SVC is not affine.*features=.*on_nonaffine='linearize'"),
        (
            make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression()).fit(
                IRIS, SPECIES
            ),
            "Pipeline is not affine in the columns under attack",
        ),
        (pairs(), "predicts another class than that of its largest decision value for"),
        (
            SVC(kernel="linear", decision_function_shape="ovo").fit(IRIS, np.arange(150) % 4),
            "has 6 columns for 4 classes: it votes between pairs.*OneVsRestClassifier",
        ),
        (
            FixedThresholdClassifier(
                LogisticRegression(max_iter=5000), threshold=2, response_method="decision_function"
            ).fit(IRIS[50:], SPECIES[50:]),
            "without a threshold of its own",
        ),
        (object(), "object has no decision_function"),
    ],
)
def test_classifiers_without_a_linear_decision_function(model, message):
    rows = slice(50 if "threshold" in message else 0, None)
    with pytest.raises(ValueError, match=".*".join(map(re.escape, message.split(".*")))):
        adversarial_accuracy(model, IRIS[rows], SPECIES[rows], radius=0.1)


@pytest.mark.parametrize("model", [LogisticRegression(), KNeighborsClassifier()])
def test_a_classifier_that_is_not_fitted(model):
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        adversarial_accuracy(model, IRIS, SPECIES, radius=0.1)


def test_linearized_accuracy():
    model = SVC(gamma=0.01).fit(IRIS[50:], SPECIES[50:])
    settings = {"radius": 0.0, "on_nonaffine": "linearize"}
    found = adversarial_accuracy(model, IRIS[50:], SPECIES[50:], **settings)
    assert found == model.score(IRIS[50:], SPECIES[50:])


BAD_ATTACKS = [
    ({"radius": -1.0}, "radius must be finite and >= 0, got -1.0"),
    ({"norm": 0.5}, "norm must be >= 1, inf or 'mahalanobis', got 0.5"),
    ({"norm": "l2"}, "norm must be >= 1, inf or 'mahalanobis', got 'l2'"),
    ({"norm": "mahalanobis"}, "norm='mahalanobis'.*covariance"),
    ({"covariance": np.eye(4)}, "covariance.*norm='mahalanobis'"),
    (
        {"covariance": np.eye(4), "norm": "mahalanobis", "scale": np.ones(4)},
        "The covariance fixes the unit of the radius, so scale has no place",
    ),
    (
        {"covariance": np.eye(3), "norm": "mahalanobis"},
        "covariance has shape (3, 3), but X has 4 columns, 4 of them under attack",
    ),
    ({"scale": np.ones(3)}, "scale has shape (3,), but X has 4 columns"),
    ({"scale": [1, 1, -1, 1]}, "scale must be finite and >= 0.*infinite for 2"),
    ({"scale": np.zeros(4)}, "scale is zero for every column"),
    ({"scale": "std"}, "scale='std', but it must be numbers.*X_train.std(axis=0)"),
    ({"scale": {"a": 1.0}}, "scale goes by column names, but X is no data frame"),
    ({"bounds": (0, 10)}, "bounds cut a box exactly, so they need norm=inf, got norm=2"),
    ({"bounds": (0, 10, 20), "norm": np.inf}, "bounds must be (lowest, highest)"),
    ({"bounds": (10, 0), "norm": np.inf}, "bounds are empty"),
    ({"bounds": (0, 2), "norm": np.inf}, "bounds exclude values that are in X, in the columns 0"),
    ({"bounds": (0, [1, 2]), "norm": np.inf}, "bounds has shape (2,), but X has 4 columns"),
    ({"features": ["a"]}, "features names ['a'], which are not columns of X"),
    ({"on_nonaffine": "ignore"}, "on_nonaffine must be 'raise', 'linearize' or 'search', got"),
    ({"sample_weight": -np.ones(150)}, "sample_weight must be >= 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_ATTACKS)
def test_bad_attacks(settings, message):
    model = LogisticRegression(max_iter=5000).fit(IRIS, SPECIES)
    with pytest.raises(ValueError, match=".*".join(map(re.escape, message.split(".*")))):
        adversarial_accuracy(model, IRIS, SPECIES, **({"radius": 0.1} | settings))


def test_bad_targets_of_the_accuracy():
    model = LogisticRegression(max_iter=5000).fit(IRIS, SPECIES)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        adversarial_accuracy(model, IRIS, SPECIES[1:], radius=0.1)
    with pytest.raises(ValueError, match="should be a 1d array"):
        adversarial_accuracy(model, IRIS, np.eye(3)[SPECIES], radius=0.1)


def test_a_frozen_feature_conditions_the_covariance():
    frozen = np.array([0, 1, 0, 0], dtype=bool)
    scorer = make_adversarial_scorer(
        0.3, "mahalanobis", covariance=COVARIANCE, features=np.flatnonzero(~frozen)
    )
    precision = np.linalg.inv(COVARIANCE)[np.ix_(~frozen, ~frozen)]
    root = np.linalg.cholesky(np.linalg.inv(precision))
    delta = np.zeros((N, D))
    slope = W[~frozen] @ root
    step = root @ slope / np.linalg.norm(slope)
    delta[:, ~frozen] = 0.3 * step
    assert_allclose(
        np.einsum("ij,jk,ik->i", delta, np.linalg.inv(COVARIANCE), delta), 0.09, rtol=1e-9
    )
    error = np.maximum(np.abs(Y - MODEL.predict(X + delta)), np.abs(Y - MODEL.predict(X - delta)))
    assert_allclose(-scorer(MODEL, X, Y), np.mean(error**2), rtol=1e-9)
    small = make_adversarial_scorer(
        0.3, "mahalanobis", covariance=np.linalg.inv(precision), features=np.flatnonzero(~frozen)
    )
    assert_allclose(small(MODEL, X, Y), scorer(MODEL, X, Y), rtol=1e-9)


def test_public_names():
    assert_array_equal(sorted(metrics.__all__), metrics.__all__)
    for name in ("gaussian_adversarial_risk", "gradient_adversarial_risk", "effective_coef"):
        assert callable(getattr(metrics, name))
