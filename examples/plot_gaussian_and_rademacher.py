r"""
Gaussian and plus-minus-one features, calibrated and not
========================================================

Independent features of unit variance and kurtosis :math:`\kappa`, coefficients off by u,
:math:`m^2 = |u|^2`, batches of n rows, target noise of variance :math:`\tau`: then for every n

.. math::
    n \operatorname{Cov}(g) = (\tau + m^2) I + u u' + (\kappa - 3) \operatorname{diag}(u_j^2),

:math:`\kappa = 3` for Gaussian features, 1 for signs (Rademacher features). The paper (arXiv
2601.18546) proves calibration, :math:`\tau = n`, necessary for Gaussian features (Corollary 5.1.1)
and sets signs apart (Lemma 5.2); the formula is derived in :ref:`MATH 12 <math-12>`. Measured:

- with :math:`\tau` fixed the error tends to one as n grows, for both laws, and with several
  features no scale mends it, as :math:`u u'` stays: signs need calibration like all others;
- but calibrated signs have no nuisance along u if u is one coordinate: with one feature they are
  exact at any distance and any batch size, where a Gaussian feature is not.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.diagnostics import expected_relative_error

k, inherent, kurtosis = 4000, 4.0, {"gaussian": 3, "rademacher": 1}


# %%
# The covariance of k gradients, and its closed form. Targets have noise of variance 4; it stays as
# it is, or is calibrated: the library injects n - 4 on top. ``partial_fit``, as ``fit`` warns of
# the very bias that is shown here.
def measured(law, n, u, noise):
    made = make_hessian_regression(
        n * k, len(u), distribution=law, condition_number=1, noise=np.sqrt(inherent),
        excess_risk=0, random_state=n,
    )  # fmt: skip
    estimator = GradientCovarianceEstimator(
        batch_size=n, noise=noise, correction="none", inherent_variance=inherent,
        assume_centered=True, random_state=0,
    )  # fmt: skip
    return estimator.partial_fit(made.data, made.target, coef=u).gradient_covariance_


def theory(law, n, u, noise):
    tau = {"none": inherent, "single": n}[noise]
    fourth = np.diag((kurtosis[law] - 3) * u**2)
    return ((tau + u @ u) * np.eye(len(u)) + np.outer(u, u) + fourth) / n


def error(S):  # the true Hessian is the identity, of norm one
    return np.linalg.norm(S - np.eye(len(S)), 2)


# %%
# Eight features, m^2 = 4; and one feature, calibrated, up to m^2 = 25, in batches of eight rows.
u, sizes, risks = np.full(8, np.sqrt(4 / 8)), 2 ** np.arange(2, 9), np.arange(0, 26, 5)
names, errors, variances = {"none": "fixed noise", "single": "calibrated"}, {}, {}
for law in kurtosis:
    for noise, name in names.items():
        errors[law, noise] = [error(measured(law, n, u, noise)) for n in sizes]
        for n, value in zip(sizes[2::2], errors[law, noise][2::2], strict=True):
            bias = error(theory(law, n, u, noise))
            print(f"{law}, {name}, n = {n}: error {value:.2f}, theory {bias:.2f} at infinite k")
    variances[law] = [measured(law, 8, np.array([m]), "single").item() for m in np.sqrt(risks)]
    expected = theory(law, 8, np.array([5.0]), "single").item()
    print(f"{law}, one feature: variance {variances[law][-1]:.2f}, theory {expected:.2f}, true 1")

# %%
# The picture. The error of fixed noise dips where n is a little above tau + m^2: the scale is right
# by accident. Limits: features are independent here; rotated or dependent signs have other fourth
# moments. With ``noise="antithetic"`` neither the law of the features nor u matters.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
fine = np.geomspace(4, 256, 200)
for law, color, marker in (("gaussian", "black", "o"), ("rademacher", "tab:orange", "s")):
    for noise, line, fill in (("none", "-", "full"), ("single", "--", "none")):
        left.loglog(sizes, errors[law, noise], marker, color=color, fillstyle=fill,
                    label=f"{law}, {names[noise]}")  # fmt: skip
        left.loglog(fine, [error(theory(law, n, u, noise)) for n in fine], line, color=color)
    right.plot(risks, variances[law], marker, color=color, fillstyle="none", label=law)
    right.plot(risks, 1 + (kurtosis[law] - 1) * risks / 8, "--", color=color)
left.axhline(expected_relative_error(8, k), color="grey", linestyle=":", label="sampling error")
left.set(xlabel="batch size n", ylabel="relative error, operator norm",
         title="Eight features, m² = 4 (lines: theory at infinite k)")  # fmt: skip
right.set(xlabel="excess risk m²", ylabel="recovered variance, true 1",
          title="One feature, calibrated, n = 8 (lines: theory)")  # fmt: skip
left.legend()
right.legend()
