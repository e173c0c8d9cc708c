"""Turning codes to where they are least correlated given u."""

import copy

import numpy as np
import pytest
import torch

import skvae.inference
from skvae import VAE, iVAE
from skvae._random import generator
from skvae._unmixing import gain, jointly_diagonal, misfit, unmix, unmixable
from skvae.datasets import make_nonlinear_ica
from skvae.inference import Amortized
from skvae.metrics import mean_correlation_score
from skvae.networks import MLP
from skvae.priors import ConditionalGaussian

LINEAR = {"decoder": MLP(depth=0), "encoder": MLP(width=32, depth=1)}


def covariances(mixing, n_groups, seed):
    """Covariances of mixed sources whose variances differ between groups."""
    draws = generator(seed)
    shape = n_groups, len(mixing)
    logs = torch.randn(shape, generator=draws, dtype=torch.float64)
    return mixing @ torch.diag_embed(torch.exp(logs)) @ mixing.T


def square(n, seed):
    return torch.randn(n, n, generator=generator(seed), dtype=torch.float64)


def segments(n_rows=1200, n_sources=4, n_segments=8, seed=0):
    """Linearly mixed sources, their variances given by the segment."""
    data = make_nonlinear_ica(
        n_rows,
        n_segments=n_segments,
        n_sources=n_sources,
        n_features=6,
        n_layers=1,
        noise_std=0.05,
        random_state=seed,
        return_X_y=False,
    )
    return data.data, data.u, data.sources


def chunks_of(estimator, X, u, size):
    codes = estimator._auxiliary(X, None, u, reset=False)
    pieces, draws = [], generator(0)
    for start in range(0, len(X), size):
        x = torch.from_numpy(X[start : start + size]).float().unsqueeze(0)
        part = torch.from_numpy(codes[start : start + size]).float().unsqueeze(0)
        noise = torch.randn(1, x.shape[1], estimator.n_components, generator=draws)
        pieces.append((x, part, torch.ones(1, x.shape[1]), noise))
    return pieces


def bound_of(model, chunks):
    """The bound of each replica, its KL in closed form."""
    rows = []
    with torch.no_grad():
        for x, u, _, noise in chunks:
            q = model.posterior(x, u)
            log_likelihood = model.likelihood.log_prob(x, model.decode(q.sample(noise)))
            rows.append(log_likelihood - model.prior.kl(q, None, u))
    return torch.cat(rows, dim=1).mean(1)


# The map


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_map_undoes_a_mixing_of_independent_sources(n):
    mixing = square(n, seed=n)
    groups = covariances(mixing, 4 * n, seed=n + 1)
    share = torch.rand(4 * n, generator=generator(3), dtype=torch.float64)
    share /= share.sum()
    maps = jointly_diagonal(groups, share)
    # One source per coordinate: the others are below rounding of the Newton steps.
    composed = (maps @ mixing).abs()
    largest = composed.max(dim=1)
    assert sorted(largest.indices.tolist()) == list(range(n))
    rest = composed.scatter(1, largest.indices.unsqueeze(1), 0.0)
    assert rest.max() < 1e-3 * largest.values.min()


def test_the_map_keeps_the_variance_and_diagonal_covariances():
    groups = covariances(torch.eye(3, dtype=torch.float64), 9, seed=0)
    share = torch.full((9,), 1 / 9, dtype=torch.float64)
    maps = jointly_diagonal(groups, share)
    torch.testing.assert_close(maps, torch.diag(maps.diagonal()))
    pooled = groups.mean(0)
    after = (maps @ pooled @ maps.T).diagonal()
    torch.testing.assert_close(after, pooled.diagonal().mean().expand(3))


def test_no_map_nearby_fits_better_than_the_one_found():
    # Covariances that no map makes diagonal together.
    roots = torch.stack([square(4, seed) for seed in range(6)])
    groups = roots @ roots.mT
    share = torch.full((6,), 1 / 6, dtype=torch.float64)
    maps = jointly_diagonal(groups, share)
    best = misfit(maps, groups, share)
    assert best < misfit(torch.eye(4, dtype=torch.float64), groups, share)
    for seed in range(20):
        nearby = maps + 1e-2 * square(4, 100 + seed) @ maps
        assert misfit(nearby, groups, share) > best


def test_variances_that_do_not_depend_on_u_leave_the_map_alone():
    groups = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    share = torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(jointly_diagonal(groups, share), groups[0])


def test_a_map_counts_where_variances_follow_u_and_not_where_they_do_not():
    draws, n, d = generator(0), 400, 3
    mixing = square(d, seed=1)
    worth = {}
    for spread in (0.0, 1.0):
        logs = spread * torch.randn(5, d, generator=draws, dtype=torch.float64)
        normal = torch.randn(5, n, d, generator=draws, dtype=torch.float64)
        rows = torch.exp(logs).unsqueeze(1) * normal @ mixing.T
        groups, count = rows.mT @ rows / n, torch.full((5,), float(n)).double()
        # White codes: only a rotation is left to find.
        root = torch.linalg.cholesky(torch.linalg.inv(groups.mean(0)))
        groups = root.T @ groups @ root
        worth[spread] = gain(jointly_diagonal(groups, count / (5 * n)), groups, count)
    assert worth[0.0] < 0 < worth[1.0]


# The move


