"""Streams of wide data: the diagonal model of the rows that are gone."""

import copy
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor
from sklearn_gradhess._auto_penalty import least_place, wideness
from sklearn_gradhess._descent import Ending
from sklearn_gradhess._diagonal_stream import _ROWS, Block, DiagonalStream
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._multinomial import MultinomialLoss
from sklearn_gradhess._rows import Problem, Rows
from sklearn_gradhess._solver import _no_worse_than_null, descend_by_diagonal
from sklearn_gradhess._squares import Squares

LOSSES = [
    "squared_error",
    "huber",
    "quantile",
    "poisson",
    "gamma",
    "tweedie",
    "log_loss",
    "classes",
]
CLASSES = {"log_loss": [0, 1], "classes": [0, 1, 2]}


def estimator(loss, **changes):
    changes = {"preconditioner": "diagonal", **changes}
    if loss in CLASSES:
        return PreconditionedSGDClassifier(**changes)
    return PreconditionedSGDRegressor(loss=loss, **changes)


def learn(model, X, y, chunk, w=None):
    """Hand over the rows in chunks."""
    named = {}
    if isinstance(model, PreconditionedSGDClassifier):
        named = {"classes": np.arange(max(y.max() + 1, 2))}
    for start in range(0, len(y), chunk):
        part = slice(start, start + chunk)
        model.partial_fit(X[part], y[part], None if w is None else w[part], **named)
    return model


def targets(rng, loss, signal):
    if loss == "classes":
        noisy = signal[:, None] * [1.0, 0.0, -1.0] + rng.gumbel(size=(len(signal), 3))
        return noisy.argmax(axis=1)
    if loss == "log_loss":
        return (rng.random(len(signal)) < 1 / (1 + np.exp(-signal))).astype(int)
    if loss in ("poisson", "tweedie"):
        return rng.poisson(np.exp(0.5 * signal)).astype(float)
    if loss == "gamma":
        return np.exp(0.5 * signal) * rng.gamma(2.0, size=len(signal)) + 1e-9
    return signal + rng.standard_normal(len(signal))


def rows(rng, loss, n=400, d=8):
    X = rng.standard_normal((n, d)) * np.geomspace(0.1, 10, d) + 3
    return X, targets(rng, loss, (X - 3) @ (rng.standard_normal(d) / np.geomspace(0.1, 10, d) / 2))


def excess(model, best, X, y, w=None, alpha=None):
    """What the objective is above that of `best`, over the statistical error of the fit."""
    w = np.ones(len(y)) if w is None else w
    total, loss = w.sum(), best._loss
    Y = np.eye(3)[y] if loss.coupling > 1 else np.reshape(y, (len(y), -1)).astype(float)
    mean = w @ X / total
    ridge = (w @ X**2 / total - mean**2) * (1.0 if alpha is None else alpha * total)
    problem = Problem(X, Y, w * (len(y) / total), loss, ridge / total, bool(best.fit_intercept))
    values = []
    for one in (model, best):
        W = one._coefficients()
        values.append(problem.mean_loss(problem.predict(X, W)) + problem.penalty(W))
    raw = problem.predict(X, best._coefficients())
    dispersion = 1.0
    if not loss.likelihood:
        dispersion = np.mean(loss.gradient(Y, raw) ** 2) / np.mean(loss.curvature(Y, raw))
    return 2 * (values[0] - values[1]) * total / (dispersion * W.size)


def one_hot(rng, n, levels):
    """One category: columns of which every row has one, hence a diagonal Hessian."""
    level = rng.integers(levels, size=n)
    X = sparse.csr_array((np.full(n, 2.0), (np.arange(n), level)), shape=(n, levels))
    return X, level


# --- the law


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [57, 400])
def test_rows_that_fit_in_one_block_end_as_the_fit(rng, loss, chunk):
    X, y = rows(rng, loss)
    best = estimator(loss, preconditioner="exact", tol=1e-4).fit(X, y)
    model = learn(estimator(loss), X, y, chunk)
    if loss == "quantile":  # a fit narrows its smoothing further
        f, g = (m.predict(X) for m in (model, best))
        pinball = [np.mean(np.abs(y - one)) for one in (f, g)]
        assert pinball[0] < 1.01 * pinball[1]
        return
    assert excess(model, best, X, y) < 0.1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [3000, 400])
