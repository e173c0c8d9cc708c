"""How training went and which components it left alive."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from skvae._collapse import collapse_forecast
from skvae.displays._axes import axes, title
from skvae.likelihoods import LIKELIHOODS

ACTIVE, INACTIVE, FORECAST = "#2a78b5", "#b9c3cc", "#e07b00"
# Variance of x where latents say nothing: what a second-order forecast needs.
VARIANCE_OF_MEAN = {"unit interval": lambda m: m * (1 - m), "count": lambda m: m}


def forecast_for(estimator, X):
    """Collapse forecast for the likelihood, noise and beta of an estimator.

    Exact for a linear decoder with Gaussian noise. Other likelihoods are replaced by
    their second-order expansion around the mean of X: features are divided by the
    standard deviation that the likelihood gives them there, and the noise is one.

    Parameters
    ----------
    estimator : BaseEstimator
        An estimator of this package; need not be fitted.
    X : array-like of shape (n_samples, n_features)
        Training data.

    Returns
    -------
    forecast : CollapseForecast
        Predicted KL per component, and how many live.
    """
    X = check_array(X, dtype=(np.float64, np.float32), ensure_min_samples=2)
    likelihood, noise = estimator.likelihood, "learned"
    part = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
    variance = VARIANCE_OF_MEAN.get(getattr(part, "domain", None))
    if variance is not None:
        spread = variance(X.mean(axis=0, dtype=np.float64))
        varies = spread > 0
        X, noise = X[:, varies] / np.sqrt(spread[varies]), 1.0
    elif not isinstance(getattr(part, "noise", ""), str):
        noise = float(part.noise) ** 2
    return collapse_forecast(
        X,
        beta=estimator.beta,
        noise_variance=noise,
        n_components=estimator.n_components,
    )


class LossCurveDisplay:
    """Training curve: the objective and the evidence lower bound at beta 1.

    Both are in nats per row, higher is better. They differ where beta is not one or
    the KL term is warmed up: the objective then moves while the bound tells what was
    learned.

    Parameters
    ----------
    objective : array-like of shape (n_epochs,)
        Maximised objective of each epoch, the negative of ``loss_curve_``.
    bound : array-like of shape (n_epochs,), default=None
        Evidence lower bound of each epoch.
    validation_bound : array-like of shape (n_epochs,), default=None
        Bound on held-out rows.
    name : str, default=None
        Name of the estimator, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure with the axes.
    lines_ : list of matplotlib Line2D
        The curves.

    See Also
    --------
    KLDisplay : How much each component carries after training.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAE
    >>> from skvae.displays import LossCurveDisplay
    >>> X = load_iris().data
    >>> vae = VAE(n_components=1, width=16, max_iter=20, random_state=0).fit(X)
    >>> ax = Figure().subplots()
    >>> display = LossCurveDisplay.from_estimator(vae, ax=ax)
    >>> len(display.objective), [line.get_label() for line in display.lines_]
    (20, ['VAE'])
    """

    def __init__(self, objective, *, bound=None, validation_bound=None, name=None):
        self.objective = np.asarray(objective, dtype=float)
        self.bound = None if bound is None else np.asarray(bound, dtype=float)
        self.validation_bound = (
            None
            if validation_bound is None
            else np.asarray(validation_bound, dtype=float)
        )
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, name=None, line_kw=None):
        """Draw the training curve of a fitted estimator.

        Parameters
        ----------
        estimator : BaseEstimator
            A fitted estimator of this package.
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Name in the legend; None takes the class's.
        line_kw : dict, default=None
            Options of the curves, for ``Axes.plot``.

        Returns
        -------
        display : LossCurveDisplay
            The display that was drawn.
        """
        check_is_fitted(estimator)
        history = getattr(estimator, "history_", {})
        display = cls(
            -np.asarray(estimator.loss_curve_, dtype=float),
            bound=history.get("bound"),
            validation_bound=history.get("validation_bound"),
            name=type(estimator).__name__ if name is None else name,
        )
        return display.plot(ax, line_kw=line_kw)

    def plot(self, ax=None, *, name=None, line_kw=None):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Name in the legend; None takes the one the display was made with.
        line_kw : dict, default=None
            Options of the curves, for ``Axes.plot``.

        Returns
        -------
        self : LossCurveDisplay
            The display.
        """
        self.ax_ = axes(ax)
        self.figure_ = self.ax_.figure
        name = self.name if name is None else name
        label = name or "objective"
        options = {"linewidth": 1.5, **(line_kw or {})}
        epochs = np.arange(1, len(self.objective) + 1)
        self.lines_ = self.ax_.plot(epochs, self.objective, label=label, **options)
        options["color"] = self.lines_[0].get_color()
        for curve, style, text in (
            (self.bound, "--", "bound at beta 1"),
            (self.validation_bound, ":", "held-out bound"),
        ):
            if curve is None or np.allclose(curve, self.objective[-len(curve) :]):
                continue
            text = f"{name}, {text}" if name else text
            self.lines_ += self.ax_.plot(
                epochs[-len(curve) :],
                curve,
                **{**options, "linestyle": style, "label": text},
            )
        self.ax_.set_xlabel("epoch")
        self.ax_.set_ylabel("nats per row")
        self.ax_.legend(frameon=False)
        return self


