"""
Choosing a model that is to be attacked
=======================================

Scikit-learn's diabetes data in raw units: 442 patients, 10 features, among them the sex. Ridge
regression, the lasso, partial least squares and principal component regression compete in one grid
search by mean squared error: without attack, with measurements off by half a standard deviation in
Euclidean length (l2), and with each off by up to a fifth of its own (linf), always in the worst
direction. The sex cannot be tampered with. Expect the family to change with the attack, whose price
is the dual norm of the coefficients: their length for l2, the sum of their sizes for linf. These
are what ridge regression and the lasso keep small.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess.metrics import effective_coef, make_adversarial_scorer
from sklearn_gradhess.plotting import AdversarialRiskDisplay

X, y = load_diabetes(scaled=False, as_frame=True, return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=0)

# %%
# The attacks. Their unit is fixed once, from the training data: taken anew from every fold, it
# would attack every model by another amount. A budget of zero freezes a column.
unit = X_train.std()
unit["sex"] = 0.0
attacks = {"l2": (0.5, 2), "linf": (0.2, np.inf)}
scores = {"plain": make_adversarial_scorer(0.0)}
for name, (radius, norm) in attacks.items():
    scores[name] = make_adversarial_scorer(radius, norm, feature_scale=unit)

# %%
# One grid of four families, fitted once for all three scores. No attack is run: for affine
# pipelines the worst case is known in closed form, whatever they are made of, and the scorers'
# ``explain`` says so: its :class:`~sklearn_gradhess.metrics.AdversarialRisk` is "exact".
pipeline = Pipeline([("scale", StandardScaler()), ("project", "passthrough"), ("model", Ridge())])
grid = [
    {"model": [Ridge()], "model__alpha": np.logspace(-1, 4, 11).tolist()},
    {"model": [Lasso()], "model__alpha": np.logspace(-1, 2, 7).tolist()},
    {"model": [PLSRegression()], "model__n_components": range(1, 10)},
    {"project": [PCA()], "project__n_components": range(1, 10), "model": [LinearRegression()]},
]
folds = KFold(5, shuffle=True, random_state=0)
search = GridSearchCV(pipeline, grid, scoring=scores, cv=folds, refit=False).fit(X_train, y_train)
choices = {"least squares": clone(pipeline).set_params(model=LinearRegression())}
for name in scores:
    best = search.cv_results_["params"][search.cv_results_[f"mean_test_{name}"].argmax()]
    chosen = clone(pipeline).set_params(**best)  # holds the grid's own model, hence the copy
    choices[f"chosen by {name} error"] = clone(chosen)

# %%
# What they are worth on patients that they have not seen.
print(f"{'Mean squared error, test data':<30}{'plain':>6}{'l2':>6}{'linf':>6}  features  model")
for name, model in choices.items():
    model.fit(X_train, y_train)
    errors = "".join(f"{-score(model, X_test, y_test):>6.0f}" for score in scores.values())
    n_used = np.sum(effective_coef(model, X_test).coef != 0)
    made_of = " + ".join(str(part) for _, part in model.steps[1:] if part != "passthrough")
    print(f"{name:<30}{errors}  {n_used:<8}  {made_of}")

# %%
# The picture: a whole curve over the radius costs no more than one point of it. Limits: the closed
# form needs predictions that are affine in the raw features, and the scorer refuses others; and 221
# patients tell the plain errors of such models hardly apart.
figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
for ax, (name, (radius, norm)) in zip(axes, attacks.items(), strict=True):
    display = AdversarialRiskDisplay.from_estimators(
        choices, X_test, y_test, radii=np.linspace(0, 2 * radius, 41), norm=norm,
        feature_scale=unit, ax=ax,
    )  # fmt: skip
    ax.axvline(radius, color="0.6", linewidth=0.8)
    ax.set(xlabel="Radius of the attack (standard deviations)", ylabel="Mean squared error",
           title=f"Diabetes, test data, {name} attack; the search is at the line")  # fmt: skip
