"""What the displays share: curves that differ without colour, bands, reference lines, legends."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

__all__ = ["CurveDisplay", "as_curves", "as_numbers", "as_rows", "curves_of"]

Array = npt.NDArray[np.float64]
# Told apart without colour: four line styles, then the same with markers
_LINESTYLES = ("-", "--", "-.", ":")
_MARKERS = ("", "o", "s", "^", "D", "v")
# Where every point is measured it has a marker: seven of them against four styles repeat after 28
_POINT_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_N_MARKERS = 8
_LOOK = ("color", "marker", "markersize", "fillstyle")  # what tells whose a line is
_MARKED = ", marked as its curve"
_MAX_INSIDE = 3  # curves whose legend has room beside them


class CurveDisplay(ABC):
    """A picture of one or several curves; displays say what the curves are and dress the axes."""

    names: list[str] | None
    lines_: list[Any]
    line_: Any
    bands_: list[Any]
    references_: list[Any]
    ax_: Any
    figure_: Any
    _log: ClassVar[bool] = True  # whether the axis of values is logarithmic

    def plot(
        self,
        ax: Any = None,
        *,
        names: list[str] | str | None = None,
        band_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the curves, each with a line style or marker of its own.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on, after what is already there. None makes a new figure.
        names : list of str or str, default=None
            Names of the curves; a str is the name of the only one. None takes those of the display.
        band_kwargs : dict, default=None
            Arguments of matplotlib's `fill_between`, over the defaults.
        **kwargs : dict
            Arguments of matplotlib's `plot`, for every curve, over the defaults.

        Returns
        -------
        display : object
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If `ax` is no Axes, or an argument is no property of a Line2D.
        ValueError
            If there are more names, limits or references, or fewer, than curves, or curves and
            limits are not as the display needs them.
        """
        plt = self._ready("plot", ax, kwargs)
        if not (band_kwargs is None or isinstance(band_kwargs, dict)):
            raise TypeError(f"band_kwargs must be a dict, got {type(band_kwargs).__name__}.")
        x, y = self._curves()
        labels = self._labels(names, len(y))
        low, high, band_label = self._limits()
        low, high = self._alike(low, "low", y), self._alike(high, "high", y)
        self.lines_, self.bands_, self.references_ = [], [], []
        ax = plt.subplots(layout="constrained")[1] if ax is None else ax
        self._draw(ax, x, y, labels, kwargs)
        self._fill(ax, low, high, band_label, band_kwargs or {})
        self._dress(ax)
        self._finish(ax)
        return self

    @abstractmethod
    def _curves(self) -> tuple[Sequence[Array], Sequence[Array]]:
        """Return abscissae and ordinates of each curve."""

    @abstractmethod
    def _limits(self) -> tuple[Any, Any, str]:
        """Return lower and upper limits of each curve, None for no bands, and their label."""

    @abstractmethod
    def _dress(self, ax: Any) -> None:
        """Draw lines of reference, and label the axes."""

    @classmethod
    def _ready(cls, method: str, ax: Any, given: Iterable[str]) -> Any:
        """Import matplotlib and see what it is given; methods begin here, not to work in vain."""
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                f"{cls.__name__} needs matplotlib. Install it with "
                'pip install "sklearn_gradhess[plot]".'
            ) from error
        if not (ax is None or isinstance(ax, plt.Axes)):
            raise TypeError(
                f"ax must be a matplotlib Axes, got {type(ax).__name__}. Pass plt.subplots()[1], "
                "or None for a new figure."
            )
        own = [p for p in inspect.signature(getattr(cls, method)).parameters if p != "kwargs"]
        own += ["names", "band_kwargs"]
        styles = [name[4:] for name in dir(plt.Line2D) if name.startswith("set_")]
        for name in given:
            if name not in (*own, *styles, "scalex", "scaley"):
                close = get_close_matches(name, own, 1) or get_close_matches(name, styles, 1)
                other = ", nor has matplotlib's Line2D."
                hint = f"; did you mean {close[0]!r}?" if close else other
                raise TypeError(f"{method} has no argument {name!r}{hint}")
        return plt

    @staticmethod
    def _each(values: Any, name: str, n_curves: int) -> list[Any]:
        """List what each curve has; None is nothing for any."""
        found = [None] * n_curves if values is None else values
        found = list(found) if np.iterable(found) else found
        if not isinstance(found, list) or len(found) != n_curves:
            size = len(found) if isinstance(found, list) else f"no list of {type(found).__name__}"
            raise ValueError(
                f"{name} has {size} entries for {n_curves} curves. Pass a list of one for "
                "each curve, None where a curve has none."
            )
        return found

    def _alike(self, values: Any, name: str, y: Sequence[Array]) -> list[Any]:
        """Limits of each curve, or None, each of the length of its curve."""
        found = self._each(values, name, len(y))
        for i, (limit, curve) in enumerate(zip(found, y, strict=True)):
            if limit is not None and np.shape(limit) != curve.shape:
                raise ValueError(
                    f"{name}[{i}] has shape {np.shape(limit)}, but curve {i} has {curve.shape}. "
                    "Pass one limit for each point of the curve."
                )
        return found

    def _labels(self, names: list[str] | str | None, n_curves: int) -> list[Any]:
        names = self.names if names is None else names
        if names is None:
            return [None] * n_curves
        if not np.iterable(names):
            raise TypeError(f"names must be a list of str, one a curve, got {names!r}.")
        names = [names] if isinstance(names, str) else list(names)
        if len(names) != n_curves:
            raise ValueError(f"names has {len(names)} entries for {n_curves} curves: {names}.")
        return names

    def _draw(
        self,
        ax: Any,
        x: Iterable[Array],
        y: Iterable[Array],
        labels: Iterable[Any],
        given: dict[str, Any],
    ) -> None:
        """Draw the curves; on a logarithmic axis with a marker at each of their few points."""
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D

        given = normalize_kwargs(given, Line2D)
        if self._log:
            ax.set_yscale("log")
        drawn = len(curves_of(ax))
        for i, (abscissae, ordinates, label) in enumerate(zip(x, y, labels, strict=True), drawn):
            style: dict[str, Any] = {"linestyle": _LINESTYLES[i % len(_LINESTYLES)]}
            if self._log:
                ordinates, label = _shown_on_log(ordinates, label)
                style |= {"marker": _POINT_MARKERS[i % len(_POINT_MARKERS)], "markersize": 4}
            else:
                style["marker"] = _MARKERS[i // len(_LINESTYLES) % len(_MARKERS)]
                style["markevery"] = max(1, len(abscissae) // _N_MARKERS)
            self.lines_ += ax.plot(abscissae, ordinates, **style | {"label": label} | given)

    def _fill(
        self,
        ax: Any,
        low: Iterable[Any],
        high: Iterable[Any],
        label: str,
        given: dict[str, Any],
    ) -> None:
        """Draw the bands of the curves that have one, with one legend entry for all."""
        for line, lower, upper in zip(self.lines_, low, high, strict=True):
            if lower is not None and upper is not None:
                limits = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
                self.bands_.append(self._band(ax, line, *limits, label, given))

    @staticmethod
    def _band(
        ax: Any, line: Any, low: Array, high: Array, label: str, given: dict[str, Any]
    ) -> Any:
        hidden = np.isnan(line.get_ydata())
        low, high = np.where(hidden, np.nan, low), np.where(hidden, np.nan, high)
        unlimited = np.isinf(high)
        if unlimited.any():
            label += ", no upper limit"
            seen = np.concatenate([low, high, line.get_ydata()])
            high = np.where(unlimited, 2 * seen[np.isfinite(seen)].max(), high)
        style = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0, "label": _new(ax, label)}
        band = ax.fill_between(line.get_xdata(), low, high, **style | given)
        if unlimited.any():  # no margin above: the band leaves the picture
            band.sticky_edges.y.append(np.nanmax(high))
            ax.autoscale_view()
        return band

    def _refer(
        self, ax: Any, kind: str, values: Sequence[tuple[float, ...]], label: str, **style: Any
    ) -> None:
        """Draw thin lines across the axes, at the values of each curve.

        Where all curves agree their line is grey. Else each line has the colour of its curve and
        ends in its marker, further inside for every curve, so that no marker covers another.
        """
        draw = ax.axvline if kind == "vertical" else ax.axhline
        style = {"color": "0.4", "linewidth": 1.0, "zorder": 1} | style
        curves = curves_of(ax)
        first = len(curves) - len(self.lines_)  # on axes that displays share
        there = {tuple(line.get_xydata()[0]) for line in ax.lines if line not in curves}
        places = {(v, 0.0) if kind == "vertical" else (0.0, v) for own in values for v in own}
        if len(set(values)) == 1 and (not first or places <= there):
            for value in values[0]:
                self.references_.append(draw(value, label=_new(ax, label), **style))
            return
        draw(np.nan, label=_new(ax, label + _MARKED), **style)  # for the legend
        for i, (line, own) in enumerate(zip(self.lines_, values, strict=True), first):
            look = {name: getattr(line, f"get_{name}")() for name in _LOOK} | {"markevery": [1]}
            end = 0.98 - 0.03 * (i % 20)
            self.references_ += [draw(value, 0, end, **style | look) for value in own]

    def _finish(self, ax: Any) -> None:
        curves = curves_of(ax)
        # Curves first, what they share after them, also where displays share axes
        entries = sorted(
            zip(*ax.get_legend_handles_labels(), strict=True), key=lambda e: e[0] not in curves
        )
        if entries:
            ax.legend(*zip(*entries, strict=True), **_place(ax, [label for _, label in entries]))
        self.line_, self.ax_, self.figure_ = self.lines_[0], ax, ax.figure

    def _described(self, n_curves: int) -> str:
        """Say how many curves there are, and their names."""
        names = "" if self.names is None else f" ({', '.join(self.names)})"
        return f"{n_curves} curve{'s' * (n_curves != 1)}{names}"


def curves_of(ax: Any) -> list[Any]:
    """List the lines that are curves; lines across the axes have another transform."""
    return [line for line in ax.lines if line.get_transform() is ax.transData]


def as_rows(values: Any, name: str) -> Any:
    """Make one curve the only row of several of as many points; None stays None."""
    if values is None:
        return None
    rows = np.atleast_2d(as_numbers(values, name))
    if np.ndim(values) == 0 or rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"{name} has shape {np.shape(values)}. Pass one number for each point of a curve, or "
            "one row of them for each of several curves."
        )
    return rows