def test_blocks_of_independent_features_end_near_the_fit(rng, loss, chunk):
    X, y = rows(rng, loss, n=6000)
    best = estimator(loss, preconditioner="exact", tol=1e-4).fit(X, y)
    model = learn(estimator(loss), X, y, chunk)
    if loss == "quantile":
        f, g = (m.predict(X) for m in (model, best))
        pinball = [np.mean(np.abs(y - one)) for one in (f, g)]
        assert pinball[0] < 1.002 * pinball[1]
        return
    assert excess(model, best, X, y) < 1


@pytest.mark.parametrize("chunk", [1, 700, 1500])
def test_least_squares_on_disjoint_columns_is_exact(rng, chunk):
    n, levels = (1050 if chunk == 1 else 5000), 40
    X, level = one_hot(rng, n, levels)
    y = rng.standard_normal(levels)[level] + rng.standard_normal(n)
    w = rng.integers(1, 4, size=n).astype(float)
    model = estimator("squared_error", fit_intercept=False, alpha=1e-2)
    learn(model, X, y, chunk, w)
    total = w.sum()
    sums = [np.bincount(level, w * value, levels) for value in (np.full(n, 4.0), 2 * y)]
    variance = sums[0] / total - (np.bincount(level, 2 * w, levels) / total) ** 2
    expected = sums[1] / (sums[0] + 1e-2 * total * variance)
    # Of the blocks' own minima a hundredth of a statistical error may be missing
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-5)


def test_a_logistic_stream_on_disjoint_columns_has_the_error_of_laplace_alone(rng):
    X, level = one_hot(rng, 20_000, 20)
    y = (rng.random(20_000) < rng.uniform(0.1, 0.9, 20)[level]).astype(int)
    model = learn(estimator("log_loss", fit_intercept=False), X, y, 500)
    best = estimator("log_loss", fit_intercept=False, preconditioner="exact").fit(X, y)
    assert excess(model, best, X.toarray(), y) < 0.1


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["log_loss", "squared_error", "poisson", "classes"]),
    st.sampled_from([0.0, -1e5, 1e6]),
    st.integers(-30, 30),
    st.sampled_from([1e-6, 1.0, 3e5]),
    st.integers(0, 2**31),
)
def test_shifts_and_units_of_features_and_weights_change_nothing(loss, shift, unit, scale, seed):
    rng = np.random.default_rng(seed)
    X, y = rows(rng, loss, n=1500, d=5)
    Z, w = (X + shift) * 2.0**unit, np.full(len(y), scale)
    one = learn(estimator(loss, alpha=1e-2), X, y, 300)
    other = learn(estimator(loss, alpha=1e-2), Z, y, 300, w)
    f, g = (A @ m.coef_.T + m.intercept_ for A, m in ((X, one), (Z, other)))
    # Up to what a descent may leave, and rounding of the shift
    assert np.sqrt(np.mean((f - g) ** 2)) < 0.05 * np.std(f)


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_the_unit_of_the_targets_is_that_of_the_coefficients(rng, loss):
    X, y = rows(rng, loss, n=3000)
    one, other = learn(estimator(loss), X, y, 500), learn(estimator(loss), X, 2.0**40 * y, 500)
    np.testing.assert_allclose(other.coef_, 2.0**40 * one.coef_, rtol=1e-3)


@pytest.mark.parametrize("loss", ["log_loss", "classes", "poisson"])
def test_sparse_and_dense_chunks_are_alike(rng, loss):
    X, y = rows(rng, loss, n=2500, d=12)
    X = np.where(rng.random(X.shape) < 0.4, X, 0.0)
    best = estimator(loss, preconditioner="exact").fit(X, y)
    dense = learn(estimator(loss), X, y, 600)
    for kind in (sparse.csr_array, sparse.csc_matrix):
        model = estimator(loss)
        for start in range(0, len(y), 600):
            part = slice(start, start + 600)
            named = {"classes": CLASSES[loss]} if loss in CLASSES else {}
            model.partial_fit(kind(X[part]), y[part], **named)
        assert abs(excess(model, best, X, y) - excess(dense, best, X, y)) < 0.05


