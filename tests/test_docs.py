"""The site's own machinery: numbers in pages that nobody typed."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

import sklearn_gradhess

application = pytest.importorskip("sphinx.application")
docutils = pytest.importorskip("sphinx.util.docutils")

EXTENSIONS = Path(sklearn_gradhess.__file__).parents[1] / "docs" / "_ext"
RESULTS = {
    "environment": dict.fromkeys(("sklearn_gradhess", "python", "numpy", "scipy", "sklearn"), "1.0")
    | {"date": "today"},
    "themes": {
        "fake": {
            "rows": [
                {"model": "a", "time": 12.345, "rows": 4000, "error": "inf"},
                {"model": "b", "time": 0.5, "rows": 200, "error": 0.25},
                {"model": "c d", "time": None},
            ],
            "summary": "Slope: 1.02\nSlope of b: 2.5",
        }
    },
}
EXAMPLE = """
.. rst-class:: sphx-glr-script-out

 .. code-block:: none

    Error: 0.12, theory 0.1
    true 7e-07

Prose: Error: 99, theory 99
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build a page of these lines; return its text and the warnings."""
    monkeypatch.setattr(sys, "path", [str(EXTENSIONS), *sys.path])
    source = tmp_path / "source"
    (source / "auto_examples").mkdir(parents=True)
    (source / "measured.json").write_text(json.dumps(RESULTS), "utf-8")
    (source / "auto_examples" / "plot_fake.rst").write_text(EXAMPLE, "utf-8")

    def page(*lines):
        (source / "index.rst").write_text("\n".join(("Page", "====", "", *lines)), "utf-8")
        warnings, out = io.StringIO(), tmp_path / "out"
        with docutils.docutils_namespace():
            app = application.Sphinx(
                source,
                None,
                out,
                tmp_path / "trees",
                "text",
                confoverrides={"extensions": ["measured"], "exclude_patterns": ["auto_examples"]},
                status=None,
                warning=warnings,
                freshenv=True,
            )
            app.build()
        return (out / "index.txt").read_text("utf-8"), warnings.getvalue()

    return page


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (r":printed:`plot_fake | Error: (\S+),`", "0.12"),
        (r":printed:`plot_fake | true (\S+)\n`", "7e-07"),
        (":measured:`fake | model=a | time`", "12.3"),
        (":measured:`fake | model=a; time=12.3 | time | .0f`", "12"),
        (":measured-least:`fake |  | time | {time:.2f} ({model})`", "0.50 (b)"),
        (":measured-most:`fake |  | time | {rows} rows, {time}`", "4,000 rows, 12.3"),
        (":measured-most:`fake |  | error | {error}`", "inf"),
        (":measured-least:`fake | model=a | time | {time:.0f}`", "12"),
        (":measured-count:`fake`", "3"),
        (":measured-count:`fake | time=; model=c d`", "1"),
        (":measured-count:`fake | model=e`", "0"),
        (":measured-summary:`fake | Slope of b`", "2.5"),
        (
            ":measured-environment:`versions`",
            "today, sklearn_gradhess 1.0, python 1.0, numpy 1.0, scipy 1.0, sklearn 1.0",
        ),
    ],
)
def test_a_role_is_the_number_that_was_found(build, line, text):
    page, warnings = build(f"Here {line} it is.")
    assert not warnings
    assert f"Here {text} it is." in " ".join(page.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r":printed:`plot_fake | Mean: (\S+)`", r"plot_fake prints nothing like 'Mean: (\\S+)'"),
        (r":printed:`plot_none | (\S+)`", r"plot_none prints nothing like '(\\S+)'"),
        (
            ":measured:`fake | model=e | time`",
            "measured.json, fake: 0 rows with model=e, columns []; one row with 'time' is needed",
        ),
        (
            ":measured:`fake | model=a | space`",
            "measured.json, fake: 1 rows with model=a, columns ['model', 'time', 'rows', 'error']; "
            "one row with 'space' is needed",
        ),
        (
            ":measured-least:`fake | model=c d | time | {time}`",
            "measured.json, fake: no row with model=c d has 'time'",
        ),
        (
            ":measured-most:`fake |  | time | {space}`",
            "measured.json, fake: no column 'space' in ['model', 'time', 'rows', 'error']",
        ),
        (":measured-count:`nothing`", "measured.json has no rows of nothing"),
        (":measured-summary:`fake | Slop`", "measured.json, fake: the summary has no line 'Slop'"),
    ],
)
def test_a_number_that_is_not_found_is_a_warning(build, line, message):
    assert message in build(line)[1]


def test_a_table_has_the_columns_and_rows_that_are_wanted(build):
    page, warnings = build(".. measured:: fake", "   :columns: time", "   :where: model=b")
    assert not warnings
    assert re.search(r"time\s.*0\.5", page, re.DOTALL)
    assert "12.3" not in page
    assert "model" not in page
    assert re.search(
        r"model.+time\s.+a .+12\.3\s.+b .+0\.5", build(".. measured:: fake")[0], re.DOTALL
    )


def test_a_table_without_rows_is_a_warning(build):
    assert "measured.json has no rows of nothing" in build(".. measured:: nothing")[1]
