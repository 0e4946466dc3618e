"""Groups of the gallery, in the order in which somebody who knows nothing should read them.

`examples/index.rst` has the groups, one directive ``.. gallery-group::`` each, with a name a line:
``quickstart`` is `examples/plot_quickstart.py`. It shows their pictures and puts their pages into
the table of contents. The same order serves wherever else examples stand together.

Thumbnails are as large as the pictures, since smaller ones cannot be read; of several panels one is
shown.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

EXAMPLES = Path(__file__).parents[2] / "examples"
_START = ".. gallery-group::"
_LEFT, _RIGHT, _CORNER = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 0.5, 0.5)
PANELS = {  # shares of the picture: left, top, right, bottom
    "adversarial_model_selection": _LEFT,
    "certified_rows": _LEFT,
    "gaussian_and_rademacher": _LEFT,
    "gradients_only_server": _RIGHT,
    "grid_search": _LEFT,
    "image_classification": (0.5, 0, 1, 0.47),
    "network_spectrum": _RIGHT,
    "network_training": _CORNER,
    "quickstart": (0.32, 0, 0.65, 1),
    "sample_complexity": _RIGHT,
    "when_calibration_is_necessary": _RIGHT,
}


def names():
    """Return the names of all examples, group after group."""
    groups = (EXAMPLES / "index.rst").read_text("utf-8").split(_START)[1:]
    return [
        line.strip() for group in groups for line in group.splitlines() if line.startswith("   ")
    ]


def reading_order(path):
    """Sort examples as the groups name them."""
    name = Path(path).stem.removeprefix("plot_")
    if name not in names():
        raise ExtensionError(f"examples/index.rst names {name} in no group of the gallery.")
    return names().index(name)


def _gap(empty, share):
    """Return the empty line of a picture that is nearest to a share of it, if one is near."""
    wanted = round(share * len(empty))
    near = [i for i in np.flatnonzero(empty) if abs(i - wanted) < 0.07 * len(empty)]
    return min(near, key=lambda i: abs(i - wanted), default=wanted)


def panel(picture, shares):
    """Cut a panel out of a picture, along lines where nothing is drawn."""
    white = np.asarray(picture.convert("L")) > 250
    left, top, right, bottom = shares
    columns, rows = white.all(axis=0), white.all(axis=1)
    box = _gap(columns, left), _gap(rows, top), _gap(columns, right), _gap(rows, bottom)
    return picture.crop(tuple(map(int, box)))


def _thumbnails(app):
    images = Path(app.srcdir) / "auto_examples" / "images"
    for name in names():
        path = images / f"sphx_glr_plot_{name}_001.png"
        if path.exists():
            with Image.open(path) as picture:
                shown = panel(picture, PANELS.get(name, (0, 0, 1, 1)))
                shown.save(images / "thumb" / f"sphx_glr_plot_{name}_thumb.png")


class Group(SphinxDirective):
    """Pictures and pages of some examples."""

    has_content = True

    def run(self):
        """Leave the pictures to sphinx-gallery, and the pages to Sphinx."""
        examples = [line.strip() for line in self.content if line.strip()]
        lines = [".. minigallery::", ""]
        lines += [f"   ../examples/plot_{name}.py" for name in examples]
        lines += ["", ".. toctree::", "   :hidden:", ""]
        lines += [f"   plot_{name}" for name in examples]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    """Register the directive, and what happens to thumbnails."""
    app.add_directive("gallery-group", Group)
    app.connect("builder-inited", _thumbnails, priority=950)  # after the gallery and `stored`
    return {"parallel_read_safe": True}
