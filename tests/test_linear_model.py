"""PreconditionedSGDRegressor and PreconditionedSGDClassifier: solutions, invariances, reports."""

import pickle
import re
import warnings

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import expit, xlogy
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from sklearn_gradhess import (
    CalibrationWarning,
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
)
from sklearn_gradhess._weights import balanced, class_weighted
from sklearn_gradhess.diagnostics import calibration_report
from tests import plans

Classifier, Regressor = PreconditionedSGDClassifier, PreconditionedSGDRegressor
BOTH = (Regressor, Classifier)
REGRESSION = ("squared_error", "poisson", "gamma", "tweedie", "huber", "quantile")
CHECKED = (*(Regressor(loss) for loss in REGRESSION), Classifier(alpha=0.0))
CHECKS = [check for estimator in CHECKED for check in estimator_checks_generator(estimator)]


@pytest.fixture
def mini_batches(monkeypatch):
    """Take small data for large: steps on mini-batches, preconditioned by a sketch."""
    plans.plan_for(monkeypatch, plans.mini_batches)


@pytest.fixture
def data(rng):
    X = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 4)) + [1, 2, 3, 4]
    return X, X @ [1.0, -1.0, 2.0, 0.5] + 3 + rng.standard_normal(300)


@pytest.fixture
def labelled(data):
    X, y = data
    rng = np.random.default_rng(5)
    return X, (rng.random(300) < expit(0.5 * (y - y.mean()))).astype(int)


def conditioned(rng, n, d, condition):
    """Features whose covariance has this condition number, in a random basis."""
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return rng.standard_normal((n, d)) * condition ** (0.5 * np.linspace(0, -1, d)) @ Q


def excess_in_floors(model, X, y):
    """Excess of the mean square over least squares, in statistical errors s^2 p / N."""
    exact = LinearRegression().fit(X, y).predict(X)
    n, d = X.shape
    return np.mean((model.predict(X) - exact) ** 2) * n / (np.mean((y - exact) ** 2) * (d + 1))


def log_loss(model, X, y, weight=None):
    codes = np.searchsorted(model.classes_, y)
    return -np.average(model.predict_log_proba(X)[np.arange(len(y)), codes], weights=weight)


def poisson_loss(mean, y):
    return np.mean(mean - y * np.log(mean))


def huber_loss(raw, y, epsilon):
    residual = np.abs(raw - y)
    inner = np.minimum(residual, epsilon)
    return np.mean(inner * (residual - 0.5 * inner))


def assert_same_model(a, b, tol=1e-7):
    assert_allclose(a.coef_, b.coef_, rtol=tol, atol=tol)
    assert_allclose(a.intercept_, b.intercept_, rtol=tol, atol=tol)


# --- scikit-learn's checks


@pytest.mark.parametrize(
    ("estimator", "check"), CHECKS, ids=[f"{e!r}-{c.func.__name__}" for e, c in CHECKS]
)
def test_scikit_learn_check(estimator, check):
    with warnings.catch_warnings():
        # The checks set max_iter=1 or so, separate their classes and fit rank-deficient rows
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", CalibrationWarning)
        check(estimator)


@pytest.mark.parametrize("cls", BOTH)
def test_every_parameter_is_constrained_and_stored_as_given(cls):
    given = {name: object() for name in cls().get_params()}
    assert cls(**given).get_params() == given
    assert given.keys() == cls._parameter_constraints.keys()


# --- solutions: squared error


def test_passes_and_excess_do_not_depend_on_the_condition_number(mini_batches):
    passes = []
    for condition in (1.0, 1e4, 1e8, 1e12):
        rng = np.random.default_rng(0)
        X = conditioned(rng, 40_000, 30, condition)
        y = rng.standard_normal(40_000) + X @ rng.standard_normal(30) * 3
        model = Regressor(random_state=0).fit(X, y)
        assert model.converged_
        assert excess_in_floors(model, X, y) < 0.05
        passes.append(model.n_passes_)
    assert len(set(passes)) == 1
    assert passes[0] <= 6


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 1e-3, 1.0])
def test_it_is_ridge_regression(data, alpha, intercept):
    model = Regressor(
        alpha=alpha, fit_intercept=intercept, random_state=0, penalty_units="raw"
    ).fit(*data)
    assert_same_model(model, Ridge(alpha=300 * alpha, fit_intercept=intercept).fit(*data))


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_mini_batches_reach_ridge_regression(mini_batches, rng, alpha):
    X = conditioned(rng, 4000, 5, 1e6) + 2
    y = X.sum(axis=1) + rng.standard_normal(4000)
    model = Regressor(alpha=alpha, tol=1e-10, random_state=0, penalty_units="raw").fit(X, y)
    assert_allclose(model.predict(X), Ridge(alpha=4000 * alpha).fit(X, y).predict(X), atol=1e-5)
    assert model.learning_rate_ > 0


@pytest.mark.parametrize("n", [300, 4000])
def test_several_targets_are_fitted_at_once(mini_batches, rng, n):
    X = conditioned(rng, n, 5, 1e4)
    Y = X @ rng.standard_normal((5, 3)) + [0, 1, 2] + rng.standard_normal((n, 3))
    model = Regressor(tol=1e-8, random_state=0).fit(X, Y)
    assert model.coef_.shape == (3, 5)
    assert_allclose(model.predict(X), LinearRegression().fit(X, Y).predict(X), atol=1e-4)


def test_a_column_of_targets_gives_a_column_of_predictions(data):
    X, y = data
    assert Regressor().fit(X, y[:, None]).predict(X).shape == (300, 1)


@pytest.mark.parametrize("n", [300, 4000])
@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_offsets_are_harmless(mini_batches, rng, n, offset):
    X = rng.standard_normal((n, 4)) * [1, 10, 0.1, 1]
    y = X.sum(axis=1) + rng.standard_normal(n)
    shift = offset * np.array([1, 10, 0.1, -1])
    model = Regressor(random_state=0).fit(X + shift, y + offset)
    exact = LinearRegression().fit(X, y)
    # X + shift itself is known to 1e-16 * offset of its deviation
    excess = np.mean((model.predict(X + shift) - offset - exact.predict(X)) ** 2)
    assert excess * n / 5 < 0.05


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", ["student", "one_hot"])
def test_heavy_rows_and_rare_levels_converge(mini_batches, rows, seed):
    rng = np.random.default_rng(seed)
    n = 8000
    X = rng.standard_t(2, size=(n, 6))
    if rows == "one_hot":
        levels = np.minimum(rng.geometric(0.35, n), 20)
        X = np.eye(21)[levels][:, np.unique(levels)[1:]]
    y = rng.standard_normal(n) + X.sum(axis=1)
    model = Regressor(random_state=seed).fit(X, y)
    assert model.converged_
    assert excess_in_floors(model, X, y) < 0.05


