"""What gradients of a stream have in common: the law of their noise, the unit of their weights."""

import numpy as np
import numpy.typing as npt

__all__ = ["in_unit", "law_in_words"]

Array = npt.NDArray[np.float64]
# Powers of two: units of weights are so far apart, and chunks may be; rows below count for nothing
_UNIT, _APART, _NOTHING = 64, 128, 2.0**-256


def law_in_words(
    noise: str,
    noise_scale: float,
    loss: str,
    epsilon: float,
    assume_centered: bool,
    n_components: int | None = None,
) -> tuple[str, ...]:
    """Say what decides what is remembered of gradients: one sentence for each thing that does."""
    scale, bend = (repr(float(v)).removesuffix(".0") for v in (noise_scale, epsilon))
    return (
        f"noise={noise!r} with noise_scale={scale}",
        f"loss={loss!r}" + f", epsilon={bend}" * (loss == "huber"),
        f"assume_centered={bool(assume_centered)}",
        f"n_components={n_components}",
    )


def in_unit(weights: Array | None, n: int, unit: float) -> tuple[float, Array | None]:
    """Choose a unit of weights, where there is none yet, and return `n` weights in it.

    No result depends on the unit, but the squares of extreme weights are no numbers. So the first
    chunk sets it: one, or a power of two near its largest weight, which rounds nothing.

    Parameters
    ----------
    weights : ndarray of shape (n,) or None
        Sample weights; None is one each.
    n : int
        Number of rows.
    unit : float
        Unit so far; zero for none.
    """
    w = np.ones(n) if weights is None else weights
    exponent = int(np.frexp(w.max())[1])
    unit = unit or 2.0 ** (_UNIT * int(exponent / _UNIT))
    if abs(exponent - int(np.frexp(unit)[1])) > _APART:
        raise ValueError(
            f"Weights of up to {w.max():.3g} come after weights of about {unit:.3g}: beside "
            "each other, one of the two would count for nothing. Rescale all sample_weight "
            "alike; gradients that are passed in weigh one a row."
        )
    if unit == 1.0 and (weights is None or w.min() > _NOTHING or not w.min()):
        return unit, weights
    return unit, np.where(w / unit > _NOTHING, w / unit, 0.0)