def test_penalties_are_those_of_all_rows_and_may_change(rng):
    X, level = one_hot(rng, 3000, 10)
    y = rng.standard_normal(10)[level] + rng.standard_normal(3000)
    model = estimator("squared_error", fit_intercept=False, alpha=0.3, penalty_units="raw")
    learn(model, X, y, 1500)
    model.set_params(alpha=0.1).partial_fit(X[:1], y[:1])
    square = np.bincount(level, np.full(3000, 4.0), 10) + 4.0 * (np.arange(10) == level[0])
    sums = np.bincount(level, 2 * y, 10) + 2 * y[0] * (np.arange(10) == level[0])
    np.testing.assert_allclose(model.coef_, sums / (square + 0.1 * 3001), rtol=1e-5)


def test_several_targets_stream_as_one_each(rng):
    X, y = rows(rng, "squared_error", n=2500)
    Y = np.column_stack([y, -3 * y + X[:, 0]])
    both = learn(estimator("squared_error"), X, Y, 700)
    assert both.coef_.shape == (2, 8)
    for j in range(2):
        one = learn(estimator("squared_error"), X, Y[:, j], 700)
        np.testing.assert_allclose(both.coef_[j], one.coef_, rtol=0.05, atol=0.01)


# --- which model


@settings(max_examples=12, deadline=None)
@given(
    st.integers(4997, 5002),
    st.sampled_from(["auto", "diagonal"]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.booleans(),
)
def test_the_model_is_diagonal_beyond_five_thousand_features(d, how, n, chunk, intercept):
    X = sparse.random(n + 1, d, density=1e-3, format="csr", random_state=d)
    y = np.arange(n + 1) % 2
    model = estimator("log_loss", preconditioner=how, fit_intercept=intercept)
    learn(model, X, y, chunk)
    diagonal = how == "diagonal" or (how == "auto" and d > 5000)
    assert isinstance(model._online, DiagonalStream) == diagonal
    assert model.predict_proba(X).shape == (n + 1, 2)
    assert np.isfinite(model.coef_).all()


def test_what_memory_has_no_room_for_is_diagonal(rng, monkeypatch):
    monkeypatch.setattr("sklearn_gradhess._stream.allowed", lambda: 1e7)
    X, y = sparse.random(9, 1500, density=0.01, format="csr", random_state=0), np.arange(9) % 2
    assert isinstance(
        learn(estimator("log_loss", preconditioner="auto"), X, y, 9)._online, DiagonalStream
    )


def test_memory_is_a_few_coefficients_wide():
    d, n = 2**20, 4000
    rng = np.random.default_rng(0)
    chunks = [
        sparse.csr_array(
            (np.ones(50 * 500), rng.integers(d, size=50 * 500), np.arange(0, 25_001, 50)),
            shape=(500, d),
        )
        for _ in range(n // 500)
    ]
    model = PreconditionedSGDClassifier()
    tracemalloc.start()
    try:
        for X in chunks:
            model.partial_fit(X, np.arange(500) % 2, classes=[0, 1])
        _, peak = tracemalloc.get_traced_memory()
        model.coef_  # noqa: B018
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * 8 * d
    assert held < 16 * 8 * d


# --- hashed text, as in scikit-learn's out-of-core example


def documents(rng, n, telling=0.2):
    y = rng.integers(2, size=n)
    words = rng.zipf(1.5, size=(n, 30)) % 3000
    words = np.where(rng.random((n, 30)) < telling, 3000 + 400 * y[:, None] + words % 400, words)
    return [" ".join(f"w{word}" for word in row) for row in words], y


@pytest.mark.parametrize("alternate_sign", [True, False])
def test_hashed_documents_stream_with_defaults(alternate_sign):
    rng = np.random.default_rng(3)
    vectorizer = HashingVectorizer(n_features=2**18, alternate_sign=alternate_sign)
    ours, theirs = PreconditionedSGDClassifier(), SGDClassifier(loss="log_loss", random_state=0)
    texts, y = documents(rng, 6000, telling=0.03)
    X = vectorizer.transform(texts)
    for start in range(0, len(y), 500):
        for model in (ours, theirs):
            part = slice(start, start + 500)
            model.partial_fit(X[part], y[part], classes=[0, 1])
    assert ours._online.law.n_told  # blocks were made
    fitted = PreconditionedSGDClassifier(random_state=0).fit(X, y)
    texts, y = documents(rng, 3000, telling=0.03)
    X = vectorizer.transform(texts)
    here, there, best = (log_loss(y, m.predict_proba(X)) for m in (ours, theirs, fitted))
    assert here < there
    assert here < 1.05 * best


# --- the penalty that wide rows choose


def words(rng, n=3400, d=6000, n_classes=2):
    X = sparse.random(n, d, density=0.005, format="csr", random_state=1)
    signal = 3 * X @ rng.standard_normal((d, n_classes))
    return X, (signal + rng.gumbel(size=signal.shape)).argmax(axis=1)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_penalty_of_wide_rows_is_that_of_the_law(rng, n_classes):
    X, y = words(rng, n_classes=n_classes)
    weight = rng.uniform(1, 2, len(y))
    model = learn(PreconditionedSGDClassifier(), X, y, 1100, weight)
    blocks = [slice(start, start + 1100) for start in range(0, 3300, 1100)]
    dense, w = X[:3300].toarray(), weight[:3300]
    deviation = np.zeros(6000)
    for block in blocks:
        Z, v = dense[block], w[block]
        deviation += v @ np.abs(Z - np.average(Z, axis=0, weights=v))
    variance = w @ (dense - np.average(dense, axis=0, weights=w)) ** 2 / w.sum()
    ratio = variance / (deviation / w.sum()) ** 2
    width = wideness(6000, w.sum() ** 2 / (w @ w), np.median(ratio))
    stream = model._online
    multiple = np.exp(stream.law.log_multiple)
    assert 0.99 < multiple < 1025
    expected = (multiple * ratio) ** width * variance / weight[:1100].max()
    np.testing.assert_allclose(stream.ridge, expected, rtol=1e-3)


@pytest.mark.parametrize("n", [300, 1000])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_wide_rows_that_wait_have_the_solution_of_the_default_fit(rng, n, n_classes):
    X, y = words(rng, n, n_classes=n_classes)
    model = learn(PreconditionedSGDClassifier(), X, y, 130)
    assert not model._online.settled
    best = PreconditionedSGDClassifier(preconditioner="diagonal", random_state=0).fit(X, y)
    expected = best.alpha_ * X.toarray().var(axis=0) * n
    np.testing.assert_allclose(model._online._solved.ridge, expected, rtol=1e-3)
    f, g = model.decision_function(X), best.decision_function(X)
    assert np.sqrt(np.mean((f - g) ** 2)) < 0.15 * np.std(g)


def test_chunks_of_wide_rows_matter_little(rng):
    X, y = words(rng, 7000)
    X, Z, y, z = X[:5000], X[5000:], y[:5000], y[5000:]
    fitted = PreconditionedSGDClassifier(random_state=0).fit(X, y)
    best = log_loss(z, fitted.predict_proba(Z))
    for chunk in (90, 1300, 5000):
        model = learn(PreconditionedSGDClassifier(), X, y, chunk)
        assert abs(log_loss(z, model.predict_proba(Z)) - best) < 0.08 * best
    plain = learn(PreconditionedSGDClassifier(alpha=1 / 5000), X, y, 1300)
    assert log_loss(z, plain.predict_proba(Z)) > 1.15 * best


def test_units_of_wide_rows_change_nothing(rng):
    X, y = words(rng, 2200)
    unit = np.exp2(rng.integers(-30, 30, X.shape[1]))
    scaled = sparse.csr_array(X @ sparse.diags_array(unit))
    one = learn(PreconditionedSGDClassifier(), X, y, 1100)
    other = learn(PreconditionedSGDClassifier(), scaled, y, 1100)
    np.testing.assert_allclose(other._online.ridge, unit**2 * one._online.ridge, rtol=1e-3)
    f, g = one.decision_function(X), other.decision_function(scaled)
    assert np.sqrt(np.mean((f - g) ** 2)) < 0.1 * np.std(f)


def test_rows_of_one_class_choose_no_penalty_and_few_of_another_hardly_count(rng):
    X, y = words(rng, 5000)
    order = np.argsort(y, kind="stable")
    X, y, ones = X[order], y[order], np.flatnonzero(y[order])
    model = PreconditionedSGDClassifier()
    with pytest.warns(ConvergenceWarning, match="of one class"):
        learn(model, X[:1100], y[:1100], 1100)
    assert model._online.law.n_told == 0
    told = 0.0
    for n in (30, 600, 20, 900, 800):
        rows = np.r_[0:1024, ones[:n]]
        before = model._online.law
        model.partial_fit(X[rows], y[rows])
        assert model._online.settled
        after = model._online.law
        told = min(told + (n if told else n / 5), 2000)  # at first by the fifth held out
        assert after.n_told == told
        if before.n_told:  # by no more than eightfold
            share = n / (before.n_told + n)
            step = abs(after.log_multiple - before.log_multiple)
            assert step <= share * np.log(8) * (1 + 1e-9)


def test_a_bad_choice_of_the_first_rows_is_forgotten(rng):
    X, y = words(rng, 6_600)
    found = []
    for wrong in (0.0, np.log(1024)):
        model = learn(PreconditionedSGDClassifier(), X[:1100], y[:1100], 1100)
        law = model._online.law._replace(log_multiple=wrong)
        model._online = replace(model._online, law=law)
        learn(model, X[1100:], y[1100:], 1100)
        found.append(model._online.law.log_multiple)
    assert abs(found[0] - found[1]) < np.log(16)  # of 1,024 at first


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("has_intercept", [True, False])
def test_rows_are_predicted_best_near_by_as_the_model_moves(rng, n_classes, has_intercept):
    X, y = words(rng, 2200, n_classes=n_classes)
    model = PreconditionedSGDClassifier(fit_intercept=has_intercept)
    stream = learn(model, X[:1100], y[:1100], 1100)._online
    X, Y = X[1100:].toarray(), y[1100:].reshape(-1, 1).astype(float)
    if n_classes == 3:
        Y = np.eye(3)[y[1100:]]
    width, step = 0.7, 1e-6
    moved = stream._under(stream.ridge * np.exp(width * step))
    problem = Problem(X, Y, None, stream.loss, 0.0, has_intercept)
    raw, other = (problem.predict(X, one.W) for one in (stream, moved))
    steps = np.log(2) * np.arange(-3, 4)
    losses = [
        1100 * problem.mean_loss(raw + each * (other - raw) / step) + (each / np.log(8)) ** 2 / 2
        for each in steps
    ]
    expected = stream.law.log_multiple + least_place(steps, np.array(losses))
    found = stream._predicted_best(stream.law, width, np.arange(6000), problem)
    assert found == pytest.approx(expected, abs=1e-3)
    empty = replace(stream, W=np.zeros_like(stream.W))  # rows tell it nothing
    found = empty._predicted_best(stream.law, width, np.arange(6000), problem)
    assert found == pytest.approx(stream.law.log_multiple)


def test_penalties_of_numbers_are_taken_as_they_are_on_wide_rows(rng):
    X, y = words(rng, 1500)
    variance = X.toarray().var(axis=0)
    each = rng.uniform(0.5, 2, 6000) / 1500
    for alpha in (1e-3, each):
        model = learn(PreconditionedSGDClassifier(alpha=alpha), X, y, 1500)
        np.testing.assert_allclose(model._online.ridge, 1500 * alpha * variance, rtol=1e-9)
    raw = learn(PreconditionedSGDClassifier(penalty_units="raw"), X, y, 1500)
    np.testing.assert_allclose(raw._online.ridge, 1.0)
    # Deviations are those of the rows since somebody asked
    raw.set_params(penalty_units="std").partial_fit(X, y)
    assert raw._online.law.weight == 1500
    assert raw._online.law.n_told


def test_a_failed_chunk_of_wide_rows_and_a_pickle_change_nothing(rng):
    X, y = words(rng)
    model = learn(PreconditionedSGDClassifier(), X[:1500], y[:1500], 1500)
    before = vars(model).copy()
    with pytest.raises(ValueError, match=r"y has labels \[2\]"):
        model.partial_fit(X[1500:], y[1500:] + 1)
    assert all(vars(model)[name] is before[name] for name in before)
    copied = pickle.loads(pickle.dumps(model))
    for one in (model, copied):
        learn(one, X[1500:], y[1500:], 600)
    np.testing.assert_array_equal(model.coef_, copied.coef_)


# --- state


def test_looking_on_the_way_changes_nothing(rng):
    X, y = rows(rng, "log_loss", n=2500)
    one, other = estimator("log_loss"), estimator("log_loss")
    for start in range(0, 2500, 250):
        part = slice(start, start + 250)
        one.partial_fit(X[part], y[part], classes=[0, 1])
        other.partial_fit(X[part], y[part], classes=[0, 1]).predict(X)
    np.testing.assert_array_equal(one.coef_, other.coef_)


def test_a_pickled_stream_goes_on_and_a_clone_begins_anew(rng):
    X, y = rows(rng, "poisson", n=2500)
    model = learn(estimator("poisson"), X[:1700], y[:1700], 300)
    copied = pickle.loads(pickle.dumps(model))
    for one in (model, copied):
        learn(one, X[1700:], y[1700:], 300)
    np.testing.assert_array_equal(model.coef_, copied.coef_)
    assert not hasattr(clone(model), "coef_")


@pytest.mark.parametrize("before", [0, 200, 2000])
def test_a_failed_chunk_leaves_the_stream_as_it_was(rng, before):
    X, y = rows(rng, "log_loss", n=2500)
    model = estimator("log_loss")
    if before:
        learn(model, X[:before], y[:before], 500)
    state, kept = vars(model).copy(), copy.deepcopy(vars(model).get("_online"))
    for bad, labels, message in (
        (np.full((3, 8), 1e160), [0, 1, 0], "X has an entry of 1e\\+160"),
        (np.ones((3, 8)), [0, 1, 5], "y has labels"),
    ):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(bad, labels, classes=[0, 1])
        assert vars(model).keys() == state.keys()
        assert all(vars(model)[name] is state[name] for name in state)
    learn(model, X[before:], y[before:], 500)
    if before:
        assert model._online.seen.n_rows == 2500
        np.testing.assert_array_equal(kept.W, state["_online"].W)


@pytest.mark.parametrize("how", ["diagonal", "sample_space"])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "log_loss", "classes"])
def test_after_a_fit_without_a_matrix_it_goes_on(rng, how, loss):
    X, y = rows(rng, loss, n=500)
    best = estimator(loss, preconditioner="exact").fit(X, y)
    model = estimator(loss, preconditioner=how).fit(X[:400], y[:400])
    learn(model, X[400:], y[400:], 30)
    assert not hasattr(model, "preconditioner_")
    assert excess(model, best, X, y) < 1
    alone = learn(estimator(loss), X[400:], y[400:], 30)
    assert excess(model, best, X, y) < 0.5 * excess(alone, best, X, y)


