"""What GradientCovarianceEstimator costs and how well it does, as ratios within one run.

python benchmarks/bench_covariance.py            all tables, a few minutes
python benchmarks/bench_covariance.py --short    smaller data, for a smoke test
"""

import argparse
import subprocess
import sys
import time
import warnings

import numpy as np
from scipy.special import expit
from sklearn.covariance import EmpiricalCovariance
from threadpoolctl import threadpool_limits

from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression


def relative_error(estimate, truth):
    return np.linalg.norm(estimate - truth, 2) / np.linalg.norm(truth, 2)


def wishart_floor(truth, k, rng, n_draws=40):
    """Mean error of the second moment of k Gaussian draws: what no estimator of k draws beats."""
    root = np.linalg.cholesky(truth)
    draws = (rng.standard_normal((k, len(truth))) @ root.T for _ in range(n_draws))
    return np.mean([relative_error(h.T @ h / k, truth) for h in draws])


def best_time(function, repeat):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def accuracy(short):
    """Antithetic noise, far from the optimum, label noise present: error over the Wishart floor."""
    rng = np.random.default_rng(0)
    n, d, k, m2, seeds = 16, 20, 1000, 40.0, 5 if short else 20
    print(f"\nAccuracy: antithetic, d={d}, n={n}, k={k}, m^2={m2:g}, s^2=4 (target: at most 1.2)")
    print(f"{'features':<12}{'error':>8}{'floor':>8}{'ratio':>8}")
    for distribution in ("gaussian", "rademacher", "student_t"):
        errors = []
        for seed in range(seeds):
            made = make_hessian_regression(
                n * k, d, noise=2.0, excess_risk=m2, distribution=distribution, random_state=seed
            )
            estimator = GradientCovarianceEstimator(
                batch_size=n, assume_centered=True, random_state=seed
            ).fit(made.data, made.target)
            errors.append(relative_error(estimator.covariance_, made.covariance))
        floor = wishart_floor(made.covariance, k, rng)
        error = np.mean(errors)
        print(f"{distribution:<12}{error:>8.4f}{floor:>8.4f}{error / floor:>8.2f}")


def single_noise(short):
    """One noisy gradient a batch: the correction, and the V around the calibrated variance."""
    rng = np.random.default_rng(1)
    n, d, k, m2, seeds = 32, 20, 2000, 25.0, 3 if short else 10
    print(f"\nSingle noise: d={d}, n={n}, k={k}, m^2={m2:g} (targets: 12 floors to below 1.7)")
    made = [
        make_hessian_regression(n * k, d, noise=0.0, excess_risk=m2, random_state=seed)
        for seed in range(seeds)
    ]
    floor = wishart_floor(made[0].covariance, k, rng)
    for correction in ("none", "gaussian"):
        errors = [
            relative_error(
                GradientCovarianceEstimator(
                    batch_size=n, noise="single", correction=correction, random_state=0
                )
                .fit(m.data, m.target)
                .covariance_,
                m.covariance,
            )
            for m in made
        ]
        print(f"  correction={correction:<10} {np.mean(errors) / floor:6.2f} floors")
    # The V: total variance below and above n, at the optimum, nothing divided out
    print("  V: error of the raw gradient covariance against total noise variance / n")
    for scale in (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0):
        errors = [
            relative_error(
                GradientCovarianceEstimator(
                    batch_size=n,
                    noise="single",
                    correction="none",
                    noise_scale=scale,
                    random_state=0,
                )
                .fit(m.data, m.target, coef=m.coef, intercept=m.intercept)
                .gradient_covariance_,
                m.covariance,
            )
            for m in made
        ]
        print(f"    {scale:>5.2f} n  {np.mean(errors):.3f}")