def as_curves(values: Any, name: str) -> list[Array]:
    """List the curves, each of a length of its own."""
    if isinstance(values, str) or not np.iterable(values):
        raise ValueError(
            f"{name} must be a list of one-dimensional arrays, [values] for one curve, got "
            f"{values!r}."
        )
    return [as_numbers(curve, f"{name}[{i}]") for i, curve in enumerate(values)]


def as_numbers(values: Any, name: str) -> Array:
    """Array of floats."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must hold numbers alone, in rows of one length: {error}."
        ) from error


def _place(ax: Any, labels: list[str]) -> dict[str, Any]:
    """Place the legend: a large one below the axes, where a layout engine makes room for it."""
    large = len(curves_of(ax)) > _MAX_INSIDE or any(label.endswith(_MARKED) for label in labels)
    if not large or ax.figure.get_layout_engine() is None:
        return {}
    from matplotlib.transforms import ScaledTranslation

    inch = ax.figure.dpi_scale_trans
    below = ax.transAxes + ScaledTranslation(0, -0.45, inch)  # ticks and label of the axis
    width = ax.get_window_extent().transformed(inch.inverted()).width
    columns = round(width / (0.5 + 0.065 * max(map(len, labels))))
    style = {"loc": "upper center", "fontsize": "small", "ncols": max(1, columns)}
    return style | {"bbox_to_anchor": (0.5, 0.0), "bbox_transform": below}


def _new(ax: Any, label: str) -> str | None:
    """Return the label, or None if the legend has it already."""
    return None if label in ax.get_legend_handles_labels()[1] else label


def _shown_on_log(values: Array, label: str | None) -> tuple[Array, str | None]:
    """Replace what a logarithmic axis cannot show by NaN, and say so in the label."""
    shown = np.isfinite(values) & (values > 0)
    hidden = int(np.sum(~shown))
    if not hidden:
        return values, label
    kinds = {
        "NaN": np.isnan(values),
        "infinite": np.isinf(values),
        "negative": values < 0,
        "zero": values == 0,
    }
    found = " or ".join(kind for kind, here in kinds.items() if here.any())
    note = f"{hidden} of {len(values)} {found}, not shown"
    return np.where(shown, values, np.nan), f"{label} ({note})" if label else note
