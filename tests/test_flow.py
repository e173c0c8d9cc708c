"""Flows: exact inverses and log-determinants, and the estimator made of them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

import skvae
from skvae import iFlow
from skvae._random import generator
from skvae.datasets import make_nonlinear_ica
from skvae.metrics import mean_correlation_score
from skvae.networks import SplineFlow
from skvae.networks._flow import BOUND, SplineLayer, Splines
from skvae.priors import ConditionalGaussian, GaussianMixture


def build(n, n_replicas=1, scale=1.0, **options):
    """A flow in double precision with weights far from where they start."""
    generators = [generator(seed) for seed in range(n_replicas)]
    flow = SplineFlow(**options).build(n, n + 1, generators).double()
    with torch.no_grad():
        for number, p in enumerate(flow.parameters()):
            draws = [
                torch.randn(p.shape[1:], generator=generator(1000 + 10 * number + r))
                for r in range(n_replicas)
            ]
            p.add_(scale * 0.4 * torch.stack(draws))
    return flow


def bent(n_layers, n, n_replicas=1, times=10.0):
    """Splines in double precision, far from the identity."""
    generators = [generator(seed) for seed in range(n_replicas)]
    splines = Splines(n_layers, n, 8, generators)
    with torch.no_grad():
        for layer in range(n_layers):
            splines.start(layer, generators)
        for parameter in splines.parameters():
            parameter.mul_(times)
    return splines.double()


def rows(n, seed=0, size=50, spread=2.0):
    return spread * torch.randn(1, size, n, generator=generator(seed)).double()


# ------------------------------------------------------------------------ the network


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_inverse_is_exact(n, depth):
    flow = build(n, n_replicas=3, depth=depth)
    x = rows(n).expand(3, -1, -1)
    z = flow(x)[..., :n]
    assert torch.allclose(flow.inverse(z), x, atol=1e-8)
    assert torch.allclose(flow.inverted()(z), x, atol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_log_determinant_is_that_of_autograd(n):
    flow = build(n, depth=3)
    flow.align(rows(n, seed=1)[0] @ torch.randn(n, n).double(), torch.ones(50))
    x = rows(n, size=20)
    log_det = flow(x)[0, :, n]
    for row, expected in zip(x[0], log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: flow(v.view(1, 1, n))[0, 0, :n], row
        )
        actual = torch.linalg.slogdet(jacobian).logabsdet
        assert actual.item() == pytest.approx(expected.item(), abs=1e-8)


def test_a_spline_increases_smoothly_and_inverts_beyond_its_ends():
    splines = bent(2, 2)
    spline = splines.layers()[1]
    t = torch.linspace(-2.5 * BOUND, 2.5 * BOUND, 4001).double()
    x = t.view(1, -1, 1).expand(1, -1, 2).clone().requires_grad_()
    value, log_slope = spline(x)
    (derivative,) = torch.autograd.grad(value.sum(), x)
    assert (value.diff(dim=1) > 0).all()
    assert torch.allclose(derivative.log(), log_slope, atol=1e-10)
    # Continuous derivative, knots included: no jump beyond what the step explains.
    jumps = derivative.diff(dim=1).abs()
    finer = jumps.view(1, -1, 2, 2).sum(2).max()
    assert finer < 0.2 * (derivative.max() - derivative.min())
    assert torch.allclose(spline.inverse(value), x, atol=1e-10)
    outside = value[0, :2].diff(dim=0) / x[0, :2].diff(dim=0)
    ends = torch.exp(5.0 * torch.tanh(splines.log_slopes[0, 1, :, 0] / 5.0))
    assert torch.allclose(outside[0], ends)


@pytest.mark.parametrize("direction", [SplineLayer.__call__, SplineLayer.inverse])
def test_gradients_and_their_gradients_are_those_of_finite_differences(direction):
    splines = bent(2, 3, n_replicas=2)
    x = 2.0 * torch.randn(2, 9, 3, generator=generator(2)).double()
    # Some lie beyond the outer knots, on either side.
    assert (x > BOUND).any()
    assert (x < -BOUND).any()

    class SecondLayer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.splines = splines

        def forward(self, x):
            return direction(self.splines.layers()[1], x)

    def evaluate(x, *parameters):
        names = "splines.log_heights", "splines.log_slopes"
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(SecondLayer(), named, (x,))

    inputs = [t.detach().requires_grad_() for t in (x, *splines.parameters())]
    assert torch.autograd.gradcheck(evaluate, inputs)
    assert torch.autograd.gradgradcheck(evaluate, inputs)


def test_the_slope_bound_holds_and_is_not_vacuous():
    splines = bent(1, 1, times=5.0)
    x = torch.linspace(-4, 4, 4001).double().view(1, -1, 1)
    steepest = splines.layers()[0](x)[1].exp().max()
    assert steepest <= splines.slope()[0] <= 10.0 * steepest
    flow = build(3, depth=2)
    x = rows(3, size=400)
    z = flow(x)[0, :, :3]
    apart, moved = torch.pdist(x[0]), torch.pdist(z)
    assert (moved <= flow.slope()[0] * apart).all()
    # An affine flow reaches its bound along the first singular vector.
    flow = build(3, depth=0)
    vector = torch.linalg.svd(flow.weight[0, 0]).U[:, 0]
    image = (flow((vector).view(1, 1, 3)) - flow(torch.zeros(1, 1, 3).double()))[
        ..., :3
    ]
    length = torch.linalg.vector_norm(image).item()
    assert length == pytest.approx(flow.slope().item())


def test_whitening_takes_any_scale_and_flat_directions():
    x = rows(4)[0] * torch.tensor([1e3, 1.0, 1e-3, 0.0])
    flow = build(4, scale=0.0, depth=1)
    flow.align(x, torch.ones(50))
    image = flow((x / x.var(0).mean().sqrt())[None])
    assert torch.isfinite(image).all()
    assert image[..., :4].abs().max() < 20.0


def test_rows_that_are_no_numbers_and_huge_ones_end_no_step():
    """Training goes back to its last good state, if it is told and not stopped."""
    flow = build(3)
    x = rows(3, size=4)
    x[0, 1, 0], x[0, 2] = torch.nan, 1e30
    for image in (flow(x)[..., :3], flow.inverse(x), flow.linearised(x, 2)[1]):
        good = image.flatten(2).isfinite().all(-1)[0]
        assert good.tolist() == [True, False, True, True]
    huge = flow.inverse(flow(x)[..., :3])[0, 2]
    assert torch.allclose(huge, x[0, 2])


def test_replicas_are_the_flows_they_would_be_alone():
    together = build(3, n_replicas=3)
    alone = SplineFlow().build(3, 4, [generator(1)]).double()
    with torch.no_grad():
        for p, q in zip(alone.parameters(), together.parameters(), strict=True):
            p.copy_(q[1:2])
    x = rows(3)
    assert torch.allclose(together(x)[1], alone(x)[0], atol=1e-12)
    fresh = SplineFlow().build(3, 4, [generator(s) for s in range(3)])
    single = SplineFlow().build(3, 4, [generator(2)])
    for p, q in zip(fresh.parameters(), single.parameters(), strict=True):
        assert torch.allclose(p[2:], q, atol=1e-6)


def test_wrong_sizes_and_odd_bins_are_refused():
    with pytest.raises(ValueError, match="as many latents as features"):
        SplineFlow().build(3, 3, [generator(0)])
    with pytest.raises(ValueError, match="must be even"):
        SplineFlow(n_bins=7).build(3, 4, [generator(0)])


def test_copies_keep_both_directions_together():
    flow = build(2)
    pair = torch.nn.ModuleList([flow, flow.inverted()])
    assert len(list(pair.parameters())) == len(list(flow.parameters()))
    for again in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        with torch.no_grad():
            again[0].bias[:, 0].add_(1.0)
        x = rows(2)
        assert torch.allclose(again[1](again[0](x)[..., :2]), x, atol=1e-8)


# ---------------------------------------------------------------------- the estimator


@pytest.fixture
def data():
    return make_nonlinear_ica(
        1200, n_segments=6, n_features=2, random_state=0, return_X_y=False
    )


@pytest.fixture
def fitted(data):
    return iFlow(depth=2, max_iter=10, random_state=0).fit(data.data, u=data.u)


def test_the_density_is_the_change_of_variables(fitted, data):
    """Log p(x|u) from the public surface alone, with a numerical Jacobian."""
    X, u = data.data[::100], data.u[::100]
    step = 1e-6
    columns = [
        (fitted.transform(X + step * e) - fitted.transform(X - step * e)) / (2 * step)
        for e in np.eye(2)
    ]
    log_det = np.linalg.slogdet(np.stack(columns, axis=-1))[1]
    one_hot = torch.eye(6)[torch.tensor(u)].unsqueeze(0)
    prior = fitted.module_.prior.given(one_hot)
    Z = fitted.transform(X)
    mean = prior.loc[0].numpy()[:, fitted._order]
    scale = prior.scale[0].numpy()[:, fitted._order]
    standard = multivariate_normal(np.zeros(2))
    expected = standard.logpdf((Z - mean) / scale) - np.log(scale).sum(1) + log_det
    np.testing.assert_allclose(fitted.score_samples(X, u=u), expected, atol=1e-4)
    assert fitted.score(X, u=u) == pytest.approx(expected.mean(), abs=1e-4)


def test_the_density_integrates_to_one(fitted, data):
    side = np.linspace(-5.0, 5.0, 400)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    assert np.abs(data.data).max() < 4.0
    cell = (side[1] - side[0]) ** 2
    for u in (None, np.full(len(grid), 2)):
        mass = np.exp(fitted.score_samples(grid, u=u)).sum() * cell
        assert mass == pytest.approx(1.0, abs=0.01)


def test_without_u_the_density_is_the_mixture_over_u(fitted, data):
    X = data.data[:50]
    parts = [fitted.score_samples(X, u=np.full(50, c)) for c in range(6)]
    expected = np.logaddexp.reduce(parts, axis=0) - np.log(6.0)
    np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-6, atol=1e-6)


def test_round_trip_samples_and_point_posterior(fitted, data):
    X, u = data.data, data.u
    Z = fitted.transform(X)
    np.testing.assert_allclose(fitted.inverse_transform(Z), X, atol=1e-8)
    np.testing.assert_array_equal(fitted.transform(X, u=u), Z)
    mean, std = fitted.posterior(X)
    np.testing.assert_array_equal(mean, Z)
    assert (std == 0.0).all()
    draws = fitted.sample(u=np.full(4000, 3), random_state=0)
    np.testing.assert_allclose(
        np.cov(draws.T), np.cov(X[u == 3].T), atol=0.25 * np.cov(X[u == 3].T).max()
    )


def test_the_loss_is_minus_the_log_likelihood(fitted, data):
    history = fitted.history_
    np.testing.assert_allclose(history["loss"], -np.array(history["bound"]), atol=1e-5)
    assert fitted.best_bound_ == pytest.approx(
        fitted.score(data.data, u=data.u), abs=1e-4
    )
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_the_certificate_holds_between_rows(fitted, data):
    Z = fitted.transform(data.data)[::5]
    X = data.data[::5]
    apart = np.linalg.norm(Z[:, None] - Z, axis=-1)
    moved = np.linalg.norm(X[:, None] - X, axis=-1)
    pairs = ~np.eye(len(X), dtype=bool)
    assert (moved[pairs] >= fitted.inverse_lipschitz_ * apart[pairs]).all()
    assert fitted.identifiability_["assumptions"]["injective decoder"][0]


def test_affine_flow_on_gaussian_rows_has_the_closed_form_likelihood():
    """One value of u and no splines: the Gaussian of maximal likelihood."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 3)) @ rng.standard_normal((3, 3)) + 5.0
    flow = iFlow(depth=0, max_iter=40, learning_rate=0.01, random_state=0)
    flow.fit(X, u=np.zeros(600, dtype=int))
    best = multivariate_normal(X.mean(0), np.cov(X.T, bias=True)).logpdf(X).mean()
    assert flow.score(X, u=np.zeros(600, dtype=int)) == pytest.approx(best, abs=5e-3)


