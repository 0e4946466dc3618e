"""Regressions whose true Hessian is known."""

from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter
from sklearn.utils import Bunch, check_scalar

from sklearn_gradhess.noise import as_generator

__all__ = ["make_hessian_regression"]

Array = npt.NDArray[np.float64]
_DISTRIBUTIONS = ("gaussian", "rademacher", "student_t", "correlated", "one_hot")
_STUDENT_DF = 5
_AUTOCORRELATION = 0.9


def make_hessian_regression(
    n_samples: int = 1000,
    n_features: int = 20,
    *,
    condition_number: float = 100.0,
    noise: float = 1.0,
    excess_risk: float = 10.0,
    distribution: str = "gaussian",
    random_state: Any = None,
) -> Bunch:
    """Make a linear regression together with its Hessian.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    n_features : int, default=20
        Number of features.
    condition_number : float, default=100.0
        Largest over smallest eigenvalue of the covariance; the eigenvalues fall geometrically
        from one. For "one_hot" the ratio of the frequencies of the most and least frequent level.
    noise : float, default=1.0
        Standard deviation of the Gaussian noise in the target.
    excess_risk : float, default=10.0
        m^2 at zero coefficients and intercept, ``coef' covariance coef``.
    distribution : {"gaussian", "rademacher", "student_t", "correlated", "one_hot"}, \
            default="gaussian"
        Law of the features. "gaussian": Gaussian, randomly rotated. "rademacher": independent signs
        of falling scale, the smallest kurtosis there is. "student_t": Student's t
        with 5 degrees of freedom, elliptical, rotated: heavy tails. "correlated": Gaussian,
        rotated, with autocorrelation 0.9 from row to row, so rows are not independent. "one_hot":
        indicators of one categorical variable of n_features + 1 levels, the first one dropped.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of randomness.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With `data` of shape (n_samples, n_features), `target` of shape (n_samples,), `coef` of
        shape (n_features,) and `intercept`, which made the target, `covariance` of shape
        (n_features, n_features), the true Hessian of the half mean squared error, and `location`
        of shape (n_features,), the true mean.

    Raises
    ------
    ValueError
        If the distribution is unknown or a number is out of range.
    TypeError
        If a number is none, or `n_samples` or `n_features` is not whole.

    Examples
    --------
    >>> from sklearn_gradhess.datasets import make_hessian_regression
    >>> made = make_hessian_regression(n_features=3, condition_number=1e4, random_state=0)
    >>> print(f"{made.coef @ made.covariance @ made.coef:.1f}")
    10.0
    """
    for name, value, low in (
        ("n_samples", n_samples, 1),
        ("n_features", n_features, 1),
        ("condition_number", condition_number, 1),
        ("noise", noise, 0),
        ("excess_risk", excess_risk, 0),
    ):
        check_scalar(value, name, Real)
        if not (np.isfinite(value) and value >= low):
            raise ValueError(f"{name} must be finite and >= {low}, got {value!r}.")
    for name, count in (("n_samples", n_samples), ("n_features", n_features)):
        if not isinstance(count, Integral):
            raise TypeError(f"{name} must be an int, got {count!r}: pass int({count!r}).")
    rng = as_generator(random_state)
    eigenvalues = np.geomspace(1.0, 1.0 / condition_number, n_features)
    location = np.zeros(n_features)
    if distribution == "one_hot":
        frequency = np.append(eigenvalues[:1], eigenvalues)
        frequency /= frequency.sum()
        location = frequency[1:]
        covariance = np.diag(location) - np.outer(location, location)
        levels = rng.choice(n_features + 1, size=n_samples, p=frequency)
        X = (levels[:, None] == np.arange(1, n_features + 1)).astype(np.float64)
    elif distribution == "rademacher":
        covariance = np.diag(eigenvalues)
        X = np.where(rng.random((n_samples, n_features)) < 0.5, -1.0, 1.0) * np.sqrt(eigenvalues)
    elif distribution in _DISTRIBUTIONS:
        rotation, _ = np.linalg.qr(rng.standard_normal((n_features, n_features)))
        root = np.sqrt(eigenvalues)[:, None] * rotation.T
        covariance = root.T @ root
        X = _rows(rng, n_samples, n_features, distribution) @ root
    else:
        raise ValueError(f"distribution must be one of {_DISTRIBUTIONS}, got {distribution!r}.")
    coef = rng.standard_normal(n_features)
    coef *= np.sqrt(excess_risk / (coef @ covariance @ coef))
    intercept = -float(location @ coef)
    target = X @ coef + intercept + noise * rng.standard_normal(n_samples)
    return Bunch(
        data=X,
        target=target,
        coef=coef,
        intercept=intercept,
        covariance=covariance,
        location=location,
    )


def _rows(rng: np.random.Generator, n: int, d: int, distribution: str) -> Array:
    """Rows of mean zero and identity covariance."""
    rows = rng.standard_normal((n, d))
    if distribution == "student_t":
        scale = rng.chisquare(_STUDENT_DF, size=(n, 1)) / (_STUDENT_DF - 2)
        rows /= np.sqrt(scale)
    elif distribution == "correlated":
        rows[1:] *= np.sqrt(1 - _AUTOCORRELATION**2)  # the first row is stationary already
        rows = lfilter([1.0], [1.0, -_AUTOCORRELATION], rows, axis=0)
    return rows
