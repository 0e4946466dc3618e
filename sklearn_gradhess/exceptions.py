"""Warnings of the package; errors are the standard ones (ValueError, TypeError)."""

__all__ = ["CalibrationWarning"]


class CalibrationWarning(UserWarning):
    """The gradients at hand cannot carry the Hessian as well as was asked for.

    Raised for the failures that the method is known for and that show during the fit: too few
    batches for the dimension, a nuisance that drowns the calibrated noise, a singular covariance.
    `sklearn_gradhess.diagnostics.calibration_report` tells the rest.
    """
