"""Streams: partial_fit against fits of everything at once."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import expit, logsumexp
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.utils.validation import check_is_fitted

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
    model = Regressor(alpha=0.1, penalty_units="raw")
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
    weighted = stream(
        Regressor(alpha=0.2, penalty_units="raw"), X, y, 31, sample_weight=weight.astype(float)
    )
    repeated = Regressor(alpha=0.2, penalty_units="raw").partial_fit(
        np.repeat(X, weight, axis=0), np.repeat(y, weight)
    )
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
    model = Classifier(alpha=0.0)
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
    model = Regressor(alpha=alpha, random_state=0, penalty_units="raw").fit(X[:120], y[:120])
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


# --- other losses: the law of streams


LOSSES = ("log_loss", "multinomial", "poisson", "huber")
each_loss = pytest.mark.parametrize("name", LOSSES)


def made(name, **params):
    if name in ("log_loss", "multinomial"):
        return Classifier(
            alpha=params.pop("alpha", 0.0), random_state=0, **params, penalty_units="raw"
        )
    return Regressor(name, random_state=0, **params)


def law_data(name, n, d, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    raw = X @ rng.standard_normal(d) / np.sqrt(d)
    if name == "log_loss":
        return X, (rng.random(n) < expit(raw)).astype(int)
    if name == "multinomial":
        return X, (raw[:, None] * [1, 0, -1] + rng.gumbel(size=(n, 3))).argmax(axis=1)
    if name == "poisson":
        return X, rng.poisson(np.exp(raw)).astype(float)
    return X, raw + rng.standard_t(2, n)


def floors_above(model, best, X, y, weight=None):
    """Excess of the summed loss over a fit's, in statistical errors of the coefficients."""
    weight = np.ones(len(y)) if weight is None else weight
    p, t, dispersion = X.shape[1] + 1, 1, 1.0
    if hasattr(model, "classes_"):
        t = len(model.classes_) - 1
        losses = [
            -m.predict_log_proba(X)[np.arange(len(y)), np.searchsorted(m.classes_, y)]
            for m in (model, best)
        ]
    else:
        loss = best._make_loss()
        raws = [X @ m.coef_ + m.intercept_ for m in (model, best)]
        losses = [loss.value(y, raw) for raw in raws]
        curvature = weight @ loss.curvature(y, raws[1])
        dispersion = weight @ loss.gradient(y, raws[1]) ** 2 / curvature
    unit = (weight @ weight) / weight.sum()  # Kish's observations
    return weight @ (losses[0] - losses[1]) / (dispersion * p * t / 2 * unit)


@each_loss
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(1, 299), max_size=30, unique=True),
    shift=st.sampled_from([0.0, 100.0, 1e6]),
    unit=st.sampled_from([1.0, 1e-9, 1e9]),
    weight_unit=st.sampled_from([None, 1.0, 1e-12, 1e12]),
)
@settings(max_examples=20)
def test_any_chunking_shift_and_unit_is_the_fit(name, seed, cuts, shift, unit, weight_unit):
    X, y = law_data(name, 300, 3, seed)
    weight = None
    if weight_unit is not None:
        weight = weight_unit * np.random.default_rng(seed).uniform(0.5, 2, 300)
    best = made(name, tol=1e-6).fit(X, y, weight)
    moved = unit * (X + shift)
    model = made(name)
    classes = {"classes": np.unique(y)} if isinstance(model, Classifier) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the first rows may be separable
        for piece in np.split(np.arange(300), sorted(cuts)):
            given_weight = None if weight is None else weight[piece]
            model.partial_fit(moved[piece], y[piece], given_weight, **classes)
    back = made(name)
    vars(back).update(
        {k: v for k, v in vars(best).items() if k.endswith("_")},
        coef_=model.coef_ * unit,
        intercept_=model.intercept_ + unit * shift * model.coef_.sum(axis=-1),
    )
    # All rows are in memory: what is left is rounding, of the shift above all
    assert abs(floors_above(back, best, X, y, weight)) < 1e-3


