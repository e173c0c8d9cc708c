"""iVAE: a prior that depends on an auxiliary variable makes latents identifiable.

p(x, z | u) = p(x|z) prod_i N(z_i; m_i(u), s_i(u)^2), trained on
E_q log p(x|z) - beta KL(q(z|x,u) || p(z|u)) (Khemakhem et al. 2020, eqs. 5 to 7).
"""

from __future__ import annotations

from skvae._spec import resolve
from skvae._validation import HasMethods, StrOptions
from skvae.estimators._base import BaseVAE
from skvae.estimators._conditional import ConditionalVAE
from skvae.estimators._docs import documented
from skvae.objectives import OBJECTIVES
from skvae.posteriors import POSTERIORS
from skvae.priors import PRIORS

# Part of training. Where the sources differ in their scale alone and are mixed without
# preferred directions, codes say nothing of x at first that the noise does not say
# better, and without warm-up all of them are given up.
WARM_UP = 0.5


@documented(
    decoder='"mlp" or specification, default="mlp"',
    width=100,
    learning_rate="float, default=0.005",
)
class iVAE(ConditionalVAE):
    """Identifiable variational autoencoder with a prior p(z given u).

    With enough different values of an auxiliary variable u (a class, a segment, a
    time, a covariate), the latents are recovered up to order, sign and scale.

    Parameters
    ----------
    n_components : int, default=2
        Number of latent variables.
    prior : "conditional_gaussian" or specification, default="conditional_gaussian"
        The law p(z|u): its mean and variance depend on u;
        ``ConditionalGaussian(mean="zero")`` fixes the mean.
    posterior_type : {"product", "joint"}, default="product"
        "product" multiplies q(z|x) with p(z|u), so that u may be left out later;
        "joint" is the paper's encoder of x and u together, which needs u always.
    covariance : {"diagonal", "full"}, default="diagonal"
        Covariance of the posterior. A diagonal one draws the decoder towards
        orthogonal columns in its Jacobian and so away from the true latents, however
        small the noise: use "full" to recover sources. Without the KL warm-up and
        with few categories of u, codes without u are worth less with it.
    u_type : {"auto", "discrete", "continuous"}, default="auto"
        How u is read. "auto" takes one column of integers, booleans or strings as
        discrete and everything else as continuous.
    [shared parameters]

    Attributes
    ----------
    u_categories_ : ndarray of shape (n_categories,)
        Values of a discrete u seen during fit.
    identifiability_ : dict
        Which assumptions of the identifiability theorem hold; see
        :class:`IdentifiableVAE`.
    [shared attributes]

    See Also
    --------
    IdentifiableVAE : The same prior with an injective decoder.

    Notes
    -----
    Minimised, in nats per row:
    ``-E_q log p(x|z) + beta KL(q(z|x,u) || p(z|u))``.
    Where `u` is None, `y` stands in for it. Without u, :meth:`transform` and
    :meth:`score_samples` use the mixture of p(z|u) over the training u. Rows are
    often ordered by segment: shuffle the folds of a cross-validation, or they hold
    unseen segments.

    Networks given by name have tanh activations. The released program of the paper
    minimises a sum of four terms with separate weights; this is the plain bound with
    learned noise. Objectives given by name warm up the KL term over the first half of
    training.

    Gradients alone often rest at a rotation of the sources. Where u is discrete and the
    networks are dense, training now and then turns the codes to where they are least
    correlated given u; ``inference=Amortized(unmix=False)`` leaves that out.

    More than two or three sources ask for a more precise encoder than a network
    learns to be: that of :class:`IdentifiableVAE`.

    References
    ----------
    Khemakhem, Kingma, Monti, Hyvarinen, "Variational Autoencoders and Nonlinear ICA:
    A Unifying Framework", AISTATS 2020, arXiv:1907.04809.

    Zhou, Wei, "Learning identifiable and interpretable latent models of
    high-dimensional neural activity using pi-VAE", NeurIPS 2020, arXiv:2011.04798,
    for the product posterior.

    Examples
    --------
    >>> from skvae import iVAE
    >>> from skvae.datasets import make_nonlinear_ica
    >>> X, u = make_nonlinear_ica(800, n_segments=8, random_state=0)
    >>> vae = iVAE(n_components=2, width=32, max_iter=10, random_state=0)
    >>> vae.fit(X, u=u).transform(X).shape
    (800, 2)
    >>> vae.transform(X, u=u).shape
    (800, 2)
    """

    _parameter_constraints: dict = {
        **BaseVAE._parameter_constraints,
        "prior": [
            StrOptions({"conditional_gaussian"}),
            HasMethods(["build", "get_params"]),
        ],
        "posterior_type": [StrOptions({"product", "joint"})],
        "covariance": [StrOptions({"full", "diagonal"})],
        "u_type": [StrOptions({"auto", "discrete", "continuous"})],
    }

    def __init__(
        self,
        n_components=2,
        *,
        prior="conditional_gaussian",
        posterior_type="product",
        covariance="diagonal",
        u_type="auto",
        beta=1.0,
        width=100,
        depth=2,
        encoder="mlp",
        decoder="mlp",
        likelihood="gaussian",
        objective="elbo",
        inference="amortized",
        max_iter=100,
        batch_size="auto",
        learning_rate=5e-3,
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
        self.prior = prior
        self.posterior_type = posterior_type
        self.covariance = covariance
        self.u_type = u_type

    def _network(self, part, **options):
        # The theorem asks for a decoder with second derivatives.
        return super()._network(part, activation="tanh", **options)

    def _parts(self, conditional):
        return (
            super()
            ._parts(conditional)
            ._replace(
                prior=resolve(self.prior, PRIORS),
                posterior=resolve(
                    self.posterior_type, POSTERIORS, covariance=self.covariance
                ),
                objective=resolve(self.objective, OBJECTIVES, warm_up=WARM_UP),
            )
        )
