"""Measured coverage of the intervals of gradient_adversarial_risk, and where it breaks.

python benchmarks/bench_risk_intervals.py            all tables, about fifteen minutes
python benchmarks/bench_risk_intervals.py --short    fewer repetitions, for a smoke test

Nominal 95 % intervals. "clean" is the interval of the excess risk m^2 (for single noise, given s^2,
the observed target has the same coverage); "observed" that of v^2 = s^2 + m^2 from antithetic
pairs, "intercept" the same with the intercept's gradient. The risk at every radius is a monotone
function of one of these, so its interval has the same coverage.
"""

import argparse
import warnings

import numpy as np

from sklearn_gradhess.metrics import gradient_adversarial_risk

SHAPES = [(10, 100), (50, 200)]
BATCH_SIZES = [16, 256]
EXCESS_RISKS = [0.1, 1.0, 4.0]


def draw_gradients(rng, reps, d, k, n, *, m2, s2, df=None, noise="normal", intercept_share=0.0):
    """Clean and noise gradients of Omega = I, coefficients' error along the first two coordinates.

    Column 0 is the intercept's, of mean residual sqrt(intercept_share * m2). Given residuals, noise
    and the rows' scales, features that the residuals do not depend on are Gaussian pairs: so only
    their batch sums are drawn. The estimates are affine equivariant, so Omega = I is no loss.
    """
    shape = (reps, k, n)
    rho = np.ones(shape) if df is None else np.sqrt((df - 2) / rng.chisquare(df, shape))
    x = rho * rng.standard_normal(shape)
    xi = rng.standard_normal(shape) if noise == "normal" else rng.choice([-1.0, 1.0], shape)
    xi *= np.sqrt(n)
    a, m = np.sqrt(intercept_share * m2), np.sqrt((1 - intercept_share) * m2)
    residual = a + m * x + np.sqrt(s2) * rng.standard_normal(shape)
    clean, injected = np.empty((2, reps, k, d + 1))
    for out, r in ((clean, residual), (injected, xi)):
        out[..., 0], out[..., 1] = r.mean(-1), (x * r).mean(-1)
    u, w = rho * residual, rho * xi
    first = np.linalg.norm(u, axis=-1)
    second = (u * w).sum(-1) / first
    rest = np.sqrt(np.maximum((w * w).sum(-1) - second**2, 0.0))
    draws = rng.standard_normal((2, reps, k, d - 1))
    clean[..., 2:] = first[..., None] * draws[0] / n
    injected[..., 2:] = (second[..., None] * draws[0] + rest[..., None] * draws[1]) / n
    return clean, injected


def coverage(rng, reps, d, k, n, m2, *, s2=1.0, scheme="antithetic", **law):
    """Coverage of the intervals of m^2, of v^2 and of v^2 with the intercept, and their widths.

    The width is the relative half width, the median of (high - low) / (2 truth).
    """
    intercept_share = law.get("intercept_share", 0.0)
    hits, widths, done = [], [], 0
    while done < reps:
        size = min(reps - done, max(1, 4_000_000 // (k * n)))
        clean, injected = draw_gradients(
            rng, size, d, k, n, m2=m2, s2=0.0 if scheme == "single" else s2, **law
        )
        for c, h in zip(clean, injected, strict=True):
            found = intervals(c, h, n, scheme, with_intercept=intercept_share > 0)
            truth = np.array([m2, m2 + s2, m2 + s2])[: len(found)]
            hits.append((found[:, 0] <= truth) & (truth <= found[:, 1]))
            widths.append((found[:, 1] - found[:, 0]) / 2 / truth)
        done += size
    return np.mean(hits, axis=0), np.median(widths, axis=0)


def intervals(clean, injected, n, scheme, *, with_intercept):
    def estimate(columns, **kwargs):
        c, h = clean[:, columns], injected[:, columns]
        gradients = (c - h,) if scheme == "single" else (c - h, c + h)
        return gradient_adversarial_risk(
            *gradients, coef=np.zeros(clean.shape[1] - 1), batch_size=n, radius=0.0, **kwargs
        )

    every, features = slice(None), slice(1, None)
    if scheme == "single":
        columns = every if with_intercept else features
        result = estimate(columns, target="clean", has_intercept=with_intercept)
        return np.array([result.excess_risk_interval])
    full = estimate(every, has_intercept=True)
    if with_intercept:  # features alone would leave the mean residual out of their model
        return np.array([full.excess_risk_interval, full.mean_squared_error_interval])
    result = estimate(features)
    return np.array(
        [
            result.excess_risk_interval,
            result.mean_squared_error_interval,
            full.mean_squared_error_interval,
        ]
    )


def print_grid(title, reps, columns, **law):
    print(f"\n{title}; {reps} repetitions, standard error {np.sqrt(0.95 * 0.05 / reps):.2g}")
    print("  coverage (relative half width)")
    print(f"{'d':>4}{'k':>5}{'n':>5}{'m^2':>6}" + "".join(f"{c:>20}" for c in columns))
    lowest, highest = 1.0, 0.0
    for d, k in SHAPES:
        for n in BATCH_SIZES:
            for m2 in EXCESS_RISKS:
                rng = np.random.default_rng([d, n, int(10 * m2)])
                cover, width = coverage(rng, reps, d, k, n, m2, **law)
                cells = (f"{c:.3f} ({w:.3g})" for c, w in zip(cover, width, strict=True))
                print(f"{d:>4}{k:>5}{n:>5}{m2:>6}" + "".join(f"{c:>20}" for c in cells), flush=True)
                lowest, highest = min(lowest, cover.min()), max(highest, cover.max())
    print(f"  lowest {lowest:.3f}, highest {highest:.3f} (target: 0.90 to 0.99)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    reps = 40 if parser.parse_args().short else 1000
    warnings.simplefilter("ignore")  # single noise near saturation says so, every time
    pairs = ["clean", "observed", "intercept"]
    print_grid("Antithetic, Gaussian features, s^2 = 1", reps, pairs)
    print_grid("Antithetic, Gaussian features, s^2 = 0", reps, pairs, s2=0.0)
    print_grid("Antithetic, Rademacher noise, s^2 = 1", reps, pairs, noise="rademacher")
    print_grid("Single noise, Gaussian features", reps, ["clean"], scheme="single")
    shared = {"intercept_share": 0.5}
    print_grid("Antithetic, half the excess risk in the intercept", reps, ["clean", "intercept"],
               **shared)  # fmt: skip
    print_grid("Single noise, half the excess risk in the intercept", reps, ["clean"],
               scheme="single", **shared)  # fmt: skip
    print("\nWhere it breaks: Student's t features with 5 degrees of freedom, elliptical")
    print_grid("Antithetic, student_t, s^2 = 1", reps, pairs, df=5)
    print_grid("Single noise, student_t", reps, ["clean"], scheme="single", df=5)


if __name__ == "__main__":
    main()
