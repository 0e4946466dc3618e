"""Scorers of models under attack, for `scoring=` wherever scikit-learn takes one."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn import get_config
from sklearn.utils.metadata_routing import MetadataRequest

from sklearn_gradhess._attack import Attack, AttackOnTable
from sklearn_gradhess._classification_risk import (
    accuracy_under_attack,
    auc_under_attack,
    log_loss_under_attack,
)
from sklearn_gradhess._options import SCORES, AdversarialRisk, Options
from sklearn_gradhess._regression_risk import regression_risk
from sklearn_gradhess._table import Table

__all__ = ["AdversarialScorer", "checked_radius", "under_attack"]

Array = npt.NDArray[np.float64]

_CLASSIFICATION = {
    "accuracy": accuracy_under_attack,
    "roc_auc": auc_under_attack,
    "log_loss": log_loss_under_attack,
}
# Arguments as they are printed, and what is left out
_DEFAULTS = {
    "norm": 2,
    "metric": "mse",
    "feature_scale": None,
    "features": None,
    "bounds": None,
    "covariance": None,
    "n_columns": None,
    "integer": "auto",
    "categories": None,
    "link": "auto",
    "on_nonaffine": "raise",
    "quantile": 0.5,
    "multioutput": "uniform_average",
    "max_queries": 200,
    "random_state": 0,
}


def checked_radius(radius: Any) -> Array:
    """Radii as an array; ValueError unless all are finite and not negative."""
    radii = np.asarray(radius, dtype=np.float64)
    if not np.all((radii >= 0) & np.isfinite(radii)):
        raise ValueError(f"radius must be finite and >= 0, got {radius!r}.")
    return radii


def under_attack(
    estimator: Any, attack: AttackOnTable, y: Any, radii: Array, weights: Any, options: Options
) -> AdversarialRisk:
    """Metric of a fitted estimator under an attack, at an array of radii."""
    measure = _CLASSIFICATION.get(options.metric, regression_risk)
    risk = measure(estimator, attack, y, radii, weights, options)
    return risk._replace(value=float(risk.value)) if radii.ndim == 0 else risk


@dataclass(eq=False, repr=False, kw_only=True)
class AdversarialScorer(Attack):
    """What `make_adversarial_scorer` returns; its arguments are attributes."""

    radius: float
    metric: str = "mse"
    link: str = "auto"
    on_nonaffine: str = "raise"
    quantile: float = 0.5
    multioutput: str = "uniform_average"
    max_queries: int = 200
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.feature_scale, str):
            # any table refuses it; on the data only, a search would turn the error into NaN
            Table(np.zeros((1, 1))).by_column(self.feature_scale, self.scale_name)
        if checked_radius(self.radius).ndim != 0:
            raise ValueError(
                "A scorer returns one number, so radius must be one. For a curve over radii use "
                "adversarial_mean_squared_error or adversarial_accuracy."
            )
        told = {field.name: getattr(self, field.name) for field in fields(Options)}
        self._options = Options(**told)
        is_score = self.metric in SCORES
        bound = ""
        if self.on_nonaffine == "search":
            bound = "_upper_bound" if is_score else "_lower_bound"
        # where scikit-learn labels an axis, as with a function
        self.__name__ = f"{'' if is_score else 'neg_'}adversarial_{self.metric}{bound}"

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Score a fitted estimator: the negative risk, or the score, under attack."""
        value = self.curve(estimator, X, y, self.radius, sample_weight)
        return value if self.metric in SCORES else -value

    def curve(self, estimator: Any, X: Any, y: Any, radius: Any, sample_weight: Any = None) -> Any:
        """Return the risk, or the score, at one radius or at an array of them."""
        return self.explain(estimator, X, y, radius, sample_weight).value

    def explain(
        self, estimator: Any, X: Any, y: Any, radius: Any = None, sample_weight: Any = None
    ) -> AdversarialRisk:
        """Return the risk, what it is of the true one, and the link behind which it was found."""
        radii = checked_radius(self.radius if radius is None else radius)
        return under_attack(estimator, self.on(Table(X)), y, radii, sample_weight, self._options)

    def __repr__(self) -> str:
        told = [f"{self.radius:g}"]
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            is_plain = value is None or isinstance(value, str | float | int)
            if not (is_plain and value == default):
                told.append(f"{name}={_short(value)}")
        return f"make_adversarial_scorer({', '.join(told)})"

    def _accept_sample_weight(self) -> bool:
        # what scikit-learn's searches ask of a scorer while metadata routing is off
        return True

    def set_score_request(self, *, sample_weight: bool | str | None) -> Self:
        """Ask for sample weights (True, or the name of other metadata) or refuse them (False)."""
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "This method is only available when metadata routing is enabled. Enable it with "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        self._weight_request = sample_weight
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Tell which metadata the scorer asks for."""
        request = MetadataRequest(owner=repr(self))
        alias = getattr(self, "_weight_request", None)
        request.score.add_request(param="sample_weight", alias=alias)
        return request


def _short(value: Any) -> str:
    """Print a value on one line, and arrays by their shape."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if hasattr(value, "shape") and np.ndim(value) > 0:
        return f"<array of shape {value.shape}>"
    return " ".join(repr(value).split())
