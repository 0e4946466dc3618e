"""What an attack does row by row: how far it must go to change a class, and where it goes."""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import is_classifier
from sklearn.utils.validation import check_consistent_length

from sklearn_gradhess._attack_on_table import AttackOnTable, Moves
from sklearn_gradhess._classification_risk import fitted_labels, label_search, labels_of
from sklearn_gradhess._linear import LinearResponse, linear_predictions, linear_scores
from sklearn_gradhess._options import Options, responses_of
from sklearn_gradhess._scorer import AdversarialScorer, checked_radius
from sklearn_gradhess._table import Table
from sklearn_gradhess._worst import squared

__all__ = ["certified_radius", "worst_case_inputs"]

Array = npt.NDArray[np.float64]

# Radii between which a certified one is looked for, and halvings of their ratio
_LEAST, _MOST, _HALVINGS = 1e-100, 1e100, 64
# Steps of the ascent of a convex loss of several outputs
_ASCENT = 50


def certified_radius(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    norm: Any = 2,
    scale: Any = None,
    covariance: Any = None,
    features: Any = None,
    bounds: Any = None,
    n_columns: int | None = None,
    integer: Any = "auto",
    categories: Any = None,
    link: str = "auto",
) -> Array:
    """Find for each row the radius within which no attack changes its class.

    The least over rivals j of ``(f_k - f_j) / ||w_k - w_j||_*``, k the class that is predicted:
    exact for linear classifiers, no attack is run.

    Parameters
    ----------
    estimator : object
        Fitted classifier, or pipeline, whose scores are affine in X, as for `adversarial_accuracy`.
    X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
        Rows, in raw units.
    y : array-like of shape (n_samples,), default=None
        Labels. With them the radius is zero where the prediction is wrong, so that the share of
        rows above a radius is the adversarial accuracy at it.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack.
    scale : float, dict, or array-like of shape (n_features,), default=None
        Budget of each column, by position or by name; zero freezes it.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        Covariance of the Mahalanobis norm, see `make_adversarial_scorer`.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take, for norm=inf.
    n_columns : int, default=None
        Most columns that the attack moves in a row. None is all.
    integer : "auto", None, or array-like of str, int or bool, default="auto"
        Columns that move by whole steps, see `make_adversarial_scorer`.
    categories : list or dict, default=None
        Categories that the attack may change, see `make_adversarial_scorer`.
    link : {"auto", "identity", "logit"}, default="auto"
        What is affine: the decision function, or the log odds of `predict_proba`.

    Returns
    -------
    radius : ndarray of shape (n_samples,)
        In the units of X, or as a multiple of `scale`. Infinite where no attack of the kind changes
        the class; zero on a decision boundary.

    Raises
    ------
    ValueError
        If the classifier has no scores that are affine and decide what it predicts, or the attack
        does not fit X.

    References
    ----------
    MATH section 5.2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_gradhess.metrics import certified_radius
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> certified_radius(model, X)[:3].round(2)
    array([1.41, 1.25, 1.49])
    >>> float((certified_radius(model, X, y) > 0.5).mean())
    0.72
    """
    asked = AdversarialScorer(
        radius=0.0,
        norm=norm,
        metric="accuracy",
        feature_scale=scale,
        scale_name="scale",
        features=features,
        bounds=bounds,
        covariance=covariance,
        n_columns=n_columns,
        integer=integer,
        categories=categories,
        link=link,
    )
    return _certified(estimator, asked.on(Table(X)), link, y)


