"""What a reader of the site meets: the start page, the groups of the gallery, pages on a phone."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import sklearn_gradhess

pytest.importorskip("sphinx.application")
Image = pytest.importorskip("PIL.Image")

ROOT = Path(sklearn_gradhess.__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def gallery(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS / "_ext"), *sys.path])
    import gallery

    return gallery


def test_every_example_is_in_one_group(gallery):
    names = gallery.names()
    there = [path.stem.removeprefix("plot_") for path in (ROOT / "examples").glob("plot_*.py")]
    assert sorted(names) == sorted(there)
    assert sorted(names, key=lambda name: gallery.reading_order(f"plot_{name}.py")) == names


def test_an_example_in_no_group_is_an_error(gallery):
    with pytest.raises(Exception, match=r"^examples/index\.rst names lost in no group of the gal"):
        gallery.reading_order("examples/plot_lost.py")


def test_the_groups_have_the_headings_that_a_reader_looks_for():
    text = (ROOT / "examples" / "index.rst").read_text("utf-8")
    headings = re.findall(r"^(.+)\n-+$", text, re.MULTILINE)
    wanted = ["Linear models", "Curvature from gradients", "Risk under attack"]
    assert headings == ["Start here", *wanted, "Beyond one machine", "Networks"]


def test_a_class_without_an_example_is_found_under_either_name(gallery):
    classes = gallery.public_classes(
        ".. currentmodule:: sklearn_gradhess.metrics\n\n   AdversarialRisk\n   dual_norm\n"
        ".. currentmodule:: sklearn_gradhess.covariance\n\n   GradientCovarianceEstimator\n"
    )
    assert classes == [
        ("sklearn_gradhess.metrics", "AdversarialRisk"),
        ("sklearn_gradhess.covariance", "GradientCovarianceEstimator"),
    ]
    seen = {"sklearn_gradhess.GradientCovarianceEstimator": [["plot_quickstart.py"]]}
    assert gallery.without_example(classes, seen) == ["sklearn_gradhess.metrics.AdversarialRisk"]
    seen["sklearn_gradhess.metrics.AdversarialRisk"] = [["plot_risk.py"]]
    assert not gallery.without_example(classes, seen)


def test_pages_ask_for_examples_under_either_name():
    for template in ("base", "class"):
        text = (DOCS / "_templates" / "autosummary" / f"{template}.rst").read_text("utf-8")
        names = re.search(r"^\.\. minigallery:: (.+)$", text, re.MULTILINE)[1]
        assert names == "{{ module }}.{{ objname }} sklearn_gradhess.{{ objname }}"


def test_every_public_class_is_on_the_page_of_the_interface(gallery):
    listed = {name for _, name in gallery.public_classes((DOCS / "api.rst").read_text("utf-8"))}
    public = {name for name in sklearn_gradhess.__all__ if name[0].isupper()}
    assert public <= listed


@pytest.mark.parametrize(("shares", "width"), [((0, 0, 0.5, 1), 96), ((0.5, 0, 1, 1), 104)])
def test_a_panel_is_cut_where_nothing_is_drawn(gallery, shares, width):
    picture = np.zeros((50, 200, 3), dtype=np.uint8)
    picture[:, 96] = 255  # a little left of the middle
    assert gallery.panel(Image.fromarray(picture), shares).size == (width, 50)


def test_a_picture_without_panels_stays_whole(gallery):
    assert gallery.panel(Image.new("RGB", (200, 50), "black"), (0, 0, 1, 1)).size == (200, 50)


def test_panels_are_of_examples(gallery):
    assert set(gallery.PANELS) <= set(gallery.names())


def text_of_start_page():
    text = (DOCS / "index.rst").read_text("utf-8")
    text = re.sub(r":measured(-\w+)?:`[^`]*`", "", text)  # names of columns are not shown
    return re.sub(r":(doc|download):`[^`]*`", "", text)


@pytest.mark.parametrize("word", ["floor", "floors", "read", "reads", "nuisance", "decrement"])
def test_the_start_page_has_no_word_of_insiders(word):
    text = " ".join(text_of_start_page().split()).replace("to read X once", "")
    assert not re.search(rf"\b{word}\b", text)


@pytest.mark.parametrize("word", ["floor", "read", "nuisance", "decrement", "pass", "Hessian"])
def test_the_cheat_sheet_says_what_words_mean(word):
    text = (DOCS / "cheat_sheet.rst").read_text("utf-8")
    assert re.search(rf"^   \* - {word}$", text, re.MULTILINE)


def test_boxes_of_the_decision_picture_lead_to_pages():
    text = (DOCS / "_static" / "choose.svg").read_text("utf-8")
    targets = set(re.findall(r'href="([^"]+)"', text))
    assert len(targets) > 5
    assert all((DOCS / target).with_suffix(".rst").is_file() for target in targets)


def test_names_in_the_decision_picture_are_public():
    text = (DOCS / "_static" / "choose.svg").read_text("utf-8")
    interface = (DOCS / "api.rst").read_text("utf-8")
    ours = re.findall(r'<g transform="[^"]+">(.+?)</g>', text, re.DOTALL)  # without class="other"
    bold = " ".join(re.findall(r'class="use"[^>]*>([^<]+)<', "".join(ours)))
    names = set(re.findall(r"\b[A-Z]\w+(?:Regressor|Estimator)\b|\b[a-z]+_[a-z_]+\b", bold))
    names -= {"partial_fit"}
    assert len(names) > 5
    assert all(f"   {name}\n" in interface for name in names)


def test_what_is_wider_than_a_phone_says_so():
    configuration = (DOCS / "conf.py").read_text("utf-8")
    assert 'html_js_files = ["tables.js"]' in configuration
    script = (DOCS / "_static" / "tables.js").read_text("utf-8")
    style = (DOCS / "_static" / "custom.css").read_text("utf-8")
    marked = re.search(r'hidden > 2 \? "([\w-]+)"', script)[1]
    assert f".{marked}::before" in style  # words
    assert f".{marked}::after" in style  # a shadow
    theme = pytest.importorskip("pydata_sphinx_theme")
    translator = (Path(theme.__file__).parent / "translator.py").read_text("utf-8")
    box = re.search(r'querySelectorAll\("\.([\w-]+), \.scrolls"\)', script)[1]
    assert box in translator  # the theme puts every table into one


def test_the_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    assert "examples/plot_quickstart.py" in blocks[0]
    assert blocks[1].rstrip().endswith("-m pytest")
    assert (ROOT / "examples" / "plot_quickstart.py").is_file()


def test_measured_numbers_know_their_version():
    environment = json.loads((DOCS / "measured.json").read_text("utf-8"))["environment"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", environment["sklearn_gradhess"])
