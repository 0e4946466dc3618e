"""The Hessian hidden in gradients, scikit-learn style.

noise          how much target noise turns the covariance of batch gradients into the Hessian
covariance     GradientCovarianceEstimator: the Hessian from data or from gradients alone; whitening
linear_model   regression and classification by SGD, preconditioned with that Hessian
federated      the same of rows that stay with holders who send gradients and nothing else
metrics        risk under attack: exact, as a scorer for searches, or from gradients alone
plotting       displays of calibration, spectra, convergence, and risk against radius
diagnostics    how many batches are needed, and what may be wrong with an estimate
datasets       regressions whose Hessian is known
torch          curvature of PyTorch modules; needs the extra `torch`, never imported from here
"""

from sklearn_gradhess.covariance import GradientCovarianceEstimator, gradient_covariance
from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.linear_model import (
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
)

__all__ = [
    "CalibrationWarning",
    "GradientCovarianceEstimator",
    "PreconditionedSGDClassifier",
    "PreconditionedSGDRegressor",
    "gradient_covariance",
]
__version__ = "0.2.0"
