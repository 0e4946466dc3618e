"""Whether a predictor is affine in some columns, and its coefficients: by predictions alone.

Two rows a column give the slopes; rows that recombine and extrapolate those of X tell whether the
slopes explain every prediction. What rounding may cause is worked out for every row, from the terms
that a predictor has to add up, so that no column's size hides what another one does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import is_classifier

from sklearn_gradhess._categories import Category
from sklearn_gradhess._link import IDENTITY, Link
from sklearn_gradhess._table import Table, batch_rows, batches

__all__ = [
    "REFUSALS",
    "Domain",
    "NoSlopeError",
    "Probed",
    "check_finite",
    "is_blind",
    "probe",
    "respond",
]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

# Largest deviation from the affine map, relative to the change it explains, that rounding may cause
TOLERANCE = 1e-6
# Roundings that one prediction may add up, and the error at which raw predictions tell nothing
ROUNDINGS, BLIND = 64, 1e-7
N_REFERENCES, N_STRATA = 24, 200
# Beyond the data, in multiples of a recombination and of a step in every column at once
EXTRAPOLATIONS = (-1.0, 4.0, -20.0)
DIRECTIONS = (1.0, -1.0, 10.0, -10.0, 100.0, -100.0)
# Raw change of a prediction with a link that a step should make: far above rounding, far from ends
LINK_STEP = 2.0
# Times that a step is shortened, by 16 where a prediction tells nothing
N_SHORTER = 10
# What an estimator may raise at rows that it was not made for
REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError)


def respond(estimator: Any, rows: Any, response_method: str) -> Array:
    """Call the method, and check that numbers came: shape (n,) or (n, n_outputs)."""
    method = getattr(estimator, response_method, None)
    if method is None:
        raise ValueError(f"{type(estimator).__name__} has no {response_method}.")
    with np.errstate(all="ignore"):  # what is not finite shows in the result
        response = np.asarray(method(rows))
    if response.dtype.kind not in "fiub" or response.ndim not in (1, 2):
        raise ValueError(
            f"{type(estimator).__name__}.{response_method} returns {response.dtype} of shape "
            f"{response.shape}, not one number or one row of numbers for each row of X."
        )
    return response


def check_finite(estimator: Any, response: Array, response_method: str) -> Array:
    """Raise ValueError if predictions at rows of X are not finite, float64 otherwise."""
    bad = ~np.all(np.isfinite(response), axis=tuple(range(1, response.ndim)))
    if bad.any():
        raise ValueError(
            f"{type(estimator).__name__}.{response_method} returns NaN or infinity for "
            f"{bad.sum()} of {len(bad)} rows of X: no attack on it has a finite risk. Check how it "
            "was fitted, and impute missing values inside the pipeline."
        )
    return response.astype(np.float64)


class NoSlopeError(ValueError):
    """A prediction is not finite where a column moves within the range of the data."""


class _Raw(NamedTuple):
    """Raw predictions, the error of each for one rounding of the prediction, and predictions."""

    value: Array
    error: Array
    response: Array


def is_blind(raw: _Raw) -> Mask:
    """Where a prediction is so near the end of its range that it does not tell the raw one."""
    return np.asarray(~np.isfinite(raw.error))


class _Check(NamedTuple):
    """Rows of numbers, the rows of X that lend frozen columns, and what to compare with."""

    values: Array
    sources: Rows
    reference: Rows  # position among the real rows, or -1 for the base row
    rise: Array | float = 0.0  # what categories change, of shape (n_rows, n_outputs)


@dataclass(frozen=True, eq=False, kw_only=True)
class Domain:
    """Columns that move, and how: freely, by whole steps, between false and true, by levels."""

    movable: Mask
    whole: Mask
    flips: Mask
    groups: Sequence[Category] = ()

    def rounded(self, values: Array, base: Array) -> Array:
        """Nearest values that the columns can take; the base where they cannot go that far."""
        if not self.whole.any():
            return values
        values = np.where(self.whole, np.round(values), values)
        return np.where(self.flips & ((values < 0) | (values > 1)), base, values)


class _Prober:
    """Rows around the data, and the predictions of an estimator at them."""

    def __init__(self, estimator: Any, table: Table, domain: Domain, method: str, link: Link):
        self.estimator, self.method, self.link = estimator, method, link
        self.table, self.domain, self.movable = table, domain, domain.movable
        self.rows = self._references()
        # as they are, so that the estimator's own complaints about X come unchanged
        known = respond(estimator, table.native(self.rows), method)
        self.is_vector = known.ndim == 1 or (known.shape[1] == 2 and link.name == "logit")
        coarsest = np.finfo(known.dtype).eps if known.dtype.kind == "f" else 0.0
        self.epsilon = max(table.epsilon, float(coarsest))
        self.known = self.raw(check_finite(estimator, known, method))
        self.real = table.numbers(self.rows)
        self.low, self.high, self.constant = self._spread()
        self.step = self.high / 2 - self.low / 2
        self.base, self.base_row = self._base()

    def _references(self) -> Rows:
        """Rows of X: evenly spread, and some of each frozen level and set of missing values."""
        table = self.table
        most = max(4, batch_rows(table.n_columns))
        n = min(table.n_rows, N_REFERENCES, most)
        chosen = [np.linspace(0, table.n_rows - 1, n).astype(np.intp)]
        codes = [table.missing_patterns(self.movable)]
        if not table.is_sparse:
            codes += [table.codes(j)[0] for j in np.flatnonzero(~self.movable)]
        for code in codes:
            if 1 <= code.max() < N_STRATA:
                order = np.argsort(code, kind="stable")
                ends = np.searchsorted(code[order], np.arange(code.max() + 2))
                chosen += [order[np.clip(ends[:-1], 0, len(order) - 1)], order[ends[1:] - 1]]
        rows = np.unique(np.concatenate(chosen))
        return rows if len(rows) <= min(most, N_STRATA) else rows[:: -(-len(rows) // N_STRATA)]

    def _spread(self) -> tuple[Array, Array, Mask]:
        low, high, constant = self.table.spread(self.movable)
        whole, flips = self.domain.whole, self.domain.flips
        low[whole], high[whole] = np.floor(low[whole]), np.ceil(high[whole])
        high[whole] = np.maximum(high[whole], low[whole] + 1)
        low[flips], high[flips] = 0.0, 1.0
        return low, high, constant

    def _base(self) -> tuple[Array, int]:
        """Row whose numbers move, and the row of X that its frozen columns are from."""
        if self.link is IDENTITY:
            middle = 0.0 if self.table.is_sparse else self.low + self.step
            base = np.where(self.movable, middle, self.table.numbers([0])[0])
            return np.where(self.domain.whole, self.low, base), 0
        # where predictions tell the most of raw predictions
        best = int(np.argmin(self.known.error.max(axis=1)))
        numbers = self.real[best]
        missing = self.movable & np.isnan(numbers)
        return np.where(missing, self.low + self.step, numbers), int(self.rows[best])

    def raw(self, response: Array) -> _Raw:
        """Raw predictions behind predictions."""
        response = response.reshape(len(response), -1).astype(np.float64)
        error = self.epsilon * self.link.error(response)
        error[ROUNDINGS * error >= max(BLIND, 1e4 * self.epsilon)] = np.inf
        return _Raw(self.link.raw(response), error, response)

    def predict(self, values: Any, sources: Any) -> _Raw:
        """Raw predictions of shape (n_rows, n_outputs), finite or not."""
        rows = self.table.rebuilt(values, sources, self.movable)
        return self.raw(respond(self.estimator, rows, self.method))

    def predict_all(self, check: _Check) -> _Raw:
        """Predictions at rows that may be too many for one call."""
        parts = [
            self.predict(check.values[p], check.sources[p]) for p in batches(*check.values.shape)
        ]
        return _Raw(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def slopes(self) -> tuple[Array, Array]:
        """Differences, one column at a time, and their rounding: shape (n_outputs, n_features)."""
        columns = np.flatnonzero(self.movable)
        if self.link is IDENTITY:
            rise, error = self._differences(columns, self.low[columns], self.high[columns])
        else:
            rise, error = self._short_differences(columns)
        coef, rounding = np.zeros((2, rise.shape[1], len(self.base)))
        coef[:, columns], rounding[:, columns] = rise.T, error.T
        return coef, rounding

    def _differences(self, columns: Rows, low: Array, high: Array) -> tuple[Array, Array]:
        """Slopes between two values of each column, and their rounding."""
        is_sparse = self.table.is_sparse
        width = int(np.count_nonzero(self.base)) + 1 if is_sparse else len(self.base)
        parts = []
        for part in batches(len(columns), 2 * width):
            j = np.tile(columns[part], 2)
            i, half = np.arange(len(j)), len(j) // 2
            values = np.concatenate([low[part], high[part]])
            if is_sparse:
                rows = sparse.csr_array(np.ones((len(j), 1))) @ sparse.csr_array(self.base[None])
                moved = values - self.base[j]
                rows = rows + sparse.csr_array((moved, (i, j)), shape=(len(j), len(self.base)))
            else:
                rows = np.tile(self.base, (len(j), 1))
                rows[i, j] = values
            found = self.predict(rows, np.full(len(j), self.base_row))
            run = (values[half:] - values[:half])[:, None]
            with np.errstate(all="ignore"):  # what is not finite is no slope
                slope = (found.value[half:] - found.value[:half]) / run
                size = self.epsilon * np.abs(found.value) + found.error
                parts.append((slope, (size[:half] + size[half:]) / run))
        slope, rounding = (np.concatenate(part) for part in zip(*parts, strict=True))
        return slope, rounding

    def _short_differences(self, columns: Rows) -> tuple[Array, Array]:
        """Slopes over steps so short that predictions stay where they tell raw predictions."""
        share = np.ones(len(columns))
        fixed, step = self.domain.whole[columns], self.step[columns]
        for left in range(N_SHORTER, -1, -1):
            ends = [self.base[columns] + sign * share * step for sign in (-1, 1)]
            ends = [
                np.where(fixed, end, part)
                for end, part in zip((self.low[columns], self.high[columns]), ends, strict=True)
            ]
            slope, rounding = self._differences(columns, *ends)
            with np.errstate(invalid="ignore"):
                rise = np.abs(slope * (ends[1] - ends[0])[:, None]).max(axis=1)
            blind = ~np.isfinite(rise)
            long = (blind | (rise > 2 * LINK_STEP)) & ~fixed
            if not long.any() or not left:
                break
            share[long] *= np.where(
                blind[long], 1 / 16, LINK_STEP / np.clip(rise[long], LINK_STEP, 1e3 * LINK_STEP)
            )
        return slope, rounding

    def effects(self) -> list[Array]:
        """Raw predictions at the base row with each level of each category, less the first's."""
        effects = []
        for group in self.domain.groups:
            n = len(group.sources)
            sources = np.full((n, self.table.n_columns), self.base_row)
            sources[:, group.columns] = group.sources[:, None]
            found = self.predict(np.tile(self.base, (n, 1)), sources).value
            effects.append((found - found[:1]).T)
        return effects

    def checks(self, coef: Array, effects: list[Array]) -> tuple[list[_Check], _Check]:
        """Rows that tell an affine predictor, within the range of the data and beyond."""
        rng = np.random.default_rng(0)
        n, real, movable = len(self.rows), self.real, self.movable
        first, ranks = np.full(n, self.base_row), np.arange(n)
        filled = np.where(np.isnan(real) | ~movable, self.base, real)
        other = filled[rng.permutation(n)]
        signs = rng.choice([-1.0, 1.0], size=other.shape)
        # a column that is the same in all rows must move to be seen
        other[:, self.constant] += (signs * self.step)[:, self.constant]
        other = self.domain.rounded(other, self.base)
        moved = (rng.random(other.shape) < 0.5) & movable & np.isfinite(real)
        inside = _Check(
            np.concatenate([filled, np.where(moved, other, real)]),
            np.concatenate([first, self.rows]),
            np.concatenate([np.full(n, -1), ranks]),
        )
        difference = np.where(moved, other - real, 0.0)
        step = np.where(movable, self.step, 0.0)
        strongest = coef[np.argmax(np.abs(coef) @ step)]
        direction = np.where(strongest != 0, np.sign(strongest), signs[0]) * step
        far = [self.domain.rounded(real + t * difference, real) for t in EXTRAPOLATIONS]
        along = self.base + np.outer(DIRECTIONS, direction)
        k, m = len(far), len(DIRECTIONS)
        outside = _Check(
            np.concatenate([*far, self.domain.rounded(along, self.base)]),
            np.concatenate([np.tile(self.rows, k), np.full(m, self.base_row)]),
            np.concatenate([np.tile(ranks, k), np.full(m, -1)]),
        )
        return [inside, *self._switched(effects)], outside

    def _switched(self, effects: list[Array]) -> list[_Check]:
        """Rows with another level of one category, and with all categories at random levels."""
        rng, checks, groups = np.random.default_rng(1), [], self.domain.groups
        every = [list(range(len(groups)))] if groups else []
        for which in [[i] for i in range(len(groups))] + every:
            many = max(len(groups[i].sources) for i in which)
            ranks = np.resize(np.arange(len(self.rows)), max(len(self.rows), 4 * many))
            rows, rise = self.rows[ranks], np.zeros((len(ranks), effects[0].shape[0]))
            sources = np.tile(rows[:, None], (1, self.table.n_columns))
            for i in which:
                group, now = groups[i], groups[i].codes[rows]
                level = rng.permutation(np.resize(np.arange(len(group.sources)), len(rows)))
                level = np.where(now >= 0, level, now)
                lent = np.where(level >= 0, group.sources[level], rows)
                sources[:, group.columns] = lent[:, None]
                rise += np.where(now >= 0, effects[i][:, level] - effects[i][:, now], 0.0).T
            checks.append(_Check(self.real[ranks], sources, ranks, rise))
        return checks

    def is_piecewise(self) -> bool:
        """Whether rows of X differ in what they predict, though no probe saw a change."""
        for part in batches(self.table.n_rows, self.table.n_columns):
            sources = np.arange(self.table.n_rows)[part]
            actual = self.raw(respond(self.estimator, self.table.native(sources), self.method))
            level = self.predict(np.tile(self.base, (len(sources), 1)), sources).value
            error = np.abs(actual.value - level)
            if np.any(error > ROUNDINGS * self.epsilon * np.abs(level) + 4 * actual.error):
                return True
        return False

    def complaint(self, error: Exception) -> str:
        """Find the columns that cannot be moved, and word the message."""
        stuck, values = [], [self.low, self.low + self.step, self.high]
        for j in np.flatnonzero(self.movable):
            rows = np.tile(self.table.numbers([0]), (3, 1))
            rows[:, j] = [value[j] for value in values]
            try:
                self.predict(rows, [0, 0, 0])
            except REFUSALS:
                stuck.append(j)
        which = f"column {self.table.label(stuck)}" if stuck else "their numbers"
        return (
            f"{type(self.estimator).__name__}.{self.method} takes rows of X as they are, but not "
            f"with {which} moved within the range of the data ({error}). If these are codes of "
            "categories, give them a category dtype, or name the columns that can move with "
            "features=."
        )


