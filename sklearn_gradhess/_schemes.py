"""From sums over batches, or gradients alone: what each noise scheme remembers.

antithetic
    Half differences h of the gradients at targets y + xi and y - xi. ``E[h h']`` is the Hessian for
    any data, coefficients and label noise (MATH section 2.2); the half sums c are the clean
    gradients, of which only the means over a few groups of batches are kept.
single
    One noisy gradient a batch, the paper's scheme; biased by a nuisance of relative size m^2/n,
    which can be removed for Gaussian features (MATH section 2.1). Where the inherent noise is to be
    estimated, clean and noise part are remembered side by side, and put together when the estimate
    is asked for: so no order of chunks matters.
none
    Clean gradients. Calibrated by nothing but an inherent noise, known or estimated.

A batch enters with the weight of its rows. Noise is calibrated to each batch's own weight, so an
incomplete batch is no special case: it is a small batch with a small weight. A row's residual is
one draw, however large its weight, while its target noise is drawn as for so many rows (MATH
section 2.4): what a batch has in inherent noise goes with its squared weights. All that is divided
out in the end is the total noise that the batches really had.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._batches import Batches, PendingBatch
from sklearn_gradhess._gradient_sums import GradientSums
from sklearn_gradhess._law import in_unit
from sklearn_gradhess._low_rank import LowRankMoments, sketch_size
from sklearn_gradhess._moments import GradientMoments
from sklearn_gradhess.noise import calibrated_variance

__all__ = ["N_GROUPS", "GradientMemory"]

Array = npt.NDArray[np.float64]
# Groups of batches whose clean gradients are averaged. The product of the means of two different
# groups estimates m^2 without the bias that the noise of one mean adds to its own square; more
# groups than this would lower the variance of its noise part by less than 1/N_GROUPS.
N_GROUPS = 8


@dataclass(frozen=True)
class GradientMemory(GradientSums):
    """Sums over gradients that grow by chunks and merge; a value, never changed in place."""

    @classmethod
    def empty(
        cls,
        p: int,
        *,
        noise: str,
        noise_scale: float,
        has_intercept: bool,
        keep: bool,
        inherent_variance: float | str = 0.0,
        kurtosis: float = 1.0,
        law: tuple[str, ...] = (),
        n_components: int | None = None,
    ) -> "GradientMemory":
        """Remember nothing yet, of gradients of `p` coordinates."""
        side_by_side = noise == "single" and inherent_variance == "estimate"
        moments: GradientMoments | LowRankMoments
        if n_components is None:
            moments = GradientMoments.empty(p * (1 + side_by_side), centered=noise != "antithetic")
        else:
            moments = LowRankMoments.empty(
                p - has_intercept,
                centered=noise != "antithetic",
                has_intercept=has_intercept,
                size=sketch_size(n_components),
            )
        return cls(
            noise,
            noise_scale,
            inherent_variance,
            has_intercept,
            kurtosis,
            moments,
            np.zeros((N_GROUPS, p)),
            np.zeros(N_GROUPS),
            np.zeros(2),
            np.zeros(4),
            np.zeros(2),
            law=law,
            kept=() if keep else None,
        )

    def in_unit(self, weights: Array | None, n: int = 1) -> tuple["GradientMemory", Array | None]:
        """Return the memory with a unit of weights, and these `n` weights in it."""
        unit, weights = in_unit(weights, n, self.unit)
        return replace(self, unit=unit), weights

    def begin(
        self, key: bytes, weights: Array | None, n: int, n_redraws: int
    ) -> tuple["GradientMemory", Array | None]:
        """Return the memory that a chunk of `n` rows goes to, and its weights; see `at`."""
        memory, weights = self.at(key).in_unit(weights, n)
        memory.check_draws(n_redraws)
        return memory, weights

    def of_dtype(self, dtype: np.dtype[Any]) -> "GradientMemory":
        """Return the memory with rows, or gradients, of this dtype among those seen."""
        return replace(self, dtype=min(self.dtype, dtype, key=lambda t: t.itemsize))

    def at(self, key: bytes) -> "GradientMemory":
        """Return the memory that goes on at the coefficients which the key names.

        The means of noisy gradients differ from coefficients to coefficients, so a batch of both
        would belong to no round: it is closed as the smaller batch that it is.
        """
        if key == self.key:
            return self
        memory = self if self.noise == "antithetic" else self.settled()
        if self.n_samples:
            memory = replace(memory, row_sums=memory.row_sums * [1.0, np.nan])
        return replace(memory, key=key)

    def refuse_inherent(self, batch_size: int, seen: float = 0.0) -> None:
        """Raise ValueError if the targets have more noise than the total; `seen` in the last chunk.

        A mean of N squares has the relative error sqrt(2/N): few rows have too much by chance, and
        in the end what they have is divided out.
        """
        if self.noise != "single":
            return
        memory = self.settled() if self.estimates_inherent else self
        inherent, total = memory.inherent_of(batch_size), self.noise_scale * batch_size
        chance = 5 * np.sqrt(2 / memory.n_samples) if self.estimates_inherent else 0.0
        if inherent * (1 - chance) > total:
            calibrated_variance(
                batch_size, inherent_variance=max(inherent, seen), noise_scale=self.noise_scale
            )

    def add_sums(
        self,
        runs: Iterable[tuple[int, Array, Array]],
        batch: npt.NDArray[np.int32],
        weights: Array | None,
        *,
        batch_size: int,
        residual: npt.NDArray[np.floating] | None = None,
        curvature: npt.NDArray[np.floating] | None = None,
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
        residual, curvature : ndarray of shape (n_samples,) or None
            r and v; None stands for all zero and all one.
        """
        batches = Batches.of(batch, weights, residual, curvature, estimated=self.estimates_inherent)
        n_batches, row_squares = len(batches.total), np.sum(batches.squares)
        clean_weights = np.zeros(N_GROUPS)
        np.add.at(clean_weights, np.arange(n_batches) % N_GROUPS, batches.total)
        clean_sums = np.zeros_like(self.clean_sums)
        memory = replace(self, pending=None)
        for start, sums, per_group in runs:
            part = batches.part(slice(start, start + len(sums)))
            clean_sums[: len(per_group)] += per_group
            if start == 0 and self.pending:
                sums[0] += self.pending.sums
                for column, before in zip(part, self.pending[1:], strict=True):
                    column[0] += before
            if part.rows[-1] < batch_size:  # only the very last batch can be incomplete
                last = (column[-1].item() for column in part)
                memory = replace(memory, pending=PendingBatch(sums[-1].copy(), *last))
                sums, part = sums[:-1], part.part(slice(-1))
            memory = memory._add_batches(sums, part)
        # Batch b of this chunk is batch n_batches + b of all
        shift = self.n_batches % N_GROUPS
        squared = np.nan if curvature is not None else _square(residual, weights)
        return replace(
            memory,
            clean_sums=self.clean_sums + np.roll(clean_sums, shift, axis=0),
            clean_weights=self.clean_weights + np.roll(clean_weights, shift),
            row_sums=self.row_sums + np.array([row_squares, squared]),
            n_batches=self.n_batches + n_batches - (memory.pending is not None),
            n_samples=self.n_samples + len(batch),
        )

    def _add_batches(self, sums: Array, batches: Batches) -> "GradientMemory":
        """Turn the sums of each batch into its gradients, noise calibrated to its weight."""
        seen = batches.total > 0
        if not seen.all():
            sums, batches = sums[seen], batches.part(seen)
        total = batches.total
        n_redraws = 1 if self.noise == "none" else sums.shape[1] - (self.noise == "single")
        gradients, noise = _calibrated(self, sums, batches)
        rows, w = gradients.reshape(-1, gradients.shape[2]), np.repeat(total, n_redraws)
        sums_over_batches = (
            n_redraws * np.sum(batches.shares * total),
            n_redraws * np.sum(noise * total),
            np.sum(batches.residual / total),
            np.sum(batches.curvature),
        )
        return replace(
            self,
            moments=self.moments.update(rows, w, b"" if self.noise == "antithetic" else self.key),
            squares=self.squares + batches.redrawn_squares(n_redraws),
            noise_sums=self.noise_sums + np.array(sums_over_batches),
            kept=self.kept if self.kept is None else (*self.kept, (rows, w, self.key)),
        )

    def add_gradients(
        self, gradients: Array, antithetic: Array | None, *, batch_size: int
    ) -> "GradientMemory":
        """Return the memory after gradients of complete batches, one a row."""
        k = len(gradients)
        w = np.full(k, float(batch_size))
        noise = batch_size * self.noise_scale
        if self.noise != "antithetic":
            inherent = float(self.inherent_variance)
            noise = inherent if self.noise == "none" else max(noise, inherent)
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
            noise_sums=self.noise_sums + np.array([k, k * noise, 0.0, 0.0]),
            row_sums=self.row_sums + np.array([k * batch_size, np.nan]),
            clean_sums=clean_sums,
            clean_weights=clean_weights,
            n_batches=self.n_batches + k,
            n_samples=self.n_samples + k * batch_size,
            n_given=self.n_given + k,
            kept=self.kept if self.kept is None else (*self.kept, (gradients, w, b"")),
        )

    def with_factor(self, factor: Array, *, n_batches: int, n_samples: int) -> "GradientMemory":
        """Return the memory of half differences whose second moment has this factor."""
        moments = replace(
            self.whole,
            factor=factor * np.sqrt(n_samples),
            weight=float(n_samples),
            n_gradients=n_batches,
        )
        squares = np.full(2, n_samples**2 / n_batches)
        return replace(
            self,
            moments=moments,
            squares=squares,
            n_batches=n_batches,
            n_samples=n_samples,
            unit=1.0,
        )

    def settled(self) -> "GradientMemory":
        """Return the memory with the pending batch counted as the small batch that it is."""
        if not self.pending:
            return self
        sums, *columns = self.pending
        batch = Batches(*(np.array([column]) for column in columns))
        memory = replace(self, pending=None, n_batches=self.n_batches + 1)
        return memory._add_batches(sums[None], batch)

    def calibrated(self) -> "GradientMemory":
        """Return the memory of noisy gradients, where noise and clean part were kept apart.

        What is injected is what the inherent noise leaves of the total; nothing, if it leaves none.
        """
        p = self.clean_sums.shape[1]
        if len(self.moments.mean) == p:
            return self
        injected = np.sqrt(max(self.noise_scale - self.inherent_share, 0.0))
        mix = np.vstack([np.eye(p), -injected * np.eye(p)])
        kept = self.kept and tuple((rows @ mix, w, key) for rows, w, key in self.kept)
        return replace(self, moments=self.whole.mapped(mix), kept=kept)

    def merge(self, other: "GradientMemory") -> "GradientMemory":
        """Return the memory of both; settle them first."""
        same = 1.0 if self.key == other.key else np.nan  # residuals of other coefficients
        return replace(
            self,
            moments=self._merged(other),
            squares=self.squares + other.squares,
            noise_sums=self.noise_sums + other.noise_sums,
            row_sums=self.row_sums + other.row_sums * np.array([1.0, same]),
            clean_sums=self.clean_sums + other.clean_sums,
            clean_weights=self.clean_weights + other.clean_weights,
            n_batches=self.n_batches + other.n_batches,
            n_samples=self.n_samples + other.n_samples,
            n_given=self.n_given + other.n_given,
            dtype=self.of_dtype(other.dtype).dtype,
            kept=self.kept if self.kept is None else self.kept + (other.kept or ()),
        )

    def _merged(self, other: "GradientMemory") -> GradientMoments | LowRankMoments:
        if isinstance(self.moments, LowRankMoments):
            assert isinstance(other.moments, LowRankMoments)
            return self.moments.merge(other.moments)
        return self.moments.merge(other.whole)


