"""Questions to one block of rows, and how the answers of several become one.

A question is a function of the rows, of small arrays and of a seed. Nothing stays with the block:
what rows knew of a place is computed again from the coefficients, in the same read. So an answer
can be asked for twice, on another machine, after a crash, and is the same to the last bit. All
entries of an answer are sums over rows, but for largest values, labels, and triangular factors,
which merge by QR (MATH section 8).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.metrics import mean_tweedie_deviance
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets

from sklearn_gradhess._descent import Model
from sklearn_gradhess._loss import Loss
from sklearn_gradhess._moments import updated_triangle
from sklearn_gradhess._penalty import Spread
from sklearn_gradhess._rows import Problem
from sklearn_gradhess._sketch import triangles

__all__ = [
    "Answer",
    "Block",
    "Encoding",
    "ask",
    "at",
    "bent",
    "correct",
    "deviances",
    "labels",
    "length",
    "losses",
    "merge",
    "named",
    "product",
    "refuse_overflow",
    "residuals",
    "rows_triangle",
    "sampled",
    "size_of",
    "spread",
    "totals",
]

Array = npt.NDArray[np.float64]
Answer = dict[str, Any]
# Curvature that a row has at least, over what it may have
_REGULAR = 1e-12
_LARGEST = ("worst", "farthest")


class Block(NamedTuple):
    """Some rows, as they were stored, and their place among the blocks."""

    number: int
    X: Any
    y: Any
    weight: Any


@dataclass(frozen=True)
class Encoding:
    """How stored rows become a problem.

    Attributes
    ----------
    loss : Loss
        Half loss of the rows.
    has_intercept : bool
        Whether the first coefficient is the intercept.
    dtype : str
        Precision of the features.
    classes : ndarray of shape (n_classes,) or None
        Labels; None for targets that are numbers.
    class_weight : ndarray of shape (n_classes,) or None
        Weights of the classes.
    """

    loss: Loss
    has_intercept: bool
    dtype: str
    classes: Any = None
    class_weight: Any = None

    def problem(self, block: Block) -> Problem:
        """Rows of a block as a problem whose weights are not scaled, and without a penalty."""
        X, weight = self.features(block), _weights(block)
        y = _aligned(block.y)
        if self.classes is None:
            Y = _numbers(y, block.number, "y")
            Y = Y.reshape(len(Y), -1)
            with named(block.number, "y"):
                self.loss.check_y(Y)
        else:
            code = np.searchsorted(self.classes, y.reshape(len(y)))
            if self.class_weight is not None:
                weight = self.class_weight[code] * (1.0 if weight is None else weight)
            Y = code[:, None].astype(np.float64)
            if len(self.classes) > 2:
                Y = np.eye(len(self.classes))[code]
        for name, values in (("y", Y), ("sample_weight", weight)):
            if values is not None and len(values) != X.shape[0]:
                raise ValueError(
                    f"Block {block.number} of X has {X.shape[0]} rows, that of {name} "
                    f"{len(values)}. Chunk both alike: {name}.rechunk of the chunks of X, or make "
                    "both from the same data frame."
                )
        return Problem(X, Y, weight, self.loss, 0.0, self.has_intercept)

    def features(self, block: Block) -> Any:
        """Features of a block: dense or CSR, of the precision that all blocks have."""
        X = block.X
        with named(block.number, "X"):
            return check_array(
                X if sparse.issparse(X) else _aligned(X),
                accept_sparse="csr",
                dtype=np.dtype(self.dtype),
                ensure_all_finite=False,
                ensure_min_samples=0,
            )


class named:  # noqa: N801
    """Say in which block an error is."""

    def __init__(self, index: int, name: str) -> None:
        self.where = f"Block {index} of {name}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ValueError | TypeError):
            raise ValueError(f"{self.where}: {error}") from error


def _aligned(array: Any) -> Any:
    """Array at an address that BLAS takes: off the wire it starts anywhere.

    Elsewhere NumPy would be slow, and round in another order.
    """
    return np.require(np.asarray(array), requirements=["A"])


def _numbers(values: Any, index: int, name: str) -> Array:
    with named(index, name):
        return check_array(
            values, ensure_2d=False, dtype=np.float64, ensure_min_samples=0, input_name=name
        )


def _is_missing(label: Any) -> bool:
    return label is None or type(label).__name__ == "NAType" or label != label


def refuse_overflow(weight: float) -> None:
    """Raise ValueError if the sum of the weights is not finite."""
    if not np.isfinite(weight):
        raise ValueError(
            "The sum of sample_weight overflows float64. Weights count repetitions: divide "
            "sample_weight by its largest entry."
        )


def _weights(block: Block) -> Array | None:
    if block.weight is None:
        return None
    weight = _numbers(_aligned(block.weight), block.number, "sample_weight")
    if weight.ndim != 1 or weight.min(initial=0.0) < 0:
        raise ValueError(
            f"Block {block.number} of sample_weight has the shape {weight.shape} and a minimum of "
            f"{weight.min(initial=0.0):g}: weights must be a vector of numbers >= 0."
        )
    refuse_overflow(weight.sum())
    return weight


def spread(encoding: Encoding, block: Block) -> Answer:
    """Mean and scatter of each feature."""
    problem = encoding.problem(block)
    return {"spread": _spread(problem.X, problem.weighted(np.ones(problem.n)), block)}


def _spread(X: Any, weight: Array, block: Block) -> Spread:
    found = Spread.empty(X.shape[1])
    step = max(256, 2**17 // max(X.shape[1], 1))
    for start in range(0, len(weight), step):
        piece = slice(start, start + step)
        found = found.plus(X[piece], weight[piece])
    _refuse_infinite(found.mean, X, block)
    return found


def totals(encoding: Encoding, block: Block) -> Answer:
    """Count rows; sums of weights and targets."""
    problem = encoding.problem(block)
    weight = problem.weighted(np.ones(problem.n))
    return {
        "n": problem.n,
        "positive": np.count_nonzero(weight),
        "weight": weight.sum(),
        "length": length(weight),
        "target": problem.weighted(problem.Y).sum(axis=0),
        "square": problem.weighted(problem.Y**2).sum(),
    }


def length(weight: Array) -> float:
    """Root of the sum of squares, which themselves might overflow or vanish."""
    top = weight.max(initial=0.0) or 1.0
    return float(top * np.linalg.norm(weight / top))


def labels(block: Block, features: Encoding | None = None) -> Answer:
    """Labels, their rows, sums of weights and roots of those of squares; spread, if asked."""
    y, weight = _aligned(block.y), _weights(block)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        raise ValueError(f"Block {block.number} of y has the shape {y.shape}: pass a vector.")
    if (y.dtype.kind == "f" and not np.isfinite(y).all()) or (
        y.dtype.kind == "O" and any(map(_is_missing, y))
    ):
        raise ValueError(
            f"Block {block.number} of y contains NaN or infinity, or a label is missing. Drop such "
            "rows before the fit."
        )
    with named(block.number, "y"):
        check_classification_targets(y)
    weight = np.ones(len(y)) if weight is None else weight
    found, code = np.unique(y, return_inverse=True)
    k, top = len(found), weight.max(initial=0.0) or 1.0
    rows, total = np.bincount(code, minlength=k), np.bincount(code, weight, k)
    table = np.column_stack([rows, total, top * np.sqrt(np.bincount(code, (weight / top) ** 2, k))])
    out: Answer = {"labels": found, "table": table}
    if features is not None:
        out["spread"] = _spread(features.features(block), weight, block)
    return out


def sampled(encoding: Encoding, block: Block, share: float, seed: int) -> Answer:
    """Draw some rows at random."""
    rng = np.random.default_rng([seed, block.number])
    n = block.X.shape[0]
    rows = np.sort(rng.choice(n, int(n * share + rng.random()), replace=False))
    X, y, weight = encoding.features(block), _aligned(block.y), _weights(block)
    problem = replace(encoding.problem(block), X=X[rows])
    _refuse_infinite(problem.X.sum(axis=0), problem.X, block)
    return {"rows": [(problem.X, y[rows], None if weight is None else weight[rows])]}


def rows_triangle(encoding: Encoding, block: Block) -> Answer:
    """Factor of the rows ``sqrt(w) (1, x, y)``: all that least squares needs."""
    problem = encoding.problem(block)
    weight = problem.weighted(np.ones(problem.n))
    shift, factors = triangles(problem, None, problem.Y, batch_size=1, rng=np.random.default_rng(0))
    _refuse_infinite(factors, problem.X, block)
    return {
        "n": problem.n,
        "positive": np.count_nonzero(weight),
        "weight": weight.sum(),
        "length": length(weight),
        "shift": shift,
        "factors": factors,
    }


def at(
    encoding: Encoding,
    block: Block,
    W: Array,
    model: Model,
    batch_size: int,
    seed: int,
    direction: Array | None = None,
    null: Array | None = None,
) -> Answer:
    """Gradient, objective, other sums over rows, and a sketch of the Hessian: one read.

    Parameters
    ----------
    encoding, block : Encoding, Block
        Who is asked.
    W : ndarray of shape (p, t)
        Where.
    model : Model
        Curvature that the sketch is made of.
    batch_size : int
        Rows in a batch of the sketch; one: the exact Hessian.
    seed : int
        With the number of the block it makes the randomness.
    direction : ndarray of shape (p, t), default=None
        Last step, of which it is asked what moved.
    null : ndarray of shape (t,), default=None
        The same raw prediction of all rows, whose loss is asked for too.
    """
    problem = encoding.problem(block)
    loss, Y, t = problem.loss, problem.Y, problem.Y.shape[1]
    slope, curvature, stiffness = np.empty((3, *Y.shape))
    out: Answer = dict.fromkeys(
        ("value", "curvature", "stiffness", "slope2", "size", "gain", "far_gain", "quartic"), 0.0
    )
    out |= {"worst": 0.0, "farthest": 0.0, "batches": 0, "gradient": np.zeros_like(W)}
    both = W if direction is None else np.column_stack([W, direction])
    for piece, Z in problem.chunks():
        f = problem.predict(Z, both)
        f, moved = f[:, :t], f[:, t:]
        value, slope[piece], curvature[piece] = loss.all(Y[piece], f)
        stiffness[piece] = loss.stiffness(Y[piece], f)
        out["gradient"] += problem.adjoint(Z, problem.weighted(slope[piece], piece))
        value = value + loss.constant(Y[piece])
        out["value"] += float(problem.weighted(value, piece).sum())
        counted = problem.weighted(np.ones(len(f)), piece) > 0
        out["worst"] = max(out["worst"], float(value[counted].max(initial=0.0)))
        weighted = problem.weighted(curvature[piece], piece)
        out["size"] += float(np.sum(weighted * f**2))
        if direction is not None:
            gain = weighted * moved**2
            out["gain"] += float(gain.sum())
            out["quartic"] += float(np.sum(gain * moved**2))
            out["far_gain"] += float(gain[np.abs(moved) > 0.5].sum())
            out["farthest"] = max(out["farthest"], float(np.abs(moved).max(initial=0.0)))
    if null is not None:
        same = np.array(np.broadcast_to(null, Y.shape))
        value = loss.value(Y, same) + loss.constant(Y)
        out["null"] = float(problem.weighted(value).sum())
    out["curvature"] = float(problem.weighted(curvature).sum())
    out["stiffness"] = float(problem.weighted(stiffness).sum())
    out["slope2"] = float(problem.weighted(slope**2).sum())
    _refuse_infinite(out["gradient"], problem.X, block)
    weights = None
    if not loss.quadratic:
        bound = model is Model.STIFFNESS
        weights = stiffness if bound else curvature + _REGULAR * stiffness
    rng = np.random.default_rng([seed, block.number])
    out["shift"], out["factors"] = triangles(problem, weights, batch_size=batch_size, rng=rng)
    out["batches"] = -(-problem.n // batch_size)
    return out


def product(encoding: Encoding, block: Block, W: Array, U: Array, model: Model) -> Answer:
    """Hessian of a model at W times U."""
    problem = encoding.problem(block)
    loss, t = problem.loss, W.shape[1]
    out, both = np.zeros_like(U), np.column_stack([W, U])
    for piece, Z in problem.chunks():
        f = problem.predict(Z, both)
        y, raw, direction = problem.Y[piece], f[:, :t], f[:, t:]
        if model is Model.CURVATURE:
            rows = loss.hessian_product(y, raw, direction)
        else:
            rows = loss.stiffness(y, raw) * direction
        out += problem.adjoint(Z, problem.weighted(rows, piece))
    return {"product": out}


def losses(encoding: Encoding, block: Block, W: Array, U: Array, steps: Array) -> Answer:
    """Value of the loss at several steps along a direction."""
    problem = encoding.problem(block)
    t, both = W.shape[1], np.column_stack([W, U])
    out = np.zeros(len(steps))
    for piece, Z in problem.chunks():
        f = problem.predict(Z, both)
        for j, step in enumerate(steps):
            value = problem.loss.value(problem.Y[piece], f[:, :t] + step * f[:, t:])
            out[j] += problem.weighted(value, piece).sum()
    return {"losses": out}


def bent(encoding: Encoding, block: Block, W: Array, bends: Array) -> Answer:
    """Squares of residuals up to several lengths, and the weight of those beyond."""
    problem = encoding.problem(block)
    inside, beyond = np.zeros((2, len(bends)))
    for piece, Z in problem.chunks():
        residual = np.abs(problem.Y[piece] - problem.predict(Z, W))[:, 0]
        weight = problem.weighted(np.ones(len(residual)), piece)
        order = np.argsort(residual)
        residual, weight = residual[order], weight[order]
        first = np.searchsorted(residual, bends, side="right")
        inside += np.append(0.0, np.cumsum(weight * residual**2))[first]
        beyond += weight.sum() - np.append(0.0, np.cumsum(weight))[first]
    return {"inside": inside, "beyond": beyond}


def residuals(encoding: Encoding, block: Block, predict: Callable[[Any], Any]) -> Answer:
    """Weighted squared errors of predictions, and the scatter of the targets, column by column."""
    problem = encoding.problem(block)
    prediction = np.asarray(predict(block.X), dtype=np.float64).reshape(problem.Y.shape)
    weight = problem.weighted(np.ones(problem.n))
    total = weight.sum()
    mean = problem.weighted(problem.Y).sum(axis=0) / total if total else 0 * problem.Y[0]
    return {
        "scored": np.array([problem.n, total]),
        "mean": mean,
        "scatter": problem.weighted((problem.Y - mean) ** 2).sum(axis=0),
        "error": problem.weighted((problem.Y - prediction) ** 2).sum(axis=0),
    }


def deviances(
    encoding: Encoding, block: Block, predict: Callable[[Any], Any], mean: Array, power: float
) -> Answer:
    """Deviance of predictions, and of the mean target, of a Tweedie law of this power."""
    problem = encoding.problem(block)
    y, weight = problem.Y[:, 0], problem.weighted(np.ones(problem.n))
    if not weight.any():
        return {"deviance": np.zeros(1), "null": np.zeros(1)}
    predicted = np.asarray(predict(block.X), dtype=np.float64).reshape(y.shape)
    predicted = np.maximum(predicted, np.finfo(np.float64).tiny)
    means = np.broadcast_to(mean, y.shape)
    total = weight.sum()
    each = [
        np.array([total * mean_tweedie_deviance(y, f, sample_weight=weight, power=power)])
        for f in (predicted, means)
    ]
    return {"deviance": each[0], "null": each[1]}


def correct(block: Block, predict: Callable[[Any], Any]) -> Answer:
    """Weight of the rows whose label is predicted."""
    y, weight = _aligned(block.y), _weights(block)
    weight = np.ones(len(y)) if weight is None else weight
    right = np.asarray(predict(block.X)) == y.reshape(len(y))
    return {"weight": weight.sum(), "correct": weight[right].sum()}


def _refuse_infinite(sums: Array, X: Any, block: Block) -> None:
    """Raise ValueError if sums over the rows are not finite, and name the block."""
    if np.isfinite(sums).all():
        return
    values = X.data if sparse.issparse(X) else X
    for what, bad in (("NaN", np.isnan(values)), ("infinity", np.isinf(values))):
        if bad.any():
            raise ValueError(
                f"Block {block.number} of X contains {what}. Drop such rows before the fit, or "
                "impute them, with dask's fillna or map_blocks."
            )
    raise ValueError(
        f"Sums over the rows of block {block.number} of X overflow float64: its largest entry is "
        f"{np.abs(values).max(initial=0):.3g} in size. Rescale X or y."
    )


def ask(
    question: Callable[..., Answer], arguments: dict[str, Any], blocks: Iterable[Block]
) -> Answer | None:
    """Ask blocks, one after the other; those without rows have nothing to say."""
    arguments = {
        name: _aligned(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    found = None
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            if block.X.shape[0]:
                found = merge([found, question(block=block, **arguments)])
    return found


def merge(answers: list[Answer | None]) -> Answer | None:
    """Merge answers, in the order in which they come."""
    said = [answer for answer in answers if answer is not None]
    if len(said) < 2:
        return said[0] if said else None
    out = said[0]
    for other in said[1:]:
        out = _merge_two(out, other)
    return out


def _merge_two(a: Answer, b: Answer) -> Answer:
    out = {}
    if "labels" in a:
        return _merge_labels(a, b)
    if "scatter" in a:
        return _merge_scatter(a, b)
    for name in a:
        if name == "factors":
            out[name] = _merge_factors(a, b)
        elif name == "spread":
            out[name] = a[name].merge(b[name])
        elif name == "shift":
            out[name] = a[name]
        elif name == "length":
            out[name] = np.hypot(a[name], b[name])
        elif name in _LARGEST:
            out[name] = max(a[name], b[name])
        else:
            out[name] = a[name] + b[name]
    return out


def _merge_factors(a: Answer, b: Answer) -> Array:
    """Of rows about the shift of the first: (1, x - s1) = (1, x - s2 + (s2 - s1))."""
    first, second = _aligned(a["factors"]), np.array(b["factors"])
    between = b["shift"] - a["shift"]
    if between.any():
        d = len(between)
        second[:, :, 1 : d + 1] += second[:, :, :1] * between
    return np.array([updated_triangle(*pair) for pair in zip(first, second, strict=True)])


def _merge_labels(a: Answer, b: Answer) -> Answer:
    found, code = np.unique(np.concatenate([a["labels"], b["labels"]]), return_inverse=True)
    table = np.zeros((len(found), a["table"].shape[1]))
    said = np.concatenate([a["table"], b["table"]])
    np.add.at(table[:, :2], code, said[:, :2])
    np.hypot.at(table[:, 2], code, said[:, 2])
    out: Answer = {"labels": found, "table": table}
    if "spread" in a:
        out["spread"] = a["spread"].merge(b["spread"])
    return out


def _merge_scatter(a: Answer, b: Answer) -> Answer:
    """Scatter about the joint mean."""
    scored = a["scored"] + b["scored"]
    total, share = scored[1], b["scored"][1] / (scored[1] or 1.0)
    shift = b["mean"] - a["mean"]
    between = share * (1 - share) * total * shift**2
    return {
        "scored": scored,
        "mean": a["mean"] + share * shift,
        "scatter": a["scatter"] + b["scatter"] + between,
        "error": a["error"] + b["error"],
    }


def size_of(answer: dict[str, Any]) -> int:
    """Bytes of the numbers in an answer, or of the arguments of a question."""
    return sum(getattr(value, "nbytes", 8) for value in answer.values())
