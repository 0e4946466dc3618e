"""Streams: partial_fit against fits of everything at once."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import expit, logsumexp
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge

from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor

Classifier, Regressor = PreconditionedSGDClassifier, PreconditionedSGDRegressor


@pytest.fixture
def data(rng):
    X = rng.standard_normal((200, 4)) @ rng.standard_normal((4, 4)) + [1, 2, 3, 4]
    return X, X @ [1.0, -1.0, 2.0, 0.5] + 3 + rng.standard_normal(200)


def stream(model, X, y, size, sample_weight=None, **kwargs):
    for start in range(0, len(y), size):
        piece = slice(start, start + size)
        weight = None if sample_weight is None else sample_weight[piece]
        model.partial_fit(X[piece], y[piece], weight, **kwargs)
    return model


def assert_same_model(a, b, rtol=1e-8):
    assert_allclose(a.coef_, b.coef_, rtol=rtol, atol=rtol)
    assert_allclose(a.intercept_, b.intercept_, rtol=rtol, atol=rtol)


def logistic_data(rng, n, d=5, condition=1e3):
    X = rng.standard_normal((n, d)) * np.geomspace(1, condition, d) + 1
    raw = (X - 1) @ (1 / np.geomspace(1, condition, d)) - 0.5
    return X, (rng.random(n) < expit(raw)).astype(int)


def log_loss(model, X, y):
    codes = np.searchsorted(model.classes_, y)
    return -np.mean(model.predict_log_proba(X)[np.arange(len(y)), codes])


# --- squared loss: exact


@given(cuts=st.lists(st.integers(1, 199), max_size=8, unique=True), intercept=st.booleans())
def test_any_chunking_is_least_squares(cuts, intercept):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 4)) + 5, rng.standard_normal(200) + 3
    model = Regressor(fit_intercept=intercept)
    for piece in np.split(np.arange(200), sorted(cuts)):
        model.partial_fit(X[piece], y[piece])
    assert_same_model(model, LinearRegression(fit_intercept=intercept).fit(X, y))


@pytest.mark.parametrize("size", [1, 3, 64])
def test_after_every_chunk_it_is_ridge_of_the_rows_so_far(data, size):
    X, y = data
    model = Regressor(alpha=0.1)
    for stop in range(size, min(5 * size, 200) + 1, size):
        piece = slice(stop - size, stop)
        model.partial_fit(X[piece], y[piece])
        X_seen, y_seen = X[:stop], y[:stop]
        ridge = Ridge(alpha=0.1 * len(y_seen)).fit(X_seen, y_seen)
        assert_allclose(model.predict(X_seen), ridge.predict(X_seen), rtol=1e-6)


def test_several_targets_stream(data):
    X, Y = data[0], np.column_stack([data[1], data[0][:, 0]])
    model = stream(Regressor(), X, Y, 17)
    assert model.coef_.shape == (2, 4)
    assert_same_model(model, LinearRegression().fit(X, Y))


def test_offsets_of_1e8_deviations_are_harmless(data):
    X, y = data[0] + 1e8, data[1]
    model = stream(Regressor(), X, y, 50)
    fitted = LinearRegression().fit(data[0], y)
    assert_allclose(model.predict(X), fitted.predict(data[0]), atol=1e-4)


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix])
def test_a_sparse_stream_is_the_dense_one(data, container):
    X, y = data[0] * (data[0] > 1), data[1]
    model = Regressor()
    for start in (0, 100):
        model.partial_fit(container(X[start : start + 100]), y[start : start + 100])
    assert_same_model(model, stream(Regressor(), X, y, 100))


def test_weights_are_repetitions(data, rng):
    X, y = data
    weight = rng.integers(0, 4, len(y))
    weighted = stream(Regressor(alpha=0.2), X, y, 31, sample_weight=weight.astype(float))
    repeated = Regressor(alpha=0.2).partial_fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    assert_same_model(weighted, repeated)


def test_rows_are_counted(data):
    assert stream(Regressor(), *data, 30).t_ == 200


def test_float32_gives_float32(data):
    X, y = data[0].astype(np.float32), data[1].astype(np.float32)
    model = stream(Regressor(), X, y, 40)
    assert model.coef_.dtype == np.float32
    assert_same_model(model, LinearRegression().fit(*data), rtol=1e-4)


def test_fewer_rows_than_features_give_the_minimum_norm_fit(data):
    X, y = data[0][:3], data[1][:3]
    assert_allclose(Regressor().partial_fit(X, y).predict(X), y)


@pytest.mark.parametrize("value", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("n", [100, 20_000])
def test_a_constant_feature_gets_no_absurd_coefficient(rng, n, value):
    X = np.column_stack([rng.standard_normal(n) + 1, np.full(n, value)])
    model = stream(Regressor(), X, rng.standard_normal(n), n // 20)
    assert np.all(np.abs(model.coef_) < 10)


def test_a_pickled_stream_goes_on(data):
    X, y = data
    model = Regressor().partial_fit(X[:50], y[:50])
    copy = pickle.loads(pickle.dumps(model))
    assert_same_model(model.partial_fit(X[50:], y[50:]), copy.partial_fit(X[50:], y[50:]))


def test_memory_does_not_grow_with_the_stream(rng):
    X, y = logistic_data(rng, 40_000)
    model = Classifier()
    sizes = []
    for start in range(0, 40_000, 500):
        piece = slice(start, start + 500)
        model.partial_fit(X[piece], y[piece], classes=[0, 1])
        sizes.append(len(pickle.dumps(model)))
    # Blocks double, and the first is dropped at an eighth of the whole: at most six at a time
    assert max(sizes[5:]) < 2 * sizes[5]


# --- after a fit


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_after_a_fit_it_goes_on_as_a_fit_of_all_rows(data, alpha):
    X, y = data
    model = Regressor(alpha=alpha, random_state=0).fit(X[:120], y[:120])
    model.partial_fit(X[120:], y[120:])
    assert_same_model(model, Ridge(alpha=200 * alpha).fit(X, y), rtol=1e-6)


def test_after_a_weighted_fit_weights_are_repetitions_still(data):
    X, y = data
    model = Regressor(random_state=0).fit(X[:120], y[:120], np.full(120, 2.0))
    model.partial_fit(X[120:], y[120:])
    weight = np.where(np.arange(200) < 120, 2.0, 1.0)
    assert_same_model(model, LinearRegression().fit(X, y, weight), rtol=1e-6)


def test_fit_forgets_the_stream(data):
    X, y = data
    model = Regressor(random_state=0).partial_fit(X[:50], 9 * y[:50])
    assert_same_model(model.fit(X, y), clone(model).fit(X, y), rtol=0)
    model.partial_fit(X[:50], y[:50])
    twice = LinearRegression().fit(np.vstack([X, X[:50]]), np.append(y, y[:50]))
    assert_same_model(model, twice, rtol=1e-6)


# --- other losses: one pass, near the solution


@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize("size", [50, 2000])
def test_a_stream_of_two_classes_ends_within_two_floors(rng, size, condition):
    X, y = logistic_data(rng, 20_000, condition=condition)
    model = stream(Classifier(), X, y, size, classes=[0, 1])
    full = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(X, y)
    # A floor of the mean loss is p / 2N
    assert log_loss(model, X, y) - log_loss(full, X, y) < 2 * 6 / (2 * 20_000)


def test_a_stream_of_three_classes_ends_within_two_floors(rng):
    X = rng.standard_normal((20_000, 4))
    raw = X @ rng.standard_normal((4, 3))
    y = (raw + rng.gumbel(size=raw.shape)).argmax(axis=1)
    model = stream(Classifier(), X, y, 500, classes=[0, 1, 2])
    full = LogisticRegression(C=np.inf, solver="lbfgs", tol=1e-8, max_iter=1000).fit(X, y)
    assert log_loss(model, X, y) - log_loss(full, X, y) < 2 * 10 / (2 * 20_000)
    assert_allclose(model.coef_.sum(axis=0), 0, atol=1e-12)
    assert_allclose(logsumexp(model.predict_log_proba(X), axis=1), 0, atol=1e-12)


def test_a_poisson_stream_ends_within_two_floors(rng):
    X = 0.5 * rng.standard_normal((20_000, 4))
    y = rng.poisson(np.exp(X @ [1.0, -1.0, 0.5, 0.0] + 1))
    model = stream(Regressor("poisson"), X, y, 500)
    full = PoissonRegressor(alpha=0, tol=1e-10, solver="newton-cholesky").fit(X, y)

    def loss(fitted):
        mean = fitted.predict(X)
        return np.mean(mean - y * np.log(mean))

    assert loss(model) - loss(full) < 2 * 5 / (2 * 20_000)


def test_a_huber_stream_ends_within_two_floors(rng):
    X = rng.standard_normal((20_000, 4))
    noise = rng.standard_t(2, size=20_000)
    y = X @ [1.0, -1.0, 0.5, 0.0] + 3 + noise
    model = stream(Regressor("huber"), X, y, 500)
    full = Regressor("huber", tol=1e-6, random_state=0).fit(X, y)
    # Variance of an M-estimator: E psi^2 / (E psi')^2, a coefficient and row
    psi, inside = np.clip(noise, -1.35, 1.35), np.abs(noise) < 1.35
    floor = 5 * np.mean(psi**2) / np.mean(inside) ** 2 / 20_000
    assert np.mean((model.predict(X) - full.predict(X)) ** 2) < 2 * floor


def test_a_separable_start_of_a_stream_stays_finite():
    X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    model = Classifier().partial_fit(X, [0, 0, 1, 1], classes=[0, 1])
    assert np.isfinite(model.coef_).all()
    assert_array_equal(model.predict(X), [0, 0, 1, 1])


def test_a_first_chunk_of_one_class_is_learned_from():
    model = Classifier().partial_fit([[1.0], [2.0]], ["a", "a"], classes=["b", "a"])
    assert_array_equal(model.classes_, ["a", "b"])
    assert_array_equal(model.predict([[1.0]]), ["a"])


def test_class_weights_weight_the_rows(rng):
    X, y = logistic_data(rng, 500)
    weighted = Classifier(class_weight={0: 1.0, 1: 3.0}).partial_fit(X, y, classes=[0, 1])
    by_hand = Classifier().partial_fit(X, y, np.where(y, 3.0, 1.0), classes=[0, 1])
    assert_same_model(weighted, by_hand)


def test_a_chunk_may_lack_a_class_that_has_a_weight():
    model = Classifier(class_weight={1: 3.0})
    model.partial_fit([[0.0], [1.0]], [0, 0], classes=[0, 1])
    assert_array_equal(model.classes_, [0, 1])


def test_a_chunk_without_weight_is_refused(data):
    X, y = data
    model = Regressor().partial_fit(X, y)
    with pytest.raises(ValueError, match=r"is zero for every row|at least one non-zero"):
        model.partial_fit(X, y, np.zeros(200))


# --- errors


@pytest.fixture
def two_classes(rng):
    X, y = logistic_data(rng, 60)
    return Classifier().partial_fit(X, y, classes=[0, 1]), X, y


def test_classes_are_needed_at_first():
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        Classifier().partial_fit([[0.0], [1.0]], [0, 1])


def test_classes_may_not_change(two_classes):
    model, X, y = two_classes
    with pytest.raises(ValueError, match="is not the same as on the last call to partial_fit, was"):
        model.partial_fit(X, y, classes=[0, 1, 2])


def test_classes_may_be_named_again(two_classes):
    model, X, y = two_classes
    model.partial_fit(X, y, classes=[1, 0])


def test_new_labels_are_refused(two_classes):
    model, X, y = two_classes
    with pytest.raises(ValueError, match=r"\[2\] that are not among classes \[0, 1\]\. Name"):
        model.partial_fit(X, np.where(y, 2, 0))


def test_balanced_weights_need_all_labels_at_once():
    model = Classifier(class_weight="balanced")
    with pytest.raises(ValueError, match="class_weight='balanced' needs all labels at once"):
        model.partial_fit([[0.0], [1.0]], [0, 1], classes=[0, 1])


def test_targets_of_another_number_are_refused(data):
    X, y = data
    model = Regressor().partial_fit(X, y)
    with pytest.raises(ValueError, match="y has 2 targets, but 1 were fitted before"):
        model.partial_fit(X, np.column_stack([y, y]))


def test_overflow_is_refused(data):
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match="overflow"),
    ):
        Regressor().partial_fit(1e300 * data[0], 1e300 * data[1])


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (([[1.0, np.nan, 0, 0, 0]], [0]), "NaN"),
        (([[1.0, 2.0]], [0]), "2 features"),
        (([[1.0, 2, 3, 4, 5]], [7]), "not among classes"),
        (([[1.0, 2, 3, 4, 5]], [0], [-1.0]), "must be >= 0"),
    ],
)
def test_a_failed_chunk_leaves_the_estimator_as_it_was(two_classes, chunk, message):
    model, X, y = two_classes
    twin, before = pickle.loads(pickle.dumps(model)), model.coef_.copy()
    with pytest.raises(ValueError, match=message):
        model.partial_fit(*chunk)
    assert_array_equal(model.coef_, before)
    assert vars(model).keys() == vars(twin).keys()
    assert_same_model(model.partial_fit(X, y), twin.partial_fit(X, y), rtol=0)


def test_a_failed_first_chunk_leaves_no_fit():
    model = Classifier()
    with pytest.raises(ValueError, match="not among"):
        model.partial_fit([[0.0]], [3], classes=[0, 1])
    assert vars(model) == clone(model).get_params()
