"""partial_fit against fit on the same rows, and against SGDClassifier row by row."""

import time
import warnings

import numpy as np
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from benchmarks import wide
from benchmarks.report import theme
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor

MODELS = {
    "log_loss": PreconditionedSGDClassifier(alpha=0, random_state=0),
    "4 classes": PreconditionedSGDClassifier(alpha=0, random_state=0),
    "poisson": PreconditionedSGDRegressor("poisson", random_state=0),
    "huber": PreconditionedSGDRegressor("huber", random_state=0),
}


def made(task, n, d, seed):
    """Return rows of a task and their targets."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    raw = X @ rng.standard_normal(d) / np.sqrt(d)
    if task == "log_loss":
        return X, (rng.random(n) < expit(2 * raw)).astype(int)
    if task == "4 classes":
        return X, (X @ rng.standard_normal((d, 4)) + rng.gumbel(size=(n, 4))).argmax(axis=1)
    if task == "poisson":
        return X, rng.poisson(np.exp(raw)).astype(float)
    return X, raw + rng.standard_t(2, n)


def excess(model, best, X, y):
    """Return the summed loss above that of a fit, in statistical errors of the coefficients."""
    if hasattr(best, "classes_"):
        losses = [m.predict_log_proba(X)[np.arange(len(y)), y].sum() for m in (best, model)]
        return (losses[0] - losses[1]) / ((X.shape[1] + 1) * (len(best.classes_) - 1) / 2)
    loss = best._make_loss()
    raws = [X @ m.coef_ + m.intercept_ for m in (model, best)]
    dispersion = np.sum(loss.gradient(y, raws[1]) ** 2) / np.sum(loss.curvature(y, raws[1]))
    gap = np.sum(loss.value(y, raws[0]) - loss.value(y, raws[1]))
    return gap / (dispersion * (X.shape[1] + 1) / 2)


def streamed(model, X, y, chunk, classes):
    """Return a clone that has seen the rows in chunks."""
    model, named = clone(model), {} if classes is None else {"classes": classes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # sorted by y, or separable at first
        for start in range(0, len(y), chunk):
            piece = slice(start, start + chunk)
            model.partial_fit(X[piece], y[piece], **named)
    return model


@theme(
    "Streams: excess over fit, in statistical errors",
    target="one; thirty where rows are sorted by the target",
    short={"n": 10_000, "d": 8, "chunks": (50,), "n_seeds": 1},
    long={"n": 40_000, "d": 8, "chunks": (50, 1000), "n_seeds": 5},
)
def law(n, d, chunks, n_seeds):
    """Rows as they come, sorted by a feature, sorted by the target; the worst seed is shown."""
    rows = []
    for task, model in MODELS.items():
        for chunk in chunks:
            worst = {"random": 0.0, "by a feature": 0.0, "by the target": 0.0}
            for seed in range(n_seeds):
                X, y = made(task, n, d, seed)
                best = clone(model).set_params(tol=1e-6).fit(X, y)
                orders = np.arange(n), np.argsort(X[:, 0]), np.argsort(y, kind="stable")
                for name, order in zip(worst, orders, strict=True):
                    classes = getattr(best, "classes_", None)
                    found = streamed(model, X[order], y[order], chunk, classes)
                    worst[name] = max(worst[name], float(excess(found, best, X, y)))
            rows.append({"loss": task, "chunk": chunk, **worst})
    return rows


@theme(
    "Streams: CPU time of a row, over that of SGDClassifier",
    target="20 for single rows",
    short={"d": 100, "n_rows": {1: 100, 50: 1000}},
    long={"d": 300, "n_rows": {1: 1000, 50: 8000}},
)
def rows_one_by_one(d, n_rows):
    """Logistic regression; keys are rows a call."""
    rng = np.random.default_rng(0)
    rows = []
    for chunk, n in n_rows.items():
        X = rng.standard_normal((n, d))
        y = (X[:, 0] + rng.standard_normal(n) > 0).astype(int)
        spent = []
        for model in (PreconditionedSGDClassifier(alpha=1e-3), SGDClassifier(loss="log_loss")):
            start = time.process_time()
            streamed(model, X, y, chunk, np.arange(2))
            spent.append(time.process_time() - start)
        rows.append({"rows a call": chunk, "features": d, "time / SGD": spent[0] / spent[1]})
    return rows


@theme(
    "Streams: excess of the diagonal model over fit, in statistical errors",
    target="one, where features are independent",
    short={"n": 10_000, "dims": (30,), "correlations": (0.0, 0.9)},
    long={"n": 20_000, "dims": (30, 300), "correlations": (0.0, 0.5, 0.9)},
)
def by_diagonal(n, dims, correlations):
    """Logistic regression on features with one common factor; columns are rows a call."""
    rows = []
    for correlation in correlations:
        for d in dims:
            rng = np.random.default_rng([n, d])
            factor = rng.standard_normal((n, 1))
            X = np.sqrt(1 - correlation) * rng.standard_normal((n, d))
            X += np.sqrt(correlation) * factor
            y = (rng.random(n) < expit(1.5 * X @ rng.standard_normal(d) / np.sqrt(d))).astype(int)
            best = PreconditionedSGDClassifier(tol=1e-4, random_state=0).fit(X, y)
            model = PreconditionedSGDClassifier(preconditioner="diagonal")
            found = {
                f"{chunk} a call": float(excess(streamed(model, X, y, chunk, [0, 1]), best, X, y))
                for chunk in (10, 1000, n)
            }
            rows.append({"correlation": correlation, "features": d, **found})
    return rows


@theme(
    "Streams of wide data: held-out log loss and CPU time of one pass",
    target="no worse than SGDClassifier's best alpha, near that of fit",
    short={"problems": {"text": (5_000, 20_000), "categories": (5_000, 10_000)}, "chunk": 500},
    long={"problems": {"text": (60_000, 2**18), "categories": (100_000, 200_000)}, "chunk": 1000},
)
def hashed(problems, chunk):
    """Raw penalties; a fifth of the rows is held out."""
    rows = []
    ours = PreconditionedSGDClassifier(penalty_units="raw", random_state=0)
    models = {"fit": ours, "partial_fit": ours} | {
        f"SGD, alpha={alpha:g}": SGDClassifier(loss="log_loss", alpha=alpha, random_state=0)
        for alpha in (1e-4, 1e-5, 1e-6)
    }
    for name, size in problems.items():
        X, y = getattr(wide, name)(*size)
        n = len(y) * 4 // 5
        for label, model in models.items():
            start = time.process_time()
            if label == "fit":
                found = clone(model).fit(X[:n], y[:n])
            else:
                found = streamed(model, X[:n], y[:n], chunk, [0, 1])
            loss = log_loss(y[n:], found.predict_proba(X[n:]))
            spent = time.process_time() - start
            row = {"data": name, "features": size[1], "model": label}
            rows.append(row | {"log loss": loss, "seconds": spent})
    return rows
