"""The Hessian of the rows of a dask collection: a memory of gradients a block, merged."""

from typing import Any, Protocol

import numpy as np
from sklearn.base import clone
from sklearn.covariance import log_likelihood

from sklearn_gradhess import _blocks
from sklearn_gradhess._blocks import Answer, Block, Encoding
from sklearn_gradhess._dask import Collection, Engine, check_collection
from sklearn_gradhess._loss import SquaredLoss
from sklearn_gradhess._validation import check_coef

__all__ = ["log_likelihood_by_block", "see_blocks"]


class Accumulates(Protocol):
    """What is asked of an estimator: see `_accumulation.Accumulation`."""

    batch_size_: int
    noise: Any
    shrinkage: Any
    assume_centered: Any
    _rng: np.random.Generator

    def _check_size(self, d: int) -> None: ...

    def _choose_batch_size(self, n: int, d: int) -> int: ...

    def _start(self, d: int, *, has_intercept: bool) -> Any: ...

    def _conclude(self, memory: Any) -> None: ...


def see_blocks(
    estimator: Accumulates, X: Any, y: Any, sample_weight: Any, coef: Any, intercept: Any
) -> None:
    """Let a GradientCovarianceEstimator see all blocks of a dask collection.

    Every block is seen by an estimator of its own, with noise of its own, and their memories are
    merged. A batch has rows of one block alone.
    """
    X = check_collection(estimator, X, reset=True)
    collection = Collection(X, y, sample_weight)
    engine, d = Engine(collection), X.shape[1]
    coef, intercept = check_coef(coef, intercept, d)
    n = collection.n_rows
    if n is None:
        n = engine.reduce(_ask_rows, None, {}, _total)
    if n < 2:
        raise ValueError(f"Found array with {n} sample(s), while a minimum of 2 is required.")
    estimator._check_size(d)
    size = estimator._choose_batch_size(n, d)
    empty = estimator._start(d, has_intercept=not estimator.assume_centered)
    worker = clone(estimator).set_params(
        batch_size=size, store_precision=False, random_state=None, shrinkage=None
    )
    if isinstance(estimator.shrinkage, str):  # its rule needs the gradients
        worker.set_params(shrinkage=estimator.shrinkage)
    arguments = {
        "worker": worker,
        "coef": coef,
        "intercept": intercept,
        "seed": int(estimator._rng.integers(2**63)),
        "dtype": collection.dtype,
    }
    memory = engine.reduce(_ask_memory, None, arguments, _merge_memories)
    estimator.batch_size_ = size
    memory = empty if memory is None else memory
    memory.refuse_inherent(size)
    estimator._conclude(memory.of_dtype(collection.dtype))


def _ask_rows(question: None, arguments: dict[str, Any], blocks: list[Block]) -> int:
    return sum(block.X.shape[0] for block in blocks)


def _total(counts: list[int]) -> int:
    return sum(counts)


def _ask_memory(question: None, arguments: dict[str, Any], blocks: list[Block]) -> Any:
    """Memory of the gradients of some blocks, or None where they have no rows."""
    return _merge_memories([_memory_of(block, **arguments) for block in blocks])


def _memory_of(
    block: Block, worker: Any, coef: Any, intercept: float, seed: int, dtype: Any
) -> Any:
    X, y, weight = block.X, block.y, block.weight
    if not X.shape[0]:
        return None
    rng = np.random.default_rng([seed, block.number])
    own = clone(worker).set_params(random_state=int(rng.integers(2**31)))
    encoding = Encoding(SquaredLoss(), False, dtype.name)
    with _blocks.named(block.number, "X"):
        X = encoding.features(block)
        if weight is not None and not np.any(weight):
            return None
        if weight is not None:  # weights of all blocks in one unit
            own.n_features_in_, own.batch_size_ = X.shape[1], worker.batch_size
            begun = own._start(X.shape[1], has_intercept=not own.assume_centered)
            own._conclude(begun.in_unit(np.ones(1))[0])
        own.partial_fit(X, y, weight, coef=coef, intercept=intercept)
    return own.fitted_.memory.settled()


def _merge_memories(memories: list[Any]) -> Any:
    seen = [memory for memory in memories if memory is not None]
    if not seen:
        return None
    out = seen[0]
    for memory in seen[1:]:
        out = out.merge(memory)
    return out


def log_likelihood_by_block(estimator: Any, X: Any) -> float:
    """Gaussian log-likelihood of the rows of a dask collection, a row."""
    X = check_collection(estimator, X, reset=False)
    arguments = {"location": estimator.location_.astype(np.float64)}
    said = Engine(Collection(X)).reduce(_ask_second_moment, None, arguments, _blocks.merge)
    if said is None:
        raise ValueError("X has no rows: all of its blocks are empty.")
    return float(log_likelihood(said["sum"] / said["n"], estimator.get_precision()))


def _ask_second_moment(
    question: None, arguments: dict[str, Any], blocks: list[Block]
) -> Answer | None:
    answers: list[Answer | None] = []
    for block in blocks:
        if not block.X.shape[0]:
            continue
        dense = block.X.toarray() if hasattr(block.X, "toarray") else np.asarray(block.X)
        rows = dense - arguments["location"]
        answers.append({"n": len(rows), "sum": rows.T @ rows})
    return _blocks.merge(answers)
