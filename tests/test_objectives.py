"""Total correlation and importance weighting against closed forms and identities."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits

from skvae import LIDMVAE, VAE, IdentifiableVAE, iVAE
from skvae._gaussian import CorrelatedGaussian, DiagonalGaussian
from skvae._random import Seeds, standard_normal, streams
from skvae._training import Data, batches
from skvae.estimators._fitting import Auxiliary, Specifications, build_model
from skvae.inference import Amortized
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE, CovariateInformed, TotalCorrelation
from skvae.posteriors import EncoderPosterior, ProductPosterior
from skvae.priors import ConditionalGaussian, GaussianMixture, StandardNormal

P, D, B, N = 5, 3, 12, 100
SEEDS = [Seeds(1, 2, 3), Seeds(4, 5, 6)]
NORMAL = StandardNormal().build(D, 0, True, [])


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def diagonal(n_replicas=2, n=B):
    return DiagonalGaussian(draw(0, n_replicas, n, D), 0.3 * draw(1, n_replicas, n, D))


def full(n_replicas=2, n=B):
    below = torch.tril(0.7 * draw(2, n_replicas, n, D, D), -1)
    scales = torch.exp(0.3 * draw(3, n_replicas, n, D))
    return CorrelatedGaussian(
        draw(0, n_replicas, n, D), below + torch.diag_embed(scales)
    )


FAMILIES = pytest.mark.parametrize("q", [diagonal(), full()], ids=["diagonal", "full"])
ESTIMATORS = pytest.mark.parametrize("estimator", ["weighted", "stratified"])


def build(n_replicas=2, **changes):
    """An untrained model in double precision."""
    parts = {
        "encoder": MLP(6, 1),
        "decoder": MLP(6, 1),
        "prior": StandardNormal(),
        "likelihood": Gaussian(),
        "posterior": EncoderPosterior(),
        "inference": Amortized(),
        "objective": ELBO(),
    }
    specifications = Specifications(**{**parts, **changes})
    n_u = 4 if specifications.prior.needs_u else 0
    model = build_model(specifications, D, P, Auxiliary(n_u), SEEDS[:n_replicas])
    return model.double()


# ----------------------------------------------------------------- pairs of Gaussians


@FAMILIES
def test_densities_of_pairs_are_scipys(q):
    z = draw(5, 2, 4, D)
    joint, marginal = q.pairwise_log_prob(z), q.pairwise_marginal_log_prob(z)
    assert joint.shape == (2, 4, B)
    assert marginal.shape == (2, 4, B, D)
    for r, n, m in [(0, 0, 0), (1, 3, 7), (0, 2, 11)]:
        if isinstance(q, CorrelatedGaussian):
            sigma = torch.linalg.inv(q.factor[r, m] @ q.factor[r, m].T)
        else:
            sigma = torch.diag(q.scale[r, m] ** 2)
        expected = multivariate_normal(q.loc[r, m], sigma).logpdf(z[r, n])
        assert joint[r, n, m].item() == pytest.approx(expected)
        each = norm(q.loc[r, m], np.sqrt(np.diag(sigma))).logpdf(z[r, n])
        np.testing.assert_allclose(marginal[r, n, m], each)


@FAMILIES
def test_a_moved_gaussian_is_the_law_of_its_moved_noise(q):
    shift, stretch, noise = (draw(seed, 2, B, D) for seed in (6, 7, 8))
    moved = q.moved(shift, 0.5 * stretch)
    z = q.sample(shift + torch.exp(0.5 * stretch) * noise)
    torch.testing.assert_close(moved.sample(noise), z)
    # The density of the noise times the volume that it is spread over.
    expected = (
        norm().logpdf(noise).sum(-1) - (q.log_volume() + 0.5 * stretch.sum(-1)).numpy()
    )
    np.testing.assert_allclose(moved.log_prob(z), expected)
    still = q.moved(torch.zeros_like(shift), torch.zeros_like(shift))
    torch.testing.assert_close(still.log_prob(z), q.log_prob(z))


# ---------------------------------------------------------------- total correlation


def decomposed(objective, q, prior=NORMAL, u=None, noise=None):
    z = q.sample(draw(9, *q.loc.shape) if noise is None else noise)
    built = objective.build(1.0, prior, N)
    return z, built.decompose(prior, q, z, u)


@ESTIMATORS
@FAMILIES
def test_the_three_terms_sum_to_the_log_ratio(q, estimator):
    z, terms = decomposed(TotalCorrelation(estimator=estimator), q)
    expected = q.log_prob(z) - NORMAL.log_prob(z)
    torch.testing.assert_close(sum(terms), expected, rtol=1e-12, atol=1e-12)
    assert all(term.abs().max() > 0.1 for term in terms)


@ESTIMATORS
def test_a_prior_given_u_takes_the_place_of_the_prior(estimator):
    model = build(prior=ConditionalGaussian())
    u = torch.eye(4).double()[torch.arange(B) % 4].unsqueeze(0)
    q = diagonal()
    z, terms = decomposed(TotalCorrelation(estimator=estimator), q, model.prior, u)
    expected = q.log_prob(z) - model.prior.given(u).log_prob(z)
    torch.testing.assert_close(sum(terms), expected, rtol=1e-12, atol=1e-12)


@ESTIMATORS
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_equal_weights_are_the_elbo(estimator, weight):
    model, x, noise = build(), draw(4, 2, B, P), draw(9, 2, B, D)
    q = model.posterior(x)
    objective = TotalCorrelation(weight, weight, weight, estimator)
    got = objective.build(2.0, model.prior, N).terms(model, x, None, q, noise, 1.0)
    elbo = ELBO().build(2.0 * weight, model.prior)
    for a, b in zip(got, elbo.terms(model, x, None, q, noise, 1.0), strict=True):
        torch.testing.assert_close(a, b)


@ESTIMATORS
def test_the_loss_weighs_each_term(estimator):
    model, x, noise = build(), draw(4, 2, B, P), draw(9, 2, B, D)
    q = model.posterior(x)
    objective = TotalCorrelation(5.0, 0.25, 2.0, estimator, warm_up=0.5)
    built = objective.build(3.0, model.prior, N)
    terms = built.terms(model, x, None, q, noise, 0.25)
    _, (information, correlation, dimensions) = decomposed(objective, q, noise=noise)
    # The KL in closed form instead of its one-draw estimate.
    gap = q.kl() - (information + correlation + dimensions)
    bracket = 0.25 * information + 5.0 * correlation + 2.0 * (dimensions + gap)
    torch.testing.assert_close(terms.loss, 1.5 * bracket - terms.log_likelihood)
    torch.testing.assert_close(terms.kl, q.kl())


def test_weighted_sampling_is_the_published_sum():
    q = diagonal(1)
    z, (information, correlation, _) = decomposed(TotalCorrelation(), q)
    loc, scale = (part[0].numpy() for part in (q.loc, q.scale))
    densities = norm(loc, scale).logpdf(z[0].numpy()[:, None])
    joint = logsumexp(densities.sum(-1), axis=1) - math.log(N * B)
    each = logsumexp(densities, axis=1) - math.log(N * B)
    np.testing.assert_allclose(information[0], q.log_prob(z)[0].numpy() - joint)
    np.testing.assert_allclose(correlation[0], joint - each.sum(-1))


def test_stratified_sampling_is_unbiased():
    """Averaged over all batches with the row in it, it is q(z) over the data."""
    n_rows, size = 6, 3
    loc, log_scale = draw(0, n_rows, D), 0.3 * draw(1, n_rows, D)
    z = loc[0] + 0.5
    aggregate = TotalCorrelation(estimator="stratified").build(1.0, NORMAL, n_rows)
    estimates, own = [], DiagonalGaussian(loc, log_scale).log_prob(z).exp()
    for others in permutations(range(1, n_rows), size - 1):
        weights = aggregate.aggregate(size, n_rows, z).exp()
        batch = [0, *others]
        assert weights[0, 0] == pytest.approx(1.0 / n_rows)
        assert weights.sum(1).tolist() == pytest.approx([1.0] * size)
        estimates.append((weights[0] * own[batch]).sum())
    assert torch.stack(estimates).mean().item() == pytest.approx(own.mean().item())
    assert torch.stack(estimates).std() > 0.01 * own.mean()


@ESTIMATORS
def test_a_batch_of_one_row_is_finite(estimator):
    q = diagonal(1, 1)
    _, terms = decomposed(TotalCorrelation(estimator=estimator), q)
    assert all(torch.isfinite(term).all() for term in terms)


@ESTIMATORS
def test_total_correlation_of_a_gaussian_aggregate(estimator):
    """q(z) = N(0, S) has TC = (sum of log S_dd - log det S) / 2."""
    n, spread, noise = 2500, 0.5, draw(9, 1, 2500, 2)
    mixing = torch.tensor([[1.0, 0.8], [0.0, 0.7]]).double()
    q = DiagonalGaussian(
        (draw(0, n, 2) @ mixing).unsqueeze(0),
        torch.full((1, n, 2), math.log(spread)).double(),
    )
    prior = StandardNormal().build(2, 0, True, [])
    built = TotalCorrelation(estimator=estimator).build(1.0, prior, n)
    _, correlation, _ = built.decompose(prior, q, q.sample(noise), None)
    sigma = mixing.T @ mixing + spread**2 * torch.eye(2).double()
    expected = 0.5 * (sigma.diagonal().log().sum() - torch.logdet(sigma)).item()
    # Weighted sampling misses log N once in the joint and twice in the marginals.
    constant = math.log(n) if estimator == "weighted" else 0.0
    error = correlation.std().item() / math.sqrt(n)
    got = correlation.mean().item() - constant
    assert got == pytest.approx(expected, abs=4.0 * error + 0.01)
    assert expected > 0.2


def test_punished_codes_are_less_dependent():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(500, 1))
    sources = np.hstack([shared, shared**2 - 1.0 + 0.3 * rng.normal(size=(500, 1))])
    X = np.tanh(sources @ rng.normal(size=(2, 6))) + 0.1 * rng.normal(size=(500, 6))

    def correlation(weight):
        objective = TotalCorrelation(weight)
        vae = VAE(2, objective=objective, width=32, max_iter=30, random_state=0)
        mean, std = map(torch.tensor, vae.fit(X).posterior(X))
        q = DiagonalGaussian(mean.unsqueeze(0), std.log().unsqueeze(0))
        prior = StandardNormal().build(2, 0, True, [])
        built = objective.build(1.0, prior, 500)
        z = q.sample(draw(9, 1, 500, 2))
        return built.decompose(prior, q, z, None)[1].mean().item() - math.log(500)

    plain, punished = correlation(1.0), correlation(20.0)
    assert plain > 0.1
    assert punished < 0.5 * plain


def test_total_correlation_says_what_it_needs():
    mixture = GaussianMixture().build(D, 0, True, [torch.Generator()])
    with pytest.raises(ValueError, match="prior whose coordinates are independent"):
        TotalCorrelation().build(1.0, mixture, N)
    with pytest.raises(ValueError, match="needs n_rows"):
        TotalCorrelation().build(1.0, NORMAL)
    with pytest.raises(ValueError, match="'weight' parameter of TotalCorrelation"):
        TotalCorrelation(weight=-1.0).build(1.0, NORMAL, N)
    X = np.random.default_rng(0).normal(size=(40, 6))
    with pytest.raises(ValueError, match="prior whose coordinates are independent"):
        IdentifiableVAE(2, objective="total_correlation", max_iter=1).fit(X)


@pytest.mark.parametrize("objective", [TotalCorrelation(), IWAE()])
@pytest.mark.parametrize("warm_up", [1.0, -0.1])
def test_a_warm_up_that_never_ends_is_refused(objective, warm_up):
    with pytest.raises(ValueError, match="'warm_up' parameter"):
        objective.set_params(warm_up=warm_up).build(1.0, NORMAL, N)


# -------------------------------------------------------------------------- IWAE


def weighed(n_draws, model, x, q, noise, beta=1.0, u=None):
    built = IWAE(n_draws).build(beta, model.prior)
    return built.terms(model, x, u, q, noise, 1.0)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_draw_is_the_one_draw_elbo(covariance):
    model = build(posterior=EncoderPosterior(covariance))
    x, noise = draw(4, 2, B, P), draw(9, 2, B, D)
    q = model.posterior(x)
    terms = weighed(1, model, x, q, noise, beta=2.5)
    z = q.sample(noise)
    kl = q.log_prob(z) - model.prior.log_prob(z)
    log_likelihood = model.likelihood.log_prob(x, model.decode(z))
    torch.testing.assert_close(terms.loss, 2.5 * kl - log_likelihood)
    torch.testing.assert_close(terms.log_likelihood, log_likelihood)
    torch.testing.assert_close(terms.kl, q.kl())


def test_the_bound_is_the_mean_of_the_weights():
    """Against the weights that scoring computes along another way."""
    model, x, shared = build(), draw(4, 2, B, P), draw(9, 7, D)
    q = model.posterior(x)
    noise = shared.expand(2, B, 7, D)
    terms = weighed(7, model, x, q, noise)
    log_weights = model.importance_log_weights(x, None, shared, q)
    expected = torch.logsumexp(log_weights, dim=1) - math.log(7)
    torch.testing.assert_close(-terms.loss, expected)


def test_the_gradient_is_weighed_by_the_normalised_weights():
    model, x, noise = build(1), draw(4, 1, B, P), draw(9, 1, B, 4, D)
    parameters = list(model.parameters())
    loss = weighed(4, model, x, model.posterior(x), noise).loss.sum()
    got = torch.autograd.grad(loss, parameters)
    q = model.posterior(x)
    logs = []
    for s in range(4):
        z = q.sample(noise[:, :, s])
        logs.append(model.log_joint(x, z) - q.log_prob(z))
    logs = torch.stack(logs)
    normalised = torch.softmax(logs, dim=0).detach()
    expected = torch.autograd.grad(-(normalised * logs).sum(), parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_replicas_may_differ_in_beta():
    model, x, noise = build(), draw(4, 2, B, P), draw(9, 2, B, 2, D)
    q = model.posterior(x)
    betas = torch.tensor([[0.5], [4.0]]).double()
    together = weighed(2, model, x, q, noise, beta=betas).loss
    for r, beta in enumerate((0.5, 4.0)):
        alone = weighed(2, model, x, q, noise, beta=beta).loss
        torch.testing.assert_close(together[r], alone[r])


def linear_model():
    """x = W z + noise of scale 0.6 with orthogonal W, and log p(x)."""
    weight = torch.linalg.qr(draw(0, P, D)).Q * torch.tensor([2.0, 1.0, 0.5]).double()
    model = build(1, decoder=MLP(depth=0), likelihood=Gaussian(noise=0.6))
    model.requires_grad_(False)
    model.decoder.output.weight.copy_(weight.T)
    model.decoder.output.bias.zero_()
    model.likelihood.constant.fill_(math.log(0.6))
    x = draw(5, 400, D) @ weight.T + 0.6 * draw(6, 400, P)
    sigma = weight @ weight.T + 0.36 * torch.eye(P).double()
    evidence = multivariate_normal(np.zeros(P), sigma).logpdf(x)
    variance = 1.0 / (1.0 + weight.square().sum(0) / 0.36)
    exact = DiagonalGaussian(
        (x @ weight * variance / 0.36).unsqueeze(0),
        (0.5 * variance.log()).expand(1, 400, -1),
    )
    return model, x.unsqueeze(0), exact, evidence


@pytest.mark.parametrize("n_draws", [1, 6])
def test_the_exact_posterior_gives_the_evidence(n_draws):
    model, x, exact, evidence = linear_model()
    noise = draw(7, 1, 400, n_draws, D)
    noise = noise.squeeze(2) if n_draws == 1 else noise
    loss = weighed(n_draws, model, x, exact, noise).loss
    np.testing.assert_allclose(-loss[0], evidence, rtol=1e-10)


def test_the_bound_rises_with_the_draws_towards_the_evidence():
    model, x, exact, evidence = linear_model()
    poor = exact.moved(0.8 * torch.ones_like(exact.loc), 0.4 * draw(8, 1, 400, D))
    bounds = []
    for n_draws in (1, 5, 50):
        noise = draw(10 + n_draws, 1, 400, n_draws, D)
        noise = noise.squeeze(2) if n_draws == 1 else noise
        bounds.append(-weighed(n_draws, model, x, poor, noise).loss.mean().item())
    assert (np.diff(bounds) > 0.1).all()
    assert bounds[-1] < evidence.mean()
    # One draw is the ELBO: the evidence less the KL to the exact posterior.
    gap = poor.kl(exact).mean().item()
    assert bounds[0] == pytest.approx(evidence.mean() - gap, abs=0.3)
    assert evidence.mean() - bounds[-1] < 0.2 * gap


# ------------------------------------------------------------------ in the engine


def test_draws_get_an_axis_of_their_own_and_one_draw_does_not():
    data = Data(torch.arange(40.0).unsqueeze(1), None, torch.ones(40))
    plain = list(batches(data, streams(SEEDS, "cpu"), 16, D))
    assert [b.noise.shape for b in plain] == [(2, n, D) for n in (16, 16, 8)]
    # The draws of the objective with one draw are the streams' own, in order.
    expected = standard_normal(streams(SEEDS, "cpu").noise, 40, D)
    assert torch.equal(torch.cat([b.noise for b in plain], dim=1), expected)
    many = list(batches(data, streams(SEEDS, "cpu"), 16, D, 5))
    assert [b.noise.shape for b in many] == [(2, n, 5, D) for n in (16, 16, 8)]
    assert torch.equal(many[0].x, plain[0].x)


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.parametrize("objective", ["total_correlation", "iwae", IWAE(1)])
@pytest.mark.parametrize("n_init", [1, 2])
def test_estimators_train_on_it(objective, n_init, segments):
    X, u = segments
    options = {"width": 8, "max_iter": 4, "random_state": 0, "n_init": n_init}
    vae = iVAE(2, objective=objective, **options).fit(X, u=u)
    history = vae.history_
    np.testing.assert_allclose(
        history["bound"], np.subtract(history["log_likelihood"], history["kl"])
    )
    assert history["bound"][-1] > history["bound"][0]
    again = iVAE(2, objective=objective, **options).fit(X, u=u)
    assert again.loss_curve_ == vae.loss_curve_


@pytest.mark.parametrize("objective", ["total_correlation", "iwae"])
def test_an_enumerated_posterior_is_refused(objective, small_X):
    vae = LIDMVAE(2, objective=objective, posterior_type="enumerated", max_iter=1)
    message = "single Gaussian|coordinates are independent"
    with pytest.raises(ValueError, match=message):
        vae.fit(small_X)


# -------------------------------------------------- posteriors with and without u


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_mixed_posterior_is_a_mixture(alpha, covariance):
    model = build(prior=ConditionalGaussian(), posterior=ProductPosterior(covariance))
    model.prior.set_mixture(torch.eye(4).double(), torch.full((4,), -math.log(4.0)))
    x, noise = draw(4, 2, B, P), draw(9, 2, B, 2, D)
    u = torch.eye(4).double()[torch.arange(B) % 4].unsqueeze(0).expand(2, -1, -1)
    q, alone = model.posterior(x, u), model.posterior(x)
    objective = CovariateInformed(alpha).build(2.0, model.prior)
    loss, log_likelihood, kl = objective.terms(model, x, u, q, noise, 1.0)
    expected_likelihood, expected_kl = 0.0, 0.0
    for share, component, eps in zip(
        (alpha, 1.0 - alpha), (q, alone), noise.unbind(2), strict=True
    ):
        z = component.sample(eps)
        density = alpha * q.log_prob(z).exp() + (1 - alpha) * alone.log_prob(z).exp()
        log_p = model.prior.given(u).log_prob(z)
        expected_kl += share * (density.log() - log_p)
        expected_likelihood += share * model.likelihood.log_prob(x, model.decode(z))
    torch.testing.assert_close(kl, expected_kl)
    torch.testing.assert_close(log_likelihood, expected_likelihood)
    torch.testing.assert_close(loss, 2.0 * expected_kl - expected_likelihood)
    gradients = torch.autograd.grad(loss.sum(), [*model.encoder.parameters()])
    assert all(torch.isfinite(g).all() for g in gradients)


def test_codes_without_u_explain_more_when_they_are_trained():
    X, y = load_digits(return_X_y=True)
    X = X[:, X.std(axis=0) > 0] / 16.0
    options = {"width": 32, "max_iter": 15, "random_state": 0}
    scores = [
        iVAE(5, covariance="full", objective=objective, **options)
        .fit(X, u=y)
        .score_samples(X[:300])
        .mean()
        for objective in (ELBO(), CovariateInformed())
    ]
    assert scores[1] > scores[0] + 0.3


def test_a_joint_posterior_cannot_do_without_u():
    X = draw(0, 60, 3).numpy()
    vae = iVAE(posterior_type="joint", objective=CovariateInformed(), width=4)
    with pytest.raises(ValueError, match="posterior_type='product'"):
        vae.fit(X, u=np.arange(60) % 3)
