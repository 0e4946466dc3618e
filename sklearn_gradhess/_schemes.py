"""From sums over batches, or gradients alone, to the Hessian: what each noise scheme remembers.

antithetic
    Half differences h of the gradients at targets y + xi and y - xi. ``E[h h']`` is the Hessian for
    any data, coefficients and label noise (MATH section 2.2); the half sums c are the clean
    gradients, of which only the means over a few groups of batches are kept.
single
    One noisy gradient a batch, the paper's scheme; biased by a nuisance of relative size m^2/n,
    which can be removed for Gaussian features (MATH section 2.1).
none
    Clean gradients. Calibrated by nothing but a known inherent noise.

A batch enters with the weight of its rows. Noise is calibrated to each batch's own weight, so an
incomplete batch is no special case: it is a small batch with a small weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._moments import GradientMoments, remove_nuisance
from sklearn_gradhess._preconditioner import factorize

__all__ = ["N_GROUPS", "Estimate", "GradientMemory"]

Array = npt.NDArray[np.float64]
# Groups of batches whose clean gradients are averaged. The product of the means of two different
# groups estimates m^2 without the bias that the noise of one mean adds to its own square; more
# groups than this would lower the variance of its noise part by less than 1/N_GROUPS.
N_GROUPS = 8


class Estimate(NamedTuple):
    """The Hessian and what comes with it; every coordinate of the gradient is included.

    Attributes
    ----------
    factor : ndarray of shape (p, p)
        Upper triangular factor of the Hessian.
    gradient_factor : ndarray of shape (p, p)
        Upper triangular factor of the covariance of the gradients as they were seen.
    mean_gradient : ndarray of shape (p,)
    excess_risk : float
        m^2; NaN where the gradients do not tell.
    correction : {"gaussian", "none"}
        What was done about the nuisance of single-noise gradients.
    """

    factor: Array
    gradient_factor: Array
    mean_gradient: Array
    excess_risk: float
    correction: str


@dataclass(frozen=True)
class GradientMemory:
    """All that is remembered of the gradients seen so far; a value, never changed in place.

    Attributes
    ----------
    noise : {"antithetic", "single", "none"}
        Noise scheme.
    noise_scale : float
        Total target-noise variance over batch size and curvature.
    has_intercept : bool
        Whether the first coordinate is the intercept's.
    moments : GradientMoments
        Of the half differences, or of the noisy gradients.
    clean_sums, clean_weights : ndarray of shape (N_GROUPS, p) and (N_GROUPS,)
        Antithetic scheme: weighted sums of the clean gradients, and the sums of the weights.
    squares : ndarray of shape (2,)
        Sums of squared weights for redraws that share rows alone, and all, see `n_effective`.
    n_batches, n_samples : int
        Complete batches and rows seen.
    n_given : int
        Batches whose gradients somebody else took.
    law : tuple of str
        Settings that all gradients must share, in words.
    dtype : dtype
        Of the coarsest rows: what they tell has no more digits.
    pending : tuple of (ndarray of shape (m, p), float, int, float) or None
        Sums, weight, number and squared weights of the rows of a batch that waits for more.
    kept : tuple of (gradients, weights) pairs, or None
        The gradients themselves, for shrinkage rules that need them.
    """

    noise: str
    noise_scale: float
    has_intercept: bool
    moments: GradientMoments
    clean_sums: Array
    clean_weights: Array
    squares: Array
    n_batches: int = 0
    n_samples: int = 0
    n_given: int = 0
    law: tuple[str, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float64))
    pending: tuple[Array, float, int, float] | None = None
    kept: tuple[tuple[Array, Array], ...] | None = None

    @classmethod
    def empty(
        cls,
        p: int,
        *,
        noise: str,
        noise_scale: float,
        has_intercept: bool,
        keep: bool,
        law: tuple[str, ...] = (),
    ) -> "GradientMemory":
        """Remember nothing yet, of gradients of `p` coordinates."""
        return cls(
            noise,
            noise_scale,
            has_intercept,
            GradientMoments.empty(p, centered=noise != "antithetic"),
            np.zeros((N_GROUPS, p)),
            np.zeros(N_GROUPS),
            np.zeros(2),
            law=law,
            kept=() if keep else None,
        )

    @property
    def offset(self) -> int:
        """Rows in the pending batch."""
        return self.pending[2] if self.pending else 0

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
        return float(self.moments.weight * self.moments.weight / squares)

    def check_law(self, law: tuple[str, ...]) -> None:
        """Raise ValueError if the gradients to come have another law than those seen."""
        for new, before in zip(law, self.law, strict=True):
            if new != before:
                raise ValueError(
                    f"{new}, but the gradients seen before had {before}. Use fit to start afresh."
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

    def of_dtype(self, dtype: np.dtype[Any]) -> "GradientMemory":
        """Return the memory with rows, or gradients, of this dtype among those seen."""
        return replace(self, dtype=min(self.dtype, dtype, key=lambda t: t.itemsize))

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

    def add_sums(
        self,
        runs: Iterable[tuple[int, Array, Array]],
        batch: npt.NDArray[np.int32],
        weights: Array | None,
        *,
        batch_size: int,
        inherent_variance: float,
    ) -> "GradientMemory":
        """Return the memory after a chunk of data.

        Parameters
        ----------
        runs : iterable of (start, per_batch, per_group)
            Batch sums as `_gradients` makes them: of ``sqrt(w v) eps z`` for each redraw and, for
            the schemes that need it batch by batch, of ``w r z`` last. Here eps are unit draws, v
            curvatures, r loss gradients and w sample weights.
        batch : ndarray of shape (n_samples,)
            Batch of each row; batch 0 goes on with the pending one.
        weights : ndarray of shape (n_samples,) or None
            Sample weights.
        batch_size : int
            Rows in a complete batch.
        inherent_variance : float
            Noise in the targets already, as a multiple of the curvature.
        """
        n_rows = np.bincount(batch)
        batch_weight = np.bincount(batch, weights).astype(np.float64)
        row_squares = np.bincount(batch, None if weights is None else weights**2).astype(float)
        clean_weights = np.zeros(N_GROUPS)
        np.add.at(clean_weights, np.arange(len(n_rows)) % N_GROUPS, batch_weight)
        clean_sums = np.zeros_like(self.clean_sums)
        moments, squares, kept, pending = self.moments, self.squares, self.kept, None
        for start, sums, per_group in runs:
            total = batch_weight[start : start + len(sums)].copy()
            rows = n_rows[start : start + len(sums)].copy()
            q = row_squares[start : start + len(sums)].copy()
            clean_sums[: len(per_group)] += per_group
            if start == 0 and self.pending:
                sums[0] += self.pending[0]
                total[0] += self.pending[1]
                rows[0] += self.pending[2]
                q[0] += self.pending[3]
            if rows[-1] < batch_size:  # only the very last batch can be incomplete
                pending = (sums[-1].copy(), float(total[-1]), int(rows[-1]), float(q[-1]))
                sums, total, q = sums[:-1], total[:-1], q[:-1]
            gradients, w = self._gradients(sums, total, inherent_variance)
            moments = moments.update(gradients, w)
            squares = squares + _squares(total, q, len(w))
            kept = kept if kept is None else (*kept, (gradients, w))
        # Batch b of this chunk is batch n_batches + b of all
        shift = self.n_batches % N_GROUPS
        return replace(
            self,
            moments=moments,
            squares=squares,
            clean_sums=self.clean_sums + np.roll(clean_sums, shift, axis=0),
            clean_weights=self.clean_weights + np.roll(clean_weights, shift),
            n_batches=self.n_batches + len(n_rows) - (pending is not None),
            n_samples=self.n_samples + len(batch),
            pending=pending,
            kept=kept,
        )

    def _gradients(
        self, sums: Array, total: Array, inherent_variance: float
    ) -> tuple[Array, Array]:
        """Turn the sums of each batch into its gradients, noise calibrated to its weight."""
        seen = total > 0
        sums, total = sums[seen], total[seen]
        if self.noise == "none":
            return sums[:, 0] / total[:, None], total
        n_redraws = sums.shape[1] - (self.noise == "single")
        # Var(xi_i) = v_i/w_i (noise_scale * total - inherent), xi_i = eps_i times its root; an
        # incomplete batch whose inherent noise alone exceeds its total gets none on top.
        inherent = inherent_variance if self.noise == "single" else 0.0
        amplitude = np.sqrt(np.maximum(self.noise_scale * total - inherent, 0.0)) / total
        gradients = sums[:, :n_redraws] * amplitude[:, None, None]
        if self.noise == "single":
            gradients = sums[:, n_redraws:] / total[:, None, None] - gradients
        return gradients.reshape(-1, sums.shape[2]), np.repeat(total, n_redraws)

    def add_gradients(
        self, gradients: Array, antithetic: Array | None, *, batch_size: int
    ) -> "GradientMemory":
        """Return the memory after gradients of complete batches, one a row."""
        k = len(gradients)
        w = np.full(k, float(batch_size))
        clean_sums, clean_weights = self.clean_sums.copy(), self.clean_weights.copy()
        if antithetic is not None:
            group = (self.n_batches + np.arange(k)) % N_GROUPS
            np.add.at(clean_sums, group, 0.5 * batch_size * (gradients + antithetic))
            np.add.at(clean_weights, group, w)
            gradients = 0.5 * (antithetic - gradients)
        return replace(
            self,
            moments=self.moments.update(gradients, w),
            squares=self.squares + k * float(batch_size) ** 2,
            clean_sums=clean_sums,
            clean_weights=clean_weights,
            n_batches=self.n_batches + k,
            n_samples=self.n_samples + k * batch_size,
            n_given=self.n_given + k,
            kept=self.kept if self.kept is None else (*self.kept, (gradients, w)),
        )

    def with_factor(self, factor: Array, *, n_batches: int, n_samples: int) -> "GradientMemory":
        """Return the memory of half differences whose second moment has this factor."""
        moments = replace(
            self.moments,
            factor=factor * np.sqrt(n_samples),
            weight=float(n_samples),
            n_gradients=n_batches,
        )
        squares = np.full(2, n_samples**2 / n_batches)
        return replace(
            self, moments=moments, squares=squares, n_batches=n_batches, n_samples=n_samples
        )

    def settled(self, inherent_variance: float) -> "GradientMemory":
        """Return the memory with the pending batch counted as the small batch that it is."""
        if not self.pending:
            return self
        sums, total, _, q = self.pending
        gradients, w = self._gradients(sums[None], np.array([total]), inherent_variance)
        return replace(
            self,
            moments=self.moments.update(gradients, w),
            squares=self.squares + _squares(np.array([total]), np.array([q]), len(w)),
            n_batches=self.n_batches + 1,
            pending=None,
            kept=self.kept if self.kept is None else (*self.kept, (gradients, w)),
        )

    def merge(self, other: "GradientMemory") -> "GradientMemory":
        """Return the memory of both; settle them first."""
        return replace(
            self,
            moments=self.moments.merge(other.moments),
            squares=self.squares + other.squares,
            clean_sums=self.clean_sums + other.clean_sums,
            clean_weights=self.clean_weights + other.clean_weights,
            n_batches=self.n_batches + other.n_batches,
            n_samples=self.n_samples + other.n_samples,
            n_given=self.n_given + other.n_given,
            dtype=self.of_dtype(other.dtype).dtype,
            kept=self.kept if self.kept is None else self.kept + (other.kept or ()),
        )

    def sums(self) -> tuple[Array, ...]:
        """Everything that was summed, to be looked at for overflow."""
        waiting = (self.pending[0],) if self.pending else ()
        return self.moments.factor, self.moments.mean, self.clean_sums, *waiting

    def noise_ratio(self, excess_risk: float, *, includes_excess: bool) -> float:
        """Total target noise that the intercept's gradient shows, over the calibrated total."""
        if not self.has_intercept or self.noise == "none" or not self.moments.weight:
            return np.nan
        shown = self.moments.covariance_factor()[0, 0] ** 2
        if self.noise == "single":
            # n Cov(g_0) = tau + m^2 - a^2, a = mean(g_0): see remove_nuisance
            n = self.moments.weight / self.moments.n_gradients
            shown += (self.moments.mean[0] ** 2 - (0.0 if includes_excess else excess_risk)) / n
        return float(shown / self.noise_scale)

    def kept_gradients(self, location: Array) -> Array:
        """Return the gradients of the centred features, about their mean and of equal weight."""
        if self.kept is None:
            raise ValueError(
                "shrinkage='ledoit_wolf' and 'oas' need the gradients seen before, which were not "
                "kept. Set shrinkage before the first fit, or use fit to start afresh."
            )
        w = np.concatenate([w for _, w in self.kept])
        rows = np.concatenate([g for g, _ in self.kept])
        if self.moments.centered:
            rows = rows - self.moments.mean
        if self.has_intercept:
            rows = rows[:, 1:] - rows[:, :1] * location
        return rows * np.sqrt(w / w.mean())[:, None]

    def estimate(
        self, *, correct: bool, inherent_variance: float, includes_excess: bool
    ) -> Estimate:
        """Estimate the Hessian from what was seen.

        Parameters
        ----------
        correct : bool
            Remove the nuisance of single-noise gradients, if that is possible.
        inherent_variance : float
            Noise in the targets already; the only calibration that clean gradients have.
        includes_excess : bool
            Whether the inherent variance was taken from residuals, and so includes m^2.
        """
        root = self.moments.covariance_factor()
        if self.noise == "antithetic":
            factor = root / np.sqrt(self.noise_scale)
            weight = self.clean_weights.sum()
            mean = self.clean_sums.sum(axis=0) / weight if weight else self.clean_sums[0]
            return Estimate(factor, root, mean, self._clean_excess_risk(factor), "none")
        mean = self.moments.mean
        total_scale = self.noise_scale
        if self.noise == "none":
            n = self.moments.weight / max(self.moments.n_gradients, 1)
            total_scale = inherent_variance / n
        if not total_scale:
            return Estimate(root, root, mean, np.nan, "none")
        clean = remove_nuisance(
            self.moments,
            has_intercept=self.has_intercept,
            total_scale=total_scale,
            total_includes_excess=includes_excess,
        )
        if clean is None:
            return Estimate(root / np.sqrt(total_scale), root, mean, np.nan, "none")
        factor, excess_risk = clean
        if not correct:
            return Estimate(root / np.sqrt(total_scale), root, mean, excess_risk, "none")
        return Estimate(factor, root, mean, excess_risk, "gaussian")

    def _clean_excess_risk(self, factor: Array) -> float:
        """m^2 as the mean product, in the inverse Hessian, of the means of different groups."""
        preconditioner = factorize(factor)
        k = self.moments.n_gradients
        pairs = self.clean_weights.sum() ** 2 - np.sum(self.clean_weights**2)
        if k <= preconditioner.rank + 1 or pairs <= 0:
            return np.nan
        # E[S^-1] = k/(k - p - 1) Sigma^-1 for a Wishart S (MATH section 5.1)
        debias = (k - preconditioner.rank - 1) / k
        sums = np.vstack([self.clean_sums.sum(axis=0), self.clean_sums])
        squares = np.einsum("gp,gp->g", sums, preconditioner.solve(sums))
        return max(float(debias * (squares[0] - squares[1:].sum()) / pairs), 0.0)


def _squares(total: Array, row_squares: Array, n_gradients: int) -> Array:
    """Squared weights of batches and their redraws, see `GradientMemory.n_effective`."""
    r = n_gradients / max(int(np.count_nonzero(total)), 1)
    squares = np.sum(total**2)
    return r * np.array([squares + (r - 1) * np.sum(row_squares), r * squares])
