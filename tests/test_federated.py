"""Holders who send gradients only, against the same estimators on the pooled rows."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Listener

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess.federated import GradientHolder, RemoteHolder, fit_holders, serve

LOSSES = ["squared_error", "log_loss", "poisson", "huber"]
N, D = 9000, 8


def data(loss, condition, seed=0):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((D, D)))[0]
    X = rng.standard_normal((N, D)) @ (Q * np.logspace(0, np.log10(condition) / 2, D)) @ Q.T + 3
    eta = (X - X.mean(axis=0)) @ rng.standard_normal(D)
    eta /= eta.std()
    if loss == "log_loss":
        return X, (rng.random(N) < 1 / (1 + np.exp(-eta))).astype(float)
    if loss == "poisson":
        return X, rng.poisson(np.exp(0.5 * eta)).astype(float)
    return X, 5 + eta + rng.standard_normal(N)


def holders(X, y, loss, parts=3, **params):
    return [
        GradientHolder(X[i::parts], y[i::parts], loss=loss, random_state=i, **params)
        for i in range(parts)
    ]


def gap(fit, X, y, loss, **params):
    """Excess over the fit of the pooled rows, in statistical errors."""
    kind = PreconditionedSGDClassifier if loss == "log_loss" else PreconditionedSGDRegressor
    plain = {"alpha": 0.0, "penalty_units": "raw", "tol": 1e-6}
    pooled = kind(loss, **plain | params).fit(X, y)
    at = X @ np.ravel(pooled.coef_) + np.ravel(pooled.intercept_)[0]
    v = make_loss(loss).curvature(y, at)
    slope = make_loss(loss).gradient(y, at)
    dispersion = 1.0 if loss == "log_loss" else np.mean(slope**2) / v.mean()
    floor = dispersion * (D + 1) / len(y)
    return np.mean(v * (X @ fit.coef + fit.intercept - at) ** 2) / floor, floor


@pytest.mark.parametrize("condition", [1, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("loss", LOSSES)
def test_ten_rounds_are_enough_at_any_condition(loss, condition):
    X, y = data(loss, condition)
    fit = fit_holders(holders(X, y, loss), D, loss=loss)
    excess, floor = gap(fit, X, y, loss)
    assert fit.converged
    assert fit.n_rounds <= 10
    assert excess < 0.05
    # the scatter of 40 batches a coefficient tells the dispersion to a few percent
    assert_allclose(fit.history[-1]["floor"], floor, rtol=0.3)


@pytest.mark.parametrize("law", ["normal", "lognormal"])
@pytest.mark.parametrize("noise", [3.0, 0.3, 0.03, 0.01])
def test_the_error_is_judged_by_the_noise_of_the_end(noise, law):
    """At the start most of the residuals is signal, and a share of it is no goal."""
    n = 3000
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((n, 6))
        X = np.exp(X) if law == "lognormal" else X
        y = X @ np.ones(6) + noise * rng.standard_normal(n)
        fit = fit_holders(holders(X, y, "squared_error"), 6)
        A = np.column_stack([np.ones(n), X])
        best, square = np.linalg.lstsq(A, y)[:2]
        excess = np.sum((A @ (np.append(fit.intercept, fit.coef) - best)) ** 2)
        assert fit.converged
        assert excess < 0.05 * 7 * square[0] / n
        assert fit.n_rounds <= (10 if law == "normal" else 12)


def test_targets_without_noise_are_met_to_rounding():
    X, _ = data("squared_error", 1)
    coef = np.arange(1.0, D + 1)
    fit = fit_holders(holders(X, X @ coef + 2, "squared_error"), D)
    assert fit.converged
    assert_allclose(fit.coef, coef, rtol=1e-9)
    assert_allclose(fit.intercept, 2, rtol=1e-9)


@pytest.mark.parametrize("condition", [1, 1e4])
def test_a_rest_that_is_foreseen_needs_no_round_to_confirm_it(condition):
    """What a step leaves falls with the square of its decrement, and is told before the step."""
    X, y = data("poisson", condition, seed=2)
    assert fit_holders(holders(X, y, "poisson"), D, loss="poisson").n_rounds <= 5


@pytest.mark.parametrize("loss", ["squared_error", "log_loss"])
def test_few_batches_take_more_rounds_and_fewer_bytes(loss):
    X, y = data(loss, 1e4)
    many, few = (fit_holders(holders(X, y, loss), D, loss=loss, oversampling=c) for c in (40, 4))
    assert gap(few, X, y, loss)[0] < 0.05
    assert few.n_rounds >= many.n_rounds
    assert few.n_bytes < many.n_bytes


@pytest.mark.parametrize("params", [{"alpha": 0.1}, {"fit_intercept": False}], ids=str)
@pytest.mark.parametrize("loss", ["squared_error", "log_loss"])
def test_penalty_and_no_intercept(loss, params):
    X, y = data(loss, 10)
    if loss == "squared_error" and "fit_intercept" in params:
        y = y - 5
    own = {k: v for k, v in params.items() if k == "fit_intercept"}
    fit = fit_holders(holders(X, y, loss, **own), D, loss=loss, **params)
    excess, _ = gap(fit, X, y, loss, **params)
    assert fit.converged
    assert excess < 0.05


def test_what_crosses_does_not_depend_on_how_rows_are_stored():
    X, y = data("log_loss", 1)
    dense, stored = (
        GradientHolder(rows, y, loss="log_loss", random_state=0)(np.full(D + 1, 0.1), 100)
        for rows in (X, sparse.csr_array(X))
    )
    for name, value in dense.items():
        assert_allclose(stored[name], value, rtol=1e-9, atol=1e-12)


def test_pairs_are_gradients_at_calibrated_noise():
    """Their halves have the Hessian as second moment, and the mean gradient as mean."""
    X, y = data("poisson", 1)
    W = np.full(D + 1, 0.05)
    answer = GradientHolder(X, y, loss="poisson", random_state=0, min_rows=1)(W, N)
    Z = np.column_stack([np.ones(N), X])
    raw = Z @ W
    assert_allclose(answer["gradient"], Z.T @ (np.exp(raw) - y) / N)
    assert_allclose((answer["plus"] + answer["minus"]).mean(axis=0) / 2, answer["gradient"])
    half = (answer["minus"] - answer["plus"]) / 2  # single rows: exactly
    assert_allclose(half.T @ half / N, Z.T @ (np.exp(raw)[:, None] * Z) / N)


def test_holders_are_any_callables_and_may_be_asked_at_once():
    X, y = data("squared_error", 1e4)
    asked = []

    def holder(coefficients, n_batches, bound):
        asked.append(n_batches)
        return GradientHolder(X, y, random_state=len(asked))(coefficients, n_batches, bound)

    with ThreadPoolExecutor(2) as pool:
        fit = fit_holders(iter([holder]), D, map=pool.map)
    assert gap(fit, X, y, "squared_error")[0] < 0.05
    assert len(asked) == fit.n_rounds
    assert asked[0] > 0
    assert 0 in asked  # conjugate gradients need no pairs


def test_the_server_knows_the_hessian():
    X, y = data("squared_error", 1)
    fit = fit_holders(holders(X, y, "squared_error"), D)
    error = np.linalg.norm(fit.hessian.covariance_ - np.cov(X.T, bias=True), 2)
    rate = D / fit.hessian.n_batches_
    assert error < 4 * (2 * np.sqrt(rate) + rate) * np.linalg.norm(np.cov(X.T), 2)


def test_a_step_that_is_too_long_is_shortened():
    """Counts of a few rows only: the first Newton step from zero goes far beyond."""
    rng = np.random.default_rng(0)
    X = np.exp(1.5 * rng.standard_normal((N, D)))
    y = rng.poisson(np.exp(np.minimum(0.3 * X[:, 0], 5.0))).astype(float)
    fit = fit_holders(holders(X, y, "poisson"), D, loss="poisson", max_iter=60)
    pooled = PreconditionedSGDRegressor("poisson", tol=1e-6).fit(X, y)
    assert fit.converged
    loss = make_loss("poisson")
    value = loss.value(y, X @ fit.coef + fit.intercept).mean()
    assert_allclose(value, pooled.history_[-1]["loss"], rtol=0.01)


REMOTE = """
import sys
import numpy as np
from multiprocessing.connection import Client
from sklearn_gradhess.federated import GradientHolder, serve