class _Deviation:
    """Compare raw predictions with the affine map through a row that shares frozen values."""

    def __init__(
        self, prober: _Prober, coef: Array, rounding: Array, at_base: _Raw, seen: _Check
    ) -> None:
        self.coef, self.rounding, self.prober = coef, rounding, prober
        # row -1 is the base
        self.rows = np.concatenate([prober.real, prober.base[None]])
        moved = np.where(prober.movable & np.isfinite(prober.real), prober.real - prober.base, 0.0)
        # a row at the end of its range tells nothing; the map does, if nothing else differs
        blind = is_blind(prober.known)
        alone = bool(prober.movable.all()) and bool(np.isfinite(prober.real).all())
        known = prober.known._replace(
            value=np.where(blind, at_base.value + moved @ coef.T, prober.known.value),
            error=np.where(blind, 0.0 if alone else np.inf, prober.known.error),
        )
        self.known = _Raw(*(np.concatenate(pair) for pair in zip(known, at_base, strict=True)))
        # what columns that move explain; frozen ones set how large the sums are, not their spread
        tried = np.nan_to_num(np.where(prober.movable, seen.values - prober.base, 0.0))
        self.spread = np.ptp(tried @ coef.T, axis=0)
        finite = np.isfinite(self.known.value)
        self.size = np.abs(np.where(finite, self.known.value, 0.0)).max(axis=0)

    def __call__(self, check: _Check, found: _Raw) -> tuple[float, bool]:
        """Largest relative deviation, and whether all are explained by rounding."""
        start = self.rows[check.reference]
        origin = _Raw(*(part[check.reference] for part in self.known))
        moved = np.nan_to_num(np.where(self.prober.movable, check.values - start, 0.0))
        size = (np.abs(np.nan_to_num(start)) + np.abs(moved)) @ np.abs(self.coef.T)
        slack = np.abs(moved) @ self.rounding.T
        return self.judge(origin, found, moved @ self.coef.T + check.rise, size, slack)

    def judge(
        self, origin: _Raw, found: _Raw, rise: Array, size: Array, slack: Array
    ) -> tuple[float, bool]:
        """Largest relative deviation of `found` from `origin` and a rise, and if it is rounding.

        size is that of the terms that predict adds up, slack the rounding of the coefficients.
        """
        with np.errstate(invalid="ignore"):
            deviation = np.abs(found.value - origin.value - rise)
        deviation[np.isnan(deviation)] = np.inf
        size = self.size + size
        scale = np.maximum(np.maximum(self.spread, np.abs(rise)), 1e-8 * size)
        rounding = ROUNDINGS * (self.prober.epsilon * size + origin.error + found.error)
        rounding = rounding + 4 * slack
        # where predictions have reached the end of their range, they are what can be compared
        blind = is_blind(origin) | is_blind(found)
        with np.errstate(invalid="ignore"):
            gap = self.prober.link.gap(origin.value + rise, found.response)
        gap = np.where(is_blind(origin), 0.0, gap)  # nothing to compare with
        explained = np.where(blind, gap <= TOLERANCE, deviation <= TOLERANCE * scale + rounding)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(deviation > 0, deviation / scale, 0.0)
        relative = np.where(blind, np.where(explained, 0.0, gap), relative)
        return float(relative.max()), bool(explained.all())


