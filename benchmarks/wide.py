"""Wide and sparse data: many features, few rows or few entries a row, many classes.

Every model minimises the same objective, with the penalty 1/N of a half square on the coefficients
as they are, C=1 in `LogisticRegression`. The gap is what is left of the way from the null model to
the best objective that any of the models found.
"""

import warnings
from functools import partial

import numpy as np
from scipy import sparse
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.measure import best_times
from benchmarks.report import theme
from sklearn_gradhess import PreconditionedSGDClassifier


def draw(signal, rng):
    """Return two classes with these log odds."""
    return (rng.random(len(signal)) < 1 / (1 + np.exp(-signal))).astype(int)


def of_ones(columns, d):
    """Return sparse rows with ones in these columns; saga takes indices of 32 bits alone."""
    n, per_row = columns.shape
    starts = np.arange(0, n * per_row + 1, per_row, dtype=np.int32)
    return sparse.csr_array(
        (np.ones(n * per_row), columns.ravel().astype(np.int32), starts), shape=(n, d)
    )


def text(n, d, per_row=60):
    """Return rows like tf-idf: word frequencies by Zipf's law, rows of norm one."""
    rng = np.random.default_rng([n, d])
    frequency = np.cumsum(1 / np.arange(1, d + 1))
    words = np.searchsorted(frequency / frequency[-1], rng.random(n * per_row)).clip(0, d - 1)
    X = of_ones(words.reshape(n, per_row), d)
    X.sum_duplicates()
    rarity = 1 + np.log(n / (1 + np.bincount(X.indices, minlength=d)))
    X.data = (1 + np.log(X.data)) * rarity[X.indices]
    X.data /= np.repeat(np.sqrt(X.multiply(X).sum(axis=1)), np.diff(X.indptr))
    return X, draw(3 * X @ rng.standard_normal(d), rng)


def categories(n, d, n_columns=20):
    """Return one-hot levels of categories, of frequencies by Zipf's law, and a rare class."""
    rng = np.random.default_rng([n, d])
    size = d // n_columns
    frequency = np.cumsum(1 / np.arange(1, size + 1))
    levels = np.searchsorted(frequency / frequency[-1], rng.random((n, n_columns)))
    levels = levels.clip(0, size - 1) + size * np.arange(n_columns)
    X = of_ones(levels, d)
    return X, draw(X @ rng.standard_normal(d) / 2 - 2, rng)


def genes(n, d, n_factors=50):
    """Return few dense rows of many features that share factors."""
    rng = np.random.default_rng([n, d])
    X = rng.standard_normal((n, n_factors)) @ rng.standard_normal((n_factors, d)) / 7
    X += rng.standard_normal((n, d))
    return X, draw(X[:, :50] @ rng.standard_normal(50) / 2, rng)


def images(n, side, n_classes=10):
    """Return smooth images of integers from 0 to 255, with an empty margin."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([n, side])
    means = gaussian_filter(rng.standard_normal((n_classes, side, side)), (0, 2.5, 2.5))
    y = rng.integers(n_classes, size=n)
    X = means[y] + 0.9 * gaussian_filter(rng.standard_normal((n, side, side)), (0, 2, 2))
    window = np.exp(-np.square(np.linspace(-2, 2, side)))
    X = np.clip(900 * X * window[:, None] * window - 20, 0, 255).round()
    return X.reshape(n, -1), y


MAKE = {"text": text, "categories": categories, "genes": genes, "images": images}


def objective(model, X, y, alpha):
    """Return mean log loss plus penalty."""
    raw = model.decision_function(X)
    raw = np.column_stack([np.zeros_like(raw), raw]) if raw.ndim == 1 else raw
    loss = logsumexp(raw, axis=1) - raw[np.arange(len(y)), y]
    return float(loss.mean() + 0.5 * alpha * np.sum(model.coef_**2))


def _fit(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # peers at their cap; it shows
        model.fit(X, y)


@theme(
    "Wide data: time and gap against scikit-learn's solvers",
    target="no slower than a peer with as small a gap",
    short={
        "problems": {
            "text": (5_000, 20_000),
            "categories": (5_000, 10_000),
            "genes": (100, 2_000),
            "images": (500, 16),
        },
        "repeat": 1,
        "saga": 10,
    },
    long={
        "problems": {
            "text": (100_000, 100_000),
            "categories": (100_000, 200_000),
            "genes": (500, 20_000),
            "images": (5_000, 28),
        },
        "repeat": 2,
        "saga": 20,
    },
)
def classes(problems, repeat, saga):
    """Fit classifiers with C=1; times are over ours with the default tol, gaps of the objective."""
    rows = []
    for name, shape in problems.items():
        X, y = MAKE[name](*shape)
        alpha = 1 / len(y)
        ours = partial(
            PreconditionedSGDClassifier, alpha=alpha, penalty_units="raw", random_state=0
        )
        models = {
            "PreconditionedSGDClassifier": ours(),
            "PreconditionedSGDClassifier, tol=1e-4": ours(tol=1e-4),
            "LogisticRegression, newton-cg": LogisticRegression(solver="newton-cg"),
            "LogisticRegression, lbfgs": LogisticRegression(max_iter=1000),
            "LogisticRegression, saga": LogisticRegression(
                solver="saga", max_iter=saga, random_state=0
            ),
        }
        jobs = {key: partial(_fit, model, X, y) for key, model in models.items()}
        seconds = best_times(jobs, repeat=repeat, budget=30)
        values = {key: objective(model, X, y, alpha) for key, model in models.items()}
        best, share = min(values.values()), np.bincount(y) / len(y)
        null = -float(share @ np.log(share))
        first = next(iter(seconds.values()))
        for key, value in values.items():
            rows.append(
                {
                    "data": name,
                    "rows": X.shape[0],
                    "features": X.shape[1],
                    "model": key,
                    "time / ours": seconds[key] / first,
                    "gap": (value - best) / (null - best),
                    "preconditioner": getattr(models[key], "preconditioner_", None),
                }
            )
    return rows
