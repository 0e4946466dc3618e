"""Displays name the argument that has the wrong shape, whatever it is."""

import numpy as np
import pytest

from tests.displays import close_figures  # noqa: F401

pytest.importorskip("matplotlib")

from sklearn_gradhess.plotting import (
    AdversarialRiskDisplay,
    ConvergenceDisplay,
    HessianSpectrumDisplay,
    NoiseCalibrationDisplay,
)

RAGGED, CUBE = [[1.0, 2.0], [1.0]], np.ones((2, 2, 2))
GOOD = {
    HessianSpectrumDisplay: {"eigenvalues": [[2.0, 1.0]]},
    NoiseCalibrationDisplay: {"variance": [1.0, 2.0], "error": [1.0, 2.0]},
    AdversarialRiskDisplay: {"radii": [0.0, 1.0], "value": [1.0, 2.0]},
    ConvergenceDisplay: {"x": [[1.0, 2.0]], "y": [[1.0, 2.0]]},
}
WRONG = [
    *((HessianSpectrumDisplay, "eigenvalues", v) for v in (5.0, "ab", [1.0], CUBE, [[]], [])),
    *((HessianSpectrumDisplay, "limits", v) for v in ([1.0], [(1.0,)], 3.0, [("a", "b")])),
    *((HessianSpectrumDisplay, "low", v) for v in (1.0, [1.0, 1.0], [[1.0]])),
    *((NoiseCalibrationDisplay, "error", v) for v in (RAGGED, CUBE, 2.0, [], ["a", "b"], "ab")),
    *((NoiseCalibrationDisplay, "variance", v) for v in ([1, 2, 3], [[1, 2]] * 3, 1.0, ["a"])),
    *((NoiseCalibrationDisplay, "batch_size", v) for v in ([1, 2, 3], 0, "all")),
    *((NoiseCalibrationDisplay, "floor", v) for v in ([1.0, 2.0, 3.0], CUBE, "low")),
    *((NoiseCalibrationDisplay, "low", v) for v in ([1.0], RAGGED, CUBE)),
    *((AdversarialRiskDisplay, "value", v) for v in ([1.0], RAGGED, CUBE, 2.0, ["a"])),
    *((AdversarialRiskDisplay, "radii", v) for v in ([[0, 1]], 0.0, [0, 1, 2], ["a", "b"])),
    *((AdversarialRiskDisplay, "metric", v) for v in ("rmsle", None)),
    *((AdversarialRiskDisplay, "norm", v) for v in (None, "two", 0.5)),
    (AdversarialRiskDisplay, "confidence_level", "high"),
    *((ConvergenceDisplay, "x", v) for v in (1, [1.0, 2.0], [["a", "b"]], [[1.0]], [])),
    *((ConvergenceDisplay, "y", v) for v in (1, [1.0, 2.0], RAGGED, "ab")),
    *((ConvergenceDisplay, "thresholds", v) for v in (["a"], 1.0, [[1.0, 2.0]], [1.0, 2.0])),
    *((display, "names", 3) for display in GOOD),
    *((display, "names", ["a", "b", "c"]) for display in GOOD),
]


@pytest.mark.parametrize(("display", "name", "value"), WRONG)
def test_the_misshapen_argument_is_named(display, name, value):
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        display(**GOOD[display] | {name: value}).plot()


@pytest.mark.parametrize("display", GOOD)
def test_a_band_needs_a_dict(display):
    with pytest.raises(TypeError, match=r"^band_kwargs must be a dict, got int\.$"):
        display(**GOOD[display]).plot(band_kwargs=3)


def test_inherent_variance_is_one_number_or_one_a_curve():
    wrong = NoiseCalibrationDisplay(
        variance=[1, 2], error=[1.0, 2.0], batch_size=4, inherent_variance=[1.0, 2.0, 3.0]
    )
    with pytest.raises(ValueError, match=r"^inherent_variance has shape"):
        wrong.plot()


@pytest.mark.parametrize("shape", ["one for all", "one a curve"])
def test_what_is_one_for_all_may_be_one_a_curve(shape):
    each = (lambda v: v) if shape == "one for all" else (lambda v: [v, v])
    display = NoiseCalibrationDisplay(
        variance=each([1.0, 2.0]) if shape == "one a curve" else [1.0, 2.0],
        error=[[1.0, 2.0], [2.0, 3.0]],
        batch_size=each(4),
        floor=each(0.1),
        inherent_variance=each(1.0),
    ).plot()
    for line in display.lines_:
        np.testing.assert_allclose(line.get_xdata(), [0.25, 0.5])
