"""Risk of classifiers under attack: accuracy, ranking and log loss."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sklearn_gradhess._attack_on_table import AttackOnTable
from sklearn_gradhess._linear import LinearResponse, linear_scores, log_odds
from sklearn_gradhess._options import (
    AdversarialRisk,
    Options,
    by_search,
    curve,
    kind_of,
    responses_of,
)
from sklearn_gradhess._probe import respond
from sklearn_gradhess._table import batches
from sklearn_gradhess._validation import check_weights

__all__ = [
    "accuracy_under_attack",
    "auc_under_attack",
    "label_search",
    "labels_of",
    "log_loss_under_attack",
]

Array = npt.NDArray[np.float64]

# Steps of an ascent of the multiclass log loss
N_ASCENT = 50


def labels_of(estimator: Any, y: Any, n: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return labels as a vector, and the classes; ValueError if they are of another type."""
    y, classes = column_or_1d(y), np.asarray(estimator.classes_)
    check_consistent_length(np.empty(n), y)
    texts = [_is_text(y), _is_text(classes)]
    if texts[0] != texts[1]:
        kinds = ["texts" if is_text else "numbers" for is_text in texts]
        raise ValueError(
            f"y has labels that are {kinds[0]}, such as {y[:1].tolist()[0]!r}, but "
            f"{type(estimator).__name__} was fitted on {kinds[1]}, such as "
            f"{classes[:1].tolist()[0]!r}: no prediction can be right. Pass labels of the type "
            "that it was fitted on."
        )
    return y, classes


