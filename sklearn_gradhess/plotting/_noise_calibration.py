"""Error of the Hessian against the noise that was injected: the V."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.utils import check_scalar

from sklearn_gradhess.covariance import GradientCovarianceEstimator
from sklearn_gradhess.diagnostics import expected_relative_error
from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.noise import as_generator
from sklearn_gradhess.plotting._inputs import (
    as_covariance,
    as_increasing,
    by_name,
    columns_of,
    eigenvalues,
)
from sklearn_gradhess.plotting._style import CurveDisplay, as_numbers, as_rows, curves_of

__all__ = ["NoiseCalibrationDisplay"]

Array = npt.NDArray[np.float64]
# Injected variances by default, as multiples of the batch size: two a factor of two
_MULTIPLES = np.append(0.0, 2.0 ** (np.arange(-8, 9) / 2))


class NoiseCalibrationDisplay(CurveDisplay):
    r"""Error of the gradients' covariance against the variance of the injected noise: the V.

    Make it with `from_estimator` or `from_estimators`, which also plot it. The parameters are kept
    as attributes of the same names. Axes are logarithmic, with zero variance at the left edge.

    Parameters
    ----------
    variance : ndarray of shape (n_variances,) or (n_curves, n_variances)
        Variance of the noise that was injected into the targets, increasing; zero is allowed.
    error : ndarray of shape (n_variances,) or (n_curves, n_variances)
        Relative error of the covariance of the gradients, in operator norm.
    low, high : ndarray of the shape of `error`, default=None
        Limits of the error, drawn as a band. None is no band.
    names : list of str, default=None
        Names of the curves, for the legend.
    batch_size : int or array-like of shape (n_curves,), default=None
        Rows in a batch, n. With it variances are drawn as multiples of n. None draws them as they
        are, without the calibrated one.
    floor : float or array-like of shape (n_curves,), default=None
        Error that sampling alone is expected to leave, drawn as a horizontal line.
    inherent_variance : float or array-like of shape (n_curves,), default=0.0
        Noise that is in the targets already. The calibrated variance, a vertical line, is n less
        this much.
    n_repeats : int, default=None
        Repeats behind the band, for the legend.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        One for each curve.
    line_ : matplotlib Line2D
        The first of them, for displays of one curve.
    bands_ : list of matplotlib PolyCollection
        One for each curve, where there are limits.
    references_ : list of matplotlib Line2D
        The calibrated variance and the expected sampling error, one line for each curve, or for
        all where they agree.
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that holds the axes.

    See Also
    --------
    sklearn_gradhess.noise.calibrated_variance : The variance at the bottom of the V.
    sklearn_gradhess.diagnostics.expected_relative_error : The expected sampling error.

    References
    ----------
    arXiv 2601.18546, Lemma 4.2; MATH section 2.

    Examples
    --------
    >>> from sklearn_gradhess import GradientCovarianceEstimator
    >>> from sklearn_gradhess.datasets import make_hessian_regression
    >>> from sklearn_gradhess.plotting import NoiseCalibrationDisplay
    >>> data = make_hessian_regression(32_000, 5, random_state=0)
    >>> estimator = GradientCovarianceEstimator(batch_size=64, noise="single")
    >>> display = NoiseCalibrationDisplay.from_estimator(
    ...     estimator, data.data, data.target, coef=data.coef, covariance=data.covariance,
    ...     random_state=0)  # doctest: +SKIP
    >>> display.figure_.savefig("v.png")  # doctest: +SKIP
    >>> NoiseCalibrationDisplay(variance=[0, 32, 64], error=[1.0, 0.5, 0.1], batch_size=64)
    <NoiseCalibrationDisplay of 1 curve at 3 variances from 0 to 64, batch size 64>
    """

    def __init__(
        self,
        *,
        variance: npt.ArrayLike,
        error: npt.ArrayLike,
        low: npt.ArrayLike | None = None,
        high: npt.ArrayLike | None = None,
        names: list[str] | None = None,
        batch_size: npt.ArrayLike | None = None,
        floor: npt.ArrayLike | None = None,
        inherent_variance: npt.ArrayLike = 0.0,
        n_repeats: int | None = None,
    ) -> None:
        self.variance = variance
        self.error = error
        self.low = low
        self.high = high
        self.names = names
        self.batch_size = batch_size
        self.floor = floor
        self.inherent_variance = inherent_variance
        self.n_repeats = n_repeats

    def _curves(self) -> tuple[Sequence[Array], Sequence[Array]]:
        error, variance = as_rows(self.error, "error"), as_rows(self.variance, "variance")
        if variance.shape not in (error.shape, (1, *error.shape[1:])):
            raise ValueError(
                f"variance has shape {np.shape(self.variance)}, error {np.shape(self.error)}: pass "
                "one variance for each point, the same for all curves or a row for each."
            )
        return list(variance / self._unit(len(error))[:, None]), error

    def _unit(self, n_curves: int) -> Array:
        unit = self._for_each(
            1.0 if self.batch_size is None else self.batch_size, "batch_size", n_curves
        )
        if not np.all(unit > 0):
            raise ValueError(f"batch_size must be > 0, got {self.batch_size!r}.")
        return unit

    def _limits(self) -> tuple[Any, Any, str]:
        repeats = "the repeats" if self.n_repeats is None else f"{self.n_repeats} repeats"
        return as_rows(self.low, "low"), as_rows(self.high, "high"), f"range of {repeats}"

    def _dress(self, ax: Any) -> None:
        self._scale(ax)
        t = len(self.lines_)
        if self.batch_size is not None:
            inherent = self._for_each(self.inherent_variance, "inherent_variance", t)
            label = "calibrated, n less the inherent noise" if inherent.any() else "calibrated, n"
            calibrated = [(float(v),) for v in 1 - inherent / self._unit(t)]
            self._refer(ax, "vertical", calibrated, label, linestyle="-")
        if self.floor is not None:
            label = "expected sampling error"
            floors = [(float(v),) for v in self._for_each(self.floor, "floor", t)]
            self._refer(ax, "horizontal", floors, label, linestyle=":")
        unit = "" if self.batch_size is None else " / batch size n"
        ax.set(xlabel=f"Injected noise variance{unit}", ylabel="Relative error, operator norm")

    @staticmethod
    def _for_each(values: Any, name: str, n_curves: int) -> Array:
        found = as_numbers(values, name)
        if found.shape not in ((), (1,), (n_curves,)):
            raise ValueError(
                f"{name} has shape {found.shape} for {n_curves} curve(s): pass one number for all, "
                "or one for each."
            )
        return np.broadcast_to(found, n_curves)

    @staticmethod
    def _scale(ax: Any) -> None:
        """Make the axis of variances logarithmic, where there is zero up to the smallest other."""
        from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

        x = np.concatenate([line.get_xdata() for line in curves_of(ax)])
        positive = x[x > 0]
        if not len(positive):
            return
        low, high = positive.min(), positive.max()
        if x.min() == 0:
            ax.set_xscale("symlog", linthresh=low, linscale=0.3)
        else:
            ax.set_xscale("log")
        base = 10.0 if high >= 100 * low else 2.0
        ends = np.log([low, high]) / np.log(base)
        exponents = np.arange(np.ceil(ends[0] - 1e-9), np.floor(ends[1] + 1e-9) + 1)
        ticks = base**exponents if len(exponents) > 1 else np.unique([low, high])
        zero = [0.0] if x.min() == 0 else []
        ax.xaxis.set_major_locator(FixedLocator([*zero, *ticks.tolist()]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        coef: npt.ArrayLike | None = None,
        intercept: float = 0.0,
        variances: npt.ArrayLike | None = None,
        covariance: Any = None,
        n_repeats: int = 5,
        sample_weight: npt.ArrayLike | None = None,
        random_state: Any = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        r"""Refit an estimator with noise of several variances, and plot its errors.

        The error is that of S_g, the covariance of the gradients with nothing divided out and
        nothing corrected: ``||S_g - Hessian|| / ||Hessian||``. For features that are not centred
        the intercept is eliminated from both. Single noise, for Gaussian features, has ``S_g =
        (v + s^2 + m^2)/n Hessian`` plus a term of rank one and size ``m^2/n``, v the injected
        variance: the minimum is between ``n - s^2 - 2 m^2`` and ``n - s^2 - m^2``, as the term of
        rank one has to be made up for. Antithetic noise has ``S_g = v/n Hessian``,
        off by its scale alone and with the minimum at n always.

        Parameters
        ----------
        estimator : GradientCovarianceEstimator
            Estimator with noise="single" or "antithetic", fitted or not; it is cloned. Its
            `noise_scale`, `correction` and `shrinkage` are not used: they make up for what is
            shown here.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,), default=None
            Targets. None stands for targets that the coefficients predict exactly.
        coef : array-like of shape (n_features,), default=None
            Coefficients at which gradients are taken; None is zero.
        intercept : float, default=0.0
            Intercept at which gradients are taken.
        variances : array-like of shape (n_variances,), default=None
            Variances to inject (per unit of curvature, where the loss is not squared), increasing.
            None is zero and 17 from n/16 to 16 n.
        covariance : array-like of shape (n_features, n_features) or estimator, default=None
            The true Hessian, or a fitted estimator of it. None is that of the rows themselves.
        n_repeats : int, default=5
            Repeats with other noise and other batches, the same for each variance. The curve is
            their mean, the band their range; rows and targets stay the same.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        random_state : int, RandomState instance, Generator or None, default=None
            Source of the seeds of the repeats.
        name : str, default=None
            Name of the curve. None is the noise scheme.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : NoiseCalibrationDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If the estimator is another one, or `plot` would refuse an argument.
        ValueError
            If the estimator injects no noise, or an argument is out of range.
        """
        cls._ready("from_estimator", ax, kwargs)
        _check_estimator(estimator)
        return cls.from_estimators(
            {f"{estimator.noise} noise" if name is None else name: estimator},
            X,
            y,
            coef=coef,
            intercept=intercept,
            variances=variances,
            covariance=covariance,
            n_repeats=n_repeats,
            sample_weight=sample_weight,
            random_state=random_state,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Any,
        X: Any,
        y: Any = None,
        *,
        coef: npt.ArrayLike | None = None,
        intercept: float = 0.0,
        variances: npt.ArrayLike | None = None,
        covariance: Any = None,
        n_repeats: int = 5,
        sample_weight: npt.ArrayLike | None = None,
        random_state: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Refit several estimators with noise of several variances, and plot their errors.

        Parameters
        ----------
        estimators : dict of str to GradientCovarianceEstimator, or list of them
            Estimators by name, fitted or not.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,), default=None
            Targets. None stands for targets that the coefficients predict exactly.
        coef : array-like of shape (n_features,), default=None
            Coefficients at which gradients are taken; None is zero.
        intercept : float, default=0.0
            Intercept at which gradients are taken.
        variances : array-like of shape (n_variances,), default=None
            Variances to inject, increasing. None is zero and 17 from n/16 to 16 n, n the batch size
            of each estimator.
        covariance : array-like of shape (n_features, n_features) or estimator, default=None
            The true Hessian. None is that of the rows themselves.
        n_repeats : int, default=5
            Repeats with other noise and other batches, the same for each variance and estimator.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        random_state : int, RandomState instance, Generator or None, default=None
            Source of the seeds of the repeats.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : NoiseCalibrationDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If `estimators` is one estimator, or one of them is no GradientCovarianceEstimator,
            or `plot` would refuse an argument.
        ValueError
            If there is no estimator, one injects no noise, or an argument is out of range.
        """
        cls._ready("from_estimators", ax, kwargs)
        named = by_name(estimators)
        check_scalar(n_repeats, "n_repeats", Integral, min_val=1)
        if variances is not None:
            variances = as_increasing(variances, "variances", "[0, 64, 128, 256]")
        seeds = as_generator(random_state).integers(2**31, size=n_repeats).tolist()
        data = {"X": X, "y": y, "sample_weight": sample_weight, "coef": coef}
        data["intercept"] = intercept
        swept = [
            _sweep(estimator, data, variances, covariance, seeds) for estimator in named.values()
        ]
        variance, errors, batch_size, inherent, floor = (
            np.array(part if len(part) > 1 else part[0]) for part in zip(*swept, strict=True)
        )
        display = cls(
            variance=variance,
            error=errors.mean(axis=-1),
            low=errors.min(axis=-1) if n_repeats > 1 else None,
            high=errors.max(axis=-1) if n_repeats > 1 else None,
            names=list(named),
            batch_size=batch_size,
            floor=floor,
            inherent_variance=inherent,
            n_repeats=n_repeats,
        )
        return display.plot(ax, **kwargs)

    def __repr__(self) -> str:
        v, n = (
            np.asarray(self.variance),
            np.unique([] if self.batch_size is None else self.batch_size),
        )
        size = f", batch size {' and '.join(f'{size:g}' for size in n)}" if len(n) else ""
        return (
            f"<NoiseCalibrationDisplay of {self._described(len(as_rows(self.error, 'error')))} at "
            f"{v.shape[-1]} variances from {v.min():g} to {v.max():g}{size}>"
        )


