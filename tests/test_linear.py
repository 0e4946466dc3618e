"""Links behind which a model is affine, and models that only seem to be."""

import functools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingClassifier, RandomForestRegressor, VotingRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import (
    GammaRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    TweedieRegressor,
)
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from sklearn_gradhess._link import LINKS
from sklearn_gradhess.linear_model import PreconditionedSGDRegressor
from sklearn_gradhess.metrics import (
    AdversarialRisk,
    adversarial_accuracy,
    effective_coef,
    make_adversarial_scorer,
)

X, Y = load_diabetes(return_X_y=True, scaled=False)
STD = X.std(axis=0)
CANCER, BENIGN = load_breast_cancer(return_X_y=True)
CANCER = StandardScaler().fit_transform(CANCER)[:, :6]
IRIS, SPECIES = load_iris(return_X_y=True)
N, D = X.shape


def scaled(*steps):
    return make_pipeline(StandardScaler(), *steps)


def transformed(func, inverse):
    return TransformedTargetRegressor(LinearRegression(), func=func, inverse_func=inverse)


BEHIND = {
    "poisson": (PoissonRegressor(), "log"),
    "gamma": (GammaRegressor(), "log"),
    "tweedie": (TweedieRegressor(power=1.5), "log"),
    "own poisson": (PreconditionedSGDRegressor(loss="poisson", max_iter=200), "log"),
    "log target": (transformed(np.log, np.exp), "log"),
    "log1p target": (transformed(np.log1p, np.expm1), "log1p"),
    "ridge": (Ridge(), "identity"),
    "search": (GridSearchCV(PoissonRegressor(), {"alpha": [1]}, cv=2), "log"),
}


@functools.cache
def behind(name):
    model, link = BEHIND[name]
    return scaled(model).fit(X, Y), link


@pytest.mark.parametrize("name", BEHIND)
def test_the_link_is_found_and_the_coefficients_behind_it(name):
    model, link = behind(name)
    result = effective_coef(model, X, link="auto")
    assert result.link == link
    assert result.is_affine
    raw = LINKS[link].raw(model.predict(X)[:, None])[:, 0]
    assert_allclose(X @ result.coef + result.intercept, raw, rtol=1e-9)
    if link != "identity":
        assert not effective_coef(model, X).is_affine


@pytest.mark.parametrize("name", BEHIND)
def test_the_risk_behind_a_link_is_attained_and_nothing_is_worse(name):
    model, link = behind(name)
    coef = effective_coef(model, X, link=link).coef
    scorer = make_adversarial_scorer(0.4, np.inf, feature_scale=STD)
    risk = scorer.explain(model, X, Y)
    assert isinstance(risk, AdversarialRisk)
    assert (risk.kind, risk.link) == ("exact", link)
    step = 0.4 * STD * np.sign(coef)
    worst = np.maximum(*(np.square(Y - model.predict(X + s * step)) for s in (1, -1)))
    assert_allclose(risk.value, worst.mean(), rtol=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        delta = 0.4 * STD * rng.choice([-1.0, 1.0], X.shape)
        assert np.square(Y - model.predict(X + delta)).mean() < risk.value


class ProbabilityOnly(ClassifierMixin, BaseEstimator):
    """A classifier that has no decision function."""

    def __init__(self, model):
        self.model = model

    def fit(self, X, y):
        self.model_ = self.model.fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict_proba(self, X):
        return self.model_.predict_proba(X)

    def predict(self, X):
        return self.classes_[np.argmax(self.predict_proba(X), axis=1)]


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "roc_auc"])
@pytest.mark.parametrize("data", [(IRIS, SPECIES), (CANCER, BENIGN)], ids=["three", "two"])
def test_probabilities_alone_are_as_good_as_a_decision_function(metric, data):
    if metric == "roc_auc" and data[0] is IRIS:
        data = (IRIS[50:], SPECIES[50:])
    model = LogisticRegression(max_iter=5000)
    scorer = make_adversarial_scorer(0.3, metric=metric)
    with_scores = scorer.explain(model.fit(*data), *data)
    without = scorer.explain(ProbabilityOnly(model).fit(*data), *data)
    assert (with_scores.link, without.link) == ("identity", "logit")
    assert (with_scores.kind, without.kind) == ("exact", "exact")
    assert_allclose(without.value, with_scores.value, rtol=1e-9)