def test_sorted_rows_converge(mini_batches, rng):
    X = np.sort(rng.standard_normal((6000, 4)), axis=0) + 0.01 * rng.standard_normal((6000, 4))
    y = X[:, 0] + rng.standard_normal(6000)
    model = Regressor(random_state=0).fit(X, y)
    assert excess_in_floors(model, X, y) < 0.05


@pytest.mark.parametrize("n", [60, 4000])
def test_a_perfect_fit_is_found(mini_batches, rng, n):
    X = conditioned(rng, n, 5, 1e4)
    model = Regressor(random_state=0).fit(X, X @ np.arange(5.0) + 7)
    assert model.converged_
    assert_allclose(model.predict(X), X @ np.arange(5.0) + 7, atol=1e-9)


def test_one_feature():
    X = np.arange(9.0)[:, None]
    assert_allclose(Regressor().fit(X, 2 * X[:, 0] - 1).coef_, [2])


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="one class"):
        Classifier(alpha=0.0).fit([[1.0]], [0])


def test_a_constant_target_is_its_mean(data):
    model = Regressor().fit(data[0], np.full(300, 5.0))
    assert_allclose(model.predict(data[0]), 5)


# --- solutions: the other losses


def test_huber_of_a_large_epsilon_is_least_squares(data):
    model = Regressor("huber", epsilon=1e6, random_state=0).fit(*data)
    assert_same_model(model, LinearRegression().fit(*data), tol=1e-5)


def test_huber_shrugs_at_outliers(data):
    X, y = data
    spoiled = y.copy()
    spoiled[:10] += 1e6
    model = Regressor("huber", random_state=0).fit(X, spoiled)
    assert_allclose(model.coef_, LinearRegression().fit(X, y).coef_, atol=0.5)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("mean", [0.1, 3.0, 1e4])
@pytest.mark.parametrize("n", [300, 4000])
def test_poisson_reaches_the_minimum(mini_batches, rng, mean, alpha, n):
    X = rng.standard_normal((n, 3))
    y = rng.poisson(mean * np.exp(X @ [0.5, -0.5, 0.2])).astype(float)
    model = Regressor("poisson", alpha=alpha, random_state=0, penalty_units="raw").fit(X, y)
    reference = PoissonRegressor(alpha=alpha, tol=1e-6, solver="newton-cholesky").fit(X, y)

    def objective(fitted):
        penalty = 0.5 * alpha * np.sum(fitted.coef_**2)
        return poisson_loss(fitted.predict(X), y) + penalty

    assert model.converged_
    # tol = 1e-2 floors of p/N in the decrement, half of that in the objective
    assert objective(model) - objective(reference) < 0.01 * 4 / n


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 1e-2])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("n", [400, 6000])
def test_logistic_regression_reaches_the_minimum(mini_batches, rng, classes, alpha, intercept, n):
    X = conditioned(rng, n, 4, 1e4) + 0.3
    raw = X @ rng.standard_normal((4, classes)) * 2 + rng.gumbel(size=(n, classes))
    y = raw.argmax(axis=1)
    model = Classifier(
        alpha=alpha, fit_intercept=intercept, random_state=0, penalty_units="raw"
    ).fit(X, y)
    reference = LogisticRegression(
        C=1 / (n * alpha) if alpha else np.inf,
        fit_intercept=intercept,
        solver="newton-cholesky",
        tol=1e-10,
    ).fit(X, y)

    def objective(fitted):
        return log_loss(fitted, X, y) + 0.5 * alpha * np.sum(fitted.coef_**2)

    # tol = 1e-2 floors, as seen by a preconditioner that takes confident rows for stiffer than
    # they are: three times that is allowed, and the law's three; a floor is p / 2n
    p = (4 + intercept) * max(classes - 1, 1)
    assert model.converged_
    assert objective(model) - objective(reference) < 0.09 * p / (2 * n)


def test_multinomial_coefficients_sum_to_zero(data):
    X, y = data
    model = Classifier(random_state=0, alpha=0.0).fit(
        X, np.digitize(y, np.quantile(y, [0.3, 0.7])) + 1
    )
    assert_allclose(model.coef_.sum(axis=0), 0, atol=1e-12)
    assert_allclose(model.intercept_.sum(), 0, atol=1e-12)


def test_tight_tolerance_gives_the_coefficients_of_logistic_regression(labelled):
    model = Classifier(tol=1e-8, random_state=0, alpha=0.0).fit(*labelled)
    reference = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky").fit(*labelled)
    assert_same_model(model, reference, tol=1e-5)


@pytest.mark.parametrize("weight", ["balanced", {"a": 1.0, "b": 5.0}])
def test_class_weights_are_those_of_logistic_regression(labelled, weight):
    X, y = labelled[0], np.array(["a", "b"])[labelled[1]]
    model = Classifier(class_weight=weight, alpha=0.01, random_state=0, penalty_units="raw").fit(
        X, y
    )
    total = np.sum(class_weighted(weight, model.classes_, y, None))
    reference = LogisticRegression(
        C=1 / (0.01 * total), class_weight=weight, tol=1e-12, solver="newton-cholesky"
    ).fit(X, y)
    assert_same_model(model, reference, tol=1e-4)


@pytest.mark.parametrize("alpha", [0.01, "auto"])
def test_balanced_classes_count_weights_as_repetitions(labelled, alpha):
    X, y = labelled[0][:300], labelled[1][:300]
    times = np.random.default_rng(0).integers(0, 4, len(y)) + y
    settings = {"class_weight": "balanced", "alpha": alpha, "tol": 1e-8}
    weighted = Classifier(**settings).fit(X, y, times)
    repeated = Classifier(**settings).fit(np.repeat(X, times, axis=0), np.repeat(y, times))
    assert_allclose(weighted.decision_function(X), repeated.decision_function(X), atol=1e-4)


def test_balanced_weights_are_those_of_weighted_frequencies(labelled):
    y = labelled[1] + (np.arange(len(labelled[1])) % 5 == 0)
    sample_weight = np.random.default_rng(1).uniform(0.0, 2.0, len(y)) * (y < 2)
    totals = np.bincount(y, sample_weight)
    by_hand = {0: totals.sum() / (2 * totals[0]), 1: totals.sum() / (2 * totals[1])}
    weights = [class_weighted(w, np.unique(y), y, sample_weight) for w in ("balanced", by_hand)]
    assert_allclose(*weights)
    assert_allclose(np.bincount(y, weights[0]), [totals.sum() / 2, totals.sum() / 2, 0])
    assert_allclose(balanced(np.zeros(2)), 1)


