"""What the worst attack does to a prediction: exact metrics, scorers, and estimates."""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.utils.validation import check_consistent_length

from sklearn_gradhess._affine import EffectiveCoef, effective_coef
from sklearn_gradhess._attack import Attack
from sklearn_gradhess._attacked_rows import certified_radius, worst_case_inputs
from sklearn_gradhess._gradient_risk import GradientAdversarialRisk, gradient_adversarial_risk
from sklearn_gradhess._options import AdversarialRisk, Options
from sklearn_gradhess._risk import dual_norm, gaussian_adversarial_risk
from sklearn_gradhess._scorer import AdversarialScorer, checked_radius, under_attack
from sklearn_gradhess._table import Table
from sklearn_gradhess._validation import check_weights
from sklearn_gradhess._worst import Loss, raw_loss

__all__ = [
    "AdversarialRisk",
    "EffectiveCoef",
    "GradientAdversarialRisk",
    "adversarial_accuracy",
    "adversarial_loss",
    "adversarial_mean_absolute_error",
    "adversarial_mean_squared_error",
    "certified_radius",
    "dual_norm",
    "effective_coef",
    "gaussian_adversarial_risk",
    "gradient_adversarial_risk",
    "make_adversarial_scorer",
    "worst_case_inputs",
]

Array = npt.NDArray[np.float64]


def adversarial_mean_squared_error(
    y_true: Any,
    y_pred: Any,
    *,
    radius: Any,
    dual_norm: Any,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
) -> Any:
    """Compute the mean squared error of an affine predictor under the worst attack on its input.

    ``MSE + 2 r D MAE + r^2 D^2``, the mean over rows of the maximum of ``(y - f(x + delta))^2``
    over all delta of norm at most r, where D is the dual norm of the coefficients: exact for any
    data, no attack is run.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    y_pred : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Predictions at the rows that were not attacked.
    radius : float or array-like
        Radius of the attack, in the units in which `dual_norm` was taken. An array gives a curve.
    dual_norm : float or array-like of shape (n_outputs,)
        Dual norm of the coefficients, see `sklearn_gradhess.metrics.dual_norm`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    multioutput : {"raw_values", "uniform_average"} or array-like of shape (n_outputs,), \
default="uniform_average"
        Every output is attacked on its own; one attack on all together does at most that.

    Returns
    -------
    risk : float or ndarray
        Of the shape of `radius`, with an axis of length n_outputs appended for "raw_values".

    Raises
    ------
    ValueError
        If a radius or dual norm is negative or not finite, or the shapes do not agree.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> from sklearn_gradhess.metrics import adversarial_mean_squared_error
    >>> adversarial_mean_squared_error([0, 1, 2], [0, 2, 1], radius=[0.0, 1.0], dual_norm=3.0)
    array([ 0.66666667, 13.66666667])
    """
    mse, mae = (
        np.atleast_1d(metric(y_true, y_pred, sample_weight=sample_weight, multioutput="raw_values"))
        for metric in (mean_squared_error, mean_absolute_error)
    )
    reach = _reach(radius, dual_norm, len(mse))
    return _averaged(mse + 2 * reach * mae + reach**2, multioutput)


def adversarial_mean_absolute_error(
    y_true: Any,
    y_pred: Any,
    *,
    radius: Any,
    dual_norm: Any,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
) -> Any:
    """Compute the mean absolute error of an affine predictor under the worst attack on its input.

    ``MAE + r D``, D the dual norm of the coefficients: exact for any data, no attack is run.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    y_pred : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Predictions at the rows that were not attacked.
    radius : float or array-like
        Radius of the attack, in the units in which `dual_norm` was taken. An array gives a curve.
    dual_norm : float or array-like of shape (n_outputs,)
        Dual norm of the coefficients, see `sklearn_gradhess.metrics.dual_norm`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    multioutput : {"raw_values", "uniform_average"} or array-like of shape (n_outputs,), \
default="uniform_average"
        As in `adversarial_mean_squared_error`.

    Returns
    -------
    risk : float or ndarray
        Of the shape of `radius`, with an axis of length n_outputs appended for "raw_values".

    Raises
    ------
    ValueError
        If a radius or dual norm is negative or not finite, or the shapes do not agree.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> from sklearn_gradhess.metrics import adversarial_mean_absolute_error
    >>> adversarial_mean_absolute_error([0, 1, 2], [0, 2, 0], radius=0.5, dual_norm=3.0)
    2.5
    """
    mae = np.atleast_1d(
        mean_absolute_error(y_true, y_pred, sample_weight=sample_weight, multioutput="raw_values")
    )
    return _averaged(mae + _reach(radius, dual_norm, len(mae)), multioutput)


