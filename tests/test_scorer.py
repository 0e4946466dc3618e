"""The scorer in all the places where scikit-learn takes one."""

import copy
import itertools
import pickle
import re

import joblib
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import check_scoring, get_scorer
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    learning_curve,
    validation_curve,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.metrics import (
    adversarial_accuracy,
    adversarial_mean_squared_error,
    dual_norm,
    make_adversarial_scorer,
)

X, Y = load_diabetes(return_X_y=True, scaled=False)
X, Y = X[:150], Y[:150]
N, D = X.shape
STD = X.std(axis=0)
IRIS, SPECIES = load_iris(return_X_y=True)
WEIGHTS = np.random.default_rng(0).integers(0, 3, N)
MODEL = make_pipeline(StandardScaler(), Ridge()).fit(X, Y)
SCORER = make_adversarial_scorer(0.1, feature_scale=STD)
GRID = {"ridge__alpha": [1.0, 10.0, 100.0, 1000.0]}
FOLDS = KFold(3)


def frame():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=load_diabetes().feature_names)
    table["group"] = pandas.Categorical(np.random.default_rng(0).choice(list("uvw"), N))
    return table


def encoded():
    encoder = make_column_transformer((OneHotEncoder(), ["group"]), remainder=StandardScaler())
    return make_pipeline(encoder, Ridge())


def expected(model, test, radius=0.1, weights=None):
    coef = model[-1].coef_ / model[0].scale_
    dual = dual_norm(coef, scale=STD)
    return -adversarial_mean_squared_error(
        Y[test], model.predict(X[test]), radius=radius, dual_norm=dual, sample_weight=weights
    )


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_it_returns_the_negative_risk_or_the_accuracy():
    everything = slice(None)
    assert isinstance(SCORER(MODEL, X, Y), float)
    assert_allclose(SCORER(MODEL, X, Y), expected(MODEL, everything), rtol=1e-12)
    assert_allclose(
        SCORER(MODEL, X, Y, sample_weight=WEIGHTS),
        expected(MODEL, everything, weights=WEIGHTS),
        rtol=1e-12,
    )
    absolute = make_adversarial_scorer(0.1, metric="mae")
    plain = np.abs(Y - MODEL.predict(X)).mean()
    norm = np.linalg.norm(MODEL[-1].coef_ / MODEL[0].scale_)
    assert_allclose(absolute(MODEL, X, Y), -plain - 0.1 * norm, rtol=1e-12)
    classifier = LogisticRegression(max_iter=5000).fit(IRIS, SPECIES)
    accuracy = make_adversarial_scorer(0.3, np.inf, metric="accuracy", features=[2, 3])
    assert accuracy(classifier, IRIS, SPECIES) == adversarial_accuracy(
        classifier, IRIS, SPECIES, radius=0.3, norm=np.inf, features=[2, 3]
    )


def test_weights_are_repetitions():
    bounds = (X.min(axis=0), X.max(axis=0))
    for scorer in (SCORER, make_adversarial_scorer(1.0, np.inf, bounds=bounds)):
        assert_allclose(
            scorer(MODEL, X, Y, sample_weight=WEIGHTS),
            scorer(MODEL, np.repeat(X, WEIGHTS, axis=0), np.repeat(Y, WEIGHTS)),
            rtol=1e-11,
        )