@pytest.mark.parametrize("seed", range(3))
def test_rare_positives_converge(mini_batches, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((8000, 4)) * [1, 100, 0.01, 1]
    y = rng.random(8000) < expit(X @ [1, 0.01, 50, -1] - 6)
    model = Classifier(random_state=seed, alpha=0.0).fit(X, y)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(X, y)
    assert model.converged_
    assert log_loss(model, X, y) - log_loss(reference, X, y) < 0.09 * 5 / (2 * 8000)


@pytest.mark.parametrize("intercept", [True, False])
def test_separable_classes_end_with_finite_coefficients(intercept):
    X = np.array([[-2.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [2.0, -1.0], [-1.5, 2], [1.5, 3]])
    y = (X[:, 0] > 0).astype(int)
    with pytest.warns(ConvergenceWarning, match=SEPARABLE):
        model = Classifier(fit_intercept=intercept, random_state=0, alpha=0.0).fit(X, y)
    assert not model.converged_
    assert np.isfinite(model.coef_).all()
    assert_array_equal(model.predict(X), y)


SEPARABLE = (
    r"^The classes are separable: at a mean loss of \S+ every row is on the side of its class, so "
    r"that without a penalty there is no solution, and coefficients grow without end\. Pass alpha"
)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_separable_classes_are_said_to_be_so(mini_batches, rng, n_classes, weighted):
    X = rng.standard_normal((4000, 3))
    y = np.digitize(X[:, 0], [0.0, 1.0][: n_classes - 1])
    X[:, 1] += 3 * y  # several classes need a direction each
    X[:, 2] += 20 * (y == 1)
    weight = rng.uniform(0, 1, 4000) if weighted else None
    with pytest.warns(ConvergenceWarning, match=SEPARABLE):
        model = Classifier(random_state=0, alpha=0.0).fit(X, y, weight)
    assert model.n_iter_ < 40
    assert model.score(X, y) == 1.0
    assert Classifier(alpha=1e-3, random_state=0, penalty_units="raw").fit(X, y, weight).converged_


def test_probabilities_are_consistent(labelled):
    X, y = labelled
    model = Classifier(random_state=0, alpha=0.0).fit(X, y)
    proba = model.predict_proba(X)
    assert_allclose(proba.sum(axis=1), 1)
    assert_allclose(np.log(proba), model.predict_log_proba(X))
    assert_allclose(proba[:, 1], expit(model.decision_function(X)))
    assert_array_equal(model.predict(X), proba.argmax(axis=1))


# --- invariances


def one_round(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # on the way, not at the end
        return model.set_params(max_iter=1, tol=0).fit(X, y)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), digits=st.floats(0, 9), shift=st.floats(-3, 3))
@pytest.mark.parametrize("kind", ["squared_error", "log_loss", "poisson", "no_intercept"])
def test_the_path_is_equivariant_under_affine_maps(kind, seed, digits, shift):
    rng = np.random.default_rng(seed)
    n, d = 1300, 3
    X = rng.standard_normal((n, d))
    raw = X @ [1.0, -0.5, 0.2]
    Q, V = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
    A = Q * 10 ** (digits * np.linspace(-0.5, 0.5, d)) @ V
    model = Regressor(random_state=0)
    y = raw + rng.standard_normal(n)
    if kind == "log_loss":
        model, y = Classifier(random_state=0, alpha=0.0), (rng.random(n) < expit(raw)).astype(int)
    if kind == "poisson":
        model, y = Regressor("poisson", random_state=0), rng.poisson(np.exp(raw)).astype(float)
    if kind == "no_intercept":
        model, shift = Regressor(fit_intercept=False, random_state=0), 0
    with pytest.MonkeyPatch.context() as patch:
        plans.plan_for(patch, plans.mini_batches)
        first = one_round(clone(model), X, y)
        second = one_round(clone(model), X @ A + shift, y)
    a, b = first._raw_prediction(X), second._raw_prediction(X @ A + shift)
    assert_allclose(a, b, atol=1e-6 * np.std(a))
    assert first.n_passes_ == second.n_passes_
    assert_allclose(first.history_[-1]["loss"], second.history_[-1]["loss"], rtol=1e-6)


def test_targets_in_other_units_give_the_same_path(mini_batches, rng):
    X, y = conditioned(rng, 4000, 4, 1e3), rng.standard_normal(4000)
    first, second = (one_round(Regressor(random_state=0), X, u * y) for u in (1, 1e6))
    assert_allclose(second.coef_, 1e6 * first.coef_, rtol=1e-8)


@pytest.mark.parametrize("loss", ["squared_error", "huber", "poisson", "log_loss"])
def test_weights_are_repetitions(data, labelled, loss):
    X, y = labelled if loss == "log_loss" else (data[0] / 3, np.abs(data[1]) // 4)
    weight = np.random.default_rng(0).integers(0, 4, 300)
    model = Classifier(tol=1e-6, alpha=0.0) if loss == "log_loss" else Regressor(loss, tol=1e-6)
    model = model.set_params(alpha=0.01, random_state=0)
    weighted = clone(model).fit(X, y, weight)
    repeated = clone(model).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    removed = clone(model).fit(X[weight > 0], y[weight > 0], weight[weight > 0])
    assert_same_model(weighted, repeated, tol=1e-4)
    assert_same_model(weighted, removed, tol=1e-4)


def test_weights_in_other_units_change_nothing(data, rng):
    weight = rng.uniform(size=300)
    first, second = (Regressor(random_state=0).fit(*data, u * weight) for u in (1, 1e-9))
    assert_same_model(first, second)


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix])
@pytest.mark.parametrize("n", [300, 3000])
@pytest.mark.parametrize("cls", BOTH)
def test_sparse_is_dense(mini_batches, rng, container, n, cls):
    X = rng.standard_normal((n, 4)) * (rng.random((n, 4)) < 0.5) * [1, 10, 100, 1000]
    y = X[:, 0] + rng.standard_normal(n)
    y = (y > 0).astype(int) if cls is Classifier else y
    dense = cls(random_state=0).fit(X, y)
    model = cls(random_state=0).fit(container(X), y)
    assert_same_model(model, dense)
    assert_allclose(model.predict(container(X)), dense.predict(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [300, 4000])
@pytest.mark.parametrize("cls", BOTH)
def test_float32_is_kept_and_near_float64(mini_batches, rng, n, cls):
    X = rng.standard_normal((n, 4)).astype(np.float32)
    y = X[:, 0] + rng.standard_normal(n)
    y = (y > 0).astype(int) if cls is Classifier else y.astype(np.float32)
    single, double = (cls(random_state=0).fit(X.astype(t), y) for t in (np.float32, np.float64))
    assert single.coef_.dtype == np.float32
    assert double.coef_.dtype == np.float64
    assert_same_model(single, double, tol=1e-5)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_read_only_memory_map_gives_the_fit_of_the_array(mini_batches, rng, tmp_path, order):
    X = np.asarray(rng.standard_normal((3000, 4)), order=order)
    y = X.sum(axis=1) + rng.standard_normal(3000)
    mapped = joblib.load(joblib.dump((X, y), tmp_path / "data.joblib")[0], mmap_mode="r")
    assert_same_model(Regressor(random_state=0).fit(*mapped), Regressor(random_state=0).fit(X, y))


def test_frames_give_names_and_the_fit_of_the_array(data):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(data[0], columns=list("abcd"))
    model = Regressor(random_state=0).fit(X, pandas.Series(data[1]))
    assert_array_equal(model.feature_names_in_, list("abcd"))
    assert_same_model(model, Regressor(random_state=0).fit(*data))


@pytest.mark.parametrize(
    "seed", [0, np.random.RandomState, np.random.default_rng], ids=["int", "state", "generator"]
)
def test_seeds_reproduce(mini_batches, rng, seed):
    X, y = rng.standard_normal((3000, 4)), rng.standard_normal(3000)
    first, second = (
        Regressor(random_state=seed(0) if callable(seed) else seed).fit(X, y) for _ in range(2)
    )
    assert_array_equal(first.coef_, second.coef_)
    assert not np.array_equal(first.coef_, Regressor(random_state=1).fit(X, y).coef_)


@pytest.mark.parametrize("cls", BOTH)
def test_pickling_keeps_the_fit_and_cloning_forgets_it(labelled, cls):
    model = cls(random_state=0).fit(*labelled)
    copy = pickle.loads(pickle.dumps(model))
    assert_array_equal(copy.predict(labelled[0]), model.predict(labelled[0]))
    assert vars(clone(model)) == model.get_params()


def test_threads_may_fit_at_once(mini_batches, rng):
    X, y = rng.standard_normal((3000, 4)), rng.standard_normal(3000)
    fits = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(Regressor(random_state=0).fit)(X, y) for _ in range(4)
    )
    for model in fits[1:]:
        assert_array_equal(model.coef_, fits[0].coef_)


