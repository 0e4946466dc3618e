r"""The scale of gradients that somebody else took, as the gradient of the intercept shows it.

The intercept's coordinate of z = (1, x) is one, so its gradient shows the target noise and nothing
else: for least squares the half differences h of n rows a batch have ``E[h_0^2] = f^2 tau/n``, tau
the variance of the noise and f the factor between the gradients and those of the mean half loss.
With tau = n what is seen, over what is calibrated, is f^2. Single noisy gradients have
``n Var(g_0) + E[g_0]^2 = f^2 (tau + m^2)`` (`_moments.remove_nuisance`), to be held against
tau + m^2; m^2, from Hotelling's statistic, does not depend on f.

A mean of k squares is judged as a multiple of chi-square, of k degrees of freedom for Gaussian g_0
and of fewer for heavier tails: for k = 5 as for k = 1e6.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammainccinv, gammaincinv

__all__ = ["NoiseSeen", "noise_seen", "swap_intercept"]

# Probability that a sound scale is called wrong, either way: that of five standard errors
_RARE = 3e-7
# Scales that agree to this are never told apart, however many the gradients
_TOLERANCE = 1e-3


class NoiseSeen(NamedTuple):
    """Total target noise that the intercept's gradient shows, over the calibrated one.

    Attributes
    ----------
    ratio : float
        One where all is well, NaN where it does not show; the square of the gradients' factor.
    degrees : float
        The ratio scatters as chi-square of that many degrees of freedom, over them: with a
        relative standard error of ``sqrt(2/degrees)``.
    """

    ratio: float
    degrees: float

    @property
    def limits(self) -> tuple[float, float]:
        """What sampling alone keeps the ratio between."""
        if not 0 < self.degrees < np.inf:
            return 0.0, np.inf
        half = self.degrees / 2
        low, high = gammaincinv(half, _RARE) / half, gammainccinv(half, _RARE) / half
        return min(float(low), 1 - _TOLERANCE), max(float(high), 1 + _TOLERANCE)

    @property
    def too_large(self) -> bool:
        """Whether there is too much noise, beyond sampling error."""
        return bool(self.ratio > self.limits[1])

    @property
    def mismatched(self) -> bool:
        """Whether the scale is wrong either way, beyond sampling error."""
        return self.too_large or bool(self.ratio < self.limits[0])

    def over(self, ratio: float) -> "NoiseSeen":
        """Return what is seen, held against another multiple of the calibrated noise."""
        return NoiseSeen(self.ratio / ratio, self.degrees)

    def explain(
        self,
        batch_size: float,
        *,
        noise_scale: float = 1.0,
        gradient_scale: float = 1.0,
        other_end: "NoiseSeen | None" = None,
    ) -> tuple[str, str]:
        """Say what is seen; and the likely cause, with the argument to change.

        Parameters
        ----------
        batch_size : float
            Rows in a batch.
        noise_scale : float, default=1.0
            Total noise as a multiple of the calibrated one.
        gradient_scale : float, default=1.0
            What the gradients have been divided by.
        other_end : NoiseSeen, default=None
            What the coordinate at the other end shows, where the intercept might be instead.

        Returns
        -------
        fact, way_out : str
            `way_out` is empty where no common factor explains the ratio.
        """
        total = noise_scale * batch_size
        fact = (
            f"The intercept's gradient shows a total target noise of {self.ratio * total:.3g}, not "
            f"the calibrated {total:.3g}: {self.ratio:.3g} times as much."
        )
        ways = []
        ratio, said, reason = self._likely_cause(float(batch_size)) or (self.ratio, "", "")
        if said:
            scale = np.sqrt(ratio) * gradient_scale
            reason = "the mean half loss itself" if scale == 1.0 else reason
            ways.append(
                f"The gradients look {said} times those of the mean half loss, as those of "
                f"{reason} would: pass gradient_scale={scale:.6g}."
            )
        elif reason:  # of the noise
            ways.append(reason)
        if other_end is not None and not np.isnan(other_end.ratio) and not other_end.mismatched:
            ways.append(
                "The column at the other end shows the calibrated noise: set intercept_position "
                "to the end where the intercept's gradient is."
            )
        return fact, " ".join(ways)

    def _likely_cause(self, n: float) -> tuple[float, str, str] | None:
        """(ratio, factor in words, cause) of the common mistake that is nearest, if it is near."""
        if not 0 < self.ratio < np.inf:
            return None
        common = [c for c in _common_causes(n) if self.over(c[0]).near and c[0] != 1.0]
        return min(common, key=lambda c: abs(np.log(self.ratio / c[0])), default=None)

    @property
    def near(self) -> bool:
        """Whether the ratio is one to sampling error, or to a tenth where that is smaller."""
        return not self.mismatched or abs(self.ratio - 1) < 0.1


def _common_causes(n: float) -> tuple[tuple[float, str, str], ...]:
    # In the order in which equal ones are named
    no_half, summed = "a loss without the half, as MSELoss", "a sum over the batch, not its mean"
    return (
        (4.0, "2", no_half),
        (n**2, f"batch_size = {n:g}", summed),
        (4 * n**2, f"2 batch_size = {2 * n:g}", f"{summed}, of {no_half}"),
        (0.25, "1/2", "a half too many, or clean gradients in the place of those at y - xi"),
        (1 / n**2, f"1/batch_size = {1 / n:.3g}", "a mean over the batch taken twice"),
        (0.25 / n**2, f"1/(2 batch_size) = {0.5 / n:.3g}", "a mean taken twice, and a half"),
        (1 / n, "", "Was noise of variance 1 drawn, where batch_size is called for?"),
        (n, "", "Was noise of standard deviation batch_size drawn, where that is the variance?"),
    )


def noise_seen(
    intercept: npt.ArrayLike,
    antithetic: npt.ArrayLike | None = None,
    *,
    batch_size: float,
    noise_scale: float = 1.0,
    excess_risk: float = 0.0,
    excess_risk_error: float = 0.0,
) -> NoiseSeen:
    """Total target noise that gradients of the intercept show, over the calibrated one.

    Parameters
    ----------
    intercept : array-like of shape (n_batches,)
        Gradient of the intercept in each batch.
    antithetic : array-like of shape (n_batches,), default=None
        The same at targets y - xi; None for single noisy gradients.
    batch_size : float
        Rows in a batch.
    noise_scale : float, default=1.0
        Total noise as a multiple of the calibrated one.
    excess_risk, excess_risk_error : float, default=0.0
        For single noise: m^2, which the gradients show too, and its standard error.

    Returns
    -------
    seen : NoiseSeen
        Its `degrees` come from the kurtosis of the gradients, or of Gaussian ones if that is more.
    """
    g = np.asarray(intercept, dtype=np.float64)
    total, mean2 = noise_scale * batch_size, 0.0
    if antithetic is None:
        excess_risk, mean2 = max(excess_risk, 0.0), float(np.mean(g)) ** 2
        g = g - g.mean()
    else:
        g, excess_risk, excess_risk_error = 0.5 * (np.asarray(antithetic) - g), 0.0, 0.0
    k = len(g) - (antithetic is None)
    if k < 1 or not np.isfinite(excess_risk):
        return NoiseSeen(np.nan, 0.0)
    largest = np.abs(g).max() or 1.0
    squares = (g / largest) ** 2
    expected = total + excess_risk
    ratio = (batch_size * squares.sum() / k * largest**2 + mean2) / expected
    variance = max(np.mean(squares**2) / np.mean(squares) ** 2 - 1, 2.0) if squares.any() else 2.0
    return NoiseSeen(float(ratio), float(2 / (variance / k + (excess_risk_error / expected) ** 2)))


def swap_intercept(gradients: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Put the last column, where torch has the bias, in front."""
    return np.roll(gradients, 1, axis=1)
