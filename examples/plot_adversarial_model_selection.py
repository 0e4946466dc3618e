"""
Choosing a model that is to be attacked
=======================================

Scikit-learn's diabetes data in raw units: 442 patients, 10 features, among them the sex. Ridge
regression, partial least squares and principal component regression compete in one grid search;
once by mean squared error, once by the same error where every measurement may be off by a fifth of
its standard deviation, all at once and in the worst direction. The sex cannot be tampered with.
"""

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess.metrics import dual_norm, effective_coef, make_adversarial_scorer
from sklearn_gradhess.plotting import AdversarialRiskDisplay

X, y = load_diabetes(scaled=False, as_frame=True, return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=0)

# %%
# The attack. Its unit is fixed once, from the training data: taken anew from every fold, it would
# attack every model by another amount. A budget of zero freezes a column.
unit, radius = X_train.std(), 0.2
unit["sex"] = 0.0
attack = {"norm": np.inf, "feature_scale": unit}
scorer = make_adversarial_scorer(radius, **attack)

# %%
# One grid of three families, searched with either score. No attack is run: for affine pipelines the
# worst case is known in closed form, whatever they are made of.
steps = [("scale", StandardScaler()), ("project", "passthrough"), ("model", Ridge())]
alphas, sizes = np.logspace(-1, 4, 11), range(1, 10)
grid = [
    {"model": [Ridge()], "model__alpha": alphas},
    {"model": [PLSRegression()], "model__n_components": sizes},
    {"project": [PCA()], "project__n_components": sizes, "model": [LinearRegression()]},
]
folds = KFold(5, shuffle=True, random_state=0)
choices = {}
scores = {"Chosen without attack": "neg_mean_squared_error", "Chosen under attack": scorer}
for name, scoring in scores.items():
    search = GridSearchCV(Pipeline(steps), grid, scoring=scoring, cv=folds).fit(X_train, y_train)
    told = ", ".join(f"{key.split('__')[-1]}={value}" for key, value in search.best_params_.items())
    print(f"{name}: {told}")
    choices[name] = search.best_estimator_
choices["Least squares"] = Pipeline([("model", LinearRegression())]).fit(X_train, y_train)

# %%
# What they are worth on patients that they have not seen.
print(f"\n{'Mean squared error on the test data':<36}{'plain':>7}{'attacked':>10}{'dual norm':>11}")
for name, model in choices.items():
    plain = np.mean((y_test - model.predict(X_test)) ** 2)
    dual = dual_norm(effective_coef(model, X_test).coef, np.inf, scale=unit)
    print(f"{name:<36}{plain:>7.0f}{-scorer(model, X_test, y_test):>10.0f}{dual:>11.1f}")

# %%
# The picture: the whole curve over the radius costs no more than one point of it.
display = AdversarialRiskDisplay.from_estimators(
    choices, X_test, y_test, radii=np.linspace(0, 0.5, 51), **attack
)
display.ax_.axvline(radius, ymax=0.75, color="0.6", linewidth=0.8)
display.ax_.annotate("radius of the search", (radius, 0.02), xytext=(4, 0), color="0.4",
                     xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
display.ax_.set(title="Diabetes, test data", xlabel="Radius of the attack (standard deviations)")
display.figure_.savefig("adversarial_model_selection.png", dpi=120, bbox_inches="tight")
print("Saved adversarial_model_selection.png")