@pytest.mark.parametrize("weighted", [False, True])
def test_after_a_fit_the_automatic_penalty_is_what_the_fit_chose(rng, weighted):
    X, y = words(rng, 1200)
    weight = rng.uniform(1, 2, 1200) if weighted else np.ones(1200)
    model = PreconditionedSGDClassifier(random_state=0).fit(X, y, weight)
    assert model.preconditioner_ == "diagonal"
    before, size, alpha = model.decision_function(X), np.abs(model.coef_).max(), model.alpha_
    model.partial_fit(X[:1], y[:1], weight[:1])
    assert np.abs(model.decision_function(X) - before).max() < 0.1 * size
    dense = X.toarray()
    variance = weight @ (dense - np.average(dense, axis=0, weights=weight)) ** 2 / weight.max()
    others = dense[0] == 0  # of which a row more or less is a thousandth
    expected = (alpha * variance)[others]
    np.testing.assert_allclose(model._online._solved.ridge[others], expected, rtol=0.01)


def test_a_changed_parameter_is_refused(rng):
    X, y = rows(rng, "huber")
    model = learn(estimator("huber"), X, y, 400)
    with pytest.raises(ValueError, match=r"epsilon=2\.0, but the rows so far"):
        model.set_params(epsilon=2.0).partial_fit(X, y)


