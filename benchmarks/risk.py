"""Adversarial risk: coverage of the intervals from gradients, and the closed form under attack.

Nominal 95 % intervals. "clean" is the interval of the excess risk m^2 (for single noise, given s^2,
the observed target has the same coverage); "observed" that of v^2 = s^2 + m^2 from antithetic
pairs, "intercept" the same with the intercept's gradient. Without a mean residual the risk at every
radius is a monotone function of one of these, so its interval has the same coverage; with one, see
tests/test_risk.py.
"""

import itertools
import warnings

import numpy as np

from benchmarks.report import LeftOut, theme
from sklearn_gradhess import CalibrationWarning
from sklearn_gradhess.metrics import gradient_adversarial_risk

PAIRS = ("clean", "observed", "intercept")
SHARED = {"intercept_share": 0.5}
LAWS = {  # what is drawn, and the intervals that are judged
    "Gaussian": ({}, PAIRS),
    "Gaussian, s^2 = 0": ({"s2": 0.0}, PAIRS),
    "Rademacher noise": ({"noise": "rademacher"}, PAIRS),
    "single noise": ({"scheme": "single"}, ("clean",)),
    "half of m^2 in the intercept": (SHARED, ("clean", "intercept")),
    "single noise, half in the intercept": ({"scheme": "single", **SHARED}, ("clean",)),
    # where it breaks: elliptical features
    "Student's t5": ({"df": 5}, PAIRS),
    "single noise, Student's t5": ({"scheme": "single", "df": 5}, ("clean",)),
}


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


