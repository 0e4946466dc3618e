"""How often calibration_report names a failure by its name, and how often it cries wolf."""

import warnings
from functools import partial

import numpy as np

from benchmarks.report import theme
from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.diagnostics import calibration_report
from sklearn_gradhess.exceptions import CalibrationWarning

N, D, NOISE = 32, 5, 2.0
SCHEMES = {
    "antithetic": {},
    "single, known": {"noise": "single", "inherent_variance": NOISE**2},
    "single, estimated": {"noise": "single", "inherent_variance": "estimate"},
    "none, known": {"noise": "none", "inherent_variance": NOISE**2},
    "none, estimated": {"noise": "none", "inherent_variance": "estimate"},
}


def regression(seed, k, excess_risk):
    """Return features, targets and the generator of what else a case needs."""
    made = make_hessian_regression(
        N * k, D, condition_number=10, noise=NOISE, excess_risk=excess_risk, random_state=seed
    )
    return made.data, made.target, np.random.default_rng(seed + 10_000)


def fit(scheme, seed, *, k=400, excess_risk=None, offset=0.0, extra=None, weights=None, **settings):
    """Fit one seed; `extra` and `weights` make a column and weights of rows and a generator."""
    if (
        excess_risk is None
    ):  # of the calibrated noise, which is the inherent one where none is added
        excess_risk = 0.0 if scheme.startswith("none") else 0.5
    X, y, rng = regression(seed, k, excess_risk)
    if extra:
        X = np.column_stack([X, extra(X)])
    w = weights(rng, len(X)) if weights else None
    estimator = GradientCovarianceEstimator(
        **{"batch_size": N, "random_state": seed} | SCHEMES[scheme] | settings
    )
    return estimator.partial_fit(X, y + offset, w)


def rounds(scheme, seed, k=400):
    """Fit four rounds at coefficients that move by more than a round's own error."""
    X, y, _ = regression(seed, k, 0.0)
    estimator = GradientCovarianceEstimator(batch_size=N, random_state=seed, **SCHEMES[scheme])
    step = 0.05 if scheme.startswith("none") else 0.3
    for r, part in enumerate(np.array_split(np.arange(len(X)), 4)):
        estimator.partial_fit(X[part], y[part], coef=np.full(D, step * (r - 1.5)))
    return estimator


def doubled_pairs(seed, k=400):
    """Fit pairs whose noise is of twice the calibrated variance."""
    X, y, rng = regression(seed, k, 0.5)
    Z = np.column_stack([np.ones(len(X)), X]).reshape(k, N, -1)
    noise = np.sqrt(2 * N) * rng.standard_normal((k, N))
    pair = [np.einsum("bij,bi->bj", Z, xi - y.reshape(k, N)) / N for xi in (-noise, noise)]
    with warnings.catch_warnings():  # which say the same
        warnings.simplefilter("ignore", CalibrationWarning)
        return GradientCovarianceEstimator().partial_fit_gradients(
            *pair, batch_size=N, has_intercept=True
        )


def exponential(rng, n):
    """Return exponential weights."""
    return rng.exponential(size=n)


HEALTHY = {
    "near the optimum": {},
    "targets off by 7": {"offset": 7.0, "batch_size": 2 * N},
    "exponential weights": {"weights": exponential},
    "forty batches": {"k": 120},
    "three redraws": {"n_redraws": 3},
    "normal noise": {"noise_distribution": "normal"},
}
FAILURES = [
    ("too few batches for the dimension", "five batches", partial(fit, "antithetic", k=5)),
    ("too few batches for the dimension", "eight batches", partial(fit, "single, known", k=8)),
    ("too few batches for the accuracy", "twenty batches", partial(fit, "antithetic", k=20)),
    *(
        ("singular covariance", f"{name}, {scheme}", partial(fit, scheme, extra=extra))
        for name, extra in (
            ("a column of zeros", lambda X: 0 * X[:, 0]),
            ("a sum of others", lambda X: X[:, 0] + X[:, 1]),
        )
        for scheme in ("antithetic", "single, known", "single, estimated")
    ),
    (
        "far from the optimum",
        "m^2 = n, uncorrected",
        partial(fit, "single, known", excess_risk=N, correction="none"),
    ),
    (
        "far from the optimum",
        "m^2 = 100 n, corrected",
        partial(fit, "single, known", excess_risk=100 * N),
    ),
    (
        "correction unchecked",
        "m^2 = n/4, corrected",
        partial(fit, "single, known", k=2000, excess_risk=N / 4),
    ),
    (
        "scale mismatch",
        "inherent noise not told",
        partial(fit, "single, known", k=2000, batch_size=8, inherent_variance=0.0),
    ),
    ("scale mismatch", "pairs of twice the noise", doubled_pairs),
    (
        "uncalibrated noise",
        "no noise, none told",
        partial(fit, "none, known", inherent_variance=0.0),
    ),
]


def rates(fitted, n_seeds, name=None):
    """Share of seeds whose report has the name, and share of those with any other."""
    words = [
        {failure.name for failure in calibration_report(fitted(seed=seed)).failures}
        for seed in range(n_seeds)
    ]
    return {
        "named": float(np.mean([name in each for each in words])) if name else None,
        "other words": float(np.mean([bool(each - {name}) for each in words])),
    }


@theme(
    "Report: false alarms and names",
    target="a healthy estimate raises no word, each failure is named",
    short={"n_seeds": 10},
    long={"n_seeds": 50},
)
def words(n_seeds):
    """Share of seeds; Gaussian features, batches of 32 rows unless the case says otherwise."""
    rows = []
    for case, settings in HEALTHY.items():
        for scheme in SCHEMES:
            if scheme.startswith("none") and "n_redraws" in settings:
                continue
            rows.append(
                {"failure": "healthy", "case": f"{case}, {scheme}"}
                | rates(partial(fit, scheme, **settings), n_seeds)
            )
    for scheme in SCHEMES:
        rows.append(
            {"failure": "healthy", "case": f"coefficients that move, {scheme}"}
            | rates(partial(rounds, scheme), n_seeds)
        )
    rows += [
        {"failure": name, "case": case} | rates(fitted, n_seeds, name)
        for name, case, fitted in FAILURES
    ]
    return rows
