"""Our models next to scikit-learn's on the same data: times, passes, and distance to the optimum.

A distance in floors is in units of the statistical error, s^2 d/N in mean squared error (d/(2N) in
log loss): what the data cannot tell apart. Passes over X are those of ours with the preconditioner
included, and the iterations or epochs of the peers that count them.
"""

import importlib.util
import warnings
from functools import partial

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDRegressor
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.data import standardised
from benchmarks.measure import best_times
from benchmarks.report import LeftOut

ETA0 = (1e-4, 1e-3, 1e-2, 1e-1)  # the grid of the tuned SGDRegressor; its default is 1e-2


class LeastSquares:
    """Distance of a model to least squares, which an orthogonal projection finds."""

    def __init__(self, X, y):
        n, d = X.shape
        columns = np.column_stack([np.ones(n), X / X.std(axis=0)])
        basis = np.linalg.qr(columns)[0]
        self.X, self.best = X, basis @ (basis.T @ y)
        self.floor = np.sum((y - self.best) ** 2) / n * d
        self.total = np.sum((y - y.mean()) ** 2)

    def __call__(self, model):
        """Return the excess in floors and the gap in R2."""
        excess = np.sum((model.predict(self.X) - self.best) ** 2)
        return {"excess, floors": excess / self.floor, "R2 gap": excess / self.total}


class LogisticOptimum:
    """Distance of a classifier to the maximum of the likelihood."""

    def __init__(self, X, y):
        n, d = X.shape
        scaled = standardised(X)
        best = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=200)
        best.fit(scaled, y)
        self.X, self.y, self.floor = X, y, d / (2 * n)
        self.best = log_loss(y, best.predict_proba(scaled))

    def __call__(self, model):
        """Return the gap in log loss, in floors."""
        gap = log_loss(self.y, model.predict_proba(self.X)) - self.best
        return {"gap, floors": gap / self.floor}


def ridge(solver, max_iter=None):
    """Return ridge regression with next to no penalty, so that its optimum is least squares."""
    return Ridge(alpha=1e-6, solver=solver, max_iter=max_iter, random_state=0)


def regressors(solvers, max_iter):
    """Return LinearRegression, Ridge with these solvers, and SGDRegressor as it comes.

    The cap is for what else goes on for minutes: sag, saga and SGDRegressor.
    """
    capped = {"sag": max_iter, "saga": max_iter}
    return {
        "LinearRegression": LinearRegression(),
        **{f"Ridge, {solver}": ridge(solver, capped.get(solver)) for solver in solvers},
        "SGDRegressor": SGDRegressor(max_iter=max_iter, random_state=0),
    }


def classifiers(solvers, max_iter):
    """Return LogisticRegression without a penalty; saga, which else takes minutes, has a cap.

    liblinear has no way to do without, so that it gets next to none.
    """
    return {
        f"LogisticRegression, {solver}": LogisticRegression(
            C=1e6 if solver == "liblinear" else np.inf,
            solver=solver,
            max_iter=max_iter if solver == "saga" else 100,
            random_state=0,
        )
        for solver in solvers
    }


def glum_classifier():
    """Return glum's logistic regression without a penalty, by name; nothing where glum is not."""
    if importlib.util.find_spec("glum") is None:
        return {}
    from glum import GeneralizedLinearRegressor

    class Binomial(GeneralizedLinearRegressor):
        """What it predicts are probabilities."""

        def predict_proba(self, X):
            chance = self.predict(X)
            return np.column_stack([1 - chance, chance])

    return {"glum": Binomial(family="binomial", alpha=0)}


