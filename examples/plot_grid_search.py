"""
A grid search over the settings of a whitening
==============================================

:class:`~sklearn_gradhess.GradientCovarianceEstimator` is a transformer, so `GridSearchCV` tunes it
like any other step. The data are scikit-learn's wines: 178 rows, 13 features in raw units whose
standard deviations run from 0.1 to 314. Neighbours are found after whitening, so the transform
decides what is near. Expect an optimum inside the grid for `shrinkage`, the more so the larger
`batch_size` is, and nothing from `noise_scale` with the default noise, where it is divided out. The
estimator alone, searched by its own score, the Gaussian log-likelihood of rows held out, wants
batches of one row.
"""

import warnings

import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, RepeatedStratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.exceptions import CalibrationWarning

X, y = load_wine(return_X_y=True)
folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=0)
batch_sizes, shrinkages = [1, 2, 4, 8], [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0]
whiten, knn = GradientCovarianceEstimator(random_state=0), KNeighborsClassifier()


def search(model, prefix="", **grid):
    found = GridSearchCV(model, {prefix + name: grid[name] for name in grid}, cv=folds).fit(X, y)
    best = ", ".join(f"{name} {found.best_params_[prefix + name]:g}" for name in grid)
    return found.cv_results_["mean_test_score"].reshape([len(v) for v in grid.values()]), best


def line(name, values, form):
    print(f"{name:<28}", *(f"{v:>8{form}}" for v in values))


# %%
# Whitening before neighbours. A batch of 8 leaves 18 gradients for 13 features: the small
# eigenvalues come out much too small, whitening magnifies these directions, and shrinkage holds
# them back. It goes towards the mean variance, which one feature dominates, so it is felt from 1e-6
# on; at 1 nothing is whitened.
pipeline = Pipeline([("whiten", whiten), ("model", knn)])
both = {"batch_size": batch_sizes, "shrinkage": shrinkages}
accuracy, best = search(pipeline, "whiten__", **both)
print(f"Best of the grid: {best}, accuracy {accuracy.max():.3f}")
inner = GridSearchCV(pipeline, {f"whiten__{name}": both[name] for name in both}, cv=5)
print(f"Search within folds: accuracy {cross_val_score(inner, X, y, cv=5).mean():.3f}")
for name, model in {"Raw": knn, "Scaled": make_pipeline(StandardScaler(), knn)}.items():
    print(f"{name} features: accuracy {cross_val_score(model, X, y, cv=folds).mean():.3f}")
print(f"Unshrunk, batch_size 1 and 8: accuracy {accuracy[0, 0]:.3f} and {accuracy[-1, 0]:.3f}")

# %%
# The estimator alone: how likely are rows held out? Noise of the gradients can only harm, and
# batches of one row have none: with sign noise they give the covariance of the rows itself.
likelihood, best = search(whiten, **both)
print(f"Alone: {best}, log-likelihood {likelihood.max():.2f}")
line("Unshrunk, by batch_size", likelihood[:, 0], ".2f")

# %%
# The scale of the noise. Antithetic noise: nothing. Single noise, here with the number of the class
# as the target: the signal in the target is taken for curvature unless the noise drowns it, and the
# noise stays in the mean gradient, whose error grows with the root of the scale.
scales = [0.01, 0.1, 1.0, 10.0, 100.0]
gradient, unit = -(X * y[:, None]).mean(axis=0), X.std(axis=0)
line("noise_scale", scales, "g")
for noise in ("antithetic", "single"):
    whiten.set_params(batch_size=1, noise=noise, shrinkage=1e-4)
    with warnings.catch_warnings():  # which says that the signal is not drowned
        warnings.simplefilter("ignore", CalibrationWarning)
        line(f"{noise}: accuracy", search(pipeline, "whiten__", noise_scale=scales)[0], ".3f")
        whiten.set_params(shrinkage=None)
        line(f"{noise}: log-likelihood", search(whiten, noise_scale=scales)[0], ".2f")
        means = [whiten.set_params(noise_scale=s).fit(X, y).mean_gradient_ for s in scales]
    error = np.linalg.norm((means - gradient) / unit, axis=1) / np.linalg.norm(gradient / unit)
    line(f"{noise}: gradient's error", error, ".3f")

# %%
# The picture: both searches. One wine is 0.006 of accuracy, and the best of 28 cells flatters; the
# search within folds does not. On these wines whitening is no better than scaling, whatever the
# setting. With the rows at hand, batches of more than one are for speed alone; elsewhere they are
# what somebody else sends.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained")
for ax, table, title, low, digits in (
    (axes[0], accuracy, "Accuracy of neighbours after whitening", 0.6, 3),
    (axes[1], likelihood, "Log-likelihood of a row held out, whitening alone", -60, 1),
):
    image = ax.imshow(table, vmin=low, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        color = "white" if image.norm(value) < 0.6 else "black"
        weight = "bold" if value == table.max() else "normal"
        ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color=color, weight=weight)
    ax.set_xticks(range(len(shrinkages)), [f"{s:g}" for s in shrinkages])
    ax.set_yticks(range(len(batch_sizes)), batch_sizes)
    ax.set(xlabel="shrinkage", ylabel="batch_size (rows)", title=title)
