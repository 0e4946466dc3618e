"""Ten metrics under attack against brute force, and against scikit-learn where there is none."""

import itertools
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn import metrics as sk
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from sklearn_gradhess._deviances import LogisticLoss, PoissonLoss
from sklearn_gradhess._scaled_losses import HuberLoss
from sklearn_gradhess.metrics import (
    adversarial_accuracy,
    adversarial_loss,
    adversarial_mean_absolute_error,
    adversarial_mean_squared_error,
    dual_norm,
    make_adversarial_scorer,
)

RNG = np.random.default_rng(0)
N = 60
X = RNG.normal(size=(N, 3))
WEIGHTS = RNG.integers(0, 3, N)
POSITIVE = RNG.gamma(3.0, np.exp(0.3 * X[:, 0]))
BINARY = (X @ [1.0, -1.0, 0.5] + RNG.logistic(size=N) > 0).astype(int)
SPHERE = RNG.normal(size=(4000, 3))
SPHERE /= np.linalg.norm(SPHERE, axis=1, keepdims=True)
CORNERS = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
REGRESSION = {
    "mse": (sk.mean_squared_error, {}),
    "rmse": (sk.root_mean_squared_error, {}),
    "mae": (sk.mean_absolute_error, {}),
    "r2": (sk.r2_score, {}),
    "quantile": (sk.mean_pinball_loss, {"alpha": 0.8}),
    "poisson": (sk.mean_poisson_deviance, {}),
    "gamma": (sk.mean_gamma_deviance, {}),
}
LOG = PoissonRegressor(alpha=0.1).fit(X, POSITIVE)
AFFINE = Ridge(1.0).fit(X, POSITIVE + 20)


def worst_rows(measure, truth, predictions, *, highest=True):
    """Prediction of each row at the attack where the measure of that row alone is the worst."""
    worst = np.empty_like(predictions[0])
    for i in range(N):
        values = [measure(truth[i : i + 1], p[i : i + 1]) for p in predictions]
        worst[i] = predictions[np.argmax(values) if highest else np.argmin(values)][i]
    return worst


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize(
    ("model", "y"), [(LOG, POSITIVE), (AFFINE, POSITIVE + 20)], ids=["log", "id"]
)
def test_metrics_of_regressors_against_all_vertices(model, y, name, weights):
    measure, settings = REGRESSION[name]
    scorer = make_adversarial_scorer(0.4, np.inf, metric=name, quantile=0.8)
    predictions = np.array([model.predict(X + 0.4 * corner) for corner in CORNERS])
    alone = sk.mean_squared_error if name == "r2" else measure
    worst = worst_rows(lambda a, b: alone(a, b, **settings), y, predictions)
    expected = measure(y, worst, sample_weight=weights, **settings)
    found = scorer(model, X, y, sample_weight=weights)
    assert_allclose(found, expected if name == "r2" else -expected, rtol=1e-9)
    curve = scorer.curve(model, X, y, [0.0, 0.4], weights)
    plain = measure(y, model.predict(X), sample_weight=weights, **settings)
    assert_allclose(curve, [plain, expected], rtol=1e-9)


@pytest.mark.parametrize("name", REGRESSION)
def test_metrics_of_regressors_against_a_fine_sphere(name):
    measure, settings = REGRESSION[name]
    scorer = make_adversarial_scorer(0.4, metric=name, quantile=0.8)
    predictions = LOG.predict((X[:, None] + 0.4 * SPHERE).reshape(-1, 3)).reshape(N, -1)
    losses = np.square(predictions - POSITIVE[:, None])
    if name in ("poisson", "gamma", "quantile"):
        flat = np.broadcast_to(POSITIVE[:, None], predictions.shape)
        losses = {
            "poisson": 2 * (predictions - flat * np.log(predictions)),
            "gamma": 2 * (np.log(predictions) + flat / predictions),
            "quantile": np.maximum(0.8 * (flat - predictions), -0.2 * (flat - predictions)),
        }[name]
    worst = np.take_along_axis(predictions, losses.argmax(axis=1)[:, None], axis=1)[:, 0]
    expected = measure(POSITIVE, worst, **settings)
    found = scorer.curve(LOG, X, POSITIVE, 0.4)
    slack = 1 + 1e-12 if name != "r2" else 1 - 1e-12
    assert found <= expected * slack if name == "r2" else found >= expected / slack
    assert_allclose(found, expected, rtol=5e-3)