def fitted_labels(
    estimator: Any, y: Any, n: int, what: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Return labels, classes and positions among them; ValueError, with what it means, if none."""
    y, classes = labels_of(estimator, y, n)
    unknown = ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"y has {unknown.sum()} labels that {type(estimator).__name__} was not fitted on, such "
            f"as {y[unknown].tolist()[0]!r}: {what}"
        )
    return y, classes, np.searchsorted(classes, y)


def _is_text(labels: npt.NDArray[Any]) -> bool:
    return labels.dtype.kind in "US" or (
        labels.dtype == object and any(isinstance(label, str) for label in labels)
    )


def accuracy_under_attack(
    estimator: Any, attack: AttackOnTable, y: Any, radii: Array, weights: Any, options: Options
) -> AdversarialRisk:
    """Share of rows that are right whatever the attack, at each of the radii."""
    most = float(radii.max(initial=0.0))
    found = linear_scores(estimator, attack, options.link, options.on_nonaffine, most)
    y, classes = labels_of(estimator, y, attack.table.n_rows)
    weights = check_weights(weights, np.empty((len(y), 1)))
    if found is None:
        return _searched_accuracy(estimator, attack, y, radii, weights, options)
    score, coef = found.raw, found.coef

    def at(radius: float) -> float:
        robust = np.zeros(len(y), dtype=bool)
        for k, label in enumerate(classes):
            rows = np.flatnonzero(y == label)
            margin = score[rows, k, None] - np.delete(score[rows], k, axis=1)
            rivals = coef[k] - np.delete(coef, k, axis=0)
            effects = [e[k] - np.delete(e, k, axis=0) for e in found.effects]
            if len(rows):
                low = attack.changes(rivals, radius, rows, effects)[0]
                robust[rows] = np.all(margin + low > 0, axis=1)
        return float(np.average(robust, weights=weights))

    return AdversarialRisk(curve(radii, at), kind_of(found), _link_name(found))


def _link_name(found: LinearResponse) -> str | None:
    if not found.is_affine:
        return None
    return "logit" if found.method == "predict_proba" else "identity"


def _scoring_method(estimator: Any) -> str | None:
    methods = ("decision_function", "predict_proba")
    return next((method for method in methods if hasattr(estimator, method)), None)


def label_search(
    estimator: Any, true: npt.NDArray[np.intp]
) -> tuple[Callable[[Any], Array], Callable[[Array, Any], Array]]:
    """Responses and loss of a search for wrong labels; true is the class of each row, or -1.

    The last column of the responses is the label, which decides; the scores show the way.
    """
    code = {label: k for k, label in enumerate(np.asarray(estimator.classes_).tolist())}
    method = _scoring_method(estimator)

    def responses(rows: Any) -> Array:
        labels = np.asarray(estimator.predict(rows))
        codes = np.array([code[label] for label in labels.tolist()], dtype=np.float64)
        if method is None:
            return codes[:, None]
        score = respond(estimator, rows, method).reshape(len(codes), -1).astype(np.float64)
        return np.column_stack([score, codes])

    def loss(response: Array, rows: Any) -> Array:
        wrong = response[:, -1] != true[rows]
        score = response[:, :-1]
        if score.shape[1] == 1:
            score = np.column_stack([np.zeros(len(score)), score])
        if score.shape[1] != len(code):
            return wrong.astype(np.float64)
        at = np.arange(len(score))
        own = score[at, np.maximum(true[rows], 0)].copy()
        rival = score.copy()
        rival[at, np.maximum(true[rows], 0)] = -np.inf
        margin = own - rival.max(axis=1)
        # any wrong label is worse than any right one
        return np.asarray(np.where(wrong, 2.0, 0.0) - margin / (1 + np.abs(margin)))

    return responses, loss


def _searched_accuracy(
    estimator: Any, attack: AttackOnTable, y: Any, radii: Array, weights: Any, options: Options
) -> AdversarialRisk:
    code = {label: k for k, label in enumerate(np.asarray(estimator.classes_).tolist())}
    true = np.array([code.get(label, -1) for label in y.tolist()])
    responses, loss = label_search(estimator, true)

    def at(radius: float) -> float:
        worst = options.search(responses, attack, radius, loss).response
        return float(np.average(worst[:, -1] == true, weights=weights))

    return by_search(radii, at, options)


def auc_under_attack(
    estimator: Any, attack: AttackOnTable, y: Any, radii: Array, weights: Any, options: Options
) -> AdversarialRisk:
    """Area under the ROC curve of the worst attack, at each of the radii."""
    most = float(radii.max(initial=0.0))
    y, classes = labels_of(estimator, y, attack.table.n_rows)
    if len(classes) != 2:
        raise ValueError(
            f"metric='roc_auc' is for two classes, and {type(estimator).__name__} has "
            f"{len(classes)}. Use 'accuracy' or 'log_loss', or score one class against the rest."
        )
    positive, side = y == classes[1], np.where(y == classes[1], -1.0, 1.0)
    # what is predicted at a threshold does not matter to a ranking
    scores = linear_scores(
        estimator, attack, options.link, options.on_nonaffine, most, decides=False
    )
    if scores is None:
        responses = responses_of(estimator, _scoring_method(estimator) or "predict")

        def loss(response: Array, rows: Any) -> Array:
            return np.asarray(side[rows] * response[:, -1])

        def at(radius: float) -> Any:
            found = options.search(responses, attack, radius, loss)
            return roc_auc_score(positive, found.response[:, -1], sample_weight=weights)

        return by_search(radii, at, options)
    raw, coef = scores.raw[:, 1] - scores.raw[:, 0], scores.coef[1:] - scores.coef[:1]
    effects = [e[1:] - e[:1] for e in scores.effects]

    def ranked(radius: float) -> Any:
        # each row on its own: a pair is ordered worst where both its rows are
        low, high = attack.changes(coef, radius, np.arange(len(raw)), effects)
        worst = raw + np.where(positive, low[:, 0], high[:, 0])
        return roc_auc_score(positive, worst, sample_weight=weights)

    return AdversarialRisk(curve(radii, ranked), kind_of(scores), _link_name(scores))


def log_loss_under_attack(
    estimator: Any, attack: AttackOnTable, y: Any, radii: Array, weights: Any, options: Options
) -> AdversarialRisk:
    """Log loss of the worst attack, at each of the radii."""
    most = float(radii.max(initial=0.0))
    found = log_odds(estimator, attack, options.link, options.on_nonaffine, most)
    what = "they have no probability, and the log loss is infinite."
    y, classes, true = fitted_labels(estimator, y, attack.table.n_rows, what)
    weights = check_weights(weights, np.empty((len(y), 1)))
    rows = np.arange(len(y))
    if found is None:
        responses = responses_of(estimator, "predict_proba")

        def loss(response: Array, rows: Any) -> Array:
            return -np.log(np.maximum(response[np.arange(len(rows)), true[rows]], 1e-300))

        def found_loss(radius: float) -> Any:
            worst = options.search(responses, attack, radius, loss).response
            return log_loss(y, worst, labels=classes, sample_weight=weights)

        return by_search(radii, found_loss, options)
    raw = found.raw - found.raw[rows, true][:, None]

    def at(radius: float) -> float:
        if len(classes) == 2:
            change = attack.changes(
                found.coef[1:] - found.coef[:1],
                radius,
                rows,
                [e[1:] - e[:1] for e in found.effects],
            )
            towards = np.where(true == 0, change[1][:, 0], -change[0][:, 0])
            worst = np.logaddexp(0.0, raw[rows, 1 - true] + towards)
        else:
            parts = batches(len(raw), attack.table.n_columns)
            worst = np.concatenate(
                [_ascended(found, attack, raw, true, radius, rows[p]) for p in parts]
            )
        # scikit-learn takes no probability for less than a rounding of one
        worst = np.minimum(worst, -np.log(np.finfo(np.float64).eps))
        return float(np.average(worst, weights=weights))

    return AdversarialRisk(curve(radii, at), kind_of(found), _link_name(found))


def _ascended(
    found: LinearResponse, attack: AttackOnTable, raw: Array, true: Any, radius: float, rows: Any
) -> Array:
    """Log loss of several classes after ascent from every rival, for some rows.

    It is convex, so going where its gradient at one attack points never lowers it: every ascent
    ends at a corner or a point of the sphere that no such step improves.
    """
    raw, true, at = raw[rows], true[rows], np.arange(len(rows))
    best = logsumexp(raw, axis=1)
    for rival in range(raw.shape[1]):
        share = np.zeros_like(raw)
        share[:, rival] = 1.0
        for _ in range(N_ASCENT):
            pull = share.copy()
            pull[at, true] -= 1.0
            moves = attack.moves(pull @ found.coef, radius, rows, [pull @ e for e in found.effects])
            worst = raw + attack.rise(found.coef, found.effects, rows, moves)
            worst = worst - worst[at, true][:, None]
            value = logsumexp(worst, axis=1)
            best = np.maximum(best, value)
            before, share = share, np.exp(worst - value[:, None])
            if np.abs(share - before).max() < 1e-9:
                break
    return np.asarray(best)
