"""
Spectrum of a network, from gradients alone
===========================================

A small convolutional network learns the digits of scikit-learn. Its curvature is recovered from
noisy gradients before and after training: the eigenvalues of the last layer as a matrix, and the
top of the spectrum of all parameters from the Gram matrix of the gradients, without a matrix of
parameters by parameters. Expect a few large eigenvalues, about as many as there are classes, above
a bulk that falls by orders of magnitude. PyTorch is needed.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator
from sklearn_gradhess.diagnostics import calibration_report
from sklearn_gradhess.plotting import HessianSpectrumDisplay
from sklearn_gradhess.torch import noisy_gradients, top_eigenpairs

# The scores of a softmax are determined up to a constant, and some pixels are always white.
warnings.filterwarnings("ignore", "The covariance is singular", CalibrationWarning)
_ = torch.manual_seed(0)
X, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
data = TensorDataset(X[:1792].float().view(-1, 1, 8, 8) / 16, y[:1792])  # 224 batches of 8
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(128, 16),
    nn.ReLU(),
    nn.Linear(16, 10),
)
loss = nn.CrossEntropyLoss()


# %%
# Looking costs one forward and two backward passes a batch, and one more for every further draw.
def look():
    draw = torch.Generator().manual_seed(0)
    pairs = noisy_gradients(net, DataLoader(data, 8), loss, n_redraws=4, generator=draw)
    layer = noisy_gradients(
        net, DataLoader(data, 8), loss, parameters=net[5], n_redraws=4, generator=draw
    )
    estimator = GradientCovarianceEstimator().partial_fit_gradients(*layer, batch_size=8)
    return top_eigenpairs(pairs.noise_gradients, n_components=60)[0], estimator


top, last_layer = {}, {}
top["before"], last_layer["Before training"] = look()
optimiser = torch.optim.Adam(net.parameters(), 0.003)
for _ in range(8):
    for inputs, targets in DataLoader(data, 32, shuffle=True):
        optimiser.zero_grad()
        loss(net(inputs), targets).backward()
        optimiser.step()
top["after"], last_layer["After training"] = look()

# %%
# What the numbers say: how fast the spectrum falls, and what is wrong with the estimates.
n_parameters = sum(p.numel() for p in net.parameters())
for when, values in top.items():
    share = values[:9].sum() / values.sum()
    print(f"{when}: largest {values[0]:.3g}, the 9 largest are {share:.0%} of the top 60")
print(f"Gram matrix of {224 * 4} gradients instead of a matrix of {n_parameters} parameters")
print(calibration_report(last_layer["After training"]))

# %%
# The pictures. Limits: eigenvalues below the trace over k are mostly noise, which is where the
# curves on the left end to mean anything; the Gauss-Newton matrix is not the whole Hessian.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for when, values in top.items():
    left.semilogy(np.arange(1, 61), values, label=f"{when} training")
left.set(xlabel="Rank", ylabel="Eigenvalue", title=f"All {n_parameters} parameters")
left.legend()
HessianSpectrumDisplay.from_estimators(last_layer, ax=right)
right.set_title("Last layer, 170 parameters")
