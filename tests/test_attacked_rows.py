"""Certified radii and worst-case inputs: against the metrics, brute force, and containers."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_gradhess.metrics import (
    adversarial_accuracy,
    certified_radius,
    make_adversarial_scorer,
    worst_case_inputs,
)

FLOWERS, SPECIES = load_iris(return_X_y=True)
CLASSIFIER = make_pipeline(StandardScaler(), LogisticRegression()).fit(FLOWERS, SPECIES)
X, Y = load_diabetes(return_X_y=True, scaled=False)
X, Y = X[:100], Y[:100]
UNIT = X.std(axis=0)


# --- certified radii


@pytest.mark.parametrize("norm", [1, 2, np.inf, "mahalanobis"])
def test_rows_above_a_radius_are_the_accuracy_under_attack(norm):
    unit = {"covariance": np.cov(FLOWERS.T)} if norm == "mahalanobis" else {"scale": [1, 2, 1, 3]}
    certified = certified_radius(CLASSIFIER, FLOWERS, SPECIES, norm=norm, **unit)
    radii = np.quantile(certified, np.linspace(0.05, 0.95, 7)) * 1.001
    accuracy = adversarial_accuracy(CLASSIFIER, FLOWERS, SPECIES, radius=radii, norm=norm, **unit)
    np.testing.assert_allclose(accuracy, np.mean(certified[:, None] > radii, axis=0))
    free = certified_radius(CLASSIFIER, FLOWERS, norm=norm, **unit)
    right = CLASSIFIER.predict(FLOWERS) == SPECIES
    np.testing.assert_array_equal(certified, np.where(right, free, 0.0))
    assert np.all(free > 0)


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_the_class_changes_just_beyond_and_not_before(norm):
    certified = certified_radius(CLASSIFIER, FLOWERS, norm=norm)
    own = CLASSIFIER.predict(FLOWERS)
    for i in range(0, len(FLOWERS), 7):
        row, label = FLOWERS[i : i + 1], own[i : i + 1]
        for factor, changes in ((0.999, False), (1.001, True)):
            moved = worst_case_inputs(
                CLASSIFIER, row, label, radius=factor * certified[i], norm=norm
            )
            assert (CLASSIFIER.predict(moved) != label)[0] == changes


def test_binary_is_the_margin_over_the_length():
    y = SPECIES > 0
    model = LogisticRegression().fit(FLOWERS, y)
    expected = np.abs(model.decision_function(FLOWERS)) / np.linalg.norm(model.coef_)
    np.testing.assert_allclose(certified_radius(model, FLOWERS), expected, rtol=1e-6)
    np.testing.assert_allclose(certified_radius(model, FLOWERS, link="logit"), expected, rtol=1e-6)


def test_bounds_missing_values_and_whole_steps_have_radii_of_their_own():
    rng = np.random.default_rng(0)
    y = SPECIES > 0
    model = LogisticRegression().fit(FLOWERS, y)
    low, high = FLOWERS.min(axis=0), FLOWERS.max(axis=0)
    kwargs = {"norm": np.inf, "bounds": (low, high)}
    certified = certified_radius(model, FLOWERS, **kwargs)
    assert np.all(certified >= certified_radius(model, FLOWERS, norm=np.inf) * (1 - 1e-9))
    # in the end all columns are at a bound: some classes never change
    corner = np.where(model.coef_ > 0, high, low)
    ends = np.concatenate([corner, low + high - corner])
    can = model.decision_function(ends)
    score = model.decision_function(FLOWERS)
    never = np.where(score > 0, can[1] > 0, can[0] < 0)
    np.testing.assert_array_equal(np.isinf(certified), never)
    for radius in np.quantile(certified[~never], [0.1, 0.5, 0.9]) * 1.0001:
        kept = adversarial_accuracy(model, FLOWERS, model.predict(FLOWERS), radius=radius, **kwargs)
        assert kept == pytest.approx(np.mean(certified > radius))
    # counts: a class changes at a whole number of steps
    counts = rng.poisson(5.0, (80, 3))
    label = counts @ [1, -1, 2] + rng.standard_normal(80) > 10
    count_model = LogisticRegression().fit(counts, label)
    steps = certified_radius(count_model, counts, norm=np.inf)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    for i in range(0, 80, 9):
        r = int(np.round(steps[i]))
        for reach, changes in ((r - 1, False), (r, True)):
            if reach < 0:
                continue
            box = np.array(list(itertools.product([-reach, reach], repeat=3)))
            labels = count_model.predict(counts[i] + box)
            assert np.any(labels != count_model.predict(counts[i : i + 1])) == changes


def test_categories_cost_what_their_budget_says():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.standard_normal(60), "b": rng.choice(list("xyz"), 60)})
    label = frame["a"] + 2.0 * (frame["b"] == "x") + 0.1 * rng.standard_normal(60) > 0.5
    encoder = make_column_transformer((OneHotEncoder(), ["b"]), remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression()).fit(frame, label)
    alone = certified_radius(model, frame, norm=np.inf)
    both = certified_radius(model, frame, norm=np.inf, categories=["b"], scale={"a": 1.0, "b": 2.0})
    # a switch needs a radius of a half; below nothing but the number moves
    assert np.all(both <= alone * (1 + 1e-9))
    small = alone < 0.5
    np.testing.assert_allclose(both[small], alone[small], rtol=1e-6)
    assert np.all(both[~small] >= 0.5 * (1 - 1e-6))
    assert np.any(both < 0.9 * alone)


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_categories_of_three_classes_have_the_accuracy_under_attack(norm):
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"a": rng.standard_normal(90), "b": rng.choice(list("xyz"), 90)})
    score = np.column_stack([frame["a"], -frame["a"], 1.5 * (frame["b"] == "x")])
    label = np.argmax(score + 0.3 * rng.gumbel(size=score.shape), axis=1)
    encoder = make_column_transformer((OneHotEncoder(), ["b"]), remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression()).fit(frame, label)
    attack = {"norm": norm, "categories": ["b"], "scale": {"a": 1.0, "b": 1.5}}
    certified = certified_radius(model, frame, label, **attack)
    radii = np.quantile(certified, [0.3, 0.5, 0.7, 0.9]) * 1.001
    accuracy = adversarial_accuracy(model, frame, label, radius=radii, **attack)
    np.testing.assert_allclose(accuracy, np.mean(certified[:, None] > radii, axis=0))


def test_a_forest_cannot_be_certified():
    forest = RandomForestClassifier(5, random_state=0).fit(FLOWERS, SPECIES)
    with pytest.raises(ValueError, match="not affine") as caught:
        certified_radius(forest, FLOWERS)
    assert "proves nothing where it finds none" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="texts"):
        certified_radius(CLASSIFIER, FLOWERS, SPECIES.astype(str))
    with pytest.raises(ValueError, match="link must be"):
        certified_radius(CLASSIFIER, FLOWERS, link="probit")


# --- worst-case inputs


@pytest.mark.parametrize("norm", [1, 2, np.inf])
@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_rows_of_a_regressor_have_the_exact_risk(norm, metric):
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, Y)
    moved = worst_case_inputs(model, X, Y, radius=0.3, norm=norm, scale=UNIT)
    size = np.linalg.norm((moved - X) / UNIT, ord=norm, axis=1)
    np.testing.assert_allclose(size, 0.3)
    error = np.abs(model.predict(moved) - Y)
    scorer = make_adversarial_scorer(0.3, norm, metric=metric, feature_scale=UNIT)
    assert np.mean(error ** (2 if metric == "mse" else 1)) == pytest.approx(-scorer(model, X, Y))


def test_rows_behind_a_link_and_of_several_outputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    counts = rng.poisson(np.exp(x @ [0.5, -0.3, 0.2]))
    model = PoissonRegressor(alpha=1e-3).fit(x, counts)
    moved = worst_case_inputs(model, x, counts, radius=0.4)
    scorer = make_adversarial_scorer(0.4)
    found = np.mean(np.square(model.predict(moved) - counts))
    assert found == pytest.approx(-scorer(model, x, counts), rel=1e-6)
    targets = x @ rng.standard_normal((3, 2)) + rng.standard_normal((60, 2))
    both = LinearRegression().fit(x, targets)
    moved = worst_case_inputs(both, x, targets, radius=0.4)
    joint = make_adversarial_scorer(0.4, multioutput="joint")
    found = np.mean(np.square(both.predict(moved) - targets))
    assert found == pytest.approx(-joint(both, x, targets), rel=0.01)
    assert found <= -joint(both, x, targets) * (1 + 1e-9)


def test_rows_of_a_classifier_are_as_accurate_as_stated():
    for radius in (0.2, 0.5):
        moved = worst_case_inputs(CLASSIFIER, FLOWERS, SPECIES, radius=radius)
        accuracy = adversarial_accuracy(CLASSIFIER, FLOWERS, SPECIES, radius=radius)
        assert CLASSIFIER.score(moved, SPECIES) == pytest.approx(accuracy)
        assert np.linalg.norm(moved - FLOWERS, axis=1).max() == pytest.approx(radius)


@pytest.mark.parametrize("is_classifier", [False, True])
def test_rows_of_a_forest_come_from_a_search(is_classifier):
    kind = RandomForestClassifier if is_classifier else RandomForestRegressor
    y = Y > 120 if is_classifier else Y
    model = kind(5, random_state=0).fit(X, y)
    kwargs = {"on_nonaffine": "search", "max_queries": 40}
    with pytest.raises(ValueError, match="on_nonaffine='search'"):
        worst_case_inputs(model, X, y, radius=0.5, scale=UNIT)
    moved = worst_case_inputs(model, X, y, radius=0.5, scale=UNIT, **kwargs)
    assert np.linalg.norm((moved - X) / UNIT, axis=1).max() <= 0.5 * (1 + 1e-9)
    scorer = make_adversarial_scorer(
        0.5, metric="accuracy" if is_classifier else "mse", feature_scale=UNIT, **kwargs
    )
    value = (
        model.score(moved, y) if is_classifier else -np.mean(np.square(model.predict(moved) - Y))
    )
    assert value == pytest.approx(scorer(model, X, y))


def test_a_search_against_two_outputs_alike_is_that_against_one():
    kwargs = {"radius": 0.5, "scale": UNIT, "on_nonaffine": "search", "max_queries": 20}
    one, two = (
        worst_case_inputs(KNeighborsRegressor(3).fit(X, y), X, y, random_state=0, **kwargs)
        for y in (Y, np.column_stack([Y, Y]))
    )
    np.testing.assert_allclose(two, one)


def test_a_frame_comes_back_as_it_went_in():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.standard_normal(30), "b": rng.choice(list("xyz"), 30), "c": np.arange(30)},
        index=np.arange(30)[::-1] * 10,
    )
    y = frame["a"] + frame["c"]
    encoder = make_column_transformer((OneHotEncoder(), ["b"]), remainder="passthrough")
    model = make_pipeline(encoder, LinearRegression()).fit(frame, y)
    moved = worst_case_inputs(model, frame, y, radius=1.0, norm=np.inf, features=["a"])
    assert type(moved) is pd.DataFrame
    pd.testing.assert_frame_equal(moved.drop(columns="a"), frame.drop(columns="a"))
    np.testing.assert_allclose(np.abs(moved["a"] - frame["a"]), 1.0)
    model.predict(moved)


def test_polars_and_sparse_rows_come_back_too():
    model = Ridge().fit(X, Y)
    moved = worst_case_inputs(model, sparse.csr_array(X), Y, radius=0.5)
    assert sparse.issparse(moved)
    np.testing.assert_allclose(moved.toarray(), worst_case_inputs(model, X, Y, radius=0.5))
    pl = pytest.importorskip("polars")
    names = [f"x{j}" for j in range(X.shape[1])]
    frame = pl.DataFrame(dict(zip(names, X.T, strict=True)))
    model = Ridge().fit(frame, Y)
    assert type(worst_case_inputs(model, frame, Y, radius=0.5)) is pl.DataFrame


def test_what_worst_case_inputs_refuses():
    model = Ridge().fit(X, Y)
    with pytest.raises(ValueError, match="radius must be one number"):
        worst_case_inputs(model, X, Y, radius=[0.1, 0.2])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        worst_case_inputs(model, X, Y[:-1], radius=0.1)
    with pytest.raises(ValueError, match="1 labels that Pipeline was not fitted on, such as 7"):
        worst_case_inputs(CLASSIFIER, FLOWERS[:1], [7], radius=0.1)
