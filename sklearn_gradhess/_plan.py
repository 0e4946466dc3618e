"""Choose the preconditioner, the method and the start, from what each of them costs.

The rates are those of one thread of a current processor, in seconds; only their ratios matter.
``python -m benchmarks.rates`` measures them.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Plan", "plan"]

_FLOP = 1 / 40e9  # a multiplication and addition in a product of matrices
_ENTRY = 2e-9  # an entry of X on its way into a Gram matrix
_DEALT = 2e-9  # and into a sum over a batch
_READ = 1e-9  # in a pass: prediction and adjoint
_SPARSE = 6e-9  # a stored entry, in a pass
_ROW = 6e-8  # derivatives of the loss of a row
_SKETCHED = 40  # batches a coefficient of a sketch for conjugate gradients
_FEWEST = 8  # rows in a batch of a sketch that is worth its while
_SPARE = 16  # batches more than coefficients, below which the inverse has no mean to speak of
_SHARE = 8  # rows, of which one serves for a start
_START = 64  # rows a coefficient that a start needs
_LARGE = 20_000  # rows below which a start of its own is not worth its calls


class Plan(NamedTuple):
    """How to go about a fit.

    Attributes
    ----------
    preconditioner : {"exact", "sketch"}
        Gram matrix of all rows, or of their sums over batches.
    method : {"newton", "steps"}
        Newton steps by conjugate gradients, or variance-reduced steps on mini-batches.
    n_batches : int
        Batches of the sketch; the rows, if it is exact.
    share : int
        Rows of which one serves for the start of losses that need one; one: no such start.
    """

    preconditioner: str
    method: str
    n_batches: int
    share: int


def plan(
    n: int,
    p: int,
    *,
    density: float = 1.0,
    n_columns: int = 1,
    quadratic: bool = True,
    preconditioner: str = "auto",
    oversampling: float | None = None,
    steps: bool = False,
) -> Plan:
    """Choose how to go about a fit.

    Parameters
    ----------
    n, p : int
        Rows and coefficients.
    density : float, default=1.0
        Stored share of X.
    n_columns : int, default=1
        Columns of coefficients with a Hessian each.
    quadratic : bool, default=True
        Whether the Hessian is the same everywhere.
    preconditioner : {"auto", "exact", "sketch"}, default="auto"
        What the user wants.
    oversampling : float, default=None
        Batches a coefficient, if the user says.
    steps : bool, default=False
        Whether the user asks for mini-batch steps.

    Examples
    --------
    >>> from sklearn_gradhess._plan import plan
    >>> plan(5_000, 20).preconditioner, plan(200_000, 500).preconditioner
    ('exact', 'sketch')
    """
    batches = oversampling or (4 if steps else _SKETCHED)
    wanted = int(max(batches * p, p + _SPARE))
    share = _SHARE if not quadratic and n >= max(_LARGE, _SHARE * _START * p) else 1
    if preconditioner == "auto":
        sketched = steps or _cost_of_sketch(n, p, wanted, density, n_columns) < _cost_of_hessian(
            n, p, n_columns
        )
        preconditioner = "sketch" if sketched and _FEWEST * wanted <= n else "exact"
    if preconditioner == "exact":
        return Plan("exact", "steps" if steps else "newton", n, share)
    return Plan("sketch", "steps" if steps else "newton", min(wanted, n), share)


def _pass(n: int, p: int, density: float) -> float:
    return n * p * (_READ if density == 1.0 else _SPARSE * density)


def _cost_of_hessian(n: int, p: int, n_columns: int) -> float:
    return n_columns * (n * p * (_ENTRY + p * _FLOP) + p**3 * _FLOP)


def _cost_of_sketch(n: int, p: int, k: int, density: float, n_columns: int) -> float:
    """Sketch, and what conjugate gradients need more passes than with the Hessian itself.

    The solution of the sketch is n/k statistical errors away; each product shrinks that by p/k,
    to a hundredth of one; the last correction is free.
    """
    deal = n * p * (_DEALT if density == 1.0 else _SPARSE * density)
    products = max(np.log(100 * n / k) / np.log(k / p) - 1, 1)
    return n_columns * (deal + k * p**2 * _FLOP + p**3 * _FLOP) + products * _pass(n, p, density)
