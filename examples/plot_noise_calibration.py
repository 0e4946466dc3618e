"""
How much noise: the V
=====================

Target noise of variance n, the rows in a batch, makes the covariance of batch gradients the
Hessian. How exactly must it be n? Here single noisy gradients are taken with other variances and
compared with the true Hessian, with nothing divided out afterwards. Expect a V on logarithmic axes,
its bottom at n less the noise that is there already, an error of nearly one without noise, and a
bottom further left where the coefficients are far from the optimum; antithetic noise does not mind.
"""

import numpy as np

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.plotting import NoiseCalibrationDisplay

n, k, d, m2, s2 = 256, 1000, 20, 64.0, 1.0  # k batches of n rows; excess risk and noise of y
data = make_hessian_regression(
    n * k, d, condition_number=100, noise=np.sqrt(s2), excess_risk=m2, random_state=0
)
X, y, truth = data.data, data.target, data.covariance
multiples = np.array(
    [0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.6, 0.65, 0.7, 0.8, 0.9, 1, 1.1, 1.3, 2, 4, 8, 16]
)
settings = {"variances": n * multiples, "covariance": truth, "n_repeats": 3, "random_state": 0}


# %%
# The theory (arXiv 2601.18546, Lemma 4.2) for Gaussian features, u the error of the coefficients
# and :math:`m^2 = u' \Sigma u` the excess risk: with injected variance v the gradients have the
# covariance :math:`((v + s^2 + m^2)\, \Sigma + \Sigma u u' \Sigma) / n`. Its error, without that of
# sampling:
def theory(v, u):
    excess = ((v + s2 + u @ truth @ u) / n - 1) * truth + np.outer(truth @ u, truth @ u) / n
    return np.linalg.norm(excess, 2) / np.linalg.norm(truth, 2)


# %%
# The V at the optimum; at coefficients of zero, where the excess risk is a quarter of n; and there
# once more with antithetic noise. The band is the range of three draws of noise and batches.
single, paired = (
    GradientCovarianceEstimator(batch_size=n, noise=noise) for noise in ("single", "antithetic")
)
near = NoiseCalibrationDisplay.from_estimator(
    single, X, y, coef=data.coef, name="single, at the optimum", **settings
)
ax = near.ax_
far, pairs = (
    NoiseCalibrationDisplay.from_estimator(
        estimator, X, y, name=f"{estimator.noise}, excess risk n/4", ax=ax, **settings
    )
    for estimator in (single, paired)
)
ax.set_title(f"{k} batches of n = {n} rows, {d} features")

# %%
# What the picture shows, in numbers.
one = np.flatnonzero(multiples == 1)[0]
print(f"Expected sampling error: {near.floor:.3f}")
for name, display, u in (
    ("Single noise, at the optimum", near, 0 * data.coef),
    ("Single noise, excess risk n/4", far, data.coef),
    ("Antithetic noise, excess risk n/4", pairs, None),
):
    best = np.argmin(display.error)
    foretold = np.abs(multiples - 1) if u is None else [theory(n * a, u) for a in multiples]
    print(f"{name}; in brackets the theory, without sampling error")
    print(f"  Minimum at {multiples[best]:.2f} n ({multiples[np.argmin(foretold)]:.2f} n)")
    print(f"  Error at the minimum: {display.error[best]:.3f} ({np.min(foretold):.3f})")
    print(f"  Error at variance n: {display.error[one]:.3f} ({foretold[one]:.3f})")
    print(f"  Error at zero: {display.error[0]:.3f} ({foretold[0]:.3f})")

# %%
# A factor of two in the variance, either way, is an error of half or of one. At the optimum clean
# gradients hardly vary, and without noise next to nothing is seen of the Hessian. Far from it the
# residuals are noise of a kind, of variance m^2, and the error at zero is smaller.
#
# Limits: the minimum is at n less inherent noise and once to twice the excess risk, which are not
# known beforehand, and it lifts with :math:`m^2/n`; antithetic noise, or n much larger, avoids
# both. An error in scale alone, as on the right arm, is harmless to a preconditioner, whose step
# size makes up for it. The theory in brackets is for Gaussian features: heavy tails lift and shift
# the minimum more.