def test_units_of_x_change_the_density_and_nothing_else(data):
    flow = iFlow(depth=1, max_iter=3, random_state=0)
    X, u = data.data.astype(np.float64), data.u
    plain = flow.fit(X, u=u)
    score, Z = plain.score(X, u=u), plain.transform(X)
    scaled = clone(flow).fit(1024.0 * X, u=u)
    assert scaled.score(1024.0 * X, u=u) == pytest.approx(
        score - 2 * np.log(1024.0), abs=1e-3
    )
    np.testing.assert_allclose(scaled.transform(1024.0 * X), Z, atol=1e-3)


def test_restarts_in_one_batch_are_the_fits_alone(data):
    """At a small rate, where rounding does not grow."""
    X, u = data.data, data.u
    flow = iFlow(depth=2, max_iter=2, learning_rate=1e-3, n_init=3, random_state=0)
    three = flow.fit(X, u=u)
    assert three.consistency_.shape == (2,)
    alone = clone(flow).set_params(n_init=1)
    other = clone(alone).fit(X, u=u)
    alone.random_state = _State(three._score_seed, three._seeds[0])
    Z = alone.fit(X, u=u).transform(X)
    np.testing.assert_allclose(Z, three.transform(X), atol=2e-3)
    assert alone.score(X, u=u) == pytest.approx(three.score(X, u=u), abs=1e-4)
    # The first restart was not the best one, or this would say little.
    assert np.abs(other.transform(X) - Z).max() > 0.1