@dataclass(frozen=True, eq=False, kw_only=True)
class Probed:
    """Coefficients of a predictor, and whether the predictor is the affine map that they make."""

    coef: Array  # of shape (n_outputs, n_features), of the raw prediction
    effects: Sequence[Array]  # of each category's levels, of shape (n_outputs, n_levels)
    at_base: Array  # raw prediction at the base row
    base: Array  # its numbers in the columns that move
    residual: float
    is_affine: bool
    is_constant: bool
    is_vector: bool
    movable: Mask
    link: Link
    method: str
    rounding: Array  # of the coefficients
    base_response: Array
    prober: _Prober
    deviation: _Deviation


def probe(
    estimator: Any,
    table: Table,
    domain: Domain | Mask,
    response_method: str = "predict",
    link: Link = IDENTITY,
) -> Probed:
    """Probe an estimator on rows like those of a table: `effective_coef` after its checks."""
    name = f"{type(estimator).__name__}.{response_method}"
    if not isinstance(domain, Domain):
        none = np.zeros_like(domain)
        domain = Domain(movable=domain, whole=none, flips=none)
    is_predict = response_method == "predict" and hasattr(estimator, "__sklearn_tags__")
    if is_predict and is_classifier(estimator):
        raise ValueError(
            f"{name} returns labels, which are not affine in X. Use adversarial_accuracy or "
            "metric='accuracy', or probe response_method='decision_function'."
        )
    prober = _Prober(estimator, table, domain, response_method, link)
    base = prober.base[None]
    try:
        coef, rounding = prober.slopes()
        effects = prober.effects()
        inside, outside = prober.checks(coef, effects)
        at_base = prober.predict(base, [prober.base_row])
        found = [prober.predict_all(check) for check in inside]
    except REFUSALS as error:
        raise ValueError(prober.complaint(error)) from error
    if link is IDENTITY and not np.isfinite(coef).all():
        bad = np.flatnonzero(~np.isfinite(coef).all(axis=0))
        raise NoSlopeError(
            f"{name} returns NaN or infinity where column {table.label(bad)} moves within the "
            "range of the data: there is no slope. Name the columns that can move with features=."
        )
    known = all(np.isfinite(part).all() for part in (coef, rounding, at_base.value))
    coef, rounding = (np.where(np.isfinite(part), part, 0.0) for part in (coef, rounding))
    deviation = _Deviation(prober, coef, rounding, at_base, inside[0])
    verdicts = [deviation(check, raw) for check, raw in zip(inside, found, strict=True)]
    try:
        verdicts.append(deviation(outside, prober.predict_all(outside)))
    except REFUSALS:  # splines and logarithms have a range
        verdicts.append((np.inf, False))
    residual, is_affine = max(v[0] for v in verdicts), known and all(v[1] for v in verdicts)
    is_constant = is_affine and not coef.any() and not any(e.any() for e in effects)
    if is_constant and prober.is_piecewise():
        residual, is_affine, is_constant = np.inf, False, False
    return Probed(
        coef=coef,
        effects=effects,
        at_base=at_base.value[0],
        base=prober.base[prober.movable],
        residual=residual,
        is_affine=is_affine,
        is_constant=is_constant,
        is_vector=prober.is_vector,
        movable=prober.movable,
        link=link,
        method=response_method,
        rounding=rounding,
        base_response=at_base.response[0],
        prober=prober,
        deviation=deviation,
    )