def test_repetitions_are_weights_in_every_metric():
    repeated, y = np.repeat(X, WEIGHTS, axis=0), np.repeat(POSITIVE, WEIGHTS)
    for name in REGRESSION:
        scorer = make_adversarial_scorer(0.4, metric=name)
        weighted = scorer(LOG, X, POSITIVE, sample_weight=WEIGHTS)
        assert_allclose(weighted, scorer(LOG, repeated, y), rtol=1e-10)
    labels = np.repeat(BINARY, WEIGHTS)
    model = LogisticRegression().fit(X, BINARY)
    for name in ("log_loss", "accuracy", "roc_auc"):
        scorer = make_adversarial_scorer(0.4, metric=name)
        weighted = scorer(model, X, BINARY, sample_weight=WEIGHTS)
        assert_allclose(weighted, scorer(model, repeated, labels), rtol=1e-10)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ranking_against_all_vertices(weights):
    model = LogisticRegression().fit(X, BINARY)
    scores = np.array([model.decision_function(X + 0.3 * corner) for corner in CORNERS])
    worst = np.where(BINARY == 1, scores.min(axis=0), scores.max(axis=0))
    scorer = make_adversarial_scorer(0.3, "inf", metric="roc_auc")
    expected = sk.roc_auc_score(BINARY, worst, sample_weight=weights)
    assert_allclose(scorer(model, X, BINARY, sample_weight=weights), expected, rtol=1e-12)
    plain = sk.roc_auc_score(BINARY, scores.mean(axis=0), sample_weight=weights)
    assert_allclose(scorer.curve(model, X, BINARY, 0.0, weights), plain, rtol=1e-12)
    names = np.array(["no", "yes"])[BINARY]
    again = LogisticRegression().fit(X, names)
    assert_allclose(scorer(again, X, names, sample_weight=weights), expected, rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("norm", [2, np.inf])
def test_log_loss_against_vertices_and_a_fine_sphere(classes, norm):
    labels = np.digitize(X @ [1.0, -1.0, 0.5] + RNG.normal(size=N), np.arange(classes - 1) - 0.5)
    model = LogisticRegression(C=10).fit(X, labels)
    points = CORNERS if norm == np.inf else SPHERE
    p = model.predict_proba((X[:, None] + 0.7 * points).reshape(-1, 3))
    own = np.repeat(labels, len(points))
    brute = -np.log(p[np.arange(len(p)), own]).reshape(N, -1).min(axis=1)
    scorer = make_adversarial_scorer(0.7, norm, metric="log_loss")
    found = scorer.curve(model, X, labels, 0.7)
    if norm == np.inf:
        assert_allclose(found, brute.mean(), rtol=1e-10)
    else:
        assert brute.mean() <= found * (1 + 1e-12)
        assert_allclose(found, brute.mean(), rtol=2e-3)
    plain = sk.log_loss(labels, model.predict_proba(X))
    assert_allclose(scorer.curve(model, X, labels, 0.0), plain, rtol=1e-10)


def test_log_loss_refuses_labels_that_were_not_fitted():
    model = LogisticRegression().fit(X[:30], np.repeat(["a", "b"], 15))
    message = "y has 2 labels that LogisticRegression was not fitted on, such as 'c': they have no "
    with pytest.raises(ValueError, match=message + "probability, and the log loss is infinite"):
        make_adversarial_scorer(0.1, metric="log_loss")(model, X[:4], ["a", "c", "b", "c"])


def test_log_loss_is_clipped_as_in_scikit_learn():
    model = LogisticRegression().fit(X, BINARY)
    model.coef_ = 1e3 * model.coef_
    scorer = make_adversarial_scorer(0.0, metric="log_loss")
    assert_allclose(
        scorer.curve(model, X, BINARY, 0.0), sk.log_loss(BINARY, model.predict_proba(X)), rtol=1e-9
    )


def two_outputs():
    y = np.column_stack([X @ [1.0, 2.0, 0.0], X @ [0.0, -1.0, 1.0]]) + RNG.normal(size=(N, 2))
    return LinearRegression().fit(X, y), y


@pytest.mark.parametrize("metric", ["mse", "r2"])
@pytest.mark.parametrize("norm", [2, "mahalanobis"])
def test_one_attack_on_all_outputs_against_a_fine_sphere(metric, norm):
    model, y = two_outputs()
    covariance = np.cov(X.T) if norm == "mahalanobis" else None
    root = np.eye(3) if covariance is None else np.linalg.cholesky(covariance)
    scorer = make_adversarial_scorer(
        0.8, norm, metric=metric, multioutput="joint", covariance=covariance
    )
    risk = scorer.explain(model, X, y)
    assert risk.kind == "exact"
    rows = (X[:, None] + 0.8 * SPHERE @ root.T).reshape(-1, 3)
    error = np.square(model.predict(rows).reshape(N, -1, 2) - y[:, None])
    if metric == "r2":
        error /= y.var(axis=0)
    brute = error.mean(axis=2).max(axis=1).mean()
    value = 1 - risk.value if metric == "r2" else risk.value
    assert brute <= value * (1 + 1e-12)
    assert_allclose(value, brute, rtol=2e-3)
    apart = make_adversarial_scorer(0.8, norm, metric=metric, covariance=covariance)
    bound = apart.explain(model, X, y)
    assert bound.kind == ("lower bound" if metric == "r2" else "upper bound")
    assert (bound.value < risk.value) == (metric == "r2")
    plain = {"mse": sk.mean_squared_error, "r2": sk.r2_score}[metric](y, model.predict(X))
    assert_allclose(scorer.curve(model, X, y, 0.0), plain, rtol=1e-10)


def test_one_attack_on_all_outputs_with_weights_budgets_and_missing_values():
    model, y = two_outputs()
    scale = np.array([1.0, 0.0, 2.0])
    scorer = make_adversarial_scorer(0.5, multioutput="joint", feature_scale=scale)
    rows = (X[:, None] + 0.5 * scale * SPHERE).reshape(-1, 3)
    error = np.square(model.predict(rows).reshape(N, -1, 2) - y[:, None]).mean(axis=2)
    expected = np.average(error.max(axis=1), weights=WEIGHTS)
    found = scorer.curve(model, X, y, 0.5, WEIGHTS)
    assert expected <= found * (1 + 1e-12)
    assert_allclose(found, expected, rtol=1e-2)
    holes = np.where(RNG.random(X.shape) < 0.2, np.nan, X)

    class Zero:
        def predict(self, rows):
            return model.predict(np.nan_to_num(rows))

    joint = make_adversarial_scorer(0.5, multioutput="joint")
    found, total = joint.curve(Zero(), holes, y, 0.5), 0.0
    for i in range(N):
        one = make_adversarial_scorer(
            0.5, multioutput="joint", feature_scale=np.where(np.isnan(holes[i]), 0.0, 1.0) + 1e-300
        )
        total += one.curve(model, np.nan_to_num(holes[i : i + 1]), y[i : i + 1], 0.5) / N
    assert_allclose(found, total, rtol=1e-9)


# --- adversarial_loss

RAW = RNG.normal(size=N)


def pinball(y, raw):
    return np.maximum(0.3 * (y - raw), -0.7 * (y - raw))


LOSSES = {
    "squared_error": ({}, RAW + 1, lambda y, f: np.square(y - f)),
    "mse": ({}, RAW + 1, lambda y, f: np.square(y - f)),
    "absolute_error": ({}, RAW + 1, lambda y, f: np.abs(y - f)),
    "mae": ({}, RAW + 1, lambda y, f: np.abs(y - f)),
    "quantile": ({"quantile": 0.3}, RAW + 1, pinball),
    "huber": ({"epsilon": 0.5}, RAW + 1, HuberLoss(0.5).value),
    "poisson": ({}, POSITIVE, lambda y, f: 2 * PoissonLoss().value(y, f)),
    "gamma": ({}, POSITIVE, lambda y, f: 2 * (y * np.exp(-f) + f - np.log(y) - 1)),
    "log_loss": ({}, BINARY, LogisticLoss().value),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_any_convex_loss_against_a_fine_interval(name, weights):
    settings, y, loss = LOSSES[name]
    radii, dual = [0.0, 0.5, 2.0], 0.7
    found = adversarial_loss(
        y, RAW, radius=radii, dual_norm=dual, loss=name, sample_weight=weights, **settings
    )
    moves = np.linspace(-1, 1, 101)[:, None]
    expected = [
        np.average(np.max(loss(y, RAW + r * dual * moves), axis=0), weights=weights) for r in radii
    ]
    assert_allclose(found, expected, rtol=1e-9)
    for same in (loss, type("Own", (), {"value": staticmethod(loss)})()):
        again = adversarial_loss(
            y, RAW, radius=radii, dual_norm=dual, loss=same, sample_weight=weights
        )
        assert_allclose(again, expected, rtol=1e-9)


def test_losses_of_several_outputs_and_those_with_a_metric_of_their_own():
    truth = np.column_stack([RAW + 1, -RAW])
    raw = RNG.normal(size=(N, 2))
    settings = {"radius": [0.3, 1.0], "dual_norm": [2.0, 3.0]}
    for multioutput in ("raw_values", "uniform_average", [1, 3]):
        for name, metric in (
            ("squared_error", adversarial_mean_squared_error),
            ("absolute_error", adversarial_mean_absolute_error),
        ):
            assert_allclose(
                adversarial_loss(truth, raw, loss=name, multioutput=multioutput, **settings),
                metric(truth, raw, multioutput=multioutput, **settings),
                rtol=1e-12,
            )
    assert isinstance(adversarial_loss(RAW, RAW, radius=1, dual_norm=1, loss=np.subtract), float)


def test_it_is_the_scorer_of_a_model_behind_a_link():
    dual = dual_norm(LOG.coef_)
    raw = np.log(LOG.predict(X))
    found = adversarial_loss(POSITIVE, raw, radius=0.4, dual_norm=dual, loss="poisson")
    scorer = make_adversarial_scorer(0.4, metric="poisson")
    assert_allclose(found, scorer.curve(LOG, X, POSITIVE, 0.4), rtol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of ['squared_error', "),
        ({"loss": None}, "or an object with such a method value, got None"),
        ({"loss": "poisson", "y": -POSITIVE}, "y_true must be finite and >= 0 for loss='poisson'"),
        ({"loss": "gamma", "y": 0 * RAW}, "y_true must be finite and > 0 for loss='gamma'"),
        ({"loss": "log_loss"}, "y_true must be finite and in [0, 1] for loss='log_loss'"),
        ({"loss": "mse", "y": RAW * np.nan}, "y_true must be finite for loss='mse'"),
        ({"loss": "quantile", "quantile": 2}, "quantile must lie in [0, 1] and epsilon be positiv"),
        ({"loss": "huber", "epsilon": 0}, "quantile must lie in [0, 1] and epsilon be positive"),
        ({"loss": "mse", "raw": RAW * np.inf}, "raw_prediction must be finite and of the shape"),
        ({"loss": "mse", "raw": RAW[1:]}, "inconsistent numbers of samples"),
        ({"loss": lambda y, f: np.mean(f)}, "loss must return one number for each of the (60, 1)"),
        ({"loss": "mse", "radius": -1}, "radius must be finite and >= 0, got -1"),
        ({"loss": "mse", "multioutput": [-1.0]}, "weights of outputs in multioutput must be >= 0"),
    ],
)
def test_bad_input_of_losses(settings, message):
    arguments = {"y": RAW, "raw": RAW, "radius": 1.0, "dual_norm": 1.0} | settings
    with pytest.raises(ValueError, match=re.escape(message)):
        adversarial_loss(arguments.pop("y"), arguments.pop("raw"), **arguments)


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [np.inf, 1.0]])
def test_weights_of_outputs_that_do_not_average(weights):
    both = np.column_stack([RAW, RAW])
    with pytest.raises(ValueError, match="must be >= 0, finite and not all zero"):
        adversarial_mean_squared_error(both, both, radius=1, dual_norm=1, multioutput=weights)