def test_fit_leaves_its_arguments_alone(labelled):
    X, y = labelled
    weight, coef = np.ones(300), np.ones((1, 4))
    before = X.copy(), weight.copy(), coef.copy()
    Classifier(random_state=0, alpha=0.0).fit(X, y, weight, coef_init=coef)
    for a, b in zip((X, weight, coef), before, strict=True):
        assert_array_equal(a, b)


# --- rank deficiency


def deficient(kind, rng, n):
    X = rng.standard_normal((n, 4))
    if kind == "duplicated":
        X = X[:, [0, 1, 2, 3, 3]]
    if kind == "constant":
        X = np.column_stack([X, np.full(n, 3.0)])
    if kind == "zero":
        X = np.column_stack([X, np.zeros(n)])
    if kind == "sum":
        X = np.column_stack([X, 100 * X[:, 0] + X[:, 1]])
    return X


@pytest.mark.parametrize("n", [200, 4000])
@pytest.mark.parametrize("kind", ["duplicated", "constant", "zero", "sum"])
def test_undetermined_features_warn_and_predict_as_least_squares(mini_batches, rng, kind, n):
    X = deficient(kind, rng, n)
    y = X[:, 0] - X[:, 2] + rng.standard_normal(n)
    model = Regressor(tol=1e-6, random_state=0).fit(X, y)
    assert model.rank_ == 5 - 1
    assert np.isfinite(model.coef_).all()
    exact = LinearRegression().fit(X, y).predict(X)
    assert_allclose(model.predict(X), exact, atol=1e-3)


@pytest.mark.parametrize("value", [0.1, 1.0, 3.0, 1e6])
@pytest.mark.parametrize("n", [30, 1000, 20_000])
@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("exact", [True, False])
def test_a_constant_feature_is_seen_among_any_number_of_rows(monkeypatch, rng, n, d, value, exact):
    plans.plan_for(monkeypatch, plans.exact if exact else plans.mini_batches)
    X = rng.standard_normal((n, d)) + 1
    X[:, -1] = value
    model = Regressor(random_state=0).fit(X, rng.standard_normal(n))
    assert model.rank_ == d - 1
    assert np.all(np.abs(model.coef_) < 10)


def test_an_unlucky_step_is_undone_in_silence(mini_batches, rng):
    X = rng.standard_normal((4000, 3))
    y = rng.poisson(1e6 * np.exp(X @ [1.0, -1.0, 0.5])) + 1.0
    # Without its intercept the model misfits, and the statistical error is large
    model = Regressor("poisson", fit_intercept=False, tol=1e-10, random_state=0).fit(X, y)
    assert model.converged_
    assert_allclose(X.T @ (model.predict(X) - y) / y.sum(), 0, atol=1e-5)


@pytest.mark.parametrize("kind", ["duplicated", "constant", "zero", "sum"])
def test_undetermined_features_do_not_harm_the_classifier(rng, kind):
    X = deficient(kind, rng, 300)
    y = (X[:, 0] + rng.logistic(size=300) > 0).astype(int)
    model = Classifier(random_state=0, alpha=0.0).fit(X, y)
    assert model.rank_ == 5 - 1
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(X[:, :4], y)
    assert log_loss(model, X, y) - log_loss(reference, X[:, :4], y) < 1e-5


@pytest.mark.parametrize("intercept", [True, False])
def test_more_features_than_rows_are_fitted_exactly(rng, intercept):
    X, y = rng.standard_normal((20, 50)), rng.standard_normal(20)
    model = Regressor(fit_intercept=intercept, random_state=0).fit(X, y)
    assert_allclose(model.predict(X), y, atol=1e-7)


def test_more_features_than_rows_give_the_minimum_norm(rng):
    X, y = rng.standard_normal((20, 50)), rng.standard_normal(20)
    model = Regressor(fit_intercept=False, random_state=0).fit(X, y)
    assert np.linalg.norm(model.coef_) < 1.2 * np.linalg.norm(np.linalg.pinv(X) @ y)


def test_a_penalty_determines_all(rng):
    X, y = rng.standard_normal((20, 50)), rng.standard_normal(20)
    model = Regressor(alpha=0.1, random_state=0, penalty_units="raw").fit(X, y)
    assert_same_model(model, Ridge(alpha=2).fit(X, y), tol=1e-6)


# --- what the fit reports


@pytest.fixture
def large(mini_batches, rng):
    X = conditioned(rng, 4000, 4, 1e4)
    return X, X @ [1.0, 2.0, 3.0, 4.0] + rng.standard_normal(4000)


def test_history_tells_the_truth(large):
    X, y = large
    model = Regressor(tol=1e-6, random_state=0).fit(X, y)
    last = model.history_[-1]
    keys = {"loss", "decrement", "floor", "passes", "seconds"}
    assert all(record.keys() == keys for record in model.history_)
    decrements, passes, seconds = (
        [record[key] for record in model.history_] for key in ("decrement", "passes", "seconds")
    )
    assert np.all(np.diff(decrements) < 0)
    assert np.all(np.diff(passes) > 0)
    assert np.all(np.diff(seconds) >= 0)
    assert model.n_iter_ == len(model.history_) - 1
    assert model.n_passes_ >= last["passes"]
    assert model.t_ == round(4000 * model.n_passes_)
    assert_allclose(last["loss"], 0.5 * np.mean((y - model.predict(X)) ** 2), rtol=1e-6)
    square = np.mean((y - model.predict(X)) ** 2)
    assert_allclose(last["floor"], square * 5 / 4000, rtol=1e-3)


