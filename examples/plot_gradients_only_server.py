"""
A server that sees nothing but gradients
========================================

A client holds scikit-learn's breast cancer data in raw units: 568 patients, 30 features of
variances from 1e-5 to 3e5, a label of zero or one. A server fits a linear model: in every round it
sends coefficients and gets batch gradients at them, each batch twice, with target noise +xi and
-xi, of variance equal to the batch size. Expect it to recover means and covariance, to whiten, to
reach least squares in a few Newton steps, and to state the error under attack; expect no privacy.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LinearRegression

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.metrics import adversarial_mean_squared_error, gradient_adversarial_risk
from sklearn_gradhess.noise import calibrated_variance, draw_target_noise
from sklearn_gradhess.plotting import HessianSpectrumDisplay

X, y = (a[:568] for a in load_breast_cancer(return_X_y=True))  # 71 batches of 8
rng = np.random.default_rng(0)


# %%
# The client: gradients of the half mean squared error, the intercept's first. It deals every
# patient to one batch an epoch, so that the mean of the clean gradients is the full gradient.
def client(coef, intercept, batch_size=8, n_epochs=10):
    Z, error, pairs = np.insert(X, 0, 1.0, axis=1), X @ coef + intercept - y, []
    for _ in range(n_epochs):
        for rows in rng.permutation(len(Z)).reshape(-1, batch_size):
            xi = draw_target_noise(calibrated_variance(batch_size), batch_size, random_state=rng)
            pairs.append([Z[rows].T @ (error[rows] + s * xi) / batch_size for s in (-1, 1)])
    return np.swapaxes(pairs, 0, 1)  # at targets y + xi and y - xi


# %%
# The server: Newton steps from gradients alone. All rounds tell the same Hessian. If those of two
# rounds were independent, a round would divide the excess by about k/(d + 1), k its batches.
server, told = GradientCovarianceEstimator(), {"batch_size": 8, "has_intercept": True}
coef, intercept, excess = np.zeros(30), 0.0, []
least_squares = LinearRegression().fit(X, y).predict(X)
for _ in range(8):
    excess.append(np.mean((X @ coef + intercept - least_squares) ** 2))  # the server cannot know
    plus, minus = client(coef, intercept)
    server.partial_fit_gradients(plus, minus, **told)
    step = server.newton_step((plus + minus).mean(axis=0) / 2)
    intercept, coef = intercept - step[0], coef - step[1:]
measured, rate = (excess[0] / excess[7]) ** (1 / 7), len(plus) / 31
print(f"Excess in the end {excess[7]:.0e}. Divided by {measured:.0f} a round, theory {rate:.0f}")

# %%
# What it knows in the end: covariance and means, by which it whitens (a few patients far from all
# others cost accuracy), and the error if every feature may be off by a tenth of its deviation.
truth, std = np.cov(X.T, bias=True), X.std(axis=0)
error = np.linalg.norm(server.covariance_ - truth, 2) / np.linalg.norm(truth, 2)
print(f"Covariance: relative error {error:.3f}, expected about {server.expected_error_:.3f}")
offset = np.max(np.abs(server.location_ - X.mean(axis=0)) / std)
print(f"Means: off by {offset:.3f} standard deviations at most")
low, *_, high = np.linalg.eigvalsh(np.cov(server.transform(X).T, bias=True))
law = (1 + np.array([1, -1]) * np.sqrt(30 / server.n_batches_)) ** -2.0  # of Wishart matrices
print(f"Whitened: variances {low:.2f} to {high:.2f}, law {law[0]:.2f} to {law[1]:.2f}")
last, unit = client(coef, intercept), np.sqrt(server.covariance_.diagonal())
risk = gradient_adversarial_risk(*last, coef=coef, radius=0.1, norm=np.inf, scale=unit, **told)
prediction = X @ coef + intercept
exact = adversarial_mean_squared_error(y, prediction, radius=0.1, dual_norm=risk.dual_norm)
print(f"Error under attack: {risk.value:.3f} [{risk.low:.3f}, {risk.high:.3f}], exact {exact:.3f}")

# %%
# Privacy: there is none. The gradients reveal the covariance and the means of the features: that is
# what they are for. A batch of one row reveals the row. Noise on the gradients, as differential
# privacy needs it, adds sigma^2/2 to every eigenvalue and drowns small ones long before it hides a
# row. Send them only to somebody who may know the covariance; or send sums over clients, by secure
# aggregation, calibrated to all rows of the sum: they reveal the covariance of the pool alone.
plus, minus = client(coef, intercept, batch_size=1, n_epochs=1)[:, 0]
revealed = (minus - plus)[1:] / (minus - plus)[0]
off = np.max(np.abs(revealed - X) / std, axis=1)
print(f"Batch of one: row {off.argmin()} to {off.min():.0e} deviations")
sigma, (values, vectors) = 0.1, np.linalg.eigh(truth)
disturbed = last + sigma * rng.standard_normal(last.shape)
noisy = GradientCovarianceEstimator().partial_fit_gradients(*disturbed, **told)
small, theory = vectors[:, 0] @ noisy.covariance_ @ vectors[:, 0], values[0] + sigma**2 / 2
print(f"Noise {sigma}: smallest variance {small:.4f}, theory {theory:.4f}, true {values[0]:.0e}")

# %%
# The picture. Limits: under attack the interval takes residuals for Gaussian, which those of a
# label are not; and it is for independent batches, where dealt ones vary a little less.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.semilogy(excess, "ko-", label="measured")
left.semilogy(excess[0] / rate ** np.arange(8), "k--", label="theory, (d + 1)/k a round")
left.set(xlabel="Round", ylabel="Mean squared error above least squares")
left.legend()
both = {"Recovered": server, f"Noise of {sigma} on each gradient": noisy}
display = HessianSpectrumDisplay.from_estimators(both, covariance=truth, ax=right, fillstyle="none")
