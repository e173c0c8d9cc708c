"""LIDMVAE: a mixture VAE whose categories cannot collapse, by an injective decoder.

y ~ Categorical(pi), z | y ~ N(m_y, diag s_y^2), x | z ~ EF(x | f(z)) with f injective:
y is identifiable where the components are distinct (Wang, Blei, Cunningham 2021,
section 3; published as LIDGMVAE).
"""

from __future__ import annotations

from numbers import Real

from skvae._validation import HasMethods, Interval, StrOptions
from skvae.estimators._docs import documented
from skvae.estimators._mixture import BaseMixtureVAE
from skvae.networks import INJECTIVE


@documented(decoder='{"anchored", "brenier"} or specification, default="anchored"')
class LIDMVAE(BaseMixtureVAE):
    """Latent-identifiable mixture variational autoencoder: an injective decoder.

    Parameters
    ----------
    n_components : int, default=2
        Number of latent variables z, at most the number of features; the clusters are
        `n_mixtures`.
    n_mixtures : int, default=10
        Number of mixture components y.
    posterior_type : {"marginal", "enumerated"}, default="marginal"
        "marginal" has one Gaussian q(z|x) and takes p(y|z) by Bayes' rule; "enumerated"
        is the published q(y|x) q(z|x,y), at the cost of `n_mixtures` decodings a row.
    weights : {"uniform", "learned"}, default="uniform"
        Weights of the components in p(y).
    inverse_lipschitz : float, default=0.3
        Lower bound enforced on the slope of a decoder given by name, in units of the
        root mean variance of X for a Gaussian likelihood, in logits or log-rates
        otherwise.
    [shared parameters]

    Attributes
    ----------
    labels_ : ndarray of int of shape (n_samples,)
        Component of each row of the last call of fit or partial_fit.
    weights_ : ndarray of shape (n_mixtures,)
        Weights of the components, which are ordered by their share of the training
        rows, largest first.
    means_ : ndarray of shape (n_mixtures, n_components)
        Means of p(z|y), latents ordered as :meth:`transform` returns them.
    covariances_ : ndarray of shape (n_mixtures, n_components)
        Variances of p(z|y), likewise.
    kl_discrete_ : float
        Mean of KL(q(y|x) || p(y)) over training rows, in nats; at most log n_mixtures
        for uniform weights. Near 0 the components say nothing about x.
    kl_continuous_ : float
        Mean of E_q(y|x) KL(q(z|x,y) || p(z|y)), in nats.
    [shared attributes]

    See Also
    --------
    MixtureVAE : The same prior with an unconstrained decoder.
    LIDVAE : The same decoder with prior N(0, I).

    Notes
    -----
    Minimised, in nats per row, with posterior_type "marginal":
    ``-E_q(z|x) log p(x|z) + beta KL(q(z|x) || sum_y p(y) N(z; m_y, s_y^2))``, the KL
    term being a one-draw estimate; and with "enumerated":
    ``-sum_y q(y|x) E_q(z|x,y) log p(x|z) + beta KL(q(y,z|x) || p(y) p(z|y))``, the sum
    over y and the KL term being exact. The first is the bound of the second with q(y|x)
    replaced by the best answer to it, p(y|z).

    Means start at the centres of k-means on the untrained encoder's codes. With
    "enumerated", one network gives q(y|x) and q(z|x,y) for all y; the paper's has one
    for each, and shifts z by volume-preserving flows.

    References
    ----------
    Wang, Blei, Cunningham, "Posterior Collapse and Latent Variable
    Non-identifiability", NeurIPS 2021, arXiv:2301.00537.

    Kivva, Rajendran, Ravikumar, Aragam, "Identifiability of Deep Generative Models
    without Auxiliary Information", NeurIPS 2022, arXiv:2206.10044.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import LIDMVAE
    >>> X = load_iris().data
    >>> vae = LIDMVAE(n_mixtures=3, width=32, max_iter=5, random_state=0)
    >>> vae.fit_predict(X).shape
    (150,)
    >>> bool(vae.inverse_lipschitz_ > 0)
    True
    """

    _parameter_constraints: dict = {
        **BaseMixtureVAE._parameter_constraints,
        "inverse_lipschitz": [Interval(Real, 0, None, closed="neither")],
        "decoder": [
            StrOptions(set(INJECTIVE)),
            HasMethods(["build", "get_params"]),
        ],
    }

    def __init__(
        self,
        n_components=2,
        *,
        n_mixtures=10,
        posterior_type="marginal",
        weights="uniform",
        inverse_lipschitz=0.3,
        beta=1.0,
        width=256,
        depth=2,
        encoder="mlp",
        decoder="anchored",
        likelihood="gaussian",
        objective="elbo",
        inference="amortized",
        max_iter=100,
        batch_size="auto",
        learning_rate=1e-3,
        schedule="cosine",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        n_init=1,
        warm_start=False,
        n_draws=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            n_components,
            beta=beta,
            width=width,
            depth=depth,
            encoder=encoder,
            decoder=decoder,
            likelihood=likelihood,
            objective=objective,
            inference=inference,
            max_iter=max_iter,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            n_init=n_init,
            warm_start=warm_start,
            n_draws=n_draws,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.n_mixtures = n_mixtures
        self.posterior_type = posterior_type
        self.weights = weights
        self.inverse_lipschitz = inverse_lipschitz

    def _parts(self, conditional):
        decoder = self._network(self.decoder, inverse_lipschitz=self.inverse_lipschitz)
        return super()._parts(conditional)._replace(decoder=decoder)