@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_converged_means_that_the_coefficients_returned_meet_tol(large, tol):
    X, y = large
    for seed in range(5):
        model = Regressor(tol=tol, random_state=seed).fit(X, y)
        assert model.converged_
        # The law's factor of three between the sketched decrement and the true one
        assert excess_in_floors(model, X, y) < 3 * tol


def test_the_decrement_is_the_suboptimality_to_the_accuracy_of_the_law(large):
    model = one_round(Regressor(random_state=0), *large)
    best = 0.5 * np.mean((large[1] - LinearRegression().fit(*large).predict(large[0])) ** 2)
    first = model.history_[0]
    # g' P^-1 g is within [1/3, 3] of g' H^-1 g, which is twice the suboptimality
    assert 0.2 < 0.5 * first["decrement"] / (first["loss"] - best) < 4


def test_a_smaller_tol_gives_a_smaller_decrement(large):
    decrements = [
        Regressor(tol=tol, random_state=0).fit(*large).history_[-1]["decrement"]
        for tol in (1e-2, 1e-6, 1e-10)
    ]
    # one stride may pass two targets
    assert decrements[0] >= decrements[1] >= decrements[2]
    assert decrements[0] > decrements[2]


@pytest.mark.unjittered("the warning names the caller's file, which then is that of the jitter")
@pytest.mark.parametrize("identity", [True, False])
def test_ending_early_warns_with_the_numbers(large, identity):
    model = Regressor(max_iter=1, tol=1e-12, random_state=0)
    model.set_params(preconditioner="identity" if identity else "auto")
    with pytest.warns(ConvergenceWarning, match="Not converged after 1 iterations and") as caught:
        model.fit(*large)
    last, message = model.history_[-1], str(caught[0].message)
    assert not model.converged_
    assert f"the decrement is {last['decrement']:.3g}" in message
    assert f"the target {1e-12 * last['floor']:.3g}. Increase max_iter or tol" in message
    assert f"{model.n_passes_:.1f} passes over X" in message
    assert ("or use preconditioner='auto'" in message) is identity
    assert caught[0].filename == __file__


def test_the_learning_rate_is_zero_where_no_mini_batch_was_used(data):
    assert Regressor(random_state=0).fit(*data).learning_rate_ == 0


def test_the_preconditioner_is_the_covariance_of_the_features(large):
    X, y = large
    estimator = Regressor(random_state=0).fit(X, y).covariance_estimator_
    assert isinstance(estimator, GradientCovarianceEstimator)
    eigenvalues = np.linalg.eigvals(np.linalg.solve(np.cov(X.T), estimator.covariance_)).real
    # Marchenko-Pastur for four batches a coefficient: (1 -+ 1/2)^2
    assert 0.15 < eigenvalues.min() < eigenvalues.max() < 3


def test_the_exact_preconditioner_is_the_covariance(data):
    estimator = Regressor(random_state=0).fit(*data).covariance_estimator_
    assert_allclose(estimator.covariance_, np.cov(data[0].T, bias=True), rtol=1e-8)


def test_plain_steps_leave_an_estimate_of_the_hessian_too(mini_batches, rng):
    X = rng.standard_normal((4000, 4))
    X[:, 0] += X[:, 1]
    y = X.sum(axis=1) + rng.standard_normal(4000)
    estimator = Regressor(preconditioner="identity", random_state=0).fit(X, y).covariance_estimator_
    assert estimator.n_batches_ >= 4 * 5
    assert calibration_report(estimator).expected_error == estimator.expected_error_ > 0
    eigenvalues = np.linalg.eigvals(np.linalg.solve(np.cov(X.T), estimator.covariance_)).real
    assert 0.15 < eigenvalues.min() < eigenvalues.max() < 3


def test_the_estimator_of_several_classes_is_their_mean(rng):
    X = rng.standard_normal((2000, 3)) * [1, 10, 100]
    y = (X / [1, 10, 100] + rng.gumbel(size=(2000, 3)) - [4, 0, 0]).argmax(axis=1)
    assert np.mean(y == 0) < 0.05  # whose own block is small
    model = Classifier(random_state=0, alpha=0.0).fit(X, y)
    estimator = model.covariance_estimator_
    blocks = [factor.T @ factor for factor in model._factors]
    factor = estimator.fitted_.hessian_factor(intercept=True)
    assert_allclose(factor.T @ factor, np.mean(blocks, axis=0), rtol=1e-10)
    # The bound of the curvature, at the place of the last sketch: near the curvature itself
    p = model.predict_proba(X)
    Z = np.column_stack([np.ones(2000), X])
    curvature = np.mean([Z.T @ (v[:, None] * Z) / 2000 for v in (p * (1 - p)).T], axis=0)
    ratios = np.linalg.eigvals(np.linalg.solve(curvature, factor.T @ factor)).real
    assert 0.8 < ratios.min() < ratios.max() < 3


def test_the_estimator_of_huber_keeps_epsilon(data):
    X, y = data
    model = Regressor("huber", epsilon=50.0, random_state=0).fit(X, y)
    estimator = model.covariance_estimator_
    same, other = (
        GradientCovarianceEstimator(batch_size=1, loss="huber", epsilon=bend, random_state=0)
        for bend in (50.0 * model.scale_, 1.35)
    )
    assert estimator.merge(same.fit(X, y)).n_samples_seen_ == 600
    with pytest.raises(ValueError, match=r"merge estimators with epsilon=\S+ and epsilon=1\.35"):
        estimator.merge(other.fit(X, y))


def test_verbose_prints_a_line_a_round(data, capsys):
    model = Regressor("huber", verbose=1, random_state=0).fit(*data)
    planned, *lines = capsys.readouterr().out.splitlines()
    assert planned == "plan: Plan(preconditioner='exact', method='newton', n_batches=300, share=1)"
    assert len(lines) == len(model.history_)
    assert re.fullmatch(
        r"iteration 0: loss \S+, decrement \S+ \(target \S+\), \d+\.\d passes, \d+\.\d\d s",
        lines[0],
    )


def test_a_fit_is_silent(data, capsys):
    Regressor(random_state=0).fit(*data)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("cls", BOTH)
def test_use_before_fit_says_so(cls):
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        cls().predict([[1.0]])


# --- method parameters


def test_identity_converges_on_well_conditioned_features(mini_batches, rng):
    X = rng.standard_normal((4000, 4))
    y = X.sum(axis=1) + rng.standard_normal(4000)
    model = Regressor(preconditioner="identity", random_state=0).fit(X, y)
    assert model.converged_
    assert excess_in_floors(model, X, y) < 0.05