def _square(residual: npt.NDArray[np.floating] | None, weights: Array | None) -> float:
    """Weighted sum of squared residuals."""
    if residual is None:
        return 0.0
    return float(residual @ (residual if weights is None else weights * residual))


def _calibrated(memory: GradientMemory, sums: Array, batches: Batches) -> tuple[Array, Array]:
    """Gradients of each batch, noise calibrated to its weight, and the noise that they have."""
    total = batches.total
    # Var(xi_i) = v_i/w_i times a multiple of the batch's weight, xi_i = eps_i times its root. The
    # total counts the squared weights of rows whose residual is one draw; where that alone is too
    # much nothing is injected, and the batch counts with what it has.
    known = memory.noise != "antithetic" and not memory.estimates_inherent
    inherent = batches.shares * (float(memory.inherent_variance) if known else 0.0)
    if memory.noise == "none":
        return sums[:, :1] / total[:, None, None], inherent
    noise = np.maximum(memory.noise_scale, inherent)
    injected = 1.0 if memory.estimates_inherent else noise - inherent
    root = np.sqrt(injected / total)[:, None, None]
    if memory.noise == "antithetic":
        return sums * root, noise
    drawn, mean = sums[:, :-1] * root, sums[:, -1:] / total[:, None, None]
    if memory.estimates_inherent:
        return np.concatenate(np.broadcast_arrays(mean, drawn), axis=2), noise
    return mean - drawn, noise
