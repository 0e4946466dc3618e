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
from sklearn_gradhess._validation import blas_threads, is_dask, output_kind, refuse_foreign

__all__ = ["Collection", "Engine", "LazyTransform", "by_block", "check_collection", "nameless"]

# What methods that go by block have no use for, and would send: matrices of the Hessian's size
_UNUSED = ("_factors", "_fit_saw", "_diagonal", "_estimator", "history_")
_FAN = 8  # answers that are merged in one task
_GROUP_BYTES = 2**24  # of neighbouring blocks that are asked in one task


def check_collection(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Check width and names of a dask array, in one column chunk, or data frame; return floats.

    Parameters
    ----------
    estimator : object
        Gets `n_features_in_` and `feature_names_in_`.
    X : dask array or data frame
        Features.
    reset : bool
        Whether to set them, or to compare.
    """
    named = _is_frame(X)
    if not named and not (hasattr(X, "chunks") and X.ndim == 2):
        raise ValueError(
            f"X is a dask {type(X).__name__} of {getattr(X, 'ndim', 1)} dimensions: pass a dask "
            "array or data frame of shape (n_samples, n_features)."
        )
    if not named and X.dtype.kind not in "biufOUS":
        raise ValueError(f"X has the dtype {X.dtype}: pass numbers that are real.")
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
        return X.astype(dtype)
    return X if X.dtype == dtype else X.astype(dtype)


def _is_frame(X: Any) -> bool:
    return hasattr(X, "npartitions") and getattr(X, "ndim", 0) == 2 and not hasattr(X, "chunks")


def _as_array(X: Any) -> Any:
    return X if hasattr(X, "chunks") else X.to_dask_array()


def nameless(estimator: Any) -> Any:
    """Copy that takes arrays for what they are: names were compared already."""
    model = copy.copy(estimator)
    for name in ("feature_names_in_", *_UNUSED):
        vars(model).pop(name, None)
    if hasattr(model, "set_output"):
        model._sklearn_output_config = {"transform": "default"}
    return model


class Collection:
    """Rows of dask collections, block by block.

    Parameters
    ----------
    X : dask array or data frame
        From `check_collection`.
    y, sample_weight : dask array or series, or array-like
        What belongs to the rows.
    """

    def __init__(self, X: Any, y: Any = None, sample_weight: Any = None) -> None:
        self.X = _as_array(X)
        self.n_blocks = self.X.numblocks[0]
        self.dtype = self.X.dtype
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
            if name == "sample_weight" and not values.ndim:
                values = np.full(self.X.shape[0], values)
            if values.shape[:1] != self.X.shape[:1]:
                raise ValueError(
                    f"X has {self.X.shape[0]} rows, {name} has the shape {values.shape}: pass one "
                    "entry a row."
                )
            values = da.from_array(values, chunks=(rows, *values.shape[1:]))
        if not hasattr(values, "chunks"):
            if values.npartitions != self.n_blocks:
                raise ValueError(
                    f"{name} has {values.npartitions} partitions, X has {self.n_blocks} blocks, "
                    "and they must hold the same rows. Take both from one data frame, or pass "
                    f"{name}.to_dask_array(lengths=True).rechunk({{0: X.chunks[0]}})."
                )
            return _delayed(values)
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


def _delayed(values: Any) -> list[Any]:
    return list(np.ravel(values.to_delayed()))


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
    blocks = [_block(index, *part) for index, part in zip(indices, parts, strict=True)]
    return ask(question, arguments, blocks)


def _block(number: int, X: Any, y: Any, weight: Any) -> Block:
    """Rows as arrays; those of data frames must have the same labels."""
    for name, values in (("y", y), ("sample_weight", weight)):
        framed = hasattr(X, "index") and hasattr(values, "index")
        if framed and not X.index.equals(values.index):
            raise ValueError(
                f"Block {number} of {name} has other row labels than that of X, from "
                f"{values.index[:3].tolist()} where X has {X.index[:3].tolist()}. Take both from "
                f"one data frame; if the rows do belong together in this order, pass "
                f"{name}.to_dask_array()."
            )
    return Block(number, *(p.to_numpy() if hasattr(p, "to_numpy") else p for p in (X, y, weight)))


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

    X = _as_array(X)
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


class LazyTransform:
    """Transform dask collections lazily, and to data frames of dask's where these are asked for.

    It comes before what has scikit-learn's `set_output`, which would compute them.
    """

    def transform(self, X: Any) -> Any:
        """Whiten: subtract `location_` and give the features the identity covariance.

        Parameters
        ----------
        X : {array-like, sparse matrix, dask array or data frame} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        X_white : ndarray of shape (n_samples, n_features)
            Whitened features. Singular directions come out as zeros. Of dask, and lazy, if X is.

        Raises
        ------
        ValueError
            If X is not finite, or of another width than in `fit`; or of dask where `set_output`
            asks for frames that dask has not.
        """
        base: Any = super()
        if not is_dask(X):
            return base.transform(X)
        check_is_fitted(self)
        kind = output_kind(self)
        if kind not in ("default", "pandas"):
            raise ValueError(
                f"Data frames of dask are of pandas, not of {kind}: "
                "set_output(transform='pandas'), or 'default' for a dask array."
            )
        checked = check_collection(self, X, reset=False)
        if kind == "default":
            return _lazily(_transformed, self, checked)
        estimator: Any = self
        names = estimator.get_feature_names_out()
        if _is_frame(X):
            model = nameless(self)
            meta = checked._meta.set_axis(names, axis=1)
            return checked.map_partitions(_framed, _Sealed((model, names)), meta=meta)
        import dask.dataframe as dd

        return dd.from_dask_array(_lazily(_transformed, self, checked), columns=names)

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit, and whiten the same rows.

        Parameters
        ----------
        X : {array-like, sparse matrix, dask array or data frame} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,), default=None
            Targets.
        **fit_params : dict
            What else `fit` takes.

        Returns
        -------
        X_white : ndarray of shape (n_samples, n_features)
            Whitened features; of dask, and lazy, if X is.
        """
        base: Any = super()
        if not is_dask(X):
            return base.fit_transform(X, y, **fit_params)
        estimator: Any = self
        return estimator.fit(X, y, **fit_params).transform(X)


def _transformed(model: Any, block: Any) -> Any:
    return model.transform(block)


def _framed(frame: Any, sealed: _Sealed) -> Any:
    model, names = sealed.content
    values = frame.to_numpy()
    out = model.transform(values) if len(values) else values
    return type(frame)(out, index=frame.index, columns=names)


def _apply(block: Any, sealed: _Sealed) -> Any:
    method, model, empty = sealed.content
    return method(model, block) if block.shape[0] else empty
