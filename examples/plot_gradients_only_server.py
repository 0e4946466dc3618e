"""
A server that sees nothing but gradients
========================================

A client holds scikit-learn's breast cancer data in raw units: 568 patients, 30 features of
variances from 1e-5 to 3e5, a label of zero or one. A server fits a linear model to the label: in
every round it sends coefficients and gets batch gradients at them, each batch twice, with target
noise +xi and -xi, of variance equal to the batch size. Expect it to recover means and covariance of
the features, to reach least squares in a few Newton steps without scaling or a learning rate, and
to state the error of its model under attack. Expect no privacy: the last part says what is told.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import eigh
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LinearRegression

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess.metrics import adversarial_mean_squared_error as attacked_error
from sklearn_gradhess.metrics import gradient_adversarial_risk
from sklearn_gradhess.noise import calibrated_variance, draw_target_noise
from sklearn_gradhess.plotting import HessianSpectrumDisplay

told = {"batch_size": 8, "has_intercept": True}  # what the two agree on


# %%
# The client deals every patient to one batch an epoch, so that the mean of the clean gradients is
# the full gradient.
class Client:
    """Holds the data; sends gradients of the half mean squared error, the intercept's first."""

    def __init__(self):
        self.X, self.y = (a[:568] for a in load_breast_cancer(return_X_y=True))
        self.rng = np.random.default_rng(0)

    def gradients(self, coef, intercept, batch_size=8, n_epochs=10):
        """Gradients at targets y + xi and y - xi, of shape (2, n_batches, n_features + 1)."""
        Z, error = np.insert(self.X, 0, 1.0, axis=1), self.X @ coef + intercept - self.y
        variance, pairs = calibrated_variance(batch_size), []
        for _ in range(n_epochs):
            for rows in self.rng.permutation(len(Z)).reshape(-1, batch_size):
                xi = draw_target_noise(variance, batch_size, random_state=self.rng)
                pairs.append([Z[rows].T @ (error[rows] + s * xi) / batch_size for s in (-1, 1)])
        return np.swapaxes(pairs, 0, 1)


# %%
# The server. What the noise adds does not depend on the coefficients: the gradients of all rounds
# go into one Hessian. The gradient of a round is the mean of its half sums.
class Server:
    """Holds a model; sees nothing but what a client's `gradients` returns."""

    def __init__(self, n_features):
        self.coef, self.intercept = np.zeros(n_features), 0.0
        self.hessian = GradientCovarianceEstimator()

    def newton_step(self, plus, minus):
        """Learn more of the Hessian and step to the optimum that it tells of."""
        self.hessian.partial_fit_gradients(plus, minus, **told)
        step = self.hessian.newton_step((plus + minus).mean(axis=0) / 2)
        self.coef, self.intercept = self.coef - step[1:], self.intercept - step[0]


# %%
# The rounds, and beside each what only the client can know. If the Hessians of two rounds were
# independent, a round would divide the excess by about k/(d + 1), k the pairs of a round.
client, server, rounds, excess = Client(), Server(30), [], []
least_squares = LinearRegression().fit(client.X, client.y).predict(client.X)
for t in range(8):
    coef, intercept = server.coef, server.intercept
    prediction = client.X @ coef + intercept
    excess.append(np.mean((prediction - least_squares) ** 2))
    rounds.append(client.gradients(coef, intercept))
    server.newton_step(*rounds[t])
    print(f"Round {t}: error above least squares {excess[t]:.1e}")
rate, pairs, k = (excess[0] / excess[t]) ** (1 / t), rounds[t], len(rounds[t][0])
print(f"Divided by {rate:.0f} a round, theory {k / 31:.0f}")

