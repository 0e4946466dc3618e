"""Search for the worst attack on a predictor of which only predictions are known.

Whatever is found can be done, so that the risk at the rows found is a lower bound of the risk under
attack, for any predictor; no search can say how far below it is. Each row of X is searched on its
own, and all rows together: a round asks for one or several candidates a row, in one call.

1. Sweeps. Each column goes to both ends, one at a time, and each category to each level. The
   differences of the loss are secants at the size of the attack, which give a direction, and the
   linear oracle `AttackOnTable.moves` the best attack along it: exact where the loss is monotone in
   an affine function. In a box the gains of single columns are also joined without the oracle,
   which is exact for additive models. Later sweeps start from the best attack so far.
2. Where columns are many, random attacks on all rows and one regression of the responses on them
   take the place of the sweep: exact for affine predictors, with all rows as its sample.
3. What is left of the budget goes to an evolution strategy: changes of some columns of the best
   attack of each row, restarts from random extreme points, and shorter moves, which matter where
   the worst case lies inside.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._attack_on_table import AttackOnTable, Moves
from sklearn_gradhess._table import BATCH_VALUES, batch_rows

__all__ = ["Found", "search"]

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

# Candidates of a row in one round of the evolution strategy
_OFFSPRING = 8
# Share of the columns that they change
_CHANGED = 0.25
# Share of the budget that one sweep may cost
_SWEEP_SHARE = 0.5
_STEP = 0.5  # towards an extreme point of a ball, in sweeps that start away from X
_RIDGE = 1e-10


class Found(NamedTuple):
    """The worst attack found on each row."""

    moves: Moves  # whose gain is the loss, less that at X
    response: Array  # of shape (n_rows, n_outputs)
    value: Array  # loss, of shape (n_rows,)


def search(
    respond: Callable[[Any], Array],
    attack: AttackOnTable,
    radius: float,
    loss: Callable[[Array, Any], Array],
    *,
    max_queries: int,
    random_state: Any,
) -> Found:
    """Search for the attack of greatest loss on each row of X.

    Parameters
    ----------
    respond : callable
        ``respond(rows)``, rows in the container of X: responses of shape (n_rows, n_outputs).
    attack : AttackOnTable
        What the attack may do.
    radius : float
        Its radius.
    loss : callable
        ``loss(response, rows)``: one number for each response, at a row of X by position; the
        larger, the worse.
    max_queries : int
        Predictions spent on each row of X, that at X itself included.
    random_state : int, Generator or None
        Seed. The same seed asks the same questions.

    Returns
    -------
    found : Found
        Nowhere of less loss than X itself.
    """
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**31)
    rng, parts, n_columns = np.random.default_rng(random_state), [], attack.table.n_columns
    # candidates of all rows of a part, as many as a sweep has, are in memory at once
    size = max(32, 2 * BATCH_VALUES // (n_columns * min(max_queries, 2 * n_columns)))
    for start in range(0, attack.table.n_rows, size):
        rows = np.arange(start, min(start + size, attack.table.n_rows))
        run = _Run(respond, attack, radius, loss, rows, max_queries, rng)
        run.sweep()
        run.follow()
        run.sweep()
        run.evolve()
        parts.append(run.found())
    moves, response, value = zip(*parts, strict=True)
    delta, levels, gain = zip(*moves, strict=True)
    joined = [np.concatenate(level) for level in zip(*levels, strict=True)]
    moved = Moves(np.concatenate(delta), joined, np.concatenate(gain))
    return Found(moved, np.concatenate(response), np.concatenate(value))


class _Candidates(NamedTuple):
    """Attacks on some rows, a row of candidates after another: shapes (m, n, ...)."""

    delta: Array
    levels: list[Rows]

    def __len__(self) -> int:
        return len(self.delta)


class _Run:
    """The best attack so far on each of some rows, and what is left of the budget."""

    def __init__(
        self,
        respond: Callable[[Any], Array],
        attack: AttackOnTable,
        radius: float,
        loss: Callable[[Array, Any], Array],
        rows: Rows,
        max_queries: int,
        rng: np.random.Generator,
    ) -> None:
        self.respond, self.attack, self.radius, self.loss = respond, attack, radius, loss
        self.rows, self.rng = rows, rng
        self.left = max_queries - 1 if radius > 0 else 0
        self.columns = np.flatnonzero(attack.mask)
        self.delta = np.zeros((len(rows), attack.table.n_columns))
        self.levels = [group.codes[rows].copy() for group in attack.groups]
        self.response = np.array(respond(attack.table.native(rows)), dtype=np.float64)
        self.value = loss(self.response, rows)
        self.start, self.plain = self.value.copy(), self.response.copy()
        # each column to an end of its own, whatever the others do
        self.is_box = attack.order == np.inf and attack.n_columns is None
        self.low, self.high = attack.intervals(radius, rows) if self.is_box else (self.delta,) * 2
        # moves that were asked for, and what changed: the sample of the regression
        self.asked: list[tuple[Array, Array]] = []

    def found(self) -> Found:
        moves = Moves(self.delta, self.levels, self.value - self.start)
        return Found(moves, self.response, self.value)

    def ask(self, candidates: _Candidates) -> tuple[Array, Array]:
        """Losses (m, n) and responses (m, n, k) of so many candidates as the budget has."""
        m, n = min(len(candidates), self.left), len(self.rows)
        if m < 1:
            return np.empty((0, n)), np.empty((0, n, self.response.shape[1]))
        self.left -= m
        values, responses = [], []
        size = max(1, batch_rows(self.delta.shape[1]) // n)
        for start in range(0, m, size):
            part = slice(start, min(start + size, m))
            delta, rows = candidates.delta[part], np.tile(self.rows, part.stop - start)
            levels = [level[part].ravel() for level in candidates.levels]
            moves = Moves(delta.reshape(len(rows), -1), levels, np.zeros(len(rows)))
            response = self.respond(self.attack.attacked(rows, moves))
            values.append(self.loss(response, rows).reshape(-1, n))
            responses.append(response.reshape(len(delta), n, -1))
        value, response = np.concatenate(values), np.concatenate(responses)
        self._keep(candidates, value, response)
        return value, response

    def _keep(self, candidates: _Candidates, value: Array, response: Array) -> None:
        best, at = np.argmax(value, axis=0), np.arange(len(self.rows))
        better = np.flatnonzero(value[best, at] > self.value)
        best = best[better]
        self.value[better] = value[best, better]
        self.response[better] = response[best, better]
        self.delta[better] = candidates.delta[best, better]
        for mine, level in zip(self.levels, candidates.levels, strict=True):
            mine[better] = level[best, better]

    # --- candidates

    def oracle(self, coef: Array, effects: list[Array]) -> _Candidates:
        """Best attacks along directions of shape (m, n, d), effects of shape (m, n, n_levels)."""
        m, n, d = coef.shape
        effects = [effect.reshape(m * n, -1) for effect in effects]
        moves = self.attack.moves(
            coef.reshape(m * n, d), self.radius, np.tile(self.rows, m), effects
        )
        return _Candidates(
            moves.delta.reshape(m, n, d), [level.reshape(m, n) for level in moves.levels]
        )

    def _ends(self, j: Any) -> Iterator[Array]:
        """Best attack so far with one column, or all that a ball allows of it, at either end."""
        for sign, end in ((1.0, self.high), (-1.0, self.low)):
            if self.is_box:
                delta = self.delta.copy()
                delta[:, j] = end[:, j]
                yield delta
                continue
            coef = np.zeros(self.delta.shape)
            coef[:, j] = sign
            extreme = self.attack.moves(coef, self.radius, self.rows, self._no_effects()).delta
            yield self._towards(extreme)

    def _towards(self, extreme: Array) -> Array:
        """Go from the best attack towards another; all the way where sets are not convex."""
        if self.attack.n_columns is not None or not self.delta.any():
            return extreme
        return (1 - _STEP) * self.delta + _STEP * extreme

    def _no_effects(self) -> list[Array]:
        return [np.zeros((len(self.rows), len(g.sources))) for g in self.attack.groups]

    def _switched(self) -> list[tuple[int, int, list[Rows]]]:
        """One category at one of its levels, the rest as in the best attack so far."""
        switched = []
        for i, group in enumerate(self.attack.groups):
            if self.radius * group.budget < 1 or self.attack.n_columns is not None:
                continue
            for level in range(len(group.sources)):
                levels = [own.copy() for own in self.levels]
                levels[i] = np.where(levels[i] < 0, levels[i], level)
                switched.append((i, level, levels))
        return switched

    # --- stages

    def sweep(self) -> None:
        """Every column at its ends and every category at its levels, and what they tell."""
        switched, k = self._switched(), 2 * len(self.columns)
        if not 0 < k + len(switched) <= _SWEEP_SHARE * self.left:
            return
        base, here = self.delta.copy(), self.value.copy()
        ends = [delta for j in self.columns for delta in self._ends(j)]
        levels = [
            np.concatenate([np.tile(own, (k, 1)), *([one[i][None] for _, _, one in switched])])
            for i, own in enumerate(self.levels)
        ]
        tried = _Candidates(np.stack(ends + [base] * len(switched)), levels)
        value, response = self.ask(tried)
        self.asked.append((tried.delta - base, response - self.plain))
        gain = value - here
        coef, effects = np.zeros((1, *base.shape)), self._no_effects()
        for at, j in enumerate(self.columns):
            width = tried.delta[2 * at, :, j] - tried.delta[2 * at + 1, :, j]
            rise = gain[2 * at] - gain[2 * at + 1]
            coef[0, width != 0, j] = rise[width != 0] / width[width != 0]
        for (i, level, _), rise in zip(switched, gain[k:], strict=True):
            effects[i][:, level] = rise
        both = [np.stack([effect, effect]) for effect in effects]
        self.ask(self.oracle(np.concatenate([coef, -coef]), both))
        if self.is_box:
            at_base = [level[0] for level in levels]
            self.ask(self._joined(base, at_base, tried.delta[:k], gain[:k], effects))

    def _joined(
        self, base: Array, levels: list[Rows], ends: Array, gain: Array, effects: list[Array]
    ) -> _Candidates:
        """Join the single changes that gained: all of them, the better half, or the best two."""
        up, down = gain[::2], gain[1::2]
        best, delta = np.maximum(up, down), np.tile(base, (3, 1, 1))
        rank = np.argsort(np.argsort(-best, axis=0), axis=0)
        most = np.array([len(best), max(len(best) // 2, 1), 2])[:, None]
        for at, j in enumerate(self.columns):
            end = np.where(up[at] >= down[at], ends[2 * at, :, j], ends[2 * at + 1, :, j])
            delta[..., j] = np.where((best[at] > 0) & (rank[at] < most), end, base[:, j])
        chosen = []
        for own, effect in zip(levels, effects, strict=True):
            gains = (effect.max(axis=1, initial=0.0) > 0) & (own >= 0)
            chosen.append(np.tile(np.where(gains, np.argmax(effect, axis=1), own), (3, 1)))
        return _Candidates(delta, chosen)

    def follow(self) -> None:
        """Follow the slopes that all rows have in common."""
        d, k = len(self.columns), self.response.shape[1]
        if not d or self.left < 4:
            return
        if not self.asked:  # no sweep could be paid
            m = max(2, self.left // 3)
            coef, effects = self._random(m)
            tried = self.oracle(coef, effects)
            _, response = self.ask(tried)
            self.asked.append((tried.delta[: len(response)], response - self.plain))
        rows = [pair[0][..., self.columns].reshape(-1, d) for pair in self.asked]
        moved, changed = np.concatenate(rows), [pair[1].reshape(-1, k) for pair in self.asked]
        known = np.isfinite(moved).all(axis=1)
        slopes = _slopes(moved[known], np.concatenate(changed)[known])
        coef = np.zeros((2, *self.delta.shape))
        coef[0][:, self.columns] = self._loss_slopes() @ slopes
        coef[1] = -coef[0]
        effects = [np.zeros((2, *e.shape)) for e in self._no_effects()]
        self.ask(self.oracle(coef, effects))

    def _loss_slopes(self) -> Array:
        """Slope of the loss in each output at X, of shape (n, k)."""
        n, k = self.plain.shape
        step = 1e-4 * max(float(np.ptp(self.plain)), float(np.abs(self.plain).max()), 1e-300)
        slope = np.zeros((n, k))
        for i in range(k):
            ends = [self.loss(self.plain + s * step * np.eye(k)[i], self.rows) for s in (1.0, -1.0)]
            slope[:, i] = (ends[0] - ends[1]) / (2 * step)
        return np.where(np.isfinite(slope), slope, 0.0)

    def _random(self, m: int, *, sparse: bool = False) -> tuple[Array, list[Array]]:
        """Random directions: their best attacks are random extreme points."""
        unit = np.where(self.attack.mask, 1 / np.maximum(self.attack.budgets, 1e-300), 0.0)
        coef = self.rng.standard_normal((m, *self.delta.shape)) * unit
        if sparse:  # along any number of columns, few as likely as many
            kept = np.minimum(len(self.columns) ** -self.rng.random((*coef.shape[:2], 1)), 1.0)
            coef *= self.rng.random(coef.shape) < kept
        effects = [self.rng.standard_normal((m, *e.shape)) for e in self._no_effects()]
        return coef, effects

    def evolve(self) -> None:
        """Change the best attack of each row, as long as the budget lasts."""
        while self.left > 0:
            self.ask(self._offspring(min(_OFFSPRING, self.left)))

    def _offspring(self, m: int) -> _Candidates:
        """Return a restart, a shorter change, and changes of the best attack."""
        shape, share = (m, *self.delta.shape), max(_CHANGED, 1 / max(len(self.columns), 1))
        coef, effects = self._random(m, sparse=True)
        restart = self.oracle(coef, effects)
        change = (self.rng.random(shape) < share) & self.attack.mask
        if self.is_box:
            inside = self.low + self.rng.random(shape) * (self.high - self.low)
            ends = np.stack(np.broadcast_arrays(self.low, self.high, inside, 0.0 * inside))
            kind = self.rng.choice(4, size=shape, p=[0.35, 0.35, 0.2, 0.1])
            new = np.take_along_axis(ends, kind[None], axis=0)[0]
            delta = np.where(change, new, self.delta)
        elif self.attack.n_columns is None:
            step = self.rng.random((m, len(self.rows), 1)) * 2 * share
            delta = self._stretched((1 - step) * self.delta + step * restart.delta)
            # unconditional norms also allow to give back the move of some columns
            if self.attack.order is not None:
                single = self.radius * self.attack.budgets * self.rng.uniform(-1, 1, shape)
                single[..., np.isnan(self.attack.table.numbers(self.rows))] = 0.0
                delta[::2] = np.where(change[::2], single[::2], self.delta)
                size = self._length(delta[::2]) / self.radius
                delta[::2] /= np.maximum(size, 1.0)[..., None]
        else:
            # what moves now counts for more than what does not
            kept = 4 * self.delta / np.maximum(self.attack.budgets, 1e-300) ** 2 / self.radius
            delta = self.oracle(np.where(change, coef, kept), effects).delta
        delta[0] = restart.delta[0]
        delta[1:2] *= self.rng.random((len(self.rows), 1))
        whole = self.attack.whole
        delta[..., whole] = np.trunc(delta[..., whole])
        switch = self.rng.random(shape[:2]) < share
        if self.attack.n_columns is not None:  # a switch counts among the columns
            switch[:] = False
        switch[0] = True
        levels = [
            np.where(switch, new, own) for own, new in zip(self.levels, restart.levels, strict=True)
        ]
        return _Candidates(delta, levels)

    def _stretched(self, delta: Array) -> Array:
        """Stretch convex combinations back to the boundary of a ball, half of them."""
        size = self._length(delta)
        far = self.rng.random(size.shape) < 0.8
        factor = np.where(far & (size > 1e-12), self.radius / np.maximum(size, 1e-300), 1.0)
        return delta * (factor * (1 - 1e-12))[..., None]

    def _length(self, delta: Array) -> Array:
        moved = delta[..., self.columns]
        if self.attack.order is None:
            inverse = np.linalg.pinv(np.asarray(self.attack.covariance), hermitian=True)
            return np.asarray(np.sqrt(np.sum(moved @ inverse * moved, axis=-1)))
        unit = self.attack.budgets[self.columns]
        scaled = np.abs(moved) / np.maximum(unit, 1e-300)
        return np.asarray(np.linalg.norm(scaled, ord=self.attack.order, axis=-1))


def _slopes(moved: Array, changed: Array) -> Array:
    """Least squares of changes on moves, of shape (k, d); each column in its own unit."""
    unit = np.sqrt(np.mean(moved**2, axis=0))
    unit = np.where(unit > 0, unit, 1.0)
    z = moved / unit
    if len(z) >= z.shape[1]:
        gram = z.T @ z
        gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
        return np.asarray(np.linalg.solve(gram, z.T @ changed).T / unit)
    gram = z @ z.T
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    return np.asarray((z.T @ np.linalg.solve(gram, changed)).T / unit)
