"""How much memory matrices of the size of the Hessian take, and whether that much is to be had."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["allowed", "matrices", "refuse_dense", "refuse_many_rows", "refuse_wide"]

# Matrices of p x p doubles that a fit holds at its peak, as measured: so many, and so many an
# output (a target, or a class of three or more)
_MATRICES = 8
_MATRICES_AN_OUTPUT = 5
_GIB = 2.0**30
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def refuse_wide(n_features: int, *, instead: str, n_outputs: int = 1) -> None:
    """Raise ValueError if matrices of the size of the Hessian cannot fit into memory.

    Only what is certain is refused: the bound is all the memory that the process may ever have,
    and not what happens to be free.

    Parameters
    ----------
    n_features : int
        Number of features p; matrices are p x p.
    instead : str
        What to use for so many features.
    n_outputs : int, default=1
        Number of outputs that have a matrix each.
    """
    matrix, needed = 8.0 * n_features**2, matrices(n_features, n_outputs)
    most = allowed(needed)
    if needed > most:
        raise ValueError(
            f"X has n_features={n_features}, and curvature is dense in them: a matrix of "
            f"{n_features} x {n_features} takes {matrix / _GIB:.3g} GiB, and {needed / _GIB:.3g} "
            f"GiB are needed in all, but this process may have {most / _GIB:.3g} GiB. {instead}"
        )


def refuse_many_rows(n_samples: int, *, n_outputs: int = 1) -> None:
    """Raise ValueError if matrices of rows by rows cannot fit into memory."""
    needed, most = matrices(n_samples, n_outputs), allowed()
    if needed > most:
        raise ValueError(
            f"preconditioner='sample_space' makes matrices of rows by rows, and X has {n_samples}: "
            f"{needed / _GIB:.3g} GiB are needed in all, but this process may have "
            f"{most / _GIB:.3g} GiB. Use preconditioner='auto', or 'diagonal'."
        )


def refuse_dense(n_samples: int, n_features: int, *, instead: str) -> None:
    """Raise ValueError if the rows of a sparse X cannot fit into memory as dense ones."""
    needed, most = 3 * 8.0 * n_samples * n_features, allowed()
    if needed > most:
        raise ValueError(
            f"The result is dense: with its intermediates, {n_samples} x {n_features} numbers take "
            f"{needed / _GIB:.3g} GiB, but this process may have {most / _GIB:.3g} GiB. {instead}"
        )


def matrices(size: int, n_outputs: int) -> float:
    """Bytes that a fit takes with matrices of this size, as measured."""
    return 8.0 * size**2 * (_MATRICES + _MATRICES_AN_OUTPUT * n_outputs)


def allowed(needed: float = math.inf) -> float:
    """Bytes that this process may ever have, as far as is known; or enough for what is needed."""
    if needed < 0.25 * _GIB:  # to be had anywhere: save small fits and single rows the asking
        return 0.25 * _GIB
    return min(_limits(), default=math.inf)


def _limits() -> Iterator[float]:
    """Yield what bounds the memory of this process, in bytes, as far as the platform tells."""
    if hasattr(os, "sysconf"):
        yield float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():  # "max" is none
            yield float(text)
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield float(soft)
