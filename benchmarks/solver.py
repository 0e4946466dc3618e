"""PreconditionedSGD against scikit-learn's solvers on made data: time, passes and accuracy.

Features are rotated, with geometrically falling eigenvalues, and as much signal along the smallest
as along the largest, so that stopping early shows as excess.
"""

from threadpoolctl import threadpool_limits

from benchmarks.data import classification, regression
from benchmarks.peers import (
    LeastSquares,
    LogisticOptimum,
    VowpalWabbit,
    classifiers,
    compare,
    glum_classifier,
    over_seeds,
    regressors,
    tune_sgd,
)
from benchmarks.report import theme
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor

RIDGE = ("cholesky", "svd", "lsqr", "sparse_cg", "sag", "saga")
IN_BLAS = ("ours", "LinearRegression", "Ridge, cholesky", "Ridge, svd", "Ridge, lsqr")


def named(problem):
    """Return the shape and condition number of a problem as columns."""
    return dict(zip(("rows", "features", "condition"), problem, strict=True))


@theme(
    "Solver: least squares against scikit-learn",
    target="on one thread LinearRegression 6 times as long at 500 features and 8 at 100, Ridge "
    "cholesky 1 and 0.67, every other solver at least 1; excess of ours 0.05 floors",
    short={
        "problems": [(40_000, 100, 1e2)],
        "threads": (1,),
        "max_iter": 20,
        "repeat": 3,
        "budget": 0.2,
    },
    long={
        "problems": [(200_000, 100, 1e2), (200_000, 500, 1e2)],
        "threads": (1, 2),
        "max_iter": 50,
        "repeat": 3,
        "budget": 3.0,
    },
)
def least_squares(problems, threads, max_iter, repeat, budget):
    """Ridge has next to no penalty; the tuned SGDRegressor the best first step of a grid.

    sag, saga and SGDRegressor have a cap on their epochs, which the notes name where it was met.
    Passes of peers are their iterations or epochs. On two threads only what BLAS can share.
    """
    rows = []
    for problem in problems:
        X, y = regression(*problem)
        assess = LeastSquares(X, y)
        tuned, model, tuning = tune_sgd(X, y, assess, max_iter)
        models = {"ours": PreconditionedSGDRegressor(random_state=0)}
        models |= {**regressors(RIDGE, max_iter), tuned: model}
        for n_threads in threads:
            chosen = {name: models[name] for name in (models if n_threads == 1 else IN_BLAS)}
            with threadpool_limits(n_threads):
                found = compare(
                    chosen,
                    X,
                    y,
                    assess,
                    repeat=repeat,
                    budget=budget,
                    beforehand={tuned: tuning},
                )
            rows += [named(problem) | {"threads": n_threads} | row for row in found]
    return rows


@theme(
    "Solver: logistic regression against scikit-learn",
    target="newton-cholesky 5 times as long; gap of ours 0.01 floors",
    short={"problems": [(40_000, 50, 1e4)], "solvers": ("newton-cholesky", "lbfgs"), "repeat": 2},
    long={
        "problems": [(200_000, 100, 1e4)],
        "solvers": ("newton-cholesky", "lbfgs", "liblinear", "saga"),
        "repeat": 3,
    },
)
def logistic(problems, solvers, repeat, max_iter=50, budget=3.0):
    """Without a penalty; passes of peers are their iterations or epochs. glum where installed."""
    rows = []
    for problem in problems:
        X, y = classification(*problem)
        models = {
            "ours": PreconditionedSGDClassifier(alpha=0.0, random_state=0),
            **glum_classifier(),
            **classifiers(solvers, max_iter),
        }
        found = compare(models, X, y, LogisticOptimum(X, y), repeat=repeat, budget=budget)
        rows += [named(problem) | row for row in found]
    return rows


@theme(
    "Solver: least squares against scale-invariant updates",
    target="as few passes and as little excess of ours at any condition number",
    short={"shape": (2_000, 10), "conditions": (1, 1e4), "rates": (0.5,), "passes": 5},
    long={
        "shape": (24_000, 70),
        "conditions": (1, 1e4, 1e8),
        "rates": (0.1, 0.5, 2.0),
        "passes": 20,
    },
)
def online(shape, conditions, rates, passes):
    """Vowpal Wabbit has the best of some learning rates, known in hindsight; its default is 0.5."""
    rows = []
    for condition in conditions:
        problem = (*shape, condition)
        X, y = regression(*problem)
        assess = LeastSquares(X, y)
        ours = PreconditionedSGDRegressor(random_state=0).fit(X, y)
        found = {f"Vowpal Wabbit, rate {r:g}": VowpalWabbit(r, passes).fit(X, y) for r in rates}
        best = min(found, key=lambda name: assess(found[name])["excess, floors"])
        rows += [
            named(problem) | {"model": name, "passes": float(n)} | assess(model)
            for name, model, n in (("ours", ours, ours.n_passes_), (best, found[best], passes))
        ]
    return rows


@theme(
    "Solver: ours over seeds",
    target="all converged; excess 0.05 floors, gap 0.01 floors",
    short={"shape": (60_000, 60), "n_seeds": 3},
    long={"shape": (100_000, 100), "n_seeds": 20},
)
def seeds(shape, n_seeds, condition_number=1e4):
    """Draw the sketch and the mini-batches anew on the same data; the worst is shown."""
    problem = (*shape, condition_number)
    classifier = PreconditionedSGDClassifier(alpha=0.0)
    tasks = {
        "least squares": (PreconditionedSGDRegressor(), regression(*problem), LeastSquares),
        "logistic": (classifier, classification(*problem), LogisticOptimum),
    }
    return [
        {"task": task, **named(problem)} | over_seeds(model, *data, optimum(*data), n_seeds)
        for task, (model, data, optimum) in tasks.items()
    ]