def adversarial_loss(
    y_true: Any,
    raw_prediction: Any,
    *,
    radius: Any,
    dual_norm: Any,
    loss: Any,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
    quantile: float = 0.5,
    epsilon: float = 1.35,
) -> Any:
    """Compute the mean of any convex loss of an affine raw prediction under the worst attack.

    The attack moves the raw prediction f to anywhere in ``[f - r D, f + r D]``, D being the dual
    norm of the coefficients, and a convex loss is largest at an end: the mean over rows of the
    larger of ``loss(y, f - r D)`` and ``loss(y, f + r D)``. Exact for any data.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets; 0 and 1 for "log_loss".
    raw_prediction : array-like of the shape of `y_true`
        Raw predictions at the rows that were not attacked, before the inverse link: the logarithm
        of the mean for "poisson" and "gamma", the log odds for "log_loss".
    radius : float or array-like
        Radius of the attack, in the units in which `dual_norm` was taken. An array gives a curve.
    dual_norm : float or array-like of shape (n_outputs,)
        Dual norm of the coefficients of the raw prediction.
    loss : str, callable or object
        "squared_error" (or "mse"), "absolute_error" (or "mae"), "quantile", "huber", "poisson",
        "gamma" or "log_loss", in the units of scikit-learn's metrics: squared errors are not
        halved, "poisson" and "gamma" are deviances. Or a function ``loss(y, raw_prediction)`` of
        two arrays, or an object with such a method `value`, convex in the raw prediction.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    multioutput : {"raw_values", "uniform_average"} or array-like of shape (n_outputs,), \
default="uniform_average"
        As in `adversarial_mean_squared_error`.
    quantile : float in [0, 1], default=0.5
        For loss="quantile", the pinball loss.
    epsilon : float > 0, default=1.35
        For loss="huber", ``e^2 / 2`` for errors e below epsilon and ``epsilon |e| - epsilon^2 / 2``
        above.

    Returns
    -------
    risk : float or ndarray
        Of the shape of `radius`, with an axis of length n_outputs appended for "raw_values".

    Raises
    ------
    ValueError
        If a radius or dual norm is negative or not finite, the loss is unknown, is not finite or
        returns another shape, targets are outside its range, or the shapes do not agree.

    References
    ----------
    MATH section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_gradhess.metrics import adversarial_loss
    >>> adversarial_loss([0, 1], [-1.0, 2.0], radius=[0.0, 0.5], dual_norm=2.0, loss="log_loss")
    array([0.22009485, 0.50320443])
    >>> def fourth(y, raw):
    ...     return (raw - y) ** 4
    >>> adversarial_loss([0, 1], [1.0, 2.0], radius=1.0, dual_norm=1.0, loss=fourth)
    16.0
    """
    y, raw = (np.asarray(a, dtype=np.float64) for a in (y_true, raw_prediction))
    check_consistent_length(y, raw)
    if raw.ndim not in (1, 2) or raw.size != y.size or not np.isfinite(raw).all():
        raise ValueError(
            f"raw_prediction must be finite and of the shape of y_true, {y.shape}, got shape "
            f"{raw.shape} with {np.sum(~np.isfinite(raw))} NaN or infinite entries."
        )
    y, raw = (a.reshape(len(a), -1) for a in (y, raw))
    weights = check_weights(sample_weight, raw)
    value = raw_loss(loss, y, quantile=quantile, epsilon=epsilon)
    reach = _reach(radius, dual_norm, raw.shape[1])
    risk = np.empty(reach.shape)
    for i in np.ndindex(reach.shape[:-1]):
        ends = [_loss_at(value, y, raw + sign * reach[i]) for sign in (-1, 1)]
        risk[i] = np.average(np.maximum(*ends), axis=0, weights=weights)
    return _averaged(risk, multioutput)


