"""Pages of the examples that need PyTorch, where it is not installed: as they were stored.

The gallery then shows such an example without running it. This extension replaces its page and its
pictures by those in `docs/_stored`, which ``python docs/_ext/stored.py`` takes over from a build
that did run it.
"""

import importlib.util
import shutil
from pathlib import Path

DOCS = Path(__file__).parents[1]
STORED = DOCS / "_stored"
PREFIX = "plot_network_"  # examples that need PyTorch
RUNS = importlib.util.find_spec("torch") is not None


def filename_pattern():
    """Return the examples that run here, as sphinx-gallery wants it."""
    return "/plot_" if RUNS else f"/plot_(?!{PREFIX.removeprefix('plot_')})"


def files(root):
    """Pages and pictures of these examples below a folder of the gallery."""
    return sorted(
        path
        for pattern in (f"{PREFIX}*.rst", f"images/sphx_glr_{PREFIX}*", f"images/thumb/*{PREFIX}*")
        for path in Path(root).glob(pattern)
    )


def take_over(source, target):
    """Copy pages and pictures from one folder to another."""
    for path in files(source):
        copy = Path(target) / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _put_back(app):
    if not RUNS:
        take_over(STORED, Path(app.srcdir) / "auto_examples")


def setup(app):
    app.connect("builder-inited", _put_back, priority=900)  # after the gallery
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    shutil.rmtree(STORED, ignore_errors=True)
    take_over(DOCS / "auto_examples", STORED)
