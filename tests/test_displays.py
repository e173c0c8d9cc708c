"""What the displays compute, and that they leave everything else alone."""

import sys
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from skvae import VAE, PosteriorCollapseWarning, collapse_forecast, iVAE
from skvae.displays import (
    KLDisplay,
    LatentScatterDisplay,
    LatentTraversalDisplay,
    LossCurveDisplay,
    forecast_for,
)
from skvae.likelihoods import Gaussian

DISPLAYS = [KLDisplay, LatentScatterDisplay, LatentTraversalDisplay, LossCurveDisplay]
ARRAYS = {
    KLDisplay: ([2.0, 0.0],),
    LatentScatterDisplay: ([[0.0, 1.0], [1.0, 0.0]],),
    LatentTraversalDisplay: (np.arange(12.0).reshape(2, 3, 2),),
    LossCurveDisplay: ([-3.0, -2.0, -1.5],),
}


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((80, 2)) @ rng.standard_normal((2, 6)) + 0.3


@pytest.fixture(scope="module")
def fitted(rows):
    return VAE(2, width=16, max_iter=40, random_state=0).fit(rows)


def from_estimator(cls, estimator, X, **options):
    """One call for the four signatures."""
    if cls is LossCurveDisplay:
        return cls.from_estimator(estimator, **options)
    return cls.from_estimator(estimator, X, **options)


# What all displays promise


@pytest.mark.parametrize("cls", DISPLAYS)
def test_plot_draws_into_the_axes_it_is_given(cls, ax):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    display = cls(*ARRAYS[cls])
    assert not hasattr(display, "ax_")
    assert display.plot(ax, name="a name") is display
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    legend = ax.get_legend()
    texts = [text.get_text() for text in legend.get_texts()] if legend else []
    assert "a name" in [ax.get_title(), *texts]


@pytest.mark.parametrize("cls", DISPLAYS)
def test_plot_makes_axes_and_never_shows_them(cls, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("shown"))
    figure = cls(*ARRAYS[cls]).plot().figure_
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)


@pytest.mark.parametrize("cls", DISPLAYS)
def test_missing_matplotlib_is_told_with_its_remedy(cls, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install skvae\[plot\]"):
        cls(*ARRAYS[cls]).plot()


@pytest.mark.parametrize("cls", DISPLAYS)
def test_from_estimator_wants_a_fitted_one(cls, rows, ax):
    with pytest.raises(NotFittedError):
        from_estimator(cls, VAE(), rows, ax=ax)


@pytest.mark.parametrize("cls", DISPLAYS)
def test_from_estimator_names_the_class_unless_told_otherwise(cls, fitted, rows):
    assert from_estimator(cls, fitted, rows, ax=Figure().subplots()).name == "VAE"
    display = from_estimator(cls, fitted, rows, ax=Figure().subplots(), name="mine")
    assert display.name == "mine"


@pytest.mark.parametrize(
    ("cls", "option", "value", "read"),
    [
        (KLDisplay, "bar_kw", {"alpha": 0.5}, lambda d: d.bars_[0].get_alpha()),
        (LatentScatterDisplay, "scatter_kw", {"alpha": 0.5}, "scatter_"),
        (LatentTraversalDisplay, "im_kw", {"alpha": 0.5}, "image_"),
        (
            LossCurveDisplay,
            "line_kw",
            {"alpha": 0.5},
            lambda d: d.lines_[0].get_alpha(),
        ),
    ],
)
def test_style_reaches_the_artists(cls, option, value, read, ax):
    display = cls(*ARRAYS[cls]).plot(ax, **{option: value})
    alpha = (
        getattr(display, read).get_alpha() if isinstance(read, str) else read(display)
    )
    assert alpha == 0.5


# Training curves


def test_objective_and_bound_coincide_at_beta_one(fitted, ax):
    display = LossCurveDisplay.from_estimator(fitted, ax=ax)
    assert len(display.lines_) == 1
    epochs, values = display.lines_[0].get_data()
    np.testing.assert_array_equal(epochs, np.arange(1, 41))
    np.testing.assert_array_equal(values, -np.array(fitted.loss_curve_))


def test_bound_is_drawn_where_beta_is_not_one(rows, ax):
    vae = VAE(1, beta=2.0, width=8, max_iter=4, random_state=0).fit(rows)
    display = LossCurveDisplay.from_estimator(vae, ax=ax)
    assert [line.get_linestyle() for line in display.lines_] == ["-", "--"]
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), vae.history_["bound"])
    assert (display.bound > display.objective).all()


def test_held_out_bound_is_drawn_after_early_stopping(rows, ax):
    vae = VAE(1, width=8, max_iter=5, early_stopping=True, random_state=0)
    with pytest.warns(ConvergenceWarning, match="max_iter=5"):
        vae.fit(rows)
    held_out = LossCurveDisplay.from_estimator(vae, ax=ax).lines_[-1]
    assert held_out.get_linestyle() == ":"
    np.testing.assert_array_equal(held_out.get_ydata(), vae.validation_scores_)


