"""Losses by the names that users write."""

from collections.abc import Callable

from sklearn_gradhess._deviances import GammaLoss, LogisticLoss, PoissonLoss, TweedieLoss
from sklearn_gradhess._loss import Loss, SquaredLoss
from sklearn_gradhess._scaled_losses import HuberLoss, QuantileLoss

__all__ = ["make_loss"]


def make_loss(
    name: str, *, epsilon: float = 1.35, power: float = 1.5, quantile: float = 0.5
) -> Loss:
    """Return the loss of this name; `epsilon` belongs to "huber", and so on."""
    makers: dict[str, Callable[[], Loss]] = {
        "gamma": GammaLoss,
        "huber": lambda: HuberLoss(epsilon),
        "log_loss": LogisticLoss,
        "poisson": PoissonLoss,
        "quantile": lambda: QuantileLoss(quantile),
        "squared_error": SquaredLoss,
        "tweedie": lambda: TweedieLoss(power),
    }
    if name not in makers:
        raise ValueError(f"Unknown loss {name!r}; known are {sorted(makers)}.")
    return makers[name]()