class _State(np.random.RandomState):
    """A random state that hands out given seeds."""

    def __init__(self, score_seed, seeds):
        super().__init__(0)
        self.answers = [score_seed, np.array([list(seeds)])]

    def randint(self, *args, **kwargs):
        return self.answers.pop(0)


def test_it_needs_a_prior_that_depends_on_u(data):
    with pytest.raises(ValueError, match="does not depend on u"):
        iFlow(prior=GaussianMixture()).fit(data.data, u=data.u)
    with pytest.raises(TypeError, match="n_components"):
        iFlow(n_components=3)
    with pytest.raises(ValueError, match="requires y to be passed"):
        iFlow().fit(data.data)
    fixed = iFlow(prior=ConditionalGaussian(mean="zero"), max_iter=2, random_state=0)
    assert fixed.fit(data.data, u=data.u).identifiability_["l_matrix_full_rank"] == 2


def test_continuous_u_saving_searching_and_pipelines(data, tmp_path):
    X, u = data.data, data.u
    flow = iFlow(flow=SplineFlow(depth=1), max_iter=2, random_state=0)
    flow.fit(X, u=np.sin(u * 1.0))
    skvae.save(flow, tmp_path / "flow.skvae")
    again = skvae.load(tmp_path / "flow.skvae")
    np.testing.assert_array_equal(again.transform(X), flow.transform(X))
    np.testing.assert_array_equal(again.inverse_transform(X), flow.inverse_transform(X))
    search = GridSearchCV(flow, {"flow__depth": [0, 1]}, cv=StratifiedKFold(2))
    assert search.fit(X, u).best_params_["flow__depth"] in (0, 1)
    wide = np.hstack([X, X @ np.ones((2, 3))])
    pipeline = make_pipeline(PCA(2), iFlow(max_iter=2, random_state=0))
    assert pipeline.fit_transform(wide, u).shape == (1200, 2)


def test_it_recovers_sources_that_a_linear_map_does_not():
    """Held-out rows of nonlinearly mixed sources, means and variances from u."""
    data = make_nonlinear_ica(
        9000,
        n_segments=20,
        n_sources=2,
        n_features=2,
        n_layers=3,
        centers="uniform",
        random_state=3,
        return_X_y=False,
    )
    held_out = np.arange(9000) % 10 == 0
    X, u, S = data.data, data.u, data.sources[held_out]
    flow = iFlow(max_iter=10, n_init=4, learning_rate=0.04, random_state=0)
    flow.fit(X[~held_out], u=u[~held_out])
    linear = mean_correlation_score(S, PCA(2).fit(X).transform(X[held_out]))
    found = mean_correlation_score(S, flow.transform(X[held_out]))
    assert found > 0.98
    assert linear < 0.93
