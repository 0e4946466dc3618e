"""What all displays do alike, after scikit-learn's conventions."""

import inspect
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sklearn_gradhess import plotting
from sklearn_gradhess.plotting import (
    AdversarialRiskDisplay,
    ConvergenceDisplay,
    HessianSpectrumDisplay,
    NoiseCalibrationDisplay,
)
from tests.displays import close_figures, legend  # noqa: F401

matplotlib = pytest.importorskip("matplotlib")

X = np.array([1.0, 2.0, 4.0])
Y = np.array([[3.0, 2.0, 1.0], [30.0, 20.0, 10.0]])
MAKE = {
    AdversarialRiskDisplay: lambda y: AdversarialRiskDisplay(radii=X, value=y),
    ConvergenceDisplay: lambda y: ConvergenceDisplay(x=[X] * len(y), y=y),
    HessianSpectrumDisplay: lambda y: HessianSpectrumDisplay(eigenvalues=y),
    NoiseCalibrationDisplay: lambda y: NoiseCalibrationDisplay(variance=X, error=y),
}
BANDED = {
    "AdversarialRiskDisplay": lambda: AdversarialRiskDisplay(
        radii=X, value=Y, low=Y / 2, high=Y * 2, names=["a", "b"]
    ),
    "ConvergenceDisplay": lambda: ConvergenceDisplay(
        x=[X, X], y=Y, low=Y / 2, high=Y * 2, names=["a", "b"]
    ),
    "HessianSpectrumDisplay": lambda: HessianSpectrumDisplay(
        eigenvalues=Y, low=Y / 2, high=Y * 2, names=["a", "b"]
    ),
    "NoiseCalibrationDisplay": lambda: NoiseCalibrationDisplay(
        variance=X, error=Y, low=Y / 2, high=Y * 2, names=["a", "b"]
    ),
}
each_display = pytest.mark.parametrize("display", MAKE, ids=lambda display: display.__name__)
each_banded = pytest.mark.parametrize("make", BANDED.values(), ids=BANDED)


def test_every_display_is_tested_here():
    assert {display.__name__ for display in MAKE} == set(plotting.__all__)


@each_display
def test_data_are_kept_as_they_are_by_keyword(display):
    parameters = list(inspect.signature(display).parameters.values())
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    given = {p.name: object() for p in parameters}
    assert vars(display(**given)) == given


@each_display
def test_plot_makes_a_figure_and_returns_the_display(display):
    made = MAKE[display](Y)
    assert made.plot() is made
    assert made.figure_ is made.ax_.figure
    assert made.line_ is made.lines_[0]
    assert made.ax_.get_legend() is None
    for line, y in zip(made.lines_, Y, strict=True):
        assert_array_equal(line.get_ydata(), y)
    first = made.figure_
    made.plot(names=["a", "b"])
    assert made.figure_ is not first
    assert legend(made) == ["a", "b"]
    assert made.ax_.get_xlabel()
    assert made.ax_.get_ylabel()
    made.figure_.canvas.draw()  # the mathematics in the labels parses


@each_display
def test_a_logarithmic_axis_wherever_values_span_decades(display):
    scale = "linear" if display is AdversarialRiskDisplay else "log"
    assert MAKE[display](Y).plot().ax_.get_yscale() == scale


@each_display
def test_displays_share_axes_and_differ_without_colour(display):
    _, ax = matplotlib.pyplot.subplots()
    ax.axhline(1.0)  # a line across the axes is no curve
    for name in "abc":
        made = MAKE[display](Y).plot(ax, names=[name, name + name])
        assert made.ax_ is ax
        assert len(made.lines_) == 2
    styles = [(line.get_linestyle(), line.get_marker()) for line in ax.lines[1:]]
    assert len(set(styles)) == 6
    assert styles[0] == (
        matplotlib.pyplot.Line2D([], [], linestyle="-").get_linestyle(),
        "" if display is AdversarialRiskDisplay else "o",
    )
    assert legend(made) == ["a", "aa", "b", "bb", "c", "cc"]


@each_display
def test_twelve_curves_differ_without_colour(display):
    lines = MAKE[display](np.tile(Y, (6, 1))).plot().lines_
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 12


@each_display
def test_keywords_override_the_style(display):
    made = MAKE[display](Y[:1]).plot(names="ours", ls=":", c="black", label="mine", marker="x")
    assert made.line_.get_linestyle() == ":"
    assert made.line_.get_color() == "black"
    assert made.line_.get_marker() == "x"
    assert legend(made) == ["mine"]


