"""Gradient attacks of the Adversarial Robustness Toolbox (ART) on affine pipelines.

pip install adversarial-robustness-toolbox packaging

For an affine model one step of the fast gradient method finds the worst case, so that the error at
the rows that it returns must equal what `make_adversarial_scorer` says without any attack; so must
that of projected gradient descent, if it has converged. ART knows arrays and classifiers; the shim
below gives it the loss of a whole pipeline, with gradients by central differences of `predict`, so
that nothing of ours is in the attack.
"""

# ruff: noqa: D102

import numpy as np
from art.attacks.evasion import (
    FastGradientMethod,
    HopSkipJump,
    ProjectedGradientDescent,
    fast_gradient,
)
from art.estimators import BaseEstimator, LossGradientsMixin
from art.estimators.classification import BlackBoxClassifier
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks.measure import time_ratios
from sklearn_gradhess.metrics import adversarial_accuracy, make_adversarial_scorer

TOLERANCE = 1e-9
# ART computes in float32, whose rounding is larger than what is compared
fast_gradient.ART_NUMPY_DTYPE = np.float64


class Shim(LossGradientsMixin, BaseEstimator):
    """A fitted regressor as ART wants it, in units of `scale`."""

    def __init__(self, model, scale, clip_values=None):
        super().__init__(model=model, clip_values=clip_values)
        self.scale = scale

    def predict(self, x, **kwargs):
        return np.ravel(self.model.predict(x * self.scale))

    def loss_gradient(self, x, y, **kwargs):
        step = 0.5 * np.eye(x.shape[1])
        rise = [self.predict(x + e) - self.predict(x - e) for e in step]
        return (self.predict(x) - y)[:, None] * np.transpose(rise)

    def fit(self, x, y, **kwargs):
        raise NotImplementedError

    @property
    def input_shape(self):
        return self.scale.shape


def compare(model, X, y, radius, norm, bounds=None):
    """Return the risk in closed form and under two attacks, and the times over ours."""
    scale = X.std(axis=0)
    shim = Shim(model, scale, None if bounds is None else tuple(b / scale for b in bounds))
    scorer = make_adversarial_scorer(radius, norm, feature_scale=scale, bounds=bounds)
    common = {"norm": norm, "eps": radius, "batch_size": len(y)}
    steps = {
        "1 step": FastGradientMethod(shim, eps_step=radius, **common),
        "20 steps": ProjectedGradientDescent(
            shim, eps_step=radius / 4, max_iter=20, verbose=False, **common
        ),
    }
    found = {}

    def attack(name):
        error = y - shim.predict(steps[name].generate(X / scale, y))
        found[name] = np.mean(error**2)

    def exact():
        found["exact, ours"] = -scorer(model, X, y)

    jobs = {"exact, ours": exact} | {name: lambda name=name: attack(name) for name in steps}
    ratios = time_ratios(jobs, "exact, ours", repeat=1)
    best = max(found[name] for name in steps) / found["exact, ours"] - 1
    holds = best <= TOLERANCE and (bounds is not None or best >= -TOLERANCE)
    return (
        found
        | {"best / exact - 1": best, "holds": bool(holds)}
        | {f"time / ours, {name}": ratios[name] for name in steps}
    )


def compare_all(norms, radius):
    """Return a row for each model and norm, and one with bounds."""
    X, y = load_diabetes(return_X_y=True, scaled=False)
    models = {
        "StandardScaler, Ridge(1)": make_pipeline(StandardScaler(), Ridge(1.0)),
        "PLSRegression(3)": PLSRegression(3),
    }
    box = X.min(axis=0), X.max(axis=0)
    cases = [(norm, None) for norm in norms] + [(np.inf, box)]
    return [
        {"model": name, "norm": norm, "bounds": "none" if bounds is None else "box"}
        | compare(model.fit(X, y), X, y, radius, norm, bounds)
        for name, model in models.items()
        for norm, bounds in cases
    ]


class Counted:
    """A fitted classifier that counts the rows it is asked for."""

    def __init__(self, model):
        self.model, self.classes_, self.n_rows = model, model.classes_, 0

    def predict(self, X):
        self.n_rows += len(X)
        return self.model.predict(X)

    def __getattr__(self, name):  # the scores, one query with the labels of the same rows
        return getattr(self.model, name)


def black_boxes(model, X, y, radius, norm, max_queries):
    """Accuracy that survives HopSkipJump, at no fewer queries than ours, and our search.

    HopSkipJump looks for the nearest wrong row, so that it succeeds where that is near enough. It
    asks for labels alone; ours reads scores too where there are some.
    """
    unit = X.std(axis=0)
    asked = {"ours": Counted(model), "HopSkipJump": Counted(model)}
    ours = adversarial_accuracy(
        asked["ours"], X, y, radius=radius, norm=norm, scale=unit, on_nonaffine="search",
        max_queries=max_queries,
    )  # fmt: skip
    codes = np.searchsorted(model.classes_, y)

    def probabilities(x):
        labels = np.searchsorted(model.classes_, asked["HopSkipJump"].predict(x * unit))
        return np.eye(len(model.classes_))[labels]

    shown = X / unit
    box = BlackBoxClassifier(
        probabilities, shown.shape[1:], len(model.classes_), (shown.min(), shown.max())
    )
    attack = HopSkipJump(box, norm=norm, max_iter=0, max_eval=50, init_eval=5, init_size=20,
                         verbose=False)  # fmt: skip
    moved = None
    # it stops by iterations, so give it as many as pay for our queries
    while asked["HopSkipJump"].n_rows < max_queries * len(X):
        attack.max_iter = 4
        moved = attack.generate(x=shown, y=np.eye(len(model.classes_))[codes], x_adv_init=moved)
    away = np.linalg.norm(moved - shown, ord=norm, axis=1)
    fooled = (model.predict(moved * unit) != y) & (away <= radius * (1 + 1e-6))
    theirs = np.mean((model.predict(X) == y) & ~fooled)
    queries = {f"queries a row, {name}": c.n_rows / len(X) for name, c in asked.items()}
    found = {"plain": model.score(X, y), "ours": ours, "HopSkipJump": theirs}
    return found | queries | {"holds": bool(ours <= theirs + 1e-9)}


def search_all(radii, max_queries, n_rows=60):
    """Return a row for each model, norm and radius."""
    X, y = load_diabetes(return_X_y=True, scaled=False)
    X, y = X[:n_rows], y[:n_rows] > np.median(y)
    models = {
        "forest": RandomForestClassifier(20, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=30, random_state=0),
        "kernel": make_pipeline(StandardScaler(), SVC()),
        "neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier()),
    }
    return [
        {"model": name, "norm": norm, "radius": radius}
        | black_boxes(model.fit(X, y), X, y, radius, norm, max_queries)
        for name, model in models.items()
        for norm in (2, np.inf)
        for radius in radii
    ]
