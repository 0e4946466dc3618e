"""Wide data: the diagonal, the space of the samples, one matrix for all classes."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor
from sklearn_gradhess._conjugate_gradients import ByGains, Need, conjugate_gradients
from sklearn_gradhess._descent import Ending
from sklearn_gradhess._diagonal import centred_squares, diagonal_hessian
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._memory import matrices
from sklearn_gradhess._multinomial import MultinomialLoss
from sklearn_gradhess._plan import Plan, plan
from sklearn_gradhess._pooled import pooled_hessian
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sample_space import in_sample_space
from sklearn_gradhess._solver import Settings, solve

from .plans import plan_for

LOSSES = ["squared_error", "huber", "poisson", "log_loss", "multinomial"]
Classifier = partial(PreconditionedSGDClassifier, penalty_units="raw")
Regressor = partial(PreconditionedSGDRegressor, penalty_units="raw")
each_loss = pytest.mark.parametrize("name", LOSSES)
square = ("exact", "sketch", "pooled", "auto")


def pooled(n, p, **_):
    return Plan("pooled", "newton", n, 1)


def words(rng, n, d, density=0.05):
    """Rows like text: columns of very different frequency, and a signal in all of them."""
    frequency = np.minimum(1.0, density * d * 0.5 / (1 + np.arange(d)))
    X = sparse.csr_array((rng.random((n, d)) < frequency) * rng.exponential(size=(n, d)))
    return X, X @ rng.standard_normal(d)


def targets(rng, name, signal):
    signal = signal - signal.mean()
    signal = signal / max(signal.std(), 1e-9)
    if name == "poisson":
        return rng.poisson(np.exp(0.5 * signal))[:, None].astype(float)
    if name == "log_loss":
        return (rng.random(len(signal)) < 1 / (1 + np.exp(-signal)))[:, None].astype(float)
    if name == "multinomial":
        noisy = signal[:, None] * [1.0, 0.0, -1.0] + rng.gumbel(size=(len(signal), 3))
        return np.eye(3)[noisy.argmax(axis=1)]
    return (signal + rng.standard_normal(len(signal)))[:, None]


def problem_of(rng, name, n=60, d=12, *, alpha=1e-2, X=None, weight=None, has_intercept=True):
    if X is None:
        X = rng.standard_normal((n, d)) * np.geomspace(0.1, 10, d) + 3
    Z = X.toarray() if sparse.issparse(X) else X
    Y = targets(rng, name, Z @ (rng.standard_normal(Z.shape[1]) / (Z.std(axis=0) + 0.1)))
    loss = MultinomialLoss() if name == "multinomial" else make_loss(name)
    return Problem(X, Y, weight, loss, alpha, has_intercept)


def objective(problem, W):
    return problem.mean_loss(problem.predict(problem.X, W)) + problem.penalty(W)


def minimum(problem, how="exact", tol=1e-3, **settings):
    chosen = Settings(Plan(how, "newton", problem.n, 1), tol=tol, **settings)
    return solve(problem, chosen, np.random.default_rng(0))


def dense_hessian(problem, W):
    """Whole Hessian without penalty, of all coefficients of one column."""
    Z = problem.X.toarray() if sparse.issparse(problem.X) else problem.X
    if problem.has_intercept:
        Z = np.column_stack([np.ones(len(Z)), Z])
    v = problem.weighted(problem.loss.curvature(problem.Y, problem.predict(problem.X, W)))
    return Z.T @ (v * Z) / problem.n


def degrees(problem, W):
    H = dense_hessian(problem, W)
    return np.trace(np.linalg.solve(H + np.diag(problem.ridge[:, 0]), H))


# --- the diagonal


@pytest.mark.parametrize("has_intercept", [True, False])
def test_the_diagonal_is_that_of_the_centred_hessian(rng, has_intercept):
    problem = problem_of(rng, "log_loss", has_intercept=has_intercept, weight=rng.random(60))
    v = rng.random((60, 1))
    found = diagonal_hessian(problem, v)
    h, wv = int(has_intercept), problem.weight * v[:, 0]
    mean = problem.X.T @ wv / wv.sum() * h
    diagonal = ((problem.X - mean) ** 2).T @ wv / 60
    P = np.diag(np.r_[np.zeros(h), diagonal + problem.alpha])
    if h:
        location = np.r_[1.0, mean]
        P += wv.mean() * np.outer(location, location)
    g = rng.standard_normal((problem.p, 1))
    np.testing.assert_allclose(found.solve(g), np.linalg.solve(P, g), rtol=1e-9)
    np.testing.assert_allclose(found.decrement(g), g.T @ np.linalg.solve(P, g), rtol=1e-9)
    assert (found.ends, found.n_clipped, found.factors) == ((0.0, np.inf), 0, ())


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_variances_survive_an_offset(rng, offset):
    noise = rng.standard_normal((500, 7))
    problem = problem_of(rng, "squared_error", X=noise + offset)
    mean, variance = centred_squares(problem, np.ones((500, 1)))
    np.testing.assert_allclose(variance[:, 0], noise.var(axis=0), rtol=1e-8)
    np.testing.assert_allclose(mean[:, 0], offset + noise.mean(axis=0), rtol=1e-8, atol=1e-12)


def test_sparse_rows_have_the_moments_of_dense_ones(rng):
    X, _ = words(rng, 300, 40)
    v = rng.random((300, 2))
    for has_intercept in (True, False):
        one = problem_of(rng, "squared_error", X=X, has_intercept=has_intercept)
        other = problem_of(rng, "squared_error", X=X.toarray(), has_intercept=has_intercept)
        for a, b in zip(centred_squares(one, v), centred_squares(other, v), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("X", [np.full((20, 1), 0.1), sparse.csr_array(np.full((20, 1), 0.1))])
def test_a_constant_feature_without_penalty_is_left_alone(rng, X):
    problem = problem_of(rng, "squared_error", X=X, alpha=0.0)
    found = minimum(problem, "diagonal")
    np.testing.assert_allclose(found.W, [[problem.Y.mean()], [0.0]], atol=1e-12)


@each_loss
@pytest.mark.parametrize("n", [400, 150])
@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_the_diagonal_leads_to_the_minimum(rng, name, n, kind):
    X, _ = words(rng, n, 200)
    problem = problem_of(rng, name, X=X if kind == "csr" else X.toarray(), alpha=1 / n)
    best, found = minimum(problem), minimum(problem, "diagonal", tol=1e-2)
    excess = objective(problem, found.W) - objective(problem, best.W)
    assert found.converged
    # The decrement is twice the excess; by the gains it is known to a factor of two or so
    assert excess < 4 * found.target


@each_loss
def test_weights_are_repetitions(rng, name):
    X, _ = words(rng, 200, 60)
    weight = rng.integers(3, size=200).astype(float)
    whole = problem_of(rng, name, X=X, alpha=1e-2)
    repeated = np.repeat(np.arange(200), weight.astype(int))
    twice = Problem(X[repeated], whole.Y[repeated], None, whole.loss, 1e-2, True)
    weighted = Problem(X, whole.Y, weight * (200 / weight.sum()), whole.loss, 1e-2, True)
    for how in ("diagonal", "sample_space"):
        one, other = minimum(twice, how), minimum(weighted, how)
        gap = abs(objective(twice, one.W) - objective(twice, other.W))
        assert gap < 4 * max(one.target, other.target) + 1e-12


def test_a_shift_and_another_unit_change_no_prediction(rng):
    # With a penalty in units of the features' own standard deviations
    n, d = 300, 80
    X = rng.standard_normal((n, d))
    unit, shift = 10.0 ** rng.uniform(-4, 4, d), 5 * rng.standard_normal(d)
    plain = problem_of(rng, "log_loss", X=X, alpha=0.01 * X.var(axis=0))
    other = Problem((X + shift) * unit, plain.Y, None, plain.loss, plain.alpha * unit**2, True)
    for how in ("diagonal", "sample_space"):
        raw = [p.predict(p.X, minimum(p, how, tol=1e-8).W) for p in (plain, other)]
        np.testing.assert_allclose(raw[0], raw[1], atol=1e-3)


@pytest.mark.parametrize("as_kind", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_classifier_against_logistic_regression(rng, as_kind, dtype):
    X, signal = words(rng, 500, 300)
    y = targets(rng, "log_loss", signal)[:, 0]
    ours = Classifier(alpha=1 / 500, preconditioner="diagonal", tol=1e-4, random_state=0)
    ours.fit(as_kind(X.astype(dtype)), y)
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(X, y)
    problem = Problem(X, y[:, None], None, make_loss("log_loss"), 1 / 500, True)
    values = [objective(problem, np.r_[m.intercept_, m.coef_[0]][:, None]) for m in (ours, peer)]
    assert values[0] - values[1] < 1e-5
    assert ours.preconditioner_ == "diagonal"
    assert ours.converged_
    assert ours.coef_.dtype == dtype


@pytest.mark.parametrize("how", ["diagonal", "sample_space"])
def test_regressors_against_those_of_scikit_learn(rng, how):
    X, signal = words(rng, 150, 200)
    y, counts = signal + rng.standard_normal(150), targets(rng, "poisson", signal)[:, 0]
    ours = Regressor(alpha=0.1, preconditioner=how, tol=1e-8).fit(X, y)
    peer = Ridge(alpha=15.0).fit(X.toarray(), y)
    np.testing.assert_allclose(ours.predict(X), peer.predict(X), atol=1e-3)
    ours = Regressor("poisson", alpha=0.1, preconditioner=how, tol=1e-8).fit(X, counts)
    peer = PoissonRegressor(alpha=0.1, tol=1e-10, max_iter=1000).fit(X.toarray(), counts)
    np.testing.assert_allclose(np.log(ours.predict(X)), np.log(peer.predict(X)), atol=1e-3)
    both = Regressor(alpha=0.1, preconditioner=how, tol=1e-8).fit(X, np.column_stack([y, -y]))
    np.testing.assert_allclose(both.coef_[0], -both.coef_[1], atol=1e-6)


def test_separable_classes_are_said(rng):
    X, y = rng.standard_normal((30, 100)), np.arange(30) % 2
    with pytest.warns(ConvergenceWarning, match="classes are separable"):
        Classifier(alpha=0.0, preconditioner="diagonal").fit(X, y)
    with pytest.warns(ConvergenceWarning, match="classes are separable"):
        Classifier(alpha=0.0, preconditioner="sample_space").fit(X, y)


# --- conjugate gradients


def test_gains_end_the_search_near_the_minimum(rng):
    A = rng.standard_normal((300, 100))
    H, g = A.T @ A / 300, rng.standard_normal((100, 1))
    true = (g.T @ np.linalg.solve(H, g)).item()
    for share in (0.5, 0.1, 0.01):
        inner = ByGains(share)
        found = inner.told(
            conjugate_gradients(
                lambda U: (H @ U, U),
                lambda r: r,
                None,
                g,
                g,
                lambda f, i=inner: i.enough(f, Need(0)),
            )
        )
        assert found.decrement - found.left <= true * (1 + 1e-9)
        assert true - (found.decrement - found.left) < 3 * found.left + 1e-9
        assert not found.rest.any()


def test_gains_are_asked_for_more_where_the_descent_is_fast():
    inner = ByGains().after(1.0)
    assert [inner.after(x).share for x in (2.0, 0.3, 1e-9)] == [0.5, 0.3, 0.02]
    assert ByGains(0.0).after(1.0) == ByGains(0.0)


# --- the space of the samples


@each_loss
@pytest.mark.parametrize("alpha", ["number", "each"])
def test_the_small_problem_has_the_minimum_of_the_large_one(rng, name, alpha):
    d = 90
    alpha = 1e-2 if alpha == "number" else 1e-2 * rng.uniform(0.1, 10, d)
    problem = problem_of(rng, name, n=40, d=d, alpha=alpha)
    best, found = minimum(problem), minimum(problem, "sample_space")
    assert found.converged
    assert objective(problem, found.W) - objective(problem, best.W) < 1e-7
    np.testing.assert_allclose(
        problem.predict(problem.X, found.W), problem.predict(problem.X, best.W), atol=1e-2
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("has_intercept", [False, True])
def test_without_a_penalty_the_norm_is_least_per_standard_deviation(rng, weighted, has_intercept):
    X = (rng.standard_normal((30, 100)) + 2 * has_intercept) * np.geomspace(1e-3, 1e3, 100)
    y, weight = rng.standard_normal(30), None
    if weighted:
        weight = np.r_[np.zeros(5), np.ones(25)]
    model = Regressor(fit_intercept=has_intercept, preconditioner="sample_space")
    model.fit(X, y, weight)
    assert model.rank_ == (25 if weighted else 30) - has_intercept
    X, y = (X[5:], y[5:]) if weighted else (X, y)
    unit = X.std(axis=0) if has_intercept else np.sqrt(np.mean(X**2, axis=0))
    if has_intercept:
        X, y = X - X.mean(axis=0), y - y.mean()
    expected = np.linalg.pinv(X / unit, rcond=1e-10) @ y / unit
    np.testing.assert_allclose(model.coef_ * unit, expected * unit, rtol=1e-8, atol=1e-10)


def test_least_norm_of_linear_regression_on_standardised_features(rng):
    X, y = 7 + rng.standard_normal((40, 300)) @ rng.standard_normal((300, 300)), np.arange(40.0)
    Z = StandardScaler().fit_transform(X)
    model = Regressor(preconditioner="sample_space").fit(X, y)
    np.testing.assert_allclose(
        model.coef_ * X.std(axis=0), LinearRegression().fit(Z, y).coef_, rtol=1e-7, atol=1e-9
    )


def test_sparse_and_dense_rows_have_one_sample_space(rng):
    X, _ = words(rng, 50, 400)
    sparse_one = problem_of(rng, "log_loss", X=X)
    dense = Problem(X.toarray(), sparse_one.Y, None, sparse_one.loss, 1e-2, True)
    one, other = (minimum(p, "sample_space").W for p in (sparse_one, dense))
    np.testing.assert_allclose(one, other, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_there_and_back(rng, weighted):
    weight = rng.uniform(0.2, 3.0, 20) if weighted else None
    problem = problem_of(rng, "squared_error", X=1 + rng.standard_normal((20, 50)), weight=weight)
    space = in_sample_space(problem)
    V = rng.standard_normal((space.problem.p, 1))
    W = space.lift(V)
    np.testing.assert_allclose(space.lower(W), V, atol=1e-8)
    raw = space.problem.predict(space.problem.X, V)
    np.testing.assert_allclose(problem.predict(problem.X, space.refined(V)), raw, atol=1e-9)
    np.testing.assert_allclose(space.problem.penalty(V), problem.penalty(W), rtol=1e-8)


def test_features_with_and_without_a_penalty_are_refused(rng):
    problem = problem_of(rng, "squared_error", n=20, d=50, alpha=np.arange(50) % 2)
    with pytest.raises(ValueError, match=r"^25 of 50 features have no penalty, and others have"):
        in_sample_space(problem)


def test_watchers_see_coefficients_of_the_features(rng):
    X, y = rng.standard_normal((60, 200)), np.arange(60) % 2
    model = Classifier(
        alpha=0.1, preconditioner="sample_space", early_stopping=True, random_state=0
    ).fit(X, y)
    assert all(np.isfinite(record["validation_loss"]) for record in model.history_)
    again = Classifier(alpha=0.1, preconditioner="sample_space", warm_start=True).fit(X, y)
    coef = again.coef_
    again.fit(X, y)
    np.testing.assert_allclose(again.coef_, coef, atol=1e-4)
    assert len(again.history_) <= 3


# --- effective number of coefficients


@pytest.mark.parametrize("name", ["squared_error", "huber", "poisson", "log_loss"])
def test_noisy_gradients_count_the_degrees_of_freedom(rng, name):
    X, _ = words(rng, 500, 300)
    problem = problem_of(rng, name, X=X, alpha=1e-3)
    found = minimum(problem, "diagonal")
    exact = degrees(problem, found.W)
    # Variance of a quadratic form of Gaussian noise: 2 tr M^2 <= 2 tr M; five standard errors, and
    # what is left of the conjugate gradients
    assert abs(found.degrees - exact) < 5 * np.sqrt(2 * exact) + 0.2 * exact
    bound = diagonal_hessian(
        problem, problem.loss.curvature(problem.Y, problem.predict(X, found.W))
    ).degrees_of_freedom(1)
    assert exact <= bound * (1 + 1e-9)


def test_one_noisy_gradient_is_unbiased(rng):
    X, _ = words(rng, 300, 150)
    problem = problem_of(rng, "log_loss", X=X, alpha=1e-2)
    chosen = Settings(Plan("diagonal", "newton", 300, 1), tol=1e-3)
    found = [solve(problem, chosen, np.random.default_rng(seed)) for seed in range(24)]
    exact = degrees(problem, found[0].W)
    mean = np.mean([one.degrees for one in found])
    # By the gains up to a tenth may be over- or underestimated
    assert abs(mean - exact) < 5 * np.sqrt(2 * exact / 24) + 0.1 * exact


def test_in_the_sample_space_degrees_are_exact(rng):
    problem = problem_of(rng, "log_loss", n=40, d=100, alpha=0.3)
    found = minimum(problem, "sample_space")
    # With a Hessian of as much curvature, to fifteen percent
    assert found.degrees == pytest.approx(degrees(problem, found.W), rel=0.15)


@each_loss
def test_target_noise_has_the_curvature_for_its_covariance(rng, name):
    problem = problem_of(rng, name, n=5)
    raw = rng.standard_normal(problem.Y.shape)
    t = raw.shape[1]
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * t)).reshape(t, -1).T
    noise = np.array([problem.loss.target_noise(problem.Y, raw, np.tile(s, (5, 1))) for s in signs])
    covariance = np.einsum("sij,sik->ijk", noise, noise) / len(signs)
    for j in range(t):
        unit = np.broadcast_to(np.eye(t)[j], raw.shape)
        expected = problem.loss.hessian_product(problem.Y, raw, unit)
        np.testing.assert_allclose(covariance[:, j], expected, atol=1e-12)


def test_the_statistical_error_counts_effective_coefficients(rng):
    X, _ = words(rng, 200, 2000)
    problem = problem_of(rng, "log_loss", X=X, alpha=1 / 200)
    found = minimum(problem, "diagonal")
    assert found.history[-1]["floor"] <= 1.0 + 1e-9  # of 2,001 coefficients and 200 rows it is ten
    assert found.degrees < 200


# --- one matrix for all classes


def test_the_pool_is_the_mean_of_the_hessians_of_classes(rng):
    problem = problem_of(rng, "multinomial")
    v = rng.random((60, 3))
    found = pooled_hessian(problem, v)
    Z = np.column_stack([np.ones(60), problem.X])
    mean = Z.T @ (v.mean(axis=1, keepdims=True) * Z) / 60
    np.testing.assert_allclose(found.factors[0].T @ found.factors[0], mean, atol=1e-9)
    ridge = np.diag(problem.ridge[:, 0])
    g = rng.standard_normal((problem.p, 3))
    each = [
        np.linalg.solve(3 * share * (mean + ridge), column)
        for share, column in zip(v.sum(axis=0) / v.sum(), g.T, strict=True)
    ]
    step = np.column_stack(each)
    np.testing.assert_allclose(
        found.solve(g), step - step.mean(axis=1, keepdims=True), rtol=1e-7, atol=1e-9
    )
    assert found.decrement(g) == pytest.approx(np.sum(g * found.solve(g)))
    assert (found.n_batches, found.n_clipped, found.ends) == (60, 0, (0.0, np.inf))


def test_with_one_matrix_for_all_classes_the_minimum_is_that_of_scikit_learn(rng, monkeypatch):
    plan_for(monkeypatch, pooled)
    X = rng.standard_normal((400, 20)) @ rng.standard_normal((20, 20)) * np.geomspace(1, 1e3, 20)
    y = (X @ rng.standard_normal((20, 5)) / 1e3 + rng.gumbel(size=(400, 5))).argmax(axis=1)
    ours = Classifier(alpha=1e-3, tol=1e-6, random_state=0).fit(X, y)
    peer = LogisticRegression(C=1 / 0.4, tol=1e-8, solver="newton-cholesky").fit(X, y)
    problem = Problem(X, np.eye(5)[y], None, MultinomialLoss(), 1e-3, True)
    values = [objective(problem, np.vstack([m.intercept_, m.coef_.T])) for m in (ours, peer)]
    assert values[0] - values[1] < 1e-6
    assert ours.preconditioner_ == "pooled"
    assert ours.covariance_estimator_.covariance_.shape == (20, 20)
    assert 0 < ours.df_ <= 4 * 21


# --- the plan


@given(
    n=st.integers(1, 10**6),
    p=st.sampled_from([999, 1000, 1001, 1002, 4999, 5000, 5001, 20_000]) | st.integers(2, 10**6),
    near=st.sampled_from([None, -1, 0, 1]),
    density=st.sampled_from([1.0, 0.5, 0.01, 1e-5]),
    n_columns=st.integers(1, 50),
    quadratic=st.booleans(),
    memory=st.sampled_from([1e5, 1e8, 1e10, np.inf]),
)
def test_no_plan_is_beyond_memory(n, p, near, density, n_columns, quadratic, memory):
    n = n if near is None else max(p + near, 1)
    coupled = n_columns > 2 and not quadratic
    columns = 1 if quadratic else n_columns
    chosen = plan(
        n,
        p,
        density=density,
        n_columns=columns,
        quadratic=quadratic,
        coupled=coupled,
        memory=memory,
    ).preconditioner
    if p > 5000:
        assert chosen in ("diagonal", "sample_space")
    if chosen == "sample_space":
        assert n < p
        assert density == 1.0
        assert matrices(n, columns) <= memory
    if p > 1000 and chosen in square:
        assert matrices(p, 1 if chosen == "pooled" else columns) <= memory
    if p <= 100:
        assert chosen in ("exact", "sketch")


def test_many_classes_share_one_hessian():
    together, apart = (
        plan(20_000, 1000, n_columns=30, quadratic=False, coupled=coupled, memory=1e9)
        for coupled in (True, False)
    )
    assert together.preconditioner == "pooled"
    assert apart.preconditioner in ("exact", "sketch")


@pytest.mark.parametrize("asked", ["diagonal", "sample_space", "exact", "sketch"])
def test_users_decide(asked):
    assert plan(50, 40, preconditioner=asked).preconditioner == asked
    assert plan(50, 40_000, preconditioner=asked).preconditioner == asked


@given(
    n=st.integers(9, 14),
    d=st.integers(7, 13),
    seed=st.integers(0, 5),
    density=st.sampled_from([1.0, 0.3]),
    name=st.sampled_from(LOSSES),
)
def test_the_fit_is_the_same_on_either_side_of_a_switch(n, d, seed, density, name):
    rng = np.random.default_rng([n, d, seed])
    X = rng.standard_normal((n, d)) * (rng.random((n, d)) < density)
    X = X if density == 1.0 else sparse.csr_array(X)
    problem = problem_of(rng, name, X=X, alpha=0.1)
    if problem.Y.std() == 0:
        return
    best = objective(problem, minimum(problem, tol=1e-8).W)
    for how in ("diagonal", "sample_space"):
        found = minimum(problem, how, tol=1e-4)
        assert objective(problem, found.W) - best < 4 * found.target + 1e-8


@pytest.mark.parametrize(("n", "d"), [(80, 1100), (1200, 1100), (60, 5100)])
def test_wide_data_are_planned_for(rng, n, d):
    X, y = rng.standard_normal((n, d)), rng.standard_normal(n)
    few = sparse.csr_array(X * (rng.random((n, d)) < 0.01))
    labels = (y > 0).astype(int)
    assert Classifier(alpha=0.1).fit(few, labels).preconditioner_ == "diagonal"
    if n < d:
        assert Classifier(alpha=0.1).fit(X, labels).preconditioner_ == "sample_space"
        assert Regressor(alpha=0.1).fit(X, y).preconditioner_ == "sample_space"


# --- limits


def test_memory_is_a_few_times_that_of_sparse_rows(rng):
    n, d, k = 4000, 60_000, 60
    X = sparse.csr_array(
        (rng.random(n * k), rng.integers(d, size=n * k), np.arange(0, n * k + 1, k)), shape=(n, d)
    )
    size = X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
    y = rng.integers(2, size=n)
    tracemalloc.start()
    try:
        Classifier(alpha=1 / n, random_state=0).fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * size


@pytest.mark.parametrize("how", ["diagonal", "sample_space"])
def test_what_a_wide_fit_does_not_keep_is_said(rng, how):
    X, y = rng.standard_normal((20, 50)), np.arange(20) % 2
    model = Classifier(alpha=0.1, preconditioner=how).fit(X, y)
    with pytest.raises(
        AttributeError, match=r"a matrix of 50 x 50, .* GiB, and a fit with precond"
    ):
        model.covariance_estimator_.covariance_  # noqa: B018
    assert np.isnan(model.rank_) if how == "diagonal" else model.rank_ == 19
    assert np.isnan(model.coef_standard_error_).all()
    assert np.isnan(model.intercept_standard_error_).all()
    with pytest.raises(AttributeError, match=r"^df_ is there after fit alone\."):
        Classifier().df_  # noqa: B018


@pytest.mark.parametrize("how", ["diagonal", "sample_space"])
@pytest.mark.parametrize("setting", [{"batch_size": 8}, {"average": False}, {"learning_rate": 0.1}])
def test_mini_batch_steps_need_a_sketch(rng, how, setting):
    with pytest.raises(ValueError, match=rf"^preconditioner='{how}' goes by Newton steps on all"):
        Regressor(preconditioner=how, **setting).fit(rng.standard_normal((9, 3)), np.arange(9.0))


def test_many_rows_are_no_sample_space(rng, monkeypatch):
    monkeypatch.setattr("sklearn_gradhess._memory._limits", lambda: iter([2.0**20]))
    X, y = rng.standard_normal((300, 3)), rng.standard_normal(300)
    with pytest.raises(ValueError, match=r"rows by rows, and X has 300: 0\.00872 GiB are needed"):
        Regressor(preconditioner="sample_space").fit(X, y)


@pytest.mark.parametrize("how", ["diagonal", "sample_space"])
@pytest.mark.parametrize("has_intercept", [True, False])
def test_features_that_tell_nothing_leave_the_mean(how, has_intercept):
    X, y = np.zeros((6, 3)), np.arange(6.0)
    model = Regressor(alpha=0.1, preconditioner=how, fit_intercept=has_intercept).fit(X, y)
    np.testing.assert_array_equal(model.coef_, 0.0)
    np.testing.assert_allclose(model.predict(X), 2.5 * has_intercept)
    one = Regressor(alpha=0.1, preconditioner=how).fit(np.ones((1, 3)), [2.0])
    assert one.predict(np.ones((1, 3))) == pytest.approx(2.0)


def test_a_level_without_a_count_has_no_finite_coefficient(rng):
    X = np.eye(4)[rng.integers(4, size=200)][:, 1:]
    y = np.where(X[:, 0] > 0, 0.0, rng.poisson(3.0, 200))
    problem = Problem(X, y[:, None], None, make_loss("poisson"), 0.0, True)
    assert minimum(problem, "diagonal").ending is Ending.UNBOUNDED
