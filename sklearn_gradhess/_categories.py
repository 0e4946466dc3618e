"""Categories of a table that an attack may change: columns of levels, and one-hot groups."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._table import Table

__all__ = ["Category", "find_categories"]

Rows = npt.NDArray[np.intp]


class Category(NamedTuple):
    """Columns that change together, from one of the levels in X to another."""

    name: Any
    columns: Rows
    codes: Rows  # level of each row, -1 where it is missing: it stays so
    sources: Rows  # a row of X with each level
    budget: float = np.inf  # a switch needs budget * radius >= 1


def find_categories(categories: Any, table: Table) -> tuple[Category, ...]:
    """Find the categories that an argument names.

    It is a list of columns, by name or position, in which a list of columns stands for a one-hot
    group, as does a name that starts theirs ("color" for "color_red" and "color_blue"); or a dict
    of such by a name of their own.
    """
    if categories is None:
        return ()
    if isinstance(categories, str) or not isinstance(categories, Iterable):
        raise ValueError(
            f"categories must be a list of columns or of one-hot groups, or a dict of groups, got "
            f"{categories!r}."
        )
    if isinstance(categories, dict):
        given = list(categories.items())
    else:
        given = [(_name(entry), entry) for entry in categories]
    found: list[Category] = []
    for name, entry in given:
        columns = _columns(entry, table)
        taken = [j for j in columns if any(j in group.columns for group in found)]
        if taken:
            raise ValueError(f"categories names {table.label(taken)} twice.")
        codes, sources = table.codes(columns)
        if len(columns) > 1:
            _check_one_hot(table, columns, sources)
        found.append(Category(name, columns, codes, sources))
    if not found:
        raise ValueError("categories names no column. Pass None for no attack on categories.")
    return tuple(found)


def _name(entry: Any) -> Any:
    return entry if np.ndim(entry) == 0 else tuple(entry)


def _columns(entry: Any, table: Table) -> Rows:
    names = [] if table.names is None else table.names
    if isinstance(entry, str) and entry not in names:
        starting = [j for j, name in enumerate(names) if str(name).startswith(f"{entry}_")]
        if starting:
            return np.array(starting, dtype=np.intp)
    return np.flatnonzero(table.chosen(entry, "categories"))


def _check_one_hot(table: Table, columns: Rows, sources: Rows) -> None:
    values = table.numbers(sources)[:, columns]
    wrong = ~(np.isin(values, [0.0, 1.0]).all(axis=1) & (values.sum(axis=1) <= 1))
    if wrong.any():
        raise ValueError(
            f"categories takes {table.label(columns)} for a one-hot group, but row "
            f"{sources[np.argmax(wrong)]} of X has {values[np.argmax(wrong)]} there: one of them "
            "is 1, or none, and the others 0. Name one-hot columns, or a single column of levels."
        )
