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

import matplotlib.pyplot as plt
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
whiten, neighbors = GradientCovarianceEstimator(random_state=0), KNeighborsClassifier()
pipeline = Pipeline([("whiten", whiten), ("model", neighbors)])

# %%
# Whitening before neighbours. A batch of 8 leaves 18 gradients for 13 features: the small
# eigenvalues come out much too small, whitening magnifies these directions, and shrinkage holds
# them back. It goes towards the mean variance, which one feature dominates, so it is felt from 1e-6
# on; at 1 nothing is whitened.
grid = {"whiten__batch_size": batch_sizes, "whiten__shrinkage": shrinkages}
search = GridSearchCV(pipeline, grid, cv=folds).fit(X, y)
accuracy = search.cv_results_["mean_test_score"].reshape(len(batch_sizes), len(shrinkages))
print(f"Best of the grid: {search.best_params_}, accuracy {search.best_score_:.3f}")
nested = cross_val_score(GridSearchCV(pipeline, grid, cv=5), X, y, cv=5)
print(f"Search within folds: accuracy {nested.mean():.3f}")
for name, model in {"Raw": neighbors, "Scaled": make_pipeline(StandardScaler(), neighbors)}.items():
    print(f"{name} features: accuracy {cross_val_score(model, X, y, cv=folds).mean():.3f}")
print(f"Unshrunk, batch_size 1 and 8: accuracy {accuracy[0, 0]:.3f} and {accuracy[-1, 0]:.3f}")

# %%
# The estimator alone: how likely are rows held out? Noise of the gradients can only harm, and
# batches of one row have none: with sign noise they give the covariance of the rows itself.
grid = {"batch_size": batch_sizes, "shrinkage": shrinkages}
search = GridSearchCV(whiten, grid, cv=folds).fit(X, y)
likelihood = search.cv_results_["mean_test_score"].reshape(accuracy.shape)
print(f"Alone: {search.best_params_}, log-likelihood {search.best_score_:.2f}")
print("Unshrunk, by batch_size:", ", ".join(f"{value:.2f}" for value in likelihood[:, 0]))

# %%
# The scale of the noise, in the pipeline and alone. Antithetic noise: nothing. Single noise, here
# with the number of the class as the target: the signal in the target is taken for curvature unless
# the noise drowns it. The likelihood shows this, the neighbours hardly.
scales = [0.01, 0.1, 1.0, 10.0, 100.0]
print(f"{'noise_scale':<28}", *(f"{scale:>8g}" for scale in scales))
for noise in ("antithetic", "single"):
    whiten.set_params(batch_size=1, noise=noise)
    for name, model, parameter, shrinkage in (
        ("accuracy", pipeline, "whiten__noise_scale", 1e-4),
        ("log-likelihood", whiten, "noise_scale", None),
    ):
        whiten.set_params(shrinkage=shrinkage)
        with warnings.catch_warnings(action="ignore", category=CalibrationWarning):  # the point
            search = GridSearchCV(model, {parameter: scales}, cv=folds).fit(X, y)
        scores = search.cv_results_["mean_test_score"]
        print(f"{f'{noise}: {name}':<28}", *(f"{score:>8.3f}" for score in scores))

# %%
# The picture: both searches. One wine is 0.006 of accuracy, and the best of 28 cells flatters; the
# search within folds does not. On these wines whitening is no better than scaling, whatever the
# setting. With the rows at hand, batches of more than one are for speed alone; elsewhere they are
# what somebody else sends.
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
