"""What the worst attack does to a prediction: exact metrics, scorers, and estimates."""

from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sklearn_gradhess._affine import (
    EffectiveCoef,
    Table,
    batches,
    check_finite,
    check_on_nonaffine,
    effective_coef,
    linear_scores,
    probe,
    require_affine,
    respond,
)
from sklearn_gradhess._risk import (
    GradientAdversarialRisk,
    dual_norm,
    gaussian_adversarial_risk,
    gradient_adversarial_risk,
)
from sklearn_gradhess._validation import check_weights

__all__ = [
    "EffectiveCoef",
    "GradientAdversarialRisk",
    "adversarial_accuracy",
    "adversarial_mean_absolute_error",
    "adversarial_mean_squared_error",
    "dual_norm",
    "effective_coef",
    "gaussian_adversarial_risk",
    "gradient_adversarial_risk",
    "make_adversarial_scorer",
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


def _checked_radius(radius: Any) -> Array:
    radii = np.asarray(radius, dtype=np.float64)
    if not np.all((radii >= 0) & np.isfinite(radii)):
        raise ValueError(f"radius must be finite and >= 0, got {radius!r}.")
    return radii


def _reach(radius: Any, dual: Any, n_outputs: int) -> Array:
    """Largest change of each prediction, of shape (*radius.shape, n_outputs)."""
    duals = np.asarray(dual, dtype=np.float64)
    known = np.all((duals >= 0) & np.isfinite(duals))
    if not known or duals.shape not in ((), (1,), (n_outputs,)):
        raise ValueError(
            f"dual_norm must be finite and >= 0, one number or one for each of the {n_outputs} "
            f"outputs, got {dual!r}."
        )
    return _checked_radius(radius)[..., None] * np.broadcast_to(duals, n_outputs)


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
) -> Any:
    """Compute the share of rows that a linear classifier gets right whatever the attack.

    A row counts if ``f_y - f_j > r ||w_y - w_j||_*`` for every other class j: exact, binary and
    multiclass. Ties count as wrong, so at radius zero this is the accuracy, but for rows on a
    decision boundary.

    Parameters
    ----------
    estimator : object
        Fitted classifier, or pipeline, whose `decision_function` is affine in X.
    X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
        Rows, in raw units.
    y : array-like of shape (n_samples,)
        Labels.
    radius : float or array-like
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
    on_nonaffine : {"raise", "linearize"}, default="raise"
        What to do if the decision function is not affine.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.

    Returns
    -------
    accuracy : float or ndarray
        Share of robust rows, of the shape of `radius`.

    Raises
    ------
    ValueError
        If the classifier has no decision function that is affine and decides what it predicts, or
        the attack does not fit X.

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
    attack = _Attack(norm, scale, features, bounds, covariance, "scale")
    return _robust_share(estimator, X, y, radius, attack, on_nonaffine, sample_weight)


def _robust_share(
    estimator: Any, X: Any, y: Any, radius: Any, attack: "_Attack", on_nonaffine: str, weights: Any
) -> Any:
    radii, found = _checked_radius(radius), attack.on(Table(X))
    score, coef, classes = linear_scores(estimator, X, found.table, found.mask, on_nonaffine)
    y = column_or_1d(y)
    check_consistent_length(score, y)
    weights = check_weights(weights, score)
    robust = np.zeros((radii.size, len(y)), dtype=bool)
    for k, label in enumerate(classes):
        rows = np.flatnonzero(y == label)
        margin = score[rows, k, None] - np.delete(score[rows], k, axis=1)
        rivals = coef[k] - np.delete(coef, k, axis=0)
        for i, r in enumerate(radii.flat if len(rows) else ()):
            robust[i, rows] = np.all(margin + found.changes(rivals, r, rows)[0] > 0, axis=1)
    accuracy = np.average(robust, axis=1, weights=weights).reshape(radii.shape)
    return float(accuracy) if radii.ndim == 0 else accuracy


@dataclass(eq=False, repr=False)
class _Attack:
    """What an attack may do, before it is known to what data."""

    norm: Any
    feature_scale: Any
    features: Any
    bounds: Any
    covariance: Any
    scale_name: str = "feature_scale"

    def __post_init__(self) -> None:
        matrix = getattr(self.covariance, "covariance_", self.covariance)
        d = len(matrix) if np.ndim(matrix) == 2 else 1
        dual_norm(np.zeros(d), self.norm, covariance=self.covariance)  # raises what is wrong
        if matrix is not None and self.feature_scale is not None:
            raise ValueError(
                f"The covariance fixes the unit of the radius, so {self.scale_name} has no place "
                "beside it. Pass one of them."
            )
        if self.bounds is not None:
            if self.norm != np.inf:
                raise ValueError(
                    f"bounds cut a box exactly, so they need norm=inf, got norm={self.norm!r}."
                )
            if len(self.bounds) != 2:
                raise ValueError(f"bounds must be (lowest, highest), got {self.bounds!r}.")

    def on(self, table: Table) -> "_AttackOnTable":
        """Settle which columns move and by how much."""
        mask, scale = table.mask(self.features), None
        if self.feature_scale is not None:
            scale = table.by_column(self.feature_scale, self.scale_name)
            bad = mask & ~((scale >= 0) & np.isfinite(scale))
            if bad.any():
                raise ValueError(
                    f"{self.scale_name} must be finite and >= 0 for every column under attack, but "
                    f"is missing, negative or infinite for {table.label(np.flatnonzero(bad))}."
                )
            mask &= scale > 0
            if not mask.any():
                raise ValueError(f"{self.scale_name} is zero for every column: nothing can move.")
        bounds = None
        if self.bounds is not None:
            bounds = tuple(
                table.by_column(value, "bounds", default)
                for value, default in zip(self.bounds, (-np.inf, np.inf), strict=True)
            )
            if not np.all(bounds[0][mask] <= bounds[1][mask]):
                raise ValueError(f"bounds are empty: a lowest value exceeds the highest: {bounds}.")
        covariance = None if self.covariance is None else self._conditional(table, mask)
        uniform = bounds is None and not table.has_missing(mask)
        return _AttackOnTable(table, mask, self.norm, scale, bounds, covariance, uniform)

    def _conditional(self, table: Table, mask: npt.NDArray[np.bool_]) -> Array:
        """Covariance of the columns A under attack, given those that stand still, F."""
        # The ball cut by delta_F = 0 is that of a block of the precision, whose inverse is the
        # Schur complement S_AA - S_AF S_FF^-1 S_FA
        matrix = np.asarray(getattr(self.covariance, "covariance_", self.covariance), dtype=float)
        k, d = int(mask.sum()), table.n_columns
        if matrix.shape == (k, k):
            return matrix
        if matrix.shape != (d, d):
            raise ValueError(
                f"covariance has shape {matrix.shape}, but X has {d} columns, {k} of them under "
                "attack: pass one row and column for each of either."
            )
        still = np.linalg.pinv(matrix[np.ix_(~mask, ~mask)], hermitian=True)
        across = matrix[np.ix_(mask, ~mask)]
        return matrix[np.ix_(mask, mask)] - across @ still @ across.T


class _AttackOnTable(NamedTuple):
    """What an attack may do to the rows of a table."""

    table: Table
    mask: npt.NDArray[np.bool_]
    norm: Any
    scale: Array | None
    bounds: tuple[Array, ...] | None
    covariance: Array | None
    uniform: bool  # the same to every row: no bounds cut it, no value is missing

    def dual(self, coef: Array) -> Any:
        """Dual norm of coefficients of shape (n_features,) or (n_outputs, n_features)."""
        scale = None if self.scale is None else self.scale[self.mask]
        return dual_norm(coef[..., self.mask], self.norm, scale=scale, covariance=self.covariance)

    def changes(self, coef: Array, radius: float, rows: Any) -> tuple[Array, Array]:
        """Least and greatest change of each output at each row: shape (n_rows, n_outputs)."""
        if self.uniform:
            high = np.broadcast_to(radius * self.dual(coef), (len(rows), len(coef)))
            return -high, high
        cut = self._missing if self.bounds is None else self._boxed
        parts = [cut(coef, radius, rows[part]) for part in batches(len(rows), coef.shape[1])]
        low, high = (np.concatenate(part) for part in zip(*parts, strict=True))
        return low, high

    def _missing(self, coef: Array, radius: float, rows: Any) -> tuple[Array, Array]:
        # What is missing cannot be moved: the dual norm leaves it out, row by row
        if self.covariance is not None:
            raise ValueError(
                "X has missing values in columns under attack, for which norm='mahalanobis' has no "
                "closed form here. Impute them, or leave these columns out of features."
            )
        present = ~np.isnan(self.table.numbers(rows))
        high = radius * np.column_stack([self.dual(np.where(present, w, 0.0)) for w in coef])
        return -high, high

    def _boxed(self, coef: Array, radius: float, rows: Any) -> tuple[Array, Array]:
        # Each column goes on its own to one end of its interval: max delta.w = b.w+ - a.w-
        x, (lowest, highest) = self.table.numbers(rows), self.bounds or ()
        outside = self.mask & np.any((x < lowest) | (x > highest), axis=0)
        if outside.any():
            raise ValueError(
                "bounds exclude values that are in X, in the columns "
                f"{self.table.label(np.flatnonzero(outside))}. Widen them, or leave these columns "
                "out of features."
            )
        budget = radius * (np.ones(len(self.mask)) if self.scale is None else self.scale)
        room = self.mask & ~np.isnan(x)
        with np.errstate(invalid="ignore"):
            a = np.where(room, np.maximum(-budget, lowest - x), 0.0)
            b = np.where(room, np.minimum(budget, highest - x), 0.0)
        up, down = np.maximum(coef, 0).T, np.maximum(-coef, 0).T
        return a @ up - b @ down, b @ up - a @ down


def make_adversarial_scorer(
    radius: float,
    norm: Any = 2,
    *,
    metric: str = "mse",
    feature_scale: Any = None,
    features: Any = None,
    bounds: Any = None,
    covariance: Any = None,
    on_nonaffine: str = "raise",
) -> "_AdversarialScorer":
    r"""Make a scorer of models under attack, for `scoring=` wherever scikit-learn takes one.

    It finds the coefficients of any affine pipeline in raw units (`effective_coef`), and returns
    the negative of the exact risk under the worst attack.

    Parameters
    ----------
    radius : float
        Radius of the attack, in raw units of X, or as a multiple of `feature_scale`.
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack: delta / feature_scale has norm at most `radius`.
    metric : {"mse", "mae", "accuracy"}, default="mse"
        Risk, of which the scorer returns the negative; or the accuracy that survives, as it is.
        Several outputs are attacked each on its own, and averaged.
    feature_scale : float, dict, or array-like of shape (n_features,), default=None
        Unit of the radius in each column, by position or by name; zero freezes the column. None
        is the raw unit. It must be numbers: see Notes.
    features : array-like of str, int or bool, default=None
        Columns that may be attacked, by name, position or mask. None is every column of numbers,
        dummies included; columns of categories, strings and dates never move.
    bounds : tuple of two, default=None
        Lowest and highest value that a column may take after the attack: numbers, arrays of shape
        (n_features,), or dicts by name, which leave the other columns without bound. For norm=inf.
    covariance : array-like of shape (n_features, n_features) or estimator, default=None
        For norm="mahalanobis": covariance of the columns of X, conditioned on those that do not
        move, or of the columns under attack alone; or a fitted estimator that has it.
    on_nonaffine : {"raise", "linearize"}, default="raise"
        What to do with a model that is not affine in these columns. "linearize" scores its
        first-order expansion at the scale of the features: neither an upper nor a lower bound.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, sample_weight=None)``; with metadata routing enabled,
        ``scorer.set_score_request(sample_weight=True)`` asks for weights.

    Raises
    ------
    ValueError
        If the attack is not well defined; by the scorer, if the model is not affine, predictions
        are NaN, columns do not fit, or bounds exclude the data.

    Notes
    -----
    The unit of the radius must be fixed before models are compared: the same ridge model has
    coefficients of norm 14.7 in raw units and 63.5 per standard deviation, as the example shows. A
    scale taken anew from every fold would attack every model by another amount.

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
    return _AdversarialScorer(
        radius=radius,
        norm=norm,
        metric=metric,
        feature_scale=feature_scale,
        features=features,
        bounds=bounds,
        covariance=covariance,
        on_nonaffine=on_nonaffine,
    )


