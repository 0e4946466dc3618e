"""Calibrated target noise: how much to inject, and the draws.

Target noise whose variance equals the batch size makes the covariance of batch gradients equal to
the Hessian, up to a nuisance of relative size 2 m^2/n that antithetic pairs do not have (MATH
section 2; arXiv 2601.18546, Lemma 4.2, for Gaussian noise and features). Everything in the package
that adds noise to a target takes its variance and its draws from here.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import numpy.typing as npt

__all__ = ["calibrated_variance", "draw_target_noise"]

RandomStateLike = int | np.random.RandomState | np.random.Generator | None


@overload
def calibrated_variance(
    batch_size: float,
    *,
    inherent_variance: float = ...,
    noise_scale: float = ...,
    curvature: float = ...,
) -> float: ...
@overload
def calibrated_variance(
    batch_size: npt.ArrayLike,
    *,
    inherent_variance: npt.ArrayLike = ...,
    noise_scale: npt.ArrayLike = ...,
    curvature: npt.ArrayLike = ...,
) -> npt.NDArray[np.float64]: ...
def calibrated_variance(
    batch_size: npt.ArrayLike,
    *,
    inherent_variance: npt.ArrayLike = 0.0,
    noise_scale: npt.ArrayLike = 1.0,
    curvature: npt.ArrayLike = 1.0,
) -> float | npt.NDArray[np.float64]:
    """Variance of the target noise to inject so that the total is calibrated.

    The total target-noise variance that turns the covariance of batch gradients into
    `noise_scale` times the Hessian is ``noise_scale * batch_size * curvature``. What the targets
    carry already is subtracted from it.

    Parameters
    ----------
    batch_size : int or array-like
        Number of rows in a batch; n in the formulas.
    inherent_variance : float or array-like, default=0.0
        Variance of the noise that is in the targets already, in squared units of the target. Zero
        is the blind rule: it recovers the Hessian times ``1 + inherent / total``.
    noise_scale : float or array-like, default=1.0
        Multiple of the calibrated variance. The gradients' covariance is multiplied by it too.
    curvature : float or array-like of shape (n_samples,), default=1.0
        Second derivative of the loss with respect to the raw prediction. One for the squared loss;
        for any other loss an array, one value a row. `inherent_variance` is not multiplied by it:
        for a dispersion phi, which is what `GradientCovarianceEstimator` calls `inherent_variance`
        beyond the squared loss, pass ``phi * curvature``.

    Returns
    -------
    variance : float or ndarray
        Variance to inject; a float when every argument is a scalar, broadcast otherwise.

    Raises
    ------
    ValueError
        If an argument is negative, NaN or infinite (batch_size and noise_scale: not positive), or
        if the inherent noise exceeds the total.

    References
    ----------
    arXiv 2601.18546, Lemma 4.2 and section 5; MATH sections 2 and 3.

    Examples
    --------
    >>> from sklearn_gradhess.noise import calibrated_variance
    >>> calibrated_variance(64)
    64.0
    >>> calibrated_variance(64, inherent_variance=4.0)
    60.0
    >>> calibrated_variance(64, curvature=[0.25, 0.1])
    array([16. ,  6.4])
    """
    n, inherent, scale, v = (
        np.asarray(a, dtype=np.float64)
        for a in (batch_size, inherent_variance, noise_scale, curvature)
    )
    for name, value, ok, rule in (
        ("batch_size", n, n > 0, "> 0"),
        ("inherent_variance", inherent, inherent >= 0, ">= 0"),
        ("noise_scale", scale, scale > 0, "> 0"),
        ("curvature", v, v >= 0, ">= 0"),
    ):
        if not np.all(ok & np.isfinite(value)):
            worst = value[~(ok & np.isfinite(value))].flat[0]
            raise ValueError(f"{name} must be finite and {rule}, got {worst:g}.")
    total = scale * n * v
    variance = total - inherent
    if np.any(variance < 0):
        worst_total, worst = (np.broadcast_to(a, variance.shape).flat[np.argmin(variance)]
                              for a in (total, inherent))  # fmt: skip
        raise ValueError(
            f"The inherent target noise has variance {worst:g}, more than the calibrated total "
            f"{worst_total:g} = noise_scale * batch_size * curvature: noise can be added, not "
            "taken away. Increase batch_size or noise_scale; or use noise='none', which divides "
            "inherent_variance out, or noise='antithetic', where inherent noise cancels."
        )
    return float(variance) if variance.ndim == 0 else variance


def draw_target_noise(
    variance: npt.ArrayLike,
    size: int | tuple[int, ...] | None = None,
    *,
    distribution: str = "normal",
    random_state: RandomStateLike = None,
) -> npt.NDArray[np.float64]:
    """Draw zero-mean target noise of a given variance.

    Parameters
    ----------
    variance : float or array-like
        Variance of each draw; must broadcast to `size`.
    size : int or tuple of int, default=None
        Shape of the draw. None takes the shape of `variance`.
    distribution : {"normal", "rademacher"}, default="normal"
        "rademacher" is plus or minus the standard deviation, with equal probability. It has the
        smallest fourth moment and is cheaper to draw; over one epoch it makes the batch gradients
        a CountSketch of the rows.
    random_state : int, RandomState instance, Generator or None, default=None
        Source of randomness. None draws from NumPy's global state, as scikit-learn does.

    Returns
    -------
    noise : ndarray of shape `size`
        The draws. A sequence of draws from one generator does not depend on how it is cut into
        calls.

    Raises
    ------
    ValueError
        If a variance is negative, NaN or infinite, or the distribution is unknown.

    References
    ----------
    MATH section 2 (calibration) and 4.1 (why Rademacher).

    Examples
    --------
    >>> from sklearn_gradhess.noise import draw_target_noise
    >>> draw_target_noise(9.0, 4, distribution="rademacher", random_state=0)
    array([ 3., -3., -3., -3.])
    """
    variance = np.asarray(variance, dtype=np.float64)
    if not np.all((variance >= 0) & np.isfinite(variance)):
        raise ValueError(
            f"variance must be finite and >= 0, got a minimum of {variance.min():g} and a "
            f"maximum of {variance.max():g}. See calibrated_variance."
        )
    shape = variance.shape if size is None else size
    rng = as_generator(random_state)
    if distribution == "rademacher":
        # One uniform a sign, not one bit: then a stream of draws does not depend on its chunks.
        noise = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    elif distribution == "normal":
        noise = rng.standard_normal(shape)
    else:
        raise ValueError(f"distribution must be 'normal' or 'rademacher', got {distribution!r}.")
    noise *= np.sqrt(variance)
    return noise


def as_generator(random_state: RandomStateLike) -> np.random.Generator:
    """Turn scikit-learn's notion of a random_state into a Generator that shares its stream."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    if random_state is None:
        random_state = np.random.mtrand._rand
    if isinstance(random_state, np.random.RandomState):
        bit_generator: Any = random_state._bit_generator
        return np.random.Generator(bit_generator)
    return np.random.default_rng(random_state)
