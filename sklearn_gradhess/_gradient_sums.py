"""What gradients add up to, and what these sums tell of their noise."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._batches import PendingBatch
from sklearn_gradhess._low_rank import LowRankMoments
from sklearn_gradhess._moments import GradientMoments

__all__ = ["GradientSums"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GradientSums:
    """All that is remembered of the gradients seen so far: sums, and questions to them.

    Attributes
    ----------
    noise : {"antithetic", "single", "none"}
        Noise scheme.
    noise_scale : float
        Total target-noise variance over batch size and curvature.
    inherent_variance : float or "estimate"
        Noise in the targets already, as a multiple of the curvature.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    kurtosis : float
        Fourth moment of the noise over its squared variance.
    moments : GradientMoments or LowRankMoments
        Of the half differences, or of the noisy gradients; or of clean gradients and noise of unit
        scale side by side, see `GradientMemory.calibrated`.
    clean_sums, clean_weights : ndarray of shape (N_GROUPS, p) and (N_GROUPS,)
        Antithetic scheme: weighted sums of the clean gradients, and the sums of the weights.
    squares : ndarray of shape (2,)
        Sums of squared weights for redraws that share rows alone, and all, see `n_effective`.
    noise_sums : ndarray of shape (4,)
        Over batches of weight W and squared weights Q, one for each redraw: of Q/W and of W times
        the total noise; over rows, of those to be estimated, of ``(w r)^2/W`` and of ``w v``.
    row_sums : ndarray of shape (2,)
        Over rows: of squared weights, and of weighted squared residuals; the latter NaN where they
        are not known, or belong to different coefficients.
    key : bytes
        Names the coefficients of the last chunk.
    n_batches, n_samples : int
        Complete batches and rows seen.
    n_given : int
        Batches whose gradients somebody else took.
    law : tuple of str
        Settings that all gradients must share, in words.
    dtype : dtype
        Of the coarsest rows: what they tell has no more digits.
    pending : PendingBatch or None
        A batch that waits for more rows.
    unit : float
        Sample weights are counted in multiples of it; zero before the first.
    kept : tuple of (gradients, weights, key), or None
        The gradients themselves, for shrinkage rules that need them.
    """

    noise: str
    noise_scale: float
    inherent_variance: float | str
    has_intercept: bool
    kurtosis: float
    moments: GradientMoments | LowRankMoments
    clean_sums: Array
    clean_weights: Array
    squares: Array
    noise_sums: Array
    row_sums: Array
    key: bytes = b""
    n_batches: int = 0
    n_samples: int = 0
    n_given: int = 0
    law: tuple[str, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float64))
    pending: PendingBatch | None = None
    unit: float = 0.0
    kept: tuple[tuple[Array, Array, bytes], ...] | None = None

    @property
    def whole(self) -> GradientMoments:
        """Moments of which nothing was cut."""
        assert isinstance(self.moments, GradientMoments)
        return self.moments

    @property
    def offset(self) -> int:
        """Rows in the pending batch."""
        return self.pending.rows if self.pending else 0

    def n_effective(self, clean_share: float = 0.0) -> float:
        """Independent gradients of equal weight whose covariance would be as accurate.

        Redraws lower the error of the noise, not that of the rows. Two of a batch of weight W,
        whose rows have squared weights of sum Q, have ``h h'`` correlated by Q/W^2 (MATH section
        2.3). So R of them count as ``R^2 Q + R (W^2 - Q)`` in the sum of squared weights, and
        Kish's rule does the rest: n R/(n + R - 1) gradients a batch of n rows. With single noise
        they share the clean gradient too: with its share a of the variance, a^2 of the above
        becomes R^2 W^2.
        """
        squares = self.squares @ [1 - clean_share**2, clean_share**2]
        if not 0 < squares < np.inf:  # nothing seen, or weights that have no square
            return float(self.moments.n_gradients)
        kish = self.moments.weight * self.moments.weight / squares
        return float(kish * self.moments.n_independent / self.moments.n_gradients)

    @property
    def estimates_inherent(self) -> bool:
        """Whether the inherent noise is taken from the residuals, and so includes m^2."""
        return self.noise != "antithetic" and self.inherent_variance == "estimate"

    @property
    def rows(self) -> float:
        """Independent rows of equal weight in a batch that would scatter as much as these."""
        shares = self.noise_sums[0]
        return float(self.moments.weight / shares) if shares else 1.0

    @property
    def inherent_share(self) -> float:
        """Inherent noise of the batches, as a multiple of the calibrated total."""
        if self.estimates_inherent:
            residual, curvature = self.noise_sums[2:]
            return float(residual / curvature) if curvature else 0.0
        if self.noise == "antithetic":
            return 0.0
        return float(self.inherent_variance) / self.rows

    @property
    def total_scale(self) -> float:
        """Total noise of the batches, as a multiple of the calibrated one of scale one."""
        if self.noise == "antithetic":
            return self.noise_scale
        if self.estimates_inherent:
            injected = self.noise_scale if self.noise == "single" else 0.0
            return max(injected, self.inherent_share)
        return float(self.noise_sums[1] / self.moments.weight) if self.moments.weight else 0.0

    def inherent_of(self, batch_size: int) -> float:
        """Inherent noise of a row, as `inherent_variance` would say it."""
        if self.estimates_inherent:
            return self.inherent_share * batch_size
        return 0.0 if self.noise == "antithetic" else float(self.inherent_variance)

    def injected_variance(self, batch_size: int) -> float:
        """Noise that a complete batch of rows of equal weight is given, per unit of curvature."""
        if self.noise == "none":
            return 0.0
        return max(self.noise_scale * batch_size - self.inherent_of(batch_size), 0.0)

    def clean_share(self, excess_risk: float) -> float:
        """Share of the clean gradient in the variance of a noisy one, as far as is known."""
        if self.noise != "single":
            return float(self.noise == "none")
        excess = 0.0 if self.estimates_inherent else excess_risk / self.rows
        total = self.total_scale + excess
        return 1.0 if np.isnan(total) else min((self.inherent_share + excess) / total, 1.0)

    def check_law(self, law: tuple[str, ...], inherent_variance: float | str) -> None:
        """Raise ValueError if the gradients to come have another law than those seen."""
        for new, before in zip(law, self.law, strict=True):
            if new != before:
                raise ValueError(
                    f"{new}, but the gradients seen before had {before}. Use fit to start afresh."
                )
        if self.noise != "antithetic" and inherent_variance != self.inherent_variance:
            raise ValueError(
                f"inherent_variance={inherent_variance!r}, but {self.inherent_variance!r} was "
                "taken off the noise of the gradients seen before. Use fit to start afresh."
            )

    def check_draws(self, n_redraws: int) -> None:
        """Raise ValueError if a batch waits for more rows with another number of draws."""
        if self.pending is None or self.noise == "none":
            return
        before = len(self.pending[0]) - (self.noise == "single")
        if n_redraws != before:
            raise ValueError(
                f"n_redraws={n_redraws}, but {self.offset} rows that wait for the rest of their "
                f"batch have {before} draw(s) of noise each. Set n_redraws={before}, or use fit to "
                "start afresh."
            )

    def check_layout(self, d: int, d_before: int, *, has_intercept: bool) -> None:
        """Raise ValueError if the gradients to come have other coordinates than those seen."""
        if d != d_before:
            raise ValueError(
                f"gradients has {d + has_intercept} columns with has_intercept={has_intercept}, "
                f"that is {d} features, but {d_before} were seen before. Did has_intercept change?"
            )
        if self.has_intercept and not has_intercept:
            raise ValueError(
                "The gradients seen before had the intercept's column, these do not. Pass it in "
                "column 0 with has_intercept=True, or use assume_centered=True from the start."
            )

    def sums(self) -> tuple[Array, ...]:
        """Everything that was summed, to be looked at for overflow."""
        waiting = (self.pending.sums,) if self.pending else ()
        return *self.moments.sums(), self.clean_sums, *waiting

    def mean_gradient(self) -> Array:
        """Mean of the clean gradients."""
        if self.noise != "antithetic":
            return self.moments.mean
        weight = self.clean_weights.sum()
        return self.clean_sums.sum(axis=0) / weight if weight else self.clean_sums[0]
