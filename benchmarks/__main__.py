"""Measure the themes, print a table for each, and write all of them as JSON."""

import argparse
import sys
import time
import warnings
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks import (
    diagnosis,
    distributed,
    estimator,
    grid,
    memory,
    networks,
    real_data,
    risk,
    scaling,
    solver,
    streams,
    wide,
)
from benchmarks.report import Theme, environment, merge, read, render, select, write

MODULES = (
    estimator,
    diagnosis,
    memory,
    solver,
    grid,
    scaling,
    streams,
    distributed,
    real_data,
    risk,
    networks,
    wide,
)
THEMES = [value for module in MODULES for value in vars(module).values() if type(value) is Theme]
DEFAULT_PATH = Path(__file__).with_name("results.json")


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__} The long mode takes about an hour on two cores.",
    )
    parser.add_argument("--short", action="store_true", help="smaller data, about a minute")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="THEME",
        help="themes or groups to measure; the JSON keeps its other themes",
    )
    parser.add_argument("--json", type=Path, default=DEFAULT_PATH, metavar="PATH")
    parser.add_argument("--list", action="store_true", help="show the themes, measure nothing")
    return parser.parse_args(arguments)


def main(arguments=None, themes=tuple(THEMES)):
    options = parse(arguments)
    try:
        chosen = select(themes, options.only)
    except ValueError as error:
        sys.exit(str(error))
    if options.list:
        for theme in chosen:
            print(f"{theme.name:<28}{theme.title}")
        return
    mode = "short" if options.short else "long"
    results = {"mode": mode, "environment": environment(), "themes": {}}
    if options.only:
        results = merge(read(options.json), results)
    for theme in chosen:
        start = time.perf_counter()
        # One thread unless a theme says otherwise: OpenMP and BLAS may have different defaults
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning that no theme expects is a finding
            entry = theme.measure(mode)
        entry["seconds"] = round(time.perf_counter() - start, 1)
        print(f"\n{render(theme.name, entry)}\n({entry['seconds']:.1f} s)", flush=True)
        results["themes"][theme.name] = entry
        write(options.json, results)  # after each, so that a long run can be cut short


if __name__ == "__main__":
    main()
