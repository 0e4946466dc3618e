"""The block minimiser: stationary points of the sum as it is written down."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import sparse
from scipy.optimize import approx_fprime
from sklearn.base import clone

from sklearn_gradhess import PreconditionedSGDClassifier
from sklearn_gradhess._block_newton import Objective, Quadratic, _direction, minimise, whitened
from sklearn_gradhess._deviances import LogisticLoss, PoissonLoss
from sklearn_gradhess._kept_rows import KeptRows
from sklearn_gradhess._multinomial import MultinomialLoss
from sklearn_gradhess._scaled_losses import HuberLoss

LOSSES = {
    "log_loss": LogisticLoss(),
    "multinomial": MultinomialLoss(),
    "poisson": PoissonLoss(),
    "huber": HuberLoss(0.7),
    "sharp huber": HuberLoss(0.01),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def targets(name, raw, rng):
    if name == "multinomial":
        return np.eye(3)[(raw * [1, 0, -1] + rng.gumbel(size=(len(raw), 3))).argmax(axis=1)]
    if name == "log_loss":
        return (raw + rng.logistic(size=raw.shape) > 0).astype(float)
    return (
        rng.poisson(np.exp(raw)).astype(float)
        if name == "poisson"
        else raw + rng.normal(size=raw.shape)
    )


def objective(name, n=150, d=4, *, ridge=0.0, model=False, intercept=True, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + 2
    Y = targets(name, 0.5 * (X - 2) @ rng.standard_normal((d, 1)), rng)
    p, t = d + intercept, Y.shape[1]
    share = rng.uniform(0.3, 1, n)
    location = np.full(d, 2.0) * intercept
    quadratics = ()
    linear = np.zeros((p, t))
    if model:
        linear = rng.standard_normal((p, t))
        quadratics = tuple(
            Quadratic(np.triu(rng.standard_normal((p, p))) + 3 * np.eye(p), rng.standard_normal(p))
            for _ in range(t)
        )
        if name == "multinomial":  # all classes alike, but for the sum of the targets
            linear -= linear.mean(axis=1, keepdims=True)
            target = np.array([q.target for q in quadratics])
            target -= target.mean(axis=0)
            quadratics = tuple(Quadratic(quadratics[0].root, q) for q in target)
    rows = KeptRows(X, Y, rng.uniform(0.5, 2, n), share)
    return Objective(rows, LOSSES[name], intercept, location, np.full(d, ridge), linear, quadratics)


def naive(o, W):
    """The objective, row by row."""
    total = 0.0
    for x, y, w, s in zip(o.rows.X, o.rows.Y, o.rows.weight, o.rows.share, strict=True):
        z = np.append([1.0] if o.has_intercept else [], x - o.location)
        total += w / s * np.sum(o.loss.value(y[None], (z @ W)[None]))
    total += 0.5 * np.sum(o.ridge[:, None] * W[o.has_intercept :] ** 2) + np.sum(o.linear * W)
    for w, q in zip(W.T, o.quadratics, strict=False):
        total += 0.5 * np.sum((q.root @ w - q.target) ** 2)
    return total


@each_loss
@pytest.mark.parametrize("model", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_value_gradient_and_product_are_those_of_the_sum(name, model, intercept, rng):
    o = objective(name, n=20, ridge=0.3, model=model, intercept=intercept)
    W = 0.3 * rng.standard_normal(o.shape)
    point = o.at(W)
    assert_allclose(point.value, naive(o, W))
    assert_allclose(o.value(W, o.predict(W)), naive(o, W))
    numeric = approx_fprime(W.ravel(), lambda w: naive(o, w.reshape(W.shape)), 1e-6)
    assert_allclose(point.gradient.ravel(), numeric, rtol=1e-4, atol=1e-3)
    U = rng.standard_normal(W.shape)
    product, _ = o.product(point, U, 0.0)
    ends = [o.at(W + h * U).gradient for h in (1e-6, -1e-6)]
    assert_allclose(product, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)


@each_loss
@pytest.mark.parametrize("model", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_the_gradient_vanishes_at_the_minimum(name, model, ridge):
    o = objective(name, model=model, ridge=ridge)
    found = minimise(o)
    point = o.at(found.W)
    assert found.converged
    assert not found.separable
    scale = np.sqrt(point.energy)
    assert np.abs(point.gradient).max() < 1e-3 * scale
    assert_allclose(found.slope, point.slope)
    worse = [
        naive(o, found.W + h)
        for h in 0.05 * np.random.default_rng(1).standard_normal((20, *found.W.shape))
    ]
    assert min(worse) > naive(o, found.W)


@each_loss
def test_another_start_ends_at_the_same_minimum(name, rng):
    o = objective(name, ridge=0.5)
    found = minimise(o)
    far = replace(found, W=found.W + 3 * rng.standard_normal(found.W.shape))
    again = minimise(o, far)
    assert o.at(again.W).value <= o.at(found.W).value * (1 + 1e-9) + 1e-9


@each_loss
@pytest.mark.parametrize("ridge", [1.0, 1e-3])
def test_fewer_rows_than_features_are_solved_in_their_span(name, ridge):
    o = objective(name, n=12, d=30, ridge=ridge)
    found = minimise(o)
    assert np.abs(o.at(found.W).gradient).max() < 1e-4 * max(1.0, np.sqrt(o.at(found.W).energy))
    again = minimise(o, found)
    assert_allclose(again.W, found.W, atol=1e-4)


@each_loss
def test_in_their_span_too_a_descent_goes_on_where_it_was(name, monkeypatch):
    o, passes, at = objective(name, n=12, d=30, ridge=1.0), [], Objective.at
    monkeypatch.setattr(Objective, "at", lambda self, W: passes.append(W) or at(self, W))
    found = minimise(o)
    cold = len(passes)
    minimise(o, found)
    assert len(passes) - cold < cold


@each_loss
def test_the_statistical_error_is_coefficients_times_the_dispersion_of_pearson(name, rng):
    o = objective(name)
    point = o.at(0.1 * rng.standard_normal(o.shape))
    p, t = o.shape
    free = p * (t - (name == "multinomial"))
    dispersion = 1.0
    if name not in ("log_loss", "multinomial"):
        slope = o.loss.gradient(o.rows.Y, point.raw)
        dispersion = (o.rows.total @ slope**2) / (o.rows.total @ point.stiffness)
    assert o.floor(point, point.stiffness) == pytest.approx(dispersion * free / o.count)
    # rows without targets tell of no unit
    empty = replace(o, rows=replace(o.rows, Y=np.zeros_like(o.rows.Y)))
    null = empty.at(np.zeros(o.shape))
    assert empty.floor(null, null.stiffness) == pytest.approx(free / o.count)


def test_products_with_the_hessian_are_counted(monkeypatch):
    o, calls, product = objective("log_loss"), [], Objective.product
    monkeypatch.setattr(Objective, "product", lambda *asked: calls.append(1) or product(*asked))
    point = o.at(np.zeros(o.shape))
    *_, n_products = _direction(o, point, [np.eye(o.shape[0])], 0.0)
    assert n_products == len(calls) > 1


def test_the_span_is_that_of_features_per_standard_deviation():
    o = objective("huber", n=6, d=20)
    unit = np.geomspace(1e-3, 1e3, 20)
    scaled = replace(o, rows=replace(o.rows, X=(o.rows.X - 2) * unit), location=np.zeros(20))
    assert_allclose(minimise(scaled).W[1:] * unit[:, None], minimise(o).W[1:], atol=1e-6)


@pytest.mark.parametrize("name", ["log_loss", "multinomial"])
def test_separable_classes_end_where_every_row_is_on_its_side(name):
    o = objective(name)
    Y = o.rows.Y
    ahead = np.eye(3)[(o.rows.X[:, 0] > 2) * 2] if Y.shape[1] == 3 else o.rows.X[:, :1] > 2
    found = minimise(replace(o, rows=replace(o.rows, Y=np.asarray(ahead, dtype=float))))
    assert found.separable
    assert np.isfinite(found.W).all()


def test_rows_without_a_single_count_end_at_a_finite_place():
    o = objective("poisson")
    found = minimise(replace(o, rows=replace(o.rows, Y=np.zeros_like(o.rows.Y))))
    assert found.converged
    assert np.abs(found.W).max() < 1000


def test_sparse_rows_are_the_dense_ones():
    o = objective("log_loss", intercept=True)
    o = replace(o, location=np.zeros(4))
    other = replace(o, rows=replace(o.rows, X=sparse.csr_array(o.rows.X)))
    assert_allclose(minimise(o).W, minimise(other).W, rtol=1e-8)


@each_loss
def test_no_unit_of_the_weights_matters(name):
    o = objective(name)
    unit = 1e-200
    other = replace(o, rows=replace(o.rows, weight=unit * o.rows.weight), count=1 / unit)
    assert_allclose(minimise(other).W, minimise(o).W, rtol=1e-4, atol=1e-4)


def test_a_constant_feature_less_its_mean_is_no_direction():
    X = np.full((50, 2), 0.1)
    X[:, 1] = np.arange(50)
    root = np.linalg.qr(np.column_stack([np.ones(50), X - X.mean(axis=0) + 1e-17]), mode="r")
    root *= np.sign(np.diag(root))[:, None]
    T, n_clipped = whitened(root, X.mean(axis=0), np.zeros(2), True)
    assert n_clipped == 1
    assert np.isfinite(T).all()


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_a_feature_that_is_constant_so_far_does_no_harm_to_few_rows(kind):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((5, 8)), np.array([0, 1, 0, 0, 1])
    X[:, 3], X[:, 4] = 2.0, 0.0  # neither varies: without an intercept one of them tells
    model = PreconditionedSGDClassifier(fit_intercept=False, preconditioner="exact")
    expected = clone(model).fit(X, y).decision_function(X)
    got = model.partial_fit(kind(X), y, classes=[0, 1]).decision_function(X)
    assert_allclose(got, expected, atol=1e-3)
