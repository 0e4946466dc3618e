"""How a metric of attacked predictions is taken, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._attack_on_table import AttackOnTable
from sklearn_gradhess._linear import LinearResponse, check_link
from sklearn_gradhess._probe import check_finite, respond
from sklearn_gradhess._search import Found, search

__all__ = [
    "METRICS",
    "SCORES",
    "AdversarialRisk",
    "Options",
    "by_search",
    "curve",
    "kind_of",
    "responses_of",
]

Array = npt.NDArray[np.float64]

METRICS = (
    "mse",
    "rmse",
    "mae",
    "r2",
    "quantile",
    "poisson",
    "gamma",
    "log_loss",
    "accuracy",
    "roc_auc",
)
SCORES = ("r2", "accuracy", "roc_auc")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a metric is taken."""

    metric: str
    link: str = "auto"
    on_nonaffine: str = "raise"
    multioutput: str = "uniform_average"
    quantile: float = 0.5
    max_queries: int = 200
    random_state: Any = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {list(METRICS)}, got {self.metric!r}.")
        check_link(self.link, self.on_nonaffine)
        if self.multioutput not in ("uniform_average", "joint"):
            raise ValueError(
                "multioutput of a scorer, which returns one number, must be 'uniform_average' or "
                f"'joint', got {self.multioutput!r}."
            )
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must lie in [0, 1], got {self.quantile!r}.")
        queries = self.max_queries
        if isinstance(queries, bool) or not isinstance(queries, Integral) or queries < 1:
            raise ValueError(
                f"max_queries must be an integer >= 1, got {queries!r}: the most predictions that "
                "a search spends on each row."
            )

    def search(
        self, responses: Callable[[Any], Array], attack: AttackOnTable, radius: float, loss: Any
    ) -> Found:
        """Search for the attack of greatest loss on each row, within the budget."""
        return search(
            responses,
            attack,
            radius,
            loss,
            max_queries=self.max_queries,
            random_state=self.random_state,
        )


class AdversarialRisk(NamedTuple):
    """Values of a metric under attack, at several radii.

    Attributes
    ----------
    value : float or ndarray
        The risk, or the score for "r2", "accuracy" and "roc_auc", of the shape of the radii.
    kind : {"exact", "upper bound", "lower bound", "first order"}
        What the value is of the true one. From a search the risk is a lower bound, and a score an
        upper bound; a first-order value is no bound.
    link : {"identity", "log", "log1p", "logit"} or None
        What of the predictions was found to be affine; None if nothing was.
    """

    value: Any
    kind: str
    link: str | None


def curve(radii: Array, value: Callable[[float], Any]) -> Array:
    """Values at each of the radii."""
    values = np.empty(radii.shape)
    for i, r in np.ndenumerate(radii):
        values[i] = value(float(r))
    return values


def kind_of(found: LinearResponse, otherwise: str = "exact") -> str:
    """Say what a closed form is of the true value."""
    return otherwise if found.is_affine else "first order"


def by_search(radii: Array, value: Callable[[float], Any], options: Options) -> AdversarialRisk:
    """Values that a search finds, none better than at a smaller radius: that attack is allowed."""
    is_score = options.metric in SCORES
    found, order = curve(radii, value).ravel(), np.argsort(radii, axis=None)
    worst = np.minimum if is_score else np.maximum
    found[order] = worst.accumulate(found[order])
    kind = "upper bound" if is_score else "lower bound"
    return AdversarialRisk(found.reshape(radii.shape), kind, None)


def responses_of(estimator: Any, method: str) -> Callable[[Any], Array]:
    """Return what asks a method of a fitted estimator for its responses to rows."""

    def responses(rows: Any) -> Array:
        found = check_finite(estimator, respond(estimator, rows, method), method)
        return found.reshape(len(found), -1)

    return responses