@pytest.mark.parametrize("order", ["as they come", "sorted by a feature"])
@each_loss
def test_many_rows_in_small_chunks_end_within_a_floor(name, order):
    X, y = law_data(name, 8000, 6, 3)
    if order == "sorted by a feature":
        first = np.argsort(X[:, 0])
        X, y = X[first], y[first]
    best = made(name, tol=1e-6).fit(X, y)
    model = made(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The classes are separable", ConvergenceWarning)
        stream(model, X, y, 40, **({"classes": np.unique(y)} if hasattr(best, "classes_") else {}))
    # A scale that is estimated is so to a hundredth of a statistical error, which moves the minimum
    assert -1e-2 < floors_above(model, best, X, y) < 0.2


@pytest.mark.parametrize("size", [40, 1000])
@each_loss
def test_rows_sorted_by_the_target_stay_within_thirty_floors_and_say_so(name, size):
    X, y = law_data(name, 8000, 6, 4)
    first = np.argsort(y, kind="stable")
    X, y = X[first], y[first]
    best = made(name, tol=1e-6).fit(X, y)
    model = made(name)
    classes = {"classes": np.unique(y)} if hasattr(best, "classes_") else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream(model, X, y, size, **classes)
    assert all(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    assert "order of the rows sorts by the target" in str(caught[-1].message)
    assert floors_above(model, best, X, y) < 30


def test_one_class_for_many_rows_is_said():
    X, y = law_data("log_loss", 400, 2, 0)
    first = np.argsort(y, kind="stable")
    model = Classifier(alpha=0.0)
    with pytest.warns(ConvergenceWarning, match="All of the 100 rows so far are of one class"):
        model.partial_fit(X[first][:100], y[first][:100], classes=[0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.partial_fit(X[first][-100:], y[first][-100:])


def test_a_class_that_comes_late_ends_within_three_floors():
    X, y = law_data("multinomial", 8000, 4, 5)
    late = np.flatnonzero((y == 2) & (np.arange(8000) < 5000))
    first = np.concatenate([np.delete(np.arange(8000), late), late])
    X, y = X[first], y[first]
    best = made("multinomial", tol=1e-6).fit(X, y)
    model = made("multinomial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        stream(model, X, y, 100, classes=[0, 1, 2])
    assert floors_above(model, best, X, y) < 3


def test_rare_levels_of_a_category_keep_their_rows(rng):
    level = rng.integers(0, 100, 6000) ** 2 // 100
    X = np.eye(100)[level][:, 1:]
    X = X[:, X.any(axis=0)]
    y = (rng.random(6000) < expit(rng.standard_normal(100)[level])).astype(int)
    best = Classifier(alpha=1e-4, tol=1e-6, random_state=0, penalty_units="raw").fit(X, y)
    model = stream(Classifier(alpha=1e-4, penalty_units="raw"), X, y, 100, classes=[0, 1])

    def objective(m):
        return log_loss(m, X, y) + 0.5e-4 * np.sum(m.coef_**2)

    assert 6000 * (objective(model) - objective(best)) < 0.2 * X.shape[1] / 2


@pytest.mark.parametrize("epsilon", [1.01, 1.1])
def test_a_huber_loss_of_a_small_epsilon_ends_within_a_floor(epsilon):
    X, y = law_data("huber", 8000, 4, 6)
    best = Regressor("huber", epsilon=epsilon, tol=1e-6, random_state=0).fit(X, y)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The order of the rows .*almost straight")
        model = stream(Regressor("huber", epsilon=epsilon), X, y, 50)
    assert floors_above(model, best, X, y) < 1


@each_loss
def test_a_penalty_is_that_of_all_rows(name):
    X, y = law_data(name, 400, 3, 7)
    best = made(name, alpha=0.1, tol=1e-8).fit(X, y)
    model = stream(
        made(name, alpha=0.1),
        *(X, y, 37),
        **({"classes": np.unique(y)} if hasattr(best, "classes_") else {}),
    )
    assert_same_model(model, best, rtol=1e-3)


def test_without_an_intercept_nothing_is_centred():
    X, y = law_data("log_loss", 2000, 3, 8)
    best = Classifier(alpha=0, fit_intercept=False, tol=1e-8, random_state=0).fit(X + 1, y)
    model = Classifier(alpha=0, fit_intercept=False)
    stream(model, X + 1, y, 100, classes=[0, 1])
    assert_same_model(model, best, rtol=1e-3)


@pytest.mark.parametrize("name", ["log_loss", "multinomial", "poisson"])
def test_sparse_and_dense_chunks_mix(name):
    X, y = law_data(name, 3000, 4, 9)
    X = X * (np.abs(X) > 1)
    models = [made(name), made(name)]
    for start in range(0, 3000, 150):
        piece = slice(start, start + 150)
        classes = {"classes": np.unique(y)} if isinstance(models[0], Classifier) else {}
        models[0].partial_fit(X[piece], y[piece], **classes)
        as_sparse = sparse.csr_array(X[piece]) if start % 300 else X[piece]
        models[1].partial_fit(as_sparse, y[piece], **classes)
    assert_same_model(*models, rtol=1e-3)


@each_loss
def test_a_sparse_chunk_after_dense_ones_is_seen_at_once(name):
    X, y = law_data(name, 320, 3, 16)
    X += 3  # dense rows are centred, sparse ones are not
    best = made(name, tol=1e-8).fit(X, y)
    classes = {"classes": np.unique(y)} if hasattr(best, "classes_") else {}
    model = made(name).partial_fit(X[:300], y[:300], **classes)
    model.partial_fit(sparse.csr_array(X[300:]), y[300:])
    assert "coef_" not in vars(model)
    assert_same_model(model, best, rtol=1e-3)


@each_loss
@pytest.mark.parametrize("share", [0.25, 0.75])
def test_after_a_fit_it_ends_within_a_floor_of_the_fit_of_all(name, share):
    X, y = law_data(name, 4000, 5, 10)
    n = int(share * 4000)
    best = made(name, tol=1e-6).fit(X, y)
    model = stream(made(name).fit(X[:n], y[:n]), X[n:], y[n:], 100)
    assert floors_above(model, best, X, y) < 1


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_after_a_fit_weights_of_the_same_unit_count_alike(unit):
    X, y = law_data("poisson", 1000, 3, 11)
    weight = np.full(1000, unit)
    best = made("poisson", tol=1e-6).fit(X, y)
    model = made("poisson").fit(X[:500], y[:500], weight[:500])
    stream(model, X[500:], y[500:], 50, sample_weight=weight[500:])
    assert floors_above(model, best, X, y) < 0.2


# --- looking at it


def test_what_waits_is_seen_when_somebody_looks(rng):
    X, y = law_data("log_loss", 330, 3, 12)
    model = made("log_loss").partial_fit(X[:300], y[:300], classes=[0, 1])
    for i in range(300, 330):
        model.partial_fit(X[i : i + 1], y[i : i + 1])
        if "coef_" not in vars(model):
            break
    before = vars(model).copy()
    best = made("log_loss", tol=1e-8).fit(X[: i + 1], y[: i + 1])
    assert_same_model(model, best, rtol=1e-3)
    assert vars(model) == before  # looking changes nothing
    assert hasattr(model, "coef_")
    check_is_fitted(model, ["coef_", "intercept_"])
    check_is_fitted(model)
    copy = pickle.loads(pickle.dumps(model))
    assert_same_model(copy, model, rtol=1e-9)
    assert not hasattr(clone(model), "coef_")


def test_looking_on_the_way_changes_nothing():
    X, y = law_data("huber", 1500, 3, 13)
    looked, unseen = made("huber"), made("huber")
    for start in range(0, 1500, 20):
        piece = slice(start, start + 20)
        looked.partial_fit(X[piece], y[piece]).predict(X[:2])
        unseen.partial_fit(X[piece], y[piece])
    assert_same_model(looked, unseen)


def test_no_coefficients_before_the_first_rows():
    assert not hasattr(Regressor(), "coef_")
    with pytest.raises(
        AttributeError, match="'PreconditionedSGDRegressor' object has no attribute"
    ):
        Regressor().intercept_  # noqa: B018


def test_the_caller_may_use_the_array_again():
    X, y = law_data("poisson", 600, 3, 14)
    model, buffer = made("poisson"), np.empty((20, 3))
    for start in range(0, 600, 20):
        buffer[:] = X[start : start + 20]
        model.partial_fit(buffer, y[start : start + 20])
        buffer[:] = np.nan
    assert_same_model(model, stream(made("poisson"), X, y, 20))


def test_one_row_at_a_time_with_more_features_than_rows(rng):
    X = rng.standard_normal((12, 40))
    y = (X[:, 0] > 0).astype(int)
    model = stream(Classifier(alpha=0.1, penalty_units="raw"), X, y, 1, classes=[0, 1])
    best = Classifier(alpha=0.1, tol=1e-10, random_state=0, penalty_units="raw").fit(X, y)
    assert_same_model(model, best, rtol=1e-4)


@pytest.mark.parametrize("offset", [1e8, 1e9, 1e10])
def test_a_line_far_from_the_origin_is_found(offset):
    x = offset + np.arange(20.0)
    for order in (np.arange(20), np.random.default_rng(0).permutation(20)):
        model = Regressor()
        for i in order:
            model.partial_fit(x[i : i + 1, None], 2 * x[i : i + 1] + 1)
        assert_allclose(model.coef_, 2, rtol=1e-6)


def test_a_poisson_stream_may_start_without_a_count():
    X, y = law_data("poisson", 2000, 3, 15)
    first = np.argsort(y > 0, kind="stable")
    X, y = X[first], y[first]
    best = made("poisson", tol=1e-6).fit(X, y)
    assert floors_above(stream(made("poisson"), X, y, 20), best, X, y) < 1


# --- other losses: one pass, near the solution


@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize("size", [50, 2000])
def test_a_stream_of_two_classes_ends_within_two_floors(rng, size, condition):
    X, y = logistic_data(rng, 20_000, condition=condition)
    model = stream(Classifier(alpha=0.0), X, y, size, classes=[0, 1])
    full = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(X, y)
    # A floor of the mean loss is p / 2N
    assert log_loss(model, X, y) - log_loss(full, X, y) < 2 * 6 / (2 * 20_000)


def test_a_stream_of_three_classes_ends_within_two_floors(rng):
    X = rng.standard_normal((20_000, 4))
    raw = X @ rng.standard_normal((4, 3))
    y = (raw + rng.gumbel(size=raw.shape)).argmax(axis=1)
    model = stream(Classifier(alpha=0.0), X, y, 500, classes=[0, 1, 2])
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
    with pytest.warns(ConvergenceWarning, match="separable: of the 4 rows so far every one"):
        model = Classifier(alpha=0).partial_fit(X, [0, 0, 1, 1], classes=[0, 1])
    assert np.isfinite(model.coef_).all()
    assert_array_equal(model.predict(X), [0, 0, 1, 1])


def test_a_first_chunk_of_one_class_is_learned_from():
    model = Classifier(alpha=0.0).partial_fit([[1.0], [2.0]], ["a", "a"], classes=["b", "a"])
    assert_array_equal(model.classes_, ["a", "b"])
    assert_array_equal(model.predict([[1.0]]), ["a"])


def test_class_weights_weight_the_rows(rng):
    X, y = logistic_data(rng, 500)
    weighted = Classifier(class_weight={0: 1.0, 1: 3.0}, alpha=0.0).partial_fit(
        X, y, classes=[0, 1]
    )
    by_hand = Classifier(alpha=0.0).partial_fit(X, y, np.where(y, 3.0, 1.0), classes=[0, 1])
    assert_same_model(weighted, by_hand)


def test_a_chunk_may_lack_a_class_that_has_a_weight():
    model = Classifier(class_weight={1: 3.0}, alpha=0.0)
    model.partial_fit([[0.0], [1.0]], [0, 0], classes=[0, 1])
    assert_array_equal(model.classes_, [0, 1])


@pytest.mark.parametrize("fitted", [True, False])
def test_a_chunk_without_weight_changes_nothing(data, fitted):
    X, y = data
    model = Regressor(random_state=0)
    model = model.fit(X, y) if fitted else model.partial_fit(X, y)
    before = vars(model).copy()
    assert vars(model.partial_fit(X, -y, np.zeros(200))) == before


def test_a_first_chunk_without_weight_is_a_stream_of_no_rows(data):
    X, y = data
    model = Regressor("huber").partial_fit(X, y, np.zeros(200))
    assert_array_equal(model.predict(X), 0)
    # Nothing was seen that a parameter could contradict
    model.set_params(loss="squared_error").partial_fit(X, y)
    assert_same_model(model, LinearRegression().fit(X, y))


def test_rows_without_weight_are_left_out(data):
    X, y = data
    weight = (np.arange(200) % 3 > 0).astype(float)
    model = stream(Regressor("huber"), X, y, 7, sample_weight=weight)
    other = stream(Regressor("huber"), X[weight > 0], y[weight > 0], 50)
    assert_same_model(model, other, rtol=1e-4)


# --- errors


@pytest.fixture
def two_classes(rng):
    X, y = logistic_data(rng, 60)
    return Classifier(alpha=0.0).partial_fit(X, y, classes=[0, 1]), X, y


def test_classes_are_needed_at_first():
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        Classifier(alpha=0.0).partial_fit([[0.0], [1.0]], [0, 1])


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
    model = Classifier(class_weight="balanced", alpha=0.0)
    with pytest.raises(ValueError, match="class_weight='balanced' needs all labels at once"):
        model.partial_fit([[0.0], [1.0]], [0, 1], classes=[0, 1])


def test_targets_of_another_number_are_refused(data):
    X, y = data
    model = Regressor().partial_fit(X, y)
    with pytest.raises(ValueError, match="y has 2 targets, but 1 were fitted before"):
        model.partial_fit(X, np.column_stack([y, y]))


@pytest.mark.parametrize(("scale", "what"), [((1e300, 1), "X"), ((1, 1e300), "y")])
def test_overflow_is_refused(data, scale, what):
    with pytest.raises(ValueError, match=rf"^{what} has an entry of .*e\+30.*\. Rescale {what}\."):
        Regressor().partial_fit(scale[0] * data[0], scale[1] * data[1])


def test_coefficients_that_overflow_are_refused(data):
    with pytest.raises(ValueError, match="The coefficients overflow: features are too small"):
        Regressor().partial_fit(1e-170 * data[0], 1e145 * data[1])


def test_weights_whose_ratio_overflows_are_refused(data):
    X, y = data
    model = Regressor().partial_fit(X, y, np.full(200, 1e-300))
    with pytest.raises(
        ValueError, match=r"sample_weight has 1e\+300 after weights of at most 1e-300"
    ):
        model.partial_fit(X, y, np.full(200, 1e300))


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit_intercept": False}, "^fit_intercept=False, but .* seen with fit_intercept=True: a"),
        ({"loss": "poisson"}, "^loss='poisson', but .* seen with loss='huber': a stream keeps"),
        ({"epsilon": 2.0}, r"^epsilon=2\.0, but .* seen with epsilon=1\.35: a stream keeps its"),
    ],
)
def test_a_parameter_of_the_model_may_not_change(data, change, message, fitted):
    X, y = data[0], np.abs(data[1])
    model = Regressor("huber", random_state=0)
    model = model.fit(X, y) if fitted else model.partial_fit(X, y)
    before = {name: value for name, value in vars(model).items() if name not in change}
    model.set_params(**change)
    with pytest.raises(ValueError, match=message):
        model.partial_fit(X, y)
    assert {name: value for name, value in vars(model).items() if name not in change} == before


def test_alpha_may_change_it_is_the_penalty_of_all_rows(data):
    X, y = data
    model = Regressor(penalty_units="raw").partial_fit(X[:50], y[:50]).set_params(alpha=0.3)
    model.partial_fit(X[50:], y[50:])
    assert_same_model(model, Ridge(alpha=0.3 * 200).fit(X, y))


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
    model = Classifier(alpha=0.0)
    with pytest.raises(ValueError, match="not among"):
        model.partial_fit([[0.0]], [3], classes=[0, 1])
    assert vars(model) == clone(model).get_params()


@pytest.mark.parametrize("chunk", [1, 40])
def test_the_penalty_that_a_fit_has_chosen_goes_on(rng, monkeypatch, chunk):
    monkeypatch.setattr("sklearn_gradhess._auto_penalty._NARROW", 100)  # for less time
    X = (rng.random((340, 300)) < 0.03).astype(float)
    y = (X[:, :60].sum(axis=1) + rng.standard_normal(340) > 1.8).astype(int)
    w = rng.uniform(1, 2, 340)
    model = PreconditionedSGDClassifier(preconditioner="exact").fit(X[:300], y[:300], w[:300])
    alpha, mean = model.alpha_, np.average(X[:300], axis=0, weights=w[:300])
    assert alpha.min() > 1.5 / w[:300].sum()
    for start in range(300, 340, chunk):
        part = slice(start, start + chunk)
        model.partial_fit(X[part], y[part], w[part])
    v = w / w[:300].max()
    variance = v @ (X - np.average(X, axis=0, weights=w)) ** 2
    ridge = model._online._ridge
    common = (X[300:].sum(axis=0) == 1) & (mean > 0.02)  # as rare as before
    assert common.sum() > 20
    np.testing.assert_allclose(
        ridge[common], (alpha * variance)[common] * w[:300].sum() / w.sum(), rtol=0.1
    )
    model.set_params(alpha=0.5)
    model.partial_fit(X[:1], y[:1], w[:1])
    v = np.append(v, v[0])
    rows = np.concatenate([X, X[:1]])
    variance = v @ (rows - np.average(rows, axis=0, weights=v)) ** 2
    np.testing.assert_allclose(model._online._ridge, 0.5 * variance, rtol=1e-8, atol=1e-12)