def test_confident_probabilities_are_still_affine():
    steep = LogisticRegression().fit(CANCER, BENIGN)
    steep.coef_ = 10 * steep.coef_
    probability = steep.predict_proba(CANCER)[:, 1]
    assert np.sum((probability < 1e-12) | (probability > 1 - 1e-12)) > 50
    certain = ProbabilityOnly(steep)
    certain.model_, certain.classes_ = steep, steep.classes_
    result = effective_coef(
        certain,
        CANCER,
        response_method="predict_proba",
        link="auto",
    )
    assert result.is_affine
    assert_allclose(result.coef, steep.coef_[0], rtol=1e-6)
    for metric in ("accuracy", "roc_auc"):
        scorer = make_adversarial_scorer(0.05, metric=metric)
        assert_allclose(
            scorer(certain, CANCER, BENIGN),
            scorer(steep, CANCER, BENIGN),
            rtol=1e-9,
        )


def test_several_classes_have_centred_coefficients():
    model = LogisticRegression(max_iter=5000).fit(IRIS, SPECIES)
    result = effective_coef(model, IRIS, response_method="predict_proba", link="auto")
    assert_allclose(result.coef, model.coef_ - model.coef_.mean(axis=0), rtol=1e-6, atol=1e-9)


def test_a_calibrated_linear_classifier_is_exact_without_an_ensemble():
    model = CalibratedClassifierCV(LogisticRegression(), ensemble=False).fit(CANCER, BENIGN)
    scorer = make_adversarial_scorer(0.3, metric="log_loss")
    risk = scorer.explain(model, CANCER, BENIGN)
    assert (risk.kind, risk.link) == ("exact", "logit")
    coef = effective_coef(model, CANCER, response_method="predict_proba", link="logit").coef
    step = 0.3 * coef / np.linalg.norm(coef)
    p = model.predict_proba(CANCER + np.where(BENIGN, -1.0, 1.0)[:, None] * step)
    assert_allclose(risk.value, -np.log(p[np.arange(len(p)), BENIGN]).mean(), rtol=1e-9)


def holes(share=0.02):
    return np.where(np.random.default_rng(0).random(X.shape) < share, np.nan, X)


class Function(RegressorMixin, BaseEstimator):
    """A regressor that is a function."""

    def __init__(self, function=None):
        self.function = function

    def fit(self, X, y=None):
        return self

    def predict(self, X):
        return self.function(X)


HUGE = np.column_stack([np.random.default_rng(1).normal(size=(300, 2)), np.arange(300) * 1e7])
RARE = np.column_stack(
    [np.random.default_rng(2).normal(size=(1000, 2)), np.arange(1000) % 250 == 7]
)
ONE = int(np.argmax(X[:, 2]))


def one_row(rows):
    """A stump that one row of X contradicts, over a linear function."""
    return rows @ np.ones(D) + 50 * (rows[:, 2] > X[ONE, 2] - 1e-9)


def beyond(rows):
    """The same, out of the data, but within reach."""
    return rows @ np.ones(D) + 50 * (rows[:, 2] > X[ONE, 2] + 0.1 * STD[2])


def imputed(imputer, share=0.02):
    rows = holes(share)
    return make_pipeline(imputer, StandardScaler(), Ridge()).fit(rows, Y), rows, {}


def voting():
    y = np.where(np.arange(N) == ONE, 1e3, Y)
    model = VotingRegressor([("a", Ridge()), ("b", DecisionTreeRegressor(max_depth=1))])
    return model.fit(X, y), X, {}


