"""How well GradientCovarianceEstimator does, and what it costs.

Accuracy is set against the floor that sampling k Gaussian draws has (theory's yardstick for k batch
gradients), and against the covariance estimators that see the rows themselves: these are as
accurate or more, and the tables show by how much. Times are in reads of X, one X.sum().
"""

import warnings
from functools import partial

import numpy as np
from scipy.special import expit
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf
from threadpoolctl import threadpool_limits

from benchmarks.measure import best_times, relative_error
from benchmarks.report import theme
from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression


def wishart_floor(truth, k, n_draws=40, seed=0):
    """Return the mean error of the second moment of k Gaussian draws."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(truth)
    draws = (rng.standard_normal((k, len(truth))) @ root.T for _ in range(n_draws))
    return np.mean([relative_error(h.T @ h / k, truth) for h in draws])


def mean_error(datasets, *, attribute="covariance_", at_truth=False, **settings):
    """Return the mean error of an estimator over datasets, at zero or at the true coefficients."""
    errors = []
    for seed, made in enumerate(datasets):
        estimator = GradientCovarianceEstimator(random_state=seed, **settings)
        where = {"coef": made.coef, "intercept": made.intercept} if at_truth else {}
        with warnings.catch_warnings():
            # a nuisance that drowns the noise is what the table is about
            warnings.simplefilter("ignore", CalibrationWarning)
            estimator.fit(made.data, made.target, **where)
        errors.append(relative_error(getattr(estimator, attribute), made.covariance))
    return np.mean(errors)


def regressions(n_seeds, n_samples, n_features, **law):
    """Return regressions that differ in their seed."""
    return [
        make_hessian_regression(n_samples, n_features, random_state=seed, **law)
        for seed in range(n_seeds)
    ]


@theme(
    "Estimator: error over the floor of sampling, antithetic noise",
    target="a ratio of at most 1.2",
    short={"n_seeds": 4, "k": 1000},
    long={"n_seeds": 20, "k": 1000},
)
def accuracy(n_seeds, k, n=16, d=20, excess_risk=40.0, noise=2.0):
    """Far from the optimum (m^2) and with label noise (s^2), for three laws of the features.

    The floor is for Gaussian draws; heavy tails have a higher one.
    """
    rows = []
    for distribution in ("gaussian", "rademacher", "student_t"):
        made = regressions(
            n_seeds, n * k, d, noise=noise, excess_risk=excess_risk, distribution=distribution
        )
        error = mean_error(made, batch_size=n, assume_centered=True)
        floor = wishart_floor(made[0].covariance, k)
        rows.append(
            {"features": distribution, "d": d, "n": n, "k": k, "m^2": excess_risk, "s^2": noise**2}
            | {"error": error, "floor": floor, "error / floor": error / floor}
        )
    return rows


@theme(
    "Estimator: single noise, corrected and not",
    target="12 floors and more without the correction, below 1.7 with it",
    short={"n_seeds": 2},
    long={"n_seeds": 10},
)
def single_noise(n_seeds, n=32, d=20, k=2000, excess_risk=25.0):
    """One noisy gradient a batch, as in the paper, far from the optimum; Gaussian features."""
    made = regressions(n_seeds, n * k, d, noise=0.0, excess_risk=excess_risk)
    floor = wishart_floor(made[0].covariance, k)
    rows = []
    for correction in ("none", "gaussian"):
        error = mean_error(made, batch_size=n, noise="single", correction=correction)
        rows.append(
            {"correction": correction, "d": d, "n": n, "k": k, "m^2": excess_risk}
            | {"error": error, "error / floor": error / floor}
        )
    return rows


@theme(
    "Estimator: the V, error against the variance of the noise",
    target="least at variance n",
    short={"n_seeds": 1},
    long={"n_seeds": 10},
)
def calibration(n_seeds, n=32, d=20, k=2000):
    """Raw covariance of single-noise gradients at the optimum, nothing divided out."""
    made = regressions(n_seeds, n * k, d, noise=0.0, excess_risk=25.0)
    common = {"batch_size": n, "noise": "single", "correction": "none"}
    return [
        {"d": d, "n": n, "k": k, "variance / n": scale}
        | {
            "error": mean_error(
                made,
                attribute="gradient_covariance_",
                at_truth=True,
                noise_scale=scale,
                **common,
            )
        }
        for scale in (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
    ]


@theme(
    "Estimator: Hessians of generalised linear models",
    target="calibrated to the curvature: no more than 1.2 times the expected error",
    short={"k": 2000},
    long={"k": 8000},
)
def glm(k, n=16, d=10):
    """Noise calibrated to the curvature of the loss, against plain variance n."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((n * k, d))
    coef = 1.5 * rng.standard_normal(d) / np.sqrt(d)
    raw = X @ coef
    common = {"batch_size": n, "assume_centered": True, "random_state": 0}
    plain = GradientCovarianceEstimator(**common).fit(X).covariance_
    rows = []
    for loss, y, curvature in (
        ("log_loss", rng.random(n * k) < expit(raw), expit(raw) * expit(-raw)),
        ("poisson", rng.poisson(np.exp(raw)), np.exp(raw)),
    ):
        truth = X.T @ (curvature[:, None] * X) / len(X)
        calibrated = GradientCovarianceEstimator(loss=loss, **common).fit(X, y, coef=coef)
        rows.append(
            {"loss": loss, "d": d, "n": n, "k": k}
            | {
                "error, calibrated": relative_error(calibrated.covariance_, truth),
                "error, plain n": relative_error(plain, truth),
                "expected": calibrated.expected_error_,
            }
        )
    return rows