@pytest.mark.parametrize(
    ("covariance", "posterior_type", "mean"),
    [
        ("diagonal", "product", "learned"),
        ("full", "product", "learned"),
        ("full", "product", "zero"),
        ("diagonal", "joint", "learned"),
        ("full", "joint", "learned"),
    ],
)
def test_the_move_undoes_a_rotation_of_the_codes(covariance, posterior_type, mean):
    X, u, _ = segments(n_sources=2)
    vae = iVAE(
        2,
        **LINEAR,
        prior=ConditionalGaussian(mean=mean),
        covariance=covariance,
        posterior_type=posterior_type,
        max_iter=60,
        random_state=0,
    ).fit(X, u)
    chunks = chunks_of(vae, X, u, size=500)
    model = copy.deepcopy(vae.module_)
    fitted = bound_of(model, chunks)
    angle = torch.tensor(0.6)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    with torch.no_grad():
        for own in (model.encoder.output.weight, model.encoder.output.bias):
            own[..., :2] = own[..., :2] @ turn.T
        model.decoder.turn_inputs(turn.T.unsqueeze(0))
    rotated = bound_of(model, chunks)
    assert unmix(model, chunks) == [True]
    found = bound_of(model, chunks)
    # What is lost is that the turned precisions are fitted, not exact.
    assert rotated < found
    assert fitted - found < 0.1 * (fitted - rotated)


@pytest.fixture
def moves(monkeypatch):
    """What every move of the fits in a test did: made, bounds, unchanged."""
    log = []

    def recorded(model, chunks):
        before = bound_of(model, chunks)
        old = [p.detach().clone() for p in model.parameters()]
        made = unmix(model, chunks)
        unchanged = [
            all(
                torch.equal(p[replica], kept[replica])
                for p, kept in zip(model.parameters(), old, strict=True)
            )
            for replica in range(model.n_replicas)
        ]
        log.append((made, before, bound_of(model, chunks), unchanged))
        return made

    monkeypatch.setattr(skvae.inference, "unmix", recorded)
    return log


def test_a_move_raises_the_bound_or_leaves_the_replica_as_it_was(moves):
    X, u, _ = segments()
    iVAE(4, **LINEAR, max_iter=20, n_init=4, random_state=0).fit(X, u)
    made = [replica for answer, *_ in moves for replica in answer]
    assert {True, False} == set(made)
    for answer, before, after, unchanged in moves:
        assert unchanged == [not moved for moved in answer]
        assert all(after[moved] > before[moved] for moved in np.flatnonzero(answer))


@pytest.mark.parametrize(("epochs", "calls"), [(1, 1), (2, 1), (4, 2), (30, 2)])
def test_moves_are_tried_at_two_points_of_training(moves, epochs, calls):
    X, u, _ = segments(n_rows=200)
    iVAE(2, width=8, max_iter=epochs, random_state=0).fit(X, u)
    assert len(moves) == calls


def test_single_passes_and_other_models_make_no_moves(moves):
    X, u, _ = segments(n_rows=200)
    options = {"width": 8, "max_iter": 4, "random_state": 0}
    iVAE(2, **options).partial_fit(X, u)
    iVAE(2, inference=Amortized(unmix=False), **options).fit(X, u)
    iVAE(2, u_type="continuous", **options).fit(X, u)
    iVAE(1, **options).fit(X, u)
    VAE(2, **options).fit(X)
    assert moves == []


def test_linear_mixtures_are_undone_where_gradients_alone_rest_at_a_rotation():
    X, u, sources = segments()
    mcc = {}
    for moved in (True, False):
        vae = iVAE(
            4, **LINEAR, max_iter=40, inference=Amortized(unmix=moved), random_state=0
        ).fit(X, u)
        Z = vae.transform(X, u=u)
        mcc[moved] = mean_correlation_score(sources, Z)
        # Both have found the space of the sources.
        assert mean_correlation_score(sources, Z, mode="weak", random_state=0) > 0.98
    assert mcc[True] > 0.97
    assert mcc[False] < 0.9


def test_values_of_u_without_rows_are_turned_with_the_others():
    X, u, _ = segments(n_sources=2)
    gradients = Amortized(unmix=False)
    vae = iVAE(2, **LINEAR, inference=gradients, max_iter=10, random_state=0).fit(X, u)
    model, absent = vae.module_, 3
    chunks = chunks_of(vae, X[u != absent], u[u != absent], size=500)
    before, codes = model.prior.table(), model.encoded(chunks[0][0]).loc[0]
    assert unmix(model, chunks) == [True]
    after, turned = model.prior.table(), model.encoded(chunks[0][0]).loc[0]
    maps = torch.linalg.lstsq(codes, turned).solution.T
    torch.testing.assert_close(codes @ maps.T, turned, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        after.loc[0, absent], maps @ before.loc[0, absent], rtol=1e-3, atol=1e-3
    )
    wanted = (maps @ before.covariance[0, absent] @ maps.T).diagonal()
    torch.testing.assert_close(
        after.scale[0, absent] ** 2, wanted, rtol=1e-2, atol=1e-4
    )


def test_a_model_with_codes_that_are_not_numbers_is_left_alone():
    X, u, _ = segments(n_rows=200)
    vae = iVAE(2, width=8, max_iter=1, random_state=0).fit(X, u)
    model, chunks = vae.module_, chunks_of(vae, X, u, size=200)
    with torch.no_grad():
        model.encoder.output.bias.fill_(torch.nan)
    assert unmixable(model)
    assert unmix(model, chunks) == [False]
