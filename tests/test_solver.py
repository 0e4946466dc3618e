"""Objective, sketch and solver against dense algebra and naive loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import expit

from sklearn_gradhess import _sketch
from sklearn_gradhess._losses import MultinomialLoss, make_loss
from sklearn_gradhess._objective import Problem
from sklearn_gradhess._sketch import Sketch, fixed_sketch, sketch
from sklearn_gradhess._solver import Settings, solve

LOSSES = ("squared_error", "huber", "log_loss", "poisson", "multinomial")
BOUNDED = ("squared_error", "huber", "log_loss")  # stiffness is that of a quadratic upper bound


@pytest.fixture
def mini_batches(monkeypatch):
    """Take small data for large: sketch in batches instead of exactly."""
    monkeypatch.setattr(_sketch, "_EXACT", 0)


def the_loss(name):
    return MultinomialLoss() if name == "multinomial" else make_loss(name)


def targets(name, rng, n):
    if name == "multinomial":
        return np.eye(3)[rng.integers(3, size=n)]
    if name == "log_loss":
        return rng.integers(2, size=(n, 1)).astype(float)
    if name == "poisson":
        return rng.poisson(2.0, size=(n, 1)).astype(float)
    return 2 * rng.standard_normal((n, 1))


def make(name, rng, n=12, d=3, *, alpha=0.3, intercept=True, weighted=True, container=np.asarray):
    X = rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.7)
    weight = rng.uniform(0, 2, n) if weighted else None
    return Problem(container(X), targets(name, rng, n), weight, the_loss(name), alpha, intercept)


def dense(problem):
    X = problem.X.toarray() if sparse.issparse(problem.X) else problem.X
    return np.column_stack([np.ones(len(X)), X]) if problem.has_intercept else X


def naive_objective(problem, W):
    Z, total = dense(problem), 0.0
    for i, row in enumerate(Z):
        raw = np.array([sum(a * b for a, b in zip(row, w, strict=True)) for w in W.T])
        w = 1.0 if problem.weight is None else problem.weight[i]
        total += w * float(np.sum(problem.loss.value(problem.Y[i : i + 1], raw[None])))
    coef = W[1:] if problem.has_intercept else W
    return total / len(Z) + 0.5 * problem.alpha * float(np.sum(coef**2))


def numeric_gradient(function, W, h=1e-5):
    out = np.zeros_like(W)
    for index in np.ndindex(W.shape):
        E = np.zeros_like(W)
        E[index] = h
        out[index] = (function(W + E) - function(W - E)) / (2 * h)
    return out


def gaussian(rng, n, p):
    return rng.standard_normal((n, p)) @ rng.standard_normal((p, p))


def one_hot(rng, n, p):
    levels = np.minimum(rng.geometric(0.2, n) - 1, p - 1)
    return np.eye(p)[levels]


def student_t(rng, n, p):
    return rng.standard_t(3, size=(n, p))


ROWS = (gaussian, one_hot, student_t)


def sketch_of(X, rng, oversampling=4.0, alpha=0.0, intercept=False, **kwargs):
    y = rng.standard_normal((len(X), 1))
    problem = Problem(X, y, None, make_loss("squared_error"), alpha, intercept)
    return problem, sketch(problem, None, y, oversampling=oversampling, rng=rng, **kwargs)


# --- losses


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_all_at_once_is_each_of_value_gradient_curvature_and_stiffness(rng, name, dtype):
    loss, y = the_loss(name), targets(name, rng, 42).astype(dtype)
    raw = np.linspace(-800, 800, 42)[:, None] * np.ones(y.shape[1])
    raw[20:] = 3 * rng.standard_normal((22, y.shape[1]))
    raw[21] = 0
    raw = raw.astype(dtype)
    each = [getattr(loss, part)(y, raw) for part in ("value", "gradient", "curvature", "stiffness")]
    for got, want in zip(loss.all(y, raw), each, strict=True):
        assert got.dtype == dtype
        assert_allclose(got, want, rtol=max(20 * np.finfo(dtype).eps, 1e-8))


@given(f=st.floats(-30, 30), g=st.floats(-30, 30), y=st.sampled_from([0.0, 1.0]), name=st.data())
def test_stiffness_is_the_curvature_of_a_quadratic_upper_bound(f, g, y, name):
    loss = make_loss(name.draw(st.sampled_from(BOUNDED)))
    f, g, y = np.array([f]), np.array([g]), np.array([y])
    bound = loss.value(y, f) + loss.gradient(y, f) * (g - f)
    bound = bound + 0.5 * loss.stiffness(y, f) * (g - f) ** 2
    assert loss.value(y, g) <= bound + 1e-9 * (1 + abs(bound))


@pytest.mark.parametrize("name", ["squared_error", "huber", "log_loss", "poisson"])
@given(f=st.floats(-50, 50), y=st.sampled_from([0.0, 1.0]))
def test_stiffness_is_positive_and_no_less_than_the_curvature(name, f, y):
    loss, f, y = make_loss(name), np.array([f]), np.array([y])
    assert loss.stiffness(y, f) > 0
    assert loss.stiffness(y, f) >= loss.curvature(y, f) * (1 - 1e-8)


@given(raw=st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_multinomial_stiffness_is_no_less_than_the_diagonal_of_the_hessian(raw):
    raw, y = np.array([raw]), np.eye(3)[:1]
    loss = MultinomialLoss()
    assert np.all(loss.stiffness(y, raw) >= loss.curvature(y, raw) * (1 - 1e-8) - 1e-12)


def test_twice_the_multinomial_stiffness_bounds_the_hessian(rng):
    loss, y = MultinomialLoss(), np.eye(3)[:1]
    for raw in rng.normal(scale=4, size=(50, 1, 3)):
        H = np.vstack([loss.hessian_product(y, raw, e[None])[0] for e in np.eye(3)])
        gap = 2 * np.diag(loss.stiffness(y, raw)[0]) - H
        assert np.linalg.eigvalsh(gap).min() > -1e-12


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_multinomial_derivatives_are_those_of_central_differences(rng, scale):
    loss, h = MultinomialLoss(), 1e-5
    y, raw = np.eye(4)[[1]], scale * rng.standard_normal((1, 4))
    for e in np.eye(4)[:, None]:
        slope = (loss.value(y, raw + h * e) - loss.value(y, raw - h * e)) / (2 * h)
        assert_allclose(slope, np.sum(loss.gradient(y, raw) * e), atol=1e-8 * scale)
        change = (loss.gradient(y, raw + h * e) - loss.gradient(y, raw - h * e)) / (2 * h)
        assert_allclose(loss.hessian_product(y, raw, e), change, atol=1e-8 * scale)
        assert_allclose(np.sum(loss.curvature(y, raw) * e), np.sum(change * e), atol=1e-8 * scale)


def test_multinomial_loss_of_two_classes_is_the_logistic_loss(rng):
    f, codes = rng.standard_normal(9), rng.integers(2, size=9)
    two = MultinomialLoss().value(np.eye(2)[codes], np.column_stack([-f / 2, f / 2]))
    assert_allclose(two, make_loss("log_loss").value(codes.astype(float), f))


@pytest.mark.parametrize("name", ["squared_error", "huber", "log_loss", "poisson"])
def test_link_is_where_the_loss_of_the_mean_is_flat(name):
    loss, mean = make_loss(name), np.array([0.2, 0.5, 0.9])
    assert_allclose(loss.gradient(mean, loss.link(mean)), 0, atol=1e-12)


@pytest.mark.parametrize("name", ["log_loss", "poisson"])
def test_link_of_the_ends_of_the_range_is_finite(name):
    assert np.isfinite(make_loss(name).link(np.array([0.0, 1.0]))).all()


def test_multinomial_link_fits_the_frequencies_and_is_centred():
    mean = np.array([[0.2, 0.3, 0.5]])
    raw = MultinomialLoss().link(mean)
    assert_allclose(raw.sum(), 0, atol=1e-12)
    assert_allclose(MultinomialLoss().gradient(mean, raw), 0, atol=1e-12)


@pytest.mark.parametrize("f", [-1e3, 1e3])
def test_multinomial_is_finite_far_out(f):
    loss, y, raw = MultinomialLoss(), np.eye(3)[:1], np.array([[f, 0.0, -f]])
    for method in (loss.value, loss.gradient, loss.curvature, loss.stiffness):
        assert np.isfinite(method(y, raw)).all()


# --- objective


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array, sparse.csr_matrix])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_objective_is_that_of_naive_loops(rng, name, intercept, weighted, container):
    problem = make(name, rng, intercept=intercept, weighted=weighted, container=container)
    W = rng.standard_normal((problem.p, problem.Y.shape[1]))
    evaluation = problem.evaluate(W)
    assert_allclose(evaluation.objective, naive_objective(problem, W))
    assert_allclose(evaluation.raw, dense(problem) @ W)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_derivative_of_the_objective(rng, name, intercept):
    problem = make(name, rng, intercept=intercept)
    W = rng.standard_normal((problem.p, problem.Y.shape[1]))
    expected = numeric_gradient(lambda V: naive_objective(problem, V), W)
    assert_allclose(problem.evaluate(W).gradient, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["squared_error", "log_loss", "poisson", "multinomial"])
def test_hessian_product_is_the_derivative_of_the_gradient(rng, name):
    problem = make(name, rng)
    W, U = rng.standard_normal((2, problem.p, problem.Y.shape[1]))
    h = 1e-5
    change = problem.evaluate(W + h * U).gradient - problem.evaluate(W - h * U).gradient
    product, raw_u = problem.hessian_product(problem.evaluate(W).raw, U)
    assert_allclose(product, change / (2 * h), atol=1e-6)
    assert_allclose(raw_u, dense(problem) @ U)


def test_hessian_product_is_that_of_the_dense_hessian(rng):
    problem = make("log_loss", rng)
    Z, w, u = dense(problem), problem.weight, rng.standard_normal((4, 1))
    p = expit(Z @ u[:, 0])
    H = Z.T @ ((w * p * (1 - p))[:, None] * Z) / 12 + 0.3 * np.diag([0, 1, 1, 1])
    assert_allclose(problem.hessian_product(Z @ u, u)[0], H @ u)


def test_hessian_product_takes_another_curvature(rng):
    problem = make("log_loss", rng, alpha=0.0, weighted=False)
    Z, u, v = dense(problem), rng.standard_normal((4, 1)), rng.uniform(size=(12, 1))
    assert_allclose(problem.hessian_product(Z @ u, u, v)[0], Z.T @ (v * (Z @ u)) / 12)


def test_chunks_do_not_change_an_evaluation(rng, monkeypatch):
    problem = make("poisson", rng, n=1000)
    W = 0.1 * rng.standard_normal((4, 1))
    whole = problem.evaluate(W)
    monkeypatch.setattr("sklearn_gradhess._objective._CHUNK_BYTES", 1)  # 256 rows, the least
    pieces = problem.evaluate(W)
    assert_allclose(pieces.gradient, whole.gradient)
    assert_allclose(pieces.raw, whole.raw)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_probes_of_a_root_of_the_inverse_hessian_give_leverages(rng, container):
    problem = make("log_loss", rng, container=container)
    root = rng.standard_normal((4, 4))
    leverage = problem.evaluate(np.zeros((4, 1)), [root]).leverage
    square = np.sum((dense(problem) @ root) ** 2, axis=1)
    assert_allclose(leverage, 0.25 * problem.weight * square)


def test_penalty_leaves_the_intercept_alone(rng):
    problem = make("squared_error", rng)
    W = np.array([[9.0], [1.0], [2.0], [3.0]])
    assert_allclose(problem.penalty(W), 0.15 * 14)
    assert_allclose(problem.penalty_gradient(W)[:, 0], [0, 0.3, 0.6, 0.9])


# --- sketch


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("seed", range(4))
def test_spectrum_of_the_preconditioned_hessian_is_within_the_law(mini_batches, rows, seed):
    rng = np.random.default_rng(seed)
    X = rows(rng, 8000, 20)
    X = X[:, X.any(axis=0)]
    _, sketched = sketch_of(X, rng)
    T = sketched.whiten[0]
    eigenvalues = np.linalg.eigvalsh(T.T @ (X.T @ X / len(X)) @ T)
    # The law for four batches a coefficient is [1/3, 3]; room for the fluctuation of 20 of them
    assert 0.2 < eigenvalues.min() < eigenvalues.max() < 4.0


def test_unshuffled_batches_give_the_law_too_where_rows_are_exchangeable(mini_batches, rng):
    X = gaussian(rng, 8000, 20)
    _, sketched = sketch_of(X, rng, shuffle=False)
    T = sketched.whiten[0]
    eigenvalues = np.linalg.eigvalsh(T.T @ (X.T @ X / len(X)) @ T)
    assert 0.2 < eigenvalues.min() < eigenvalues.max() < 4.0


def test_the_inverse_of_a_sketch_is_unbiased(mini_batches):
    rng, X = np.random.default_rng(0), np.random.default_rng(1).standard_normal((400, 3))
    H = X.T @ X / 400
    mean = np.zeros((3, 3))
    for _ in range(400):
        _, sketched = sketch_of(X, rng, oversampling=16.0)
        mean += sketched.newton(np.eye(3)) / 400
    # Entries of an inverse Wishart of 50 batches deviate by sqrt(2/42) = 0.22: five sigma of 400
    assert_allclose(mean @ H, np.eye(3), atol=5 * 0.22 / 20 * 1.2)


def test_a_sketch_in_batches_of_one_is_the_hessian(rng):
    X = gaussian(rng, 60, 4)
    problem, sketched = sketch_of(X, rng, alpha=0.2, intercept=True)
    Z = dense(problem)
    H = Z.T @ Z / 60 + 0.2 * np.diag([0, 1, 1, 1, 1])
    assert sketched.exact
    assert sketched.ratio == 0
    assert (sketched.batch_size, sketched.n_batches) == (1, 60)
    assert_allclose(sketched.newton(np.eye(5)), np.linalg.inv(H), rtol=1e-8)
    assert_allclose(sketched.start, np.linalg.solve(H, Z.T @ problem.Y / 60), rtol=1e-8)


def test_an_exact_sketch_weights_rows_by_weight_and_stiffness(rng):
    problem = make("multinomial", rng, n=40, alpha=0.1)
    raw = rng.standard_normal((40, 3))
    stiffness = problem.loss.stiffness(problem.Y, raw)
    sketched = sketch(problem, stiffness, oversampling=4.0, rng=rng)
    v = stiffness * problem.weight[:, None]
    Z, gradient = dense(problem), rng.standard_normal((4, 3))
    for j in range(3):
        H = Z.T @ (v[:, j, None] * Z) / 40 + 0.1 * np.diag([0, 1, 1, 1])
        assert_allclose(sketched.newton(gradient)[:, j], np.linalg.solve(H, gradient[:, j]))
    assert sketched.curvature_scale == 2
    assert sketched.start is None


def test_an_exact_sketch_solves_the_least_squares_of_every_column(rng):
    problem = make("multinomial", rng, n=40, alpha=0.1)
    v, target = rng.uniform(0.1, 1, (40, 3)), rng.standard_normal((40, 3))
    sketched = sketch(problem, v, target, oversampling=4.0, rng=rng)
    Z, v = dense(problem), v * problem.weight[:, None]
    for j in range(3):
        H = Z.T @ (v[:, j, None] * Z) / 40 + 0.1 * np.diag([0, 1, 1, 1])
        want = np.linalg.solve(H, Z.T @ (v[:, j] * target[:, j]) / 40)
        assert_allclose(sketched.start[:, j], want, rtol=1e-8)


@pytest.mark.parametrize("signal", [0.0, 0.1, 1.0, 10.0])
def test_the_shrunk_start_is_no_worse_than_none_nor_than_the_sketched_solution(
    mini_batches, rng, signal
):
    n, p, runs = 4000, 20, 40
    shrunk, plain = np.zeros(runs), np.zeros(runs)
    for run in range(runs):
        X = gaussian(rng, n, p)
        w = rng.standard_normal((p, 1))
        w *= np.sqrt(n * signal) / np.linalg.norm(X @ w)
        target = X @ w + rng.standard_normal((n, 1))
        problem = Problem(X, target, None, make_loss("log_loss"), 0.0, False)
        for errors, stiffness in ((shrunk, np.ones((n, 1))), (plain, None)):
            start = sketch(problem, stiffness, target, oversampling=4.0, rng=rng).start
            errors[run] = np.sum((X @ (start - w)) ** 2) / n
    # c / (1 - c) = 1/3, with 20 degrees of freedom: five standard errors of 40 runs
    assert abs(plain.mean() - 1 / 3) < 5 * (1 / 3) * np.sqrt(2 / 20 / runs) + 0.02
    best = signal / 3 / (signal + 1 / 3)  # of a step whose length is known
    assert best * 0.75 < shrunk.mean() + 1e-12
    assert shrunk.mean() < best + 0.06


@pytest.mark.parametrize("name", ["huber", "log_loss", "poisson", "multinomial"])
def test_a_start_that_is_worse_than_the_null_model_is_dropped(rng, monkeypatch, name):
    problem = make(name, rng, n=60)
    monkeypatch.setattr(_sketch, "_solve", lambda T, factor, ratio: np.full((len(T), 1), 30.0))
    if name == "multinomial":  # where all classes alike would change nothing
        bad = iter((30.0, -30.0, 30.0))
        monkeypatch.setattr(_sketch, "_solve", lambda T, *_: np.full((len(T), 1), next(bad)))
    solution = solve(problem, Settings(tol=1e-6), np.random.default_rng(0))
    mean = problem.weighted(problem.Y).mean(axis=0)
    null = problem.mean_loss(np.tile(problem.loss.link(mean), (60, 1)))
    assert_allclose(solution.history[0]["loss"], null)
    assert solution.history[0]["passes"] == 3  # the sketch, the start, the null model
    assert solution.converged
    assert np.abs(problem.evaluate(solution.W).gradient).max() < 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_decrement_is_the_quadratic_form_of_the_debiased_inverse(mini_batches, rng, alpha):
    _, sketched = sketch_of(gaussian(rng, 2000, 5), rng, alpha=alpha)
    factor, k, g = sketched.factors[0], sketched.n_batches, rng.standard_normal((5, 1))
    P = (factor.T @ factor + alpha * np.eye(5)) * k / (k - 6)
    assert_allclose(sketched.decrement(g), (g.T @ np.linalg.solve(P, g)).item())


def test_the_same_generator_gives_the_same_sketch(mini_batches):
    X = gaussian(np.random.default_rng(0), 500, 4)
    first, second = (sketch_of(X, np.random.default_rng(1))[1] for _ in range(2))
    assert_array_equal(first.whiten[0], second.whiten[0])


def test_threads_do_not_change_a_sketch(mini_batches):
    X = gaussian(np.random.default_rng(0), 2000, 4)
    one, two = (sketch_of(X, np.random.default_rng(1), n_threads=t)[1] for t in (1, 2))
    assert_allclose(one.whiten[0], two.whiten[0], rtol=1e-10)


def test_singular_directions_are_counted_and_projected_out(rng):
    X = gaussian(rng, 50, 3)[:, [0, 1, 2, 2]]
    _, sketched = sketch_of(X, rng)
    assert sketched.n_clipped == 1
    assert_allclose(
        sketched.newton(np.eye(4)), np.linalg.pinv(X.T @ X / 50, rcond=1e-10), rtol=1e-6
    )


def law_of(p, c, rng):
    rows = rng.standard_normal((round(p / c), p))
    return (1 - c) / np.linalg.eigvalsh(rows.T @ rows * c / p)


def bare_sketch(p, c, scale=1.0):
    return Sketch([np.eye(p)], None, False, c, [np.eye(p)], 1, 1, 0, scale)


def mean_square_radius(eta, eigenvalues, batch_size):
    # E e'e for steps on batches whose effective leverage is twice the mean (MATH section 4.2)
    ll = np.outer(eigenvalues, eigenvalues)
    A = 2 * eta**2 / batch_size * ll
    A[np.diag_indices_from(A)] += (1 - eta * eigenvalues) ** 2
    A[np.diag_indices_from(A)] += eta**2 / batch_size * eigenvalues**2
    return np.abs(np.linalg.eigvalsh(A)).max()


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("multiple", [2, 4, 16])
@pytest.mark.parametrize("c", [0.25, 0.1])
def test_step_size_is_half_the_largest_mean_square_stable_one(rng, c, multiple, scale):
    p = 100
    eta = bare_sketch(p, c, scale).step_size(multiple * p)
    eigenvalues = scale * law_of(p, c, rng)
    assert eta > 0
    assert mean_square_radius(eta, eigenvalues, multiple * p) < 1
    assert mean_square_radius(2.3 * eta, eigenvalues, multiple * p) > 1


def test_step_size_grows_with_the_batch_and_stays_below_the_deterministic_bound():
    sizes = [bare_sketch(20, 0.25).step_size(b) for b in (1, 10, 100, 10_000, 10**8)]
    assert sizes == sorted(sizes)
    # At infinite batches half of two over the largest eigenvalue of the law, 0.75 / 0.25
    assert_allclose(sizes[-1], 1 / 3, rtol=2e-3)


def test_a_fixed_sketch_is_the_inverse_of_the_factor_and_penalty(rng):
    problem = make("squared_error", rng, alpha=0.3)
    factor = np.triu(rng.uniform(1, 2, (4, 4)))
    P = factor.T @ factor + 0.3 * np.diag([0, 1, 1, 1])
    sketched = fixed_sketch(factor, problem, ratio=0.2)
    assert_allclose(sketched.newton(np.eye(4)), 0.8 * np.linalg.inv(P), rtol=1e-8, atol=1e-12)


# --- solver


def regression(rng, n=4000, p=5):
    X, noise = gaussian(rng, n, p), rng.standard_normal((n, 1))
    return Problem(X, X.sum(axis=1)[:, None] + noise, None, make_loss("squared_error"), 0.0, False)


def gap(problem, W):
    """Suboptimality in statistical errors s^2 p / N."""
    exact = np.linalg.lstsq(problem.X, problem.Y, rcond=None)[0]
    square = np.mean((problem.Y - problem.X @ exact) ** 2)
    return np.mean((problem.X @ (W - exact)) ** 2) * problem.n / (square * problem.p)


def test_mini_batches_reach_least_squares(mini_batches, rng):
    problem = regression(rng)
    solution = solve(problem, Settings(), rng)
    assert solution.converged
    assert solution.learning_rate > 0
    assert gap(problem, solution.W) < 0.05


@pytest.mark.parametrize("rate", [2.0, 10.0, 1e6])
def test_a_step_size_that_diverges_is_caught(mini_batches, rng, rate):
    problem = regression(rng)
    solution = solve(problem, Settings(learning_rate=rate), rng)
    assert solution.converged
    assert gap(problem, solution.W) < 0.05


def test_without_the_safeguard_the_best_iterate_is_returned(mini_batches, rng):
    problem = regression(rng)
    settings = Settings(learning_rate=3.0, safeguard=False)
    solution = solve(problem, settings, rng, np.zeros((5, 1)))
    losses = [record["loss"] for record in solution.history]
    assert not solution.converged
    assert_allclose(problem.evaluate(solution.W).objective, min(losses))


@pytest.mark.parametrize("name", ["huber", "log_loss", "poisson", "multinomial"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_newton_steps_descend_from_far_away(rng, name, scale):
    problem = make(name, rng, n=60, alpha=0.01)
    start = scale * rng.standard_normal((4, problem.Y.shape[1]))
    solution = solve(problem, Settings(), rng, start)
    losses = [record["loss"] for record in solution.history]
    assert solution.converged
    assert np.all(np.diff(losses) <= 1e-12 * np.abs(losses[:-1]) + 1e-15)
    assert_allclose(problem.evaluate(solution.W).gradient, 0, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_start_at_the_minimum_takes_no_step(rng, name):
    problem = make(name, rng, n=60)
    first = solve(problem, Settings(), rng)
    again = solve(problem, Settings(), rng, first.W)
    assert again.converged
    assert len(again.history) == 1
    assert_allclose(again.W, first.W, atol=1e-6)


def test_on_iteration_sees_every_record_and_may_stop(rng):
    problem, seen = make("poisson", rng, n=60), []

    def watch(W, record):
        seen.append((W.copy(), record))
        return len(seen) == 2

    solution = solve(problem, Settings(on_iteration=watch), rng, 3 * np.ones((4, 1)))
    assert [record for _, record in seen] == solution.history
    assert len(solution.history) == 2
    assert_array_equal(solution.W, seen[-1][0])


def test_passes_are_counted_as_rows_read_over_rows(mini_batches, rng, monkeypatch):
    read = 0
    problem = regression(rng)
    rows = Problem.rows

    def counting(self, index):
        nonlocal read
        out = rows(self, index)
        read += out.shape[0]
        return out

    monkeypatch.setattr(Problem, "rows", counting)
    solution = solve(problem, Settings(tol=1e-8), rng)
    # The sketch reads X past `rows`, once
    assert_allclose(solution.n_passes, 1 + read / problem.n)


def test_a_rejected_step_is_not_what_on_iteration_sees(mini_batches, rng):
    problem, losses = regression(rng), []

    def watch(W, record):
        losses.append((problem.evaluate(W).objective, record["loss"]))
        return False

    solution = solve(problem, Settings(learning_rate=10.0, tol=1e-8, on_iteration=watch), rng)
    assert solution.converged
    assert len(losses) == len(solution.history)
    assert_allclose(*np.transpose(losses))


def confident(rng, n=20_000, p=5, *, scale=30.0):
    """Logistic regression where most rows are sure of their class, and some have high leverage."""
    X = rng.standard_t(1.5, size=(n, p))
    y = rng.random((n, 1)) < expit(scale * X.sum(axis=1, keepdims=True) / np.sqrt(p))
    return Problem(X, y.astype(float), None, make_loss("log_loss"), 0.0, False)


def newton_decrement(problem, W):
    raw = problem.X @ W
    H = problem.X.T @ (problem.loss.curvature(problem.Y, raw) * problem.X) / problem.n
    gradient = problem.X.T @ problem.loss.gradient(problem.Y, raw) / problem.n
    return float(np.sum(gradient * np.linalg.solve(H, gradient)))


@pytest.mark.parametrize("seed", range(3))
def test_confident_rows_hide_no_descent(mini_batches, seed):
    # By the stiffness that the sketch assumes, directions look a hundred times flatter than needed
    problem = confident(np.random.default_rng(seed))
    solution = solve(problem, Settings(), np.random.default_rng(seed))
    floor = problem.p / problem.n
    assert solution.converged
    assert newton_decrement(problem, solution.W) < 0.01 * floor


@pytest.mark.parametrize("seed", range(3))
def test_confident_rows_do_not_stall_newton_steps(seed):
    problem = confident(np.random.default_rng(seed))
    solution = solve(problem, Settings(tol=1e-8), np.random.default_rng(seed))
    assert solution.converged
    assert len(solution.history) < 20
    assert newton_decrement(problem, solution.W) < 1e-8 * problem.p / problem.n


def test_the_decrement_of_a_last_point_is_that_of_the_hessian(mini_batches, rng):
    problem = confident(rng, scale=2.0)
    seen = {}

    def watch(W, record):
        seen[record["passes"]] = W.copy()
        return False

    solution = solve(problem, Settings(on_iteration=watch), rng)
    last = solution.history[-1]
    # By a sample of 80 draws at least, for five coefficients: their inverse Hessian is too large by
    # about 1/(1 - 5/80), with a spread of some sqrt(2 / 80) a direction
    assert_allclose(last["decrement"], newton_decrement(problem, seen[last["passes"]]), rtol=0.8)


@pytest.mark.parametrize("name", ["squared_error", "log_loss"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_of_a_given_preconditioner_does_not_matter(mini_batches, rng, name, scale):
    problem = regression(rng) if name == "squared_error" else confident(rng, 8000, 3, scale=1.0)
    factor = scale * np.linalg.qr(problem.X / np.sqrt(problem.n), mode="r")
    given = fixed_sketch(factor, problem, ratio=0.0)
    solution = solve(problem, Settings(fixed=given), rng)
    assert solution.converged
    if name == "squared_error":
        assert gap(problem, solution.W) < 0.05
    else:
        assert newton_decrement(problem, solution.W) < 0.01 * problem.p / problem.n


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_sketch_scaled_to_another_has_eigenvalues_of_mean_one_in_it(rng, alpha):
    problem = make("squared_error", rng, n=200, alpha=alpha, weighted=False)
    Z = dense(problem)
    H = Z.T @ Z / problem.n + alpha * np.diag([0.0, 1, 1, 1])
    factor = np.triu(rng.standard_normal((4, 4))) + 4 * np.eye(4)
    exact = sketch(problem, None, oversampling=4, rng=rng)
    scaled = fixed_sketch(factor, problem, ratio=0.0).scaled_to(exact, problem)
    P_inverse = scaled.newton(np.eye(4))
    assert_allclose(np.trace(P_inverse @ H) / 4, 1.0)


@pytest.mark.parametrize("oversampling", [1.001, 1.05, 1.5])
def test_hardly_more_batches_than_coefficients_are_not_taken_for_converged(
    mini_batches, rng, oversampling
):
    problem = regression(rng, 20_000, 20)
    solution = solve(problem, Settings(oversampling=oversampling), rng)
    assert solution.sketch.n_batches > problem.p + 10
    assert solution.converged
    assert gap(problem, solution.W) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_a_level_of_two_rows_does_not_vanish(mini_batches, seed):
    # Their signs may differ and both be in one batch: of 150 levels about one in two sketches
    rng = np.random.default_rng(seed)
    level = np.repeat(np.arange(150), 2)
    X = np.zeros((40_000, 160))
    X[np.arange(300), 10 + level] = 1.0
    X[:, :10] = rng.standard_normal((40_000, 10))
    y = X.sum(axis=1, keepdims=True) + 0.1 * rng.standard_normal((40_000, 1))
    problem = Problem(X, y, None, make_loss("squared_error"), 0.0, False)
    solution = solve(problem, Settings(oversampling=1.1), rng)
    assert solution.converged
    assert solution.sketch.n_clipped == 0
    assert gap(problem, solution.W) < 0.05


@pytest.mark.parametrize("name", ["squared_error", "huber"])
@pytest.mark.parametrize("unit", [1e-150, 1e-20, 1.0, 1e20, 1e120])
def test_the_unit_of_the_targets_does_not_matter(mini_batches, rng, name, unit):
    X, noise = rng.standard_normal((4000, 5)), rng.standard_normal((4000, 1))
    y = X.sum(axis=1, keepdims=True) + noise
    solutions = []
    for u in (1.0, unit):
        loss = make_loss(name, epsilon=1.35 * u) if name == "huber" else make_loss(name)
        problem = Problem(X, u * y, None, loss, 0.0, False)
        solutions.append(solve(problem, Settings(), np.random.default_rng(0)))
    assert solutions[1].converged
    assert len(solutions[1].history) == len(solutions[0].history)
    assert_allclose(solutions[1].W / unit, solutions[0].W, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_tolerance_it_ends_at_rounding(mini_batches, rng, name):
    X = rng.standard_normal((4000, 4)) + 100
    problem = Problem(X, targets(name, rng, 4000), None, the_loss(name), 0.0, True)
    solution = solve(problem, Settings(tol=0.0), rng)
    assert solution.converged
    assert len(solution.history) < 40
    assert solution.history[-1]["decrement"] < 1e-12


def test_a_stop_leaves_the_coefficients_where_they_were_seen(rng):
    problem, seen = make("poisson", rng, n=60), []

    def watch(W, record):
        seen.append(W.copy())
        return record["decrement"] < 1e-9  # about to converge

    solution = solve(problem, Settings(on_iteration=watch), rng)
    assert_array_equal(solution.W, seen[-1])


def test_a_start_worse_than_the_null_model_is_dropped(mini_batches, rng):
    X = rng.standard_normal((4000, 4))
    y = rng.poisson(np.exp(X.sum(axis=1, keepdims=True) / 4)).astype(float)
    problem = Problem(X, y, None, make_loss("poisson"), 0.0, True)
    solution = solve(problem, Settings(), rng, 1e3 * rng.standard_normal((5, 1)))
    assert solution.converged
    assert len(solution.history) < 20
