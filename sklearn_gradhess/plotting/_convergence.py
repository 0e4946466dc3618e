"""Progress of solvers against passes, time or rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess._sgd import PreconditionedSGD
from sklearn_gradhess.plotting._inputs import by_name, called, last_step
from sklearn_gradhess.plotting._style import CurveDisplay, as_curves, as_numbers

__all__ = ["ConvergenceDisplay"]

Array = npt.NDArray[np.float64]

_X_LABELS = {
    "passes": "Passes over the data",
    "seconds": "Time (s)",
    "iterations": "Rounds",
}
_Y_LABELS = {
    "decrement": "Squared Newton decrement",
    "loss": "Loss",
    "suboptimality": "Loss above its minimum",
}


class ConvergenceDisplay(CurveDisplay):
    """How fast solvers come down, on a logarithmic axis.

    Make it with `from_estimator` or `from_estimators`, which also plot it, or by hand from the
    records of any solver. The parameters are kept as attributes of the same names.

    Parameters
    ----------
    x : list of array-like of shape (n_points,)
        What each curve is drawn against.
    y : list of array-like of shape (n_points,)
        Its values. Those that a logarithmic axis cannot show, zero, negative or not finite, are
        left out, and the legend says how many.
    low, high : list of array-like, default=None
        Limits of the values, over repeats perhaps, drawn as a band; None in the list is no band for
        that curve, None for none at all.
    names : list of str, default=None
        Names of the curves, for the legend.
    x_quantity : str, default="passes"
        "passes", "seconds" or "iterations", or any other text, which then is the label of the axis.
    y_quantity : str, default="decrement"
        "decrement", "loss" or "suboptimality", or any other text, which then is the label.
    thresholds : list of float, default=None
        Value below which the solver of each curve stops, a horizontal line; None in the list is no
        line.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        One for each curve.
    line_ : matplotlib Line2D
        The first of them, for displays of one curve.
    bands_ : list of matplotlib PolyCollection
        One for each curve that has limits.
    references_ : list of matplotlib Line2D
        Lines of `thresholds`.
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that holds the axes.

    See Also
    --------
    sklearn_gradhess.linear_model.PreconditionedSGDRegressor : Its `history_` is what is drawn.

    Notes
    -----
    The history has one point a round. Least squares are solved at once, with the Hessian of all
    rows or a sketch of it: their curve is one point, unless mini-batch steps are asked for.

    References
    ----------
    MATH section 4.3.

    Examples
    --------
    >>> from sklearn_gradhess import PreconditionedSGDRegressor
    >>> from sklearn_gradhess.datasets import make_hessian_regression
    >>> from sklearn_gradhess.plotting import ConvergenceDisplay
    >>> data = make_hessian_regression(6_000, 5, condition_number=1e4, random_state=0)
    >>> model = PreconditionedSGDRegressor(batch_size=24, random_state=0)
    >>> model = model.fit(data.data, data.target)
    >>> len(model.history_) > 1
    True
    >>> display = ConvergenceDisplay.from_estimator(model)  # doctest: +SKIP
    >>> other = ConvergenceDisplay(
    ...     x=[[1, 2, 3]], y=[[1.0, 0.1, 0.01]], names=["another solver"])
    >>> other
    <ConvergenceDisplay of decrement against passes: 1 curve (another solver) of 3 points>
    >>> other = other.plot(ax=display.ax_)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        x: Sequence[npt.ArrayLike],
        y: Sequence[npt.ArrayLike],
        low: Sequence[npt.ArrayLike | None] | None = None,
        high: Sequence[npt.ArrayLike | None] | None = None,
        names: list[str] | None = None,
        x_quantity: str = "passes",
        y_quantity: str = "decrement",
        thresholds: Sequence[float | None] | None = None,
    ) -> None:
        self.x = x
        self.y = y
        self.low = low
        self.high = high
        self.names = names
        self.x_quantity = x_quantity
        self.y_quantity = y_quantity
        self.thresholds = thresholds

    def _curves(self) -> tuple[Sequence[Array], Sequence[Array]]:
        x, y = as_curves(self.x, "x"), as_curves(self.y, "y")
        sizes = [curve.shape for curve in x], [curve.shape for curve in y]
        if sizes[0] != sizes[1] or not x or any(len(shape) != 1 for shape in sizes[0]):
            raise ValueError(
                f"x has curves of shapes {sizes[0]}, y of {sizes[1]}: pass two lists of as many "
                "one-dimensional arrays, such as x=[passes], y=[loss] for one curve."
            )
        return x, y

    def _limits(self) -> tuple[Any, Any, str]:
        return self.low, self.high, "range of the repeats"

    def _dress(self, ax: Any) -> None:
        thresholds = self._each(self.thresholds, "thresholds", len(self.lines_))
        for i, threshold in enumerate(thresholds):
            if threshold is not None and as_numbers(threshold, f"thresholds[{i}]").ndim:
                raise ValueError(f"thresholds[{i}] must be a number or None, got {threshold!r}.")
        shown = [(float(t),) if t is not None and t > 0 else () for t in thresholds]
        self._refer(ax, "horizontal", shown, "stopping threshold (tol)", linestyle=":")
        ax.set(
            xlabel=_X_LABELS.get(self.x_quantity, self.x_quantity),
            ylabel=_Y_LABELS.get(self.y_quantity, self.y_quantity),
        )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        x: str = "passes",
        y: str = "decrement",
        best_loss: float | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the history of a fitted model.

        Parameters
        ----------
        estimator : PreconditionedSGDRegressor or PreconditionedSGDClassifier
            Fitted model.
        x : {"passes", "seconds", "iterations"}, default="passes"
            What to draw against: passes over the data, those for the preconditioner included,
            seconds, or rounds.
        y : {"decrement", "loss", "suboptimality"}, default="decrement"
            What to draw, see `from_estimators`.
        best_loss : float, default=None
            Loss at the minimiser, penalty included, for y="suboptimality".
        name : str, default=None
            Name of the curve. None is the name of the class.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : ConvergenceDisplay
            The display, plotted.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        TypeError
            If the model keeps no history, or `plot` would refuse an argument.
        ValueError
            If x or y is unknown, or the history does not tell it.
        """
        cls._ready("from_estimator", ax, kwargs)
        return cls.from_estimators(
            {type(estimator).__name__ if name is None else name: estimator},
            x=x,
            y=y,
            best_loss=best_loss,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Any,
        *,
        x: str = "passes",
        y: str = "decrement",
        best_loss: float | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the histories of several fitted models.

        Parameters
        ----------
        estimators : dict of str to model, or list of models
            Fitted models by name.
        x : {"passes", "seconds", "iterations"}, default="passes"
            What to draw against.
        y : {"decrement", "loss", "suboptimality"}, default="decrement"
            The squared Newton decrement, about twice the loss to be gained, with the threshold
            where the solver stops: `tol` times the statistical error. The last point may lie above
            it, where steps without another full gradient were sure to reach it; small data are
            fitted further. "loss" is the objective, penalty included, "suboptimality" that less
            `best_loss`.
        best_loss : float, default=None
            Loss at the minimiser, penalty included, for y="suboptimality".
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : ConvergenceDisplay
            The display, plotted.

        Raises
        ------
        NotFittedError
            If a model is not fitted.
        TypeError
            If `estimators` is one model, a model keeps no history, or `plot` would refuse an
            argument.
        ValueError
            If there is no model, x or y is unknown, or a history does not tell it.
        """
        cls._ready("from_estimators", ax, kwargs)
        if x not in _X_LABELS or y not in _Y_LABELS:
            raise ValueError(
                f"x={x!r} must be one of {tuple(_X_LABELS)}, and y={y!r} one of {tuple(_Y_LABELS)}."
            )
        if (y == "suboptimality") != (best_loss is not None):
            raise ValueError(
                f"best_loss={best_loss} with y={y!r}: y='suboptimality' needs the loss at the "
                "minimiser, that of a fit with tol=1e-12 for instance, and no other y takes it."
            )
        named = by_name(estimators)
        curves = [_curve(name, estimator, x, y) for name, estimator in named.items()]
        display = cls(
            x=[abscissae for abscissae, _ in curves],
            y=[values - (best_loss or 0.0) for _, values in curves],
            names=list(named),
            x_quantity=x,
            y_quantity=y,
            thresholds=[
                _threshold(estimator) if y == "decrement" else None for estimator in named.values()
            ],
        )
        return display.plot(ax, **kwargs)

    def __repr__(self) -> str:
        sizes = sorted({len(curve) for curve in self._curves()[1]})
        points = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        return (
            f"<ConvergenceDisplay of {self.y_quantity} against {self.x_quantity}: "
            f"{self._described(len(self.y))} of {points} points>"
        )


def _curve(name: str, estimator: Any, x: str, y: str) -> tuple[Array, Array]:
    history = None
    if isinstance(estimator, PreconditionedSGD):
        check_is_fitted(estimator)
        history = getattr(estimator, "history_", None)
    if history is None:
        raise TypeError(
            f"{called(name, estimator)} has no history_, which PreconditionedSGDRegressor and "
            f"PreconditionedSGDClassifier keep in fit, not in partial_fit.{last_step(estimator)} "
            "For other solvers use ConvergenceDisplay(x=[passes], y=[values])."
        )
    key = "decrement" if y == "decrement" else "loss"
    values = np.array([record[key] for record in history])
    if np.isnan(values).all():
        raise ValueError(
            f"{name!r} knows no {key}: with noise='single' it sees gradients alone. Use "
            "y='decrement'."
        )
    if x == "iterations":
        return np.arange(len(values), dtype=np.float64), values
    return np.array([record[x] for record in history]), values


def _threshold(estimator: Any) -> float | None:
    """Decrement below which `fit` stops; single noise stops after a number of averaged steps."""
    if estimator.noise == "single":
        return None
    return float(estimator.tol * estimator.history_[-1]["floor"])
