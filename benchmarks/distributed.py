"""Rows in blocks, and rows of others: rounds, bytes, time and distance to the optimum.

The scheduler is the synchronous one, so that the time is what all blocks take together, whoever
computes them. Its peer is what one writes in an hour: the exact Gram matrix of every block, summed,
and solved at the client; reweighted until it gains next to nothing.
"""

from functools import partial

import numpy as np

from benchmarks.data import classification, regression
from benchmarks.measure import best_times
from benchmarks.peers import LeastSquares, LogisticOptimum
from benchmarks.report import LeftOut, theme
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor
from sklearn_gradhess.federated import GradientHolder, fit_holders


class Gram:
    """Least squares, or logistic regression by reweighting, from Gram matrices of blocks."""

    def __init__(self, *, logistic):
        self.logistic = logistic

    def fit(self, X, y):
        """Newton steps with the exact Hessian, until they gain next to nothing."""
        from dask import compute, delayed

        blocks = list(zip(X.to_delayed().ravel(), y.to_delayed().ravel(), strict=True))
        p = X.shape[1] + 1
        self.W, self.n_rounds_, gain = np.zeros(p), 0, np.inf
        while gain > 1e-2 * p / X.shape[0] and self.n_rounds_ < (30 if self.logistic else 1):
            part = delayed(self._part, pure=False)
            parts = compute([part(*block, self.W) for block in blocks])[0]
            gram, gradient = (sum(one) for one in zip(*parts, strict=True))
            step = np.linalg.solve(gram, gradient)
            self.W, gain = self.W - step, step @ gradient / X.shape[0]
            self.n_rounds_ += 1
        return self

    def _part(self, X, y, W):
        Z = np.insert(X, 0, 1.0, axis=1)
        raw = Z @ W
        if not self.logistic:
            return Z.T @ Z, Z.T @ (raw - y)
        mean = 1 / (1 + np.exp(-raw))
        return (Z * (mean * (1 - mean))[:, None]).T @ Z, Z.T @ (mean - y)

    def predict(self, X):
        """Linear prediction."""
        return X @ self.W[1:] + self.W[0]

    def predict_proba(self, X):
        """Probabilities of the two classes."""
        mean = 1 / (1 + np.exp(-self.predict(X)))
        return np.column_stack([1 - mean, mean])


def _compare(task, n, p, condition, block, repeat):
    """Return a row for each model: time over ours, rounds, bytes over p^2, distance."""
    try:
        import dask
        import dask.array as da
    except ModuleNotFoundError as error:
        raise LeftOut("dask not installed") from error
    make = classification if task == "logistic" else regression
    X, y = make(n, p, condition)
    Xd, yd = (da.from_array(a, chunks=(block, *a.shape[1:])) for a in (X, y))
    ours = PreconditionedSGDRegressor(alpha=0.0, random_state=0)
    if task == "logistic":
        ours = PreconditionedSGDClassifier(alpha=0.0, random_state=0)
    models = {"ours": (ours, Xd, yd), "exact Gram": (Gram(logistic=task == "logistic"), Xd, yd)}
    models["ours, in memory"] = (type(ours)(alpha=0.0, random_state=0), X, y)
    jobs = {name: partial(_fit, *job) for name, job in models.items()}
    with dask.config.set(scheduler="synchronous"):
        seconds = best_times(jobs, repeat=repeat)
    assess = (LogisticOptimum if task == "logistic" else LeastSquares)(X, y)
    rows = []
    for name, (model, *_) in models.items():
        rounds = getattr(model, "n_rounds_", None)
        sent = getattr(model, "history_", [{}])[-1].get("bytes")
        row = {"task": task, "rows": n, "features": p, "condition": f"{condition:.0e}"}
        row |= {"model": name, "time / ours": seconds[name] / seconds["ours"], "rounds": rounds}
        row["bytes / p^2 a round"] = sent and sent / p**2 / rounds
        rows.append(row | {"floors": next(iter(assess(model).values()))})
    return rows


def _fit(model, X, y):
    try:
        model.fit(X, y)
    except np.linalg.LinAlgError:
        model.W = np.zeros(X.shape[1] + 1)  # as far as it came


@theme(
    "Dask: rounds, bytes and time",
    target="1 round and 1e-9 floors for least squares; 7 rounds and 0.05 floors else",
    short={"shapes": [(20_000, 20)], "conditions": (1.0, 1e12), "block": 4_000, "repeat": 1},
    long={
        "shapes": [(200_000, 50), (400_000, 200), (400_000, 500)],
        "conditions": (1.0, 1e4, 1e8, 1e12),
        "block": 100_000,
        "repeat": 1,
    },
)
def dask_rounds(shapes, conditions, block, repeat):
    """Fit blocks of rows, and the same rows in memory; time is that of all blocks together."""
    return [
        row
        for task in ("least squares", "logistic")
        for n, p in shapes
        for condition in conditions
        for row in _compare(task, n, p, condition, block, repeat)
    ]


@theme(
    "Gradients only: rounds and bytes",
    target="10 rounds and 0.05 floors at every condition number",
    short={"shape": (20_000, 20), "conditions": (1.0, 1e12), "parts": 3},
    long={"shape": (200_000, 50), "conditions": (1.0, 1e4, 1e8, 1e12), "parts": 8},
)
def holders_rounds(shape, conditions, parts):
    """Fit the rows of several holders, 40 or 4 pairs a coefficient."""
    rows = []
    for condition in conditions:
        X, y = regression(*shape, condition)
        assess = LeastSquares(X, y)
        for oversampling in (40, 4):
            holders = [
                GradientHolder(X[i::parts], y[i::parts], random_state=i) for i in range(parts)
            ]
            fit = fit_holders(holders, shape[1], oversampling=oversampling)
            model = Gram(logistic=False)
            model.W = np.append(fit.intercept, fit.coef)
            row = {"condition": f"{condition:.0e}", "pairs a coefficient": oversampling}
            row |= {"rounds": fit.n_rounds, "bytes / p^2": fit.n_bytes / shape[1] ** 2}
            rows.append(row | {"floors": assess(model)["excess, floors"]})
    return rows