def _loss_at(loss: Loss, y: Array, raw: Array) -> Array:
    with np.errstate(over="ignore"):
        value = np.asarray(loss(y, raw), dtype=np.float64)
    if value.shape != y.shape or np.isnan(value).any():
        raise ValueError(
            f"loss must return one number for each of the {y.shape} targets, got shape "
            f"{value.shape} with {np.isnan(value).sum()} NaN. It is given arrays of two axes."
        )
    return value


def _reach(radius: Any, dual: Any, n_outputs: int) -> Array:
    """Largest change of each prediction, of shape (*radius.shape, n_outputs)."""
    duals = np.asarray(dual, dtype=np.float64)
    known = np.all((duals >= 0) & np.isfinite(duals))
    if not known or duals.shape not in ((), (1,), (n_outputs,)):
        raise ValueError(
            f"dual_norm must be finite and >= 0, one number or one for each of the {n_outputs} "
            f"outputs, got {dual!r}."
        )
    return checked_radius(radius)[..., None] * np.broadcast_to(duals, n_outputs)


def _averaged(risk: Array, multioutput: Any) -> Any:
    if isinstance(multioutput, str) and multioutput == "raw_values":
        return risk
    weights = None
    if not isinstance(multioutput, str) or multioutput != "uniform_average":
        weights = np.asarray(multioutput)
        if weights.dtype.kind not in "fiu" or weights.shape != risk.shape[-1:]:
            raise ValueError(
                "multioutput must be 'raw_values', 'uniform_average' or one weight for each of "
                f"the {risk.shape[-1]} outputs, got {multioutput!r}."
            )
        if not np.all((weights >= 0) & np.isfinite(weights)) or not weights.any():
            raise ValueError(
                "The weights of outputs in multioutput must be >= 0, finite and not all zero, got "
                f"{multioutput!r}."
            )
    average = np.average(risk, weights=weights, axis=-1)
    return float(average) if average.ndim == 0 else average


