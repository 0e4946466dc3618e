"""Sphinx: `sphinx-build -W docs docs/_build` runs the examples and builds the site, offline."""

import re
import sys
from pathlib import Path

import sklearn_gradhess

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

import stored

project = "sklearn_gradhess"
author = "the sklearn_gradhess developers"
copyright = f"2026, {author}"
version = release = sklearn_gradhess.__version__

extensions = [
    "gallery",
    "measured",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",  # [source] beside each name: there is no other address to link to
    "sphinx-mathjax-offline",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "stored",
]
exclude_patterns = ["_build", "_ext", "_stored", "_templates"]
templates_path = ["_templates"]
default_role = "code"  # single backticks in docstrings are code
nitpicky = False  # types of numpydoc such as "array-like" are words, not links
smartquotes = False  # quotes in types are code

autosummary_generate = True
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc gives the types, with shapes
autodoc_mock_imports = [] if stored.RUNS else ["torch"]  # docstrings can be read all the same
numpydoc_show_class_members = False  # the template of classes lists them

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_gradhess"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_js_files = ["tables.js"]
html_copy_source = html_show_sourcelink = False
html_sidebars = {  # none: these pages stand alone
    page: []
    for page in (
        *("index", "getting_started", "cheat_sheet", "auto_examples/index"),
        *("claims", "comparison", "changelog"),
    )
}
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "copyfile_regex": r"index\.rst",  # the groups are ours
    "within_subsection_order": "gallery.reading_order",
    "minigallery_sort_order": "gallery.reading_order",
    "filename_pattern": stored.filename_pattern(),
    "abort_on_example_error": True,
    "capture_repr": (),
    "doc_module": ("sklearn_gradhess",),
    "backreferences_dir": "generated/backreferences",
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,  # times on one noisy machine are nobody's business
    "remove_config_comments": True,
    "image_scrapers": ("matplotlib",),
}


def _skip_inherited(app, what, name, obj, skip, options):
    """Leave out what is inherited from others: their docstrings link to pages of their own."""
    function = getattr(obj, "fget", None) or getattr(obj, "__func__", obj)
    module = getattr(function, "__module__", None) or ""
    inherited = module.startswith(("sklearn.", "torch.")) or re.fullmatch(r"set_\w+", name)
    return True if what == "class" and inherited else None


def _resolve_short_names(app, env, node, contnode):
    """Let `sklearn_gradhess.X` be a link to `sklearn_gradhess.module.X`, where X is described."""
    package, _, name = node.get("reftarget", "").partition(".")
    if package != "sklearn_gradhess" or not hasattr(
        getattr(sklearn_gradhess, name, None), "__module__"
    ):
        return None
    target = f"{getattr(sklearn_gradhess, name).__module__}.{name}"
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, contnode
    )


def setup(app):
    app.connect("autodoc-skip-member", _skip_inherited)
    app.connect("missing-reference", _resolve_short_names)