def coverage(rng, reps, d, k, n, m2, *, s2=1.0, scheme="antithetic", refusals=(), **law):
    """Coverage of the intervals of m^2, of v^2 and of v^2 with the intercept, and their widths.

    The width is the relative half width, the median of (high - low) / (2 truth). Samples with an
    error of the kinds in `refusals` are left out.
    """
    intercept_share = law.get("intercept_share", 0.0)
    hits, widths, done = [], [], 0
    while done < reps:
        size = min(reps - done, max(1, 4_000_000 // (k * n)))
        clean, injected = draw_gradients(
            rng, size, d, k, n, m2=m2, s2=0.0 if scheme == "single" else s2, **law
        )
        for c, h in zip(clean, injected, strict=True):
            try:
                found = intervals(c, h, n, scheme, with_intercept=intercept_share > 0)
            except refusals:
                continue
            truth = np.array([m2, m2 + s2, m2 + s2])[: len(found)]
            hits.append((found[:, 0] <= truth) & (truth <= found[:, 1]))
            widths.append((found[:, 1] - found[:, 0]) / 2 / truth)
        done += size
    return np.mean(hits, axis=0), np.median(widths, axis=0), 1 - len(hits) / reps


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


def extremes(rows):
    """Say how low and how high coverage goes, law by law."""
    lines = []
    for law, cells in itertools.groupby(rows, key=lambda row: row["law"]):
        found = [value for row in cells for name, value in row.items() if name in PAIRS]
        lines.append(f"{law}: coverage {min(found):.3f} to {max(found):.3f}")
    return "\n".join(lines)


@theme(
    "Risk: coverage of the 95 % intervals, from gradients alone",
    target="0.90 to 0.99; not for Student's t",
    summary=extremes,
    short={"reps": 200, "shapes": [(10, 100)], "batch_sizes": [16], "excess_risks": [1.0]},
    long={
        "reps": 400,
        "shapes": [(10, 100), (50, 200)],
        "batch_sizes": [16, 256],
        "excess_risks": [0.1, 1.0, 4.0],
    },
)
def intervals_coverage(reps, shapes, batch_sizes, excess_risks):
    """Count the intervals that hold the truth, and take their median relative half width.

    Intervals are of the excess risk (clean), and of the mean squared error without and with the
    intercept's gradient (observed, intercept). The share has standard error s.e.
    """
    rows = []
    for name, (law, columns) in LAWS.items():
        for (d, k), n, m2 in itertools.product(shapes, batch_sizes, excess_risks):
            rng = np.random.default_rng([d, n, int(10 * m2)])
            with warnings.catch_warnings():
                # single noise near saturation says so, every time
                warnings.simplefilter("ignore", CalibrationWarning)
                hits, widths, _ = coverage(rng, reps, d, k, n, m2, **law)
            row = {"law": name, "d": d, "k": k, "n": n, "m^2": m2}
            row |= {"s.e.": np.sqrt(0.95 * 0.05 / reps)}
            for column, hit, width in zip(columns, hits, widths, strict=True):
                row |= {column: hit, f"{column}, width": width}
            rows.append(row)
    return rows


@theme(
    "Risk: coverage of the 95 % intervals from few batches, and of one-hot columns",
    target="0.90 or more from k = p + 4 on; p counts the intercept",
    short={"reps": 200, "features": (2, 4), "batch_sizes": (1, 16), "extra": (4, 8)},
    long={"reps": 1000, "features": (2, 4, 10), "batch_sizes": (1, 4, 64), "extra": (4, 5, 8)},
)
def few_batches(reps, features, batch_sizes, extra):
    """Count the intervals that hold the truth, with d Gaussian features or d levels in single rows.

    "intercept" is that of the mean squared error with the intercept's gradient. Levels that vary in
    fewer than four batches are refused, and what one batch alone tells of, in the share "refused".
    """
    rows = []
    for d, n, more, noise in itertools.product(features, batch_sizes, extra, NOISES):
        rng = np.random.default_rng([d, n, more])
        hits, _, refused = coverage(
            rng, reps, d, d + 1 + more, n, 1.0, noise=noise, refusals=ValueError
        )
        row = {"columns": "Gaussian", "d": d, "k": d + 1 + more, "n": n, "noise": noise}
        rows.append(row | {"refused": refused} | dict(zip(PAIRS, hits, strict=True)))
    for d, noise in itertools.product((3, 8), NOISES):
        for k in (40, 150):
            rng = np.random.default_rng([d, k])
            hits = one_hot_hits(rng, reps, d, k, noise)
            row = {"columns": "one-hot", "d": d, "k": k, "n": 1, "noise": noise}
            row |= {"refused": 1 - len(hits) / reps}
            if len(hits) > reps / 10:  # the few samples that are kept are no fair ones
                row |= dict(zip(("clean", "intercept"), np.mean(hits, axis=0), strict=True))
            rows.append(row)
    return rows


NOISES = ("normal", "rademacher")


def one_hot_hits(rng, reps, d, k, noise):
    """Whether m^2 and v^2 are in their intervals, for levels of equal frequency in single rows."""
    hits, effects = [], rng.standard_normal(d)
    for _ in range(reps):
        z = np.insert(np.eye(d)[rng.integers(d, size=k)], 0, 1.0, axis=1)
        xi = rng.standard_normal(k) if noise == "normal" else rng.choice([-1.0, 1.0], k)
        residual = z[:, 1:] @ effects + rng.standard_normal(k)
        try:
            found = gradient_adversarial_risk(
                *(z * (residual + sign * xi)[:, None] for sign in (-1, 1)),
                coef=effects, batch_size=1, radius=0.0, has_intercept=True,
            )  # fmt: skip
        except ValueError:
            continue
        m2 = np.mean(effects**2)
        limits = (m2, found.excess_risk_interval), (m2 + 1, found.mean_squared_error_interval)
        hits.append([low <= truth <= high for truth, (low, high) in limits])
    return hits


@theme(
    "Risk: the closed form against the attacks of the Adversarial Robustness Toolbox",
    target="without bounds the best attack equals the closed form, to 1e-9; with bounds, where a "
    "gradient attack may start in the wrong direction, it is no larger",
    short={"norms": (1, 2, np.inf)},
    long={"norms": (1, 1.5, 2, 3, np.inf)},
)
def attacks(norms, radius=0.2):
    """Mean squared error on the diabetes data at a radius of 0.2 standard deviations.

    Ours needs no attack; the toolbox attacks whole pipelines through `predict` alone.
    """
    return _toolbox().compare_all(norms, radius)


@theme(
    "Risk: the search against HopSkipJump of the Adversarial Robustness Toolbox",
    target="no more rows survive ours, at no more queries a row",
    short={"radii": (0.3,), "n_rows": 20},
    long={"radii": (0.15, 0.3, 0.6), "n_rows": 100},
)
def searches(radii, n_rows, max_queries=150):
    """Accuracy on the diabetes data under attack of classifiers that have no closed form.

    Radii in standard deviations. HopSkipJump looks for the nearest row of another label.
    """
    return _toolbox().search_all(radii, max_queries, n_rows)


def _toolbox():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the toolbox names the engines it does not find
            from benchmarks import toolbox
    except ModuleNotFoundError as error:
        # the toolbox does not declare that it needs packaging
        missing = error.name.partition(".")[0]
        missing = {"art": "adversarial-robustness-toolbox"}.get(missing, missing)
        raise LeftOut(f"{missing} not installed") from error
    return toolbox
