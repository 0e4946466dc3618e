"""Groups of the gallery, in the order in which somebody who knows nothing should read them.

`examples/index.rst` has the groups, one directive ``.. gallery-group::`` each, with a name a line:
``quickstart`` is `examples/plot_quickstart.py`. It shows their pictures and puts their pages into
the table of contents. The same order serves wherever else examples stand together.

A public class that no example uses is a warning, hence an error of the build: the page of a class
shows its examples.

Thumbnails are as large as the pictures, since smaller ones cannot be read; of several panels one is
shown.
"""

import json
import re
from pathlib import Path

import numpy as np
import stored
from PIL import Image
from sphinx.errors import ExtensionError
from sphinx.util import logging
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


def public_classes(api):
    """Return module and name of each class that the page of the public interface lists."""
    module, found = "", []
    for line in api.splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.split()[-1]
        elif re.fullmatch(r"   [A-Z]\w*", line):
            found.append((module, line.strip()))
    return found


def without_example(classes, seen):
    """Return those classes of which sphinx-gallery has seen no example, under either name."""
    return [
        f"{module}.{name}"
        for module, name in classes
        if not (seen.get(f"{module}.{name}") or seen.get(f"sklearn_gradhess.{name}"))
    ]


def _every_class_is_shown(app):
    source = Path(app.srcdir)
    path = source / "generated" / "backreferences" / "backreferences_all.json"
    classes = public_classes((source / "api.rst").read_text("utf-8"))
    for name in without_example(classes, json.loads(path.read_text("utf-8"))):
        if stored.RUNS or ".torch." not in name:
            logging.getLogger(__name__).warning("no example of the gallery uses %s", name)


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
    app.connect("builder-inited", _every_class_is_shown, priority=951)
    return {"parallel_read_safe": True}
