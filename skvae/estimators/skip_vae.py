"""Skip-VAE: a decoder that reads the latent code again at every layer.

The model and objective of the VAE; what changes is p(x|z), whose hidden layers are
h_{l+1} = act(W_l h_l + V_l z) (Dieng, Kim, Rush, Blei 2019, section 3).
"""

from __future__ import annotations

from skvae._validation import StrOptions
from skvae.estimators._base import BaseVAE
from skvae.estimators._docs import documented
from skvae.networks.skip import MERGES


@documented(decoder='{"skip", "pixelcnn"} or specification, default="skip"')
class SkipVAE(BaseVAE):
    """Variational autoencoder whose decoder reads z at every layer.

    Skips shorten the way from z to x, so that deep decoders keep their latents.

    Parameters
    ----------
    n_components : int, default=2
        Number of latent variables.
    merge : {"sum", "concat"}, default="sum"
        How z joins a layer of the decoder given by name.
    [shared parameters]

    Attributes
    ----------
    [shared attributes]

    See Also
    --------
    VAE : The same model without skips.
    LIDVAE : A decoder that is injective, with a certificate.

    Notes
    -----
    Minimised, in nats per row:
    ``-E_q log p(x|z) + beta KL(q(z|x) || N(0, I))``.

    References
    ----------
    Dieng, Kim, Rush, Blei, "Avoiding Latent Variable Collapse with Generative Skip
    Models", AISTATS 2019, arXiv:1807.04863.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import SkipVAE
    >>> X = load_iris().data
    >>> vae = SkipVAE(n_components=2, width=32, max_iter=50, random_state=0)
    >>> vae.fit_transform(X).shape
    (150, 2)
    """

    _parameter_constraints: dict = {
        **BaseVAE._parameter_constraints,
        "merge": [StrOptions(set(MERGES))],
    }

    def __init__(
        self,
        n_components=2,
        *,
        merge="sum",
        beta=1.0,
        width=256,
        depth=2,
        encoder="mlp",
        decoder="skip",
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
        self.merge = merge

    def _parts(self, conditional):
        parts = super()._parts(conditional)
        decoder = self._network(self.decoder, merge=self.merge, skip=True)
        return parts._replace(decoder=decoder)
