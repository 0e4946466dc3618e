"""How time grows with rows and features, and passes with the condition number: the slopes.

The work of everything here is proportional to the rows; slopes below 1 are fixed costs at the small
end. Least squares by factorisation is quadratic in the features. The descent should not know the
condition number. The estimator has a fixed batch size, because "auto" takes single rows, which is
slow and exact, for small data, and so would not compare the same work.
"""

from functools import partial

import numpy as np
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LinearRegression

from benchmarks.data import regression
from benchmarks.measure import best_times, log_slope, slope
from benchmarks.peers import LeastSquares, fit, passes, ridge
from benchmarks.report import theme
from sklearn_gradhess import GradientCovarianceEstimator, PreconditionedSGDRegressor

MODELS = {
    "GradientCovarianceEstimator, 16": GradientCovarianceEstimator(batch_size=16, random_state=0),
    "EmpiricalCovariance": EmpiricalCovariance(),
    "PreconditionedSGDRegressor": PreconditionedSGDRegressor(random_state=0),
    "LinearRegression": LinearRegression(),
    "Ridge, cholesky": ridge("cholesky"),
    "Ridge, lsqr": ridge("lsqr"),
}
ITERATIVE = ("PreconditionedSGDRegressor", "Ridge, lsqr")


def growth(problems, sizes, repeat):
    """Return a row a model: time over that at the first size, and the slope of the logarithms."""
    jobs = {
        (name, size): partial(_fit, model, X, y)
        for size, (X, y) in zip(sizes, problems, strict=True)
        for name, model in MODELS.items()
    }
    seconds = best_times(jobs, repeat=repeat)
    rows = []
    for name in MODELS:
        spent = [seconds[name, size] for size in sizes]
        relative = {f"{size:,}": t / spent[0] for size, t in zip(sizes, spent, strict=True)}
        rows.append({"model": name, **relative, "slope": log_slope(sizes, spent)})
    return rows


def _fit(model, X, y):
    if isinstance(model, EmpiricalCovariance):
        model.fit(X)  # ours included, which is a subclass
    else:
        fit(model, X, y)


@theme(
    "Scaling: time against rows",
    target="a slope of 1",
    short={"sizes": (20_000, 40_000, 80_000), "d": 50, "repeat": 2},
    long={"sizes": (100_000, 200_000, 400_000, 800_000), "d": 64, "repeat": 3},
)
def rows(sizes, d, repeat):
    """Time over that of the smallest number of rows; the estimator with batches of 16 rows."""
    X, y = regression(sizes[-1], d, condition_number=1e2)
    return growth([(X[:n], y[:n]) for n in sizes], sizes, repeat)


@theme(
    "Scaling: time against features",
    target="a slope below that of EmpiricalCovariance and of LinearRegression",
    short={"sizes": (25, 50, 100), "n": 20_000, "repeat": 2},
    long={"sizes": (50, 100, 200, 400), "n": 100_000, "repeat": 3},
)
def features(sizes, n, repeat):
    """Time over that of the smallest number of features; the estimator with batches of 16 rows."""
    return growth([regression(n, d, condition_number=1e2) for d in sizes], sizes, repeat)


@theme(
    "Scaling: passes and excess against the condition number",
    target="6 passes and 0.05 floors at every condition number, slope 0",
    short={"shape": (60_000, 60), "condition_numbers": (1.0, 1e6, 1e12)},
    long={
        "shape": (100_000, 100),
        "condition_numbers": (1.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12),
    },
)
def condition(shape, condition_numbers):
    """Count passes, with their slope for a factor of ten, and measure excess in floors.

    LinearRegression drops directions below a millionth of the largest singular value, which is
    condition 1e12; with tol=0 it keeps them.
    """
    models = {name: MODELS[name] for name in (*ITERATIVE, "Ridge, cholesky", "LinearRegression")}
    models["LinearRegression, tol=0"] = LinearRegression(tol=0.0)
    counts = {name: [] for name in ITERATIVE}
    excess = {name: [] for name in models}
    for number in condition_numbers:
        X, y = regression(*shape, number)
        assess = LeastSquares(X, y)
        for name, model in models.items():
            excess[name].append(assess(fit(model, X, y))["excess, floors"])
            if name in counts:
                counts[name].append(passes(model))
    heads = [f"{number:.0e}" for number in condition_numbers]
    shared = {"rows": shape[0], "features": shape[1]}
    table = []
    for quantity, values in (("passes", counts), ("excess", excess)):
        for name, of_model in values.items():
            row = {"quantity": quantity, "model": name, **shared}
            row |= dict(zip(heads, of_model, strict=True))
            if quantity == "passes":
                row["slope"] = slope(np.log10(condition_numbers), of_model)
            table.append(row)
    return table
