"""Our models against the fastest exact peer at every size, and where fits are small and many.

Distances from the optimum are in floors, the statistical error of the fit: for p coefficients,
the intercept's included, and n rows ``c p / (2n)`` in mean loss, with c the mean squared gradient
over the mean curvature at the optimum. A peer counts as exact below 0.05 of them.
"""

import importlib.util
import warnings
from functools import partial

import numpy as np
from scipy.special import expit
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.linear_model import (
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.measure import best_times
from benchmarks.report import theme
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor

EXACT = 0.05  # floors
EPSILON = 1.35  # of Huber's loss, in units of the scale that is estimated along
SHAPES = {
    "squared_error": (
        *((2_000, 10), (20_000, 20), (100_000, 20), (1_000_000, 10), (20_000, 200)),
        *((50_000, 500), (200_000, 100), (200_000, 500), (5_000, 1_000)),
    )
}
SHAPES |= dict.fromkeys(
    ("log_loss", "poisson", "huber"),
    (
        *((2_000, 10), (20_000, 20), (20_000, 200), (100_000, 20), (1_000_000, 10)),
        *((200_000, 100), (5_000, 1_000)),
    ),
)
ALL_LOSSES = tuple(SHAPES)


def derivatives(loss, y, f, scale=1.0):
    """Return value, gradient and curvature of each row's loss at a raw prediction."""
    if loss == "log_loss":
        mu = expit(f)
        return np.logaddexp(0, f) - y * f, mu - y, mu * (1 - mu)
    if loss == "poisson":
        mu = np.exp(f)
        return mu - y * f, mu - y, mu
    residual = f - y
    if loss == "squared_error":
        return residual**2 / 2, residual, np.ones_like(f)
    clipped = np.clip(residual, -EPSILON * scale, EPSILON * scale)
    inside = (np.abs(residual) <= EPSILON * scale).astype(float)
    return clipped * (residual - clipped / 2), clipped, inside


def scale_of(residual):
    """Return the scale of Huber's loss for these residuals, by its own iteration."""
    square = before = np.mean(residual**2)
    for _ in range(1000):
        before, square = square, np.mean(np.minimum(residual**2, EPSILON**2 * square))
        if abs(square - before) <= 1e-12 * before:
            break
    return np.sqrt(square)


def problem(loss, n, p, condition, seed):
    """Return features, target and what measures a model's distance from the optimum, in floors.

    The features have a rotated, geometrically falling spectrum, of this condition number of the
    covariance, and a signal as strong along the smallest eigenvalue as along the largest. The
    optimum is found by Newton's method before they get it, where it is no matter of rounding.
    """
    rng = np.random.default_rng([n, p, seed])
    X = rng.standard_normal((n, p))
    signal = X @ rng.standard_normal(p) / np.sqrt(p)
    if loss == "log_loss":
        y = (rng.random(n) < expit(signal)).astype(float)
    elif loss == "poisson":
        y = rng.poisson(np.exp(signal / 2)).astype(float)
    else:
        y = signal + rng.standard_normal(n)
    best, floor, scale = optimum(loss, X, y)
    X *= np.geomspace(1.0, condition**-0.5, p)
    rotation = np.linalg.qr(rng.standard_normal((p, p)))[0]
    for rows in np.array_split(np.arange(n), max(n * p // 10**7, 1)):
        X[rows[0] : rows[-1] + 1] = X[rows[0] : rows[-1] + 1] @ rotation

    def excess(model):
        f = X @ np.ravel(model.coef_) + model.intercept_
        with np.errstate(over="ignore"):
            return float((derivatives(loss, y, f, scale)[0].mean() - best) / floor)

    return X, y, excess


def optimum(loss, X, y):
    """Return the least mean loss of features that are well-conditioned, one floor and the scale."""
    n, scale = len(X), 1.0
    coef = np.zeros(X.shape[1] + 1)

    def mean_loss(coef, scale):
        with np.errstate(over="ignore"):
            return derivatives(loss, y, coef[0] + X @ coef[1:], scale)[0].mean()

    for _ in range(100):
        f = coef[0] + X @ coef[1:]
        before, scale = scale, scale_of(f - y) if loss == "huber" else 1.0
        value, gradient, curvature = derivatives(loss, y, f, scale)
        slope = np.concatenate([[gradient.sum()], X.T @ gradient])
        root = np.sqrt(curvature)
        Z = X if loss == "squared_error" else X * root[:, None]
        hessian = np.empty((len(coef), len(coef)))
        hessian[0, 0], hessian[1:, 1:] = curvature.sum(), Z.T @ Z
        hessian[0, 1:] = hessian[1:, 0] = root @ Z
        step = np.linalg.solve(hessian, slope)
        floor = np.mean(gradient**2) / curvature.mean() * len(coef) / (2 * n)
        gain = step @ slope / (2 * n)
        if 0 <= gain < 1e-9 * floor and abs(scale - before) < 1e-9 * scale:
            return value.mean() - gain, floor, scale
        while mean_loss(coef - step, scale) > value.mean():  # Huber's Newton steps may overshoot
            step /= 2
        coef -= step
    raise RuntimeError(f"no optimum of {loss} was found in 100 steps")


def ours(loss, **settings):
    """Return our model of a loss."""
    if loss == "log_loss":
        return PreconditionedSGDClassifier(**{"alpha": 0.0, "random_state": 0, **settings})
    return PreconditionedSGDRegressor(loss=loss, random_state=0, **settings)


def peers(loss):
    """Return the exact models that others have of a loss, without a penalty."""
    models = {
        "squared_error": {
            "LinearRegression": LinearRegression(),
            "Ridge, cholesky": Ridge(alpha=0, solver="cholesky"),
        },
        "log_loss": {
            "LogisticRegression, newton-cholesky": LogisticRegression(
                C=np.inf, solver="newton-cholesky"
            )
        },
        "poisson": {
            "PoissonRegressor, newton-cholesky": PoissonRegressor(alpha=0, solver="newton-cholesky")
        },
        "huber": {"HuberRegressor": HuberRegressor(alpha=0, epsilon=EPSILON, max_iter=1000)},
    }[loss]
    family = {"squared_error": "normal", "log_loss": "binomial", "poisson": "poisson"}.get(loss)
    if family and importlib.util.find_spec("glum"):
        from glum import GeneralizedLinearRegressor

        models["glum"] = GeneralizedLinearRegressor(family=family, alpha=0, solver="irls-ls")
    return models


def quiet(model, X, y):
    """Fit a model whatever it warns of: what is wrong shows in its distance from the optimum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


def cell(loss, n, p, condition=1, threads=1, seed=0, *, repeat=None, budget=3.0):
    """Measure one cell of the grid.

    Parameters
    ----------
    loss : {"squared_error", "log_loss", "poisson", "huber"}
        Loss.
    n, p : int
        Rows and features.
    condition : float, default=1
        Condition number of the covariance of the features.
    threads : int, default=1
        Threads of BLAS and OpenMP.
    seed : int, default=0
        Seed of the data.
    repeat : int, default=None
        Fits of each model, of which the fastest counts; None takes 3 to 20 by the size.
    budget : float, default=3.0
        Seconds after which a model is not fitted again.

    Returns
    -------
    row : dict
        Shape; "ours, ms"; "peer / ours", the time of the fastest exact peer over that of ours, and
        its name, None if there is none; "within target", whether ours is exact and takes no more
        than 1.2 times as long plus 2 ms; "passes" of ours; and "models", for each its "time / ours"
        and its distance from the optimum, "excess, floors".
    """
    X, y, excess = problem(loss, n, p, condition, seed)
    models = {"ours": ours(loss), **peers(loss)}
    if repeat is None:
        repeat = int(np.clip(2e7 / (n * p), 3, 20))
    jobs = {name: partial(quiet, model, X, y) for name, model in models.items()}
    with threadpool_limits(threads):
        seconds = best_times(jobs, repeat=repeat, budget=budget)
    floors = {name: excess(model) for name, model in models.items()}
    exact = [name for name in models if name != "ours" and floors[name] < EXACT]
    row = {"loss": loss, "rows": n, "features": p, "condition": condition, "threads": threads}
    row |= {"ours, ms": 1e3 * seconds["ours"], "peer / ours": None, "fastest exact peer": None}
    row |= {"within target": floors["ours"] < EXACT, "passes": models["ours"].n_passes_}
    if exact:
        best = min(exact, key=seconds.get)
        row |= {"peer / ours": seconds[best] / seconds["ours"], "fastest exact peer": best}
        row["within target"] &= seconds["ours"] <= 1.2 * seconds[best] + 2e-3
    row["models"] = {
        name: {"time / ours": seconds[name] / seconds["ours"], "excess, floors": floors[name]}
        for name in models
    }
    return row


def lines(row):
    """Return a cell as lines of a table, one for each model; what concerns ours stands with it."""
    shape = {key: row[key] for key in ("loss", "rows", "features", "condition", "threads")}
    own = {key: value for key, value in row.items() if key not in (*shape, "models")}
    return [
        {**shape, "model": name, **measured, **(own if name == "ours" else {})}
        for name, measured in row["models"].items()
    ]


def verdict(rows):
    """Say for each loss in how many cells ours is within the target, and the worst ratio."""
    said = []
    for loss in dict.fromkeys(row["loss"] for row in rows):
        of = [row for row in rows if row["loss"] == loss and row["model"] == "ours"]
        met = sum(row["within target"] for row in of)
        ratios = [row["peer / ours"] for row in of if row["peer / ours"] is not None]
        line = f"{loss}: within the target in {met} of {len(of)} cells"
        if ratios:
            line += f"; fastest exact peer / ours from {min(ratios):.2f} to {max(ratios):.2f}"
        said.append(line)
    return "\n".join(said)


@theme(
    "Grid: ours against the fastest exact peer at every size",
    target="ours takes at most 1.2 times as long, plus 2 ms; excess of ours 0.05 floors",
    short={
        "losses": ALL_LOSSES,
        "shapes": ((2_000, 10), (20_000, 20)),
        "conditions": (1, 1e12),
        "threads": (1,),
    },
    long={"losses": ALL_LOSSES, "shapes": None, "conditions": (1, 1e12), "threads": (1, 2)},
    summary=verdict,
)
def cells(losses, shapes, conditions, threads, budget=3.0):
    """Distances are in floors; below none is rounding. The summary counts cells."""
    return [
        line
        for loss in losses
        for shape in shapes or SHAPES[loss]
        for condition in conditions
        for n_threads in threads
        for line in lines(cell(loss, *shape, condition, n_threads, budget=budget))
    ]


@theme(
    "Grid: the cost of a small fit",
    target="at most 1.5 times the peer's",
    short={"shape": (200, 5), "repeat": 30},
    long={"shape": (200, 5), "repeat": 200},
)
def small(shape, repeat):
    """Time fits as small as searches make by the thousand."""
    X, y, _ = problem("squared_error", *shape, 1, 0)
    labels = (y > np.median(y)).astype(int)
    pairs = {
        "LinearRegression": (ours("squared_error"), LinearRegression(), y),
        "LogisticRegression": (ours("log_loss"), LogisticRegression(C=np.inf), labels),
    }
    rows = []
    for name, (model, peer, target) in pairs.items():
        jobs = {"ours": partial(quiet, model, X, target), "peer": partial(quiet, peer, X, target)}
        seconds = best_times(jobs, repeat=repeat)
        row = {"rows": shape[0], "features": shape[1], "peer": name}
        rows.append(row | {"ours / peer": seconds["ours"] / seconds["peer"]})
    return rows


def tables():
    """Return the data of the searches: two real tables and one with more features than rows."""
    wide = make_classification(200, 500, n_informative=20, random_state=0)
    return {
        "breast cancer": load_breast_cancer(return_X_y=True),
        "digits": load_digits(return_X_y=True),
        "wide": wide,
    }


def score(model, X, y):
    """Return the mean accuracy of a pipeline in five folds, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(cross_val_score(make_pipeline(StandardScaler(), model), X, y, cv=5).mean())


@theme(
    "Grid: the cost of a cross-validation",
    target="at most 1.5 times LogisticRegression's",
    short={"names": ("breast cancer",), "repeat": 1},
    long={"names": ("breast cancer", "digits", "wide"), "repeat": 3},
)
def cross_validation(names, repeat, budget=10.0):
    """Pipelines with a StandardScaler, five folds; the penalty is LogisticRegression's C=1."""
    rows = []
    for name in names:
        X, y = tables()[name]
        models = {
            "LogisticRegression": LogisticRegression(),
            "ours": ours("log_loss", alpha=1 / (0.8 * len(X))),
            "ours, no penalty": ours("log_loss"),
        }
        accuracy = {}

        def run(key, models=models, X=X, y=y, accuracy=accuracy):
            accuracy[key] = score(models[key], X, y)

        jobs = {key: partial(run, key) for key in models}
        seconds = best_times(jobs, repeat=repeat, budget=budget)
        rows += [
            {"data": name, "rows": X.shape[0], "features": X.shape[1], "model": key}
            | {"time / LogisticRegression": seconds[key] / seconds["LogisticRegression"]}
            | {"accuracy": accuracy[key]}
            for key in models
        ]
    return rows
