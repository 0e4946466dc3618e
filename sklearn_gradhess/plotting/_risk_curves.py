"""Curves of a risk against the radius of an attack, and where they are past a constant."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.utils import check_scalar

from sklearn_gradhess._risk import norm_order
from sklearn_gradhess._scorer import make_adversarial_scorer
from sklearn_gradhess.plotting._style import CurveDisplay, as_numbers, as_rows

__all__ = ["RiskCurves", "of_constant"]

Array = npt.NDArray[np.float64]

_METRICS = {
    "mse": "Adversarial mean squared error (squared units of y)",
    "rmse": "Adversarial root mean squared error (units of y)",
    "mae": "Adversarial mean absolute error (units of y)",
    "r2": "Adversarial $R^2$",
    "quantile": "Adversarial pinball loss (units of y)",
    "poisson": "Adversarial Poisson deviance",
    "gamma": "Adversarial gamma deviance",
    "log_loss": "Adversarial log loss",
    "roc_auc": "Adversarial area under the ROC curve",
    "accuracy": "Adversarial accuracy (share of rows)",
    "certified": "Share of rows whose class no attack changes",
    "certified right": "Share of rows that no attack makes wrong",
}
_SCORES = ("r2", "roc_auc", "accuracy", "certified right")
_REMARK = "best constant prediction: past it a model is worse than none"


class RiskCurves(CurveDisplay):
    """What `AdversarialRiskDisplay` draws, wherever the numbers come from."""

    _log = False

    def __init__(
        self,
        *,
        radii: Array,
        value: Array,
        low: Array | None = None,
        high: Array | None = None,
        names: list[str] | None = None,
        metric: str = "mse",
        norm: float | str = 2,
        radius_unit: str = "units of X",
        confidence_level: float | None = None,
        constant: float | None = None,
    ) -> None:
        self.radii = radii
        self.value = value
        self.low = low
        self.high = high
        self.names = names
        self.metric = metric
        self.norm = norm
        self.radius_unit = radius_unit
        self.confidence_level = confidence_level
        self.constant = constant

    def _curves(self) -> tuple[Sequence[Array], Sequence[Array]]:
        value, radii = as_rows(self.value, "value"), as_numbers(self.radii, "radii")
        if radii.shape != value.shape[1:]:
            raise ValueError(
                f"radii has shape {radii.shape}, but value has {value.shape[1]} points a curve. "
                "Pass one radius for each point."
            )
        if self.metric not in _METRICS:
            raise ValueError(f"metric must be one of {tuple(_METRICS)}, got {self.metric!r}.")
        return [radii] * len(value), value

    def _limits(self) -> tuple[Any, Any, str]:
        level = self.confidence_level
        if level is not None:
            check_scalar(level, "confidence_level", Real)
        label = "interval" if level is None else f"{100 * level:.4g} % interval"
        return as_rows(self.low, "low"), as_rows(self.high, "high"), label

    def _dress(self, ax: Any) -> None:
        ax.set(xlabel=self._radius_label(), ylabel=_METRICS[self.metric])
        self.worse_from_ = self._worse_from()
        if self.constant is not None and np.isfinite(self.worse_from_).any():
            _remark(ax, self.radii, float(self.constant))

    def _worse_from(self) -> list[float]:
        values = as_rows(self.value, "value")
        if self.constant is None:
            return [np.inf] * len(values)
        gap = values - self.constant
        worse = gap < 0 if self.metric in _SCORES else gap > 0
        first = np.argmax(worse, axis=1)
        return [
            float(self.radii[i]) if own.any() else np.inf
            for i, own in zip(first, worse, strict=True)
        ]

    def _radius_label(self) -> str:
        order = norm_order(self.norm)
        if order is None:
            return "Radius of the attack (Mahalanobis distance)"
        p = r"\infty" if np.isinf(order) else f"{order:g}"
        return rf"Radius of the attack, $\ell_{{{p}}}$ norm ({self.radius_unit})"

    def __repr__(self) -> str:
        (r, *_), curves = self._curves()
        return (
            f"<{type(self).__name__} of {self.metric}: {self._described(len(curves))} "
            f"at {len(r)} radii from {r[0]:g} to {r[-1]:g}>"
        )


def _remark(ax: Any, radii: Array, constant: float) -> None:
    """Draw the best constant prediction once, with a remark; neither is a curve of the legend."""
    there = [text.get_position()[1] for text in ax.texts if text.get_text() == _REMARK]
    if constant not in there:
        ax.hlines(constant, radii[0], radii[-1], colors="0.4", linewidth=1.0, linestyles=":")
        paper = {"facecolor": ax.get_facecolor(), "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
        ax.text(
            radii[0], constant, _REMARK, fontsize="x-small", color="0.3", va="bottom", bbox=paper
        )


def of_constant(metric: str, quantile: float, X: Any, y: Any, sample_weight: Any) -> float:
    """Metric of the best constant prediction."""
    # The most frequent class alone: probabilities that tie count as wrong
    kind: Any = DummyClassifier(strategy="most_frequent" if metric == "accuracy" else "prior")
    if metric not in ("accuracy", "roc_auc", "log_loss"):
        strategy = {"mae": "median", "quantile": "quantile"}.get(metric, "mean")
        kind = DummyRegressor(strategy=strategy, quantile=quantile)
    constant = kind.fit(X, y, sample_weight)
    scorer = make_adversarial_scorer(
        0.0, metric=metric, quantile=quantile, on_nonaffine="search", max_queries=1
    )
    return float(scorer.curve(constant, X, y, 0.0, sample_weight))
