"""What the tests of the displays share."""

import pytest


@pytest.fixture(autouse=True)
def close_figures():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def corners(band):
    """Corners of a band, as pairs of numbers."""
    return {tuple(vertex) for path in band.get_paths() for vertex in path.vertices}
