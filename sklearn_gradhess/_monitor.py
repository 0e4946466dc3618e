"""Who watches a fit: prints, validation losses, scikit-learn's callbacks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_gradhess._rows import Problem

__all__ = ["Monitor"]

Array = npt.NDArray[np.float64]


class Monitor:
    """Told of every iteration: prints, calls scikit-learn's callbacks, and says when to stop."""

    def __init__(
        self,
        estimator: Any,
        attributes: Callable[[Array, Any], dict[str, Any]],
        X: Any,
        y: Any,
        held_out: Problem | None,
    ) -> None:
        self.estimator, self.attributes = estimator, attributes
        self.X, self.y = X, y
        self.held_out = held_out
        self.stopped = False
        self.best, self.worse, self.iteration = np.inf, 0, 0
        self.context = None
        if getattr(estimator, "_skl_callbacks", None):
            self.context = estimator._init_callback_context(max_subtasks=estimator.max_iter + 1)
            self.context.call_on_fit_task_begin(estimator=estimator, X=X, y=y)

    @property
    def sees_coef(self) -> bool:
        """Whether coefficients are looked at."""
        return self.held_out is not None or self.context is not None

    def __call__(self, W: Array, record: dict[str, Any]) -> bool:
        estimator = self.estimator
        if estimator.verbose:
            print(
                f"iteration {self.iteration}: loss {record['loss']:.8g}, decrement "
                f"{record['decrement']:.3g} (target {estimator.tol * record['floor']:.3g}), "
                f"{record['passes']:.1f} passes, {record['seconds']:.2f} s"
            )
        self.iteration += 1
        if self.held_out is not None:
            loss = self.held_out.mean_loss(self.held_out.predict(self.held_out.X, W))
            record["validation_loss"] = loss
            self.worse = 0 if loss < self.best else self.worse + 1
            self.best = min(self.best, loss)
            self.stopped = self.worse >= estimator.n_iter_no_change
        if self.context is not None:
            task = self.context.subcontext(task_name="iteration")
            arguments = {
                "estimator": estimator,
                "X": self.X,
                "y": self.y,
                "reconstruction_attributes": self.attributes(W, self.X.dtype),
            }
            task.call_on_fit_task_begin(**arguments)
            self.stopped = bool(task.call_on_fit_task_end(**arguments)) or self.stopped
        return self.stopped

    def close(self, W: Array) -> None:
        """End the fit's own task."""
        if self.context is not None:
            self.context.call_on_fit_task_end(
                estimator=self.estimator,
                X=self.X,
                y=self.y,
                reconstruction_attributes=self.attributes(W, self.X.dtype),
            )