def _sweep(
    estimator: Any,
    data: dict[str, Any],
    variances: Array | None,
    covariance: Any,
    seeds: list[int],
) -> tuple[Array, Array, int, float, float]:
    """Errors of shape (n_variances, n_repeats), with what else the display shows."""
    _check_estimator(estimator)
    plain = clone(estimator).set_params(
        noise_scale=1.0, correction="none", shrinkage=None, store_precision=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # the picture is about bad calibration
        reference = clone(plain).set_params(random_state=seeds[0]).fit(**data)
        n, k = reference.batch_size_, reference.fitted_.n_effective
        hessian = _truth(plain, data, covariance, reference.n_features_in_)
        norm = np.linalg.norm(hessian, 2)
        variances = n * _MULTIPLES if variances is None else variances
        plain.set_params(batch_size=n, inherent_variance=0.0)
        errors = np.array(
            [
                [np.linalg.norm(_seen(plain, data, v, seed) - hessian, 2) / norm for seed in seeds]
                for v in variances
            ]
        )
    floor = expected_relative_error(np.maximum(eigenvalues(hessian), 0.0), k)
    return variances, errors, n, n - reference.noise_variance_, float(np.asarray(floor))


def _check_estimator(estimator: Any) -> None:
    if not isinstance(estimator, GradientCovarianceEstimator):
        raise TypeError(
            "NoiseCalibrationDisplay refits a GradientCovarianceEstimator, got "
            f"{type(estimator).__name__}. Of a fitted model pass its covariance_estimator_."
        )
    if estimator.n_components is not None:
        raise ValueError(
            f"NoiseCalibrationDisplay compares whole covariances, and n_components="
            f"{estimator.n_components} keeps a part of one. Use n_components=None."
        )
    if estimator.noise == "none":
        raise ValueError(
            "noise='none' injects no noise, so its error is one number, not a curve. Use "
            "noise='single' or noise='antithetic': their curves begin at variance zero."
        )


def _truth(estimator: Any, data: dict[str, Any], covariance: Any, d: int) -> Array:
    """Return the Hessian as given, or that of the rows: exact with one row a batch."""
    if covariance is None:
        exact = clone(estimator).set_params(
            batch_size=1,
            noise="antithetic",
            noise_distribution="rademacher",
            n_redraws=1,
            shuffle=False,
        )
        covariance = exact.fit(**data).covariance_
    hessian = as_covariance(covariance, "covariance", d, columns_of(data.get("X")))
    if not hessian.any():
        raise ValueError(
            "The covariance to compare with is zero, so no error is relative to it. Are all "
            "features constant?"
        )
    return hessian


def _seen(estimator: Any, data: dict[str, Any], variance: float, seed: int) -> Array:
    """Covariance of the gradients at one injected variance, the intercept eliminated."""
    n, single = estimator.batch_size, estimator.noise == "single"
    refit = clone(estimator).set_params(random_state=seed)
    if variance > 0:
        scale = variance / n
        return np.asarray(refit.set_params(noise_scale=scale).fit(**data).covariance_ * scale)
    if not single:  # half differences of equal gradients
        return np.zeros(())
    return np.asarray(refit.set_params(noise="none").fit(**data).covariance_)
