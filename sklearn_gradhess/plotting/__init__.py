"""Pictures, after scikit-learn's conventions for displays; matplotlib is imported to plot only."""

from sklearn_gradhess.plotting._adversarial_risk import AdversarialRiskDisplay
from sklearn_gradhess.plotting._convergence import ConvergenceDisplay
from sklearn_gradhess.plotting._hessian_spectrum import HessianSpectrumDisplay
from sklearn_gradhess.plotting._noise_calibration import NoiseCalibrationDisplay

__all__ = [
    "AdversarialRiskDisplay",
    "ConvergenceDisplay",
    "HessianSpectrumDisplay",
    "NoiseCalibrationDisplay",
]