def glm(short):
    """Hessians of GLMs: noise calibrated to the curvature against plain variance n."""
    rng = np.random.default_rng(2)
    n, d, k = 16, 10, 2000 if short else 8000
    print(f"\nGLM Hessian: d={d}, n={n}, k={k}")
    print(f"{'loss':<12}{'calibrated':>12}{'plain n':>10}{'expected':>10}")
    X = rng.standard_normal((n * k, d))
    coef = rng.standard_normal(d) / np.sqrt(d) * 1.5
    raw = X @ coef
    for loss, y, v in (
        ("log_loss", rng.random(n * k) < expit(raw), expit(raw) * expit(-raw)),
        ("poisson", rng.poisson(np.exp(raw)), np.exp(raw)),
    ):
        truth = X.T @ (v[:, None] * X) / len(X)
        common = {"batch_size": n, "assume_centered": True, "random_state": 0}
        right = GradientCovarianceEstimator(loss=loss, **common).fit(X, y, coef=coef)
        plain = GradientCovarianceEstimator(**common).fit(X)
        print(
            f"{loss:<12}{relative_error(right.covariance_, truth):>12.3f}"
            f"{relative_error(plain.covariance_, truth):>10.2f}{right.expected_error_:>10.3f}"
        )


def speed(short):
    """Time of fit in reads of X, against EmpiricalCovariance, and its growth with the rows."""
    rng = np.random.default_rng(3)
    N, d, repeat = (20_000, 256, 3) if short else (200_000, 512, 7)
    X, y, coef = rng.standard_normal((N, d)), rng.standard_normal(N), rng.standard_normal(d)
    print(f"\nSpeed: {N} x {d}, batch 64 (targets: 4 reads of X, 6 times EmpiricalCovariance)")
    print(f"{'threads':>8} {'fit of':<22}{'reads of X':>11}{'EmpiricalCovariance /':>23}")
    for threads in (1, 2):
        with threadpool_limits(threads):
            read = best_time(X.sum, repeat)
            peer = best_time(lambda: EmpiricalCovariance().fit(X), 2)
            for shuffle in (True, False):
                estimator = GradientCovarianceEstimator(
                    batch_size=64, shuffle=shuffle, random_state=0
                )
                for name, arguments, keywords in (
                    ("X", (X,), {}),
                    ("X, y", (X, y), {}),
                    ("X, y at coef", (X, y), {"coef": coef}),
                ):
                    seconds = best_time(
                        lambda e=estimator, a=arguments, k=keywords: e.fit(*a, **k), repeat
                    )
                    label = f"{name}{'' if shuffle else ', contiguous'}"
                    print(f"{threads:>8} {label:<22}{seconds / read:>11.2f}{peer / seconds:>23.1f}")
    rows = np.array([50_000, 100_000, 200_000] if short else [100_000, 200_000, 400_000, 800_000])
    X = rng.standard_normal((rows[-1], 64))
    estimator = GradientCovarianceEstimator(batch_size=16, random_state=0)
    times = [best_time(lambda m=m: estimator.fit(X[:m]), repeat) for m in rows]
    slope = np.polyfit(np.log(rows), np.log(times), 1)[0]
    print(f"Growth with the rows: time ~ rows^{slope:.2f}")


_MEMORY = """
import sys
import numpy as np
from sklearn_gradhess import GradientCovarianceEstimator
N, d, shuffle = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
rng = np.random.default_rng(0)
def peak():  # Linux; the usual ru_maxrss is inherited from the parent process
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
GradientCovarianceEstimator(batch_size=64).fit(rng.standard_normal((1000, d)))
X, y = np.empty((N, d)), rng.standard_normal(N)
for block in np.array_split(X, 64):
    rng.standard_normal(out=block)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = peak()
GradientCovarianceEstimator(batch_size=64, shuffle=shuffle, random_state=0).fit(X, y)
print((peak() - before) / X.nbytes)
"""


def memory(short):
    """Peak extra memory of fit, in a process of its own."""
    N, d = (100_000, 256) if short else (400_000, 256)
    print(f"\nMemory: peak beyond X and y, {N} x {d}, batch 64 (target: below 20 % of X)")
    for shuffle in (True, False):
        share = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(N), str(d), str(shuffle)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        print(f"  shuffle={shuffle!s:<6} {float(share):.1%} of X")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="smaller data, for a smoke test")
    short = parser.parse_args().short
    warnings.simplefilter("ignore", CalibrationWarning)  # the failures shown here are meant
    for table in (accuracy, single_noise, glm, speed, memory):
        table(short)


if __name__ == "__main__":
    main()
