r"""
Gaussian and plus-minus-one features, calibrated and not
========================================================

Independent features of unit variance and kurtosis :math:`\kappa`, coefficients off by u,
:math:`m^2 = |u|^2`, batches of n rows, target noise of variance :math:`\tau`: then for every n

.. math::
    n \operatorname{Cov}(g) = (\tau + m^2) I + u u' + (\kappa - 3) \operatorname{diag}(u_j^2),

:math:`\kappa = 3` for Gaussian features, 1 for signs (Rademacher features). The paper (arXiv
2601.18546) proves calibration, :math:`\tau = n`, necessary for Gaussian features (Corollary 5.1.1)
and sets Rademacher ones apart (Lemma 5.2). We do not restate that lemma, we measure the formula:

- with :math:`\tau` fixed the error tends to one as n grows, for both laws;
- without noise the shape is wrong too: the best scale leaves 1/3 for Gaussian features, and at
  least 1/3 for signs, for every u;
- signs have no nuisance along u if u is one coordinate: with one feature, calibrated noise is
  exact at any distance and any batch size.
"""

import numpy as np

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.diagnostics import expected_relative_error

k, kurtosis = 4000, {"gaussian": 3, "rademacher": 1}


# %%
# The covariance of k gradients, and its closed form. ``partial_fit``, as ``fit`` warns of the very
# bias that is shown here.
def measured(law, n, u, tau, noise="none"):
    made = make_hessian_regression(n * k, len(u), distribution=law, condition_number=1,
                                   noise=np.sqrt(tau), excess_risk=0, random_state=n)  # fmt: skip
    estimator = GradientCovarianceEstimator(
        batch_size=n, noise=noise, correction="none", inherent_variance=tau, assume_centered=True,
        shuffle=False, random_state=0,
    )  # fmt: skip
    return estimator.partial_fit(made.data, made.target, coef=u).gradient_covariance_


def theory(law, n, u, tau):
    fourth = np.diag((kurtosis[law] - 3) * u**2)
    return ((tau + u @ u) * np.eye(len(u)) + np.outer(u, u) + fourth) / n


def error(S):  # the true Hessian is the identity, of norm one
    return np.linalg.norm(S - np.eye(len(S)), 2)


# %%
# Eight features, m^2 = 4. Fixed noise: what the targets have, variance 4. Calibrated: the library
# injects n - 4 on top.
u, sizes = np.full(8, np.sqrt(4 / 8)), 2 ** np.arange(2, 9)
floor = expected_relative_error(8, k)
print(f"Sampling floor, 2 sqrt(d/k) + d/k: {floor:.2f}")
errors = {}
for law in kurtosis:
    for name, noise in (("fixed noise", "none"), ("calibrated", "single")):
        errors[law, name] = [error(measured(law, n, u, 4, noise)) for n in sizes]
        for i in (2, 4, 6):
            bias = error(theory(law, sizes[i], u, 4 if noise == "none" else sizes[i]))
            print(f"{law}, {name}, n = {sizes[i]}: error {errors[law, name][i]:.2f}, "
                  f"theory {bias:.2f} at infinite k")  # fmt: skip

# %%
# No noise: is it right up to scale? The best scale leaves (max - min)/(max + min) of the
# eigenvalues, and sampling adds a little. For signs u decides: with one or two coordinates the
# covariance is even singular.
counts, shape = [1, 2, 3, 4, 6, 8], {}
for law in kurtosis:
    directions = [np.where(np.arange(8) < c, 2 / np.sqrt(c), 0.0) for c in counts]
    for what, covariance in (("measured", measured), ("theory", theory)):
        spectra = [np.linalg.eigvalsh(covariance(law, 16, v, 0)) for v in directions]
        shape[law, what] = [(s[-1] - s[0]) / (s[-1] + s[0]) for s in spectra]
    for c, *pair in zip(counts, shape[law, "measured"], shape[law, "theory"], strict=True):
        print("{}, no noise, {} nonzero in u: error at the best scale {:.2f}, theory {:.2f}"
              .format(law, c, *pair))  # fmt: skip

# %%
# One feature, calibrated, m^2 = 25, n = 4: signs need no large batch. (They need the noise: their
# gradients have no variance without it.)
for law in kurtosis:
    one = [S[0, 0] for S in (measured(law, 4, np.array([5.0]), 1, "single"),
                             theory(law, 4, np.array([5.0]), 4))]  # fmt: skip
    print("{}, one feature: variance {:.2f}, theory {:.2f}, true 1".format(law, *one))

# %%
# The picture. The error of fixed noise dips at n = 9 and 10, a little above tau + m^2, where the
# scale is right by accident.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
fine = np.geomspace(4, 256, 200)
for law, color, marker in (("gaussian", "black", "o"), ("rademacher", "tab:orange", "s")):
    for name, line, fill in (("fixed noise", "-", "full"), ("calibrated", "--", "none")):
        left.loglog(sizes, errors[law, name], marker, color=color, fillstyle=fill,
                    label=f"{law}, {name}")  # fmt: skip
        curve = [error(theory(law, n, u, 4 if fill == "full" else n)) for n in fine]
        left.loglog(fine, curve, line, color=color, linewidth=1)
    right.plot(counts, shape[law, "measured"], marker, color=color, label=law)
    right.plot(counts, shape[law, "theory"], ":", color=color)
left.axhline(floor, color="grey", linestyle=":", label="sampling floor")
left.set(xlabel="batch size n", ylabel="relative error, operator norm",
         title="m² = 4 (lines: theory at infinite k)")  # fmt: skip
right.set(xlabel="nonzero coordinates of u, all equal", ylabel="relative error at the best scale",
          ylim=(0, 1.1), title="No noise at all (lines: theory)")  # fmt: skip
for ax in (left, right):
    ax.legend()

# %%
# The limits: the formula is for independent features; rotated or dependent signs have other fourth
# moments. With ``noise="antithetic"`` neither the law of the features nor u matters.
