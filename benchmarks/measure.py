"""Clocks, peaks of memory, errors and slopes, measured in one way for every theme."""

import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.report import LeftOut

_PROCESS = Path("/proc/self")  # Linux


def best_times(functions, *, repeat=3, budget=math.inf, clock=time.perf_counter):
    """Return the least seconds of each function, as {name: seconds}.

    The functions take turns, so that a slow spell of the machine meets all of them. One that has
    used up more than `budget` seconds sits out the rounds that are left.
    """
    times = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            if sum(times[name]) <= budget:
                start = clock()
                function()
                times[name].append(clock() - start)
    return {name: min(spent) for name, spent in times.items()}


def time_ratios(functions, reference, **how):
    """Return the time of each function over that of the one named `reference`."""
    seconds = best_times(functions, **how)
    return {name: spent / seconds[reference] for name, spent in seconds.items()}


def log_slope(points, values):
    """Return b of the fit ``values ~ points^b``."""
    return slope(np.log(points), np.log(values))


def slope(points, values):
    """Return b of the fit ``values ~ a + b points``, to six places: rounding is no slope."""
    return round(float(np.polyfit(points, values, 1)[0]), 6)


def relative_error(estimate, truth):
    """Return the error of a matrix in operator norm, relative to the truth's norm."""
    return np.linalg.norm(estimate - truth, 2) / np.linalg.norm(truth, 2)


def peak_memory(prepare, *arguments):
    """Return the peak bytes that a function takes beyond what was in use before it.

    The function is ``prepare(*arguments)``, made and run on one thread in a fresh process, because
    memory that this one has freed but not given back would hide the peak.
    """
    if not (_PROCESS / "clear_refs").exists():
        raise LeftOut("peaks of memory need Linux's /proc")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, prepare, arguments).result()


def _peak(prepare, arguments):
    with threadpool_limits(1):
        function = prepare(*arguments)
        (_PROCESS / "clear_refs").write_text("5")  # forget the peak so far
        before = _high_water()
        function()
        return _high_water() - before


def _high_water():
    """Peak resident bytes; the usual ru_maxrss would be inherited from the parent process."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