class VowpalWabbit:
    """Vowpal Wabbit's least squares: adaptive, normalised updates, row by row."""

    def __init__(self, learning_rate=0.5, passes=20):
        self.learning_rate = learning_rate
        self.passes = passes

    def fit(self, X, y):
        """Visit the rows in their order, as often as wanted, and keep the predictions."""
        try:
            from vowpalwabbit import Workspace
        except ImportError as error:
            raise LeftOut("vowpalwabbit not installed") from error
        workspace = Workspace(quiet=True, learning_rate=self.learning_rate)
        rows = [" ".join(f"{j}:{x!r}" for j, x in enumerate(row)) for row in X.tolist()]
        labelled = [workspace.parse(f"{t!r} | {r}") for t, r in zip(y.tolist(), rows, strict=True)]
        for _ in range(self.passes):
            for row in labelled:
                workspace.learn(row)
        self.fitted_ = np.array([workspace.predict(f"| {row}") for row in rows])
        for row in labelled:
            workspace.finish_example(row)
        workspace.finish()
        return self

    def predict(self, X):
        """Predict the rows that it was fitted to, and no others."""
        if len(X) != len(self.fitted_):
            raise ValueError(f"{len(self.fitted_)} rows were fitted, {len(X)} are asked for")
        return self.fitted_


def fit(model, X, y):
    """Fit a model; only peers may warn, of their cap or of the condition of X: see `note`."""
    if type(model).__module__.startswith("sklearn_gradhess"):
        return model.fit(X, y)
    with warnings.catch_warnings():
        # that peers stop at their cap or meet a singular matrix shows in the table
        for expected in (ConvergenceWarning, LinAlgWarning):
            warnings.simplefilter("ignore", expected)
        return model.fit(X, y)


def tune_sgd(X, y, assess, max_iter):
    """Return SGDRegressor on scaled features with the best first step of a grid, and the seconds.

    The best is the one nearest to the optimum on the data themselves: more than a user can know.
    """
    models = {
        eta0: make_pipeline(
            StandardScaler(),
            SGDRegressor(penalty=None, eta0=eta0, max_iter=max_iter, random_state=0),
        )
        for eta0 in ETA0
    }
    seconds = best_times({eta0: partial(fit, m, X, y) for eta0, m in models.items()}, repeat=1)
    best = min(models, key=lambda eta0: assess(models[eta0])["excess, floors"])
    return f"SGDRegressor, scaled, eta0={best:g}", models[best], sum(seconds.values())


def passes(model):
    """Return the passes, iterations or epochs of a fitted model; None if it does not tell."""
    count = getattr(model, "n_passes_", getattr(_last(model), "n_iter_", None))
    return None if count is None else float(np.max(count))


def note(model):
    """Say whether a fitted model stopped before it converged."""
    model = _last(model)
    if not getattr(model, "converged_", True):
        return "not converged"
    cap = getattr(model, "max_iter", None)
    stopped = cap is not None and passes(model) is not None and passes(model) >= cap
    return f"stopped at max_iter={cap}" if stopped else None


def _last(model):
    return model[-1] if hasattr(model, "steps") else model


def compare(models, X, y, assess, *, repeat, budget, beforehand=()):
    """Fit models and return a row for each: time over that of the first model, passes, distances.

    A model that needs more than `budget` seconds is fitted once. `beforehand` are the
    seconds that went into finding a model's settings, by name.
    """
    jobs = {name: partial(fit, model, X, y) for name, model in models.items()}
    seconds = best_times(jobs, repeat=repeat, budget=budget)
    ours = next(iter(seconds.values()))
    rows = []
    for name, model in models.items():
        row = {"model": name, "time / ours": seconds[name] / ours, "passes": passes(model)}
        notes = [note(model)]
        if name in beforehand:
            notes.append(f"tuning took {beforehand[name] / ours:.0f} times ours")
        rows.append(row | assess(model) | {"note": "; ".join(filter(None, notes))})
    return rows


def over_seeds(model, X, y, assess, n_seeds):
    """Return a row: how many seeds converged, the most passes, the largest distances."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted
        fitted = [clone(model).set_params(random_state=s).fit(X, y) for s in range(n_seeds)]
    distances = [assess(m) for m in fitted]
    return {
        "seeds": n_seeds,
        "converged": sum(m.converged_ for m in fitted),
        "most passes": max(m.n_passes_ for m in fitted),
        **{f"worst {key}": max(d[key] for d in distances) for key in distances[0]},
    }
