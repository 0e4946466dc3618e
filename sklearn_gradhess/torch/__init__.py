"""Curvature of PyTorch modules from calibrated target noise (extra `torch`).

noisy_gradients   pairs of batch gradients whose half differences have the Gauss-Newton matrix
NoisyGradients    what it returns, ready for `GradientCovarianceEstimator.partial_fit_gradients`
top_eigenpairs    largest eigenvalues and eigenvectors where parameters are too many for a matrix
TargetNoiseKFAC   experimental optimiser: Kronecker factors from that noise, no learning rate

Nothing else in the package imports this module, and it alone imports PyTorch.
"""

from sklearn_gradhess.torch._kfac import TargetNoiseKFAC
from sklearn_gradhess.torch._noise import NoisyGradients, noisy_gradients
from sklearn_gradhess.torch._spectrum import top_eigenpairs

__all__ = ["NoisyGradients", "TargetNoiseKFAC", "noisy_gradients", "top_eigenpairs"]
