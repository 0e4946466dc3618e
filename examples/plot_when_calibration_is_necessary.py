r"""
When calibration is necessary: from three features on, always
=============================================================

Without noise on the targets, can the covariance of batch gradients be the Hessian up to a scale
that nobody knows? The paper (arXiv 2601.18546) shows that it cannot for Gaussian features, and asks
for which laws it can. The answer, proved in :ref:`MATH 12 <math-12>`: whatever the law of d
features, there are coefficients at which the best scale leaves a relative error of at least

.. math:: \frac{d - 2}{3 d - 2} ,

which is 1/7 for three features and tends to 1/3. Features that lie evenly on a sphere attain it. On
the circle, d = 2, it is zero: there clean gradients tell the Hessian at any coefficients.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_gradhess import GradientCovarianceEstimator

k, n = 40_000, 4  # batches, and rows in each


# %%
# Laws of mean zero whose Hessian, the second moment of the features, is the identity.
def sphere(rng, size, d):
    z = rng.standard_normal((size, d))
    return np.sqrt(d) * z / np.linalg.norm(z, axis=1, keepdims=True)


def triangle(rng, size, d):
    angle = 2 * np.pi / 3 * rng.integers(3, size=size)
    return np.sqrt(2) * np.column_stack([np.cos(angle), np.sin(angle)])


def signs(rng, size, d):
    return rng.choice([-1.0, 1.0], (size, d))


def gaussian(rng, size, d):
    return rng.standard_normal((size, d))


# %%
# The error that is left at the best scale, if S should be a multiple of the identity.
def error(S):
    values = np.linalg.eigvalsh(S)
    return (values[-1] - values[0]) / (values[-1] + values[0])


def measured(law, u, noise="none"):
    X = law(np.random.default_rng(0), n * k, len(u))
    estimator = GradientCovarianceEstimator(
        batch_size=n, noise=noise, inherent_variance=1.0, assume_centered=True, random_state=0
    )
    return error(estimator.partial_fit(X, np.zeros(n * k), coef=u).gradient_covariance_)


def theory(law, u):  # eigenvalues of n Cov(g) = E (x'u)^2 xx' - uu'
    d = len(u)
    if law is signs:
        return error(u @ u * np.eye(d) + np.outer(u, u) - 2 * np.diag(u**2))
    return {triangle: 0.0, sphere: (d - 2) / (3 * d - 2), gaussian: 1 / 3}[law]


# %%
# Two features, coefficients off in thirteen directions; then more features, off along one of them.
angles, dimensions = np.linspace(0, np.pi, 13), np.arange(2, 11)
plane, space = {}, {}
for law in (sphere, triangle, gaussian, signs):
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    plane[law] = [measured(law, u) for u in directions]
    name, expected = "circle" if law is sphere else law.__name__, theory(law, directions[0])
    print(f"{name}, d = 2: error at most {max(plane[law]):.3f}, theory {expected:.3f}")
for law in (sphere, gaussian, signs):
    space[law] = [measured(law, np.eye(d)[0]) for d in dimensions]
    for d in (3, 10):
        expected = theory(law, np.eye(d)[0])
        print(f"{law.__name__}, d = {d}: error {space[law][d - 2]:.3f}, theory {expected:.3f}")
pairs = measured(sphere, np.eye(3)[0], noise="antithetic")
print(f"sphere, d = 3, pairs of noisy gradients: error {pairs:.3f}, theory 0")

# %%
# The picture. What is measured has an error of its own from so many gradients, about
# :math:`\sqrt{d/k}`. No law of the features lies below the line on the right. Signs are the worst
# there are: along one coordinate their gradients have no variance at all. Limits: the line is about
# the coefficients that are worst for a law; for some laws others are better.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
marks = {sphere: ("o", "tab:blue"), triangle: ("^", "tab:green"), gaussian: ("s", "black"),
         signs: ("D", "tab:orange")}  # fmt: skip
for law, (marker, color) in marks.items():
    name = "circle" if law is sphere else law.__name__
    left.plot(np.degrees(angles), plane[law], marker, color=color, fillstyle="none", label=name)
for law, errors in space.items():
    marker, color = marks[law]
    right.plot(dimensions, errors, marker, color=color, fillstyle="none", label=law.__name__)
fine = np.linspace(2, 10, 100)
right.fill_between(
    fine, (fine - 2) / (3 * fine - 2), color="0.85", label="no law, for all coefficients"
)
left.set(xlabel="direction of the coefficients' error, degrees", ylabel="error at the best scale",
         title="Two features, no noise", ylim=(-0.05, 1.1))  # fmt: skip
right.set(xlabel="number of features d", title="More features, no noise", ylim=(-0.05, 1.1))
left.legend(loc="center right")
right.legend(loc="center right")