_RISKS = {"mse": adversarial_mean_squared_error, "mae": adversarial_mean_absolute_error}


@dataclass(eq=False, repr=False, kw_only=True)
class _AdversarialScorer(_Attack):
    """What `make_adversarial_scorer` returns; its arguments are attributes."""

    radius: float
    metric: str
    on_nonaffine: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if _checked_radius(self.radius).ndim != 0:
            raise ValueError(
                "A scorer returns one number, so radius must be one. For a curve over radii use "
                "adversarial_mean_squared_error or adversarial_accuracy."
            )
        if self.metric not in ("mse", "mae", "accuracy"):
            raise ValueError(f"metric must be 'mse', 'mae' or 'accuracy', got {self.metric!r}.")
        check_on_nonaffine(self.on_nonaffine)
        # where scikit-learn labels an axis, as with a function
        prefix = "" if self.metric == "accuracy" else "neg_"
        self.__name__ = f"{prefix}adversarial_{self.metric}"

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Score a fitted estimator: the negative risk, or the accuracy, under attack."""
        if self.metric == "accuracy":
            settings = (self.radius, self, self.on_nonaffine, sample_weight)
            return _robust_share(estimator, X, y, *settings)
        found, risk = self.on(Table(X)), _RISKS[self.metric]
        result = probe(estimator, found.table, found.mask)
        require_affine(result, estimator, self.on_nonaffine)
        y_pred = check_finite(estimator, respond(estimator, X, "predict"), "predict")
        if found.uniform:
            dual = found.dual(result.coef)
            return -risk(y, y_pred, radius=self.radius, dual_norm=dual, sample_weight=sample_weight)
        mean_absolute_error(y, y_pred, sample_weight=sample_weight)  # checks the targets
        error = (y_pred - np.asarray(y, dtype=np.float64).reshape(y_pred.shape)).reshape(len(y), -1)
        coef = np.atleast_2d(result.coef)
        low, high = found.changes(coef, self.radius, np.arange(len(error)))
        worst = np.maximum(np.abs(error + low), np.abs(error + high))
        none = np.zeros_like(worst)
        return -risk(none, worst, radius=0.0, dual_norm=0.0, sample_weight=sample_weight)

    def __repr__(self) -> str:
        told = [f"{self.radius:g}"]
        for name, parameter in signature(make_adversarial_scorer).parameters.items():
            value = getattr(self, name)
            is_plain = value is None or isinstance(value, str | float | int)
            if name != "radius" and not (is_plain and value == parameter.default):
                told.append(f"{name}={_short(value)}")
        return f"make_adversarial_scorer({', '.join(told)})"

    def _accept_sample_weight(self) -> bool:
        # what scikit-learn's searches ask of a scorer while metadata routing is off
        return True

    def set_score_request(self, *, sample_weight: bool | str | None) -> Self:
        """Ask for sample weights (True, or the name of other metadata) or refuse them (False)."""
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "This method is only available when metadata routing is enabled. Enable it with "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        self._weight_request = sample_weight
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Tell which metadata the scorer asks for."""
        request = MetadataRequest(owner=repr(self))
        alias = getattr(self, "_weight_request", None)
        request.score.add_request(param="sample_weight", alias=alias)
        return request


def _short(value: Any) -> str:
    """Print a value on one line, and arrays by their shape."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if hasattr(value, "shape") and np.ndim(value) > 0:
        return f"<array of shape {value.shape}>"
    return " ".join(repr(value).split())
