"""Dask collections: their blocks, who carries a question to them, and methods that go by block.

The scheduler is dask's own: threads, processes, or the current `distributed.Client`. One question
is one graph: a task for each group of neighbouring blocks, and a tree that merges their answers in
a fixed order. Groups follow from the data alone, so results do not depend on how many workers
there are. Arguments are one node of the graph; nothing is scattered, so nothing is lost with a
worker.
"""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_gradhess import _blocks
from sklearn_gradhess._blocks import Answer, Block
from sklearn_gradhess._validation import blas_threads, is_dask, refuse_foreign

__all__ = ["Collection", "Engine", "by_block", "check_collection", "nameless"]

# What methods that go by block have no use for, and would send: matrices of the Hessian's size
_UNUSED = ("_factors", "_fit_saw", "_estimator", "history_")
_FAN = 8  # answers that are merged in one task
_GROUP_BYTES = 2**24  # of neighbouring blocks that are asked in one task


def check_collection(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Check width and names of a dask collection; return it as a dask array with one column chunk.

    Parameters
    ----------
    estimator : object
        Gets `n_features_in_` and `feature_names_in_`.
    X : dask array or data frame
        Features.
    reset : bool
        Whether to set them, or to compare.
    """
    named = hasattr(X, "columns")
    if not named and not (hasattr(X, "chunks") and X.ndim == 2):
        raise ValueError(
            f"X is a dask {type(X).__name__} of {getattr(X, 'ndim', 1)} dimensions: pass a dask "
            "array or data frame of shape (n_samples, n_features)."
        )
    if not named and np.isnan(X.shape[1]):
        raise ValueError("The number of columns of X is unknown. Pass X.compute_chunk_sizes().")
    if not named and X.numblocks[1] > 1:
        raise ValueError(
            f"X is cut along its columns, into {X.numblocks[1]} chunks, but a row is needed as a "
            "whole. Pass X.rechunk({1: -1})."
        )
    if named:
        strange = [str(name) for name, kind in X.dtypes.items() if kind.kind not in "biuf"]
        if strange:
            raise ValueError(
                f"Columns {strange[:5]} of X hold no numbers. Leave them out, or encode them."
            )
    single = all(kind == np.float32 for kind in (X.dtypes if named else [X.dtype]))
    dtype = np.float32 if single else np.float64
    meta = X._meta if named else np.empty((0, X.shape[1]), dtype=dtype)
    validate_data(
        estimator, meta, reset=reset, ensure_min_samples=0, dtype=[np.float64, np.float32]
    )
    if named:
        return X.astype(dtype).to_dask_array()
    return X if X.dtype == dtype else X.astype(dtype)


def nameless(estimator: Any) -> Any:
    """Copy that takes arrays for what they are: names were compared already."""
    model = copy.copy(estimator)
    for name in ("feature_names_in_", *_UNUSED):
        vars(model).pop(name, None)
    return model


class Collection:
    """Rows of dask collections, block by block.

    Parameters
    ----------
    X : dask array
        From `check_collection`.
    y, sample_weight : dask array or series, or array-like
        What belongs to the rows.
    """

    def __init__(self, X: Any, y: Any = None, sample_weight: Any = None) -> None:
        self.X = X
        self.n_blocks = X.numblocks[0]
        self.dtype = X.dtype
        parts = [_delayed(X)]
        for name, values in (("y", y), ("sample_weight", sample_weight)):
            parts.append(self._alike(name, values))
        self.blocks = list(zip(*parts, strict=True))

    def _alike(self, name: str, values: Any) -> list[Any]:
        """Blocks of another collection, which must be cut as X is."""
        import dask.array as da

        rows = self.X.chunks[0]
        if values is None:
            return [None] * self.n_blocks
        if not is_dask(values):
            refuse_foreign(**{name: values})
            if np.isnan(rows).any():
                raise ValueError(
                    f"{name} is no dask collection, and the chunk sizes of X are unknown: nobody "
                    f"knows which rows belong together. Pass X.compute_chunk_sizes(), or {name} "
                    "from the same data frame as X."
                )
            values = np.asarray(values)
            if values.shape[:1] != self.X.shape[:1]:
                raise ValueError(
                    f"X has {self.X.shape[0]} rows, {name} has the shape {values.shape}: pass one "
                    "entry a row."
                )
            values = da.from_array(values, chunks=(rows, *values.shape[1:]))
        if not hasattr(values, "chunks"):  # strings come as objects, and without a warning
            numpy = all(isinstance(kind, np.dtype) for kind in np.atleast_1d(values.dtypes))
            values = (values if numpy else values.astype(object)).to_dask_array()
        theirs = values.chunks[0]
        known = not (np.isnan(rows).any() or np.isnan(theirs).any())
        if len(theirs) != self.n_blocks or (known and theirs != rows):
            raise ValueError(
                f"{name} has {len(theirs)} chunks, X has {self.n_blocks}, and they must hold the "
                f"same rows. Pass {name}.rechunk({{0: X.chunks[0]}}), or both from one data frame."
            )
        if values.ndim == 2 and values.numblocks[1] > 1:
            values = values.rechunk({1: -1})
        return _delayed(values)

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None where chunk sizes are unknown."""
        rows = self.X.shape[0]
        return None if np.isnan(rows) else int(rows)

    def groups(self) -> list[list[int]]:
        """Neighbouring blocks, as many as take little memory together."""
        row_bytes = self.X.shape[1] * self.dtype.itemsize
        groups: list[list[int]] = []
        held = np.inf
        for index, rows in enumerate(self.X.chunks[0]):
            held = held + rows * row_bytes
            if held <= _GROUP_BYTES:
                groups[-1].append(index)
            else:
                groups.append([index])
                held = rows * row_bytes if not np.isnan(rows) else np.inf
        return groups


def _delayed(array: Any) -> list[Any]:
    return array.to_delayed().ravel().tolist()


class Engine:
    """Carries questions to the blocks, with dask's current scheduler; counts rounds and bytes.

    Parameters
    ----------
    collection : Collection
        Rows.

    Attributes
    ----------
    rounds : int
        Questions so far.
    bytes : int
        Numbers that were sent to the blocks once, and came back merged.
    passes : float
        Visits to rows, over their number.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.rounds, self.bytes, self.passes = 0, 0, 0.0

    def __call__(
        self,
        question: Callable[..., Answer],
        *,
        conclude: Callable[[Answer], Answer] | None = None,
        **arguments: Any,
    ) -> Answer:
        """Ask all blocks: one round. What is concluded of the answer is concluded by a worker."""
        sent = {name: value for name, value in arguments.items() if value is not None}
        answer = self.reduce(_blocks.ask, question, sent, _blocks.merge, conclude)
        if answer is None:
            raise ValueError("X has no rows: all of its blocks are empty.")
        self.rounds += 1
        self.bytes += _blocks.size_of(sent) + _blocks.size_of(answer)
        return answer

    def reduce(
        self,
        ask: Callable[..., Any],
        question: Any,
        arguments: dict[str, Any],
        merge: Callable[[list[Any]], Any],
        conclude: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Answers of all groups of blocks, merged in a tree."""
        from dask import compute, delayed

        blocks = self.collection.blocks
        asked = delayed(_ask_group, pure=False)
        merged = delayed(merge, pure=False)
        node = delayed(_Sealed((ask, question, arguments)), traverse=False, pure=False)
        level = [
            asked(node, group, [list(blocks[i]) for i in group])
            for group in self.collection.groups()
        ]
        while len(level) > 1:
            level = [merged(level[i : i + _FAN]) for i in range(0, len(level), _FAN)]
        if conclude is not None:
            end = delayed(_Sealed(conclude), traverse=False, pure=False)
            level = [delayed(_conclude, pure=False)(end, level[0])]
        # Workers of dask's have one thread for BLAS already; threads of this process have not
        with blas_threads(self.collection.X.shape[1]):
            return compute(level[0])[0]


class _Sealed:
    """What dask shall hand over as it is."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _ask_group(sealed: _Sealed, indices: list[int], parts: list[list[Any]]) -> Any:
    ask, question, arguments = sealed.content
    blocks = [Block(index, *part) for index, part in zip(indices, parts, strict=True)]
    return ask(question, arguments, blocks)


def _conclude(sealed: _Sealed, answer: Any) -> Any:
    return None if answer is None else sealed.content(answer)


def by_block(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method that treats each row for itself take dask collections, lazily."""

    @wraps(method)
    def whole_or_lazy(self: Any, X: Any) -> Any:
        if not is_dask(X):
            return method(self, X)
        check_is_fitted(self)
        X = check_collection(self, X, reset=False)
        return _lazily(method, self, X)

    return whole_or_lazy


def _lazily(method: Callable[..., Any], estimator: Any, X: Any) -> Any:
    import dask.array as da
    from dask import delayed

    model = nameless(estimator)  # what is fitted later changes nothing in it
    like = method(model, np.zeros((1, X.shape[1]), dtype=X.dtype))
    shape = {"drop_axis": 1} if like.ndim == 1 else {"chunks": (X.chunks[0], (like.shape[1],))}
    return da.map_blocks(
        _apply,
        X,
        sealed=delayed(_Sealed((method, model, like[:0])), traverse=False, pure=False),
        dtype=like.dtype,
        meta=like[:0],
        **shape,
    )


def _apply(block: Any, sealed: _Sealed) -> Any:
    method, model, empty = sealed.content
    return method(model, block) if block.shape[0] else empty
