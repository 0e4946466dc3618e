"""Risk of models against the radius of an attack."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sklearn_gradhess.metrics import (
    certified_radius,
    gradient_adversarial_risk,
    make_adversarial_scorer,
)
from sklearn_gradhess.plotting._inputs import as_radii, by_name, each, radius_unit
from sklearn_gradhess.plotting._risk_curves import RiskCurves, of_constant

__all__ = ["AdversarialRiskDisplay"]

Array = npt.NDArray[np.float64]


class AdversarialRiskDisplay(RiskCurves):
    """Risk of one or several models against the radius of an attack.

    Make it with `from_estimator`, `from_estimators`, `from_certified` or `from_gradients`, which
    also plot it. The parameters are kept as attributes of the same names.

    Parameters
    ----------
    radii : ndarray of shape (n_radii,)
        Radii of the attack.
    value : ndarray of shape (n_radii,) or (n_curves, n_radii)
        Risk, or accuracy, at each radius.
    low, high : ndarray of the shape of `value`, default=None
        Limits of the value, drawn as a band; `high` may be infinite. None is no band.
    names : list of str, default=None
        Names of the curves, for the legend.
    metric : str, default="mse"
        What the value is, for the label of its axis: a metric of `make_adversarial_scorer`, or
        "certified" or "certified right".
    norm : float >= 1, inf or "mahalanobis", default=2
        Norm of the attack, for the label of the other axis.
    radius_unit : str, default="units of X"
        Unit of the radius, for the same label.
    confidence_level : float, default=None
        Nominal coverage of the band, for the legend.
    constant : float, default=None
        The same metric of the best constant prediction, which no attack changes. Where a curve is
        past it, a line is drawn there, with a remark. None is no such remark.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        One for each curve.
    line_ : matplotlib Line2D
        The first of them, for displays of one curve.
    bands_ : list of matplotlib PolyCollection
        One for each curve, where there are limits.
    worse_from_ : list of float
        Radius from which on each curve is past `constant`, infinite where it nowhere is.
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that holds the axes.

    See Also
    --------
    sklearn_gradhess.metrics.make_adversarial_scorer : The same risk at one radius, as a scorer.
    sklearn_gradhess.metrics.gradient_adversarial_risk : The estimate with a band, in numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_gradhess.plotting import AdversarialRiskDisplay
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> models = {f"alpha={alpha}": Ridge(alpha).fit(X, y) for alpha in (1, 100)}
    >>> scale = X.std(axis=0)
    >>> display = AdversarialRiskDisplay.from_estimators(
    ...     models, X, y, feature_scale=scale)  # doctest: +SKIP
    >>> display.figure_.savefig("risk.png")  # doctest: +SKIP
    """

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        radii: npt.ArrayLike | None = None,
        norm: float | str = 2,
        metric: str = "mse",
        feature_scale: Any = None,
        features: Any = None,
        bounds: Any = None,
        covariance: Any = None,
        n_columns: int | None = None,
        categories: Any = None,
        integer: Any = "auto",
        link: str = "auto",
        on_nonaffine: str = "raise",
        quantile: float = 0.5,
        max_queries: int = 200,
        random_state: Any = 0,
        sample_weight: npt.ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the risk of a fitted model under attack.

        Exact where the model is affine, or affine behind a link; the legend says what it is
        elsewhere. A dotted line marks the best constant prediction where the risk goes past it.

        Parameters
        ----------
        estimator : object
            Fitted regressor or classifier; whole pipelines included.
        X : {array-like, sparse matrix, DataFrame} of shape (n_samples, n_features)
            Rows, in raw units.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        radii : array-like of shape (n_radii,), default=None
            Radii of the attack, increasing. None is 51 from 0 to one unit of `feature_scale` or X.
        norm : float >= 1, inf or "mahalanobis", default=2
            Norm of the attack.
        metric : str, default="mse"
            A metric of `make_adversarial_scorer`.
        feature_scale : float, dict, or array-like of shape (n_features,), default=None
            Unit of the radius in each column, by position or by name; zero freezes the column.
        features : array-like of str, int or bool, default=None
            Columns that may be attacked, by name, position or mask. None is every column of
            numbers.
        bounds : tuple of two, default=None
            Lowest and highest value that a column may take after the attack, for norm=inf.
        covariance : array-like of shape (n_features, n_features) or estimator, default=None
            Covariance of the Mahalanobis norm, see `make_adversarial_scorer`.
        n_columns, categories : int and list or dict, default=None
            Most columns that move in a row, and categories that change, see
            `make_adversarial_scorer`.
        integer, link : str, default="auto"
            Columns that move by whole steps, and what is affine, see `make_adversarial_scorer`.
        on_nonaffine : {"raise", "linearize", "search"}, default="raise"
            What to do with a model that is not affine. "linearize" plots a first-order value, which
            is no bound; "search" a lower bound of the risk.
        quantile : float, default=0.5
            For metric="quantile".
        max_queries : int, default=200
            Most predictions that a search spends on each row, for each radius.
        random_state : int, RandomState instance or None, default=0
            Of a search.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        name : str, default=None
            Name of the curve. None is the name of the class.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : AdversarialRiskDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If radii are not increasing from zero or more, or the model or the attack is not as
            `make_adversarial_scorer` needs them.
        TypeError
            If `plot` would refuse an argument.
        """
        cls._ready("from_estimator", ax, kwargs)
        return cls.from_estimators(
            {type(estimator).__name__ if name is None else name: estimator},
            X,
            y,
            radii=radii,
            norm=norm,
            metric=metric,
            feature_scale=feature_scale,
            features=features,
            bounds=bounds,
            covariance=covariance,
            n_columns=n_columns,
            categories=categories,
            integer=integer,
            link=link,
            on_nonaffine=on_nonaffine,
            quantile=quantile,
            max_queries=max_queries,
            random_state=random_state,
            sample_weight=sample_weight,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Any,
        X: Any,
        y: Any,
        *,
        radii: npt.ArrayLike | None = None,
        norm: float | str = 2,
        metric: str = "mse",
        feature_scale: Any = None,
        features: Any = None,
        bounds: Any = None,
        covariance: Any = None,
        n_columns: int | None = None,
        categories: Any = None,
        integer: Any = "auto",
        link: str = "auto",
        on_nonaffine: str = "raise",
        quantile: float = 0.5,
        max_queries: int = 200,
        random_state: Any = 0,
        sample_weight: npt.ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the risks of several fitted models under the same attack, as `from_estimator` does.

        Parameters
        ----------
        estimators : dict of str to object, or list of object
            Fitted models by name. In a list they are called by their classes, with a number where
            a class comes twice.
        X, y : array-like
            Rows, in raw units, and targets.
        radii : array-like of shape (n_radii,), default=None
            Radii of the attack, increasing. None is 51 radii from 0 to 1.
        norm : float >= 1, inf or "mahalanobis", default=2
            Norm of the attack.
        metric : str, default="mse"
            A metric of `make_adversarial_scorer`.
        feature_scale, features, bounds, covariance, n_columns, categories : object, default=None
            What the attack may do, as in `from_estimator`.
        integer, link : str, default="auto"
            Columns that move by whole steps, and what is affine.
        on_nonaffine : {"raise", "linearize", "search"}, default="raise"
            What to do with a model that is not affine.
        quantile : float, default=0.5
            For metric="quantile".
        max_queries : int, default=200
            Most predictions that a search spends on each row, for each radius.
        random_state : int, RandomState instance or None, default=0
            Of a search.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : AdversarialRiskDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If there is no model, radii are not increasing from zero or more, or a model or the
            attack is not as `make_adversarial_scorer` needs them.
        TypeError
            If `estimators` is one model, or `plot` would refuse an argument.
        """
        cls._ready("from_estimators", ax, kwargs)
        named, radii = by_name(estimators), as_radii(radii)
        scorer = make_adversarial_scorer(
            0.0,
            norm,
            metric=metric,
            feature_scale=feature_scale,
            features=features,
            bounds=bounds,
            covariance=covariance,
            n_columns=n_columns,
            categories=categories,
            integer=integer,
            link=link,
            on_nonaffine=on_nonaffine,
            quantile=quantile,
            max_queries=max_queries,
            random_state=random_state,
        )
        found = each(named, lambda model: scorer.explain(model, X, y, radii, sample_weight))
        curves = [risk.value for risk in found.values()]
        display = cls(
            radii=radii,
            value=np.array(curves if len(curves) > 1 else curves[0]),
            names=[n if r.kind == "exact" else f"{n} ({r.kind})" for n, r in found.items()],
            metric=metric,
            norm=norm,
            radius_unit=radius_unit(feature_scale, "feature_scale"),
            constant=of_constant(metric, quantile, X, y, sample_weight),
        )
        return display.plot(ax, **kwargs)

    @classmethod
    def from_certified(
        cls,
        estimators: Any,
        X: Any,
        y: Any = None,
        *,
        radii: npt.ArrayLike | None = None,
        norm: float | str = 2,
        feature_scale: Any = None,
        features: Any = None,
        bounds: Any = None,
        covariance: Any = None,
        n_columns: int | None = None,
        categories: Any = None,
        integer: Any = "auto",
        link: str = "auto",
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the share of rows whose class no attack changes, against the radius.

        Parameters
        ----------
        estimators : object, dict of str to object, or list of object
            Fitted linear classifier, or several, as in `from_estimators`.
        X : array-like
            Rows, in raw units.
        y : array-like of shape (n_samples,), default=None
            Labels. With them rows that are classified wrong do not count: the curve is that of the
            adversarial accuracy.
        radii : array-like of shape (n_radii,), default=None
            Radii of the attack, increasing. None is 201 radii from 0 to where one row in a hundred
            is left, or all that can change have.
        norm : float >= 1, inf or "mahalanobis", default=2
            Norm of the attack.
        feature_scale, features, bounds, covariance, n_columns, categories : object, default=None
            What the attack may do, as in `from_estimator`.
        integer, link : str, default="auto"
            Columns that move by whole steps, and what is affine.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : AdversarialRiskDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If radii are not increasing from zero or more, or `certified_radius` refuses a model or
            the attack.
        TypeError
            If `plot` would refuse an argument.
        """
        cls._ready("from_certified", ax, kwargs)
        named = by_name([estimators] if hasattr(estimators, "predict") else estimators)
        found = each(
            named,
            lambda model: certified_radius(
                model,
                X,
                y,
                norm=norm,
                scale=feature_scale,
                covariance=covariance,
                features=features,
                bounds=bounds,
                n_columns=n_columns,
                integer=integer,
                categories=categories,
                link=link,
            ),
        )
        if radii is None:
            every = [np.quantile(np.append(r[np.isfinite(r)], 0.0), 0.99) for r in found.values()]
            radii = np.linspace(0.0, float(max(every)) or 1.0, 201)
        radii = as_radii(radii)
        shares = [np.mean(certified[:, None] > radii, axis=0) for certified in found.values()]
        display = cls(
            radii=radii,
            value=np.array(shares if len(shares) > 1 else shares[0]),
            names=list(named),
            metric="certified" if y is None else "certified right",
            norm=norm,
            radius_unit=radius_unit(feature_scale, "feature_scale"),
            constant=None if y is None else of_constant("accuracy", 0.5, X, y, None),
        )
        return display.plot(ax, **kwargs)

    @classmethod
    def from_gradients(
        cls,
        gradients: npt.ArrayLike,
        antithetic: npt.ArrayLike | None = None,
        *,
        coef: npt.ArrayLike,
        batch_size: int,
        radii: npt.ArrayLike | None = None,
        norm: float | str = 2,
        target: str = "observed",
        noise_variance: float | None = None,
        confidence_level: float = 0.95,
        has_intercept: bool = False,
        intercept_position: str = "first",
        gradient_scale: float = 1.0,
        scale: npt.ArrayLike | None = None,
        covariance: Any = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the risk that batch gradients alone tell, its interval as a band.

        Parameters
        ----------
        gradients : array-like of shape (n_batches, n_features) or (n_batches, n_features + 1)
            Mean gradient of each batch, see `gradient_adversarial_risk`.
        antithetic : array-like of the shape of `gradients`, default=None
            Gradients of the same batches with the noise reversed.
        coef : array-like of shape (n_features,)
            Coefficients where the gradients were taken, without the intercept.
        batch_size : int
            Rows in each batch.
        radii : array-like of shape (n_radii,), default=None
            Radii of the attack, increasing. None is 51 radii from 0 to 1.
        norm : float >= 1, inf or "mahalanobis", default=2
            Norm of the attack.
        target : {"observed", "clean"}, default="observed"
            What the error is against.
        noise_variance : float, default=None
            Variance of the noise in the target. None estimates it from pairs.
        confidence_level : float, default=0.95
            Nominal coverage of the band, over all radii at once.
        has_intercept : bool, default=False
            Whether one column is the gradient of the intercept.
        intercept_position : {"first", "last"}, default="first"
            Which column that is.
        gradient_scale : float, default=1.0
            Factor from those of the mean half loss to these, see `gradient_adversarial_risk`.
        scale, covariance : array-like, default=None
            Budgets of the features, or covariance of the Mahalanobis norm, see `dual_norm`.
        name : str, default=None
            Name of the curve. None says that it comes from gradients, and the target.
        ax : matplotlib Axes, default=None
            Axes to plot on. None makes a new figure.
        **kwargs : dict
            Arguments of `plot`.

        Returns
        -------
        display : AdversarialRiskDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If radii are not increasing from zero or more, or `gradient_adversarial_risk` refuses
            the gradients.
        TypeError
            If `plot` would refuse an argument.
        """
        cls._ready("from_gradients", ax, kwargs)
        found = gradient_adversarial_risk(
            gradients,
            antithetic,
            coef=coef,
            batch_size=batch_size,
            radius=as_radii(radii),
            norm=norm,
            target=target,
            noise_variance=noise_variance,
            confidence_level=confidence_level,
            has_intercept=has_intercept,
            intercept_position=intercept_position,
            gradient_scale=gradient_scale,
            scale=scale,
            covariance=covariance,
        )
        display = cls(
            radii=np.asarray(found.radius),
            value=np.asarray(found.value),
            low=np.asarray(found.low),
            high=np.asarray(found.high),
            names=[f"From gradients, {target} target" if name is None else name],
            norm=norm,
            radius_unit=radius_unit(scale, "scale"),
            confidence_level=confidence_level,
        )
        return display.plot(ax, **kwargs)