# --- searches and bad input


def test_a_search_over_many_metrics():
    names = [*REGRESSION]
    scoring = {name: make_adversarial_scorer(0.2, metric=name) for name in names}
    search = GridSearchCV(
        PoissonRegressor(), {"alpha": [0.1, 1.0]}, scoring=scoring, refit="poisson", cv=3
    ).fit(X, POSITIVE)
    for name in names:
        scores = search.cv_results_[f"mean_test_{name}"]
        assert np.all(np.isfinite(scores))
        assert name == "r2" or np.all(scores < 0)
    found = cross_validate(
        LogisticRegression(),
        X,
        BINARY,
        scoring={m: make_adversarial_scorer(0.2, metric=m) for m in ("log_loss", "roc_auc")},
        cv=3,
    )
    assert np.all(found["test_log_loss"] < 0)
    assert np.all((found["test_roc_auc"] > 0) & (found["test_roc_auc"] < 1))


def test_names_say_the_sign_and_the_bound():
    names = [make_adversarial_scorer(1.0, metric=m).__name__ for m in ("gamma", "r2", "roc_auc")]
    assert names == ["neg_adversarial_gamma", "adversarial_r2", "adversarial_roc_auc"]
    names = [
        make_adversarial_scorer(1.0, metric=m, on_nonaffine="search").__name__
        for m in ("mse", "accuracy")
    ]
    assert names == ["neg_adversarial_mse_lower_bound", "adversarial_accuracy_upper_bound"]


