r"""
Noise that is in the targets already
====================================

What calibrates is the total target noise: injected plus inherent, of variance n, the batch size.
Inherent label noise of variance :math:`s^2` can be treated in four ways:

- known: inject :math:`n - s^2`;
- estimated from the residuals, ``inherent_variance="estimate"``;
- ignored: inject n. The Hessian comes out times :math:`1 + s^2/n`, right up to scale;
- cancelled: antithetic noise, for which it need not be known.

With :math:`s^2 > n` nothing can be injected: take a larger ``noise_scale``, or inject nothing and
divide by the known :math:`s^2/n`. Expect every error at the sampling floor, save that of the
ignored noise, which is :math:`s^2/n`, and comes down to the floor at the best scale.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.diagnostics import calibration_report, expected_relative_error

n, k, d, excess_risk = 64, 4000, 10, 1.0
ratios = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 0.9, 1.25, 1.5, 2.0, 3.0])


# %%
# Gaussian features of condition number 10, whose Hessian has norm one. ``partial_fit``, as ``fit``
# warns where ignored noise shows.
def estimate(made, **settings):
    estimator = GradientCovarianceEstimator(batch_size=n, random_state=0, **settings)
    return estimator.partial_fit(made.data, made.target)


def error(covariance, made):
    return np.linalg.norm(covariance - made.covariance, 2)


def best_scale_error(covariance, made):
    return minimize_scalar(lambda c: error(c * covariance, made), bounds=(0, 2)).fun


# %%
# The sweep. Where s^2 < n the library injects what is missing. Where s^2 > n it injects nothing,
# ``noise="none"``, and divides by the s^2/n that is known or estimated.
errors = {name: [] for name in ("known", "estimated", "ignored", "best scale", "antithetic")}
for seed, ratio in enumerate(ratios):
    made = make_hessian_regression(n * k, d, condition_number=10, noise=np.sqrt(ratio * n),
                                   excess_risk=excess_risk, random_state=seed)  # fmt: skip
    noise = "single" if ratio < 1 else "none"
    known = estimate(made, noise=noise, inherent_variance=ratio * n)
    estimated = estimate(made, noise=noise, inherent_variance="estimate")
    ignored = estimate(made, noise="single")
    for name, estimator in (("known", known), ("estimated", estimated), ("ignored", ignored),
                            ("antithetic", estimate(made))):  # fmt: skip
        errors[name].append(error(estimator.covariance_, made))
    errors["best scale"].append(best_scale_error(ignored.covariance_, made))
floor = expected_relative_error(np.linalg.eigvalsh(made.covariance), k)
print(f"Sampling floor: {floor:.3f}")
for i in (0, 3, 5, 8):
    print(f"s^2/n = {ratios[i]}: "
          + ", ".join(f"{name} {values[i]:.3f}" for name, values in errors.items())
          + f"; theory of ignored {ratios[i]:.3f} at infinite k")  # fmt: skip
for name in ("known", "estimated", "best scale", "antithetic"):
    print(f"Largest error over the sweep, {name}: {max(errors[name]) / floor:.2f} floors")

# %%
# At s^2 = 2 n the library refuses to inject, and says what else there is. A larger noise scale,
# four times the calibrated total, which is divided out again, does as well.
made = make_hessian_regression(n * k, d, condition_number=10, noise=np.sqrt(2 * n),
                               excess_risk=excess_risk, random_state=1)  # fmt: skip
try:
    estimate(made, noise="single", inherent_variance=2.0 * n)
except ValueError as message:
    print(message)
scaled = estimate(made, noise="single", inherent_variance=2.0 * n, noise_scale=4.0)
print(f"At s^2/n = 2 with noise_scale=4: injected {scaled.noise_variance_:.0f}, "
      f"error {error(scaled.covariance_, made):.3f}")  # fmt: skip

# %%
# Who ignores the noise is told of it: the intercept's gradient shows the total.
failure = calibration_report(estimate(made, noise="single")).failures[0]
print(f"{failure.name}: {failure}")

# %%
# The picture, in floors.
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
styles = {"known": "ko", "estimated": "C0^", "ignored": "C1s", "best scale": "C3x",
          "antithetic": "C2d"}  # fmt: skip
for name, style in styles.items():
    label = {"ignored": "ignored, n injected", "best scale": "ignored, best scale"}.get(name, name)
    fill = "full" if name == "ignored" else "none"
    ax.plot(ratios, np.array(errors[name]) / floor, style, fillstyle=fill, label=label)
fine = np.linspace(0, 3, 100)
ax.plot(fine, fine / floor, "C1-", label="theory: s²/n")
ax.axhline(1, color="grey", linestyle="--", label="sampling floor")
ax.axvspan(1, 3.1, color="0.93", zorder=0)
ax.text(1.05, 0.12, "no injection can calibrate:\ndivide by s²/n")
ax.set(yscale="log", ylim=(0.1, 100), xlim=(-0.05, 3.1), xlabel="inherent variance / batch size",
       ylabel="relative error / sampling floor")  # fmt: skip
figure.legend(loc="outside right upper")

# %%
# The limits: "estimate" needs residuals; who sees gradients alone must know the variance, or get
# antithetic ones. All this is for label noise of one variance. If the variance depends on x, single
# noise has the wrong shape too, and no scale mends it; antithetic noise still cancels it.
