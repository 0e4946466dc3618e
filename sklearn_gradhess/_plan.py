"""Choose the preconditioner, the method and the start, from what each of them costs.

The rates are those of one thread of a current processor, in seconds; only their ratios matter.
``python -m benchmarks.rates`` measures them.
"""

from typing import Any, NamedTuple

import numpy as np

from sklearn_gradhess._memory import matrices

__all__ = ["Plan", "plan", "streams_by_diagonal"]

_FLOP = 1 / 40e9  # a multiplication and addition in a product of matrices
_ENTRY = 2e-9  # an entry of X on its way into a Gram matrix
_DEALT = 2e-9  # and into a sum over a batch
_READ = 1e-9  # in a pass: prediction and adjoint
_SPARSE = 6e-9  # a stored entry, in a pass
_ROW = 6e-8  # derivatives of the loss of a row
_SKETCHED = (8, 40)  # batches a coefficient of a sketch for conjugate gradients: least, most
_COEFFICIENTS = 4000  # over their number, between the two: as measured at 100, 300 and 500
_FEWEST = 8  # rows in a batch of a sketch that is worth its while
_SPARE = 16  # batches more than coefficients, below which the inverse has no mean to speak of
_SHARE = 8  # rows, of which one serves for a start
_START = 64  # rows a coefficient that a start needs
_LARGE = 20_000  # rows below which a start of its own is not worth its calls
_COLUMN = 1e-7  # a coefficient, in a pass over sparse rows
_PASSES = 80  # that conjugate gradients need with the diagonal
_PASSES_DENSE = 400  # where columns are combinations of each other, as pixels are
_PASSES_POOLED = 40  # and with one Hessian for all classes
_HESSIANS = 6  # that Newton steps need for losses other than the squared one
_CUBES = 3  # cubes of p that a root of a Hessian and its inverse take
_POOLED = 100  # coefficients up to which every class has a Hessian
_FEW = 100  # rows up to which their features are as many as matter
_NARROW = 1_000  # coefficients up to which a matrix of their square is no matter
_WIDEST = 5_000  # and from which on none is made unasked
_SPARSE_BELOW = 0.1  # density up to which columns are hardly combinations of each other


class Plan(NamedTuple):
    """How to go about a fit.

    Attributes
    ----------
    preconditioner : {"exact", "sketch", "pooled", "diagonal", "sample_space"}
        Gram matrix of all rows, or of their sums over batches; one for all classes; its diagonal;
        or the Gram matrix of a problem with as many features as rows.
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
    coupled: bool = False,
    square: bool = False,
    spanned: bool = True,
    memory: float = np.inf,
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
    preconditioner : {"auto", "exact", "sketch", "diagonal", "sample_space"}, default="auto"
        What the user wants.
    oversampling : float, default=None
        Batches a coefficient, if the user says.
    steps : bool, default=False
        Whether the user asks for mini-batch steps, which need such a matrix.
    coupled : bool, default=False
        Whether columns are classes, whose Hessians are alike.
    square : bool, default=False
        Whether a matrix of the Hessian's size is at hand in any case.
    spanned : bool, default=True
        Whether rows span the coefficients: all features are penalised, or none.
    memory : float, default=inf
        Bytes that matrices may take.

    Examples
    --------
    >>> from sklearn_gradhess._plan import plan
    >>> plan(5_000, 20).preconditioner, plan(200_000, 500).preconditioner
    ('exact', 'sketch')
    >>> plan(500, 20_000).preconditioner, plan(40_000, 160_000, density=1e-3).preconditioner
    ('sample_space', 'diagonal')
    """
    if preconditioner == "auto" and not (steps or square):
        preconditioner = _cheaper(n, p, density, n_columns, quadratic, coupled, memory, spanned)
    if preconditioner in ("diagonal", "sample_space", "pooled"):
        return Plan(preconditioner, "newton", n, 1)
    batches = oversampling or (4 if steps else _batches(p))
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


def streams_by_diagonal(d: int, *, n_columns: int, preconditioner: Any, memory: float) -> bool:
    """Say whether a stream keeps a diagonal model: asked for, or too wide for a matrix.

    Parameters
    ----------
    d : int
        Features.
    n_columns : int
        Columns of coefficients with a Hessian each.
    preconditioner : str or estimator
        What the user wants; "auto" leaves the choice.
    memory : float
        Bytes that matrices may take.

    Examples
    --------
    >>> from sklearn_gradhess._plan import streams_by_diagonal
    >>> settings = dict(n_columns=1, preconditioner="auto", memory=2**34)
    >>> streams_by_diagonal(5_000, **settings), streams_by_diagonal(5_001, **settings)
    (False, True)
    """
    if not isinstance(preconditioner, str) or preconditioner != "auto":
        return isinstance(preconditioner, str) and preconditioner == "diagonal"
    return d > _WIDEST or (d > _NARROW and matrices(d, n_columns) > memory)


def _cheaper(
    n: int,
    p: int,
    density: float,
    n_columns: int,
    quadratic: bool,
    coupled: bool,
    memory: float,
    spanned: bool,
) -> str:
    """Say what serves better than a Hessian or its sketch for each column; "auto" if nothing does.

    Newton steps take several Hessians each; conjugate gradients so many passes in all.
    """
    hessians = 1 if quadratic else _HESSIANS
    costs, one_pass = {}, _pass(n, p, density, n_columns)

    def newton(size: int, columns: int) -> float:
        wanted = int(_batches(size) * size)
        made = _cost_of_hessian(n, size, columns)
        if n >= 2 * wanted:
            made = min(made, _cost_of_sketch(n, size, wanted, density, columns))
        return hessians * (made + _CUBES * columns * size**3 * _FLOP)

    if p <= _WIDEST and (p <= _NARROW or matrices(p, n_columns) <= memory):
        costs["auto"] = newton(p, n_columns)
    if coupled and _POOLED < p <= _WIDEST and matrices(p, 1) <= memory:
        costs["pooled"] = newton(p, 1) + _PASSES_POOLED * one_pass
    if spanned and _FEW < n < p <= _NARROW and density == 1.0 and matrices(n, n_columns) <= memory:
        costs["sample_space"] = n * p * (_ENTRY + n * _FLOP) + 10 * n**3 * _FLOP
    if p > _NARROW:
        passes = _PASSES if density < _SPARSE_BELOW else _PASSES_DENSE
        costs["diagonal"] = passes * one_pass
        if spanned and n < p and density == 1.0 and matrices(n, n_columns) <= memory:
            gram = n * p * (_ENTRY + n * _FLOP) + 10 * n**3 * _FLOP
            costs["sample_space"] = gram + newton(n, n_columns)
    return min(costs, key=lambda name: costs[name])


def _batches(p: int) -> float:
    """Batches a coefficient: more shrink the error faster, and their Gram matrix costs p^3 each."""
    return float(np.clip(_COEFFICIENTS / p, *_SKETCHED))


def _pass(n: int, p: int, density: float, n_columns: int = 1) -> float:
    if density == 1.0:  # the entry is read once, and serves all columns
        return n * p * (_READ + 4 * (n_columns - 1) * _FLOP)
    return n_columns * (n * p * _SPARSE * density + p * _COLUMN)


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
