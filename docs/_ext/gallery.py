"""Groups of the gallery, in the order in which somebody who knows nothing should read them.

`examples/index.rst` has the groups, one directive ``.. gallery-group::`` each, with a name a line:
``quickstart`` is `examples/plot_quickstart.py`. It shows their pictures and puts their pages into
the table of contents. The same order serves wherever else examples stand together.
"""

from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

EXAMPLES = Path(__file__).parents[2] / "examples"
_START = ".. gallery-group::"


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
    """Register the directive."""
    app.add_directive("gallery-group", Group)
    return {"parallel_read_safe": True}
