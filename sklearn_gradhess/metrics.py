"""What the worst attack does to a prediction: exact metrics, scorers, and estimates."""

from sklearn_gradhess._adversarial_metrics import (
    adversarial_accuracy,
    adversarial_loss,
    adversarial_mean_absolute_error,
    adversarial_mean_squared_error,
)
from sklearn_gradhess._affine import EffectiveCoef, effective_coef
from sklearn_gradhess._attacked_rows import certified_radius, worst_case_inputs
from sklearn_gradhess._gradient_risk import GradientAdversarialRisk, gradient_adversarial_risk
from sklearn_gradhess._options import AdversarialRisk
from sklearn_gradhess._risk import dual_norm, gaussian_adversarial_risk
from sklearn_gradhess._scorer import make_adversarial_scorer

__all__ = [
    "AdversarialRisk",
    "EffectiveCoef",
    "GradientAdversarialRisk",
    "adversarial_accuracy",
    "adversarial_loss",
    "adversarial_mean_absolute_error",
    "adversarial_mean_squared_error",
    "certified_radius",
    "dual_norm",
    "effective_coef",
    "gaussian_adversarial_risk",
    "gradient_adversarial_risk",
    "make_adversarial_scorer",
    "worst_case_inputs",
]
