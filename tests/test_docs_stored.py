"""Stored pages of the gallery are those of the examples as they are now."""

import ast
import re
from pathlib import Path

import pytest

import sklearn_gradhess

ROOT = Path(sklearn_gradhess.__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("plot_network_*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_stored_page_has_the_code_of_its_example(name):
    source = (ROOT / "examples" / f"{name}.py").read_text("utf-8")
    page = (ROOT / "docs" / "_stored" / f"{name}.rst").read_text("utf-8")
    blocks = re.findall(r"^\.\. code-block:: Python\n((?: {4}.*\n|\n)+)", page, re.MULTILINE)
    stored = "\n".join(line[4:] for block in blocks for line in block.splitlines())
    body = ast.parse(source)
    body.body = body.body[1:]  # the docstring is text on the page
    assert ast.dump(ast.parse(stored)) == ast.dump(body), (
        "Build the site where PyTorch is installed, then run `python docs/_ext/stored.py`."
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_pictures_of_a_stored_page_are_stored(name):
    page = (ROOT / "docs" / "_stored" / f"{name}.rst").read_text("utf-8")
    pictures = re.findall(r"image(?:-sg)?:: /auto_examples/(\S+)", page)
    assert pictures
    for picture in (*pictures, f"images/thumb/sphx_glr_{name}_thumb.png"):
        assert (ROOT / "docs" / "_stored" / picture).is_file()
