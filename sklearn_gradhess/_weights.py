"""What weights of rows and of classes mean for a fit, and which are refused."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["balanced", "class_weighted", "mean_one", "observations", "refuse_one_class"]

Array = npt.NDArray[np.float64]


def mean_one(sample_weight: Array | None) -> Array | None:
    """Weights with mean one; None stays None."""
    if sample_weight is None:
        return None
    weight = sample_weight / sample_weight.max()  # their sum might overflow
    return weight * (len(weight) / weight.sum())


def observations(sample_weight: Array | None) -> float:
    """Observations that weights stand for: their sum, as repetitions, or what that can't be."""
    if sample_weight is None:
        return 0.0
    weight = sample_weight / sample_weight.max()  # their squares might overflow or vanish
    # Kish's effective size, for weights that were scaled to another sum
    return max(float(sample_weight.sum()), float(weight.sum() ** 2 / np.sum(weight**2)))


def balanced(totals: Any) -> Array:
    """Weights of classes inverse to what their rows weigh, of those that weigh anything."""
    share = len(totals[totals > 0]) * np.asarray(totals, dtype=np.float64)
    return np.divide(np.sum(totals), share, out=np.ones(len(totals)), where=share > 0)


def class_weighted(
    class_weight: Any, classes: Any, y: Any, sample_weight: Array | None
) -> Array | None:
    """Weights of rows times those of their classes; a dict may lack classes, which weigh one."""
    if class_weight is None:
        return sample_weight
    if isinstance(class_weight, dict):  # a chunk of a stream may lack some classes
        labels = classes.tolist()
        unknown = [label for label in class_weight if label not in labels]
        if unknown:
            raise ValueError(
                f"class_weight has weights for {unknown}, which are not among the labels {labels}: "
                "mistyped, or of another type. Change the keys of class_weight."
            )
        each = [float(class_weight.get(label, 1.0)) for label in labels]
        weights = np.array(each)[np.searchsorted(classes, y)]
    else:
        codes = np.searchsorted(classes, y)
        weights = balanced(np.bincount(codes, mean_one(sample_weight), len(classes)))[codes]
    if sample_weight is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # found below
            weights = weights * sample_weight
    bad = ~((weights >= 0) & np.isfinite(weights))
    if bad.any():
        factor = "" if sample_weight is None else ", sample_weight included"
        raise ValueError(
            f"A row of class {y[bad].tolist()[0]!r} has the weight {weights[bad][0]:g}{factor}: "
            f"weights count repetitions, so they must be finite and >= 0. Change class_weight="
            f"{class_weight!r}."
        )
    return weights


def refuse_one_class(y: Any, weights: Array | None) -> None:
    """Raise ValueError unless two labels at least have a positive weight."""
    present = np.unique(y if weights is None else y[weights > 0]).tolist()
    if len(present) < 2:
        raise ValueError(
            f"There is {'only one' if present else 'no'} class with a positive weight, {present} "
            f"of the labels {np.unique(y).tolist()}: a classifier needs at least two. Add rows of "
            "another class, or change class_weight or sample_weight where they are zero."
        )