SEEMING = {
    "imputer that regresses": lambda: imputed(IterativeImputer(random_state=0, max_iter=50)),
    "imputer of neighbours": lambda: imputed(KNNImputer()),
    "imputer of neighbours, one hole": lambda: imputed(KNNImputer(), 2e-4),
    "stump in an ensemble": voting,
    "stump at one row": lambda: (Function(one_row), X, {}),
    "stump within reach": lambda: (Function(beyond), X, {"features": [2]}),
    "frozen column of huge spread": lambda: (
        Function(lambda Z: 5 * np.tanh(2 * Z[:, 0]) + Z[:, 1] + Z[:, 2]),
        HUGE,
        {"features": [0, 1]},
    ),
    "slope of a rare level": lambda: (
        Function(lambda Z: Z[:, 0] * (1 + 3 * Z[:, 2]) + Z[:, 1]),
        RARE,
        {"features": [0, 1]},
    ),
}


@pytest.mark.parametrize("name", SEEMING)
@pytest.mark.filterwarnings("ignore:.*IterativeImputer.* Early stopping")
def test_what_only_seems_affine_is_refused(name):
    model, rows, settings = SEEMING[name]()
    unit = np.nanstd(rows, axis=0)
    scorer = make_adversarial_scorer(0.5, feature_scale=unit, **settings)
    with pytest.raises(ValueError, match="is not affine in the columns under attack"):
        scorer(model, rows, np.resize(Y, len(rows)))


@pytest.mark.parametrize("spread", [1e3, 1e7])
def test_a_frozen_column_of_huge_spread_does_no_harm_to_what_is_affine(spread):
    rows = HUGE * [1, 1, spread / 1e7]
    model = Function(lambda Z: 5 * Z[:, 0] + Z[:, 1] + Z[:, 2])
    error = np.linspace(-1, 1, 300)
    scorer = make_adversarial_scorer(0.5, features=[0, 1])
    found = scorer(model, rows, model.predict(rows) - error)
    expected = np.mean((np.abs(error) + 0.5 * np.hypot(5, 1)) ** 2)
    assert_allclose(-found, expected, rtol=1e-5)


def test_imputation_by_a_constant_is_affine_with_every_pattern():
    model, rows, _ = imputed(SimpleImputer())
    scorer = make_adversarial_scorer(0.1, feature_scale=STD)
    coef = model[-1].coef_ / model[1].scale_
    reach = 0.1 * np.linalg.norm(np.where(np.isnan(rows), 0, coef * STD), axis=1)
    expected = np.mean((np.abs(Y - model.predict(rows)) + reach) ** 2)
    assert_allclose(-scorer(model, rows, Y), expected, rtol=1e-10)


THRESHOLDS = [
    FixedThresholdClassifier(LogisticRegression(), threshold=0.6),
    FixedThresholdClassifier(LogisticRegression(), threshold=0.5001),
    TunedThresholdClassifierCV(LogisticRegression(), cv=2, scoring="recall"),
]


@pytest.mark.parametrize("model", THRESHOLDS)
def test_a_threshold_is_seen_where_no_row_lies_near_it(model):
    model = model.fit(CANCER, BENIGN)
    score = np.abs(model.estimator_.decision_function(CANCER))
    # far from any threshold, and right by any
    clear = (score > 2.5) & (model.predict(CANCER) == model.estimator_.predict(CANCER))
    message = "predicts another class than that of its largest decision value for .* where its"
    with pytest.raises(ValueError, match=message):
        adversarial_accuracy(model, CANCER[clear], BENIGN[clear], radius=0.1)
    # a ranking has no threshold
    ranking = make_adversarial_scorer(0.1, metric="roc_auc")
    plain = ranking(LogisticRegression().fit(CANCER, BENIGN), CANCER, BENIGN)
    assert_allclose(ranking(model, CANCER, BENIGN), plain, rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "step"),
    [
        (scaled(PolynomialFeatures(2), Ridge()), "'polynomialfeatures' (PolynomialFeatures)"),
        (scaled(RandomForestRegressor(3)), "'randomforestregressor' (RandomForestRegressor)"),
        (
            GridSearchCV(scaled(PolynomialFeatures(2), Ridge()), {"ridge__alpha": [1]}, cv=2),
            "'polynomialfeatures' (PolynomialFeatures)",
        ),
        (
            make_pipeline("passthrough", KNNImputer(), PolynomialFeatures(2), Ridge()),
            "'polynomialfeatures' (PolynomialFeatures)",
        ),
    ],
)
def test_the_step_that_is_not_affine_is_named(model, step):
    model.fit(X, Y)
    with pytest.raises(ValueError, match=re.escape(f"Its step {step} is not. Nor is it behind")):
        make_adversarial_scorer(0.1)(model, X, Y)


