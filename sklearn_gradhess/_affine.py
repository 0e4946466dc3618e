"""Coefficients of any affine predictor in the raw input space, found by probing it."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._link import LINKS
from sklearn_gradhess._probe import Probed, probe
from sklearn_gradhess._table import Table

__all__ = ["EffectiveCoef", "effective_coef"]

Array = npt.NDArray[np.float64]


class EffectiveCoef(NamedTuple):
    """What `effective_coef` found.

    Attributes
    ----------
    coef : ndarray of shape (n_features,) or (n_outputs, n_features)
        Change of the prediction per raw unit of each column of X; zero where `frozen`. First order
        only, a secant at the scale of the feature, where `is_affine` is False.
    intercept : float or ndarray of shape (n_outputs,)
        Prediction where every column that moves is zero; the others are as in the first row of X.
    residual : float
        Largest deviation of a prediction from the affine map, over recombined and extrapolated
        rows, relative to the spread of predictions, or to the change at that row if larger.
        Rounding for an affine predictor; infinite where `predict` fails beyond the data.
    is_affine : bool
        Whether the residual is explained by rounding.
    is_constant : bool
        Whether no column that was moved changes the prediction.
    frozen : ndarray of shape (n_features,)
        True for columns that were not moved: categories, strings, dates, and those that `features`
        leaves out.
    link : {"identity", "log", "log1p", "logit"}
        What of the prediction is affine: itself, ``log(predict)``, ``log(1 + predict)``, or the log
        odds. Coefficients and intercept are those of the raw prediction, before the inverse link.
    """

    coef: Array
    intercept: Any
    residual: float
    is_affine: bool
    is_constant: bool
    frozen: npt.NDArray[np.bool_]
    link: str = "identity"


def effective_coef(
    estimator: Any,
    X: Any,
    *,
    features: Any = None,
    response_method: str = "predict",
    link: str = "identity",
) -> EffectiveCoef:
    """Find the coefficients of an affine predictor in the raw input space.

    Whatever the estimator is made of (scalers, projections, encoders, ensembles of linear models,
    transformed targets, searches), `predict` alone is called: on two rows a column, which differ
    by the spread of that column, and on about a hundred rows that tell whether the predictor is
    affine. For d columns that is of the order of d + 1 predictions, in a few calls.

    Parameters
    ----------
    estimator : object
        Fitted predictor.
    X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
        Rows such as the estimator predicts, in raw units. They set the scale of the probes, not
        the result, if the predictor is affine. Integers and booleans are moved as floats; data
        frames are rebuilt with the same columns. Missing values are left as they are.
    features : array-like of str, int or bool, default=None
        Columns to move, by name, position or mask. None moves every column of numbers, and
        freezes categories, strings and dates.
    response_method : {"predict", "decision_function", "predict_proba"}, default="predict"
        Method to probe; "predict_proba" goes with link="logit".
    link : {"identity", "log", "log1p", "logit", "auto"}, default="identity"
        What to probe for affinity. "auto" is the first of the identity, the logarithm, the
        logarithm of one plus the prediction, that is affine on these rows; for "predict_proba" it
        is the logit. With more than two classes the logit is the logarithm of each probability
        less their mean over classes.

    Returns
    -------
    result : EffectiveCoef
        Coefficients, intercept, residual, and which columns were frozen.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted (raised by itself).
    ValueError
        If X has other columns than the estimator was fitted on, no column of numbers, or category
        codes that cannot be moved; if `features` names unknown or frozen columns; if predictions
        are NaN, or labels.
    TypeError
        If X is neither an array nor a data frame of pandas, polars or pyarrow.

    Notes
    -----
    Rows that tell: recombined (the values of about half of the columns come from another row),
    extrapolated along the same difference to both sides, and moved in the direction that an attack
    takes. They come from every level of a frozen column of few levels, and every pattern of missing
    values. Columns that move may add to the effect of frozen ones, not interact with them. The
    rows are few: what happens at one row of X alone can go unseen here. The scorers compare every
    row of X.

    Where a predictor is not affine, `coef` is its first-order expansion at the scale of the
    features: neither an upper nor a lower bound to what an attack can do.

    References
    ----------
    MATH section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_gradhess.metrics import effective_coef
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> model = make_pipeline(StandardScaler(), PCA(5), Ridge()).fit(X, y)
    >>> result = effective_coef(model, X)
    >>> result.is_affine, bool(np.allclose(X @ result.coef + result.intercept, model.predict(X)))
    (True, True)
    """
    table = Table(X)
    movable = table.mask(features)
    if link not in ("auto", *LINKS):
        raise ValueError(f"link must be one of {['auto', *LINKS]}, got {link!r}.")
    names = ("identity", "log", "log1p") if response_method == "predict" else ("identity",)
    if response_method == "predict_proba":
        names = ("logit",)
    results = []
    for name in names if link == "auto" else (link,):
        results.append(_found(probe(estimator, table, movable, response_method, LINKS[name])))
        if results[-1].is_affine:
            return results[-1]
    return results[0]


def _found(affine: Probed) -> EffectiveCoef:
    coef, intercept = affine.coef, affine.at_base - affine.coef[:, affine.movable] @ affine.base
    return EffectiveCoef(
        coef[0] if affine.is_vector else coef,
        float(intercept[0]) if affine.is_vector else intercept,
        affine.residual,
        affine.is_affine,
        affine.is_constant,
        ~affine.movable,
        affine.link.name,
    )
