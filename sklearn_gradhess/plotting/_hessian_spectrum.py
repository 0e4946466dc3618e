"""Eigenvalues of Hessians, and of what a preconditioner makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from sklearn.utils.validation import check_is_fitted

from sklearn_gradhess.covariance import GradientCovarianceEstimator
from sklearn_gradhess.plotting._inputs import (
    as_covariance,
    by_name,
    called,
    columns_of,
    eigenvalues,
    last_step,
)
from sklearn_gradhess.plotting._style import CurveDisplay, as_curves, as_numbers

__all__ = ["HessianSpectrumDisplay"]

Array = npt.NDArray[np.float64]
Limits = tuple[float, float] | None


class HessianSpectrumDisplay(CurveDisplay):
    r"""Eigenvalues in decreasing order, on a logarithmic axis.

    Make it with `from_estimator`, `from_estimators` or `from_covariances`, which also plot it. The
    parameters are kept as attributes of the same names. Values that a logarithmic axis cannot show,
    zero, negative or infinite, are left out, and the legend says how many.

    Parameters
    ----------
    eigenvalues : list of ndarray of shape (n_features,), or ndarray of shape (n_curves, n_features)
        Eigenvalues of each matrix, decreasing.
    low, high : list of ndarray, default=None
        Limits of the eigenvalues, drawn as a band; None in the list is no band for that curve, None
        for none at all. `high` may be infinite.
    names : list of str, default=None
        Names of the curves, for the legend.
    limits : list of (float, float), default=None
        Two horizontal lines for a curve, where theory has its smallest and its largest eigenvalue;
        None in the list is no line.
    relative : bool, default=False
        Whether the eigenvalues are those of ``P^-1 Sigma``, for the label of the axis.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        One for each curve.
    line_ : matplotlib Line2D
        The first of them, for displays of one curve.
    bands_ : list of matplotlib PolyCollection
        One for each curve that has limits.
    references_ : list of matplotlib Line2D
        Lines of `limits`.
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that holds the axes.

    See Also
    --------
    sklearn_gradhess.diagnostics.calibration_report : Rank and condition number, in numbers.

    Notes
    -----
    The band is multiplicative. k calibrated gradients in d features have the covariance ``S =
    Sigma^(1/2) W Sigma^(1/2)``, where W is that of k draws of identity covariance, with eigenvalues
    in ``[(1 - sqrt(c))^2, (1 + sqrt(c))^2]``, ``c = d/k``, whatever Sigma is (Marchenko and
    Pastur). By Ostrowski's theorem each ``eigenvalue_i(S) / eigenvalue_i(Sigma)`` lies in the same
    interval, so ``eigenvalue_i(Sigma)`` lies in ``eigenvalue_i(S)`` divided by it. Weyl's bound,
    the operator-norm error, also holds, but is one absolute number: of eigenvalues below
    ``expected_error_`` times the largest it says nothing.

    k is the effective number of gradients: ``sum(w)^2 / sum(w^2)`` for weights w, and ``n R/(n + R
    - 1)`` for R redraws of a batch of n rows, which are correlated by their rows.

    Limits are asymptotic: where all eigenvalues of Sigma are equal the outermost lie at the very
    edges of the band and step over now and then; the wider they spread, the more room it leaves.
    Sigma is that of the population that the rows were drawn from; heavy-tailed rows in small
    batches have no Gaussian gradients, and may leave the band. For k <= d + 1 there is no upper
    limit and no band is drawn; nor is there one for estimates that are shrunken, made without
    noise, or from single noise too far from the optimum to tell how far.

    References
    ----------
    MATH sections 2.3 and 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_gradhess import GradientCovarianceEstimator
    >>> from sklearn_gradhess.plotting import HessianSpectrumDisplay
    >>> X = np.random.default_rng(0).standard_normal((4000, 5)) * [1, 3, 10, 30, 100]
    >>> estimator = GradientCovarianceEstimator(batch_size=16, random_state=0).fit(X)
    >>> display = HessianSpectrumDisplay.from_estimator(
    ...     estimator, covariance=np.cov(X.T))  # doctest: +SKIP
    >>> display.figure_.savefig("spectrum.png")  # doctest: +SKIP
    >>> HessianSpectrumDisplay(eigenvalues=[[4.0, 1.0]], names=["Hessian"])
    <HessianSpectrumDisplay of 1 curve (Hessian): 2 eigenvalues from 1 to 4>
    """

    def __init__(
        self,
        *,
        eigenvalues: Sequence[npt.ArrayLike],
        low: Sequence[npt.ArrayLike | None] | None = None,
        high: Sequence[npt.ArrayLike | None] | None = None,
        names: list[str] | None = None,
        limits: Sequence[Limits] | None = None,
        relative: bool = False,
    ) -> None:
        self.eigenvalues = eigenvalues
        self.low = low
        self.high = high
        self.names = names
        self.limits = limits
        self.relative = relative

    def _curves(self) -> tuple[Sequence[Array], Sequence[Array]]:
        curves = as_curves(self.eigenvalues, "eigenvalues")
        if not curves or any(curve.ndim != 1 or not len(curve) for curve in curves):
            raise ValueError(
                f"eigenvalues has curves of shapes {[curve.shape for curve in curves]}: pass a "
                "list of one-dimensional arrays, [values] for one curve."
            )
        return [np.arange(1.0, len(curve) + 1) for curve in curves], curves

    def _limits(self) -> tuple[Any, Any, str]:
        return self.low, self.high, "expected from the number of gradients"

    def _dress(self, ax: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        limits = self._each(self.limits, "limits", len(self.lines_))
        for i, pair in enumerate(limits):
            if pair is not None and as_numbers(pair, f"limits[{i}]").shape != (2,):
                raise ValueError(f"limits[{i}] must be a pair of numbers or None, got {pair!r}.")
        pairs = [() if pair is None else tuple(map(float, pair)) for pair in limits]
        label = "limits, inverse Marchenko-Pastur law"
        self._refer(ax, "horizontal", pairs, label, linestyle=":")
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
        what = r"Eigenvalue of $P^{-1}\Sigma$" if self.relative else "Eigenvalue of the Hessian"
        ax.set(xlabel="Index, in decreasing order", ylabel=what)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        covariance: Any = None,
        relative_to: Any = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the spectrum of a fitted estimator, with a band for what k gradients leave open.

        Parameters
        ----------
        estimator : GradientCovarianceEstimator
            Fitted estimator; any other with a `covariance_` is drawn without band.
        covariance : array-like of shape (n_features, n_features) or estimator, default=None
            The truth, drawn beside it.
        relative_to : array-like of shape (n_features, n_features) or estimator, default=None
            Sigma, a true Hessian, for the spectrum of ``P^-1 Sigma``, see `from_estimators`.
        name : str, default=None
            Name of the curve. None is the name of the class.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : HessianSpectrumDisplay
            The display, plotted.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If the estimator has no `covariance_`, or `plot` would refuse an argument.
        ValueError
            If a matrix is no covariance of as many features.
        """
        cls._ready("from_estimator", ax, kwargs)
        return cls.from_estimators(
            {type(estimator).__name__ if name is None else name: estimator},
            covariance=covariance,
            relative_to=relative_to,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Any,
        *,
        covariance: Any = None,
        relative_to: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the spectra of several fitted estimators.

        Parameters
        ----------
        estimators : dict of str to estimator, or list of estimators
            Fitted estimators by name, of the same features.
        covariance : array-like of shape (n_features, n_features) or estimator, default=None
            The truth, drawn beside them.
        relative_to : array-like of shape (n_features, n_features) or estimator, default=None
            Sigma, a true Hessian: draw the spectrum of ``P^-1 Sigma``, P the covariance of each
            estimator, which tells how fast descent with that preconditioner converges. With k
            gradients in d features P^-1 is multiplied by ``(k-d-1)/k``, which makes it unbiased,
            and the limits of its law, ``(1-c)/(1 +- sqrt(c))^2`` with ``c = d/k``, are drawn.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : HessianSpectrumDisplay
            The display, plotted.

        Raises
        ------
        NotFittedError
            If an estimator is not fitted.
        TypeError
            If `estimators` is one estimator, one has no `covariance_`, or `plot` would refuse an
            argument.
        ValueError
            If there is no estimator, or a matrix is no covariance of as many features; if an
            estimator has the name of the given covariance, or was fitted with `n_components`.
        """
        cls._ready("from_estimators", ax, kwargs)
        named, truth = by_name(estimators), "Given covariance"
        if covariance is not None and truth in named:
            raise ValueError(
                f"An estimator is called {truth!r}, as is the matrix in covariance=. Give the "
                "estimator another name."
            )
        matrices, spreads = {}, []
        for name, estimator in named.items():
            check_is_fitted(estimator)
            if not hasattr(estimator, "covariance_"):
                if getattr(estimator, "n_components", None) is not None:
                    raise ValueError(
                        f"{called(name, estimator)} has n_components={estimator.n_components}, and "
                        "a spectrum is of all components. Fit it with n_components=None."
                    )
                raise TypeError(
                    f"{called(name, estimator)} has no covariance_. Pass a fitted "
                    "GradientCovarianceEstimator; of a fitted model its covariance_estimator_."
                    f"{last_step(estimator)}"
                )
            matrices[name] = estimator
            spreads.append(_spread(estimator))
        if covariance is not None:
            as_covariance(covariance, "covariance", len(estimator.covariance_))
            matrices[truth] = covariance
            spreads.append(None)
        return cls._of(matrices, spreads, relative_to).plot(ax, **kwargs)

    @classmethod
    def from_covariances(
        cls,
        covariances: dict[str, Any],
        *,
        relative_to: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the spectra of matrices, without bands.

        Parameters
        ----------
        covariances : dict of str to array-like of shape (n_features, n_features)
            Symmetric matrices by name.
        relative_to : array-like of shape (n_features, n_features) or estimator, default=None
            Sigma, a true Hessian: draw the spectrum of ``P^-1 Sigma`` for each matrix P.
            Named columns are matched by name.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : HessianSpectrumDisplay
            The display, plotted.

        Raises
        ------
        TypeError
            If `covariances` is no dict, or `plot` would refuse an argument.
        ValueError
            If it is empty, or a matrix is not symmetric or of another size than `relative_to`.
        """
        cls._ready("from_covariances", ax, kwargs)
        if not hasattr(covariances, "items"):
            raise TypeError(
                "covariances must be a dict of matrices by name, got "
                f'{type(covariances).__name__}. Pass {{"name": matrix}}.'
            )
        if not covariances:
            raise ValueError('covariances is empty. Pass {"name": matrix}.')
        return cls._of(covariances, [None] * len(covariances), relative_to).plot(ax, **kwargs)

    @classmethod
    def _of(cls, matrices: dict[str, Any], spreads: list[_Spread | None], relative_to: Any) -> Self:
        d, columns = None, columns_of(relative_to)
        if relative_to is not None:
            relative_to = as_covariance(relative_to, "relative_to")
            d = len(relative_to)
        checked = [
            as_covariance(matrix, repr(name), d, columns) for name, matrix in matrices.items()
        ]
        if relative_to is None:
            spectra = [eigenvalues(matrix) for matrix in checked]
            pairs = list(zip(spectra, spreads, strict=True))
            return cls(
                eigenvalues=spectra,
                low=[None if s is None else values / s.high for values, s in pairs],
                high=[None if s is None else values / s.low for values, s in pairs],
                names=list(matrices),
            )
        return cls(
            eigenvalues=[
                _relative(matrix, relative_to) * (1.0 if s is None else s.debias)
                for matrix, s in zip(checked, spreads, strict=True)
            ],
            names=list(matrices),
            limits=[None if s is None else s.law for s in spreads],
            relative=True,
        )

    def __repr__(self) -> str:
        curves = self._curves()[1]
        values, sizes = np.concatenate(curves), sorted({len(curve) for curve in curves})
        return (
            f"<HessianSpectrumDisplay of {self._described(len(curves))}: "
            f"{' or '.join(map(str, sizes))} eigenvalues from {values.min():g} to "
            f"{values.max():g}>"
        )


@dataclass(frozen=True)
class _Spread:
    """What theory has for an estimate P of Sigma from k gradients in d features.

    Attributes
    ----------
    low, high : float
        Limits of ``eigenvalue_i(P) / eigenvalue_i(Sigma)``.
    debias : float
        Factor that makes ``P^-1`` unbiased.
    law : (float, float)
        Limits of the eigenvalues of the unbiased ``P^-1 Sigma``.
    """

    low: float
    high: float
    debias: float
    law: tuple[float, float]


def _spread(estimator: Any) -> _Spread | None:
    if not isinstance(estimator, GradientCovarianceEstimator):
        return None
    fitted = estimator.fitted_
    if fitted.noise == "none" or fitted.shrinkage:
        return None
    d, k = fitted.n_features, fitted.n_effective
    if k <= d + 1:
        return None
    c = d / k
    low, high = (1 - np.sqrt(c)) ** 2, (1 + np.sqrt(c)) ** 2
    law = (1 - c) / high, (1 - c) / low
    if fitted.noise == "single":
        least, greatest = fitted.nuisance
        lightest, heaviest = fitted.scale_limits
        if not (greatest < np.inf and heaviest < np.inf):
            return None
        if fitted.correction == "none":
            low, high = low * (1 + least), high * (1 + greatest)
        else:  # removed with the fluctuations of what it was seen in, at a scale of its own error
            c *= (1 + 6 / fitted.settled.rows) * ((1 + greatest) / (1 + least)) ** 2
            low = max(1 - np.sqrt(c), 0.0) ** 2 / heaviest
            high = (1 + np.sqrt(c)) ** 2 / lightest
    return _Spread(low, high, (k - d - 1) / k, law)


def _relative(matrix: Array, truth: Array) -> Array:
    """Eigenvalues of ``matrix^-1 truth``, decreasing; infinite where the matrix is singular."""
    deviation = np.sqrt(np.maximum(np.diag(truth), 0.0)).astype(np.float64)
    # Scaling both changes no eigenvalue, and no feature's unit then drowns another's
    unit = np.outer(deviation, deviation) if deviation.all() else 1.0
    smallest, largest = np.linalg.eigvalsh(truth / unit)[[0, -1]]
    if not smallest > len(truth) * np.finfo(truth.dtype).eps * largest:
        raise ValueError(
            f"relative_to is not positive definite: scaled to unit variances its eigenvalues go "
            f"from {smallest:.3g} to {largest:.3g}. Leave out features that are constant or "
            "combinations of others, or add a multiple of the identity."
        )
    inverse = eigh(matrix / unit, truth / unit, eigvals_only=True)
    rounding = len(inverse) * np.finfo(matrix.dtype).eps * np.abs(inverse).max()
    with np.errstate(divide="ignore"):
        values = 1 / np.where(np.abs(inverse) <= rounding, 0.0, inverse)
    return np.sort(values)[::-1]
