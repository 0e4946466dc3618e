"""
Which noise has the curvature of a network as its covariance?
=============================================================

A tanh network, not yet trained, classifies 2,000 rows into five classes. Batches of 16 rows send
something back: noise calibrated to the curvature of the softmax, noise of plain variance 16, the
slope of the loss itself (the empirical Fisher matrix), or that of labels drawn from the model (the
Fisher matrix of K-FAC). Expect the first and the last to converge to the Gauss-Newton matrix,
equally fast, at the rate of theory, and the other two to something else. PyTorch is needed.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from sklearn_gradhess.diagnostics import expected_relative_error
from sklearn_gradhess.torch import noisy_gradients

_ = torch.manual_seed(0)
X = torch.randn(2000, 8, dtype=torch.float64) * torch.logspace(0, -1, 8, dtype=torch.float64)
teacher, net = (
    nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)).double() for _ in range(2)
)
y = torch.distributions.Categorical(logits=5 * teacher(X)).sample()
loss = nn.CrossEntropyLoss()

# %%
# The matrix itself, from the dense Jacobian of a network that is small enough to have one.
names = [name for name, _ in net.named_parameters()]


def outputs(*parameters):
    return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (X,))


jacobian = torch.autograd.functional.jacobian(outputs, tuple(net.parameters()), vectorize=True)
J = torch.cat([part.flatten(2) for part in jacobian], 2).numpy()
p = net(X).softmax(1).detach().numpy()
V = p[:, :, None] * (np.eye(5) - p[:, None, :])
exact = np.einsum("nip,niq->pq", J, np.einsum("nij,njq->niq", V, J), optimize=True) / len(X)

# %%
# Gradients of 4,000 batches under each noise. Ours needs no Jacobian; for the others it saves time.
k, n, rng = 4000, 16, np.random.default_rng(0)
rows = np.concatenate([rng.permutation(2000).reshape(-1, n) for _ in range(k * n // 2000)])
pairs = noisy_gradients(net, [(X[r], y[r]) for r in rows], loss)
drawn = np.array([rng.multinomial(1, q) for q in p[rows].reshape(-1, 5)]).reshape(k, n, 5)
sent = {
    "plain variance n": np.sqrt(n) * rng.choice([-1.0, 1.0], (k, n, 5)),
    "empirical Fisher": np.sqrt(n) * (p - np.eye(5)[y.numpy()])[rows],
    "sampled labels": np.sqrt(n) * (p[rows] - drawn),
}
gradients = {"calibrated signs": pairs.noise_gradients}
for name, xi in sent.items():
    gradients[name] = np.array([np.tensordot(x, J[r]) / n for x, r in zip(xi, rows, strict=True)])


# %%
# Errors in operator norm, relative to the matrix; for the two that converge elsewhere also at the
# scale that would suit them best.
def error(G, k, scale=1.0):
    return np.linalg.norm(scale * G[:k].T @ G[:k] / k - exact, 2) / np.linalg.norm(exact, 2)


counts = np.array([125, 250, 500, 1000, 2000, 4000])
errors = {name: np.array([error(G, c) for c in counts]) for name, G in gradients.items()}
theory = expected_relative_error(np.linalg.eigvalsh(exact).clip(0), counts)
for name, found in errors.items():
    print(f"{name}: error {found[-1]:.2f} at k = {k}, theory {theory[-1]:.2f}")
for name in ("plain variance n", "empirical Fisher"):
    best = min(error(gradients[name], k, s) for s in np.geomspace(0.01, 100, 81))
    print(f"{name}: error {best:.2f} at the best scale")

# %%
# The picture. Limits: this is the Gauss-Newton matrix, not the Hessian; of the two noises that are
# right neither is the more accurate; and the empirical Fisher matrix comes closer at the minimum of
# a model that is true, where labels are draws from it and the mean slope is zero.
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for (name, found), marker in zip(errors.items(), "osD^", strict=True):
    axes.loglog(counts, found, marker=marker, label=name)
axes.loglog(counts, theory, "k--", label="theory")
axes.set_xticks(counts, counts)
axes.minorticks_off()
axes.set(xlabel="Gradients k", ylabel="Relative error of the matrix")
axes.legend()