# %%
# What the server knows in the end. Features whitened by it have eigenvalues near the law of Wishart
# matrices; a few patients far from all others widen it. The paper's server gets one noisy gradient
# a batch and corrects for the nuisance, exactly for Gaussian features only. m^2/n is small here: on
# the first round it does no worse than antithetic noise.
truth, std, hessian = np.cov(client.X.T, bias=True), client.X.std(axis=0), server.hessian
error = np.linalg.norm(hessian.covariance_ - truth, 2) / np.linalg.norm(truth, 2)
print(f"Covariance: relative error {error:.3f}, expected about {hessian.expected_error_:.3f}")
offset = np.abs(hessian.location_ - client.X.mean(axis=0)) / std
print(f"Means: off by {offset.max():.3f} standard deviations at most")
pair = GradientCovarianceEstimator().partial_fit_gradients(*rounds[0], **told)
single = GradientCovarianceEstimator(noise="single").partial_fit_gradients(rounds[0][0], **told)
whitened = {"all rounds": hessian, "the first, antithetic": pair, "the first, single": single}
for name, sketch in whitened.items():
    low, *_, high = eigh(truth, sketch.covariance_, eigvals_only=True)
    law = (1 + np.array([1, -1]) * np.sqrt(30 / sketch.n_batches_)) ** -2.0
    print(f"Whitened by {name}: {low:.2f} to {high:.2f}, law {law[0]:.2f} to {law[1]:.2f}")

# %%
# The error of the model of the last round, where every feature may be off by so many of its
# standard deviations; these too are recovered from gradients.
unit, radii = np.sqrt(hessian.covariance_.diagonal()), np.array([0.0, 0.05, 0.1, 0.2])
risk = gradient_adversarial_risk(*pairs, coef=coef, radius=radii, norm=np.inf, scale=unit, **told)
true = attacked_error(client.y, prediction, radius=radii, dual_norm=risk.dual_norm)
for row in zip(radii, risk.value, risk.low, risk.high, true, strict=True):
    print("Error under attack, radius {:.2f}: {:.3f} [{:.3f}, {:.3f}], true {:.3f}".format(*row))

# %%
# Privacy: there is none. The gradients reveal the covariance and the means of the features: that is
# what they are for. The noise does not protect the features, of which every gradient is a weighted
# sum, nor the labels, because it cancels in the half sum. A batch of one row reveals row and label.
# Noise on the gradients, as differential privacy needs it, destroys the calibration: drawn anew
# with deviation sigma, it adds sigma^2/2 to every eigenvalue, and drowns small ones long before it
# hides a row.
#
# Instead: do not send them to somebody who may not know the covariance. Or let the server see sums
# over clients only, by secure aggregation, xi having the variance of the number of rows in the sum:
# it recovers the covariance of the pool and nobody's own. For differential privacy perturb ``Z'Z``
# and ``Z'y`` once, not each of the gradients, which are more numbers than the data.
plus, minus = client.gradients(coef, intercept, batch_size=1, n_epochs=1)[:, 0]
found = np.max(np.abs((minus - plus)[1:] / (minus - plus)[0] - client.X) / std, axis=1)
i = found.argmin()
label = prediction[i] - (plus + minus)[0] / 2
print(f"Batch of one: row {i} to {found[i]:.0e} deviations, label {label:.3f}, true {client.y[i]}")
sigma, (values, vectors) = 0.1, np.linalg.eigh(truth)
disturbed = pairs + sigma * np.random.default_rng(0).standard_normal(pairs.shape)
noisy = GradientCovarianceEstimator().partial_fit_gradients(*disturbed, **told)
smallest = vectors[:, 0] @ noisy.covariance_ @ vectors[:, 0]
print(f"Noise of {sigma} on gradients of up to {np.abs(pairs).max():.0f}: smallest variance "
      f"{smallest:.4f}, theory {values[0] + sigma**2 / 2:.4f}, true {values[0]:.0e}")  # fmt: skip
print(f"Numbers sent in a round over numbers in the data: {pairs.size / client.X.size:.1f}")

# %%
# The picture. Limits: at a radius above zero the intervals take residuals for Gaussian, which those
# of a label are not; and they are for independent batches, where dealt ones vary a little less.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.semilogy(excess, "ko-", label="measured")
left.semilogy(excess[0] * (31 / k) ** np.arange(8), "k--", label="theory, (d + 1)/k a round")
left.set(xlabel="Round", ylabel="Mean squared error above least squares")
left.legend()
recovered = {"Recovered": hessian, f"Noise of {sigma} on each gradient": noisy}
display = HessianSpectrumDisplay.from_estimators(recovered, covariance=truth, ax=right)
