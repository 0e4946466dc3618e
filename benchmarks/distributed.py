"""Rows in blocks, and rows of others: rounds, bytes, CPU and distance to the optimum.

The scheduler is the synchronous one, so that CPU is what all blocks take together, whoever computes
them. Peers are dask-glm's solvers, which dask-ml's linear models call, and what one writes in an
hour: the exact Gram matrix of every block, summed, and solved at the client; reweighted until it
gains next to nothing.
"""

import math
import time
from functools import partial

import numpy as np

from benchmarks import dask_peers
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


def _dask():
    try:
        import dask
        import dask.array
    except ModuleNotFoundError as error:
        raise LeftOut("dask not installed") from error
    return dask


def _compare(task, n, p, condition, block, repeat, peers):
    """Return a row for each model: CPU over ours, rounds, bytes over p^2, distance."""
    dask = _dask()
    da = dask.array
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
        seconds = best_times(jobs, repeat=repeat, clock=time.process_time)
    assess = (LogisticOptimum if task == "logistic" else LeastSquares)(X, y)
    rows = []
    about = {"task": task, "rows": n, "features": p, "condition": f"{condition:.0e}"}
    for name, (model, *_) in models.items():
        rounds = getattr(model, "n_rounds_", None)
        sent = getattr(model, "history_", [{}])[-1].get("bytes")
        row = about | {"model": name, "CPU / ours": seconds[name] / seconds["ours"]}
        row |= {"rounds": rounds, "bytes / p^2 a round": sent and sent / p**2 / rounds}
        rows.append(row | {"floors": next(iter(assess(model).values()))})
    if task == "logistic" and peers:
        for solver, told in dask_peers.compare(X, y, block, **peers).items():
            row = about | {"model": f"dask-glm, {solver}", "note": told.get("note")}
            if "W" in told:
                model = Gram(logistic=True)
                model.W = np.array(told["W"])
                row |= {"CPU / ours": told["seconds"] / seconds["ours"], "rounds": told["rounds"]}
                row["floors"] = next(iter(assess(model).values()))
            rows.append(row)
    return rows


def _fit(model, X, y):
    try:
        model.fit(X, y)
    except np.linalg.LinAlgError:
        model.W = np.zeros(X.shape[1] + 1)  # as far as it came


@theme(
    "Dask: rounds, bytes and CPU",
    target="1 round and 1e-9 floors for least squares; 7 rounds and 0.05 floors else; bytes below "
    "16 p^2 a round; a third of the CPU of reweighted Gram matrices at 200 features",
    short={
        "shapes": [(20_000, 20)],
        "conditions": (1.0, 1e12),
        "block": 4_000,
        "repeat": 1,
        "peers": {},
    },
    long={
        "shapes": [(200_000, 50), (200_000, 200), (100_000, 500)],
        "conditions": (1.0, 1e4, 1e8, 1e12),
        "block": 20_000,
        "repeat": 1,
        "peers": {"solvers": dask_peers.SOLVERS, "seconds": 10},
    },
)
def dask_rounds(shapes, conditions, block, repeat, peers):
    """Fit blocks of rows, and the same rows in memory; CPU is that of all blocks together."""
    return [
        row
        for task in ("least squares", "logistic")
        for n, p in shapes
        for condition in conditions
        for row in _compare(task, n, p, condition, block, repeat, peers)
    ]


@theme(
    "Dask: parts of a fit of 1e9 rows, and what they add up to",
    short={"features": (50,), "block": 10_000, "repeat": 1, "n_tasks": 20},
    long={"features": (50, 200, 500), "block": 100_000, "repeat": 3, "n_tasks": 300},
)
def prediction(features, block, repeat, n_tasks, rows=10**9, workers=100):
    """Measure a logistic round of a block near the optimum, on one core, and a task of dask's.

    Ours takes one batch of a block, as blocks are more than batches then. Rounds that read all rows
    follow from what steps leave: ours begin at a sample of 64 rows a coefficient, and a step leaves
    a fortieth of the decrement, until that is a tenth of the statistical error; reweighting squares
    its distance, from the null model on. Workers are equal, data in memory, and answers merge in a
    tree at no cost.
    """
    from sklearn_gradhess._blocks import Block, Encoding, ask, at
    from sklearn_gradhess._descent import Model
    from sklearn_gradhess._losses import make_loss

    task = _seconds_of_a_task(_dask(), n_tasks)
    out = []
    for p in features:
        X, y = classification(block, p, 1.0)
        W = np.zeros((p + 1, 1))
        encoding = Encoding(make_loss("log_loss"), True, "float64", classes=np.array([False, True]))
        about = {"encoding": encoding, "W": W, "model": Model.CURVATURE, "batch_size": block}
        about |= {"seed": 0, "direction": W + 1e-3}
        whole = [Block(0, X, y, None)]
        jobs = {
            "ours": partial(ask, at, about, whole),
            "Gram": partial(Gram(logistic=True)._part, X, y, W[:, 0]),
        }
        seconds = best_times(jobs, repeat=repeat, clock=time.process_time)
        looks = 1 + math.ceil(math.log(rows / (64 * p) / 0.1) / math.log(40))
        rounds = {"ours": looks, "Gram": 1 + math.ceil(math.log2(math.log(100 * rows / p)))}
        blocks = rows / block
        row = {"features": p, "rows of a block": block, "ms a task": 1e3 * task}
        for name, once in seconds.items():
            row |= {f"{name}, s a block": once, f"{name}, rounds": rounds[name]}
            row[f"{name}, s a fit"] = rounds[name] * blocks / workers * once
        row["ours, s of scheduling"] = rounds["ours"] * blocks * task
        out.append(row)
    return out


def _seconds_of_a_task(dask, n_tasks):
    """Seconds that dask.distributed's scheduler takes for a task which does nothing."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise LeftOut("distributed not installed") from error

    quiet = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "silence_logs": 50}
    with Client(**quiet, dashboard_address=None, set_as_default=False) as client:

        def run():
            tasks = [dask.delayed(int, pure=False)(i) for i in range(n_tasks)]
            client.compute(dask.delayed(sum)(tasks), sync=True)

        return best_times({"all": run}, repeat=2)["all"] / n_tasks


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
