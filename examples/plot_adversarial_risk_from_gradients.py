"""
The risk of a model under attack, from gradients alone
======================================================

A server made a linear model from 100 of scikit-learn's diabetes patients. A hospital has the other
342 and shows none of them: it sends batch gradients of least squares at the server's model, each
batch twice, with target noise +xi and with -xi, of variance equal to the batch size. From these the
server states the mean squared error on the hospital's patients, without and under attack, with an
interval. The exact risk, from the data that the server never sees, is drawn beside it.
"""

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.metrics import effective_coef, gradient_adversarial_risk
from sklearn_gradhess.noise import calibrated_variance, draw_target_noise
from sklearn_gradhess.plotting import AdversarialRiskDisplay

X, y = load_diabetes(return_X_y=True, scaled=False)
model = make_pipeline(StandardScaler(), Ridge(10.0)).fit(X[:100], y[:100])
affine = effective_coef(model, X[:100])  # in raw units, as the hospital needs it
X, y = X[100:], y[100:]
batch_size, n_batches = 32, 1000


# %%
# The hospital: gradients of the half mean squared error at the server's model, the intercept's
# first. Every batch is drawn anew from all patients.
def hospital(rng):
    for _ in range(n_batches):
        rows = rng.integers(len(X), size=batch_size)
        Z, error = np.insert(X[rows], 0, 1.0, axis=1), model.predict(X[rows]) - y[rows]
        xi = draw_target_noise(calibrated_variance(batch_size), batch_size, random_state=rng)
        yield Z.T @ (error - xi) / batch_size, Z.T @ (error + xi) / batch_size


# %%
# The server: from the same gradients it recovers the standard deviations of the features, which
# give the attack its unit, and the risk. No features, no targets, no knowledge of their noise.
plus, minus = np.swapaxes(list(hospital(np.random.default_rng(0))), 0, 1)
told = {"batch_size": batch_size, "has_intercept": True}
server = GradientCovarianceEstimator().partial_fit_gradients(plus, minus, **told)
unit = np.sqrt(server.covariance_.diagonal())
radii = np.linspace(0, 0.5, 26)
stated = gradient_adversarial_risk(
    plus, minus, coef=affine.coef, radius=radii, norm=np.inf, scale=unit, **told
)
print(stated)

# %%
# The picture, with what the data say. The interval holds at all radii at once. Limits: above radius
# zero residuals are taken for Gaussian, and coefficients and unit are taken as exact. Gradients of
# this kind reveal the covariance and the means of the hospital's data; that they are gradients does
# not make them private.
display = AdversarialRiskDisplay.from_gradients(
    plus, minus, coef=affine.coef, radii=radii, norm=np.inf, scale=unit, **told
)
exact = AdversarialRiskDisplay.from_estimator(
    model, X, y, radii=radii, norm=np.inf, feature_scale=unit, name="Exact, from the data",
    ax=display.ax_,
)  # fmt: skip
inside = np.mean((stated.low <= exact.value) & (exact.value <= stated.high))
print("Radius            " + "".join(f"{r:>8.1f}" for r in radii[::5]))
print("Stated            " + "".join(f"{v:>8.0f}" for v in stated.value[::5]))
print("Exact             " + "".join(f"{v:>8.0f}" for v in exact.value[::5]))
print(f"The interval holds the exact risk at {inside:.0%} of the radii")
deviation = np.abs(unit / X.std(axis=0) - 1).max()
print(f"Standard deviations recovered to {deviation:.1%} at worst")
display.ax_.set(title="Diabetes, 342 patients that the server never sees",
                xlabel="Radius of the attack (standard deviations)",
                ylabel="Mean squared error")  # fmt: skip
