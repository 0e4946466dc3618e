"""What the displays take: models by name, matrices, increasing values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "as_covariance",
    "as_increasing",
    "as_radii",
    "by_name",
    "called",
    "columns_of",
    "each",
    "eigenvalues",
    "last_step",
    "radius_unit",
]

Array = npt.NDArray[np.float64]


def by_name(estimators: Any) -> dict[str, Any]:
    """Estimators by name; in a list they are called by their classes."""
    if hasattr(estimators, "predict") or not hasattr(estimators, "__len__"):
        raise TypeError(
            "estimators must be a dict or a list of fitted models, got "
            f"{type(estimators).__name__}. For one model use from_estimator."
        )
    if not len(estimators):
        raise ValueError("estimators is empty. Pass a dict or a list of fitted models.")
    if hasattr(estimators, "items"):
        return dict(estimators)
    kinds = [type(estimator).__name__ for estimator in estimators]
    total, seen = Counter(kinds), Counter[str]()
    named = {}
    for kind, estimator in zip(kinds, estimators, strict=True):
        seen[kind] += 1
        named[kind if total[kind] == 1 else f"{kind} {seen[kind]}"] = estimator
    return named


def called(name: str, estimator: Any) -> str:
    """Call an estimator by its name and its class, unless that is its name."""
    kind = type(estimator).__name__
    return kind if name == kind else f"{name!r}, a {kind},"


def last_step(estimator: Any) -> str:
    """Say what to pass of a pipeline."""
    return " Of a Pipeline pass its last step, pipeline[-1]." if hasattr(estimator, "steps") else ""


def as_increasing(values: npt.ArrayLike, name: str, example: str) -> Array:
    """One-dimensional, finite, nonnegative and increasing."""
    found = np.asarray(values, dtype=np.float64)
    if (
        found.ndim != 1
        or not len(found)
        or not np.all(np.isfinite(found))
        or found[0] < 0
        or np.any(found[1:] <= found[:-1])
    ):
        raise ValueError(
            f"{name} must be one-dimensional, finite, >= 0 and increasing, such as "
            f"{example}, got {values!r}."
        )
    return found


def columns_of(covariance: Any) -> list[str] | None:
    """Names of the features that a covariance is about, if it has them."""
    found = getattr(covariance, "covariance_", covariance)
    names = getattr(covariance, "feature_names_in_", getattr(found, "columns", None))
    return None if names is None else list(names)


def as_covariance(
    covariance: Any, name: str, n_features: int | None = None, columns: list[str] | None = None
) -> Array:
    """Symmetric matrix, or the `covariance_` of a fitted estimator; `columns` gives the order."""
    found = getattr(covariance, "covariance_", covariance)
    if hasattr(found, "fit"):
        if getattr(found, "n_components", None) is not None:
            raise ValueError(
                f"{name} is a {type(found).__name__} with n_components={found.n_components}, and a "
                "covariance of all components is needed. Fit it with n_components=None."
            )
        raise ValueError(
            f"{name} is a {type(found).__name__} that is not fitted: fit it first, or pass a "
            "matrix."
        )
    matrix = np.asarray(found)
    if matrix.dtype != np.float32:  # whose rounding is to be known
        matrix = matrix.astype(np.float64)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    if not square or n_features not in (None, len(matrix)):
        d = "n_features" if n_features is None else n_features
        raise ValueError(
            f"{name} has shape {matrix.shape}, but a covariance of shape ({d}, {d}) is needed. "
            "Pass that of the same features, without the intercept."
        )
    if not np.all(np.isfinite(matrix)):
        wrong = np.sum(~np.isfinite(matrix))
        raise ValueError(f"{name} has {wrong} NaN or infinite entries. Did the fit overflow?")
    asymmetry = np.abs(matrix - matrix.T).max()
    if asymmetry > 1e-6 * np.abs(matrix).max():
        raise ValueError(
            f"{name} is not symmetric: entries differ by {asymmetry:.3g} from their mirror images. "
            "Pass (A + A.T) / 2 if that is what you mean."
        )
    own, matrix = columns_of(covariance), (matrix + matrix.T) / 2
    if columns is None or own is None:
        return matrix
    if set(own) != set(columns):
        raise ValueError(
            f"{name} is a covariance of the columns {own}, but the other one is of {columns}. Pass "
            "those of the same columns, in any order."
        )
    order = [own.index(column) for column in columns]
    return matrix[np.ix_(order, order)]


def eigenvalues(matrix: Array) -> Array:
    """Eigenvalues in decreasing order; exactly zero where they are rounding error."""
    values = np.linalg.eigvalsh(matrix.astype(np.float64))[::-1]
    rounding = len(values) * np.finfo(matrix.dtype).eps * np.abs(values).max()
    return np.where(np.abs(values) <= rounding, 0.0, values)


def as_radii(radii: npt.ArrayLike | None) -> Array:
    """Radii of an attack, increasing; by default up to one unit."""
    if radii is None:
        return np.linspace(0.0, 1.0, 51)
    return as_increasing(radii, "radii", "np.linspace(0, 1, 51)")


def radius_unit(scale: Any, name: str) -> str:
    """Say in what the radius is measured."""
    return "units of X" if scale is None else f"multiples of {name}"


def each(named: dict[str, Any], measure: Callable[[Any], Any]) -> dict[str, Any]:
    """Measure each model; an error notes which it is about."""
    found = {}
    for name, estimator in named.items():
        try:
            found[name] = measure(estimator)
        except ValueError as error:
            error.add_note(f"This is about the model {name!r}.")
            raise
    return found