def test_the_scale_is_there_once_residuals_have_told_it(rng):
    X, y = rows(rng, "huber", n=3000)
    model = learn(estimator("huber"), X[:500], y[:500], 250)
    assert not hasattr(model, "scale_")
    best = estimator("huber", preconditioner="exact").fit(X, y)
    learn(model, X[500:], y[500:], 500)
    assert model.scale_ == pytest.approx(best.scale_, rel=0.05)


# --- what it says


def test_separable_rows_are_said(rng):
    X = rng.standard_normal((2 * _ROWS, 6))
    y = (X[:, 0] > 0).astype(int)
    X[:, 0] += np.sign(X[:, 0])
    with pytest.warns(ConvergenceWarning, match=rf"^The classes are separable: of the {2 * _ROWS}"):
        learn(estimator("log_loss", alpha=0.0), X, y, 2 * _ROWS)


@pytest.mark.parametrize("loss", ["log_loss", "classes"])
def test_an_order_by_class_is_said(rng, loss):
    X, y = rows(rng, loss, n=6000)
    order = np.argsort(y, kind="stable")
    message = rf"^The last \d+ of {_ROWS} rows are of one class: the order of"
    with pytest.warns(ConvergenceWarning, match=message):
        learn(estimator(loss), X[order][:_ROWS], y[order][:_ROWS], _ROWS)
    model = learn(estimator(loss), X[:2000], y[:2000], 2000)
    with pytest.warns(ConvergenceWarning, match="sorts by the target"):
        model.partial_fit(X[y == 1][:_ROWS], y[y == 1][:_ROWS])
    assert np.isfinite(model.coef_).all()