@each_banded
def test_bands_have_the_colour_of_their_curves_and_one_legend_entry(make):
    display = make().plot()
    assert len(display.bands_) == 2
    for line, band in zip(display.lines_, display.bands_, strict=True):
        assert band.get_facecolor()[0, :3] == pytest.approx(
            matplotlib.colors.to_rgb(line.get_color())
        )
        assert band.get_alpha() == 0.2
    assert legend(display)[:2] == ["a", "b"]
    assert len(legend(display)) == 3
    display.plot(band_kwargs={"alpha": 0.7, "label": "band", "color": "black"})
    assert display.bands_[0].get_alpha() == 0.7
    assert display.bands_[0].get_facecolor()[0, :3] == pytest.approx((0, 0, 0))
    assert legend(display) == ["a", "b", "band", "band"]


@each_display
def test_no_figure_is_shown(display, monkeypatch):
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda *_, **__: pytest.fail("shown"))
    before = matplotlib.pyplot.get_fignums()
    made = MAKE[display](Y)
    assert matplotlib.pyplot.get_fignums() == before
    made.plot()
    assert len(matplotlib.pyplot.get_fignums()) == len(before) + 1


@each_display
def test_a_display_survives_pickling(display):
    made = pickle.loads(pickle.dumps(MAKE[display](Y)))
    assert repr(made) == repr(MAKE[display](Y))
    for line, y in zip(made.plot().lines_, Y, strict=True):
        assert_array_equal(line.get_ydata(), y)


@each_display
def test_repr_says_what_is_drawn(display):
    made = MAKE[display](Y)
    assert repr(made).startswith(f"<{display.__name__} of ")
    assert "2 curves" in repr(made)
    made.names = ["ours", "theirs"]
    assert "2 curves (ours, theirs)" in repr(made)
    assert "1 curve " in repr(MAKE[display](Y[:1])).replace(":", " ")


@each_display
def test_names_must_be_as_many_as_curves(display):
    with pytest.raises(ValueError, match=r"names has 1 entries for 2 curves: \['ours'\]"):
        MAKE[display](Y).plot(names="ours")