@pytest.mark.parametrize("metric", [*REGRESSION, "log_loss", "accuracy", "roc_auc"])
def test_a_search_finds_a_bound_and_an_affine_model_its_exact_risk(metric):
    settings = {"metric": metric, "on_nonaffine": "search", "max_queries": 30}
    scorer = make_adversarial_scorer(0.3, np.inf, **settings)
    is_score = metric in ("r2", "accuracy", "roc_auc")
    if metric in REGRESSION:
        tree, linear, y = DecisionTreeRegressor(max_depth=3), LOG, POSITIVE
    else:
        tree, linear, y = DecisionTreeClassifier(max_depth=3), LogisticRegression(), BINARY
    tree, linear = tree.fit(X, y), linear.fit(X, y)
    risk = scorer.explain(tree, X, y, [0.0, 0.3])
    assert risk.kind == ("upper bound" if is_score else "lower bound")
    assert risk.link is None
    assert risk.value[0] >= risk.value[1] if is_score else risk.value[0] <= risk.value[1]
    exact = scorer.explain(linear, X, y)
    assert exact.kind == "exact"
    plain = make_adversarial_scorer(0.3, np.inf, metric=metric)
    assert exact.value == plain.curve(linear, X, y, 0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "hinge"}, "metric must be one of ['mse', 'rmse', 'mae', 'r2', 'quantile', "),
        ({"quantile": 1.5}, "quantile must lie in [0, 1], got 1.5"),
        ({"multioutput": "raw_values"}, "must be 'uniform_average' or 'joint', got 'raw_values'"),
        ({"max_queries": 0}, "max_queries must be an integer >= 1, got 0"),
        ({"max_queries": 2.5}, "max_queries must be an integer >= 1, got 2.5"),
    ],
)
def test_bad_options(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_adversarial_scorer(1.0, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "mae"}, "closed form for metric='mse' or 'r2' under norm=2"),
        ({"norm": 1}, "closed form for metric='mse' or 'r2' under norm=2 or 'mahalanobis' alone"),
        ({"n_columns": 2}, "without n_columns and categories"),
    ],
)
def test_joint_attacks_without_a_closed_form(settings, message):
    model, y = two_outputs()
    scorer = make_adversarial_scorer(0.1, multioutput="joint", **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        scorer(model, X, y)


def test_joint_attacks_behind_a_link_and_on_constant_outputs():
    joint = make_adversarial_scorer(0.1, multioutput="joint")
    with pytest.raises(ValueError, match=r"affine behind the link 'log'. Use 'uniform_average'"):
        joint(LOG, X, POSITIVE)
    model, y = two_outputs()
    y[:, 0] = 1.0
    with pytest.raises(ValueError, match="metric='r2' needs outputs that vary"):
        make_adversarial_scorer(0.1, multioutput="joint", metric="r2")(model, X, y)


@pytest.mark.parametrize("metric", ["poisson", "gamma"])
def test_deviances_of_predictions_that_an_attack_takes_below_zero(metric):
    model = Ridge().fit(X, POSITIVE)
    assert model.predict(X).min() > 0
    scorer = make_adversarial_scorer(100.0, metric=metric)
    message = (
        f"metric='{metric}' needs positive predictions, but under a radius of 100 Ridge has 60"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        scorer(model, X, POSITIVE)
    with pytest.raises(ValueError, match=r"at rows of X Ridge has .* Use a model with a log link"):
        scorer(Ridge().fit(X, POSITIVE - 5), X, POSITIVE)


def test_a_radius_that_leaves_all_floats():
    with pytest.raises(ValueError, match=r"behind the link 'log' beyond all floats.*units of X"):
        make_adversarial_scorer(1e6)(LOG, X, POSITIVE)


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "log_loss"])
def test_labels_of_another_type(metric):
    model = LogisticRegression().fit(X, BINARY)
    scorer = make_adversarial_scorer(0.1, metric=metric)
    message = "labels that are texts, such as '.', but LogisticRegression was fitted on numbers"
    for texts in (BINARY.astype(str), BINARY.astype(str).astype(object)):
        with pytest.raises(ValueError, match=message):
            scorer(model, X, texts)
    named = LogisticRegression().fit(X, BINARY.astype(str))
    with pytest.raises(ValueError, match=r"labels that are numbers, such as ., but Log"):
        scorer(named, X, BINARY)
    assert scorer(model, X, BINARY.astype(float)) == scorer(model, X, BINARY)
    assert scorer(model, X, BINARY.astype(bool)) == scorer(model, X, BINARY)