def adversarial_accuracy(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    radius: Any,
    norm: Any = 2,
    scale: Any = None,
    covariance: Any = None,
    features: Any = None,
    bounds: Any = None,
    on_nonaffine: str = "raise",
    sample_weight: Any = None,
    n_columns: int | None = None,
    integer: Any = "auto",
    categories: Any = None,
    link: str = "auto",
    max_queries: int = 200,
    random_state: Any = 0,
) -> Any:
    """Compute the share of rows that a linear classifier gets right whatever the attack.

    A row counts if ``f_y - f_j > r ||w_y - w_j||_*`` for every other class j: exact, binary and
    multiclass. Ties count as wrong, so at radius zero this is the accuracy, but for rows on a
    decision boundary.

    Parameters
    ----------
    estimator : object
        Fitted classifier, or pipeline, whose `decision_function` is affine in X, or the log odds
        of its `predict_proba`.
    X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
        Rows, in raw units.
    y : array-like of shape (n_samples,)
        Labels.
    radius : float or array-like
        Radius of the attack, in the units of X, or as a multiple of `scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack.
    scale : float, dict, or array-like of shape (n_features,), default=None
        Budget of each column, by position or by name; zero freezes it, and so does a dict that
        does not name it.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        Covariance of the Mahalanobis norm, see `make_adversarial_scorer`.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take, for norm=inf.
    on_nonaffine : {"raise", "linearize", "search"}, default="raise"
        What to do if the scores are not affine, see `make_adversarial_scorer`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    n_columns : int, default=None
        Most columns that the attack moves in a row. None is all.
    integer : "auto", None, or array-like of str, int or bool, default="auto"
        Columns that move by whole steps, see `make_adversarial_scorer`.
    categories : list or dict, default=None
        Categories that the attack may change, see `make_adversarial_scorer`.
    link : {"auto", "identity", "logit"}, default="auto"
        What is affine: the decision function, or the log odds of `predict_proba`.
    max_queries : int, default=200
        Most predictions that a search spends on each row.
    random_state : int, RandomState instance or None, default=0
        Of a search.

    Returns
    -------
    accuracy : float or ndarray
        Share of robust rows, of the shape of `radius`.

    Raises
    ------
    ValueError
        If the classifier has no scores that are affine and decide what it predicts, labels are of
        another type than it was fitted on, or the attack does not fit X.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_gradhess.metrics import adversarial_accuracy
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> adversarial_accuracy(model, X, y, radius=[0, 0.1, 0.5]).round(3)
    array([0.973, 0.94 , 0.72 ])
    """
    attack = Attack(
        norm,
        scale,
        features,
        bounds,
        covariance,
        "scale",
        n_columns=n_columns,
        integer=integer,
        categories=categories,
    )
    options = Options(
        metric="accuracy",
        link=link,
        on_nonaffine=on_nonaffine,
        max_queries=max_queries,
        random_state=random_state,
    )
    radii = checked_radius(radius)
    return under_attack(estimator, attack.on(Table(X)), y, radii, sample_weight, options).value


