r"""
How many batches, and how large
===============================

Single noisy gradients, Gaussian features, no correction: the covariance of k gradients of batches
of n rows misses the Hessian by a sampling error and a bias, in relative operator norm about

.. math:: 2 \sqrt{d/k} + d/k \quad \text{and} \quad 2 m^2 / n,

d the number of features, :math:`m^2` the excess risk. So an error :math:`\varepsilon` needs
:math:`k \approx 4 d/\varepsilon^2` batches of :math:`n \approx 2 m^2/\varepsilon` rows. The paper
(arXiv 2601.18546) proves that :math:`n = \tilde O(d^3/\varepsilon^2)` is enough, and conjectures
:math:`n = \Omega(R^2/\varepsilon)` and :math:`k = \tilde O(d/\varepsilon^2)`, R the distance to the
optimum. Expect the exponents of the conjecture.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_gradhess import GradientCovarianceEstimator

rng = np.random.default_rng(0)
m2, eps = 4.0, 0.2  # m^2 is R^2, since the Hessian is the identity


# %%
# k gradients ``X'r/n``, without drawing the rows X. The coefficients are off by m along the first
# feature a, so that ``r = m a + xi``, xi of variance n. Given a, ``a'xi`` is Gaussian, and what of
# xi is orthogonal to a a chi-square. Given r, every other feature adds a Gaussian of variance r'r.
def gradients(k, n, d):
    aa = rng.chisquare(n, k)
    ar = np.sqrt(m2) * aa + np.sqrt(n * aa) * rng.standard_normal(k)
    rr = ar**2 / aa + n * rng.chisquare(n - 1, k)
    return np.c_[ar, np.sqrt(rr)[:, None] * rng.standard_normal((k, d - 1))] / n


def mean_error(k, n, d, repeats):
    errors = []
    for _ in range(repeats):
        estimator = GradientCovarianceEstimator(noise="single", correction="none")
        estimator.partial_fit_gradients(gradients(k, n, d), batch_size=n)
        errors.append(np.linalg.norm(estimator.covariance_ - np.eye(d), 2))
    return np.mean(errors)


# %%
# The error over a grid, d = 16.
batches, rows = 2 ** np.arange(1, 11), 2 ** np.arange(2, 13)  # k/d and n
grid = np.array([[mean_error(16 * c, n, 16, repeats=4) for c in batches] for n in rows])
theory = 2 / np.sqrt(batches) + 1 / batches + 2 * m2 / rows[:, None]
share = np.quantile(grid / theory, [0.5, 0, 1])
print("Measured over theory on the grid: median {:.2f}, from {:.2f} to {:.2f}".format(*share))


# %%
# Slices, for several d: large batches, so that only k counts; many batches, so that only n does.
# Few features fluctuate more, so they are repeated more often.
def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def needed(x, errors):  # where a slice falls to eps
    return np.exp(np.interp(-np.log(eps), -np.log(errors), np.log(x)))


features, sizes, k_needed, n_needed = np.array([8, 16, 32, 64]), 2 ** np.arange(2, 8), [], []
for d in features:
    over_k = [mean_error(d * c, 10**6, d, repeats=128 // d) for c in batches]
    over_n = [mean_error(d * 2000, n, d, repeats=64 // d) for n in sizes]
    k_needed.append(d * needed(batches, over_k))
    n_needed.append(needed(sizes, over_n))
    slopes = slope(batches[3:], over_k[3:]), slope(sizes[:5], over_n[:5])
    print("d = {}: slope of log error over log k {:.2f}, theory -0.5; "
          "of log bias over log n {:.2f}, theory -1".format(d, *slopes))  # fmt: skip
print(f"Exponent of n in d: {slope(features, n_needed):z.2f}, conjecture 0, proven bound 3")
print(f"Exponent of k in d: {slope(features, k_needed):.2f}, conjecture 1")

# %%
# The picture. Where lines stand upright more batches help, where they lie flat larger ones. Limits:
# Gaussian features, and a measurement, no proof. For others the bias is at most ``kappa m^2/n``,
# kappa the largest kurtosis of a direction; ``m^2`` may grow with d. Antithetic noise has no bias.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
left.set(xscale="log", yscale="log", xlabel="batches per feature, k/d",
         ylabel="batch rows per feature, n/d", title="Error, d = 16 (dashed: theory)")  # fmt: skip
measured = left.contour(batches, rows / 16, grid, [0.1, 0.2, 0.5, 1, 2], colors="black")
left.contour(batches, rows / 16, theory, measured.levels, colors="C1", linestyles="dashed")
left.clabel(measured)
right.loglog(features, k_needed, "ko", label="k, batches")
right.loglog(features, 4 * features / eps**2, "k-", label=r"theory, $4d/\varepsilon^2$")
right.loglog(features, n_needed, "C1s", label="n, rows in a batch")
right.axhline(2 * m2 / eps, color="C1", linestyle="--", label=r"theory, $2m^2/\varepsilon$")
right.loglog(features, n_needed[0] * (features / 8) ** 3, "C1:", label="n, the rate proven, $d^3$")
right.set_xscale("log", base=2)
right.set(xlabel="features, d", ylabel=f"needed for a relative error of {eps}")
right.legend()