def test_identity_warns_on_ill_conditioned_features(mini_batches, rng):
    X = rng.standard_normal((4000, 4)) * [1, 1e3, 1e-3, 1]
    model = Regressor(preconditioner="identity", max_iter=5, random_state=0)
    with pytest.warns(ConvergenceWarning, match="or use preconditioner='auto'"):
        model.fit(X, X @ [1, 1e-3, 1e3, 1] + rng.standard_normal(4000))
    assert not model.converged_


def test_a_fitted_preconditioner_is_used_as_it_is(large):
    X, y = large
    given = GradientCovarianceEstimator(random_state=0).fit(X[:2000], y[:2000])
    before = given.covariance_.copy()
    model = Regressor(preconditioner=given, random_state=0).fit(X, y)
    assert model.covariance_estimator_ is given
    assert_array_equal(given.covariance_, before)
    assert excess_in_floors(model, X, y) < 0.05


def test_an_unfitted_preconditioner_is_cloned_and_fitted(large):
    given = GradientCovarianceEstimator(random_state=0)
    model = Regressor(preconditioner=given, random_state=0).fit(*large)
    assert model.covariance_estimator_ is not given
    assert not hasattr(given, "covariance_")
    assert excess_in_floors(model, *large) < 0.05


def test_a_preconditioner_of_other_features_is_refused(data):
    given = GradientCovarianceEstimator(random_state=0).fit(data[0][:, :3], data[1])
    with pytest.raises(ValueError, match=r"was fitted on 3 features, X has 4\. Pass an estimator"):
        Regressor(preconditioner=given).fit(*data)


@pytest.mark.parametrize("settings", [{"variance_reduction": False}, {"max_iter": 1}])
def test_who_meets_tol_has_converged_though_small_data_are_fitted_further(settings):
    met = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((100, 3))
        y = (X @ [0.5, -0.5, 1.0] + rng.standard_normal(100) > 0).astype(int)
        model = Classifier(tol=2.0, random_state=seed, **settings)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.fit(X, y)
        last = model.history_[-1]
        meets = last["decrement"] <= 2 * last["floor"]
        assert model.converged_ == meets
        assert [str(w.message).startswith("Not converged") for w in said] == [True] * (not meets)
        met += meets and last["decrement"] > 1e-6 * last["floor"]
    assert met


@pytest.mark.parametrize("name", ["variance_reduction", "average"])
def test_plain_steps_run_for_comparison(large, name):
    model = Regressor(random_state=0, **{name: False})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # they come to rest at a distance
        model.fit(*large)
    assert model.score(*large) > 0.9 * LinearRegression().fit(*large).score(*large)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_a_given_learning_rate_is_used(large, rate):
    model = Regressor(learning_rate=rate, random_state=0).fit(*large)
    assert model.learning_rate_ == rate
    assert excess_in_floors(model, *large) < 0.05


@pytest.mark.parametrize("rate", [5.0, 1e3])
def test_a_learning_rate_that_diverges_is_survived(large, rate):
    model = Regressor(learning_rate=rate, random_state=0).fit(*large)
    assert excess_in_floors(model, *large) < 0.05


@pytest.mark.parametrize("batch_size", [1, 8, 40])
def test_a_given_batch_size_converges(large, batch_size):
    model = Regressor(batch_size=batch_size, random_state=0).fit(*large)
    assert excess_in_floors(model, *large) < 0.05


@pytest.mark.parametrize("oversampling", [1.5, 8.0])
def test_other_oversampling_converges(large, oversampling):
    model = Regressor(oversampling=oversampling, random_state=0).fit(*large)
    assert excess_in_floors(model, *large) < 0.05


def test_unshuffled_rows_converge(large):
    model = Regressor(shuffle=False, random_state=0).fit(*large)
    assert excess_in_floors(model, *large) < 0.05


@pytest.mark.parametrize("cls", BOTH)
def test_early_stopping_records_the_loss_of_held_out_rows(data, labelled, cls):
    X, y = labelled if cls is Classifier else data
    model = cls(early_stopping=True, random_state=0, tol=1e-6).fit(X, y)
    assert all(np.isfinite(record["validation_loss"]) for record in model.history_)
    assert model.score(X, y) > 0.7


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_early_stopping_waits_for_rounds_without_improvement(rng, mini_batches, rounds):
    X, y = rng.standard_normal((4000, 4)), rng.standard_normal(4000)
    model = Regressor(early_stopping=True, n_iter_no_change=rounds, tol=0, random_state=0)
    model.fit(X, y)  # and does not warn
    assert not model.converged_
    losses = [record["validation_loss"] for record in model.history_]
    # Records, then as many rounds without one as it should wait, and no such run before
    improved = [loss < min(losses[:i], default=np.inf) for i, loss in enumerate(losses)]
    assert "".join("+" if better else "-" for better in improved).find("-" * rounds) == (
        len(losses) - rounds
    )


def test_early_stopping_survives_held_out_rows_without_weight(data):
    weight = np.zeros(300)
    weight[:30] = 1
    model = Regressor(early_stopping=True, validation_fraction=0.01, random_state=0)
    model.fit(*data, weight)
    assert np.isfinite(model.coef_).all()


@pytest.mark.parametrize("cls", BOTH)
def test_a_warm_start_at_the_solution_takes_no_step(labelled, cls):
    model = cls(warm_start=True, random_state=0).fit(*labelled)
    before = model.coef_.copy()
    model.fit(*labelled)
    assert len(model.history_) == 1
    assert_allclose(model.coef_, before, rtol=1e-3)


def test_a_warm_start_of_another_shape_starts_anew(data):
    X, y = data
    model = Regressor(warm_start=True, random_state=0).fit(X, y).fit(X[:, :3], y)
    assert_same_model(model, LinearRegression().fit(X[:, :3], y))


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_coef_init_is_where_it_starts(data, loss):
    X, y = data[0], np.round(np.abs(data[1]))
    model = Regressor(loss, random_state=0)
    model.fit(X, y, coef_init=[0.1, -0.1, 0.2, 0.05], intercept_init=1.5)
    raw = X @ [0.1, -0.1, 0.2, 0.05] + 1.5
    if loss == "poisson":
        value = poisson_loss(np.exp(raw), y) - np.mean(y - xlogy(y, y))
        assert_allclose(model.history_[0]["loss"], value)
    else:
        assert_allclose(model.history_[0]["loss"], np.mean((raw - y) ** 2) / 2)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"coef_init": [1.0]}, r"coef_init has shape \(1,\), but 1 output\(s\) of 4 features"),
        ({"coef_init": [1, 2, 3, np.nan]}, "pass finite coefficients of the shape of coef_"),
        ({"intercept_init": [1.0, 2.0]}, r"intercept_init has 2 values, but there are 1 output"),
        ({"intercept_init": np.inf}, "pass one finite number each"),
    ],
)
def test_a_start_of_the_wrong_shape_is_refused(data, start, message):
    with pytest.raises(ValueError, match=message):
        Regressor().fit(*data, **start)


# --- noise="single"