def covariance_models(n_samples, n_features):
    """Return the estimators to compare; batches of 16 rows where they are enough."""
    ours = partial(GradientCovarianceEstimator, random_state=0)
    models = {
        "EmpiricalCovariance": EmpiricalCovariance(),
        "LedoitWolf": LedoitWolf(),
        "OAS": OAS(),
        "ours": ours(),
        "ours, shrinkage='oas'": ours(shrinkage="oas"),
    }
    if n_samples >= 16 * 4 * n_features:
        models["ours, batch_size=16"] = ours(batch_size=16)
    return models


@theme(
    "Estimator: error and time against the estimators that see the rows",
    short={"shapes": [(400, 200), (4000, 100), (40_000, 100)], "n_seeds": 2, "repeat": 2},
    long={"shapes": [(400, 200), (4000, 100), (200_000, 100)], "n_seeds": 5, "repeat": 5},
)
def peers(shapes, n_seeds, repeat):
    """Gaussian rows of condition number 100; EC is EmpiricalCovariance.

    With the rows in hand EmpiricalCovariance, LedoitWolf and OAS are as accurate or more.
    """
    rows = []
    for n, d in shapes:
        made = regressions(n_seeds, n, d)
        X = made[0].data
        models = covariance_models(n, d)
        jobs = {name: partial(model.fit, X) for name, model in models.items()}
        seconds = best_times({"read": X.sum, **jobs}, repeat=repeat)
        errors = {
            name: np.mean(
                [relative_error(model.fit(m.data).covariance_, m.covariance) for m in made]
            )
            for name, model in models.items()
        }
        reference = "EmpiricalCovariance"
        rows += [
            {"rows": n, "features": d, "rows / feature": n / d, "model": name}
            | {"error": errors[name], "error / EC": errors[name] / errors[reference]}
            | {"time / EC": seconds[name] / seconds[reference]}
            | {"reads of X": seconds[name] / seconds["read"]}
            for name in models
        ]
    return rows


@theme(
    "Estimator: time of fit, batches of 64 rows",
    target="2.5 reads of X and a tenth of EmpiricalCovariance, for X at 200,000 x 512, one thread",
    short={"shape": (20_000, 256), "threads": (1,), "repeat": 3},
    long={"shape": (200_000, 512), "threads": (1, 2), "repeat": 5},
)
def speed(shape, threads, repeat):
    """Rows dealt to batches at random or contiguous, for X alone, with y, and at coefficients.

    EC is EmpiricalCovariance.
    """
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    data = {
        "X": {"X": X},
        "X, y": {"X": X, "y": y},
        "X, y at coef": {"X": X, "y": y, "coef": rng.standard_normal(shape[1])},
    }
    jobs = {"read": X.sum, "EC": partial(EmpiricalCovariance().fit, X)}
    for shuffle in (True, False):
        estimator = GradientCovarianceEstimator(batch_size=64, shuffle=shuffle, random_state=0)
        jobs |= {(name, shuffle): partial(estimator.fit, **given) for name, given in data.items()}
    rows = []
    for n_threads in threads:
        with threadpool_limits(n_threads):
            seconds = best_times(jobs, repeat=repeat)
        rows += [
            {"rows": shape[0], "features": shape[1], "threads": n_threads, "fit of": name}
            | {"batches": "dealt" if shuffle else "contiguous"}
            | {"reads of X": seconds[name, shuffle] / seconds["read"]}
            | {"EC / ours": seconds["EC"] / seconds[name, shuffle]}
            for name, shuffle in list(jobs)[2:]
        ]
    return rows
