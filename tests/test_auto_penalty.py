"""The penalty of wide data: closed forms, a naive search over held-out rows, and what it leaves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from benchmarks.wide import text
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor
from sklearn_gradhess._auto_penalty import concentration, wideness
from sklearn_gradhess._penalty import Spread

Classifier = PreconditionedSGDClassifier


def ratios(X, weight=None):
    weight = np.ones(X.shape[0]) if weight is None else weight
    return concentration(X, weight, Spread.empty(X.shape[1]).plus(X, weight))


def few_rows(rng, n=120, d=2_500, n_classes=2):
    X = rng.standard_normal((n, d)) * rng.uniform(0.5, 2, d)
    raw = X[:, : 5 * n_classes].reshape(n, n_classes, 5).sum(axis=2)
    return X, (raw + 2 * rng.gumbel(size=raw.shape)).argmax(axis=1)


def words(rng, n=600, d=12_000, n_classes=2):
    X = sparse.random(n, d, density=0.005, format="csc", random_state=1)
    X = X[:, np.diff(X.indptr) > 0].tocsr()
    return X, (
        X @ rng.standard_normal((X.shape[1], n_classes)) + rng.gumbel(size=(n, n_classes))
    ).argmax(1)


@given(d=st.integers(1, 10**6), n=st.integers(1, 10**6))
def test_the_choice_sets_in_beyond_a_thousand_features_and_ten_rows_for_each(d, n):
    width = wideness(d, n)
    assert 0 <= width <= 1
    assert (width > 0) == (d > 1_000 and n < 10 * d)
    assert (width == 1) == (d >= 10_000 and n <= d)
    assert wideness(d + 1, n) - width <= 1 / d
    assert width <= wideness(d + 1, n)
    assert wideness(d, n, 2.0) == width <= wideness(d, n, 5.0)


def test_an_indicator_is_as_concentrated_as_it_is_rare():
    f = np.array([0.5, 0.25, 0.05, 0.005])
    X = (np.arange(1_000)[:, None] < 1_000 * f).astype(float)
    assert_allclose(ratios(X), 1 / (4 * f * (1 - f)), rtol=1e-12)
    gaussian = np.random.default_rng(0).standard_normal((100_000, 1))
    assert_allclose(ratios(gaussian), np.pi / 2, rtol=0.02)  # six standard errors


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), unit=st.floats(-6, 6), shift=st.floats(-10, 10))
def test_concentration_has_no_unit_and_knows_weights_and_containers(seed, unit, shift):
    rng = np.random.default_rng(seed)
    X = rng.exponential(size=(60, 5)) * (rng.random((60, 5)) < 0.4)
    X[:, 4] = 3.0
    weight = rng.integers(1, 4, 60)
    repeated = np.repeat(X, weight, axis=0)
    deviation = np.abs(repeated - repeated.mean(axis=0)).mean(axis=0)
    expected = np.ones(5)
    expected[:4] = repeated.var(axis=0)[:4] / deviation[:4] ** 2
    for rows in (X, sparse.csr_array(X), sparse.csc_array(X)):
        assert_allclose(ratios(rows, weight.astype(float)), expected, rtol=1e-9)
    moved = (X + shift) * 10.0**unit
    assert_allclose(ratios(moved, weight.astype(float))[:4], expected[:4], rtol=1e-6)


@pytest.mark.parametrize("make", [few_rows, words])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_default_is_a_fit_at_the_penalties_that_it_names(rng, make, n_classes):
    X, y = make(rng, n_classes=n_classes)
    model = Classifier(tol=1e-8, random_state=0).fit(X, y)
    assert model.alpha_.shape == (X.shape[1],)
    assert model.alpha_.min() >= 1 / len(y)
    other = Classifier(alpha=model.alpha_, tol=1e-8, random_state=0).fit(X, y)
    assert_allclose(other.alpha_, model.alpha_, rtol=0)
    assert_allclose(model.decision_function(X), other.decision_function(X), atol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(300, 1_000), (2_000, 200), (40, 30)])
def test_ordinary_data_are_penalised_as_before(rng, n, d):
    X, y = few_rows(rng, n, d)
    model = Classifier(random_state=0).fit(X, y)
    assert_allclose(model.alpha_, 1 / n)
    plain = Classifier(alpha=1 / n, random_state=0).fit(X, y)
    assert_allclose(model.coef_, plain.coef_, rtol=1e-12, atol=1e-12)
    weight = rng.uniform(1, 2, n)
    assert_allclose(Classifier(random_state=0).fit(X, y, weight).alpha_, 1 / weight.sum())


def test_it_sets_in_without_a_jump(rng):
    X, y = few_rows(rng, 200, 1_040)
    sizes = (1_000, 1_010, 1_040)
    alphas = [Classifier(random_state=0).fit(X[:, :d], y).alpha_ * 200 for d in sizes]
    assert_allclose(alphas[0], 1)
    for d, alpha in zip(sizes[1:], alphas[1:], strict=True):
        most = (1024 * ratios(X[:, :d])) ** (np.log10(d / 1_000))
        assert np.all(alpha >= 1)
        assert np.all(alpha <= most * (1 + 1e-9))


@pytest.mark.parametrize("make", [few_rows, words])
def test_no_other_multiple_predicts_held_out_rows_better(rng, make):
    X, y = make(rng)
    model = Classifier(random_state=0).fit(X, y)
    width = wideness(X.shape[1], len(y), np.median(ratios(X)))
    least = ratios(X) ** width / len(y)
    multiple = np.median(model.alpha_ / least)
    assert_allclose(model.alpha_, multiple * least, rtol=1e-9)
    rank = np.empty(len(y), dtype=int)
    for label in (0, 1):
        rank[y == label] = np.arange(np.sum(y == label))
    held_out = rank % 5 == 4
    # Penalties per standard deviation of all rows, on those that are left
    deviation = np.sqrt(Spread.empty(X.shape[1]).plus(X, np.ones(len(y))).variance)
    penalty = least * deviation**2 * len(y) / np.sum(~held_out)
    grid, losses = 4.0 ** (width * np.arange(6)), []
    for each in grid:
        fitted = Classifier(alpha=each * penalty, penalty_units="raw", tol=1e-3, random_state=0)
        fitted.fit(X[~held_out], y[~held_out])
        losses.append(log_loss(y[held_out], fitted.predict_proba(X[held_out])))
    best = int(np.argmin(losses))
    assert grid[max(best - 1, 0)] <= multiple * 1.01
    assert multiple <= grid[min(best + 1, 5)] * 1.01


@pytest.mark.parametrize("make", [few_rows, words])
def test_units_and_the_seed_change_nothing(rng, make):
    X, y = make(rng)
    unit = np.exp2(rng.integers(-20, 20, X.shape[1]))
    model = Classifier(tol=1e-6, random_state=0).fit(X, y)
    scaled = Classifier(tol=1e-6, random_state=0).fit(X @ sparse.diags_array(unit), y)
    assert_allclose(scaled.alpha_, model.alpha_, rtol=1e-4)
    assert_allclose(scaled.coef_ * unit, model.coef_, atol=1e-3 * np.abs(model.coef_).max())
    other = Classifier(tol=1e-6, random_state=1).fit(X, y)
    assert_allclose(other.alpha_, model.alpha_, rtol=1e-4)


def test_on_words_the_default_predicts_no_worse_than_logistic_regression():
    X, y = text(8_000, 15_000)
    X, Z, y, z = X[:4_000], X[4_000:], y[:4_000], y[4_000:]
    model = Classifier(random_state=0).fit(X, y)
    peer = LogisticRegression().fit(X, y)
    plain = Classifier(alpha=1 / len(y), random_state=0).fit(X, y)
    ours, theirs, before = (log_loss(z, m.predict_proba(Z)) for m in (model, peer, plain))
    assert ours <= 1.01 * theirs < before
    assert model.score(Z, z) >= peer.score(Z, z) - 0.01


def test_rows_without_a_weight_and_rare_classes_do_no_harm(rng):
    X, y = few_rows(rng, n_classes=3)
    y[:2] = 3  # a class of two rows is not held out
    weight = np.repeat([1.0, 0.0], 60)
    model = Classifier(tol=1e-8, random_state=0).fit(X, y, weight)
    other = Classifier(tol=1e-8, random_state=0).fit(X[:60], y[:60])
    assert_allclose(model.alpha_, other.alpha_, rtol=1e-6)
    assert_allclose(model.predict_proba(X), other.predict_proba(X), atol=1e-3)
    single = Classifier(random_state=0).fit(X[:8], np.arange(8) % 4)  # none to hold out
    assert_allclose(single.alpha_, ratios(X[:8]) ** wideness(2_500, 8) / 8)


def test_a_penalty_of_each_feature_is_taken_by_fits_and_streams(rng):
    X = rng.standard_normal((300, 4)) * [1, 2, 3, 4]
    y = X @ [1, -1, 0.5, 0] + rng.standard_normal(300)
    alpha = np.array([0.0, 0.1, 1.0, 10.0])
    Z, t = X - X.mean(axis=0), y - y.mean()
    ridge = np.diag(300 * alpha * X.var(axis=0))
    expected = np.linalg.solve(Z.T @ Z + ridge, Z.T @ t)
    fitted = PreconditionedSGDRegressor(alpha=list(alpha)).fit(X, y)
    streamed = PreconditionedSGDRegressor(alpha=alpha)
    for piece in np.array_split(np.arange(300), 3):
        streamed.partial_fit(X[piece], y[piece])
    for model in (fitted, streamed):
        assert_allclose(model.coef_, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        ([0.1, 0.2], r"alpha has shape \(2,\), but X has 4 features"),
        ([[0.1] * 4], r"alpha has shape \(1, 4\)"),
        ([0.1, -2, 0, 1], "1 entries that are negative or not finite, such as -2"),
        ([np.inf, np.nan, 0, 1], "2 entries that are negative or not finite, such as inf"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_penalties_that_do_not_fit_are_refused(rng, alpha, said, method):
    X = rng.standard_normal((30, 4))
    model = PreconditionedSGDRegressor(alpha=alpha)
    with pytest.raises(ValueError, match=said):
        getattr(model, method)(X, X[:, 0])
    assert not hasattr(model, "alpha_")