@pytest.mark.parametrize("metric", ["mse", "mae"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("radius", [0.3, 5.0])
def test_bounds_against_vertices(metric, scaled, radius):
    rng = np.random.default_rng(0)
    rows = np.round(rng.uniform(0, 1, (60, 4)), 1)  # many sit on a bound
    target = rows @ [3, -2, 1, 0.5] + rng.standard_normal(60)
    model = LinearRegression().fit(rows, target)
    scale = np.array([1.0, 0.2, 3.0, 0.0]) if scaled else np.ones(4)
    low, high = 0.0, np.array([1.0, 1.5, np.inf, 1.0])
    scorer = make_adversarial_scorer(
        radius, np.inf, metric=metric, bounds=(low, high), feature_scale=scale if scaled else None
    )
    worst = np.zeros(60)
    for i, x in enumerate(rows):
        ends = zip(
            np.maximum(x - radius * scale, low), np.minimum(x + radius * scale, high), strict=True
        )
        corners = np.array(list(itertools.product(*ends)))
        worst[i] = np.abs(model.predict(corners) - target[i]).max()
    power = {"mse": 2, "mae": 1}[metric]
    assert_allclose(-scorer(model, rows, target), np.mean(worst**power), rtol=1e-9)


def test_bounds_of_several_outputs():
    both = np.column_stack([Y, -2 * Y + X[:, 2]])
    model = Ridge().fit(X, both)
    bounds = (X.min(axis=0), X.max(axis=0))
    scorer = make_adversarial_scorer(1.0, np.inf, bounds=bounds)
    single = [scorer(Ridge().fit(X, y), X, y) for y in both.T]
    assert_allclose(scorer(model, X, both), np.mean(single), rtol=1e-10)
    wide = make_adversarial_scorer(1.0, np.inf, bounds=(-np.inf, np.inf))
    free = make_adversarial_scorer(1.0, np.inf)
    assert_allclose(wide(model, X, both), free(model, X, both), rtol=1e-10)


def test_a_missing_value_does_not_move():
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    model = make_pipeline(SimpleImputer(), Ridge()).fit(holes, Y)
    coef, error = model[-1].coef_, np.abs(Y - model.predict(holes))
    reach = 0.1 * np.linalg.norm(np.where(np.isnan(holes), 0, coef * STD), axis=1)
    assert_allclose(-SCORER(model, holes, Y), np.mean((error + reach) ** 2), rtol=1e-10)
    scorer = make_adversarial_scorer(0.1, "mahalanobis", covariance=np.cov(X.T))
    with pytest.raises(ValueError, match=r"missing values in columns under attack.*Impute them"):
        scorer(model, holes, Y)
    box = make_adversarial_scorer(0.1, np.inf, bounds=(0, 1000))
    reach = 0.1 * np.abs(np.where(np.isnan(holes), 0, coef)).sum(axis=1)
    assert_allclose(-box(model, holes, Y), np.mean((error + reach) ** 2), rtol=1e-10)


def test_sparse_features():
    rows = sparse.csr_array(np.where(np.median(X, axis=0) < X, X, 0))
    dense, model = rows.toarray(), Ridge().fit(rows, Y)
    for settings in ({}, {"norm": np.inf, "bounds": (0, dense.max(axis=0))}):
        scorer = make_adversarial_scorer(0.1, **settings)
        assert_allclose(scorer(model, rows, Y), scorer(model, dense, Y), rtol=1e-11)


def test_the_covariance_of_a_fitted_estimator():
    estimator = GradientCovarianceEstimator(random_state=0).fit(X)
    scorer = make_adversarial_scorer(0.1, "mahalanobis", covariance=estimator)
    matrix = make_adversarial_scorer(0.1, "mahalanobis", covariance=estimator.covariance_)
    assert scorer(MODEL, X, Y) == matrix(MODEL, X, Y)
    assert pickle.loads(pickle.dumps(scorer))(MODEL, X, Y) == scorer(MODEL, X, Y)
    assert "covariance=GradientCovarianceEstimator(random_state=0)" in repr(scorer)


def test_in_a_grid_search():
    scorer = make_adversarial_scorer(0.8, feature_scale=STD)
    search = GridSearchCV(MODEL, GRID, scoring=scorer, cv=FOLDS, n_jobs=2).fit(X, Y)
    for i, alpha in enumerate(GRID["ridge__alpha"]):
        for j, (train, test) in enumerate(FOLDS.split(X)):
            model = clone(MODEL).set_params(ridge__alpha=alpha).fit(X[train], Y[train])
            score = search.cv_results_[f"split{j}_test_score"][i]
            assert_allclose(score, expected(model, test, radius=0.8), rtol=1e-10)
    plain = GridSearchCV(MODEL, GRID, cv=FOLDS).fit(X, Y)
    assert search.best_params_["ridge__alpha"] > plain.best_params_["ridge__alpha"]
    assert_allclose(search.score(X, Y), scorer(search, X, Y))
    again = clone(search)
    assert repr(again.scoring) == repr(scorer)
    assert_array_equal(
        again.fit(X, Y).cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


def test_a_search_is_itself_scored():
    search = GridSearchCV(MODEL, GRID, cv=FOLDS).fit(X, Y)
    assert_allclose(SCORER(search, X, Y), SCORER(search.best_estimator_, X, Y), rtol=1e-12)


def test_in_a_randomized_search_and_curves():
    search = RandomizedSearchCV(MODEL, GRID, n_iter=2, scoring=SCORER, random_state=0, cv=FOLDS)
    assert np.isfinite(search.fit(X, Y).best_score_)
    _, train, test = learning_curve(MODEL, X, Y, scoring=SCORER, cv=FOLDS, train_sizes=[0.5, 1.0])
    assert np.all(train < 0)
    assert np.all(test < 0)
    curves = validation_curve(
        MODEL, X, Y, param_name="ridge__alpha", param_range=[1, 10], scoring=SCORER, cv=FOLDS
    )
    assert np.isfinite(curves).all()


def test_in_cross_validation_with_several_metrics():
    scoring = {"plain": "neg_mean_squared_error", "attacked": SCORER, "r2": get_scorer("r2")}
    found = cross_validate(
        MODEL, X, Y, scoring=scoring, cv=FOLDS, n_jobs=2, return_train_score=True
    )
    assert np.all(found["test_attacked"] < found["test_plain"])
    assert np.all(found["train_attacked"] < found["train_plain"])
    assert_array_equal(
        found["test_attacked"], cross_val_score(MODEL, X, Y, scoring=SCORER, cv=FOLDS)
    )


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS])
def test_in_permutation_importance(sample_weight):
    found = permutation_importance(
        MODEL, X, Y, scoring=SCORER, n_repeats=2, random_state=0, sample_weight=sample_weight
    )
    plain = permutation_importance(
        MODEL,
        X,
        Y,
        scoring="neg_mean_squared_error",
        n_repeats=2,
        random_state=0,
        sample_weight=sample_weight,
    )
    assert np.argmax(found.importances_mean) == np.argmax(plain.importances_mean)


def test_data_frames():
    table = frame()
    names = load_diabetes().feature_names
    by_name = {
        "dict": dict(zip(names, STD, strict=True)),
        "series": table[names].std(ddof=0),
        "array": np.append(STD, np.nan),
    }
    scorers = [make_adversarial_scorer(0.1, feature_scale=s) for s in by_name.values()]
    scores = [cross_val_score(encoded(), table, Y, scoring=s, cv=FOLDS) for s in scorers]
    assert_allclose(scores[0], scores[1], rtol=1e-12)
    assert_allclose(scores[0], scores[2], rtol=1e-12)
    model = encoded().fit(table, Y)
    some = make_adversarial_scorer(0.1, features=["bmi", "bp"], feature_scale={"bmi": 2, "bp": 3})
    coef = model[-1].coef_[3:] / model[0].named_transformers_["remainder"].scale_
    dual = np.hypot(2 * coef[names.index("bmi")], 3 * coef[names.index("bp")])
    error = Y - model.predict(table)
    assert_allclose(-some(model, table, Y), np.mean((np.abs(error) + 0.1 * dual) ** 2))
    boxed = make_adversarial_scorer(
        0.1, np.inf, features=["bmi"], bounds=({"bmi": table["bmi"].min()}, {"bmi": np.inf})
    )
    assert -boxed(model, table, Y) > np.mean(error**2)


def test_sample_weights_without_routing():
    search = GridSearchCV(MODEL, GRID, scoring=SCORER, cv=FOLDS)
    # scikit-learn takes scorers that accept weights at their word
    assert search.set_params(estimator=Ridge(), param_grid={"alpha": [1.0]}).fit(
        X, Y, sample_weight=WEIGHTS
    )
    for j, (train, test) in enumerate(FOLDS.split(X)):
        model = Ridge().fit(X[train], Y[train], sample_weight=WEIGHTS[train])
        score = SCORER(model, X[test], Y[test], sample_weight=WEIGHTS[test])
        assert_allclose(search.cv_results_[f"split{j}_test_score"][0], score, rtol=1e-12)
    several = GridSearchCV(
        Ridge(),
        {"alpha": [1.0]},
        scoring={"a": SCORER, "b": "neg_mean_squared_error"},
        refit="a",
        cv=FOLDS,
    ).fit(X, Y, sample_weight=WEIGHTS)
    assert_allclose(several.cv_results_["mean_test_a"], search.cv_results_["mean_test_score"])


@pytest.mark.parametrize("several", [False, True])
def test_sample_weights_with_routing(routing, several):
    model = Ridge().set_fit_request(sample_weight=True)
    scores = {}
    for wanted in (True, False, "other"):
        scorer = copy.deepcopy(SCORER)
        assert scorer.set_score_request(sample_weight=wanted) is scorer
        scoring = {"a": scorer, "b": get_scorer("r2").set_score_request(sample_weight=False)}
        params = {"sample_weight": WEIGHTS}
        if wanted == "other":
            params["other"] = WEIGHTS
        found = cross_validate(
            model, X, Y, scoring=scoring if several else scorer, cv=FOLDS, params=params
        )
        scores[wanted] = found["test_a" if several else "test_score"]
    for j, (train, test) in enumerate(FOLDS.split(X)):
        fitted = Ridge().fit(X[train], Y[train], sample_weight=WEIGHTS[train])
        plain = SCORER(fitted, X[test], Y[test])
        weighted = SCORER(fitted, X[test], Y[test], sample_weight=WEIGHTS[test])
        assert_allclose(
            [scores[wanted][j] for wanted in (True, "other", False)], [weighted, weighted, plain]
        )


def test_weights_that_nobody_asked_for_are_an_error_with_routing(routing):
    model = Ridge().set_fit_request(sample_weight=True)
    with pytest.raises(UnsetMetadataPassedError, match=r"set_score_request"):
        cross_validate(model, X, Y, scoring=SCORER, params={"sample_weight": WEIGHTS})
    search = GridSearchCV(model, {"alpha": [1.0]}, scoring=SCORER)
    with pytest.raises(UnsetMetadataPassedError, match=r"set_score_request"):
        search.fit(X, Y, sample_weight=WEIGHTS)


def test_searches_route_to_the_scorer(routing):
    model = Ridge().set_fit_request(sample_weight=True)
    scorer = copy.deepcopy(SCORER).set_score_request(sample_weight=True)
    search = clone(GridSearchCV(model, {"alpha": [1.0]}, scoring=scorer, cv=FOLDS))
    search.fit(X, Y, sample_weight=WEIGHTS)
    with sklearn.config_context(enable_metadata_routing=False):
        plain = GridSearchCV(Ridge(), {"alpha": [1.0]}, scoring=SCORER, cv=FOLDS)
        plain.fit(X, Y, sample_weight=WEIGHTS)
    assert_allclose(search.best_score_, plain.best_score_)
    assert search.score(X, Y, sample_weight=WEIGHTS) == SCORER(search, X, Y, sample_weight=WEIGHTS)


def test_requests_survive_copies(routing):
    scorer = make_adversarial_scorer(1.0).set_score_request(sample_weight="weights")
    for again in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        requests = again.get_metadata_routing().score.requests
        assert requests == {"sample_weight": "weights"}
    assert make_adversarial_scorer(1.0).get_metadata_routing().score.requests == {
        "sample_weight": None
    }


def test_without_routing_there_are_no_requests():
    with pytest.raises(RuntimeError, match=r"sklearn.set_config\(enable_metadata_routing=True\)"):
        make_adversarial_scorer(1.0).set_score_request(sample_weight=True)


@pytest.mark.parametrize("library", [pickle, joblib])
def test_it_is_pickled(library, tmp_path):
    scorer = make_adversarial_scorer(1.0, np.inf, bounds=(0, 1000), features=[1, 2])
    with open(tmp_path / "scorer", "wb") as file:
        library.dump(scorer, file)
    with open(tmp_path / "scorer", "rb") as file:
        again = library.load(file)
    assert repr(again) == repr(scorer)
    assert again(MODEL, X, Y) == scorer(MODEL, X, Y)


@pytest.mark.parametrize(
    ("scorer", "text"),
    [
        (make_adversarial_scorer(0.5), "make_adversarial_scorer(0.5)"),
        (SCORER, "make_adversarial_scorer(0.1, feature_scale=<array of shape (10,)>)"),
        (
            make_adversarial_scorer(
                1, np.inf, metric="mae", features=["a", "b"], bounds=(0, STD), on_nonaffine="raise"
            ),
            "make_adversarial_scorer(1, norm=inf, metric='mae', features=['a', 'b'], "
            "bounds=(0, <array of shape (10,)>))",
        ),
        (
            make_adversarial_scorer(1e-3, feature_scale={"a": 1}, on_nonaffine="linearize"),
            "make_adversarial_scorer(0.001, feature_scale={'a': 1}, on_nonaffine='linearize')",
        ),
    ],
)
def test_it_prints_as_it_was_made(scorer, text):
    assert repr(scorer) == text


def test_its_name_and_the_places_that_ask_for_one():
    assert make_adversarial_scorer(1.0).__name__ == "neg_adversarial_mse"
    assert make_adversarial_scorer(1.0, metric="accuracy").__name__ == "adversarial_accuracy"
    assert check_scoring(MODEL, scoring=SCORER) is SCORER


def test_what_is_not_affine_is_refused_or_linearized():
    forest = RandomForestRegressor(5, random_state=0).fit(X, Y)
    with pytest.raises(ValueError, match=r"RandomForestRegressor is not affine .*'linearize'"):
        SCORER(forest, X, Y)
    curved = make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge(1e4)).fit(X, Y)
    first_order = make_adversarial_scorer(0.1, feature_scale=STD, on_nonaffine="linearize")
    assert first_order(curved, X, Y) < -np.mean((Y - curved.predict(X)) ** 2)
    assert_allclose(first_order(MODEL, X, Y), SCORER(MODEL, X, Y))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": -1.0}, "radius must be finite and >= 0, got -1.0"),
        ({"radius": np.nan}, "radius must be finite and >= 0, got nan"),
        ({"radius": [0.1, 0.2]}, "A scorer returns one number.*adversarial_mean_squared_error"),
        ({"norm": 0.9}, "norm must be >= 1"),
        ({"feature_scale": "std"}, "feature_scale='std', but.*X_train.std(axis=0), taken once"),
        ({"metric": "max"}, "metric must be one of ['mse', 'rmse', 'mae', .*], got 'max'"),
        (
            {"on_nonaffine": "warn"},
            "on_nonaffine must be 'raise', 'linearize' or 'search', got 'warn'",
        ),
        ({"bounds": (0, 1)}, "bounds cut a box exactly, so they need norm=inf, got norm=2"),
        ({"norm": "mahalanobis"}, "norm='mahalanobis'.*covariance"),
        ({"covariance": np.eye(10)}, "covariance.*norm='mahalanobis'"),
        (
            {"covariance": np.eye(10), "norm": "mahalanobis", "feature_scale": STD},
            "so feature_scale has no place beside it",
        ),
        (
            {"covariance": GradientCovarianceEstimator(), "norm": "mahalanobis"},
            "GradientCovarianceEstimator.*fit",
        ),
    ],
)
def test_bad_input_is_told_when_it_is_made(settings, message):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, message.split(".*")))):
        make_adversarial_scorer(**({"radius": 1.0} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_scale": STD[1:]}, "feature_scale has shape (9,), but X has 10 columns"),
        ({"feature_scale": -STD}, "feature_scale must be finite and >= 0"),
        ({"feature_scale": {"bmi": 1}}, "feature_scale goes by column names, but X is no data"),
        ({"norm": np.inf, "bounds": (0, 100)}, "bounds exclude values that are in X, in the col"),
        ({"features": ["bmi"]}, "features names ['bmi'], which are not columns of X"),
        ({"features": [10]}, "features must be names, positions or a mask of the 10 columns"),
        ({"metric": "accuracy"}, "Pipeline has no decision function"),
    ],
)
def test_bad_input_is_told_when_it_meets_the_data(settings, message):
    scorer = make_adversarial_scorer(1.0, **settings)
    with pytest.raises(ValueError, match=".*".join(map(re.escape, message.split(".*")))):
        scorer(MODEL, X, Y)


