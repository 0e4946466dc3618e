"""What a wide fit leaves of the Hessian: location and diagonal."""

import pickle

import numpy as np
import pytest
from scipy import sparse

from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor
from sklearn_gradhess._diagonal import Diagonal
from sklearn_gradhess._diagonal_hessian import DiagonalHessian

each_way = pytest.mark.parametrize("how", ["diagonal", "sample_space"])


def regressor(how, loss="squared_error", **params):
    return PreconditionedSGDRegressor(loss, preconditioner=how, alpha=0.1, tol=1e-8, **params)


def rows(rng, n=30, d=50):
    X = rng.standard_normal((n, d)) * np.geomspace(0.1, 3, d) + np.linspace(-1, 2, d)
    X[:, 7] = 4.0
    return X


def hessian(X, v, *, has_intercept=True):
    """Location and covariance with weights v, naively."""
    mean = v @ X / v.sum() if has_intercept else np.zeros(X.shape[1])
    return mean, ((X - mean).T * v) @ (X - mean) / len(X)


@each_way
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_least_squares_leaves_means_and_variances(rng, how, fit_intercept, weighted):
    X, y = rows(rng), rng.standard_normal(30)
    if not fit_intercept:  # a constant one is one of its own then
        X[:, 7] = X[:, 6] ** 2
    w = rng.integers(0, 3, size=30).astype(float) if weighted else np.ones(30)
    found = regressor(how, fit_intercept=fit_intercept).fit(X, y, w).covariance_estimator_
    mean, S = hessian(X, w / w.mean(), has_intercept=fit_intercept)
    np.testing.assert_allclose(found.location_, mean, atol=1e-12)
    np.testing.assert_allclose(found.variance_, S.diagonal(), atol=1e-12)
    assert found.n_features_in_ == 50
    assert repr(found) == "DiagonalHessian(50 features)"


@each_way
@pytest.mark.parametrize("loss", ["poisson", "gamma", "huber"])
@pytest.mark.parametrize("tol", [1e-2, 1e-8])
def test_it_is_of_the_curvature_at_the_end(rng, how, loss, tol):
    X = rows(rng)
    y = rng.poisson(2.0, size=30) + 1.0
    model = regressor(how, loss).set_params(tol=tol).fit(X, y)
    v = model._loss.curvature(y[:, None], (X @ model.coef_ + model.intercept_)[:, None])[:, 0]
    mean, S = hessian(X, v)
    np.testing.assert_allclose(model.covariance_estimator_.location_, mean)
    np.testing.assert_allclose(model.covariance_estimator_.variance_, S.diagonal(), atol=1e-12)
    # and a stream goes on from that
    np.testing.assert_allclose(model._fit_saw.squares.scatter[:, 0], S.diagonal(), atol=1e-12)


@each_way
@pytest.mark.parametrize("n_classes", [2, 3])
def test_classes_leave_the_mean_of_their_diagonals(rng, how, n_classes):
    X, y = rows(rng, n=60), rng.integers(n_classes, size=60)
    model = PreconditionedSGDClassifier(preconditioner=how, alpha=0.05, tol=1e-8).fit(X, y)
    found = model.covariance_estimator_
    p = model.predict_proba(X)
    curvatures = (p * (1 - p)).T[: 1 if n_classes == 2 else 3]
    whole = [hessian(X, v) for v in curvatures]
    total = np.array([v.mean() for v in curvatures])
    location = total @ np.array([mean for mean, _ in whole]) / total.sum()
    second = np.mean(
        [
            S + t * np.outer(m - location, m - location)
            for (m, S), t in zip(whole, total, strict=True)
        ],
        axis=0,
    )
    np.testing.assert_allclose(found.location_, location)
    np.testing.assert_allclose(found.variance_, second.diagonal(), atol=1e-12)


@each_way
def test_it_steps_and_scales_by_the_diagonal(rng, how):
    X, y = rows(rng), rng.standard_normal(30)
    found = regressor(how).fit(X, y).covariance_estimator_
    mean, variance = X.mean(axis=0), X.var(axis=0)
    varies = np.arange(50) != 7
    g = rng.standard_normal(51)
    step = found.newton_step(g)
    want = np.zeros(50)
    want[varies] = (g[1:] - mean * g[0])[varies] / variance[varies]
    np.testing.assert_allclose(step[1:], want, atol=1e-12)
    np.testing.assert_allclose(step[0], g[0] - mean @ want)
    alone = g[1:][varies] / variance[varies]
    np.testing.assert_allclose(found.newton_step(g[1:])[varies], alone)
    Z = np.zeros_like(X)
    Z[:, varies] = (X - mean)[:, varies] / np.sqrt(variance[varies])
    for given in (X, sparse.csr_array(X)):
        np.testing.assert_allclose(found.transform(given), Z, atol=1e-10)
    assert found.transform(X.astype(np.float32)).dtype == np.float32


@each_way
def test_matrices_are_not_there_and_it_is_small(rng, how):
    X = sparse.random(20, 5000, density=0.01, format="csr", random_state=0)
    X = X if how == "diagonal" else X.toarray()
    model = regressor(how).fit(X, np.arange(20.0))
    found = model.covariance_estimator_
    for name in ("covariance_", "precision_", "gradient_covariance_"):
        assert not hasattr(found, name)
        with pytest.raises(
            AttributeError,
            match=rf"^{name} is a matrix of 5000 x 5000, 0\.186 GiB, and a fit with .*'{how}' m",
        ):
            getattr(found, name)
    with pytest.raises(AttributeError, match=r"n_components=\.\.\."):
        found.get_precision()
    assert len(pickle.dumps(found)) < 2 * 8 * 5000 + 2000
    again = pickle.loads(pickle.dumps(model)).covariance_estimator_
    np.testing.assert_array_equal(again.variance_, found.variance_)


def test_what_it_refuses(rng, monkeypatch):
    found = DiagonalHessian(np.zeros(5), np.ones(5), 1.0, "diagonal")
    with pytest.raises(
        ValueError, match=r"^gradient has the shape \(3,\), but the Hessian is of 5"
    ):
        found.newton_step(np.ones(3))
    with pytest.raises(ValueError, match=r"^X has 3 features, but 5 were fitted\."):
        found.transform(np.ones((2, 3)))
    monkeypatch.setattr("sklearn_gradhess._memory.allowed", lambda: 100.0)
    with pytest.raises(ValueError, match=r"^The result is dense: .* Multiply sparse columns by"):
        found.transform(sparse.csr_array((2, 5)))


def test_another_fit_leaves_nothing_of_it(rng):
    X, y = rows(rng), rng.standard_normal(30)
    model = regressor("diagonal").fit(X, y)
    assert isinstance(model.covariance_estimator_, DiagonalHessian)
    model.set_params(preconditioner="exact").fit(X, y)
    assert model.covariance_estimator_.covariance_.shape == (50, 50)


def test_columns_are_averaged_as_one_second_moment():
    mean, variance = np.array([[1.0, 3.0]]), np.array([[2.0, 4.0]])
    both = DiagonalHessian.of(
        Diagonal(mean, np.array([1.0, 3.0]), variance, variance, True), "diagonal"
    )
    np.testing.assert_allclose(both.location_, (1 * 1 + 3 * 3) / 4)
    second = np.mean(variance[0] + [1.0, 3.0] * mean[0] ** 2)
    np.testing.assert_allclose(both.variance_, second - 2.0 * both.location_**2)
