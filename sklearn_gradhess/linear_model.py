"""Stochastic gradient descent that needs no learning rate and no scaling."""

from sklearn_gradhess._classifier import PreconditionedSGDClassifier
from sklearn_gradhess._regressor import PreconditionedSGDRegressor

__all__ = ["PreconditionedSGDClassifier", "PreconditionedSGDRegressor"]