def test_bad_names_and_columns_of_frames():
    table = frame()
    model = encoded().fit(table, Y)
    for scale, message in (
        ({"weight": 1.0}, r"feature_scale names \['weight'\], which are not columns of X"),
        ({"bmi": np.nan}, "is missing, negative or infinite for 'bmi'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_adversarial_scorer(1.0, feature_scale=scale)(model, table, Y)
    with pytest.raises(ValueError, match="columns are missing"):
        make_adversarial_scorer(1.0)(model, table.drop(columns="bmi"), Y)


def test_models_that_cannot_be_scored():
    with pytest.raises(NotFittedError, match="Ridge instance is not fitted yet"):
        SCORER(Ridge(), X, Y)
    with pytest.raises(ValueError, match=r"returns labels.*metric='accuracy'"):
        make_adversarial_scorer(1.0)(LogisticRegression(max_iter=5000).fit(IRIS, SPECIES), IRIS, Y)
    broken = Ridge().fit(X, Y)
    broken.coef_ = broken.coef_ * np.nan
    with pytest.raises(
        ValueError, match=r"Ridge.predict returns NaN or infinity for 24 of 24 rows"
    ):
        SCORER(broken, X, Y)
    with pytest.raises(ValueError, match="X has 9 features, but Ridge is expecting 10"):
        make_adversarial_scorer(1.0)(Ridge().fit(X, Y), X[:, 1:], Y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SCORER(MODEL, X, Y[1:])