def test_a_rare_class_may_be_missing_from_a_block_without_a_word(rng):
    X, y = rng.standard_normal((4 * _ROWS, 5)), np.zeros(4 * _ROWS, dtype=int)
    y[:4] = 1
    learn(estimator("log_loss"), X, y, _ROWS)


def test_after_a_fit_an_order_is_judged_by_all_rows(rng):
    X = rng.standard_normal((2000, 5))
    even, rare = np.arange(2000) % 2, (np.arange(2000) >= 10).astype(int)
    model = estimator("log_loss").fit(X, even, np.full(2000, 3.0))
    with pytest.warns(ConvergenceWarning, match=r"^The last 1500 of 3500 rows are of one class"):
        model.partial_fit(X[:1500], np.zeros(1500, dtype=int), np.full(1500, 3.0))
    estimator("log_loss").fit(X, rare).partial_fit(X[:1500], np.ones(1500, dtype=int))


def test_a_descent_that_ends_nowhere_is_said(rng, monkeypatch):
    def exhausted(problem, start, tol):
        found = descend_by_diagonal(problem, start, tol)
        return found._replace(ending=Ending.EXHAUSTED, look=found.look._replace(decrement=1.0))

    monkeypatch.setattr("sklearn_gradhess._diagonal_stream.descend_by_diagonal", exhausted)
    X, y = rows(rng, "poisson", n=_ROWS)
    with pytest.warns(ConvergenceWarning, match=r"^No finite minimum was found for the 1024 rows"):
        estimator("poisson").partial_fit(X, y)