def make_adversarial_scorer(
    radius: float,
    norm: Any = 2,
    *,
    metric: str = "mse",
    feature_scale: Any = None,
    features: Any = None,
    bounds: Any = None,
    covariance: Any = None,
    n_columns: int | None = None,
    integer: Any = "auto",
    categories: Any = None,
    link: str = "auto",
    on_nonaffine: str = "raise",
    quantile: float = 0.5,
    multioutput: str = "uniform_average",
    max_queries: int = 200,
    random_state: Any = 0,
) -> AdversarialScorer:
    r"""Make a scorer of models under attack, for `scoring=` wherever scikit-learn takes one.

    It finds the coefficients of any model that is affine, or affine behind a link, in raw units
    (`effective_coef`), and returns the negative of the exact risk under the worst attack, or the
    score that survives it.

    Parameters
    ----------
    radius : float
        Radius of the attack, in raw units of X, or as a multiple of `feature_scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack: delta / feature_scale has norm at most `radius`.
    metric : str, default="mse"
        "mse", "rmse", "mae", "r2", "quantile" (`mean_pinball_loss` at `quantile`), "poisson" or
        "gamma" (mean deviances) of a regressor; "log_loss", "accuracy" or "roc_auc" (two classes)
        of a classifier: each as scikit-learn defines it. "r2", "accuracy" and "roc_auc" come back
        as they are, the others with a minus.
    feature_scale : float, dict, or array-like of shape (n_features,), default=None
        Unit of the radius in each column, by position or by name; zero freezes the column, and so
        does a dict that does not name it. None is the raw unit. It must be numbers: see Notes.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers,
        dummies included; columns of categories, strings and dates never move.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take after the attack: numbers, arrays of shape
        (n_features,), or dicts by name, which leave the other columns without bound. For norm=inf.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        For norm="mahalanobis": covariance of the columns of X, conditioned on those that do not
        move, or of the columns under attack alone; or a fitted estimator that has it. With names
        (a data frame, an estimator with `feature_names_in_`) it is matched to X by these.
    n_columns : int, default=None
        Most columns, categories included, that the attack moves in a row. None is all.
    integer : "auto", None, or array-like of str, int or bool, default="auto"
        Columns that move by whole steps, for norm=inf; booleans flip where their budget is one
        step. "auto" is those of an integer or boolean dtype. Under other norms, and for None, they
        move as floats, which is no less than the risk.
    categories : list or dict, default=None
        Categories that the attack may change to another of their levels in X, at any radius above
        zero: columns by name or position, lists of columns for one-hot groups, or the start of
        their names ("color" for "color_red" and "color_blue"). A dict gives groups names of their
        own; a `feature_scale` by these names makes a change cost one step of the budget.
    link : {"auto", "identity", "log", "log1p", "logit"}, default="auto"
        What is affine: for regressors the prediction, its logarithm, or that of one more; for
        classifiers the decision function ("identity") or the log odds of `predict_proba`. "auto"
        tries them in turn. `explain` tells which it was.
    on_nonaffine : {"raise", "linearize", "search"}, default="raise"
        What to do with a model that is not affine in these columns. "linearize" scores its
        first-order expansion at the scale of the features: neither an upper nor a lower bound.
        "search" looks for the worst row by predictions alone: a lower bound of the risk, and an
        upper bound of a score. A model that is affine has its exact risk all the same.
    quantile : float in [0, 1], default=0.5
        For metric="quantile".
    multioutput : {"uniform_average", "joint"}, default="uniform_average"
        With several outputs, attack each on its own and average, which is no less than the risk of
        one attack on all; or "joint", that one attack, exactly, for "mse" and "r2" under norm=2 and
        "mahalanobis".
    max_queries : int, default=200
        Most predictions that a search spends on each row.
    random_state : int, RandomState instance or None, default=0
        Of a search.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, sample_weight=None)``; with metadata routing enabled,
        ``scorer.set_score_request(sample_weight=True)`` asks for weights.
        ``scorer.curve(estimator, X, y, radius)`` is the risk itself, over an array of radii, and
        ``scorer.explain(estimator, X, y)`` an `AdversarialRisk`, which says whether it is exact.

    Raises
    ------
    ValueError
        If the attack is not well defined, or `feature_scale` is a string; by the scorer, if the
        model is not affine, predictions are NaN, columns do not fit, or bounds exclude the data.

    Notes
    -----
    The unit of the radius must be fixed before models are compared: the same ridge model has
    coefficients of norm 14.7 in raw units and 63.5 per standard deviation, as the example shows. A
    scale taken anew from every fold would attack every model by another amount.

    Every row of X and some attacked rows are compared with the affine map that was found, as are
    the labels of a classifier near where they change: what passes is affine on this X.

    RFECV and SequentialFeatureSelector hand over some of the columns of X as an array, so that
    names and a scale for all of them do not fit. Put the selector into a pipeline (RFE,
    SelectKBest, SequentialFeatureSelector itself) and search its parameter with this scorer; or
    standardise X beforehand, and leave the scale out.

    A missing value does not move: where the model imputes it, the risk of the other columns is
    returned, exactly. norm="mahalanobis" refuses missing values.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_gradhess.metrics import dual_norm, make_adversarial_scorer
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> coef = Ridge(100).fit(X, y).coef_
    >>> round(dual_norm(coef), 1), round(dual_norm(coef, scale=X.std(axis=0)), 1)
    (14.7, 63.5)
    >>> scorer = make_adversarial_scorer(0.5, feature_scale=X.std(axis=0))
    >>> scorer
    make_adversarial_scorer(0.5, feature_scale=<array of shape (10,)>)
    >>> grid = {"alpha": [1, 10, 100, 1000]}
    >>> GridSearchCV(Ridge(), grid).fit(X, y).best_params_
    {'alpha': 1}
    >>> GridSearchCV(Ridge(), grid, scoring=scorer).fit(X, y).best_params_
    {'alpha': 10}
    """
    return AdversarialScorer(
        radius=radius,
        norm=norm,
        metric=metric,
        feature_scale=feature_scale,
        features=features,
        bounds=bounds,
        covariance=covariance,
        n_columns=n_columns,
        integer=integer,
        categories=categories,
        link=link,
        on_nonaffine=on_nonaffine,
        quantile=quantile,
        multioutput=multioutput,
        max_queries=max_queries,
        random_state=random_state,
    )
