"""Search for the worst attack on a predictor of which only predictions are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._attack import AttackOnTable

__all__ = ["worst_responses"]

Array = npt.NDArray[np.float64]


def worst_responses(
    respond: Callable[[Any], Array],
    attack: AttackOnTable,
    radius: float,
    loss: Callable[[Array, Any], Array],
    *,
    max_queries: int,
    random_state: Any,
) -> Array:
    """Responses at the worst attacked row that was found for each row of X."""
    rng, rows = np.random.default_rng(random_state), np.arange(attack.table.n_rows)
    best = respond(attack.table.X)
    worst = loss(best, rows)
    for _ in range(max_queries - 1 if radius > 0 else 0):
        coef = rng.standard_normal((len(rows), attack.table.n_columns))
        effects = [rng.standard_normal((len(rows), len(g.sources))) for g in attack.groups]
        found = respond(attack.attacked(rows, attack.moves(coef, radius, rows, effects)))
        value = loss(found, rows)
        better = value > worst
        best[better], worst[better] = found[better], value[better]
    return best
