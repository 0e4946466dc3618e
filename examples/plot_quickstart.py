"""
The Hessian of a regression, from its gradients alone
=====================================================

A client holds scikit-learn's diabetes data in raw units: 442 patients, 10 features, variances from
0.2 to 1,200. It sends batch gradients of least squares, each batch twice: with target noise +xi and
with -xi, of variance equal to the batch size. A server that sees nothing else recovers the Hessian,
which is the covariance of the features, and their means. What it prints is its
:class:`~sklearn_gradhess.diagnostics.CalibrationReport`: the numbers to check, and each
:class:`~sklearn_gradhess.diagnostics.Failure` that they show.
"""

import numpy as np
from sklearn.covariance import EmpiricalCovariance
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, SGDRegressor
from sklearn.pipeline import make_pipeline

from sklearn_gradhess import GradientCovarianceEstimator, PreconditionedSGDRegressor
from sklearn_gradhess.diagnostics import calibration_report
from sklearn_gradhess.noise import calibrated_variance, draw_target_noise

data = load_diabetes(scaled=False)
X, y = data.data, data.target
batch_size, n_epochs = 34, 200  # 13 batches an epoch


# %%
# The client: gradients of the half mean squared error at zero, intercept first, noise calibrated.
def client(rng):
    for rows in np.split(rng.permutation(len(X)), 13):
        Z, target = np.insert(X[rows], 0, 1.0, axis=1), y[rows]
        xi = draw_target_noise(calibrated_variance(batch_size), batch_size, random_state=rng)
        yield -Z.T @ (target + xi) / batch_size, -Z.T @ (target - xi) / batch_size


# %%
# The server: gradients in, Hessian out. No features, no targets, no knowledge of the label noise.
rng = np.random.default_rng(0)
server, truth, trace = GradientCovarianceEstimator(), EmpiricalCovariance().fit(X), []
for _ in range(n_epochs):
    plus, minus = np.swapaxes(list(client(rng)), 0, 1)
    server.partial_fit_gradients(plus, minus, batch_size=batch_size, has_intercept=True)
    error = np.linalg.norm(server.covariance_ - truth.covariance_, 2)
    error /= np.linalg.norm(truth.covariance_, 2)
    trace.append((server.n_batches_, error, server.expected_error_))
print(calibration_report(server))
offset = np.abs(server.location_ - truth.location_) / np.sqrt(truth.covariance_.diagonal())
print(f"Relative error of the Hessian  {error:.3f}, expected about {server.expected_error_:.3f}")
print(f"Largest error of a mean        {offset.max():.3f} standard deviations")

# %%
# With the data in hand: whiten in a pipeline, or let the Hessian precondition the descent itself.
# Raw units, no scaling, no learning rate; plain SGD needs both.
least_squares = LinearRegression().fit(X, y)
models = {
    "SGDRegressor, raw": SGDRegressor(random_state=0),
    "SGDRegressor, whitened": make_pipeline(
        GradientCovarianceEstimator(random_state=0), SGDRegressor(random_state=0)
    ),
    "PreconditionedSGDRegressor, raw": PreconditionedSGDRegressor(random_state=0),
}
print(f"{'R2 of least squares':<34}{least_squares.score(X, y):.6f}")
for name, model in models.items():
    r2 = model.fit(X, y).score(X, y)
    print(f"{name:<34}{r2:.6g}, gap {least_squares.score(X, y) - r2:.1e}")
print(f"Passes over the data: {model.n_passes_:.0f}, those for the preconditioner included")

# %%
# The picture: correlations from the gradients, and the error as gradients come in. Limits: without
# the calibrated noise nothing of this can be recovered, and who has the data has no need to: their
# covariance, from scikit-learn's ``EmpiricalCovariance`` as above, is exact.
import matplotlib.pyplot as plt

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for ax, covariance, title in (
    (left, truth.covariance_, "from the features"),
    (middle, server.covariance_, "from gradients alone"),
):
    scale = np.sqrt(covariance.diagonal())
    image = ax.imshow(covariance / np.outer(scale, scale), vmin=-1, vmax=1, cmap="viridis")
    ax.set(title=f"Hessian {title}", yticks=range(10), yticklabels=data.feature_names)
    ax.set_xticks(range(10), data.feature_names, rotation=90)
figure.colorbar(image, ax=middle, label="correlation", shrink=0.8)
k, error, expected = np.transpose(trace)
right.loglog(k, error, "k-", label="measured")
right.loglog(k, expected, "k--", label="expected, $2\\sqrt{r/k} + r/k$")
right.set(xlabel="batches seen, k", ylabel="relative error, operator norm", title="Error")
right.legend()
figure.savefig("quickstart.png", dpi=120)
print("Saved quickstart.png")
