"""Which step of a pipeline is not affine: what an error message should name."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.pipeline import Pipeline

from sklearn_gradhess._probe import probe
from sklearn_gradhess._table import BATCH_VALUES, Table

__all__ = ["culprit"]

# Columns of a step's output that are looked at
N_OUTPUTS = 64
INNER = ("best_estimator_", "regressor_", "estimator_")


class _Output:
    """Some columns of what the first steps of a pipeline make of X."""

    def __init__(self, steps: Pipeline) -> None:
        self.steps = steps

    def predict(self, rows: Any) -> npt.NDArray[np.float64]:
        """Transform, and take columns evenly."""
        output = self.steps.transform(rows)
        values = output.toarray() if sparse.issparse(output) else np.asarray(output)
        columns = np.unique(np.linspace(0, values.shape[1] - 1, N_OUTPUTS).astype(np.intp))
        return np.nan_to_num(values[:, columns].astype(np.float64))


def culprit(estimator: Any, table: Table, movable: npt.NDArray[np.bool_]) -> str:
    """Name the first step that is not affine in these columns, or say nothing."""
    for name in INNER:
        estimator = getattr(estimator, name, estimator)
    if not isinstance(estimator, Pipeline):
        return ""
    for i, (name, step) in enumerate(estimator.steps[:-1]):
        if step is None or isinstance(step, str):
            continue
        first = estimator[: i + 1]
        try:
            width = first.transform(table.native([0])).shape[1]
            if width * 2 * table.n_columns > BATCH_VALUES:
                return ""
            if not probe(_Output(first), table, movable).is_affine:
                return f" Its step {name!r} ({type(step).__name__}) is not."
        except Exception:
            # a name is a courtesy: whatever a step does to rows that it was not made for
            return ""
    name, step = estimator.steps[-1]
    return f" Its step {name!r} ({type(step).__name__}) is not."
