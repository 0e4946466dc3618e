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
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


class _Pending(NamedTuple):
    """A batch that waits for more rows: sums, and what `_Batches` has of it."""

    sums: Array
    total: float
    rows: int
    squares: float
    residual: float
    curvature: float


class _Batches(NamedTuple):
    """Batches with their rows' weights: sum, number, sum of squares; noise that they had.

    residual is the sum of ``(w r)^2`` and curvature that of ``w v``, of rows whose inherent noise
    is to be estimated.
    """

    total: Any
    rows: Any
    squares: Any
    residual: Any
    curvature: Any

    def part(self, index: Any) -> "_Batches":
        """Return some of the batches."""
        return _Batches(*(column[index] for column in self))


@dataclass(frozen=True)
class GradientMemory:
    """All that is remembered of the gradients seen so far; a value, never changed in place.

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
        scale side by side, see `calibrated`.
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
    pending : _Pending or None
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
    pending: _Pending | None = None
    unit: float = 0.0
    kept: tuple[tuple[Array, Array, bytes], ...] | None = None

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

    def _inherent_of(self, batch_size: int) -> float:
        if self.estimates_inherent:
            return self.inherent_share * batch_size
        return 0.0 if self.noise == "antithetic" else float(self.inherent_variance)

    def injected_variance(self, batch_size: int) -> float:
        """Noise that a complete batch of rows of equal weight is given, per unit of curvature."""
        if self.noise == "none":
            return 0.0
        return max(self.noise_scale * batch_size - self._inherent_of(batch_size), 0.0)

    def refuse_inherent(self, batch_size: int, seen: float = 0.0) -> None:
        """Raise ValueError if the targets have more noise than the total; `seen` in the last chunk.

        A mean of N squares has the relative error sqrt(2/N): few rows have too much by chance, and
        in the end what they have is divided out.
        """
        if self.noise != "single":
            return
        memory = self.settled() if self.estimates_inherent else self
        inherent, total = memory._inherent_of(batch_size), self.noise_scale * batch_size
        chance = 5 * np.sqrt(2 / memory.n_samples) if self.estimates_inherent else 0.0
        if inherent * (1 - chance) > total:
            calibrated_variance(
                batch_size, inherent_variance=max(inherent, seen), noise_scale=self.noise_scale
            )

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
        batches = self._batches(batch, weights, residual, curvature)
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
                memory = replace(memory, pending=_Pending(sums[-1].copy(), *last))
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

    def _batches(
        self,
        batch: npt.NDArray[np.int32],
        weights: Array | None,
        residual: npt.NDArray[np.floating] | None,
        curvature: npt.NDArray[np.floating] | None,
    ) -> _Batches:
        rows = np.bincount(batch)
        total, squares = rows.astype(np.float64), rows.astype(np.float64)
        if weights is not None:
            total = np.bincount(batch, weights).astype(np.float64)
            squares = np.bincount(batch, weights**2).astype(np.float64)
        estimated = np.zeros((2, len(rows)))
        if self.estimates_inherent:
            w = np.ones(len(batch)) if weights is None else weights
            estimated[1] = total if curvature is None else np.bincount(batch, w * curvature)
            if residual is not None:
                estimated[0] = np.bincount(batch, (w * residual) ** 2)
        return _Batches(total, rows, squares, *estimated)

    def _add_batches(self, sums: Array, batches: _Batches) -> "GradientMemory":
        """Turn the sums of each batch into its gradients, noise calibrated to its weight."""
        seen = batches.total > 0
        if not seen.all():
            sums, batches = sums[seen], batches.part(seen)
        total = batches.total
        clean = self.noise != "antithetic"
        n_redraws = 1 if self.noise == "none" else sums.shape[1] - clean
        # Var(xi_i) = v_i/w_i times a multiple of the batch's weight, xi_i = eps_i times its root.
        # The total counts the squared weights of rows whose residual is one draw; where that alone
        # is too much nothing is injected, and the batch counts with what it has.
        share = batches.squares / total**2
        known = self.noise != "antithetic" and not self.estimates_inherent
        inherent = share * float(self.inherent_variance) if known else np.zeros(len(total))
        if self.noise == "none":
            noise, gradients = inherent, sums[:, :1] / total[:, None, None]
        else:
            noise = np.maximum(self.noise_scale, inherent)
            injected = 1.0 if self.estimates_inherent else noise - inherent
            gradients = sums[:, :n_redraws] * np.sqrt(injected / total)[:, None, None]
        if self.noise == "single":
            mean = sums[:, n_redraws:] / total[:, None, None]
            if self.estimates_inherent:
                gradients = np.concatenate(np.broadcast_arrays(mean, gradients), axis=2)
            else:
                gradients = mean - gradients
        rows, w = gradients.reshape(-1, gradients.shape[2]), np.repeat(total, n_redraws)
        sums_over_batches = (
            n_redraws * np.sum(share * total),
            n_redraws * np.sum(noise * total),
            np.sum(batches.residual / total),
            np.sum(batches.curvature),
        )
        return replace(
            self,
            moments=self.moments.update(rows, w, self.key if clean else b""),
            squares=self.squares + _squares(total, batches.squares, n_redraws),
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
        batch = _Batches(*(np.array([column]) for column in columns))
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

    def noise_ratio(self, excess_risk: float) -> float:
        """Total target noise that the intercept's gradient shows, over the calibrated total."""
        if not self.has_intercept or self.noise == "none" or not self.moments.weight:
            return np.nan
        shown = self.moments.intercept_variance()
        if self.noise == "single":
            # n Cov(g_0) = tau + m^2 - a^2, a = mean(g_0): see find_nuisance
            residual2 = self.moments.squared_intercept()
            shown += (residual2 - (0.0 if self.estimates_inherent else excess_risk)) / self.rows
        return float(shown / self.total_scale)

    def kept_gradients(self, location: Array) -> Array:
        """Return the gradients of the centred features, about their mean and of equal weight."""
        if self.kept is None:
            raise ValueError(
                "shrinkage='ledoit_wolf' and 'oas' need the gradients seen before, which were not "
                "kept. Set shrinkage before the first fit, or use fit to start afresh."
            )
        w = np.concatenate([w for _, w, _ in self.kept])
        parts = [g for g, _, _ in self.kept]
        if self.moments.centered:
            rounds = self.whole.rounds
            parts = [
                g - (rounds[key].mean if key in rounds else w @ g / w.sum())
                for g, w, key in self.kept
                if len(g)
            ]
        rows = np.concatenate(parts)
        if self.has_intercept:
            rows = rows[:, 1:] - rows[:, :1] * location
        return rows * np.sqrt(w / w.mean())[:, None]


def _square(residual: npt.NDArray[np.floating] | None, weights: Array | None) -> float:
    """Weighted sum of squared residuals."""
    if residual is None:
        return 0.0
    return float(residual @ (residual if weights is None else weights * residual))


def _squares(total: Array, row_squares: Array, n_redraws: int) -> Array:
    """Squared weights of batches and their redraws, see `GradientMemory.n_effective`."""
    squares = np.sum(total**2)
    rows = squares + (n_redraws - 1) * np.sum(row_squares)
    return n_redraws * np.array([rows, n_redraws * squares])