def worst_case_inputs(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    radius: float,
    norm: Any = 2,
    scale: Any = None,
    covariance: Any = None,
    features: Any = None,
    bounds: Any = None,
    n_columns: int | None = None,
    integer: Any = "auto",
    categories: Any = None,
    link: str = "auto",
    on_nonaffine: str = "raise",
    max_queries: int = 200,
    random_state: Any = 0,
) -> Any:
    """Move each row to where the attack makes its prediction the worst.

    To look at, to test other models on, or to train on. For a regressor the worst is the largest
    squared error, which is that of the largest absolute error too; for a classifier the least
    margin of the true class, a wrong label where there is one. Exact where the predictor is affine,
    or affine behind a link; the best that a search finds elsewhere. Several outputs are attacked
    together, by ascent of the sum of their squared errors.

    Parameters
    ----------
    estimator : object
        Fitted regressor or classifier.
    X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
        Rows, in raw units.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets or labels.
    radius : float
        Radius of the attack, in the units of X, or as a multiple of `scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack.
    scale : float, dict, or array-like of shape (n_features,), default=None
        Budget of each column, by position or by name; zero freezes it.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        Covariance of the Mahalanobis norm, see `make_adversarial_scorer`.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take, for norm=inf.
    n_columns : int, default=None
        Most columns that the attack moves in a row. None is all.
    integer : "auto", None, or array-like of str, int or bool, default="auto"
        Columns that move by whole steps, see `make_adversarial_scorer`.
    categories : list or dict, default=None
        Categories that the attack may change, see `make_adversarial_scorer`.
    link : {"auto", "identity", "log", "log1p", "logit"}, default="auto"
        What is affine, see `make_adversarial_scorer`.
    on_nonaffine : {"raise", "linearize", "search"}, default="raise"
        What to do with other predictors, see `make_adversarial_scorer`.
    max_queries : int, default=200
        Most predictions that a search spends on each row.
    random_state : int, RandomState instance or None, default=0
        Of a search.

    Returns
    -------
    X_attacked : {ndarray, sparse matrix, DataFrame} of shape (n_samples, n_features)
        In the container of X, with its index; columns that move are floats. Columns that the
        attack leaves alone, categories, strings and dates among them, are as in X.

    Raises
    ------
    ValueError
        As `make_adversarial_scorer` and its scorers, and if a label was not fitted on.

    References
    ----------
    MATH section 5.2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_gradhess.metrics import make_adversarial_scorer, worst_case_inputs
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> model = Ridge().fit(X, y)
    >>> attacked = worst_case_inputs(model, X, y, radius=0.5, scale=X.std(axis=0))
    >>> float(np.mean((model.predict(attacked) - y) ** 2).round(6))
    6277.816965
    >>> scorer = make_adversarial_scorer(0.5, feature_scale=X.std(axis=0))
    >>> round(-scorer(model, X, y), 6)
    6277.816965
    """
    if checked_radius(radius).ndim != 0:
        raise ValueError(f"radius must be one number, got {radius!r}: rows move once.")
    asked = AdversarialScorer(
        radius=radius,
        norm=norm,
        metric="accuracy" if is_classifier(estimator) else "mse",
        feature_scale=scale,
        scale_name="scale",
        features=features,
        bounds=bounds,
        covariance=covariance,
        n_columns=n_columns,
        integer=integer,
        categories=categories,
        link=link,
        on_nonaffine=on_nonaffine,
        max_queries=max_queries,
        random_state=random_state,
    )
    found = asked.on(Table(X))
    check_consistent_length(found.table.numbers(slice(None)), y)
    moves = _worst_moves(estimator, found, y, float(radius), asked.options)
    attacked = found.attacked(slice(None), moves)
    if hasattr(X, "iloc"):
        attacked.index = X.index
    return attacked


def _certified(estimator: Any, attack: AttackOnTable, link: str, y: Any = None) -> Array:
    """Radius of each row within which no attack changes its class."""
    radius = _within(estimator, attack, link, y, 0.0)
    finite = radius[np.isfinite(radius) & (radius > 0)]
    if len(finite):  # scores must be affine as far as attacks go
        radius = _within(estimator, attack, link, y, float(np.median(finite)))
    return radius


def _within(estimator: Any, attack: AttackOnTable, link: str, y: Any, reach: float) -> Array:
    try:
        found = linear_scores(estimator, attack, link, "raise", reach)
    except ValueError as error:
        error.add_note(
            "A search finds attacks, and proves nothing where it finds none: what is certified "
            "needs a closed form."
        )
        raise
    assert found is not None
    classes = np.asarray(found.classes)
    own = np.argmax(found.raw, axis=1)
    if y is not None:
        y, _ = labels_of(estimator, y, len(own))
        own = np.where(classes[own] == y, own, -1)
    radius = np.zeros(len(own))
    for k in range(len(classes)):
        rows = np.flatnonzero(own == k)
        if len(rows):
            radius[rows] = _of_class(found, attack, k, rows)
    return radius