class KLDisplay:
    """KL divergence of each component, a scree plot, with its forecast.

    Components that carry nothing have collapsed. A gap between bars and forecast
    shows what the non-linear decoder found, or what training missed.

    Parameters
    ----------
    kl : array-like of shape (n_components,)
        KL per component in nats.
    active : array-like of bool of shape (n_components,), default=None
        Which components are active; None takes those with more than 0.01 nats.
    forecast : array-like of shape (n_components,), default=None
        Predicted KL per component in nats.
    name : str, default=None
        Name of the estimator, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the bars.
    bars_ : matplotlib BarContainer
        One bar per component; inactive ones are pale.
    figure_ : matplotlib Figure
        Figure with the axes.
    line_ : matplotlib Line2D or None
        The forecast.

    See Also
    --------
    collapse_forecast : The forecast for Gaussian likelihoods.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAE
    >>> from skvae.displays import KLDisplay
    >>> X = load_iris().data
    >>> vae = VAE(n_components=2, width=16, max_iter=50, random_state=0).fit(X)
    >>> display = KLDisplay.from_estimator(vae, X, ax=Figure().subplots())
    >>> len(display.bars_), display.forecast.shape
    (2, (2,))
    """

    def __init__(self, kl, *, active=None, forecast=None, name=None):
        self.kl = np.asarray(kl, dtype=float)
        self.active = self.kl > 0.01 if active is None else np.asarray(active)
        self.forecast = None if forecast is None else np.asarray(forecast, dtype=float)
        self.name = name

    @classmethod
    def from_estimator(
        cls, estimator, X=None, *, ax=None, name=None, bar_kw=None, line_kw=None
    ):
        """Draw the KL per component of a fitted estimator.

        Parameters
        ----------
        estimator : BaseEstimator
            A fitted estimator of this package.
        X : array-like of shape (n_samples, n_features), default=None
            Training data, for the forecast; None draws none.
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Title; None takes the class's name.
        bar_kw : dict, default=None
            Options of the bars, for ``Axes.bar``.
        line_kw : dict, default=None
            Options of the forecast, for ``Axes.plot``.

        Returns
        -------
        display : KLDisplay
            The display that was drawn.
        """
        check_is_fitted(estimator)
        forecast = None
        if X is not None:
            forecast = forecast_for(estimator, X).kl_per_component
        display = cls(
            estimator.kl_per_component_,
            active=estimator.active_components_,
            forecast=forecast,
            name=type(estimator).__name__ if name is None else name,
        )
        return display.plot(ax, bar_kw=bar_kw, line_kw=line_kw)

    def plot(self, ax=None, *, name=None, bar_kw=None, line_kw=None):
        """Draw the bars and the forecast.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Title; None takes the name the display was made with.
        bar_kw : dict, default=None
            Options of the bars, for ``Axes.bar``.
        line_kw : dict, default=None
            Options of the forecast, for ``Axes.plot``.

        Returns
        -------
        self : KLDisplay
            The display.
        """
        self.ax_ = axes(ax)
        self.figure_ = self.ax_.figure
        components = np.arange(len(self.kl))
        colors = np.where(self.active, ACTIVE, INACTIVE)
        self.bars_ = self.ax_.bar(
            components,
            self.kl,
            **{"color": colors, "label": "after training", **(bar_kw or {})},
        )
        self.line_ = None
        if self.forecast is not None:
            style = {"color": FORECAST, "marker": "o", "markersize": 4}
            style |= {"linewidth": 1.0, "label": "forecast", **(line_kw or {})}
            # The forecast is infinite where X has no noise at all.
            finite = np.where(np.isfinite(self.forecast), self.forecast, np.nan)
            (self.line_,) = self.ax_.plot(components, finite, **style)
            # Room for the legend above the bars.
            self.ax_.set_ylim(top=1.35 * self.ax_.get_ylim()[1])
            self.ax_.legend(frameon=False, loc="upper right")
        self.ax_.set_xlabel("component")
        self.ax_.set_ylabel("KL in nats")
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        title(self.ax_, self.name if name is None else name)
        return self
