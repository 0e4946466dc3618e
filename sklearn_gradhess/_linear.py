"""Raw predictions that are affine in the columns under attack, whatever the link before them.

A metric needs the predictions of a regressor, or the scores of a classifier, behind a link that
makes them affine. Which link that is, is tried out; and as the metric has the predictions at every
row of X at hand, every one of them must agree with the affine map, as must some attacked rows, and
the labels on both sides of where they should change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from sklearn_gradhess._attack_on_table import AttackOnTable
from sklearn_gradhess._culprit import culprit
from sklearn_gradhess._link import IDENTITY, LINKS, Link
from sklearn_gradhess._probe import (
    REFUSALS,
    Domain,
    NoSlopeError,
    Probed,
    check_finite,
    is_blind,
    probe,
    respond,
)
from sklearn_gradhess._table import batch_rows, batches

__all__ = ["LinearResponse", "check_link", "linear_predictions", "linear_scores", "log_odds"]

Array = npt.NDArray[np.float64]

# Attacked rows, and rows where labels change, that are tried out
N_ATTACKED, N_DECISIONS = 1000, 200
NONAFFINE = ("raise", "linearize", "search")


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearResponse:
    """Raw predictions at the rows of X, and how they change under attack."""

    raw: Array  # of shape (n_rows, n_outputs)
    coef: Array  # of shape (n_outputs, n_features)
    effects: Sequence[Array]  # of shape (n_outputs, n_levels) for each category
    link: Link
    method: str
    is_affine: bool
    residual: float
    is_vector: bool = True  # whether predictions came as a vector
    classes: npt.NDArray[Any] | None = None

    def ends(self, attack: AttackOnTable, radius: float) -> tuple[Array, Array]:
        """Least and greatest prediction that the attack can make, after the inverse link."""
        rows = np.arange(len(self.raw))
        low, high = attack.changes(self.coef, radius, rows, self.effects)
        return self.link.inverse(self.raw + low), self.link.inverse(self.raw + high)


def check_link(link: str, on_nonaffine: str) -> None:
    """Raise ValueError for an unknown option."""
    if link not in ("auto", *LINKS):
        raise ValueError(f"link must be one of {['auto', *LINKS]}, got {link!r}.")
    if on_nonaffine not in NONAFFINE:
        raise ValueError(
            f"on_nonaffine must be 'raise', 'linearize' or 'search', got {on_nonaffine!r}."
        )


def linear_predictions(
    estimator: Any, attack: AttackOnTable, link: str, on_nonaffine: str, radius: float
) -> LinearResponse | None:
    """Predictions of a regressor behind a link; None where they are to be searched."""
    names = ("identity", "log", "log1p") if link == "auto" else (link,)
    return _first(estimator, attack, [("predict", name) for name in names], on_nonaffine, radius)


def linear_scores(
    estimator: Any,
    attack: AttackOnTable,
    link: str,
    on_nonaffine: str,
    radius: float,
    *,
    decides: bool = True,
) -> LinearResponse | None:
    """Scores of a classifier, one column a class; None where they are to be searched.

    Unless it does not matter what it decides, its labels must be those of the largest score.
    """
    name = type(estimator).__name__
    has = {method: hasattr(estimator, method) for method in ("decision_function", "predict_proba")}
    if on_nonaffine == "search" and not any(has.values()):
        return None
    if hasattr(estimator, "predict") and not any(has.values()):
        estimator.predict(attack.table.native([0]))  # an estimator that is not fitted says so
        raise ValueError(
            f"{name} has no decision function, and only a linear one has a closed form. Use a "
            "linear classifier such as LogisticRegression, RidgeClassifier or LinearSVC."
        )
    if link == "auto" and not has["decision_function"] and has["predict_proba"]:
        link = "logit"
    methods = {
        "auto": [("decision_function", "identity"), ("predict_proba", "logit")][
            : 1 + has["predict_proba"]
        ],
        "identity": [("decision_function", "identity")],
        "logit": [("predict_proba", "logit")],
    }
    if link not in methods:
        raise ValueError(f"link={link!r} is for predictions of regressors: use 'logit' or 'auto'.")
    found = _first(estimator, attack, methods[link], on_nonaffine, radius)
    if found is None:
        return None
    scores = _by_class(found, estimator)
    for wrong, where in _decisions(estimator, attack, scores) if decides else ():
        if wrong.any() and on_nonaffine == "search":
            return None
        if wrong.any():
            raise ValueError(
                f"{name} predicts another class than that of its largest decision value for "
                f"{wrong.sum()} of {len(wrong)} rows{where}, so its margins do not tell what fools "
                "it. Use a classifier without a threshold of its own or votes between pairs."
            )
    return scores


def log_odds(
    estimator: Any, attack: AttackOnTable, link: str, on_nonaffine: str, radius: float
) -> LinearResponse | None:
    """Scores of a classifier whose softmax are its probabilities; None where to be searched."""
    table, name = attack.table, type(estimator).__name__
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"{name} has no predict_proba, and log loss is of probabilities. Wrap it in "
            "CalibratedClassifierCV(ensemble=False), or take metric='accuracy'."
        )
    probability = respond(estimator, table.X, "predict_proba")
    if link in ("auto", "identity") and hasattr(estimator, "decision_function"):
        found = _first(estimator, attack, [("decision_function", "identity")], "search", radius)
        if found is not None:
            scores = _by_class(found, estimator)
            if np.allclose(softmax(scores.raw, axis=1), probability, rtol=0, atol=1e-9):
                return scores
    found = _first(estimator, attack, [("predict_proba", "logit")], on_nonaffine, radius)
    return None if found is None else _by_class(found, estimator)


def _first(
    estimator: Any,
    attack: AttackOnTable,
    candidates: Sequence[tuple[str, str]],
    on_nonaffine: str,
    radius: float,
) -> LinearResponse | None:
    """First response of the candidates, each a method and a link, that is affine."""
    failed: list[LinearResponse] = []
    response = np.empty((0, 0))
    for method, name in candidates:
        link = LINKS[name]
        if failed and method == failed[-1].method and not link.is_defined(response):
            continue
        try:
            probed = _probed(estimator, attack, method, link)
        except NoSlopeError:
            # an exponential can overflow where its logarithm does not
            if (method, name) == candidates[-1]:
                raise
            continue
        if not failed or method != failed[-1].method:
            response = check_finite(estimator, respond(estimator, attack.table.X, method), method)
            response = response.reshape(len(response), -1)
        found = _verified(probed, attack, response, radius)
        if found.is_affine:
            return found
        failed.append(found)
    if on_nonaffine == "search":
        return None
    if on_nonaffine == "linearize":
        return failed[0]
    raise ValueError(_refusal(estimator, attack, failed))


def _refusal(estimator: Any, attack: AttackOnTable, failed: list[LinearResponse]) -> str:
    name, first = type(estimator).__name__, failed[0]
    if first.method == "predict_proba":
        what = f"{name} has no decision function, and the log odds of its predict_proba are"
        other = " Use a linear classifier such as LogisticRegression, RidgeClassifier or LinearSVC."
    else:
        what, other = f"{name} is", ""
        links = [found.link.name for found in failed[1:]]
        if links:
            other = f" Nor is it behind the link {' or '.join(links)}."
    step = culprit(estimator, attack.table, attack.mask)
    return (
        f"{what} not affine in the columns under attack: predictions at rows of X, recombined and "
        f"extrapolated rows are off by {first.residual:.2g} of their spread, so there is no closed "
        f"form.{step}{other} Name the columns in which it is affine with features=, or accept a "
        "first-order value, which is no bound, with on_nonaffine='linearize', or a lower bound of "
        "the risk with on_nonaffine='search'."
    )


def _probed(estimator: Any, attack: AttackOnTable, method: str, link: Link) -> Probed:
    flips = attack.whole & (attack.table.kinds == "b")
    domain = Domain(movable=attack.mask, whole=attack.whole, flips=flips, groups=attack.groups)
    return probe(estimator, attack.table, domain, method, link)


def _verified(
    found: Probed, attack: AttackOnTable, response: Array, radius: float
) -> LinearResponse:
    """Compare what was probed with the predictions at all rows of X, and at some attacked rows."""
    raw, verdicts = found.link.raw(response), [(found.residual, found.is_affine)]
    if found.is_affine:
        values = []
        for part in batches(len(response), attack.table.n_columns):
            value, verdict = _compared(found, attack, response[part], part)
            values.append(value)
            verdicts.append(verdict)
        raw = np.concatenate(values)
        if radius > 0:
            verdicts.append(_attacked(found, attack, raw, radius))
    return LinearResponse(
        raw=raw,
        coef=found.coef,
        effects=found.effects,
        link=found.link,
        method=found.method,
        is_affine=all(verdict[1] for verdict in verdicts),
        residual=max(verdict[0] for verdict in verdicts),
        is_vector=found.is_vector,
    )


def _compared(
    found: Probed, attack: AttackOnTable, response: Array, rows: slice
) -> tuple[Array, tuple[float, bool]]:
    """Raw predictions at rows of X, and whether the affine map through the base row has them."""
    prober, table = found.prober, attack.table
    own = prober.raw(response)
    origin = prober.raw(found.base_response[None])
    base = prober.base
    if table.is_sparse and not attack.has_missing:
        x = table.native(rows)
        rise = x @ found.coef.T - (base * found.movable) @ found.coef.T
        size = abs(x) @ np.abs(found.coef.T) + 2 * np.abs(base) @ np.abs(found.coef.T)
        slack = abs(x) @ found.rounding.T + np.abs(base) @ found.rounding.T
        still = None
    else:
        x = table.numbers(rows)
        moved = np.nan_to_num(np.where(found.movable, x - base, 0.0))
        rise = moved @ found.coef.T
        size = (np.abs(np.nan_to_num(x)) + np.abs(moved)) @ np.abs(found.coef.T)
        slack = np.abs(moved) @ found.rounding.T
        still = np.where(found.movable & np.isnan(x), np.nan, base)
    if not found.movable.all() or attack.has_missing:
        # the same row with every number at the base: frozen columns and missing values stay
        sources = np.arange(table.n_rows)[rows]
        if still is None:
            still = np.tile(base, (len(sources), 1))
        try:
            origin = prober.predict(still, sources)
        except REFUSALS:
            return own.value, (np.inf, False)
    verdict = found.deviation.judge(origin, own, rise, size, slack)
    # at the end of its range a prediction does not tell the raw one: the map does
    told = is_blind(own) & ~is_blind(origin)
    return np.where(told, origin.value + rise, own.value), verdict


def _attacked(
    found: Probed, attack: AttackOnTable, raw: Array, radius: float
) -> tuple[float, bool]:
    """Whether some rows of X are where the affine map has them after an attack."""
    table, prober = attack.table, found.prober
    n = min(table.n_rows, N_ATTACKED, max(24, batch_rows(table.n_columns)))
    rows = np.unique(np.linspace(0, table.n_rows - 1, n).astype(np.intp))
    k = len(found.coef)
    output, other = rows % k, (rows // k) % k
    sign = np.where((rows // 2) % 2, 1.0, -1.0)[:, None]
    towards = np.where((other == output) | (k <= 2), 0.0, 1.0)[:, None]

    def direction(values: Array) -> Array:
        return np.asarray(sign * (values[output] - towards * values[other]))

    moves = attack.moves(direction(found.coef), radius, rows, [direction(e) for e in found.effects])
    try:
        own = prober.raw(respond(prober.estimator, attack.attacked(rows, moves), found.method))
    except REFUSALS:
        return np.inf, False
    rise = attack.rise(found.coef, found.effects, rows, moves)
    x = np.abs(np.nan_to_num(table.numbers(rows)))
    size = (x + np.abs(moves.delta)) @ np.abs(found.coef.T)
    slack = np.abs(moves.delta) @ found.rounding.T
    origin = own._replace(value=raw[rows], error=np.zeros_like(raw[rows]))
    return found.deviation.judge(origin, own, rise, size, slack)


def _by_class(found: LinearResponse, estimator: Any) -> LinearResponse:
    """Scores with one column a class: with two classes that of the first is zero."""
    classes = np.asarray(estimator.classes_)
    raw, coef, effects = found.raw, found.coef, found.effects
    if raw.shape[1] == 1:
        raw = np.column_stack([np.zeros(len(raw)), raw])
        coef = np.concatenate([np.zeros_like(coef), coef])
        effects = [np.concatenate([np.zeros_like(e), e]) for e in effects]
    if raw.shape[1] != len(classes):
        raise ValueError(
            f"The decision function of {type(estimator).__name__} has {raw.shape[1]} columns for "
            f"{len(classes)} classes: it votes between pairs. Wrap a linear classifier in "
            "OneVsRestClassifier."
        )
    return replace(found, raw=raw, coef=coef, effects=effects, link=IDENTITY, classes=classes)


def _decisions(
    estimator: Any, attack: AttackOnTable, scores: LinearResponse
) -> Sequence[tuple[npt.NDArray[np.bool_], str]]:
    """Labels that are not of the largest score: at rows of X, and where labels should change."""
    classes = np.asarray(scores.classes)

    def wrong(raw: Array, labels: Any, least: Any) -> npt.NDArray[np.bool_]:
        ordered = np.sort(raw, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > least
        return np.asarray((classes[np.argmax(raw, axis=1)] != np.asarray(labels)) & clear)

    raw, table = scores.raw, attack.table
    least = 1e-12 * np.abs(raw).max(axis=1)
    found = [(wrong(raw, estimator.predict(table.X), least), "")]
    if not scores.is_affine:
        return found
    n = min(table.n_rows, N_DECISIONS, max(4, batch_rows(table.n_columns)))
    rows = np.unique(np.linspace(0, table.n_rows - 1, n).astype(np.intp))
    x, order = table.numbers(rows), np.argsort(raw[rows], axis=1)
    top, second = order[:, -1], order[:, -2]
    low, high, _ = table.spread(attack.mask)
    freely = attack.mask & ~attack.whole & ~np.isnan(x)
    apart = scores.coef[second] - scores.coef[top]
    direction = np.where(freely, np.square(high - low) * apart, 0.0)
    slope = np.sum(direction * apart, axis=1)
    gap = raw[rows, top] - raw[rows, second]
    size = (np.abs(np.nan_to_num(x)) + np.abs(high - low)) @ np.abs(scores.coef.T)
    step = np.maximum(1e-5 * np.median(gap), 1e3 * table.epsilon * size.max(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        for sign in (-1.0, 1.0):
            delta = ((gap + sign * step) / slope)[:, None] * direction
            ok = np.isfinite(delta).all(axis=1)
            if not ok.any():
                continue
            moved = raw[rows] + np.nan_to_num(delta) @ scores.coef.T
            try:
                attacked = table.rebuilt((x + delta)[ok], rows[ok], attack.mask)
                labels = estimator.predict(attacked)
            except REFUSALS:
                continue
            bad = wrong(moved[ok], labels, step[ok] / 2)
            found.append((bad, " moved to where its largest decision value changes"))
    return found
