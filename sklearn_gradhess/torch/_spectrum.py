"""The top of a spectrum without the matrix: from the Gram matrix of the gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from sklearn.utils import check_array, check_scalar

__all__ = ["top_eigenpairs"]

_COLUMNS = 2**14  # parameters that are looked at together, in double precision


def top_eigenpairs(
    noise_gradients: Any, *, n_components: int = 10
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.floating]]:
    r"""Largest eigenvalues of the curvature, where parameters are too many for a matrix.

    With the k half differences as rows of H the estimate is ``H' H / k``, of size p x p. Its
    nonzero eigenvalues are those of the k x k Gram matrix ``H H' / k``, whose eigenvectors a give
    its own as ``H' a``. Nothing of size p x p is made.

    Parameters
    ----------
    noise_gradients : array-like of shape (n_batches, n_parameters)
        Half differences of the pairs: ``noisy_gradients(...).noise_gradients``.
    n_components : int, default=10
        Number of eigenvalues, at most n_batches.

    Returns
    -------
    eigenvalues : ndarray of shape (n_components,)
        Of the estimate, the largest first. They are larger than those of the Gauss-Newton matrix
        by about its trace over n_batches, which is little for eigenvalues that stand out.
    eigenvectors : ndarray of shape (n_components, n_parameters)
        One a row, of length one, or zero where the eigenvalue is; in the precision of the
        gradients.

    Raises
    ------
    ValueError
        If the gradients are not finite, or n_components is not within 1 and n_batches.

    References
    ----------
    MATH section 9.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradhess.torch import noisy_gradients, top_eigenpairs
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(50, 300), torch.nn.Tanh(), torch.nn.Linear(300, 1)
    ... )
    >>> loader = [(torch.randn(32, 50), torch.randn(32, 1)) for _ in range(20)]
    >>> pairs = noisy_gradients(net, loader, torch.nn.MSELoss())
    >>> eigenvalues, eigenvectors = top_eigenpairs(pairs.noise_gradients, n_components=3)
    >>> eigenvectors.shape
    (3, 15601)
    """
    H = check_array(noise_gradients, dtype=[np.float64, np.float32], input_name="noise_gradients")
    k, p = H.shape
    check_scalar(n_components, "n_components", int, min_val=1, max_val=k)
    blocks = [slice(start, start + _COLUMNS) for start in range(0, p, _COLUMNS)]
    gram = np.zeros((k, k))
    for block in blocks:
        part = H[:, block].astype(np.float64)
        gram += part @ part.T / k
    values, vectors = eigh(gram, subset_by_index=(k - n_components, k - 1))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    # What is within rounding of zero has no direction.
    known = values > k * np.finfo(np.float64).eps * max(values[0], np.finfo(np.float64).tiny)
    vectors = np.where(known, vectors / np.sqrt(k * np.where(known, values, 1.0)), 0.0)
    directions = np.empty((n_components, p), dtype=H.dtype)
    for block in blocks:
        directions[:, block] = vectors.T @ H[:, block].astype(np.float64)
    return values, directions
