"""Questions to a block of rows, against the same numbers of all its rows at once."""

import numpy as np
import pytest

from sklearn_gradhess import _blocks
from sklearn_gradhess._descent import Model
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._multinomial import MultinomialLoss

N, D, CLASSES = 30, 4, 3


def asked(rng, loss):
    """Rows of three classes, or counts: an encoding, a block, and (W, U, Z, Y, weight)."""
    X, weight = 1 + rng.standard_normal((N, D)), rng.uniform(0.2, 3.0, N)
    if loss == "multinomial":
        y = rng.integers(CLASSES, size=N)
        Y, encoding = np.eye(CLASSES)[y], (MultinomialLoss(), True, "float64", np.arange(CLASSES))
    else:
        y = rng.poisson(2.0, N).astype(float)
        Y, encoding = y[:, None], (make_loss(loss), True, "float64")
    W, U = 0.3 * rng.standard_normal((2, D + 1, Y.shape[1]))
    Z = np.column_stack([np.ones(N), X])
    return _blocks.Encoding(*encoding), _blocks.Block(0, X, y, weight), (W, U, Z, Y, weight)


@pytest.mark.parametrize("loss", ["multinomial", "poisson"])
@pytest.mark.parametrize("model", list(Model))
def test_the_product_is_that_of_the_rows(rng, loss, model):
    encoding, block, (W, U, Z, Y, weight) = asked(rng, loss)
    if model is Model.STIFFNESS:
        rows = encoding.loss.stiffness(Y, Z @ W) * (Z @ U)
    else:  # the derivative of the gradient
        ahead, behind = (encoding.loss.gradient(Y, Z @ (W + h * U)) for h in (1e-5, -1e-5))
        rows = (ahead - behind) / 2e-5
    expected = Z.T @ (weight[:, None] * rows)
    found = _blocks.product(encoding, block, W, U, model)["product"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
