"""A penalty without units: fits against scikit-learn's on standardised features."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import sparse
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess import (
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
)
from sklearn_gradhess._penalty import Penalty, Spread
from tests import plans

Regressor, Classifier = PreconditionedSGDRegressor, PreconditionedSGDClassifier
NAMES = ("squared_error", "huber", "poisson", "log_loss", "multinomial")


def made(name, **params):
    if name in ("log_loss", "multinomial"):
        return Classifier(random_state=0, tol=1e-6, **params)
    return Regressor(name, random_state=0, tol=1e-6, **params)


def data_of(name, rng, n=600):
    X = rng.standard_normal((n, 4)) @ rng.standard_normal((4, 4)) * [1e-3, 1, 1e4, 7] + [
        0,
        1,
        1e5,
        3,
    ]
    raw = StandardScaler().fit_transform(X) @ [0.4, -0.3, 0.2, 0.3]
    if name == "poisson":
        return X, rng.poisson(np.exp(raw)).astype(float)
    if name == "log_loss":
        return X, (rng.random(n) < expit(raw)).astype(int)
    if name == "multinomial":
        return X, (raw[:, None] * [0, 1, -1] + rng.gumbel(size=(n, 3))).argmax(axis=1)
    return X, raw + rng.standard_normal(n)


def raw_predictions(model, X):
    return model.decision_function(X) if hasattr(model, "classes_") else model.predict(X)


@pytest.mark.parametrize("how", [plans.exact, plans.sketched, plans.mini_batches])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_fit_is_that_on_standardised_features(monkeypatch, rng, name, weighted, how):
    plans.plan_for(monkeypatch, how)
    X, y = data_of(name, rng)
    weight = rng.uniform(0.5, 2, len(y)) if weighted else None
    model = made(name, alpha=0.1).fit(X, y, weight)
    scaler = StandardScaler().fit(X, sample_weight=weight)
    Z = scaler.transform(X)
    other = made(name, alpha=0.1, penalty_units="raw").fit(Z, y, weight)
    assert_allclose(raw_predictions(model, X), raw_predictions(other, Z), atol=2e-4)
    assert_allclose(model.coef_ * scaler.scale_, other.coef_, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_that_on_standardised_features(rng, name):
    X, y = data_of(name, rng)
    model = made(name, alpha=0.1)
    for piece in np.array_split(np.arange(len(y)), 7):
        keywords = {"classes": np.unique(y)} if hasattr(model, "class_weight") else {}
        model.partial_fit(X[piece], y[piece], **keywords)
    fitted = made(name, alpha=0.1).fit(X, y)
    assert_allclose(raw_predictions(model, X), raw_predictions(fitted, X), atol=1e-3)


@pytest.mark.parametrize("alpha", ["auto", 0.05])
def test_a_stream_goes_on_from_a_penalised_fit(rng, alpha):
    X, y = data_of("log_loss", rng)
    stream = made("log_loss", alpha=alpha).fit(X[:500], y[:500]).partial_fit(X[500:], y[500:])
    whole = made("log_loss", alpha=alpha).fit(X, y)
    assert_allclose(raw_predictions(stream, X), raw_predictions(whole, X), atol=0.1)


@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_ridge_logistic_and_poisson_of_scikit_learn_on_standardised_features(rng, alpha):
    X, y = data_of("squared_error", rng)
    n = len(y)
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=n * alpha)).fit(X, y)
    assert_allclose(Regressor(alpha=alpha).fit(X, y).predict(X), ridge.predict(X), atol=1e-6)
    X, y = data_of("log_loss", rng)
    peer = LogisticRegression(C=1 / (n * alpha), tol=1e-10, solver="newton-cholesky")
    peer = make_pipeline(StandardScaler(), peer).fit(X, y)
    ours = made("log_loss", alpha=alpha).fit(X, y)
    assert_allclose(ours.predict_proba(X), peer.predict_proba(X), atol=1e-5)
    X, y = data_of("poisson", rng)
    peer = PoissonRegressor(alpha=alpha, tol=1e-10, solver="newton-cholesky")
    peer = make_pipeline(StandardScaler(), peer).fit(X, y)
    assert_allclose(made("poisson", alpha=alpha).fit(X, y).predict(X), peer.predict(X), rtol=1e-4)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["log_loss", "multinomial"])
def test_the_default_is_logistic_regression_on_standardised_features(
    rng, name, weighted, class_weight
):
    X, y = data_of(name, rng)
    # scikit-learn 1.9 balances by sample weights too, before it did not
    weight = rng.uniform(0.5, 2, len(y)) if weighted and not class_weight else None
    ours = Classifier(tol=1e-6, class_weight=class_weight, random_state=0).fit(X, y, weight)
    # Class weights count in the standard deviations too: they are weights of rows
    rows = np.ones(len(y)) if weight is None else weight
    if class_weight:
        counts = np.bincount(y)
        rows = rows * len(y) / (len(counts) * counts[y])
    Z = StandardScaler().fit(X, sample_weight=rows).transform(X)
    peer = LogisticRegression(tol=1e-10, max_iter=1000, class_weight=class_weight)
    peer.fit(Z, y, sample_weight=weight)
    assert_allclose(ours.predict_proba(X), peer.predict_proba(Z), atol=1e-4)


@pytest.mark.parametrize("cls", [Regressor, Classifier])
def test_sparse_is_dense_and_nothing_is_centred(rng, cls):
    X = rng.standard_normal((500, 6)) * (rng.random((500, 6)) < 0.3) * np.geomspace(1e-3, 1e3, 6)
    y = X @ np.geomspace(1e3, 1e-3, 6) + rng.standard_normal(500)
    y = (y > 0).astype(int) if cls is Classifier else y
    dense = cls(alpha=0.05, random_state=0).fit(X, y)
    for container in (sparse.csr_array, sparse.csc_array):
        model = cls(alpha=0.05, random_state=0).fit(container(X), y)
        assert_allclose(raw_predictions(model, X), raw_predictions(dense, X), atol=1e-6)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    exponents=st.lists(st.floats(-9, 9), min_size=4, max_size=4),
    shifts=st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4),
)
@pytest.mark.parametrize("name", NAMES)
def test_units_and_shifts_of_features_change_nothing(name, seed, exponents, shifts):
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((120, 4))
    raw = Z @ [0.4, -0.3, 0.2, 0.3]
    y = {
        "poisson": lambda: rng.poisson(np.exp(raw)).astype(float),
        "log_loss": lambda: (rng.random(120) < expit(raw)).astype(int),
        "multinomial": lambda: np.arange(120) % 3,
    }.get(name, lambda: raw + rng.standard_normal(120))()
    X = (Z + shifts) * 10.0 ** np.array(exponents)
    first, second = made(name, alpha=0.02).fit(Z, y), made(name, alpha=0.02).fit(X, y)
    a, b = raw_predictions(first, Z), raw_predictions(second, X)
    assert_allclose(a, b, atol=1e-5 * (1 + np.abs(a).max()))


def test_without_an_intercept_coefficients_are_penalised_per_standard_deviation_too(rng):
    X, y = data_of("squared_error", rng)
    model = Regressor(alpha=0.1, fit_intercept=False).fit(X, y)
    sd = X.std(axis=0)
    ridge = Ridge(alpha=0.1 * len(y), fit_intercept=False).fit(X / sd, y)
    assert_allclose(model.predict(X), ridge.predict(X / sd), atol=1e-5)


def test_a_constant_feature_has_no_coefficient(rng):
    X, y = data_of("squared_error", rng)
    X = np.column_stack([X, np.full(len(y), 0.1)])
    model = Regressor(alpha=0.1).fit(X, y)
    assert abs(model.coef_[-1]) < 1e-6
    without = Regressor(alpha=0.1).fit(X[:, :4], y)
    assert_allclose(model.predict(X), without.predict(X[:, :4]), atol=1e-6)


def test_raw_penalties_are_those_of_scikit_learn(rng):
    X, y = rng.standard_normal((200, 3)) * [1, 10, 0.1], rng.standard_normal(200)
    model = Regressor(alpha=0.3, penalty_units="raw").fit(X, y)
    assert_allclose(model.coef_, Ridge(alpha=60).fit(X, y).coef_, rtol=1e-8)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_the_spread_of_chunks_is_the_variance_of_all(rng, container):
    X, weight = rng.standard_normal((90, 3)) + np.array([0, 10, 100]), rng.uniform(size=90)
    spread = Spread.empty(3)
    for piece in np.array_split(np.arange(90), 5):
        spread = spread.plus(container(X[piece]), weight[piece])
    mean = np.average(X, axis=0, weights=weight)
    assert_allclose(spread.mean, mean)
    assert_allclose(spread.variance, np.average((X - mean) ** 2, axis=0, weights=weight), rtol=1e-9)
    assert spread.plus(container(X), np.zeros(90)) is spread
    assert_allclose(Spread.empty(3).variance, 0)


def test_penalties_of_a_mean_and_of_a_sum_agree(rng):
    spread = Spread.empty(2).plus(rng.standard_normal((50, 2)) * [1, 3], np.full(50, 2.0))
    for alpha, mean in ((0.3, 0.3), ("auto", 1 / 100)):
        penalty = Penalty(alpha, "std")
        assert penalty.of_mean(100.0) == pytest.approx(mean)
        assert_allclose(penalty.ridge(100.0, spread), mean * 100 * spread.variance)
        assert_allclose(Penalty(alpha, "raw").ridge(100.0, spread), mean * 100)


# --- what the Hessian tells


def with_ones(X):
    return np.column_stack([np.ones(len(X)), X])


@pytest.mark.parametrize("unit", [None, 1.0, 1e-6, 365.0])
def test_standard_errors_of_least_squares_are_the_textbook_s(rng, unit):
    X, y = data_of("squared_error", rng)
    w = np.ones(len(y)) if unit is None else rng.integers(0, 4, len(y)) * 0.7
    model = Regressor().fit(X, y, None if unit is None else w * unit)
    # Weighted least squares: variances of the targets inverse to the weights, in any unit; and
    # units of the features in which the normal equations keep their digits
    scale, middle = X.std(axis=0), w @ X / w.sum()
    A = with_ones((X - middle) / scale) * np.sqrt(w)[:, None]
    t = y * np.sqrt(w)
    residual = t - A @ np.linalg.lstsq(A, t, rcond=None)[0]
    s2 = residual @ residual / (np.count_nonzero(w) - 5)
    covariance = s2 * np.linalg.inv(A.T @ A)
    assert_allclose(model.coef_standard_error_, np.sqrt(np.diag(covariance))[1:] / scale, rtol=1e-6)
    to_zero = np.r_[1, -middle / scale]
    assert_allclose(
        model.intercept_standard_error_, np.sqrt(to_zero @ covariance @ to_zero), rtol=1e-6
    )
    assert model.rank_ == 4
    assert model.df_ == pytest.approx(5)


@pytest.mark.parametrize("unit", [0.01, 1.0, 365.0])
def test_standard_errors_of_rates_do_not_depend_on_the_unit_of_exposure(rng, unit):
    X, _ = data_of("squared_error", rng, 2000)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    exposure = rng.uniform(0.5, 2, len(Z))
    rate = np.exp(Z @ [0.3, -0.2, 0, 0] + 1)
    counts = rng.poisson(exposure * rate)
    model = Regressor("poisson").fit(Z, counts / (exposure * unit), exposure * unit)
    # The Fisher information of counts with an offset; a dispersion near one, known to
    # sqrt(2/2000) = 3 %, and so the errors to 1.6 %
    A = with_ones(Z)
    information = A.T @ ((exposure * rate)[:, None] * A)
    expected = np.sqrt(np.diag(np.linalg.inv(information)))[1:]
    assert_allclose(model.coef_standard_error_, expected, rtol=5 * 0.016 + 0.02)


def test_weights_of_classes_count_repetitions(rng):
    X, y = data_of("log_loss", rng)
    repeats = rng.integers(1, 4, len(y))
    model = Classifier(alpha=0.0).fit(X, y, sample_weight=repeats.astype(float))
    expected = Classifier(alpha=0.0).fit(np.repeat(X, repeats, axis=0), np.repeat(y, repeats))
    assert_allclose(model.coef_standard_error_, expected.coef_standard_error_, rtol=0.02)


@pytest.mark.parametrize("name", ["log_loss", "poisson"])
def test_standard_errors_of_glms_are_those_of_the_fisher_information(rng, name):
    X, y = data_of(name, rng, 2000)
    model = made(name, alpha=0.0).fit(X, y)
    mean = model.predict_proba(X)[:, 1] if name == "log_loss" else model.predict(X)
    v = mean * (1 - mean) if name == "log_loss" else mean
    scale = X.std(axis=0)
    A = with_ones((X - X.mean(axis=0)) / scale)
    dispersion = 1.0
    if name == "poisson":
        dispersion = np.sum((y - mean) ** 2) / v.sum() * len(y) / (len(y) - 5)
    covariance = dispersion * np.linalg.inv(A.T @ (v[:, None] * A))
    expected = np.sqrt(np.diag(covariance))[1:] / scale
    # The Hessian was made within two hundredths of the curvature at the end
    assert_allclose(model.coef_standard_error_.ravel(), expected, rtol=0.02)


def test_standard_errors_by_a_sketch_have_its_error(monkeypatch, rng):
    plans.plan_for(monkeypatch, plans.sketched)
    X = rng.standard_normal((20_000, 4))
    y = X.sum(axis=1) + rng.standard_normal(20_000)
    model = Regressor(random_state=0).fit(X, y)
    expected = 1 / np.sqrt(20_000)
    # 200 batches: a relative error of 1/sqrt(2 k) = .05, and four coefficients
    assert_allclose(model.coef_standard_error_, expected, rtol=4 * 0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 10.0])
def test_degrees_of_freedom_are_the_trace_of_the_smoother(rng, alpha):
    X, y = data_of("squared_error", rng)
    model = Regressor(alpha=alpha).fit(X, y)
    Z = StandardScaler().fit_transform(X)
    H = Z.T @ Z / len(y)
    assert model.df_ == pytest.approx(1 + np.trace(np.linalg.solve(H + alpha * np.eye(4), H)))


def test_penalised_standard_errors_are_those_of_the_estimator(rng):
    X = rng.standard_normal((300, 3)) * [1, 10, 100]
    beta, alpha = np.array([1.0, 0.1, 0.01]), 0.2
    model, found = Regressor(alpha=alpha), []
    for _ in range(400):
        y = X @ beta + rng.standard_normal(300)
        found.append(model.fit(X, y).coef_)
    # The standard deviation of 400 draws is known to 1/sqrt(800) = 3.5 %
    assert_allclose(model.coef_standard_error_, np.std(found, axis=0), rtol=5 * 0.035 + 0.05)


def test_several_targets_have_standard_errors_of_their_own(rng):
    X = rng.standard_normal((500, 3))
    Y = X @ rng.standard_normal((3, 2)) + rng.standard_normal((500, 2)) * [1, 10]
    model = Regressor().fit(X, Y)
    single = [Regressor().fit(X, y) for y in Y.T]
    assert_allclose(model.coef_standard_error_, [m.coef_standard_error_ for m in single], rtol=1e-6)
    assert_allclose(
        model.intercept_standard_error_, [m.intercept_standard_error_ for m in single], rtol=1e-6
    )


def test_undetermined_directions_are_told_by_the_rank_in_silence(rng):
    levels = np.eye(5)[rng.integers(5, size=300)]
    y = levels @ np.arange(5.0) + rng.standard_normal(300)
    model = Regressor().fit(levels, y)  # warnings are errors
    assert model.rank_ == 4
    assert model.df_ == pytest.approx(5)
    assert_allclose(model.predict(levels), LinearRegression().fit(levels, y).predict(levels))
    assert np.isfinite(model.coef_standard_error_).all()


@pytest.mark.parametrize("kind", [Regressor, Classifier])
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rank_is_that_of_the_rows_whatever_the_penalty(rng, kind, alpha, dtype):
    X = rng.standard_normal((500, 3)).astype(dtype)
    X = np.column_stack([X, X[:, 0] + 3 * X[:, 1], np.ones(500)]).astype(dtype)
    y = X[:, 1] + rng.standard_normal(500)
    model = kind(alpha=alpha).fit(X, y > 0 if kind is Classifier else y)
    assert model.rank_ == 3


@pytest.mark.parametrize("preconditioner", ["exact", "sample_space"])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_rows_fewer_than_features_determine_one_direction_less(rng, preconditioner, alpha):
    X = rng.standard_normal((60, 150))
    model = Regressor(alpha=alpha, preconditioner=preconditioner).fit(X, X[:, 0])
    assert model.rank_ == 59


def test_a_ridge_leaves_the_residuals_the_degrees_of_freedom_of_its_smoother(rng):
    X = rng.standard_normal((60, 100))
    y = X[:, 0] + rng.standard_normal(60)
    model = Regressor(alpha=1.0, preconditioner="exact").fit(X, y)
    Z = StandardScaler().fit_transform(X)
    H = Z.T @ Z / 60
    inverse = np.linalg.inv(H + np.eye(100))
    rest = y - model.predict(X)
    s2 = rest @ rest / (60 - 1 - np.trace(inverse @ H))
    expected = np.sqrt(s2 * np.diag(inverse @ H @ inverse) / 60) / X.std(axis=0)
    assert_allclose(model.coef_standard_error_, expected, rtol=1e-6)


def test_classes_that_are_coupled_have_no_standard_errors_here(rng):
    X, y = data_of("multinomial", rng)
    model = Classifier(random_state=0).fit(X, y)
    assert np.isnan(model.coef_standard_error_).all()
    assert model.coef_standard_error_.shape == model.coef_.shape
    assert np.isnan(model.intercept_standard_error_).all()
    assert 0 < model.df_ <= 2 * 5


@pytest.mark.parametrize("name", ["df_", "coef_standard_error_", "intercept_standard_error_"])
def test_a_stream_has_none_of_them(rng, name):
    X, y = data_of("squared_error", rng)
    model = Regressor().fit(X, y)
    assert np.all(np.isfinite(getattr(model, name)))
    model.partial_fit(X, y)
    with pytest.raises(AttributeError, match=f"{name} is there after fit alone"):
        getattr(model, name)
    assert not hasattr(clone(model), name)


# --- what is no feature, or has no penalty


@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("constant", [0.1, -3e7, 1 / 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_has_no_spread_in_any_pieces(rng, kind, constant, dtype):
    X = rng.standard_normal((500, 3)).astype(dtype)
    X[:, 1] = constant
    weight = rng.uniform(0.1, 1, 500)
    rows = sparse.csr_array(X) if kind == "csr" else X
    spread = Spread.empty(3)
    for piece in np.array_split(np.arange(500), 7):
        spread = spread.plus(rows[piece], weight[piece])
    assert spread.variance[1] == 0
    others = [0, 2]
    mean = np.average(X.astype(float), axis=0, weights=weight)
    variance = np.average((X - mean) ** 2, axis=0, weights=weight)
    assert_allclose(spread.variance[others], variance[others], rtol=1e-9)


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_an_offset_leaves_the_spread(rng, kind):
    X = 1.7e9 + 10 * rng.standard_normal((400, 2))
    rows = sparse.csr_array(X) if kind == "csr" else X
    spread = Spread.empty(2).plus(rows, np.ones(400))
    # the rows themselves are rounded to 2e-7
    assert_allclose(spread.variance, X.var(axis=0), rtol=1e-6)


def test_a_constant_has_no_coefficient_however_wide_the_rows(rng):
    X = rng.standard_normal((300, 1200)).astype(np.float32)
    y = X[:, 0] + rng.standard_normal(300) > 0
    weight = rng.uniform(0.1, 1, 300)
    X[:, -1] = 0.0
    params = {"alpha": 0.1, "tol": 1e-6, "random_state": 0}
    expected = Classifier(**params).fit(X, y, weight)
    X[:, -1] = 0.1
    for preconditioner in ("auto", "exact", "diagonal"):
        model = Classifier(preconditioner=preconditioner, **params).fit(X, y, weight)
        assert model.coef_[0, -1] == 0
        assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-3)


def test_entries_of_a_place_that_are_stored_apart_are_summed(rng):
    X = sparse.random(200, 1500, density=0.02, format="csr", random_state=0)
    y = (X @ rng.standard_normal(1500) > 0).astype(int)
    coo = X.tocoo()
    data = np.concatenate([3 * coo.data, -2 * coo.data])
    apart = sparse.csr_array(
        (data, np.tile(coo.col, 2)[order := np.argsort(np.tile(coo.row, 2), kind="stable")],
         np.concatenate([[0], np.cumsum(2 * np.diff(X.indptr))])), shape=X.shape,
    )  # fmt: skip
    apart.data = data[order]
    assert not apart.has_canonical_format
    stored = apart.data.copy()
    expected = Classifier(random_state=0).fit(X, y)
    model = Classifier(random_state=0).fit(apart, y)
    assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-9)
    assert np.array_equal(apart.data, stored)


def test_a_feature_without_a_penalty_separates_classes_and_that_is_said(rng):
    X = rng.standard_normal((200, 4))
    y = X[:, 0] > 0
    with pytest.warns(ConvergenceWarning, match="separable"):
        model = Classifier(alpha=[0, 1, 1, 1]).fit(X, y)
    assert not model.converged_
    constant = X.copy()
    constant[:, 0] = 1.0  # no penalty either, and nothing to move with an intercept
    assert Classifier(alpha=[0, 1, 1, 1]).fit(constant, y).converged_


@pytest.mark.parametrize("shape", [(60, 1500), (150, 400)])
def test_some_features_without_a_penalty_are_fitted_by_default(rng, shape):
    X = rng.standard_normal(shape)
    y = X[:, 0] + 0.1 * rng.standard_normal(shape[0])
    alpha = np.r_[0.0, np.full(shape[1] - 1, 0.1)]
    model = Regressor(alpha=alpha, tol=1e-6).fit(X, y)
    Z, t = X - X.mean(axis=0), y - y.mean()
    ridge = np.diag(shape[0] * alpha * X.var(axis=0))
    expected = np.linalg.solve(Z.T @ Z + ridge, Z.T @ t)
    assert_allclose(model.coef_, expected, atol=1e-3)


def test_the_estimator_of_an_earlier_fit_is_not_kept(rng):
    X = rng.standard_normal((300, 3))
    y = X[:, 0]
    model = Regressor(preconditioner=GradientCovarianceEstimator(random_state=0)).fit(X, y)
    model.set_params(preconditioner="auto").fit(10 * X, y)
    assert_allclose(model.covariance_estimator_.covariance_, 100 * np.cov(X.T, bias=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_penalty_that_comes_after_a_fit_of_least_squares_is_that_of_all_rows(rng, weighted):
    X = rng.standard_normal((300, 6)) * np.geomspace(0.1, 10, 6) + 4
    X[:, 3] = 0.1
    y = X @ rng.standard_normal(6) + rng.standard_normal(300)
    w = rng.uniform(0.5, 2, 300) if weighted else np.ones(300)
    best = PreconditionedSGDRegressor(alpha=1.0).fit(X, y, w)
    for before in ({"alpha": 0.0}, {"alpha": 2.0, "penalty_units": "raw"}):
        model = PreconditionedSGDRegressor(**before).fit(X[:299], y[:299], w[:299])
        model.set_params(alpha=1.0, penalty_units="std").partial_fit(X[299:], y[299:], w[299:])
        assert_allclose(model.coef_, best.coef_, rtol=1e-8, atol=1e-10)
        assert_allclose(model.intercept_, best.intercept_, rtol=1e-8)


@pytest.mark.parametrize("how", ["exact", "diagonal", "sample_space"])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "poisson", "log_loss"])
@pytest.mark.parametrize("has_intercept", [True, False])
@pytest.mark.parametrize("penalty", [{"alpha": 0.0}, {"alpha": 0.1, "penalty_units": "raw"}])
def test_a_stream_knows_the_spread_of_the_rows_of_a_fit(rng, how, loss, has_intercept, penalty):
    X = sparse.random(80, 5, density=0.6, format="csr", random_state=0)
    y = rng.integers(0, 2, 80)
    kind = PreconditionedSGDClassifier if loss == "log_loss" else PreconditionedSGDRegressor
    model = kind(loss, fit_intercept=has_intercept, preconditioner=how, **penalty)
    w = rng.integers(0, 3, 80).astype(float)
    model.fit(X, y, w).partial_fit(X[:0:-1], y[:0:-1], w[:0:-1])
    known = model._online.spread
    if how != "exact":
        assert known.weight == pytest.approx(w.sum() / 2)  # the others wait
    rows, v = X.toarray(), w.copy()
    if how == "exact":
        v[1:] *= 2
    mean = np.average(rows, axis=0, weights=v)
    assert_allclose(known.mean, mean, rtol=1e-10)
    assert_allclose(known.variance, np.average((rows - mean) ** 2, axis=0, weights=v), rtol=1e-10)


def test_deviations_that_nobody_took_are_asked_for(rng):
    X, y = rng.standard_normal((200, 3)), rng.poisson(1.0, 200)
    dask_array = pytest.importorskip("dask.array")
    blocks = dask_array.from_array(X, chunks=(100, 3)), dask_array.from_array(y, chunks=100)
    model = PreconditionedSGDRegressor("poisson").fit(*blocks)
    model.partial_fit(X[:5], y[:5])
    before = model.coef_.copy()
    model.set_params(alpha=1.0)
    with pytest.raises(
        ValueError, match=r"^alpha=1\.0 with penalty_units='std' needs the .* all 205 rows so far"
    ):
        model.partial_fit(X[:5], y[:5])
    np.testing.assert_array_equal(model.coef_, before)
    model.set_params(penalty_units="raw").partial_fit(X[:5], y[:5])
    assert np.abs(model.coef_).sum() < np.abs(before).sum()