def test_classifiers_without_what_a_metric_needs():
    with pytest.raises(ValueError, match="LinearSVC has no predict_proba, and log loss is of prob"):
        make_adversarial_scorer(0.1, metric="log_loss")(LinearSVC().fit(X, BINARY), X, BINARY)
    iris, species = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=5000).fit(iris, species)
    with pytest.raises(
        ValueError, match="'roc_auc' is for two classes, and LogisticRegression has"
    ):
        make_adversarial_scorer(0.1, metric="roc_auc")(model, iris, species)
    with pytest.raises(ValueError, match="y has 50 labels that LogisticRegression was not fitted"):
        make_adversarial_scorer(0.1, metric="log_loss")(model, iris, np.where(species, species, 9))


def test_accuracy_takes_what_the_scorer_takes():
    model = LogisticRegression().fit(X, BINARY)
    settings = {"n_columns": 1, "link": "logit"}
    found = adversarial_accuracy(model, X, BINARY, radius=0.3, norm="inf", **settings)
    scorer = make_adversarial_scorer(0.3, np.inf, metric="accuracy", **settings)
    assert found == scorer(model, X, BINARY)
    margin = np.where(BINARY, 1, -1) * model.decision_function(X)
    assert found == np.mean(margin > 0.3 * np.abs(model.coef_).max())