def test_curve_of_single_passes(rows, ax):
    vae = VAE(1, width=8, random_state=0).partial_fit(rows).partial_fit(rows)
    assert len(LossCurveDisplay.from_estimator(vae, ax=ax).objective) == 2


# Collapse


def test_bars_are_the_realised_kl_and_the_line_its_forecast(fitted, rows, ax):
    display = KLDisplay.from_estimator(fitted, rows, ax=ax)
    heights = [bar.get_height() for bar in display.bars_]
    np.testing.assert_array_equal(heights, fitted.kl_per_component_)
    expected = collapse_forecast(rows, n_components=2).kl_per_component
    # Two factors explain these rows entirely: the forecast is without limit.
    assert np.isinf(expected).all() == np.isinf(display.forecast).all()
    noisy = rows + 0.1 * np.random.default_rng(1).standard_normal(rows.shape)
    display = KLDisplay.from_estimator(fitted, noisy, ax=Figure().subplots())
    expected = collapse_forecast(noisy, n_components=2).kl_per_component
    np.testing.assert_array_equal(display.line_.get_ydata(), expected)


def test_no_forecast_without_data(fitted, ax):
    display = KLDisplay.from_estimator(fitted, ax=ax)
    assert display.forecast is None
    assert display.line_ is None
    assert ax.get_legend() is None


def test_inactive_bars_are_pale(ax):
    display = KLDisplay([1.0, 0.5, 0.0], active=[True, True, False]).plot(ax)
    colors = [to_rgb(bar.get_facecolor()) for bar in display.bars_]
    assert colors[0] == colors[1] != colors[2]
    assert sum(colors[2]) > sum(colors[0])


def test_forecast_for_takes_beta_noise_and_size_from_the_estimator(rows):
    noisy = rows + np.random.default_rng(1).standard_normal(rows.shape)
    estimator = VAE(3, beta=1.5, likelihood=Gaussian(noise=0.5))
    expected = collapse_forecast(noisy, beta=1.5, noise_variance=0.25, n_components=3)
    found = forecast_for(estimator, noisy)
    np.testing.assert_array_equal(found.kl_per_component, expected.kl_per_component)
    assert not found.learned_noise
    assert forecast_for(VAE(3), noisy).learned_noise


@pytest.mark.parametrize(
    ("likelihood", "slope", "information"),
    [("bernoulli", 0.3, 0.25), ("poisson", 0.1, 4)],
)
def test_forecast_of_other_likelihoods_is_their_second_order(
    likelihood, slope, information
):
    """One factor moves twelve natural parameters: eigenvalue 1 + |slopes|^2 I."""
    rng = np.random.default_rng(0)
    natural = slope * np.outer(rng.standard_normal(20_000), np.ones(12))
    if likelihood == "bernoulli":
        X = rng.binomial(1, 1 / (1 + np.exp(-natural)))
    else:
        X = rng.poisson(information * np.exp(natural))
    forecast = forecast_for(VAE(3, likelihood=likelihood), X.astype(float))
    largest = 1 + 12 * slope**2 * information
    assert forecast.eigenvalues[0] == pytest.approx(largest, rel=0.04)
    assert forecast.kl_per_component[0] == pytest.approx(np.log(largest) / 2, abs=0.02)
    assert forecast.kl_per_component[1] < 0.03


def test_forecast_passes_over_constant_columns():
    X = np.random.default_rng(0).integers(0, 2, (200, 4)).astype(float)
    with_constant = np.column_stack([X, np.zeros(200), np.ones(200)])
    found, expected = (
        forecast_for(VAE(2, likelihood="bernoulli"), rows)
        for rows in (with_constant, X)
    )
    np.testing.assert_allclose(found.kl_per_component, expected.kl_per_component)


# Traversals


def test_traversal_decodes_one_component_at_a_time(fitted, ax):
    display = LatentTraversalDisplay.from_estimator(fitted, ax=ax, n_steps=3, span=1.5)
    assert display.rows.shape == (2, 3, 6)
    expected = fitted.inverse_transform(np.array([[0.0, -1.5], [0.0, 0.0], [0.0, 1.5]]))
    np.testing.assert_allclose(display.rows[1], expected, rtol=1e-6)
    np.testing.assert_allclose(display.rows[0, 1], display.rows[1, 1], rtol=1e-6)


def test_traversal_walks_where_the_rows_are(fitted, rows, ax):
    display = LatentTraversalDisplay.from_estimator(
        fitted, rows, components=[1], n_steps=2, span=1.0, ax=ax
    )
    mean, std = fitted.posterior(rows)
    Z = np.tile(mean.mean(axis=0), (2, 1))
    spread = np.sqrt(mean[:, 1].var() + np.mean(std[:, 1] ** 2))
    Z[:, 1] += [-spread, spread]
    np.testing.assert_allclose(display.rows[0], fitted.inverse_transform(Z), rtol=1e-5)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1"]


