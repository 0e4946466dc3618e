r"""
Noise that is in the targets already
====================================

What calibrates is the total target noise: injected plus inherent, of variance n, the batch size.
Inherent label noise of variance :math:`s^2` can be treated in four ways:

- known: inject :math:`n - s^2`;
- estimated from the residuals, ``inherent_variance="estimate"``;
- ignored: inject n. The Hessian comes out times :math:`1 + s^2/n`, right up to scale;
- cancelled: antithetic noise, for which it need not be known.

With :math:`s^2 > n` nothing can be injected: divide by the known :math:`s^2/n` instead, or take a
larger ``noise_scale``. Expect every error at that of as many Gaussian draws, the sampling floor,
save that of the ignored noise, which is :math:`s^2/n`, and comes down to the floor at the best
scale.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize_scalar

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.datasets import make_hessian_regression
from sklearn_gradhess.diagnostics import expected_relative_error

n, k, d = 64, 4000, 10
ratios = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 0.9, 1.25, 1.5, 2.0, 3.0])  # s^2/n


# %%
# Gaussian features of condition number 10, whose Hessian has norm one. ``partial_fit``, as ``fit``
# warns where ignored noise shows.
def estimate(made, **settings):
    estimator = GradientCovarianceEstimator(batch_size=n, random_state=0, **settings)
    return estimator.partial_fit(made.data, made.target).covariance_


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
                                   excess_risk=1.0, random_state=seed)  # fmt: skip
    noise = "single" if ratio < 1 else "none"
    ignored = estimate(made, noise="single")
    known = estimate(made, noise=noise, inherent_variance=ratio * n)
    estimated = estimate(made, noise=noise, inherent_variance="estimate")
    errors["known"].append(error(known, made))
    errors["estimated"].append(error(estimated, made))
    errors["ignored"].append(error(ignored, made))
    errors["best scale"].append(best_scale_error(ignored, made))
    errors["antithetic"].append(error(estimate(made), made))
floor = expected_relative_error(np.linalg.eigvalsh(made.covariance), k)
print(f"Sampling floor: {floor:.3f}")
for i in (0, 3, 5, 8):
    row = ", ".join(f"{name} {values[i]:.3f}" for name, values in errors.items())
    print(f"s^2/n = {ratios[i]}: {row}; theory of ignored {ratios[i]:.3f} at infinite k")
for name in ("known", "estimated", "best scale", "antithetic"):
    print(f"Largest error over the sweep, {name}: {max(errors[name]) / floor:.2f} floors, theory 1")

# %%
# The picture, in floors. Limits: "estimate" needs residuals; who sees gradients alone must know the
# variance, or get antithetic ones. All this is for label noise of one variance. If it depends on x,
# single noise has the wrong shape too, and no scale mends it; antithetic noise still cancels it.
figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
styles = {"known": "ko", "estimated": "C0^", "ignored": "C1s", "best scale": "C3x",
          "antithetic": "C2d"}  # fmt: skip
labels = {"ignored": "ignored, n injected", "best scale": "ignored, best scale"}
for name, style in styles.items():
    values = np.array(errors[name]) / floor
    ax.semilogy(ratios, values, style, fillstyle="none", label=labels.get(name, name))
ax.semilogy(ratios[1:], ratios[1:] / floor, "C1-", label="theory of ignored: s²/n")
ax.axhline(1, color="grey", linestyle="--", label="sampling floor")
ax.axvspan(1, 3.1, color="0.93", zorder=0)
ax.text(1.05, 3, "no injection can calibrate:\ndivide by s²/n")
ax.set(ylim=(0.2, 100), xlim=(-0.05, 3.1), xlabel="inherent variance / batch size",
       ylabel="relative error / sampling floor")  # fmt: skip
figure.legend(loc="outside right upper")
