"""Wide and sparse data: many features, few rows or few entries a row, many classes.

Every model minimises the same objective, with the penalty 1/N of a half square on the coefficients
as they are, C=1 in `LogisticRegression`. The gap is what is left of the way from the null model to
the best objective that any of the models found.
"""

import importlib.util
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.measure import best_times
from benchmarks.report import theme
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor


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


def scattered(n, d, per_row):
    """Return sparse rows of normal entries at random places."""
    rng = np.random.default_rng([n, d])
    X = of_ones(rng.integers(d, size=(n, per_row)), d)
    X.data = rng.standard_normal(len(X.data))
    return X, draw(2 * X @ rng.standard_normal(d) / np.sqrt(per_row), rng)


def normal(n, d, n_classes=2):
    """Return dense rows of independent features."""
    rng = np.random.default_rng([n, d])
    X = rng.standard_normal((n, d))
    raw = 2 * X @ rng.standard_normal((d, n_classes)) / np.sqrt(d)
    return X, (raw + rng.gumbel(size=raw.shape)).argmax(axis=1)


MAKE = {f.__name__: f for f in (text, categories, genes, images, scattered, normal)}


def objective(model, X, y, alpha):
    """Return mean log loss plus penalty."""
    raw = model.decision_function(X)
    raw = np.column_stack([np.zeros_like(raw), raw]) if raw.ndim == 1 else raw
    loss = logsumexp(raw, axis=1) - raw[np.arange(len(y)), y]
    return float(loss.mean() + 0.5 * alpha * np.sum(model.coef_**2))


