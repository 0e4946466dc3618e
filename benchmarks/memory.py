"""Peak memory of fit beyond the data, ours and its peers, each in a process of its own."""

import warnings
from functools import partial

import numpy as np
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf
from sklearn.linear_model import LinearRegression, Ridge

from benchmarks.measure import peak_memory
from benchmarks.report import theme
from sklearn_gradhess import (
    CalibrationWarning,
    GradientCovarianceEstimator,
    PreconditionedSGDRegressor,
)

MODELS = {
    "GradientCovarianceEstimator": GradientCovarianceEstimator(batch_size=64, random_state=0),
    "the same, contiguous batches": GradientCovarianceEstimator(
        batch_size=64, shuffle=False, random_state=0
    ),
    "EmpiricalCovariance": EmpiricalCovariance(),
    "LedoitWolf": LedoitWolf(),
    "OAS": OAS(),
    "PreconditionedSGDRegressor": PreconditionedSGDRegressor(random_state=0),
    "LinearRegression": LinearRegression(),
    "Ridge, cholesky": Ridge(solver="cholesky"),
    "Ridge, lsqr": Ridge(solver="lsqr"),
}


def prepare_fit(model, n, d):
    """Return the fit of a model to n rows; the code and buffers that it needs are there already."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # too few rows, and nobody looks
        model.fit(rng.standard_normal((1000, d)), rng.standard_normal(1000))
    X, y = np.empty((n, d)), rng.standard_normal(n)
    for block in np.array_split(X, 64):  # one draw of all would leave its peak behind
        rng.standard_normal(out=block)
    return partial(model.fit, X, y)


@theme(
    "Memory: peak of fit beyond X and y",
    target="20 % of X for the estimator with batches of 64, 30 % for the regression",
    short={
        "shape": (50_000, 256),
        "names": (
            "GradientCovarianceEstimator",
            "EmpiricalCovariance",
            "PreconditionedSGDRegressor",
            "LinearRegression",
        ),
    },
    long={"shape": (400_000, 256), "names": tuple(MODELS)},
)
def peak(shape, names):
    """Share of the size of X; peers with their default copy_X, which keeps X as it is."""
    size = 8 * shape[0] * shape[1]
    return [
        {"model": name, "rows": shape[0], "features": shape[1]}
        | {"peak / X": peak_memory(prepare_fit, MODELS[name], *shape) / size}
        for name in names
    ]
