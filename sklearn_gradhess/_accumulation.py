"""How an estimator takes in rows, or gradients alone: checked, summed over batches, remembered."""

import copy
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.utils import check_scalar

from sklearn_gradhess._components import Components, check_whitening
from sklearn_gradhess._failures import failures
from sklearn_gradhess._fitted import Fitted
from sklearn_gradhess._gradients import (
    batch_index,
    batch_sums,
    choose_batch_size,
    derivatives,
    inherent_noise,
    round_key,
    row_coefficients,
)
from sklearn_gradhess._law import law_in_words
from sklearn_gradhess._losses import make_loss
from sklearn_gradhess._low_rank import sketch_size
from sklearn_gradhess._memory import refuse_wide
from sklearn_gradhess._schemes import N_GROUPS, GradientMemory
from sklearn_gradhess._validation import (
    blas_threads,
    check_coef,
    check_features,
    check_target,
    check_weights,
    effective_n_threads,
    refuse_overflow,
)
from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.noise import as_generator

__all__ = ["Accumulation", "of_factor"]

_FEWER_FEATURES = (
    "Set n_components to the number of leading directions to keep, or take fewer features, by "
    "sklearn.random_projection or sklearn.feature_selection."
)


def _refuse_incomplete(batch_size: int, n_samples: int) -> None:
    if batch_size > n_samples:
        raise ValueError(
            f"batch_size={batch_size} exceeds n_samples={n_samples}: not one batch is complete. "
            "Use a smaller batch_size, or partial_fit, which waits for more rows."
        )