def _fit(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # peers at their cap; a column says so
        model.fit(X, y)


def _ended(model):
    """Whether a model ended by itself, before its most iterations."""
    if hasattr(model, "converged_"):
        return model.converged_
    return int(np.max(model.n_iter_)) < model.max_iter


def _peers(C, n_classes, most):
    """Return scikit-learn's solvers; each step of newton-cg takes many passes, so it has fewer."""
    peer = partial(LogisticRegression, C=C, max_iter=most)
    found = {
        "LogisticRegression, newton-cg": peer(solver="newton-cg", max_iter=max(most // 20, 5)),
        "LogisticRegression, lbfgs": peer(),
        "LogisticRegression, saga": peer(
            solver="saga", max_iter=max(most // 20, 3), random_state=0
        ),
    }
    if n_classes == 2:  # it penalises the intercept, too
        found["LogisticRegression, liblinear"] = peer(solver="liblinear", dual=True, random_state=0)
    return found


@theme(
    "Wide data: time and gap against scikit-learn's solvers",
    target="no slower than a peer with as small a gap",
    short={
        "problems": {
            "words": ("text", (3_000, 10_000)),
            "categories": ("categories", (3_000, 5_000)),
            "genes": ("genes", (100, 2_000)),
            "images": ("images", (500, 16)),
        },
        "repeat": 1,
        "most": 60,
    },
    long={
        "problems": {
            "words": ("text", (100_000, 100_000)),
            "more words": ("text", (40_000, 168_000)),
            "categories": ("categories", (100_000, 200_000)),
            "genes": ("genes", (500, 20_000)),
            "images, alpha=1e-4": ("images", (5_000, 28), 1e-4),
            "images, alpha=1e-3": ("images", (5_000, 28), 1e-3),
            "sparse": ("scattered", (5_000, 2_000, 20)),
            "more sparse": ("scattered", (20_000, 10_000, 20)),
            "dense": ("normal", (2_000, 2_000)),
            "100 classes": ("normal", (5_000, 500, 100)),
        },
        "repeat": 2,
        "most": 200,
    },
)
def classes(problems, repeat, most):
    """Fit classifiers, alpha 1/N unless said; times over ours with the default tol, objective gaps.

    A peer that has not ended by itself stopped at its most iterations.
    """
    rows = []
    for name, (make, shape, *penalty) in problems.items():
        X, y = MAKE[make](*shape)
        alpha = penalty[0] if penalty else 1 / len(y)
        ours = partial(
            PreconditionedSGDClassifier, alpha=alpha, penalty_units="raw", random_state=0
        )
        models = {
            "PreconditionedSGDClassifier": ours(),
            "PreconditionedSGDClassifier, tol=1e-4": ours(tol=1e-4),
            **_peers(1 / (alpha * len(y)), len(np.unique(y)), most),
        }
        jobs = {key: partial(_fit, model, X, y) for key, model in models.items()}
        seconds = best_times(jobs, repeat=repeat, budget=4)
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
                    "ended": _ended(models[key]),
                    "preconditioner": getattr(models[key], "preconditioner_", None),
                }
            )
    return rows


@theme(
    "Wide data in wild units: what a unit of the columns changes",
    target="nothing, with penalty_units='std'",
    short={"problems": {"categories": ("categories", (2_000, 3_000))}, "most": 30},
    long={
        "problems": {
            "words": ("text", (40_000, 40_000)),
            "categories": ("categories", (40_000, 80_000)),
        },
        "most": 300,
    },
)
def wild_units(problems, most):
    """Fit columns times ten to the powers -3 to 3; what that changes of held-out probabilities.

    Times are over ours on the columns as they were; peers stop at their most iterations.
    """
    rows = []
    for name, (make, shape) in problems.items():
        X, y = MAKE[make](2 * shape[0], shape[1])
        unit = 10 ** np.random.default_rng(0).uniform(-3, 3, X.shape[1])
        wild = sparse.csr_array(X @ sparse.diags_array(unit))
        n, first = shape[0], None
        models = {
            "PreconditionedSGDClassifier": PreconditionedSGDClassifier(tol=1e-4, random_state=0),
            **_peers(1.0, 2, most),
        }
        del models["LogisticRegression, liblinear"]  # does not end, nor at its most iterations
        for key, model in models.items():
            said, seconds = [], []
            for Z in (X, wild):
                job = partial(_fit, model, Z[:n], y[:n])
                seconds.append(best_times({key: job}, repeat=1)[key])
                said.append(model.predict_proba(Z[n:]))
            first = first or seconds[0]
            rows.append(
                {
                    "data": name,
                    "model": key,
                    "time / ours": seconds[1] / first,
                    "log loss": log_loss(y[n:], said[0]),
                    "in wild units": log_loss(y[n:], said[1]),
                    "mean change": float(np.abs(said[1] - said[0]).mean()),
                    "ended": _ended(model),
                }
            )
    return rows


@theme(
    "Fewer rows than features: the least norm",
    target="faster than LinearRegression, residuals of rounding",
    short={"shapes": ((50, 2_000),), "repeat": 1},
    long={"shapes": ((500, 20_000), (200, 50_000), (1_000, 5_000)), "repeat": 3},
)
def least_norm(shapes, repeat):
    """Fit without a penalty on standardised features, where both pick the least norm."""
    rows = []
    for n, d in shapes:
        X = StandardScaler().fit_transform(genes(n, d)[0])
        rng = np.random.default_rng(n)
        y = X[:, :50] @ rng.standard_normal(50) + rng.standard_normal(n)
        models = {
            "PreconditionedSGDRegressor": PreconditionedSGDRegressor(random_state=0),
            "LinearRegression": LinearRegression(),
        }
        jobs = {key: partial(_fit, model, X, y) for key, model in models.items()}
        seconds = best_times(jobs, repeat=repeat)
        coef = models["LinearRegression"].coef_
        for key, model in models.items():
            rows.append(
                {
                    "rows": n,
                    "features": d,
                    "model": key,
                    "time / ours": seconds[key] / seconds["PreconditionedSGDRegressor"],
                    "residual": np.linalg.norm(y - model.predict(X)) / np.linalg.norm(y),
                    "norm / LinearRegression": np.linalg.norm(model.coef_) / np.linalg.norm(coef),
                    "difference": np.linalg.norm(model.coef_ - coef) / np.linalg.norm(coef),
                }
            )
    return rows


def _lines(packages):
    """Return lines of four words or more of these packages' sources, each once, and whose."""
    found, label = [], []
    for package in packages:
        folder = Path(importlib.util.find_spec(package).origin).parent
        name, mine = re.compile(package.rpartition(".")[2], re.IGNORECASE), set()
        for path in sorted(folder.rglob("*.py")):
            for line in path.read_text("utf-8").splitlines():
                text = name.sub("", line)
                if len(re.findall(r"\w\w+", text)) >= 4:
                    mine.add(text)
        found += sorted(mine)
        label += [package] * len(mine)
    return np.array(found, dtype=object), np.array(label)


_WORDS = {
    "tf-idf": partial(TfidfVectorizer, sublinear_tf=True),
    "tf-idf, pairs": partial(TfidfVectorizer, sublinear_tf=True, ngram_range=(1, 2), min_df=2),
    "counts": CountVectorizer,
    "presence": partial(CountVectorizer, binary=True, ngram_range=(1, 2), min_df=2),
}
_SKLEARN = ("cluster", "ensemble", "linear_model", "metrics", "model_selection", "preprocessing")


@theme(
    "Real text: what defaults predict",
    target="log loss at most 1.01 times LogisticRegression's, accuracy no lower",
    short={
        "corpora": {"two modules": ("sklearn.cluster", "sklearn.ensemble")},
        "n": 2_000,
        "words": ("tf-idf", "counts"),
    },
    long={
        "corpora": {
            "three packages": ("numpy", "scipy", "sklearn"),
            "six modules": tuple(f"sklearn.{name}" for name in _SKLEARN),
        },
        "n": 40_000,
        "words": tuple(_WORDS),
    },
)
def defaults_on_text(corpora, n, words):
    """Say from which package a line of source is; every model as its constructor makes it."""
    rows = []
    for name, packages in corpora.items():
        texts, labels = _lines(packages)
        n_here = min(n, len(texts) // 2)
        train, test, y, z = train_test_split(
            texts, labels, train_size=n_here, test_size=min(n_here, 20_000), random_state=0
        )
        for kind in words:
            vectorizer = _WORDS[kind]()
            X, Z = vectorizer.fit_transform(train), vectorizer.transform(test)
            models = {
                "PreconditionedSGDClassifier": PreconditionedSGDClassifier(random_state=0),
                "PreconditionedSGDClassifier, alpha=1/N": PreconditionedSGDClassifier(
                    alpha=1 / len(y), random_state=0
                ),
                "LogisticRegression": LogisticRegression(),
                "SGDClassifier": SGDClassifier(loss="log_loss", random_state=0),
            }
            jobs = {key: partial(_fit, model, X, y) for key, model in models.items()}
            seconds = best_times(jobs, repeat=1)
            for key, model in models.items():
                rows.append(
                    {
                        "texts": name,
                        "rows": X.shape[0],
                        "words": kind,
                        "features": X.shape[1],
                        "model": key,
                        "time / ours": seconds[key] / seconds["PreconditionedSGDClassifier"],
                        "log loss": log_loss(z, model.predict_proba(Z)),
                        "accuracy": model.score(Z, z),
                        "ended": _ended(model),
                    }
                )
    return rows