rng = np.random.default_rng(int(sys.argv[1]))
X = rng.standard_normal((3000, 4)) * [1, 10, 100, 1000] + 5
y = X @ [1, 0.1, 0.01, 0.001] + rng.standard_normal(3000)
with Client(("127.0.0.1", int(sys.argv[2])), authkey=b"test") as connection:
    serve(GradientHolder(X, y, random_state=0), connection)
"""


def rows_of(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((3000, 4)) * [1, 10, 100, 1000] + 5
    return X, X @ [1, 0.1, 0.01, 0.001] + rng.standard_normal(3000)


def test_two_processes_that_send_arrays_only():
    with Listener(("127.0.0.1", 0), authkey=b"test") as listener:
        port = str(listener.address[1])
        command = [sys.executable, "-c", REMOTE]
        processes = [subprocess.Popen([*command, str(seed), port]) for seed in (1, 2)]
        connections = [listener.accept() for _ in processes]
        fit = fit_holders([RemoteHolder(c) for c in connections], 4)
        for connection in connections:
            connection.close()
        assert [process.wait(timeout=30) for process in processes] == [0, 0]
    local = [GradientHolder(*rows_of(seed), random_state=0) for seed in (1, 2)]
    here = fit_holders(local, 4)
    X, y = (np.concatenate(both) for both in zip(rows_of(1), rows_of(2), strict=True))
    pooled = PreconditionedSGDRegressor().fit(X, y)
    assert fit.converged
    assert_allclose(fit.coef, here.coef, rtol=1e-3)  # whoever connected first is asked first
    error = np.mean((X @ (fit.coef - pooled.coef_) + fit.intercept - pooled.intercept_) ** 2)
    assert error < 0.05 * pooled.history_[-1]["floor"]


def test_a_refusal_comes_back_and_the_holder_goes_on():
    here, there = Pipe()
    X, y = rows_of(1)
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(serve, GradientHolder(X, y, random_state=0), there)
        with pytest.raises(ValueError, match=r"other end refuses: .*but X has 4 features"):
            fit_holders([RemoteHolder(here)], 6)
        assert fit_holders([RemoteHolder(here)], 4).converged
        here.close()
        assert answered.result(timeout=30) > 2


def test_a_holder_that_fails_closes_the_connection():
    def broken(*question):
        raise RuntimeError("the disk is gone")

    here, there = Pipe()
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(serve, broken, there)
        with pytest.raises(ConnectionError, match="closed the connection without an answer"):
            fit_holders([RemoteHolder(here)], 4)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            answered.result(timeout=30)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": -1.0}, "alpha == -1.0, must be >= 0"),
        ({"tol": -1.0}, "tol == -1.0, must be >= 0"),
        ({"oversampling": 0.5}, "oversampling == 0.5, must be >= 1"),
        ({"max_iter": 0}, "max_iter == 0, must be >= 1"),
        ({"n_features": 0}, "n_features == 0, must be >= 1"),
    ],
)
def test_options_out_of_range_are_refused(params, message):
    holder = GradientHolder(*rows_of(1), random_state=0)
    with pytest.raises(ValueError, match=message):
        fit_holders([holder], **{"n_features": 4} | params)


def test_no_pickle_is_unpacked():
    class Wire:
        def __init__(self):
            self.sent = []

        def send_bytes(self, data):
            self.sent.append(data)

        def recv_bytes(self):
            import io

            buffer = io.BytesIO()
            np.savez(buffer, gradient=np.array([object()]), allow_pickle=True)
            return buffer.getvalue()

    with pytest.raises(ValueError, match="allow_pickle=False"):
        RemoteHolder(Wire())(np.zeros(2))


def test_refusals():
    X, y = data("squared_error", 1)
    with pytest.raises(ValueError, match="no holder of rows"):
        fit_holders([], D)
    right, wrong = GradientHolder(X[:, 1:], y), GradientHolder(X, y)
    with pytest.raises(ValueError, match=r"Holder 1 sent a gradient of shape \(9,\), where 8"):
        fit_holders([right, lambda W, *more: wrong(np.zeros(9), *more)], D - 1)
    with pytest.raises(ValueError, match=r"coefficients has the shape \(8,\), but X has 8 feat"):
        fit_holders([GradientHolder(X, y)], D - 1)
    with pytest.raises(ValueError, match="must be finite, and have one target a row"):
        GradientHolder(X, y[:-1])
    with pytest.raises(ValueError, match="must be finite"):
        GradientHolder(np.where(X > 6, np.nan, X), y)
    with pytest.raises(ValueError, match="PoissonLoss needs y >= 0"):
        GradientHolder(X, -np.abs(y), loss="poisson")
    with pytest.raises(ValueError, match="Unknown loss"):
        fit_holders([GradientHolder(X, y)], D, loss="hinge")


def test_the_same_seed_sends_the_same_gradients():
    X, y = data("huber", 1)
    first, second = (GradientHolder(X, y, loss="huber", random_state=5) for _ in range(2))
    for name, value in first(np.zeros(D + 1), 50).items():
        assert_array_equal(second(np.zeros(D + 1), 0).get(name, value), value)


@pytest.mark.parametrize("kind", ["int", "uint8", "bool", "list", "frame", "csr", "csc"])
def test_features_of_any_kind_are_numbers(rng, kind):
    X = rng.integers(0, 2 if kind == "bool" else 10, (2000, 2)).astype(float)
    y = X @ [1.0, 2.0] + rng.standard_normal(2000)
    if kind in ("csr", "csc"):
        other = getattr(sparse, f"{kind}_array")(X.astype(int))
    elif kind == "frame":
        other = pytest.importorskip("pandas").DataFrame(X.astype(int), columns=["a", "b"])
    else:
        other = X.tolist() if kind == "list" else X.astype(kind)
    expected = fit_holders([GradientHolder(X, y, random_state=0)], 2)
    found = fit_holders([GradientHolder(other, y, random_state=0)], 2)
    assert found.converged
    assert_allclose(found.coef, expected.coef, rtol=1e-6)


@pytest.mark.parametrize("loss", ["poisson", "log_loss"])
def test_gradients_of_another_loss_are_not_taken_for_those_of_least_squares(rng, loss):
    X = rng.standard_normal((6000, 3))
    rate = np.exp(X @ [0.5, -0.3, 0.2])
    y = rng.poisson(rate).astype(float)
    y = np.minimum(y, 1) if loss == "log_loss" else y
    with pytest.raises(ValueError, match="statistical errors of the fit, where those of least"):
        fit_holders([GradientHolder(X, y, loss=loss, random_state=0)], 3)
