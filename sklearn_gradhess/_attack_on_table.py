"""What an attack does to the rows of a table: how far each output moves, and to which rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._categories import Category
from sklearn_gradhess._risk import conjugate, dual_norm, largest, vector_norm
from sklearn_gradhess._table import Table, batches

__all__ = ["AttackOnTable", "Moves"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Levels = list[npt.NDArray[np.intp]]

# Part of a step that rounding may take from a budget: 0.3 * 10 is three steps
_ROUNDING = 1e-9


class Moves(NamedTuple):
    """Where an attack goes from some rows of X."""

    delta: Array  # change of each number
    levels: Levels  # level of each category after it, one array of codes a category
    gain: Array  # what is gained, in units of the raw prediction


@dataclass(frozen=True, eq=False, kw_only=True)
class AttackOnTable:
    """What an attack may do to the rows of a table."""

    table: Table
    mask: Mask  # columns of numbers that move
    order: float | None  # p of the norm; None is Mahalanobis
    scale: Array | None  # budget of each column for radius one
    bounds: tuple[Array, ...] | None
    covariance: Array | None  # of the columns in mask, given the others
    n_columns: int | None  # most columns that move in a row
    whole: Mask  # columns that move by whole steps
    groups: tuple[Category, ...]  # categories that change their level
    has_missing: bool  # whether a value under attack is missing in some row

    @property
    def is_box(self) -> bool:
        """Whether every column has an interval of its own, which depends on the row."""
        return self.bounds is not None or bool(self.whole.any())

    @property
    def is_uniform(self) -> bool:
        """Whether the attack is the same to every row."""
        return not (self.is_box or self.has_missing or self.groups)

    @property
    def budgets(self) -> Array:
        """Budget of each column for radius one, zero where it does not move."""
        return np.where(self.mask, 1.0 if self.scale is None else self.scale, 0.0)

    def dual(self, coef: Array) -> Any:
        """Dual norm of coefficients of shape (n_features,) or (n_outputs, n_features)."""
        return self._ball(coef, self.n_columns)

    def changes(
        self, coef: Array, radius: float | Array, rows: Any, effects: Sequence[Array] = ()
    ) -> tuple[Array, Array]:
        """Least and greatest change of each output at each row: shape (n_rows, n_outputs).

        radius is one for all rows, or one for each.
        coef is of shape (n_outputs, n_features); effects has for each category the raw prediction
        at each of its levels, up to a constant, of shape (n_outputs, n_levels).
        """
        rows = np.arange(self.table.n_rows)[rows]
        if self.is_uniform:
            high = _column(radius) * self.dual(coef)
            high = np.broadcast_to(high, (len(rows), len(coef)))
            return -high, high
        radii = np.broadcast_to(radius, len(rows))
        parts = [
            self._changes(coef, radii[part], rows[part], effects)
            for part in batches(len(rows), coef.shape[1])
        ]
        low, high = (np.concatenate(part) for part in zip(*parts, strict=True))
        return low, high

    def moves(self, coef: Array, radius: float, rows: Any, effects: Sequence[Array] = ()) -> Moves:
        """Find the attack that raises one output the most.

        coef is of shape (n_features,), or (n_rows, n_features) for another output in each row;
        effects of shape (n_levels,) or (n_rows, n_levels) for each category.
        """
        rows = np.arange(self.table.n_rows)[rows]
        coef = np.broadcast_to(coef, (len(rows), self.table.n_columns))
        gains, levels = self._switches(effects, radius, rows)
        if self.n_columns is None:
            delta = self._numbers(coef, radius, rows, None)
            return Moves(delta, levels, np.sum(delta * coef, axis=1) + gains.sum(axis=0))
        best = None
        for m in range(min(self.n_columns, len(self.groups)) + 1):
            delta = self._numbers(coef, radius, rows, self.n_columns - m)
            switched = _rank(gains) < m
            gain = np.sum(delta * coef, axis=1) + np.sum(gains * switched, axis=0)
            now = [group.codes[rows] for group in self.groups]
            chosen = [np.where(s, to, at) for s, to, at in zip(switched, levels, now, strict=True)]
            if best is None:
                best = Moves(delta, chosen, gain)
                continue
            better = gain > best.gain
            best = Moves(
                np.where(better[:, None], delta, best.delta),
                [np.where(better, new, old) for new, old in zip(chosen, best.levels, strict=True)],
                np.maximum(gain, best.gain),
            )
        assert best is not None
        return best

    def rise(self, coef: Array, effects: Sequence[Array], rows: Any, moves: Moves) -> Array:
        """Change of each output by moves of some rows: shape (n_rows, n_outputs)."""
        rise = moves.delta @ coef.T
        for group, effect, level in zip(self.groups, effects, moves.levels, strict=True):
            now = group.codes[rows]
            rise = rise + np.where(now >= 0, effect[:, level] - effect[:, now], 0.0).T
        return np.asarray(rise)

    def gram(self, coef: Array) -> Array:
        """W W' of the outputs' coefficients W in units in which the attack is a round ball.

        For norm=2 and Mahalanobis; with an axis of rows in front where values are missing.
        """
        w = coef[:, self.mask]
        if self.order is None:
            return np.asarray(w @ np.asarray(self.covariance) @ w.T)
        w = w * self.budgets[self.mask]
        if not self.has_missing:
            return np.asarray(w @ w.T)
        present = self._present(slice(None))[:, self.mask].astype(np.float64)
        return np.einsum("kj,ij,lj->ikl", w, present, w, optimize=True)

    def sources(self, rows: Any, levels: Levels) -> npt.NDArray[np.intp]:
        """Row of X that lends each frozen column, for `Table.rebuilt`, so that levels are these."""
        rows = np.arange(self.table.n_rows)[rows]
        if not self.groups:
            return rows
        sources = np.tile(rows[:, None], (1, self.table.n_columns))
        for group, level in zip(self.groups, levels, strict=True):
            lent = np.where(level < 0, rows, group.sources[level])
            lent = np.where(level == group.codes[rows], rows, lent)
            sources[:, group.columns] = lent[:, None]
        return sources

    def attacked(self, rows: Any, moves: Moves) -> Any:
        """Rows of X after the moves, in the container of X."""
        rows = np.arange(self.table.n_rows)[rows]
        values = self.table.numbers(rows) + moves.delta
        return self.table.rebuilt(values, self.sources(rows, moves.levels), self.mask)

    def intervals(self, radius: float | Array, rows: Any) -> tuple[Array, Array]:
        """Least and greatest move of each column in each row, for norm=inf; zero where frozen."""
        x = self.table.numbers(rows)
        high = np.broadcast_to(_column(radius) * self.budgets, x.shape)
        low = -high
        with np.errstate(invalid="ignore"):
            if self.bounds is not None:
                self._check_inside(x)
                low = np.maximum(low, self.bounds[0] - x)
                high = np.minimum(high, self.bounds[1] - x)
            flips = self.whole & (self.table.kinds == "b")
            if flips.any():
                low = np.where(flips, np.maximum(low, -x), low)
                high = np.where(flips, np.minimum(high, 1 - x), high)
            if self.whole.any():
                low = np.where(self.whole, np.ceil(low - _ROUNDING * np.abs(low)), low)
                high = np.where(self.whole, np.floor(high + _ROUNDING * np.abs(high)), high)
        room = self.mask & ~np.isnan(x)
        return np.where(room, low, 0.0), np.where(room, high, 0.0)

    def _check_inside(self, x: Array) -> None:
        lowest, highest = self.bounds or ()
        outside = self.mask & np.any((x < lowest) | (x > highest), axis=0)
        if outside.any():
            raise ValueError(
                "bounds exclude values that are in X, in the columns "
                f"{self.table.label(np.flatnonzero(outside))}. Widen them, or leave these columns "
                "out of features."
            )

    def _ball(self, coef: Array, n_columns: int | None) -> Any:
        scale = None if self.scale is None else self.scale[self.mask]
        norm = "mahalanobis" if self.order is None else self.order
        return dual_norm(
            coef[..., self.mask],
            norm,
            scale=scale,
            covariance=self.covariance,
            n_columns=n_columns,
        )

    def _present(self, rows: Any) -> Mask:
        # What is missing cannot be moved: the dual norm leaves it out, row by row
        if self.covariance is not None:
            raise ValueError(
                "X has missing values in columns under attack, for which norm='mahalanobis' has no "
                "closed form here. Impute them, or leave these columns out of features."
            )
        return np.asarray(~np.isnan(self.table.numbers(rows)))

    def _changes(
        self, coef: Array, radius: Array, rows: Any, effects: Sequence[Array]
    ) -> tuple[Array, Array]:
        ends = []
        for sign in (-1.0, 1.0):
            gains = np.stack(
                [
                    self._switches([sign * e[k] for e in effects], radius, rows)[0]
                    for k in range(len(coef))
                ],
                axis=-1,
            )  # of shape (n_groups, n_rows, n_outputs)
            if self.n_columns is None:
                best = self._reach(sign * coef, radius, rows, None) + gains.sum(axis=0)
            else:
                ordered = -np.sort(-gains, axis=0)
                best = np.max(
                    [
                        self._reach(sign * coef, radius, rows, self.n_columns - m)
                        + ordered[:m].sum(axis=0)
                        for m in range(min(self.n_columns, len(gains)) + 1)
                    ],
                    axis=0,
                )
            ends.append(sign * best)
        return ends[0], ends[1]

    def _reach(self, coef: Array, radius: Array, rows: Any, n_columns: int | None) -> Array:
        """Greatest rise by numbers in so many columns, of shape (n_rows, n_outputs)."""
        if n_columns == 0 or not self.mask.any():
            return np.zeros((len(rows), len(coef)))
        if self.is_box:
            # Each column goes on its own to one end of its interval: max delta.w = b.w+ - a.w-
            a, b = self.intervals(radius, rows)
            if n_columns is None:
                return np.asarray(b @ np.maximum(coef, 0).T - a @ np.maximum(-coef, 0).T)
            return np.column_stack(
                [largest(np.where(w > 0, b, a) * w, n_columns).sum(axis=1) for w in coef]
            )
        if not self.has_missing:
            return np.asarray(_column(radius) * self._ball(coef, n_columns))
        present = self._present(rows)
        return _column(radius) * np.column_stack(
            [self._ball(np.where(present, w, 0.0), n_columns) for w in coef]
        )

    def _numbers(self, coef: Array, radius: float, rows: Any, n_columns: int | None) -> Array:
        """Find moves of so many numbers that raise each row's own output the most."""
        if n_columns == 0 or not self.mask.any():
            return np.zeros(coef.shape)
        if self.is_box:
            a, b = self.intervals(radius, rows)
            delta = np.where(coef > 0, b, a) * (coef != 0)
            return np.asarray(delta * (largest(delta * coef, n_columns) != 0))
        present = self._present(rows) if self.has_missing else np.True_
        if self.order is None:
            delta, w = np.zeros(coef.shape), coef[:, self.mask]
            length = np.maximum(self._ball(coef, None), np.finfo(float).tiny)[:, None]
            delta[:, self.mask] = radius * (w @ np.asarray(self.covariance)) / length
            return delta
        v = largest(np.where(present, self.budgets * coef, 0.0), n_columns)
        return np.asarray(radius * self.budgets * _steepest(v, self.order))

    def _switches(
        self, effects: Sequence[Array], radius: float | Array, rows: Any
    ) -> tuple[Array, Levels]:
        """Rise by the best level of each category, and which: shapes (n_groups, n_rows)."""
        gains, levels = np.zeros((len(self.groups), len(rows))), []
        for i, group in enumerate(self.groups):
            now = group.codes[rows]
            to = now.copy()
            moving = np.asarray(radius) > 0
            can = moving & (np.where(moving, radius, 1.0) * group.budget >= 1 - _ROUNDING)
            if can.any():
                effect = np.broadcast_to(effects[i], (len(rows), len(group.sources)))
                best = np.argmax(effect, axis=1)
                at = np.arange(len(rows))
                rise = effect[at, best] - effect[at, now]
                switch = can & (now >= 0) & (rise > 0)
                gains[i], to = np.where(switch, rise, 0.0), np.where(switch, best, now)
            levels.append(to)
        return gains, levels


def _column(radius: float | Array) -> Array:
    return np.reshape(radius, (-1, 1))


def _rank(gains: Array) -> npt.NDArray[np.intp]:
    """Rank of each category in each row, the greatest gain first."""
    return np.asarray(np.argsort(np.argsort(-gains, axis=0), axis=0))


def _steepest(v: Array, p: float) -> Array:
    """Points of the unit ball of order p with the greatest product with v, one a row."""
    if np.isinf(p):
        return np.sign(v)
    size = np.abs(v).max(axis=1, keepdims=True)
    ratio = np.abs(v) / np.where(size > 0, size, 1.0)
    if p == 1:
        points = np.zeros_like(v)
        at = np.argmax(ratio, axis=1)[:, None]
        np.put_along_axis(points, at, np.sign(np.take_along_axis(v, at, axis=1)), axis=1)
        return points
    direction = ratio ** (conjugate(p) - 1)
    length = vector_norm(direction, p)[:, None]
    return np.asarray(np.sign(v) * direction / np.where(length > 0, length, 1.0))
