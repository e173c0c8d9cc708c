"""MixtureVAE: a variational autoencoder whose prior is a mixture of Gaussians.

y ~ Categorical(pi), z | y ~ N(m_y, diag s_y^2), x | z ~ EF(x | f(z)): the classical
mixture VAE, with the sum over y exact (baseline of Wang, Blei, Cunningham 2021).
"""

from __future__ import annotations

from skvae.estimators._docs import documented
from skvae.estimators._mixture import BaseMixtureVAE


@documented(decoder='{"mlp", "skip"} or specification, default="mlp"')
class MixtureVAE(BaseMixtureVAE):
    """Variational autoencoder with a Gaussian-mixture prior, which also clusters.

    Parameters
    ----------
    n_components : int, default=2
        Number of latent variables z; the clusters are `n_mixtures`.
    n_mixtures : int, default=10
        Number of mixture components y.
    posterior_type : {"marginal", "enumerated"}, default="marginal"
        "marginal" has one Gaussian q(z|x) and takes p(y|z) by Bayes' rule; "enumerated"
        is the published q(y|x) q(z|x,y), at the cost of `n_mixtures` decodings a row.
    weights : {"uniform", "learned"}, default="uniform"
        Weights of the components in p(y).
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
    LIDMVAE : The same prior with an injective decoder.

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
    Dilokthanakul et al., "Deep Unsupervised Clustering with Gaussian Mixture
    Variational Autoencoders", 2016, arXiv:1611.02648.

    Jiang et al., "Variational Deep Embedding: An Unsupervised and Generative Approach
    to Clustering", IJCAI 2017, arXiv:1611.05148.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import MixtureVAE
    >>> X = load_iris().data
    >>> vae = MixtureVAE(n_mixtures=3, width=32, max_iter=5, random_state=0)
    >>> vae.fit_predict(X).shape
    (150,)
    >>> vae.predict_proba(X).shape
    (150, 3)
    """

    def __init__(
        self,
        n_components=2,
        *,
        n_mixtures=10,
        posterior_type="marginal",
        weights="uniform",
        beta=1.0,
        width=256,
        depth=2,
        encoder="mlp",
        decoder="mlp",
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