@each_display
def test_without_matplotlib_the_message_says_how_to_get_it(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    message = (
        f"{display.__name__} needs matplotlib. Install it with "
        'pip install "sklearn_gradhess[plot]".'
    )
    with pytest.raises(ImportError, match=re.escape(message)):
        MAKE[display](Y).plot()


@each_display
def test_nothing_is_computed_where_it_could_not_be_drawn(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    made_by = [name for name in dir(display) if name.startswith("from_")]
    assert made_by
    for name in made_by:
        method = getattr(display, name)
        required = [
            p.name
            for p in inspect.signature(method).parameters.values()
            if p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        # Objects that nothing can be asked of: whoever looks at one raises another error
        with pytest.raises(ImportError, match=f"{display.__name__} needs matplotlib"):
            method(**dict.fromkeys(required, object()))


@each_banded
@pytest.mark.parametrize("limit", ["low", "high"])
def test_limits_must_be_those_of_the_curves(make, limit):
    display = make()
    setattr(display, limit, Y[:, :2])
    message = re.escape(
        f"{limit}[0] has shape (2,), but curve 0 has (3,). Pass one limit for each point of the "
        "curve."
    )
    with pytest.raises(ValueError, match=message):
        display.plot()
    setattr(display, limit, Y[:1])
    message = (
        f"{limit} has 1 entries for 2 curves. Pass a list of one for each curve, None where a "
        "curve has none."
    )
    with pytest.raises(ValueError, match=message):
        display.plot()
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (MAKE[HessianSpectrumDisplay], "limits", np.array([[0.5, 4.0], [2.0, 40.0]])),
        (MAKE[ConvergenceDisplay], "thresholds", np.array([0.5, 5.0])),
    ],
)
def test_references_may_be_an_array_of_one_for_each_curve(make, name, values):
    display = make(Y)
    setattr(display, name, values)
    drawn = [line.get_ydata()[0] for line in display.plot().references_]
    assert_array_equal(drawn, values.ravel())
    setattr(display, name, values[:1])
    with pytest.raises(ValueError, match=f"{name} has 1 entries for 2 curves. Pass a list of one"):
        display.plot()


def of_floors(floor, batch_size=4):
    return NoiseCalibrationDisplay(
        variance=X, error=np.tile(Y[:1], (len(floor), 1)), batch_size=batch_size, floor=floor
    )


def test_references_that_agree_are_one_grey_line():
    display = of_floors([0.5, 0.5, 0.5]).plot()
    assert [line.get_color() for line in display.references_] == ["0.4", "0.4"]
    assert legend(display) == ["calibrated, n", "expected sampling error"]
    # Also those of displays that share axes
    beside = of_floors([0.5]).plot(display.ax_)
    assert [line.get_color() for line in beside.references_] == ["0.4", "0.4"]
    assert legend(beside) == ["calibrated, n", "expected sampling error"]


def test_references_that_differ_are_marked_as_their_curves():
    display = of_floors([0.5, 0.6, 0.7]).plot()
    calibrated, *floors = display.references_
    assert calibrated.get_marker() == "None"
    for curve, line in zip(display.lines_, floors, strict=True):
        assert line.get_color() == curve.get_color()
        assert line.get_marker() == curve.get_marker()
        assert line.get_markevery() == [1]
        assert 0.9 < line.get_xdata()[1] < 1.0
    assert len({line.get_marker() for line in floors}) == 3
    assert len({line.get_xdata()[1] for line in floors}) == 3  # no marker covers another
    assert legend(display) == ["calibrated, n", "expected sampling error, marked as its curve"]
    (_, line), curve = (beside := of_floors([0.8]).plot(display.ax_)).references_, beside.line_
    assert (line.get_color(), line.get_marker()) == (curve.get_color(), curve.get_marker())
    display.figure_.canvas.draw()


@each_display
def test_labels_and_legend_are_inside_the_figure(display):
    for n in (1, 2, 7):
        made = MAKE[display](np.tile(Y, (4, 1))[:n]).plot(names=[f"curve {i}" for i in range(n)])
        made.ax_.set_ylabel("A label of several words\nin two lines")
        made.figure_.canvas.draw()
        inside = made.figure_.bbox.padded(1)
        for part in (made.ax_.yaxis.label, made.ax_.xaxis.label, made.ax_.get_legend()):
            box = part.get_window_extent()
            assert inside.contains(*box.min), (n, part)
            assert inside.contains(*box.max), (n, part)


@each_display
def test_the_legend_of_many_curves_covers_no_data(display):
    made = MAKE[display](np.tile(Y, (2, 1))).plot(names=list("abcd"))
    made.figure_.canvas.draw()
    legend_box = made.ax_.get_legend().get_window_extent()
    assert legend_box.y1 < made.ax_.xaxis.label.get_window_extent().y0
    # Where nothing makes room for it, it stays in the axes
    _, ax = matplotlib.pyplot.subplots()
    MAKE[display](np.tile(Y, (2, 1))).plot(ax, names=list("abcd"))
    ax.figure.canvas.draw()
    assert ax.bbox.contains(*ax.get_legend().get_window_extent().min)


@each_display
def test_what_plot_would_refuse_is_refused_before_any_work(display):
    for name in ("plot", *(name for name in dir(display) if name.startswith("from_"))):
        method = getattr(MAKE[display](Y) if name == "plot" else display, name)
        required = [
            p.name
            for p in inspect.signature(method).parameters.values()
            if p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        given = dict.fromkeys(required, object())
        for wrong, hint in (
            ("colour", "; did you mean 'color'?"),
            ("band_kwarg", "; did you mean 'band_kwargs'?"),
            ("qqqq", ", nor has matplotlib's Line2D."),
        ):
            message = f"^{name} has no argument '{wrong}'{re.escape(hint)}$"
            with pytest.raises(TypeError, match=message):
                method(**given, **{wrong: 1})
        for ax in (matplotlib.pyplot.figure(), np.empty(2)):
            message = (
                f"ax must be a matplotlib Axes, got {type(ax).__name__}. Pass plt.subplots()[1], "
                "or None for a new figure."
            )
            with pytest.raises(TypeError, match=re.escape(message)):
                method(**given, ax=ax)


def test_a_misspelt_argument_is_named_with_the_one_that_is_meant():
    message = "^from_estimator has no argument 'radius'; did you mean 'radii'\\?$"
    with pytest.raises(TypeError, match=message):
        AdversarialRiskDisplay.from_estimator(None, X, Y, radius=[1, 2])


@each_display
def test_signatures_are_as_they_are_written(display):
    methods = [getattr(display, name) for name in dir(display) if name.startswith("from_")]
    for method in (display, display.plot, *methods):
        assert "Union" not in str(inspect.signature(method))
        assert len(str(inspect.signature(method))) < 1000


def test_the_module_loads_no_matplotlib():
    code = (
        "import sys, sklearn_gradhess.plotting; "
        "print(any(name.partition('.')[0] == 'matplotlib' for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
