"""What an installed package must do outside the checkout, without its optional libraries."""

import importlib.metadata
import importlib.resources
import sys

from sklearn.datasets import load_breast_cancer, load_diabetes

import sklearn_gradhess
from sklearn_gradhess import (
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
)
from sklearn_gradhess.metrics import make_adversarial_scorer

assert sklearn_gradhess.__file__.startswith(sys.prefix), sklearn_gradhess.__file__
assert importlib.metadata.version("sklearn_gradhess") == sklearn_gradhess.__version__
assert importlib.resources.files("sklearn_gradhess").joinpath("py.typed").is_file()

X, y = load_diabetes(return_X_y=True, scaled=False)
assert GradientCovarianceEstimator(random_state=0).fit(X, y).transform(X).shape == X.shape
model = PreconditionedSGDRegressor(random_state=0).fit(X, y)
assert model.score(X, y) > 0.5
assert make_adversarial_scorer(radius=0.1)(model, X, y) < 0
X, labels = load_breast_cancer(return_X_y=True)
assert (
    PreconditionedSGDClassifier(alpha=1e-3, random_state=0).fit(X, labels).score(X, labels) > 0.95
)
print(f"{sys.argv[1]}: installed and used")
