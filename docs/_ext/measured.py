"""Numbers in the pages come from what the scripts print, so that no page can disagree with them.

``:printed:`example | regular expression``` is the first group of the expression, searched in what
the example of the gallery printed in this build.

``:measured:`theme | column=value; ... | column | format``` is one cell of `measured.json`, which
the long run of `python -m benchmarks` wrote; a format such as ``.1f`` may be left out.
``:measured-least:`theme | column=value; ... | column | words``` is about the row where the column
is least: words with the row's cells in braces, such as ``{rows} x {features}, {time:.1f}``;
``:measured-most:`` about the row where it is most. ``:measured-count:`theme | column=value; ...```
counts rows.
``:measured-summary:`theme | start``` is the rest of a line below a table, and
``:measured-environment:`versions``` what the run ran on. The directive ``.. measured:: theme`` is a
table, of all columns and rows unless told otherwise.

What is not found is a warning, hence an error of the build.
"""

import json
import re
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective, SphinxRole

from benchmarks.report import cell

_OUTPUT = re.compile(
    r"^ *\.\. rst-class:: sphx-glr-script-out\n\n +\.\. code-block:: none\n\n((?: +.*\n|\n)+)",
    re.MULTILINE,
)


def printed(rst):
    """All that an example printed: the blocks of output in its page, one after the other."""
    return "\n".join(line.strip() for block in _OUTPUT.findall(rst) for line in block.splitlines())


def _read(env):
    path = Path(env.srcdir) / "measured.json"
    env.note_dependency(str(path))
    return json.loads(path.read_text("utf-8"))


def rows_of(env, theme, where):
    """Rows of a measured table whose columns have the values that `where` names."""
    table = _read(env)["themes"].get(theme, {"rows": []})
    wanted = [part.strip().split("=", 1) for part in where.split(";") if part.strip()]
    return [row for row in table["rows"] if all(cell(row.get(k)) == v for k, v in wanted)]


class _Number(SphinxRole):
    def run(self):
        try:
            return [nodes.Text(self.find(*map(str.strip, self.source.split(" | "))))], []
        except LookupError as error:
            return [], [self.inliner.reporter.warning(str(error), line=self.lineno)]

    @property
    def source(self):
        return self.rawtext.split("`")[1]  # `self.text` has lost its backslashes


class Printed(_Number):
    """A number that an example prints."""

    def find(self, example, pattern):
        """First group of the pattern in what the example printed."""
        path = Path(self.env.srcdir) / "auto_examples" / f"{example}.rst"
        self.env.note_dependency(str(path))
        found = re.search(pattern, printed(path.read_text("utf-8"))) if path.exists() else None
        if found is None:
            raise LookupError(f"{example} prints nothing like {pattern!r}")
        return found[1]


class Measured(_Number):
    """A cell of a measured table."""

    def find(self, theme, where, column, spec=""):
        """Cell in the only row that fits."""
        rows = rows_of(self.env, theme, where)
        if len(rows) != 1 or column not in rows[0]:
            raise LookupError(
                f"measured.json, {theme}: {len(rows)} rows with {where}, columns "
                f"{list(rows[0]) if rows else []}; one row with {column!r} is needed"
            )
        return format(rows[0][column], spec) if spec else cell(rows[0][column])


class _Cell:
    """A cell that is formatted as in a table unless told otherwise."""

    def __init__(self, value):
        self.value = value

    def __format__(self, spec):
        return format(self.value, spec) if spec else cell(self.value)


class MeasuredExtreme(_Number):
    """Words about the row of a measured table where a column is least, or most."""

    def __init__(self, choose):
        self.choose = choose

    def find(self, theme, where, column, words):
        """Fill in the words; rows without a number in the column do not count."""
        rows = [r for r in rows_of(self.env, theme, where) if r.get(column) is not None]
        if not rows:
            raise LookupError(f"measured.json, {theme}: no row with {where} has {column!r}")
        row = self.choose(rows, key=lambda row: float(row[column]))  # infinity is stored as a word
        try:
            return words.format_map({name: _Cell(value) for name, value in row.items()})
        except KeyError as error:
            raise LookupError(
                f"measured.json, {theme}: no column {error} in {list(row)}"
            ) from error


class MeasuredCount(_Number):
    """How many rows of a measured table fit."""

    def find(self, theme, where=""):
        """Count them; none may fit, but the table has to have rows."""
        if not rows_of(self.env, theme, ""):
            raise LookupError(f"measured.json has no rows of {theme}")
        return f"{len(rows_of(self.env, theme, where)):,}"


class MeasuredSummary(_Number):
    """A line of what a theme says below its table."""

    def find(self, theme, start):
        """Read what follows the start of the line and a colon."""
        summary = _read(self.env)["themes"].get(theme, {}).get("summary", "")
        found = re.search(rf"^{re.escape(start)}: (.+)$", summary, re.MULTILINE)
        if found is None:
            raise LookupError(f"measured.json, {theme}: the summary has no line {start!r}")
        return found[1]


class MeasuredEnvironment(SphinxRole):
    """What the measured tables ran on."""

    def run(self):
        """Make words of it."""
        found = _read(self.env)["environment"]
        packages = ("sklearn_gradhess", "python", "numpy", "scipy", "sklearn")
        words = ", ".join(f"{package} {found[package]}" for package in packages)
        return [nodes.Text(f"{found['date']}, {words}")], []


class MeasuredTable(SphinxDirective):
    """A measured table, or some columns and rows of it."""

    required_arguments = 1
    option_spec: ClassVar = {"columns": directives.unchanged, "where": directives.unchanged}

    def run(self):
        """Make a list-table of it."""
        theme = self.arguments[0]
        rows = rows_of(self.env, theme, self.options.get("where", ""))
        if not rows:
            return [self.state.document.reporter.warning(f"measured.json has no rows of {theme}")]
        columns = [c.strip() for c in self.options.get("columns", "").split(";") if c.strip()]
        columns = columns or list(dict.fromkeys(key for row in rows for key in row))
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in [columns, *([cell(row.get(c)) for c in columns] for row in rows)]:
            lines += [f"   {' ' if i else '*'} - {text}" for i, text in enumerate(row)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    """Register the roles and the directive."""
    app.add_role("printed", Printed())
    app.add_role("measured", Measured())
    app.add_role("measured-least", MeasuredExtreme(min))
    app.add_role("measured-most", MeasuredExtreme(max))
    app.add_role("measured-count", MeasuredCount())
    app.add_role("measured-summary", MeasuredSummary())
    app.add_role("measured-environment", MeasuredEnvironment())
    app.add_directive("measured", MeasuredTable)
    return {"parallel_read_safe": True}