def test_single_noise_ends_within_its_efficiency(rng):
    n, d, size = 20_000, 4, 8
    X = conditioned(rng, n, d, 1e4) + 1
    y = X.sum(axis=1) + rng.standard_normal(n)
    model = Regressor(noise="single", batch_size=size, random_state=0).fit(X, y)
    assert model.converged_
    assert model.learning_rate_ == 1
    # Targets of variance `size` instead of one: `size` floors a step; ten steps are averaged
    # and the inverse of k >> p gradients adds little, so one floor of that kind is generous
    assert excess_in_floors(model, X, y) < size
    assert model.n_passes_ == len(model.history_)


def test_single_noise_fits_a_classifier(rng):
    X = rng.standard_normal((20_000, 3))
    y = (rng.random(20_000) < expit(X @ [1.0, -1.0, 0.5])).astype(int)
    model = Classifier(noise="single", batch_size=8, random_state=0, alpha=0.0).fit(X, y)
    assert_allclose(model.coef_[0], [1, -1, 0.5], atol=0.3)


def test_single_noise_warns_where_it_ends_early(rng):
    X = rng.standard_normal((2000, 3))
    model = Regressor(noise="single", batch_size=8, max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="Not converged after"):
        model.fit(X, X.sum(axis=1) + rng.standard_normal(2000))


@pytest.mark.parametrize("cls", BOTH)
def test_single_noise_refuses_several_outputs(rng, cls):
    X = rng.standard_normal((90, 3))
    y = np.arange(90) % 3 if cls is Classifier else X[:, :2]
    outputs = 3 if cls is Classifier else 2
    with pytest.raises(ValueError, match=f"one gradient a batch, but there are {outputs} outputs"):
        cls(noise="single", batch_size=4).fit(X, y)


# --- errors


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (Regressor("poisson"), [-1.0, 2.0, 3.0], "PoissonLoss needs y >= 0"),
        (Regressor(), [np.nan, 2.0, 3.0], "NaN"),
        (
            Classifier(alpha=0.0),
            [1, 1, 1],
            r"is only one class with a positive weight, \[1\] of the labels",
        ),
        (Classifier(alpha=0.0), [0.1, 0.2, 0.3], "Unknown label type"),
    ],
)
def test_bad_targets_are_refused(model, y, message):
    X = np.arange(3.0)[:, None]
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)


def test_a_class_needs_weight():
    with pytest.raises(ValueError, match="only one class with a positive weight"):
        Classifier(alpha=0.0).fit([[0.0], [1.0], [2.0]], [0, 0, 1], [1.0, 1.0, 0.0])


def assert_refused(model, X, y, message, weight=None):
    before = vars(model).copy()
    for learn in (model.fit, lambda *args: model.partial_fit(*args, classes=np.unique(y))):
        with pytest.raises(ValueError, match=message):
            learn(X, y, weight)
        assert vars(model) == before


@pytest.mark.parametrize(
    ("weight", "given", "message"),
    [
        (-1.0, None, r"A row of class 'a' has the weight -1: weights count repetitions, so they"),
        (
            np.nan,
            None,
            r"has the weight nan: .* must be finite and >= 0\. Change class_weight=\{'a'",
        ),
        (np.inf, None, r"has the weight inf: "),
        (1e300, 1e300, r"has the weight inf, sample_weight included: "),
    ],
)
def test_weights_of_classes_must_be_finite_and_nonnegative(labelled, weight, given, message):
    X, y = labelled[0], np.array(["a", "b"])[labelled[1]]
    given = None if given is None else np.full(300, given)
    assert_refused(Classifier(class_weight={"a": weight}, alpha=0.0), X, y, message, given)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            {0: 0, 1: 0},
            r"There is no class with a positive weight, \[\] of the labels \[0, 1\]: a ",
        ),
        (
            {0: 0.0, 1: 1.0},
            r"is only one class with a positive weight, \[1\] of the labels \[0, 1\]",
        ),
        ({0: 0.0}, "or change class_weight or sample_weight where they are zero"),
    ],
)
def test_two_classes_must_have_weight(labelled, weight, message):
    assert_refused(Classifier(class_weight=weight, alpha=0.0), *labelled, message)


def test_weights_of_classes_and_rows_together_must_leave_two_classes(labelled):
    X, y = labelled[0], labelled[1] + 2 * (np.arange(300) < 100)  # four labels
    model = Classifier(
        class_weight={0: 0.0, 1: 0.0, 2: 3.0}, alpha=0.1, random_state=0, penalty_units="raw"
    )
    with pytest.raises(ValueError, match=r"only one class .*, \[2\] of the labels \[0, 1, 2, 3\]"):
        model.fit(X, y, y < 3)
    weight = np.where(y == 2, 3.0, y > 2)
    assert_same_model(
        model.fit(X, y),
        Classifier(alpha=0.1, random_state=0, penalty_units="raw").fit(X, y, weight),
    )


def test_a_stream_needs_two_classes():
    with pytest.raises(ValueError, match=r"is only one class .*, \[0\] of the labels \[0\]"):
        Classifier(alpha=0.0).partial_fit([[1.0], [2.0]], [0, 0], classes=[0])


@pytest.mark.parametrize("unit", [1e-320, 1e-200, 1e200, 1e307])
def test_weights_of_any_size_are_taken(labelled, unit):
    with np.errstate(over="ignore"):  # their sum
        model = Classifier(alpha=0.1, random_state=0, penalty_units="raw").fit(
            *labelled, np.full(300, unit)
        )
    assert_same_model(
        model, Classifier(alpha=0.1, random_state=0, penalty_units="raw").fit(*labelled), tol=1e-4
    )


def test_a_failed_fit_leaves_the_estimator_as_it_was(labelled):
    model = Classifier(random_state=0, alpha=0.0).fit(*labelled)
    before = vars(model).copy()
    with pytest.raises(ValueError, match="one class"):
        model.fit(labelled[0][:, :2], np.zeros(300, dtype=int))
    assert vars(model) == before


# --- a stream after a fit


@pytest.mark.parametrize("cls", BOTH)
def test_a_stream_drops_what_fit_told_of_itself(labelled, cls):
    X, y = labelled
    model = cls(random_state=0).fit(X, y)
    fitted = vars(model).copy()
    with pytest.raises(ValueError, match="2 features"):
        model.partial_fit(X[:, :2], y)
    assert vars(model) == fitted
    model.partial_fit(X, 1 - y)
    streamed = cls().partial_fit(X, y, **({"classes": [0, 1]} if cls is Classifier else {}))
    public = {name for name in vars(model) if name.endswith("_")}
    assert public == {name for name in vars(streamed) if name.endswith("_")}
    dropped = {name for name in fitted if name.endswith("_")} - public
    assert dropped == {
        *("history_", "n_iter_", "n_passes_", "learning_rate_"),
        *("converged_", "preconditioner_", "alpha_"),
    }
    for name in ("covariance_estimator_", "rank_"):
        with pytest.raises(AttributeError, match=f"{name} is there after fit alone"):
            getattr(model, name)


