"""Coefficients of any affine predictor in the raw input space, found by probing it."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import is_classifier

from sklearn_gradhess._table import Table, batch_rows, batches

__all__ = [
    "EffectiveCoef",
    "check_finite",
    "check_on_nonaffine",
    "effective_coef",
    "linear_scores",
    "probe",
    "require_affine",
    "respond",
]

Array = npt.NDArray[np.float64]

# Largest deviation from the affine map, relative to the change it explains, that rounding may cause
TOLERANCE = 1e-6
N_REFERENCES = 24
# Beyond the data, in multiples of a recombination and of a step in every column at once
EXTRAPOLATIONS = (-1.0, 4.0, -20.0)
DIRECTIONS = (1.0, -1.0, 10.0, -10.0, 100.0, -100.0)
# What an estimator may raise at rows that it was not made for
REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError)


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
    """

    coef: Array
    intercept: Any
    residual: float
    is_affine: bool
    is_constant: bool
    frozen: npt.NDArray[np.bool_]


def effective_coef(
    estimator: Any, X: Any, *, features: Any = None, response_method: str = "predict"
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
    response_method : {"predict", "decision_function"}, default="predict"
        Method to probe.

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
        If X is neither an array nor a pandas data frame.

    Notes
    -----
    Rows that tell: recombined (the values of about half of the columns come from another row),
    extrapolated along the same difference to both sides, and moved in the direction that an attack
    takes. Columns that move may add to the effect of frozen ones, not interact with them; the
    rows are few, so what only happens at a rare level of a category can go unseen.

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
    return probe(estimator, table, table.mask(features), response_method)


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


class _Check(NamedTuple):
    """Rows of numbers, the rows of X that lend frozen columns, and what to compare with."""

    values: Array
    sources: npt.NDArray[np.intp]
    reference: npt.NDArray[np.intp]  # position among the real rows, or -1 for the base row


class _Prober:
    """Rows around the data, and the predictions of an estimator at them."""

    def __init__(
        self, estimator: Any, table: Table, movable: npt.NDArray[np.bool_], response_method: str
    ) -> None:
        self.estimator, self.method = estimator, response_method
        self.table, self.movable = table, movable
        n = min(table.n_rows, N_REFERENCES, max(4, batch_rows(table.n_columns)))
        self.rows = np.linspace(0, table.n_rows - 1, n).astype(np.intp)
        # as they are, so that the estimator's own complaints about X come unchanged
        known = respond(estimator, table.native(self.rows), response_method)
        self.known = check_finite(estimator, known, response_method).reshape(n, -1)
        self.is_vector = known.ndim == 1
        coarsest = np.finfo(known.dtype).eps if known.dtype.kind == "f" else 0.0
        self.epsilon = max(table.epsilon, float(coarsest))
        self.real = table.numbers(self.rows)
        self.low, self.high, self.constant = table.spread(movable)
        self.step = self.high / 2 - self.low / 2
        # the middle of every column that moves, and the frozen columns of the first row of X
        middle = 0.0 if sparse.issparse(table.X) else self.low + self.step
        self.base = np.where(movable, middle, table.numbers([0])[0])

    def predict(self, values: Any, sources: Any) -> Array:
        """Predictions of shape (n_rows, n_outputs), finite or not."""
        rows = self.table.rebuilt(values, sources, self.movable)
        response = respond(self.estimator, rows, self.method)
        return response.reshape(len(response), -1).astype(np.float64)

    def predict_all(self, check: _Check) -> Array:
        """Predictions at rows that may be too many for one call."""
        parts = batches(*check.values.shape)
        return np.concatenate([self.predict(check.values[p], check.sources[p]) for p in parts])

    def slopes(self) -> Array:
        """Central differences, one column at a time: shape (n_outputs, n_features)."""
        columns, is_sparse = np.flatnonzero(self.movable), sparse.issparse(self.table.X)
        width = int(np.count_nonzero(self.base)) + 1 if is_sparse else len(self.base)
        parts = []
        for part in batches(len(columns), 2 * width):
            j = np.tile(columns[part], 2)
            i, half = np.arange(len(j)), len(j) // 2
            values = np.concatenate([self.low[j[:half]], self.high[j[half:]]])
            if is_sparse:
                rows = sparse.csr_array(np.ones((len(j), 1))) @ sparse.csr_array(self.base[None])
                rows = rows + sparse.csr_array((values, (i, j)), shape=(len(j), len(self.base)))
            else:
                rows = np.tile(self.base, (len(j), 1))
                rows[i, j] = values
            response = self.predict(rows, np.zeros(len(j), dtype=np.intp))
            with np.errstate(invalid="ignore"):
                rise = response[half:] - response[:half]
            parts.append(rise / (values[half:] - values[:half])[:, None])
        coef = np.zeros((parts[0].shape[1], len(self.base)))
        coef[:, columns] = np.concatenate(parts).T
        return coef

    def checks(self, coef: Array) -> tuple[_Check, _Check]:
        """Rows that tell an affine predictor, within the range of the data and beyond."""
        rng = np.random.default_rng(0)
        n, real, movable = len(self.rows), self.real, self.movable
        first, ranks = np.zeros(n, dtype=np.intp), np.arange(n)
        filled = np.where(np.isnan(real) | ~movable, self.base, real)
        other = filled[rng.permutation(n)]
        signs = rng.choice([-1.0, 1.0], size=other.shape)
        # a column that is the same in all rows must move to be seen
        other[:, self.constant] += (signs * self.step)[:, self.constant]
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
        far = [real + t * difference for t in EXTRAPOLATIONS]
        k, m = len(far), len(DIRECTIONS)
        outside = _Check(
            np.concatenate([*far, self.base + np.outer(DIRECTIONS, direction)]),
            np.concatenate([np.tile(self.rows, k), np.zeros(m, dtype=np.intp)]),
            np.concatenate([np.tile(ranks, k), np.full(m, -1)]),
        )
        return inside, outside

    def is_piecewise(self) -> bool:
        """Whether rows of X differ in what they predict, though no probe saw a change."""
        for part in batches(self.table.n_rows, self.table.n_columns):
            sources = np.arange(self.table.n_rows)[part]
            actual = respond(self.estimator, self.table.native(sources), self.method)
            level = self.predict(np.tile(self.base, (len(sources), 1)), sources)
            error = np.abs(actual.reshape(level.shape) - level)
            if np.any(error > 64 * self.epsilon * np.abs(level)):
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
    """Compare predictions with the affine map through a reference row that shares frozen values."""

    def __init__(self, prober: _Prober, coef: Array, at_base: Array, inside: Array) -> None:
        self.coef, self.epsilon = coef, prober.epsilon
        # row -1 is the base
        self.rows = np.concatenate([prober.real, prober.base[None]])
        self.known = np.concatenate([prober.known, at_base])
        self.spread = np.ptp(np.concatenate([self.known, inside]), axis=0)

    def __call__(self, check: _Check, found: Array) -> tuple[float, bool]:
        """Largest relative deviation, and whether all are explained by rounding."""
        start, value = self.rows[check.reference], self.known[check.reference]
        moved = np.nan_to_num(check.values - start)
        change = moved @ self.coef.T
        with np.errstate(invalid="ignore"):
            deviation = np.abs(found - value - change)
        deviation[np.isnan(deviation)] = np.inf
        # size of the terms that predict adds up, whose rounding no predictor can avoid
        size = np.abs(value) + (np.abs(np.nan_to_num(start)) + np.abs(moved)) @ np.abs(self.coef.T)
        scale = np.maximum(np.maximum(self.spread, np.abs(change)), 1e-8 * size)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(deviation > 0, deviation / scale, 0.0)
        explained = deviation <= TOLERANCE * scale + 64 * self.epsilon * size
        return float(relative.max()), bool(explained.all())


def probe(
    estimator: Any, table: Table, movable: npt.NDArray[np.bool_], response_method: str = "predict"
) -> EffectiveCoef:
    """Probe an estimator on rows like those of a table: `effective_coef` after its checks."""
    name = f"{type(estimator).__name__}.{response_method}"
    is_predict = response_method == "predict" and hasattr(estimator, "__sklearn_tags__")
    if is_predict and is_classifier(estimator):
        raise ValueError(
            f"{name} returns labels, which are not affine in X. Use adversarial_accuracy or "
            "metric='accuracy', or probe response_method='decision_function'."
        )
    prober = _Prober(estimator, table, movable, response_method)
    try:
        coef = prober.slopes()
        inside, outside = prober.checks(coef)
        at_base, found = prober.predict(prober.base[None], [0]), prober.predict_all(inside)
    except REFUSALS as error:
        raise ValueError(prober.complaint(error)) from error
    if not np.isfinite(coef).all():
        bad = np.flatnonzero(~np.isfinite(coef).all(axis=0))
        raise ValueError(
            f"{name} returns NaN or infinity where column {table.label(bad)} moves within the "
            "range of the data: there is no slope. Name the columns that can move with features=."
        )
    deviation = _Deviation(prober, coef, at_base, found)
    near = deviation(inside, found)
    try:
        far = deviation(outside, prober.predict_all(outside))
    except REFUSALS:  # splines and logarithms have a range
        far = (np.inf, False)
    residual, is_affine = max(near[0], far[0]), near[1] and far[1]
    is_constant = is_affine and not coef.any()
    if is_constant and prober.is_piecewise():
        residual, is_affine, is_constant = np.inf, False, False
    intercept = at_base[0] - coef[:, movable] @ prober.base[movable]
    if prober.is_vector:
        coef, intercept = coef[0], float(intercept[0])
    return EffectiveCoef(coef, intercept, residual, is_affine, is_constant, ~movable)


def check_on_nonaffine(on_nonaffine: str) -> None:
    """Raise ValueError for an unknown option."""
    if on_nonaffine not in ("raise", "linearize"):
        raise ValueError(f"on_nonaffine must be 'raise' or 'linearize', got {on_nonaffine!r}.")


def require_affine(result: EffectiveCoef, estimator: Any, on_nonaffine: str) -> EffectiveCoef:
    """Raise ValueError for a predictor that is not affine, unless first order is asked for."""
    check_on_nonaffine(on_nonaffine)
    if not result.is_affine and on_nonaffine == "raise":
        raise ValueError(
            f"{type(estimator).__name__} is not affine in the columns under attack: predictions at "
            f"recombined and extrapolated rows are off by {result.residual:.2g} of their spread, "
            "so there is no closed form. Name the columns in which it is affine with features=, or "
            "accept a first-order value, which is no bound, with on_nonaffine='linearize'."
        )
    return result


def linear_scores(
    estimator: Any, X: Any, table: Table, movable: npt.NDArray[np.bool_], on_nonaffine: str
) -> tuple[Array, Array, npt.NDArray[Any]]:
    """Scores of a linear classifier, their coefficients, and its classes, one column a class."""
    name = type(estimator).__name__
    if hasattr(estimator, "predict") and not hasattr(estimator, "decision_function"):
        estimator.predict(table.native([0]))  # an estimator that is not fitted says so
        raise ValueError(
            f"{name} has no decision function, and only a linear one has a closed form. Use a "
            "linear classifier such as LogisticRegression, RidgeClassifier or LinearSVC."
        )
    result = probe(estimator, table, movable, "decision_function")
    coef = np.atleast_2d(require_affine(result, estimator, on_nonaffine).coef)
    score = respond(estimator, X, "decision_function")
    score, classes = check_finite(estimator, score, "decision_function"), estimator.classes_
    if score.ndim == 1 or score.shape[1] == 1:
        # two classes: the score is that of the second over the first
        score = np.column_stack([np.zeros(len(score)), score])
        coef = np.concatenate([np.zeros_like(coef), coef])
    if score.shape[1] != len(classes):
        raise ValueError(
            f"The decision function of {name} has {score.shape[1]} columns for {len(classes)} "
            "classes: it votes between pairs. Wrap a linear classifier in OneVsRestClassifier."
        )
    wrong = classes[np.argmax(score, axis=1)] != np.asarray(estimator.predict(X))
    ordered = np.sort(score, axis=1)
    wrong &= ordered[:, -1] - ordered[:, -2] > 1e-12 * np.abs(score).max(axis=1)
    if wrong.any():
        raise ValueError(
            f"{name} predicts another class than that of its largest decision value for "
            f"{wrong.sum()} of {len(wrong)} rows, so its margins do not tell what fools it. Use a "
            "classifier without a threshold of its own or votes between pairs."
        )
    return score, coef, classes
