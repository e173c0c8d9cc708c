"""LIDVAE: latents that cannot collapse because the decoder is injective.

x | z ~ EF(x | f(z)) with f injective, so that the likelihood differs wherever z does
and the posterior cannot equal the prior (Wang, Blei, Cunningham 2021, section 3).
Objective and inference are the VAE's.
"""

from __future__ import annotations

from numbers import Real

from skvae._validation import HasMethods, Interval, StrOptions
from skvae.estimators._base import BaseVAE
from skvae.estimators._docs import documented
from skvae.networks import INJECTIVE


@documented(decoder='{"anchored", "brenier"} or specification, default="anchored"')
class LIDVAE(BaseVAE):
    """Latent-identifiable variational autoencoder: an injective decoder.

    The decoder f obeys ``|f(z) - f(z')| >= inverse_lipschitz_ |z - z'|``, a bound
    computed from its weights. "brenier" is the published decoder, two gradients of
    convex networks with zero padding between them; "anchored" is an ordinary network
    with skips, strongly monotone along as many learned directions as there are latents,
    at a fraction of the cost.

    Parameters
    ----------
    n_components : int, default=2
        Number of latent variables, at most the number of features.
    inverse_lipschitz : float, default=0.3
        Lower bound enforced on the slope of a decoder given by name: the dial against
        collapse. In units of the root mean variance of X for a Gaussian likelihood,
        in logits or log-rates otherwise.
    [shared parameters]

    Attributes
    ----------
    [shared attributes]

    See Also
    --------
    VAE : The same model with an unconstrained decoder.
    IdentifiableVAE : An injective decoder together with an informative prior.

    Notes
    -----
    Minimised, in nats per row:
    ``-E_q log p(x|z) + beta KL(q(z|x) || N(0, I))``.
    An injective map excludes an exactly flat likelihood; how far from flat it is, the
    certificate says.

    References
    ----------
    Wang, Blei, Cunningham, "Posterior Collapse and Latent Variable
    Non-identifiability", NeurIPS 2021, arXiv:2301.00537.

    Kinoshita et al., "Controlling Posterior Collapse by an Inverse Lipschitz
    Constraint on the Decoder Network", ICML 2023, arXiv:2304.12770.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import LIDVAE
    >>> X = load_iris().data
    >>> vae = LIDVAE(n_components=2, width=32, max_iter=50, random_state=0).fit(X)
    >>> bool(vae.inverse_lipschitz_ > 0)
    True
    >>> bool(vae.active_components_.all())
    True
    """

    _parameter_constraints: dict = {
        **BaseVAE._parameter_constraints,
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
        self.inverse_lipschitz = inverse_lipschitz

    def _parts(self, conditional):
        parts = super()._parts(conditional)
        decoder = self._network(self.decoder, inverse_lipschitz=self.inverse_lipschitz)
        return parts._replace(decoder=decoder)