@pytest.mark.parametrize("exact", [True, False])
def test_a_stream_after_plain_steps_weighs_the_rows_that_they_saw(monkeypatch, rng, exact):
    plans.plan_for(monkeypatch, plans.exact if exact else plans.mini_batches)
    X = 10 * rng.standard_normal((4000, 4))
    y = X.sum(axis=1) + rng.standard_normal(4000)
    model = Regressor(preconditioner="identity", tol=1e-6, max_iter=400, random_state=0)
    model.fit(X[:3000], y[:3000])
    model.partial_fit(X[3000:], y[3000:])
    # A quarter of the rows move the solution by a third of a statistical error, of which a sketch
    # of 36 batches for five coefficients is off by the share 5/36, with a wide spread
    assert excess_in_floors(model, X, y) < (1e-4 if exact else 10 * 5 / 36 / 3)


@pytest.mark.parametrize("params", [{"early_stopping": True}, {"noise": "single"}])
@pytest.mark.parametrize("cls", [Regressor, Classifier])
def test_a_stream_refuses_what_is_for_fit(rng, cls, params):
    X, y = rng.standard_normal((50, 2)), rng.integers(2, size=50)
    ((name, value),) = params.items()
    with pytest.raises(
        ValueError, match=rf"^{name}={value!r} is for fit: partial_fit sees each row"
    ):
        cls(**params).partial_fit(X, y, **({"classes": [0, 1]} if cls is Classifier else {}))


@pytest.mark.parametrize("keys", [["0"], [7, 0]])
def test_a_class_weight_of_no_label_is_refused(rng, keys):
    X, y = rng.standard_normal((50, 2)), rng.integers(2, size=50)
    model = Classifier(class_weight=dict.fromkeys(keys, 2.0), alpha=0.0)
    match = (
        rf"^class_weight has weights for \[{keys[0]!r}\], .* among the labels \[0, 1\]: mistyped"
    )
    for learn in (model.fit, lambda *args: model.partial_fit(*args, classes=[0, 1])):
        with pytest.raises(ValueError, match=match):
            learn(X, y)


# --- scikit-learn's tools


def test_grid_search_tunes_it_in_a_pipeline(data):
    pipeline = make_pipeline(StandardScaler(), Regressor(random_state=0))
    grid = {"preconditionedsgdregressor__alpha": [1e-6, 1e6]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(*data)
    assert search.best_params_ == {"preconditionedsgdregressor__alpha": 1e-6}


class Recorder:
    """The smallest callback: remembers what it was told, and may ask to stop."""

    def __init__(self, stop_after=None, fail=False):
        self.stop_after, self.fail = stop_after, fail
        self.calls, self.scores = [], []

    def setup(self, estimator, context):
        self.calls.append("setup")

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.calls.append(f"begin {context.task_name}")

    def on_fit_task_end(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self.calls.append(f"end {context.task_name}")
        if self.fail:
            raise RuntimeError("the callback failed")
        self.scores.append(fitted_estimator.score(X, y))
        return self.stop_after == len(self.scores)


@pytest.mark.parametrize("cls", BOTH)
def test_callbacks_see_every_round_and_a_fitted_estimator(data, labelled, cls):
    pytest.importorskip("sklearn.callback")
    X, y = labelled if cls is Classifier else (data[0], np.round(np.abs(data[1])))
    recorder = Recorder()
    model = (
        Classifier(random_state=0, alpha=0.0)
        if cls is Classifier
        else Regressor("huber", random_state=0)
    )
    model.set_callbacks(recorder).fit(X, y)
    rounds = ["begin iteration", "end iteration"] * len(model.history_)
    assert recorder.calls == ["setup", "begin fit", *rounds, "end fit", "teardown"]
    assert_allclose(recorder.scores[-1], model.score(X, y))


def test_a_callback_may_stop_the_fit(data):
    pytest.importorskip("sklearn.callback")
    recorder = Recorder(stop_after=2)
    X, y = data[0], np.round(np.abs(data[1]))
    model = Regressor("poisson", tol=0, random_state=0).set_callbacks(recorder).fit(X, y)
    assert len(model.history_) == 2
    assert_allclose(recorder.scores[-1], model.score(X, y))


def test_a_callback_that_fails_is_torn_down(data):
    pytest.importorskip("sklearn.callback")
    recorder = Recorder(fail=True)
    model = Regressor(random_state=0).set_callbacks(recorder)
    with pytest.raises(RuntimeError, match="the callback failed"):
        model.fit(*data)
    assert recorder.calls[-1] == "teardown"
    assert "coef_" not in vars(model)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scoring_monitor_works_through_grid_search_and_pipeline(data, n_jobs):
    callback = pytest.importorskip("sklearn.callback")
    monitor = callback.ScoringMonitor(scoring="r2")
    model = Regressor("huber", random_state=0).set_callbacks(monitor)
    pipeline = make_pipeline(StandardScaler(), model)
    grid = {"preconditionedsgdregressor__alpha": [0.0, 0.1]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs, error_score="raise").fit(*data)
    assert search.best_score_ > 0.5


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
def test_single_noise_copes_with_uncentred_features_and_targets(offset):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((5000, 10)) + offset
    y = X @ np.full(10, 50.0) + 1000
    model = PreconditionedSGDRegressor(noise="single", random_state=0).fit(X, y)
    assert model.converged_
    assert model.score(X, y) > 0.9999


def test_single_noise_refuses_fewer_gradients_than_twice_the_coefficients():
    rng = np.random.default_rng(6)
    X, y = rng.standard_normal((100, 10)), rng.standard_normal(100)
    model = PreconditionedSGDRegressor(noise="single", batch_size=10)
    with pytest.raises(ValueError, match=r"has 10 gradients .* for 11 coefficients.*batch_size"):
        model.fit(X, y)


@pytest.mark.parametrize("n_levels", [2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_one_hot_designs_are_fitted_beside_an_intercept(n_levels, seed):
    rng = np.random.default_rng(seed)
    level = rng.integers(0, n_levels, 2000)
    X, y = np.eye(n_levels)[level], 1000 + level + rng.standard_normal(2000)
    model = PreconditionedSGDRegressor(random_state=seed).fit(X, y)
    assert np.allclose(
        model.predict(np.eye(n_levels)), [y[level == j].mean() for j in range(n_levels)]
    )
    assert np.abs(model.coef_).max() < 10


def test_the_minimum_norm_solution_leaves_the_intercept_alone():
    rng = np.random.default_rng(7)
    X = np.column_stack([rng.standard_normal((200, 3)), np.ones(200)])
    model = PreconditionedSGDRegressor().fit(X, X[:, :3] @ [1, 2, 3] + 1000)
    assert np.allclose(model.coef_, [1, 2, 3, 0])
    assert np.isclose(model.intercept_, 1000)
