"""Where rows lie in the latent space, and what its components do to them."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from skvae.displays._axes import axes, title

# More different labels than this are drawn as a continuous colour.
MAX_CLASSES = 20
# Features beyond this are not named: their names would overlap.
MAX_NAMES = 40


def _coloured(grid, im_kw):
    """Colours ``(h, w, 3)`` from `vmin` to `vmax` as RGBA, transparent where NaN."""
    low = im_kw.get("vmin", np.nanmin(grid))
    high = im_kw.get("vmax", np.nanmax(grid))
    shares = np.clip((grid - low) / ((high - low) or 1.0), 0.0, 1.0)
    there = np.isfinite(grid).all(-1, keepdims=True)
    return np.concatenate([np.where(there, shares, 0.0), there], axis=-1)


class LatentTraversalDisplay:
    """What the decoder makes of one component while the others rest.

    With an image shape, a grid: a row per component, a column per value. Without, a
    heat map of how far each feature, a row, moves between the two ends.

    Parameters
    ----------
    rows : array-like of shape (n_components, n_steps, n_features)
        Decoded rows.
    components : array-like of int of shape (n_components,), default=None
        Numbers of the components; None counts from zero.
    image_shape : tuple of int, default=None
        Height and width of a row of X, if it is an image, and 3 for one in colour.
    feature_names : array-like of str of shape (n_features,), default=None
        Names of the features, for the heat map.
    name : str, default=None
        Name of the estimator, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure with the axes.
    image_ : matplotlib AxesImage
        The grid or the heat map.

    See Also
    --------
    LatentScatterDisplay : Where the rows of X lie in the latent space.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAE
    >>> from skvae.displays import LatentTraversalDisplay
    >>> X = load_digits().data / 16
    >>> vae = VAE(
    ...     n_components=2, width=32, max_iter=10, likelihood="bernoulli",
    ...     random_state=0,
    ... )
    >>> display = LatentTraversalDisplay.from_estimator(
    ...     vae.fit(X), image_shape=(8, 8), ax=Figure().subplots()
    ... )
    >>> display.rows.shape
    (2, 7, 64)
    """

    def __init__(
        self,
        rows,
        *,
        components=None,
        image_shape=None,
        feature_names=None,
        name=None,
    ):
        self.rows = np.asarray(rows)
        self.components = (
            np.arange(len(self.rows)) if components is None else np.asarray(components)
        )
        self.image_shape = image_shape
        self.feature_names = feature_names
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X=None,
        *,
        components=None,
        image_shape=None,
        n_steps=7,
        span=2.0,
        ax=None,
        name=None,
        im_kw=None,
    ):
        """Decode a walk along each component of a fitted estimator.

        Parameters
        ----------
        estimator : BaseEstimator
            A fitted estimator of this package.
        X : array-like of shape (n_samples, n_features), default=None
            Rows whose posteriors tell centre and standard deviation of each
            component; None takes zero and one, those of the prior N(0, I).
        components : array-like of int, default=None
            Components to walk along; None takes all.
        image_shape : tuple of int, default=None
            Height and width of a row of X, if it is an image, and 3 for one in colour.
        n_steps : int, default=7
            Number of values.
        span : float, default=2.0
            How far to walk to each side, in standard deviations.
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Title; None takes the class's name.
        im_kw : dict, default=None
            Options of the picture, for ``Axes.imshow``.

        Returns
        -------
        display : LatentTraversalDisplay
            The display that was drawn.
        """
        check_is_fitted(estimator)
        n_components = len(estimator.kl_per_component_)
        centre, spread = np.zeros(n_components), np.ones(n_components)
        if X is not None:
            mean, std = estimator.posterior(X)
            centre = mean.mean(axis=0)
            spread = np.sqrt(mean.var(axis=0) + (std**2).mean(axis=0))
        walked = np.arange(n_components) if components is None else components
        walked = np.asarray(walked, dtype=int)
        Z = np.tile(centre, (len(walked), n_steps, 1))
        steps = np.linspace(-span, span, n_steps)
        for row, component in enumerate(walked):
            Z[row, :, component] += steps * spread[component]
        decoded = estimator.inverse_transform(Z.reshape(-1, n_components))
        display = cls(
            decoded.reshape(len(walked), n_steps, -1),
            components=walked,
            image_shape=image_shape,
            feature_names=getattr(estimator, "feature_names_in_", None),
            name=type(estimator).__name__ if name is None else name,
        )
        return display.plot(ax, im_kw=im_kw)

    def plot(self, ax=None, *, name=None, im_kw=None):
        """Draw the grid or the heat map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Title; None takes the name the display was made with.
        im_kw : dict, default=None
            Options of the picture, for ``Axes.imshow``.

        Returns
        -------
        self : LatentTraversalDisplay
            The display.
        """
        ax = axes(ax)
        if self.image_shape is None:
            self._plot_response(ax, im_kw or {})
        else:
            self._plot_images(ax, im_kw or {})
        title(ax, self.name if name is None else name)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_images(self, ax, im_kw):
        height, width, *channels = self.image_shape
        n_components, n_steps, n_features = self.rows.shape
        if channels not in ([], [3]) or np.prod(self.image_shape) != n_features:
            raise ValueError(
                f"image_shape={self.image_shape} must be (height, width), or (height, "
                f"width, 3) in colour, and make {n_features} features. It makes "
                f"{np.prod(self.image_shape)}."
            )
        tiles = self.rows.reshape(n_components, n_steps, height, width, -1)
        # One pixel between the pictures; NaN is transparent.
        tiles = np.pad(
            tiles.astype(float),
            ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)),
            constant_values=np.nan,
        )
        grid = tiles.transpose(0, 2, 1, 3, 4)
        grid = grid.reshape(n_components * (height + 1), n_steps * (width + 1), -1)
        grid = _coloured(grid, im_kw) if channels else grid.squeeze(-1)
        options = {"cmap": "gray", "interpolation": "none", **im_kw}
        self.image_ = ax.imshow(grid[:-1, :-1], **options)
        middles = np.arange(n_components) * (height + 1) + (height - 1) / 2
        ax.set_yticks(middles, self.components)
        ax.set_xticks([])
        ax.set_xlabel("value, low to high")
        ax.set_ylabel("component")
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)

    def _plot_response(self, ax, im_kw):
        response = (self.rows[:, -1] - self.rows[:, 0]).T
        limit = np.abs(response).max() or 1.0
        options = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, **im_kw}
        options = {"aspect": "auto", "interpolation": "none", **options}
        self.image_ = ax.imshow(response, **options)
        ax.set_xticks(np.arange(len(self.components)), self.components)
        names = self.feature_names
        if names is not None and len(names) <= MAX_NAMES:
            ax.set_yticks(np.arange(len(names)), names)
        ax.set_xlabel("component")
        ax.set_ylabel("feature")
        ax.figure.colorbar(self.image_, ax=ax, label="change of the decoded mean")


class LatentScatterDisplay:
    """Two latent components of the rows of X, coloured by label.

    Parameters
    ----------
    Z : array-like of shape (n_samples, 2)
        Latents.
    y : array-like of shape (n_samples,), default=None
        Labels, or a continuous quantity, for the colour.
    components : tuple of int, default=(0, 1)
        Numbers of the two components, for the axes.
    name : str, default=None
        Name of the estimator, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure with the axes.
    scatter_ : matplotlib PathCollection
        The points.

    See Also
    --------
    LatentTraversalDisplay : What the components mean.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAE
    >>> from skvae.displays import LatentScatterDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> vae = VAE(n_components=2, width=16, max_iter=50, random_state=0).fit(X)
    >>> ax = Figure().subplots()
    >>> display = LatentScatterDisplay.from_estimator(vae, X, y, ax=ax)
    >>> display.Z.shape, [text.get_text() for text in ax.get_legend().get_texts()]
    ((150, 2), ['0', '1', '2'])
    """

    def __init__(self, Z, y=None, *, components=(0, 1), name=None):
        self.Z = check_array(Z)
        if self.Z.shape[1] != 2:
            raise ValueError(f"Z must have two columns. Got {self.Z.shape[1]}.")
        self.y = None if y is None else np.asarray(y)
        check_consistent_length(self.Z, self.y)
        self.components = components
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y=None,
        *,
        components=(0, 1),
        ax=None,
        name=None,
        legend=True,
        scatter_kw=None,
    ):
        """Draw two components of ``estimator.transform(X)``.

        Parameters
        ----------
        estimator : BaseEstimator
            A fitted transformer, PCA for instance.
        X : array-like of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,), default=None
            Labels, or a continuous quantity, for the colour.
        components : tuple of int, default=(0, 1)
            The two components.
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Title; None takes the class's name.
        legend : bool, default=True
            Whether to explain the colours.
        scatter_kw : dict, default=None
            Options of the points, for ``Axes.scatter``.

        Returns
        -------
        display : LatentScatterDisplay
            The display that was drawn.
        """
        check_is_fitted(estimator)
        Z = np.asarray(estimator.transform(X))
        if not -Z.shape[1] <= min(components) <= max(components) < Z.shape[1]:
            raise ValueError(
                f"components={tuple(components)} asks for more components than the "
                f"{Z.shape[1]} of {type(estimator).__name__}."
            )
        display = cls(
            Z[:, list(components)],
            y,
            components=components,
            name=type(estimator).__name__ if name is None else name,
        )
        return display.plot(ax, legend=legend, scatter_kw=scatter_kw)

    def plot(self, ax=None, *, name=None, legend=True, scatter_kw=None):
        """Draw the points.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes a figure.
        name : str, default=None
            Title; None takes the name the display was made with.
        legend : bool, default=True
            Whether to explain the colours.
        scatter_kw : dict, default=None
            Options of the points, for ``Axes.scatter``.

        Returns
        -------
        self : LatentScatterDisplay
            The display.
        """
        self.ax_ = ax = axes(ax)
        self.figure_ = ax.figure
        options = {"s": 12, "linewidths": 0, "alpha": 0.8}
        classes, codes = None, self.y
        if self.y is not None:
            classes, codes = np.unique(self.y, return_inverse=True)
            if len(classes) > MAX_CLASSES and self.y.dtype.kind in "fiu":
                classes, codes = None, self.y
        if classes is not None:
            size = 10 if len(classes) <= 10 else 20
            options |= {"cmap": f"tab{size}", "vmin": 0, "vmax": size - 1}
            # More than twenty names share colours: there are no more to tell apart.
            codes = codes % size
        options = {**options, **(scatter_kw or {})}
        self.scatter_ = ax.scatter(*self.Z.T, c=codes, **options)
        if legend and classes is not None and len(classes) <= MAX_CLASSES:
            handles, _ = self.scatter_.legend_elements(num=None, alpha=1.0)
            ax.legend(handles, map(str, classes), frameon=False, fontsize="small")
        elif legend and codes is not None and classes is None:
            ax.figure.colorbar(self.scatter_, ax=ax)
        ax.set_xlabel(f"component {self.components[0]}")
        ax.set_ylabel(f"component {self.components[1]}")
        title(ax, self.name if name is None else name)
        return self
