"""Our exact risk against the gradient attacks of the Adversarial Robustness Toolbox (ART).

pip install adversarial-robustness-toolbox packaging
python benchmarks/bench_adversarial_toolbox.py

For an affine model one step of the fast gradient method finds the worst case, so that the error at
the rows that it returns must equal what `make_adversarial_scorer` says without any attack; so must
that of projected gradient descent, if it has converged. Where bounds cut the ball a gradient
attack may start in the wrong direction: there the exact risk is an upper limit. ART knows arrays
and classifiers; the shim below gives it the loss of a whole pipeline, with gradients by central
differences of `predict`, so that nothing of ours is in the attack.
"""

# ruff: noqa: D102

import sys
import time

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradhess.metrics import make_adversarial_scorer

try:
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent, fast_gradient
    from art.estimators import BaseEstimator, LossGradientsMixin
except ModuleNotFoundError as error:  # ART does not declare that it needs packaging
    sys.exit(f"No module {error.name}: pip install adversarial-robustness-toolbox packaging")

RADIUS = 0.2  # standard deviations
TOLERANCE = 1e-9


class Shim(LossGradientsMixin, BaseEstimator):
    """A fitted regressor as ART wants it, in units of `scale`."""

    def __init__(self, model, scale, clip_values=None):
        super().__init__(model=model, clip_values=clip_values)
        self.scale = scale

    def predict(self, x, **kwargs):
        return np.ravel(self.model.predict(x * self.scale))

    def loss_gradient(self, x, y, **kwargs):
        step = 0.5 * np.eye(x.shape[1])
        rise = [self.predict(x + e) - self.predict(x - e) for e in step]
        return (self.predict(x) - y)[:, None] * np.transpose(rise)

    def fit(self, x, y, **kwargs):
        raise NotImplementedError

    @property
    def input_shape(self):
        return self.scale.shape


def attacked_risk(attack, shim, z, y):
    start = time.perf_counter()
    error = y - shim.predict(attack.generate(z, y))
    return np.mean(error**2), time.perf_counter() - start


def compare(model, X, y, scale, norm, bounds=None):
    """Print risks and seconds; return the relative difference of the best attack from ours."""
    clip = None if bounds is None else tuple(b / scale for b in bounds)
    shim = Shim(model, scale, clip)
    scorer = make_adversarial_scorer(RADIUS, norm, feature_scale=scale, bounds=bounds)
    start = time.perf_counter()
    ours = -scorer(model, X, y)
    spent = time.perf_counter() - start
    common = {"norm": norm, "eps": RADIUS, "batch_size": len(y)}
    attacks = (
        FastGradientMethod(shim, eps_step=RADIUS, **common),
        ProjectedGradientDescent(shim, eps_step=RADIUS / 4, max_iter=20, verbose=False, **common),
    )
    found = [attacked_risk(attack, shim, X / scale, y) for attack in attacks]
    cells = "".join(f"{risk:>14.6f} ({s / spent:5.2f}x)" for risk, s in found)
    print(f"{norm:>6}{'' if bounds is None else '  box':<6}{ours:>14.6f}{cells}")
    return max(risk for risk, _ in found) / ours - 1


def main():
    # ART computes in float32, whose rounding is larger than what is compared
    fast_gradient.ART_NUMPY_DTYPE = np.float64
    X, y = load_diabetes(return_X_y=True, scaled=False)
    scale = X.std(axis=0)
    models = {
        "StandardScaler, Ridge(1)": make_pipeline(StandardScaler(), Ridge(1.0)).fit(X, y),
        "PLSRegression(3)": PLSRegression(3).fit(X, y),
    }
    exact, cut = [], []
    for name, model in models.items():
        print(f"\n{name}: mean squared error at radius {RADIUS} standard deviations; {len(y)} rows")
        attacks = "".join(f"{attack:>14}{'(time)':>9}" for attack in ("ART, 1 step", "20 steps"))
        print(f"{'norm':>6}{'':<6}{'exact, ours':>14}{attacks}")
        exact += [compare(model, X, y, scale, norm) for norm in (1, 1.5, 2, 3, np.inf)]
        cut += [compare(model, X, y, scale, np.inf, (X.min(axis=0), X.max(axis=0)))]
    worst = np.abs(exact).max()
    print(f"\nLargest relative difference without bounds {worst:.1e} (limit {TOLERANCE:.0e})")
    print(f"With bounds the best attack is off by {min(cut):.1e} to {max(cut):.1e}")
    if worst > TOLERANCE or max(cut) > TOLERANCE:
        sys.exit("The attacks and the closed form do not agree.")


if __name__ == "__main__":
    main()
