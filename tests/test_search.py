"""The search for the worst attack: against exact answers, brute force, and what it may not do."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.ensemble import RandomForestRegressor as Forest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from sklearn_gradhess._attack import Attack
from sklearn_gradhess._search import search
from sklearn_gradhess._table import Table
from sklearn_gradhess.metrics import adversarial_accuracy, make_adversarial_scorer

X, Y = load_diabetes(return_X_y=True, scaled=False)
X, Y = X[:120], Y[:120]
UNIT = X.std(axis=0)


class Asked:
    """A predictor that keeps what it was asked."""

    def __init__(self, predict):
        self.predict, self.rows, self.calls = predict, [], 0

    def __call__(self, rows):
        self.calls += 1
        self.rows.append(rows)
        return np.asarray(self.predict(rows)).reshape(len(rows), -1)

    @property
    def n_rows(self):
        return sum(map(len, self.rows))


def squares(y):
    return lambda response, rows: np.square(response - y[rows, None]).sum(axis=1)


def find(predict, x, y, radius, *, max_queries=200, random_state=0, **kwargs):
    arguments = {"norm": 2, "feature_scale": None, "features": None, "bounds": None,
                 "covariance": None, **kwargs}  # fmt: skip
    attack, asked = Attack(**arguments).on(Table(x)), Asked(predict)
    found = search(
        asked, attack, radius, squares(y), max_queries=max_queries, random_state=random_state
    )
    return found, asked, attack


# --- affine models: at least 0.95 of the exact answer, from a few queries on


@pytest.mark.parametrize("norm", [1, 1.5, 2, 3, np.inf, "mahalanobis"])
@pytest.mark.parametrize("max_queries", [40, 200])
def test_affine_models_are_solved(norm, max_queries):
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, Y)
    unit = {"covariance": np.cov(X.T)} if norm == "mahalanobis" else {"feature_scale": UNIT}
    exact = -make_adversarial_scorer(0.3, norm, **unit)(model, X, Y)
    found, asked, _ = find(model.predict, X, Y, 0.3, norm=norm, max_queries=max_queries, **unit)
    assert 0.999 * exact <= found.value.mean() <= exact * (1 + 1e-9)
    assert asked.n_rows <= max_queries * len(X)
    assert asked.calls <= 40  # rows and candidates go together


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_more_columns_than_queries(norm):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((60, 300)), rng.standard_normal(300)
    y = x @ w + rng.standard_normal(60)
    model = Ridge().fit(x, y)
    exact = -make_adversarial_scorer(0.3, norm)(model, x, y)
    found, _, _ = find(model.predict, x, y, 0.3, norm=norm, max_queries=60)
    assert 0.99 * exact <= found.value.mean() <= exact * (1 + 1e-9)


@pytest.mark.parametrize("n_columns", [1, 3])
def test_few_columns(n_columns):
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, Y)
    kwargs = {"norm": np.inf, "feature_scale": UNIT, "n_columns": n_columns}
    scorer = make_adversarial_scorer(0.3, **kwargs)
    found, _, attack = find(model.predict, X, Y, 0.3, **kwargs)
    assert found.value.mean() >= 0.999 * -scorer(model, X, Y)
    assert np.all(np.sum(found.moves.delta != 0, axis=1) <= n_columns)
    assert attack.n_columns == n_columns


# --- trees and polynomials: brute force over a grid in the box, and over the ball


def small_problem(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 3))
    return x, x[:, 0] * x[:, 1] + x[:, 2] ** 2 + 0.1 * rng.standard_normal(40)


MODELS = {
    "tree": DecisionTreeRegressor(max_depth=5, random_state=0),
    "boosting": GradientBoostingRegressor(n_estimators=30, random_state=0),
    "polynomial": make_pipeline(PolynomialFeatures(3), Ridge(0.1)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("norm", [2, np.inf])
def test_small_models_against_brute_force(name, norm):
    shares = []
    for seed in range(3):
        x, y = small_problem(seed)
        model = MODELS[name].fit(x, y)
        if norm == np.inf:
            moves = np.array(list(itertools.product(np.linspace(-0.5, 0.5, 15), repeat=3)))
        else:
            rng = np.random.default_rng(seed)
            moves = rng.standard_normal((4000, 3))
            moves *= 0.5 / np.linalg.norm(moves, axis=1, keepdims=True)
            moves[2000:] *= rng.random((2000, 1)) ** (1 / 3)
        everywhere = model.predict((x[:, None] + moves).reshape(-1, 3)).reshape(40, -1)
        brute = np.square(everywhere - y[:, None]).max(axis=1).mean()
        found, _, _ = find(model.predict, x, y, 0.5, norm=norm)
        shares.append(found.value.mean() / brute)
    assert np.mean(shares) >= 0.95, shares


def test_a_first_order_value_may_be_far_too_low():
    # where the gradient is zero there is no first-order risk at all
    x = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    y = np.sum(x**2, axis=1)
    model = make_pipeline(PolynomialFeatures(2), Ridge(1e-6)).fit(x, y)
    arguments = {"radius": 1.0, "norm": np.inf}
    linear, searched = (
        -make_adversarial_scorer(**arguments, on_nonaffine=how)(model, x, y)
        for how in ("linearize", "search")
    )
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    exact = np.square(
        model.predict((x[:, None] + corners).reshape(-1, 2)).reshape(50, -1) - y[:, None]
    ).max(axis=1).mean()  # fmt: skip
    assert linear < 0.1 * exact
    assert 0.99 * exact <= searched <= exact * (1 + 1e-9)


# --- it stays within the attack, and asks no more than it may


@pytest.mark.parametrize("norm", [1, 2, 3, np.inf])
def test_every_question_is_an_attack(norm):
    x, y = small_problem(0)
    scale = np.array([0.5, 0.0, 2.0])
    model = MODELS["boosting"].fit(x, y)
    found, asked, _ = find(model.predict, x, y, 0.7, norm=norm, feature_scale=scale)
    assert asked.n_rows == 200 * 40
    for rows in asked.rows:
        move = (rows.reshape(-1, 40, 3) - x).reshape(-1, 3)
        assert np.all(move[:, 1] == 0)
        size = np.linalg.norm(move[:, [0, 2]] / scale[[0, 2]], ord=norm, axis=1)
        assert size.max() <= 0.7 * (1 + 1e-9)
    np.testing.assert_allclose(model.predict(x + found.moves.delta), found.response[:, 0])
    np.testing.assert_allclose(found.value, np.square(found.response[:, 0] - y))
    start = np.square(model.predict(x) - y)
    np.testing.assert_allclose(found.moves.gain, found.value - start, atol=1e-12)
    assert np.all(found.value >= start)


def test_whole_steps_flips_bounds_and_categories():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "count": rng.integers(0, 9, 50),
        "flag": rng.random(50) < 0.5,
        "share": rng.uniform(0, 1, 50),
        "color": rng.choice(["red", "green", "blue"], 50),
        "frozen": rng.standard_normal(50),
    })  # fmt: skip

    def predict(rows):
        effect = rows["color"].map({"red": 0.0, "green": 1.0, "blue": 4.0})
        both = rows["flag"].astype(float) * rows["share"]
        return np.asarray(effect + both + 0.3 * rows["count"] ** 2 + rows["frozen"], dtype=float)

    y = predict(frame) + rng.standard_normal(50)
    found, asked, attack = find(
        predict, frame, y, 1.5, norm=np.inf, categories=["color"],
        features=["count", "flag", "share"],
        bounds=({"count": 0, "share": 0.0}, {"count": 9, "share": 1.0}),
    )  # fmt: skip
    for rows in asked.rows:
        share = rows["share"].astype(float)
        assert share.between(0, 1).all()
        assert np.isin(rows["count"].astype(float), np.arange(10)).all()
        assert np.isin(rows["flag"].astype(float), [0, 1]).all()
        assert set(rows["color"]) <= {"red", "green", "blue"}
        copies = np.asarray(rows["frozen"], dtype=float).reshape(-1, 50)
        assert (copies == frame["frozen"].to_numpy()).all()
    # brute force: counts move by one step, flags flip, shares and colours are free
    worst = np.zeros(50)
    moves = itertools.product((-1, 0, 1), (0, 1), (0.0, 0.5, 1.0), ("red", "green", "blue"))
    for step, flag, share, color in moves:
        other = frame.assign(flag=bool(flag), share=share, color=color)
        other["count"] = (frame["count"] + step).clip(0, 9)
        worst = np.maximum(worst, np.square(predict(other) - y))
    assert found.value.mean() == pytest.approx(worst.mean(), rel=1e-9)
    assert len(attack.groups) == 1


def test_missing_values_stay():
    x, y = small_problem(1)
    x[::3, 0] = np.nan
    predict = lambda rows: np.nan_to_num(rows[:, 0], nan=2.0) * rows[:, 1]  # noqa: E731
    for norm in (2, np.inf):
        found, asked, _ = find(predict, x, y, 0.5, norm=norm)
        for rows in asked.rows:
            copies = rows.reshape(-1, *x.shape)
            assert np.isnan(copies[:, ::3, 0]).all()
            assert not np.isnan(np.delete(copies, np.s_[::3], axis=1)).any()
        assert found.value.mean() > np.mean(np.square(predict(x) - y))


@pytest.mark.parametrize("max_queries", [1, 2, 7, 33])
def test_the_budget_holds_and_more_is_no_worse(max_queries):
    model = MODELS["boosting"].fit(X, Y)
    kwargs = {"norm": 2, "feature_scale": UNIT}
    found, asked, _ = find(model.predict, X, Y, 0.5, max_queries=max_queries, **kwargs)
    assert asked.n_rows == max_queries * len(X)
    plain = np.square(model.predict(X) - Y)
    assert np.all(found.value >= plain)
    more, _, _ = find(model.predict, X, Y, 0.5, max_queries=8 * max_queries, **kwargs)
    assert more.value.mean() > found.value.mean()


def test_the_seed_decides_and_a_radius_of_zero_asks_once():
    model = MODELS["boosting"].fit(X, Y)
    values = [
        find(model.predict, X, Y, 0.5, norm=2, feature_scale=UNIT, random_state=seed)[0].value
        for seed in (0, 0, np.random.RandomState(3), 4)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[3])
    assert not np.array_equal(values[0], values[2])
    found, asked, _ = find(model.predict, X, Y, 0.0)
    assert asked.n_rows == len(X)
    assert not found.moves.delta.any()


def test_parts_of_the_rows_are_searched_on_their_own(monkeypatch):
    model = MODELS["tree"].fit(X, Y)
    monkeypatch.setattr("sklearn_gradhess._search.BATCH_VALUES", 1)
    monkeypatch.setattr("sklearn_gradhess._table.BATCH_VALUES", 2000)
    found, asked, _ = find(model.predict, X, Y, 0.3, feature_scale=UNIT)
    assert max(map(len, asked.rows)) <= 200
    assert asked.n_rows == 200 * len(X)
    np.testing.assert_allclose(model.predict(X + found.moves.delta), found.response[:, 0])


# --- where users meet it


def test_classifiers_of_probabilities_only():
    x, y = small_problem(2)
    labels = np.where(y > np.median(y), "high", "low")
    forest = RandomForestClassifier(10, max_depth=3, random_state=0).fit(x, labels)
    accuracy = adversarial_accuracy(
        forest, x, labels, radius=[0.0, 0.5], norm=np.inf, on_nonaffine="search"
    )
    assert accuracy[0] == forest.score(x, labels)
    grid = np.array(list(itertools.product(np.linspace(-0.5, 0.5, 9), repeat=3)))
    right = forest.predict((x[:, None] + grid).reshape(-1, 3)).reshape(40, -1) == labels[:, None]
    assert accuracy[1] <= right.all(axis=1).mean() + 0.05
    assert accuracy[1] < accuracy[0]


def test_a_search_of_an_affine_classifier_is_the_exact_answer():
    x, y = small_problem(3)
    labels = y > np.median(y)
    linear = LogisticRegression().fit(x, labels)

    class Probabilities:
        classes_ = linear.classes_

        def predict(self, rows):
            return linear.predict(rows)

        def predict_proba(self, rows):
            p = linear.predict_proba(rows)
            return np.round(p, 3)  # not affine behind any link

    exact = adversarial_accuracy(linear, x, labels, radius=0.5)
    found = adversarial_accuracy(Probabilities(), x, labels, radius=0.5, on_nonaffine="search")
    assert exact <= found <= exact + 0.05


@pytest.mark.filterwarnings("error")
def test_a_grid_of_ridge_and_forest_has_scores_for_all():
    pipeline = Pipeline([("scale", StandardScaler()), ("model", Ridge())])
    grid = [
        {"model": [Ridge()], "model__alpha": [1.0, 10.0]},
        {"model": [Forest(5, random_state=0), DecisionTreeRegressor(max_depth=3, random_state=0)]},
    ]
    scorers = {
        name: make_adversarial_scorer(
            0.3, metric=name, feature_scale=UNIT, on_nonaffine="search", max_queries=30
        )
        for name in ("mse", "mae", "r2")
    }
    search = GridSearchCV(pipeline, grid, scoring=scorers, refit="mse", cv=3, error_score="raise")
    results = search.fit(X, Y).cv_results_
    for name, scorer in scorers.items():
        assert np.isfinite(results[f"mean_test_{name}"]).all()
        plain = make_adversarial_scorer(0.0, metric=name, on_nonaffine="search")
        assert scorer(search.best_estimator_, X, Y) < plain(search.best_estimator_, X, Y)
    # where a closed form is, it is taken: the search changes nothing for ridge
    ridge = Ridge().fit(X, Y)
    exact = make_adversarial_scorer(0.3, feature_scale=UNIT)
    assert scorers["mse"](ridge, X, Y) == exact(ridge, X, Y)
    # without it forests are an error, which names the way out
    with pytest.raises(ValueError, match="on_nonaffine='search'"):
        exact(Forest(3, random_state=0).fit(X, Y), X, Y)


def test_mixed_columns_through_a_pipeline():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.standard_normal(60), "b": rng.choice(list("xyz"), 60)})
    y = frame["a"].abs() + (frame["b"] == "x")
    encoder = make_column_transformer((OneHotEncoder(), ["b"]), remainder="passthrough")
    model = make_pipeline(encoder, Forest(5, random_state=0)).fit(frame, y)
    scorer = make_adversarial_scorer(1.0, on_nonaffine="search", categories=["b"], max_queries=50)
    still = make_adversarial_scorer(1.0, on_nonaffine="search", max_queries=50)
    assert (
        scorer(model, frame, y)
        < still(model, frame, y)
        < -np.mean(np.square(model.predict(frame) - y))
    )


def test_a_curve_never_falls_back():
    # what a smaller attack finds a larger one may do; radii in any order and shape
    model = MODELS["tree"].fit(X, Y)
    scorer = make_adversarial_scorer(0.0, feature_scale=UNIT, on_nonaffine="search", max_queries=12)
    radii = np.random.default_rng(0).permutation(np.linspace(0, 1, 12)).reshape(3, 4)
    found = scorer.curve(model, X, Y, radii)
    assert np.all(np.diff(found.ravel()[np.argsort(radii, axis=None)]) >= 0)
    each = np.vectorize(lambda r: scorer.curve(model, X, Y, r))(radii)
    assert np.all(found >= each)
    r2 = make_adversarial_scorer(
        0.0, metric="r2", feature_scale=UNIT, on_nonaffine="search", max_queries=12
    ).explain(model, X, Y, radii)
    assert np.all(np.diff(r2.value.ravel()[np.argsort(radii, axis=None)]) <= 0)
    assert r2.kind == "upper bound"
