"""
Hospitals that send gradients only
==================================

Three processes hold rows that never leave them: scikit-learn's breast cancer data in raw units,
variances from 1e-5 to 3e5, a label of zero or one. The server asks for gradients over sockets,
and nothing but arrays crosses them. Expect the logistic regression of the pooled rows, within a
twentieth of its statistical error, in a few rounds; expect no privacy.
"""

import subprocess
import sys
from multiprocessing.connection import Listener

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss

from sklearn_gradhess import PreconditionedSGDClassifier
from sklearn_gradhess.federated import RemoteHolder, fit_holders

# %%
# A :class:`~sklearn_gradhess.federated.GradientHolder`, at which
# :func:`~sklearn_gradhess.federated.serve` answers the server's questions: five of the features, a
# penalty at the server, batches of two rows at least.
HOSPITAL = """
import sys
from multiprocessing.connection import Client
from sklearn.datasets import load_breast_cancer
from sklearn_gradhess.federated import GradientHolder, serve

part = slice(int(sys.argv[1]), None, 3)
X, y = load_breast_cancer(return_X_y=True)
holder = GradientHolder(X[part, :5], y[part], loss="log_loss", random_state=0)
with Client(("127.0.0.1", int(sys.argv[2])), authkey=b"example") as connection:
    serve(holder, connection)
"""
with Listener(("127.0.0.1", 0), authkey=b"example") as listener:
    port = str(listener.address[1])
    hospitals = [subprocess.Popen([sys.executable, "-c", HOSPITAL, str(i), port]) for i in range(3)]
    connections = [listener.accept() for _ in hospitals]

# %%
# The server. Every round sends coefficients, and gets pairs of noisy gradients of batches, with
# noise calibrated to the curvature of the loss there: the Hessian, and the mean gradient.
fit = fit_holders([RemoteHolder(c) for c in connections], n_features=5, loss="log_loss", alpha=1e-4)
for connection in connections:
    connection.close()
for hospital in hospitals:
    hospital.wait()
X, y = load_breast_cancer(return_X_y=True)
X = X[:, :5]
pooled = PreconditionedSGDClassifier(alpha=1e-4, penalty_units="raw", tol=1e-8).fit(X, y)
print(f"{fit.n_rounds} rounds, {fit.n_bytes / 1000:.0f} kB; converged: {fit.converged}")

# %%
# Against the fit of all rows in one place, in units of the statistical error of its p coefficients.
raw, best = X @ fit.coef + fit.intercept, pooled.decision_function(X)
gap = log_loss(y, 1 / (1 + np.exp(-raw))) - log_loss(y, 1 / (1 + np.exp(-best)))
penalty = 0.5e-4 * (fit.coef @ fit.coef - np.sum(pooled.coef_**2))
print(f"Objective above the pooled fit: {2 * (gap + penalty) * len(y) / 6:.4f} statistical errors")

# %%
# The picture: what is still to be gained, round by round.
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
rounds = [record["rounds"] for record in fit.history]
ax.semilogy(rounds, [record["decrement"] for record in fit.history], "ko-", label="decrement")
ax.semilogy(rounds, [record["floor"] for record in fit.history], "k--", label="statistical error")
ax.set(xlabel="Rounds", ylabel="Squared Newton decrement")
ax.legend()
plt.show()