class Accumulation:
    """The part of an estimator that changes what it has seen."""

    fitted_: Fitted
    n_features_in_: int
    batch_size_: int
    batch_size: Any
    noise: Any
    noise_scale: Any
    inherent_variance: Any
    noise_distribution: Any
    correction: Any
    loss: Any
    epsilon: Any
    power: Any
    n_redraws: Any
    shuffle: Any
    shrinkage: Any
    n_components: Any
    whitening: Any
    assume_centered: Any
    random_state: Any
    _rng: np.random.Generator

    def _see_data(
        self, X: Any, y: Any, sample_weight: Any, coef: Any, intercept: Any, *, whole: bool
    ) -> None:
        memory = self._memory
        X = check_features(self, X, reset=memory is None, ensure_min_samples=2 if whole else 1)
        n, d = X.shape
        self._check_size(d)
        coef, intercept = check_coef(coef, intercept, d)
        sample_weight = check_weights(sample_weight, X)
        antithetic = self.noise == "antithetic"
        y = check_target(y, n, optional=antithetic and self.loss == "squared_error")
        if memory is None:
            self.batch_size_ = self._choose_batch_size(n, d, X.nnz / n / d if issparse(X) else 1.0)
        if whole:
            _refuse_incomplete(self.batch_size_, n)
        if memory is None:
            memory = self._start(d, has_intercept=not self.assume_centered)
        memory.check_law(self._law(), self.inherent_variance)
        key = round_key(coef, intercept, y, d)
        memory, sample_weight = memory.begin(key, sample_weight, n, self.n_redraws)
        memory, seen, rng = self._summed(memory, X, y, sample_weight, coef, intercept)
        for sums in memory.sums():
            refuse_overflow(sums, X, estimator_name=type(self).__name__)
        memory.refuse_inherent(self.batch_size_, seen)
        self._rng = rng
        self._conclude(memory.of_dtype(X.dtype))

    def _summed(
        self,
        memory: GradientMemory,
        X: Any,
        y: Any,
        sample_weight: Any,
        coef: Any,
        intercept: float,
    ) -> tuple[GradientMemory, float, np.random.Generator]:
        """Memory after these rows, inherent noise seen in them, and what is left of the stream."""
        antithetic, (n, d) = self.noise == "antithetic", X.shape
        rng = copy.deepcopy(self._rng)
        # What is not finite shows in the sums
        with np.errstate(all="ignore"), blas_threads(self._sketch_size or d):
            loss = make_loss(self.loss, epsilon=self.epsilon, power=self.power)
            gradient, curvature = derivatives(X, y, loss, coef, intercept)
            seen = inherent_noise(
                self.inherent_variance, gradient, curvature, sample_weight, noise=self.noise
            )
            coefficients = row_coefficients(
                gradient,
                curvature,
                sample_weight,
                n_samples=n,
                noise=self.noise,
                n_redraws=self.n_redraws,
                distribution=self.noise_distribution,
                n_groups=N_GROUPS,
                rng=rng,
            )
            deal = rng if self.shuffle else None
            batch = batch_index(n, self.batch_size_, memory.offset, deal, in_blocks=antithetic)
            runs = batch_sums(
                X,
                coefficients,
                batch,
                batch_size=self.batch_size_,
                contiguous=not self.shuffle or self.batch_size_ == 1,
                has_intercept=memory.has_intercept,
                n_threads=effective_n_threads(),
                most=self._sketch_size,
            )
            memory = memory.add_sums(
                runs,
                batch,
                sample_weight,
                batch_size=self.batch_size_,
                residual=gradient,
                curvature=curvature,
            )
        return memory, seen, rng

    def _warn_of_failures(self, before: Any = None) -> None:
        """Warn of what `fit` can see, but for what the value before showed already."""
        known = set() if before is None else {failure.name for failure in failures(before)}
        for failure in failures(self.fitted_):
            if failure.visible_in_fit and failure.name not in known:
                warnings.warn(str(failure), CalibrationWarning, stacklevel=4)

    def _see_gradients(
        self,
        gradients: npt.NDArray[np.float64],
        antithetic: npt.NDArray[np.float64] | None,
        dtype: np.dtype[Any],
        *,
        batch_size: Any,
        has_intercept: bool,
    ) -> None:
        if self.inherent_variance == "estimate" and self.noise != "antithetic":
            raise ValueError(
                "inherent_variance='estimate' needs residuals, and gradients alone have none. Pass "
                "the variance, or use noise='antithetic', where it cancels."
            )
        d = gradients.shape[1] - has_intercept
        self._check_size(d)
        batch_size = check_scalar(batch_size, "batch_size", Integral, min_val=1)
        memory = self._memory
        if memory is None:
            self.n_features_in_ = d
            self.batch_size_ = batch_size
            memory = self._start(d, has_intercept=has_intercept and not self.assume_centered)
            memory.refuse_inherent(self.batch_size_)
        memory.check_law(self._law(), self.inherent_variance)
        memory.check_layout(d, self.n_features_in_, has_intercept=has_intercept)
        if batch_size != self.batch_size_:
            raise ValueError(
                f"batch_size={batch_size}, but gradients of {self.batch_size_} rows were seen "
                "before. Fit one estimator for each batch size and compare, they cannot be mixed."
            )
        used = slice(int(has_intercept and not memory.has_intercept), None)
        with blas_threads(self._sketch_size or d):
            memory = memory.in_unit(None)[0].add_gradients(
                gradients[:, used],
                None if antithetic is None else antithetic[:, used],
                batch_size=self.batch_size_,
            )
        self._conclude(memory.of_dtype(dtype))

    def _choose_batch_size(self, n: int, d: int, density: float = 1.0) -> int:
        return choose_batch_size(
            self.batch_size,
            n,
            d,
            noise=self.noise,
            sketch_size=self._sketch_size,
            density=density,
        )

    @property
    def _sketch_size(self) -> int | None:
        return None if self.n_components is None else sketch_size(self.n_components)

    def _check_size(self, d: int) -> None:
        """Raise ValueError for more features, or components, than there can be."""
        if self.n_components is None:
            refuse_wide(d, instead=_FEWER_FEATURES)
            return
        if self.n_components > d:
            raise ValueError(
                f"n_components={self.n_components} exceeds n_features={d}. Use fewer, or "
                "n_components=None for all of them."
            )
        if isinstance(self.shrinkage, str):
            raise ValueError(
                f"shrinkage={self.shrinkage!r} needs all gradients, and with n_components they are "
                "not kept. Use a number, or None."
            )
        check_whitening(self.whitening)
        if self.noise == "antithetic":
            return
        if self.correction == "gaussian":
            raise ValueError(
                "correction='gaussian' needs the inverse of the gradients' covariance, which "
                "n_components does not tell. Use noise='antithetic', or correction='auto'."
            )
        if isinstance(self.inherent_variance, str):
            raise ValueError(
                "inherent_variance='estimate' keeps noise and clean gradients side by side, and "
                "n_components their sum. Pass the variance, or use noise='antithetic'."
            )

    def _start(self, d: int, *, has_intercept: bool) -> GradientMemory:
        seed = self.random_state
        if not isinstance(seed, Integral):  # a stream of our own, so that a failed call can go back
            seed = int(as_generator(seed).integers(2**63))
        # Data made with the same seed must not share its numbers with the noise
        self._rng = np.random.default_rng([int(seed), *b"gradhess"])
        return GradientMemory.empty(
            d + has_intercept,
            noise=self.noise,
            noise_scale=float(self.noise_scale),
            has_intercept=has_intercept,
            keep=isinstance(self.shrinkage, str),
            inherent_variance=self.inherent_variance,
            kurtosis=3.0 if self.noise_distribution == "normal" else 1.0,
            law=self._law(),
            n_components=self.n_components,
        )

    @property
    def _memory(self) -> GradientMemory | None:
        return self.fitted_.memory if hasattr(self, "fitted_") else None

    def _conclude(self, memory: GradientMemory) -> None:
        what = memory, self.batch_size_, self.loss, self.correction, self.shrinkage
        if self.n_components is None:
            self.fitted_ = Fitted(*what)
        else:
            self.fitted_ = Components(*what, self.n_components)
        self.fitted_.check()

    def _law(self) -> tuple[str, ...]:
        return law_in_words(
            self.noise,
            self.noise_scale,
            self.loss,
            self.epsilon,
            self.assume_centered,
            self.n_components,
        )


def of_factor(
    make: Any,
    factor: npt.NDArray[np.float64],
    *,
    n_batches: int,
    n_samples: int,
    batch_size: int,
    has_intercept: bool,
    **params: Any,
) -> Any:
    """Return an estimator, made with these parameters, that has seen a sketch in factor form."""
    estimator: Accumulation = make(
        batch_size=batch_size, assume_centered=not has_intercept, **params
    )
    d = estimator.n_features_in_ = factor.shape[1] - has_intercept
    estimator.batch_size_ = batch_size
    memory = estimator._start(d, has_intercept=has_intercept)
    estimator._conclude(memory.with_factor(factor, n_batches=n_batches, n_samples=n_samples))
    return estimator