def test_what_cannot_be_looked_into_is_not_named():
    model = make_pipeline(Lists(), RandomForestRegressor(3)).fit(X, Y)
    with pytest.raises(ValueError, match=r"no closed form\. Nor is it behind"):
        make_adversarial_scorer(0.1)(model, X, Y)


class Lists(BaseEstimator):
    """A step that returns no array."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X.tolist()


def test_a_link_that_is_asked_for_is_the_only_one():
    model = scaled(PoissonRegressor()).fit(X, Y)
    assert make_adversarial_scorer(0.1, link="log").explain(model, X, Y).link == "log"
    with pytest.raises(ValueError, match="Pipeline is not affine"):
        make_adversarial_scorer(0.1, link="identity")(model, X, Y)
    classifier = LogisticRegression().fit(CANCER, BENIGN)
    scorer = make_adversarial_scorer(0.1, metric="accuracy", link="logit")
    assert scorer.explain(classifier, CANCER, BENIGN).link == "logit"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_adversarial_scorer(1.0, link="probit"), "link must be one of ['auto', 'ide"),
        (lambda: effective_coef(Ridge().fit(X, Y), X, link="probit"), "link must be one of ['aut"),
        (
            lambda: make_adversarial_scorer(0.1, metric="accuracy", link="log")(
                LogisticRegression().fit(CANCER, BENIGN), CANCER, BENIGN
            ),
            "link='log' is for predictions of regressors: use 'logit' or 'auto'",
        ),
        (
            lambda: make_adversarial_scorer(0.1, metric="accuracy")(
                KNeighborsClassifier().fit(CANCER, BENIGN), CANCER, BENIGN
            ),
            "has no decision function, and the log odds of its predict_proba are not affine",
        ),
        (
            lambda: make_adversarial_scorer(0.1, metric="accuracy")(
                GradientBoostingClassifier(n_estimators=3).fit(CANCER, BENIGN), CANCER, BENIGN
            ),
            "GradientBoostingClassifier is not affine",
        ),
    ],
)
def test_bad_links_and_classifiers(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_predictions_out_of_the_range_of_a_link_are_not_behind_it():
    negative = SimpleNamespace(predict=lambda rows: -np.exp(rows[:, 0] / 100))
    assert not effective_coef(negative, X, link="log").is_affine
    assert not effective_coef(negative, X, link="auto").is_affine


def test_links_and_their_inverses():
    raw = np.linspace(-20, 20, 41)[:, None]
    for name in ("identity", "log", "log1p", "logit"):
        link = LINKS[name]
        response = link.inverse(raw)
        assert link.is_defined(response)
        tolerance = 1e-14 * (1 + link.error(response))
        assert np.all(np.abs(link.raw(response) - raw) <= 4 * tolerance * (1 + np.abs(raw)))
    three = np.random.default_rng(0).normal(size=(5, 3))
    three -= three.mean(axis=1, keepdims=True)
    assert_allclose(LINKS["logit"].raw(LINKS["logit"].inverse(three)), three, atol=1e-12)


def test_categories_are_exact_for_additive_models_and_refused_for_others():
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pandas.DataFrame(X[:, 2:4], columns=["bmi", "bp"])
    table["group"] = rng.choice(list("uvw"), N)
    table["site"] = rng.integers(0, 3, N).astype(str)
    encoder = make_column_transformer((OneHotEncoder(), ["group", "site"]), remainder="passthrough")
    model = make_pipeline(encoder, Ridge()).fit(table, Y)
    scorer = make_adversarial_scorer(0.5, categories=["group", "site"])
    coef = effective_coef(model, table).coef[:2]
    step = 0.5 * coef / np.linalg.norm(coef)
    worst = np.zeros(N)
    for group in "uvw":
        for site in "012":
            for sign in (-1, 1):
                other = table.assign(group=group, site=site)
                other[["bmi", "bp"]] += sign * step
                worst = np.maximum(worst, np.abs(Y - model.predict(other)))
    assert_allclose(-scorer(model, table, Y), np.mean(worst**2), rtol=1e-10)
    one = make_adversarial_scorer(1e-9, categories=["group", "site"], n_columns=1)
    worst = np.abs(Y - model.predict(table))
    for name, levels in (("group", "uvw"), ("site", "012")):
        for level in levels:
            worst = np.maximum(worst, np.abs(Y - model.predict(table.assign(**{name: level}))))
    assert_allclose(-one(model, table, Y), np.mean(worst**2), rtol=1e-6)
    crossed = make_pipeline(encoder, PolynomialFeatures(2, interaction_only=True), Ridge())
    with pytest.raises(ValueError, match="is not affine"):
        scorer(crossed.fit(table, Y), table, Y)


@pytest.mark.parametrize("drop", [None, "first"])
def test_one_hot_groups_by_the_start_of_their_names(drop):
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    levels = pandas.Series(rng.choice(list("uvw"), N), name="group")
    dummies = pandas.get_dummies(levels, prefix="group", drop_first=drop == "first")
    table = pandas.concat([pandas.DataFrame(X[:, 2:4], columns=["bmi", "bp"]), dummies], axis=1)
    model = Ridge().fit(table, Y)
    scorer = make_adversarial_scorer(0.5, categories=["group"])
    effect = np.array([np.append([0.0] * (drop == "first"), model.coef_[2:])] * N)
    now = effect[0][[list("uvw").index(value) for value in levels]]
    reach = 0.5 * np.linalg.norm(model.coef_[:2])
    error = model.predict(table) - Y
    high = error + reach + effect.max(axis=1) - now
    low = error - reach + effect.min(axis=1) - now
    worst = np.maximum(np.abs(high), np.abs(low))
    assert_allclose(-scorer(model, table, Y), np.mean(worst**2), rtol=1e-10)


def test_whole_steps_are_all_that_is_asked_of_a_model():
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pandas.DataFrame({"x": rng.normal(size=N), "n": rng.integers(0, 9, N)})
    table["b"] = rng.random(N) < 0.5
    # affine at whole numbers alone
    model = Function(lambda t: (t["x"] + 2 * np.round(t["n"]) + 3 * (t["b"] > 0.5)).to_numpy(float))
    error = np.linspace(-1, 1, N)
    y = model.predict(table) - error
    scorer = make_adversarial_scorer(1.5, "inf")
    flip = np.where(table["b"], -3.0, 3.0)
    high, low = error + 1.5 + 2 + np.maximum(flip, 0), error - 1.5 - 2 + np.minimum(flip, 0)
    expected = np.mean(np.maximum(np.abs(high), np.abs(low)) ** 2)
    assert_allclose(-scorer(model, table, y), expected, rtol=1e-10)
    with pytest.raises(ValueError, match="is not affine"):
        make_adversarial_scorer(1.5, "inf", integer=None)(model, table, y)


@pytest.mark.parametrize("kind", ["seconds since 1970", "single precision"])
def test_a_link_where_the_exponential_overflows_or_is_coarse(kind):
    rows = X + np.where(np.arange(D) == 0, 1.6e9, 0.0)
    rows = rows if kind.startswith("seconds") else X.astype(np.float32)
    model = scaled(PoissonRegressor()).fit(rows, Y)
    risk = make_adversarial_scorer(0.2, feature_scale=STD).explain(model, rows, Y)
    assert (risk.kind, risk.link) == ("exact", "log")
