"""The pictures of the page, drawn by the displays and given as inline SVG.

Text and axes take the colour of the page's text, so that one picture serves the light
and the dark page. A figure exists only while it is drawn.
"""

from __future__ import annotations

import io
import re

import numpy as np
from joblib import Parallel, delayed
from sklearn.manifold import TSNE

from skvae.displays import (
    KLDisplay,
    LatentScatterDisplay,
    LatentTraversalDisplay,
    LossCurveDisplay,
)

# Stands for the page's text colour until the figure is text itself.
INK = "#123456"
STYLE = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
}
MAX_TRAVERSED = 10
MAX_NAMES = 40
POINTS, EMBEDDED = 1000, 500


def drawn(draw, *, size, name, tight=False):
    """The SVG text of what ``draw(ax)`` puts on one pair of axes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return svg(figure, bbox_inches="tight" if tight else None)


def svg(figure, **options):
    """The figure as an ``<svg>`` element that stretches with the page."""
    file = io.StringIO()
    options = {"format": "svg", "transparent": True, **options}
    figure.savefig(file, metadata={"Date": None}, **options)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # The size comes from the page; viewBox keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor")


def kl_pictures(models, forecast):
    """KL per component with the forecast if there is one, one picture per model."""
    foretold = None if forecast is None else forecast.kl
    shown = [m.estimator.kl_per_component_ for m in models]
    shown += [] if foretold is None else [foretold[np.isfinite(foretold)]]
    # With a forecast there is a legend above the bars.
    room = 1.08 if forecast is None else 1.35
    top = room * max(np.concatenate(shown).max(), 1e-3)

    def draw_for(model):
        def draw(ax):
            estimator = model.estimator
            display = KLDisplay(
                estimator.kl_per_component_,
                active=estimator.active_components_,
                forecast=foretold,
                name=model.name,
            )
            colors = [model.color if a else "#9aa3ab66" for a in display.active]
            line = {"color": INK, "linestyle": ":", "markersize": 3}
            display.plot(ax, bar_kw={"color": colors}, line_kw=line)
            ax.set_ylim(0, top)

        return draw

    return [
        (m, drawn(draw_for(m), size=(3.4, 2.3), name=f"kl{m.name}")) for m in models
    ]


def curve_picture(models, unit):
    """The bound of every model by epoch, without the plunge at the start."""

    def draw(ax):
        lowest, highest = [], []
        for model in models:
            options = {"color": model.color, "linewidth": 1.3}
            display = LossCurveDisplay.from_estimator(
                model.estimator, ax=ax, name=model.name, line_kw=options
            )
            curve = display.objective
            lowest.append(curve[min(len(curve) - 1, len(curve) // 10)])
            highest.append(curve.max())
        margin = 0.05 * (max(highest) - min(lowest)) or 1.0
        ax.set_ylim(min(lowest) - margin, max(highest) + margin)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylabel(f"nats per {unit}")
        # Beside the frame: a warm-up starts high, so no corner is free.
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return drawn(draw, size=(10.4, 4.0), name="curves")


def is_embedded(results, data):
    """Whether t-SNE draws the latents: there are labels, and more than two latents."""
    return data.y_test is not None and max(r.Z_test.shape[1] for r in results) > 2


def embedded(Z, seed):
    """Rows of Z in the plane, by t-SNE with its usual settings."""
    # Where nothing varies there is no principal plane to start from.
    varies = Z.shape[1] > 1 and bool(np.ptp(Z, axis=0).any())
    return TSNE(
        perplexity=min(30, (len(Z) - 1) / 3),
        init="pca" if varies else "random",
        random_state=seed,
    ).fit_transform(np.asarray(Z, dtype=np.float32))


def scatter_pictures(results, data, seed, jobs):
    """Held-out rows in the latent space, one picture per method.

    The first two latents, or all of them by t-SNE where :func:`is_embedded`, `jobs`
    methods at a time.
    """
    by_tsne = is_embedded(results, data)
    n = EMBEDDED if by_tsne else POINTS
    rows = np.unique(np.linspace(0, len(data.X_test) - 1, n).astype(int))
    y = None if data.y_test is None else data.y_test[rows]
    # X itself has no first two latents, but can be embedded.
    results = [
        result
        for result in results
        if result.Z_test.shape[1] > 1 and (by_tsne or result.n_components)
    ]
    codes = [result.Z_test[rows] for result in results]
    if by_tsne:
        planes = Parallel(jobs)(delayed(embedded)(Z, seed) for Z in codes)
    else:
        planes = [Z[:, :2] for Z in codes]
    pictures = []
    for result, Z in zip(results, planes, strict=True):

        def draw(ax, result=result, Z=Z):
            options = {"s": 9, "rasterized": True}
            if y is None:
                options["color"] = result.color
            display = LatentScatterDisplay(Z, y, name=result.name)
            display.plot(ax, legend=False, scatter_kw=options)
            if by_tsne:
                # The units of t-SNE mean nothing.
                ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
            else:
                ax.locator_params(nbins=4)

        pictures.append((result, drawn(draw, size=(2.9, 2.7), name=f"z{result.name}")))
    return pictures


def legend_of(data):
    """Class names and their colours in the scatter pictures."""
    if not data.classes or data.y_test is None:
        return []
    import matplotlib
    from matplotlib.colors import to_hex

    classes = np.unique(data.y_test)
    if len(classes) > 20:
        return []
    colors = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"].colors
    return [(str(c), to_hex(color)) for c, color in zip(classes, colors, strict=False)]


def traversal_pictures(models, data):
    """What each component does: image grids, or heat maps of features."""
    pictures = []
    for model in models:

        def draw(ax, model=model):
            display = LatentTraversalDisplay.from_estimator(
                model.estimator,
                data.X_test,
                components=np.arange(min(model.n_components, MAX_TRAVERSED)),
                image_shape=data.image_shape,
                ax=ax,
                name=model.name,
            )
            names = data.names if data.image_shape is None else None
            if names and len(names) <= MAX_NAMES:
                short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
                ax.set_yticks(np.arange(len(names)), short)
                ax.set_ylabel("")
            return display

        shown = min(model.n_components, MAX_TRAVERSED)
        if data.image_shape is None:
            features = min(data.X.shape[1], MAX_NAMES)
            size = (4.2, 1.0 + 0.17 * max(features, 6))
        else:
            height, width, *_ = data.image_shape
            size = (3.2, 0.7 + 2.7 / 7 * shown * height / width)
        pictures.append((model, drawn(draw, size=size, name=f"t{model.name}")))
    return pictures


def reconstruction_picture(results, data, n_images=12):
    """Held-out images and what each method makes of them."""
    rows = np.unique(np.linspace(0, len(data.X_test) - 1, n_images).astype(int))
    images = {"original": data.X_test[rows]}
    for result in results:
        inverse = getattr(result.estimator, "inverse_transform", None)
        if inverse is not None and result.Z_test is not None:
            images[result.name] = inverse(result.Z_test[rows])
    return labelled_images(images, data, "reconstructions")


def sample_picture(models, data, seed, n_images=12):
    """New images, each method's in a row."""
    images = {m.name: m.estimator.sample(n_images, random_state=seed) for m in models}
    return labelled_images(images, data, "samples")


def labelled_images(images, data, name):
    """Rows of images, one for each name, in the grey levels of held-out ones."""
    height, width, *_ = data.image_shape
    limits = data.X_test.min(), data.X_test.max()
    tiles = np.clip(np.stack(list(images.values())), *limits)

    def draw(ax):
        options = {"vmin": limits[0], "vmax": limits[1]}
        display = LatentTraversalDisplay(tiles, image_shape=data.image_shape)
        display.plot(ax, im_kw=options)
        ax.set_yticks(ax.get_yticks(), list(images))
        ax.set_ylabel("")
        ax.set_xlabel("")

    size = (10.4, 0.2 + 9.2 / tiles.shape[1] * len(tiles) * height / width)
    return drawn(draw, size=size, name=name, tight=True)