def _of_class(found: LinearResponse, attack: AttackOnTable, k: int, rows: Any) -> Array:
    """Radius of rows of one class: margins over dual norms, or by bisection of a monotone rule."""
    margin = found.raw[rows, k, None] - np.delete(found.raw[rows], k, axis=1)
    rivals = found.coef[k] - np.delete(found.coef, k, axis=0)
    if attack.is_uniform:
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(margin > 0, margin / np.atleast_1d(attack.dual(rivals)), 0.0)
        return np.asarray(each.min(axis=1, initial=np.inf))
    effects = [effect[k] - np.delete(effect, k, axis=0) for effect in found.effects]

    def holds(radius: Array) -> npt.NDArray[np.bool_]:
        low, _ = attack.changes(rivals, radius, rows, effects)
        return np.all(margin + low > 0, axis=1)

    low, high = np.full(len(rows), _LEAST), np.full(len(rows), _MOST)
    never, always = holds(high), ~holds(low)
    for _ in range(_HALVINGS):
        middle = np.sqrt(low) * np.sqrt(high)
        safe = holds(middle)
        low, high = np.where(safe, middle, low), np.where(safe, high, middle)
    return np.where(never, np.inf, np.where(always, 0.0, low))


def _worst_moves(
    estimator: Any, attack: AttackOnTable, y: Any, radius: float, options: Options
) -> Moves:
    """Find moves that make each row's squared error, or the margin of its class, the worst."""
    if options.metric == "accuracy":
        return _against_labels(estimator, attack, y, radius, options)
    found = linear_predictions(estimator, attack, options.link, options.on_nonaffine, radius)
    y = np.asarray(y, dtype=np.float64).reshape(attack.table.n_rows, -1)
    if found is None:
        return _searched_error(estimator, attack, y, radius, options)
    return _ascended(found, attack, y, radius)


def _searched_error(
    estimator: Any, attack: AttackOnTable, y: Array, radius: float, options: Options
) -> Moves:
    def loss(response: Array, rows: Any) -> Array:
        return np.asarray(squared(y[rows], response).sum(axis=1))

    return options.search(responses_of(estimator, "predict"), attack, radius, loss).moves


def _ascended(found: LinearResponse, attack: AttackOnTable, y: Array, radius: float) -> Moves:
    """Ascent of the squared error from either end of each output.

    It is convex in the raw predictions, or falls and then rises behind a link, so that for one
    output an end is the worst; for several every step along its slope raises it.
    """
    rows = np.arange(len(y))

    def error(moves: Moves) -> tuple[Array, Array]:
        raw = found.raw + attack.rise(found.coef, found.effects, rows, moves)
        wrong = found.link.inverse(raw) - y
        return wrong, np.sum(np.square(wrong), axis=1)

    def along(pull: Array) -> Moves:
        return attack.moves(pull @ found.coef, radius, rows, [pull @ e for e in found.effects])

    best, most = along(np.zeros(y.shape)), np.full(len(y), -np.inf)
    for k in range(y.shape[1]):
        for sign in (-1.0, 1.0):
            pull = np.zeros(y.shape)
            pull[:, k] = sign
            for _ in range(_ASCENT if y.shape[1] > 1 else 1):
                moves = along(pull)
                wrong, value = error(moves)
                better = value > most * (1 + 1e-12)
                best, most = _where(better, moves, best), np.where(better, value, most)
                if y.shape[1] == 1 or not better.any():
                    break
                pull = wrong
    return best


def _against_labels(
    estimator: Any, attack: AttackOnTable, y: Any, radius: float, options: Options
) -> Moves:
    found = linear_scores(estimator, attack, options.link, options.on_nonaffine, radius)
    what = "their rows are wrong already. Leave them out."
    _, classes, true = fitted_labels(estimator, y, attack.table.n_rows, what)
    if found is None:
        responses, loss = label_search(estimator, true)
        return options.search(responses, attack, radius, loss).moves
    rows = np.arange(len(true))
    best, least = None, np.full(len(true), np.inf)
    for rival in range(len(classes)):
        towards = found.coef[rival] - found.coef[true]
        effects = [effect[rival] - effect[true] for effect in found.effects]
        moves = attack.moves(towards, radius, rows, effects)
        margin = found.raw[rows, true] - found.raw[:, rival] - moves.gain
        closer = (margin < least) & (true != rival)
        best = moves if best is None else _where(closer, moves, best)
        least = np.where(closer, margin, least)
    assert best is not None
    return best


def _where(chosen: npt.NDArray[np.bool_], new: Moves, old: Moves) -> Moves:
    return Moves(
        np.where(chosen[:, None], new.delta, old.delta),
        [np.where(chosen, a, b) for a, b in zip(new.levels, old.levels, strict=True)],
        np.where(chosen, new.gain, old.gain),
    )