def test_images_stand_in_a_grid_with_a_gap(ax):
    rows = np.arange(2 * 3 * 6, dtype=float).reshape(2, 3, 6)
    display = LatentTraversalDisplay(rows, image_shape=(2, 3)).plot(ax)
    grid = np.ma.filled(display.image_.get_array(), np.nan)
    assert grid.shape == (2 * 3 - 1, 3 * 4 - 1)
    np.testing.assert_array_equal(grid[:2, :3], rows[0, 0].reshape(2, 3))
    np.testing.assert_array_equal(grid[3:, 8:], rows[1, 2].reshape(2, 3))
    assert np.isnan(grid[2]).all()
    assert np.isnan(grid[:, 3]).all()


@pytest.mark.parametrize("im_kw", [None, {"vmin": 0.0, "vmax": 40.0}])
def test_colours_go_from_the_least_to_the_most(ax, im_kw):
    rows = np.arange(2 * 2 * 18, dtype=float).reshape(2, 2, 18)
    display = LatentTraversalDisplay(rows, image_shape=(2, 3, 3)).plot(ax, im_kw=im_kw)
    grid = np.asarray(display.image_.get_array())
    assert grid.shape == (2 * 3 - 1, 2 * 4 - 1, 4)
    high = 40.0 if im_kw else rows.max()
    expected = (rows[1, 0] / high).clip(0, 1).reshape(2, 3, 3)
    np.testing.assert_allclose(grid[3:, :3, :3], expected)
    opaque = np.ones((5, 7))
    opaque[2], opaque[:, 3] = 0.0, 0.0
    np.testing.assert_array_equal(grid[..., 3], opaque)


def test_heat_map_shows_the_change_of_each_feature(ax):
    rows = np.zeros((2, 3, 4))
    rows[0, -1, 1], rows[1, 0, 3] = 2.0, 0.5
    names = ["a", "b", "c", "d"]
    display = LatentTraversalDisplay(rows, feature_names=names).plot(ax)
    expected = np.zeros((4, 2))
    expected[1, 0], expected[3, 1] = 2.0, -0.5
    np.testing.assert_array_equal(display.image_.get_array(), expected)
    assert display.image_.get_clim() == (-2.0, 2.0)
    assert [text.get_text() for text in ax.get_yticklabels()] == names


def test_image_shape_must_fit(fitted, ax):
    for shape, size in (((2, 2), 4), ((1, 2, 4), 8), ((3, 1, 2), 6)):
        with pytest.raises(ValueError, match=rf"make 6 features. It makes {size}\."):
            LatentTraversalDisplay.from_estimator(fitted, image_shape=shape, ax=ax)


# Scatter


def test_points_are_the_latents(fitted, rows, ax):
    display = LatentScatterDisplay.from_estimator(
        fitted, rows, components=(1, 0), ax=ax
    )
    expected = fitted.transform(rows)[:, ::-1]
    np.testing.assert_allclose(display.scatter_.get_offsets(), expected)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("component 1", "component 0")
    assert ax.get_legend() is None


def test_labels_are_named_and_coloured(rows):
    y = np.array(["no", "yes"])[np.arange(80) % 2]
    ax = Figure().subplots()
    display = LatentScatterDisplay.from_estimator(PCA(2).fit(rows), rows, y, ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["no", "yes"]
    np.testing.assert_array_equal(display.scatter_.get_array(), np.arange(80) % 2)
    assert display.name == "PCA"


def test_quantities_get_a_colour_bar(rows):
    figure = Figure()
    ax = figure.subplots()
    y = rows[:, 0]
    display = LatentScatterDisplay.from_estimator(PCA(2).fit(rows), rows, y, ax=ax)
    np.testing.assert_array_equal(display.scatter_.get_array(), y)
    assert ax.get_legend() is None
    assert len(figure.axes) == 2


def test_legend_can_be_left_out(rows):
    figure = Figure()
    ax = figure.subplots()
    for y in (np.arange(80) % 2, rows[:, 0]):
        LatentScatterDisplay.from_estimator(
            PCA(2).fit(rows), rows, y, ax=ax, legend=False
        )
    assert ax.get_legend() is None
    assert len(figure.axes) == 1


def test_scatter_refuses_what_it_cannot_draw(rows, ax):
    with pytest.raises(ValueError, match="more components than the 1 of PCA"):
        LatentScatterDisplay.from_estimator(PCA(1).fit(rows), rows, ax=ax)
    with pytest.raises(ValueError, match="two columns"):
        LatentScatterDisplay(rows)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        LatentScatterDisplay(rows[:, :2], np.arange(3))


def test_displays_take_estimators_with_a_conditional_prior(rows):
    y = np.arange(80) % 4
    model = iVAE(2, width=8, max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        model.fit(rows, y)
    for cls in DISPLAYS:
        ax = Figure().subplots()
        assert from_estimator(cls, model, rows, ax=ax).ax_ is ax