# --- the parts


def test_squares_of_two_parts_are_those_of_both(rng):
    X, v = rng.standard_normal((50, 4)) + 5, rng.random((50, 2))

    def direct(rows):
        total = v[rows].sum(axis=0)
        mean = X[rows].T @ v[rows] / total
        scatter = np.stack([v[rows, c] @ (X[rows] - mean[:, c]) ** 2 for c in range(2)], axis=1)
        return Squares(total, mean, scatter)

    both = direct(slice(0, 20)).plus(direct(slice(20, 50)))
    for a, b in zip(both, direct(slice(None)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    empty = Squares.empty(4, 2)
    for a, b in zip(empty.plus(both).plus(empty), both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_squares_of_rows_without_entries_of_some_features_are_those_of_zeros(rng):
    before = Squares(rng.random(2), rng.standard_normal((5, 2)), rng.random((5, 2)))
    some = Squares(rng.random(2), rng.standard_normal((2, 2)), rng.random((2, 2)))
    mean, scatter = np.zeros((5, 2)), np.zeros((5, 2))
    mean[[3, 0]], scatter[[3, 0]] = some.mean, some.scatter
    expected = before.plus(Squares(some.total, mean, scatter))
    for a, b in zip(before.plus_at([3, 0], some), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", ["log_loss", "classes"])
@pytest.mark.parametrize("has_intercept", [True, False])
def test_the_model_of_the_others_is_a_quadratic(rng, name, has_intercept):
    t, d, h = (3 if name == "classes" else 1), 4, int(has_intercept)
    loss = MultinomialLoss() if name == "classes" else make_loss(name)
    mean = rng.standard_normal((d, t)) * h
    others = Squares(rng.random(t), mean, rng.random((d, t)))
    anchor = rng.standard_normal((d + h, t))
    Y = np.eye(3)[rng.integers(3, size=6)] if t == 3 else rng.integers(2, size=(6, 1)) * 1.0
    block = Block(
        rng.standard_normal((6, d)),
        Y,
        None,
        loss,
        rng.random(d),
        has_intercept,
        others=others,
        anchor=anchor,
    )
    W = rng.standard_normal((d + h, t))
    D = W - anchor
    expected = np.sum((others.scatter + block.ridge[h:]) * D[h:] ** 2)
    if h:
        expected += np.sum(others.total * (D[0] + np.sum(mean * D[1:], axis=0)) ** 2)
    assert block.penalty(W) == pytest.approx(expected / 2)
    U = rng.standard_normal(W.shape)
    U -= U.mean(axis=1, keepdims=True) * (t > 1)  # classes are not shifted together
    step = 1e-5
    slope = (block.penalty(W + step * U) - block.penalty(W - step * U)) / (2 * step)
    assert np.sum(block.pull(W) * U) == pytest.approx(slope, rel=1e-6)
    np.testing.assert_allclose(block.pull(W + U) - block.pull(W), block.resist(U), atol=1e-12)


@pytest.mark.parametrize("name", ["squared_error", "log_loss", "classes", "poisson"])
@pytest.mark.parametrize("has_intercept", [True, False])
def test_a_block_starts_where_it_is_best_and_ends_at_the_minimum(rng, name, has_intercept):
    """Rows that have drifted away from a model which holds on to where it is."""
    t, d, h = (3 if name == "classes" else 1), 4, int(has_intercept)
    loss = MultinomialLoss() if name == "classes" else make_loss(name)
    others = Squares(10 + rng.random(t), h * rng.standard_normal((d, t)), 10 + rng.random((d, t)))
    anchor = 3 * rng.standard_normal((d + h, t))
    Y = np.eye(3)[rng.integers(3, size=6)] if t == 3 else rng.integers(2, size=(6, 1)) * 1.0
    X = rng.standard_normal((6, d))
    block = Block(X, Y, None, loss, np.zeros(d), has_intercept, others=others, anchor=anchor)
    data = Rows(block)
    null = block.null_model()
    if t > 1:
        np.testing.assert_allclose(null.mean(axis=1), anchor.mean(axis=1), atol=1e-12)
    far, near = data.at(null).objective, data.at(anchor).objective
    start = _no_worse_than_null(data, anchor)
    assert start.objective == pytest.approx(min(far, near))

    def shifted(step):
        W = anchor + np.reshape(step, anchor.shape)
        return W + (anchor.mean(axis=1) - W.mean(axis=1))[:, None] * (t > 1)

    best = minimize(lambda step: data.at(shifted(step)).objective, np.zeros(anchor.size), tol=1e-10)
    found = descend_by_diagonal(block, anchor, 1e-6)
    assert data.at(found.W).objective == pytest.approx(best.fun, rel=1e-6)
