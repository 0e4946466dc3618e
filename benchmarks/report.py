"""What a theme is, how its table is printed, and how results are kept as JSON."""

import datetime
import inspect
import json
import math
import os
import platform
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import sklearn
from threadpoolctl import threadpool_info

import sklearn_gradhess

MODES = ("short", "long")
_PACKAGES = (np, scipy, sklearn, sklearn_gradhess)
_DIGITS = 6  # significant digits kept in the JSON
_WIDTH = 100  # of the lines above a table


class LeftOut(Exception):  # noqa: N818 - a message to the reader, nothing went wrong
    """A theme cannot be measured here; the message says what is missing."""


@dataclass(frozen=True)
class Theme:
    """A function that measures, the settings of its two modes, and the words for its table."""

    run: Callable[..., list[dict[str, Any]]]
    title: str
    short: dict[str, Any]
    long: dict[str, Any]
    target: str | None = None
    summary: Callable[[list[dict[str, Any]]], str] | None = None

    @property
    def group(self):
        """Module of the theme."""
        return self.run.__module__.rpartition(".")[2]

    @property
    def name(self):
        """Group and function."""
        return f"{self.group}_{self.run.__name__}"

    @property
    def description(self):
        """The function's docstring, on one line."""
        return " ".join(inspect.getdoc(self.run).split())

    def measure(self, mode):
        """Run in a mode; return the theme's entry for the JSON."""
        entry = {"title": self.title, "description": self.description}
        if self.target:
            entry["target"] = self.target
        entry |= {"mode": mode, "date": datetime.date.today().isoformat()}
        try:
            rows = self.run(**getattr(self, mode))
        except LeftOut as reason:
            return entry | {"left_out": str(reason), "rows": []}
        if self.summary:
            entry["summary"] = self.summary(rows)
        return plain(entry | {"rows": rows})


def theme(title, *, short, long, target=None, summary=None):
    """Make a theme of the function below: its settings by mode, its docstring the description."""
    return lambda run: Theme(run, title, short, long, target, summary)


def select(themes, wanted):
    """Return the themes whose name or group is wanted, in their own order; all of them for None."""
    if wanted is None:
        return list(themes)
    known = {name for t in themes for name in (t.name, t.group)}
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise ValueError(f"no theme or group is called {', '.join(unknown)}; --list shows them")
    return [t for t in themes if {t.name, t.group} & set(wanted)]


def plain(value):
    """Return a result with Python's own types, so that it can be written as JSON.

    Numbers keep six digits. What is not a number becomes None, infinity a word.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if not isinstance(value, float) or value == 0:
        return value
    if math.isfinite(value):
        return float(f"{value:.{_DIGITS}g}")
    return None if math.isnan(value) else str(value)


def cell(value):
    """Return a value as it stands in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return str(value)


def table(rows):
    """Return rows as an aligned table: text to the left, numbers to the right.

    Columns come in the order in which rows name them first; what a row leaves out stays empty.
    """
    columns = {name: [cell(row.get(name)) for row in rows] for row in rows for name in row}
    blocks = []
    for name, cells in columns.items():
        width = max(map(len, [name, *cells]))
        is_text = all(isinstance(row.get(name, ""), str | None) for row in rows)
        align = str.ljust if is_text else str.rjust
        blocks.append([align(line, width) for line in [name, "-" * width, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*blocks, strict=True))


def render(name, entry):
    """Return an entry as it is printed."""
    prose = [entry["description"]]
    if "target" in entry:
        prose.append(f"Target: {entry['target']}.")
    lines = [f"{entry['title']} [{name}]", *(textwrap.fill(text, _WIDTH) for text in prose)]
    if "left_out" in entry:
        return "\n".join([*lines, f"left out, {entry['left_out']}"])
    lines.append(table(entry["rows"]))
    lines += [entry["summary"]] if "summary" in entry else []
    return "\n".join(lines)


def environment():
    """Return what the numbers depend on; neither paths nor the name of the machine."""
    blas = {
        (pool["internal_api"], pool["version"], pool.get("architecture"), pool["num_threads"])
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }
    names = ("name", "version", "architecture", "threads")
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in _PACKAGES},
        "blas": [dict(zip(names, pool, strict=True)) for pool in sorted(blas, key=str)],
        "cores": os.cpu_count(),
    }


def _apart_from_date(described):
    return {key: value for key, value in described.items() if key != "date"}


def merge(old, new):
    """Return the results `new` with the themes of `old` that it has not measured again.

    A theme that was measured in another environment than that of `new` keeps its own.
    """
    kept = {name: dict(entry) for name, entry in old.get("themes", {}).items()}
    before = old.get("environment", {})
    if _apart_from_date(before) != _apart_from_date(new["environment"]):
        for entry in kept.values():
            entry.setdefault("environment", before)
    return new | {"themes": kept | new["themes"]}


def write(path, results):
    """Write results as JSON."""
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read(path):
    """Return the results at a path; none if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
