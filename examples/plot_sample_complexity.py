r"""
How many batches, and how large
===============================

Single noisy gradients, Gaussian features, no correction: the covariance of k gradients of batches
of n rows misses the Hessian by a sampling error and a bias, in relative operator norm about

.. math:: 2 \sqrt{d/k} + d/k \quad \text{and} \quad 2 m^2 / n,

d the number of features and :math:`m^2` the excess risk at the coefficients. So an error
:math:`\varepsilon` needs :math:`k \approx 4 d/\varepsilon^2` batches of
:math:`n \approx 2 m^2/\varepsilon` rows; at a given :math:`m^2` the rows do not depend on d. The
paper (arXiv 2601.18546) proves that :math:`n = \tilde O(d^3/\varepsilon^2)` is enough, and
conjectures :math:`n = \Omega(R^2/\varepsilon)` and :math:`k = \tilde O(d/\varepsilon^2)`, R the
distance to the optimum. Expect the exponents of the conjecture.
"""

import numpy as np

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.diagnostics import expected_relative_error

rng = np.random.default_rng(0)
m2 = 4.0  # R^2 as well, since the Hessian is the identity


# %%
# Gradients of n rows each, total noise of variance n, for the price of d + 3 random numbers: a is
# the feature along u, r the residual; given both, the sums over the other features are Gaussian of
# variance r'r. This is the exact law, as a draw of all rows confirms.
def gradients(k, n, d):
    aa, z, rest = rng.chisquare(n, k), rng.standard_normal(k), rng.chisquare(n - 1, k)
    ar = np.sqrt(m2) * aa + np.sqrt(n * aa) * z
    g = rng.standard_normal((k, d)) * np.sqrt(ar**2 / aa + n * rest)[:, None] / n
    g[:, 0] = ar / n
    return g


def all_rows(k, n, d):
    X = rng.standard_normal((k, n, d))
    r = np.sqrt(m2) * X[:, :, 0] + np.sqrt(n) * rng.standard_normal((k, n))
    return np.einsum("knd,kn->kd", X, r) / n


def error(k, n, d, repeats=1, draw=gradients):
    errors = []
    for _ in range(repeats):
        estimator = GradientCovarianceEstimator(noise="single", correction="none")
        estimator.partial_fit_gradients(draw(k, n, d), batch_size=n)
        errors.append(np.linalg.norm(estimator.covariance_ - np.eye(d), 2))
    return np.mean(errors)


for name, draw in (("the law", gradients), ("all rows", all_rows)):
    print(f"n = 16, d = 8, k = 20000, from {name}: error {error(20000, 16, 8, 4, draw):.3f}, "
          f"bias in theory {2 * m2 / 16}")  # fmt: skip

# %%
# The error over a grid, d = 16. Where both terms are large they also multiply.
batches, rows = 2 ** np.arange(1, 11), 2 ** np.arange(2, 13)  # k/d and n


def expected(batches, rows):
    return expected_relative_error(1, batches, batch_size=rows, excess_risk=m2, noise="single")


grid = np.array([[error(16 * c, n, 16, 4) for c in batches] for n in rows])
share = grid / expected(batches, rows[:, None])
print(f"Measured over theory on the grid: median {np.median(share):.2f}, "
      f"from {share.min():.2f} to {share.max():.2f}")  # fmt: skip


# %%
# Slices, for several d: large batches, so that only k counts; many batches, so that only n does,
# down to the sampling error. Few features fluctuate more, so they are repeated more often.
def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def needed(x, errors):  # where the slice falls to eps
    return np.exp(np.interp(-np.log(eps), -np.log(errors), np.log(x)))


features, sizes, eps = np.array([8, 16, 32, 64]), 2 ** np.arange(2, 8), 0.2
over_k = {d: np.array([error(d * c, 10**6, d, 128 // d) for c in batches]) for d in features}
over_n = {d: np.array([error(d * 2000, n, d, 64 // d) for n in sizes]) for d in features}
for d in features:
    slopes = slope(batches[3:], over_k[d][3:]), slope(sizes[:5], over_n[d][:5])
    print(f"d = {d}: slope of log error over log k {slopes[0]:.2f}, theory -0.5; "
          f"of log bias over log n {slopes[1]:.2f}, theory -1")  # fmt: skip
k_needed = [d * needed(batches, over_k[d]) for d in features]
n_needed = [needed(sizes, over_n[d]) for d in features]
for d, k, n in zip(features, k_needed, n_needed, strict=True):
    print(f"Error {eps} at d = {d}: n = {n:.0f}, theory {2 * m2 / eps:.0f}; "
          f"k = {k:.0f}, theory {4 * d / eps**2:.0f}")  # fmt: skip
print(f"Exponent of n in d: {slope(features, n_needed):z.2f}, conjecture 0, proven bound 3")
print(f"Exponent of k in d: {slope(features, k_needed):.2f}, conjecture 1")

# %%
# The picture. Where its lines stand upright more batches help, where they lie flat larger ones.
import matplotlib.pyplot as plt

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
image = left.pcolormesh(batches, rows / 16, np.log10(grid), cmap="Greys", vmax=1.2)
levels, x, y = [0.2, 0.5, 1, 2], np.geomspace(2, 1024, 100), np.geomspace(0.25, 256, 100)
left.contour(batches, rows / 16, grid, levels, colors="black")
lines = left.contour(x, y, expected(x, 16 * y[:, None]), levels, colors="C1", linestyles="dashed")
left.clabel(lines, manual=[(500, 4.6), (500, 1.2), (500, 0.55), (500, 0.26)], colors="black")
left.set(xscale="log", yscale="log", xlabel="batches per feature, k/d",
         ylabel="rows in a batch per feature, n/d", title="d = 16 (dashed: theory)")  # fmt: skip
figure.colorbar(image, ax=left, label="log10 of the relative error")
for d, style in zip(features, ("ko", "C0^", "C1s", "C2x"), strict=True):
    middle.loglog(batches, over_k[d], style, fillstyle="none", label=f"d = {d}")
    right.loglog(sizes, over_n[d], style, fillstyle="none", label=f"d = {d}")
middle.loglog(batches, expected(batches, np.inf), "k--", label=r"$2\sqrt{d/k} + d/k$")
right.loglog(sizes, 2 * m2 / sizes, "k--", label="$2 m^2/n$")
right.loglog(sizes, expected(2000, sizes), "k:", label="and sampling on it")
middle.set(xlabel="batches per feature, k/d", ylabel="relative error", title="n = 10⁶")
right.set(xlabel="rows in a batch, n", ylabel="relative error", title="k = 2000 d")
for ax in (middle, right):
    ax.legend()

# %%
# The limits: this is measured on Gaussian features, and proves nothing for others. With any
# features the bias is at most ``kappa m^2 / n``, kappa the largest kurtosis of a direction
# (Cauchy-Schwarz on the fourth moments), again without d; heavy tails need more batches. If every
# coefficient is off by as much, ``m^2`` grows with d, and n with it. With ``noise="antithetic"``
# there is no bias, and n may be one.
